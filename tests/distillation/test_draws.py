"""Draws of (t, ε): one timestep in each stratum, neighbours mirrored, functions of their generator."""

from __future__ import annotations

import pytest
import torch

from domainfusion.config import DistillConfig
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.distillation.slopes import draw
from draws import make_draws


@pytest.mark.parametrize("samples", [1, 4, 7])
def test_timesteps_lie_one_in_each_stratum(exact_ldm: LatentDiffusion, samples: int) -> None:
    config = DistillConfig(samples=samples, min_timestep=0.1, max_timestep=0.9)
    draws = make_draws(exact_ldm, config, count=50)
    assert draws.timesteps.shape == (samples, 50)
    assert draws.noise.shape == (samples, 50, 4, 8, 8)
    low, width = 99.9, 0.8 * 999 / samples
    for m in range(samples):
        assert (draws.timesteps[m] >= low + m * width - 0.5).all()
        assert (draws.timesteps[m] <= low + (m + 1) * width + 0.5).all()
        assert len(draws.timesteps[m].unique()) > 25  # each image has its own
        spread = draws.timesteps[m].double().std() / width
        assert 0.2 < spread < 0.38  # uniform within the stratum: 1/√12 = 0.289


@pytest.mark.parametrize("samples", [2, 5, 8])
def test_neighbouring_strata_have_mirrored_places(exact_ldm: LatentDiffusion, samples: int) -> None:
    """Places u and 1 - u: the two timesteps of a pair have one mean for every image, whatever u."""
    config = DistillConfig(samples=samples, min_timestep=0.1, max_timestep=0.9)
    total = exact_ldm.num_train_timesteps - 1
    timesteps = draw(exact_ldm, 200, 16, config, torch.Generator().manual_seed(3)).timesteps.double()
    width = 0.8 * total / samples
    for k in range(0, samples - 1, 2):
        pair = timesteps[k : k + 2].mean(0)
        assert (pair - (0.1 * total + (k + 1) * width)).abs().max() <= 1  # rounding, of either
        assert timesteps[k].std() > 0.2 * width


def test_timesteps_cover_the_range_evenly(exact_ldm: LatentDiffusion) -> None:
    draws = make_draws(exact_ldm, DistillConfig(min_timestep=0.0, max_timestep=1.0), count=4000)
    counts = torch.histc(draws.timesteps.double(), 4, 0, 999)
    assert (counts - 1000).abs().max() < 4 * (4000 * 0.25 * 0.75) ** 0.5
    assert draws.timesteps.min() >= 0
    assert draws.timesteps.max() <= 999


def test_draws_are_functions_of_the_generator(exact_ldm: LatentDiffusion) -> None:
    config = DistillConfig(samples=2)
    first, second, third = (
        make_draws(exact_ldm, config, 1),
        make_draws(exact_ldm, config, 1),
        make_draws(exact_ldm, config, 2),
    )
    assert torch.equal(first.timesteps, second.timesteps)
    assert torch.equal(first.noise, second.noise)
    assert first.seed == second.seed
    assert not torch.equal(first.noise, third.noise)
    assert first.seed != third.seed
    assert first.noise.mean().abs() < 0.1
    assert 0.9 < first.noise.std() < 1.1
