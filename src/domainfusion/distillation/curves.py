"""Curves: the slope dL/dp of every (image, label), tabulated once over p, so that training reads it from memory.

For a fixed image and label the loss L is a function of one number, the confidence p, and nothing in it changes while a
classifier trains. Its slope is therefore computed ahead, on a grid of p, as the mean over draws of (t, ε) that all
confidences of an image share (common random numbers: neighbouring points err alike, so the curve stays smooth). Draws
come in *rounds* of stratified timesteps, each with a noise and its negative: what is odd in ε, most of the residual's
variance, cancels within the pair. A round is an independent unbiased estimate, so the spread over rounds gives the
standard error, and an image whose curve is known well enough gets no further round.

A table is a fact about a data set, an LDM and the settings: all epochs, seeds, backbones, targets and trials share it.
It is kept under the hash of these in shards of rows; a shard is written atomically about once a minute, holds a
checksum, and is made again where it is damaged.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from domainfusion.config import DistillConfig, TrainConfig
from domainfusion.config_files import plain_values
from domainfusion.data.domains import MultiDomainDataset
from domainfusion.data.transforms import from_uint8, resize
from domainfusion.diffusion.ldm import LatentDiffusion, source_fingerprint
from domainfusion.distillation.corruption import degrade
from domainfusion.distillation.shards import SHARD, ShardedTable
from domainfusion.distillation.slopes import Draws, SlopeEstimator, draw
from domainfusion.files import cache_folder, hash_of, make_folder
from domainfusion.interruption import check
from domainfusion.memory import halve_until_it_fits
from domainfusion.seeding import seed_hash
from domainfusion.tensors import load_state, save_state

# Dense where slopes bend: near p = 0, where little of the image is left, and above 0.8, where the embedded LDM's
# encoder no longer takes a faded white ground for white. Of 24 pictograms, lines between 21 of such points keep within
# 2.3 % of 32 points (root mean square over p); ten points missed half of it.
GRID = (
    0.02, 0.04, 0.06, 0.08, 0.1, 0.12, 0.14, 0.16, 0.2, 0.26, 0.34, 0.44, 0.55, 0.67, 0.75, 0.79, 0.83, 0.86, 0.89,
    0.92, 0.94, 0.96, 0.98, 1.0,
)  # fmt: skip
FORMAT = 3  # raised when the computation changes, so that an older table is not taken for a new one
SAVE_SECONDS = 60  # a killed computation loses about as much, or an image
TABLES = Path(__file__).parent / "tables"  # that come with the package
# Options that decide what a slope is; the others decide how it is used.
SHAPING = ("curve_of", "curve_samples", "curve_rounds", "curve_tolerance", "residual", "guidance", "corruption",
           "weighting", "min_timestep", "max_timestep")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Curves:
    """Slopes of N images at G confidences; a row that was not tabulated has `rounds` 0 and slope 0."""

    grid: torch.Tensor  # (G,) ascending
    slopes: torch.Tensor  # (N, G) float32
    errors: torch.Tensor  # (N, G) standard errors over the rounds
    rounds: torch.Tensor  # (N,) int64

    def slopes_at(self, rows: np.ndarray, confidence: torch.Tensor) -> torch.Tensor:
        """(B,) slopes of rows (B,) at confidences (B,), linear between grid points, constant beyond the ends."""
        p = confidence.detach().float().contiguous()
        right = torch.searchsorted(self.grid, p).clamp(1, len(self.grid) - 1)
        low, high = self.grid[right - 1], self.grid[right]
        share = ((p - low) / (high - low)).clamp(0, 1)
        index = torch.from_numpy(rows).to(p.device)
        return torch.lerp(self.slopes[index, right - 1], self.slopes[index, right], share)

    def to(self, device: torch.device) -> Curves:
        """The same curves on `device`."""
        return Curves(*(getattr(self, field.name).to(device) for field in dataclasses.fields(self)))

    def size(self) -> float:
        """Root mean square slope over what was tabulated."""
        known = self.slopes[self.rounds > 0]
        return float(known.square().mean().sqrt()) if len(known) else 0.0

    def error(self) -> float:
        """Root mean square standard error over what was tabulated, as a share of `size`."""
        known = self.errors[self.rounds > 0]
        return float(known.square().mean().sqrt()) / max(self.size(), 1e-12) if len(known) else 0.0


class CurveStore:
    """The curves of a data set under its labels, on disk; `tabulate` computes what is missing.

    Args:
        dataset: images, and labels in words for the prompts.
        ldm_fingerprint: which LDM (`domainfusion.diffusion.ldm.source_fingerprint`).
        config: the distillation's options.
        template: prompt of a label, with {label}.
        image_size: pixels at the LDM (0: the size it was trained at).
    """

    def __init__(
        self, dataset: MultiDomainDataset, ldm_fingerprint: str, config: DistillConfig, template: str, image_size: int
    ) -> None:
        self.dataset, self.config, self.image_size = dataset, config, image_size
        self.prompts = [template.format(label=word) for word in dataset.words()]
        options = {name: plain_values(config)[name] for name in SHAPING}
        key = hash_of([FORMAT, SHARD, GRID, dataset.fingerprint, dataset.labels.tolist(), self.prompts,
                       ldm_fingerprint, options, image_size])  # fmt: skip
        self.key = key
        self.folder = cache_folder() / "curves" / key
        self.table = ShardedTable(self.folder, "curves")
        self.shipped = TABLES / f"{key}.safetensors"

    def load(self) -> Curves:
        """What has been tabulated so far: a table that came with the package, and the shards on disk."""
        count, points = len(self.dataset), len(GRID)
        state: dict[str, torch.Tensor] = {
            "slopes": torch.zeros(count, points), "errors": torch.zeros(count, points),
            "rounds": torch.zeros(count, dtype=torch.int64),
        }  # fmt: skip
        if self.shipped.exists():
            state = {name: value.clone() for name, value in load_state(self.shipped).items()}
            state = {name: value.float() if name != "rounds" else value.long() for name, value in state.items()}
        for rows, found in self.table.read_all():
            for name in state:
                state[name][rows] = found[name]
        return Curves(torch.tensor(GRID), state["slopes"], state["errors"], state["rounds"])

    def missing(self, rows: np.ndarray) -> np.ndarray:
        """Those of `rows` that have not been tabulated."""
        return rows[self.load().rounds[torch.from_numpy(rows)].numpy() == 0]

    def tabulate(self, ldm: LatentDiffusion, rows: np.ndarray, *, batch: int = 128, progress: bool = True) -> Curves:
        """Compute the curves of `rows` that are missing, shard by shard, and return all there are.

        Args:
            batch: latents in a pass of the U-Net; halved where memory runs out.

        What is known so far is written when an error or a signal (see `domainfusion.interruption`) ends it.
        """
        missing = np.unique(self.missing(rows))
        estimator = SlopeEstimator(ldm, self.config)
        size = self.image_size or ldm.image_size
        if len(missing):
            make_folder(self.folder)
        per_call, at_once = max(1, batch // len(GRID)), batch
        with tqdm(
            total=len(missing), desc="curves", unit="image", disable=not progress or not len(missing)
        ) as bar:  # fmt: skip
            for number in np.unique(missing // SHARD):
                mine = missing[missing // SHARD == number]
                with self._writing(int(number)) as add:
                    for part in np.array_split(mine, -(-len(mine) // per_call)):

                        def work(count: int, part: np.ndarray = part) -> dict[str, torch.Tensor]:
                            return curves_of(estimator, self.dataset, part, self.prompts, size, at_once=count)

                        found, at_once = halve_until_it_fits(work, at_once, "tabulating curves")
                        add(part, found)
                        bar.update(len(part))
                        check()
        return self.load()

    @contextlib.contextmanager
    def _writing(self, number: int) -> Iterator[Callable[[np.ndarray, dict[str, torch.Tensor]], None]]:
        """A function that takes in curves of rows of one shard; they are written once a minute and at the end, which a
        signal or an error may bring on early."""
        waiting: list[tuple[np.ndarray, dict[str, torch.Tensor]]] = []
        written = time.monotonic()

        def write() -> None:
            nonlocal written
            if waiting:
                rows = torch.from_numpy(np.concatenate([part for part, _ in waiting]))
                names = waiting[0][1]
                found = {name: torch.cat([values[name] for _, values in waiting]) for name in names}
                waiting.clear()
                self.table.write(number, rows, found)
            written = time.monotonic()

        def add(rows: np.ndarray, found: dict[str, torch.Tensor]) -> None:
            waiting.append((rows, found))
            if time.monotonic() - written > SAVE_SECONDS:
                write()

        try:
            yield add
        finally:
            write()

    def export(self, path: Path) -> None:
        """Write the whole table as one file (half precision), as it is shipped with the package."""
        found = self.load()
        save_state(path, {"slopes": found.slopes.half(), "errors": found.errors.half(), "rounds": found.rounds.int()})


def reads_curves(config: TrainConfig, dataset: MultiDomainDataset, images: int, batch: int) -> bool:
    """Whether a run reads its slopes from a table: a function of its options, its data, and what the package ships.

    Args:
        images: training images, which a table would have curves of.
        batch: raw images in a step.
    """
    distill = config.distill
    if config.distill_weight == 0 or distill.estimator != "auto":
        return config.distill_weight > 0 and distill.estimator == "curve"
    table = images * len(GRID) * distill.curve_samples * distill.curve_rounds
    training = config.steps * min(batch, distill.images_per_step or batch) * distill.samples
    if table <= training:
        return True
    if config.ldm != "embedded":  # tables are shipped for this one
        return False
    store = CurveStore(
        dataset, source_fingerprint(config.ldm), distill, config.generate.plain_template, config.generate.image_size
    )
    return store.shipped.exists()


@torch.no_grad()
def curves_of(
    estimator: SlopeEstimator, dataset: MultiDomainDataset, rows: np.ndarray, prompts: list[str], size: int,
    *, at_once: int = 128,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """{"slopes": (n, G), "errors": (n, G), "rounds": (n,)} of rows (n,) of a data set.

    A row's draws depend on the row alone, so its curve is the same (but for rounding) however rows are batched.

    Args:
        prompts: the prompt of each class.
        at_once: latents in a pass of the U-Net, and images in one of the encoder.
    """
    config, ldm = estimator.config, estimator.ldm
    count, grid = len(rows), torch.tensor(GRID)
    points = len(grid)
    images = resize(from_uint8(dataset.images[rows]), size).to(ldm.device)  # (n, 3, S, S)
    given = [prompts[dataset.labels[row]] for row in rows]
    total, squares = torch.zeros(count, points), torch.zeros(count, points)
    rounds = torch.zeros(count, dtype=torch.int64)
    active = torch.arange(count)
    path = None
    if config.method == "score" and config.corruption in ("contrast", "blur"):  # D(x) is the same in every round
        path = _path(estimator, images, degrade(images, config.corruption), grid, at_once)
    for number in range(config.curve_rounds):
        chosen = None if path is None else (path[0][active], path[1][active])
        found = _round(
            estimator, images[active], [given[i] for i in active], rows[active.numpy()], grid, number, chosen, at_once
        )
        total[active] += found
        squares[active] += found.square()
        rounds[active] += 1
        if number + 1 < config.curve_rounds:
            active = active[~_known(total[active], squares[active], number + 1, config.curve_tolerance)]
        if not len(active):
            break
    n = rounds.unsqueeze(1)
    mean = total / n
    return {"slopes": mean, "errors": _standard_error(mean, squares, n), "rounds": rounds}


def _standard_error(mean: torch.Tensor, squares: torch.Tensor, n: torch.Tensor | int) -> torch.Tensor:
    variance = (squares / n - mean.square()).clamp_min(0) * n / (n - 1 if isinstance(n, int) else (n - 1).clamp_min(1))
    return (variance / n).sqrt()


def _known(total: torch.Tensor, squares: torch.Tensor, rounds: int, tolerance: float) -> torch.Tensor:
    """(n,) whether a curve's standard error is below `tolerance` of its size (both as root mean squares over p)."""
    if rounds < 2:
        return torch.zeros(len(total), dtype=torch.bool)
    mean = total / rounds
    error = _standard_error(mean, squares, rounds)
    return error.square().mean(1).sqrt() <= tolerance * mean.square().mean(1).sqrt()


