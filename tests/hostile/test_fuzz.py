"""Readers on input that chance made: what comes out is a value or an error of ours, and nothing else."""

from __future__ import annotations

import contextlib
import io
import json
import struct
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fuzz import properties, seeds
from fuzz.properties import Small, sealed, small_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from domainfusion.config import TrainConfig
from domainfusion.config_files import build_config, plain_values, to_toml
from domainfusion.errors import FileError, UsageError
from domainfusion.files import altered_files
from domainfusion.fusion.synthetic import load_generation
from domainfusion.tensors import load_state, save_state
from domainfusion.training.checkpoint import load_checkpoint

NUMBERS = st.integers() | st.floats() | st.sampled_from([2**63, -(2**63), 10**400, 1e308])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=8), lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=8), inner, max_size=3), max_leaves=8,
)  # fmt: skip
FIELDS = st.sampled_from([*plain_values(TrainConfig()), "target"])


@st.composite
def mutated(draw: st.DrawFn, content: bytes) -> bytes:
    """`content` with bits flipped, parts cut out, doubled, or overwritten by chance."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        if not changed:
            break
        at = draw(st.integers(0, len(changed) - 1))
        how = draw(st.sampled_from(["flip", "cut", "end", "write", "double"]))
        length = draw(st.integers(1, 64))
        if how == "flip":
            changed[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "cut":
            del changed[at : at + length]
        elif how == "end":
            del changed[at:]
        elif how == "write":
            changed[at : at + length] = draw(st.binary(min_size=1, max_size=length))
        else:
            changed[at:at] = changed[at : at + length]
    return bytes(changed)


# Options


@given(values=st.dictionaries(FIELDS | st.text(max_size=8), VALUES, max_size=4))
@settings(max_examples=150)
def test_options_of_any_values(values: dict[str, Any]) -> None:
    properties.options_of_values(values)


@given(section=st.sampled_from(["data", "distill", "generate", "zero_shot", "average", "rsc"]), data=st.data())
@settings(max_examples=100)
def test_options_of_a_section(section: str, data: st.DataObject) -> None:
    names = st.sampled_from(list(plain_values(TrainConfig())[section]))
    values = data.draw(st.dictionaries(names, VALUES, max_size=4))
    refused, config = "", None
    try:
        config = build_config(TrainConfig, {section: values}, "x.toml")
    except UsageError as error:
        refused = str(error)
    if config is None:
        assert section in refused
    else:
        assert build_config(TrainConfig, tomllib.loads(to_toml(config)), "x.toml") == config


@given(content=st.binary(max_size=60) | st.text(max_size=60).map(str.encode) | mutated(to_toml(TrainConfig()).encode()))
@settings(max_examples=300)
def test_option_files_of_any_content(tmp_path: Path, content: bytes) -> None:
    properties.options(content, tmp_path)


# Records

LINES = seeds.lines_of(*({**seeds.RECORD, "step": step} for step in (300, 600, 900)))


@st.composite
def record_with(draw: st.DrawFn) -> bytes:
    """A record one of whose values is something else."""
    record = json.loads(json.dumps(seeds.RECORD))
    place = draw(st.sampled_from([record, record["args"]]))
    place[draw(st.sampled_from(sorted(place)))] = draw(VALUES)
    return (json.dumps(record) + "\n").encode() + LINES


@given(content=st.binary(max_size=80) | mutated(LINES) | record_with() | VALUES.map(lambda v: json.dumps(v).encode()))
@settings(max_examples=300)
def test_records_of_any_content(tmp_path: Path, content: bytes) -> None:
    properties.records(content, tmp_path)


@given(content=st.binary(max_size=80) | mutated(b"ab" * 32 + b"  result.json\n"))
def test_lists_of_checksums_of_any_content(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "SHA256SUMS").write_bytes(content)
    assert isinstance(altered_files(tmp_path), list)


# Metadata


@given(data=st.data())
@settings(max_examples=100)
def test_metadata_of_any_content(data: st.DataObject) -> None:
    seed = data.draw(st.sampled_from(seeds.metadata()))
    with tempfile.TemporaryDirectory() as folder:
        properties.metadata(data.draw(mutated(seed) | st.binary(max_size=60)), Path(folder))


# Images


@pytest.mark.parametrize("form", seeds.FORMATS)
@given(data=st.data())
@settings(max_examples=50)
def test_images_of_any_content(tmp_path: Path, form: str, data: st.DataObject) -> None:
    properties.image(data.draw(mutated(seeds.image_of(form))), tmp_path)


@given(content=st.binary(max_size=200))
def test_what_is_no_image_at_all(tmp_path: Path, content: bytes) -> None:
    properties.image(content, tmp_path)


# Checkpoints


@given(data=st.data())
@settings(max_examples=100)
def test_of_checkpoints_the_last_good_one_is_used(tmp_path: Path, data: st.DataObject) -> None:
    """Damage anywhere is detected: never are other values read than were written."""
    folder = tmp_path / "run"
    first, _ = small_checkpoint(folder, 1)
    second, _ = small_checkpoint(folder, 2)
    last = folder / "checkpoints" / "last.safetensors"
    whole = last.read_bytes()
    damaged = data.draw(mutated(whole))
    last.write_bytes(damaged)
    module = Small()
    progress, _ = load_checkpoint(folder, module, torch.optim.Adam(module.parameters()))
    expected = second if progress.step == 2 else first
    assert progress.step == 1 or damaged == whole or same_values(damaged, whole, tmp_path)
    for value, other in zip(module.parameters(), expected.parameters(), strict=True):
        assert torch.equal(value, other)


def same_values(content: bytes, other: bytes, folder: Path) -> bool:
    """Whether two files hold the same state (a flip in the header's padding changes nothing)."""
    (folder / "a").write_bytes(content)
    (folder / "b").write_bytes(other)
    return repr(load_state(folder / "a")) == repr(load_state(folder / "b"))


@given(data=st.data())
@settings(max_examples=100)
def test_weights_and_states_of_any_content(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "x.safetensors"
    save_state(path, {"a": torch.ones(3), "b": [1, "x", {2: torch.zeros(2, dtype=torch.bfloat16)}]})
    properties.state(data.draw(mutated(path.read_bytes()) | st.binary(max_size=200)), tmp_path)


@given(tree=VALUES)
@settings(max_examples=150)
def test_states_that_somebody_else_made(tmp_path: Path, tree: Any) -> None:
    """A checksum that fits, over nonsense."""
    properties.state(sealed(json.dumps(tree), {"w": torch.ones(2)}), tmp_path)


@given(state=st.fixed_dictionaries({}, optional={
    "model": VALUES, "optimizer": VALUES, "progress": VALUES, "extra": VALUES, "records": VALUES,
}))  # fmt: skip
@settings(max_examples=60)
def test_checkpoints_that_hold_something_else(tmp_path: Path, state: dict[str, Any]) -> None:
    module = Small()
    optimizer = torch.optim.Adam(module.parameters())
    whole = {"model": module.state_dict(), "optimizer": optimizer.state_dict(), "progress": {"step": 1}, "extra": {}}
    save_state(tmp_path / "x", whole | state)
    properties.state((tmp_path / "x").read_bytes(), tmp_path)


@given(data=st.data())
@settings(max_examples=60)
def test_generations_of_any_content(tmp_path: Path, data: st.DataObject) -> None:
    folder = tmp_path / "generation-00"
    folder.mkdir(exist_ok=True)
    file = io.BytesIO()
    np.save(file, np.zeros((2, 4, 4, 3), np.uint8))
    parts = {
        "images.npy": file.getvalue(), "generation.json": b'{"number": 0, "rows": [3, 5]}',
        "lineage.csv": b"row,sha256\r\n3,\r\n5,\r\n",
    }  # fmt: skip
    name = data.draw(st.sampled_from(sorted(parts)))
    for each, content in parts.items():
        (folder / each).write_bytes(data.draw(mutated(content)) if each == name else content)
    with contextlib.suppress(FileError):
        load_generation(folder)


def test_a_header_of_any_length_is_refused(tmp_path: Path) -> None:
    for length in (0, 1, 2**31, 2**63 - 1, 2**64 - 1):
        (tmp_path / "x").write_bytes(struct.pack("<Q", length) + b"{}")
        with pytest.raises(FileError):
            load_state(tmp_path / "x")
