"""Generations on disk: written, loaded back, readable as a data set, and refused where damaged."""

from __future__ import annotations

import csv
import dataclasses
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from domainfusion.config import DataConfig
from domainfusion.data.domains import MultiDomainDataset, load_folder
from domainfusion.errors import FileError
from domainfusion.fusion.synthetic import Generation, SyntheticDataset, hash_of_pixels, load_generation

SIZE = 8


@pytest.fixture
def dataset() -> MultiDomainDataset:
    rng = np.random.default_rng(0)
    return MultiDomainDataset(
        name="toy", domains=("cartoon", "photo"), classes=("cat", "dog"),
        images=rng.integers(0, 256, (8, SIZE, SIZE, 3), dtype=np.uint8), labels=np.array([0, 1] * 4),
        domain_of=np.array([0] * 4 + [1] * 4), keys=tuple(f"image {i}" for i in range(8)), fingerprint="f",
    )  # fmt: skip


def make(number: int, rows: tuple[int, ...] = (0, 1, 4, 5, 7), sheet: bool = True) -> Generation:
    rng = np.random.default_rng(number)
    images = rng.integers(0, 256, (len(rows), SIZE, SIZE, 3), dtype=np.uint8)
    lineage = [{"row": str(row), "source": f'a "quoted", name {row}', "content_prompt": "cat, ink"} for row in rows]
    return Generation(number, np.array(rows), images, lineage, images[0] if sheet else None)


def test_a_generation_is_loaded_back_as_it_was_written(tmp_path: Path, dataset: MultiDomainDataset) -> None:
    written = make(0)
    store = SyntheticDataset(tmp_path / "synthetic")
    assert (store.count, store.latest) == (0, None)
    store.add(written, dataset)
    folder = tmp_path / "synthetic" / "generation-00"
    for found in (store.latest, load_generation(folder), SyntheticDataset(tmp_path / "synthetic").latest):
        assert found is not None
        assert isinstance(found.images, np.memmap)
        assert found.number == 0
        assert found.rows.dtype == np.int64
        assert np.array_equal(found.rows, written.rows)
        assert np.array_equal(found.images, written.images)
        assert found.lineage == written.lineage
    assert np.array_equal(np.asarray(Image.open(folder / "sheet.png")), written.images[0])
    store.add(make(1, sheet=False), dataset)
    assert not (tmp_path / "synthetic" / "generation-01" / "sheet.png").exists()
    assert not list((tmp_path / "synthetic").glob(".*"))


def test_images_of_a_generation_are_on_disk_as_they_are_made(tmp_path: Path, dataset: MultiDomainDataset) -> None:
    written, store = make(0), SyntheticDataset(tmp_path)
    with store.room(0, len(written.rows), SIZE) as images:
        images[:] = written.images
    inode = (tmp_path / ".generation-00.tmp" / "images.npy").stat().st_ino
    store.add(dataclasses.replace(written, images=images), dataset)
    assert (store.path(0) / "images.npy").stat().st_ino == inode  # written once
    assert np.array_equal(load_generation(store.path(0)).images, written.images)
    with pytest.raises(KeyboardInterrupt), store.room(1, len(written.rows), SIZE):
        raise KeyboardInterrupt
    assert not list(tmp_path.glob(".*"))


def test_no_room_for_a_generation_is_said_before_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", fail)
    with pytest.raises(FileError, match="generation-00: No space left"), SyntheticDataset(tmp_path).room(0, 5, SIZE):
        raise AssertionError("the block ran")
    assert not list(tmp_path.glob(".*"))


def test_its_folder_is_a_data_set(tmp_path: Path, dataset: MultiDomainDataset) -> None:
    written = make(0)
    SyntheticDataset(tmp_path).add(written, dataset)
    read = load_folder(tmp_path / "generation-00", DataConfig(size=SIZE))
    assert (read.domains, read.classes) == (dataset.domains, dataset.classes)
    assert len(read) == len(written.rows)
    for i, key in enumerate(read.keys):
        position = written.rows.tolist().index(int(Path(key).stem))
        row = written.rows[position]
        assert np.array_equal(read.images[i], written.images[position])
        assert (read.labels[i], read.domain_of[i]) == (dataset.labels[row], dataset.domain_of[row])


def test_every_generation_is_kept_and_the_newest_is_used(tmp_path: Path, dataset: MultiDomainDataset) -> None:
    store = SyntheticDataset(tmp_path)
    for number in (0, 1, 2, 98, 99, 100, 101):  # by number, not by name
        store.add(make(number), dataset)
    again = SyntheticDataset(tmp_path)
    assert again.count == store.count == 102
    assert np.array_equal(again.latest.images, make(101).images)
    assert np.array_equal(load_generation(store.path(1)).images, make(1).images)


def test_rewind_and_advance(tmp_path: Path, dataset: MultiDomainDataset) -> None:
    store = SyntheticDataset(tmp_path)
    for number in range(3):
        store.add(make(number), dataset)
    store.rewind(5)
    assert store.count == 3
    store.rewind(2)
    assert np.array_equal(store.latest.images, make(1).images)
    assert store.advance()
    assert np.array_equal(store.latest.images, make(2).images)
    assert not store.advance()
    assert store.count == 3
    store.rewind(0)
    assert (store.count, store.latest) == (0, None)
    assert store.advance()
    assert store.count == 1


