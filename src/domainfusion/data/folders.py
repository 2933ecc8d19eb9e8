"""Image folders `root/domain/class/image`, or with metadata: listed, and decoded once to the cache.

The decoded images lie under a hash of the listing (paths, sizes, modification times) and the working size.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
from tqdm import tqdm

from domainfusion.config import DataConfig
from domainfusion.data.benchmarks import several_spellings
from domainfusion.data.decoded import CACHE_FORMAT, Index, checksum, open_decoded, shorten_array
from domainfusion.data.imagefolder import find_metadata, list_metadata, unused_metadata, why_no_metadata
from domainfusion.data.images import DECODER, may_pass, read_image
from domainfusion.data.listing import list_folder
from domainfusion.errors import DataError
from domainfusion.files import cache_folder, hash_of, reserve, write_json
from domainfusion.interruption import check


class UnreadableImage(DataError):
    """An image of a data set that cannot be decoded; `reason` names it, without what an option could do about it."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"{reason}; repair or remove it (`domainfusion data verify` lists them all), or leave such files out: "
            "--data.bad-images skip"
        )
        self.reason = reason


def decode_folder(root: Path, config: DataConfig) -> tuple[str, Index, np.ndarray, list[str]]:
    """The image folder `root`, decoded once: its address in the cache, its index, images (N, S, S, 3), and notes.

    Labels go by class name over the union of the domains.

    Raises `UnreadableImage` where an image cannot be decoded and none is to be left out, `DataError` for a folder of
    another form or a domain without images.
    """
    listing, notes = list_images(root)
    domains, classes, files = in_order(listing)
    for same in several_spellings(domains):
        notes.append(
            f"domains {', '.join(map(ascii, same))} look like one in {len(same)} spellings: the images of a target "
            "would train under the other name"
        )
    for domain in domains:
        missing = [name for name in classes if name not in listing[domain]]
        if missing:
            notes.append(
                f"domain {domain} has no images of {len(missing)} of {len(classes)} classes: "
                f"{', '.join(missing[:8])}{' ...' if len(missing) > 8 else ''}; labels go by name and do not shift"
            )
    address = folder_address(root, files, config)
    folder = cache_folder() / "images" / address

    def build(target: Path) -> None:
        kept: list[tuple[str, str, Path]] = []
        sums: list[int] = []
        content = hashlib.blake2b(digest_size=16)
        bad: list[str] = []
        array = np.lib.format.open_memmap(
            target / "images.npy", "w+", np.uint8, (len(files), config.size, config.size, 3)
        )
        reserve(target / "images.npy", array.offset + array.nbytes)
        for domain, name, path in tqdm(files, desc="decoding images", unit="image", disable=len(files) < 500):
            check()
            try:
                pixels = read_image(path, config.size)
            except DataError as error:
                if config.bad_images == "error":
                    raise UnreadableImage(str(error)) from error
                if may_pass(error.__cause__):  # left out once, it would be missing for good
                    raise DataError(
                        f"{error}: that says nothing of the image, which --data.bad-images skip does not leave out; "
                        "see to it, and run the same command again"
                    ) from error
                bad.append(path.relative_to(root).as_posix())
                continue
            array[len(kept)] = pixels
            sums.append(checksum(pixels))
            content.update(pixels.data)
            kept.append((domain, name, path))
        array.flush()
        if bad:
            shorten_array(target / "images.npy", len(kept))
        np.save(target / "sums.npy", np.array(sums, dtype=np.uint64))
        numbers = {name: number for number, name in enumerate(classes)}
        described = {
            "domains": domains, "classes": classes, "labels": [numbers[name] for _, name, _ in kept],
            "domain_of": [domains.index(domain) for domain, _, _ in kept],
            "keys": [path.relative_to(root).as_posix() for _, _, path in kept],
        }  # fmt: skip
        # A copy of a folder, or a folder whose files were touched, is the same data set to all that is kept of it.
        fingerprint = hash_of([described, content.hexdigest(), CACHE_FORMAT])
        write_json(target / "index.json", {**described, "bad": bad, "fingerprint": fingerprint})

    def decode(index: Index, row: int) -> np.ndarray:
        return read_image(root / index["keys"][row], config.size)

    index, images = open_decoded(folder, build, decode)
    if index["bad"]:
        notes.append(f"left out {len(index['bad'])} unreadable images: {', '.join(index['bad'][:5])}")
    present = set(index["domain_of"])
    for number, domain in enumerate(domains):
        if number not in present:
            raise DataError(f"domain {domain} of {root} has no readable image")
    return address, index, images, notes


def in_order(
    listing: dict[str, dict[str, list[Path]]],
) -> tuple[list[str], list[str], list[tuple[str, str, Path]]]:
    """Domains, classes (the union over the domains) and (domain, class, path) of all files, as rows are numbered."""
    domains, classes = sorted(listing), sorted({name for domain in listing.values() for name in domain})
    return domains, classes, [(d, c, path) for d in domains for c in sorted(listing[d]) for path in listing[d][c]]


def folder_address(root: Path, files: list[tuple[str, str, Path]], config: DataConfig) -> str:
    """The hash under which the decoded images (domain, class, path) of a folder are cached.

    Of paths, sizes, times, and the working size; where metadata gives domain and class, of these too.
    """
    stats = [_stat(path) for _, _, path in files]
    signature = [
        [path.relative_to(root).as_posix(), s.st_size, s.st_mtime_ns]
        + ([] if path.relative_to(root).parts[:2] == (domain, name) else [domain, name])
        for (domain, name, path), s in zip(files, stats, strict=True)
    ]
    return hash_of([signature, config.size, config.bad_images, CACHE_FORMAT, DECODER])


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError:  # a link to nothing
        return path.lstat()


def list_images(root: Path) -> tuple[dict[str, dict[str, list[Path]]], list[str]]:
    """The image files of `root`, by its metadata where that tells domains, else by its folders; as `list_folder`."""
    metadata, unused = find_metadata(root), unused_metadata(root)
    if metadata:
        listing, notes = list_metadata(root, metadata)
        return listing, unused + notes
    try:
        listing, notes = list_folder(root)
    except DataError as error:
        raise DataError(f"{error}{why_no_metadata(root)}") from error
    return listing, unused + notes
