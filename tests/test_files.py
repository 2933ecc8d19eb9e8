from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domainfusion.errors import FileError
from domainfusion.files import (
    atomic_path,
    cache_folder,
    check_writable,
    hash_of,
    hash_of_file,
    keep_also,
    make_folder,
    read_json,
    reserve,
    write_json,
    write_text,
)


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOMAINFUSION_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("DOMAINFUSION_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "domainfusion"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "domainfusion"


def test_a_folder_below_a_file_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="file: a file is there"):
        make_folder(tmp_path / "file")
    with pytest.raises(
        FileError, match=r"cannot make the folder .*file/run: Not a directory; choose another \(that of the cache"
    ):
        make_folder(tmp_path / "file" / "run")


def test_atomic_write_makes_parents_and_leaves_only_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "text.txt"
    write_text(path, "x – ü 🐱\n")
    assert path.read_text(encoding="utf-8") == "x – ü 🐱\n"
    assert os.listdir(path.parent) == ["text.txt"]


def test_atomic_write_leaves_a_file_that_others_may_read_as_any_other(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("x")
    with atomic_path(tmp_path / "private") as temporary:
        temporary.write_text("x")
        temporary.chmod(0o600)
    assert (tmp_path / "private").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_where_nothing_can_be_written_the_file_is_named_and_not_the_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*arguments: object, **options: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(tmp_path / ".x.tmp"))

    monkeypatch.setattr(Path, "unlink", read_only)
    monkeypatch.setattr(Path, "write_text", read_only)
    with pytest.raises(FileError, match=r"cannot write .*/x\.csv: Read-only file system") as caught:
        write_text(tmp_path / "x.csv", "a")
    assert ".tmp" not in str(caught.value)


def test_whether_a_file_could_be_written_is_known_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_writable(tmp_path / "new" / "x.csv")
    assert list((tmp_path / "new").iterdir()) == []
    with pytest.raises(FileError, match="it is a folder; name a file in it"):
        check_writable(tmp_path)
    with pytest.raises(FileError, match="it is a folder; name a file in it"):
        write_text(tmp_path, "a")

    def read_only(*arguments: object, **options: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", read_only)
    with pytest.raises(FileError, match=r"cannot write .*/x\.csv: Read-only file system"):
        check_writable(tmp_path / "x.csv")


def test_atomic_write_keeps_the_old_file_where_the_writer_fails(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("old")

    def write() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half of the n")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["text.txt"]


def test_readers_see_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("old")
    with path.open() as reader:
        with atomic_path(path) as temporary:
            temporary.write_text("new")
            assert path.read_text() == "old"
        assert path.read_text() == "new"
        assert reader.read() == "old"  # whoever had it open reads on in the old one


@pytest.mark.parametrize(("number", "remedy"), [(errno.ENOSPC, "free some space"), (errno.EACCES, "permissions")])
def test_a_failing_disk_is_named_with_a_remedy(tmp_path: Path, number: int, remedy: str) -> None:
    path = tmp_path / "text.txt"
    path.write_text("old")

    def write() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise OSError(number, os.strerror(number))

    with pytest.raises(FileError, match=f"cannot write .*text.txt.*{remedy}"):
        write()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["text.txt"]


def test_what_is_written_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power cut a file system may know a new name, and not yet what is under it."""
    path, seen, fsync = tmp_path / "text.txt", [], os.fsync

    def flush(descriptor: int) -> None:
        seen.append((os.pread(descriptor, 100, 0), path.exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", flush)
    write_text(path, "new")
    assert seen == [(b"new", False)]


@pytest.mark.parametrize("links", [True, False])
def test_a_file_is_also_kept_under_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    path, other = tmp_path / "last", tmp_path / "previous"

    def unsupported(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    if not links:
        monkeypatch.setattr(os, "link", unsupported)
    path.write_text("first")
    other.write_text("older")
    keep_also(path, other)
    assert (path.read_text(), other.read_text()) == ("first", "first")
    write_text(path, "second")
    assert other.read_text() == "first"
    assert sorted(os.listdir(tmp_path)) == ["last", "previous"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(json_values)
def test_json_comes_back_as_it_was_written(tmp_path: Path, value: object) -> None:
    write_json(tmp_path / "value.json", value)
    assert read_json(tmp_path / "value.json") == value


def test_json_holds_file_names_that_are_not_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9 \xc3\xa9.png")  # Latin-1, as old archives have it, and UTF-8
    write_json(tmp_path / "value.json", [name])
    assert os.fsencode(read_json(tmp_path / "value.json")[0]) == b"caf\xe9 \xc3\xa9.png"


def test_json_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"absent\.json is missing"):
        read_json(tmp_path / "absent.json")
    (tmp_path / "broken.json").write_text('{"a": ')
    with pytest.raises(FileError, match=r"broken\.json cannot be read as JSON"):
        read_json(tmp_path / "broken.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FileError, match=r"binary\.json cannot be read as JSON"):
        read_json(tmp_path / "binary.json")


def test_hash_of_is_stable_and_blind_to_the_order_of_keys() -> None:
    expected = hashlib.sha256(json.dumps({"a": [1, "ü"], "b": None}).encode()).hexdigest()[:16]
    assert hash_of({"b": None, "a": [1, "ü"]}) == expected
    assert hash_of({"b": None, "a": [1, "u"]}) != expected


def test_hash_of_file_is_sha256_of_a_file_longer_than_one_chunk(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000  # more than the 1 MiB read at once
    (tmp_path / "file").write_bytes(content)
    assert hash_of_file(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_reserve_keeps_content_and_takes_the_space(tmp_path: Path) -> None:
    path = tmp_path / "array"
    path.write_bytes(b"begun")
    reserve(path, 200_000)
    assert path.stat().st_size == 200_000
    assert path.read_bytes()[:5] == b"begun"
    assert path.stat().st_blocks * 512 >= 200_000  # not a hole that a full disk could not fill


def test_reserve_on_a_full_disk_is_an_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(FileError, match=r"cannot write .*array \(3 MB\): No space left.*DOMAINFUSION_CACHE"):
        reserve(tmp_path / "array", 3_000_000)
    assert not (tmp_path / "array").exists()


def test_reserve_does_without_where_the_file_system_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    reserve(tmp_path / "array", 3_000_000)
    assert (tmp_path / "array").exists()
