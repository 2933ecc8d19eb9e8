"""A table of a data set's rows in a folder, as files of 64 rows each: atomic, with checksums, filled as rows are asked
for, by as many processes as like to."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from domainfusion.claims import claim_each
from domainfusion.errors import FileError, show_note
from domainfusion.locks import locked
from domainfusion.tensors import load_state, save_state

SHARD = 64  # rows in a file


class ShardedTable:
    """Tensors by row, on disk.

    Args:
        folder: where the files are; made by whoever writes first.
        content: what a row holds, for the note about a damaged file ("curves").
    """

    def __init__(self, folder: Path, content: str) -> None:
        self.folder, self.content = folder, content

    def path(self, number: int) -> Path:
        """The file of rows `number`·SHARD and following."""
        return self.folder / f"shard-{number:05d}.safetensors"

    def read(self, path: Path) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Rows (n,) of a file and their tensors; a damaged file is set aside, said so, and counts as empty ({})."""
        try:
            return self._load(path)
        except FileError:  # by one process; the others find that it is gone, or made again
            with locked(self._lock(path)):
                return self._load_or_set_aside(path)

    def _lock(self, path: Path) -> Path:
        """The lock of a file: `.00007.lock` of `shard-00007.safetensors`."""
        return self.folder / f".{path.stem.removeprefix('shard-')}.lock"

    def _load(self, path: Path) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        if not path.exists():
            return torch.zeros(0, dtype=torch.int64), {}
        found = load_state(path)
        return found.pop("row"), found

    def _load_or_set_aside(self, path: Path) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """`read` for a process that has the file's lock."""
        try:
            return self._load(path)
        except FileError as error:
            path.replace(path.with_suffix(".damaged"))
            show_note(f"{error}; its {self.content} are computed again")
            return self._load(path)

    def read_all(self) -> Iterator[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
        """Rows and tensors of every file that holds some."""
        for path in sorted(self.folder.glob("shard-*.safetensors")):
            rows, found = self.read(path)
            if len(rows):
                yield rows, found

    def write(self, number: int, rows: torch.Tensor, found: dict[str, torch.Tensor]) -> None:
        """Put rows (n,) into a file; processes that write the same one wait for each other, and none is lost.

        NaN stands for what is not known: it takes the place of no value. Where tensors by row are of other sizes than
        those in the file, both have the larger ones from then on, filled up with NaN.
        """
        with locked(self._lock(self.path(number))):
            old_rows, old = self._load_or_set_aside(self.path(number))
            merged: dict[str, Any] = {
                name: _merged(old_rows, old[name], rows, value) if len(old_rows) else value
                for name, value in found.items()
            }
            merged["row"] = torch.cat([old_rows[~torch.isin(old_rows, rows)], rows])
            save_state(self.path(number), merged)

    def claim(
        self, numbers: Iterable[int], *, on_wait: Callable[[], object] | None = None
    ) -> Generator[int, None, None]:
        """Each of the files `numbers`, kept from others that claim theirs (`domainfusion.claims.claim_each`)."""
        return claim_each(self.folder / "claims", numbers, on_wait=on_wait)


def _merged(old_rows: torch.Tensor, old: torch.Tensor, rows: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """Tensors `old` of rows (m,) that are not among rows (n,), and behind them `new`, its NaN filled from `old`."""
    sizes = [max(pair) for pair in zip(old.shape[1:], new.shape[1:], strict=True)]
    old, new = _grown(old, sizes), _grown(new, sizes)
    again = torch.isin(rows, old_rows)
    if new.is_floating_point() and again.any():
        place = {row: i for i, row in enumerate(old_rows.tolist())}
        before = old[[place[row] for row in rows[again].tolist()]]
        new = new.clone()
        new[again] = torch.where(new[again].isnan(), before, new[again])
    return torch.cat([old[~torch.isin(old_rows, rows)], new])


def _grown(values: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """Values (n, ...) in the corner of (n, *sizes), the rest NaN."""
    if list(values.shape[1:]) == sizes:
        return values
    result = values.new_full((len(values), *sizes), torch.nan)
    result[tuple(slice(size) for size in values.shape)] = values
    return result
