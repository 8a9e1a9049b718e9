"""DETR's layers against PyTorch's own, and positions against their definition."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from pansight.nn.queries.transformer import (
    MLP,
    Attention,
    DecoderLayer,
    EncoderLayer,
    TransformerDecoder,
    TransformerEncoder,
)
from pansight.ops.attention.positions import resize_valid, sine_positions
from pansight.ops.fast.memory import checkpointed


def copied(ours: nn.Module, theirs: nn.Module) -> None:
    """Our names are PyTorch's; values are drawn, biases and norms too."""
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_(0, 0.3)
    missing, unexpected = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert not missing
    assert not unexpected


@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize("is_self", [False, True])
def test_attention_is_pytorchs(is_self: bool, is_masked: bool) -> None:
    theirs, ours = nn.MultiheadAttention(16, 4, batch_first=True), Attention(16, 4)
    copied(ours, theirs)
    query, value = torch.randn(2, 5, 16), torch.randn(2, 5 if is_self else 7, 16)
    key = query if is_self else torch.randn(2, 7, 16)
    valid = torch.rand(2, value.shape[1]) < 0.6
    valid[:, 0] = True
    mask = valid[:, None, None] if is_masked else None
    expected, _ = theirs(query, key, value, key_padding_mask=~valid if is_masked else None)
    torch.testing.assert_close(ours(query, key, value, mask), expected, rtol=1e-5, atol=1e-5)


def test_attention_drops_in_training_alone() -> None:
    layer, x = Attention(16, 4, dropout=0.5), torch.randn(1, 6, 16)
    assert not torch.equal(layer.train()(x, x, x), layer(x, x, x))
    assert torch.equal(layer.eval()(x, x, x), layer(x, x, x))


def test_encoder_layer_is_pytorchs_where_positions_are_zero() -> None:
    theirs = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True).eval()
    ours = EncoderLayer(16, 4, 24).eval()
    copied(ours, theirs)
    x = torch.randn(2, 6, 16)
    torch.testing.assert_close(ours(x, torch.zeros_like(x)), theirs(x), rtol=1e-5, atol=1e-5)


def test_positions_go_to_queries_and_keys_alone() -> None:
    """The layer, written out from PyTorch's attention."""
    ours = EncoderLayer(16, 4, 24).eval()
    attention = nn.MultiheadAttention(16, 4, batch_first=True)
    copied(ours.self_attn, attention)
    x, positions = torch.randn(2, 6, 16), torch.randn(2, 6, 16)
    seen, _ = attention(x + positions, x + positions, x)
    y = ours.norm1(x + seen)
    expected = ours.norm2(y + ours.linear2(ours.linear1(y).relu()))
    torch.testing.assert_close(ours(x, positions), expected, rtol=1e-5, atol=1e-5)


def test_decoder_layer_is_pytorchs_where_positions_are_zero() -> None:
    theirs = nn.TransformerDecoderLayer(16, 4, 24, batch_first=True).eval()
    ours = DecoderLayer(16, 4, 24).eval()
    copied(ours, theirs)
    x, memory = torch.randn(2, 5, 16), torch.randn(2, 9, 16)
    valid = torch.ones(2, 9, dtype=torch.bool)
    valid[1, 6:] = False
    expected = theirs(x, memory, memory_key_padding_mask=~valid)
    found = ours(x, torch.zeros_like(x), memory, memory, valid[:, None, None])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_decoder_layer_with_positions() -> None:
    """Query positions: both attentions' queries, the first one's keys. Memory's: keys of the second alone."""
    ours = DecoderLayer(16, 4, 24).eval()
    one, two = (nn.MultiheadAttention(16, 4, batch_first=True) for _ in range(2))
    copied(ours.self_attn, one)
    copied(ours.multihead_attn, two)
    x, where, memory, places = (torch.randn(2, n, 16) for n in (5, 5, 9, 9))
    y = ours.norm1(x + one(x + where, x + where, x)[0])
    y = ours.norm2(y + two(y + where, memory + places, memory)[0])
    expected = ours.norm3(y + ours.linear2(ours.linear1(y).relu()))
    torch.testing.assert_close(ours(x, where, memory, memory + places), expected, rtol=1e-5, atol=1e-5)


