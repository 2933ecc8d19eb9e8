from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from domainfusion import cli
from domainfusion.config import DataConfig
from domainfusion.data.benchmarks import BENCHMARKS, Benchmark
from domainfusion.data.domains import load_dataset
from domainfusion.data.splits import build_split
from domainfusion.errors import UsageError
from verifying import check, kinds, only

PACS = BENCHMARKS["PACS"]


@pytest.fixture
def pacs(make_image_folder: Callable[..., Path]) -> Path:
    """PACS's names, with one picture in each class folder."""
    return make_image_folder("PACS", domains=PACS.domains, classes=PACS.class_names, count=1)


def of_this_size(count: int) -> Benchmark:
    """PACS as if it had `count` images in each class folder."""
    import dataclasses

    return dataclasses.replace(
        PACS, counts=(7 * count,) * 4, class_counts=dict.fromkeys(PACS.domains, (count,) * 7), versions=()
    )


def test_a_folder_without_fault(make_image_folder: Callable[..., Path]) -> None:
    root = make_image_folder("mine")
    state = check(root)
    assert state.ok
    assert state.notes == []
    assert state.benchmark is None
    assert state.counts == {d: dict.fromkeys(("cat", "dog", "house"), 12) for d in ("cartoon", "photo", "sketch")}
    assert "every image decoded; no problem found" in state.as_text()


def test_counts_are_compared_with_the_published_ones(pacs: Path) -> None:
    state = check(pacs)
    assert state.benchmark is PACS
    assert kinds(state) == {"count"}
    assert "photo: 7 for 1670 (-1663)" in only(state, "count").where
    assert "photo/dog: 1 for 189 (-188)" in only(state, "count").where
    assert "other images are held out" in only(state, "count").effect
    assert check(pacs, of_this_size(1)).ok


def test_classes_are_compared_where_the_domains_number_is_right(pacs: Path) -> None:
    """Two class folders swapped, as a mistake in renaming leaves them: no total tells."""
    import dataclasses

    shutil.copy(pacs / "sketch" / "dog" / "00.png", pacs / "sketch" / "dog" / "01.png")
    ours = of_this_size(1)
    counts = (*ours.counts[:3], 8)
    ours = dataclasses.replace(
        ours, counts=counts, class_counts=dict(ours.class_counts) | {"sketch": (2, 1, 1, 1, 1, 1, 1)}
    )
    assert check(pacs, ours, quick=True).ok
    for name, other in (("dog", "swap"), ("person", "dog"), ("swap", "person")):
        (pacs / "sketch" / name).rename(pacs / "sketch" / other)
    state = check(pacs, ours, quick=True)
    assert kinds(state) == {"class-count"}
    found = only(state, "class-count")
    assert found.where == ("sketch/dog: 1 for 2 (-1)", "sketch/person: 2 for 1 (+1)")
    assert "in 1 domain whose own number is right" in found.message
    assert "under its label" in found.effect
    # Where another domain lacks images, each is told in its own words.
    (pacs / "photo" / "horse" / "00.png").unlink()
    state = check(pacs, ours, quick=True)
    assert only(state, "class-count") == found
    assert only(state, "count").where == ("photo: 6 for 7 (-1)", "photo/horse: 0 for 1 (-1)")


