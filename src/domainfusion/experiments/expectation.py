"""What to expect of a classifier on a domain that nobody has labelled: each of its own domains held out in turn.

A model trained on all domains has no domain left to be tested on. The same training without one domain, tested on that
domain, has: over all domains this is the leave-one-domain-out estimate (Gulrajani and Lopez-Paz, arXiv 2007.01434). It
is a little pessimistic, for each of those models saw a domain less, and as uncertain as the domains are few and unlike.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from domainfusion.config import TrainConfig
from domainfusion.experiments.benchmark import run_benchmark
from domainfusion.files import write_json
from domainfusion.results.records import EXPECTATION, HELD_OUT
from domainfusion.results.statistics import estimate


def expect_elsewhere(data: str, config: TrainConfig, folder: Path, *, command: str = "") -> dict[str, Any]:
    """Train once without each domain, in `folder/held-out`, and write and return `expectation.json`.

    Finished runs are not made again.

    Returns:
        {"domains": {domain: per cent}, "mean", "standard_error" (over domains; None of one), "lowest", "highest"}.
    """
    found = run_benchmark(
        data, config, [config.algorithm], [config.trial], None, folder / HELD_OUT, command=command
    )  # fmt: skip
    domains = {domain: values[0] for domain, values in found["accuracy"][config.algorithm].items()}
    figure = estimate(list(domains.values()))
    expected = {
        "domains": domains, "mean": round(figure.mean, 3),
        "standard_error": None if math.isnan(figure.error) else round(figure.error, 3),
        "lowest": min(domains.values()), "highest": max(domains.values()),
    }  # fmt: skip
    write_json(folder / EXPECTATION, expected)
    return expected


def expectation_text(expected: dict[str, Any]) -> str:
    """The estimate in a sentence, and by domain."""
    error = "" if expected["standard_error"] is None else f" ± {expected['standard_error']:.1f}"
    each = ", ".join(f"{domain} {value:.1f} %" for domain, value in expected["domains"].items())
    return (
        f"on a domain that it has not seen expect about {expected['mean']:.1f}{error} % right (mean and standard error "
        f"over the domains,\neach held out in turn: {each})"
    )
