"""Panoptic-DeepLab's files, generated in both published layouts: every tensor is loaded, and into the right place."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from pansight.errors import PansightError
from pansight.models import build
from pansight.types import LabelSpace
from pansight.weights import _recognised
from pansight.weights.keys import rename
from pansight.weights.official.panoptic import panoptic_deeplab as detectron2
from pansight.weights.official.panoptic import panoptic_deeplab_authors as authors

BLOCKS = (3, 4, 6, 3)
NORM = ("weight", "bias", "running_mean", "running_var")
Shapes = dict[str, tuple[int, ...]]


def conv(shapes: Shapes, name: str, out: int, into: int, kernel: int, norm: str = ".norm") -> None:
    shapes[f"{name}.weight"] = (out, into, kernel, kernel)
    for part in NORM:
        shapes[f"{name}{norm}.{part}"] = (out,)


def detectron2_layout(classes: int = 19, separable: bool = False) -> Shapes:
    shapes: Shapes = {}
    for number, (out, into) in enumerate(((64, 3), (64, 64), (128, 64)), start=1):
        conv(shapes, f"backbone.stem.conv{number}", out, into, 3)
    into = 128
    for stage, blocks in enumerate(BLOCKS):
        width, out = 64 * 2**stage, 256 * 2**stage
        for block in range(blocks):
            name = f"backbone.res{stage + 2}.{block}"
            if block == 0:
                conv(shapes, f"{name}.shortcut", out, into, 1)
            conv(shapes, f"{name}.conv1", width, into, 1)
            conv(shapes, f"{name}.conv2", width, width, 3)
            conv(shapes, f"{name}.conv3", out, width, 1)
            into = out

    def large(name: str, out: int, into: int, kernel: int, alone: bool) -> None:
        if alone:
            conv(shapes, f"{name}.depthwise", into, 1, kernel)
            conv(shapes, f"{name}.pointwise", out, into, 1)
        else:
            conv(shapes, name, out, into, kernel)

    def two(name: str, out: int, into: int, middle: int | None = None) -> None:
        if separable and middle is None:
            large(name, out, into, 5, True)
        else:
            conv(shapes, f"{name}.0", out if middle is None else middle, into, 3)
            conv(shapes, f"{name}.1", out, out if middle is None else middle, 3)

    for head, width in (("sem_seg_head", 256), ("ins_embed_head", 128)):
        aspp = f"{head}.decoder.res5.project_conv"
        conv(shapes, f"{aspp}.convs.0", 256, 2048, 1)
        for branch in (1, 2, 3):
            large(f"{aspp}.convs.{branch}", 256, 2048, 3, separable)
        shapes |= {f"{aspp}.convs.4.1.weight": (256, 2048, 1, 1), f"{aspp}.convs.4.1.bias": (256,)}
        conv(shapes, f"{aspp}.project", 256, 1280, 1)
        conv(shapes, f"{head}.decoder.res3.project_conv", 64, 512, 1)
        conv(shapes, f"{head}.decoder.res2.project_conv", 32, 256, 1)
        two(f"{head}.decoder.res3.fuse_conv", width, 320)
        two(f"{head}.decoder.res2.fuse_conv", width, width + 32)
    two("sem_seg_head.head", 256, 256)
    two("ins_embed_head.center_head", 32, 128, 128)
    two("ins_embed_head.offset_head", 32, 128, None if separable else 128)
    for name, out, width in (("sem_seg_head.predictor", classes, 256), ("ins_embed_head.center_predictor", 1, 32)):
        shapes |= {f"{name}.weight": (out, width, 1, 1), f"{name}.bias": (out,)}
    return shapes | {
        "ins_embed_head.offset_predictor.weight": (2, 32, 1, 1),
        "ins_embed_head.offset_predictor.bias": (2,),
    }


def authors_layout(classes: int = 19) -> Shapes:
    shapes: Shapes = {}
    conv(shapes, "backbone.conv1", 64, 3, 7, "-bn1")
    into = 64
    for stage, blocks in enumerate(BLOCKS, start=1):
        width, out = 32 * 2**stage, 128 * 2**stage
        for block in range(blocks):
            name = f"backbone.layer{stage}.{block}"
            conv(shapes, f"{name}.conv1", width, into, 1, "-bn1")
            conv(shapes, f"{name}.conv2", width, width, 3, "-bn2")
            conv(shapes, f"{name}.conv3", out, width, 1, "-bn3")
            if block == 0:
                conv(shapes, f"{name}.downsample.0", out, into, 1, "-downsample.1")
            into = out
    # "layer1.0.conv1-bn1.weight" → "layer1.0.bn1.weight", "downsample.0-downsample.1" → "downsample.1"
    shapes = {
        (f"{key.split('-')[0].rpartition('conv')[0]}{key.split('-')[1]}" if "conv" in key and "-" in key else key): s
        for key, s in shapes.items()
    }
    shapes = {key.replace("downsample.0-downsample.1", "downsample.1"): s for key, s in shapes.items()}

    def numbered(name: str, out: int, into: int, kernel: int) -> None:
        shapes[f"{name}.0.weight"] = (out, into, kernel, kernel)
        shapes.update({f"{name}.1.{part}": (out,) for part in NORM})

    def separable(name: str, out: int, into: int) -> None:
        numbered(f"{name}.0", into, 1, 5)
        shapes[f"{name}.1.weight"] = (out, into, 1, 1)
        shapes.update({f"{name}.2.{part}": (out,) for part in NORM})

    for kind, width, low in (("semantic", 256, (128, 64, 32)), ("instance", 128, (64, 32, 16))):
        name = f"decoder.{kind}_decoder"
        for branch in range(4):
            numbered(f"{name}.aspp.convs.{branch}", 256, 2048, 3 if branch else 1)
        shapes[f"{name}.aspp.convs.4.aspp_pooling.1.weight"] = (256, 2048, 1, 1)
        numbered(f"{name}.aspp.project", 256, 1280, 1)
        for number, (channels, joined) in enumerate(zip((1024, 512, 256), low, strict=True)):
            numbered(f"{name}.project.{number}", joined, channels, 1)
            separable(f"{name}.fuse.{number}.0", width, (256 if number == 0 else width) + joined)
    for name, out, width, into in (
        ("semantic_head.classifier.semantic", classes, 256, 256),
        ("instance_head.classifier.center", 1, 32, 128),
        ("instance_head.classifier.offset", 2, 32, 128),
    ):
        separable(f"decoder.{name}.0.0", width, into)
        shapes |= {f"decoder.{name}.1.weight": (out, width, 1, 1), f"decoder.{name}.1.bias": (out,)}
    return shapes


def filled(shapes: Shapes) -> dict[str, Tensor]:
    """A number of its own in every tensor, at little memory."""
    return {name: torch.full((1,), float(k)).expand(shape) for k, (name, shape) in enumerate(shapes.items())}


def own(name: str, labels: LabelSpace, **options: bool) -> dict[str, Tensor]:
    with torch.device("meta"):
        state = build(name, labels, **options).state_dict()
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}


CITYSCAPES = LabelSpace.from_names([f"t{i}" for i in range(8)], [f"s{i}" for i in range(11)])
COCO = LabelSpace.from_names([f"t{i}" for i in range(80)], [f"s{i}" for i in range(53)])


@pytest.mark.parametrize(
    ("name", "labels", "options", "layout", "count"),
    [
        ("panoptic_deeplab_r52_d2_cityscapes", CITYSCAPES, {}, detectron2_layout(), 59_770_166),
        (
            "panoptic_deeplab_r52_d2_cityscapes",
            CITYSCAPES,
            {"separable": True},
            detectron2_layout(separable=True),
            30_271_350,
        ),
        ("panoptic_deeplab_r52_d2_coco", COCO, {}, detectron2_layout(133, True), 30_300_648),
        ("panoptic_deeplab_r50_cityscapes", CITYSCAPES, {}, authors_layout(), 55_308_870),
    ],
)
def test_every_tensor_has_one_place(
    name: str, labels: LabelSpace, options: dict[str, bool], layout: Shapes, count: int
) -> None:
    """The renaming is one to one and fits in shape; parameters are as many as published."""
    origin = authors if name.endswith("r50_cityscapes") else detectron2
    state = filled(layout)
    renamed = rename(state, origin.RULES, origin.IGNORED, "file")
    ours = own(name, labels, **options)
    assert {key: value.shape for key, value in renamed.items()} == {key: value.shape for key, value in ours.items()}
    assert len(renamed) == len(state)
    statistics = ("running_mean", "running_var")
    assert sum(value.numel() for key, value in renamed.items() if not key.endswith(statistics)) == count
    found = _recognised(state, "file")
    assert found is not None
    assert found[0] == ("Panoptic-DeepLab" if origin is authors else "detectron2's Panoptic-DeepLab")


def test_detectron2s_deeplab_is_no_panoptic_one() -> None:
    """All of the keys that tell the semantic network are in the panoptic file, too."""
    state = {key: value for key, value in filled(detectron2_layout()).items() if not key.startswith("ins_embed_head.")}
    found = _recognised(state, "file")
    assert found is not None
    assert found[0] == "detectron2's DeepLab"


@pytest.mark.slow  # a network of full size
def test_a_file_of_detectron2_becomes_a_model(tmp_path: Path) -> None:
    model, name, options = detectron2.load(filled(detectron2_layout(separable=True)), "file")
    assert (name, options) == ("panoptic_deeplab_r52_d2_cityscapes", {"separable": True})
    assert [category.name for category in model.labels][:2] == ["road", "sidewalk"]
    assert len(model.labels.things) == 8


def test_what_the_authors_join_the_other_way_round() -> None:
    """2 channels of the finer map behind 3 from below become the first ones, in all that reads or follows them."""
    prefix = "decoder.instance_decoder"
    state = {
        f"{prefix}.project.1.0.weight": torch.zeros(2, 4, 1, 1),
        f"{prefix}.fuse.1.0.0.0.weight": torch.arange(5.0).view(5, 1, 1, 1),
        f"{prefix}.fuse.1.0.0.1.running_var": torch.arange(5.0),
        f"{prefix}.fuse.1.0.1.weight": torch.arange(5.0).view(1, 5, 1, 1),
        f"{prefix}.fuse.1.0.2.weight": torch.arange(5.0),
    }
    turned = authors.turned(state, "file")
    for key in list(state)[1:4]:
        assert turned[key].flatten().tolist() == [3, 4, 0, 1, 2]
    assert turned[f"{prefix}.fuse.1.0.2.weight"].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("layout", [detectron2_layout(), authors_layout()], ids=["detectron2", "authors"])
def test_a_layer_too_few_is_one_line(layout: Shapes) -> None:
    state = filled(layout)
    origin = detectron2 if detectron2.recognises(state) else authors
    del state[next(key for key in state if "aspp" in key or "project_conv.convs" in key)]
    with pytest.raises(PansightError, match=r"^file: ") as caught:
        origin.load(state, "file")
    assert "\n" not in str(caught.value)
