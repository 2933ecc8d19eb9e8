"""The training loop, on one screen: steps, Adam with a cosine, selection on source validation, checkpoints."""

from __future__ import annotations

import dataclasses
import functools
import time
from typing import Any

import torch
from tqdm import tqdm

from domainfusion.algorithms.base import Algorithm, Context
from domainfusion.errors import FileError, Interrupted, TrainingError, show_note
from domainfusion.files import read_json_object, write_json
from domainfusion.interruption import check, requested
from domainfusion.json_lines import append_json_line
from domainfusion.seeding import seed_hash
from domainfusion.training.accumulation import Portions
from domainfusion.training.averaging import Averaging, build_averaging
from domainfusion.training.checkpoint import (
    Progress,
    go_back_for_model,
    load_checkpoint,
    lost_model,
    save_checkpoint,
    save_model,
)
from domainfusion.training.measuring import measure
from domainfusion.training.records import build_record
from domainfusion.training.schedule import evaluation_steps, learning_rate
from domainfusion.training.step import make_batch, take_step

SAVE_EVERY = 300.0  # seconds between checkpoints: what an end without a signal (SIGKILL, power) may cost
READ_EVERY = 50  # steps whose losses are read from the device together


@dataclasses.dataclass
class Meter:
    """Losses since the last evaluation."""

    steps: int = 0
    seconds: float = 0.0  # of the run when that evaluation was
    totals: dict[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self._steps: list[dict[str, torch.Tensor]] = []  # not yet read: reading waits for the device

    def add(self, terms: dict[str, torch.Tensor]) -> None:
        """Count a step."""
        self.steps += 1
        self._steps.append(terms)
        if len(self._steps) == READ_EVERY:
            self._read()

    def _read(self) -> None:
        for terms in self._steps:
            for name, value in zip(terms, torch.stack(list(terms.values())).tolist(), strict=True):
                self.totals[name] = self.totals.get(name, 0.0) + value
        self._steps.clear()

    def means(self) -> dict[str, float]:
        """Each term's mean over the steps."""
        self._read()
        return {name: total / self.steps for name, total in self.totals.items()}

    def state(self) -> dict[str, Any]:
        """What `Meter(**state)` goes on from."""
        self._read()
        return dataclasses.asdict(self)


def train(algorithm: Algorithm) -> Progress:
    """Train to the last step, from the run folder's checkpoint where there is one.

    A checkpoint is written at every evaluation, and between them whenever `SAVE_EVERY` seconds have passed. Where the
    selected weights are lost (`model.safetensors` is missing or damaged), training goes on from where they come again:
    from the checkpoint that has them, or one from before them, or the start.

    Raises `TrainingError` naming the step where the loss is not finite (the last checkpoint is kept), and `Interrupted`
    where a signal asks to stop, when a checkpoint of the present step is written.
    """
    context, config = algorithm.context, algorithm.config
    processes = context.processes
    processes.prepare(
        algorithm, batch_size=config.batch_size, swad=config.average.method == "swad", freeze_bn=config.freeze_bn,
        device=context.device,
    )  # fmt: skip
    algorithm.to(context.device)
    optimizer = torch.optim.Adam(algorithm.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True)
    average = build_averaging(algorithm, functools.partial(make_batch, algorithm))
    with processes.first_before_others():
        if processes.first:
            go_back_for_model(context.folder, average.restores_model)
        progress, extra = load_checkpoint(context.folder, algorithm, optimizer)
        average.restore(extra.pop("average", {}))
        meter = Meter(**extra.pop("meter", {"seconds": progress.seconds}))
        portions = Portions(algorithm)
        portions.restore(extra.pop("portions", {}))
        algorithm.restore(extra)
        if processes.first and progress.best_step:
            _mend_model(algorithm, average, progress.best_step)
    due = evaluation_steps(config.steps, config.evaluations, config.evaluate_every)
    clock, before = time.monotonic(), progress.seconds
    saved = clock
    bar = tqdm(
        total=config.steps, initial=progress.step, desc=f"{config.algorithm}, target {config.target or 'none'}",
        unit="step", disable=not context.progress,
    )  # fmt: skip
    for step in range(progress.step, config.steps + 1):
        try:
            if step in due and meter.steps:  # steps since the last evaluation: this one has not been made
                progress = dataclasses.replace(progress, seconds=before + time.monotonic() - clock)
                progress = _evaluate_and_save(algorithm, optimizer, average, progress, step, meter, portions)
                meter, saved = Meter(seconds=progress.seconds), time.monotonic()
                if progress.best_step:
                    bar.set_postfix(validation=f"{progress.best_validation:.1%}")
            if average.ended or step == config.steps:
                break
            _check(context)
            if step > progress.step and time.monotonic() - saved > SAVE_EVERY:
                progress = dataclasses.replace(progress, step=step, seconds=before + time.monotonic() - clock)
                save(algorithm, optimizer, average, progress, meter, portions)
                saved = time.monotonic()
            torch.manual_seed(seed_hash("step", config.seed, step))
            algorithm.before_step(step, step // context.steps_per_epoch)
        except Interrupted:
            stopped = dataclasses.replace(progress, step=step, seconds=before + time.monotonic() - clock)
            save(algorithm, optimizer, average, stopped, meter, portions)
            raise
        algorithm.train()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config.steps, config.lr, config.lr_schedule)
        terms = take_step(algorithm, optimizer, step, progress, portions)
        average.update(step + 1)
        meter.add(terms)
        bar.update()
    bar.close()
    return progress


def _check(context: Context) -> None:
    """Raise `Interrupted`, in all processes, where a signal has come to one."""
    check(elsewhere=context.processes.any(requested(), context.device))


def _evaluate_and_save(
    algorithm: Algorithm, optimizer: torch.optim.Optimizer, average: Averaging, progress: Progress, done: int,
    meter: Meter, portions: Portions,
) -> Progress:  # fmt: skip
    """Training-domain validation: the checkpoint with the best mean accuracy over the source domains is the model.

    What is measured and saved are the weights that `average` applies. SWAD applies none until its average is complete,
    which then is the model; `results.jsonl` has records of what may become the model only.
    """
    context, config = algorithm.context, algorithm.config
    _refuse_broken_weights(algorithm, done, progress)
    means = context.processes.mean(meter.means(), context.device)
    context.processes.average_buffers(algorithm)
    writes = context.processes.first
    with average.applied():
        # A signal may end this; nothing of the evaluation is written before, and a resumed run begins with it.
        stop = functools.partial(_check, context)
        measured, shares = portions.attempt(lambda: measure(algorithm, done, progress.step, stop), done - 1)
    record = {
        "step": done, "epoch": round(done / context.steps_per_epoch, 3), "seconds": round(progress.seconds, 3),
        "lr": learning_rate(done - 1, config.steps, config.lr, config.lr_schedule), **means, **measured,
        **portions.describe(),
    }  # fmt: skip
    if average.observe(done, measured["validation_loss"]):
        with average.applied():
            measured, shares = measure(algorithm, done, progress.step)
        record["average"] = average.describe(done) | measured
    if writes:
        append_json_line(context.folder / "metrics.jsonl", record)
        context.recorded()
    progress = dataclasses.replace(progress, step=done)
    if writes and average.ready and algorithm.tests_by_classifier:
        append_json_line(
            context.folder / "results.jsonl",
            build_record(
                config, context.dataset.name, context.dataset.domains, shares, output=context.folder, step=done,
                epoch=done / context.steps_per_epoch, loss=sum(means.values()),
                step_time=(progress.seconds - meter.seconds) / meter.steps,
                frequency=config.evaluate_every or max(1, config.steps // config.evaluations),
                device=context.device,
            ),
        )  # fmt: skip
    if average.ready and measured["validation_accuracy"] >= progress.best_validation:
        progress = dataclasses.replace(progress, best_validation=measured["validation_accuracy"], best_step=done)
        if writes:
            with average.applied():
                save_model(context.folder, algorithm.classifier, describe_model(context, done, average.describe(done)))
    save(algorithm, optimizer, average, progress, Meter(seconds=progress.seconds), portions)
    return progress


def _refuse_broken_weights(algorithm: Algorithm, done: int, progress: Progress) -> None:
    """Raise `TrainingError` where weights are not finite: a finite loss can have gradients that are not."""
    bad = next((name for name, value in algorithm.named_parameters() if not bool(torch.isfinite(value).all())), None)
    if algorithm.context.processes.any(bad is not None, algorithm.context.device):
        raise TrainingError(
            f"the weights are not finite after step {done} ({bad or 'those of another process'}), though the loss was; "
            f"the checkpoint of step {progress.step} is kept. Lower --lr (now {algorithm.config.lr:g}), or use "
            "--precision float32, with another --output"
        )


def _mend_model(algorithm: Algorithm, average: Averaging, step: int) -> None:
    """Write what is lost of the model that was selected at `step`; `go_back_for_model` saw to it that it is here."""
    context = algorithm.context
    description = describe_model(context, step, average.describe(step))
    if trouble := lost_model(context.folder):
        with average.applied():
            save_model(context.folder, algorithm.classifier, description)
        show_note(f"{trouble}; it was written again from the checkpoint of step {step}")
        return
    try:
        read_json_object(context.folder / "model.json", step=int)
    except FileError as error:
        write_json(context.folder / "model.json", description)
        show_note(f"{error}; it was written again")


def save(
    algorithm: Algorithm, optimizer: torch.optim.Optimizer, average: Averaging, progress: Progress, meter: Meter,
    portions: Portions,
) -> None:  # fmt: skip
    """Write the checkpoint that `train` goes on from (the first process does)."""
    if not algorithm.context.processes.first:
        return
    extra: dict[str, Any] = {**algorithm.costs(), "meter": meter.state()}
    if portions.describe():
        extra["portions"] = portions.describe()
    if average.method != "none":
        extra["average"] = average.state()
    save_checkpoint(algorithm.context.folder, algorithm, optimizer, progress, extra)


def describe_model(context: Context, step: int, average: dict[str, Any]) -> dict[str, Any]:
    """What a user of the weights needs to know, and what `average` they are, if any."""
    config = context.config
    return {
        "backbone": config.backbone, "classes": list(context.dataset.classes), "size": context.dataset.size,
        "dropout": config.dropout, "algorithm": config.algorithm, "target": config.target, "trial": config.trial,
        "sources": list(context.split.sources), "dataset": context.dataset.name, "step": step,
        **({"average": average} if average else {}),
    }  # fmt: skip
