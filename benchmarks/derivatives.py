"""`derivatives`: the ways to a slope by forward passes, measured: differences along p, and `torch.func.jvp`.

Of slopes by `score` a derivative is taken of the encoder alone, dz/dp; of slopes to the letter (`autograd`) of the
whole loss, through the U-Net. Errors are those against single precision throughout: jvp's and back-propagation's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.candidates import pictures
from benchmarks.direct_slopes import relative
from benchmarks.timing import compare, device, row
from domainfusion.config import DistillConfig
from domainfusion.data.transforms import resize
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.distillation.corruption import corrupt, degrade
from domainfusion.distillation.slopes import SlopeEstimator, draw

IMAGES = 24


def forward_mode(
    function: Callable[[torch.Tensor], torch.Tensor], p: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The function's value at p (B,) and its derivative along p. Fused attention has no forward mode."""
    with sdpa_kernel(SDPBackend.MATH):
        value, derivative = torch.func.jvp(function, (p,), (torch.ones_like(p),))
    return value, derivative


def derivatives() -> list[dict[str, Any]]:
    """Two rows, encoder and whole loss: time of the difference beside jvp's, and the error of each."""
    ldm = LatentDiffusion.load("embedded", device=device())
    exact = LatentDiffusion.load("embedded", device=device(), precision="float32")
    stored, prompts = pictures(IMAGES)
    images = resize(stored, ldm.image_size)
    degraded = degrade(images, "contrast")
    p = torch.rand(IMAGES, generator=torch.Generator().manual_seed(1)) * 0.9 + 0.05
    config = DistillConfig(estimator="autograd")
    estimator, literal = SlopeEstimator(ldm, config), SlopeEstimator(exact, config)
    draws = draw(ldm, IMAGES, images.shape[-1], config, torch.Generator().manual_seed(2))
    step = SlopeEstimator.step

    def encode(of: LatentDiffusion) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda at: of.encode(corrupt(images, degraded, at))

    def difference() -> torch.Tensor:
        return estimator.path(images, degraded, p)[1]

    truth = forward_mode(encode(exact), p)[1]
    found = compare(difference, lambda: forward_mode(encode(ldm), p), repeats=5)
    rows = [_row("encoder", found, relative(difference(), truth), relative(forward_mode(encode(ldm), p)[1], truth))]

    def loss(of: SlopeEstimator) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda at: of.losses(images, prompts, at, draws)

    @torch.no_grad()
    def loss_difference() -> torch.Tensor:
        return (loss(estimator)(p + step) - loss(estimator)(p - step)) / (2 * step)

    slopes = literal.slopes(images, prompts, p, draws)
    found = compare(loss_difference, lambda: forward_mode(loss(estimator), p), repeats=5)
    rows.append(
        _row("loss", found, relative(loss_difference(), slopes), relative(forward_mode(loss(estimator), p)[1], slopes))
    )
    return rows


def _row(of: str, found: dict[str, float], ours: float, theirs: float) -> dict[str, Any]:
    ratio = found["ours"] / found["theirs"]
    return row(
        "derivatives", f"{of}: difference along p, error {100 * ours:.1f} %",
        f"torch.func.jvp, error {100 * theirs:.1f} %", ratio=ratio, target="<= 1", reached=ratio <= 1, unit="s",
        ours=found["ours"], theirs=found["theirs"], errors=[ours, theirs],
    )  # fmt: skip
