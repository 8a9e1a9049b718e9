"""Mask2Former's own parts: masked attention, loss, three tasks. What all models share is in test_contract.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from contract import LABELS, random_sample, shapes_batch, small
from torch import Tensor

from pansight.data.loader import collate
from pansight.errors import PansightError
from pansight.models.queries.mask2former import Mask2FormerOutputs, may_look
from pansight.ops.fast import plain
from pansight.ops.queries.masks import features_at, masks_at


def model(seed: int = 0) -> Any:
    return small("mask2former", seed=seed)


def test_a_query_looks_where_its_mask_is_positive_or_everywhere() -> None:
    embeddings = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]])  # (1, 3, 2)
    features = torch.tensor([[[1.0, -1.0, 0.0, 2.0], [-1.0, -2.0, -3.0, -1.0]]])  # (1, 2, 4)
    mask = may_look(embeddings @ features)
    assert mask.shape == (1, 1, 3, 4)
    expected = [[True, False, True, True], [True] * 4, [True, True, True, False]]  # the second has no positive pixel
    assert mask[0, 0].tolist() == expected


def test_resizing_features_first_gives_the_official_masks() -> None:
    """Official: the product at stride 4, then bilinear to the level, then the sign."""
    torch.manual_seed(0)
    embeddings, features = torch.randn(2, 5, 8), torch.randn(2, 8, 16, 24)
    for size in [(8, 12), (4, 6), (2, 3)]:
        whole = torch.einsum("bqd,bdhw->bqhw", embeddings, features)
        official = F.interpolate(whole, size, mode="bilinear", align_corners=False).flatten(2)
        blocked = official.sigmoid() < 0.5
        blocked &= ~blocked.all(2, keepdim=True)
        for active in (False, True):
            with plain(active):
                resized = features_at(features, size)
                masks = masks_at(embeddings, resized, size).flatten(2)
            assert (resized.shape[2:] == features.shape[2:]) == active
            torch.testing.assert_close(masks, official, rtol=1e-5, atol=1e-5)
            assert torch.equal(may_look(masks)[:, 0], ~blocked)


def test_order_of_a_layer_and_of_the_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cross-attention, self-attention, feed-forward; the levels from coarse to fine, in turn."""
    net = model().eval()
    calls: list[str] = []
    predictor = net.predictor
    for kind in ("cross_attention", "self_attention", "ffn"):
        for index, layer in enumerate(getattr(predictor, f"transformer_{kind}_layers")):
            layer.register_forward_hook(
                lambda _m, args, _o, kind=kind, index=index: calls.append(
                    f"{kind} {index}" + (f" {args[2].shape[1]}" if kind == "cross_attention" else "")
                )
            )
    with torch.inference_mode():
        net(shapes_batch(1, 64).images)
    sizes = [4, 16, 64]  # tokens of strides 32, 16, 8
    expected = [[f"cross_attention {i} {sizes[i % 3]}", f"self_attention {i}", f"ffn {i}"] for i in range(3)]
    assert calls == [call for layer in expected for call in layer]


