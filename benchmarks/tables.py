"""Rewrite the tables of README.md from benchmarks/results/*.json, between the markers `<!-- table:NAME -->`."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable
from typing import Any

from common import RESULTS, ROOT

Record = dict[str, Any]


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def where(record: Record) -> str:
    machine = record["machine"]
    device = machine["accelerator"] or f"{machine['cpu']}, {machine['cores']} cores"
    return f"{device}; torch {machine['torch']}; {machine['date']}"


def demo(record: Record) -> str:
    runs = record["runs"]

    def spread(key: str) -> str:
        values = [run[key] for run in runs]
        median = f"{statistics.median(values):.1f}"
        return median if len(values) == 1 else f"{median} ({min(values):.1f} … {max(values):.1f})"

    titles = {
        "pq": "PQ, all classes",
        "sq": "SQ",
        "rq": "RQ",
        "square": "PQ square",
        "circle": "PQ circle",
        "triangle": "PQ triangle",
        "background": "PQ background (stuff)",
        "steps": "steps",
        "seconds": "seconds, all told",
    }
    rows = [[title, spread(key).removesuffix(".0") if key == "steps" else spread(key)] for key, title in titles.items()]
    seeds = ", ".join(str(run["seed"]) for run in runs)
    return (
        table(
            ["200 held-out images", f"seed {seeds}" if len(runs) == 1 else f"median of seeds {seeds} (least … most)"],
            rows,
        )
        + f"\n\n{where(record)}"
    )


def nuclei(record: Record) -> str:
    keys = ("pq_nucleus", "sq_nucleus", "rq_nucleus", "pq_background", "ap", "ap50", "ap75")
    header = ["", "seed", "minutes", "steps", "PQ nucleus", "SQ", "RQ", "PQ background", "mask AP", "AP50", "AP75"]
    plain = ["58.4", "77.1", "75.8", "95.1", "38.0", "72.2", "35.1"]
    rows = [["plain torchvision script¹", "0", "15.0", "833", *plain]]
    sources = ["nuclei_mask_rcnn", "nuclei_panoptic_fpn", "nuclei_mask_rcnn_gpu", "nuclei_panoptic_fpn_gpu"]
    found = [source for source in map(optional, sources) if source is not None]
    for source in found:
        for run in source["runs"]:
            name = run["model"].replace("_", " ") + (", accelerator" if source["machine"]["accelerator"] else "")
            figures = [f"{run[key]:.1f}" for key in keys]
            minutes = f"{run['training_seconds'] / 60:.1f}"
            rows.append([name, str(run["seed"]), minutes, str(run["steps"]), *figures])
    note = (
        "¹ Mask R-CNN from torchvision's parts with the same backbone, data and number of threads, on another machine"
        " of this kind; one seed (measured before this project began, its script is not part of it)."
    )
    return table(header, rows) + f"\n\n{where(record)}. {note}"


def rcnn_speed(record: Record) -> str:
    keys = ("torchvision_ms", "ours_ms", "time_ratio", "torchvision_mib", "ours_mib", "memory_ratio")
    rows = [
        [row["what"], row["settings"], *(f"{row[k]:.2f}" if k.endswith("ratio") else f"{row[k]:.0f}" for k in keys)]
        for row in record["rows"]
    ]
    header = ["", "settings (ours / torchvision)", "torchvision ms", "ours ms", "ratio", "MiB", "ours MiB", "ratio"]
    return table(header, rows) + f"\n\n{where(record)}"


def loader(record: Record) -> str:
    rows = [[row["what"], f"{row['pairs_per_second']:.0f}", f"{row['ratio']:.2f}"] for row in record["rows"]]
    return table(["", "pairs/s", "ratio"], rows) + f"\n\n{where(record)}"


def pq_speed(record: Record) -> str:
    header = ["set", "cores", "tool", "pairs/s", "pansight is", "peak MiB"]
    rows = [
        [
            {"coco": "500 × 640×480", "city": "40 × 2048×1024"}[row["set"]],
            str(row["cores"]),
            row["tool"],
            f"{row['pairs_per_second']:.0f}",
            "" if row["tool"] == "pansight" else f"{row['ours_over_it']:.1f}× as fast",
            f"{row['peak_mib']:.0f}",
        ]
        for row in record["rows"]
    ]
    milliseconds = record["milliseconds"]["coco"]
    steps = ", ".join(f"{what} {value:.2f}" for what, value in milliseconds.items())
    curve = ", ".join(f"{row['pairs']:,}: {row['peak_mib']:.0f}" for row in record["curve"])
    last = record["curve"][-1]
    return (
        table(header, rows)
        + f"\n\n{where(record)}; PQ, SQ, RQ are equal. Peak memory is that of the first process; about 90 MiB of"
        + f" ours are pages of the compiler's library. Milliseconds a 640×480 pair on one core: {steps}."
        + f" {last['pairs']:,} pairs in one go take {last['seconds']:.1f} s; peak MiB by number of pairs: {curve}."
    )


def bootstrap(record: Record) -> str:
    rows = [[row["what"], f"{row['seconds']:.2f}"] for row in record["rows"]]
    return table(["10,000 resamples of 5,000 images, 133 classes", "seconds"], rows) + (
        f"\n\n{where(record)}; one core, CPU time"
    )


TABLES: dict[str, Callable[[Record], str]] = {
    "demo": demo,
    "nuclei_mask_rcnn": nuclei,
    "rcnn_speed": rcnn_speed,
    "loader": loader,
    "pq_speed": pq_speed,
    "bootstrap": bootstrap,
}


def optional(name: str) -> Record | None:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def main() -> None:
    readme = ROOT / "README.md"
    text = readme.read_text()
    for name, make in TABLES.items():
        record = optional(name)
        if record is None:
            print(f"no results/{name}.json yet: its table is left as it is")
            continue
        marker = re.compile(rf"(<!-- table:{name} -->\n).*?(<!-- /table -->)", re.DOTALL)
        content = make(record)
        text = marker.sub(lambda match, content=content: f"{match[1]}\n{content}\n\n{match[2]}", text)
    readme.write_text(text)


if __name__ == "__main__":
    main()
