"""The process that makes one run of a sweep: `python -m domainfusion.sweep.worker`, the run as JSON on stdin.

A run has a process of its own, so that a crash, or memory that runs out, ends that run alone, and so that it answers to
SIGTERM as `domainfusion train` does: it saves and ends. It ends in the same way when the process that started it is
gone, whose machine's work somebody else will go on with.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from domainfusion.config import TrainConfig
from domainfusion.config_files import build_config
from domainfusion.errors import Busy, DomainFusionError, FileError, Interrupted
from domainfusion.interruption import requested, stoppable
from domainfusion.streams import take_any_text

REFUSED = 3  # exit code of what would fail again in the same way
PATIENCE = 600.0  # seconds to wait for a process that has the run's folder, which may belong to a machine just lost


def main() -> int:
    """Make the run; returns the exit code."""
    take_any_text()
    given = json.loads(sys.stdin.read())
    threading.Thread(target=_watch, args=(given["parent"],), daemon=True).start()
    print(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')}, process {os.getpid()} on {os.uname().nodename}", flush=True)
    try:
        with stoppable():
            make(given)
    except Interrupted as error:
        print(error)
        return 128 + error.number
    except FileError as error:  # a full disk, a folder that is busy: may be well the next time
        print(error)
        return 1
    except DomainFusionError as error:
        print(error)
        return REFUSED
    except Exception:
        traceback.print_exc(file=sys.stdout)
        return 1
    return 0


def make(given: dict[str, Any]) -> None:
    """Train as `domainfusion train` would in the folder that the sweep was started in."""
    from domainfusion.experiments.runs import train_run

    config = build_config(TrainConfig, given["config"], "sweep")
    limit = time.monotonic() + PATIENCE
    while True:
        try:
            train_run(given["data"], config, Path(given["folder"]), progress=False)
        except Busy:
            if time.monotonic() > limit or requested():
                raise
            time.sleep(0.5)
            continue
        return


def _watch(parent: int) -> None:
    """Ask this process to stop when its parent is gone."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
