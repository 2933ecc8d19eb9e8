"""Candidates made beside training: who makes them changes nothing, whoever dies leaves nothing, and nobody waits."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from children import wait_until
from domainfusion.algorithms import domainfusion as method
from domainfusion.algorithms.base import Batch
from domainfusion.config import DataConfig, GenerateConfig, TrainConfig
from domainfusion.data.domains import MultiDomainDataset
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.errors import Interrupted
from domainfusion.experiments.generating import generate_candidates
from domainfusion.experiments.runs import train_run
from domainfusion.fusion import ahead
from domainfusion.fusion.ahead import Ahead, Order, Worker
from domainfusion.fusion.candidate_cache import CandidateCache, cache_path, cached_rows
from domainfusion.fusion.candidates import Making
from domainfusion.fusion.synthetic import load_generation
from domainfusion.fusion.worker_decision import Decision
from domainfusion.interruption import requested
from domainfusion.tensors import load_state
from same_run import tensors_of

CONFIG = GenerateConfig(candidates=2, steps=2, batch_size=4)


@pytest.fixture(scope="module")
def images(write_images: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "images", count=4)


@pytest.fixture(scope="module")
def config(tiny_pipeline: Path) -> TrainConfig:
    """A generation in each of four steps; its candidates are made in parts of two images."""
    return TrainConfig(
        target="sketch", steps=4, batch_size=9, backbone="test_resnet", ldm=str(tiny_pipeline), precision="float32",
        device="cpu", evaluations=4, distill_weight=0.0, data=DataConfig(size=16),
        generate=GenerateConfig(candidates=2, steps=2, interval=1, batch_size=1, worker="on"),
    )  # fmt: skip


def without(config: TrainConfig) -> TrainConfig:
    return dataclasses.replace(config, generate=dataclasses.replace(config.generate, worker="off"))


@pytest.fixture(scope="module")
def reference(images: Path, config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run without a worker."""
    folder = tmp_path_factory.mktemp("reference")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOMAINFUSION_CACHE", str(folder / "cache"))
        train_run(str(images), without(config), folder / "run", progress=False)
    return folder / "run"


def assert_same(first: Path, second: Path) -> None:
    """Generations, weights and optimizer are equal to the last bit."""
    for number in range(4):
        a, b = (load_generation(folder / "synthetic" / f"generation-{number:02d}") for folder in (first, second))
        assert np.array_equal(a.images, b.images)
        assert a.lineage == b.lineage
    states = [load_state(folder / "checkpoints" / "last.safetensors") for folder in (first, second)]
    for part in ("model", "optimizer"):
        a, b = (tensors_of(state[part]) for state in states)
        assert [name for name in a if not a[name].equal(b[name])] == []


def progress_of(worker: Order) -> list[int]:
    """How many rows each file of an order has, beyond which all of them are there."""
    return [int(cached_rows(path, len(worker.dataset))[worker.rows].sum()) for path in worker.files.values()]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Worker, Order]]]:
    """Every worker that is started, with its order."""
    found: list[tuple[Worker, Order]] = []
    start = Worker.__init__

    def noting(self: Worker, order: Order, device: str, threads: int) -> None:
        start(self, order, device, threads)
        found.append((self, order))

    monkeypatch.setattr(Worker, "__init__", noting)
    yield found
    for worker, _ in found:
        assert worker.process.returncode is not None  # none outlives its run


def before_the_first_step(monkeypatch: pytest.MonkeyPatch, work: Callable[[], None]) -> None:
    """Call `work` once, when the worker was started and training has not asked for anything."""
    look, left = Ahead.look, [work]

    def looking(self: Ahead, made: int) -> None:
        if left:
            left.pop()()
        look(self, made)

    monkeypatch.setattr(Ahead, "look", looking)


