"""Every kind of page that is written, from small runs: what a browser is then asked about."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from domainfusion.cli import run
from domainfusion.config import AuditConfig, DataConfig, DistillConfig, GenerateConfig, TrainConfig
from domainfusion.experiments.auditing import audit_labels
from domainfusion.experiments.reproducing import part_of
from domainfusion.experiments.runs import train_run
from domainfusion.report.html import write_report
from domainfusion.report.pictures import png_uri
from domainfusion.report.tables_page import Part, Picture, write_tables_page
from report.written_runs import add_generations, dump, write_pictures, write_run, write_run_on_all

LONG = "something_of_a_name_that_is_hard_to_set"  # one word, as classes of folders are


def train_both(folder: Path, ldm: Path, write_images: Callable[..., Path]) -> dict[str, Path]:
    """The folders of finished runs of ERM and of DomainFusion on the images in `folder`."""
    images = write_images(folder / "images", count=6)
    shared = {
        "target": "sketch", "steps": 4, "evaluations": 2, "batch_size": 4, "backbone": "test_resnet",
        "precision": "float32", "device": "cpu", "ldm": str(ldm), "data": DataConfig(size=32),
        "generate": GenerateConfig(candidates=2, steps=2, interval=1),
        "distill": DistillConfig(estimator="curve", samples=1, curve_samples=2, curve_rounds=2),
    }  # fmt: skip
    runs = {}
    for name in ("erm", "domainfusion"):
        runs[name] = folder / "runs" / name
        train_run(str(images), TrainConfig(algorithm=name, **shared), runs[name], progress=False)
    return runs


def report_of_two(runs: dict[str, Path], images: Path, ldm: Path, output: Path) -> Path:
    """A report that has every section, heat maps and suspicious labels too."""
    audit_page(images, runs["erm"], ldm, output / "labels", count=12)
    return write_report(list(runs.values()), output / "report.html", heat_maps=True, audits=[output / "labels"])


def report_of_many(output: Path) -> Path:
    """A report on two data sets: several trials, targets and variants, costs of every kind, many and long names."""
    first = write_pictures(output / "a_data_set_with_a_long_name")
    for trial, shift in enumerate((0, 2, 1)):
        for target in ("ink", "pixel"):
            place = output / "runs" / target / str(trial)
            write_run(place / "erm", first, "erm", (8 + shift) / 24, target=target, trial=trial)
            full = write_run(place / "full", first, "domainfusion", (13 + shift) / 24, target=target, trial=trial)
            write_run(place / "none", first, "domainfusion", 0.5, target=target, trial=trial, distill_weight=0.0)
            zero = write_run(place / "zero", first, "diffusion_classifier", 0.4, target=target, trial=trial)
            costs = {"classification_seconds": 12.0, "finetuning_seconds": 4.0, "distillation_seconds": 2.0}
            result = json.loads((zero / "result.json").read_text(encoding="utf-8"))
            dump(zero / "result.json", result | {"costs": costs})
            add_generations(full, first, sheet=False)
    second = write_pictures(output / "other")
    Image.new("RGB", (8, 8), "teal").save(second / "ink" / "plain" / "more.png")  # another data set
    many = write_run(output / "runs" / "many", second, "domainfusion", 0.5)
    for count, folder in ((60, many), (25, write_run(output / "runs" / "some", first, "erm", 0.25, target="photo"))):
        classes = [f"{LONG}_{number}" if number % 7 == 0 else f"class {number}" for number in range(count)]
        for name in ("result.json", "data.json"):
            value = json.loads((folder / name).read_text(encoding="utf-8")) | {"classes": classes}
            if name == "data.json":
                value["fingerprint"] = f"{count} classes"
            else:
                value["confusion"] = np.random.default_rng(0).integers(0, 4, (count, count)).tolist()
            dump(folder / name, value)
    return write_report([output / "runs"], output / "report.html")


def report_of_all_domains(output: Path) -> Path:
    """A report on runs that trained on all domains and left each out in turn, for what to expect on another."""
    images = write_pictures(output / "pictures")
    shares = {"ink": 0.25, "photo": 0.5, "pixel": 0.375}
    write_run_on_all(output / "runs" / "erm", images, "erm", shares)
    write_run_on_all(output / "runs" / "domainfusion", images, "domainfusion", dict.fromkeys(shares, 0.5))
    return write_report([output / "runs"], output / "report.html")


def audit_page(images: Path, trained: Path, ldm: Path, output: Path, *, count: int = 0) -> Path:
    """Suspicious labels, with what a classifier says of them, of `count` images (0: all)."""
    config = AuditConfig(
        ldm=str(ldm), precision="float32", device="cpu", confidences=(0.5, 1.0), pairs=1, rounds=2, keep=1,
        data=DataConfig(size=32), images=count,
    )  # fmt: skip
    audit_labels(str(images), config, output, runs=(trained,), top=12, progress=False)
    return output / "audit.html"


def explain_page(image: Path, trained: Path, ldm: Path, output: Path) -> Path:
    """One image explained, with a classifier."""
    words = ["explain", str(image), "--run", str(trained), "--ldm", str(ldm), "--output", str(output), "--draws", "4"]
    assert run([*words, "--device", "cpu"]) == 0
    return output / "explain.html"


def tables_page(output: Path) -> Path:
    """Reproduced tables: accuracies with the paper's, options, a picture higher than a sheet of paper."""
    rng = np.random.default_rng(0)
    arms = {
        "full": {"title": "DomainFusion, the whole of it", "options": "", "paper": {"OfficeHome": 83.4}},
        "none": {"title": "without distillation", "options": "distill_weight = 0", "paper": {"OfficeHome": 71.2}},
    }
    targets = ("clipart", "flat", "ink", "pixel", "render3d")
    summary = {
        "table": "table4", "dataset": "pictograms", "title": "What distillation brings", "reference": "none",
        "note": "The paper's figures are for `OfficeHome`.", "runs": 29, "planned": 30, "trials": [0, 1, 2],
        "protocol": "strict", "arms": arms,
        "accuracy": {key: {target: rng.uniform(20, 60, 3).tolist() for target in targets} for key in arms},
    }  # fmt: skip
    noise = np.repeat(np.repeat(rng.integers(0, 256, (40, 18, 3), dtype=np.uint8), 40, axis=0), 40, axis=1)
    picture = Picture(png_uri(noise, 1600), "noise", "fig2-pictograms.png")
    figure = Part("fig2-pictograms", "fig2, pictograms", "What a confidence leaves", ("One.",), pictures=(picture,))
    return write_tables_page(
        [part_of(summary), figure], output / "reproduce.html", headline="1 of 1 differences has the paper's sign.",
        command="domainfusion reproduce table4 fig2 --output runs/reproduced_with_a_long_name_of_its_folder",
        environment={"python": "3.11", "gpu": None, "versions": {"torch": "2.14.1"}},
    )  # fmt: skip
