"""domainfusion: domain generalization with latent diffusion models.

>>> import domainfusion
>>> domainfusion.__version__
'0.1.0'
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# What `import domainfusion` offers; each is imported when it is first used, so that the package itself loads at once.
_OFFERED = {
    "TrainConfig": "domainfusion.config",
    "load_dataset": "domainfusion.data.domains",
    "build_split": "domainfusion.data.splits",
    "LatentDiffusion": "domainfusion.diffusion.ldm",
    "image_to_image": "domainfusion.diffusion.image_to_image",
    "train_run": "domainfusion.experiments.runs",
    "load": "domainfusion.model",
    "run_benchmark": "domainfusion.experiments.benchmark",
}

__all__ = ["__version__", *_OFFERED]


def __getattr__(name: str) -> Any:
    if name in _OFFERED:
        return getattr(importlib.import_module(_OFFERED[name]), name)
    raise AttributeError(f"module 'domainfusion' has no attribute {name!r}")
