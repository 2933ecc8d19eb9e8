"""What is no LDM that is loaded: folders that lack parts, ask for code, hold pickles or damaged files."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.diffusion.ldm_folder import PARTS
from domainfusion.errors import LDMError


@pytest.fixture
def broken(tiny_pipeline: Path, tmp_path: Path) -> Path:
    """A copy of the pipeline that a test may damage."""
    return Path(shutil.copytree(tiny_pipeline, tmp_path / "broken"))


def edit_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_unknown_prediction_type_is_refused(broken: Path) -> None:
    edit_json(broken / "scheduler" / "scheduler_config.json", prediction_type="flow_prediction")
    with pytest.raises(LDMError, match="flow_prediction"):
        LatentDiffusion.load(str(broken))


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_part_is_named(broken: Path, part: str) -> None:
    shutil.rmtree(broken / part)
    with pytest.raises(LDMError, match=f"part '{part}' is missing"):
        LatentDiffusion.load(str(broken))


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_the_index_leaves_out_is_named(broken: Path, part: str) -> None:
    edit_json(broken / "model_index.json", **{part: [None, None]})
    with pytest.raises(LDMError, match=f"part '{part}' is missing"):
        LatentDiffusion.load(str(broken))


@pytest.mark.parametrize("part", PARTS)
def test_code_of_the_folders_own_is_refused_and_not_run(broken: Path, part: str) -> None:
    (broken / part / "my_code.py").write_text(f"open({str(broken / 'ran')!r}, 'w')\nclass Mine: ...\n")
    edit_json(broken / "model_index.json", **{part: ["my_code", "Mine"]})
    with pytest.raises(LDMError, match=r"code of its own \(my_code\), which is never run"):
        LatentDiffusion.load(str(broken))
    assert not (broken / "ran").exists()


@pytest.mark.parametrize("part", ["vae", "unet", "text_encoder"])
def test_pickled_weights_are_refused(broken: Path, part: str) -> None:
    (weights,) = (broken / part).glob("*.safetensors")
    torch.save(load_file(weights), broken / part / "diffusion_pytorch_model.bin")
    weights.unlink()
    with pytest.raises(LDMError, match=f"{part} has no safetensors weights"):
        LatentDiffusion.load(str(broken))


@pytest.mark.parametrize("part", ["vae", "unet", "text_encoder"])
def test_truncated_weights_are_one_line(broken: Path, part: str) -> None:
    (weights,) = (broken / part).glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(LDMError, match="cannot be loaded") as caught:
        LatentDiffusion.load(str(broken))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", '"vae"', '{"vae": 3}', '{"vae": []}'])
def test_a_broken_index_is_refused(broken: Path, text: str) -> None:
    (broken / "model_index.json").write_text(text)
    with pytest.raises(LDMError):
        LatentDiffusion.load(str(broken))


def test_no_folder_no_pipeline_no_file(tmp_path: Path) -> None:
    with pytest.raises(LDMError, match=r"there is no folder .*nowhere"):
        LatentDiffusion.load(str(tmp_path / "nowhere"))
    with pytest.raises(LDMError, match=r"model_index\.json is missing"):
        LatentDiffusion.load(str(tmp_path))
    (tmp_path / "file").write_text("x")
    with pytest.raises(LDMError, match=r"model_index\.json is missing"):
        LatentDiffusion.load(str(tmp_path / "file"))


@pytest.mark.parametrize("part", ["vae", "unet", "text_encoder"])
def test_weights_that_are_missing_are_not_made_up(tiny_pipeline: Path, tmp_path: Path, part: str) -> None:
    """The libraries would draw them at random, another LDM each time, and say nothing."""
    folder = shutil.copytree(tiny_pipeline, tmp_path / "ldm")
    (path,) = (folder / part).glob("*.safetensors")
    weights = load_file(path)
    gone = sorted(weights)[0]
    save_file({name: value for name, value in weights.items() if name != gone}, path, metadata={"format": "pt"})
    with pytest.raises(LDMError, match=f"{part} lacks the weights "):
        LatentDiffusion.load(str(folder))
    save_file({f"module.{name}": value for name, value in weights.items()}, path, metadata={"format": "pt"})
    with pytest.raises(LDMError):
        LatentDiffusion.load(str(folder))


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("unet", {"num_class_embeds": 10}, "asks for more than a prompt (num_class_embeds"),
        ("unet", {"time_cond_proj_dim": 8}, "asks for more than a prompt (time_cond_proj_dim"),
        ("unet", {"out_channels": 8}, "gives 8 channels for 4"),
        ("unet", {"sample_size": None}, "does not say at which size it was trained"),
        ("unet", {"cross_attention_dim": [48, 48]}, "and its text encoder gives 32"),
        ("unet", {"cross_attention_dim": 48}, "reads prompts of 48 numbers, and its text encoder gives 32"),
    ],
)
def test_a_denoiser_of_another_kind_is_refused_at_once(
    tiny_pipeline: Path, part: str, changes: dict[str, Any], message: str
) -> None:
    whole = LatentDiffusion.load(str(tiny_pipeline))
    config = dict(whole.unet.config) | changes
    unet = UNet2DConditionModel(**{name: value for name, value in config.items() if not name.startswith("_")})
    with pytest.raises(LDMError, match=re.escape(message)):
        LatentDiffusion(whole.vae, unet, whole.text_encoder, whole.tokenizer, whole.scheduler)


def test_another_kind_of_text_encoder_is_refused(tiny_pipeline: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_pipeline, tmp_path / "ldm")
    index = json.loads((folder / "model_index.json").read_text())
    index["text_encoder"] = ["transformers", "T5EncoderModel"]
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(LDMError, match="its text_encoder is a T5EncoderModel, not a CLIPTextModel"):
        LatentDiffusion.load(str(folder))


def test_prompts_that_are_cut_are_told(tiny_pipeline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ldm = LatentDiffusion.load(str(tiny_pipeline))
    assert ldm.tokenizer.model_max_length == 12
    ldm.prompt_embeds(["a cat", "a dog, ink"])
    assert capsys.readouterr().err == ""
    long = " ".join(["cat"] * 12)
    found = ldm.prompt_embeds([f"{long} well", f"{long} badly", "a cat"])
    assert torch.equal(found[0], found[1])
    said = capsys.readouterr().err
    assert said.count("reads 12 tokens of a prompt") == 1
    assert f"the prompts '{long} badly' and '{long} well' are the same to it" in said
