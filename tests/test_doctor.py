"""The doctor: what it finds is so, what it warns of is there, and a text says it."""

from __future__ import annotations

import base64
import copy
import hashlib
import http.server
import json
import os
import threading
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from domainfusion import machine
from domainfusion.cli import run
from domainfusion.doctor import examine, judge, machine_text


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOMAINFUSION_CACHE", str(tmp_path_factory.mktemp("cache") / "not" / "there"))
        return examine()


def test_what_is_found_is_so(found: dict[str, Any]) -> None:
    assert found["threads"]["torch"] == torch.get_num_threads()
    assert 1 <= found["threads"]["cores"] <= (os.cpu_count() or 1)
    assert {entry["name"].split(":")[0] for entry in found["devices"]} >= {"cpu"}
    assert found["devices"][0]["name"].startswith("cuda" if torch.cuda.is_available() else ("cpu", "mps"))
    assert 0 < found["memory"]["available"] <= found["memory"]["total"]
    assert found["disk"]["cache"]["path"].endswith("not/there")
    assert found["disk"]["cache"]["writable"]
    assert found["disk"]["cache"]["free"] > 0
    assert found["ldm"]["error"] is None
    assert not found["ldm"]["altered"]
    assert found["ldm"]["passes_per_second"] > 0
    assert found["hub"] == "not asked (--online asks)"
    assert found["problems"] == []
    json.dumps(found)


def test_the_text_names_what_matters(found: dict[str, Any]) -> None:
    text = machine_text(found | {"problems": ["a"], "notes": ["b"], "extras": {"export": ["onnx"], "dev": []}})
    assert f"torch {torch.__version__.split('+')[0]}" in text
    assert "extra [export]  missing: onnx" in text
    assert "extra [dev]     installed" in text
    assert text.endswith("problem: a\nnote: b")


@pytest.mark.parametrize(
    ("change", "stops", "message"),
    [
        ({"ldm": {"error": "boom"}}, True, "the embedded LDM does not work (boom); reinstall"),
        ({"ldm": {"altered": ["unet.json"]}}, True, "altered (unet.json); reinstall"),
        ({"disk": {"cache": {"path": "/x", "writable": False, "free": 1e12}}}, True, "set $DOMAINFUSION_CACHE"),
        ({"disk": {"cache": {"path": "/x", "writable": True, "free": 1e9}}}, False, "little disk is free at the cache"),
        ({"threads": {"torch": 8, "cores": 2}}, False, "set OMP_NUM_THREADS=2"),
        ({"threads": {"torch": 1, "cores": 8}}, False, "torch uses 1 of 8 cores"),
        ({"threads": {"load": 9999.0}}, False, "other programs are computing"),
        ({"memory": {"available": 10**9}}, False, "little memory is available (1.0 GB)"),
        ({"hub": "https://x cannot be reached: no"}, False, "the hub is out of reach"),
    ],
)
def test_each_defect_is_named(found: dict[str, Any], change: dict[str, Any], stops: bool, message: str) -> None:
    healthy = copy.deepcopy(found)
    healthy["threads"] |= {"torch": 2, "cores": 2, "load": 0.0}
    healthy["memory"]["available"] = 10**11
    for entry in healthy["disk"].values():
        entry["free"] = 10**12
    problems, notes = judge(healthy)
    assert problems == []
    assert all(message not in note for note in notes)
    for name, value in change.items():
        healthy[name] = healthy[name] | value if isinstance(value, dict) else value
    problems, notes = judge(healthy)
    assert any(message in remark for remark in (problems if stops else notes))


def installation(root: Path) -> tuple[Path, metadata.Distribution]:
    """A wheel's files and RECORD, as pip leaves them."""
    weights = root / "domainfusion" / "diffusion" / "weights"
    weights.mkdir(parents=True)
    lines = []
    for name, content in {"a.json": b"{}", "b.safetensors": b"weights"}.items():
        (weights / name).write_bytes(content)
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        lines.append(f"domainfusion/diffusion/weights/{name},sha256={digest},{len(content)}")
    info = root / "domainfusion-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: domainfusion\nVersion: 0.1.0\nRequires-Dist: numpy>=1\n"
        'Requires-Dist: absent-thing>=1; extra == "odd"\nRequires-Dist: numpy; extra == "plain"\n'
    )
    (info / "RECORD").write_text("\n".join([*lines, "domainfusion-0.1.0.dist-info/RECORD,,"]))
    return weights, metadata.Distribution.at(info)


def test_altered_weights_are_found(tmp_path: Path) -> None:
    weights, installed = installation(tmp_path)
    assert machine.altered_files(weights, installed) == []
    (weights / "b.safetensors").write_bytes(b"weighty")
    assert machine.altered_files(weights, installed) == ["b.safetensors"]
    (weights / "a.json").unlink()
    assert machine.altered_files(weights, installed) == ["a.json", "b.safetensors"]
    assert machine.altered_files(tmp_path / "elsewhere", installed) is None


def test_missing_extras_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, installed = installation(tmp_path)
    monkeypatch.setattr(metadata, "requires", lambda name: installed.requires)
    assert machine.describe_extras() == {"odd": ["absent-thing"], "plain": []}


def test_a_broken_ldm_is_reported_and_not_raised(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "embedded_folder", lambda: tmp_path)
    monkeypatch.setattr(machine, "source_fingerprint", lambda source: "0")

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("the weights are short\nand more")

    monkeypatch.setattr(machine.LatentDiffusion, "load", fail)
    assert machine.describe_ldm()["error"] == "the weights are short"


class Answers(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_response(404)
        self.end_headers()

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def server() -> Iterator[str]:
    with http.server.HTTPServer(("127.0.0.1", 0), Answers) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{found.server_port}"
        found.shutdown()


def test_the_hub_is_asked_only_when_told(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server)
    assert machine.ask_hub() == "reachable"
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "cannot be reached" in machine.ask_hub()


def test_command(found: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from domainfusion import doctor

    monkeypatch.setattr(doctor, "examine", lambda online: found)
    assert run(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["problems"] == []
    monkeypatch.setattr(doctor, "examine", lambda online: found | {"problems": ["no disk"]})
    assert run(["doctor"]) == 1
    assert "problem: no disk" in capsys.readouterr().out
    assert run(["doctor", "--stesp", "3"]) == 2
