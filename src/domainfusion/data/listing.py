"""Folders and files of a data set, sorted; what may not be read is an error that names it, not left out in silence."""

from __future__ import annotations

import os
from pathlib import Path

from domainfusion.data.images import SUFFIXES
from domainfusion.errors import DataError

NUMBERS = "the classes are numbers, which tell a latent diffusion model nothing: write names as labels"
UNREADABLE = "give yourself the right to read it, or move it away"


def is_file(path: Path) -> bool:
    """Whether `path` is a file. Raises `DataError` where its folder may not be looked into."""
    try:
        return path.is_file()
    except OSError as error:
        raise DataError(f"{path.parent} cannot be read: {error.strerror}; {UNREADABLE}") from error


def list_folders(folder: Path) -> list[Path]:
    """The folders in `folder`, sorted, hidden ones left out. Raises `DataError` where it cannot be read."""
    try:
        return [path for path in sorted(folder.iterdir()) if not path.name.startswith(".") and path.is_dir()]
    except OSError as error:
        raise DataError(f"{error.filename or folder} cannot be read: {error.strerror}; {UNREADABLE}") from error


def list_files(folder: Path) -> list[Path]:
    """The files in `folder` and below it, folder by folder as ImageFolder goes; links to folders are not followed.

    Hidden ones are left out, as `list_folders` leaves them: what archives of a Mac (`._1.jpg`) and notebooks
    (`.ipynb_checkpoints/1-checkpoint.jpg`) leave behind is named like an image.

    Raises `DataError` naming a folder that cannot be read: its images would be missing, and nothing would say so.
    """

    def refused(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}; {UNREADABLE}") from error

    found = []
    for where, folders, names in os.walk(folder, onerror=refused):
        folders[:] = [name for name in folders if not name.startswith(".")]
        try:
            found += [path for name in names if not name.startswith(".") and (path := Path(where, name)).is_file()]
        except OSError as error:  # no permission to look
            refused(error)
    return sorted(found, key=lambda path: (str(path.parent), path.name))


def is_image(path: Path) -> bool:
    """Whether a file is called as images of a data set are."""
    return path.suffix.lower() in SUFFIXES


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
