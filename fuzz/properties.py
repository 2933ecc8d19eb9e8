"""What each reader may do with a file of any content: give back a value, or raise an error of ours of one short line.

Everything else (another exception, a message that repeats the file) gets out of these functions. The tests call them
with content that hypothesis makes (tests/hostile/test_fuzz.py), `python -m fuzz` with content that coverage guides.
Each takes the content of a file and an empty folder to write it to.
"""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
import tomllib
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

from domainfusion.algorithms.classifier import build_classifier
from domainfusion.config import PretrainConfig, TrainConfig
from domainfusion.config_files import build_config, load_toml, to_toml
from domainfusion.data.archives import list_members, open_members
from domainfusion.data.duplicates import print_of_image
from domainfusion.data.imagefolder import find_metadata, list_metadata, why_no_metadata
from domainfusion.data.images import read_image
from domainfusion.errors import DataError, DomainFusionError, FileError, UsageError, printable
from domainfusion.files import hash_of_file, read_json, write_json
from domainfusion.json_lines import read_json_lines
from domainfusion.model import load
from domainfusion.results.collect import collect, tables_json, tables_text
from domainfusion.results.domainbed import read_records
from domainfusion.tensors import checksum, load_newest, load_state, read_tensors, save_state
from domainfusion.training.checkpoint import Progress, load_checkpoint, read_weights, save_checkpoint, save_model

LONGEST = 1000  # characters of a message beside the path in it: a line that people read, not the file once more
UNPACKED = 1 << 16  # bytes of a member that are read: whoever unpacks one decides how much, not the archive


@contextlib.contextmanager
def permitted(*kinds: type[DomainFusionError], naming: str = "") -> Iterator[None]:
    """Let the block end with an error of `kinds`, whose message is a short line that names what was read."""
    try:
        yield
    except kinds as error:
        _check_message(str(error), naming)


def _check_message(text: str, naming: str) -> None:
    line = printable(text)
    assert line.strip(), "an error without a message"
    assert naming in text, f"the message does not name {naming}: {line[:200]}"
    length = len(line.replace(printable(naming), "")) if naming else len(line)
    assert length <= LONGEST, f"a message of {length} characters: {line[:200]}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Remarks of a reader are looked at as errors are, and not printed."""
    with contextlib.redirect_stderr(io.StringIO()) as said:
        yield
    for line in said.getvalue().splitlines():
        _check_message(line, "")


# Options


def options_of_values(values: dict[str, Any], origin: str = "x.toml") -> None:
    """Options from any values: accepted ones are read back equal from what is written of them."""
    for kind in (TrainConfig, PretrainConfig):
        config = None
        with permitted(UsageError, naming=origin):
            config = build_config(kind, values, origin)
        if config is not None:
            assert build_config(kind, tomllib.loads(to_toml(config)), origin) == config


def options(content: bytes, folder: Path) -> None:
    """A file of options (TOML)."""
    path = folder / "x.toml"
    path.write_bytes(content)
    values = None
    with permitted(FileError, UsageError, naming=str(path)):
        values = load_toml(path)
    if values is not None:
        options_of_values(values, str(path))


# Records


def records(content: bytes, folder: Path) -> None:
    """A file of records (`results.jsonl`, `metrics.jsonl`), as lines, as one value, and as the tables of a sweep."""
    path = folder / "results.jsonl"
    path.write_bytes(content)
    with permitted(FileError, naming=str(path)):
        assert all(isinstance(record, dict) for record in read_json_lines(path))
    with permitted(FileError, naming=str(path)):
        read_json(path)
    found = read_records([folder])
    for note in found.notes:
        _check_message(note, str(path))
    with permitted(DomainFusionError):
        tables, _ = collect([folder])
        for form in ("text", "markdown", "latex"):
            assert isinstance(tables_text(tables, form), str)
        json.dumps(tables_json(tables))


# Images

Image.init()  # every format from the start: what is imported later is not instrumented


def image(content: bytes, folder: Path) -> None:
    """One file of an image, of any format that Pillow knows."""
    path = folder / "x.png"
    path.write_bytes(content)
    with warnings.catch_warnings(record=True) as warned, permitted(DataError, naming=str(path)):
        warnings.simplefilter("always")
        found = read_image(path, 8)
        assert found.shape == (8, 8, 3)
        assert found.dtype == np.uint8
    assert not warned, f"a library remarks: {warned[0].message}"
    with warnings.catch_warnings(), permitted(DataError, naming=str(path)):
        warnings.simplefilter("ignore")  # as whoever calls it does, once for all files
        print_of_image(path)


# Checkpoints and states


