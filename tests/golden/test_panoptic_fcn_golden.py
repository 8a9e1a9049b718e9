"""Panoptic FCN beside the numbers that its published code found with these weights (see `make_panoptic_fcn.py`).

Its networks at full size, its settings, its file layout read by our loader; two photos, both in one batch for training.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from fixed import LARGE_SIZES, OUTPUT_SIZES, detectron2_weights, large_truth, norm_and_samples, photo, spread, twice
from torch import Tensor

from pansight.models.panoptic.panoptic_fcn import PanopticFCNOutputs
from pansight.types import Batch, PanopticSegmentation, Prediction, Segment
from pansight.weights.keys import rename
from pansight.weights.official.panoptic.panoptic_fcn import IGNORED, RULES, load

pytestmark = pytest.mark.slow

LOSSES = {
    "position_things": "loss_pos_th",
    "position_stuff": "loss_pos_st",
    "mask": "loss_seg_th",
    "semantic": "loss_seg_st",
}
PHOTOS = (0, 1)
SMOOTH = ("kernel_head.", "thing_generator.", "stuff_generator.", "position_head.things.", "position_head.stuff.")
SMOOTH_IN_R50 = ("semantic_head.", "feature_encoder.")
"""Parameters whose gradients do not come through an offset. The derivative by an offset jumps where a sample passes
from one pixel to the next: weights that differ by a ten-millionth change the gradients below by hundredths.
"""


class Run(NamedTuple):
    """The published code's numbers, our model with the same weights, and what it says of each photo by itself."""

    golden: dict[str, np.ndarray]
    model: Any
    images: list[Tensor]
    outputs: list[PanopticFCNOutputs]
    predictions: list[Prediction]