def test_a_data_set_of_ones_own_may_have_a_benchmarks_names(pacs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--dataset none" in only(check(pacs), "recognised").effect
    assert "recognised" not in {finding.kind for finding in check(pacs, of_this_size(1)).notes}
    assert cli.run(["data", "verify", str(pacs), "--dataset", "none"]) == 0
    assert "no benchmark known here; 4 domains, 7 classes" in capsys.readouterr().out


def test_a_class_without_any_image_counts_for_nothing(make_image_folder: Callable[..., Path]) -> None:
    """An empty folder `aardvark`, first by name: it is told of, and shifts no number of the others."""
    root = make_image_folder("mine")
    (root / "photo" / "aardvark").mkdir()
    state = check(root)
    assert kinds(state) == {"class-empty"}
    assert "3 domains, 3 classes" in state.as_text()


def test_a_known_other_version_is_named(pacs: Path) -> None:
    import dataclasses

    from domainfusion.data.benchmarks import Version

    other = dataclasses.replace(PACS, versions=(Version("the small one", total=28),))
    assert "this is the version that is the small one" in only(check(pacs, other), "count").message
    other = dataclasses.replace(PACS, versions=(Version("another", total=29), Version("by domain", (7, 7, 7, 7))))
    assert "this is the version that is by domain" in only(check(pacs, other), "count").message
    first, *rest = PACS.counts
    mixed = dataclasses.replace(PACS, counts=(first, 7, 7, 7), versions=(Version("the old one", (7, *rest)),))
    message = only(check(pacs, mixed), "count").message
    assert message.endswith("; art_painting is of the version that is the old one")


def test_a_class_that_a_domain_lacks_shifts_the_labels_of_tools_that_number_folders(pacs: Path) -> None:
    from torchvision.datasets import ImageFolder

    shutil.rmtree(pacs / "photo" / "giraffe")
    state = check(pacs, of_this_size(1))
    finding = only(state, "class-missing-in-domain")
    assert finding.where == ("giraffe",)
    # The reference: torchvision's own numbers against the numbers of all seven classes.
    folder = ImageFolder(str(pacs / "photo"))
    wrong = [name for name, number in folder.class_to_idx.items() if PACS.class_names[number] != name]
    assert wrong == ["guitar", "horse", "house", "person"]
    assert "label 4 of its 6 images wrongly (guitar becomes giraffe)" in finding.effect
    assert "no label shifts" in finding.effect


def test_an_empty_class_folder_is_told_from_a_missing_one(pacs: Path) -> None:
    for path in (pacs / "sketch" / "person").iterdir():
        path.unlink()
    state = check(pacs, of_this_size(1), quick=True)
    assert kinds(state) == {"class-empty", "count"}
    assert "sketch/person: 0 for 1 (-1)" in only(state, "count").where


def test_names_that_are_not_the_benchmarks(pacs: Path) -> None:
    shutil.rmtree(pacs / "cartoon")
    shutil.copytree(pacs / "photo", pacs / "watercolour")
    for domain in pacs.iterdir():
        shutil.rmtree(domain / "horse")
        (domain / "banjo").mkdir()
        shutil.copy(domain / "dog" / "00.png", domain / "banjo" / "00.png")
    state = check(pacs, of_this_size(1), quick=True)
    assert only(state, "missing-domain").where == ("cartoon",)
    assert only(state, "extra-domain").where == ("watercolour",)
    assert only(state, "missing-class").where == ("horse",)
    assert only(state, "extra-class").where == ("banjo",)
    assert "the numbers of 6 classes shift" in only(state, "extra-class").effect


def test_other_spellings_matter_where_they_change_the_order(make_image_folder: Callable[..., Path]) -> None:
    classes = BENCHMARKS["OfficeHome"].class_names
    root = make_image_folder("oh", domains=("Art", "Clipart", "Product", "Real_World"), classes=classes, count=1)
    state = check(root, quick=True)
    assert state.benchmark is BENCHMARKS["OfficeHome"]
    assert only(state, "renamed-domain") in state.notes
    (root / "Art").rename(root / "art")  # sorts last
    assert only(check(root, quick=True), "renamed-domain").effect.startswith("domains come in another order")


def test_one_class_in_two_spellings(make_image_folder: Callable[..., Path]) -> None:
    root = make_image_folder("mine")
    (root / "photo" / "dog").rename(root / "photo" / "Dog")
    state = check(root, quick=True)
    assert kinds(state) == {"class-spelling", "class-missing-in-domain"}
    assert only(state, "class-spelling").where == ("Dog", "dog")


def test_one_domain_in_two_spellings(make_image_folder: Callable[..., Path]) -> None:
    root = make_image_folder("mine", domains=("Photo", "photo", "sketch"), count=1)
    found = only(check(root, quick=True), "domain-spelling")
    assert found.where == ("Photo", "photo")
    assert found.effect.endswith("rename the folders")


def test_a_domain_that_the_default_split_cannot_divide_is_noted(make_image_folder: Callable[..., Path]) -> None:
    root = make_image_folder("mine", classes=("cat", "dog"))
    for name in ("cat", "dog"):
        for path in sorted((root / "photo" / name).iterdir())[2:]:
            path.unlink()
    state = check(root, quick=True)
    assert state.ok
    found = only(state, "few-images")
    assert (found.message, found.where) == ("1 domain with too few images to train on: photo (4)", ("photo",))
    assert "effect: each can be a target, but the default split leaves none" in state.as_text()
    dataset = load_dataset(str(root), DataConfig(size=8))
    with pytest.raises(UsageError, match=r"photo has too few .* none to validate on; change --data.holdout-fraction"):
        build_split(dataset, DataConfig(), "sketch", 0)
    build_split(dataset, DataConfig(), "photo", 0)
    Image.fromarray(np.full((20, 20, 3), 7, np.uint8)).save(root / "photo" / "cat" / "new.png")
    assert check(root, quick=True).notes == []
    build_split(load_dataset(str(root), DataConfig(size=8)), DataConfig(), "sketch", 0)


def test_one_domain_alone_is_not_enough(make_image_folder: Callable[..., Path]) -> None:
    assert "domains" in kinds(check(make_image_folder("mine", domains=("photo",)), quick=True))


def test_one_class_alone_is_not_enough(make_image_folder: Callable[..., Path]) -> None:
    assert kinds(check(make_image_folder("mine", classes=("cat",)), quick=True)) == {"classes"}


def test_classes_that_are_numbers_are_noted(make_image_folder: Callable[..., Path]) -> None:
    state = check(make_image_folder("mine", classes=("0", "1")), quick=True)
    assert state.ok
    assert "numbers" in {finding.kind for finding in state.notes}


def test_the_command_exits_with_1_where_there_are_problems(pacs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["data", "verify", str(pacs), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["dataset"], found["ok"], found["images"], found["decoded"]) == ("PACS", False, 28, True)
    assert [problem["kind"] for problem in found["problems"]] == ["count"]
    assert cli.run(["data", "verify", str(pacs), "--quick"]) == 1
    printed = capsys.readouterr().out
    assert "photo: 7 images of 1670 expected" in printed
    assert "images listed, not decoded; 1 problem\n" in printed


def test_the_command_exits_with_0_where_there_are_none(image_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["data", "verify", str(image_folder)]) == 0
    assert "no problem found" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data", "verify", "absent"], "there is no folder absent"),
        (
            ["data", "verify", __file__],
            "is a file, not a folder: if it is an archive, unpack it first (`domainfusion data",
        ),
        (["data", "verify", ".", "--dataset", "PACKS"], "unknown benchmark 'PACKS'; did you mean 'PACS'?"),
        (["data", "verfy"], "unknown command data 'verfy'; did you mean 'verify'?"),
        (["data"], "usage: domainfusion data {splits,verify,prepare,download}"),
        (["data", "verify", ".", "--quik"], "unknown option --quik; did you mean --quick?"),
    ],
)
def test_wrong_usage(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(words) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1
