"""Draws the picture of docs/explain.md and measures what it says of heat maps and scores.

    python scripts/draw_explanation.py [docs/images/explain.png] [--images 40]

The picture is the figure of heat maps for two pictograms. Beside it, explain.json: the same figures for images spread
over all styles, each with its class and three others.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from domainfusion.config import DataConfig
from domainfusion.data.domains import MultiDomainDataset, load_dataset
from domainfusion.data.transforms import from_uint8
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.experiments.descriptions import describe_environment
from domainfusion.files import write_text
from domainfusion.picture_grid import save_figure
from domainfusion.report.heat_figure import LabelPictures, draw_heat, label_pictures

SHOWN = (("flat", "1F407"), ("render3d", "1F425"))  # a rabbit and a chick
LABELS = ("mammal", "bird", "building", "vehicle")


def pictures_of(ldm: LatentDiffusion, dataset: MultiDomainDataset, row: int, labels: list[int]) -> LabelPictures:
    words = dataset.words()
    return label_pictures(ldm, from_uint8(dataset.images[row].copy()), [words[label] for label in labels])


def draw(ldm: LatentDiffusion, dataset: MultiDomainDataset, path: Path) -> None:
    found = []
    for domain, key in SHOWN:
        row = next(int(r) for r in dataset.rows(dataset.index_of(domain)) if dataset.keys[r] == key)
        true = dataset.classes[dataset.labels[row]]
        names = [true, *(name for name in LABELS if name != true)]
        found.append(pictures_of(ldm, dataset, row, [dataset.classes.index(name) for name in names]))
    save_figure(draw_heat(found), path, dpi=100)
    with Image.open(path) as picture:
        plain = picture.convert("RGB")
    palette = plain.quantize(256)  # half of the bytes of full colour
    plain.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(path, optimize=True)


def measure(ldm: LatentDiffusion, dataset: MultiDomainDataset, count: int) -> dict[str, object]:
    rng = np.random.default_rng(0)
    rows = np.sort(rng.choice(len(dataset), count, replace=False))
    first, sure, wrong_sure, alike, spread = 0, 0, 0, [], []
    for row in tqdm(rows):
        label = int(dataset.labels[row])
        others = rng.choice([c for c in range(len(dataset.classes)) if c != label], 3, replace=False)
        part = pictures_of(ldm, dataset, int(row), [label, *map(int, others)])
        differences, errors = part.scores.differences(0)
        first += part.scores.best == 0
        sure += int((differences[1:] > 2 * errors[1:]).sum())
        wrong_sure += int((differences[1:] < -2 * errors[1:]).sum())
        alike += [entry["heat_likeness_to_first"] for entry in part.facts()[1:]]
        spread += [float(heat.relative.max()) for heat in part.heats]
    return {
        "command": "python scripts/draw_explanation.py", "versions": describe_environment()["versions"],
        "images": count, "labels": 4, "draws": 32, "true_label_best_percent": 100 * first / count,
        "wrong_labels_clearly_worse_percent": 100 * sure / (3 * count),
        "wrong_labels_clearly_better_percent": 100 * wrong_sure / (3 * count),
        "heat_correlation_mean": float(np.mean(alike)), "heat_correlation_least": float(np.min(alike)),
        "heat_correlation_above_0.9_percent": 100 * float(np.mean(np.array(alike) > 0.9)),
        "highest_heat_mean": float(np.mean(spread)),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", nargs="?", type=Path, default=Path("docs/images/explain.png"))
    parser.add_argument("--images", type=int, default=40, help="images to measure on; 0 draws only")
    arguments = parser.parse_args()
    ldm, dataset = LatentDiffusion.load(), load_dataset("pictograms", DataConfig())
    draw(ldm, dataset, arguments.output)
    if not arguments.images:
        return
    found = measure(ldm, dataset, arguments.images)
    write_text(arguments.output.with_suffix(".json"), json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
