"""Locks of files and folders between processes: what is locked is free again when its process ends, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from domainfusion.errors import Busy, FileError
from domainfusion.files import make_folder, no_empty_folder


@contextlib.contextmanager
def open_lock(path: Path) -> Iterator[int]:
    """The descriptor of the lock file `path`, made with its folder if missing, open for the length of the block."""
    make_folder(path.parent)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise FileError(
            f"cannot lock {path}: {error.strerror}; check the folder's permissions, or choose another (for "
            "caches, by $DOMAINFUSION_CACHE)"
        ) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path` against other processes for the length of the block, waiting while one has it."""
    with open_lock(path) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Keep other processes out of `folder` for the length of the block.

    A block that raises before it wrote anything leaves no folder that was not there before. Raises `Busy` naming the
    process that is at work there.
    """
    path, new = folder / ".lock", not folder.exists()
    with no_empty_folder(folder), open_lock(path) as descriptor:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(descriptor, 32, 0).decode().strip() or "unknown"
            raise Busy(f"process {owner} is at work in {folder}: wait for it, or choose another --output") from None
        if not os.fstat(descriptor).st_nlink:  # the process that had it took the lock away with the folder
            raise Busy(f"another process has just given up in {folder}: run the same command again")
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        try:
            yield
        except BaseException:
            with contextlib.suppress(OSError):
                if new and os.listdir(folder) == [path.name]:
                    path.unlink()
            raise
