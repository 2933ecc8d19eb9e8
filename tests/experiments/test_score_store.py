"""The scores of zero-shot classification on disk, shared by processes."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import torch

from domainfusion.algorithms.diffusion_classifier import DiffusionClassifier
from domainfusion.algorithms.diffusion_net import DiffusionNet
from domainfusion.algorithms.zero_shot import Scores
from domainfusion.data.domains import load_dataset
from domainfusion.experiments.zero_shot import ScoreStore, chosen, score_store
from zero_shot_runs import changed, zero_shot_config

CLAIM = """
import sys
from domainfusion.experiments.zero_shot import ScoreStore
store = ScoreStore("key")
print(list(store.claim([3, -7])), flush=True)  # keys have signs
sys.stdin.readline()
"""


def test_images_that_another_process_is_at_are_left_to_it_until_it_is_killed(cache: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CLAIM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "[3, -7]\n"
        with closing(ScoreStore("key")) as mine:
            assert list(mine.claim([2, 3, 5, -7])) == [2, 5]
            other.kill()
            mine.wait(3)
            assert list(mine.claim([3, -7])) == [3, -7]


def test_scores_are_those_of_method_images_prompts_and_precision(
    tiny_pipeline: Path, image_folder: Path, cache: Path
) -> None:
    config = zero_shot_config(tiny_pipeline)
    dataset = load_dataset(str(image_folder), config.data)
    others = [
        score_store(DiffusionNet, dataset, config, torch.float32),
        score_store(DiffusionClassifier, dataclasses.replace(dataset, class_words=tuple("abc")), config, torch.float32),
        score_store(DiffusionClassifier, dataset, config, torch.bfloat16),
        score_store(DiffusionClassifier, dataset, changed(config, samples=(2, 5)), torch.float32),
    ]
    own = score_store(DiffusionClassifier, dataset, dataclasses.replace(config, seed=8, lr=0.5), torch.float32)
    assert own.path == score_store(DiffusionClassifier, dataset, config, torch.float32).path
    grown = dataclasses.replace(dataset, fingerprint="of more images")
    assert own.path == score_store(DiffusionClassifier, grown, config, torch.float32).path
    assert len({own.path, *(other.path for other in others)}) == 5


def test_some_of_the_images_are_of_all_parts(tiny_pipeline: Path) -> None:
    """Rows are sorted by class: the first of them would be of one class alone."""
    config, rows = changed(zero_shot_config(tiny_pipeline), images=30), np.arange(100, 400)
    some = chosen(rows, config)
    assert len(some) == len(set(some)) == 30
    assert some.tolist() == sorted(set(some) & set(rows))
    assert len(set(some // 100)) == 3
    assert chosen(rows, config).tolist() == some.tolist()
    other = dataclasses.replace(config, zero_shot=dataclasses.replace(config.zero_shot, seed=1))
    assert chosen(rows, other).tolist() != some.tolist()
    assert chosen(rows[:30], config).tolist() == rows[:30].tolist()


def test_an_image_that_another_process_has_done_meanwhile_is_skipped(cache: Path) -> None:
    mine, other = ScoreStore("key"), ScoreStore("key")
    scores = Scores(np.array([0.25, 1 / 3]), np.array([4, 2]), 6, 0.5)
    asked = mine.claim([3, 7, 9])
    assert next(asked) == 3
    other.add(7, scores)
    assert next(asked) == 9
    assert mine.missing([3, 7, 9]) == [3, 9]
    assert mine.known[7].errors.tolist() == scores.errors.tolist()
    assert mine.known[7].draws.tolist() == [4, 2]
    assert (mine.known[7].passes, mine.known[7].seconds) == (6, 0.5)
    # Both computed the same image: what came first stands.
    mine.add(7, Scores(np.array([9.0, 9.0]), np.array([4, 2]), 6, 0.5))
    assert ScoreStore("key").known[7].errors[0] == 0.25
    mine.close()
    other.close()
