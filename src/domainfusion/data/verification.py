"""What a folder of images is, what is wrong with it, and what that does to labels.

The folder is compared with the benchmark that its names say it is, or with itself where it is none: every domain
should have every class. Each image is decoded in full, and its pixels hashed, so that damaged files and pictures that
occur twice (in two domains: a leak from source to target; under two labels: an error in one of them, unless the
benchmark has images of several classes) are found.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from domainfusion.config import DataConfig
from domainfusion.data.benchmarks import Benchmark, recognise, several_spellings
from domainfusion.data.duplicates import decode_all
from domainfusion.data.findings import Finding, Verification, number, some
from domainfusion.data.imagefolder import find_metadata, unused_metadata
from domainfusion.data.listing import NUMBERS, nearest_layout
from domainfusion.data.scanning import scan_folder, scan_metadata


def verify_folder(
    root: Path, benchmark: Benchmark | None = None, *, own: bool = False, quick: bool = False, workers: int = 0,
    progress: bool = True,
) -> Verification:  # fmt: skip
    """Check the image folder `root` against `benchmark` (default: the one its folder names say it is).

    Args:
        own: it is no benchmark, whatever its names.
        quick: only list the files; do not decode them, and do not look for equal images.
        workers: threads that decode; 0 takes one for each CPU, at most 8.

    Raises `DataError` where `root` holds no images in the form `root/domain/class/image`, with the form that it has.
    """
    problems: list[Finding] = []
    metadata = find_metadata(root)
    if metadata:
        listing, problems, notes = scan_metadata(root, metadata)
    else:
        listing, problems, notes = scan_folder(root)
    given = benchmark is not None or own
    if not given:
        benchmark = recognise(listing, {name for classes in listing.values() for name in classes})
    counts = {d: {c: len(paths) for c, paths in sorted(classes.items())} for d, classes in sorted(listing.items())}
    state = Verification(root, "metadata" if metadata else "folders", benchmark, counts, decoded=not quick)
    state.problems += problems
    state.notes += [Finding("metadata-unused", line) for line in unused_metadata(root)]
    state.notes += notes
    classes = sorted({name for found in counts.values() for name in found})
    if len(counts) < 2:
        inner = nearest_layout(root)
        state.problems.append(
            Finding("domains", f"there is one domain, {next(iter(counts))}; two at least are needed",
                    effect=f"{inner} holds DOMAIN/CLASS/IMAGE too: is that the folder meant?" if inner else "")
        )  # fmt: skip
    if len(classes) < 2:
        state.problems.append(Finding("classes", f"there is one class, {classes[0]}; two at least are needed"))
    if benchmark is None and all(name.isdigit() for name in classes):
        state.notes.append(Finding("numbers", NUMBERS))
    if benchmark:
        _compare_names(state, benchmark)
        _compare_counts(state, benchmark)
        if not given and state.problems:
            state.notes.append(
                Finding(
                    "recognised", f"taken for {benchmark.name} by the names of its domains and classes",
                    effect="if it is a data set of its own: --dataset none",
                )
            )  # fmt: skip
    _compare_domains(state)
    _compare_spellings(state)
    _note_few_images(state)
    if not quick:
        several = benchmark is not None and benchmark.several_classes
        threads = workers or min(8, os.cpu_count() or 1)
        problems, notes = decode_all(root, listing, threads, progress, several_classes=several)
        state.problems += problems
        state.notes += notes
    return state


def _compare_names(state: Verification, benchmark: Benchmark) -> None:
    """Domains and classes that the benchmark has and the folder lacks, or the other way, or spells otherwise."""
    found = {domain: benchmark.domain_of(domain) for domain in state.counts}
    missing = [name for name in benchmark.domains if name not in found.values()]
    extra = [name for name, domain in found.items() if domain is None]
    if missing:
        state.problems.append(
            Finding(
                "missing-domain", f"{number(len(missing), 'domain')} of {benchmark.name} missing", where=tuple(missing),
                effect="targets and averages do not compare with published ones; domains are numbered otherwise",
            )
        )  # fmt: skip
    if extra:
        state.problems.append(
            Finding(
                "extra-domain", f"{number(len(extra), 'domain')} not of {benchmark.name}", where=tuple(extra),
                effect="they would train as further source domains, and shift the numbers of the others",
            )
        )  # fmt: skip
    renamed = [f"{name} for {domain}" for name, domain in found.items() if domain and domain != name]
    if renamed:
        order = [found[name] for name in sorted(found)]
        shifted = order != sorted(order, key=lambda domain: str(domain))
        effect = (
            "domains come in another order, so splits and target numbers differ from DomainBed's" if shifted else ""
        )
        kept = Finding("renamed-domain", f"domains spelled otherwise: {some(renamed)}", effect, tuple(renamed))
        (state.problems if shifted else state.notes).append(kept)
    classes = sorted({name for domain in state.counts.values() for name in domain})
    known = {name: benchmark.class_of(name) for name in classes}
    extra = [name for name in classes if known[name] is None]
    missing = [name for name in benchmark.class_names if name not in known.values()]
    if extra:
        later = sum(name > min(extra) for name in classes if name not in extra)
        state.problems.append(
            Finding(
                "extra-class", f"{number(len(extra), 'class folder')} not of {benchmark.name}", where=tuple(extra),
                effect=f"the classifier gets {len(classes)} classes for {benchmark.classes}"
                + (f", and the numbers of {later} classes shift" if later else ""),
            )
        )  # fmt: skip
    if missing:
        state.problems.append(
            Finding(
                "missing-class", f"{number(len(missing), 'class')} of {benchmark.name} in no domain",
                where=tuple(missing),
                effect=f"the task has {len(classes)} classes for {benchmark.classes}: easier than the published one",
            )
        )  # fmt: skip
    spelled = [f"{name} for {known[name]}" for name in classes if known[name] not in (None, name)]
    if spelled:
        numbers = all(name.split(" for ")[0].isdigit() for name in spelled)
        effect = "prompts for a latent diffusion model would name numbers" if numbers else ""
        kept = Finding("renamed-class", f"classes spelled otherwise: {some(spelled)}", effect, tuple(spelled))
        (state.problems if numbers else state.notes).append(kept)


def _compare_counts(state: Verification, benchmark: Benchmark) -> None:
    """Numbers of images against the published ones, by domain, and by class where those are certain."""
    totals: dict[str, int] = defaultdict(int)
    by_class: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for domain, classes in state.counts.items():
        name = benchmark.domain_of(domain)
        if name:
            totals[name] += sum(classes.values())
            for folder, count in classes.items():
                by_class[name][benchmark.class_of(folder) or folder] += count
    expected = dict(zip(benchmark.domains, benchmark.counts, strict=True))
    different = [name for name in benchmark.domains if name in totals and totals[name] != expected[name]]
    wrong = _other_class_counts(benchmark, by_class)
    mixed = [name for name in benchmark.domains if name in wrong and name not in different]
    if mixed:
        message = f"classes have other numbers of images in {number(len(mixed), 'domain')} whose own number is right"
        state.problems.append(
            Finding(
                "class-count", message,
                effect="images in the folder of another class train, and are tested, under its label",
                where=tuple(line for name in mixed for line in wrong[name]),
            )
        )  # fmt: skip
    if not different:
        return
    where = [f"{name}: {totals[name]} for {expected[name]} ({totals[name] - expected[name]:+d})" for name in different]
    where += [line for name in different for line in wrong.get(name, [])]
    known = _known_version(benchmark, totals, different)
    message = f"the number of images differs in {number(len(different), 'domain')} of {len(benchmark.domains)}"
    state.problems.append(
        Finding(
            "count", message + (f"; {known}" if known else ""),
            effect="DomainBed's splits are drawn from the number of images: other images are held out",
            where=tuple(where),
        )
    )  # fmt: skip


def _known_version(benchmark: Benchmark, totals: Mapping[str, int], different: Sequence[str]) -> str:
    """Which known version these numbers of images by domain are, in words: all of them, or those that differ."""
    for version in benchmark.versions:
        if not version.counts:
            if sum(totals.values()) == version.total:
                return f"this is the version that is {version.meaning}"
            continue
        of_version = dict(zip(benchmark.domains, version.counts, strict=True))
        if all(totals[name] == of_version[name] for name in different):
            whole = all(totals[name] == count for name, count in of_version.items())
            what = "this is" if whole else f"{', '.join(different)} {'is' if len(different) == 1 else 'are'} of"
            return f"{what} the version that is {version.meaning}"
    return ""


def _other_class_counts(benchmark: Benchmark, by_class: dict[str, dict[str, int]]) -> dict[str, list[str]]:
    """{domain: a line for each class with another number of images than published}, where those are certain.

    A class that no domain has is left out: `missing-class` tells of it.
    """
    present = {label for found in by_class.values() for label in found}
    wrong: dict[str, list[str]] = {}
    for domain, found in by_class.items():
        for label, count in zip(benchmark.class_names, benchmark.class_counts.get(domain, ()), strict=False):
            here = found.get(label, 0)
            if here != count and label in present:
                wrong.setdefault(domain, []).append(f"{domain}/{label}: {here} for {count} ({here - count:+d})")
    return wrong


def _compare_domains(state: Verification) -> None:
    """Classes that a domain lacks, and what that does where class folders are numbered domain by domain."""
    classes = sorted({name for domain in state.counts.values() for name, images in domain.items() if images})
    for domain, found in state.counts.items():
        empty = [name for name, count in found.items() if not count]
        missing = [name for name in classes if name not in found]
        if missing:
            # What ImageFolder, and so DomainBed, does: number the class folders that this domain has.
            numbers = {name: number for number, name in enumerate(sorted(found))}
            wrong = [name for name in found if name in classes and numbers[name] != classes.index(name)]
            images = sum(found[name] for name in wrong)
            example = f" ({wrong[0]} becomes {classes[numbers[wrong[0]]]})" if wrong else ""
            state.problems.append(
                Finding(
                    "class-missing-in-domain", f"domain {domain} lacks {len(missing)} of {len(classes)} classes",
                    effect=f"tools that number class folders by domain (ImageFolder, DomainBed) label {images} of its "
                    f"{sum(found.values())} images wrongly{example}; domainfusion goes by name, and no label shifts",
                    where=tuple(missing),
                )
            )  # fmt: skip
        if empty:
            state.problems.append(
                Finding(
                    "class-empty", f"domain {domain} has {number(len(empty), 'class folder')} without images",
                    where=tuple(empty),
                    effect="ImageFolder refuses them; domainfusion leaves the class out of this domain",
                )
            )  # fmt: skip


def _compare_spellings(state: Verification) -> None:
    """Names of classes, and of domains, that differ in case, blanks and punctuation alone."""
    remedy = "rename the folders" if state.form == "folders" else "correct the metadata"
    for names in several_spellings(name for domain in state.counts.values() for name in domain):
        state.problems.append(
            Finding(
                "class-spelling", f"one class in several spellings: {', '.join(map(repr, names))}",
                effect=f"they are {len(names)} different classes to every tool; {remedy}",
                where=names,
            )
        )  # fmt: skip
    for names in several_spellings(state.counts):
        state.problems.append(
            Finding(
                "domain-spelling", f"one domain in several spellings: {', '.join(map(repr, names))}",
                effect=f"they are {len(names)} different domains: a target's images train under the other name, and "
                f"its accuracy is flattered; {remedy}",
                where=names,
            )
        )  # fmt: skip


def _note_few_images(state: Verification) -> None:
    """Domains of which the default split, where it is DomainBed's, leaves no image to validate on."""
    totals = {domain: sum(found.values()) for domain, found in state.counts.items()}
    few = tuple(domain for domain, count in totals.items() if not int(DataConfig().holdout_fraction * count))
    if few:
        named = [f"{domain} ({totals[domain]})" for domain in few]
        state.notes.append(
            Finding(
                "few-images", f"{number(len(few), 'domain')} with too few images to train on: {some(named)}",
                effect="each can be a target, but the default split leaves none of its images to validate on; change "
                "--data.holdout-fraction or add images",
                where=few,
            )
        )  # fmt: skip
