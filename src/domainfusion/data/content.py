"""Images by what they show: keys by which tables find the same image in another data set."""

from __future__ import annotations

import hashlib

import numpy as np

AT_ONCE = 256  # images in memory while their keys are computed


def image_keys(images: np.ndarray, prompts: list[str] | None = None) -> np.ndarray:
    """(n,) int64 keys of images (n, S, S, 3) uint8: equal where pixels are, and prompts where given (one for each).

    Among a million of them, two different ones share a key with a chance of 3 in 10⁸.
    """
    keys = []
    for i, image in enumerate(images):
        content = hashlib.blake2b(f"{image.shape}\n{prompts[i] if prompts else ''}\n".encode(), digest_size=8)
        content.update(np.ascontiguousarray(image).data)
        keys.append(int.from_bytes(content.digest(), "little", signed=True))
    return np.array(keys, dtype=np.int64)


def row_keys(images: np.ndarray, rows: np.ndarray, prompts: list[str] | None = None) -> np.ndarray:
    """`image_keys` of rows (n,) of images (N, S, S, 3), of which a few are in memory at once."""
    starts = range(0, len(rows), AT_ONCE)
    parts = [
        image_keys(images[rows[k : k + AT_ONCE]], None if prompts is None else prompts[k : k + AT_ONCE]) for k in starts
    ]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
