"""The record of an evaluation as lines of text for the terminal."""

from __future__ import annotations

from typing import Any


def summary(record: dict[str, Any]) -> str:
    """The table that panopticapi prints (percent, N classes), with AP and mIoU below where they were measured."""
    lines: list[str] = []
    if "All" in record:
        lines += [f"{'':10s}| {'PQ':>5s}  {'SQ':>5s}  {'RQ':>5s} {'N':>5s}", "-" * 38]
        for name in ("All", "Things", "Stuff"):
            row = record[name]
            figures = "  ".join(f"{100 * row[k]:5.1f}" for k in ("pq", "sq", "rq"))
            lines.append(f"{name:10s}| {figures} {row['n']:5d}")
    interval = record.get("intervals", {}).get("All", {}).get("pq")
    if interval:
        lines.append(f"{'95 %':10s}| {100 * interval[0]:5.1f} … {100 * interval[1]:.1f}  (PQ of all, over images)")
    for kind in ("box", "mask"):
        figures = record.get("instances", {}).get(kind)
        if figures:
            shown = [f"{k.upper()} {100 * figures[k]:.1f}" for k in ("ap", "ap50", "ap75") if figures[k] is not None]
            interval = record["instances"].get("intervals", {}).get(kind, {}).get("All", {}).get("ap")
            told = "  ".join(shown) or "no AP: the images have no object that is no crowd"
            lines.append(f"{kind:10s}| {told}{_range(interval)}")
            sizes = ap_by_size(figures)
            if sizes:
                lines.append(
                    f"{'':10s}| AP of {', '.join(f'{name} {_percent(ap)}' for name, ap in sizes.items())} objects"
                )
    without: dict[str, Any] | None = record.get("without_overlaps", {}).get("mask")
    if without:
        told = f"AP {_percent(without['ap'])}  AP50 {_percent(without['ap50'])}"
        lines.append(f"{'AP^NO':10s}| {told}  (masks of the things of the panoptic map)")
    if "boundary" in record:
        row, iou = record["boundary"]["All"], record["boundary"]["boundary_iou"]
        figures = "  ".join(f"{100 * row[k]:5.1f}" for k in ("pq", "sq", "rq"))
        lines.append(f"{'boundary':10s}| {figures} {row['n']:5d}  (mean Boundary IoU {_percent(iou)})")
    if record.get("pq_dagger"):
        groups = ", ".join(f"{k.lower()} {_percent(record['pq_dagger'][k]['pq_dagger'])}" for k in ("Things", "Stuff"))
        lines.append(f"{'PQ†':10s}| {_percent(record['pq_dagger']['All']['pq_dagger'])}  ({groups})")
    if "semantic" in record:
        semantic = record["semantic"]
        interval = semantic.get("intervals", {}).get("All", {}).get("iou")
        lines.append(f"{'mIoU':10s}| {100 * semantic['miou']:5.1f}  ({semantic['convention']}){_range(interval)}")
    if "machine" in record:
        lines += ["", *machine_table(record["machine"])]
    lines += _errors(record.get("errors", {}))
    return "\n".join(lines)


def ap_by_size(figures: dict[str, Any]) -> dict[str, float]:
    """AP of small, medium and large objects, COCO's 32² and 96² pixels apart; sizes that do not occur are left out."""
    sizes = ("small", "medium", "large")
    return {size: figures[f"ap_{size}"] for size in sizes if figures.get(f"ap_{size}") is not None}


def _errors(errors: dict[str, dict[str, Any]]) -> list[str]:
    """What costs PQ, the most expensive first; classes without a segment are left out."""
    rows = [(name, row) for name, row in errors.items() if row["pq_gain"] > 0]
    if not rows:
        return []
    lines = ["", f"{'errors':18s}| {'truth':>7s} {'predicted':>9s}  {'PQ if repaired':>14s}", "-" * 53]
    for name, row in sorted(rows, key=lambda item: -item[1]["pq_gain"]):
        gain = f"+{100 * row['pq_gain']:.1f}"
        lines.append(f"{name.replace('_', ' '):18s}| {row['truth']:7d} {row['prediction']:9d}  {gain:>14s}")
    return lines


def _range(interval: list[float] | None) -> str:
    return f"  95 %: {100 * interval[0]:.1f} … {100 * interval[1]:.1f}" if interval else ""


def _percent(fraction: float | None) -> str:
    return "–" if fraction is None else f"{100 * fraction:.1f}"


MACHINE = {
    "pq": "PQ",
    "pq_things": "things",
    "pq_stuff": "stuff",
    "miou": "mIoU",
    "iou_stuff": "stuff",
    "ap": "AP",
    "ap50": "AP50",
    "ap_no": "AP^NO",
}
"""The columns of `machine_table`: PQ of all, things and stuff; IoU of all classes and of stuff; AP; AP^NO."""


def machine_table(rows: dict[str, dict[str, Any]]) -> list[str]:
    """The two rows of `metrics.machine`, side by side."""
    lines = [f"{'':17s}| " + "  ".join(f"{title:>6s}" for title in MACHINE.values())]
    lines.append("-" * len(lines[0]))
    for name, row in rows.items():
        cells = [_percent(row.get(key)) if key in row else "" for key in MACHINE]
        lines.append(f"{f'machine-{name}':17s}| " + "  ".join(f"{cell:>6s}" for cell in cells).rstrip())
    return lines
