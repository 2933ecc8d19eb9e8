"""Memory that a run's records tell of, and work in smaller parts where it runs out."""

from __future__ import annotations

import pytest
import torch

from domainfusion.memory import halve_until_it_fits, peak_gpu_memory


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


def test_work_is_halved_until_it_fits(capsys: pytest.CaptureFixture[str]) -> None:
    tried = []

    def work(size: int) -> str:
        tried.append(size)
        if size > 3:
            raise MemoryError
        return "done"

    assert halve_until_it_fits(work, 14, "drawing") == ("done", 3)
    assert tried == [14, 7, 3]
    assert "out of memory in drawing: 3 at once from here on" in capsys.readouterr().err


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), torch.OutOfMemoryError("of a single image")])
def test_other_errors_and_those_of_a_single_thing_are_let_through(error: RuntimeError) -> None:
    tried = []

    def work(size: int) -> None:
        tried.append(size)
        if size == 1 or not isinstance(error, torch.OutOfMemoryError):
            raise error
        raise MemoryError

    with pytest.raises(RuntimeError, match=str(error)):
        halve_until_it_fits(work, 4, "drawing")
    assert tried == ([4, 2, 1] if isinstance(error, torch.OutOfMemoryError) else [4])
