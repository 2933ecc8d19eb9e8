"""Zero-shot classification: the class whose prompt helps an LDM most to denoise the image. Nothing is trained.

    y(x) = argmin_c mean over draws of w(t)·‖ε - ε_φ(z_t, t, c)‖²,     z_t = √ᾱ_t z + √(1-ᾱ_t) ε,

with the same draws (t, ε) for all classes: what they share, most of the error's variance, cancels in the comparison.
The methods differ in how t is drawn, in the weight w(t), and in the rule that ends the trial of a class (`Search`).

Draw m of image number i is a function of (seed, i, m) alone, so what an image's scores are depends neither on the
images beside it nor on the batch size (but for the rounding of the U-Net). Runs take for numbers the keys of what
images show (`domainfusion.data.content`).
"""

from __future__ import annotations

import abc
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import ClassVar

import numpy as np
import torch

from domainfusion.config import ZeroShotConfig
from domainfusion.data.transforms import resize
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.errors import LDMError, UsageError
from domainfusion.interruption import check
from domainfusion.memory import halve_until_it_fits
from domainfusion.seeding import seed_hash

# New images join when fewer passes than this many batches are ready, so that only one batch in so many is not full.
BATCHES_READY = 4


@dataclasses.dataclass(frozen=True)
class Scores:
    """What came out for one image with K classes."""

    errors: np.ndarray  # (K,) float64, the mean of w(t)·‖ε - ε_φ‖² over the draws that the class was tried on
    draws: np.ndarray  # (K,) int64, how many those were
    passes: int  # of the U-Net, those included that a class ruled out meanwhile did not need
    seconds: float  # its share of the time

    def probabilities(self) -> np.ndarray:
        """(K,) softmax of -errors over the classes that were tried on every draw; one ruled out before the last has 0.

        The formula of Li et al. (arXiv 2303.16203): the error stands for the negative log-likelihood. Errors are sums
        over all latent dimensions, so the largest share is mostly near 1: an order of classes, not a confidence.
        """
        tried = self.draws == self.draws.max()
        logits = np.where(tried, -self.errors, -np.inf)
        shares = np.exp(logits - logits.max())
        return shares / shares.sum()

    @property
    def prediction(self) -> int:
        """The class with the smallest error of those tried to the end."""
        return int(self.probabilities().argmax())


class Search(abc.ABC):
    """Which draws of which classes one image is tried on next, given what it was tried on so far.

    Args:
        classes: their number K.
    """

    def __init__(self, classes: int) -> None:
        self.remaining = list(range(classes))
        self.sums = np.zeros(classes)
        self.draws = np.zeros(classes, dtype=np.int64)

    @abc.abstractmethod
    def wanted(self) -> list[int]:
        """Numbers of the draws that all of `remaining` are to be tried on next; empty when there is a result."""

    @abc.abstractmethod
    def take(self, errors: np.ndarray) -> None:
        """Take in errors (draws, remaining) of what was `wanted`."""

    def add(self, errors: np.ndarray) -> None:
        """Count errors (draws, remaining) into the means."""
        self.sums[self.remaining] += errors.sum(0)
        self.draws[self.remaining] += len(errors)

    def means(self) -> np.ndarray:
        """(K,) mean error of each class over its draws."""
        return self.sums / np.maximum(self.draws, 1)


@dataclasses.dataclass
class _Image:
    """An image on its way through its search."""

    number: int
    latents: torch.Tensor  # (C, h, w)
    search: Search
    passes: int = 0
    seconds: float = 0.0

    def scores(self) -> Scores:
        return Scores(self.search.means(), self.search.draws, self.passes, self.seconds)


@dataclasses.dataclass(frozen=True)
class _Task:
    """Passes that an image waits for: each of `draws` with each of `classes`."""

    image: _Image
    draws: list[int]
    classes: list[int]

    @property
    def passes(self) -> int:
        return len(self.draws) * len(self.classes)


