"""Less of a file that still fails in the same place: `python -m fuzz.minimising CHECK FILE SECONDS`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from fuzz.worker import attempt, place_of, resolve

FINE = 16  # pieces of at most so many bytes are taken out wherever they begin, of every length


def minimise(content: bytes, fails: Callable[[bytes], bool], seconds: float = 20) -> bytes:
    """The shortest part of `content` that was found to fail, taking out ever smaller pieces until none can go.

    >>> minimise(b"abcdXefgh", lambda part: b"X" in part)
    b'X'
    """
    end = time.monotonic() + seconds
    size = max(FINE, len(content) // 2)
    while size:
        at, before = 0, len(content)
        while at < len(content):
            if time.monotonic() > end:
                return content
            shorter = content[:at] + content[at + size :]
            if fails(shorter):
                content = shorter
            else:
                at += size if size > FINE else 1
        if len(content) == before:
            size = size // 2 if size > FINE else size - 1
    return content


def main(words: list[str]) -> int:
    """Minimise the file in its place; 1 where it does not fail."""
    check, path, seconds = resolve(words[0]), Path(words[1]), float(words[2])
    error = attempt(check, path.read_bytes())
    if error is None:
        return 1
    place = place_of(error)

    def fails(content: bytes) -> bool:
        found = attempt(check, content)
        return found is not None and place_of(found) == place

    path.write_bytes(minimise(path.read_bytes(), fails, seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
