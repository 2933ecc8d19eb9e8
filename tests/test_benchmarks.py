"""The benchmarks' table and their quick rows; what they measure is nothing a test may depend on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from benchmarks.alternatives import ReusingUNet, at_time
from benchmarks.growth import AXES, exponent, plot
from benchmarks.zero_shot import loop

from domainfusion.algorithms.diffusion_classifier import DiffusionClassifier
from domainfusion.config import ZeroShotConfig
from domainfusion.diffusion.ldm import LatentDiffusion

ROOT = Path(__file__).parents[1]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_a_row_can_be_measured_and_names_its_target() -> None:
    done = run("sweep_share", "--json")
    assert done.returncode == 0, done.stderr

    found = json.loads(done.stdout)
    (row,) = found["rows"]
    assert row["row"] == "sweep_share"
    assert row["ours"] == 3525  # three trials of five targets use every image of Pictograms
    assert row["ratio"] == pytest.approx(row["ours"] / row["theirs"])
    assert found["machine"]["matmul_gflops"] > 0


def test_an_unknown_row_is_refused_with_the_rows_there_are() -> None:
    done = run("speed")
    assert done.returncode == 2
    assert "unknown row 'speed'" in done.stderr
    assert "training_step" in done.stderr


@pytest.fixture
def ldm(tiny_pipeline: Path) -> LatentDiffusion:
    return LatentDiffusion.load(str(tiny_pipeline), precision="float32")


def test_a_full_pass_is_the_u_nets_own_and_a_reusing_one_takes_deep_features(ldm: LatentDiffusion) -> None:
    generator = torch.Generator().manual_seed(0)
    noisy, embeds = torch.randn(2, 4, 8, 8, generator=generator), ldm.prompt_embeds(["a cat", "a dog"])
    t = torch.tensor([300, 700])
    model = ReusingUNet(ldm.unet)
    with torch.no_grad():
        own = ldm.unet(noisy, t, embeds).sample
        assert torch.equal(model(noisy, t, embeds, reuse=False), own)
        # At the same latents and times nothing has changed, and the deep features are what they would be.
        torch.testing.assert_close(model(noisy, t, embeds, reuse=True), own)
        moved = model(noisy + 0.3, t, embeds, reuse=True)
        assert (moved - own).abs().max() > 1e-3
        assert (moved - ldm.unet(noisy + 0.3, t, embeds).sample).abs().max() > 1e-5


def test_the_loop_of_the_zero_shot_row_comes_to_the_same_answers(ldm: LatentDiffusion) -> None:
    method = DiffusionClassifier(ldm, ["cat", "dog", "house"], ZeroShotConfig(samples=(3,), keep=(1,)))
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    scores = method.classify(image)
    assert loop(method, image, scores) == [scores[0].prediction]


def test_growth_is_the_power_between_the_last_sizes(tmp_path: Path) -> None:
    points = [{"size": float(n), "seconds": n**1.5, "megabytes": 100.0 + n} for n in (2, 4, 8)]
    assert exponent(points, float) == pytest.approx(1.5)
    assert exponent(points, AXES["resolution"][2]) == pytest.approx(0.75)
    plot({"images": points, "resolution": points}, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 5000
    assert at_time([(1.0, 1.0), (2.0, 0.5), (3.0, 0.1)], 2.5) == pytest.approx((0.5 * 0.1) ** 0.5)
