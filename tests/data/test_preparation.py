"""`data prepare` on small copies of the benchmarks: trees, lists, what is gone on from, what is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest

from domainfusion import cli
from domainfusion.data import preparation
from domainfusion.data.benchmarks import BENCHMARKS
from domainfusion.errors import DataError, FileError, UsageError
from preparing import DOMAIN_NET, OFFICE, PACS, PACS_NAMES, VLCS, files_of, pack_tar, pack_zip, picture, run, write_tree


class TestTrees:
    @pytest.mark.parametrize("form", ["folder", "zip", "tar.gz", "folder of archives"])
    def test_pacs_loses_its_outer_folder(self, tmp_path: Path, form: str) -> None:
        tree = write_tree(tmp_path / "tree", [*PACS_NAMES, "kfold/readme.txt", "__MACOSX/kfold/photo/dog/._pic_1.jpg"])
        source = {
            "folder": lambda: tree,
            "zip": lambda: pack_zip(tree, tmp_path / "PACS.zip"),
            "tar.gz": lambda: pack_tar(tree, tmp_path / "PACS.tar.gz"),
            "folder of archives": lambda: pack_zip(tree, write_tree(tmp_path / "all", ["notes.txt"]) / "a.zip").parent,
        }[form]()
        before = files_of(source) if source.is_dir() else source.read_bytes()
        done = run(PACS, source, tmp_path / "out" / "PACS")
        assert files_of(tmp_path / "out" / "PACS") == {
            name.removeprefix("kfold/"): data for name, data in files_of(tree).items() if name in PACS_NAMES
        }
        assert done["counts"] == dict.fromkeys(PACS.domains, 14)
        assert done["linked"] == (56 if form == "folder" else 0)
        assert (files_of(source) if source.is_dir() else source.read_bytes()) == before

    def test_office_home_gets_the_usual_names(self, tmp_path: Path) -> None:
        names = [f"OfficeHomeDataset_10072016/{d}/{c.lower()}/1.jpg"
                 for d in ("art", "clipart", "product", "real_world") for c in OFFICE.class_names]  # fmt: skip
        run(OFFICE, write_tree(tmp_path / "tree", [*names, "OfficeHomeDataset_10072016/ImageInfo.csv"]), tmp_path / "o")
        assert set(files_of(tmp_path / "o")) == {f"{d}/{c}/1.jpg" for d in OFFICE.domains for c in OFFICE.class_names}

    def test_copies_do_not_share_the_sources_files(self, tmp_path: Path) -> None:
        tree = write_tree(tmp_path / "tree", PACS_NAMES)
        assert run(PACS, tree, tmp_path / "linked")["linked"] == 56
        assert run(PACS, tree, tmp_path / "copied", copy=True)["copied"] == 56
        for name in PACS_NAMES:
            short = name.removeprefix("kfold/")
            assert (tmp_path / "linked" / short).samefile(tree / name)
            assert not (tmp_path / "copied" / short).samefile(tree / name)

    def test_another_disk_gets_copies(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: Any) -> None:
            raise OSError(18, "Invalid cross-device link")

        tree = write_tree(tmp_path / "tree", PACS_NAMES)
        monkeypatch.setattr(os, "link", refuse)
        assert run(PACS, tree, tmp_path / "o")["copied"] == 56
        assert len(files_of(tmp_path / "o")) == 56

    def test_a_folder_of_another_data_set_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="no folder of the source is called as a domain of VLCS"):
            run(VLCS, write_tree(tmp_path / "tree", PACS_NAMES), tmp_path / "o")
        assert not (tmp_path / "o").exists()

    def test_two_files_for_one_place_are_refused_unless_equal(self, tmp_path: Path) -> None:
        tree = write_tree(tmp_path / "tree", ["PACS/photo/dog/1.jpg", "kfold/photo/dog/1.jpg"])
        with pytest.raises(DataError, match=r"two different files are to become photo/dog/1.jpg"):
            run(PACS, tree, tmp_path / "o")
        shutil.copy(tree / "PACS/photo/dog/1.jpg", tree / "kfold/photo/dog/1.jpg")
        assert "took 1 pictures once" in run(PACS, tree, tmp_path / "o")["notes"][0]
        assert len(files_of(tmp_path / "o")) == 1


class TestVLCS:
    NAMES = ("CALTECH", "LABELME", "PASCAL", "SUN")

    def expected(self) -> set[str]:
        return {f"{d}/{c}/{n}.jpg" for d in VLCS.domains for c in VLCS.class_names for n in range(6)}

    def test_domainbeds_layout_stays(self, tmp_path: Path) -> None:
        tree = write_tree(tmp_path / "tree", [f"VLCS/{name}" for name in sorted(self.expected())])
        run(VLCS, pack_tar(tree, tmp_path / "VLCS.tar.gz"), tmp_path / "o")
        assert set(files_of(tmp_path / "o")) == self.expected()

    @pytest.mark.parametrize("full", [True, False])
    @pytest.mark.parametrize("packed", [True, False])
    def test_splits_are_merged_by_content(self, tmp_path: Path, full: bool, packed: bool) -> None:
        # `full` has every picture; the splits have the same pictures under names of their own.
        tree = tmp_path / "tree"
        for d, domain in enumerate(self.NAMES):
            for label in range(5):
                for n in range(6):
                    data = picture(d * 100 + label * 10 + n)
                    places = [f"{('train', 'crossval', 'test')[n % 3]}/{label}/part_{n}.jpg"]
                    places += [f"full/{label}/{n}.jpg"] if full else []
                    for place in places:
                        path = tree / "VLCS" / domain / place
                        path.parent.mkdir(parents=True, exist_ok=True)
                        path.write_bytes(data)
        done = run(VLCS, pack_zip(tree, tmp_path / "VLCS.zip") if packed else tree, tmp_path / "o")
        found = files_of(tmp_path / "o")
        assert done["counts"] == dict.fromkeys(VLCS.domains, 30)
        assert set(found) == (
            self.expected() if full else {name.replace(f"/{n}.", f"/part_{n}.") for name in self.expected()
                                          for n in [name[-5]]}
        )  # fmt: skip
        for d, domain in enumerate(("Caltech101", "LabelMe", "VOC2007", "SUN09")):  # PASCAL is VOC2007
            for c, name in enumerate(VLCS.class_names):
                contents = {data for path, data in found.items() if path.startswith(f"{domain}/{name}/")}
                assert contents == {picture(d * 100 + c * 10 + n) for n in range(6)}

    def test_equal_names_of_different_pictures_are_kept_apart(self, tmp_path: Path) -> None:
        names = [f"{d}/{s}/{c}/1.jpg" for d in self.NAMES for s in ("train", "test") for c in range(5)]
        run(VLCS, write_tree(tmp_path / "tree", names), tmp_path / "o")
        found = files_of(tmp_path / "o")
        assert {"SUN09/dog/1.jpg", "SUN09/dog/test_1.jpg"} <= set(found)
        assert len(set(found.values())) == 40


DOMAIN_NET_NAMES = [
    f"{d}/{c}/{d}_{n:03d}.jpg" for d in DOMAIN_NET.domains for c in ("t-shirt", "The_Mona_Lisa") for n in (1, 2)
]


class TestDomainNet:
    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        """A folder with an archive for each domain, as they are downloaded."""
        tree = write_tree(tmp_path / "tree", DOMAIN_NET_NAMES)
        (tmp_path / "source").mkdir()
        for domain in DOMAIN_NET.domains:
            with zipfile.ZipFile(tmp_path / "source" / f"{domain}.zip", "w") as archive:
                for name, data in files_of(tree).items():
                    if name.startswith(domain):
                        archive.writestr(name, data)
        return tmp_path / "source"

    def test_listed_duplicates_are_left_out(self, source: Path, tmp_path: Path) -> None:
        listed = ["sketch/t-shirt/sketch_002.jpg", "real/The_Mona_Lisa/real_001.jpg", "real/zebra/real_009.jpg"]
        (tmp_path / "list.txt").write_text("\n".join(["# duplicates", *listed, ""]))
        done = run(DOMAIN_NET, source, tmp_path / "o", duplicates=tmp_path / "list.txt")
        assert set(files_of(tmp_path / "o")) == set(DOMAIN_NET_NAMES) - set(listed)
        assert "left out 2 listed duplicates; 1 more on the list are not in the source" in done["notes"]

    def test_the_list_is_asked_for_and_found_beside_the_archives(self, source: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"give their list with --duplicates FILE .* or --keep-duplicates"):
            run(DOMAIN_NET, source, tmp_path / "o")
        (source / "domain_net_duplicates.txt").write_text(DOMAIN_NET_NAMES[0] + "\n")
        run(DOMAIN_NET, source, tmp_path / "o")
        assert set(files_of(tmp_path / "o")) == set(DOMAIN_NET_NAMES[1:])
        run(DOMAIN_NET, source, tmp_path / "all", keep_duplicates=True)
        assert set(files_of(tmp_path / "all")) == set(DOMAIN_NET_NAMES)

    def test_another_kind_of_list_is_refused(self, source: Path, tmp_path: Path) -> None:
        (tmp_path / "list.txt").write_text("sketch/t-shirt/1.jpg\n2427 0\n")
        with pytest.raises(DataError, match=r"list.txt, line 2: 2427 0 is no DOMAIN/CLASS/IMAGE of DomainNet"):
            run(DOMAIN_NET, source, tmp_path / "o", duplicates=tmp_path / "list.txt")


class TestResuming:
    def test_an_interrupted_run_goes_on(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        tree = write_tree(tmp_path / "tree", PACS_NAMES)
        source = pack_zip(tree, tmp_path / "PACS.zip")
        placed = []
        original = preparation._place_file

        def stop_after_twenty(file: Any, paths: Any) -> None:
            if len(placed) == 20:
                raise KeyboardInterrupt
            placed.append(paths)
            original(file, paths)

        monkeypatch.setattr(preparation, "_place_file", stop_after_twenty)
        with pytest.raises(KeyboardInterrupt):
            run(PACS, source, tmp_path / "o")
        assert not (tmp_path / "o").exists()
        monkeypatch.setattr(preparation, "_place_file", original)
        # A file that was cut short by a crash is written again.
        first = sorted((tmp_path / ".o.partial").rglob("*.jpg"))[0]
        first.write_bytes(b"")
        done = run(PACS, source, tmp_path / "o")
        assert (done["present"], done["unpacked"]) == (19, 37)
        assert len(files_of(tmp_path / "o")) == 56
        assert not list(tmp_path.glob(".o.partial*"))
        assert not list((tmp_path / "o").rglob("*.tmp"))

    def test_a_finished_one_is_not_made_again(self, tmp_path: Path) -> None:
        tree = write_tree(tmp_path / "tree", PACS_NAMES)
        first = run(PACS, tree, tmp_path / "o")
        again = run(PACS, tree, tmp_path / "o")
        assert again == {**first, "already": True}

    def test_a_changed_file_of_the_source_is_seen(self, tmp_path: Path) -> None:
        tree = write_tree(tmp_path / "tree", PACS_NAMES)
        run(PACS, tree, tmp_path / "o", copy=True)
        path = tree / PACS_NAMES[0]
        path.write_bytes(path.read_bytes() + b"mended")
        with pytest.raises(UsageError, match="holds something else already"):
            run(PACS, tree, tmp_path / "o", copy=True)
        with pytest.raises(UsageError, match="is a file; give a folder as OUTPUT"):
            run(PACS, tree, path)

    def test_what_another_source_began_is_begun_anew(self, tmp_path: Path) -> None:
        (tmp_path / ".o.partial" / "photo" / "dog").mkdir(parents=True)
        (tmp_path / ".o.partial" / "photo" / "dog" / "stale.jpg").write_bytes(b"stale")
        (tmp_path / ".o.partial" / ".domainfusion.json").write_text('{"key": "other"}')
        run(PACS, write_tree(tmp_path / "tree", PACS_NAMES), tmp_path / "o")
        assert len(files_of(tmp_path / "o")) == 56

    def test_other_things_are_not_overwritten(self, tmp_path: Path) -> None:
        tree = write_tree(tmp_path / "tree", PACS_NAMES)
        write_tree(tmp_path / "o", ["mine.txt"])
        with pytest.raises(UsageError, match="holds something else already; choose another OUTPUT"):
            run(PACS, tree, tmp_path / "o")
        with pytest.raises(UsageError, match="lies in the source"):
            run(PACS, tree, tree / "out")
        assert set(files_of(tmp_path / "o")) == {"mine.txt"}

    def test_a_full_disk_is_seen_before(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        source = pack_zip(write_tree(tmp_path / "tree", PACS_NAMES), tmp_path / "PACS.zip")
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
        with pytest.raises(FileError, match="free some space"):
            run(PACS, source, tmp_path / "o")


def test_what_is_prepared_can_be_loaded_and_verified(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = pack_zip(write_tree(tmp_path / "tree", PACS_NAMES), tmp_path / "PACS.zip")
    small = dataclasses.replace(PACS, counts=(14,) * 4, class_counts={})
    monkeypatch.setitem(BENCHMARKS, "PACS", small)
    assert cli.run(["data", "prepare", "pacs", str(source), str(tmp_path / "o")]) == 0
    printed = capsys.readouterr().out
    assert "PACS, 56 images (56 unpacked)" in printed
    assert "photo: 14 of 14 expected" in printed
    assert "differ" not in printed
    assert cli.run(["data", "prepare", "pacs", str(source), str(tmp_path / "o"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["already"] is True
    # The two pictures of a class are the same two numbers in no other class, so there is nothing to find.
    assert cli.run(["data", "verify", str(tmp_path / "o")]) == 0
    assert cli.run(["data", "splits", str(tmp_path / "o"), "--json"]) == 0
    capsys.readouterr()
    monkeypatch.setitem(BENCHMARKS, "PACS", PACS)
    assert cli.run(["data", "prepare", "PACS", str(source), str(tmp_path / "p")]) == 0
    assert "the numbers differ from the published ones: domainfusion data verify" in capsys.readouterr().out


def test_the_original_pacs(pacs: Path, tmp_path: Path) -> None:
    done = run(PACS, pacs, tmp_path / "o")
    assert done["counts"] == dict(zip(PACS.domains, PACS.counts, strict=True))
