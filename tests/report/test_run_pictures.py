"""Pictures of a run: evolution with LD noise, and the report's heat maps."""

import csv
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from domainfusion.errors import UsageError
from domainfusion.fusion.synthetic import Generation, SyntheticDataset
from domainfusion.report import heat_section
from domainfusion.report.evolution import stored_generations
from domainfusion.report.evolution_figure import border_mask, border_share, busiest_rows, evolution_figure
from domainfusion.report.heat_section import build_heat, choose_cases, read_cases
from domainfusion.report.html import write_report
from domainfusion.report.pictures import load_run_dataset
from domainfusion.report.reading import read_runs
from domainfusion.report.study import build_studies


@pytest.fixture
def run(trained_run, tiny_pipeline, tmp_path):
    """A copy of a trained run, as if it had used the tiny LDM."""
    folder = tmp_path / "run"
    shutil.copytree(trained_run, folder)
    config = folder / "config.toml"
    config.write_text(config.read_text().replace('ldm = "embedded"', f'ldm = "{tiny_pipeline}"'))
    assert str(tiny_pipeline) in config.read_text()
    return read_runs([folder])[0]


def add_generations(run, dataset, count=2):
    rows = np.flatnonzero(dataset.domain_of != dataset.index_of("sketch"))[::4]
    store = SyntheticDataset(run.folder / "synthetic")
    for number in range(count):
        images = dataset.images[rows] // (number + 2)
        lineage = [
            {"row": int(row), "class": dataset.classes[dataset.labels[row]],
             "domain": dataset.domains[dataset.domain_of[row]]}
            for row in rows
        ]  # fmt: skip
        store.add(Generation(number, rows, images, lineage), dataset)
    return rows


def test_the_evolution_shows_each_generation_with_its_noise(run, exact_ldm, tmp_path):
    dataset, _ = load_run_dataset(run)
    with pytest.raises(UsageError, match="made no synthetic images"):
        evolution_figure(run, dataset, exact_ldm, tmp_path / "three.png")
    rows = add_generations(run, dataset)
    for kind in ("any", "busy"):
        facts = evolution_figure(
            run, dataset, exact_ldm, tmp_path / f"{kind}.png", images=3, backgrounds=kind, samples=2
        )
        assert len({entry["row"] for entry in facts["images"]}) == 3
        for entry in facts["images"]:
            assert entry["row"] in rows
            assert entry["class"] == dataset.classes[dataset.labels[entry["row"]]]
            assert entry["generations"] == ["raw", "0", "1"]
            assert len(entry["border"]) == 3
            assert all(value >= 0 for value in entry["border"])
        with Image.open(tmp_path / f"{kind}.png") as picture:
            assert picture.width > picture.height  # six columns, three rows


@pytest.mark.parametrize(("wanted", "size"), [(0, 16), (24, 24)])
def test_pictures_are_of_the_size_that_the_run_had_at_the_ldm(run, exact_ldm, tmp_path, monkeypatch, wanted, size):
    dataset, _ = load_run_dataset(run)
    add_generations(run, dataset)
    run.options["generate.image_size"] = wanted
    facts = evolution_figure(run, dataset, exact_ldm, tmp_path / "three.png", images=1, samples=1)
    assert facts["image_size"] == size
    seen = []

    def label_heat(ldm, images, words, **options):
        seen.append(tuple(images.shape[-2:]))
        return module_heat(ldm, images, words, **options)

    module_heat = heat_section.label_heat
    monkeypatch.setattr(heat_section, "label_heat", label_heat)
    assert build_heat(build_studies([run])[0], dataset, images=2)
    assert seen == [(size, size)]


def test_busy_backgrounds_come_first_and_classes_take_turns(run):
    dataset, _ = load_run_dataset(run)
    images = np.full_like(np.asarray(dataset.images), 100)
    rows = add_generations(run, dataset, 1)
    busy = {int(rows[3]): 200, int(rows[-1]): 150}
    for row, height in busy.items():
        images[row, :, 0] = height
    loud = type(dataset)(**{**dataset.__dict__, "images": images})
    found = busiest_rows(stored_generations(run)[-1], loud, 4)
    assert found[0] == int(rows[3])
    assert len(set(found)) == 4
    assert dataset.domain_of[found[0]] != dataset.domain_of[found[1]]
    assert dataset.labels[found[0]] != dataset.labels[found[1]]


def test_noise_at_the_border_is_told_from_noise_in_the_middle():
    middle = torch.zeros(12, 12)
    middle[4:8, 4:8] = 1
    assert border_share(middle) == 0
    assert border_share(torch.ones(12, 12)) == pytest.approx(1)
    assert border_mask(12).sum() == 12**2 - 8**2


def test_cases_are_mostly_errors_of_different_classes():
    cases = [(k, "abc"[k % 3], "abc"[(k + (k < 9)) % 3], 0.5) for k in range(30)]
    chosen = choose_cases(cases, 6)
    assert [case[1] != case[2] for case in chosen] == [True] * 4 + [False] * 2
    assert {case[1] for case in chosen[:4]} == set("abc")
    assert len(set(chosen)) == 6
    assert len(choose_cases(cases[:2], 6)) == 2
    assert len(choose_cases(cases[9:], 6)) == 6


def test_the_report_shows_heat_maps_of_mistakes_on_request(run, tmp_path):
    write_report([run.folder], tmp_path / "plain.html")
    assert "Where the diffusion model looks" not in (tmp_path / "plain.html").read_text()
    write_report([run.folder], tmp_path / "heat.html", heat_maps=True)
    page = (tmp_path / "heat.html").read_text()
    assert "Where the diffusion model looks" in page
    assert "--heat-maps" in page
    with open(run.folder / "predictions.csv", newline="") as file:
        mistakes = [row for row in csv.DictReader(file) if row["class"] != row["prediction"]]
    assert page.count("called <b>") == min(4, len(mistakes)) > 0
    wrong = page.count("called <b>")
    assert len(re.findall(r'alt="\w+, heat of \w+"', page)) == 2 * wrong + (6 - wrong)  # true and said, or said so


def test_a_report_goes_without_heat_maps_where_there_is_no_ldm(run, tmp_path, capsys):
    study = build_studies([run])[0]
    dataset, _ = load_run_dataset(run)
    run.options["ldm"] = str(tmp_path / "gone")
    assert build_heat(study, dataset) is None
    assert "the report goes without heat maps: there is no folder" in capsys.readouterr().err
    assert build_heat(study, None) is None
    (run.folder / "predictions.csv").unlink()
    assert read_cases(run, dataset) == []
    assert build_heat(study, dataset) is None
