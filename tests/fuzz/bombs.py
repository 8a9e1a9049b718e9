"""Small files that ask for gigabytes, and the process that measures what reading them takes (see test_bombs.py)."""

from __future__ import annotations

import contextlib
import io
import json
import os
import struct
import subprocess
import sys
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from mutate import LAUGHS, YAML_LAUGHS, write_tree
from mutate_png import join, png_of
from mutate_zip import pack
from seeds import EVALUATE, Seed, all_seeds

from pansight.apps.cli import main

GIGA = 2**30


class Bomb(NamedTuple):
    """A seed of which some files are replaced. said: a part of the only line that may come out."""

    seed: str
    files: dict[str, Callable[[], bytes]]
    said: str
    command: tuple[str, ...] = ()


@cache
def swollen(size: int, raw: bool = False) -> bytes:
    """A zlib (or raw deflate) stream of `size` zeros, a multiple of a MiB, made from one block that is repeated."""
    pack = zlib.compressobj(9, wbits=-15)
    block = pack.compress(bytes(2**20)) + pack.flush(zlib.Z_FULL_FLUSH)
    stream = block * (size // 2**20) + b"\x03\x00"
    return stream if raw else b"\x78\xda" + stream + struct.pack(">I", (size % 65521) << 16 | 1)


def _zip(stated: int) -> bytes:
    """An archive with a file of 2 GiB that says it holds `stated` bytes."""
    stream = swollen(2 * GIGA, raw=True)
    data = bytearray(pack({"annotations/instances_train.json": b"{}", "x.json": b""}))
    archive = zipfile.ZipFile(io.BytesIO(data))
    entry = archive.getinfo("x.json")
    local = struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 8, 0, 33, 0, len(stream), stated, 6, 0) + b"x.json"
    central = struct.pack(
        "<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 8, 0, 33, 0, len(stream), stated, 6, 0, 0, 0, 0, 0, entry.header_offset
    )
    body = bytes(data[: entry.header_offset]) + local + stream
    first = bytes(data[archive.start_dir : bytes(data).rfind(b"PK\1\2")])
    directory = first + central + b"x.json"
    return body + directory + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 2, 2, len(directory), len(body), 0)


def _deep() -> bytes:
    return b"[" * 10**6 + b"]" * 10**6


def _huge(bits: int = 8, kind: int = 2, side: int = 60_000) -> Callable[[], bytes]:
    return lambda: png_of(side, side, zlib.compress(bytes(1000)), bits, kind)


def _swollen_png(height: int, width: int, bits: int = 8, kind: int = 2) -> Callable[[], bytes]:
    return lambda: png_of(height, width, swollen(2 * GIGA), bits, kind)


def _chunk_bomb(name: bytes, bits: int = 8, kind: int = 0) -> Callable[[], bytes]:
    """A sound little PNG whose text or colour profile swells."""
    content = {b"zTXt": b"a\0\0", b"iCCP": b"a\0\0", b"iTXt": b"a\0\1\0\0\0"}[name] + swollen(2 * GIGA)
    row = {(8, 0): 9, (8, 2): 25, (8, 3): 9}[bits, kind]
    more = [(name, content), *([(b"PLTE", bytes(range(255)))] if kind == 3 else [])]
    return lambda: png_of(6, 8, zlib.compress(bytes(6 * row)), bits, kind, more)


def _coco(**change: object) -> Callable[[], bytes]:
    """COCO instances of one image with one annotation."""

    def text() -> bytes:
        row = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": change["segmentation"]}
        image = {"id": 1, "file_name": "a.jpg", "height": 6, "width": 8, **dict(change.get("image", {}))}
        content = {"images": [image], "annotations": [row], "categories": [{"id": 1, "name": "car"}]}
        points = "[[" + "1,1,2,3," * 5_000_000 + "1,2]]"  # 10 million points
        return json.dumps(content).replace('"@points@"', points).encode()

    return text


