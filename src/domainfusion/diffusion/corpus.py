"""Captioned images for pretraining an LDM: reading them, augmenting them, and composing their captions.

A corpus is either a folder in the Hugging Face *imagefolder* form (images and a `metadata.csv` with `file_name`,
`text`), or one `.npz` with `images` (N, S, S, 3) uint8 and `text`. Both may carry two more columns, `category` and
`style`, which are joined to the text and dropped at random in training, so that the LDM understands each alone;
and `weight`, how often an image is drawn.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from domainfusion.errors import DataError, NoSource

# Colour words of the recolouring augmentation, as (R, G, B) in 0..255.
FOREGROUNDS = {
    "black": (0, 0, 0), "red": (220, 40, 40), "blue": (40, 80, 220), "green": (30, 150, 60), "orange": (240, 140, 20),
    "purple": (130, 50, 180), "brown": (120, 75, 40),
    "teal": (0, 140, 140), "pink": (235, 90, 150), "navy": (20, 30, 90),
}  # fmt: skip
BACKGROUNDS = {
    "white": (255, 255, 255), "yellow": (255, 225, 90), "beige": (245, 230, 205), "sky": (190, 225, 250),
    "mint": (195, 240, 210), "grey": (205, 205, 205),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Images with the parts of their captions; all lists have N entries."""

    images: np.ndarray  # (N, S, S, 3) uint8
    text: list[str]
    category: list[str]
    style: list[str]
    weight: np.ndarray  # (N,) float, not negative

    def __len__(self) -> int:
        return len(self.text)

    @property
    def styles(self) -> list[str]:
        """The style words that occur, sorted."""
        return sorted({style for style in self.style if style})

    @property
    def versatile_styles(self) -> list[str]:
        """The styles in which at least half of the categories are drawn (all styles, where there are no categories).

        A prompt that joins a class with a style the class was hardly ever drawn in asks for what the LDM has not seen.
        """
        categories = {category for category in self.category if category}
        drawn: dict[str, set[str]] = {style: set() for style in self.styles}
        for style, category in zip(self.style, self.category, strict=True):
            if style and category:
                drawn[style].add(category)
        return [style for style, known in drawn.items() if 2 * len(known) >= len(categories)]

    @property
    def held_out(self) -> np.ndarray:
        """(N,) bool: about 2 % of the images, chosen by a hash of their pixels, that no training step sees.

        Of a small corpus at least one image is held out, and all copies of it.
        """
        hashes = np.array([int(hashlib.sha256(image.tobytes()).hexdigest()[:8], 16) for image in self.images])
        chosen = hashes % 50 == 0
        return chosen if chosen.any() else hashes == hashes.min()

    def select(self, mask: np.ndarray) -> Corpus:
        """The images where `mask` (N,) is true."""
        keep = np.flatnonzero(mask)

        def pick(values: list[str]) -> list[str]:
            return [values[i] for i in keep]

        return Corpus(self.images[keep], pick(self.text), pick(self.category), pick(self.style), self.weight[keep])


def load_corpus(path: Path, size: int) -> Corpus:
    """The corpus at `path` (imagefolder with `metadata.csv`, or `.npz`), its images resized to `size` pixels."""
    if path.suffix == ".npz" and path.is_file():
        with np.load(path, allow_pickle=False) as file:
            columns = {name: file[name] for name in file.files}
        if "images" not in columns or "text" not in columns:
            raise DataError(f"{path} has no 'images' and 'text' arrays")
        images = columns["images"]
        if images.dtype != np.uint8 or images.ndim not in (3, 4):
            raise DataError(
                f"{path}: images are {images.dtype} of the shape {images.shape}; give uint8, (N, S, S, 3) or (N, S, S)"
            )
    elif (path / "metadata.csv").is_file():
        with open(path / "metadata.csv", newline="", encoding="utf-8") as handle:
            rows = list(csv.DictReader(handle))
        if not rows or "file_name" not in rows[0] or "text" not in rows[0]:
            raise DataError(f"{path / 'metadata.csv'} needs the columns file_name and text, and a row for each image")
        for number, row in enumerate(rows, start=2):
            if None in row:
                raise DataError(
                    f"{path / 'metadata.csv'}, line {number}: more values than the heading has columns; put a text "
                    'with a comma in quotes: "a cat, sitting"'
                )
        columns = {name: np.array([row[name] or "" for row in rows]) for name in rows[0]}
        images = np.stack([_read_image(path / row["file_name"], size) for row in rows])
    else:
        raise NoSource(f"{path} is no corpus: give a folder with images and metadata.csv, or an .npz file")
    if images.shape[1:] != (size, size, 3):
        images = np.stack([np.asarray(Image.fromarray(image).convert("RGB").resize((size, size))) for image in images])
    count = len(images)
    for name in ("text", "category", "style", "weight"):
        if name in columns and len(columns[name]) != count:
            raise DataError(f"{path}: {count} images and {len(columns[name])} of {name}; one for each is needed")

    def column(name: str) -> list[str]:
        return [str(value) for value in columns.get(name, np.full(count, ""))]

    try:
        weight = np.asarray(columns.get("weight", np.ones(count)), dtype=np.float64)
    except ValueError as error:
        raise DataError(f"{path}: the column weight holds something that is no number ({error})") from error
    if not (np.isfinite(weight).all() and (weight >= 0).all() and weight.any()):
        raise DataError(f"{path}: the column weight needs finite numbers, none negative and not all 0")
    return Corpus(images, column("text"), column("category"), column("style"), weight)


