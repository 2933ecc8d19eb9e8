"""Finished runs read from disk, with what the benchmark or sweep that they are part of chose."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any

from domainfusion.config.zero_shot import without_old_stages
from domainfusion.config_files import flat_values, load_toml
from domainfusion.errors import FileError, UsageError, show_note
from domainfusion.files import read_json, read_json_object
from domainfusion.results.records import EXPECTATION, HELD_OUT, find_runs, load_run

Unit = tuple[int, int]  # (trial, seed): what an algorithm is repeated over


@dataclasses.dataclass(frozen=True)
class Choice:
    """What leave-one-domain-out selection, of the benchmark that a run is part of, says of the run's target."""

    accuracy: float  # per cent
    step: int | None  # None in benchmarks of older versions, which do not tell


@dataclasses.dataclass(frozen=True, eq=False)
class Expectation:
    """What a run on all domains lets expect on another one (`expectation.json`), and the runs that showed it."""

    accuracy: dict[str, float]  # domain: per cent that the same training without this domain is right on there
    runs: tuple[Run, ...]  # those of them that are still there


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A finished run as it lies on disk; `options` are its settings by dotted name (`generate.steps`).

    `accuracy`, `step` and `validation` are those that its benchmark's selection reports. The weights that it kept, and
    with them its predictions, are of the step that training-domain validation chose within the run (`kept_accuracy`).
    """

    folder: Path
    result: dict[str, Any]
    data: dict[str, Any]
    environment: dict[str, Any]
    records: list[dict[str, Any]]
    text: str
    options: dict[str, Any]
    choice: Choice | None = None  # None: training-domain validation
    search: str = ""  # the benchmark or sweep that chose its hyperparameters; its runs differ in them and are one arm
    expectation: Expectation | None = None  # of a run on all domains that left each of them out in turn

    @property
    def algorithm(self) -> str:
        """The name of its algorithm."""
        return str(self.result["algorithm"])

    @property
    def target(self) -> str | None:
        """The domain that was held out."""
        return self.result["target"]

    @property
    def unit(self) -> Unit:
        """Its trial and seed."""
        return int(self.result["trial"]), int(self.result["seed"])

    @property
    def accuracy(self) -> float | None:
        """Accuracy on the target in per cent, where there is a target."""
        return self.kept_accuracy if self.choice is None else self.choice.accuracy

    @property
    def kept_accuracy(self) -> float | None:
        """That of the weights that the run kept."""
        share = self.result.get("target_accuracy")
        return None if share is None else 100 * share

    @property
    def step(self) -> int | None:
        """The step that was chosen, where one was and is known."""
        return self.result.get("selected_step") if self.choice is None else self.choice.step

    @property
    def validation(self) -> str:
        """Source validation accuracy at that step in per cent, or a dash where none was measured."""
        share = self.result["validation_accuracy"]
        if self.choice is not None:
            at_step = [record for record in self.records if record["step"] == self.choice.step]
            share = at_step[0].get("validation_accuracy") if at_step else None
        return "–" if share is None else f"{100 * share:.1f} %"

    @property
    def images(self) -> int:
        """How many images of the target it was tested on."""
        return int(self.result.get("test_images", 0))


def read_runs(paths: Iterable[Path]) -> list[Run]:
    """The finished runs at or below `paths`, each once.

    Those inside a run on all domains, which left one of them out to say what to expect elsewhere, are in its
    `expectation`. Raises `UsageError` where there is no run, or no folder of a name that was given, `FileError` where
    an expectation was altered.
    """
    paths = list(paths)
    folders: dict[Path, Path] = {}
    for path in paths:
        if not path.is_dir():
            raise UsageError(f"there is no folder {path}; give folders of runs, or folders above them")
        below = find_runs(path)
        if not below and len(paths) > 1:
            show_note(f"no finished run is at or below {path}")
        for folder in below:
            # Other tools write a result.json too (Ray does); a run of ours also tells of its data.
            # A run that held out a second domain was made to select others by.
            if (folder / "data.json").exists() and "second_target" not in read_json_object(folder / "data.json"):
                folders.setdefault(folder.resolve(), folder)
    if not folders:
        places = ", ".join(str(path) for path in paths) or "no folder"
        raise UsageError(
            f"no finished run (a folder with result.json and data.json) at or below {places}; "
            "train one first: domainfusion train DATA --output DIR"
        )
    owners = {place: _owner(place, folders) for place in folders}
    inside: dict[Path | None, list[Run]] = {}
    for place, owner in owners.items():
        if owner is not None:
            inside.setdefault(owner, []).append(_read_run(folders[place]))
    runs = []
    for place, folder in folders.items():
        if owners[place] is None:
            run = _read_run(folder)
            runs.append(dataclasses.replace(run, expectation=_read_expectation(run, inside.get(place, []))))
    return [run for run in runs if not run.search or _was_chosen(run)]


def _owner(place: Path, folders: Container[Path]) -> Path | None:
    """Which of `folders` the run in `place` left a domain out for; None of a run that stands for itself."""
    for parent in place.parents:
        if parent.name == HELD_OUT and parent.parent in folders and (parent.parent / EXPECTATION).exists():
            return parent.parent
    return None


def _read_expectation(run: Run, inside: list[Run]) -> Expectation | None:
    path = run.folder / EXPECTATION
    if run.target is not None or not path.exists():
        return None
    accuracy = read_json_object(path, domains=dict)["domains"]
    if not accuracy or not all(type(value) in (int, float) and 0 <= value <= 100 for value in accuracy.values()):
        raise FileError(f"{path}: domains has to hold an accuracy in per cent of each; it was altered or damaged")
    return Expectation(accuracy, tuple(inside))


def _read_run(folder: Path) -> Run:
    path = folder / "config.toml"
    values = load_toml(path) if path.exists() else {}
    found = load_run(folder)
    _check_result(folder / "result.json", found["result"], len(found["data"]["classes"]))
    return Run(
        folder=folder, result=found["result"], data=found["data"], environment=found["environment"],
        records=found["records"], text=found["config"],
        options=without_old_stages(flat_values(values), found["result"]["algorithm"], len(found["data"]["classes"])),
        search=_search_of(folder), choice=_choice_of(folder, found["result"]),
    )  # fmt: skip


def _check_result(path: Path, result: dict[str, Any], classes: int) -> None:
    """Raise `FileError` where a result holds what no run has written, naming the field."""
    confusion = result.get("confusion", [[0] * classes] * classes)
    fitting = (
        isinstance(confusion, list)
        and len(confusion) == classes
        and all(
            isinstance(row, list) and len(row) == classes and all(type(count) is int for count in row)
            for row in confusion
        )
    )
    wrong = {
        "confusion": not fitting,
        "seconds": not isinstance(result.get("seconds", 0), (int, float)),
        "test_images": result.get("target") is not None and result.get("target_accuracy") is not None
        and not (type(result.get("test_images")) is int and result["test_images"] > 0),
    }  # fmt: skip
    for name, is_wrong in wrong.items():
        if is_wrong:
            raise FileError(f"{path}: {name} is damaged or was altered; leave the run out, or train it again")


def _search_of(folder: Path) -> str:
    """The folder of the benchmark or sweep that chose among draws of hyperparameters, this run's too; or empty."""
    root = (folder.resolve() / "../../..").resolve()  # of ROOT/ALGORITHM/TARGET/trial-T
    return "" if _draws_that_count(root) is None else str(root)


