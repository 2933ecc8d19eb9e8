from __future__ import annotations

import math

import pytest

from domainfusion.results.statistics import PairedDifference
from domainfusion.results.tables import accuracy_rows, format_difference, markdown_table, run_summary, text_table

ACCURACY = {
    "erm": {"ink": [40.0, 42.0, 44.0], "pixel": [30.0, 32.0, 31.0]},
    "domainfusion": {"ink": [43.0, 44.0, 48.0], "pixel": [33.0, 36.0, 34.0]},
}


def test_a_row_for_each_algorithm() -> None:
    rows = accuracy_rows(ACCURACY)
    assert rows[0] == ["algorithm", "ink", "pixel", "average", "minus erm"]
    # erm: ink 42 ± 2/√3; pixel 31 ± 1/√3; trial means 35, 37, 37.5.
    assert rows[1] == ["erm", "42.0 ± 1.2", "31.0 ± 0.6", "36.5 ± 0.8", ""]
    # Trial means 38, 40, 41; differences 3, 3, 3.5.
    assert rows[2] == ["domainfusion", "45.0 ± 1.5", "34.3 ± 0.9", "39.7 ± 0.9", "+3.2 ± 0.2 (p = 0.003)"]
    assert len(rows) == 3


def test_one_trial_has_neither_error_nor_p_value() -> None:
    rows = accuracy_rows({"erm": {"ink": [40.0]}, "other": {"ink": [38.5]}})
    assert rows[1:] == [["erm", "40.0", "40.0", ""], ["other", "38.5", "38.5", "-1.5"]]


def test_without_the_baseline_there_is_no_difference() -> None:
    assert accuracy_rows({"other": {"ink": [38.5, 39.5]}})[1] == ["other", "39.0 ± 0.5", "39.0 ± 0.5", ""]


def test_another_baseline() -> None:
    rows = accuracy_rows(ACCURACY, baseline="domainfusion")
    assert rows[0][-1] == "minus domainfusion"
    assert rows[1][-1] == "-3.2 ± 0.2 (p = 0.003)"
    assert rows[2][-1] == ""


def test_a_target_not_run_yet_is_a_dash() -> None:
    rows = accuracy_rows({"erm": {"ink": [40.0, 41.0], "pixel": []}})
    assert rows[1][1:3] == ["40.5 ± 0.5", "–"]


def test_nothing_makes_a_heading_alone() -> None:
    assert accuracy_rows({}) == [["algorithm", "average", "minus erm"]]


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (PairedDifference(1.25, 0.4, 0.0301, 3), "+1.2 ± 0.4 (p = 0.030)"),
        (PairedDifference(-1.0, 0.1, 0.0009, 5), "-1.0 ± 0.1 (p < 0.001)"),
        (PairedDifference(0.0, 0.1, 1.0, 5), "+0.0 ± 0.1 (p = 1.000)"),
        (PairedDifference(-0.04, 2.6, 1.0, 5), "+0.0 ± 2.6 (p = 1.000)"),
        (PairedDifference(-0.0, 0.0, math.nan, 2), "+0.0 ± 0.0"),
        (PairedDifference(-0.01, math.nan, math.nan, 1), "+0.0"),
        (PairedDifference(2.0, math.nan, math.nan, 1), "+2.0"),
        (PairedDifference(math.nan, math.nan, math.nan, 0), ""),
    ],
)
def test_differences_in_words(found: PairedDifference, text: str) -> None:
    assert format_difference(found) == text


def test_text_is_aligned() -> None:
    assert text_table([["name", "n"], ["a", "100"], ["longer", "7"]]) == (
        "name      n\n──────  ───\na       100\nlonger    7"
    )


def test_markdown() -> None:
    rows = [["name", "n"], ["a", "100"]]
    assert markdown_table(rows) == "| name | n |\n|---|---|\n| a | 100 |"


RESULT = {
    "algorithm": "erm", "dataset": "pictograms", "protocol": "strict", "trial": 2, "validation_accuracy": 0.4567,
    "selected_step": 540, "target": "pixel", "target_accuracy": 0.3333, "test_images": 134, "seconds": 61.4,
}  # fmt: skip


def test_the_summary_of_a_run() -> None:
    text = run_summary(RESULT, "runs/x")
    assert text.splitlines() == [
        "erm on pictograms, strict splits, trial 2",
        "source validation  45.7 % (chosen at step 540)",
        "target pixel       33.3 % of 134 images",
        "61 s; everything is in runs/x",
    ]


def test_the_summary_says_of_how_many_of_the_targets_images() -> None:
    lines = run_summary(RESULT | {"target_images": 670}, "runs/x").splitlines()
    assert lines[2] == "target pixel       33.3 % of 134 of its 670 images"
    assert run_summary(RESULT | {"target_images": 134}, "runs/x") == run_summary(RESULT, "runs/x")


def test_the_summary_is_aligned_by_its_longest_name() -> None:
    average = {"method": "swad", "start": 3, "end": 9}
    result = RESULT | {"target": "art_painting_and_more", "average": average}
    assert run_summary(result, "runs/x").splitlines()[1:4] == [
        "source validation             45.7 % (chosen at step 540)",
        "weights                       averaged over steps 3 to 9 (swad)",
        "target art_painting_and_more  33.3 % of 134 images",
    ]


def test_a_run_without_target_has_no_line_for_it() -> None:
    text = run_summary({name: value for name, value in RESULT.items() if name != "target_accuracy"}, "runs/x")
    assert "target" not in text
    assert len(text.splitlines()) == 3
