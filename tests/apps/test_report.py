"""The report: figures as measured, everything inside one file, and whole whatever a run folder lacks."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest
from run_folder import make_run

from pansight.apps.pages.figures import class_table
from pansight.apps.pages.report import curves, write_overview, write_report
from pansight.data.images import read_image
from pansight.engine.checkpoint.changes import Change, heading_with
from pansight.errors import PansightError
from pansight.files import read_json, write_json


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[str, dict, Path]:
    folder = tmp_path_factory.mktemp("runs") / "first"
    record = make_run(folder)
    return write_report(folder).read_text(encoding="utf-8"), record, folder


class Reader(HTMLParser):
    """Collects tags with their attributes, the text, and which tags are left open."""

    VOID_TAGS = ("meta", "img", "br", "link", "input")

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID_TAGS:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text += f" {data}"


def figures(html: str) -> str:
    return re.sub(r"\s+", " ", Reader(html).text)


def test_figures_stand_as_measured(run):
    html, record, _ = run
    text = figures(html)
    for group in ("All", "Things", "Stuff"):
        row = record[group]
        classes = f"{row['n']} class" + ("" if row["n"] == 1 else "es")
        percents = [f"{100 * row[k]:.1f}" for k in ("pq", "sq", "rq")]
        assert f"{group} {classes} {percents[0]} PQ SQ {percents[1]} RQ {percents[2]}" in text
    assert f"Mask AP {100 * record['instances']['mask']['ap']:.1f}" in text
    assert f"Box AP {100 * record['instances']['box']['ap']:.1f}" in text
    assert f"mIoU {100 * record['semantic']['miou']:.1f}" in text
    for key, row in record["per_class"].items():
        cells = [f"{100 * row[k]:.1f}" for k in ("pq", "sq", "rq")] + [str(row[k]) for k in ("tp", "fp", "fn")]
        kind = "thing" if row["isthing"] else "stuff"
        assert f"{row['name']} {kind} {' '.join(cells)}" in text, key


def test_the_run_is_described(run):
    text = figures(run[0])
    for fact in ("Model panoptic_fpn", "Backbone resnet50", "Data shapes", "Steps 400", "Training time 3 min 20 s"):
        assert fact in text
    assert "Measured on 8 images" in text
    assert "pansight train --recipe first/config.toml" in text


def test_what_was_changed_while_it_ran_is_told(tmp_path):
    make_run(tmp_path, images=2)
    plain = figures(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "Changed on the way" not in plain
    settings = (tmp_path / "config.toml").read_text()
    heading = heading_with(settings, "a training", 4, [Change("train.lr", 0.001, 0.0005)])
    heading = heading_with(
        "".join(f"# {line}\n" for line in heading.splitlines()), "a training", 9, [Change("train.steps", 8, 12)]
    )
    lines = "".join(f"# {line}\n" for line in heading.splitlines())
    (tmp_path / "config.toml").write_text(lines + settings)
    text = figures(write_report(tmp_path).read_text(encoding="utf-8"))
    told = "from step 4 on: train.lr = 0.0005 instead of 0.001; from step 9 on: train.steps = 12 instead of 8"
    assert f"Changed on the way {told}" in text


def test_only_the_figures_that_a_page_has_are_explained(run, tmp_path):
    assert "PQ Panoptic quality, SQ · RQ" in figures(run[0])
    assert "F1 Of one image" not in figures(run[0])
    box = {"ap": 0.4, "ap50": 0.6, "ap75": None}
    per_class = {"1": {"name": "cat", "box": 0.4}}
    write_json(tmp_path / "evaluation.json", {"instances": {"box": box, "per_class": per_class, "max_detections": 100}})
    text = figures(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "Panoptic quality" not in text
    assert "F1 Of one image" in text


def test_one_file_that_asks_for_nothing(run):
    html = run[0]
    reader = Reader(html)
    assert reader.open == []
    for tag, attributes in reader.tags:
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            value = attributes.get(name) or ""
            assert not value or value.startswith("#"), (tag, name, value[:80])
        assert tag not in ("link", "iframe", "object", "embed", "base")
    assert not re.search(r"https?://|@import|url\((?!#)", html)
    assert len(html) < 6_000_000


def viewer_of(html: str) -> tuple[dict, list[dict]]:
    """What the page knows of all images, and the content of each."""
    data = json.loads(re.search(r'id="viewer-data">(.*?)</script>', html, re.S).group(1))
    return data, [json.loads(text) for text in re.findall(r'id="image-\d+">(.*?)</script>', html, re.S)]


def test_best_and_worst_images_stand_in_the_viewer(run):
    html, _, folder = run
    listed = read_json(folder / "predictions/sheet/sheet.json")["images"]
    data, contents = viewer_of(html)
    assert len(listed) == 4
    assert [(i[0], i[1]) for i in data["images"]] == [(e["image_id"], round(e["score"], 6)) for e in listed]
    assert data["figure"] == "PQ"
    for entry, content in zip(listed, contents, strict=True):
        for side in ("truth", "prediction"):
            rows = [(s["id"], s["area"]) for s in entry[f"{side}_segments"]]
            assert [(row[0], row[2]) for row in content[side]["rows"]] == rows
        names = [data["errors"][row[7]]["key"] for row in content["truth"]["rows"]]
        ious = [row[9] for row, name in zip(content["truth"]["rows"], names) if name == "found"]
        assert all(0.5 < iou <= 1 for iou in ious)
        assert content["photo"].startswith("data:image/jpeg;base64,")


def test_charts_carry_the_log(run):
    charts = json.loads(re.search(r'id="chart-data">(.*?)</script>', run[0], re.S).group(1))
    assert [c["title"] for c in charts][:2] == ["Loss", "Quality on the validation images"]
    assert [s["name"] for s in charts[0]["series"]] == ["total", "rpn_objectness", "box_class", "mask"]
    assert len(charts[0]["series"][0]["points"]) == 100
    assert [s["name"] for s in charts[1]["series"]] == ["PQ all", "PQ things", "PQ stuff", "mIoU", "mask AP", "box AP"]
    assert [p[0] for p in charts[1]["series"][0]["points"]] == [100, 200, 300, 400]


def test_names_cannot_inject_markup(tmp_path):
    make_run(tmp_path / "run", images=3, sheet=1)
    evil = "<script>alert('x')</script>&\"'"
    record = read_json(tmp_path / "run/evaluation.json")
    for part in (record["per_class"], record["semantic"]["per_class"], record["instances"]["per_class"]):
        part["1"]["name"] = evil
    write_json(tmp_path / "run/evaluation.json", record)
    line = {"step": 1, "kind": "train", "loss": 1.0, "losses": {"</script><b>": 1.0}}
    (tmp_path / "run/metrics.jsonl").write_text(json.dumps(line) + "\n")
    html = write_report(tmp_path / "run").read_text()
    assert evil in Reader(html).text
    assert "<script>alert" not in html
    assert "</script><b>" not in html
    assert [tag for tag, _ in Reader(html).tags].count("script") == 2 + 1 + 2  # charts, page; viewer and its two images


def test_missing_parts_are_left_out(tmp_path):
    folder = tmp_path / "run"
    make_run(folder, images=3, sheet=1)
    for name in ("predictions/sheet/sheet.json", "config.toml"):
        (folder / name).unlink()
    html = write_report(folder).read_text()
    assert 'id="viewer"' not in html
    assert "Repeat it" not in html
    (folder / "evaluation.json").unlink()
    html = write_report(folder).read_text()
    assert "has not been evaluated yet" in html
    assert 'id="classes"' not in html
    assert json.loads(re.search(r'id="chart-data">(.*?)</script>', html, re.S).group(1))


def test_a_model_that_only_draws_boxes(tmp_path):
    figures_of = {"ap": 0.412, "ap50": 0.6, "ap75": None}
    instances = {
        "box": figures_of,
        "per_class": {"1": {"name": "cat", "box": 0.412}, "2": {"name": "dog", "box": None}},
    }
    write_json(tmp_path / "evaluation.json", {"instances": instances | {"max_detections": 100}})
    text = figures(write_report(tmp_path).read_text())
    assert "Box AP 41.2 AP50 60.0 · AP75 –" in text
    assert "cat thing 41.2" in text
    assert "in no average: dog." in text
    assert "Mask AP" not in text


def test_a_log_cut_short_or_gone_bad(tmp_path):
    lines = [
        '{"step": 1, "kind": "train", "loss": 2.0, "losses": {"a": 2.0}, "lr": 0.1, "time": 5}',
        '{"step": 2, "kind": "train", "loss": NaN, "losses": {"a": Infinity}, "lr": 0.1}',
        '["no row"]',
        '{"step": 3, "kind": "evaluation", "metrics": {"All": {"pq": 0.5, "n": 2}}}',
        '{"step": 4, "kind": "evaluation"}',
        '{"step": 5, "kind": "train", "lo',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    html = write_report(tmp_path).read_text()
    charts = json.loads(re.search(r'id="chart-data">(.*?)</script>', html, re.S).group(1))
    assert charts[0]["series"][0]["points"] == [[1, 2.0], [2, None]]
    assert charts[1]["series"] == [{"name": "PQ all", "points": [[3, 50.0]]}]


def test_boundaries_intervals_and_errors_stand_where_they_were_measured(tmp_path):
    make_run(tmp_path, images=3, sheet=1)
    plain = figures(write_report(tmp_path).read_text())
    for word in ("Boundary PQ", "PQ†", "Interval", "PQ gained", "Taken for another class"):
        assert word not in plain
    record = read_json(tmp_path / "evaluation.json")
    gain = {"truth": 3, "prediction": 2, "pq_gain": 0.0412}
    record |= {
        "boundary": {"All": {"pq": 0.512}, "per_class": {"1": {"pq": 0.433}}, "boundary_iou": 0.711},
        "pq_dagger": {g: {"pq_dagger": v} for g, v in (("All", 0.601), ("Things", 0.602), ("Stuff", 0.603))},
        "intervals": {"All": {"pq": [0.321, 0.654]}, "per_class": {"1": {"pq": [0.25, 0.75]}}},
        "errors": {"split": gain},
        "confusion": [[1, 1, 8], [1, 2, 7], [3, None, 5]],
    }
    write_json(tmp_path / "evaluation.json", record)
    html = write_report(tmp_path).read_text()
    text = figures(html)
    assert "Boundary PQ 51.2 Boundary IoU 71.1 of the segments found" in text
    assert "PQ† 60.1 Things 60.2 · Stuff 60.3" in text
    assert "PQ 32.1–65.4" in text
    assert 'style="left: 25.0%; right: 25.0%"' in html
    assert " 43.3" in text
    assert "split one truth segment, predicted in pieces +4.1 3 2" in text
    names = [record["per_class"][k]["name"] for k in ("1", "2")]
    assert f"{names[0]} taken for {names[1]} 7" in text


def test_empty_groups_have_no_score_and_no_curve():
    metrics = {"All": {"pq": 0.5, "n": 1}, "Things": {"pq": 0.5, "n": 1}, "Stuff": {"pq": 0.0, "n": 0}}
    charts = curves([{"step": 1, "kind": "evaluation", "metrics": metrics}])
    assert [s["name"] for s in charts[0]["series"]] == ["PQ all", "PQ things"]


def test_classes_are_sorted_and_absent_ones_told_apart(run):
    _, record, _ = run
    columns, rows = class_table(record, None)
    assert [key for key, *_ in columns] == ["pq", "sq", "rq", "tp", "fp", "fn", "mask", "box", "iou"]
    assert [row["pq"] for row in rows] == sorted((r["pq"] for r in record["per_class"].values()), reverse=True)
    absent = {**record["per_class"]["1"], "tp": 0, "fp": 0, "fn": 0, "pq": 0.0, "name": "ghost"}
    _, rows = class_table({"per_class": {"7": absent}}, None)
    assert [(row["name"], row["present"]) for row in rows] == [("ghost", False)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("evaluation.json", "{", "evaluation.json: expected JSON"),
        ("evaluation.json", "[1]", "evaluation.json: expected a JSON object, found list"),
        ("config.toml", "= 1", "config.toml: expected TOML"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(PansightError, match=message):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(PansightError, match="found none"):
        write_report(tmp_path)
    with pytest.raises(PansightError, match="no such folder"):
        write_report(tmp_path / "nowhere")


def test_an_unknown_class_in_the_sheet_is_named(tmp_path):
    make_run(tmp_path, images=2, sheet=1)
    listed = read_json(tmp_path / "predictions/sheet/sheet.json")
    listed["images"][0]["truth_segments"][0]["category_id"] = 99
    write_json(tmp_path / "predictions/sheet/sheet.json", listed)
    with pytest.raises(PansightError, match=r"0_truth\.png: expected a class of the run, found category id 99"):
        write_report(tmp_path)


def test_templates_are_part_of_the_package():
    names = {entry.name for entry in files("pansight.apps.pages").joinpath("templates").iterdir()}
    assert {"report.html.j2", "report.js", "save.js", "figures.html.j2", "page.css", "viewer"} <= names
    names = {entry.name for entry in files("pansight.apps.pages").joinpath("templates/viewer").iterdir()}
    assert {"page.html.j2", "part.html.j2", "viewer.css", "images.js", "paint.js", "viewer.js"} == names


def test_the_overview_shows_the_best_the_middle_and_the_worst_image(tmp_path):
    make_run(tmp_path / "run")
    path = write_overview(tmp_path / "run", rows=3)
    assert path == tmp_path / "run" / "overview.png"
    picture = read_image(path)
    entries = read_json(tmp_path / "run/predictions/sheet/sheet.json")["images"]
    sizes = [read_image(tmp_path / "run/predictions/sheet" / entries[k]["image"]).shape[:2] for k in (0, -1)]
    assert picture.shape[1] == 3 * max(round(w * 320 / max(h, w)) for h, w in sizes) + 2 * 4
    assert (picture == 255).all(axis=(1, 2)).sum() >= 2 * 8  # white rows between three images
    (tmp_path / "run/predictions/sheet/sheet.json").unlink()
    assert write_overview(tmp_path / "run") is None
