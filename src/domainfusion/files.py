"""Files on disk: atomic writes, hashes, JSON, and where the caches live. No torch here."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from domainfusion.errors import FileError

CHECKSUMS = "SHA256SUMS"  # of a finished run's files, as `sha256sum -c` reads it
_UMASK = os.umask(0)
os.umask(_UMASK)


def cache_folder() -> Path:
    """The folder for decoded images and candidates: `$DOMAINFUSION_CACHE`, or `~/.cache/domainfusion`."""
    root = os.environ.get("DOMAINFUSION_CACHE")
    if root:
        return Path(root)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "domainfusion"


def make_folder(path: Path) -> Path:
    """`path`, made with its parents if it was missing. Raises `FileError` where that is not possible."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(
            f"cannot make the folder {path}: {'a file is there' if path.is_file() else error.strerror}; choose another "
            "(that of the cache by $DOMAINFUSION_CACHE)"
        ) from error
    return path


@contextlib.contextmanager
def no_empty_folder(path: Path) -> Iterator[None]:
    """A block that may make the folder `path`: where it raises, `path` and its parents are gone if new and empty."""
    new = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # one that holds something, and so do its parents
            for folder in new:
                folder.rmdir()
        raise


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that replaces it, flushed to disk, when the block ends without an error.

    A reader therefore sees the old file or the new one, never half of one, and a full disk leaves the old one.
    """
    make_folder(path.parent)
    temporary = Path(tempfile.mktemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_UMASK)  # safetensors writes files that nobody else may read
        os.replace(temporary, path)
    except OSError as error:
        if path.is_dir():
            raise FileError(f"cannot write {path}: it is a folder; name a file in it") from error
        remedy = "free some space" if error.errno == errno.ENOSPC else "check the folder's permissions"
        raise FileError(f"cannot write {path}: {error.strerror}; {remedy} and run the same command again") from error
    finally:
        with contextlib.suppress(OSError):  # where nothing can be written nothing can be deleted either
            temporary.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Raise `FileError` where the file `path` could not be written: asked before long work, not after it."""
    if path.is_dir():
        raise FileError(f"cannot write {path}: it is a folder; name a file in it")
    make_folder(path.parent)
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise FileError(f"cannot write {path}: {error.strerror}; check the folder's permissions") from error


def reserve(path: Path, size: int) -> None:
    """Reserve `size` bytes of disk for the file `path`, made if missing.

    A memory-mapped file without its blocks reserved ends the process with a bus error where the disk fills up; here a
    full disk is a `FileError`, and the file is gone again.
    """
    try:
        with open(path, "ab") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):  # a file system without reservations
            return
        path.unlink(missing_ok=True)
        raise FileError(
            f"cannot write {path} ({size / 1e6:.0f} MB): {error.strerror}; free some space, or put the cache elsewhere "
            "with $DOMAINFUSION_CACHE, and run the same command again"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically."""
    with atomic_path(path) as temporary:
        # File names that are not UTF-8 reach Python as lone surrogates, which no file of text can hold.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def json_text(value: Any) -> str:
    """`value` as indented JSON."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
    # File names that are not UTF-8 reach Python as lone surrogates, which only JSON's escapes can hold.
    return re.sub("[\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` as indented JSON, atomically."""
    write_text(path, json_text(value))


def keep_also(path: Path, other: Path) -> None:
    """Let `other` be the file `path` as it is now, whatever becomes of `path`; in one step, and without copying it.

    A file system without hard links gets a copy.
    """
    temporary = Path(tempfile.mktemp(prefix=f".{other.name}.", suffix=".tmp", dir=other.parent))
    try:
        try:
            os.link(path, temporary)
        except OSError:
            shutil.copyfile(path, temporary)
        os.replace(temporary, other)
    finally:
        temporary.unlink(missing_ok=True)


def checksums_text(hashes: dict[str, str]) -> str:
    """{name: SHA-256 in hex} as the lines that `sha256sum -c` reads."""
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(hashes.items()))


def altered_files(folder: Path) -> list[str]:
    """The files of `folder` that are missing or not what its list `SHA256SUMS` says; none where there is no list."""
    path = folder / CHECKSUMS
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError):
        return [CHECKSUMS]
    listed = [re.fullmatch(r"([0-9a-f]{64})  ([\w.-]+)", line) for line in lines]
    found = [] if all(listed) else [CHECKSUMS]
    for line in filter(None, listed):
        target = folder / line[2]
        if not target.is_file() or hash_of_file(target) != line[1]:
            found.append(line[2])
    return found


def read_json(path: Path) -> Any:
    """The JSON value in `path`. Raises `FileError` naming the file where it is missing or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileError(f"{path} is missing") from error
    except (ValueError, OSError, RecursionError) as error:
        raise FileError(f"{path} cannot be read as JSON: {error}") from error


def read_json_object(path: Path, **fields: type | tuple[type, ...]) -> dict[str, Any]:
    """The JSON object in `path`, which has `fields` of these types. Raises `FileError` naming file and field."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise FileError(f"{path} holds {str(found)[:40]!r}, no JSON object; it was altered or damaged")
    for name, kind in fields.items():
        if name not in found or not isinstance(found[name], kind):
            what = f"is {str(found[name])[:40]!r}" if name in found else "is missing"
            raise FileError(f"{path}: {name} {what}; it was altered or damaged")
    return found


def open_to_all(folder: Path) -> None:
    """Give `folder`, made by `tempfile`, the permissions that other new folders have: a cache may be shared."""
    folder.chmod(0o777 & ~_UMASK)


def hash_of(value: Any) -> str:
    """A short stable name (16 hex digits) for any JSON-like `value`."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def hash_of_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
