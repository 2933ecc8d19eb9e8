"""Out of memory: the batch passes in halves, and what is learnt is what the whole batch would have taught."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers import convert_sync_batchnorm

from domainfusion.algorithms.classifier import Classifier
from domainfusion.algorithms.erm import ERM
from domainfusion.algorithms.portions import StatisticsLeftAlone, in_portions
from domainfusion.config import DataConfig, TrainConfig
from domainfusion.errors import TrainingError
from domainfusion.experiments.runs import build_algorithm, build_context, train_run
from domainfusion.files import read_json
from domainfusion.json_lines import read_json_lines
from domainfusion.memory import halve_until_it_fits
from domainfusion.processes import Processes
from domainfusion.tensors import load_state
from domainfusion.training.accumulation import Portions
from domainfusion.training.step import compute_losses, make_batch
from same_run import assert_same_run

CONFIG = TrainConfig(
    algorithm="erm", target="sketch", steps=4, evaluations=2, batch_size=6, backbone="test_resnet",
    precision="float32", device="cpu", data=DataConfig(size=32),
)  # fmt: skip
ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to"),
    RuntimeError("MPS backend out of memory"),
    MemoryError(),
]


@pytest.fixture(scope="module")
def images(write_images: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "images", count=8)


def fail_above(patch: pytest.MonkeyPatch, most: int, error: BaseException, training: bool = True) -> list[int]:
    """Let the backbone run out of memory on more than `most` images; returns how many each of its passes had."""
    seen: list[int] = []
    original = Classifier._features

    def features(self: Classifier, images: torch.Tensor) -> torch.Tensor:
        if self.training == training:
            seen.append(len(images))
            found = original(self, images)  # BatchNorm's averages have moved before it fails
            if len(images) > most:
                raise error
            return found
        return original(self, images)

    patch.setattr(Classifier, "_features", features)
    return seen


def test_a_failed_attempt_leaves_nothing_behind(images: Path, tmp_path: Path) -> None:
    """Group DRO's weights are a buffer, as BatchNorm's averages are: both would have moved twice."""
    config = dataclasses.replace(CONFIG, algorithm="groupdro")
    algorithm = build_algorithm(build_context(str(images), config, tmp_path / "run", progress=False))
    before = [buffer.clone() for buffer in algorithm.buffers()]
    assert {tuple(buffer.shape) for buffer in before} >= {(2,)}
    sizes = []

    def work() -> None:
        assert all(torch.equal(*pair) for pair in zip(algorithm.buffers(), before, strict=True))
        assert all(parameter.grad is None for parameter in algorithm.parameters())
        sizes.append(algorithm.classifier.portion)
        algorithm.classifier.most_at_once = 12 // len(sizes)
        with torch.no_grad():
            for buffer in algorithm.buffers():
                buffer.add_(1)
        for parameter in algorithm.parameters():
            parameter.grad = torch.ones_like(parameter)
        if len(sizes) < 3:
            raise MemoryError

    Portions(algorithm).attempt(work, 0)
    assert sizes == [0, 6, 3]


def gradients(algorithm: Any, portion: int) -> dict[str, torch.Tensor]:
    algorithm = copy.deepcopy(algorithm)
    algorithm.classifier.portion = portion
    algorithm.train()
    batch = dataclasses.replace(make_batch(algorithm, 0))
    torch.manual_seed(5)
    torch.stack(list(compute_losses(algorithm, batch).values())).sum().backward()
    found = {name: value.grad for name, value in algorithm.named_parameters()}
    assert all(value is not None for value in found.values())
    return found


@pytest.mark.parametrize("algorithm", ["erm", "coral", "groupdro", "mixup", "rsc"])
@pytest.mark.parametrize("portion", [1, 5])
def test_the_gradient_is_that_of_the_whole_batch(images: Path, tmp_path: Path, algorithm: str, portion: int) -> None:
    """For losses that compare images of the batch too; BatchNorm is frozen, for its statistics are the portions'."""
    config = dataclasses.replace(CONFIG, algorithm=algorithm, freeze_bn=True, dropout=0.3)
    built = build_algorithm(build_context(str(images), config, tmp_path, progress=False))
    whole, parts = gradients(built, 0), gradients(built, portion)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=1e-6, msg=name)
    assert max(float(value.abs().max()) for value in whole.values()) > 1e-3


