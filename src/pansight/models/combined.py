"""Two networks made one. Kirillov, He, Girshick, Rother, Dollár: Panoptic Segmentation, CVPR 2019, section 6.

An instance network finds the things and a semantic network the stuff, each by its own input rule; their predictions are
merged by the fixed rule of the paper, in detectron2's form (``ops/fusion/instances.py``): objects are painted by
falling score, those that are covered too much are skipped, and stuff fills what is left, unless too little is left of
it. Areas are counted at the size of the file.

With PSPNet and Mask R-CNN the paper has PQ 61.2 on Cityscapes val, 35.6 on ADE20K and 38.3 on Mapillary Vistas, from
ensembles and with other training data than any model here. Two trained networks are put together by
``pansight combine``; what is built here from names may also be trained as a whole, on the sum of both losses. See
docs/combining.md.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pansight.errors import PansightError
from pansight.models.contract import Entry, Model, RateGroups
from pansight.models.options import DECODE_OPTIONS, Option, whole
from pansight.nn.input import Input
from pansight.ops.fusion.exported import finished
from pansight.ops.fusion.instances import merge_by_label_map
from pansight.ops.fusion.label_spaces import MISSING, labels_of_network
from pansight.ops.targets import in_other_classes
from pansight.types import IGNORE, Batch, Instances, LabelSpace, Prediction


class CombinedOutputs(NamedTuple):
    instances: Any  # the outputs of the instance network
    semantic: Any  # and of the semantic one


class Combined(nn.Module):
    """An instance network and a semantic one. instances_classes, semantic_classes: of each class of the network, its
    index in `labels` or MISSING; empty: the classes are those of `labels`.

    score_threshold, max_overlap, min_stuff_area: defaults of the merge (docs/systems/merging.md).
    """

    def __init__(
        self,
        instances: Any,
        semantic: Any,
        labels: LabelSpace,
        instances_classes: Sequence[int] = (),
        semantic_classes: Sequence[int] = (),
        score_threshold: float = 0.5,
        max_overlap: float = 0.5,
        min_stuff_area: int = 4096,
    ):
        super().__init__()
        self.instances, self.semantic, self.labels = instances, semantic, labels
        self.instances_classes, self.semantic_classes = tuple(instances_classes), tuple(semantic_classes)
        self.score_threshold = score_threshold
        self.max_overlap = max_overlap
        self.min_stuff_area = min_stuff_area

    @property
    def input(self) -> Input:
        """That of the instance network, which is also what both are trained by."""
        return self.instances.input

    def further_inputs(self) -> tuple[Input, ...]:
        """Of the networks that look at a photo in another way than `input` says: `forward` takes it once more for each
        of them.
        """
        return () if self.semantic.input.resize == self.input.resize else (self.semantic.input,)

    def forward(
        self, images: Tensor, valid: Tensor | None = None, further: Sequence[tuple[Tensor, Tensor]] = ()
    ) -> CombinedOutputs:
        """images uint8 (B, 3, H, W) RGB, valid bool (B, H, W), False on padding.

        further: the same photos, again with their valid pixels, as `further_inputs` want them; without any, both
        networks look at `images`, as in training.
        """
        of_semantic = further[0] if further else (images, valid)
        return CombinedOutputs(self.instances(images, valid), self.semantic(*of_semantic))

    def last_steps(self, outputs: CombinedOutputs) -> CombinedOutputs:
        """The same, as far as the graphs of both networks go."""
        return CombinedOutputs(finished(self.instances, outputs.instances), finished(self.semantic, outputs.semantic))

    def counts(self, batch: Batch) -> dict[str, Tensor | float]:
        """The counts of both networks, by names that begin with the network's."""
        return {
            f"{network}_{key}": value
            for network, model, own in self._networks(batch)
            for key, value in model.counts(own).items()
        }

    def loss(self, batch: Batch, totals: Mapping[str, float] | None = None) -> dict[str, Tensor]:
        """The losses of both networks on the same images, by names that begin with the network's."""
        losses: dict[str, Tensor] = {}
        for network, model, own in self._networks(batch):
            start = f"{network}_"
            of_network = None
            if totals is not None:
                of_network = {k.removeprefix(start): v for k, v in totals.items() if k.startswith(start)}
            losses |= {f"{start}{key}": value for key, value in model.loss(own, of_network).items()}
        return losses

    def _networks(self, batch: Batch) -> list[tuple[str, Any, Batch]]:
        """(name, network, the batch in its classes) of both."""
        pairs = (
            ("instances", self.instances, self.instances_classes),
            ("semantic", self.semantic, self.semantic_classes),
        )
        return [(name, model, in_classes_of(batch, classes, len(self.labels))) for name, model, classes in pairs]

    def decode(
        self,
        outputs: CombinedOutputs,
        sizes: Sequence[tuple[int, int]],
        score_threshold: float | None = None,
        max_overlap: float | None = None,
        min_stuff_area: int | None = None,
    ) -> list[Prediction]:
        """What both networks say at the original `sizes` (H, W), and the panoptic map of both.

        Thresholds of the merge that are left out are the model's own.
        """
        objects = _decoded(self.instances, outputs.instances, sizes, "instance")
        maps = _decoded(self.semantic, outputs.semantic, sizes, "semantic")
        predictions: list[Prediction] = []
        for of_objects, of_map in zip(objects, maps, strict=True):
            assert of_objects.instances is not None  # what may be chosen as a network is checked by its entry
            assert of_map.semantic is not None
            found = _in_classes(of_objects.instances, self.instances_classes)
            semantic = of_map.semantic
            if self.semantic_classes:
                table = [IGNORE if index == MISSING else index for index in self.semantic_classes]
                # IGNORE, which is −1, looks up the last
                semantic = torch.tensor([*table, IGNORE], device=semantic.device)[semantic]
            assert found.masks is not None
            panoptic = merge_by_label_map(
                found.masks,
                found.scores,
                found.labels,
                semantic,
                self.labels,
                self.score_threshold if score_threshold is None else score_threshold,
                self.max_overlap if max_overlap is None else max_overlap,
                self.min_stuff_area if min_stuff_area is None else min_stuff_area,
            )
            predictions.append(Prediction(panoptic, semantic, found))
        return predictions

    def set_progress(self, share: float) -> None:
        """Passed on to both networks."""
        self.instances.set_progress(share)
        self.semantic.set_progress(share)


