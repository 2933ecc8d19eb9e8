"""The targets by name. Nothing of the package is imported here: it is instrumented while it is imported."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Target:
    """A reader to fuzz.

    Args:
        check: `module:function` of the property, called with the content of a file and an empty folder.
        seeds: `module:function` of what fuzzing begins from.
        words: `module:function` of the words that mutations may put in; none where empty.
        modules: what is instrumented beside the package: readers that are written in Python.
        longest: bytes of an input.
        seconds: an input that takes longer is a finding.
        megabytes: of the whole process, the libraries' few hundred included; more is a finding.
    """

    check: str
    seeds: str
    words: str = ""
    modules: tuple[str, ...] = ()
    longest: int = 4096
    seconds: int = 10
    megabytes: int = 2048


def _target(name: str, *modules: str, **limits: int) -> Target:
    words = "" if name == "image" else f"fuzz.seeds:{name[:-1] if name.endswith('s') else name}_words"
    return Target(f"fuzz.properties:{name}", f"fuzz.seeds:{name}", words, modules, **limits)


TARGETS = {
    "options": _target("options", "tomllib"),
    "records": _target("records"),
    # An image may have 89 million pixels: in four channels and as whole numbers these are more than two gigabytes.
    "image": _target("image", "PIL", megabytes=4096, seconds=20),
    "metadata": _target("metadata", "csv", "json.decoder"),
    "state": _target("state"),
    "model": _target("model", "tomllib", longest=8192),
    "archive": _target("archive", "zipfile", "tarfile", longest=8192),
}
