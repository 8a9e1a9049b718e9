"""Box and mask average precision: the twelve COCO figures, equal to those of pycocotools, computed by hotcoco.

Objects are stored as boxes and run-length codes, never as masks. The truth comes from `Sample.instances` where
annotations overlap, else from the thing segments of `Sample.truth`. Small, medium and large are decided by the area
of the mask (of the box, where there is no mask), since a Sample does not carry the `area` field of a file.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple, cast

import numpy as np
from hotcoco import COCO, COCOeval
from hotcoco import mask as rle
from numpy.typing import NDArray

from pansight.errors import PansightError
from pansight.metrics.panoptic.matching import SegmentTable
from pansight.ops.maps.rle import code_text, mask_codes
from pansight.types import Instances, LabelSpace, Prediction, Sample


class Objects(NamedTuple):
    """The N objects of one image, with run-length codes instead of masks to save memory."""

    boxes_xywh: NDArray[np.float64]  # (N, 4), pixels
    labels: NDArray[np.int64]  # (N,)
    scores: NDArray[np.float64]  # (N,)
    crowd: NDArray[np.bool_]  # (N,)
    codes: tuple[str, ...] | None  # COCO's compressed run lengths; None: boxes only


class _Image(NamedTuple):
    image_id: str | int
    size: tuple[int, int]  # (H, W)
    truth: Objects
    prediction: Objects


def segment_codes(ids: NDArray[Any]) -> dict[int, str]:
    """COCO's compressed run-length code of every non-zero id of a map: one pass, no mask is made.

    ids: integer (H, W).
    """
    height, width = ids.shape
    flat = np.ascontiguousarray(ids.T).ravel()  # (W·H,) column after column, as COCO counts
    starts = np.concatenate([np.zeros(1, np.int64), np.flatnonzero(flat[1:] != flat[:-1]) + 1])[: flat.size]
    ends = np.append(starts[1:], flat.size)[: starts.size]
    values = flat[starts]
    order = np.argsort(values, kind="stable")
    groups = np.flatnonzero(np.diff(values[order], prepend=-1))  # (ids,) where each id's runs begin in `order`
    codes: dict[int, str] = {}
    for runs in np.split(order, groups[1:]) if flat.size else ():
        value = int(values[runs[0]])
        if value == 0:
            continue
        edges = np.stack([starts[runs], ends[runs]], axis=1).ravel()  # start, end, start, end …
        counts = np.diff(edges, prepend=0, append=flat.size)  # zeros, ones, zeros …
        counts = counts[:-1] if counts[-1] == 0 else counts
        code = rle.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
        codes[value] = code_text(code["counts"])
    return codes


class AveragePrecision:
    """Gathers objects over images; `compute` gives box figures, and mask figures where both sides have masks.

    max_detections: the objects of an image and class that count, by score: 100 for COCO, 400 for crowded images.
    Models that predict no instances leave it empty: `compute` then gives {}.
    """

    def __init__(self, labels: LabelSpace, max_detections: int = 100):
        if max_detections <= 10:  # recall is also told for the first 1 and 10
            raise PansightError(where="average precision", expected="max_detections above 10", found=max_detections)
        self.labels = labels
        self.max_detections = max_detections
        self._images: list[_Image] = []
        self._without = 0

    def update(self, prediction: Prediction, truth: Sample) -> Objects | None:
        """Add one image. Gives the predicted objects with their masks encoded, None where the model gives none.

        Raises PansightError, naming the image, where a mask has another size than the truth.
        """
        if prediction.instances is None:
            self._without += 1
            return None
        size = truth.truth.size
        masks = prediction.instances.masks
        if masks is not None and tuple(masks.shape[1:]) != size:
            found = tuple(masks.shape[1:])
            raise PansightError(
                where=f"image {truth.image_id}", expected=f"predicted masks of {size}", found=f"{found} (H, W)"
            )
        if truth.instances is not None:
            objects = _from_instances(truth.instances)
        else:
            ids = truth.truth.ids.detach().cpu().numpy()
            objects = objects_of_map(ids, SegmentTable.of(truth.truth.segments), self.labels)
        found = _from_instances(prediction.instances)
        self._images.append(_Image(truth.image_id, size, objects, self._strongest(found)))
        return found

    def add(self, image_id: str | int, size: tuple[int, int], truth: Objects, prediction: Objects) -> None:
        """Add one image of size (H, W) from its objects (`objects_of_map`)."""
        self._images.append(_Image(image_id, size, truth, self._strongest(prediction)))

    def _strongest(self, objects: Objects) -> Objects:
        """Only what can count is kept: the best max_detections of each class, in the order given."""
        keep = np.zeros(len(objects.labels), bool)
        for label in np.unique(objects.labels):
            rows = np.flatnonzero(objects.labels == label)
            keep[rows[np.argsort(-objects.scores[rows], kind="stable")[: self.max_detections]]] = True
        if keep.all():
            return objects
        codes = None if objects.codes is None else tuple(c for c, k in zip(objects.codes, keep) if k)
        return Objects(objects.boxes_xywh[keep], objects.labels[keep], objects.scores[keep], objects.crowd[keep], codes)

    def compute(self) -> dict[str, Any]:
        """`box` and (with masks) `mask` → ap ap50 ap75 ap_small ap_medium ap_large ar1 ar10 ar100 ar_small ar_medium
        ar_large; `per_class` by source id → name, box, mask (their AP); `max_detections`.
        `image_ids` lists every image, and `counts` holds, as columns, what AP of any of them can be computed from:
        truth → image (index into image_ids), category (source id), n (objects to be found); found → image, category,
        score, and for `box` and `mask` how it was matched: bit k, whether it is right at the IoU 0.5 + 0.05 k; bit
        10 + k, whether it does not count there.

        Fractions 0..1, None where the truth has no object of that kind. With another max_detections than 100 the last
        of the three plain recalls is named after it: ar400.
        """
        images, kinds = self._images_and_kinds()
        if not images:
            return {}
        things = self.labels.things
        result: dict[str, Any] = {}
        per_class: dict[str, dict[str, Any]] = {str(c.source_id): {"name": c.name} for c in things}
        for kind in kinds:
            precision, recall = _evaluate(images, self.labels, kind == "mask", self.max_detections)
            result[kind] = _twelve_figures(precision, recall, self.max_detections)
            for k, c in enumerate(things):
                per_class[str(c.source_id)][kind] = _mean_known(precision[:, :, k, 0, 2])
        return result | {
            "per_class": per_class,
            "max_detections": self.max_detections,
            "image_ids": [image.image_id for image in images],
            "counts": _counts(images, self.labels, kinds, self.max_detections),
        }

    def figures(self) -> dict[str, dict[str, float | None]]:
        """`box` and (with masks) `mask` of `compute` alone, which takes half of its time."""
        images, kinds = self._images_and_kinds()
        if not images:
            return {}
        tables = {kind: _evaluate(images, self.labels, kind == "mask", self.max_detections) for kind in kinds}
        return {kind: _twelve_figures(*tables[kind], self.max_detections) for kind in kinds}

    def _images_and_kinds(self) -> tuple[list[_Image], tuple[str, ...]]:
        """The images in the order that decides ties, and "box" and "mask" as far as both sides have them.

        Raises PansightError where some images have no prediction of objects, but not all.
        """
        if self._images and self._without:
            raise PansightError(
                where="average precision", expected="objects for every image", found=f"none for {self._without} images"
            )
        images = sorted(self._images, key=lambda i: (isinstance(i.image_id, str), i.image_id))
        sides = [objects for image in images for objects in (image.truth, image.prediction)]
        masked = all(o.codes is not None or not len(o.labels) for o in sides)
        masked &= any(image.prediction.codes is not None for image in images)
        return images, ("box", "mask") if masked else ("box",)

    @property
    def last_truth(self) -> Objects | None:
        """The true objects of the image that was added last; None before the first."""
        return self._images[-1].truth if self._images else None

    def merge(self, other: AveragePrecision) -> None:
        """Add what another process gathered. Raises PansightError for another label space or max_detections."""
        if other.labels != self.labels or other.max_detections != self.max_detections:
            raise PansightError(
                "expected equal labels and max_detections on both sides of a merge", where="average precision"
            )
        self._images += other._images
        self._without += other._without

    def state_dict(self) -> dict[str, Any]:
        """All that was gathered, as plain JSON values."""
        images = [
            {
                "image_id": image.image_id,
                "size": list(image.size),
                "truth": _plain(image.truth),
                "prediction": _plain(image.prediction),
            }
            for image in self._images
        ]
        return {"images": images, "without": self._without}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace what was gathered by a `state_dict`."""
        self._images = [
            _Image(
                i["image_id"], (int(i["size"][0]), int(i["size"][1])), _objects(i["truth"]), _objects(i["prediction"])
            )
            for i in state["images"]
        ]
        things = np.array([c.id for c in self.labels.things], np.int64)
        if not all(_is_whole(o, things) for i in self._images for o in (i.truth, i.prediction)):
            raise PansightError(
                where="average precision", expected="objects of thing classes", found="others (damaged)"
            )
        self._without = int(state["without"])


