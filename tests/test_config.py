from __future__ import annotations

import dataclasses
import math
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domainfusion.commands.parsing import base_options, parse
from domainfusion.config import DataConfig, DistillConfig, GenerateConfig, PretrainConfig, TrainConfig
from domainfusion.config_files import build_config, flat_values, load_toml, plain_values, to_toml
from domainfusion.errors import FileError, UsageError

shares = st.floats(0, 1)
weights = st.floats(0, 1e300)
positive = st.floats(5e-324, 1e300)
counts = st.integers(1, 10**9)
texts = st.text() | st.sampled_from(
    ['say "hi"', "a\\b", "one\ntwo\r\n\ttab", "\x00\x1f\x7f\x85\u2028", "Bär 🐻", "'''", '"""']
)

data_values = st.fixed_dictionaries(
    {},
    optional={
        "size": st.integers(8, 2048), "protocol": st.sampled_from(["auto", "strict", "domainbed"]),
        "holdout_fraction": st.floats(0, 1, exclude_min=True, exclude_max=True),
        "crop": st.floats(0, 1, exclude_min=True), "flip": st.booleans(), "jitter": shares,
        "bad_images": st.sampled_from(["error", "skip"]),
    },
)  # fmt: skip
generate_values = st.fixed_dictionaries(
    {},
    optional={
        "strength": st.tuples(*[st.floats(0, 1, exclude_min=True)] * 2).map(lambda pair: tuple(sorted(pair))),
        "template": texts.map(lambda text: text.replace("{", "").replace("}", "") + "{label}"),
        "candidates": counts, "guidance": weights, "updating": st.booleans(),
    },
)  # fmt: skip
train_values = st.fixed_dictionaries(
    {},
    optional={
        "target": st.none() | texts, "algorithm": texts, "steps": counts, "lr": positive, "weight_decay": weights,
        "seed": st.integers(0, 2**63 - 1), "trial": st.integers(0, 10**9), "pretrained": st.booleans(),
        "data": data_values.map(lambda values: DataConfig(**values)),
        "generate": generate_values.map(lambda values: GenerateConfig(**values)),
    },
)  # fmt: skip


@given(train_values)
def test_toml_holds_every_option_exactly(tmp_path: Path, values: dict[str, Any]) -> None:
    config = TrainConfig(**values)
    path = tmp_path / "config.toml"
    path.write_bytes(to_toml(config).encode())
    assert build_config(TrainConfig, load_toml(path), "config.toml") == config


@pytest.mark.parametrize(
    "text",
    [
        "",
        'say "hi"',
        "a\\b",
        "ends in \\",
        "\\n",
        "one\ntwo\r\n\ttab",
        "\x00\x1f\x7f\x85\u2028",
        "Bär 🐻",
        "'''",
        '"""',
        "# no comment",
    ],
)
def test_toml_holds_any_text(text: str) -> None:
    config = TrainConfig(target=text, generate=GenerateConfig(template=text))
    assert build_config(TrainConfig, tomllib.loads(to_toml(config)), "x") == config


def test_toml_names_every_option_but_the_unset() -> None:
    values = tomllib.loads(to_toml(TrainConfig()))
    assert set(values) == {field.name for field in dataclasses.fields(TrainConfig)} - {"target", "second_target"}
    assert set(values["distill"]) == {field.name for field in dataclasses.fields(DistillConfig)}
    assert values["steps"] == TrainConfig().steps
    assert isinstance(values["steps"], int)
    assert isinstance(values["lr"], float)


def test_tuples_of_pretraining_come_back() -> None:
    config = PretrainConfig(vae_channels=(8, 16), unet_channels=(32,), kl_weight=1e-30)
    assert build_config(PretrainConfig, tomllib.loads(to_toml(config)), "x") == config


def test_plain_values_hold_no_tuple_and_no_none() -> None:
    values = plain_values(TrainConfig(target=None))
    assert "target" not in values
    assert values["generate"]["strength"] == list(GenerateConfig().strength)
    assert isinstance(values["data"], dict)


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
    import inspect

    from domainfusion import config

    for kind in ast.parse(inspect.getsource(config)).body:
        if isinstance(kind, ast.ClassDef):
            for node, following in zip(kind.body, [*kind.body[1:], None], strict=True):
                if isinstance(node, ast.AnnAssign) and not ast.unparse(node.annotation).endswith("Config"):
                    explained = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
                    assert explained, f"{kind.name}.{ast.unparse(node.target)} has no text for --help"


def test_a_missing_or_broken_toml_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"absent\.toml cannot be read: No such file"):
        load_toml(tmp_path / "absent.toml")
    (tmp_path / "broken.toml").write_text("steps = 3\nlr = \n")
    with pytest.raises(UsageError, match=r"broken\.toml is not valid TOML: .*line 2"):
        load_toml(tmp_path / "broken.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=r"binary\.toml is not valid TOML"):
        load_toml(tmp_path / "binary.toml")


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


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(b"\xef\xbb\xbfsteps = 7\r\n")
    assert load_toml(path) == {"steps": 7}
