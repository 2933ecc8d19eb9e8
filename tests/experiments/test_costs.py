"""Counted operations against a count by hand, layer by layer, and against published sizes; passes and days by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import nn
from transformers import CLIPTextModel

from domainfusion.config import DistillConfig, GenerateConfig
from domainfusion.distillation.curve_rounds import GRID, KNOTS, confidences
from domainfusion.errors import UsageError
from domainfusion.experiments.costs import (
    GPUS,
    PassCosts,
    Workload,
    count_flops,
    count_passes,
    estimate,
    generations,
    gpu_days,
    stable_diffusion_parts,
)  # fmt: skip


def by_hand(module: nn.Module, work: Any) -> float:
    """FLOPs while `work` runs `module` on real tensors: convolutions, linear layers and attention products."""
    total = 0.0

    def convolution(layer: nn.Conv2d, inputs: Any, output: torch.Tensor) -> None:
        nonlocal total
        total += 2 * output.numel() * layer.in_channels // layer.groups * layer.kernel_size[0] * layer.kernel_size[1]

    def linear(layer: nn.Linear, inputs: Any, output: torch.Tensor) -> None:
        nonlocal total
        total += 2 * output.numel() * layer.in_features

    def attention(layer: Attention, inputs: Any, options: dict[str, Any], output: torch.Tensor) -> None:
        nonlocal total
        hidden = inputs[0] if inputs else options["hidden_states"]
        length = hidden.shape[-1] * hidden.shape[-2] if hidden.ndim == 4 else hidden.shape[1]
        context = options.get("encoder_hidden_states")
        total += 4 * length * (length if context is None else context.shape[1]) * layer.inner_dim  # QK^T, then times V

    handles = []
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            handles.append(layer.register_forward_hook(convolution))
        elif isinstance(layer, nn.Linear):
            handles.append(layer.register_forward_hook(linear))
        elif isinstance(layer, Attention):
            handles.append(layer.register_forward_hook(attention, with_kwargs=True))
    with torch.no_grad():
        work()
    for handle in handles:
        handle.remove()
    return total


def test_layers_by_hand() -> None:
    assert count_flops(nn.Conv2d(3, 8, 3, padding=1), torch.zeros(1, 3, 10, 10)) == 2 * 3 * 9 * 8 * 100
    assert count_flops(nn.Linear(5, 7), torch.zeros(11, 5)) == 2 * 5 * 7 * 11


def test_a_tiny_ldm_is_counted_as_by_hand(tiny_pipeline: Path) -> None:
    vae = AutoencoderKL.from_pretrained(tiny_pipeline, subfolder="vae")
    unet = UNet2DConditionModel.from_pretrained(tiny_pipeline, subfolder="unet")
    text = CLIPTextModel.from_pretrained(tiny_pipeline, subfolder="text_encoder")
    with torch.device("meta"):
        empty = (
            AutoencoderKL.from_config(vae.config), UNet2DConditionModel.from_config(unet.config),
            CLIPTextModel._from_config(text.config, attn_implementation="eager"),
        )  # fmt: skip
    found = count_passes(*empty, image_size=32)
    latents, tokens = torch.zeros(1, 4, 16, 16), torch.zeros(1, 12, dtype=torch.long)
    assert found.unet == by_hand(unet, lambda: unet(latents, torch.zeros(1), torch.zeros(1, 12, 32)))
    assert found.encoder == by_hand(vae, lambda: vae.encode(torch.zeros(1, 3, 32, 32)))
    assert found.decoder == by_hand(vae, lambda: vae.decode(latents))
    products = 2 * 4 * 12 * 12 * 32  # layers x (QK^T and times V) x tokens x tokens x width
    assert found.text_encoder == by_hand(text, lambda: text(tokens)) + products


def test_stable_diffusion_has_its_published_size() -> None:
    vae, unet, text = stable_diffusion_parts()
    sizes = [sum(parameter.numel() for parameter in part.parameters()) for part in (vae, unet, text)]
    assert sizes == [83_653_863, 859_520_964, 123_060_480]
    assert all(parameter.is_meta for part in (vae, unet, text) for parameter in part.parameters())


PASSES = PassCosts(unet=1000.0, encoder=100.0, decoder=10.0, text_encoder=1.0)


def test_passes_and_days_by_hand() -> None:
    work = Workload(images=7, classes=5, epochs=120)
    generate = GenerateConfig(candidates=3, steps=4, guidance=3.0, interval=5)
    assert generations(work, generate) == 21  # at the beginning of epochs 5, 10, ..., 105: none in the last tenth
    distill = DistillConfig(curve_samples=8, curve_rounds=4)
    found = estimate(work, generate=generate, distill=distill, passes=PASSES, gpu="V100", utilisation=0.5)
    assert found["flops"]["generation"] == {
        "encoder": 100 * 7 * 21, "unet": 1000 * 7 * 3 * 21 * 4 * 2, "decoder": 10 * 7 * 3 * 21, "text_encoder": 5 + 1,
    }  # fmt: skip
    assert found["flops"]["curves"] == {
        "encoder": 100 * 7 * 2 * len(GRID), "unet": 1000 * 7 * len(KNOTS) * 32, "text_encoder": 5
    }  # fmt: skip
    finer = estimate(work, distill=dataclasses.replace(distill, curve_detail=2), passes=PASSES)["flops"]["curves"]
    assert finer["unet"] == found["flops"]["curves"]["unet"] * (2 * len(KNOTS) - 1) / len(KNOTS)
    assert finer["encoder"] == 100 * 7 * 2 * len(confidences(2)[1])
    total = sum(found["flops"]["generation"].values())
    assert found["days"]["1"]["generation"] == pytest.approx(total / (125e12 * 0.5) / 86_400)
    encoder = found["flops"]["curves"].pop("encoder")  # in single precision
    half = sum(found["flops"]["curves"].values())
    days = (half / 125e12 + encoder / 15.7e12) / 0.5 / 86_400
    assert found["days"]["1"]["curves"] == pytest.approx(days)
    assert found["days"]["64"]["curves"] == pytest.approx(found["days"]["1"]["curves"] / 64)


def test_without_guidance_there_is_one_pass_a_step() -> None:
    work, distill = Workload(images=2, classes=2), DistillConfig(residual="guided")
    guided, free = (
        estimate(work, generate=GenerateConfig(guidance=g), distill=distill, passes=PASSES) for g in (3.0, 1.0)
    )
    assert guided["flops"]["generation"]["unet"] == 2 * free["flops"]["generation"]["unet"]
    plain = estimate(work, passes=PASSES)
    assert guided["flops"]["curves"]["unet"] == 2 * plain["flops"]["curves"]["unet"]


def test_what_has_no_rate_is_refused() -> None:
    assert gpu_days(GPUS["H100"] * 0.35 * 86_400, "H100") == pytest.approx(1)
    with pytest.raises(UsageError, match="unknown GPU 'H10O'; did you mean 'H100'"):
        gpu_days(1.0, "H10O")
    with pytest.raises(UsageError, match="a share up to 1"):
        gpu_days(1.0, "A100", utilisation=1.5)
    with pytest.raises(UsageError, match="a workload needs images"):
        Workload(images=0, classes=3)
