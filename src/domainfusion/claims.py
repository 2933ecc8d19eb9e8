"""Work that processes share out: each claims what no other has begun.

A claim is a lock on a byte of a file, that of the work's number. The system takes it off when the process ends, however
it ends, so that what a killed one had begun is there for another. Claims belong to a process as a whole: they say
nothing to its own threads, and end when it closes the file, by whichever of its descriptors. On a file system without
locks everybody is given everything: work may then be done twice, with the same result.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path

import numpy as np

from domainfusion.interruption import check
from domainfusion.locks import open_lock

PAUSE = 1.0  # seconds between two looks at what another process is at
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)  # says a file system that has none


def take(descriptor: int, number: int) -> bool:
    """Claim `number` in an open file, now; whether no other process has it."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        if error.errno not in WITHOUT_LOCKS:
            raise
    return True


def give_up(descriptor: int, number: int) -> None:
    """End a claim."""
    with contextlib.suppress(OSError):
        fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, number)


def wait_for(descriptor: int, number: int) -> None:
    """Return when no other process has `number`, or raise `Interrupted` at a signal to stop.

    To be called without claims, or two processes could wait for each other.
    """
    while not take(descriptor, number):
        check()
        time.sleep(PAUSE)
    give_up(descriptor, number)


@contextlib.contextmanager
def claimed(descriptor: int, numbers: np.ndarray) -> Iterator[np.ndarray]:
    """Keep other processes from those of `numbers` (n,) that none has claimed, for the length of the block.

    (n,) bool: which they are.
    """
    ours = np.array([take(descriptor, int(number)) for number in numbers], dtype=bool)
    try:
        yield ours
    finally:
        for number in numbers[ours]:
            give_up(descriptor, int(number))


def claim_each(
    path: Path, numbers: Iterable[int], *, on_wait: Callable[[], object] | None = None
) -> Generator[int, None, None]:
    """Each of `numbers`, claimed in the file `path` until the next is asked for; those that others have come last.

    What there is still to do of a number is for the caller to see: another process may have done it by then. Close the
    generator where it is left early, so that its claim ends there.

    Args:
        on_wait: called before each pause in which other processes have all that is left.

    Raises `Interrupted` between two numbers, and while it waits, where a signal asks to stop.
    """
    left = list(numbers)
    with open_lock(path) as descriptor:
        while left:
            busy = []
            for number in left:
                check()
                if not take(descriptor, number):
                    busy.append(number)
                    continue
                try:
                    yield number
                finally:
                    give_up(descriptor, number)
            if len(busy) == len(left):
                if on_wait is not None:
                    on_wait()
                time.sleep(PAUSE)
            left = busy
