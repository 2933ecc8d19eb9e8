"""Presets: their facts, and which of preset, file and command line has the last word."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from domainfusion import cli
from domainfusion.commands.layers import base_options, drawn, given_options, merge, search_table
from domainfusion.commands.parsing import parse
from domainfusion.commands.runs import TrainCommand
from domainfusion.config import TrainConfig
from domainfusion.config_files import build_config, load_toml
from domainfusion.errors import UsageError
from domainfusion.experiments.hyperparameters import read_space
from domainfusion.fusion.schedule import generations_due
from domainfusion.presets import load_preset
from domainfusion.registry import PRESETS


def options_of(name: str) -> TrainConfig:
    options: TrainConfig = base_options(TrainConfig, ["--preset", name])
    return options


def test_every_preset_is_a_file_and_every_file_a_preset() -> None:
    found = {path.name for path in files("domainfusion.presets").iterdir() if path.name.endswith(".toml")}
    assert found == {f"{name}.toml" for name in PRESETS.names()}


@pytest.mark.parametrize("name", PRESETS.names())
def test_a_preset_is_understood_and_says_its_name(name: str) -> None:
    assert options_of(name).preset == name
    table = load_preset(name).get("search")
    assert table is None or read_space(table, name)


def test_domainbeds_two_presets() -> None:
    paper, head = options_of("domainbed-paper"), options_of("domainbed-head")
    for options in (paper, head):
        assert (options.steps, options.batch_size, options.lr, options.lr_schedule) == (5001, 32, 5e-5, "constant")
        assert (options.weight_decay, options.dropout, options.evaluate_every) == (0, 0, 300)
        data = options.data
        assert (data.size, data.protocol, data.holdout_fraction) == (224, "domainbed", 0.2)
        assert (data.crop, data.flip, data.jitter, data.grayscale) == (0.7, True, 0.3, 0.1)
        assert not data.augment_validation
        assert options.pretrained
        assert options.precision == "float32"
    assert (paper.backbone, paper.freeze_bn) == ("resnet50.tv_in1k", True)
    assert (head.backbone, head.freeze_bn) == ("resnet50.ram_in1k", False)


def test_quick_makes_one_candidate_once_for_half_as_many_synthetic_images() -> None:
    options = options_of("quick")
    generate = options.generate
    assert (options.synthetic_share, generate.candidates, generate.generations, generate.steps) == (0.5, 1, 1, 3)
    assert options.algorithm == "domainfusion"
    assert generations_due(options.steps - 1, options.steps, 26, generate) == 1


def test_the_papers_preset() -> None:
    options = options_of("paper")
    assert (options.epochs, options.batch_size, options.weight_decay) == (120, 16, 5e-4)
    assert (options.lr_schedule, options.backbone, options.pretrained) == ("cosine", "resnet50.tv_in1k", True)
    assert (options.raw_weight, options.distill_weight, options.synthetic_weight) == (1, 0.5, 0.5)
    generate = options.generate
    assert (generate.candidates, generate.interval, generate.content_weight) == (3, 5, 0.4)
    assert (generate.image_size, generate.updating, generate.sampling) == (320, True, True)
    assert options.synthetic_share == pytest.approx(1 / 3)
    assert generations_due(120 * 50 - 1, 120 * 50, 50, generate) == 24  # at the beginning of epochs 5, 10, ..., 120
    distill = options.distill
    assert (options.ldm, distill.residual) == ("CompVis/stable-diffusion-v1-4", "plain")
    assert (distill.min_timestep, distill.max_timestep, distill.confidence_floor) == (0, 1, 0)
    table = load_preset("paper")["search"]
    assert table == {"lr": [1e-4, 3e-4, 5e-4, 7e-4, 9e-4, 1e-3], "generate": {"candidates": [1, 3, 5]}}
    assert options.lr in table["lr"]


def test_a_file_goes_before_the_preset(tmp_path: Path) -> None:
    path = tmp_path / "o.toml"
    path.write_text("lr = 0.5\n[data]\nsize = 32\n[search]\nlr = [0.5]\n")
    words = ["--preset=domainbed-paper", "--config", str(path), "--steps", "3"]
    options = base_options(TrainConfig, words)
    assert (options.lr, options.data.size) == (0.5, 32)
    assert (options.steps, options.data.protocol) == (5001, "domainbed")
    assert search_table(words) == ({"lr": [0.5]}, str(path))
    path.write_text('preset = "paper"\nbatch_size = 2\n')
    options = base_options(TrainConfig, ["--config", str(path)])
    assert (options.preset, options.batch_size, options.epochs) == ("paper", 2, 120)
    assert search_table(["--config", str(path)]) == (load_preset("paper")["search"], "preset paper")
    assert search_table(["--preset", "domainbed-head"]) == (None, "")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--preset paper --steps 500", {"steps": 500, "epochs": 0}),
        ("--preset paper --steps 500 --epochs 2", {"epochs": 2}),
        ("--preset paper", {"epochs": 120}),
        ("--config FILE --preset paper", {"steps": 7, "epochs": 0}),
        ("--config BOTH", {"epochs": 3}),
        ("--config BOTH --steps 2", {"steps": 2, "epochs": 0}),
        ("--preset domainbed-paper --evaluations 40", {"evaluations": 40, "evaluate_every": 0}),
        ("--preset domainbed-paper --evaluations 40 --evaluate-every 9", {"evaluate_every": 9}),
    ],
)
def test_what_is_given_is_not_overruled_from_lower_down(tmp_path: Path, words: str, expected: dict[str, int]) -> None:
    """Of steps and epochs the latter counts; a preset's epochs must not hide the steps of the command line."""
    (tmp_path / "a.toml").write_text("steps = 7\n")
    (tmp_path / "b.toml").write_text("steps = 6\nepochs = 3\n")
    words = words.replace("FILE", str(tmp_path / "a.toml")).replace("BOTH", str(tmp_path / "b.toml"))
    given = ["data", *words.split()]
    options = parse(TrainCommand, given, "domainfusion train", base_options(TrainConfig, given)).options
    assert {name: getattr(options, name) for name in expected} == expected


