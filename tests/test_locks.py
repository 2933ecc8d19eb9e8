"""Locks: they are waited for, keep others out of a folder, and leave no folder that nothing was written to."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from domainfusion.errors import Busy, FileError
from domainfusion.files import write_text
from domainfusion.locks import exclusive, locked


def test_a_lock_is_waited_for(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from pathlib import Path; from domainfusion.locks import locked\n"
        "with locked(Path(sys.argv[1])): print('held')"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "lock")]
    with locked(tmp_path / "lock"):
        other = subprocess.Popen(command, stdout=subprocess.PIPE)
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(1.5)
    assert other.communicate(timeout=60)[0] == b"held\n"


def test_a_lock_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    with pytest.raises(FileError, match=r"cannot lock .*lock: Is a directory"), locked(tmp_path / "lock"):
        pass


def test_a_folder_is_for_one_at_a_time_and_who_it_is_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").write_text("123456789012")  # of a process before
    with (
        exclusive(tmp_path / "run"),
        pytest.raises(Busy, match=rf"process {os.getpid()} is at work in .*run: wait for it"),
        exclusive(tmp_path / "run"),
    ):
        pass
    with exclusive(tmp_path / "run"):
        pass


def test_a_block_that_wrote_nothing_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="refused"), exclusive(tmp_path / "a" / "b" / "run"):
        raise ValueError("refused")
    assert list(tmp_path.iterdir()) == []


def test_a_block_that_wrote_something_leaves_it(tmp_path: Path) -> None:
    def write_and_fail() -> None:
        write_text(tmp_path / "a" / "run" / "config.toml", "")
        raise ValueError("refused")

    with pytest.raises(ValueError, match="refused"), exclusive(tmp_path / "a" / "run"):
        write_and_fail()
    assert (tmp_path / "a" / "run" / "config.toml").exists()


def test_a_folder_that_was_there_stays(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(ValueError, match="refused"), exclusive(tmp_path / "run"):
        raise ValueError("refused")
    assert (tmp_path / "run").is_dir()


def test_a_lock_that_was_taken_away_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between opening the file and locking it, the process that had it gave up and removed it."""
    lock = fcntl.flock

    def late(descriptor: int, how: int) -> None:
        (tmp_path / "run" / ".lock").unlink()
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(Busy, match="run the same command again"), exclusive(tmp_path / "run"):
        pass
