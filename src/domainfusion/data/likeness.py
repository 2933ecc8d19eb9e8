"""Pictures that are the same picture: pixel for pixel, or resized, recompressed, slightly recoloured (near duplicates).

A perceptual hash finds them (pHash; Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions, 2010):
the signs, about their median, of the 64 lowest frequencies of the grey image's discrete cosine transform, the constant
left out. Pictures whose hashes differ in at most `MOST_BITS` bits are compared by their pixels, for line drawings on
white share many low frequencies.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections import defaultdict
from pathlib import Path

import numpy as np

from domainfusion.data.benchmarks import recognise
from domainfusion.data.domains import MultiDomainDataset
from domainfusion.data.findings import number
from domainfusion.errors import FileError
from domainfusion.files import atomic_path, cache_folder

MOST_BITS = 4  # of 64
BANDS = (0, 13, 26, 39, 52, 64)  # five bands: hashes that differ in four bits agree in one of them
SIDE = 32  # pixels of the grey image that is transformed
SMALL = 16  # pixels at which pictures are compared
MOST_DIFFERENCE = 8.0  # mean over the pixels, of 255
LEAST_CORRELATION = 0.95
FLAT = 3.0  # a picture whose pixels deviate less, of 255, has nothing to be recognised by
FORMAT = 1

Pairs = list[tuple[int, int]]


def shrink(images: np.ndarray, side: int) -> np.ndarray:
    """(N, side, side, 3) float32 of images (N, S, S, 3) uint8, by the means of areas."""
    weights = _areas(images.shape[1], side)
    return np.einsum("ik,nklc,jl->nijc", weights, images.astype(np.float32), weights, optimize=True)


def _areas(size: int, side: int) -> np.ndarray:
    """(side, size): how much of each of `size` pixels lies in each of `side` equal parts, as a share of the part."""
    edges = np.arange(side + 1) * size / side
    low, high = np.maximum(edges[:-1, None], np.arange(size)), np.minimum(edges[1:, None], np.arange(1, size + 1))
    return (np.clip(high - low, 0, None) * side / size).astype(np.float32)


def perceptual_hash(images: np.ndarray) -> np.ndarray:
    """(N,) uint64 hashes of images (N, S, S, 3) uint8; 0 of a picture that is flat."""
    grey = shrink(images, SIDE) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)  # (N, 32, 32)
    k, x = np.arange(9)[:, None], np.arange(SIDE)
    cosines = np.cos(np.pi * k * (2 * x + 1) / (2 * SIDE))  # (9, 32), DCT-II
    found = np.einsum("ik,nkl,jl->nij", cosines, grey, cosines, optimize=True)
    # 64 of the 81 lowest: those with the smallest sums of indices, the constant (0, 0) left out.
    order = sorted(((i, j) for i in range(9) for j in range(9) if i + j), key=lambda pair: (sum(pair), pair))[:64]
    low = np.stack([found[:, i, j] for i, j in order], 1)  # (N, 64)
    bits = (low > np.median(low, axis=1, keepdims=True)).astype(np.uint64)
    hashes = (bits << np.arange(64, dtype=np.uint64)).sum(1, dtype=np.uint64)
    return np.where(grey.std((1, 2)) < FLAT, np.uint64(0), hashes)


def near_pairs(first: np.ndarray, second: np.ndarray) -> Pairs:
    """(i, j) where hashes first[i] and second[j] differ in at most `MOST_BITS` bits; flat pictures have no pairs.

    Looked up by bands of bits, so that not all pairs are compared.
    """
    found: set[tuple[int, int]] = set()
    for low, high in itertools.pairwise(BANDS):
        mask = np.uint64((1 << (high - low)) - 1)
        buckets: dict[int, list[int]] = defaultdict(list)
        for i in np.flatnonzero(first):
            buckets[int(first[i] >> np.uint64(low) & mask)].append(int(i))
        for j in np.flatnonzero(second):
            there = buckets.get(int(second[j] >> np.uint64(low) & mask))
            if there:
                bits = np.bitwise_count(first[there] ^ second[j]) if hasattr(np, "bitwise_count") else _count(
                    first[there] ^ second[j]
                )  # fmt: skip
                found.update((there[n], int(j)) for n in np.flatnonzero(bits <= MOST_BITS))
    return sorted(found)


def _count(values: np.ndarray) -> np.ndarray:
    """How many bits are set in each of values (n,) uint64 (NumPy counts them from version 2 on)."""
    return np.unpackbits(values.view(np.uint8).reshape(len(values), 8), axis=1).sum(1)


def look_alike(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(n,) bool: whether small pictures first[i] and second[i], (n, SMALL, SMALL, 3) of 0 to 255, are one picture."""
    a, b = (value.reshape(len(value), -1).astype(np.float64) for value in (first, second))
    difference = np.abs(a - b).mean(1)
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    scale = np.sqrt((a * a).sum(1) * (b * b).sum(1))
    return (difference <= MOST_DIFFERENCE) & ((a * b).sum(1) >= LEAST_CORRELATION * np.maximum(scale, 1e-9))


