"""Backbones by name and by file, and the type that classifiers compute in."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from domainfusion.algorithms.backbones import STATISTICS, build_backbone, input_statistics
from domainfusion.algorithms.classifier import Classifier, build_classifier, choose_classifier_dtype
from domainfusion.config import TrainConfig
from domainfusion.data.transforms import MEAN, STD
from domainfusion.devices import choose_dtype
from domainfusion.errors import DomainFusionError, FileError, UsageError

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "name", ["torchvision:resnet18", "torchvision:squeezenet1_1", "torchvision:mobilenet_v3_small"]
)
def test_torchvisions_features_are_what_its_last_layer_takes(name: str) -> None:
    from torchvision import models

    short = name.split(":")[1]
    if short.startswith("squeezenet"):
        with pytest.raises(UsageError, match="does not end in one linear layer"):
            build_backbone(TrainConfig(backbone=name))
        return
    torch.manual_seed(0)
    whole = models.get_model(short, weights=None).eval()
    torch.manual_seed(0)
    found = build_backbone(TrainConfig(backbone=name))
    last = [layer for layer in whole.modules() if isinstance(layer, torch.nn.Linear)][-1]
    with torch.no_grad():
        features = found.module.eval()(IMAGES)
        assert features.shape == (2, found.width) == (2, last.in_features)
        assert torch.allclose(last(features), whole(IMAGES), atol=1e-5)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "mobilenetv3_small_050", "regnety_002"])
def test_timms_feature_size_is_found_out(name: str) -> None:
    found = build_backbone(TrainConfig(backbone=name))
    size = 160 if name == "test_vit" else 64
    with torch.no_grad():
        assert found.module.eval()(torch.rand(2, 3, size, size)).shape == (2, found.width)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchvision:resnet81", "unknown backbone 'torchvision:resnet81'; did you mean 'torchvision:resnet18'"),
        ("torchvision:deeplabv3_resnet50", "unknown backbone"),  # no classifier
        ("torchvision:resnet18.IMAGENET1K_V9", "unknown weights 'IMAGENET1K_V9'; did you mean 'IMAGENET1K_V1'"),
        ("torchvision:googlenet", "does not end in one linear layer"),  # auxiliary classifiers beside it
        ("resnet81", "unknown backbone 'resnet81'"),
        ("EFFICIENTNET_LITE0", "did you mean 'efficientnet_lite0'"),
    ],
)
def test_other_names_are_refused_with_the_nearest(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_backbone(TrainConfig(backbone=name))


@pytest.mark.parametrize("name", ["test_resnet.r160_in1k", "torchvision:resnet18"])
def test_published_weights_are_asked_for_where_no_others_are_about_to_be_loaded(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run's model is used where there is no network connection."""
    import timm
    from torchvision import models

    asked = []
    create, get = timm.create_model, models.get_model
    monkeypatch.setattr(timm, "create_model", lambda n, *, pretrained, **o: asked.append(pretrained) or create(n, **o))
    monkeypatch.setattr(models, "get_model", lambda n, *, weights: asked.append(weights is not None) or get(n))
    for initialize in (True, False):
        build_backbone(TrainConfig(backbone=name, pretrained=True), initialize=initialize)
    build_backbone(TrainConfig(backbone=name))
    assert asked == [True, False, False]


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """A whole classifier's weights, its last layer among them."""
    import timm

    torch.manual_seed(5)
    return dict(timm.create_model("test_resnet", num_classes=10).state_dict())


