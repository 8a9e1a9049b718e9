"""report.html: the settings of a run, its scores, its training curves, and its best and worst images, in one file.

The file needs nothing else: pictures are inside, the curves are drawn by a few lines of JavaScript of its own. What a
run folder lacks (no evaluation yet, no masks, no pictures, a log cut short) is left out of the report.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pansight.apps.pages.draw import sheet
from pansight.apps.pages.figures import environment, figures_of, measured_facts, number, script_json
from pansight.apps.pages.viewer import ViewerImage, encode, viewer_data
from pansight.config import read_toml
from pansight.data.images import read_image, read_rgb_ids, write_png
from pansight.engine.checkpoint.changes import noted_changes
from pansight.errors import PansightError
from pansight.files import read_json, value_at, write_text
from pansight.metrics.overlap import count_overlaps
from pansight.metrics.panoptic.errors import classify_errors
from pansight.metrics.panoptic.matching import SegmentTable, match_tables
from pansight.types import Category, LabelSpace, PanopticSegmentation, Segment, palette_color

REPORT = "report.html"
OVERVIEW = "overview.png"


@dataclass
class Run:
    """What could be read from a run folder."""

    name: str
    config: dict[str, Any] = field(default_factory=dict)
    config_text: str = ""
    facts: dict[str, Any] = field(default_factory=dict)  # run.json: command, hardware, started …
    log: list[dict[str, Any]] = field(default_factory=list)
    evaluation: dict[str, Any] = field(default_factory=dict)
    labels: LabelSpace | None = None
    sheet: list[dict[str, Any]] = field(default_factory=list)
    figure: str = "PQ"  # that the images of the sheet are sorted by
    sheet_folder: Path = Path()
    date: str = ""

    @property
    def of_objects(self) -> bool:
        """Whether the images of the sheet show objects on a background, rather than a whole scene with void."""
        return self.figure == "F1"


def write_report(run_folder: str | Path) -> Path:
    """Write report.html into a run folder and give its path.

    Raises PansightError where the folder is missing, holds nothing of a run, or a file in it is damaged.
    """
    run = read_run(Path(run_folder))
    path = Path(run_folder) / REPORT
    write_text(path, render(run))
    return path


def write_overview(run_folder: str | Path, rows: int = 3) -> Path | None:
    """overview.png beside the report: `rows` images from best to worst as truth | prediction | errors; its path.

    None where the run kept no images.
    """
    run = read_run(Path(run_folder))
    if not run.sheet or run.labels is None:
        return None
    count = min(rows, len(run.sheet))
    chosen = [run.sheet[round(k * (len(run.sheet) - 1) / max(1, count - 1))] for k in range(count)]
    pictures = [
        sheet(*_maps(entry, run), run.labels, long_side=320, background=run.of_objects) for entry in chosen
    ]  # (3, h, w) each
    height, width = sum(p.shape[1] + 8 for p in pictures) - 8, max(p.shape[2] for p in pictures)
    canvas = torch.full((3, height, width), 255, dtype=torch.uint8)
    top = 0
    for picture in pictures:
        canvas[:, top : top + picture.shape[1], : picture.shape[2]] = picture
        top += picture.shape[1] + 8
    path = Path(run_folder) / OVERVIEW
    write_png(path, canvas.permute(1, 2, 0).numpy())
    return path


def read_run(folder: Path) -> Run:
    """Read config.toml, run.json, metrics.jsonl, evaluation.json and predictions/sheet, as far as they exist."""
    if not folder.is_dir():
        raise PansightError("no such folder", where=folder, hint="expected a run")
    run = Run(folder.resolve().name)
    sources = [folder / name for name in ("config.toml", "metrics.jsonl", "evaluation.json")]
    present = [path for path in sources if path.is_file()]
    if not present:
        raise PansightError(
            where=folder, expected="a run with config.toml, metrics.jsonl or evaluation.json", found="none"
        )
    changed = datetime.fromtimestamp(max(p.stat().st_mtime for p in present))
    run.date = f"{changed.day} {changed:%B %Y, %H:%M}"
    config, log, evaluation = sources
    if config in present:
        run.config, run.config_text = read_toml(config), config.read_text(encoding="utf-8")
    if (folder / "run.json").is_file():
        run.facts = _table(read_json(folder / "run.json"), folder / "run.json")
    if log in present:
        run.log = list(_log_rows(log))
    if evaluation in present:
        run.evaluation = _table(read_json(evaluation), evaluation)
    run.labels = _labels(folder, run.evaluation)
    run.sheet_folder = folder / "predictions" / "sheet"
    listing = run.sheet_folder / "sheet.json"
    if listing.is_file():
        content = _table(read_json(listing), listing)
        run.sheet, run.figure = list(content.get("images", [])), str(content.get("figure", "PQ"))
    return run


def render(run: Run) -> str:
    """The HTML text of a run."""
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            run=run,
            title=_title(run),
            facts=facts(run),
            charts=script_json(curves(run.log)),
            viewer=_viewer(run),
            version=version("pansight"),
            **figures_of(run.evaluation, run.labels),
        )
    )


def facts(run: Run) -> list[tuple[str, str]]:
    """What a reader wants to know of a run, as far as the folder tells it."""
    model, data, train = (run.config.get(k, {}) for k in ("model", "data", "train"))
    training = [row for row in run.log if row.get("kind") == "train"]
    last = training[-1] if training else {}
    evaluation = run.evaluation
    rates = [r["images_per_second"] for r in training if isinstance(r.get("images_per_second"), int | float)]
    steps = " of ".join(str(number(n)) for n in dict.fromkeys([last.get("step"), train.get("steps")]) if n)
    rate = evaluation.get("images_per_second")
    measured = f"{number(_images_of(evaluation))} images" if _images_of(evaluation) else ""
    pairs = {
        "Model": model.get("name") or evaluation.get("about", {}).get("model"),
        "Weights": None if model else evaluation.get("about", {}).get("weights"),
        "Backbone": model.get("backbone"),
        "Started from": model.get("weights") or _first_step(run.facts.get("first")) or model.get("pretrained"),
        "Data": data.get("source"),
        "Steps": steps,
        "Batch": train.get("batch_size"),
        "Optimiser": " ".join(str(train[k]) for k in ("optimizer", "schedule") if train.get(k)),
        "Learning rate": train.get("lr"),
        "Precision": train.get("precision"),
        "Training time": _duration(last.get("time")),
        "Training speed": f"{sorted(rates)[len(rates) // 2]:.1f} images/s" if rates else "",
        "Measured on": measured,
        "Prediction speed": f"{rate:.1f} images/s" if isinstance(rate, int | float) else "",
        "Stopped early": "by train.patience" if run.facts.get("stopped_by") == "patience" else "",
        "Changed on the way": "; ".join(noted_changes(run.config_text)),
        "Hardware": run.facts.get("hardware"),
        "Date": run.facts.get("started") or run.date,
    }
    shown = [(k, str(v)) for k, v in pairs.items() if v not in (None, "", 0)]
    return shown + measured_facts({"images": _images_of(evaluation), **evaluation.get("about", {})})


def _images_of(evaluation: Mapping[str, Any]) -> int:
    """How many images were measured, by whichever figure there is."""
    parts = [evaluation, *(evaluation.get(key, {}) for key in ("semantic", "instances"))]
    return max(len(part.get("image_ids") or part.get("images") or []) for part in parts)


def _first_step(first: Any) -> str:
    """Where a run was the second of two steps: the first one's recipe and figure."""
    if not isinstance(first, dict) or not {"recipe", "figure", "value"} <= set(first):
        return ""
    return f"{first['recipe']}, {first['figure']} {100 * first['value']:.1f}"


