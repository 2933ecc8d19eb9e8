"""Inter-domain mixup: images of different domains, and their labels, mixed (Zhang et al., ICLR 2018, arXiv 1710.09412;
across domains Wang et al., ICASSP 2020, arXiv 2009.05448, and DomainBed):

    x̃ = λ·x_i + (1-λ)·x_j,   loss = λ·CE(x̃, y_i) + (1-λ)·CE(x̃, y_j),   λ ~ Beta(α, α),

x_i and x_j of two domains that lie beside each other on a random circle of the source domains; one λ for each pair of
domains and step.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from domainfusion.algorithms.base import Algorithm, Batch
from domainfusion.algorithms.pairing import pair_across_domains
from domainfusion.seeding import derive_numpy_rng


class Mixup(Algorithm):
    """Cross-entropy on mixtures of images of two domains; the raw images themselves are not shown."""

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The mixed cross-entropy of the batch, in one forward pass of as many mixtures as there are images."""
        partner, share = self.draw(batch)
        logits = self.predict(mix_images(batch.images, partner, share))
        return {"mixup_loss": mixed_cross_entropy(logits, batch.labels, partner, share)}

    def draw(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Each image's partner in the batch, (B,) int64, and its own share λ, (B,): functions of (seed, step)."""
        rng = derive_numpy_rng("mixup", self.config.seed, batch.step)
        partner = torch.zeros(len(batch.rows), dtype=torch.long)
        share = torch.ones(len(batch.rows))
        for images, partners in pair_across_domains(self.rows_by_domain(batch), rng):
            partner[images] = torch.from_numpy(partners)
            share[images] = rng.beta(self.config.mixup.alpha, self.config.mixup.alpha)
        return partner.to(batch.images.device), share.to(batch.images.device)


def mix_images(images: torch.Tensor, partner: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """λ·x_i + (1-λ)·x_partner(i) of images (B, 3, H, W), partners (B,) and shares λ (B,) in [0, 1]."""
    share = share.view(-1, 1, 1, 1)
    return share * images + (1 - share) * images[partner]


def mixed_cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, partner: torch.Tensor, share: torch.Tensor
) -> torch.Tensor:
    """Mean of λ·CE(y_i) + (1-λ)·CE(y_partner(i)) over logits (B, classes) of mixed images."""
    own = F.cross_entropy(logits, labels, reduction="none")
    other = F.cross_entropy(logits, labels[partner], reduction="none")
    return (share * own + (1 - share) * other).mean()
