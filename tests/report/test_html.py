"""The report, from run folders written by hand: what it says, that it is escaped, and that it stands by itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from domainfusion.config import GenerateConfig
from domainfusion.errors import UsageError
from domainfusion.report.facts import option_difference_rows
from domainfusion.report.html import write_report
from domainfusion.report.reading import read_runs
from domainfusion.report.study import build_studies
from report.read_pages import read_page
from report.written_runs import SIZE, add_generations, dump, write_run


def test_one_test_of_two_algorithms_opens_with_the_answer(tmp_path: Path, root: Path) -> None:
    write_run(tmp_path / "runs" / "erm", root, "erm", 9 / 24)
    fused = write_run(tmp_path / "runs" / "domainfusion", root, "domainfusion", 12 / 24)
    add_generations(fused, root)
    page = read_page(tmp_path / "runs", output=tmp_path / "report.html")
    sentence = (
        "On pixel, a domain neither model saw, DomainFusion is right on 50.0 % of the images, ERM on 37.5 % "
        "(difference +12.5 points, 24 images)."
    )
    assert sentence in page.text
    assert page.text.index(sentence) < page.text.index("How sure is that?")
    assert "DomainFusion's figure is ± 10.2 and ERM's figure is ± 9.9 points" in page.text  # 100·√(p(1-p)/24)
    assert "this one test does not show that one is better" in page.text
    assert "Guessing among the 3 classes would be right on 33.3 %" in page.text
    # Two generations, the candidates of the first cut from its sheet, and what they were made with.
    assert "2 generations in all" in page.text
    assert "How one image is put together" in page.text
    assert "content: “plain, noto mono”, strength 0.61" in page.text
    assert "each training step puts content and style together anew" in " ".join(page.text.split())
    assert "extra loss" in page.text
    assert "abacus" in page.text


@pytest.mark.parametrize(
    ("erm", "fused", "said"),
    [
        ({}, {}, "sees 64 images, raw and synthetic, one of ERM 32"),  # of two sources, 16 images of each
        ({}, {"synthetic_share": 0.5}, "ERM with --batch-size 24 has as many"),
        ({"epochs": 5}, {"epochs": 5}, "ERM with --batch-size 32 --epochs 10 has as many, in about as many steps."),
        ({"epochs": 5, "batch_size": 12}, {"epochs": 5}, "ERM with --batch-size 32 --epochs 13 has as many"),
        ({"batch_size": 32}, {}, None),
        ({}, {"synthetic_weight": 0.0}, None),
    ],
)  # fmt: skip
def test_it_tells_of_more_images_in_a_step(
    tmp_path: Path, root: Path, erm: dict[str, Any], fused: dict[str, Any], said: str | None
) -> None:
    write_run(tmp_path / "runs" / "erm", root, "erm", 9 / 24, **erm)
    write_run(tmp_path / "runs" / "domainfusion", root, "domainfusion", 12 / 24, **fused)
    text = read_page(tmp_path / "runs", output=tmp_path / "report.html").text
    assert said in text if said else "raw and synthetic, one of ERM" not in text


@pytest.mark.parametrize(
    ("steps_per_epoch", "most", "said"),
    [
        (1, 0, "again and again, every 5 epochs;"),
        (100, 0, "at 1, 4 and 7 tenths of the run's steps;"),
        (100, 2, "at 1 and 4 tenths of the run's steps;"),
    ],
)
def test_it_tells_when_generations_were_made(
    tmp_path: Path, root: Path, steps_per_epoch: int, most: int, said: str
) -> None:
    folder = write_run(tmp_path / "run", root, "domainfusion", 12 / 24)
    add_generations(folder, root)
    data = json.loads((folder / "data.json").read_text())
    (folder / "data.json").write_text(json.dumps(data | {"steps_per_epoch": steps_per_epoch}))
    (folder / "config.toml").write_text(f"steps = 400\n\n[generate]\ninterval = 5\ngenerations = {most}\n")
    assert said in read_page(folder, output=tmp_path / "report.html").text


def test_everything_that_people_name_is_escaped(tmp_path: Path, root: Path) -> None:
    folder = write_run(tmp_path / "runs", root, "domainfusion", 0.5)
    add_generations(folder, root)
    (folder / "ld_noise.txt").write_text("<script>alert(1)</script>", encoding="utf-8")
    Image.new("RGB", (20, 10)).save(folder / "ld_noise.png")
    for name in ("result.json", "data.json"):  # a class as no folder could be called
        text = (folder / name).read_text(encoding="utf-8").replace("plain", "<script>alert(2)</script>")
        (folder / name).write_text(text, encoding="utf-8")
    page = read_page(folder, output=tmp_path / "report.html")
    assert "<script" not in page.source
    assert "<b>x" not in page.source
    assert "<i>thing" not in page.source
    for text in ("<b>x", "a & b", "<script>alert(1)</script>", "<script>alert(2)</script>", "odd <i>thing</i>"):
        assert text in page.text


def test_many_runs_give_the_table_with_paired_differences(tmp_path: Path, root: Path) -> None:
    shares = {"erm": (8, 9, 10), "domainfusion": (12, 14, 13)}
    for algorithm, rights in shares.items():
        for trial, right in enumerate(rights):
            for target in ("ink", "pixel"):
                folder = tmp_path / "runs" / algorithm / target / f"{trial}"
                write_run(folder, root, algorithm, right / 24, target=target, trial=trial)
    write_run(tmp_path / "runs" / "lone", root, "erm", 0.1, target="pixel", trial=7)
    page = read_page(tmp_path / "runs", output=tmp_path / "report.html")
    assert "Over 2 target domains, each time a domain neither model saw, DomainFusion is right on 54.2" in page.text
    assert "difference +16.7 ± 2.4 points, p = 0.020, 144 images in 6 tests" in page.text
    assert "minus ERM" in page.text
    assert "1 finished run takes no part" in page.text
    assert "over 3 trials" in page.text


def test_a_single_run_without_synthetic_images(tmp_path: Path, root: Path) -> None:
    folder = write_run(tmp_path / "run", root, "erm", 0.5)
    page = read_page(folder, folder / "..", output=tmp_path / "new" / "report.html")
    assert "On pixel, a domain the model never saw, ERM is right on 50.0 % of the images (24 images)." in page.text
    assert "generation" not in page.text.split("How the numbers were made")[0]
    assert "1 run:" in page.text  # one run, although it was named twice


def test_variants_of_an_algorithm_are_told_apart(tmp_path: Path, root: Path) -> None:
    write_run(tmp_path / "runs" / "a", root, "domainfusion", 0.25, distill_weight=0.0)
    write_run(tmp_path / "runs" / "b", root, "domainfusion", 0.5)
    page = read_page(tmp_path / "runs", output=tmp_path / "report.html")
    assert "DomainFusion (distill_weight = 0.5) is right on 50.0 %" in page.text  # the defaults lead
    assert "DomainFusion (distill_weight = 0)" in page.text
    assert "Options that differ" in page.text


def test_variants_of_the_baseline_do_not_take_the_headline(tmp_path: Path, root: Path) -> None:
    write_run(tmp_path / "runs" / "a", root, "erm", 0.25)
    write_run(tmp_path / "runs" / "b", root, "erm", 0.75, lr=0.5)
    alone = read_page(tmp_path / "runs", output=tmp_path / "alone.html")
    assert "ERM (lr = 0.5) is right on 75.0 % of the images, ERM (lr = 0.001) on 25.0 %" in alone.text
    write_run(tmp_path / "runs" / "c", root, "domainfusion", 0.5)
    page = read_page(tmp_path / "runs", output=tmp_path / "report.html")
    assert "DomainFusion is right on 50.0 % of the images, ERM (lr = 0.001) on 25.0 %" in page.text


def test_of_many_algorithms_none_is_named_at_random_or_by_its_figure_on_the_target(tmp_path: Path, root: Path) -> None:
    runs = tmp_path / "runs"
    for name, right in {"erm": 12, "cdga": 12, "diffusion_classifier": 20, "dsi": 3}.items():
        write_run(runs / name, root, name, right / 24)
    page = read_page(runs, output=tmp_path / "many.html")
    sentence = "4 algorithms are right on 12.5 to 83.3 % of the images, ERM on 50.0 % (24 images)."
    assert f"On pixel, a domain none of the models saw, {sentence}" in page.text
    assert "No algorithm is named as the best: one chosen by its figure on a target" in page.text
    assert "the greatest gain of" not in page.text
    for name, right in {"erm": 6, "cdga": 12, "diffusion_classifier": 18, "dsi": 3}.items():
        write_run(runs / f"{name} ink", root, name, right / 24, target="ink")
    several = read_page(runs, output=tmp_path / "several.html")
    assert "4 algorithms are right on 12.5 to 79.2 % of the images on average, ERM on 37.5 % (48 images" in several.text
    # The product's method leads where it is there, best or not; of two, both are named.
    write_run(runs / "fused", root, "domainfusion", 9 / 24)
    page = read_page(runs, output=tmp_path / "fused.html")
    assert "DomainFusion is right on 37.5 % of the images" in page.text
    assert "No algorithm is named" not in page.text
    page = read_page(runs / "cdga", runs / "dsi", output=tmp_path / "two.html")
    assert "CDGA is right on 50.0 % of the images, DSI on 12.5 % (difference +37.5 points, 24 images)." in page.text
    page = read_page(runs / "cdga", runs / "dsi", runs / "diffusion_classifier", output=tmp_path / "three.html")
    assert "3 algorithms are right on 12.5 to 83.3 % of the images (24 images)." in page.text
    assert "the standard error of a figure is ± " in page.text


def test_of_a_sweep_the_draws_that_it_chose_are_shown(tmp_path: Path, root: Path) -> None:
    """In the form in which `sweep` writes its choice; draw 1 is better on the target and was not chosen for `ink`."""
    chosen = {"erm": {"ink": 0, "pixel": 1}, "domainfusion": {"ink": 1, "pixel": 0}}
    for algorithm, targets in chosen.items():
        for target in targets:
            for draw in range(2):
                place = tmp_path / "sweep" / algorithm / target / ("trial-0-draw-1" if draw else "trial-0")
                share = (6 + 6 * draw) / 24
                write_run(place, root, algorithm, share, target=target, lr=1e-3 * (1 + draw), hparams_seed=draw)
    found = {name: {target: [{"hparams_seed": h, "lr": 1e-3 * (1 + h)}] for target, h in row.items()}
             for name, row in chosen.items()}  # fmt: skip
    dump(tmp_path / "sweep" / "sweep.json", {"trials": [0], "chosen": found})
    runs = read_runs([tmp_path / "sweep"])
    assert {(run.algorithm, run.target): run.options["hparams_seed"] for run in runs} == {
        (name, target): draw for name, row in chosen.items() for target, draw in row.items()
    }
    page = read_page(tmp_path / "sweep", output=tmp_path / "report.html")
    assert "DomainFusion is right on 37.5 % of the images on average, ERM on 37.5 %" in page.text
    assert "cannot be compared" not in page.text
    assert "hparams_seed = " not in page.text.split("How the numbers were made")[0]  # no variants
    assert "The algorithms ran with the same options" not in page.text
    assert "Several draws of hyperparameters were made for each target and trial" in page.text
    assert "and in what was drawn for them (the table above)" in page.text
    (study,) = build_studies(runs)
    # In the order of its runs, by target.
    rates = {arm.title: ", ".join(f"{run.options['lr']:g}" for run in arm.runs) for arm in study.arms}
    assert sorted(rates.values()) == ["0.001, 0.002", "0.002, 0.001"]
    rows = option_difference_rows(study)
    assert ["lr", *(rates[arm.title] for arm in study.arms)] in rows


def test_runs_that_share_no_test_are_not_compared(tmp_path: Path, root: Path) -> None:
    write_run(tmp_path / "runs" / "a", root, "erm", 0.25, target="ink")
    write_run(tmp_path / "runs" / "b", root, "domainfusion", 0.5, target="pixel")
    page = read_page(tmp_path / "runs", output=tmp_path / "report.html")
    assert "they cannot be compared" in page.text
    assert "difference" not in page.text.split("The domains")[0]


def test_runs_of_different_protocols_are_not_compared(tmp_path: Path, root: Path) -> None:
    for name, protocol in (("erm", "strict"), ("domainfusion", "domainbed")):
        folder = write_run(tmp_path / "runs" / name, root, name, 0.5)
        dump(folder / "data.json", json.loads((folder / "data.json").read_text()) | {"protocol": protocol})
    studies = build_studies(read_runs([tmp_path / "runs"]))
    assert {(study.protocol, arm.algorithm) for study in studies for arm in study.arms} == {
        ("strict", "erm"), ("domainbed", "domainfusion"),
    }  # fmt: skip


def test_a_data_set_that_is_gone_or_changed_is_not_shown(tmp_path: Path, root: Path) -> None:
    folder = write_run(tmp_path / "run", root, "domainfusion", 0.5)
    add_generations(folder, root)
    extra = root / "ink" / "plain" / "new.png"
    Image.new("RGB", (SIZE, SIZE)).save(extra)
    page = read_page(folder, output=tmp_path / "report.html")
    assert "has changed since the run" in page.text
    assert "Images over the generations" in page.text
    root.rename(tmp_path / "elsewhere")
    assert "cannot be read here" in read_page(folder, output=tmp_path / "report.html").text


@pytest.mark.parametrize("options", [{"recombination": False}, {"updating": True}])
def test_without_recombination_training_has_the_chosen_images(
    tmp_path: Path, root: Path, options: dict[str, bool]
) -> None:
    folder = write_run(tmp_path / "run", root, "domainfusion", 0.5, generate=GenerateConfig(**options))
    add_generations(folder, root)
    text = " ".join(read_page(folder, output=tmp_path / "report.html").text.split())
    assert "together they make the fused image, on which the classifier trains. Frames mark the chosen ones." in text
    assert "anew" not in text


def test_a_damaged_generation_and_a_strange_sheet_are_survived(tmp_path: Path, root: Path) -> None:
    folder = write_run(tmp_path / "run", root, "domainfusion", 0.5)
    add_generations(folder, root)
    first, second = sorted((folder / "synthetic").iterdir())
    (second / "lineage.csv").write_text("row\n1\n", encoding="utf-8")
    (folder / "synthetic" / "generation-02").mkdir()
    np.save(folder / "synthetic" / "generation-02" / "images.npy", np.zeros(3))
    Image.new("RGB", (SIZE * 10, SIZE * 6)).save(first / "sheet.png")  # right size, other pictures
    page = read_page(folder, output=tmp_path / "report.html")
    assert "How one image is put together" not in page.text
    assert "How images are put together" in page.text


def test_many_classes_are_painted_and_fold_away(tmp_path: Path, root: Path) -> None:
    folder = write_run(tmp_path / "run", root, "erm", 0.5)
    classes = [f"class {number}" for number in range(60)]
    for name in ("result.json", "data.json"):
        value = json.loads((folder / name).read_text(encoding="utf-8")) | {"classes": classes}
        if "confusion" in value:
            value["confusion"] = np.random.default_rng(0).integers(0, 3, (60, 60)).tolist()
        dump(folder / name, value)
    page = read_page(folder, output=tmp_path / "report.html")
    assert 'class="confusion pixels"' in page.source
    assert "30 classes in between" in page.text


def test_the_file_stays_small(tmp_path: Path, root: Path) -> None:
    folder = write_run(tmp_path / "run", root, "domainfusion", 0.5)
    add_generations(folder, root, count=9)
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "ld_noise.png")
    assert write_report([folder], tmp_path / "report.html").stat().st_size < 3_000_000


def test_no_finished_run_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "result.json").write_text("{}\n{}\n", encoding="utf-8")
    with pytest.raises(UsageError, match="no finished run"):
        write_report([tmp_path], tmp_path / "report.html")
    with pytest.raises(UsageError, match=r"there is no folder .*missing"):
        write_report([tmp_path, tmp_path / "missing"], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()
