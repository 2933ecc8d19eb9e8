"""`.ci/run` with everything that it calls stood in for: what it says of a browser that could not be had."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "run"
TOOLS = ("bash", "cat", "dirname", "env", "grep", "mktemp", "nproc", "rm", "sleep", "tail", "tee", "timeout")
SKIPPED = (
    "SKIPPED [34] tests/report/browsing.py:31: there is no chromium on the PATH: pages are not looked at in a browser"
)
BANNER = "THE BROWSER TESTS WERE SKIPPED"
Start = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="the script is part of the repository alone")


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """`start(tests=TEXT, code=0, apt=COMMANDS, root=True, chromium=False)`: the script's output, streams in one."""

    def write(path: Path, commands: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/usr/bin/env bash\n{commands}\n")
        path.chmod(0o755)

    def run(
        *, tests: str, code: int = 0, apt: str | None = "exit 0", root: bool = True, chromium: bool = False
    ) -> subprocess.CompletedProcess[str]:
        found = tmp_path / "bin"
        found.mkdir()
        for tool in TOOLS:
            path = shutil.which(tool)
            assert path is not None
            (found / tool).symlink_to(path)
        write(found / "python3", "exit 0")
        write(found / "id", f"echo {0 if root else 1000}")
        (tmp_path / "tests.txt").write_text(tests)
        write(
            found / "make", f'case "$*" in *test) echo "$PYTEST_ADDOPTS"; cat {tmp_path}/tests.txt; exit {code};; esac'
        )
        if apt is not None:
            write(found / "apt-get", apt)
        if chromium:
            write(found / "chromium", "exit 0")
        for tool in ("ruff", "mypy", "lint-imports"):
            write(tmp_path / ".venv" / "bin" / tool, "exit 0")
        (tmp_path / ".ci").mkdir()
        shutil.copy(SCRIPT, tmp_path / ".ci" / "run")
        environment = {"PATH": str(found), "TMPDIR": str(tmp_path), "HOME": os.environ.get("HOME", "/")}
        return subprocess.run(
            [str(tmp_path / ".ci" / "run")], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, timeout=60, check=False,
        )  # fmt: skip

    return run


def said_at_the_end(output: str) -> str:
    """What follows the line that says how the tests went."""
    return output.partition("1 passed")[2]


def test_a_failed_installation_is_told_at_the_end_and_fails_nothing(start: Start, tmp_path: Path) -> None:
    apt = '[ "$1" = update ] && exit 0; echo "Reading..."; echo "E: Unable to locate package chromium" >&2; exit 100'
    done = start(tests=f"{SKIPPED}\n1 passed, 34 skipped in 2.0s\n", apt=apt)
    assert done.returncode == 0, done.stdout
    said = said_at_the_end(done.stdout)
    assert BANNER in said
    assert SKIPPED in said
    assert "`apt-get install -y --no-install-recommends chromium` failed (exit code 100): E: Unable to locate" in said
    assert "-rs" in done.stdout  # pytest is asked for the reasons
    assert not list(tmp_path.glob("tmp.*"))


def test_what_is_missing_is_installed(start: Start, tmp_path: Path) -> None:
    done = start(tests="35 passed in 2.0s\n", apt=f'echo "$*" >> {tmp_path}/apt.txt', chromium=True)
    assert done.returncode == 0, done.stdout
    asked = (tmp_path / "apt.txt").read_text().splitlines()
    assert asked == ["update", *(f"install -y --no-install-recommends {name}" for name in ("zsh", "fish"))]


def test_an_update_that_fails_is_what_is_told(start: Start) -> None:
    done = start(tests=f"{SKIPPED}\n1 passed, 34 skipped in 2.0s\n", apt='echo "E: no network" >&2; exit 100')
    assert "`apt-get update` failed (exit code 100): E: no network" in said_at_the_end(done.stdout)


@pytest.mark.parametrize(("apt", "root"), [(None, True), ("exit 0", False)])
def test_where_nothing_can_be_installed(start: Start, apt: str | None, root: bool) -> None:
    done = start(tests=f"{SKIPPED}\n1 passed, 34 skipped in 2.0s\n", apt=apt, root=root)
    assert done.returncode == 0
    assert "It was not tried to install one" in said_at_the_end(done.stdout)


def test_it_is_told_where_other_tests_fail_too(start: Start) -> None:
    done = start(tests=f"{SKIPPED}\n1 failed, 1 passed, 34 skipped in 2.0s\n", code=1, apt="exit 100")
    assert done.returncode == 1
    assert BANNER in said_at_the_end(done.stdout)


def test_a_browser_that_does_not_start_is_told_of(start: Start) -> None:
    """It is there, so nothing is installed; only the tests know."""
    line = SKIPPED.replace("there is no chromium on the PATH", "/usr/bin/chromium does not start (no display)")
    done = start(tests=f"{line}\n1 passed, 34 skipped in 2.0s\n", apt="exit 100", chromium=True)
    said = said_at_the_end(done.stdout)
    assert BANNER in said
    assert "does not start (no display)" in said
    assert "apt-get" not in said


def test_nothing_is_told_where_the_pages_were_looked_at(start: Start) -> None:
    other = "SKIPPED [1] tests/test_sweep.py:3: could not import 'ray'"
    done = start(tests=f"{other}\n35 passed, 1 skipped in 2.0s\n", chromium=True)
    assert done.returncode == 0
    assert BANNER not in done.stdout


def test_no_test_at_all_is_a_failure(start: Start) -> None:
    done = start(tests="34 skipped in 2.0s\n", chromium=True)
    assert done.returncode == 1
    assert "no test ran" in done.stdout
