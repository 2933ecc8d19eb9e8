"""Options in TOML files: every one comes back as it was, and what is no such file is named."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domainfusion.config import DataConfig, DistillConfig, GenerateConfig, PretrainConfig, TrainConfig
from domainfusion.config_files import build_config, load_toml, plain_values, to_toml
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


def test_a_missing_or_broken_toml_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"absent\.toml cannot be read: No such file"):
        load_toml(tmp_path / "absent.toml")
    (tmp_path / "broken.toml").write_text("steps = 3\nlr = \n")
    with pytest.raises(UsageError, match=r"broken\.toml is not valid TOML: .*line 2"):
        load_toml(tmp_path / "broken.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=r"binary\.toml is not valid TOML"):
        load_toml(tmp_path / "binary.toml")


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(b"\xef\xbb\xbfsteps = 7\r\n")
    assert load_toml(path) == {"steps": 7}
