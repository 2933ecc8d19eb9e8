"""predict, explain, export, doctor: a trained model in use, and the machine it is trained on."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from domainfusion.commands.layers import base_options, drawn
from domainfusion.commands.parsing import OTHER_METHODS, Flat, parse, show
from domainfusion.config import GenerateConfig, TrainConfig
from domainfusion.errors import UsageError
from domainfusion.files import check_writable

# What neither takes time nor space, or is not counted.
UNCOUNTED = {
    "--seed", "--lr", "--lr-schedule", "--weight-decay", "--data.augment-validation", "--average", *OTHER_METHODS
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class PredictCommand:
    """Labels and calibrated confidences of images. A file that cannot be read is a row with an error."""

    model: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="MODEL")]
    """Folder of a run, or of an exported model."""
    images: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="IMAGE ...")]
    """Image files, folders (with their subfolders), patterns such as 'new/*.jpg'."""
    output: Path | None = None
    """File to write, its form by its ending: .csv, .json, .parquet (default: CSV to stdout)."""
    format: Literal["csv", "json", "parquet"] | None = None
    """Form of the table."""
    top_k: int = 1
    """Classes named for each image, the most probable first."""
    batch_size: int = 64
    """Images in a pass."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    json: bool = False
    """The same as --format json."""


@dataclasses.dataclass(frozen=True)
class ExplainCommand:
    """Show what a diffusion model, and a classifier, make of one image: a page of pictures, and the figures behind it.

    Heat maps of the labels' words, Diffusion Classifier's scores, what contrast reduction and other corruptions leave,
    what the image becomes when it is redrawn again and again, and the slopes of latent distillation. The first label is
    the matched one, that the others are compared with.
    """

    image: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="IMAGE")]
    """Image file."""
    label: str | None = None
    """The matched label (default: what the classifier says, or the first of --labels)."""
    labels: tuple[str, ...] = ()
    """Labels to compare (default: the classifier's four most probable classes)."""
    ldm: str | None = None
    """Latent diffusion model: embedded, a diffusers folder, or a hub id (default: the run's, or embedded)."""
    run: Path | None = None
    """Folder of a run, or of an exported model: its confidence is shown, and it chooses among candidates."""
    output: Path = Path("explanation")
    """Folder for explain.html, heat.png, ld_noise.png, evolution.png and slopes.png."""
    template: str | None = None
    """Prompt with {label} (default: the run's, or the label itself)."""
    draws: int = 32
    """Draws of timestep and noise that labels are scored on."""
    generations: int = 4
    """How often the image is redrawn under the matched label, each time from what it has become."""
    seed: int = 0
    """Seed of all draws."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    json: bool = False
    """Print the figures as JSON."""


@dataclasses.dataclass(frozen=True)
class ExportCommand:
    """Write a model to deploy: a self-contained folder, or an ONNX file checked against PyTorch."""

    model: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="MODEL")]
    """Folder of a run, or of an exported model."""
    output: Path
    """Folder to write to."""
    format: Literal["folder", "onnx"] = "folder"
    """folder: model.safetensors, config.json and model card; onnx: model.onnx and model card (extra: export)."""
    input: Literal["uint8", "float"] = "uint8"
    """What the ONNX graph takes: uint8 (batch, height, width, 3), or float (batch, 3, height, width) in [0, 1]."""
    benchmark: Path | None = None
    """benchmark.json whose leave-one-domain-out accuracies the card quotes (default: the one the run is part of)."""
    push_to_hub: str = ""
    """OWNER/NAME on the Hugging Face hub that the model is sent to as well (log in first: hf auth login)."""
    private: bool = False
    """Let only its owner see what is new on the hub."""
    json: bool = False
    """Print the files written as JSON."""


@dataclasses.dataclass(frozen=True)
class DoctorCommand:
    """What this machine can do and what will be slow; with DATA, what a run with these options would take.

    Nothing is trained or kept: a few real steps are timed, the rest is counted. Other options of the run are taken too,
    and change nothing.
    """

    hidden: ClassVar[Collection[str]] = UNCOUNTED

    options: Annotated[TrainConfig, Flat]
    data: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="[DATA]")] = None
    """Data set of a planned run: its time, disk and memory are estimated."""
    online: bool = False
    """Also ask whether the model hub can be reached."""
    config: Path | None = None
    """TOML file with the planned run's options; the command line has the last word."""
    json: bool = False
    """Print the findings as JSON."""


