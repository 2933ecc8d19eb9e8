"""Writes the hashes of the embedded LDM's training images, so that a test can prove the benchmark is not among them.

    python scripts/hash_embedded_corpus.py corpus.npz tests/diffusion/embedded_corpus.npy

Each hash is the first 8 bytes of the SHA-256 of an image's pixels (64 x 64 x 3, uint8), as one little-endian integer.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import numpy as np


def hash_image(image: np.ndarray) -> int:
    """The first 8 bytes of the SHA-256 of the pixels."""
    return int.from_bytes(hashlib.sha256(np.ascontiguousarray(image).tobytes()).digest()[:8], "little")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    with np.load(arguments.corpus) as file:
        hashes = np.unique(np.array([hash_image(image) for image in file["images"]], dtype="<u8"))
    np.save(arguments.output, hashes)
    print(f"{len(hashes)} distinct images -> {arguments.output}")


if __name__ == "__main__":
    main()
