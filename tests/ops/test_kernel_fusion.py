"""Panoptic FCN's inference: cases worked out by hand, and each rule written a second time as loops."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pansight.ops.fusion.contest import Canvas
from pansight.ops.fusion.kernels import (
    Candidates,
    KernelRules,
    fuse_stuff,
    fuse_things,
    joined,
    matrix_nms,
    stuff_candidates,
    stuff_map,
    thing_candidates,
    thing_instances,
)
from pansight.types import IGNORE

CANVAS = Canvas((16, 16), (16, 16), (16, 16))


def at_angles(*degrees: float) -> Tensor:
    """Vectors of length 2 in a plane."""
    return torch.tensor([[2 * math.cos(math.radians(d)), 2 * math.sin(math.radians(d))] for d in degrees])


def candidates(kernels: Tensor, classes: list[int] | None = None) -> Candidates:
    """Scores fall with the index."""
    count = len(kernels)
    numbers = torch.tensor(classes if classes is not None else [0] * count)
    return Candidates(kernels, numbers, torch.linspace(0.9, 0.5, count))


def test_a_peak_by_hand() -> None:
    logits = torch.full((2, 5, 5), -20.0)
    logits[1, 2, 2], logits[1, 2, 3] = 20.0, 0.0  # its neighbour is no peak
    logits[0, 0, 0] = 0.0
    kernels = torch.arange(25.0).view(1, 5, 5)
    found = thing_candidates(logits, kernels, 3, 50).above(0.05)
    assert found.classes.tolist() == [1, 0]
    assert found.scores.tolist() == pytest.approx([(1 + 1.5 / 9) / 2, (0.5 + 0.5 / 9) / 2])
    assert found.kernels.tolist() == [[12.0], [0.0]]
    assert thing_candidates(logits, kernels, 3, 1).above(0.05).classes.tolist() == [1]
    assert len(thing_candidates(logits, kernels, 3, 50).above(0.6).scores) == 0
    assert len(thing_candidates(logits[:, :1, :1], kernels[:, :1, :1], 5, 50).above(0.0).scores) == 1


@pytest.mark.parametrize("window", [3, 5])
def test_peaks_place_by_place(window: int) -> None:
    draw = torch.Generator().manual_seed(0)
    logits, kernels = torch.randn(3, 7, 9, generator=draw), torch.randn(4, 7, 9, generator=draw)
    reach = window // 2
    probability = F.pad(logits.sigmoid(), (2, 2, 2, 2))
    scores = torch.zeros(3, 9, 11)  # a margin of one
    for c in range(3):
        for y in range(7):
            for x in range(9):
                around = probability[c, y + 2 - reach : y + 3 + reach, x + 2 - reach : x + 3 + reach]
                scores[c, y + 1, x + 1] = (probability[c, y + 2, x + 2] + around.sum() / window**2) / 2
    expected: list[tuple[float, int, list[float]]] = []
    for c in range(3):
        for y in range(7):
            for x in range(9):
                score = float(scores[c, y + 1, x + 1])
                if score >= float(scores[c, y : y + 3, x : x + 3].max()) and score > 0.4:
                    expected.append((score, c, kernels[:, y, x].tolist()))
    expected.sort(key=lambda one: -one[0])
    found = thing_candidates(logits, kernels, window, 50).above(0.4)
    assert len(found.scores) == len(expected) > 3
    assert found.scores.tolist() == pytest.approx([score for score, _, _ in expected])
    assert found.classes.tolist() == [c for _, c, _ in expected]
    assert found.kernels.tolist() == [kernel for _, _, kernel in expected]


def test_regions_of_stuff_by_hand() -> None:
    """Class 0 has three places of four, class 1 none, class 2 one with too low a score."""
    p = torch.tensor([[[0.9, 0.6], [0.3, 0.01]], [[0.1, 0.1], [0.1, 0.01]], [[0.1, 0.1], [0.1, 0.04]]])
    kernels = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    found = stuff_candidates(p.logit(), kernels).above(0.05)
    assert found.classes.tolist() == [0]
    assert found.scores.tolist() == pytest.approx([0.6])
    assert found.kernels.tolist() == [[6 / 4]]
    low = stuff_candidates(p.logit(), kernels).above(0.03)
    assert low.classes.tolist() == [0, 2]
    assert low.kernels.tolist() == [[6 / 4], [4 / 4]]


def test_fusion_is_neither_greedy_nor_transitive() -> None:
    """0° and 20° are similar, so are 20° and 40°, but not 0° and 40°: the third vanishes with the second."""
    found = fuse_things(candidates(at_angles(0, 20, 40, 90)), 0.9)
    assert found.scores.tolist() == pytest.approx([0.9, 0.5])
    torch.testing.assert_close(found.kernels, torch.stack((at_angles(0, 20).mean(0), at_angles(90)[0])))


def test_fusion_within_classes_and_among_all() -> None:
    given = candidates(at_angles(0, 5, 10), [0, 1, 0])
    of_class = fuse_things(given, 0.9)
    assert of_class.classes.tolist() == [0, 1]
    torch.testing.assert_close(of_class.kernels[0], at_angles(0, 10).mean(0))
    among_all = fuse_things(given, 0.9, class_aware=False)
    assert among_all.classes.tolist() == [0]
    torch.testing.assert_close(among_all.kernels[0], at_angles(0, 5, 10).mean(0))


def test_fusion_sorts_by_score() -> None:
    given = candidates(at_angles(0, 10, 90)).some(torch.tensor([2, 1, 0]))
    assert fuse_things(given, 0.9).scores.tolist() == pytest.approx([0.9, 0.5])


@pytest.mark.parametrize("count", [0, 1])
def test_fusion_of_one_and_of_none(count: int) -> None:
    given = candidates(torch.ones(count, 3))
    found = fuse_things(given, 0.9)
    assert torch.equal(found.kernels, given.kernels)
    assert torch.equal(found.scores, given.scores)


def test_vectors_without_a_direction_stay_alone() -> None:
    found = fuse_things(candidates(torch.zeros(2, 3)), 0.9)
    assert torch.equal(found.kernels, torch.zeros(2, 3))


def test_a_similarity_of_one_fuses_nothing() -> None:
    """Not even equal kernels, whose cosine is 1 or a little less by rounding."""
    given = candidates(torch.ones(5, 3) / 3)
    assert len(fuse_things(given, 0.999).scores) == 1
    found = fuse_things(given, 1.0)
    assert torch.equal(found.kernels, given.kernels)
    assert torch.equal(found.scores, given.scores)


@pytest.mark.parametrize("class_aware", [True, False])
def test_fusion_kernel_by_kernel(class_aware: bool) -> None:
    draw = torch.Generator().manual_seed(1)
    count = 150
    kernels = torch.randn(count, 3, generator=draw)
    given = Candidates(kernels, torch.randint(0, 3, (count,), generator=draw), torch.rand(count, generator=draw))
    order = sorted(range(count), key=lambda n: -float(given.scores[n]))
    first: list[int] = []
    for j in range(count):
        a = given.kernels[order[j]]
        for i in range(j + 1):
            b = given.kernels[order[i]]
            alike = float(a @ b / (a.norm() * b.norm())) >= 0.9 or i == j
            if alike and (not class_aware or given.classes[order[i]] == given.classes[order[j]]):
                first.append(i)
                break
    survivors = [j for j in range(count) if first[j] == j]
    expected = [kernels[[order[j] for j in range(count) if first[j] == i]].mean(0) for i in survivors]
    found = fuse_things(given, 0.9, class_aware)
    assert 5 < len(survivors) < count - 5
    assert any(first[first[j]] != first[j] for j in range(count))  # some vanish
    torch.testing.assert_close(found.kernels, torch.stack(expected))
    assert found.scores.tolist() == [float(given.scores[order[j]]) for j in survivors]
    assert found.classes.tolist() == [int(given.classes[order[j]]) for j in survivors]


def test_stuff_is_averaged_over_levels() -> None:
    one = Candidates(torch.tensor([[1.0], [5.0]]), torch.tensor([0, 3]), torch.tensor([0.2, 0.4]))
    other = Candidates(torch.tensor([[3.0]]), torch.tensor([0]), torch.tensor([0.6]))
    none = Candidates(torch.zeros(0, 1), torch.zeros(0, dtype=torch.int64), torch.zeros(0))
    found = fuse_stuff(joined([one, none, other]))
    assert found.classes.tolist() == [0, 3]
    assert found.kernels.tolist() == [[2.0], [5.0]]
    assert found.scores.tolist() == pytest.approx([0.4, 0.4])
    assert len(fuse_stuff(none).classes) == 0


def test_matrix_nms_pair_by_pair() -> None:
    draw = torch.Generator().manual_seed(2)
    masks = torch.rand(12, 6, 6, generator=draw) > 0.4
    classes, scores = torch.randint(0, 2, (12,), generator=draw), torch.linspace(0.9, 0.1, 12)

    def overlap(i: int, j: int) -> float:
        same = bool(classes[i] == classes[j])
        return float((masks[i] & masks[j]).sum() / (masks[i] | masks[j]).sum()) if same else 0.0

    expected: list[float] = []
    for j in range(12):
        decay = 1.0
        for i in range(j):
            of_better = max((overlap(k, i) for k in range(i)), default=0.0)
            decay = min(decay, math.exp(-2 * (overlap(i, j) ** 2 - of_better**2)))
        expected.append(float(scores[j]) * decay)
    assert matrix_nms(masks, classes, scores).tolist() == pytest.approx(expected, rel=1e-5)
    assert expected[0] == pytest.approx(0.9)
    assert min(b / a for a, b in zip(scores.tolist(), expected, strict=True)) < 0.7
    assert len(matrix_nms(masks[:0], classes[:0], scores[:0])) == 0


def half_planes() -> Tensor:
    """Features (2, 4, 4): the left half, and the upper half, with ±10."""
    features = torch.full((2, 4, 4), -10.0)
    features[0, :, :2] = features[1, :2] = 10.0
    return features


def test_objects_at_the_size_of_the_file() -> None:
    found = Candidates(torch.eye(2), torch.tensor([1, 0]), torch.tensor([0.5, 0.8]))
    categories = torch.tensor([4, 7])
    instances = thing_instances(found, half_planes(), CANVAS, categories, KernelRules())
    assert instances.scores.tolist() == pytest.approx([0.8, 0.5], rel=1e-3)
    assert instances.labels.tolist() == [4, 7]
    assert instances.boxes_xyxy.tolist() == [[0, 0, 16, 8], [0, 0, 8, 16]]
    assert instances.masks is not None
    assert bool(instances.masks[1, :, :8].all())
    assert not bool(instances.masks[1, :, 8:].any())


def test_objects_that_are_dropped() -> None:
    found = Candidates(torch.eye(2), torch.tensor([0, 0]), torch.tensor([0.8, 0.04]))
    categories = torch.tensor([0])
    assert len(thing_instances(found, half_planes(), CANVAS, categories, KernelRules())) == 1
    rules = KernelRules(min_score=0.0, detections=1)
    assert len(thing_instances(found, half_planes(), CANVAS, categories, rules)) == 1
    nowhere = found._replace(kernels=torch.full((2, 2), 0.0))
    assert len(thing_instances(nowhere, half_planes(), CANVAS, categories, KernelRules(mask=0.6, min_score=0.0))) == 0
    none = found.some(torch.zeros(0, dtype=torch.int64))
    for rules in (KernelRules(), KernelRules(matrix_nms=True)):
        empty = thing_instances(none, half_planes(), CANVAS, categories, rules)
        assert empty.masks is not None
        assert empty.masks.shape == (0, 16, 16)


def test_matrix_nms_lowers_the_score_of_a_double() -> None:
    found = Candidates(torch.eye(2)[[0, 0, 1]], torch.tensor([0, 0, 0]), torch.tensor([0.9, 0.8, 0.3]))
    plain, lowered = (
        thing_instances(found, half_planes(), CANVAS, torch.tensor([0]), KernelRules(matrix_nms=on)).scores
        for on in (False, True)
    )
    assert plain.tolist() == pytest.approx([0.9, 0.8, 0.3], rel=1e-3)
    assert sorted(lowered.tolist())[-1] == pytest.approx(0.9, rel=1e-3)
    assert 0.8 * math.exp(-2) == pytest.approx(float(lowered.min()), rel=1e-2)


def test_the_map_of_stuff() -> None:
    found = Candidates(torch.eye(2), torch.tensor([0, 2]), torch.tensor([0.5, 0.5]))
    features = half_planes()
    features[1] += 1.0  # the second class is surer
    semantic = stuff_map(found, features, CANVAS, [IGNORE, 5, 6])
    assert bool((semantic[:6] == 6).all())
    assert bool((semantic[10:, :6] == IGNORE).all())  # class 0
    none = found.some(torch.zeros(0, dtype=torch.int64))
    assert bool((stuff_map(none, features, CANVAS, [IGNORE, 5, 6]) == IGNORE).all())
