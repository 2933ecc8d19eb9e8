"""One generation on tiny data: deterministic, however it is batched, and its lineage leads back to its images."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pytest
import torch

from counting import count_passes
from domainfusion.config import GenerateConfig
from domainfusion.data.domains import MultiDomainDataset
from domainfusion.diffusion.image_to_image import image_to_image
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.fusion.candidates import candidates_of, recipes_of
from domainfusion.fusion.generation import make_generation
from domainfusion.fusion.synthetic import Generation

ROWS = np.array([0, 1, 13, 25, 37, 50, 62, 75, 88, 100, 101, 107])
CONFIG = GenerateConfig(candidates=3, steps=3, batch_size=16, guidance=2.0, seed=2)


def judge(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A fixed small classifier: a random layer and its softmax."""
    assert images.min() >= 0
    assert images.max() <= 1
    weights = torch.randn(3 * 16 * 16, 8, generator=torch.Generator().manual_seed(0))
    features = (images - 0.5).flatten(1) @ weights
    return features, features[:, :3].softmax(-1).gather(1, labels.view(-1, 1)).flatten()


def run(
    ldm: LatentDiffusion, dataset: MultiDomainDataset, config: GenerateConfig = CONFIG, *, number: int = 0,
    current: np.ndarray | None = None, rows: np.ndarray = ROWS,
) -> Generation:  # fmt: skip
    return make_generation(
        ldm, dataset, rows, np.ascontiguousarray(dataset.images[rows]) if current is None else current, judge, config,
        number=number, styles=("flat", "ink"), stored=False, progress=False,
    )  # fmt: skip


def test_deterministic(ldm: LatentDiffusion, dataset: MultiDomainDataset) -> None:
    torch.manual_seed(0)
    first = run(ldm, dataset)
    torch.manual_seed(1)
    second = run(ldm, dataset)
    assert np.array_equal(first.images, second.images)
    assert first.lineage == second.lineage
    other = run(ldm, dataset, dataclasses.replace(CONFIG, seed=1))
    assert not np.array_equal(first.images, other.images)
    assert first.images.shape == (len(ROWS), 16, 16, 3)
    assert first.images.dtype == np.uint8
    assert np.array_equal(first.rows, ROWS)


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_independent_of_batch_size(ldm: LatentDiffusion, dataset: MultiDomainDataset, batch_size: int) -> None:
    first = run(ldm, dataset)
    second = run(ldm, dataset, dataclasses.replace(CONFIG, batch_size=batch_size))
    for a, b in zip(first.lineage, second.lineage, strict=True):
        different = {key for key in a if a[key] != b[key]}
        assert different <= {"sha256", "content_score", "style_score"}
        assert a["content_score"] == pytest.approx(b["content_score"], abs=2e-3)
    # A candidate's pixel may round another way (one level), and AdaIN spreads that by the style's σ.
    difference = np.abs(first.images.astype(int) - second.images.astype(int))
    assert difference.max() <= 3
    assert (difference > 1).mean() < 1e-3


def test_a_row_does_not_depend_on_the_others(ldm: LatentDiffusion, dataset: MultiDomainDataset) -> None:
    together, alone = run(ldm, dataset), run(ldm, dataset, rows=ROWS[4:6])
    difference = np.abs(together.images[4:6].astype(int) - alone.images.astype(int))
    assert difference.max() <= 3
    assert together.lineage[4]["seed"] == alone.lineage[0]["seed"]
    assert together.lineage[5]["content_prompt"] == alone.lineage[1]["content_prompt"]


def remake(
    ldm: LatentDiffusion, source: np.ndarray, record: dict[str, object], part: str, config: GenerateConfig
) -> np.ndarray:
    """The candidate that a record names, from its source image, seed, prompt and strength: (S, S, 3) in [-1, 1]."""
    generator = torch.Generator().manual_seed(record["seed"])
    number = int(record[f"{part}_candidate"])
    noise = torch.randn(config.candidates, 4, 8, 8, generator=generator)[number : number + 1]
    image = torch.from_numpy(source[None].copy()).permute(0, 3, 1, 2) / 127.5 - 1
    made = image_to_image(
        ldm, image, [str(record[f"{part}_prompt"])], torch.tensor([[record[f"{part}_strength"]]]), noise=noise,
        steps=config.steps, guidance_scale=config.guidance,
    )  # fmt: skip
    return made[0, 0].permute(1, 2, 0).numpy().astype(np.float64)


