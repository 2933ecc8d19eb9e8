"""Benchmarks with several draws, and with leave-one-domain-out selection, against loops over what the runs wrote."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from domainbed_scripts import load_records, selected
from domainfusion.cli import run
from domainfusion.config import TrainConfig
from domainfusion.experiments import benchmark
from domainfusion.experiments.benchmark import run_benchmark
from domainfusion.experiments.search import Search
from domainfusion.files import read_json
from domainfusion.json_lines import read_json_lines
from domainfusion.report.answer import build_answer
from domainfusion.report.facts import describe_selection, run_rows
from domainfusion.report.html import write_report
from domainfusion.report.reading import read_runs
from domainfusion.report.study import build_arms, build_studies
from domainfusion.results.collect import collect
from searching import DOMAINS, OPTIONS, SPACE


@pytest.fixture(scope="module")
def done(four_domains: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """One target, two trials, two draws (the second of a space of its own), selected by leave-one-domain-out."""
    folder = tmp_path_factory.mktemp("benchmark") / "b"
    search = Search(draws=(0, 1), selection="leave-one-domain-out", table=SPACE, origin="s.toml")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOMAINFUSION_CACHE", str(tmp_path_factory.mktemp("cache")))
        return folder, run_benchmark(str(four_domains), OPTIONS, ["erm"], [0, 1], ["photo"], folder, search=search)


def records_of(folder: Path, domains: str, trial: int, draw: int) -> dict[int, dict[str, Any]]:
    name = f"trial-{trial}" + (f"-draw-{draw}" if draw else "")
    return {record["step"]: record for record in read_json_lines(folder / "erm" / domains / name / "results.jsonl")}


def test_every_pair_with_the_target_is_run_and_no_other(done: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = done
    found = sorted(path.parent.relative_to(folder).as_posix() for path in folder.rglob("result.json"))
    held = ("art+photo", "cartoon+photo", "photo", "photo+sketch")
    names = ("trial-0", "trial-0-draw-1", "trial-1", "trial-1-draw-1")
    assert found == sorted(f"erm/{domains}/{name}" for domains in held for name in names)


def test_the_figure_is_the_one_that_the_other_domains_prefer(done: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = done
    for trial in (0, 1):
        best, reported, chosen, at = -1.0, np.nan, -1, -1
        for draw in (1, 0):  # of draws that are equally good the last counts, of steps the first
            single = records_of(folder, "photo", trial, draw)
            assert sorted(single) == [1, 2, 3]
            for step in (1, 2, 3):
                left = [
                    records_of(folder, domains, trial, draw)[step][f"env{number}_in_acc"]
                    for domains, number in (("art+photo", 0), ("cartoon+photo", 1), ("photo+sketch", 3))
                ]
                if np.mean(left) > best:
                    best, reported, chosen, at = float(np.mean(left)), single[step]["env2_in_acc"], draw, step
        assert summary["accuracy"]["erm"]["photo"][trial] == pytest.approx(100 * reported, abs=1e-3)
        assert summary["validation"]["erm"]["photo"][trial] == pytest.approx(100 * best, abs=1e-3)
        assert summary["draws"]["erm"]["photo"][trial] == chosen
        assert summary["steps"]["erm"]["photo"][trial] == at
    assert summary["selection"] == "leave-one-domain-out validation"
    assert summary["hparams_seeds"] == [0, 1]
    assert read_json(folder / "benchmark.json") == summary


def test_draws_are_in_the_configs_and_the_records(done: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = done
    rates = {}
    for domains in ("photo", "art+photo"):
        for trial in (0, 1):
            for draw in (0, 1):
                (record, *_) = records_of(folder, domains, trial, draw).values()
                assert (record["args"]["hparams_seed"], record["args"]["trial_seed"]) == (draw, trial)
                rates[domains, trial, draw] = record["hparams"]["lr"]
    assert rates["photo", 0, 0] == rates["photo", 1, 0] == OPTIONS.lr
    assert len({rates["photo", 0, 1], rates["photo", 1, 1], OPTIONS.lr}) == 3
    assert all(rates["art+photo", trial, draw] == rates["photo", trial, draw] for trial in (0, 1) for draw in (0, 1))


def test_collect_prints_every_method_of_these_runs(done: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = done
    tables, notes = collect([folder])
    assert notes == []
    by_method = {table.method: table for table in tables}
    assert set(by_method) == {"training-domain", "leave-one-domain-out", "oracle"}
    found = by_method["leave-one-domain-out"].accuracy["ERM"]["photo"]
    assert [100 * share for share in found] == pytest.approx(summary["accuracy"]["erm"]["photo"], abs=1e-3)
    for table in tables:
        assert len(table.accuracy["ERM"]["photo"]) == 2
        assert all(len(table.accuracy["ERM"][domain]) == 0 for domain in DOMAINS if domain != "photo")


def test_domainbeds_scripts_find_these_runs_in_the_layout(done: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, _ = done
    output = tmp_path / "for-domainbed"
    assert run(["collect", str(folder), "--domainbed", str(output)]) == 0
    records = load_records(output)
    assert len(records) == 3 * len(list(folder.rglob("results.jsonl")))
    assert all((path / "done").exists() for path in output.iterdir() if path.is_dir())
    fields = {f"env{number}_{part}_acc" for number in range(4) for part in ("in", "out")}
    fields |= {"args", "epoch", "hparams", "loss", "mem_gb", "step", "step_time"}  # all that its train.py writes
    assert all(set(record) == fields and record["mem_gb"] == 0 for record in records)
    for table in collect([folder])[0]:
        theirs = selected(records, table.method)
        assert [theirs[table.dataset, "ERM", 2, trial] for trial in (0, 1)] == table.accuracy["ERM"]["photo"]
        assert {target for _, _, target, _ in theirs} == {2}


def test_the_report_shows_the_draws_that_count_as_one_arm(done: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = done
    runs = read_runs([folder])  # of those that hold out one domain
    assert {run.unit[0]: run.options["hparams_seed"] for run in runs} == dict(
        zip((0, 1), summary["draws"]["erm"]["photo"], strict=True)
    )
    assert len(runs) == 2
    (arm,) = build_arms(runs)
    assert len(arm.runs) == 2


def test_the_report_shows_the_figures_that_the_benchmark_reports(
    done: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """The accuracy and the validation at the step that the other domains chose, not those of the weights kept."""
    folder, summary = done
    work = tmp_path / "b"
    shutil.copytree(folder, work)
    path = work / "benchmark.json"
    # Let the benchmark have chosen a step that the run did not, whatever chance makes of so few steps.
    run = next(run for run in read_runs([work]) if run.unit[0] == 0)
    step = next(record["step"] for record in run.records if record["step"] != run.result["selected_step"])
    summary = summary | {"steps": {"erm": {"photo": [step, summary["steps"]["erm"]["photo"][1]]}}}
    summary["accuracy"] = {"erm": {"photo": [12.5, summary["accuracy"]["erm"]["photo"][1]]}}
    path.write_text(json.dumps(summary))
    runs = read_runs([work])
    by_trial = {run.unit[0]: run for run in runs}
    assert [by_trial[trial].accuracy for trial in (0, 1)] == summary["accuracy"]["erm"]["photo"]
    assert [by_trial[trial].step for trial in (0, 1)] == summary["steps"]["erm"]["photo"]
    record = next(record for record in by_trial[0].records if record["step"] == step)
    assert by_trial[0].validation == f"{100 * record['validation_accuracy']:.1f} %"
    assert by_trial[0].kept_accuracy == 100 * by_trial[0].result["target_accuracy"]
    for paths in ([work], [by_trial[0].folder]):
        (study,) = build_studies(read_runs(paths))
        answer = build_answer(study)
        text = str(answer.table) + answer.table_note + str(answer.headline) + str(run_rows(study))
        assert "12.5" in text
        assert "leave-one-domain-out validation chose" in answer.table_note
        kept = [
            100 * run.result["target_accuracy"] for run in (by_trial.values() if paths == [work] else [by_trial[0]])
        ]
        assert f"they are right on ERM {np.mean(kept):.1f} %" in answer.table_note
        assert describe_selection(study).startswith("Leave-one-domain-out validation")
    assert answer.table[1][-2:] == [by_trial[0].validation, str(step)]
    page = write_report([work], tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Leave-one-domain-out validation: an accuracy" in page
    assert "Training-domain validation: of the weights" not in page
    # A run that lies elsewhere is what it says itself; so is one of a benchmark by training-domain validation.
    shutil.copytree(by_trial[0].folder, tmp_path / "alone")
    path.write_text(json.dumps(summary | {"selection": "training-domain validation"}))
    for place in (tmp_path / "alone", by_trial[0].folder):
        (study,) = build_studies(read_runs([place]))
        (run,) = study.arms[0].runs
        assert (run.accuracy, run.step) == (run.kept_accuracy, run.result["selected_step"])
        assert describe_selection(study).startswith("Training-domain validation")
        assert "leave-one" not in build_answer(study).table_note
    # Benchmarks of before say no steps.
    path.write_text(json.dumps({name: value for name, value in summary.items() if name != "steps"}))
    (study,) = build_studies(read_runs([by_trial[0].folder]))
    assert (study.arms[0].runs[0].accuracy, study.arms[0].runs[0].step) == (12.5, None)
    assert build_answer(study).table[1][-2:] == ["–", "–"]


def test_training_domain_validation_chooses_a_draw_by_the_sources_alone(
    four_domains: Path, done: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def train_run(data: str, config: TrainConfig, where: Path, **how: Any) -> dict[str, Any]:
        validation = {0: 0.5, 1: 0.7, 2: 0.7, 3: 0.6}[config.hparams_seed]
        return {"target_accuracy": config.hparams_seed / 10, "validation_accuracy": validation, "seconds": 1.0,
                "protocol": "domainbed"}  # fmt: skip

    monkeypatch.setattr(benchmark, "train_run", train_run)
    found = run_benchmark(
        str(four_domains), OPTIONS, ["erm", "rsc"], [0], ["photo", "art"], tmp_path, search=Search(draws=(0, 1, 2, 3))
    )
    assert found["draws"] == {name: {"photo": [2], "art": [2]} for name in ("erm", "rsc")}  # the last of equals
    assert found["accuracy"]["rsc"] == {"photo": [20.0], "art": [20.0]}
    assert found["seconds"]["erm"] == [4.0, 4.0]
    assert found["selection"] == "training-domain validation"


def test_without_a_search_options_are_taken_as_they_are(
    four_domains: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[TrainConfig] = []

    def train_run(data: str, config: TrainConfig, where: Path, **how: Any) -> dict[str, Any]:
        seen.append(config)
        return {"target_accuracy": 0.5, "validation_accuracy": 0.5, "seconds": 1.0, "protocol": "domainbed"}

    monkeypatch.setattr(benchmark, "train_run", train_run)
    config = dataclasses.replace(OPTIONS, hparams_seed=4, lr=0.123, algorithm="erm", target="art")
    run_benchmark(str(four_domains), config, ["erm"], [1], ["art"], tmp_path)
    assert seen == [dataclasses.replace(config, trial=1, seed=1)]


def test_the_command_line_reaches_all_of_it(
    four_domains: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Search] = []

    def stand_in(*words: Any, search: Search, **more: Any) -> dict[str, Any]:
        seen.append(search)
        return {"dataset": "d", "protocol": "p", "accuracy": {"erm": {"photo": [50.0]}}}

    monkeypatch.setattr(benchmark, "run_benchmark", stand_in)
    (tmp_path / "o.toml").write_text("lr = 0.5\n[search]\ndropout = [0.1, 0.2]\n")
    words = [
        "benchmark",
        str(four_domains),
        "--algorithms",
        "erm",
        "--config",
        str(tmp_path / "o.toml"),
        "--steps",
        "3",
    ]
    assert run([*words, "--hparams-seeds", "4", "--selection", "leave-one-domain-out"]) == 0
    assert "leave-one-domain-out validation of 4 draws" in capsys.readouterr().out
    assert (seen[0].draws, seen[0].selection) == ((0, 1, 2, 3), "leave-one-domain-out")
    assert seen[0].table == {"dropout": [0.1, 0.2]}
    assert {"lr", "steps"} <= set(seen[0].given)
    assert run([*words, "--hparams-seed", "5", "--hparams-seeds", "2", "--run-seeds", "domainbed", "--json"]) == 0
    json.loads(capsys.readouterr().out)
    assert (seen[1].draws, seen[1].seeds) == ((5, 6), "domainbed")
    monkeypatch.undo()
    assert run([*words, "--dropout", "0.5", "--hparams-seeds", "4", "--output", str(tmp_path / "b")]) == 2
    assert "the draws for erm are all the same, because all that is drawn is given (dropout)" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()
    assert run([*words, "--hparams-seeds", "0"]) == 2
    assert run([*words, "--second-target", "art"]) == 2
    assert "--selection leave-one-domain-out" in capsys.readouterr().err
