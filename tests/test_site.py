"""What the documentation's site is made by: docstrings as reStructuredText, links that fit, pages that are reached."""

from __future__ import annotations

import doctest
import fnmatch
import importlib
import re
from pathlib import Path
from types import ModuleType

import pytest

from domainfusion.cli import COMMANDS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


@pytest.fixture
def extension(monkeypatch: pytest.MonkeyPatch) -> object:
    """`extension(name)`: a module of `docs/extensions`."""
    for folder in (DOCS / "extensions", ROOT / "scripts"):
        monkeypatch.syspath_prepend(str(folder))
    return importlib.import_module


def toctrees() -> list[str]:
    text = (DOCS / "index.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```\{toctree\}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line and not line.startswith(":")]


def test_every_page_is_in_the_sites_table_of_contents() -> None:
    entries = toctrees()
    pages = [path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.rglob("*.md")]
    pages = [page for page in pages if page != "index" and not page.startswith("_build")]
    assert len(pages) > 15
    # `*` is one folder deep here, as everywhere in Sphinx
    lost = [
        page
        for page in pages
        if not any(fnmatch.fnmatch(page, entry) and page.count("/") == entry.count("/") for entry in entries)
    ]
    assert lost == []


@pytest.mark.parametrize(
    ("page", "place", "text", "expected"),
    [
        ("docs/algorithms/erm.md", "algorithms/erm.md", "[erm.py](../../src/domainfusion/algorithms/erm.py)",
         "`src/domainfusion/algorithms/erm.py`"),
        ("docs/algorithms/erm.md", "algorithms/erm.md", "[fusion](../../src/domainfusion/fusion)",
         "`src/domainfusion/fusion`"),
        ("docs/algorithms/erm.md", "algorithms/erm.md", "[cost](coral.md#cost)", "[cost](coral.md#cost)"),
        ("docs/algorithms/erm.md", "algorithms/erm.md", "[slopes](../../src/domainfusion/distillation)",
         "slopes (`src/domainfusion/distillation`)"),
        ("docs/index.md", "index.md", "[examples](../examples/README.md)", "[examples](examples/README.md)"),
        ("CHANGELOG.md", "project/changelog.md", "[data](docs/data.md)", "[data](../data.md)"),
        ("CHANGELOG.md", "project/changelog.md", "[how](CONTRIBUTING.md)", "[how](contributing.md)"),
        ("README.md", "project/x.md", "![picture](docs/images/pictograms.png)",
         "![picture](../images/pictograms.png)"),
        ("README.md", "project/x.md", "[abs](https://arxiv.org/abs/2303.16203)",
         "[abs](https://arxiv.org/abs/2303.16203)"),
        ("docs/data.md", "data.md", "[lost](nowhere.md)", "[lost](nowhere.md)"),
    ],
)  # fmt: skip
def test_links_are_made_to_fit(extension: object, page: str, place: str, text: str, expected: str) -> None:
    assert extension("repository").fit_links(text, page, place) == expected


def render(extension: object, docstring: str) -> str:
    """A docstring through the converter and docutils, as HTML; a warning is an error."""
    pytest.importorskip("sphinx")
    core = pytest.importorskip("docutils.core")
    lines = extension("docstrings").to_rst(docstring.splitlines())
    parts = core.publish_parts("\n".join(lines), writer="html5", settings_overrides={"halt_level": 2})
    return re.sub(r"\s+", " ", parts["body"])


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        (
            "The `name` of *.png, and z_t | x_.",
            'The <span class="docutils literal">name</span> of *.png, and z_t | x_.',
        ),
        ("All `Entry`s.", '<span class="docutils literal">Entry</span>s'),
        ("An equation\n\n    a*b = c_\n\nand more `x`.", "a*b = c_"),
        ("A tree:\n\n    a/\n        b.txt\nThen text.", "<p>Then text.</p>"),
        (">>> 1 * 2 * 3\n6", ">>> 1 * 2 * 3 6"),
    ],
)
def test_docstrings_become_restructured_text(extension: object, docstring: str, expected: str) -> None:
    import html

    body = html.unescape(render(extension, docstring).replace('class="pre"', ""))
    assert expected in body


def test_the_converters_own_examples(extension: object) -> None:
    pytest.importorskip("sphinx")
    found = doctest.testmod(extension("docstrings"))
    assert (found.failed, found.attempted > 0) == (0, True)


def test_what_stands_before_a_colon_is_no_type(extension: object) -> None:
    """Napoleon takes `plain: the paper's` below a field for its type and its text."""
    pytest.importorskip("sphinx")
    converted = extension("docstrings").sections
    assert converted("attribute", ["plain: the paper's."]) == ["plain: the paper's."]
    assert ":param x: one." in converted("function", ["What.", "", "Args:", "    x: one."])


def test_named_arguments_are_left_to_napoleon(extension: object) -> None:
    pytest.importorskip("sphinx")
    to_rst = extension("docstrings").to_rst
    lines = ["What.", "", "Args:", "    x: of `y`.", "", "    z: more.", "", "Text.", "", "    code"]
    assert to_rst(lines) == [
        "What.", "", "Args:", "    x: of ``y``.", "", "    z: more.", "", "Text.", "", "::", "", "    code"
    ]  # fmt: skip


def test_the_reference_has_the_help_of_every_command(extension: object) -> None:
    pytest.importorskip("sphinx")
    module: ModuleType = extension("command_reference")
    for name in COMMANDS:
        text = module.help_of([name])
        assert "usage: domainfusion" in text
        assert max(map(len, text.splitlines())) <= module.WIDTH
    assert "--quick" in module.help_of(["data", "verify"])
