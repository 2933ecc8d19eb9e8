"""`domainfusion collect`: tables of accuracies from folders of runs, ours, DomainBed's and SWAD's alike."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from domainfusion.data.benchmarks import BENCHMARKS
from domainfusion.results.domainbed import read_records
from domainfusion.results.model_selection import METHODS, domain_count, group_records, select
from domainfusion.results.tables import markdown_table, text_table
from domainfusion.results.variants import split_variants

TITLES = {
    "training-domain": "training-domain validation set",
    "leave-one-domain-out": "leave-one-domain-out cross-validation",
    "oracle": "test-domain validation set (oracle)",
}

NO_PAIRS = (
    "no table: no target has all the runs that hold out a second domain beside it, "
    "which `domainfusion benchmark --selection leave-one-domain-out` makes"
)


@dataclasses.dataclass(frozen=True)
class Table:
    """Accuracies on one data set by one selection method."""

    dataset: str
    method: str
    domains: list[str]
    accuracy: dict[str, dict[str, list[float]]]  # {algorithm: {domain: [share, by trial]}}
    missing: list[str]  # what stands behind each X, and which trials a cell lacks

    def rows(self, plus_minus: str = "+/-") -> list[list[str]]:
        """The table's cells: a heading, then a row per algorithm; X where nothing could be selected."""
        heading = ["Algorithm", *self.domains, "Avg"]
        return [heading] + [
            [algorithm, *(format_mean(by_domain[d], plus_minus) for d in self.domains), _average(by_domain.values())]
            for algorithm, by_domain in self.accuracy.items()
        ]


def format_mean(shares: list[float], plus_minus: str = "+/-") -> str:
    """Mean and population standard deviation / √n in per cent, one decimal, as DomainBed prints them; X of nothing.

    >>> format_mean([0.5, 0.6])
    '55.0 +/- 3.5'
    """
    if not shares:
        return "X"
    error = 100 * np.std(np.array(shares) / np.sqrt(len(shares)))
    return f"{_percent(shares):.1f} {plus_minus} {error:.1f}"


def _percent(shares: list[float]) -> float:
    """Their mean in per cent, rounded as DomainBed's is: the last decimal that is printed depends on it."""
    return 100 * float(np.mean(shares))


def _average(cells: Any) -> str:
    means = [_percent(shares) if shares else None for shares in cells]
    if any(mean is None for mean in means):
        return "X"
    return f"{sum(mean for mean in means if mean is not None) / len(means):.1f}"


def collect(roots: list[Path], methods: list[str] | None = None) -> tuple[list[Table], list[str]]:
    """Tables for every selection method and data set of the runs at or below `roots`, and notes on odd files."""
    found = read_records(roots)
    records, notes = split_variants(found.records)
    return build_tables(records, methods), [*found.notes, *notes]


def build_tables(records: Sequence[dict[str, Any]], methods: list[str] | None = None) -> list[Table]:
    """Tables for every selection method (default: all) and data set of records in DomainBed's form."""
    groups = group_records(records)
    names: dict[str, list[str]] = {}
    for record in records:
        args = record["args"]
        count = domain_count(record)
        known = BENCHMARKS[args["dataset"]].domains if args["dataset"] in BENCHMARKS else ()
        fallback = list(known) if len(known) == count else [f"env{i}" for i in range(count)]
        names.setdefault(args["dataset"], args.get("env_names") or fallback)
    tables = []
    for method in methods or list(METHODS):
        for dataset in sorted(names):
            tables.append(_table(groups, dataset, method, names[dataset]))
    return tables


