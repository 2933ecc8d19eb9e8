"""Presets: named options to begin with, one TOML file each, as `--config` takes them; and their search spaces."""

from __future__ import annotations

import tomllib
from importlib.resources import files
from typing import Any

from domainfusion.registry import PRESETS


def load_preset(name: str) -> dict[str, Any]:
    """The nested values of a preset, with a table `search` where it has one.

    Raises `UsageError` for an unknown name, with the nearest.

    >>> load_preset("domainbed-paper")["steps"]
    5001
    """
    PRESETS.get(name)
    return tomllib.loads(files(__package__).joinpath(f"{name}.toml").read_text(encoding="utf-8"))
