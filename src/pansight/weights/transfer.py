"""Trained weights to a model of other classes: everything general is kept, class heads row by row, by class name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pansight.errors import PansightError
from pansight.types import LabelSpace

BACKGROUND = "(background)"


@dataclass(frozen=True)
class TransferReport:
    """What became of the tensors. A class head of which some rows were kept reads ``KEY [person, car]``.

    kept: copied. dropped: in the file, not used. new: in the model, as initialised.
    """

    kept: tuple[str, ...]
    dropped: tuple[str, ...]
    new: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{len(self.kept)} tensors kept, {len(self.dropped)} dropped, {len(self.new)} new"]
        partly = [name for name in self.kept if name.endswith("]")]
        for title, names in (("rows kept", partly), ("dropped", self.dropped), ("new", self.new)):
            lines += [f"  {title}: {name}" for name in names[:12]]
            if len(names) > 12:
                lines.append(f"  {title}: … and {len(names) - 12} more")
        return "\n".join(lines)


def _things(labels: LabelSpace, rows: int, background_first: bool) -> list[str]:
    """One name a class; a background row where there is one row more than things."""
    names = [c.name for c in labels.things]
    if rows == len(names):
        return names
    return [BACKGROUND, *names] if background_first else [*names, BACKGROUND]


def _boxes(labels: LabelSpace, rows: int, background_first: bool) -> list[str]:
    """Four rows a class, one for each of dx, dy, dw, dh."""
    return [name for name in _things(labels, rows // 4, background_first) for _ in range(4)]


def _stuff(labels: LabelSpace, rows: int, background_first: bool) -> list[str]:
    """Panoptic FPN's semantic head: all things are its class 0."""
    return [BACKGROUND, *(c.name for c in labels.stuff)]


CLASS_ROWS: dict[str, Callable[[LabelSpace, int, bool], list[str]]] = {
    "rcnn.box_predictor.cls_score": _things,
    "rcnn.box_predictor.bbox_pred": _boxes,
    "rcnn.mask_head.predictor": _things,
    "semantic_head.predictor": _stuff,
}
"""The tensors with a class axis (their first): (labels, rows, background_first) → the class of each row."""


def transfer(
    model: Any, state: Mapping[str, Tensor], source_labels: LabelSpace, target_labels: LabelSpace
) -> TransferReport:
    """Copy what fits of `state` (keys of ours, classes of `source_labels`) into `model` (classes of `target_labels`).

    A tensor of another shape, beside the class heads, stays new. Raises PansightError where nothing fits at all, or
    a class head has another number of rows than its label space says.
    """
    kept: list[str] = []
    new: list[str] = []
    result: dict[str, Tensor] = {}
    background_first: bool = model.rcnn.background_first
    for key, tensor in model.state_dict().items():
        source = state.get(key)
        names_of_rows = CLASS_ROWS.get(key.rpartition(".")[0])
        if source is None or source.shape[1:] != tensor.shape[1:]:
            new.append(key)
        elif names_of_rows is not None:
            found = _class_names(key, source, names_of_rows, source_labels, background_first)
            wanted = _class_names(key, tensor, names_of_rows, target_labels, background_first)
            rows, common = copy_rows(source, found, tensor, wanted)
            if common:
                result[key] = rows
            (kept if common else new).append(_row_title(key, common, wanted))
        elif source.shape == tensor.shape:
            result[key] = source
            kept.append(key)
        else:
            new.append(key)
    if not kept:
        raise PansightError(f"transfer: expected weights of a {type(model).__name__}, found no tensor that fits")
    model.load_state_dict(result, strict=False)
    dropped = [key for key in state if key not in result]
    return TransferReport(tuple(kept), tuple(dropped), tuple(new))


def copy_rows(source: Tensor, found: Sequence[str], target: Tensor, wanted: Sequence[str]) -> tuple[Tensor, list[str]]:
    """`target` with the rows of equal name taken from `source`, a name's first row from its first row and so on.

    → (new tensor of target's shape, the names taken, each once, in target's order).
    """
    places: dict[str, list[int]] = {}
    for index, name in enumerate(found):
        places.setdefault(name, []).append(index)
    seen: dict[str, int] = {}
    pairs: list[tuple[int, int]] = []
    for index, name in enumerate(wanted):
        occurrence = seen.get(name, 0)
        seen[name] = occurrence + 1
        if occurrence < len(places.get(name, ())):
            pairs.append((index, places[name][occurrence]))
    result = target.detach().clone()
    if pairs:
        to, take = torch.tensor(pairs, device=source.device).T  # (rows taken,) each
        result[to.to(result.device)] = source[take].to(result)
    return result, list(dict.fromkeys(wanted[index] for index, _ in pairs))


def _class_names(
    key: str,
    tensor: Tensor,
    names_of_rows: Callable[[LabelSpace, int, bool], list[str]],
    labels: LabelSpace,
    background_first: bool,
) -> list[str]:
    names = names_of_rows(labels, tensor.shape[0], background_first)
    if len(names) != tensor.shape[0]:
        raise PansightError(f"transfer: {key}: expected {len(names)} rows for {labels!r}, found {tensor.shape[0]}")
    return names


def _row_title(key: str, common: Sequence[str], wanted: Sequence[str]) -> str:
    if not common or len(common) == len(set(wanted)):
        return key
    return f"{key} [{', '.join(common)}]"
