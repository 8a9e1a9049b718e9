"""FiftyOne's labels and model, read by FiftyOne itself: in an environment of its own, whose OpenCV is older than ours.

`make test-fiftyone` makes that environment and runs these; elsewhere they are skipped.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from found import SPACE, image, objects, predictor

from pansight.interop.fiftyone import mask_targets

fiftyone = pytest.importorskip("fiftyone")


def test_a_model_of_boxes_gives_things_alone() -> None:
    labels = objects(masks=False).to_fiftyone()
    assert list(labels) == ["things"]
    first = labels["things"].detections[0]
    assert (first.label, first.mask) == ("cat", None)
    assert first.bounding_box == [1 / 16, 1 / 12, 5 / 16, 5 / 12]
    assert first.confidence == pytest.approx(0.9)


def test_fiftyone_takes_things_and_stuff(tmp_path: Path) -> None:
    from pansight.integrations.fiftyone import FiftyOneModel

    ours = predictor()
    model = FiftyOneModel(ours, score=0.0)
    with model:
        labels = model.predict(image())
    panoptic = ours.predict(image()).panoptic
    assert panoptic is not None
    things = [segment for segment in panoptic.segments if SPACE[segment.category].is_thing]
    assert isinstance(labels["things"], fiftyone.Detections)
    assert len(labels["things"].detections) == len(things)
    first = labels["things"].detections[0]
    x, y, width, height = (round(64 * side) for side in first.bounding_box)
    assert first.mask.shape == (height, width)
    assert np.array_equal(first.mask, panoptic.ids.numpy()[y : y + height, x : x + width] == things[0].id)
    wanted = np.zeros((64, 64), int)
    for segment in panoptic.segments:
        if not SPACE[segment.category].is_thing:
            wanted[panoptic.ids.numpy() == segment.id] = 1 + segment.category
    assert np.array_equal(labels["stuff"].mask, wanted)
    assert mask_targets(SPACE) == {3: "sky"}
    sample = fiftyone.Sample(filepath=str(tmp_path / "a.png"))
    sample.add_labels(labels, "pansight")
    assert sample["pansight_things"].detections[0].label in ("cat", "dog")