def _draws_that_count(root: Path) -> dict[str, Any] | None:
    """{algorithm: {target: {trial: draw}}} of a benchmark or sweep with several draws; None of any other folder."""
    for path, name in ((root / "sweep.json", "chosen"), (root / "benchmark.json", "draws")):
        found = read_json_object(path) if path.exists() else {}
        if name not in found:
            continue
        draws: dict[str, Any] = {}
        for algorithm, targets in found[name].items():
            for target, row in targets.items():
                # A sweep adds the options of the draw to its number.
                numbers = [cell["hparams_seed"] if name == "chosen" else cell for cell in row]
                draws.setdefault(algorithm, {})[target] = dict(zip(found["trials"], numbers, strict=False))
        return draws
    return None


def _choice_of(folder: Path, result: dict[str, Any]) -> Choice | None:
    """What the benchmark that a run is part of chose for it by leave-one-domain-out, and has come to already."""
    path = folder.resolve() / "../../.." / "benchmark.json"  # of ROOT/ALGORITHM/TARGET/trial-T
    found = read_json(path) if path.exists() else {}
    if not str(found.get("selection", "")).startswith("leave-one-domain-out"):
        return None
    trial = dict(zip(found["trials"], range(len(found["trials"])), strict=True)).get(result["trial"])
    accuracies = found["accuracy"].get(result["algorithm"], {}).get(result["target"])
    if trial is None or accuracies is None:
        return None
    steps = found.get("steps", {}).get(result["algorithm"], {}).get(result["target"])
    if steps is not None and steps[trial] is None:  # not trained: there was nothing to choose
        return None
    return Choice(accuracies[trial], None if steps is None else steps[trial])


def _was_chosen(run: Run) -> bool:
    """Whether the run's draw is the one that counts in its cell; True where the search has not come to it yet."""
    by_trial = (_draws_that_count(Path(run.search)) or {}).get(run.algorithm, {}).get(run.target, {})
    return by_trial.get(run.unit[0], -1) in (-1, run.options.get("hparams_seed", 0))
