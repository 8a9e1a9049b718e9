"""Write the figures of docs/benchmarks.md, of other pages, the first tutorial and the pages of the systems.

They come from benchmarks/results/*.json, and the options of a system from its entry. In these documents each generated
part stands between the markers `<!-- table:NAME -->` and `<!-- /table -->`; the text around it is left as it is.
docs/benchmarks.md holds every table, first the few ratios that matter most; the tutorial has a sentence on the demo. No
measured number is typed by hand.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable
from typing import Any

from common import RESULTS, ROOT, table
from exports_page import export_table
from system_tables import parts as system_parts
from system_tables import study_tables
from systems_page import DATA_TITLES, HEADER, draw_systems, plot_of, system_rows

Record = dict[str, Any]


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


def beside_transformers(record: Record) -> str:
    """Rows of transformer_speed and transformer_training; the pixels that differ, where they were compared."""
    rows = [
        [
            row["what"],
            row["settings"],
            f"{row['transformers_ms']:.0f}",
            f"{row['ours_ms']:.0f}",
            f"{row['time_ratio']:.2f}",
            *([f"{row['network_ratio']:.2f}"] if "network_ratio" in row else []),
            f"{row['transformers_mib']:.0f}",
            f"{row['ours_mib']:.0f}",
            f"{row['memory_ratio']:.2f}",
        ]
        for row in record["rows"]
    ]
    network = ["network alone"] if "network_ratio" in record["rows"][0] else []
    header = ["", "settings (ours / transformers)", "transformers ms", "ours ms", "ratio", *network]
    return table([*header, "MiB", "ours MiB", "ratio"], rows) + f"\n\n{record['what']}. {where(record)}"


def fusion_speed(record: Record) -> str:
    rows: list[list[str]] = []
    for case, figures in record["cases"].items():
        for name, ratio in figures["ratio"].items():
            ms = figures["milliseconds"]
            theirs, ours = ms[f"transformers {name}"], ms[f"fuse_hf as {name}"]
            rows.append([case, f"{name}, transformers' rules", f"{theirs:.1f}", f"{ours:.1f}", f"{ratio:.3f}"])
        own = {k: v for k, v in figures["milliseconds"].items() if "own rule" in k}
        rows += [[case, name, "", f"{value:.1f}", ""] for name, value in own.items()]
    return table(["", "", "transformers ms", "ours ms", "ratio"], rows) + f"\n\n{where(record)}; the same maps"


def centre_speed(record: Record) -> str:
    rows: list[list[str]] = []
    for case, figures in record["cases"].items():
        ms = figures["milliseconds"]
        for what in ("map", "nearest"):
            cells = [ms[f"{what}, {who}"] for who in ("as published", "by squares", "ours")]
            ratio = figures["ratio"][f"{what} / as published"], figures["ratio"][f"{what} / by squares"]
            rows.append([case, what, *(f"{cell:.0f}" for cell in cells), *(f"{value:.3f}" for value in ratio)])
    header = ["", "", "as published ms", "by squares ms", "ours ms", "ours / as published", "ours / by squares"]
    clock = record["on two threads"].items()
    told = ", ".join(f"{case}: map {ms['map']:.0f}, grouping alone {ms['grouping']:.0f}" for case, ms in clock)
    return table(header, rows) + f"\n\n{where(record)}; one thread; the same maps. Ours on two threads, ms: {told}"


MERGES = {
    "heuristic": "heuristic merge (Panoptic FPN)",
    "head": "UPSNet's panoptic head",
    "adaptive": "EfficientPS's fusion",
}


def merge_speed(record: Record) -> str:
    rows: list[list[str]] = []
    for row in record["rows"]:
        times = [f"{row['milliseconds'][form]:.0f}" for form in ("plain", "ours")]
        memory = [f"{row['mib'][form]:.0f}" for form in ("plain", "ours")]
        rows.append([MERGES[row["rule"]], *times, f"{row['ratio']:.3f}", *memory])
    header = ["", "plain ms", "ours ms", "ours / plain", "plain MiB", "ours MiB"]
    return table(header, rows) + f"\n\n{where(record)}; one thread"


def detectron2_speed(record: Record) -> str:
    who = ("published", "ours", "ours fast")
    rows: list[list[str]] = []
    for row in record["rows"]:
        cells = [f"{row['seconds'][each]:.2f}" for each in who] + [
            f"{row['ratio'][each]['time']:.2f}" for each in who[1:]
        ]
        cells += [f"{row['peak_mib'][each]:.0f}" for each in who]
        cells += [f"{row['ratio'][each]['memory']:.2f}" for each in who[1:]]
        rows.append([row["case"], "×".join(map(str, row["input"])), *cells])
    ratios = ["ratio, float32", "ratio, fast"]
    header = ["", "input", *(f"{each} s" for each in who), *ratios, *(f"{each} MiB" for each in who), *ratios]
    same = ", ".join(f"{row['case']}: {100 * row['kept_fast']:.1f} %" for row in record["rows"])
    note = "one thread; published and ours in float32, the same objects and maps; pixels that fast leaves in place"
    return table(header, rows) + f"\n\n{where(record)}; {note}: {same}"


def accuracy(record: Record) -> str:
    names = {"detr": "DETR-panoptic", "maskformer": "MaskFormer", "mask2former": "Mask2Former", "eomt": "EoMT"}
    groups: dict[tuple[str, str, int], dict[str, list[Record]]] = {}
    for row in record["rows"]:
        sides = groups.setdefault((row["data"], row["system"], row["steps"]), {})
        sides.setdefault(row["contender"], []).append(row)
    rows: list[list[str]] = []
    for (data, system, steps), sides in sorted(groups.items(), key=lambda item: (item[0][0] != "shapes", item[0])):
        cells = [spread([row[key] for row in sides.get(side, [])]) for key in PQ_COLUMNS for side in SIDES]
        rows.append([TASK_TITLES.get(data, data), names[system], str(steps), *cells])
    figures = [f"{figure}, {side}" for figure in PQ_COLUMNS.values() for side in SIDES]
    return table(["", "", "steps", *figures], rows) + f"\n\n{record['what']}. {where(record)}"


TASK_TITLES = {"nuclei by heart": "nuclei, 8 images memorised"}
"""How a task of accuracy.json is called in the table, where its key there does not say it well."""

SIDES = ("transformers", "ours")
PQ_COLUMNS = {"pq": "PQ", "pq_things": "PQ things", "pq_learnt": "PQ of learnt images"}


def spread(values: list[float]) -> str:
    """The mean, and in brackets the least and the most."""
    if not values:
        return ""
    middle = f"{statistics.mean(values):.1f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.1f} … {max(values):.1f})"


def detr_steps(record: Record) -> str:
    rows: list[list[str]] = []
    for run in record["runs"]:
        for row in run["steps"]:
            figures = [f"{row[key]:.1f}" if key in row else "" for key in STEP_COLUMNS]
            what = ("boxes", "masks beside the frozen detector")[row["step"] - 1]
            rows.append(
                [what, str(run["seed"]), str(row["optimizer_steps"]), f"{row['training_seconds']:.0f}", *figures]
            )
    header = ["DETR-panoptic in two steps", "seed", "steps", "seconds", *STEP_COLUMNS.values()]
    return table(header, rows) + f"\n\n{record['what']}. {where(record)}"


STEP_COLUMNS = {"box_ap": "box AP", "box_ap50": "box AP50", "pq_all": "PQ", "pq_things": "PQ things"}


def loader(record: Record) -> str:
    rows = [[row["what"], f"{row['pairs_per_second']:.0f}", f"{row['ratio']:.2f}"] for row in record["rows"]]
    return table(["", "pairs/s", "ratio"], rows) + f"\n\n{where(record)}"


PQ_SETS = {"coco": "500 × 640×480", "city": "40 × 2048×1024", "hard": "500 × 640×480, as hard to read as COCO's"}


def pq_speed(record: Record) -> str:
    header = ["set", "cores", "tool", "pairs/s", "pansight is", "peak MiB"]
    rows = [
        [
            PQ_SETS[row["set"]],
            str(row["cores"]),
            row["tool"],
            f"{row['pairs_per_second']:.0f}",
            "" if row["tool"] == "pansight" else f"{row['ours_over_it']:.1f}× as fast",
            f"{row['peak_mib']:.0f}",
        ]
        for row in record["rows"]
    ]
    milliseconds = record["milliseconds"]
    name = "hard" if "hard" in milliseconds else "coco"
    steps = ", ".join(f"{what} {value:.2f}" for what, value in milliseconds[name].items())
    curve = ", ".join(f"{row['pairs']:,}: {row['peak_mib']:.0f}" for row in record["curve"])
    last = record["curve"][-1]
    return (
        table(header, rows)
        + f"\n\n{where(record)}; PQ, SQ, RQ are equal. Peak memory is that of the first process; about 90 MiB of"
        + f" ours are pages of the compiler's library. Milliseconds a 640×480 pair on one core: {steps}."
        + f" {last['pairs']:,} pairs in one go take {last['seconds']:.1f} s; peak MiB by number of pairs: {curve}."
    )


def preparing_speed(record: Record) -> str:
    jobs = record["jobs"]
    rows = [
        [row["what"], *(f"{row[key]:.0f}" for key in ("one", "many")), f"{row['ratio']:.2f}"] for row in record["rows"]
    ]
    starts = ", ".join(f"{row['what']} {row['processor_seconds']:.2f}" for row in record["starts"])
    header = [f"{record['images']} photos of 640×480", "images/s, one job", f"images/s, {jobs} jobs", "ratio"]
    return table(header, rows) + f"\n\n{where(record)}; seconds of the processor to the first line of work: {starts}"


def runtime_wheel(record: Record) -> str:
    rows = [[row["tool"], row["what"], f"{row['seconds']:.2f}", f"{row['peak_mib']:.0f}"] for row in record["rows"]]
    sizes = (
        f"the wheel has {record['wheel_kib']:.0f} KiB, all that is installed with it {record['installed_mib']:.0f} MiB"
    )
    told = f"{record['model']} on EfficientNet-Lite0, a photo of 640×480; {sizes}; {where(record)}"
    return table(["", "from the start until", "s of the processor", "peak MiB"], rows) + f"\n\n{told}"


def runtime_sentence(record: Record) -> str:
    found = {row["tool"]: row for row in record["rows"] if row["what"] == "one photo"}
    ours, whole = (found[tool] for tool in ("pansight-runtime", "pansight"))
    return (
        f"Without torch: the wheel `pansight-runtime` ({record['wheel_kib']:.0f} KiB, with NumPy, Pillow and ONNX"
        " Runtime) predicts from an exported graph; from its start to the map of one photo it takes"
        f" {ours['seconds']:.1f} s of the processor and {ours['peak_mib']:.0f} MiB, pansight with torch"
        f" {whole['seconds']:.1f} s and"
        f" {whole['peak_mib']:.0f} MiB (`docs/export.md`)."
    )


def bootstrap(record: Record) -> str:
    rows = [[row["what"], f"{row['seconds']:.2f}"] for row in record["rows"]]
    return table(["10,000 resamples of 5,000 images, 133 classes", "seconds"], rows) + (
        f"\n\n{where(record)}; one core, CPU time"
    )


def first_hour(record: Record) -> str:
    """Each command with its exit code and figure; a row without a command's exit code compares the rows above it."""
    rows: list[list[str]] = []
    for row in record["rows"]:
        command = row["command"].removesuffix(" --overwrite --train.trackers ")
        figure = f"{row['name']} {row['figure']:.3g}" if "figure" in row else ""
        expected = row.get("expected", "" if row["ok"] else "another exit code")
        code = str(row["code"]) if "code" in row else ""
        rows.append([f"`{command}`" if code else command, str(row.get("seconds", "")), code, figure, expected])
    return table(["command", "seconds", "exit code", "figure", "expected"], rows) + f"\n\n{where(record)}; 2 threads"


