"""The Python functions do what the commands do."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import domainfusion
from domainfusion import cli
from domainfusion.api import build_options
from domainfusion.config import DataConfig, DistillConfig, TrainConfig
from domainfusion.config_files import load_toml
from domainfusion.errors import UsageError
from domainfusion.files import read_json

SMALL: dict[str, Any] = {
    "algorithm": "erm", "target": "sketch", "steps": 4, "evaluations": 2, "batch_size": 4, "backbone": "test_resnet",
    "precision": "float32", "device": "cpu",
}  # fmt: skip


@pytest.fixture(scope="module")
def root(write_images: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("api") / "few", count=6).parent


@pytest.fixture(scope="module")
def run(root: Path) -> domainfusion.Run:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOMAINFUSION_CACHE", str(root / "cache"))
        return domainfusion.train(root / "few", output=root / "run", progress=False, data={"size": 32}, **SMALL)


def test_train_makes_the_run_that_the_command_makes(
    run: domainfusion.Run, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command in the function's folder finds its own run there, finished."""
    words = [word for name, value in SMALL.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    arguments = ["train", str(root / "few"), *words, "--data.size", "32", "--output", str(run.folder)]
    assert cli.run([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == run.result == read_json(run.folder / "result.json")
    assert cli.run(arguments) == 0
    assert capsys.readouterr().out == f"{run}\n"
    assert run.target_accuracy == run.result["target_accuracy"]
    assert run.validation_accuracy == run.result["validation_accuracy"]


def test_options_are_configs_or_keywords_or_both(run: domainfusion.Run) -> None:
    base = TrainConfig(steps=9, distill=DistillConfig(samples=4, residual="guided"))
    made = build_options(base, {"lr": 0.5, "distill": {"samples": 2}, "data": DataConfig(size=32)}, "train")
    assert (made.steps, made.lr, made.data.size) == (9, 0.5, 32)
    assert (made.distill.samples, made.distill.residual) == (2, "guided")
    assert build_options(base, {}, "train") == base
    assert build_options(TrainConfig(target="ink"), {"target": None}, "train").target is None
    assert build_options(None, {"generate": {"strength": (0.2, 0.4)}}, "train").generate.strength == (0.2, 0.4)
    preset = build_options(None, {"preset": "domainbed-paper", "steps": 7, "data": {"flip": False}}, "train")
    assert (preset.steps, preset.lr, preset.freeze_bn, preset.data.size, preset.data.flip) == (
        7,
        5e-5,
        True,
        224,
        False,
    )
    with pytest.raises(UsageError, match="give the preset or the options"):
        build_options(base, {"preset": "paper"}, "train")
    assert load_toml(run.folder / "config.toml")["data"]["size"] == 32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stesp": 3}, r"train\(\): unknown option 'stesp'; did you mean 'steps'"),
        ({"distill": {"sampels": 3}}, r"unknown option 'distill.sampels'; did you mean 'distill.samples'"),
        ({"steps": 0}, r"train\(\): steps = 0: "),
        ({"algorithm": "emr"}, "unknown algorithm 'emr'; did you mean 'erm'"),
        ({"track": ["tensorbord"]}, "unknown tracker 'tensorbord'"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_made(
    root: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        domainfusion.train(root / "few", output=tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_without_a_target_it_says_what_to_expect(root: Path, tmp_path: Path) -> None:
    changes = SMALL | {"target": None, "steps": 1, "evaluations": 1, "data": {"size": 32}}
    run = domainfusion.train(root / "few", output=tmp_path / "all", progress=False, **changes)
    assert set(run.result["expected"]["domains"]) == {"cartoon", "photo", "sketch"}
    assert run.target_accuracy is None
    alone = domainfusion.train(root / "few", output=tmp_path / "all", progress=False, expect=False, **changes)
    assert alone.result == read_json(tmp_path / "all" / "result.json")


def test_draws_are_the_command_lines(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is given keeps its value; the rest of draw 3 is what `--hparams-seed 3` draws."""
    from domainfusion.experiments import runs

    seen: list[TrainConfig] = []

    def train_run(data: str, config: TrainConfig, folder: Path, **_: Any) -> dict[str, Any]:
        seen.append(config)
        return {}

    monkeypatch.setattr(runs, "train_run", train_run)
    monkeypatch.setattr("domainfusion.results.tables.run_summary", lambda *_: "")
    words = ["train", str(root / "few"), "--algorithm", "erm", "--target", "sketch", "--batch-size", "9"]
    assert cli.run([*words, "--hparams-seed", "3", "--output", str(tmp_path)]) == 0
    given = {"algorithm": "erm", "target": "sketch", "hparams_seed": 3}
    domainfusion.train(root / "few", output=tmp_path, batch_size=9, **given)
    domainfusion.train(root / "few", TrainConfig(batch_size=9), output=tmp_path, **given)
    assert seen[0] == seen[1] == seen[2]
    assert seen[0].batch_size == 9
    assert seen[0].lr != TrainConfig().lr


def test_benchmark(root: Path, tmp_path: Path) -> None:
    options = TrainConfig(**{name: value for name, value in SMALL.items() if name not in ("algorithm", "target")})
    found = domainfusion.benchmark(
        root / "few", options, algorithms=["erm"], trials=1, targets=["sketch"], output=tmp_path / "b", steps=2,
        evaluations=1, progress=False, data={"size": 32},
    )  # fmt: skip
    assert found.summary == read_json(tmp_path / "b" / "benchmark.json")
    (value,) = found.accuracy["erm"]["sketch"]
    assert str(found).splitlines()[0].split() == ["algorithm", "sketch", "average", "minus", "erm"]
    assert 0 <= value <= 100
    with pytest.raises(UsageError, match="chooses target itself; give targets"):
        domainfusion.benchmark(root / "few", target="sketch")


def test_evaluate_and_predict(run: domainfusion.Run, root: Path) -> None:
    own = domainfusion.evaluate(run, device="cpu")
    assert own["sketch"]["accuracy"] == run.target_accuracy
    assert domainfusion.evaluate(run.folder, device="cpu") == own
    assert set(domainfusion.evaluate(run, root / "few", device="cpu")) == {"cartoon", "photo", "sketch"}
    folder = root / "few" / "photo" / "cat"
    rows = domainfusion.predict_images(run, [folder, root / "absent.png"], top_k=2, device="cpu")
    assert [Path(row.file).name for row in rows] == [*sorted(path.name for path in folder.iterdir()), "absent.png"]
    assert "does not exist" in rows[-1].error
    labels, confidences = run.load(device="cpu").predict(sorted(folder.iterdir()))
    assert [row.best[0] for row in rows[:-1]] == [
        (label, pytest.approx(float(p), abs=1e-6)) for label, p in zip(labels, confidences, strict=True)
    ]
    assert all(len(row.best) == 2 for row in rows[:-1])
    one = domainfusion.predict_images(run.load(device="cpu"), folder / "00.png")
    assert one[0].best[0][0] == labels[0]
    with pytest.raises(UsageError, match="at least 1"):
        domainfusion.predict_images(run, folder, top_k=0)


def test_report(run: domainfusion.Run, tmp_path: Path) -> None:
    page = domainfusion.write_report(run, tmp_path / "report.html")
    assert page == tmp_path / "report.html"
    assert "sketch" in page.read_text(encoding="utf-8")
    assert domainfusion.write_report([run.folder], tmp_path / "other.html").exists()


def test_lists() -> None:
    assert {"erm", "domainfusion"} <= {entry.name for entry in domainfusion.list_names("algorithms")}
    assert [entry.name for entry in domainfusion.list_names("trackers")] == ["mlflow", "tensorboard", "wandb"]
    with pytest.raises(UsageError, match="unknown list 'algoritms'; did you mean 'algorithms'"):
        domainfusion.list_names("algoritms")


def test_everything_that_is_offered_is_there() -> None:
    for name in domainfusion.__all__:
        assert getattr(domainfusion, name) is not None
    assert set(domainfusion.__all__) <= set(dir(domainfusion))
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = domainfusion.trian


def test_editors_are_told_of_everything_that_is_offered() -> None:
    """The imports for type checkers name what the package offers, from where it comes."""
    import ast

    tree = ast.parse(Path(domainfusion.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    told = {name.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for name in node.names}
    assert told == domainfusion._OFFERED


def test_no_offered_function_is_hidden_by_a_module() -> None:
    """Importing `domainfusion.report`, say, makes the package's attribute `report` that module, for good."""
    folder = Path(domainfusion.__file__).parent
    modules = {path.stem for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert not modules & set(domainfusion.__all__)


def test_the_package_and_its_options_are_light() -> None:
    program = (
        "import sys, domainfusion\ndomainfusion.TrainConfig(steps=3); domainfusion.list_names('algorithms')\n"
        "domainfusion.register_algorithm\ntry:\n    domainfusion.train('x', stesp=3)\n"
        "except domainfusion.UsageError as error:\n    print(error)\n"
        "print([name for name in ('torch', 'timm', 'diffusers', 'matplotlib', 'ray') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["train(): unknown option 'stesp'; did you mean 'steps'?", "[]"]
