"""Pages in a browser: nothing is asked for, nothing goes wrong, nothing is wider than a phone; tables sort and filter, plots and pictures answer."""

import shutil

import made_up
import pytest
from test_pages import PAGES, PIXEL

from sparsight.look.gallery import Exhibit, Thumb
from sparsight.pages.report import report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium-headless-shell", "chromium", "google-chrome"))), None)
pytestmark = [
    pytest.mark.product,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium; on Debian: apt-get install chromium-headless-shell"),
]


@pytest.fixture(scope="module")
def browser():
    play = pytest.importorskip("playwright.sync_api")
    with play.sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-quic"])
        yield found
        found.close()


@pytest.fixture
def opened(browser, tmp_path):
    """Opens a page from a file; in the end there must have been no fault and no request."""
    faults = []

    def open_page(text, width=1400):
        (tmp_path / "page.html").write_text(text, encoding="utf-8")
        tab = browser.new_page(viewport={"width": width, "height": 900})
        tab.on("console", lambda said: faults.append(said.text))
        tab.on("pageerror", lambda error: faults.append(str(error)))
        tab.on("request", lambda asked: faults.append(asked.url) if not asked.url.startswith(("data:", "file:")) else None)
        tab.goto((tmp_path / "page.html").as_uri())
        return tab

    yield open_page
    assert faults == []


@pytest.mark.parametrize("width", [390, 1400])
@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_wider_than_the_window(opened, name, width):
    tab = opened(PAGES[name](), width)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width


def names(tab):
    return tab.locator("table.rows").first.locator("tbody:not([hidden]) tr:not(.group):not([hidden]) th").all_inner_texts()


def test_a_head_sorts_all_rows_and_gives_the_groups_back(opened):
    tab = opened(report(made_up.comparison("one"), []))
    before, head = names(tab), tab.locator("table.rows thead th").nth(2)
    button = head.locator("button")
    button.click()
    first, best = names(tab)[:2]
    assert first == "unpruned"
    assert best.startswith("one")
    assert "keep 0.7" in tab.locator("tbody:not([hidden]) [data-group]").first.get_attribute("data-group")
    assert head.get_attribute("aria-sort") == "descending"
    assert tab.locator("tr.group:visible").count() == 0
    button.press("Enter")
    assert names(tab)[-1].startswith("one")
    button.press("Enter")
    assert names(tab) == before
    assert tab.locator("tr.group:visible").count() == 2


def test_words_filter_rows(opened):
    tab = opened(PAGES["robustness"]())
    tab.get_by_label("Filter rows").first.fill("compose fog")
    assert len(names(tab)) == 2
    assert tab.locator(".filter span").first.inner_text() == "2 of 14 rows"


def test_a_mark_says_what_it_is_and_a_legend_picks(opened):
    tab = opened(report(made_up.comparison("one"), []))
    dot = tab.locator("svg .dot").first
    dot.scroll_into_view_if_needed()
    dot.hover(force=True)
    assert "top-1" in tab.locator("#tip").inner_text()
    entry = tab.locator(".legend li[role=button]").first
    entry.press("Enter")
    assert entry.get_attribute("aria-pressed") == "true"
    assert tab.locator("svg g.faded").count() == 2 * 3
    entry.press("Enter")
    assert tab.locator(".faded").count() == 0


def test_a_picture_opens_large(opened):
    sites = {row.recipe: [Thumb("block 3", 95, PIXEL)] for row in made_up.comparison("one").rows[1:]}
    tab = opened(report(made_up.comparison("one"), [Exhibit("cat.jpg", PIXEL, sites, 0)]))
    tab.locator(".thumb").first.press("Enter")
    assert tab.locator("dialog[open] figcaption").inner_text() == "cat.jpg, unpruned"
    tab.keyboard.press("ArrowRight")
    assert "95 tokens left" in tab.locator("dialog[open] figcaption").inner_text()
    tab.keyboard.press("Escape")
    assert tab.locator("dialog[open]").count() == 0
