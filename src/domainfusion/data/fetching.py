"""A file from a server: a download that goes on where it broke, and is checked.

Where no MD5 is known, one that the server announces is compared, which finds damage on the way.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import http.client
import os
import shutil
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from tqdm import tqdm

from domainfusion.errors import DataError, FileError, show_note

AGENT = "domainfusion (https://pypi.org/project/domainfusion)"
BLOCK = 1 << 20


@dataclasses.dataclass(frozen=True)
class Remote:
    """A file on a server; `size` in bytes and `md5` where known, `about` is its size in words where not."""

    url: str
    size: int | None = None
    md5: str | None = None
    about: str = ""

    @property
    def file(self) -> str:
        """The name that it is stored under."""
        return self.url.rsplit("/", 1)[1]

    @property
    def size_text(self) -> str:
        """Its size for people."""
        if self.size is None:
            return self.about
        return f"{self.size / 1e9:.1f} GB" if self.size >= 1e9 else f"{self.size / 1e6:.1f} MB"


def fetch(remote: Remote, path: Path, *, attempts: int = 4, wait: float = 1.0, progress: bool = True) -> dict[str, Any]:
    """Download `remote` to `path`, going on with `path`.part where there is one; returns url, size and checksums.

    Args:
        attempts: how often a broken connection is taken up again without getting anywhere.
        wait: seconds before the first of them; doubled each time.

    Raises `DataError` where the server refuses, keeps breaking off, or gives another file than the known one.
    """
    part = path.with_name(path.name + ".part")
    if path.exists():  # loaded by hand, or before the record was written
        md5, sha256 = _checksums(path, progress)
        if md5 == remote.md5 or (remote.md5 is None and remote.size in (None, path.stat().st_size)):
            return _record(remote, path.stat().st_size, md5, sha256)
        # The beginning of the file, or another: what has been loaded already is not given up for it.
        shorter = remote.size is not None and path.stat().st_size < remote.size
        begun = shorter and not part.exists() and _is_archive(path)
        os.replace(path, part if begun else path.with_name(path.name + ".wrong"))
        if not begun:
            show_note(f"{path} is not the file that {remote.url} has; it is kept as {path.name}.wrong, and loaded anew")
    failures = 0
    with tqdm(desc=path.name, unit="B", unit_scale=True, unit_divisor=1000, disable=not progress) as bar:
        while True:
            before = part.stat().st_size if part.exists() else 0
            try:
                total, announced = _load(remote, part, bar)
                break
            except (OSError, http.client.HTTPException) as error:
                if isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code != 429:
                    raise DataError(f"{remote.url} answers {error.code} {error.reason}") from error
                failures = 1 if part.exists() and part.stat().st_size > before else failures + 1
                if failures >= attempts:
                    kept = f"; what has arrived is kept in {part}" if part.exists() else ""
                    raise DataError(f"{remote.url} cannot be loaded ({_reason(error)}){kept}") from error
                time.sleep(wait * 2 ** (failures - 1))
    if remote.size is not None and total != remote.size:
        print(
            f"note: {remote.file} has {total} bytes, not {remote.size}: it was changed at its source", file=sys.stderr
        )
    md5, sha256 = _checksums(part, progress)
    expected = remote.md5 or announced
    if expected is not None and md5 != expected:
        broken = path.with_name(path.name + ".wrong")
        os.replace(part, broken)
        what = "it is damaged or another file" if remote.md5 else "which its server announces: it is damaged"
        raise DataError(
            f"{remote.file} from {remote.url} has the MD5 {md5}, not {expected}{':' if remote.md5 else ','} {what}; "
            f"kept as {broken}"
        )
    os.replace(part, path)
    return _record(remote, total, md5, sha256, announced)


def _is_archive(path: Path) -> bool:
    """Whether a file begins as zip, gzip or tar files do."""
    with open(path, "rb") as file:
        head = file.read(265)
    return head.startswith((b"PK", b"\x1f\x8b")) or head[257:262] == b"ustar"


def _record(remote: Remote, size: int, md5: str, sha256: str, announced: str | None = None) -> dict[str, Any]:
    return {
        "url": remote.url, "size": size, "md5": md5, "sha256": sha256,
        "md5_known": (remote.md5 or announced) is not None,
        "loaded": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }  # fmt: skip


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"it answers {error.code} {error.reason}"
    reason = getattr(error, "reason", None) or error
    return f"{type(reason).__name__}: {reason}" if isinstance(reason, Exception) else str(reason)


def announced_md5(headers: Any) -> str | None:
    """The whole file's MD5, in hexadecimal digits, where an answer's headers have it as Google's servers do."""
    if (
        headers.get("x-goog-stored-content-encoding", "identity") != "identity"
    ):  # of what is stored, not of what is sent
        return None
    for value in ",".join(headers.get_all("x-goog-hash", [])).split(","):
        kind, _, coded = value.strip().partition("=")
        if kind == "md5":
            with contextlib.suppress(ValueError):
                digest = base64.b64decode(coded, validate=True)
                return digest.hex() if len(digest) == 16 else None
    return None


