"""audit: which labels of a data set are suspicious."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from domainfusion.commands.layers import base_options
from domainfusion.commands.parsing import Flat, parse, refuse_output_in_data, show
from domainfusion.config import AuditConfig


@dataclasses.dataclass(frozen=True)
class AuditCommand:
    """Rank the labels of DATA by how far they are behind another label in what the LDM says of the image.

    Writes audit.csv, audit.json and audit.html (with the pictures); the same command again goes on.
    """

    data: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATA")]
    """pictograms (embedded), a folder DOMAIN/CLASS/IMAGE or with metadata.csv, or hf://OWNER/NAME."""
    options: Annotated[AuditConfig, Flat]
    output: Path | None = None
    """Folder to write (default: runs/audit-DATA)."""
    run: tuple[Path, ...] = ()
    """Finished runs on the same images, or folders of them: their classifiers' losses rank the labels too."""
    top: int = 20
    """Labels in the printed table and on the page."""
    plant: float = 0.0
    """Instead, plant this share of wrong labels and measure how well each ranking finds them (0.05: 5 %)."""
    repeats: int = 1
    """Plantings that the LDM's rankings are measured on."""
    trials: tuple[int, ...] = (0, 2, 4)
    """With --plant: splits that an ERM classifier is trained on with the planted labels (none: no classifier)."""
    steps: int = 400
    """With --plant: steps of these classifiers."""
    config: Path | None = None
    """TOML file with options; the command line has the last word."""
    json: bool = False
    """Print the result as JSON."""


def audit(words: list[str]) -> None:
    """`domainfusion audit`."""
    command = parse(AuditCommand, words, "domainfusion audit", base_options(AuditConfig, words))
    from domainfusion.experiments.auditing import audit_labels, audit_planted, audit_text, planted_text

    folder = command.output or Path("runs") / f"audit-{Path(command.data).name}"
    refuse_output_in_data(folder, command.data)
    if command.plant:
        found = audit_planted(
            command.data, command.options, folder, share=command.plant, repeats=command.repeats, runs=command.run,
            trials=command.trials, steps=command.steps,
        )  # fmt: skip
        show(found, planted_text(found), command.json)
        return
    found = audit_labels(command.data, command.options, folder, runs=command.run, top=command.top)
    show(found, audit_text(found), command.json)
