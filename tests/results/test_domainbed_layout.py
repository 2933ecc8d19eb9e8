"""`collect --domainbed`: what DomainBed's scripts make of the folder, as a literal copy of their steps says it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from domainbed_scripts import load_records, selected, table
from domainfusion.cli import run
from domainfusion.errors import FileError
from domainfusion.files import write_text
from domainfusion.results import domainbed_layout
from domainfusion.results.collect import collect
from domainfusion.results.domainbed import read_records
from domainfusion.results.domainbed_layout import lay_out
from domainfusion.results.model_selection import METHODS

DOMAINS, STEPS, DRAWS, TRIALS = 4, (1, 301, 601), 11, 2
PAIRS = [[i, j] for i in range(DOMAINS) for j in range(i + 1, DOMAINS)]
Write = Callable[[Path, list[dict[str, Any]]], None]


def record(rng: np.random.Generator, algorithm: str, targets: list[int], trial: int, draw: int, step: int) -> Any:
    """A record whose accuracies are of ten images, so that many evaluations are equally good."""
    args = {
        "algorithm": algorithm, "dataset": "PACS", "hparams_seed": draw, "test_envs": targets, "trial_seed": trial,
        "output_dir": "somewhere",
    }  # fmt: skip
    shares = {f"env{i}_{part}_acc": int(rng.integers(4, 9)) / 10 for i in range(DOMAINS) for part in ("in", "out")}
    return {"args": args, "hparams": {"lr": 1e-4}, "step": step, "loss": 1.0, "epoch": 0.5, **shares}


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    """Two methods' runs as a benchmark lays them, the second's incomplete; one run is not finished."""
    rng = np.random.default_rng(0)
    for algorithm in ("ERM", "DomainFusion"):
        for targets in [*([i] for i in range(DOMAINS)), *PAIRS]:
            for trial in range(TRIALS):
                for draw in range(DRAWS):
                    if algorithm == "DomainFusion" and (targets == [1, 2] or (targets == [3] and trial == 1)):
                        continue
                    held = "+".join(map(str, targets))
                    place = tmp_path / "b" / algorithm.lower() / held / f"trial-{trial}-draw-{draw}"
                    place.mkdir(parents=True)
                    records = [record(rng, algorithm, targets, trial, draw, step) for step in STEPS]
                    (place / "results.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
                    if (targets, trial, draw) != ([0], 0, 0):
                        (place / "done").write_text("done")
    return tmp_path / "b"


def ours(root: Path, method: str) -> dict[tuple[str, str, int], list[float]]:
    (found,) = collect([root], [method])[0]
    return {
        (found.dataset, algorithm, number): cells[domain]
        for algorithm, cells in found.accuracy.items() for number, domain in enumerate(found.domains) if cells[domain]
    }  # fmt: skip


def by_target(accuracies: dict[tuple[str, str, int, int], float]) -> dict[tuple[str, str, int], list[float]]:
    found: dict[tuple[str, str, int], list[float]] = {}
    for key, share in sorted(accuracies.items()):
        found.setdefault(key[:3], []).append(share)
    return found


@pytest.mark.parametrize("method", list(METHODS))
def test_their_figures_are_ours(benchmark: Path, tmp_path: Path, method: str) -> None:
    assert load_records(benchmark) == []  # which is why there is a layout
    output = tmp_path / "for-domainbed"
    assert run(["collect", str(benchmark), "--domainbed", str(output)]) == 0
    theirs = load_records(output)
    assert len(theirs) == len(read_records([benchmark]).records)
    accuracies = selected(theirs, method)
    assert by_target(accuracies) == ours(benchmark, method) == ours(output, method)
    assert len(accuracies) == {"leave-one-domain-out": 8 + 8 - 5}.get(method, 8 + 7)
    (found,) = collect([benchmark], [method])[0]
    assert sorted(table(theirs, method, "PACS", DOMAINS)) == sorted(found.rows()[1:])


def test_records_are_whole_and_done_is_where_runs_are(benchmark: Path, tmp_path: Path) -> None:
    output = tmp_path / "for-domainbed"
    assert run(["collect", str(benchmark), "--domainbed", str(output)]) == 0
    index = json.loads((output / "runs.json").read_text())
    assert set(index) == {path.name for path in output.iterdir()} - {"runs.json"}
    for name, folder in index.items():
        before = [json.loads(line) for line in (Path(folder) / "results.jsonl").read_text().splitlines()]
        assert [json.loads(line) for line in (output / name / "results.jsonl").read_text().splitlines()] == before
    not_done = [name for name in index if not (output / name / "done").exists()]
    assert [name.rsplit("-", 1)[0] for name in sorted(not_done)] == [
        "PACS-DomainFusion-env0-trial0-draw0", "PACS-ERM-env0-trial0-draw0",
    ]  # fmt: skip


def test_a_second_time_replaces_what_was_laid_out(benchmark: Path, tmp_path: Path) -> None:
    output = tmp_path / "for-domainbed"
    assert run(["collect", str(benchmark), "--domainbed", str(output)]) == 0
    (output / "results.txt").write_text("what DomainBed's script leaves")
    assert run(["collect", str(benchmark / "erm"), "--domainbed", str(output)]) == 0
    assert {r["args"]["algorithm"] for r in load_records(output)} == {"ERM"}
    assert len(load_records(output)) == len(read_records([benchmark / "erm"]).records)
    assert (output / "results.txt").exists()
    mine = next(path for path in output.iterdir() if path.is_dir())
    (mine / "notes.txt").write_text("of somebody")
    with pytest.raises(FileError, match="is not collected any more"):
        lay_out(read_records([benchmark / "domainfusion"]).records, output)
    assert (mine / "notes.txt").exists()


def test_what_an_interruption_leaves_is_replaced_too(
    benchmark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, records = tmp_path / "for-domainbed", read_records([benchmark / "erm"]).records
    written = 0

    def until_the_disk_is_full(path: Path, text: str) -> None:
        nonlocal written
        written += 1
        if written > 9:
            raise FileError("the disk is full")
        write_text(path, text)

    with monkeypatch.context() as full:
        full.setattr(domainbed_layout, "write_text", until_the_disk_is_full)
        with pytest.raises(FileError, match="the disk is full"):
            lay_out(records, output)
    domainbed_layout.check_output(output, [benchmark])  # it is known as ours
    few = [r for r in records if r["args"]["test_envs"] == [3]]
    lay_out(few, output)
    assert {tuple(r["args"]["test_envs"]) for r in load_records(output)} == {(3,)}


def test_folders_in_which_it_would_do_harm_are_refused(
    benchmark: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("")
    for output, message in (
        (benchmark / "erm" / "here", "would be read twice"), (benchmark, "would be read twice"),
        (tmp_path, "would be read twice"), (full, "holds other things"), (full / "mine.txt", "holds other things"),
    ):  # fmt: skip
        assert run(["collect", str(benchmark), "--domainbed", str(output)]) == 2
        assert message in capsys.readouterr().err
    assert [path.name for path in full.iterdir()] == ["mine.txt"]


def test_draws_without_a_seed_are_numbered_behind_the_others(tmp_path: Path) -> None:
    """SWAD's records have no seeds of draws; beside DomainBed's, text and numbers could not be sorted."""
    rng = np.random.default_rng(1)
    for name, lr in (("a", 3e-4), ("b", 1e-4), ("c", None)):
        r = record(rng, "ERM", [2], 0, 4, 100)
        if lr is not None:
            del r["args"]["hparams_seed"]
            r["hparams"]["lr"] = lr
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "results.jsonl").write_text(json.dumps(r))  # and its line has no end
    output = tmp_path / "for-domainbed"
    assert run(["collect", str(tmp_path / "runs"), "--domainbed", str(output)]) == 0
    theirs = load_records(output)
    assert {r["args"]["hparams_seed"]: r["hparams"]["lr"] for r in theirs} == {4: 1e-4, 5: 1e-4, 6: 3e-4}
    for method in METHODS:
        assert by_target(selected(theirs, method)) == ours(tmp_path / "runs", method)


def test_data_sets_that_domainbed_has_no_table_of_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    r = record(np.random.default_rng(2), "ERM", [2], 0, 0, 1)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "results.jsonl").write_text(json.dumps(r) + "\n")
    output = tmp_path / "for domainbed"
    assert run(["collect", str(tmp_path / "runs"), "--domainbed", str(output)]) == 0
    printed = capsys.readouterr().err
    assert f"collect_results --input_dir '{output}'" in printed
    assert "no table" not in printed
    r["args"]["dataset"] = "../pictograms"
    (tmp_path / "runs" / "results.jsonl").write_text(json.dumps(r) + "\n")
    assert run(["collect", str(tmp_path / "runs"), "--domainbed", str(output)]) == 0
    assert "prints no table of ../pictograms" in capsys.readouterr().err
    assert [r["args"]["dataset"] for r in load_records(output)] == ["../pictograms"]


def test_it_needs_no_torch(benchmark: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from domainfusion.cli import run; "
        f"assert run(['collect', {str(benchmark)!r}, '--domainbed', {str(tmp_path / 'o')!r}]) == 0; "
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
