"""Folders and names that an LDM is loaded from: what is one, what is refused, and the styles that it knows."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from domainfusion.errors import LDMError, NoLDM

PARTS = ("vae", "unet", "text_encoder", "tokenizer", "scheduler")
KINDS = {"vae": "AutoencoderKL", "unet": "UNet2DConditionModel", "text_encoder": "CLIPTextModel"}


def embedded_folder() -> Path:
    """The folder of the embedded LDM. Raises `LDMError` where the installation lacks it."""
    folder = Path(str(files("domainfusion") / "diffusion" / "weights"))
    if not (folder / "model_index.json").exists():
        raise LDMError(f"the embedded LDM is not installed ({folder} has no model_index.json); reinstall domainfusion")
    return folder


def check_folder(folder: Path) -> None:
    """Raise `LDMError` where a local folder is no Stable-Diffusion-like pipeline, saying which part is missing."""
    index = folder / "model_index.json"
    if not index.is_file():
        raise NoLDM(f"{folder} is no diffusers pipeline: model_index.json is missing")
    try:
        described = json.loads(index.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise LDMError(f"{index} is not JSON: {error}") from error
    if not isinstance(described, dict):
        raise LDMError(f"{index} does not describe a diffusers pipeline")
    _refuse_code(folder, described)
    for part in PARTS:
        entry = described.get(part)
        if not (folder / part).is_dir() or not isinstance(entry, list) or not entry or entry[0] is None:
            raise LDMError(f"{folder} is not Stable-Diffusion-like: its part {part!r} is missing")
        if entry[0] not in ("diffusers", "transformers"):
            raise LDMError(f"{folder}: part {part!r} asks for code of its own ({entry[0]}), which is never run")
    for part, kind in KINDS.items():
        if described[part][1:] != [kind]:
            raise LDMError(f"{folder}: its {part} is a {' '.join(map(str, described[part][1:]))}, not a {kind}")
        if not (folder / part / "config.json").is_file():
            raise LDMError(f"{folder}: {part}/config.json is missing")
        if not any((folder / part).glob("*.safetensors*")):
            raise LDMError(f"{folder}: {part} has no safetensors weights (pickled .bin files are not loaded)")


def is_hub_id(source: str) -> bool:
    """Whether `source` names a model of the hub, which may have to be fetched: OWNER/NAME, and no folder here.

    >>> is_hub_id("CompVis/stable-diffusion-v1-4"), is_hub_id("embedded"), is_hub_id("./ldm"), is_hub_id("/a/b")
    (True, False, False, False)
    """
    return source.count("/") == 1 and not source.startswith((".", "/", "~")) and not Path(source).exists()


def _refuse_code(folder: Path, index: dict[str, Any]) -> None:
    """Raise `LDMError` where a folder asks for code of its own, by diffusers' ways or by transformers'.

    Nothing here would run it, but whoever made the folder meant it to be run: without, the LDM is not what they made.
    """
    if not isinstance(index.get("_class_name"), str | None) or "custom_pipeline" in index or "auto_map" in index:
        raise LDMError(f"{folder}: model_index.json asks for a pipeline of its own, whose code is never run")
    for part in PARTS:
        for path in sorted((folder / part).glob("*.json")):
            if path.stat().st_size > 1 << 20:  # vocabularies; what is asked for stands in small files
                continue
            try:
                described = json.loads(path.read_text(encoding="utf-8"))
            except (ValueError, OSError, RecursionError) as error:
                raise LDMError(f"{path} cannot be read as JSON: {error}") from error
            if isinstance(described, dict) and {"auto_map", "custom_pipeline"} & set(described):
                raise LDMError(f"{path} asks for code of its own (auto_map), which is never run")


def read_styles(folder: Path) -> tuple[str, ...]:
    """The style words that an LDM was captioned with (`styles.json` beside its parts), or none."""
    path = folder / "styles.json"
    if not path.is_file():
        return ()
    try:
        styles = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise LDMError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(styles, list) or not all(isinstance(style, str) for style in styles):
        raise LDMError(f"{path} is no list of style words")
    return tuple(styles)
