"""pansight compare: figures as counted by hand, one line for every bad input, exit codes, and the page in a browser."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pansight.apps.cli import main
from pansight.apps.pages.comparison import compare
from pansight.errors import PansightError
from pansight.files import read_json, write_json
from pansight.metrics import create_metrics, evaluation_record
from pansight.types import LabelSpace, PanopticSegmentation, Prediction, Sample, Segment

CLASSES = {"person": True, "car": True, "sky": False, "ghost": False}
QUICK = ["--resamples", "200"]


def make_record(rows: list[tuple[int, str, int, int, int, float]], images: int) -> dict[str, Any]:
    """evaluation.json of rows (image, class, tp, fp, fn, iou), classes with the source ids 7, 17, 27 …"""
    ids = {name: 10 * k + 7 for k, name in enumerate(CLASSES)}
    per_class: dict[str, Any] = {}
    for name, thing in CLASSES.items():
        tp, fp, fn, iou = (sum(row[k] for row in rows if row[1] == name) for k in (2, 3, 4, 5))
        weight = max(tp + fp / 2 + fn / 2, 0.5)
        scores = {"pq": iou / weight, "sq": iou / max(tp, 1), "rq": tp / weight}
        per_class[str(ids[name])] = {"name": name, "isthing": thing, **scores, "tp": tp, "fp": fp, "fn": fn, "iou": iou}
    columns = list(zip(*rows)) or [[]] * 6
    table = {"image": columns[0], "category": [ids[name] for name in columns[1]]}
    table |= dict(zip(("tp", "fp", "fn", "iou"), columns[2:]))
    counts = {key: list(column) for key, column in table.items()}
    return {"per_class": per_class, "image_ids": [f"{k}.png" for k in range(images)], "counts": counts}


def random_rows(seed: int, skill: float, images: int = 80) -> list[tuple[int, str, int, int, int, float]]:
    """A model of some skill on a truth that is the same for every seed."""
    rng, truth = np.random.default_rng(seed), np.random.default_rng(99)
    rows = []
    for image in range(images):
        for name in list(CLASSES)[:3]:
            segments = int(truth.integers(1, 4))
            tp = int(rng.binomial(segments, skill))
            rows.append((image, name, tp, int(rng.random() < 0.3), segments - tp, 0.8 * tp))
    return rows


@pytest.fixture
def old(tmp_path: Path) -> Path:
    write_json(tmp_path / "old" / "evaluation.json", make_record(random_rows(1, 0.55), 80))
    return tmp_path / "old"


@pytest.fixture
def new(tmp_path: Path) -> Path:
    write_json(tmp_path / "new" / "evaluation.json", make_record(random_rows(2, 0.75), 80))
    return tmp_path / "new"


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    record = read_json(folder / "evaluation.json")
    edit(record)
    (folder / "evaluation.json").write_text(json.dumps(record))


def complaint(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run `compare` with bad input; its one line on stderr."""
    capsys.readouterr()
    assert main(["compare", *map(str, arguments)]) == 2
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("pansight: ")
    assert captured.out == ""
    return lines[0]


# --- figures ---------------------------------------------------------------------------------------------------------


def test_figures_by_hand(tmp_path, capsys):
    first = [(0, "person", 1, 0, 1, 0.8), (1, "person", 0, 1, 2, 0.0), (1, "sky", 1, 0, 0, 0.9)]
    second = [
        (0, "person", 2, 0, 0, 1.6),
        (1, "person", 0, 1, 2, 0.0),
        (1, "sky", 1, 0, 0, 0.7),
        (2, "car", 0, 1, 0, 0),
    ]
    for name, rows in (("a", first), ("b", second)):
        write_json(tmp_path / f"{name}.json", make_record(rows, 4))
    result = compare([tmp_path / "a.json", tmp_path / "b.json"], resamples=200)
    json.dumps(result, allow_nan=False)
    a, b = result["evaluations"]
    assert (a["name"], b["name"]) == ("a", "b")
    person = 0.8 / 3  # TP 1, FP 1, FN 3
    assert a["All"]["pq"]["value"] == pytest.approx((person + 0.9) / 2)
    assert a["Things"]["rq"]["value"] == pytest.approx(1 / 3)
    assert b["All"]["pq"]["value"] == pytest.approx((1.6 / 3.5 + 0.7 + 0) / 3)  # its phantom car counts as a class
    assert b["per_class"]["person"]["pq"]["difference"]["value"] == pytest.approx(1.6 / 3.5 - person)
    assert "difference" not in a["All"]["pq"]
    assert b["per_class"]["ghost"]["pq"] == {
        "value": None, "low": None, "high": None,
        "difference": {"value": None, "low": None, "high": None, "p": None, "p_adjusted": None},
    }  # fmt: skip
    assert b["per_class"]["car"]["pq"]["value"] == 0
    assert b["per_class"]["car"]["pq"]["difference"]["value"] is None  # the first has nothing of it
    assert (b["per_class"]["person"]["tp"], b["per_class"]["person"]["fp"], b["per_class"]["person"]["fn"]) == (2, 1, 2)
    images = result["per_image"]
    assert [row["image_id"] for row in images] == ["0.png", "1.png", "2.png"]  # nothing at all on 3.png
    assert images[0]["pq"] == pytest.approx([0.8 / 1.5, 0.8])
    assert images[1]["pq"] == pytest.approx([0.45, 0.35])
    assert images[1]["difference"] == pytest.approx([0, -0.1])
    assert (images[0]["tp"], images[0]["fn"], images[1]["fp"]) == ([1, 2], [1, 0], [1, 1])
    assert images[2]["pq"] == [None, 0]
    text = capsys.readouterr().out
    assert "1 better, 1 worse, 2 the same" in text


