"""Transfer of trained weights to a model with other classes: class heads are kept row by row, by the names of the
classes, and everything else is kept whole.

Of learned queries, the first ones are kept where their number differs: no query is tied to a class. A ViT's positions
are resampled to another input size. Which tensors these are stands in the entry of each model.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pansight.errors import PansightError, shown
from pansight.models.contract import ClassRows, Entry
from pansight.types import LabelSpace

SHOWN, LINE = 12, 1000
"""Names in a line of the report, and letters: files name classes and tensors as they like."""


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
        return "\n".join(shown(line, LINE) for line in lines)


def transfer(
    model: Any,
    state: Mapping[str, Tensor],
    source_labels: LabelSpace,
    target_labels: LabelSpace,
    entry: Entry,
    source_entry: Entry | None = None,
) -> TransferReport:
    """Copy what fits of `state` (keys of ours, classes of `source_labels`) into `model` (classes of `target_labels`).

    entry: of the model. source_entry: of what the state was trained as, where that is another: torchvision's heads
    begin with the background, those of detectron2 and ours end with it.
    A tensor of another shape, beside class heads and queries, stays new. Raises PansightError where nothing fits at
    all, or a class head has another number of rows than its label space says.
    """
    kept: list[str] = []
    new: list[str] = []
    result: dict[str, Tensor] = {}
    names_found, names_wanted, names_kept = set[str](), set[str](), set[str]()
    targets: dict[str, Tensor] = model.state_dict()
    found_rows = _rows_of_tensors((source_entry or entry).class_rows, state)
    wanted_rows = _rows_of_tensors(entry.class_rows, targets)
    for key, tensor in targets.items():
        source = state.get(key)
        if source is not None and key in entry.positions and source.shape != tensor.shape:
            source = resampled_positions(source, tensor)
        if source is None or source.shape[1:] != tensor.shape[1:] or (key in found_rows) != (key in wanted_rows):
            new.append(key)
        elif key in wanted_rows:
            found = _class_names(key, source, found_rows[key], source_labels)
            wanted = _class_names(key, tensor, wanted_rows[key], target_labels)
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
        elif key in entry.queries:
            count = min(len(source), len(tensor))
            result[key] = torch.cat([source[:count].to(tensor), tensor[count:]])
            kept.append(f"{key} [first {count} of {len(source)}, {len(tensor) - count} new]")
        else:
            new.append(key)
    if not kept:
        raise PansightError(where="transfer", expected=f"weights of {entry.architecture}", found="no tensor that fits")
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


def _rows_of_tensors(class_rows: Mapping[str, ClassRows], keys: Collection[str]) -> dict[str, ClassRows]:
    """What the rows of weights and biases stand for, by key. keys: of the whole model, in its order."""
    result: dict[str, ClassRows] = {}
    for module, rows in class_rows.items():
        inside = [key for key in keys if key.startswith(f"{module}.")]
        last = inside[-1].rpartition(".")[0] if inside else ""
        result |= {key: rows for key in inside if key.rpartition(".")[0] == last}
    return result


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


def _class_names(key: str, tensor: Tensor, rows: ClassRows, labels: LabelSpace) -> Sequence[str]:
    names = rows(labels)
    if len(names) != tensor.shape[0]:
        raise PansightError(
            where=f"transfer: {key}", expected=f"{len(names)} rows for {labels!r}", found=tensor.shape[0]
        )
    return names


def _row_title(key: str, common: Sequence[str], wanted: Sequence[str]) -> str:
    if not common or len(common) == len(set(wanted)):
        return key
    return f"{key} [{', '.join(common)}]"
