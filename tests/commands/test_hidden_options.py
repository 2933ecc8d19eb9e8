"""Options that a command's help leaves out change nothing of what the command does."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest

from domainfusion.commands import ldm, models
from domainfusion.commands.fields import fields_of
from domainfusion.config import DataConfig, DistillConfig, GenerateConfig, TrainConfig
from domainfusion.config_files import build_config, flat_values, plain_values
from domainfusion.errors import UsageError
from domainfusion.experiments.hyperparameters import nested


def changed(config: TrainConfig, flags: set[str]) -> TrainConfig:
    """`config` with another value of each of these options that can have one beside the others."""
    values = flat_values(plain_values(config))
    others = {"algorithm": "erm", "backbone": "resnet18"}
    count = 0
    for field in fields_of(TrainConfig):
        if not (flags & {field.flag, f"--{field.group}"}) or field.option not in values:
            continue
        value, choices = values[field.option], typing.get_args(field.hint)
        if field.option in others:
            new: Any = others[field.option]
        elif isinstance(value, bool):
            new = not value
        elif typing.get_origin(field.hint) is Literal:
            new = next(choice for choice in reversed(choices) if choice != value)
        elif isinstance(value, (int, float)):
            new = value + 1 if isinstance(value, int) else value / 2 or 0.25
        else:
            new = f"{value}x" if isinstance(value, str) else value
        try:
            build_config(TrainConfig, nested({**values, field.option: new}), "")
        except UsageError:  # a rule about several options
            continue
        count += new != value
        values[field.option] = new
    assert count >= len(flags) // 2
    config: TrainConfig = build_config(TrainConfig, nested(values), "")
    return config


@pytest.fixture
def config(tiny_pipeline: Path) -> TrainConfig:
    return TrainConfig(
        ldm=str(tiny_pipeline), precision="float32", device="cpu", target="sketch", data=DataConfig(size=16),
        generate=GenerateConfig(candidates=2, steps=1), distill=DistillConfig(curve_samples=2), backbone="resnet10t",
    )  # fmt: skip


def test_options_that_generate_does_not_show_change_nothing(
    config: TrainConfig, make_image_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from domainfusion.experiments.generating import generate_candidates

    images = str(make_image_folder("few", count=1))
    pictures = []
    for number, options in enumerate((config, changed(config, set(ldm.GenerateCommand.hidden)))):
        monkeypatch.setenv("DOMAINFUSION_CACHE", str(tmp_path / f"cache{number}"))  # nothing of the first is read
        generate_candidates(images, options, output=tmp_path / f"out{number}")
        found = sorted((tmp_path / f"out{number}").rglob("*.png"))
        pictures.append([(path.name, path.read_bytes()) for path in found])
    assert len(pictures[0]) == 2 * 6  # the target's images are left out
    assert pictures[0] == pictures[1]


def test_options_that_distill_does_not_show_change_nothing(
    config: TrainConfig, make_image_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from domainfusion.experiments.tabulating import tabulate_curves

    images = str(make_image_folder("few", count=1))
    found = []
    for number, options in enumerate((config, changed(config, set(ldm.DistillCommand.hidden)))):
        monkeypatch.setenv("DOMAINFUSION_CACHE", str(tmp_path / f"cache{number}"))
        one = tabulate_curves(images, options)
        found.append({name: value for name, value in one.items() if name not in ("seconds", "folder")})
    assert found[0]["computed"] == 9
    assert found[0] == found[1]


def test_options_that_doctor_does_not_show_change_no_count(
    config: TrainConfig, make_image_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from domainfusion.experiments import planning

    monkeypatch.setattr(planning, "BUDGET", 0.0)
    images = str(make_image_folder("few", count=4))
    config = dataclasses.replace(config, steps=4, evaluations=2, batch_size=2)
    plans = [
        planning.plan_run(images, options) for options in (config, changed(config, set(models.DoctorCommand.hidden)))
    ]
    assert plans[0]["counts"]["generated_images"] > 0
    for part in ("counts", "bytes", "notes", "sources", "algorithm"):
        assert plans[0][part] == plans[1][part]
