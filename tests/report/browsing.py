"""Pages in a real browser: opened from their file, walked through by keyboard, looked at for what is wrong."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# A sandbox cannot be had by root; the rest keeps the browser itself from asking anything of a network.
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--renderer-process-limit=1",
]  # fmt: skip
CHECKS = Path(__file__).with_name("page_checks.js").read_text(encoding="utf-8")
WIDTHS = {"phone": 360, "tablet": 768, "desktop": 1280}
SMALLEST_LABEL = 8.5  # px on the screen, of a chart's labels
PAPER = 680, 1009  # px (1/96 inch) that A4 leaves within margins of 15 mm
MOST_KEYS = 400


def missing(reason: str) -> None:
    """Skip the test, or fail it where DOMAINFUSION_BROWSER=required."""
    if os.environ.get("DOMAINFUSION_BROWSER") == "required":
        pytest.fail(f"DOMAINFUSION_BROWSER=required, but {reason}")
    pytest.skip(f"{reason}: pages are not looked at in a browser")


@contextmanager
def start_browser() -> Iterator[Any]:
    """A headless Chromium; skips where there is none."""
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        missing("Playwright is not installed (pip install playwright)")
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        missing(f"there is no {', '.join(BROWSERS)} on the PATH")
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        except Error as error:
            missing(f"{found} does not start ({str(error).splitlines()[0]})")
        yield browser
        browser.close()


class Window:
    """One window, in which page after page is opened: a new one takes a second, a page in it a fraction.

    `complaints` holds what the browser said of the page that is open, and what it asked for beside files.
    """

    def __init__(self, browser: Any, **options: Any) -> None:
        self.page = browser.new_context(**options).new_page()
        self.path = Path()
        self.complaints: list[str] = []
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.complaints.append(f"error on the page: {error}"))
        self.page.on("request", self._request)

    def open(self, path: Path) -> None:
        """Show the page that is the file `path`."""
        self.path, self.complaints = path, []
        self.page.goto(path.resolve().as_uri(), wait_until="load")
        self.page.evaluate(CHECKS)

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"{message.type} in the console: {message.text}")

    def _request(self, request: Any) -> None:
        if not request.url.startswith(("file:", "data:")):
            self.complaints.append(f"asks for {request.url}")

    def show(self, width: int, scheme: str = "light", media: str = "screen") -> None:
        """Make the window `width` px wide and prefer a colour scheme."""
        self.page.set_viewport_size({"width": width, "height": 900})
        self.page.emulate_media(color_scheme=scheme, media=media)

    def check(self, name: str, *arguments: Any) -> list[str]:
        """What the check called `name` in page_checks.js complains of."""
        return list(self.page.evaluate("([name, given]) => pageChecks[name](...given)", [name, list(arguments)]))

    def open_details(self) -> None:
        """Unfold what can be unfolded, so that it is looked at too."""
        self.page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")


def check_loading(window: Window) -> list[str]:
    """What the browser complained of while the page was opened, and what was asked of a network."""
    return window.complaints


def check_structure(window: Window) -> list[str]:
    """Language, headings, pictures, tables and controls."""
    window.open_details()
    return [text for name in ("language", "headings", "images", "tables", "controls") for text in window.check(name)]


def check_layout(window: Window, width: int) -> list[str]:
    """What sticks out, is torn, or lies on something else in a window `width` px wide."""
    window.open_details()
    window.show(width)
    found = window.check("overflow") + window.check("words") + window.check("charts", SMALLEST_LABEL)
    return found + window.check("controls")  # what scrolls here does not elsewhere


def check_contrast(window: Window, scheme: str) -> list[str]:
    """Text and shapes that stand out too little."""
    window.open_details()
    found = []
    for width in (WIDTHS["phone"], WIDTHS["desktop"]):
        window.show(width, scheme)
        found += window.check("contrast") + window.check("graphics")
    return found


def check_keyboard(window: Window) -> list[str]:
    """Press Tab from the top to the end: everything in order, seen, and what is folded opens by Enter."""
    window.show(WIDTHS["desktop"])
    window.page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = false; })")
    window.page.evaluate("scrollTo(0, 0); document.activeElement.blur()")
    found: list[str] = []
    visited: list[int] = []
    for _ in range(MOST_KEYS):
        window.page.keyboard.press("Tab")
        here = window.page.evaluate("focusWalk.at()")
        if here is None or here["place"] in visited:
            break
        if here["closed"]:
            window.page.keyboard.press("Enter")
            if window.page.evaluate("focusWalk.at().closed"):
                found.append(f"Enter does not open {here['name']}")
        visited.append(here["place"])
        found += here["found"]
    names = window.page.evaluate("focusWalk.expected()")
    found += [f"Tab does not reach {name}" for place, name in enumerate(names) if place not in visited]
    if visited != sorted(visited):
        found.append(f"Tab leaves the order of the page: {[names[place] for place in visited]}")
    return found


def check_print(window: Window) -> list[str]:
    """What is not on the paper, or cut; folded parts stay as they come."""
    width, height = PAPER
    window.page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = false; })")
    window.show(width, media="print")
    found = window.check("print", height) + window.check("contrast") + window.check("charts", SMALLEST_LABEL)
    # A window that prefers dark colours prints on white paper all the same.
    window.show(width, "dark", media="print")
    found += window.check("contrast")
    ground = window.page.evaluate("getComputedStyle(document.body).backgroundColor")
    if ground not in ("rgb(255, 255, 255)", "rgba(0, 0, 0, 0)"):
        found.append("the paper is not white")
    if not window.page.pdf(prefer_css_page_size=True).startswith(b"%PDF"):
        found.append("the page does not print")
    window.show(WIDTHS["desktop"])
    return found


def check_without_script(window: Window, silent: Window) -> list[str]:
    """Text of the page open in `window` that is another in `silent`, where scripts do not run."""
    silent.open(window.path)
    texts = []
    for one in (window, silent):
        one.show(WIDTHS["desktop"])
        one.open_details()
        texts.append(one.page.inner_text("body").split())
    return [] if texts[0] == texts[1] and texts[0] else ["without scripts the text is another"]
