"""Error classes on drawn cases, against the rules written a second time on sets of pixels, and against edited maps."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from drawing import CAT, DOG, GRASS, IS_THING, LABELS, SKY, coco_sample, match_drawing, match_maps, random_maps
from hypothesis import given, settings
from hypothesis import strategies as st

from pansight.errors import PansightError
from pansight.metrics.panoptic.errors import ERRORS, ErrorAnalysis, SegmentErrors, classify_errors, repaired_iou
from pansight.metrics.panoptic.matching import IGNORED, ImageMatch, SegmentTable, match_tables
from pansight.metrics.scores import ClassCounts, group_means, image_rows
from pansight.ops.maps.overlap import Overlaps
from pansight.types import LabelSpace

Found = tuple[dict[str, str], dict[str, str]]


def told(image: ImageMatch) -> Found:
    """Letter of a segment → its error, and its partner where there is one."""
    errors = classify_errors(image, IS_THING)
    truth, prediction = ["".join(map(chr, table.ids)) for table in (image.truth, image.prediction)]

    def words(own: str, other: str, codes, partners) -> dict[str, str]:
        rows = zip(own, codes.tolist(), partners.tolist())
        return {letter: " ".join([ERRORS[code], *([other[p]] if p >= 0 else [])]) for letter, code, p in rows}

    return (
        words(truth, prediction, errors.truth, errors.truth_partner),
        words(prediction, truth, errors.prediction, errors.prediction_partner),
    )


def test_a_match_is_found_and_the_rest_is_missed_and_phantom():
    image = match_drawing("aaaa..bb....", "AAA.......C.", b=DOG)
    assert told(image) == ({"a": "found A", "b": "missed"}, {"A": "found a", "C": "ignored"})
    image = match_drawing("aaaasssssss", "AAA....CC..", s=SKY)
    assert told(image) == ({"a": "found A", "s": "missed"}, {"A": "found a", "C": "phantom"})


def test_right_region_wrong_class():
    image = match_drawing("aaaabbbb", "AAA.BBBB", A=DOG)
    assert told(image) == ({"a": "wrong_class A", "b": "found B"}, {"A": "wrong_class a", "B": "found b"})
    errors = classify_errors(image, IS_THING)
    assert errors.truth_iou.tolist() == [0.75, 1.0] == errors.prediction_iou.tolist()


def test_half_is_not_the_right_region():
    """IoU exactly 0.5, of another class: nothing in common. Of the same class: a bad match."""
    assert told(match_drawing("aaaacc", "AA.ccc", A=DOG))[0]["a"] == "missed"
    assert told(match_drawing("aaaacc", "AA.ccc", A=DOG))[1]["A"] == "phantom"
    assert told(match_drawing("aaaacc", "AA.ccc"))[0]["a"] == "poor_boundary A"


def test_thing_taken_for_stuff_and_stuff_for_stuff():
    image = match_drawing("aassgg", "AASSGG", A=SKY, s=SKY, S=DOG, g=GRASS, G=SKY)
    errors = {"a": "thing_stuff_swap A", "s": "thing_stuff_swap S", "g": "wrong_class G"}
    assert told(image)[0] == errors
    assert told(image)[1] == {"A": "thing_stuff_swap a", "S": "thing_stuff_swap s", "G": "wrong_class g"}


def test_two_halves_are_a_split():
    """The partner of the truth is its best piece; of equal ones that with the lowest id."""
    image = match_drawing("aaaaaaaaaa", "AAAAABBBB.")
    assert told(image) == ({"a": "split A"}, {"A": "split a", "B": "split a"})
    assert told(match_drawing("aaaaaa", "BBBAAA"))[0] == {"a": "split A"}
    errors = classify_errors(image, IS_THING)
    assert errors.truth_iou.tolist() == [0.5]
    assert errors.prediction_iou.tolist() == [0.5, 0.4]
    assert repaired_iou(image, errors).tolist() == [0.9]


def test_many_crumbs_are_a_split():
    assert told(match_drawing("aaaaaaaaaa", "ABCDEF....")) == (
        {"a": "split A"},
        dict.fromkeys("ABCDEF", "split a"),
    )


def test_pieces_that_do_not_make_the_whole_are_no_split():
    """Joined IoU exactly 0.5: the largest is a bad match, the other a phantom."""
    assert told(match_drawing("aaaaaaaaaa", "AAABB.....")) == (
        {"a": "poor_boundary A"},
        {"A": "poor_boundary a", "B": "phantom"},
    )


def test_a_piece_of_another_class_is_no_piece():
    assert told(match_drawing("aaaaaaaaaa", "AAAAABBBBB", B=DOG)) == (
        {"a": "poor_boundary A"},
        {"A": "poor_boundary a", "B": "phantom"},
    )


def test_a_piece_that_lies_half_outside_is_no_piece():
    assert told(match_drawing("aaaaaaaaggg", "AAAA..BBBBG", g=GRASS, G=GRASS)) == (
        {"a": "poor_boundary A", "g": "poor_boundary G"},
        {"A": "poor_boundary a", "B": "phantom", "G": "poor_boundary g"},
    )


def test_a_second_prediction_on_a_found_segment_is_a_duplicate():
    assert told(match_drawing("aaaaaaaaaagg", "AAAAAAABBBBG", g=GRASS, G=GRASS)) == (
        {"a": "found A", "g": "poor_boundary G"},
        {"A": "found a", "B": "duplicate a", "G": "poor_boundary g"},
    )


def test_a_prediction_half_on_a_found_segment_is_a_phantom():
    found = told(match_drawing("aaaaaaaaaagg", "AAAAAAAABBBB", g=GRASS))[1]
    assert found == {"A": "found a", "B": "phantom"}


def test_a_duplicate_needs_the_class_of_the_found_segment():
    assert told(match_drawing("aaaaaaaaaa", "AAAAAAABBB", B=DOG))[1]["B"] == "phantom"


def test_one_prediction_over_two_segments_is_a_merger():
    image = match_drawing("aaaaabbbbggg", "AAAAAAAAAA..", g=GRASS)
    assert told(image) == (
        {"a": "merged A", "b": "merged A", "g": "missed"},
        {"A": "merged a"},
    )
    errors = classify_errors(image, IS_THING)
    assert repaired_iou(image, errors).tolist() == [1.0, 1.0, 1.0]
    assert repaired_iou(match_drawing("aaaaabbbbb", "AAAA.AAAAA"), errors).tolist()[:2] == [0.8, 1.0]


def test_a_blob_that_two_segments_do_not_explain_is_no_merger():
    """Joined IoU exactly 0.5."""
    assert told(match_drawing("aaabbggggg", "AAAAAAAAAA", g=GRASS)) == (
        {"a": "poor_boundary A", "b": "missed", "g": "missed"},
        {"A": "poor_boundary a"},
    )


def test_a_small_segment_inside_a_found_one_is_merged():
    assert told(match_drawing("aaaaaaaabb", "AAAAAAAAAA")) == ({"a": "found A", "b": "merged A"}, {"A": "found a"})


def test_a_segment_half_inside_a_found_one_is_missed():
    assert told(match_drawing("aaaaaaaabb", "AAAAAAAAA."))[0] == {"a": "found A", "b": "missed"}


def test_split_wins_over_merged_and_the_neighbour_is_merged():
    """A takes most of a and all of b; B takes the rest of a."""
    assert told(match_drawing("aaaaaaaaaabb", "BBBBAAAAAAAA")) == (
        {"a": "split A", "b": "merged A"},
        {"A": "split a", "B": "split a"},
    )


def test_mostly_on_a_found_segment_wins_over_a_bad_match():
    """C lies by more than half on the found a, and covers b, with which its IoU is 0.4."""
    assert told(match_drawing("aaaaaaaaaabb", "AAAAAAACCCCC")) == (
        {"a": "found A", "b": "merged C"},
        {"A": "found a", "C": "duplicate a"},
    )


def test_wrong_class_wins_over_a_bad_match():
    assert told(match_drawing("aaaaaaaaaa", "AAAAAABBBB", A=DOG)) == (
        {"a": "wrong_class A"},
        {"A": "wrong_class a", "B": "phantom"},
    )


def test_a_tenth_is_not_a_bad_match():
    assert told(match_drawing("aaaaaaaaaa", "A.........")) == ({"a": "missed"}, {"A": "phantom"})
    assert told(match_drawing("aaaaaaaaa", "A........")) == ({"a": "poor_boundary A"}, {"A": "poor_boundary a"})


def test_bad_matches_are_one_to_one_the_best_first():
    """b would take A as well, whose IoU with a is higher; it is left with B."""
    assert told(match_drawing("aaaaaabbbbbbbbb", "..AAAAAAA...BBB")) == (
        {"a": "poor_boundary A", "b": "poor_boundary B"},
        {"A": "poor_boundary a", "B": "poor_boundary b"},
    )


def test_equally_bad_matches_share():
    """Two pieces of the same size that do not make a split: nothing tells them apart."""
    assert told(match_drawing("aaaaaaaaaa", "AA......BB")) == (
        {"a": "poor_boundary A"},
        {"A": "poor_boundary a", "B": "poor_boundary a"},
    )


def test_void_is_left_out_of_areas():
    """A has 4 pixels on a, 3 on void: mostly on a, IoU 0.4; with B it makes a whole."""
    assert told(match_drawing("aaaaaaaaaa...", "BBBB..AAAAAAA")) == ({"a": "split A"}, {"A": "split a", "B": "split a"})


def test_crowds_and_ignored_predictions_take_no_part():
    image = match_drawing("....aaaabbbb", "AAAAAA..BBCC", crowds="b", A=DOG, C=DOG)
    assert told(image) == (
        {"a": "missed", "b": "crowd"},
        {"A": "ignored", "B": "ignored", "C": "phantom"},
    )


def test_nothing_on_either_side():
    assert told(match_drawing("....", "....")) == ({}, {})
    assert told(match_drawing("aaaa", "....")) == ({"a": "missed"}, {})
    assert told(match_drawing("....", "AAAA")) == ({}, {"A": "ignored"})


def test_inputs_stay_as_they_are():
    image = match_drawing("aaaaaaccbb", "AAABBBCCBB", C=DOG)
    before = [np.array(a, copy=True) for a in (*image.truth, *image.prediction, *image[2:])]
    ErrorAnalysis(LABELS).update(image)
    assert all(np.array_equal(a, b) for a, b in zip(before, (*image.truth, *image.prediction, *image[2:])))


def test_a_category_outside_the_label_space_is_named():
    with pytest.raises(PansightError, match=r"category: expected an index 0 … 2, found 3"):
        classify_errors(match_drawing("aab", "aab", a=GRASS), IS_THING[:3])


def test_areas_of_a_file_that_are_wrong_still_give_every_segment_one_error():
    """Trusting the area 1000 of a file, PQ misses what lies exactly on the prediction; here pixels are counted."""
    truth, prediction = match_drawing("aaaabbbb", "AAAABBBB")[:2]
    pairs = Overlaps(*(np.array(column) for column in ((97, 98), (65, 66), (4, 4))))
    image = match_tables(truth, prediction, pairs, stated=np.array([1000.0, 4.0]))
    errors = classify_errors(image, IS_THING)
    assert told(image) == (
        {"a": "poor_boundary A", "b": "found B"},
        {"A": "poor_boundary a", "B": "found b"},
    )
    assert errors.truth_iou.tolist() == [1.0, 1.0] == repaired_iou(image, errors).tolist()


def reference(truth, prediction, truth_class, prediction_class, crowds, image: ImageMatch) -> Found:
    """The table at the head of errors.py, read line by line on sets of pixels. Gives id → error."""
    pixels = [
        {i: set(np.flatnonzero(ids == i).tolist()) for i in np.unique(ids[ids > 0]).tolist()}
        for ids in (truth, prediction)
    ]
    void = set(np.flatnonzero(truth == 0).tolist())
    t_of = {i: s for i, s in pixels[0].items() if i not in crowds}
    ignored = set(image.prediction.ids[image.state == IGNORED].tolist())
    p_of = {i: s - void for i, s in pixels[1].items() if i not in ignored}
    matched = {int(i): int(image.prediction.ids[m]) for i, m in zip(image.truth.ids, image.match) if m >= 0}

    def iou(a, b):
        return len(a & b) / len(a | b)

    truth_error = {i: "crowd" for i in pixels[0] if i in crowds} | dict.fromkeys(matched, "found")
    found_error = dict.fromkeys(ignored, "ignored") | dict.fromkeys(matched.values(), "found")
    for t, p in itertools.product(t_of, p_of):
        if t not in truth_error and p not in found_error and iou(t_of[t], p_of[p]) > 0.5:
            kinds = IS_THING[truth_class[t]], IS_THING[prediction_class[p]]
            truth_error[t] = found_error[p] = "wrong_class" if kinds[0] == kinds[1] else "thing_stuff_swap"
    same = {(t, p) for t, p in itertools.product(t_of, p_of) if truth_class[t] == prediction_class[p]}
    on_truth = {(t, p) for t, p in same if 2 * len(t_of[t] & p_of[p]) > len(p_of[p])}
    on_found = {(t, p) for t, p in same if 2 * len(t_of[t] & p_of[p]) > len(t_of[t])}
    for t in sorted(t_of.keys() - truth_error.keys()):
        pieces = [p for p in p_of if (t, p) in on_truth and p not in found_error]
        if len(pieces) > 1 and iou(t_of[t], set().union(*(p_of[p] for p in pieces))) > 0.5:
            truth_error |= {t: "split"}
            found_error |= dict.fromkeys(pieces, "split")
    for t, p in on_truth:
        if truth_error.get(t) == "found" and p not in found_error:
            found_error[p] = "duplicate"
    for p in sorted(p_of.keys() - found_error.keys()):
        parts = [t for t in t_of if (t, p) in on_found and t not in truth_error]
        if len(parts) > 1 and iou(p_of[p], set().union(*(t_of[t] for t in parts))) > 0.5:
            found_error |= {p: "merged"}
            truth_error |= dict.fromkeys(parts, "merged")
    for t, p in on_found:
        if t not in truth_error and found_error.get(p) in ("found", "split", "duplicate"):
            truth_error[t] = "merged"
    bad = [(iou(t_of[t], p_of[p]), t, p) for t, p in same if t not in truth_error and p not in found_error]
    for value, group in itertools.groupby(sorted(bad, reverse=True), key=lambda row: row[0]):
        free = [(t, p) for _, t, p in group if t not in truth_error and p not in found_error]
        for t, p in free if value > 0.1 else ():
            truth_error[t] = found_error[p] = "poor_boundary"
    return (
        {i: truth_error.get(i, "missed") for i in pixels[0]},
        {i: found_error.get(i, "phantom") for i in pixels[1]},
    )


def names(table: SegmentTable, codes) -> dict[int, str]:
    return {number: ERRORS[code] for number, code in zip(table.ids.tolist(), codes.tolist())}


def test_equals_the_rules_on_sets_of_pixels():
    rng = np.random.default_rng(0)
    seen: dict[str, int] = {}
    for _ in range(800):
        maps = random_maps(rng)
        image = match_maps(*maps)
        errors = classify_errors(image, IS_THING)
        mine = names(image.truth, errors.truth), names(image.prediction, errors.prediction)
        assert mine == reference(*maps, image)
        for name in (*mine[0].values(), *mine[1].values()):
            seen[name] = seen.get(name, 0) + 1
    assert set(seen) == set(ERRORS)
    assert min(seen.values()) >= 15, seen  # the case means something


def permuted(table: SegmentTable, order: np.ndarray, new_id: dict[int, int]) -> SegmentTable:
    shuffled = SegmentTable(*(column[order] for column in table))
    return shuffled._replace(ids=np.array([new_id[i] for i in shuffled.ids.tolist()], np.int64))


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_every_segment_gets_one_error_whatever_its_id_and_row(seed):
    rng = np.random.default_rng(seed)
    truth, prediction, truth_class, prediction_class, crowds = random_maps(rng, 9)
    image = match_maps(truth, prediction, truth_class, prediction_class, crowds)
    errors = classify_errors(image, IS_THING)
    found, missed, phantom = (ERRORS.index(name) for name in ("found", "missed", "phantom"))
    crowd, ignored, duplicate = (ERRORS.index(name) for name in ("crowd", "ignored", "duplicate"))
    assert ((errors.truth == found) == (image.match >= 0)).all()
    assert ((errors.truth == crowd) == image.truth.crowd).all()
    assert ((errors.prediction == ignored) == (image.state == IGNORED)).all()
    assert int(image.missed.sum()) == int((~np.isin(errors.truth, (found, crowd))).sum())
    assert not np.isin(errors.truth, (phantom, ignored, duplicate)).any()
    assert not np.isin(errors.prediction, (missed, crowd)).any()
    assert ((errors.truth_partner < 0) == np.isin(errors.truth, (missed, crowd))).all()
    assert ((errors.prediction_partner < 0) == np.isin(errors.prediction, (phantom, ignored))).all()
    after = repaired_iou(image, errors)
    assert ((after > 0.5) != image.truth.crowd).all()
    assert (after <= 1).all()

    numbers = sorted({*truth_class, *prediction_class})
    new_id = dict(zip(numbers, (rng.choice(2**24 - 1, len(numbers), replace=False) + 1).tolist()))
    lookup = np.vectorize(lambda i: new_id.get(i, 0), otypes=[np.int32])
    classes = [
        {new_id[i]: c for i, c in rng.permutation(list(side.items())).tolist()} if side else {}
        for side in (truth_class, prediction_class)
    ]
    other = match_maps(lookup(truth), lookup(prediction), *classes, {new_id[i] for i in crowds})
    again = classify_errors(other, IS_THING)
    for side, values in (("truth", errors.truth), ("prediction", errors.prediction)):
        before = names(getattr(image, side), values)
        assert {new_id[i]: e for i, e in before.items()} == names(getattr(other, side), getattr(again, side))
    ious = [dict(zip((new_id[i] for i in image.truth.ids.tolist()), errors.truth_iou.tolist()))]
    assert ious == [dict(zip(other.truth.ids.tolist(), again.truth_iou.tolist()))]


def quality(pairs: list[tuple]) -> dict[str, float]:
    """PQ of All, Things and Stuff, of (truth ids, predicted ids, classes, classes, crowds)."""
    counts = ClassCounts(LABELS)
    for pair in pairs:
        counts.add_rows(image_rows(match_maps(*pair), len(LABELS)))
    means = group_means(counts.rows().values())
    return {
        "pq_gain": means["All"]["pq"],
        "pq_gain_things": means["Things"]["pq"],
        "pq_gain_stuff": means["Stuff"]["pq"],
    }


def edited(maps: tuple, image: ImageMatch, errors: SegmentErrors, name: str) -> tuple:
    """The pair with one error class really repaired on the map."""
    truth, prediction, truth_class, prediction_class, crowds = maps
    ids, classes = prediction.copy(), dict(prediction_class)
    concerned = np.flatnonzero(errors.prediction == ERRORS.index("found" if name == "outline" else name))
    rows = np.flatnonzero(errors.truth == ERRORS.index("found" if name == "outline" else name))
    fresh = iter(range(2**24, 2**25))  # beyond all ids
    if name in ("wrong_class", "thing_stuff_swap"):
        for p in concerned:
            classes[int(image.prediction.ids[p])] = int(image.truth.categories[errors.prediction_partner[p]])
        return truth, ids, truth_class, classes, crowds
    if name == "split":
        for p in concerned:
            best = errors.truth_partner[errors.prediction_partner[p]]
            ids[ids == image.prediction.ids[p]] = image.prediction.ids[best]
        return truth, ids, truth_class, classes, crowds
    drawn = {}
    for t in rows:
        inside = truth == image.truth.ids[t]
        if name == "merged":
            inside &= prediction == image.prediction.ids[errors.truth_partner[t]]
        drawn[next(fresh)] = inside, int(image.truth.categories[t])
    for p in concerned:
        ids[prediction == image.prediction.ids[p]] = 0
    for number, (inside, category) in drawn.items():
        ids[inside] = number
        classes[number] = category
    return truth, ids, truth_class, classes, crowds


EXACT = ("wrong_class", "thing_stuff_swap", "split", "duplicate", "phantom")
"""Their repairs touch nothing else. The others cover pixels of other predictions, which may gain by it."""


@pytest.mark.parametrize("seed", range(4))
def test_gains_are_those_of_edited_maps(seed):
    rng = np.random.default_rng(seed)
    pairs = [random_maps(rng) for _ in range(120)]
    images = [match_maps(*pair) for pair in pairs]
    analysis = ErrorAnalysis(LABELS)
    errors = [analysis.update(image) for image in images]
    result = analysis.compute()
    plain = quality(pairs)
    for name in (*EXACT, "merged", "missed", "poor_boundary", "outline"):
        repaired = quality([edited(*each, name) for each in zip(pairs, images, errors)])
        for group, before in plain.items():
            gain = result["errors"][name][group]
            assert gain >= 0
            real = repaired[group] - before
            assert gain <= real + 1e-12, (name, group)
            if name in EXACT:
                assert gain == pytest.approx(real, abs=1e-12), (name, group)
        assert result["errors"][name]["pq_gain"] > 0
    assert result["all_repaired_pq"] == 1.0
    assert quality([(truth, truth, a, a, crowds) for truth, _, a, _, crowds in pairs])["pq_gain"] == 1.0


def test_merged_gain_equals_the_edit_where_no_other_prediction_is_cut():
    maps = [np.array([[1] * 5 + [2] * 5]), np.array([[3] * 10]), {1: CAT, 2: CAT}, {3: CAT}, set()]
    image = match_maps(*maps)
    analysis = ErrorAnalysis(LABELS)
    errors = analysis.update(image)
    assert analysis.compute()["errors"]["merged"] == {
        "truth": 2, "prediction": 1, "pq_gain": 1.0, "pq_gain_things": 1.0, "pq_gain_stuff": 0.0,
    }  # fmt: skip
    assert quality([edited(maps, image, errors, "merged")])["pq_gain"] == 1.0


def test_real_maps(data_root):
    """The truth itself is perfect; a coarse, shifted copy with some classes wrong makes errors of many kinds."""
    labels, images = coco_sample(data_root)
    is_thing = np.array([c.is_thing for c in labels])
    perfect, coarse = ErrorAnalysis(labels), ErrorAnalysis(labels)
    for ids, classes, crowds in images:
        perfect.update(match_maps(ids, ids, classes, classes, crowds))
        height, width = ids.shape
        blocks = ids[::16, ::16].repeat(16, axis=0).repeat(16, axis=1)[:height, :width]
        wrong = {i: c if i % 5 else (c + 40) % len(labels) for i, c in classes.items()}
        image = match_maps(ids, np.roll(blocks, 9, axis=1), classes, wrong, crowds)
        errors = coarse.update(image, classify_errors(image, is_thing))
        assert int(image.missed.sum()) == sum(ERRORS[e] not in ("found", "crowd") for e in errors.truth)
    assert len(images) == 2
    assert perfect.compute()["all_repaired_pq"] == 1.0
    assert {row["pq_gain"] for row in perfect.compute()["errors"].values()} == {0.0}
    assert [row for row in perfect.compute()["confusion"] if row[0] != row[1]] == []
    result = coarse.compute()
    assert result["all_repaired_pq"] == 1.0
    assert sum(row["pq_gain"] > 0 for row in result["errors"].values()) >= 5


def test_figures_of_a_drawn_case():
    """cats: a found with IoU 3/4, b missed; dog d taken for sky; a phantom of grass, which the truth lacks."""
    analysis = ErrorAnalysis(LABELS)
    analysis.update(match_drawing("aaaabbbbdddd", "AAA.GG..DDDD", d=DOG, D=SKY, G=GRASS))
    result = analysis.compute()
    # PQ: cat 0.75 / 1.5, dog 0, sky 0, grass 0
    before = 0.5 / 4
    assert result["errors"]["outline"]["pq_gain"] == pytest.approx(1 / 1.5 / 4 - before)
    assert result["errors"]["missed"]["pq_gain"] == pytest.approx(1.75 / 2 / 4 - before)
    assert result["errors"]["phantom"]["pq_gain"] == pytest.approx(0.5 / 3 - before)
    assert result["errors"]["thing_stuff_swap"]["pq_gain"] == pytest.approx(1.5 / 3 - before)  # sky goes, too
    assert result["errors"]["thing_stuff_swap"]["pq_gain_things"] == pytest.approx(0.5)
    assert result["errors"]["split"] == {
        "truth": 0, "prediction": 0, "pq_gain": 0.0, "pq_gain_things": 0.0, "pq_gain_stuff": 0.0,
    }  # fmt: skip
    assert (result["errors"]["found"]["truth"], result["errors"]["phantom"]["prediction"]) == (1, 1)
    assert result["confusion"] == [[17, 17, 1], [17, None, 1], [18, 187, 1], [None, 193, 1]]
    assert list(result["errors"]) == [*ERRORS, "outline"]


def test_a_perfect_prediction_gains_nothing():
    analysis = ErrorAnalysis(LABELS)
    analysis.update(match_drawing("aabbgg..", "aabbgg..", g=GRASS))
    result = analysis.compute()
    assert {row["pq_gain"] for row in result["errors"].values()} == {0.0}
    assert result["all_repaired_pq"] == 1.0


def test_without_truth_there_is_no_perfect_prediction():
    analysis = ErrorAnalysis(LABELS)
    assert analysis.compute() == {}
    analysis.update(match_drawing("aaaa....", "AAAABBBB", crowds="a", A=DOG))
    result = analysis.compute()
    assert result["all_repaired_pq"] is None
    assert {row["pq_gain"] for row in result["errors"].values()} == {0.0}
    assert result["confusion"] == [[None, 18, 1]]


def test_shards_merge_to_the_whole_through_json():
    rng = np.random.default_rng(5)
    images = [match_maps(*random_maps(rng)) for _ in range(60)]
    whole = ErrorAnalysis(LABELS)
    shards = [ErrorAnalysis(LABELS) for _ in range(3)]
    for number, image in enumerate(images):
        whole.update(image, classify_errors(image, IS_THING))
        shards[number % 3].update(image)
    merged = ErrorAnalysis(LABELS)
    for shard in reversed(shards):
        read = ErrorAnalysis(LABELS)
        read.load_state_dict(json.loads(json.dumps(shard.state_dict())))
        merged.merge(read)
    assert merged.state_dict() == whole.state_dict()
    assert merged.compute() == whole.compute()
    assert json.loads(json.dumps(whole.compute(), allow_nan=False)) == whole.compute()


def test_other_label_spaces_are_refused():
    analysis, other = ErrorAnalysis(LABELS), ErrorAnalysis(LabelSpace.from_names(["cat"]))
    with pytest.raises(PansightError, match="same label space"):
        analysis.merge(other)
    with pytest.raises(PansightError, match="expected 4 classes, found 1"):
        analysis.load_state_dict(other.state_dict())
