"""A trained model as files to deploy: a folder for `domainfusion.load` and timm (or torchvision), or one ONNX file.

Both are checked before they are left behind: the folder's weights in the library's own model, the ONNX file in
onnxruntime, each against the classifier itself, on the same images.
"""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from domainfusion import __version__
from domainfusion.algorithms.backbones import TORCHVISION, architecture_of, whole_network
from domainfusion.data.transforms import normalize
from domainfusion.errors import DomainFusionError, UsageError
from domainfusion.files import atomic_path, make_folder, write_json, write_text
from domainfusion.model import Model
from domainfusion.model_card import build_card, library_of
from domainfusion.tensors import checksum, write_tensors

Input = Literal["uint8", "float"]
TOLERANCE = 1e-4  # greatest difference of a probability, or of a logit relative to the largest, that float32 explains
OPSET = 18  # the first whose Resize can antialias, as training does


def export_folder(model: Model, output: Path) -> list[Path]:
    """Write model.safetensors (in timm's or torchvision's names), config.json and README.md to `output`; their paths.

    Raises `DomainFusionError` for a backbone whose classifier timm does not keep in one last layer.
    """
    refuse_tester(model)
    head, tensors = library_weights(model)
    name = architecture_of(model.config)
    config = {} if name.startswith(TORCHVISION) else timm_config(model, head)
    config["domainfusion"] = {
        "version": __version__, "backbone": name, "precision": model.config.precision, "head": head,
        "classes": list(model.classes), "size": model.size, "mean": list(model.classifier.mean),
        "std": list(model.classifier.std), "temperature": model.temperature, "facts": model.facts,
    }  # fmt: skip
    refuse_run_folder(output)
    make_folder(output)
    write_text(output / "README.md", build_card(model))
    with atomic_path(output / "model.safetensors") as temporary:
        write_tensors(temporary, tensors, {"format": "pt", "checksum": checksum(tensors)})
        # safetensors writes for the owner alone; who may read the card may read the model.
        temporary.chmod((output / "README.md").stat().st_mode)
    write_json(output / "config.json", config)  # last: with it the folder is a model
    return [output / name for name in ("model.safetensors", "config.json", "README.md")]


def timm_config(model: Model, head: str) -> dict[str, Any]:
    """What timm reads from a model folder's config.json."""
    backbone: Any = model.classifier.backbone
    described = dict(backbone.pretrained_cfg)
    architecture, _, tag = architecture_of(model.config).partition(".")
    return {
        "architecture": architecture, "num_classes": len(model.classes), "num_features": int(backbone.num_features),
        "label_names": list(model.classes),
        "pretrained_cfg": {
            "tag": tag, "custom_load": False, "input_size": [3, model.size, model.size], "pool_size": None,
            "fixed_input_size": bool(described.get("fixed_input_size", False)), "interpolation": "bilinear",
            "crop_pct": 1.0, "crop_mode": "squash", "mean": list(model.classifier.mean),
            "std": list(model.classifier.std), "num_classes": len(model.classes),
            "first_conv": described.get("first_conv"), "classifier": head,
        },
    }  # fmt: skip


def refuse_tester(model: Model) -> None:
    """Raise `UsageError` for a model whose predictions take more than its classifier, which is all that is written."""
    if model.tester is not None:
        raise UsageError(
            f"{model.source} is a run of {model.config.algorithm}, whose predictions take its LDMs, which an exported "
            "model does not hold; a run of erm with the same options and seed has the same classifier"
        )


def refuse_run_folder(output: Path) -> None:
    """Raise `UsageError` where `output` is the folder of a run, whose own weights would be written over."""
    if (output / "config.toml").exists() or output.is_file():
        raise UsageError(
            f"--output {output} is {'a file' if output.is_file() else 'the folder of a run'}; give another"
        )


