"""Tables of the paper made here: which runs they share, what is refused, and what is said of the difference."""

from __future__ import annotations

import dataclasses
import shutil
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from domainfusion.config import DataConfig, TrainConfig
from domainfusion.config_files import build_config, load_toml
from domainfusion.errors import DomainFusionError, UsageError
from domainfusion.experiments import paper_tables, runs
from domainfusion.experiments.comparison import compare, rows_over_data_sets, table_rows
from domainfusion.experiments.paper_tables import ERM, TABLES, Arm, Table, find_table
from domainfusion.experiments.reproducing import headline, part_of, reproduce, reproduction_text
from domainfusion.experiments.table_runs import run_table
from domainfusion.files import read_json
from domainfusion.report.tables_page import Part, write_tables_page

OPTIONS = TrainConfig(
    steps=2, evaluations=1, batch_size=4, backbone="test_resnet", precision="float32", device="cpu",
    data=DataConfig(size=32),
)  # fmt: skip
SMALL = Table(
    "small", "Two ways of <b>erm</b>",
    (
        Arm("erm", "ERM", "erm", paper={"OfficeHome": 66.5}),
        Arm("slow", "ERM, slower & worse", "erm", {"lr": 1e-5, "data.crop": 1.0}, {"OfficeHome": 60.0}),
    ),
    reference="erm",
)  # fmt: skip


