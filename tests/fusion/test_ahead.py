"""Candidates made beside training: who makes them changes nothing, whoever dies leaves nothing, and nobody waits."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from domainfusion.algorithms import domainfusion as method
from domainfusion.algorithms.base import Batch
from domainfusion.config import DataConfig, GenerateConfig, TrainConfig
from domainfusion.data.domains import MultiDomainDataset, load_folder
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.errors import Interrupted, UsageError
from domainfusion.experiments.generating import generate_candidates
from domainfusion.experiments.runs import train_run
from domainfusion.files import open_lock, read_json
from domainfusion.fusion import ahead
from domainfusion.fusion.ahead import Ahead, Order, Worker
from domainfusion.fusion.candidate_cache import CandidateCache, cache_path, cached_rows
from domainfusion.fusion.candidates import Making
from domainfusion.fusion.image_cache import claimed
from domainfusion.fusion.synthetic import load_generation
from domainfusion.fusion.worker_decision import Decision, Situation, check_device, decide
from domainfusion.interruption import requested
from domainfusion.tensors import load_state
from same_run import tensors_of

CONFIG = GenerateConfig(candidates=2, steps=2, batch_size=4)

# Whether there is a worker

CPU = Situation(
    mode="auto", updating=False, device=torch.device("cpu"), wanted_device="auto", gpus=0, threads=2, missing=3, ahead=3
)
GPU = dataclasses.replace(CPU, device=torch.device("cuda"), gpus=2)


@pytest.mark.parametrize(
    ("now", "changes", "device", "threads"),
    [
        (CPU, {}, "cpu", 1),
        (CPU, {"threads": 16}, "cpu", 8),
        (CPU, {"threads": 5}, "cpu", 2),
        (CPU, {"mode": "on", "threads": 1}, "cpu", 1),
        (CPU, {"mode": "on", "ahead": 0}, "cpu", 1),
        (GPU, {}, "cuda:1", 1),
        (GPU, {"device": torch.device("cuda", 1)}, "cuda:0", 1),
        (GPU, {"wanted_device": "cuda:0"}, "cuda:0", 1),
        (GPU, {"gpus": 1, "mode": "on"}, "cuda", 1),
        (GPU, {"processes": 2, "gpus": 3}, "cuda:2", 1),
        (CPU, {"threads": 8, "began": 3}, "cpu", 3),  # as the run began, on whatever machine
        (CPU, {"threads": 2, "began": 4}, "cpu", 1),
    ],
)
def test_a_worker_is_there_where_it_helps(now: Situation, changes: Any, device: str, threads: int) -> None:
    assert decide(dataclasses.replace(now, **changes)) == Decision(device, threads)


@pytest.mark.parametrize(
    ("now", "changes", "threads", "reason"),
    [
        (CPU, {"mode": "off"}, 0, ""),
        (CPU, {"mode": "on", "first": False}, 0, ""),
        (CPU, {"updating": True}, 0, "with --generate.updating"),
        (CPU, {"mode": "on", "missing": 0, "ahead": 0}, 0, "in the cache"),
        (CPU, {"missing": 1, "ahead": 0}, 0, "no generation is due later"),
        (CPU, {"threads": 1}, 0, "one thread"),
        (CPU, {"processes": 2}, 0, "train together"),
        (CPU, {"began": 0}, 0, "began without a worker"),
        (CPU, {"missing": 0, "ahead": 0, "began": 1}, 1, "in the cache"),  # training keeps its share of the threads
        (CPU, {"mode": "off", "began": 1}, 1, ""),
        (GPU, {"gpus": 1}, 0, "no second GPU"),
        (GPU, {"processes": 2}, 0, "no second GPU"),
        (CPU, {"device": torch.device("mps")}, 0, "one mps device"),
    ],
)
def test_and_nowhere_else(now: Situation, changes: Any, threads: int, reason: str) -> None:
    found = decide(dataclasses.replace(now, **changes))
    assert (found.device, found.threads) == (None, threads)
    assert reason in found.reason
    assert bool(reason) == bool(found.reason)


def test_what_no_worker_can_do_is_refused() -> None:
    with pytest.raises(ValueError, match="worker on needs no-updating"):
        GenerateConfig(worker="on", updating=True)
    check_device("auto")
    check_device("cpu")
    with pytest.raises(UsageError, match=r"--generate\.worker-device cuda:99: there are "):
        check_device("cuda:99")
    with pytest.raises(UsageError, match=r"--generate\.worker-device gpu"):
        check_device("gpu")


def test_training_has_its_share_of_the_threads_until_the_last_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    monkeypatch.setattr(ahead, "threads_to_share", lambda: 8)
    monkeypatch.setattr(ahead, "_set_threads", given.append)
    beside = Ahead(Decision(None, 3), None, total=2)
    for made in (0, 1, 2, 2):
        beside.look(made)
    beside.close()
    assert given == [5, 5, 8, 8, 8]
    given.clear()
    alone = Ahead(Decision(None, 0, "why"), None, total=2)
    alone.look(0)
    alone.close()
    assert given == []


# The order


def test_a_worker_reads_the_images_that_training_has(
    ldm: LatentDiffusion, dataset: MultiDomainDataset, tmp_path: Path
) -> None:
    other = np.lib.format.open_memmap(tmp_path / "other.npy", "w+", np.uint8, dataset.images.shape)
    raw = np.memmap(tmp_path / "raw", np.uint8, "w+", shape=dataset.images.shape)
    for array in (other, raw):
        array[:] = 255 - dataset.images
    for name, images, copied in (
        ("whole file", dataset.images, False), ("another", other, False), ("backwards", dataset.images[::-1], True),
        ("a part", dataset.images[3:], True), ("no file", np.array(dataset.images), True), ("not .npy", raw, True),
    ):  # fmt: skip
        folder = tmp_path / name
        folder.mkdir()
        given = dataclasses.replace(dataset, images=images)
        Order(ldm, given, np.arange(4), CONFIG, (), {}).write(folder, "cpu")
        assert (folder / "images.npy").exists() == copied, name
        assert np.array_equal(np.load(read_json(folder / "order.json")["images"]), images), name


def test_what_is_damaged_in_the_cache_is_mended_before_a_worker_reads_it(
    ldm: LatentDiffusion, make_image_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """The worker reads the file, and has neither checksums nor the images that it was made from."""
    dataset = load_folder(make_image_folder("odd", count=2), DataConfig(size=16))
    sound = np.array(dataset.images)
    path = Path(dataset.images.filename)
    damaged = np.load(path, mmap_mode="r+")
    damaged[5, 2, 3, 1] ^= 16
    damaged.flush()
    again = load_folder(tmp_path / "odd", DataConfig(size=16))
    Order(ldm, again, np.arange(3, 9), CONFIG, (), {}).write(tmp_path, "cpu")
    assert read_json(tmp_path / "order.json")["images"] == str(path.resolve())
    assert np.array_equal(np.load(path), sound)


# Claims


def test_a_claim_holds_against_other_processes_and_ends_with_its_own(tmp_path: Path) -> None:
    numbers = np.array([3, 7, 8, 900_000_000_000])
    with open_lock(tmp_path / "claims") as descriptor:
        with claimed(descriptor, numbers[:3]) as ours:
            assert ours.all()
            assert in_child(lambda: claims_of(tmp_path, numbers)) == [False, False, False, True]
        assert in_child(lambda: claims_of(tmp_path, numbers)) == [True] * 4


def claims_of(folder: Path, numbers: np.ndarray) -> list[bool]:
    with open_lock(folder / "claims") as descriptor, claimed(descriptor, numbers) as ours:
        return ours.tolist()


def in_child(work: Callable[[], list[bool]]) -> list[bool]:
    """What `work` returns in a forked process."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, bytes(work()))
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        found = list(map(bool, pipe.read()))
    assert os.waitpid(child, 0)[1] == 0
    return found


