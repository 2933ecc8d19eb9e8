"""The options of runs that a search chooses among, and the names of the four domains that they are on."""

from __future__ import annotations

from domainfusion.config import DataConfig, TrainConfig

DOMAINS = ("art", "cartoon", "photo", "sketch")
OPTIONS = TrainConfig(
    steps=3, evaluate_every=1, batch_size=4, backbone="test_resnet", precision="float32", device="cpu",
    evaluate_training=True, data=DataConfig(size=32),
)  # fmt: skip
SPACE = {"lr": {"log_uniform": [1e-3, 1e-1]}}
