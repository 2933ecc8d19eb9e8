"""What both stages of pretraining share: optimizer, learning rate, exponential moving average, and saved states."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from domainfusion.errors import FileError
from domainfusion.tensors import load_newest, restore_optimizer, save_state


def build_optimizer(parameters: Iterable[torch.nn.Parameter], lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW (fused), β = (0.9, 0.99)."""
    return torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.99), weight_decay=weight_decay, fused=True)


def learning_rate_factor(step: int, steps: int, decay: float, warmup: int = 100) -> float:
    """Warm-up, constant, then a linear fall to 0 over the last `decay` share of the steps.

    A constant middle part lets a run be prolonged: raise the number of steps and resume.

    >>> [round(learning_rate_factor(s, 1000, 0.2), 3) for s in (0, 99, 500, 900, 999)]
    [0.01, 1.0, 1.0, 0.5, 0.005]
    """
    rise = min(1.0, (step + 1) / warmup)
    fall = 1.0 if decay <= 0 else min(1.0, (steps - step) / (decay * steps))
    return min(rise, fall)


class Averaged:
    """An exponential moving average of a module's parameters, warmed up: decay = min(`decay`, (1+n)/(10+n))."""

    def __init__(self, module: torch.nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.values = {name: value.detach().clone() for name, value in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: torch.nn.Module) -> None:
        """Move the average towards the module's present parameters."""
        self.updates += 1
        weight = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        parameters = dict(module.named_parameters())
        names = list(self.values)
        torch._foreach_lerp_([self.values[n] for n in names], [parameters[n].detach() for n in names], weight)

    @torch.no_grad()
    def copy_to(self, module: torch.nn.Module) -> None:
        """Write the average into the module."""
        for name, value in module.named_parameters():
            value.copy_(self.values[name])

    @contextlib.contextmanager
    def applied_to(self, module: torch.nn.Module) -> Iterator[None]:
        """Within the block the module holds the average."""
        kept = {name: value.detach().clone() for name, value in module.named_parameters()}
        self.copy_to(module)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in module.named_parameters():
                    value.copy_(kept[name])

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes back."""
        return {"updates": self.updates, "values": self.values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved average."""
        self.updates = int(state["updates"])
        self.values = {name: state["values"][name].to(value.device) for name, value in self.values.items()}


class WorkingCopy:
    """A bfloat16 copy of a module to compute with, while the float32 module is what the optimizer steps.

    Beside autocast it saves casting every weight and every normalization back and forth: a quarter of a step's time.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self.source: list[torch.Tensor] = list(module.parameters())
        self.module = copy.deepcopy(module).to(torch.bfloat16)
        self.copied: list[torch.Tensor] = list(self.module.parameters())

    def give_gradients(self) -> None:
        """Move the copy's gradients to the float32 module."""
        for parameter, copied in zip(self.source, self.copied, strict=True):
            parameter.grad = None if copied.grad is None else copied.grad.float()
            copied.grad = None

    @torch.no_grad()
    def take_values(self) -> None:
        """Round the float32 module's present values into the copy."""
        torch._foreach_copy_(self.copied, self.source)


def save_training(
    path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, averaged: Averaged, step: int
) -> None:
    """Write the state of a stage after `step` steps, atomically; the one before is kept beside it."""
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(),
             "averaged": averaged.state_dict(), "step": step}  # fmt: skip
    save_state(path, state, previous=_previous(path))


def resume_training(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, averaged: Averaged) -> int:
    """Restore the newest state, in `path` or the one before it, that is whole; returns the steps done, 0 without one.

    Raises `FileError` where states are there and none can be read, or they are of another training.
    """
    state = load_newest([path, _previous(path)])
    if state is None:
        return 0
    try:
        model.load_state_dict(state["model"])
        restore_optimizer(optimizer, state["optimizer"])
        averaged.load_state_dict(state["averaged"])
        return int(state["step"])
    except (RuntimeError, KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        first = (str(error).strip().splitlines() or [""])[0]
        raise FileError(f"{path} is not of this training ({type(error).__name__}: {first})") from error


def _previous(path: Path) -> Path:
    return path.with_name(path.name.replace("-state.", "-previous."))
