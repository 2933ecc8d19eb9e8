"""The process that makes candidates beside training: `python -m domainfusion.fusion.worker FOLDER` (see `ahead`).

It works through the generations of `FOLDER/order.json`, keeps all it makes in the shared cache, and ends. It ends at
once, too, when its standard input does or its parent is gone: that leaves nothing half made, since a row of the cache
counts only when all of it is there, and claims end with the process.
"""

from __future__ import annotations

import os
import select
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

from domainfusion.errors import DomainFusionError, FileError, printable
from domainfusion.files import read_json

LOOK = 0.5  # seconds between two looks at who the parent is


def main() -> int:
    """Fill the cache; returns the exit code."""
    folder = Path(sys.argv[1])
    order = read_json(folder / "order.json")
    threading.Thread(target=_leave_with_parent, args=(order["parent"], folder), daemon=True).start()
    try:
        make(order)
    except DomainFusionError as error:
        print(printable(str(error)), file=sys.stderr)
        return 1
    return 0


def make(order: dict[str, Any]) -> None:
    """Make what the cache lacks of an order's generations; what another process is making is left to it.

    Raises `FileError` where this process would use other files of the cache than the one that ordered: what it made
    would not be found there.
    """
    import numpy as np

    from domainfusion.config import GenerateConfig
    from domainfusion.config_files import build_config
    from domainfusion.data.domains import MultiDomainDataset
    from domainfusion.diffusion.ldm import LatentDiffusion
    from domainfusion.fusion.candidate_cache import CandidateCache, cache_paths
    from domainfusion.fusion.candidates import Making

    labels = np.array(order["labels"], dtype=np.int64)
    words = tuple(order["words"])
    dataset = MultiDomainDataset(
        name="", domains=("",), classes=words, images=np.load(order["images"], mmap_mode="r", allow_pickle=False),
        labels=labels, domain_of=np.zeros_like(labels), keys=(), fingerprint=order["fingerprint"], class_words=words,
    )  # fmt: skip
    config: GenerateConfig = build_config(GenerateConfig, order["generate"], "order.json")
    styles, rows = tuple(order["styles"]), np.array(order["rows"], dtype=np.int64)
    ldm = LatentDiffusion.load(order["ldm"], device=order["device"], precision=order["precision"])
    numbers = [int(number) for number in order["files"]]
    paths = cache_paths(ldm, dataset, config, numbers, styles)
    if [str(path) for path in paths] != list(order["files"].values()):
        raise FileError(f"the LDM {order['ldm']} is another here than where training loaded it")
    for number, path in zip(numbers, paths, strict=True):
        cache = CandidateCache(path, dataset, config)
        Making(ldm, dataset, rows, config, number=number, styles=styles).fill(cache, wait=False, progress=False)


def _leave_with_parent(parent: int, folder: Path) -> None:
    """End this process when nobody holds the other end of its standard input any more, or its parent is gone."""
    while not select.select([0], [], [], LOOK)[0] and os.getppid() == parent:  # nothing is ever sent
        pass
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
