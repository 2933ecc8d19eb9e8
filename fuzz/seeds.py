"""What fuzzing begins from: small valid files of every kind, made here, and a few that are odd in a known way."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import tempfile
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from domainfusion.config import PretrainConfig, TrainConfig
from domainfusion.config_files import plain_values, to_toml
from domainfusion.tensors import save_state
from fuzz.properties import RUN_FILES, run_files, small_checkpoint

RECORD: dict[str, Any] = {
    "args": {"algorithm": "ERM", "dataset": "PACS", "test_envs": [0], "trial_seed": 0, "hparams_seed": 0, "seed": 1,
             "holdout_fraction": 0.2, "steps": 5001, "env_names": ["a", "b"]},
    "env0_in_acc": 0.5, "env0_out_acc": 0.4, "env1_in_acc": 0.6, "env1_out_acc": 0.7, "step": 300, "loss": 0.1,
    "hparams": {"lr": 1e-3}, "epoch": 1.0, "step_time": 0.1,
}  # fmt: skip
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM")


def lines_of(*records: Any) -> bytes:
    """Records as lines of JSON."""
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def options() -> list[bytes]:
    """Whole files of both commands, and short ones."""
    short = ["", "steps = 3\n", "[data]\nsize = 32\n", 'target = "sketch"\nlr = 1e-3\n', "[generate]\nsteps = 2\n"]
    whole = [to_toml(TrainConfig()), to_toml(PretrainConfig())]
    return [text.encode() for text in short + whole]


def option_words() -> list[str]:
    """Names of options."""
    values = plain_values(TrainConfig())
    names = list(values) + [name for table in values.values() if isinstance(table, dict) for name in table]
    return sorted({*names, *plain_values(PretrainConfig()), "inf", "nan", "1e400", '"""', "1979-05-27", "true"})


def records() -> list[bytes]:
    """Runs of two trials, of DomainBed's form, of SWAD's, and with two domains held out."""
    args = RECORD["args"]
    other = {**RECORD, "args": {**args, "trial_seed": 1}, "env0_in_acc": 0.25}
    both = {**RECORD, "args": {**args, "test_envs": [0, 1]}, "env2_in_acc": 0.1, "env2_out_acc": 0.2}
    swad = {"args": {"algorithm": "SWAD", "dataset": "PACS", "test_envs": [1], "real_test_envs": [0], "trial_seed": 0},
            "env0_in": 0.5, "env0_out": 0.5, "env1_in": 0.5, "env1_out": 0.5, "step": 3}  # fmt: skip
    steps = [{**RECORD, "step": step} for step in (300, 600, 900)]
    return [lines_of(*steps), lines_of(RECORD, other), lines_of(RECORD, both), lines_of(swad), b"{}\n", b"[1]\n"]


def record_words() -> list[str]:
    """Names of fields and numbers at the edge."""
    return sorted({*RECORD, *RECORD["args"], "env2_out_acc", "real_test_envs", "1e308", "-1e308", "1e999", "NaN",
                   "Infinity", "null", "true", "\\u0000", "[[[[", str(2**63)})  # fmt: skip


