"""Backbone and head: a feature extractor by name, a linear layer behind it."""

from __future__ import annotations

import torch
from torch import nn

from domainfusion.algorithms.backbones import build_backbone
from domainfusion.algorithms.cpu_convolutions import in_single_precision_where_needed
from domainfusion.algorithms.portions import in_portions
from domainfusion.config import Precision, TrainConfig
from domainfusion.data.transforms import MEAN, STD, normalize
from domainfusion.devices import choose_dtype


class Classifier(nn.Module):
    """Logits of images in [0, 1]; `features` are the pooled output of the backbone."""

    def __init__(
        self, backbone: nn.Module, width: int, classes: int, dropout: float = 0.0, freeze_bn: bool = False, *,
        mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD,
    ) -> None:  # fmt: skip
        super().__init__()
        self.backbone = backbone
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, classes)
        self.freeze_bn = freeze_bn
        self.mean, self.std = mean, std  # that images are normalised with, by channel
        self.portion = 0  # most images that pass the backbone at once (0: all)
        self.most_at_once = 0  # how many have

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """(B, D) features of images (B, 3, H, W) in [0, 1], at most `portion` of them at a time."""
        if self.portion and len(images) > self.portion:
            return in_portions(self.backbone, self._features, images, self.portion)
        return self._features(images)

    def _features(self, images: torch.Tensor) -> torch.Tensor:
        self.most_at_once = max(self.most_at_once, len(images))
        return self.backbone(normalize(images, self.mean, self.std).contiguous(memory_format=torch.channels_last))

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


def build_classifier(config: TrainConfig, classes: int, *, initialize: bool = True) -> Classifier:
    """The classifier of a config. Without `initialize` no weights are looked for, since others are loaded next.

    Raises what `build_backbone` raises.
    """
    found = build_backbone(config, initialize=initialize)
    backbone = found.module.to(memory_format=torch.channels_last)
    in_single_precision_where_needed(backbone)
    return Classifier(
        backbone, found.width, classes, config.dropout, config.freeze_bn, mean=found.mean, std=found.std
    )  # fmt: skip


@torch.no_grad()
def judge_images(
    classifier: Classifier, images: torch.Tensor, labels: torch.Tensor, *, device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the sampling strategy asks a classifier: features (B, D) and confidences of labels (B,), on the CPU.

    Args:
        images: (B, 3, S, S) in [0, 1].
        dtype: of autocast on `device`, where the classifier is.
    """
    training = classifier.training
    classifier.eval()
    features, confidence = [], []
    for part, given in zip(images.split(256), labels.split(256), strict=True):
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            found = classifier.features(part.to(device))
        p = classifier.logits_of(found.float()).softmax(-1).cpu()
        features.append(found.float().cpu())
        confidence.append(p.gather(1, given.view(-1, 1)).flatten())
    classifier.train(training)
    return torch.cat(features), torch.cat(confidence)


def choose_classifier_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """The autocast type of a classifier, in training and in use: bfloat16 or float32, never float16.

    Without loss scaling small gradients vanish in float16, so a classifier trains in float32 where `precision` or the
    device asks for float16, and is measured in what it was trained in. The LDM may still use it.
    """
    dtype = choose_dtype(precision, device)
    return torch.float32 if dtype == torch.float16 else dtype
