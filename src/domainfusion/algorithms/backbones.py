"""Feature extractors by timm's or torchvision's name, and what is found out about them: feature size, normalisation.

`NAME` or `NAME.TAG` is timm's; `torchvision:NAME` or `torchvision:NAME.WEIGHTS` is torchvision's. One name has a
meaning of its own: `efficientnet_lite0` with published weights is TensorFlow's network (padding, BatchNorm's epsilon),
from a package that needs no network connection.
"""

from __future__ import annotations

import dataclasses
import difflib
import warnings
from pathlib import Path
from typing import Any

from torch import nn

from domainfusion.algorithms.published_weights import (
    fill_backbone,
    is_lite_port,
    lite_names,
    packaged_lite_weights,
    read_weight_file,
)
from domainfusion.config import TrainConfig
from domainfusion.data.transforms import MEAN, STD
from domainfusion.errors import DomainFusionError, UsageError, unknown_name

TORCHVISION = "torchvision:"
LITE, LITE_ARCHITECTURE = "efficientnet_lite0", "tf_efficientnet_lite0"

Triple = tuple[float, ...]
STATISTICS: dict[str, tuple[Triple, Triple]] = {
    "imagenet": (MEAN, STD),
    "inception": ((0.5,) * 3, (0.5,) * 3),
    "lite": ((127 / 255,) * 3, (128 / 255,) * 3),  # MEAN_RGB 127 and STDDEV_RGB 128 of TensorFlow's EfficientNet-Lite
}


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A network from images to features, and how its images are normalised."""

    module: nn.Module
    width: int  # features of an image
    mean: Triple
    std: Triple


def build_backbone(config: TrainConfig, *, initialize: bool = True) -> Backbone:
    """The backbone of a config: with random, published or a file's weights.

    Without `initialize` the weights are random in any case, since others are about to be loaded; what is looked up
    (architecture, size, statistics) is the same.

    Raises `UsageError` for an unknown name, with the nearest known; `FileError` for weights that do not fit;
    `DomainFusionError` where published weights cannot be had.
    """
    published = initialize and config.pretrained and not config.weights
    try:
        if config.backbone.startswith(TORCHVISION):
            module, width, heads = _torchvision(config.backbone, published)
        else:
            module, width, heads = _timm(config, published)
    except (RuntimeError, OSError, ValueError) as error:
        remedy = (
            "; --weights FILE takes weights that are here, and without --pretrained they are random"
            if published
            else ""
        )
        raise DomainFusionError(f"the backbone {config.backbone} cannot be built: {error}{remedy}") from error
    if initialize and uses_package(config):
        fill_backbone(module, packaged_lite_weights(), heads, "the package of efficientnet_lite0")
    elif initialize and config.weights:
        _fill_from_file(config, module, heads)
    mean, std = input_statistics(config)
    return Backbone(module, width, mean, std)


def uses_package(config: TrainConfig) -> bool:
    """Whether the published weights are those of the package of EfficientNet-Lite0."""
    return config.backbone == LITE and config.pretrained and not config.weights


def architecture_of(config: TrainConfig) -> str:
    """The network's name as timm has it, its tag with it (of a torchvision network: the backbone's own name)."""
    return LITE_ARCHITECTURE if uses_package(config) else config.backbone


def whole_network(config: TrainConfig, classes: int) -> tuple[nn.Module, str]:
    """The library's own classifier around a backbone, with random weights, and the name of its last linear layer.

    Raises `DomainFusionError` where timm keeps the classifier in more than one layer.
    """
    name = architecture_of(config)
    if name.startswith(TORCHVISION):
        from torchvision import models

        module: Any = models.get_model(name.removeprefix(TORCHVISION).partition(".")[0], num_classes=classes)
        return module, _linear_layers(module)[-1][0]
    import timm

    module = timm.create_model(name, num_classes=classes)
    head = (getattr(module, "pretrained_cfg", None) or {}).get("classifier")
    if not isinstance(head, str):
        raise DomainFusionError(f"the backbone {name} has no single last layer in timm ({head!r})")
    return module, head


def _linear_layers(module: nn.Module) -> list[tuple[str, nn.Linear]]:
    return [(place, layer) for place, layer in module.named_modules() if isinstance(layer, nn.Linear)]


def input_statistics(config: TrainConfig) -> tuple[Triple, Triple]:
    """(mean, std) by channel that images in [0, 1] are normalised with, as `normalization` says.

    `auto`: what published weights were trained with, and ImageNet's where training starts from random weights.
    """
    if config.normalization != "auto":
        return STATISTICS[config.normalization]
    if uses_package(config):
        return STATISTICS["lite"]
    if not (config.pretrained or config.weights) or config.backbone.startswith(TORCHVISION):
        return STATISTICS["imagenet"]
    import timm

    described = timm.get_pretrained_cfg(config.backbone)
    return (tuple(described.mean), tuple(described.std)) if described is not None else STATISTICS["imagenet"]


def _timm(config: TrainConfig, published: bool) -> tuple[nn.Module, int, tuple[str, ...]]:
    import timm

    name = architecture_of(config)
    if not timm.is_model(name.split(".")[0]):
        raise unknown_name("backbone", name, _near(name, timm.list_models()))
    module: Any = timm.create_model(name, pretrained=published and not uses_package(config), num_classes=0)
    heads = (getattr(module, "pretrained_cfg", None) or {}).get("classifier") or ()
    width = int(getattr(module, "head_hidden_size", None) or module.num_features)
    return module, width, (heads,) if isinstance(heads, str) else tuple(heads)


def _torchvision(backbone: str, published: bool) -> tuple[nn.Module, int, tuple[str, ...]]:
    """A classifier of torchvision's with its last linear layer taken off, whose inputs are the features."""
    from torchvision import models

    name, _, tag = backbone.removeprefix(TORCHVISION).partition(".")
    known = models.list_models(module=models)
    if name not in known:
        near = [TORCHVISION + other for other in _near(name, known)]
        raise unknown_name("backbone", backbone, near)
    versions = models.get_model_weights(name)
    if tag and tag not in versions.__members__:
        raise unknown_name("weights", tag, versions.__members__)
    chosen = versions[tag or "IMAGENET1K_V1"] if published else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torchvision's remarks about its own initial weights
        module: Any = models.get_model(name, weights=chosen)
    layers = _linear_layers(module)
    if not layers or layers[-1][1].out_features != 1000 or getattr(module, "aux_logits", False):
        raise UsageError(
            f"--backbone {backbone}: it does not end in one linear layer; timm has {', '.join(_near_timm(name))}"
        )
    place, last = layers[-1]
    outer, _, leaf = place.rpartition(".")
    setattr(module.get_submodule(outer), leaf, nn.Identity())
    return module, int(last.in_features), (place,)


def _fill_from_file(config: TrainConfig, module: nn.Module, heads: tuple[str, ...]) -> None:
    weights = read_weight_file(Path(config.weights))
    if is_lite_port(weights):
        if config.backbone.split(".")[0] != LITE_ARCHITECTURE:
            raise UsageError(
                f"--weights {config.weights} are TensorFlow's EfficientNet-Lite0: use --backbone {LITE_ARCHITECTURE} "
                "--normalization lite"
            )
        weights = lite_names(weights)
    fill_backbone(module, weights, heads, config.weights)


def _near(name: str, known: list[str]) -> list[str]:
    """Names like `name`, nearest first; models' names have no capital letters."""
    return difflib.get_close_matches(name.lower(), known, n=5, cutoff=0.3) or ["resnet10t", "resnet18"]


def _near_timm(name: str) -> list[str]:
    import timm

    return _near(name, timm.list_models())[:3]
