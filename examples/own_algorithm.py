# %% [markdown]
# # An algorithm of your own
#
# A method is a class that gives the terms of its loss; batches, augmentation, optimizer, splits, checkpoints and model
# selection are the same as for all others, so that what differs between two rows of the table is the method.
#
# Here V-REx (Krueger et al., *Out-of-Distribution Generalization via Risk Extrapolation*, ICML 2021): the mean of the
# domains' risks, and β times their variance.

# %%
import os
from pathlib import Path

import torch
import torch.nn.functional as F

import domainfusion

DATA = os.environ.get("DATA", "pictograms")
TARGETS = os.environ.get("TARGETS", "pixel").split()
STEPS = int(os.environ.get("STEPS", "400"))
TRIALS = int(os.environ.get("TRIALS", "1"))
BACKBONE = os.environ.get("BACKBONE", "resnet10t")
OUTPUT = Path(os.environ.get("OUTPUT", "runs/examples"))


# %%
@domainfusion.register_algorithm("vrex", source="Krueger et al., ICML 2021")
class VREx(domainfusion.Algorithm):
    """The mean of the domains' risks, and beta times their variance."""

    beta = 10.0
    anneal = 0.25  # share of the run before the penalty has its weight

    def losses(self, batch: domainfusion.Batch) -> dict[str, torch.Tensor]:
        """Both terms on a batch."""
        each = F.cross_entropy(self.predict(batch.images), batch.labels, reduction="none")  # (B,)
        risks = torch.stack([each[rows].mean() for rows in self.rows_by_domain(batch)])  # one for each source domain
        beta = self.beta if batch.step >= self.anneal * self.config.steps else 1.0
        return {"risk_loss": risks.mean(), "variance_loss": beta * risks.var(unbiased=False)}


# %% [markdown]
# The name is now as good as a built-in one. From the command line, with this file's folder on `PYTHONPATH`:
# `domainfusion train DATA --algorithm own_algorithm:VREx`; a package of yours can name it by an entry point of the
# group `domainfusion.algorithms`.

# %%
found = domainfusion.benchmark(
    DATA, algorithms=["erm", "vrex"], targets=TARGETS, trials=TRIALS, steps=STEPS, backbone=BACKBONE,
    output=OUTPUT / "vrex",
)  # fmt: skip
print(found)
