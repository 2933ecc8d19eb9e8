"""What DomainFusion costs on a data set and an LDM of any size, from counted operations: no weights, no images.

Floating-point operations of one pass of each part are counted by running the real modules on PyTorch's `meta` device,
where tensors have shapes and no values (a multiplication and an addition are two operations). How many passes there are
follows from the options. Hours on a GPU follow from its published peak rate and the share of it that is reached, which
is an assumption: 0.35 unless told otherwise.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from domainfusion.config import DistillConfig, GenerateConfig
from domainfusion.distillation.curve_rounds import confidences
from domainfusion.errors import UsageError, unknown_name
from domainfusion.fusion.schedule import generations_due

# Peak rates of dense matrix products in float16 or bfloat16, FLOP/s, from the makers' data sheets.
GPUS = {"V100": 125e12, "A100": 312e12, "L4": 121e12, "H100": 989e12}
# Of float32 without the tensor cores' shorter one: what slopes encode in, whose differences along p need it.
SINGLE = {"V100": 15.7e12, "A100": 19.5e12, "L4": 30.3e12, "H100": 67e12}
UTILISATION = 0.35
SECONDS_A_DAY = 86_400
STEPS_AN_EPOCH = 100  # any number that tells tenths of an epoch apart


@dataclasses.dataclass(frozen=True)
class PassCosts:
    """FLOPs of one pass of each part of an LDM for one image."""

    unet: float
    encoder: float
    decoder: float
    text_encoder: float


@dataclasses.dataclass(frozen=True)
class Workload:
    """A data set that a run is to be made on."""

    images: int
    classes: int
    epochs: int = 120

    def __post_init__(self) -> None:
        if min(self.images, self.classes, self.epochs) < 1:
            raise UsageError(f"a workload needs images, classes and epochs, not {self}")


DOMAINNET = Workload(images=586_575, classes=345)


def count_flops(module: nn.Module, *inputs: torch.Tensor, call: str = "forward") -> float:
    """FLOPs of `module` (or its method `call`) on inputs, as PyTorch's counter counts them."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        getattr(module, call)(*inputs)
    return float(counter.get_total_flops())


def count_passes(vae: Any, unet: Any, text_encoder: Any, image_size: int) -> PassCosts:
    """The FLOPs of one image's passes at `image_size` pixels, on whatever device the modules are (meta: for free)."""
    device = next(unet.parameters()).device
    side = image_size // 2 ** (len(vae.config.block_out_channels) - 1)
    length = text_encoder.config.max_position_embeddings
    latents = torch.empty(1, unet.config.in_channels, side, side, device=device)
    prompt = torch.empty(1, length, unet.config.cross_attention_dim, device=device)
    return PassCosts(
        unet=count_flops(unet, latents, torch.zeros(1, dtype=torch.long, device=device), prompt),
        encoder=count_flops(vae, torch.empty(1, 3, image_size, image_size, device=device), call="encode"),
        decoder=count_flops(vae, torch.empty(1, vae.config.latent_channels, side, side, device=device), call="decode"),
        text_encoder=count_flops(text_encoder, torch.zeros(1, length, dtype=torch.long, device=device)),
    )


def stable_diffusion_parts() -> tuple[Any, Any, Any]:
    """(vae, unet, text_encoder) of Stable Diffusion v1-4's architecture, on the meta device."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, sample_size=512,
        )  # fmt: skip
        unet = UNet2DConditionModel(cross_attention_dim=768, sample_size=64)
        described = CLIPTextConfig(
            vocab_size=49_408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
            max_position_embeddings=77,
        )  # fmt: skip
        # Attention written out as products: the fused kernels are not counted on every device.
        text_encoder = CLIPTextModel._from_config(described, attn_implementation="eager")
    return vae, unet, text_encoder


def generation_flops(passes: PassCosts, work: Workload, config: GenerateConfig, styles: int = 1) -> dict[str, float]:
    """FLOPs by part of all generations of a run: an image encoded once for its N candidates, each decoded once."""
    config, guided = config.needed(), config.guidance > 1
    candidates = work.images * config.candidates * generations(work, config)
    return {
        "encoder": passes.encoder * work.images * generations(work, config),
        "unet": passes.unet * candidates * config.steps * (2 if guided else 1),
        "decoder": passes.decoder * candidates,
        "text_encoder": passes.text_encoder * (work.classes * styles + guided),
    }


def generations(work: Workload, config: GenerateConfig) -> int:
    """Generations that a run of these epochs makes (`fusion.schedule`; they do not depend on the steps of an epoch)."""
    steps = work.epochs * STEPS_AN_EPOCH
    return generations_due(steps - 1, steps, STEPS_AN_EPOCH, config)


def curve_flops(passes: PassCosts, work: Workload, config: DistillConfig) -> dict[str, float]:
    """FLOPs by part of the table of curves, every image with the most rounds it may get; for `score` slopes.

    The encoder's are in single precision.
    """
    draws = config.curve_samples * config.curve_rounds
    knots, points = confidences(config.curve_detail)
    each = 1 if config.residual == "plain" else 2
    return {
        "encoder": passes.encoder * work.images * 2 * len(points),  # z(p) on both sides, for the difference along p
        "unet": passes.unet * work.images * len(knots) * draws * each,
        "text_encoder": passes.text_encoder * (work.classes + (each - 1)),
    }


def gpu_days(
    flops: float, gpu: str, count: int = 1, utilisation: float = UTILISATION, *, single: float = 0.0
) -> float:  # fmt: skip
    """Days of wall time on `count` GPUs that share the images evenly (nothing is exchanged between them).

    Args:
        flops: in half precision.
        single: FLOPs in single precision, besides.

    Raises `UsageError` for a GPU whose rate is not known here, and a share that is none.
    """
    if gpu not in GPUS:
        raise unknown_name("GPU", gpu, GPUS)
    if not 0 < utilisation <= 1 or count < 1:
        raise UsageError(f"{count} GPUs at {utilisation:g} of their peak rate: give at least 1, and a share up to 1")
    return (flops / GPUS[gpu] + single / SINGLE[gpu]) / (utilisation * count) / SECONDS_A_DAY


def estimate(
    work: Workload, *, generate: GenerateConfig | None = None, distill: DistillConfig | None = None,
    image_size: int = 320, gpu: str = "A100", counts: tuple[int, ...] = (1, 64), utilisation: float = UTILISATION,
    passes: PassCosts | None = None, styles: int = 1,
) -> dict[str, Any]:  # fmt: skip
    """FLOPs by part and days on GPUs of a run's generations and curves, at Stable Diffusion v1-4's size by default.

    The training of the classifier is not part of it. Whatever `passes` gives replaces Stable Diffusion's counts.
    """
    generate, distill = generate or GenerateConfig(), distill or DistillConfig()
    passes = passes or count_passes(*stable_diffusion_parts(), image_size)
    parts = {
        "generation": generation_flops(passes, work, generate, styles),
        "curves": curve_flops(passes, work, distill),
    }
    single = {"generation": 0.0, "curves": parts["curves"]["encoder"]}
    return {
        "images": work.images, "classes": work.classes, "epochs": work.epochs, "image_size": image_size,
        "generations": generations(work, generate), "candidates": generate.needed().candidates, "steps": generate.steps,
        "pass_flops": dataclasses.asdict(passes), "flops": parts, "gpu": gpu, "utilisation": utilisation,
        "days": {
            str(count): {
                name: gpu_days(sum(part.values()) - single[name], gpu, count, utilisation, single=single[name])
                for name, part in parts.items()
            }
            for count in counts
        },
    }  # fmt: skip
