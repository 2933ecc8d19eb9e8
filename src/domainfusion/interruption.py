"""SIGINT and SIGTERM (Ctrl-C; a cluster that wants its node back) as a request, honoured where work can be saved.

Inside `stoppable()` the first signal only raises a flag; `check()`, called where stopping is safe, turns it into
`Interrupted`. A second signal ends the program at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

from domainfusion.errors import Interrupted

_requested: int | None = None


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """A block in which signals wait for `check`, or for its end. Outside the main thread, or nested, it does nothing.

    Raises `Interrupted` at its end where a signal has come and nothing has checked since.
    """
    global _requested
    signals = (signal.SIGINT, signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is _request:
        yield
        return
    before = {number: signal.signal(number, _request) for number in signals}
    _requested = None
    try:
        yield
        check()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _requested = None


def requested() -> bool:
    """Whether a signal has come."""
    return _requested is not None


def check(*, elsewhere: bool = False) -> None:
    """Raise `Interrupted` where a signal has come, here or (`elsewhere`) to a process that this one works with."""
    if _requested is not None:
        raise Interrupted(_requested)
    if elsewhere:
        raise Interrupted(signal.SIGTERM)


def _request(number: int, frame: FrameType | None) -> None:
    global _requested
    if _requested is not None:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    _requested = number
    print(f"\n{signal.Signals(number).name}: saving; once more ends at once", file=sys.stderr)
