"""What a system is to the rest of the house: `Model`, the type of what its builders return, and `Entry`, what its file
declares of each of them.

Whatever differs between systems and matters outside of their files stands in an entry, and nothing anywhere decides by
a model's name or class. So a new model is one file, which ends with a table of entries, and one line in ``MODELS``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from torch import Tensor

from pansight.models.options import Option
from pansight.nn.input import Input
from pansight.types import Batch, LabelSpace, Prediction


class Model(Protocol):
    """What the engine asks of a network, which is an ``nn.Module`` besides. Nothing inherits from this type."""

    labels: LabelSpace

    @property
    def input(self) -> Input:
        """How a photo becomes what the network sees: size, filter, padding, mean, deviation, channel order."""
        ...

    def set_progress(self, share: float) -> None:
        """Called before every step of training with the share of the run that is over, 0 … 1.

        It changes what changes as training progresses (EoMT lets go of its masks), as a function of `share` alone, so
        that a resumed run goes on as it was.
        """
        ...

    def forward(self, images: Tensor, valid: Tensor | None = None) -> Any:
        """images uint8 (B, 3, H, W) RGB, valid bool (B, H, W), False on padding → a NamedTuple of tensors."""
        ...

    def counts(self, batch: Batch) -> Mapping[str, Tensor | float]:
        """What the terms of the loss are divided by, of this batch alone: numbers of images, segments, pixels …

        They add up over the parts of a step, and are asked for before the first backward pass of a step that has parts.
        Most follow from the truth alone; the R-CNN family runs as far as its proposals to know how many it samples.
        """
        ...

    def loss(self, batch: Batch, totals: Mapping[str, float] | None = None) -> dict[str, Tensor]:
        """Weighted scalars, whose sum is stepped on. totals: the sums of `counts` over the parts of the step; None:
        the batch is the whole of it.
        """
        ...

    def decode(self, outputs: Any, sizes: Sequence[tuple[int, int]]) -> list[Prediction]:
        """What `forward` returned, as predictions at the `sizes` (H, W) of the files.

        Further arguments have defaults: thresholds of the model, and `task` where the entry has tasks.
        """
        ...


@dataclass(frozen=True)
class TrainingDefaults:
    """What open settings of ``[train]`` become; these are the values for systems without customs of their own."""

    lr: float = 0.0
    """Peak rate of AdamW; 0: it goes by the size of the batch."""
    lr_of_few_images: float = 0.0
    """The same for a small data set (``engine.automatic.statistics.FEW_IMAGES``); 0: no difference."""
    backbone_lr_factor: float = 1.0
    layer_decay: float = 1.0
    weight_decay: float = 1e-4
    clip_norm: float = 0.0


@dataclass(frozen=True)
class RateGroups:
    """Which parameters have a learning rate of their own, and which never decay, by their names."""

    backbone: str | tuple[str, ...] = "backbone."
    """Names that begin so (with one of several) learn at ``train.backbone_lr_factor`` times the rate."""
    block: str = ""
    """A pattern for names of the backbone, its group the number of a block from below: each of these learns at
    ``train.layer_decay`` times the rate of the one above. "": the backbone has no such blocks."""
    above_blocks: tuple[str, ...] = ()
    """Beginnings of names that have the rate of the last block; what else is in no block has that of the first."""
    slow: str = ""
    """A pattern for parts of names that learn at a tenth of the rate; "": none do."""
    embeddings: tuple[str, ...] = ("relative_position_bias_table", "pos_embed", "cls_token", "reg_token")
    """Ends of the names of embeddings that are no ``nn.Embedding``, which do not decay: timm's and Swin's."""


BACKGROUND, NO_OBJECT = "(background)", "(no object)"

ClassRows = Callable[[LabelSpace], Sequence[str]]
"""The class of each row of a tensor whose first axis is classes."""


def every_class(labels: LabelSpace) -> list[str]:
    """Things and stuff in the label space's order: a plain semantic head."""
    return list(labels.names)


def every_class_and_no_object(labels: LabelSpace) -> list[str]:
    """The class head of learned queries."""
    return [*labels.names, NO_OBJECT]


def things(labels: LabelSpace) -> list[str]:
    """detectron2's mask head."""
    return [category.name for category in labels.things]


