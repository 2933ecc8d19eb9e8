"""MixStyle (Zhou et al., ICLR 2021, arXiv 2104.02008): after early stages of the backbone, feature statistics mixed:

    MixStyle(x) = γ_mix·(x - μ(x))/σ(x) + β_mix,   γ_mix = λ·σ(x) + (1-λ)·σ(x̃),   β_mix = λ·μ(x) + (1-λ)·μ(x̃),

μ and σ by image and channel over space, without gradient; x̃ the batch in another order; λ ~ Beta(α, α) for each image.
Each stage mixes with probability p in a step, and never outside training.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from domainfusion.algorithms.base import Algorithm, Batch, Context
from domainfusion.algorithms.pairing import pair_across_domains
from domainfusion.errors import UsageError
from domainfusion.seeding import derive_numpy_rng

EPSILON = 1e-6  # added to the variance, as in the paper's code


class MixStyle(Algorithm):
    """Cross-entropy on raw images, their styles mixed inside the backbone."""

    divisible = False  # images are mixed with others of the batch inside the backbone

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._rng: np.random.Generator | None = None  # set while a loss is computed, and only then
        self._domains: list[np.ndarray] = []
        name, count = self.config.backbone, self.config.mixstyle.stages
        for module in find_stages(self.classifier.backbone, name, count, context.dataset.size):
            module.register_forward_hook(self._mix)

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The cross-entropy of the batch, by a backbone that mixes."""
        self._rng = derive_numpy_rng("mixstyle", self.config.seed, batch.step)
        self._domains = self.rows_by_domain(batch)
        try:
            logits = self.predict(batch.images)
        finally:
            self._rng = None
        return {"raw_loss": F.cross_entropy(logits, batch.labels)}

    def _mix(self, module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor | None:
        """What a stage hands on: its output mixed, or None (the output as it is)."""
        rng, config = self._rng, self.config.mixstyle
        if rng is None or rng.random() >= config.probability:
            return None
        count = len(output)
        partner = rng.permutation(count)
        if config.partner == "other_domain":
            for images, partners in pair_across_domains(self._domains, rng):
                partner[images] = partners
        share = torch.from_numpy(rng.beta(config.alpha, config.alpha, count)).to(output.device, torch.float32)
        return mix_statistics(output, torch.from_numpy(partner).to(output.device), share)


def mix_statistics(maps: torch.Tensor, partner: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Maps (B, C, H, W) with the statistics λ·own + (1-λ)·partner's, of partners (B,) and shares λ (B,) in [0, 1]."""
    x = maps.float()
    with torch.no_grad():
        mean = x.mean((2, 3), keepdim=True)  # (B, C, 1, 1)
        deviation = (x.var((2, 3), correction=0, keepdim=True) + EPSILON).sqrt()
        share = share.view(-1, 1, 1, 1)
        mixed_mean = share * mean + (1 - share) * mean[partner]
        mixed_deviation = share * deviation + (1 - share) * deviation[partner]
    return (mixed_deviation * (x - mean) / deviation + mixed_mean).to(maps.dtype)


def find_stages(backbone: nn.Module, name: str, count: int, size: int) -> list[nn.Module]:
    """The first `count` stages of a timm backbone: the modules of its `feature_info` at a quarter of the image or less.

    What lies before (a ResNet's stem, the first block of an EfficientNet) is not a stage: a ResNet's are `layer1`,
    `layer2`, ... The backbone is run once on an image of `size` pixels to see that they are called and yield maps.

    Raises `UsageError` where the backbone has no or too few such stages, or one that yields no (B, C, H, W) maps.
    """
    remedy = (
        "; mixstyle needs a convolutional backbone such as resnet18, regnety_002, efficientnet_lite0 or convnext_atto"
    )
    if name.startswith("torchvision:"):
        raise UsageError(f"--backbone {name}: mixstyle finds the stages of timm's models alone{remedy}")
    modules = dict(backbone.named_modules())
    listed = [entry for entry in (getattr(backbone, "feature_info", None) or []) if entry["reduction"] >= 4]
    found = [(entry["module"], entry["num_chs"]) for entry in listed if entry["module"] in modules][:count]
    if len(found) < count:
        raise UsageError(
            f"--mixstyle.stages {count}: the backbone {name} names {len(found)} stages in its feature_info{remedy}"
        )
    outputs: dict[str, object] = {}
    handles = [
        modules[module].register_forward_hook(lambda _m, _i, output, key=module: outputs.update({key: output}))
        for module, _ in found
    ]
    was_training = backbone.training
    try:
        with torch.no_grad():
            backbone.eval()(torch.zeros(1, 3, size, size))
    except (AssertionError, RuntimeError) as error:
        raise UsageError(f"the backbone {name} takes no images of --data.size {size}: {error}") from error
    finally:
        backbone.train(was_training)
        for handle in handles:
            handle.remove()
    for module, channels in found:
        output = outputs.get(module)
        if not isinstance(output, torch.Tensor) or output.ndim != 4 or output.shape[1] != channels:
            raise UsageError(f"stage {module} of the backbone {name} yields no (B, {channels}, H, W) maps{remedy}")
    return [modules[module] for module, _ in found]
