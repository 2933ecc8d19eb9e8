from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import save_file

from domainfusion.errors import FileError
from domainfusion.tensors import disk_errors, load_state, restore_optimizer, save_state
from domainfusion.training.checkpoint import save_weights

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool)


def equal(first: Any, second: Any) -> bool:
    """Bitwise equality of two states; tuples count as lists."""
    if isinstance(first, torch.Tensor):
        same = isinstance(second, torch.Tensor) and (first.dtype, first.shape) == (second.dtype, second.shape)
        return same and bool((first == second).all())
    if isinstance(first, dict):
        return (
            isinstance(second, dict) and list(first) == list(second) and all(equal(first[k], second[k]) for k in first)
        )
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(equal(a, b) for a, b in zip(first, second, strict=True))
    return type(first) is type(second) and first == second


tensors = st.builds(
    lambda shape, dtype, start: (
        (torch.arange(start, start + int(torch.tensor(shape).prod())) % 200).reshape(shape).to(dtype)
    ),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from(DTYPES),
    st.integers(0, 100),
)
plain = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text()
states = st.recursive(
    tensors | plain,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.integers(0, 5) | st.sampled_from(["a", "0", "a/b", "b", ""]), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(states)
def test_nested_states_come_back_as_they_were(tmp_path: Path, state: Any) -> None:
    save_state(tmp_path / "state.safetensors", state)
    assert equal(load_state(tmp_path / "state.safetensors"), state)


def test_views_and_tied_weights_come_back(tmp_path: Path) -> None:
    tied = torch.arange(12.0).reshape(3, 4)
    state = {"a": tied, "b": tied, "column": tied[:, 1], "transposed": tied.T, "last": tied.contiguous()[2]}
    save_state(tmp_path / "state.safetensors", state)
    assert equal(load_state(tmp_path / "state.safetensors"), state)


def test_tensors_of_alike_looking_places_are_kept_apart(tmp_path: Path) -> None:
    first, second, third, fourth = torch.arange(4.0)
    state = {"a/b": first, "a": {"b": second}, 0: third, "0": fourth}
    save_state(tmp_path / "state.safetensors", state)
    assert equal(load_state(tmp_path / "state.safetensors"), state)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
def test_an_optimizer_goes_on_as_if_it_had_not_been_stored(tmp_path: Path, layout: torch.memory_format) -> None:
    def build() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(16, 2))
        model = model.to(memory_format=layout)
        return model, torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=0.1, fused=True)

    def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
        images = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        model(images).square().sum().backward()
        optimizer.step()

    model, optimizer = build()
    for seed in range(3):
        step(model, optimizer, seed)
    save_state(tmp_path / "state.safetensors", {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    other, other_optimizer = build()
    state = load_state(tmp_path / "state.safetensors")
    other.load_state_dict(state["model"])
    restore_optimizer(other_optimizer, state["optimizer"])
    step(model, optimizer, 3)
    step(other, other_optimizer, 3)
    assert equal(dict(other.state_dict()), dict(model.state_dict()))
    assert equal(other_optimizer.state_dict()["state"], optimizer.state_dict()["state"])


def test_what_cannot_be_stored_is_named_by_its_place(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"not set \(at /a/0\)"):
        save_state(tmp_path / "state.safetensors", {"a": [{1, 2}]})


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    path = tmp_path / "state.safetensors"
    save_state(path, {"w": torch.arange(4.0), "n": torch.tensor(7), "step": 3, "name": "x"})
    return path


def test_a_file_cut_short_anywhere_is_refused(stored: Path) -> None:
    whole = stored.read_bytes()
    for length in range(len(whole)):
        stored.write_bytes(whole[:length])
        with pytest.raises(FileError, match=r"state\.safetensors"):
            load_state(stored)


def test_any_flipped_bit_is_noticed(stored: Path) -> None:
    whole = stored.read_bytes()
    unnoticed = []
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        stored.write_bytes(damaged)
        try:
            load_state(stored)
        except FileError:
            continue
        unnoticed.append(bit)
    assert unnoticed == []


@pytest.mark.parametrize("change", [("I64", "F64"), ('"shape":[4]', '"shape":[2,2]')], ids=["type", "shape"])
def test_the_same_bytes_as_another_type_or_shape_are_noticed(tmp_path: Path, change: tuple[str, str]) -> None:
    path = tmp_path / "state.safetensors"
    save_state(path, torch.arange(4))
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = whole[8 : 8 + length].replace(*(part.encode() for part in change)).strip()
    path.write_bytes(len(header).to_bytes(8, "little") + header + whole[8 + length :])
    with pytest.raises(FileError, match="its checksum does not fit"):
        load_state(path)


def test_a_safetensors_file_of_another_program_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(2)}, str(tmp_path / "other.safetensors"))
    with pytest.raises(FileError, match="it has no checksum"):
        load_state(tmp_path / "other.safetensors")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"absent\.safetensors"):
        load_state(tmp_path / "absent.safetensors")


@pytest.mark.parametrize("write", ["state", "weights", "library"])
def test_a_disk_that_takes_no_more_is_named_as_with_any_other_file(tmp_path: Path, write: str) -> None:
    """The library of safetensors has an error of its own for it. A limit on files is as good as a full disk."""
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        value = torch.zeros(1000)
        try:
            if write == "state":
                save_state(tmp_path / "file", {"weight": value})
            elif write == "weights":
                save_weights(tmp_path / "file", {"weight": value})
            else:
                with disk_errors(tmp_path / "file"):
                    save_file({"weight": value}, str(tmp_path / "file"))
        except (FileError, OSError) as error:
            os.write(tell, str(error).encode())
        finally:
            os._exit(0)
    os.close(tell)
    os.waitpid(child, 0)
    text = os.read(told, 1000).decode()
    assert "File too large" in text
    assert str(tmp_path / "file") in text
    assert not (tmp_path / "file").exists()


def test_what_is_no_fault_of_the_disk_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(SafetensorError, match="no such tensor"), disk_errors(tmp_path):
        raise SafetensorError("no such tensor")