def before_after(record: Record) -> str:
    """Time and memory of each case after the redesign as ratios to the commit before it; least and greatest ratio."""
    rows: list[list[str]] = []
    for row in sorted(record["rows"], key=lambda row: row["case"]):
        spread = f"{min(row['ratios']):.2f} … {max(row['ratios']):.2f}"
        times = [f"{row['before_ms']:.0f}", f"{row['after_ms']:.0f}", f"{row['ratio']:.2f}", spread]
        rows.append([row["case"], row["what"], *times, f"{row['memory_ratio']:.2f}"])
    header = ["case", "part", "before, ms", "after, ms", "ratio", "least … greatest", "ratio of memory"]
    return table(header, rows) + f"\n\n{where(record)}; {record['threads']} threads"


def cpu_defaults(record: Record) -> str:
    """Mean and spread over the seeds of each variant."""
    rows: list[list[str]] = []
    for name in dict.fromkeys(run["what"] for run in record["runs"]):
        runs = [run for run in record["runs"] if run["what"] == name]
        figures = [spread([run[key] for run in runs]) for key in ("pq_all", "pq_things", "pq_stuff")]
        speed = statistics.median(run["images_per_second"] for run in runs)
        steps = statistics.median(run["steps"] for run in runs)
        rows.append([name, *figures, f"{steps:.0f}", f"{speed:.1f}"])
    header = ["settings of the network", "PQ", "PQ things", "PQ stuff", "steps", "images/s"]
    seeds = ", ".join(dict.fromkeys(str(run["seed"]) for run in record["runs"]))
    return table(header, rows) + f"\n\n{record['what']}; seeds {seeds}; {where(record)}"


