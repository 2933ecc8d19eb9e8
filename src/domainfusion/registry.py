"""Names that users may type, each with one line of facts: algorithms, backbones, LDMs. Importing it costs nothing.

Algorithms and trackers may be the user's own: registered by `register_algorithm`, named by an import path
(`--algorithm my_module:MyAlgorithm`), or told by an installed package as an entry point of the registry's group.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import importlib
import importlib.metadata
import re
from collections.abc import Callable
from typing import Any, TypeVar

from domainfusion.errors import UsageError, unknown_name

T = TypeVar("T", bound=type)
IMPORT_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


@dataclasses.dataclass(frozen=True)
class Entry:
    """A named thing: what it is, where it is published, and where its code is (`module:attribute`)."""

    name: str
    summary: str
    source: str
    location: str = ""


class Registry:
    """A collection of `Entry`, by name. Refuses duplicates; an unknown name is answered with the nearest one.

    Args:
        group: where classes of the user's own are allowed, the group of entry points that name them.
    """

    def __init__(self, kind: str, entries: list[Entry], group: str = "") -> None:
        self.kind, self.group = kind, group
        self.entries: dict[str, Entry] = {}
        self._classes: dict[str, type] = {}
        self._discovered = not group
        for entry in entries:
            self.register(entry)

    def register(self, entry: Entry) -> None:
        """Add an entry; `ValueError` where the name is taken."""
        if entry.name in self.entries:
            raise ValueError(f"{self.kind} {entry.name!r} is registered already")
        self.entries[entry.name] = entry

    def add(self, name: str, kind: type, *, summary: str = "", source: str = "") -> None:
        """Add a class of the user's own; without a summary the first line of its docstring is taken.

        Registering a class of the same name and place again replaces it, as running a notebook's cell again does.
        """
        location = f"{kind.__module__}:{kind.__qualname__}"
        if name in self._classes and self.entries[name].location == location:
            del self.entries[name]
        self.register(Entry(name, summary or _first_line(kind), source or kind.__module__, location))
        self._classes[name] = kind

    def remove(self, name: str) -> None:
        """Take out what `add` put in."""
        del self.entries[name], self._classes[name]

    def names(self, pattern: str = "*") -> list[str]:
        """The names that match a shell pattern, sorted."""
        self._discover()
        return sorted(fnmatch.filter(self.entries, pattern))

    def get(self, name: str) -> Entry:
        """The entry of that name. Raises `UsageError` with the nearest name."""
        if name not in self.entries and self.group and IMPORT_PATH.fullmatch(name):
            return Entry(name, "a class of your own", name.partition(":")[0], name)
        if name not in self.entries:
            self._discover()
        if name not in self.entries:
            raise unknown_name(self.kind, name, self.entries)
        return self.entries[name]

    def load(self, name: str) -> Any:
        """The object that the entry points to, imported now. Raises `UsageError` where there is none."""
        if name in self._classes:
            return self._classes[name]
        module, attribute = self.get(name).location.split(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise  # the module is there, and lacks another one
            raise UsageError(
                f"{self.kind} {name!r}: there is no module {error.name}; is its folder on PYTHONPATH?"
            ) from error
        except AttributeError as error:
            raise UsageError(f"{self.kind} {name!r}: the module {module} has no {attribute}") from error

    def _discover(self) -> None:
        """Take in what installed packages tell by entry points; what is built in goes first."""
        if self._discovered:
            return
        self._discovered = True
        for point in importlib.metadata.entry_points(group=self.group):
            package = point.dist.name if point.dist is not None else point.value
            if point.name not in self.entries and IMPORT_PATH.fullmatch(point.value):
                self.register(Entry(point.name, f"of the package {package}", package, point.value))


def _first_line(kind: type) -> str:
    return (kind.__doc__ or "a class of your own").strip().splitlines()[0]


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
    group="domainfusion.algorithms",
)

PRESETS = Registry(
    "preset",
    [
        Entry("quick", "DomainFusion with one candidate of each image, made once in three denoising steps", "ours"),
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

TRACKERS = Registry(
    "tracker",
    [
        Entry(
            "tensorboard",
            "event files in RUN/tensorboard",
            "extra: track",
            "domainfusion.tracking.tensorboard:TensorBoard",
        ),
        Entry(
            "wandb",
            "Weights & Biases, online or offline",
            "pip install wandb",
            "domainfusion.tracking.wandb:WeightsAndBiases",
        ),
        Entry("mlflow", "an MLflow server or folder", "pip install mlflow", "domainfusion.tracking.mlflow:MLflow"),
    ],
    group="domainfusion.trackers",
)


def register_algorithm(name: str, *, summary: str = "", source: str = "") -> Callable[[T], T]:
    """A decorator that makes a subclass of `domainfusion.Algorithm` known as `name`, in this process.

    So that the command line knows it too, name it by its import path, or by an entry point of the group
    `domainfusion.algorithms`. Raises `ValueError` where the name is taken.
    """

    def register(kind: T) -> T:
        ALGORITHMS.add(name, kind, summary=summary, source=source)
        return kind

    return register
