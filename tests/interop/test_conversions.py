"""Every conversion, read back by the library that it is for."""

from __future__ import annotations

import io
import json
import sys
from typing import Any

import found
import numpy as np
import pytest
import supervision
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from rasterio.features import rasterize
from rasterio.transform import from_origin

from pansight.data.formats.coco_panoptic import CocoPanoptic, write_coco_panoptic
from pansight.data.images import write_png
from pansight.errors import PansightError
from pansight.interop.label_studio import brushes
from pansight.interop.photo import PhotoPrediction
from pansight.interop.pieces import pieces

IDS = found.ids().numpy()


def test_pieces_of_all_kinds() -> None:
    rows = [(p.id, p.category.name, round(p.score, 2), p.box_xyxy) for p in pieces(found.panoptic(), found.LABELS)]
    assert rows == [
        (1, "cat", 0.9, (1, 1, 8, 8)),
        (2, "dog", 0.6, (9, 6, 14, 11)),
        (3, "sky <blue>", 0.8, (0, 0, 16, 12)),
    ]
    assert [p.category.name for p in pieces(found.objects(), found.LABELS)] == ["cat", "dog"]
    assert len(pieces(found.objects(), found.LABELS, score=0.1)) == 3
    assert [p.category.name for p in pieces(found.semantic(), found.LABELS, stuff=False)] == ["cat", "dog"]
    for piece in pieces(found.panoptic(), found.LABELS):
        assert np.array_equal(piece.whole_mask((12, 16)), piece.id == IDS)
    boxes = pieces(found.objects(masks=False), found.LABELS)
    assert [p.mask for p in boxes] == [None, None]
    assert boxes[0].whole_mask((12, 16)).sum() == 25


def test_coco_panoptic_is_what_the_writer_writes(tmp_path: Any) -> None:
    prediction = found.panoptic()
    assert prediction.panoptic is not None
    annotation, colours = prediction.to_coco_panoptic("a", "a.png")
    write_coco_panoptic(tmp_path / "all.json", [("a", "a.jpg", prediction.panoptic)], found.LABELS)
    content = json.loads((tmp_path / "all.json").read_text())
    assert content["annotations"] == json.loads(json.dumps([annotation]))
    assert np.array_equal(colours, np.asarray(Image.open(tmp_path / "all" / "a.png")))
    with pytest.raises(PansightError, match="to_coco_panoptic: expected a panoptic map, found none"):
        found.semantic().to_coco_panoptic()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools
def test_coco_results_are_decoded_by_pycocotools() -> None:
    prediction = found.objects()
    assert prediction.instances is not None
    assert prediction.instances.masks is not None
    rows = prediction.to_coco_results(7, score=0.5)
    assert [(row["image_id"], row["category_id"]) for row in rows] == [(7, 17), (7, 18)]
    for row, mask in zip(rows, prediction.instances.masks[:2], strict=True):
        assert np.array_equal(coco_mask.decode(row["segmentation"]), mask.numpy())
    assert rows[0]["bbox"] == [1, 1, 5, 5]


def test_supervision_draws_what_was_found() -> None:
    detections = found.panoptic().to_supervision(stuff=True)
    assert detections.xyxy.tolist()[0] == [1, 1, 8, 8]
    assert detections.class_id.tolist() == [0, 2, 1]
    assert detections["class_name"].tolist() == ["cat", "dog", "sky <blue>"]
    assert np.array_equal(detections.mask[0], IDS == 1)
    assert detections.area.tolist() == [22, 25, 144]
    drawn = supervision.MaskAnnotator(opacity=1.0).annotate(found.photo(), detections)
    assert (drawn != found.photo()).any()
    assert found.panoptic().to_supervision().class_id.tolist() == [0, 2]
    assert len(found.nothing().to_supervision()) == 0
    boxes = found.objects(masks=False).to_supervision()
    assert boxes.mask is None
    assert boxes.confidence.tolist() == pytest.approx([0.9, 0.7])


def test_geojson_is_burnt_into_the_same_map() -> None:
    content = json.loads(json.dumps(found.panoptic().to_geojson()))
    pairs = [(f["geometry"], f["properties"]["id"]) for f in content["features"]]
    assert np.array_equal(rasterize(pairs, (12, 16)), IDS)
    cat = content["features"][0]
    assert cat["geometry"]["type"] == "MultiPolygon"
    assert len(cat["geometry"]["coordinates"][0]) == 2  # its hole
    wanted = {"class": "cat", "category_id": 17, "is_thing": True, "score": 0.9, "area": 22}
    assert cat["properties"] == {"id": 1} | wanted


@pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")  # of rasterio
def test_geojson_lies_on_the_map() -> None:
    """The transform of a GeoTIFF whose pixels are half a degree, north up; exteriors turn counter-clockwise."""
    transform = from_origin(10.0, 50.0, 0.5, 0.5)
    content = found.panoptic().to_geojson(transform=transform)
    pairs = [(f["geometry"], f["properties"]["id"]) for f in content["features"]]
    assert np.array_equal(rasterize(pairs, (12, 16), transform=transform), IDS)
    (dog,) = (f["geometry"]["coordinates"] for f in content["features"] if f["properties"]["class"] == "dog")
    ring = np.array(dog[0])
    assert ring.min(0).tolist() == [14.5, 44.5]
    assert (ring[0] == ring[-1]).all()
    turns = ring[:-1, 0] * ring[1:, 1] - ring[1:, 0] * ring[:-1, 1]
    assert turns.sum() > 0