class ZeroShot(abc.ABC):
    """Base of the zero-shot classifiers. A subclass gives `search`, `time_of` and `weights`.

    Args:
        ldm: the frozen LDM.
        prompts: one for each class.
        config: the options.
        image_size: pixels at the LDM (0: the size it was trained at).

    Raises `UsageError` where there are fewer than two classes.
    """

    # Options that decide an image's scores, beside the prompts and the LDM; as `for_classes` has them.
    shaping: ClassVar[tuple[str, ...]]

    def __init__(self, ldm: LatentDiffusion, prompts: Sequence[str], config: ZeroShotConfig, image_size: int = 0):
        if len(prompts) < 2:
            raise UsageError("zero-shot classification chooses among classes: the data set has fewer than two")
        self.ldm, self.config = ldm, config.for_classes(len(prompts))
        self.embeds = ldm.prompt_embeds(list(prompts))  # (K, L, D)
        self.image_size = image_size or ldm.image_size
        self.batch = ldm.at_once(config.batch_size, self.image_size)
        self.at_once = self.batch  # fewer when memory has run out
        self.name_of: Callable[[int], str] = "image {}".format  # what messages call an image, by its number

    @abc.abstractmethod
    def search(self) -> Search:
        """A new image's search."""

    @abc.abstractmethod
    def time_of(self, number: int, generator: torch.Generator) -> float:
        """The time, in [0, 1), of draw `number`."""

    @abc.abstractmethod
    def weights(self, times: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """w(t), (B,), of ‖ε - ε_φ‖² at times (B,) in [0, 1), which are timesteps (B,) of the LDM's schedule."""

    def classify(self, images: torch.Tensor, numbers: Sequence[int] | None = None) -> list[Scores]:
        """The scores of images (B, 3, S, S) in [-1, 1].

        Args:
            numbers: the images', which their draws are a function of (default: 0 to B - 1).
        """
        asked = list(range(len(images))) if numbers is None else [int(number) for number in numbers]
        place = {number: i for i, number in enumerate(asked)}
        found = dict(self.run(asked, lambda wanted: images[[place[number] for number in wanted]]))
        return [found[number] for number in asked]

    @torch.no_grad()
    def run(self, numbers: Iterable[int], load: Callable[[list[int]], torch.Tensor]) -> Iterator[tuple[int, Scores]]:
        """(number, scores) of each image as soon as it is known, in whatever order.

        Args:
            numbers: the images', which their draws are a function of; the next is asked for when there is room for it.
            load: images (n, 3, S, S) in [-1, 1] of some of these numbers.

        Raises `Interrupted` before the next batch where a signal asks to stop; the images under way are lost then.
        """
        waiting = iter(numbers)
        active: list[_Image] = []
        while True:
            active += self._admit(waiting, load, active)
            if not active:
                return
            started = time.monotonic()
            tasks = [_Task(image, image.search.wanted(), list(image.search.remaining)) for image in active]
            found = self._errors(tasks)
            each = (time.monotonic() - started) / sum(task.passes for task in tasks)
            active = []
            for task, errors in zip(tasks, found, strict=True):
                image = task.image
                image.search.take(errors)
                image.passes += task.passes
                image.seconds += each * task.passes
                if image.search.wanted():
                    active.append(image)
                else:
                    yield image.number, image.scores()

    def _admit(
        self, waiting: Iterator[int], load: Callable[[list[int]], torch.Tensor], active: list[_Image]
    ) -> list[_Image]:
        """As many of the waiting images, encoded, as it takes to have enough passes ready."""
        ready = sum(len(image.search.wanted()) * len(image.search.remaining) for image in active)
        fresh = self.search()
        lacking = BATCHES_READY * self.batch - ready
        count = max(0, -(-lacking // (len(fresh.wanted()) * len(fresh.remaining))))
        numbers = list(itertools.islice(waiting, count))
        if not numbers:
            return []
        started = time.monotonic()
        images = resize(load(numbers), self.image_size)
        latents = torch.cat([self.ldm.encode(part) for part in images.split(self.batch)])
        each = (time.monotonic() - started) / len(numbers)
        return [_Image(number, z, self.search(), seconds=each) for number, z in zip(numbers, latents, strict=True)]

    @torch.no_grad()
    def paired_errors(self, image: torch.Tensor, draws: Sequence[int], number: int = 0) -> np.ndarray:
        """(draws, K) errors of an image (3, S, S) in [-1, 1]: every class on the same draws, none ruled out.

        What `run` takes the means of; the differences of two columns tell how sure the order of two classes is.
        """
        latents = self.ldm.encode(resize(image[None], self.image_size))[0]
        task = _Task(_Image(number, latents, self.search()), list(draws), list(range(len(self.embeds))))
        return self._errors([task])[0]

    def _errors(self, tasks: list[_Task]) -> list[np.ndarray]:
        """(draws, classes) float64 errors of each task, all computed in batches across images, draws and classes."""
        passes = [(i, number, c) for i, task in enumerate(tasks) for number in task.draws for c in task.classes]

        def work(size: int) -> np.ndarray:
            values = []
            for k in range(0, len(passes), size):
                check()
                values.append(self._batch(tasks, passes[k : k + size]))
            return np.concatenate(values)

        values, self.at_once = halve_until_it_fits(work, self.at_once, "classifying (--zero-shot.batch-size)")
        bounds = np.cumsum([task.passes for task in tasks])[:-1]
        parts = np.split(values, bounds)
        for task, part in zip(tasks, parts, strict=True):
            if not np.isfinite(part).all():
                image = self.name_of(task.image.number)
                raise LDMError(f"{self.ldm.name}: its prediction for {image} is not finite; use --precision float32")
        return [part.reshape(len(task.draws), -1) for task, part in zip(tasks, parts, strict=True)]

    def _batch(self, tasks: list[_Task], passes: list[tuple[int, int, int]]) -> np.ndarray:
        """(B,) w(t)·‖ε - ε_φ‖² of passes (task, draw, class)."""
        device = self.ldm.device
        # A noisy image is made once for all its classes.
        pairs = {pair: i for i, pair in enumerate(dict.fromkeys((task, number) for task, number, _ in passes))}
        which = torch.tensor([pairs[task, number] for task, number, _ in passes], device=device)
        classes = torch.tensor([c for _, _, c in passes], device=device)
        latents = torch.stack([tasks[task].image.latents for task, _ in pairs])
        drawn = [self.draw(tasks[task].image.number, number, latents.shape[1:]) for task, number in pairs]
        times = torch.tensor([t for t, _ in drawn], dtype=torch.float64)
        timesteps = (times * self.ldm.num_train_timesteps).long().to(device)
        noise = torch.stack([noise for _, noise in drawn]).to(device, latents.dtype)
        noisy = self.ldm.add_noise(latents, noise, timesteps)
        predicted = self.ldm.predict_noise(noisy[which], timesteps[which], self.embeds[classes])
        squares = (predicted - noise[which]).square().sum((1, 2, 3))
        weights = self.weights(times.to(device, torch.float32), timesteps)[which]
        return (weights * squares).cpu().double().numpy()

    def draw(self, image: int, number: int, shape: Sequence[int]) -> tuple[float, torch.Tensor]:
        """Time in [0, 1) and noise, of `shape`, of draw `number` of image number `image`."""
        generator = torch.Generator().manual_seed(seed_hash("zero-shot", self.config.seed, int(image), number))
        moment = self.time_of(number, generator)
        return moment, torch.randn(*shape, generator=generator)