def _load(remote: Remote, part: Path, bar: Any) -> tuple[int, str | None]:
    """Load what `part` lacks; returns the size of the whole and the MD5 that the server announces, if any.

    Raises `OSError` where the connection breaks off.
    """
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": AGENT, "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        validator = _validator(part)
        if validator:  # a file that changed meanwhile is sent whole
            headers["If-Range"] = validator
    try:
        answer = urllib.request.urlopen(urllib.request.Request(remote.url, headers=headers), timeout=60)
    except urllib.error.HTTPError as error:
        whole = (error.headers.get("Content-Range") or "").rpartition("/")[2]
        if error.code == 416 and have and whole in (str(have), ""):
            return have, announced_md5(error.headers)  # nothing is missing
        if error.code == 416 and have:  # the part is longer than the file
            part.unlink()
            return _load(remote, part, bar)
        raise
    with answer:
        span = answer.headers.get("Content-Range") or ""
        if have and (answer.status != 206 or not span.startswith(f"bytes {have}-")):
            have = 0  # the server begins at the beginning
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length else None
        if total is not None:
            free = shutil.disk_usage(part.parent).free
            if total - have > free:
                raise FileError(
                    f"{part.parent} has {free / 1e9:.1f} GB free; {remote.file} needs {(total - have) / 1e9:.1f} GB "
                    "more; free some space"
                )
        announced = announced_md5(answer.headers)
        _validator(part, answer.headers.get("ETag") or answer.headers.get("Last-Modified") or "")
        bar.total = total
        bar.n = have
        bar.refresh()
        with open(part, "ab" if have else "wb") as file:
            while block := _read(answer):
                _write(file, block, part)
                have += len(block)
                bar.update(len(block))
    if total is not None and have != total:
        raise ConnectionError(f"the connection ended after {have} of {total} bytes")
    _validator_path(part).unlink(missing_ok=True)
    return have, announced


def _read(answer: Any) -> bytes:
    try:
        return bytes(answer.read(BLOCK))
    except http.client.IncompleteRead as error:
        if error.partial:
            return bytes(error.partial)
        raise


def _write(file: Any, block: bytes, part: Path) -> None:
    try:
        file.write(block)
    except OSError as error:  # not the connection's: trying again would not help
        raise FileError(f"cannot write {part}: {error.strerror}; free some space, the same command goes on") from error


def _validator_path(part: Path) -> Path:
    return part.with_name(part.name + ".etag")


def _validator(part: Path, value: str | None = None) -> str:
    """What the server called the version that `part` is of; set where `value` is given. Weak ones are not kept."""
    path = _validator_path(part)
    if value is not None:
        if value and not value.startswith("W/"):
            path.write_text(value, encoding="utf-8")
        else:
            path.unlink(missing_ok=True)
        return value
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _checksums(path: Path, progress: bool) -> tuple[str, str]:
    md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    size = path.stat().st_size
    with (
        open(path, "rb") as file,
        tqdm(total=size, desc="checking", unit="B", unit_scale=True, disable=not progress or size < 1 << 28) as bar,
    ):
        while block := file.read(BLOCK):
            md5.update(block)
            sha256.update(block)
            bar.update(len(block))
    return md5.hexdigest(), sha256.hexdigest()