def _plain(objects: Objects) -> dict[str, Any]:
    lists = {key: value.tolist() for key, value in objects._asdict().items() if isinstance(value, np.ndarray)}
    return lists | {"codes": None if objects.codes is None else list(objects.codes)}


def _objects(plain: dict[str, Any]) -> Objects:
    return Objects(
        np.array(plain["boxes_xywh"], np.float64).reshape(-1, 4),
        np.array(plain["labels"], np.int64),
        np.array(plain["scores"], np.float64),
        np.array(plain["crowd"], bool),
        None if plain["codes"] is None else tuple(map(str, plain["codes"])),
    )


def _is_whole(objects: Objects, things: NDArray[np.int64]) -> bool:
    n, codes = len(objects.boxes_xywh), objects.codes
    same = all(side.shape == (n,) for side in (objects.labels, objects.scores, objects.crowd))
    known = bool(np.isin(objects.labels, things).all())
    finite = bool(np.isfinite(objects.boxes_xywh).all() and np.isfinite(objects.scores).all())
    return same and known and finite and (codes is None or len(codes) == n)


def _from_instances(instances: Instances) -> Objects:
    boxes_xyxy = instances.boxes_xyxy.detach().cpu().numpy().astype(np.float64).reshape(-1, 4)
    boxes_xywh = np.concatenate([boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]], axis=1)
    codes = None
    if instances.masks is not None:
        codes = mask_codes(instances.masks)
    crowd = np.zeros(len(instances), bool)
    if instances.is_crowd is not None:
        crowd = instances.is_crowd.detach().cpu().numpy().astype(bool)
    labels = instances.labels.detach().cpu().numpy().astype(np.int64)
    scores = instances.scores.detach().cpu().numpy().astype(np.float64)
    return Objects(boxes_xywh, labels, scores, crowd, codes)


