"""MaskFormer: what it adds to the contract that every model keeps; its dense loss. Takes about 5 s."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from contract import LABELS, assert_close, flat, shapes_batch
from torch import Tensor

from pansight.data.categories.coco import coco_panoptic
from pansight.errors import PansightError
from pansight.models.queries.maskformer import (
    MaskFormer,
    maskformer,
    maskformer_r50,
    maskformer_r101,
    maskformer_swin_base,
    maskformer_swin_large,
    maskformer_swin_small,
    maskformer_swin_tiny,
)
from pansight.ops.queries import dense
from pansight.ops.queries.dense import DenseSettings, dense_set_loss, nearest_masks
from pansight.ops.queries.losses import dice_loss, sigmoid_focal_loss
from pansight.ops.queries.targets import dense_masks, segment_targets
from pansight.ops.resize import ResizeRule

TINY: dict[str, Any] = {
    "backbone": "swin_c16_d1-1-1-1_h1-1-2-2_w4",
    "short": 0,
    "long": 0,
    "queries": 10,
    "channels": 32,
    "heads": 4,
    "hidden": 32,
    "layers": 2,
    "encoder_layers": 2,
    "drop_path": 0.0,
    "dropout": 0.0,
}
BOTH = pytest.mark.parametrize("pixel_decoder", ["fpn", "encoder"])


def tiny(pixel_decoder: str = "fpn", **more: Any) -> MaskFormer:
    torch.manual_seed(0)
    options: dict[str, Any] = TINY | {"pixel_decoder": pixel_decoder} | more
    model = maskformer(LABELS, **options).eval()
    with torch.no_grad():  # masks and classes that are not all alike
        model.predictor.query_embed.weight.mul_(3)
        model.predictor.mask_embed.layers[-1].weight.mul_(6)  # pyright: ignore
        model.predictor.class_embed.weight.mul_(6)
    return model


def noise(count: int = 2, height: int = 64, width: int = 96) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def all_masks(model: MaskFormer, images: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(class logits, mask logits (L, B, Q, h, w)) as the paper has them: the features first, their product then."""
    features, memory = model.pixel_decoder(model.backbone(model.input(images, valid)))
    classes, embeddings = model.predictor(memory, all_layers=True)
    features = model.pixel_decoder.mask_features(features)
    return classes, torch.einsum("lbqd,bdhw->lbqhw", embeddings, features)


@pytest.mark.parametrize(
    ("builder", "count", "pixel_decoder"),
    [
        (maskformer_r50, 45_012_038, "EncoderPixelDecoder"),
        (maskformer_r101, 63_951_942, "EncoderPixelDecoder"),
        (maskformer_swin_tiny, 41_752_640, "FPNPixelDecoder"),
        (maskformer_swin_small, 63_070_544, "FPNPixelDecoder"),
        (maskformer_swin_base, 101_825_022, "FPNPixelDecoder"),
        (maskformer_swin_large, 211_571_258, "FPNPixelDecoder"),
    ],
)
def test_published_sizes(builder: Callable[..., MaskFormer], count: int, pixel_decoder: str) -> None:
    """The official parameter counts, for COCO's 133 classes."""
    with torch.device("meta"):
        model = builder(coco_panoptic())
    assert sum(p.numel() for p in model.parameters()) == count
    assert type(model.pixel_decoder).__name__ == pixel_decoder
    assert model.settings == (1.0, 20.0, 1.0, 0.1)
    assert model.rules == (0.8, 0.5, 0.8, False, 100)
    assert model.input.resize == ResizeRule(800, 1333, 1)


