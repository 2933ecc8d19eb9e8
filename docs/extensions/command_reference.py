"""The directive `command-reference`: what `domainfusion COMMAND --help` prints, for every command there is."""

from __future__ import annotations

import contextlib
import io
import os
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from domainfusion import cli
from domainfusion.commands.words import commands

WIDTH = 88


def help_of(words: list[str]) -> str:
    """What the command line prints for `words --help`."""
    printed = io.StringIO()
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(WIDTH)
    try:
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            cli.run([*words, "--help"])
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before
    return printed.getvalue().strip()


class CommandReference(SphinxDirective):
    """A section for each command."""

    def run(self) -> list[nodes.Node]:
        """The sections, in the order of `domainfusion --help`."""
        sections: list[nodes.Node] = []
        for command in commands(cli.COMMANDS, cli.PLACES):
            title = f"domainfusion {command.name}"
            section = nodes.section(ids=[nodes.make_id(title)], names=[nodes.fully_normalize_name(title)])
            section += nodes.title(title, title)
            section += nodes.paragraph("", f"{command.summary[:1].upper()}{command.summary[1:]}.")
            text = help_of(command.name.split())
            section += nodes.literal_block(text, text, language="text")
            self.state.document.note_implicit_target(section, section)
            sections.append(section)
        return sections


def setup(app: Any) -> dict[str, bool]:
    """Make the directive known."""
    app.add_directive("command-reference", CommandReference)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