def camvid(record: Record) -> str:
    """A row for each network, a column for each class; the mean over the seeds where there are several."""
    rows: list[list[str]] = []
    classes = list(record["rows"][0]["iou"])
    for model in dict.fromkeys(row["model"] for row in record["rows"]):
        runs = [row for row in record["rows"] if row["model"] == model]
        figures = [f"{statistics.mean(run['iou'][name] for run in runs):.1f}" for name in classes]
        steps = f"{statistics.median(run['steps'] for run in runs):.0f}"
        rows.append([MODEL_TITLES[model], spread([run["miou"] for run in runs]), *figures, steps])
    first = record["rows"][0]
    seeds = ", ".join(dict.fromkeys(str(row["seed"]) for row in record["rows"]))
    budget = f"{first['minutes']:g} minutes on {first['threads']} thread{'s' if first['threads'] > 1 else ''} each"
    return (
        table(["", "mIoU", *classes, "steps"], rows) + f"\n\n{record['what']}; {budget}; seed {seeds}; {where(record)}"
    )


MODEL_TITLES = {"fcn": "FCN", "segnet": "SegNet", "unet": "U-Net", "pspnet": "PSPNet"}
MODEL_TITLES |= {"deeplabv3": "DeepLabV3", "deeplabv3plus": "DeepLabV3+"}