def predict(words: list[str]) -> int:
    """`domainfusion predict`; 1 where no image could be read."""
    command = parse(PredictCommand, words, "domainfusion predict")
    if command.top_k < 1 or command.batch_size < 1:
        raise UsageError("--top-k and --batch-size are at least 1")
    if not command.images:  # before a model is loaded for nothing
        raise UsageError("name the images: files, folders (with their subfolders), or patterns such as 'new/*.jpg'")
    from domainfusion.model import load
    from domainfusion.predict import choose_format, run_predictions

    form = choose_format("json" if command.json else command.format, command.output)
    if command.output is not None:
        check_writable(command.output)
    model = load(command.model, device=command.device)
    top_k = min(command.top_k, len(model.classes))
    read = run_predictions(
        model, command.images, top_k=top_k, batch_size=command.batch_size, form=form, output=command.output
    )
    return 0 if read else 1


def explain(words: list[str]) -> None:
    """`domainfusion explain`."""
    command = parse(ExplainCommand, words, "domainfusion explain")
    if command.draws < 2 or not 0 <= command.seed < 2**63:
        raise UsageError("--draws is at least 2, and --seed at least 0")
    if command.generations < 1:
        raise UsageError(f"--generations {command.generations} makes nothing; give 1 or more")
    if not command.image.is_file():
        raise UsageError(f"there is no image {command.image}; give one image file")
    from domainfusion.devices import choose_device
    from domainfusion.diffusion.ldm import LatentDiffusion
    from domainfusion.experiments.explaining import (
        Classes,
        check_template,
        choose_labels,
        class_words,
        explain_image,
        explanation_text,
    )  # fmt: skip
    from domainfusion.model import load

    template = command.template
    if template is not None:
        check_template(template)
    classes, ldm, generate, distill = None, command.ldm or "embedded", GenerateConfig(), None
    if command.run is not None:
        model = load(command.run, device=command.device)
        p = model.probabilities([command.image])[0]
        confidences = {name: float(share) for name, share in zip(model.classes, p, strict=True)}
        held_out = (model.facts.get("target"), model.config.second_target)
        classes = Classes(
            class_words(model.source, model.config, model.classes), confidences, model.judge,
            tuple(name for name in held_out if isinstance(name, str)),
        )  # fmt: skip
        ldm = command.ldm or model.config.ldm_source
        generate, distill = model.config.generate, model.config.distill
    if template is not None:
        generate = dataclasses.replace(generate, plain_template=template, template=f"{template}, {{style}}")
    check_template(generate.plain_template)
    labels = choose_labels(command.label, command.labels, classes)
    found = explain_image(
        command.image, labels, LatentDiffusion.load(ldm, device=choose_device(command.device)), command.output,
        generate=generate, distill=distill, draws=command.draws, generations=command.generations, seed=command.seed,
        classes=classes, run=str(command.run or ""), command=shlex.join(["domainfusion", "explain", *words]),
    )  # fmt: skip
    show(found, explanation_text(found), command.json)


def export(words: list[str]) -> None:
    """`domainfusion export`."""
    command = parse(ExportCommand, words, "domainfusion export")
    from domainfusion.export import export_folder, export_onnx
    from domainfusion.model import load
    from domainfusion.model_card import find_leave_one_out
    from domainfusion.publishing import check_name, push_to_hub

    if command.push_to_hub:
        check_name(command.push_to_hub)  # before anything is written
    elif command.private:
        raise UsageError("--private is about the hub: give --push-to-hub OWNER/NAME too")
    model = load(command.model, device="cpu")
    found = find_leave_one_out(model, command.benchmark)
    if found is not None:
        model.facts["leave_one_domain_out"] = found
    onnx = command.format == "onnx"
    files = export_onnx(model, command.output, command.input) if onnx else export_folder(model, command.output)
    told: dict[str, object] = {"format": command.format, "files": [str(path) for path in files]}
    lines = [str(path) for path in files]
    if command.push_to_hub:
        told["hub"] = push_to_hub(command.output, files, command.push_to_hub, private=command.private)
        lines.append(str(told["hub"]))
    show(told, "\n".join(lines), command.json)


def doctor(words: list[str]) -> int:
    """`domainfusion doctor`; 1 where something stops runs."""
    command = parse(DoctorCommand, words, "domainfusion doctor", base_options(TrainConfig, words))
    from domainfusion.doctor import examine, machine_text, plan, plan_text

    found = examine(online=command.online)
    text = machine_text(found)
    if command.data is not None:
        found["plan"] = plan(command.data, drawn(command.options, command.data, words), found)
        text += f"\n\n{plan_text(found['plan'])}"
    show(found, text, command.json)
    return 1 if found["problems"] else 0
