"""Forked processes: the answers they give, and work that goes on in them."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable


def start(work: Callable[[], object]) -> int:
    """The number of a child that does `work` and ends, with exit code 1 where that fails."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


def answers(work: Callable[[], list[bool]]) -> list[bool]:
    """What `work` returns in a child."""
    read, write = os.pipe()
    child = start(lambda: os.write(write, bytes(work())))
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        found = list(map(bool, pipe.read()))
    assert os.waitpid(child, 0)[1] == 0
    return found


def wait_until(true: Callable[[], bool], otherwise: str = "", seconds: float = 120.0) -> None:
    """Return when something has come true, as another process should see to soon; fail, saying what else is so."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, otherwise
        time.sleep(0.01)
