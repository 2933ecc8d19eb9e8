"""What a tracker is: something that is told of a run's options, records, pictures and result.

A tracker of one's own is a class with these methods, named by its import path (`--track my_module:MyTracker`) or by an
entry point of the group `domainfusion.trackers`. What it raises ends its part and never the run.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

Scalar = bool | int | float | str


@dataclasses.dataclass(frozen=True)
class Beginning:
    """What a tracker is opened with, the first time and every time the run goes on."""

    folder: Path  # of the run
    name: str  # of the run: data set, algorithm, target, trial and seed
    group: str  # name of the data set
    options: Mapping[str, Scalar]  # every option, by its dotted name
    identity: str  # what `begin` returned the first time; empty then
    step: int  # the last step it has been told of; -1: none


class Tracker(Protocol):
    """Is told what a run comes to. Steps ascend, and none is told twice, however often the run is interrupted."""

    def begin(self, beginning: Beginning) -> str:
        """Open the run, or open it again; returns how the tracker calls it."""

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Take the figures of an evaluation after `step` steps."""

    def picture(self, name: str, step: int, path: Path) -> None:
        """Take a PNG picture, made by `step`."""

    def finish(self, step: int, result: Mapping[str, float]) -> None:
        """Take the figures of the finished run."""

    def close(self, finished: bool) -> None:
        """Let go of the run: it is finished, or it will go on another time."""


def numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The finite numbers of nested values, by their path.

    >>> numbers({"loss": 0.5, "validation": {"photo": 1}, "classes": ["cat"], "ok": True})
    {'loss': 0.5, 'validation/photo': 1}
    """
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= numbers(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            found[prefix + name] = value
    return found


def scalars(values: Mapping[str, Any], prefix: str = "") -> dict[str, Scalar]:
    """Nested options by their dotted names, lists as text.

    >>> scalars({"steps": 4, "generate": {"strength": [0.5, 0.9]}})
    {'steps': 4, 'generate.strength': '0.5, 0.9'}
    """
    found: dict[str, Scalar] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= scalars(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value if isinstance(value, (bool, int, float, str)) else ", ".join(map(str, value))
    return found
