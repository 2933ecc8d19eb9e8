"""Standard output and error that take any text, whatever their encoding: what it lacks is written in ASCII."""

from __future__ import annotations

import codecs
import io
import sys
from typing import IO

PLAIN = "domainfusion.plain"  # the error handler's name among Python's
# What tables and messages are drawn and written with.
IN_ASCII = {
    "─": "-", "│": "|", "±": "+/-", "–": "-", "…": "...", "·": "*", "×": "x", "√": "sqrt", "²": "^2", "→": "->",
    "“": '"', "”": '"', "λ": "lambda", "σ": "sigma", "ε": "epsilon", "μ": "mu",
}  # fmt: skip


def in_ascii(error: UnicodeError) -> tuple[str, int]:
    r"""An error handler: a rule or a sign by its like in ASCII, any other character as an escape.

    >>> codecs.register_error("example", in_ascii)
    >>> "87.5 ± 0.3 ── Фо.png".encode("latin-1", "example").decode("latin-1")
    '87.5 ± 0.3 -- \\u0424\\u043e.png'
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(IN_ASCII.get(c) or c.encode("ascii", "backslashreplace").decode() for c in lacking), error.end


def is_unicode(stream: IO[str]) -> bool:
    """Whether a stream's encoding holds every character."""
    return (getattr(stream, "encoding", None) or "utf-8").lower().replace("_", "-").startswith("utf")


def take_any_text() -> None:
    """Let stdout and stderr of this process write what their encoding lacks in ASCII, and not end in an error.

    A handler of the user's (`PYTHONIOENCODING=ascii:replace`) stays.
    """
    codecs.register_error(PLAIN, in_ascii)
    for stream, own in ((sys.stdout, ("strict", "surrogateescape")), (sys.stderr, ("backslashreplace",))):
        if not isinstance(stream, io.TextIOWrapper):  # of a notebook, say
            continue
        bytes_of_names = stream.errors == "surrogateescape" and is_unicode(stream)  # these come out as they are
        if stream.errors in own and not bytes_of_names:
            stream.reconfigure(errors=PLAIN)
