"""Semantic inference in windows, by hand; beside transformers' in tests/parity/test_eomt_parity.py."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pansight.errors import PansightError
from pansight.ops.fusion.windows import Window, cut_windows, scores_from_windows, windows_of


@pytest.mark.parametrize(
    ("size", "starts"),
    [
        ((8, 8), [0]),
        ((8, 5), [0]),
        ((8, 9), [0, 1]),
        ((8, 16), [0, 8]),
        ((8, 20), [0, 6, 12]),
        ((8, 21), [0, 6, 13]),  # 6.5 is cut
    ],
)
def test_as_few_windows_as_cover_the_long_side(size: tuple[int, int], starts: list[int]) -> None:
    assert windows_of(3, size, 8) == [Window(3, 0, start) for start in starts]
    assert [w.top for w in windows_of(0, size[::-1], 8)] == ([0] if max(size) <= 8 else starts)


def test_windows_keep_to_their_image() -> None:
    """A batch of two, padded to the larger; beyond an image there is 0, not the padding of the batch."""
    images = torch.full((2, 3, 12, 8), 7, dtype=torch.uint8)
    images[0, :, :12, :8] = torch.arange(12 * 8, dtype=torch.uint8).view(12, 8)
    cuts, windows = cut_windows(images, [(12, 8), (6, 8)], 8)
    assert windows == [Window(0, 0, 0), Window(0, 4, 0), Window(1, 0, 0)]
    assert torch.equal(cuts[1], images[0, :, 4:12])
    assert cuts[2, :, :6].unique().tolist() == [7]
    assert cuts[2, :, 6:].unique().tolist() == [0]
    with pytest.raises(PansightError, match="expected images with a side of at most 7 px, found 12×8"):
        cut_windows(images, [(12, 8), (6, 8)], 7)


def test_scores_are_averaged_where_windows_overlap() -> None:
    """4 × 6 px in two windows of 4: columns 2 and 3 are seen by both."""
    sure = torch.tensor([[9.0, 0.0, 0.0], [0.0, 9.0, 0.0]])  # two queries, two classes, no object
    masks = torch.tensor([[[3.0, -4.0]], [[-2.0, 5.0]]])  # (window, 1, query): all pixels alike
    probability = sure.softmax(-1)[:, :2]
    first, second = (probability.T @ mask[0].sigmoid() for mask in masks)
    assert first.argmax() == 0 and second.argmax() == 1  # noqa: PT018
    expected = torch.stack([first, first, (first + second) / 2, (first + second) / 2, second, second], dim=1)
    found = scores_from_windows(
        sure.expand(2, 2, 3),
        lambda index: masks[index, 0][:, None, None].expand(2, 1, 1),
        [Window(0, 0, 0), Window(0, 0, 2)],
        4,
        (4, 6),
        (4, 6),
    )
    assert found.shape == (2, 4, 6)
    torch.testing.assert_close(found, expected[:, None].expand(2, 4, 6))


def test_scores_are_resized_not_classes() -> None:
    """Two windows that differ, at three times the size: as torch resizes the scores."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.randn((1, 5, 4), generator=generator)
    masks = 4 * torch.randn((5, 4, 4), generator=generator)
    scores = torch.einsum("qc,qhw->chw", classes[0].softmax(-1)[:, :-1], masks.sigmoid())
    expected = F.interpolate(scores[None], (12, 9), mode="bilinear")[0]
    found = scores_from_windows(classes, lambda index: masks, [Window(0, 0, 0)], 4, (4, 4), (12, 9))
    torch.testing.assert_close(found, expected)
