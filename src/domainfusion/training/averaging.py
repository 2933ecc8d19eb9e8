"""Averages of the weights over training, beside any algorithm: exponential (EMA), or over a loss valley (SWAD).

SWAD (Cha et al., NeurIPS 2021, arXiv 2102.08604, Algorithm 1). With E_k the source-validation loss of evaluation k:

- start t_s: the first evaluation k with E_k = min(E_k, ..., E_{k+N_s-1});
- threshold l = r · mean(E_k, ..., E_{k+N_s-1});
- end t_e: the evaluation before the first N_e in a row after t_s with a loss above l, where training stops; the last
  step where there are none;
- the model: the mean of the weights after every step from t_s to t_e, BatchNorm statistics measured anew for it.

Only one running mean is needed, because the start is always the evaluation with the least loss so far, and the end the
last one with a loss of l or less. Its state is part of the checkpoint. The target takes no part in any of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from domainfusion.algorithms.base import Algorithm, Batch
from domainfusion.errors import UsageError
from domainfusion.training.schedule import evaluation_steps

Weights = dict[str, torch.Tensor]


class Averaging:
    """No averaging, and the interface of the others: what the trainer calls, in its order."""

    restores_model = True  # a checkpoint written when the model was chosen has what `applied` needs to give it again
    ended = False  # no further step is of use
    ready = True  # there is a model to choose now

    def __init__(self, algorithm: Algorithm, draw_batch: Callable[[int], Batch]) -> None:
        self.algorithm = algorithm
        self.config = algorithm.config.average
        self.method = self.config.method
        self.draw_batch = draw_batch  # the training batch of a step

    def update(self, step: int) -> None:
        """Called after the optimizer's step number `step` (the first is 1)."""

    def applied(self) -> contextlib.AbstractContextManager[None]:
        """A block in which the classifier has the weights that are to be measured and saved."""
        return contextlib.nullcontext()

    def observe(self, step: int, loss: float) -> bool:
        """Told the source-validation loss after `step` steps; True where that completes the average."""
        return False

    def describe(self, step: int) -> dict[str, Any]:
        """What the average after `step` steps is, for people and records; empty without one."""
        return {}

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs to hold."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned when the checkpoint was written; nothing is done where that is empty."""


