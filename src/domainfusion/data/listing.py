"""Folders and files of a data set, sorted; what may not be read is an error that names it, not left out in silence."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from domainfusion.data.images import OTHER_PICTURES, SUFFIXES
from domainfusion.data.layouts import SPLITS
from domainfusion.errors import DataError

NUMBERS = "the classes are numbers, which tell a latent diffusion model nothing: write names as labels"
UNREADABLE = "give yourself the right to read it, or move it away"


def are_splits(domains: Iterable[str]) -> bool:
    """Whether folders that should be domains are called as the splits of one data set are, all of them.

    >>> are_splits(["Test", "train"]), are_splits(["train", "sketch"])
    (True, False)
    """
    return {name.casefold() for name in domains} <= {*SPLITS, "valid", "validation", "training", "testing", "dev"}


def is_file(path: Path) -> bool:
    """Whether `path` is a file. Raises `DataError` where its folder may not be looked into."""
    try:
        return path.is_file()
    except OSError as error:
        raise DataError(f"{path.parent} cannot be read: {error.strerror}; {UNREADABLE}") from error


def is_image(path: Path) -> bool:
    """Whether a file is called as images of a data set are."""
    return path.suffix.lower() in SUFFIXES


def is_listed(path: Path) -> bool:
    """Whether `path` is a file, or a link to nothing that is called as images are: an image that cannot be read."""
    return path.is_file() or (is_image(path) and path.is_symlink() and not path.exists())


def list_folders(folder: Path) -> list[Path]:
    """The folders in `folder`, sorted, hidden ones left out. Raises `DataError` where it cannot be read."""
    try:
        return [path for path in sorted(folder.iterdir()) if not path.name.startswith(".") and path.is_dir()]
    except OSError as error:
        raise DataError(f"{error.filename or folder} cannot be read: {error.strerror}; {UNREADABLE}") from error


def dead_links(folder: Path) -> list[Path]:
    """The links in `folder` that lead to nothing and are not called as images are, sorted: folders, for all one knows.

    Hidden ones are left out, as `list_folders` leaves them.
    """
    return [
        path for path in sorted(folder.iterdir())
        if not path.name.startswith(".") and path.is_symlink() and not path.exists() and not is_image(path)
    ]  # fmt: skip


def list_files(folder: Path) -> list[Path]:
    """The files in `folder` and below it, folder by folder as ImageFolder goes, through links to folders too.

    Hidden ones are left out, as `list_folders` leaves them: what archives of a Mac (`._1.jpg`) and notebooks
    (`.ipynb_checkpoints/1-checkpoint.jpg`) leave behind is named like an image. A link to nothing is among
    them where it is named like one: whoever reads it says so.

    Raises `DataError` naming a folder that cannot be read: its images would be missing, and nothing would say so.
    """

    def refused(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}; {UNREADABLE}") from error

    found = []
    above: dict[str, tuple[tuple[int, int], ...]] = {
        str(folder): (_identity(folder),)
    }  # the folders that one lies in, to see a link that leads back
    for where, folders, names in os.walk(folder, onerror=refused, followlinks=True):
        inner = {name: _identity(Path(where, name)) for name in folders if not name.startswith(".")}
        folders[:] = [name for name, identity in inner.items() if identity not in above[where]]
        above |= {os.path.join(where, name): (*above[where], inner[name]) for name in folders}
        try:
            found += [path for name in names if not name.startswith(".") and is_listed(path := Path(where, name))]
        except OSError as error:  # no permission to look
            refused(error)
    return sorted(found, key=lambda path: (str(path.parent), path.name))


def _identity(folder: Path) -> tuple[int, int]:
    """What tells a folder from all others, by whichever link one comes to it."""
    try:
        found = folder.stat()
    except OSError:  # whoever looks into it says so
        return -1, -1
    return found.st_dev, found.st_ino


def other_pictures(paths: Iterable[Path]) -> str:
    """How many of some files are pictures in a form that is not read: "3 .heic, 1 .avif"; empty where none is."""
    suffixes = Counter(path.suffix.lower() for path in paths)
    return ", ".join(f"{suffixes[suffix]} {suffix}" for suffix in OTHER_PICTURES if suffixes[suffix])


def _images_in(folder: Path) -> bool:
    """Whether images lie right in a folder."""
    return any(is_image(path) and not path.name.startswith(".") and is_file(path) for path in folder.iterdir())


def nearest_layout(root: Path, depth: int = 3) -> Path | None:
    """The first folder below `root` that holds DOMAIN/CLASS/IMAGE, at most `depth` levels down; None where none does.

    It is what unpacked archives are: the data set's folder in one of the same name, say.
    """
    level = list_folders(root)
    for _ in range(depth):
        for folder in level:
            domains = list_folders(folder)
            if len(domains) > 1 and all(any(map(_images_in, list_folders(domain))) for domain in domains):
                return folder
        level = [inner for folder in level[:20] for inner in list_folders(folder)]
    return None


def how_to_lay_out(root: Path) -> str:
    """What to do with images that lie right in `root` or in its folders, to be put after what is wrong."""
    if _images_in(root):
        return f"; images lie right in it: sort them into {root}/DOMAIN/CLASS"
    for folder in list_folders(root):
        if _images_in(folder):
            return (
                f"; images lie right in {folder}: where {folder.name} is a class, put the classes of each domain into "
                f"a folder of its own, {root}/DOMAIN/{folder.name}"
            )
    return ""


def list_folder(root: Path) -> tuple[dict[str, dict[str, list[Path]]], list[str]]:
    """The image files of `root`, as {domain: {class: [paths]}}, each list sorted as ImageFolder sorts, and notes.

    Raises `DataError` for a folder without domains, a domain without classes, and a domain without images.
    """
    notes: list[str] = []
    listing: dict[str, dict[str, list[Path]]] = {}
    visible = list_folders(root)
    if not visible:
        raise DataError(
            f"{root} holds no folders; it should be laid out as {root}/DOMAIN/CLASS/IMAGE{how_to_lay_out(root)}"
        )
    for link in [link for folder in (root, *visible) for link in dead_links(folder)]:
        notes.append(f"{link.relative_to(root)} is a link to {link.readlink()}, which does not exist: it was left out")
    for domain in visible:
        if root.resolve().is_relative_to(domain.resolve()):
            raise DataError(f"{domain} is a link that leads back to {domain.resolve()}, which holds it: remove it")
        classes = list_folders(domain)
        if not classes:
            raise DataError(
                f"domain {domain.name} of {root} holds no class folders: {domain}/CLASS/IMAGE is expected"
                f"{how_to_lay_out(root)}"
            )
        files = {folder.name: list_files(folder) for folder in classes}
        found = {name: [path for path in paths if is_image(path)] for name, paths in files.items()}
        left = other_pictures(path for paths in files.values() for path in paths)
        empty = [name for name, paths in found.items() if not paths]
        if len(empty) == len(found):
            raise DataError(
                f"domain {domain.name} of {root} is empty: none of its class folders holds an image"
                + (f" in a form that is read ({left}); convert them to .jpg or .png" if left else "")
            )
        if left:
            notes.append(f"domain {domain.name}: pictures in a form that is not read ({left}); convert to .jpg or .png")
        if empty:
            notes.append(f"domain {domain.name}: no images in {', '.join(empty[:8])}")
        listing[domain.name] = {name: paths for name, paths in found.items() if paths}
    splits = {name for classes in listing.values() for name in classes}
    if splits <= set(SPLITS):
        raise DataError(
            f"{root} is laid out as DOMAIN/SPLIT/CLASS (splits: {', '.join(sorted(splits))}): bring the classes of all "
            f"splits together, {root}/DOMAIN/CLASS (`domainfusion data verify {root}` says how)"
        )
    if are_splits(listing):
        notes.append(f"the domains are called {', '.join(sorted(listing))}: splits of one data set are no domains")
    if len(listing) == 1 and (inner := nearest_layout(root)):
        notes.append(f"{inner} holds DOMAIN/CLASS/IMAGE too: is that the folder meant?")
    if all(name.isdigit() for classes in listing.values() for name in classes):
        notes.append(NUMBERS)
    return listing, notes
