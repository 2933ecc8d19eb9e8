"""TensorBoard: event files in `RUN/tensorboard`, to be looked at with `tensorboard --logdir RUNS`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from domainfusion.tracking.base import Beginning


class TensorBoard:
    """Scalars by step, pictures, the options as text, and options with results for the HParams page."""

    def begin(self, beginning: Beginning) -> str:
        """Open `RUN/tensorboard`; what an interrupted process wrote after the last step it knew of is void."""
        from torch.utils.tensorboard import SummaryWriter

        folder = beginning.folder / "tensorboard"
        known = bool(beginning.identity)
        self.options = dict(beginning.options)
        self.writer = SummaryWriter(str(folder), purge_step=beginning.step + 1 if known else None)
        if not known:
            rows = "\n".join(f"| {name} | {value} |" for name, value in self.options.items())
            self.writer.add_text("options", f"| option | value |\n|---|---|\n{rows}", 0)
        return str(folder)

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """A scalar for each figure."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def picture(self, name: str, step: int, path: Path) -> None:
        """A picture of the page Images."""
        with Image.open(path) as image:
            self.writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def finish(self, step: int, result: Mapping[str, float]) -> None:
        """The result as scalars `result/...`, beside the options."""
        found = {f"result/{name}": value for name, value in result.items()}
        self.writer.add_hparams(self.options, found, run_name=".", global_step=step)

    def close(self, finished: bool) -> None:
        """Write out what is not yet on disk."""
        self.writer.close()