class TestWeightFiles:
    @pytest.mark.parametrize("form", ["safetensors", "plain", "wrapped", "parallel", "without counts"])
    def test_every_form_is_read(self, state: dict[str, torch.Tensor], form: str, tmp_path: Path) -> None:
        path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
        if form == "safetensors":
            save_file(state, str(path))
        elif form == "plain":
            torch.save(state, path)
        elif form == "wrapped":
            torch.save({"state_dict": state, "epoch": 3}, path)
        elif form == "parallel":
            torch.save({f"module.{name}": value for name, value in state.items()}, path)
        else:
            torch.save({name: value for name, value in state.items() if "num_batches" not in name}, path)
        found = build_backbone(TrainConfig(backbone="test_resnet", weights=str(path))).module.state_dict()
        assert len(found) > 10
        for name, value in found.items():
            assert torch.equal(value, state[name]), name

    def test_torchvisions_names_are_taken_too(self, tmp_path: Path) -> None:
        from torchvision import models

        torch.manual_seed(6)
        whole = models.resnet18().eval()
        torch.save(whole.state_dict(), tmp_path / "w.pth")
        for name in ("torchvision:resnet18", "resnet18"):  # of a ResNet both libraries have the same names
            found = build_backbone(TrainConfig(backbone=name, weights=str(tmp_path / "w.pth")))
            with torch.no_grad():
                assert torch.allclose(whole.fc(found.module.eval()(IMAGES)), whole(IMAGES), atol=1e-5)

    def test_they_are_not_looked_for_where_a_runs_own_are_loaded(self) -> None:
        build_classifier(TrainConfig(backbone="test_resnet", weights="gone.pth"), 3, initialize=False)
        with pytest.raises(UsageError, match=r"--weights gone.pth: there is no such file"):
            build_classifier(TrainConfig(backbone="test_resnet", weights="gone.pth"), 3)

    def test_what_does_not_fit_is_named(self, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
        path = tmp_path / "w.safetensors"
        config = TrainConfig(backbone="test_resnet", weights=str(path))
        name = next(iter(state))
        for changed, message in (
            ({key: value for key, value in state.items() if key != name}, f"lacks {name}"),
            (state | {"strange": torch.zeros(1)}, "holds an unknown strange"),
            (state | {name: torch.zeros(1)}, rf"{name} has the shape \[1\]"),
        ):
            save_file(changed, str(path))
            with pytest.raises(FileError, match=message):
                build_backbone(config)
        path.write_bytes(b"nonsense")
        with pytest.raises(FileError, match="not a safetensors file"):
            build_backbone(config)

    def test_a_pickle_runs_no_code(self, tmp_path: Path) -> None:
        class Bomb:
            def __reduce__(self) -> tuple[object, tuple[str]]:
                return Path(tmp_path / "ran").write_text, ("x",)

        path = tmp_path / "w.pth"
        path.write_bytes(pickle.dumps({"a": Bomb()}, protocol=2))
        for write in (lambda: None, lambda: torch.save({"a": Bomb()}, path)):
            write()
            with pytest.raises(FileError, match="holds more than tensors, or is damaged"):
                build_backbone(TrainConfig(backbone="test_resnet", weights=str(path)))
        assert not (tmp_path / "ran").exists()


def test_published_weights_out_of_reach_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(DomainFusionError, match="the backbone test_resnet cannot be built: no network"):
        build_backbone(TrainConfig(backbone="test_resnet", pretrained=True))


def test_images_are_normalised_as_weights_expect() -> None:
    assert input_statistics(TrainConfig(backbone="vit_tiny_patch16_224")) == (MEAN, STD)
    half = ((0.5,) * 3, (0.5,) * 3)
    assert input_statistics(TrainConfig(backbone="vit_tiny_patch16_224", pretrained=True)) == half
    assert input_statistics(TrainConfig(backbone="resnet50.tv_in1k", pretrained=True)) == (MEAN, STD)
    assert input_statistics(TrainConfig(backbone="torchvision:resnet50", pretrained=True)) == (MEAN, STD)
    assert input_statistics(TrainConfig(normalization="lite")) == STATISTICS["lite"]
    chosen = TrainConfig(backbone="vit_tiny_patch16_224", pretrained=True, normalization="imagenet")
    assert input_statistics(chosen) == (MEAN, STD)
    classifier = Classifier(torch.nn.Flatten(), 12, 3, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 1.0))
    pixels = torch.rand(1, 3, 2, 2)
    expected = (pixels[0] - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([0.5, 0.25, 1]).view(3, 1, 1)
    assert torch.allclose(classifier.features(pixels)[0], expected.flatten(), atol=1e-6)


def test_a_classifier_never_computes_in_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    for device in (cpu, cuda):
        assert choose_classifier_dtype("float16", device) == torch.float32
        assert choose_classifier_dtype("float32", device) == torch.float32
        assert choose_classifier_dtype("bfloat16", device) == torch.bfloat16
    # As torch answers on a GPU without bfloat16 of its own, which emulates it: `auto` is float16 there.
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert choose_dtype("auto", cuda) == torch.float16
    assert choose_classifier_dtype("auto", cuda) == torch.float32
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert choose_dtype("auto", cuda) == choose_classifier_dtype("auto", cuda) == torch.bfloat16
