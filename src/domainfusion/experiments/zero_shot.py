"""Zero-shot classifiers on the images that a trained one would be tested on, image by image, resumable.

An image's scores depend on its pixels, the prompts, the LDM and the options, and on nothing else: every target, trial
and run of a benchmark shares them, and so do data sets of the same classes, such as one that has grown. They are kept
under the hash of the last three, one line of JSON for an image, with its key (`content`), written when it is done, so
that a killed evaluation loses the images under way and no more.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from domainfusion.algorithms.base import Context
from domainfusion.algorithms.zero_shot import Scores, ZeroShot
from domainfusion.claims import give_up, take, wait_for
from domainfusion.config import TrainConfig
from domainfusion.config_files import plain_values
from domainfusion.data.content import row_keys
from domainfusion.data.domains import MultiDomainDataset
from domainfusion.data.transforms import from_uint8
from domainfusion.devices import choose_dtype
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.diffusion.ldm_source import source_fingerprint
from domainfusion.errors import show_note
from domainfusion.files import cache_folder, hash_of, make_folder
from domainfusion.json_lines import append_json_line, append_whole_lines
from domainfusion.seeding import derive_numpy_rng
from domainfusion.training.evaluation import Evaluation
from domainfusion.training.records import build_record

FORMAT = 2  # raised when the computation changes, so that older scores are not taken for new ones
CLAIMS = 2**62  # bytes of the file that is locked, which keys fall on


class ScoreStore:
    """Scores of images by one method, LDM, prompts and set of options, in `images.jsonl`; images go by their keys.

    Processes that work on the same images share them out: each claims an image in `claims` (`domainfusion.claims`).

    Args:
        key: what they depend on.
    """

    def __init__(self, key: str) -> None:
        self.path = cache_folder() / "zero_shot" / key / "images.jsonl"
        self.known: dict[int, Scores] = {}
        self._read = 0  # bytes
        self._descriptor: int | None = None
        self.refresh()

    def refresh(self) -> None:
        """Take in what this and other processes have written since; a line not yet whole is left for later.

        A damaged line is left out, and said so.
        """
        if not self.path.exists() or self.path.stat().st_size <= self._read:
            return
        with open(self.path, "rb") as file:
            file.seek(self._read)
            text = file.read()
        for line in text[: text.rfind(b"\n") + 1].splitlines(keepends=True):
            try:
                record = json.loads(line)
                if "crc32" in record and record.pop("crc32") != _checksum(record):  # older lines are without
                    raise ValueError("its checksum does not fit")
                errors, draws = np.array(record["errors"], dtype=np.float64), np.array(record["draws"], dtype=np.int64)
                found = Scores(errors, draws, int(record["passes"]), float(record["seconds"]))
                self.known.setdefault(int(record["key"]), found)
            except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
                show_note(
                    f"{self.path} is damaged at byte {self._read} ({error}); the image of that line is classified again"
                )
            self._read += len(line)

    def add(self, key: int, scores: Scores) -> None:
        """Write an image's scores."""
        record = {
            "key": key, "errors": scores.errors.tolist(), "draws": scores.draws.tolist(), "passes": scores.passes,
            "seconds": round(scores.seconds, 4),
        }  # fmt: skip
        record["crc32"] = _checksum(record)
        append_whole_lines(make_folder(self.path.parent) / self.path.name, [record])
        give_up(self._claims(), key % CLAIMS)

    def missing(self, keys: list[int]) -> list[int]:
        """Those of `keys` that have no scores."""
        self.refresh()
        return [key for key in keys if key not in self.known]

    def claim(self, keys: list[int]) -> Iterator[int]:
        """Those of `keys` that have no scores and are nobody else's, claimed when they are asked for."""
        for key in keys:
            if not take(self._claims(), key % CLAIMS):
                continue
            self.refresh()
            if key in self.known:
                give_up(self._claims(), key % CLAIMS)
            else:
                yield key

    def wait(self, key: int) -> None:
        """Return when no other process has `key`. To be called without claims, or two could wait for each other."""
        wait_for(self._claims(), key % CLAIMS)

    def close(self) -> None:
        """Give up all claims."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _claims(self) -> int:
        """The descriptor of the file whose bytes are locked, open until `close`."""
        if self._descriptor is None:
            self._descriptor = os.open(make_folder(self.path.parent) / "claims", os.O_RDWR | os.O_CREAT, 0o666)
        return self._descriptor


def _checksum(record: dict[str, Any]) -> int:
    """The CRC-32 of a line's values."""
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())


def score_store(
    kind: type[ZeroShot], dataset: MultiDomainDataset, config: TrainConfig, dtype: torch.dtype
) -> ScoreStore:
    """The store of a method's scores of images, in the classes of a data set, under a run's options."""
    options = shaping_options(kind, dataset, config)
    size = config.generate.image_size
    return ScoreStore(
        hash_of([FORMAT, kind.__name__, class_prompts(dataset, config), source_fingerprint(config.ldm_source),
                 str(dtype), options, size])
    )  # fmt: skip


def shaping_options(kind: type[ZeroShot], dataset: MultiDomainDataset, config: TrainConfig) -> dict[str, Any]:
    """The options that decide a method's scores, as they come to for the classes of a data set."""
    values = plain_values(config.zero_shot.for_classes(len(dataset.classes)))
    return {name: values[name] for name in kind.shaping}


def class_prompts(dataset: MultiDomainDataset, config: TrainConfig) -> list[str]:
    """The prompt of each class: `generate.plain_template`."""
    return [config.generate.plain_template.format(label=word) for word in dataset.words()]