def beside_peers(record: Record) -> str:
    keys = ("theirs_ms", "ours_ms", "time_ratio", "theirs_mib", "ours_mib", "memory_ratio")
    rows = [
        [
            row["what"],
            row["beside"],
            row["settings"],
            *(f"{row[k]:.2f}" if k.endswith("ratio") else f"{row[k]:.0f}" for k in keys),
        ]
        for row in record["rows"]
    ]
    header = ["", "beside", "settings (ours / theirs)", "their ms", "our ms", "ratio", "their MiB", "our MiB", "ratio"]
    size = f"one image of {record['side']}×{record['side']}, {record['threads']} threads"
    return table(header, rows) + f"\n\n{size}; {where(record)}"


def predict_speed(record: Record) -> str:
    """Photos from files to files: seconds of each process and its memory."""
    rows = [
        [
            row["what"],
            row["beside"],
            row["settings"],
            *(f"{row[key]:.1f}" for key in ("script_seconds", "our_seconds")),
            f"{row['time_ratio']:.2f}",
            *(f"{row[key]:.0f}" for key in ("script_mib", "our_mib")),
            row["chosen"].partition(":")[0],
        ]
        for row in record["rows"]
    ]
    header = ["", "beside", "speed", "script, s", "ours, s", "ratio", "script, MiB", "ours, MiB", "chosen"]
    (height, width), photos = record["size"], ", ".join(dict.fromkeys(f"{row['photos']}" for row in record["rows"]))
    size = f"{photos} photos of {width}×{height}, {record['threads']} threads"
    return table(header, rows) + f"\n\n{size}; {where(record)}"


