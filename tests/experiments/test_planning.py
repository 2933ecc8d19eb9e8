"""What a plan counts is what a run then does, and planning leaves nothing behind."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from domainfusion.cli import run
from domainfusion.config import DataConfig, DistillConfig, GenerateConfig, TrainConfig
from domainfusion.errors import LDMError, UsageError
from domainfusion.experiments import planning
from domainfusion.experiments.planning import plan_run
from domainfusion.experiments.runs import train_run


@pytest.fixture(autouse=True)
def little_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "BUDGET", 0.05)


def options(tiny_pipeline: Path, **changes: Any) -> TrainConfig:
    base = TrainConfig(
        target="sketch", steps=10, evaluations=2, batch_size=4, backbone="test_resnet", precision="float32",
        device="cpu", ldm=str(tiny_pipeline), data=DataConfig(size=16),
        distill=DistillConfig(images_per_step=2), generate=GenerateConfig(candidates=2, steps=2, batch_size=8),
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


def files_below(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("updating", [True, False])
def test_it_counts_what_the_run_does(
    image_folder: Path, tiny_pipeline: Path, tmp_path: Path, cache: Path, updating: bool
) -> None:
    config = options(tiny_pipeline)
    config = dataclasses.replace(config, generate=dataclasses.replace(config.generate, updating=updating))
    planned = plan_run(str(image_folder), config)
    assert not cache.exists()  # nothing was decoded or generated for good
    result = train_run(str(image_folder), config, tmp_path / "run", progress=False)
    assert planned["counts"]["generations"] == result["costs"]["generations"] == 3
    assert planned["counts"]["generated_images"] == result["costs"]["generated_images"]
    assert planned["counts"]["cached_images"] == 0
    assert planned["sources"] == ["cartoon", "photo"]
    assert planned["classes"] == 3
    data = json.loads((tmp_path / "run" / "data.json").read_text())
    assert (planned["counts"]["images"], planned["counts"]["steps_per_epoch"]) == (
        data["images"], data["steps_per_epoch"],
    )  # fmt: skip
    # 2 evaluations of validation and target, then validation twice and the test once.
    validation, test, held = sum(data["validation"].values()), data["test"], 36 - data["test"]
    assert planned["counts"]["evaluated_images"] == 2 * (validation + test + held) + 2 * validation + test

    written = files_below(tmp_path / "run")
    checkpoints = sum(value for name, value in written.items() if name.startswith("checkpoints/"))
    assert planned["bytes"]["checkpoints"] == pytest.approx(checkpoints, rel=0.15)
    assert planned["bytes"]["model"] == pytest.approx(written["model.safetensors"], rel=0.1)
    cached = files_below(cache)
    assert planned["bytes"]["decoded_images_cache"] == pytest.approx(
        sum(value for name, value in cached.items() if name.endswith("images.npy")), rel=0.01
    )
    assert planned["bytes"]["candidates_cache"] == pytest.approx(
        sum(
            value
            for name, value in cached.items()
            if name.startswith("candidates/") and name.count(".") == 1 and name.endswith(".npy")
        ),
        rel=0.01,
    )
    arrays = sum(value for name, value in written.items() if name.endswith("/images.npy"))
    assert planned["bytes"]["synthetic_images"] == pytest.approx(2 * arrays, rel=0.05)

    # Again, now that images and candidates are in the cache.
    again = plan_run(str(image_folder), config)
    assert "decoding" not in again["seconds"]
    assert "candidates_cache" not in again["bytes"]
    assert again["counts"]["cached_images"] == 58 * 2 * (1 if updating else 3)  # of generations from stored images
    assert files_below(cache) == cached


def test_the_total_is_the_sum_of_its_parts(image_folder: Path, tiny_pipeline: Path) -> None:
    planned = plan_run(str(image_folder), options(tiny_pipeline))
    for kind in ("seconds", "bytes"):
        parts = dict(planned[kind])
        assert parts.pop("total") == pytest.approx(sum(parts.values()))
        assert all(value > 0 for value in parts.values())
    assert planned["seconds"]["steps"] == pytest.approx(10 * planned["each"]["step"])
    assert planned["memory_bytes"] > 50e6


def test_curves_are_counted_and_not_tabulated(image_folder: Path, tiny_pipeline: Path, cache: Path) -> None:
    distill = DistillConfig(estimator="curve", curve_samples=2, curve_rounds=2)
    planned = plan_run(str(image_folder), options(tiny_pipeline, distill=distill, synthetic_weight=0))
    assert planned["counts"]["curves"] == 58
    assert planned["seconds"]["curves"] == pytest.approx(58 * planned["each"]["curve"])
    assert not cache.exists()


def test_without_an_ldm_none_is_loaded(image_folder: Path, tiny_pipeline: Path) -> None:
    planned = plan_run(str(image_folder), options(tiny_pipeline, algorithm="erm", ldm="./absent"))
    assert set(planned["seconds"]) == {"decoding", "loading", "steps", "evaluations", "total"}


def test_no_published_weights_are_fetched_and_an_ldm_out_of_reach_is_left_out(
    image_folder: Path, tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import timm
    from diffusers import AutoencoderKL

    def unreachable(*arguments: Any, **options: Any) -> None:
        raise OSError("the hub cannot be reached")

    monkeypatch.setattr(timm.models._builder, "load_pretrained", unreachable)
    monkeypatch.setattr(AutoencoderKL, "from_pretrained", unreachable)
    config = options(tiny_pipeline, pretrained=True, backbone="resnet10t", ldm="somebody/model")
    planned = plan_run(str(image_folder), config)
    assert set(planned["seconds"]) == {"decoding", "loading", "steps", "evaluations", "total"}
    assert any("somebody/model" in n and "Generations and distillation are not counted" in n for n in planned["notes"])
    with pytest.raises(LDMError, match=r"there is no folder \./absent"):
        plan_run(str(image_folder), dataclasses.replace(config, ldm="./absent"))


def test_an_unreadable_image_is_named(image_folder: Path, tiny_pipeline: Path) -> None:
    (image_folder / "cartoon" / "cat" / "00.png").write_bytes(b"nothing")
    for bad_images, said in (("error", "a run stops at such an image"), ("skip", "a run leaves such images out")):
        config = options(tiny_pipeline, algorithm="erm")
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, bad_images=bad_images))
        planned = plan_run(str(image_folder), config)
        assert any("00.png cannot be read" in note and said in note for note in planned["notes"])


def test_wrong_options_are_refused_as_the_run_refuses_them(image_folder: Path, tiny_pipeline: Path) -> None:
    with pytest.raises(UsageError, match="unknown domain 'sketsh'; did you mean 'sketch'"):
        plan_run(str(image_folder), options(tiny_pipeline, target="sketsh"))
    with pytest.raises(UsageError, match="unknown algorithm"):
        plan_run(str(image_folder), options(tiny_pipeline, algorithm="emr"))


def test_the_command_prints_the_plan(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from domainfusion import doctor

    roomy = {"path": "/", "free": 10**15, "writable": True}
    healthy = {
        "problems": [], "notes": [], "devices": [{"name": "cpu", "description": "", "autocast": "float32"}],
        "memory": {"available": 10**12, "total": 10**12}, "disk": {"cache": roomy, "current folder": roomy},
    }  # fmt: skip
    monkeypatch.setattr(doctor, "examine", lambda online: dict(healthy))
    monkeypatch.setattr(doctor, "machine_text", lambda found: "the machine")
    words = ["doctor", str(image_folder), "--algorithm", "erm", "--steps", "7", "--backbone", "test_resnet"]
    words += ["--data.size", "16", "--batch-size", "4"]
    assert run(words) == 0
    text = capsys.readouterr().out
    assert text.startswith(
        f"the machine\n\nerm on {image_folder} on every domain: 108 images, 3 classes, domainbed splits"
    )
    assert "7 steps of" in text
    assert "disk:" not in text
    healthy["disk"] = {"cache": roomy | {"free": 10}, "current folder": roomy}
    healthy["memory"] = {"available": -(10**12), "total": 10**12}
    assert run([*words, "--json"]) == 0
    notes = json.loads(capsys.readouterr().out)["plan"]["notes"]
    assert any(note.startswith("disk: 83 kB go to the cache and 0 kB are free") for note in notes)
    assert any(note.startswith("memory: ") for note in notes)
