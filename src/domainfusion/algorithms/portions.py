"""A batch in portions: its features computed some images at a time, their gradient that of the whole batch.

Losses that compare the images of a batch (covariances of domains, mixtures, a share of the batch muted) cannot be taken
of a part of it. They need its features, which are small; what fills the memory are the activations inside the backbone.
So the features are computed portion by portion without keeping activations, the loss is taken of all of them at once,
and the backward pass computes each portion again with its activations, and accumulates its gradient (gradient caching,
Gao et al. 2021, arXiv 2101.06983, by activation checkpointing). The gradient equals that of the whole batch for every
loss, except where BatchNorm measures its batch: its statistics are those of each portion, and its running averages move
once for each portion. A portion takes images from all over the batch, so it holds every domain as far as it can.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def in_portions(
    module: nn.Module, function: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, size: int
) -> torch.Tensor:
    """`function(images)`, (B, D), of images (B, ...), computed by `module` at most `size` at a time (two at least, see
    `least_at_once`)."""
    count = min(math.ceil(len(images) / size), max(1, len(images) // least_at_once(module)))
    order = torch.arange(len(images), device=images.device)
    portions = [order[first::count] for first in range(count)]
    found = [
        checkpoint(
            function, images[rows], use_reentrant=False,
            context_fn=lambda: (contextlib.nullcontext(), StatisticsLeftAlone(module)),
        )
        if torch.is_grad_enabled() else function(images[rows])
        for rows in portions
    ]  # fmt: skip
    return torch.cat(found)[torch.cat(portions).argsort()]


def least_at_once(module: nn.Module) -> int:
    """How few images a portion may have: BatchNorm has nothing to measure on the last, 1 by 1, map of a single one."""
    return 2 if any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in module.modules()) else 1


class StatisticsLeftAlone:
    """A block in which BatchNorm normalizes as before and its running averages stay: it is computed for a second time.

    Layers that are in evaluation mode go on using their averages. The block can be entered again, as checkpointing does
    (PyTorch before 2.14) where a backward pass goes through it more than once.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.kept: list[tuple[Any, float | None, torch.Tensor | None]] = []

    def __enter__(self) -> None:
        layers = [
            layer for layer in self.module.modules()
            if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.training and layer.track_running_stats
        ]  # fmt: skip
        self.kept = [(layer, layer.momentum, layer.num_batches_tracked) for layer in layers]
        for layer, _, count in self.kept:
            layer.momentum = 0.0
            layer.num_batches_tracked = None if count is None else count.clone()

    def __exit__(self, *error: object) -> None:
        # Checkpointing ends a second computation by an exception, as soon as it has what it needs.
        for layer, momentum, count in self.kept:
            layer.momentum, layer.num_batches_tracked = momentum, count
