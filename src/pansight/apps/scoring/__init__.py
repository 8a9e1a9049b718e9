"""``pansight evaluate --gt … --pred …``: predictions of any tool against any truth, both as COCO panoptic files.

Neither torch nor a model is loaded; memory does not grow with the number of images.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from pansight.archives import unpacked
from pansight.errors import PansightError
from pansight.files import read_json, write_json
from pansight.metrics.bootstrap.records import with_intervals
from pansight.metrics.files.class_map import ClassMap, read_class_map
from pansight.metrics.files.pairs import PanopticPairs
from pansight.metrics.files.panoptic_json import PanopticFile
from pansight.metrics.files.score import Figures, Scored, Scores, score, shard_of
from pansight.metrics.files.summary import summary
from pansight.metrics.scores import image_pq
from pansight.parallel import cores
from pansight.types import Category, LabelSpace

PARTIAL = "pansight partial evaluation 1"
"""The format name in the file of a partial result."""


class Outputs(NamedTuple):
    """Where the results go; None: nowhere."""

    json: Path | None = None  # the record
    table: Path | None = None  # Parquet, a row for each segment
    report: Path | None = None  # HTML
    images: Path | None = None  # folder of the photos, for the report
    partial: Path | None = None  # to be joined with others
    overwrite: bool = False
    charts: Path | None = None  # folder of SVG and PNG

    def refuse_existing(self, inputs: Sequence[str | Path]) -> None:
        """Raises PansightError where a file would be replaced unasked, and where an output is an input or another."""
        taken = {os.path.realpath(path) for path in inputs}  # links in a circle are no error here
        for path in (self.json, self.table, self.report, self.partial):
            if path is None:
                continue
            if os.path.realpath(path) in taken:
                raise PansightError(where=path, expected="a file of its own for each output", found="it named twice")
            if path.exists() and not self.overwrite:
                raise PansightError(where=path, expected="no such file yet", found="one", hint="add --overwrite")
            taken.add(os.path.realpath(path))
        if self.charts is not None:
            from pansight.apps.pages.charts import check_folder

            check_folder(self.charts, self.overwrite)


def evaluate_files(
    gt: str | Path,
    pred: str | Path,
    gt_dir: str | Path | None = None,
    pred_dir: str | Path | None = None,
    outputs: Outputs = Outputs(),  # noqa: B008 (immutable)
    figures: Figures | None = None,
    class_map: str | Path | None = None,
    shard: tuple[int, int] = (1, 1),
    strict_compat: bool = False,
    threads: int = 0,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """The record of an evaluation from files; its figures are printed and written.

    gt, pred: JSON files of COCO panoptic. gt_dir, pred_dir: folders (or ZIPs) of their PNGs, by default the folder of
    the JSON's name beside it. figures: by default all but boundaries, AP where predictions have scores. class_map:
    "names" or a TOML file. shard: (part, parts) of the images, from 1. threads: 0 takes all cores.
    Raises PansightError for bad input.
    """
    outputs.refuse_existing((gt, pred))
    start = time.monotonic()
    truth = PanopticFile(gt)
    prediction, mapping = _prediction(Path(pred), truth, class_map, say)
    indices = shard_of(len(truth), *shard)
    if shard[1] > max(1, len(truth)):
        raise PansightError(where="--shard", expected=f"at most {len(truth)} parts for as many images", found=shard[1])
    with ExitStack() as stack:
        folders = [
            stack.enter_context(unpacked(_png_folder(Path(file), folder)))
            for file, folder in ((gt, gt_dir), (pred, pred_dir))
        ]
        pairs = PanopticPairs(truth, folders[0], prediction, folders[1], mapping, strict_compat)
        each, finish = stack.enter_context(_outputs(outputs, truth.labels, Path(pred).stem))
        progress = stack.enter_context(_progress(len(indices)))
        scores = score(
            pairs, figures or Figures(), indices, threads or cores(), outputs.report is not None, each, progress
        )
        record = _record(scores, time.monotonic() - start)
        record["about"] = _about(gt, pred, class_map, scores.figures, shard, strict_compat)
        finish(record)
    if outputs.partial is not None:
        rules = {"strict_compat": strict_compat, "class_map": None if mapping is None else mapping.prediction.tolist()}
        content = {"kind": PARTIAL, "shard": list(shard), "images": len(truth), "rules": rules, **scores.state_dict()}
        content["about"] = record["about"]
        write_json(outputs.partial, content)
    _tell(record, outputs, say)
    return record


def merge_files(parts: Sequence[str | Path], outputs: Outputs, say: Callable[[str], None] = print) -> dict[str, Any]:
    """The record of the whole from the partial results of all its shards, as if they had been one.

    outputs: json, and report (figures without images).
    Raises PansightError where a shard is missing or there twice, or the parts are of different evaluations.
    """
    outputs.refuse_existing(parts)
    seen: dict[int, str | Path] = {}
    whole: Scores | None = None
    first: tuple[Any, ...] = ()
    about: dict[str, Any] = {}
    for path in parts:
        content = read_json(path)
        if not isinstance(content, dict) or content.get("kind") != PARTIAL:
            raise PansightError(where=path, expected="a partial evaluation (--partial)", found="another file")
        with _whole(path):
            labels = LabelSpace(Category(**{**row, "color": tuple(row["color"])}) for row in content["labels"])
            scores = Scores(labels, Figures(**content["figures"]))
            scores.load_state_dict(content)
            part, count = map(int, content["shard"])
            images, rules = int(content["images"]), content["rules"]
            about = {**content.get("about", {}), "part": ""}  # all parts together are the whole
        if not 1 <= part <= count <= max(1, images):
            raise PansightError(where=path, expected=f"a shard of {images} images", found=f"{part}/{count}")
        first = first or (count, images, rules, path)
        if (count, images) != first[:2]:
            expected = f"{first[0]} shards of {first[1]} images as in {first[3]}"
            raise PansightError(where=path, expected=expected, found=f"{count} of {images}")
        if rules != first[2]:
            raise PansightError(where=path, expected=f"--strict-compat and --map as in {first[3]}", found="others")
        if part in seen:
            raise PansightError(where=path, expected="each shard once", found=f"{part}/{count} in {seen[part]} too")
        seen[part] = path
        with _whole(path):
            if whole is not None:
                whole.merge(scores)
            whole = whole or scores
    if whole is None:
        raise PansightError(where="merge", expected="partial evaluations", found="none")
    missing = next((part for part in range(1, first[0] + 1) if part not in seen), None)
    if missing is not None:
        raise PansightError(where="merge", expected=f"all {first[0]} shards", found=f"none for {missing}")
    with _whole("merge"):
        record = _record(whole, None) | {"about": about}
        if len(set(record["image_ids"])) != len(record["image_ids"]):
            raise PansightError(
                where="merge", expected="each image in one shard", found="one in several: shards of other files"
            )
    with _outputs(outputs, whole.labels, "merged") as (_, finish):
        finish(record)
    _tell(record, outputs, say)
    return record


@contextmanager
def _whole(path: str | Path) -> Iterator[None]:
    """Turn any error that a damaged partial result causes into one line."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError) as error:
        raise PansightError(
            where=path, expected="a partial evaluation", found=f"a damaged one: {error!r:.80}"
        ) from error


