"""What lies in a folder to be verified: the images that its layout or its metadata names, and what else is there.

Unlike the listing that training goes by, this goes on at what is missing or in the wrong place, and names all of it.
"""

from __future__ import annotations

import itertools
from pathlib import Path

from domainfusion.data.benchmarks import recognise
from domainfusion.data.findings import Finding, number, some
from domainfusion.data.imagefolder import read_metadata, why_no_metadata
from domainfusion.data.images import OTHER_PICTURES, SUFFIXES
from domainfusion.data.layouts import SPLITS
from domainfusion.data.listing import (
    are_splits,
    dead_links,
    how_to_lay_out,
    is_listed,
    list_files,
    list_folders,
    other_pictures,
)
from domainfusion.errors import DataError

Listing = dict[str, dict[str, list[Path]]]


def scan_metadata(root: Path, metadata: list[Path]) -> tuple[Listing, list[Finding], list[Finding]]:
    """The image files that metadata names, problems, and notes."""
    listed = read_metadata(root, metadata)
    missing = tuple(f"{where.removeprefix(f'{root}/')}: {name}" for where, name in listed.missing)
    if not listed.listing:
        raise DataError(f"none of the images that the metadata of {root} names is there: {some(missing)}")
    problems = []
    if missing:
        problems.append(
            Finding(
                "missing", f"{number(len(missing), 'image')} that the metadata names are missing", where=missing,
                effect="training stops at them: restore them, or remove their rows",
            )
        )  # fmt: skip
    notes = []
    if listed.unlisted:
        notes.append(Finding("unlisted", listed.unlisted_in_words(), where=listed.unlisted))
    return listed.listing, problems, notes


def scan_folder(root: Path) -> tuple[Listing, list[Finding], list[Finding]]:
    """The image files of `root/domain/class`, problems, and notes on what lies elsewhere; empty classes are kept."""
    listing: Listing = {}
    misplaced: list[str] = []
    unread: list[Path] = []
    other: list[str] = []
    dead = dead_links(root)
    for domain in _folders(root):
        if root.resolve().is_relative_to(domain.resolve()):
            raise DataError(f"{domain} is a link that leads back to {domain.resolve()}, which holds it: remove it")
        dead += dead_links(domain)
        for entry in _entries(domain):
            if entry.name.startswith(".") or entry in dead:
                continue
            if is_listed(entry):
                if entry.suffix.lower() in OTHER_PICTURES:
                    unread.append(entry)
                else:
                    (misplaced if entry.suffix.lower() in SUFFIXES else other).append(f"{domain.name}/{entry.name}")
                continue
            images = listing.setdefault(domain.name, {}).setdefault(entry.name, [])
            for path in list_files(entry):
                if path.suffix.lower() in SUFFIXES:
                    images.append(path)
                elif path.suffix.lower() in OTHER_PICTURES:
                    unread.append(path)
                else:
                    other.append(path.relative_to(root).as_posix())
    if not any(paths for classes in listing.values() for paths in classes.values()):
        raise DataError(_other_form(root) + (f"; {_to_convert(unread)}" if unread else ""))
    for inner in _folders(root):  # the folder above a benchmark's
        names = _folders(inner)
        if recognise(listing, {entry.name for entry in names}) is None and recognise(
            {entry.name for entry in names}, {leaf.name for entry in names for leaf in _folders(entry)}
        ):
            raise DataError(_other_form(root))
    splits = {name for classes in listing.values() for name in classes}
    if splits <= set(SPLITS):
        raise DataError(
            f"{root} is laid out as DOMAIN/SPLIT/CLASS (splits: {', '.join(sorted(splits))}): {_how_to_merge(root)}"
        )
    notes = []
    if misplaced:
        notes.append(
            Finding("misplaced", f"{number(len(misplaced), 'image')} outside of class folders, not used",
                    where=tuple(misplaced))
        )  # fmt: skip
    if unread:
        notes.append(
            Finding("unread", _to_convert(unread), where=tuple(path.relative_to(root).as_posix() for path in unread))
        )
    if other:
        notes.append(
            Finding(
                "other", f"{number(len(other), 'file')} of no image format, not used: {some(other)}", where=tuple(other)
            )
        )
    empty = tuple(domain.name for domain in _folders(root) if not any(listing.get(domain.name, {}).values()))
    problems = []
    if are_splits(listing):
        problems.append(
            Finding(
                "domains-splits", f"the domains are called {', '.join(sorted(listing))}: splits of one data set",
                effect="a run that holds one out says nothing of a new domain: put the images of each domain into a "
                "folder of its own, ROOT/DOMAIN/CLASS",
            )
        )  # fmt: skip
    if dead:
        where = tuple(f"{link.relative_to(root)}: a link to {link.readlink()}" for link in dead)
        problems.append(
            Finding(
                "dead-link", f"{number(len(dead), 'link')} to what does not exist", where=where,
                effect="the images there are left out: mount what the links lead to, or remove them",
            )
        )  # fmt: skip
    if empty:
        problems.append(
            Finding(
                "domain-empty", f"{number(len(empty), 'folder')} without class folders that hold images", where=empty,
                effect="they would be domains, and loading stops at them: fill them or move them away",
            )
        )  # fmt: skip
    return {name: classes for name, classes in listing.items() if name not in empty}, problems, notes


def _how_to_merge(root: Path) -> str:
    """What to do with the splits of `root/domain/split/class`."""
    domains = _folders(root)
    classes = {label.name for domain in domains for split in _folders(domain) for label in _folders(split)}
    benchmark = recognise({domain.name for domain in domains}, classes)
    if benchmark:
        return f"merge the splits with `domainfusion data prepare {benchmark.name} {root} OUTPUT`"
    return (
        "move the images of each class together, as DOMAIN/CLASS/IMAGE, or list them in a metadata.csv (file_name, "
        "label, domain), which may name files anywhere below it"
    )


def _to_convert(pictures: list[Path]) -> str:
    return f"pictures in a form that is not read, not used ({other_pictures(pictures)}); convert to .jpg or .png"


def _entries(folder: Path) -> list[Path]:
    list_folders(folder)  # which says why it cannot be read
    return sorted(folder.iterdir())


def _folders(path: Path) -> list[Path]:
    return list_folders(path)


def _other_form(root: Path) -> str:
    """Why `root` is no image folder, and the nearest thing that is."""
    for inner in _folders(root):
        classes = [leaf for domain in _folders(inner) for leaf in _folders(domain)]
        if any(
            path.suffix.lower() in SUFFIXES for leaf in classes[:50] for path in itertools.islice(leaf.iterdir(), 5)
        ):
            return f"{root} holds no DOMAIN/CLASS/IMAGE; {inner} does: give that path"
    archives = [path.name for path in sorted(root.iterdir()) if path.name.endswith((".zip", ".tar", ".tgz", ".tar.gz"))]
    if archives:
        return (
            f"{root} holds archives ({some(archives)}): unpack them first (`domainfusion data prepare` does so for the "
            "five benchmarks only)"
        )
    return f"{root} holds no images in the form DOMAIN/CLASS/IMAGE{how_to_lay_out(root)}{why_no_metadata(root)}"
