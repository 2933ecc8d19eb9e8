"""What is no LDM that is loaded: folders that lack parts, ask for code, hold pickles or damaged files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

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
