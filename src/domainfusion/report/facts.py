"""How the numbers were made: costs, splits, the rule that chose the models, options, versions and machine."""

from __future__ import annotations

import json
from typing import Any

from domainfusion.report.reading import Run
from domainfusion.report.study import PER_RUN, Arm, Study, differing_options, shown_option

PROTOCOLS = {
    "strict": (
        "The data set brings its own folds, which keep drawings apart: trial t trains on three folds of the source "
        "domains, chooses on fold t + 1 of them, and tests on fold t of the target. No drawing of the test takes part "
        "in training or in choosing, in any style."
    ),
    "domainbed": (
        "DomainBed's splits: {held} of the images of each source domain, drawn at random by the trial, are held out to "
        "choose the model, and the rest train it. The test is the corresponding {kept} of the target."
    ),
}
SELECTION = (
    "Training-domain validation: of the weights at each evaluation, those are kept that are right most often on "
    "held-out images of the source domains (mean over domains). The target is never used to choose anything."
)
SEARCHED = (
    " Several draws of hyperparameters were made for each target and trial; the figure is that of the draw which is "
    "best in the same way, and the runs of the others are not shown."
)
LEAVE_ONE_OUT = (
    "Leave-one-domain-out validation: an accuracy on the target is that at the step, and of the draw of "
    "hyperparameters, at which runs that held out one more domain were right most often on that domain (mean over such "
    "domains). The target is never used to choose anything. A run itself keeps the weights that training-domain "
    "validation chooses; figures class by class, confusions and calibration are theirs."
)


def describe_protocol(study: Study) -> str:
    """The splits in words."""
    held = float(study.arms[0].runs[0].options.get("data.holdout_fraction", 0.2))
    return PROTOCOLS.get(study.protocol, study.protocol).format(held=f"{held:.0%}", kept=f"{1 - held:.0%}")


def describe_selection(study: Study) -> str:
    """How the figures of a study were chosen, in words."""
    by_rule: dict[str, list[str]] = {}
    for arm in study.arms:
        for run in study.compared(arm):
            rule = (SELECTION + SEARCHED * bool(run.search)) if run.choice is None else LEAVE_ONE_OUT
            titles = by_rule.setdefault(rule, [])
            if arm.title not in titles:
                titles.append(arm.title)
    if len(by_rule) == 1:
        return next(iter(by_rule))
    return " ".join(f"{', '.join(titles)}: {rule}" for rule, titles in by_rule.items())


def split_rows(study: Study, tests: Study | None = None) -> list[list[str]]:
    """A table: images of each domain that train, validate, and test where it is the target (in `tests`, if given)."""
    runs = [run for arm in study.arms for run in arm.runs]
    testing = runs if tests is None else [run for arm in tests.arms for run in arm.runs]
    rows = [["domain", "trains", "validates", "tests, as target"]]
    for domain in study.data["domains"]:
        train = [run.data["train"][domain] for run in runs if domain in run.data["train"]]
        validation = [run.data["validation"][domain] for run in runs if domain in run.data["validation"]]
        test = [run.data["test"] for run in testing if run.target == domain]
        rows.append([domain, _span(train), _span(validation), _span(test)])
    return rows


def _span(values: list[int]) -> str:
    """A range of counts.

    >>> _span([3, 5, 4]), _span([7]), _span([])
    ('3 to 5', '7', '–')
    """
    if not values:
        return "–"
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def build_costs(study: Study) -> dict[str, Any]:
    """`rows` (a table) and `bars` (shares of the longest) of the mean run of each arm."""
    rows = [["algorithm", "seconds a run", "to ERM", "generating images", "distilling", "images generated", "steps"]]
    spent = {arm: _mean_costs(study.compared(arm)) for arm in study.arms}
    longest = max([costs["seconds"] for costs in spent.values()] + [1e-9])
    baseline = study.baseline
    bars = []
    for arm, costs in spent.items():
        ratio = costs["seconds"] / spent[baseline]["seconds"] if baseline and spent[baseline]["seconds"] else None
        rows.append([
            arm.title, seconds_in_words(costs["seconds"]), f"× {ratio:.1f}" if ratio and arm is not baseline else "–",
            seconds_in_words(costs["generation_seconds"]), seconds_in_words(costs["distillation_seconds"]),
            f"{costs['generated_images']:,.0f}" if costs["generated_images"] else "–", _steps(study.compared(arm)),
        ])  # fmt: skip
        parts = {
            "generating": costs["generation_seconds"], "distilling": costs["distillation_seconds"],
            "classifying": costs["classification_seconds"], "fine-tuning": costs["finetuning_seconds"],
        }  # fmt: skip
        parts["training"] = max(0.0, costs["seconds"] - sum(parts.values()))
        total = max(sum(parts.values()), 1e-9)
        width = 100 * costs["seconds"] / longest
        bars.append({
            "arm": arm, "seconds": seconds_in_words(costs["seconds"]),
            "parts": [(name, width * value / total) for name, value in parts.items() if value > 0],
        })  # fmt: skip
    if baseline is None:
        rows = [row[:2] + row[3:] for row in rows]
    return {
        "rows": rows, "bars": bars, "several": any(len(study.compared(arm)) > 1 for arm in study.arms),
        "zero_shot": any(costs["classification_seconds"] for costs in spent.values()),
        "tuned": any(costs["finetuning_seconds"] for costs in spent.values()),
    }  # fmt: skip


