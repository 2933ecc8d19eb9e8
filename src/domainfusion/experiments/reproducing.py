"""`domainfusion reproduce`: the paper's tables at the scale of this machine.

Every row is an arm of runs in `OUTPUT/DATASET/ARM/TARGET/trial-T`; rows that several tables share are made once, and
what runs can share beneath (the LDM's candidates, curves) they do. The same command goes on where the last one stopped.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from domainfusion.config import TrainConfig
from domainfusion.data.domains import load_dataset
from domainfusion.errors import UsageError
from domainfusion.experiments.comparison import compare, rows_over_data_sets, table_rows
from domainfusion.experiments.cost_table import NOTE, cost_rows, cost_title, measure_costs
from domainfusion.experiments.descriptions import describe_environment, describe_making
from domainfusion.experiments.paper_costs import PAPER_SCALE, find_scale
from domainfusion.experiments.paper_figures import draw_figure
from domainfusion.experiments.paper_tables import COSTS, FIGURES, ITEMS, TABLES, Table, find_table
from domainfusion.experiments.shared_tables import make_shared_tables
from domainfusion.experiments.table_runs import plan_table, run_table
from domainfusion.files import make_folder, no_empty_folder, write_json
from domainfusion.report.tables_page import Part, Picture, write_tables_page
from domainfusion.results.tables import text_table


def reproduce(
    names: Sequence[str], datasets: Sequence[str], config: TrainConfig, trials: int, targets: Sequence[str],
    folder: Path, *, minutes: float = 0, command: str = "", gpu: str = "V100", scale: str = PAPER_SCALE,
) -> dict[str, Any]:  # fmt: skip
    """Make tables on data sets, as far as `minutes` allow (0: no limit), and write `reproduce.html` and the tables.

    Names are those of tables, `table1` (costs) and `fig2` to `fig5`, or `all`.

    `gpu` and `scale` (DATASET/TARGET) are those that Table 1 is counted for.

    Returns {"tables": [what `run_table` returns], "others": costs and figures, "left": names of those that time did not
    allow, "together": {table: its rows over all data sets, of several}, "report": path}.

    Raises `UsageError` where two data sets have the same name, before anything is made.
    """
    refuse_equal_names(datasets)
    deadline = time.monotonic() + 60 * minutes if minutes else None
    wanted = list(dict.fromkeys(ITEMS if "all" in names else names))
    for name in wanted:
        if name not in FIGURES and name != COSTS:
            find_table(name)
    if COSTS in wanted:
        find_scale(scale, config)
    found: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    parts: list[Part] = []
    left: list[str] = []

    def write() -> Path:
        return write_tables_page(
            parts, folder / "reproduce.html", headline=headline(found, others, left), command=command,
            environment=describe_environment(),
        )  # fmt: skip

    loaded = {data: load_dataset(data, config.data) for data in datasets}  # all are there, before the first is begun
    for data, dataset in loaded.items():  # and have the targets and trials that are asked for
        for target in targets:
            dataset.index_of(target)
        for name in wanted:
            if name in TABLES:
                plan_table(find_table(name), data, dataset, config, range(trials), targets or None, folder)
    with no_empty_folder(folder):
        make_folder(folder)
        for data, dataset in loaded.items():
            if deadline is None:  # a table may take longer than what was given
                plans = [
                    plan_table(find_table(name), data, dataset, config, range(trials), targets or None, folder)
                    for name in wanted if name in TABLES
                ]  # fmt: skip
                make_shared_tables(data, [each for plan in plans for each in plan.values()])
            for name in wanted:
                other = name == COSTS or name in FIGURES  # a table stops between its runs
                if other and deadline is not None and time.monotonic() > deadline:
                    left.append(f"{name} on {Path(data).name}")
                elif name == COSTS:
                    costs = measure_costs(data, config, targets[0] if targets else None, gpu=gpu, scale=scale)
                    write_json(folder / f"{name}-{Path(data).name}.json", describe_making(command) | costs)
                    others.append({"table": name, **costs})
                    parts.append(costs_part(costs))
                elif name in FIGURES:
                    figure = draw_figure(name, data, config, folder, targets[0] if targets else None, command=command)
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
        together = {name: rows for name in wanted if (rows := rows_over_data_sets(_of_table(found, name)))}
        parts += [over_data_sets_part(find_table(name), rows) for name, rows in together.items()]
        report = write()
    return {"tables": found, "others": others, "left": left, "together": together, "report": str(report)}


def _of_table(found: Sequence[Mapping[str, Any]], name: str) -> list[Mapping[str, Any]]:
    return [summary for summary in found if summary["table"] == name]


def over_data_sets_part(table: Table, rows: Sequence[Sequence[str]]) -> Part:
    """A table over several data sets as a section of the page."""
    return Part(
        id=f"{table.name}-together", name=f"{table.name}, all data sets",
        title=f"{table.title} ({table.name}, all data sets)", rows=tuple(map(tuple, rows)),
        texts=("Averages over the targets of each data set, and over the data sets.",),
    )  # fmt: skip


def refuse_equal_names(datasets: Sequence[str]) -> None:
    """Raise `UsageError` where two data sets have the same name: tables, figures and runs are filed under it."""
    named: dict[str, str] = {}
    for data in datasets:
        name = Path(data).name
        if name in named:
            raise UsageError(
                f"{named[name]} and {data} have the same name, {name}, under which tables and runs are filed; "
                "reproduce them one by one, each with an --output of its own"
            )
        named[name] = data


def costs_part(found: Mapping[str, Any]) -> Part:
    """Table 1 as a section of the page."""
    name = f"{COSTS}, {found['dataset']}"
    return Part(
        id=f"{COSTS}-{found['dataset']}", name=name, title=f"{cost_title(found)} ({name})",
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


def headline(
    summaries: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]] = (), left: Sequence[str] = ()
) -> str:
    """What the tables say together: how many of the paper's differences have the same sign here.

    Without tables of runs: which costs and figures are there. What time did not allow is named.
    """
    found = _found_so_far(summaries, others)
    return f"{found} Not made for want of time: {', '.join(left)}." if left else found


def _found_so_far(summaries: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> str:
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
            lines += [f"{other['table']}: {cost_title(other)}", "", text_table(cost_rows(other)), ""]
    for summary in found["tables"]:
        heading = f"{summary['table']} on {summary['dataset']}: {summary['title']}"
        if summary["runs"] < summary["planned"]:
            heading += f" ({summary['runs']} of {summary['planned']} runs; the same command goes on)"
        lines += [heading, "", text_table(table_rows(summary)), ""]
    for name, rows in found["together"].items():
        lines += [f"{name} on all data sets: {find_table(name).title}", "", text_table(rows), ""]
    if found["left"]:
        lines += [f"not made for want of time (the same command goes on): {', '.join(found['left'])}", ""]
    return "\n".join([*lines, f"everything is in {found['report']}"])
