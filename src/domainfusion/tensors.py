"""Nested states (models, optimizers, counters) in one safetensors file: no pickle, atomic, checked on reading."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from domainfusion.errors import FileError
from domainfusion.files import atomic_path


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


def _checksum(tensors: dict[str, torch.Tensor], tree: str) -> str:
    digest = hashlib.sha256(tree.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_state(path: Path, state: Any) -> None:
    """Write a nested state to `path` (safetensors) with a SHA-256 over all of it, atomically."""
    tensors: dict[str, torch.Tensor] = {}
    tree = json.dumps(_split(state, "", tensors))
    # Tensors that share memory (tied weights) are stored once each: safetensors refuses aliases.
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(tensors, str(temporary), metadata={"tree": tree, "sha256": _checksum(tensors, tree)})


def load_state(path: Path) -> Any:
    """The nested state saved by `save_state`. Raises `FileError` where the file is truncated or altered."""
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
    except (SafetensorError, OSError) as error:
        raise FileError(f"{path} is truncated or not a safetensors file: {error}") from error
    if "tree" not in metadata or _checksum(tensors, metadata["tree"]) != metadata.get("sha256"):
        raise FileError(f"{path} was altered or damaged: its checksum does not fit; delete it to use an earlier one")
    return _join(json.loads(metadata["tree"]), tensors)


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
