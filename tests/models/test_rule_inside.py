"""Graphs that give the panoptic map itself: what the rule behind the graph would have made, pixel by pixel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pansight
from pansight import runtime
from pansight.apps.exporting.checking import panoptic_map, same_pixels
from pansight.apps.exporting.graphs import write_graph
from pansight.apps.exporting.tracing import check_rule_inside
from pansight.errors import PansightError
from pansight.models import MODELS, build
from pansight.ops.fusion.exported import QueryOutputs, panoptic_of_queries
from pansight.types import LabelSpace, PanopticSegmentation, Prediction, Segment

LABELS = LabelSpace.from_names(["a", "b"], ["c", "d"])
INSIDE = ("maskformer", "mask2former", "eomt")
GENERAL = [name for name, entry in MODELS.items() if not entry.variant_of]


def tiny(name: str) -> Any:
    torch.manual_seed(0)
    model: Any = build(name, LABELS, **MODELS[name].tiny)
    model.eval().set_progress(1.0)
    return model


def drawn(seed: int, sure: float) -> QueryOutputs:
    """Queries of two images, of which the second has padding, with smooth masks of different sizes."""
    draw = torch.Generator().manual_seed(seed)
    classes = sure * torch.randn(2, 14, len(LABELS) + 1, generator=draw)
    coarse = 6 * torch.randn(2, 14, 3, 4, generator=draw)
    masks = torch.nn.functional.interpolate(coarse, (16, 24), mode="bilinear")
    return QueryOutputs(classes, torch.tensor([[64, 96], [50, 83]]), torch.tensor([64, 96]), masks)


@pytest.mark.parametrize("name", INSIDE)
def test_the_rule_inside_is_the_rule_behind(name: str) -> None:
    model, found = tiny(name), 0
    for seed in range(6):
        outputs = drawn(seed, 8.0 if seed else 0.0)  # of the first no query is kept
        for overlap in (0.2, 0.8):
            rules = model.rules._replace(overlap=overlap)
            given = panoptic_of_queries(outputs, (64, 96), LABELS, rules)
            for image, (height, width) in enumerate(outputs.extents.tolist()):
                of_image = type(given)(*(column[image : image + 1] for column in given))
                masks = outputs.masks(image)[None]
                one = QueryOutputs(
                    outputs.class_logits[image : image + 1], outputs.extents[image : image + 1], outputs.canvas, masks
                )
                expected = model.decode(one, [(height, width)], overlap=overlap)[0].panoptic
                made = panoptic_map(of_image, (height, width)).panoptic
                assert made is not None
                assert torch.equal(made.ids, expected.ids)
                assert [s[:2] for s in made.segments] == [s[:2] for s in expected.segments]
                torch.testing.assert_close(*(torch.tensor([s.score for s in m.segments]) for m in (made, expected)))
                assert bool((of_image.masks[0, height:] == torch.tensor([-1, 0])).all())  # padding is void
                found += len(made.segments)
    assert found > 20


@pytest.mark.slow
def test_every_other_system_is_refused_in_a_line(tmp_path: Path) -> None:
    for name in GENERAL:
        with torch.device("meta"):
            model = build(name, LabelSpace.from_names(["a"], ["b"]), **MODELS[name].tiny)
        if name in INSIDE:
            check_rule_inside(model, name)
            continue
        with pytest.raises(PansightError, match=f"rule_inside: expected a system whose masks compete.*found {name}"):
            write_graph(model, name, dict(MODELS[name].tiny), "onnx", tmp_path / "out", rule_inside=True)


def test_a_folder_of_weights_has_no_rule_inside(tmp_path: Path) -> None:
    with pytest.raises(PansightError, match="rule_inside: expected a graph"):
        pansight.export("run", tmp_path / "out", to="folder", rule_inside=True)


@pytest.mark.parametrize("target", ["onnx", "openvino", "torch"])
@pytest.mark.parametrize("name", INSIDE)
@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1200)
def test_the_runtime_reads_a_graph_with_the_rule_inside(name: str, target: str, tmp_path: Path) -> None:
    """Of a photo that the network sees as it is, the runtime says what the model says."""
    model = tiny(name)
    model.rules = model.rules._replace(score=0.2, overlap=0.1)  # or else random weights find nothing
    found = write_graph(model, name, dict(MODELS[name].tiny), target, tmp_path / "out", (128, 160), rule_inside=True)
    assert found.alike >= 0.999
    if target == "torch":
        return
    photo = np.random.default_rng(0).integers(0, 256, (128, 160, 3), np.uint8)
    said = runtime.open(tmp_path / "out").predict(photo)
    assert said.semantic is None
    images = torch.from_numpy(photo).permute(2, 0, 1)[None]
    with torch.no_grad():
        expected = model.decode(model(images, torch.ones((1, 128, 160), dtype=torch.bool)), [(128, 160)])[0]
    assert said.panoptic is not None
    segments = tuple(Segment(*segment) for segment in said.panoptic.segments)
    made = Prediction(PanopticSegmentation(torch.from_numpy(said.panoptic.ids), segments), None, None)
    assert same_pixels(expected, made) >= 0.999
