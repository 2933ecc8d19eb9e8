from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from domainfusion import cli
from domainfusion.config import DataConfig
from domainfusion.data.domains import MultiDomainDataset, load_dataset
from domainfusion.data.verification import verify_folder
from domainfusion.errors import DataError, UsageError

CONFIG = DataConfig(size=20)


def flatten(folder: Path, target: Path) -> list[dict[str, str]]:
    """The images of `root/domain/class/image` in one folder, and a row of metadata for each."""
    target.mkdir(parents=True)
    rows = []
    for number, path in enumerate(sorted(folder.rglob("*.png"))):
        shutil.copy(path, target / f"{number:03d}.png")
        domain, label, _ = path.relative_to(folder).parts
        rows.append({"file_name": f"{number:03d}.png", "label": label, "domain": domain})
    return rows


def write_csv(path: Path, rows: list[dict[str, str]]) -> None:
    columns = list(rows[0])
    lines = [",".join(columns)] + [",".join(row[column] for column in columns) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_jsonl(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def same(one: MultiDomainDataset, other: MultiDomainDataset) -> None:
    assert (one.domains, one.classes) == (other.domains, other.classes)
    assert np.array_equal(one.images, other.images)
    assert np.array_equal(one.labels, other.labels)
    assert np.array_equal(one.domain_of, other.domain_of)


@pytest.mark.parametrize(("name", "write"), [("metadata.csv", write_csv), ("metadata.jsonl", write_jsonl)])
def test_metadata_gives_what_folders_give(
    image_folder: Path, tmp_path: Path, name: str, write: Callable[[Path, list[dict[str, str]]], None]
) -> None:
    rows = flatten(image_folder, tmp_path / "flat")
    rows.reverse()  # the order of the rows does not matter
    write(tmp_path / "flat" / name, rows)
    same(load_dataset(str(tmp_path / "flat"), CONFIG), load_dataset(str(image_folder), CONFIG))


def test_splits_are_taken_together_and_columns_may_be_called_class(image_folder: Path, tmp_path: Path) -> None:
    rows = flatten(image_folder, tmp_path / "flat" / "train")
    (tmp_path / "flat" / "test").mkdir()
    held = rows[::4]
    for row in held:
        (tmp_path / "flat" / "train" / row["file_name"]).rename(tmp_path / "flat" / "test" / row["file_name"])
    for split, part in (("test", held), ("train", [row for row in rows if row not in held])):
        renamed = [{"class": row["label"], "domain": row["domain"], "file_name": row["file_name"]} for row in part]
        write_csv(tmp_path / "flat" / split / "metadata.csv", renamed)
    found = load_dataset(str(tmp_path / "flat"), CONFIG)
    whole = load_dataset(str(image_folder), CONFIG)
    assert (len(found), found.domains, found.classes) == (len(whole), whole.domains, whole.classes)
    assert sorted(key.split("/")[1] for key in found.keys) == [f"{n:03d}.png" for n in range(len(whole))]


def test_changed_metadata_is_read_again(image_folder: Path, tmp_path: Path) -> None:
    rows = flatten(image_folder, tmp_path / "flat")
    write_csv(tmp_path / "flat" / "metadata.csv", rows)
    before = load_dataset(str(tmp_path / "flat"), CONFIG)
    rows[0] = {**rows[0], "label": "house"}
    write_csv(tmp_path / "flat" / "metadata.csv", rows)
    after = load_dataset(str(tmp_path / "flat"), CONFIG)
    assert after.fingerprint != before.fingerprint
    assert np.bincount(after.labels).tolist() == [35, 36, 37]
    # Other names in the same order: no image and no place in the list changes.
    write_csv(
        tmp_path / "flat" / "metadata.csv",
        [{**row, "label": row["label"].replace("cat", "bat"), "domain": row["domain"].upper()} for row in rows],
    )
    renamed = load_dataset(str(tmp_path / "flat"), CONFIG)
    assert (renamed.classes, renamed.domains) == (("bat", "dog", "house"), ("CARTOON", "PHOTO", "SKETCH"))


def test_captions_are_not_taken_for_labels(image_folder: Path) -> None:
    first = next(image_folder.rglob("*.png")).relative_to(image_folder).as_posix()
    (image_folder / "metadata.csv").write_text(f"file_name,text\n{first},a dog\n")
    dataset = load_dataset(str(image_folder), CONFIG)
    assert (len(dataset), dataset.notes) == (108, ())


@pytest.mark.parametrize(
    ("name", "text", "has"),
    [
        ("metadata.csv", "file_name,class_name,site\n1.png,a,A\n", "or tabs, and has file_name, class_name, site"),
        ("metadata.csv", "file_name,label,domain\n", "or tabs, and has no row"),
        ("photo/metadata.jsonl", '{"file_name": "1.png", "site": "A"}\n', "and domain and has file_name, site"),
    ],
)
def test_metadata_beside_folders_that_cannot_be_used_is_noted(
    image_folder: Path, name: str, text: str, has: str
) -> None:
    (image_folder / name).write_text(text)
    (note,) = load_dataset(str(image_folder), CONFIG).notes
    assert note.startswith(f"{name} is not used: it needs the columns file_name, label (or class) and domain")
    assert note.endswith(has)
    state = verify_folder(image_folder, quick=True)
    assert state.ok
    assert (state.notes[0].kind, state.notes[0].message) == ("metadata-unused", note)


@pytest.mark.parametrize("between", [",", ", ", ";", "\t"])
@pytest.mark.parametrize("heading", [["file_name", "label", "domain"], [" File_Name", "Class ", "DOMAIN"]])
def test_the_form_of_a_table_does_not_matter(
    image_folder: Path, tmp_path: Path, between: str, heading: list[str]
) -> None:
    rows = [list(row.values()) for row in flatten(image_folder, tmp_path / "flat")]
    text = "\n".join(between.join(row) for row in [heading, *rows])
    (tmp_path / "flat" / "metadata.csv").write_text(text)
    same(load_dataset(str(tmp_path / "flat"), CONFIG), load_dataset(str(image_folder), CONFIG))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file_name": "absent.png"}, r"metadata.csv, line 3: the image .*absent.png is missing"),
        ({"file_name": "../000.png"}, r"line 3: \.\./000.png lies outside"),
        ({"file_name": "/etc/passwd"}, r"line 3: /etc/passwd lies outside"),
        ({"label": ""}, r"line 3: no label; every row needs"),
        ({"domain": ""}, r"line 3: no domain; every row needs"),
        ({"file_name": "000.png", "label": "dog"}, r"line 3: 000.png is cartoon/dog here and cartoon/cat elsewhere"),
    ],
)
def test_wrong_rows_are_named(image_folder: Path, tmp_path: Path, change: dict[str, str], message: str) -> None:
    rows = flatten(image_folder, tmp_path / "flat")
    rows[1] = {**rows[1], **change}
    write_csv(tmp_path / "flat" / "metadata.csv", rows)
    with pytest.raises(DataError, match=message):
        load_dataset(str(tmp_path / "flat"), CONFIG)


