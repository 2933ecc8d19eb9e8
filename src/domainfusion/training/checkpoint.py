"""A run's state on disk: the last step (to resume from) and the selected model (to use)."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from domainfusion.errors import FileError, shortened, show_note
from domainfusion.files import atomic_path, read_json, write_json, write_text
from domainfusion.json_lines import keep_json_lines
from domainfusion.tensors import (
    checksum,
    load_newest,
    read_tensors,
    refuse_other_architecture,
    restore_optimizer,
    save_state,
    write_tensors,
)

LOGS = ("metrics.jsonl", "results.jsonl")


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
    """Write `folder/checkpoints/last.safetensors`, keeping the one before as `previous.safetensors`.

    The run's records so far are part of it, so that a damaged file of records can be restored.
    """
    last = folder / "checkpoints" / "last.safetensors"
    state = {"model": algorithm.state_dict(), "optimizer": optimizer.state_dict(),
             "progress": dataclasses.asdict(progress), "extra": extra, "records": read_logs(folder)}  # fmt: skip
    save_state(last, state, previous=last.with_name("previous.safetensors"))


def load_checkpoint(
    folder: Path, algorithm: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[Progress, dict[str, Any]]:
    """Restore model, optimizer and records from the newest checkpoint that is whole; a fresh `Progress` without one.

    Raises `FileError` where checkpoints exist and none can be read, or what they hold is not of this run.
    """
    last = folder / "checkpoints" / "last.safetensors"
    state = load_newest([last, last.with_name("previous.safetensors")])
    if state is None:
        restore_logs(folder, {})
        return Progress(), {}
    try:
        algorithm.load_state_dict(state["model"])
        restore_optimizer(optimizer, state["optimizer"])
        progress, extra = Progress(**state["progress"]), dict(state["extra"])
        if "records" in state:
            restore_logs(folder, state["records"])
        else:  # of an older version
            evaluated = progress.step - extra.get("meter", {}).get("steps", 0)
            for name in LOGS:
                keep_json_lines(folder / name, lambda record: record["step"] <= evaluated)
    except (RuntimeError, KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        first = shortened((str(error).strip().splitlines() or [""])[0])
        raise FileError(
            f"the checkpoints in {last.parent} are not of this run ({type(error).__name__}: {first}); choose another "
            "--output, or delete them to begin anew"
        ) from error
    return progress, extra


def lost_model(folder: Path) -> str:
    """What is wrong with the file of a run's selected weights, in words; empty where it is whole."""
    path = folder / "model.safetensors"
    if not path.exists():
        return f"{path} is missing"
    try:
        read_weights(path)
    except FileError as error:
        return str(error)
    return ""


def go_back_for_model(folder: Path, in_checkpoint: bool) -> None:
    """Where a run's selected weights are lost, set aside the checkpoints from which they would not come again.

    `load_checkpoint` then finds an earlier one, or none: the steps after it are done again, and are the same. A
    checkpoint serves that was written when its weights were selected, or before any were.

    Args:
        in_checkpoint: whether the selected weights are part of the checkpoint that was written when they were.
    """
    trouble = lost_model(folder)
    last = folder / "checkpoints" / "last.safetensors"
    passed = 0  # the step of the weights that a checkpoint which does not serve would keep
    for path in (last, last.with_name("previous.safetensors")) if trouble else ():
        if (state := load_newest([path], required=False)) is None:
            continue
        try:
            progress = Progress(**state["progress"])
        except (KeyError, TypeError):
            return  # `load_checkpoint` says what is the matter with it
        if progress.best_step == 0 or (in_checkpoint and progress.best_step == progress.step):
            if passed:
                show_note(
                    f"{trouble}; the last checkpoint has not the weights of step {passed}, which were selected: "
                    f"training goes on from the one before it, of step {progress.step}, up to the same weights"
                )
            return
        passed = passed or progress.best_step
        path.replace(path.with_name(f"{path.name}.aside"))
    if passed:
        show_note(
            f"{trouble}; no checkpoint has the weights of step {passed}, which were selected: training begins anew, up "
            f"to the same weights (the checkpoints so far are kept in {last.parent}, as *.aside)"
        )


def read_logs(folder: Path) -> dict[str, str]:
    """The text of a run's files of records."""
    return {name: (folder / name).read_text(encoding="utf-8") for name in LOGS if (folder / name).exists()}


def restore_logs(folder: Path, kept: dict[str, str]) -> None:
    """Set a run's files of records to what they were when `kept` was read, and say so where they had been damaged.

    What was added since is dropped: the steps after the checkpoint are done, and recorded, again.
    """
    for name in LOGS:
        path, text = folder / name, kept.get(name, "")
        if path.exists() and path.read_bytes() == text.encode():
            continue
        if text and not (path.exists() and path.read_bytes().startswith(text.encode())):
            show_note(f"{path} is missing or damaged; it was restored from the checkpoint")
        if text or path.exists():
            write_text(path, text)


def save_model(folder: Path, classifier: torch.nn.Module, description: dict[str, Any]) -> None:
    """Write the selected weights to `folder/model.safetensors` and what they are to `folder/model.json`."""
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in classifier.state_dict().items()}
    save_weights(folder / "model.safetensors", tensors)
    write_json(folder / "model.json", description)


def save_weights(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write named tensors to a safetensors file, with a checksum that `read_weights` compares them with, atomically."""
    with atomic_path(path) as temporary:
        write_tensors(temporary, tensors, {"format": "pt", "checksum": checksum(tensors)})
        _order_metadata(temporary)


def _order_metadata(path: Path) -> None:
    """Let a safetensors file's metadata have sorted names: written in any order, equal weights made other files."""
    with open(path, "rb+") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= length:  # the same words in another order, and the spaces that the header is filled up with
            file.seek(8)
            file.write(text.ljust(length))


def load_model(folder: Path, classifier: torch.nn.Module) -> dict[str, Any]:
    """Load the selected weights of a run into `classifier`; returns their description."""
    path = folder / "model.safetensors"
    if not path.exists():
        raise FileError(
            f"{folder} holds no trained model (model.safetensors is missing); its `train` command makes it again"
        )
    fill_weights(classifier, read_weights(path), path)
    return read_json(folder / "model.json")


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, by name.

    Raises `FileError` for any other format, pickles above all, and where a checksum in it does not fit.
    """
    try:
        return read_tensors(path)[1]
    except FileError as error:
        if looks_pickled(path):
            raise FileError(
                f"{path} is a pickle, which may run any code when it is opened; only safetensors files are read"
            ) from error
        raise


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
    refuse_other_architecture(wanted, tensors, str(path))
    for name, tensor in tensors.items():
        if tensor.is_floating_point() != wanted[name].is_floating_point():
            raise FileError(f"{path} is of another architecture: {name} holds {tensor.dtype}, not {wanted[name].dtype}")
        if not torch.isfinite(tensor).all():
            raise FileError(f"{path} is damaged: {name} holds values that are not finite")
    module.load_state_dict(tensors)
