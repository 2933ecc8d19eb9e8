"""Facts about this machine and installation, each found by trying it where that is possible."""

from __future__ import annotations

import base64
import csv
import hashlib
import os
import re
import shutil
import tempfile
import time
import urllib.error
import urllib.request
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from domainfusion.devices import choose_device, choose_dtype
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.diffusion.ldm_folder import embedded_folder
from domainfusion.diffusion.ldm_source import source_fingerprint
from domainfusion.errors import DomainFusionError
from domainfusion.experiments.descriptions import describe_environment

PASS_IMAGES = 16  # images in the U-Net pass that is timed


def describe_devices() -> list[dict[str, Any]]:
    """Every device that can train, the one that `--device auto` takes first."""
    cpu = torch.device("cpu")
    checks = {
        "bfloat16": "_is_avx512_bf16_supported",
        "amx": "_is_amx_tile_supported",
        "avx512": "_is_avx512_supported",
    }
    described: list[dict[str, Any]] = [
        {
            "name": "cpu", "description": describe_environment()["processor"],
            "autocast": str(choose_dtype("auto", cpu)).removeprefix("torch."),
            **{name: bool(getattr(torch.cpu, check, bool)()) for name, check in checks.items()},
        }
    ]  # fmt: skip
    if torch.backends.mps.is_available():
        described.insert(0, {"name": "mps", "description": "Apple GPU", "autocast": "float32"})
    gpus = []
    for i in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(i)
        dtype = choose_dtype("auto", torch.device("cuda", i))
        gpus.append(
            {
                "name": f"cuda:{i}", "description": torch.cuda.get_device_name(i), "memory": total, "free": free,
                "autocast": str(dtype).removeprefix("torch."),
            }
        )  # fmt: skip
    described[:0] = gpus
    auto = choose_device("auto")
    described.sort(key=lambda entry: not entry["name"].startswith(auto.type))
    return described


def describe_threads() -> dict[str, Any]:
    """Threads that torch computes with, cores that this process may use, and how busy the machine is."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "torch": torch.get_num_threads(), "cores": cores, "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "load": round(os.getloadavg()[0], 2),
    }  # fmt: skip


def describe_memory() -> dict[str, int]:
    """Bytes of memory in all and available, a container's limit taken into account."""
    page = os.sysconf("SC_PAGE_SIZE")
    total = page * os.sysconf("SC_PHYS_PAGES")
    available = page * os.sysconf("SC_AVPHYS_PAGES") if "SC_AVPHYS_PAGES" in os.sysconf_names else total
    try:
        match = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
        available = int(match[1]) * 1024 if match else available
    except OSError:
        pass
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        total, available = min(total, limit), min(available, max(0, limit - used))
    except (OSError, ValueError):  # no container, or one without a limit
        pass
    return {"total": total, "available": available}


def describe_disk(path: Path) -> dict[str, Any]:
    """Free bytes at `path`, or at its nearest parent that exists, and whether files can be written there."""
    existing = next(parent for parent in [path, *path.parents] if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            writable = True
    except OSError:
        writable = False
    return {"path": str(path), "free": shutil.disk_usage(existing).free, "writable": writable}


def describe_extras(distribution: str = "domainfusion") -> dict[str, list[str]]:
    """{extra: packages of it that are missing}, by the installation's own metadata."""
    try:
        required = metadata.requires(distribution) or []
    except metadata.PackageNotFoundError:
        return {}
    extras: dict[str, list[str]] = {}
    for line in required:
        package, extra = re.match(r"[\w.-]+", line), re.search(r"extra\s*==\s*[\"']([\w-]+)[\"']", line)
        if package is None or extra is None:
            continue
        missing = extras.setdefault(extra[1], [])
        if package[0] == distribution:
            continue
        try:
            metadata.version(package[0])
        except metadata.PackageNotFoundError:
            missing.append(package[0])
    return dict(sorted(extras.items()))


def describe_ldm() -> dict[str, Any]:
    """Whether the embedded LDM is the one that was installed, loads and computes, and how fast."""
    found: dict[str, Any] = {"altered": None, "error": None}
    try:
        folder = embedded_folder()
        found["fingerprint"] = source_fingerprint("embedded")
        found["altered"] = altered_files(folder)
        ldm = LatentDiffusion.load("embedded", device=choose_device("auto"))
        embeds = ldm.prompt_embeds(["cat"]).expand(PASS_IMAGES, -1, -1)
        side = ldm.image_size // ldm.latent_factor
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(PASS_IMAGES, ldm.unet.config.in_channels, side, side, generator=generator).to(ldm.device)
        timesteps = torch.full((PASS_IMAGES,), ldm.num_train_timesteps // 2, device=ldm.device)
        times = []
        with torch.no_grad():
            for _ in range(3):
                started = time.monotonic()
                predicted = ldm.predict_noise(noise, timesteps, embeds)
                if not bool(torch.isfinite(predicted).all()):  # waits for a GPU, too
                    found["error"] = "its predictions are not finite"
                times.append(time.monotonic() - started)
        found["passes_per_second"] = PASS_IMAGES / min(times)
    except (DomainFusionError, RuntimeError, OSError) as error:
        found["error"] = str(error).splitlines()[0]
    return found


def altered_files(folder: Path, distribution: metadata.Distribution | None = None) -> list[str] | None:
    """Files below `folder` that differ from what pip installed, by its SHA-256s; None for a development install."""
    try:
        installed = distribution or metadata.distribution("domainfusion")
    except metadata.PackageNotFoundError:
        return None
    # `files` leaves out, from Python 3.12 on, what is no longer there.
    recorded = {
        Path(str(installed.locate_file(name))).resolve(): digest.removeprefix("sha256=")
        for name, digest, _ in csv.reader((installed.read_text("RECORD") or "").splitlines())
        if digest.startswith("sha256=")
    }
    inside = {path: value for path, value in recorded.items() if path.is_relative_to(folder.resolve())}
    if not inside:
        return None
    return sorted(path.name for path, value in inside.items() if _sha256(path) != value)


def _sha256(path: Path) -> str:
    """The digest of a file as pip writes it down; empty where the file is missing."""
    if not path.exists():
        return ""
    with open(path, "rb") as file:
        return base64.urlsafe_b64encode(hashlib.file_digest(file, "sha256").digest()).rstrip(b"=").decode()


def ask_hub() -> str:
    """ "reachable", or why the model hub is not."""
    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=8):
            return "reachable"
    except urllib.error.HTTPError:  # it answered
        return "reachable"
    except (OSError, ValueError) as error:
        return f"{address} cannot be reached: {getattr(error, 'reason', error)}"
