"""A run goes on with its own options and data alone; which may be others none the less."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from domainfusion.config import CDGAConfig, DataConfig, DSIConfig, GenerateConfig, TrainConfig, ZeroShotConfig
from domainfusion.config.settings import OURS
from domainfusion.config_files import to_toml
from domainfusion.errors import UsageError
from domainfusion.experiments.run_folder import refuse_other_options
from domainfusion.files import read_json
from domainfusion.registry import ALGORITHMS
from short_runs import run, train_until


class TestOtherOptions:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"steps": 9}, "steps = 8, not 9"),
            ({"lr": 2e-3}, "lr = 0.001, not 0.002"),
            ({"target": None}, "target = 'sketch', not None"),
            ({"data": DataConfig(size=32, jitter=0.5)}, "data.jitter = 0.3, not 0.5"),
        ],
    )
    @pytest.mark.parametrize("finished", [True, False])
    def test_they_are_refused_by_name(
        self, images: Path, tmp_path: Path, changes: dict[str, Any], message: str, finished: bool
    ) -> None:
        folder = tmp_path / "run"
        if finished:
            run(images, folder)
        else:
            train_until(images, folder, 1)
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        with pytest.raises(UsageError) as caught:
            run(images, folder, **changes)
        assert str(caught.value) == (
            f"{folder} holds a run with {message}; choose another --output, or give its own options to go on "
            f"(--config {folder / 'config.toml'})"
        )
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before

    def test_how_much_the_ldm_does_at_once_may_change(self, images: Path, whole: Path) -> None:
        other = ZeroShotConfig(batch_size=7), DSIConfig(batch_size=7), GenerateConfig(batch_size=7, worker="off")
        result = run(images, whole, **dict(zip(("zero_shot", "dsi", "generate"), other, strict=True)))
        assert result == read_json(whole / "result.json")

    def test_other_data_is_refused(self, images: Path, whole: Path, make_image_folder: Callable[..., Path]) -> None:
        other = make_image_folder("other")
        with pytest.raises(UsageError, match=r"holds a run on .*/images; choose another --output"):
            run(other, whole)

    def test_a_folder_of_images_that_was_moved_goes_on_where_it_is(
        self, make_image_folder: Callable[..., Path], whole: Path, tmp_path: Path
    ) -> None:
        images, folder = make_image_folder("images"), tmp_path / "run"
        train_until(images, folder, 3)
        moved = images.rename(tmp_path / "moved")
        run(moved, folder)
        found, expected = (load_file(run_folder / "model.safetensors") for run_folder in (folder, whole))
        assert all(torch.equal(value, found[name]) for name, value in expected.items())
        assert read_json(folder / "data.json")["data"] == str(moved)
        (moved / "photo" / "dog" / "00.png").unlink()
        again = moved.rename(tmp_path / "again")
        with pytest.raises(UsageError, match=r"again are not those with which the run in .*/run began; choose another"):
            run(again, folder)

    def test_names_with_line_breaks_and_quotes_are_kept(
        self, make_image_folder: Callable[..., Path], tmp_path: Path
    ) -> None:
        domains = ('tar"get\n[x]', "a b", "c'd 🐱")
        data = make_image_folder("new\nline = 3", domains=domains)
        first = run(data, tmp_path / "run", target=domains[0], steps=2, evaluations=1)
        assert run(data, tmp_path / "run", target=domains[0], steps=2, evaluations=1) == first
        assert first["target"] == domains[0]


@pytest.mark.parametrize(
    ("algorithm", "options", "refused"),
    [
        ("erm", {"zero_shot": ZeroShotConfig(images=4)}, ""), ("domainfusion", {"dsi": DSIConfig(steps=5)}, ""),
        ("cdga", {"zero_shot": ZeroShotConfig(images=4)}, ""), ("cdga", {"cdga": CDGAConfig(steps=5)}, "cdga.steps"),
        ("diffusion_net", {"zero_shot": ZeroShotConfig(images=4)}, "zero_shot.images"),
        ("my.module:Algorithm", {"zero_shot": ZeroShotConfig(images=4)}, "zero_shot.images"),
    ],
)  # fmt: skip
def test_options_that_an_algorithm_does_not_read_may_change(
    tmp_path: Path, algorithm: str, options: dict[str, Any], refused: str
) -> None:
    """`reproduce table5` with options for its zero-shot rows, where `reproduce table3` has made the others."""
    config = TrainConfig(algorithm=algorithm, target="ink")
    (tmp_path / "config.toml").write_text(to_toml(config), encoding="utf-8")
    changed = dataclasses.replace(config, **options)
    if refused:
        with pytest.raises(UsageError, match=f"holds a run with {refused} = "):
            refuse_other_options(tmp_path, "pictograms", changed)
    else:
        refuse_other_options(tmp_path, "pictograms", changed)


def test_the_list_of_our_algorithms_is_whole() -> None:
    assert all(
        entry.location.startswith("domainfusion.") == (name in OURS) for name, entry in ALGORITHMS.entries.items()
    )


@pytest.mark.parametrize(
    ("algorithm", "options", "refused"),
    [
        ("domainfusion", {}, True), ("domainfusion", {"generate": GenerateConfig(recombination=False)}, False),
        ("domainfusion", {"generate": GenerateConfig(updating=True)}, False),
        ("domainfusion", {"synthetic_weight": 0.0}, False), ("erm", {}, False),
    ],
)  # fmt: skip
def test_runs_of_before_recombination_are_not_taken_for_runs_with_it(
    tmp_path: Path, algorithm: str, options: dict[str, Any], refused: bool
) -> None:
    config = TrainConfig(algorithm=algorithm, target="ink", **options)
    text = to_toml(config)
    assert "recombination" in text
    old = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("recombination"))
    (tmp_path / "config.toml").write_text(old, encoding="utf-8")
    if refused:
        with pytest.raises(UsageError, match=r"holds a run with generate.recombination = False, not True"):
            refuse_other_options(tmp_path, "pictograms", config)
    else:
        refuse_other_options(tmp_path, "pictograms", config)
    (tmp_path / "config.toml").write_text(text, encoding="utf-8")
    refuse_other_options(tmp_path, "pictograms", config)