def test_what_the_metrics_write_is_read(tmp_path):
    """The record of real metrics on drawn maps: scores equal to the last digit, with those of every image."""
    labels = LabelSpace.from_names(["cat"], ["sky"])
    pixels = torch.zeros(3, 4, 6, dtype=torch.uint8)
    for name, seed in (("a", 0), ("b", 1)):
        metrics = create_metrics(labels)
        truth_rng, rng = torch.Generator().manual_seed(9), torch.Generator().manual_seed(seed)
        for image in range(5):
            ids = (torch.rand(4, 6, generator=truth_rng) < 0.5).int() + 1  # 1: cat, 2: sky
            guess = torch.where(torch.rand(4, 6, generator=rng) < 0.25, 3 - ids, ids)
            maps = [PanopticSegmentation(m, (Segment(1, 0), Segment(2, 1))) for m in (ids, guess)]
            sample = Sample(pixels, maps[0], f"{image}.png", (4, 6))
            for metric in metrics.values():
                metric.update(Prediction(panoptic=maps[1]), sample)
        write_json(tmp_path / name / "evaluation.json", evaluation_record(metrics))
    result = compare([tmp_path / "a", tmp_path / "b"], resamples=200)
    for k, name in enumerate("ab"):
        record, shown = read_json(tmp_path / name / "evaluation.json"), result["evaluations"][k]
        assert record["All"]["pq"] not in (0, 1)
        for group in ("All", "Things", "Stuff"):
            for score in ("pq", "sq", "rq"):
                assert shown[group][score]["value"] == pytest.approx(record[group][score], abs=1e-12)
        of_images = {row["image_id"]: row["pq"][k] for row in result["per_image"]}
        assert of_images == pytest.approx({row["image_id"]: row["pq"] for row in record["images"]}, abs=1e-12)


def test_a_better_model(old, new, capsys):
    result = compare([old, new], resamples=500)
    text = capsys.readouterr().out
    change = result["evaluations"][1]["All"]["pq"]["difference"]
    assert 0 < change["low"] < change["value"] < change["high"]
    assert change["p"] == pytest.approx(1 / 501)
    assert result["verdict"][0].startswith("new is better than old: PQ +")
    assert result["verdict"][0] in text
    assert max(map(len, text.splitlines())) <= 100
    assert result["failures"] == []
    row = result["evaluations"][1]["per_class"]["car"]["pq"]
    assert f"{100 * row['value']:.1f}  {100 * row['difference']['value']:+.2f} [" in text
    assert compare([new, old], resamples=500)["verdict"][0].startswith("old is worse than new: PQ -")


def test_the_same_evaluation_twice(old):
    result = compare([old, old], resamples=200)
    assert [e["name"] for e in result["evaluations"]] == ["old (1)", "old (2)"]
    figure = result["evaluations"][1]["Things"]["sq"]["difference"]
    assert figure == {"value": 0, "low": 0, "high": 0, "p": 1}
    assert result["verdict"] == ["old (2) scores exactly as old (1)."]
    assert all(row["difference"] == [0, 0] for row in result["per_image"])


