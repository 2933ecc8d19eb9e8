"""Translations towards domains: prompts, pairs, the engine, and what runs share."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from domainfusion.config import CDGAConfig, DataConfig, GenerateConfig, TrainConfig
from domainfusion.data.domains import MultiDomainDataset, load_dataset, load_folder
from domainfusion.diffusion.image_to_image import image_to_image
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.errors import UsageError
from domainfusion.files import read_json
from domainfusion.fusion import candidates as engine
from domainfusion.fusion.translations import Translations, domain_words, refuse_target, sheet
from domainfusion.seeding import seed_hash


@pytest.fixture
def dataset(image_folder: Path) -> MultiDomainDataset:
    return load_folder(image_folder, DataConfig(size=16))


@pytest.fixture
def config(tiny_pipeline: Path) -> TrainConfig:
    return TrainConfig(
        ldm=str(tiny_pipeline), precision="float32", device="cpu", data=DataConfig(size=16),
        generate=GenerateConfig(batch_size=8), cdga=CDGAConfig(candidates=2, steps=3, strength=(0.3, 0.8)),
    )  # fmt: skip


def build(dataset: MultiDomainDataset, config: TrainConfig) -> Translations:
    return Translations(
        dataset, config, lambda: LatentDiffusion.load(config.ldm, precision="float32"), torch.float32
    )  # fmt: skip


def count_made(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A list to which each call of the engine adds its prompts."""
    calls: list[list[str]] = []

    def counting(ldm: LatentDiffusion, images: torch.Tensor, prompts: list[str], *args: object, **options: object):
        calls.append(list(prompts))
        return image_to_image(ldm, images, prompts, *args, **options)

    monkeypatch.setattr(engine, "image_to_image", counting)
    return calls