def _decoded(network: Any, outputs: Any, sizes: Sequence[tuple[int, int]], task: str) -> list[Prediction]:
    """The predictions of a network, which is told its task where it can do several."""
    has_tasks = "task" in inspect.signature(network.decode).parameters
    return network.decode(outputs, sizes, **({"task": task} if has_tasks else {}))


def _in_classes(found: Instances, classes: Sequence[int]) -> Instances:
    """Objects of a network in the classes of the whole. Its things all have one: MISSING are stuff alone."""
    if not classes:
        return found
    labels = torch.tensor(classes, device=found.labels.device)[found.labels]
    return replace(found, labels=labels)


def in_classes_of(batch: Batch, classes: Sequence[int], count: int) -> Batch:
    """A batch whose truth has the classes of a network: `classes` are the indices of its classes among the `count` of
    the whole. What it does not know becomes void.
    """
    if not classes:
        return batch
    class_of_category = [IGNORE] * count
    for own, index in enumerate(classes):
        if index != MISSING:
            class_of_category[index] = own
    return in_other_classes(batch, class_of_category)


def combined(
    labels: LabelSpace,
    *,
    build: Callable[..., Model],
    instances: str = "mask_rcnn",
    semantic: str = "pspnet",
    instances_options: Mapping[str, Any] | None = None,
    semantic_options: Mapping[str, Any] | None = None,
    instances_classes: Sequence[int] = (),
    semantic_classes: Sequence[int] = (),
    score_threshold: float = 0.5,
    max_overlap: float = 0.5,
    min_stuff_area: int = 4096,
) -> Combined:
    """Any instance network and any semantic network, merged by the rule of "Panoptic Segmentation" (CVPR 2019).

    instances, semantic: names of models, whose builders get instances_options and semantic_options; build: makes them.
    instances_classes, semantic_classes: of each class of that network, its index in `labels`, or −1; empty: all, in
    their order. Raises PansightError where an index is no class.
    """
    networks: list[Model] = []
    of_networks = (
        ("instances", instances, instances_options, instances_classes),
        ("semantic", semantic, semantic_options, semantic_classes),
    )
    for name, model, options, classes in of_networks:
        try:
            own = labels_of_network(labels, classes, name == "semantic")
        except PansightError as error:
            raise error.at(f"{name}_classes of model combined") from error
        networks.append(build(model, own, **(options or {})))
    thresholds = score_threshold, max_overlap, min_stuff_area
    return Combined(networks[0], networks[1], labels, instances_classes, semantic_classes, *thresholds)


def _classes(of: str) -> Option:
    meaning = f"index of each class of the {of} network among all classes, -1: none of them; empty: all, in order"
    return Option(meaning, "whole numbers", MISSING, 65_535, longest=10_000)


OPTIONS: dict[str, Option] = {
    "instances": Option("the model that finds the things, one of panoptic maps and instances", "text"),
    "semantic": Option("the model that finds the stuff, one of semantic maps", "text"),
    "instances_options": Option("options of the instance network", "table", optional=True),
    "semantic_options": Option("options of the semantic network", "table", optional=True),
    "instances_classes": _classes("instance"),
    "semantic_classes": _classes("semantic"),
    "score_threshold": DECODE_OPTIONS["score_threshold"],
    "max_overlap": DECODE_OPTIONS["max_overlap"],
    "min_stuff_area": whole("stuff of fewer pixels is dropped", 0, 2**40),
}

TINY_INSTANCES: dict[str, Any] = {"backbone": "resnet10t", "short": 0, "long": 0, "fpn_channels": 16}
TINY_INSTANCES |= {"anchor_sizes": (8, 16, 32, 64, 128), "proposals": 40, "roi_samples": 32, "detections": 20}
TINY_INSTANCES |= {"mask_convs": 1, "mask_channels": 8, "box_features": 16}
TINY_SEMANTIC: dict[str, Any] = {"backbone": "resnet10t", "short": 0, "long": 0, "width": 16, "frozen_bn": True}

ENTRIES: dict[str, Entry] = {
    "combined": Entry(
        combined,
        architecture="combined",
        produces=("panoptic", "semantic", "instances"),
        options=OPTIONS,
        needs_things=True,
        adapts=("min_stuff_area",),
        rates=RateGroups(backbone=("instances.backbone.", "semantic.backbone.")),
        networks=("instances", "semantic"),
        tiny={"instances_options": TINY_INSTANCES, "semantic_options": TINY_SEMANTIC},
    )
}
