"""Panoptic FCN: published sizes, its four terms, its options, and images with few segments or very many."""

from __future__ import annotations

import inspect
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from contract import LABELS, SMALL, assert_legal, flat, random_sample, shapes_batch, small, thresholds, void_batch
from torch import nn

from pansight.data.categories import label_space
from pansight.data.categories.coco import coco_panoptic
from pansight.data.loader import collate
from pansight.errors import PansightError
from pansight.models import MODELS, build
from pansight.models.panoptic.panoptic_fcn import panoptic_fcn
from pansight.nn.deformable import DeformableConv
from pansight.nn.semantic.panoptic_fcn_heads import ConvLayer, pixel_branch, with_coordinates
from pansight.ops.centres.kernels import level_sizes
from pansight.types import IGNORE, LabelSpace, PanopticSegmentation, Sample, Segment

TERMS = ["position_things", "position_stuff", "mask", "semantic"]


def outline(name: str, table: str = "coco") -> Any:
    """A network of full size without memory for its weights."""
    labels = coco_panoptic() if table == "coco" else label_space("cityscapes_panoptic")
    with torch.device("meta"):
        return build(name, labels)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "table", "count"),
    [
        ("panoptic_fcn_r50", "coco", 36_999_511),
        ("panoptic_fcn_r50_star", "coco", 38_837_710),
        ("panoptic_fcn_r50_cityscapes", "cityscapes", 36_752_876),
    ],
)
def test_published_sizes(name: str, table: str, count: int) -> None:
    model = outline(name, table)
    assert parameters(model) == count
    if name == "panoptic_fcn_r50":
        parts = (model.fpn, model.top, model.semantic_head, model.position_head, model.kernel_head)
        assert [parameters(part) for part in parts] == [3_344_384, 1_180_160, 4_132_352, 2_266_583, 2_365_696]
        assert parameters(model.feature_encoder) == 222_528
        assert parameters(model.thing_generator) + parameters(model.stuff_generator) == 32_896


def test_every_class_is_stuff_on_cityscapes() -> None:
    """Classes are numbered stuff first; those of things have no place in the map of stuff."""
    model = outline("panoptic_fcn_r50_cityscapes", "cityscapes")
    assert sorted(model.class_of_category) == list(range(19))
    for category, number in zip(model.labels, model.class_of_category, strict=True):
        assert model.category_of_class[number] == (IGNORE if category.is_thing else category.id)
    merged = small("panoptic_fcn")
    assert {merged.class_of_category[c.id] for c in LABELS.things} == {0}
    assert merged.category_of_class[0] == IGNORE


def test_coordinates_are_row_and_column_of_the_padded_map() -> None:
    told = with_coordinates(torch.zeros(2, 3, 3, 5))[:, 3:]
    assert told[1, 0, :, 4].tolist() == [-1, 0, 1]
    assert told[1, 1, 2].tolist() == [-1, -0.5, 0, 0.5, 1]
    assert with_coordinates(torch.zeros(1, 1, 1, 1)).flatten().tolist() == [0, -1, -1]


@pytest.mark.parametrize("side", [32, 96, 224])
def test_sizes_of_levels_are_those_of_the_maps(side: int) -> None:
    model = small("panoptic_fcn").eval()
    with torch.inference_mode():
        outputs = model(torch.zeros(1, 3, side, 64, dtype=torch.uint8))
    sizes = level_sizes((side, 64))
    for maps in outputs[:3]:
        assert [tuple(each.shape[2:]) for each in maps] == sizes


def test_the_four_terms_and_their_weights() -> None:
    model, batch = small("panoptic_fcn").train(), shapes_batch()
    losses = model.loss(batch)
    assert list(losses) == TERMS
    assert all(float(value.detach()) > 0 for value in losses.values())
    model.mask_weight, model.position_weight = 6.0, 0.5
    again = model.loss(batch)
    for name, factor in zip(TERMS, (0.5, 0.5, 2, 2), strict=True):
        assert float(again[name].detach()) == pytest.approx(factor * float(losses[name].detach()), rel=1e-5)


