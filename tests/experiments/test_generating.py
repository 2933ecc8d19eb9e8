"""Candidates made ahead: the ones that a run would make, in shards, and as a data set of pictures."""

from __future__ import annotations

import csv
import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from counting import count_images_read
from domainfusion.algorithms.domainfusion import DomainFusion
from domainfusion.config import DataConfig, GenerateConfig, TrainConfig
from domainfusion.data.domains import load_dataset
from domainfusion.data.transforms import from_uint8, to_uint8
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.diffusion.prompts import allowed_styles
from domainfusion.errors import FileError, UsageError
from domainfusion.experiments.candidate_folder import COLUMNS, CandidateFolder
from domainfusion.experiments.generating import (
    candidates_address,
    candidates_part,
    generate_candidates,
    generation_text,
)
from domainfusion.experiments.runs import build_algorithm, build_context
from domainfusion.files import cache_folder
from domainfusion.fusion import candidates as candidates_module
from domainfusion.fusion.candidates import Recipe, candidates_of, make_candidates, recipes_of


@pytest.fixture
def images(make_image_folder: Callable[..., Path]) -> Path:
    return make_image_folder("few", count=2)


@pytest.fixture
def config(tiny_pipeline: Path) -> TrainConfig:
    generate = GenerateConfig(candidates=2, steps=2, batch_size=8, updating=False)
    return TrainConfig(
        ldm=str(tiny_pipeline), precision="float32", device="cpu", data=DataConfig(size=32), generate=generate
    )


