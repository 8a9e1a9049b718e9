"""EoMT: what it adds to the contract that every model keeps. Takes about 6 s."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from contract import LABELS, assert_close, flat, shapes_batch, void_batch
from torch import Tensor

from pansight.data.categories.coco import coco_panoptic
from pansight.errors import PansightError
from pansight.models.queries.eomt import (
    EoMT,
    EoMTOutputs,
    eomt,
    eomt_base_640,
    eomt_dinov3_large_1280,
    eomt_giant_640,
    eomt_large_640,
    eomt_large_1280,
    eomt_small_640,
    schedule,
)
from pansight.nn.input import IMAGENET_MEAN, IMAGENET_STD
from pansight.ops.fast import plain
from pansight.ops.fast.attention import attend_in_slices
from pansight.types import LabelSpace
from pansight.weights.huggingface.decode import decode_like_transformers

TINY: dict[str, Any] = {"size": 64, "queries": 6, "blocks": 2, "points": 64}
LEARNED = TINY | {"vit_options": {"embed_dim": 32, "depth": 3, "num_heads": 2, "init_values": 1.0}}
ROTARY = LEARNED | {"backbone": "vit_small_patch16_dinov3_qkvb"}
FAMILIES = pytest.mark.parametrize("options", [LEARNED, ROTARY], ids=["dinov2", "dinov3"])


def tiny(options: dict[str, Any] = LEARNED, **more: Any) -> EoMT:
    torch.manual_seed(0)
    return eomt(LABELS, **(options | more)).eval()


def noise(count: int = 2, height: int = 64, width: int = 64) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(
    ("builder", "count"),
    [
        (eomt_small_640, 23_975_942),
        (eomt_base_640, 93_663_110),
        (eomt_large_640, 316_695_686),
        (eomt_large_1280, 321_610_886),
        (eomt_giant_640, 1_163_622_022),
    ],
)
def test_published_sizes(builder: Any, count: int) -> None:
    """Parameter counts computed from the official repository, for COCO's 133 classes."""
    with torch.device("meta"):
        model = builder(coco_panoptic())
    assert sum(p.numel() for p in model.parameters()) == count
    assert model.stride == 4
    assert model.settings == (12544, 3.0, 0.75, 2.0, 5.0, 5.0, 0.1)


def test_dinov3_has_no_learned_positions() -> None:
    with torch.device("meta"):
        model = eomt_dinov3_large_1280(coco_panoptic())
    parts = {"backbone": 0, "heads": 0}
    for key, parameter in model.named_parameters():
        parts["backbone" if key.startswith("backbone.") else "heads"] += parameter.numel()
    assert parts["heads"] == 11_904_134  # those of the official L-640
    assert not any("pos_embed" in key for key in model.state_dict())
    assert [b.attn.num_prefix_tokens for b in model.backbone.features.blocks] == [5] * 20 + [205] * 4


def test_published_photos_fill_a_square() -> None:
    with torch.device("meta"):
        rule = eomt_small_640(LABELS).input.resize
    assert rule.target(480, 320) == (640, 427)  # the long side is the size
    assert rule.target(100, 2000) == (32, 640)
    assert rule.padded(*rule.target(480, 320)) == rule.padded(32, 640) == (640, 640)
    free = tiny(square=False).input.resize
    assert free.target(70, 30) == (70, 30)
    assert free.padded(70, 30) == (80, 32)


@pytest.mark.parametrize(
    ("blocks", "starts"),
    [(1, [2]), (3, [2, 5, 8]), (4, [2, 4, 6, 8]), (5, [2, 3.5, 5, 6.5, 8])],
)
def test_schedule_of_the_paper(blocks: int, starts: list[float]) -> None:
    """The published schedules, in twelfths of the run."""
    found, ends = schedule(blocks)
    assert list(found) == pytest.approx([s / 12 for s in starts])
    assert list(ends) == pytest.approx([(s + 2) / 12 for s in starts])


@FAMILIES
def test_shapes_of_the_predictions(options: dict[str, Any]) -> None:
    model = tiny(options)
    outputs = model(noise())
    assert outputs.class_logits.shape == (1, 2, 6, len(LABELS) + 1)
    assert outputs.mask_embeddings.shape == (1, 2, 6, 32)
    assert [tuple(f.shape) for f in outputs.features] == [(2, 32, 16, 16)]
    assert outputs.extents.tolist() == [[64, 64]] * 2
    outputs = model.train()(noise())
    assert outputs.class_logits.shape == (3, 2, 6, len(LABELS) + 1)  # before each of the last two blocks, and after
    assert [tuple(f.shape) for f in outputs.features] == [(2, 32, 16, 16)] * 3