class EMA(Averaging):
    """θ̄ ← d·θ̄ + (1-d)·θ after every step, d = min(decay, (1+n)/(10+n)) after n steps (TensorFlow's warm-up).

    BatchNorm statistics are averaged like weights; what is not floating point is the present value.
    """

    def __init__(self, algorithm: Algorithm, draw_batch: Callable[[int], Batch]) -> None:
        super().__init__(algorithm, draw_batch)
        self.count = 0
        self.average = _clone(algorithm.classifier.state_dict())

    def update(self, step: int) -> None:
        """Move the average by the present weights."""
        share = 1 - min(self.config.decay, (1 + self.count) / (10 + self.count))
        self.count += 1
        for name, value in self.algorithm.classifier.state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value, share)
            else:
                self.average[name].copy_(value)

    def applied(self) -> contextlib.AbstractContextManager[None]:
        """The averaged weights."""
        return swapped(self.algorithm.classifier, self.average)

    def describe(self, step: int) -> dict[str, Any]:
        """Method, decay and the number of steps averaged, which is that of all."""
        return {"method": "ema", "decay": self.config.decay, "weights": step}

    def state(self) -> dict[str, Any]:
        """The average and its number of steps."""
        return {"count": self.count, "average": self.average}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over an average."""
        if not state:
            return
        self.count = state["count"]
        self.average = _in_layout_of(self.average, state["average"])


@dataclasses.dataclass
class Mark:
    """The running mean as it was at an evaluation, a possible end."""

    step: int
    loss: float
    count: int
    mean: Weights


class SWAD(Averaging):
    """The mean of the weights after every step of a valley of the source-validation loss."""

    restores_model = False
    ready = False

    def __init__(self, algorithm: Algorithm, draw_batch: Callable[[int], Batch]) -> None:
        super().__init__(algorithm, draw_batch)
        options = algorithm.config
        steps = options.steps
        count = len(evaluation_steps(steps, options.evaluations, options.evaluate_every))
        if count < self.config.optimum_patience:
            raise UsageError(
                f"--average.method swad finds its start in {self.config.optimum_patience} evaluations at least, and "
                f"{count} are made; raise --evaluations (30 or more)"
            )
        self.last_step = steps
        self.start = 0  # the step of t_s, or of what may become it
        self.count = 0
        self.mean: Weights = {}  # of the weights after the steps from `start` on
        self.losses: list[float] = []  # of the evaluations from the start until the threshold is known
        self.threshold: float | None = None
        self.marks: list[Mark] = []
        self.above = 0  # evaluations in a row, up to the latest, with a loss above the threshold
        self.chosen: dict[str, Any] = {}  # what `describe` says once the average is complete

    def update(self, step: int) -> None:
        """Take the present weights into the mean, once a start is in sight."""
        if not self.count:
            return
        self.count += 1
        for name, value in self.algorithm.classifier.named_parameters():
            self.mean[name].lerp_(value.detach(), 1 / self.count)

    def observe(self, step: int, loss: float) -> bool:
        """Look for start and end; True when the end is found, or the run's last step reached."""
        if self.threshold is None:
            self._seek_start(step, loss)
        elif loss <= self.threshold:
            self.above = 0
            self.marks = [self._mark(step, loss)]
        else:
            self.above += 1
        found = self.threshold is not None and self.above >= self.config.overfit_patience
        if found or step == self.last_step:
            self._complete(self.marks[-1] if found else Mark(step, loss, self.count, self.mean))
        return self.ready

    def _seek_start(self, step: int, loss: float) -> None:
        if not self.losses or loss < self.losses[0]:  # what was before cannot be the start any more
            self.start, self.count, self.losses = step, 1, []
            self.mean = _clone(dict(self.algorithm.classifier.named_parameters()))
            self.marks = []
        self.losses.append(loss)
        self.marks.append(self._mark(step, loss))
        if len(self.losses) == self.config.optimum_patience:
            self.threshold = self.config.tolerance_rate * math.fsum(self.losses) / len(self.losses)
            last = max(i for i, mark in enumerate(self.marks) if mark.loss <= self.threshold)
            self.above = len(self.marks) - 1 - last
            self.marks = [self.marks[last]]

    def _mark(self, step: int, loss: float) -> Mark:
        return Mark(step, loss, self.count, _clone(self.mean))

    def _complete(self, end: Mark) -> None:
        classifier = self.algorithm.classifier
        with swapped(classifier, end.mean):
            batches = (self.draw_batch(self.last_step + i) for i in range(self.config.bn_batches))
            refresh_batch_norm(self.algorithm, batches)
            self.average = _clone(classifier.state_dict())
        self.chosen = {
            "method": "swad", "start": self.start, "end": end.step, "weights": end.count,
            "valley_found": self.threshold is not None,
        }  # fmt: skip
        if self.threshold is None:
            print(
                f"note: source validation had no {self.config.optimum_patience} evaluations in which the first was the "
                f"best, so SWAD averages from the best one on, step {self.start}; more --steps or --evaluations help",
                file=sys.stderr,
            )
        self.ready = self.ended = True
        self.mean, self.marks = {}, []

    def applied(self) -> contextlib.AbstractContextManager[None]:
        """The averaged weights once they are complete; until then the present ones, whose loss shows the valley."""
        return swapped(self.algorithm.classifier, self.average) if self.ready else contextlib.nullcontext()

    def describe(self, step: int) -> dict[str, Any]:
        """First and last step of the average, how many weights it has, and whether a start was found at all."""
        return self.chosen

    def state(self) -> dict[str, Any]:
        """The running mean and what was found so far; without the model, which is saved as the run's own."""
        return {
            "start": self.start, "count": self.count, "mean": self.mean, "losses": self.losses,
            "threshold": self.threshold, "marks": [vars(mark) for mark in self.marks], "above": self.above,
            "chosen": self.chosen,
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        if not state:
            return
        present = dict(self.algorithm.classifier.named_parameters())
        self.start, self.count, self.losses = state["start"], state["count"], state["losses"]
        self.threshold, self.above, self.chosen = state["threshold"], state["above"], state["chosen"]
        self.mean = _in_layout_of(present, state["mean"])
        self.marks = [Mark(**{**mark, "mean": _in_layout_of(present, mark["mean"])}) for mark in state["marks"]]
        self.ended = bool(self.chosen)


METHODS: dict[str, type[Averaging]] = {"none": Averaging, "ema": EMA, "swad": SWAD}


def build_averaging(algorithm: Algorithm, draw_batch: Callable[[int], Batch]) -> Averaging:
    """The averaging of an algorithm's config. Raises `UsageError` where the run is too short for it."""
    return METHODS[algorithm.config.average.method](algorithm, draw_batch)


def _clone(weights: Mapping[str, torch.Tensor]) -> Weights:
    return {name: value.detach().clone() for name, value in weights.items()}


def _in_layout_of(present: Mapping[str, torch.Tensor], stored: Mapping[str, torch.Tensor]) -> Weights:
    """Stored weights on the device and in the memory layout of the present ones: rounding may depend on the order."""
    return {name: torch.empty_like(present[name]).copy_(value) for name, value in stored.items()}


@contextlib.contextmanager
def swapped(module: nn.Module, weights: Weights) -> Iterator[None]:
    """A block in which `module` has `weights`; what they do not name keeps its value, and all is put back after it."""
    before = _clone(module.state_dict())
    module.load_state_dict(before | weights)
    try:
        yield
    finally:
        module.load_state_dict(before)


@torch.no_grad()
def refresh_batch_norm(algorithm: Algorithm, batches: Iterator[Batch]) -> None:
    """Measure the classifier's BatchNorm statistics anew: their plain means over the images of training batches.

    Nothing is done where it has no BatchNorm, or keeps it frozen.
    """
    classifier, context = algorithm.classifier, algorithm.context
    layers = [layer for layer in classifier.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    if not layers or context.config.freeze_bn:
        return
    momenta = [layer.momentum for layer in layers]
    was_training = classifier.training
    classifier.train()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # torch's word for a cumulative mean
    for batch in batches:
        with torch.autocast(context.device.type, context.dtype, enabled=context.dtype != torch.float32):
            classifier.features(batch.images)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    classifier.train(was_training)
