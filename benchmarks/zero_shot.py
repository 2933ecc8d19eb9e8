"""A row about zero-shot classifiers: theirs is the same passes in a loop over images, classes and draws."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.candidates import pictures
from benchmarks.timing import compare, device, row
from domainfusion.algorithms.diffusion_classifier import DiffusionClassifier
from domainfusion.algorithms.diffusion_net import DiffusionNet
from domainfusion.algorithms.zero_shot import Scores, ZeroShot
from domainfusion.config import DataConfig, ZeroShotConfig
from domainfusion.data.domains import load_dataset
from domainfusion.diffusion.ldm import LatentDiffusion

# Fewer draws than the defaults, so that the loop comes to an end; the ratio hardly depends on them.
SETTINGS = ZeroShotConfig(samples=(4, 16), keep=(4, 1), min_scores=8, max_scores=24)
IMAGES, FEW = 8, 1  # images of a call of ours, and those that the loop is timed on


@torch.no_grad()
def loop(method: ZeroShot, images: torch.Tensor, scores: list[Scores]) -> list[int]:
    """Class by class and draw by draw, one pass of the U-Net at a time; as many draws of each class as ours tried.

    The image is encoded once, each prompt was embedded before: what is left to batching and sharing is measured alone.
    """
    predictions = []
    device = method.ldm.device
    for image, found in zip(images, scores, strict=True):
        latents = method.ldm.encode(image[None])
        means = []
        for label, count in enumerate(found.draws.tolist()):
            total = 0.0
            for number in range(count):
                moment, noise = method.draw(0, number, latents.shape[1:])
                timesteps = torch.tensor([int(moment * method.ldm.num_train_timesteps)], device=device)
                noise = noise.to(device)
                noisy = method.ldm.add_noise(latents, noise[None], timesteps)
                predicted = method.ldm.predict_noise(noisy, timesteps, method.embeds[label : label + 1])
                weight = method.weights(torch.tensor([moment], device=device), timesteps)
                total += float(weight * (predicted - noise).square().sum())
            means.append(total / count)
        predictions.append(min(range(len(means)), key=means.__getitem__))
    return predictions


def zero_shot() -> list[dict[str, Any]]:
    """Images per second of both classifiers, embedded LDM, on the classes of Pictograms."""
    ldm = LatentDiffusion.load("embedded", device=device())
    images, _ = pictures(IMAGES)
    words = load_dataset("pictograms", DataConfig()).words()
    rows = []
    for kind in (DiffusionClassifier, DiffusionNet):
        method = kind(ldm, words, SETTINGS)
        scores = method.classify(images)
        few = scores[:FEW]
        found = compare(
            lambda method=method: method.classify(images),
            lambda method=method, few=few: loop(method, images[:FEW], few), repeats=3, warm_up=0,
        )  # fmt: skip
        # Images need different numbers of passes: both sides are counted by the passes that decide.
        ours = sum(int(item.draws.sum()) for item in scores) / found["ours"]
        theirs = sum(int(item.draws.sum()) for item in few) / found["theirs"]
        rows.append(
            row("zero_shot", f"passes per second of {kind.__name__}, those made in vain not counted",
                "a loop over classes and draws, the same passes one by one", ratio=ours / theirs, target=">= 3",
                reached=ours / theirs >= 3, ours=ours, theirs=theirs, unit="passes/s")
        )  # fmt: skip
    return rows
