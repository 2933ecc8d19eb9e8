"""A table of the paper made here, row by row beside the paper's values: differences, and whether their signs agree."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from domainfusion.data.benchmarks import canonical_name
from domainfusion.results.statistics import PairedDifference, estimate, paired_difference, trial_means
from domainfusion.results.tables import format_difference

SIGNIFICANT = 0.05


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A row here against the one that it is compared with, and in the paper against the full method; in points."""

    ours: PairedDifference | None
    paper: float | None

    @property
    def agrees(self) -> str:
        """Whether both differences have one sign; "within noise" unless ours has p < 0.05 (Student's t over trials)."""
        if self.ours is None or self.paper is None or self.ours.count == 0:
            return ""
        sign = "yes" if self.ours.mean * self.paper > 0 else "no"
        return sign if self.ours.p_value < SIGNIFICANT else f"{sign}, within noise"  # NaN is not less


def compare(summary: Mapping[str, Any], key: str, dataset: str = "") -> Comparison:
    """A row against the one that it is compared with.

    The paper's difference is to the table's reference: of `dataset`, by the benchmark's name or its folder's, or else
    the mean over what both its rows have.
    """
    arms, reference = summary["arms"], summary["reference"]
    if key == reference or "same" in arms[key]:
        return Comparison(None, None)
    mine, other = arms[key]["paper"], arms[reference]["paper"]
    shared = [name for name in mine if name in other]
    names = [known] if (known := canonical_name(dataset)) in shared else shared
    paper = sum(mine[name] - other[name] for name in names) / len(names) if names else None
    accuracy = summary["accuracy"]
    ours = paired_difference(accuracy[key], accuracy[arms[key].get("against", reference)]) if accuracy else None
    return Comparison(ours, paper)


def table_rows(summary: Mapping[str, Any]) -> list[list[str]]:
    """The table for people: accuracy by target, average, paired difference, the paper's, and whether signs agree."""
    accuracy, arms, reference = summary["accuracy"], summary["arms"], summary["reference"]
    targets = list(next(iter(accuracy.values()))) if accuracy else []
    paper = any(arm["paper"] for arm in arms.values())
    heading = ["", *targets, "average", f"minus {arms[reference]['title']}"]
    rows = [heading + (["paper", "paper's difference", "same sign"] if paper else [])]
    for key in summary.get("order", arms):
        arm, by_target = arms[key], accuracy.get(key, {})
        found = compare(summary, key, summary["dataset"])
        cells = [str(estimate(by_target[target])) for target in targets]
        cells += [str(estimate(trial_means(by_target))) if by_target else "–"]
        cells += [_difference_cell(found, arm, arms)]
        if paper:
            cells += [paper_cell(arm["paper"], summary["dataset"])]
            cells += ["" if found.paper is None else f"{found.paper:+z.1f}", found.agrees]
        rows.append([arm["title"], *cells])
    return rows


def rows_over_data_sets(summaries: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """One table on several data sets, as the paper's Table 5: averages over the targets of each, and over all of them.

    The paper's average stands beside that of a data set that it has; both averages over all are of the data sets here,
    over the trials that are complete in each. Without a complete trial in two data sets there are no rows.
    """
    there = [summary for summary in summaries if summary["accuracy"]]
    if len(there) < 2:
        return []
    arms = there[0]["arms"]
    names = [str(summary["dataset"]) for summary in there]
    trials = [trial for trial in there[0]["trials"] if all(trial in summary["trials"] for summary in there)]
    known = [any(canonical_name(name) in arm["paper"] for arm in arms.values()) for name in names]
    heading = [""]
    for name, has in zip(names, known, strict=True):
        heading += [name, *([f"{name}, paper"] if has else [])]
    rows = [[*heading, "average", *(["average, paper"] if all(known) else [])]]
    for key in there[0].get("order", arms):
        arm = arms[key]
        means = [dict(zip(each["trials"], trial_means(each["accuracy"][key]), strict=True)) for each in there]
        papers = [arm["paper"].get(canonical_name(name)) for name in names]
        cells = [arm["title"]]
        for values, paper, has in zip(means, papers, known, strict=True):
            cells += [str(estimate(list(values.values()))), *([_one_decimal(paper)] if has else [])]
        over = [sum(values[trial] for values in means) / len(means) for trial in trials]
        cells += [str(estimate(over)) if over else "–"]
        if all(known):
            cells += [_one_decimal(None if None in papers else sum(papers) / len(papers))]
        rows.append(cells)
    return rows


def _one_decimal(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _difference_cell(found: Comparison, arm: Mapping[str, Any], arms: Mapping[str, Any]) -> str:
    if "same" in arm:
        return f"the runs of “{arms[arm['same']]['title']}”"
    if found.ours is None:
        return ""
    other = f", minus “{arms[arm['against']]['title']}”" if "against" in arm else ""
    return format_difference(found.ours) + other


def paper_cell(values: Mapping[str, float], dataset: str) -> str:
    """The paper's average on this data set, or, where it has none, on those that it has.

    >>> paper_cell({"OfficeHome": 83.4}, "pictograms"), paper_cell({"PACS": 90.0, "OfficeHome": 72.4}, "office_home")
    ('83.4 (OfficeHome)', '72.4')
    """
    if not values:
        return "–"
    if (known := canonical_name(dataset)) in values:
        return f"{values[known]:.1f}"
    if len(values) == 1:
        name, value = next(iter(values.items()))
        return f"{value:.1f} ({name})"
    return f"{sum(values.values()) / len(values):.1f} ({len(values)} data sets)"
