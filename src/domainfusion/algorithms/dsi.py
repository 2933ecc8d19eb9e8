"""DSI: distribution shift inversion (Yu et al., CVPR 2023, arXiv 2306.08328).

The classifier is ERM's. What differs is the test: an LDM fine-tuned on each source domain (without prompts) carries the
test image x over to that domain, x → T_d(x; s), from start step s of the noise schedule. With g the logits,

    g_s(x) = mean of g(x) and g(T_d(x; s)) over the source domains d,

and the prediction is that of g(x) where its largest softmax probability exceeds the threshold, else of the first g_s in
ascending s whose does. Where none does, that of g(x) (as in the authors' code) or of the last g_s (`dsi.unsure`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from domainfusion.algorithms.base import Context, Tester
from domainfusion.algorithms.erm import ERM
from domainfusion.config import DSIConfig, TrainConfig
from domainfusion.data.domains import MultiDomainDataset, load_recorded
from domainfusion.data.splits import Split, build_split
from domainfusion.data.transforms import to_float
from domainfusion.devices import choose_dtype
from domainfusion.diffusion.finetuning import FineTuned, check_trainable, plan_source, train_source
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.diffusion.ldm_source import source_fingerprint
from domainfusion.errors import DataError
from domainfusion.files import read_json, write_json, write_text
from domainfusion.fusion.inversion import Inverter
from domainfusion.fusion.translations import write_sheet

# Translated logits (sources, m, classes) of some of the images (m,), by the number of the start step.
Translated = Callable[[int, np.ndarray], torch.Tensor]
NONE = -1  # no start step was accepted
SHEET_ROWS = 12


def choose_logits(plain: torch.Tensor, translated: Translated, config: DSIConfig) -> tuple[torch.Tensor, np.ndarray]:
    """Logits (n, classes) by the confidence order, and which of them were accepted (n,).

    Args:
        plain: (n, classes) logits of the images themselves.
        translated: asked for the images that are not accepted yet, start step by start step.

    Returns:
        The logits, and for each image 0 (the image itself), i (the i-th start step, from 1), or `NONE`.
    """
    logits = plain.clone()
    accepted = np.where(_confident(plain, config.threshold), 0, NONE)
    for number in range(1, len(config.starts) + 1):
        waiting = np.flatnonzero(accepted == NONE)
        if not len(waiting):
            break
        mean = torch.cat([plain[waiting][None], translated(number - 1, waiting)]).mean(0)  # (m, classes)
        sure = _confident(mean, config.threshold)
        accepted[waiting[sure]] = number
        taken = sure if config.unsure == "original" or number < len(config.starts) else np.ones_like(sure)
        logits[waiting[taken]] = mean[taken]
    return logits, accepted


def _confident(logits: torch.Tensor, threshold: float) -> np.ndarray:
    return (logits.softmax(-1).amax(-1) > threshold).numpy()


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the ensemble said of n images of a data set."""

    rows: np.ndarray  # (n,)
    logits: np.ndarray  # (n, classes)
    plain: np.ndarray  # (n, classes), of the images themselves
    accepted: np.ndarray  # (n,) see `choose_logits`
    translations: int
    seconds: float  # of making them, also where an earlier run did


