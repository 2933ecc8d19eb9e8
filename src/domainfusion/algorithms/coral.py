"""Deep CORAL (Sun and Saenko 2016, arXiv 1607.01719), in DomainBed's form for several source domains:

    loss = CE + γ · mean over pairs of domains of [ ‖μ_i - μ_j‖²/d + ‖C_i - C_j‖²_F/d² ],

μ and C the mean and the covariance of a domain's d-dimensional features in the batch. The paper has two domains, the
covariance term alone, and a factor 1/4.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F

from domainfusion.algorithms.base import Algorithm, Batch, Context
from domainfusion.errors import UsageError


class CORAL(Algorithm):
    """Cross-entropy, and the mean distance of two domains' feature statistics; of one domain 0, as in DomainBed."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        # A run that holds out a second domain, for leave-one-domain-out selection, may be left with one.
        if len(context.split.sources) < 2 and self.config.second_target is None:
            raise UsageError("--algorithm coral compares source domains and needs two at least; use erm")
        count = context.processes.count  # each measures the covariances of its own share of every domain's images
        if self.config.batch_size // count < 2:
            whose = f" for each of {count} processes: --batch-size {2 * count}" if count > 1 else ""
            raise UsageError(
                f"--batch-size {self.config.batch_size}: --algorithm coral measures covariances and needs 2 images of "
                f"every domain at least{whose or '; give --batch-size 2'}"
            )

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Cross-entropy and the weighted CORAL penalty of the batch."""
        features = self.classifier.features(batch.images)
        domains = [features[torch.from_numpy(rows).to(features.device)] for rows in self.rows_by_domain(batch)]
        # Covariances in half precision would be mostly rounding: keep the trainer's autocast out of them.
        with torch.autocast(features.device.type, enabled=False):
            pairs = [coral_distance(a.float(), b.float()) for a, b in itertools.combinations(domains, 2)]
        return {
            "raw_loss": F.cross_entropy(self.classifier.logits_of(features), batch.labels),
            "coral_loss": self.config.coral.weight * (torch.stack(pairs).mean() if pairs else features.new_zeros(())),
        }


def coral_distance(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of the means and of the covariances of features (n, d) and (m, d), n and m at least 2."""
    mean_x, mean_y = x.mean(0), y.mean(0)
    covariance_x = (x - mean_x).T @ (x - mean_x) / (len(x) - 1)
    covariance_y = (y - mean_y).T @ (y - mean_y) / (len(y) - 1)
    return (mean_x - mean_y).square().mean() + (covariance_x - covariance_y).square().mean()
