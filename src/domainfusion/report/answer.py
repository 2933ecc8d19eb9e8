"""The answer that the report opens with: how often each algorithm is right on unseen domains, and how sure that is."""

from __future__ import annotations

import dataclasses
import math

from markupsafe import Markup, escape

from domainfusion.report.certainty import (
    binomial_error,
    chance,
    chance_in_words,
    images_in_words,
    sure_of_many,
    sure_of_one,
    unnamed_in_words,
)
from domainfusion.report.charts import Dot, dot_chart
from domainfusion.report.study import Arm, Study
from domainfusion.results.statistics import Accuracies, Estimate, estimate, paired_difference, trial_means
from domainfusion.results.tables import accuracy_rows, format_difference


@dataclasses.dataclass(frozen=True)
class Tile:
    """A large figure: per cent, its error ("± 3.9" or empty), and a line below."""

    arm: Arm
    value: str
    error: str
    below: str


@dataclasses.dataclass(frozen=True)
class Answer:
    """The head of the page: one sentence, large figures, a table, a chart, and sentences on how sure it is."""

    headline: Markup
    sure: list[str]
    table: list[list[str]]
    table_note: str = ""
    table_first: bool = False  # the table is the answer, not a detail of it
    estimates: bool = True  # it says something of domains that no model saw, and how sure that is
    tiles: list[Tile] = dataclasses.field(default_factory=list)
    chart: Markup | None = None
    chart_note: str = ""


def build_answer(study: Study) -> Answer:
    """The answer of a study, as far as its runs can be compared."""
    if not study.tested:
        return _answer_without_target(study)
    if not study.units:
        return _answer_apart(study)
    if len(study.targets) == 1 and len(study.units) == 1:
        return _answer_of_one_test(study)
    return _answer_of_many_tests(study)


def _answer_of_one_test(study: Study) -> Answer:
    target = study.targets[0]
    runs = {arm: study.compared(arm)[0] for arm in study.arms}
    figures = {
        arm: Estimate(run.accuracy or 0.0, binomial_error(run.accuracy or 0.0, run.images), run.images)
        for arm, run in runs.items()
    }
    right = {arm: f"{round(figure.mean * figure.count / 100)} of {figure.count}" for arm, figure in figures.items()}
    leading = study.leading
    images = [figures[arm].count for arm in leading or study.arms]  # fewer with --zero-shot.images
    tail = f"{' and '.join(map(str, dict.fromkeys(images)))} images"
    if len(leading) > 1:
        tail = f"difference {figures[leading[0]].mean - figures[leading[1]].mean:+z.1f} points, {tail}"
    said = _said(study, figures, "of the images", tail, errors=False)
    rows = [["algorithm", f"right on {target}", "± s.e.", "images right", "source validation", "chosen at step"]]
    for arm, run in runs.items():
        figure = figures[arm]
        step = "–" if run.step is None else str(run.step)
        rows.append([arm.title, f"{figure.mean:.1f} %", f"{figure.error:.1f}", right[arm], run.validation, step])
    dots = [Dot(arm.number, arm.title, figure.mean, figure.error) for arm, figure in figures.items()]
    return Answer(
        headline=Markup("On <code>{}</code>, {}, ").format(target, _nobody_saw(study)) + said,
        sure=sure_of_one(
            [(arm, figures[arm]) for arm in leading], images, chance_in_words(study), list(figures.values())
        )
        + images_in_words(study)
        + unnamed_in_words(study),
        table=rows,
        table_note="Source validation is the accuracy on held-out images of the domains that were trained on. "
        f"How far the unseen domain falls below it is what the change of domain costs.{_other_weights(study)}",
        tiles=[tile_of(arm, figures[arm], f"{right[arm]} images") for arm in _leading_first(study)],
        chart=dot_chart([(target, dots)], chance(study)),
        chart_note="Whiskers: one standard error each way, from the number of images.",
    )


