"""Candidates of a whole data set made ahead of training, for all runs that will ask for them, and as pictures."""

from __future__ import annotations

import contextlib
import functools
import time
from pathlib import Path
from typing import Any

import numpy as np

from domainfusion.config import Precision, TrainConfig
from domainfusion.data.domains import load_dataset
from domainfusion.data.findings import number
from domainfusion.devices import choose_device
from domainfusion.diffusion.labelled_corpus import refuse_seen_target
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.diffusion.prompts import allowed_styles
from domainfusion.errors import UsageError
from domainfusion.experiments.candidate_folder import CandidateFolder
from domainfusion.fusion.candidate_cache import cache_path
from domainfusion.fusion.candidates import candidates_of
from domainfusion.interruption import stoppable


def generate_candidates(
    data: str, config: TrainConfig, *, generations: int = 1, shard: tuple[int, int] = (0, 1), output: Path | None = None
) -> dict[str, Any]:
    """Make what is missing of the candidates of all images of `data` but held-out domains', and say what that took.

    Args:
        generations: how many generations from the stored images (more than one without `generate.updating` only, where
            later generations start from them too).
        shard: (i, n): every n-th image from the i-th, so that n processes share the work.
        output: folder for the candidates as pictures (see `candidate_folder`), itself a data set.
    """
    if generations < 1:
        raise UsageError(f"--generations {generations} makes nothing; give 1 or more")
    if generations > 1 and config.generate.updating:
        raise UsageError(
            "with updating, generations after the first start from a run's own images: --generations 1, or "
            "--generate.no-updating"
        )
    if not 0 <= shard[0] < shard[1]:
        raise UsageError(f"--shard {shard[0]} {shard[1]} is not I N with I from 0 to N - 1")
    dataset = load_dataset(data, config.data)
    refuse_seen_target(config.ldm_source, dataset, (config.target, config.second_target), config.trial)
    ldm = LatentDiffusion.load(config.ldm_source, device=choose_device(config.device), precision=config.precision)
    styles = allowed_styles(ldm.styles, config.target, config.second_target)
    generate = config.generate.needed()
    held_out = [dataset.index_of(domain) for domain in (config.target, config.second_target) if domain is not None]
    rows = np.flatnonzero(~np.isin(dataset.domain_of, held_out))[shard[0] :: shard[1]]
    pictures = None if output is None else CandidateFolder(output, dataset)
    started, made, files = time.monotonic(), 0, 0
    with stoppable(), contextlib.ExitStack() as at_end:
        if pictures is not None:
            at_end.callback(pictures.finish)  # however it ends: what has been written is told of
        for number in range(generations):
            for part, recipes, found in candidates_of(
                ldm, dataset, rows, None, generate, number=number, styles=styles, stored=True
            ):
                made += found.shape[0] * found.shape[1]
                if pictures is not None:
                    files += pictures.write(rows[part], recipes, found, number)
    seconds = time.monotonic() - started
    return {
        "data": data, "ldm": config.ldm_source, "images": len(rows), "generations": generations, "candidates": made,
        "seconds": round(seconds, 1), "files": files, "output": None if output is None else str(output),
    }  # fmt: skip


# For processes on many machines: they compute parts, and one process keeps them. Two machines that write the same
# memory-mapped file over a network would lose what the other wrote to the same page.


def candidates_address(data: str, config: TrainConfig, number: int) -> str:
    """The name of the cache's file for the candidates that a run with `config` asks for in generation `number`.

    It depends on the device, which decides the precision: ask on a machine that will use them.
    """
    dataset, ldm = load_dataset(data, config.data), _load_ldm(config.ldm_source, config.device, config.precision)
    styles = allowed_styles(ldm.styles, config.target, config.second_target)
    return cache_path(ldm, dataset, config.generate.needed(), number, styles).name


def candidates_part(data: str, config: TrainConfig, number: int, rows: np.ndarray) -> np.ndarray:
    """Candidates (n, N, S, S, 3) uint8 of the stored images of rows (n,), computed and not kept."""
    dataset, ldm = load_dataset(data, config.data), _load_ldm(config.ldm_source, config.device, config.precision)
    styles = allowed_styles(ldm.styles, config.target, config.second_target)
    parts = candidates_of(
        ldm, dataset, rows, None, config.generate.needed(), number=number, styles=styles, stored=False, progress=False
    )  # fmt: skip
    return np.concatenate([found for _, _, found in parts])


@functools.lru_cache(maxsize=1)
def _load_ldm(source: str, device: str, precision: Precision) -> LatentDiffusion:
    """The LDM, kept from one part to the next."""
    return LatentDiffusion.load(source, device=choose_device(device), precision=precision)


def generation_text(found: dict[str, Any]) -> str:
    """The summary as text."""
    rate = found["candidates"] / max(found["seconds"], 1e-9)
    where = f"; written to {found['output']}, where metadata.csv tells what each was made of" if found["output"] else ""
    made = number(found["generations"], "generation")
    return (
        f"{found['candidates']:,} candidates of {found['images']:,} images are there, {made}, after "
        f"{found['seconds']:.0f} s ({rate:.1f} a second, those made before included){where}"
    )
