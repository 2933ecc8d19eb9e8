"""Whether a run reads its slopes from a table of curves, or computes them in its steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from domainfusion.config import DistillConfig, TrainConfig
from domainfusion.data.domains import MultiDomainDataset
from domainfusion.distillation.curve_rounds import confidences
from domainfusion.distillation.curves import store_of
from domainfusion.errors import LDMError
from domainfusion.files import cache_folder, read_json_object


def table_passes(images: int, distill: DistillConfig) -> int:
    """Passes of the U-Net that the curves of so many images take, at most."""
    knots, _ = confidences(distill.curve_detail)
    return images * len(knots) * distill.curve_samples * distill.curve_rounds


def training_passes(config: TrainConfig, batch: int) -> int:
    """Passes of the U-Net that a run takes where slopes are computed in its steps, of `batch` raw images each."""
    distill = config.distill
    return config.steps * min(batch, distill.images_per_step or batch) * distill.samples


def reads_curves(
    config: TrainConfig, dataset: MultiDomainDataset, rows: np.ndarray, batch: int, *, made: bool = True
) -> bool:
    """Whether a run reads its slopes from a table: by its options, its data, and the tables that there are.

    Args:
        rows: of the training images, which a table would have curves of.
        batch: raw images in a step.
        made: a table that was made on this machine counts; else, of tables, those alone that come with the package.
    """
    if config.distill_weight == 0 or config.distill.estimator != "auto":
        return config.distill_weight > 0 and config.distill.estimator == "curve"
    if table_passes(len(rows), config.distill) <= training_passes(config, batch):
        return True
    return has_table(config, dataset, rows, made=made)


def has_table(config: TrainConfig, dataset: MultiDomainDataset, rows: np.ndarray, *, made: bool = True) -> bool:
    """Whether the slopes of all of `rows` are tabulated: see `reads_curves`."""
    # What tables are of takes the LDM's fingerprint, for which a hub's is loaded.
    made = made and next((cache_folder() / "curves").glob("*/*"), None) is not None
    if config.ldm_source != "embedded" and not made:  # tables are shipped for this one
        return False
    try:
        store = store_of(config, dataset)
    except LDMError:  # the run that asks for it says so
        return False
    return store.shipped.exists() or (made and not len(store.missing(rows)))


def goes_on_with_curves(
    folder: Path, config: TrainConfig, dataset: MultiDomainDataset, rows: np.ndarray, batch: int
) -> bool:
    """`reads_curves` for the run in `folder`: one that was begun goes on as it began, whatever tables there are now.

    A run that was begun before `data.json` recorded it, or has lost that record, knew no tables but the package's.
    """
    path = folder / "data.json"
    begun = read_json_object(path) if path.exists() else {}
    if "slopes" in begun:
        return bool(begun["slopes"] == "curve")
    new = not begun and not (folder / "checkpoints").exists()
    return reads_curves(config, dataset, rows, batch, made=new)
