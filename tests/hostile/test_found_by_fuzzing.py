"""Files that `python -m fuzz` found a reader to fail on, made here from whole ones."""

from __future__ import annotations

import io
import json
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
from fuzz import properties
from PIL import Image

from domainfusion.config import DataConfig, TrainConfig
from domainfusion.config_files import build_config, load_toml
from domainfusion.data.archives import list_members, open_members
from domainfusion.data.domains import load_dataset
from domainfusion.data.duplicates import decode_all
from domainfusion.data.images import read_image
from domainfusion.errors import DataError, FileError, UsageError
from domainfusion.results.collect import collect, tables_text
from domainfusion.results.domainbed import read_records
from domainfusion.tensors import load_state, save_state


def zipped(how: int = zipfile.ZIP_STORED, name: str = "a.png") -> bytearray:
    """An archive of one file of 400 bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", how) as archive:
        archive.writestr(name, bytes(range(200)) * 2)
    return bytearray(file.getvalue())


def altered(start: bytes, offset: int, form: str, *values: Any, **options: Any) -> bytes:
    """The archive with `values` written `offset` bytes after where its part `start` begins."""
    content = zipped(**options)
    struct.pack_into(form, content, content.index(start) + offset, *values)
    return bytes(content)


LOCAL, CENTRAL, END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
ARCHIVES = {
    "a name of no letters": lambda: altered(CENTRAL, 28, "<HHH", 0, 0, 5),
    "a version to come": lambda: altered(CENTRAL, 6, "<B", 235),
    "a name that is no text": lambda: altered(CENTRAL, 8, "<H", 0x800).replace(b"a.png", b"\xa4.png"),
    "another name at the file, no text": lambda: altered(LOCAL, 6, "<H", 0x800).replace(b"a.png", b"\xa4.png", 1),
    "a file before the beginning": lambda: altered(END, 16, "<I", 5000),
    "a broken stream": lambda: altered(LOCAL, 45, "<I", 0, how=zipfile.ZIP_BZIP2),
    "a name of half the archive": lambda: altered(LOCAL, 26, "<H", 400),
    "a link of a long name": lambda: altered(CENTRAL, 38, "<I", 0o120777 << 16, name=2000 * "a"),
}


def read_all(path: Path) -> None:
    for _, file in open_members(list_members(path)):
        file.read()


@pytest.mark.parametrize("damage", ARCHIVES)
def test_a_damaged_archive_is_named_in_a_short_line(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "x.zip"
    path.write_bytes(ARCHIVES[damage]())
    with pytest.raises(DataError) as raised:
        read_all(path)
    assert str(path) in str(raised.value)
    assert len(str(raised.value)) < len(str(path)) + 400


def test_an_error_of_the_disk_stays_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*words: object, **options: object) -> None:
        raise OSError(5, "Input/output error")

    (tmp_path / "x.zip").write_bytes(zipped())
    monkeypatch.setattr(zipfile, "ZipFile", broken)
    with pytest.raises(OSError, match="Input/output error"):
        list_members(tmp_path / "x.zip")


@pytest.mark.parametrize("value", [1e308, -1e308, 1e200, 1.5, -0.1, 10**400])
def test_an_accuracy_that_is_no_share_is_no_record(tmp_path: Path, value: float) -> None:
    """Two trials of such accuracies were too large to take their deviation."""
    record: dict[str, Any] = {
        "args": {"algorithm": "ERM", "dataset": "PACS", "test_envs": [0], "trial_seed": 0}, "step": 1,
        "env0_in_acc": 0.5, "env0_out_acc": 1, "env1_in_acc": 0.0, "env1_out_acc": 0,
    }  # fmt: skip
    odd = {**record, "env0_in_acc": value, "args": {**record["args"], "trial_seed": 1}}
    (tmp_path / "results.jsonl").write_text(f"{json.dumps(odd)}\n{json.dumps(record)}\n")
    found = read_records([tmp_path])
    assert len(found.records) == 1
    assert "line 1: no record (env0_in_acc is" in found.notes[0]
    assert "50.0 +/- 0.0" in tables_text(collect([tmp_path])[0], "text")


LONG = "b" * 3000
OPTIONS = {
    "value": f'steps = "{LONG}"', "name": f"{LONG} = 1", "nested name": f"[data]\n{LONG} = 1",
    "table twice": f"[{LONG}]\n[{LONG}]", "list": f"steps = [{'1, ' * 1000}]", "letters": f"target = {{ {LONG} = 1 }}",
}  # fmt: skip


@pytest.mark.parametrize("kind", OPTIONS)
def test_a_message_about_options_does_not_repeat_the_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.toml"
    path.write_text(OPTIONS[kind] + "\n")
    with pytest.raises(UsageError) as raised:
        build_config(TrainConfig, load_toml(path), str(path))
    assert str(path) in str(raised.value)
    assert len(str(raised.value)) < len(str(path)) + 600


def test_a_message_about_a_state_does_not_repeat_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    save_state(path, {"a": 1})
    header = json.dumps({"__metadata__": {}, "b": {"dtype": LONG, "shape": [], "data_offsets": [0, 0]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(FileError, match="not a safetensors file") as raised:
        load_state(path)
    assert len(str(raised.value)) < len(str(path)) + 400


def test_what_pillow_remarks_about_odd_tags_is_not_printed(tmp_path: Path) -> None:
    path = tmp_path / "photo" / "cat" / "x.jpg"
    path.parent.mkdir(parents=True)
    exif = Image.Exif()
    exif[0x010F] = "maker's name"
    Image.new("RGB", (12, 10), (200, 30, 40)).save(path, exif=exif)
    content = bytearray(path.read_bytes())
    tag = struct.pack(">HHI", 0x010F, 2, len("maker's name") + 1)
    struct.pack_into(">I", content, content.index(tag) + len(tag), 60000)  # where it lies: beyond the end
    path.write_bytes(content)
    with pytest.warns(UserWarning, match="Truncated|Corrupt|Tag data"), Image.open(path) as image:
        image.getexif().get(0x010F)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert abs(read_image(path, 8).astype(int) - (200, 30, 40)).max() < 5
        assert decode_all(tmp_path, {"photo": {"cat": [path]}}, 1, False) == ([], [])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.csv", f"file_name,label,domain\n{300 * 'a'}.png,cat,ink\n"),  # longer than file systems allow
        ("metadata.csv", f"file_name,label,domain\n{200_000 * 'a'},cat,ink\n"),  # than csv allows
        ("metadata.csv", f"{100_000 * 'a'},label\n"),
        ("metadata.jsonl", '{"file_name": ' + 100_000 * "["),
        ("metadata.jsonl", json.dumps({"file_name": "../" + 100_000 * "a", "label": "x", "domain": "y"})),
        ("metadata.jsonl", json.dumps({"file_name": "\ud800", "label": "x", "domain": "y"})),
    ],
)
def test_metadata_that_is_too_much(name: str, content: str, tmp_path: Path) -> None:
    properties.metadata(content.encode(), tmp_path)
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=name.replace(".", r"\.")) as caught:
        load_dataset(str(tmp_path), DataConfig())
    assert len(str(caught.value)) < 1000