@pytest.fixture
def images(write_images: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DOMAINFUSION_CACHE", str(tmp_path / "cache"))
    return write_images(tmp_path / "images")


def test_a_control_takes_as_many_steps_whatever_an_epoch_is(images: Path, tmp_path: Path) -> None:
    table = dataclasses.replace(TABLES["parts"], arms=(ERM, TABLES["parts"].arm("erm-all-images")), reference="erm")
    options = dataclasses.replace(OPTIONS, epochs=1, synthetic_share=1 / 3)
    run_table(table, str(images), options, [0], ["photo"], tmp_path / "out")
    found = {}
    for key in ("erm", "erm-all-images"):
        folder = tmp_path / "out" / "images" / key / "photo" / "trial-0"
        config = build_config(TrainConfig, load_toml(folder / "config.toml"), "config.toml")
        found[key] = (config.batch_size, config.steps)
        assert read_json(folder / "result.json")["steps"] == config.steps
    assert found == {"erm": (4, 7), "erm-all-images": (5, 7)}  # an epoch of 58 images; of 10 in a step it has 6


def test_runs_are_made_once_and_the_numbers_are_theirs(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = run_table(SMALL, str(images), OPTIONS, [0, 1], ["photo", "sketch"], tmp_path / "out", command="c")
    assert (made["runs"], made["planned"], made["trials"]) == (8, 8, [0, 1])
    for key, lr, crop in (("erm", OPTIONS.lr, 0.7), ("slow", 1e-5, 1.0)):
        for target in ("photo", "sketch"):
            for trial in (0, 1):
                folder = tmp_path / "out" / "images" / key / target / f"trial-{trial}"
                config = build_config(TrainConfig, load_toml(folder / "config.toml"), "config.toml")
                assert (config.algorithm, config.lr, config.data.crop) == ("erm", lr, crop)
                assert (config.target, config.trial, config.seed) == (target, trial, trial)
                accuracy = read_json(folder / "result.json")["target_accuracy"]
                assert made["accuracy"][key][target][trial] == round(100 * accuracy, 3)
    assert read_json(tmp_path / "out" / "small-images.json") == made
    monkeypatch.setattr(runs, "train", None)  # nothing is trained a second time
    assert run_table(SMALL, str(images), OPTIONS, [0, 1], ["photo", "sketch"], tmp_path / "out", command="c") == made


def test_a_target_that_the_second_data_set_lacks_is_refused_before_the_first_is_begun(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("domainfusion.experiments.reproducing.run_table", None)  # no run is made
    with pytest.raises(UsageError, match="unknown domain 'sketch'"):
        reproduce(["table3"], [str(images), "pictograms"], OPTIONS, 1, ["sketch"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_data_sets_of_equal_names_are_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("domainfusion.experiments.reproducing.load_dataset", None)
    with pytest.raises(UsageError, match="a/PACS and b/PACS have the same name, PACS"):
        reproduce(["table2"], ["a/PACS", "pictograms", "b/PACS"], OPTIONS, 1, [], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_budget_stops_between_runs_and_the_rest_is_made_later(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("domainfusion.experiments.reproducing.find_table", lambda name: SMALL)
    ticks = iter([0.0, 0.0, 59.0])  # at the beginning, and before each run
    clock = types.SimpleNamespace(monotonic=lambda: next(ticks, 61.0))
    for module in ("reproducing", "table_runs"):
        monkeypatch.setattr(f"domainfusion.experiments.{module}.time", clock)
    some = reproduce(["small"], [str(images)], OPTIONS, 1, ["photo", "sketch"], tmp_path / "out", minutes=1)
    assert (some["tables"][0]["runs"], some["tables"][0]["accuracy"]) == (2, {})
    page = (tmp_path / "out" / "reproduce.html").read_text(encoding="utf-8")
    assert "2 of 4 runs are there" in page
    monkeypatch.undo()
    monkeypatch.setenv("DOMAINFUSION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("domainfusion.experiments.reproducing.find_table", lambda name: SMALL)
    rest = reproduce(["small"], [str(images)], OPTIONS, 1, ["photo", "sketch"], tmp_path / "out")
    assert rest["tables"][0]["runs"] == 4
    page = (tmp_path / "out" / "reproduce.html").read_text(encoding="utf-8")
    assert "Two ways of &lt;b&gt;erm&lt;/b&gt;" in page
    assert "slower &amp; worse" in page
    assert "<script" not in page


def test_rows_that_are_equal_by_the_users_options_are_the_same_runs(images: Path, tmp_path: Path) -> None:
    twice = dataclasses.replace(SMALL, arms=(*SMALL.arms, Arm("again", "ERM <again>", "erm", {"lr": OPTIONS.lr})))
    made = run_table(twice, str(images), OPTIONS, [0], ["photo"], tmp_path / "out")
    assert (made["runs"], made["planned"]) == (2, 2)
    assert made["accuracy"]["again"] == made["accuracy"]["erm"]
    assert not (tmp_path / "out" / "images" / "again").exists()
    assert table_rows(made)[3][3] == "the runs of “ERM”"
    assert compare(made, "again").ours is None


def test_a_row_may_be_compared_with_another_than_the_tables_reference() -> None:
    found = summary([50.0, 50.5, 51.5], [49.0, 48.5, 47.5])
    found["arms"]["slower"] = {"title": "slower still", "paper": {"OfficeHome": 61.0}, "against": "slow"}
    found["accuracy"]["slower"] = {"photo": [49.5, 49.5, 48.5], "sketch": [49.5, 49.5, 48.5]}
    better = compare(found, "slower")
    assert better.ours is not None
    assert better.ours.mean == pytest.approx((0.5 + 1 + 1) / 3)
    assert better.paper == pytest.approx(-5.5)  # to the table's reference, as the paper has it
    assert table_rows(found)[3][4] == "+0.8 ± 0.2 (p = 0.038), minus “ERM, slower & worse”"


def test_what_time_does_not_allow_is_named(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0])
    clock = types.SimpleNamespace(monotonic=lambda: next(ticks, 61.0))
    for module in ("reproducing", "table_runs"):
        monkeypatch.setattr(f"domainfusion.experiments.{module}.time", clock)
    for name in ("measure_costs", "draw_figure"):
        monkeypatch.setattr(f"domainfusion.experiments.reproducing.{name}", None)  # neither is begun
    found = reproduce(["table1", "fig3"], [str(images)], OPTIONS, 1, [], tmp_path / "out", minutes=1)
    assert found["left"] == ["table1 on images", "fig3 on images"]
    said = "Not made for want of time: table1 on images, fig3 on images."
    assert said in Path(found["report"]).read_text(encoding="utf-8")
    assert "the same command goes on" in reproduction_text(found)


def summary(erm: list[float], slow: list[float]) -> dict[str, Any]:
    return {
        "table": "small", "title": "t", "note": "", "dataset": "images", "reference": "erm", "runs": 4, "planned": 4,
        "arms": {a.key: {"title": a.title, "options": a.described(), "paper": dict(a.paper)} for a in SMALL.arms},
        "accuracy": {"erm": {"photo": erm, "sketch": erm}, "slow": {"photo": slow, "sketch": slow}},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("slow", "sign"),
    [
        ([40.0, 41.0, 42.0], "yes"), ([60.0, 61.0, 62.0], "no"), ([49.0, 52.0, 48.0], "yes, within noise"),
        ([49.0, 53.0, 52.0], "no, within noise"),
        ([49.0, 48.5, 47.5], "yes, within noise"),  # -2.33 ± 0.88: of three trials p is 0.12
    ],
)  # fmt: skip
def test_signs_are_compared_with_the_papers(slow: list[float], sign: str) -> None:
    erm = [50.0, 50.5, 51.5]
    found = compare(summary(erm, slow), "slow", "images")
    assert found.paper == pytest.approx(-6.5)
    assert found.ours is not None
    assert found.ours.mean == pytest.approx(sum(b - a for a, b in zip(erm, slow, strict=True)) / 3)
    assert found.agrees == sign
    rows = table_rows(summary(erm, slow))
    turned = table_rows(summary(erm, slow) | {"order": ["slow", "erm"]})
    assert turned == [rows[0], rows[2], rows[1]]
    assert rows[2][-3:] == ["60.0 (OfficeHome)", "-6.5", sign]
    assert rows[1][-1] == ""
    assert f"{int(sign.startswith('yes'))} of 1 differences" in headline([summary(erm, slow)])


@pytest.mark.parametrize(
    ("dataset", "cell", "difference"),
    [("PACS", "90.0", 4.5), ("office_home", "72.4", 5.9), ("terra_incognita", "51.1", 5.0), ("mine", None, 4.16)],
)
def test_the_papers_figures_are_found_by_a_benchmarks_folder(dataset: str, cell: str | None, difference: float) -> None:
    arms = {arm.key: {"title": arm.title, "paper": dict(arm.paper)} for arm in TABLES["table5"].arms}
    made = {"arms": arms, "reference": "erm", "accuracy": {}, "dataset": dataset}
    assert compare(made, "domainfusion", dataset).paper == pytest.approx(difference)
    row = next(row for row in table_rows(made) if row[0] == "DomainFusion")
    assert row[-3] == (cell or "67.5 (5 data sets)")


def test_several_data_sets_make_one_table_of_averages() -> None:
    def on(dataset: str, trials: list[int], **accuracy: dict[str, list[float]]) -> dict[str, Any]:
        made = summary([0.0], [0.0]) | {"dataset": dataset, "trials": trials, "accuracy": accuracy}
        made["arms"]["erm"]["paper"] = {"PACS": 85.5, "OfficeHome": 66.5}
        made["arms"]["slow"]["paper"] = {"PACS": 90.0}
        return made

    pacs = on("PACS", [0, 1], erm={"a": [50.0, 52.0], "b": [60.0, 64.0]}, slow={"a": [40.0, 40.0], "b": [60.0, 60.0]})
    home = on("office_home", [0, 1], erm={"c": [30.0, 32.0]}, slow={"c": [10.0, 20.0]})
    assert rows_over_data_sets([pacs, home]) == [
        ["", "PACS", "PACS, paper", "office_home", "office_home, paper", "average", "average, paper"],
        ["ERM", "56.5 ± 1.5", "85.5", "31.0 ± 1.0", "66.5", "43.8 ± 1.2", "76.0"],
        ["ERM, slower & worse", "50.0 ± 0.0", "90.0", "15.0 ± 5.0", "–", "32.5 ± 2.5", "–"],
    ]
    mine = on("mine", [1], erm={"x": [100.0]}, slow={"x": [0.0]})
    assert rows_over_data_sets([pacs, mine]) == [
        ["", "PACS", "PACS, paper", "mine", "average"],
        ["ERM", "56.5 ± 1.5", "85.5", "100.0", "79.0"],  # of trial 1, which both have
        ["ERM, slower & worse", "50.0 ± 0.0", "90.0", "0.0", "25.0"],
    ]
    assert rows_over_data_sets([pacs, on("mine", [])]) == []


def test_a_table_on_several_data_sets_ends_in_one_over_all(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = shutil.copytree(images, tmp_path / "others")
    monkeypatch.setattr(paper_tables, "TABLES", {"small": SMALL})
    found = reproduce(["small"], [str(images), str(other)], OPTIONS, 1, ["photo"], tmp_path / "out")
    assert found["together"]["small"][0] == ["", "images", "others", "average"]
    assert "small on all data sets" in reproduction_text(found)
    assert "small, all data sets" in Path(found["report"]).read_text(encoding="utf-8")
    alone = reproduce(["small"], [str(images)], OPTIONS, 1, ["photo"], tmp_path / "out")
    assert alone["together"] == {}


def test_without_tables_the_page_says_what_is_there(tmp_path: Path) -> None:
    figure, costs = {"figure": "fig2", "dataset": "images"}, {"table": "table1", "dataset": "images"}
    assert headline([], [figure]) == "Figure 2 on images."
    assert headline([], [costs, figure]) == "The costs of table 1 on images and figure 2 on images."

    def page(*parts: Part) -> str:
        path = write_tables_page(parts, tmp_path / "page.html", headline="h", command="c", environment={})
        return path.read_text(encoding="utf-8")

    explained = "Rows are averages over the domains held out"
    picture = Part("fig2", "fig2", "A figure", ("One.",))
    assert explained not in page(picture, Part("table1", "table1", "Costs", rows=(("", "a"), ("b", "1"))))
    assert explained in page(
        picture, part_of(summary([50.0, 51.0], [40.0, 41.0]) | {"trials": [0, 1], "protocol": "p"})
    )


def test_wrong_names_are_refused() -> None:
    with pytest.raises(UsageError, match="did you mean 'table2'"):
        find_table("tabel2")
    with pytest.raises(UsageError, match="one trial"):
        run_table(SMALL, "pictograms", OPTIONS, [], None, Path("nowhere"))
    broken = dataclasses.replace(SMALL, arms=(Arm("x", "X", "erm", {"steps": 0}),))
    with pytest.raises(UsageError, match=r"row 'X'.*steps"):
        run_table(broken, "pictograms", OPTIONS, [0], None, Path("nowhere"))


@pytest.mark.parametrize("wrong", [{"datasets": ["nowhere"]}, {"targets": ["nowhere"]}])
def test_what_is_refused_leaves_no_folder(images: Path, tmp_path: Path, wrong: dict[str, list[str]]) -> None:
    asked = {"datasets": [str(images)], "targets": []} | wrong
    with pytest.raises(DomainFusionError, match="nowhere"):
        reproduce(["table2"], asked["datasets"], OPTIONS, 1, asked["targets"], tmp_path / "out" / "tables")
    assert not (tmp_path / "out").exists()
