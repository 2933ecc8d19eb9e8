"""Claims on work that processes share out: whom they hold against, how they end, and what a signal does to a wait."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from children import answers, start, wait_until
from domainfusion import claims
from domainfusion.claims import claim_each, claimed, wait_for
from domainfusion.errors import Interrupted
from domainfusion.interruption import stoppable
from domainfusion.locks import open_lock


def claims_of(folder: Path, numbers: np.ndarray) -> list[bool]:
    with open_lock(folder / "claims") as descriptor, claimed(descriptor, numbers) as ours:
        return ours.tolist()


def test_a_claim_holds_against_other_processes_and_ends_with_its_own(tmp_path: Path) -> None:
    numbers = np.array([3, 7, 8, 900_000_000_000])
    with open_lock(tmp_path / "claims") as descriptor:
        with claimed(descriptor, numbers[:3]) as ours:
            assert ours.all()
            assert answers(lambda: claims_of(tmp_path, numbers)) == [False, False, False, True]
        assert answers(lambda: claims_of(tmp_path, numbers)) == [True] * 4


def test_one_at_a_time_is_claimed(tmp_path: Path) -> None:
    numbers = np.array([2, 5, 9])
    each = claim_each(tmp_path / "claims", numbers.tolist())
    assert next(each) == 2
    assert answers(lambda: claims_of(tmp_path, numbers)) == [False, True, True]
    assert next(each) == 5
    assert answers(lambda: claims_of(tmp_path, numbers)) == [True, False, True]
    each.close()
    assert answers(lambda: claims_of(tmp_path, numbers)) == [True] * 3


@pytest.fixture
def held(tmp_path: Path) -> int:
    """A process that has claimed 1 and 4 until it is killed."""

    def hold() -> None:
        with open_lock(tmp_path / "claims") as descriptor, claimed(descriptor, np.array([1, 4])):
            (tmp_path / "begun").touch()
            signal.pause()

    child = start(hold)
    wait_until((tmp_path / "begun").exists)
    return child


def test_what_others_have_comes_last_and_when_they_end(
    tmp_path: Path, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "PAUSE", 0.01)
    seen: list[int | str] = []

    def on_wait() -> None:
        seen.append("wait")
        if seen.count("wait") == 3:
            os.kill(held, signal.SIGKILL)
            os.waitpid(held, 0)

    for number in claim_each(tmp_path / "claims", [1, 2, 4, 3], on_wait=on_wait):
        seen.append(number)
    assert seen == [2, 3, "wait", "wait", "wait", 1, 4]


def test_whoever_has_waited_has_no_claim(tmp_path: Path) -> None:
    with open_lock(tmp_path / "claims") as descriptor:
        wait_for(descriptor, 4)
        assert answers(lambda: claims_of(tmp_path, np.array([4]))) == [True]


@pytest.mark.parametrize("one", [False, True])
def test_a_signal_ends_the_wait(tmp_path: Path, held: int, monkeypatch: pytest.MonkeyPatch, one: bool) -> None:
    monkeypatch.setattr(claims, "PAUSE", 0.01)

    def wait() -> None:
        with stoppable():
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            if one:
                with open_lock(tmp_path / "claims") as descriptor:
                    wait_for(descriptor, 4)
            else:
                list(claim_each(tmp_path / "claims", [4]))

    before = signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    try:
        with pytest.raises(Interrupted):
            wait()
    finally:
        signal.signal(signal.SIGALRM, before)
        os.kill(held, signal.SIGKILL)
        os.waitpid(held, 0)


def test_a_file_system_without_locks_gives_everybody_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trouble = errno.ENOLCK

    def refuse(*_: object) -> None:
        raise OSError(trouble, os.strerror(trouble))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    assert list(claim_each(tmp_path / "claims", [1, 2])) == [1, 2]
    trouble = errno.EIO  # another trouble is one
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        next(claim_each(tmp_path / "claims", [1, 2]))
