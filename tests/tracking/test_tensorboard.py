"""What TensorBoard's own reader finds in the event files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from domainfusion.config import DataConfig, TrainConfig
from domainfusion.experiments.runs import train_run
from domainfusion.json_lines import read_json_lines
from domainfusion.tracking.base import Beginning
from domainfusion.tracking.tensorboard import TensorBoard

accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def read(folder: Path) -> Any:
    found = accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    return found.Reload()


def points(events: Any, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_a_runs_figures_are_read_back(make_image_folder: Callable[..., Path], tmp_path: Path) -> None:
    images = make_image_folder("few", domains=("Real World", "photo", "sketch"), count=5)
    config = TrainConfig(
        algorithm="erm", target="sketch", steps=4, evaluations=2, batch_size=4, backbone="test_resnet",
        precision="float32", device="cpu", data=DataConfig(size=32),
    )  # fmt: skip
    result = train_run(str(images), config, tmp_path / "run", progress=False, track=["tensorboard"])
    events = read(tmp_path / "run" / "tensorboard")
    records = read_json_lines(tmp_path / "run" / "metrics.jsonl")
    assert [record["step"] for record in records] == [2, 4]
    for tag in ("raw_loss", "validation_accuracy", "target_accuracy", "lr"):
        assert points(events, tag) == [(r["step"], pytest.approx(r[tag], rel=1e-6)) for r in records]
    expected = [(r["step"], pytest.approx(r["validation"]["Real World"], rel=1e-6)) for r in records]
    assert points(events, "validation/Real World") == expected
    assert points(events, "result/target_accuracy") == [(4, pytest.approx(result["target_accuracy"], rel=1e-6))]
    text = events.Tensors("options/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| batch_size | 4 |" in text
    assert "| data.size | 32 |" in text
    hparams = [tag for tag in events.summary_metadata if tag.startswith("_hparams_")]
    assert {"_hparams_/experiment", "_hparams_/session_start_info"} <= set(hparams)


def beginning(folder: Path, step: int = -1, identity: str = "") -> Beginning:
    return Beginning(folder, "run", "data", {"steps": 9, "flip": True}, identity, step)


def test_pictures_are_read_back_pixel_by_pixel(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "sheet.png")
    tracker = TensorBoard()
    tracker.begin(beginning(tmp_path))
    tracker.picture("synthetic/generation-00", 3, tmp_path / "sheet.png")
    tracker.close(False)
    import io

    (event,) = read(tmp_path / "tensorboard").Images("synthetic/generation-00")
    assert event.step == 3
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(event.encoded_image_string))), pixels)


def test_a_step_written_just_before_a_kill_is_not_there_twice(tmp_path: Path) -> None:
    """The first process wrote step 4 and died before it could note that; the second writes it again."""
    first = TensorBoard()
    identity = first.begin(beginning(tmp_path))
    for step in (2, 4):
        first.record(step, {"loss": float(step)})
    second = TensorBoard()
    second.begin(beginning(tmp_path, step=2, identity=identity))
    for step in (4, 6):
        second.record(step, {"loss": step + 0.5})
    second.close(True)
    first.close(False)
    events = read(tmp_path / "tensorboard")
    assert points(events, "loss") == [(2, 2.0), (4, 4.5), (6, 6.5)]
    assert len(events.Tensors("options/text_summary")) == 1
