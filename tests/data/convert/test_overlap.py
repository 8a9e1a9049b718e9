"""Who owns a pixel: each policy on a drawn case with exact counts, and against pixel-by-pixel rules."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pansight.data.convert.overlap import OVER_CROWD, OVER_MAP, POLICIES, Decision, Vanished, resolve
from pansight.data.convert.source import Annotated, Region
from pansight.errors import PansightError
from pansight.types import LabelSpace

CAR, DOG, SKY, ROAD = range(4)
LABELS = LabelSpace.from_names(["car", "dog"], ["sky", "road"])


def box(top, left, height, width, category, crowd=False, score=1.0) -> Region:
    return Region(np.ones((height, width), bool), top, left, category, crowd, score)


def drawn(*regions, ids=None, segments=None, empty=()) -> Annotated:
    return Annotated(1, "a.jpg", None, (4, 6), regions, ids, segments or {}, empty)


LARGE, SMALL = box(0, 0, 3, 4, CAR, score=0.9), box(1, 2, 2, 3, DOG, score=0.5)
"""12 and 6 pixels, 4 of them shared."""


@pytest.mark.parametrize(
    ("policy", "order", "winner", "loser"),
    [
        ("smaller-on-top", (SMALL, LARGE), DOG, CAR),
        ("larger-on-top", (LARGE, SMALL), CAR, DOG),
        ("later-on-top", (LARGE, SMALL), DOG, CAR),
        ("later-on-top", (SMALL, LARGE), CAR, DOG),
        ("score", (LARGE, SMALL), CAR, DOG),
    ],
)
def test_each_policy_on_two_boxes(policy, order, winner, loser):
    result = resolve(drawn(*order), LABELS, policy)
    assert result.decisions == {Decision(policy, winner, loser): 4}
    number = {segment.category: segment.id for segment in result.segments}
    want = np.zeros((4, 6), np.int32)
    for category in (loser, winner):
        rows, columns = (slice(0, 3), slice(0, 4)) if category == CAR else (slice(1, 3), slice(2, 5))
        want[rows, columns] = number[category]
    assert np.array_equal(result.ids, want)
    assert [segment.category for segment in result.segments] == [region.category for region in order]
    assert (result.void, result.filled, result.vanished) == (24 - 14, 0, ())


def test_equals_are_decided_by_order():
    first, second = box(0, 0, 2, 3, CAR), box(0, 1, 2, 3, DOG)
    for policy in ("smaller-on-top", "larger-on-top", "score"):
        assert resolve(drawn(first, second), LABELS, policy).decisions == {Decision(policy, DOG, CAR): 4}


def test_error_names_image_classes_and_pixels_and_lets_touching_regions_pass():
    with pytest.raises(PansightError, match=r"a\.jpg: expected no overlaps .*found 4 pixels of both dog and car"):
        resolve(drawn(LARGE, SMALL), LABELS, "error")
    assert not resolve(drawn(box(0, 0, 2, 3, CAR), box(0, 3, 2, 3, DOG)), LABELS, "error").decisions
    assert resolve(drawn(box(0, 0, 2, 3, SKY), box(1, 1, 2, 3, SKY)), LABELS, "error").segments[0].category == SKY


@pytest.mark.parametrize("policy", POLICIES)
def test_crowds_lie_under_everything(policy):
    crowd = box(0, 0, 1, 1, CAR, crowd=True, score=1.0)
    for regions in ((crowd, LARGE), (LARGE, crowd)):
        result = resolve(drawn(*regions), LABELS, policy)
        assert result.decisions == {Decision(OVER_CROWD, CAR, CAR): 1}
        assert result.vanished == (Vanished(CAR, 1, True),)
        assert [segment.is_crowd for segment in result.segments] == [False]
    # two crowds are alike: the policy decides
    if policy != "error":
        other = box(0, 0, 2, 2, DOG, crowd=True)
        assert [d.rule for d in resolve(drawn(crowd, other), LABELS, policy).decisions] == [policy]


def test_stuff_is_one_segment_and_never_a_crowd():
    result = resolve(drawn(box(0, 0, 1, 6, SKY), box(2, 0, 1, 3, SKY, crowd=True), box(0, 0, 4, 1, CAR)), LABELS)
    assert [(s.category, s.is_crowd) for s in result.segments] == [(SKY, False), (CAR, False)]
    assert np.array_equal(result.ids[0], [2, 1, 1, 1, 1, 1])
    assert np.array_equal(result.ids[2], [1, 1, 1, 0, 0, 0])  # 3 pixels over 4
    assert result.decisions == {Decision("smaller-on-top", CAR, SKY): 1, Decision("smaller-on-top", SKY, CAR): 1}


def test_the_sources_map_keeps_its_ids_and_lies_under_all():
    ids = np.zeros((4, 6), np.int32)
    ids[0], ids[1], ids[2], ids[3, :2] = 7, 9, 7001, 1
    segments = {7: (SKY, False), 9: (SKY, False), 7001: (CAR, False), 1: (DOG, True)}
    before = ids.copy()
    result = resolve(drawn(box(0, 0, 2, 2, CAR), box(3, 5, 1, 1, SKY), ids=ids, segments=segments), LABELS)
    assert np.array_equal(ids, before)  # the input is untouched
    want = np.array([[2, 2, 7, 7, 7, 7], [2, 2, 7, 7, 7, 7], [7001] * 6, [1, 1, 0, 0, 0, 7]])
    assert np.array_equal(result.ids, want)
    assert [(s.id, s.category, s.is_crowd) for s in result.segments] == [
        (7, SKY, False),
        (7001, CAR, False),
        (1, DOG, True),
        (2, CAR, False),
    ]
    assert result.decisions == {Decision(OVER_MAP, CAR, SKY): 4}


def test_a_map_is_checked():
    ids = np.full((4, 6), 5, np.int32)
    with pytest.raises(PansightError, match=r"a\.jpg: expected only listed ids in the map, found 5"):
        resolve(drawn(ids=ids), LABELS)
    with pytest.raises(PansightError, match="expected a map of 4×6, found 3×6"):
        resolve(drawn(ids=ids[:3], segments={5: (CAR, False)}), LABELS)
    with pytest.raises(PansightError, match="expected it inside the image"):
        resolve(drawn(box(3, 0, 2, 2, CAR)), LABELS)
    with pytest.raises(PansightError, match="unknown overlap policy 'best'; known: error, larger-on-top"):
        resolve(drawn(), LABELS, "best")


def test_what_vanishes_is_told():
    ids = np.zeros((4, 6), np.int32)
    ids[0, 0] = 3
    result = resolve(
        drawn(
            box(0, 0, 2, 2, CAR),
            box(0, 0, 4, 6, DOG),
            box(1, 1, 1, 1, SKY),
            ids=ids,
            segments={3: (ROAD, False), 4: (CAR, False)},
            empty=(DOG,),
        ),
        LABELS,
        "larger-on-top",
    )
    assert result.vanished == (
        Vanished(ROAD, 1),
        Vanished(CAR, 0),  # listed, not in the map
        Vanished(CAR, 4),
        Vanished(SKY, 1),
        Vanished(DOG, 0),
    )
    assert [s.category for s in result.segments] == [DOG]


def test_fill_takes_what_nobody_owns():
    regions = box(0, 0, 2, 6, CAR), box(2, 0, 1, 1, ROAD)
    result = resolve(drawn(*regions), LABELS, fill=SKY)
    assert (result.void, result.filled, len(result.segments)) == (0, 11, 3)
    result = resolve(drawn(*regions), LABELS, fill=ROAD)  # known already: one segment
    assert (result.void, result.filled, len(result.segments)) == (0, 11, 2)
    assert np.array_equal(np.unique(result.ids[2:]), [2])
    assert resolve(drawn(box(0, 0, 4, 6, CAR)), LABELS, fill=SKY).filled == 0


@st.composite
def images(draw):
    """6×6, up to 6 regions of random shape over a random map; some areas are equal, some scores too."""
    seed = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    regions = []
    for _ in range(draw(st.integers(0, 6))):
        height, width = (int(n) for n in seed.integers(1, 7, 2))
        mask = seed.random((height, width)) < 0.7
        mask.flat[0] = True
        top, left = int(seed.integers(0, 7 - height)), int(seed.integers(0, 7 - width))
        score = float(seed.integers(1, 4)) / 4
        regions.append(Region(mask, top, left, int(seed.integers(0, 4)), bool(seed.random() < 0.2), score))
    if draw(st.booleans()):
        return Annotated(1, "a.jpg", None, (6, 6), tuple(regions))
    ids = seed.choice(np.array([0, 3, 5, 1000], np.int32), (6, 6))
    segments = {3: (CAR, bool(seed.random() < 0.5)), 5: (SKY, False), 1000: (int(seed.integers(0, 4)), False)}
    return Annotated(1, "a.jpg", None, (6, 6), tuple(regions), ids, segments)


def slowly(image: Annotated, policy: str) -> tuple[list[list[tuple]], Counter]:
    """The rules, pixel by pixel: (owner of each pixel, pixels of each decision)."""
    key = {
        "smaller-on-top": lambda r: -r.mask.sum(),
        "larger-on-top": lambda r: r.mask.sum(),
        "later-on-top": lambda r: 0,
        "score": lambda r: r.score,
    }[policy]
    decisions: Counter = Counter()
    owners = []
    for y in range(6):
        owners.append([])
        for x in range(6):
            claims = []  # (height, owner, kind)
            number = 0 if image.ids is None else int(image.ids[y, x])
            if number:
                category, crowd = image.segments[number]
                owner = ("map", number) if LABELS[category].is_thing else ("stuff", category)
                claims.append(((-1, 0, 0), owner, "map", category, crowd))
            for n, region in enumerate(image.regions):
                j, i = y - region.top, x - region.left
                if 0 <= j < region.mask.shape[0] and 0 <= i < region.mask.shape[1] and region.mask[j, i]:
                    thing = LABELS[region.category].is_thing
                    crowd = region.is_crowd and thing
                    owner = ("region", n) if thing else ("stuff", region.category)
                    claims.append(((not crowd, key(region), n), owner, "region", region.category, crowd))
            claims.sort(key=lambda claim: claim[0])
            for under, over in pairwise(claims):
                if under[1] == over[1]:
                    continue
                in_map = under[2] == "map" or under[1] in stuff_of_map(image)
                rule = OVER_MAP if in_map else OVER_CROWD if under[4] and not over[4] else policy
                decisions[Decision(rule, over[3], under[3])] += 1
            owners[-1].append(claims[-1][1] if claims else None)
    return owners, decisions


def stuff_of_map(image: Annotated) -> set:
    return {("stuff", category) for category, _ in image.segments.values() if not LABELS[category].is_thing}


@settings(max_examples=150, deadline=None)
@given(images(), st.sampled_from(["smaller-on-top", "larger-on-top", "later-on-top", "score"]))
def test_equal_to_the_rules_pixel_by_pixel(image, policy):
    result = resolve(image, LABELS, policy)
    owners, decisions = slowly(image, policy)
    assert result.decisions == decisions
    flat = [owner for row in owners for owner in row]
    pairs = set(zip(result.ids.reshape(-1).tolist(), flat))
    assert len(pairs) == len({number for number, _ in pairs}) == len({owner for _, owner in pairs})
    assert result.void == flat.count(None) == int((result.ids == 0).sum())
    assert {s.id for s in result.segments} == set(np.unique(result.ids).tolist()) - {0}
    claimed = {("region", n): r for n, r in enumerate(image.regions) if LABELS[r.category].is_thing}
    gone = [owner for owner in claimed if owner not in flat]
    told = [v for v in result.vanished if v.pixels and LABELS[v.category].is_thing]
    in_map = {n for n in image.segments if LABELS[image.segments[n][0]].is_thing}
    lost = [n for n in in_map if image.ids is not None and (image.ids == n).any() and ("map", n) not in flat]
    assert len(told) == len(gone) + len(lost)
