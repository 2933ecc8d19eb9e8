"""Stores of curves of a small data set by a tiny LDM."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from domainfusion.data.domains import MultiDomainDataset
from domainfusion.diffusion.ldm_source import source_fingerprint
from domainfusion.distillation.curves import CurveStore
from draws import FEW_ROUNDS


def make_store(dataset: MultiDomainDataset, tiny_pipeline: Path, **options: object) -> CurveStore:
    """The store under options that take little time, and `options` over them."""
    return CurveStore(
        dataset, source_fingerprint(str(tiny_pipeline)), dataclasses.replace(FEW_ROUNDS, **options), "{label}", 0
    )
