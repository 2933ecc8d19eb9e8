"""`domainfusion reproduce`: the paper's tables at the scale of this machine.

Every row is an arm of runs in `OUTPUT/DATASET/ARM/TARGET/trial-T`; rows that several tables share are made once, and
what runs can share beneath (the LDM's candidates, curves) they do. The same command goes on where the last one stopped.
"""

from __future__ import annotations

import base64
import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from domainfusion.config import TrainConfig
from domainfusion.data.benchmarks import canonical_name
from domainfusion.data.domains import load_dataset
from domainfusion.data.splits import build_split
from domainfusion.errors import UsageError
from domainfusion.experiments.arms import arm_config, run_folder
from domainfusion.experiments.benchmark import Run, config_of, finished, summarize_runs
from domainfusion.experiments.cost_table import NOTE, cost_rows, measure_costs
from domainfusion.experiments.descriptions import describe_environment
from domainfusion.experiments.paper_figures import draw_figure
from domainfusion.experiments.paper_tables import COSTS, FIGURES, ITEMS, Table, find_table
from domainfusion.experiments.runs import train_run
from domainfusion.files import make_folder, no_empty_folder, write_json
from domainfusion.report.tables_page import Part, Picture, write_tables_page
from domainfusion.results.statistics import PairedDifference, estimate, paired_difference, trial_means
from domainfusion.results.tables import format_difference, text_table


class OutOfBudget(Exception):
    """The time that was given is up; what has been made is kept."""


