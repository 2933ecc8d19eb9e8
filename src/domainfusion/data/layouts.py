"""How each benchmark comes from its sources: a plan says which file becomes `domain/class/image`, and which none.

Plans are made from names (and, where splits are merged or annotations read, from contents); nothing is written here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import Any

from domainfusion.data.archives import Member, open_members
from domainfusion.data.benchmarks import Benchmark
from domainfusion.data.images import SUFFIXES
from domainfusion.errors import DataError

SPLITS = ("full", "train", "crossval", "val", "test")


@dataclasses.dataclass
class Plan:
    """Where each file goes, and what is worth knowing about the others."""

    targets: dict[str, Member] = dataclasses.field(default_factory=dict)  # by "domain/class/image"
    notes: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class _Place:
    domain: str
    label: str
    split: str  # one of SPLITS, or empty
    name: str  # path below the class folder


def plan_tree(benchmark: Benchmark, members: Collection[Member]) -> Plan:
    """A plan from folders that name domain and class, in whatever spelling, at whatever depth.

    Between domain and class a split may stand (`CALTECH/train/0/...`): splits are merged, a picture that an earlier
    split of the same class has (in the order full, train, crossval, val, test) being taken once.
    """
    places: dict[Member, _Place] = {}
    unplaced = []
    for member in members:
        if PurePosixPath(member.name).suffix.lower() in SUFFIXES:
            place = _place(benchmark, member.name)
            if place:
                places[member] = place
            else:
                unplaced.append(member.name)
    plan = Plan()
    if not places:
        raise DataError(
            f"no folder of the source is called as a domain of {benchmark.name} ({', '.join(benchmark.domains)}) with "
            f"class folders in it ({', '.join(benchmark.class_names[:3])} ...)"
        )
    if unplaced:
        plan.notes.append(f"left {len(unplaced)} images that lie in no class folder of a domain: {unplaced[0]} ...")
    digests = _digests([member for member, _ in _ambiguous(places)])
    merged = 0
    held: dict[tuple[str, str, str], str] = {}  # (domain, class, digest): the split that has it
    for member, place in sorted(places.items(), key=lambda item: (_rank(item[1]), str(item[0]))):
        digest = digests.get(member)
        target = f"{place.domain}/{place.label}/{place.name}"
        if digest is not None:
            first = held.setdefault((place.domain, place.label, digest), place.split)
            twin = plan.targets.get(target)
            if first != place.split or (twin is not None and digests.get(twin) == digest):
                merged += 1
                continue
        if target in plan.targets and place.split:
            target = f"{place.domain}/{place.label}/{place.split}_{place.name.replace('/', '_')}"
        if target in plan.targets:
            raise DataError(f"two different files are to become {target}: {plan.targets[target]}, and {member}")
        plan.targets[target] = member
    if merged:
        plan.notes.append(f"took {merged} pictures once that lie in several splits or copies of the same class")
    return plan


def _rank(place: _Place) -> int:
    return SPLITS.index(place.split) if place.split else -1


def _place(benchmark: Benchmark, name: str) -> _Place | None:
    """What the folders of a path say, the innermost that say anything."""
    parts = name.replace("\\", "/").split("/")
    for i in range(len(parts) - 3, -1, -1):
        domain = benchmark.domain_of(parts[i])
        if domain is None:
            continue
        split = parts[i + 1].lower() if parts[i + 1].lower() in SPLITS and i + 3 < len(parts) else ""
        at = i + 2 if split else i + 1
        label = benchmark.class_of(parts[at])
        if label is not None:
            return _Place(domain, label, split, "/".join(parts[at + 1 :]))
    return None


def _ambiguous(places: dict[Member, _Place]) -> list[tuple[Member, _Place]]:
    """Files that may be the same picture: of a class that has several splits, or that would get the same path."""
    splits: dict[tuple[str, str], set[str]] = defaultdict(set)
    paths: dict[tuple[str, str, str], int] = defaultdict(int)
    for place in places.values():
        splits[place.domain, place.label].add(place.split)
        paths[place.domain, place.label, place.name] += 1
    return [
        (member, place)
        for member, place in places.items()
        if len(splits[place.domain, place.label]) > 1 or paths[place.domain, place.label, place.name] > 1
    ]


def _digests(members: Collection[Member]) -> dict[Member, str]:
    """The SHA-256 of the contents of each file."""
    found = {}
    for member, file in open_members(members):
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
        found[member] = digest.hexdigest()
    return found


def read_duplicates(path: Path, benchmark: Benchmark) -> list[str]:
    """The images that a list names (`clipart/cake/clipart_052_000004.jpg`, one a line), as paths of a plan.

    Raises `DataError` naming the line that is no path `domain/class/image`.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the list of duplicates {path} cannot be read: {error}") from error
    found = []
    for number, line in enumerate(lines, start=1):
        if line.strip() and not line.startswith("#"):
            place = _place(benchmark, line.split()[0])
            if place is None:
                raise DataError(f"{path}, line {number}: {line.strip()} is no DOMAIN/CLASS/IMAGE of {benchmark.name}")
            found.append(f"{place.domain}/{place.label}/{place.name}")
    return found


