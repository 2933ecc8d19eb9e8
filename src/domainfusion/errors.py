"""Errors that a user can act on: each message names the file or the option, the rule, and the remedy."""

from __future__ import annotations

import difflib
import signal
import sys
from collections.abc import Iterable


class DomainFusionError(Exception):
    """Base of all expected failures; the command line prints it in one line and exits with 1."""


class UsageError(DomainFusionError):
    """A wrong option, name or value; the command line exits with 2."""


class DataError(DomainFusionError):
    """A data set that cannot be read as `root/domain/class/image`."""


class LDMError(DomainFusionError):
    """A folder or hub id that is no usable latent diffusion pipeline."""


class TrainingError(DomainFusionError):
    """Training cannot go on (a non-finite loss, say); the last checkpoint is kept."""


class FileError(DomainFusionError):
    """A file of a run that is missing, truncated or altered, or a folder that cannot be written."""


class NoLDM(LDMError, UsageError):
    """What was named as an LDM is not there or is none; the command line exits with 2."""


class NoModel(FileError, UsageError):
    """What was named as a run or a model is none; the command line exits with 2."""


class NoSource(DataError, UsageError):
    """What was named as a corpus or an archive is not there or is none; the command line exits with 2."""


class Busy(FileError):
    """A folder that another process is at work in."""


class Interrupted(DomainFusionError):
    """Asked to stop by a signal, `number`; the command line exits with 128 + number.

    Args:
        then: what has become of the work: everything is saved, unless it says otherwise.
    """

    def __init__(self, number: int, then: str = "everything is saved, the same command goes on from here") -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}; {then}")
        self.number = number


def printable(text: str) -> str:
    r"""`text` in one line: control characters, of file names say, as escapes.

    >>> printable("a\nb\x1b[2J")
    'a\\nb\\x1b[2J'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shortened(text: object, length: int = 200) -> str:
    """`text`, of which a file of any size may be the author, cut to what a line of a message has room for.

    >>> shortened("abcdef", 4)
    'abcd…'
    """
    found = str(text)
    return found if len(found) <= length else f"{found[:length]}…"


def show_note(text: str) -> None:
    """Print a remark to stderr in one line."""
    print(f"note: {printable(text)}", file=sys.stderr)


def nearest(name: str, known: Iterable[str], cutoff: float = 0.5) -> str | None:
    """The one of `known` that `name` is likely to mean, in capital or small letters; None where none is near.

    >>> nearest("ERM", ["erm", "rsc"]), nearest("photo", ["Photo", "Art"]), nearest("x", ["erm"])
    ('erm', 'Photo', None)
    """
    lower = {each.lower(): each for each in known}
    near = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=cutoff)
    return lower[near[0]] if near else None


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """A `UsageError` for `name`, suggesting the nearest of `known`.

    >>> str(unknown_name("algorithm", "domianfusion", ["erm", "domainfusion"]))
    "unknown algorithm 'domianfusion'; did you mean 'domainfusion'? Known: domainfusion, erm"
    """
    names = sorted(known)
    near = nearest(name, names)
    hint = f"; did you mean {near!r}?" if near else "."
    return UsageError(f"unknown {kind} {name!r}{hint} Known: {', '.join(names)}")