def _answer_of_many_tests(study: Study) -> Answer:
    accuracy = study.accuracy()
    means = {arm: estimate(trial_means(accuracy[arm.title])) for arm in study.arms}
    leading, baseline = study.leading, study.baseline
    images = sum(run.images for run in study.compared(study.arms[0]))
    tail = f"{images:,} images in {len(study.targets) * len(study.units)} tests"
    if len(leading) > 1:
        tail = f"{_difference(accuracy, leading[0], leading[1])}, {tail}"
    where = Markup("On <code>{}</code>").format(study.targets[0])
    if len(study.targets) > 1:
        where = escape(f"Over {len(study.targets)} target domains")
    said = _said(study, means, "of the images on average", tail)
    rows = accuracy_rows(accuracy, baseline.title if baseline else "")
    if baseline is None or len(study.arms) == 1:  # nothing to subtract
        rows = [row[:-1] for row in rows]
    each = ", each time " if len(study.targets) > 1 else ", "
    return Answer(
        headline=where + each + _nobody_saw(study) + ", " + said,
        sure=sure_of_many(study) + images_in_words(study) + unnamed_in_words(study),
        table=rows,
        table_note=_table_note(study),
        table_first=True,
        tiles=[tile_of(arm, means[arm], _tile_text(study, arm, accuracy)) for arm in _leading_first(study)],
        chart=_chart_of_many(study, accuracy, means),
        chart_note="Dots: means. Whiskers: one standard error each way, over trials, or from the number of images "
        "where there is one trial.",
    )


def _table_note(study: Study) -> str:
    text = "Accuracy in per cent on each target, a domain that was left out of training"
    if len(study.units) == 1:
        return f"{text}; one trial, so without ±.{_other_weights(study)}"
    return (
        f"{text}: mean ± standard error over {len(study.units)} trials. Differences are paired: same target, same "
        "split, same seed; their error and p (Student's t, two-sided) take each trial's mean over the targets as one "
        f"measurement.{_other_weights(study)}"
    )


def _other_weights(study: Study) -> str:
    """What to know where figures are not those of the weights that the runs kept; empty where they are."""
    arms = [arm for arm in study.arms if any(run.choice is not None for run in study.compared(arm))]
    if not arms:
        return ""
    kept = {arm: [run.kept_accuracy or 0.0 for run in study.compared(arm)] for arm in arms}
    means = ", ".join(f"{arm.title} {sum(values) / len(values):.1f} %" for arm, values in kept.items())
    return (
        " These are the figures at the steps that leave-one-domain-out validation chose. The weights that the runs "
        "kept are those that training-domain validation chose, and so is all that is shown below of what a model says "
        f"of single images and classes; they are right on {means}."
    )


def _chart_of_many(study: Study, accuracy: Accuracies, means: dict[Arm, Estimate]) -> Markup:
    rows: list[tuple[str, list[Dot]]] = []
    for target in study.targets:
        dots = []
        for arm in study.arms:
            found = estimate(accuracy[arm.title][target])
            error = found.error
            if math.isnan(error):
                count = next(run.images for run in study.compared(arm) if run.target == target)
                error = binomial_error(found.mean, count)
            dots.append(Dot(arm.number, arm.title, found.mean, error))
        rows.append((target, dots))
    if len(study.targets) > 1:
        rows.append(("average", [Dot(arm.number, arm.title, mean.mean, mean.error) for arm, mean in means.items()]))
    return dot_chart(rows, chance(study))


def _answer_apart(study: Study) -> Answer:
    """Runs that share no target, trial and seed: each figure by itself."""
    rows = [["algorithm", "target", "trial", "right", "± s.e.", "images"]]
    for arm in study.arms:
        for run in arm.runs:
            value = run.accuracy or 0.0
            error = f"{binomial_error(value, run.images):.1f}"
            rows.append([arm.title, str(run.target), str(run.unit[0]), f"{value:.1f} %", error, str(run.images)])
    return Answer(
        headline=Markup(
            "These runs were tested on different targets, trials or seeds, so <strong>they cannot be compared</strong>."
        ),
        sure=[chance_in_words(study), "To compare algorithms, run them on the same ones: `domainfusion benchmark`."],
        table=rows,
        table_note="Each run on the domain that it did not see.",
        table_first=True,
    )


