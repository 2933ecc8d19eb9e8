"""Recipes, candidates and the cache that runs share."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from domainfusion.config import DataConfig, GenerateConfig
from domainfusion.data.domains import MultiDomainDataset, load_folder
from domainfusion.diffusion.image_to_image import image_to_image
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.fusion import candidates as module
from domainfusion.fusion.candidate_cache import CandidateCache, cache_path, cached_rows
from domainfusion.fusion.candidates import Recipe, candidates_of, from_uint8, recipes_of, to_uint8

CONFIG = GenerateConfig(candidates=2, steps=3, batch_size=4)
STYLES = ("flat", "ink")


def run(
    ldm: LatentDiffusion, dataset: MultiDomainDataset, rows: list[int], config: GenerateConfig = CONFIG,
    *, number: int = 0, styles: tuple[str, ...] = STYLES, stored: bool = True,
) -> np.ndarray:  # fmt: skip
    found = candidates_of(
        ldm, dataset, np.array(rows), np.ascontiguousarray(dataset.images[rows]), config, number=number, styles=styles,
        stored=stored, progress=False,
    )  # fmt: skip
    return np.concatenate([made for _, _, made in found])


def count_denoised(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list to which each call of `image_to_image` adds how many images it was given."""
    calls: list[int] = []

    def counting(ldm: LatentDiffusion, images: torch.Tensor, *args: object, **options: object) -> torch.Tensor:
        calls.append(len(images))
        return image_to_image(ldm, images, *args, **options)

    monkeypatch.setattr(module, "image_to_image", counting)
    return calls


def recipe(dataset: MultiDomainDataset, row: int, config: GenerateConfig, number: int) -> Recipe:
    return recipes_of(dataset, np.array([row]), config, number, STYLES)[0]


def test_a_recipe_is_a_function_of_seed_generation_image_and_class(dataset: MultiDomainDataset) -> None:
    config = GenerateConfig(candidates=40, strength=(0.3, 0.6))
    first = recipe(dataset, 17, config, 1)
    again = recipe(dataset, 17, config, 1)
    assert first.prompts == again.prompts
    assert torch.equal(first.strengths, again.strengths)
    assert first.seed == again.seed
    assert first.strengths.tolist() == [float(first.strengths[0])] * 40  # one for all candidates of an image
    drawn = torch.stack([recipe(dataset, row, config, 1).strengths[0] for row in range(18)])
    assert ((drawn >= 0.3) & (drawn <= 0.6)).all()
    assert drawn.max() - drawn.min() > 0.2
    word = dataset.words()[dataset.labels[17]]
    assert set(first.prompts) == {f"{word}, flat", f"{word}, ink"}
    for other in (
        recipe(dataset, 18, config, 1), recipe(dataset, 17, config, 2),
        recipe(dataset, 17, dataclasses.replace(config, seed=1), 1),
        recipe(dataclasses.replace(dataset, labels=(dataset.labels + 1) % 3), 17, config, 1),
    ):  # fmt: skip
        assert other.seed != first.seed
        assert not torch.equal(other.strengths, first.strengths)
    part = dataclasses.replace(dataset, images=dataset.images[[40, 17]], labels=dataset.labels[[40, 17]])
    there = recipe(part, 1, config, 1)
    assert (there.prompts, there.seed) == (first.prompts, first.seed)
    assert torch.equal(there.strengths, first.strengths)


def test_pixels_survive_the_round_trip() -> None:
    images = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    floats = from_uint8(images)
    assert floats.shape == (1, 3, 16, 16)
    assert (floats.min(), floats.max()) == (-1, 1)
    assert np.array_equal(to_uint8(floats), images)
    assert np.array_equal(to_uint8(floats * 1.5), np.clip(np.round((images / 127.5 - 1) * 191.25 + 127.5), 0, 255))


def test_of_a_file_that_was_deleted_to_free_space_nothing_is_there(dataset: MultiDomainDataset, cache: Path) -> None:
    path = cache / "candidates" / "key.npy"
    made = np.ones((1, 2, 16, 16, 3), dtype=np.uint8)
    CandidateCache(path, dataset, CONFIG).store(np.array([3]), made, np.array([7]))
    assert cached_rows(path, len(dataset)).nonzero()[0].tolist() == [3]
    path.unlink()
    assert not CandidateCache(path, dataset, CONFIG).done.any()
    assert not cached_rows(path, len(dataset)).any()


def test_candidates_are_image_to_image_from_their_recipes(ldm: LatentDiffusion, dataset: MultiDomainDataset) -> None:
    rows = [3, 40, 90]
    made = run(ldm, dataset, rows, stored=False)
    assert made.shape == (3, 2, 16, 16, 3)
    for i, row in enumerate(rows):
        item = recipe(dataset, row, CONFIG, 0)
        noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(item.seed))
        for j in range(2):
            x = torch.from_numpy(dataset.images[[row]]).permute(0, 3, 1, 2) / 127.5 - 1
            one = image_to_image(
                ldm, x, [item.prompts[j]], item.strengths[j].view(1, 1), noise=noise[j : j + 1], steps=3,
                guidance_scale=CONFIG.guidance,
            )  # fmt: skip
            expected = ((one[0, 0].permute(1, 2, 0) + 1) * 127.5).numpy()
            assert np.abs(made[i, j] - expected).max() <= 0.51


