"""The command line. Each command's options, and its imports, are read only when it is called.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted, 143 asked to stop (SIGTERM).
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence

from domainfusion.errors import DomainFusionError, Interrupted, UsageError, nearest, printable, unknown_name
from domainfusion.streams import take_any_text

COMMANDS = {
    "demo": "train ERM and DomainFusion on the embedded benchmark and show both",
    "train": "train one classifier",
    "benchmark": "train algorithms on every target domain and trial; table of accuracies",
    "reproduce": "the paper's tables and figures on a data set, beside the paper's values",
    "sweep": "many runs by Ray, on this machine or a cluster: data sets, targets, trials, hyperparameters",
    "evaluate": "accuracy of a finished run, by class",
    "predict": "labels and confidences of new images, by a run's model or an exported one",
    "export": "a model as a folder for timm and domainfusion.load, or as an ONNX file",
    "collect": "tables from folders of runs, DomainBed's and SWAD's too",
    "report": "one HTML file from finished runs",
    "pretrain": "train a small latent diffusion model from captioned images",
    "generate": "make the candidates of a data set ahead, for all runs, or as pictures",
    "distill": "tabulate the slopes of latent distillation for a data set",
    "audit": "rank suspicious labels of a data set by what the LDM says of its images",
    "judge": "measure what an LDM is worth for DomainFusion on a data set",
    "explain": "heat maps, scores and latent distillation of one image, as a page of pictures",
    "data": "splits, verify, prepare or download data sets",
    "doctor": "what this machine can do, and how long and how large a planned run would be",
    "completion": "a script that completes commands, options and names in bash, zsh or fish",
    "list": "list algorithms, datasets, backbones, ldms, presets or trackers",
}

# Which module of `commands` each is in; `list` and `completion` are here.
PLACES = {
    **dict.fromkeys(("demo", "train", "benchmark", "reproduce"), "runs"),
    **dict.fromkeys(("evaluate", "collect", "report"), "results"),
    **dict.fromkeys(("pretrain", "generate", "distill", "judge"), "ldm"),
    **dict.fromkeys(("predict", "explain", "export", "doctor"), "models"),
    "sweep": "sweep",
    "data": "data",
    "audit": "audit",
}

HELP = """\
domainfusion: train image classifiers that work on domains nobody has labelled, with a latent diffusion model.

usage: domainfusion COMMAND [ARGUMENTS]      domainfusion COMMAND --help

{commands}

DATA is an embedded benchmark (pictograms), a folder DOMAIN/CLASS/IMAGE or with metadata.csv, or hf://OWNER/NAME.
First steps:

  domainfusion demo                                          about ten minutes on a laptop
  domainfusion doctor DATA                                   how long a run would take
  domainfusion train DATA --target DOMAIN --output runs/x    train without DOMAIN, test on it
  domainfusion benchmark DATA --algorithms erm domainfusion --trials 3 --output runs/b