def test_forward_is_the_last_prediction_of_training() -> None:
    net, batch = model().eval(), shapes_batch(2, 64)
    with torch.inference_mode():
        outputs = net(batch.images, batch.valid)
        classes, embeddings, features = net._predict(batch.images, batch.valid, all_layers=True)
    assert classes.shape == (4, 2, 12, len(LABELS) + 1)  # before the first layer and after each of three
    assert embeddings.shape == (4, 2, 12, 64)
    torch.testing.assert_close(outputs.class_logits, classes[-1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(outputs.mask_embeddings, embeddings[-1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(outputs.features, features, rtol=1e-5, atol=1e-5)
    assert outputs.extents.tolist() == [[64, 64], [64, 64]]


def test_losses_weigh_what_they_are_told() -> None:
    net, batch = model().train(), shapes_batch(2, 64)
    totals: list[dict[str, float]] = []
    for weights in ({}, {"binary_weight": 10.0}):
        net.settings = net.settings._replace(**weights)
        generator = torch.Generator().manual_seed(3)
        losses = net.loss(batch, draw=lambda *shape, g=generator, **_: torch.rand(shape, generator=g))
        totals.append({key: float(value.detach()) for key, value in losses.items()})
    assert sorted(totals[0]) == ["class", "dice", "mask"]
    assert totals[1]["class"] > 0
    assert totals[1]["mask"] > 1.5 * totals[0]["mask"]  # twice, but for another matching


def drawn_outputs() -> Mask2FormerOutputs:
    """Two queries with hand-made masks on a canvas of 64 × 96, the photo being its left 64 × 64; a third says nothing.

    Query 0, a thing: the top half; query 1, stuff: the bottom half. Features are the masks themselves.
    """
    features = torch.full((1, 3, 16, 24), -8.0)
    features[0, 0, :8] = 8.0
    features[0, 1, 8:] = 8.0
    embeddings = torch.eye(3).unsqueeze(0)
    thing, stuff = LABELS.things[1].id, LABELS.stuff[0].id
    logits = torch.zeros(1, 3, len(LABELS) + 1)
    logits[0, 0, thing] = logits[0, 1, stuff] = logits[0, 2, -1] = 9.0
    return Mask2FormerOutputs(logits, embeddings, features, torch.tensor([[64, 64]]))


def test_panoptic_semantic_and_instances() -> None:
    net, outputs = model().eval(), drawn_outputs()
    thing, stuff = LABELS.things[1].id, LABELS.stuff[0].id
    (prediction,) = net.decode(outputs, [(128, 100)], task="all")
    assert prediction.panoptic is not None
    assert prediction.semantic is not None
    assert prediction.instances is not None
    ids = prediction.panoptic.ids
    assert [(s.id, s.category) for s in prediction.panoptic.segments] == [(1, thing), (2, stuff)]
    assert ids.shape == (128, 100)
    assert (ids[:60] == 1).all()
    assert (ids[68:] == 2).all()
    assert (prediction.semantic[:60] == thing).all()
    assert (prediction.semantic[68:] == stuff).all()
    first = prediction.instances.masks[0]
    assert int(prediction.instances.labels[0]) == thing
    assert first[:60].all()
    assert not first[68:].any()
    assert prediction.instances.scores[0] > 0.95


@pytest.mark.parametrize(
    ("task", "filled"),
    [(None, "panoptic"), ("panoptic", "panoptic"), ("semantic", "semantic"), ("instance", "instances")],
)
def test_a_task_fills_its_field_alone(task: str | None, filled: str) -> None:
    (prediction,) = model().eval().decode(drawn_outputs(), [(64, 64)], task=task)
    for field in ("panoptic", "semantic", "instances"):
        assert (getattr(prediction, field) is not None) == (field == filled)


def test_unknown_task() -> None:
    with pytest.raises(PansightError, match=r"unknown task 'boxes'.*panoptic"):
        model().decode(drawn_outputs(), [(64, 64)], task="boxes")


def test_masks_of_kept_queries_alone() -> None:
    """The panoptic task never asks for the masks of all queries."""
    net = model().eval()
    asked: list[Tensor | None] = []
    plain = net.mask_logits
    net.mask_logits = lambda outputs, image, queries=None: (asked.append(queries), plain(outputs, image, queries))[1]
    net.decode(drawn_outputs(), [(64, 64)])
    assert [q.tolist() for q in asked] == [[0, 1]]


def test_half_precision_predicts_nearly_the_same() -> None:
    net = model().eval()
    batch = collate([random_sample(96, 96, 0)])
    with torch.inference_mode():
        full = net(batch.images, batch.valid)
        with torch.autocast("cpu", torch.bfloat16):
            half = net(batch.images, batch.valid)
            net.decode(half, [(96, 96)], score_threshold=0.0, task="all")
    difference = (half.class_logits.float() - full.class_logits).norm() / full.class_logits.norm()
    assert difference < 0.05
