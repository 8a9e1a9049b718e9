"""The outputs of every model as tensors with names, and back: the same predictions come of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pansight.models import MODELS, build
from pansight.ops.fusion.exported import HasLastSteps, QueryOutputs, finished, flatten, unflatten
from pansight.types import LabelSpace, Prediction

GENERAL = [name for name, entry in MODELS.items() if not entry.variant_of]
QUERIES = ["detr", "detr_panoptic", "maskformer", "mask2former", "eomt"]
SIZE = 64, 96


def outputs_of(name: str) -> tuple[Any, Any]:
    """A tiny model, and what it says of two photos of noise, a part of the second one being padding."""
    torch.manual_seed(0)
    model: Any = build(name, LabelSpace.from_names(["a", "b"], ["c"]), **MODELS[name].tiny)
    model.eval().set_progress(1.0)
    valid = torch.ones((2, *SIZE), dtype=torch.bool)
    valid[1, 50:], valid[1, :, 90:] = False, False
    with torch.no_grad():
        return model, model(torch.randint(0, 256, (2, 3, *SIZE), dtype=torch.uint8), valid)


def same(found: list[Prediction], expected: list[Prediction]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one.panoptic is None) == (other.panoptic is None)
        if one.panoptic is not None and other.panoptic is not None:
            assert torch.equal(one.panoptic.ids, other.panoptic.ids)
            assert one.panoptic.segments == other.panoptic.segments
        for a, b in ((one.semantic, other.semantic), (one.instances, other.instances)):
            assert (a is None) == (b is None)
        if one.semantic is not None and other.semantic is not None:
            assert torch.equal(one.semantic, other.semantic)
        if one.instances is not None and other.instances is not None:
            assert torch.equal(one.instances.boxes_xyxy, other.instances.boxes_xyxy)
            assert torch.equal(one.instances.scores, other.instances.scores)


def _marks(name: str) -> list[pytest.MarkDecorator]:
    return [] if name in ("fcn", "detr", "mask2former") else [pytest.mark.slow]


@pytest.mark.parametrize("name", [pytest.param(name, marks=_marks(name)) for name in GENERAL])
def test_decode_starts_from_the_named_tensors(name: str) -> None:
    model, outputs = outputs_of(name)
    sizes = [(60, 100), (70, 80)]
    decode = model.decode
    graph = finished(model, outputs)
    tensors = flatten(graph)
    assert all("." in key or key in graph._fields for key in tensors)
    again = unflatten(tensors, graph)
    assert type(again) is type(graph)
    assert list(flatten(again)) == list(tensors)
    for task in MODELS[name].tasks or (None,):
        given = {} if task is None else {"task": task}
        given |= {"score_threshold": 0.2} if name in QUERIES else {}
        same(decode(again, sizes, **given), decode(outputs, sizes, **given))


@pytest.mark.slow
def test_which_graphs_go_on_behind_the_outputs_of_forward() -> None:
    made = []
    for name in GENERAL:
        with torch.device("meta"):
            model = build(name, LabelSpace.from_names(["a"], ["b"]), **MODELS[name].tiny)
        made += [name] if isinstance(model, HasLastSteps) else []
    assert {*made} == {*QUERIES, "panoptic_fcn", "combined"}


def test_names_are_those_of_the_fields() -> None:
    tensor = torch.zeros(1)
    outputs = QueryOutputs(tensor, tensor, tensor)
    assert list(flatten(outputs)) == ["class_logits", "extents", "canvas"]
    nested = (outputs, [tensor, None])
    assert list(flatten(nested)) == ["0.class_logits", "0.extents", "0.canvas", "1.0"]
    back: Tensor = unflatten({**flatten(nested), "1.0": tensor + 1}, nested)[1][0]
    assert back.item() == 1
