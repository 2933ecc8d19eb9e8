"""Which checkpoint a run keeps: source validation decides, and the target has no say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from domainfusion.experiments.runs import build_algorithm, build_context
from domainfusion.files import read_json
from domainfusion.json_lines import read_json_lines
from domainfusion.tensors import load_state
from domainfusion.training import measuring, trainer
from domainfusion.training.evaluation import Evaluation
from short_runs import options, train_until


class TestSelection:
    def train(
        self, data: Path, folder: Path, source: list[list[int]], target: list[int], patch: pytest.MonkeyPatch
    ) -> tuple[Any, list[dict[str, Any]]]:
        """Train with evaluations that report so many right of 7 by source domain, and of 29 on the target."""
        context = build_context(str(data), options(), folder, progress=False)
        algorithm = build_algorithm(context)
        asked: list[str] = []

        def evaluate(predict: Any, dataset: Any, rows: np.ndarray, **more: Any) -> Evaluation:
            labels = dataset.labels[rows]
            if np.array_equal(rows, context.split.oracle):  # recorded for others; here it is all right, to no avail
                return Evaluation(rows, labels, np.eye(3, dtype=np.float32)[labels])
            domain = dataset.domains[dataset.domain_of[rows[0]]]
            number = asked.count(domain)
            asked.append(domain)
            right = target[number] if domain == "sketch" else source[number][("cartoon", "photo").index(domain)]
            said = np.where(np.arange(len(rows)) < right, labels, (labels + 1) % 3)
            return Evaluation(rows, labels, np.eye(3, dtype=np.float32)[said])

        patch.setattr(measuring, "evaluate", evaluate)
        progress = trainer.train(algorithm)
        return progress, read_json_lines(folder / "metrics.jsonl")

    SOURCE = ([3, 3], [6, 5], [2, 2], [5, 5])  # of 7

    @pytest.mark.parametrize("target", [[0, 0, 29, 29], [29, 0, 0, 0], [0, 29, 0, 0], [5, 5, 5, 5]])
    def test_the_target_has_no_say(
        self, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: list[int]
    ) -> None:
        progress, records = self.train(images, tmp_path / "run", list(self.SOURCE), target, monkeypatch)
        assert progress.best_step == 4
        assert progress.best_validation == pytest.approx(11 / 14)
        assert read_json(tmp_path / "run" / "model.json")["step"] == 4
        assert [record["target_accuracy"] for record in records] == [n / 29 for n in target]

    def test_the_weights_kept_are_those_of_the_chosen_step(
        self, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.train(images, tmp_path / "run", list(self.SOURCE), [0] * 4, monkeypatch)
        monkeypatch.undo()
        train_until(images, tmp_path / "other", 5)
        expected = load_state(tmp_path / "other" / "checkpoints" / "last.safetensors")["model"]  # of step 4
        found = load_file(tmp_path / "run" / "model.safetensors")
        assert all(torch.equal(found[name], expected[f"classifier.{name}"]) for name in found)
        last = load_state(tmp_path / "run" / "checkpoints" / "last.safetensors")["model"]
        assert not torch.equal(found["head.weight"], last["classifier.head.weight"])

    def test_domains_count_alike_and_the_later_of_equals_is_chosen(
        self, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source = [[7, 1], [4, 4], [4, 4], [6, 1]]
        progress, records = self.train(images, tmp_path / "run", source, [0] * 4, monkeypatch)
        assert progress.best_step == 6
        assert [r["validation_accuracy"] for r in records] == pytest.approx([8 / 14, 8 / 14, 8 / 14, 7 / 14])
        assert records[0]["validation"] == {"cartoon": 1.0, "photo": 1 / 7}
