"""The scores of an evaluation as the pages show them: score cards, table of classes, errors, confusion."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import jinja2

from pansight.metrics.files.summary import ap_by_size
from pansight.types import LabelSpace, palette_color

ERROR_STYLES: dict[str, tuple[str, str, tuple[int, int, int]]] = {
    "found": ("found", "right class and IoU above 50", (198, 205, 211)),
    "missed": ("missed", "in the truth, but nothing predicted fits it", (213, 94, 0)),
    "phantom": ("phantom", "predicted, but nothing in the truth fits it", (0, 114, 178)),
    "wrong_class": ("wrong class", "right region, other class", (240, 205, 40)),
    "split": ("split", "one truth segment, predicted in pieces", (86, 190, 240)),
    "merged": ("merged", "several truth segments, predicted as one", (0, 158, 115)),
    "poor_boundary": ("poor boundary", "right class, but IoU of 50 or less", (204, 121, 167)),
    "thing_stuff_swap": ("thing ↔ stuff", "a thing predicted as stuff, or stuff as a thing", (122, 62, 10)),
    "duplicate": ("duplicate", "predicted again, though found already", (70, 40, 120)),
    "ignored": ("ignored", "prediction mostly on void or crowd: costs nothing", (232, 235, 238)),
    "outline": ("outline", "found, but with an IoU below 100", (112, 120, 128)),
    "crowd": ("crowd", "group in the truth, not outlined one by one: not scored", (232, 235, 238)),
}
"""Name in ERRORS, or `outline` → shown name, meaning, colour.

Hues and lightnesses differ for colour-blind eyes (Okabe and Ito).
"""

MOST_CONFUSED = 14
"""Classes in the confusion matrix: of the others only the sum would be legible."""
MOST_PAIRS = 12


def environment() -> jinja2.Environment:
    """The templates of the pages; whatever comes from files is escaped."""
    result = jinja2.Environment(
        loader=jinja2.PackageLoader("pansight.apps.pages"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    result.filters |= {"percent": percent, "number": number}
    return result


def figures_of(evaluation: Mapping[str, Any], labels: LabelSpace | None) -> dict[str, Any]:
    """What the template figures.html.j2 shows of a record."""
    columns, rows = class_table(evaluation, labels)
    return {
        "cards": score_cards(evaluation),
        "groups": [(name, evaluation[name]) for name in ("All", "Things", "Stuff") if name in evaluation],
        "intervals": evaluation.get("intervals", {}),
        "columns": columns,
        "rows": [row for row in rows if row["present"]],
        "errors": error_rows(evaluation.get("errors", {})),
        "confusion": confusion_matrix(evaluation, labels),
        "absent": [row["name"] for row in rows if not row["present"]],
    }


def measured_facts(about: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was measured and how, for the facts of a page: only settings that are not the usual ones are named.

    about: what stands under that key of a record: data, part, map, settings, versions …
    """
    settings = dict(about.get("settings", {}))
    decode = settings.pop("decode", {})
    usual = {"miou": "cityscapes", "precision": "auto", "max_detections": 100, "scales": [1.0], "channels_last": True}
    usual |= {
        "flip": False,
        "loss": False,
        "window": 0,
        "window_stride": 2 / 3,
        "limit": 0,
        "least_score": 0.0,
        "batch_size": 1,
        "strict_compat": False,
        "sheet": settings.get("sheet"),
    }
    other = {key: value for key, value in settings.items() if usual.get(key, value) != value}
    count, trained = about.get("images"), about.get("trained_on")
    pairs = {
        "Measured data": ", part ".join(str(about[key]) for key in ("data", "part") if about.get(key)),
        "Predictions": about.get("predictions"),
        "Classes mapped by": about.get("map"),
        "Images trained on": "" if trained is None else f"{trained} of {count}" if count else trained,
        "Images left out": f"{len(about['left_out'])}: {about['left_out'][0]}, …" if about.get("left_out") else "",
        "Decoding": ", ".join(f"{key} {value}" for key, value in decode.items()),
        "Other settings": ", ".join(f"{key} {value}" for key, value in other.items()),
        "Measured with": ", ".join(f"{name} {number}" for name, number in about.get("versions", {}).items()),
        "Note": about.get("note"),
    }
    return [(key, str(value)) for key, value in pairs.items() if value not in (None, "")]


def percent(fraction: object) -> str:
    """0.8734 → "87.3"; anything but a finite number → "–"."""
    return f"{100 * fraction:.1f}" if isinstance(fraction, int | float) and math.isfinite(fraction) else "–"


