"""How far a sweep is, on stderr: a table that is drawn again in its place, or plain lines where it is no terminal."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TextIO

from domainfusion.doctor import duration
from domainfusion.results.tables import text_table
from domainfusion.sweep.ledger import ENDED, Entry, Ledger

PAUSE = 1.0  # seconds between two drawings


class Progress:
    """Tells of a ledger's runs on a stream."""

    def __init__(self, ledger: Ledger, stream: TextIO | None = None) -> None:
        self.ledger, self.stream = ledger, stream or sys.stderr
        self.live = self.stream.isatty()
        self._drawn = 0  # lines of the table on the screen
        self._last = 0.0

    def say(self, line: str) -> None:
        """A line that stays, above the table."""
        self._erase()
        self.stream.write(f"{line}\n")
        self.stream.flush()
        self._last = 0.0

    def began(self, entry: Entry) -> None:
        """A run began."""
        if not self.live:
            again = f", again ({entry.lost} lost)" if entry.lost else ""
            self.say(f"begun: {entry.run.name}{again}")

    def ended(self, entry: Entry) -> None:
        """A run ended."""
        assert entry.outcome is not None
        outcome, run = entry.outcome, entry.run
        if outcome.status == "failed":
            self.say(f"failed: {run.name}: {outcome.reason}")
        elif not self.live:
            found = "" if outcome.validation is None else f", source validation {100 * outcome.validation:.1f} %"
            self.say(f"{outcome.status}: {run.name}{found}; {self.summary()}")

    def summary(self) -> str:
        """The whole in a line."""
        ledger = self.ledger
        parts = [f"{ledger.count(*ENDED)} of {len(ledger.entries)} ended", f"{ledger.count('running')} running"]
        parts += [f"{ledger.count(name)} {name}" for name in ("pruned", "failed") if ledger.count(name)]
        seconds = ledger.seconds_left()
        if ledger.left and seconds is not None:
            parts.append(f"about {duration(max(1.0, seconds))} left")
        return ", ".join(parts)

    def table(self) -> str:
        """A table for each data set, an algorithm a row and a target a column, and the summary."""
        blocks = []
        for data, targets in self.ledger.plan.targets.items():
            algorithms = list(dict.fromkeys(entry.run.place.algorithm for entry in self.ledger.entries.values()))
            rows = [[Path(data).name, *targets]]
            for algorithm in algorithms:
                rows.append([algorithm, *(self._cell(data, algorithm, target) for target in targets)])
            blocks.append(text_table(rows))
        return "\n\n".join([*blocks, f"{self.summary()} (ended/all, > running, ! failed)"])

    def _cell(self, data: str, algorithm: str, target: str) -> str:
        mine = [
            entry.status for entry in self.ledger.entries.values()
            if (entry.run.place.data, entry.run.place.algorithm, entry.run.place.target) == (data, algorithm, target)
        ]  # fmt: skip
        text = f"{sum(status in ENDED for status in mine)}/{len(mine)}"
        for sign, name in ((">", "running"), ("!", "failed")):
            if name in mine:
                text += f" {sign}{mine.count(name)}"
        return text

    def tick(self, now: bool = False) -> None:
        """Draw the table again where that is due."""
        if not self.live or (not now and time.monotonic() - self._last < PAUSE):
            return
        self._erase()
        columns, height = _size()
        lines = [line[: columns - 1] for line in self.table().splitlines()][-max(1, height - 1) :]
        self.stream.write("\n".join(lines) + "\n")
        self.stream.flush()
        self._drawn, self._last = len(lines), time.monotonic()

    def _erase(self) -> None:
        if self._drawn:
            self.stream.write(f"\x1b[{self._drawn}A\x1b[J")  # up so many lines, and clear to the end of the screen
            self._drawn = 0


def _size() -> tuple[int, int]:
    try:
        size = os.get_terminal_size(sys.stderr.fileno())
        return size.columns, size.lines
    except (OSError, ValueError):
        return 80, 24
