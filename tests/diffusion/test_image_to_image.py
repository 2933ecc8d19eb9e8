"""`image_to_image` against DDIM written out image by image, and against diffusers' own image-to-image pipeline."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline

from domainfusion.data.transforms import resize
from domainfusion.diffusion.image_to_image import image_to_image
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.diffusion.solvers import denoising_timesteps
from domainfusion.errors import Interrupted, LDMError
from domainfusion.interruption import stoppable

STEPS = 5
PROMPTS = ["a cat, flat", "a dog, ink", "a house"]


@pytest.fixture
def ldm(tiny_pipeline: Path) -> LatentDiffusion:
    return LatentDiffusion.load(str(tiny_pipeline), precision="float32")


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(3)) * 2 - 1


def gaussian(count: int, seed: int = 5) -> torch.Tensor:
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def literal_candidate(
    pipeline: StableDiffusionImg2ImgPipeline, image: torch.Tensor, prompt: str, noise: torch.Tensor, strength: float,
    steps: int, guidance_scale: float, interval: tuple[float, float],
) -> torch.Tensor:  # fmt: skip
    """One candidate (3, H, W) of one image by DDIM, one U-Net call at a time."""
    alphas = pipeline.scheduler.alphas_cumprod
    schedule = [round(strength * 999 * (steps - k) / steps) for k in range(steps)]
    prompted = pipeline.encode_prompt(prompt, "cpu", 1, False)[0]
    empty = pipeline.encode_prompt("", "cpu", 1, False)[0]
    latents = pipeline.vae.encode(image[None]).latent_dist.mode() * pipeline.vae.config.scaling_factor
    z = alphas[schedule[0]] ** 0.5 * latents + (1 - alphas[schedule[0]]) ** 0.5 * noise
    for timestep, alpha_after in zip(schedule, [*alphas[schedule[1:]], torch.tensor(1.0)], strict=True):
        predicted = pipeline.unet(z, timestep, prompted).sample
        if guidance_scale > 1 and interval[0] * 999 <= timestep <= interval[1] * 999:
            without = pipeline.unet(z, timestep, empty).sample
            predicted = without + guidance_scale * (predicted - without)
        alpha = alphas[timestep]
        clean = (z - (1 - alpha) ** 0.5 * predicted) / alpha**0.5
        z = alpha_after**0.5 * clean + (1 - alpha_after) ** 0.5 * predicted
    return pipeline.vae.decode(z / pipeline.vae.config.scaling_factor).sample[0].clamp(-1, 1)


@pytest.fixture
def pipeline(tiny_pipeline: Path) -> StableDiffusionImg2ImgPipeline:
    pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(tiny_pipeline)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("solver", ["ddim", "unipc"])
def test_candidates_that_are_not_finite_are_refused(
    ldm: LatentDiffusion, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch, solver: Any
) -> None:
    """Half precision may overflow; as 8-bit pixels that would be black pictures."""
    predict = ldm.predict_noise

    def overflow(z: torch.Tensor, timesteps: torch.Tensor, embeds: torch.Tensor) -> torch.Tensor:
        found = predict(z, timesteps, embeds).clone()
        found[1, 0, 0, 0] = torch.inf
        return found

    monkeypatch.setattr(ldm, "predict_noise", overflow)
    with pytest.raises(LDMError, match=r"not finite; use --precision float32"):
        image_to_image(ldm, images, PROMPTS, torch.full((3, 1), 0.5), noise=gaussian(3), solver=solver)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("solver", ["ddim", "dpm", "unipc"])
@pytest.mark.parametrize("spacing", ["karras", "uniform"])
def test_schedules_that_end_without_signal_start_from_pure_noise(
    ldm: LatentDiffusion, images: torch.Tensor, prediction_type: str, solver: Any, spacing: Any
) -> None:
    """`rescale_betas_zero_snr`, as Stable Diffusion's later fine-tunings have it."""
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear", prediction_type=prediction_type, rescale_betas_zero_snr=True
    )
    assert scheduler.alphas_cumprod[-1] == 0
    whole = LatentDiffusion(ldm.vae, ldm.unet, ldm.text_encoder, ldm.tokenizer, scheduler)
    timesteps = denoising_timesteps(whole.alphas_cumprod, torch.tensor([1.0, 0.5]), 4, spacing)
    assert timesteps[0].tolist() == [999, 500]
    assert all(len(set(column)) == 4 for column in timesteps.T.tolist())
    assert timesteps[1, 0] < 990  # no step is spent where there is nothing to see
    made = image_to_image(
        whole, images, PROMPTS, torch.tensor([[1.0], [0.999], [0.5]]), noise=gaussian(3), solver=solver, spacing=spacing
    )
    assert made.isfinite().all()
    assert made.std() > 1e-3
    # At the last timestep a v-prediction is the clean image with its sign turned, and nothing of z.
    z, v = gaussian(1), gaussian(1, 6)
    signal, sigma = whole.signal_and_noise(torch.tensor([999]))
    clean = (z - sigma * (signal * v + sigma * z)) / signal
    torch.testing.assert_close(clean, -v, atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    ("guidance_scale", "interval"), [(1.0, (0.0, 1.0)), (3.5, (0.0, 1.0)), (3.5, (0.1, 0.5)), (3.5, (0.98, 1.0))]
)
def test_equals_ddim_written_out_for_each_candidate(
    ldm: LatentDiffusion, pipeline: StableDiffusionImg2ImgPipeline, images: torch.Tensor, guidance_scale: float,
    interval: tuple[float, float],
) -> None:  # fmt: skip
    noise = gaussian(6)
    prompts = ["a cat", "a dog", "a house, ink", "", "a cat, flat", "a dog"]
    strengths = torch.tensor([[0.3, 0.9], [0.62, 0.2], [1.0, 0.05]])
    made = image_to_image(
        ldm, images, prompts, strengths, noise=noise, candidates=2, steps=STEPS, guidance_scale=guidance_scale,
        guidance_interval=interval, solver="ddim", spacing="uniform",
    )  # fmt: skip
    assert made.shape == (3, 2, 3, 16, 16)
    assert made.abs().max() <= 1
    for i in range(3):
        for j in range(2):
            expected = literal_candidate(
                pipeline, images[i], prompts[2 * i + j], noise[2 * i + j], float(strengths[i, j]), STEPS,
                guidance_scale, interval,
            )  # fmt: skip
            torch.testing.assert_close(made[i, j], expected, rtol=0, atol=1e-4)


