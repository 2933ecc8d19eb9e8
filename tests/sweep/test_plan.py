"""The plan of a sweep, its ledger and its display, without Ray: what is to be made, in which order, how."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from domainfusion.config import DataConfig, TrainConfig
from domainfusion.config_files import to_toml
from domainfusion.errors import UsageError
from domainfusion.experiments import planning
from domainfusion.experiments.benchmark import config_of
from domainfusion.experiments.search import Plan as BenchmarkPlan
from domainfusion.experiments.search import Search
from domainfusion.files import write_json, write_text
from domainfusion.sweep.costs import divide, estimate_sweep, estimate_text
from domainfusion.sweep.ledger import Ledger
from domainfusion.sweep.options import SweepConfig
from domainfusion.sweep.plan import PRUNED, Outcome, Plan, Run, build_plan, read_progress, source_metrics
from domainfusion.sweep.progress import Progress
from domainfusion.sweep.spaces import Observation, Overrides, Place

CONFIG = TrainConfig(
    steps=8, evaluations=4, batch_size=4, backbone="test_resnet", precision="float32", device="cpu", seed=7,
    data=DataConfig(size=16),
)  # fmt: skip
SPACE = ("lr=loguniform(1e-4,1e-2)",)


def plan_of(*data: Path, output: Path, **options: Any) -> Plan:
    values: dict[str, Any] = {"algorithms": ("erm", "coral"), "trials": 2, **options}
    return build_plan(SweepConfig(data=tuple(map(str, data)), **values), CONFIG, output)


def finish(run: Run, config: TrainConfig, plan: Plan, validation: float = 0.5) -> None:
    """What a finished run leaves that a sweep reads."""
    write_text(run.folder / "config.toml", to_toml(config))
    write_json(
        run.folder / "data.json",
        {"data": run.place.data, "fingerprint": plan.datasets[run.place.data].fingerprint},
    )
    write_json(run.folder / "result.json", {"validation_accuracy": validation, "target_accuracy": 0.9})


def test_runs_are_those_of_a_benchmark_in_its_folders_and_order(image_folder: Path, tmp_path: Path) -> None:
    plan = plan_of(image_folder, output=tmp_path / "s", targets=("photo", "sketch"))
    assert [run.folder.relative_to(tmp_path / "s").as_posix() for run in plan.runs] == [
        f"{algorithm}/{target}/trial-{trial}"
        for trial in (0, 1) for target in ("photo", "sketch") for algorithm in ("erm", "coral")
    ]  # fmt: skip
    for run in plan.runs:
        expected = config_of(CONFIG, (run.place.trial, run.place.target, run.place.algorithm))
        assert plan.config_of(run, ()) == expected


def test_draws_lie_beside_the_first_and_data_sets_have_folders(
    make_image_folder: Callable[..., Path], tmp_path: Path
) -> None:
    one, two = make_image_folder("one"), make_image_folder("two", domains=("photo", "ink"))
    plan = plan_of(one, two, output=tmp_path / "s", draws=3, space=SPACE, trials=1, algorithms=("erm",))
    folders = [run.folder.relative_to(tmp_path / "s").as_posix() for run in plan.runs]
    assert len(folders) == len(set(folders)) == 3 * (3 + 2)
    assert {"one/erm/sketch/trial-0", "one/erm/sketch/trial-0-draw-2", "two/erm/ink/trial-0"} <= set(folders)
    first, second = (plan.config_of(Run(Place("erm", str(one), "photo", 0), n, tmp_path), ()) for n in (0, 1))
    assert (first.hparams_seed, first.lr) == (0, CONFIG.lr)
    assert second.hparams_seed == 1
    assert second.lr != CONFIG.lr
    assert dataclasses.replace(second, hparams_seed=0, lr=CONFIG.lr) == first
    both = plan_of(one, output=tmp_path, draws=2, space=SPACE, trials=1, algorithms=("erm", "diffusion_classifier"))
    drawn = [run.place.algorithm for run in both.runs if run.hparams_seed]
    assert drawn == ["erm"] * 3  # what is not trained has nothing to draw
    # A target that only one of the data sets has is asked for where it is.
    assert plan_of(one, two, output=tmp_path, targets=("photo", "ink")).targets == {
        str(one): ["photo"], str(two): ["photo", "ink"]
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": ()}, "needs a data set"),
        ({"algorithms": ("emr",)}, "unknown algorithm 'emr'; did you mean 'erm'"),
        ({"targets": ("photos",)}, "unknown target .*did you mean 'photo'"),
        ({"draws": 2, "search": "optuna"}, "--search optuna needs what to vary"),
        ({"space": SPACE}, "--space does nothing with one draw"),
        ({"prune": True}, "--prune compares draws"),
    ],
)
def test_what_would_fail_later_is_refused(
    image_folder: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    given = {"data": (str(image_folder),), **options}
    with pytest.raises(UsageError, match=message):
        build_plan(SweepConfig(**given), CONFIG, tmp_path)


def test_what_the_store_has_is_not_made_again(image_folder: Path, tmp_path: Path) -> None:
    plan = plan_of(image_folder, output=tmp_path, trials=1, targets=("photo",))
    finish(plan.runs[0], plan.config_of(plan.runs[0], ()), plan, 0.75)
    ledger = Ledger(plan)
    assert [entry.status for entry in ledger.entries.values()] == ["done", "waiting"]
    assert ledger.entries[plan.runs[0]].outcome == Outcome("done", 0.75)
    taken = ledger.take()
    assert taken is not None
    assert (taken.run, taken.status) == (plan.runs[1], "queued")
    assert ledger.count("running") == 0
    assert ledger.take() is None
    assert ledger.left == 1
    ledger.end(taken, Outcome("failed", reason="why"))
    assert (ledger.left, ledger.failed()) == (0, [taken])


def test_a_run_with_other_options_or_on_other_images_is_refused(image_folder: Path, tmp_path: Path) -> None:
    plan = plan_of(image_folder, output=tmp_path, trials=1)
    run = plan.runs[0]
    finish(run, dataclasses.replace(plan.config_of(run, ()), lr=0.5), plan)
    with pytest.raises(UsageError, match=r"holds a run with lr = 0.5"):
        Ledger(plan)
    finish(run, plan.config_of(run, ()), plan)
    write_json(run.folder / "data.json", {"data": str(image_folder), "fingerprint": "another"})
    with pytest.raises(UsageError, match="have changed since"):
        Ledger(plan)


def test_pruned_runs_stay_so_while_there_is_pruning(image_folder: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"output": tmp_path, "draws": 2, "space": SPACE, "trials": 1, "algorithms": ("erm",)}
    plan = plan_of(image_folder, **options, prune=True)
    write_json(plan.runs[0].folder / PRUNED, {"step": 4, "validation_accuracy": 0.25})
    assert Ledger(plan).entries[plan.runs[0]].outcome == Outcome("pruned", 0.25)
    assert Ledger(plan_of(image_folder, **options)).entries[plan.runs[0]].status == "waiting"


class Sequential:
    """Draws that write down what they were told."""

    def __init__(self) -> None:
        self.told: dict[tuple[Place, int], list[Observation]] = {}

    def needed(self, hparams_seed: int) -> int:
        return hparams_seed

    def draw(self, place: Place, hparams_seed: int, earlier: Any) -> Overrides:
        self.told[place, hparams_seed] = list(earlier)
        return {"lr": 0.001 * (hparams_seed + 1)}


def test_a_draw_waits_for_those_it_needs_and_hears_of_source_validation_alone(
    image_folder: Path, tmp_path: Path
) -> None:
    plan = plan_of(image_folder, output=tmp_path, draws=3, space=SPACE, trials=1, targets=("photo", "sketch"))
    draws = Sequential()
    ledger = Ledger(dataclasses.replace(plan, draws=draws))
    first = [ledger.take() for _ in range(4)]
    assert all(entry is not None and entry.run.hparams_seed == 0 for entry in first)
    assert ledger.take() is None
    assert first[0] is not None
    ledger.end(first[0], Outcome("done", 0.5))
    second = ledger.take()
    assert second is not None
    assert (second.run.place, second.run.hparams_seed) == (first[0].run.place, 1)
    assert ledger.take() is None
    assert draws.told == {(second.run.place, 1): [({"lr": CONFIG.lr}, 0.5)]}
    ledger.end(second, Outcome("failed"))
    third = ledger.take()
    assert third is not None
    assert draws.told[third.run.place, 2] == [({"lr": CONFIG.lr}, 0.5), ({"lr": 0.002}, None)]
    # A draw that was begun keeps its options, whatever would be proposed by now.
    write_text(third.run.folder / "config.toml", to_toml(dataclasses.replace(third.config, lr=0.009)))
    again = Ledger(dataclasses.replace(plan, draws=Sequential()))
    for number in (0, 1):
        entry = next(e for r, e in again.entries.items() if (r.place, r.hparams_seed) == (third.run.place, number))
        again.resolve(entry)
        again.end(entry, Outcome("done", 0.1))
    mine = again.resolve(again.entries[third.run])
    assert mine is not None
    assert mine.lr == 0.009


def test_search_and_pruning_are_not_told_of_the_target(tmp_path: Path) -> None:
    record = {
        "step": 4, "validation_accuracy": 0.5, "target_accuracy": 0.9, "validation": {"photo": 0.5}, "loss": 1.0
    }  # fmt: skip
    assert source_metrics(record) == {"step": 4, "validation_accuracy": 0.5}
    lines = [json.dumps({**record, "step": step, "target_accuracy": step / 10}) for step in (2, 4)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 6, "val')
    assert read_progress(tmp_path) == [{"step": 2, "validation_accuracy": 0.5}, {"step": 4, "validation_accuracy": 0.5}]


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_and_a_table_say_how_far_it_is(image_folder: Path, tmp_path: Path) -> None:
    plan = plan_of(image_folder, output=tmp_path, trials=1, targets=("photo", "sketch"))
    ledger = Ledger(plan)
    lines, screen = io.StringIO(), Screen()
    plain, live = Progress(ledger, lines), Progress(ledger, screen)
    entries = [ledger.take() for _ in range(3)]
    for entry in entries:
        assert entry is not None
        ledger.begin(entry)
        plain.began(entry)
    ledger.end(entries[0], Outcome("done", 0.625))
    entries[0].seconds = 10.0
    plain.ended(entries[0])
    ledger.end(entries[1], Outcome("failed", reason="no disk"))
    plain.ended(entries[1])
    plain.tick(now=True)
    said = lines.getvalue().splitlines()
    assert said[0] == "begun: images erm, target photo, trial 0"
    assert said[3].startswith("done: images erm, target photo, trial 0, source validation 62.5 %; 1 of 4 ended, 2 runn")
    assert "about 15 s left" in said[3]  # one waits and two run, each 10 s like the first, two at a time: (10+10+10)/2
    assert said[4] == "failed: images coral, target photo, trial 0: no disk"
    assert len(said) == 5
    assert "\x1b" not in lines.getvalue()
    live.tick(now=True)
    live.tick()  # too soon
    table = screen.getvalue().splitlines()
    assert [line.split() for line in (table[0], table[2], table[3])] == [
        ["images", "photo", "sketch"], ["erm", "1/1", "0/1", ">1"], ["coral", "1/1", "!1", "0/1"],
    ]  # fmt: skip
    live.say("a line")
    assert screen.getvalue().endswith(f"\x1b[{len(table)}A\x1b[Ja line\n")


def test_costs_are_counted_without_running(image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "BUDGET", 0.05)
    plan = plan_of(image_folder, output=tmp_path / "s", algorithms=("erm",))
    finish(plan.runs[0], plan.config_of(plan.runs[0], ()), plan)
    found = estimate_sweep(plan.options, CONFIG, tmp_path / "s")
    assert (found["runs"], found["ended"], found["left"]) == (6, 1, 5)
    (kind,) = found["kinds"]
    assert (kind["algorithm"], kind["runs"], kind["left"], kind["shared_seconds"]) == ("erm", 6, 5, 0.0)
    assert found["seconds"] == pytest.approx(5 * kind["seconds"])
    assert kind["seconds"] > 0
    assert "6 runs in" in estimate_text(found)
    assert ", 2 at a time about" in estimate_text(found | {"slots": 2})
    assert ", 5 at a time about" in estimate_text(found | {"slots": 8})
    assert "at a time" not in estimate_text(found | {"slots": 2, "left": 1})
    assert [path.name for path in (tmp_path / "s").rglob("result.json")] == ["result.json"]
    # A run takes one of two GPUs by default, which is as many at a time, however many processors there are.
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    many = dataclasses.replace(plan.options, cpus=16)
    assert estimate_sweep(many, CONFIG, tmp_path / "other")["slots"] == 16  # device = "cpu"
    assert estimate_sweep(many, dataclasses.replace(CONFIG, device="auto"), tmp_path / "other")["slots"] == 2
    quarter = dataclasses.replace(many, gpus_per_run=0.25)
    assert estimate_sweep(quarter, dataclasses.replace(CONFIG, device="auto"), tmp_path / "other")["slots"] == 8


def test_what_runs_share_is_counted_once() -> None:
    planned = {"seconds": {"total": 100.0, "curves": 10.0, "generations": 60.0}, "counts": {"generations": 3}}
    assert divide(planned, CONFIG, share=True) == (30.0, 70.0)
    updating = dataclasses.replace(CONFIG, generate=dataclasses.replace(CONFIG.generate, updating=True))
    assert divide(planned, updating, share=True) == (70.0, 30.0)
    assert divide(planned, CONFIG, share=False) == (100.0, 0.0)


@pytest.mark.parametrize("table", [None, {"lr": [1e-4, 3e-4, 9e-4], "generate": {"candidates": [1, 3, 5]}}])
def test_without_a_space_draws_are_those_of_a_benchmark(
    image_folder: Path, tmp_path: Path, table: dict[str, Any] | None
) -> None:
    """The same options and the same folders, so that `benchmark --hparams-seeds` reads a sweep's runs."""
    search = Search(table=table, origin="x.toml", given={"batch_size"})
    options = SweepConfig(data=(str(image_folder),), draws=3, trials=2, algorithms=("erm", "groupdro"))
    plan = build_plan(options, CONFIG, tmp_path, search)
    dataset = plan.datasets[str(image_folder)]
    benchmark = BenchmarkPlan(
        str(image_folder), CONFIG, ["erm", "groupdro"], [0, 1], list(dataset.domains), dataset.domains, dataset.name,
        tmp_path, dataclasses.replace(search, draws=(0, 1, 2)),
    )  # fmt: skip
    wanted = {tmp_path / run.place: benchmark.options(run) for run in benchmark.runs()}
    found = {run.folder: plan.config_of(run, ()) for run in plan.runs}
    assert found == wanted
    assert len({config.lr for config in found.values()}) > 2
    assert {config.batch_size for config in found.values()} == {CONFIG.batch_size}


def test_a_domain_of_few_images_can_be_a_target_and_no_source(image_folder: Path, tmp_path: Path) -> None:
    for label in ("cat", "dog", "house"):
        for path in sorted((image_folder / "sketch" / label).iterdir())[1:]:
            path.unlink()
    plan = plan_of(image_folder, output=tmp_path / "s", targets=("sketch",))
    assert {run.place.target for run in plan.runs} == {"sketch"}
    with pytest.raises(UsageError, match="domain sketch has too few images"):
        plan_of(image_folder, output=tmp_path / "s", targets=("sketch", "photo"))
