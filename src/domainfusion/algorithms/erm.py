"""Empirical risk minimization: mean cross-entropy over the images of all source domains (Vapnik 1998)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from domainfusion.algorithms.base import Algorithm, Batch


class ERM(Algorithm):
    """min_θ mean CE(logits(x), y) over the raw images."""

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The cross-entropy of the batch."""
        return {"raw_loss": F.cross_entropy(self.predict(batch.images), batch.labels)}
