"""Transfer of trained weights to a model with other classes: class heads are kept row by row, by the names of the
classes, and everything else is kept whole.

If the number of learned queries differs, the first ones are kept, since no query is tied to a class. A vision
transformer's positions are resampled to another input size.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pansight.errors import PansightError
from pansight.types import LabelSpace

BACKGROUND = "(background)"
NO_OBJECT = "(no object)"
SHOWN = 12
"""Names in a line of the report."""


@dataclass(frozen=True)
class TransferReport:
    """What became of the tensors. A class head of which some rows were kept reads ``KEY [person, car]``; queries of
    which some were kept read ``KEY [first 100 of 200]``.

    kept: copied. dropped: in the file, not used. new: in the model, as initialised. classes_…: the same of the classes
    whose rows in the heads they are.
    """

    kept: tuple[str, ...]
    dropped: tuple[str, ...]
    new: tuple[str, ...]
    classes_kept: tuple[str, ...] = ()
    classes_dropped: tuple[str, ...] = ()
    classes_new: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{len(self.kept)} tensors kept, {len(self.dropped)} dropped, {len(self.new)} new"]
        classes = {"kept": self.classes_kept, "dropped": self.classes_dropped, "new": self.classes_new}
        for title, names in classes.items():
            if names:
                more = f" … and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
                lines.append(f"  {len(names)} classes {title}: {', '.join(names[:SHOWN])}{more}")
        queries = [name for name in self.kept if " [first " in name]
        for title, names in (("queries kept", queries), ("dropped", self.dropped), ("new", self.new)):
            lines += [f"  {title}: {name}" for name in names[:SHOWN]]
            if len(names) > SHOWN:
                lines.append(f"  {title}: … and {len(names) - SHOWN} more")
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


def _all(labels: LabelSpace, rows: int, background_first: bool) -> list[str]:
    """The query models: things and stuff in the label space's order, then the row for no object."""
    return [*labels.names, NO_OBJECT]


RowNames = Callable[[LabelSpace, int, bool], list[str]]

CLASS_ROWS: dict[str, RowNames] = {
    "rcnn.box_predictor.cls_score": _things,
    "rcnn.box_predictor.bbox_pred": _boxes,
    "rcnn.mask_head.predictor": _things,
    "semantic_head.predictor": _stuff,
}
"""The tensors with a class axis (their first): (labels, rows, background_first) → the class of each row."""

QUERY_HEAD = re.compile(
    r"((?:.*\.)?(?:class_embed|class_head|class_predictor))(?:\.(?:layers\.)?(\d+))?\.(?:weight|bias)"
)
"""The class head of a query model: one layer, or several, of which the last one has the classes."""

QUERIES = re.compile(r"(?:.*\.)?(?:query_embed|query_feat|q)\.weight")
"""Learned queries: one row each."""


POSITIONS = re.compile(r"(?:.*\.)?pos_embed")
"""A ViT's learned positions: (1, side², channels), which grow with the input."""


def transfer(
    model: Any, state: Mapping[str, Tensor], source_labels: LabelSpace, target_labels: LabelSpace
) -> TransferReport:
    """Copy what fits of `state` (keys of ours, classes of `source_labels`) into `model` (classes of `target_labels`).

    A tensor of another shape, beside class heads and queries, stays new. Raises PansightError where nothing fits at
    all, or a class head has another number of rows than its label space says.
    """
    kept: list[str] = []
    new: list[str] = []
    result: dict[str, Tensor] = {}
    names_found, names_wanted, names_kept = set[str](), set[str](), set[str]()
    targets: dict[str, Tensor] = model.state_dict()
    for key, tensor in targets.items():
        source = state.get(key)
        names_of_rows = _names_of_rows(key, targets)
        if source is not None and POSITIONS.fullmatch(key) and source.shape != tensor.shape:
            source = resampled_positions(source, tensor)
        if source is None or source.shape[1:] != tensor.shape[1:]:
            new.append(key)
        elif names_of_rows is not None:
            first: bool = key.startswith("rcnn.") and model.rcnn.background_first
            found = _class_names(key, source, names_of_rows, source_labels, first)
            wanted = _class_names(key, tensor, names_of_rows, target_labels, first)
            rows, common = copy_rows(source, found, tensor, wanted)
            if common:
                result[key] = rows
            names_found, names_wanted, names_kept = (
                names_found | {*found},
                names_wanted | {*wanted},
                names_kept | {*common},
            )
            (kept if common else new).append(_row_title(key, common, wanted))
        elif source.shape == tensor.shape:
            result[key] = source
            kept.append(key)
        elif QUERIES.fullmatch(key):
            count = min(len(source), len(tensor))
            result[key] = torch.cat([source[:count].to(tensor), tensor[count:]])
            kept.append(f"{key} [first {count} of {len(source)}, {len(tensor) - count} new]")
        else:
            new.append(key)
    if not kept:
        raise PansightError(f"transfer: expected weights of a {type(model).__name__}, found no tensor that fits")
    model.load_state_dict(result, strict=False)
    dropped = [key for key in state if key not in result]
    return TransferReport(
        tuple(kept),
        tuple(dropped),
        tuple(new),
        tuple(name for name in target_labels.names if name in names_kept),
        tuple(name for name in source_labels.names if name in names_found - names_kept),
        tuple(name for name in target_labels.names if name in names_wanted - names_kept),
    )


def _names_of_rows(key: str, keys: Iterable[str]) -> RowNames | None:
    """What the rows of a tensor stand for, where they are classes; keys: of the whole model."""
    if key.rpartition(".")[0] in CLASS_ROWS:
        return CLASS_ROWS[key.rpartition(".")[0]]
    match = QUERY_HEAD.fullmatch(key)
    if match is None:
        return None
    layers = [int(other[2] or 0) for other in map(QUERY_HEAD.fullmatch, keys) if other and other[1] == match[1]]
    return _all if int(match[2] or 0) == max(layers) else None


def resampled_positions(source: Tensor, target: Tensor) -> Tensor | None:
    """A square of positions (1, side², channels), bicubically to target's square. None where either is no square."""
    sides = [math.isqrt(t.shape[1]) if t.ndim == 3 else 0 for t in (source, target)]
    if any(side == 0 or side**2 != t.shape[1] for side, t in zip(sides, (source, target))):
        return None
    grid = source.transpose(1, 2).unflatten(2, (sides[0], sides[0])).float()  # (1, channels, side, side)
    grid = F.interpolate(grid, (sides[1], sides[1]), mode="bicubic", antialias=True, align_corners=False)
    return grid.flatten(2).transpose(1, 2).to(source)  # (1, side², channels)


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
    names_of_rows: RowNames,
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
