"""Pages that live elsewhere in the repository become pages of the site, and links out of `docs/` are made to fit.

On the code's own pages a link leads to a file of the repository. The site has no such files: a link to a page that it
has becomes a link to that page, any other becomes the path, as code.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from make_notebooks import cells

DOCS = Path(__file__).parents[1]
ROOT = DOCS.parent
PAGES = {  # in the repository: on the site; those that are there
    "CHANGELOG.md": "project/changelog.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/security.md",
    "src/domainfusion/data/pictograms/LICENCES.md": "project/pictograms-licences.md",
    "src/domainfusion/diffusion/weights/README.md": "project/embedded-ldm.md",
    "examples/README.md": "examples/README.md",
    **{f"examples/{path.name}": f"examples/{path.stem}.md" for path in sorted((ROOT / "examples").glob("*.py"))},
}
LINK = re.compile(r"(!?)\[([^\]\n]*(?:\n[^\]\n]*)?)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def fit_links(text: str, page: str, place: str) -> str:
    """The Markdown `text` of the file `page` (its path in the repository) with links that fit the site's `place`.

    Args:
        place: where the page lies below `docs/`.
    """

    def fit(found: re.Match[str]) -> str:
        picture, label, target, anchor = found[1], found[2], found[3], found[4] or ""
        if re.match(r"[a-z]+:", target):
            return found[0]
        path = Path(os.path.normpath(Path(page).parent / target))
        if path.as_posix() in PAGES and (ROOT / path).exists():
            return f"{picture}[{label}]({_relative(Path('docs') / PAGES[path.as_posix()], place)}{anchor})"
        if picture or (path.parts[0] == "docs" and (ROOT / path).exists()):
            return f"{picture}[{label}]({_relative(path, place)}{anchor})"
        if not (ROOT / path).exists():
            return found[0]  # broken: Sphinx says so
        return f"`{path.as_posix()}`" if label in (path.name, path.as_posix()) else f"{label} (`{path.as_posix()}`)"

    return LINK.sub(fit, text)


def _relative(path: Path, place: str) -> str:
    return Path(os.path.relpath(path, (Path("docs") / place).parent)).as_posix()


def script_page(script: str, page: str) -> str:
    """An example as a page: its cells of text, and its cells of code."""
    parts = [f"```python\n{source}\n```" if kind == "code" else source for kind, source in cells(script)]
    return "\n\n".join([*parts, f"`{page}`; as a notebook: `examples/notebooks/{Path(page).stem}.ipynb`."]) + "\n"


def write_pages(app: Any, config: Any) -> None:
    """Write the pages of `PAGES` that are there below `docs/`."""
    for folder in {(DOCS / place).parent for place in PAGES.values()}:
        for path in folder.glob("*.md"):  # of a page that is gone or has another name now
            if path.relative_to(DOCS).as_posix() not in PAGES.values():
                path.unlink()
    for page, place in PAGES.items():
        target = DOCS / place
        if not (ROOT / page).exists():
            target.unlink(missing_ok=True)
            continue
        text = (ROOT / page).read_text(encoding="utf-8")
        text = fit_links(script_page(text, page) if page.endswith(".py") else text, page, place)
        target.parent.mkdir(exist_ok=True)
        if not target.exists() or target.read_text(encoding="utf-8") != text:
            target.write_text(text, encoding="utf-8")


def read_source(app: Any, docname: str, source: list[str]) -> None:
    """Fit the links of a page of `docs/` itself."""
    place = f"{docname}.md"
    if place not in PAGES.values() and (DOCS / place).exists():
        source[0] = fit_links(source[0], f"docs/{place}", place)


def setup(app: Any) -> dict[str, bool]:
    """Write the pages before Sphinx looks for sources, and fit links as each is read."""
    app.connect("config-inited", write_pages)
    app.connect("source-read", read_source)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
