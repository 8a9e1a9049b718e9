"""A model inside CVAT, SAHI, supervision and FiftyOne: run by the tools themselves."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cvat_sdk.auto_annotation as cvataa
import numpy as np
import pytest
import supervision
import torch
from cvat_sdk import models
from cvat_sdk.auto_annotation.driver import _AnnotationMapper
from cvat_sdk.masks import decode_mask
from found import SPACE, image, predictor
from PIL import Image
from sahi.predict import get_prediction, get_sliced_prediction

from pansight.engine.predict import Predictor
from pansight.errors import PansightError
from pansight.integrations.cvat import create
from pansight.integrations.sahi import PansightModel
from pansight.integrations.supervision import slicer_callback
from pansight.models import MODELS, build


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "mask_rcnn"
    torch.manual_seed(1)
    options = dict(MODELS["mask_rcnn"].tiny)
    model = build("mask_rcnn", SPACE, **options)
    Predictor(model, "mask_rcnn", options, "cpu").save(folder)
    return folder


def context(threshold: float | None = None, polygons: bool = False) -> Any:
    return SimpleNamespace(frame_name="a.jpg", conf_threshold=threshold, conv_mask_to_poly=polygons)


@pytest.mark.parametrize("as_polygons", [False, True])
def test_cvat_accepts_what_is_detected(saved: Path, as_polygons: bool) -> None:
    """CVAT's driver checks each shape and gives it the number of the task's own label."""
    function = create(weights=str(saved))
    assert [(label.name, label.id, label.type) for label in function.spec.labels] == [
        ("cat", 0, "mask"),
        ("dog", 1, "mask"),
        ("sky", 2, "mask"),
    ]
    assert isinstance(function.spec, cvataa.DetectionFunctionSpec)
    kind = "polygon" if as_polygons else "mask"
    task = [models.Label(name=name, id=100 + n, type=kind) for n, name in enumerate(("cat", "dog", "sky"))]
    for label in task:
        label.attributes, label.sublabels = [], []
    mapper = _AnnotationMapper(
        logging.getLogger(__name__),
        function.spec.labels,
        task,
        allow_unmatched_labels=False,
        conv_mask_to_poly=as_polygons,
    )
    shapes = function.detect(context(0.0, as_polygons), Image.fromarray(image()))
    assert shapes
    assert {shape.type.value for shape in shapes} == {kind}
    mapper.validate_and_remap(shapes, 5)
    assert {shape.label_id for shape in shapes} <= {100, 101, 102}
    assert {shape.frame for shape in shapes} == {5}
    if not as_polygons:
        prediction = function._predictor.predict(image(), score_threshold=0.0)
        assert prediction.panoptic is not None
        decoded = decode_mask(shapes[0].points, image_width=64, image_height=64)
        first = prediction.panoptic.segments[0].id
        assert np.array_equal(decoded, prediction.panoptic.ids.numpy() == first)


def test_cvat_asks_for_a_confidence(saved: Path) -> None:
    function = create(weights=str(saved), stuff=False)
    assert [label.name for label in function.spec.labels] == ["cat", "dog"]
    everything = function.detect(context(0.0), Image.fromarray(image()))
    assert function.detect(context(1.0), Image.fromarray(image())) == []
    assert len(function.detect(context(None), Image.fromarray(image()))) < len(everything)  # the model's own, 0.5


def test_cvat_is_told_what_is_missing(saved: Path) -> None:
    with pytest.raises(PansightError, match="expected -p weights=str:RUN, found none"):
        create()
    with pytest.raises(PansightError, match=r"unknown parameter of .*cvat 'wieghts'; .* did you mean 'weights'"):
        create(wieghts=str(saved))


def test_sahi_predicts_in_slices(saved: Path) -> None:
    model = PansightModel(model_path=str(saved), confidence_threshold=0.0, device="cpu")
    assert model.category_mapping == {"0": "cat", "1": "dog"}
    whole = get_prediction(image(), model)
    assert len(whole.object_prediction_list) > 0
    assert model.has_mask
    sliced = get_sliced_prediction(image(96), model, slice_height=64, slice_width=64, verbose=0)
    boxes = np.array([each.bbox.to_xyxy() for each in sliced.object_prediction_list])
    assert boxes.max() > 64  # of the slices at the right and the bottom, shifted to their places
    assert boxes.max() <= 96
    assert {each.category.name for each in sliced.object_prediction_list} <= {"cat", "dog"}


def test_sahi_gets_the_masks_of_a_panoptic_map() -> None:
    ours = predictor()
    model = PansightModel(model=ours, confidence_threshold=0.0, device="cpu")
    result = get_prediction(image(), model)
    panoptic = ours.predict(image()).panoptic
    assert panoptic is not None
    things = [segment for segment in panoptic.segments if SPACE[segment.category].is_thing]
    assert 0 < len(result.object_prediction_list) <= len(things)  # outlines of one or two pixels are none for SAHI
    largest = max(result.object_prediction_list, key=lambda each: each.bbox.area)
    overlaps = [(largest.mask.bool_mask & (panoptic.ids.numpy() == s.id)).sum() for s in things]
    assert max(overlaps) >= 0.9 * largest.mask.bool_mask.sum()


def test_supervision_slices_a_photo() -> None:
    ours = predictor()
    slicer = supervision.InferenceSlicer(slicer_callback(ours, score=0.0), slice_wh=64, overlap_wh=16)
    found = slicer(image(96))
    assert len(found) > 0
    assert found.mask.shape[1:] == (96, 96)
    assert found.xyxy.max() > 64
    swapped = slicer_callback(ours, score=0.0, bgr=True)(np.ascontiguousarray(image()[:, :, ::-1]))
    plain = slicer_callback(ours, score=0.0)(image())
    assert np.array_equal(swapped.xyxy, plain.xyxy)


def test_boxes_are_no_masks_anywhere() -> None:
    ours = predictor("faster_rcnn")
    model = PansightModel(model=ours, confidence_threshold=0.0, device="cpu")
    found = get_prediction(image(), model).object_prediction_list
    assert found
    assert found[0].mask is None
    assert not model.has_mask