def test_merging_goes_into_tables_and_leaves_its_arguments_alone() -> None:
    below: dict[str, Any] = {"a": 1, "t": {"x": 1, "y": {"z": 2}}}
    assert merge(below, {"t": {"y": {"w": 3}}, "b": 4}) == {"a": 1, "t": {"x": 1, "y": {"z": 2, "w": 3}}, "b": 4}
    assert below == {"a": 1, "t": {"x": 1, "y": {"z": 2}}}


def test_what_is_given_are_options_of_the_command_line_and_the_file(tmp_path: Path) -> None:
    path = tmp_path / "o.toml"
    path.write_text("lr = 0.5\n[data]\nsize = 32\n")
    found = given_options(
        ["x", "--config", str(path), "--weight-decay=0", "--generate.no-updating", "--preset", "paper"]
    )
    assert {"lr", "data.size", "weight_decay", "generate.updating"} <= found
    assert "batch_size" not in found


def test_what_a_file_searches_over_is_not_given_by_it(tmp_path: Path) -> None:
    """Its value there is draw 0's: a copy of the preset `paper` searches as the preset does."""
    path = tmp_path / "o.toml"
    path.write_text(
        "lr = 0.5\nsteps = 3\n[search]\nlr = [0.1, 0.2]\n[search.generate]\ncandidates = [1, 5]\n"
        "[generate]\ncandidates = 3\nsteps = 2\n"
    )
    words = ["x", "--config", str(path)]
    given = given_options(words)
    assert {"steps", "generate.steps"} <= given
    assert not {"lr", "generate.candidates"} & given
    assert "lr" in given_options([*words, "--lr", "0.3"])  # the command line has the last word
    options = dataclasses.replace(base_options(TrainConfig, words), hparams_seed=1)
    assert drawn(options, "PACS", words).lr in (0.1, 0.2)


def test_the_list_and_unknown_names(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.run(["list", "presets"]) == 0
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines()] == ["domainbed-head", "domainbed-paper", "paper", "quick"]
    for command in ("train", "benchmark", "doctor", "generate", "distill"):
        assert cli.run([command, "pictograms", "--preset", "domainbed-papr"]) == 2
        assert "unknown preset 'domainbed-papr'; did you mean 'domainbed-paper'?" in capsys.readouterr().err
    (tmp_path / "o.toml").write_text('preset = "papr"\n')
    with pytest.raises(UsageError, match="did you mean 'paper'"):
        base_options(TrainConfig, ["--config", str(tmp_path / "o.toml")])
    assert cli.run(["demo", "--preset", "paper"]) == 2


def test_a_run_by_preset_and_draw_writes_down_both(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--backbone", "test_resnet", "--no-pretrained", "--steps", "3", "--data.size", "32", "--target", "sketch",
             "--precision", "float32", "--device", "cpu", "--batch-size", "4", "--json"]  # fmt: skip
    first = ["train", str(image_folder), "--preset", "domainbed-paper", "--algorithm", "erm", "--hparams-seed", "1",
             "--trial", "1", *small, "--output", str(tmp_path / "run")]  # fmt: skip
    assert cli.run(first) == 0
    result = json.loads(capsys.readouterr().out)
    path = tmp_path / "run" / "config.toml"
    config: TrainConfig = build_config(TrainConfig, load_toml(path), str(path))
    assert (config.preset, config.hparams_seed, config.steps, config.evaluate_every) == ("domainbed-paper", 1, 3, 300)
    # DomainBed's draw of trial 1 (its own records), but for the batches, which were given.
    assert (config.lr, config.batch_size) == (pytest.approx(2.2352558725944602e-05, rel=1e-14), 4)
    records = [json.loads(line) for line in (tmp_path / "run" / "results.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 3]
    assert {(record["args"]["hparams_seed"], record["args"]["trial_seed"]) for record in records} == {(1, 1)}
    # The run's own file says everything: with it alone nothing is drawn anew, and the run is found finished.
    assert (
        cli.run(["train", str(image_folder), "--config", str(path), "--output", str(tmp_path / "run"), "--json"]) == 0
    )
    assert json.loads(capsys.readouterr().out) == result


@pytest.mark.parametrize("flag", ["--preset", "--config"])
def test_a_run_is_the_same_wherever_its_options_are_from(
    flag: str, make_image_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refusing another preset's name alone would make a finished run unreadable."""
    from domainfusion.experiments import run_folder, runs

    config = TrainConfig(algorithm="erm", target="sketch", preset="paper" if flag == "--preset" else "")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text(runs.to_toml(TrainConfig(algorithm="erm", target="sketch")))
    run_folder.refuse_other_options(tmp_path / "run", "d", config)