def test_batch_norm_measures_its_portions_once() -> None:
    """Against a loop over the portions, written out."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.AdaptiveAvgPool2d(1),
                                 torch.nn.Flatten()).double()  # fmt: skip
    reference, images = copy.deepcopy(module), torch.randn(7, 3, 6, 6, dtype=torch.float64)
    found = in_portions(module, module, images, 3)
    found.square().sum().backward()
    expected = torch.empty(7, 4, dtype=torch.float64)
    for first in range(3):  # three portions, each of images from all over the batch
        expected[first::3] = reference(images[first::3])
    expected.square().sum().backward()
    torch.testing.assert_close(found, expected)
    for (name, value), other in zip(module.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(value.grad, other.grad, msg=name)
    assert module[1].num_batches_tracked == 3
    torch.testing.assert_close(module[1].running_mean, reference[1].running_mean)
    assert module[1].track_running_stats


def test_a_second_computation_can_be_entered_again() -> None:
    """As checkpointing does before PyTorch 2.14, where a backward pass comes through it more than once."""
    layer = torch.nn.BatchNorm2d(2, momentum=0.3)
    again = StatisticsLeftAlone(layer)
    for _ in range(2):
        with again:
            layer(torch.randn(3, 2, 4, 4))
    assert (layer.momentum, int(layer.num_batches_tracked), layer.running_mean.tolist()) == (0.3, 0, [0, 0])


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_run_goes_on_in_halves_and_says_so(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    error: BaseException,
) -> None:  # fmt: skip
    config = dataclasses.replace(CONFIG, freeze_bn=True)
    train_run(str(images), config, tmp_path / "whole", progress=False)
    seen = fail_above(monkeypatch, 3, error)
    result = train_run(str(images), config, tmp_path / "run", progress=False)
    assert seen[:2] == [12, 6]  # halved twice in the first step, 12 images from two domains
    assert set(seen[2:]) == {3}
    said = capsys.readouterr().err
    assert "out of memory at step 0: from here on at most 6 images" in said
    assert "at most 3 images" in said
    assert result["images_at_once"] == 3
    records = read_json_lines(tmp_path / "run" / "metrics.jsonl")
    assert [(record["images_at_once"], record["since_step"]) for record in records] == [(3, 0)] * 2
    whole, parts = (load_state(tmp_path / name / "checkpoints/last.safetensors")["model"] for name in ("whole", "run"))
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-2, atol=2e-4, msg=name)  # Adam magnifies rounding


def test_a_resumed_run_goes_on_in_the_same_halves(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit, BatchNorm's averages included: what failed has left nothing behind."""
    with monkeypatch.context() as patch:
        fail_above(patch, 7, ERRORS[0])
        train_run(str(images), CONFIG, tmp_path / "whole", progress=False)
        patch.setattr(ERM, "before_step", stop_at(3))
        with pytest.raises(KeyboardInterrupt):
            train_run(str(images), CONFIG, tmp_path / "parts", progress=False)
    assert load_state(tmp_path / "parts/checkpoints/last.safetensors")["progress"]["step"] == 2
    train_run(str(images), CONFIG, tmp_path / "parts", progress=False)  # memory suffices now, and nothing changes
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert read_json(tmp_path / "parts" / "result.json")["images_at_once"] == 6


def stop_at(step: int) -> Any:
    def before_step(self: ERM, now: int, epoch: int) -> None:
        if now == step:
            raise KeyboardInterrupt

    return before_step


def test_memory_that_runs_out_in_an_evaluation(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = fail_above(monkeypatch, 8, ERRORS[0], training=False)
    result = train_run(str(images), CONFIG, tmp_path / "run", progress=False)
    assert seen[:6] == [4, 4, 20, 4, 4, 10]
    assert max(seen[6:]) == 5
    assert result["images_at_once"] == 5


def test_one_image_that_does_not_fit_is_an_error(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_above(monkeypatch, 0, ERRORS[0])
    with pytest.raises(TrainingError, match=r"out of memory at step 0: CUDA out of memory.* --batch-size"):
        train_run(str(images), CONFIG, tmp_path / "run", progress=False)


def test_an_algorithm_that_mixes_inside_the_backbone_is_not_taken_apart(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_above(monkeypatch, 3, ERRORS[0])
    with pytest.raises(TrainingError, match="mixstyle cannot take a batch apart"):
        train_run(
            str(images), dataclasses.replace(CONFIG, algorithm="mixstyle", backbone="resnet10t"), tmp_path / "run",
            progress=False,
        )  # fmt: skip


def test_batch_norm_of_several_processes_is_not_waited_for(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others wait inside of SyncBatchNorm, where no word of this one reaches them: it ends, and says what helps."""
    told: list[str] = []
    monkeypatch.setattr(Processes, "say_out_of_memory", lambda self, device: told.append("said"))
    monkeypatch.setattr(Processes, "most", lambda self, value, device: value)
    algorithm = build_algorithm(build_context(str(images), CONFIG, tmp_path, progress=False))
    algorithm.context = dataclasses.replace(algorithm.context, processes=Processes(1, 2))
    algorithm.classifier.most_at_once = 4
    failing = [ERRORS[0]]

    def work() -> str:
        if failing:
            raise failing.pop()
        return "done"

    assert Portions(algorithm).attempt(work, 3) == "done"
    assert told == ["said"]
    algorithm.classifier.backbone = convert_sync_batchnorm(algorithm.classifier.backbone)
    failing.append(ERRORS[0])
    with pytest.raises(TrainingError, match=r"at step 3 in process 1 of 2: CUDA .* wait for each other.*--freeze-bn"):
        Portions(algorithm).attempt(work, 3)
    assert told == ["said"]
    algorithm.eval()  # nothing is exchanged in a test
    failing.append(ERRORS[0])
    algorithm.classifier.most_at_once = 4
    assert Portions(algorithm).attempt(work, 3) == "done"


def test_memory_that_the_optimizer_lacks_is_an_error(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights may have moved in part: the step is not taken again."""

    def step(self: torch.optim.Adam, closure: Any = None) -> None:
        raise ERRORS[0]

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    with pytest.raises(TrainingError, match=r"at step 0 in the optimizer, .*: CUDA out of memory.* smaller --backbone"):
        train_run(str(images), CONFIG, tmp_path / "run", progress=False)


def test_other_errors_are_let_through(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_above(monkeypatch, 3, RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        train_run(str(images), CONFIG, tmp_path / "run", progress=False)


def test_work_is_halved_until_it_fits(capsys: pytest.CaptureFixture[str]) -> None:
    def work(size: int) -> str:
        if size > 5:
            raise MemoryError
        return "done"

    assert halve_until_it_fits(work, 24, "generation") == ("done", 3)
    assert capsys.readouterr().err.splitlines()[-1] == "note: out of memory in generation: 3 at once from here on"
    with pytest.raises(MemoryError):
        halve_until_it_fits(lambda size: work(9), 4, "generation")
