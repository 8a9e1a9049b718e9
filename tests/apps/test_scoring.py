"""pansight evaluate --gt --pred, as it is typed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pansight.apps.cli import main
from pansight.ops.idmap import ids_to_rgb

CATEGORIES = [
    {"id": 17, "name": "cat", "isthing": 1, "color": [200, 0, 0]},
    {"id": 187, "name": "sky", "isthing": 0, "color": [0, 0, 200]},
]
BASE = ["evaluate", "--gt", "gt.json", "--pred", "pred.json"]


def write_side(path: Path, images: dict[int, tuple[Any, dict[int, int]]], categories: Any = CATEGORIES, **more) -> None:
    """images: image_id → (map, id → category_id)."""
    path.with_suffix("").mkdir(exist_ok=True)
    rows = []
    for image_id, (ids, segments) in images.items():
        ids = np.array(ids, np.int32)
        Image.fromarray(ids_to_rgb(ids)).save(path.with_suffix("") / f"{image_id}.png")
        info = [
            {"id": n, "category_id": c, "area": int((ids == n).sum()), "iscrowd": 0} | more for n, c in segments.items()
        ]
        rows.append({"image_id": image_id, "file_name": f"{image_id}.png", "segments_info": info})
    path.write_text(json.dumps({"images": [], "annotations": rows, "categories": categories}), encoding="utf-8")


TRUTH = {
    1: ([[5, 5, 5, 5, 9, 9]], {5: 17, 9: 187}),
    2: ([[5, 5, 9, 9, 9, 9]], {5: 17, 9: 187}),
    3: ([[0, 0, 7, 7, 7, 7]], {7: 17}),
}
FOUND = {
    1: ([[1, 1, 1, 0, 2, 2]], {1: 17, 2: 187}),
    2: ([[1, 3, 2, 2, 2, 2]], {1: 17, 3: 17, 2: 187}),
    3: ([[0, 0, 7, 7, 7, 7]], {7: 17}),
}
"""cat: IoU 3/4 and 1, one missed, two phantoms: PQ = 1.75 / (2 + 1/2 + 2/2) = 0.5; sky: 1 and 1."""

TABLE = """\
          |    PQ     SQ     RQ     N
