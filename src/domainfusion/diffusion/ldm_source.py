"""Which LDM a name stands for: a hash of its files, known without loading it."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.diffusion.ldm_folder import PARTS, check_folder, embedded_folder
from domainfusion.files import hash_of_file


def source_fingerprint(source: str) -> str:
    """A hash of the LDM at `source`, in whatever precision it will run; a local one is not loaded for it.

    It is computed once in a process, of a folder again where a file in it has changed.
    """
    folder = embedded_folder() if source == "embedded" else Path(source)
    if not folder.is_dir():
        return _fingerprint_on_the_hub(source)
    check_folder(folder)
    files = [
        path
        for part in PARTS
        for path in sorted((folder / part).rglob("*"))
        if path.suffix in (".safetensors", ".json", ".txt")
    ]
    return _fingerprint_of(folder, tuple((path, (known := path.stat()).st_size, known.st_mtime_ns) for path in files))


@functools.lru_cache(maxsize=16)
def _fingerprint_on_the_hub(source: str) -> str:
    return LatentDiffusion.load(source, precision="float32").fingerprint()


@functools.lru_cache(maxsize=16)
def _fingerprint_of(folder: Path, files: tuple[tuple[Path, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for path, _, _ in files:
        digest.update(f"{path.relative_to(folder)} {hash_of_file(path)}\n".encode())
    return digest.hexdigest()[:16]