def _prediction(
    path: Path, truth: PanopticFile, class_map: str | Path | None, say: Callable[[str], None]
) -> tuple[PanopticFile, ClassMap | None]:
    """The predictions, and where their classes go where the user asked for it."""
    if class_map is None:
        try:
            return PanopticFile(path, truth.labels), None
        except PansightError as error:
            if error.code != "unlisted_category":
                raise
            raise PansightError(
                where=error.where,
                expected="a category of the truth",
                found=error.found,
                hint="add --map to match classes by name",
                code=error.code,
            ) from error
    prediction = PanopticFile(path)
    mapping = read_class_map(class_map, prediction.labels, truth.labels)
    for line in mapping.notes(prediction.labels, truth.labels):
        say(line)
    return prediction, mapping


def _png_folder(file: Path, folder: str | Path | None) -> Path:
    if folder is not None:
        return Path(folder)
    beside = file.with_suffix("")
    if not beside.is_dir():
        raise PansightError(
            where=file,
            expected=f"its PNGs in {beside}",
            found="no such folder (name it: --gt-dir, --pred-dir)",
            code="missing_file",
        )
    return beside


def _record(scores: Scores, seconds: float | None) -> dict[str, Any]:
    record = scores.record()
    if scores.figures.errors:
        record = with_intervals(record)
    if seconds is not None:
        record["seconds"] = seconds
        record["images_per_second"] = len(record["image_ids"]) / max(seconds, 1e-9)
    return record


