"""DomainFusion (Huang et al., ECCV 2024), Algorithm 1:

    loss = λ1·CE(raw) + λ2·LD(raw) + λ3·CE(synthetic),

the synthetic dataset refreshed by the LDM every `generate.interval` epochs, LD the latent distillation of Algorithm 2.
A weight of 0 removes its term and its cost: without λ2 and λ3 no LDM is loaded at all.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from domainfusion.algorithms.base import Algorithm, Batch, Context
from domainfusion.data.transforms import to_float
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.diffusion.prompts import allowed_styles
from domainfusion.distillation.slopes import SlopeEstimator, distillation_loss, draw
from domainfusion.fusion.generation import make_generation
from domainfusion.fusion.synthetic import SyntheticDataset
from domainfusion.seeding import derive_numpy_rng, seed_hash


class DomainFusion(Algorithm):
    """Cross-entropy on raw images, latent distillation, and online lightweight augmentation."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        config = self.config
        self.rows = np.sort(np.concatenate([context.split.train[domain] for domain in context.split.sources]))
        self.position = {int(row): i for i, row in enumerate(self.rows)}
        self.synthetic = SyntheticDataset(context.folder / "synthetic")
        self.spent = {"generated_images": 0, "generation_seconds": 0.0, "distillation_seconds": 0.0}
        self._ldm: LatentDiffusion | None = None
        if config.distill_weight > 0 or config.synthetic_weight > 0:
            self._ldm = LatentDiffusion.load(config.ldm, device=context.device, precision=config.precision)
            self.styles = allowed_styles(self._ldm.styles, context.split.target)
            self.estimator = SlopeEstimator(self._ldm, config.distill)

    @property
    def ldm(self) -> LatentDiffusion:
        """The frozen LDM (not part of the module's state)."""
        assert self._ldm is not None
        return self._ldm

    def generations_due(self, epoch: int) -> int:
        """How many generations there are to be in `epoch`: one each `interval` epochs, the first at the start."""
        due = epoch // self.config.generate.interval + 1
        limit = self.config.generate.generations
        return min(due, limit) if limit else due

    def before_step(self, step: int, epoch: int) -> None:
        """Refresh the synthetic dataset when a generation is due (lines 4 to 13)."""
        if self.config.synthetic_weight == 0:
            return
        while self.synthetic.count < self.generations_due(epoch):
            started = time.monotonic()
            number = self.synthetic.count
            fresh = self.synthetic.latest is None or not self.config.generate.updating
            raw = self.context.dataset.images[self.rows]
            current = raw if fresh else self.synthetic.latest.images  # type: ignore[union-attr]
            generation = make_generation(
                self.ldm, self.context.dataset, self.rows, np.ascontiguousarray(current), self.judge,
                self.config.generate, number=number, seed=self.config.seed, styles=self.styles,
                progress=self.context.progress,
            )  # fmt: skip
            self.synthetic.add(generation, self.context.dataset)
            self.spent["generated_images"] += len(self.rows) * self.config.generate.candidates
            self.spent["generation_seconds"] += time.monotonic() - started

    @torch.no_grad()
    def judge(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (B, D) and confidences of labels (B,), on the CPU, of images (B, 3, S, S) in [0, 1]."""
        training = self.classifier.training
        self.classifier.eval()
        features, confidence = [], []
        for part, given in zip(images.split(256), labels.split(256), strict=True):
            found = self.classifier.features(part.to(self.context.device))
            p = self.classifier.logits_of(found).softmax(-1).cpu()
            features.append(found.float().cpu())
            confidence.append(p.gather(1, given.view(-1, 1)).flatten())
        self.classifier.train(training)
        return torch.cat(features), torch.cat(confidence)

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The terms whose weight is not 0; one forward pass for raw and synthetic images together."""
        config = self.config
        images, labels = batch.images, batch.labels
        count = len(labels)
        latest = self.synthetic.latest
        if config.synthetic_weight > 0 and latest is not None:
            rng = derive_numpy_rng("synthetic", config.seed, batch.step)
            used = max(1, round(config.synthetic_share * count))
            rows = rng.choice(batch.rows, used, replace=False)
            generator = torch.Generator().manual_seed(seed_hash("synthetic views", config.seed, batch.step))
            extra = self.augmented(latest.images[[self.position[int(row)] for row in rows]], generator)
            images = torch.cat([images, extra])
            synthetic_labels = torch.from_numpy(self.context.dataset.labels[rows]).to(labels.device)
        logits = self.predict(images)
        terms = {}
        if config.raw_weight > 0:
            terms["raw_loss"] = config.raw_weight * F.cross_entropy(logits[:count], labels)
        if config.distill_weight > 0:
            terms["distill_loss"] = config.distill_weight * self.distill(batch, logits[:count])
        if len(logits) > count:
            terms["synthetic_loss"] = config.synthetic_weight * F.cross_entropy(logits[count:], synthetic_labels)
        return terms

    def distill(self, batch: Batch, logits: torch.Tensor) -> torch.Tensor:
        """Algorithm 2 on the batch, or on the unbiased sample of it that `images_per_step` allows.

        The slope is that of the stored image; the confidence comes from its augmented view.
        """
        started = time.monotonic()
        config = self.config.distill
        dataset = self.context.dataset
        count = len(batch.rows)
        used = min(count, config.images_per_step or count)
        chosen = derive_numpy_rng("distill", self.config.seed, batch.step).choice(count, used, replace=False)
        rows = batch.rows[chosen]
        p = logits.softmax(-1)[torch.from_numpy(chosen), batch.labels[chosen]]  # (b,)
        images = to_float(torch.from_numpy(dataset.images[rows]).to(self.context.device)) * 2 - 1
        size = self.ldm.image_size
        if images.shape[-1] != size:
            images = F.interpolate(images, size=(size, size), mode="bicubic", antialias=True).clamp(-1, 1)
        words = dataset.words()
        prompts = [self.config.generate.plain_template.format(label=words[dataset.labels[row]]) for row in rows]
        generator = torch.Generator().manual_seed(seed_hash("distill", self.config.seed, batch.step))
        draws = draw(self.ldm, used, size, config, generator)
        # The LDM's own precision is set by its weights: keep the trainer's autocast out of it.
        with torch.autocast(self.context.device.type, enabled=False):
            slopes = self.estimator.slopes(
                images, prompts, p.detach().float().clamp_min(config.confidence_floor), draws
            )
        self.spent["distillation_seconds"] += time.monotonic() - started
        return distillation_loss(slopes, p)

    def costs(self) -> dict[str, Any]:
        """Images generated and seconds spent in the LDM."""
        return dict(self.spent)

    def restore(self, costs: dict[str, Any]) -> None:
        """Go on counting from a checkpoint."""
        self.spent.update(costs)