def test_few_images_are_in_memory_at_once(images: Path, config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    few = dataclasses.replace(config, generate=dataclasses.replace(config.generate, batch_size=1))
    read = count_images_read(monkeypatch)
    assert generate_candidates(str(images), few)["candidates"] == 2 * 18
    assert sum(read) == 18
    assert max(read) == 2


def test_images_of_held_out_domains_are_left_out(images: Path, config: TrainConfig) -> None:
    dataset = load_dataset(str(images), config.data)
    target = dataset.domains[0]
    rest = len(dataset) - len(dataset.rows(0))
    first = generate_candidates(str(images), dataclasses.replace(config, target=target), shard=(0, 2))
    second = generate_candidates(str(images), dataclasses.replace(config, target=target), shard=(1, 2))
    assert first["images"] + second["images"] == rest
    both = dataclasses.replace(config, target=target, second_target=dataset.domains[1])
    assert generate_candidates(str(images), both)["images"] == rest - len(dataset.rows(1))


def test_a_run_finds_all_of_them(images: Path, config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    first = generate_candidates(str(images), config, generations=2, shard=(0, 2))
    second = generate_candidates(str(images), config, generations=2, shard=(1, 2))
    dataset = load_dataset(str(images), config.data)
    assert first["images"] + second["images"] == len(dataset)
    assert first["candidates"] == first["images"] * 2 * 2

    def nothing(*arguments: object) -> None:
        raise AssertionError("a candidate was made again")

    monkeypatch.setattr(candidates_module, "make_candidates", nothing)
    ldm = LatentDiffusion.load(config.ldm, precision="float32")
    for number in range(2):
        rows = np.arange(len(dataset))
        parts = candidates_of(
            ldm, dataset, rows, dataset.images, config.generate, number=number, styles=ldm.styles, stored=True
        )
        assert sum(len(found) for _, _, found in parts) == len(dataset)
    again = generate_candidates(str(images), config, generations=2)
    assert again["candidates"] == len(dataset) * 2 * 2
    assert "72 candidates of 18 images" in generation_text(again)


def test_other_machines_make_what_a_run_asks_for(
    make_image_folder: Callable[..., Path], config: TrainConfig, tmp_path: Path
) -> None:
    """Address and candidates, where no more candidates are needed than one, and two domains are held out."""
    data = str(make_image_folder("styled", domains=("flat", "ink", "photo"), count=2))
    generate = dataclasses.replace(config.generate, sampling=False)
    options = dataclasses.replace(
        config, target="ink", second_target="flat", steps=4, backbone="test_resnet", distill_weight=0.0,
        generate=generate,
    )  # fmt: skip
    algorithm = build_algorithm(build_context(data, options, tmp_path / "run", progress=False))
    assert isinstance(algorithm, DomainFusion)
    algorithm.before_step(3, 3)
    folder = cache_folder() / "candidates"
    made = {path.name.removesuffix(".done.npy") for path in folder.glob("*.done.npy")}
    assert {Path(candidates_address(data, options, number)).stem for number in range(3)} == made
    kept = np.load(folder / candidates_address(data, options, 1))[algorithm.rows]
    assert np.array_equal(candidates_part(data, options, 1, algorithm.rows), kept)
    generate_candidates(data, options, generations=3)
    assert len(list(folder.glob("*.done.npy"))) == 3


def test_as_a_data_set_of_pictures(images: Path, config: TrainConfig, tmp_path: Path) -> None:
    found = generate_candidates(str(images), config, output=tmp_path / "made")
    made = load_dataset(str(tmp_path / "made"), config.data)
    original = load_dataset(str(images), config.data)
    assert len(made) == found["files"] == 2 * len(original)
    assert made.domains == original.domains
    assert made.classes == original.classes
    assert np.bincount(made.labels).tolist() == (2 * np.bincount(original.labels)).tolist()
    with Image.open(next((tmp_path / "made").rglob("*-g0-c1.png"))) as image:
        assert image.size == (32, 32)


def table_of(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metadata.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_each_picture_tells_what_it_was_made_of(images: Path, config: TrainConfig, tmp_path: Path) -> None:
    """Shards and generations one after the other, told in one table; the recipe gives the picture again."""
    made = tmp_path / "made"
    for shard in range(2):
        generate_candidates(str(images), config, generations=2, shard=(shard, 2), output=made)
    rows = table_of(made)
    assert len(rows) == 18 * 2 * 2
    assert sorted(row["file_name"] for row in rows) == sorted(
        path.relative_to(made).as_posix() for path in made.rglob("*.png")
    )
    dataset = load_dataset(str(images), config.data)
    ldm = LatentDiffusion.load(config.ldm, precision="float32")
    styles = allowed_styles(ldm.styles, None, None)
    for row in rows:
        assert (images / row["source"]).is_file()
        domain, label, name = row["source"].split("/")
        stem = name.removesuffix(".png")
        assert row["file_name"] == f"{domain}/{label}/{stem}-g{row['generation']}-c{row['candidate']}.png"
        assert (row["domain"], row["label"]) == (domain, label)
        number = dataset.keys.index(row["source"])
        expected = recipes_of(dataset, np.array([number]), config.generate, int(row["generation"]), styles)[0]
        assert row["prompt"] == expected.prompts[int(row["candidate"])]
        assert float(row["strength"]) == pytest.approx(float(expected.strengths[0]), abs=1e-6)
        assert int(row["seed"]) == expected.seed
    one = rows[5]
    row, c = dataset.keys.index(one["source"]), int(one["candidate"])
    again = Recipe([one["prompt"]] * 2, torch.tensor([float(one["strength"])] * 2), int(one["seed"]))
    pixels = to_uint8(make_candidates(ldm, from_uint8(dataset.images[[row]]), [again], config.generate))[0, c]
    with Image.open(made / one["file_name"]) as image:
        assert np.abs(np.asarray(image).astype(int) - pixels).max() <= 1


def test_hostile_and_equal_names_stay_apart_and_safe(images: Path, config: TrainConfig, tmp_path: Path) -> None:
    """Names of classes and domains come from metadata, where they may be anything; files have any name at all."""
    root = tmp_path / "odd"
    up = "../../../evil"
    sources = [
        ("a/1.png", up, "photo"), ("b/1.png", up, "photo"), ("b/1.bmp", up, "photo"), ("x/Cat.PNG", "cat", "."),
        ("x/" + "\u00fc" * 100 + ".png", "/etc", "photo"), ("x/line\nbreak.png", "CON", "photo"),
        ("x/-rf.png", "cat", "."), ("y/cat.png", "CAT", "."), ("y/what?*:.png", "CAT", "a/b"),
        ("y/.png", "cat", "a_b"), ("y/v1.2.tar.png", "cat", "a_b"),
    ]  # fmt: skip
    with open(tmp_path / "odd.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "label", "domain"])
        writer.writerows(sources)
    for number, (name, _, _) in enumerate(sources):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number * 20, 0, 0)).save(root / name, format="PNG")
    (tmp_path / "odd.csv").rename(root / "metadata.csv")
    before = set(tmp_path.rglob("*"))
    made = tmp_path / "deep" / "made"
    found = generate_candidates(str(root), config, output=made)
    new = {path for path in tmp_path.rglob("*.png") if path not in before}
    assert len(new) == found["files"] == 2 * len(sources)
    assert all(made in path.parents for path in new)
    names = [path.relative_to(made).as_posix() for path in new]
    assert len({name.casefold() for name in names}) == len(names)
    for name in names:
        assert re.fullmatch(r"[\w.,+()\[\] -]+/[\w.,+()\[\] -]+/[\w.,+()\[\] -]+-g0-c[01]\.png", name), name
        assert all(len(part.encode()) < 160 and not part.startswith(("-", ".")) for part in name.split("/"))
    original, read = load_dataset(str(root), config.data), load_dataset(str(made), config.data)
    assert (read.domains, read.classes) == (original.domains, original.classes)  # as they are, not as folders are named
    assert np.bincount(read.labels).tolist() == (2 * np.bincount(original.labels)).tolist()
    assert {row["source"] for row in table_of(made)} == set(original.keys)
    by_source = {row["source"]: row["file_name"] for row in table_of(made)}
    assert by_source["y/v1.2.tar.png"] == "a_b/cat/v1.2.tar-g0-c1.png"
    assert by_source["y/cat.png"].split("/")[2].startswith("cat-")


def test_a_table_of_something_else_is_left_alone(images: Path, config: TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text("file_name,label,domain\n")
    with pytest.raises(UsageError, match=r"metadata\.csv tells of something else than candidates"):
        generate_candidates(str(images), config, output=tmp_path)
    assert (tmp_path / "metadata.csv").read_text() == "file_name,label,domain\n"
    for row in ("a.png", "a.png" + ",b" * 9):
        (tmp_path / "metadata.csv").write_text(",".join(COLUMNS) + f"\n{row}\n")
        with pytest.raises(FileError, match=r"metadata\.csv is damaged \(row 1\)"):
            generate_candidates(str(images), config, output=tmp_path)


def test_what_was_written_before_a_stop_is_told_of(
    images: Path, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(config, generate=dataclasses.replace(config.generate, batch_size=2))
    generate_candidates(str(images), config)
    original = CandidateFolder.write

    def stopping(self: CandidateFolder, *arguments: Any) -> int:
        if len(self.rows) >= 16:
            raise KeyboardInterrupt
        return original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(CandidateFolder, "write", stopping)
        with pytest.raises(KeyboardInterrupt):
            generate_candidates(str(images), config, output=tmp_path / "made")
    assert len(table_of(tmp_path / "made")) == len(list((tmp_path / "made").rglob("*.png"))) == 16
    generate_candidates(str(images), config, output=tmp_path / "made")
    assert len(table_of(tmp_path / "made")) == 36


def test_what_cannot_be_made_ahead_is_refused(images: Path, config: TrainConfig) -> None:
    updating = TrainConfig(ldm=config.ldm, data=config.data, generate=GenerateConfig(updating=True))
    with pytest.raises(UsageError, match=r"--generate\.no-updating"):
        generate_candidates(str(images), updating, generations=2)
    with pytest.raises(UsageError, match="--shard 2 2 is not I N"):
        generate_candidates(str(images), config, shard=(2, 2))
    with pytest.raises(UsageError, match="--generations 0"):
        generate_candidates(str(images), config, generations=0)
