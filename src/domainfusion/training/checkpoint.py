"""A run's state on disk: the last step (to resume from) and the selected model (to use)."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from domainfusion.errors import FileError
from domainfusion.files import atomic_path, read_json, write_json
from domainfusion.tensors import load_state, restore_optimizer, save_state


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a run is: steps done, seconds spent, and the best evaluation so far."""

    step: int = 0
    seconds: float = 0.0
    best_validation: float = -1.0
    best_step: int = 0


def save_checkpoint(
    folder: Path,
    algorithm: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    extra: dict[str, Any],
) -> None:
    """Write `folder/checkpoints/last.safetensors`, keeping the one before as `previous.safetensors`."""
    last = folder / "checkpoints" / "last.safetensors"
    if last.exists():
        last.replace(last.with_name("previous.safetensors"))
    state = {"model": algorithm.state_dict(), "optimizer": optimizer.state_dict(),
             "progress": dataclasses.asdict(progress), "extra": extra}  # fmt: skip
    save_state(last, state)


def load_checkpoint(
    folder: Path, algorithm: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[Progress, dict[str, Any]]:
    """Restore model and optimizer from the newest checkpoint that is whole; a fresh `Progress` where there is none.

    Raises `FileError` where checkpoints exist and none can be read.
    """
    failures = []
    for name in ("last.safetensors", "previous.safetensors"):
        path = folder / "checkpoints" / name
        if not path.exists():
            continue
        try:
            state = load_state(path)
        except FileError as error:
            failures.append(str(error))
            # Aside, so that the next checkpoint does not push the damaged one over the good one.
            path.replace(path.with_name(f"{name}.damaged"))
            print(f"note: {error}; it was set aside, and the checkpoint before it is used", file=sys.stderr)
            continue
        algorithm.load_state_dict(state["model"])
        restore_optimizer(optimizer, state["optimizer"])
        return Progress(**state["progress"]), state["extra"]
    if failures:
        raise FileError("; ".join(failures))
    return Progress(), {}


def save_model(folder: Path, classifier: torch.nn.Module, description: dict[str, Any]) -> None:
    """Write the selected weights to `folder/model.safetensors` and what they are to `folder/model.json`."""
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in classifier.state_dict().items()}
    with atomic_path(folder / "model.safetensors") as temporary:
        save_file(tensors, str(temporary))
    write_json(folder / "model.json", description)


def load_model(folder: Path, classifier: torch.nn.Module) -> dict[str, Any]:
    """Load the selected weights of a run into `classifier`; returns their description."""
    path = folder / "model.safetensors"
    if not path.exists():
        raise FileError(f"{folder} holds no trained model (model.safetensors is missing)")
    fill_weights(classifier, read_weights(path), path)
    return read_json(folder / "model.json")


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, by name. Raises `FileError` for any other format, pickles above all."""
    try:
        return load_file(str(path))
    except (SafetensorError, OSError) as error:
        if looks_pickled(path):
            raise FileError(
                f"{path} is a pickle, which may run any code when it is opened; only safetensors files are read"
            ) from error
        raise FileError(f"{path} is damaged or not a safetensors file: {error}") from error


def looks_pickled(path: Path) -> bool:
    """Whether a file that is not safetensors begins as pickles and PyTorch's archives of pickles do."""
    try:
        with open(path, "rb") as file:
            head = file.read(4)
    except OSError:
        return False
    return head.startswith(b"PK\x03\x04") or (len(head) > 1 and head[0] == 0x80 and head[1] <= 5)


def fill_weights(module: torch.nn.Module, tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Load `tensors`, read from `path`, into `module`.

    Raises `FileError` where a tensor is missing, unknown, of another shape, or holds values that are not finite.
    """
    wanted = module.state_dict()
    missing, unknown = sorted(set(wanted) - set(tensors)), sorted(set(tensors) - set(wanted))
    for names, problem in ((missing, "lacks"), (unknown, "holds an unknown")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise FileError(f"{path} is of another architecture: it {problem} {names[0]}{more}")
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            raise FileError(
                f"{path} is of another architecture: {name} has the shape {list(tensor.shape)}, "
                f"not {list(wanted[name].shape)}"
            )
        if not torch.isfinite(tensor).all():
            raise FileError(f"{path} is damaged: {name} holds values that are not finite")
    module.load_state_dict(tensors)