def _mean_costs(runs: list[Run]) -> dict[str, float]:
    names = ("generated_images", "generation_seconds", "distillation_seconds", "classification_seconds",
             "finetuning_seconds")  # fmt: skip
    costs = {name: sum(float(run.result.get("costs", {}).get(name, 0)) for run in runs) / len(runs) for name in names}
    costs["seconds"] = sum(float(run.result.get("seconds", 0)) for run in runs) / len(runs)
    return costs


def seconds_in_words(value: float) -> str:
    """A time as people write it; a dash for none."""
    if not value:
        return "–"
    if value < 10:
        return f"{value:.1f} s"
    if value < 600:
        return f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 3600 * 3 else f"{value / 3600:.1f} h"


def _steps(runs: list[Run]) -> str:
    return _span([int(run.result.get("steps", 0)) for run in runs])


def run_rows(study: Study) -> list[list[str]]:
    """A table of all runs."""
    heads = "algorithm target trial seed right_on_target source_validation chosen_at_step time folder"
    rows = [[name.replace("_", " ") for name in heads.split()]]
    for arm in study.arms:
        for run in arm.runs:
            result = run.result
            rows.append([
                arm.title, run.target or "none", str(run.unit[0]), str(run.unit[1]),
                "–" if run.accuracy is None else f"{run.accuracy:.1f} % of {run.images}",
                run.validation,
                f"{'–' if run.step is None else run.step} of {result.get('steps', '–')}",
                seconds_in_words(float(result.get("seconds", 0))), str(run.folder),
            ])  # fmt: skip
    return rows


def option_difference_rows(study: Study) -> list[list[str]]:
    """A table of the options in which the arms differ, and those that were drawn; empty where they share all."""
    among = [arm.runs[0] for arm in study.arms]
    for arm in study.arms:
        among += arm.runs[1:] if arm.runs[0].search else ()  # of other draws, perhaps
    names = [name for name in differing_options(among) if name not in ("algorithm", "hparams_seed")]
    if not names:
        return []
    rows = [["option", *(arm.title for arm in study.arms)]]
    for name in names:
        rows.append([name, *(_values(arm, name) for arm in study.arms)])
    return rows


def _values(arm: Arm, name: str) -> str:
    """What an option is in an arm's runs: of a search the value of each, by target and trial."""
    runs = arm.runs if arm.runs[0].search else arm.runs[:1]
    found = [shown_option(run, name) for run in runs]
    return found[0] if len(set(found)) == 1 else ", ".join(found)


def option_texts(study: Study) -> list[dict[str, Any]]:
    """`config.toml` of each arm's first run, and in what its other runs differ."""
    return [{"arm": arm, "text": arm.runs[0].text, "others": _others(arm)} for arm in study.arms if arm.runs[0].text]


def _others(arm: Arm) -> str:
    count = len(arm.runs) - 1
    if not count:
        return ""
    differ = "run differs" if count == 1 else "runs differ"
    if arm.runs[0].search:
        return f"{count} more {differ} in {', '.join(PER_RUN)}, and in what was drawn for them (the table above)."
    steps = ", steps" if arm.runs[0].options.get("epochs") else ""
    return f"{count} more {differ} in {', '.join(PER_RUN)}{steps} at most."


def environments(runs: list[Run]) -> list[dict[str, Any]]:
    """The different machines and versions (`rows`, a table), with how many runs were made there."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(json.dumps(run.environment, sort_keys=True, default=str), []).append(run)
    found = []
    for group in groups.values():
        known = dict(group[0].environment)
        versions = known.pop("versions", {})
        machine = [[name, "none" if value is None else str(value)] for name, value in known.items()]
        found.append({"count": len(group), "rows": machine + [[name, str(value)] for name, value in versions.items()]})
    return found
