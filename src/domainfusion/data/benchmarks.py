"""Facts about the five benchmarks of the domain-generalization literature. No image is read here, and no torch.

Domains come in sorted order, as DomainBed numbers them; counts are those of the versions that DomainBed downloads.
What each figure and licence was checked against, and what could not be, is in docs/data.md, "What is verified".
"""

from __future__ import annotations

import dataclasses
import functools
import unicodedata
from collections.abc import Iterable, Mapping

from domainfusion.data.class_names import DOMAIN_NET, OFFICE_HOME
from domainfusion.errors import unknown_name


@dataclasses.dataclass(frozen=True)
class Version:
    """Another known version of a data set: its images by domain, or in all, and how it came about."""

    meaning: str
    counts: tuple[int, ...] = ()
    total: int | None = None


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A data set as the literature uses it."""

    name: str  # as DomainBed calls it
    folder: str  # of its images, below the data folder
    domains: tuple[str, ...]
    counts: tuple[int, ...]  # images of each domain
    class_names: tuple[str, ...]  # class folders, sorted
    source: str
    origin: str  # where its authors publish it
    licence: str
    class_counts: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)  # by domain, where certain
    domain_aliases: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)  # other spellings
    class_aliases: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    versions: tuple[Version, ...] = ()
    several_classes: bool = False  # an image may show several of its classes, and lies in the folder of each

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def domain_of(self, folder: str) -> str | None:
        """The domain that a folder called `folder` holds, in whatever spelling; None where it is none of them."""
        return self._domain_spellings.get(plain(folder))

    def class_of(self, folder: str) -> str | None:
        """The class that a folder called `folder` holds, in whatever spelling; None where it is none of them."""
        return self._class_spellings.get(plain(folder))

    def described(self) -> str:
        """The facts in a few lines: source, folder, classes, domains with their images, origin, licence."""
        named = f" ({', '.join(self.class_names)})" if self.classes <= 10 else ""
        domains = ", ".join(f"{name} {count}" for name, count in zip(self.domains, self.counts, strict=True))
        return (
            f"{self.name}, a folder {self.folder} [{self.source}]\n"
            f"  domains: {domains}; {sum(self.counts):,} images in all\n"
            f"  classes: {self.classes}{named}\n"
            f"  origin:  {self.origin}\n"
            f"  licence: {self.licence}"
        )

    @functools.cached_property
    def _domain_spellings(self) -> dict[str, str]:
        return _spellings(self.domains, self.domain_aliases)

    @functools.cached_property
    def _class_spellings(self) -> dict[str, str]:
        return _spellings(self.class_names, self.class_aliases)


@functools.lru_cache(maxsize=10_000)  # the same few folders are asked for again and again
def plain(name: str) -> str:
    """`name` without case, spaces and punctuation, in one of Unicode's forms, to compare spellings.

    >>> plain("Real World") == plain("real_world")
    True
    """
    return "".join(letter for letter in unicodedata.normalize("NFKC", name).casefold() if letter.isalnum())


def several_spellings(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Those of `names` that differ in case, blanks and punctuation alone, together.

    >>> several_spellings(["photo", "cartoon ", "sketch", "cartoon"])
    [('cartoon', 'cartoon ')]
    """
    found: dict[str, list[str]] = {}
    for name in sorted(set(names)):
        found.setdefault(plain(name) or name, []).append(name)
    return [tuple(same) for same in found.values() if len(same) > 1]