def curves(log: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Charts of the log: title, unit, main (drawn large), series of name and points [step, value].

    Figures that are not finite are gaps.
    """
    log = list(log)
    training = [row for row in log if row.get("kind") == "train"]
    measured = [row for row in log if row.get("kind") == "evaluation" and isinstance(row.get("metrics"), dict)]
    names = dict.fromkeys(name for row in training for name in row.get("losses") or {})
    charts = [
        _with_validation(
            _chart("Loss", "", training, {"total": ("loss",)} | {str(name): ("losses", name) for name in names}),
            _chart("", "", measured, {"total, validation": ("loss", "total")}),
        ),
        _chart("Quality on the validation images", "%", measured, FIGURES, 100.0),
        _chart("Learning rate", "", training, {"learning rate": ("lr",)}),
        _chart("Gradient norm", "", training, {"gradient norm": ("gradient_norm",)}),
        _chart("Training speed", "images/s", training, {"images/s": ("images_per_second",)}),
    ]
    return [chart | {"main": n < 2} for n, chart in enumerate(charts) if chart["series"]]


def _with_validation(training: dict[str, Any], validation: dict[str, Any]) -> dict[str, Any]:
    """The chart of the losses with that of the validation images as its second line."""
    series = training["series"]
    return training | {"series": [*series[:1], *validation["series"], *series[1:]]}


FIGURES = {
    "PQ all": ("All", "pq"),
    "PQ things": ("Things", "pq"),
    "PQ stuff": ("Stuff", "pq"),
    "mIoU": ("semantic", "miou"),
    "mask AP": ("instances", "mask", "ap"),
    "box AP": ("instances", "box", "ap"),
}


def _chart(
    title: str, unit: str, rows: list[Mapping[str, Any]], paths: Mapping[str, tuple[str, ...]], factor: float = 1.0
) -> dict[str, Any]:
    series: list[dict[str, Any]] = []
    for name, path in paths.items():
        points: list[list[float | None]] = []
        for row in rows:
            value = value_at(row.get("metrics", row), path)
            if isinstance(value, int | float) and isinstance(row.get("step"), int):
                points.append([row["step"], round(factor * value, 6) if math.isfinite(value) else None])
        group_is_empty = path[0] in ("Things", "Stuff") and all(not _size_of(row, path[0]) for row in rows)
        if any(value is not None for _, value in points) and not group_is_empty:
            series.append({"name": name, "points": points})
    return {"title": title, "unit": unit, "series": series}


def _size_of(row: Mapping[str, Any], group: str) -> int:
    """The number of classes that a group's means are over."""
    return int(row.get("metrics", {}).get(group, {}).get("n", 0))


def _log_rows(path: Path) -> Iterable[dict[str, Any]]:
    """The lines of metrics.jsonl; one that a killed run left half-written is passed over."""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict):
            yield row


