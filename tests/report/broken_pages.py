"""Small pages, each with one fault, with the check that must find it and the words it must find; and a sound one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from report.browsing import (
    WIDTHS,
    Window,
    check_contrast,
    check_keyboard,
    check_layout,
    check_loading,
    check_print,
    check_structure,
)

Check = Callable[[Window], list[str]]
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5E"
    "rkJggg=="
)
PRINTED = """<style>@media print {
  div { overflow: visible !important; width: auto !important; }
  details::details-content { content-visibility: visible; block-size: auto; }
}</style>"""
# Just enough contrast: 4.54, and 3.03 of a large text and of a dot.
SOUND = f"""{PRINTED}<h1>One</h1><h2>Two</h2><p style="color: #767676">enough</p><a href="#x">link</a>
<p id="x" style="color: #949494; font-size: 24px">large</p><img src="{PIXEL}" alt="a pixel">
<div style="overflow-x: auto" tabindex="0" role="group" aria-label="wide"><div style="width: 3000px">wide</div></div>
<svg role="img" aria-label="chart" viewBox="0 0 300 100" width="300" height="100"><rect width="150" height="100"/>
<text x="10" y="50" font-size="12" fill="#fff">on black</text>
<circle class="dot" cx="200" cy="50" r="5" fill="#949494"/>
<text x="180" y="90" font-size="12">apart</text></svg>
<table><thead><tr><th scope="col">a</th></tr></thead><tbody><tr><td>1</td></tr></tbody></table>
<details><summary>more</summary><p>folded</p></details>"""


def write_page(path: Path, body: str, *, lang: str = 'lang="en"') -> Path:
    """A page of that body, at `path`."""
    path.write_text(
        f'<!DOCTYPE html><html {lang}><head><meta charset="utf-8"><title>page</title></head>'
        f'<body style="margin: 8px; font: 16px sans-serif">{body}</body></html>',
        encoding="utf-8",
    )
    return path


def chart(inner: str) -> str:
    """A drawing on a page."""
    return f'<svg role="img" aria-label="chart" viewBox="0 0 300 100" width="300" height="100">{inner}</svg>'


def on_phone(window: Window) -> list[str]:
    """The layout in the narrowest window."""
    return check_layout(window, WIDTHS["phone"])


def in_light(window: Window) -> list[str]:
    """Contrast on a light page."""
    return check_contrast(window, "light")


def in_dark(window: Window) -> list[str]:
    """Contrast on a dark page."""
    return check_contrast(window, "dark")


CHECKS: tuple[Check, ...] = (check_loading, check_structure, on_phone, in_light, in_dark, check_keyboard, check_print)

FAULTS: dict[Check, tuple[tuple[str, str], ...]] = {
    check_loading: (
        ("<script>console.error('a fault')</script>", "error in the console: a fault"),
        ("<script>nothing.at.all()</script>", "nothing is not defined"),
        ('<img src="http://127.0.0.1:9/x.png" alt="x">', "asks for http://127.0.0.1:9/x.png"),
    ),
    check_structure: (
        ("<h1>One</h1><h3>Three</h3>", "a level is left out before <h3>"),
        ("<h1>One</h1><h1>Two</h1>", "the page has 2 headings of the first level"),
        (f'<img src="{PIXEL}" alt="">', "a picture has no words"),
        ('<img src="data:image/png;base64,AAAA" alt="x">', "a picture does not show: x"),
        ("<svg></svg>", "a drawing has no words"),
        ("<table><tr><th>a</th></tr></table>", "a heading of a table has no scope"),
        ("<table><tr><td>a</td></tr></table>", "a table has no heading"),
        ('<table><tr><th scope="col"></th></tr></table>', "a heading of a table is empty"),
        ("<input>", "a control has no name: <input>"),
        ('<div tabindex="0" aria-label="x">x</div>', "a name needs a role: <div>"),
        ('<span role="button">press</span>', "no key reaches <span> “press”"),
        ('<a href="#nowhere">go</a>', "a link leads nowhere"),
        ('<p id="a">One</p><p id="a">Two</p>', "two elements are called a"),
    ),
    on_phone: (
        ('<p style="width: 400px">wide</p>', "the page is 408 px wide in a window of 360"),
        ('<p style="margin-left: -50px">left</p>', "beyond the window: <p>"),
        ('<p style="overflow: hidden; width: 3em; white-space: nowrap">much text</p>', "cut off: <p>"),
        ('<p style="width: 3em; overflow-wrap: anywhere">DomainFusion</p>', "a word is torn: DomainFusion"),
        (
            '<div tabindex="-1" style="overflow: auto"><p style="width: 900px">wide</p></div>',
            "no key scrolls <div>",
        ),
        (chart('<text x="9" y="50" font-size="8">tiny</text>'), "a label is 8.0 px high: <text> “tiny”"),
        (chart('<text x="280" y="50">far too long</text>'), "a label leaves its chart: <text> “far too long”"),
        (
            chart('<text x="9" y="50">first</text><text x="20" y="53">second</text>'),
            "labels lie on each other: <text> “first” and <text> “second”",
        ),
    ),
    in_light: (
        ('<p style="color: #777">faint</p>', "contrast 4.48: <p>"),
        ('<p style="color: #969696; font-size: 24px">large</p>', "contrast 2.96: <p>"),
        ('<p style="opacity: 0.4">see-through</p>', "contrast 2.85: <p>"),
        (f'<p style="background: url({PIXEL})">text</p>', "a picture lies behind <p>"),
        (chart('<text x="9" y="50" fill="#777">faint</text>'), "contrast 4.48: <text>"),
        (chart('<rect width="200" height="90"/><text x="9" y="50" fill="#222">on</text>'), "contrast 1.32: <text>"),
        (chart('<circle class="dot" r="9" fill="#ddd"/>'), "contrast 1.36 of a shape: <circle"),
    ),
    in_dark: (
        ("<style>@media (prefers-color-scheme: dark) { body { background: #111; } }</style>x", "contrast 1.11: <body>"),
    ),
    check_keyboard: (
        ('<style>:focus { outline: none }</style><a href="#">go</a>', "no outline shows the focus on <a>"),
        ('<style>:focus { outline: 2px solid #eee }</style><a href="#">go</a>', "the outline is too faint on <a>"),
        ('<a href="#">1</a><a href="#" tabindex="2">2</a>', "Tab leaves the order of the page"),
        ('<a href="#">1</a><a href="#" tabindex="-1">away</a>', "Tab does not reach <a> “away”"),
        (
            '<details><summary onclick="event.preventDefault()">more</summary>x</details>',
            "Enter does not open <summary> “more”",
        ),
    ),
    check_print: (
        ("<style>@media print { p { display: none } }</style><p>gone</p>", "not printed: <p> “gone”"),
        ("<details><summary>more</summary><p>folded</p></details>", "not printed: <p> “folded”"),
        ('<div style="overflow: auto"><p style="width: 900px">wide</p></div>', "cut in print: <div>"),
        ('<p style="width: 900px">wide</p>', "beyond the paper: <p>"),
        (f'<img src="{PIXEL}" alt="high" height="1100">', "higher than a page: <img>"),
        (
            "<style>@media (prefers-color-scheme: dark) { body { background: #111; color: #fff } }</style>",
            "the paper is not white",
        ),
    ),
}
BROKEN = [(check, body, words) for check, faults in FAULTS.items() for body, words in faults]
