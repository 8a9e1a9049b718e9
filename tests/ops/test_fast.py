"""Each fast function beside its plain twin, through the plain name that both stand behind."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pngs import interlaced_png, png, rgb_of, structured_ids
from torch import Tensor, nn

from pansight.errors import PansightError
from pansight.nn.queries.mask_head import MaskHead
from pansight.nn.rcnn import roi_heads
from pansight.ops.attention.deformable import deform_attention
from pansight.ops.fast import plain
from pansight.ops.fast.convolutions import dilated_conv
from pansight.ops.fast.linear import _has_onednn_linear, fc_over_grid, linear
from pansight.ops.fast.memory import checkpointed
from pansight.ops.fusion.contest import Canvas, contest, painted
from pansight.ops.fusion.queries import semantic_map
from pansight.ops.maps.label_png import LabelPng, PairCounter, decode_ids, open_label_png
from pansight.ops.maps.overlap import overlaps_of
from pansight.ops.queries.losses import least, pair_masks, point_logits
from pansight.ops.queries.masks import PixelEmbeddings, features_at, masks_at
from pansight.ops.queries.matching import Matches
from pansight.ops.queries.targets import sample_masks
from pansight.ops.resize import resize_photo
from pansight.ops.targets import InstanceTargets


def both(function: Callable[[], Any]) -> tuple[Any, Any]:
    """(fast, plain), from the same random numbers."""
    results: list[Any] = []
    for active in (False, True):
        torch.manual_seed(1)
        with plain(active):
            results.append(function())
    return results[0], results[1]


def assert_twins(function: Callable[[], Any], tolerance: float = 1e-5) -> None:
    fast, slow = both(function)
    torch.testing.assert_close(fast, slow, rtol=tolerance, atol=tolerance)


def with_gradients(function: Callable[..., Tensor], *leaves: Tensor) -> Callable[[], list[Tensor]]:
    def run() -> list[Tensor]:
        own = [leaf.clone().requires_grad_() for leaf in leaves]
        out = function(*own)
        return [out, *torch.autograd.grad(out, own, torch.randn(out.shape, dtype=out.dtype))]

    return run


@pytest.mark.parametrize("size", [(30, 40), (90, 120), (60, 33), (7, 80)])
def test_resized_photos(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    fast, slow = both(lambda: resize_photo(pixels, *size, "pillow"))
    assert fast.shape == (*size, 3)
    assert np.array_equal(fast, slow)


@pytest.mark.parametrize("rows", [(0,), (1,), (2, 5), (1, 3, 4)])
def test_linear(rows: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pansight.ops.fast.linear.ONEDNN_LINEAR", _has_onednn_linear())
    x, weight, bias = torch.randn(*rows, 12), torch.randn(9, 12), torch.randn(9)
    assert_twins(with_gradients(linear, x, weight, bias))
    with plain():
        assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))


@pytest.mark.parametrize("avx512", [False, True])
@pytest.mark.parametrize("count", [0, 1, 200])
def test_fully_connected_over_a_grid(count: int, avx512: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pansight.ops.fast.linear.AVX512", avx512)
    layer = nn.Linear(4 * 9, 32)
    x = torch.randn(count, 4, 3, 3).contiguous(memory_format=torch.channels_last)
    assert_twins(with_gradients(lambda x: fc_over_grid(x, layer), x), 1e-4)
    with plain():
        assert torch.equal(fc_over_grid(x, layer), layer(x.flatten(1)))


@pytest.mark.parametrize("count", [0, 1, 7])
def test_masks_of_regions(count: int) -> None:
    head = roi_heads.MaskHead(6, 5, convs=1, channels=8)
    nn.init.normal_(head.predictor.weight)
    classes = torch.arange(count) % 5
    assert_twins(with_gradients(lambda x: head(x, classes), torch.randn(count, 6, 4, 4)))


@pytest.mark.parametrize("queries", [0, 1, 6])
@pytest.mark.parametrize("odd", [0, 1])
def test_mask_head_of_detr(queries: int, odd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps of twice the size, or one pixel less; with no query, one, and several in turns of one."""
    monkeypatch.setattr("pansight.nn.queries.mask_head.CHUNK_ELEMENTS", 1)
    head = MaskHead(32, 4, (5, 6, 7))
    sizes, fpn = (4, 5), []
    for channels in (5, 6, 7):
        sizes = (2 * sizes[0] - odd, 2 * sizes[1] - odd)
        fpn.append(torch.randn(1, channels, *sizes))
    projected, attention = torch.randn(1, 32, 4, 5), torch.randn(queries, 4, 4, 5)
    head.requires_grad_(True)

    def run(projected: Tensor, *fpn: Tensor) -> Tensor:
        return head(projected, head.adapted(fpn), attention)

    assert run(projected, *fpn).shape == (queries, *sizes)
    assert_twins(with_gradients(run, projected, *fpn), 1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_deformable_attention(dtype: torch.dtype) -> None:
    """Half precision too: places and sums are float32 both ways."""
    shapes = [(16, 40), (5, 1), (1, 1)]
    value, reference = torch.randn(2, 646, 2, 4), torch.rand(9, 2)
    offsets, weights = 3 * torch.randn(2, 9, 2, 3, 2, 2), torch.rand(2, 9, 2, 3, 2)
    run = with_gradients(
        lambda v, o, w: deform_attention(v.to(dtype), shapes, reference, o, w).float(), value, offsets, weights
    )
    assert_twins(run, 1e-4 if dtype == torch.float32 else 0.03)
    fast, slow = both(lambda: deform_attention(value.to(dtype), shapes, reference, offsets, weights))
    assert fast.dtype == slow.dtype == dtype


@pytest.mark.parametrize("count", [0, 1, 5])
def test_contest_and_paint(count: int) -> None:
    masks = F.interpolate(6 * torch.randn(1, 5, 4, 4), (20, 24), mode="bilinear")[0, :count]
    scores, canvas = torch.rand(count), Canvas((40, 48), (37, 48), (61, 50))
    fast, slow = both(lambda: contest(masks, scores, canvas, "last", 0.5))
    assert (fast.code != slow.code).sum() <= 2
    assert (fast.mask - slow.mask).abs().sum() <= 2
    table = torch.arange(2 * max(count, 1), dtype=torch.int32) * 7
    assert_twins(lambda: painted(slow.code, table))


@pytest.mark.parametrize("size", [(3, 5), (40, 48), (97, 61)])
def test_semantic_map(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pansight.ops.fusion.queries.FLOATS_AT_ONCE", 1000)  # many bands
    classes, masks = torch.randn(6, 4), 3 * torch.randn(6, 10, 12)
    fast, slow = both(lambda: semantic_map(classes, masks, Canvas((40, 48), (37, 45), size)))
    assert fast.shape == slow.shape == size
    assert (fast != slow).float().mean() < 1e-3


def targets(count: int) -> InstanceTargets:
    """Masks in two planes of 7 × 9; the last one has no pixel."""
    stack = torch.randint(0, max(count, 1), (2, 7, 9), dtype=torch.int32)
    plane, value = torch.arange(count) % 2, torch.arange(1, count + 1, dtype=torch.int32)
    return InstanceTargets(torch.zeros(count, 4), torch.zeros(count, dtype=torch.int64), stack, plane, value)


@pytest.mark.parametrize("count", [0, 1, 5])
@pytest.mark.parametrize("points", [0, 50])
def test_samples_of_the_truth(count: int, points: int) -> None:
    truth, where = targets(count), 1.4 * torch.rand(count, points, 2) - 0.2
    assert_twins(lambda: sample_masks(truth, where, (8, 12)))
    if count:
        assert_twins(lambda: sample_masks(truth, where[0], (8, 12), torch.tensor([count - 1, 0])))


@pytest.mark.parametrize("size", [(1, 1), (5, 6), (40, 50)])
@pytest.mark.parametrize("shared", [False, True])
def test_masks_at_points_and_of_pairs(size: tuple[int, int], shared: bool) -> None:
    """More points than pixels and fewer; one map for all layers or one each; layers and images without a pair."""
    layers, images, queries, channels = 3, 2, 4, 8
    maps = [torch.randn(images, channels, *size) for _ in range(layers)]
    maps = [maps[0]] * layers if shared else maps
    embeddings, points = torch.randn(layers, queries, channels), 1.2 * torch.rand(100, 2) - 0.1
    assert_twins(lambda: list(point_logits(embeddings, maps, 1, points)), 1e-4)
    layer, image = torch.tensor([0, 0, 0, 2, 2]), torch.tensor([0, 1, 1, 1, 1])
    matches = Matches(layer, image, torch.zeros(5, dtype=torch.int64), torch.zeros(5, dtype=torch.int64))

    def run(own: Tensor, *used: Tensor) -> Tensor:
        every = [used[0]] * layers if shared else [used[0], maps[1], used[1]]
        return torch.cat(pair_masks(own, every, matches, [3, 0, 2]))

    own = torch.randn(5, channels)
    assert_twins(with_gradients(run, own, *(maps[:1] if shared else maps[::2])), 1e-4)
    fast, slow = both(lambda: pair_masks(torch.ones(5, channels), maps, matches, [3, 0, 2]))
    assert [tuple(m.shape) for m in fast] == [(3, *size), (0, *size), (2, *size)]
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("count", [1, 7, 20])
def test_least_values(count: int) -> None:
    values = torch.randn(3, 20)
    assert_twins(lambda: least(values, count).sort(1).values)


@pytest.mark.parametrize("queries", [0, 1, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pixel_embeddings(queries: int, dtype: torch.dtype) -> None:
    features = torch.randn(2, 6, 7, 9).to(dtype)
    pixels = PixelEmbeddings(features, torch.randn(8, 6, 3, 3), torch.randn(8))
    embeddings = torch.randn(queries, 8).to(dtype)
    fast, slow = both(lambda: pixels.masks(1, embeddings))
    assert fast.dtype == torch.float32
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-4)
    expected = F.conv2d(features[1:].float(), pixels.weight, pixels.bias, padding=1)[0]
    torch.testing.assert_close(fast, torch.einsum("kd,dhw->khw", embeddings.float(), expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(1, 1), (4, 5), (8, 10)])
def test_masks_at_other_sizes(size: tuple[int, int]) -> None:
    embeddings, features = torch.randn(2, 3, 6), torch.randn(2, 6, 8, 10)
    assert_twins(lambda: masks_at(embeddings, features_at(features, size), size))
    assert masks_at(embeddings, features_at(features, size), size).shape == (2, 3, *size)


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (30, 17)])
def test_pairs_of_labels(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        first, second = structured_ids(rng, *size), structured_ids(rng, *size)
        fast, slow = both(partial(overlaps_of, first, second))
        assert [v.tolist() for v in fast] == [v.tolist() for v in slow]
        assert [v.dtype for v in fast] == [v.dtype for v in slow] == [np.int64] * 3


def decoded(files: list[LabelPng]) -> list[np.ndarray]:
    return [decode_ids(file) for file in files]


@pytest.mark.parametrize("write", [png, interlaced_png])
def test_id_pngs(write: Callable[..., bytes]) -> None:
    rng, counter = np.random.default_rng(0), PairCounter()
    for _ in range(20):
        height, width = int(rng.integers(1, 30)), int(rng.integers(1, 50))
        ids = [structured_ids(rng, height, width) for _ in range(2)]
        files = [open_label_png(write(rgb_of(each), [int(rng.integers(0, 5))]), "a.png") for each in ids]
        fast, slow = both(partial(decoded, files))
        for each, a, b in zip(ids, fast, slow, strict=True):
            assert a.dtype == b.dtype == np.int32
            assert (a == each).all()
            assert (b == each).all()
        fast, slow = both(partial(counter.count, *files))
        assert [v.tolist() for v in fast] == [v.tolist() for v in slow]


def test_a_damaged_png_is_one_line_both_ways() -> None:
    data = png(rgb_of(np.arange(600, dtype=np.int32).reshape(20, 30)), [4])
    file = open_label_png(data, "a.png")
    place = data.index(b"IDAT") + 30
    damaged = open_label_png(data[:place] + b"\xff" * 8 + data[place + 8 :], "a.png")
    for active in (False, True):
        with plain(active):
            decode_ids(file)
            with pytest.raises(PansightError, match=r"a\.png: expected a whole PNG, found damaged pixels"):
                decode_ids(damaged)


def test_checkpointed_is_the_function_itself() -> None:
    calls: list[int] = []

    def square(x: Tensor, times: int) -> Tensor:
        calls.append(times)
        return times * x.square()

    x = torch.randn(4, requires_grad=True)
    for active, expected in ((False, 2), (True, 1)):
        calls.clear()
        with plain(active):
            (gradient,) = torch.autograd.grad(checkpointed(square, x, 3).sum(), x)
        torch.testing.assert_close(gradient, 6 * x.detach())
        assert len(calls) == expected


@pytest.mark.parametrize(
    ("size", "dilation"), [((9, 12), (3, 3)), ((9, 12), (6, 21)), ((20, 7), (18, 3)), ((1, 1), (4, 4))]
)
@pytest.mark.parametrize("autocast", [False, True])
def test_wide_dense_convolutions_in_half(size: tuple[int, int], dilation: tuple[int, int], autocast: bool) -> None:
    dtype = torch.float32 if autocast else torch.bfloat16
    x = torch.randn((2, 1024, *size), dtype=dtype).to(memory_format=torch.channels_last)
    weight, bias = torch.randn((8, 1024, 3, 3), dtype=dtype) / 64, torch.randn(8, dtype=dtype)

    def run() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return dilated_conv(x, weight, bias, dilation)

    fast, slow = both(run)
    exact = F.conv2d(x.float(), weight.float(), bias.float(), padding=dilation, dilation=dilation)
    assert fast.dtype == slow.dtype == torch.bfloat16
    torch.testing.assert_close(fast.float(), exact, rtol=0.02, atol=0.02)


def test_gradients_of_wide_convolutions_in_half() -> None:
    x, weight = torch.randn((1, 1024, 5, 6)).bfloat16(), (torch.randn((4, 1024, 3, 3)) / 64).bfloat16()
    fast, slow = both(with_gradients(lambda x, weight: dilated_conv(x, weight, None, (4, 4)), x, weight))
    for ours, theirs in zip(fast, slow, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("dilation", [(1, 1), (6, 12), (18, 18)])
def test_wide_convolutions_of_each_channel(dilation: tuple[int, int]) -> None:
    x = torch.randn((2, 16, 20, 30)).to(memory_format=torch.channels_last)
    weight = torch.randn((16, 1, 3, 3)).to(memory_format=torch.channels_last)
    assert_twins(with_gradients(lambda x, weight: dilated_conv(x, weight, None, dilation, 16), x, weight), 1e-4)
    if max(dilation) >= 10:  # the slow kernel is left aside by the memory that it does not know
        assert dilated_conv(x, weight, None, dilation, 16).is_contiguous()
