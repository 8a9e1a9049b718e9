"""What pseudo-labels are worth on nuclei (dsb2018) → results/pseudo_labels.json.

    python benchmarks/pseudo_labels.py [--folder runs/pseudo] [--minutes 2] [--seeds 3] [--share 0.2] [--confidence 0.8]

For each seed, U-Net is trained for --minutes on --share of the 473 training images, drawn by the seed. It labels the
others (`pansight label`), and is trained for as long again, from its weights, on both. Beside it stand the same share
alone, and all images with their labels by hand, each trained in the same two steps of the same length. All are measured
on the 81 images of `val`. Everything lies in the folder and is done once, so that a second call goes on; the result is
written when it is whole. With benchmarks/processor_clock on PYTHONPATH and one thread the minutes are the processor's.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from camvid import pansight
from common import DATA, save
from pansight.config import recipes
from pansight.data import open_dataset
from pansight.data.dataset import Dataset, Subset
from pansight.data.formats.coco_panoptic import PanopticWriter
from pansight.data.images import write_png

ARMS = {"hand": "a part by hand", "pseudo": "a part by hand, the rest by the model", "all": "all by hand"}
FIGURES = ("pq", "sq", "rq", "ap")
OPTIONS = {"thing": "nucleus"}


def nuclei(split: str) -> Dataset:
    return open_dataset(DATA / "dsb2018", split=split, options=OPTIONS)


def write(to: Path, sets: Sequence[Dataset]) -> None:
    """One COCO panoptic set of several, with the validation part of the nuclei; the names of images differ anyway."""
    if to.exists():
        return
    partial = to.with_name(f"{to.name}.partial")
    for part, datasets in (("train", sets), ("val", [nuclei("val")])):
        listing = partial / "annotations" / f"panoptic_{part}.json"
        with PanopticWriter(listing, datasets[0].labels, overwrite=True) as writer:
            for dataset in datasets:
                for index in range(len(dataset)):
                    sample, name = dataset[index], f"{Path(dataset.file_name(index)).stem}.png"
                    write_png(made(partial / part) / name, sample.image.permute(1, 2, 0).numpy())
                    writer.add(name, name, sample.truth)
    partial.rename(to)


def made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def recipe(folder: Path) -> Path:
    """That of U-Net on nuclei without the options of numbered PNGs."""
    text = recipes()["nuclei/unet"].read_text(encoding="utf-8").replace('[data.options]\nthing = "nucleus"\n', "")
    (folder / "unet.toml").write_text(text, encoding="utf-8")
    return folder / "unet.toml"


def train(out: Path, data: Path, minutes: float, seed: int, *more: str) -> dict[str, float]:
    """The figures of a training in percent; one that is finished is only read."""
    if not (out / "evaluation.json").exists():
        words = ["--recipe", str(recipe(out.parent)), "--data", str(data), "--out", str(out), "--overwrite", *more]
        words += [
            "--max-minutes",
            f"{minutes:g}",
            "--train.seed",
            str(seed),
            "--train.trackers",
            "",
            "--data.workers",
            "0",
        ]
        pansight("train", *words, threads=1)
    record = json.loads((out / "evaluation.json").read_text())
    row = next(row for row in record["per_class"].values() if row["name"] == "nucleus")
    return {**{key: 100 * row[key] for key in ("pq", "sq", "rq")}, "ap": 100 * record["instances"]["mask"]["ap"]}


def label(teacher: Path, rest: Dataset, folder: Path, confidence: float) -> Path:
    """The images of `rest` as the teacher labels them."""
    out, photos = folder / "labelled", folder / "photos"
    if not out.exists():
        for index in range(len(rest)):
            pixels = rest[index].image.permute(1, 2, 0).numpy()
            write_png(made(photos) / f"{Path(rest.file_name(index)).stem}.png", pixels)
        pansight("label", str(teacher), str(photos), "--out", str(out), "--confidence", f"{confidence:g}", threads=1)
    return out


def of_seed(folder: Path, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """The row of a seed: figures of each arm after its second step, and of the teacher, after its first."""
    whole = nuclei("train")
    chosen = np.random.default_rng(seed).permutation(len(whole)) < round(args.share * len(whole))
    hand, rest = (Subset(whole, np.flatnonzero(chosen == is_hand).tolist()) for is_hand in (True, False))
    write(folder / "data_hand", [hand])
    write(folder.parent / "data_all", [whole])
    minutes = args.minutes
    teacher = train(folder / "teacher", folder / "data_hand", minutes, seed)
    labelled = label(folder / "teacher", rest, folder, args.confidence)
    write(folder / "data_pseudo", [hand, open_dataset(labelled, split="train")])
    first_of_all = train(folder / "all_first", folder.parent / "data_all", minutes, seed)
    row: dict[str, Any] = {"seed": seed, "teacher": teacher, "all_first": first_of_all}
    places = {"hand": folder / "data_hand", "pseudo": folder / "data_pseudo", "all": folder.parent / "data_all"}
    for arm, data in places.items():
        start = folder / ("all_first" if arm == "all" else "teacher")
        row[arm] = train(folder / arm, data, minutes, seed + 100, "--weights", str(start))
    receipt = json.loads((labelled / "label.json").read_text())
    objects = sum(c["segments"] for c in receipt["classes"] if c["is_thing"])
    return {**row, "images": len(hand), "labelled": receipt["images"], "void": receipt["void"], "objects": objects}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/pseudo"))
    parser.add_argument("--minutes", type=float, default=2.0, help="of each of the two steps")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--share", type=float, default=0.2)
    parser.add_argument("--confidence", type=float, default=0.8)
    args = parser.parse_args()
    rows = [of_seed(made(args.folder / f"seed{seed}"), seed, args) for seed in range(args.seeds)]
    arms = {
        arm: {key: [statistics.mean(values), statistics.stdev(values)] for key, values in columns.items()}
        for arm in ("teacher", *ARMS)
        for columns in [{key: [row[arm][key] for row in rows] for key in FIGURES}]
    }
    what = "dsb2018, U-Net, measured on the 81 whole images of val"
    facts = {"minutes": args.minutes, "share": args.share, "confidence": args.confidence}
    save("pseudo_labels", {"what": what, **facts, "arms": arms, "rows": rows})


if __name__ == "__main__":
    main()
