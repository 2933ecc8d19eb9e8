"""A model trained on all domains is told what to expect elsewhere: each domain held out in turn."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

import pytest

from domainfusion import cli
from domainfusion.config import TrainConfig
from domainfusion.config_files import build_config, load_toml
from domainfusion.experiments import runs
from domainfusion.files import read_json
from domainfusion.model import load
from domainfusion.model_card import find_leave_one_out

WORDS = [
    "--algorithm", "erm", "--steps", "2", "--evaluations", "1", "--batch-size", "4", "--backbone", "test_resnet",
    "--precision", "float32", "--device", "cpu", "--data.size", "32",
]  # fmt: skip


@pytest.fixture
def images(write_images: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DOMAINFUSION_CACHE", str(tmp_path / "cache"))
    return write_images(tmp_path / "images")


def test_training_on_all_domains_says_what_to_expect_on_another(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    command = ["train", str(images), *WORDS, "--output", str(run)]
    assert cli.run(command) == 0
    text = capsys.readouterr().out
    expected = read_json(run / "expectation.json")
    domains = sorted(path.name for path in images.iterdir())
    assert sorted(expected["domains"]) == domains
    for domain in domains:
        folder = run / "held-out" / "erm" / domain / "trial-0"
        assert expected["domains"][domain] == round(100 * read_json(folder / "result.json")["target_accuracy"], 3)
        options = build_config(TrainConfig, load_toml(folder / "config.toml"), "")
        assert (options.target, options.steps, options.batch_size) == (domain, 2, 4)
        assert domain not in read_json(folder / "data.json")["train"]
    values = list(expected["domains"].values())
    assert expected["mean"] == pytest.approx(statistics.fmean(values), abs=1e-3)
    assert expected["standard_error"] == pytest.approx(statistics.stdev(values) / len(values) ** 0.5, abs=1e-3)
    assert (expected["lowest"], expected["highest"]) == (min(values), max(values))
    assert f"expect about {expected['mean']:.1f}" in text
    card = find_leave_one_out(load(run), None)
    assert card is not None
    assert card["accuracy"] == {domain: [value] for domain, value in expected["domains"].items()}
    # The second time everything is read.
    monkeypatch.setattr(runs, "train", None)
    assert cli.run(command) == 0
    assert f"expect about {expected['mean']:.1f}" in capsys.readouterr().out


def test_it_can_be_left_out_and_is_not_done_with_a_target(images: Path, tmp_path: Path) -> None:
    target = sorted(path.name for path in images.iterdir())[0]
    assert cli.run(["train", str(images), *WORDS, "--no-expect", "--output", str(tmp_path / "a")]) == 0
    assert cli.run(["train", str(images), *WORDS, "--target", target, "--output", str(tmp_path / "b")]) == 0
    for name in "ab":
        assert (tmp_path / name / "result.json").exists()
        assert not (tmp_path / name / "held-out").exists()
