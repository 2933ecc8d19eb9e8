"""The report: one HTML file, readable anywhere, that asks nothing of a network and runs no script."""

from __future__ import annotations

import importlib.resources
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from domainfusion import __version__
from domainfusion.data.domains import MultiDomainDataset
from domainfusion.files import check_writable, write_text
from domainfusion.report.answer import build_answer
from domainfusion.report.calibration_section import build_calibration
from domainfusion.report.charts import series_class, swatch
from domainfusion.report.classes import build_class_parts
from domainfusion.report.curves import build_curves
from domainfusion.report.evolution import build_evolution
from domainfusion.report.expected_answer import build_expected_answer
from domainfusion.report.facts import (
    build_costs,
    describe_protocol,
    describe_selection,
    environments,
    option_difference_rows,
    option_texts,
    run_rows,
    seconds_in_words,
    split_rows,
)
from domainfusion.report.heat_section import build_heat
from domainfusion.report.pictures import domain_samples, ld_noise, load_run_dataset
from domainfusion.report.reading import read_runs
from domainfusion.report.slopes_section import build_slopes
from domainfusion.report.study import Study, build_studies, held_out_study
from domainfusion.report.suspicious_labels import Audit, build_suspicious, read_audits, share_audits


def write_report(paths: list[Path], output: Path, *, heat_maps: bool = False, audits: Sequence[Path] = ()) -> Path:
    """Write the report of the finished runs at or below `paths` to `output`, and return `output`.

    Runs are compared where they are comparable: same data set, protocol, target, trial and seed.
    `heat_maps` adds heat maps of some test images, for which the runs' LDM is loaded (seconds for the embedded one);
    `audits`, folders that `domainfusion audit` wrote, the most suspicious labels of the runs' data sets.
    Raises `UsageError` where there is no finished run, or an audit is of other images; `FileError` where a run cannot
    be read or the file not written.
    """
    check_writable(output)
    runs = read_runs(paths)
    studies = build_studies(runs)
    inside = [held for run in runs if run.expectation is not None for held in run.expectation.runs]
    loaded = [load_run_dataset(study.arms[0].runs[0]) for study in studies]
    shares = share_audits(read_audits(audits), studies, [dataset for dataset, _ in loaded])
    flags = ["--heat-maps"] * heat_maps + (["--audit", *map(str, audits)] if audits else [])
    page = render(
        "report.html",
        studies=[
            describe_study(study, *found, studies=len(studies), heat_maps=heat_maps, audits=share)
            for study, found, share in zip(studies, loaded, shares, strict=True)
        ],
        same_data=len({(study.data["fingerprint"], study.protocol) for study in studies}) < len(studies),
        environments=environments([*runs, *inside]), runs=len(runs) + len(inside),
        command=shlex.join(["domainfusion", "report", *map(str, paths), "--output", str(output), *flags]),
        title=f"DomainFusion report: {', '.join(dict.fromkeys(study.name for study in studies))}",
    )  # fmt: skip
    write_text(output, page)
    return output


def describe_study(
    study: Study, dataset: MultiDomainDataset | None, trouble: str, *, studies: int = 1, heat_maps: bool = False,
    audits: Sequence[Audit] = (),
) -> dict[str, Any]:  # fmt: skip
    """All that the template shows of a study; with several `studies` on a page each shows fewer pictures.

    Of runs on all domains, what is shown of single tests is of the runs inside them that left a domain out.

    Args:
        dataset: its images, or None, and why in `trouble`.
    """
    held_out = held_out_study(study)
    tested = study if held_out is None else held_out
    return {
        "study": study, "trouble": trouble, "held_out": held_out,
        "answer": build_expected_answer(study, held_out) or build_answer(study),
        "samples": None if dataset is None else domain_samples(study, dataset, classes=max(2, 6 // studies)),
        "evolution": build_evolution(study, dataset, images=max(2, 8 // studies)), "noise": ld_noise(study),
        "heat": build_heat(tested, dataset) if heat_maps else None,
        "curves": build_curves(study), "classes": build_class_parts(tested), "costs": build_costs(study),
        "calibration": build_calibration(tested), "slopes": build_slopes(study, dataset),
        "suspicious": build_suspicious(audits, dataset),
        "protocol": describe_protocol(study), "selection": describe_selection(study),
        "splits": split_rows(study, held_out),
        "runs": run_rows(study) + ([] if held_out is None else run_rows(held_out)[1:]),
        "held_out_seconds": "" if held_out is None else _spent(held_out),
        "differences": option_difference_rows(study), "options": option_texts(study),
    }  # fmt: skip


def _spent(study: Study) -> str:
    """The time that all runs of a study took together."""
    return seconds_in_words(sum(float(run.result.get("seconds", 0)) for arm in study.arms for run in arm.runs))


def render(template: str, **values: Any) -> str:
    """A page of this folder's `template`, in the report's style."""
    environment = Environment(
        loader=PackageLoader("domainfusion.report", ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["prose"] = typeset
    environment.globals.update(series_class=series_class, swatch=swatch, listed=listed)
    css = importlib.resources.files(__package__).joinpath("report.css").read_text(encoding="utf-8")
    return environment.get_template(template).render(css=Markup(css), version=__version__, **values)


def typeset(text: str) -> Markup:
    """`text` escaped, what stands between backticks set as code, figures kept on one line with their signs.

    >>> str(typeset("run `a < b`"))
    'run <code>a &lt; b</code>'
    """
    code = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    return Markup(code.replace(" %", "\u00a0%").replace("± ", "±\u00a0"))


def listed(names: Sequence[str]) -> str:
    """Names as people list them.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)