def test_decoder_starts_from_zero_and_norms_every_layer() -> None:
    decoder = TransformerDecoder(3, 16, 4, 24).eval()
    queries, memory, places = torch.randn(5, 16), torch.randn(2, 9, 16), torch.randn(2, 9, 16)
    every = decoder(queries, memory, places)
    last = decoder(queries, memory, places, all_layers=False)
    assert every.shape == (3, 2, 5, 16)
    assert torch.equal(last, every[-1:])
    x = decoder.layers[0](torch.zeros(2, 5, 16), queries.expand(2, -1, -1), memory, memory + places)
    torch.testing.assert_close(every[0], decoder.norm(x))
    x = decoder.layers[1](x, queries.expand(2, -1, -1), memory, memory + places)  # the norm does not feed the next
    torch.testing.assert_close(every[1], decoder.norm(x))


def test_encoder_does_not_look_at_masked_places() -> None:
    encoder = TransformerEncoder(2, 16, 4, 24).eval()
    x, places = torch.randn(1, 6, 16), torch.randn(1, 6, 16)
    valid = torch.tensor([[True] * 4 + [False] * 2])
    changed = x.clone()
    changed[:, 4:] = 7.0
    one, other = encoder(x, places, valid[:, None, None]), encoder(changed, places, valid[:, None, None])
    assert torch.equal(one[:, :4], other[:, :4])
    torch.testing.assert_close(one[:, :4], encoder(x[:, :4], places[:, :4]))


def test_initial_matrices_are_xaviers() -> None:
    for module in (TransformerEncoder(1, 64, 4, 96), TransformerDecoder(1, 64, 4, 96)):
        matrices = [p for p in module.parameters() if p.ndim > 1]
        assert len(matrices) == (4 if isinstance(module, TransformerEncoder) else 6)
        for matrix in matrices:
            bound = math.sqrt(6 / sum(matrix.shape))
            assert 0.98 * bound < matrix.abs().max() <= bound


def test_mlp_has_relu_between_its_layers() -> None:
    mlp = MLP(3, 4, 2)
    x = torch.randn(5, 3)
    expected = mlp.layers[1](mlp.layers[0](x).relu())
    assert torch.equal(mlp(x), expected)
    assert (expected < 0).any()


def reference_position(x: int, y: int, width: int, height: int, channels: int) -> Tensor:
    """DETR's appendix A.4, one number at a time."""
    values: list[float] = []
    for place, count in ((y, height), (x, width)):
        phase = (place + 1) / (count + 1e-6) * 2 * math.pi
        for index in range(channels // 2):
            angle = phase / 10000 ** (2 * (index // 2) / (channels // 2))
            values.append(math.cos(angle) if index % 2 else math.sin(angle))
    return torch.tensor(values)


def test_sine_positions_of_a_padded_image() -> None:
    valid = torch.zeros(2, 4, 5, dtype=torch.bool)
    valid[0] = True
    valid[1, :3, :2] = True
    found = sine_positions(valid, 16)
    assert found.shape == (2, 4, 5, 16)
    assert found.dtype == torch.float32
    for image, (height, width) in enumerate([(4, 5), (3, 2)]):
        for y in range(height):
            for x in range(width):
                expected = reference_position(x, y, width, height, 16)
                torch.testing.assert_close(found[image, y, x], expected, rtol=1e-5, atol=1e-5)
    assert found.isfinite().all()  # rows of padding alone divide by nearly nothing


def test_sine_positions_are_transformers() -> None:
    from transformers.models.detr.modeling_detr import DetrSinePositionEmbedding

    valid = torch.zeros(1, 6, 7, dtype=torch.bool)
    valid[0, :5, :4] = True
    theirs = DetrSinePositionEmbedding(num_position_features=32, normalize=True)
    expected = theirs(torch.Size((1, 3, 6, 7)), valid.device, torch.float32, mask=valid)  # (1, 64, 6, 7)
    torch.testing.assert_close(sine_positions(valid, 64), expected.permute(0, 2, 3, 1), rtol=1e-5, atol=1e-5)


def test_resize_valid_takes_the_nearest() -> None:
    valid = torch.zeros(1, 8, 8, dtype=torch.bool)
    valid[0, :5, :3] = True
    expected = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]).bool()
    assert torch.equal(resize_valid(valid, (4, 4))[0], expected)


def test_what_is_checkpointed_has_the_same_gradients_and_keeps_less() -> None:
    layer, x = MLP(8, 512, 8, 2), torch.randn(3, 5, 8, requires_grad=True)

    def run(again: bool) -> tuple[list[Tensor], int]:
        kept = 0

        def count(tensor: Tensor) -> Tensor:
            nonlocal kept
            kept += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            y = checkpointed(layer, x) if again else layer(x)
        return [y, *torch.autograd.grad(y.square().sum(), (x, *layer.parameters()))], kept

    plain, plain_kept = run(False)
    again, again_kept = run(True)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    assert again_kept < plain_kept / 10
    with torch.no_grad():
        assert torch.equal(checkpointed(layer, x), again[0])
