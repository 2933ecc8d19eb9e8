"""Heat maps of matched and mismatched labels with Diffusion Classifier's scores beside them (Fig. 5)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from domainfusion.data.transforms import to_uint8
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.picture_grid import Row, picture_grid, save_figure
from domainfusion.report.label_evidence import LabelHeat, LabelScores, label_heat, label_scores, likeness
from domainfusion.report.overlays import difference_picture, overlay


@dataclasses.dataclass(frozen=True)
class LabelPictures:
    """The heat of some labels on one image, the matched label first, and their scores."""

    image: np.ndarray  # (S, S, 3) uint8
    words: tuple[str, ...]
    heats: tuple[LabelHeat, ...]
    scores: LabelScores

    @property
    def span(self) -> tuple[float, float]:
        """Least and greatest heat of any label, in multiples of its mean: one scale for all."""
        values = torch.stack([heat.relative for heat in self.heats])
        return float(values.min()), float(values.max())

    def overlays(self) -> list[np.ndarray]:
        """Each label's heat on the image."""
        return [overlay(self.image, heat.relative, *self.span) for heat in self.heats]

    def particular(self) -> list[torch.Tensor]:
        """What each label's relative map (S, S) has that the mean of all labels' maps has not."""
        mean = torch.stack([heat.relative for heat in self.heats]).mean(0)
        return [heat.relative - mean for heat in self.heats]

    def reach(self) -> float:
        """The greatest size of `particular`: the end of its scale."""
        return max(float(part.abs().max()) for part in self.particular())

    def particular_pictures(self) -> list[np.ndarray]:
        """`particular` as pictures in two colours, all on one scale."""
        return [difference_picture(self.image, part, self.reach()) for part in self.particular()]

    def facts(self) -> list[dict[str, Any]]:
        """The figures of each label."""
        means, (differences, errors) = self.scores.means(), self.scores.differences(0)
        return [
            {
                "label": word, "prompt": heat.prompt, "attention_share": heat.share,
                "heat_likeness_to_first": likeness(self.heats[0], heat), "error": float(means[k]),
                "error_difference": float(differences[k]), "standard_error": float(errors[k]),
            }
            for k, (word, heat) in enumerate(zip(self.words, self.heats, strict=True))
        ]  # fmt: skip


def label_pictures(
    ldm: LatentDiffusion, image: torch.Tensor, words: Sequence[str], *, template: str = "{label}", draws: int = 32,
    seed: int = 0,
) -> LabelPictures:  # fmt: skip
    """The heat and the scores of labels in words (K), the matched one first, for an image (3, S, S) in [-1, 1]."""
    heats = label_heat(ldm, image.expand(len(words), -1, -1, -1), words, template=template, seed=seed)
    scores = label_scores(ldm, image, [heat.prompt for heat in heats], draws=draws, seed=seed)
    return LabelPictures(to_uint8(image), tuple(words), tuple(heats), scores)


def heat_figure(
    ldm: LatentDiffusion, images: torch.Tensor, labels: Sequence[Sequence[str]], path: Path, *,
    template: str = "{label}", draws: int = 32, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Write Fig. 5 for images (B, 3, S, S) in [-1, 1] with labels in words (B times K, the matched first) to `path`.

    Facts: for each image and label the share of attention, the likeness of the heat to the matched label's, the mean
    squared error of the predicted noise, its paired difference to the matched label's and its standard error.
    """
    found = [
        label_pictures(ldm, image, words, template=template, draws=draws, seed=seed)
        for image, words in zip(images, labels, strict=True)
    ]
    save_figure(draw_heat(found), path)
    means = [[entry["heat_likeness_to_first"] for entry in part.facts()[1:]] for part in found]
    return {
        "ldm": ldm.name, "draws": draws, "images": [part.facts() for part in found],
        "matched_first": sum(part.scores.best == 0 for part in found),
        "mean_likeness_of_mismatched": float(np.mean(np.concatenate(means))),
    }  # fmt: skip


def draw_heat(found: Sequence[LabelPictures]) -> Any:
    """The figure of one or more images: heat above, what is particular to a label and its score below."""
    rows, columns = [], max(len(part.words) for part in found)
    for part in found:
        difference, error = part.scores.differences(0)
        scores = ["" for _ in part.words]
        for k in range(1, len(part.words)):
            scores[k] = f"error {1000 * difference[k]:+z.2f} ± {1000 * error[k]:.2f}"
        scores[0] = "error 0 (matched)"
        names = [f"“{part.words[0]}”"]
        for word, heat in zip(part.words[1:], part.heats[1:], strict=True):
            names.append(f"“{word}”\nr = {likeness(part.heats[0], heat):.2f}")
        rows.append(Row("heat of\nthe label", [part.image, *part.overlays()], ["", *names], apart=True))
        rows.append(Row("particular\nto the label", [None, *part.particular_pictures()], ["", *scores]))
    return picture_grid(
        rows, heads=["image", "matched label", *["mismatched"] * (columns - 1)],
        title="Where the words of a label find attention (DAAM), and what Diffusion Classifier says of them",
        notes="Heat: attention to the label's words, as a multiple of its mean over the image; bright is much, one\n"
        "scale for each image; r: correlation with the matched label's heat.\n"
        "Particular: heat less the mean heat of all labels shown; orange is more than other labels, violet less.\n"
        "Error: 1000 × (error of the predicted noise under this label - under the matched one) ± paired standard\n"
        "error; above 0 the label fits worse than the matched one.",
        splits=[1],
    )  # fmt: skip