def test_without_masks_the_last_prediction_is_the_only_one() -> None:
    model = tiny(masked=False)
    trained = model.train()(noise())
    assert len(trained.features) == 1
    assert_close(flat(trained), flat(model.eval()(noise())), 0.0)


def test_attention_mask_by_hand() -> None:
    """True = may look. Queries (2) see each other and the prefix (5), and patches where their mask is positive."""
    model = tiny(queries=2)
    embeddings = torch.tensor([[[1.0] + [0.0] * 31, [-1.0] + [0.0] * 31]])  # (1, 2, 32): a mask and its negative
    features = torch.zeros(1, 32, 16, 16)
    features[:, 0] = -1
    features[:, 0, :8, :4] = 1  # the upper half of the first column of the 4 × 4 grid
    mask = model._attention_mask(embeddings, features, (4, 4), 1.0)
    assert mask.shape == (1, 1, 23, 23)
    expected = torch.ones(23, 23, dtype=torch.bool)
    column = [7 + place for place in (0, 4)]
    expected[0, 7:] = False
    expected[0, column] = True
    expected[1, column] = False
    assert torch.equal(mask[0, 0], expected)


def test_masks_are_taken_at_the_size_of_the_grid() -> None:
    """Resizing features equals resizing all masks, which the official code does."""
    model = tiny()
    torch.manual_seed(3)
    embeddings, features = torch.randn(2, 6, 32), torch.randn(2, 32, 16, 16)
    logits = torch.einsum("bqc,bchw->bqhw", embeddings, features)
    logits = torch.nn.functional.interpolate(logits, size=(4, 4), mode="bilinear").flatten(2)
    sure = logits.abs() > 1e-4
    found = model._attention_mask(embeddings, features, (4, 4), 1.0)[:, 0, :6, 11:]
    assert sure.float().mean() > 0.99
    assert torch.equal(found[sure], logits[sure] > 0)


def test_a_share_of_the_queries_is_let_go() -> None:
    model = tiny(queries=400)
    embeddings, features = -torch.ones(2, 400, 32), torch.ones(2, 32, 16, 16)  # no patch is inside any mask
    torch.manual_seed(0)
    free = model._attention_mask(embeddings, features, (4, 4), 0.25)[:, 0, :400, 405:]
    assert torch.equal(free.all(2), free.any(2))  # a query sees all patches or keeps to its mask
    assert free.any(2).float().mean().item() == pytest.approx(0.75, abs=0.05)
    assert not torch.equal(free[0], free[1])  # drawn for each image
    state = torch.random.get_rng_state()
    assert not model._attention_mask(embeddings, features, (4, 4), 1.0)[:, 0, :400, 405:].any()
    assert torch.equal(torch.random.get_rng_state(), state)  # nothing to draw


@FAMILIES
def test_evaluation_looks_through_masks_while_most_queries_do(options: dict[str, Any]) -> None:
    """Deterministic where the official validation draws; the same at both ends, where figures are taken."""
    model = tiny(options)
    found: dict[float, Tensor] = {}
    for share in (1.0, 0.6, 0.4, 0.0):
        model.annealing.probs.fill_(share)
        found[share] = model(noise()).mask_embeddings
    assert torch.equal(found[1.0], found[0.6])
    assert torch.equal(found[0.4], found[0.0])
    assert (found[1.0] - found[0.0]).abs().max() > 1e-5


@pytest.mark.parametrize(("queries", "keys", "heads"), [(7, 7, 1), (1000, 1700, 3)])
def test_attention_in_slices(queries: int, keys: int, heads: int) -> None:
    """The last slice is a shorter one; in float32 nothing but the order of sums differs from the fused kernel."""
    query, key, value = (
        torch.randn(2, heads, queries, 8),
        torch.randn(2, heads, keys, 8),
        torch.randn(2, heads, keys, 8),
    )
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    assert_close([attend_in_slices(query, key, value)], [expected], 1e-5)