def _table(
    groups: dict[tuple[str, str, int, int], list[dict[str, Any]]], dataset: str, method: str, domains: list[str]
) -> Table:
    mine = {key: records for key, records in groups.items() if key[0] == dataset}
    algorithms = sorted({algorithm for _, algorithm, _, _ in mine}, key=lambda name: (name != "ERM", name))
    accuracy: dict[str, dict[str, list[float]]] = {name: {domain: [] for domain in domains} for name in algorithms}
    missing = []
    for algorithm in algorithms:
        trials = sorted({trial for _, name, _, trial in mine if name == algorithm})
        lacking: dict[str, list[int]] = defaultdict(list)
        for number, domain in enumerate(domains):
            for trial in trials:
                records = mine.get((dataset, algorithm, number, trial), [])
                chosen = select(records, method)
                if chosen is None:
                    lacking[domain + _why(records, method, number, domains)].append(trial)
                else:
                    accuracy[algorithm][domain].append(chosen.test)
        for domain, absent in lacking.items():
            trials_text = ", ".join(map(str, absent))
            missing.append(f"{algorithm}, target {domain} for trial {trials_text}")
    return Table(dataset, method, domains, accuracy, missing)


def _why(records: list[dict[str, Any]], method: str, target: int, domains: list[str]) -> str:
    """What a method lacks where it could not choose, in words that go on with "for trial"."""
    if method == "oracle" and any(len(record["args"]["test_envs"]) == 1 for record in records):
        return ": too few images to choose by"
    if method != "leave-one-domain-out":
        return ": no run"
    held = {frozenset(record["args"]["test_envs"]) for record in records}
    absent = [domains[i] for i in range(len(domains)) if i != target and frozenset((target, i)) not in held]
    return f" with {' / '.join(absent)} held out too: no run" if absent else ": no run"


def latex_table(rows: list[list[str]]) -> str:
    """Rows as a LaTeX `tabular` (booktabs), the first one its heading."""

    def escape(cell: str) -> str:
        for letter in "&%$#_{}":
            cell = cell.replace(letter, f"\\{letter}")
        return cell.replace("+/-", "$\\pm$")

    lines = [" & ".join(escape(cell) for cell in row) + " \\\\" for row in rows]
    return "\n".join(
        [f"\\begin{{tabular}}{{l{'c' * (len(rows[0]) - 1)}}}", "\\toprule", lines[0], "\\midrule", *lines[1:],
         "\\bottomrule", "\\end{tabular}"]
    )  # fmt: skip


def tables_text(tables: list[Table], form: str) -> str:
    """The tables as text, Markdown or LaTeX, each under its title; what is missing below."""
    parts = []
    for table in tables:
        title = f"{table.dataset}, model selection: {TITLES[table.method]}"
        if table.method == "leave-one-domain-out" and not any(any(cells.values()) for cells in table.accuracy.values()):
            mark = {"latex": "% ", "markdown": "### "}.get(form, "")
            parts.append(f"{mark}{title}\n{'% ' if form == 'latex' else chr(10)}{NO_PAIRS}")
        elif form == "latex":
            body, missing = latex_table(table.rows()), "".join(f"\n% {line}" for line in table.missing)
            parts.append(f"% {title}\n{body}{missing}")
        else:
            draw = markdown_table if form == "markdown" else text_table
            rows = table.rows("±" if form == "markdown" else "+/-")
            missing = "".join(f"\n{line}" for line in (["", *table.missing] if table.missing else []))
            parts.append(f"{'### ' if form == 'markdown' else ''}{title}\n\n{draw(rows)}{missing}")
    remark = "± is DomainBed's: the deviation over trials (of the population) / √trials, so 0 for one trial"
    parts.append(f"{'% ' if form == 'latex' else ''}{remark if form == 'markdown' else remark.replace('±', '+/-')}")
    return "\n\n".join(parts)


def tables_json(tables: list[Table]) -> list[dict[str, Any]]:
    """The tables as plain values; accuracies in per cent."""
    return [
        {
            "dataset": table.dataset, "selection": table.method, "missing": table.missing,
            "accuracy": {
                algorithm: {domain: [100 * share for share in shares] for domain, shares in by_domain.items()}
                for algorithm, by_domain in table.accuracy.items()
            },
        }
        for table in tables
    ]  # fmt: skip
