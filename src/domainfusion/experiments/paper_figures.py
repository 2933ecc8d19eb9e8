"""The paper's figures 2 to 5 on a data set: which images and runs they show."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from domainfusion.config import TrainConfig
from domainfusion.data.domains import MultiDomainDataset, load_dataset
from domainfusion.data.transforms import from_uint8, resize
from domainfusion.devices import choose_device
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.experiments.arms import arm_config, run_folder, run_key
from domainfusion.experiments.descriptions import describe_making
from domainfusion.experiments.paper_tables import FIGURES, TABLES
from domainfusion.experiments.runs import train_run
from domainfusion.files import write_json
from domainfusion.report.corruption_figure import corruption_figure
from domainfusion.report.evolution_figure import evolution_figure
from domainfusion.report.heat_figure import heat_figure
from domainfusion.report.reading import read_runs
from domainfusion.seeding import derive_numpy_rng

IMAGES = {"fig2": 3, "fig3": 5, "fig4": 5, "fig5": 4}
LABELS = 4  # of an image in fig5: its own and three others


def draw_figure(
    name: str, data: str, config: TrainConfig, folder: Path, target: str | None = None, *, command: str = ""
) -> dict[str, Any]:
    """Draw a figure to `folder/NAME-DATASET.png`, its facts with the command and versions beside it as JSON.

    Figures 3 and 4 are of the run of Algorithm 1 (each generation from the last) on `target`, or the first domain, in
    trial 0, which is made where it is not there.

    Returns {"figure", "dataset", "title", "picture", "texts": sentences on what it shows, "facts"}.
    """
    dataset = load_dataset(data, config.data)
    config = dataclasses.replace(config, target=target or dataset.domains[0])
    ldm = LatentDiffusion.load(config.ldm_source, device=choose_device(config.device), precision=config.precision)
    path = folder / f"{name}-{Path(data).name}.png"
    if name in ("fig3", "fig4"):
        facts, texts = _evolution(name, data, dataset, ldm, config, folder, str(config.target), path)
    else:
        rows = spread_rows(dataset, IMAGES[name], name)
        size = config.generate.image_size or ldm.image_size
        images, words = resize(from_uint8(dataset.images[rows]), size), dataset.words()
        template = config.generate.plain_template
        own = [words[dataset.labels[row]] for row in rows]
        if name == "fig2":
            facts = corruption_figure(ldm, images, own, path, template=template, distill=config.distill)
            texts = _corruption_texts(facts)
        else:
            rng, count = derive_numpy_rng("fig5 labels", dataset.fingerprint), min(LABELS, len(words))
            labels = [
                [word, *rng.choice([other for other in words if other != word], count - 1, replace=False).tolist()]
                for word in own
            ]
            facts = heat_figure(ldm, images, labels, path, template=template)
            texts = [
                f"The true label has the least error in {facts['matched_first']} of {len(rows)} images (by chance 1 in "
                f"{count}); heat maps of other labels correlate with it by "
                f"{facts['mean_likeness_of_mismatched']:.2f} on average."
            ]
    write_json(path.with_suffix(".json"), describe_making(command) | {"figure": name, "texts": texts} | facts)
    return {
        "figure": name, "dataset": dataset.name, "title": FIGURES[name], "picture": str(path), "texts": texts,
        "facts": facts,
    }  # fmt: skip


def spread_rows(dataset: MultiDomainDataset, count: int, name: str) -> np.ndarray:
    """(count,) rows of different domains and classes, as far as there are, drawn by the data set's fingerprint."""
    rng = derive_numpy_rng("figure", name, dataset.fingerprint)
    domains, classes = rng.permutation(len(dataset.domains)), rng.permutation(len(dataset.classes))
    found = []
    for k in range(count):
        rows = dataset.rows(int(domains[k % len(domains)]))
        mine = rows[dataset.labels[rows] == classes[k % len(classes)]]
        found.append(int(rng.choice(mine if len(mine) else rows)))
    return np.array(found)


def _corruption_texts(facts: Mapping[str, Any]) -> list[str]:
    kept = []
    for kind, values in facts["structure"].items():
        each = [f"{value:z.2f} at p = {p:g}" for p, value in zip(facts["confidences"], values, strict=True)]
        kept.append(f"{kind} {', '.join(each)}")
    return [f"Correlation of the prior's outlines with the image's: {'; '.join(kept)}."]


def _evolution(
    name: str, data: str, dataset: MultiDomainDataset, ldm: LatentDiffusion, config: TrainConfig, folder: Path,
    target: str, path: Path,
) -> tuple[dict[str, Any], list[str]]:  # fmt: skip
    arm = TABLES["table2"].arm("updating")
    options = dataclasses.replace(arm_config(config, arm), target=target, trial=0)
    place = run_folder(folder, data, run_key(config, arm), target, 0)
    train_run(data, options, place)
    (run,) = read_runs([place])
    facts = evolution_figure(
        run, dataset, ldm, path, images=IMAGES[name], backgrounds="busy" if name == "fig4" else "any"
    )
    borders = [value for image in facts["images"] for value in image["border"]]
    text = (
        f"LD noise near the edge of an image is {np.mean(borders):.2f} times its mean over the image (below 1: it "
        f"keeps to the middle). A run of Algorithm 1, target {target}."
    )
    return facts, [text]
