from __future__ import annotations

import base64
import dataclasses
import hashlib
import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from domainfusion import cli
from domainfusion.data import fetching
from domainfusion.data.benchmarks import BENCHMARKS
from domainfusion.data.downloads import DOWNLOADS, download
from domainfusion.data.fetching import Remote, fetch
from domainfusion.errors import DataError, FileError, UsageError

DATA = np.random.default_rng(0).integers(0, 256, 300_000, dtype=np.uint8).tobytes()
OTHER = np.random.default_rng(1).integers(0, 256, 300_000, dtype=np.uint8).tobytes()


@dataclasses.dataclass
class Server:
    """Files, how it treats requests, and what it was asked."""

    files: dict[str, bytes]
    url: str = ""
    ranges: bool = True
    etag: str = '"one"'
    cut: int | None = None  # bytes after which each connection breaks off
    fail: int = 0  # requests to answer with 503 first
    length: bool = True
    goog_hash: tuple[str, ...] = ()
    ahead: int = 0  # bytes by which what is sent begins after what was asked for
    requests: list[tuple[str, str | None, int]] = dataclasses.field(default_factory=list)  # path, range, status


@pytest.fixture
def server() -> Iterator[Server]:
    """An HTTP server on this machine that knows ranges and validators."""
    state = Server({"file.zip": DATA})

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            data = state.files.get(self.path.lstrip("/"))
            if state.fail:
                state.fail -= 1
                return self.answer(503, b"", wanted)
            if data is None:
                return self.answer(404, b"", wanted)
            start = 0
            same = self.headers.get("If-Range") in (None, state.etag)
            if wanted and state.ranges and same:
                start = int(wanted.removeprefix("bytes=").rstrip("-")) + state.ahead
                if start >= len(data):
                    return self.answer(416, b"", wanted, {"Content-Range": f"bytes */{len(data)}"})
                span = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
                return self.answer(206, data[start:], wanted, span)
            return self.answer(200, data, wanted)

        def answer(self, code: int, body: bytes, wanted: str | None, headers: dict[str, str] | None = None) -> None:
            state.requests.append((self.path, wanted, code))
            self.send_response(code)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            if state.length:
                self.send_header("Content-Length", str(len(body)))
            for value in state.goog_hash:
                self.send_header("x-goog-hash", value)
            if state.etag:
                self.send_header("ETag", state.etag)
            self.end_headers()
            self.wfile.write(body if state.cut is None else body[: state.cut])
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    listener = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{listener.server_port}"
    yield state
    listener.shutdown()
    listener.server_close()


def get(server: Server, path: Path, **facts: object) -> dict[str, object]:
    return fetch(Remote(f"{server.url}/file.zip", **facts), path, wait=0.0, progress=False)


def test_a_file_arrives_with_its_checksums(server: Server, tmp_path: Path) -> None:
    found = get(server, tmp_path / "file.zip", size=len(DATA), md5=hashlib.md5(DATA).hexdigest())
    assert (tmp_path / "file.zip").read_bytes() == DATA
    assert found["sha256"] == hashlib.sha256(DATA).hexdigest()
    assert (found["size"], found["md5_known"]) == (300_000, True)
    assert [path.name for path in tmp_path.iterdir()] == ["file.zip"]


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("have", [0, 100_000, 300_000])
def test_the_servers_own_checksum_is_compared(server: Server, tmp_path: Path, together: bool, have: int) -> None:
    """Google's servers announce it, in one header or two, of the whole file in answer to a range too."""
    values = ("crc32c=AAAAAA==", f"md5={base64.b64encode(hashlib.md5(DATA).digest()).decode()}")
    server.goog_hash = (",".join(values),) if together else values
    if have:
        (tmp_path / "file.zip.part").write_bytes(DATA[:have])
    assert get(server, tmp_path / "file.zip")["md5_known"] is True
    damaged = tmp_path / "again" / "file.zip"
    damaged.parent.mkdir()
    (damaged.parent / "file.zip.part").write_bytes(b"x" + DATA[1:100_000])
    with pytest.raises(DataError, match=r"which its server announces: it is damaged; kept as .*file\.zip\.wrong"):
        get(server, damaged)
    for unusable in ("md5=no base64", "md5=", "md5=QUJD", "md5=\xe9", "crc32c=AAAAAA=="):
        server.goog_hash = (unusable,)
        (tmp_path / "unknown.zip").unlink(missing_ok=True)
        assert get(server, tmp_path / "unknown.zip")["md5_known"] is False


