"""Draws the contact sheet of the embedded benchmark Pictograms that the README shows.

    python scripts/draw_pictograms_sheet.py [docs/images/pictograms.png]

One column a domain, one row a class, four pictures a cell. The four emoji domains show the same drawings.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from domainfusion.data.pictograms import CLASSES, DOMAINS, IMAGE_SIZE, Pictograms, load_pictograms
from domainfusion.files import atomic_path

ARTISTS = ("Fluent Emoji 3D", "Twemoji", "Symbola", "GNU Unifont", "Open Clip Art")
TILE = IMAGE_SIZE * 3 // 4  # the 4x4 blocks of `pixel` become 3x3 and stay sharp
PER_CELL = 4
STEP = TILE + 4
GAP = 26  # between the columns
ROW = TILE + 10
LEFT, TOP, MARGIN = 128, 84, 18
INK, PALE, LINE = (32, 33, 36), (110, 114, 120), (228, 230, 234)
SEED = 4  # a choice of drawings that shows the classes well


def load_font(size: int, weight: str = "normal") -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and so looks the same everywhere."""
    return ImageFont.truetype(
        font_manager.findfont(font_manager.FontProperties(family="DejaVu Sans", weight=weight)), size
    )


def choose(pictograms: Pictograms, rng: np.random.Generator, label: str) -> dict[str, list[int]]:
    """For each domain the indices of four pictures of class `label`; the same keys in all four emoji domains."""
    index_of = {
        domain: {str(pictograms.keys[i]): int(i) for i in np.flatnonzero(mask & (pictograms.classes == label))}
        for domain in DOMAINS
        for mask in [pictograms.domains == domain]
    }
    shared = sorted(set.intersection(*(set(index_of[domain]) for domain in DOMAINS if domain != "clipart")))
    emoji = rng.choice(shared, PER_CELL, replace=False)
    clipart = rng.choice(sorted(index_of["clipart"]), PER_CELL, replace=False)
    return {d: [index_of[d][str(key)] for key in (clipart if d == "clipart" else emoji)] for d in DOMAINS}


def draw_sheet(pictograms: Pictograms) -> Image.Image:
    """The sheet, RGB."""
    column = PER_CELL * STEP + GAP
    size = (LEFT + len(DOMAINS) * column - GAP + MARGIN, TOP + len(CLASSES) * ROW + MARGIN)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for j, (domain, artist) in enumerate(zip(DOMAINS, ARTISTS, strict=True)):
        middle = LEFT + j * column + (PER_CELL * STEP) // 2
        count = int((pictograms.domains == domain).sum())
        draw.text((middle, 32), domain, font=load_font(22, "bold"), fill=INK, anchor="mm")
        draw.text((middle, 58), f"{artist} · {count} images", font=load_font(13), fill=PALE, anchor="mm")
    rng = np.random.default_rng(SEED)
    for i, label in enumerate(CLASSES):
        top = TOP + i * ROW
        draw.line((MARGIN, top, size[0] - MARGIN, top), fill=LINE)
        draw.text((MARGIN, top + ROW // 2), label, font=load_font(17), fill=INK, anchor="lm")
        for j, chosen in enumerate(choose(pictograms, rng, label).values()):
            # A box filter keeps the blocks of `pixel` exact, the others look better under Lanczos.
            resample = Image.Resampling.BOX if DOMAINS[j] == "pixel" else Image.Resampling.LANCZOS
            for k, index in enumerate(chosen):
                tile = Image.fromarray(pictograms.images[index]).resize((TILE, TILE), resample)
                sheet.paste(tile, (LEFT + j * column + k * STEP + 2, top + (ROW - TILE) // 2 + 1))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, nargs="?", default=Path("docs/images/pictograms.png"))
    output = parser.parse_args().output
    sheet = draw_sheet(load_pictograms())
    palette = sheet.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    with atomic_path(output) as temporary:
        palette.save(temporary, "PNG", optimize=True)
    print(f"{output}: {sheet.width}x{sheet.height}, {output.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