def test_a_box_alone_is_a_rectangle() -> None:
    (first, _) = found.objects(masks=False).to_geojson()["features"]
    assert first["properties"]["area"] == 25
    assert first["geometry"]["coordinates"][0][0] == first["geometry"]["coordinates"][0][-1]


def test_label_studio_reads_the_masks() -> None:
    rows = found.panoptic().to_label_studio("label", "picture")
    for row, number in zip(rows, (1, 2, 3), strict=True):
        decoded = brushes().decode_rle(row["value"]["rle"]).reshape(12, 16, 4)[..., 3]
        assert np.array_equal(decoded > 0, number == IDS)
        assert row["original_width"] == 16
        assert (row["type"], row["from_name"], row["to_name"]) == ("brushlabels", "label", "picture")
    assert rows[2]["value"]["brushlabels"] == ["sky <blue>"]


def test_label_studio_polygons_are_in_percent() -> None:
    rows = found.panoptic().to_label_studio(as_polygons=True)
    names = [row["value"]["polygonlabels"][0] for row in rows]
    assert names == ["cat", "cat", "dog", "sky <blue>", "sky <blue>"]  # a hole of the cat is sky of its own
    dog = np.array(rows[2]["value"]["points"])
    assert dog.min(0).tolist() == [100 * 9 / 16, 50]
    assert len({row["id"] for row in rows}) == len(rows)


def test_napari_has_a_row_for_each_id() -> None:
    data, options, kind = found.panoptic().to_napari("photo")
    assert kind == "labels"
    assert np.array_equal(data, IDS)
    features = options["features"]
    assert features["index"] == [0, 1, 2, 3]
    assert features["class"] == ["void", "cat", "dog", "sky <blue>"]


def test_pipeline_form() -> None:
    rows = found.panoptic().to_pipeline()
    assert [(row["label"], row["score"]) for row in rows] == [("cat", 0.9), ("dog", 0.6), ("sky <blue>", 0.8)]
    assert np.array_equal(np.asarray(rows[0]["mask"]), np.where(IDS == 1, 255, 0))
    assert [row["score"] for row in found.semantic().to_pipeline()] == [None, None, None]
    processed = found.panoptic().to_processed()
    assert torch.equal(processed["segmentation"], found.ids())
    assert [row["was_fused"] for row in processed["segments_info"]] == [False, False, True]


def test_numpy_holds_what_there_is() -> None:
    assert set(found.panoptic().to_numpy()) == {"ids", "segments"}
    assert set(found.semantic().to_numpy()) == {"semantic"}
    arrays = found.objects().to_numpy()
    assert set(arrays) == {"boxes_xyxy", "labels", "scores", "masks"}
    assert arrays["masks"].shape == (3, 12, 16)


def test_notebooks_show_overlay_and_table() -> None:
    prediction = found.panoptic()
    picture = Image.open(io.BytesIO(prediction._repr_png_()))
    assert picture.size == (16, 12)
    assert np.array_equal(np.asarray(picture), np.asarray(prediction.overlay()))
    page = prediction._repr_html_()
    assert "<td>sky &lt;blue&gt;</td><td>0.80</td><td>144</td>" in page


def test_show_opens_the_overlay(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Image.Image] = []
    monkeypatch.setattr(Image.Image, "show", lambda picture: shown.append(picture))
    found.panoptic().show(names=False)
    assert shown[0].size == (16, 12)


@pytest.mark.parametrize(
    ("convert", "name", "extra"),
    [
        (PhotoPrediction.to_supervision, "supervision", "interop"),
        (PhotoPrediction.to_label_studio, "label_studio_sdk", "interop"),
        (PhotoPrediction.to_fiftyone, "fiftyone", "fiftyone"),
    ],
)
def test_a_missing_package_names_its_extra(
    convert: Any, name: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [each for each in sys.modules if each.split(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(PansightError, match=rf"install the extra pansight\[{extra}\]"):
        convert(found.panoptic())


def test_a_png_of_the_colours_is_read_back(tmp_path: Any) -> None:
    """What a program of its own writes from the conversion is a data set that our reader takes."""
    prediction = found.panoptic()
    annotation, colours = prediction.to_coco_panoptic(3, "3.png")
    (tmp_path / "masks").mkdir()
    write_png(tmp_path / "masks" / "3.png", colours)
    (tmp_path / "images").mkdir()
    write_png(tmp_path / "images" / "3.png", prediction.photo)
    images = [{"id": 3, "file_name": "3.png", "height": 12, "width": 16}]
    content = {"images": images, "annotations": [annotation], "categories": found.LABELS.to_json()}
    (tmp_path / "masks.json").write_text(json.dumps(content))
    sample = CocoPanoptic(tmp_path / "masks.json", tmp_path / "images", tmp_path / "masks")[0]
    assert torch.equal(sample.truth.ids, found.ids())
