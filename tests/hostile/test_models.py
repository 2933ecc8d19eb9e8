"""Model files, runs and latent diffusion models that are broken, foreign, or mean to run code."""

from __future__ import annotations

import contextlib
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.errors import LDMError
from domainfusion.files import altered_files, read_json

USES = ("predict", "evaluate", "export")


@pytest.fixture
def run(trained_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained_run, tmp_path / "run"))


class Bomb:
    """A pickle that makes a file when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def use(command: Any, name: str, run: Path, tmp_path: Path) -> Any:
    if name == "predict":
        return command("predict", run, run.parent)
    if name == "evaluate":
        return command("evaluate", run)
    return command("export", run, "--output", tmp_path / "exported")


@pytest.mark.parametrize("name", USES)
@pytest.mark.parametrize("dress", ["pickle", "torch"])
def test_pickles_are_never_opened(run: Path, tmp_path: Path, command: Any, name: str, dress: str) -> None:
    content = {"weight": Bomb(tmp_path / "ran")}
    if dress == "pickle":
        (run / "model.safetensors").write_bytes(pickle.dumps(content))
    else:
        torch.save(content, run / "model.safetensors")
    said = use(command, name, run, tmp_path)
    assert said.code == 1
    assert "is a pickle, which may run any code" in said.err
    assert not (tmp_path / "ran").exists()


DAMAGE = {
    "flipped": (lambda path, t: path.write_bytes(flip(path.read_bytes())), "altered or damaged"),
    "truncated": (lambda path, t: path.write_bytes(path.read_bytes()[:2000]), "damaged"),
    "empty": (lambda path, t: path.write_bytes(b""), "damaged"),
    "header": (lambda path, t: path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:]), "damaged"),
    "lacking": (lambda path, t: save_file({k: v for k, v in t.items() if k != "head.bias"}, path), "lacks head.bias"),
    "shape": (lambda path, t: save_file(t | {"head.bias": torch.zeros(9)}, path), "has the shape [9], not [3]"),
    "nan": (lambda path, t: save_file(t | {"head.bias": torch.full((3,), torch.nan)}, path), "not finite"),
    "type": (lambda path, t: save_file(t | {"head.bias": torch.zeros(3, dtype=torch.int64)}, path), "int64"),
}


def flip(content: bytes) -> bytes:
    """One bit of the last tensor."""
    changed = bytearray(content)
    changed[-40] ^= 4
    return bytes(changed)


@pytest.mark.parametrize("name", USES)
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_or_foreign_weights(run: Path, tmp_path: Path, command: Any, name: str, damage: str) -> None:
    change, message = DAMAGE[damage]
    change(run / "model.safetensors", load_file(run / "model.safetensors"))
    said = use(command, name, run, tmp_path)
    assert said.code == 1
    assert message in said.err
    assert not (tmp_path / "exported" / "model.safetensors").exists()


@pytest.mark.parametrize("file", ["model.json", "config.toml", "data.json", "result.json", "calibration.json"])
@pytest.mark.parametrize("content", ["", "[]", "null", "{}", '{"classes": 3}', "\x00", '{"classes": [], "size": "x"}'])
def test_descriptions_of_a_run_that_describe_nothing(
    run: Path, tmp_path: Path, command: Any, file: str, content: str
) -> None:
    """Whatever they hold, no command ends in a traceback (which `command` checks)."""
    (run / file).write_text(content)
    for name in ("predict", "evaluate"):
        use(command, name, run, tmp_path)
    command("report", run, "--output", tmp_path / "report.html")
    command("collect", run)


def test_checksums_of_a_finished_run_name_what_changed(run: Path, trained_run: Path, command: Any) -> None:
    import subprocess

    checked = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=run, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
    assert altered_files(run) == []
    lines = (run / "metrics.jsonl").read_text().replace('"step": 20', '"step": 21')
    (run / "metrics.jsonl").write_text(lines)
    (run / "predictions.csv").unlink()
    assert altered_files(run) == ["metrics.jsonl", "predictions.csv"]
    said = command("report", run, "--output", run.parent / "report.html")
    assert "metrics.jsonl, predictions.csv changed since the run ended" in said.err


def test_damaged_records_of_a_finished_run_are_made_again(run: Path, trained_run: Path, capfd: Any) -> None:
    from domainfusion.config import TrainConfig
    from domainfusion.config_files import build_config, load_toml
    from domainfusion.experiments.runs import train_run
    from same_run import assert_same_run

    for name in ("metrics.jsonl", "result.json", "predictions.csv", "results.jsonl"):
        content = (run / name).read_bytes()
        (run / name).write_bytes(content[: len(content) // 2])
    config = build_config(TrainConfig, load_toml(run / "config.toml"), "config.toml")
    train_run(read_json(run / "data.json")["data"], config, run, progress=False)
    assert_same_run(trained_run, run)
    assert (run / "predictions.csv").read_bytes() == (trained_run / "predictions.csv").read_bytes()
    assert altered_files(run) == []
    said = capfd.readouterr().err
    assert "changed since the run ended" in said
    assert "metrics.jsonl is missing or damaged; it was restored from the checkpoint" in said


@pytest.fixture
def folder(tiny_pipeline: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_pipeline, tmp_path / "pipeline"))


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("part", ["vae", "unet", "text_encoder", "tokenizer", "scheduler"])
def test_parts_that_ask_for_code_are_refused(folder: Path, tmp_path: Path, part: str) -> None:
    (folder / part / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Mine: ...\n")
    (path,) = (folder / part).glob("*config.json")
    edit(path, auto_map={"AutoModel": "mine.Mine"})
    with pytest.raises(LDMError, match=r"asks for code of its own \(auto_map\), which is never run"):
        LatentDiffusion.load(str(folder))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("change", [{"_class_name": ["pipeline", "Mine"]}, {"custom_pipeline": "mine"}])
def test_pipelines_that_ask_for_code_are_refused(folder: Path, tmp_path: Path, change: dict[str, object]) -> None:
    (folder / "pipeline.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Mine: ...\n")
    edit(folder / "model_index.json", **change)
    with pytest.raises(LDMError, match=r"a pipeline of its own, whose code is never run"):
        LatentDiffusion.load(str(folder))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("part", ["vae", "unet", "text_encoder", "scheduler"])
@pytest.mark.parametrize("content", ["", "[]", "{}", "null", '{"block_out_channels": "x"}', '{"hidden_size": -3}'])
def test_parts_that_describe_nothing(folder: Path, part: str, content: str) -> None:
    """Refused in one line, or, where every option has a default, loaded."""
    (path,) = (folder / part).glob("*config.json")
    path.write_text(content)
    with contextlib.suppress(LDMError):
        LatentDiffusion.load(str(folder))


@pytest.mark.parametrize("content", ["{", "{}", "[1]", '"x"', "[" * 100_000])
def test_style_words_that_are_none(folder: Path, content: str) -> None:
    (folder / "styles.json").write_text(content)
    with pytest.raises(LDMError, match=r"styles\.json"):
        LatentDiffusion.load(str(folder))
