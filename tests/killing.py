"""Kills a process at a moment of choice: before any of its operations on files, inside its writes, or by the clock.

The work runs in a forked child, which has everything imported already and may be killed by SIGKILL as a machine that
loses power would; what it leaves on disk is what the next child finds.
"""

from __future__ import annotations

import builtins
import dataclasses
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

OPERATIONS = ("os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")


@dataclasses.dataclass(frozen=True)
class Ending:
    """How a child ended: whether it was killed, how many moments it had, and what it said."""

    killed: bool
    moments: int
    said: str


class Killer:
    """Counts the moments at which files under `root` change, and ends the process at one of them."""

    def __init__(self, root: Path, moment: int, share: float) -> None:
        self.root, self.moment, self.share, self.count = str(root), moment, share, 0

    def install(self) -> None:
        """From here on, in this process, for good."""
        import safetensors.torch

        from domainfusion import tensors
        from domainfusion.training import checkpoint

        sys.addaudithook(self.audit)
        self.open = builtins.open
        builtins.open = io.open = self.open_torn
        self.save = safetensors.torch.save_file
        for module in (tensors, checkpoint, safetensors.torch):
            module.save_file = self.save_torn

    def due(self) -> bool:
        """Whether this moment, which is counted, is the one."""
        self.count += 1
        return self.count == self.moment

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Called by the interpreter before each operation."""
        if event in OPERATIONS and any(str(item).startswith(self.root) for item in arguments[:2]) and self.due():
            die()

    def open_torn(self, file: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
        """`open`; what is written to files under `root` is counted."""
        opened = self.open(file, mode, *rest, **options)
        if set(mode) & set("wax+") and not isinstance(file, int) and os.fspath(file).startswith(self.root):
            if self.due():
                die()
            return Torn(opened, self)
        return opened

    def save_torn(self, tensors: Any, path: Any, *rest: Any, **options: Any) -> None:
        """safetensors' `save_file`, whose writes Python does not see: a part of the file is there at the kill."""
        self.save(tensors, path, *rest, **options)
        if self.due():
            os.truncate(path, int(self.share * os.path.getsize(path)))
            die()


class Torn:
    """A file one of whose writes may stop in the middle, and the process with it."""

    def __init__(self, file: Any, killer: Killer) -> None:
        self.file, self.killer = file, killer

    def write(self, data: Any) -> int:
        """Write `data`, or a part of it and die."""
        if self.killer.due():
            self.file.write(data[: int(self.killer.share * len(data))])
            self.file.flush()
            die()
        return self.file.write(data)

    def __enter__(self) -> Torn:
        self.file.__enter__()
        return self

    def __exit__(self, *error: Any) -> Any:
        return self.file.__exit__(*error)

    def __iter__(self) -> Any:
        return iter(self.file)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def die() -> None:
    """What cannot be caught, and cleans nothing up."""
    os.kill(os.getpid(), signal.SIGKILL)


def run(work: Callable[[], object], root: Path, *, moment: int = 0, share: float = 0.5, seconds: float = 0.0) -> Ending:
    """Do `work` in a child that is killed at a moment (0: at none), or after so many seconds (0: never).

    Raises AssertionError, with what it said, where the child ends by an error.
    """
    read, write = os.pipe()
    log = root.parent / f"{root.name}.log"
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
            sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb", 0, closefd=False), write_through=True)
            killer = Killer(root, moment, share)
            killer.install()
            if seconds:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.setitimer(signal.ITIMER_REAL, seconds)
            work()
            os.write(write, str(killer.count).encode())
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        counted = pipe.read()
    _, status = os.waitpid(child, 0)
    said = log.read_text()
    killed = os.WIFSIGNALED(status)
    assert killed or os.waitstatus_to_exitcode(status) == 0, said
    return Ending(killed, int(counted or 0), said)
