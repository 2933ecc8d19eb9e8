"""Whether two runs are the same run, to the last bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from domainfusion.files import read_json
from domainfusion.json_lines import read_json_lines
from domainfusion.tensors import load_state

CLOCKS = ("seconds", "wall_seconds", "step_time", "mem_gb")  # and what the process took on a GPU


def without_clocks(value: dict[str, Any]) -> dict[str, Any]:
    """A record without what no two runs have alike."""
    return {name: item for name, item in value.items() if name not in CLOCKS}


def tensors_of(state: Any, prefix: str = "") -> dict[str, torch.Tensor]:
    """All tensors of a nested state by their place."""
    if isinstance(state, torch.Tensor):
        return {prefix: state}
    items = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list) else ()
    return {name: value for key, item in items for name, value in tensors_of(item, f"{prefix}/{key}").items()}


def assert_same_run(first: Path, second: Path) -> None:
    """Weights, optimizer, records and result are equal to the last bit; only clocks may differ."""
    for load, name in ((load_file, "model.safetensors"), (load_state, "checkpoints/last.safetensors")):
        a, b = tensors_of(load(first / name)), tensors_of(load(second / name))
        assert list(a) == list(b)
        different = [key for key in a if not torch.equal(a[key], b[key])]
        assert different == [], name
    records = [[without_clocks(r) for r in read_json_lines(folder / "metrics.jsonl")] for folder in (first, second)]
    assert records[0] == records[1]
    results = [[without_clocks(r) for r in read_json_lines(folder / "results.jsonl")] for folder in (first, second)]
    for record in (*results[0], *results[1]):
        del record["args"]["output_dir"]
    assert results[0] == results[1]
    assert without_clocks(read_json(first / "result.json")) == without_clocks(read_json(second / "result.json"))
    assert read_json(first / "model.json") == read_json(second / "model.json")
