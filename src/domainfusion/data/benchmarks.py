"""Facts about the five benchmarks of the domain-generalization literature. No image is read here, and no torch.

Counts are those of the versions that DomainBed downloads; domains come in sorted order, as DomainBed numbers them.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A data set as the literature uses it."""

    name: str  # as DomainBed calls it
    folder: str  # of its images, below the data folder
    domains: tuple[str, ...]
    counts: tuple[int, ...]  # images of each domain
    classes: int
    source: str


BENCHMARKS = {
    entry.name: entry
    for entry in (
        Benchmark(
            "PACS", "PACS", ("art_painting", "cartoon", "photo", "sketch"), (2048, 2344, 1670, 3929), 7,
            "Li et al., ICCV 2017",
        ),
        Benchmark(
            "VLCS", "VLCS", ("Caltech101", "LabelMe", "SUN09", "VOC2007"), (1415, 2656, 3282, 3376), 5,
            "Fang et al., ICCV 2013",
        ),
        Benchmark(
            "OfficeHome", "office_home", ("Art", "Clipart", "Product", "Real World"), (2427, 4365, 4439, 4357), 65,
            "Venkateswara et al., CVPR 2017",
        ),
        Benchmark(
            "TerraIncognita", "terra_incognita", ("location_100", "location_38", "location_43", "location_46"),
            (4879, 9767, 4020, 6122), 10, "Beery et al., ECCV 2018",
        ),
        Benchmark(
            "DomainNet", "domain_net", ("clipart", "infograph", "painting", "quickdraw", "real", "sketch"),
            (48129, 51605, 72266, 172500, 172947, 69128), 345, "Peng et al., ICCV 2019",
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
