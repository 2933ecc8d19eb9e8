"""Pictograms: the embedded benchmark, 3,525 pictures of 16 kinds of thing drawn in 5 styles (the domains).

Every picture is 64x64 RGB on white; all of them lie losslessly compressed in one file beside this module.

| domain   | drawings                          | images | licence              |
|----------|-----------------------------------|--------|----------------------|
| render3d | Microsoft Fluent Emoji 3D         | 671    | MIT                  |
| flat     | Twemoji                           | 683    | CC BY 4.0            |
| ink      | Symbola 9.17, by George Douros    | 553    | free for any use     |
| pixel    | GNU Unifont 15.0.01               | 670    | OFL-1.1              |
| clipart  | Open Clip Art 0.18, labelled here | 948    | public domain        |

`LICENCES.md` beside this module has the notices; `scripts/build_pictograms.py` rebuilds the file from the published
packages.

The strict protocol
-------------------
The four emoji domains draw the same codepoints (`keys`), so plain leave-one-domain-out also rewards recognising a
drawing that was seen in another style: a nearest-neighbour probe that learns nothing scores 46 to 53 % on an emoji
target where the same codepoints are allowed, and 30 to 37 % where they are not (chance: 6.25 %). Pictograms' own
protocol therefore keeps drawings apart by `folds`, which are stratified by class and the same for a key in every
domain. Trial t (0 to 4)

- tests on fold t of the target domain,
- validates on fold (t + 1) mod 5 of the source domains,
- trains on the other three folds of the source domains,

so no drawing of the test takes part in training or selection in any style, and five trials test every target image
once. DomainBed's random splits remain possible; results on them must be labelled as such.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.resources
import io
from pathlib import Path

import numpy as np
import numpy.typing as npt

DOMAINS = ("render3d", "flat", "ink", "pixel", "clipart")
CLASSES = (
    "mammal", "bird", "critter", "plant", "fruit_veg", "meal", "drink", "vehicle",
    "building", "clothing", "tool", "sky", "electronics", "sport", "face", "person",
)  # fmt: skip
FOLDS = 5
IMAGE_SIZE = 64
# `hash_pixels` of the images as they were published; the tests and the rebuild script compare with it.
PIXEL_HASH = "b994b28ff0f1be776f1e480ea2926baeadf9ec612cd6d3b2cb2e61f6dda30a10"


@dataclasses.dataclass(frozen=True, eq=False)
class Pictograms:
    """The images with their labels, in the order of `DOMAINS`; all fields have N entries."""

    images: npt.NDArray[np.uint8]  # (N, 64, 64, 3) RGB
    domains: npt.NDArray[np.str_]  # (N,) of DOMAINS
    classes: npt.NDArray[np.str_]  # (N,) of CLASSES
    keys: npt.NDArray[np.str_]  # (N,) the drawing: codepoints in hex ("1F3C4"), or the clip art's path
    names: npt.NDArray[np.str_]  # (N,) what it shows, in words ("person surfing")
    folds: npt.NDArray[np.int64]  # (N,) in 0..4

    def __len__(self) -> int:
        return len(self.keys)


def load_pictograms(path: Path | None = None) -> Pictograms:
    """All 3,525 pictograms, or those of another file of the same form (a rebuilt one) at `path`."""
    # Imported here so that listing the benchmarks stays instant.
    import pyarrow.parquet
    from PIL import Image

    source = path if path is not None else importlib.resources.files(__name__) / "pictograms.parquet"
    table = pyarrow.parquet.read_table(io.BytesIO(source.read_bytes()))
    images = np.empty((table.num_rows, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    for index, encoded in enumerate(table.column("image")):
        with Image.open(io.BytesIO(encoded.as_py())) as image:
            images[index] = np.asarray(image.convert("RGB"))
    return Pictograms(
        images=images,
        domains=np.array(table.column("domain").to_pylist()),
        classes=np.array(table.column("class").to_pylist()),
        keys=np.array(table.column("key").to_pylist()),
        names=np.array(table.column("name").to_pylist()),
        folds=np.array(table.column("fold").to_pylist(), dtype=np.int64),
    )


def hash_pixels(pictograms: Pictograms) -> str:
    """The SHA-256, in hex, over (domain, class, key, pixels) of all images in order."""
    digest = hashlib.sha256()
    rows = zip(pictograms.domains, pictograms.classes, pictograms.keys, pictograms.images, strict=True)
    for domain, label, key, image in rows:
        digest.update(f"{domain}\0{label}\0{key}\0".encode())
        digest.update(image.tobytes())
    return digest.hexdigest()
