"""Panoptic-DeepLab: its losses by hand, its options, offsets at other sizes, and what its published networks do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from contract import LABELS, shapes_batch, small
from torch import Tensor

from pansight.errors import PansightError
from pansight.models import MODELS, build
from pansight.models.panoptic.panoptic_deeplab import PanopticDeepLabOutputs
from pansight.ops.centres.heatmaps import CentreSettings, centre_targets
from pansight.ops.targets import semantic_targets
from pansight.types import LabelSpace, PanopticSegmentation, Segment

TINY = MODELS["panoptic_deeplab"].tiny


def model_of(**options: Any) -> Any:
    torch.manual_seed(0)
    return build("panoptic_deeplab", LABELS, **TINY | options)


def test_losses_by_their_definitions() -> None:
    """Loops over the images; the maps are enlarged to the pixels of the batch before anything is compared."""
    model, batch = model_of(sigma=3.0, small_area=1000).eval(), shapes_batch()
    with torch.no_grad():
        found = model.loss(batch)
        outputs = model(batch.images, batch.valid)
    large = [torch.nn.functional.interpolate(m, scale_factor=4, mode="bilinear") for m in outputs[:3]]
    squares = ways = 0.0
    heat_pixels, thing_pixels, weighted = 0, 0, False
    hard: list[Tensor] = []
    target = semantic_targets(batch, range(len(LABELS)))
    for n, truth in enumerate(batch.truths):
        wanted = centre_targets(truth, LABELS, CentreSettings(3.0, 1000, 3.0))
        weighted |= bool((wanted.class_weight == 3).any())
        squares += float(((large[1][n, 0] - wanted.heat) ** 2)[wanted.has_heat].sum())
        ways += float((large[2][n] - wanted.offsets_yx).abs()[:, wanted.has_offset].sum())
        heat_pixels, thing_pixels = (
            heat_pixels + int(wanted.has_heat.sum()),
            thing_pixels + int(wanted.has_offset.sum()),
        )
        losses = torch.nn.functional.cross_entropy(
            large[0][n][None], target[n][None], ignore_index=-1, reduction="none"
        )
        losses = (losses[0] * wanted.class_weight).flatten()
        hard.append(losses.topk(int(0.2 * losses.numel())).values.mean())
    assert weighted
    assert float(found["centre"]) == pytest.approx(200 * squares / heat_pixels, rel=1e-4)
    assert float(found["offset"]) == pytest.approx(0.01 * ways / thing_pixels, rel=1e-4)
    assert float(found["semantic"]) == pytest.approx(float(torch.stack(hard).mean()), rel=1e-4)


def painted() -> PanopticDeepLabOutputs:
    """What a network that knows two rectangles would say of an image of 64×64, at a quarter of it.

    The centres (15, 15) and (15, 35) lie on no axis of symmetry of the quarter, so that no two places are equally hot.
    """
    ids = torch.full((64, 64), 3, dtype=torch.int32)
    ids[7:24, 7:24], ids[7:24, 24:47] = 1, 2
    truth = PanopticSegmentation(ids, (Segment(1, 0), Segment(2, 0), Segment(3, len(LABELS) - 1)))
    target = centre_targets(truth, LABELS, CentreSettings(sigma=6.0))
    classes = torch.tensor([0, 0, 0, len(LABELS) - 1])[ids.long()]
    logits = 20 * torch.nn.functional.one_hot(classes, len(LABELS)).permute(2, 0, 1).float()
    heat = torch.where(ids == 2, 0.9, 1.0) * target.heat  # the second centre is less sure
    quarter = [m[None, :, 2::4, 2::4] for m in (logits, heat[None], target.offsets_yx)]
    return PanopticDeepLabOutputs(*quarter, torch.tensor([[64, 64]]), torch.tensor([64, 64]))


@pytest.mark.parametrize("size", [(64, 64), (128, 192), (32, 40)])
def test_offsets_are_brought_to_the_pixels_of_the_file(size: tuple[int, int]) -> None:
    """Two squares side by side stay two, each of its own part, at any size of the file."""
    (prediction,) = small("panoptic_deeplab").decode(painted(), [size], min_stuff_area=0)
    things = [s for s in prediction.panoptic.segments if LABELS[s.category].is_thing]
    assert len(things) == 2
    areas = sorted(int((prediction.panoptic.ids == s.id).sum()) / (size[0] * size[1]) for s in things)
    assert areas == pytest.approx([17 * 17 / 64**2, 17 * 23 / 64**2], abs=0.02)
    assert all(s.score > 0.5 for s in things)
    assert len(prediction.instances) == 2


def test_offsets_that_stay_as_they_are_miss_the_centres_of_a_smaller_file() -> None:
    model = small("panoptic_deeplab")

    def areas() -> list[int]:
        (prediction,) = model.decode(painted(), [(16, 16)], min_stuff_area=0)
        return sorted(int((prediction.panoptic.ids == s.id).sum()) for s in prediction.panoptic.segments)

    brought = areas()
    model.keeps_offsets = True
    assert areas() != brought


def test_every_number_of_the_grouping_has_an_effect() -> None:
    model = small("panoptic_deeplab")

    def segments(**options: Any) -> tuple[int, int]:
        (found,) = model.decode(painted(), [(64, 64)], **{"min_stuff_area": 0} | options)
        return tuple(sum(LABELS[s.category].is_thing == t for s in found.panoptic.segments) for t in (True, False))

    assert segments() == (2, 1)
    assert segments(thing_threshold=1.0) == (0, 1)
    assert segments(thing_threshold=1.0, grouping="deeplab2") == (1, 1)
    assert segments(centre_window=63) == (1, 1)
    assert segments(centres=1) == (0, 1)  # those above the first one
    assert segments(min_stuff_area=64 * 64) == (2, 0)


def test_options_change_the_network() -> None:
    def count(**options: Any) -> int:
        return sum(p.numel() for p in model_of(**options).parameters())

    plain = count()
    assert count(separable=True) < plain
    assert count(low_widths=(8,)) < plain < count(instance_low_widths=(16, 8))
    assert count(low_widths=(8, 8, 8), output_stride=32) > plain
    assert count(head_width=16) > plain
    assert model_of(output_stride=32).semantic_decoder.aspp.branches[1][0].dilation == (3, 3)
    with pytest.raises(PansightError, match=r"low_widths of model panoptic_deeplab: expected 1 to 3 numbers, found 0"):
        model_of(low_widths=())


def test_small_things_weigh_more() -> None:
    batch = shapes_batch()
    one, three = (float(model_of(small_weight=w).eval().loss(batch)["semantic"].detach()) for w in (1.0, 3.0))
    assert three > one


@pytest.mark.parametrize("labels", [LabelSpace.from_names(["a"]), LabelSpace.from_names([], ["s", "t"])])
def test_only_things_and_only_stuff(labels: LabelSpace) -> None:
    model = build("panoptic_deeplab", labels, **TINY)
    ids = torch.ones((40, 50), dtype=torch.int32)
    batch = shapes_batch(1, 40)
    batch = replace(batch, truths=(PanopticSegmentation(ids[:, :40].contiguous(), (Segment(1, 0),)),))
    losses = model.train().loss(batch)
    assert sum(losses.values()).isfinite()
    assert bool(losses["offset"] > 0) == bool(labels.things)
    (prediction,) = model.eval().decode(model(batch.images), [(40, 40)], thing_threshold=0.0)
    assert prediction.semantic.shape == (40, 40)


def test_the_authors_network_sees_a_multiple_of_32_and_one_pixel() -> None:
    """Maps whose corners are aligned cover such an image exactly, and 1024 × 2048 becomes 1025 × 2049."""
    with torch.device("meta"):
        model = build("panoptic_deeplab_r50_cityscapes", LABELS)
    model = model.eval()
    with torch.inference_mode():
        outputs = model(torch.zeros((1, 3, 1024, 2048), dtype=torch.uint8, device="meta"))
    assert outputs.semantic_logits.shape[2:] == (257, 513)
