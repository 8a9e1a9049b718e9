"""The table of all segments: one row for each true segment, and one for each prediction that matches none.

| column | type | content |
|---|---|---|
| image | string | id of the image |
| side | string | truth or prediction: whose segment the row is about |
| truth_id, predicted_id | int64 | the segment and its partner by `SegmentErrors`; null where there is none |
| truth_class, predicted_class | string | names of their classes |
| iou | float64 | of the two, void of the truth left out of the union |
| truth_area, predicted_area | int64 | pixels |
| size | string | small below 32² pixels, medium below 96², large from there on: of the segment of the row |
| error | string | of ERRORS |
| score | float64 | of the prediction |

An error that concerns both sides (wrong_class, split …) has a row for either, since it costs a missed segment and a
phantom: rows of side truth, crowds aside, are TP + FN, rows of side prediction, ignored ones aside, are FP.
"""

# pyarrow has no types
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pansight.errors import PansightError
from pansight.files import replacing
from pansight.metrics.panoptic.errors import ERRORS, SegmentErrors
from pansight.metrics.panoptic.matching import ImageMatch
from pansight.ops.maps.overlap import IntArray
from pansight.types import LabelSpace

COLUMNS = (
    "image",
    "side",
    "truth_id",
    "predicted_id",
    "truth_class",
    "predicted_class",
    "iou",
    "truth_area",
    "predicted_area",
    "size",
    "error",
    "score",
)

SIZES = ("small", "medium", "large")

_ROWS_PER_GROUP = 20_000


def segment_columns(
    image_id: str | int, image: ImageMatch, errors: SegmentErrors, labels: LabelSpace
) -> dict[str, list[Any]]:
    """The rows of one image as COLUMNS → list; None where there is nothing to tell."""
    n_truth = len(image.truth.ids)
    lost = np.flatnonzero(errors.prediction != ERRORS.index("found"))
    t = np.concatenate([np.arange(n_truth), errors.prediction_partner[lost]])  # (R,), −1: none
    p = np.concatenate([errors.truth_partner, lost])
    both = (t >= 0) & (p >= 0)
    names = np.array(labels.names, object)
    iou = np.concatenate([errors.truth_iou, errors.prediction_iou[lost]])
    own_area = np.concatenate([image.truth_area, image.prediction_area[lost]])
    error = np.concatenate([errors.truth, errors.prediction[lost]])
    return {
        "image": [str(image_id)] * len(t),
        "side": ["truth"] * n_truth + ["prediction"] * len(lost),
        "truth_id": _known(image.truth.ids, t),
        "predicted_id": _known(image.prediction.ids, p),
        "truth_class": _known(names[image.truth.categories], t),
        "predicted_class": _known(names[image.prediction.categories], p),
        "iou": [value if known else None for value, known in zip(iou.tolist(), both.tolist())],
        "truth_area": _known(image.truth_area, t),
        "predicted_area": _known(image.prediction_area, p),
        "size": [SIZES[index] for index in np.digitize(own_area, (32**2, 96**2)).tolist()],
        "error": [ERRORS[index] for index in error.tolist()],
        "score": _known(image.prediction.scores, p),
    }


class SegmentTableWriter:
    """Streams the table to a Parquet file, which appears whole at the end or not at all.

        with SegmentTableWriter("segments.parquet", labels) as writer:
            writer.add(139, image, errors)

    At most some ten thousand rows are in memory. Raises PansightError where the file exists and `overwrite` is not
    set, where it cannot be written, and where pyarrow (extra `table`) is missing.
    """

    def __init__(self, path: str | Path, labels: LabelSpace, overwrite: bool = False):
        self.path, self.labels, self.overwrite = Path(path), labels, overwrite
        self._columns = _empty()
        self._file: Any = None
        self._context = self._open()

    def __enter__(self) -> SegmentTableWriter:
        self._context.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return self._context.__exit__(kind, error, trace)

    def add(self, image_id: str | int, image: ImageMatch, errors: SegmentErrors) -> None:
        """The rows of one image."""
        self.add_columns(segment_columns(image_id, image, errors, self.labels))

    def add_columns(self, columns: dict[str, list[Any]]) -> None:
        """Rows of `segment_columns`, made elsewhere."""
        for name, values in self._columns.items():
            values.extend(columns[name])
        if len(self._columns["image"]) >= _ROWS_PER_GROUP:
            self._write_group()

    @contextmanager
    def _open(self) -> Generator[None]:
        parquet = _import_parquet(self.path)
        if self.path.exists() and not self.overwrite:
            raise PansightError(where=self.path, expected="no such file yet", found="one", hint="nothing was written")
        with replacing(self.path) as path, parquet.ParquetWriter(path, _schema(), compression="zstd") as self._file:
            yield
            self._write_group()

    def _write_group(self) -> None:
        import pyarrow

        if self._columns["image"]:
            self._file.write_table(pyarrow.table(self._columns, schema=_schema()))
            self._columns = _empty()


def _empty() -> dict[str, list[Any]]:
    return {name: [] for name in COLUMNS}


def _known(values: NDArray[Any], rows: IntArray) -> list[Any]:
    """(R,) values of a table's rows; None for row −1."""
    return [None if row < 0 else value for row, value in zip(rows.tolist(), np.append(values, 0)[rows].tolist())]


def _import_parquet(path: Path) -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise PansightError(
            where=path, expected="pyarrow to write Parquet", found="none", hint="install the extra pansight[table]"
        ) from error
    return pyarrow.parquet


def _schema() -> Any:
    import pyarrow

    types: dict[str, Any] = dict.fromkeys(("truth_id", "predicted_id", "truth_area", "predicted_area"), pyarrow.int64())
    types |= dict.fromkeys(("iou", "score"), pyarrow.float64())
    return pyarrow.schema([(name, types.get(name, pyarrow.string())) for name in COLUMNS])
