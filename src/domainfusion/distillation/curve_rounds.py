"""The computation of curves: slopes at every p of a grid, as the mean over draws of (t, ε).

All confidences of an image share its draws (common random numbers: neighbouring points err alike, so the curve stays
smooth). Draws come in *rounds* of stratified timesteps, each with a noise and its negative: what is odd in ε, most of
the residual's variance, cancels within the pair. A round is an independent unbiased estimate, so the spread over rounds
gives the standard error, and an image whose curve is known well enough gets no further round.

A slope by `score` is a product, ⟨R(p), dz/dp⟩ with R = E w(t)·√ᾱ_t·r. What makes it bend is mostly the encoder's
dz/dp; the pull R of the LDM changes slowly along z(p). So the U-Net is asked at the few confidences of `KNOTS` alone,
R is taken as linear between them, and dz/dp is computed at each confidence of the denser `GRID`. `confidences` divides
both more finely where that is asked for.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import torch

from domainfusion.data.content import image_keys
from domainfusion.data.domains import MultiDomainDataset
from domainfusion.data.transforms import from_uint8, resize
from domainfusion.distillation.corruption import degrade
from domainfusion.distillation.slopes import Draws, SlopeEstimator, draw
from domainfusion.errors import LDMError
from domainfusion.interruption import check
from domainfusion.seeding import seed_hash

# Chosen on 32 images of Pictograms among 93 confidences, by leaving out in turn the one whose loss costs least: dense
# near p = 0, where little of the image is left, and above 0.8, where the embedded LDM's encoder no longer takes a faded
# white ground for white. What they cost and what they miss is in docs/speed.md.
KNOTS = (0.02, 0.035, 0.055, 0.08, 0.13, 0.245, 0.47, 0.61, 0.75, 0.81, 0.85, 0.89, 0.91, 0.93, 0.96, 1.0)
GRID = (
    0.02, 0.03, 0.035, 0.04, 0.045, 0.05, 0.055, 0.065, 0.075, 0.08, 0.095, 0.12, 0.13, 0.155, 0.17, 0.2,
    0.245, 0.35, 0.47, 0.61, 0.75, 0.81, 0.83, 0.85, 0.87, 0.89, 0.91, 0.93, 0.94, 0.96, 0.98, 1.0,
)  # fmt: skip


def confidences(detail: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Knots and grid of a table, ascending: the intervals of `KNOTS` and of `GRID` in `detail` equal parts each.

    Knots are points of the grid; more detail keeps all points of less where it is a multiple of it.
    """
    knots, points = _divided(KNOTS, detail), _divided(GRID, detail)
    return knots, tuple(sorted({*knots, *points}))


def _divided(ends: tuple[float, ...], parts: int) -> tuple[float, ...]:
    inner = [
        round(low + (high - low) * part / parts, 9)
        for low, high in itertools.pairwise(ends)
        for part in range(parts)
    ]  # fmt: skip
    return (*inner, ends[-1])


