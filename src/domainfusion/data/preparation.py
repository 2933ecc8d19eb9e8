"""Makes the folder `domain/class/image` of a benchmark from what its authors publish. The source is never changed.

Files are hard-linked where the source is a folder on the same disk, else copied or taken from the archive, into a
hidden folder beside OUTPUT that becomes OUTPUT when everything is there. The same call again goes on where an earlier
one stopped: a file is either absent or complete.
"""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path
from typing import Any

from tqdm import tqdm

from domainfusion.data.archives import Member, Readable, containers, list_members, open_members
from domainfusion.data.benchmarks import Benchmark
from domainfusion.data.layouts import Plan, find_annotations, leave_out, plan_terra, plan_tree, read_duplicates
from domainfusion.errors import DataError, FileError, UsageError
from domainfusion.files import hash_of, hash_of_file, make_folder, read_json, write_json

RECORD = ".domainfusion.json"
DUPLICATES = "domain_net_duplicates.txt"


def prepare(
    benchmark: Benchmark, source: Path, output: Path, *, duplicates: Path | None = None, keep_duplicates: bool = False,
    allow_missing: bool = False, copy: bool = False, progress: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Write `benchmark`'s folder from `source` to `output`, and return what was done: counts, notes, ways of writing.

    Args:
        source: a folder, an archive (.zip, .tar, .tar.gz), or a folder with archives.
        duplicates: list of images to leave out (DomainNet).
        keep_duplicates: leave none out.
        allow_missing: go on without annotated images that the source lacks (TerraIncognita).
        copy: never hard-link.

    Raises:
        UsageError: `output` holds something else or lies in `source`; DomainNet without a list of duplicates.
        DataError: a source of an unknown form, damaged, or unsafe.
        FileError: the disk is full, or cannot be written to.
    """
    if output.exists() and not output.is_dir():
        raise UsageError(f"{output} is a file; give a folder as OUTPUT")
    if output.resolve().is_relative_to(source.resolve()):
        raise UsageError(f"{output} lies in the source {source}, which is not changed; choose another OUTPUT")
    if benchmark.name == "DomainNet" and not keep_duplicates:
        duplicates = duplicates or _find_duplicates(source)
    key = hash_of([benchmark.name, _signature(source), duplicates and hash_of_file(duplicates), allow_missing])
    if output.exists() and any(output.iterdir()):
        kept = read_json(output / RECORD) if (output / RECORD).exists() else {}
        if kept.get("key") != key:
            raise UsageError(f"{output} holds something else already; choose another OUTPUT, or remove it")
        return {**kept, "already": True}
    plan = _plan(benchmark, source, duplicates, allow_missing)
    work = output.parent / f".{output.name}.partial"
    if (work / RECORD).exists() and read_json(work / RECORD).get("key") != key:
        shutil.rmtree(work)  # begun from another source or list
    make_folder(work)
    write_json(work / RECORD, {"key": key})
    ways = _write(plan, work, copy, progress)
    counts: dict[str, int] = defaultdict(int)
    for target in plan.targets:
        counts[target.split("/")[0]] += 1
    done = {
        "key": key, "dataset": benchmark.name, "source": str(source.resolve()), "output": str(output.resolve()),
        "images": len(plan.targets), "counts": dict(counts), "notes": plan.notes, **ways,
    }  # fmt: skip
    write_json(work / RECORD, done)
    if output.exists():
        output.rmdir()  # it is empty, see above
    work.rename(output)
    return {**done, "already": False}


def _find_duplicates(source: Path) -> Path:
    """The list of duplicates that lies in the source. Raises `UsageError` where there is none."""
    found = source / DUPLICATES if source.is_dir() else source.parent / DUPLICATES
    if not found.is_file():
        raise UsageError(
            "DomainNet is used without its duplicates: give their list with --duplicates FILE (one path clipart/CLASS/"
            "IMAGE a line; DomainBed has it as domainbed/misc/domain_net_duplicates.txt), or --keep-duplicates"
        )
    return found


def _signature(source: Path) -> list[Any]:
    """What tells whether the source is still the same, without opening archives."""
    if not source.exists():
        raise UsageError(f"there is no {source}")
    archives = containers(source)
    stats = [path.stat() for path in archives]
    signature: list[Any] = [str(source.resolve())]
    signature += [[path.name, s.st_size, s.st_mtime_ns] for path, s in zip(archives, stats, strict=True)]
    if source.is_dir():
        for root, folders, names in os.walk(source):
            folders.sort()
            for name in sorted(names):
                s = os.lstat(os.path.join(root, name))
                signature.append([os.path.relpath(root, source), name, s.st_size, s.st_mtime_ns])
    return signature


def _plan(benchmark: Benchmark, source: Path, duplicates: Path | None, allow_missing: bool) -> Plan:
    members = list_members(source)
    if benchmark.name == "TerraIncognita":
        annotations = find_annotations(members)
        if annotations:
            return plan_terra(benchmark, members, annotations, allow_missing)
    plan = plan_tree(benchmark, members)
    if duplicates is not None:
        plan = leave_out(plan, read_duplicates(duplicates, benchmark))
    return plan


def _write(plan: Plan, work: Path, copy: bool, progress: bool) -> dict[str, int]:
    """Bring every planned file to its place; returns how many were linked, copied, unpacked, and there already."""
    ways = {"linked": 0, "copied": 0, "unpacked": 0, "present": 0}
    pending: dict[Member, list[Path]] = defaultdict(list)
    for target, member in plan.targets.items():
        path = work / target
        if path.exists() and path.stat().st_size == member.size:
            ways["present"] += 1
        else:
            pending[member].append(path)
    _require_space(work, pending, copy)
    count = len(plan.targets)
    quiet = not progress or len(pending) < 500
    bar = tqdm(total=count, initial=ways["present"], desc="preparing", unit="image", disable=quiet)
    linkable = [member for member in pending if member.container.is_dir() and not copy]
    streamed = [member for member in pending if not (member.container.is_dir() and not copy)]
    for member in linkable:
        for path in pending[member]:
            make_folder(path.parent)
            path.unlink(missing_ok=True)
            try:
                os.link((member.container / member.name).resolve(), path)
                ways["linked"] += 1
            except OSError:  # another disk, or a file system without links
                with open(member.container / member.name, "rb") as original:
                    _place_file(original, [path])
                ways["copied"] += 1
            bar.update()
    for member, file in open_members(streamed):
        _place_file(file, pending[member])
        ways["copied" if member.container.is_dir() else "unpacked"] += len(pending[member])
        bar.update(len(pending[member]))
    bar.close()
    for target, member in plan.targets.items():
        if not (work / target).exists() or (work / target).stat().st_size != member.size:
            raise DataError(f"{member} did not arrive whole at {work / target}; run the same command again")
    return ways


def _require_space(work: Path, pending: dict[Member, list[Path]], copy: bool) -> None:
    if not work.exists():
        return
    needed = sum(member.size * len(paths) for member, paths in pending.items() if copy or not member.container.is_dir())
    free = shutil.disk_usage(work).free
    if needed > free:
        raise FileError(f"{work.parent} has {free / 1e9:.1f} GB free and needs {needed / 1e9:.1f} GB; free some space")


def _place_file(file: Readable, paths: Collection[Path]) -> None:
    """Write the contents of `file` to every path, each under another name until it is complete."""
    first, *others = paths
    for path in paths:
        make_folder(path.parent)
    temporary = first.with_name(f".{first.name}.tmp")
    try:
        with open(temporary, "wb") as target:
            shutil.copyfileobj(file, target, 1 << 20)
        for path in others:
            shutil.copyfile(temporary, path.with_name(f".{path.name}.tmp"))
            os.replace(path.with_name(f".{path.name}.tmp"), path)
        os.replace(temporary, first)
    except OSError as error:
        raise FileError(f"cannot write {first}: {error.strerror or error}; the same command goes on") from error
    finally:
        temporary.unlink(missing_ok=True)
