"""What one image becomes over the generations, with its LD noise: Fig. 3 for an image outside training."""

from __future__ import annotations

import dataclasses
import textwrap
from typing import Any

from domainfusion.picture_grid import Row, picture_grid
from domainfusion.report.evolution import parts_of
from domainfusion.report.evolution_figure import EvolutionPictures
from domainfusion.report.overlays import enlarge, noise_picture
from domainfusion.report.pictures import png_uri

TILE = 112  # pixels of a small picture on the page
LINE = 21  # letters of a caption that a picture of the figure has room for


@dataclasses.dataclass(frozen=True)
class ImageEvolution:
    """An image and its generations, each made from the last one's image."""

    label: str
    pictures: EvolutionPictures
    lineage: tuple[dict[str, Any], ...]  # of each generation (`domainfusion.fusion.generation`)
    candidates: int  # made in each generation
    sampled: bool  # whether a classifier chose content and style among them

    @property
    def heads(self) -> list[str]:
        """What stands above each frame."""
        return [name if name == "raw" else f"generation {name}" for name in self.pictures.names]

    def choice(self) -> str:
        """How a generation's image came of its candidates, in a sentence."""
        if self.sampled and self.candidates > 1:
            return (
                f"Of {self.candidates} candidates the sampling strategy chooses one for the content, by the "
                "classifier, and one for the style."
            )
        if self.sampled:
            return "One candidate is made, so that there is nothing to choose."
        return "Without a classifier's choice, the first candidate is taken."

    def facts(self) -> dict[str, Any]:
        """How each frame was made, and where its LD noise lies (`border`, see `evolution_figure`)."""
        kept = (
            "content_candidate", "style_candidate", "content_prompt", "style_prompt", "content_strength", "seed",
            "sha256",
        )  # fmt: skip
        made: list[dict[str, Any]] = [{}, *({name: record[name] for name in kept} for record in self.lineage)]
        for entry in made[1:]:
            entry["strength"] = entry.pop("content_strength")  # one for all candidates
        return {
            "label": self.label, "candidates": self.candidates, "sampled": self.sampled,
            "noise_prompt": self.pictures.prompt,
            "frames": [
                {"generation": name, "border": border, **entry}
                for name, border, entry in zip(self.pictures.names, self.pictures.borders(), made, strict=True)
            ],
        }  # fmt: skip

    def made_of(self) -> list[list[str]]:
        """Below each frame: the prompts that it was made with, and the strength."""
        captions: list[list[str]] = [[]]
        for record in self.lineage:
            parts = parts_of(record)
            prompts = [part["prompt"] if len(parts) == 1 else f"{part['kind']}: {part['prompt']}" for part in parts]
            captions.append([*prompts, f"strength {parts[0]['strength']}"])
        return captions


def draw_image_evolution(found: ImageEvolution) -> Any:
    """The figure: the image and its generations, below each its LD noise."""
    pictures = found.pictures
    captions = ["\n".join(line for text in texts for line in textwrap.wrap(text, LINE)) for texts in found.made_of()]
    noise = [noise_picture(level) for level in pictures.noise]
    return picture_grid(
        [
            Row(found.label, list(pictures.frames), captions),
            Row("LD noise", noise, [f"edge {value:.2f}" for value in pictures.borders()]),
        ],
        heads=found.heads, title="What the image becomes over the generations, and its LD noise",
        notes="Each generation starts from the last one's image, as in Algorithm 1; below: prompt and strength.\n"
        f"{found.choice()}\n"
        f"LD noise: what the LDM would change, given “{pictures.prompt}”; bright is much. Each map has its own scale.\n"
        "Edge: its mean in the frame around the image over its mean everywhere (below 1: it keeps to the middle).",
    )  # fmt: skip


def evolution_columns(found: ImageEvolution) -> list[dict[str, Any]]:
    """For the page, a column for each frame: `head`, `image`, `made` (texts), `noise`, `edge`."""
    pictures = found.pictures
    parts = zip(found.heads, pictures.frames, found.made_of(), pictures.noise, pictures.borders(), strict=True)
    return [
        {
            "head": head, "image": png_uri(enlarge(frame, TILE)), "made": made,
            "noise": png_uri(noise_picture(level, TILE)), "edge": f"{border:.2f}",
        }
        for head, frame, made, level, border in parts
    ]  # fmt: skip
