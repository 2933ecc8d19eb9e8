"""Nested states (models, optimizers, counters) in one safetensors file: no pickle, atomic, checked on reading."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from domainfusion.errors import FileError, shortened, show_note
from domainfusion.files import atomic_path, keep_also


def _split(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    """`value` as JSON, its tensors moved to `tensors` under their path. Keys of a dict may be strings or integers."""
    if isinstance(value, torch.Tensor):
        while path in tensors:  # {"a/b": ...} beside {"a": {"b": ...}}, or the keys 0 and "0"
            path += "'"
        tensors[path] = value.detach().contiguous().cpu()
        return {"tensor": path}
    if isinstance(value, dict):
        return {"dict": [[key, _split(item, f"{path}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return {"list": [_split(item, f"{path}/{index}", tensors) for index, item in enumerate(value)]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    raise TypeError(f"a state holds tensors, dicts, lists and plain values, not {type(value).__name__} (at {path})")


def _join(node: Any, tensors: dict[str, torch.Tensor]) -> Any:
    kind, value = next(iter(node.items()))
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {key: _join(item, tensors) for key, item in value}
    if kind == "list":
        return [_join(item, tensors) for item in value]
    return value


def checksum(tensors: dict[str, torch.Tensor], tree: str = "", *, described: bool = True) -> str:
    """SHA-256, in hex, over named tensors and a text.

    Args:
        described: with the tensors' types and shapes (files of older versions are without).
    """
    digest = hashlib.sha256(tree.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode() if described else name.encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file. Raises `OSError`, as other writing does, where the disk is full or refuses it."""
    with disk_errors(path):
        save_file(tensors, str(path), metadata=metadata)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """A block that writes safetensors files to `path`: what the system refuses is an `OSError`, not one of theirs."""
    try:
        yield
    except SafetensorError as error:
        code = re.search(r"\(os error (\d+)\)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error


def save_state(path: Path, state: Any, *, previous: Path | None = None) -> None:
    """Write a nested state to `path` (safetensors) with a SHA-256 over all of it, atomically.

    Args:
        previous: where the file that `path` was is kept; only when the new one is complete does it move there.
    """
    tensors: dict[str, torch.Tensor] = {}
    tree = json.dumps(_split(state, "", tensors))
    # Tensors that share memory (tied weights) are stored once each: safetensors refuses aliases.
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        write_tensors(temporary, tensors, {"tree": tree, "checksum": checksum(tensors, tree)})
        if previous is not None and path.exists():
            keep_also(path, previous)


def load_state(path: Path) -> Any:
    """The nested state saved by `save_state`. Raises `FileError` where the file is truncated or altered."""
    metadata, tensors = read_tensors(path)
    if "tree" not in metadata or not {"checksum", "sha256"} & set(metadata):
        raise FileError(f"{path} is no state of ours (it has no checksum)")
    try:
        return _join(json.loads(metadata["tree"]), tensors)
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration, RecursionError) as error:
        raise FileError(f"{path} is no state of ours ({type(error).__name__}: {shortened(error)})") from error


def read_tensors(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Metadata and tensors of a safetensors file, compared with the checksum in it where it has one.

    Raises `FileError` where it is truncated, altered, or no safetensors file.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
    except Exception as error:  # a header that is none makes the reader raise whatever it makes of it
        raise FileError(f"{path} is truncated or not a safetensors file: {shortened(error)}") from error
    tree = metadata.get("tree", "")
    found = {
        "checksum": lambda: checksum(tensors, tree), "sha256": lambda: checksum(tensors, tree, described=False)
    }  # fmt: skip
    for name, compute in found.items():
        if name in metadata and compute() != metadata[name]:
            raise FileError(f"{path} was altered or damaged: its checksum does not fit")
    return metadata, tensors


def load_newest(paths: Sequence[Path], *, required: bool = True) -> Any:
    """The state in the first of `paths` that is there and whole; None where none is there.

    A damaged file is set aside, and said so: the next state does not push it over the good one. Raises `FileError`
    where files are there and none can be read, if one is `required`: what it held cannot be computed anew.
    """
    failures = []
    for path in paths:
        if not path.exists():
            continue
        try:
            return load_state(path)
        except FileError as error:
            failures.append(str(error))
            path.replace(path.with_name(f"{path.name}.damaged"))
            instead = "the one before it is used" if required else "it is computed again"
            show_note(f"{error}; it was set aside, and {instead}")
    if failures and required:
        raise FileError("; ".join(failures))
    return None


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load an optimizer's stored `state`, every tensor of it in the memory layout of its parameter.

    A fused kernel walks parameter, gradient and state in the order of memory, whatever their strides say: stored row by
    row, the state of a channels-last parameter would be taken in the wrong order, and nothing would say so.
    """
    optimizer.load_state_dict(state)
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                values[name] = torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)


def refuse_other_architecture(
    wanted: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor], origin: str
) -> None:
    """Raise `FileError` where `given`, read from `origin`, has not the names and shapes of `wanted`."""
    missing, unknown = sorted(set(wanted) - set(given)), sorted(set(given) - set(wanted))
    for names, problem in ((missing, "lacks"), (unknown, "holds an unknown")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise FileError(f"{origin} is of another architecture: it {problem} {names[0]}{more}")
    for name, tensor in given.items():
        if tensor.shape != wanted[name].shape:
            raise FileError(
                f"{origin} is of another architecture: {name} has the shape {list(tensor.shape)}, "
                f"not {list(wanted[name].shape)}"
            )
