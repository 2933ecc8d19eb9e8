"""Packs the emoji and icon sets that the embedded LDM is trained on into one captioned corpus (`.npz`).

    python scripts/build_embedded_corpus.py FOLDER corpus.npz

FOLDER holds one `NAME.npz` per drawing set (`images`, and `codepoints` or `names`) and `meta.csv`, the CLDR names and
groups of the codepoints. Captions get the Unicode subgroup as their category ("animal mammal"); an icon gets the
category of the emoji whose CLDR name occurs in its own name.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np

# set: (style words, weight of an image). Coloured drawings of things are what the LDM is for, so they weigh most.
SETS = {
    "noto": ("noto color", 3.0),
    "noto_v1": ("noto classic color", 3.0),
    "emojione_v2": ("emojione color", 3.0),
    "icons_fxemoji": ("fx color", 3.0),
    "noto_mono": ("noto mono", 2.0),
    "emojione_bw": ("emojione bw", 2.0),
    "icons_game_icons": ("game silhouette", 0.6),
    "icons_streamline_freehand": ("freehand color", 1.5),
    "icons_streamline_ultimate": ("ultimate color", 1.2),
    "icons_flat_color": ("solid color", 1.5),
    "icons_icon_park": ("park outline", 0.5),
    "icons_meteocons": ("weather color", 0.7),
    "icons_ph_duotone": ("duotone", 0.6),
    "icons_ph_thin": ("thin outline", 0.5),
    "icons_solar_duotone": ("solar duotone", 0.5),
    "icons_streamline_plump": ("plump outline", 0.5),
    "icons_streamline_pixel": ("streamline pixel", 0.7),
    "icons_pixelarticons": ("pixel outline", 0.5),
    "icons_healthicons": ("health glyph", 0.6),
    "icons_mdi": ("solid glyph", 0.4),
    "icons_tabler": ("round outline", 0.4),
    "icons_carbon": ("carbon outline", 0.3),
    "icons_material_sharp": ("sharp glyph", 0.3),
    "icons_maki": ("map glyph", 0.5),
}
# Words of the benchmark's classes that Unicode's subgroups spell otherwise.
EXTRA_WORDS = {
    "animal-bug": "animal critter bug", "animal-marine": "animal critter marine",
    "animal-reptile": "animal critter reptile",
    "animal-amphibian": "animal critter amphibian", "transport-ground": "vehicle transport ground",
    "transport-water": "vehicle transport water", "transport-air": "vehicle transport air",
    "place-building": "building", "place-religious": "building religious", "food-prepared": "meal food prepared",
    "food-asian": "meal food asian", "food-sweet": "meal food sweet", "food-fruit": "fruit food",
    "food-vegetable": "vegetable food", "phone": "electronics phone", "computer": "electronics computer",
    "light-video": "electronics light video", "sky-weather": "sky weather",
}  # fmt: skip
OBJECTS = ("animal", "food", "plant", "drink", "transport", "place", "clothing", "tool", "sky", "phone", "computer",
           "light-video", "sport", "music", "household", "writing", "office", "face", "person")  # fmt: skip


def category_of(subgroup: str) -> str:
    """The category words of a Unicode subgroup."""
    return EXTRA_WORDS.get(subgroup, subgroup.replace("-", " "))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    with open(arguments.folder / "meta.csv", newline="", encoding="utf-8") as file:
        meta = {row["codepoint"]: row for row in csv.DictReader(file)}
    lexicon: dict[str, str] = {}
    for row in meta.values():
        if row["skin_tone"] == "0" and row["subgroup"].startswith(OBJECTS):
            lexicon.setdefault(row["name"].lower(), row["subgroup"])
    images, text, category, style, weight = [], [], [], [], []
    for name, (words, factor) in SETS.items():
        with np.load(arguments.folder / f"{name}.npz") as file:
            keys = file["codepoints" if "codepoints" in file.files else "names"]
            pictures = file["images"]
        for key, picture in zip(keys, pictures, strict=True):
            if "icons_" not in name:
                row = meta[str(key)]
                if row["flag"] == "1" and row["group"] == "flags":
                    continue
                # One drawing in many skin tones, and signs and symbols, which are no things, would crowd out the rest.
                scale = (0.15 if row["skin_tone"] == "1" else 1.0) * (
                    1.0 if row["subgroup"].startswith(OBJECTS) else 0.2
                )
                label, group = row["name"].lower(), category_of(row["subgroup"])
            else:
                label = str(key).lower()
                tokens = label.split()
                spans = [" ".join(tokens[i:j]) for i in range(len(tokens)) for j in range(len(tokens), i, -1)]
                found = next((lexicon[s] for s in sorted(spans, key=len, reverse=True) if s in lexicon), "")
                group, scale = category_of(found) if found else "", 1.5 if found else 0.3
            images.append(picture)
            text.append(label)
            category.append(group)
            style.append(words)
            weight.append(factor * scale)
    np.savez_compressed(
        arguments.output, images=np.stack(images), text=np.array(text), category=np.array(category),
        style=np.array(style), weight=np.array(weight),
    )  # fmt: skip
    matched = sum(bool(group) for group in category)
    print(f"{len(images)} images, {matched} with a category, {len(SETS)} styles -> {arguments.output}")


if __name__ == "__main__":
    main()