def number(value: object) -> str:
    """12345 → "12 345" with a narrow space; anything but a number → "–"."""
    return f"{value:,}".replace(",", "\u202f") if isinstance(value, int | float) else "–"


def score_cards(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The figures besides PQ: title, value (fraction), a line of details, and the interval where there is one."""
    cards: list[dict[str, Any]] = []
    instances = evaluation.get("instances", {})
    for kind in ("mask", "box"):
        figures = instances.get(kind)
        if figures:
            detail = f"AP50 {percent(figures.get('ap50'))} · AP75 {percent(figures.get('ap75'))}"
            detail += "".join(f" · {size} {percent(ap)}" for size, ap in ap_by_size(figures).items())
            interval = instances.get("intervals", {}).get(kind, {}).get("All", {}).get("ap")
            card = {"title": f"{kind.capitalize()} AP", "value": figures.get("ap"), "detail": detail}
            cards.append(card | {"interval": interval})
    without_overlaps = (evaluation.get("without_overlaps") or {}).get("mask")
    if without_overlaps:
        detail = f"AP50 {percent(without_overlaps.get('ap50'))} · masks of the things of the panoptic map"
        cards.append({"title": "AP^NO", "value": without_overlaps.get("ap"), "detail": detail})
    semantic = evaluation.get("semantic")
    if semantic:
        detail = f"{percent(semantic.get('pixel_accuracy'))} % of pixels · {semantic.get('convention', '')} convention"
        interval = semantic.get("intervals", {}).get("All", {}).get("iou")
        cards.append({"title": "mIoU", "value": semantic.get("miou"), "detail": detail, "interval": interval})
    boundary = evaluation.get("boundary")
    if boundary:
        detail = f"Boundary IoU {percent(boundary.get('boundary_iou'))} of the segments found"
        cards.append({"title": "Boundary PQ", "value": boundary["All"]["pq"], "detail": detail})
    dagger = evaluation.get("pq_dagger")
    if dagger:
        detail = f"Things {percent(dagger['Things']['pq_dagger'])} · Stuff {percent(dagger['Stuff']['pq_dagger'])}"
        cards.append({"title": "PQ†", "value": dagger["All"]["pq_dagger"], "detail": detail})
    return [{"interval": None, **card} for card in cards]


COLUMNS = {
    "pq": ("PQ", "panoptic quality"),
    "sq": ("SQ", "segmentation quality: mean IoU of the matches"),
    "rq": ("RQ", "recognition quality: F1 of finding the segments"),
    "tp": ("TP", "segments found"),
    "fp": ("FP", "phantoms"),
    "fn": ("FN", "segments missed"),
    "boundary": ("Boundary PQ", "panoptic quality by IoU near the outlines"),
    "mask": ("Mask AP", "average precision of masks"),
    "box": ("Box AP", "average precision of boxes"),
    "iou": ("IoU", "of the pixels of the class"),
}


def class_table(
    evaluation: Mapping[str, Any], labels: LabelSpace | None
) -> tuple[list[tuple[str, str, str]], list[dict[str, Any]]]:
    """Columns (key, title, meaning) that have a figure, the main one first, and a row for each class, best first."""
    panoptic = evaluation.get("per_class", {})
    semantic = evaluation.get("semantic", {}).get("per_class", {})
    boundary = evaluation.get("boundary", {}).get("per_class", {})
    instances = evaluation.get("instances", {}).get("per_class", {})
    colors = {str(c.source_id): c.color for c in labels or ()}
    things = {str(c.source_id): c.is_thing for c in labels or ()}
    rows: list[dict[str, Any]] = []
    for index, key in enumerate(dict.fromkeys([*panoptic, *semantic, *instances])):
        row = {k: v for k, v in panoptic.get(key, {}).items() if k in ("name", "isthing", "pq", "sq", "rq")}
        row |= {k: panoptic[key].get(k) for k in ("tp", "fp", "fn") if key in panoptic}
        if key in boundary:
            row["boundary"] = boundary[key]["pq"]
        row |= {k: v for k, v in instances.get(key, {}).items() if k in ("name", "mask", "box")}
        row |= {k: v for k, v in semantic.get(key, {}).items() if k in ("name", "iou")}
        row.setdefault("isthing", things.get(key, key in instances))
        counted = [row.get(k) for k in ("tp", "fp", "fn")]
        seen = any(counted) if key in panoptic else any(row.get(k) is not None for k in ("mask", "box", "iou"))
        color = hex_color(colors.get(key) or palette_color(index))
        rows.append({"name": key, "key": key, **row, "color": color, "present": seen})
    shown = [k for k in COLUMNS if any(row.get(k) is not None for row in rows)]
    intervals = _class_intervals(evaluation, shown[0]) if shown else {}
    rows = [row | {"interval": intervals.get(row["key"])} for row in rows]
    if shown:
        rows.sort(key=lambda row: (-(row.get(shown[0]) or 0.0), str(row["name"])))
    return [(k, *COLUMNS[k]) for k in shown], rows


def _class_intervals(evaluation: Mapping[str, Any], column: str) -> dict[str, list[float]]:
    """Source id → the interval of a figure of COLUMNS."""
    semantic, instances = (evaluation.get(key, {}).get("intervals", {}) for key in ("semantic", "instances"))
    parts = {"pq": (evaluation.get("intervals", {}), "pq"), "iou": (semantic, "iou")}
    parts |= {kind: (instances.get(kind, {}), "ap") for kind in ("mask", "box")}
    part, score = parts.get(column, ({}, ""))
    return {key: row[score] for key, row in part.get("per_class", {}).items() if score in row}


def script_json(value: Any) -> str:
    """JSON that cannot end the <script> element it stands in."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def error_style(key: str) -> dict[str, str]:
    """key, name, meaning and colour of an error class."""
    name, meaning, color = ERROR_STYLES[key]
    return {"key": key, "name": name, "meaning": meaning, "color": hex_color(color)}


def error_rows(errors: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The error classes that cost something, the costliest first: style, truth, prediction, pq_gain, width (percent).

    errors: as of `ErrorAnalysis.compute`.
    """
    gains = {key: float(row["pq_gain"]) for key, row in errors.items() if row["truth"] or row["prediction"]}
    silent = ("found", "ignored", "crowd", *(["outline"] if not gains.get("outline") else []))  # no outline is inexact
    shown = [k for k in ERROR_STYLES if k in gains and k not in silent]
    most = max((gains[k] for k in shown), default=0.0) or 1.0
    return [
        error_style(k)
        | {name: errors[k][name] for name in ("truth", "prediction", "pq_gain")}
        | {"width": max(0.0, 100 * gains[k] / most)}
        for k in sorted(shown, key=lambda k: -gains[k])
    ]


def confusion_matrix(evaluation: Mapping[str, Any], labels: LabelSpace | None) -> dict[str, Any] | None:
    """Which class was taken for which, of the classes most confused; None where the record does not say.

    names: of the K classes shown. rows: (name, cells) of each, then of "nothing", which holds the phantoms; cells: K
    predicted classes, then nothing (missed): count and share of the row in 0..1. hidden: classes left out.
    pairs: (truth, prediction, count), the commonest confusions of one class with another.
    """
    counts = {(t, p): n for t, p, n in evaluation.get("confusion", [])}
    if not counts:
        return None
    names: dict[int | None, str] = {int(k): row["name"] for k, row in evaluation.get("per_class", {}).items()}
    names |= {c.source_id: c.name for c in labels or ()}
    wrong = [(n, t, p) for (t, p), n in counts.items() if t != p]
    weight = dict.fromkeys(names, 0.0)
    for n, t, p in wrong:
        for key in (t, p):
            if key in weight:  # being taken for another class says more than being missed
                weight[key] += n if t is not None and p is not None else n / 1e6
    in_truth = {t for t, _ in counts}
    confused = [k for k in weight if weight[k] >= 1 or (k in in_truth and weight[k])] or [
        k for k in weight if k in in_truth
    ]
    shown = sorted(confused, key=lambda k: -weight[k])[:MOST_CONFUSED]
    shown = [k for k in names if k in shown]
    rows: list[tuple[str, list[tuple[int, float]]]] = []
    for t in [*shown, None]:
        total = sum(n for (a, _), n in counts.items() if a == t) or 1
        cells = [counts.get((t, p), 0) for p in [*shown, None]]
        rows.append((names.get(t, "nothing"), [(n, n / total) for n in cells]))
    between = sorted((w for w in wrong if None not in w), key=lambda w: -w[0])[:MOST_PAIRS]
    present = {k for pair in counts for k in pair if k is not None}
    return {
        "names": [names[k] for k in shown],
        "rows": rows,
        "pairs": [(names.get(t, str(t)), names.get(p, str(p)), n) for n, t, p in between],
        "hidden": len(present - set(shown)),
    }


def hex_color(color: tuple[int, int, int]) -> str:
    return "#" + bytes(color).hex()
