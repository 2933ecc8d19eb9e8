"""The generations of a DomainFusion run: when they are made, of which images, with which prompts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from counting import count_images_read
from domainfusion.algorithms.domainfusion import DomainFusion
from domainfusion.config import GenerateConfig
from domainfusion.files import cache_folder
from domainfusion.fusion.candidates import Making, candidates_of
from domainfusion.fusion.generation import make_generation
from domainfusion.fusion.synthetic import Generation, SyntheticDataset
from domainfusion.training.step import make_batch
from domainfusion_runs import MakeConfig, build, load


@pytest.mark.parametrize(("interval", "generations"), [(5, 0), (1, 0), (5, 2), (3, 1)])
def test_generations_are_due_where_algorithm_1_makes_them(
    few_images: Path, make_config: MakeConfig, tmp_path: Path, interval: int, generations: int
) -> None:
    generate = GenerateConfig(interval=interval, generations=generations, until=1.0)
    epoch = build(few_images, make_config(generate=generate), tmp_path).context.steps_per_epoch
    algorithm = build(few_images, make_config(generate=generate, steps=120 * epoch), tmp_path)
    made = 0
    for i in range(1, 121):  # lines 2 and 4: for i ← 1 to N_e, if i % Itv == 0
        if i % interval == 0 and (made < generations or not generations):
            made += 1
        for step in ((i - 1) * epoch, i * epoch - 1):  # the first and the last step of epoch i
            assert algorithm.generations_due(step) == made
    assert made == (generations or 120 // interval)


@pytest.mark.parametrize("steps", [15, 40, 400])
def test_short_runs_have_generations_too_and_none_at_their_very_end(
    few_images: Path, make_config: MakeConfig, tmp_path: Path, steps: int
) -> None:
    algorithm = build(few_images, make_config(generate=GenerateConfig(interval=5), steps=steps), tmp_path)
    due = [algorithm.generations_due(step) for step in range(steps)]
    assert due == sorted(due)
    if steps < 20 * algorithm.context.steps_per_epoch:
        assert [due.count(number) for number in range(4)] == [2, 4, 5, 4]  # due at 1.5, 6 and 10.5 of 15 steps
    assert due[-1] >= 1
    assert due[int(0.9 * steps)] == due[-1]


def test_before_the_first_generation_the_synthetic_images_are_the_stored_ones(
    few_images: Path, make_config: MakeConfig, tmp_path: Path
) -> None:
    generate = GenerateConfig(candidates=2, steps=2, interval=2, recombination=False)
    algorithm = build(few_images, make_config(distill_weight=0.0, synthetic_share=1.0, generate=generate), tmp_path)
    algorithm.before_step(0, 0)
    assert algorithm.synthetic.count == 0
    batch = make_batch(algorithm, 0)
    stored = algorithm.context.dataset.images[batch.rows]
    assert np.array_equal(algorithm.synthetic_images(batch.rows, np.random.default_rng(0)), stored)
    assert set(algorithm.losses(batch)) == {"raw_loss", "synthetic_loss"}
    algorithm.before_step(1, 1)
    synthetic = {int(row): image for row, image in zip(*load(tmp_path, 0), strict=True)}
    assert np.array_equal(
        algorithm.synthetic_images(batch.rows, np.random.default_rng(0)),
        np.stack([synthetic[int(r)] for r in batch.rows]),
    )
    assert not np.array_equal(algorithm.synthetic_images(batch.rows, np.random.default_rng(0)), stored)


def generate_three(algorithm: DomainFusion) -> list[Generation]:
    made = []
    for epoch in (0, 1, 2):
        algorithm.before_step(epoch, epoch)
        algorithm.before_step(epoch, epoch)  # once an epoch is enough
        assert algorithm.synthetic.count == epoch + 1
        assert algorithm.synthetic.latest is not None
        made.append(algorithm.synthetic.latest)
    return made


def test_recombination_draws_content_and_style_from_all_candidates_so_far(
    few_images: Path, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = GenerateConfig(candidates=2, steps=2, interval=1)
    algorithm = build(few_images, make_config(distill_weight=0.0, generate=generate), tmp_path)
    made = generate_three(algorithm)[:2]
    algorithm.synthetic.rewind(2)
    dataset = algorithm.context.dataset
    stored = np.ascontiguousarray(dataset.images[algorithm.rows])
    candidates = np.stack(
        [
            np.concatenate([
                part for _, _, part in candidates_of(
                    algorithm.ldm, dataset, algorithm.rows, stored, generate, number=number, styles=algorithm.styles,
                    stored=False, progress=False,
                )
            ])
            for number in range(2)
        ], 1,
    ).reshape(len(stored), 4, *stored.shape[1:]).astype(float)  # fmt: skip
    rows = np.repeat(algorithm.rows, 40)
    found = algorithm.synthetic_images(rows, np.random.default_rng(5)).numpy()
    pairs = np.zeros((4, 4), dtype=int)
    for row, image in zip(rows, found.astype(float), strict=True):
        of = candidates[algorithm.position[int(row)]]
        mean, std = of.mean((1, 2)), np.sqrt(of.var((1, 2)) + 1e-5 * 127.5**2)
        fused = [[(of[i] - mean[i]) / std[i] * std[j] + mean[j] for j in range(4)] for i in range(4)]
        error = np.abs(np.clip(fused, 0, 255) - image).max((2, 3, 4))
        assert error.min() < 2  # candidates made in another batch differ by a rounding step
        pairs[np.unravel_index(error.argmin(), (4, 4))] += 1
    assert pairs.min() > len(rows) / 16 - 4 * (len(rows) / 16) ** 0.5  # each of the sixteen as often as the others
    assert np.array_equal(algorithm.synthetic_images(rows, np.random.default_rng(5)), found)

    # A resumed run draws the same; candidates that were cleared away meanwhile are made again, before the step.
    for path in (cache_folder() / "candidates").iterdir():
        path.unlink()
    again = build(few_images, algorithm.config, tmp_path)
    again.before_step(1, 1)
    monkeypatch.setattr(Making, "make", lambda *_: pytest.fail("candidates were made within a step"))
    again.synthetic.rewind(2)
    assert np.abs(again.synthetic_images(rows, np.random.default_rng(5)).numpy().astype(int) - found).max() <= 2

    for other in ({"recombination": False}, {"updating": True}):
        config = make_config(distill_weight=0.0, generate=dataclasses.replace(generate, **other))
        plain = build(few_images, config, tmp_path)
        plain.synthetic.rewind(2)
        assert np.array_equal(plain.synthetic_images(plain.rows, np.random.default_rng(5)), made[1].images)


@pytest.mark.parametrize("updating", [True, False])
def test_few_images_are_in_memory_at_once(
    few_images: Path, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, updating: bool
) -> None:
    """Of stored images as of a generation's, which is written to disk as it is made."""
    generate = GenerateConfig(candidates=2, steps=2, interval=1, updating=updating, batch_size=1, worker="off")
    algorithm = build(few_images, make_config(distill_weight=0.0, generate=generate), tmp_path)
    add, files = SyntheticDataset.add, []

    def noted(self: SyntheticDataset, generation: Generation, *rest: object) -> None:
        assert isinstance(generation.images, np.memmap)
        files.append(generation.images.filename)
        add(self, generation, *rest)

    monkeypatch.setattr(SyntheticDataset, "add", noted)
    read = count_images_read(monkeypatch)
    made = generate_three(algorithm)
    assert max(read) == 2
    assert [Path(file).parent.name for file in files] == [f".generation-{number:02d}.tmp" for number in range(3)]
    for generation in made:
        assert isinstance(generation.images, np.memmap)
        assert np.array_equal(generation.images, load(tmp_path, generation.number)[1])