def test_with_a_worker_a_run_is_the_same_to_the_last_bit_and_makes_nothing_itself(
    images: Path, config: TrainConfig, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    started: list[tuple[Worker, Order]], capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def finish() -> None:
        assert started[0][0].process.wait(120) == 0, started[0][0].log.read_text()

    def nothing(*arguments: object) -> None:
        raise AssertionError("training made candidates")

    before_the_first_step(monkeypatch, finish)
    with monkeypatch.context() as patch:
        patch.setattr(Making, "make", nothing)
        train_run(str(images), config, tmp_path / "run", progress=False)
    assert_same(tmp_path / "run", reference)
    assert "a worker makes the candidates of 4 generation(s) beside training, on cpu" in capfd.readouterr().err
    assert len(started) == 1
    # Another run finds everything in the cache, and needs no worker.
    train_run(str(images), dataclasses.replace(config, seed=1), tmp_path / "second", progress=True)
    assert len(started) == 1
    assert "no worker makes candidates beside training: those of all coming" in capfd.readouterr().err
    # Who makes candidates is no option that a run insists on.
    train_run(str(images), without(config), tmp_path / "run", progress=False)


def test_training_makes_the_rest_where_its_worker_is_killed(
    images: Path, config: TrainConfig, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    started: list[tuple[Worker, Order]], capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    counts: list[list[int]] = []

    def kill() -> None:
        worker, order = started[0]
        wait_until(lambda: any(progress_of(order)), worker.log.read_text())
        worker.process.kill()
        worker.process.wait()
        counts.append(progress_of(order))

    before_the_first_step(monkeypatch, kill)
    train_run(str(images), config, tmp_path / "run", progress=False)
    assert 0 < sum(counts[0]) < 4 * len(started[0][1].rows)  # in the middle of it
    assert_same(tmp_path / "run", reference)
    said = capfd.readouterr().err
    assert said.count("beside training ended (killed by SIGKILL); training makes the rest") == 1


def test_an_order_is_of_what_the_cache_lacks(ldm: LatentDiffusion, dataset: MultiDomainDataset) -> None:
    def missing() -> dict[int, float]:
        return Order.of_missing(ldm, dataset, np.arange(20), CONFIG, ldm.styles, [0, 1]).missing

    assert missing() == {0: 1.0, 1: 1.0}
    for number, count in ((0, 20), (1, 15)):
        cache = CandidateCache(cache_path(ldm, dataset, CONFIG.needed(), number, ldm.styles), dataset, CONFIG.needed())
        Making(ldm, dataset, np.arange(count), CONFIG.needed(), number=number, styles=ldm.styles).fill(cache)
    assert missing() == {1: 0.25}


def test_a_worker_that_fails_is_reported_once_with_its_last_line(
    ldm: LatentDiffusion, dataset: MultiDomainDataset, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str], started: list[tuple[Worker, Order]],
) -> None:  # fmt: skip
    write = Order.write

    def cut_short(self: Order, folder: Path, device: str) -> None:
        write(self, folder, device)
        with open(folder / "order.json", "r+") as file:
            file.truncate(100)

    monkeypatch.setattr(Order, "write", cut_short)
    order = Order.of_missing(ldm, dataset, np.arange(20), CONFIG, ldm.styles, [0, 1])
    assert list(order.files) == [0, 1]
    beside = Ahead(Decision("cpu", 1), order, total=2)
    assert started[0][0].process.wait(120) == 1
    beside.look(0)
    beside.look(0)
    beside.close()
    said = capfd.readouterr().err
    assert said.count("training makes the rest") == 1
    assert "beside training ended (exit code 1: " in said
    assert "order.json cannot be read as JSON" in said


class Idle:
    """In the place of a worker: one that is as slow as can be."""

    def __init__(self, order: Order, device: str, threads: int) -> None:
        self.given = (sorted(order.files), device, threads)

    def failure(self) -> None:
        """It goes on."""

    def close(self) -> None:
        """Nothing is there to end."""


def test_a_resumed_run_computes_with_the_threads_that_it_began_with(
    images: Path, config: TrainConfig, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(config, generate=dataclasses.replace(config.generate, worker="auto"))
    given, threads, workers = [0], list[tuple[int, int]](), list[Idle]()
    for module in (ahead, method):
        monkeypatch.setattr(module, "threads_to_share", lambda: 6)
    monkeypatch.setattr(ahead, "_set_threads", given.append)
    monkeypatch.setattr(ahead, "Worker", lambda *order: workers.append(Idle(*order)) or workers[-1])
    compute, stop = method.DomainFusion.losses, [2]

    def losses(self: method.DomainFusion, batch: Batch) -> dict[str, torch.Tensor]:
        if batch.step in stop:
            raise KeyboardInterrupt
        threads.append((batch.step, given[-1]))
        return compute(self, batch)

    monkeypatch.setattr(method.DomainFusion, "losses", losses)
    with pytest.raises(KeyboardInterrupt):
        train_run(str(images), config, tmp_path / "run", progress=False)
    assert [worker.given for worker in workers] == [([0, 1, 2, 3], "cpu", 3)]
    assert given[-1] == 6  # what comes after the run has all of them
    generate_candidates(str(images), config, generations=4)
    stop.clear()
    result = train_run(str(images), config, tmp_path / "run", progress=False)
    assert len(workers) == 1  # everything is in the cache
    assert threads == [(0, 3), (1, 3), (2, 3), (3, 6)]
    assert result["costs"]["worker_threads"] == 3
    assert_same(tmp_path / "run", reference)


@pytest.mark.parametrize(("number", "early"), [(signal.SIGKILL, True), (signal.SIGTERM, False)])
def test_no_worker_outlives_its_run_whose_candidates_are_kept(
    images: Path, config: TrainConfig, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals, early: bool,
) -> None:  # fmt: skip
    """The run is a forked process, killed as soon as its worker is there, or asked to stop when that has made some."""
    pid, begun = tmp_path / "pid", tmp_path / "begun"
    start = Worker.__init__

    def noting(self: Worker, order: Order, device: str, threads: int) -> None:
        start(self, order, device, threads)
        pid.with_suffix(".new").write_text(str(self.process.pid))
        pid.with_suffix(".new").rename(pid)
        wait_until(lambda: any(progress_of(order)), "the worker made nothing")
        begun.touch()

    child = os.fork()
    if child == 0:
        monkeypatch.setattr(Worker, "__init__", noting)
        before_the_first_step(monkeypatch, lambda: wait_until(requested, "no signal came"))
        code = 1
        try:
            train_run(str(images), config, tmp_path / "run", progress=False)
        except Interrupted as error:
            code = 128 + error.number
        finally:
            os._exit(code)
    wait_until((pid if early else begun).exists, "no worker was started")
    worker = int(pid.read_text())
    os.kill(child, number)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == (-number if early else 128 + number)
    wait_until(lambda: not alive(worker), f"process {worker} is still there", 20)
    done = [np.load(path) for path in Path(os.environ["DOMAINFUSION_CACHE"]).glob("candidates/*.done.npy")]
    assert any(rows.any() for rows in done) != early
    train_run(str(images), without(config), tmp_path / "run", progress=False)
    assert_same(tmp_path / "run", reference)


def alive(process: int) -> bool:
    """Whether a process is there, and not only its entry that nobody has collected."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"
