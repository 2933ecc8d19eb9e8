"""`LatentDiffusion` on a real tiny pipeline, against diffusers' and transformers' own classes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file

from domainfusion.diffusion import ldm as ldm_module
from domainfusion.diffusion.ldm import LatentDiffusion


@pytest.fixture
def ldm(tiny_pipeline: Path) -> LatentDiffusion:
    return LatentDiffusion.load(str(tiny_pipeline), precision="float32")


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(3)) * 2 - 1


def test_load_reads_weights_schedule_and_styles_of_the_folder(ldm: LatentDiffusion, tiny_pipeline: Path) -> None:
    assert (ldm.image_size, ldm.latent_factor, ldm.num_train_timesteps) == (16, 2, 1000)
    assert ldm.scaling_factor == 0.9
    assert ldm.styles == ("flat", "ink")
    assert ldm.dtype == torch.float32
    for part, name in (("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model")):
        stored = load_file(tiny_pipeline / part / f"{name}.safetensors")
        loaded = getattr(ldm, part).state_dict()
        assert stored.keys() == loaded.keys()
        assert all(torch.equal(stored[key], loaded[key]) for key in stored)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2  # "scaled linear"
    torch.testing.assert_close(ldm.alphas_cumprod.double(), (1 - betas).cumprod(0), rtol=1e-4, atol=0)


def test_encode_is_the_scaled_mean_of_the_posterior(
    ldm: LatentDiffusion, tiny_pipeline: Path, images: torch.Tensor
) -> None:
    vae = AutoencoderKL.from_pretrained(tiny_pipeline / "vae")
    with torch.no_grad():
        moments = vae.quant_conv(vae.encoder(images))
        decoded = vae.decode(vae.encode(images).latent_dist.mode()).sample
    latents = ldm.encode(images)
    assert latents.shape == (3, 4, 8, 8)
    torch.testing.assert_close(latents, moments.chunk(2, dim=1)[0] * 0.9, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ldm.decode(latents), decoded, rtol=1e-5, atol=1e-5)


def test_latents_are_exact_for_slopes_and_in_the_ldms_type_for_candidates(
    tiny_pipeline: Path, images: torch.Tensor
) -> None:
    ldm = LatentDiffusion.load(str(tiny_pipeline), precision="bfloat16")
    single = LatentDiffusion.load(str(tiny_pipeline), precision="float32").encode(images)
    types: set[torch.dtype] = set()
    ldm.vae.encoder.conv_out.register_forward_hook(lambda *given: types.add(given[2].dtype))
    assert torch.equal(ldm.encode(images), single)
    assert types == {torch.float32}
    types.clear()
    quick = ldm.encode(images, exact=False)
    assert types == {torch.bfloat16}
    assert quick.dtype == torch.float32
    assert 0 < (quick - single).std() < 0.02 * single.std()


def test_single_precision_is_not_tensor_cores_shorter_one() -> None:
    before = torch.backends.cudnn.allow_tf32
    assert before  # PyTorch's default, on which the next line depends
    with ldm_module.single_precision(torch.device("cuda")):
        assert not torch.backends.cudnn.allow_tf32
    with pytest.raises(KeyError), ldm_module.single_precision(torch.device("cuda")):
        raise KeyError
    assert torch.backends.cudnn.allow_tf32
    with ldm_module.single_precision(torch.device("cpu")):
        assert torch.backends.cudnn.allow_tf32


def test_the_autoencoder_takes_few_pixels_at_once(
    ldm: LatentDiffusion, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that the U-Net holds easily is many times too large for the autoencoder of Stable Diffusion."""
    latents = ldm.encode(images)
    decoded = ldm.decode(latents)
    monkeypatch.setattr(ldm_module, "PIXELS_AT_ONCE", 2 * 16 * 16 + 1)
    sizes: list[int] = []
    for network in (ldm.vae.encoder, ldm.vae.decoder):
        network.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    torch.testing.assert_close(ldm.encode(images), latents)
    torch.testing.assert_close(ldm.decode(latents), decoded)
    assert sizes == [2, 1, 2, 1]
    monkeypatch.setattr(ldm_module, "PIXELS_AT_ONCE", 1)
    torch.testing.assert_close(ldm.encode(images), latents)
    assert sizes[4:] == [1, 1, 1]


