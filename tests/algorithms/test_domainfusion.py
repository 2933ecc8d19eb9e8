"""DomainFusion on real small parts: its terms against Algorithm 1 written out, its schedule, and resuming."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from domainfusion.algorithms.base import Algorithm, Batch, Context
from domainfusion.algorithms.domainfusion import DomainFusion
from domainfusion.algorithms.erm import ERM
from domainfusion.config import DistillConfig, GenerateConfig
from domainfusion.data.transforms import augment
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.distillation.curves import Curves
from domainfusion.distillation.slopes import draw
from domainfusion.errors import LDMError
from domainfusion.experiments.runs import build_algorithm, build_context, train_run
from domainfusion.seeding import derive_numpy_rng, seed_hash
from domainfusion.tensors import load_state
from domainfusion.training.step import make_batch
from domainfusion.training.trainer import train
from domainfusion_runs import MakeConfig, build, load


def flat_gradient(loss: torch.Tensor, module: torch.nn.Module) -> torch.Tensor:
    grads = torch.autograd.grad(loss, list(module.parameters()), retain_graph=True, allow_unused=True)
    return torch.cat([g.flatten() for g in grads if g is not None])


# Without an LDM


def test_without_distillation_and_synthesis_it_is_erm_and_loads_no_ldm(
    few_images: Path, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("an LDM was loaded")

    monkeypatch.setattr(LatentDiffusion, "load", fail)
    config = make_config(distill_weight=0.0, synthetic_weight=0.0)
    runs: list[tuple[list[float], Algorithm]] = []
    for name, kind in (("domainfusion", DomainFusion), ("erm", ERM)):
        config = dataclasses.replace(config, algorithm=name)
        algorithm = build_algorithm(build_context(str(few_images), config, tmp_path / name, progress=False))
        assert type(algorithm) is kind
        losses: list[float] = []
        compute = algorithm.losses

        def recording(
            batch: object, compute: Callable[..., Any] = compute, losses: list[float] = losses
        ) -> dict[str, torch.Tensor]:
            terms = compute(batch)
            assert list(terms) == ["raw_loss"]
            losses.append(terms["raw_loss"].item())
            return terms

        monkeypatch.setattr(algorithm, "losses", recording)
        train(algorithm)
        runs.append((losses, algorithm))
    (ours, first), (theirs, second) = runs
    assert len(ours) == 4
    assert ours == theirs
    for (name, a), (_, b) in zip(first.state_dict().items(), second.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    assert not (tmp_path / "domainfusion" / "synthetic").exists()


@pytest.mark.parametrize("weights", [{"distill_weight": 0.0}, {"synthetic_weight": 0.0}])
def test_either_term_needs_the_ldm(
    few_images: Path, make_config: MakeConfig, tmp_path: Path, weights: dict[str, float]
) -> None:
    with pytest.raises(LDMError, match="there is no folder"):
        build(few_images, make_config(ldm=str(tmp_path / "nowhere"), **weights), tmp_path / "run")


# The terms of the loss


def test_terms_are_algorithm_1_written_out(
    few_images: Path, make_config: MakeConfig, tmp_path: Path, tiny_pipeline: Path
) -> None:
    """Values of the cross-entropies, and the gradient of LD by back-propagation through everything (Algorithm 2)."""
    config = make_config(
        raw_weight=0.8, distill_weight=0.3, synthetic_weight=0.6, synthetic_share=0.5,
        distill=DistillConfig(estimator="autograd", samples=2, images_per_step=0, confidence_floor=0.0),
    )  # fmt: skip
    config = dataclasses.replace(config, generate=dataclasses.replace(config.generate, recombination=False))
    algorithm = build(few_images, config, tmp_path / "run")
    algorithm.before_step(0, 0)
    algorithm.train()
    batch = make_batch(algorithm, 0)
    twin = build(few_images, config, tmp_path / "twin").train()
    terms = algorithm.losses(batch)
    assert list(terms) == ["raw_loss", "distill_loss", "synthetic_loss"]

    dataset = algorithm.context.dataset
    synthetic = {int(row): image for row, image in zip(*load(tmp_path / "run", 0), strict=True)}
    rows = derive_numpy_rng("synthetic", 0, 0).choice(batch.rows, len(batch.rows) // 2, replace=False)
    views = augment(
        torch.from_numpy(np.stack([synthetic[int(row)] for row in rows])).permute(0, 3, 1, 2) / 255, config.data,
        torch.Generator().manual_seed(seed_hash("synthetic views", 0, 0)),
    )  # fmt: skip
    logits = twin.classifier(torch.cat([batch.images, views])).double()
    probability = logits.exp() / logits.exp().sum(1, keepdim=True)
    count = len(batch.rows)
    raw = np.mean([-probability[i, batch.labels[i]].log().item() for i in range(count)])
    generated = np.mean([-probability[count + i, dataset.labels[row]].log().item() for i, row in enumerate(rows)])
    assert terms["raw_loss"].item() == pytest.approx(0.8 * raw, rel=1e-5)
    assert terms["synthetic_loss"].item() == pytest.approx(0.6 * generated, rel=1e-5)

    # Algorithm 2, the LDM from diffusers' own classes, the confidence not cut off from the classifier.
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_pipeline)
    for module in (pipeline.vae, pipeline.unet, pipeline.text_encoder):
        module.requires_grad_(False)
    order = derive_numpy_rng("distill", 0, 0).choice(count, count, replace=False)
    draws = draw(algorithm.ldm, count, 16, config.distill, torch.Generator().manual_seed(seed_hash("distill", 0, 0)))
    total = torch.zeros(())
    for i, k in enumerate(order):
        row, y = batch.rows[k], batch.labels[k]
        image = torch.from_numpy(dataset.images[[row]]).permute(0, 3, 1, 2) / 127.5 - 1
        image = torch.nn.functional.interpolate(image, size=(16, 16), mode="bicubic", antialias=True).clamp(-1, 1)
        c_y = pipeline.encode_prompt(dataset.classes[y], "cpu", 1, False)[0]
        z = pipeline.vae.encode(probability[k, y].float() * image).latent_dist.mode() * 0.9
        for t, noise in zip(draws.timesteps[:, i], draws.noise[:, i : i + 1], strict=True):
            z_t = pipeline.scheduler.add_noise(z, noise, t[None])
            total = total + (noise - pipeline.unet(z_t, t, c_y).sample).square().mean() / 2 / count
    expected = flat_gradient(0.3 * total, twin.classifier)
    found = flat_gradient(terms["distill_loss"], algorithm.classifier)
    scale = expected.abs().max()
    assert scale > 1e-7
    assert (found - expected).abs().max() < 5e-3 * scale


def test_a_weight_of_zero_removes_its_term(few_images: Path, make_config: MakeConfig, tmp_path: Path) -> None:
    every = {"raw_loss": "raw_weight", "distill_loss": "distill_weight", "synthetic_loss": "synthetic_weight"}
    for left_out, weight in every.items():
        algorithm = build(few_images, make_config(**{weight: 0.0}), tmp_path / left_out)
        algorithm.before_step(0, 0)
        assert set(algorithm.losses(make_batch(algorithm, 0))) == set(every) - {left_out}
        assert (algorithm.synthetic.count == 0) == (weight == "synthetic_weight")


def test_images_per_step_limits_distillation_to_a_mean_over_a_sample(
    few_images: Path, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distill = DistillConfig(images_per_step=3, confidence_floor=0.08)
    algorithm = build(few_images, make_config(synthetic_weight=0.0, distill=distill), tmp_path)
    seen: list[tuple[torch.Tensor, list[str], torch.Tensor]] = []

    def slopes(images: torch.Tensor, prompts: list[str], p: torch.Tensor, draws: object) -> torch.Tensor:
        seen.append((images, prompts, p))
        return torch.tensor([1.0, -2.0, 0.5])

    monkeypatch.setattr(algorithm.estimator, "slopes", slopes)
    batch = make_batch(algorithm, 7)
    logits = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    loss = algorithm.distill(batch, logits)
    ((images, prompts, p),) = seen
    assert images.shape == (3, 3, 16, 16)
    chosen = derive_numpy_rng("distill", 0, 7).choice(8, 3, replace=False)
    assert len(set(chosen.tolist())) == 3
    assert prompts == [algorithm.context.dataset.classes[batch.labels[k]] for k in chosen]
    confidence = [logits[k].softmax(0)[batch.labels[k]].item() for k in chosen]
    assert loss.item() == pytest.approx((confidence[0] - 2 * confidence[1] + 0.5 * confidence[2]) / 3)
    assert p.tolist() == pytest.approx([max(value, 0.08) for value in confidence])
    assert min(confidence) < 0.08 < max(confidence)


def test_curves_are_read_at_no_less_than_the_confidence_floor(
    few_images: Path, make_config: MakeConfig, tmp_path: Path
) -> None:
    distill = DistillConfig(estimator="score", confidence_floor=0.4)
    algorithm = build(few_images, make_config(synthetic_weight=0.0, distill=distill), tmp_path)
    count = len(algorithm.context.dataset)
    straight = torch.tensor([[0.0, 1.0]]).repeat(count, 1)  # the slope at p is p
    algorithm.curves = Curves(
        torch.tensor([0.0, 1.0]), straight, torch.zeros(count, 2), torch.ones(count, dtype=torch.int64)
    )
    batch = make_batch(algorithm, 0)
    logits = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    p = [row.softmax(0)[label].item() for row, label in zip(logits, batch.labels, strict=True)]
    assert min(p) < 0.4 < max(p)
    assert algorithm.distill(batch, logits).item() == pytest.approx(np.mean([max(value, 0.4) * value for value in p]))


def test_the_ldm_is_no_part_of_what_is_trained_or_stored(
    few_images: Path, make_config: MakeConfig, tmp_path: Path
) -> None:
    algorithm = build(few_images, make_config(), tmp_path)
    assert all(name.startswith("classifier.") for name in algorithm.state_dict())
    ldm = {id(p) for module in (algorithm.ldm.unet, algorithm.ldm.vae) for p in module.parameters()}
    assert not ldm & {id(p) for p in algorithm.parameters()}


# Whole runs


def records(folder: Path) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def test_train_run_on_a_folder(image_folder: Path, make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(generate=GenerateConfig(candidates=2, steps=2, interval=1, generations=1))
    result = train_run(str(image_folder), config, tmp_path / "run", progress=False)
    assert result["steps"] == 4
    assert 0 <= result["target_accuracy"] <= 1
    rows, images = load(tmp_path / "run", 0)
    assert result["costs"]["generated_images"] == 2 * len(rows)
    assert images.shape == (len(rows), 32, 32, 3)
    assert len(records(tmp_path / "run")) == 2
    for record in records(tmp_path / "run"):
        assert {"raw_loss", "distill_loss", "synthetic_loss"} <= record.keys()
        assert np.isfinite([record["raw_loss"], record["distill_loss"], record["synthetic_loss"]]).all()
    assert train_run(str(image_folder), config, tmp_path / "run", progress=False) == result


@pytest.mark.parametrize("stop", [1, 3])
def test_resumed_equals_uninterrupted_bit_by_bit(
    few_images: Path, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    """Stopped after generation `stop` was made and before its checkpoint: steps see their own generations again."""
    config = make_config(batch_size=5)
    train_run(str(few_images), config, tmp_path / "whole", progress=False)
    compute = DomainFusion.losses

    def interrupted(self: DomainFusion, batch: Batch) -> dict[str, torch.Tensor]:
        if batch.step == stop:
            raise KeyboardInterrupt
        return compute(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(DomainFusion, "losses", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_run(str(few_images), config, tmp_path / "parts", progress=False)
    assert len(list((tmp_path / "parts" / "synthetic").iterdir())) == stop + 1
    torch.manual_seed(99)
    train_run(str(few_images), config, tmp_path / "parts", progress=False)
    whole, parts = (load_state(tmp_path / run / "checkpoints" / "last.safetensors") for run in ("whole", "parts"))
    assert whole["model"].keys() == parts["model"].keys()
    for name, value in whole["model"].items():
        assert torch.equal(value, parts["model"][name]), name
    for number, state in whole["optimizer"]["state"].items():
        for name, value in state.items():
            assert torch.equal(value, parts["optimizer"]["state"][number][name])
    assert records(tmp_path / "whole") == records(tmp_path / "parts")
    for number in range(4):
        for a, b in zip(load(tmp_path / "whole", number), load(tmp_path / "parts", number), strict=True):
            assert np.array_equal(a, b)
    assert whole["extra"]["generated_images"] == parts["extra"]["generated_images"]


def test_seed_decides(few_images: Path, make_config: MakeConfig, tmp_path: Path) -> None:
    def weights(name: str, seed: int) -> torch.Tensor:
        train_run(str(few_images), make_config(seed=seed, steps=2), tmp_path / name, progress=False)
        state = load_state(tmp_path / name / "checkpoints" / "last.safetensors")["model"]
        return torch.cat([value.flatten().double() for value in state.values()])

    first = weights("a", 0)
    assert torch.equal(first, weights("b", 0))
    assert not torch.equal(first, weights("c", 1))


def test_context_is_what_the_run_says(few_images: Path, make_config: MakeConfig, tmp_path: Path) -> None:
    context: Context = build_context(str(few_images), make_config(), tmp_path, progress=False)
    assert context.split.sources == ("cartoon", "photo")
    assert context.dtype == torch.float32
    assert context.steps_per_epoch == 1