class Small(torch.nn.Module):
    """A model of one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)


def small_checkpoint(folder: Path, step: int) -> tuple[Small, torch.optim.Adam]:
    """A real checkpoint of a `Small` in `folder`, whose weights are a function of `step`, and what it is of."""
    torch.manual_seed(step)
    module = Small()
    optimizer = torch.optim.Adam(module.parameters())
    module.layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    save_checkpoint(folder, module, optimizer, Progress(step=step), {"meter": {"steps": 0}})
    return module, optimizer


def sealed(tree: str, tensors: dict[str, torch.Tensor]) -> bytes:
    """A file of a state with any `tree`, under a checksum that fits."""
    content: bytes = save(tensors, {"tree": tree, "checksum": checksum(tensors, tree)})
    return content


def state(content: bytes, folder: Path) -> None:
    """A file of a state (safetensors): by itself, and as the newest checkpoint of a run before a good one.

    Content that begins with { is taken for the tree of a state and sealed with a checksum that fits, over the tensors
    of a real checkpoint: chance alone does not find a checksum.
    """
    if content.startswith(b"{"):
        content = sealed(content.decode(errors="replace"), _tensors_of_a_checkpoint())
    path = folder / "x.safetensors"
    path.write_bytes(content)
    with permitted(FileError, naming=str(path)):
        metadata, tensors = read_tensors(path)
        assert all(isinstance(value, str) for value in metadata.values())
        assert all(isinstance(value, torch.Tensor) for value in tensors.values())
    for read in (load_state, read_weights):
        with permitted(FileError, naming=str(path)):
            read(path)
    last, previous = folder / "last.safetensors", folder / "previous.safetensors"
    last.write_bytes(content)
    previous.write_bytes(_good_state())
    with _quiet():
        newest = load_newest([last, previous])
    assert last.exists() or newest == {"step": 1}, "of two states the good one was not read"
    run = folder / "run"
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    (run / "checkpoints" / "last.safetensors").write_bytes(content)
    module = Small()
    with _quiet(), permitted(FileError, naming=str(run)):
        progress, _ = load_checkpoint(run, module, torch.optim.Adam(module.parameters()))
        assert isinstance(progress, Progress)


@cache
def _good_state() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        save_state(Path(folder) / "x", {"step": 1})
        return (Path(folder) / "x").read_bytes()


@cache
def _tensors_of_a_checkpoint() -> dict[str, torch.Tensor]:
    with tempfile.TemporaryDirectory() as folder, _quiet():
        small_checkpoint(Path(folder), 1)
        return read_tensors(Path(folder) / "checkpoints" / "last.safetensors")[1]


# Models

RUN_FILES = ("config.toml", "model.json", "result.json", "calibration.json", "model.safetensors")


@cache
def run_files() -> dict[str, bytes]:
    """What `load` reads of a finished run, by name, of a tiny untrained classifier of two classes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_run(folder)
        return {path.name: path.read_bytes() for path in folder.iterdir()}


def _write_run(folder: Path) -> None:
    config = TrainConfig(algorithm="erm", backbone="test_resnet", precision="float32", device="cpu")
    torch.manual_seed(0)
    save_model(folder, build_classifier(config, 2, initialize=False), {"classes": ["cat", "dog"], "size": 32})
    (folder / "config.toml").write_text(to_toml(config))
    write_json(folder / "result.json", {"validation": 0.5, "target_accuracy": None})
    # The images are not there (the folder is gone by then): where the calibration is damaged, none can be made anew.
    write_json(folder / "data.json", {"data": str(folder / "images"), "fingerprint": "0"})
    fitted_to = hash_of_file(folder / "model.safetensors")
    write_json(folder / "calibration.json", {"temperature": 1.5, "model": fitted_to})


def model(content: bytes, folder: Path) -> None:
    """The folder of a run, one file of which holds something else: the first byte says which, the others what."""
    run = folder / "run"
    run.mkdir(exist_ok=True)
    altered = {RUN_FILES[content[0] % len(RUN_FILES)]: content[1:]} if content else {}
    for file, whole in (run_files() | altered).items():
        (run / file).write_bytes(whole)
    with _quiet(), permitted(DomainFusionError):
        found = load(run, device="cpu")
        assert len(found.classes) == found.classifier.head.out_features
        assert found.temperature > 0


# Archives


def archive(content: bytes, folder: Path) -> None:
    """An archive (.zip where it begins as one does, else .tar, packed or not), listed and read to the end."""
    path = folder / ("x.zip" if content.startswith(b"PK") else "x.tar")
    path.write_bytes(content)
    with permitted(DataError, naming=str(path)):
        members = list_members(path)
        assert not any(member.name.startswith("/") or ".." in member.name.split("/") for member in members)
        for _, file in open_members(members):
            assert len(file.read(UNPACKED)) <= UNPACKED


def metadata(content: bytes, folder: Path) -> None:
    """The metadata of a folder with two images: rows of JSON where it begins with a brace, else CSV."""
    path = folder / ("metadata.jsonl" if content.lstrip().startswith(b"{") else "metadata.csv")
    path.write_bytes(content)
    images = {folder / name for name in ("a.png", "b c.png")}
    for image in images:
        image.touch()
    with permitted(DataError, naming=str(path)):
        files = find_metadata(folder)
        assert files in ([path], [])
        if not files:
            assert path.name in why_no_metadata(folder)
        listing, _ = list_metadata(folder, files)
        assert {image for classes in listing.values() for found in classes.values() for image in found} <= images
