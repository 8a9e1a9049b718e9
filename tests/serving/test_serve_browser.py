"""The page in headless Chromium, by real clicks: photos, segments, sliders, classes, the truth, files, the webcam."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import listened, png_of, tiny
from pansight.engine.predict import Predictor
from pansight.ops.idmap import ids_to_rgb
from pansight.types import PanopticSegmentation, Prediction, Segment

pytestmark = pytest.mark.slow
SECONDS = 20

IDS = np.zeros((60, 80), np.int32)
IDS[:, :30], IDS[20:50, 40:70] = 1, 2


class Drawn:
    """A predictor whose network sees what is drawn here: sky (score 0.9) and a cat (0.6)."""

    name, options = "mask2former", {}

    def __init__(self, inner: Predictor):
        self._inner, self.labels = inner, inner.labels
        self.passes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def look_at(self, photos: list[Any]) -> Any:
        self.passes += 1
        return DrawnLook()


class DrawnLook:
    bytes = 1000

    def decide(self, options: dict[str, Any], sizes: list[tuple[int, int]] | None = None) -> list[Prediction]:
        height, width = (sizes or [IDS.shape])[0]
        rows, columns = (np.arange(n) * full // n for n, full in ((height, 60), (width, 80)))
        segments = [
            s for s in (Segment(1, 2, 0.9), Segment(2, 0, 0.6)) if s.score > options.get("score_threshold", 0.5)
        ]
        ids = IDS[rows][:, columns] * np.isin(IDS[rows][:, columns], [s.id for s in segments])
        return [Prediction(PanopticSegmentation(torch.from_numpy(ids.astype(np.int32)), tuple(segments)))]


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[str, Drawn]]:
    """(address, predictor) of a server in a thread, which ends with the module, within a bounded time."""
    drawn = Drawn(tiny("mask2former"))
    with listened({"drawn": drawn}) as address:  # type: ignore[dict-item]
        yield address, drawn


@pytest.fixture
def page(chromium: Any, served: tuple[str, Drawn]) -> Iterator[Any]:
    """The page, once it knows the models; the test fails where it reports any error."""
    complaints: list[str] = []
    opened = chromium.new_page(viewport={"width": 1250, "height": 800})
    opened.set_default_timeout(1000 * SECONDS)
    opened.on("console", lambda m: "getImageData" in m.text or complaints.append(m.text))  # `pixel` below
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("request", lambda r: r.url.startswith((served[0], "blob:", "data:")) or complaints.append(r.url))
    opened.goto(served[0])
    opened.locator("#options .option").first.wait_for(state="attached")
    yield opened
    if folder := os.environ.get("PANSIGHT_SCREENSHOTS"):
        opened.screenshot(path=Path(folder) / f"{len(os.listdir(folder))}.png", full_page=True)
    opened.close()
    assert complaints == []


def give_photo(page: Any) -> None:
    pixels = np.full((60, 80, 3), (90, 120, 160), np.uint8)
    photo = {"name": "a.png", "mimeType": "image/png", "buffer": png_of(pixels)}
    page.locator("#photo").set_input_files(photo)
    page.locator("body[data-decided=whole]").wait_for()


def point_at(page: Any, figure: str, x: float, y: float) -> str:
    box = page.locator(f"#{figure} canvas").bounding_box()
    page.mouse.move(box["x"] + box["width"] * (x + 0.5) / 80, box["y"] + box["height"] * (y + 0.5) / 60)
    tip = page.locator("#tip")
    return tip.inner_text() if tip.is_visible() else ""


def pixel(page: Any, figure: str, x: int, y: int) -> list[int]:
    script = "(c, [x, y]) => [...c.getContext('2d').getImageData(x, y, 1, 1).data]"
    return page.locator(f"#{figure} canvas").evaluate(script, [x, y])


def segments(page: Any) -> list[str]:
    return page.locator("#segments .name").all_inner_texts()


def test_a_photo_its_segments_and_a_threshold(page: Any, served: tuple[str, Drawn]) -> None:
    give_photo(page)
    assert segments(page) == ["sky", "cat"]
    assert point_at(page, "found", 10, 10) == "sky · score 0.90 · 1\u202f800 pixels (37.5 %)"
    assert point_at(page, "found", 55, 30) == "cat · score 0.60 · 900 pixels (18.8 %)"
    assert point_at(page, "found", 75, 5) == ""
    passes = served[1].passes
    slider = page.get_by_label("score threshold")
    box = slider.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + box["height"] / 2, steps=4)
    page.locator("body[data-decided=small]").wait_for()
    page.mouse.up()
    page.locator("body[data-decided=whole]").wait_for()
    page.locator("#segments li").nth(1).wait_for(state="detached")
    assert segments(page) == ["sky"]
    page.get_by_role("button", name="The model’s own").click()
    page.locator("#segments li").nth(1).wait_for()
    assert served[1].passes == passes


@pytest.mark.long
def test_classes_on_and_off_and_the_truth_beside(page: Any) -> None:
    give_photo(page)
    assert pixel(page, "found", 10, 10)[3] > 0
    page.get_by_label("sky").uncheck()
    assert pixel(page, "found", 10, 10)[3] == 0
    assert pixel(page, "found", 55, 30)[3] > 0
    assert point_at(page, "found", 10, 10) == ""
    page.get_by_role("button", name="None").click()
    assert pixel(page, "found", 55, 30)[3] == 0
    page.get_by_role("button", name="All").click()
    infos = [{"id": 1, "category_id": 3}, {"id": 2, "category_id": 2}]
    categories = [{"id": n, "name": name, "isthing": 1} for n, name in ((2, "dog"), (3, "sky"))]
    table = {"categories": categories, "annotations": [{"file_name": "a.png", "segments_info": infos}]}
    truth = [
        {"name": "a.png", "mimeType": "image/png", "buffer": png_of(ids_to_rgb(IDS))},
        {"name": "a.json", "mimeType": "application/json", "buffer": json.dumps(table).encode()},
    ]
    page.locator("#truth").set_input_files(truth)
    page.locator("#given canvas").wait_for()
    page.get_by_label("dog").wait_for()
    assert point_at(page, "given", 55, 30) == "dog · 900 pixels (18.8 %)"
    counts = page.locator("#classes li").all_inner_texts()
    assert [" ".join(text.split()) for text in counts] == ["cat 1 / 0", "dog 0 / 1", "sky 1 / 1"]
    page.locator("#truth").set_input_files([truth[1]])
    page.get_by_text("The truth is a COCO panoptic PNG").wait_for()


@pytest.mark.long
def test_files_are_saved(page: Any) -> None:
    give_photo(page)
    for kind, begin in (
        ("PNG", b"\x89PNG"),
        ("JSON", b'{"model":"drawn"'),
        ("GeoJSON", b'{"type": "FeatureCollection"'),
    ):
        with page.expect_download() as waited:
            page.get_by_role("button", name=kind, exact=True).click()
        assert waited.value.suggested_filename == f"a.{kind.lower()}"
        assert Path(waited.value.path()).read_bytes().startswith(begin)


@pytest.mark.long
def test_the_webcam_and_what_is_no_photo(page: Any) -> None:
    page.get_by_role("button", name="Webcam").click()
    page.get_by_role("button", name="Take the picture").click()
    page.locator("body[data-decided=whole]").wait_for()
    assert re.match(r"2 segments · decided at \d+×\d+ in \d+ ms", page.locator("#status").inner_text())
    page.get_by_role("button", name="Switch off").click()
    assert page.locator("#camera").is_hidden()


@pytest.mark.long
def test_a_narrow_screen_shows_all_of_it(page: Any) -> None:
    page.set_viewport_size({"width": 390, "height": 800})
    give_photo(page)
    width = page.locator("html").evaluate("e => e.scrollWidth")
    assert width <= 390
