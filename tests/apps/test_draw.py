"""Overlays and error maps, checked pixel by pixel where a rule says what a pixel must be."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pansight.apps.pages import draw
from pansight.apps.pages.draw import ERROR_COLORS, error_codes, error_map, panels, sheet
from pansight.drawing.segments import overlay, segment_colors
from pansight.errors import PansightError
from pansight.types import Category, LabelSpace, PanopticSegmentation, Segment

LABELS = LabelSpace(
    [
        Category(0, "cat", True, (200, 40, 40), 1),
        Category(1, "dog", True, (40, 200, 40), 2),
        Category(2, "sky", False, (70, 130, 180), 3),
    ]
)


def segmentation(ids, *segments: Segment) -> PanopticSegmentation:
    return PanopticSegmentation(torch.as_tensor(np.asarray(ids), dtype=torch.int32), tuple(segments))


def scene(height: int = 120, width: int = 160) -> tuple[torch.Tensor, PanopticSegmentation]:
    """A photo of noise; sky above, two cats in the lower half, void between them."""
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)).permute(2, 0, 1)
    ids = np.zeros((height, width), np.int32)
    ids[: height // 2] = 2**24 - 1
    ids[height // 2 + 5 : -5, 5 : width // 2 - 5] = 7
    ids[height // 2 + 5 : -5, width // 2 + 5 : -5] = 9
    return image, segmentation(ids, Segment(9, 0), Segment(2**24 - 1, 2), Segment(7, 0))


def names_are_drawn(image, truth) -> int:
    """Pixels that names change."""
    return int((overlay(image, truth, LABELS) != overlay(image, truth, LABELS, names=False)).any(dim=0).sum())


def test_void_stays_unpainted_and_inputs_untouched():
    image, truth = scene()
    before = image.clone()
    result = overlay(image, truth, LABELS, names=False)
    assert result.dtype == torch.uint8
    assert result.shape == image.shape
    void = truth.ids == 0
    assert void.any()
    assert torch.equal(result[:, void], image[:, void])
    assert torch.equal(image, before)


def test_stuff_has_the_colour_of_its_category_and_things_differ():
    image, truth = scene()
    opaque = overlay(image, truth, LABELS, opacity=1.0, names=False)
    colors = segment_colors(truth.segments, LABELS)
    assert colors[2**24 - 1] == (70, 130, 180)
    assert colors[7] != colors[9]
    for segment in truth.segments:
        inside = opaque[:, truth.ids == segment.id]
        assert (inside == torch.tensor(colors[segment.id], dtype=torch.uint8)[:, None]).all()


def test_half_opacity_is_half_way_and_contours_are_opaque():
    image, truth = scene()
    filled = overlay(image, truth, LABELS, contours=False, names=False)
    sky = truth.ids == 2**24 - 1
    expected = (image[:, sky].float() + torch.tensor([70.0, 130.0, 180.0])[:, None]) / 2
    assert (filled[:, sky].float() - expected).abs().max() <= 0.5
    outlined = overlay(image, truth, LABELS, names=False)
    changed = (outlined != filled).any(dim=0)
    assert changed[59, 40]  # last row of the sky, over void
    assert not changed[58, 40]  # one pixel further in: lines are one pixel wide at this size
    assert not changed[0, 40]  # the rim of the image is no edge
    assert tuple(outlined[:, 59, 40].tolist()) == (70, 130, 180)


def test_lines_grow_with_the_image():
    image, truth = scene(960, 1280)
    edge = overlay(image, truth, LABELS, opacity=0.0, names=False) != image
    assert edge.any(dim=0)[476:480, 600].sum() == 2


@pytest.mark.parametrize(("height", "width"), [(40, 60), (120, 160), (1000, 1400)])
def test_names_stand_in_large_segments_at_every_size(height, width):
    image, truth = scene(height, width)
    share = names_are_drawn(image, truth) / (height * width)
    assert 0.002 < share < 0.35


def test_small_segments_get_no_name():
    image = torch.full((3, 200, 200), 90, dtype=torch.uint8)
    ids = np.zeros((200, 200), np.int32)
    ids[50:64, 50:64] = 1  # 196 of 40,000 pixels: 0.49 %
    assert names_are_drawn(image, segmentation(ids, Segment(1, 0))) == 0
    ids[50:65, 50:65] = 1  # 225: 0.56 %
    assert names_are_drawn(image, segmentation(ids, Segment(1, 0))) > 0


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1)])
def test_images_of_one_pixel(shape):
    image = torch.zeros(3, *shape, dtype=torch.uint8)
    truth = segmentation(np.ones(shape), Segment(1, 0))
    assert overlay(image, truth, LABELS).shape == image.shape
    assert sheet(image, truth, truth, LABELS, long_side=60).dtype == torch.uint8


def test_an_image_without_segments_comes_back_as_it_is():
    image, _ = scene()
    assert torch.equal(overlay(image, segmentation(np.zeros((120, 160))), LABELS), image)


def test_another_size_is_refused():
    image, truth = scene()
    with pytest.raises(PansightError, match=r"expected \(3, 120, 160\) as its map, found \(3, 10, 160\)"):
        overlay(image[:, :10], truth, LABELS)


TRUTH = segmentation(
    [[1, 1, 1, 1, 3, 3, 3, 3, 2, 2, 5, 5, 0, 0]],
    Segment(1, 0),
    Segment(2, 1),
    Segment(3, 2),
    Segment(5, 0, is_crowd=True),
)
PREDICTION = segmentation(
    [[1, 1, 1, 4, 4, 3, 3, 3, 6, 6, 8, 8, 8, 0]],
    Segment(1, 0),  # 3 of 4 pixels of the cat: found
    Segment(4, 1),  # a dog that is not there
    Segment(3, 2),  # the sky but for a pixel: found
    Segment(6, 0),  # the dog taken for a cat
    Segment(8, 0),  # on crowd and void: ignored
)


def test_error_codes_pixel_by_pixel():
    names = list(ERROR_COLORS)
    assert [names[code] for code in error_codes(TRUTH, PREDICTION)[0]] == [
        *["correct"] * 3, "phantom", "phantom", *["correct"] * 3, "wrong", "wrong", "void", "void", "void", "void"
    ]  # fmt: skip
    nothing = segmentation(np.zeros((1, 14)))
    assert [names[code] for code in error_codes(TRUTH, nothing)[0]] == [*["missed"] * 10, *["void"] * 4]
    trimmed = segmentation([[1, 1, 1, 0, 3, 3, 3, 3, 2, 2, 0, 0, 0, 0]], *TRUTH.segments[:3])
    assert names[error_codes(TRUTH, trimmed)[0, 3]] == "border"


def test_beside_objects_there_is_background_and_no_void():
    names = list(ERROR_COLORS)
    truth = segmentation([[1, 1, 1, 0, 0, 0, 0, 0, 0, 0]], Segment(1, 0))
    large = segmentation([[1, 1, 1, 1, 1, 1, 1, 0, 2, 2]], Segment(1, 0), Segment(2, 0))
    codes = [names[code] for code in error_codes(truth, large, background=True)[0]]
    assert codes == [*["wrong"] * 3, *["phantom"] * 4, "void", "phantom", "phantom"]  # IoU 3 / 7
    close = segmentation([[1, 1, 1, 1, 0, 0, 0, 0, 0, 0]], Segment(1, 0))
    assert [names[code] for code in error_codes(truth, close, background=True)[0]] == [
        *["correct"] * 3, "border", *["void"] * 6
    ]  # fmt: skip


def test_error_map_shows_the_codes_in_their_colours():
    wide_truth, wide_prediction = (
        segmentation(s.ids.numpy().repeat(9, 0).repeat(9, 1), *s.segments) for s in (TRUTH, PREDICTION)
    )
    picture = error_map(wide_truth, wide_prediction)
    codes = error_codes(wide_truth, wide_prediction)
    assert tuple(picture[:, 4, 8 * 9 + 4].tolist()) == ERROR_COLORS["wrong"]
    assert tuple(picture[:, 4, 13 * 9 + 4].tolist()) == ERROR_COLORS["void"] == (255, 255, 255)
    image = torch.full((3, 9, 126), 255, dtype=torch.uint8)
    assert torch.equal(error_map(wide_truth, wide_prediction, image), picture)  # a white photo darkens nothing
    shaded = error_map(wide_truth, wide_prediction, image // 4)
    assert shaded[:, codes != 5].float().mean() < picture[:, codes != 5].float().mean()
    assert (shaded[:, codes == 5] == 255).all()


def test_error_colours_differ_for_colour_blind_eyes():
    """Red and green cones as one (deuteranopia, roughly): yellow-blue and lightness must tell the errors apart."""
    seen = {k: np.array([(r + g) / 2, b]) for k, (r, g, b) in ERROR_COLORS.items()}
    kinds = ["correct", "missed", "phantom", "wrong"]
    distances = [np.abs(seen[a] - seen[b]).max() for i, a in enumerate(kinds) for b in kinds[i + 1 :]]
    assert min(distances) > 40


def test_panels_have_one_size_and_matches_one_colour():
    image, truth = scene()
    prediction = segmentation(truth.ids.numpy(), Segment(2**24 - 1, 2), Segment(7, 0), Segment(9, 0))  # other order
    pictures = panels(image, truth, prediction, LABELS, long_side=320)
    assert [tuple(p.shape) for p in pictures] == [(3, 240, 320)] * 3
    assert torch.equal(pictures[0], pictures[1])  # everything matches, so truth and prediction look the same
    assert sheet(image, truth, prediction, LABELS, long_side=320).shape == (3, 240, 3 * 320 + 2 * 4)


def test_segments_that_vanish_when_shrunk_do_no_harm():
    image = torch.zeros(3, 400, 400, dtype=torch.uint8)
    ids = np.full((400, 400), 5, np.int32)
    ids[201, 203] = 6
    truth = segmentation(ids, Segment(5, 2), Segment(6, 0))
    assert [s.id for s in draw.resized_map(truth, (20, 20)).segments] == [5]
    assert panels(image, truth, truth, LABELS, long_side=20)[2].shape == (3, 20, 20)


def test_many_things_of_one_class_have_many_colours():
    segments = [Segment(i, 0) for i in range(1, 200)]
    colors = segment_colors(segments, LABELS)
    assert colors[1] == (200, 40, 40)
    assert len(set(colors.values())) > 150
    fresh = segment_colors(segments[:3], LABELS, taken={2: colors[1]})
    assert fresh[2] == colors[1]
    assert colors[1] not in (fresh[1], fresh[3])
