"""Selection over records against literal loops, and the tables of `collect` from files of three kinds."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from domainfusion.cli import run
from domainfusion.results.collect import collect, format_mean, tables_json, tables_text
from domainfusion.results.domainbed import read_records
from domainfusion.results.model_selection import METHODS, draw_order, group_records, select

DOMAINS = 4


def record(
    rng: np.random.Generator, targets: list[int], trial: int = 0, draw: int = 0, step: int = 0, algorithm: str = "ERM"
) -> dict[str, Any]:
    values = {f"env{i}_{part}_acc": round(float(rng.random()), 3) for i in range(DOMAINS) for part in ("in", "out")}
    args = {"algorithm": algorithm, "dataset": "PACS", "hparams_seed": draw, "test_envs": targets, "trial_seed": trial}
    return {"args": args, "hparams": {"lr": 1e-4 * (draw + 1)}, "step": step, "loss": 1.0, **values}


@pytest.fixture
def sweep() -> list[dict[str, Any]]:
    """Two trials of three draws on every target, with every pair of domains held out too, at three steps each."""
    rng = np.random.default_rng(0)
    pairs = [[i, j] for i in range(DOMAINS) for j in range(i + 1, DOMAINS)]
    return [
        record(rng, targets, trial, draw, step)
        for trial in range(2) for draw in range(3) for targets in [*([i] for i in range(DOMAINS)), *pairs]
        for step in (0, 300, 600)
    ]  # fmt: skip


def chosen(records: list[dict[str, Any]], method: str, target: int, trial: int) -> float:
    """The reported accuracy by loops over draws and steps, straight from the definitions."""
    best, reported = -1.0, math.nan
    for draw in range(3):
        run_records = {
            (tuple(sorted(r["args"]["test_envs"])), r["step"]): r for r in records
            if r["args"]["trial_seed"] == trial and r["args"]["hparams_seed"] == draw
        }  # fmt: skip
        for step in (0, 300, 600):
            own = run_records[((target,), step)]
            others = [i for i in range(DOMAINS) if i != target]
            if method == "training-domain":
                value = np.mean([own[f"env{i}_out_acc"] for i in others])
            elif method == "oracle":
                if step != 600:
                    continue
                value = own[f"env{target}_out_acc"]
            else:
                value = np.mean([run_records[(tuple(sorted((target, i))), step)][f"env{i}_in_acc"] for i in others])
            if value > best:
                best, reported = float(value), own[f"env{target}_in_acc"]
    return reported


@pytest.mark.parametrize("method", list(METHODS))
def test_methods_are_their_definitions(sweep: list[dict[str, Any]], method: str) -> None:
    groups = group_records(sweep)
    assert len(groups) == 2 * DOMAINS
    for (_, _, target, trial), records in groups.items():
        found = select(records, method)
        assert found is not None
        assert found.test == chosen(sweep, method, target, trial)


@pytest.mark.parametrize("method", list(METHODS))
def test_of_equals_the_last_draw_and_its_first_step_count(method: str) -> None:
    """As in DomainBed: draws are sorted by validation, those of equal validation by seed, and the last is taken."""
    rng = np.random.default_rng(3)
    records = []
    for draw in (10, 9, 2):  # in the order of their folders' names
        for step in (600, 0, 300):
            for targets in ([0], [0, 1], [0, 2], [0, 3]):
                same = record(rng, targets, draw=draw, step=step)
                same |= {name: 0.5 for name in same if name.endswith("_acc")}
                records.append(same | {"env0_in_acc": (draw * 1000 + step) / 20000})
    found = select(records, method)
    assert found is not None
    assert found.hparams_seed == 10
    assert found.step == {"training-domain": 600, "leave-one-domain-out": 0, "oracle": 600}[method]
    assert found.test == (10_000 + found.step) / 20000


def test_draws_without_a_seed_come_last() -> None:
    assert sorted([10, "{}", 9, '{"lr": 1}'], key=draw_order) == [9, 10, '{"lr": 1}', "{}"]


def test_leave_one_domain_out_needs_every_pair(sweep: list[dict[str, Any]]) -> None:
    records = [r for r in sweep if sorted(r["args"]["test_envs"]) != [1, 2]]
    groups = group_records(records)
    assert select(groups["PACS", "ERM", 1, 0], "leave-one-domain-out") is None
    assert select(groups["PACS", "ERM", 3, 0], "leave-one-domain-out") is not None


def test_leave_one_domain_out_passes_over_a_step_that_two_runs_have() -> None:
    """As in DomainBed: which of them the other runs belong to cannot be told."""
    rng = np.random.default_rng(4)
    whole = [record(rng, targets, step=step) for step in (0, 300) for targets in ([0], [0, 1], [0, 2], [0, 3])]
    best = select(whole, "leave-one-domain-out")
    assert best is not None
    again = record(rng, [0], step=best.step)
    found = select([*whole, again], "leave-one-domain-out")
    assert found is not None
    assert found.step == 300 - best.step
    assert select([*whole, again, record(rng, [0], step=found.step)], "leave-one-domain-out") is None


def write(folder: Path, records: list[dict[str, Any]], tail: str = "") -> None:
    folder.mkdir(parents=True)
    (folder / "results.jsonl").write_text("".join(json.dumps(r, sort_keys=True) + "\n" for r in records) + tail)


def write_runs(root: Path, records: list[dict[str, Any]]) -> None:
    by_run: dict[str, list[dict[str, Any]]] = {}
    for r in records:
        args = r["args"]
        by_run.setdefault(f"{args['trial_seed']}-{args['hparams_seed']}-{args['test_envs']}", []).append(r)
    for name, found in by_run.items():
        write(root / name, found)


def test_tables_of_a_sweep(sweep: list[dict[str, Any]], tmp_path: Path) -> None:
    write_runs(tmp_path, sweep)
    tables, notes = collect([tmp_path])
    assert notes == []
    assert [table.method for table in tables] == list(METHODS)
    for table in tables:
        assert table.domains == ["art_painting", "cartoon", "photo", "sketch"]
        assert table.missing == []
        cells = [[chosen(sweep, table.method, target, trial) for trial in range(2)] for target in range(DOMAINS)]
        expected = [f"{100 * np.mean(c):.1f} +/- {100 * np.std(c) / np.sqrt(2):.1f}" for c in cells]
        assert table.rows()[1] == ["ERM", *expected, f"{100 * np.mean(cells):.1f}"]


def test_what_is_missing_is_said_behind_the_x(sweep: list[dict[str, Any]], tmp_path: Path) -> None:
    records = [r for r in sweep if r["args"]["test_envs"] != [2] and not (r["args"]["test_envs"] == [3] and
               r["args"]["trial_seed"] == 1)]  # fmt: skip
    write_runs(tmp_path, records)
    table = collect([tmp_path], ["training-domain"])[0][0]
    assert table.rows()[1][3] == "X"
    assert table.rows()[1][-1] == "X"
    assert table.missing == ["ERM, target photo: no run for trial 0, 1", "ERM, target sketch: no run for trial 1"]
    pairs = [r for r in sweep if sorted(r["args"]["test_envs"]) not in ([0, 1], [0, 2])]
    write_runs(tmp_path / "pairs", pairs)
    table = collect([tmp_path / "pairs"], ["leave-one-domain-out"])[0][0]
    assert "ERM, target art_painting with cartoon / photo held out too: no run for trial 0, 1" in table.missing


def test_where_no_run_holds_out_two_domains_a_line_says_so(sweep: list[dict[str, Any]], tmp_path: Path) -> None:
    write_runs(tmp_path, [r for r in sweep if len(r["args"]["test_envs"]) == 1])
    tables, _ = collect([tmp_path])
    for form in ("text", "markdown", "latex"):
        text = tables_text(tables, form)
        assert text.count("no table: no target has all the runs") == 1
        assert text.count("ERM") == 2
        assert "no run for trial" not in text
    lines = tables_text(tables, "latex").splitlines()
    assert all(line[:1] in ("%", "\\", "") or " & " in line for line in lines)


def test_lines_cut_short_or_broken_are_noted(sweep: list[dict[str, Any]], tmp_path: Path) -> None:
    write(tmp_path / "a", sweep[:3], tail='{"args": {"algo')
    write(tmp_path / "b", sweep[3:6], tail='{"step": 3}\n[1, 2]\n')
    found = read_records([tmp_path])
    assert len(found.records) == 6
    assert [note.split(": ", 1)[1].split("(")[0].strip() for note in found.notes] == [
        "cut short; left out", "no record", "no record",
    ]  # fmt: skip


@pytest.mark.parametrize("value", [85.0, -0.1, True, "0.5", None])
def test_an_accuracy_that_is_no_share_is_no_record(tmp_path: Path, value: object) -> None:
    """A per cent would be the best validation of all."""
    good = record(np.random.default_rng(0), [0])
    write(tmp_path / "a", [good | {"env1_out_acc": value}, good])
    found = read_records([tmp_path])
    assert len(found.records) == 1
    assert [f"env1_out_acc is {value!r}" in note for note in found.notes] == [True]


def test_records_of_swad_are_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    records = []
    for step in (0, 100):
        r = record(rng, [2], step=step)
        for name in [name for name in r if name.endswith("_acc")]:
            r[name.removesuffix("_acc")] = r.pop(name)
        del r["args"]["hparams_seed"]
        r["args"]["test_envs"], r["args"]["real_test_envs"] = [[0], [1], [2], [3]], [2]
        r["train_out"] = 0.5
        records.append(r)
    write(tmp_path / "run", records)
    table = collect([tmp_path], ["training-domain"])[0][0]
    best = max(records, key=lambda r: np.mean([r[f"env{i}_out"] for i in (0, 1, 3)]))
    assert table.accuracy == {"ERM": {**{name: [] for name in table.domains}, "photo": [best["env2_in"]]}}


def test_format_is_domainbeds() -> None:
    shares = [0.812, 0.799, 0.834]
    assert format_mean(shares) == f"{100 * np.mean(shares):.1f} +/- {100 * np.std(np.array(shares) / np.sqrt(3)):.1f}"
    assert format_mean([]) == "X"


def test_forms(sweep: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_runs(tmp_path, sweep)
    tables = collect([tmp_path], ["oracle"])[0]
    latex = tables_text(tables, "latex")
    assert "\\begin{tabular}{lccccc}" in latex
    assert "art\\_painting" in latex
    assert "$\\pm$" in latex
    assert "| ERM |" in tables_text(tables, "markdown")
    assert tables_json(tables)[0]["accuracy"]["ERM"]["photo"] == pytest.approx(
        [100 * chosen(sweep, "oracle", 2, trial) for trial in range(2)]
    )
    assert run(["collect", str(tmp_path), "--selection", "oracle", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == tables_json(tables)
    assert run(["collect", str(tmp_path / "nowhere")]) == 2
    (tmp_path / "empty").mkdir()
    assert run(["collect", str(tmp_path / "empty")]) == 2
    assert "no records" in capsys.readouterr().err


def ours(folder: Path, evaluated: list[int], *files: str, **changes: Any) -> None:
    """A run of ours of 600 steps: its records so far, and what else lies in its folder."""
    rng = np.random.default_rng(len(evaluated))
    records = [record(rng, [0], step=step) for step in evaluated]
    for found in records:
        found["args"] |= {"steps": 600, "env_names": list("abcd"), **changes}
    write(folder, records)
    for name in files:
        (folder / name).write_text("")


def test_runs_of_ours_that_are_not_finished_are_left_out_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished = ("config.toml", "result.json", "done")
    ours(tmp_path / "runs" / "whole", [300, 600], *finished)
    ours(tmp_path / "runs" / "ended-early", [600], *finished, steps=5000)  # SWAD's, say
    ours(tmp_path / "runs" / "stopped", [300], "config.toml", trial_seed=1)
    ours(tmp_path / "runs" / "not-tested-yet", [300, 600], "config.toml", trial_seed=2)
    found = read_records([tmp_path / "runs"])
    assert {Path(r["folder"]).name for r in found.records} == {"whole", "ended-early"}
    assert [note.partition(";")[0] for note in found.notes] == [
        f"{tmp_path / 'runs' / 'not-tested-yet' / 'results.jsonl'}: the run is not finished (step 600 of 600)",
        f"{tmp_path / 'runs' / 'stopped' / 'results.jsonl'}: the run is not finished (step 300 of 600)",
    ]
    assert run(["collect", str(tmp_path / "runs"), "--domainbed", str(tmp_path / "laid-out")]) == 0
    assert "stopped/results.jsonl: the run is not finished (step 300 of 600)" in capsys.readouterr().err
    laid_out = sorted((tmp_path / "laid-out").glob("*/results.jsonl"))
    assert len(laid_out) == 2
    assert all((path.parent / "done").exists() for path in laid_out)
    assert run(["collect", str(tmp_path / "runs" / "stopped")]) == 2
    assert "(step 300 of 600)" in capsys.readouterr().err


def test_of_records_alone_those_are_unfinished_that_stop_before_the_last_step(tmp_path: Path) -> None:
    ours(tmp_path / "whole", [300, 600])
    ours(tmp_path / "stopped", [100, 300])
    ours(tmp_path / "selected", [300])  # DSI's and SWAD's one record
    found = read_records([tmp_path])
    assert {Path(r["folder"]).name for r in found.records} == {"whole", "selected"}
    assert [note.split(":")[0] for note in found.notes] == [str(tmp_path / "stopped" / "results.jsonl")]


def test_theirs_are_read_as_their_scripts_read_them(tmp_path: Path) -> None:
    """DomainBed's records name the steps too, and a folder without `done` is read."""
    records = [record(np.random.default_rng(0), [0], step=step) for step in (0, 300)]
    for found in records:
        found["args"]["steps"] = 5001
    write(tmp_path / "theirs", records)
    assert [len(part) for part in (read_records([tmp_path]).records, read_records([tmp_path]).notes)] == [2, 0]