def test_what_has_arrived_is_not_loaded_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.zip.part").write_bytes(DATA[:100_000])
    get(server, tmp_path / "file.zip")
    assert (tmp_path / "file.zip").read_bytes() == DATA
    assert server.requests == [("/file.zip", "bytes=100000-", 206)]


def test_broken_connections_are_taken_up_again(server: Server, tmp_path: Path) -> None:
    server.cut = 70_000
    get(server, tmp_path / "file.zip")
    assert (tmp_path / "file.zip").read_bytes() == DATA
    assert [wanted for _, wanted, _ in server.requests] == [
        None, "bytes=70000-", "bytes=140000-", "bytes=210000-", "bytes=280000-",
    ]  # fmt: skip


def test_a_server_that_is_busy_is_given_more_and_more_time(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(fetching.time, "sleep", waited.append)
    server.fail = 3
    fetch(Remote(f"{server.url}/file.zip"), tmp_path / "file.zip", wait=0.5, progress=False)
    assert waited == [0.5, 1.0, 2.0]


def test_a_server_without_ranges_sends_it_whole(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    (tmp_path / "file.zip.part").write_bytes(OTHER[:100_000])
    get(server, tmp_path / "file.zip")
    assert (tmp_path / "file.zip").read_bytes() == DATA


def test_what_does_not_follow_on_what_is_there_is_not_put_behind_it(server: Server, tmp_path: Path) -> None:
    server.ahead = 10
    (tmp_path / "file.zip.part").write_bytes(DATA[:100_000])
    with pytest.raises(DataError, match="has the MD5"):
        get(server, tmp_path / "file.zip", md5=hashlib.md5(DATA).hexdigest())
    assert (tmp_path / "file.zip.wrong").read_bytes() == DATA[100_010:]  # begun anew with what came


def test_a_file_that_changed_meanwhile_is_loaded_anew(server: Server, tmp_path: Path) -> None:
    server.cut = 70_000
    with pytest.raises(DataError):
        fetch(Remote(f"{server.url}/file.zip"), tmp_path / "file.zip", attempts=1, wait=0.0, progress=False)
    assert (tmp_path / "file.zip.part").stat().st_size == 70_000
    server.cut, server.etag, server.files["file.zip"] = None, '"two"', OTHER
    get(server, tmp_path / "file.zip")
    assert (tmp_path / "file.zip").read_bytes() == OTHER


def test_a_part_that_is_complete_or_too_long(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.zip.part").write_bytes(DATA)
    get(server, tmp_path / "file.zip")
    assert [status for *_, status in server.requests] == [416]
    (tmp_path / "file.zip").unlink()
    (tmp_path / "file.zip.part").write_bytes(OTHER + b"more")
    get(server, tmp_path / "file.zip")
    assert (tmp_path / "file.zip").read_bytes() == DATA


def test_a_server_without_lengths(server: Server, tmp_path: Path) -> None:
    server.length = False
    get(server, tmp_path / "file.zip")
    assert (tmp_path / "file.zip").read_bytes() == DATA


def test_passing_failures_are_tried_again_and_lasting_ones_reported(server: Server, tmp_path: Path) -> None:
    server.fail = 2
    get(server, tmp_path / "file.zip")
    assert (tmp_path / "file.zip").read_bytes() == DATA
    server.fail = 100
    with pytest.raises(DataError, match=r"file.zip cannot be loaded \(it answers 503 Service Unavailable\)"):
        get(server, tmp_path / "again.zip")
    assert server.fail == 96
    server.fail = 0
    with pytest.raises(DataError, match=r"absent.zip answers 404 Not Found"):
        fetch(Remote(f"{server.url}/absent.zip"), tmp_path / "absent.zip", wait=0.0, progress=False)


def test_another_file_than_the_known_one_is_refused(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has the MD5 \w+, not \w+: it is damaged or another file"):
        get(server, tmp_path / "file.zip", md5=hashlib.md5(OTHER).hexdigest())
    assert [path.name for path in tmp_path.iterdir()] == ["file.zip.wrong"]


def test_another_size_is_said(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    get(server, tmp_path / "file.zip", size=5)
    assert "note: file.zip has 300000 bytes, not 5: it was changed at its source" in capsys.readouterr().err


def test_what_was_loaded_by_hand_is_taken(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.zip").write_bytes(DATA)
    for facts in ({"md5": hashlib.md5(DATA).hexdigest()}, {"size": len(DATA)}, {}):
        found = get(server, tmp_path / "file.zip", **facts)
        assert found["sha256"] == hashlib.sha256(DATA).hexdigest()
    assert server.requests == []
    # One that was cut short is completed, where it begins as archives do.
    server.files["file.zip"] = archive = b"PK" + DATA
    (tmp_path / "file.zip").write_bytes(archive[:5000])
    get(server, tmp_path / "file.zip", size=len(archive))
    assert (tmp_path / "file.zip").read_bytes() == archive
    assert server.requests == [("/file.zip", "bytes=5000-", 206)]


def test_another_file_of_that_name_takes_no_part_of_the_download(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A page that says "log in" beside what has been loaded: gigabytes would be loaded behind it, in vain."""
    path = tmp_path / "file.zip"
    path.write_bytes(b"<html>log in</html>")
    path.with_name("file.zip.part").write_bytes(DATA[:250_000])
    get(server, path, md5=hashlib.md5(DATA).hexdigest(), size=len(DATA))
    assert path.read_bytes() == DATA
    assert server.requests == [("/file.zip", "bytes=250000-", 206)]
    assert (tmp_path / "file.zip.wrong").read_bytes() == b"<html>log in</html>"
    assert "kept as file.zip.wrong" in capsys.readouterr().err


def test_a_full_disk_is_seen_before(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(FileError, match=r"file.zip needs"):
        get(server, tmp_path / "file.zip")


def test_the_command_loads_from_a_mirror_and_resumes(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files = {remote.file: DATA[:n] for n, remote in enumerate(DOWNLOADS["TerraIncognita"], start=1000)}
    words = ["data", "download", "terra_incognita", "--output", str(tmp_path / "d"), "--mirror", server.url]
    assert cli.run([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["eccv_18_annotations.tar.gz"]["sha256"] == hashlib.sha256(DATA[:1000]).hexdigest()
    assert json.loads((tmp_path / "d" / "downloads.json").read_text()) == found
    asked = len(server.requests)
    assert cli.run(words) == 0
    printed = capsys.readouterr()
    assert len(server.requests) == asked
    assert f"next: domainfusion data prepare TerraIncognita {tmp_path / 'd'} OUTPUT" in printed.out
    assert "no checksum known to compare with" in printed.out
    assert "Community Data License Agreement" in printed.err


def test_known_checksums_hold_for_mirrors_too(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.files = {remote.file: DATA for remote in DOWNLOADS["DomainNet"]}
    assert cli.run(["data", "download", "DomainNet", "--output", str(tmp_path / "d"), "--mirror", server.url]) == 1
    printed = capsys.readouterr().err
    assert "clipart.zip from" in printed
    assert "; by hand: save into that folder: http://csr.bu.edu/" in printed
    assert "domainfusion data prepare DomainNet" in printed


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_is_loaded_or_explained(name: str, tmp_path: Path) -> None:
    if name in DOWNLOADS:
        assert len({remote.file for remote in DOWNLOADS[name]}) == len(DOWNLOADS[name])
        assert all(remote.size_text for remote in DOWNLOADS[name])
        return
    with pytest.raises(UsageError, match=rf"{name} cannot be downloaded by a program: open https://.* then: domainf"):
        download(name, tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_an_unreachable_server_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching.time, "sleep", lambda _: None)
    with pytest.raises(DataError, match=r"cannot be loaded \(ConnectionRefusedError: .*; by hand: "):
        download("TerraIncognita", tmp_path, mirror="http://127.0.0.1:9", progress=False)
