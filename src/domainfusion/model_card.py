"""The model card of an exported model: what it was trained on, how well it does, how it is loaded. Markdown."""

from __future__ import annotations

import statistics
from importlib.metadata import version
from pathlib import Path
from typing import Any

from domainfusion.algorithms.backbones import TORCHVISION
from domainfusion.errors import UsageError
from domainfusion.files import read_json
from domainfusion.model import Model
from domainfusion.results.records import HELD_OUT

CARD = """\
---
library_name: {library}
pipeline_tag: image-classification
tags:
- image-classification
- domain-generalization
- domainfusion
---

# {title}

{summary}

## Accuracy

{accuracy}

## Confidence

{confidence}

## Use

    import domainfusion
    model = domainfusion.load("PATH")                      # this folder
    labels, confidences = model.predict(["image.jpg"])     # paths, PIL images or arrays

or `domainfusion predict PATH IMAGES...`. {alone}

The classes, in the order of the outputs: {classes}.

Images are turned upright, put on white where they are transparent, resized to {size} x {size} (bilinear, sides not kept
in proportion), scaled to [0, 1], and normalised with mean {mean} and standard deviation {std}.

## Limits

The classifier knows these {count} classes alone and answers one of them whatever it is shown. Its weights carry no
licence of their own: what may be done with them follows from the images and the weights that they were trained from.
"""

TIMM = """\
With timm alone (written with timm {version}), dividing by the temperature:

    import timm, torch
    from timm.data import create_transform, resolve_data_config
    model = timm.create_model("local-dir:PATH", pretrained=True).eval()
    transform = create_transform(**resolve_data_config({{}}, model=model))
    p = (model(transform(image.convert("RGB"))[None]) / {temperature!r}).softmax(-1)"""

TORCHVISION_ALONE = """\
With torchvision alone (written with torchvision {version}), dividing by the temperature:

    from safetensors.torch import load_file
    from torchvision.models import get_model
    from torchvision.transforms.v2.functional import normalize, pil_to_tensor
    model = get_model("{name}", num_classes={count})
    model.load_state_dict(load_file("PATH/model.safetensors"))
    image = image.convert("RGB").resize(({size}, {size}), 2)           # 2: bilinear
    pixels = normalize(pil_to_tensor(image)[None] / 255, {mean}, {std})
    p = (model.eval()(pixels) / {temperature!r}).softmax(-1)"""


def find_leave_one_out(model: Model, given: Path | None) -> dict[str, Any] | None:
    """What a benchmark says of the model's algorithm on each held-out domain of its data set, or None.

    {"accuracy": {target: [per cent, by trial]}, "protocol", "command"}, from `given` (benchmark.json, or its folder),
    from the run's own ones without each domain, or from the benchmark that it is part of. Raises `UsageError` where
    `given` is about something else.
    """
    source = model.source.resolve()
    for folder in [given] if given is not None else [source / HELD_OUT, *source.parents[:3]]:
        path = folder / "benchmark.json" if folder.is_dir() else folder
        if given is None and not path.exists():
            continue
        found = read_json(path)
        algorithm, dataset = model.facts.get("algorithm"), model.facts.get("dataset")
        fits = isinstance(found, dict) and found.get("dataset") == dataset and algorithm in found.get("accuracy", {})
        if fits:
            return {
                "accuracy": {name: list(values) for name, values in found["accuracy"][algorithm].items() if values},
                "protocol": found.get("protocol"), "command": found.get("command"),
            }  # fmt: skip
        if given is not None:
            raise UsageError(f"{path} holds no accuracies of {algorithm} on {dataset}, which the model was trained by")
    return None


def build_card(model: Model) -> str:
    """The card of a model as Markdown, with the front matter that model hubs read."""
    facts = model.facts
    mean, std = _numbers(model.classifier.mean), _numbers(model.classifier.std)
    name = model.config.backbone
    named = name.startswith(TORCHVISION)
    alone = (TORCHVISION_ALONE if named else TIMM).format(
        version=version("torchvision" if named else "timm"), temperature=model.temperature, count=len(model.classes),
        name=name.removeprefix(TORCHVISION).partition(".")[0], size=model.size, mean=mean, std=std,
    )  # fmt: skip
    return CARD.format(
        library=library_of(model), title=_plain(f"{facts.get('dataset')}, {facts.get('algorithm')}"),
        summary=_summary(model), accuracy=_accuracy(facts), confidence=_confidence(model), alone=alone,
        classes=", ".join(f"`{_plain(name)}`" for name in model.classes), size=model.size, mean=mean, std=std,
        count=len(model.classes),
    )  # fmt: skip


