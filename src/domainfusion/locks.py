"""Locks of files and folders between processes: what is locked is free again when its process ends, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from domainfusion.errors import Busy, FileError, Interrupted
from domainfusion.files import make_folder, no_empty_folder, open_to_all
from domainfusion.interruption import stoppable


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


def make_once(folder: Path, is_there: Callable[[], bool], make: Callable[[Path], None]) -> None:
    """Have `make` fill `folder` where `is_there` says that it is not: whole or not at all, one process for all.

    What a killed process left of it is removed. Others may read the folder, as those that a program makes itself.

    Raises `Interrupted` where a signal comes (`make` may look for it by `interruption.check`): nothing of it is kept.
    """
    if is_there():
        return
    prefix = f".{folder.name}."
    with locked(make_folder(folder.parent) / f"{prefix}lock"):
        if is_there():
            return
        for path in folder.parent.iterdir():
            if path.name.startswith(prefix) and path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
        work = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
        try:
            with stoppable():
                make(work)
            open_to_all(work)
            shutil.rmtree(folder, ignore_errors=True)
            work.rename(folder)
        except Interrupted as error:
            then = "what was under way is not kept, and the same command begins it anew"
            raise Interrupted(error.number, then) from None
        finally:
            shutil.rmtree(work, ignore_errors=True)
