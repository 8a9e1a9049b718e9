"""The memory that the annotations of a data set take, from 10,000 to 1,000,000 images, as COCO panoptic and as shards.

    .venv/bin/python benchmarks/annotation_memory.py --images 10000 100000 1000000

Each image has 8 segments. As COCO panoptic, the JSON has all of them, and every file it names exists (a link to one of
a few small ones); as shards, every line of the index leads to one of a few samples of one tar. A process of its own
opens the data set, then reads 2,000 samples spread over it; noted are its peak of resident memory over what it has
after it has read another, small data set, and the seconds of opening.
Writes results/annotation_memory.json; sizes that are measured anew replace theirs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import merge_rows, peak_resident_mib

SEGMENTS, DIFFERENT, READ = 8, 50, 2000
SIDE = 64
CATEGORIES = [{"id": n, "name": f"class{n}", "isthing": n % 2, "color": [n, 0, 0]} for n in range(1, 21)]


def segments_of(number: int) -> list[dict[str, int | list[int]]]:
    """The rows of an image: bands of equal height."""
    band = SIDE // SEGMENTS
    return [
        {
            "id": n + 1,
            "category_id": (number + n) % 20 + 1,
            "area": SIDE * band,
            "bbox": [0, n * band, SIDE, band],
            "iscrowd": 0,
        }
        for n in range(SEGMENTS)
    ]


def write_pictures(folder: Path) -> tuple[list[Path], Path]:
    """(a few photos, the PNG that fits all of them)."""
    import numpy as np

    from pansight.data.images import write_picture, write_png
    from pansight.ops.idmap import ids_to_rgb

    ids = np.repeat(np.arange(1, SEGMENTS + 1, dtype=np.int32), SIDE * SIDE // SEGMENTS).reshape(SIDE, SIDE)
    write_png(folder / "ids.png", ids_to_rgb(ids))
    photos = [folder / f"{n}.jpg" for n in range(DIFFERENT)]
    for n, photo in enumerate(photos):
        write_picture(photo, np.full((SIDE, SIDE, 3), n, np.uint8))
    return photos, folder / "ids.png"


def write_coco(folder: Path, images: int, photos: list[Path], png: Path) -> None:
    """A file of one system allows some 65,000 links only: a link from each name to one of several copies."""
    for place in ("train", "annotations/panoptic_train"):
        (folder / place).mkdir(parents=True)
    sources: list[tuple[Path, Path]] = []
    for n in range(images // 30_000 + 1):
        copies = folder / f"photo{n}.part", folder / f"ids{n}.part"
        shutil.copy(photos[n % DIFFERENT], copies[0])
        shutil.copy(png, copies[1])
        sources.append(copies)
    with (folder / "annotations/panoptic_train.json").open("w") as file:
        for key, row in (
            ("images", lambda n: {"id": n, "file_name": f"{n:012d}.jpg", "height": SIDE, "width": SIDE}),
            (
                "annotations",
                lambda n: {"image_id": n, "file_name": f"{n:012d}.png", "segments_info": segments_of(n)},
            ),
        ):
            file.write(f'{"{" if key == "images" else ", "}"{key}": [')
            for n in range(images):
                file.write((", " if n else "") + json.dumps(row(n)))
            file.write("]")
        file.write(f', "categories": {json.dumps(CATEGORIES)}}}')
    for n in range(images):
        photo, ids = sources[n // 30_000]
        os.link(photo, folder / "train" / f"{n:012d}.jpg")
        os.link(ids, folder / "annotations/panoptic_train" / f"{n:012d}.png")


def write_shards(folder: Path, images: int, photos: list[Path], png: Path) -> None:
    import io
    import tarfile

    from pansight.data.formats.webdataset.index import INDEX, Row, encode_row, scanned

    (folder / "train").mkdir(parents=True)
    (folder / "categories.json").write_text(json.dumps(CATEGORIES))
    shard = folder / "train/shard-000000.tar"
    with tarfile.open(shard, "w") as tar:
        for n, photo in enumerate(photos):
            table = {"image_id": n, "file_name": f"{n}.jpg", "segments_info": segments_of(n)}
            contents = {"jpg": photo.read_bytes(), "panoptic.png": png.read_bytes(), "json": json.dumps(table).encode()}
            for ending, data in contents.items():
                member = tarfile.TarInfo(f"{n:09d}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    rows = [row for row in scanned(str(shard), shard.name) if isinstance(row, Row)]
    with (folder / "train" / INDEX).open("wb") as file:
        for n in range(images):
            row = rows[n % DIFFERENT]
            line = Row(row.shard, n, f"{n:012d}.jpg", row.image, row.panoptic, row.table)
            file.write(encode_row(line) + b"\n")


WRITERS = {"coco_panoptic": write_coco, "webdataset": write_shards}


def measure(folder: Path) -> dict[str, float]:
    """In a process of its own: what opening and reading take."""
    from pansight.data import open_dataset

    small = open_dataset(folder.with_name("small"), split="train")
    for n in range(len(small)):
        assert small[n].size == (SIDE, SIDE)
    before, start = peak_resident_mib(), time.perf_counter()
    data = open_dataset(folder, split="train")
    seconds, opened = time.perf_counter() - start, peak_resident_mib()
    step = max(1, len(data) // READ)
    for n in range(0, len(data), step):
        assert len(data[n].truth.segments) == SEGMENTS
    return {
        "images": len(data),
        "seconds_to_open": round(seconds, 2),
        "open_mib": round(opened - before, 1),
        "read_mib": round(peak_resident_mib() - before, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--measure", type=Path)
    arguments = parser.parse_args()
    if arguments.measure is not None:
        print(json.dumps(measure(arguments.measure)))
        return
    for images in arguments.images:
        for format, write in WRITERS.items():
            with tempfile.TemporaryDirectory(prefix="annotations-") as temporary:
                folder = Path(temporary)
                photos, png = write_pictures(folder)
                write(folder / "small", DIFFERENT, photos, png)
                write(folder / "data", images, photos, png)
                size = sum(
                    file.stat().st_size for file in (folder / "data").rglob("*") if file.suffix in (".json", ".jsonl")
                )
                command = [sys.executable, __file__, "--measure", str(folder / "data")]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                row: dict[str, Any] = {"format": format, **json.loads(done.stdout)}
                row["annotation_mib"] = round(size / 2**20, 1)
                print(row, flush=True)
                facts = {"segments": SEGMENTS, "samples_read": READ}
                merge_rows("annotation_memory", facts, [row], key=("format", "images"))


if __name__ == "__main__":
    main()
