"""One step of training: its batch and views, its terms, its random numbers, and what is not finite."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from domainfusion.algorithms.base import Batch
from domainfusion.algorithms.erm import ERM
from domainfusion.errors import TrainingError
from domainfusion.experiments.runs import build_algorithm, build_context
from domainfusion.json_lines import read_json_lines
from domainfusion.processes import ALONE, Processes
from domainfusion.tensors import load_state
from domainfusion.training import step as one_step
from domainfusion.training import trainer
from domainfusion.training.accumulation import Portions
from domainfusion.training.step import make_batch
from same_run import assert_same_run, tensors_of
from short_runs import options, run, train_until


def test_processes_that_train_together_do_not_drop_out_alike(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The random numbers of a step: the first process's are those of one alone, the others have their own."""
    drawn: list[list[float]] = []
    losses = ERM.losses

    def noting(self: ERM, batch: Batch) -> dict[str, torch.Tensor]:
        drawn.append(torch.rand(3).tolist())
        return losses(self, batch)

    class Ranks(Processes):
        def any(self, value: bool, device: torch.device) -> bool:
            return value

        def average(self, parameters: object) -> None:
            pass

    monkeypatch.setattr(ERM, "losses", noting)
    algorithm = build_algorithm(build_context(str(images), options(), tmp_path, progress=False))
    optimizer = torch.optim.SGD(algorithm.parameters(), lr=0.0)
    for processes in (ALONE, Ranks(0, 2), Ranks(1, 2), Ranks(1, 2)):
        algorithm.context = dataclasses.replace(algorithm.context, processes=processes)
        one_step.take_step(algorithm, optimizer, 3, trainer.Progress(), Portions(algorithm))
    assert drawn[0] == drawn[1] != drawn[2] == drawn[3]


class TestNonFinite:
    @staticmethod
    def poison(monkeypatch: pytest.MonkeyPatch, step: int, value: float) -> None:
        original = ERM.losses

        def losses(self: ERM, batch: Batch) -> dict[str, torch.Tensor]:
            terms = original(self, batch)
            return {**terms, "other_loss": terms["raw_loss"] * value} if batch.step == step else terms

        monkeypatch.setattr(ERM, "losses", losses)

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_the_step_and_the_term_are_named_and_the_checkpoint_is_kept(
        self, images: Path, tmp_path: Path, whole: Path, value: float
    ) -> None:
        folder = tmp_path / "run"
        with pytest.MonkeyPatch.context() as patch:
            self.poison(patch, 5, value)
            message = (
                rf"not finite at step 5 \(raw_loss [\d.]+, other_loss {value:g}\); the checkpoint of step 4 is kept"
            )
            with pytest.raises(TrainingError, match=message):
                run(images, folder)
        state = load_state(folder / "checkpoints" / "last.safetensors")
        assert state["progress"]["step"] == 4
        assert all(torch.isfinite(value).all() for value in tensors_of(state).values())
        run(images, folder)  # the cause being gone, it goes on
        assert_same_run(folder, whole)

    def test_gradients_of_a_finite_loss_are_noticed_before_their_weights_are_saved(
        self, images: Path, tmp_path: Path, whole: Path
    ) -> None:
        folder = tmp_path / "run"
        original, steps = one_step.compute_gradients, iter(range(1, 100))

        def compute_gradients(optimizer: torch.optim.Optimizer, *rest: Any) -> None:
            original(optimizer, *rest)
            if next(steps) == 8:  # the last before an evaluation
                optimizer.param_groups[0]["params"][3].grad[0] = math.nan

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(one_step, "compute_gradients", compute_gradients)
            message = (
                r"not finite after step 8 \(classifier\.[\w.]+\), though the loss was; the checkpoint of step 6 is"
            )
            with pytest.raises(TrainingError, match=message):
                run(images, folder)
        run(images, folder)
        assert_same_run(folder, whole)

    def test_diverged_weights_are_never_saved(self, images: Path, tmp_path: Path) -> None:
        folder = tmp_path / "run"
        with pytest.raises(TrainingError, match=r"step \d.*--lr"):
            run(images, folder, lr=1e30, steps=4, evaluations=4)
        for path in folder.rglob("*.safetensors"):
            state = load_file(path) if path.name == "model.safetensors" else load_state(path)
            bad = [name for name, value in tensors_of(state).items() if not torch.isfinite(value).all()]
            assert bad == [], path.name