def _read_image(path: Path, size: int) -> np.ndarray:
    try:
        with Image.open(path) as image:
            rgba = image.convert("RGBA").resize((size, size), Image.Resampling.BICUBIC)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as an image: {error}") from error
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return np.asarray(Image.alpha_composite(white, rgba).convert("RGB"))


def compose_caption(
    corpus: Corpus, index: int, colours: str, rng: np.random.Generator, unconditional: float = 0.1
) -> str:
    """A caption of image `index`: its text, category, style and colour words, each dropped at random, not all of them.

    With probability `unconditional` the caption is empty (classifier-free guidance, arXiv 2207.12598).
    """
    if rng.random() < unconditional:
        return ""
    parts = [(corpus.text[index], 0.5), (corpus.category[index], 0.85), (corpus.style[index], 0.85), (colours, 0.7)]
    kept = [part for part, share in parts if rng.random() < share and part]
    there = [part for part, _ in parts if part]
    if there and not kept:  # `unconditional` alone says how many are empty
        kept = [there[int(rng.integers(len(there)))]]
    return ", ".join(kept)


def augment(
    images: np.ndarray, rng: np.random.Generator, *, recolour: float = 0.5, hue: float = 0.15
) -> tuple[torch.Tensor, list[str]]:
    """Augmented images (B, 3, S, S) in [-1, 1], and the colour words of each ("" where it kept its colours).

    Monochrome drawings are recoloured with probability `recolour`, coloured ones get their channels permuted with
    probability `hue`; all are flipped, zoomed (0.8 to 1.15) and shifted (up to 6 %).

    Args:
        images: (B, S, S, 3) uint8.
    """
    batch = torch.from_numpy(images.astype(np.float32) / 255).permute(0, 3, 1, 2)  # (B, 3, S, S) in [0, 1]
    coloured = ((batch.amax(1) - batch.amin(1)) > 0.15).float().mean((1, 2)) > 0.01
    colours = [""] * len(batch)
    for i in range(len(batch)):
        if not coloured[i] and rng.random() < recolour:
            front, back = rng.choice(list(FOREGROUNDS)), "white"
            if rng.random() < 0.4:
                back = rng.choice(list(BACKGROUNDS))
            ink = 1 - batch[i].mean(0)  # (S, S), 1 where the drawing is black
            low = torch.tensor(FOREGROUNDS[front]).view(3, 1, 1) / 255
            high = torch.tensor(BACKGROUNDS[back]).view(3, 1, 1) / 255
            batch[i] = high + (low - high) * ink
            colours[i] = f"{front} on {back}"
        elif coloured[i] and rng.random() < hue:
            batch[i] = batch[i][torch.from_numpy(rng.permutation(3))]
    count = len(batch)
    zoom = torch.from_numpy(rng.uniform(1 / 1.15, 1 / 0.8, count)).float()
    flip = torch.from_numpy(np.where(rng.random(count) < 0.5, -1.0, 1.0)).float()
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = zoom * flip, zoom
    theta[:, :, 2] = torch.from_numpy(rng.uniform(-0.06, 0.06, (count, 2))).float()
    grid = F.affine_grid(theta, list(batch.shape), align_corners=False)
    batch = F.grid_sample(batch, grid, padding_mode="border", align_corners=False)
    return batch * 2 - 1, colours
