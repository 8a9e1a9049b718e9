"""Panoptic-DeepLab beside detectron2's own numbers, which `make_panoptic_deeplab.py` took from its code.

Its networks in three settings, its file layout read by our loader; two photos in a batch, one padded. Its targets and
its grouping, by themselves, too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fixed import SIZES, norm_and_samples, photo, spread
from fixed_panoptic_deeplab import CASES, CLASSES, CROWD, RULES, SIGMAS, THINGS, maps, truth, weights
from torch import Tensor, nn

from pansight.nn.semantic.blocks import ImagePooling
from pansight.ops.centres.heatmaps import CentreSettings, centre_targets
from pansight.ops.fast import plain
from pansight.ops.fusion.centres import CentreRule, find_centres, group_pixels
from pansight.types import Batch, LabelSpace, PanopticSegmentation, Segment
from pansight.weights.keys import rename
from pansight.weights.official.detectron2 import IGNORED
from pansight.weights.official.panoptic.panoptic_deeplab import RULES as KEYS
from pansight.weights.official.panoptic.panoptic_deeplab import load

SAMPLES = 600
MADE_BY = {"coco": "panoptic_deeplab_r52_d2_coco"}
HEADS = {
    "sem_seg_head.predictor": "semantic_logits",
    "ins_embed_head.center_predictor": "heat",
    "ins_embed_head.offset_predictor": "offsets_yx",
}
LOSSES = {"semantic": "loss_sem_seg", "centre": "loss_center", "offset": "loss_offset"}


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(Path(__file__).with_name("detectron2_panoptic_deeplab.npz")) as file:
        return dict(file)


class Run(NamedTuple):
    """detectron2's numbers of a case, our model with the same weights, and what it says of both photos."""

    case: str
    golden: dict[str, np.ndarray]
    model: Any
    outputs: Any
    predictions: list[Any]


def padded(case: str) -> tuple[Tensor, Tensor]:
    """images uint8 (2, 3, H, W), valid bool (2, H, W)."""
    images = torch.zeros((2, 3, *CASES[case].canvas), dtype=torch.uint8)
    valid = torch.zeros((2, *CASES[case].canvas), dtype=torch.bool)
    for index, (height, width) in enumerate(SIZES):
        images[index, :, :height, :width] = photo(index, case)
        valid[index, :height, :width] = True
    return images, valid


RUNS = [pytest.param(case, marks=() if case == "separable" else (pytest.mark.long,)) for case in CASES]
"""The other two are left to `make test-long`."""


