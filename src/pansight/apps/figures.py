"""The figures of an evaluation as the pages show them: score cards, table of classes, errors, confusion. No torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import jinja2

from pansight.types import LabelSpace, palette_color


def environment() -> jinja2.Environment:
    """The templates of the pages; whatever comes from files is escaped."""
    result = jinja2.Environment(
        loader=jinja2.PackageLoader("pansight.apps"),
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
        "columns": columns,
        "rows": [row for row in rows if row["present"]],
        "absent": [row["name"] for row in rows if not row["present"]],
    }


def percent(fraction: object) -> str:
    """0.8734 → "87.3"; anything but a finite number → "–"."""
    return f"{100 * fraction:.1f}" if isinstance(fraction, int | float) and math.isfinite(fraction) else "–"


def number(value: object) -> str:
    """12345 → "12 345" with a narrow space; anything but a number → "–"."""
    return f"{value:,}".replace(",", "\u202f") if isinstance(value, int | float) else "–"


def score_cards(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The figures besides PQ: title, value (fraction), and a line of details."""
    cards: list[dict[str, Any]] = []
    instances = evaluation.get("instances", {})
    for kind in ("mask", "box"):
        figures = instances.get(kind)
        if figures:
            detail = f"AP50 {percent(figures.get('ap50'))} · AP75 {percent(figures.get('ap75'))}"
            cards.append({"title": f"{kind.capitalize()} AP", "value": figures.get("ap"), "detail": detail})
    semantic = evaluation.get("semantic")
    if semantic:
        detail = f"{percent(semantic.get('pixel_accuracy'))} % of pixels · {semantic.get('convention', '')} convention"
        cards.append({"title": "mIoU", "value": semantic.get("miou"), "detail": detail})
    return cards


COLUMNS = {
    "pq": ("PQ", "panoptic quality"),
    "sq": ("SQ", "segmentation quality: mean IoU of the matches"),
    "rq": ("RQ", "recognition quality: F1 of finding the segments"),
    "tp": ("TP", "segments found"),
    "fp": ("FP", "phantoms"),
    "fn": ("FN", "segments missed"),
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
    instances = evaluation.get("instances", {}).get("per_class", {})
    colors = {str(c.source_id): c.color for c in labels or ()}
    things = {str(c.source_id): c.is_thing for c in labels or ()}
    rows: list[dict[str, Any]] = []
    for index, key in enumerate(dict.fromkeys([*panoptic, *semantic, *instances])):
        row = {k: v for k, v in panoptic.get(key, {}).items() if k in ("name", "isthing", "pq", "sq", "rq")}
        row |= {k: panoptic[key].get(k) for k in ("tp", "fp", "fn") if key in panoptic}
        row |= {k: v for k, v in instances.get(key, {}).items() if k in ("name", "mask", "box")}
        row |= {k: v for k, v in semantic.get(key, {}).items() if k in ("name", "iou")}
        row.setdefault("isthing", things.get(key, key in instances))
        counted = [row.get(k) for k in ("tp", "fp", "fn")]
        seen = any(counted) if key in panoptic else any(row.get(k) is not None for k in ("mask", "box", "iou"))
        color = hex_color(colors.get(key) or palette_color(index))
        rows.append({"name": key, **row, "color": color, "present": seen})
    shown = [k for k in COLUMNS if any(row.get(k) is not None for row in rows)]
    if shown:
        rows.sort(key=lambda row: (-(row.get(shown[0]) or 0.0), str(row["name"])))
    return [(k, *COLUMNS[k]) for k in shown], rows


def script_json(value: Any) -> str:
    """JSON that cannot end the <script> element it stands in."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def hex_color(color: tuple[int, int, int]) -> str:
    return "#" + bytes(color).hex()
