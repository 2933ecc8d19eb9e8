"""DomainFusion (Huang et al., ECCV 2024), Algorithm 1:

    loss = λ1·CE(raw) + λ2·LD(raw) + λ3·CE(synthetic),

the synthetic dataset refreshed by the LDM every `generate.interval` epochs, LD the latent distillation of Algorithm 2.
That LD is of raw images is a reading: line 14 names x, which line 13 has replaced where an epoch generates.
A weight of 0 removes its term and its cost: without λ2 and λ3 no LDM is loaded at all.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from domainfusion.algorithms.base import Algorithm, Batch, Context
from domainfusion.algorithms.classifier import judge_images
from domainfusion.data.transforms import from_uint8, resize
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.diffusion.prompts import allowed_styles
from domainfusion.distillation.curve_choice import goes_on_with_curves
from domainfusion.distillation.curves import Curves, store_of
from domainfusion.distillation.noise_pictures import write_noise_sheet
from domainfusion.distillation.slopes import SlopeEstimator, distillation_loss, draw
from domainfusion.fusion.ahead import Ahead, Order
from domainfusion.fusion.candidate_cache import CandidateCache, cache_path
from domainfusion.fusion.candidates import Making
from domainfusion.fusion.generation import make_generation
from domainfusion.fusion.recombination import CandidatePool
from domainfusion.fusion.schedule import generations_due
from domainfusion.fusion.synthetic import Generation, SyntheticDataset, is_complete
from domainfusion.fusion.worker_decision import Situation, check_device, decide, local_processes, threads_to_share
from domainfusion.seeding import derive_numpy_rng, seed_hash


class DomainFusion(Algorithm):
    """Cross-entropy on raw images, latent distillation, and online lightweight augmentation."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        config = self.config
        self.rows = np.sort(np.concatenate([context.split.train[domain] for domain in context.split.sources]))
        self.position = {int(row): i for i, row in enumerate(self.rows)}
        self.synthetic = SyntheticDataset(context.folder / "synthetic")
        self.spent: dict[str, Any] = {
            "generations": 0, "generated_images": 0, "generation_seconds": 0.0, "distillation_seconds": 0.0
        }  # fmt: skip
        self.ahead: Ahead | None = None
        self._pool: CandidatePool | None = None
        self._ldm: LatentDiffusion | None = None
        self.curves: Curves | None = None
        if self.takes_curves():
            self.curves = self.load_curves()
        elif config.distill_weight > 0:
            self.load_ldm()
        if config.synthetic_weight > 0:
            check_device(config.generate.worker_device)
            self.load_ldm()

    def load_ldm(self) -> LatentDiffusion:
        """The frozen LDM (not part of the module's state), loaded when it is first asked for."""
        if self._ldm is None:
            config = self.config
            self._ldm = LatentDiffusion.load(config.ldm_source, device=self.context.device, precision=config.precision)
            self.styles = allowed_styles(self._ldm.styles, *self.context.split.held_out)
            self.estimator = SlopeEstimator(self._ldm, config.distill)
        return self._ldm

    @property
    def ldm(self) -> LatentDiffusion:
        """The frozen LDM."""
        return self.load_ldm()

    def takes_curves(self) -> bool:
        """Whether this run reads its slopes from a table; what a begun one did it goes on doing."""
        context = self.context
        batch = self.config.batch_size * len(context.split.sources)
        found = goes_on_with_curves(context.folder, self.config, context.dataset, self.rows, batch)
        return not context.processes.any(not found, context.device)  # all of them, or none

    def described(self) -> dict[str, Any]:
        """What is decided when a run begins: how slopes are found."""
        if self.config.distill_weight == 0:
            return {}
        return {"slopes": "curve" if self.curves is not None else self.config.distill.method}

    def load_curves(self) -> Curves:
        """The training images' curves, on the run's device; what has not been tabulated yet is now."""
        started = time.monotonic()
        config = self.config
        store = store_of(config, self.context.dataset)
        if len(missing := store.take_over(self.rows)):
            store.fill(self.ldm, missing, progress=self.context.progress)
        self.spent["distillation_seconds"] += time.monotonic() - started
        return store.load().to(self.context.device)

    @property
    def ldm_size(self) -> int:
        """Size of images at the LDM, in pixels."""
        return self.config.generate.image_size or self.ldm.image_size

    def generations_due(self, step: int) -> int:
        """How many generations there are to be before `step` (see `domainfusion.fusion.schedule`)."""
        return generations_due(step, self.config.steps, self.context.steps_per_epoch, self.config.generate)

    def before_step(self, step: int, epoch: int) -> None:
        """Refresh the synthetic dataset when a generation is due (lines 4 to 13)."""
        if self.config.synthetic_weight == 0:
            return
        self.ahead = self.ahead or self.look_ahead(step)
        self.ahead.look(self.synthetic.count)
        recombines = self.config.generate.recombines
        if recombines:  # a resumed run's; here, and not in the step that draws from them: that may be tried twice
            self.pool.open(self.synthetic.count)
        while self.synthetic.count < self.generations_due(step):
            started, made = time.monotonic(), False
            self.make_candidates()
            with self.context.processes.first_before_others():
                if not self.synthetic.advance():  # what another process, or a run before this, made is there already
                    self.synthetic.add(self.next_generation(), self.context.dataset)
                    made = True
            if recombines:
                self.pool.open(self.synthetic.count, complete=made)
            self.spent["generations"] = self.synthetic.count
            self.spent["generated_images"] += len(self.rows) * self.config.generate.needed().candidates
            self.spent["generation_seconds"] += time.monotonic() - started
            self.ahead.look(self.synthetic.count)

    def look_ahead(self, step: int) -> Ahead:
        """What makes candidates beside training from `step` on, or nothing (see `domainfusion.fusion.ahead`)."""
        context, generate = self.context, self.config.generate
        processes = context.processes
        due, total = self.generations_due(step), self.generations_due(self.config.steps - 1)
        order = None
        if generate.worker != "off" and processes.first and not generate.updating:
            coming = [n for n in range(self.synthetic.count, total) if not is_complete(self.synthetic.path(n))]
            order = Order.of_missing(self.ldm, context.dataset, self.rows, generate, self.styles, coming)
        lacking = order.missing if order is not None else {}
        later = [share for number, share in lacking.items() if number >= due]
        decision = decide(
            Situation(
                mode=generate.worker, updating=generate.updating, device=context.device,
                wanted_device=generate.worker_device, gpus=torch.cuda.device_count(), threads=threads_to_share(),
                missing=len(lacking), ahead=len(later), lacking=sum(later) / max(1, total - due),
                processes=local_processes(processes.count), first=processes.first,
                began=self.spent.get("worker_threads"),
            )
        )  # fmt: skip
        self.spent["worker_threads"] = decision.threads
        return Ahead(decision, order, total, progress=context.progress)

    def close(self) -> None:
        """End the worker, and give training's threads back."""
        if self.ahead is not None:
            self.ahead.close()

    def make_candidates(self) -> None:
        """This process's share of the next generation's candidates, into the cache, where processes train together.

        With `updating` only the first generation starts from stored images, which the cache knows; the others are the
        first process's work alone.
        """
        processes, number = self.context.processes, self.synthetic.count
        if processes.count == 1 or is_complete(self.synthetic.path(number)):
            return
        if number == 0 or not self.config.generate.updating:
            dataset, generate = self.context.dataset, self.config.generate.needed()
            mine = self.rows[processes.share(len(self.rows))]
            cache = CandidateCache(cache_path(self.ldm, dataset, generate, number, self.styles), dataset, generate)
            making = Making(self.ldm, dataset, mine, generate, number=number, styles=self.styles)
            making.fill(cache, progress=self.context.progress)
            processes.wait()

    def next_generation(self) -> Generation:
        """The generation after the newest, from its images or from the raw ones (not `updating`)."""
        latest = self.synthetic.latest
        fresh = latest is None or not self.config.generate.updating
        current = None if latest is None or fresh else latest.images
        dataset, number = self.context.dataset, self.synthetic.count
        with self.synthetic.room(number, len(self.rows), dataset.size) as fused:
            return make_generation(
                self.ldm, dataset, self.rows, current, self.judge, self.config.generate, number=number,
                styles=self.styles, stored=fresh, fused=fused, progress=self.context.progress,
            )  # fmt: skip

    def judge(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (B, D) and confidences of labels (B,), on the CPU, of images (B, 3, S, S) in [0, 1]."""
        return judge_images(self.classifier, images, labels, device=self.context.device, dtype=self.context.dtype)

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The terms whose weight is not 0; one forward pass for raw and synthetic images together."""
        config = self.config
        images, labels = batch.images, batch.labels
        count, processes = len(labels), self.context.processes
        if config.synthetic_weight > 0:
            rng = derive_numpy_rng("synthetic", config.seed, batch.step)
            used = max(processes.count, round(config.synthetic_share * len(batch.step_rows)))
            rows = rng.choice(batch.step_rows, used, replace=False)
            generator = torch.Generator().manual_seed(seed_hash("synthetic views", config.seed, batch.step))
            views = self.augmented(self.synthetic_images(rows, rng), generator)
            if processes.count > 1:  # all draw the same, and each takes its share
                mine = processes.share(used)
                rows, views = rows[mine], views[mine]
            images = torch.cat([images, views])
            synthetic_labels = torch.from_numpy(self.context.dataset.labels[rows]).to(labels.device)
        logits = self.predict(images)
        terms = {}
        if config.raw_weight > 0:
            terms["raw_loss"] = config.raw_weight * F.cross_entropy(logits[:count], labels)
        if config.distill_weight > 0:
            terms["distill_loss"] = config.distill_weight * self.distill(batch, logits[:count])
        if len(logits) > count:
            weight = config.synthetic_weight * processes.weight(len(synthetic_labels), used)
            terms["synthetic_loss"] = weight * F.cross_entropy(logits[count:], synthetic_labels)
        return terms

    def synthetic_images(self, rows: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
        """(n, S, S, 3) uint8 on the device: what rows (n,) have become; before the first generation the stored images
        (line 1).

        With `recombination` that is drawn anew each time, from all that the generations so far had to choose from.
        """
        latest, device = self.synthetic.latest, self.context.device
        if latest is not None and self.config.generate.recombines:
            return self.pool.recombined(rows, self.synthetic.count, rng, device)
        if latest is None:
            return torch.from_numpy(self.context.dataset.images[rows]).to(device)
        return torch.from_numpy(latest.images[[self.position[int(row)] for row in rows]]).to(device)

    @property
    def pool(self) -> CandidatePool:
        """The candidates of all generations so far, for recombination."""
        if self._pool is None:
            self._pool = CandidatePool(
                self.ldm, self.context.dataset, self.rows, self.config.generate.needed(), self.styles,
                progress=self.context.progress,
            )  # fmt: skip
        return self._pool

    def distill(self, batch: Batch, logits: torch.Tensor) -> torch.Tensor:
        """Algorithm 2 on the batch: all of it by curves, else the unbiased sample of it that `images_per_step` allows.

        The slope is that of the stored image; the confidence comes from its augmented view.
        """
        if self.curves is not None:
            p = logits.softmax(-1).gather(1, batch.labels.view(-1, 1)).flatten()  # (B,)
            floor = self.config.distill.confidence_floor
            return distillation_loss(self.curves.slopes_at(batch.rows, p.clamp_min(floor)), p)
        started = time.monotonic()
        config = self.config.distill
        dataset = self.context.dataset
        processes, count = self.context.processes, len(batch.step_rows)
        used = min(count, config.images_per_step or count)
        chosen = derive_numpy_rng("distill", self.config.seed, batch.step).choice(count, used, replace=False)
        mine = np.flatnonzero(chosen % processes.count == processes.rank)  # those in this process's share of the step
        here = chosen[mine] // processes.count
        rows = batch.rows[here]
        p = logits.softmax(-1)[torch.from_numpy(here), batch.labels[here]]  # (b,)
        if not len(mine):
            return 0 * p.sum()
        size = self.ldm_size
        images = resize(from_uint8(dataset.images[rows]), size).to(self.context.device)
        prompts = self.plain_prompts(rows)
        generator = torch.Generator().manual_seed(seed_hash("distill", self.config.seed, batch.step))
        draws = draw(self.ldm, used, size, config, generator).of(mine)
        # The LDM's own precision is set by its weights: keep the trainer's autocast out of it.
        with torch.autocast(self.context.device.type, enabled=False):
            slopes = self.estimator.slopes(
                images, prompts, p.detach().float().clamp_min(config.confidence_floor), draws
            )
        self.spent["distillation_seconds"] += time.monotonic() - started
        return processes.weight(len(mine), used) * distillation_loss(slopes, p)

    def finish(self) -> None:
        """Write `ld_noise.png`: training images of different classes above where the LDM's noise residual lies."""
        if self._ldm is None:
            return
        dataset = self.context.dataset
        rng = derive_numpy_rng("noise pictures", self.config.seed)
        rows = [
            int(rng.choice(self.rows[dataset.labels[self.rows] == y])) for y in np.unique(dataset.labels[self.rows])
        ][:12]
        write_noise_sheet(
            self.context.folder, self.estimator, dataset, rows, self.plain_prompts(np.array(rows)), self.ldm_size
        )

    def plain_prompts(self, rows: np.ndarray) -> list[str]:
        """The prompt of each of rows (n,), without style words."""
        words, template = self.context.dataset.words(), self.config.generate.plain_template
        return [template.format(label=words[self.context.dataset.labels[row]]) for row in rows]

    def costs(self) -> dict[str, Any]:
        """Generations and images made, and seconds spent in the LDM."""
        return dict(self.spent)

    def restore(self, costs: dict[str, Any]) -> None:
        """Go on from a checkpoint: with its counts, and with the synthetic dataset as it was then."""
        self.spent.update(costs)
        self.synthetic.rewind(int(self.spent["generations"]))