def _about(
    gt: str | Path,
    pred: str | Path,
    class_map: str | Path | None,
    figures: Figures,
    shard: tuple[int, int],
    strict_compat: bool,
) -> dict[str, Any]:
    """What was measured and how, for the record and the page."""
    part = "" if shard == (1, 1) else f"shard {shard[0]}/{shard[1]}"
    settings = {"miou": figures.convention, "max_detections": figures.max_detections, "strict_compat": strict_compat}
    return {
        "data": str(gt),
        "part": part,
        "predictions": str(pred),
        "map": None if class_map is None else str(class_map),
        "settings": settings,
        "versions": {"pansight": version("pansight"), "python": platform.python_version()},
    }


def _tell(record: dict[str, Any], outputs: Outputs, say: Callable[[str], None]) -> None:
    if outputs.json is not None:
        write_json(outputs.json, record)
    say(summary(record))
    if record["stale_areas"]:
        print(
            f"warning: {record['stale_areas']} segments of the truth have another area in the JSON than in the PNG; "
            "they were recounted (--strict-compat trusts the JSON; pansight check lists them)",
            file=sys.stderr,
        )
    for name in ("json", "table", "report", "partial", "charts"):
        path = getattr(outputs, name)
        if path is not None:
            say(f"{name:10s} {path}")


@contextmanager
def _progress(count: int) -> Iterator[Callable[[int], None]]:
    from pansight.engine.progress import ProgressBar

    start = time.monotonic()
    with ProgressBar("evaluate") as bar:

        def update(done: int) -> None:
            rate = done / max(time.monotonic() - start, 1e-9)
            bar.update(done / max(count, 1), f"image {done}/{count}, {rate:.0f} images/s")

        yield update


@contextmanager
def _outputs(
    outputs: Outputs, labels: LabelSpace, title: str
) -> Iterator[tuple[Callable[[Scored], None] | None, Callable[[dict[str, Any]], None]]]:
    """What is to be done with each image, and at the end with the record."""
    with ExitStack() as stack:
        viewer = table = None
        if outputs.table is not None:
            from pansight.metrics.panoptic.segment_table import SegmentTableWriter

            table = stack.enter_context(SegmentTableWriter(outputs.table, labels, outputs.overwrite))
        if outputs.report is not None:
            from pansight.apps.pages.viewer import ViewerWriter

            viewer = stack.enter_context(ViewerWriter(outputs.report, labels, title, outputs.overwrite))
        photos = _Photos(outputs.images) if outputs.images is not None else None

        def each(scored: Scored) -> None:
            pair, errors = scored
            if table is not None and errors is not None:
                table.add(pair.image_id, pair.match, errors)
            if viewer is not None and errors is not None:
                viewer.add(_viewer_image(scored, photos, len(labels)))

        def finish(record: dict[str, Any]) -> None:
            if viewer is not None:
                viewer.finish(record)
            if outputs.charts is not None:
                from pansight.apps.pages.charts import report_charts, write_charts

                write_charts(outputs.charts, report_charts(record, labels, []))

        yield (None if viewer is None and table is None else each), finish


def _viewer_image(scored: Scored, photos: _Photos | None, n_classes: int) -> Any:
    from pansight.apps.pages.viewer import ViewerImage

    pair, errors = scored
    assert pair.truth_ids is not None
    assert pair.prediction_ids is not None
    assert errors is not None
    photo = None if photos is None else photos.read(pair.file_name, pair.image_id, pair.size)
    quality = image_pq(pair.match, n_classes)
    return ViewerImage(pair.image_id, photo, pair.truth_ids, pair.prediction_ids, pair.match, errors, quality)


class _Photos:
    """Finds the photo of an image by the name of its PNG, or by its id, anywhere under a folder."""

    def __init__(self, folder: Path):
        from pansight.data.images import IMAGE_SUFFIXES

        if not folder.is_dir():
            raise PansightError(where=folder, expected="a folder of photos", found="none")
        files = (path for path in sorted(folder.rglob("*")) if path.suffix.lower() in IMAGE_SUFFIXES)
        self._by_stem = {path.stem.removesuffix("_leftImg8bit"): path for path in files}

    def read(self, png_name: str, image_id: str | int, size: tuple[int, int]) -> Any:
        """uint8 (H, W, 3), or None where there is no such photo."""
        from pansight.data.images import read_image

        stem = Path(png_name).stem.removesuffix("_gtFine_panoptic")
        path = self._by_stem.get(stem) or self._by_stem.get(str(image_id))
        return None if path is None else read_image(path, mask_size=size)
