"""When a run makes its generations.

Algorithm 1 makes one at the beginning of every `interval`-th epoch, counted from 1, the first of them early in its 120
epochs. A run of fewer than 4·`interval` epochs would wait for a quarter of its time and more; it has three generations,
at 1, 4 and 7 tenths of the run's steps. None is begun after `until` of the steps, by default in the last tenth, which
would hardly use it.
"""

from __future__ import annotations

from domainfusion.config import GenerateConfig

TENTHS = (1, 4, 7)


def is_short(steps: int, steps_per_epoch: int, interval: int) -> bool:
    """Whether a run has too few epochs for Algorithm 1's schedule.

    >>> is_short(400, 21, 5), is_short(5000, 21, 5)
    (True, False)
    """
    return steps < 4 * interval * steps_per_epoch


def generations_due(step: int, steps: int, steps_per_epoch: int, config: GenerateConfig) -> int:
    """How many generations there are to be before `step` (counted from 0) of a run of `steps`.

    >>> often = GenerateConfig(interval=5)
    >>> [generations_due(step, 400, 21, often) for step in (39, 40, 160, 280, 399)]
    [0, 1, 2, 3, 3]
    >>> [generations_due(step, 1000, 10, often) for step in (39, 40, 90, 999)]
    [0, 1, 2, 18]
    >>> [generations_due(1199, 1200, 10, GenerateConfig(interval=5, until=share)) for share in (1, 0.9, 0.5)]
    [24, 21, 12]
    """
    last = min(step, int(config.until * steps))
    if is_short(steps, steps_per_epoch, config.interval):
        due = sum(last >= steps * tenth / 10 for tenth in TENTHS)
    else:
        due = (last // steps_per_epoch + 1) // config.interval
    return min(due, config.generations) if config.generations else due


def describe(steps: int, steps_per_epoch: int, interval: int, most: int = 0, until: float = 0.9) -> str:
    """The schedule in words, with at most `most` generations (0: no limit), none after the share `until` of the steps.

    >>> describe(400, 21, 5), describe(5000, 21, 5), describe(5000, 21, 1)
    ("at 1, 4 and 7 tenths of the run's steps", 'every 5 epochs', 'every epoch')
    >>> describe(400, 21, 5, 2), describe(400, 21, 5, 1), describe(5000, 21, 5, 4)
    ("at 1 and 4 tenths of the run's steps", "at one tenth of the run's steps", 'every 5 epochs, 4 times at most')
    >>> describe(400, 21, 5, until=0.5), describe(400, 21, 5, until=0)
    ("at 1 and 4 tenths of the run's steps", 'never')
    >>> describe(5000, 21, 1, 1)
    'once, in epoch 1'
    """
    if is_short(steps, steps_per_epoch, interval):
        within = [str(tenth) for tenth in TENTHS if tenth <= 10 * until]
        if not within:
            return "never"
        *first, last = within[:most] if most else within
        when = f"{', '.join(first)} and {last} tenths" if first else "one tenth"
        return f"at {when} of the run's steps"
    if most == 1:
        return f"once, in epoch {interval}"
    often = "every epoch" if interval == 1 else f"every {interval} epochs"
    return f"{often}, {most} times at most" if most else often
