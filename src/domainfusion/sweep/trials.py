"""Runs as trials of Ray Tune: the actor that has a run made, the search that hands runs out, the pruning.

Tune schedules; what it knows is lost with the driver and nobody misses it. What counts is in the runs' folders: a run
that ended is read there, one that did not goes on from its checkpoint.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

import domainfusion
from domainfusion.config_files import plain_values
from domainfusion.files import make_folder, read_json, write_json
from domainfusion.interruption import requested
from domainfusion.sweep.ledger import Entry, Ledger
from domainfusion.sweep.plan import PRUNED, Outcome, read_progress
from domainfusion.sweep.progress import Progress
from domainfusion.sweep.worker import REFUSED

METRIC = "validation_accuracy"
HEARTBEAT = 3.0  # seconds after which a trial answers Tune, also where there is nothing new
GRACE = 60.0  # seconds that a run has to save itself


class NotKept:
    """What Tune writes down with its own state as a placeholder: that state is never read."""

    def __reduce__(self) -> Any:
        return object, ()


class RunTrial(tune.Trainable):
    """A run in a process of its own. Tune is told its evaluations on source validation, and nothing else."""

    def setup(self, config: dict[str, Any]) -> None:
        """Start the process, or start it again: the run goes on from its own checkpoint."""
        self.spec = json.loads(config["spec"])
        self.there = Path(self.spec["cwd"]) if Path(self.spec["cwd"]).is_dir() else Path.cwd()
        self.folder = self.there / self.spec["folder"]
        self.reported = 0
        given = {name: self.spec[name] for name in ("data", "config", "folder")} | {"parent": os.getpid()}
        environment = dict(os.environ)
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            environment[name] = str(self.spec["threads"])
        if not self.spec["gpus"]:
            environment["CUDA_VISIBLE_DEVICES"] = ""
        paths = [str(Path(domainfusion.__file__).parents[1]), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        with open(make_folder(self.folder) / "run.log", "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "domainfusion.sweep.worker"], stdin=subprocess.PIPE, stdout=log, stderr=log,
                cwd=self.there, env=environment, start_new_session=True,
            )  # fmt: skip
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(given).encode())
        self.process.stdin.close()

    def step(self) -> dict[str, Any]:
        """The next evaluation, the end, or after `HEARTBEAT` that there is nothing new.

        Raises `RuntimeError` where the process was lost; Tune then makes another trial of the run.
        """
        limit = time.monotonic() + HEARTBEAT
        while time.monotonic() < limit:
            code = self.process.poll()
            for found in read_progress(self.folder):
                if found["step"] > self.reported:
                    self.reported = found["step"]
                    return found
            if code is not None:
                return self._ended(code)
            time.sleep(0.2)
        return {"step": self.reported}

    def _ended(self, code: int) -> dict[str, Any]:
        if code == 0:
            value = read_json(self.folder / "result.json")["validation_accuracy"]
            found = {} if value is None else {METRIC: value}
            return {"step": self.reported, **found, "status": "done", "done": True}
        reason = last_line(self.folder / "run.log")
        if code == REFUSED:
            return {"step": self.reported, "status": "failed", "reason": reason, "done": True}
        raise RuntimeError(f"{reason} (exit code {code})")

    def cleanup(self) -> None:
        """End the process: it saves, as at a signal."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(GRACE)
            except subprocess.TimeoutExpired:
                self.process.kill()