def test_nothing_labelled_has_no_masks_to_learn() -> None:
    losses = small("panoptic_fcn").train().loss(void_batch())
    assert float(losses["mask"].detach()) == float(losses["semantic"].detach()) == 0
    assert float(losses["position_things"].detach()) > 0  # nothing is there, which is learned, too


def test_counts_by_hand() -> None:
    """40 × 40 pixels belong to two levels; the square and the things of the other class are one class of stuff."""
    ids = torch.full((128, 128), 3, dtype=torch.int32)
    ids[32:72, 32:72] = 1
    truth = PanopticSegmentation(ids, (Segment(1, LABELS.things[0].id), Segment(3, LABELS.stuff[0].id)))
    sample = Sample(torch.zeros(3, 128, 128, dtype=torch.uint8), truth, 0, (128, 128))
    counts = small("panoptic_fcn").counts(collate([sample]))
    assert counts["images"] == 1
    assert counts["objects"] == 2
    # things are found at strides 8, 16, 32 and, in the middle of the image, 128; stuff at all but this last one
    assert counts["stuff"] == 8


@pytest.mark.parametrize("published", [True, False])
def test_how_convolutions_start(published: bool) -> None:
    """Offsets of a system that is trained from any pyramid are zero; those of the published code are PyTorch's."""
    layer = ConvLayer(8, 8, 0, deformable=True, published_start=published)
    assert isinstance(layer.conv, DeformableConv)
    assert bool(layer.conv.offset.weight.any()) == published
    plain = ConvLayer(8, 8, 0, deformable=False, published_start=published)
    assert plain.conv.bias is not None
    assert bool(plain.conv.bias.any()) == published
    model: Any = small("panoptic_fcn")
    assert not any(bool(m.offset.weight.any()) for m in model.modules() if isinstance(m, DeformableConv))


@pytest.mark.parametrize("name", ["panoptic_fcn", "panoptic_fcn_r50_star"])
def test_offsets_learn_slowly(name: str) -> None:
    with torch.device("meta"):
        model: Any = build(name, LABELS)
    slow = {key for key, _ in model.named_parameters() if re.search(MODELS[name].rates.slow, key)}
    offsets = [key for key, module in model.named_modules() if isinstance(module, DeformableConv)]
    assert slow == {f"{key}.offset.{part}" for key in offsets for part in ("weight", "bias")}
    assert len(offsets) == (6 if name.endswith("star") else 3)


CHANGES: list[dict[str, Any]] = [
    {"position_convs": 4, "kernel_convs": 2},
    {"deformable": False},
    {"deformable_features": True},
    {"coord_kernels": False},
    {"coord_features": False},
    {"features": "p2"},
    {"features": "sum"},
    {"feature_channels": 3},
    {"centre": "box"},
    {"weighted": False, "picks": 3},
    {"picks": 1000},
    {"similarity": 1.0, "matrix_nms": True},
    {"class_aware": False},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: "-".join(change))