def test_other_sizes_are_resized_to_the_ldm_and_back(ldm: LatentDiffusion, image_folder: Path) -> None:
    large = load_folder(image_folder, DataConfig(size=40))
    assert run(ldm, large, [0, 50], stored=False).shape == (2, 2, 40, 40, 3)
    larger = dataclasses.replace(CONFIG, image_size=24)
    assert run(ldm, large, [0, 50], larger, stored=False).shape == (2, 2, 40, 40, 3)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_independent_of_batch_size_and_order(
    ldm: LatentDiffusion, dataset: MultiDomainDataset, batch_size: int
) -> None:
    rows = [0, 1, 30, 60, 61, 62, 63, 64, 65, 100]
    expected = run(ldm, dataset, rows, stored=False).astype(int)
    found = run(ldm, dataset, rows[::-1], dataclasses.replace(CONFIG, batch_size=batch_size), stored=False)
    # Sums in another order may turn a rounding: one level, in few pixels.
    difference = np.abs(found[::-1].astype(int) - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3


def test_runs_share_candidates_of_stored_images(
    ldm: LatentDiffusion, dataset: MultiDomainDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = count_denoised(monkeypatch)
    first = run(ldm, dataset, [5, 9, 70])
    assert sum(calls) == 3
    calls.clear()
    assert np.array_equal(run(ldm, dataset, [70, 5]), first[[2, 0]])
    assert calls == []
    second = run(ldm, dataset, [9, 11, 70, 12])  # another split: only what is missing is made
    assert sum(calls) == 2
    assert np.array_equal(second[[0, 2]], first[[1, 2]])
    calls.clear()
    choosing = dataclasses.replace(CONFIG, content_weight=0.9, sampling=False, interval=2, batch_size=1)
    run(ldm, dataset, [5, 9], choosing)  # options that do not shape candidates
    assert calls == []


def test_fewer_candidates_are_the_first_of_more(
    ldm: LatentDiffusion, dataset: MultiDomainDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = count_denoised(monkeypatch)
    alone = run(ldm, dataset, [5, 9, 70], dataclasses.replace(CONFIG, candidates=1), number=1)
    run(ldm, dataset, [5, 9, 70], dataclasses.replace(CONFIG, candidates=4))
    calls.clear()
    fewer = run(ldm, dataset, [5, 70, 9], dataclasses.replace(CONFIG, candidates=1))
    assert calls == []  # taken from the cache of four
    made = run(ldm, dataset, [5, 70, 9], dataclasses.replace(CONFIG, candidates=1), stored=False)
    assert np.abs(fewer.astype(int) - made.astype(int)).max() <= 1
    # Another generation, and rows that nobody has made, are made; nothing that is there is taken again.
    calls.clear()
    assert np.array_equal(run(ldm, dataset, [5, 9, 70], dataclasses.replace(CONFIG, candidates=1), number=1), alone)
    run(ldm, dataset, [5, 11], dataclasses.replace(CONFIG, candidates=1))
    assert sum(calls) == 1


def test_damaged_candidates_are_not_lent(
    ldm: LatentDiffusion, dataset: MultiDomainDataset, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run(ldm, dataset, [5, 9])
    cache = CandidateCache(cache_path(ldm, dataset, CONFIG, 0, STYLES), dataset, CONFIG)
    cache.images[9, 0, 3, 3] ^= 64
    calls = count_denoised(monkeypatch)
    one = dataclasses.replace(CONFIG, candidates=1)
    fewer = run(ldm, dataset, [5, 9], one)
    assert sum(calls) == 1
    assert "candidates of image 9 are damaged" in capsys.readouterr().err
    assert np.abs(fewer.astype(int) - run(ldm, dataset, [5, 9], one, stored=False).astype(int)).max() <= 1


def test_candidates_that_begin_with_others_are_not_lent(
    ldm: LatentDiffusion, dataset: MultiDomainDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch draws short tensors in another order than long ones: the first of two is not the one drawn alone."""
    run(ldm, dataset, [5])
    drawn = module.noise_of

    def otherwise(ldm: LatentDiffusion, item: module.Recipe, config: GenerateConfig) -> torch.Tensor:
        return drawn(ldm, item, config).flip(0)

    monkeypatch.setattr(module, "noise_of", otherwise)
    calls = count_denoised(monkeypatch)
    run(ldm, dataset, [5], dataclasses.replace(CONFIG, candidates=1))
    assert sum(calls) == 1


def test_the_cache_tells_apart_what_makes_candidates_differ(
    ldm: LatentDiffusion, dataset: MultiDomainDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = count_denoised(monkeypatch)

    def made(**options: object) -> bool:
        calls.clear()
        run(options.pop("ldm", ldm), options.pop("dataset", dataset), [5], **options)
        return bool(calls)

    assert made()
    assert not made()
    for name, value in {
        "seed": 1, "candidates": 3, "strength": (0.5, 0.7), "steps": 2, "guidance": 2.0, "style_words": False,
        "template": "{label} {style}", "plain_template": "a {label}", "image_size": 24,
    }.items():  # fmt: skip
        assert made(config=dataclasses.replace(CONFIG, **{name: value})), name
    assert made(number=1)
    assert made(styles=("ink",))
    assert made(dataset=dataclasses.replace(dataset, images=255 - np.array(dataset.images), fingerprint="other"))
    assert made(dataset=dataclasses.replace(dataset, class_words=("a", "b", "c")))
    next(ldm.unet.parameters()).mul_(1.01)
    assert made()


def test_candidates_of_synthetic_images_are_not_shared(
    ldm: LatentDiffusion, dataset: MultiDomainDataset, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    calls = count_denoised(monkeypatch)
    run(ldm, dataset, [5], stored=False)
    run(ldm, dataset, [5], stored=False)
    assert sum(calls) == 2
    assert not (cache / "candidates").exists()


def test_a_row_counts_only_when_it_was_stored(ldm: LatentDiffusion, dataset: MultiDomainDataset) -> None:
    cache = CandidateCache(cache_path(ldm, dataset, CONFIG, 0, STYLES), dataset, CONFIG)
    assert not cache.done.any()
    made = np.full((2, 2, 16, 16, 3), 7, dtype=np.uint8)
    cache.store(np.array([4, 8]), made, np.array([1, 2]))
    again = CandidateCache(cache_path(ldm, dataset, CONFIG, 0, STYLES), dataset, CONFIG)
    assert np.flatnonzero(again.done).tolist() == [4, 8]
    assert (again.images[[4, 8]] == 7).all()


@pytest.mark.parametrize("damage", ["pixel", "truncated", "empty", "other", "flags"])
def test_damaged_candidates_are_named_and_made_again(
    ldm: LatentDiffusion, dataset: MultiDomainDataset, cache: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    rows = [5, 9, 70]
    expected = run(ldm, dataset, rows)
    (path,) = [path for path in cache.glob("candidates/*.npy") if path.name.count(".") == 1]
    content = bytearray(path.read_bytes())
    header = len(content) - len(dataset) * 2 * 16 * 16 * 3
    if damage == "pixel":
        content[header + 9 * 2 * 16 * 16 * 3 + 17] ^= 8  # of row 9
    if damage == "flags":
        path.with_suffix(".done.npy").write_bytes(b"none")
    else:
        middle = header + 9 * 2 * 16 * 16 * 3 + 100
        path.write_bytes({"pixel": content, "truncated": content[:middle], "empty": b"", "other": content[:20]}[damage])
    assert np.array_equal(run(ldm, dataset, rows), expected)
    said = capsys.readouterr().err
    rows_alone = damage in ("pixel", "truncated")  # numpy fills up what is cut off, and the checksums do not fit
    assert ("the candidates of image 9 are damaged" if rows_alone else "is damaged") in said
    assert said.count("damaged (") == (0 if rows_alone else 1)
    assert np.array_equal(run(ldm, dataset, rows), expected)
    assert capsys.readouterr().err == ""


def test_candidates_that_an_older_version_kept_get_their_checksums(
    ldm: LatentDiffusion, dataset: MultiDomainDataset, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(ldm, dataset, [5, 9])
    (sums,) = cache.glob("candidates/*.sums.npy")
    kept = np.load(sums)
    sums.unlink()
    calls = count_denoised(monkeypatch)
    assert np.array_equal(run(ldm, dataset, [5, 9]), expected)
    assert calls == []
    assert np.array_equal(np.load(sums), kept)


def test_without_memory_for_a_batch_it_is_halved(
    ldm: LatentDiffusion, dataset: MultiDomainDataset, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    expected = run(ldm, dataset, [0, 1, 30], stored=False).astype(int)
    sizes: list[int] = []

    def narrow(*arguments: object, batch_size: int, **options: object) -> torch.Tensor:
        sizes.append(batch_size)
        if batch_size > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return image_to_image(*arguments, batch_size=batch_size, **options)

    monkeypatch.setattr(module, "image_to_image", narrow)
    found = run(ldm, dataset, [0, 1, 30, 60, 61, 62, 63, 64, 65], stored=False)
    assert sizes == [4, 2, 1, 1]  # what did not fit is not tried again
    assert np.abs(found[:3].astype(int) - expected).max() <= 1
    assert "out of memory in the making of candidates (--generate.batch-size): 1 at once" in capsys.readouterr().err