def test_lineage_leads_back_to_the_images(ldm: LatentDiffusion, dataset: MultiDomainDataset) -> None:
    """From the record alone: remake both candidates, give the content of one the style of the other."""
    generation = run(ldm, dataset)
    assert {record["content_candidate"] for record in generation.lineage} == {0, 1, 2}
    assert any(record["content_candidate"] != record["style_candidate"] for record in generation.lineage)
    for row, image, record in zip(ROWS, generation.images, generation.lineage, strict=True):
        assert (record["row"], record["source"], record["generation"]) == (row, dataset.keys[row], 0)
        assert record["domain"] == dataset.domains[dataset.domain_of[row]]
        assert record["class"] == dataset.classes[dataset.labels[row]]
        assert record["class"] in record["content_prompt"]
        assert record["sha256"] == hashlib.sha256(image.tobytes()).hexdigest()[:16]
        content, style = (remake(ldm, dataset.images[row], record, part, CONFIG) for part in ("content", "style"))
        normal = (content - content.mean((0, 1))) / np.sqrt(content.var((0, 1)) + 1e-5)
        fused = (normal * style.std((0, 1)) + style.mean((0, 1))).clip(-1, 1)
        assert np.abs((fused + 1) * 127.5 - image).max() < 3  # candidates are rounded to 8 bits before they are fused


def test_lineage_names_prompt_and_strength_of_each_candidate(ldm: LatentDiffusion, dataset: MultiDomainDataset) -> None:
    generation = run(ldm, dataset)
    for row, record in zip(ROWS, generation.lineage, strict=True):
        made = recipes_of(dataset, np.array([row]), CONFIG, 0, ("flat", "ink"))[0]
        assert record["seed"] == made.seed
        for part in ("content", "style"):
            assert record[f"{part}_prompt"] == made.prompts[record[f"{part}_candidate"]]
            strength = float(made.strengths[record[f"{part}_candidate"]])
            assert record[f"{part}_strength"] == pytest.approx(strength, abs=1e-6)
    assert any(record["content_prompt"] != record["style_prompt"] for record in generation.lineage)


def test_without_sampling_the_first_candidate_is_the_image(ldm: LatentDiffusion, dataset: MultiDomainDataset) -> None:
    config = dataclasses.replace(CONFIG, sampling=False, style_words=False)
    generation = run(ldm, dataset, config)
    for row, image, record in zip(ROWS, generation.images, generation.lineage, strict=True):
        assert record["content_prompt"] == record["style_prompt"] == dataset.words()[dataset.labels[row]]
        made = remake(ldm, dataset.images[row], record, "content", config)
        assert np.abs((made + 1) * 127.5 - image).max() < 1.05


def test_generations_chain(ldm: LatentDiffusion, dataset: MultiDomainDataset) -> None:
    config = dataclasses.replace(CONFIG, sampling=False)
    first = run(ldm, dataset, config)
    second = run(ldm, dataset, config, number=1, current=first.images)
    assert second.number == 1
    for i, record in enumerate(second.lineage):
        assert record["generation"] == 1
        assert record["seed"] != first.lineage[i]["seed"]
        made = (remake(ldm, first.images[i], record, "content", config) + 1) * 127.5
        assert np.abs(made - second.images[i]).max() < 1.05
    raw = run(ldm, dataset, config, number=1)
    assert not np.array_equal(raw.images, second.images)


def test_images_that_are_given_stay_as_they_are(ldm: LatentDiffusion, dataset: MultiDomainDataset) -> None:
    current = np.ascontiguousarray(dataset.images[ROWS])
    run(ldm, dataset, current=current)
    assert np.array_equal(current, dataset.images[ROWS])


def test_sheet_shows_image_candidates_and_fused_image(ldm: LatentDiffusion, dataset: MultiDomainDataset) -> None:
    generation = run(ldm, dataset)
    assert generation.sheet is not None
    assert generation.sheet.shape == (6 * 16, 2 * 5 * 16, 3)
    strips = [generation.sheet[r * 16 : r * 16 + 16, c * 80 : c * 80 + 80] for c in range(2) for r in range(6)]
    for row, image, strip in zip(ROWS, generation.images, strips, strict=True):
        assert np.array_equal(strip[:, :16], dataset.images[row])
        assert np.array_equal(strip[:, 64:], image)
    assert run(ldm, dataset, rows=ROWS[:3]).sheet is None


def test_without_sampling_only_the_first_candidate_is_made(
    ldm: LatentDiffusion, dataset: MultiDomainDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the one that sampling would have had first, at a third of the passes."""
    spent = count_passes(ldm, monkeypatch)
    found = run(ldm, dataset, dataclasses.replace(CONFIG, sampling=False))
    assert sum(spent) == len(ROWS) * CONFIG.steps * 2
    parts = candidates_of(
        ldm, dataset, ROWS, dataset.images[ROWS], CONFIG, number=0, styles=("flat", "ink"), stored=False, progress=False
    )
    made = np.concatenate([images for _, _, images in parts])  # (n, 3, 16, 16, 3)
    assert np.abs(found.images.astype(int) - made[:, 0]).max() <= 1
    assert np.abs(found.images.astype(int) - made[:, 1]).max() > 10
    assert {record["content_candidate"] for record in found.lineage} == {0}