def test_missing_and_unlisted_images_are_counted(image_folder: Path, tmp_path: Path) -> None:
    rows = flatten(image_folder, tmp_path / "flat")
    assert load_dataset(str(image_folder), CONFIG).notes == ()
    rows[1]["domain"] = "Cartoon"
    write_csv(tmp_path / "flat" / "metadata.csv", rows[1:])
    assert load_dataset(str(tmp_path / "flat"), CONFIG).notes[:2] == (
        "1 picture that the metadata does not list, not used: 000.png",
        "domains 'Cartoon', 'cartoon' look like one in 2 spellings: the images of a target would train under the other "
        "name",
    )
    for name in ("003.png", "007.png", "050.png"):
        (tmp_path / "flat" / name).unlink()
    with pytest.raises(DataError, match=r"line 4: the image 003.png is missing; .*; 2 more: `domainfusion data verify"):
        load_dataset(str(tmp_path / "flat"), CONFIG)


def test_lines_that_are_not_json_are_named(image_folder: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "metadata.jsonl", flatten(image_folder, tmp_path / "flat"))
    text = (tmp_path / "metadata.jsonl").read_text()
    (tmp_path / "flat" / "metadata.jsonl").write_text(text + "{half\n")
    with pytest.raises(DataError, match=r"metadata.jsonl, line 109, is not JSON"):
        load_dataset(str(tmp_path / "flat"), CONFIG)


def test_numbers_as_labels_are_noted(image_folder: Path, tmp_path: Path) -> None:
    rows = [{**row, "label": str(len(row["label"]))} for row in flatten(image_folder, tmp_path / "flat")]
    write_csv(tmp_path / "flat" / "metadata.csv", rows)
    dataset = load_dataset(str(tmp_path / "flat"), CONFIG)
    assert any("write names as labels" in note for note in dataset.notes)


