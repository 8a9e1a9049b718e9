"""The one inference: photos alone in, the same predictions as by hand; flips and scales are means of class scores."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pansight
from pansight.config import EvaluateConfig
from pansight.data.formats.shapes import Shapes
from pansight.data.loader import pad_images
from pansight.engine.evaluate import predict_all
from pansight.engine.infer import Inference, check_decode_options, infer, prepare, views_of
from pansight.errors import PansightError
from pansight.models import MODELS, build
from pansight.nn.input import Input
from pansight.ops.resize import ResizeRule
from pansight.types import LabelSpace, Prediction

SOURCE = Path(pansight.__file__).parent
CPU = torch.device("cpu")
EOMT = {"size": 32, "queries": 4, "blocks": 1, "vit_options": {"embed_dim": 24, "depth": 2, "num_heads": 2}}
SMALL = {"backbone": "resnet18", "short": 32, "long": 64}
QUERIES = {
    "eomt": EOMT,
    "maskformer": {**SMALL, "queries": 5, "channels": 16, "heads": 2, "layers": 1, "hidden": 16},
    "mask2former": {**SMALL, "queries": 5, "channels": 16, "heads": 2, "layers": 3, "hidden": 16, "encoder_layers": 1},
}


class Brightness(NamedTuple):
    logits: Tensor  # (B, 2, H, W)
    valid: Tensor  # bool (B, H, W)


class LeftIsDark(nn.Module):
    """Class 1 where a pixel is brighter than its left neighbour, by a fixed filter: mirrored photos give the opposite.

    Semantic only: its decode knows no task.
    """

    def __init__(self) -> None:
        super().__init__()
        self.labels = LabelSpace.from_names([], ["falling", "rising"])
        self.input = Input(ResizeRule(0, 0, 4))
        self.weight = nn.Parameter(torch.tensor([[[[-1.0, 1.0]]]]))
        self.seen: list[tuple[int, ...]] = []

    def forward(self, images: Tensor, valid: Tensor | None = None) -> Brightness:
        assert valid is not None
        self.seen.append(tuple(images.shape))
        grey = F.pad(images.float().mean(1, keepdim=True), (1, 0, 0, 0), mode="replicate")  # (B, 1, H, W + 1)
        rising = F.conv2d(grey, self.weight)  # (B, 1, H, W)
        return Brightness(torch.cat([-rising, rising + 1], 1), valid)

    def class_scores(self, outputs: Brightness, sizes: list[tuple[int, int]]) -> list[Tensor]:
        scores = []
        for logits, valid, size in zip(outputs.logits, outputs.valid, sizes, strict=True):
            height, width = int(valid.any(1).sum()), int(valid.any(0).sum())
            scores.append(F.interpolate(logits[None, :, :height, :width].softmax(1), size, mode="bilinear")[0])
        return scores

    def decode(self, outputs: Brightness, sizes: list[tuple[int, int]]) -> list[Prediction]:
        return [Prediction(semantic=scores.max(0).indices) for scores in self.class_scores(outputs, sizes)]


def photos(*sizes: tuple[int, int], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes]


def test_photos_alone_in_batches_give_what_the_model_gives_by_hand() -> None:
    model, images = LeftIsDark(), photos((8, 12), (6, 10), (8, 8))
    found = list(infer(prepare(model, Inference(CPU)), iter(images), Inference(CPU, batch_size=2)))
    assert model.seen == [(2, 3, 8, 12), (1, 3, 8, 8)]
    for image, prediction in zip(images, found, strict=True):
        size = (image.shape[1], image.shape[2])
        pixels, valid = pad_images([image], 4)
        (expected,) = model.decode(model(pixels, valid), [size])
        assert prediction.semantic.shape == size
        assert torch.equal(prediction.semantic, expected.semantic)
    assert list(infer(model, [], Inference(CPU))) == []


def test_flips_and_scales_are_the_mean_of_the_class_scores() -> None:
    model, (image,) = LeftIsDark(), photos((8, 12))
    settings = Inference(CPU, flip=True, scales=(0.5, 1.0, 2.0))
    (found,) = infer(prepare(model, settings), [image], settings)
    expected = torch.zeros(2, 8, 12)
    for height, width in ((4, 6), (8, 12), (16, 24)):
        pixels = F.interpolate(image[None].float(), (height, width), mode="bilinear", antialias=True)
        pixels = pixels.round()[0].to(torch.uint8)
        (view,) = views_of([image], ResizeRule(0, 0, 1), (height / 8,))
        assert (view.images[0].int() - pixels.int()).abs().max() <= 1  # averaged where it shrinks, to rounding
        for mirrored in (False, True):
            part = view.images[0].flip(2) if mirrored else view.images[0]
            (scores,) = model.class_scores(model(*pad_images([part], 4)), [(8, 12)])
            expected += scores.flip(2) if mirrored else scores
    assert torch.equal(found.semantic, expected.argmax(0))
    (plain,) = infer(model, [image], Inference(CPU))
    assert not torch.equal(found.semantic, plain.semantic)
    assert len(model.seen) == 6 + 6 + 1


def test_one_view_that_is_asked_for_changes_nothing() -> None:
    """A model that answers alike for a photo and its mirror image: the mean is the answer itself."""

    class Bright(LeftIsDark):
        def forward(self, images: Tensor, valid: Tensor | None = None) -> Brightness:
            outputs = super().forward(images, valid)
            grey = images.float().mean(1, keepdim=True)
            return outputs._replace(logits=torch.cat([128 - grey, grey - 128], 1))

    model, images = Bright(), photos((8, 12), (8, 10))
    flipped = Inference(CPU, batch_size=2, flip=True)
    for one, two in zip(infer(model, images, Inference(CPU)), infer(model, images, flipped), strict=True):
        assert torch.equal(one.semantic, two.semantic)


@pytest.mark.parametrize("name", QUERIES)
def test_query_models_hand_over_the_scores_of_their_semantic_map(name: str) -> None:
    torch.manual_seed(0)
    model = build(name, LabelSpace.from_names(["cat"], ["sky", "sea"]), **QUERIES[name])
    images = photos((32, 40), (40, 32))
    settings = Inference(CPU, batch_size=2, decode_options={"task": "semantic"})
    plain = list(infer(prepare(model, settings), images, settings))
    (view,) = views_of(images, model.input.resize)
    with torch.inference_mode():
        scores = model.class_scores(model(view.images, view.valid), [(32, 40), (40, 32)])
    for prediction, each in zip(plain, scores, strict=True):
        assert each.shape == (3, *prediction.semantic.shape)
        assert torch.equal(prediction.semantic, each.max(0).indices)
    averaged = Inference(CPU, flip=True, scales=(1.0, 1.5), decode_options={"task": "semantic"})
    found = list(infer(prepare(model, averaged), images, averaged))
    assert [p.semantic.shape for p in found] == [(32, 40), (40, 32)]
    assert all(p.panoptic is None and p.instances is None for p in found)


def test_eomts_windows_are_averaged_over_views_as_well() -> None:
    torch.manual_seed(0)
    model = build("eomt", LabelSpace.from_names(["cat"], ["sky", "sea"]), **EOMT, windows=True)
    settings = Inference(CPU, flip=True, decode_options={"task": "semantic"})
    (found,) = infer(prepare(model, settings), photos((32, 70)), settings)
    assert found.semantic.shape == (32, 70)


@pytest.mark.parametrize("views", [{"flip": True}, {"scales": (0.5, 1.0)}, {"scales": (2.0,)}])
def test_views_of_what_has_no_scores_are_refused(views: dict) -> None:
    labels = LabelSpace.from_names(["cat"], ["sky"])
    panoptic = build("eomt", labels, **EOMT)
    for options in ({}, {"task": "panoptic"}, {"task": "instance"}, {"task": "all"}):
        with pytest.raises(
            PansightError, match="flip, scales, window: expected a model of semantic maps, or task = semantic"
        ):
            prepare(panoptic, Inference(CPU, decode_options=options, **views))
    fcn = build("panoptic_fcn", labels, **MODELS["panoptic_fcn"].tiny)
    with pytest.raises(PansightError, match="found PanopticFCN with task left out"):
        prepare(fcn, Inference(CPU, **views))


def test_options_of_decode_are_known_by_its_signature() -> None:
    model = build("eomt", LabelSpace.from_names(["cat"]), **EOMT)
    check_decode_options(model, "eomt", {"task": "semantic", "score_threshold": 1})
    with pytest.raises(PansightError, match="unknown decode option of eomt 'socre'; known: mask_threshold"):
        check_decode_options(model, "eomt", {"socre": 0.5})
    with pytest.raises(PansightError, match=r"score_threshold of eomt: expected a number, 0 … 1, found 60"):
        check_decode_options(model, "eomt", {"score_threshold": 60})


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_sees_the_same_views_in_workers(workers: int) -> None:
    data, model = Shapes(5, 24, 32), LeftIsDark()
    config = EvaluateConfig(batch_size=2, flip=True, scales=(1.0, 2.0))
    pairs = list(predict_all(model, data, range(5), config, CPU, workers))
    settings = Inference(CPU, batch_size=2, flip=True, scales=(1.0, 2.0))
    expected = infer(model, [data[index].image for index in range(5)], settings)
    for (prediction, sample), wanted in zip(pairs, expected, strict=True):
        assert torch.equal(prediction.semantic, wanted.semantic)
        assert sample.image.shape[1:] == sample.truth.size


def functions_that_call(path: Path, *names: str) -> list[str]:
    """The functions of a file in which every one of `names` is called, of `model` or `self.model`."""
    found = []
    for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(function, ast.FunctionDef):
            calls = {ast.unparse(node.func) for node in ast.walk(function) if isinstance(node, ast.Call)}
            if all({name, f"self.{name}", f"predictor.{name}"} & calls for name in names):
                found.append(f"{path.relative_to(SOURCE)}: {function.name}")
    return found


def test_nothing_else_calls_forward_or_decode() -> None:
    files = sorted(SOURCE.rglob("*.py"))
    decoding = [place for path in files for place in functions_that_call(path, "model.decode")]
    running = [place for path in files for place in functions_that_call(path, "model")]
    assert decoding == ["engine/infer.py: decoded"]
    export = ["apps/exporting/checking.py: _outputs", "apps/exporting/tracing.py: outputs"]  # of which it makes graphs
    assert running == [*export, "engine/infer.py: _outputs"]