def digests(dataset: MultiDomainDataset) -> np.ndarray:
    """(N, 2) uint64: of each image a digest of its pixels, and its perceptual hash; kept in the cache."""
    path = cache_folder() / "digests" / f"{dataset.fingerprint}-{FORMAT}.npy"
    try:
        kept = np.load(path, allow_pickle=False)
        if kept.shape == (len(dataset), 2) and kept.dtype == np.uint64:
            return kept
    except Exception:  # not there, or damaged: it is computed
        pass
    found = np.zeros((len(dataset), 2), dtype=np.uint64)
    for start in range(0, len(dataset), 512):
        images = np.asarray(dataset.images[start : start + 512])
        exact = [hashlib.blake2b(image.tobytes(), digest_size=8).digest() for image in images]
        found[start : start + 512, 0] = np.frombuffer(b"".join(exact), dtype=np.uint64)
        found[start : start + 512, 1] = perceptual_hash(images)
    if isinstance(dataset.images, np.memmap):  # decoded images of the cache; others are known by name alone
        with contextlib.suppress(FileError), atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.save(file, found)
    return found


def find_overlap(dataset: MultiDomainDataset, used: np.ndarray, test: np.ndarray) -> tuple[Pairs, Pairs]:
    """Pairs (row of `used`, row of `test`) with equal pixels, and pairs that look alike; each test row once.

    Args:
        used: rows that train or validate.
        test: rows that are tested on.
    """
    if not len(used) or not len(test):
        return [], []
    known = digests(dataset)
    by_digest = {int(known[row, 0]): int(row) for row in used[::-1]}
    equal = [(by_digest[int(known[row, 0])], int(row)) for row in test if int(known[row, 0]) in by_digest]
    done = {row for _, row in equal}
    near: dict[int, int] = {}
    # By distinct hashes: of pictures with one hash, which may be many, a few stand for all.
    sources = _by_hash(known, used, most=4)
    tests = _by_hash(known, np.array([row for row in test if int(row) not in done], dtype=np.int64))
    hashes = [np.array(list(group), dtype=np.uint64) for group in (sources, tests)]
    pairs = [
        (source, row)
        for i, j in near_pairs(*hashes) for row in tests[int(hashes[1][j])] for source in sources[int(hashes[0][i])]
    ]  # fmt: skip
    for start in range(0, len(pairs), 4096):
        part = pairs[start : start + 4096]
        small = [shrink(dataset.images[[pair[side] for pair in part]], SMALL) for side in (0, 1)]
        for pair, alike in zip(part, look_alike(*small), strict=True):
            if alike:
                near.setdefault(pair[1], pair[0])
    return equal, [(source, row) for row, source in sorted(near.items())]


def _by_hash(known: np.ndarray, rows: np.ndarray, most: int | None = None) -> dict[int, list[int]]:
    """{perceptual hash: rows}, of each hash the first `most` pictures that differ in their pixels."""
    found: dict[int, dict[int, int]] = defaultdict(dict)
    for row in rows.tolist():
        pictures = found[int(known[row, 1])]
        key = row if most is None else int(known[row, 0])
        if most is None or len(pictures) < most:
            pictures.setdefault(key, row)
    return {value: list(pictures.values()) for value, pictures in found.items()}


def find_torn(dataset: MultiDomainDataset, rows: np.ndarray) -> Pairs:
    """Pairs of rows with equal pixels and different labels, each row of rows (n,) against the first that is equal."""
    known = digests(dataset)
    first: dict[int, int] = {}
    torn: Pairs = []
    for row in sorted(rows.tolist()):
        other = first.setdefault(int(known[row, 0]), row)
        if dataset.labels[other] != dataset.labels[row]:
            torn.append((other, row))
    return torn


def overlap_notes(dataset: MultiDomainDataset, used: np.ndarray, test: np.ndarray) -> list[str]:
    """What a run says about pictures that are in training and in the test, and pictures with two labels."""
    equal, near = find_overlap(dataset, used, test)
    torn = find_torn(dataset, used)
    notes = []
    for pairs, what in ((equal, "are also"), (near, "look like pictures")):
        if pairs:
            notes.append(
                f"{len(pairs)} of {len(test)} test images {what} in the source domains, which flatters the target's "
                f"accuracy: {_shown(dataset, pairs)}; `domainfusion data verify` lists all, leave one of each out"
            )
    known = recognise(dataset.domains, dataset.classes)
    both = [pair for pair in torn if known is not None and known.several_classes and _is_one_file(dataset, pair)]
    torn = [pair for pair in torn if pair not in both]
    if both:
        notes.append(
            f"{number(len(both), 'image')} also under another class that they show, as DomainBed has them: "
            f"{_shown(dataset, both)}"
        )
    if torn:
        notes.append(
            f"{number(len(torn), 'image')} also under another label, so one of the labels is wrong: "
            f"{_shown(dataset, torn)}"
        )
    return notes


def _is_one_file(dataset: MultiDomainDataset, pair: tuple[int, int]) -> bool:
    """Whether both rows are of one domain and of files of one name."""
    here, there = (Path(dataset.keys[row]) for row in pair)
    return here.name == there.name and dataset.domain_of[pair[0]] == dataset.domain_of[pair[1]]


def _shown(dataset: MultiDomainDataset, pairs: Pairs, most: int = 3) -> str:
    shown = ", ".join(f"{dataset.keys[row]} = {dataset.keys[other]}" for other, row in pairs[:most])
    return shown + (" ..." if len(pairs) > most else "")
