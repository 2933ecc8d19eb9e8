"""How long and how large a run would be, before it starts: a few real steps are timed, the rest is counted.

Nothing is generated or tabulated for good, and no folder decoded: one whose images are not in the cache yet is stood in
for by its listing and one of its images, for neither the count nor the time of a step depends on what the images show.
"""

from __future__ import annotations

import dataclasses
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from domainfusion.algorithms.base import Algorithm, Context
from domainfusion.algorithms.domainfusion import DomainFusion
from domainfusion.config import TrainConfig
from domainfusion.data.domains import MultiDomainDataset, load_dataset
from domainfusion.data.folders import folder_address, in_order, list_images
from domainfusion.data.images import read_image
from domainfusion.diffusion.ldm_folder import is_hub_id
from domainfusion.distillation.curve_choice import reads_curves
from domainfusion.distillation.curve_rounds import curves_of
from domainfusion.distillation.curves import store_of
from domainfusion.errors import DataError, LDMError
from domainfusion.experiments.runs import build_algorithm, context_of
from domainfusion.files import cache_folder
from domainfusion.fusion.candidate_cache import cache_path, cached_anywhere
from domainfusion.fusion.generation import make_generation
from domainfusion.registry import ALGORITHMS
from domainfusion.training.evaluation import evaluate
from domainfusion.training.schedule import evaluation_steps
from domainfusion.training.step import compute_losses, descend, make_batch

BUDGET = 3.0  # seconds that a timing may take, about
KNOWN = ("erm", "domainfusion")


@dataclasses.dataclass
class Plan:
    """Seconds and bytes by part, what they were counted from, and remarks."""

    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    bytes: dict[str, int] = dataclasses.field(default_factory=dict)
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    each: dict[str, float] = dataclasses.field(default_factory=dict)  # seconds of one step, image, ...
    notes: list[str] = dataclasses.field(default_factory=list)


def plan_run(data: str, config: TrainConfig) -> dict[str, Any]:
    """What `domainfusion train DATA` with these options would take on this machine, as plain values.

    {"seconds": by part and "total", "bytes": by part and "total", "counts", "each", "memory_bytes", "notes", ...}.
    Raises what the run itself would raise for a wrong name, folder or option.
    """
    ALGORITHMS.get(config.algorithm)
    # A step takes as long from random weights; published ones are for the run to fetch.
    config, plan = dataclasses.replace(config, pretrained=False), Plan()
    with tempfile.TemporaryDirectory(prefix="domainfusion-plan-") as work:
        dataset = outline(data, config, plan)
        context = context_of(dataset, config, Path(work), progress=False)
        plan.counts.update(images=len(dataset), steps=context.config.steps, steps_per_epoch=context.steps_per_epoch)
        started = time.monotonic()
        algorithm = _build(context, plan)
        plan.seconds["loading"] = time.monotonic() - started
        _time_steps(algorithm, plan)
        _time_evaluations(algorithm, plan)
        if isinstance(algorithm, DomainFusion):
            _time_generations(algorithm, plan)
            if _by_curves(context):
                _time_curves(context, plan)
    plan.seconds["total"] = sum(plan.seconds.values())
    plan.bytes["total"] = sum(plan.bytes.values())
    return {
        "data": data, "algorithm": config.algorithm, "protocol": context.split.protocol, "target": config.target,
        "sources": list(context.split.sources), "classes": len(dataset.classes), "device": str(context.device),
        "precision": str(context.dtype).removeprefix("torch."), "memory_bytes": peak_memory(context.device),
        **dataclasses.asdict(plan), "notes": [*dataset.notes, *plan.notes],
    }  # fmt: skip


BAD_IMAGES = {
    "error": (
        "a run stops at such an image: repair or remove it (`domainfusion data verify` names them all), "
        "or leave such files out by --data.bad-images skip"
    ),
    "skip": "a run leaves such images out",
}


