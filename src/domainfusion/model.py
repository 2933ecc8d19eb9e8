"""A trained model in use: `load` a run's folder or an exported one, and ask it for labels and confidences.

>>> model = domainfusion.load("runs/mine")                                # doctest: +SKIP
>>> labels, confidences = model.predict(["new/1.jpg", "new/2.jpg"])       # doctest: +SKIP
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from domainfusion.algorithms.base import Tester
from domainfusion.algorithms.classifier import Classifier, build_classifier, choose_classifier_dtype, judge_images
from domainfusion.config import TrainConfig
from domainfusion.config_files import build_config, load_toml
from domainfusion.data.images import prepare_image, read_image
from domainfusion.data.transforms import resize, to_float
from domainfusion.devices import choose_device
from domainfusion.errors import DataError, DomainFusionError, FileError, NoModel, UsageError, show_note
from domainfusion.experiments.runs import build_context, class_of_run, refuse_untrained
from domainfusion.files import hash_of_file, read_json, read_json_object, write_json
from domainfusion.training.calibration import calibrate
from domainfusion.training.checkpoint import fill_weights, load_model, looks_pickled, read_weights

Picture = str | os.PathLike[str] | Image.Image | np.ndarray
DESCRIBED = ("algorithm", "backbone", "dataset", "sources", "target", "trial", "step")  # facts from model.json
PICKLES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt")


class Predictions(NamedTuple):
    """The most probable class of each of n images, and its calibrated probability."""

    labels: list[str]
    confidences: np.ndarray  # (n,) float32


@dataclasses.dataclass(frozen=True)
class Model:
    """A trained classifier with all that using it takes."""

    classifier: Classifier
    config: TrainConfig  # backbone and precision; of a run, everything
    classes: tuple[str, ...]
    size: int  # side in pixels of the images that the classifier takes
    temperature: float  # its logits are divided by it
    device: torch.device
    facts: dict[str, Any]  # what it was trained on and how well it did, for people
    source: Path
    tester: Tester | None = None  # its method's own way to predict, where that is more than the classifier

    @torch.no_grad()
    def logits(self, pixels: np.ndarray) -> torch.Tensor:
        """(B, classes) float32 logits, before the temperature, of images (B, S, S, 3) uint8 at the model's size."""
        if self.tester is not None:
            return torch.from_numpy(self.tester.logits_of_images(pixels))
        dtype = choose_classifier_dtype(self.config.precision, self.device)
        images = to_float(torch.from_numpy(pixels).to(self.device))
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            return self.classifier(images).float().cpu()

    def probabilities(self, images: Sequence[Picture], *, batch_size: int = 64) -> np.ndarray:
        """(n, classes) float32 calibrated probabilities of images.

        Args:
            images: paths, PIL images, or arrays (H, W), (H, W, 3) or (H, W, 4), uint8 or float in [0, 1].

        Raises `DataError` naming the image that cannot be read.
        """
        if isinstance(images, (str, os.PathLike, Image.Image, np.ndarray)):
            raise UsageError("predict takes a list of images; put a single one into a list")
        found = [np.zeros((0, len(self.classes)), dtype=np.float32)]
        for start in range(0, len(images), batch_size):
            part = [self.pixels(image, start + i) for i, image in enumerate(images[start : start + batch_size])]
            found.append((self.logits(np.stack(part)) / self.temperature).softmax(-1).numpy())
        return np.concatenate(found)

    def predict(self, images: Sequence[Picture], *, batch_size: int = 64) -> Predictions:
        """Labels and confidences of images, given as `probabilities` takes them."""
        p = self.probabilities(images, batch_size=batch_size)
        return Predictions([self.classes[i] for i in p.argmax(1)], p.max(1))

    def judge(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What Algorithm 1 chooses content by: features (B, D), and confidences of labels (B,) before the temperature.

        Args:
            images: (B, 3, S, S) in [0, 1], at any size.
            labels: (B,) numbers of classes.
        """
        dtype = choose_classifier_dtype(self.config.precision, self.device)
        at_size = (resize(2 * images - 1, self.size) + 1) / 2
        return judge_images(self.classifier, at_size, labels, device=self.device, dtype=dtype)

    def pixels(self, image: Picture, number: int = 0) -> np.ndarray:
        """(S, S, 3) uint8: an image as the classifier saw its training images. `number` names it in errors."""
        if isinstance(image, (str, os.PathLike)):
            return read_image(Path(image), self.size)
        try:
            return prepare_image(image if isinstance(image, Image.Image) else _picture(image), self.size)
        except Exception as error:  # Pillow's plugins raise whatever their formats make them
            raise DataError(f"image {number} cannot be read ({type(error).__name__}: {error})") from error


def _picture(array: np.ndarray) -> Image.Image:
    array = np.asarray(array)
    if array.dtype.kind == "f":
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
            raise ValueError("values of a float array lie in [0, 1]")
        array = (array * 255).round().astype(np.uint8)
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise ValueError(
            f"an array of {array.dtype} with the shape {array.shape} is not (H, W), (H, W, 3) or (H, W, 4)"
        )
    return Image.fromarray(array)


def load(path: str | os.PathLike[str], *, device: str = "auto") -> Model:
    """The model in `path`: the folder of a run (`domainfusion train`) or of an export (`domainfusion export`).

    Only safetensors files are read. Raises `UsageError` where there is nothing, `FileError` where it is no model.
    """
    folder = Path(path)
    if folder.name == "model.safetensors" and folder.is_file():
        folder = folder.parent
    if folder.is_file():
        if folder.suffix.lower() in PICKLES or looks_pickled(folder):
            raise FileError(
                f"{folder} is a pickle, which may run any code when it is opened; only folders with model.safetensors "
                "are read"
            )
        raise UsageError(f"{folder} is a file; give the folder of a run or of an exported model")
    if not folder.is_dir():
        raise UsageError(f"there is no model {folder}; give the folder of a run or of an exported model")
    if (folder / "config.toml").exists():
        return _load_run(folder, choose_device(device))
    if (folder / "config.json").exists():
        return _load_export(folder, choose_device(device))
    pickled = sorted(file.name for file in folder.iterdir() if file.suffix.lower() in PICKLES)
    if pickled:
        raise FileError(
            f"{folder} holds {pickled[0]}, a pickle, which may run any code when it is opened; only folders with "
            "model.safetensors are read"
        )
    runs = sorted(file.parent for file in folder.rglob("config.toml"))
    hint = f"; a run below it is {runs[0]}" if runs else ""
    raise NoModel(f"{folder} is no model: it holds neither config.toml (a run) nor config.json (an export){hint}")


def _load_run(folder: Path, device: torch.device) -> Model:
    config: TrainConfig = build_config(TrainConfig, load_toml(folder / "config.toml"), str(folder / "config.toml"))
    refuse_untrained(folder, config.algorithm)
    if not (folder / "model.safetensors").exists():
        raise FileError(f"{folder} holds no trained model yet (model.safetensors is missing); finish the run first")
    described = read_json_object(folder / "model.json", classes=list, size=int)
    classes, size = tuple(map(str, described["classes"])), int(described["size"])
    if not classes or not 8 <= size <= 2048:
        raise FileError(f"{folder / 'model.json'} does not describe a model: {len(classes)} classes, size {size}")
    classifier = build_classifier(config, len(classes), initialize=False)  # the run has the weights
    load_model(folder, classifier)
    classifier.to(device).eval()
    result = read_json_object(folder / "result.json") if (folder / "result.json").exists() else {}
    if not result:
        note(f"the run in {folder} has not finished; its best weights so far (step {described.get('step')}) are used")
    data = read_json_object(folder / "data.json", data=str, fingerprint=str)
    calibration = _calibration_of(folder, config, data, classifier, device)
    facts = {
        **{name: described.get(name) for name in DESCRIBED},
        "seed": config.seed, "protocol": data.get("protocol"), "training_images": data.get("train"),
        "validation_images": data.get("validation"), "test_images": data.get("test"),
        "validation": result.get("validation"), "target_accuracy": result.get("target_accuracy"),
        "pretrained": bool(config.pretrained or config.weights), "ldm": _ldm_of(config),
        "calibration": {name: value for name, value in calibration.items() if name != "model"} or None,
    }  # fmt: skip
    tester = class_of_run(config.algorithm).load_tester(folder, classifier, config, device)
    # The temperature is of the classifier alone, not of what a method of its own makes of several views.
    temperature = float(calibration.get("temperature", 1.0)) if tester is None else 1.0
    return Model(classifier, config, classes, size, temperature, device, facts, folder, tester)


def _ldm_of(config: TrainConfig) -> str | None:
    """The LDM that took part in training the classifier, if any."""
    distilled = config.algorithm == "domainfusion" and (config.distill_weight > 0 or config.synthetic_weight > 0)
    return config.ldm_source if distilled or config.algorithm == "cdga" else None


def _calibration_of(
    folder: Path, config: TrainConfig, data: dict[str, Any], classifier: Classifier, device: torch.device
) -> dict[str, Any]:
    """A run's `calibration.json`; fitted now where it is missing or of other weights, and empty where it cannot be."""
    path = folder / "calibration.json"
    if path.exists():
        kept = read_json_object(path)
        if kept.get("model") == hash_of_file(folder / "model.safetensors"):
            return _checked_calibration(kept, path)
    try:
        context = build_context(data["data"], dataclasses.replace(config, device=str(device)), folder, progress=False)
        if context.dataset.fingerprint != data["fingerprint"]:
            raise DataError(f"the images of {data['data']} have changed")
        found = calibrate(classifier, context.dataset, context.split, device=context.device, dtype=context.dtype)
    except DomainFusionError as error:
        note(f"confidences are not calibrated: the source validation images cannot be used ({error})")
        return {}
    try:
        write_json(path, found | {"model": hash_of_file(folder / "model.safetensors")})
    except FileError as error:
        note(f"the temperature is not kept: {error}")
    return found


def _checked_calibration(kept: dict[str, Any], path: Path) -> dict[str, Any]:
    value = kept.get("temperature")
    if not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
        raise FileError(f"{path}: the temperature is a number above 0, not {value!r}; delete the file to fit it again")
    return kept


def _load_export(folder: Path, device: torch.device) -> Model:
    path = folder / "config.json"
    written = read_json(path)
    ours = written.get("domainfusion") if isinstance(written, dict) else None
    if not isinstance(ours, dict):
        raise FileError(f"{path} was not written by `domainfusion export` (it has no part 'domainfusion')")
    classes = ours.get("classes")
    if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
        raise FileError(f"{path}: classes is a list of names, not {str(classes)[:60]}")
    size, head = ours.get("size"), ours.get("head")
    if not isinstance(size, int) or not 8 <= size <= 2048:
        raise FileError(f"{path}: size is a number of pixels from 8 to 2048, not {size!r}")
    if not isinstance(head, str) or not head:
        raise FileError(f"{path}: head is the name of the last layer, not {head!r}")
    statistics = [ours.get("mean"), ours.get("std")]
    if not all(isinstance(part, list) and len(part) == 3 and all(map(_is_share, part)) for part in statistics):
        raise FileError(
            f"{path}: mean and std are not those of a backbone (three numbers each, above 0 and at most 1), but "
            f"{str(statistics)[:80]}"
        )
    facts = ours.get("facts")
    described = {"backbone": ours.get("backbone"), "precision": ours.get("precision", "auto")}
    config: TrainConfig = build_config(TrainConfig, described, str(path))
    if not (folder / "model.safetensors").exists():
        raise FileError(f"{folder} lacks model.safetensors")
    tensors = read_weights(folder / "model.safetensors")
    classifier = build_classifier(config, len(classes), initialize=False)
    classifier.mean, classifier.std = (tuple(map(float, part or ())) for part in statistics)
    fill_weights(classifier, from_library_names(tensors, head), folder / "model.safetensors")
    temperature = _checked_calibration(ours, path)["temperature"]
    return Model(
        classifier.to(device).eval(), config, tuple(classes), size, float(temperature), device,
        facts if isinstance(facts, dict) else {}, folder,
    )  # fmt: skip


def _is_share(number: Any) -> bool:
    return isinstance(number, (int, float)) and not isinstance(number, bool) and 0 < number <= 1


def from_library_names(tensors: dict[str, torch.Tensor], head: str) -> dict[str, torch.Tensor]:
    """The weights of a model of timm or torchvision under `Classifier`'s names; `head` is its last layer."""
    return {
        (f"head.{name[len(head) + 1 :]}" if name.startswith(f"{head}.") and name.count(".") == head.count(".") + 1
         else f"backbone.{name}"): tensor
        for name, tensor in tensors.items()
    }  # fmt: skip


def note(text: str) -> None:
    """Print a remark to stderr in one line; control characters, of file names say, show as escapes."""
    show_note(text)