def objects_of_map(ids: NDArray[Any], table: SegmentTable, labels: LabelSpace) -> Objects:
    """The thing segments of a map that have a pixel, with the boxes of their masks. ids: integer (H, W)."""
    codes = segment_codes(ids)
    is_thing = [c.is_thing for c in labels]
    numbers, categories = table.ids.tolist(), table.categories.tolist()
    rows = [n for n, (i, c) in enumerate(zip(numbers, categories)) if is_thing[c] and i in codes]
    size = list(ids.shape)
    boxes = [rle.to_bbox({"size": size, "counts": codes[numbers[n]]}) for n in rows]
    return Objects(
        np.array(boxes, np.float64).reshape(-1, 4),
        table.categories[rows],
        table.scores[rows],
        table.crowd[rows],
        tuple(codes[numbers[n]] for n in rows),
    )


_ALL_SIZES = [0.0, 1e10]
"""Areas in pixels, as COCO has them."""
_IMAGES_AT_ONCE = 256
"""Whose matches are Python objects at a time."""


def _evaluate(
    images: list[_Image], labels: LabelSpace, masks: bool, max_detections: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """COCO's tables: precision (10 IoUs, 101 recalls, classes, 4 sizes, 3 limits) and recall (10, classes, 4, 3).

    −1 where the truth has no object.
    """
    evaluation = _coco_eval(images, labels, masks)
    evaluation.params.max_dets = [1, 10, max_detections]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "hotcoco: max_dets differ", UserWarning)  # meant: the name of the key says it
        evaluation.evaluate()
        evaluation.accumulate()
    tables = cast(dict[str, Any], evaluation.eval)
    return np.asarray(tables["precision"], np.float64), np.asarray(tables["recall"], np.float64)


def _counts(images: list[_Image], labels: LabelSpace, kinds: tuple[str, ...], max_detections: int) -> dict[str, Any]:
    """`counts` of AveragePrecision.compute."""
    truth: dict[str, list[int]] = {"image": [], "category": [], "n": []}
    found: dict[str, list[Any]] = {"image": [], "category": [], "score": []} | {kind: [] for kind in kinds}
    for start in range(0, len(images), _IMAGES_AT_ONCE):
        part = images[start : start + _IMAGES_AT_ONCE]
        for kind in kinds:
            for row in _matches(part, labels, kind == "mask", max_detections):
                image, label = start + int(row["image_id"]) - 1, int(row["category_id"]) - 1
                category = labels[label].source_id
                found[kind] += _match_codes(row["dtMatched"], row["dtIgnore"])
                if kind != kinds[0]:
                    continue
                found["image"] += [image] * len(row["dtScores"])
                found["category"] += [category] * len(row["dtScores"])
                found["score"] += [float(f"{score:.9g}") for score in row["dtScores"]]  # all digits of a float32
                if any(row["gtInDenominator"]):
                    truth["image"].append(image)
                    truth["category"].append(category)
                    truth["n"].append(int(sum(row["gtInDenominator"])))
    return {"truth": truth, "found": found}