def rare_classes(record: Record) -> str:
    """IoU of the rare classes and of all, mean ± deviation over the seeds, and the gain over none."""
    rows: list[list[str]] = []
    for row in record["rows"]:
        figures = [f"{row[key]['mean']:.1f} ± {row[key]['deviation']:.1f}" for key in ("rare", "miou")]
        gains = [f"{statistics.mean(row[key]['gains']):+.1f}" for key in ("rare", "miou")]
        gained = f"{sum(gain > 0 for gain in row['rare']['gains'])} of {len(row['seeds'])}"
        words = [row["study"].removeprefix("rare_"), row["variant"]]
        rows.append([*words, figures[0], gains[0], gained, figures[1], gains[1], f"{row['minutes']:g}"])
    header = ["data", "options", "IoU of rare classes", "gain", "seeds that gain", "mIoU", "gain", "minutes each"]
    return table(header, rows) + f"\n\n{where(record)}"


def combined(record: Record) -> str:
    columns = {"pq": "PQ", "pq_things": "PQ things", "miou": "mIoU", "iou_stuff": "mean IoU of stuff", "ap": "AP"}
    rows: list[list[str]] = []
    for line in ("separate", "panoptic"):
        found = [[row.get(f"{line}_{key}") for row in record["rows"]] for key in [*columns, "pq_stuff"]]
        rows.append([f"machine-{line}", *(spread([v for v in values if v is not None]) for values in found)])
    seeds = ", ".join(str(row["seed"]) for row in record["rows"])
    minutes = f"{record['rows'][0]['minutes']:g} minutes each"
    header = ["", *columns.values(), "PQ stuff"]
    return table(header, rows) + f"\n\n{record['what']}; {minutes}; seed {seeds}; {where(record)}"


def checkpointing(record: Record) -> str:
    rows: list[list[str]] = []
    for model in dict.fromkeys(row["model"] for row in record["rows"]):
        off, on = (next(r for r in record["rows"] if r["model"] == model and r["on"] is flag) for flag in (False, True))
        memory = [f"{row['peak_mib']:.0f}" for row in (off, on)] + [f"{on['peak_mib'] / off['peak_mib']:.2f}"]
        seconds = [f"{row['seconds']:.2f}" for row in (off, on)] + [f"{on['seconds'] / off['seconds']:.2f}"]
        rows.append([model, f"{off['batch']} × {off['side']}×{off['side']}", *memory, *seconds])
    header = ["", "step of", "MiB", "MiB with it", "ratio", "seconds", "seconds with it", "ratio"]
    return table(header, rows) + f"\n\n{where(record)}"