def _labels(folder: Path, evaluation: Mapping[str, Any]) -> LabelSpace | None:
    """The classes with their colours: of the predictions, else of the saved model, else those of the evaluation."""
    for name, key in (
        ("predictions/sheet/sheet.json", "categories"),
        ("predictions/predictions.json", "categories"),
        ("checkpoints/best/config.json", "labels"),
        ("checkpoints/last/config.json", "labels"),
    ):
        if (folder / name).is_file():
            return LabelSpace.from_json(_table(read_json(folder / name), folder / name).get(key, []))
    per_class = evaluation.get("per_class") or evaluation.get("semantic", {}).get("per_class", {})
    if not per_class:
        return None
    rows = enumerate(per_class.items())
    return LabelSpace(Category(i, r["name"], r["isthing"], palette_color(i), int(key)) for i, (key, r) in rows)


def _viewer(run: Run) -> dict[str, Any] | None:
    """What the viewer's template takes of the images of the sheet; None where the run kept none."""
    if not run.sheet or run.labels is None:
        return None
    images = [encode(_viewer_image(entry, run, run.labels)) for entry in run.sheet]
    data = viewer_data(run.labels, [image.row for image in images], figure=run.figure)
    return {"data": data, "contents": [image.content for image in images], "figure": run.figure}


def _viewer_image(entry: Mapping[str, Any], run: Run, labels: LabelSpace) -> ViewerImage:
    """One image of the sheet, matched and classified anew as the evaluation did."""
    photo, truth, prediction = _maps(entry, run)
    tables = (SegmentTable.of(truth.segments), SegmentTable.of(prediction.segments))
    match = match_tables(*tables, count_overlaps(truth.ids, prediction.ids), background=run.of_objects)
    return ViewerImage(
        entry["image_id"],
        photo.permute(1, 2, 0).numpy(),  # (H, W, 3)
        truth.ids.numpy(),
        prediction.ids.numpy(),
        match,
        classify_errors(match, np.array([c.is_thing for c in labels], bool)),
        entry["score"],
    )


def _maps(entry: Mapping[str, Any], run: Run) -> tuple[Tensor, PanopticSegmentation, PanopticSegmentation]:
    """image uint8 (3, H, W), truth and prediction of one image of the sheet."""
    folder = run.sheet_folder
    if run.labels is None:
        raise PansightError(where=folder, expected="the classes of the run", found="none")
    image = torch.from_numpy(read_image(folder / entry["image"])).permute(2, 0, 1)  # (H, W, 3) → (3, H, W)
    truth = _segmentation(folder / entry["truth"], entry["truth_segments"], run.labels)
    return image, truth, _segmentation(folder / entry["prediction"], entry["prediction_segments"], run.labels)


def _segmentation(png: Path, rows: Iterable[Mapping[str, Any]], labels: LabelSpace) -> PanopticSegmentation:
    """A map of the sheet. Raises PansightError, naming the file, for a class that the run does not know."""
    known = labels.by_source_id()
    segments: list[Segment] = []
    for row in rows:
        if row["category_id"] not in known:
            raise PansightError(where=png, expected="a class of the run", found=f"category id {row['category_id']}")
        category = known[row["category_id"]].id
        segments.append(Segment(row["id"], category, row.get("score", 1.0), bool(row.get("iscrowd", 0))))
    return PanopticSegmentation(torch.from_numpy(read_rgb_ids(png)), tuple(segments))


def _title(run: Run) -> str:
    about = run.evaluation.get("about", {})
    model = run.config.get("model", {}).get("name") or about.get("model")
    source = about.get("data") or run.config.get("data", {}).get("source")
    return " on ".join(str(part) for part in (model, Path(source).name if source else None) if part) or run.name


def _duration(seconds: object) -> str:
    if not isinstance(seconds, int | float) or not math.isfinite(seconds):
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _table(value: Any, path: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise PansightError(where=path, expected="a JSON object", found=type(value).__name__)
    return value