def test_commands_take_it_as_data(image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_csv(tmp_path / "metadata.csv", flatten(image_folder, tmp_path / "flat"))
    (tmp_path / "metadata.csv").rename(tmp_path / "flat" / "metadata.csv")
    found = []
    for folder in (image_folder, tmp_path / "flat"):
        assert cli.run(["data", "splits", str(folder), "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0] == found[1]


class TestHub:
    def test_the_missing_package_is_named_with_its_extra(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "datasets", None)
        with pytest.raises(UsageError, match=r"hf://a/b needs the package datasets: pip install 'domainfusion\[hub\]'"):
            load_dataset("hf://a/b", CONFIG)

    @pytest.mark.parametrize("name", ["hf://", "hf://a/b/c", "hf://a/../b", "hf://a b"])
    def test_malformed_names(self, name: str) -> None:
        with pytest.raises(UsageError, match="is no data set of the hub: write hf://OWNER/NAME"):
            load_dataset(name, CONFIG)

    def test_a_path_that_is_none_points_to_the_form(self) -> None:
        with pytest.raises(UsageError, match=r"there is no folder owner/name; .* hub is hf://OWNER/NAME"):
            load_dataset("owner/name", CONFIG)

    def test_a_data_set_of_the_hub_is_as_the_folder_it_was_made_from(
        self, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With the real library, on what `load_dataset` gives for a folder in its own form."""
        datasets = pytest.importorskip("datasets", reason="the extra hub is not installed")
        rows = flatten(image_folder, tmp_path / "flat" / "train")
        write_csv(tmp_path / "flat" / "train" / "metadata.csv", rows)
        original = datasets.load_dataset
        asked = []

        def offline(name: str, revision: str | None = None) -> object:
            asked.append((name, revision))
            found = original("imagefolder", data_dir=str(tmp_path / "flat"), cache_dir=str(tmp_path / "hf"))
            return found.class_encode_column("label")  # labels as numbers with names, the usual form on the hub

        monkeypatch.setattr(datasets, "load_dataset", offline)
        found = load_dataset("hf://owner/name@main", CONFIG)
        assert asked == [("owner/name", "main")]
        assert found.name == "name"
        same(found, load_dataset(str(image_folder), CONFIG))
        again = load_dataset("hf://owner/name@main", CONFIG)
        assert again.fingerprint == found.fingerprint

    def test_forms_of_pictures_and_rows_without_labels(
        self, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Cameras write MPO, test splits have the label -1; a folder would have neither of the two forms."""
        datasets = pytest.importorskip("datasets", reason="the extra hub is not installed")
        cells, rng = [], np.random.default_rng(0)
        for form in ("MPO", "JPEG2000", "PNG", "TIFF"):
            for domain in ("a", "b"):
                buffer = io.BytesIO()
                image = Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8))
                image.save(buffer, form, **({"save_all": True, "append_images": [image]} if form == "MPO" else {}))
                cells.append({"image": {"bytes": buffer.getvalue(), "path": None}, "label": 0, "domain": domain})
        cells[1]["label"] = cells[2]["label"] = 1
        rows = [*cells, {**cells[0], "label": -1}, {**cells[0], "image": None}]
        features = datasets.Features(
            {
                "image": datasets.Image(),
                "label": datasets.ClassLabel(names=["x", "y"]),
                "domain": datasets.Value("string"),
            }
        )
        whole = {"train": datasets.Dataset.from_list(rows, features=features)}
        monkeypatch.setattr(datasets, "load_dataset", lambda name, revision=None: whole)
        found = load_dataset("hf://owner/forms", CONFIG)
        assert (len(found), found.classes) == (8, ("x", "y"))
        assert "2 of 10 rows have no label or no image; left out" in capsys.readouterr().err
        assert sorted(Path(key).suffix for key in found.keys) == [".jpg"] * 2 + [".png"] * 4 + [".tif"] * 2
        clash = [{**cells[0], "domain": "a/b"}, {**cells[1], "domain": "a_b"}]
        other = {"train": datasets.Dataset.from_list(clash, features=features)}
        monkeypatch.setattr(datasets, "load_dataset", lambda name, revision=None: other)
        with pytest.raises(DataError, match="'a/b' and 'a_b' of the column domain would be one folder"):
            load_dataset("hf://owner/clash", CONFIG)

    def test_a_data_set_without_domains_is_refused(
        self, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        datasets = pytest.importorskip("datasets", reason="the extra hub is not installed")
        original = datasets.load_dataset
        folder = str(image_folder / "photo")
        monkeypatch.setattr(
            datasets, "load_dataset",
            lambda name, revision=None: original("imagefolder", data_dir=folder, cache_dir=str(tmp_path / "hf")),
        )  # fmt: skip
        with pytest.raises(DataError, match=r"hf://name, split train, has no column domain; it has: image, label"):
            load_dataset("hf://name", CONFIG)
        assert not list((tmp_path / "cache" / "hub").rglob("*.png"))