def nuclei_unet(record: Record) -> str:
    """U-Net's rows: the recipe as it is, and with border weights and elastic deformation."""
    keys = ("pq_nucleus", "sq_nucleus", "rq_nucleus", "ap", "ap50", "ap75")
    titles = {"unet": "U-Net", "unet_border": "U-Net, borders weighted, elastic deformation"}
    rows: list[list[str]] = []
    bordered = optional("nuclei_unet_border")
    for source in [record] if bordered is None else [record, bordered]:
        for run in source["runs"]:
            minutes = f"{run['training_seconds'] / 60:.1f}"
            figures = [f"{run[key]:.1f}" for key in keys]
            rows.append([titles[run["model"]], str(run["seed"]), minutes, str(run["steps"]), *figures])
    header = ["", "seed", "minutes", "steps", "PQ nucleus", "SQ", "RQ", "mask AP", "AP50", "AP75"]
    return table(header, rows) + f"\n\n{record['what']}; objects are connected components; {where(record)}"


def pseudo_labels(record: Record) -> str:
    """The arms of the round trip, each as mean ± deviation over the seeds, in percent."""
    share, minutes = f"{100 * record['share']:.0f} %", f"{record['minutes']:g}"
    titles = {
        "teacher": f"{share} by hand, {minutes} minutes: the teacher",
        "hand": f"{share} by hand, {minutes} minutes more",
        "pseudo": f"{share} by hand and the labels of the teacher, {minutes} minutes more",
        "all": f"all by hand, {minutes} minutes and {minutes} more",
    }
    keys = {"pq": "PQ nucleus", "sq": "SQ", "rq": "RQ", "ap": "mask AP"}
    rows = [
        [title, *(f"{mean:.1f} ± {deviation:.1f}" for mean, deviation in (record["arms"][arm][key] for key in keys))]
        for arm, title in titles.items()
    ]
    seeds = ", ".join(str(row["seed"]) for row in record["rows"])
    labelled = " / ".join(f"{row['labelled']} images, {100 * row['void']:.1f} % void" for row in record["rows"])
    told = f"{record['what']}; seeds {seeds}; confidence {record['confidence']:g}; labelled {labelled}; {where(record)}"
    return table(["training images", *keys.values()], rows) + f"\n\n{told}"


def systems(record: Record) -> str:
    """For each data a table of all systems, the best first, and the plot that `main` draws beside it."""
    parts: list[str] = []
    for data in dict.fromkeys(row["data"] for row in record["rows"]):
        found = [row for row in record["rows"] if row["data"] == data]
        seeds = ", ".join(dict.fromkeys(str(row["seed"]) for row in found))
        threads = f"{found[0]['threads']} thread{'s' if found[0]['threads'] > 1 else ''}"
        budget = f"{found[0]['minutes']:g} minutes each on {threads}; seed {seeds}; {where(record)}"
        plot = f"![PQ of each system against the time of a prediction]({plot_of(data)})"
        parts.append(f"{DATA_TITLES[data]}:\n\n{table(HEADER, system_rows(found))}\n\n{budget}\n\n{plot}")
    return "\n\n".join(parts)


def sweep_example(record: Record) -> str:
    """The command of the sweep, and what it printed at its end."""
    return f"```sh\n{record['command']}\n```\n\n```text\n{record['printed']}\n```\n\n{where(record)}"


