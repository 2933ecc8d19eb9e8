"""Signals to the real program, at moments it does not choose; and two programs on one folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from domainfusion.errors import FileError, Interrupted
from domainfusion.files import read_json
from domainfusion.interruption import check, stoppable
from domainfusion.json_lines import read_json_lines
from domainfusion.locks import exclusive

OPTIONS = ("--algorithm", "erm", "--target", "sketch", "--steps", "150", "--evaluations", "15", "--batch-size", "4",
           "--backbone", "test_resnet", "--precision", "float32", "--device", "cpu", "--data.size", "32")  # fmt: skip


def start(images: Path, output: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "domainfusion", "train", str(images), *OPTIONS, "--output", str(output)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_program_that_is_stopped_goes_on(
    make_image_folder: Callable[..., Path], tmp_path: Path, number: signal.Signals, code: int
) -> None:
    images = make_image_folder("images", count=6)
    whole = start(images, tmp_path / "whole")
    _, errors = whole.communicate()
    assert whole.returncode == 0, errors
    process = start(images, tmp_path / "stopped")
    wait_for(tmp_path / "stopped" / "checkpoints" / "last.safetensors", process)
    busy = pytest.raises(FileError, match=f"process {process.pid} is at work in {tmp_path / 'stopped'}")
    with busy, exclusive(tmp_path / "stopped"):
        pass
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == code, errors
    if process.returncode > 0:
        assert f"stopped by {number.name}; everything is saved" in errors
        assert "Traceback" not in errors
    again = start(images, tmp_path / "stopped")
    _, errors = again.communicate()
    assert again.returncode == 0, errors
    for name in ("whole", "stopped"):
        assert (tmp_path / name / "result.json").exists()
    first, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "stopped"))
    assert all(first[key].equal(other[key]) for key in first)
    records = [
        [
            {k: v for k, v in record.items() if k != "seconds"}
            for record in read_json_lines(tmp_path / name / "metrics.jsonl")
        ]
        for name in ("whole", "stopped")
    ]
    assert records[0] == records[1]
    accuracies = [read_json(tmp_path / name / "result.json")["target_accuracy"] for name in ("whole", "stopped")]
    assert accuracies[0] == accuracies[1]


def test_a_signal_waits_for_a_check_or_the_end_of_the_block() -> None:
    before = signal.getsignal(signal.SIGTERM)
    reached = []

    @stoppable()
    def work() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        reached.append("after the signal")
        check()
        reached.append("after the check")

    with pytest.raises(Interrupted) as caught:
        work()
    assert reached == ["after the signal"]
    assert caught.value.number == signal.SIGTERM
    with pytest.raises(Interrupted, match="SIGINT"), stoppable():
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before
    check()  # nothing is left of it


def test_an_error_in_the_block_is_not_hidden_by_a_signal() -> None:
    @stoppable()
    def work() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        raise ValueError("real")

    with pytest.raises(ValueError, match="real"):
        work()


def test_other_threads_leave_signals_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def work() -> None:
        with stoppable():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def test_a_folder_is_let_go_of_after_the_block(tmp_path: Path) -> None:
    busy = pytest.raises(FileError, match=f"process {os.getpid()} is at work")
    with exclusive(tmp_path / "run"), busy, exclusive(tmp_path / "run"):
        pass
    with exclusive(tmp_path / "run"):
        pass
