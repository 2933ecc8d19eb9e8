"""Candidates by image-to-image: noise the latents of an image to a strength, and denoise them under a prompt.

SDEdit (Meng et al. 2022), as `StableDiffusionImg2ImgPipeline` does it, but over images x candidates in one batch: every
image is encoded once, prompts are embedded once, the passes with and without prompt are one, and candidates of
different strengths share the passes (each goes down its own timesteps, in as many steps as the others).
"""

from __future__ import annotations

import torch

from domainfusion.data.transforms import resize
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.diffusion.solvers import Solver, SolverName, Spacing, denoising_timesteps
from domainfusion.errors import LDMError
from domainfusion.interruption import check


@torch.no_grad()
def image_to_image(
    ldm: LatentDiffusion,
    images: torch.Tensor,
    prompts: list[str],
    strengths: torch.Tensor,
    *,
    noise: torch.Tensor | None = None,
    generator: torch.Generator | None = None,
    candidates: int = 1,
    steps: int = 4,
    guidance_scale: float = 3.0,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
    solver: SolverName = "unipc",
    spacing: Spacing = "karras",
    batch_size: int = 0,
    side: int | None = None,
) -> torch.Tensor:
    """Candidates (B, N, 3, H, W) in [-1, 1] of images (B, 3, H, W) in [-1, 1], on the CPU.

    Args:
        prompts: B·N prompts, candidate by candidate within an image.
        strengths: (B, N) in (0, 1]; strength s starts from timestep s·T.
        noise: (B·N, C, h, w) to start from; drawn from `generator` where not given.
        candidates: N.
        steps: denoising steps of every candidate, whatever its strength.
        guidance_scale: classifier-free guidance; at most 1 means one conditional pass only.
        guidance_interval: shares of the schedule between which guidance is applied; outside, one conditional pass
            (Kynkäänniemi et al. 2024, arXiv 2404.07724).
        solver, spacing: see `domainfusion.diffusion.solvers`.
        batch_size: candidates denoised at once (0: as `LatentDiffusion.at_once` has it).
        side: pixels that candidates are resized to on the LDM's device; the images' own where not given.

    Raises `Interrupted` between two steps where a signal has come (see `domainfusion.interruption`), and `LDMError`
    where a candidate is not finite.
    """
    count = len(images)
    if len(prompts) != count * candidates or strengths.shape != (count, candidates):
        raise ValueError(
            f"{count} images with {candidates} candidates need {count * candidates} prompts and strengths of shape "
            f"({count}, {candidates}), not {len(prompts)} and {tuple(strengths.shape)}"
        )
    latents = ldm.encode(images.to(ldm.device), exact=False).repeat_interleave(candidates, dim=0)  # (B·N, C, h, w)
    if noise is None:
        noise = torch.randn(latents.shape, generator=generator)
    noise = noise.to(ldm.device)
    timesteps = denoising_timesteps(ldm.alphas_cumprod, strengths.reshape(-1), steps, spacing).to(ldm.device)
    embeds, empty = ldm.prompt_embeds(prompts), ldm.prompt_embeds([""])
    batch_size = ldm.at_once(batch_size, images.shape[-1])
    result = torch.empty(count * candidates, *(images.shape[1:] if side is None else (images.shape[1], side, side)))
    for start in range(0, count * candidates, batch_size):
        part = slice(start, start + batch_size)
        steps_of_part = Solver(solver, ldm.alphas_cumprod)
        z = _denoise(
            ldm, latents[part], noise[part], embeds[part], empty, timesteps[:, part], steps_of_part, guidance_scale,
            guidance_interval,
        )  # fmt: skip
        made = ldm.decode(z)
        whole = torch.isfinite(made).all()
        made = made.clamp(-1, 1)
        result[part] = (made if side is None else resize(made, side)).cpu()
        if not whole:
            raise LDMError(f"{ldm.name}: its candidates are not finite; use --precision float32")
    return result.view(count, candidates, *result.shape[1:])


def _denoise(
    ldm: LatentDiffusion, latents: torch.Tensor, noise: torch.Tensor, embeds: torch.Tensor, empty: torch.Tensor,
    timesteps: torch.Tensor, solver: Solver, guidance_scale: float, guidance_interval: tuple[float, float],
) -> torch.Tensor:  # fmt: skip
    """Clean latents (b, C, h, w), from latents noised to the first of `timesteps` (steps, b) and down the others."""
    low, high = (share * (ldm.num_train_timesteps - 1) for share in guidance_interval)
    everywhere = low <= 0 and high >= ldm.num_train_timesteps - 1
    z = ldm.add_noise(latents, noise, timesteps[0])
    for number, t in enumerate(timesteps):
        check()
        if everywhere or guidance_scale <= 1:  # known without looking: a GPU goes on meanwhile
            some = torch.arange(len(z) if guidance_scale > 1 else 0, device=z.device)
        else:
            some = ((t >= low) & (t <= high)).nonzero().flatten()
        passes = torch.cat([z, z[some]])
        prompts = torch.cat([embeds, empty.expand(len(some), -1, -1)])
        predicted, without = ldm.predict_noise(passes, torch.cat([t, t[some]]), prompts).split([len(z), len(some)])
        predicted = predicted.index_add(0, some, (guidance_scale - 1) * (predicted[some] - without))
        signal, sigma = ldm.signal_and_noise(t)
        after = timesteps[number + 1] if number + 1 < len(timesteps) else None
        z = solver.step(z, (z - sigma * predicted) / signal, t, after)
    return z