@dataclasses.dataclass(frozen=True)
class ZeroShotResult:
    """What a zero-shot classifier said of the parts of a split, and what that took."""

    test: Evaluation | None  # of the target; None without one
    held_out: Evaluation | None  # the target's held-out images, with `zero_shot.validation`
    validation: dict[str, Evaluation]  # by source domain, with `zero_shot.validation` or without a target
    costs: dict[str, Any]
    options: dict[str, Any]  # that decided the scores


def classify_parts(kind: type[ZeroShot], context: Context) -> ZeroShotResult:
    """Classify the images that a run with `context` tests on (without a target: those it validates on).

    The costs are those of computing all of it, also where the scores were there already.
    """
    config, split = context.config, context.split
    wanted: dict[str, np.ndarray] = {}
    if len(split.test):
        wanted["test"] = chosen(split.test, config)
    if config.zero_shot.validation or not len(split.test):
        wanted |= {f"validation {domain}": chosen(rows, config) for domain, rows in split.validation.items()}
        if len(split.test):
            wanted["held out"] = chosen(split.oracle, config)
    rows = np.unique(np.concatenate(list(wanted.values())))
    known = scores_of(kind, context, rows)
    found = {part: evaluation_of(context.dataset, part_rows, known) for part, part_rows in wanted.items()}
    passes = sum(known[row].passes for row in rows.tolist())
    return ZeroShotResult(
        test=found.get("test"), held_out=found.get("held out"),
        validation={domain: found[f"validation {domain}"] for domain in split.validation
                    if f"validation {domain}" in found},
        costs={
            "classified_images": len(rows), "unet_passes": passes,
            "classification_seconds": sum(known[row].seconds for row in rows.tolist()),
        },
        options=shaping_options(kind, context.dataset, config),
    )  # fmt: skip


def chosen(rows: np.ndarray, config: TrainConfig) -> np.ndarray:
    """All of rows (n,), or `zero_shot.images` of them drawn at random, in their order."""
    count = config.zero_shot.images
    if not count or count >= len(rows):
        return rows
    rng = derive_numpy_rng("zero-shot images", config.zero_shot.seed)
    return rows[np.sort(rng.permutation(len(rows))[:count])]


def scores_of(kind: type[ZeroShot], context: Context, rows: np.ndarray) -> dict[int, Scores]:
    """{row: scores} of rows (n,); the LDM is loaded only where some are missing."""
    config, dataset = context.config, context.dataset
    store = score_store(kind, dataset, config, choose_dtype(config.precision, context.device))
    keys = row_keys(dataset.images, rows).tolist()
    row_of = dict(zip(keys, rows.tolist(), strict=True))  # one of those that show the same
    lacking = store.missing(list(row_of))
    if lacking:
        _classify(kind, context, store, lacking, row_of)
    return {row: store.known[key] for row, key in zip(rows.tolist(), keys, strict=True)}


def _classify(
    kind: type[ZeroShot], context: Context, store: ScoreStore, lacking: list[int], row_of: dict[int, int]
) -> None:
    """Compute the scores of images by their keys, or wait for another process to; `row_of` says where they are."""
    config, dataset = context.config, context.dataset
    ldm = LatentDiffusion.load(config.ldm_source, device=context.device, precision=config.precision)
    method = kind(ldm, class_prompts(dataset, config), config.zero_shot, config.generate.image_size)
    method.name_of = lambda key: dataset.keys[row_of[key]]

    def load(some: list[int]) -> torch.Tensor:
        return from_uint8(dataset.images[[row_of[key] for key in some]])

    bar = tqdm(total=len(lacking), desc=config.algorithm, unit="image", disable=not context.progress)
    with contextlib.closing(store), contextlib.closing(bar):
        while lacking:
            for key, scores in method.run(store.claim(lacking), load):
                store.add(key, scores)
                bar.update()
            if lacking := store.missing(lacking):  # what another process is at; it may yet be killed
                store.wait(lacking[0])
                lacking = store.missing(lacking)


def evaluation_of(dataset: MultiDomainDataset, rows: np.ndarray, known: dict[int, Scores]) -> Evaluation:
    """What the scores say of rows (n,), as an evaluation."""
    probabilities = [known[row].probabilities() for row in rows.tolist()]
    none = np.zeros((0, len(dataset.classes)))
    return Evaluation(rows, dataset.labels[rows], np.stack(probabilities) if probabilities else none)


def write_record(context: Context, found: ZeroShotResult) -> None:
    """Write DomainBed's record of a run where everything that it asks for was classified."""
    config = context.config
    if found.test is None or found.held_out is None:
        return
    shares = {domain: {"out": value.accuracy} for domain, value in found.validation.items()}
    shares[str(config.target)] = {"in": found.test.accuracy, "out": found.held_out.accuracy}
    record = build_record(
        config, context.dataset.name, context.dataset.domains, shares, output=context.folder, step=0, epoch=0.0,
        loss=found.test.loss, step_time=0.0, frequency=1, device=context.device,
    )  # fmt: skip
    path = context.folder / "results.jsonl"
    path.unlink(missing_ok=True)  # an interrupted run's
    options = config.zero_shot.for_classes(len(context.dataset.classes))
    append_json_line(path, record | {"hparams": plain_values(options)})


def describe_accuracy(found: Evaluation) -> dict[str, Any]:
    """{"images", "accuracy", "standard_error"} of one part; the error is binomial."""
    count, share = len(found.labels), found.accuracy
    return {"images": count, "accuracy": share, "standard_error": math.sqrt(share * (1 - share) / count)}