def test_what_is_unfinished_or_foreign_is_ignored(tmp_path: Path, dataset: MultiDomainDataset) -> None:
    store = SyntheticDataset(tmp_path)
    store.add(make(0), dataset)
    store.add(make(1), dataset)
    shutil.copytree(store.path(1), tmp_path / ".generation-02.tmp")
    shutil.copytree(store.path(1), tmp_path / "generation-old")
    store.path(3).mkdir()
    assert SyntheticDataset(tmp_path).count == 2
    assert not SyntheticDataset(tmp_path).advance()
    # Leftovers of a killed run do not end up in what is made next.
    (tmp_path / ".generation-02.tmp" / "leftover.txt").write_text("x")
    again = SyntheticDataset(tmp_path)
    again.add(make(2), dataset)
    assert not (again.path(2) / "leftover.txt").exists()
    assert not (tmp_path / ".generation-02.tmp").exists()


def test_a_failed_write_leaves_what_was_there(
    tmp_path: Path, dataset: MultiDomainDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SyntheticDataset(tmp_path)
    store.add(make(0), dataset)

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", fail)
        with pytest.raises(FileError, match="No space left on device"):
            store.add(make(1), dataset)
    assert store.count == 1
    assert SyntheticDataset(tmp_path).count == 1
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("images.npy", b""), ("images.npy", b"no array"), ("generation.json", b"{"), ("generation.json", b"{}"),
        ("generation.json", b"[]"), ("generation.json", b'{"number": 0, "rows": [1, 2]}'),
        ("generation.json", b'{"number": 0, "rows": ["x"]}'), ("generation.json", None),
        ("lineage.csv", b"row\n0\n"), ("lineage.csv", b"\xff\xfe\x00"), ("lineage.csv", None),
    ],
)  # fmt: skip
def test_a_damaged_generation_is_named_and_set_aside(
    tmp_path: Path, dataset: MultiDomainDataset, capsys: pytest.CaptureFixture[str], name: str, content: bytes | None
) -> None:
    store = SyntheticDataset(tmp_path)
    store.add(make(0), dataset)
    if content is None:
        (store.path(0) / name).unlink()
    else:
        (store.path(0) / name).write_bytes(content)
    with pytest.raises(FileError, match=r"generation-00 is damaged .*delete the folder to make it again"):
        load_generation(store.path(0))
    store.add(make(1), dataset)
    again = SyntheticDataset(tmp_path)
    again.rewind(1)
    assert (again.count, again.latest) == (0, None)
    assert "generation-00 is damaged" in capsys.readouterr().err
    assert (tmp_path / "generation-00.damaged").is_dir()
    again.add(make(0), dataset)
    assert SyntheticDataset(tmp_path).path(0).is_dir()


def with_checksums(generation: Generation) -> Generation:
    lineage = [
        {**record, "sha256": hash_of_pixels(image)}
        for record, image in zip(generation.lineage, generation.images, strict=True)
    ]
    return dataclasses.replace(generation, lineage=lineage)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "other"])
def test_damaged_images_are_named_and_taken_from_their_pictures(
    tmp_path: Path, dataset: MultiDomainDataset, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    store, made = SyntheticDataset(tmp_path), with_checksums(make(0))
    store.add(made, dataset)
    path = store.path(0) / "images.npy"
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    changed = {"truncated": content[:-20], "flipped": content, "empty": b""}
    path.write_bytes(changed.get(damage, b""))
    if damage == "other":
        np.save(path, made.images.astype(np.float32))
    assert np.array_equal(load_generation(store.path(0)).images, made.images)
    assert "images.npy was damaged" in capsys.readouterr().err
    (picture,) = store.path(0).rglob("000007.png")  # the last row's, whose pixels were flipped
    Image.fromarray(made.images[0]).save(picture)
    with pytest.raises(FileError, match="damaged"):
        load_generation(store.path(0))


def test_without_checksums_truncated_images_are_refused(tmp_path: Path, dataset: MultiDomainDataset) -> None:
    store = SyntheticDataset(tmp_path)
    store.add(make(0), dataset)
    path = store.path(0) / "images.npy"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(FileError, match="damaged"):
        load_generation(store.path(0))


def test_names_cannot_leave_the_folder(tmp_path: Path, dataset: MultiDomainDataset) -> None:
    odd = dataclasses.replace(dataset, domains=("a/b", "c\\d\n"), classes=("../../up", ""))
    store = SyntheticDataset(tmp_path / "synthetic")
    store.add(make(0), odd)
    written = [path.relative_to(store.path(0)) for path in (tmp_path).rglob("*.png") if path.name != "sheet.png"]
    assert len(written) == 5
    assert all(len(path.parts) == 3 for path in written)
    assert {path.parts[0] for path in written} == {"a_b", "c_d_"}
    assert {path.parts[1] for path in written} == {"_._.._up", "_"}
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["synthetic"]


@pytest.mark.parametrize("name", [".", ".."])
def test_names_that_mean_folders_are_made_safe(tmp_path: Path, dataset: MultiDomainDataset, name: str) -> None:
    odd = dataclasses.replace(dataset, domains=(name, "photo"), classes=(name, "dog"))
    SyntheticDataset(tmp_path / "synthetic").add(make(0), odd)
    written = [path.relative_to(tmp_path / "synthetic" / "generation-00") for path in tmp_path.rglob("0*.png")]
    assert len(written) == 5
    assert all(len(path.parts) == 3 and not set(path.parts) & {".", ".."} for path in written)


def test_lineage_is_a_csv_that_others_read(tmp_path: Path, dataset: MultiDomainDataset) -> None:
    SyntheticDataset(tmp_path).add(make(0), dataset)
    with open(tmp_path / "generation-00" / "lineage.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["row", "source", "content_prompt"]
    assert rows[1] == ["0", 'a "quoted", name 0', "cat, ink"]
