"""Options from a file (`--config`), beside those of the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from domainfusion import cli


def test_options_of_a_file_give_way_to_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_image_folder: Callable[..., Path]
) -> None:
    from domainfusion.experiments import runs

    seen = []

    def train_run(data: str, config: object, folder: Path, **_: object) -> dict[str, object]:
        seen.append((data, config, folder))
        return {
            "algorithm": "erm", "dataset": "d", "protocol": "domainbed", "trial": 0, "validation_accuracy": 0.5,
            "selected_step": 3, "target": "t", "target_accuracy": 0.25, "test_images": 8, "seconds": 1.0,
        }  # fmt: skip

    monkeypatch.setattr(runs, "train_run", train_run)
    path = tmp_path / "options.toml"
    path.write_text('algorithm = "erm"\nsteps = 7\nlr = 0.5\n[data]\nsize = 32\nflip = false\n')
    words = [
        "train",
        "some/data",
        "--config",
        str(path),
        "--steps",
        "9",
        "--data.jitter",
        "0",
        "--output",
        str(tmp_path),
    ]
    assert cli.run(words) == 0
    data, config, folder = seen[0]
    assert (data, folder) == ("some/data", tmp_path)
    assert (config.algorithm, config.steps, config.lr) == ("erm", 9, 0.5)
    assert (config.data.size, config.data.flip, config.data.jitter, config.data.crop) == (32, False, 0.0, 0.7)


@pytest.mark.parametrize("words", [["--config", "options.toml"], ["--config=options.toml"]])
def test_a_wrong_option_in_a_file_is_refused(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("options.toml").write_text("stesp = 7\n")
    assert cli.run(["train", "pictograms", *words]) == 2
    assert capsys.readouterr().err == "domainfusion: options.toml: unknown option 'stesp'; did you mean 'steps'?\n"


def test_an_option_of_the_command_line_in_a_file_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "options.toml"
    path.write_text('steps = 7\noutput = "runs/x"\n')
    assert cli.run(["train", "pictograms", "--config", str(path)]) == 2
    assert "output is no option of a run; give it on the command line: --output" in capsys.readouterr().err


def test_a_missing_options_file_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["train", "pictograms", "--config", "absent.toml"]) == 2
    assert "absent.toml cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[search]\nlrr = [1, 2]", "options.toml: [search] lrr: no option to search over; did you mean 'lr'?"),
        (
            "[search]\nlr = {uniform = [5, 1]}",
            "options.toml: [search] lr = {'uniform': [5, 1]}: give a list of choices",
        ),
        ("[search.generate]\ncandidates = [0]", "options.toml: [search]: generate.candidates = 0: "),
        ("search = 3", "options.toml: search is a table, not 3"),
    ],
)
@pytest.mark.parametrize("drawing", [[], ["--hparams-seed", "1"]])
def test_a_wrong_search_is_refused_whether_or_not_anything_is_drawn(
    drawing: list[str], text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("options.toml").write_text(text)
    assert cli.run(["train", "pictograms", "--algorithm", "erm", "--config", "options.toml", *drawing]) == 2
    assert capsys.readouterr().err.startswith(f"domainfusion: {message}")
