"""The answer on runs that trained on all domains and left each of them out in turn: what to expect on another one."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from domainfusion.report.answer import Answer, Tile, clause, source_validation, tile_of
from domainfusion.report.certainty import binomial_error, chance, chance_in_words
from domainfusion.report.charts import Dot, dot_chart
from domainfusion.report.study import Arm, Study
from domainfusion.results.statistics import Estimate, estimate

ELSEWHERE = "on a domain that it has not seen"


def expected_accuracy(arm: Arm) -> dict[str, float]:
    """{domain: per cent without it}, means over those of an arm's runs that have an expectation; empty without any."""
    found = [run.expectation.accuracy for run in arm.runs if run.expectation is not None]
    shared = [domain for domain in found[0] if all(domain in one for one in found)] if found else []
    return {domain: sum(one[domain] for one in found) / len(found) for domain in shared}


def build_expected_answer(study: Study, held_out: Study | None) -> Answer | None:
    """The answer of a study without targets, as its runs' expectations give it; None where it has none.

    The figure that leads is the mean over domains, its error over domains too. What the models reach on held-out images
    of domains that they know comes second.

    Args:
        held_out: the runs that left a domain out, as far as they are still there.
    """
    accuracy = {arm: found for arm in study.arms if (found := expected_accuracy(arm))}
    if not accuracy:
        return None
    means = {arm: estimate(list(found.values())) for arm, found in accuracy.items()}
    domains = [name for name in study.data["domains"] if any(name in found for found in accuracy.values())]
    return Answer(
        headline=_headline(study, means, len(domains)),
        sure=_sure(study, held_out, accuracy, domains),
        table=_table(study, accuracy, means, domains),
        table_note="Below a domain: accuracy in per cent, on that domain, of the same training without it. "
        "Average: mean ± standard error over the domains. Source validation: accuracy of the model that trained on all "
        "of them, on held-out images of the same domains.",
        table_first=True,
        tiles=[
            _tile(arm, means.get(arm))
            for arm in dict.fromkeys([*study.leading, *study.arms])
            if arm in means or source_validation(arm) is not None
        ],
        chart=_chart(study, held_out, accuracy, means, domains),
        chart_note="Dots: accuracy on each domain of the model that trained without it, and their average. Whiskers: "
        "one standard error each way, from the number of images, that of the average over the domains.",
    )


def _headline(study: Study, means: dict[Arm, Estimate], domains: int) -> Markup:
    """What to expect elsewhere, then what the models reach where they know their way."""
    text = Markup("On a domain that {} seen, {}, from leaving {} out in turn.").format(
        "it has not" if len(means) == 1 else "none of them has",
        clause(study, means, "of the images", about="about "),
        f"each of the {domains} domains" if domains > 1 else "the domain",
    )  # fmt: skip
    known = {arm: found for arm in means if (found := source_validation(arm)) is not None}
    if not known:
        return text
    said = clause(study, known, "of held-out images of the same domains", pronoun=len(means) == 1)
    return text + Markup(" Trained on all of them, {} (source validation).").format(said)


def _tile(arm: Arm, mean: Estimate | None) -> Tile:
    known = source_validation(arm)
    if mean is None:  # such runs were not made of this one
        assert known is not None
        return tile_of(arm, known, "on held-out images of the domains it trained on; not tested on others")
    below = "" if known is None else f"; {known.mean:.1f} % on held-out images of those it trained on"
    return tile_of(arm, mean, f"{ELSEWHERE}{below}")


def _table(
    study: Study, accuracy: dict[Arm, dict[str, float]], means: dict[Arm, Estimate], domains: Sequence[str]
) -> list[list[str]]:
    rows = [["algorithm", *(f"without {domain}" for domain in domains), "average", "source validation"]]
    for arm in study.arms:
        known, each = source_validation(arm), accuracy.get(arm, {})
        rows.append([
            arm.title, *(f"{each[domain]:.1f}" if domain in each else "–" for domain in domains),
            str(means[arm]) if arm in means else "–", "–" if known is None else f"{known.mean:.1f}",
        ])  # fmt: skip
    return rows


def _sure(
    study: Study, held_out: Study | None, accuracy: dict[Arm, dict[str, float]], domains: Sequence[str]
) -> list[str]:
    """What the expectation is worth, in words."""
    values = [value for found in accuracy.values() for value in found.values()]
    sure = []
    if len(domains) > 1:
        sure.append(
            f"The ± is one standard error over the {len(domains)} domains, each left out once; they came to "
            f"{min(values):.1f} to {max(values):.1f} %. A domain unlike all of them can lie outside of that."
        )
    sure.append(
        "It is a little pessimistic: each model that was tested had seen one domain less than the one that is kept."
    )
    if held_out is not None:
        sizes = [run.images for arm in held_out.arms for run in arm.runs]
        span = f"{min(sizes):,}" if min(sizes) == max(sizes) else f"{min(sizes):,} to {max(sizes):,}"
        sure.append(f"One test has {span} images. {chance_in_words(study)}")
    else:
        sure.append(f"The runs behind it are no longer there. {chance_in_words(study)}")
    sure.append(
        "Source validation is accuracy on domains that the model knows; how far the expectation falls below it is what "
        "the change of domain costs."
    )
    missing = [arm.title for arm in study.arms if arm not in accuracy]
    if missing:
        sure.append(
            f"Nothing here tells how {', '.join(missing)} does on a domain it never saw: no domain was left out for it."
        )
    return sure


def _chart(
    study: Study, held_out: Study | None, accuracy: dict[Arm, dict[str, float]], means: dict[Arm, Estimate],
    domains: Sequence[str],
) -> Markup:  # fmt: skip
    images = {} if held_out is None else {run.target: run.images for arm in held_out.arms for run in arm.runs}
    rows: list[tuple[str, list[Dot]]] = []
    for domain in domains:
        dots = []
        for arm, found in accuracy.items():
            if domain in found:
                error = binomial_error(found[domain], images[domain]) if images.get(domain) else math.nan
                dots.append(Dot(arm.number, arm.title, found[domain], error))
        rows.append((domain, dots))
    if len(domains) > 1:
        rows.append(("average", [Dot(arm.number, arm.title, mean.mean, mean.error) for arm, mean in means.items()]))
    return dot_chart(rows, chance(study))