def test_each_image_and_domain_has_the_candidates_that_the_engine_makes(
    dataset: MultiDomainDataset, config: TrainConfig
) -> None:
    rows, own = np.array([3, 40, 70, 107]), config.cdga
    translations = build(dataset, config)
    assert translations.make(rows, ["cartoon", "photo"], progress=False) == 4 * 2 * 2
    ldm = LatentDiffusion.load(config.ldm, precision="float32")
    for domain in ("cartoon", "photo"):
        cache = translations.cache(domain)
        assert (cache.seconds > 0).nonzero()[0].tolist() == rows.tolist()
        for row in rows:
            label = ["cat", "dog", "house"][(row % 36) // 12]
            recipe = translations.recipe(int(row), domain)
            assert recipe.prompts == [f"{label}, {domain}"] * 2
            assert ((recipe.strengths >= 0.3) & (recipe.strengths <= 0.8)).all()
            seed = seed_hash("translations", own.seed, domain, int(row))
            noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
            x = torch.from_numpy(dataset.images[[row]]).permute(0, 3, 1, 2) / 127.5 - 1
            for j in range(2):
                one = image_to_image(
                    ldm, x, [f"{label}, {domain}"], recipe.strengths[j].view(1, 1), noise=noise[j : j + 1], steps=3,
                    guidance_scale=3.0,
                )  # fmt: skip
                expected = ((one[0, 0].permute(1, 2, 0) + 1) * 127.5).numpy()
                assert np.abs(cache.images[row, j] - expected).max() <= 0.52
    strengths = [float(translations.recipe(i, d).strengths[j]) for i in range(9) for d in ("cartoon", "photo")
                 for j in range(2)]  # fmt: skip
    assert len(set(strengths)) > 30


def test_targets_share_and_what_makes_translations_differ_does_not(
    dataset: MultiDomainDataset, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = count_made(monkeypatch)

    def made(dataset: MultiDomainDataset = dataset, domains: tuple[str, ...] = ("photo",), **changes: object) -> int:
        calls.clear()
        outer = {name: changes.pop(name) for name in list(changes) if name in ("seed", "lr", "batch_size", "target")}
        inner = {name: changes.pop(name) for name in list(changes) if hasattr(config.cdga, name)}
        found = dataclasses.replace(
            config, **outer, cdga=dataclasses.replace(config.cdga, **inner),
            generate=dataclasses.replace(config.generate, **changes),
        )  # fmt: skip
        build(dataset, found).make(np.array([5, 70]), domains, progress=False)
        return sum(map(len, calls))

    assert made() == 4
    assert made() == 0
    assert made(domains=("photo", "sketch")) == 4  # towards photo they are there
    assert made(target="cartoon", seed=9, lr=0.5, batch_size=3, pictures=False) == 0
    assert made(domain_words=("cartoon=a drawing",)) == 0  # does not concern photo
    for changes in (
        {"candidates": 3}, {"strength": (0.3, 0.7)}, {"steps": 2}, {"guidance": 2.0}, {"template": "{domain} {label}"},
        {"domain_words": ("photo=a photograph",)}, {"image_size": 24}, {"solver": "ddim"},
        {"dataset": dataclasses.replace(dataset, fingerprint="other")},
        {"dataset": dataclasses.replace(dataset, class_words=("a", "b", "c"))},
    ):  # fmt: skip
        assert made(**changes) > 0, changes
    calls.clear()
    seeded = dataclasses.replace(config, cdga=dataclasses.replace(config.cdga, seed=1))
    build(dataset, seeded).make(np.array([5]), ["photo"], progress=False)
    assert calls
    half = Translations(dataset, config, lambda: None, torch.bfloat16)
    assert half.cache("photo").missing(np.array([5])).tolist() == [5]


def test_they_can_be_looked_at_as_a_data_set(dataset: MultiDomainDataset, config: TrainConfig) -> None:
    translations = build(dataset, config)
    translations.make(np.arange(0, 108, 12), ["cartoon", "sketch"], progress=False)
    pictures = translations.folder / "pictures"
    seen = load_dataset(str(pictures), DataConfig(size=16))
    assert seen.domains == ("cartoon", "sketch")
    assert np.bincount(seen.labels).tolist() == [12, 12, 12]
    with Image.open(pictures / "sketch" / "dog" / "photo-000048-1.png") as image:
        assert np.array_equal(np.asarray(image), translations.cache("sketch").images[48, 1])
    assert read_json(translations.folder / "about.json")["cdga"]["template"] == "{label}, {domain}"
    quiet = dataclasses.replace(config, cdga=dataclasses.replace(config.cdga, pictures=False, seed=4))
    without = build(dataset, quiet)
    without.make(np.array([0]), ["photo"], progress=False)
    assert not (without.folder / "pictures").exists()


def test_words_of_domains() -> None:
    domains = ["Real World", "art_painting", "location_38"]
    config = CDGAConfig(domain_words=("location_38=a camera = trap",))
    assert domain_words(domains, config) == {
        "Real World": "Real World", "art_painting": "art painting", "location_38": "a camera = trap",
    }  # fmt: skip
    with pytest.raises(UsageError, match=r"foto=.*there is no such domain; domains: Real World"):
        domain_words(domains, CDGAConfig(domain_words=("foto=x",)))


@pytest.mark.parametrize(
    ("words", "target", "named"),
    [
        ({"Art": "Art", "Clipart": "Clipart"}, "Art", False),  # a part of another word names nothing
        ({"location_38": "location 38", "location_43": "location 43"}, "location_38", False),
        ({"sketch": "sketch", "photo": "a pencil Sketch"}, "sketch", True),
        ({"sketch": "scribble", "photo": "scribble-like"}, "sketch", True),  # the target's own words
        ({"art_painting": "art painting", "photo": "an art: painting"}, "art_painting", True),
        ({"sketch": "sketch", "photo": "photo"}, None, False),
    ],
)
def test_prompts_that_name_the_target_are_refused(words: dict[str, str], target: str | None, named: bool) -> None:
    sources = [domain for domain in words if domain != target]
    if named:
        with pytest.raises(UsageError, match=rf"would name the held-out domain '{target}'"):
            refuse_target(words, sources, target, "{label}, {domain}")
    else:
        refuse_target(words, sources, target, "{label}, {domain}")


def test_a_template_that_names_the_target_is_refused() -> None:
    with pytest.raises(UsageError, match="held-out domain 'sketch'"):
        refuse_target({"sketch": "sketch", "photo": "photo"}, ["photo"], "sketch", "{domain} or sketch of {label}")


def test_a_sheet_has_its_images_where_they_belong() -> None:
    images = np.random.default_rng(0).integers(0, 255, (3, 4, 4, 3), dtype=np.uint8)
    found = sheet([[images[0], images[1]], [images[2]]])
    assert found.shape == (10, 10, 3)
    assert np.array_equal(found[:4, 6:], images[1])
    assert np.array_equal(found[6:, :4], images[2])
    assert (found[6:, 6:] == 255).all()