def library_weights(model: Model) -> tuple[str, dict[str, torch.Tensor]]:
    """The library's name of the last layer, and all weights under its names, checked in the library's own model.

    The library is timm, or torchvision for a backbone of its.
    """
    classifier, name = _on_cpu(model), architecture_of(model.config)
    remedy = "a model folder cannot hold it; export it with --format onnx"
    try:
        whole, head = whole_network(model.config, len(model.classes))
    except DomainFusionError as error:
        raise DomainFusionError(f"{error}: {remedy}") from error
    tensors = {f"{head}.{name}": value for name, value in classifier.head.state_dict().items()}
    tensors |= classifier.backbone.state_dict()
    tensors = {name: value.detach().contiguous().clone() for name, value in tensors.items()}
    images = torch.from_numpy(_probes(model.size, 3)).permute(0, 3, 1, 2).float() / 255
    try:
        whole.load_state_dict(tensors)
    except RuntimeError as error:
        raise DomainFusionError(f"the library's own {name} does not take the weights: {error}") from error
    with torch.no_grad():
        ours = classifier(images)
        theirs = whole.eval()(normalize(images, classifier.mean, classifier.std)).float()
    difference = float((ours - theirs).abs().max() / ours.abs().max().clamp_min(1))
    if not difference <= TOLERANCE:
        raise DomainFusionError(
            f"the library's own {name} and the classifier differ by {difference:.2g} with the same weights: {remedy}"
        )
    return head, tensors


def _on_cpu(model: Model) -> Any:
    return copy.deepcopy(model.classifier).cpu().float().eval()


def _probes(size: int, count: int, height: int = 0, width: int = 0) -> np.ndarray:
    """(count, height, width, 3) uint8 images to compare on: smooth at one end, noise at the other."""
    rng = np.random.default_rng(0)
    height, width = height or size, width or size
    ramp = np.linspace(0, 255, width)[None, None, :, None] * np.array([1, 0.6, 0.2])
    noise = rng.uniform(0, 255, (count, height, width, 3))
    share = np.linspace(0, 1, count).reshape(-1, 1, 1, 1)
    return ((1 - share) * ramp + share * noise).round().astype(np.uint8)


