"""Images that cannot be decoded, and pictures that occur more than once.

A picture in two domains leaks from source to target; a picture under two labels has one that is wrong, unless the data
set puts an image that shows two of its classes under both.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from domainfusion.data.findings import Finding, number, some
from domainfusion.data.images import read_image, why_unreadable
from domainfusion.data.likeness import SMALL, look_alike, near_pairs, perceptual_hash, shrink
from domainfusion.errors import DataError

Place = tuple[str, str, str]  # domain, class, path


@dataclasses.dataclass(frozen=True)
class Print:
    """What a picture is recognised by."""

    exact: bytes  # of its pixels, in their own size
    alike: int  # perceptual hash
    small: np.ndarray  # (SMALL, SMALL, 3) uint8


def print_of_image(path: Path) -> Print:
    """What the picture at `path` is recognised by. Raises `DataError` naming the file where it cannot be decoded."""
    exact = hash_of_image(path)
    pixels = read_image(path, 64)[None]
    return Print(exact, int(perceptual_hash(pixels)[0]), shrink(pixels, SMALL)[0].round().astype(np.uint8))


def hash_of_image(path: Path) -> bytes:
    """A digest of the picture: the pixels of the first frame, upright, in RGBA, and its size, whatever the file format.

    Raises `DataError` naming the file where it cannot be decoded to its end.
    """
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            kept = upright if upright.mode in ("I;16", "I;16B", "I", "F") else upright.convert("RGBA")
            digest = hashlib.blake2b(f"{kept.mode} {kept.size}".encode(), digest_size=16)
            digest.update(kept.tobytes())
            return digest.digest()
    except Exception as error:  # Pillow's plugins raise whatever their formats make them
        raise DataError(f"{path}: {why_unreadable(path, error)}") from error


def decode_all(
    root: Path,
    listing: dict[str, dict[str, list[Path]]],
    workers: int,
    progress: bool,
    *,
    several_classes: bool = False,
) -> tuple[list[Finding], list[Finding]]:
    """Problems and notes: what of {domain: {class: [paths]}} cannot be decoded, and what occurs more than once.

    Args:
        several_classes: an image may show several classes, and is then in the folder of each under its one name.
    """
    problems, notes = [], []
    files = [(d, c, path) for d in sorted(listing) for c in sorted(listing[d]) for path in listing[d][c]]
    places: dict[bytes, list[Place]] = defaultdict(list)
    prints: dict[bytes, Print] = {}
    unreadable = []
    with warnings.catch_warnings():  # the filters are the process's own, which threads share
        warnings.simplefilter("ignore")  # Pillow's remarks about odd tags, which name no file
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        bar = tqdm(total=len(files), desc="decoding images", unit="image", disable=not progress or len(files) < 500)
        for (domain, name, path), found in zip(files, _hashes((path for *_, path in files), workers), strict=True):
            bar.update()
            relative = path.relative_to(root).as_posix()
            if isinstance(found, DataError):
                unreadable.append(f"{relative}: {str(found).removeprefix(f'{path}: ')}")
            else:
                places[found.exact].append((domain, name, relative))
                prints[found.exact] = found
        bar.close()
    if unreadable:
        problems.append(
            Finding(
                "unreadable", f"{number(len(unreadable), 'image')} cannot be decoded", where=tuple(unreadable),
                effect="training stops at them; --data.bad-images skip leaves them out, which changes the splits",
            )
        )  # fmt: skip
    both: list[list[Place]] = []
    others: list[list[Place]] = []
    for same in places.values():
        (both if several_classes and _shows_several(same) else others).append(same)
    if both:
        notes.append(
            Finding(
                "several-classes", f"{number(len(both), 'image')} under more than one class, each of which it shows",
                effect="as DomainBed places them: each place counts as an image, and the held-out part of a domain may "
                "hold images that train under their other class",
                where=tuple(" = ".join(path for *_, path in same) for same in both),
            )
        )  # fmt: skip
    problems += _equal_images(others)
    notes += _near_images(places, prints)
    repeated = [same for same in places.values() if len(same) > 1 and len({place[:2] for place in same}) == 1]
    if repeated:
        count = sum(len(same) - 1 for same in repeated)
        notes.append(
            Finding(
                "repeated", f"{number(count, 'image')} more of the same picture, domain and class",
                effect="the held-out part of a domain may hold images that train: validation accuracy is flattered",
                where=tuple(" = ".join(path for *_, path in same) for same in repeated),
            )
        )  # fmt: skip
    return problems, notes


def _hashes(paths: Iterable[Path], workers: int) -> Iterator[Print | DataError]:
    def attempt(path: Path) -> Print | DataError:
        try:
            return print_of_image(path)
        except DataError as error:
            return error

    waiting = iter(paths)
    with ThreadPoolExecutor(workers) as pool:  # decoders release the interpreter's lock
        while some := list(itertools.islice(waiting, 256)):  # in portions, or an interruption would wait for them all
            yield from pool.map(attempt, some)


def _near_images(places: dict[bytes, list[Place]], prints: dict[bytes, Print]) -> list[Finding]:
    """Pictures of different domains that look alike without being equal: resized, say, or compressed again."""
    # Of pictures of one domain with one hash (the frames of a film, say) one stands for all.
    known = list({(prints[key].alike, places[key][0][0]): key for key in places}.values())
    hashes = np.array([prints[key].alike for key in known], dtype=np.uint64)
    small = np.stack([prints[key].small for key in known]) if known else np.zeros((0, SMALL, SMALL, 3))
    domains = [{domain for domain, *_ in places[key]} for key in known]
    pairs = [(i, j) for i, j in near_pairs(hashes, hashes) if i < j and len(domains[i] | domains[j]) > 1]
    if pairs:
        alike = look_alike(small[[i for i, _ in pairs]], small[[j for _, j in pairs]])
        pairs = [pair for pair, same in zip(pairs, alike, strict=True) if same]
    if not pairs:
        return []
    where = tuple(f"{places[known[i]][0][2]} ~ {places[known[j]][0][2]}" for i, j in pairs)
    return [
        Finding(
            "near-leak", f"{number(len(pairs), 'pair')} of pictures in different domains that look alike: "
            f"{some(where)}",
            effect="if they are one picture, a target image takes part in training: its accuracy is flattered",
            where=where,
        )
    ]  # fmt: skip


def _shows_several(same: list[Place]) -> bool:
    """Whether the places of one picture are those of one file in the folders of several classes of a domain."""
    files = {(domain, Path(path).name) for domain, _, path in same}
    return len(files) == 1 and len({name for _, name, _ in same}) > 1


def _equal_images(pictures: list[list[Place]]) -> list[Finding]:
    """Pictures in two domains, and pictures under two labels, of the places of each picture."""
    leaks = [same for same in pictures if len({domain for domain, *_ in same}) > 1]
    torn = [same for same in pictures if len({name for _, name, _ in same}) > 1]
    findings = []
    if leaks:
        pairs: dict[str, int] = defaultdict(int)
        for same in leaks:
            for pair in itertools.combinations(sorted({domain for domain, *_ in same}), 2):
                pairs[" and ".join(pair)] += 1
        findings.append(
            Finding(
                "leak", f"{number(len(leaks), 'picture')} in more than one domain: "
                + ", ".join(f"{count} in {pair}" for pair, count in sorted(pairs.items())),
                effect="a target image takes part in training: its accuracy is flattered",
                where=tuple(" = ".join(path for *_, path in same) for same in leaks),
            )
        )  # fmt: skip
    if torn:
        findings.append(
            Finding(
                "two-labels", f"{number(len(torn), 'picture')} under more than one label",
                effect="at least one of the labels of each is wrong, in training or in the figures",
                where=tuple(" = ".join(path for *_, path in same) for same in torn),
            )
        )  # fmt: skip
    return findings
