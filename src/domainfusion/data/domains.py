"""Multi-domain data sets: an image folder (`folders.py`), or the embedded benchmark, decoded once.

Images are decoded and resized once to a memory-mapped uint8 array in the cache; training reads it and never waits
for a decoder. Each image has a checksum there (`decoded.py`).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from domainfusion.config import DataConfig
from domainfusion.data.benchmarks import BENCHMARKS, canonical_name
from domainfusion.data.decoded import CACHE_FORMAT, Index, checksum, open_decoded
from domainfusion.data.folders import UnreadableImage, decode_folder
from domainfusion.data.hub import HUB_PREFIX, materialise_hub
from domainfusion.data.images import prepare_image
from domainfusion.errors import DataError, UsageError, nearest, unknown_name
from domainfusion.files import cache_folder, hash_of, write_json
from domainfusion.registry import DATASETS


@dataclasses.dataclass(frozen=True)
class MultiDomainDataset:
    """Labelled images of several domains. Row i of every array is image i; domains come in sorted order."""

    name: str
    domains: tuple[str, ...]
    classes: tuple[str, ...]
    images: np.ndarray  # (N, S, S, 3) uint8, memory-mapped
    labels: np.ndarray  # (N,) int64, index into classes
    domain_of: np.ndarray  # (N,) int64, index into domains
    keys: tuple[str, ...]  # (N,) where each image comes from: a relative path, or a benchmark's own key
    fingerprint: str  # of what the data set holds: pixels at the working size, labels, domains, names
    folds: np.ndarray | None = None  # (N,) int64, where the data set fixes its own folds
    class_words: tuple[str, ...] = ()  # how a prompt names each class; the class name itself where empty
    notes: tuple[str, ...] = ()  # what is odd about the data set, for people

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def size(self) -> int:
        """Side of the images in pixels."""
        return int(self.images.shape[1])

    def index_of(self, domain: str) -> int:
        """The number of a domain. Raises `UsageError` with the nearest name."""
        if domain not in self.domains:
            raise unknown_name("domain", domain, self.domains)
        return self.domains.index(domain)

    def rows(self, domain: int) -> np.ndarray:
        """The row numbers of a domain's images, in DomainBed's (ImageFolder's) order."""
        return np.flatnonzero(self.domain_of == domain)

    def words(self) -> tuple[str, ...]:
        """How a prompt names each class."""
        return self.class_words or tuple(map(words_of, self.classes))


def words_of(name: str) -> str:
    """A class name, as folders have it, in the words of a prompt.

    >>> words_of("Palm_Tree")
    'palm tree'
    """
    return name.replace("_", " ").replace("-", " ").lower()


def load_dataset(data: str, config: DataConfig) -> MultiDomainDataset:
    """The data set called `data`: an embedded benchmark's name, a folder, or `hf://OWNER/NAME` of the hub.

    A folder is laid out as `root/domain/class/image`, or holds metadata that names each image's label and domain.

    Raises:
        UsageError: neither a known name nor a folder.
        DataError: a folder of another form, an empty domain, an unreadable image.
    """
    if data == "pictograms":
        return _load_pictograms(config)
    if Path(data).is_dir():
        return load_folder(Path(data), config)
    if data.startswith(HUB_PREFIX):
        return load_folder(materialise_hub(data), config)
    if "/" in data or data.startswith("."):
        raise UsageError(
            f"there is no folder {data}; give root of domain/class/image, or one of: pictograms; a data "
            "set of the Hugging Face hub is hf://OWNER/NAME"
        )
    if (name := canonical_name(data)) in BENCHMARKS:
        raise UsageError(
            f"there is no folder {data} here; {name} does not come with the package: "
            f"`domainfusion data download {name}` says where it is, `domainfusion data prepare` makes its folder"
        )
    if nearest(data, DATASETS.entries, 0.6):
        raise unknown_name("data set", data, DATASETS.entries)
    raise UsageError(
        f"there is no folder {data} here, and no embedded data set of that name ({', '.join(sorted(DATASETS.entries))})"
    )


def load_recorded(data: str, config: DataConfig, run: Path) -> MultiDomainDataset:
    """The data set `data` that the run in the folder `run` wrote down, read as the run read it.

    Raises `DataError` where it is gone, or an image that the run has read cannot be decoded any more.
    """
    if data not in DATASETS.entries and not data.startswith(HUB_PREFIX) and not Path(data).is_dir():
        raise DataError(f"the images of the run in {run} are gone: there is no folder {data}; put it back")
    try:
        return load_dataset(data, config)
    except UnreadableImage as error:
        raise DataError(f"{error.reason}; the run in {run} has read this image: restore it") from error


# How prompts name the classes of Pictograms, in words that captions of pictures use.
PICTOGRAM_WORDS = {
    "bird": "animal bird", "building": "building", "clothing": "clothing", "critter": "animal critter",
    "drink": "drink", "electronics": "electronics", "face": "face", "fruit_veg": "fruit vegetable food",
    "mammal": "animal mammal", "meal": "meal food", "person": "person", "plant": "plant", "sky": "sky weather",
    "sport": "sport", "tool": "tool", "vehicle": "vehicle transport",
}  # fmt: skip


def _load_pictograms(config: DataConfig) -> MultiDomainDataset:
    from domainfusion.data.pictograms import PIXEL_HASH, load_pictograms

    address = hash_of(["pictograms", PIXEL_HASH, config.size, CACHE_FORMAT])
    folder = cache_folder() / "images" / address

    def in_rows(table: Any) -> np.ndarray:
        """Where in the table each row of the data set is."""
        return np.lexsort((np.arange(len(table.keys)), table.classes, table.domains))

    def build(target: Path) -> None:
        table = load_pictograms()
        domains, classes = sorted(set(table.domains)), sorted(set(table.classes))
        order = in_rows(table)
        images = np.stack([prepare_image(Image.fromarray(table.images[i]), config.size) for i in order])
        np.save(target / "images.npy", images)
        np.save(target / "sums.npy", np.array([checksum(image) for image in images], dtype=np.uint64))
        write_json(
            target / "index.json",
            {
                "domains": domains, "classes": classes,
                "labels": [classes.index(table.classes[i]) for i in order],
                "domain_of": [domains.index(table.domains[i]) for i in order],
                "keys": [str(table.keys[i]) for i in order], "folds": [int(table.folds[i]) for i in order],
            },
        )  # fmt: skip

    def decode(index: Index, row: int) -> np.ndarray:
        table = load_pictograms()
        return prepare_image(Image.fromarray(table.images[in_rows(table)[row]]), config.size)

    index, images = open_decoded(folder, build, decode)
    words = tuple(PICTOGRAM_WORDS[name] for name in index["classes"])
    return _dataset("pictograms", address, index, images, words, ())


def load_folder(root: Path, config: DataConfig) -> MultiDomainDataset:
    """The image folder `root` as a data set (`decode_folder`, with its errors)."""
    address, index, images, notes = decode_folder(root, config)
    return _dataset(root.resolve().name, address, index, images, (), tuple(notes))


def _dataset(
    name: str, address: str, index: dict[str, Any], images: np.ndarray, words: tuple[str, ...], notes: tuple[str, ...]
) -> MultiDomainDataset:
    folds = np.array(index["folds"], dtype=np.int64) if "folds" in index else None
    return MultiDomainDataset(
        name=name, domains=tuple(index["domains"]), classes=tuple(index["classes"]), images=images,
        labels=np.array(index["labels"], dtype=np.int64), domain_of=np.array(index["domain_of"], dtype=np.int64),
        keys=tuple(index["keys"]), fingerprint=index.get("fingerprint", address), folds=folds, class_words=words,
        notes=notes,
    )  # fmt: skip
