"""One target fuzzed in a process of its own: seeds written, limits set, what was found counted and minimised."""

from __future__ import annotations

import dataclasses
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

from fuzz.targets import Target
from fuzz.worker import resolve

ROOT = Path(__file__).parents[1]
SLACK = 120  # seconds that imports, seeds and the last input may take beside the fuzzing


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What fuzzing a target came to: inputs tried, edges and features that they reached, files that fail."""

    executions: int
    edges: int
    features: int
    crashes: list[Path]
    problem: str = ""  # why no fuzzing took place, or why it ended early


def fuzz(target: Target, folder: Path, seconds: int) -> Outcome:
    """Fuzz `target` for `seconds`; `folder` gets `seeds/`, `corpus/` (which the next run goes on from), `crashes/`.

    Files that failed in the run before are tried first.
    """
    seeds, corpus, crashes = (folder / name for name in ("seeds", "corpus", "crashes"))
    for each in (seeds, corpus, crashes):
        each.mkdir(parents=True, exist_ok=True)
    for path in crashes.iterdir():
        if path.suffix == ".txt":
            path.unlink()
        else:
            path.replace(seeds / f"crash-{path.name}")
    for number, content in enumerate(resolve(target.seeds)()):
        (seeds / f"{number:02d}").write_bytes(content)
    command = [
        sys.executable, "-m", "fuzz.worker", target.check, str(crashes), ",".join(target.modules), str(corpus),
        str(seeds), f"-max_total_time={seconds}", f"-max_len={target.longest}", f"-timeout={target.seconds}",
        f"-rss_limit_mb={memory_limit(target)}", f"-artifact_prefix={crashes}/", "-print_final_stats=1",
        "-seed=1",
    ]  # fmt: skip
    if target.words:
        (folder / "words").write_text("".join(f'"{_quoted(word)}"\n' for word in resolve(target.words)()))
        command.append(f"-dict={folder / 'words'}")
    log = folder / "log"
    with open(log, "wb") as file:
        try:
            done = subprocess.run(
                command, env=environment(), stdout=file, stderr=file, timeout=seconds + SLACK, check=False
            )
            problem = "" if done.returncode == 0 else f"ended with {done.returncode}, see {log}"
        except subprocess.TimeoutExpired:
            problem = f"did not end by itself, see {log}"
    found = sorted(path for path in crashes.iterdir() if path.suffix != ".txt")
    for path in found:
        if path.with_suffix(".txt").exists():  # what takes too long or too much memory is kept as it is
            subprocess.run([sys.executable, "-m", "fuzz.minimising", target.check, str(path), "20"],
                           env=environment(), capture_output=True, timeout=SLACK, check=False)  # fmt: skip
    return Outcome(*_figures(log.read_text(errors="replace")), found, problem)


def memory_limit(target: Target) -> int:
    """Megabytes of a target's process that libFuzzer takes for a finding.

    It looks at the process's peak, and Linux begins that of a child with what its parent had when it started it: where
    this process has been large, the target's allowance comes on top of it.
    """
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return max(target.megabytes, peak + target.megabytes // 2)


def environment() -> dict[str, str]:
    """Of the processes: this folder and the package importable, one thread, nothing from a network."""
    paths = [str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1"}  # fmt: skip


def _quoted(word: str) -> str:
    """A word of a libFuzzer dictionary; backslash and x already stand for a byte."""
    return re.sub(r'\\(?!x[0-9a-f]{2})|"', lambda found: f"\\{found[0]}", word)


def _figures(log: str) -> tuple[int, int, int]:
    """Inputs tried, edges and features, from what libFuzzer printed."""
    steps = re.findall(r"^#(\d+)\s.*?cov: (\d+) ft: (\d+)", log, re.MULTILINE)
    tried = re.findall(r"stat::number_of_executed_units:\s*(\d+)", log) or [steps[-1][0] if steps else "0"]
    edges, features = steps[-1][1:] if steps else ("0", "0")
    return int(tried[-1]), int(edges), int(features)
