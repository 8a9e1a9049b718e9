"""The viewer as a person meets it, in headless Chromium: pages opened from a disk, without any server or network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from viewer_images import LABELS, drawn, write_page

from pansight.apps.pages import viewer
from pansight.apps.pages.report import write_report
from pansight.apps.pages.viewer import EncodedImage, ViewerWriter, encode
from pansight.engine.evaluate import SheetRow, write_sheet
from pansight.types import PanopticSegmentation, Sample, Segment

pytestmark = pytest.mark.slow

HOSTILE = "</script><img src=x onerror=alert(1)>\u2028'\"&"


@pytest.fixture
def visit(chromium) -> Iterator[Any]:
    """visit(file) → the page once its first image stands; the test fails where the page reports any error."""
    pages, complaints = [], []

    def go(path: Path, **options: Any) -> Any:
        page = chromium.new_page(viewport={"width": 1300, "height": 900}, **options)
        page.on("console", lambda m: "getImageData" in m.text or complaints.append(m.text))  # that is `pixel` below
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append("a dialog: markup was run"), dialog.dismiss()))
        page.on("request", lambda r: r.url.startswith(("file:", "data:")) or complaints.append(r.url))
        page.goto(path.as_uri())
        page.wait_for_selector("#viewer[aria-busy=false], #viewer.empty")
        pages.append(page)
        return page

    yield go
    for page in pages:
        page.close()
    assert complaints == []


def at(page: Any, panel: str, x: float, y: float) -> tuple[float, float]:
    """Where the middle of pixel (x, y) of a file of 40 × 20 is on screen."""
    canvas = page.locator(f"[data-part={panel}] canvas")
    canvas.scroll_into_view_if_needed()
    box = None
    while (last := box) is None or box != last:  # on a busy machine the layout is still settling
        box = canvas.bounding_box()
        page.wait_for_timeout(30)
    return box["x"] + box["width"] * (x + 0.5) / 40, box["y"] + box["height"] * (y + 0.5) / 20


def text_of(page: Any, part: str) -> str:
    page.locator(f"#viewer [data-part={part}]").wait_for()
    return " ".join(page.locator(f"#viewer [data-part={part}]").inner_text().split())


def listed(page: Any) -> list[str]:
    return page.locator("#viewer [role=option] .name").all_inner_texts()


def pixel(page: Any, panel: str, x: int, y: int) -> list[int]:
    """RGBA of the paint over pixel (x, y) of a file of 40 × 20, away from edges."""
    script = """(canvas, [x, y]) => { const k = canvas.width / 40;
      return [...canvas.getContext("2d").getImageData((x + .5) * k, (y + .5) * k, 1, 1).data]; }"""
    return page.locator(f"[data-part={panel}] canvas").evaluate(script, [x, y])


def test_hover_tells_id_class_iou_match_and_error(visit, tmp_path):
    page = visit(write_page(tmp_path / "out.html", [drawn()]))
    page.mouse.move(*at(page, "truth", 5, 5))
    assert text_of(page, "tip") == "Truth 7 · cat found IoU 80.0 match prediction 1, cat area 100 px (13 %)"
    page.mouse.move(*at(page, "prediction", 10, 14))
    assert "wrong class IoU 100.0 partner truth 9, grass area 80 px (10 %)" in text_of(page, "tip")
    assert "score 0.500" in text_of(page, "tip")
    page.mouse.move(*at(page, "errors", 25, 5))
    assert text_of(page, "tip").startswith("Truth 300 · cat missed")
    page.mouse.move(*at(page, "truth", 35, 5))  # void
    assert not page.locator("#viewer [data-part=tip]").is_visible()


def test_click_pins_a_segment_and_shows_its_partner(visit, tmp_path):
    page = visit(write_page(tmp_path / "out.html", [drawn()]))
    page.mouse.click(*at(page, "prediction", 5, 5))
    page.mouse.move(1, 1)
    pinned = text_of(page, "pinned")
    assert pinned.startswith("Prediction 1 · cat found")
    assert "Truth 7 · cat found thing · right class and IoU above 50" in pinned
    marked = page.locator("#viewer tbody tr[aria-selected=true]")
    assert sorted(t.split()[2] for t in marked.all_inner_texts()) == ["1", "7"]
    page.keyboard.press("Escape")
    assert text_of(page, "pinned").startswith("Point at a segment")
    page.locator("#viewer tbody tr", has_text="300").click()  # from the table as well
    assert text_of(page, "pinned").startswith("Truth 300 · cat missed")


def test_a_finger_taps_a_segment(visit, tmp_path):
    page = visit(write_page(tmp_path / "out.html", [drawn()]), has_touch=True)
    page.touchscreen.tap(*at(page, "prediction", 5, 5))
    assert text_of(page, "tip").startswith("Prediction 1 · cat found")
    page.touchscreen.tap(*at(page, "truth", 35, 5))
    assert not page.locator("#viewer [data-part=tip]").is_visible()


def test_colours_are_those_of_classes_and_errors(visit, tmp_path):
    page = visit(write_page(tmp_path / "out.html", [drawn()]))
    cat = list(LABELS[0].color)
    near = {"abs": 2}  # a canvas multiplies by alpha
    assert pixel(page, "truth", 5, 5)[:3] == pytest.approx(cat, **near)
    assert pixel(page, "prediction", 5, 5)[:3] == pytest.approx(cat, **near)  # a match has the colour of its truth
    assert pixel(page, "truth", 35, 5) == [0, 0, 0, 0]
    assert pixel(page, "errors", 25, 5)[:3] == pytest.approx([213, 94, 0], **near)  # missed
    assert pixel(page, "errors", 10, 14)[:3] == pytest.approx([240, 205, 40], **near)  # wrong class
    assert pixel(page, "errors", 35, 5)[:3] == pytest.approx([255, 255, 255], **near)  # void
    assert pixel(page, "errors", 37, 17)[:3] == pytest.approx([255, 255, 255], **near)  # predicted on void: no error
    strong = pixel(page, "errors", 25, 5)[3]
    page.locator("[data-part=errors-filter] button", has_text="wrong class").click()
    assert pixel(page, "errors", 25, 5)[3] < 0.3 * strong  # others are dimmed
    assert pixel(page, "errors", 10, 14)[3] == strong


def test_beside_objects_there_is_background_and_no_void(visit, tmp_path):
    truth, found = torch.zeros((2, 20, 40), dtype=torch.int32)
    truth[:10, :10], found[:10, :9], found[12:18, 20:30] = 1, 1, 2
    photo = torch.full((3, 20, 40), 90, dtype=torch.uint8)
    sample = Sample(photo, PanopticSegmentation(truth, (Segment(1, 0),)), "a", (20, 40))
    prediction = PanopticSegmentation(found, (Segment(1, 0, 0.9), Segment(2, 0, 0.8)))
    write_sheet(tmp_path / "predictions" / "sheet", [SheetRow(2 / 3, "a", sample, prediction, LABELS, "F1")], 1)
    box = {"ap": 0.5, "ap50": 0.5, "ap75": 0.5}
    per_class = {"1": {"name": "cat", "box": 0.5}}
    record = {"instances": {"box": box, "per_class": per_class, "max_detections": 100}}
    (tmp_path / "evaluation.json").write_text(json.dumps(record))
    page = visit(write_report(tmp_path))
    near = {"abs": 2}
    assert pixel(page, "errors", 25, 15)[:3] == pytest.approx([0, 114, 178], **near)  # a phantom on the background
    assert pixel(page, "errors", 35, 5)[:3] == pytest.approx([255, 255, 255], **near)  # nothing on either side
    assert pixel(page, "errors", 5, 5)[:3] == pytest.approx([198, 205, 211], **near)  # found
    keys = " ".join(page.locator(".keys-of-errors").inner_text().split())
    assert "no object" in keys
    assert "void" not in keys


def gallery() -> list:
    only_cats = {"truth_ids": np.where(drawn().truth_ids == 9, 0, drawn().truth_ids), "truth": [(7, 0), (300, 0)]}
    perfect = only_cats | {"prediction_ids": only_cats["truth_ids"], "prediction": [(7, 0, 1.0), (300, 0, 1.0)]}
    return [drawn("img2", 0.5), drawn("img10", 1.0, **perfect), drawn("img1", 0.125, **only_cats), drawn("none", None)]


def test_filters_by_class_error_and_name(visit, tmp_path):
    page = visit(write_page(tmp_path / "out.html", gallery()))
    assert listed(page) == ["img1", "img2", "img10", "none"]
    page.locator("[data-part=errors-filter] button", has_text="wrong class").click()
    assert listed(page) == ["img2", "none"]
    assert text_of(page, "count") == "2 of 4 images"
    assert page.locator("#viewer tbody tr").count() == 2  # the table shows what was asked for
    page.locator("[data-part=errors-filter] button", has_text="missed").click()  # either error
    assert listed(page) == ["img1", "img2", "none"]
    page.select_option("[data-part=class]", label="grass (2)")  # grass is never missed: class and error of one segment
    assert listed(page) == ["img2", "none"]
    page.locator("[data-part=errors-filter] button", has_text="wrong class").click()
    assert listed(page) == []
    assert page.locator("[data-part=none]").is_visible()
    page.locator("[data-part=reset]").click()
    assert len(listed(page)) == 4
    page.fill("[data-part=search]", "IMG1")
    assert listed(page) == ["img1", "img10"]


def test_sorting_and_moving(visit, tmp_path):
    page = visit(write_page(tmp_path / "out.html", gallery()))
    page.select_option("[data-part=sort]", "best")
    assert listed(page) == ["img10", "img2", "img1", "none"]
    page.select_option("[data-part=sort]", "name")
    assert listed(page) == ["img1", "img2", "img10", "none"]
    assert text_of(page, "title") == "Image img1"
    page.keyboard.press("Escape")
    page.locator("[data-part=list]").focus()
    for key, name in (("ArrowRight", "img2"), ("ArrowDown", "img10"), ("ArrowLeft", "img2")):
        page.keyboard.press(key)
        assert text_of(page, "title") == f"Image {name}"
    page.locator("[role=option]", has_text="none").click()
    assert text_of(page, "facts") == "40 × 20 · PQ –"
    assert text_of(page, "position") == "4 of 4"


def test_the_address_names_the_image(visit, tmp_path):
    page = visit(write_page(tmp_path / "out.html", [*gallery(), drawn("a b/ü#", 0.9)]))
    assert "#" not in page.url
    page.locator("[role=option]", has_text="ü").click()
    assert page.url.endswith("#image=a%20b%2F%C3%BC%23")
    page.goto(page.url.replace("a%20b%2F%C3%BC%23", "img10"))
    assert text_of(page, "title") == "Image img10"
    page.reload()
    assert text_of(page, "title") == "Image img10"


def test_an_iou_beside_the_threshold_does_not_look_like_it(visit, tmp_path):
    ids = np.zeros((100, 100), np.int32)
    ids[:, :50] = 7
    other = np.zeros_like(ids)
    other[:, :25] = 1
    other[0, 24] = 0
    image = drawn(truth_ids=ids, truth=[(7, 0)], prediction_ids=other, prediction=[(1, 0, 1.0)])
    page = visit(write_page(tmp_path / "out.html", [image]))
    assert image.errors.truth_iou[0] == 2499 / 5000
    assert "49.980" in page.locator("#viewer tbody").inner_text()


def test_all_three_pictures_are_enlarged_and_moved_together(visit, tmp_path):
    page = visit(write_page(tmp_path / "out.html", [drawn()]))
    frame = page.locator("[data-part=truth] .picture").bounding_box()
    x, y = at(page, "truth", 10, 5)
    page.mouse.move(x, y)
    page.keyboard.down("Control")
    page.mouse.wheel(0, -120)
    page.keyboard.up("Control")
    assert text_of(page, "zoom") == "200 %"
    assert at(page, "truth", 10, 5) == pytest.approx((x, y), abs=1)  # what was under the mouse stays there
    boxes = [page.locator(f"[data-part={p}] canvas").bounding_box() for p in ("truth", "prediction", "errors")]
    assert [b["width"] for b in boxes] == pytest.approx([2 * frame["width"]] * 3, abs=2)
    page.mouse.move(*at(page, "truth", 8, 8))
    assert text_of(page, "tip").startswith("Truth 7 ·")
    page.mouse.down()
    page.mouse.move(x - 60, y - 20, steps=3)
    page.mouse.up()
    assert text_of(page, "pinned").startswith("Point at a segment")  # a drag is no click
    assert page.locator("[data-part=errors] canvas").bounding_box()["x"] < boxes[2]["x"] - 20
    page.mouse.move(2000, 2000)
    page.keyboard.press("0")
    assert page.locator("[data-part=errors] canvas").bounding_box()["width"] == pytest.approx(frame["width"], abs=1)


def test_bars_of_the_errors_choose_images(visit, tmp_path):
    page = visit(write_page(tmp_path / "out.html", gallery()))
    page.locator("#errors button", has_text="wrong class").click()
    assert listed(page) == ["img2", "none"]
    page.locator("#errors button", has_text="outline").click()  # found, but inexact
    assert listed(page) == ["img2", "img10", "none"]
    page.locator(".pairs button", has_text="grass").click()
    assert listed(page) == ["img2", "none"]
    assert page.locator("[data-part=errors-filter] [aria-pressed=true]").all_inner_texts() == ["wrong class\n2"]


def test_a_folder_is_read_as_it_is_looked_at(visit, tmp_path, monkeypatch):
    monkeypatch.setattr(viewer, "INLINE_IMAGES", 2)
    out = tmp_path / "a # b?.html"  # a name that an address must not take literally
    images = [drawn(f"img{k}", k / 10) for k in range(8)]
    page = visit(write_page(out, images))
    page.mouse.move(*at(page, "truth", 5, 5))
    assert text_of(page, "tip").startswith("Truth 7 · cat found")
    page.wait_for_function("document.querySelector('[data-part=truth] img').naturalWidth === 40")
    later = tmp_path / "a # b?_files" / "7.js"
    later.write_text(later.read_text().replace('"rows": [[7, ', '"rows": [[77, '))  # seen: it was not read before
    page.locator("[role=option]", has_text="img7").click()
    page.wait_for_selector("#viewer[aria-busy=false]")
    page.mouse.move(*at(page, "truth", 5, 6))
    assert text_of(page, "tip").startswith("Truth 77 · cat found")


@pytest.mark.slow
def test_a_lost_folder_is_named(chromium, tmp_path, monkeypatch):
    monkeypatch.setattr(viewer, "INLINE_IMAGES", 0)
    page = chromium.new_page()
    out = write_page(tmp_path / "out.html", [drawn()])
    shutil.rmtree(tmp_path / "out_files")
    page.goto(out.as_uri())
    page.wait_for_selector("#viewer[aria-busy=false]")
    assert "out_files/0.js is missing: keep the folder out_files beside this page" in text_of(page, "failure")
    page.close()


@pytest.mark.slow
def test_hostile_names_stay_text(visit, tmp_path):
    page = visit(write_page(tmp_path / "out.html", [drawn(HOSTILE)]))
    assert page.locator("#viewer [role=option] .name").text_content() == HOSTILE
    page.mouse.move(*at(page, "prediction", 10, 14))
    assert "<img src=x onerror=alert(1)>" in text_of(page, "tip")
    page.mouse.click(*at(page, "prediction", 10, 14))
    assert page.locator("img[src=x]").count() == 0


@pytest.mark.slow
def test_more_segments_than_a_byte_counts(visit, tmp_path):
    ids = np.arange(1, 801, dtype=np.int32).reshape(20, 40)
    page = visit(write_page(tmp_path / "out.html", [drawn(truth_ids=ids, truth=[(k, 0) for k in range(1, 801)])]))
    page.mouse.move(*at(page, "truth", 30, 12))
    assert f"Truth {ids[12, 30]} ·" in text_of(page, "tip")
    assert page.locator("#viewer tbody tr").count() == 400
    page.locator("[data-part=more]").click()
    assert page.locator("#viewer tbody tr").count() == 800


@pytest.mark.slow
def test_an_image_without_a_photo_and_one_without_any_segment(visit, tmp_path):
    empty = drawn("empty", None, truth_ids=np.zeros((20, 40), np.int32), truth=[])
    page = visit(write_page(tmp_path / "out.html", [drawn()._replace(photo=None), empty]))
    assert not page.locator("[data-part=truth] img").is_visible()
    assert pixel(page, "truth", 5, 5)[3] > 200  # strong paint: there is nothing to be seen through it
    page.keyboard.press("ArrowRight")
    page.wait_for_function("document.querySelector('[data-part=tally]').textContent === '0'")


@pytest.mark.slow
def test_no_image_at_all(visit, tmp_path):
    page = visit(write_page(tmp_path / "out.html", []))
    assert text_of(page, "count") == "0 images"
    assert text_of(page, "none") == "This evaluation has no image."


@pytest.mark.slow
def test_thousands_of_images_stay_quick(visit, tmp_path):
    row, content = encode(drawn("name", 0.25)._replace(photo=None))
    with ViewerWriter(tmp_path / "out.html", LABELS, "A model") as writer:
        for k in range(3000):
            pq = (k * 7919 % 3000) / 3000
            writer.add(EncodedImage(row.replace('"name", 0.25', f'"img{k}", {pq}'), content))
        page = visit(writer.finish({}))
    assert text_of(page, "count").split()[-2:] == ["000", "images"]
    assert page.locator("[role=option]").count() < 60  # only what is in sight is drawn
    script = """() => { const start = performance.now(), sort = document.querySelector("[data-part=sort]");
      for (const value of ["best", "name", "worst"]) { sort.value = value; sort.dispatchEvent(new Event("change")); }
      return (performance.now() - start) / 3; }"""
    assert page.evaluate(script) < 1000
    assert listed(page)[:2] == ["img0", "img1679"]  # 1679 · 7919 = 4432 · 3000 + 1
    page.locator("[data-part=list]").evaluate("list => list.scrollTo(0, 1e9)")
    page.wait_for_selector("[role=option][aria-posinset='3000']")


@pytest.mark.slow
def test_a_narrow_dark_screen_fits(visit, tmp_path):
    path = write_page(tmp_path / "out.html", [drawn()])
    page = visit(path, color_scheme="dark")
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