@cache
def image_of(form: str) -> bytes:
    """A small picture as a file of the format `form`, turned by its Exif where it can hold that."""
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (12, 10, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 5
    exif[0x010F] = "maker"
    options: dict[str, Any] = {"exif": exif} if form in ("JPEG", "PNG", "WEBP", "TIFF") else {}
    if form == "GIF":
        options = {"save_all": True, "append_images": [picture.rotate(90)]}
    return _encoded(picture, form, **options)


def _encoded(picture: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def image() -> list[bytes]:
    """Every format that is listed, and every mode that is treated by itself."""
    grey = Image.fromarray(np.arange(20, dtype=np.uint8).reshape(4, 5))
    odd = [
        _encoded(grey.convert("LA"), "PNG"), _encoded(grey.convert("RGBA"), "WEBP", lossless=True),
        _encoded(grey.convert("P"), "PNG", transparency=3), _encoded(grey.convert("1"), "TIFF", compression="group4"),
        _encoded(Image.fromarray(np.arange(20, dtype=np.uint16).reshape(4, 5)), "PNG"),
        _encoded(Image.fromarray(np.linspace(0, 1, 20, dtype=np.float32).reshape(4, 5)), "TIFF"),
        _encoded(grey.convert("CMYK"), "JPEG"), b"P2\n2 2\n70000\n0 1 2 70000\n", b"P3 1 1 15 1 2 3",
    ]  # fmt: skip
    return [image_of(form) for form in FORMATS] + odd


def state() -> list[bytes]:
    """A state of every kind of value, a checkpoint, and their trees (see `properties.state`)."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_state(folder / "x", {"a": torch.ones(3), "b": [1, "x", {2: torch.zeros(2, dtype=torch.bfloat16)}]})
        small_checkpoint(folder, 1)
        files = [(folder / "x").read_bytes(), (folder / "checkpoints" / "last.safetensors").read_bytes()]
    headers = [json.loads(file[8 : 8 + int.from_bytes(file[:8], "little")]) for file in files]
    return files + [header["__metadata__"]["tree"].encode() for header in headers]


def state_words() -> list[str]:
    """Kinds of nodes, names of tensors and of what a checkpoint holds."""
    return ["tensor", "dict", "list", "value", "/model/layer.bias", "model", "optimizer", "progress", "extra",
            "records", "param_groups", "state", "metrics.jsonl", "__metadata__", "checksum", "data_offsets", "BF16",
            "F8_E4M3", "1e999", "null", "18446744073709551615"]  # fmt: skip


def metadata() -> list[bytes]:
    """Tables of two images, in both forms, and what is none of ours."""
    rows = [{"file_name": "a.png", "label": "cat", "domain": "ink"},
            {"file_name": "b c.png", "class": "dog, \"odd\"", "domain": "flat"}]  # fmt: skip
    table = b'file_name,label,domain\na.png,cat,ink\n"b c.png","dog, ""odd""",flat\n'
    numbers = b"\xef\xbb\xbffile_name,class,domain\r\na.png,0,ink\r\n"
    captions = lines_of({"file_name": "a.png", "text": "a cat"})
    return [table, numbers, lines_of(*rows), captions, b"file_name\na.png\n", b"{"]


def metadata_words() -> list[str]:
    """Names of columns, and values that are odd."""
    columns = ["file_name", "label", "class", "domain"]
    return [*columns, "a.png", "../", "/", "null", "[[[[", "\\u0000", "\\ud800", '\\"', ","]


def model() -> list[bytes]:
    """Each file of a run that `load` reads, after its number; of the weights, which are long, only the beginning."""
    files = run_files()
    return [bytes([number]) + files[name][:4000] for number, name in enumerate(RUN_FILES)]


def model_words() -> list[str]:
    """Names of fields, and values that are odd."""
    return ["classes", "size", "temperature", "model", "validation", "algorithm", "null", "1e999", "NaN"]


def archive() -> list[bytes]:
    """Archives of both kinds, packed in each way."""
    files = {"a/cat/1.png": b"x" * 40, "a/dog/2.png": bytes(range(40)), "ä.txt": b""}
    found = []
    for packed in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", packed) as zipped:
            for name, content in files.items():
                zipped.writestr(zipfile.ZipInfo(name), content, packed)
        found.append(file.getvalue())
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=form) as tar:
            for name, content in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        found.append(file.getvalue().rstrip(b"\0") + bytes(1024))
    return [*found, gzip.compress(found[-1], mtime=0)]


def archive_words() -> list[str]:
    """Beginnings of parts, and names that lead out."""
    return ["PK\\x01\\x02", "PK\\x03\\x04", "PK\\x05\\x06", "PK\\x06\\x06", "PK\\x06\\x07", "ustar", "../", "C:",
            "\\x01\\x00", "\\xff\\xff\\xff\\xff", "path=", "size=", "GNU.sparse.map="]  # fmt: skip