def test_what_another_process_has_begun_is_waited_for_and_made_where_that_dies(
    ldm: LatentDiffusion, dataset: MultiDomainDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.arange(0, 40, 2)
    plain = Making(ldm, dataset, rows, CONFIG, number=0, styles=ldm.styles)
    expected = np.concatenate([plain.make(np.arange(part.start, part.stop)) for part in plain.parts()])
    cache = CandidateCache(cache_path(ldm, dataset, CONFIG, 0, ldm.styles), dataset, CONFIG)
    stored, dead = rows[:8], rows[8:16]  # a part that the other process finishes, and one that it does not
    ready, begun = os.pipe()
    child = os.fork()
    if child == 0:
        with open_lock(cache.path.with_suffix(".claims")) as descriptor, claimed(descriptor, rows[:16]):
            os.write(begun, b".")
            time.sleep(0.5)
            cache.store(stored, expected[:8])
            time.sleep(0.2)
            os._exit(0)
    assert os.read(ready, 1) == b"."
    made: list[int] = []
    make = Making.make

    def noting(self: Making, positions: np.ndarray) -> np.ndarray:
        made.extend(self.rows[positions].tolist())
        return make(self, positions)

    monkeypatch.setattr(Making, "make", noting)
    plain.fill(cache, wait=False, progress=False)
    assert sorted(made) == rows[16:].tolist()  # at once, without the other's
    plain.fill(cache, progress=False)
    assert os.waitpid(child, 0)[1] == 0
    assert sorted(made) == sorted([*rows[16:].tolist(), *dead.tolist()])
    assert np.array_equal(cache.images[rows], expected)


# Whole runs


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


def wait_until(reached: Callable[[], bool], what: str, seconds: float = 120.0) -> None:
    limit = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < limit, what
        time.sleep(0.02)


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