def outline(data: str, config: TrainConfig, plan: Plan) -> MultiDomainDataset:
    """The data set of a run; one that has not been decoded yet as its listing, every image being the same one."""
    root = Path(data)
    if data == "pictograms" or not root.is_dir():
        return load_dataset(data, config.data)
    listing, notes = list_images(root)
    domains, classes, files = in_order(listing)
    address = folder_address(root, files, config.data)
    if (cache_folder() / "images" / address / "index.json").exists():
        return load_dataset(data, config.data)
    times, sample = [], np.zeros((config.data.size, config.data.size, 3), dtype=np.uint8)
    for i in np.unique(np.linspace(0, len(files) - 1, 24).round().astype(int)):
        started = time.monotonic()
        try:
            sample = read_image(files[i][2], config.data.size)
        except DataError as error:
            plan.notes.append(f"{error}; {BAD_IMAGES[config.data.bad_images]}")
        times.append(time.monotonic() - started)
    plan.each["decoded_image"] = statistics.fmean(times)
    plan.seconds["decoding"] = plan.each["decoded_image"] * len(files)
    plan.bytes["decoded_images_cache"] = len(files) * sample.nbytes
    return MultiDomainDataset(
        name=root.resolve().name, domains=tuple(domains), classes=tuple(classes),
        images=np.broadcast_to(sample, (len(files), *sample.shape)),
        labels=np.array([classes.index(c) for _, c, _ in files], dtype=np.int64),
        domain_of=np.array([domains.index(d) for d, _, _ in files], dtype=np.int64),
        keys=tuple(path.relative_to(root).as_posix() for _, _, path in files), fingerprint=address, notes=tuple(notes),
    )  # fmt: skip


def _by_curves(context: Context) -> bool:
    """Whether the run is DomainFusion's and reads its slopes from a table."""
    config, split = context.config, context.split
    rows = np.sort(np.concatenate([split.train[domain] for domain in split.sources]))
    batch = config.batch_size * len(split.sources)
    return config.algorithm == "domainfusion" and reads_curves(config, context.dataset, rows, batch)


def _build(context: Context, plan: Plan) -> Algorithm:
    """The algorithm as a run builds it, but that no curve is tabulated for it.

    Where the LDM is a hub's and cannot be fetched, ERM in its place: nothing is known of its cost.
    """
    config = context.config
    if config.algorithm not in KNOWN:
        plan.notes.append(f"for {config.algorithm} only the steps of a plain classifier are counted, not its own work")
        config = dataclasses.replace(config, algorithm="erm")
    elif _by_curves(context):  # reading a table costs nothing
        weight = config.raw_weight or (0.0 if config.synthetic_weight else 1.0)
        config = dataclasses.replace(config, distill_weight=0.0, raw_weight=weight)
    try:
        algorithm = build_algorithm(dataclasses.replace(context, config=config))
    except LDMError as error:
        if not is_hub_id(config.ldm_source):
            raise
        plan.notes.append(f"{error}. Generations and distillation are not counted")
        algorithm = build_algorithm(dataclasses.replace(context, config=dataclasses.replace(config, algorithm="erm")))
    return algorithm.to(context.device)


def timed(work: Callable[[], Any], device: torch.device, *, most: int = 10) -> float:
    """Median seconds of `work`, after one call to warm up: two calls at least, until about `BUDGET` is spent.

    Work that takes several times the budget is done once, and is the longer for not having been warmed up.
    """
    times: list[float] = []
    while len(times) < 3 or (sum(times) < BUDGET and len(times) <= most):
        started = time.monotonic()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.monotonic() - started)
        if times[0] > 5 * BUDGET:
            return times[0]
    return statistics.median(times[1:])


def time_step(algorithm: Algorithm) -> float:
    """Seconds of a training step of an algorithm that is on its device; its weights are other ones then."""
    optimizer = torch.optim.Adam(algorithm.parameters(), lr=algorithm.config.lr, fused=True)
    algorithm.train()

    def step() -> None:
        terms = compute_losses(algorithm, make_batch(algorithm, 0))
        descend(optimizer, torch.stack(list(terms.values())).sum())

    return timed(step, algorithm.context.device)


def _time_steps(algorithm: Algorithm, plan: Plan) -> None:
    config = algorithm.config
    plan.each["step"] = time_step(algorithm)
    plan.seconds["steps"] = plan.each["step"] * config.steps
    classifier = sum(value.nbytes for value in algorithm.classifier.state_dict().values())
    trained = sum(value.nbytes for value in algorithm.parameters())
    held = sum(value.nbytes for value in algorithm.state_dict().values())
    plan.bytes["checkpoints"] = 2 * (held + 2 * trained)  # the last two, each with Adam's two moments
    plan.bytes["model"] = classifier