def library_of(model: Model) -> str:
    """What a hub calls the library that reads a model's folder."""
    return "pytorch" if model.config.backbone.startswith(TORCHVISION) else "timm"


def _plain(text: str) -> str:
    """A name as one line that Markdown's tables and code can hold."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("`", "'")


def _numbers(values: tuple[float, ...]) -> str:
    return f"({', '.join(f'{value:.6g}' for value in values)})"


def _list(names: list[str]) -> str:
    return ", ".join(_plain(name) for name in names)


def _summary(model: Model) -> str:
    facts = model.facts
    start = "published weights" if facts.get("pretrained") else "random weights"
    sources, images = facts.get("sources") or [], facts.get("training_images") or {}
    lines = [
        f"An image classifier of {len(model.classes)} classes: `{model.config.backbone}`, trained from {start} by the "
        f"algorithm `{facts.get('algorithm')}` on the data set {_plain(facts.get('dataset', '?'))} "
        f"({sum(images.values()):,} images of the domains {_list(sources)}; {facts.get('protocol')} splits, "
        f"trial {facts.get('trial')}, seed {facts.get('seed')}; weights of step {facts.get('step')}, chosen on source "
        "validation)."
    ]
    if facts.get("target"):
        lines.append(f"The domain {_plain(facts['target'])} took no part in training or selection.")
    if facts.get("ldm"):
        lines.append(f"Training used the latent diffusion model `{_plain(facts['ldm'])}`; the classifier does not.")
    return " ".join(lines)


def _accuracy(facts: dict[str, Any]) -> str:
    rows = ["| measured on | accuracy | images |", "|---|---|---|"]
    counts = facts.get("validation_images") or {}
    for domain, value in (facts.get("validation") or {}).items():
        images = counts.get(domain, "")
        rows.append(f"| held-out images of {_plain(domain)}, a domain trained on | {100 * value:.1f} % | {images} |")
    if facts.get("target_accuracy") is not None:
        images = facts.get("test_images", "")
        rows.append(
            f"| {_plain(facts['target'])}, a domain never seen | {100 * facts['target_accuracy']:.1f} % | {images} |"
        )
    text = "\n".join(rows) if len(rows) > 2 else "Not recorded: the run had not finished."
    left_out = facts.get("leave_one_domain_out")
    if not left_out:
        if facts.get("target_accuracy") is None:
            text += (
                "\n\nHow well it does on a domain it has not seen was not measured. Figures on domains trained on are "
                "usually higher; `domainfusion benchmark` measures what to expect by leaving each domain out in turn."
            )
        return text
    text += (
        "\n\nWhat to expect on a domain that was not trained on: models trained in the same way with each domain left "
        f"out in turn (`{_plain(left_out.get('command') or 'domainfusion benchmark')}`, {left_out.get('protocol')} "
        "splits) were right on it in\n\n| domain left out | accuracy, mean over trials | trials |\n|---|---|---|\n"
    )
    by_target = left_out["accuracy"]
    text += "\n".join(
        f"| {_plain(domain)} | {statistics.fmean(values):.1f} % | {len(values)} |"
        for domain, values in by_target.items()
    )
    mean = statistics.fmean(statistics.fmean(values) for values in by_target.values())
    return f"{text}\n| average | {mean:.1f} % | |"


def _confidence(model: Model) -> str:
    calibration = model.facts.get("calibration")
    if not calibration:
        return "Not calibrated: confidences are the plain softmax."
    count, (before, after) = calibration["images"], calibration["calibration_error"]
    return (
        f"The logits are divided by the temperature {model.temperature:.4g}, fitted on {count} held-out images of the "
        f"domains trained on. There it changed the expected calibration error from {100 * before:.1f} to "
        f"{100 * after:.1f} points (measured on the images it was fitted to). On other domains confidence is too high "
        "wherever the classifier is worse there."
    )
