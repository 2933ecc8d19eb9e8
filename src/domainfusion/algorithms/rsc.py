"""Representation self-challenging (Huang et al., ECCV 2020, arXiv 2007.02454), on the pooled features as in DomainBed:

1. g = ∂(logit of the true class)/∂f for features f (paper, equation 1);
2. the share `feature_drop` of an image's features with the largest g is muted (equation 2);
3. only in the share `batch_drop` of the batch whose confidence in the true class falls most by it;
4. loss = CE of the classifier on the muted features (equations 3 and 4).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from domainfusion.algorithms.base import Algorithm, Batch


class RSC(Algorithm):
    """Cross-entropy on features of which the most predictive are muted."""

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The cross-entropy of the batch after muting; one pass of the backbone, three of the head."""
        config = self.config.rsc
        features = self.classifier.features(batch.images)
        with torch.autocast(features.device.type, enabled=False):
            kept = keep_mask(
                features.detach().float(), batch.labels, self.classifier.head, config.feature_drop, config.batch_drop
            )
        return {"rsc_loss": F.cross_entropy(self.classifier.logits_of(features * kept), batch.labels)}


def keep_mask(
    features: torch.Tensor, labels: torch.Tensor, head: nn.Module, feature_drop: float, batch_drop: float
) -> torch.Tensor:
    """(B, D) bool: which of features (B, D) are kept, by the gradients and confidences of `head`, without dropout.

    A share is taken by the percentile of numpy (linear interpolation); what lies at or above it is muted.

    Args:
        feature_drop: share of features muted in an image, in (0, 1).
        batch_drop: share of images in which features are muted, in (0, 1).
    """
    with torch.enable_grad():
        probe = features.detach().requires_grad_()
        logits = head(probe)  # (B, classes)
        of_label = logits.gather(1, labels.view(-1, 1)).sum()
        (gradient,) = torch.autograd.grad(of_label, probe)  # (B, D)
    with torch.no_grad():
        kept = gradient < gradient.quantile(1 - feature_drop, dim=1, keepdim=True)
        before = logits.softmax(1).gather(1, labels.view(-1, 1)).flatten()  # (B,)
        after = head(features * kept).softmax(1).gather(1, labels.view(-1, 1)).flatten()
        fall = before - after
        spared = fall < fall.quantile(1 - batch_drop)
        return kept | spared.view(-1, 1)
