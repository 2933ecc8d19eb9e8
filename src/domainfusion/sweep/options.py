"""Options of a sweep. No torch and no ray here, so that `--help` is instant."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from domainfusion.config import STRICT, Count


@dataclass(frozen=True, config=STRICT, kw_only=True)
class SweepConfig:
    """What a sweep varies, how it searches, and what a run may use of the machines."""

    data: tuple[str, ...] = ()
    """Data sets: embedded benchmarks (pictograms) or folders DOMAIN/CLASS/IMAGE."""
    algorithms: Annotated[tuple[str, ...], Field(min_length=1)] = ("erm", "domainfusion")
    """Algorithms to compare; differences are taken to erm."""
    targets: tuple[str, ...] = ()
    """Target domains (default: each in turn)."""
    trials: Count = 3
    """Number of trials (splits and seeds 0, 1, ...)."""
    draws: Count = 1
    """Draws of hyperparameters for every algorithm, target and trial; the first is the options as they are given."""
    space: tuple[str, ...] = ()
    """What draws vary: NAME=uniform(LOW,HIGH), loguniform(LOW,HIGH), randint(LOW,HIGH) or choice(A,B,...)."""
    search: Literal["random", "optuna"] = "random"
    """random; optuna: later draws are proposed from the source validation of earlier ones (TPE)."""
    startup: Count = 4
    """optuna: random draws, made at the same time, before the first proposal."""
    prune: bool = False
    """Stop runs early whose source validation lags behind other draws' (ASHA)."""
    prune_after: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """Share of a run's steps before which nothing is pruned."""
    prune_factor: Annotated[float, Field(ge=2)] = 3.0
    """ASHA's reduction factor: one in so many draws goes on at each rung."""
    cpus_per_run: Annotated[float, Field(gt=0)] = 1.0
    """CPUs of a run, which are also its threads."""
    gpus_per_run: Annotated[float, Field(ge=0)] | None = None
    """GPUs of a run; 0.25 puts four runs on a GPU (default: 1 where the machines have GPUs, else 0)."""
    address: str | None = None
    """Address of a running Ray cluster (auto, HOST:PORT); by default a local one is started and ended."""
    cpus: Count | None = None
    """CPUs of the local cluster (default: all of this machine)."""
    retries: Annotated[int, Field(ge=0)] = 3
    """How often a run is resumed when its process or its machine is lost."""
    share: bool = True
    """Compute candidates and curves that several runs read ahead of the runs, on all machines."""
    dry_run: bool = False
    """Only say what there is to do, and about how long it would take."""


def sweep_values(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a TOML file's `[sweep]`, its table `space` as the command line has it.

    >>> sweep_values({"draws": 3, "space": {"lr": "loguniform(1e-4, 1e-2)", "dropout": [0.0, 0.5]}})
    {'draws': 3, 'space': ['lr=loguniform(1e-4, 1e-2)', 'dropout=choice(0.0, 0.5)']}
    """
    found = dict(values)
    space = found.get("space")
    if isinstance(space, dict):
        found["space"] = [f"{name}={rule}" for name, value in _flat(space).items() for rule in [_rule(value)]]
    return found


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _rule(value: Any) -> str:
    return f"choice({', '.join(map(repr, value))})" if isinstance(value, list) else str(value)


def gpus_of_run(options: SweepConfig, gpus: float, device: str) -> float:
    """GPUs that a run takes of the `gpus` there are: as given, else one where there are some and runs may use them."""
    if options.gpus_per_run is not None:
        return options.gpus_per_run
    return 1.0 if gpus and device != "cpu" else 0.0


def slots_of(cpus_per_run: float, gpus_per_run: float, cpus: float, gpus: float) -> int:
    """How many runs `cpus` and `gpus` hold at a time.

    >>> slots_of(2, 0.25, 16, 1), slots_of(1, 1, 8, 0)
    (4, 0)
    """
    limits = [cpus / cpus_per_run] + ([gpus / gpus_per_run] if gpus_per_run else [])
    return int(min(limits) + 1e-6)
