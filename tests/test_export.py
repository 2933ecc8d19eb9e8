"""Exported models say what the run's model says: the folder by `load` and by timm, the ONNX file by onnxruntime."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import create_transform, resolve_data_config

import domainfusion
from domainfusion import export
from domainfusion.cli import run
from domainfusion.errors import DomainFusionError, FileError, UsageError
from domainfusion.files import read_json, write_json
from domainfusion.model import Model


@pytest.fixture(scope="module")
def model(trained_run: Path) -> Model:
    return domainfusion.load(trained_run)


@pytest.fixture(scope="module")
def pictures(trained_run: Path) -> list[Path]:
    return sorted((trained_run.parent / "images").rglob("*.png"))[::5]


@pytest.fixture(scope="module")
def exported(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "model"
    assert run(["export", str(trained_run), "--output", str(folder)]) == 0
    return folder


class TestFolder:
    def test_is_read_back_with_equal_answers(self, model: Model, exported: Path, pictures: list[Path]) -> None:
        assert sorted(path.name for path in exported.iterdir()) == ["README.md", "config.json", "model.safetensors"]
        again = domainfusion.load(exported)
        assert (again.classes, again.size, again.temperature) == (model.classes, model.size, model.temperature)
        assert again.facts == model.facts
        assert len({path.stat().st_mode for path in exported.iterdir()}) == 1  # readable to whom the card is
        assert (again.probabilities(pictures) == model.probabilities(pictures)).all()

    def test_needs_nothing_but_itself(self, exported: Path, tmp_path: Path, pictures: list[Path]) -> None:
        moved = shutil.copytree(exported, tmp_path / "else" / "where")
        assert domainfusion.load(moved).predict(pictures[:2]).labels

    def test_timm_reads_it_and_prepares_images_alike(self, model: Model, exported: Path, pictures: list[Path]) -> None:
        expected = model.probabilities(pictures)
        by_folder = timm.create_model(f"local-dir:{exported}", pretrained=True).eval()
        by_file = timm.create_model(
            "test_resnet", num_classes=3, checkpoint_path=str(exported / "model.safetensors")
        ).eval()
        transform = create_transform(**resolve_data_config({}, model=by_folder))
        batch = torch.stack([transform(Image.open(path).convert("RGB")) for path in pictures])
        assert batch.shape[1:] == (3, 32, 32)
        for theirs in (by_folder, by_file):
            with torch.no_grad():
                p = (theirs(batch) / model.temperature).softmax(-1).numpy()
            assert p == pytest.approx(expected, abs=1e-5)
        assert by_folder.pretrained_cfg["label_names"] == list(model.classes)

    def test_the_card_tells_what_a_user_must_know(self, trained_run: Path, exported: Path) -> None:
        card = ModelCard.load(exported / "README.md")
        assert card.data.pipeline_tag == "image-classification"
        result = read_json(trained_run / "result.json")
        for domain, value in result["validation"].items():
            assert f"| held-out images of {domain}, a domain trained on | {100 * value:.1f} % | 7 |" in card.text
        assert f"| sketch, a domain never seen | {100 * result['target_accuracy']:.1f} % | 29 |" in card.text
        assert "58 images of the domains cartoon, photo; domainbed splits, trial 0, seed 0" in card.text
        assert "`cat`, `dog`, `house`" in card.text
        assert "not measured" not in card.text

    def test_the_code_of_the_card_runs(self, exported: Path, pictures: list[Path], model: Model) -> None:
        text = (exported / "README.md").read_text()
        code = "\n".join(line[4:] for line in text.splitlines() if line.startswith("    "))
        code = code.replace("PATH", str(exported)).replace("image.jpg", str(pictures[0]))
        scope: dict[str, Any] = {"image": Image.open(pictures[0])}
        exec(code, scope)
        assert scope["labels"] == model.predict(pictures[:1]).labels
        assert scope["p"].detach().numpy() == pytest.approx(model.probabilities(pictures[:1]), abs=1e-5)

    def test_accuracies_of_a_benchmark_are_quoted(self, trained_run: Path, tmp_path: Path) -> None:
        described = {
            "dataset": "images", "protocol": "domainbed", "command": "domainfusion benchmark images",
            "accuracy": {"erm": {"cartoon": [50.0, 60.0], "photo": [20.0]}, "domainfusion": {"cartoon": [99.0]}},
        }  # fmt: skip
        write_json(tmp_path / "b" / "benchmark.json", described)
        inside = shutil.copytree(trained_run, tmp_path / "b" / "erm" / "sketch" / "trial-0")
        assert run(["export", str(inside), "--output", str(tmp_path / "m1")]) == 0  # found above the run
        words = ["export", str(trained_run), "--benchmark", str(tmp_path / "b"), "--output", str(tmp_path / "m2")]
        assert run(words) == 0
        for name in ("m1", "m2"):
            text = (tmp_path / name / "README.md").read_text()
            assert "| cartoon | 55.0 % | 2 |\n| photo | 20.0 % | 1 |\n| average | 37.5 % | |" in text
            assert "99.0" not in text
        write_json(tmp_path / "b" / "benchmark.json", described | {"dataset": "other"})
        assert run(words) == 2

    def test_it_does_not_write_into_a_run(self, trained_run: Path, tmp_path: Path, model: Model) -> None:
        copied = shutil.copytree(trained_run, tmp_path / "run")
        with pytest.raises(UsageError, match="the folder of a run"):
            export.export_folder(model, copied)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"classes": []}, "classes is a list of names"),
            ({"classes": ["cat", "dog"]}, r"head\.bias has the shape \[3\], not \[2\]"),
            ({"size": "32"}, "size is a number of pixels"),
            ({"head": None}, "head is the name"),
            ({"head": "last"}, r"lacks head\.bias"),
            ({"mean": [0, 0, 0]}, "mean and std are not those"),
            ({"temperature": 0}, "temperature is a number above 0"),
            ({"backbone": "hf-hub:someone/something"}, "unknown backbone"),
            ({"backbone": "resnet18"}, "another architecture"),
            ({"precision": "float8"}, "precision"),
        ],
    )
    def test_an_altered_description_is_refused(
        self, exported: Path, tmp_path: Path, change: dict[str, Any], message: str
    ) -> None:
        folder = shutil.copytree(exported, tmp_path / "altered")
        config = read_json(folder / "config.json")
        config["domainfusion"].update(change)
        write_json(folder / "config.json", config)
        with pytest.raises(DomainFusionError, match=message) as caught:
            domainfusion.load(folder)
        assert "\n" not in str(caught.value)

    def test_missing_weights_are_named(self, exported: Path, tmp_path: Path) -> None:
        folder = shutil.copytree(exported, tmp_path / "altered")
        tensors = load_file(folder / "model.safetensors")
        tensors.pop("layer1.0.conv1.weight")
        save_file(tensors, folder / "model.safetensors")
        with pytest.raises(FileError, match=r"lacks backbone\.layer1\.0\.conv1\.weight"):
            domainfusion.load(folder)
        (folder / "model.safetensors").unlink()
        with pytest.raises(FileError, match=r"lacks model\.safetensors"):
            domainfusion.load(folder)


@pytest.mark.parametrize(
    "name",
    [
        "test_vit", "test_convnext", "test_efficientnet", "resnet10t", "mobilenetv3_small_050",
        "torchvision:mobilenet_v3_small",
    ],
)  # fmt: skip
def test_every_kind_of_backbone_goes_into_its_librarys_layout(name: str, model: Model, tmp_path: Path) -> None:
    from domainfusion.algorithms.classifier import build_classifier

    config = dataclasses.replace(model.config, backbone=name)
    size = 160 if name == "test_vit" else 64
    torch.manual_seed(0)
    classifier = build_classifier(config, 3).eval()
    other = dataclasses.replace(model, classifier=classifier, config=config, size=size)
    export.export_folder(other, tmp_path / name)
    pixels = export._probes(size, 2)
    assert (domainfusion.load(tmp_path / name).logits(pixels) == other.logits(pixels)).all()


def test_the_statistics_that_images_are_normalised_with_go_with_it(model: Model, tmp_path: Path) -> None:
    classifier = copy.deepcopy(model.classifier)
    classifier.mean, classifier.std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    other = dataclasses.replace(model, classifier=classifier)
    export.export_folder(other, tmp_path)
    pixels = export._probes(model.size, 2)
    assert (domainfusion.load(tmp_path).logits(pixels) == other.logits(pixels)).all()
    assert (other.logits(pixels) != model.logits(pixels)).any()


def test_torchvision_alone_reads_a_folder_of_its_backbone(model: Model, tmp_path: Path, pictures: list[Path]) -> None:
    from domainfusion.algorithms.classifier import build_classifier

    config = dataclasses.replace(model.config, backbone="torchvision:resnet18.IMAGENET1K_V1")
    torch.manual_seed(0)
    classifier = build_classifier(config, 3, initialize=False).eval()
    other = dataclasses.replace(model, classifier=classifier, config=config, temperature=2.0)
    export.export_folder(other, tmp_path)
    assert ModelCard.load(tmp_path / "README.md").data.library_name == "pytorch"
    text = (tmp_path / "README.md").read_text()
    code = "\n".join(line[4:] for line in text.splitlines() if line.startswith("    "))
    scope: dict[str, Any] = {"image": Image.open(pictures[0])}
    exec(code.replace("PATH", str(tmp_path)).replace("image.jpg", str(pictures[0])), scope)
    assert scope["p"].detach().numpy() == pytest.approx(other.probabilities(pictures[:1]), abs=1e-5)


def test_a_backbone_with_two_heads_is_refused(model: Model, tmp_path: Path) -> None:
    config = dataclasses.replace(model.config, backbone="deit_tiny_distilled_patch16_224")
    classifier = export.copy.deepcopy(model.classifier)
    classifier.backbone.pretrained_cfg = {"classifier": ("head", "head_dist")}
    with pytest.raises(DomainFusionError, match="no single last layer"):
        export.export_folder(dataclasses.replace(model, classifier=classifier, config=config), tmp_path / "m")
    assert not (tmp_path / "m").exists()


@pytest.fixture(scope="module")
def made(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """An exported ONNX folder, and what torch.onnx.export gave (it is slow: once is enough)."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    folder, given = tmp_path_factory.mktemp("onnx"), []
    original = torch.onnx.export
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.onnx, "export", lambda *a, **b: given.append(original(*a, **b)) or given[-1])
        assert run(["export", str(trained_run), "--format", "onnx", "--output", str(folder)]) == 0
    return folder, given[0]


