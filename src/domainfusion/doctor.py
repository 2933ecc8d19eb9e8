"""`domainfusion doctor`: what this machine can do, what will be slow on it, and what a planned run would take."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from domainfusion.config import TrainConfig
from domainfusion.data.findings import number
from domainfusion.devices import choose_device
from domainfusion.experiments.descriptions import describe_environment
from domainfusion.experiments.planning import peak_memory, plan_run
from domainfusion.files import cache_folder
from domainfusion.machine import (
    ask_hub,
    describe_devices,
    describe_disk,
    describe_extras,
    describe_ldm,
    describe_memory,
    describe_threads,
)  # fmt: skip
from domainfusion.results.tables import text_table

GIGABYTE = 1e9


def examine(*, online: bool = False) -> dict[str, Any]:
    """Facts about this machine and installation, as plain values; "problems" stop runs, "notes" slow them.

    Args:
        online: ask the model hub whether it can be reached (nothing else touches the network).
    """
    found: dict[str, Any] = {
        **describe_environment(), "devices": describe_devices(), "threads": describe_threads(),
        "memory": describe_memory(), "disk": {}, "extras": describe_extras(), "ldm": describe_ldm(),
        "hub": ask_hub() if online else "not asked (--online asks)",
    }  # fmt: skip
    for name, path in (("cache", cache_folder()), ("current folder", Path.cwd())):
        found["disk"][name] = describe_disk(path)
    found["problems"], found["notes"] = judge(found)
    return found


def judge(found: dict[str, Any]) -> tuple[list[str], list[str]]:
    """What stops runs, and what will be slow or may run out, each with its remedy."""
    problems, notes = [], []
    ldm, threads, memory = found["ldm"], found["threads"], found["memory"]
    if ldm["error"]:
        problems.append(f"the embedded LDM does not work ({ldm['error']}); reinstall domainfusion, or give --ldm")
    if ldm["altered"]:
        problems.append(f"files of the embedded LDM were altered ({', '.join(ldm['altered'])}); reinstall domainfusion")
    for name, entry in found["disk"].items():
        if not entry["writable"]:
            remedy = "set $DOMAINFUSION_CACHE" if name == "cache" else "give --output"
            problems.append(f"the {name} {entry['path']} cannot be written to; {remedy}")
        elif entry["free"] < 2 * GIGABYTE:
            notes.append(f"little disk is free at the {name} ({size(entry['free'])} at {entry['path']})")
    auto = found["devices"][0]
    if auto["name"] in ("cpu", "mps"):
        notes.append(
            "no CUDA GPU: the embedded LDM is made for that; Stable Diffusion takes minutes for an image of 512 pixels"
        )
    if auto["name"] == "cpu" and auto["autocast"] == "float32":
        notes.append("the processor does not compute in bfloat16: LDM and classifier take several times as long")
    if threads["torch"] > threads["cores"]:
        notes.append(
            f"torch uses {threads['torch']} threads on {threads['cores']} cores, which wait for each other; set "
            f"OMP_NUM_THREADS={threads['cores']}"
        )
    elif threads["torch"] < threads["cores"] // 2 + threads["cores"] % 2:
        notes.append(f"torch uses {threads['torch']} of {threads['cores']} cores; OMP_NUM_THREADS sets how many")
    if threads["load"] > 0.5 * (os.cpu_count() or 1):
        notes.append(f"other programs are computing (load {threads['load']:g}): timings below are too long")
    if memory["available"] < 3 * GIGABYTE:
        notes.append(f"little memory is available ({size(memory['available'])}); a small run needs about 2 GB")
    if not found["hub"].startswith(("reachable", "not asked")):
        notes.append("the hub is out of reach: --pretrained and hub ids work for what is in its cache alone")
    return problems, notes


def plan(data: str, config: TrainConfig, found: dict[str, Any]) -> dict[str, Any]:
    """`plan_run`, with remarks where memory or disk of the machine (`examine`) would not do."""
    planned = plan_run(data, config)
    device = choose_device(config.device)
    held = next((entry["free"] for entry in found["devices"] if entry["name"] == str(device) and "free" in entry), None)
    room = found["memory"]["available"] + peak_memory(device) if held is None else held
    if planned["memory_bytes"] > room:
        planned["notes"].append(f"memory: {size(planned['memory_bytes'])} are needed and {size(room)} are there")
    cached = sum(value for name, value in planned["bytes"].items() if name.endswith("_cache"))
    for name, needed in (("cache", cached), ("current folder", planned["bytes"]["total"] - cached)):
        if needed > found["disk"][name]["free"]:
            planned["notes"].append(
                f"disk: {size(needed)} go to the {name} and {size(found['disk'][name]['free'])} are free there"
            )
    return planned


def size(count: float) -> str:
    """A number of bytes for people.

    >>> size(1_234), size(56_789_000), size(7.8e9)
    ('1 kB', '57 MB', '7.8 GB')
    """
    if count < 1e6:
        return f"{count / 1e3:.0f} kB"
    return f"{count / 1e6:.0f} MB" if count < GIGABYTE else f"{count / GIGABYTE:.1f} GB"


def duration(seconds: float) -> str:
    """Seconds for people.

    >>> duration(0.0123), duration(42), duration(600), duration(20_000), duration(900_000)
    ('12 ms', '42 s', '10 min', '5.6 h', '10.4 days')
    """
    for limit, unit, name, digits in (
        (1, 1e-3, "ms", 0),
        (100, 1, "s", 0),
        (6000, 60, "min", 0),
        (172_800, 3600, "h", 1),
    ):
        if seconds < limit:
            return f"{seconds / unit:.{digits}f} {name}"
    return f"{seconds / 86_400:.1f} days"


def machine_text(found: dict[str, Any]) -> str:
    """What `examine` found, as text."""
    versions = found["versions"]
    lines = [["domainfusion", f"{versions['domainfusion']}, Python {found['python']}, torch {versions['torch']}"]]
    for i, entry in enumerate(found["devices"]):
        memory = f", {size(entry['free'])} of {size(entry['memory'])} free" if "memory" in entry else ""
        able = "".join(f", {name}" for name in ("bfloat16", "amx") if entry.get(name))
        auto = " (auto)" if i == 0 else ""
        lines.append([f"{entry['name']}{auto}", f"{entry['description']}{memory}{able}; runs in {entry['autocast']}"])
    threads, memory = found["threads"], found["memory"]
    lines.append(["threads", f"{threads['torch']} on {threads['cores']} cores, load {threads['load']:g}"])
    lines.append(["memory", f"{size(memory['available'])} of {size(memory['total'])} available"])
    for name, entry in found["disk"].items():
        lines.append([name, f"{entry['path']}: {size(entry['free'])} free"])
    ldm = found["ldm"]
    if ldm["error"] is None:
        intact = {None: "its files carry no checksums in a development install"}.get(ldm["altered"], "as installed")
        lines.append(["embedded LDM", f"works, {ldm['passes_per_second']:.0f} image passes a second; {intact}"])
    lines.append(["hub", found["hub"]])
    for name, missing in found["extras"].items():
        lines.append([f"extra [{name}]", f"missing: {', '.join(missing)}" if missing else "installed"])
    width = max(len(name) for name, _ in lines)
    text = "\n".join(f"{name:<{width}}  {value}" for name, value in lines)
    for title, remarks in (("problem", found["problems"]), ("note", found["notes"])):
        text += "".join(f"\n{title}: {remark}" for remark in remarks)
    return text


def plan_text(planned: dict[str, Any]) -> str:
    """What `plan` found, as text."""
    counts, each = planned["counts"], planned["each"]
    target = f"without {planned['target']}" if planned["target"] else "on every domain"
    head = (
        f"{planned['algorithm']} on {planned['data']} {target}: {counts['images']:,} images, {planned['classes']} "
        f"classes, {planned['protocol']} splits, {counts['steps']:,} steps of {duration(each['step'])} "
        f"({counts['steps'] / counts['steps_per_epoch']:.1f} epochs), {planned['device']}, {planned['precision']}"
    )
    if counts.get("generated_images"):
        head += (
            f"; {number(counts['generations'], 'generation')}, {counts['generated_images']:,} images generated, "
            f"{counts['cached_images']:,} of them in the cache already"
        )
    time_rows = [["time", ""], *([_words(name), duration(value)] for name, value in planned["seconds"].items())]
    disk_rows = [["disk", ""], *([_words(name), size(value)] for name, value in planned["bytes"].items())]
    tables = f"{text_table(time_rows)}\n\n{text_table(disk_rows)}"
    notes = "".join(f"\nnote: {remark}" for remark in planned["notes"])
    return (
        f"{head}\n\n{tables}\n\nmemory: {size(planned['memory_bytes'])} held while a step was timed\n"
        "Times are a few timed steps multiplied; while other programs compute, a run takes longer."
        f"{notes}"
    )


def _words(name: str) -> str:
    return name.replace("_cache", " (cache)").replace("_", " ")
