"""Rows of the paper's tables: which options each stands for, and the paper's values beside them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from domainfusion.config import DataConfig, DistillConfig, GenerateConfig, TrainConfig
from domainfusion.config_files import build_config, plain_values
from domainfusion.data.domains import load_dataset
from domainfusion.distillation.curve_choice import reads_curves
from domainfusion.experiments.arms import arm_config, resolve_arm, run_key
from domainfusion.experiments.paper_tables import OURS, TABLES, Arm, Table
from domainfusion.fusion.schedule import generations_due
from domainfusion.presets import load_preset


def flat(config: TrainConfig) -> dict[str, Any]:
    values = plain_values(config)
    return {
        f"{name}.{leaf}" if isinstance(value, dict) else name: v
        for name, value in values.items()
        for leaf, v in (value.items() if isinstance(value, dict) else [("", value)])
    }


def without_search(preset: str) -> dict[str, Any]:
    return {name: value for name, value in load_preset(preset).items() if name != "search"}


@pytest.mark.parametrize("table", TABLES.values(), ids=list(TABLES))
def test_each_row_differs_from_the_full_method_in_its_own_options_only(table: Table) -> None:
    base = TrainConfig(steps=77, generate=GenerateConfig(guidance=1.5))
    for arm in table.arms:
        mine = flat(arm_config(base, arm))
        changed = {name for name, value in flat(base).items() if mine[name] != value}
        allowed = {*resolve_arm(base, arm).options, *(["batch_size"] if arm.all_images else [])}
        assert changed - {"algorithm"} <= allowed, arm.key
        for name, value in resolve_arm(base, arm).options.items():
            assert mine[name] == (list(value) if isinstance(value, tuple) else value)
        assert mine["algorithm"] == arm.algorithm


def test_one_key_means_the_same_runs_in_every_table() -> None:
    meaning: dict[str, Arm] = {}
    for table in TABLES.values():
        assert table.reference in {arm.key for arm in table.arms}
        for arm in table.arms:
            same = dataclasses.replace(arm, title="", paper={}, against=None)
            assert meaning.setdefault(arm.key, same) == same
            assert arm.against is None or arm.against in {other.key for other in table.arms}


@pytest.mark.parametrize("name", ["table2", "table3", "table4"])
def test_tables_of_parts_say_that_training_sees_recombined_candidates(name: str) -> None:
    assert "recombine" in TABLES[name].note
    assert "unless told otherwise" in TABLES[name].note


def test_rows_are_compared_with_the_one_that_lacks_nothing_else() -> None:
    """Each row with a reference of its own differs from it in the part that its title names."""
    base = TrainConfig()
    differing = {
        (table.name, arm.key): {
            name for name, value in flat(arm_config(base, arm)).items()
            if flat(arm_config(base, table.arm(arm.against)))[name] != value
        }
        for table in TABLES.values() for arm in table.arms if arm.against
    }  # fmt: skip
    assert differing == {
        ("table2", "without-sampling"): {"generate.sampling"}, ("parts", "without-sampling"): {"generate.sampling"},
        ("table2", "updating-once"): {"generate.updating", "generate.generations", "generate.interval"},
    }  # fmt: skip


def test_corruptions_differ_in_nothing_but_the_corruption() -> None:
    """Of Pictograms a table of curves comes with the package, of contrast reduction alone."""
    dataset, table = load_dataset("pictograms", DataConfig()), TABLES["table4"]
    rows = np.arange(3000)

    def estimators(config: TrainConfig) -> set[tuple[bool, str]]:
        found = [arm_config(config, arm) for arm in table.arms]
        return {(reads_curves(c, dataset, rows, 64), c.distill.method) for c in found if c.distill_weight > 0}

    assert reads_curves(TrainConfig(), dataset, rows, 64)
    assert not reads_curves(TrainConfig(distill=DistillConfig(corruption="blur")), dataset, rows, 64)
    assert estimators(TrainConfig()) == {(False, "score")}
    assert estimators(TrainConfig(distill=DistillConfig(curve_of="autograd"))) == {(False, "autograd")}
    assert estimators(TrainConfig(distill=DistillConfig(estimator="curve"))) == {(True, "score")}
    assert resolve_arm(TrainConfig(), table.arm("blur")).described() == (
        "--distill.corruption blur --distill.estimator score"
    )


def test_a_row_that_is_domainfusion_itself_lies_in_its_folder() -> None:
    arm, given = TABLES["table4"].arm("contrast"), TrainConfig(distill=DistillConfig(estimator="score"))
    assert (run_key(TrainConfig(), arm), run_key(given, arm)) == ("contrast", "domainfusion")


def test_what_is_read_literally_leaves_a_presets_values_alone() -> None:
    """The preset of the paper is its method already: Algorithm 1 comes to no other runs than DomainFusion."""
    arm, preset = TABLES["table2"].arm("updating"), build_config(TrainConfig, without_search("paper"), "paper")
    assert arm_config(preset, arm) == arm_config(preset, OURS)
    assert run_key(preset, arm) == "domainfusion"
    mine = arm_config(TrainConfig(generate=GenerateConfig(strength=(0.3, 0.6), interval=7)), arm)
    assert (mine.generate.strength, mine.synthetic_share, mine.generate.interval) == ((0.3, 0.6), 0.34, 7)
    assert not mine.generate.style_words


@pytest.mark.parametrize("key", ["one-generation", "updating-once"])
@pytest.mark.parametrize(("steps", "epoch"), [(800, 27), (100, 100), (12_000, 100)])
def test_a_fixed_synthetic_dataset_is_made_in_the_first_epoch(key: str, steps: int, epoch: int) -> None:
    config = arm_config(TrainConfig(), TABLES["table2"].arm(key))
    due = [generations_due(step, steps, epoch, config.generate) for step in range(steps)]
    assert due[epoch - 1] == max(due) == 1


def test_a_control_looks_at_as_many_images_as_the_full_method() -> None:
    arm = TABLES["parts"].arm("erm-all-images")
    assert arm_config(TrainConfig(batch_size=16), arm).batch_size == 32
    assert arm_config(TrainConfig(batch_size=16, synthetic_share=0.25), arm).batch_size == 20


def test_the_papers_averages_are_those_of_its_rows() -> None:
    """The averages of Tables 2 to 5, computed from the rows that the supplement prints."""
    printed = {
        ("table2", "domainfusion"): (81.2, 73.9, 88.5, 90.1), ("table2", "without-sampling"): (79.4, 71.8, 87.5, 88.2),
        ("table2", "one-generation"): (76.7, 68.9, 85.4, 87.2),
        ("table3", "one-candidate"): (79.4, 71.8, 87.5, 88.2),
        ("table3", "five-candidates"): (80.4, 72.7, 87.8, 89.3),
        ("table4", "without-distillation"): (73.6, 71.2, 80.7, 88.7), ("table4", "blur"): (80.9, 72.6, 89.5, 89.5),
        ("table4", "pepper"): (78.3, 72.4, 87.1, 88.9), ("table4", "mask"): (77.0, 68.2, 82.9, 86.2),
    }  # fmt: skip
    for (table, key), values in printed.items():
        assert TABLES[table].arm(key).paper["OfficeHome"] == pytest.approx(sum(values) / 4, abs=0.06), (table, key)
    datasets = ("PACS", "VLCS", "OfficeHome", "TerraIncognita", "DomainNet")
    rows = {
        "diffusion_classifier": ((47.0, 40.6, 26.8, 13.5, 10.8), 27.7),
        "diffusion_net": ((23.8, 0.8, 15.5, 8.5, 0.3), 9.8), "erm": ((85.5, 77.5, 66.5, 46.1, 40.9), 63.3),
        "domainfusion": ((90.0, 79.2, 72.4, 51.1, 44.6), 67.5),
    }  # fmt: skip
    assert {arm.key for arm in TABLES["table5"].arms} == set(rows)
    for key, (values, average) in rows.items():
        assert TABLES["table5"].arm(key).paper == dict(zip(datasets, values, strict=True)), key
        assert sum(values) / 5 == pytest.approx(average, abs=0.06), key


def test_options_read_as_on_the_command_line() -> None:
    assert Arm("slow", "slower", options={"lr": 1e-5, "data.crop": 1.0}).described() == "--lr 1e-05 --data.crop 1.0"
    updating = TABLES["table2"].arm("updating")
    assert updating.described() == "--generate.updating --generate.no-recombination --generate.no-style-words"
    found = resolve_arm(TrainConfig(), updating).described()
    assert found == f"{updating.described()} --generate.strength 0.4 0.7 --synthetic-share 0.34"
    assert TABLES["table2"].arm("without-sampling").described() == "--generate.no-recombination --generate.no-sampling"
