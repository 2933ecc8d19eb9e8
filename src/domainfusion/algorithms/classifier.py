"""Backbone and head: any timm model as a feature extractor, a linear layer behind it."""

from __future__ import annotations

import torch
from torch import nn

from domainfusion.algorithms.portions import in_portions
from domainfusion.config import TrainConfig
from domainfusion.data.transforms import normalize
from domainfusion.errors import DomainFusionError, unknown_name


class Classifier(nn.Module):
    """Logits of images in [0, 1]; `features` are the pooled output of the backbone."""

    def __init__(self, backbone: nn.Module, width: int, classes: int, dropout: float = 0.0, freeze_bn: bool = False):
        super().__init__()
        self.backbone = backbone
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, classes)
        self.freeze_bn = freeze_bn
        self.portion = 0  # most images that pass the backbone at once (0: all)
        self.most_at_once = 0  # how many have

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """(B, D) features of images (B, 3, H, W) in [0, 1], at most `portion` of them at a time."""
        if self.portion and len(images) > self.portion:
            return in_portions(self.backbone, self._features, images, self.portion)
        return self._features(images)

    def _features(self, images: torch.Tensor) -> torch.Tensor:
        self.most_at_once = max(self.most_at_once, len(images))
        return self.backbone(normalize(images).contiguous(memory_format=torch.channels_last))

    def logits_of(self, features: torch.Tensor) -> torch.Tensor:
        """(B, classes) float32 logits of features (B, D)."""
        return self.head(self.dropout(features)).float()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, classes) logits of images (B, 3, H, W) in [0, 1]."""
        return self.logits_of(self.features(images))

    def train(self, mode: bool = True) -> Classifier:
        """Training mode; with `freeze_bn` BatchNorm keeps its statistics (its scale and shift still train)."""
        super().train(mode)
        if mode and self.freeze_bn:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self


def build_classifier(config: TrainConfig, classes: int) -> Classifier:
    """The classifier of a config; the backbone's feature size is found by asking the backbone.

    Raises `UsageError` for a name that timm does not know, with the nearest that it does.
    """
    import timm

    if not timm.is_model(config.backbone.split(".")[0]):
        raise unknown_name("backbone", config.backbone, _near(config.backbone))
    try:
        backbone = timm.create_model(config.backbone, pretrained=config.pretrained, num_classes=0)
    except (RuntimeError, OSError, ValueError) as error:
        raise DomainFusionError(f"the backbone {config.backbone} cannot be built: {error}") from error
    backbone = backbone.to(memory_format=torch.channels_last)
    width = int(getattr(backbone, "head_hidden_size", None) or backbone.num_features)
    return Classifier(backbone, width, classes, config.dropout, config.freeze_bn)


def _near(name: str) -> list[str]:
    import difflib

    import timm

    return difflib.get_close_matches(name, timm.list_models(), n=5, cutoff=0.3) or ["resnet10t", "resnet18"]