def _npy() -> bytes:
    header = "{'descr': '<i4', 'fortran_order': False, 'shape': (9999, 9999), }".ljust(117) + "\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header.encode() + bytes(48)


def _bmp() -> bytes:
    info = struct.pack("<IiiHHIIiiII", 40, 40_000, 40_000, 1, 24, 0, 0, 0, 0, 0, 0)
    return struct.pack("<2sIHHI", b"BM", 54 + 1000, 0, 0, 54) + info + bytes(1000)


def _brush() -> bytes:
    """Label Studio's run lengths of 2³¹ values."""
    bits = f"{2**31:032b}" + "00111" + "0010001101111111" + "111" + "1" * 16 + "00000000"
    words = bits + ("111" + "1" * 16 + "00000000") * 40_000
    words += "0" * (-len(words) % 8)
    rle = [int(words[n : n + 8], 2) for n in range(0, len(words), 8)]
    value = {"format": "rle", "rle": rle, "brushlabels": ["car"]}
    row = {"id": "x", "type": "brushlabels", "original_height": 6, "original_width": 8, "value": value}
    return json.dumps(
        [{"id": 5, "annotations": [{"result": [row]}], "data": {"image": "images/0b5e1f3c-a.jpg"}}]
    ).encode()


def _labelme(points: str) -> Callable[[], bytes]:
    head = '{"version": "5", "flags": {}, "imagePath": "a.jpg", "imageHeight": 6, "imageWidth": 8, "shapes": '
    shape = '[{"label": "car", "shape_type": "polygon", "flags": {}, "points": '
    return lambda: (head + shape + points + "}]}").encode()


def _xml(inner: str, head: str = "") -> Callable[[], bytes]:
    image = f'<image id="0" name="a.jpg" width="8" height="6">{inner}</image>'
    return lambda: f'<?xml version="1.0" encoding="utf-8"?>{head}<annotations>{image}</annotations>'.encode()


def _label_studio(inner: str) -> Callable[[], bytes]:
    head = (
        '[{"id": 5, "data": {"image": "images/0b5e1f3c-a.jpg"}, "annotations": [{"result": [{"type": "polygonlabels", '
    )
    return lambda: (head + '"value": {"polygonlabels": ["car"], ' + inner + "}}]}]}]").encode()


def _interlaced() -> bytes:
    header = struct.pack(">II5B", 8, 6, 8, 2, 0, 0, 1)
    return join([(b"IHDR", header), (b"IDAT", swollen(2 * GIGA)), (b"IEND", b"")])


MANY = "[1,1],[2,3]," * 2_000_000 + "[1,2]"
RUNS = {"size": [6, 8], "counts": [2**39, 2**39]}
CITY = "gtFine/train/aachen/aachen_000000_000019_gtFine_polygons.json"
COCO_JSON = "annotations/instances_train.json"

