"""The files of a folder, of an archive, or of a folder of archives, under one interface.

A member is only named and opened here; where it is written to is decided by whoever reads it, so that no archive can
choose a path. Archives that try (`../`, absolute paths, links) are refused as a whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import stat
import tarfile
import zipfile
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Protocol

from domainfusion.errors import DataError, DomainFusionError, NoSource, shortened

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
# How the members of a .zip may be packed.
PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)


class Readable(Protocol):
    """What a member is opened as."""

    def read(self, size: int = -1, /) -> bytes:
        """The next `size` bytes, or all that are left."""


@dataclasses.dataclass(frozen=True)
class Member:
    """A file: the folder or archive that holds it, its path in there, and its size in bytes."""

    container: Path
    name: str
    size: int

    def __str__(self) -> str:
        return f"{self.container}: {self.name}"


def is_archive(path: Path) -> bool:
    """Whether `path` is called as an archive is that can be read here."""
    return path.name.lower().endswith(ARCHIVES)


def containers(source: Path) -> list[Path]:
    """The archives to read for `source`: itself, or those lying in the folder (its other files count as well)."""
    if source.is_dir():
        return sorted(path for path in source.iterdir() if path.is_file() and is_archive(path))
    return [source] if is_archive(source) else []


def list_members(source: Path) -> list[Member]:
    """Every file of the folder, the archive, or the archives in the folder `source`, hidden ones left out.

    Raises `DataError` for another kind of file, a damaged archive, and one that is not safe.
    """
    if not source.exists():
        raise NoSource(f"there is no {source}; give a folder or an archive ({', '.join(ARCHIVES)})")
    archives = containers(source)
    members = list(_walk(source)) if source.is_dir() else []
    if not source.is_dir() and not archives:
        raise NoSource(f"{source} is neither a folder nor an archive ({', '.join(ARCHIVES)})")
    for path in archives:
        with _naming(path):
            members += _list_zip(path) if path.name.lower().endswith(".zip") else _list_tar(path)
    return members


def _walk(folder: Path) -> Iterator[Member]:
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not _hidden(name))
        for name in sorted(names):
            path = Path(root) / name
            if not _hidden(name) and path.is_file() and not (path.parent == folder and is_archive(path)):
                yield Member(folder, path.relative_to(folder).as_posix(), path.stat().st_size)


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _list_zip(path: Path) -> list[Member]:
    found = []
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = _safe(path, info.orig_filename)
            if info.flag_bits & 1 or info.compress_type not in PACKED:
                how = "encrypted" if info.flag_bits & 1 else f"packed by method {info.compress_type}"
                raise DataError(
                    f"{path}: {shortened(info.filename)} is {how}, which is not read here: unpack it by hand"
                )
            if stat.S_ISLNK(info.external_attr >> 16):
                raise DataError(
                    f"{path} holds a link ({shortened(info.filename)}), which is not followed: unpack it by hand"
                )
            if not info.is_dir() and not any(map(_hidden, name.split("/"))):
                found.append(Member(path, info.filename, info.file_size))
    return found


def _list_tar(path: Path) -> list[Member]:
    found = []
    with tarfile.open(path, "r:*") as archive:
        for info in archive:
            name = _safe(path, info.name)
            if not (info.isfile() or info.isdir()):
                raise DataError(
                    f"{path} holds a link or device ({shortened(info.name)}), not only files: unpack it by hand"
                )
            if info.isfile() and not any(map(_hidden, name.split("/"))):
                found.append(Member(path, info.name, info.size))
    return found


def _safe(path: Path, name: str) -> str:
    """The name with plain slashes. Raises `DataError` where it leads out of the folder it would be unpacked to."""
    plain = name.replace("\\", "/")
    if plain.startswith("/") or ".." in plain.split("/") or ":" in plain.split("/")[0] or "\0" in plain:
        raise DataError(f"{path} is refused: its member {shortened(name)!r} leads out of the folder it is unpacked to")
    return "/".join(part for part in plain.split("/") if part not in ("", "."))


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors of reading the archive as a `DataError` that names it; those of the disk stay, and say so themselves.

    The readers raise whatever a damaged archive makes them: their own errors, and those of numbers that lead nowhere
    (IndexError, an OSError for a seek to before the beginning) and names that are no text.
    """
    try:
        yield
    except DomainFusionError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise DataError(
            f"{path} cannot be read ({type(error).__name__}: {shortened(error)}); it is damaged or cut short: get it "
            "again"
        ) from error


def open_members(members: Collection[Member]) -> Iterator[tuple[Member, Readable]]:
    """Each of `members` with its open file, archive by archive, each archive read once from beginning to end."""
    by_container: dict[Path, dict[str, Member]] = defaultdict(dict)
    for member in members:
        by_container[member.container][member.name] = member
    for path, wanted in sorted(by_container.items()):
        if path.is_dir():
            yield from _open_files(path, wanted.values())
            continue
        reader = _open_zip if path.name.lower().endswith(".zip") else _open_tar
        opened = reader(path, wanted)
        while True:
            with _naming(path):
                found = next(opened, None)
            if found is None:
                break
            yield found


def _open_files(folder: Path, members: Iterable[Member]) -> Iterator[tuple[Member, Readable]]:
    for member in members:
        with open(folder / member.name, "rb") as file:
            yield member, file


def _open_zip(path: Path, wanted: dict[str, Member]) -> Iterator[tuple[Member, Readable]]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.filename in wanted:
                with archive.open(info) as file:
                    yield wanted[info.filename], _Guarded(file, path)


def _open_tar(path: Path, wanted: dict[str, Member]) -> Iterator[tuple[Member, Readable]]:
    left = set(wanted)
    with tarfile.open(path, "r:*") as archive:
        for info in archive:
            if info.name in left and info.isfile():
                left.discard(info.name)
                file = archive.extractfile(info)
                if file is not None:
                    yield wanted[info.name], _Guarded(file, path)
            if not left:  # the rest of a large archive need not be unpacked
                return


class _Guarded:
    """A file in an archive, whose errors of reading name the archive."""

    def __init__(self, file: Readable, path: Path) -> None:
        self._file, self._path = file, path

    def read(self, size: int = -1, /) -> bytes:
        with _naming(self._path):
            return self._file.read(size)