@FAMILIES
def test_half_precision_on_a_cpu_takes_another_way_to_the_same(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny(options)
    model.annealing.probs.zero_()
    with torch.inference_mode():
        full = model(noise()).mask_embeddings
        monkeypatch.setattr(model.backbone, "_slices_pay", lambda _: True)
        assert_close([model(noise()).mask_embeddings], [full], 1e-5)
        monkeypatch.undo()
        calls: list[int] = []
        monkeypatch.setattr(model.backbone, "_block_in_slices", lambda _, x, __: calls.append(len(x)) or x)
        model(noise())
        assert calls == []
        with torch.autocast("cpu", torch.bfloat16):
            model(noise())
            with plain():
                model(noise())
        assert calls == [2, 2, 2]
    with torch.autocast("cpu", torch.bfloat16):
        model(noise())  # gradients are asked for
    assert calls == [2, 2, 2]


@FAMILIES
def test_queries_have_no_place(options: dict[str, Any]) -> None:
    """Their order is the order of the answers and nothing else: no position is added, no rotation applied."""
    model = tiny(options)
    model.annealing.probs.zero_()
    first = model(noise())
    model.q.weight.data.copy_(model.q.weight.data.flip(0))
    second = model(noise())
    assert_close([second.mask_embeddings.flip(2)], [first.mask_embeddings], 1e-5)
    assert (second.mask_embeddings - first.mask_embeddings).abs().max() > 1e-3


@FAMILIES
def test_other_canvases_than_the_square(options: dict[str, Any]) -> None:
    """Sides that the patch does not divide are padded; positions follow the grid."""
    model = tiny(options)
    images = noise(1, 50, 100)
    outputs = model(images)
    assert outputs.features[0].shape[2:] == (16, 28)  # 64 × 112
    assert model._canvas(outputs) == (64, 112)
    assert outputs.extents.tolist() == [[50, 100]]
    padded = torch.zeros(1, 3, 64, 112, dtype=torch.uint8)
    padded[:, :, :50, :100] = images
    valid = torch.zeros(1, 64, 112, dtype=torch.bool)
    valid[:, :50, :100] = True
    assert_close(flat(model(padded, valid)), flat(outputs), 1e-5)


def test_padding_is_black_before_normalisation() -> None:
    """Official and transformers' preprocessing pad the photo, then subtract the mean; other systems pad afterwards."""
    model = tiny()
    seen: list[Tensor] = []
    model.backbone.features.patch_embed.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    valid = torch.ones(1, 64, 64, dtype=torch.bool)
    valid[:, :, 40:] = False
    model(noise(1), valid)
    black = -torch.tensor(IMAGENET_MEAN) / torch.tensor(IMAGENET_STD)
    assert torch.allclose(seen[0][0, :, :, 40:], black[:, None, None].expand(3, 64, 24))


def test_mask_logits_of_some_queries() -> None:
    model = tiny().train()
    outputs = model(noise())
    every = torch.einsum("qc,chw->qhw", outputs.mask_embeddings[1, 0], outputs.features[1][0])
    assert_close([model.mask_logits(outputs, 0, layer=1)], [every], 1e-5)
    some = torch.tensor([4, 1])
    assert_close([model.mask_logits(outputs, 0, some, layer=1)], [every[some]], 1e-5)


def drawn(model: EoMT) -> EoMTOutputs:
    """Query 0: a thing on the left half of a 32 × 64 photo; 1, 2: stuff above and below on the right; 3: not sure."""
    thing, stuff, nothing = LABELS.things[0].id, LABELS.stuff[0].id, len(LABELS)
    classes = torch.full((1, 1, 6, len(LABELS) + 1), -10.0)
    for query, category in enumerate((thing, stuff, stuff, thing, nothing, nothing)):
        classes[0, 0, query, category] = 0.0 if query < 3 else -9.5
    features = torch.full((1, 32, 16, 16), -9.0)
    features[0, 0, :, :8] = features[0, 1, :4, 8:] = features[0, 2, 4:, 8:] = 9.0
    embeddings = torch.zeros(1, 1, 6, 32)
    embeddings[0, 0, [0, 1, 2], [0, 1, 2]] = 1.0
    return EoMTOutputs(classes, embeddings, (features,), torch.tensor([[32, 64]]))


def test_decode_by_hand() -> None:
    """The padded half is cut off, things are segments of their own, stuff of one class is one segment."""
    model = tiny()
    (found,) = model.decode(drawn(model), [(32, 64)])
    assert found.semantic is None
    assert found.instances is None
    assert found.panoptic is not None
    expected = torch.ones(32, 64, dtype=torch.int32)
    expected[:, 32:] = 2
    unsure = found.panoptic.ids != expected
    assert not unsure[:, :30].any()  # away from borders, where two masks are equally probable
    assert not unsure[:, 34:].any()
    assert [(s.category, s.id) for s in found.panoptic.segments] == [(LABELS.things[0].id, 1), (LABELS.stuff[0].id, 2)]
    assert found.panoptic.segments[0].score == pytest.approx(1.0, abs=1e-3)
    (none,) = model.decode(drawn(model), [(32, 64)], score_threshold=0.99999)
    assert none.panoptic is not None
    assert none.panoptic.segments == ()


def test_decode_gives_what_the_task_asks_for() -> None:
    model = tiny()
    outputs = drawn(model)
    (panoptic,), (instance,), (semantic,), (every,) = (
        model.decode(outputs, [(16, 32)], task=task) for task in ("panoptic", "instance", "semantic", "all")
    )
    assert (instance.panoptic, instance.semantic) == (semantic.panoptic, semantic.instances) == (None, None)
    assert semantic.semantic is not None
    assert semantic.semantic[8, 4] == LABELS.things[0].id
    assert semantic.semantic[8, 28] == LABELS.stuff[0].id
    assert instance.instances is not None
    assert instance.instances.masks is not None
    assert instance.instances.labels[0] == LABELS.things[0].id
    assert instance.instances.masks[0].sum().item() == pytest.approx(16 * 16, abs=16)
    assert_close(flat(every), [t for part in (panoptic, semantic, instance) for t in flat(part)], 0.0)
    (like_transformers,) = decode_like_transformers("eomt", model, outputs, [(16, 32)])
    assert [s.category for s in like_transformers.segments] == [LABELS.things[0].id, LABELS.stuff[0].id]
    with pytest.raises(PansightError, match="unknown task 'boxes'; known: all, instance, panoptic, semantic"):
        model.decode(outputs, [(16, 32)], task="boxes")


@FAMILIES
def test_loss_reaches_every_parameter_and_falls(options: dict[str, Any]) -> None:
    model = tiny(options).train()
    batch = shapes_batch(2, 64)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    totals: list[float] = []
    for step in range(8):
        model.annealing.set_progress(step / 8)
        losses = model.loss(batch)
        assert set(losses) == {"class", "mask", "dice"}
        total = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        total.backward()
        if step == 0:
            assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.parameters())
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < 0.9 * totals[0]


