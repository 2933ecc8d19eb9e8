"""Solvers against diffusers' schedulers, one latent at a time, and against the exact solution of an ODE."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from domainfusion.diffusion.solvers import Solver, SolverName, Spacing, denoising_timesteps

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
ALPHAS = DDIMScheduler(**BETAS).alphas_cumprod


def clean_prediction(z: torch.Tensor, timestep: int) -> torch.Tensor:
    """A stand-in for a U-Net: not linear, and different at every timestep."""
    return torch.tanh(z * (1 + timestep / 500)) + math.sin(timestep / 90) * torch.cos(z)


def reference(name: SolverName, z: torch.Tensor, schedule: list[int]) -> torch.Tensor:
    """diffusers' own steps along `schedule`, from latents z (1, C, h, w) at its first timestep."""
    options = {**BETAS, "solver_order": 2, "prediction_type": "sample", "final_sigmas_type": "zero"}
    if name == "dpm":
        scheduler = DPMSolverMultistepScheduler(**options, algorithm_type="dpmsolver++", solver_type="midpoint")
    else:
        scheduler = UniPCMultistepScheduler(**options, solver_type="bh2", predict_x0=True)
    scheduler.set_timesteps(len(schedule))
    scheduler.timesteps = torch.tensor(schedule)
    ratio = ((1 - ALPHAS) / ALPHAS).sqrt()
    scheduler.sigmas = torch.cat([ratio[schedule], torch.zeros(1)])
    for timestep in schedule:
        z = scheduler.step(clean_prediction(z, timestep), timestep, z).prev_sample
    return z


def run(name: SolverName, starts: torch.Tensor, schedule: torch.Tensor) -> torch.Tensor:
    """Our steps for latents that each go down their own column of `schedule` (steps, B)."""
    z = starts
    solver = Solver(name, ALPHAS)
    for number, timesteps in enumerate(schedule):
        clean = torch.cat([clean_prediction(z[[i]], int(t)) for i, t in enumerate(timesteps)])
        z = solver.step(z, clean, timesteps, schedule[number + 1] if number + 1 < len(schedule) else None)
    return z


@pytest.mark.parametrize("name", ["dpm", "unipc"])
@pytest.mark.parametrize("steps", [1, 2, 3, 8])
@pytest.mark.parametrize("spacing", ["karras", "uniform"])
def test_equals_diffusers_for_each_member(name: SolverName, steps: int, spacing: Spacing) -> None:
    schedule = denoising_timesteps(ALPHAS, torch.tensor([0.3, 0.55, 0.8, 1.0]), steps, spacing)
    starts = torch.randn(4, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    made = run(name, starts, schedule)
    for i in range(4):
        expected = reference(name, starts[[i]], schedule[:, i].tolist())
        torch.testing.assert_close(made[[i]], expected, rtol=0, atol=2e-4)


def test_the_first_step_of_every_solver_is_ddims() -> None:
    z = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(2))
    clean = clean_prediction(z, 700)
    alpha, after = ALPHAS[700], ALPHAS[500]
    noise = (z - alpha.sqrt() * clean) / (1 - alpha).sqrt()
    expected = after.sqrt() * clean + (1 - after).sqrt() * noise
    here, there = torch.tensor([700, 700]), torch.tensor([500, 500])
    for name in ("ddim", "dpm", "unipc"):
        torch.testing.assert_close(Solver(name, ALPHAS).step(z, clean, here, there), expected)
        assert torch.equal(Solver(name, ALPHAS).step(z, clean, here, None), clean)


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("dpm", 2), ("unipc", 2)])
def test_order_of_convergence(name: SolverName, order: int) -> None:
    """On Gaussian data, whose clean prediction is known in closed form: half the step, 1/2^order of the error."""

    def gaussian_prediction(z: torch.Tensor, timestep: int) -> torch.Tensor:
        alpha, variance = ALPHAS.double()[timestep], 0.3**2
        return 0.5 + variance * alpha.sqrt() / (variance * alpha + 1 - alpha) * (z - alpha.sqrt() * 0.5)

    def solve(name: SolverName, stride: int) -> torch.Tensor:
        z = torch.randn(64, 1, 2, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        solver = Solver(name, ALPHAS)
        for timestep in range(900, 100, -stride):
            here = torch.full((64,), timestep)
            z = solver.step(z, gaussian_prediction(z, timestep), here, here - stride)
        return z

    exact = solve("unipc", 1)
    errors = [float((solve(name, stride) - exact).square().mean().sqrt()) for stride in (20, 10, 5)]
    for coarse, fine in itertools.pairwise(errors):
        assert coarse / fine > 0.75 * 2**order
    if name == "ddim":  # and the bar can tell orders apart
        assert errors[0] / errors[1] < 3


class NoDoubles(TorchDispatchMode):
    """Refuses double precision anywhere but on the CPU, as Apple's GPUs do."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor) and found.device.type != "cpu" and found.dtype == torch.float64:
            raise TypeError(f"{function} in double precision on {found.device}")
        return found


@pytest.mark.parametrize("name", ["ddim", "dpm", "unipc"])
def test_an_accelerator_needs_no_double_precision(name: SolverName) -> None:
    with FakeTensorMode(), NoDoubles():
        schedule = torch.tensor([[900, 700], [500, 400], [100, 200], [50, 20]]).to("cuda")
        z, solver = torch.empty(2, 4, 8, 8, device="cuda"), Solver(name, torch.empty(1000, device="cuda"))
        for here, after in itertools.pairwise([*schedule, None]):
            z = solver.step(z, z, here, after)
        assert (z.device.type, z.dtype) == ("cuda", torch.float32)


@pytest.mark.parametrize("spacing", ["karras", "uniform"])
@pytest.mark.parametrize("steps", [1, 2, 5, 60])
def test_timesteps_descend_from_the_strength(steps: int, spacing: Spacing) -> None:
    strengths = torch.tensor([0.001, 0.01, 0.03, 0.4, 0.77, 1.0])
    timesteps = denoising_timesteps(ALPHAS, strengths, steps, spacing)
    assert timesteps.shape == (steps, 6)
    assert (timesteps.diff(dim=0) < 0).all()
    assert timesteps.min() >= 0
    assert timesteps.max() <= 999
    assert timesteps[0, 3:].tolist() == [400, 769, 999]
    assert (timesteps[0, :3] >= (strengths[:3] * 999).round()).all()


def test_karras_spacing_is_even_in_the_cube_root_of_sigma() -> None:
    timesteps = denoising_timesteps(ALPHAS, torch.tensor([0.9]), 6, "karras")[:, 0]
    assert timesteps[-1] == 20
    sigma = ((1 - ALPHAS[timesteps]) / ALPHAS[timesteps]).sqrt() ** (1 / 3)
    assert sigma.diff().std() < 0.02 * sigma.diff().abs().mean()


def test_uniform_spacing_is_even_in_time() -> None:
    timesteps = denoising_timesteps(ALPHAS, torch.tensor([0.5]), 5, "uniform")[:, 0]
    assert timesteps.tolist() == [500, 400, 300, 200, 100]
