"""Candidates by image-to-image: noise the latents of an image to a strength, and denoise them under a prompt.

SDEdit (Meng et al. 2022) with DDIM steps (Song et al. 2021, eta = 0), as `StableDiffusionImg2ImgPipeline` does it, but
over images x candidates in one batch: every image is encoded once, prompts are embedded once, and candidates of
different strengths share the passes (each joins when the others have come down to its level).
"""

from __future__ import annotations

import torch

from domainfusion.diffusion.ldm import LatentDiffusion


def denoising_timesteps(total: int, steps: int) -> torch.Tensor:
    """The descending timesteps of a full-strength run: `steps` of them, evenly spaced, ending near 0."""
    return torch.linspace(total - 1, 0, steps + 1)[:-1].round().long()


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
    steps: int = 12,
    guidance_scale: float = 3.0,
    batch_size: int = 64,
) -> torch.Tensor:
    """Candidates (B, N, 3, H, W) in [-1, 1] of images (B, 3, H, W) in [-1, 1].

    Args:
        prompts: B·N prompts, candidate by candidate within an image.
        strengths: (B, N) in (0, 1]; strength s starts from timestep s·T.
        noise: (B·N, C, h, w) to start from; drawn from `generator` where not given.
        candidates: N.
        steps: denoising steps of a full-strength candidate.
        guidance_scale: classifier-free guidance; at most 1 means one conditional pass only.
        batch_size: candidates denoised at once.
    """
    count = len(images)
    if len(prompts) != count * candidates or strengths.shape != (count, candidates):
        raise ValueError(
            f"{count} images with {candidates} candidates need {count * candidates} prompts and strengths of shape "
            f"({count}, {candidates}), not {len(prompts)} and {tuple(strengths.shape)}"
        )
    latents = ldm.encode(images.to(ldm.device)).repeat_interleave(candidates, dim=0)  # (B·N, C, h, w)
    if noise is None:
        noise = torch.randn(latents.shape, generator=generator).to(ldm.device)
    schedule = denoising_timesteps(ldm.num_train_timesteps, steps)
    # The step at which each candidate joins: the first whose timestep is not above strength·T.
    wanted = strengths.reshape(-1) * (ldm.num_train_timesteps - 1)
    joins = torch.tensor([int((schedule > w + 0.5).sum()) for w in wanted]).clamp(max=steps - 1)
    embeds = ldm.prompt_embeds(prompts)
    empty = ldm.prompt_embeds([""])
    # Candidates of like strength are denoised together, so that few wait for the others.
    order = torch.argsort(joins, stable=True)
    result = torch.empty(count * candidates, *images.shape[1:])
    for part in order.split(batch_size):
        z = _denoise(ldm, latents[part], noise[part], embeds[part], empty, schedule, joins[part], guidance_scale)
        result[part] = ldm.decode(z).clamp(-1, 1).cpu()
    return result.view(count, candidates, *images.shape[1:])


def _denoise(
    ldm: LatentDiffusion, latents: torch.Tensor, noise: torch.Tensor, embeds: torch.Tensor, empty: torch.Tensor,
    schedule: torch.Tensor, joins: torch.Tensor, guidance_scale: float,
) -> torch.Tensor:  # fmt: skip
    """DDIM from each candidate's own start; `joins` (b,) ascends, so the active ones are always a prefix."""
    z = latents.clone()
    following = torch.cat([schedule[1:], torch.tensor([-1])])
    for number, (timestep, after) in enumerate(zip(schedule.tolist(), following.tolist(), strict=True)):
        active = int((joins <= number).sum())
        if not active:
            continue
        fresh = joins[:active] == number
        t = torch.full((active,), timestep, device=ldm.device)
        if fresh.any():
            z[:active][fresh] = ldm.add_noise(latents[:active], noise[:active], t)[fresh]
        if guidance_scale > 1:
            both = torch.cat([empty.expand(active, -1, -1), embeds[:active]])
            without, prompted = ldm.predict_noise(torch.cat([z[:active]] * 2), torch.cat([t, t]), both).chunk(2)
            predicted = without + guidance_scale * (prompted - without)
        else:
            predicted = ldm.predict_noise(z[:active], t, embeds[:active])
        signal, sigma = ldm.signal_and_noise(t)
        clean = (z[:active] - sigma * predicted) / signal
        if after < 0:
            z[:active] = clean
        else:
            signal, sigma = ldm.signal_and_noise(torch.full((active,), after, device=ldm.device))
            z[:active] = signal * clean + sigma * predicted
    return z
