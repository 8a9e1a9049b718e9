"""Rename the tensors of an official checkpoint to ours, and load them so that none is missing and none is left over."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from pansight.errors import PansightError

BACKBONE = "backbone.features."
"""Where a model keeps the modules of its timm backbone."""

Rule = tuple[str, str | Callable[[re.Match[str]], str]]
"""A pattern that must match a whole key, and its replacement as in re.sub."""


MISFITS = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, AssertionError, RuntimeError)
"""What building and filling a model raises where a file's values are of another kind, or too large for the memory."""


def rename(state: Mapping[str, Tensor], rules: Iterable[Rule], ignored: str, source: str) -> dict[str, Tensor]:
    """Every key by the first rule that matches it; keys that match `ignored` are left out.

    Raises PansightError naming a key that no rule knows, or two keys that one name would be given to.
    """
    compiled = [(re.compile(pattern), replacement) for pattern, replacement in rules]
    result: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if re.fullmatch(ignored, key):
            continue
        match, replacement = next(
            ((match, new) for pattern, new in compiled if (match := pattern.fullmatch(key))), (None, "")
        )
        if match is None:
            raise PansightError(
                f"unknown tensor {key} {list(tensor.shape)}",
                where=source,
                hint="expected only those of the layout that it has",
            )
        name = match.expand(replacement) if isinstance(replacement, str) else replacement(match)
        if name in result:
            raise PansightError(where=source, expected=f"one tensor for {name}", found=f"a second in {key}")
        result[name] = tensor
    return result


def join_rows(
    state: Mapping[str, Tensor], pattern: str, parts: Sequence[str], joined: str, source: str
) -> dict[str, Tensor]:
    """Tensors that differ in one part of their key, stacked along their rows; all others as they are.

    pattern: must match a whole key, with the group ``part``; joined: the new key, as in re.sub. So
    ``join_rows(state, r"(.*)\\.(?P<part>[qkv])_proj\\.(weight|bias)", "qkv", r"\\1.in_proj_\\3", source)``.
    Raises PansightError where a part is missing.
    """
    compiled = re.compile(pattern)
    result: dict[str, Tensor] = {}
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        match = compiled.fullmatch(key)
        if match is None:
            result[key] = tensor
        else:
            found.setdefault(match.expand(joined), {})[match["part"]] = tensor
    for key, pieces in found.items():
        missing = [part for part in parts if part not in pieces]
        if missing:
            raise PansightError(
                where=source, expected=f"the parts {', '.join(parts)} of {key}", found=f"no {missing[0]}"
            )
        result[key] = torch.cat([pieces[part] for part in parts])
    return result


def split_rows(state: Mapping[str, Tensor], pattern: str, parts: Sequence[str], template: str) -> dict[str, Tensor]:
    """The inverse of `join_rows`: matching tensors are cut into equal parts; `template` holds ``{part}``."""
    compiled = re.compile(pattern)
    result: dict[str, Tensor] = {}
    for key, tensor in state.items():
        match = compiled.fullmatch(key)
        if match is None:
            result[key] = tensor
            continue
        for part, piece in zip(parts, tensor.chunk(len(parts)), strict=True):
            result[match.expand(template).replace("{part}", part)] = piece.clone()
    return result


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copy `state` into `model`: every tensor used, none missing, every shape equal.

    num_batches_tracked, which no figure depends on, may be absent. Raises PansightError naming the first tensor at
    fault, with the shape expected and the shape found; a class count that differs shows up here.
    """
    expected = model.state_dict()
    for name, tensor in expected.items():
        if name not in state and not name.endswith("num_batches_tracked"):
            raise PansightError(where=source, expected=f"tensor {name} {_shape(tensor)}", found="none by that name")
        if name in state and state[name].shape != tensor.shape:
            found = _shape(state[name])
            raise PansightError(where=f"{source}: {name}", expected=f"shape {_shape(tensor)}", found=found)
    unexpected = [name for name in state if name not in expected]
    if unexpected:
        more = f" and {len(unexpected) - 1} more" if len(unexpected) > 1 else ""
        raise PansightError(
            f"expected no tensor {unexpected[0]}{more}", where=source, hint="the model has none by that name"
        )
    model.load_state_dict(state, strict=False)  # strict but for num_batches_tracked, as checked above


def resnet_depth(
    state: Mapping[str, Tensor], prefix: str, stages: Sequence[str], source: str, known: Sequence[int] = (50, 101)
) -> int:
    """50 or 101, by the number of blocks in each stage; PansightError for any other network than the `known`."""
    pattern = re.compile(re.escape(prefix) + rf"({'|'.join(stages)})[._](\d+)[._].*")
    blocks = dict.fromkeys(stages, 0)
    for match in filter(None, map(pattern.fullmatch, state)):
        blocks[match[1]] = max(blocks[match[1]], int(match[2]) + 1)
    depths: dict[tuple[int, ...], int] = {(3, 4, 6, 3): 50, (3, 4, 23, 3): 101}
    found = tuple(blocks.values())
    if depths.get(found) not in known:
        expected = " or ".join(f"ResNet-{depth}" for depth in known)
        raise PansightError(where=source, expected=f"a {expected}", found=f"stages of {list(found)} blocks")
    return depths[found]


def rows(state: Mapping[str, Tensor], key: str, source: str) -> int:
    """The number of rows of a tensor that must be there."""
    if key not in state:
        raise PansightError(where=source, expected=f"tensor {key}", found="none by that name")
    return state[key].shape[0]


def _shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)
