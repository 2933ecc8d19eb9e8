# %% [markdown]
# # Latent distillation in a training loop of your own
#
# The classifier enters latent distillation only by its confidence p in the true class. So it can be added to any loop:
# the frozen diffusion model gives the slope dL/dp of its noise-prediction loss, a constant, and `mean(slope · p)` has
# the gradient that is wanted. No gradient passes through the diffusion model.

# %%
import os

import numpy as np
import timm
import torch
import torch.nn.functional as F

import domainfusion

DATA = os.environ.get("DATA", "pictograms")
TARGET = os.environ.get("TARGET", "pixel")
STEPS = int(os.environ.get("STEPS", "200"))
BACKBONE = os.environ.get("BACKBONE", "resnet10t")
LDM = os.environ.get("LDM", "embedded")  # or a diffusers folder, or a hub id
BATCH, DISTILLED, WEIGHT = 48, 8, 0.5
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

# %%
options = domainfusion.DataConfig(size=64)
dataset = domainfusion.load_dataset(DATA, options)
split = domainfusion.build_split(dataset, options, TARGET, trial=0)
rows = np.concatenate(list(split.train.values()))
words = dataset.words()  # the classes as prompts name them

ldm = domainfusion.LatentDiffusion.load(LDM, device=device)
settings = domainfusion.DistillConfig(residual="contrast", samples=1)
estimator = domainfusion.SlopeEstimator(ldm, settings)


def pictures(which: np.ndarray) -> torch.Tensor:
    """(B, 3, S, S) in [0, 1]."""
    return torch.from_numpy(dataset.images[which]).permute(0, 3, 1, 2).to(device) / 255


# %%
model = timm.create_model(BACKBONE, num_classes=len(dataset.classes)).to(device)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
for step in range(STEPS):
    chosen = rng.choice(rows, BATCH)
    images, labels = pictures(chosen), torch.from_numpy(dataset.labels[chosen]).to(device)
    logits = model(images)
    p = logits.softmax(-1).gather(1, labels[:, None]).flatten()  # (B,) confidence in the true class

    few = images[:DISTILLED] * 2 - 1  # the LDM's pixels lie in [-1, 1]
    few = F.interpolate(few, size=ldm.image_size, mode="bilinear", antialias=True)
    prompts = [words[label] for label in labels[:DISTILLED]]
    draws = domainfusion.draw(ldm, len(few), ldm.image_size, settings, generator)  # timesteps and noise
    slopes = estimator.slopes(few, prompts, p[:DISTILLED].detach().clamp_min(0.02), draws)

    loss = F.cross_entropy(logits, labels) + WEIGHT * domainfusion.distillation_loss(slopes, p[:DISTILLED])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 0 or step == STEPS - 1:
        print(f"step {step:>4}  loss {loss.item():.3f}  confidence {p.mean().item():.2f}  slope {slopes.mean():+.4f}")

# %%
model.eval()
with torch.no_grad():
    guesses = torch.cat([model(pictures(part)).argmax(-1).cpu() for part in np.array_split(split.test, 8)])
print(f"{TARGET}: {(guesses.numpy() == dataset.labels[split.test]).mean():.1%} of {len(split.test)} images")
