"""What a frozen LDM says of every label of an image: its loss and its slope under each class's prompt, on shared draws.

For a label y and a confidence p, from one pass of the U-Net with r = ε_φ(z_t, t, c_y) - ε at z = E(C_p(x)):

    L(y) = E mean r²                          the noise-prediction loss, as Diffusion Classifier takes it (p = 1)
    s(y) = E √ᾱ_t ⟨r, dz/dp⟩/dim               the slope of latent distillation (score estimator), a point of its curve

Both are smaller for a label that fits. All labels of an image see the same timesteps and noises, so what they share,
nearly all of the variance, cancels in a comparison. Draws come in rounds of pairs (ε, -ε), one pair in each stratum of
the timesteps; every label gets the first round, and only the given label and the best of its rivals the others.

Evidence is a fact about an image, the class prompts, an LDM and the settings; which labels are given decides only how
much of it is computed. Tables of data sets lie side by side under the hash of prompts, LDM and settings, each image
under a key of its own (`content`), so that a data set (one that has grown, one with other labels) takes over what
another has of its images. Processes that fill a table at the same time share out its files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from domainfusion.config import AuditConfig, DistillConfig
from domainfusion.config_files import plain_values
from domainfusion.data.content import image_keys, row_keys
from domainfusion.data.domains import MultiDomainDataset
from domainfusion.data.transforms import from_uint8, resize
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.distillation.corruption import degrade
from domainfusion.distillation.shards import SHARD, ShardedTable
from domainfusion.distillation.slopes import SlopeEstimator, draw
from domainfusion.files import cache_folder, hash_of, make_folder
from domainfusion.interruption import check
from domainfusion.memory import halve_until_it_fits
from domainfusion.seeding import seed_hash

FORMAT = 2  # raised when the computation changes
# Options that decide the values; `keep`, `rounds` and `ranking` decide which of them are computed and used.
SHAPING = ("seed", "confidences", "pairs", "min_timestep", "max_timestep")
MOST_ROWS = 16  # images whose noisy latents are held at once


@dataclasses.dataclass(frozen=True)
class Evidence:
    """Losses and slopes of n images under K labels, NaN where a label was not tried.

    The axes are image, label, round, pair (stratum of the timesteps), confidence.
    """

    rows: np.ndarray  # (n,) rows of the data set
    losses: np.ndarray  # (n, K, R, S, P) float32
    slopes: np.ndarray  # (n, K, R, S, P) float32
    confidences: tuple[float, ...]  # (P,)

    def misfit(self, ranking: str) -> np.ndarray:
        """(n, K, R, S) float64, smaller for a label that fits: the quantity called `ranking`.

        slopes: their mean over the confidences below 1 (all of them where there is none). losses: the loss at the
        largest confidence. both: the sum of the two, each divided by its spread between labels over all images.
        """
        if ranking == "both":
            return sum((part / spread(part) for part in map(self.misfit, ("losses", "slopes"))), np.zeros(1))
        if ranking == "losses":
            return self.losses[..., int(np.argmax(self.confidences))].astype(np.float64)
        below = [i for i, p in enumerate(self.confidences) if p < 1] or list(range(len(self.confidences)))
        return self.slopes[..., below].astype(np.float64).mean(-1)

    @property
    def passes(self) -> int:
        """Passes of the U-Net that the table holds."""
        return 2 * int(np.isfinite(self.losses).sum())


def spread(values: np.ndarray) -> float:
    """Root mean square difference between a label and the mean label of its image, in the first round of values
    (n, K, R, S) averaged over the pairs."""
    first = values[:, :, 0].mean(-1)
    return float(np.sqrt(np.square(first - first.mean(1, keepdims=True)).mean())) or 1.0


class EvidenceStore:
    """The evidence of a data set's images, on disk; `collect` computes what is missing.

    Args:
        dataset: the images, and the classes in words for the prompts. Its labels decide at most which table it is.
        ldm_fingerprint: which LDM (`domainfusion.diffusion.ldm_source.source_fingerprint`).
    """

    def __init__(self, dataset: MultiDomainDataset, ldm_fingerprint: str, config: AuditConfig) -> None:
        self.dataset, self.config = dataset, config
        self.at_once = 0  # passes of the U-Net, once something is computed
        self.prompts = [config.template.format(label=word) for word in dataset.words()]
        options = {name: plain_values(config)[name] for name in SHAPING}
        settings = hash_of([FORMAT, self.prompts, ldm_fingerprint, options, config.image_size])
        self.key = hash_of([settings, SHARD, dataset.fingerprint])
        self.table = ShardedTable(cache_folder() / "audit" / settings / self.key, "losses and slopes")

    def load(self, rows: np.ndarray) -> Evidence:
        """What there is of rows (n,), ascending."""
        values = np.full((len(rows), *self._shape()), np.nan, dtype=np.float32)
        for number in np.unique(rows // SHARD):
            found, tensors = self.table.read(self.table.path(int(number)))
            if not len(found):
                continue
            place = {row: i for i, row in enumerate(found.tolist())}
            stored = tensors["values"].numpy()
            for i in np.flatnonzero(rows // SHARD == number):
                if (j := place.get(int(rows[i]))) is not None:
                    rounds = min(stored.shape[2], self.config.rounds)
                    values[i, :, :rounds] = stored[j, :, :rounds]
        return Evidence(rows, values[..., 0], values[..., 1], self.config.confidences)

    def _shape(self) -> tuple[int, ...]:
        """Labels, rounds, pairs, confidences, and the two quantities."""
        config = self.config
        return len(self.prompts), config.rounds, config.pairs, len(config.confidences), 2

    def lacking(self, evidence: Evidence, given: np.ndarray, *, first: bool) -> np.ndarray:
        """(n, K, R) bool: what is still to be computed of the first round, or, once that is known, of all the others
        for labels given (n,) and the rivals that fit best."""
        absent = self._absent(evidence)
        if first:
            absent[:, :, 1:] = False
            return absent
        return absent & self.shortlist(evidence, given)[:, :, None]

    @staticmethod
    def _absent(evidence: Evidence) -> np.ndarray:
        """(n, K, R) bool: what has not been computed."""
        return np.asarray(~np.isfinite(evidence.losses).all((-1, -2)))

    def shortlist(self, evidence: Evidence, given: np.ndarray) -> np.ndarray:
        """(n, K) bool: the labels given (n,) and the rivals that fit best by the first round."""
        return shortlist(evidence.misfit(self.config.ranking)[:, :, 0].mean(-1), given, self.config.keep)

    def collect(
        self, load_ldm: Callable[[], LatentDiffusion], rows: np.ndarray, given: np.ndarray, *, progress: bool = True
    ) -> Evidence:
        """The evidence of rows (n,), ascending, under labels given (n,) and their rivals.

        It is the same whatever else the table holds: what was computed for other labels is left out. Files that another
        process is at are left to it, and waited for; should it end before they are done, they are computed here.

        Args:
            load_ldm: called only where something is missing.
        """
        ldm: LatentDiffusion | None = None
        # Which rivals fit best is told in units of the spread over all images: all of them finish the first round.
        for first, what in ((True, "every label"), (False, "the best labels")):
            lacking = self.lacking(self.load(rows), given, first=first)
            if first and self.take_over(rows[lacking.any((1, 2))]):
                lacking = self.lacking(self.load(rows), given, first=first)
            todo = np.flatnonzero(lacking.any((1, 2)))
            numbers = np.unique(rows[todo] // SHARD).tolist()
            bar = tqdm(total=len(todo), desc=what, unit="image", disable=not progress or not len(todo))
            if numbers:
                make_folder(self.table.folder)
            claims = self.table.claim(
                numbers, on_wait=functools.partial(bar.set_postfix_str, "waiting for another process")
            )
            with bar, contextlib.closing(claims):
                for number in claims:
                    mine = todo[rows[todo] // SHARD == number]
                    left = lacking[mine] & self._absent(self.load(rows[mine]))  # another process may have been here
                    some = left.any((1, 2))
                    bar.update(int((~some).sum()))
                    if some.any():
                        ldm = ldm or load_ldm()
                        self._fill(ldm, number, rows[mine[some]], left[some], bar)
                    check()
        found = self.load(rows)
        dropped = ~self.shortlist(found, given)
        for values in (found.losses, found.slopes):
            values[:, :, 1:][dropped] = np.nan
        return found

    def take_over(self, rows: np.ndarray) -> int:
        """Put what other data sets' tables have of the images of `rows` (n,) into this one; of how many they had some.

        One file at a time: what several tables have of an image comes together in this one.
        """
        folders = sorted(path for path in self.table.folder.parent.glob("*") if path.is_dir())
        others = [ShardedTable(path, self.table.content) for path in folders if path != self.table.folder]
        if not len(rows) or not others:
            return 0
        keys = row_keys(self.dataset.images, rows)
        order = np.argsort(keys, kind="stable")
        ascending, taken = keys[order], np.zeros(len(rows), dtype=bool)
        make_folder(self.table.folder)
        for _, found in (file for other in others for file in other.read_all()):
            check()
            low, high = (np.searchsorted(ascending, found["key"].numpy(), side) for side in ("left", "right"))
            there = np.repeat(np.arange(len(low)), high - low)  # in the file, of each of the rows that it has
            here = np.concatenate([order[start:end] for start, end in zip(low, high, strict=True)])
            here, first = np.unique(here, return_index=True)
            for number in np.unique(rows[here] // SHARD).tolist():
                some = rows[here] // SHARD == number
                part = {name: value[torch.from_numpy(there[first[some]])] for name, value in found.items()}
                self.table.write(number, torch.from_numpy(rows[here[some]]), part)
            taken[here] = True
        return int(taken.sum())

    def _fill(self, ldm: LatentDiffusion, number: int, rows: np.ndarray, lacking: np.ndarray, bar: tqdm[Any]) -> None:
        """Compute what is lacking (n, K, R) of rows (n,) of one shard, and write it; `bar` counts rows."""
        values = np.full((len(rows), *self._shape()), np.nan, dtype=np.float32)
        try:
            for part in np.array_split(np.arange(len(rows)), -(-len(rows) // MOST_ROWS)):
                i, label, turn = np.nonzero(lacking[part])
                tasks = np.stack([i, turn, label], 1)
                values[part[i], label, turn] = self._evidence_of(ldm, rows[part], tasks)
                bar.update(len(part))
        finally:  # a signal or an error: what is known is kept, and what was there before, in all its rounds
            found = {"values": torch.from_numpy(values), "key": torch.from_numpy(row_keys(self.dataset.images, rows))}
            self.table.write(number, torch.from_numpy(rows), found)

    def _evidence_of(self, ldm: LatentDiffusion, rows: np.ndarray, tasks: np.ndarray) -> np.ndarray:
        """`evidence_of` of tasks (m, 3), in halves where memory runs out."""

        def work(size: int) -> np.ndarray:
            config = dataclasses.replace(self.config, batch_size=size)
            return evidence_of(ldm, self.dataset, rows, tasks, self.prompts, config)

        self.at_once = self.at_once or ldm.at_once(self.config.batch_size, self.config.image_size or ldm.image_size)
        found, self.at_once = halve_until_it_fits(work, self.at_once, "the audit (--batch-size)")
        return found


def shortlist(misfit: np.ndarray, given: np.ndarray, keep: int) -> np.ndarray:
    """(n, K) bool: the given label (n,) and the `keep` others that fit best by misfit (n, K).

    >>> shortlist(np.array([[3.0, 1.0, 2.0, 0.0]]), np.array([0]), 2).tolist()
    [[True, True, False, True]]
    """
    count = np.arange(len(misfit))
    rivals = misfit.copy()
    rivals[count, given] = np.inf
    order = np.argsort(rivals, axis=1, kind="stable")[:, : min(keep, misfit.shape[1] - 1)]
    stay = np.zeros(misfit.shape, dtype=bool)
    stay[count[:, None], order] = True
    stay[count, given] = True
    return stay


@torch.no_grad()
def evidence_of(
    ldm: LatentDiffusion, dataset: MultiDomainDataset, rows: np.ndarray, tasks: np.ndarray, prompts: list[str],
    config: AuditConfig,
) -> np.ndarray:  # fmt: skip
    """(m, S, P, 2) float32 losses and slopes of tasks (m, 3): which of rows (n,), round, label.

    Each is the mean over a pair (ε, -ε). An image's draws are a function of (seed, its pixels, round) alone: its
    evidence is the same (but for rounding) whatever data set it is in.
    """
    size, stored = config.image_size or ldm.image_size, dataset.images[rows]
    keys = image_keys(stored)
    images = resize(from_uint8(stored), size).to(ldm.device)
    embeds = ldm.prompt_embeds(prompts)
    levels, pairs, at_once = len(config.confidences), config.pairs, ldm.at_once(config.batch_size, size)
    settings = DistillConfig(samples=pairs, min_timestep=config.min_timestep, max_timestep=config.max_timestep)
    estimator = SlopeEstimator(ldm, settings)
    at = torch.tensor(config.confidences).repeat(len(rows))
    many = images.repeat_interleave(levels, 0)
    path = [estimator.path(x, degrade(x, "contrast"), p) for x, p in zip(many.split(64), at.split(64), strict=True)]
    latents, tangents = (torch.cat(part).unflatten(0, (len(rows), levels)) for part in zip(*path, strict=True))
    which, place = np.unique(tasks[:, :2], axis=0, return_inverse=True)
    seeds = [seed_hash("audit", config.seed, int(keys[i]), int(turn)) for i, turn in which]
    draws = [draw(ldm, 1, size, settings, torch.Generator().manual_seed(seed)) for seed in seeds]
    timesteps = torch.stack([item.timesteps[:, 0] for item in draws])  # (u, S)
    noise = torch.stack([item.noise[:, 0] for item in draws])  # (u, S, C, h, w)
    shape = (len(tasks), pairs, levels, 2)
    passes = torch.cartesian_prod(*map(torch.arange, shape))  # (m·S·P·2, 4): task, pair, confidence, sign
    found = torch.empty(len(passes), 2)
    task_image, task_label = torch.from_numpy(tasks[:, 0]), torch.from_numpy(tasks[:, 2])
    for part, (task, pair, level, sign) in zip(
        torch.arange(len(passes)).split(at_once),
        (block.unbind(1) for block in passes.to(ldm.device).split(at_once)), strict=True,
    ):  # fmt: skip
        check()
        drawn = torch.from_numpy(place.reshape(-1)).to(ldm.device)[task]
        t, image = timesteps[drawn, pair], task_image.to(ldm.device)[task]
        eps = noise[drawn, pair] * (1 - 2 * sign).view(-1, 1, 1, 1)
        noisy = ldm.add_noise(latents[image, level], eps, t)
        residual = ldm.predict_noise(noisy, t, embeds[task_label.to(ldm.device)[task]]) - eps
        signal, _ = ldm.signal_and_noise(t)
        slope = signal.flatten() * (residual * tangents[image, level]).mean((1, 2, 3))
        found[part] = torch.stack([residual.square().mean((1, 2, 3)), slope], 1).float().cpu()
    return found.view(*shape, 2).mean(3).numpy()
