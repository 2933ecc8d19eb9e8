"""Group DRO (Sagawa et al., ICLR 2020, arXiv 1911.08731, Algorithm 1), the groups being the source domains:

    q_g ← q_g·exp(η·ℓ_g), normalized to Σ q_g = 1;   loss = Σ_g q_g·ℓ_g,

ℓ_g the mean cross-entropy of domain g in the batch, q uniform at first. The weights q are part of the algorithm's
state, so a resumed run goes on with them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from domainfusion.algorithms.base import Algorithm, Batch, Context


class GroupDRO(Algorithm):
    """Cross-entropy in which the domains that do worst weigh most."""

    domain_weights: torch.Tensor  # (D,) in the order of the source domains, sums to 1

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        count = len(context.split.sources)
        self.register_buffer("domain_weights", torch.full((count,), 1 / count))

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The weighted cross-entropy of the batch, the weights moved first."""
        each = F.cross_entropy(self.predict(batch.images), batch.labels, reduction="none")
        losses = torch.stack(
            [each[torch.from_numpy(rows).to(each.device)].mean() for rows in self.rows_by_domain(batch)]
        )
        whole = self.context.processes.mean_of(losses.detach())  # of the whole step: all processes have the same q
        self.domain_weights.copy_(move_weights(self.domain_weights, whole, self.config.groupdro.eta))
        return {"groupdro_loss": (self.domain_weights.clone() * losses).sum()}


def move_weights(weights: torch.Tensor, losses: torch.Tensor, eta: float) -> torch.Tensor:
    """q·exp(η·ℓ) / Σ q·exp(η·ℓ) of weights q (D,) and losses ℓ (D,), by a softmax so that no loss is too large."""
    return (weights.log() + eta * losses).softmax(0)