def things_and_background(labels: LabelSpace) -> list[str]:
    """detectron2's class head."""
    return [*things(labels), BACKGROUND]


def background_and_things(labels: LabelSpace) -> list[str]:
    """All heads of torchvision."""
    return [BACKGROUND, *things(labels)]


def background_and_stuff(labels: LabelSpace) -> list[str]:
    """Panoptic FPN's semantic head, in which all things are class 0."""
    return [BACKGROUND, *(category.name for category in labels.stuff)]


def stuff_and_things(labels: LabelSpace) -> list[str]:
    """UPSNet's semantic head, whose classes are numbered stuff first."""
    return [category.name for category in (*labels.stuff, *labels.things)]


def boxes_of(rows: ClassRows) -> ClassRows:
    """Four rows for each of `rows`: dx, dy, dw, dh."""
    return lambda labels: [name for name in rows(labels) for _ in range(4)]


Adaptable = Literal[
    "pretrained", "frozen_bn", "short", "size", "anchor_sizes", "detections", "queries", "min_stuff_area"
]


@dataclass(frozen=True)
class Entry:
    """A line of ``MODELS``. Only the first three have no default."""

    build: Callable[..., Model]
    """build(labels, **options); every option has a default. `pansight models` shows the docstring's first line."""
    architecture: str
    """A word: the weights of one architecture start every entry of the same one."""
    produces: tuple[Literal["panoptic", "semantic", "instances"], ...]
    """The parts of a Prediction that decode can fill."""
    options: Mapping[str, Option] = field(default_factory=dict[str, Option])
    """What each option of the builder means, and which values it may have."""
    tasks: tuple[str, ...] = ()
    """What decode's `task` may say; (): it has no such argument."""
    needs_things: bool = False
    """A detector has nothing to learn from stuff alone."""
    backbone: Literal["pyramid", "vit", ""] = ""
    """What the option `backbone` names: any timm network with maps of several sizes, any plain ViT of timm, or "":
    the network is fixed."""
    adapts: tuple[Adaptable, ...] = ()
    """Options that are chosen from the data and the machine where the user gives none (``engine.automatic``); `short`
    stands for short and long, `size` for the side of a fixed square."""
    stuff: str = ""
    """The option that must be true for the model to learn stuff; "": it learns all of its classes."""
    small: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Options that make the network small enough to train on a CPU, or on few small images, in minutes. They are chosen
    there where the user gives none; the size of the image is none of them."""
    training: TrainingDefaults = TrainingDefaults()
    rates: RateGroups = RateGroups()
    class_rows: Mapping[str, ClassRows] = field(default_factory=dict[str, ClassRows])
    """Modules with a class axis, by name: fine-tuning keeps their rows by the classes' names. Of a module of several
    layers the last one has the classes."""
    pixel_classes: ClassRows = every_class
    """What the loss over pixels tells apart, one for each of the option `class_weights`; a class that is not among them
    counts as BACKGROUND."""
    queries: tuple[str, ...] = ()
    """Tensors with a row for each learned query: no query is tied to a class, so the first ones are kept where their
    number differs."""
    positions: tuple[str, ...] = ()
    """Learned positions (1, side², channels), which are resampled to another size of the input."""
    licence: str = ""
    """Of the weights that its authors published, as ``weights.licences.LICENCES`` names it."""
    tiny: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Options that make a network of a moment, for the tests of the contract."""
    networks: tuple[str, ...] = ()
    """Options that name other models, which this one is put together of. Of each of them, say NAME: the model is the
    module NAME; NAME_options is the option that holds its options, NAME_classes the one that says which class of this
    model each of its own is (see ``combined.py``). The builder then takes `build` besides, by which it makes them."""
    borrows: str = ""
    """An option, say NAME, that names another detector, of which this model has a frozen part as its module NAME.
    NAME_options is the option that holds the options of that one, and NAME_weights the one that names a trained one,
    which training replaces by these two. The builder then takes `build` besides, by which it makes the other one."""
    variant_of: str = ""
    """The name of the general entry that this one is with every size fixed: it is tested by that one's tiny options."""

    def published(self, build: Callable[..., Model], general: str, *adapts: Adaptable) -> Entry:
        """The entry of a network that was published with weights: this one, whose name is `general`, of fixed sizes."""
        return replace(self, build=build, variant_of=general, backbone="", adapts=adapts, small={}, tiny={})