def run_table(
    table: Table, data: str, config: TrainConfig, trials: Sequence[int], targets: Sequence[str] | None, folder: Path,
    *, command: str = "", deadline: float | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Make the runs of a table on a data set, as far as time allows, and return (and write) what they came to.

    Args:
        deadline: `time.monotonic()` after which no further run is begun.

    Returns:
        what `benchmark.json` holds, its algorithms being the arms' keys, with "table", "arms", "reference", "runs" made
        and "planned"; "accuracy" is empty until one trial is complete.
    """
    dataset = load_dataset(data, config.data)
    if not trials:
        raise UsageError("a table needs one trial at least: --trials 1")
    for trial in trials:
        build_split(dataset, config.data, None, trial)
    chosen = list(dict.fromkeys(targets or dataset.domains))
    for target in chosen:
        dataset.index_of(target)
    arms = {arm.key: arm_config(config, arm) for arm in table.arms}
    planned = [(trial, target, key) for trial in trials for target in chosen for key in arms]
    results: dict[Run, dict[str, Any]] = {}

    def make(run: Run) -> dict[str, Any]:
        trial, target, key = run
        where = run_folder(folder, data, key, target, trial)
        if deadline is not None and time.monotonic() > deadline and not (where / "result.json").exists():
            raise OutOfBudget
        options = dataclasses.replace(config_of(arms[key], run), algorithm=table.arm(key).algorithm)
        return train_run(data, options, where)

    try:
        for run, result in finished(planned, make):
            results[run] = result
    except OutOfBudget:
        pass
    whole = [trial for trial in trials if all(run in results for run in planned if run[0] == trial)]
    summary: dict[str, Any] = {
        "command": command, "table": table.name, "title": table.title, "note": table.note, "dataset": dataset.name,
        "reference": table.reference, "runs": len(results), "planned": len(planned), "trials": whole, "accuracy": {},
        "arms": {
            arm.key: {"title": arm.title, "options": arm.described(), "paper": dict(arm.paper)} for arm in table.arms
        },
    }  # fmt: skip
    if whole:
        summary |= summarize_runs(results, whole, chosen, list(arms))
    write_json(folder / f"{table.name}-{Path(data).name}.json", summary)
    return summary


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A row against its table's reference, here and in the paper; differences in points."""

    ours: PairedDifference | None
    paper: float | None

    @property
    def agrees(self) -> str:
        """Whether both differences have one sign, and whether ours is within two standard errors of 0."""
        if self.ours is None or self.paper is None or self.ours.count == 0:
            return ""
        sign = "yes" if self.ours.mean * self.paper > 0 else "no"
        return sign if abs(self.ours.mean) > 2 * self.ours.error else f"{sign}, within noise"


def compare(summary: Mapping[str, Any], key: str, dataset: str = "") -> Comparison:
    """An arm against the reference. The paper's difference is of `dataset`, by the benchmark's name or its folder's, or
    else the mean over what both its rows have."""
    arms, reference = summary["arms"], summary["reference"]
    if key == reference:
        return Comparison(None, None)
    mine, other = arms[key]["paper"], arms[reference]["paper"]
    shared = [name for name in mine if name in other]
    names = [known] if (known := canonical_name(dataset)) in shared else shared
    paper = sum(mine[name] - other[name] for name in names) / len(names) if names else None
    accuracy = summary["accuracy"]
    ours = paired_difference(accuracy[key], accuracy[reference]) if accuracy else None
    return Comparison(ours, paper)


def table_rows(summary: Mapping[str, Any]) -> list[list[str]]:
    """The table for people: accuracy by target, average, paired difference, the paper's, and whether signs agree."""
    accuracy, arms, reference = summary["accuracy"], summary["arms"], summary["reference"]
    targets = list(next(iter(accuracy.values()))) if accuracy else []
    paper = any(arm["paper"] for arm in arms.values())
    heading = ["", *targets, "average", f"minus {arms[reference]['title']}"]
    rows = [heading + (["paper", "paper's difference", "same sign"] if paper else [])]
    for key, arm in arms.items():
        by_target = accuracy.get(key, {})
        found = compare(summary, key, summary["dataset"])
        cells = [str(estimate(by_target[target])) for target in targets]
        cells += [str(estimate(trial_means(by_target))) if by_target else "–"]
        cells += [format_difference(found.ours) if found.ours else ""]
        if paper:
            cells += [paper_cell(arm["paper"], summary["dataset"])]
            cells += ["" if found.paper is None else f"{found.paper:+z.1f}", found.agrees]
        rows.append([arm["title"], *cells])
    return rows


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


def reproduce(
    names: Sequence[str], datasets: Sequence[str], config: TrainConfig, trials: int, targets: Sequence[str],
    folder: Path, *, minutes: float = 0, command: str = "",
) -> dict[str, Any]:  # fmt: skip
    """Make tables on data sets, as far as `minutes` allow (0: no limit), and write `reproduce.html` and the tables.

    Names are those of tables, `table1` (costs) and `fig2` to `fig5`, or `all`.

    Returns {"tables": [what `run_table` returns], "others": costs and figures, "report": path}.
    """
    deadline = time.monotonic() + 60 * minutes if minutes else None
    wanted = list(dict.fromkeys(ITEMS if "all" in names else names))
    for name in wanted:
        if name not in FIGURES and name != COSTS:
            find_table(name)
    found: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    parts: list[Part] = []

    def write() -> Path:
        return write_tables_page(
            parts, folder / "reproduce.html", headline=headline(found, others), command=command,
            environment=describe_environment(),
        )  # fmt: skip

    for data in datasets:  # all of them are there, before the first is begun
        load_dataset(data, config.data)
    with no_empty_folder(folder):
        make_folder(folder)
        for data in datasets:
            for name in wanted:
                if name == COSTS:
                    costs = measure_costs(data, config, targets[0] if targets else None)
                    write_json(folder / f"{name}-{Path(data).name}.json", {"command": command, **costs})
                    others.append({"table": name, **costs})
                    parts.append(costs_part(costs))
                elif name in FIGURES:
                    figure = draw_figure(name, data, config, folder, targets[0] if targets else None)
                    others.append(figure)
                    parts.append(figure_part(figure))
                else:
                    summary = run_table(
                        find_table(name), data, config, range(trials), targets or None, folder, command=command,
                        deadline=deadline,
                    )  # fmt: skip
                    found.append(summary)
                    parts.append(part_of(summary))
                write()  # what is there can be read while the rest is made
    return {"tables": found, "others": others, "report": str(write())}


def costs_part(found: Mapping[str, Any]) -> Part:
    """Table 1 as a section of the page."""
    name = f"{COSTS}, {found['dataset']}"
    return Part(
        id=f"{COSTS}-{found['dataset']}", name=name, title=f"What fine-tuning and generation cost ({name})",
        rows=tuple(map(tuple, cost_rows(dict(found)))), notes=(NOTE,),
    )  # fmt: skip


def figure_part(found: Mapping[str, Any]) -> Part:
    """A figure as a section of the page."""
    path = Path(found["picture"])
    uri = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
    return Part(
        id=f"{found['figure']}-{found['dataset']}", name=f"{found['figure']}, {found['dataset']}",
        title=f"{found['title']} ({found['figure']}, {found['dataset']})", texts=tuple(found["texts"]),
        pictures=(Picture(uri, found["title"], path.name),),
    )  # fmt: skip


def headline(summaries: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]] = ()) -> str:
    """What the tables say together: how many of the paper's differences have the same sign here.

    Without tables of runs: which costs and figures are there.
    """
    if not summaries:
        made = [
            f"figure {other['figure'].removeprefix('fig')} on {other['dataset']}" if "figure" in other
            else f"the costs of table 1 on {other['dataset']}"
            for other in others
        ]  # fmt: skip
        text = " and ".join([", ".join(made[:-1]), made[-1]]) if len(made) > 1 else "".join(made)
        return f"{text[:1].upper()}{text[1:]}." if made else "Nothing is made yet."
    signs = [
        compare(summary, key, summary["dataset"]).agrees for summary in summaries for key in summary["arms"]
    ]  # fmt: skip
    made, planned = (sum(summary[name] for summary in summaries) for name in ("runs", "planned"))
    told = [sign for sign in signs if sign]
    clear = [sign for sign in told if "noise" not in sign]
    text = (
        f"{sum(sign.startswith('yes') for sign in told)} of {len(told)} differences have the sign that the paper "
        f"reports; of the {len(clear)} that are outside the noise, {clear.count('yes')} have."
        if told
        else "No trial is complete yet."
    )
    return text if made == planned else f"{text} {made} of {planned} runs are there."


