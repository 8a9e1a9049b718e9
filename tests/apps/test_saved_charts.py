"""The SVG and PNG buttons of the report and of a comparison, clicked in headless Chromium: what is then on the disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from run_folder import make_run

from pansight.apps.pages.comparison import compare
from pansight.apps.pages.report import write_report

pytestmark = pytest.mark.slow  # a browser

NAMES = ("old & <b>", "new")


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Any]:
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("pages in a browser: needs the program chromium on the PATH")
    api = pytest.importorskip("playwright.sync_api", reason="pages in a browser: needs the package playwright")
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with api.sync_playwright() as play:
        profile = tmp_path_factory.mktemp("profile")
        context = play.chromium.launch_persistent_context(
            profile, executable_path=program, args=arguments, viewport={"width": 1280, "height": 900}
        )
        yield context
        context.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    make_run(folder / "run", images=4)
    make_run(folder / "again", images=4, seed=1)
    compared = folder / "compared.html"
    compare([folder / "run", folder / "again"], compared, names=list(NAMES), resamples=100)
    return {"report": write_report(folder / "run"), "compare": compared}


@pytest.fixture
def visit(browser) -> Iterator[Any]:
    """visit(file) → the page; the test fails where the page reports any error."""
    opened, complaints = [], []

    def go(file: Path) -> Any:
        page = browser.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda r: r.url.startswith(("file:", "data:", "blob:")) or complaints.append(r.url))
        page.goto(file.as_uri())
        opened.append(page)
        return page

    yield go
    for page in opened:
        page.close()
    assert complaints == []


def saved(page: Any, card: Any, kind: str, folder: Path) -> Path:
    """The file that the button of the card saves."""
    with page.expect_download() as waiting:
        card.locator(".saves button", has_text=kind).click()
    path = folder / waiting.value.suggested_filename
    waiting.value.save_as(path)
    return path


def drawn(path: Path) -> tuple[ElementTree.Element, list[str]]:
    """The root of an SVG and its texts. What it needs from elsewhere (style sheets, variables) is an error."""
    text = path.read_text(encoding="utf-8")
    assert "var(--" not in text
    root = ElementTree.fromstring(text)
    return root, [e.text or "" for e in root.iter("{http://www.w3.org/2000/svg}text")]


def elements(root: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    return list(root.iter("{http://www.w3.org/2000/svg}" + name))


def check_picture(path: Path, root: ElementTree.Element) -> None:
    """Three pixels for each of the page, and more than a ground."""
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.size == (3 * int(root.attrib["width"]), 3 * int(root.attrib["height"]))
        assert len(np.unique(np.asarray(picture.convert("L")))) > 8


def test_every_curve_of_a_report_is_saved(visit, pages, tmp_path):
    page = visit(pages["report"])
    page.wait_for_selector(".chart svg path")
    cards = page.locator(".chart")
    assert cards.count() >= 4
    for n in range(cards.count()):
        card = cards.nth(n)
        title = card.locator("h3").inner_text()
        root, texts = drawn(path := saved(page, card, "SVG", tmp_path))
        assert texts[0] == title
        assert [text for text in texts if text in card.locator(".keys").inner_text()] != [] or not elements(
            root, "circle"
        )
        assert elements(root, "path")
        assert all(e.attrib["stroke"].startswith("rgb") for e in elements(root, "path"))
        png = saved(page, card, "PNG", tmp_path)
        assert png.stem == path.stem
        check_picture(png, root)
    assert len(list(tmp_path.iterdir())) == 2 * cards.count()  # each has a name of its own


def test_a_line_that_is_hidden_is_not_saved(visit, pages, tmp_path):
    page = visit(pages["report"])
    page.wait_for_selector(".chart svg path")
    card = page.locator(".chart", has=page.locator(".keys button")).first
    name = card.locator(".keys button").first.inner_text()
    root, texts = drawn(saved(page, card, "SVG", tmp_path))
    assert name in texts
    card.locator(".keys button").first.click()
    fewer, texts = drawn(saved(page, card, "SVG", tmp_path))
    assert name not in texts
    assert len(elements(fewer, "path")) < len(elements(root, "path"))


def test_every_strip_of_a_comparison_is_saved(visit, pages, tmp_path):
    page = visit(pages["compare"])
    cards = page.locator(".group")
    assert cards.count() == 6  # scores of All, Things, Stuff, and their differences
    for n in range(cards.count()):
        card = cards.nth(n)
        root, texts = drawn(saved(page, card, "SVG", tmp_path))
        group, shown = card.locator("h3").inner_text(), card.locator(".figures b").all_inner_texts()
        assert set(shown) <= set(texts)
        assert set(card.locator(".axis em").all_inner_texts()) <= set(texts)
        if n < 3:
            assert texts[0] == f"Scores, percent: {group}"
            assert texts[-2:] == list(NAMES)
        else:
            assert texts[0] == f"new minus {NAMES[0]}, points: {group}"
        rounded = [e for e in elements(root, "rect") if float(e.attrib.get("rx", 0)) > 0]
        assert len(rounded) >= 2 * card.locator(".dot").count()  # a dot and its interval
        check_picture(saved(page, card, "PNG", tmp_path), root)
    assert len(list(tmp_path.iterdir())) == 2 * cards.count()


def test_a_saved_svg_opens_by_itself(browser, visit, pages, tmp_path):
    page = visit(pages["compare"])
    card = page.locator(".group").first
    path = saved(page, card, "SVG", tmp_path)
    alone = visit(path)
    first = alone.locator("text", has_text=card.locator(".figures b").first.inner_text()).first
    assert first.bounding_box()["width"] > 10
