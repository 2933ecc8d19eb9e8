"""Steps that go on where memory runs out: the batch passes the backbone in halves, its gradient accumulated.

The batch itself stays as it is: same rows, same augmentation, same loss (see `domainfusion.algorithms.portions`). The
gradient equals the full batch's, except where BatchNorm measures its batch; `freeze_bn` makes it equal there too.
A failed attempt leaves nothing behind: buffers are put back and the step's random numbers begin anew, so what comes out
is a function of (seed, step) and of the number of images at once, which the checkpoint and the records note.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from domainfusion.algorithms.base import Algorithm
from domainfusion.algorithms.portions import least_at_once
from domainfusion.errors import TrainingError, show_note
from domainfusion.memory import is_out_of_memory, release

T = TypeVar("T")
REMEDY = "use a smaller --batch-size, --data.size or --backbone, or --distill.images-per-step, with another --output"


class Portions:
    """How many images pass the backbone at once, halved whenever memory runs out."""

    def __init__(self, algorithm: Algorithm) -> None:
        self.algorithm = algorithm
        self.since: int | None = None  # the step in which they were last halved

    def attempt(self, work: Callable[[], T], step: int) -> T:
        """What `work()` returns, tried again with half as many images at once where memory runs out.

        Raises `TrainingError` where not even single images fit, or the algorithm cannot take its batch apart.
        """
        kept = [buffer.clone() for buffer in self.algorithm.buffers()]
        while True:
            try:
                return work()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = (str(error).splitlines() or [type(error).__name__])[0]
            # Outside of `except`, where the error no longer holds on to the frames, and they to their tensors.
            self.algorithm.zero_grad(set_to_none=True)
            with torch.no_grad():
                for buffer, value in zip(self.algorithm.buffers(), kept, strict=True):
                    buffer.copy_(value)
            release()
            self._halve(step, reason)

    def _halve(self, step: int, reason: str) -> None:
        classifier = self.algorithm.classifier
        most = classifier.most_at_once
        if most <= least_at_once(classifier) or not self.algorithm.divisible:
            why = "" if self.algorithm.divisible else f" ({self.algorithm.config.algorithm} cannot take a batch apart)"
            raise TrainingError(f"out of memory at step {step}{why}: {reason}; {REMEDY}")
        classifier.portion, classifier.most_at_once = most // 2, 0
        self.since = step
        show_note(
            f"out of memory at step {step}: from here on at most {most // 2} images pass the backbone at once, "
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