def last_line(path: Path) -> str:
    """The last line of a log that says something."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "no log"
    return next((line.strip() for line in reversed(lines) if line.strip()), "nothing was said")


class RunSearch(NotKept, Searcher):
    """Hands out the runs of a ledger, and takes down how they ended."""

    def __init__(self, ledger: Ledger, progress: Progress, *, threads: int, gpus: float) -> None:
        super().__init__()  # with a metric, Tune would refuse a trial that has nothing new to say
        self.ledger, self.progress = ledger, progress
        self.threads, self.gpus = threads, gpus
        self.entries: dict[str, Entry] = {}  # by trial
        self.pruned: dict[str, float] = {}  # best source validation of runs that were stopped

    def suggest(self, trial_id: str) -> Any:
        """The next run; None while those that are left wait for others."""
        entry = self.ledger.take()
        if entry is None:
            return None if self.ledger.left else Searcher.FINISHED
        self.entries[trial_id] = entry
        config = plain_values(entry.config)
        if self.ledger.plan.options.share:  # candidates are tasks of the sweep, and there before the run begins
            config["generate"]["worker"] = "off"
        spec = {
            "data": entry.run.place.data, "config": config, "folder": str(entry.run.folder),
            "cwd": os.getcwd(), "threads": self.threads, "gpus": self.gpus,
        }  # fmt: skip
        return {"run": entry.run.name, "spec": json.dumps(spec)}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Take down how far the run is."""
        self.entries[trial_id].step = result["step"]

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Take down how the run ended. Raises nothing."""
        entry = self.entries[trial_id]
        found = result or {}
        if error and (entry.run.folder / "result.json").exists():  # lost after it had ended
            outcome = Outcome("done", read_json(entry.run.folder / "result.json")[METRIC])
        elif error:
            reason = last_line(entry.run.folder / "run.log")
            outcome = Outcome("failed", reason=f"lost {entry.lost + 1} times; its log ends: {reason}")
        elif trial_id in self.pruned:
            outcome = Outcome("pruned", self.pruned[trial_id])
        else:
            outcome = Outcome(found["status"], found.get(METRIC), found.get("reason", ""))
        self.ledger.end(entry, outcome)
        self.progress.ended(entry)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the runs' folders have it all."""
        Path(checkpoint_path).write_bytes(b"")

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""


class Pruning(NotKept, FIFOScheduler):
    """ASHA among the draws of one algorithm, data set, target and trial; other runs are no measure for them."""

    def __init__(self, search: RunSearch) -> None:
        super().__init__()
        self.search, self.ladders = search, {}
        for place, entries in search.ledger.by_place.items():
            ladder = self.ladders[place] = self._ladder(entries[0])
            for entry in entries:  # what earlier sweeps have seen counts
                if entry.outcome is not None:
                    known = SimpleNamespace(trial_id=str(entry.run.folder), stub=True)
                    ladder.on_trial_add(None, known)
                    for found in read_progress(entry.run.folder):
                        ladder.on_trial_result(None, known, found)

    def _ladder(self, entry: Entry) -> ASHAScheduler:
        plan = self.search.ledger.plan
        options, steps = plan.options, plan.steps_of(entry.run.place, plan.config)
        return ASHAScheduler(
            time_attr="step", metric=METRIC, mode="max", max_t=steps,
            grace_period=max(1, int(steps * options.prune_after)), reduction_factor=options.prune_factor,
            stop_last_trials=False,
        )  # fmt: skip

    def _ladder_of(self, trial: Any) -> tuple[Entry, ASHAScheduler]:
        entry = self.search.entries[trial.trial_id]
        return entry, self.ladders[entry.run.place]

    def _steps_of(self, entry: Entry) -> int:
        assert entry.config is not None
        return self.search.ledger.plan.steps_of(entry.run.place, entry.config)

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """The metric is source validation, always."""
        return metric is None

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """A trial joins its ladder."""
        self._ladder_of(trial)[1].on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Stop a trial that lags behind at a rung; one at its last step is left to end."""
        entry, ladder = self._ladder_of(trial)
        decision = str(ladder.on_trial_result(tune_controller, trial, result))
        if decision != TrialScheduler.STOP or result["step"] >= self._steps_of(entry):
            return str(TrialScheduler.CONTINUE)
        seen = max(found[METRIC] for found in read_progress(entry.run.folder))
        self.search.pruned[trial.trial_id] = seen
        write_json(entry.run.folder / PRUNED, {"step": result["step"], METRIC: seen})
        return decision


class Telling(NotKept, tune.Callback):
    """Keeps ledger and display up to date with what Tune does."""

    def __init__(self, search: RunSearch) -> None:
        self.search = search

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A run's process is started."""
        entry = self.search.entries[trial.trial_id]
        self.search.ledger.begin(entry)
        self.search.progress.began(entry)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A run was lost and will be resumed."""
        self.search.entries[trial.trial_id].lost += 1

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Tune's loop has gone round."""
        self.search.progress.tick()


class Stopping(NotKept, tune.Stopper):
    """Ends all trials when a signal asks this process to stop."""

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No trial is stopped for what it reports."""
        return False

    def stop_all(self) -> bool:
        """Whether a signal has come."""
        return requested()