def _spellings(names: Iterable[str], aliases: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """{plain spelling: name}."""
    return {plain(spelling): name for name in names for spelling in (name, *aliases.get(name, ()))}


BENCHMARKS = {
    entry.name: entry
    for entry in (
        Benchmark(
            "PACS", "PACS", ("art_painting", "cartoon", "photo", "sketch"), (2048, 2344, 1670, 3929),
            ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person"),
            "Li et al., ICCV 2017", "http://www.eecs.qmul.ac.uk/~dl307/project_iccv2017",
            "none stated by its authors; images from Caltech256, Sketchy, TU-Berlin and Google Images; for research",
            class_counts={
                "art_painting": (379, 255, 285, 184, 201, 295, 449), "cartoon": (389, 457, 346, 135, 324, 288, 405),
                "photo": (189, 202, 182, 186, 199, 280, 432), "sketch": (772, 740, 753, 608, 816, 80, 160),
            },
            domain_aliases={"art_painting": ("art", "paintings"), "photo": ("photos",)},
        ),
        Benchmark(
            "VLCS", "VLCS", ("Caltech101", "LabelMe", "SUN09", "VOC2007"), (1415, 2656, 3282, 3376),
            ("bird", "car", "chair", "dog", "person"),
            "Fang et al., ICCV 2013", "http://www.eecs.qmul.ac.uk/~dl307/project_iccv2017 (as DomainBed has it)",
            "none of its own; that of Caltech101, LabelMe, SUN09 and PASCAL VOC 2007 for their images; for research",
            class_counts={"Caltech101": (237, 123, 118, 67, 870)},
            domain_aliases={
                "Caltech101": ("caltech", "C"), "LabelMe": ("L",), "SUN09": ("sun", "S"),
                "VOC2007": ("voc", "pascal", "V"),
            },
            # Caltech101's by class: sums of that data set's own categories (docs/data.md).
            # The release in full/train/crossval/test folders numbers the classes in alphabetical order.
            class_aliases={"bird": ("0",), "car": ("1",), "chair": ("2",), "dog": ("3",), "person": ("4",)},
        ),
        Benchmark(
            "OfficeHome", "office_home", ("Art", "Clipart", "Product", "Real World"), (2427, 4365, 4439, 4357),
            OFFICE_HOME, "Venkateswara et al., CVPR 2017", "http://hemanthdv.org/OfficeHome-Dataset/",
            "images under their owners' rights, offered as fair use for non-commercial research and education",
            domain_aliases={"Real World": ("Real",)},
        ),
        Benchmark(
            "TerraIncognita", "terra_incognita", ("location_100", "location_38", "location_43", "location_46"),
            (4879, 9767, 4020, 6122),
            ("bird", "bobcat", "cat", "coyote", "dog", "empty", "opossum", "rabbit", "raccoon", "squirrel"),
            "Beery et al., ECCV 2018", "https://lila.science/datasets/caltech-camera-traps",
            "Community Data License Agreement, permissive variant 1.0",
            domain_aliases={
                "location_100": ("L100", "100"), "location_38": ("L38", "38"), "location_43": ("L43", "43"),
                "location_46": ("L46", "46"),
            },
            versions=(
                Version(
                    "made from the five annotation files offered since 2024; published figures before that are on "
                    "24,788 images", total=24330,
                ),
            ),
            several_classes=True,
        ),
        Benchmark(
            "DomainNet", "domain_net", ("clipart", "infograph", "painting", "quickdraw", "real", "sketch"),
            (48129, 51605, 72266, 172500, 172947, 69128), DOMAIN_NET, "Peng et al., ICCV 2019",
            "https://ai.bu.edu/M3SDA/",
            "images under their owners' rights, offered as fair use for non-commercial research and education",
            domain_aliases={
                "clipart": ("clip",), "infograph": ("info",), "painting": ("paint",), "quickdraw": ("quick",),
            },
            versions=(
                Version(
                    "the original release, with its duplicates: remove those listed (domainfusion data prepare "
                    "DomainNet --duplicates FILE)", counts=(48833, 53201, 75759, 172500, 175327, 70386),
                ),
            ),
        ),
    )
}  # fmt: skip


def canonical_name(name: str) -> str:
    """The benchmark's name where `name` is it or its folder, in whatever case; else `name` itself.

    >>> canonical_name("office_home"), canonical_name("pacs"), canonical_name("my-images")
    ('OfficeHome', 'PACS', 'my-images')
    """
    for entry in BENCHMARKS.values():
        if name.casefold() in (entry.name.casefold(), entry.folder.casefold()):
            return entry.name
    return name


def get_benchmark(name: str) -> Benchmark:
    """The benchmark called `name`, or whose folder is. Raises `UsageError` with the nearest name."""
    found = BENCHMARKS.get(canonical_name(name))
    if found is None:
        raise unknown_name("benchmark", name, BENCHMARKS)
    return found


def recognise(domains: Iterable[str], classes: Iterable[str]) -> Benchmark | None:
    """The benchmark that folders of these names are, or None; names count in any spelling.

    At least one of its domains must be there, and half of its classes; at least half of the domains that are there,
    and 80 % of the classes, must be its. So an incomplete or mistaken copy is recognised, and a data set that merely
    shares a few common names is not.
    """
    domains, classes = set(domains), set(classes)
    best, best_score = None, 0.0
    for entry in BENCHMARKS.values():
        known = [name for name in domains if entry.domain_of(name)]
        shared = [name for name in classes if entry.class_of(name)]
        named = {entry.class_of(name) for name in shared}
        if not known or 2 * len(known) < len(domains) or 2 * len(named) < entry.classes:
            continue
        if len(shared) < 0.8 * len(classes):
            continue
        score = len(known) / len(entry.domains) + len(shared) / len(classes) + len(named) / entry.classes
        if score > best_score:
            best, best_score = entry, score
    return best
