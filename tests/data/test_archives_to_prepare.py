"""Archives that `data prepare` is given: those that lead out of their folder, and those that are damaged."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from domainfusion.data.archives import list_members, open_members
from domainfusion.errors import DataError, UsageError
from preparing import PACS, PACS_NAMES, pack_tar, pack_zip, picture, run, write_tree


def tar_with(path: Path, name: str, kind: bytes = tarfile.REGTYPE) -> None:
    with tarfile.open(path, "w:gz") as archive:
        info = tarfile.TarInfo(name)
        info.type, info.size, info.linkname = kind, 3 if kind == tarfile.REGTYPE else 0, "/etc/passwd"
        archive.addfile(info, io.BytesIO(b"abc"))


class TestArchives:
    @pytest.mark.parametrize(
        "name", ["../evil.jpg", "photo/dog/../../../evil.jpg", "/tmp/evil.jpg", "..\\evil.jpg", "C:\\evil.jpg"]
    )
    @pytest.mark.parametrize("form", ["zip", "tar.gz"])
    def test_members_that_lead_out_are_refused(self, tmp_path: Path, name: str, form: str) -> None:
        path = tmp_path / "in" / f"PACS.{form}"
        path.parent.mkdir()
        if form == "zip":
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr(name, b"abc")
        else:
            tar_with(path, name)
        with pytest.raises(DataError, match=r"is refused: its member .* leads out of the folder"):
            run(PACS, path, tmp_path / "o")
        assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]

    @pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
    def test_links_and_devices_are_refused(self, tmp_path: Path, kind: bytes) -> None:
        tar_with(tmp_path / "PACS.tar.gz", "photo/dog/1.jpg", kind)
        with pytest.raises(DataError, match="holds a link or device"):
            run(PACS, tmp_path / "PACS.tar.gz", tmp_path / "o")
        info = zipfile.ZipInfo("photo/dog/1.jpg")
        info.external_attr = 0o120777 << 16
        with zipfile.ZipFile(tmp_path / "PACS.zip", "w") as archive:
            archive.writestr(info, "/etc/passwd")
        with pytest.raises(DataError, match="holds a link"):
            run(PACS, tmp_path / "PACS.zip", tmp_path / "o")

    @pytest.mark.parametrize("form", ["zip", "tar.gz"])
    def test_archives_cut_short_are_named(self, tmp_path: Path, form: str) -> None:
        tree = write_tree(tmp_path / "tree", PACS_NAMES)
        path = (pack_zip if form == "zip" else pack_tar)(tree, tmp_path / f"PACS.{form}")
        path.write_bytes(path.read_bytes()[:-2000])
        with pytest.raises(DataError, match=rf"PACS.{form} cannot be read .* get it again"):
            run(PACS, path, tmp_path / "o")

    def test_a_damaged_member_is_found_while_reading(self, tmp_path: Path) -> None:
        path = pack_zip(write_tree(tmp_path / "tree", PACS_NAMES), tmp_path / "PACS.zip")
        data = bytearray(path.read_bytes())
        data[200] ^= 0xFF
        path.write_bytes(bytes(data))
        with pytest.raises(DataError, match=r"PACS.zip cannot be read \(BadZipFile"):
            run(PACS, path, tmp_path / "o")
        assert not (tmp_path / "o").exists()

    def test_members_that_cannot_be_unpacked_are_named(self, tmp_path: Path) -> None:
        path = pack_zip(write_tree(tmp_path / "tree", PACS_NAMES), tmp_path / "PACS.zip")
        data = path.read_bytes()
        directory = data.index(b"PK\x01\x02")  # the first entry of the central directory: flags at 8, method at 10
        for offset, value, said in ((8, 1, "is encrypted"), (10, 99, "is packed by method 99")):
            changed = bytearray(data)
            changed[directory + offset] = value
            path.write_bytes(bytes(changed))
            with pytest.raises(DataError, match=rf"PACS.zip: .* {said}, which is not read here: unpack it by hand"):
                run(PACS, path, tmp_path / "o")

    def test_members_come_with_their_contents(self, tmp_path: Path) -> None:
        tree = write_tree(tmp_path / "tree", ["a/1.png", "a/.hidden", "__MACOSX/1.png", "b.txt"])
        for source in (tree, pack_zip(tree, tmp_path / "a.zip"), pack_tar(tree, tmp_path / "a.tgz")):
            members = list_members(source)
            assert sorted(member.name.removeprefix("./") for member in members) == ["a/1.png", "b.txt"]
            contents = {member.name.removeprefix("./"): file.read() for member, file in open_members(members)}
            assert contents == {"a/1.png": picture(0), "b.txt": b"text"}

    def test_other_files_are_no_source(self, tmp_path: Path) -> None:
        (tmp_path / "x.rar").write_bytes(b"")
        with pytest.raises(DataError, match="neither a folder nor an archive"):
            run(PACS, tmp_path / "x.rar", tmp_path / "o")
        with pytest.raises(UsageError, match="there is no"):
            run(PACS, tmp_path / "absent", tmp_path / "o")
