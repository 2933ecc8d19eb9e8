"""domainfusion: domain generalization with latent diffusion models.

>>> import domainfusion
>>> domainfusion.__version__
'0.1.0'

What the command line does, as functions: `train`, `benchmark`, `evaluate`, `predict_images`, `write_report`, `load`,
`list_names`. What a method of one's own is built from: `Algorithm`, `Batch`, `register_algorithm`. What a training loop
of one's own takes from the LDM: `LatentDiffusion`, `SlopeEstimator`, `draw`, `distillation_loss`, `image_to_image`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors and type checkers; at run time each is imported when it is first used
    from domainfusion.algorithms.base import Algorithm as Algorithm
    from domainfusion.algorithms.base import Batch as Batch
    from domainfusion.api import Benchmark as Benchmark
    from domainfusion.api import Run as Run
    from domainfusion.api import benchmark as benchmark
    from domainfusion.api import evaluate as evaluate
    from domainfusion.api import list_names as list_names
    from domainfusion.api import predict_images as predict_images
    from domainfusion.api import train as train
    from domainfusion.api import write_report as write_report
    from domainfusion.config import DataConfig as DataConfig
    from domainfusion.config import DistillConfig as DistillConfig
    from domainfusion.config import GenerateConfig as GenerateConfig
    from domainfusion.config import TrainConfig as TrainConfig
    from domainfusion.data.domains import load_dataset as load_dataset
    from domainfusion.data.splits import build_split as build_split
    from domainfusion.diffusion.image_to_image import image_to_image as image_to_image
    from domainfusion.diffusion.ldm import LatentDiffusion as LatentDiffusion
    from domainfusion.distillation.slopes import SlopeEstimator as SlopeEstimator
    from domainfusion.distillation.slopes import distillation_loss as distillation_loss
    from domainfusion.distillation.slopes import draw as draw
    from domainfusion.errors import DomainFusionError as DomainFusionError
    from domainfusion.errors import UsageError as UsageError
    from domainfusion.experiments.benchmark import run_benchmark as run_benchmark
    from domainfusion.experiments.runs import train_run as train_run
    from domainfusion.model import Model as Model
    from domainfusion.model import load as load
    from domainfusion.registry import register_algorithm as register_algorithm

__version__ = "0.1.0"

# What `import domainfusion` offers; each is imported when it is first used, so that the package itself loads at once.
_OFFERED = {
    **dict.fromkeys(
        ("Benchmark", "Run", "benchmark", "evaluate", "list_names", "predict_images", "train", "write_report"),
        "domainfusion.api",
    ),
    **dict.fromkeys(("Algorithm", "Batch"), "domainfusion.algorithms.base"),
    **dict.fromkeys(("DataConfig", "DistillConfig", "GenerateConfig", "TrainConfig"), "domainfusion.config"),
    **dict.fromkeys(("SlopeEstimator", "distillation_loss", "draw"), "domainfusion.distillation.slopes"),
    **dict.fromkeys(("Model", "load"), "domainfusion.model"),
    **dict.fromkeys(("DomainFusionError", "UsageError"), "domainfusion.errors"),
    "load_dataset": "domainfusion.data.domains",
    "build_split": "domainfusion.data.splits",
    "LatentDiffusion": "domainfusion.diffusion.ldm",
    "image_to_image": "domainfusion.diffusion.image_to_image",
    "register_algorithm": "domainfusion.registry",
    "train_run": "domainfusion.experiments.runs",
    "run_benchmark": "domainfusion.experiments.benchmark",
}

__all__ = ["__version__", *_OFFERED]


def __getattr__(name: str) -> Any:
    if name in _OFFERED:
        return getattr(importlib.import_module(_OFFERED[name]), name)
    raise AttributeError(f"module 'domainfusion' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