class EvenSchedule(DDIMScheduler):
    """DDIM at evenly spaced timesteps; of a strength s the pipeline takes the last s·steps of them."""

    def set_timesteps(self, num_inference_steps: int, device: object = None) -> None:
        super().set_timesteps(num_inference_steps, device)
        self.timesteps = torch.linspace(999, 0, num_inference_steps + 1)[:-1].round().long()


@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
@pytest.mark.parametrize(("strength", "steps"), [(0.6667, 6), (1.0, 9)])
def test_equals_diffusers_image_to_image_pipeline(
    tiny_pipeline: Path, images: torch.Tensor, strength: float, steps: int, guidance_scale: float
) -> None:
    # 9 steps: 999/9 = 1000//9, so that DDIMScheduler's own idea of the previous timestep is ours. A schedule whose
    # timestep 0 holds no noise: diffusers' last step then ends at the clean latents, as ours does.
    betas = [0.0, *(torch.linspace(0.00085**0.5, 0.012**0.5, 999) ** 2).tolist()]
    scheduler = EvenSchedule(trained_betas=betas, clip_sample=False, steps_offset=1)
    pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(tiny_pipeline, scheduler=scheduler)
    pipeline.set_progress_bar_config(disable=True)
    ldm = LatentDiffusion(pipeline.vae, pipeline.unet, pipeline.text_encoder, pipeline.tokenizer, scheduler)
    expected = pipeline(
        prompt=PROMPTS, image=ldm.encode(images), strength=strength, num_inference_steps=9,
        guidance_scale=guidance_scale, generator=torch.Generator().manual_seed(8), output_type="pt",
    ).images  # fmt: skip
    made = image_to_image(
        ldm, images, PROMPTS, torch.full((3, 1), strength), generator=torch.Generator().manual_seed(8), steps=steps,
        guidance_scale=guidance_scale, solver="ddim", spacing="uniform",
    )  # fmt: skip
    torch.testing.assert_close((made[:, 0] + 1) / 2, expected, rtol=0, atol=1e-4)
    assert expected.std() > 0.05


def test_candidates_come_at_the_size_that_is_asked_for(ldm: LatentDiffusion, images: torch.Tensor) -> None:
    def run(side: int | None) -> torch.Tensor:
        return image_to_image(ldm, images, PROMPTS, torch.full((3, 1), 0.5), noise=gaussian(3), steps=2, side=side)

    small = run(8)
    assert small.shape == (3, 1, 3, 8, 8)
    assert torch.equal(small[:, 0], resize(run(None)[:, 0], 8))


def test_guidance_and_prompts_matter(ldm: LatentDiffusion, images: torch.Tensor) -> None:
    def run(prompts: list[str], guidance_scale: float) -> torch.Tensor:
        strengths = torch.full((3, 1), 0.7)
        return image_to_image(
            ldm, images, prompts, strengths, noise=gaussian(3), steps=STEPS, guidance_scale=guidance_scale
        )

    plain = run(PROMPTS, 1.0)
    assert (run(PROMPTS, 4.0) - plain).abs().mean() > 1e-3
    assert (run(["", "", ""], 1.0) - plain).abs().mean() > 1e-3
    # Guidance towards the empty prompt is no guidance; 0 is one conditional pass, as 1 is.
    torch.testing.assert_close(run(["", "", ""], 4.0), run(["", "", ""], 1.0), rtol=0, atol=1e-4)
    assert torch.equal(run(PROMPTS, 0.0), plain)


