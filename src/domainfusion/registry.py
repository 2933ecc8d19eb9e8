"""Names that users may type, each with one line of facts: algorithms, backbones, LDMs. Importing it costs nothing."""

from __future__ import annotations

import dataclasses
import fnmatch
import importlib
from typing import Any

from domainfusion.errors import unknown_name


@dataclasses.dataclass(frozen=True)
class Entry:
    """A named thing: what it is, where it is published, and where its code is (`module:attribute`)."""

    name: str
    summary: str
    source: str
    location: str = ""


class Registry:
    """A collection of `Entry`, by name. Refuses duplicates; an unknown name is answered with the nearest one."""

    def __init__(self, kind: str, entries: list[Entry]) -> None:
        self.kind = kind
        self.entries: dict[str, Entry] = {}
        for entry in entries:
            self.register(entry)

    def register(self, entry: Entry) -> None:
        """Add an entry; `ValueError` where the name is taken."""
        if entry.name in self.entries:
            raise ValueError(f"{self.kind} {entry.name!r} is registered already")
        self.entries[entry.name] = entry

    def names(self, pattern: str = "*") -> list[str]:
        """The names that match a shell pattern, sorted."""
        return sorted(fnmatch.filter(self.entries, pattern))

    def get(self, name: str) -> Entry:
        """The entry of that name. Raises `UsageError` with the nearest name."""
        if name not in self.entries:
            raise unknown_name(self.kind, name, self.entries)
        return self.entries[name]

    def load(self, name: str) -> Any:
        """The object that the entry points to, imported now."""
        module, attribute = self.get(name).location.split(":")
        return getattr(importlib.import_module(module), attribute)


ALGORITHMS = Registry(
    "algorithm",
    [
        Entry("erm", "cross-entropy on the source domains", "Vapnik 1998", "domainfusion.algorithms.erm:ERM"),
        Entry(
            "domainfusion",
            "latent distillation and online augmentation by a frozen LDM",
            "Huang et al., ECCV 2024",
            "domainfusion.algorithms.domainfusion:DomainFusion",
        ),
        Entry(
            "cdga",
            "training images translated by an LDM towards every source domain, then cross-entropy on all of them",
            "Hemati et al., arXiv 2312.05387",
            "domainfusion.algorithms.cdga:CDGA",
        ),
        Entry(
            "dsi",
            "cross-entropy; test images translated to the source domains by LDMs fine-tuned on each",
            "Yu et al., CVPR 2023",
            "domainfusion.algorithms.dsi:DSI",
        ),
        Entry(
            "diffusion_classifier",
            "zero-shot: the class whose prompt predicts the noise best, in stages; nothing is trained",
            "Li et al., ICCV 2023",
            "domainfusion.algorithms.diffusion_classifier:DiffusionClassifier",
        ),
        Entry(
            "diffusion_net",
            "zero-shot: the class whose prompt restores the image best, pruned by paired t-tests; nothing is trained",
            "Clark & Jaini, NeurIPS 2023",
            "domainfusion.algorithms.diffusion_net:DiffusionNet",
        ),
        Entry(
            "mixup",
            "images and labels of different domains mixed",
            "Zhang et al., ICLR 2018; Wang et al., ICASSP 2020",
            "domainfusion.algorithms.mixup:Mixup",
        ),
        Entry(
            "mixstyle",
            "feature statistics mixed after early stages of the backbone",
            "Zhou et al., ICLR 2021",
            "domainfusion.algorithms.mixstyle:MixStyle",
        ),
        Entry(
            "coral",
            "feature means and covariances of the domains drawn together",
            "Sun and Saenko, ECCV 2016 workshops",
            "domainfusion.algorithms.coral:CORAL",
        ),
        Entry(
            "groupdro",
            "the domains that do worst weigh most",
            "Sagawa et al., ICLR 2020",
            "domainfusion.algorithms.groupdro:GroupDRO",
        ),
        Entry(
            "rsc",
            "the features that matter most are muted while training",
            "Huang et al., ECCV 2020",
            "domainfusion.algorithms.rsc:RSC",
        ),
    ],
)

PRESETS = Registry(
    "preset",
    [
        Entry("paper", "DomainFusion's own experiments, with their search: Stable Diffusion, 120 epochs", "ECCV 2024"),
        Entry(
            "domainbed-paper", "DomainBed as in its paper: ResNet-50, BatchNorm frozen, 5001 steps", "arXiv 2007.01434"
        ),
        Entry(
            "domainbed-head", "DomainBed's code since July 2024: other ImageNet weights, BatchNorm trains", "its code"
        ),
    ],
)

BACKBONES = Registry(
    "backbone",
    [
        Entry("resnet10t", "5 M parameters, trains from scratch on a CPU (default)", "timm"),
        Entry("resnet18", "11 M parameters", "He et al. 2016; timm"),
        Entry(
            "efficientnet_lite0",
            "3 M parameters; with --pretrained ImageNet from a package, offline (extra: lite)",
            "Tan & Le 2019; TensorFlow",
        ),
        Entry("resnet50.tv_in1k", "the paper's first backbone, ImageNet", "He et al. 2016; timm"),
        Entry("regnety_160.swag_ft_in1k", "the paper's second backbone, SWAG", "Singh et al. 2022; timm"),
    ],
)

LDMS = Registry(
    "LDM",
    [
        Entry("embedded", "small LDM of emoji and icons, 64x64, inside the package", "its model card"),
        Entry("CompVis/stable-diffusion-v1-4", "the paper's LDM, 512x512 (hub id)", "Rombach et al. 2022"),
    ],
)

DATASETS = Registry(
    "data set",
    [
        Entry("pictograms", "5 drawing styles, 16 classes, 3,525 images of 64x64, embedded", "its LICENCES.md"),
    ],
)