def part_of(summary: Mapping[str, Any]) -> Part:
    """A table as a section of the page."""
    name = f"{summary['table']}, {summary['dataset']}"
    texts, notes = [], [summary["note"]] if summary["note"] else []
    if summary["runs"] < summary["planned"]:
        texts.append(f"{summary['runs']} of {summary['planned']} runs are there.")
    if summary["trials"]:
        trials = len(summary["trials"])
        texts.append(
            f"{summary['protocol']} splits, {trials} complete {'trial' if trials == 1 else 'trials'}, the model chosen "
            "on source validation."
        )
    options = [("row", "options")]
    options += [(arm["title"], arm["options"] or "as given") for arm in summary["arms"].values()]
    return Part(
        id=f"{summary['table']}-{summary['dataset']}", name=name, title=f"{summary['title']} ({name})",
        texts=tuple(texts), rows=tuple(map(tuple, table_rows(summary))), notes=tuple(notes), options=tuple(options),
        compares=True,
    )  # fmt: skip


def reproduction_text(found: Mapping[str, Any]) -> str:
    """The tables as text."""
    lines = []
    for other in found["others"]:
        if "figure" in other:
            lines += [f"{other['figure']} on {other['dataset']}: {other['picture']}", *other["texts"], ""]
        else:
            lines += [f"{other['table']}: costs", "", text_table(cost_rows(other)), ""]
    for summary in found["tables"]:
        heading = f"{summary['table']} on {summary['dataset']}: {summary['title']}"
        if summary["runs"] < summary["planned"]:
            heading += f" ({summary['runs']} of {summary['planned']} runs; the same command goes on)"
        lines += [heading, "", text_table(table_rows(summary)), ""]
    return "\n".join([*lines, f"everything is in {found['report']}"])