def padded(image: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """uint8 (3, H, W) → (1, 3, height, width), valid bool (1, height, width)."""
    images = torch.zeros((1, 3, height, width), dtype=torch.uint8)
    valid = torch.zeros((1, height, width), dtype=torch.bool)
    images[0, :, : image.shape[1], : image.shape[2]] = image
    valid[0, : image.shape[1], : image.shape[2]] = True
    return images, valid


@pytest.fixture(scope="module", params=["r50", pytest.param("star", marks=pytest.mark.long)])
def run(request: pytest.FixtureRequest) -> Run:
    kind, name = request.param, "panoptic_fcn_r50_star" if request.param == "star" else "panoptic_fcn_r50"
    salt = f"panoptic_fcn_{kind}"
    with np.load(Path(__file__).parent / "panoptic_fcn" / f"{kind}.npz") as file:
        golden = dict(file)
    model, found, _ = load(detectron2_weights(salt, golden), salt)
    assert found == name
    images = [twice(photo(index, salt)) for index in PHOTOS]
    outputs: list[PanopticFCNOutputs] = []
    predictions: list[Prediction] = []
    with torch.inference_mode():
        for image, size in zip(images, OUTPUT_SIZES, strict=True):
            outputs.append(model(*padded(image, *(-(-side // 32) * 32 for side in image.shape[1:]))))
            predictions += model.decode(outputs[-1], [size])
    return Run(golden, model, images, outputs, predictions)


SUMS = 3e-4
"""Between processors: sums of thousands of products are taken in the order of their vector instructions, which was that
of AVX2 where the golden file was made; AVX-512 has another. A score follows a map times a slope of up to 5."""


def assert_near(ours: Tensor | np.ndarray, theirs: np.ndarray, rtol: float = 1e-4, atol: float = 1e-4) -> None:
    torch.testing.assert_close(torch.as_tensor(ours), torch.from_numpy(theirs), rtol=rtol, atol=atol)


@pytest.mark.parametrize("index", PHOTOS)
def test_dense_maps(run: Run, index: int) -> None:
    outputs, golden = run.outputs[index], run.golden
    for what, maps in (("things", outputs.things), ("stuff", outputs.stuff), ("kernels", outputs.kernels)):
        assert len(maps) == 5
        for level, ours in enumerate(maps):
            assert_near(spread(ours, 150), golden[f"{what} {index} {level}"], atol=SUMS)
    assert_near(spread(outputs.features, 500), golden[f"features {index}"], atol=SUMS)


@pytest.mark.parametrize("index", PHOTOS)
def test_objects(run: Run, index: int) -> None:
    """Peaks, kernel fusion, scores: a wrong rule would give others, or others of them."""
    found, golden = run.predictions[index].instances, run.golden
    assert found is not None
    assert found.masks is not None
    kept = torch.from_numpy(golden[f"areas {index}"]) > 0  # we leave out what has no pixel
    assert len(found.scores) == int(kept.sum()) > 20
    assert_near(found.scores, golden[f"scores {index}"][kept], atol=5 * SUMS)
    things = [category.id for category in run.model.labels.things]
    assert [things.index(label) for label in found.labels.tolist()] == golden[f"classes {index}"][kept].tolist()
    assert_near(found.boxes_xyxy, golden[f"boxes {index}"][kept], rtol=0, atol=2)
    areas = torch.from_numpy(golden[f"areas {index}"])[kept]
    difference = (found.masks.flatten(1).sum(1) - areas).abs()
    assert int(difference.sum()) <= 1e-4 * int(areas.sum())  # pixels whose probability is 0.4 but for rounding


@pytest.mark.parametrize("index", PHOTOS)
def test_the_panoptic_map(run: Run, index: int) -> None:
    panoptic, labels = run.predictions[index].panoptic, run.model.labels
    stuff = {category.id: place + 1 for place, category in enumerate(labels.stuff)}
    things = {category.id: place for place, category in enumerate(labels.things)}
    ours = [[s.id, int(s.category in things), (things | stuff)[s.category]] for s in panoptic.segments]
    assert ours == run.golden[f"segments {index}"].tolist()
    assert {row[1] for row in ours} == {0, 1}  # both things and stuff
    theirs = torch.from_numpy(run.golden[f"map {index}"])
    assert panoptic.ids.shape == theirs.shape
    assert int((panoptic.ids != theirs).sum()) <= 1e-4 * theirs.numel()


def annotated(run: Run) -> Batch:
    labels = run.model.labels
    parts = [padded(image, *LARGE_SIZES[0]) for image in run.images]
    truths: list[PanopticSegmentation] = []
    for index in PHOTOS:
        ids, things, stuff = large_truth(index)
        segments = [Segment(number, labels.things[place].id) for number, place in things]
        segments += [Segment(number, labels.stuff[place].id) for number, place in stuff]
        truths.append(PanopticSegmentation(ids, tuple(segments)))
    images, valid = (torch.cat(rows) for rows in zip(*parts, strict=True))
    return Batch(images, valid, LARGE_SIZES, tuple(truths), (0, 1), (None, None))


def test_losses_and_gradients(run: Run) -> None:
    """Every term, and of every trained parameter the norm of its gradient and some of its numbers."""
    model, golden = run.model, run.golden
    model.train()
    losses = model.loss(annotated(run))
    for name, value in losses.items():
        assert_near(value.detach(), golden[f"loss {LOSSES[name]}"])
    sum(losses.values()).backward()
    ours = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    model.eval()
    model.zero_grad()
    given = dict(zip(golden["trained"].tolist(), torch.from_numpy(golden["gradients"]), strict=True))
    theirs = rename(given, RULES, IGNORED, "gradients")
    assert ours.keys() == theirs.keys()
    smooth = SMOOTH if len(run.model.feature_encoder.convs[0].conv.weight) > 64 else (*SMOOTH, *SMOOTH_IN_R50)
    for name, row in theirs.items():
        exact = name.startswith(smooth)
        (found,) = norm_and_samples([ours[name]])
        assert float(found[0]) == pytest.approx(float(row[0]), rel=1e-3 if exact else 5e-2), name
        # an activation of zero but for rounding passes its gradient on one side only: a little of single numbers
        size = float(row[0]) / ours[name].numel() ** 0.5
        difference = np.abs(found[1:] - row[1:].numpy()).max()
        assert difference <= (2e-2 if exact else 0.5) * size, name