def _answer_without_target(study: Study) -> Answer:
    """Runs that trained on every domain."""
    rows = [["algorithm", "trial", "seed", "source validation"]]
    tiles = []
    for arm in study.arms:
        if (known := source_validation(arm)) is not None:
            tiles.append(tile_of(arm, known, "on held-out images of the domains it trained on"))
        for run in arm.runs:
            rows.append([arm.title, str(run.unit[0]), str(run.unit[1]), run.validation])
    return Answer(
        headline=Markup(
            "No domain was held out, so "
            "<strong>nothing here tells how the model does on a domain it never saw</strong>."
        ),
        sure=[
            "The figures are accuracies on held-out images of the domains that were trained on. "
            f"{chance_in_words(study)}"
        ],
        table=rows,
        tiles=tiles,
        estimates=False,
    )


def source_validation(arm: Arm) -> Estimate | None:
    """Accuracy in per cent on held-out images of the source domains over an arm's runs; None where none measured it."""
    shares = [run.result["validation_accuracy"] for run in arm.runs]
    values = [100 * share for share in shares if share is not None]
    return estimate(values) if values else None


def _leading_first(study: Study) -> list[Arm]:
    return [*study.leading, *(arm for arm in study.arms if arm not in study.leading)]


def tile_of(arm: Arm, figure: Estimate, below: str) -> Tile:
    """A large figure of an arm."""
    return Tile(arm, f"{figure.mean:.1f}", "" if math.isnan(figure.error) else f"± {figure.error:.1f}", below)


def _tile_text(study: Study, arm: Arm, accuracy: Accuracies) -> str:
    baseline = study.baseline
    if baseline is None or arm is baseline:
        return "mean over targets" if len(study.targets) > 1 else "mean over trials"
    return f"{format_difference(paired_difference(accuracy[arm.title], accuracy[baseline.title]))} to {baseline.title}"


def _difference(accuracy: Accuracies, first: Arm, second: Arm) -> str:
    """The paired difference as it stands in a headline."""
    found = paired_difference(accuracy[first.title], accuracy[second.title])
    if math.isnan(found.error):
        return f"difference {found.mean:+z.1f} points"
    said = f"difference {found.mean:+z.1f} ± {found.error:.1f} points"
    if math.isnan(found.p_value):  # equal in every trial
        return said
    return f"{said}, {f'p = {found.p_value:.3f}' if found.p_value >= 0.001 else 'p < 0.001'}"


def _said(study: Study, figures: dict[Arm, Estimate], middle: str, tail: str, *, errors: bool = True) -> Markup:
    """The sentence "A is right on 45.3 % of the images, B on 40.1 % (tail)"."""
    return clause(study, figures, middle, errors=errors) + Markup(" ({}).").format(tail.replace("± ", "±\u00a0"))


def clause(
    study: Study, figures: dict[Arm, Estimate], middle: str, *, errors: bool = True, about: str = "",
    pronoun: bool = False,
) -> Markup:  # fmt: skip
    """What the leading ones of the arms that have figures, in per cent, are right on.

    Where the study's challenger is not among more than two arms: from the lowest to the highest figure, and the
    baseline's, as "11 algorithms are right on 14.3 to 85.7 % of the images, ERM on 57.1 %".

    Args:
        middle: of what, behind the first figure.
        errors: standard errors too.
        about: what stands before a figure ("about ").
        pronoun: call the first arm "it".
    """

    def shown(arm: Arm) -> Markup:
        return strong(f"{about}{figures[arm] if errors else format(figures[arm].mean, '.1f')}")

    named = [arm for arm in study.leading if arm in figures]
    if len(figures) > 2 and study.challenger not in figures:
        means = [figure.mean for figure in figures.values()]
        kind = "algorithms" if len({arm.algorithm for arm in figures}) > 1 else "variants"
        span = strong(f"{about}{min(means):.1f} to {max(means):.1f}")
        text = Markup("{} {} are right on {} {}").format(len(figures), kind, span, middle)
    else:
        first, *named = [*named, *(arm for arm in figures if arm not in named)] if len(figures) <= 2 else named
        text = Markup("{} is right on {} {}").format("it" if pronoun else first.title, shown(first), middle)
    return text + Markup("").join(Markup(", {} on {}").format(arm.title, shown(arm)) for arm in named)


def strong(value: str) -> Markup:
    """A figure in per cent that does not break over lines."""
    return Markup("<strong>{}</strong>").format(f"{value} %".replace(" ", "\u00a0"))


def _nobody_saw(study: Study) -> str:
    words = {1: "a domain the model never saw", 2: "a domain neither model saw"}
    return words.get(len(study.arms), "a domain none of the models saw")
