"""What the methods of the paper's Table 1 cost at its own scale, from counted operations: nothing is run here.

How many images each fine-tunes on, generates and trains on is the paper's for DomainNet with target clipart (538,446;
244,000, 4 million and 120,000). For another data set and target it follows from the facts about the benchmark:

- DSI fine-tunes on every source image once, and translates every test image towards each source domain;
- CDGA translates every training image towards each source domain, as often as the options say;
- DomainFusion makes N candidates of every training image in each of the generations of 120 epochs;
- all train on the training images (80 %) for 120 epochs, DomainFusion on a third as many synthetic ones besides.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from domainfusion.config import TrainConfig
from domainfusion.data.benchmarks import get_benchmark
from domainfusion.errors import UsageError, nearest
from domainfusion.experiments.costs import (
    PassCosts,
    Workload,
    count_flops,
    count_passes,
    curve_flops,
    generations,
    gpu_days,
    stable_diffusion_parts,
)  # fmt: skip

EPOCHS = 120
TRAINED = 0.8  # share of the source images that is trained on
SYNTHETIC = 1 / 3  # "we only sample one image from every three generated images"
BACKWARD = 3  # a training step's operations over those of its forward pass
PIXELS = 224  # of an image at the classifier
PAPER_SCALE = "DomainNet/clipart"


@dataclasses.dataclass(frozen=True)
class Method:
    """How a method's images are generated, and what the paper says of it (V100 days; None: nothing)."""

    key: str
    title: str
    steps: int | None  # denoising steps of a generated image; None: not told, those of the options are taken
    guided: bool
    size: int  # pixels at the LDM; 512 is Stable Diffusion's own, where the paper tells nothing
    fine_tuning: float
    generation: float
    training: float | None = None


METHODS = (
    Method("dsi", "DSI", 50, False, 512, 22.44, 7.94),
    Method("cdga", "CDGA", 50, True, 512, 0.0, 161.11),
    Method("domainfusion", "DomainFusion", None, True, 320, 0.0, 2.19, 0.4),
)
PAPER_IMAGES = {"dsi": (538_446, 244_000), "cdga": (0, 4_000_000), "domainfusion": (0, 120_000)}


@dataclasses.dataclass(frozen=True)
class Scale:
    """A benchmark and target, and how many images each method needs: {method: (fine-tuned on, generated)}."""

    name: str
    trained: int  # raw images that are trained on
    classes: int
    images: dict[str, tuple[int, int]]


def find_scale(name: str, config: TrainConfig) -> Scale:
    """The scale of `DATASET/TARGET`. Raises `UsageError` where that is no benchmark's, naming the nearest.

    >>> find_scale("PACS/sketch", TrainConfig()).images["dsi"]
    (6062, 11787)
    """
    dataset, _, target = name.partition("/")
    benchmark = get_benchmark(dataset)
    domain = benchmark.domain_of(target)
    if domain is None:
        near = nearest(target, benchmark.domains) or benchmark.domains[0]
        raise UsageError(
            f"--counted-for {name}: {target or 'no target'} is none of {benchmark.name}'s domains; write "
            f"{benchmark.name}/{near}, say"
        )
    tested = benchmark.counts[benchmark.domains.index(domain)]
    held, sources = sum(benchmark.counts) - tested, len(benchmark.domains) - 1
    trained = round(TRAINED * held)
    generate = config.generate.needed()
    made = generations(Workload(trained, benchmark.classes, EPOCHS), generate)
    images = {
        "dsi": (held, tested * sources), "cdga": (0, trained * sources * config.cdga.candidates),
        "domainfusion": (0, trained * generate.candidates * made),
    }  # fmt: skip
    whole = f"{benchmark.name}/{domain}"
    return Scale(whole, trained, benchmark.classes, PAPER_IMAGES if whole == PAPER_SCALE else images)


def resnet50_flops() -> float:
    """FLOPs of a forward pass of ResNet-50 for one image, with ImageNet's head."""
    import timm

    with torch.device("meta"):
        model = timm.create_model("resnet50").eval()
        return count_flops(model, torch.empty(1, 3, PIXELS, PIXELS))


def count_method(
    method: Method, images: tuple[int, int], passes: PassCosts, steps: int, candidates: int
) -> tuple[float, float]:
    """FLOPs of a method's fine-tuning (each image passed once, forward and back) and generation.

    Args:
        images: fine-tuned on, and generated.
        passes: of the LDM at the method's image size.
        steps: denoising steps of a generated image.
        candidates: images generated of one that is encoded.
    """
    tuning = images[0] * (BACKWARD * passes.unet + passes.encoder)
    denoising = steps * (2 if method.guided else 1) * passes.unet
    return tuning, images[1] * (passes.encoder / candidates + passes.decoder + denoising)


def count_costs(config: TrainConfig, gpu: str, name: str = PAPER_SCALE) -> dict[str, Any]:
    """GPU days of each method at Stable Diffusion v1-4's size with ResNet-50, and of latent distillation.

    {"scale", "gpu", "methods": {key: {"fine_tuned", "generated", "steps", "fine_tuning_days", "generation_days",
    "training_days"}}, "distillation": {"score_days": a slope of every raw image in every epoch, "curve_days": the table
    of curves, once for all runs}}.
    """
    scale, parts = find_scale(name, config), stable_diffusion_parts()
    passes = {size: count_passes(*parts, size) for size in {method.size for method in METHODS}}
    seen = scale.trained * EPOCHS
    step, found = BACKWARD * resnet50_flops(), {}
    for method in METHODS:
        own = method.key == "domainfusion"
        images, steps = scale.images[method.key], method.steps or config.generate.steps
        tuning, generation = count_method(
            method, images, passes[method.size], steps, config.generate.needed().candidates if own else 1
        )
        found[method.key] = {
            "fine_tuned": images[0], "generated": images[1], "steps": steps,
            "fine_tuning_days": gpu_days(tuning, gpu), "generation_days": gpu_days(generation, gpu),
            "training_days": gpu_days(seen * (1 + SYNTHETIC * own) * step, gpu),
        }  # fmt: skip
    at_ldm = passes[METHODS[-1].size]
    curves = curve_flops(at_ldm, Workload(scale.trained, scale.classes), config.distill)
    encoder = curves.pop("encoder")
    return {
        "scale": scale.name, "gpu": gpu, "methods": found,
        "distillation": {  # a slope takes z(p) on both sides, for the difference along p
            "score_days": gpu_days(seen * at_ldm.unet, gpu, single=seen * 2 * at_ldm.encoder),
            "curve_days": gpu_days(sum(curves.values()), gpu, single=encoder),
        },
    }  # fmt: skip


def paper_days(method: Method, scale: str) -> dict[str, float | None]:
    """What the paper measured on its GPU; nothing at another scale than its own."""
    told = {"fine_tuning": method.fine_tuning, "generation": method.generation, "training": method.training}
    return told if scale == PAPER_SCALE else dict.fromkeys(told)


def paper_images(method: Method, scale: str) -> dict[str, int | None]:
    """How many images the paper says it takes, fine-tuned on and generated; nothing at another scale than its own."""
    fine_tuned, generated = PAPER_IMAGES[method.key] if scale == PAPER_SCALE else (None, None)
    return {"fine_tuned": fine_tuned, "generated": generated}
