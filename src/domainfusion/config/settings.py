"""Which options of a run are its settings: two runs that have them alike are the same but for chance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Where options came from (what they came to is compared), who does the work, and how much of it at once.
MAKING = {
    "preset", "generate.worker", "generate.worker_device", "generate.batch_size", "zero_shot.batch_size",
    "dsi.batch_size",
}  # fmt: skip
# Options that no other algorithm of ours reads.
READ_BY = {"zero_shot": {"diffusion_classifier", "diffusion_net"}, "cdga": {"cdga"}, "dsi": {"dsi"}}
OURS = {"erm", "domainfusion", "mixup", "mixstyle", "coral", "groupdro", "rsc"}.union(*READ_BY.values())


def without_effect(algorithm: str, options: Mapping[str, Any]) -> set[str]:
    """Those of a run's flat options that say nothing of what comes out of it.

    >>> sorted(without_effect("erm", {"lr": 0.1, "cdga.steps": 4, "preset": "", "epochs": 2, "steps": 80}))
    ['cdga.steps', 'preset', 'steps']
    """
    found = MAKING & set(options)
    if options.get("epochs"):
        found.add("steps")  # they follow from the epochs and the data
    if algorithm in OURS:
        found |= {name for name in options if algorithm not in READ_BY.get(name.split(".")[0], {algorithm})}
    return found
