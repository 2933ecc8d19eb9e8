# %% [markdown]
# # Make candidates and look at them
#
# Before spending time on synthetic images, see what a diffusion model makes of yours: image-to-image at rising
# strengths, under a prompt that names the class. What you do not recognise, the classifier will not learn from.

# %%
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import domainfusion

DATA = os.environ.get("DATA", "pictograms")
LDM = os.environ.get("LDM", "embedded")  # or a diffusers folder, or a hub id
COUNT = int(os.environ.get("COUNT", "6"))
OUTPUT = Path(os.environ.get("OUTPUT", "runs/examples"))
STRENGTHS = (0.3, 0.5, 0.7, 0.9)  # shares of the noise schedule that an image is taken back
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

# %%
ldm = domainfusion.LatentDiffusion.load(LDM, device=device)
dataset = domainfusion.load_dataset(DATA, domainfusion.DataConfig(size=ldm.image_size))
rows = np.random.default_rng(0).choice(len(dataset), COUNT, replace=False)
images = torch.from_numpy(dataset.images[rows]).permute(0, 3, 1, 2) / 127.5 - 1  # (B, 3, S, S) in [-1, 1]
words = [dataset.words()[dataset.labels[row]] for row in rows]

# %% [markdown]
# One prompt for each candidate. A model that was captioned with styles tells them (`ldm.styles`); naming one moves the
# style further.

# %%
rng = np.random.default_rng(1)
style = [f", {rng.choice(ldm.styles)}" if ldm.styles else "" for _ in range(COUNT * len(STRENGTHS))]
prompts = [f"{words[i // len(STRENGTHS)]}{style[i]}" for i in range(COUNT * len(STRENGTHS))]
candidates = domainfusion.image_to_image(
    ldm, images, prompts, torch.tensor(STRENGTHS).repeat(COUNT, 1), candidates=len(STRENGTHS), steps=4,
    guidance_scale=3.0, generator=torch.Generator().manual_seed(0),
)  # fmt: skip
print(tuple(candidates.shape), "candidates from", float(candidates.min()), "to", float(candidates.max()))

# %% [markdown]
# A sheet: each row an image and its candidates, from the lowest strength to the highest.

# %%
sheet = torch.cat([images[:, None], candidates], dim=1)  # (B, 1 + N, 3, S, S)
pixels = ((sheet + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 3, 1, 4, 2)
side = sheet.shape[-1]
picture = Image.fromarray(pixels.reshape(COUNT * side, (1 + len(STRENGTHS)) * side, 3).numpy())
OUTPUT.mkdir(parents=True, exist_ok=True)
picture.save(OUTPUT / "candidates.png")
print(OUTPUT / "candidates.png")
for row, word in zip(rows, words, strict=True):
    print(f"  {dataset.domains[dataset.domain_of[row]]}: {word}")