@torch.no_grad()
def curves_of(
    estimator: SlopeEstimator, dataset: MultiDomainDataset, rows: np.ndarray, prompts: list[str], size: int,
    *, at_once: int = 128,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """{"slopes": (n, G), "errors": (n, G), "rounds": (n,)} of rows (n,) of a data set.

    An image's draws depend on its pixels alone, so its curve is the same (but for rounding) whatever data set it is in
    and however rows are batched.

    Args:
        prompts: the prompt of each class.
        at_once: latents in a pass of the U-Net, and images in one of the encoder.

    Raises `LDMError` naming an image of which a slope is not finite.
    """
    config, ldm = estimator.config, estimator.ldm
    count, points = len(rows), len(confidences(config.curve_detail)[1])
    stored = dataset.images[rows]
    keys = image_keys(stored)
    images = resize(from_uint8(stored), size).to(ldm.device)  # (n, 3, S, S)
    given = [prompts[dataset.labels[row]] for row in rows]
    total, squares = torch.zeros(count, points), torch.zeros(count, points)
    rounds = torch.zeros(count, dtype=torch.int64)
    active = torch.arange(count)
    path = None
    if config.method == "score" and config.corruption in ("contrast", "blur"):  # D(x) is the same in every round
        path = _path(estimator, images, degrade(images, config.corruption), at_once)
    for number in range(config.curve_rounds):
        chosen = None if path is None else (path[0][active], path[1][active])
        found = _round(
            estimator, images[active], [given[i] for i in active], keys[active.numpy()], number, chosen, at_once
        )
        if not found.isfinite().all():
            row = rows[active[int((~found.isfinite().all(1)).nonzero()[0])]]
            raise LDMError(f"{ldm.name}: its slopes of {dataset.keys[row]} are not finite; use --precision float32")
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


def between_knots(grid: torch.Tensor, knots: torch.Tensor) -> torch.Tensor:
    """(G, K): the share of each knot in the line through them at each confidence of grid (G,).

    >>> between_knots(torch.tensor([0.0, 0.25, 1.0]), torch.tensor([0.0, 0.5, 1.0])).tolist()
    [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]
    """
    right = torch.searchsorted(knots, grid).clamp(1, len(knots) - 1)
    share = (grid - knots[right - 1]) / (knots[right] - knots[right - 1])
    weights = torch.zeros(len(grid), len(knots))
    place = torch.arange(len(grid))
    weights[place, right - 1], weights[place, right] = 1 - share, share
    return weights


def _path(
    estimator: SlopeEstimator, images: torch.Tensor, degraded: torch.Tensor, at_once: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """z(p) (n, K, C, h, w) at the knots and dz/dp (n, G, C, h, w) on the grid, of images and D(x) (n, 3, S, S)."""
    knots, points = confidences(estimator.config.curve_detail)
    count, grid = len(images), torch.tensor(points)
    image = torch.arange(count).repeat_interleave(len(grid))
    confidence = grid.to(images.device).repeat(count)
    parts = []
    for chosen in torch.arange(count * len(grid)).split(at_once):
        check()
        which = image[chosen].to(images.device)
        parts.append(estimator.path(images[which], degraded[which], confidence[chosen.to(images.device)]))
    latents, tangents = (torch.cat(values).unflatten(0, (count, len(grid))) for values in zip(*parts, strict=True))
    at_knots = torch.tensor([points.index(knot) for knot in knots], device=latents.device)
    return latents[:, at_knots], tangents


def _round(
    estimator: SlopeEstimator, images: torch.Tensor, prompts: list[str], keys: np.ndarray, number: int,
    path: tuple[torch.Tensor, torch.Tensor] | None, at_once: int,
) -> torch.Tensor:  # fmt: skip
    """(n, G): one round's estimate from M/2 antithetic pairs for each image, shared by all its confidences.

    Args:
        keys: (n,) of the images' pixels, which their draws depend on.
        path: z(p) at the knots and dz/dp on the grid (`_path`) where they are the same in every round.
    """
    config = dataclasses.replace(estimator.config, samples=estimator.config.curve_samples // 2)
    count, size = len(images), images.shape[-1]
    draws, drawn = [], []  # drawn: D(x) (1, 3, S, S) of each image, where it is another one in every round
    for key, x in zip(keys, images, strict=True):
        generator = torch.Generator().manual_seed(seed_hash("curve", int(key), number))
        draws.append(draw(estimator.ldm, 1, size, config, generator))
        if path is None:
            drawn.append(degrade(x[None].cpu(), config.corruption, generator))
    timesteps, noise = torch.cat([item.timesteps for item in draws], 1), torch.cat([item.noise for item in draws], 1)
    shared = Draws(torch.cat([timesteps, timesteps]), torch.cat([noise, -noise]), seed=0)  # (M, n), (M, n, C, h, w)
    degraded = torch.cat(drawn).to(images.device) if drawn else None
    knots, grid = (torch.tensor(points) for points in confidences(config.curve_detail))
    weights = between_knots(grid, knots)  # (G, K)
    if config.method == "autograd":
        slopes = _slopes_at_knots(estimator, images, prompts, knots, shared, degraded, at_once)
        return slopes @ weights.T
    if path is None:
        assert degraded is not None
        path = _path(estimator, images, degraded, at_once)
    latents, tangents = path
    image = torch.arange(count).repeat_interleave(len(knots))  # of each of the n·K points
    flat, pulls = latents.flatten(0, 1), []
    for chosen in torch.arange(len(image)).split(at_once):
        which = image[chosen]
        embeds = estimator.ldm.prompt_embeds([prompts[i] for i in which])
        mine = shared.of(which.numpy())
        total = torch.zeros_like(flat[chosen.to(flat.device)])
        for timestep, sample in zip(mine.timesteps, mine.noise, strict=True):
            check()
            single = Draws(timestep[None], sample[None], 0)
            total = total + estimator.pull(flat[chosen.to(flat.device)], embeds, single)
        pulls.append(total / len(mine.timesteps))
    pull = torch.cat(pulls).unflatten(0, (count, len(knots)))
    products = tangents.flatten(2) @ pull.flatten(2).transpose(1, 2) / tangents[0, 0].numel()  # (n, G, K)
    return (products.float().cpu() * weights).sum(2)


def _slopes_at_knots(
    estimator: SlopeEstimator, images: torch.Tensor, prompts: list[str], knots: torch.Tensor, shared: Draws,
    degraded: torch.Tensor | None, at_once: int,
) -> torch.Tensor:  # fmt: skip
    """(n, K) slopes as the estimator gives them, by draws (M, n) that all confidences of an image share."""
    count = len(images)
    image, found = torch.arange(count).repeat_interleave(len(knots)), []
    for chosen in torch.arange(len(image)).split(at_once):
        check()
        which = image[chosen]
        place = which.to(images.device)
        slopes = estimator.slopes(
            images[place], [prompts[i] for i in which], knots.repeat(count)[chosen], shared.of(which.numpy()),
            degraded=None if degraded is None else degraded[place],
        )  # fmt: skip
        found.append(slopes.float().cpu())
    return torch.cat(found).view(count, len(knots))