@BOTH
@pytest.mark.parametrize("size", [(64, 96), (33, 65), (1, 1), (5, 150)])
def test_masks_of_queries_are_those_of_the_features(pixel_decoder: str, size: tuple[int, int]) -> None:
    """The last convolution times the embeddings, then applied: the same masks, of all queries and of some."""
    model = tiny(pixel_decoder)
    with torch.inference_mode():
        outputs = model(noise(2, *size))
        classes, masks = all_masks(model, noise(2, *size))
        found = torch.stack([model.mask_logits(outputs, image) for image in range(2)])
        some = model.mask_logits(outputs, 1, torch.tensor([7, 0]))
        none = model.mask_logits(outputs, 1, torch.zeros(0, dtype=torch.int64))
    assert outputs.canvas.tolist() == list(size)
    assert outputs.mask_embeddings.shape == (2, 10, 32)
    assert_close([outputs.class_logits, found], [classes[-1], masks[-1]], 1e-4)
    assert_close([some], [masks[-1, 1, [7, 0]]], 1e-4)
    assert none.shape == (0, -(-size[0] // 4), -(-size[1] // 4))


def test_queries_look_at_the_encoded_map() -> None:
    """With the encoder, its layers reach classes and masks; the decoder has no projection of its own."""
    model = tiny("encoder")
    assert not list(model.predictor.input_proj.parameters())
    with torch.inference_mode():
        before = model(noise())
        model.pixel_decoder.encoder.layers[1].linear2.weight.mul_(3)  # type: ignore[union-attr]  # pyright: ignore
        after = model(noise())
    assert (before.class_logits - after.class_logits).abs().max() > 1e-3
    assert (before.pixel_embeddings.features - after.pixel_embeddings.features).abs().max() > 1e-3
    assert isinstance(tiny("fpn").predictor.input_proj, torch.nn.Conv2d)


def test_padding_is_looked_at() -> None:
    """As in the official repository: the canvas matters, though not what stands on it besides the image."""
    model = tiny()
    images = noise(1)
    valid = torch.zeros((1, 64, 96), dtype=torch.bool)
    valid[:, :40, :50] = True
    with torch.inference_mode():
        padded, dirty = model(images * valid[:, None], valid), model(images, valid)
        alone = model(images[:, :, :40, :50])
    assert_close(flat(padded), flat(dirty), 0.0)
    assert padded.extents.tolist() == [[40, 50]]
    assert (padded.class_logits - alone.class_logits).abs().max() > 1e-4


def test_decode_by_hand() -> None:
    """MaskFormer's rule: the winner is by score · probability, and it gets all pixels that it wins."""
    model = tiny()
    sizes = [(50, 80), (64, 96)]
    valid = torch.ones((2, 64, 96), dtype=torch.bool)
    valid[0, 56:] = False
    with torch.inference_mode():
        outputs = model(noise(), valid)
        predictions = model.decode(outputs, sizes, score_threshold=0.3, overlap=0.1)
    written_outside = 0
    for image, (prediction, size) in enumerate(zip(predictions, sizes, strict=True)):
        scores, classes = outputs.class_logits[image].softmax(1).max(1)
        kept = ((classes < len(LABELS)) & (scores > 0.3)).nonzero().flatten()
        masks = model.mask_logits(outputs, image, kept)[None]
        masks = F.interpolate(masks, (64, 96), mode="bilinear")[:, :, : int(outputs.extents[image, 0])]
        masks = F.interpolate(masks, size, mode="bilinear")[0].sigmoid()
        winner = (scores[kept][:, None, None] * masks).argmax(0)
        ids = torch.zeros(size, dtype=torch.int32)
        table: list[int] = []
        stuff: dict[int, int] = {}
        for k, query in enumerate(kept.tolist()):
            won, mask, category = winner == k, masks[k] >= 0.5, int(classes[query])
            if won.sum() == 0 or mask.sum() == 0 or won.sum() / mask.sum() < 0.1:
                continue
            if category not in stuff:
                table.append(category)
            ids[won] = stuff.get(category, len(table))
            if not LABELS[category].is_thing:
                stuff[category] = int(ids[won][0])
            written_outside += int((won & ~mask).sum())
        assert prediction.panoptic is not None
        assert torch.equal(prediction.panoptic.ids, ids)
        assert [s.category for s in prediction.panoptic.segments] == table
        assert len(table) > 0
    assert written_outside > 0


def test_decode_gives_what_the_task_asks_for() -> None:
    model = tiny()
    with torch.inference_mode():
        outputs = model(noise(1))
        for task, filled in {
            "panoptic": (1, 0, 0),
            "semantic": (0, 1, 0),
            "instance": (0, 0, 1),
            "all": (1, 1, 1),
        }.items():
            (found,) = model.decode(outputs, [(64, 96)], task=task)
            given = (found.panoptic, found.semantic, found.instances)
            assert tuple(int(part is not None) for part in given) == filled
        (found,) = model.decode(outputs, [(64, 96)], task="semantic")
        probability = torch.einsum(
            "qc,qhw->chw",
            outputs.class_logits[0].softmax(1)[:, :-1],
            F.interpolate(model.mask_logits(outputs, 0)[None], (64, 96), mode="bilinear")[0].sigmoid(),
        )
        assert found.semantic is not None
        assert torch.equal(found.semantic, probability.argmax(0))
        with pytest.raises(PansightError, match="unknown task 'boxes'"):
            model.decode(outputs, [(64, 96)], task="boxes")


def test_a_threshold_of_the_model_is_the_default() -> None:
    model = tiny(score_threshold=1.0)
    with torch.inference_mode():
        (nothing,) = model.decode(model(noise(1)), [(64, 96)])
        (something,) = model.decode(model(noise(1)), [(64, 96)], score_threshold=0.0, overlap=0.0)
    assert nothing.panoptic is not None
    assert something.panoptic is not None
    assert len(nothing.panoptic.segments) == 0 < len(something.panoptic.segments)


def test_loss_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both layers, matched anew, compared pixel by pixel at full size; the same in chunks of one mask."""
    model, batch = tiny(), shapes_batch(2, 64)
    targets = segment_targets(batch, LABELS)
    classes, masks = all_masks(model, batch.images, batch.valid)
    total = sum(len(t.categories) for t in targets)
    expected = {"mask": torch.zeros(()), "dice": torch.zeros(())}
    from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

    for layer in range(2):
        for image, target in enumerate(targets):
            small, large = nearest_masks(target, (64, 64), (16, 16)), dense_masks(target, (64, 64))
            cost = -classes[layer, image].softmax(1)[:, target.categories]  # (Q, N)
            for n in range(len(target.categories)):
                logits, wanted = masks[layer, image].flatten(1), small[n].flatten().expand(10, -1)
                cost[:, n] = cost[:, n] + 20 * sigmoid_focal_loss(logits, wanted) + dice_loss(logits, wanted)
            for query, n in zip(*linear_sum_assignment(cost.detach().numpy()), strict=True):
                logits = F.interpolate(masks[layer, image, query][None, None], (64, 64), mode="bilinear").flatten(1)
                expected["mask"] = (
                    expected["mask"] + 20 * sigmoid_focal_loss(logits, large[n].flatten(1).view(1, -1)).sum()
                )
                expected["dice"] = expected["dice"] + dice_loss(logits, large[n].view(1, -1)).sum()
    found = model.loss(batch)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value / total, rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(dense, "CHUNK", 1)
    for name, value in model.loss(batch).items():
        torch.testing.assert_close(value, found[name], rtol=1e-5, atol=1e-6)


def test_nearest_masks_are_torchs() -> None:
    targets = segment_targets(shapes_batch(1, 61), LABELS)[0]
    assert targets.mask_stack.shape[1:] == (61, 61)
    for size in [(16, 24), (61, 90), (7, 5)]:
        expected = F.interpolate(dense_masks(targets, (64, 96))[None], size, mode="nearest")[0]
        assert torch.equal(nearest_masks(targets, (64, 96), size), expected)


def test_loss_memory_does_not_hold_full_size_masks() -> None:
    """What is kept for the gradient is of stride 4, but for the chunk at work."""
    model, batch = tiny(), shapes_batch(1, 128)
    largest = 0

    def look(tensor: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, tensor.numel())
        return tensor

    targets = segment_targets(batch, LABELS)
    features, memory = model.pixel_decoder(model.backbone(model.input(batch.images)))
    classes, embeddings = model.predictor(memory, all_layers=True)
    features = model.pixel_decoder.mask_features(features).detach()
    assert 2 * len(targets[0].categories) * 128 * 128 > features.numel()
    with torch.autograd.graph.saved_tensors_hooks(look, lambda tensor: tensor):
        dense_set_loss(classes, embeddings, features, targets, (128, 128), DenseSettings())
    assert 0 < largest <= max(features.numel(), 2 * len(targets[0].categories) * 32 * 32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pixel_decoder": "deform"}, "pixel_decoder"),
        ({"backbone": "swin_huge"}, "unknown backbone 'swin_huge'"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PansightError, match=message):
        tiny(**options)