def test_independent_of_batch_size_and_of_the_other_images(ldm: LatentDiffusion, images: torch.Tensor) -> None:
    noise = gaussian(6)
    prompts = PROMPTS + PROMPTS[::-1]
    strengths = torch.tensor([[0.8, 0.3], [0.55, 1.0], [0.4, 0.65]])

    def run(rows: list[int], batch_size: int) -> torch.Tensor:
        flat = [2 * row + j for row in rows for j in range(2)]
        return image_to_image(
            ldm, images[rows], [prompts[i] for i in flat], strengths[rows], noise=noise[flat], candidates=2, steps=7,
            batch_size=batch_size,
        )  # fmt: skip

    together = run([0, 1, 2], 64)
    for batch_size in (1, 2, 5):
        torch.testing.assert_close(run([0, 1, 2], batch_size), together, rtol=0, atol=1e-4)
    torch.testing.assert_close(run([2, 0], 64), together[[2, 0]], rtol=0, atol=1e-4)
    torch.testing.assert_close(run([1], 1), together[[1]], rtol=0, atol=1e-4)


def test_higher_strength_moves_further(ldm: LatentDiffusion, images: torch.Tensor) -> None:
    strengths = torch.tensor([0.1, 0.35, 0.6, 0.9]).repeat(3, 1)
    noise = gaussian(3).repeat_interleave(4, dim=0)  # the same for all strengths of an image
    made = image_to_image(ldm, images, [p for p in PROMPTS for _ in range(4)], strengths, noise=noise, candidates=4)
    unchanged = ldm.decode(ldm.encode(images)).detach().clamp(-1, 1).unsqueeze(1)
    moved = (made - unchanged).abs().mean((0, 2, 3, 4))
    assert (moved.diff() > 0).all()


def test_noise_comes_from_the_generator(ldm: LatentDiffusion, images: torch.Tensor) -> None:
    def run(**options: object) -> torch.Tensor:
        return image_to_image(ldm, images, PROMPTS, torch.full((3, 1), 0.5), steps=4, **options)

    drawn = run(generator=torch.Generator().manual_seed(5))
    assert torch.equal(drawn, run(noise=gaussian(3, seed=5)))
    assert not torch.equal(drawn, run(generator=torch.Generator().manual_seed(6)))


def test_inputs_are_left_as_they_were(ldm: LatentDiffusion, images: torch.Tensor) -> None:
    noise, kept = gaussian(3), images.clone()
    image_to_image(ldm, images, PROMPTS, torch.full((3, 1), 0.6), noise=noise, steps=3)
    assert torch.equal(images, kept)
    assert torch.equal(noise, gaussian(3))


def test_wrong_counts_are_refused(ldm: LatentDiffusion, images: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="3 images with 2 candidates need 6 prompts"):
        image_to_image(ldm, images, PROMPTS, torch.full((3, 2), 0.5), candidates=2)
    with pytest.raises(ValueError, match=r"strengths of shape \(3, 1\), not 3 and \(3,\)"):
        image_to_image(ldm, images, PROMPTS, torch.full((3,), 0.5))


@pytest.mark.parametrize(("guidance_scale", "passes"), [(0.0, 1), (1.0, 1), (3.0, 2)])
def test_what_a_candidate_costs(
    ldm: LatentDiffusion, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch, guidance_scale: float, passes: int
) -> None:
    """Without guidance no unconditional pass is made; an image is encoded once for all of its candidates."""
    spent: list[int] = []
    encoded: list[int] = []
    forward, encode = ldm.unet.forward, ldm.encode

    def counted(noisy: torch.Tensor, *rest: object, **options: object) -> object:
        spent.append(len(noisy))
        return forward(noisy, *rest, **options)

    def counted_encode(pixels: torch.Tensor, **options: Any) -> torch.Tensor:
        encoded.append(len(pixels))
        return encode(pixels, **options)

    monkeypatch.setattr(ldm.unet, "forward", counted)
    monkeypatch.setattr(ldm, "encode", counted_encode)
    image_to_image(
        ldm, images, PROMPTS * 2, torch.full((3, 2), 0.6), noise=gaussian(6), candidates=2, steps=STEPS,
        guidance_scale=guidance_scale,
    )  # fmt: skip
    assert spent == [6 * passes] * STEPS
    assert encoded == [3]


def test_a_signal_is_honoured_between_two_steps(
    ldm: LatentDiffusion, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, passes = ldm.unet.forward, 0

    def interrupted(*args: Any, **options: Any) -> Any:
        nonlocal passes
        passes += 1
        if passes == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return forward(*args, **options)

    monkeypatch.setattr(ldm.unet, "forward", interrupted)
    with pytest.raises(Interrupted), stoppable():
        image_to_image(ldm, images, PROMPTS, torch.full((3, 1), 0.6), noise=gaussian(3), steps=4)
    assert passes == 2
