"""Coloured squares in a folder."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from PIL import Image

from small_corpus import COLOURS, square_image


@pytest.fixture
def corpus_folder(tmp_path: Path) -> Path:
    """24 coloured 32x32 images with `metadata.csv`."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    with open(folder / "metadata.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "text", "category", "style", "weight"])
        for number in range(24):
            Image.fromarray(square_image(number)).save(folder / f"{number:02d}.png")
            colour = list(COLOURS)[number % 4]
            writer.writerow(
                [f"{number:02d}.png", f"{colour} square", "shape", ["flat", "ink"][number % 2], 1 + number % 3]
            )
    return folder
