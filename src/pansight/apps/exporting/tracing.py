"""A model as a graph of tensors: one image in, the named outputs of ``ops.fusion.exported`` out."""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pansight.engine.infer import GivenProposals, SeveralInputs
from pansight.errors import PansightError
from pansight.ops.fast import plain
from pansight.ops.fusion.exported import finished, flatten, panoptic_of_queries
from pansight.ops.fusion.queries import QueryRules
from pansight.ops.resize import ResizeRule, resize_photo

INPUTS, FURTHER = ("images", "valid"), ("further_images", "further_valid")
"""Names of the inputs, and of those for the second network of a model that looks at the photo in another way too."""

PROBES = (480, 640), (640, 480), (300, 900), (900, 300)
"""Photos (H, W) of which it is asked whether they all become inputs of one size."""

SMALLEST = (190, 250)
"""What a graph for any size is traced with, before padding. Where nothing is padded, no stage of a network halves both
sides exactly, so that none is taken for one that always does."""


class Graph(nn.Module):
    """`model` for one image, its outputs as a tuple of tensors; `names` says which. `like`: its outputs for `example`.

    rule_inside: the outputs are the panoptic map itself (`PanopticOutputs`).
    Raises PansightError where a graph cannot do what the model does.
    """

    def __init__(self, model: Any, example: Sequence[Tensor], rule_inside: bool = False):
        super().__init__()
        self.model, self.rule_inside = model, rule_inside
        if isinstance(model, GivenProposals) and model.needs_proposals:
            hint = "train it with a proposer (proposer_weights)"
            raise PansightError(
                "cannot be a graph of an image alone: it is given its regions", where="export", hint=hint
            )
        with torch.no_grad():
            self.like = self.outputs(*example)
        self.names = tuple(flatten(self.like))

    def outputs(self, images: Tensor, valid: Tensor, *further: Tensor) -> Any:
        """images (1, 3, H, W), valid bool (1, H, W), and both again for a second network → what `decode` takes."""
        found = self.model(images, valid, (further,)) if further else self.model(images, valid)
        queries = finished(self.model, found)
        if not self.rule_inside:
            return queries
        return panoptic_of_queries(queries, (images.shape[2], images.shape[3]), self.model.labels, self.model.rules)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(flatten(self.outputs(*inputs)).values())


def check_rule_inside(model: Any, name: str) -> None:
    """Raises PansightError where the rule of decode cannot be part of a graph."""
    if not isinstance(getattr(model, "rules", None), QueryRules):
        raise PansightError(
            where="rule_inside",
            expected="a system whose masks compete, MaskFormer, Mask2Former or EoMT",
            found=f"{name}, whose rule takes one segment after the other",
            hint="pansight.runtime applies that rule behind the graph",
        )


class Size(NamedTuple):
    """The size of the input of a graph."""

    rule: ResizeRule
    """How photos become it."""
    fixed: tuple[int, int] | None
    """(H, W) where it is one; None: any multiples of the divisor."""

    def padded(self, images: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """images (1, 3, H, W) and valid (1, H, W), which fit into it, with zeros at the right and bottom."""
        if self.fixed is None:
            return images.contiguous(), valid
        margin = (0, self.fixed[1] - images.shape[3], 0, self.fixed[0] - images.shape[2])
        return F.pad(images, margin).contiguous(), F.pad(valid, margin)

    def example(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """An image of noise of that size, with some padding, and its valid pixels."""
        height, width = self.fixed or self.rule.padded(*SMALLEST)
        draw = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8, generator=draw).to(dtype)
        valid = torch.ones((1, height, width), dtype=torch.bool)
        valid[:, height - height // 8 :], valid[:, :, width - width // 16 :] = False, False
        return images * valid.unsqueeze(1), valid


def own_size(rule: ResizeRule) -> tuple[int, int] | None:
    """(H, W) of the input where a rule makes every photo the same size, else None."""
    sizes = {rule.padded(*rule.target(*photo)) for photo in PROBES}
    return sizes.pop() if len(sizes) == 1 else None


def sizes_of(model: Any, asked: tuple[int, int] | None) -> list[tuple[Size, ...]]:
    """What may be tried, the best first: of each a Size for every input of the model.

    Without a size that is asked for: any size, then the size that a photo of 3 : 4 becomes.
    Raises PansightError for a size that the network does not take.
    """
    first: ResizeRule = model.input.resize
    further = model.further_inputs() if isinstance(model, SeveralInputs) else ()
    rules = [first, *(each.resize for each in further)]
    if asked is not None:
        for rule in rules:
            if rule.padded(*asked) != tuple(asked) or min(asked) < 1:
                expected = f"multiples of {rule.divisor} pixels"
                raise PansightError(where="size", expected=expected, found=f"{asked[0]} × {asked[1]}")
        own = {own_size(rule) for rule in rules} - {None, tuple(asked)}
        if own:
            (height, width) = next(size for size in own if size is not None)
            expected = f"the only size of this network, {height} × {width}"
            raise PansightError(where="size", expected=expected, found=f"{asked[0]} × {asked[1]}")
        return [tuple(Size(_fitted(rule, asked), asked) for rule in rules)]
    owns = [own_size(rule) for rule in rules]
    last = [rule.padded(*rule.target(480, 640)) for rule in rules]
    fitted = tuple(
        Size(rule if own else _fitted(rule, size), size) for rule, own, size in zip(rules, owns, last, strict=True)
    )
    if all(owns):
        return [fitted]
    return [tuple(Size(rule, own) for rule, own in zip(rules, owns, strict=True)), fitted]


def _fitted(rule: ResizeRule, size: tuple[int, int]) -> ResizeRule:
    """Photos become the largest of their shape that fits into `size`."""
    return rule if own_size(rule) == size else rule._replace(height=size[0], width=size[1])


def dtype_of(rule: ResizeRule) -> torch.dtype:
    """uint8, or float32 where the filter of a rule makes pixels between whole numbers."""
    import numpy as np

    return torch.from_numpy(resize_photo(np.zeros((8, 8, 3), np.uint8), 4, 4, rule.filter)).dtype


@torch.no_grad()
def traced(graph: Graph, sizes: Sequence[Size], example: Sequence[Tensor]) -> torch.export.ExportedProgram:
    """The program of torch.export, with the plain twins of what was written for speed."""
    shapes: list[dict[int, Any] | None] = []
    for size in sizes:
        free = torch.export.Dim.DYNAMIC
        shapes += [{2: free, 3: free}, {1: free, 2: free}] if size.fixed is None else [None, None]
    with warnings.catch_warnings(), plain():
        warnings.simplefilter("ignore")  # of torch, on its own ways
        program = torch.export.export(graph, tuple(example), dynamic_shapes=(tuple(shapes),), strict=False)
    drop_ceilings(program.graph_module)
    return program


def drop_ceilings(module: torch.fx.GraphModule) -> None:
    """Take the ceilings of whole numbers, which torch cannot save, out of a graph: ⌈n / 1⌉ of timm's pooling."""
    for node in module.graph.nodes:
        if node.target is math.ceil and node.args[0].target is operator.truediv and node.args[0].args[1] == 1:
            node.replace_all_uses_with(node.args[0].args[0])
            module.graph.erase_node(node)
    module.recompile()
