"""What an algorithm is: losses of a batch, logits of images, and work between steps. The trainer does the rest."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from domainfusion.algorithms.classifier import build_classifier
from domainfusion.config import TrainConfig
from domainfusion.data.domains import MultiDomainDataset
from domainfusion.data.splits import Split
from domainfusion.data.transforms import augment, to_float
from domainfusion.processes import ALONE, Processes


@dataclasses.dataclass(frozen=True)
class Batch:
    """The raw images of one step, of all source domains."""

    step: int
    epoch: int
    rows: np.ndarray  # (B,) rows of the data set
    images: torch.Tensor  # (B, 3, S, S) in [0, 1], augmented
    labels: torch.Tensor  # (B,) int64
    # (count·B,) rows of the whole step where several processes share it, of which `rows` are this one's (None: alone).
    shared_rows: np.ndarray | None = None

    @property
    def step_rows(self) -> np.ndarray:
        """The rows of the whole step, over all processes; this one's are `processes.share(len(step_rows))` of them."""
        return self.rows if self.shared_rows is None else self.shared_rows


def _nothing() -> None:
    """What is done about a new record where nobody asks."""


@dataclasses.dataclass(frozen=True)
class Context:
    """What an algorithm is built for: data, split, options, device, and the run's folder."""

    dataset: MultiDomainDataset
    split: Split
    config: TrainConfig
    device: torch.device
    dtype: torch.dtype
    folder: Path
    steps_per_epoch: int
    progress: bool = True
    processes: Processes = ALONE  # that train together
    recorded: Callable[[], None] = _nothing  # called when the run's folder holds a new record or result


class Tester(abc.ABC):
    """A finished model's own way to predict, where that is more than its classifier's logits."""

    @abc.abstractmethod
    def logits(self, dataset: MultiDomainDataset, rows: np.ndarray) -> np.ndarray:
        """(n, classes) float32 logits of rows (n,) of a data set. What it takes to have them is kept, and resumes."""

    @abc.abstractmethod
    def logits_of_images(self, images: np.ndarray) -> np.ndarray:
        """(B, classes) float32 logits of images (B, S, S, 3) uint8."""


class Algorithm(nn.Module, abc.ABC):
    """Base of all algorithms. A subclass gives `losses`; everything else has a default."""

    # Whether the classifier's accuracies on the target while training are the method's own, for results.jsonl.
    tests_by_classifier: ClassVar[bool] = True
    divisible = True  # whether its batch may pass the backbone in portions

    def __init__(self, context: Context) -> None:
        super().__init__()
        self.context = context
        self.config = context.config
        self.classifier = build_classifier(context.config, len(context.dataset.classes))
        self.tests_held_out = True  # whether the target's held-out images are tested too where `tester` does it

    @abc.abstractmethod
    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Named terms of the loss, already weighted; the trainer sums them and descends."""

    def before_step(self, step: int, epoch: int) -> None:
        """Called before each step, outside the gradient: refresh a data set, say."""

    def compose(self, batch: Batch) -> Batch:
        """The batch that is trained on, of the raw images that were drawn."""
        return batch

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        """(B, classes) logits of images (B, 3, S, S) in [0, 1]."""
        return self.classifier(images)

    def tester(self) -> Tester | None:
        """How the selected weights predict test images; None where `predict` does. Called after training."""
        return None

    @classmethod
    def load_tester(
        cls, folder: Path, classifier: nn.Module, config: TrainConfig, device: torch.device
    ) -> Tester | None:
        """`tester` of the finished run in `folder`, whose selected weights are in `classifier`."""
        return None

    def described(self) -> dict[str, Any]:
        """What was decided when the run began and holds for all of it, for `data.json`."""
        return {}

    def findings(self) -> dict[str, Any]:
        """What the method found out beside accuracies, for result.json."""
        return {}

    def seconds_after_training(self) -> float:
        """What testing took beside the classifier."""
        return 0.0

    def costs(self) -> dict[str, Any]:
        """What the run has spent, for records: images generated, LDM passes, seconds by part."""
        return {}

    def restore(self, costs: dict[str, Any]) -> None:
        """Take over what `costs` said when the checkpoint was written."""

    def close(self) -> None:
        """Called when training ends, however it ends: stop what works beside it."""

    def finish(self) -> None:
        """Called once after training: write pictures to the run's folder, say."""

    def rows_by_domain(self, batch: Batch) -> list[np.ndarray]:
        """For each source domain, in their order, where in the batch (0 to B-1) its images are."""
        dataset = self.context.dataset
        domain_of = dataset.domain_of[batch.rows]
        return [np.flatnonzero(domain_of == dataset.index_of(domain)) for domain in self.context.split.sources]

    def augmented(self, images: np.ndarray | torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """(B, 3, S, S) augmented training images in [0, 1] of images (B, S, S, 3) uint8."""
        if isinstance(images, np.ndarray):
            images = torch.from_numpy(np.ascontiguousarray(images))
        batch = to_float(images.to(self.context.device))
        return augment(batch, self.config.data, generator)