def test_batches_fill_the_device_unless_told_otherwise(ldm: LatentDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [ldm.at_once(wanted, 64) for wanted in (0, 1, 200)] == [64, 1, 200]
    monkeypatch.setattr(ldm, "device", torch.device("cuda"))
    assert [ldm.at_once(0, pixels) for pixels in (64, 128, 320, 512, 4096)] == [1024, 256, 40, 16, 16]
    assert ldm.at_once(7, 64) == 7


def test_shift_factor_is_taken_off_before_scaling(ldm: LatentDiffusion, images: torch.Tensor) -> None:
    plain = ldm.encode(images)
    ldm.vae.register_to_config(shift_factor=0.25)
    shifted = LatentDiffusion(ldm.vae, ldm.unet, ldm.text_encoder, ldm.tokenizer, ldm.scheduler)
    torch.testing.assert_close(shifted.encode(images), plain - 0.25 * 0.9)
    torch.testing.assert_close(shifted.decode(shifted.encode(images)), ldm.decode(plain), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_predict_noise_agrees_with_the_schedulers_conversions(
    ldm: LatentDiffusion, tiny_pipeline: Path, images: torch.Tensor, prediction_type: str
) -> None:
    scheduler = DDIMScheduler.from_pretrained(
        tiny_pipeline, subfolder="scheduler", prediction_type=prediction_type, clip_sample=False
    )
    scheduler.set_timesteps(1000)
    typed = LatentDiffusion(ldm.vae, ldm.unet, ldm.text_encoder, ldm.tokenizer, scheduler)
    unet = UNet2DConditionModel.from_pretrained(tiny_pipeline, subfolder="unet")
    timesteps = torch.tensor([40, 350, 800])  # a different one for each image of the batch
    noise = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    latents = ldm.encode(images)
    noisy = scheduler.add_noise(latents, noise, timesteps)
    torch.testing.assert_close(typed.add_noise(latents, noise, timesteps), noisy)
    embeds = ldm.prompt_embeds(["a cat", "a dog", ""])
    predicted = typed.predict_noise(noisy, timesteps, embeds)
    for i, timestep in enumerate(timesteps.tolist()):
        with torch.no_grad():
            output = unet(noisy[i : i + 1], timestep, embeds[i : i + 1]).sample
        clean = scheduler.step(output, timestep, noisy[i : i + 1]).pred_original_sample
        signal, sigma = scheduler.alphas_cumprod[timestep] ** 0.5, (1 - scheduler.alphas_cumprod[timestep]) ** 0.5
        torch.testing.assert_close(signal * clean + sigma * predicted[i : i + 1], noisy[i : i + 1], rtol=0, atol=2e-5)
    if prediction_type != "epsilon":  # the conversion does something
        assert (predicted - ldm.predict_noise(noisy, timesteps, embeds)).abs().mean() > 0.05


def test_prediction_types_agree_on_what_they_describe(ldm: LatentDiffusion) -> None:
    """A U-Net of zeros says ε = 0, v = 0 or z = 0; the noise of each follows from z_t alone."""
    for parameter in ldm.unet.conv_out.parameters():
        parameter.zero_()
    noisy = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    timesteps = torch.tensor([100, 900])
    sigma = (1 - ldm.scheduler.alphas_cumprod[timesteps]).sqrt().view(-1, 1, 1, 1)
    expected = {"epsilon": 0 * noisy, "v_prediction": sigma * noisy, "sample": noisy / sigma}
    for prediction_type, noise in expected.items():
        ldm.prediction_type = prediction_type
        torch.testing.assert_close(ldm.predict_noise(noisy, timesteps, ldm.prompt_embeds(["a", "b"])), noise)


def test_prompt_embeds_are_the_text_encoders_and_computed_once(
    ldm: LatentDiffusion, tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_pipeline)
    tokenizer = pipeline.tokenizer
    prompts = ["a dog, ink", "", "a cat", "a dog, ink", "a very long prompt " * 9]
    with torch.no_grad():
        expected = [pipeline.encode_prompt(prompt, "cpu", 1, False)[0][0] for prompt in prompts]
    asked: list[str] = []

    def counting(texts: list[str], **options: object) -> object:
        if options["truncation"]:  # the other call counts how long they are
            asked.extend(texts)
        return tokenizer(texts, **options)

    counting.model_max_length = tokenizer.model_max_length
    monkeypatch.setattr(ldm, "tokenizer", counting)
    embeds = ldm.prompt_embeds(prompts)
    assert embeds.shape == (5, 12, 32)
    torch.testing.assert_close(embeds, torch.stack(expected), rtol=1e-4, atol=1e-5)
    assert (embeds[0] - embeds[2]).abs().max() > 0.01
    assert torch.equal(ldm.prompt_embeds(["a cat", "a house", "a dog, ink"])[[0, 2]], embeds[[2, 0]])
    assert sorted(asked) == sorted({*prompts, "a house"})


def test_frozen_but_differentiable_in_the_images(ldm: LatentDiffusion, images: torch.Tensor) -> None:
    modules = (ldm.vae, ldm.unet, ldm.text_encoder)
    assert not any(parameter.requires_grad for module in modules for parameter in module.parameters())
    assert not any(part.training for module in modules for part in module.modules())
    images.requires_grad_(True)
    latents = ldm.encode(images)
    ldm.predict_noise(latents, torch.full((3,), 500), ldm.prompt_embeds([""] * 3)).square().sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0
    assert all(parameter.grad is None for module in modules for parameter in module.parameters())


def test_float64_throughout(ldm: LatentDiffusion, images: torch.Tensor) -> None:
    double = LatentDiffusion(
        ldm.vae.double(), ldm.unet, ldm.text_encoder.double(), ldm.tokenizer, ldm.scheduler, dtype=torch.float64
    )
    latents = double.encode(images.double())
    predicted = double.predict_noise(latents, torch.full((3,), 500), double.prompt_embeds(["a cat"] * 3))
    decoded = double.decode(latents)
    assert (latents.dtype, predicted.dtype, decoded.dtype) == (torch.float64,) * 3
    with torch.no_grad():
        assert torch.equal(decoded, ldm.vae.decode(latents / 0.9).sample)


def test_fingerprint_tells_weights_apart(ldm: LatentDiffusion, tiny_pipeline: Path) -> None:
    before = ldm.fingerprint()
    assert LatentDiffusion.load(str(tiny_pipeline), precision="float32").fingerprint() == before
    for module in (ldm.unet, ldm.vae, ldm.text_encoder):
        weight = next(module.parameters())
        weight.copy_(weight.flip(0))  # the same values in another order
        assert ldm.fingerprint() != before
        before = ldm.fingerprint()


def test_a_fingerprint_reads_the_weights_once(ldm: LatentDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    before = ldm.fingerprint()

    def read_again(self: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the weights were read")

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "cpu", read_again)
        assert ldm.fingerprint() == before
        ldm.scaling_factor *= 2
        with pytest.raises(AssertionError, match="were read"):
            ldm.fingerprint()
    assert ldm.fingerprint() != before
