"""Whether there is a worker, where, and with how many threads."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from domainfusion.config import GenerateConfig
from domainfusion.errors import UsageError
from domainfusion.fusion import ahead
from domainfusion.fusion.ahead import Ahead
from domainfusion.fusion.worker_decision import Decision, Situation, check_device, decide

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
        (CPU, {"mode": "on", "lacking": 0.05}, "cpu", 1),
        (CPU, {"lacking": 0.25}, "cpu", 1),
        (CPU, {"lacking": 0.05, "began": 1}, "cpu", 1),  # training has lent these threads in any case
        (GPU, {"lacking": 0.05}, "cuda:1", 1),  # it costs training nothing
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
        (CPU, {"lacking": 0.05}, 0, "nearly all"),
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