def test_records_hold_the_mean_of_each_term_since_the_last_record(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = ERM.losses

    def losses(self: ERM, batch: Batch) -> dict[str, torch.Tensor]:
        nothing = 0 * original(self, batch)["raw_loss"]
        return {"raw_loss": nothing + batch.step, "other_loss": nothing + 10.0}

    monkeypatch.setattr(ERM, "losses", losses)
    train_until(images, tmp_path / "run", 5, steps=8)
    monkeypatch.setattr(ERM, "losses", losses)
    run(images, tmp_path / "run", steps=8)
    records = read_json_lines(tmp_path / "run" / "metrics.jsonl")
    assert [record["raw_loss"] for record in records] == [0.5, 2.5, 4.5, 6.5]
    assert [record["other_loss"] for record in records] == [10.0] * 4


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros(()), "returns a Tensor; it should return"),
        ({}, "returns an empty dict"),
        ({"a_loss": torch.zeros(3)}, r"'a_loss' is of shape \(3,\), not a scalar"),
        ({"a_loss": 1.0}, "'a_loss' is float, not a scalar"),
    ],
)
def test_losses_of_another_form_are_told(
    given: Any, message: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ERM, "losses", lambda self, batch: given)
    with pytest.raises(TrainingError, match=rf"ERM.losses\(\).*{message}"):
        run(images, tmp_path / "run")


def test_a_step_is_adam_on_the_sum_of_the_terms(images: Path, tmp_path: Path) -> None:
    context = build_context(str(images), options(steps=1, evaluations=1), tmp_path / "run", progress=False)
    algorithm, reference = build_algorithm(context), build_algorithm(context)
    trainer.train(algorithm)
    reference.train()
    batch = make_batch(reference, 0)
    loss = torch.nn.functional.cross_entropy(reference.predict(batch.images), batch.labels)
    loss.backward()
    for name, value in reference.named_parameters():
        assert value.grad is not None
        gradient = value.grad + 5e-4 * value.detach()  # L2 penalty
        # Adam's first step: both moments are corrected to the gradient and its square.
        expected = value.detach() - 1e-3 * gradient / (gradient.abs() + 1e-8)
        found = algorithm.get_parameter(name).detach()
        clear = gradient.abs() > 1e-6  # elsewhere rounding decides the sign
        assert torch.allclose(found[clear], expected[clear], atol=1e-5), name


def test_batches_are_a_function_of_seed_and_step(images: Path, tmp_path: Path) -> None:
    context = build_context(str(images), options(), tmp_path / "run", progress=False)
    algorithm = build_algorithm(context)
    first, again, other = (make_batch(algorithm, step) for step in (3, 3, 4))
    assert torch.equal(first.images, again.images)
    assert first.rows.tolist() == again.rows.tolist()
    assert first.rows.tolist() != other.rows.tolist()
    assert first.images.shape == (8, 3, 32, 32)
    assert first.labels.tolist() == context.dataset.labels[first.rows].tolist()
    assert first.epoch == 0
    assert make_batch(algorithm, context.steps_per_epoch).epoch == 1
    seeded = dataclasses.replace(context, config=options(seed=1))
    assert make_batch(build_algorithm(seeded), 3).rows.tolist() != first.rows.tolist()


def test_views_differ_by_step_and_seed(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_step, "draw_rows", lambda split, batch_size, seed, step: np.arange(8))
    context = build_context(str(images), options(), tmp_path / "run", progress=False)
    algorithm = build_algorithm(context)
    other = build_algorithm(dataclasses.replace(context, config=options(seed=1)))
    images = [make_batch(algorithm, 3).images, make_batch(algorithm, 4).images, make_batch(other, 3).images]
    assert all(not torch.allclose(images[i], images[j]) for i in range(3) for j in range(i))


def test_frozen_batch_norm_keeps_its_statistics_and_trains_its_scale(images: Path, tmp_path: Path) -> None:
    context = build_context(
        str(images), options(freeze_bn=True, steps=2, evaluations=1), tmp_path / "run", progress=False
    )
    algorithm, start = build_algorithm(context), build_algorithm(context)
    trainer.train(algorithm)
    before, after = start.state_dict(), algorithm.state_dict()
    statistics = [name for name in before if name.endswith(("running_mean", "running_var"))]
    scales = [name.replace("running_mean", "weight") for name in statistics if name.endswith("running_mean")]
    assert statistics
    assert all(torch.equal(before[name], after[name]) for name in statistics)
    assert any(not torch.equal(before[name], after[name]) for name in scales)
