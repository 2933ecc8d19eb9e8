"""TerraIncognita from its five files of annotations, against DomainBed's loop over all of them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from domainfusion import cli
from domainfusion.config import DataConfig
from domainfusion.data.archives import Member
from domainfusion.data.benchmarks import BENCHMARKS
from domainfusion.data.domains import load_folder
from domainfusion.data.likeness import overlap_notes
from domainfusion.data.verification import verify_folder
from domainfusion.errors import DataError
from preparing import TERRA, files_of, pack_tar, picture, run, write_tree


def domainbed_copies(parts: list[dict[str, list[dict[str, Any]]]]) -> set[str]:
    """The reference: every image against every annotation, as DomainBed does it."""
    data: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for part in parts:
        for key, values in part.items():
            data[key] += values
    names = {entry["id"]: entry["name"] for entry in data["categories"]}
    copies = set()
    for image in data["images"]:
        if str(image["location"]) in ("38", "46", "100", "43"):
            for annotation in data["annotations"]:
                if annotation["image_id"] == image["id"] and names[annotation["category_id"]] in TERRA.class_names:
                    copies.add(f"location_{image['location']}/{names[annotation['category_id']]}/{image['file_name']}")
    return copies


class TestTerraIncognita:
    FILES = ("cis_test", "cis_val", "train", "trans_test", "trans_val")

    @pytest.fixture
    def parts(self) -> list[dict[str, list[dict[str, Any]]]]:
        """Five annotation files: some images in two of them, with two boxes, two classes, none, or other classes."""
        rng = np.random.default_rng(0)
        categories = [{"id": n, "name": name} for n, name in enumerate([*TERRA.class_names, "deer", "car"])]
        images = [
            # The five files have numbers as strings, the older single one may have integers.
            {"id": f"i{n}", "file_name": f"{n:04d}.jpg", "location": ("38", 43, "46", 100, "7")[n % 5]}
            for n in range(200)
        ]
        annotations = [
            {"id": f"a{n}", "image_id": f"i{n % 190}", "category_id": int(rng.integers(12))} for n in range(260)
        ]
        parts = []
        for k in range(5):
            mine = [image for n, image in enumerate(images) if n % 5 == k or n % 17 == k]
            ids = {image["id"] for image in mine}
            kept = [annotation for annotation in annotations if annotation["image_id"] in ids]
            parts.append({"categories": categories, "images": mine, "annotations": kept})
        return parts

    @pytest.fixture
    def source(self, tmp_path: Path, parts: list[dict[str, Any]]) -> Path:
        """The two archives that are offered."""
        folder = tmp_path / "source"
        tree = write_tree(tmp_path / "images", [f"eccv_18_all_images_sm/{n:04d}.jpg" for n in range(200)])
        labels = tmp_path / "labels" / "eccv_18_annotation_files"
        labels.mkdir(parents=True)
        for name, part in zip(self.FILES, parts, strict=True):
            (labels / f"{name}_annotations.json").write_text(json.dumps(part))
        folder.mkdir()
        pack_tar(tree, folder / "eccv_18_all_images_sm.tar.gz")
        pack_tar(labels.parent, folder / "eccv_18_annotations.tar.gz")
        return folder

    def test_it_is_what_domainbed_makes(self, source: Path, tmp_path: Path, parts: list[dict[str, Any]]) -> None:
        done = run(TERRA, source, tmp_path / "o")
        found = files_of(tmp_path / "o")
        assert set(found) == domainbed_copies(parts)
        assert all(data == picture(int(Path(name).stem)) for name, data in found.items())
        twice = len(found) - len({Path(name).name for name in found})
        assert twice > 3
        listed = {image["file_name"] for part in parts for image in part["images"] if image["location"] != "7"}
        other = len(listed) - len({Path(name).name for name in found})
        assert other > 3
        assert f"left {other} images of the four locations that show none of the ten classes" in done["notes"]
        assert any("of the classes and are under" in note for note in done["notes"])

    def test_an_image_under_two_of_its_classes_is_as_it_should_be(
        self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run(TERRA, source, tmp_path / "o")
        for location in TERRA.domains:  # so that every location has every class
            for number, name in enumerate(TERRA.class_names):
                fill = tmp_path / "o" / location / name / "fill.png"
                fill.parent.mkdir(parents=True, exist_ok=True)
                fill.write_bytes(picture(1000 + 10 * TERRA.domains.index(location) + number))
        found = [Path(name) for name in files_of(tmp_path / "o")]
        places = Counter((path.parts[0], path.name) for path in found if path.name != "fill.png")
        several = [place for place, count in places.items() if count > 1]
        counts = tuple(sum(path.parts[0] == location for path in found) for location in TERRA.domains)
        monkeypatch.setitem(BENCHMARKS, "TerraIncognita", dataclasses.replace(TERRA, counts=counts))
        assert cli.run(["data", "verify", str(tmp_path / "o"), "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["ok"]
        assert told["problems"] == []
        (note,) = [note for note in told["notes"] if note["kind"] == "several-classes"]
        assert note["message"] == f"{len(several)} images under more than one class, each of which it shows"
        expected = {f"{domain}/{path.parts[1]}/{name}" for domain, name in several for path in found
                    if (path.parts[0], path.name) == (domain, name)}  # fmt: skip
        assert {path for line in note["where"] for path in line.split(" = ")} == expected
        assert cli.run(["data", "verify", str(tmp_path / "o")]) == 0
        assert f"note: {len(several)} images under more than one class" in capsys.readouterr().out

        dataset = load_folder(tmp_path / "o", DataConfig(size=32))
        said = overlap_notes(dataset, np.arange(len(dataset)), np.arange(0))
        assert [" under another class that they show" in line for line in said] == [True]

        # The same picture under another name, and in another location, was not put there by the annotations.
        domain, label, name = TERRA.domains[0], *TERRA.class_names[:2]
        shutil.copy(tmp_path / "o" / domain / label / "fill.png", tmp_path / "o" / domain / name / "other.png")
        shutil.copy(tmp_path / "o" / TERRA.domains[1] / label / "fill.png", tmp_path / "o" / TERRA.domains[2] / name)
        state = verify_folder(tmp_path / "o", progress=False)
        assert {problem.kind for problem in state.problems} == {"count", "leak", "two-labels"}
        (torn,) = [problem for problem in state.problems if problem.kind == "two-labels"]
        assert f"{domain}/{label}/fill.png = {domain}/{name}/other.png" in torn.where
        assert len(torn.where) == 2

    def test_the_same_folder_as_another_data_set_is_torn(self, source: Path, tmp_path: Path) -> None:
        run(TERRA, source, tmp_path / "o")
        for number, location in enumerate(TERRA.domains):
            (tmp_path / "o" / location).rename(tmp_path / "o" / f"site {number}")
        state = verify_folder(tmp_path / "o", progress=False)
        assert state.benchmark is None
        assert "two-labels" in {problem.kind for problem in state.problems}

    def test_missing_images_stop_it_unless_allowed(
        self, source: Path, tmp_path: Path, parts: list[dict[str, Any]]
    ) -> None:
        gone = sorted(domainbed_copies(parts))[0]
        shutil.rmtree(tmp_path / "images" / "eccv_18_all_images_sm")
        write_tree(tmp_path / "images", [f"eccv_18_all_images_sm/{n:04d}.jpg" for n in range(200)])
        (tmp_path / "images" / "eccv_18_all_images_sm" / Path(gone).name).unlink()
        pack_tar(tmp_path / "images", source / "eccv_18_all_images_sm.tar.gz")
        with pytest.raises(DataError, match=r"1 annotated images are not in the source .* --allow-missing"):
            run(TERRA, source, tmp_path / "o")
        run(TERRA, source, tmp_path / "o", allow_missing=True)
        assert set(files_of(tmp_path / "o")) == {
            name for name in domainbed_copies(parts) if Path(name).name != Path(gone).name
        }

    def test_a_finished_folder_is_taken_as_it_is(self, tmp_path: Path) -> None:
        names = [f"terra_incognita/{d}/{c}/1.jpg" for d in TERRA.domains for c in TERRA.class_names]
        run(TERRA, write_tree(tmp_path / "tree", names), tmp_path / "o")
        assert set(files_of(tmp_path / "o")) == {name.removeprefix("terra_incognita/") for name in names}

    def test_ten_thousand_images_take_one_pass(self) -> None:
        from domainfusion.data.layouts import plan_terra

        class Counted(list):
            passes = 0

            def __iter__(self) -> Any:
                Counted.passes += 1
                return super().__iter__()

        images = [{"id": n, "file_name": f"{n}.jpg", "location": 38} for n in range(10_000)]
        annotations = Counted({"image_id": n, "category_id": 0} for n in range(10_000))
        part = {"images": images, "annotations": annotations, "categories": [{"id": 0, "name": "cat"}]}
        members = [Member(Path("x"), f"all/{n}.jpg", 1) for n in range(10_000)]
        assert len(plan_terra(TERRA, members, [part], False).targets) == 10_000
        assert Counted.passes == 1
