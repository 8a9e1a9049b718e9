"""Semantic inference through overlapping windows: where they lie, and that the scores are those of a plain loop."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pansight.config import Config, EvaluateConfig, override
from pansight.data.formats.shapes import Shapes
from pansight.data.loader import pad_images
from pansight.engine.evaluate import predict_all
from pansight.engine.infer import Inference, infer, prepare, views_of
from pansight.errors import PansightError
from pansight.models import MODELS, build
from pansight.ops.semantic.windows import window_places
from pansight.types import PanopticSegmentation

sys.path.append(str(Path(__file__).parents[1] / "models"))
from contract import SMALL, assert_legal, core_first, flat, small, thresholds

CPU = torch.device("cpu")
LABELS = Shapes(1).labels


@pytest.fixture(scope="module")
def model() -> Any:
    """Its norms know what photos are like, so that it sees all classes in one."""
    torch.manual_seed(0)
    network: Any = build("pspnet", LABELS, **MODELS["pspnet"].tiny)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = None  # the mean of all that was seen
    for seed in range(4):
        network.train()(photo(64, 64, seed)[None])
    network.head[-1].bias.data.zero_()
    return network.eval()


def photo(height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


def predicted(model: Any, images: list[Tensor], **settings: Any) -> list[Tensor]:
    chosen = Inference(CPU, **settings)
    return [found.semantic for found in infer(prepare(model, chosen), images, chosen)]


@pytest.mark.parametrize(
    ("size", "side", "stride", "expected"),
    [
        ((473, 473), 473, 2 / 3, [(0, 0)]),
        ((473, 713), 473, 2 / 3, [(0, 0), (0, 240)]),
        ((100, 473 + 316), 473, 2 / 3, [(0, 0), (0, 316)]),
        ((100, 473 + 317), 473, 2 / 3, [(0, 0), (0, 316), (0, 317)]),
        ((5, 4), 3, 1.0, [(0, 0), (0, 1), (2, 0), (2, 1)]),
        ((1, 1), 8, 0.5, [(0, 0)]),
        ((3, 1), 1, 0.01, [(0, 0), (1, 0), (2, 0)]),
        ((60, 1), 30, 0.1, [(top, 0) for top in range(0, 31, 3)]),
    ],
)
def test_places(size: tuple[int, int], side: int, stride: float, expected: list[tuple[int, int]]) -> None:
    assert window_places(size, side, stride) == expected


def test_every_pixel_is_in_a_window_and_every_window_in_the_photo() -> None:
    for height, width, side, stride in [(37, 90, 16, 0.3), (16, 17, 16, 1.0), (100, 3, 7, 2 / 3)]:
        seen = torch.zeros(height, width)
        for top, left in window_places((height, width), side, stride):
            assert top == 0 or top + side <= height
            assert left == 0 or left + side <= width
            seen[top : top + side, left : left + side] += 1
        assert bool((seen > 0).all())


def test_a_window_as_large_as_the_photo_is_the_photo(model: Any) -> None:
    images = [photo(48, 48, seed) for seed in range(3)]
    for found, whole in zip(predicted(model, images, window=48, batch_size=2), predicted(model, images), strict=True):
        assert torch.equal(found, whole)
        assert len(found.unique()) > 1


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize(("flip", "scales"), [(False, (1.0,)), (True, (0.5, 1.0))])
def test_windows_are_those_of_a_plain_loop(model: Any, batch_size: int, flip: bool, scales: tuple[float, ...]) -> None:
    """Also where some photos of a batch are shorter than a window, and others are padded for the sake of those."""
    images, side = [photo(61, 90), photo(40, 50, 1)], 40
    settings = {"window": side, "flip": flip, "scales": scales, "batch_size": batch_size}
    for image, found in zip(images, predicted(model, images, **settings), strict=True):
        size = (image.shape[1], image.shape[2])
        total = torch.zeros(len(LABELS), *size)
        for scale in scales:
            (view,) = views_of([image], model.input.resize, (scale,))
            for mirrored in (False, True) if flip else (False,):
                whole = view.images[0].flip(2) if mirrored else view.images[0]
                scores = looped(model, whole, side, math.ceil(side * 2 / 3))
                scores = F.interpolate(scores[None], size, mode="bilinear")[0]
                total += scores.flip(2) if mirrored else scores
        assert (found != total.argmax(0)).float().mean() < 1e-3  # classes that are equal to rounding


def looped(model: Any, image: Tensor, side: int, step: int) -> Tensor:
    """Mean probabilities (C, H, W), window by window."""
    _, height, width = image.shape
    sums, seen = torch.zeros(len(LABELS), height, width), torch.zeros(height, width)
    for row in range(math.ceil(max(0, height - side) / step) + 1):
        for column in range(math.ceil(max(0, width - side) / step) + 1):
            bottom, right = min(row * step + side, height), min(column * step + side, width)
            top, left = max(0, bottom - side), max(0, right - side)
            canvas, valid = torch.zeros(1, 3, side, side, dtype=torch.uint8), torch.zeros(1, side, side).bool()
            canvas[0, :, : bottom - top, : right - left] = image[:, top:bottom, left:right]
            valid[0, : bottom - top, : right - left] = True
            with torch.inference_mode():
                logits = model(canvas, valid).logits
            logits = F.interpolate(logits, (side, side), mode="bilinear", align_corners=True)
            sums[:, top:bottom, left:right] += logits.softmax(1)[0, :, : bottom - top, : right - left]
            seen[top:bottom, left:right] += 1
    return sums / seen


def test_a_small_photo_is_padded_to_the_window(model: Any) -> None:
    image, side = photo(20, 30), 48
    shown, valid = pad_images([image], side)
    with torch.inference_mode():
        (scores,) = model.class_scores(model(shown, valid), [(20, 30)])
    (found,) = predicted(model, [image], window=side)
    assert torch.equal(found, scores.argmax(0))


def test_every_semantic_network_looks_through_windows() -> None:
    names = [name for name, entry in MODELS.items() if entry.produces == ("semantic",) and entry.tiny]
    assert len(names) >= 3
    for name in names:
        torch.manual_seed(0)
        small = build(name, LABELS, **MODELS[name].tiny).eval()
        for found, size in zip(
            predicted(small, [photo(1, 1), photo(33, 50)], window=32), [(1, 1), (33, 50)], strict=True
        ):
            assert found.shape == size


def test_evaluation_has_the_option(model: Any) -> None:
    dataset = Shapes(2, 40, 64, seed=1)
    config = override(Config(), {"evaluate.window": "32", "evaluate.window_stride": "0.5"}).evaluate
    found = [prediction.semantic for prediction, _ in predict_all(model, dataset, range(2), config, CPU)]
    expected = predicted(model, [dataset[k].image for k in range(2)], window=32, window_stride=0.5)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    whole = predicted(model, [dataset[k].image for k in range(2)])
    assert not all(torch.equal(a, b) for a, b in zip(found, whole, strict=True))


@pytest.mark.parametrize("values", [{"window": -1}, {"window_stride": 0.0}, {"window_stride": 1.5}])
def test_impossible_windows(values: dict[str, Any]) -> None:
    with pytest.raises(PansightError, match=rf"evaluate.{next(iter(values))}: expected"):
        replace(EvaluateConfig(), **values)


def test_objects_have_no_scores_to_be_averaged() -> None:
    """Windows alone are stitched; mirrored as well, they would have to be averaged."""
    fpn = build("panoptic_fpn", LABELS, **MODELS["panoptic_fpn"].tiny)
    with pytest.raises(PansightError, match="window: expected a model of semantic maps"):
        prepare(fpn, Inference(CPU, window=32, flip=True))
    given: Any = build("fast_rcnn", LABELS, **MODELS["fast_rcnn"].tiny)
    given.proposer = None
    with pytest.raises(PansightError, match="window: expected a model of semantic maps"):
        prepare(given, Inference(CPU, window=32))


STITCHED = [name for name in SMALL if MODELS[name].produces != ("semantic",) and name not in ("fast_rcnn", "combined")]


@pytest.mark.parametrize("name", core_first(STITCHED))
def test_every_other_network_is_stitched(name: str) -> None:
    """A window as large as the photo finds what the photo shows; smaller ones give a whole of its size."""
    network = small(name, LABELS)
    options = thresholds(network)
    options = {key: max(0, low) if key == "thing_threshold" else low for key, low in options.items()}
    images = [photo(64, 96), photo(40, 33)]
    whole, stitched = (
        Inference(CPU, decode_options=options, batch_size=2, window=window, window_stride=0.5) for window in (0, 64)
    )
    joined, found = infer(prepare(network, stitched), images, stitched)
    (expected,) = infer(network, images[1:], whole)
    if expected.panoptic is None:
        assert found.instances is not None
        assert expected.instances is not None
        seen = expected.instances.boxes_xyxy
        if expected.instances.masks is not None:
            seen = seen[expected.instances.masks.flatten(1).any(1)]
        assert len(found.instances) == len(seen)
    else:
        assert found.panoptic is not None
        assert regions(found.panoptic) == regions(expected.panoptic)
    assert joined.semantic is found.semantic is None
    assert_legal(joined, (64, 96), LABELS)
    (alone,) = infer(network, images[:1], stitched)
    assert flat(joined)
    assert all(torch.equal(one, other) for one, other in zip(flat(alone), flat(joined), strict=True))


def regions(panoptic: PanopticSegmentation) -> set[tuple[int, bytes]]:
    return {(each.category, (panoptic.ids == each.id).numpy().tobytes()) for each in panoptic.segments}