def _time_evaluations(algorithm: Algorithm, plan: Plan) -> None:
    """Evaluations in training, then those of the selected weights: validation twice (for the temperature too), test."""
    context, config, split = algorithm.context, algorithm.config, algorithm.context.split
    validation = sum(map(len, split.validation.values()))
    training = sum(map(len, split.train.values())) if config.evaluate_training else 0
    count = len(evaluation_steps(config.steps, config.evaluations, config.evaluate_every))
    images = count * (validation + training + len(split.test) + len(split.oracle)) + 2 * validation + len(split.test)
    rows = np.arange(min(256, len(context.dataset)))
    algorithm.eval()

    def work() -> None:
        evaluate(algorithm.predict, context.dataset, rows, device=context.device, dtype=context.dtype)

    plan.each["evaluated_image"] = timed(work, context.device) / len(rows)
    plan.counts["evaluated_images"] = images
    plan.seconds["evaluations"] = plan.each["evaluated_image"] * images


def _time_generations(algorithm: DomainFusion, plan: Plan) -> None:
    """Candidates, choice and fusion of a few images; those whose candidates are in the cache cost nothing."""
    context, config = algorithm.context, algorithm.config
    generate = config.generate.needed()
    generations = algorithm.generations_due(config.steps - 1) if config.synthetic_weight > 0 else 0
    rows = algorithm.rows
    plan.counts["generations"] = generations
    plan.counts["generated_images"] = generations * len(rows) * generate.candidates
    if not generations:
        return
    cached, size = 0, len(context.dataset) * generate.candidates * context.dataset.images[0].nbytes
    for number in range(1 if config.generate.updating else generations):  # those made of the stored images
        path = cache_path(algorithm.ldm, context.dataset, generate, number, algorithm.styles)
        cached += int(cached_anywhere(path, context.dataset, rows).sum())
        if not path.exists():
            plan.bytes["candidates_cache"] = plan.bytes.get("candidates_cache", 0) + size
    plan.counts["cached_images"] = cached * generate.candidates

    def per_image(some: np.ndarray) -> float:
        started = time.monotonic()
        make_generation(
            algorithm.ldm, context.dataset, some, context.dataset.images[some], algorithm.judge, config.generate,
            number=0, styles=algorithm.styles, stored=False, progress=False,
        )  # fmt: skip
        return (time.monotonic() - started) / len(some)

    # A generation consists of passes of full batches; where even one image takes long, more are not waited for.
    seconds = per_image(rows[:1])
    full = algorithm.ldm.at_once(generate.batch_size, generate.image_size or algorithm.ldm.image_size)
    for count in (4, max(1, full // generate.candidates)):
        if seconds * count < 2 * BUDGET:
            seconds = per_image(rows[:count])
    plan.each["generated_image"] = seconds / generate.candidates
    plan.seconds["generations"] = seconds * (generations * len(rows) - cached)
    # An array and PNG files, which are about as large for noisy images and smaller for flat ones.
    plan.bytes["synthetic_images"] = 2 * generations * len(rows) * context.dataset.images[0].nbytes


def _time_curves(context: Context, plan: Plan) -> None:
    """Curves of a few images; those that a table has cost nothing (other data sets' once the images are decoded)."""
    from domainfusion.diffusion.ldm import LatentDiffusion
    from domainfusion.distillation.slopes import SlopeEstimator

    config, dataset = context.config, context.dataset
    store = store_of(config, dataset)
    rows = np.sort(np.concatenate([context.split.train[domain] for domain in context.split.sources]))
    missing = store.missing(rows)
    if "decoding" not in plan.seconds:  # else one image stands for all (`outline`), and they cannot be known again
        missing = np.setdiff1d(missing, store.elsewhere(missing)[0])
    plan.counts["curves"] = len(missing)
    if not len(missing):
        return
    ldm = LatentDiffusion.load(config.ldm_source, device=context.device, precision=config.precision)
    estimator = SlopeEstimator(ldm, config.distill)
    some = missing[: min(4, len(missing))]
    size = config.generate.image_size or ldm.image_size
    seconds = timed(lambda: curves_of(estimator, dataset, some, store.prompts, size), context.device, most=3)
    plan.each["curve"] = seconds / len(some)
    plan.seconds["curves"] = plan.each["curve"] * len(missing)
    plan.bytes["curves_cache"] = len(missing) * (2 * 4 * len(store.grid) + 24)


def peak_memory(device: torch.device) -> int:
    """The most memory that this process has held so far, in bytes: on the GPU where it computes there."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
