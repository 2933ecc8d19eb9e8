"""A run's evaluations as DomainBed's records (`results.jsonl`): its fields, under its names.

Its own scripts read them as `domainfusion collect --domainbed` lays them out.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from domainfusion.config import TrainConfig
from domainfusion.config_files import plain_values
from domainfusion.data.benchmarks import canonical_name
from domainfusion.memory import peak_gpu_memory

ALGORITHM_NAMES = {
    "erm": "ERM", "domainfusion": "DomainFusion", "diffusion_classifier": "DiffusionClassifier",
    "diffusion_net": "DiffusionNet",
    "mixup": "Mixup", "mixstyle": "MixStyle", "coral": "CORAL",
    "groupdro": "GroupDRO", "rsc": "RSC", "cdga": "CDGA", "dsi": "DSI",
}  # fmt: skip
HYPERPARAMETERS = ("lr", "batch_size", "weight_decay", "dropout", "raw_weight", "distill_weight", "synthetic_weight")


def build_record(
    config: TrainConfig, data: str, domains: tuple[str, ...], accuracies: Mapping[str, Mapping[str, float]], *,
    output: Path, step: int, epoch: float, loss: float, step_time: float, frequency: int,
    device: torch.device,
) -> dict[str, Any]:  # fmt: skip
    """One record of a run, as DomainBed writes it.

    Args:
        data: name of the data set.
        domains: all domains, in sorted order (their places are DomainBed's numbers).
        accuracies: {domain: {"in": share, "out": share}}; a part that was not measured is left out, and null that of no
            image (NaN, which JSON does not know).
        device: where the run computes; its memory at most allocated so far is `mem_gb`, as in DomainBed.
    """
    hparams = {name: getattr(config, name) for name in HYPERPARAMETERS} | {"backbone": config.backbone}
    name = ALGORITHM_NAMES.get(config.algorithm, config.algorithm)
    if config.average.method != "none" and step > 0:  # a method of its own in every table, where weights were trained
        name += f"+{config.average.method.upper()}"
        hparams["average"] = plain_values(config.average)
    if dataclasses.is_dataclass(own := getattr(config, config.algorithm, None)):
        hparams[config.algorithm] = plain_values(own)
    held = sorted(domains.index(name) for name in (config.target, config.second_target) if name is not None)
    record: dict[str, Any] = {
        "args": {
            "algorithm": name, "checkpoint_freq": frequency,
            "data_dir": data, "dataset": canonical_name(data), "hparams": None, "hparams_seed": config.hparams_seed,
            "holdout_fraction": config.data.holdout_fraction, "output_dir": str(output),
            "save_model_every_checkpoint": False, "seed": config.seed, "skip_model_save": False, "steps": config.steps,
            "task": "domain_generalization", "trial_seed": config.trial, "uda_holdout_fraction": 0,
            "test_envs": held, "env_names": list(domains),
        },
        "epoch": epoch, "hparams": hparams, "loss": loss, "mem_gb": peak_gpu_memory(device),
        "step": step, "step_time": step_time,
    }  # fmt: skip
    for number, domain in enumerate(domains):
        for part, value in accuracies.get(domain, {}).items():
            record[f"env{number}_{part}_acc"] = None if math.isnan(value) else value
    return record
