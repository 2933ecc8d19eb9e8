# %% [markdown]
# # Train on a folder and predict
#
# Trains a classifier without one of the domains, says how well it does there, and labels new images.
# `DATA` is a folder `DOMAIN/CLASS/IMAGE` of your own, or the embedded benchmark, whose domains are drawing styles.

# %%
import os
from pathlib import Path

from PIL import Image

import domainfusion

DATA = os.environ.get("DATA", "pictograms")
TARGET = os.environ.get("TARGET", "pixel")  # the domain that the classifier does not see
STEPS = int(os.environ.get("STEPS", "400"))
BACKBONE = os.environ.get("BACKBONE", "resnet10t")
OUTPUT = Path(os.environ.get("OUTPUT", "runs/examples"))

# %% [markdown]
# Options have the names that `domainfusion train --help` lists. The same call again resumes, or just reads the result.
# `algorithm="domainfusion"` takes the diffusion model's help; it takes longer.

# %%
run = domainfusion.train(
    DATA, target=TARGET, algorithm="erm", steps=STEPS, backbone=BACKBONE, output=OUTPUT / "first"
)  # fmt: skip
print(run)
for name, share in run.result["class_accuracy"].items():
    print(f"  {name:<12} {'no image' if share is None else f'{share:.0%}'}")

# %% [markdown]
# What the target's images are taken for. Here they come from the data set; a folder of new ones does as well.

# %%
dataset = domainfusion.load_dataset(DATA, domainfusion.DataConfig())
new = OUTPUT / "new"
new.mkdir(parents=True, exist_ok=True)
for row in dataset.rows(dataset.index_of(TARGET))[::40]:
    Image.fromarray(dataset.images[row]).save(new / f"{dataset.classes[dataset.labels[row]]}-{row}.png")

model = run.load()
for found in domainfusion.predict_images(model, new, top_k=2):
    guesses = ", ".join(f"{label} {confidence:.0%}" for label, confidence in found.best)
    print(f"{Path(found.file).name:<24} {guesses or found.error}")

# %% [markdown]
# Confidences are calibrated on validation images of the domains that were trained on: on a new domain they are still
# too high. The report shows that, the confusions and the learning curves, in one file.

# %%
print(domainfusion.write_report(run, OUTPUT / "report.html"))
