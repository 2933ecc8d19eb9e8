"""Heat maps for the report: some test images with the heat of the true and of the predicted class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from domainfusion.config.training import ldm_without
from domainfusion.data.domains import MultiDomainDataset
from domainfusion.data.transforms import from_uint8, resize
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.errors import DomainFusionError, show_note
from domainfusion.report.label_evidence import LabelHeat, label_heat, likeness
from domainfusion.report.overlays import enlarge, overlay
from domainfusion.report.pictures import png_uri
from domainfusion.report.predictions import read_predictions
from domainfusion.report.reading import Run
from domainfusion.report.study import Study

TILE = 128  # pixels of a picture
Case = tuple[int, str, str, float]  # row, true class, predicted class, its probability


def build_heat(study: Study, dataset: MultiDomainDataset | None, images: int = 6) -> dict[str, Any] | None:
    """`run`, `ldm` and `cases` (image, true and predicted class, their heat) of the first run that was tested.

    None where there is none, or its images or its LDM cannot be had; the latter is said on stderr.
    """
    if dataset is None:
        return None
    for arm in [*study.leading, *study.arms]:
        for run in study.compared(arm):
            cases = choose_cases(read_cases(run, dataset), images)
            if not cases:
                continue
            try:
                device = "cuda" if torch.cuda.is_available() else "cpu"
                held_out = (run.options.get("target"), run.options.get("second_target"))
                ldm = LatentDiffusion.load(
                    ldm_without(str(run.options.get("ldm", "embedded")), *held_out, trial=run.unit[0]),
                    device=device,
                )
                template = str(run.options.get("generate.plain_template", "{label}"))
                size = int(run.options.get("generate.image_size", 0)) or ldm.image_size
                return {"arm": arm, "run": run, "ldm": ldm.name, "cases": _cases(ldm, dataset, cases, template, size)}
            except DomainFusionError as error:
                show_note(f"the report goes without heat maps: {error}")
                return None
    return None


def read_cases(run: Run, dataset: MultiDomainDataset) -> list[Case]:
    """What the run said of each test image, from its `predictions.csv`; empty where it has none."""
    said = read_predictions(run)
    if said is None:
        return []
    names = set(dataset.classes)
    found = zip(said.rows.tolist(), said.true, said.said, said.probability.tolist(), strict=True)
    return [case for case in found if case[0] < len(dataset) and {case[1], case[2]} <= names]


def choose_cases(cases: Sequence[Case], count: int) -> list[Case]:
    """`count` cases, two thirds of them errors where there are as many, of different classes first, evenly spread."""
    wrong, right = ([case for case in cases if (case[1] != case[2]) is error] for error in (True, False))
    of_wrong = min(len(wrong), max(count - len(right), count * 2 // 3))
    return _spread_over_classes(wrong, of_wrong) + _spread_over_classes(right, count - of_wrong)


def _spread_over_classes(cases: Sequence[Case], count: int) -> list[Case]:
    by_class: dict[str, list[Case]] = {}
    for case in cases:
        by_class.setdefault(case[1], []).append(case)
    turns = [[(turn, name, case) for turn, case in enumerate(found)] for name, found in by_class.items()]
    order = [case for _, _, case in sorted((entry for found in turns for entry in found), key=lambda entry: entry[:2])]
    first = order[: len(by_class)]
    if count <= len(first):
        return [first[int((i + 0.5) * len(first) / count)] for i in range(count)]
    return order[:count]


def _cases(
    ldm: LatentDiffusion, dataset: MultiDomainDataset, cases: Sequence[Case], template: str, size: int
) -> list[dict[str, Any]]:
    words = dict(zip(dataset.classes, dataset.words(), strict=True))
    asked = [(row, name) for row, true, said, _ in cases for name in dict.fromkeys([true, said])]
    images = resize(from_uint8(np.stack([dataset.images[row] for row, _ in asked])), size)
    heats = label_heat(ldm, images, [words[name] for _, name in asked], template=template)
    found = dict(zip(asked, heats, strict=True))
    return [_case(dataset.images[case[0]], case, found) for case in cases]


def _case(image: np.ndarray, case: Case, found: dict[tuple[int, str], LabelHeat]) -> dict[str, Any]:
    row, true, said, probability = case
    names = list(dict.fromkeys([true, said]))
    heats = [found[row, name] for name in names]
    values = torch.stack([heat.relative for heat in heats])
    low, high = float(values.min()), float(values.max())
    frames = [{"name": "image", "uri": png_uri(enlarge(image, TILE)), "chosen": ""}]
    for name, heat in zip(names, heats, strict=True):
        uri = png_uri(overlay(image, heat.relative, low, high, TILE))
        frames.append({"name": f"heat of {name}", "uri": uri, "chosen": ""})
    return {
        "frames": frames, "class": true, "said": said, "right": true == said,
        "confidence": f"{100 * probability:.0f} %",
        "likeness": None if len(heats) < 2 else f"{likeness(*heats):.2f}",
    }  # fmt: skip
