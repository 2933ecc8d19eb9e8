"""Two processes that train together come to what one comes to, and survive what one survives."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from domainfusion.errors import UsageError
from domainfusion.files import read_json, write_text
from domainfusion.json_lines import read_json_lines
from domainfusion.processes import ALONE, Processes
from domainfusion.tensors import load_state
from same_run import tensors_of

WORDS = [
    "--target", "photo", "--steps", "4", "--evaluations", "2", "--batch-size", "4", "--backbone", "test_resnet",
    "--precision", "float32", "--device", "cpu", "--data.size", "16",
]  # fmt: skip
FUSION = [
    "--algorithm", "domainfusion", "--generate.steps", "1", "--distill.images-per-step", "3", "--freeze-bn",
    "--synthetic-share", "0.6", "--generate.batch-size", "8",
]  # fmt: skip


# `domainfusion`, which says first what it takes itself for: a launcher that starts one process would pass every test.
PROGRAM = """
import sys
from domainfusion.processes import join_processes
{change}
processes = join_processes()
sys.stderr.write(f"process {{processes.rank}} of {{processes.count}}\\n")  # at once: the other writes too
from domainfusion.__main__ import main
main()
"""


def command(images: Path, output: Path, *words: str, count: int = 1, change: str = "") -> list[str]:
    """What starts `count` processes of one run, the code `change` run in each before."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python", sys.executable]
    start = [*(launcher if count == 2 else []), "-c", PROGRAM.format(change=change)]
    pairs = [pair for pair in zip(WORDS[::2], WORDS[1::2], strict=True) if pair[0] not in words]
    options = [word for pair in pairs for word in pair]
    return [sys.executable, *start, "train", str(images), *options, *words, "--output", str(output)]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    given = {"DOMAINFUSION_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return {**os.environ, **given}


def run(words: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=240, check=False)


def assert_close(first: Path, second: Path) -> None:
    """Weights and what the optimizer holds are equal but for the order of sums, and so are the records."""
    a, b = (tensors_of(load_state(folder / "checkpoints/last.safetensors")) for folder in (first, second))
    assert list(a) == list(b)
    for name in a:
        torch.testing.assert_close(
            a[name], b[name], rtol=2e-3, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
    for x, y in zip(*(read_json_lines(folder / "metrics.jsonl") for folder in (first, second)), strict=True):
        assert x.keys() == y.keys()
        for name, value in x.items():
            if isinstance(value, float) and "second" not in name:
                assert y[name] == pytest.approx(value, rel=1e-3, abs=1e-4), name
    results = [read_json(folder / "result.json") for folder in (first, second)]
    assert results[0]["target_accuracy"] == results[1]["target_accuracy"]


def test_two_processes_come_to_what_one_comes_to(
    image_folder: Path, tiny_pipeline: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    """All of DomainFusion: generations in shares, slopes, synthetic images, on the same global batches."""
    words = [*FUSION, "--ldm", str(tiny_pipeline)]
    alone = run(command(image_folder, tmp_path / "one", *words), environment)
    assert alone.returncode == 0, alone.stderr
    environment["DOMAINFUSION_CACHE"] = str(tmp_path / "another-cache")
    together = run(command(image_folder, tmp_path / "two", *words, count=2), environment)
    assert together.returncode == 0, together.stderr
    assert sorted(re.findall(r"process \d of \d", together.stderr)) == ["process 0 of 2", "process 1 of 2"]
    assert_close(tmp_path / "one", tmp_path / "two")
    assert together.stdout.count("target photo") == alone.stdout.count("target photo") == 1  # one of them speaks
    images = [np.load(tmp_path / name / "synthetic" / "generation-00" / "images.npy") for name in ("one", "two")]
    assert np.abs(images[0].astype(int) - images[1].astype(int)).max() <= 1
    # The same command, alone, reads what they made.
    again = run(command(image_folder, tmp_path / "two", *words), environment)
    assert again.returncode == 0, again.stderr


def test_a_signal_to_one_process_saves_the_run_of_both(
    image_folder: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    words = ["--algorithm", "erm", "--steps", "4000", "--evaluations", "4000", "--freeze-bn"]
    output = tmp_path / "run"
    process = subprocess.Popen(
        command(image_folder, output, *words, count=2), env=environment, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    records = output / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (records.exists() and len(read_json_lines(records)) > 2):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    children = subprocess.run(
        ["pgrep", "-f", f"train {image_folder}"], capture_output=True, text=True, check=True
    ).stdout.split()
    ranks = [int(pid) for pid in children if int(pid) != process.pid]
    os.kill(ranks[-1], signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert "process 1 of 2" in errors
    assert process.returncode != 0
    state = load_state(output / "checkpoints" / "last.safetensors")
    step = state["progress"]["step"]
    assert 2 < step < 4000, errors
    assert not (output / "result.json").exists()


# A backbone that lacks memory: LIMITS are {(rank, pass): (first step of which, most images)}.
SHORT = """
import os
import torch
from domainfusion.algorithms.classifier import Classifier
from domainfusion.algorithms.erm import ERM
from domainfusion.algorithms.groupdro import GroupDRO

LIMITS, rank, step, features = LIMITS_OF_ALL, int(os.environ["RANK"]), [0], Classifier._features

def ask(kind, count):
    since, most = LIMITS.get((rank, kind), (0, 10**9))
    if step[0] >= since and count > most:
        raise torch.OutOfMemoryError(f"no memory for {count} images in the {kind} pass")

class Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, found):
        return found.clone()

    @staticmethod
    def backward(ctx, gradient):
        ask("backward", len(gradient))
        return gradient

def limited(self, images):
    found = features(self, images)  # fails late, when BatchNorm's averages have moved
    ask("forward" if self.training else "test", len(images))
    return Backward.apply(found) if self.training else found

def before_step(self, now, epoch):
    step[0] = now

Classifier._features = limited
ERM.before_step = GroupDRO.before_step = before_step
"""


def test_all_processes_go_back_where_one_runs_out_of_memory(
    image_folder: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    """In the forward pass of one, the backward pass of the other, and a test: all go on in the same halves, and come to
    what one process comes to. GroupDRO exchanges values inside of its loss, too."""
    words = ["--algorithm", "groupdro", "--freeze-bn", "--batch-size", "8", "--steps", "6", "--evaluations", "3"]
    alone = run(command(image_folder, tmp_path / "one", *words), environment)
    assert alone.returncode == 0, alone.stderr
    limits = {(1, "forward"): (1, 4), (0, "backward"): (3, 2), (1, "test"): (5, 1)}
    change = SHORT.replace("LIMITS_OF_ALL", repr(limits))
    together = run(command(image_folder, tmp_path / "two", *words, count=2, change=change), environment)
    assert together.returncode == 0, together.stderr
    notes = re.findall("note: out of memory.*", together.stderr)  # it may stand behind a bar
    assert [note.partition(": from here on ")[0] for note in notes[:2]] == [
        "note: out of memory at step 1 in process 1 of 2", "note: out of memory at step 3 in process 0 of 2",
    ]  # fmt: skip
    assert "at most 4 images pass the backbone at once in each process" in notes[0]
    assert "at most 2 images" in notes[1]
    assert notes[2:]
    assert all("at step 5 in process 1 of 2" in note for note in notes[2:])
    records = read_json_lines(tmp_path / "two" / "metrics.jsonl")
    portions = [(record["step"], record.pop("images_at_once"), record.pop("since_step")) for record in records]
    assert portions == [(2, 4, 1), (4, 2, 3), (6, 1, 5)]
    write_text(tmp_path / "two" / "metrics.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    assert_close(tmp_path / "one", tmp_path / "two")


def test_all_processes_end_where_no_halves_help(
    image_folder: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    change = SHORT.replace("LIMITS_OF_ALL", repr({(1, "backward"): (2, 0)}))
    words = ["--algorithm", "erm", "--freeze-bn"]
    ended = run(command(image_folder, tmp_path / "run", *words, count=2, change=change), environment)
    assert ended.returncode != 0
    # Not from the beginning of a line: the first process's bar may stand before what the other one says.
    said = re.findall(r"domainfusion: out of memory at step 2.*", ended.stderr)
    assert sorted("no memory for 1 images" in line for line in said) == [False, True], ended.stderr
    assert all("in process 1 of 2" in line and "use a smaller --batch-size" in line for line in said)
    assert load_state(tmp_path / "run" / "checkpoints" / "last.safetensors")["progress"]["step"] == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [({"batch_size": 5}, "--batch-size 5 .* 2 processes"), ({"swad": True}, "--average.method swad")],
)
def test_what_processes_cannot_share_is_refused(change: dict[str, Any], message: str) -> None:
    options: dict[str, Any] = {"batch_size": 4, "swad": False, "freeze_bn": False, "device": torch.device("cpu")}
    module = torch.nn.Linear(2, 2)
    ALONE.prepare(module, **{**options, **change})
    with pytest.raises(UsageError, match=message):
        Processes(0, 2).prepare(module, **{**options, **change})


@pytest.mark.parametrize(("sizes", "count"), [((3, 2), 5), ((1, 1, 1), 3), ((4, 3, 3), 10)])
def test_weighted_means_of_shares_average_to_the_mean_of_all(sizes: tuple[int, ...], count: int) -> None:
    values = torch.rand(count, dtype=torch.float64)
    total = torch.zeros((), dtype=torch.float64)
    for rank, size in enumerate(sizes):
        processes = Processes(rank, len(sizes))
        mine = processes.share(count)
        assert len(mine) == size
        total += processes.weight(size, count) * values[torch.from_numpy(mine)].mean()
    assert total / len(sizes) == pytest.approx(float(values.mean()))
