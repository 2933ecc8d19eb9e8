"""CDGA on a small real case: which translations there are, how batches are drawn from the union, and whole runs."""

from __future__ import annotations

import dataclasses
import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from domainfusion.algorithms.base import Algorithm
from domainfusion.config import AverageConfig, CDGAConfig, DataConfig, GenerateConfig, TrainConfig
from domainfusion.data.transforms import augment
from domainfusion.errors import Interrupted, UsageError
from domainfusion.experiments.runs import train_run
from domainfusion.files import read_json, write_json
from domainfusion.fusion.image_cache import ImageCache
from domainfusion.fusion.translations import Translations
from domainfusion.json_lines import read_json_lines
from domainfusion.seeding import derive_numpy_rng, seed_hash
from domainfusion.training.step import make_batch
from same_run import assert_same_run

Make = Callable[..., Algorithm]


@pytest.fixture
def options(tiny_pipeline: Path) -> dict[str, Any]:
    return {
        "ldm": str(tiny_pipeline), "generate": GenerateConfig(batch_size=64), "data": DataConfig(size=16),
        "cdga": CDGAConfig(candidates=2, steps=1, guidance=1, pictures=False),
    }  # fmt: skip


def test_every_training_image_is_translated_towards_every_source_and_the_target_takes_no_part(
    make_algorithm: Make, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    algorithm = make_algorithm("cdga", target="photo", **options)
    prompts: dict[tuple[int, str], list[str]] = {}
    recipe = Translations.recipe

    def noting(self: Translations, row: int, domain: str) -> Any:
        found = recipe(self, row, domain)
        prompts[row, domain] = found.prompts
        return found

    monkeypatch.setattr(Translations, "recipe", noting)
    algorithm.before_step(0, 0)
    split, dataset = algorithm.context.split, algorithm.context.dataset
    rows = sorted(int(row) for domain in ("cartoon", "sketch") for row in split.train[domain])
    assert set(prompts) == set(itertools.product(rows, ("cartoon", "sketch")))
    for (row, domain), given in prompts.items():
        assert given == [f"{dataset.classes[dataset.labels[row]]}, {domain}"] * 2
        assert "photo" not in " ".join(given)
    assert algorithm.spent["generated_images"] == len(rows) * 2 * 2
    held_out = np.setdiff1d(np.arange(len(dataset)), rows)
    for domain in ("cartoon", "sketch"):
        assert (algorithm.translations.cache(domain).seconds[held_out] == 0).all()


def test_a_batch_is_drawn_from_raw_and_translated_images_as_written_out(
    make_algorithm: Make, options: dict[str, Any]
) -> None:
    algorithm = make_algorithm("cdga", **options)
    algorithm.before_step(0, 0)
    erm = make_algorithm("erm", data=options["data"])
    split, dataset = algorithm.context.split, algorithm.context.dataset
    everything = np.sort(np.concatenate([split.train["cartoon"], split.train["photo"]]))
    for step in range(3):
        raw, found = make_batch(erm, step), make_batch(algorithm, step)
        rng = derive_numpy_rng("cdga batch", 0, step)
        rows, pixels, places = raw.rows.copy(), [], []
        for number, domain in enumerate(("cartoon", "photo")):
            total = len(split.train[domain]) + 2 * len(everything)
            stays = rng.random(6) < len(split.train[domain]) / total
            drawn = rng.integers(0, 2 * len(everything), int((~stays).sum()))
            for place, index in zip(6 * number + np.flatnonzero(~stays), drawn, strict=True):
                rows[place] = everything[index // 2]
                pixels.append(algorithm.translations.cache(domain).images[rows[place], index % 2])
                places.append(place)
        assert places
        views = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 255
        generator = torch.Generator().manual_seed(seed_hash("cdga views", 0, step))
        images = raw.images.clone()
        images[places] = augment(views, options["data"], generator)
        assert found.rows.tolist() == rows.tolist()
        assert found.labels.tolist() == dataset.labels[rows].tolist()
        torch.testing.assert_close(found.images, images)
        assert torch.equal(make_batch(algorithm, step).images, found.images)


def test_the_union_is_sampled_evenly(make_algorithm: Make, options: dict[str, Any]) -> None:
    algorithm = make_algorithm("cdga", batch_size=400, **options)
    algorithm.before_step(0, 0)
    batches = [make_batch(algorithm, step) for step in range(3)]
    drawn = np.concatenate([batch.rows[:400] for batch in batches])  # cartoon's part
    split = algorithm.context.split
    own, others = len(split.train["cartoon"]), len(split.train["photo"])
    # Each of cartoon's images is there raw and in two translations, each of photo's in two translations.
    total = 3 * own + 2 * others
    share = float(np.isin(drawn, split.train["cartoon"]).mean())
    assert share == pytest.approx(3 * own / total, abs=4 * (0.25 / len(drawn)) ** 0.5)
    counts = np.bincount(drawn, minlength=len(algorithm.context.dataset))
    assert (counts[split.train["photo"]] > 0).all()
    assert counts[split.validation["cartoon"]].sum() == counts[split.test].sum() == 0


def test_the_loss_is_the_batchs_cross_entropy(make_algorithm: Make, options: dict[str, Any]) -> None:
    algorithm = make_algorithm("cdga", **options)
    algorithm.before_step(0, 0)
    batch = make_batch(algorithm, 1)
    algorithm.eval()
    with torch.no_grad():
        log_p = algorithm.classifier(batch.images).log_softmax(1)
        terms = algorithm.losses(batch)
    assert terms["raw_loss"].item() == pytest.approx(-log_p[torch.arange(12), batch.labels].mean().item(), rel=1e-5)


def test_prompts_that_would_name_the_target_are_refused_before_anything_is_written(
    shared_images: Path, small_options: Callable[..., TrainConfig], options: dict[str, Any], tmp_path: Path
) -> None:
    options["cdga"] = dataclasses.replace(options["cdga"], domain_words=("photo=a sketch",))
    with pytest.raises(UsageError, match="held-out domain 'sketch'"):
        train_run(str(shared_images), small_options("cdga", **options), tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "config.toml").exists()


def test_prompts_that_would_name_a_second_held_out_domain_are_refused(
    make_algorithm: Make, options: dict[str, Any]
) -> None:
    options["cdga"] = dataclasses.replace(options["cdga"], domain_words=("photo=a cartoon",))
    with pytest.raises(UsageError, match="held-out domain 'cartoon'"):
        make_algorithm("cdga", target="sketch", second_target="cartoon", **options)


def test_a_run_that_was_killed_twice_ends_as_one_that_was_not(
    shared_images: Path, small_options: Callable[..., TrainConfig], options: dict[str, Any], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    config = small_options("cdga", steps=4, evaluations=2, average=AverageConfig(method="ema", decay=0.5), **options)
    whole = train_run(str(shared_images), config, tmp_path / "whole", progress=False)
    monkeypatch.setenv("DOMAINFUSION_CACHE", str(tmp_path / "other"))
    store, stored = ImageCache.store, []

    def die(self: ImageCache, places: np.ndarray, images: np.ndarray, seconds: float) -> None:
        if len(stored) == 1:
            raise KeyboardInterrupt
        store(self, places, images, seconds)
        stored.append(len(places))

    with monkeypatch.context() as patch:
        patch.setattr(ImageCache, "store", die)
        with pytest.raises(KeyboardInterrupt):
            train_run(str(shared_images), config, tmp_path / "parts", progress=False)

    def stop(self: ImageCache, places: np.ndarray, images: np.ndarray, seconds: float) -> None:
        store(self, places, images, seconds)
        stored.append(len(places))
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(ImageCache, "store", stop)
        with pytest.raises(Interrupted):
            train_run(str(shared_images), config, tmp_path / "parts", progress=False)
    with monkeypatch.context() as patch:
        patch.setattr(ImageCache, "store", lambda self, *a: stored.append(len(a[0])) or store(self, *a))
        resumed = train_run(str(shared_images), config, tmp_path / "parts", progress=False)
    assert sum(stored) == 58 * 2  # 29 training images of each source, towards both: none was made twice
    for result in (whole, resumed):
        assert result["costs"].pop("generation_seconds") > 0
        assert result["costs"].pop("making_seconds") > 0
    for folder in ("whole", "parts"):
        path = tmp_path / folder / "result.json"
        result = read_json(path)
        del result["costs"]
        write_json(path, result)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert read_json_lines(tmp_path / "parts" / "results.jsonl")[-1]["args"]["algorithm"] == "CDGA+EMA"
    text = (tmp_path / "parts" / "translations.txt").read_text()
    assert "towards cartoon, photo" in text
    assert str(tmp_path / "other" / "translations") in text
    assert (tmp_path / "parts" / "translations.png").exists()
