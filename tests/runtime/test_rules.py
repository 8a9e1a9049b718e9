"""The rule of every system in NumPy says what `decode` says in torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from pansight import types
from pansight.models import MODELS, build, builder_options, networks_of
from pansight.ops.fusion.exported import finished, flatten
from pansight.runtime.rules import RULES
from pansight.runtime.rules.inside import applied
from pansight.runtime.values import Label, Prediction, Rule

GENERAL = [name for name, entry in MODELS.items() if not entry.variant_of]
FAST = ("fcn", "panoptic_deeplab")
SIZE, EXTENT = (96, 128), (90, 111)
PHOTOS = (EXTENT, (70, 133))
"""Sizes of the photo: the network has seen it as it is, and resized."""


def rule_of(model: Any, name: str, options: Mapping[str, Any]) -> Rule:
    """The rule as an exported folder tells it: the plain numbers among the attributes of the model."""
    numbers: dict[str, Any] = {}
    for key, value in vars(model).items():
        if isinstance(value, bool | int | float | str):
            numbers[key] = value
        elif isinstance(value, tuple) and hasattr(value, "_fields"):
            fields: Any = value
            numbers |= {f"{key}.{field}": each for field, each in fields._asdict().items()}
        elif isinstance(value, tuple | list):
            numbers[key] = list(value)
    labels = tuple(Label(each.name, each.is_thing, each.color, each.source_id) for each in model.labels)
    complete, networks = builder_options(name) | dict(options), networks_of(model, name)
    inner = {} if "" in networks else networks
    of_networks = {
        network: rule_of(each, complete[network], complete[f"{network}_options"] or {})
        for network, each in inner.items()
    }
    return Rule(MODELS[name].variant_of or name, numbers, labels, of_networks)


def model_of(name: str) -> Any:
    """A tiny model whose weights are noise of such a size that its maps have contrast."""
    torch.manual_seed(0)
    model: Any = build(name, types.LabelSpace.from_names(["a", "b"], ["c", "d"]), **MODELS[name].tiny)
    model.eval().set_progress(1.0)
    return model


@torch.no_grad()
def outputs_of(model: Any) -> Any:
    """What an exported graph says of a photo of noise with padding."""
    images = torch.randint(0, 256, (1, 3, *SIZE), dtype=torch.uint8)
    valid = torch.zeros((1, *SIZE), dtype=torch.bool)
    valid[:, : EXTENT[0], : EXTENT[1]] = True
    found = model(images, valid)
    return finished(model, found)


def drawn(outputs: Any, seed: int) -> Any:
    """Outputs of the same kind whose maps, classes and scores are random, and far from ties."""
    draw = torch.Generator().manual_seed(seed)

    def rebuilt(value: Any, name: str) -> Any:
        if isinstance(value, torch.Tensor):
            if not value.is_floating_point():
                return value
            if name == "boxes_xyxy":
                return value
            noise = torch.randn(value.shape, generator=draw)
            if name in ("scores", "boxes_cxcywh", "heat"):
                noise = noise.sigmoid()
                return noise.sort(descending=True).values if name == "scores" else noise
            return 12 * noise if name == "offsets_yx" else 3 * noise
        if isinstance(value, tuple | list):
            fields: Sequence[str] = getattr(value, "_fields", None) or [name] * len(value)
            parts = [rebuilt(each, field) for field, each in zip(fields, value, strict=True)]
            return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
        return value

    return rebuilt(outputs, "")


ROUNDED = {"panoptic_fcn": 0.002}
"""Systems whose decode multiplies matrices, which NumPy and torch add up in another order: the share of pixels that may
be on the other side of a threshold."""


def assert_same(found: Prediction, expected: types.Prediction, flips: float = 0.0) -> None:
    def same(map_: Any, other: torch.Tensor) -> None:
        assert map_.shape == tuple(other.shape)
        assert (map_ != other.numpy()).sum() <= flips * map_.size

    assert (found.panoptic is None) == (expected.panoptic is None)
    if found.panoptic is not None and expected.panoptic is not None:
        assert found.panoptic.ids.dtype == np.int32
        same(found.panoptic.ids, expected.panoptic.ids)
        ours = [(s.id, s.category) for s in found.panoptic.segments]
        assert ours == [(s.id, s.category) for s in expected.panoptic.segments]
        scores = [s.score for s in expected.panoptic.segments]
        np.testing.assert_allclose([s.score for s in found.panoptic.segments], scores, atol=1e-5)
    assert (found.semantic is None) == (expected.semantic is None)
    if found.semantic is not None and expected.semantic is not None:
        same(found.semantic, expected.semantic)
    assert (found.instances is None) == (expected.instances is None)
    if found.instances is not None and expected.instances is not None:
        np.testing.assert_allclose(found.instances.boxes_xyxy, expected.instances.boxes_xyxy, atol=1e-4)
        np.testing.assert_array_equal(found.instances.labels, expected.instances.labels)
        np.testing.assert_allclose(found.instances.scores, expected.instances.scores, atol=1e-5)
        assert (found.instances.masks is None) == (expected.instances.masks is None)
        if found.instances.masks is not None and expected.instances.masks is not None:
            same(found.instances.masks, expected.instances.masks)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in FAST else [pytest.mark.slow]) for n in GENERAL])
def test_rules_say_what_decode_says(name: str) -> None:
    model = model_of(name)
    rule, outputs = rule_of(model, name, MODELS[name].tiny), outputs_of(model)
    for given in (outputs, drawn(outputs, 1), drawn(outputs, 2)):
        arrays = {key: each.numpy() for key, each in flatten(given).items()}
        before = {key: each.copy() for key, each in arrays.items()}
        for size in PHOTOS:
            for task in MODELS[name].tasks or (None,):
                options = {} if task is None else {"task": task}
                expected = model.decode(given, [size], **options)[0]
                assert_same(RULES[rule.name](arrays, size, rule, task), expected, ROUNDED.get(name, 0.0))
        for key, each in arrays.items():
            np.testing.assert_array_equal(each, before[key])


def test_every_system_has_a_rule() -> None:
    assert set(RULES) == set(GENERAL)


def test_a_map_of_a_graph_with_the_rule_inside_at_the_size_of_the_photo() -> None:
    """Twice as large, without the padding; segment 3 has no pixel outside of it."""
    masks = np.zeros((1, 3, 4, 2), np.int64)
    masks[0, ..., 0] = -1
    masks[0, 0, :2] = 1, 2
    masks[0, 1, 2] = 0, 1
    masks[0, 2, 3] = 2, 3
    valid = np.zeros((3, 4), np.bool_)
    valid[:2, :3] = True
    outputs = {"masks": masks, "segment_ids": np.array([[0, 1, 2, 3]]), "scores": np.array([[0, 0.5, 0.75, 0.9]])}
    found = applied(outputs, valid, (4, 6)).panoptic
    assert found is not None
    assert found.ids.tolist() == [[2, 2, 2, 2, 0, 0]] * 2 + [[0, 0, 0, 0, 1, 1]] * 2
    assert [tuple(segment) for segment in found.segments] == [(1, 0, 0.5), (2, 1, 0.75)]
