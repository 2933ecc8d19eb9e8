"""A run's trackers follow its folder: what it holds and they have not been told yet, they are told.

Everything that trackers are told is in the folder anyway (config.toml, metrics.jsonl, pictures, result.json). How far
each has been told is kept beside it in `tracking.json`. So a tracker that was added later, or was out of reach for a
while, catches up when the same command runs again, and a run that resumes tells no step twice: the records that it
makes anew are those that were told already. Which trackers follow is no option of the run and makes no other run.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from domainfusion.config_files import load_toml
from domainfusion.errors import UsageError
from domainfusion.files import read_json, write_json
from domainfusion.json_lines import read_json_lines
from domainfusion.registry import TRACKERS
from domainfusion.tracking.base import Beginning, Tracker, numbers, scalars

PACKAGES = {
    "tensorboard": ("tensorboard", "pip install 'domainfusion[track]'"),
    "wandb": ("wandb", "pip install wandb"),
    "mlflow": ("mlflow", "pip install mlflow"),
}


def check_trackers(names: Sequence[str]) -> None:
    """Raise `UsageError` for a tracker that is unknown, or whose package is not installed, naming the remedy."""
    for name in names:
        TRACKERS.get(name)
        if name in PACKAGES and not _installed(PACKAGES[name][0]):
            raise UsageError(f"--track {name} needs the package {PACKAGES[name][0]}: {PACKAGES[name][1]}")


def _installed(package: str) -> bool:
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None  # a folder of that name (wandb makes one) is no package


@dataclasses.dataclass
class Follower:
    """A tracker, and how far it has been told."""

    name: str
    tracker: Tracker
    identity: str = ""
    step: int = -1
    pictures: list[str] = dataclasses.field(default_factory=list)
    finished: bool = False
    opened: bool = False


class Tracking:
    """The trackers called `names` of the run in `folder`; a block that closes them at its end.

    Raises `UsageError` where one is unknown or its package is not installed. Whatever a tracker raises later ends its
    part in this process, with a note on stderr.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        check_trackers(names)
        self.folder = folder
        self.followers = [Follower(name, TRACKERS.load(name)()) for name in dict.fromkeys(names)]
        if self.followers and (folder / "tracking.json").exists():
            self._recall()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for follower in list(self.followers):
            if follower.opened:
                self._guarded(follower, lambda f: f.tracker.close(f.finished))
        self.followers = []

    def follow(self) -> None:
        """Tell each tracker what the folder holds and it has not been told."""
        for follower in list(self.followers):
            self._guarded(follower, self._tell)

    def _guarded(self, follower: Follower, act: Callable[[Follower], None]) -> None:
        try:
            act(follower)
        except Exception as error:  # a tracker's network, disk or service is no reason to stop a run
            reason = " ".join(str(error).split())[:200]
            print(
                f"note: {follower.name} is not told any more ({type(error).__name__}: {reason}); the run goes on, and "
                "the same command tells the rest another time",
                file=sys.stderr,
            )
            self.followers.remove(follower)

    def _tell(self, follower: Follower) -> None:
        if follower.finished or not (self.folder / "data.json").exists():
            return
        tracker = follower.tracker
        if not follower.opened:
            follower.identity = tracker.begin(self._beginning(follower))
            follower.opened = True
            self._remember(follower)
        for record in read_json_lines(self.folder / "metrics.jsonl"):
            if record["step"] > follower.step:
                values = numbers({name: value for name, value in record.items() if name != "step"})
                tracker.record(record["step"], values)
                follower.step = record["step"]
                self._remember(follower)
        for name, path in pictures(self.folder):
            if name not in follower.pictures:
                tracker.picture(name, max(follower.step, 0), path)
                follower.pictures.append(name)
                self._remember(follower)
        if (self.folder / "result.json").exists():
            tracker.finish(max(follower.step, 0), numbers(read_json(self.folder / "result.json")))
            follower.finished = True
            self._remember(follower)

    def _beginning(self, follower: Follower) -> Beginning:
        options = scalars(load_toml(self.folder / "config.toml"))
        data = read_json(self.folder / "data.json")["name"]
        target = options.get("target", "all")
        name = f"{data}-{options['algorithm']}-{target}-t{options['trial']}-s{options['seed']}"
        return Beginning(self.folder, name, data, options, follower.identity, follower.step)

    def _recall(self) -> None:
        for follower in list(self.followers):
            self._guarded(follower, self._recall_one)

    def _recall_one(self, follower: Follower) -> None:
        kept: dict[str, Any] = read_json(self.folder / "tracking.json").get(follower.name, {})
        follower.identity, follower.step = str(kept.get("identity", "")), int(kept.get("step", -1))
        follower.pictures, follower.finished = list(kept.get("pictures", [])), bool(kept.get("finished", False))

    def _remember(self, follower: Follower) -> None:
        path = self.folder / "tracking.json"
        kept = read_json(path) if path.exists() else {}
        kept[follower.name] = {
            "identity": follower.identity, "step": follower.step, "pictures": follower.pictures,
            "finished": follower.finished,
        }  # fmt: skip
        write_json(path, kept)


def pictures(folder: Path) -> Iterator[tuple[str, Path]]:
    """(name, file) of a run's pictures: a sheet of each generation, and where the LDM's noise lies."""
    for path in sorted(folder.glob("synthetic/generation-*[0-9]/sheet.png")):
        yield f"synthetic/{path.parent.name}", path
    if (folder / "ld_noise.png").exists():
        yield "ld_noise", folder / "ld_noise.png"
