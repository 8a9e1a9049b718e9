"""Rename the tensors of an official checkpoint to ours, and load them so that none is missing and none is left over."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pansight.errors import PansightError, shown

BACKBONE = "backbone.features."
"""Where a model keeps the modules of its timm backbone."""

Rule = tuple[str, str | Callable[[re.Match[str]], str]]
"""A pattern that must match a whole key, and its replacement as in re.sub."""


MISFITS = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, AssertionError, RuntimeError)
"""What building and filling a model raises where a file's values are of another kind, or too large for the memory."""


AVERAGED = ("state_dict_ema", "model_ema", "ema_model", "ema", "teacher")
"""Keys of moving averages; the first that is there counts. Who keeps one measures and publishes it (timm, YOLO …)."""

WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model",
    "model_state",
    "module",
    "net",
    "network",
    "generator",
    "student",
)
WRAPPERS += ("weights", "params", "checkpoint", "blobs", "ema_state_dict")
"""Keys under which training scripts put the weights themselves. The last one is what mmengine calls the raw weights: it
exchanges the two in its files, so that state_dict is the average."""

PUBLISHED_WRAPPERS = ("model", "state_dict", "blobs")
"""Those of official files, which need no word."""

PREFIXES = ("ema_model.", "model_ema.", "ema.", "teacher.", "module.", "model.", "net.", "student.")
PREFIXES += ("detector.", "segmentor.", "generator.")
"""What DistributedDataParallel, an averaged model or a training class puts before every name; averages first."""

INSERTED = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What torch.compile, FSDP and activation checkpointing put into names, at any depth. No layer is called so."""

BESIDE = re.compile(r"(?:criterion|loss|losses|metrics?|(?:train|val|valid|test)_\w+)\..*|n_averaged")
"""Tensors beside the network in a training class: class weights of a loss, sums of a metric, how often was averaged."""


def unwrapped(content: Mapping[Any, Any], is_weight: Callable[[Any], bool], source: str) -> tuple[dict[str, Any], str]:
    """(the weights by their names in the network, a line on what was taken, or "" where nothing was to be chosen).

    content: what a checkpoint file holds: the weights themselves, or a dict around them, at most three deep. Of an
    averaged copy and the raw weights the average is taken. `is_weight` tells tensors from everything else.
    Raises PansightError where no weights are found, or two tensors would have one name.
    """
    path: list[str] = []
    passed = ""
    weights: Mapping[Any, Any] = content
    for _ in range(3):
        key, rivals = _wrapper(weights, is_weight)
        if not key:
            break
        path.append(key)
        passed = passed or (f" rather than {rivals[0]}" if rivals else "")
        weights = weights[key]
    named = {key: value for key, value in weights.items() if isinstance(key, str) and is_weight(value)}
    if not named:
        keys = [shown(repr(key), 80) if isinstance(key, str) else type(key).__name__ for key in list(content)[:3]]
        some = ", ".join(keys)
        found = f"no tensor among its keys ({some or 'nothing'})"
        raise PansightError(where=source, expected="a dict of tensors by name", found=found)
    named, prefixes = without_prefixes(named, source)
    whose = "its" if path else "their"
    without = f", without {whose} prefix{'es' if len(prefixes) > 1 else ''} {' '.join(prefixes)}" if prefixes else ""
    if not passed and not prefixes and (not path or (path[-1] in PUBLISHED_WRAPPERS and len(path) == 1)):
        return named, ""
    taken = ".".join(path) or "the tensors"
    return named, f"took {taken}{passed}{without}"


def _wrapper(content: Mapping[Any, Any], is_weight: Callable[[Any], bool]) -> tuple[str, list[str]]:
    """(the key of the dict that holds the weights, those of other candidates); "" where `content` itself holds them."""
    seen: dict[int, bool] = {}
    inner = [key for key, value in content.items() if isinstance(key, str) and _holds_weights(value, is_weight, seen)]
    known = [key for key in (*AVERAGED, *WRAPPERS) if key in inner]
    if known:
        return known[0], known[1:]
    has_own = any(isinstance(key, str) and is_weight(value) for key, value in content.items())
    return (inner[0], []) if len(inner) == 1 and not has_own else ("", [])


def _holds_weights(value: Any, is_weight: Callable[[Any], bool], seen: dict[int, bool]) -> bool:
    """Whether a value is a dict with tensors by name, or with such a dict by the name of a wrapper.

    seen: the answers for the dicts that were looked through, by their id: a file may name one dict a million times.
    """
    if not isinstance(value, Mapping):
        return False
    if id(value) not in seen:
        seen[id(value)] = False  # of a dict inside itself
        inner = (value.get(key) for key in (*AVERAGED, *WRAPPERS))
        seen[id(value)] = any(isinstance(key, str) and is_weight(item) for key, item in value.items()) or any(
            _holds_weights(item, is_weight, seen) for item in inner
        )
    return seen[id(value)]


def without_prefixes(named: Mapping[str, Any], source: str) -> tuple[dict[str, Any], list[str]]:
    """(the weights without what wrappers put into their names, the prefixes that were left out).

    A prefix goes where every tensor of the network has one; where there are several, one copy of the network is taken.
    Raises PansightError where two would have one name.
    """
    left_out: list[str] = []
    plain: dict[str, Any] = {}
    for name, value in named.items():
        short = INSERTED.sub("", name)
        if short in plain:
            raise PansightError(where=source, expected=f"one tensor for {short}", found=f"a second in {name}")
        plain[short] = value
    if plain.keys() != named.keys():
        left_out.append(next(match[0] for name in named if (match := INSERTED.search(name))))
    for _ in range(4):
        network = [name for name in plain if not BESIDE.fullmatch(name)]
        found = [prefix for prefix in PREFIXES if any(name.startswith(prefix) for name in network)]
        if not found or not all(name.startswith(tuple(found)) for name in network):
            break
        left_out.append(f"{found[0]} (rather than {found[1]})" if len(found) > 1 else found[0])
        plain = {name.removeprefix(found[0]): plain[name] for name in network if name.startswith(found[0])}
    return {name: value for name, value in plain.items() if name != "n_averaged"}, left_out


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
    """Copy `state` into `model`, which it must fit (see `check_fit`)."""
    check_fit(model.state_dict(), state, source)
    model.load_state_dict(state, strict=False)  # strict but for num_batches_tracked, as checked


def check_fit(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str) -> None:
    """Every tensor used, none missing, every shape equal, whole numbers where they are expected and nowhere else.

    num_batches_tracked, which no figure depends on, may be absent. Raises PansightError naming the first tensor at
    fault, with the shape expected and the shape found; a class count that differs shows up here.
    """
    for name, tensor in expected.items():
        if name not in state and not name.endswith("num_batches_tracked"):
            raise PansightError(where=source, expected=f"tensor {name} {_shape(tensor)}", found="none by that name")
        if name in state and state[name].shape != tensor.shape:
            found = _shape(state[name])
            raise PansightError(where=f"{source}: {name}", expected=f"shape {_shape(tensor)}", found=found)
        if name in state and state[name].is_floating_point() != tensor.is_floating_point():
            kinds = [f"{one.dtype}".removeprefix("torch.") for one in (tensor, state[name])]
            raise PansightError(where=f"{source}: {name}", expected=f"numbers like {kinds[0]}", found=kinds[1])
    unexpected = [name for name in state if name not in expected]
    if unexpected:
        more = f" and {len(unexpected) - 1} more" if len(unexpected) > 1 else ""
        raise PansightError(
            f"expected no tensor {unexpected[0]}{more}", where=source, hint="the model has none by that name"
        )


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
