"""What a check of an image folder found, for people and for programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from domainfusion.data.benchmarks import Benchmark
from domainfusion.errors import printable

SHOWN = 5  # names that a line of text lists; --json has all


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that is odd: its kind, where, what, and what it does."""

    kind: str
    message: str
    effect: str = ""
    where: tuple[str, ...] = ()  # paths or names, all of them


@dataclasses.dataclass
class Verification:
    """The state of an image folder."""

    root: Path
    form: str  # "folders" or "metadata"
    benchmark: Benchmark | None
    counts: dict[str, dict[str, int]]  # images by domain and class, as found
    decoded: bool
    problems: list[Finding] = dataclasses.field(default_factory=list)
    notes: list[Finding] = dataclasses.field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether there is nothing to repair."""
        return not self.problems

    def as_json(self) -> dict[str, Any]:
        """Everything, for programs."""
        return {
            "path": str(self.root), "form": self.form, "dataset": self.benchmark.name if self.benchmark else None,
            "ok": self.ok, "decoded": self.decoded, "images": sum(sum(c.values()) for c in self.counts.values()),
            "counts": self.counts,
            "problems": [dataclasses.asdict(found) for found in self.problems],
            "notes": [dataclasses.asdict(found) for found in self.notes],
        }  # fmt: skip

    def as_text(self) -> str:
        """The same for people."""
        classes = {name for domain in self.counts.values() for name, images in domain.items() if images}
        what = f"{self.benchmark.name} ({self.benchmark.source})" if self.benchmark else "no benchmark known here"
        lines = [f"{self.root}: {what}; {number(len(self.counts), 'domain')}, {number(len(classes), 'class')}"]
        expected = dict(zip(self.benchmark.domains, self.benchmark.counts, strict=True)) if self.benchmark else {}
        for domain, found in self.counts.items():
            known = expected.get(self.benchmark.domain_of(domain) or "") if self.benchmark else None
            lines.append(
                f"  {domain}: {number(sum(found.values()), 'image')}" + (f" of {known} expected" if known else "")
            )
        for title, findings in (("problem", self.problems), ("note", self.notes)):
            for finding in findings:
                lines.append(f"{title}: {finding.message}")
                if finding.where and title == "problem":
                    lines.append(f"  {some(finding.where)}")
                if finding.effect:
                    lines.append(f"  effect: {finding.effect}")
        checked = "every image decoded" if self.decoded else "images listed, not decoded"
        lines.append(f"{checked}; " + ("no problem found" if self.ok else number(len(self.problems), "problem")))
        return "\n".join(map(printable, lines))


def some(names: Iterable[str]) -> str:
    """The first names of a list, and how many there are."""
    names = list(names)
    return ", ".join(names[:SHOWN]) + (f" ... ({len(names)} in all)" if len(names) > SHOWN else "")


def number(count: int, noun: str) -> str:
    """A count with its noun.

    >>> number(1, "image"), number(2, "class")
    ('1 image', '2 classes')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}{'es' if noun.endswith('s') else 's'}"
