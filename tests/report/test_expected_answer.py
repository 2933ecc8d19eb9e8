"""What the report says where no domain was held out: what to expect on another, or that nothing tells."""

from __future__ import annotations

import re
import shutil
import statistics
from pathlib import Path

import pytest

from domainfusion.errors import FileError
from domainfusion.report.html import write_report
from report.read_pages import read_page
from report.written_runs import dump, write_run, write_run_on_all


def test_without_a_target_nothing_is_claimed(tmp_path: Path, root: Path) -> None:
    page = read_page(write_run(tmp_path / "run", root, "erm", 0.0, target=None), output=tmp_path / "report.html")
    assert "nothing here tells how the model does on a domain it never saw" in page.text
    assert "What there is" in page.text


def test_a_run_on_all_domains_opens_with_what_to_expect_on_another(tmp_path: Path, root: Path) -> None:
    shares = {"ink": 3 / 24, "photo": 6 / 24, "pixel": 12 / 24}
    run = write_run_on_all(tmp_path / "runs" / "erm", root, "erm", shares)
    page = read_page(run, output=tmp_path / "report.html")
    error = statistics.stdev([12.5, 25.0, 50.0]) / 3**0.5
    sentence = (
        f"On a domain that it has not seen, ERM is right on about 29.2 ± {error:.1f} % of the images, from leaving "
        "each of the 3 domains out in turn. Trained on all of them, it is right on 50.0 % of held-out images of the "
        "same domains (source validation)."
    )
    assert page.text.index(sentence) < page.text.index("How sure is that?")
    assert '<h1 class="answer">On a domain' in page.source
    assert page.source.count('class="answer"') == 1
    assert re.search(r'<span class="figure">29\.2<small> % ± 11\.0</small>', page.source)
    for words in ("comparisons", "nothing here tells", "What there is", "cannot be compared"):
        assert words not in page.text
    head = page.text[page.text.index("algorithm") :]
    assert head.startswith("algorithmwithout inkwithout photowithout pixelaveragesource validation")
    assert "12.5 to 50.0 %" in page.text
    # What single tests show is of the runs inside, and says so; every run is listed, and counted.
    assert "Of the models that trained without a domain, on that domain" in page.text
    assert "the targets, all tests taken together" in page.text
    assert "took 90 s more together" in page.text
    assert str(run / "held-out" / "erm" / "ink" / "trial-0") in page.text
    assert "from 4 runs" in page.text
    # Named by themselves, the runs inside are a comparison of their own.
    assert "Over 3 target domains" in read_page(run / "held-out", output=tmp_path / "inside.html").text


def test_expectations_of_several_algorithms_and_trials(tmp_path: Path, root: Path) -> None:
    for trial, right in enumerate((6, 9)):
        write_run_on_all(
            tmp_path / f"erm{trial}", root, "erm", {"ink": right / 24, "pixel": 12 / 24}, trial=trial
        )  # fmt: skip
    write_run_on_all(tmp_path / "fused", root, "domainfusion", {"ink": 0.75, "pixel": 0.75})
    write_run(tmp_path / "other", root, "cdga", 0.0, target=None)
    page = read_page(tmp_path, output=tmp_path / "report.html")
    # By domain over trials first: ink 31.25, pixel 50.
    assert (
        "none of them has seen, DomainFusion is right on about 75.0 ± 0.0 % of the images, ERM on about 40.6 ± 9.4 %,"
        in page.text
    )
    assert (
        "Trained on all of them, DomainFusion is right on 50.0 % of held-out images of the same domains, ERM on"
        in page.text
    )
    assert "Nothing here tells how CDGA does on a domain it never saw" in page.text


def test_an_expectation_without_its_runs_still_leads_and_a_damaged_one_is_refused(tmp_path: Path, root: Path) -> None:
    run = write_run_on_all(tmp_path / "run", root, "erm", {"ink": 0.25, "photo": 0.25, "pixel": 0.5})
    shutil.rmtree(run / "held-out")
    page = read_page(run, output=tmp_path / "report.html")
    assert "ERM is right on about 33.3 ± 8.3 %" in page.text
    assert "no longer there" in page.text
    assert "Class by class" not in page.text
    for damaged in ({}, {"domains": {}}, {"domains": {"ink": "25"}}, {"domains": {"ink": 250.0}}):
        dump(run / "expectation.json", damaged)
        with pytest.raises(FileError, match=r"expectation\.json"):
            write_report([run], tmp_path / "report.html")


def test_runs_with_and_without_a_target_are_told_apart(tmp_path: Path, root: Path) -> None:
    write_run(tmp_path / "a", root, "erm", 0.5)
    write_run(tmp_path / "b", root, "erm", 0.0, target=None)
    page = read_page(tmp_path, output=tmp_path / "report.html")
    assert "They differ in data, splits, or in whether a domain was held out" in page.text
    assert page.text.count("splits, 3 classes, trained on all domains") == 1
