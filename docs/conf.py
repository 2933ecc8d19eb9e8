"""How Sphinx builds the site: `make docs`. Pages are Markdown (MyST), the reference comes from the docstrings."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "src"), str(HERE.parent / "scripts"), str(HERE / "extensions")]

project = "domainfusion"
author = "the authors of domainfusion"
project_copyright = "the authors of domainfusion, Apache-2.0"
release = version = metadata.version("domainfusion")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
    "command_reference",
    "docstrings",
    "repository",
]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_build", "extensions", "templates"]
templates_path = ["templates"]

myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "undoc-members": True}
autosummary_generate = True
maximum_signature_line_length = 100

html_theme = "furo"
html_title = f"domainfusion {release}"
html_copy_source = False
html_show_sphinx = False