def _matches(images: list[_Image], labels: LabelSpace, masks: bool, max_detections: int) -> list[dict[str, Any]]:
    """hotcoco's matches of each image and class that has any object, sorted by image and class."""
    if not any(len(image.prediction.labels) or len(image.truth.labels) for image in images):
        return []
    evaluation = _coco_eval(images, labels, masks)
    evaluation.params.max_dets = [max_detections]
    evaluation.params.area_rng, evaluation.params.area_rng_lbl = [_ALL_SIZES], ["all"]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "hotcoco:", UserWarning)  # fewer figures than COCO's own: meant
        evaluation.evaluate()
    rows = [row for row in evaluation.eval_imgs if row]
    return sorted(rows, key=lambda row: (row["image_id"], row["category_id"]))


def _match_codes(matched: list[list[bool]], ignored: list[list[bool]]) -> list[int]:
    """(10, D) twice → the codes of D objects."""
    bits = np.concatenate([np.array(matched, bool) & ~np.array(ignored, bool), np.array(ignored, bool)])  # (20, D)
    return (bits.astype(np.int64) << np.arange(len(bits))[:, None]).sum(0).tolist()


def _coco_eval(images: list[_Image], labels: LabelSpace, masks: bool) -> COCOeval:
    """Image k gets the id k + 1, class c the id c + 1."""
    truth_rows: list[dict[str, Any]] = []
    found_rows: list[dict[str, Any]] = []
    for number, image in enumerate(images, 1):
        truth_rows += _rows(image.truth, number, image.size, masks, truth=True)
        found_rows += _rows(image.prediction, number, image.size, masks, truth=False)
    for number, row in enumerate(truth_rows, 1):
        row["id"] = number
    truth = COCO(
        {
            "images": [{"id": n, "height": i.size[0], "width": i.size[1]} for n, i in enumerate(images, 1)],
            "categories": [{"id": c.id + 1, "name": c.name} for c in labels.things],
            "annotations": truth_rows,
        }
    )
    return COCOeval(truth, truth.load_res(found_rows), "segm" if masks else "bbox")


def _rows(objects: Objects, number: int, size: tuple[int, int], masks: bool, truth: bool) -> list[dict[str, Any]]:
    """COCO annotations (truth) or results of one image.

    Results carry a mask or a box, never both: COCO takes a result's area from the box wherever there is one.
    """
    rows: list[dict[str, Any]] = []
    for n, (box, label) in enumerate(zip(objects.boxes_xywh.tolist(), objects.labels.tolist())):
        row: dict[str, Any] = {"image_id": number, "category_id": label + 1}
        code = None if objects.codes is None else {"size": list(size), "counts": objects.codes[n]}
        if masks:
            row["segmentation"] = code
        if truth:
            area = box[2] * box[3] if code is None else float(rle.area(code))
            row |= {"bbox": box, "area": area, "iscrowd": int(objects.crowd[n])}
        else:
            row["score"] = float(objects.scores[n])
            if not masks:
                row["bbox"] = box
        rows.append(row)
    return rows


def _twelve_figures(
    precision: NDArray[np.float64], recall: NDArray[np.float64], max_detections: int
) -> dict[str, float | None]:
    """COCO's summary from its tables; IoU .50 is row 0, .75 row 5; sizes all, small, medium, large."""
    figures = {
        "ap": _mean_known(precision[:, :, :, 0, 2]),
        "ap50": _mean_known(precision[0, :, :, 0, 2]),
        "ap75": _mean_known(precision[5, :, :, 0, 2]),
    }
    figures |= {f"ap_{size}": _mean_known(precision[:, :, :, n, 2]) for n, size in enumerate(_SIZES, 1)}
    limits = (1, 10, max_detections)
    figures |= {f"ar{limit}": _mean_known(recall[:, :, 0, n]) for n, limit in enumerate(limits)}
    return figures | {f"ar_{size}": _mean_known(recall[:, :, n, 2]) for n, size in enumerate(_SIZES, 1)}


_SIZES = ("small", "medium", "large")
"""Areas up to 32², up to 96², and above, in pixels."""


def _mean_known(table: NDArray[np.float64]) -> float | None:
    known = table[table > -1]
    return float(known.mean()) if known.size else None
