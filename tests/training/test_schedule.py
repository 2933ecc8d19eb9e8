"""When a run evaluates, and its learning rate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from domainfusion.json_lines import read_json_lines
from domainfusion.training.schedule import evaluation_steps, learning_rate
from short_runs import run


class TestSchedule:
    @given(st.integers(1, 3000), st.integers(1, 200))
    def test_evaluations_are_as_many_as_asked_and_end_with_the_run(self, steps: int, evaluations: int) -> None:
        found = sorted(evaluation_steps(steps, evaluations))
        assert found[-1] == steps
        assert found[0] >= 1
        assert len(found) == min(steps, evaluations)
        gaps = np.diff([0, *found])
        assert gaps.max() - gaps.min() <= 1

    def test_golden_evaluations(self) -> None:
        assert evaluation_steps(600, 10) == {60, 120, 180, 240, 300, 360, 420, 480, 540, 600}
        assert evaluation_steps(4, 10) == {1, 2, 3, 4}

    def test_the_learning_rate_is_torchs_cosine(self) -> None:
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50)
        for step in range(50):
            assert learning_rate(step, 50, 0.3) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
            optimizer.step()
            schedule.step()

    def test_fewer_steps_than_evaluations_train_to_the_end(self, images: Path, tmp_path: Path) -> None:
        result = run(images, tmp_path / "run", steps=3, evaluations=10)
        assert result["steps"] == 3
        assert [record["step"] for record in read_json_lines(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3]
