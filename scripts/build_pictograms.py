"""Rebuilds the embedded benchmark Pictograms from the published packages its drawings come from.

    python scripts/build_pictograms.py FOLDER [--output pictograms.parquet]

FOLDER keeps the packages: what is not in it yet is fetched by `npm pack` and `apt-get download` (Debian 12, after
`apt-get update`). Needs resvg-py and fonttools. `scripts/pictograms/` says which drawings take part, and their class
and fold; everything else is drawn here. At the end the script compares its pixels with the committed file's, and exits
with 1 where they differ: under other versions of the rasterizers (resvg, FreeType, Pillow) by a few grey levels, and
in the clip arts that hold text by the fonts that are installed.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import hashlib
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pictogram_painters import (
    Picture,
    clipart_painter,
    fluent_painter,
    normalize_key,
    symbola_painter,
    twemoji_painter,
    unifont_painter,
)
from PIL import Image

from domainfusion.data import pictograms as published
from domainfusion.files import atomic_path, make_folder

TABLES = Path(__file__).parent / "pictograms"
FACE_LIMIT = 72  # `capped` keeps this many faces a domain, or one class would be a fifth of its images
LICENCES = {
    "render3d": "MIT", "flat": "CC-BY-4.0", "ink": "Symbola free-use", "pixel": "OFL-1.1", "clipart": "Public domain",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Package:
    """A published package, fetched by its own client and unpacked."""

    name: str
    version: str
    debian: bool = False

    def unpack(self, folder: Path) -> Path:
        """The package's unpacked folder below `folder`; fetched first where it is not there."""
        target = folder / f"{self.name.replace('/', '-').lstrip('@')}-{self.version.replace(':', '-')}"
        if target.exists():
            return target
        download = make_folder(folder / f"{target.name}.download")
        client = ["apt-get", "download", f"{self.name}={self.version}"]
        if not self.debian:
            client = ["npm", "pack", "--silent", f"{self.name}@{self.version}"]
        print("fetching:", *client, file=sys.stderr)
        subprocess.run(client, cwd=download, check=True, stdout=subprocess.DEVNULL)
        (archive,) = (path for path in download.iterdir() if path.suffix in (".deb", ".tgz"))
        unpacked = make_folder(download / "unpacked")
        if self.debian:
            subprocess.run(["dpkg", "-x", str(archive), str(unpacked)], check=True)
        else:
            with tarfile.open(archive) as file:
                file.extractall(unpacked, filter="data")
        # The name appears only once all is unpacked, so an interrupted run starts this package again.
        unpacked.rename(target)
        return target


FLUENT = Package("@lobehub/fluent-emoji-3d", "1.1.0")
TWEMOJI = Package("@iconify-json/twemoji", "1.2.5")
LABELS = Package("emojibase-data", "17.0.0")
SYMBOLA = Package("fonts-symbola", "2.60-1.1", debian=True)
UNIFONT = Package("fonts-unifont", "1:15.0.01-2", debian=True)
CLIPART = Package("openclipart-svg", "1:0.18+dfsg-19", debian=True)


def list_drawings(labels: Path) -> list[dict[str, Any]]:
    """The rows of the benchmark in its order, without images; emoji are named by their CLDR label in `labels`."""
    entries = json.loads((labels / "package" / "en" / "data.json").read_text(encoding="utf-8"))
    label_of = {normalize_key(entry["hexcode"]): entry["label"] for entry in entries}
    emoji, clipart = read_table("emoji"), read_table("clipart")
    if wrong := [row["key"] for row in emoji if label_of[row["key"]] != row["name"]]:
        sys.exit(f"scripts/pictograms/emoji.csv names {', '.join(wrong)} otherwise than {LABELS.name} {LABELS.version}")
    rows = []
    for domain in published.DOMAINS[:-1]:
        drawn = [row for row in emoji if domain in row["domains"].split()]
        faces = [row["key"] for row in drawn if row["class"] == "face"]
        kept = sorted(faces, key=lambda key: hashlib.sha256(key.encode()).hexdigest())[:FACE_LIMIT]
        dropped = set(faces) - set(kept)
        rows += [row | {"domain": domain, "capped": row["key"] not in dropped, "author": None} for row in drawn]
    rows += [row | {"domain": "clipart", "capped": row["capped"] == "1"} for row in clipart]
    return rows


def read_table(name: str) -> list[dict[str, Any]]:
    """The rows of `scripts/pictograms/NAME.csv`."""
    with open(TABLES / f"{name}.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def encode(picture: Picture) -> bytes:
    """A picture as lossless WebP (smaller than optimized PNG in all five domains)."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "WEBP", lossless=True, quality=100, method=6)
    return buffer.getvalue()


def write_parquet(path: Path, pictures: list[Picture], rows: list[dict[str, Any]]) -> None:
    """Write pictures and rows (both N) to one file."""

    def column(name: str) -> list[Any]:
        return [row[name] for row in rows]

    table = pa.table(
        {
            "image": pa.array([encode(picture) for picture in pictures], pa.binary()),
            "domain": column("domain"),
            "class": column("class"),
            "key": column("key"),
            "name": column("name"),
            "fold": pa.array([int(fold) for fold in column("fold")], pa.int8()),
            "capped": pa.array(column("capped"), pa.bool_()),
            "licence": [LICENCES[domain] for domain in column("domain")],
            "author": pa.array(column("author"), pa.string()),
        }
    )
    strings = ["domain", "class", "licence", "author"]
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", compression_level=19, use_dictionary=strings)


def report_differences(built: published.Pictograms) -> bool:
    """Whether `built` is pixel-identical to the committed file; says by domain what differs."""
    if published.hash_pixels(built) == published.PIXEL_HASH:
        print(f"pixel-identical to the committed file: all {len(built)} images")
        return True
    committed = published.load_pictograms()
    for domain in published.DOMAINS:
        ours, theirs = built.domains == domain, committed.domains == domain
        if built.keys[ours].tolist() != committed.keys[theirs].tolist():
            print(f"{domain}: other drawings than in the committed file")
            continue
        error = np.abs(built.images[ours].astype(int) - committed.images[theirs]).reshape(ours.sum(), -1)
        changed = error.any(axis=1)
        print(f"{domain}: {changed.sum()} of {len(changed)} images differ")
        if changed.any():
            examples = ", ".join(built.keys[ours][changed][:5])
            print(f"  by {error[changed].mean():.3f} of 255 on average and {error.max()} at most: {examples} ...")
    return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the packages are kept")
    parser.add_argument("--output", type=Path, help="the file to write (default: FOLDER/pictograms.parquet)")
    arguments = parser.parse_args()
    folder = make_folder(arguments.folder)
    painters = {
        "render3d": fluent_painter(FLUENT.unpack(folder)),
        "flat": twemoji_painter(TWEMOJI.unpack(folder)),
        "ink": symbola_painter(SYMBOLA.unpack(folder)),
        "pixel": unifont_painter(UNIFONT.unpack(folder)),
        "clipart": clipart_painter(CLIPART.unpack(folder)),
    }
    rows = list_drawings(LABELS.unpack(folder))
    pictures = [painters[row["domain"]](row["key"]) for row in rows]
    output = arguments.output or folder / "pictograms.parquet"
    write_parquet(output, pictures, rows)
    print(f"{len(rows)} images -> {output} ({output.stat().st_size / 1e6:.2f} MB)")
    return 0 if report_differences(published.load_pictograms(output)) else 1


if __name__ == "__main__":
    sys.exit(main())
