"""Each example runs, on small images and a small diffusion model, and does what it says; notebooks fit the scripts."""

from __future__ import annotations

import importlib.util
import json
import runpy
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import domainfusion
from domainfusion.config import TrainConfig
from domainfusion.config_files import build_config, flat_values, load_toml, plain_values
from domainfusion.registry import ALGORITHMS

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
Example = Callable[..., dict[str, Any]]


@pytest.fixture
def example(
    make_image_folder: Callable[..., Path], tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Example]:
    """`example(name, STEPS=2)`: the names of an example after it has run."""
    settings = {
        "DATA": str(make_image_folder("few", count=6)), "TARGET": "sketch", "TARGETS": "sketch", "STEPS": "3",
        "BACKBONE": "test_resnet", "LDM": str(tiny_pipeline), "OUTPUT": str(tmp_path / "out"), "COUNT": "2",
    }  # fmt: skip
    before = set(ALGORITHMS.names())

    def run(name: str, **changes: str) -> dict[str, Any]:
        for key, value in (settings | changes).items():
            monkeypatch.setenv(key, value)
        return runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")

    yield run
    for name in set(ALGORITHMS.names()) - before:
        ALGORITHMS.remove(name)


def test_train_and_predict(example: Example, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = example("train_and_predict")
    assert found["run"].folder == tmp_path / "out" / "first"
    assert f"{found['run'].target_accuracy:.1%}".replace("%", " %") in capsys.readouterr().out
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000
    assert len(list((tmp_path / "out" / "new").glob("*.png"))) == 1
    assert found["found"].best[0][0] in ("cat", "dog", "house")


def test_own_algorithm(example: Example, capsys: pytest.CaptureFixture[str]) -> None:
    found = example("own_algorithm")
    assert list(found["found"].accuracy) == ["erm", "vrex"]
    assert "vrex" in capsys.readouterr().out
    assert ALGORITHMS.get("vrex").summary == "The mean of the domains' risks, and beta times their variance."
    assert ALGORITHMS.load("vrex") is found["VREx"]
    # Another process, which does not know the name, can use the run's model all the same.
    folder = found["OUTPUT"] / "vrex" / "vrex" / "sketch" / "trial-0"
    known = domainfusion.evaluate(folder, device="cpu")
    ALGORITHMS.remove("vrex")
    assert domainfusion.evaluate(folder, device="cpu") == known
    labels, _ = domainfusion.load(folder, device="cpu").predict([np.zeros((20, 20, 3), dtype=np.uint8)])
    assert labels[0] in ("cat", "dog", "house")


@pytest.mark.parametrize(("step", "beta"), [(0, 1.0), (3, 10.0)])
def test_the_examples_algorithm_is_the_papers(example: Example, step: int, beta: float) -> None:
    """The mean of the risks and beta times their (population) variance, written out in plain numbers."""
    import types

    kind = example("own_algorithm", STEPS="1")["VREx"]
    logits = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.5, 0.0]])
    labels = torch.tensor([0, 1, 0, 0])
    domains = [np.array([0, 2]), np.array([1, 3])]
    stub = types.SimpleNamespace(
        predict=lambda images: logits, rows_by_domain=lambda batch: domains, beta=kind.beta, anneal=kind.anneal,
        config=types.SimpleNamespace(steps=8),
    )  # fmt: skip
    terms = kind.losses(stub, types.SimpleNamespace(images=None, labels=labels, step=step))
    each = [-float(torch.log_softmax(row, 0)[label]) for row, label in zip(logits, labels, strict=True)]
    risks = [(each[0] + each[2]) / 2, (each[1] + each[3]) / 2]
    mean = sum(risks) / 2
    assert float(terms["risk_loss"]) == pytest.approx(mean, rel=1e-5)
    assert float(terms["variance_loss"]) == pytest.approx(beta * sum((r - mean) ** 2 for r in risks) / 2, rel=1e-5)


def test_distillation_in_your_loop(example: Example, capsys: pytest.CaptureFixture[str]) -> None:
    found = example("distillation_in_your_loop")
    assert found["slopes"].shape == (8,)
    assert torch.isfinite(found["slopes"]).all()
    assert float(found["slopes"].abs().max()) > 0
    assert len(found["guesses"]) == len(found["split"].test)
    assert "sketch: " in capsys.readouterr().out


def test_look_at_candidates(example: Example, tmp_path: Path) -> None:
    found = example("look_at_candidates")
    with Image.open(tmp_path / "out" / "candidates.png") as sheet:
        pixels = np.asarray(sheet)
    assert pixels.shape == (2 * 16, 5 * 16, 3)
    # The first column holds the images, the others what was made of them, in order.
    rows = found["rows"]
    assert np.array_equal(pixels[:16, :16], found["dataset"].images[rows[0]])
    assert np.array_equal(pixels[16:, :16], found["dataset"].images[rows[1]])
    expected = ((found["candidates"][1, 3] + 1) * 127.5).round().permute(1, 2, 0).numpy()
    assert np.abs(pixels[16:, 64:].astype(float) - expected).max() <= 1


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 90
    assert f"({path.name})" in (ROOT / "examples" / "README.md").read_text()


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_notebooks", ROOT / "scripts" / "make_notebooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_notebooks_fit_their_scripts(maker: ModuleType) -> None:
    maker.main(["--check"])


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_a_notebook_holds_its_script(path: Path) -> None:
    """All lines of code, in order, and the text as Markdown; in the form that nbformat 4.5 asks for."""
    written = json.loads((ROOT / "examples" / "notebooks" / f"{path.stem}.ipynb").read_text(encoding="utf-8"))
    assert (written["nbformat"], written["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in written["cells"]}) == len(written["cells"])
    for cell in written["cells"]:
        expected = {"cell_type", "id", "metadata", "source"}
        assert set(cell) == expected | ({"execution_count", "outputs"} if cell["cell_type"] == "code" else set())
    code = "\n".join("".join(cell["source"]) for cell in written["cells"] if cell["cell_type"] == "code")
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    assert [line for line in code.splitlines() if line] == lines
    compile(code, path.name, "exec")
    assert "".join(written["cells"][0]["source"]).startswith("# ")


def test_a_stale_notebook_is_named(maker: ModuleType, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    script = tmp_path / "examples" / "own_algorithm.py"
    script.write_text(script.read_text() + "print(1)\n")
    (tmp_path / "examples" / "notebooks" / "gone.ipynb").write_text("{}")
    with pytest.raises(SystemExit, match=r"gone.ipynb, own_algorithm.ipynb; run scripts/make_notebooks.py"):
        maker.main(["--check"], tmp_path / "examples")
    maker.main([], tmp_path / "examples")
    maker.main(["--check"], tmp_path / "examples")


@pytest.mark.parametrize(
    ("script", "message"),
    [("x = 1\n# %%\n", "begins with a cell"), ("# %% [markdown]\n# a\nx = 1\n", "no comment: x = 1")],
)
def test_a_script_of_another_form_is_refused(maker: ModuleType, script: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        maker.notebook(script)


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.toml")), ids=lambda path: path.stem)
def test_options_in_files_are_understood(path: Path) -> None:
    """As `--config` takes them; and what is in them differs from the defaults."""
    found = build_config(TrainConfig, load_toml(path), str(path))
    assert flat_values(load_toml(path)).items() <= flat_values(plain_values(found)).items()
    assert found != TrainConfig()
