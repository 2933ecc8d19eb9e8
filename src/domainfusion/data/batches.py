"""Batches as a function of (seed, step): nothing to save, nothing to restore, the same after any interruption."""

from __future__ import annotations

import dataclasses

import numpy as np

from domainfusion.config import TrainConfig
from domainfusion.data.splits import Split
from domainfusion.seeding import derive_numpy_rng


def draw_rows(split: Split, batch_size: int, seed: int, step: int) -> np.ndarray:
    """(D·batch_size,) rows of step `step`: `batch_size` of every source domain, with replacement, domain by domain."""
    rng = derive_numpy_rng("batch", seed, step)
    return np.concatenate([rng.choice(split.train[domain], batch_size, replace=True) for domain in split.sources])


def steps_per_epoch(split: Split, batch_size: int) -> int:
    """Steps in which as many images are drawn as the source domains have for training."""
    total = sum(len(rows) for rows in split.train.values())
    return max(1, round(total / (batch_size * len(split.sources))))


def with_steps(config: TrainConfig, split: Split) -> TrainConfig:
    """`config` with the steps that its `epochs` come to on a split; itself where it counts in steps."""
    if not config.epochs:
        return config
    return dataclasses.replace(config, steps=config.epochs * steps_per_epoch(split, config.batch_size))