class Ensemble(Tester):
    """A classifier and the LDMs of its source domains.

    Args:
        classifier: logits of images (B, 3, S, S) in [0, 1].
        inverter: the LDMs.
    """

    def __init__(
        self, classifier: nn.Module, inverter: Inverter, config: TrainConfig, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.classifier, self.inverter, self.options = classifier, inverter, config.dsi
        self.device, self.dtype = device, dtype
        self.verdicts: list[Verdict] = []

    @torch.no_grad()
    def classify(self, images: np.ndarray) -> torch.Tensor:
        """(n, classes) float32 logits, on the CPU, of images (n, S, S, 3) uint8 as they are."""
        self.classifier.eval()
        found = []
        for start in range(0, max(1, len(images)), 256):
            pixels = to_float(torch.from_numpy(np.ascontiguousarray(images[start : start + 256])).to(self.device))
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                found.append(self.classifier(pixels).float().cpu())
        return torch.cat(found)

    def logits(self, dataset: MultiDomainDataset, rows: np.ndarray) -> np.ndarray:
        """(n, classes) logits of rows (n,) of a data set; what was found on the way is added to `verdicts`."""
        count, seconds = 0, 0.0

        def translated(number: int, waiting: np.ndarray) -> torch.Tensor:
            nonlocal count, seconds
            found = []
            for source in self.inverter.sources:
                images, took = self.inverter.rows(source, dataset, rows[waiting], self.options.starts[number])
                count, seconds = count + len(images), seconds + took
                found.append(self.classify(images))
            return torch.stack(found)

        plain = self.classify(dataset.images[rows])
        logits, accepted = choose_logits(plain, translated, self.options)
        self.inverter.release()
        self.verdicts.append(Verdict(rows, logits.numpy(), plain.numpy(), accepted, count, seconds))
        return logits.numpy()

    def logits_of_images(self, images: np.ndarray) -> np.ndarray:
        """(B, classes) logits of images (B, S, S, 3) uint8; their translations are not kept."""

        def translated(number: int, waiting: np.ndarray) -> torch.Tensor:
            start = self.options.starts[number]
            made = (self.inverter.images(source, images[waiting], start) for source in self.inverter.sources)
            return torch.stack([self.classify(found) for found in made])

        return choose_logits(self.classify(images), translated, self.options)[0].numpy()


def fine_tune_sources(dataset: MultiDomainDataset, split: Split, config: TrainConfig) -> list[FineTuned]:
    """The LDM of each source domain, fine-tuned on its training images where it is not there yet."""
    ldm = LatentDiffusion.load(config.ldm_source, precision="float32")
    check_trainable(ldm)
    size, fingerprint = config.generate.image_size or ldm.image_size, source_fingerprint(config.ldm_source)
    del ldm
    found = []
    for domain in split.sources:
        images = dataset.images[split.train[domain]]
        source = plan_source(domain, images, fingerprint, config.dsi, size)
        train_source(source, images, config.ldm_source, config.dsi, size, config.device)
        found.append(source)
    return found


class DSI(ERM):
    """ERM, tested on images carried over to the source domains."""

    tests_by_classifier: ClassVar[bool] = False

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        # Refused now rather than after training.
        check_trainable(LatentDiffusion.load(self.config.ldm_source, precision="float32"))
        for domain, rows in context.split.train.items():
            plan_source(domain, context.dataset.images[rows[:2]], "", self.config.dsi, 8)
        self.tests_held_out = self.config.dsi.held_out
        self.ensemble: Ensemble | None = None

    def tester(self) -> Tester:
        """The ensemble; the LDMs are fine-tuned where they are not there yet, and named in `sources.json`."""
        context = self.context
        if self.ensemble is None:
            sources = fine_tune_sources(context.dataset, context.split, self.config)
            write_json(
                context.folder / "sources.json",
                [{"domain": source.domain, "key": source.key, "folder": str(source.folder)} for source in sources],
            )
            inverter = Inverter(sources, self.config, context.device, context.progress)
            self.ensemble = Ensemble(self.classifier, inverter, self.config, context.device, context.dtype)
        return self.ensemble

    @classmethod
    def load_tester(cls, folder: Path, classifier: nn.Module, config: TrainConfig, device: torch.device) -> Tester:
        """The ensemble of a finished run. LDMs that are gone from the cache are fine-tuned again, from its data set.

        Raises `DataError` where that data set is not what it was.
        """
        named = read_json(folder / "sources.json") if (folder / "sources.json").exists() else []
        sources = [FineTuned(entry["domain"], entry["key"]) for entry in named]
        if not sources or not all(source.finished for source in sources):
            recorded = read_json(folder / "data.json")
            dataset = load_recorded(recorded["data"], config.data, folder)
            if dataset.fingerprint != recorded["fingerprint"]:
                raise DataError(
                    f"the LDMs of the run in {folder} are not in the cache, and cannot be fine-tuned again: the images "
                    f"of {recorded['data']} have changed"
                )
            split = build_split(dataset, config.data, config.target, config.trial, config.second_target)
            sources = fine_tune_sources(dataset, split, config)
        dtype = choose_dtype(config.precision, device)
        dtype = torch.float32 if dtype == torch.float16 else dtype  # as in training
        return Ensemble(classifier, Inverter(sources, config, device), config, device, dtype)

    def findings(self) -> dict[str, Any]:
        """{"ensemble": {"classifier_accuracy", "accepted"}}: the classifier alone on the target's test images, and how
        many predictions were accepted at the image itself, at each start step, and never."""
        verdict = self._test_verdict()
        if verdict is None:
            return {}
        right = verdict.plain.argmax(1) == self.context.dataset.labels[verdict.rows]
        names = {0: "original", **dict(enumerate(map(str, self.config.dsi.starts), start=1)), NONE: "none"}
        accepted = {name: int((verdict.accepted == number).sum()) for number, name in names.items()}
        return {"ensemble": {"classifier_accuracy": float(right.mean()), "accepted": accepted}}

    def _test_verdict(self) -> Verdict | None:
        verdicts = [] if self.ensemble is None else self.ensemble.verdicts
        return next((v for v in verdicts if np.array_equal(v.rows, self.context.split.test)), None)

    def costs(self) -> dict[str, Any]:
        """Images fine-tuned on and translated, and what that took, whichever run did it."""
        if self.ensemble is None:
            return {}
        facts = [source.facts() for source in self.ensemble.inverter.sources]
        return {
            "finetuning_images": sum(fact["images"] for fact in facts),
            "finetuning_seconds": sum(fact["seconds"] for fact in facts),
            "generated_images": sum(verdict.translations for verdict in self.ensemble.verdicts),
            "generation_seconds": sum(verdict.seconds for verdict in self.ensemble.verdicts),
        }

    def seconds_after_training(self) -> float:
        """Fine-tuning and translation."""
        costs = self.costs()
        return float(costs.get("finetuning_seconds", 0.0) + costs.get("generation_seconds", 0.0))

    def finish(self) -> None:
        """Write `translations.png`: test images that were translated, with their translations."""
        verdict = self._test_verdict()
        if verdict is None or self.ensemble is None or not verdict.translations:
            return
        dataset, inverter, options = self.context.dataset, self.ensemble.inverter, self.config.dsi
        shown = verdict.rows[verdict.accepted != 0][:SHEET_ROWS]
        steps = verdict.accepted[verdict.accepted != 0][:SHEET_ROWS]
        strips = [[dataset.images[row]] for row in shown]
        for number, start in enumerate(options.starts, start=1):
            reached = np.flatnonzero((steps == NONE) | (steps >= number))
            for source in inverter.sources:
                for i, image in zip(reached, inverter.rows(source, dataset, shown[reached], start)[0], strict=True):
                    strips[i].append(image)
        write_sheet(self.context.folder / "translations.png", strips)
        names = ", ".join(source.domain for source in inverter.sources)
        lines = [f"from left to right: test image; then, for each start step that it came to, towards {names}", ""]
        for row, step in zip(shown, steps, strict=True):
            end = "none accepted" if step == NONE else f"accepted at start step {options.starts[step - 1]:g}"
            lines.append(f"{dataset.keys[row]} ({dataset.classes[dataset.labels[row]]}): {end}")
        write_text(self.context.folder / "translations.txt", "\n".join(lines) + "\n")
