"""Real small things to test on: folders of PNG images, and a Stable-Diffusion pipeline of a few thousand weights."""

from __future__ import annotations

import os

# Tests fork processes to kill them, and a fork of a process whose OpenMP threads have begun waits for these for ever.
# Set before torch is imported; also two processes with a thread each do not wait for each other's cores.
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

if TYPE_CHECKING:
    from domainfusion.diffusion.ldm import LatentDiffusion

# The same examples every time, and no clock: a test that fails here fails for everybody.
settings.register_profile(
    "tests",
    deadline=None,
    derandomize=True,
    max_examples=50,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.load_profile("tests")

DOMAINS = ("cartoon", "photo", "sketch")
CLASSES = ("cat", "dog", "house")
IMAGES_PER_CLASS = 12


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of its own for every test."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("DOMAINFUSION_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def pacs() -> Path:
    """PACS as it is published, a folder or an archive: where $DOMAINFUSION_PACS says, or beside the checkout."""
    place = Path(os.environ.get("DOMAINFUSION_PACS") or Path(__file__).parents[2] / "shared" / "data" / "pacs128.zip")
    if not place.exists():
        pytest.skip("no copy of PACS here; $DOMAINFUSION_PACS names its folder or archive")
    return place


def draw(domain: int, label: int, number: int, side: int = 20) -> np.ndarray:
    """A (side, side, 3) uint8 picture: the class is where the bright square lies, the domain the ground's colour."""
    rng = np.random.default_rng([domain, label, number])
    ground = np.array([(30, 60, 90), (90, 30, 40), (40, 80, 30)][domain % 3])
    image = np.tile(ground, (side, side, 1)) + rng.integers(0, 20, (side, side, 3))
    third = side // 3
    image[third * label : third * (label + 1), third * label : third * (label + 1)] += 120
    return image.astype(np.uint8)


def write_image_folder(
    root: Path, *, domains: tuple[str, ...] = DOMAINS, classes: tuple[str, ...] = CLASSES,
    count: int = IMAGES_PER_CLASS, missing: tuple[tuple[str, str], ...] = (),
) -> Path:  # fmt: skip
    """`root/domain/class/NN.png` with distinct images; the (domain, class) pairs of `missing` have no folder."""
    for d, domain in enumerate(domains):
        for c, name in enumerate(classes):
            if (domain, name) in missing:
                continue
            folder = root / domain / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(draw(d, c, number)).save(folder / f"{number:02d}.png")
    return root


@pytest.fixture(scope="session")
def write_images() -> Callable[..., Path]:
    """`write_image_folder`, for fixtures that outlive a test."""
    return write_image_folder


@pytest.fixture
def make_image_folder(tmp_path: Path) -> Callable[..., Path]:
    """`make_image_folder(name, domains=, classes=, count=, missing=)`: a new image folder, as `image_folder` is."""

    def make(name: str = "images", **options: object) -> Path:
        return write_image_folder(tmp_path / name, **options)

    return make


@pytest.fixture
def image_folder(make_image_folder: Callable[..., Path]) -> Path:
    """`root/domain/class/image.png`: 3 domains x 3 classes x 12 distinct 20x20 images."""
    return make_image_folder("images")


@pytest.fixture
def image_folder_lacking_class(make_image_folder: Callable[..., Path]) -> Path:
    """As `image_folder`, but the domain `photo` has no folder `dog` (the class in the middle)."""
    return make_image_folder("lacking", missing=(("photo", "dog"),))


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished ERM run on `images` beside it, target `sketch` held out; tests only read or copy it."""
    from domainfusion.config import DataConfig, TrainConfig
    from domainfusion.experiments.runs import train_run

    root = tmp_path_factory.mktemp("trained")
    write_image_folder(root / "images")
    for d, domain in enumerate(DOMAINS):  # a third of the labels are wrong, so that no confidence of 100 % is right
        for c, name in enumerate(CLASSES):
            for number in range(0, IMAGES_PER_CLASS, 3):
                picture = draw(d, (c + 1) % len(CLASSES), 100 + number)
                Image.fromarray(picture).save(root / "images" / domain / name / f"{number:02d}.png")
    # So long that it is too sure of itself: of so few images a temperature below 1 would not be believed.
    config = TrainConfig(
        algorithm="erm", target="sketch", steps=200, evaluations=2, batch_size=8, backbone="test_resnet",
        precision="float32", device="cpu", data=DataConfig(size=32, crop=1, flip=False, jitter=0, grayscale=0),
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOMAINFUSION_CACHE", str(root / "cache"))
        train_run(str(root / "images"), config, root / "run", progress=False)
    return root / "run"


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a real, untrained Stable-Diffusion pipeline: 16x16 images, latents 4x8x8, prompts of 12 tokens x 32.

    `styles.json` beside its parts names the styles "flat" and "ink". Load with `LatentDiffusion.load(str(folder))`.
    """
    import torch
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from domainfusion.diffusion.denoiser_training import build_scheduler
    from domainfusion.diffusion.text_encoder import fit_tokenizer

    folder = tmp_path_factory.mktemp("tiny-pipeline")
    captions = ["a cat, flat", "a dog, ink", "a house, flat", "animal cat", "animal dog", "building house, ink"]
    tokenizer = fit_tokenizer(captions, folder / "tokenizer", vocabulary=300, length=12)
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16), layers_per_block=1, latent_channels=4, norm_num_groups=8, sample_size=16,
        scaling_factor=0.9,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(32, 64), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32, attention_head_dim=2, norm_num_groups=16,
    )  # fmt: skip
    described = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=12, hidden_act="quick_gelu", bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    text_encoder = CLIPTextModel(described)
    torch.random.set_rng_state(state)
    pipeline = StableDiffusionPipeline(
        vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=build_scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    (folder / "styles.json").write_text(json.dumps(["flat", "ink"]), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def exact_ldm(tiny_pipeline: Path) -> LatentDiffusion:
    """The tiny LDM in double precision, where the encoder's difference along p loses no digits that matter."""
    import torch

    from domainfusion.diffusion.ldm import LatentDiffusion

    loaded = LatentDiffusion.load(str(tiny_pipeline), precision="float32")
    return LatentDiffusion(
        loaded.vae.double(), loaded.unet, loaded.text_encoder.double(), loaded.tokenizer, loaded.scheduler,
        dtype=torch.float64,
    )  # fmt: skip
