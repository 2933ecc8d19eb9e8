"""Runs of one algorithm with several settings, as `collect` tells them apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from domainfusion.cli import run
from domainfusion.config import TrainConfig
from domainfusion.config_files import to_toml
from domainfusion.experiments.arms import arm_config
from domainfusion.experiments.paper_tables import TABLES
from domainfusion.results.collect import collect

NAMES = ["art", "photo", "sketch"]


def write_run(
    folder: Path, accuracy: float, validation: float = 0.5, *, config: TrainConfig, target: int = 0,
    protocol: str = "strict", name: str = "ERM", held_out: float | None = 0.5, data: str = "/images",
) -> None:  # fmt: skip
    """A finished run's records and options."""
    folder.mkdir(parents=True)
    args = {
        "algorithm": name, "dataset": "things", "hparams_seed": config.hparams_seed, "test_envs": [target],
        "trial_seed": config.trial, "env_names": NAMES, "steps": 1,
    }  # fmt: skip
    shares = {f"env{i}_{part}_acc": validation for i in range(3) for part in ("in", "out")}
    record = {"args": args, "step": 1, **shares, f"env{target}_in_acc": accuracy, f"env{target}_out_acc": held_out}
    (folder / "results.jsonl").write_text(json.dumps(record) + "\n")
    (folder / "config.toml").write_text(to_toml(config))
    (folder / "data.json").write_text(json.dumps({"data": data, "protocol": protocol}))
    (folder / "result.json").write_text("{}")


def found(root: Path) -> tuple[dict[str, dict[str, list[float]]], list[str]]:
    tables, notes = collect([root], ["training-domain"])
    return tables[0].accuracy, notes


def test_runs_with_several_settings_are_rows_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for trial in (0, 1):
        plain = TrainConfig(algorithm="erm", trial=trial)
        write_run(tmp_path / f"a{trial}", 0.4, 0.5, config=plain)
        write_run(tmp_path / f"b{trial}", 0.2, 0.9, config=TrainConfig(algorithm="erm", trial=trial, lr=0.01))
    write_run(tmp_path / "c0", 0.3, 0.9, config=TrainConfig(algorithm="erm", backbone="resnet18"))
    accuracy, notes = found(tmp_path)
    assert {name: cells["art"] for name, cells in accuracy.items()} == {
        "ERM": [0.4, 0.4], "ERM (lr = 0.01)": [0.2, 0.2], "ERM (backbone = resnet18)": [0.3],
    }  # fmt: skip
    (note,) = notes
    assert note.startswith("things, ERM: there are runs with several settings")
    assert note.endswith("without a remark they have backbone = resnet10t, lr = 0.001")
    assert run(["collect", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert "ERM (lr = 0.01)" in printed.out
    assert "several settings" in printed.err


def test_draws_and_machines_are_no_settings(tmp_path: Path) -> None:
    """A search's runs are told apart by their draw; where a run computed says nothing."""
    for draw, lr in enumerate((1e-3, 1e-2, 1e-4)):
        config = TrainConfig(algorithm="erm", hparams_seed=draw, lr=lr, device="cpu" if draw else "auto")
        write_run(tmp_path / f"d{draw}", 0.1 * draw, 0.5 + 0.1 * draw, config=config)
    write_run(tmp_path / "again", 0.9, 0.1, config=TrainConfig(algorithm="erm", device="cuda", preset="quick"))
    accuracy, notes = found(tmp_path)
    assert accuracy == {"ERM": {"art": [pytest.approx(0.2)], "photo": [], "sketch": []}}
    assert notes == []


def test_seeds_alone_are_said_to_count_as_one(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path / f"s{seed}", 0.1 + seed / 2, 0.5 + seed / 4, config=TrainConfig(algorithm="erm", seed=seed))
    accuracy, notes = found(tmp_path)
    assert accuracy["ERM"]["art"] == [0.6]
    assert "differ in their seed alone" in notes[0]
    # Beside a setting, seeds say nothing: those of a benchmark go by the trial.
    write_run(tmp_path / "other", 0.2, 0.9, config=TrainConfig(algorithm="erm", lr=0.1, seed=7))
    assert sorted(found(tmp_path)[0]) == ["ERM", "ERM (lr = 0.1)"]


@pytest.mark.parametrize("other", [{"protocol": "domainbed"}, {"data": "/more/images"}])
def test_protocols_and_data_are_settings_too(tmp_path: Path, other: dict[str, Any]) -> None:
    write_run(tmp_path / "a", 0.4, 0.5, config=TrainConfig(algorithm="erm"))
    write_run(tmp_path / "b", 0.2, 0.9, config=TrainConfig(algorithm="erm"), **other)
    ((key, value),) = other.items()
    name = {"protocol": "data.protocol"}.get(key, key)
    assert {row: cells["art"] for row, cells in found(tmp_path)[0].items()} == {
        "ERM": [0.4], f"ERM ({name} = {value})": [0.2],
    }  # fmt: skip


def test_the_rows_of_a_reproduction_stay_apart(tmp_path: Path) -> None:
    arms = {arm.key: arm for arm in (*TABLES["table2"].arms, *TABLES["table3"].arms)}
    for number, (key, arm) in enumerate(arms.items()):
        write_run(
            tmp_path / key, number / 100, 0.5 + number / 100, config=arm_config(TrainConfig(), arm), name="DomainFusion"
        )
    accuracy, _ = found(tmp_path)
    assert sorted(cells["art"][0] for cells in accuracy.values()) == [n / 100 for n in range(len(arms))]
    assert accuracy["DomainFusion"]["art"] == [0.0]  # the defaults
    assert accuracy["DomainFusion (generate.candidates = 1)"]["art"] == [list(arms).index("one-candidate") / 100]


def test_a_target_without_held_out_images_is_no_missing_run(tmp_path: Path) -> None:
    write_run(tmp_path / "a", 0.4, config=TrainConfig(algorithm="erm"), held_out=None)
    tables, _ = collect([tmp_path], ["oracle"])
    assert tables[0].missing[0] == "ERM, target art: too few images to choose by for trial 0"
    assert tables[0].missing[1] == "ERM, target photo: no run for trial 0"
