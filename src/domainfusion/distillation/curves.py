"""Curves: the slope dL/dp of every (image, label), tabulated once over p, so that training reads it from memory.

For a fixed image and label the loss L is a function of one number, the confidence p, and nothing in it changes while a
classifier trains. Its slope is therefore computed ahead, on a grid of p (`curve_rounds`).

A curve is a fact about an image, the prompt of its label, an LDM and the settings: all epochs, seeds, backbones,
targets and trials share it. Tables of data sets lie side by side under the hash of LDM and settings, each image under
a key of its own (`content`), so that a data set (one that has grown, a part) takes over what another has of its images.
A table is kept in shards of rows; a shard is written atomically about once a minute, holds a checksum, and is made
again where it is damaged. Processes that tabulate it at the same time share out the shards.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from domainfusion.config import DistillConfig, TrainConfig
from domainfusion.config_files import plain_values
from domainfusion.data.content import row_keys
from domainfusion.data.domains import MultiDomainDataset
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.diffusion.ldm_source import source_fingerprint
from domainfusion.distillation.curve_rounds import confidences, curves_of
from domainfusion.distillation.shards import SHARD, ShardedTable
from domainfusion.distillation.slopes import SlopeEstimator
from domainfusion.files import cache_folder, hash_of, make_folder
from domainfusion.interruption import check
from domainfusion.memory import halve_until_it_fits
from domainfusion.tensors import load_state, save_state

FORMAT = 4  # raised when the computation changes, so that an older table is not taken for a new one
SAVE_SECONDS = 60  # a killed computation loses about as much, or an image
TABLES = Path(__file__).parent / "tables"  # that come with the package
# Options that decide what a slope is; the others decide how it is used.
SHAPING = ("curve_of", "curve_samples", "curve_rounds", "curve_tolerance", "residual", "guidance", "corruption",
           "weighting", "min_timestep", "max_timestep")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Curves:
    """Slopes of N images at G confidences; a row that was not tabulated has `rounds` 0 and slope 0."""

    grid: torch.Tensor  # (G,) ascending
    slopes: torch.Tensor  # (N, G) float32
    errors: torch.Tensor  # (N, G) standard errors over the rounds
    rounds: torch.Tensor  # (N,) int64

    def slopes_at(self, rows: np.ndarray, confidence: torch.Tensor) -> torch.Tensor:
        """(B,) slopes of rows (B,) at confidences (B,), linear between grid points, constant beyond the ends."""
        p = confidence.detach().float().contiguous()
        right = torch.searchsorted(self.grid, p).clamp(1, len(self.grid) - 1)
        low, high = self.grid[right - 1], self.grid[right]
        share = ((p - low) / (high - low)).clamp(0, 1)
        index = torch.from_numpy(rows).to(p.device)
        return torch.lerp(self.slopes[index, right - 1], self.slopes[index, right], share)

    def to(self, device: torch.device) -> Curves:
        """The same curves on `device`."""
        return Curves(*(getattr(self, field.name).to(device) for field in dataclasses.fields(self)))

    def size(self) -> float:
        """Root mean square slope over what was tabulated."""
        known = self.slopes[self.rounds > 0]
        return float(known.square().mean().sqrt()) if len(known) else 0.0

    def error(self) -> float:
        """Root mean square standard error over what was tabulated, as a share of `size`."""
        known = self.errors[self.rounds > 0]
        return float(known.square().mean().sqrt()) / max(self.size(), 1e-12) if len(known) else 0.0


class CurveStore:
    """The curves of a data set under its labels, on disk; `tabulate` computes what is missing.

    Args:
        dataset: images, and labels in words for the prompts.
        ldm_fingerprint: which LDM (`domainfusion.diffusion.ldm_source.source_fingerprint`).
        config: the distillation's options.
        template: prompt of a label, with {label}.
        image_size: pixels at the LDM (0: the size it was trained at).
    """

    def __init__(
        self, dataset: MultiDomainDataset, ldm_fingerprint: str, config: DistillConfig, template: str, image_size: int
    ) -> None:
        self.dataset, self.config, self.image_size = dataset, config, image_size
        self.prompts = [template.format(label=word) for word in dataset.words()]
        self.knots, self.grid = confidences(config.curve_detail)  # and so no part of `SHAPING`
        options = {name: plain_values(config)[name] for name in SHAPING}
        version = FORMAT + (config.curve_of == "autograd")  # those underflowed in half precision before
        self.settings = hash_of([version, self.knots, self.grid, ldm_fingerprint, options, image_size])
        self.key = hash_of([self.settings, SHARD, dataset.fingerprint, dataset.labels.tolist(), self.prompts])
        self.folder = cache_folder() / "curves" / self.settings / self.key
        self.table = ShardedTable(self.folder, "curves")
        self.shipped = TABLES / f"{self.settings}-{self.key}.safetensors"
        self.computed = 0  # images whose curves `tabulate` has computed here
        self.taken_over = 0  # and taken from tables of other data sets

    def load(self) -> Curves:
        """What has been tabulated so far: a table that came with the package, and the shards on disk."""
        count, points = len(self.dataset), len(self.grid)
        state: dict[str, torch.Tensor] = {
            "slopes": torch.zeros(count, points), "errors": torch.zeros(count, points),
            "rounds": torch.zeros(count, dtype=torch.int64),
        }  # fmt: skip
        if self.shipped.exists():
            _, state = _shipped(self.shipped)
        for rows, found in self.table.read_all():
            for name in state:
                state[name][rows] = found[name]
        return Curves(torch.tensor(self.grid), state["slopes"], state["errors"], state["rounds"])

    def missing(self, rows: np.ndarray) -> np.ndarray:
        """Those of `rows` that have not been tabulated; only their files are read."""
        absent = np.ones(len(rows), dtype=bool)
        if self.shipped.exists():
            absent = _shipped(self.shipped)[1]["rounds"].numpy()[rows] == 0
        known = [np.zeros(0, dtype=np.int64)]
        for number in np.unique(rows[absent] // SHARD).tolist():
            found, curves = self.table.read(self.table.path(number))
            if len(found):
                known.append(found[_is_whole(curves)].numpy())
        return rows[absent & ~np.isin(rows, np.concatenate(known))]

    def row_keys(self, rows: np.ndarray) -> np.ndarray:
        """(n,) int64 keys of images and their prompts, which are the same in every data set."""
        return row_keys(self.dataset.images, rows, [self.prompts[label] for label in self.dataset.labels[rows]])

    def elsewhere(self, rows: np.ndarray) -> tuple[np.ndarray, dict[str, torch.Tensor]]:
        """Those of `rows` (n,) whose image is in the table of another data set under the same prompt, and their curves.

        Returns rows (m,), ascending, and {"key": (m,), "slopes": (m, G), "errors": (m, G), "rounds": (m,)}.
        """
        asked = np.unique(rows)
        keys = places = np.zeros(0, dtype=np.int64)  # keys of rows `asked`, ascending; where the curves of each are
        which, parts, count = np.zeros(0, dtype=np.int64), [], 0
        for known, curves in self._other_tables() if len(asked) else ():
            if not len(keys):
                keys, which = np.unique(self.row_keys(asked), return_inverse=True)
                places = np.full(len(keys), -1)
            at = np.searchsorted(keys, known.numpy()).clip(max=len(keys) - 1)
            fitting = np.flatnonzero((keys[at] == known.numpy()) & (places[at] < 0) & _is_whole(curves).numpy())
            at, first = np.unique(at[fitting], return_index=True)
            if len(at):
                places[at] = count + np.arange(len(at))
                count += len(at)
                chosen = torch.from_numpy(fitting[first])
                parts.append({name: value[chosen] for name, value in curves.items()})
            if (places >= 0).all():
                break
        if not parts:
            return np.zeros(0, dtype=np.int64), {}
        found = places[which] >= 0
        order = torch.from_numpy(places[which][found])
        return asked[found], {name: torch.cat([part[name] for part in parts])[order] for name in parts[0]}

    def _other_tables(self) -> Iterator[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
        """Keys (n,) and curves of each file of other data sets' tables by the same LDM and settings."""
        for path in sorted(TABLES.glob(f"{self.settings}-*.safetensors")):
            if path != self.shipped:
                keys, state = _shipped(path)
                yield keys, state | {"key": keys}
        folders = sorted(path for path in self.folder.parent.glob("*") if path.is_dir() and path != self.folder)
        for folder in folders:
            for _, found in ShardedTable(folder, "curves").read_all():
                yield found["key"], found

    def tabulate(self, ldm: LatentDiffusion, rows: np.ndarray, *, batch: int = 0, progress: bool = True) -> Curves:
        """Compute the curves of `rows` that no table has, and return all there are; see `fill`."""
        self.fill(ldm, self.take_over(rows), batch=batch, progress=progress)
        return self.load()

    def fill(self, ldm: LatentDiffusion, missing: np.ndarray, *, batch: int = 0, progress: bool = True) -> None:
        """Compute the curves of rows `missing` (n,), ascending, shard by shard.

        Shards that another process has begun are left to it, and waited for; should it end before they are done, the
        rest of them is computed here. What is batched together is the same whoever computes it, so for the same rows
        the table is equal to the last bit (unless memory runs out, which makes batches smaller).

        Args:
            batch: latents in a pass of the U-Net (0: 128 on a CPU, as many as fill it on a GPU); halved where memory
                runs out.

        What is known so far is written when an error or a signal (see `domainfusion.interruption`) ends it.
        """
        estimator = SlopeEstimator(ldm, self.config)
        size = self.image_size or ldm.image_size
        batch = batch or 2 * ldm.at_once(0, size)  # these passes are not guided
        if len(missing):
            make_folder(self.folder)
        per_call, at_once = max(1, batch // len(self.knots)), batch
        bar = tqdm(total=len(missing), desc="curves", unit="image", disable=not progress or not len(missing))
        claims = self.table.claim(
            np.unique(missing // SHARD).tolist(), on_wait=lambda: bar.set_postfix_str("waiting for another process")
        )
        with bar, contextlib.closing(claims):
            for number in claims:
                asked = missing[missing // SHARD == number]
                known, curves = self.table.read(self.table.path(number))  # by another process, perhaps a moment ago
                if len(known):
                    known = known[_is_whole(curves)]
                mine = asked[~np.isin(asked, known.numpy())]
                bar.update(len(asked) - len(mine))
                if not len(mine):
                    continue
                with self._writing(number) as add:
                    for part in np.array_split(mine, -(-len(mine) // per_call)):

                        def work(count: int, part: np.ndarray = part) -> dict[str, torch.Tensor]:
                            return curves_of(estimator, self.dataset, part, self.prompts, size, at_once=count)

                        found, at_once = halve_until_it_fits(work, at_once, "tabulating curves")
                        add(part, {**found, "key": torch.from_numpy(self.row_keys(part))})
                        self.computed += len(part)
                        bar.update(len(part))
                        check()

    def take_over(self, rows: np.ndarray) -> np.ndarray:
        """Put what other data sets' tables have of `rows` (n,) into this one; those (m,) that are missing even so."""
        missing = np.unique(self.missing(rows))
        rows, found = self.elsewhere(missing)
        if len(rows):
            make_folder(self.folder)
        for number in np.unique(rows // SHARD).tolist():
            mine = torch.from_numpy(rows // SHARD == number)
            self.table.write(number, torch.from_numpy(rows)[mine], {name: value[mine] for name, value in found.items()})
        self.taken_over += len(rows)
        return np.setdiff1d(missing, rows)

    @contextlib.contextmanager
    def _writing(self, number: int) -> Iterator[Callable[[np.ndarray, dict[str, torch.Tensor]], None]]:
        """A function that takes in curves of rows of one shard; they are written once a minute and at the end, which a
        signal or an error may bring on early."""
        waiting: list[tuple[np.ndarray, dict[str, torch.Tensor]]] = []
        written = time.monotonic()

        def write() -> None:
            nonlocal written
            if waiting:
                rows = torch.from_numpy(np.concatenate([part for part, _ in waiting]))
                names = waiting[0][1]
                found = {name: torch.cat([values[name] for _, values in waiting]) for name in names}
                waiting.clear()
                self.table.write(number, rows, found)
            written = time.monotonic()

        def add(rows: np.ndarray, found: dict[str, torch.Tensor]) -> None:
            waiting.append((rows, found))
            if time.monotonic() - written > SAVE_SECONDS:
                write()

        try:
            yield add
        finally:
            write()

    def export(self, path: Path) -> None:
        """Write the whole table as one file (half precision), as it is shipped with the package."""
        found = self.load()
        save_state(path, {
            "slopes": found.slopes.half(), "errors": found.errors.half(), "rounds": found.rounds.int(),
            "key": torch.from_numpy(self.row_keys(np.arange(len(self.dataset)))),
        })  # fmt: skip


def _is_whole(curves: dict[str, torch.Tensor]) -> torch.Tensor:
    """(n,) bool: which curves of a file are known, in numbers (former versions kept what overflowed)."""
    return (curves["rounds"] > 0) & curves["slopes"].isfinite().all(1)


def _shipped(path: Path) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Keys (N,) of a table that `CurveStore.export` wrote, and its slopes, errors (N, G) and rounds (N,)."""
    state = {name: value.clone() for name, value in load_state(path).items()}
    keys = state.pop("key")
    return keys, {name: value.long() if name == "rounds" else value.float() for name, value in state.items()}


def store_of(config: TrainConfig, dataset: MultiDomainDataset) -> CurveStore:
    """The curves of a data set that a run with `config` reads, where it reads any."""
    generate = config.generate
    return CurveStore(
        dataset, source_fingerprint(config.ldm_source), config.distill, generate.plain_template, generate.image_size
    )
