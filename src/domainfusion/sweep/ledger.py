"""The runs of a sweep as it goes on: waiting, running, ended; which is next, and how long the rest will take."""

from __future__ import annotations

import dataclasses
import statistics
import time
from typing import Any

from domainfusion.config import TrainConfig
from domainfusion.sweep.plan import Outcome, Plan, Run, read_outcome
from domainfusion.sweep.spaces import Observation

ENDED = ("done", "pruned", "failed")


@dataclasses.dataclass
class Entry:
    """What is known of a run."""

    run: Run
    status: str = "waiting"  # waiting, running, done, pruned, failed
    config: TrainConfig | None = None  # None while draws that it needs have not ended
    outcome: Outcome | None = None
    started: float = 0.0  # monotonic, of the present attempt
    seconds: float | None = None  # of the attempt that ended it, where that was now
    step: int = 0
    lost: int = 0  # how often its process or machine was


class Ledger:
    """Every run of a plan; what the store has already is ended from the start."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.entries = {run: Entry(run) for run in plan.runs}
        self.by_place: dict[Any, list[Entry]] = {}
        for entry in self.entries.values():
            self.by_place.setdefault(entry.run.place, []).append(entry)
        for entries in self.by_place.values():
            for entry in entries:
                config = self.resolve(entry)
                outcome = None if config is None else read_outcome(plan, entry.run, config)
                if outcome is not None:
                    entry.status, entry.outcome = outcome.status, outcome

    def resolve(self, entry: Entry) -> TrainConfig | None:
        """The options of a run; None while draws that it needs have not ended."""
        if entry.config is None:
            needed = self.plan.draws.needed(entry.run.hparams_seed)
            earlier: list[Observation] = []
            for other in self.by_place[entry.run.place][:needed]:
                if other.outcome is None or other.config is None:
                    return None
                earlier.append(self.plan.observation(other.config, other.outcome))
            entry.config = self.plan.config_of(entry.run, earlier)
        return entry.config

    def take(self) -> Entry | None:
        """The next run that can be begun, begun; None where all that are left wait for others."""
        for entry in self.entries.values():
            if entry.status == "waiting" and self.resolve(entry) is not None:
                self.begin(entry)
                return entry
        return None

    def begin(self, entry: Entry) -> None:
        """A run is under way, for the first time or again."""
        entry.status, entry.started = "running", time.monotonic()

    def end(self, entry: Entry, outcome: Outcome) -> None:
        """A run has ended."""
        entry.status, entry.outcome = outcome.status, outcome
        entry.seconds = time.monotonic() - entry.started

    def count(self, *statuses: str) -> int:
        """How many runs are in one of these states."""
        return sum(entry.status in statuses for entry in self.entries.values())

    @property
    def left(self) -> int:
        """Runs that have not ended."""
        return len(self.entries) - self.count(*ENDED)

    def failed(self) -> list[Entry]:
        """The runs that failed."""
        return [entry for entry in self.entries.values() if entry.status == "failed"]

    def seconds_left(self) -> float | None:
        """About how long the rest will take, from what runs of the same algorithm took; None where none has ended."""
        times: dict[str, list[float]] = {}
        for entry in self.entries.values():
            if entry.status == "done" and entry.seconds is not None:
                times.setdefault(entry.run.place.algorithm, []).append(entry.seconds)
        if not times:
            return None
        every = statistics.fmean(value for found in times.values() for value in found)
        means = {name: statistics.fmean(found) for name, found in times.items()}
        now, total = time.monotonic(), 0.0
        for entry in self.entries.values():
            expected = means.get(entry.run.place.algorithm, every)
            if entry.status == "waiting":
                total += expected
            elif entry.status == "running":
                total += max(0.0, expected - (now - entry.started))
        return total / max(1, self.count("running"))
