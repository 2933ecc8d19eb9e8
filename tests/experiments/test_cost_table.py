"""Table 1 against counts made by hand, and the paper's figures drawn on a tiny real pipeline."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from PIL import Image

from domainfusion.config import CDGAConfig, DataConfig, DSIConfig, GenerateConfig, TrainConfig
from domainfusion.data.domains import load_dataset
from domainfusion.data.splits import build_split
from domainfusion.experiments.cost_table import METHODS, cost_rows, count_method, measure_costs, needed_images
from domainfusion.experiments.costs import GPUS, UTILISATION, PassCosts
from domainfusion.experiments.paper_figures import draw_figure, spread_rows
from domainfusion.experiments.reproducing import reproduce
from domainfusion.files import read_json

CONFIG = TrainConfig(
    steps=40, batch_size=4, device="cpu", precision="float32", data=DataConfig(size=16),
    generate=GenerateConfig(candidates=2, interval=5, steps=2),
    dsi=DSIConfig(tune_steps=7, tune_batch_size=3, steps=4, starts=(0.25, 0.5)), cdga=CDGAConfig(candidates=3, steps=2),
)  # fmt: skip


@pytest.fixture
def config(tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    monkeypatch.setenv("DOMAINFUSION_CACHE", str(tmp_path / "cache"))
    return dataclasses.replace(CONFIG, ldm=str(tiny_pipeline))


def test_images_for_a_target_are_counted(image_folder: Path, config: TrainConfig) -> None:
    """3 domains of 36 images, 20 % held out: two sources of 29 training images, and a target of 29."""
    dataset = load_dataset(str(image_folder), config.data)
    split = build_split(dataset, config.data, "photo", 0)
    # 40 steps of 4 images from 29: 5.7 epochs, fewer than 15, so that generations begin at 1, 4 and 7 tenths.
    assert needed_images(dataset, split, config) == {
        "dsi": {"fine_tuned": 2 * 7 * 3, "generated": 29 * 2 * 2}, "cdga": {"fine_tuned": 0, "generated": 58 * 2 * 3},
        "domainfusion": {"fine_tuned": 0, "generated": 58 * 2 * 3},
    }  # fmt: skip


def test_epochs_are_counted_in_the_steps_that_they_come_to(image_folder: Path, config: TrainConfig) -> None:
    """60 epochs of 58 / 8 = 7 steps: a generation every 5, the last of them in the 50th."""
    dataset = load_dataset(str(image_folder), config.data)
    split = build_split(dataset, config.data, "photo", 0)
    found = needed_images(dataset, split, dataclasses.replace(config, epochs=60))
    assert found["domainfusion"]["generated"] == 58 * 2 * 11
    assert found == needed_images(dataset, split, dataclasses.replace(config, steps=60 * 7))


def test_operations_are_those_of_the_papers_images() -> None:
    passes = PassCosts(unet=1e12, encoder=2e11, decoder=3e11, text_encoder=0.0)
    dsi, cdga, ours = METHODS
    assert count_method(dsi, passes, 50) == (538_446 * 3.2e12, 244_000 * 50.5e12)
    assert count_method(cdga, passes, 50) == (0, 4_000_000 * 100.5e12)
    assert count_method(ours, passes, 4) == (0, 120_000 * 8.5e12)
    assert [sum(method.paper) for method in METHODS] == pytest.approx([30.38, 161.11, 2.19])  # the paper's totals


def test_costs_here_are_seconds_times_images(image_folder: Path, config: TrainConfig) -> None:
    found = measure_costs(str(image_folder), config, "photo")
    assert (found["target"], found["gpu"]) == ("photo", "V100")
    for key, entry in found["methods"].items():
        here, counted = entry["here"], entry["counted"]
        assert here["seconds_generated"] > 0
        assert here["generation_days"] == pytest.approx(here["generated"] * here["seconds_generated"] / 86_400)
        assert (here["fine_tuning_days"] > 0) == (key == "dsi")
        assert (counted["fine_tuning_days"] > 0) == (key == "dsi")
    # What is counted of CDGA, from the totals: 4 million images, 50 steps, two passes each.
    days = found["methods"]["cdga"]["counted"]["generation_days"]
    flops = days * 86_400 * GPUS["V100"] * UTILISATION / 4_000_000 / 100
    assert 6e11 < flops < 9e11  # Stable Diffusion's U-Net at 512 pixels: about 0.68 TFLOP of products, twice counted
    rows = cost_rows(found)
    assert len({len(row) for row in rows}) == 1
    assert [row[0] for row in rows[1:]] == ["DSI", "CDGA", "DomainFusion"]


def test_figures_and_costs_go_to_the_page(image_folder: Path, config: TrainConfig, tmp_path: Path) -> None:
    found = reproduce(["table1", "fig2", "fig5"], [str(image_folder)], config, 1, [], tmp_path / "out")
    page = Path(found["report"]).read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 2
    said = "The costs of table 1 on images, figure 2 on images and figure 5 on images."
    assert f'<h1 class="answer">{said}</h1>' in page
    assert "Rows are averages" not in page
    for name in ("fig2", "fig5"):
        with Image.open(tmp_path / "out" / f"{name}-images.png") as picture:
            assert min(picture.size) > 200
        assert read_json(tmp_path / "out" / f"{name}-images.json")
    assert read_json(tmp_path / "out" / "table1-images.json")["dataset"] == "images"


def test_the_evolution_is_that_of_algorithm_1(image_folder: Path, config: TrainConfig, tmp_path: Path) -> None:
    options = dataclasses.replace(
        config, steps=4, evaluations=1, backbone="test_resnet", distill_weight=0.0,
        generate=dataclasses.replace(config.generate, generations=2),
    )  # fmt: skip
    found = draw_figure("fig3", str(image_folder), options, tmp_path / "out", "photo")
    run = tmp_path / "out" / "images" / "updating" / "photo" / "trial-0"
    assert "updating = true" in (run / "config.toml").read_text(encoding="utf-8")
    assert Path(found["picture"]).exists()
    assert {image["domain"] for image in found["facts"]["images"]} == {"cartoon", "sketch"}


def test_shown_images_are_spread_over_domains_and_classes(image_folder: Path, config: TrainConfig) -> None:
    dataset = load_dataset(str(image_folder), config.data)
    rows = spread_rows(dataset, 3, "fig2")
    assert len(set(dataset.domain_of[rows])) == 3
    assert len(set(dataset.labels[rows])) == 3
    assert (spread_rows(dataset, 3, "fig2") == rows).all()