--------------------------------------
All       |  75.0   93.8   78.6     2
Things    |  50.0   87.5   57.1     1
Stuff     | 100.0  100.0  100.0     1
"""


@pytest.fixture(autouse=True)
def _files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_side(Path("gt.json"), TRUTH)
    write_side(Path("pred.json"), FOUND)


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    code = main([*arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def complaint(capsys, *arguments: str) -> str:
    """The one line, and nothing written."""
    before = {f: f.stat().st_mtime_ns for f in Path().rglob("*")}
    code, _, err = run(capsys, *arguments)
    assert code == 2, err
    assert err.count("\n") == 1
    assert err.startswith("pansight: ")
    assert {f: f.stat().st_mtime_ns for f in Path().rglob("*")} == before
    return err


def load(name: str) -> Any:
    return json.loads(Path(name).read_text(encoding="utf-8"))


def without_time(record: dict) -> dict:
    return {k: v for k, v in record.items() if k not in ("seconds", "images_per_second")}


def test_the_table_is_that_of_panopticapi_to_the_letter(capsys):
    code, out, _ = run(capsys, *BASE, "--no-errors")
    assert code == 0
    assert out.startswith(TABLE)


def test_every_output(capsys):
    code, out, err = run(capsys, *BASE, "--json", "o.json", "--table", "t.parquet", "--report", "r.html", "--boundary")
    assert (code, err) == (0, "")
    assert [line.split()[1] for line in out.splitlines()[-3:]] == ["o.json", "t.parquet", "r.html"]
    record = load("o.json")
    assert record["per_class"]["17"] == {
        "name": "cat", "isthing": True, "pq": 0.5, "sq": 0.875, "rq": 2 / 3.5, "tp": 2, "fp": 2, "fn": 1, "iou": 1.75
    }  # fmt: skip
    assert record["per_class"]["187"]["pq"] == 1.0
    assert record["All"] == {"pq": 0.75, "sq": 0.9375, "rq": (2 / 3.5 + 1) / 2, "n": 2}
    assert record["Things"]["pq"] == 0.5
    assert record["Stuff"]["n"] == 1
    assert record["images_per_second"] > 0
    assert {"semantic", "pq_dagger", "errors", "confusion", "boundary", "intervals", "images"} <= record.keys()
    assert "instances" not in record
    table = pq.read_table("t.parquet").to_pylist()
    assert sum(row["side"] == "truth" for row in table) == 5
    assert {row["image"] for row in table} == {"1", "2", "3"}
    assert sum(row["iou"] for row in table if row["error"] == "found") == 3.75
    assert "<html" in Path("r.html").read_text(encoding="utf-8")
    assert sorted(p.name for p in Path().iterdir()) == [
        "gt", "gt.json", "o.json", "pred", "pred.json", "r.html", "t.parquet"
    ]  # fmt: skip


def test_precision_where_there_are_scores(capsys):
    write_side(Path("pred.json"), FOUND, score=0.5)
    code, out, _ = run(capsys, *BASE, "--json", "o.json")
    assert code == 0
    assert re.search(r"^mask +\| AP \d", out, re.M)
    assert 0 < load("o.json")["instances"]["mask"]["ap"] < 1


def test_the_convention_of_miou(capsys):
    """A class that is predicted and not there counts as 0 by one convention, and not at all by another."""
    cats = {i: (np.array(ids) % 9, {n: c for n, c in s.items() if n != 9}) for i, (ids, s) in TRUTH.items()}  # 9 → void
    write_side(Path("gt.json"), cats)
    painted = {**FOUND, 3: ([[0, 0, 4, 7, 7, 7]], {4: 187, 7: 17})}
    write_side(Path("pred.json"), painted)
    figures = {}
    for name in ("cityscapes", "detectron2"):
        code, out, _ = run(capsys, *BASE, "--miou", name, "--json", f"{name}.json")
        assert code == 0
        assert f"({name})" in out
        figures[name] = load(f"{name}.json")["semantic"]
    assert figures["cityscapes"]["n"] == 2
    assert figures["detectron2"]["n"] == 1
    assert figures["cityscapes"]["miou"] == figures["detectron2"]["miou"] / 2 == 8 / 10 / 2


@pytest.mark.parametrize("option", ["--json", "--table", "--report", "--partial"])
def test_nothing_is_replaced_unasked(capsys, option):
    Path("out").write_text("mine", encoding="utf-8")
    assert "out: expected no such file yet, found one; add --overwrite" in complaint(capsys, *BASE, option, "out")
    assert Path("out").read_text(encoding="utf-8") == "mine"
    assert run(capsys, *BASE, option, "out", "--overwrite")[0] == 0
    assert Path("out").read_bytes() != b"mine"


@pytest.mark.parametrize("option", ["--json", "--table", "--report", "--partial"])
def test_inputs_are_never_replaced(capsys, option):
    for name in ("gt.json", "../" + Path.cwd().name + "/pred.json"):
        assert "expected a file of its own" in complaint(capsys, *BASE, option, name, "--overwrite")
    assert "expected a file of its own" in complaint(capsys, *BASE, "--json", "o", "--partial", "./o")


def test_an_error_leaves_no_output(capsys):
    Path("pred/3.png").write_bytes(b"")
    outputs = ["--json", "o.json", "--table", "t.parquet", "--report", "r.html", "--partial", "p.json"]
    assert "pred/3.png: expected an 8-bit RGB PNG of segment ids, found an empty file" in complaint(
        capsys, *BASE, *outputs
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["evaluate"], "expected a run or model, or --gt FILE --pred FILE, or --merge PARTS; found none"),
        (["evaluate", "--gt", "gt.json"], "found --gt only"),
        (["evaluate", "--pred", "pred.json"], "found --pred only"),
        (["evaluate", "runs/x", "--gt", "gt.json", "--pred", "pred.json"], "expected a model (runs/x) or files"),
        ([*BASE, "--out", "gt.json"], "--out: expected a folder, found the file gt.json"),
        ([*BASE, "--data", "photos"], "expected a run or model for --data, found none"),
        ([*BASE, "--evaluate.max-detections", "5"], "expected a run or model for --evaluate.max_detections"),
        ([*BASE, "--gt-dir", "none"], "none: expected a folder or file, found none"),
        ([*BASE, "--pred-dir", "none.zip"], "none.zip: expected a folder or file, found none"),
        ([*BASE, "--images", "none", "--report", "r.html"], "none: expected a folder of photos, found none"),
        ([*BASE, "--images", "."], "expected --report FILE for the photos of --images"),
        ([*BASE, "--no-errors", "--table", "t.parquet"], "expected error classes for --table and --report"),
        ([*BASE, "--miou", "mine"], "unknown mIoU convention 'mine'; known: cityscapes, detectron2, semseg"),
        ([*BASE, "--map", "names", "--strict-compat"], "expected either --map or --strict-compat, found both"),
        ([*BASE, "--map", "none.toml"], "none.toml: no such file; expected a class map"),
        ([*BASE, "--shard", "3"], "expected PART/PARTS such as 3/16, found '3'"),
        ([*BASE, "--shard", "1/" + "9" * 5000], "expected PART/PARTS such as 3/16"),
        ([*BASE, "--shard=-1/3"], "expected PART/PARTS"),
        ([*BASE, "--shard", "0/3"], "expected a part between 1 and 3, found 0/3"),
        ([*BASE, "--shard", "1/4"], "expected at most 3 parts for as many images, found 4"),
        ([*BASE, "--threads=-1"], "--threads: expected 0 (all cores) or a number of threads, found -1"),
        (["evaluate", "--gt", "none.json", "--pred", "pred.json"], "none.json: no such file"),
        (["evaluate", "--gt", "gt", "--pred", "pred.json"], "gt: cannot be read: Is a directory"),
        (["evaluate", "--merge", "gt.json"], "expected a partial evaluation (--partial), found another file"),
        (["evaluate", "--merge", "none.json"], "none.json: no such file"),
        (["evaluate", "--merge", "gt.json", "--gt", "gt.json"], "expected --merge with --json or --report only"),
        (["evaluate", "--merge", "gt.json", "--table", "t"], "expected --merge with --json or --report only"),
    ],
)
def test_one_line_for_every_mistake(capsys, arguments, words):
    assert words in complaint(capsys, *arguments)


def test_a_folder_that_is_missing_beside_the_json(capsys):
    Path("pred").rename("elsewhere")
    said = complaint(capsys, *BASE)
    assert "pred.json: expected its PNGs in pred, found no such folder (name it: --gt-dir, --pred-dir)" in said
    code, out, _ = run(capsys, *BASE, "--pred-dir", "elsewhere", "--no-errors")
    assert code == 0
    assert out.startswith(TABLE)


def test_a_zip_of_pngs(capsys):
    with zipfile.ZipFile("found.zip", "w") as archive:
        for png in sorted(Path("pred").iterdir()):
            archive.write(png, f"folder/{png.name}")
    code, out, _ = run(capsys, *BASE, "--pred-dir", "found.zip", "--no-errors")
    assert code == 0
    assert out.startswith(TABLE)
    with zipfile.ZipFile("found.zip", "w") as archive:
        archive.write("pred/1.png", "1.png")
    assert "found.zip/2.png: expected the PNG of image 2, found no such file" in complaint(
        capsys, *BASE, "--pred-dir", "found.zip"
    )


def test_a_name_that_leads_outside(capsys):
    content = load("pred.json")
    content["annotations"][0]["file_name"] = "../gt/1.png"
    Path("pred.json").write_text(json.dumps(content), encoding="utf-8")
    assert "expected a file name inside the data folder, found '../gt/1.png'" in complaint(capsys, *BASE)


def test_an_unknown_category_hints_at_map(capsys):
    other = [{"id": 1, "name": "sky", "isthing": 0}, {"id": 2, "name": "cat", "isthing": 1}]
    renamed = {17: 2, 187: 1}
    write_side(
        Path("pred.json"), {i: (ids, {n: renamed[c] for n, c in s.items()}) for i, (ids, s) in FOUND.items()}, other
    )
    assert "expected a category of the truth, found category_id 2 of segment 1; add --map" in complaint(capsys, *BASE)
    code, out, _ = run(capsys, *BASE, "--map", "names", "--no-errors")
    assert code == 0
    assert out.startswith(TABLE)
    Path("map.toml").write_text('sky = ""', encoding="utf-8")
    code, out, _ = run(capsys, *BASE, "--map", "map.toml", "--no-errors")
    assert code == 0
    assert out.splitlines()[:2] == [
        "void       predicted classes without a counterpart: sky",
        "void       classes of the truth without a counterpart: sky",
    ]


def test_stale_areas_are_a_warning_and_strict_compat_trusts_them(capsys):
    content = load("gt.json")
    content["annotations"][0]["segments_info"][0]["area"] = 5
    Path("gt.json").write_text(json.dumps(content), encoding="utf-8")
    code, out, err = run(capsys, *BASE, "--no-errors")
    assert (code, err.count("\n")) == (0, 1)
    assert out.startswith(TABLE)
    assert "warning: 1 segments of the truth have another area in the JSON than in the PNG" in err
    code, out, err = run(capsys, *BASE, "--strict-compat", "--json", "o.json")
    assert (code, err) == (0, "")
    assert load("o.json")["per_class"]["17"]["iou"] == 3 / 5 + 1


# --- shards ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def parts(capsys) -> list[str]:
    for k in (1, 2, 3):
        assert run(capsys, *BASE, "--shard", f"{k}/3", "--partial", f"p{k}.json", "--threads", str(k))[0] == 0
    return ["p3.json", "p1.json", "p2.json"]


def test_merged_shards_are_the_whole(capsys, parts):
    code, whole, _ = run(capsys, *BASE, "--json", "whole.json")
    assert code == 0
    code, merged, _ = run(capsys, "evaluate", "--merge", *parts, "--json", "merged.json", "--report", "r.html")
    assert code == 0
    assert merged.replace("merged.json", "whole.json").splitlines()[:-1] == whole.splitlines()
    assert without_time(load("merged.json")) == without_time(load("whole.json"))
    assert Path("r.html").is_file()


def test_wrong_shards(capsys, parts):
    def refused(*names: str) -> str:
        return complaint(capsys, "evaluate", "--merge", *names)

    assert "merge: expected all 3 shards, found none for 2" in refused("p1.json", "p3.json")
    assert "p1.json: expected each shard once, found 1/3 in p1.json too" in refused("p1.json", "p1.json")
    assert run(capsys, *BASE, "--shard", "2/2", "--partial", "q.json")[0] == 0
    assert "q.json: expected 3 shards of 3 images as in p1.json, found 2 of 3" in refused("p1.json", "q.json")
    assert run(capsys, *BASE, "--shard", "2/3", "--partial", "strict.json", "--strict-compat")[0] == 0
    assert "strict.json: expected --strict-compat and --map as in p1.json" in refused("p1.json", "strict.json")
    assert run(capsys, *BASE, "--shard", "2/3", "--partial", "few.json", "--no-errors")[0] == 0
    assert "expected the same figures on both sides" in refused("p1.json", "few.json", "p3.json")
    content = load("p1.json") | {"shard": [2, 3]}
    Path("same.json").write_text(json.dumps(content), encoding="utf-8")
    assert "expected each image in one shard, found one in several" in refused("p1.json", "same.json", "p3.json")


DAMAGES: dict[str, Any] = {
    "shard": [[0, 3], [4, 3], [1, 10**12], [1], ["a", "b"], None, [10**30, 10**30]],
    "images": [None, "x", -1, [3]],
    "labels": [None, [], [{}], [{"id": 0}], 5],
    "figures": [None, {}, {"errors": 5, "x": 1}, {"convention": "mine"}],
    "stale_areas": [None, "x"],
    "rules": [None, []],
    "parts": [None, {}, []],
}


@pytest.mark.slow
@pytest.mark.parametrize("key", DAMAGES)
def test_damaged_shards(capsys, parts, key):
    sound = load("p2.json")
    for value in DAMAGES[key]:
        Path("p2.json").write_text(json.dumps(sound | {key: value}), encoding="utf-8")
        complaint(capsys, "evaluate", "--merge", *parts)
    del sound[key]
    Path("p2.json").write_text(json.dumps(sound), encoding="utf-8")
    assert "damaged" in complaint(capsys, "evaluate", "--merge", *parts)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("row", "value"), [(0, 7), (0, -1), (1, 2), (1, -1), (1, 10**30), (2, -5), (3, "x"), (4, None), (5, -(2**62))]
)
def test_damaged_counts(capsys, parts, row, value):
    content = load("p2.json")
    content["parts"]["panoptic"]["rows"][row][0] = value
    Path("p2.json").write_text(json.dumps(content), encoding="utf-8")
    assert "damaged" in complaint(capsys, "evaluate", "--merge", *parts)


# --- few and many ----------------------------------------------------------------------------------------------------


def test_one_image_and_images_without_anything(capsys):
    for images, figures in (
        ({3: TRUTH[3]}, "All       | 100.0  100.0  100.0     1"),
        ({1: ([[0, 0]], {})}, "All       |   0.0    0.0    0.0     0"),
        ({1: ([[0, 0]], {}), 3: TRUTH[3]}, "All       | 100.0  100.0  100.0     1"),
    ):
        write_side(Path("gt.json"), images)
        write_side(Path("pred.json"), images)
        outputs = ["--json", "o.json", "--table", "t.parquet", "--report", "r.html", "--boundary", "--overwrite"]
        code, out, _ = run(capsys, *BASE, *outputs)
        assert code == 0
        assert figures in out
    write_side(Path("gt.json"), {})
    assert "expected at least one image, found none" in complaint(capsys, *BASE)


def test_photos_in_the_report(capsys):
    Path("photos").mkdir()
    for number in TRUTH:
        Image.new("RGB", (6, 1), (9, 200, 9)).save(f"photos/{number}.png")
    code, _, err = run(capsys, *BASE, "--report", "r.html", "--images", "photos", "--threads", "2")
    assert (code, err) == (0, "")
    with_photos = Path("r.html").stat().st_size
    assert run(capsys, *BASE, "--report", "r.html", "--overwrite")[0] == 0
    assert with_photos > Path("r.html").stat().st_size
    Image.new("RGB", (5, 5)).save("photos/2.png")
    assert "photos/2.png" in complaint(capsys, *BASE, "--report", "s.html", "--images", "photos")


def test_figures_alone_need_neither_torch_nor_compiled_code():
    """Compiling takes longer than a few small images, which OpenCV reads."""
    code = (
        "import sys; from pansight.apps.cli import main; code = main(sys.argv[1:]); "
        "print(code, {'torch', 'numba', 'matplotlib', 'pyarrow'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code, *BASE, "--json", "o.json"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.stderr == ""
    assert result.stdout.startswith(TABLE)
    assert result.stdout.endswith("0 set()\n")
