from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from domainfusion.algorithms.base import Algorithm
from domainfusion.algorithms.groupdro import GroupDRO, move_weights
from domainfusion.config import GroupDROConfig, TrainConfig
from domainfusion.experiments.runs import train_run
from domainfusion.processes import Processes
from domainfusion.tensors import load_state
from domainfusion.training.step import make_batch

Make = Callable[..., Algorithm]


def test_weights_and_loss_are_algorithm_1_written_out(make_algorithm: Make) -> None:
    algorithm = make_algorithm("groupdro", target=None, groupdro=GroupDROConfig(eta=0.5))
    algorithm.eval()
    q = [1 / 3] * 3
    for step in range(4):
        batch = make_batch(algorithm, step)
        domain_of = algorithm.context.dataset.domain_of[batch.rows]
        with torch.no_grad():
            log_p = algorithm.predict(batch.images).log_softmax(1)
        losses = []
        for domain in range(3):
            of_domain = [-log_p[i, batch.labels[i]].item() for i in range(18) if domain_of[i] == domain]
            assert len(of_domain) == 6
            losses.append(sum(of_domain) / 6)
        q = [weight * math.exp(0.5 * loss) for weight, loss in zip(q, losses, strict=True)]
        q = [weight / sum(q) for weight in q]
        found = algorithm.losses(batch)["groupdro_loss"].item()
        assert found == pytest.approx(sum(w * loss for w, loss in zip(q, losses, strict=True)), rel=1e-5)
        assert algorithm.domain_weights.tolist() == pytest.approx(q, rel=1e-5)
    assert max(q) - min(q) > 0.01


def test_no_gradient_goes_through_the_weights(make_algorithm: Make) -> None:
    algorithm = make_algorithm("groupdro", groupdro=GroupDROConfig(eta=3.0))
    algorithm.eval()
    batch = make_batch(algorithm, 0)
    parameters = list(algorithm.classifier.head.parameters())
    found = torch.autograd.grad(algorithm.losses(batch)["groupdro_loss"], parameters)
    q = algorithm.domain_weights.clone()
    logits = algorithm.predict(batch.images)
    expected = torch.autograd.grad(
        q[0] * F.cross_entropy(logits[:6], batch.labels[:6]) + q[1] * F.cross_entropy(logits[6:], batch.labels[6:]),
        parameters,
    )
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-7)


def test_with_eta_0_it_is_erm(make_algorithm: Make) -> None:
    dro, erm = make_algorithm("groupdro", groupdro=GroupDROConfig(eta=0)), make_algorithm("erm")
    batch = make_batch(erm, 0)
    assert dro.losses(batch)["groupdro_loss"].item() == pytest.approx(erm.losses(batch)["raw_loss"].item(), rel=1e-5)


def test_processes_move_the_weights_by_the_losses_of_the_whole_batch(make_algorithm: Make) -> None:
    """Two ranks, each told the mean over both, have one process's weights and, on average, its loss."""
    options = {"groupdro": GroupDROConfig(eta=2.0), "batch_size": 6}
    alone = make_algorithm("groupdro", **options).eval()
    whole = alone.losses(make_batch(alone, 0))["groupdro_loss"].item()
    measured: list[torch.Tensor] = []

    class Ranks(Processes):
        def mean_of(self, tensor: torch.Tensor) -> torch.Tensor:
            measured.append(tensor)
            return torch.stack(measured[:2]).mean(0)

    def losses_of_rank(rank: int) -> tuple[float, torch.Tensor]:
        algorithm = make_algorithm("groupdro", **options).eval()
        algorithm.context = dataclasses.replace(algorithm.context, processes=Ranks(rank, 2))
        return algorithm.losses(make_batch(algorithm, 0))["groupdro_loss"].item(), algorithm.domain_weights

    for rank in range(2):  # what each measures
        losses_of_rank(rank)
    assert len(measured) == 2
    assert not torch.allclose(measured[0], measured[1], rtol=1e-3)
    found = [losses_of_rank(rank) for rank in range(2)]
    for _, weights in found:
        assert weights.tolist() == pytest.approx(alone.domain_weights.tolist(), rel=1e-5)
    assert sum(loss for loss, _ in found) / 2 == pytest.approx(whole, rel=1e-5)


def test_huge_losses_do_no_harm() -> None:
    assert move_weights(torch.tensor([0.5, 0.5]), torch.tensor([1e6, 1e6 + 1]), 1.0).tolist() == pytest.approx(
        [1 / (1 + math.e), math.e / (1 + math.e)], abs=0.02
    )


def test_a_resumed_run_goes_on_with_its_weights(
    shared_images: Path, tmp_path: Path, small_options: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_options("groupdro", groupdro=GroupDROConfig(eta=0.3))
    train_run(str(shared_images), config, tmp_path / "whole", progress=False)

    class Killed(BaseException):
        pass

    def before_step(self: GroupDRO, step: int, epoch: int) -> None:
        if step == 5:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(GroupDRO, "before_step", before_step)
        with pytest.raises(Killed):
            train_run(str(shared_images), config, tmp_path / "parts", progress=False)
    train_run(str(shared_images), config, tmp_path / "parts", progress=False)
    whole, parts = (load_state(tmp_path / n / "checkpoints/last.safetensors")["model"] for n in ("whole", "parts"))
    assert whole["domain_weights"].tolist() != pytest.approx([0.5, 0.5], abs=1e-3)
    assert [name for name in whole if not torch.equal(whole[name], parts[name])] == []