def test_order_of_images_and_classes_does_not_matter(old, new, tmp_path):
    """A second file with other source ids, other orders and another name of the folder gives the same figures."""
    record = read_json(new / "evaluation.json")
    counts, n = record["counts"], len(record["image_ids"])
    moved = {
        **record,
        "per_class": {str(1000 - int(k)): record["per_class"][k] for k in reversed(record["per_class"])},
        "image_ids": record["image_ids"][::-1],
        "counts": {k: v[::-1] for k, v in counts.items()}
        | {
            "image": [n - 1 - i for i in counts["image"][::-1]],
            "category": [1000 - c for c in counts["category"][::-1]],
        },
    }
    write_json(tmp_path / "moved" / "new" / "evaluation.json", moved)
    one, two = (compare([old, other], resamples=200) for other in (new, tmp_path / "moved" / "new"))
    assert [e.pop("file") for e in one["evaluations"]] != [e.pop("file") for e in two["evaluations"]]
    assert one == two


def test_images_that_not_all_have(old, new, capsys):
    """The common images are compared, and that is said loudly; scores are those of these images."""
    keep = make_record([row for row in random_rows(2, 0.75) if row[0] < 50], 50)
    write_json(new / "evaluation.json", keep)
    result = compare([old, new], resamples=200)
    assert result["images"] == 50
    assert (
        "NOTE: Only the 50 images that all evaluations share are compared (old 80, new 50)" in capsys.readouterr().out
    )
    write_json(old / "evaluation.json", make_record([row for row in random_rows(1, 0.55) if row[0] < 50], 50))
    again = compare([old, new], resamples=200)
    assert again["notes"] == []
    assert again["evaluations"][0]["All"] == result["evaluations"][0]["All"]
    assert again["evaluations"][1]["All"] == result["evaluations"][1]["All"]


def test_figures_without_interval(old, new, capsys):
    for folder, miou in ((old, 0.5), (new, 0.625)):
        semantic = {"miou": miou, "convention": "cityscapes"}
        change(folder, lambda r, s=semantic: r.update(semantic=s, instances={"mask": {"ap": None}}))
    assert compare([old, new], resamples=200)["others"] == {"mIoU": [0.5, 0.625]}
    assert "without interval: mIoU 50.0 -> 62.5" in capsys.readouterr().out
    change(new, lambda r: r["semantic"].update(convention="ade20k"))
    assert compare([old, new], resamples=200)["others"] == {}  # not the same figure


# --- the command -----------------------------------------------------------------------------------------------------


def test_exit_codes(old, new, tmp_path, capsys):
    def run(*words: object) -> int:
        return main(["compare", *map(str, words), *QUICK, "--out", str(tmp_path / "page.html"), "--overwrite"])

    pq = compare([new], resamples=200)["evaluations"][0]["All"]["pq"]["value"]
    assert run(old, new) == 0
    assert run(old, new, "--fail-below", pq) == 0
    capsys.readouterr()
    assert run(old, new, "--fail-below", pq + 1e-9) == 1
    assert f"FAILED: new: expected a PQ of at least {pq:g}, found {pq:.4f} (--fail-below)" in capsys.readouterr().out
    assert run(new, old, "--fail-below", pq) == 1  # the last one counts
    assert run(new, "--fail-below", 0.99) == 1
    assert run(old, new, "--fail-worse") == 0
    assert run(old, old, "--fail-worse") == 0
    capsys.readouterr()
    assert run(new, old, "--fail-worse") == 1
    assert "FAILED: old is worse than new: PQ -" in capsys.readouterr().out
    assert "Failed." in (tmp_path / "page.html").read_text()