class TestOnnx:
    @pytest.fixture
    def folder(self, made: tuple[Path, Any]) -> Path:
        return made[0]

    @staticmethod
    def session(folder: Path) -> Any:
        import onnxruntime

        return onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])

    def test_agrees_with_the_model_for_any_batch(self, folder: Path, model: Model, pictures: list[Path]) -> None:
        session = self.session(folder)
        (given,) = session.get_inputs()
        assert (given.name, given.shape, given.type) == (
            "images", ["batch", "height", "width", 3], "tensor(uint8)",
        )  # fmt: skip
        assert session.get_outputs()[0].shape == ["batch", 3]
        sized = np.stack([model.pixels(path) for path in pictures])  # at the model's size: nothing is resized
        for count in (1, 4, len(sized)):
            p = session.run(None, {"images": sized[:count]})[0]
            assert p == pytest.approx(model.probabilities(pictures[:count]), abs=1e-5)
        # At the pictures' own size the graph resizes as Pillow does, but for Pillow's rounding to whole numbers.
        raw = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in pictures])
        assert raw.shape[1:] == (20, 20, 3)
        p = session.run(None, {"images": raw})[0]
        assert p == pytest.approx(model.probabilities(pictures), abs=0.02)

    def test_the_metadata_describe_it(self, folder: Path, model: Model) -> None:
        found = self.session(folder).get_modelmeta().custom_metadata_map
        assert json.loads(found["classes"]) == list(model.classes)
        assert (int(found["size"]), float(found["temperature"])) == (model.size, model.temperature)
        assert json.loads(found["facts"])["sources"] == ["cartoon", "photo"]

    def test_the_code_of_the_card_runs(
        self, folder: Path, model: Model, pictures: list[Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        text = (folder / "README.md").read_text()
        code = "\n".join(line[4:] for line in text.splitlines() if line.startswith("    "))
        exec(code.replace("model.onnx", str(folder / "model.onnx")), {"image": Image.open(pictures[0])})
        label, confidence = capsys.readouterr().out.split()
        labels, confidences = model.predict(pictures[:1])
        assert label == labels[0]
        assert float(confidence) == pytest.approx(confidences[0], abs=0.02)

    def test_float_input(self, exported: Path, model: Model, tmp_path: Path, pictures: list[Path]) -> None:
        pytest.importorskip("onnxruntime")
        words = ["export", str(exported), "--format", "onnx", "--input", "float", "--output", str(tmp_path)]
        assert run(words) == 0
        sized = np.stack([model.pixels(path) for path in pictures])
        images = (sized.transpose(0, 3, 1, 2) / 255).astype(np.float32)
        p = self.session(tmp_path).run(None, {"images": images})[0]
        assert p == pytest.approx(model.probabilities(pictures), abs=1e-5)

    def test_a_file_that_differs_is_not_kept(
        self, made: tuple[Path, Any], model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch.onnx, "export", lambda *a, **b: made[1])
        assert export.export_onnx(model, tmp_path / "same")
        hotter = dataclasses.replace(model, temperature=2 * model.temperature)
        with pytest.raises(DomainFusionError, match=r"the ONNX file and PyTorch differ by 0\.\d+ on 1 images"):
            export.export_onnx(hotter, tmp_path / "other")
        assert list((tmp_path / "other").iterdir()) == []

    def test_a_missing_extra_is_named(
        self, trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        import importlib.util

        find = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
        assert run(["export", str(trained_run), "--format", "onnx", "--output", str(tmp_path / "o")]) == 1
        assert "needs onnxscript; install the extra: pip install 'domainfusion[export]'" in capsys.readouterr().err
        assert not (tmp_path / "o").exists()
