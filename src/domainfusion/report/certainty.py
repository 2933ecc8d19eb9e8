"""How far the report's answer can be trusted, in words: standard errors, chance, what one test does not show."""

from __future__ import annotations

import math
from collections.abc import Sequence

from domainfusion.config import TrainConfig
from domainfusion.report.reading import Run
from domainfusion.report.study import Arm, Study
from domainfusion.results.statistics import Estimate


def binomial_error(percent: float, count: int) -> float:
    """The standard error, in points, of a share in per cent of `count` images: 100·√(p(1-p)/n).

    A share of 0 or 1 is taken as half an image away from it, so that no figure looks certain.

    >>> round(binomial_error(50.0, 100), 2)
    5.0
    """
    share = min(max(percent / 100, 0.5 / count), 1 - 0.5 / count)
    return 100 * math.sqrt(share * (1 - share) / count)


def sure_of_one(
    leading: list[tuple[Arm, Estimate]], images: Sequence[int], chance_said: str, every: Sequence[Estimate] = ()
) -> list[str]:
    """How far one test of one or two models can be trusted, in words; where none leads, of `every` model.

    Args:
        images: how many each was tested on.
    """
    counts = sorted(set(images))
    errors = " and ".join(f"{arm.title}'s figure is ± {figure.error:.1f}" for arm, figure in leading)
    if not leading:
        low, high = min(figure.error for figure in every), max(figure.error for figure in every)
        errors = f"a figure is ± {low:.1f} to {high:.1f}"
    sure = [
        f"One image more or less is {' or '.join(f'{100 / count:.1f}' for count in counts)} points. With "
        f"{' and '.join(map(str, counts))} images, the standard error of {errors} points. {chance_said}"
    ]
    if len(leading) > 1:
        (_, first), (_, second) = leading
        difference, error = first.mean - second.mean, math.hypot(first.error, second.error)
        verdict = (
            "It is smaller than twice that, so this one test does not show that one is better."
            if abs(difference) < 2 * error
            else "It is larger than twice that, so on these images it is hardly chance."
        )
        sure.append(
            f"The difference of {difference:+z.1f} points has a standard error of about ± {error:.1f} if the two "
            f"models err independently, and less the more they err on the same images. {verdict}"
        )
    sure.append("This is one trial: another split or seed gives other figures. `domainfusion benchmark` runs several.")
    return sure


def sure_of_many(study: Study) -> list[str]:
    """How far the figures of several tests can be trusted, in words."""
    runs = [run for arm in study.arms for run in study.compared(arm)]
    sizes, errors = [run.images for run in runs], [binomial_error(run.accuracy or 0.0, run.images) for run in runs]
    span = f"{min(sizes)}" if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)}"
    sure = [
        f"One test has {span} images. Their number alone gives a single figure a standard error of "
        f"{min(errors):.1f} to {max(errors):.1f} points. {chance_in_words(study)}"
    ]
    trials = len(study.units)
    if trials == 1:
        sure.append(
            "There is one trial, so chance in split and seed is not measured. "
            "More trials: `domainfusion benchmark --trials 3`."
        )
    elif trials < 5:
        sure.append(f"With {trials} trials a standard error is itself a rough figure; read p values with that in mind.")
    if study.left_out:
        count = "1 finished run takes" if study.left_out == 1 else f"{study.left_out} finished runs take"
        sure.append(
            f"{count} no part here, because another algorithm has no run on the same target, trial and seed. "
            "The list of every run at the end has them all."
        )
    return sure


def unnamed_in_words(study: Study) -> list[str]:
    """Why the headline names no algorithm as the best, where it does not."""
    if study.challenger is not None or len(study.arms) == 2:
        return []
    return [
        "No algorithm is named as the best: one chosen by its figure on a target would look better than it is. "
        "Compare them in the table, or choose by source validation."
    ]


def images_a_step(run: Run) -> int:
    """How many images a training step of a run sees: raw ones, and DomainFusion's synthetic ones beside them."""
    default = TrainConfig()
    batch, weight, share = (
        run.options.get(name, getattr(default, name)) for name in ("batch_size", "synthetic_weight", "synthetic_share")
    )
    raw = int(batch) * len(run.data["sources"])
    return raw + round(raw * share * (run.algorithm == "domainfusion" and weight > 0))


def images_in_words(study: Study) -> list[str]:
    """That DomainFusion trains on more images in a step than ERM, where both are compared and it does."""
    runs = {arm.algorithm: study.compared(arm)[0] for arm in reversed(study.arms)}
    if not {"erm", "domainfusion"} <= set(runs):
        return []
    more, fewer = images_a_step(runs["domainfusion"]), images_a_step(runs["erm"])
    if more <= fewer:
        return []
    erm = runs["erm"]
    batch = math.ceil(more / len(erm.data["sources"]))
    has = f"`--batch-size {batch}` has as many"
    if epochs := int(erm.options.get("epochs", 0)):  # of larger batches, fewer steps
        epochs = round(epochs * batch / int(erm.options.get("batch_size", TrainConfig().batch_size)))
        has = f"`--batch-size {batch} --epochs {epochs}` has as many, in about as many steps"
    return [
        f"A training step of DomainFusion sees {more} images, raw and synthetic, one of ERM {fewer}: where training is "
        f"short, a part of the difference is their number. ERM with {has}."
    ]


def chance(study: Study) -> float:
    """What guessing would be right on, in per cent."""
    return 100 / len(study.classes)


def chance_in_words(study: Study) -> str:
    """The same as a sentence."""
    return f"Guessing among the {len(study.classes)} classes would be right on {chance(study):.1f} %."