@pytest.fixture(scope="module", params=RUNS)
def run(request: pytest.FixtureRequest, golden: dict[str, np.ndarray]) -> Run:
    case: str = request.param
    own = {key.removeprefix(f"{case} "): value for key, value in golden.items() if key.startswith(f"{case} ")}
    model, name, options = load(weights(case, golden), case)
    assert name == MADE_BY.get(case, "panoptic_deeplab_r52_d2_cityscapes")
    assert options == ({} if case == "coco" else {"separable": case == "separable"})
    if case != "plain":  # whose window is larger than the map, as ours is then, too
        for module in model.modules():
            if isinstance(module, ImagePooling):
                module.window = tuple(side // 16 for side in CASES[case].crop)
    images, valid = padded(case)
    with torch.inference_mode():
        outputs = model(images, valid)
        predictions = model.decode(outputs, CASES[case].output_sizes)
    return Run(case, own, model, outputs, predictions)


def assert_near(ours: Tensor | np.ndarray, theirs: np.ndarray, rtol: float = 1e-4, atol: float = 0.0) -> None:
    torch.testing.assert_close(torch.as_tensor(ours), torch.from_numpy(theirs), rtol=rtol, atol=atol)


def in_their_numbers(panoptic: PanopticSegmentation, things: set[int]) -> tuple[Tensor, dict[int, float]]:
    """→ (int64 (H, W): class · 1000, plus a thing's number in its class; -1 for void, scores of things by these)."""
    table = torch.full((max((s.id for s in panoptic.segments), default=0) + 1,), -1)
    met: dict[int, int] = {}
    scores: dict[int, float] = {}
    for segment in panoptic.segments:
        number = segment.category * 1000
        if segment.category in things:
            met[segment.category] = met.get(segment.category, 0) + 1
            number += met[segment.category]
            scores[number] = segment.score
        table[segment.id] = number
    return table[panoptic.ids.long()], scores


@pytest.mark.slow
def test_heads(run: Run) -> None:
    for theirs, ours in HEADS.items():
        found = getattr(run.outputs, ours) / (4 if ours == "offsets_yx" else 1)
        assert_near(np.stack([spread(x, SAMPLES) for x in found]), run.golden[theirs], rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_the_panoptic_map(run: Run, index: int) -> None:
    panoptic = run.predictions[index].panoptic
    things = {category.id for category in run.model.labels.things}
    ours, scores = in_their_numbers(panoptic, things)
    values = run.golden[f"values {index}"]
    theirs = torch.from_numpy(values[run.golden[f"map {index}"].astype(np.int64)])
    assert len(values) > 30
    assert ours.unique().tolist() == values.tolist()
    assert ours.shape == theirs.shape
    assert int((ours != theirs).sum()) <= 1e-4 * theirs.numel()  # what lies between two classes or two centres
    numbers = [value for value in values.tolist() if value // 1000 in things and value >= 0]
    assert [number // 1000 for number in numbers] == run.golden[f"classes {index}"].tolist()
    expected = run.golden[f"scores {index}"].clip(0, 1)
    assert_near(np.array([scores[number] for number in numbers], np.float32), expected, rtol=0, atol=1e-4)


def annotated(case: str, labels: LabelSpace) -> list[PanopticSegmentation]:
    truths: list[PanopticSegmentation] = []
    for index in range(2):
        ids, things, stuff = truth(index, len(labels.things), len(labels.stuff))
        segments = [
            Segment(number, labels.things[place].id, is_crowd=(index, number) == (0, CROWD)) for number, place in things
        ]
        segments += [Segment(number, labels.stuff[place].id) for number, place in stuff]
        truths.append(PanopticSegmentation(ids, tuple(segments)))
    return truths


def train_without_dropout(model: nn.Module, with_statistics: bool) -> None:
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout) or (with_statistics and isinstance(module, nn.BatchNorm2d)):
            module.eval()


def assert_losses(run: Run, losses: dict[str, Tensor], name: str, batch: Batch) -> None:
    """The terms of a batch, "both" or "first".

    Of both photos the hardest pixels are those of each image with us, and of the batch with detectron2. Of COCO's, all
    of which count, detectron2 divides by their number, padding included, we by that of the image alone.
    """
    assert losses.keys() == LOSSES.keys()
    for term, value in losses.items():
        theirs = run.golden[f"{LOSSES[term]} {name}"]
        if term == "semantic" and run.case == "coco":
            value = value * batch.truths[0].ids.numel() / batch.valid.numel()
        if term != "semantic" or len(batch.truths) == 1:
            assert_near(value.detach(), theirs)


@pytest.mark.slow
def test_losses_and_gradients(run: Run) -> None:
    """Every term, and of every parameter the norm of its gradient and some of its numbers."""
    model, golden = run.model, run.golden
    images, valid = padded(run.case)
    truths = annotated(run.case, model.labels)
    both = Batch(images, valid, SIZES, tuple(truths), (0, 1), (None, None))
    first = Batch(images[:1], valid[:1], SIZES[:1], tuple(truths[:1]), (0,), (None,))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train_without_dropout(model, with_statistics=False)
    with torch.no_grad():
        for name, batch in (("both", both), ("first", first)):
            assert_losses(run, model.loss(batch), name, batch)
    model.load_state_dict(before)  # without what training made of the statistics
    train_without_dropout(model, with_statistics=True)
    losses = model.loss(first)
    assert_losses(run, losses, "fixed", first)
    if run.case == "coco":
        losses["semantic"] = losses["semantic"] * truths[0].ids.numel() / first.valid.numel()
    sum(losses.values()).backward()
    ours = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    model.eval()
    rows = dict(zip(golden["trained"].tolist(), torch.from_numpy(golden["gradients"])))
    theirs = rename(rows, KEYS, IGNORED, run.case)
    assert ours.keys() == theirs.keys()
    for name, row in theirs.items():
        assert float(row[0]) > 0, name
        (found,) = norm_and_samples([ours[name]])
        # an activation of zero but for rounding passes its gradient on one side only: a little of single
        # numbers, and not the same on processors of other vector instructions
        size = float(row[0]) / ours[name].numel() ** 0.5
        assert float(found[0]) == pytest.approx(float(row[0]), rel=3e-3), name
        assert_near(found[1:], row[1:].numpy(), rtol=1e-3, atol=3e-2 * size)


@pytest.mark.parametrize("case", ["plain", "coco"])
def test_targets(case: str, golden: dict[str, np.ndarray]) -> None:
    """Heat, offsets and all weights, a crowd among the things; the deviation is 10 or 8 pixels."""
    things, stuff = ([f"{kind} {n}" for n in range(getattr(CASES[case], kind))] for kind in ("things", "stuff"))
    labels = LabelSpace.from_names(things, stuff)
    for index, one in enumerate(annotated(case, labels)):
        targets = centre_targets(one, labels, CentreSettings(SIGMAS[case]))
        ours = {
            "center": targets.heat,
            "offset": targets.offsets_yx,
            "sem_seg_weights": targets.class_weight,
            "center_weights": targets.has_heat,
            "offset_weights": targets.has_offset,
        }
        for name, found in ours.items():
            theirs = golden[f"{case} {name} {index}"]
            assert len(np.unique(theirs)) > 1 or index == 1  # where all things are large and none is a crowd
            assert_near(spread(found, SAMPLES), theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("slow_twin", [False, True])
@pytest.mark.parametrize("name", RULES)
def test_grouping(name: str, slow_twin: bool, golden: dict[str, np.ndarray]) -> None:
    """The same map to the last pixel: few peaks, more than may stay, equal ones, none, only things, only stuff."""
    semantic, heat, offsets = maps(name)
    names = [f"class {n}" for n in range(CLASSES)]
    labels = LabelSpace.from_names([names[n] for n in THINGS], names[: THINGS[0]])
    order = [labels.by_name()[name].id for name in names]
    logits = torch.zeros((CLASSES, *semantic.shape))
    logits[order] = F.one_hot(semantic, CLASSES).permute(2, 0, 1).float()
    threshold, window, count, area = RULES[name]
    centres = find_centres(heat, threshold, window, count)
    assert centres.tolist() == golden[f"centres {name}"].tolist()
    rule = CentreRule(threshold, window, count, area)
    with plain(slow_twin):
        panoptic, _ = group_pixels(logits, heat, offsets, labels, rule)
    found, _ = in_their_numbers(panoptic, {category.id for category in labels.things})
    back = torch.tensor([order.index(category.id) for category in labels])
    found = torch.where(found < 0, found, back[found.clamp(min=0) // 1000] * 1000 + found % 1000)
    assert torch.equal(found, torch.from_numpy(golden[f"rule {name}"]).long())
