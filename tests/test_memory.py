"""Memory that a run's records tell of."""

from __future__ import annotations

import pytest
import torch

from domainfusion.memory import peak_gpu_memory


def test_peak_memory_is_in_gib_of_the_runs_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = {0: 2**30, 1: 3 * 2**29}
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: taken[device.index])
    assert peak_gpu_memory(torch.device("cuda:0")) == 1.0
    assert peak_gpu_memory(torch.device("cuda:1")) == 1.5
    assert peak_gpu_memory(torch.device("cpu")) == 0.0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_peak_memory_stays_when_tensors_go() -> None:
    device = torch.device("cuda")
    before = peak_gpu_memory(device)
    tensor = torch.zeros(2**28, device=device)  # 1 GiB
    del tensor
    assert peak_gpu_memory(device) >= max(before, 1.0)