def test_what_the_paper_compares_with(change: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model: Any = build("panoptic_fcn", LABELS, **{**SMALL["panoptic_fcn"], **change})
    batch = shapes_batch(1)
    losses = model.train().loss(batch)
    sum(losses.values()).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
    with torch.inference_mode():
        outputs = model.eval()(batch.images, batch.valid)
        (prediction,) = model.decode(outputs, [(50, 70)], **thresholds(model))
    assert_legal(prediction, (50, 70), LABELS)
    assert any(isinstance(m, DeformableConv) for m in model.position_head.modules()) == change.get("deformable", True)


OF_LOSS: dict[str, tuple[Any, list[str]]] = {
    "centre": ("box", ["position_things"]),
    "picks": (2, ["mask"]),
    "weighted": (False, ["mask"]),
    "size_ranges": ([1, 16, 8, 32, 16, 64, 32, 128, 64, 2048], ["position_things", "mask"]),
    "mask_weight": (1.0, ["mask", "semantic"]),
    "position_weight": (2.0, ["position_things", "position_stuff"]),
}
OF_NETWORK: dict[str, Any] = {
    "fpn_channels": 32,
    "feature_channels": 4,
    "position_convs": 2,
    "kernel_convs": 2,
    "deformable": False,
    "deformable_features": True,
    "coord_kernels": False,
    "coord_features": False,
}
OF_DECODING: dict[str, Any] = {
    "thing_threshold": 0.3,
    "stuff_threshold": 1.0,
    "candidates": 1,
    "similarity": 1.0,
    "class_aware": False,
    "matrix_nms": True,
    "mask_threshold": 0.6,
    "min_score": 0.5,
    "detections": 3,
    "min_stuff_area": 96 * 96 + 1,
}


def changed(**given: Any) -> Any:
    """The tiny network with other options, from the same random numbers."""
    torch.manual_seed(0)
    return build("panoptic_fcn", LABELS, **{**SMALL["panoptic_fcn"], "min_stuff_area": 10, **given})


def spread(model: Any) -> Any:
    """With scores that differ from place to place, as those of a trained network do."""
    for predictor in (model.position_head.things, model.position_head.stuff):
        nn.init.normal_(predictor.weight, std=0.3)
    nn.init.constant_(model.position_head.stuff.bias[:1], -20)  # no place is of the class of all things
    return model


def test_every_option_of_this_system_is_tried() -> None:
    usual = {"labels", "backbone", "pretrained", "short", "long", "frozen_bn", "freeze_stages"}
    asked = set(inspect.signature(panoptic_fcn).parameters)
    assert asked - usual == {*OF_LOSS, *OF_NETWORK, *OF_DECODING, "features"}


@pytest.mark.parametrize("option", OF_LOSS)
def test_options_of_the_loss_change_their_terms(option: str) -> None:
    batch, (value, terms) = shapes_batch(), OF_LOSS[option]
    usual, other = (spread(changed(**given)).train().loss(batch) for given in ({}, {option: value}))
    assert [name for name in TERMS if not torch.isclose(usual[name], other[name], rtol=1e-5)] == terms


@pytest.mark.parametrize("option", OF_NETWORK)
def test_options_of_the_network_change_its_weights(option: str) -> None:
    def shapes(**given: Any) -> dict[str, torch.Size]:
        return {key: p.shape for key, p in changed(**given).named_parameters()}

    assert shapes() != shapes(**{option: OF_NETWORK[option]})


def test_the_feature_encoder_reads_what_it_is_told_to() -> None:
    levels = [torch.full((1, 2, 8 >> k, 8 >> k), 10.0**k) for k in range(4)]
    assert float(pixel_branch("p2", 2, (4, 8, 16, 32), 1)(levels).mean()) == 1.0
    assert float(pixel_branch("sum", 2, (4, 8, 16, 32), 1)(levels).mean()) == 1111.0
    assert list(pixel_branch("semantic_fpn", 2, (4, 8, 16, 32), 1).parameters())


@pytest.mark.parametrize("option", OF_DECODING)
def test_options_of_decoding_change_what_is_found(option: str) -> None:
    batch, value = shapes_batch(1), OF_DECODING[option]
    found: list[Any] = []
    for given in ({}, {option: value}):
        model = spread(changed(**given)).eval()
        shown = {"thing_threshold": 1.0} if "stuff" in option else {}  # else things hide the stuff
        with torch.inference_mode():
            found.append(flat(model.decode(model(batch.images, batch.valid), [(96, 96)], **shown)[0]))
    assert not all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_fusion_leaves_fewer_objects() -> None:
    """The same network, decoded in other ways."""
    model, batch = small("panoptic_fcn").eval(), shapes_batch(1)
    with torch.inference_mode():
        outputs = model(batch.images, batch.valid)
        found = {
            similarity: len(model.decode(outputs, [(96, 96)], similarity=similarity, mask_threshold=0.0)[0].instances)
            for similarity in (-1.0, 0.9, 1.0)
        }
        everything = model.decode(outputs, [(96, 96)], similarity=-1.0, class_aware=False, mask_threshold=0.0)
    assert len(everything[0].instances) == 1
    assert found[-1.0] == len(set(model.decode(outputs, [(96, 96)], mask_threshold=0.0)[0].instances.labels.tolist()))
    assert found[-1.0] <= found[0.9] <= found[1.0]


def test_no_candidate_at_all() -> None:
    model, batch = small("panoptic_fcn").eval(), shapes_batch()
    with torch.inference_mode():
        outputs = model(batch.images, batch.valid)
        for prediction in model.decode(outputs, batch.sizes, thing_threshold=1.0, stuff_threshold=1.0):
            assert len(prediction.instances) == 0
            assert not prediction.panoptic.segments
            assert not prediction.panoptic.ids.any()


def test_very_many_objects() -> None:
    ids = 1 + torch.arange(18, dtype=torch.int32)[:, None] * 18 + torch.arange(18, dtype=torch.int32)
    ids = ids.repeat_interleave(8, 0).repeat_interleave(8, 1)  # 324 squares
    ids[::8], ids[:, ::8] = 0, 0
    truth = PanopticSegmentation(ids, tuple(Segment(n, 0) for n in range(1, 325)))
    sample = replace(random_sample(144, 144, 0), truth=truth)
    model = small("panoptic_fcn").train()
    batch = collate([sample])
    assert float(model.counts(batch)["objects"]) == 324
    losses = model.loss(batch)
    sum(losses.values()).backward()
    assert all(bool(value.isfinite()) for value in losses.values())


@pytest.mark.parametrize(("things", "stuff"), [(["a"], []), (["a", "b"], []), (["a"], ["sky"])])
def test_label_spaces_without_stuff_and_with_one_class(things: list[str], stuff: list[str]) -> None:
    labels = LabelSpace.from_names(things, stuff)
    model = small("panoptic_fcn", labels)
    batch = collate([random_sample(1, 1, 0), random_sample(33, 64, 1)])
    losses = model.train().loss(batch)
    assert all(bool(value.isfinite()) for value in losses.values())
    with torch.inference_mode():
        outputs = model.eval()(batch.images, batch.valid)
        predictions = model.decode(outputs, [(1, 1), (40, 64)], **thresholds(model))
    for prediction, size in zip(predictions, [(1, 1), (40, 64)], strict=True):
        assert_legal(prediction, size, labels)


def test_a_prediction_by_hand() -> None:
    """Maps as a trained network would say them: one thing left, stuff everywhere."""
    labels = LabelSpace.from_names(["a", "b"], ["sky"])
    model = small("panoptic_fcn", labels).eval()
    for generator, into in ((model.thing_generator, 0), (model.stuff_generator, 1)):
        nn.init.zeros_(generator.weight)
        nn.init.zeros_(generator.bias)
        generator.weight.data[into, into] = 1.0
    with torch.inference_mode():
        outputs = model(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
        things, stuff, kernels = (
            [torch.full_like(m, v) for m in maps] for maps, v in zip(outputs[:3], (-20.0, -20.0, 0.0), strict=True)
        )
        kernels[0][0, 0, 4, 2], kernels[0][0, 1] = 1.0, 1.0
        things[0][0, 1, 4, 2] = 10.0
        stuff[0][0, 1] = 5.0
        features = torch.zeros_like(outputs.features)
        features[0, 0], features[0, 0, :, :8], features[0, 1] = -9.0, 9.0, 4.0
        outputs = outputs._replace(things=things, stuff=stuff, kernels=kernels, features=features)
        usual = {"thing_threshold": 0.05, "stuff_threshold": 0.05, "min_score": 0.05}
        (prediction,) = model.decode(outputs, [(128, 128)], min_stuff_area=0, **usual)
        (without,) = model.decode(outputs, [(128, 128)], min_stuff_area=10**6, **usual)
    assert [(s.category, round(s.score, 2)) for s in prediction.panoptic.segments] == [(1, 0.56), (2, 1.0)]
    assert bool((prediction.panoptic.ids[:, :60] == 1).all())
    assert bool((prediction.panoptic.ids[:, 70:] == 2).all())
    assert prediction.instances.labels.tolist() == [1]
    assert [s.category for s in without.panoptic.segments] == [1]
    assert len(flat(prediction)) == 5


def test_ranges_of_sizes_are_checked() -> None:
    ranges = [1, 64, 128, 32, 64, 256, 128, 512, 256, 2048]
    with pytest.raises(PansightError, match=r"size_ranges of model panoptic_fcn: .*\(128, 32\)"):
        build("panoptic_fcn", LABELS, **{**SMALL["panoptic_fcn"], "size_ranges": ranges})
