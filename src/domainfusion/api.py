"""The commands as Python functions: `train`, `benchmark`, `evaluate`, `predict_images`, `write_report`, `list_names`.

They take what the command line takes, under the same names, and give back objects instead of printing:

>>> import domainfusion
>>> run = domainfusion.train("photos", target="sketches", algorithm="erm")           # doctest: +SKIP
>>> run.target_accuracy                                                              # doctest: +SKIP
0.71
>>> model = run.load()                                                               # doctest: +SKIP
>>> labels, confidences = model.predict(["new/1.jpg", "new/2.jpg"])                  # doctest: +SKIP

Options come as keywords (groups as dicts or configs: `distill={"samples": 4}`), as a `TrainConfig`, or both: keywords
have the last word. Torch is imported when something is computed.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from domainfusion.config import TrainConfig
from domainfusion.config_files import build_config, flat_values, plain_values
from domainfusion.errors import UsageError, unknown_name
from domainfusion.presets import load_preset
from domainfusion.registry import ALGORITHMS, BACKBONES, DATASETS, LDMS, PRESETS, TRACKERS, Entry

if TYPE_CHECKING:
    from domainfusion.model import Model
    from domainfusion.predict import Row

PathLike = str | os.PathLike[str]
KINDS = {"algorithms": ALGORITHMS, "datasets": DATASETS, "backbones": BACKBONES, "ldms": LDMS, "presets": PRESETS,
         "trackers": TRACKERS}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run: its folder, and what `result.json` in it says."""

    folder: Path
    result: dict[str, Any]

    @property
    def target_accuracy(self) -> float | None:
        """The share of the target's test images that it gets right; None where no domain was held out."""
        return self.result.get("target_accuracy")

    @property
    def validation_accuracy(self) -> float | None:
        """The mean accuracy on the sources' validation images, which chose the model; None where nothing trained."""
        return self.result.get("validation_accuracy")

    def load(self, *, device: str = "auto") -> Model:
        """The trained model, to predict with."""
        from domainfusion.model import load

        return load(self.folder, device=device)

    def __str__(self) -> str:
        from domainfusion.results.tables import run_summary

        return run_summary(self.result, str(self.folder))


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A finished benchmark: its folder, and what `benchmark.json` in it says."""

    folder: Path
    summary: dict[str, Any]

    @property
    def accuracy(self) -> dict[str, dict[str, list[float]]]:
        """`{algorithm: {target: [per cent, by trial]}}`."""
        return self.summary["accuracy"]

    def __str__(self) -> str:
        from domainfusion.results.tables import accuracy_rows, text_table

        return text_table(accuracy_rows(self.accuracy))


def build_options(options: TrainConfig | None, changes: dict[str, Any], function: str) -> TrainConfig:
    """`options` (the defaults, or those of `preset=NAME`, where None) with `changes` over them.

    Raises `UsageError` for a name that is no option, with the nearest, and for a value out of range.

    >>> build_options(None, {"steps": 7, "distill": {"samples": 2}}, "train").distill.samples
    2
    >>> build_options(None, {"stesp": 7}, "train")
    Traceback (most recent call last):
    domainfusion.errors.UsageError: train(): unknown option 'stesp'; did you mean 'steps'?
    """
    below: dict[str, Any] = {}
    if changes.get("preset"):
        if options is not None:
            raise UsageError(f"{function}(): a preset is what options begin with; give the preset or the options")
        below = {name: value for name, value in load_preset(changes["preset"]).items() if name != "search"}
    values = plain_values(options or TrainConfig())
    for name, value in [*below.items(), *changes.items()]:
        value = plain_values(value) if dataclasses.is_dataclass(value) else value
        if isinstance(value, dict) and isinstance(values.get(name), dict):
            values[name] = values[name] | value
        elif value is None:  # as target=None: an option that is not set
            values.pop(name, None)
        else:
            values[name] = list(value) if isinstance(value, tuple) else value
    found: TrainConfig = build_config(TrainConfig, values, f"{function}()")
    return found


def _drawn(config: TrainConfig, data: str, options: TrainConfig | None, changes: dict[str, Any]) -> TrainConfig:
    """`config` with what its `hparams_seed` draws for the options that are not given."""
    if config.hparams_seed == 0:
        return config
    from domainfusion.experiments.hyperparameters import draw_options

    plain = {name: plain_values(value) if dataclasses.is_dataclass(value) else value for name, value in changes.items()}
    given = set(flat_values(plain))
    if options is not None:
        defaults = flat_values(plain_values(TrainConfig()))
        given |= {name for name, value in flat_values(plain_values(options)).items() if defaults.get(name) != value}
    table = load_preset(config.preset).get("search") if config.preset else None
    return draw_options(config, data, table=table, origin=f"preset {config.preset}", given=given)


def train(
    data: PathLike, /, options: TrainConfig | None = None, *, output: PathLike | None = None,
    track: Sequence[str] = (), expect: bool = True, progress: bool = True, **changes: Any,
) -> Run:  # fmt: skip
    """Train one classifier on `data`, as `domainfusion train` does; the same call again resumes, or just reads it.

    Args:
        data: a folder DOMAIN/CLASS/IMAGE, an embedded benchmark's name, or `hf://OWNER/NAME`.
        options: what is not given by keywords.
        output: folder of the run; the default is the command line's, runs/DATA-ALGORITHM-TARGET-tTRIAL-sSEED.
        track: names of trackers (`list_names("trackers")`).
        expect: without a target, also train without each domain in turn, in `output`/held-out, and say under
            `result["expected"]` what to expect on a new one.
        progress: whether to show bars on stderr.
        changes: options of `TrainConfig` by name.

    Raises:
        UsageError: an option that does not exist or is out of range; a folder that holds another run.
        DomainFusionError: whatever else the message says.
    """
    config = _drawn(build_options(options, changes, "train"), str(data), options, changes)
    from domainfusion.experiments.runs import train_run

    folder = Path(output) if output is not None else default_folder(str(data), config)
    result = train_run(str(data), config, folder, progress=progress, track=track)
    if config.target is None and expect and result.get("steps"):  # zero-shot results have every domain already
        from domainfusion.experiments.expectation import expect_elsewhere

        result = result | {"expected": expect_elsewhere(str(data), config, folder, command="domainfusion.train")}
    return Run(folder, result)


def default_folder(data: str, options: TrainConfig) -> Path:
    """Where a run goes that is given no folder.

    >>> default_folder("my/photos", TrainConfig(algorithm="erm", target="ink")).as_posix()
    'runs/photos-erm-ink-t0-s0'
    """
    held = "+".join(name for name in (options.target, options.second_target) if name is not None)
    draw = f"-h{options.hparams_seed}" if options.hparams_seed else ""
    name = "-".join([Path(data).name, options.algorithm, held or "all"])
    return Path("runs") / f"{name}-t{options.trial}-s{options.seed}{draw}"


def benchmark(
    data: PathLike, /, options: TrainConfig | None = None, *, algorithms: Sequence[str] = ("erm", "domainfusion"),
    trials: int = 3, targets: Sequence[str] = (), output: PathLike = "runs/benchmark", track: Sequence[str] = (),
    progress: bool = True, **changes: Any,
) -> Benchmark:  # fmt: skip
    """Train `algorithms` on every target domain and trial, as `domainfusion benchmark` does; finished runs stay.

    Args:
        trials: how many (splits and seeds 0, 1, ...).
        targets: target domains; none: each in turn.

    The other arguments, and the errors, are those of `train`.
    """
    for name in ("algorithm", "target", "trial"):
        if name in changes:
            raise UsageError(f"benchmark() chooses {name} itself; give {name}s")
    config = build_options(options, changes, "benchmark")
    from domainfusion.experiments.benchmark import run_benchmark

    summary = run_benchmark(
        str(data), config, list(algorithms), list(range(trials)), list(targets) or None, Path(output), track=track,
        progress=progress, command="domainfusion.benchmark",
    )  # fmt: skip
    return Benchmark(Path(output), summary)


def evaluate(
    run: Run | PathLike, data: PathLike | None = None, *, device: str = "auto",
    bad_images: Literal["error", "skip"] | None = None,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """{domain: {"images", "accuracy", "class_accuracy"}} of a run's model, as `domainfusion evaluate` finds it.

    Args:
        run: a run, or its folder.
        data: a data set to evaluate on, every domain of it; none: the run's own test images.
        bad_images: what to do with an image of `data` that cannot be read; none: as the run did.
    """
    from domainfusion.experiments.evaluation import evaluate_run

    folder = run.folder if isinstance(run, Run) else Path(run)
    return evaluate_run(folder, None if data is None else str(data), device, bad_images=bad_images)


def predict_images(
    model: Model | Run | PathLike, images: PathLike | Sequence[PathLike], *, top_k: int = 1, batch_size: int = 64,
    device: str = "auto",
) -> list[Row]:  # fmt: skip
    """A row for each image: its most probable classes with calibrated probabilities, or why it cannot be read.

    Args:
        model: a model, a run, or the folder of a run or of an exported model.
        images: files, folders (with their subfolders) and patterns.
        top_k: classes named for each image, the most probable first.
    """
    from domainfusion.model import Model, load
    from domainfusion.predict import list_images, predict_files

    if top_k < 1 or batch_size < 1:
        raise UsageError("top_k and batch_size are at least 1")
    if not isinstance(model, Model):
        model = load(model.folder if isinstance(model, Run) else model, device=device)
    words = [images] if isinstance(images, (str, os.PathLike)) else list(images)
    paths, bad = list_images([str(word) for word in words])
    return [*bad, *predict_files(model, paths, top_k=min(top_k, len(model.classes)), batch_size=batch_size)]


def write_report(
    runs: Run | Benchmark | PathLike | Sequence[Any], output: PathLike = "report.html", *,
    audits: Sequence[PathLike] = (),
) -> Path:  # fmt: skip
    """Write one self-contained HTML file from finished runs, or folders above them, and return its path.

    Args:
        audits: folders that `domainfusion audit` wrote of the runs' data sets, for a section of suspicious labels.
    """
    from domainfusion.report.html import write_report as write

    several = [runs] if isinstance(runs, (Run, Benchmark, str, os.PathLike)) else list(runs)
    folders = [item.folder if isinstance(item, (Run, Benchmark)) else Path(item) for item in several]
    return write(folders, Path(output), audits=[Path(audit) for audit in audits])


def list_names(kind: str, pattern: str = "*") -> list[Entry]:
    """The entries (name, summary, source) of algorithms, datasets, backbones, ldms presets or trackers, sorted by name.

    >>> [entry.name for entry in list_names("algorithms", "mix*")]
    ['mixstyle', 'mixup']
    """
    if kind not in KINDS:
        raise unknown_name("list", kind, KINDS)
    return [KINDS[kind].get(name) for name in KINDS[kind].names(pattern)]
