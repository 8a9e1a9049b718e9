"""What is compared: evaluations, folders with one, and prediction files that are scored first."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pansight.errors import PansightError
from pansight.files import read_json

EVALUATION = "evaluation.json"
PREDICTIONS = "predictions.json"


class Truth(NamedTuple):
    """What prediction files are scored against: JSON of COCO panoptic, and the folder of its PNGs."""

    gt: Path
    gt_dir: Path | None = None


def find_files(given: Sequence[str | Path], truth: Truth | None) -> list[Path]:
    """The evaluation, or with a truth the prediction file, that each path stands for.

    Raises PansightError where there is neither.
    """
    return [_file_of(Path(path), truth) for path in given]


def _file_of(path: Path, truth: Truth | None) -> Path:
    wanted = f"{EVALUATION} or a folder with it"
    if not path.exists():
        raise PansightError("no such file", where=path, hint=f"expected {wanted}", code="missing_file")
    if not path.is_dir():
        return path
    candidates = [path / EVALUATION]
    if truth is not None:
        candidates += [path / PREDICTIONS, path / "predictions" / PREDICTIONS]
    found = next((file for file in candidates if file.is_file()), None)
    if found is None:
        raise PansightError(
            where=path, expected=f"{EVALUATION} in the folder", found="none", hint="pansight evaluate writes it"
        )
    return found


def read_records(files: Sequence[Path], truth: Truth | None) -> list[dict[str, Any]]:
    """The record of each evaluation; prediction files are scored against the truth.

    Raises PansightError for what is neither, and for prediction files without a truth.
    """
    return [_record(file, truth) for file in files]


def _record(file: Path, truth: Truth | None) -> dict[str, Any]:
    content = read_json(file)
    if isinstance(content, dict) and "annotations" in content and "per_class" not in content:
        if truth is None:
            raise PansightError(
                where=file, expected=EVALUATION, found="predictions", hint="name their truth: --gt FILE"
            )
        return _scored(file, truth)
    if isinstance(content, list) and content and isinstance(content[0], dict) and "category_id" in content[0]:
        raise PansightError(
            where=file, expected=f"{EVALUATION} or COCO panoptic", found="COCO results", hint="compare their evaluation"
        )
    if not isinstance(content, dict):
        raise PansightError(where=file, expected="a JSON object", found=type(content).__name__)
    return content


def _scored(file: Path, truth: Truth) -> dict[str, Any]:
    from pansight.apps.scoring import evaluate_files

    return evaluate_files(truth.gt, file, truth.gt_dir, say=_silent)


def names_of(files: Sequence[Path]) -> list[str]:
    """The shortest end of each path that tells them apart; a file given twice is numbered."""
    known = (EVALUATION, PREDICTIONS)
    parts = [f.resolve().parts[1:-1] if f.name in known else (*f.resolve().parts[1:-1], f.stem) for f in files]
    for length in range(1, max(map(len, parts)) + 1):
        names = [os.sep.join(p[-length:]) or EVALUATION for p in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{p[-1] if p else EVALUATION} ({k})" for k, p in enumerate(parts, 1)]


def _silent(line: str) -> None:
    """The print function of a scoring whose figures are printed as a comparison."""
