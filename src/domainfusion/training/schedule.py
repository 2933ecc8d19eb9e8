"""What a run does at which step: the learning rate, and the evaluations."""

from __future__ import annotations

import math


def learning_rate(step: int, steps: int, lr: float, schedule: str = "cosine") -> float:
    """`lr` where the schedule is constant, else lr · (1 + cos(π·step/steps))/2."""
    return lr if schedule == "constant" else lr * 0.5 * (1 + math.cos(math.pi * step / steps))


def evaluation_steps(steps: int, evaluations: int, every: int = 0) -> set[int]:
    """After how many steps the model is evaluated.

    `evaluations` times, evenly spaced, the end included; or, with `every`, where DomainBed does: after the steps
    numbered 0, every, 2·every, ... (counted from 0), and after the last one.

    >>> sorted(evaluation_steps(12, 4)), sorted(evaluation_steps(12, 4, every=5))
    ([3, 6, 9, 12], [1, 6, 11, 12])
    """
    if every:
        return {*range(1, steps + 1, every), steps}
    count = min(evaluations, steps)
    return {round(steps * (i + 1) / count) for i in range(count)}