def tiles(record: Record) -> str:
    """Two tables of docs/huge.md: what seams cost, and speed and memory against the size of the image."""
    parts: list[str] = []
    seams = [row for row in record["rows"] if row["what"] == "seams"]
    if seams:
        keys = ("pq_nucleus_against_untiled", "pq_seams", "pq_inside", "pq_nucleus_of_tiles", "pq_nucleus_of_untiled")
        rows: list[list[str]] = []
        for row in sorted(seams, key=lambda row: (-row["tile"], row["overlap"], row["seam_iou"])):
            settings = [f"{row['tile']}", f"{row['overlap']}", f"{row['seam_iou']:g}"]
            rows.append([*settings, *(f"{row[key]:.2f}" for key in keys), f"{row['objects_seams']}"])
        header = ["tile", "overlap", "`--seam-iou`", "PQ of nuclei", "at seams", "elsewhere", "tiles, annotation"]
        header += ["untiled, annotation", "nuclei at seams"]
        models = " and ".join(dict.fromkeys(row["model"] for row in seams))
        parts.append(f"{table(header, rows)}\n\n{record['seams']}; {models}; {where(record)}")
    sizes = [row for row in record["rows"] if row["what"] == "sizes"]
    if sizes:
        rows = []
        for row in sorted(sizes, key=lambda row: (row["model"], row["side"])):
            image = [row["model"], f"{row['side']:,}", f"{row['tiles']}", f"{row['segments']:,}"]
            speed = [f"{row['seconds']:.0f}", f"{row['mpixels_per_second']:.2f}"]
            rows.append([*image, *speed, f"{row['peak_mib']:.0f}", f"{row['loaded_mib']:.0f}"])
        header = [
            "model",
            "side",
            "tiles",
            "segments",
            "seconds",
            "Mpixel/s",
            "peak MiB",
            "of it the loaded model, MiB",
        ]
        text = f"{record['sizes']}; tiles of {sizes[0]['tile']}, overlap {sizes[0]['overlap']}; {where(record)}"
        parts.append(f"{table(header, rows)}\n\n{text}")
    return "\n\n".join(parts)


def demo_sentence(record: Record) -> str:
    """What the demo reaches, in one sentence of the first tutorial: the median over its runs."""
    pq, steps, seconds = (statistics.median(run[key] for run in record["runs"]) for key in ("pq", "steps", "seconds"))
    return (
        f"Measured: {steps:.0f} training steps, {seconds:.0f} seconds in all, and a panoptic quality (PQ) of {pq:.1f}"
        f" on the images never seen ({where(record)})."
    )


RATIO_ROWS = (
    ("rcnn_speed", "inference", "Mask R-CNN R50, inference", "torchvision"),
    ("rcnn_speed", "training", "Mask R-CNN R50, training step", "torchvision"),
    ("transformer_speed", "DETR-panoptic R50, 640×640", "DETR-panoptic R50, inference", "transformers"),
    ("transformer_speed", "MaskFormer R50, 640×640", "MaskFormer R50, inference", "transformers"),
    ("transformer_speed", "Mask2Former Swin-T, 640×640", "Mask2Former Swin-T, inference", "transformers"),
    ("transformer_speed", "EoMT ViT-S, 640×640", "EoMT ViT-S, inference", "transformers"),
    ("transformer_training", "DETR-panoptic R50", "DETR-panoptic R50, training step", "transformers"),
    ("transformer_training", "Mask2Former Swin-T", "Mask2Former Swin-T, training step", "transformers"),
    ("transformer_training", "EoMT ViT-S", "EoMT ViT-S, training step", "transformers"),
)
"""(result file, its `what`, what the page calls it, beside which tool) of each row of the table of ratios."""


def ratios(records: dict[str, Record]) -> str:
    """Our time and memory divided by the other tool's, where both run with the same settings."""
    header = ["what is compared", "beside", "time, float32", "time, fast settings", "memory, float32"]
    rows: list[list[str]] = []
    for source, what, title, beside in RATIO_ROWS:
        found = {row["settings"]: row for row in records[source]["rows"] if row["what"] == what}
        plain, fast = found["float32 / float32"], found["fast / fast"]
        figures = (plain["time_ratio"], fast["time_ratio"], plain["memory_ratio"])
        rows.append([title, beside, *(f"{figure:.2f}" for figure in figures)])
    for row in records["pq_speed"]["rows"]:
        if (row["set"], row["cores"], row["tool"]) == ("coco", 1, "panopticapi"):
            ratio = f"{1 / row['ours_over_it']:.2f}"
            rows.append(["PQ from files, one core", row["tool"], ratio, "", ""])
    for row in records["loader"]["rows"]:
        if row["what"] == "PIL + transforms.v2":
            rows.append(["loading a training image, one core", row["what"], f"{1 / row['ratio']:.2f}", "", ""])
    return table(header, rows) + f"\n\n{where(records['transformer_speed'])}"