options: --help, --version, --debug (show the traceback of an error)
Decoded images and candidates are kept in ~/.cache/domainfusion, or in $DOMAINFUSION_CACHE.
"""


def help_text() -> str:
    """What `domainfusion --help` prints."""
    width = max(map(len, COMMANDS))
    return HELP.format(commands="\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()))


def calm_progress() -> None:
    """Where progress goes to a file, let bars write a line's worth every half minute, not ten times a second.

    tqdm reads these when it is imported; what the user has set has the last word.
    """
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", "30")
        os.environ.setdefault("TQDM_MAXINTERVAL", "60")


def find_command(name: str) -> Callable[[list[str]], int | None]:
    """The function of a command, its module imported now."""
    if name == "list":
        return list_names
    if name == "completion":
        return complete
    command: Callable[[list[str]], int | None] = getattr(
        importlib.import_module(f"domainfusion.commands.{PLACES[name]}"), name
    )
    return command


def run(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit code. Expected errors are one line on stderr."""
    take_any_text()
    words = list(arguments)
    debug = "--debug" in words or bool(os.environ.get("DOMAINFUSION_DEBUG"))
    words = [word for word in words if word != "--debug"]
    if words[:1] == ["help"] and len(words) > 1:  # as --help after the command
        words = [*words[1:], "--help"]
    if not words or words[0] in ("--help", "-h", "help"):
        print(help_text(), end="")
        return 0
    if words[0] == "--version":
        from domainfusion import __version__

        print(f"domainfusion {__version__}")
        return 0
    try:
        if words[0] not in COMMANDS:
            near = nearest(words[0], COMMANDS, 0.6)
            raise (
                unknown_name("command", words[0], COMMANDS)
                if near
                else UsageError(f"unknown command {words[0]!r}; commands: {', '.join(COMMANDS)}")
            )
        calm_progress()
        return int(find_command(words[0])(words[1:]) or 0)
    except UsageError as error:
        return _fail(error, 2, debug)
    except Interrupted as error:
        return _fail(error, 128 + error.number, debug)
    except DomainFusionError as error:
        return _fail(error, 1, debug)
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a disk that is full or read-only, a file that is in the way
        where = f"{error.filename}: " if error.filename else ""
        return _fail(
            OSError(f"{where}{error.strerror or error}; nothing written before is lost, the same command goes on"),
            1,
            debug,
        )
    except (MemoryError, RuntimeError) as error:  # the latter is an accelerator's
        from domainfusion.memory import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        return _fail(MemoryError(f"not enough memory ({error}): give smaller sizes, or a machine with more"), 1, debug)
    except KeyboardInterrupt:
        print("domainfusion: interrupted; the same command again goes on from the last checkpoint", file=sys.stderr)
        return 130


def _fail(error: Exception, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    if "tqdm" in sys.modules:  # a bar that is still there would stand on the message's line, and draw itself again
        for bar in list(sys.modules["tqdm"].tqdm._instances):
            bar.close()
    print(f"domainfusion: {printable(str(error))}", file=sys.stderr)
    return code


def complete(words: list[str]) -> None:
    """`domainfusion completion SHELL`."""
    from domainfusion.commands.completion import completion

    completion(words, COMMANDS, PLACES)


def list_names(words: list[str]) -> int:
    """`domainfusion list KIND [PATTERN] [--json]`."""
    from domainfusion.registry import ALGORITHMS, BACKBONES, DATASETS, LDMS, PRESETS, TRACKERS

    kinds = {
        "algorithms": ALGORITHMS, "datasets": DATASETS, "backbones": BACKBONES, "ldms": LDMS, "presets": PRESETS,
        "trackers": TRACKERS,
    }  # fmt: skip
    as_json = "--json" in words
    words = [word for word in words if word != "--json"]
    if words in (["--help"], ["-h"]) or not words:
        print(f"usage: domainfusion list KIND [PATTERN] [--json]\n\nKIND is one of {', '.join(kinds)}.")
        return 0 if words else 2
    if words[0] not in kinds:
        raise unknown_name("list", words[0], kinds)
    if len(words) > 2:
        raise UsageError(f"list takes one pattern, in quotes where the shell would fill it in, not {words[1:]}")
    registry = kinds[words[0]]
    entries = [registry.entries[name] for name in registry.names(words[1] if len(words) > 1 else "*")]
    if as_json:
        import json

        print(json.dumps([{"name": e.name, "summary": e.summary, "source": e.source} for e in entries], indent=2))
        return 0
    benchmarks = []
    if words[0] == "datasets":
        from fnmatch import fnmatch

        from domainfusion.data.benchmarks import BENCHMARKS

        benchmarks = [found for found in BENCHMARKS.values() if fnmatch(found.name, "".join(words[1:]) or "*")]
    if not entries and not benchmarks:
        from domainfusion.errors import show_note

        show_note(f"no name among the {words[0]} matches {words[1]}")
    width = max((len(entry.name) for entry in entries), default=0)
    for entry in entries:
        print(f"{entry.name:<{width}}  {entry.summary} [{entry.source}]")
    if words[0] == "backbones":
        print("... and every other model that timm knows, by its name, or torchvision, by torchvision:NAME")
    if words[0] == "datasets":
        if entries and benchmarks:
            print()
        for found in benchmarks:
            print(f"{found.described()}\n")
        names = ", ".join(BENCHMARKS)
        print(f"... and folders; {names}: domainfusion data download NAME, domainfusion data prepare NAME")
    return 0
