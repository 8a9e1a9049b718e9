"""Where tiles lie, which of their segments are one, and the table of the whole image: drawn cases and a plain twin."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from pansight.ops.tiling.stitching import (
    Pieces,
    Span,
    group_roots,
    merge_pieces,
    one_to_one,
    pairs_of_maps,
    pairs_of_masks,
    tile_spans,
)


def drawn(*rows: str) -> np.ndarray:
    """An id map from its rows: a digit is an id, a dot is void."""
    return np.array([[0 if letter == "." else int(letter) for letter in row] for row in rows], np.int32)


def test_tiles_share_strips_that_are_halved() -> None:
    assert tile_spans(10, 4, 2) == [Span(0, 4, 0, 3), Span(2, 6, 3, 5), Span(4, 8, 5, 7), Span(6, 10, 7, 10)]
    assert tile_spans(4, 4, 2) == [Span(0, 4, 0, 4)]
    assert tile_spans(3, 4, 2) == [Span(0, 3, 0, 3)]
    assert tile_spans(5, 4, 0) == [Span(0, 4, 0, 2), Span(1, 5, 2, 5)]  # the last one is moved inside


def test_aligned_tiles_begin_at_multiples() -> None:
    """The last tile is up to align − 1 pixels shorter, instead of beginning between two multiples."""
    spans = tile_spans(21, 8, 2, 4)
    assert spans[:3] == [Span(0, 8, 0, 6), Span(4, 12, 6, 10), Span(8, 16, 10, 14)]
    assert spans[3:] == [Span(12, 20, 14, 18), Span(16, 21, 18, 21)]


@pytest.mark.parametrize("length", [1, 31, 64, 65, 200, 333])
@pytest.mark.parametrize(("side", "overlap", "align"), [(64, 0, 1), (64, 16, 1), (64, 32, 32), (64, 31, 8)])
def test_every_pixel_is_decided_once_by_a_tile_that_sees_it(length: int, side: int, overlap: int, align: int) -> None:
    spans = tile_spans(length, side, overlap, align)
    assert [pixel for span in spans for pixel in range(span.own_start, span.own_stop)] == list(range(length))
    for span in spans:
        assert span.start <= span.own_start < span.own_stop <= span.stop
        assert span.start % align == 0
        assert side - align < span.stop - span.start <= side or len(spans) == 1
    for left, right in pairwise(spans):
        assert left.stop - right.start >= overlap
        assert left.own_stop == (left.stop + right.start) // 2


@pytest.mark.parametrize(("side", "overlap", "align"), [(8, 8, 1), (8, -1, 1), (8, 1, 8), (8, 0, 0)])
def test_impossible_tiles_are_refused(side: int, overlap: int, align: int) -> None:
    with pytest.raises(ValueError, match="overlap"):
        tile_spans(20, side, overlap, align)


FIRST = drawn("11..22", "11..22", "33....")
SECOND = drawn("55.666", "55..66", "556...")
"""1 and 5: 4 pixels in common of 6. 2 and 6: 4 of 6. 3 and 5: 2 of 6."""


def test_iou_in_the_strip() -> None:
    pairs = pairs_of_maps(FIRST, SECOND)
    assert list(zip(pairs.first.tolist(), pairs.second.tolist())) == [(1, 5), (2, 6), (3, 5)]
    assert pairs.iou.tolist() == [4 / 6, 4 / 6, 2 / 6]
    masks = [np.stack([ids == number for number in numbers]) for ids, numbers in ((FIRST, (1, 2, 3)), (SECOND, (5, 6)))]
    same = pairs_of_masks(*masks)
    assert list(zip(same.first.tolist(), same.second.tolist())) == [(1, 1), (2, 2), (3, 1)]
    assert same.iou.tolist() == pairs.iou.tolist()


def test_each_segment_has_one_partner_the_best() -> None:
    pairs = pairs_of_maps(FIRST, SECOND)
    assert one_to_one(pairs, 0.1).tolist() == [[1, 5], [2, 6]]  # 3 meets 5, which 1 has taken
    assert one_to_one(pairs, 4 / 6).tolist() == [[1, 5], [2, 6]]
    assert one_to_one(pairs, 0.7).tolist() == []
    assert one_to_one(pairs_of_maps(FIRST * 0, SECOND), 0.1).shape == (0, 2)


def test_masks_that_overlap_have_their_own_areas() -> None:
    first = np.array([[[1, 1, 0, 0]], [[1, 1, 1, 1]]], bool)
    second = np.array([[[1, 1, 1, 0]]], bool)
    pairs = pairs_of_masks(first, second)
    assert pairs.iou.tolist() == [2 / 3, 3 / 4]
    assert one_to_one(pairs, 0.5).tolist() == [[2, 1]]
    assert pairs_of_masks(first[:0], second).iou.shape == (0,)


def test_groups() -> None:
    assert group_roots(6, [(3, 1), (5, 3), (2, 4)]).tolist() == [0, 1, 2, 1, 2, 1]
    assert group_roots(3, []).tolist() == [0, 1, 2]
    assert group_roots(0, []).tolist() == []


def pieces(*rows: tuple[int, float, int, tuple[int, int, int, int]]) -> Pieces:
    category, score, area, boxes = zip(*rows)
    return Pieces(np.array(category), np.array(score, float), np.array(area), np.array(boxes))


def test_the_table_of_the_whole_image() -> None:
    """Class 0 is a thing, class 1 stuff: the two pieces of stuff are one without a link."""
    table = pieces(
        (1, 0.5, 10, (0, 0, 5, 2)),
        (0, 0.8, 6, (2, 0, 4, 3)),
        (0, 0.9, 0, (0, 0, 0, 0)),  # lies where another tile decides
        (1, 1.0, 30, (5, 1, 9, 9)),
        (0, 0.2, 2, (4, 1, 5, 3)),
        (0, 0.6, 4, (8, 8, 9, 9)),
    )
    ids, whole = merge_pieces(table, np.array([[2, 5]]), np.array([False, True]))
    assert ids.tolist() == [0, 1, 2, 0, 1, 2, 3]
    assert ids.dtype == np.uint32
    assert whole.category.tolist() == [1, 0, 0]
    assert whole.area.tolist() == [40, 8, 4]
    assert whole.score.tolist() == pytest.approx([(10 * 0.5 + 30) / 40, (6 * 0.8 + 2 * 0.2) / 8, 0.6])
    assert whole.boxes_xyxy.tolist() == [[0, 0, 9, 9], [2, 0, 5, 3], [8, 8, 9, 9]]


def test_nothing_found() -> None:
    ids, whole = merge_pieces(Pieces.none(), np.zeros((0, 2), np.int64), np.array([False]))
    assert ids.tolist() == [0]
    assert whole.area.shape == (0,)


# --- a plain twin ----------------------------------------------------------------------------------------------------


def plain_stitched(maps: dict[tuple[int, int], np.ndarray], ys: list[Span], xs: list[Span], threshold: float):
    """The rule pixel by pixel with sets: (tile, id) → number of its object, of things alone."""
    places = {
        (tile, number): {(ys[tile[0]].start + y, xs[tile[1]].start + x) for y, x in zip(*np.nonzero(ids == number))}
        for tile, ids in maps.items()
        for number in np.unique(ids[ids > 0]).tolist()
    }
    groups = {key: {key} for key in places}
    for (row, column), _ in maps.items():
        for other in ((row, column + 1), (row + 1, column)):
            if other not in maps:
                continue
            y0, x0 = ys[other[0]].start, xs[other[1]].start
            y1, x1 = ys[row].stop, xs[column].stop
            strip = {(y, x) for y in range(y0, y1) for x in range(x0, x1)}
            found = []
            for a in [key for key in places if key[0] == (row, column)]:
                for b in [key for key in places if key[0] == other]:
                    first, second = places[a] & strip, places[b] & strip
                    if first & second:
                        found.append((-len(first & second) / len(first | second), a, b))
            taken = set()
            for iou, a, b in sorted(found):
                if -iou >= threshold and a not in taken and b not in taken:
                    taken |= {a, b}
                    joined = groups[a] | groups[b]
                    for key in joined:
                        groups[key] = joined
    return {key: min(group) for key, group in groups.items()}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("threshold", [0.1, 0.5])
def test_links_are_those_of_the_plain_rule(seed: int, threshold: float) -> None:
    rng = np.random.default_rng(seed)
    ys, xs = tile_spans(13, 6, 2), tile_spans(16, 6, 3)
    maps = {
        (row, column): np.repeat(np.repeat(rng.integers(0, 4, (3, 3)), 2, 0), 2, 1).astype(np.int32)
        for row in range(len(ys))
        for column in range(len(xs))
    }
    numbers = {key: 4 * n for n, key in enumerate(maps)}  # ids 1 … 3 of each tile, and none for void
    links: list[tuple[int, int]] = []
    for (row, column), ids in maps.items():
        for other in ((row, column + 1), (row + 1, column)):
            if other in maps:
                top, left = ys[other[0]].start - ys[row].start, xs[other[1]].start - xs[column].start
                height, width = 6 - top, 6 - left
                pairs = pairs_of_maps(ids[top:, left:], maps[other][:height, :width])
                links += [
                    (a + numbers[row, column], b + numbers[other]) for a, b in one_to_one(pairs, threshold).tolist()
                ]
    roots = group_roots(4 * len(maps), links)
    expected = plain_stitched(maps, ys, xs, threshold)
    assert len(links) > 10
    for (tile, number), (first_tile, first) in expected.items():
        assert roots[numbers[tile] + number] == roots[numbers[first_tile] + first]
    assert len({roots[numbers[t] + n] for t, n in expected}) == len(set(expected.values()))