BOMBS = {
    "truth of 60,000 × 60,000": Bomb("evaluate", {"gt/0.png": _huge()}, "gt/0.png: expected an image of"),
    "prediction of 9,999 × 9,999": Bomb(
        "evaluate", {"pred/0.png": _huge(side=9_999)}, "pred/0.png: expected the size 6×8"
    ),
    "both of 9,999 × 9,999": Bomb("evaluate", {f"{k}/0.png": _huge(side=9_999) for k in ("gt", "pred")}, "expected"),
    "prediction that swells": Bomb("evaluate", {"pred/0.png": _swollen_png(6, 8)}, "pred/0.png"),
    "truth of deep JSON": Bomb("evaluate", {"gt.json": _deep}, "gt.json: expected COCO panoptic, found"),
    "map of deep TOML": Bomb(
        "evaluate",
        {"map.toml": lambda: b"a = " + b"[" * 10**6},
        "map.toml: expected",
        (*EVALUATE, "--map", "in/map.toml"),
    ),
    "part of deep JSON": Bomb("evaluate merge", {"p1.json": _deep}, "p1.json: expected JSON, found"),
    "photo of 60,000 × 60,000": Bomb("check panoptic", {"train/scene_1.png": _huge()}, ""),
    "photo of 9,999 × 9,999": Bomb("check panoptic", {"train/scene_1.png": _huge(side=9_999)}, ""),
    "photo that swells": Bomb("check panoptic", {"train/scene_1.png": _swollen_png(6, 8)}, ""),
    "photo with a profile that swells": Bomb("check panoptic", {"train/scene_1.png": _chunk_bomb(b"iCCP", kind=2)}, ""),
    "map that swells": Bomb("check --fix", {"annotations/panoptic_train/scene_1.png": _swollen_png(6, 8)}, ""),
    "palette of 9,999 × 9,999": Bomb("check --fix", {"annotations/panoptic_train/scene_1.png": _huge(8, 3, 9_999)}, ""),
    "set of deep JSON": Bomb("check panoptic", {"annotations/panoptic_train.json": _deep}, ""),
    "masks of 2⁴⁰ pixels": Bomb("check instances", {COCO_JSON: _coco(segmentation=RUNS)}, ""),
    "ZIP that states 4 GiB": Bomb(
        "check panoptic", {"../in.zip": lambda: _zip(2**32 - 2)}, "expected an archive of data", ("check", "in.zip")
    ),
    "ZIP that states 10 bytes": Bomb(
        "check panoptic", {"../in.zip": lambda: _zip(10)}, "expected a whole ZIP archive", ("check", "in.zip")
    ),
    "run lengths of 2⁴⁰ pixels": Bomb(
        "convert coco_instances", {COCO_JSON: _coco(segmentation=RUNS)}, "expected run lengths of 48 pixels"
    ),
    "image of 10⁵ × 10⁵ by its JSON": Bomb(
        "convert coco_instances",
        {
            COCO_JSON: _coco(
                segmentation={"size": [10**5, 10**5], "counts": [0, 10**10]}, image={"height": 10**5, "width": 10**5}
            )
        },
        "expected",
        ("convert", "in", "--to", "out", "--images", "none"),
    ),
    "polygon of 10⁷ points": Bomb("convert coco_instances", {COCO_JSON: _coco(segmentation="@points@")}, "expected"),
    "photo that swells, converted": Bomb(
        "convert coco_instances",
        {"stuff/train/a.png": _swollen_png(6, 8, kind=0)},
        "expected",
        ("convert", "in", "--to", "out", "--option.stuff", "stuff"),
    ),
    "bitmap of 40,000 × 40,000": Bomb(
        "convert coco_instances", {"train/a.jpg": _bmp}, "expected an image, found Image size"
    ),
    "class map of 60,000 × 60,000": Bomb("convert semantic_png", {"labels/a.png": _huge(8, 0)}, "million pixels"),
    "class map of 9,999 × 9,999": Bomb("convert semantic_png", {"labels/a.png": _huge(8, 0, 9_999)}, "expected"),
    "class map with text that swells": Bomb("convert semantic_png", {"labels/a.png": _chunk_bomb(b"zTXt")}, ""),
    "palette with text that swells": Bomb(
        "convert voc", {"VOC2012/SegmentationClass/2007_000032.png": _chunk_bomb(b"zTXt", kind=3)}, "expected"
    ),
    "palette with a profile that swells": Bomb(
        "convert voc", {"VOC2012/SegmentationObject/2007_000032.png": _chunk_bomb(b"iCCP", kind=3)}, "expected"
    ),
    "palette of 9,999 × 9,999, converted": Bomb(
        "convert voc", {"VOC2012/SegmentationClass/2007_000032.png": _huge(8, 3, 9_999)}, "expected"
    ),
    "polygon of 4 million points": Bomb("convert labelme", {"a.json": _labelme(f"[{MANY}]")}, "a.json: "),
    "polygon of 4 million points in Cityscapes": Bomb(
        "convert cityscapes polygons",
        {CITY: lambda: f'{{"imgHeight":6,"imgWidth":8,"objects":[{{"label":"car","polygon":[{MANY}]}}]}}'.encode()},
        "expected at most 2000000 numbers",
    ),
    "polygon of 4 million points in Label Studio": Bomb(
        "convert label_studio",
        {"project-1.json": _label_studio(f'"points": [{MANY}]')},
        "expected at most 2000000 numbers",
    ),
    "interlaced truth that swells": Bomb("evaluate", {"gt/0.png": _interlaced}, "gt/0.png: expected a PNG of 6×8"),
    "deep LabelMe": Bomb("convert labelme", {"a.json": _labelme("[" * 10**6)}, "a.json: "),
    "mask of 10⁵ × 10⁵ in CVAT": Bomb(
        "convert cvat",
        {
            "annotations.xml": _xml(
                '<mask label="car" rle="0, 9999999999" left="0" top="0" width="100000" height="100000"/>'
            )
        },
        "annotations.xml: ",
    ),
    "polygon of 4 million points in CVAT": Bomb(
        "convert cvat",
        {"annotations.xml": _xml(f'<polygon label="car" points="{"1,1;2,3;" * 2_000_000}1,1"/>')},
        "annotations.xml: ",
    ),
    "laughs in XML": Bomb(
        "convert cvat", {"annotations.xml": _xml("&l11;", f'<!DOCTYPE x [<!ENTITY l0 "ha">{LAUGHS}]>')}, "without a DTD"
    ),
    "laughs in YAML": Bomb(
        "convert yolo_seg",
        {"data.yaml": lambda: (YAML_LAUGHS + "names: *a11\n").encode()},
        "data.yaml: expected plain YAML",
    ),
    "deep YAML": Bomb("convert yolo_seg", {"data.yaml": lambda: b"names: " + b"[" * 10**6}, "data.yaml: expected"),
    "polygon of 4 million points in YOLO": Bomb(
        "convert yolo_seg", {"labels/train/a.txt": lambda: b"0" + b" .1 .1 .2 .3" * 2_000_000}, "a.txt: "
    ),
    "brush of 2³¹ values": Bomb("convert label_studio", {"project-1.json": _brush}, "project-1.json: "),
    "deep Label Studio": Bomb("convert label_studio", {"project-1.json": _deep}, "expected"),
    "array of 9,999 × 9,999": Bomb("convert id_maps", {"a.npy": _npy}, "a.npy: "),
    "deep polygons of Cityscapes": Bomb("convert cityscapes polygons", {CITY: _deep}, "expected"),
}
"""said "": the command has something to say about the rest, and may succeed."""


