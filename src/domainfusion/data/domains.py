"""Multi-domain data sets: a folder `root/domain/class/image` or with metadata, or an embedded benchmark, decoded once.

Images are decoded and resized once to a memory-mapped uint8 array in the cache, under a hash of the listing (paths,
sizes, modification times) and the working size; training reads that array and never waits for a decoder. Each image has
a checksum there (`decoded.py`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from domainfusion.config import DataConfig
from domainfusion.data.benchmarks import BENCHMARKS, canonical_name, several_spellings
from domainfusion.data.decoded import Index, checksum, open_decoded
from domainfusion.data.imagefolder import (
    HUB_PREFIX,
    find_metadata,
    list_metadata,
    materialise_hub,
    unused_metadata,
    why_no_metadata,
)
from domainfusion.data.images import DECODER, prepare_image, read_image
from domainfusion.data.listing import list_folder
from domainfusion.errors import DataError, UsageError, nearest, unknown_name
from domainfusion.files import cache_folder, hash_of, reserve, write_json
from domainfusion.registry import DATASETS

CACHE_FORMAT = 1


class UnreadableImage(DataError):
    """An image of a data set that cannot be decoded; `reason` names it, without what an option could do about it."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"{reason}; repair or remove it (`domainfusion data verify` lists them all), or leave such files out: "
            "--data.bad-images skip"
        )
        self.reason = reason


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
    """The image folder `root` as a data set; labels by class name over the union of the domains."""
    listing, notes = list_images(root)
    domains, classes, files = in_order(listing)
    for same in several_spellings(domains):
        notes.append(
            f"domains {', '.join(map(repr, same))} look like one in {len(same)} spellings: the images of a target "
            "would train under the other name"
        )
    for domain in domains:
        missing = [name for name in classes if name not in listing[domain]]
        if missing:
            notes.append(
                f"domain {domain} has no images of {len(missing)} of {len(classes)} classes: "
                f"{', '.join(missing[:8])}{' ...' if len(missing) > 8 else ''}; labels go by name and do not shift"
            )
    address = folder_address(root, files, config)
    folder = cache_folder() / "images" / address

    def build(target: Path) -> None:
        kept: list[tuple[str, str, Path]] = []
        sums: list[int] = []
        content = hashlib.blake2b(digest_size=16)
        bad: list[str] = []
        array = np.lib.format.open_memmap(
            target / "images.npy", "w+", np.uint8, (len(files), config.size, config.size, 3)
        )
        reserve(target / "images.npy", array.offset + array.nbytes)
        for domain, name, path in tqdm(files, desc="decoding images", unit="image", disable=len(files) < 500):
            try:
                pixels = read_image(path, config.size)
            except DataError as error:
                if config.bad_images == "error":
                    raise UnreadableImage(str(error)) from error
                bad.append(path.relative_to(root).as_posix())
                continue
            array[len(kept)] = pixels
            sums.append(checksum(pixels))
            content.update(pixels.data)
            kept.append((domain, name, path))
        array.flush()
        if bad:  # rewrite without the unused rows at the end
            np.save(target / "images.npy", np.array(array[: len(kept)]))
        np.save(target / "sums.npy", np.array(sums, dtype=np.uint64))
        numbers = {name: number for number, name in enumerate(classes)}
        described = {
            "domains": domains, "classes": classes, "labels": [numbers[name] for _, name, _ in kept],
            "domain_of": [domains.index(domain) for domain, _, _ in kept],
            "keys": [path.relative_to(root).as_posix() for _, _, path in kept],
        }  # fmt: skip
        # A copy of a folder, or a folder whose files were touched, is the same data set to all that is kept of it.
        fingerprint = hash_of([described, content.hexdigest(), CACHE_FORMAT])
        write_json(target / "index.json", {**described, "bad": bad, "fingerprint": fingerprint})

    def decode(index: Index, row: int) -> np.ndarray:
        return read_image(root / index["keys"][row], config.size)

    index, images = open_decoded(folder, build, decode)
    if index["bad"]:
        notes.append(f"left out {len(index['bad'])} unreadable images: {', '.join(index['bad'][:5])}")
    present = set(index["domain_of"])
    for number, domain in enumerate(domains):
        if number not in present:
            raise DataError(f"domain {domain} of {root} has no readable image")
    return _dataset(root.resolve().name, address, index, images, (), tuple(notes))


def in_order(
    listing: dict[str, dict[str, list[Path]]],
) -> tuple[list[str], list[str], list[tuple[str, str, Path]]]:
    """Domains, classes (the union over the domains) and (domain, class, path) of all files, as rows are numbered."""
    domains, classes = sorted(listing), sorted({name for domain in listing.values() for name in domain})
    return domains, classes, [(d, c, path) for d in domains for c in sorted(listing[d]) for path in listing[d][c]]


def folder_address(root: Path, files: list[tuple[str, str, Path]], config: DataConfig) -> str:
    """The hash under which the decoded images (domain, class, path) of a folder are cached.

    Of paths, sizes, times, and the working size; where metadata gives domain and class, of these too.
    """
    stats = [_stat(path) for _, _, path in files]
    signature = [
        [path.relative_to(root).as_posix(), s.st_size, s.st_mtime_ns]
        + ([] if path.relative_to(root).parts[:2] == (domain, name) else [domain, name])
        for (domain, name, path), s in zip(files, stats, strict=True)
    ]
    return hash_of([signature, config.size, config.bad_images, CACHE_FORMAT, DECODER])


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError:  # a link to nothing
        return path.lstat()


def list_images(root: Path) -> tuple[dict[str, dict[str, list[Path]]], list[str]]:
    """The image files of `root`, by its metadata where that tells domains, else by its folders; as `list_folder`."""
    metadata, unused = find_metadata(root), unused_metadata(root)
    if metadata:
        listing, notes = list_metadata(root, metadata)
        return listing, unused + notes
    try:
        listing, notes = list_folder(root)
    except DataError as error:
        raise DataError(f"{error}{why_no_metadata(root)}") from error
    return listing, unused + notes


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
