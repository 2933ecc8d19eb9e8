"""The computation of curves: slopes at every p of a grid, as the mean over draws of (t, ε).

All confidences of an image share its draws (common random numbers: neighbouring points err alike, so the curve stays
smooth). Draws come in *rounds* of stratified timesteps, each with a noise and its negative: what is odd in ε, most of
the residual's variance, cancels within the pair. A round is an independent unbiased estimate, so the spread over rounds
gives the standard error, and an image whose curve is known well enough gets no further round.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from domainfusion.data.domains import MultiDomainDataset
from domainfusion.data.transforms import from_uint8, resize
from domainfusion.distillation.corruption import degrade
from domainfusion.distillation.slopes import Draws, SlopeEstimator, draw
from domainfusion.interruption import check
from domainfusion.seeding import seed_hash

# Dense where slopes bend: near p = 0, where little of the image is left, and above 0.8, where the embedded LDM's
# encoder no longer takes a faded white ground for white. Half way between two of these points a straight line errs by
# 17 % of the slopes' size beside what the points do (root mean square, default options: docs/speed.md).
GRID = (
    0.02, 0.04, 0.06, 0.08, 0.1, 0.12, 0.14, 0.16, 0.2, 0.26, 0.34, 0.44, 0.55, 0.67, 0.75, 0.79, 0.83, 0.86, 0.89,
    0.92, 0.94, 0.96, 0.98, 1.0,
)  # fmt: skip


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
    draws, drawn = [], []  # drawn: D(x) (1, 3, S, S) of each image, where it is another one in every round
    for row, x in zip(rows, images, strict=True):
        generator = torch.Generator().manual_seed(seed_hash("curve", int(row), number))
        draws.append(draw(estimator.ldm, 1, size, config, generator))
        if path is None:
            drawn.append(degrade(x[None].cpu(), config.corruption, generator))
    timesteps, noise = torch.cat([item.timesteps for item in draws], 1), torch.cat([item.noise for item in draws], 1)
    shared = Draws(torch.cat([timesteps, timesteps]), torch.cat([noise, -noise]), seed=0)  # (M, n), (M, n, C, h, w)
    degraded = torch.cat(drawn).to(images.device) if drawn else None
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