TABLES: dict[str, Callable[[Record], str]] = {
    "demo": demo,
    "nuclei_mask_rcnn": nuclei,
    "rcnn_speed": rcnn_speed,
    "transformer_speed": beside_transformers,
    "transformer_training": beside_transformers,
    "fusion_speed": fusion_speed,
    "centre_speed": centre_speed,
    "merge_speed": merge_speed,
    "detectron2_speed": detectron2_speed,
    "accuracy": accuracy,
    "detr_steps": detr_steps,
    "loader": loader,
    "pq_speed": pq_speed,
    "bootstrap": bootstrap,
    "preparing_speed": preparing_speed,
    "first_hour": first_hour,
    "before_after": before_after,
    "cpu_defaults": cpu_defaults,
    "camvid": camvid,
    "semantic_speed": beside_peers,
    "panoptic_rcnn_speed": beside_peers,
    "predict_speed": predict_speed,
    "rare_classes": rare_classes,
    "combined": combined,
    "checkpointing": checkpointing,
    "nuclei_unet": nuclei_unet,
    "pseudo_labels": pseudo_labels,
    "systems": systems,
}
"""The tables of docs/benchmarks.md, each by the name of its result file."""

RATIO_SOURCES = ("rcnn_speed", "transformer_speed", "transformer_training", "pq_speed", "loader")


def optional(name: str) -> Record | None:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def contents() -> dict[str, dict[str, str]]:
    """Document → name of a generated part → its text; parts without results yet are left out."""
    tables = {name: make(record) for name, make in TABLES.items() if (record := optional(name)) is not None}
    sources = {name: record for name in RATIO_SOURCES if (record := optional(name)) is not None}
    if len(sources) == len(RATIO_SOURCES):
        tables["ratios"] = ratios(sources)
    documents = {"docs/benchmarks.md": tables}
    further = [
        ("docs/tutorials/first_model.md", "demo", "demo_sentence", demo_sentence),
        ("docs/huge.md", "tiles", "tiles", tiles),
        ("docs/sweeps.md", "sweep_example", "sweep_example", sweep_example),
        ("docs/sweeps.md", "studies", "studies", study_tables),
        ("docs/export.md", "exports", "exports", export_table),
        ("docs/export.md", "runtime_wheel", "runtime_wheel", runtime_wheel),
        ("README.md", "runtime_wheel", "runtime_wheel", runtime_sentence),
    ]
    for document, source, name, make in further:
        if (record := optional(source)) is not None:
            documents.setdefault(document, {})[name] = make(record)
    return documents | system_parts(optional("systems"))


def rewritten(text: str, parts: dict[str, str]) -> str:
    """`text` with each part between its markers. Raises ValueError where a document lacks the markers of a part."""
    for name, content in parts.items():
        marker = re.compile(rf"(<!-- table:{name} -->\n).*?(<!-- /table -->)", re.DOTALL)
        text, count = marker.subn(lambda match, content=content: f"{match[1]}\n{content}\n\n{match[2]}", text)
        if count != 1:
            raise ValueError(f"expected the markers <!-- table:{name} --> … <!-- /table --> once, found them {count}×")
    return text


def main() -> None:
    if (record := optional("systems")) is not None:
        draw_systems(record["rows"], ROOT / "docs")
    for document, parts in contents().items():
        path = ROOT / document
        path.write_text(rewritten(path.read_text(), parts))
        print(f"wrote {', '.join(parts)} into {document}")


if __name__ == "__main__":
    main()