def measure(place: Path) -> Iterator[dict]:
    """Runs in a process of its own."""
    warnings.simplefilter("error")
    with contextlib.redirect_stdout(io.StringIO()):
        seeds: dict[str, Seed] = {}
        for seed in all_seeds():
            if seed.name not in seeds or (seed.name == "convert id_maps" and "a.npy" in seed.files):
                seeds[seed.name] = seed
            if seed.name == "convert cityscapes":  # the last one
                seeds["convert cityscapes polygons"] = seed
    for n, (name, bomb) in enumerate(BOMBS.items()):
        seed = seeds[bomb.seed]
        work = place / str(n)
        write_tree(work / "in", dict(seed.files))
        os.chdir(work)
        command = bomb.command or seed.commands[bomb.seed.startswith("convert")]  # the second one names the format
        err = io.StringIO()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
            main(seed.commands[0])
            for file, make in bomb.files.items():
                (work / "in" / file).write_bytes(make())
            subprocess.run(["rm", "-rf", "out"], check=True)
            swollen.cache_clear()
            before, start = _reset_peak(), time.monotonic()
            code = main([*command, "--strict"] if command[0] == "convert" else command)
            seconds, growth = time.monotonic() - start, _status("VmHWM") - before
        yield {"name": name, "code": code, "line": err.getvalue()[:500], "seconds": seconds, "growth": growth}


def _reset_peak() -> int:
    """Bytes of this process now, which are its peak from now on."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024


if __name__ == "__main__":
    for row in measure(Path(sys.argv[1])):
        print(json.dumps(row), flush=True)