@pytest.mark.parametrize("updating", [True, False])
def test_updating_chains_generations_and_otherwise_each_starts_from_raw(
    few_images: Path, make_config: MakeConfig, tmp_path: Path, updating: bool
) -> None:
    generate = GenerateConfig(candidates=2, steps=2, interval=1, updating=updating)
    algorithm = build(few_images, make_config(generate=generate), tmp_path)
    made = generate_three(algorithm)
    dataset = algorithm.context.dataset
    rows = np.sort(np.concatenate([algorithm.context.split.train[d] for d in ("cartoon", "photo")]))
    raw = np.ascontiguousarray(dataset.images[rows])
    for number in (1, 2):
        expected = make_generation(
            algorithm.ldm, dataset, rows, made[number - 1].images if updating else raw, algorithm.judge, generate,
            number=number, styles=("flat", "ink"), stored=False, progress=False,
        )  # fmt: skip
        assert np.array_equal(made[number].images, expected.images)
        assert made[number].lineage == expected.lineage
    assert algorithm.costs()["generated_images"] == 3 * 2 * len(rows)


def test_no_style_names_a_domain_that_is_held_out(
    make_image_folder: Callable[..., Path], make_config: MakeConfig, tmp_path: Path
) -> None:
    data = make_image_folder("styled", domains=("flat", "ink", "photo"), count=2)
    left = {}
    for first, second in (("ink", None), ("ink", "flat"), ("flat", "photo")):
        config = make_config(target=first, second_target=second, distill_weight=0.0)
        left[first, second] = build(data, config, tmp_path / f"{first}-{second}").styles
    assert left == {("ink", None): ("flat",), ("ink", "flat"): (), ("flat", "photo"): ("ink",)}


def test_only_training_images_of_the_sources_are_generated(
    few_images: Path, make_config: MakeConfig, tmp_path: Path
) -> None:
    algorithm = build(few_images, make_config(), tmp_path)
    algorithm.before_step(0, 0)
    split = algorithm.context.split
    rows = set(load(tmp_path, 0)[0].tolist())
    assert rows == {int(row) for part in split.train.values() for row in part}
    assert not rows & set(split.test.tolist())
    assert not rows & {int(row) for part in split.validation.values() for row in part}


def test_prompts_never_name_the_target(few_images: Path, make_config: MakeConfig, tmp_path: Path) -> None:
    folder = few_images.rename(few_images.with_name("inked"))
    (folder / "sketch").rename(folder / "ink")
    algorithm = build(folder, make_config(target="ink"), tmp_path)
    algorithm.before_step(0, 0)
    assert algorithm.synthetic.latest is not None
    for record in algorithm.synthetic.latest.lineage:
        assert record["content_prompt"].endswith(", flat")
        assert record["style_prompt"].endswith(", flat")


def test_judge_is_the_classifier_at_rest(few_images: Path, make_config: MakeConfig, tmp_path: Path) -> None:
    algorithm = build(few_images, make_config(), tmp_path).train()
    images = torch.rand(300, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(300) % 3
    before = {name: value.clone() for name, value in algorithm.state_dict().items()}
    features, confidence = algorithm.judge(images, labels)
    assert algorithm.classifier.training
    assert all(torch.equal(before[name], value) for name, value in algorithm.state_dict().items())
    algorithm.eval()
    with torch.no_grad():
        for i in (0, 255, 256, 299):
            feature = algorithm.classifier.features(images[i : i + 1])[0]
            torch.testing.assert_close(features[i], feature, rtol=1e-4, atol=1e-5)
            expected = algorithm.classifier(images[i : i + 1]).softmax(1)[0, labels[i]]
            torch.testing.assert_close(confidence[i], expected, rtol=1e-4, atol=1e-6)
