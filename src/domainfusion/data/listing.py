"""Folders and files of a data set, sorted; what may not be read is an error that names it, not left out in silence."""

from __future__ import annotations

import os
from pathlib import Path

from domainfusion.errors import DataError

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
