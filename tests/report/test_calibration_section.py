"""The section on confidence: its figures against sums written out, image by image, and what it says of them."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import re
import statistics
from pathlib import Path

import numpy as np
import pytest

from domainfusion.report.calibration_section import build_calibration, reliability
from domainfusion.report.html import write_report
from domainfusion.report.predictions import read_predictions
from domainfusion.report.reading import read_runs
from domainfusion.report.study import build_studies
from report.written_runs import dump, write_pictures, write_run


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "pictures")


def lines_of(folder: Path) -> list[dict[str, str]]:
    with open(folder / "predictions.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def rewrite(folder: Path, lines: list[dict[str, str]]) -> None:
    with open(folder / "predictions.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)


def literal_error(pairs: list[tuple[float, bool]]) -> float:
    """Guo et al., equation 3: the mean over bins ((m - 1)/15, m/15] of |accuracy - confidence| by their size."""
    total = 0.0
    for m in range(1, 16):
        inside = [(p, hit) for p, hit in pairs if (m - 1) / 15 < p <= m / 15]
        if inside:
            accuracy = sum(hit for _, hit in inside) / len(inside)
            total += len(inside) / len(pairs) * abs(accuracy - sum(p for p, _ in inside) / len(inside))
    return total


def section(*folders: Path) -> dict:
    (study,) = build_studies(read_runs(folders))
    found = build_calibration(study)
    assert found is not None
    return found


def test_points_are_parts_of_equally_many_images() -> None:
    rng = np.random.default_rng(0)
    confidence, hits = rng.uniform(size=230), rng.uniform(size=230) < 0.5
    points = reliability(confidence, hits)
    pairs = sorted(zip(confidence.tolist(), hits.tolist(), strict=True))
    assert [point.images for point in points] == [23] * 10
    for i, point in enumerate(points):
        part = pairs[23 * i : 23 * i + 23]
        assert point.confidence == pytest.approx(100 * statistics.fmean(p for p, _ in part))
        assert point.right == pytest.approx(100 * statistics.fmean(hit for _, hit in part))
    assert [point.images for point in reliability(confidence[:29], hits[:29])] == [15, 14]
    assert len(reliability(confidence[:3], hits[:3])) == 1


def test_images_of_one_confidence_are_one_point_whatever_their_order() -> None:
    rng = np.random.default_rng(1)
    confidence = np.concatenate([rng.uniform(size=50), np.full(60, 1.0)])
    hits = np.arange(110) % 3 > 0
    points = reliability(confidence, hits)
    assert points[-1].images >= 60
    assert points[-1].confidence > 99
    assert sum(point.images for point in points) == 110
    order = rng.permutation(110)
    again = reliability(confidence[order], hits[order])
    for one, other in zip(points, again, strict=True):
        assert dataclasses.astuple(one) == pytest.approx(dataclasses.astuple(other))


def test_figures_are_means_over_tests_of_sums_over_images(tmp_path: Path, root: Path) -> None:
    folders = [
        write_run(tmp_path / "runs" / f"{target}{trial}", root, "erm", share, target=target, trial=trial)
        for (target, trial), share in zip(
            [("ink", 0), ("ink", 1), ("pixel", 0), ("pixel", 1)], (0.25, 0.5, 0.75, 0.5), strict=True
        )
    ]
    found = section(tmp_path / "runs")
    expected = []
    for column in ("probability", "calibrated"):
        pairs = [[(float(x[column]), x["class"] == x["prediction"]) for x in lines_of(f)] for f in folders]
        mean = statistics.fmean(statistics.fmean(p for p, _ in part) for part in pairs)
        right = statistics.fmean(statistics.fmean(hit for _, hit in part) for part in pairs)
        error = statistics.fmean(literal_error(part) for part in pairs)
        gaps = [[p - hit for p, hit in part] for part in pairs]
        spread = math.sqrt(sum(statistics.pvariance(part) / len(part) for part in gaps)) / len(gaps)
        expected.append((100 * mean, 100 * right, 100 * error, 100 * spread))
    (raw, right, raw_error, spread), (calibrated, _, calibrated_error, _) = expected
    assert found["rows"][1:] == [
        ["ERM", "targets", f"{right:.1f} %", f"{raw:.1f} %", f"{calibrated:.1f} %", f"{raw_error:.1f}",
         f"{calibrated_error:.1f}"],
        ["ERM", "sources", "50.0 %", "75.0 %", "53.1 %", "25.0", "6.2"],
    ]  # fmt: skip
    assert len(set(found["rows"][1][2:])) == 5  # all different: none stands for another
    assert raw - right > 2 * spread
    assert f"{raw - right:.1f} points (± {spread:.1f}) too sure." in found["sentences"][0]
    assert "(where it is off by +3.1 points)" in found["sentences"][0]
    # The chart pools all 96 images.
    assert [chart["title"] for chart in found["charts"]] == ["raw confidence", "calibrated confidence"]
    said = [re.findall(r"right ([\d.]+) % of (\d+) images", str(chart["chart"])) for chart in found["charts"]]
    for points in said:
        assert len(points) == 9
        assert sum(int(images) for _, images in points) == 96
        total = sum(float(share) * int(images) / 100 for share, images in points)
        assert total == pytest.approx(96 * right / 100, abs=0.05)


@pytest.mark.parametrize(
    ("confidence", "right", "words"),
    [
        (0.9, 6, "40.0 points (± 14.4) too sure"),
        (0.1, 8, "56.7 points (± 13.6) less sure than it might be"),
        (0.7, 8, "+3.3 points, within twice the standard error of 13.6"),
    ],
)
def test_the_misfit_is_said_as_it_is(tmp_path: Path, root: Path, confidence: float, right: int, words: str) -> None:
    folder = write_run(tmp_path / "run", root, "erm", 0.5)
    lines = lines_of(folder)[:12]
    for i, line in enumerate(lines):
        other = "plain" if line["class"] != "plain" else "a & b"
        line |= {
            "probability": f"{confidence}", "calibrated": f"{confidence}",
            "prediction": line["class"] if i < right else other,
        }  # fmt: skip
    rewrite(folder, lines)
    found = section(folder)
    assert found["sentences"][0].count(words) == 2
    assert any("too high on what was never seen" in text for text in found["sentences"]) is ("too sure" in words)


def test_older_runs_show_the_raw_confidence_alone(tmp_path: Path, root: Path) -> None:
    folder = write_run(tmp_path / "runs" / "erm", root, "erm", 0.5)
    newer = write_run(tmp_path / "runs" / "domainfusion", root, "domainfusion", 0.5)
    rewrite(folder, [{k: v for k, v in line.items() if k != "calibrated"} for line in lines_of(folder)])
    kept = json.loads((folder / "calibration.json").read_text())
    dump(folder / "calibration.json", {k: v for k, v in kept.items() if k not in ("accuracy", "confidence")})
    found = section(folder)
    assert [chart["title"] for chart in found["charts"]] == ["raw confidence"]
    assert found["rows"][1][4] == found["rows"][1][6] == "–"
    assert found["rows"][2] == ["ERM", "sources", "–", "–", "–", "25.0", "6.2"]
    assert not any("temperature" in text for text in found["sentences"])
    # One arm of two has it.
    found = section(folder, newer)
    assert [str(chart["chart"]).count("<path") for chart in found["charts"]] == [2, 1]
    assert [row[0] for row in found["rows"][1:]] == ["ERM", "ERM", "DomainFusion", "DomainFusion"]


def test_what_was_not_tested_by_the_classifier_has_no_temperature(tmp_path: Path, root: Path) -> None:
    for name in ("dsi", "diffusion_classifier"):
        folder = write_run(tmp_path / name, root, name, 0.5)
        rewrite(folder, [{k: v for k, v in line.items() if k != "calibrated"} for line in lines_of(folder)])
        assert [row[1] for row in section(folder)["rows"][1:]] == ["target"]


@pytest.mark.parametrize("damage", ["gone", "column", "share", "row", "empty", "binary"])
def test_a_damaged_table_is_no_table(tmp_path: Path, root: Path, damage: str) -> None:
    folder = write_run(tmp_path / "run", root, "erm", 0.5)
    path, lines = folder / "predictions.csv", lines_of(folder)
    if damage == "gone":
        path.unlink()
    elif damage == "empty":
        path.write_text(path.read_text().splitlines()[0] + "\n")
    elif damage == "binary":
        path.write_bytes(b"\xff\x00" * 40)
    else:
        change = {"column": {"probability": None}, "share": {"calibrated": "nan"}, "row": {"row": "-1"}}[damage]
        rewrite(folder, [lines[0] | change, *lines[1:]])
    (run,) = read_runs([folder])
    assert read_predictions(run) is None
    (study,) = build_studies([run])
    assert build_calibration(study) is None
    write_report([folder], tmp_path / "report.html")
    assert "can be trusted" not in (tmp_path / "report.html").read_text()


def test_the_page_has_it(tmp_path: Path, root: Path) -> None:
    write_run(tmp_path / "runs" / "erm", root, "erm", 0.5)
    write_run(tmp_path / "runs" / "domainfusion", root, "domainfusion", 0.25)
    page = write_report([tmp_path / "runs"], tmp_path / "report.html").read_text(encoding="utf-8")
    assert "How far its confidence can be trusted" in page
    assert 'href="#s1-calibration"' in page
    assert "DomainFusion&#39;s mean confidence is" in page
