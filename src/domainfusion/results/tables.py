"""Tables of accuracies, as text and Markdown; and of whatever else, as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

from domainfusion.results.statistics import Accuracies, PairedDifference, estimate, paired_difference, trial_means


def accuracy_rows(accuracy: Accuracies, baseline: str = "erm") -> list[list[str]]:
    """A row per algorithm: mean ± s.e. on every target, their average, and the paired difference to `baseline`."""
    targets = list(next(iter(accuracy.values()))) if accuracy else []
    rows = [["algorithm", *targets, "average", f"minus {baseline}"]]
    for algorithm, by_target in accuracy.items():
        cells = [str(estimate(by_target[target])) if by_target.get(target) else "–" for target in targets]
        average = str(estimate(trial_means(by_target)))
        rows.append([algorithm, *cells, average, difference_cell(accuracy, algorithm, baseline)])
    return rows


def difference_cell(accuracy: Accuracies, algorithm: str, baseline: str) -> str:
    """The paired difference to the baseline as "+1.2 ± 0.4 (p = 0.03)"; empty for the baseline itself."""
    if algorithm == baseline or baseline not in accuracy:
        return ""
    return format_difference(paired_difference(accuracy[algorithm], accuracy[baseline]))


def format_difference(found: PairedDifference) -> str:
    """A paired difference in words, as far as the number of trials allows."""
    if found.count == 0:
        return ""
    if math.isnan(found.error):
        return f"{found.mean:+z.1f}"
    if math.isnan(found.p_value):
        return f"{found.mean:+z.1f} ± {found.error:.1f}"
    p_value = f"p = {found.p_value:.3f}" if found.p_value >= 0.001 else "p < 0.001"
    return f"{found.mean:+z.1f} ± {found.error:.1f} ({p_value})"


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as aligned text, the first one a heading, the first column to the left and the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for number, row in enumerate(rows):
        cells = [
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
        if number == 0:
            lines.append("  ".join("─" * w for w in widths))
    return "\n".join(lines)


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as a Markdown table, the first one its heading."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    return "\n".join(lines)


def csv_table(entries: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    """Entries as CSV with a heading; a value that is None is an empty cell.

    >>> csv_table([{"class": 'a "b", c', "error": None}], ["class", "error"])
    'class,error\\r\\n"a ""b"", c",\\r\\n'
    """
    lines = io.StringIO()
    writer = csv.DictWriter(lines, columns)
    writer.writeheader()
    writer.writerows(entries)
    return lines.getvalue()


def run_summary(result: dict[str, Any], folder: str) -> str:
    """What one run came to, in a few lines."""
    if "domains" in result:
        return zero_shot_summary(result, folder)
    lines = []  # what is said, and of what
    chosen = f"(chosen at step {result['selected_step']})"
    lines.append(("source validation", f"{100 * result['validation_accuracy']:.1f} % {chosen}"))
    if "average" in result:
        average = result["average"]
        span = f"steps {average['start']} to {average['end']}" if "start" in average else f"{average['weights']} steps"
        lines.append(("weights", f"averaged over {span} ({average['method']})"))
    if "target_accuracy" in result:
        tested, there = result["test_images"], result.get("target_images", 0)  # older results are without
        images = f"{tested} of its {there} images" if there > tested else f"{tested} images"
        lines.append((f"target {result['target']}", f"{100 * result['target_accuracy']:.1f} % of {images}"))
    if "ensemble" in result:
        alone, accepted = result["ensemble"]["classifier_accuracy"], result["ensemble"]["accepted"]
        counts = ", ".join(f"{name} {count}" for name, count in accepted.items())
        lines.append(("classifier alone", f"{100 * alone:.1f} %; predictions accepted at start step: {counts}"))
    width = max(len(name) for name, _ in lines)
    return "\n".join(
        [
            f"{result['algorithm']} on {result['dataset']}, {result['protocol']} splits, trial {result['trial']}",
            *(f"{name:<{width}}  {said}" for name, said in lines),
            f"{result['seconds']:.0f} s; everything is in {folder}",
        ]
    )


def zero_shot_summary(result: dict[str, Any], folder: str) -> str:
    """What a classifier that is not trained came to: by domain, and the passes of the U-Net it took."""
    rows = [["domain", "images", "accuracy", "± s.e."]]
    for domain, found in result["domains"].items():
        name = f"{domain} (target)" if domain == result["target"] else domain
        percent = f"{100 * found['accuracy']:.1f} %"
        rows.append([name, str(found["images"]), percent, f"{100 * found['standard_error']:.1f}"])
    costs = result["costs"]
    passes = costs["unet_passes"] / max(1, costs["classified_images"])
    options = result.get("zero_shot", {})  # older results are without
    stages = zip(options.get("samples", []), options.get("keep", []), strict=True)
    kept = ", ".join(f"{kept} left after {draws} draws" for draws, kept in stages)
    rule = f"classes: {kept}; " if kept else ""
    return (
        f"{result['algorithm']} on {result['dataset']}, {result['protocol']} splits, trial {result['trial']}; nothing "
        f"is trained\n\n{text_table(rows)}\n\n{rule}{costs['unet_passes']:,} passes of the U-Net, {passes:,.0f} an "
        f"image; {result['seconds']:.0f} s; everything is in {folder}"
    )