class Deployed(nn.Module):
    """Calibrated probabilities of images of any size: what an ONNX file computes.

    Args:
        given: "uint8": images (B, H, W, 3) in 0 to 255; "float": images (B, 3, H, W) in [0, 1].
    """

    def __init__(self, classifier: nn.Module, size: int, temperature: float, given: Input) -> None:
        super().__init__()
        self.classifier = classifier
        self.size, self.temperature, self.given = size, temperature, given

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, classes) probabilities."""
        pixels = images.permute(0, 3, 1, 2).float() / 255 if self.given == "uint8" else images
        # Pillow's bilinear filter, but for its rounding to whole numbers.
        pixels = F.interpolate(pixels, size=(self.size, self.size), mode="bilinear", antialias=True)
        return (self.classifier(pixels) / self.temperature).softmax(-1)

    def example(self, count: int, height: int, width: int) -> torch.Tensor:
        """Images in the form that `forward` takes."""
        images = torch.from_numpy(_probes(self.size, count, height, width))
        return images if self.given == "uint8" else images.permute(0, 3, 1, 2).float().div(255).contiguous()


def export_onnx(model: Model, output: Path, given: Input = "uint8") -> list[Path]:
    """Write model.onnx and README.md to `output`; their paths. Needs the extra `export`.

    The graph takes `images` of any number and size (see `Deployed`) and gives `probabilities`, in float32. Its metadata
    hold the classes, size and temperature. Raises `DomainFusionError` where onnxruntime and PyTorch differ.
    """
    refuse_tester(model)
    require_extra()
    refuse_run_folder(output)
    graph = Deployed(_on_cpu(model), model.size, model.temperature, given).eval()
    axes = (0, 1, 2) if given == "uint8" else (0, 2, 3)
    names = ("batch", "height", "width")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's remarks about its own parts
        program: Any = torch.onnx.export(
            graph, (graph.example(2, model.size + 8, model.size + 16),), dynamo=True, opset_version=OPSET,
            input_names=["images"], output_names=["probabilities"], verbose=False,
            dynamic_shapes=(dict.fromkeys(axes, torch.export.Dim.DYNAMIC),),
        )  # fmt: skip
    _name_axes(program, axes, names)
    program.model.metadata_props.update(onnx_metadata(model, given))
    make_folder(output)
    with atomic_path(output / "model.onnx") as temporary:
        program.save(str(temporary), external_data=False)
        check_onnx(temporary, graph)
    write_text(output / "README.md", onnx_card(model, given))
    return [output / "model.onnx", output / "README.md"]


def require_extra() -> None:
    """Raise `DomainFusionError` naming the extra where a package that ONNX needs is missing."""
    import importlib.util

    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise DomainFusionError(
            f"--format onnx needs {', '.join(missing)}; install the extra: pip install 'domainfusion[export]'"
        )


def _name_axes(program: Any, axes: tuple[int, ...], names: tuple[str, ...]) -> None:
    """Call the axes that may vary batch, height and width, as people read them in viewers."""
    old = [str(program.model.graph.inputs[0].shape[axis]) for axis in axes]
    renamed = dict(zip(old, names, strict=True))
    for value in [*program.model.graph.inputs, *program.model.graph.outputs]:
        value.shape = type(value.shape)([renamed.get(str(d), d if isinstance(d, int) else str(d)) for d in value.shape])


def onnx_metadata(model: Model, given: Input) -> dict[str, str]:
    """What a user of the file needs to know, as ONNX metadata (strings, JSON where they are more than a word)."""
    shape = (
        "(batch, height, width, 3) uint8 RGB" if given == "uint8" else "(batch, 3, height, width) float RGB in [0, 1]"
    )
    return {
        "classes": json.dumps(list(model.classes), ensure_ascii=False), "size": str(model.size),
        "temperature": repr(model.temperature), "mean": json.dumps(model.classifier.mean),
        "std": json.dumps(model.classifier.std), "input": shape,
        "output": "(batch, classes) calibrated probabilities", "backbone": architecture_of(model.config),
        "facts": json.dumps(model.facts, ensure_ascii=False), "domainfusion": __version__,
    }  # fmt: skip


def check_onnx(path: Path, graph: Deployed) -> float:
    """The greatest difference of a probability between the file, in onnxruntime, and `graph`, in PyTorch.

    Raises `DomainFusionError` where it is not within float32's rounding.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    worst = 0.0
    for count, height, width in ((1, graph.size, graph.size), (5, graph.size, graph.size), (3, 3 * graph.size, 17)):
        images = graph.example(count, height, width)
        with torch.no_grad():
            expected = graph(images).numpy()
        found = session.run(["probabilities"], {"images": images.numpy()})[0]
        difference = float(np.abs(found - expected).max()) if found.shape == expected.shape else float("nan")
        if not difference <= TOLERANCE:
            raise DomainFusionError(
                f"the ONNX file and PyTorch differ by {difference:.2g} on {count} images of {width} x {height} "
                f"(allowed: {TOLERANCE:g}), so it was not kept; try another version of onnxruntime or torch"
            )
        worst = max(worst, difference)
    return worst


def onnx_card(model: Model, given: Input) -> str:
    """The model card of an ONNX file."""
    images = "np.asarray(image.convert('RGB'))[None]" + ("" if given == "uint8" else ".transpose(0, 3, 1, 2) / 255")
    images = images if given == "uint8" else f"({images}).astype(np.float32)"
    use = f"""## Use

    import json, numpy as np, onnxruntime
    session = onnxruntime.InferenceSession("model.onnx")
    classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
    p = session.run(None, {{"images": {images}}})[0]      # (batch, classes)
    print(classes[p[0].argmax()], p[0].max())

Resizing, normalisation and temperature are in the graph; images of one batch have one size. Turn images upright first
(`PIL.ImageOps.exif_transpose`), and put transparent ones on white.
"""
    card = build_card(model)
    before, after = card.index("## Use\n"), card.index("The classes, in the order")
    return f"{card[:before]}{use}\n{card[after:]}".replace(f"library_name: {library_of(model)}", "library_name: onnx")
