"""The pages in a real browser: quiet, within their window, readable, reached by keys and whole on paper.

Each check is also shown pages with the very faults that it looks for, and must find them. Needs Playwright and a
Chromium; without them these tests are skipped, or fail where DOMAINFUSION_BROWSER=required.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from report import browsing, small_pages
from report.broken_pages import BROKEN, CHECKS, SOUND, Check, write_page
from report.browsing import WIDTHS, Window, start_browser

PAGES = ("report", "comparison", "expectation", "audit", "explanation", "tables")


def assert_passes(complaints: list[str]) -> None:
    assert not complaints, "\n".join(complaints)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with start_browser() as started:
        yield started


@pytest.fixture(scope="module")
def pages(
    browser: Any, trained_run: Path, tiny_pipeline: Path, write_images: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:  # fmt: skip
    """The written pages by name."""
    root = tmp_path_factory.mktemp("pages")
    images = trained_run.parent / "images"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOMAINFUSION_CACHE", str(root / "cache"))
        runs = small_pages.train_both(root, tiny_pipeline, write_images)
        found = {
            "report": small_pages.report_of_two(runs, root / "images", tiny_pipeline, root),
            "comparison": small_pages.report_of_many(root / "many"),
            "expectation": small_pages.report_of_all_domains(root / "all"),
            "audit": small_pages.audit_page(images, trained_run, tiny_pipeline, root / "audit"),
            "explanation": small_pages.explain_page(
                images / "photo" / "cat" / "01.png", trained_run, tiny_pipeline, root / "explanation"
            ),
            "tables": small_pages.tables_page(root),
        }
    assert tuple(found) == PAGES
    return found


@pytest.fixture(scope="module")
def window(browser: Any) -> Window:
    return Window(browser)


@pytest.fixture(scope="module")
def silent(browser: Any) -> Window:
    """A window in which scripts do not run."""
    return Window(browser, java_script_enabled=False)


@pytest.fixture(scope="module", params=PAGES)
def opened(request: pytest.FixtureRequest, browser: Any, pages: dict[str, Path]) -> Window:
    """A window with one of the pages."""
    window = Window(browser)
    window.open(pages[request.param])
    return window


def test_the_report_shows_all_there_is(pages: dict[str, Path]) -> None:
    source = pages["report"].read_text(encoding="utf-8")
    for words in (
        "How sure is that?", "The domains", "Images over the generations", "How one image is put together",
        "Latent distillation noise", "Learning curves", "Class by class", "What is taken for what",
        "How far its confidence can be trusted", "Raw confidence", "Calibrated confidence",
        "What the diffusion model tells through the confidence", "Images with a negative slope",
        "Where the diffusion model looks", "Suspicious labels", "classifiers give the label", "What it cost",
        "Images in the splits", "Every option of",
    ):  # fmt: skip
        assert words in source


def test_it_asks_for_nothing_and_the_browser_finds_no_fault(opened: Window) -> None:
    assert_passes(browsing.check_loading(opened))


def test_its_structure_can_be_read_aloud(opened: Window) -> None:
    assert_passes(browsing.check_structure(opened))


@pytest.mark.parametrize("width", WIDTHS.values(), ids=list(WIDTHS))
def test_everything_is_within_the_window(opened: Window, width: int) -> None:
    assert_passes(browsing.check_layout(opened, width))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_shapes_stand_out(opened: Window, scheme: str) -> None:
    assert_passes(browsing.check_contrast(opened, scheme))


def test_keys_reach_everything_in_order(opened: Window) -> None:
    assert_passes(browsing.check_keyboard(opened))


def test_paper_shows_all_of_it(opened: Window) -> None:
    assert_passes(browsing.check_print(opened))


def test_no_script_is_needed(opened: Window, silent: Window) -> None:
    assert_passes(browsing.check_without_script(opened, silent))


@pytest.mark.parametrize(("check", "body", "words"), BROKEN, ids=[words for _, _, words in BROKEN])
def test_a_fault_is_found(window: Window, tmp_path: Path, check: Check, body: str, words: str) -> None:
    window.open(write_page(tmp_path / "page.html", body))
    assert words in "\n".join(check(window))


def test_a_page_without_language_is_found(window: Window, tmp_path: Path) -> None:
    window.open(write_page(tmp_path / "page.html", "<h1>One</h1>", lang=""))
    assert browsing.check_structure(window) == ["the page names no language"]


def test_a_page_that_scripts_write_is_found(window: Window, silent: Window, tmp_path: Path) -> None:
    body = "<h1>One</h1><script>document.body.append('more')</script>"
    window.open(write_page(tmp_path / "page.html", body))
    assert browsing.check_without_script(window, silent) == ["without scripts the text is another"]


def test_a_sound_page_passes_every_check(window: Window, tmp_path: Path) -> None:
    window.open(write_page(tmp_path / "page.html", SOUND))
    assert {check.__name__: check(window) for check in CHECKS} == {check.__name__: [] for check in CHECKS}
