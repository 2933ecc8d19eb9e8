"""Steps that go on where memory runs out: the batch passes the backbone in halves, its gradient accumulated.

The batch itself stays as it is: same rows, same augmentation, same loss (see `domainfusion.algorithms.portions`). The
gradient equals the full batch's, except where BatchNorm measures its batch; `freeze_bn` makes it equal there too.
A failed attempt leaves nothing behind: buffers are put back and the step's random numbers begin anew, so what comes out
is a function of (seed, step) and of the number of images at once, which the checkpoint and the records note.

Processes that train together go back together: what one could not do all of them do again in halves, so that they stay
at the same step and exchange the same things (`domainfusion.processes`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from domainfusion.algorithms.base import Algorithm
from domainfusion.algorithms.portions import least_at_once
from domainfusion.errors import TrainingError, show_note
from domainfusion.memory import is_out_of_memory, release
from domainfusion.processes import OutOfMemoryElsewhere

T = TypeVar("T")
REMEDY = "use a smaller --batch-size, --data.size or --backbone, or --distill.images-per-step, with another --output"


def move_weights(optimizer: torch.optim.Optimizer, step: int) -> None:
    """The optimizer's own part of step `step`, which no smaller portions make smaller.

    Raises `TrainingError` where memory runs out in it: weights may have moved in part, and are not gone on from.
    """
    try:
        optimizer.step()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise TrainingError(
            f"out of memory at step {step} in the optimizer, which holds every weight three times over: {reason}; use "
            "a smaller --backbone, with another --output"
        ) from error


class Portions:
    """How many images pass the backbone at once, halved whenever memory runs out."""

    def __init__(self, algorithm: Algorithm) -> None:
        self.algorithm = algorithm
        self.since: int | None = None  # the step in which they were last halved

    def attempt(self, work: Callable[[], T], step: int) -> T:
        """What `work()` returns, tried again with half as many images at once where memory runs out.

        Args:
            work: changes nothing that a second attempt would begin with, but for buffers and gradients. Where several
                processes train together, it ends with an exchange (`Processes.average`, `meet`), and uses no memory
                worth mentioning after that: else one of them could fail when others are gone.

        Raises `TrainingError` where not even single images fit, or the algorithm cannot take its batch apart.
        """
        processes, device = self.algorithm.context.processes, self.algorithm.context.device
        kept = [buffer.clone() for buffer in self.algorithm.buffers()]
        while True:
            try:
                return work()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                where = error.rank if isinstance(error, OutOfMemoryElsewhere) else processes.rank
            # Outside of `except`, where the error no longer holds on to the frames, and they to their tensors.
            self.algorithm.zero_grad(set_to_none=True)
            with torch.no_grad():
                for buffer, value in zip(self.algorithm.buffers(), kept, strict=True):
                    buffer.copy_(value)
            release()
            place = f"at step {step}" + (f" in process {where} of {processes.count}" if processes.count > 1 else "")
            if where == processes.rank:
                self._refuse_meetings_of_others(place, reason)
                processes.say_out_of_memory(device)
            self._halve(step, place, reason)

    def _refuse_meetings_of_others(self, place: str, reason: str) -> None:
        """Raise `TrainingError` where the other processes may be waiting in an exchange that is not ours to answer.

        SyncBatchNorm's are inside of the passes. This process ends, and whoever launched it ends the others.
        """
        several = self.algorithm.context.processes.count > 1
        if several and any(isinstance(m, nn.SyncBatchNorm) and m.training for m in self.algorithm.modules()):
            raise TrainingError(
                f"out of memory {place}: {reason}; the processes cannot go on in halves, for their BatchNorm layers "
                f"wait for each other: {REMEDY} (with --freeze-bn they can)"
            )

    def _halve(self, step: int, place: str, reason: str) -> None:
        classifier, processes = self.algorithm.classifier, self.algorithm.context.processes
        most = int(processes.most(classifier.most_at_once, self.algorithm.context.device))
        if most <= least_at_once(classifier) or not self.algorithm.divisible:
            why = "" if self.algorithm.divisible else f" ({self.algorithm.config.algorithm} cannot take a batch apart)"
            raise TrainingError(f"out of memory {place}{why}: {reason}; {REMEDY}")
        classifier.portion, classifier.most_at_once = most // 2, 0
        self.since = step
        if processes.first:
            each = " in each process" if processes.count > 1 else ""
            show_note(
                f"out of memory {place}: from here on at most {most // 2} images pass the backbone at once{each}, "
                "gradients accumulated; the batch stays as large as it was (BatchNorm sees its portions)"
            )

    def describe(self) -> dict[str, Any]:
        """{"images_at_once", "since_step"} for records and checkpoints; empty where memory never ran out."""
        if self.since is None:
            return {}
        return {"images_at_once": self.algorithm.classifier.portion, "since_step": self.since}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `describe` returned when the checkpoint was written."""
        if state:
            self.algorithm.classifier.portion, self.since = state["images_at_once"], state["since_step"]
