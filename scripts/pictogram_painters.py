"""How the drawings of Pictograms become pictures: a painter for each of its five sources (`build_pictograms.py`)."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import resvg_py
from fontTools.ttLib import TTFont
from PIL import Image, ImageChops, ImageDraw, ImageFont

from domainfusion.data import pictograms as published

Picture = npt.NDArray[np.uint8]  # (64, 64, 3)
SIZE = published.IMAGE_SIZE


def normalize_key(codepoints: str) -> str:
    """The key of a codepoint sequence in hex: upper case, without the variation selector FE0F.

    >>> normalize_key("2600-fe0f")
    '2600'
    """
    return "-".join(part for part in codepoints.upper().split("-") if part != "FE0F")


def flatten(image: Image.Image) -> Image.Image:
    """`image` as RGB, its transparency replaced by white."""
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def square(image: Image.Image, side: int | None = None) -> Image.Image:
    """`image` (RGB or grey) in the middle of a white square of `side` pixels (by default its longer side)."""
    side = side or max(image.size)
    canvas = Image.new(image.mode, (side, side), "white")
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return canvas


def to_picture(image: Image.Image, resample: Image.Resampling = Image.Resampling.LANCZOS) -> Picture:
    """A square image (RGB or grey) scaled to (64, 64, 3)."""
    return np.asarray(image.resize((SIZE, SIZE), resample).convert("RGB"))


def fluent_painter(folder: Path) -> Callable[[str], Picture]:
    """Draws a key in Fluent Emoji 3D, which is published as WebP pictures."""
    files = {normalize_key(path.stem): path for path in (folder / "package" / "assets").glob("*.webp")}

    def paint(key: str) -> Picture:
        with Image.open(files[key]) as image:
            return to_picture(square(flatten(image)))

    return paint


def twemoji_painter(folder: Path) -> Callable[[str], Picture]:
    """Draws a key in Twemoji: SVG at twice the size, averaged, the longer side filling the square."""
    icons = json.loads((folder / "package" / "icons.json").read_text(encoding="utf-8"))
    names = json.loads((folder / "package" / "chars.json").read_text(encoding="utf-8"))
    icon_of = {normalize_key(codepoints): icons["icons"][name] for codepoints, name in names.items()}

    def paint(key: str) -> Picture:
        icon = icon_of[key]
        width, height = icon.get("width", icons["width"]), icon.get("height", icons["height"])
        scale = 2 * SIZE / max(width, height)
        image = rasterize(
            svg_string=f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">{icon["body"]}</svg>',
            width=round(width * scale),
            height=round(height * scale),
            background="#ffffff",
        )
        return to_picture(square(image.convert("RGB")), Image.Resampling.BOX)

    return paint


def symbola_painter(folder: Path) -> Callable[[str], Picture]:
    """Draws a codepoint in Symbola: the glyph's longer side fills 86 % of the square."""
    (path,) = folder.rglob("Symbola_hint.ttf")
    font = ImageFont.truetype(path, 4 * SIZE)

    def paint(key: str) -> Picture:
        page = Image.new("L", (12 * SIZE, 12 * SIZE), "white")
        ImageDraw.Draw(page).text((2 * SIZE, 2 * SIZE), chr(int(key, 16)), font=font, fill="black")
        glyph = page.crop(ImageChops.invert(page).getbbox())
        return to_picture(square(glyph, round(max(glyph.size) / 0.86)))

    return paint


def unifont_painter(folder: Path) -> Callable[[str], Picture]:
    """Draws a codepoint in Unifont: the 16x16 bitmap, centred, each of its pixels a 4x4 block."""
    paths = [next(folder.rglob(name)) for name in ("unifont_upper.otf", "unifont.otf")]
    fonts = [(set(TTFont(path).getBestCmap()), ImageFont.truetype(path, 16)) for path in paths]

    def paint(key: str) -> Picture:
        font = next(font for codepoints, font in fonts if int(key, 16) in codepoints)
        page = Image.new("1", (48, 48), "white")
        ImageDraw.Draw(page).text((16, 16), chr(int(key, 16)), font=font, fill="black")
        glyph = page.crop(ImageChops.invert(page).getbbox()).convert("L")
        return to_picture(square(glyph, 16), Image.Resampling.NEAREST)

    return paint


def clipart_painter(folder: Path) -> Callable[[str], Picture]:
    """Draws the clip art at a path: cropped to what is not white, with a margin of 5 %."""

    def paint(key: str) -> Picture:
        path = str(folder / "usr/share/openclipart/svg" / key)
        image = rasterize(svg_path=path, width=256)
        box, extent = find_drawing(image)
        if extent <= 0.45:  # a small drawing on a large page: draw it again with more pixels
            image = rasterize(svg_path=path, width=min(1024, int(256 * 0.9 / extent)))
            box, _ = find_drawing(image)
        drawing = flatten(image.crop(box))
        return to_picture(square(drawing, round(1.1 * max(drawing.size))))

    return paint


def find_drawing(image: Image.Image) -> tuple[tuple[int, int, int, int], float]:
    """The box of what is neither transparent nor white, and its longer side relative to the image's."""
    pixels = np.asarray(image.convert("RGBA"))
    drawn = (pixels[..., 3] > 8) & (pixels[..., :3].min(axis=2) <= 250)  # a white page is background too
    rows, columns = np.flatnonzero(drawn.any(axis=1)), np.flatnonzero(drawn.any(axis=0))
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    return box, max(box[2] - box[0], box[3] - box[1]) / max(image.size)


def rasterize(**arguments: Any) -> Image.Image:
    """An SVG as an image. Without `dpi`, resvg refuses drawings measured in mm, pt or cm."""
    return Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(dpi=96, **arguments))))
