"""Options: which names and values are taken, and how others are refused."""

from __future__ import annotations

import dataclasses
import math
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from domainfusion.commands.layers import base_options
from domainfusion.commands.parsing import parse
from domainfusion.config import PretrainConfig, TrainConfig
from domainfusion.config_files import build_config, flat_values, plain_values
from domainfusion.errors import UsageError


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stesp": 3}, "x.toml: unknown option 'stesp'; did you mean 'steps'?"),
        ({"distill": {"sampels": 3}}, "x.toml: unknown option 'distill.sampels'; did you mean 'distill.samples'?"),
        ({"data": {"jiter": 0.1}}, "x.toml: unknown option 'data.jiter'; did you mean 'data.jitter'?"),
        ({"qqqqqqqq": 3}, "x.toml: unknown option 'qqqqqqqq'"),
        (
            {"data.size": 32},
            "x.toml: unknown option 'data.size' in quotes; write size in the table [data] or data.size without quotes",
        ),
        (
            {"data": {"data.size": 32}},
            "x.toml: unknown option 'data.data.size' in quotes; write size in the table [data]",
        ),
        (
            {"data.siez": 32},
            "x.toml: unknown option 'data.siez' in quotes; write size in the table [data] or data.size without quotes",
        ),
    ],
)
def test_an_unknown_option_is_refused_with_the_nearest(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        build_config(TrainConfig, values, "x.toml")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("values", "field", "value"),
    [
        ({"steps": 0}, "steps", "0"),
        ({"steps": 1.5}, "steps", "1.5"),
        ({"lr": 0}, "lr", "0"),
        ({"lr": -1e-3}, "lr", "-0.001"),
        ({"lr": math.inf}, "lr", "inf"),
        ({"lr": math.nan}, "lr", "nan"),
        ({"raw_weight": math.inf}, "raw_weight", "inf"),
        ({"weight_decay": -1}, "weight_decay", "-1"),
        ({"dropout": 1.0}, "dropout", "1.0"),
        ({"seed": -1}, "seed", "-1"),
        ({"seed": 2**64}, "seed", str(2**64)),
        ({"synthetic_share": 0}, "synthetic_share", "0"),
        ({"precision": "fp8"}, "precision", "'fp8'"),
        ({"data": {"size": 7}}, "data.size", "7"),
        ({"data": {"size": 4096}}, "data.size", "4096"),
        ({"data": {"holdout_fraction": 1.0}}, "data.holdout_fraction", "1.0"),
        ({"data": {"crop": 0.0}}, "data.crop", "0.0"),
        ({"generate": {"strength": [0.5, 1.5]}}, "generate.strength.1", "1.5"),
        ({"generate": {"candidates": 0}}, "generate.candidates", "0"),
        ({"distill": {"corruption": "fog"}}, "distill.corruption", "'fog'"),
        ({"distill": {"min_timestep": -0.1}}, "distill.min_timestep", "-0.1"),
    ],
)
def test_a_value_out_of_range_is_refused_naming_field_and_value(values: dict[str, Any], field: str, value: str) -> None:
    with pytest.raises(UsageError) as caught:
        build_config(TrainConfig, values, "x.toml")
    assert str(caught.value).startswith(f"x.toml: {field} = {value}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('steps = "400"', "steps = '400': give a whole number, not a string"),
        ('steps = "many"', "steps = 'many': give a whole number, not a string"),
        ("steps = true", "steps = true: give a whole number, not true or false"),
        ('lr = "5e-5"', "lr = '5e-5': give a number, not a string"),
        ("lr = true", "lr = true: give a number, not true or false"),
        ('pretrained = "yes"', "pretrained = 'yes': give true or false, not a string"),
        ("pretrained = 1", "pretrained = 1: give true or false, not a number"),
        ('[data]\nsize = "64"', "data.size = '64': give a whole number, not a string"),
        ('[generate]\nstrength = [0.5, "0.9"]', "generate.strength.1 = '0.9': give a number, not a string"),
        ('[generate]\nupdating = "false"', "generate.updating = 'false': give true or false, not a string"),
        ("target = 3", "target = 3: give a string"),
        ('[generate]\nstrength = "0.5"', "generate.strength = '0.5': give a list"),
        ("[generate]\nstrength = [0.5]", "generate.strength = [0.5]: give 2 values, not 1"),
        ("[generate]\nstrength = []", "generate.strength = []: give 2 values, not 0"),
        ("[generate]\nstrength = [0.5, 0.6, 0.7]", "generate.strength = [0.5, 0.6, 0.7]: give 2 values, not 3"),
        ("data = 5", "data = 5: give a table of options, [data]"),
    ],
)
def test_a_value_of_another_type_is_refused_naming_the_wanted_one(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        build_config(TrainConfig, tomllib.loads(text), "x.toml")
    assert str(caught.value) == f"x.toml: {message}"


def test_whole_numbers_may_be_written_as_others() -> None:
    """TOML has 1 and 1.0, and no other way to write 1e4."""
    config = build_config(TrainConfig, tomllib.loads("steps = 1e4\nlr = 1\n[generate]\nstrength = [1, 1]"), "x.toml")
    assert (config.steps, config.lr, config.generate.strength) == (10000, 1.0, (1.0, 1.0))


def test_every_number_and_truth_refuses_a_string() -> None:
    """Whatever option it is: what TOML text of the defaults holds as no string, no string is taken for."""
    for kind in (TrainConfig, PretrainConfig):
        for name, value in flat_values(plain_values(kind())).items():
            sample = value[0] if isinstance(value, list) and value else value
            if isinstance(sample, (str, list)):
                continue
            *groups, leaf = name.split(".")
            text = str(sample).lower()
            values: dict[str, Any] = {leaf: [text] * len(value) if isinstance(value, list) else text}
            for group in reversed(groups):
                values = {group: values}
            with pytest.raises(
                UsageError, match=rf"^x.toml: {re.escape(name)}[^ ]* = '{re.escape(text)}': give .* not a"
            ):
                build_config(kind, values, "x.toml")


def test_the_file_is_named_and_the_command_line_gives_words(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('steps = "400"\n')
    with pytest.raises(UsageError, match=rf"^{re.escape(str(path))}: steps = '400': give a whole number"):
        base_options(TrainConfig, ["--config", str(path)])
    assert parse(TrainConfig, ["--steps", "400", "--lr", "1"], "train").steps == 400


@pytest.mark.parametrize("field", ["vae_channels", "unet_channels"])
def test_widths_must_fit_the_normalization(field: str) -> None:
    with pytest.raises(UsageError, match=rf"{field}\.1 = 33: .*multiple of"):
        build_config(PretrainConfig, {field: [32, 33]}, "x.toml")


def test_configs_cannot_be_altered() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig().steps = 3


def test_every_option_is_explained() -> None:
    import ast

    from domainfusion import config

    options = 0
    for path in Path(config.__file__).parent.glob("*.py"):
        for kind in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(kind, ast.ClassDef):
                continue
            for node, following in zip(kind.body, [*kind.body[1:], None], strict=True):
                if isinstance(node, ast.AnnAssign) and not ast.unparse(node.annotation).endswith("Config"):
                    explained = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
                    assert explained, f"{kind.name}.{ast.unparse(node.target)} has no text for --help"
                    options += 1
    assert options > 150


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"generate": {"strength": [0.8, 0.5]}}, "low to high, not from 0.8 to 0.5"),
        ({"distill": {"min_timestep": 0.9, "max_timestep": 0.1}}, "min_timestep 0.9 is above max_timestep 0.1"),
        ({"generate": {"template": "a {labell}"}}, "may hold {label} and {style} only"),
        ({"generate": {"plain_template": "a {0}"}}, "may hold {label} and {style} only"),
    ],
)
def test_reversed_ranges_and_unknown_braces_are_refused(values, message):
    with pytest.raises(UsageError) as caught:
        build_config(TrainConfig, values, "x.toml")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"average": {"method": "swa"}}, "x.toml: average.method = 'swa': "),
        ({"average": {"decay": 1.0}}, "x.toml: average.decay = 1.0: "),
        ({"average": {"tolerance_rate": 0.9}}, "x.toml: average.tolerance_rate = 0.9: "),
        ({"average": {"overfit_patience": 2}}, "overfit_patience 2 is below optimum_patience 3"),
        ({"average": {"overfit_patiense": 2}}, "did you mean 'average.overfit_patience'?"),
        ({"mixup": {"alpha": 0.0}}, "x.toml: mixup.alpha = 0.0: "),
        ({"mixstyle": {"probability": 1.5}}, "x.toml: mixstyle.probability = 1.5: "),
        ({"mixstyle": {"stages": 0}}, "x.toml: mixstyle.stages = 0: "),
        ({"coral": {"weight": -1.0}}, "x.toml: coral.weight = -1.0: "),
        ({"groupdro": {"eta": -0.1}}, "x.toml: groupdro.eta = -0.1: "),
        ({"rsc": {"feature_drop": 1.0}}, "x.toml: rsc.feature_drop = 1.0: "),
        ({"rsc": {"batch_drop": 0.0}}, "x.toml: rsc.batch_drop = 0.0: "),
    ],
)
def test_options_out_of_range_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        build_config(TrainConfig, values, "x.toml")
    assert message in str(caught.value)


def test_sizes_that_an_autoencoder_cannot_halve_are_refused() -> None:
    with pytest.raises(UsageError, match="size 100 is no multiple of 8, which 4 levels need"):
        build_config(PretrainConfig, {"size": 100}, "x.toml")
    assert build_config(PretrainConfig, {"size": 100, "vae_channels": [16, 32, 64]}, "x.toml").size == 100
    assert build_config(PretrainConfig, {"size": 100, "init": "embedded"}, "x.toml").size == 100  # its levels count
