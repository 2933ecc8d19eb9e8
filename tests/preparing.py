"""Small copies of the benchmarks as their authors give them out, and `prepare` on them."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from domainfusion.data.benchmarks import BENCHMARKS, Benchmark
from domainfusion.data.preparation import prepare

PACS, VLCS, OFFICE = BENCHMARKS["PACS"], BENCHMARKS["VLCS"], BENCHMARKS["OfficeHome"]
TERRA, DOMAIN_NET = BENCHMARKS["TerraIncognita"], BENCHMARKS["DomainNet"]


def picture(number: int) -> bytes:
    """A PNG file, another one for every number."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 255, (6, 6, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def write_tree(root: Path, names: list[str]) -> Path:
    """Distinct pictures (or, of other suffixes, texts) at these paths."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture(number) if name.endswith((".png", ".jpg")) else b"text")
    return root


def files_of(root: Path) -> dict[str, bytes]:
    """Path and contents of every visible file."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


def pack_zip(root: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files_of(root).items():
            archive.writestr(name, data)
    return path


def pack_tar(root: Path, path: Path) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        archive.add(root, arcname=".")
    return path


def run(benchmark: Benchmark, source: Path, output: Path, **options: Any) -> dict[str, Any]:
    return prepare(benchmark, source, output, progress=False, **options)


PACS_NAMES = [
    f"kfold/{domain}/{name}/pic_{n}.jpg" for domain in PACS.domains for name in PACS.class_names for n in (1, 2)
]
