"""Candidates of coming generations, made beside training by a process of its own (`worker`).

Without `updating` the candidates of every generation depend on the stored images, the LDM and the options; only the
choice among them needs the classifier. So a worker makes them ahead, generation by generation, into the shared cache,
where training finds them. Where it is late, training makes what the worker has not begun and waits for the part that it
is at; where it died, training makes the rest. With `updating` a generation starts from what training chose of the one
before, and there is nothing to make ahead.

On the CPU the two share the threads that training had for itself, so that no core has two: threads that wait for each
other on a core they share cost many times what they bring. As sums in other numbers of threads round differently, that
number is a function of the step, not of how far the worker is: training has its share until the last generation is
made, then all. It stays with the run, which goes on with it when it is resumed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from domainfusion.config import GenerateConfig
from domainfusion.config_files import plain_values
from domainfusion.data.domains import MultiDomainDataset
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.errors import FileError, show_note
from domainfusion.files import write_json
from domainfusion.fusion.candidate_cache import cache_paths, cached_anywhere
from domainfusion.fusion.worker_decision import Decision, threads_to_share

GRACE = 5.0  # seconds that a worker has to end; it needs none
PRECISIONS = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


@dataclasses.dataclass(frozen=True)
class Order:
    """The candidates that a run will ask for: of rows (n,) of a data set, in generations that have a file each."""

    ldm: LatentDiffusion
    dataset: MultiDomainDataset
    rows: np.ndarray
    config: GenerateConfig
    styles: tuple[str, ...]
    files: dict[int, Path]  # by the number of the generation
    missing: dict[int, float] = dataclasses.field(default_factory=dict)  # which share of its rows the cache lacks

    @classmethod
    def of_missing(
        cls, ldm: LatentDiffusion, dataset: MultiDomainDataset, rows: np.ndarray, config: GenerateConfig,
        styles: tuple[str, ...], numbers: list[int],
    ) -> Order:  # fmt: skip
        """The order of those generations of `numbers` of which the cache lacks something."""
        config = config.needed()
        paths = cache_paths(ldm, dataset, config, numbers, styles)
        shares = {
            number: 1 - float(cached_anywhere(path, dataset, rows).mean())
            for number, path in zip(numbers, paths, strict=True)
        }
        files = {number: path for number, path in zip(numbers, paths, strict=True) if shares[number]}
        return cls(ldm, dataset, rows, config, styles, files, {number: shares[number] for number in files})

    def write(self, folder: Path, device: str) -> None:
        """Write the order to `folder/order.json`, with the images in a file of their own where they have none yet."""
        for start in range(0, len(self.rows), 512):  # compares them with their checksums, which the worker has not
            self.dataset.images[self.rows[start : start + 512]]
        place = _file_of(self.dataset.images)
        if place is None:
            place = folder / "images.npy"
            np.save(place, self.dataset.images)
        write_json(
            folder / "order.json",
            {
                "parent": os.getpid(), "images": str(place), "labels": self.dataset.labels.tolist(),
                "words": self.dataset.words(), "fingerprint": self.dataset.fingerprint, "rows": self.rows.tolist(),
                "generate": plain_values(self.config), "styles": self.styles, "ldm": self.ldm.name, "device": device,
                "precision": PRECISIONS[self.ldm.dtype],
                "files": {f"{number:06d}": str(path) for number, path in self.files.items()},
            },
        )  # fmt: skip


def _file_of(images: np.ndarray) -> Path | None:
    """The .npy file that an array is memory-mapped from, all of it; None where there is none."""
    if not isinstance(images, np.memmap) or not images.filename or not images.flags.c_contiguous:
        return None
    try:
        whole = np.load(images.filename, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):  # another form of file
        return None
    same = whole.shape == images.shape and whole.dtype == images.dtype and whole.offset == images.offset
    return Path(images.filename).resolve() if same else None


class Worker:
    """The other process. It ends when its order is done, at `close`, and with this process, however that ends."""

    def __init__(self, order: Order, device: str, threads: int) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="domainfusion-", ignore_cleanup_errors=True)
        folder = Path(self.folder.name)
        order.write(folder, device)
        paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {
            "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads),
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        }  # fmt: skip
        self.log = folder / "log"
        with open(self.log, "wb") as log:
            # A session of its own: Ctrl-C is training's to answer. Standard input stays open as long as this process.
            self.process = subprocess.Popen(
                [sys.executable, "-m", "domainfusion.fusion.worker", str(folder)], stdin=subprocess.PIPE, stdout=log,
                stderr=log, env=environment, start_new_session=True,
            )  # fmt: skip

    def failure(self) -> str | None:
        """Why the process has ended without having done its order; None where it has not."""
        code = self.process.poll()
        if not code:
            return None
        if code < 0:
            return f"killed by {signal.Signals(-code).name}"
        said = next((line.strip() for line in reversed(self._said()) if line.strip()), "it said nothing")
        return f"exit code {code}: {said}"

    def _said(self) -> list[str]:
        try:
            return self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return []

    def close(self) -> None:
        """End the process, and pass on the notes it has written. What it has finished is in the cache."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(GRACE)
        self.process.kill()
        self.process.wait()
        for line in self._said():
            if line.startswith("note: "):
                show_note(line.removeprefix("note: "))
        self.folder.cleanup()


class Ahead:
    """The worker of a run, if it has one, and the threads that training has beside it.

    Args:
        total: how many generations the run has in all.
        progress: whether to say, in one line, why there is no worker.
    """

    def __init__(self, decision: Decision, order: Order | None, total: int, *, progress: bool = True) -> None:
        self.threads, self.total = decision.threads, total
        self.worker: Worker | None = None
        self.all_threads = threads_to_share()
        self.own_threads = max(1, self.all_threads - self.threads)
        if decision.device is not None and order is not None:
            self._start(order, decision.device)
        elif decision.reason and progress:
            show_note(f"no worker makes candidates beside training: {decision.reason}")

    def _start(self, order: Order, device: str) -> None:
        try:
            self.worker = Worker(order, device, self.threads)
        except (OSError, FileError) as error:
            show_note(f"no worker makes candidates beside training: it could not be started ({error})")
            return
        show_note(
            f"a worker makes the candidates of {len(order.files)} generation(s) beside training, on {device} with "
            f"{self.threads} of {self.all_threads} threads (--generate.worker)"
        )

    def look(self, made: int) -> None:
        """Called in each step, with the number of generations made: gives training its threads, tells of a death."""
        if self.threads:
            _set_threads(self.own_threads if made < self.total else self.all_threads)
        failure = self.worker.failure() if self.worker else None
        if failure is not None:
            show_note(f"the worker that made candidates beside training ended ({failure}); training makes the rest")
            self.close_worker()

    def close_worker(self) -> None:
        """End the worker, if there is one."""
        if self.worker is not None:
            self.worker.close()
            self.worker = None

    def close(self) -> None:
        """End the worker, and let training have its threads again."""
        self.close_worker()
        if self.threads:
            _set_threads(self.all_threads)


def _set_threads(count: int) -> None:
    if torch.get_num_threads() != count:
        torch.set_num_threads(count)
