"""`domainfusion demo`: ERM and DomainFusion on the embedded benchmark, one drawing style held out, side by side."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from domainfusion.config import GenerateConfig, TrainConfig
from domainfusion.experiments.runs import train_run
from domainfusion.report.html import write_report
from domainfusion.results.tables import text_table


def demo_options() -> TrainConfig:
    """The defaults of the demo: the style `ink` held out, three generations (a run of `train` makes five or six).

    Black line drawings are the style least like the others, and one that classifiers learn to read. On `pixel` single
    runs differ by ten points, whatever the algorithm. Everything else is as `domainfusion train` has it.
    """
    return TrainConfig(target="ink", generate=GenerateConfig(generations=3))


def run_demo(config: TrainConfig, folder: Path) -> tuple[dict[str, Any], str]:
    """Train both with the same optimizer steps on raw images; the results, and a text to print.

    Writes `folder/report.html`.
    """
    results = {}
    for name in ("erm", "domainfusion"):
        results[name] = train_run("pictograms", dataclasses.replace(config, algorithm=name), folder / name)
    report = write_report([folder / name for name in results], folder / "report.html", heat_maps=True)
    return {**results, "report": str(report)}, demo_text(results, str(report))


def demo_text(results: dict[str, dict[str, Any]], report: str) -> str:
    """Both results as a table, and what changed by class."""
    erm, ours = results["erm"], results["domainfusion"]
    rows = [["", "ERM", "DomainFusion", "change"]]

    def line(name: str, key: str, unit: str = "%", factor: float = 100.0, digits: int = 1) -> None:
        a, b = factor * erm[key], factor * ours[key]
        rows.append([name, f"{a:.{digits}f} {unit}", f"{b:.{digits}f} {unit}", f"{b - a:+.{digits}f}"])

    line(f"target {erm['target']} (never seen)", "target_accuracy")
    line("source validation", "validation_accuracy")
    line("time", "seconds", "s", 1.0, 0)
    made = ours["costs"].get("generated_images", 0)
    rows.append(["images generated", "0", str(made), f"+{made}"])
    changes = []
    for name, before in erm["class_accuracy"].items():
        after = ours["class_accuracy"][name]
        if before is not None and after is not None:
            changes.append(
                (
                    after - before,
                    [name, f"{100 * before:.0f} %", f"{100 * after:.0f} %", f"{100 * (after - before):+z.0f}"],
                )
            )
    changes.sort(key=lambda change: -change[0])
    by_class = [["class", "ERM", "DomainFusion", "change"], *(row for _, row in changes)]
    n = erm["test_images"]
    error = 100 * (erm["target_accuracy"] * (1 - erm["target_accuracy"]) / n) ** 0.5
    return (
        f"{text_table(rows)}\n\n{text_table(by_class)}\n\n"
        f"{n} test images, so each accuracy has a standard error of about {error:.1f} points; one run is a sample, "
        f"not a verdict:\n`domainfusion benchmark pictograms --trials 5` averages over targets and trials.\n"
        f"Look at the pictures: {report}"
    )
