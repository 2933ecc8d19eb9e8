"""The section on suspicious labels: what of an audit is shown, and whose audits are refused."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from domainfusion.cli import run as command
from domainfusion.config import DataConfig
from domainfusion.data.domains import load_dataset
from domainfusion.errors import FileError, UsageError
from domainfusion.report.html import write_report
from domainfusion.report.pictures import png_uri
from domainfusion.report.suspicious_labels import describe_entry
from report.written_runs import SIZE, dump, write_pictures, write_run


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "pictures")


@pytest.fixture
def erm(tmp_path: Path, root: Path) -> Path:
    return write_run(tmp_path / "erm", root, "erm", 0.5)


def write_audit(folder: Path, root: Path, *, size: int = SIZE, **changes: Any) -> Path:
    """What `domainfusion audit` writes, of scores that fall from row to row of every seventh image."""
    dataset = load_dataset(str(root), DataConfig(size=size))
    entries = [
        {
            "rank": i + 1, "row": row, "image": dataset.keys[row], "domain": dataset.domains[dataset.domain_of[row]],
            "given": dataset.classes[dataset.labels[row]],
            "suggested": dataset.classes[(dataset.labels[row] + 1) % 3], "score": 0.5 - 0.0625 * i,
            "standard_error": 0.125,
        }
        for i, row in enumerate(range(0, len(dataset), 7))
    ]  # fmt: skip
    folder.mkdir(parents=True)
    found = {
        "data": str(root), "name": dataset.name, "fingerprint": dataset.fingerprint, "size": size, "ldm": "embedded",
        "ranking": "both", "images": len(entries), "of": len(dataset), "labels": entries,
    } | changes  # fmt: skip
    dump(folder / "audit.json", {name: value for name, value in found.items() if value is not None})
    return folder


def section(path: Path) -> str:
    """The part of the page, or an empty text."""
    page = path.read_text(encoding="utf-8")
    found = re.search(r'<section id="s1-labels">.*?</section>', page, re.DOTALL)
    assert ('href="#s1-labels"' in page) is bool(found)
    return found[0] if found else ""


def test_the_ten_most_suspicious_are_shown_with_their_pictures(tmp_path: Path, root: Path, erm: Path) -> None:
    audit = write_audit(tmp_path / "audit", root)
    words = ["report", str(erm), "--output", str(tmp_path / "report.html"), "--audit", str(audit)]
    assert command(words) == 0
    text = section(tmp_path / "report.html")
    dataset = load_dataset(str(root), DataConfig(size=SIZE))
    shown = re.findall(r'<img src="([^"]+)"', text)
    assert shown == [png_uri(dataset.images[row]) for row in range(0, 70, 7)]
    assert len(set(shown)) == 10
    assert "&lt;b&gt;x" in text
    assert "<b>x" not in text
    assert "the rival fits better by 0.5 ±\u00a00.12" in text
    assert "no rival fits better; the nearest is behind by 0.0625 ±\u00a00.12" in text
    assert "of 13 that were looked at (90 in all)" in text
    assert f"<code>{audit / 'audit.html'}</code>" in text
    assert f"--audit {audit}" in (tmp_path / "report.html").read_text()


def test_a_file_of_the_folder_names_it_too(tmp_path: Path, root: Path, erm: Path) -> None:
    audit = write_audit(tmp_path / "audit", root)
    (audit / "audit.html").write_text("")
    pages = [
        section(write_report([erm], tmp_path / "report.html", audits=[path]))
        for path in (audit, audit / "audit.json", audit / "audit.html")
    ]
    assert pages[0] == pages[1] == pages[2] != ""
    assert section(write_report([erm], tmp_path / "report.html")) == ""


def test_it_says_what_the_classifiers_say() -> None:
    entry = {
        "score": 0.25, "standard_error": 0.0625, "classifier_loss": -math.log(0.04), "classifier_rank": 3,
        "classifier_suggested": "dog", "trained_on": False,
    }  # fmt: skip
    text = (
        "the rival fits better by 0.25 ± 0.062; classifiers give the label 4 %, of the others they prefer dog (rank 3"
    )
    assert describe_entry(entry) == f"{text} by them)"
    assert describe_entry(entry | {"trained_on": True}) == f"{text} by them, trained on the image)"


def refused(error: type[Exception], words: str, runs: list[Path], audit: Path, output: Path) -> None:
    with pytest.raises(error, match=words) as caught:
        write_report(runs, output, audits=[audit])
    assert "\n" not in str(caught.value)
    assert not output.exists()


def test_an_audit_of_other_images_is_refused(tmp_path: Path, root: Path, erm: Path) -> None:
    output = tmp_path / "report.html"
    other = write_pictures(tmp_path / "elsewhere" / "pictures")
    (other / "ink" / "plain" / "9.png").unlink()
    refused(UsageError, "is of other images", [erm], write_audit(tmp_path / "other", other), output)
    # The same place at the same size: the images are no longer what was audited.
    changed = write_audit(tmp_path / "changed", root, fingerprint="0")
    refused(UsageError, "as it is now: domainfusion audit", [erm], changed, output)
    # The same fingerprint, and a label that was changed by hand.
    wrong = write_audit(tmp_path / "wrong", root)
    found = json.loads((wrong / "audit.json").read_text())
    found["labels"][4]["given"] = found["labels"][4]["suggested"]
    dump(wrong / "audit.json", found)
    refused(UsageError, "is of other images", [erm], wrong, output)


def test_audits_at_another_size_or_without_a_fingerprint_are_known_by_place_and_labels(
    tmp_path: Path, root: Path, erm: Path
) -> None:
    output = tmp_path / "report.html"
    shown = section(write_report([erm], output, audits=[write_audit(tmp_path / "audit", root)]))
    for name, changes in {"large": {"size": 24}, "older": {"fingerprint": None, "size": SIZE, "name": None}}.items():
        text = section(write_report([erm], output, audits=[write_audit(tmp_path / name, root, **changes)]))
        assert text.replace(str(tmp_path / name), str(tmp_path / "audit")) == shown
    output.unlink()
    fewer = write_audit(tmp_path / "fewer", root, fingerprint=None, of=89)
    refused(UsageError, "is of other images", [erm], fewer, output)
    refused(
        UsageError, "is of other images", [erm],
        write_audit(tmp_path / "moved", root, fingerprint=None, data=str(tmp_path)), output,
    )  # fmt: skip


def test_what_is_not_there_is_named_as_it_was_asked_for(tmp_path: Path, erm: Path) -> None:
    for name, file in {
        "nope": "nope/audit.json", "nope/audit.json": "nope/audit.json", "nope/audit.html": "nope/audit.json",
        "erm/config.toml": "erm/audit.json",
    }.items():  # fmt: skip
        refused(UsageError, f"there is no {tmp_path / file};", [erm], tmp_path / name, tmp_path / "report.html")


def test_the_command_that_is_advised_can_be_pasted(tmp_path: Path) -> None:
    for name in ("messy set", "others"):
        write_pictures(tmp_path / name)
    Image.new("RGB", (8, 8)).save(tmp_path / "others" / "ink" / "plain" / "more.png")
    runs = [
        write_run(tmp_path / f"run {k}", tmp_path / name, "erm", 0.5) for k, name in enumerate(["messy set", "others"])
    ]
    audit = write_audit(tmp_path / "audit", tmp_path / "others", of=0, fingerprint="0")
    words = f"domainfusion audit '{tmp_path / 'messy set'}' or domainfusion audit {tmp_path / 'others'}$"
    refused(UsageError, words, runs, audit, tmp_path / "report.html")


def edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edit_file(path: Path) -> None:
        found = json.loads(path.read_text())
        change(found)
        dump(path, found)

    return edit_file


@pytest.mark.parametrize(
    ("damage", "error", "words"),
    [
        (Path.unlink, UsageError, "write one first: domainfusion audit DATA"),
        (lambda path: path.write_text("[]"), FileError, "no JSON object"),
        (edit(lambda found: found.pop("labels")), FileError, "labels is missing"),
        (edit(lambda found: found["labels"][2].pop("score")), FileError, "an entry of labels"),
        (edit(lambda found: found["labels"].insert(0, "cat")), FileError, "an entry of labels"),
        (edit(lambda found: found["labels"][0].update(classifier_loss="x")), FileError, "an entry of labels"),
        (edit(lambda found: found["labels"][0].update(row=10**6)), UsageError, "is of other images"),
    ],
)
def test_a_damaged_audit_is_refused(
    tmp_path: Path, root: Path, erm: Path, damage: Callable[[Path], Any], error: type[Exception], words: str
) -> None:
    audit = write_audit(tmp_path / "audit", root)
    damage(audit / "audit.json")
    refused(error, words, [erm], audit, tmp_path / "report.html")


def test_of_two_data_sets_each_has_its_own(tmp_path: Path, root: Path, erm: Path) -> None:
    other = write_pictures(tmp_path / "others")
    (other / "ink" / "plain" / "9.png").unlink()
    second = write_run(tmp_path / "second", other, "erm", 0.5)
    audits = [write_audit(tmp_path / "of second", other), write_audit(tmp_path / "of first", root)]
    page = write_report([erm, second], tmp_path / "report.html", audits=audits).read_text(encoding="utf-8")
    first, last = page.index("of first/audit.html"), page.index("of second/audit.html")
    assert page.index('id="s1-labels"') < first < page.index('id="s2-labels"') < last


def test_without_the_images_the_labels_are_listed(tmp_path: Path, root: Path, erm: Path) -> None:
    audit = write_audit(tmp_path / "audit", root)
    root.rename(tmp_path / "moved")
    text = section(write_report([erm], tmp_path / "report.html", audits=[audit]))
    assert "<img" not in text
    assert text.count('class="why"') == 10
