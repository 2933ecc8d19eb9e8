"""The slope dL/dp of the latent-distillation loss, by two estimators behind one interface.

L(p; x, y) = E_{t,ε} w(t)·mean r², with r the residual of the noise prediction at z_t = √ᾱ_t z + √(1-ᾱ_t) ε,
z = E(C_p(x)). The classifier enters through the scalar p alone, so ∇_θ L = L'(p)·∇_θ p and the training loss is
`(slope.detach() * p).mean()`, whatever the estimator (`distillation_loss`).

Residuals r: `plain` ε_φ(c) - ε (Algorithm 2); `guided` ε_φ(∅) + g(ε_φ(c) - ε_φ(∅)) - ε (DreamFusion); `contrast`
ε_φ(c) - ε_φ(∅) (classifier score distillation, Yu et al. 2023).
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch

from domainfusion.config import DistillConfig
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.distillation.corruption import corrupt, degrade


@dataclasses.dataclass(frozen=True)
class Draws:
    """The random part of an estimate: M draws of (t, ε) for each of B images, and what the corruption draws."""

    timesteps: torch.Tensor  # (M, B) int64
    noise: torch.Tensor  # (M, B, C, h, w)
    seed: int  # of the corruption

    def of(self, images: np.ndarray) -> Draws:
        """The draws of some of the B images, by their places; what the corruption draws is another's then."""
        chosen = torch.from_numpy(images).to(self.timesteps.device)
        return Draws(self.timesteps[:, chosen], self.noise[:, chosen], self.seed)


def draw(ldm: LatentDiffusion, count: int, size: int, config: DistillConfig, generator: torch.Generator) -> Draws:
    """Draws for `count` images of `size` pixels: t stratified over the range, independent for each image.

    Every second stratum takes the mirror image of its neighbour's place: what the slope has of a trend in t cancels
    between the two, and each t is still uniform in its stratum.
    """
    low = config.min_timestep * (ldm.num_train_timesteps - 1)
    high = config.max_timestep * (ldm.num_train_timesteps - 1)
    place = torch.rand(config.samples, count, generator=generator)
    paired = config.samples // 2 * 2
    place[1:paired:2] = 1 - place[0:paired:2]
    strata = (torch.arange(config.samples).view(-1, 1) + place) / config.samples
    timesteps = (low + strata * (high - low)).round().long()
    side = size // ldm.latent_factor
    channels = ldm.unet.config.in_channels
    noise = torch.randn(config.samples, count, channels, side, side, generator=generator)
    seed = int(torch.randint(2**31, (1,), generator=generator))
    return Draws(timesteps.to(ldm.device), noise.to(ldm.device), seed)


