"""The process that fuzzes: `python -m fuzz.worker CHECK CRASHES MODULES [libFuzzer's words…]`.

An exception that a property lets out is written down once for every place that it comes from, and fuzzing goes on; an
input that takes too long or too much memory ends the process, and libFuzzer writes it down.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

Check = Callable[[bytes, Path], None]
MEMORY = Path("/dev/shm")  # folders are made and removed there ten times as fast as on some disks
KEPT = 20  # places; a property that fails everywhere need not fill the disk


def resolve(name: str) -> Any:
    """What `module:function` names."""
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def place_of(error: BaseException) -> str:
    """Where an exception came from: its type, and the line of ours (else any) that it was in last.

    Of a failed assertion about another error: where both came from.
    """
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "site-packages" not in frame.filename and "domainfusion" in frame.filename]
    last = (ours or frames)[-1]
    about = f", about {place_of(error.__context__)}" if isinstance(error, AssertionError) and error.__context__ else ""
    return f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}{about}"


def attempt(check: Check, content: bytes) -> BaseException | None:
    """What `check` lets out of `content`, in a new folder; None where all is well."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir=MEMORY if MEMORY.is_dir() else None))
    try:
        check(content, folder)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a library in Rust that panics raises no Exception
        return error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return None


def keep(folder: Path, content: bytes, error: BaseException) -> Path | None:
    """Write down what made `error`, beside its traceback, if it is the first from its place; returns its path."""
    place = place_of(error)
    path = folder / f"{type(error).__name__}-{hashlib.sha256(place.encode()).hexdigest()[:8]}"
    if path.exists() or len(list(folder.glob("*.txt"))) >= KEPT:
        return None
    path.write_bytes(content)
    text = f"{place}\n\n{''.join(traceback.format_exception(error))}"
    path.with_suffix(".txt").write_text(text, encoding="utf-8", errors="backslashreplace")
    return path


def main(words: list[str]) -> None:
    """Fuzz until libFuzzer has had enough."""
    import atheris

    name, crashes, modules, *rest = words
    with atheris.instrument_imports(include=["domainfusion", *filter(None, modules.split(","))]):
        check: Check = resolve(name)
        attempt(check, b"")  # what is imported at the first use; an input is not blamed for the time that takes

    def one_input(content: bytes) -> None:
        error = attempt(check, content)
        if error is not None:
            keep(Path(crashes), content, error)

    os.fsync = lambda fd: None  # nothing here need outlive the machine, and waiting for the disk is most of it
    atheris.Setup(["fuzz", *rest], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
