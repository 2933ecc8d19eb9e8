"""The demo and the judgement of an LDM, end to end on the embedded benchmark with a tiny LDM."""

import json

from domainfusion.config import DataConfig, DistillConfig, GenerateConfig, TrainConfig
from domainfusion.data.domains import load_dataset
from domainfusion.experiments import judging
from domainfusion.experiments.demo import demo_options, run_demo
from domainfusion.experiments.judging import judge_ldm, judgement_text
from domainfusion.picture_grid import save_figure


def tiny_options(ldm, **changes):
    return TrainConfig(
        target="pixel", steps=2, batch_size=2, evaluations=1, ldm=str(ldm), precision="float32",
        data=DataConfig(size=32), distill=DistillConfig(images_per_step=2),
        generate=GenerateConfig(
            candidates=2, steps=2, guidance=1.0, strength=(0.5, 0.5), interval=1, generations=1
        ),
        **changes,
    )  # fmt: skip


def test_demo_shows_both_algorithms_and_writes_the_report(tiny_pipeline, tmp_path):
    results, text = run_demo(tiny_options(tiny_pipeline), tmp_path / "demo")
    assert results["erm"]["target"] == results["domainfusion"]["target"] == "pixel"
    assert results["erm"]["protocol"] == "strict"
    assert results["erm"]["test_images"] == results["domainfusion"]["test_images"] == 139
    # 3 of 5 folds of four domains, two candidates for each image
    trained = sum(json.loads((tmp_path / "demo/domainfusion/data.json").read_text())["train"].values())
    assert results["domainfusion"]["costs"]["generated_images"] == 2 * trained
    assert f"{100 * results['domainfusion']['target_accuracy']:.1f} %" in text
    assert "pixel" in text
    assert "<html" in (tmp_path / "demo/report.html").read_text().lower()
    assert (tmp_path / "demo/domainfusion/ld_noise.png").exists()


def test_demo_holds_out_one_style_by_default():
    assert demo_options().target == "ink"


def test_judgement_measures_candidates_and_slopes(tiny_pipeline, image_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(judging, "STRENGTHS", (0.2, 0.9))
    monkeypatch.setattr(judging, "TrainConfig", lambda **options: TrainConfig(**options, batch_size=4))
    (image_folder / "photo" / "cat" / "broken.png").write_bytes(b"")
    reading = DataConfig(size=32, bad_images="skip")
    figures = []
    monkeypatch.setattr(
        judging, "save_figure", lambda figure, path, **options: figures.append(figure) or save_figure(figure, path)
    )
    found = judge_ldm(str(image_folder), str(tiny_pipeline), 16, tmp_path / "judge", reading=reading, steps=2)
    low, high = found["candidates"]
    assert high["pixel_distance"] > low["pixel_distance"] > 0
    assert set(found["slopes"]) == {"plain", "guided", "contrast"}
    assert all(0 <= entry["true_below_wrong"] <= 100 for entry in found["slopes"].values())
    assert (tmp_path / "judge/candidates.png").exists()
    # The sheet says what its rows and columns are; its columns are of every domain.
    words = [text.get_text() for text in figures[0].texts]
    dataset = load_dataset(str(image_folder), reading)
    columns = {tuple(text.split("\nfrom ")) for text in words if "\nfrom " in text}
    assert {domain for _, domain in columns} == set(dataset.domains)
    assert {name for name, _ in columns} <= set(dataset.classes)
    assert "as stored" in words
    assert f"strength 0.9\n{high['recognised']:.0f} % recognised" in words
    assert "strength 0.9" in judgement_text(found)
