"""The deformable pixel decoder: shapes, the start of its weights, and what it looks at."""

from __future__ import annotations

import math

import pytest
import torch

from pansight.nn.queries import deformable as deform
from pansight.nn.queries.deformable import DeformAttention, DeformPixelDecoder, reference_points, whole_positions
from pansight.ops.attention.positions import sine_positions

pytestmark = pytest.mark.usefixtures("both_ways")


def maps(height: int = 64, width: int = 96) -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [torch.randn(2, c, -(-height // s), -(-width // s)) for c, s in ((4, 4), (6, 8), (8, 16), (10, 32))]


def decoder() -> DeformPixelDecoder:
    torch.manual_seed(0)
    return DeformPixelDecoder((4, 6, 8, 10), channels=16, heads=4, layers=2, hidden=20, points=2)


def test_shapes_from_coarse_to_fine() -> None:
    levels, positions, shapes, features = decoder()(maps())
    assert shapes == [(2, 3), (4, 6), (8, 12)]
    assert [tuple(x.shape) for x in levels] == [(2, 6, 16), (2, 24, 16), (2, 96, 16)]
    assert [tuple(p.shape) for p in positions] == [(1, 6, 16), (1, 24, 16), (1, 96, 16)]
    assert features.shape == (2, 16, 16, 24)


def test_official_size() -> None:
    model = DeformPixelDecoder((256, 512, 1024, 2048))
    assert sum(p.numel() for p in model.parameters()) == 6_035_904  # what the official model has
    assert model.input_proj[0][0].in_channels == 2048
    assert model.transformer.level_embed.shape == (3, 256)


def test_first_offsets_go_out_in_all_directions() -> None:
    layer = DeformAttention(16, heads=4, levels=3, points=2)
    bias = layer.sampling_offsets.bias.detach().view(4, 3, 2, 2)  # heads, levels, points, (x, y)
    expected = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    for level in range(3):
        torch.testing.assert_close(bias[:, level, 0], expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(bias[:, level, 1], 2 * expected, rtol=0, atol=1e-6)
    eight = DeformAttention(16, heads=8).sampling_offsets.bias.detach().view(8, 3, 4, 2)
    torch.testing.assert_close(eight[1, 0, 3], torch.tensor([4.0, 4.0]))  # diagonals reach the corner of the square
    assert not layer.attention_weights.weight.any()
    assert not layer.sampling_offsets.weight.any()


def test_reference_points_are_centres_as_x_and_y() -> None:
    points = reference_points([(1, 2), (2, 1)], torch.device("cpu"))
    assert points.tolist() == [[0.25, 0.5], [0.75, 0.5], [0.5, 0.25], [0.5, 0.75]]


def test_whole_positions_are_those_of_a_full_mask() -> None:
    expected = sine_positions(torch.ones(1, 5, 7, dtype=torch.bool), 12)
    assert torch.equal(whole_positions((5, 7), 12, torch.device("cpu")), expected)


def test_feed_forward_in_chunks_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = decoder().eval()
    whole = model(maps())
    monkeypatch.setattr(deform, "CHUNK", 7)
    with torch.inference_mode():
        chunks = model(maps())
    torch.testing.assert_close(chunks[0], whole[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(chunks[3], whole[3], rtol=1e-4, atol=1e-5)


def test_every_parameter_learns() -> None:
    """Once offsets and weights depend on the query: at first they do not, and the level embeddings wait."""
    model = decoder()
    for layer in model.transformer.encoder.layers:
        torch.nn.init.normal_(layer.self_attn.sampling_offsets.weight, std=0.1)
        torch.nn.init.normal_(layer.self_attn.attention_weights.weight, std=0.1)
    levels, _, _, features = model(maps())
    (sum(x.square().sum() for x in levels) + features.square().sum()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_half_precision_stays_close_and_looks_at_the_same_places() -> None:
    model = decoder().eval()
    with torch.inference_mode():
        full = model(maps())
        with torch.autocast("cpu", torch.bfloat16):
            half = model(maps())
    for a, b in zip([*full[0], full[3]], [*half[0], half[3]]):
        assert (a - b).norm() / a.norm() < 0.02
    layer, seen = model.transformer.encoder.layers[0].self_attn, list[torch.dtype]()
    layer.sampling_offsets.register_forward_hook(lambda _m, _i, out: seen.append(out.dtype))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        model(maps())
    assert seen == [torch.float32]


def test_a_map_of_one_pixel() -> None:
    with torch.inference_mode():
        levels, _, shapes, features = decoder().eval()(maps(32, 32))
    assert shapes[0] == (1, 1)
    assert math.isfinite(float(features.sum() + levels[0].sum()))
