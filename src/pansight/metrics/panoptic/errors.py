"""Error analysis of panoptic quality: one kind of error for every segment, and the PQ that repairing each kind would
gain.


The definitions are our own, on top of the matching of `matching`. Truth t and prediction p share I pixels; |t| and |p|
are their areas, |p| without its pixels on void of the truth, so that IoU = I / (|t| + |p| − I) is the IoU of PQ.
*Mostly on* means: more than half of it. Crowds of the truth and predictions that PQ ignores take no part.

Every other segment is of the first class of this list that holds; the stronger relation wins: a match (IoU > 0.5),
then "mostly on", then a bad match (IoU > 0.1).

| class | truth t | prediction p |
|---|---|---|
| found | is matched by PQ | is matched by PQ |
| wrong_class | has IoU > 0.5 with a p of another class of its kind (thing, stuff) | the same, seen from p |
| thing_stuff_swap | has IoU > 0.5 with a p of the other kind | the same, seen from p |
| split | carries two or more p of its class, each mostly on t, which joined would match | is one of these p |
| duplicate | – | is mostly on a found t of its class |
| merged | is one of two or more t of the class of p, each mostly on p, which joined p would match; | is this p |
|  | or is mostly on a p of its class that stands for another t (found, split, duplicate) | – |
| poor_boundary | has 0.1 < IoU ≤ 0.5 with a p of its class; one to one, the highest first | the same, seen from p |
| missed, phantom | is missed: all that is left | is a phantom: all that is left |

Pairs of poor_boundary with exactly equal IoU that meet in one segment are taken together: no order decides.

Which of these meet? Two segments with IoU > 0.5 lie mostly on each other, so neither lies mostly on a third:
wrong_class excludes split, duplicate and merged. A p mostly on a found t holds no majority of other truth: duplicate
excludes split and merged. Only split and merged can claim the same pair (p takes most of t and a neighbour, another p
the rest of t): split wins, and the neighbour is merged. Debris beside a bad match makes neither a split nor a merger,
since the parts together must explain the whole; it stays a phantom, or missed.

Repairs, for the PQ gained (`ErrorAnalysis`); what is not named keeps its score:

| class | repair |
|---|---|
| wrong_class, thing_stuff_swap | p gets the class of t: a match of their IoU |
| split | the p are joined: a match of the joint IoU |
| merged | p is cut along the truth: a match of I / (area of t) for each t; p goes unless it stands for another t |
| duplicate, phantom | p goes |
| missed, poor_boundary | t is drawn as it is, a match of IoU 1; a badly matched p goes |
| outline | every match gets the outline of its truth: IoU 1 |

Each raises PQ or leaves it, and all together, the outlines last, give a perfect prediction: PQ = 1. The gains of each
alone do not add up to what is missing, since PQ is a quotient and a repaired segment still has its outline to gain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pansight.errors import PansightError
from pansight.metrics.panoptic.matching import IGNORED, MATCHED, ImageMatch
from pansight.metrics.scores import IOU_UNIT
from pansight.ops.maps.overlap import IntArray
from pansight.types import LabelSpace

ERRORS = (
    "found",
    "missed",
    "phantom",
    "wrong_class",
    "split",
    "merged",
    "poor_boundary",
    "thing_stuff_swap",
    "duplicate",
    "ignored",
    "crowd",
)
"""The classes; a `SegmentErrors` holds indices into them."""

_FOUND, _MISSED, _PHANTOM, _WRONG_CLASS, _SPLIT, _MERGED, _POOR, _SWAP, _DUPLICATE, _IGNORED, _CROWD = range(
    len(ERRORS)
)

POOR_IOU = 0.1
"""Above this IoU a truth segment and a prediction of its class are at least a bad match."""


class SegmentErrors(NamedTuple):
    """What became of the T truth segments and P predictions of an image, in the rows of their tables."""

    truth: NDArray[np.uint8]  # (T,), index into ERRORS
    prediction: NDArray[np.uint8]  # (P,), index into ERRORS
    truth_partner: IntArray  # int64 (T,), row of the prediction concerned, −1 where there is none
    truth_iou: NDArray[np.float64]  # (T,), IoU with the partner, 0.0 where there is none
    prediction_partner: IntArray  # int64 (P,), row of the truth segment concerned, −1 where there is none
    prediction_iou: NDArray[np.float64]  # (P,)


def classify_errors(image: ImageMatch, is_thing: NDArray[np.bool_]) -> SegmentErrors:
    """The error class of every segment by the rules at the head of this file.

    is_thing: (K,), by category. Of several partners the one with the highest IoU is told, of equal ones that with the
    lowest ids. Areas are counted from the maps, also where `image` trusts those of a file.
    Raises PansightError where a segment has a category outside 0 … K − 1.
    """
    for table in (image.truth, image.prediction):
        _check_categories(table.categories, len(is_thing))
    pairs = _pairs_of(image)
    result = _start(image)
    own_class = image.truth.categories[pairs.t] == image.prediction.categories[pairs.p]
    same, other = pairs.take(own_class), pairs.take(~own_class)
    _wrong_classes(result, other, is_thing[image.truth.categories], is_thing[image.prediction.categories])
    _splits(result, same)
    duplicate = (result.truth[same.t] == _FOUND) & result.free_prediction(same) & same.mostly_on_truth
    result.assign_prediction(same.take(duplicate), _DUPLICATE)
    _mergers(result, same)
    _bad_matches(result, same)
    return SegmentErrors(
        result.truth,
        result.prediction,
        result.truth_partner,
        result.truth_iou,
        result.prediction_partner,
        result.prediction_iou,
    )


def repaired_iou(image: ImageMatch, errors: SegmentErrors) -> NDArray[np.float64]:
    """(T,), the IoU that each truth segment has once its error is repaired, in (0.5, 1]; 0.0 for crowds.

    Found segments keep theirs: their repair is the outline.
    """
    pairs = _pairs_of(image)
    n_truth = len(errors.truth)
    result = np.select(
        [np.isin(errors.truth, (_FOUND, _WRONG_CLASS, _SWAP)), np.isin(errors.truth, (_MISSED, _POOR))],
        [errors.truth_iou, np.ones(n_truth)],
        0.0,
    )
    merged = pairs.take((errors.truth[pairs.t] == _MERGED) & (errors.truth_partner[pairs.t] == pairs.p))
    result[merged.t] = merged.inside / merged.truth_area
    pieces = pairs.take((errors.prediction[pairs.p] == _SPLIT) & (errors.prediction_partner[pairs.p] == pairs.t))
    inside, union, _ = _join(pieces, pieces.t, pieces.truth_area, pieces.prediction_area, n_truth)
    split = errors.truth == _SPLIT
    result[split] = inside[split] / union[split]
    return result


@dataclass
class _Pairs:
    """Q pairs of a truth segment and a prediction that share pixels, the most telling last."""

    t: IntArray  # int64 (Q,), row of the truth
    p: IntArray  # int64 (Q,), row of the prediction
    inside: IntArray  # int64 (Q,), shared pixels
    truth_area: IntArray  # int64 (Q,), counted
    prediction_area: IntArray  # int64 (Q,), without void of the truth

    @property
    def iou(self) -> NDArray[np.float64]:
        return self.inside / (self.truth_area + self.prediction_area - self.inside)

    @property
    def mostly_on_truth(self) -> NDArray[np.bool_]:
        return 2 * self.inside > self.prediction_area

    @property
    def mostly_on_prediction(self) -> NDArray[np.bool_]:
        return 2 * self.inside > self.truth_area

    def take(self, rows: NDArray[np.bool_] | IntArray) -> _Pairs:
        return _Pairs(self.t[rows], self.p[rows], self.inside[rows], self.truth_area[rows], self.prediction_area[rows])


@dataclass
class _Result:
    """`SegmentErrors` in the making. Free = no error class holds yet."""

    truth: NDArray[np.uint8]
    prediction: NDArray[np.uint8]
    truth_partner: IntArray
    truth_iou: NDArray[np.float64]
    prediction_partner: IntArray
    prediction_iou: NDArray[np.float64]

    def free_truth(self, pairs: _Pairs) -> NDArray[np.bool_]:
        return self.truth[pairs.t] == _MISSED

    def free_prediction(self, pairs: _Pairs) -> NDArray[np.bool_]:
        return self.prediction[pairs.p] == _PHANTOM

    def assign_truth(self, pairs: _Pairs, code: int | NDArray[np.uint8]) -> None:
        """Of several pairs of one segment the last one, the most telling, stays."""
        self.truth[pairs.t] = code
        self.truth_partner[pairs.t] = pairs.p
        self.truth_iou[pairs.t] = pairs.iou

    def assign_prediction(self, pairs: _Pairs, code: int | NDArray[np.uint8]) -> None:
        self.prediction[pairs.p] = code
        self.prediction_partner[pairs.p] = pairs.t
        self.prediction_iou[pairs.p] = pairs.iou


def _pairs_of(image: ImageMatch) -> _Pairs:
    """The pairs without void, by rising IoU, of equal ones by falling ids."""
    n_truth, n_prediction = len(image.truth.ids), len(image.prediction.ids)
    t, p, inside = image.truth_rows, image.prediction_rows, image.pixels
    truth_area = np.bincount(t, inside, n_truth + 1).astype(np.int64)  # (T + 1,)
    both = (t < n_truth) & (p < n_prediction)
    t, p, inside = t[both], p[both], inside[both]
    pairs = _Pairs(t, p, inside, truth_area[t], image.visible_area[p])
    return pairs.take(np.lexsort((-image.prediction.ids[p], -image.truth.ids[t], pairs.iou)))


def _start(image: ImageMatch) -> _Result:
    """What PQ says: found, crowd, ignored; the rest is missed and phantom until an error class holds."""
    found = np.flatnonzero(image.match >= 0)
    truth = np.where(image.truth.crowd, _CROWD, _MISSED).astype(np.uint8)
    truth[found] = _FOUND
    prediction = np.select([image.state == MATCHED, image.state == IGNORED], [_FOUND, _IGNORED], _PHANTOM)
    partner = np.full(len(prediction), -1, np.int64)
    partner[image.match[found]] = found
    prediction_iou = np.zeros(len(prediction))
    prediction_iou[image.match[found]] = image.iou[found]
    return _Result(truth, prediction.astype(np.uint8), image.match.copy(), image.iou.copy(), partner, prediction_iou)


def _wrong_classes(
    result: _Result, other: _Pairs, truth_is_thing: NDArray[np.bool_], prediction_is_thing: NDArray[np.bool_]
) -> None:
    """wrong_class, thing_stuff_swap."""
    hit = other.take(result.free_truth(other) & result.free_prediction(other) & (other.iou > 0.5))
    same_kind = truth_is_thing[hit.t] == prediction_is_thing[hit.p]
    code = np.where(same_kind, _WRONG_CLASS, _SWAP).astype(np.uint8)
    result.assign_truth(hit, code)
    result.assign_prediction(hit, code)


def _splits(result: _Result, same: _Pairs) -> None:
    pieces = same.take(result.free_truth(same) & result.free_prediction(same) & same.mostly_on_truth)
    inside, union, parts = _join(pieces, pieces.t, pieces.truth_area, pieces.prediction_area, len(result.truth))
    split = pieces.take(((parts >= 2) & (2 * inside > union))[pieces.t])
    result.assign_truth(split, _SPLIT)
    result.assign_prediction(split, _SPLIT)


def _mergers(result: _Result, same: _Pairs) -> None:
    parts_of = same.take(result.free_truth(same) & result.free_prediction(same) & same.mostly_on_prediction)
    sides = (parts_of.prediction_area, parts_of.truth_area)
    inside, union, parts = _join(parts_of, parts_of.p, *sides, len(result.prediction))
    merged = parts_of.take(((parts >= 2) & (2 * inside > union))[parts_of.p])
    result.assign_truth(merged, _MERGED)
    result.assign_prediction(merged, _MERGED)
    taken = np.isin(result.prediction[same.p], (_FOUND, _SPLIT, _DUPLICATE))
    result.assign_truth(same.take(result.free_truth(same) & taken & same.mostly_on_prediction), _MERGED)


def _join(
    pairs: _Pairs, whole: IntArray, whole_area: IntArray, part_area: IntArray, n: int
) -> tuple[IntArray, IntArray, IntArray]:
    """Intersection and union of each of n wholes with all its parts together, and the number of parts. int64 (n,)."""
    inside = np.bincount(whole, pairs.inside, n).astype(np.int64)
    area = np.zeros(n, np.int64)
    area[whole] = whole_area
    union = area + np.bincount(whole, part_area, n).astype(np.int64) - inside
    return inside, union, np.bincount(whole, minlength=n)


def _bad_matches(result: _Result, same: _Pairs) -> None:
    """poor_boundary. Equal IoUs are taken together, so that no order of rows or ids decides."""
    bad = same.take(result.free_truth(same) & result.free_prediction(same) & (same.iou > POOR_IOU))
    for iou in np.unique(bad.iou)[::-1]:
        hit = bad.take((bad.iou == iou) & result.free_truth(bad) & result.free_prediction(bad))
        result.assign_truth(hit, _POOR)
        result.assign_prediction(hit, _POOR)


def _check_categories(categories: IntArray, n_classes: int) -> None:
    outside = categories[(categories < 0) | (categories >= n_classes)]
    if outside.size:
        bad = int(outside[0])
        raise PansightError(where="segment category", expected=f"an index 0 … {n_classes - 1}", found=bad)


class ErrorAnalysis:
    """Gathers errors over images: how many of each, what repairing them gains, and which class was taken for which.

    >>> analysis = ErrorAnalysis(labels)
    >>> errors = analysis.update(image)
    >>> analysis.compute()["errors"]["split"]["pq_gain"]
    """

    def __init__(self, labels: LabelSpace):
        k = len(labels)
        self.labels = labels
        self._is_thing = np.array([c.is_thing for c in labels], bool)
        self._truth = [[0] * k for _ in ERRORS]  # segments, by error and category
        self._prediction = [[0] * k for _ in ERRORS]
        self._iou = [[0] * k for _ in ERRORS]  # ΣIoU of the truth segments once repaired, in units of 2⁻⁵³
        self._confusion = [[0] * (k + 1) for _ in range(k + 1)]  # truth × prediction; last: nothing
        self._updates = 0

    def update(self, image: ImageMatch, errors: SegmentErrors | None = None) -> SegmentErrors:
        """Add one image. errors: of `classify_errors`, where they are known already."""
        if errors is None:
            errors = classify_errors(image, self._is_thing)
        k = len(self.labels)
        units = (repaired_iou(image, errors) * IOU_UNIT).tolist()
        partner_class = np.append(image.prediction.categories, k)[errors.truth_partner]
        named = np.isin(errors.truth, (_FOUND, _WRONG_CLASS, _SWAP))
        seen_as = np.where(named, partner_class, k).tolist()
        rows = zip(errors.truth.tolist(), image.truth.categories.tolist(), units, seen_as)
        for error, category, iou, seen in rows:
            self._truth[error][category] += 1
            self._iou[error][category] += int(iou)
            self._confusion[category][seen] += error != _CROWD
        for error, category in zip(errors.prediction.tolist(), image.prediction.categories.tolist()):
            self._prediction[error][category] += 1
            self._confusion[k][category] += error not in (_FOUND, _WRONG_CLASS, _SWAP, _IGNORED)
        self._updates += 1
        return errors

    def compute(self) -> dict[str, Any]:
        """`errors` by the names of ERRORS and `outline` → truth, prediction (numbers of segments), pq_gain,
        pq_gain_things, pq_gain_stuff; `all_repaired_pq`; `confusion`.

        Gains are differences of the group's PQ in fractions 0..1, each with that one class repaired. A class of which
        only phantoms exist leaves the mean with them. `outline` counts the found segments: their IoU is what is left.
        `all_repaired_pq` is 1.0, None where the truth has no segment at all.
        `confusion`: rows [source id of the truth, source id of the prediction, segments] that are not 0, by the best
        region whatever its class (IoU > 0.5); None stands for nothing: a missed truth, a phantom prediction.
        Without any image: {}.
        """
        if not self._updates:
            return {}
        before = self._counts()
        plain = self._group_pq(before)
        result: dict[str, Any] = {}
        for error, name in enumerate(ERRORS):
            gains = self._gains(plain, self._repair(before, error))
            result[name] = {"truth": sum(self._truth[error]), "prediction": sum(self._prediction[error]), **gains}
        found = result["found"]
        outline = self._gains(plain, _draw_outlines(before))
        result["outline"] = {"truth": found["truth"], "prediction": found["prediction"], **outline}
        repaired = before
        for error in range(len(ERRORS)):
            repaired = self._repair(repaired, error)
        everything = self._group_pq(_draw_outlines(repaired))["pq"]
        return {"errors": result, "all_repaired_pq": everything, "confusion": self._confusion_rows()}

    def merge(self, other: ErrorAnalysis) -> None:
        """Add what another process gathered on other images. Raises PansightError for another label space."""
        if other.labels != self.labels:
            raise PansightError("expected the same label space on both sides of a merge", where="error analysis")
        self._add(other.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """All that was gathered, as plain JSON values."""
        tables = {"truth": self._truth, "prediction": self._prediction, "iou": self._iou, "confusion": self._confusion}
        copies: dict[str, Any] = {name: [list(row) for row in table] for name, table in tables.items()}
        return copies | {"updates": self._updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace what was gathered by a `state_dict`."""
        n_classes = len(state["truth"][0])
        if n_classes != len(self.labels):
            raise PansightError(where="error analysis", expected=f"{len(self.labels)} classes", found=n_classes)
        self.__init__(self.labels)
        self._add(state)

    def _add(self, state: dict[str, Any]) -> None:
        self._truth = _sum_tables(self._truth, state["truth"])
        self._prediction = _sum_tables(self._prediction, state["prediction"])
        self._iou = _sum_tables(self._iou, state["iou"])
        self._confusion = _sum_tables(self._confusion, state["confusion"])
        self._updates += int(state["updates"])

    def _counts(self) -> list[_Counts]:
        """By category, as the metric has them."""
        errors = [e for e in range(len(ERRORS)) if e not in (_FOUND, _CROWD, _IGNORED)]
        return [
            _Counts(
                self._truth[_FOUND][c],
                sum(self._prediction[e][c] for e in errors),
                sum(self._truth[e][c] for e in errors),
                self._iou[_FOUND][c],
            )
            for c in range(len(self.labels))
        ]

    def _repair(self, counts: list[_Counts], error: int) -> list[_Counts]:
        """found, crowd and ignored need none."""
        if error in (_FOUND, _CROWD, _IGNORED):
            return counts
        sides = zip(counts, self._truth[error], self._prediction[error], self._iou[error])
        return [_Counts(c.tp + t, c.fp - p, c.fn - t, c.iou + iou) for c, t, p, iou in sides]

    def _group_pq(self, counts: list[_Counts]) -> dict[str, float | None]:
        """PQ of All, Things and Stuff; None for a group without any segment."""
        groups = {
            "pq": list(counts),
            "pq_things": [counts[c.id] for c in self.labels.things],
            "pq_stuff": [counts[c.id] for c in self.labels.stuff],
        }
        return {name: _mean_pq(members) for name, members in groups.items()}

    def _gains(self, before: dict[str, float | None], counts: list[_Counts]) -> dict[str, float]:
        after = self._group_pq(counts)
        return {name.replace("pq", "pq_gain"): (after[name] or 0.0) - (before[name] or 0.0) for name in before}

    def _confusion_rows(self) -> list[list[int | None]]:
        names: list[int | None] = [*(c.source_id for c in self.labels), None]
        return [[names[t], names[p], n] for t, row in enumerate(self._confusion) for p, n in enumerate(row) if n]


class _Counts(NamedTuple):
    """Of one category; iou: ΣIoU of the matches in units of 2⁻⁵³."""

    tp: int
    fp: int
    fn: int
    iou: int


def _mean_pq(counts: list[_Counts]) -> float | None:
    """None without any segment. Divides exact whole numbers, so that more IoU never rounds to less PQ."""
    scores = [2 * c.iou / (IOU_UNIT * (2 * c.tp + c.fp + c.fn)) for c in counts if c.tp + c.fp + c.fn]
    return sum(scores) / len(scores) if scores else None


def _draw_outlines(counts: list[_Counts]) -> list[_Counts]:
    return [c._replace(iou=c.tp * IOU_UNIT) for c in counts]


def _sum_tables(a: list[list[int]], b: list[list[int]]) -> list[list[int]]:
    return [[int(x) + int(y) for x, y in zip(row_a, row_b, strict=True)] for row_a, row_b in zip(a, b, strict=True)]