def leave_out(plan: Plan, listed: Collection[str]) -> Plan:
    """`plan` without the listed images."""
    listed = set(listed)
    absent = len(listed - set(plan.targets))
    note = f"left out {len(listed) - absent} listed duplicates"
    if absent:
        note += f"; {absent} more on the list are not in the source"
    return Plan({t: m for t, m in plan.targets.items() if t not in listed}, [*plan.notes, note])


def find_annotations(members: Collection[Member]) -> list[dict[str, Any]]:
    """The contents of the JSON files in COCO Camera Traps form (images, annotations, categories) among `members`."""
    found = []
    for member, file in open_members([member for member in members if member.name.lower().endswith(".json")]):
        try:
            content = json.loads(file.read())
        except ValueError as error:
            raise DataError(f"{member} is not JSON: {error}") from error
        if isinstance(content, dict) and {"images", "annotations", "categories"} <= set(content):
            found.append(content)
    return found


def plan_terra(
    benchmark: Benchmark, members: Collection[Member], annotations: list[dict[str, Any]], allow_missing: bool
) -> Plan:
    """TerraIncognita from camera-trap annotations: images of four locations, each under every class it is given.

    DomainBed compares every image with every annotation (10^9 comparisons); here each list is read once. As there, an
    image that is annotated with two of the ten classes is put under both, which a note counts.

    Raises `DataError` where an annotated image is not among `members`, unless `allow_missing`.
    """
    try:
        names = {entry["id"]: entry["name"] for part in annotations for entry in part["categories"]}
        given: dict[Any, set[str]] = defaultdict(set)
        for part in annotations:
            for entry in part["annotations"]:
                given[entry["image_id"]].add(names[entry["category_id"]])
        images = {
            entry["id"]: (f"location_{entry['location']}", str(entry["file_name"]))
            for part in annotations
            for entry in part["images"]
            if "location" in entry
        }
    except (KeyError, TypeError) as error:
        raise DataError(f"the annotations are not in COCO Camera Traps form: {error} is missing") from error
    files: dict[str, Member] = {}
    for member in members:
        if PurePosixPath(member.name).suffix.lower() in SUFFIXES:
            files.setdefault(PurePosixPath(member.name).name, member)
    plan, absent, twice, other = Plan(), [], 0, 0
    for image, (domain, file_name) in sorted(images.items(), key=lambda item: item[1]):
        if domain not in benchmark.domains:
            continue
        name = PurePosixPath(file_name).name
        labels = sorted(given[image] & set(benchmark.class_names))
        other += not labels
        twice += len(labels) > 1
        if labels and name not in files:
            absent.append(name)
            continue
        for label in labels:
            plan.targets[f"{domain}/{label}/{name}"] = files[name]
    if absent and not allow_missing:
        raise DataError(
            f"{len(absent)} annotated images are not in the source ({absent[0]} ...): complete it, or go on without "
            "them with --allow-missing"
        )
    if not plan.targets:
        raise DataError(f"the annotations name no image of the locations and classes of {benchmark.name}")
    if other:
        plan.notes.append(f"left {other} images of the four locations that show none of the ten classes")
    if absent:
        plan.notes.append(f"{len(absent)} annotated images are missing: {absent[0]} ...")
    if twice:
        plan.notes.append(f"{twice} images show two of the classes and are under both, as in DomainBed")
    return plan