def test_files_are_written_and_never_replaced_unasked(old, new, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", "old", "new", *QUICK, "--json", "out.json", "--names", "before", "after"]) == 0
    assert [e["name"] for e in read_json("out.json")["evaluations"]] == ["before", "after"]
    assert "page: comparison.html" in capsys.readouterr().out
    page = Path("comparison.html").read_bytes()
    assert "comparison.html: expected no file yet" in complaint(capsys, "old", "new")
    assert "out.json: expected no file yet" in complaint(capsys, "old", "new", "--out", "b.html", "--json", "out.json")
    assert Path("comparison.html").read_bytes() == page
    assert not Path("b.html").exists()
    words = ["old", "new", "--overwrite"]
    assert "another file than the evaluations" in complaint(capsys, *words, "--json", "new/evaluation.json")
    assert "another file than the page" in complaint(capsys, *words, "--out", "x", "--json", "x")
    assert main(["compare", *words, *QUICK]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected at least one evaluation.json"),
        (["missing"], "missing: no such file; expected evaluation.json or a folder with it"),
        (["."], ".: expected evaluation.json in the folder, found none"),
        (
            ["old", "new", "--fail-below", "50"],
            "--fail-below: expected a fraction 0 … 1, found 50; 50 % is 0.5",
        ),
        (["old", "new", "--fail-below", "nan"], "expected a fraction 0 … 1, found nan"),
        (["old", "new", "--names", "one"], "--names: expected 2, one for each evaluation, found 1"),
        (["old", "new", "--names", "one", "one"], "--names: expected different names"),
        (["old", "new", "--resamples", "3"], "--resamples: expected 100"),
        (["old", "new", "--seed", "-1"], "--seed: expected 0 or more"),
        (["old", "--fail-worse"], "--fail-worse: expected a second evaluation"),
    ],
)
def test_bad_arguments_are_named(old, new, tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    assert message in complaint(capsys, *words)
    assert not Path("comparison.html").exists()


EDITS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "an old file": (
        lambda r: r.pop("counts"),
        "expected the counts of every image (of PQ, mIoU or AP), found none (older pansight)",
    ),
    "boxes alone": (lambda r: r.pop("per_class"), "expected the counts of every image (of PQ, mIoU or AP), found none"),
    "no table": (lambda r: r.update(counts=[1]), "counts: expected a table of columns, found list"),
    "no column": (lambda r: r["counts"].pop("fp"), "counts.fp: expected a list, found NoneType"),
    "short column": (lambda r: r["counts"]["tp"].pop(), "counts: expected columns of one length"),
    "text": (
        lambda r: r["counts"]["tp"].__setitem__(3, "x"),
        "counts.tp: row 3: expected whole numbers from 0, found x",
    ),
    "negative": (lambda r: r["counts"]["fn"].__setitem__(0, -1), "counts.fn: row 0: expected whole numbers from 0"),
    "huge": (lambda r: r["counts"]["fn"].__setitem__(0, 10**30), "counts.fn: row 0: expected whole numbers from 0"),
    "not a number": (lambda r: r["counts"]["iou"].__setitem__(0, float("nan")), "expected JSON, found NaN at line"),
    "iou": (lambda r: r["counts"]["iou"].__setitem__(0, 9.0), "counts.iou: row 0: expected"),
    "image": (lambda r: r["counts"]["image"].__setitem__(0, 80), "counts.image: expected an index below 80, found 80"),
    "class": (
        lambda r: r["counts"]["category"].__setitem__(0, 5),
        "counts.category: expected an id of per_class, found 5",
    ),
    "row twice": (lambda r: [c.append(c[-1]) for c in r["counts"].values()], "expected one row for an image and class"),
    "sums": (
        lambda r: r["per_class"]["7"].update(fp=0),
        "class 'person': expected the fp of all images to add up to 0",
    ),
    "id twice": (lambda r: r["image_ids"].__setitem__(1, "0.png"), "expected each image once, found '0.png' more than"),
    "ids": (lambda r: r.update(image_ids=[0.5]), "image_ids: expected a list of numbers or names, found [0.5]"),
    "class row": (lambda r: r["per_class"].update({"7": 1}), "per_class '7': expected name and isthing, found 1"),
    "class key": (lambda r: r["per_class"].update(x=r["per_class"]["7"] | {"name": "x"}), "expected ids as keys"),
    "name twice": (lambda r: r["per_class"]["7"].update(name="sky"), "expected each name once, found 'sky' more than"),
    "terminal": (lambda r: r["per_class"]["7"].update(name="\x1b[2J"), "without control characters, found '\\x1b[2J'"),
    "half": (lambda r: r["image_ids"].__setitem__(0, "\ud800"), "without control characters, found '\\ud800'"),
    "other class": (lambda r: r["per_class"]["7"].update(name="dog"), "found none named person"),
    "thing": (lambda r: r["per_class"]["7"].update(isthing=False), "class 'person': expected thing or stuff as in"),
    "other images": (lambda r: r.update(image_ids=list(range(80))), "found none in common: '0.png' … and 0 …"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_damaged_evaluations_are_named(old, new, capsys, edit):
    change(new, EDITS[edit][0])
    line = complaint(capsys, old, new)
    assert EDITS[edit][1] in line
    assert "new/evaluation.json" in line or edit == "other images"


JUNK = [None, True, -1, 0, 1, 3.5, 1e308, float("inf"), 10**20, "", "x", [], {}, [1], {"a": 1}, "\x00", "7"]


@pytest.mark.slow
@pytest.mark.long
def test_mutated_evaluations_give_a_figure_or_one_line(tmp_path, capsys, monkeypatch):
    """400 files with one to four values replaced, removed or doubled: never another error."""
    rng = random.Random(0)
    whole = make_record(random_rows(1, 0.5, 4), 4)
    whole |= {"semantic": {"miou": 0.5, "convention": "x"}, "instances": {"mask": {"ap": 0.2}}}
    write_json(tmp_path / "a.json", whole)
    outcomes: list[int] = []
    monkeypatch.chdir(tmp_path)
    for _ in range(400):
        record = json.loads(json.dumps(whole))
        for _ in range(rng.randint(1, 4)):
            mutate(rng, record)
        (tmp_path / "b.json").write_text(json.dumps(record))
        words = ["a.json", "b.json", "--out", "c.html", "--resamples", "100", "--overwrite"]
        outcomes.append(main(["compare", *words]))
        errors = capsys.readouterr().err.splitlines()
        assert len(errors) == (outcomes[-1] != 0), errors
    assert min(outcomes.count(0), outcomes.count(2)) > 20
    assert set(outcomes) == {0, 2}


def mutate(rng: random.Random, record: Any) -> None:
    """Walk down to some value and replace, remove or double it."""
    while True:
        keys = list(record) if isinstance(record, dict) else list(range(len(record)))
        if not keys:
            return
        key = rng.choice(keys)
        if isinstance(record[key], dict | list) and rng.random() < 0.8:
            record = record[key]
            continue
        action = rng.choice(["replace", "remove", "double"])
        if action == "remove":
            del record[key]
        elif action == "double" and isinstance(record, list):
            record.append(record[key])
        else:
            record[key] = json.loads(json.dumps(rng.choice(JUNK)))
        return


def test_another_truth_is_no_comparison(old, new, capsys):
    rows = random_rows(2, 0.75)
    image, name, tp, fp, fn, iou = rows[4]
    rows[4] = (image, name, tp, fp, fn + 1, iou)
    write_json(new / "evaluation.json", make_record(rows, 80))
    line = complaint(capsys, old, new)
    assert (
        f"image {image}.png: expected evaluations of the same truth, found segments of '{name}': {tp + fn} in" in line
    )


def test_the_python_function_raises(old):
    with pytest.raises(PansightError, match="no such file"):
        compare([old, "nothing.json"])


# --- the page --------------------------------------------------------------------------------------------------------


def test_the_page_asks_for_nothing_and_escapes_names(old, new, tmp_path):
    evil = "<script>alert('x')</script>&\""
    for folder in (old, new):
        change(folder, lambda r: (r["per_class"]["7"].update(name=evil), r["image_ids"].__setitem__(0, evil)))
    compare([old, new], tmp_path / "page.html", names=[evil, "b"], resamples=200)
    html = (tmp_path / "page.html").read_text()
    assert "<script>alert" not in html
    assert html.count("<script") == 1
    assert "&lt;script&gt;alert" in html
    assert not re.search(r"https?://|@import|url\(|<link|<iframe|<img", html)


@pytest.mark.slow
def test_the_page_in_a_browser(old, new, tmp_path):
    """Headless Chromium: no console message, nothing wider than the window, figures as in the dict, sorting works."""
    playwright = pytest.importorskip("playwright.sync_api", reason="the page in a browser: needs playwright")
    browser_file = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser_file is None:
        pytest.skip("the page in a browser: needs chromium")
    page_file = tmp_path / "page.html"
    result = compare([old, new, old], page_file, names=["old", "new", "again"], resamples=200)
    messages: list[str] = []
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=browser_file, args=arguments)
        for width, scheme in ((1280, "light"), (390, "dark")):
            page = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme).new_page()
            page.on("console", lambda message: messages.append(message.text))
            page.on("pageerror", lambda error: messages.append(str(error)))
            page.goto(page_file.as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.locator(".axis .dot").count() == 9 * 3 + 2 * 9  # scores of three, differences of two
            first = page.locator("table.classes").first
            shown = [float(t.replace("−", "-")) for t in first.locator("tbody td:nth-child(3)").all_inner_texts()]
            differences = [r["pq"]["difference"]["value"] for r in result["evaluations"][1]["per_class"].values()]
            known = sorted((100 * d for d in differences if d is not None), reverse=True)
            assert shown == pytest.approx(known, abs=0.006)
            first.locator("th").nth(4).click()
            before = [float(t) for t in first.locator("tbody td:nth-child(5)").all_inner_texts()]
            assert before == sorted(before, reverse=True)
            assert len(before) == 3
            assert "new is better than old" in page.locator("#verdict").inner_text()
        browser.close()
    assert messages == []
