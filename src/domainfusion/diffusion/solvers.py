"""Timesteps and solvers of the probability-flow ODE, for a batch whose members start from different timesteps.

All solvers predict the clean latents: `ddim` (Song et al. 2021, eta = 0) from the present prediction alone, `dpm` from
the last two (DPM-Solver++ 2M, Lu et al. 2022, arXiv 2211.01095, algorithm 2), `unipc` from the last two with a
corrector that costs no further pass of the U-Net (UniPC-2, B(h) = e^h - 1, Zhao et al. 2023, arXiv 2302.04867). The
first step has no history and is DDIM's; the last one ends at the predicted clean latents.
"""

from __future__ import annotations

from typing import Literal

import torch

SolverName = Literal["ddim", "dpm", "unipc"]
Spacing = Literal["karras", "uniform"]

# Where karras spacing takes its last step, as a share of the schedule: from there one prediction reaches the clean
# latents, and what a finer end would add is below an 8-bit pixel.
LAST_SHARE = 0.02
# Where it begins at most: schedules that end without signal have noise without bound, which no step is spent on.
MOST_SIGMA = 80.0  # Karras et al.'s; Stable Diffusion's ends at 14.6
RHO = (
    3.0  # Karras et al. 2022 (arXiv 2206.00364), eq. 5, take 7 for pixels from σ = 80; 3 was best here at 3 to 7 steps
)


def denoising_timesteps(
    alphas_cumprod: torch.Tensor, strengths: torch.Tensor, steps: int, spacing: Spacing = "karras"
) -> torch.Tensor:
    """(steps, B) strictly descending timesteps of members that start from strength s, at timestep s·(T-1).

    Args:
        alphas_cumprod: (T,) the noise schedule.
        strengths: (B,) in (0, 1].
        spacing: karras, evenly in σ^(1/3), σ = √((1-ᾱ)/ᾱ), down to 2 % of the schedule; uniform, evenly in t down to
            one stride above 0, as DDIM's are.
    """
    total = len(alphas_cumprod)
    starts = strengths.cpu().double() * (total - 1)
    ramp = torch.arange(steps, dtype=torch.float64).view(-1, 1)
    if spacing == "uniform":
        timesteps = (starts * (1 - ramp / steps)).round().long()
    else:
        sigmas = ((1 - alphas_cumprod.cpu().double()) / alphas_cumprod.cpu().double()).sqrt()
        first = sigmas[starts.round().long()].clamp_max(MOST_SIGMA) ** (1 / RHO)
        last = torch.minimum(sigmas[round(LAST_SHARE * (total - 1))] ** (1 / RHO), first)
        wanted = (first + ramp / max(1, steps - 1) * (last - first)) ** RHO  # (steps, B)
        above = torch.searchsorted(sigmas, wanted.contiguous()).clamp(1, total - 1)
        nearer = (wanted - sigmas[above - 1]) < (sigmas[above] - wanted)
        timesteps = torch.where(nearer, above - 1, above)
        timesteps[0] = starts.round().long()
    for k in range(steps - 2, -1, -1):  # more steps than timesteps below the start: begin a little above it
        timesteps[k] = torch.maximum(timesteps[k], timesteps[k + 1] + 1)
    return timesteps.clamp(max=total - 1)


class Solver:
    """The state of B latents on their way down their own timesteps, in step with each other.

    Args:
        name: ddim, dpm, or unipc.
        alphas_cumprod: (T,) the noise schedule.
    """

    def __init__(self, name: SolverName, alphas_cumprod: torch.Tensor) -> None:
        self.name = name
        # Factors are computed on the CPU, in double precision, which not every accelerator has.
        alphas = alphas_cumprod.cpu().double()
        self.signal, self.noise = alphas.sqrt(), (1 - alphas).sqrt()
        self.half_log_snr = (self.signal / self.noise).log()
        # (timesteps, clean prediction, latents the step started from) of the last steps, newest first.
        self.history: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def step(
        self, z: torch.Tensor, clean: torch.Tensor, timesteps: torch.Tensor, after: torch.Tensor | None
    ) -> torch.Tensor:
        """The latents (B, C, h, w) at timesteps `after` (B,) of latents z at `timesteps` (B,); None is the clean end.

        Args:
            clean: (B, C, h, w) the clean latents that the U-Net predicts at z.
        """
        timesteps, after = timesteps.cpu(), None if after is None else after.cpu()
        if self.name == "unipc" and self.history:
            z = self._corrected(z, clean, timesteps)
        result = clean if after is None else self._predicted(z, clean, timesteps, after)
        self.history = [(timesteps, clean, z), *self.history[:1]]
        return result

    def _predicted(
        self, z: torch.Tensor, clean: torch.Tensor, timesteps: torch.Tensor, after: torch.Tensor
    ) -> torch.Tensor:
        here, h, decay, gain = self._interval(timesteps, after)
        first = decay.to(z) * z + gain.to(z) * clean
        if self.name == "ddim" or not self.history:
            return first
        before, last, _ = self.history[0]
        ratio = (here - self._lambda(before)) / h
        return first + (gain / (2 * ratio)).to(z) * (clean - last)

    def _corrected(self, z: torch.Tensor, clean: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """UniC: the last step taken again, now that the prediction at its end is known."""
        before, last, start = self.history[0]
        here, h, decay, gain = self._interval(before, timesteps)
        first = decay.to(z) * start + gain.to(z) * last
        change = clean - last
        if len(self.history) == 1:
            return first + (0.5 * gain).to(z) * change
        earlier, past, _ = self.history[1]
        ratio = (self._lambda(earlier) - here) / h  # negative
        # Weights ρ1, ρ2 with ρ1 + ρ2 = b1 and ρ1·ratio + ρ2 = b2: exact where predictions are quadratic in λ.
        growth = torch.expm1(-h)
        phi = -growth / h - 1
        b1, b2 = phi / growth, 2 * (-phi / h - 0.5) / growth
        rho1 = (b1 - b2) / (1 - ratio)
        slope = (past - last) / ratio.to(z)
        return first + gain.to(z) * (rho1.to(z) * slope + (b1 - rho1).to(z) * change)

    def _lambda(self, timesteps: torch.Tensor) -> torch.Tensor:
        return self.half_log_snr[timesteps].view(-1, 1, 1, 1)

    def _interval(
        self, timesteps: torch.Tensor, after: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """λ at the start, h to the end, and the factors of latents and clean prediction in a first-order step."""
        here = self._lambda(timesteps)
        h = self._lambda(after) - here
        decay = (self.noise[after] / self.noise[timesteps]).view(-1, 1, 1, 1)
        gain = -self.signal[after].view(-1, 1, 1, 1) * torch.expm1(-h)
        return here, h, decay, gain