class SlopeEstimator:
    """dL/dp for images under prompts, at given confidences.

    Args:
        ldm: the frozen LDM.
        config: estimator, residual, corruption, weighting (`samples` is the draws' affair).
    """

    # Half the step of the difference along p that stands for the encoder's derivative (a smooth function of p, so
    # the error is of the order step²; tests hold it against the exact derivative).
    step = 0.01

    def __init__(self, ldm: LatentDiffusion, config: DistillConfig) -> None:
        self.ldm = ldm
        self.config = config

    def slopes(
        self, images: torch.Tensor, prompts: list[str], confidence: torch.Tensor, draws: Draws,
        *, degraded: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """(B,) slopes, the mean over the draws.

        Args:
            images: (B, 3, H, W) in [-1, 1].
            prompts: B prompts, of the given labels.
            confidence: (B,) in [0, 1].
            degraded: (B, 3, H, W), D(x); made here from the draws' seed where not given.
        """
        images, confidence = images.to(self.ldm.device), confidence.to(self.ldm.device)
        if degraded is None:
            degraded = degrade(images, self.config.corruption, torch.Generator().manual_seed(draws.seed))
        embeds = self.ldm.prompt_embeds(prompts)
        if self.config.method == "autograd":
            return self._autograd(images, degraded, embeds, confidence, draws)
        return self._score(images, degraded, embeds, confidence, draws)

    def losses(self, images: torch.Tensor, prompts: list[str], confidence: torch.Tensor, draws: Draws) -> torch.Tensor:
        """(B,) losses L(p), the mean over the draws; differentiable in `confidence`."""
        images, confidence = images.to(self.ldm.device), confidence.to(self.ldm.device)
        degraded = degrade(images, self.config.corruption, torch.Generator().manual_seed(draws.seed))
        return self._losses(images, degraded, self.ldm.prompt_embeds(prompts), confidence, draws)

    def noise_residual(
        self, latents: torch.Tensor, embeds: torch.Tensor, timesteps: torch.Tensor, noise: torch.Tensor
    ) -> torch.Tensor:
        """r (B, C, h, w) at latents z (B, C, h, w): what the LDM would change ("LD noise")."""
        noisy = self.ldm.add_noise(latents, noise, timesteps)
        if self.config.residual == "plain":
            return self.ldm.predict_noise(noisy, timesteps, embeds) - noise
        empty = self.ldm.prompt_embeds([""]).expand(len(latents), -1, -1)
        both = self.ldm.predict_noise(torch.cat([noisy] * 2), torch.cat([timesteps] * 2), torch.cat([empty, embeds]))
        without, prompted = both.chunk(2)
        if self.config.residual == "contrast":
            return prompted - without
        return without + self.config.guidance * (prompted - without) - noise

    def _weights(self, timesteps: torch.Tensor) -> torch.Tensor:
        """w(t), (B,)."""
        if self.config.weighting == "uniform":
            return torch.ones_like(timesteps, dtype=torch.float32)
        return 1 - self.ldm.alphas_cumprod[timesteps]

    def _losses(
        self, images: torch.Tensor, degraded: torch.Tensor, embeds: torch.Tensor, confidence: torch.Tensor, draws: Draws
    ) -> torch.Tensor:
        latents = self.ldm.encode(corrupt(images, degraded, confidence))
        total = torch.zeros(len(images), device=latents.device, dtype=latents.dtype)
        for timesteps, noise in zip(draws.timesteps, draws.noise, strict=True):
            residual = self.noise_residual(latents, embeds, timesteps, noise)
            total = total + self._weights(timesteps) * residual.square().mean((1, 2, 3))
        return total / len(draws.timesteps)

    def _autograd(
        self, images: torch.Tensor, degraded: torch.Tensor, embeds: torch.Tensor, confidence: torch.Tensor, draws: Draws
    ) -> torch.Tensor:
        """Back-propagation through U-Net and encoder: each L depends on its own p only, so one backward gives all."""
        with torch.enable_grad():
            p = confidence.detach().clone().requires_grad_(True)
            losses = self._losses(images, degraded, embeds, p, draws)
            # A loss is a mean over all numbers of the latents, so what each of them passes on is below what half
            # precision tells from 0: the sum over them is differentiated. A power of two changes nothing else.
            scale = 2.0 ** round(math.log2(draws.noise[0, 0].numel()))
            return torch.autograd.grad(scale * losses.sum(), p)[0] / scale

    @torch.no_grad()
    def _score(
        self, images: torch.Tensor, degraded: torch.Tensor, embeds: torch.Tensor, confidence: torch.Tensor, draws: Draws
    ) -> torch.Tensor:
        """E w(t)·√ᾱ_t·⟨r, dz/dp⟩/dim, the U-Net's Jacobian dropped (DreamFusion, arXiv 2209.14988, eq. 3)."""
        latents, tangent = self.path(images, degraded, confidence)
        return self.project(latents, tangent, embeds, draws)

    @torch.no_grad()
    def path(
        self, images: torch.Tensor, degraded: torch.Tensor, confidence: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """z(p) = E(C_p(x)) and dz/dp = J_E(C_p x)·(x - D(x)), each (B, C, h, w), by a central difference."""
        p = confidence.detach().to(images.device)
        ahead = self.ldm.encode(corrupt(images, degraded, p + self.step))
        behind = self.ldm.encode(corrupt(images, degraded, p - self.step))
        return (ahead + behind) / 2, (ahead - behind) / (2 * self.step)  # the mean is z(p) up to step²

    @torch.no_grad()
    def pull(self, latents: torch.Tensor, embeds: torch.Tensor, draws: Draws) -> torch.Tensor:
        """(B, C, h, w) mean over the draws of w(t)·√ᾱ_t·r at z(p): what a slope multiplies dz/dp with."""
        total = torch.zeros_like(latents)
        for timesteps, noise in zip(draws.timesteps, draws.noise, strict=True):
            signal, _ = self.ldm.signal_and_noise(timesteps)
            weight = self._weights(timesteps).view(-1, 1, 1, 1) * signal
            total = total + weight * self.noise_residual(latents, embeds, timesteps, noise)
        return total / len(draws.timesteps)

    @torch.no_grad()
    def project(self, latents: torch.Tensor, tangent: torch.Tensor, embeds: torch.Tensor, draws: Draws) -> torch.Tensor:
        """(B,) mean over the draws of w(t)·√ᾱ_t·⟨r, dz/dp⟩/dim at z(p) and dz/dp of `path`."""
        return (self.pull(latents, embeds, draws) * tangent).mean((1, 2, 3))


def distillation_loss(slopes: torch.Tensor, confidence: torch.Tensor) -> torch.Tensor:
    """mean(slope·p), whose gradient is that of mean L(p): slopes (B,) are constants, confidence (B,) is not."""
    return (slopes.detach() * confidence).mean()
