"""Sending an exported model to the hub: what is sent, under which name, and what people are told where it fails."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError

from domainfusion.cli import run


class FakeHub:
    """The calls of the hub's client that are made, recorded; `fails` is raised by the first.

    `public`: names of repositories that are there already, for everybody to see.
    """

    fails: Exception | None = None
    public: tuple[str, ...] = ()
    calls: list[tuple[str, dict[str, Any]]]

    def create_repo(self, name: str, **options: Any) -> str:
        if self.fails is not None:
            raise self.fails
        self.calls.append(("create_repo", {"name": name, **options}))
        return f"https://hub.example/{name}"

    def repo_info(self, name: str) -> SimpleNamespace:
        (created,) = (call for kind, call in self.calls if kind == "create_repo")
        return SimpleNamespace(private=created["private"] and name not in self.public)

    def upload_folder(self, **options: Any) -> None:
        from huggingface_hub.utils import filter_repo_objects

        there = [path.relative_to(options["folder_path"]).as_posix() for path in options["folder_path"].rglob("*")]
        sent = sorted(filter_repo_objects(there, allow_patterns=options["allow_patterns"]))
        self.calls.append(("upload_folder", {"repo_id": options["repo_id"], "sent": sent}))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    client = FakeHub()
    client.calls = []
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: client)
    return client


def test_an_export_is_sent_whole_and_nothing_else(
    trained_run: Path, tmp_path: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "model"
    output.mkdir()
    for name in ("private notes.txt", "model.onnx"):  # a user's, and another export's
        (output / name).write_text("not for the hub", encoding="utf-8")
    words = ["export", str(trained_run), "--output", str(output), "--push-to-hub", "me/emoji", "--private"]
    assert run(words) == 0
    assert hub.calls == [
        ("create_repo", {"name": "me/emoji", "private": True, "exist_ok": True}),
        ("upload_folder", {"repo_id": "me/emoji", "sent": ["README.md", "config.json", "model.safetensors"]}),
    ]
    assert capsys.readouterr().out.splitlines()[-1] == "https://hub.example/me/emoji"


def test_a_private_model_is_not_sent_to_a_public_place(
    trained_run: Path, tmp_path: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    """The hub leaves a repository that exists as visible as it was."""
    hub.public = ("me/emoji",)
    words = ["export", str(trained_run), "--output", str(tmp_path / "m"), "--push-to-hub", "me/emoji"]
    assert run([*words, "--private"]) == 2
    assert "--private: me/emoji is on the hub already, and public" in capsys.readouterr().err
    assert [kind for kind, _ in hub.calls] == ["create_repo"]
    hub.calls.clear()
    assert run(words) == 0
    assert [kind for kind, _ in hub.calls] == ["create_repo", "upload_folder"]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (LocalTokenNotFoundError("no token"), "hf auth login"),
        (ConnectionError("no route"), "cannot be reached (no route)"),
        (RuntimeError("client closed"), "cannot be reached (client closed)"),
    ],
)
def test_what_the_hub_refuses_stays_exported(
    trained_run: Path, tmp_path: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str], error: Exception, told: str
) -> None:
    hub.fails = error
    output = tmp_path / "model"
    assert run(["export", str(trained_run), "--output", str(output), "--push-to-hub", "me/emoji"]) == 1
    message = capsys.readouterr().err
    assert told in message
    assert f"The model is in {output}" in message
    assert (output / "model.safetensors").exists()


@pytest.mark.parametrize(
    "name",
    [
        "emoji",
        "me/",
        "me/emoji/three",
        "me/em oji",
        "../../etc",
        "me/a--b",
        "me/a..b",
        "me/x.git",
        "me/x.",
        "me/" + "x" * 96,
    ],
)
def test_names_that_the_hub_does_not_know_are_refused_first(
    trained_run: Path, tmp_path: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert run(["export", str(trained_run), "--output", str(tmp_path / "model"), "--push-to-hub", name]) == 2
    assert f"--push-to-hub {name}: " in capsys.readouterr().err
    assert hub.calls == []
    assert not (tmp_path / "model").exists()


def test_what_only_the_hub_knows_to_be_no_name_is_told_as_that(
    trained_run: Path, tmp_path: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.fails = HFValidationError("reserved name")
    assert run(["export", str(trained_run), "--output", str(tmp_path / "model"), "--push-to-hub", "me/emoji"]) == 2
    assert "--push-to-hub me/emoji: reserved name" in capsys.readouterr().err


def test_private_is_about_the_hub(trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", str(trained_run), "--output", str(tmp_path / "model"), "--private"]) == 2
    assert "--push-to-hub OWNER/NAME" in capsys.readouterr().err