def test_loss_is_the_same_in_either_mode() -> None:
    """A validation loss counts all predictions, as the training loss does."""
    model, batch = tiny(), shapes_batch(2, 64)
    found: list[list[Tensor]] = []
    for mode in (True, False):
        torch.manual_seed(4)
        found.append(list(model.train(mode).loss(batch).values()))
    assert_close(found[0], found[1], 1e-6)


def test_images_without_objects_train() -> None:
    model = tiny().train()
    batch = void_batch()
    losses = model.loss(replace(batch, images=batch.images[:, :, :64, :64], valid=batch.valid[:, :64, :64]))
    assert losses["mask"].item() == losses["dice"].item() == 0.0
    sum(losses.values(), torch.zeros(())).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "resnet18"}, "backbone resnet18: expected a ViT that takes img_size"),
        ({"backbone": "vit_huge"}, "unknown backbone 'vit_huge'; expected a ViT of timm"),
        ({"vit_options": {"width": 3}}, "backbone vit_small_patch14_reg4_dinov2: expected a ViT that takes .*width"),
        ({"vit_options": "small"}, "expected vit_options as a table .in a recipe., found 'small'"),
        ({"size": 650}, "expected a size that 16 px patches divide, found 650"),
        ({"blocks": 4}, "expected 1 … 3 blocks with queries, found 4"),
        ({"upscales": 5}, "expected patches that halve 5 times, found 16 px"),
        ({"pretrained": "packaged"}, "unknown pretrained 'packaged'; known: none, timm"),
        ({"anneal_starts": [0.5]}, "expected 2 starts and ends of annealing, found 1, 1"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PansightError, match=message):
        tiny(**options)


def test_other_vits_of_timm() -> None:
    """A class token with a position of its own, no registers, patches of 8 px, one upscaling block."""
    vit = {"embed_dim": 24, "depth": 2, "num_heads": 2}
    model = eomt(LABELS, "vit_tiny_patch16_224", size=32, patch=8, queries=3, blocks=1, vit_options=vit)
    assert (model.stride, len(model.upscale)) == (4, 1)
    assert model.eval()(noise(1, 48, 32)).features[0].shape == (1, 24, 12, 8)
    assert model.input.mean.flatten().tolist() == [127.5] * 3  # what timm records for it


def test_one_class() -> None:
    model = eomt(LabelSpace.from_names(["cell"]), **TINY, vit_options=LEARNED["vit_options"]).eval()
    with torch.inference_mode():
        (found,) = model.decode(model(noise(1)), [(64, 64)], score_threshold=0.0, task="all")
    assert found.semantic is not None
    assert found.semantic.unique().tolist() == [0]