def _path(
    estimator: SlopeEstimator, images: torch.Tensor, degraded: torch.Tensor, grid: torch.Tensor, at_once: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """z(p) and dz/dp, each (n, G, C, h, w), of images and D(x) (n, 3, S, S) at all confidences (G,)."""
    count, points = len(images), len(grid)
    image = torch.arange(count).repeat_interleave(points)
    confidence = grid.to(images.device).repeat(count)
    parts = []
    for chosen in torch.arange(count * points).split(at_once):
        check()
        which = image[chosen].to(images.device)
        parts.append(estimator.path(images[which], degraded[which], confidence[chosen.to(images.device)]))
    latents, tangents = (torch.cat(values) for values in zip(*parts, strict=True))
    return latents.unflatten(0, (count, points)), tangents.unflatten(0, (count, points))


def _round(
    estimator: SlopeEstimator, images: torch.Tensor, prompts: list[str], rows: np.ndarray, grid: torch.Tensor,
    number: int, path: tuple[torch.Tensor, torch.Tensor] | None, at_once: int,
) -> torch.Tensor:  # fmt: skip
    """(n, G): one round's estimate from M/2 antithetic pairs for each image, shared by all its confidences.

    Args:
        path: z(p) and dz/dp (n, G, C, h, w) where they are the same in every round.
    """
    config = dataclasses.replace(estimator.config, samples=estimator.config.curve_samples // 2)
    count, points, size = len(images), len(grid), images.shape[-1]
    draws, seeds = [], []
    for row, image in zip(rows, images, strict=True):
        generator = torch.Generator().manual_seed(seed_hash("curve", int(row), number))
        draws.append(draw(estimator.ldm, 1, size, config, generator))
        if path is None:
            seeds.append(degrade(image[None].cpu(), config.corruption, generator))
    timesteps, noise = torch.cat([item.timesteps for item in draws], 1), torch.cat([item.noise for item in draws], 1)
    shared = Draws(torch.cat([timesteps, timesteps]), torch.cat([noise, -noise]), seed=0)  # (M, n), (M, n, C, h, w)
    degraded = torch.cat(seeds).to(images.device) if seeds else None
    if path is None and config.method == "score":
        assert degraded is not None
        path = _path(estimator, images, degraded, grid, at_once)
    image = torch.arange(count).repeat_interleave(points)  # of each of the n·G points
    found = []
    for chosen in torch.arange(count * points).split(at_once):
        which = image[chosen]
        given = [prompts[i] for i in which]
        mine = shared.of(which.numpy())
        if path is not None:
            embeds = estimator.ldm.prompt_embeds(given)
            latents, tangents = (part.flatten(0, 1)[chosen.to(part.device)] for part in path)
            total = torch.zeros(len(chosen), device=latents.device)
            for timestep, sample in zip(mine.timesteps, mine.noise, strict=True):
                check()
                total = total + estimator.project(latents, tangents, embeds, Draws(timestep[None], sample[None], 0))
            slopes = total / len(mine.timesteps)
        else:
            check()
            place = which.to(images.device)
            slopes = estimator.slopes(
                images[place], given, grid.repeat(count)[chosen], mine,
                degraded=None if degraded is None else degraded[place],
            )  # fmt: skip
        found.append(slopes.float().cpu())
    return torch.cat(found).view(count, points)
