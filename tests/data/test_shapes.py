"""The generated shapes: their rules, and that an image depends on seed, split and index alone."""

import numpy as np
import pytest
import torch

from pansight.data import open_dataset
from pansight.data.formats.shapes import SHAPES, Shapes, draw_shapes, suppress
from pansight.errors import PansightError
from pansight.ops.idmap import present_ids


def test_an_image_is_a_function_of_seed_split_and_index():
    first, again = Shapes(5, seed=3), Shapes(50, seed=3)
    assert torch.equal(first[4].image, again[4].image)
    assert torch.equal(first[4].truth.ids, again[4].truth.ids)
    for other in (Shapes(5, seed=4)[4], Shapes(5, seed=3, split="val")[4], first[3]):
        assert not torch.equal(first[4].image, other.image)


@pytest.mark.parametrize(("height", "width"), [(128, 128), (64, 96), (16, 16), (200, 150)])
def test_every_sample_is_whole(height, width):
    data = Shapes(60, height, width)
    kinds = set()
    for index in range(len(data)):
        sample = data[index]
        assert sample.image.shape == (3, height, width)
        assert sample.size == sample.truth.size == (height, width)
        assert set(present_ids(sample.truth.ids.numpy()).tolist()) == {s.id for s in sample.truth.segments}
        colors = [sample.image[:, sample.truth.ids == s.id].unique(dim=1).shape[1] for s in sample.truth.segments]
        assert colors == [1] * len(colors)  # a segment is one colour: image and map agree to the pixel
        kinds |= {data.labels[s.category].name for s in sample.truth.segments}
    assert kinds == {*SHAPES, "background"}


def test_background_can_be_void():
    sample = Shapes(1, background="void")[0]
    assert (sample.truth.ids == 0).any()
    assert all(Shapes(1, background="void").labels[s.category].is_thing for s in sample.truth.segments)


def test_the_tutorials_rules_hold():
    counts = []
    for seed in range(300):
        ids, kinds = draw_shapes(np.empty((128, 128, 3), np.uint8), np.random.default_rng(seed))
        counts.append(len(kinds))
        top = (ids == len(kinds)).nonzero()
        extent = top[0].max() - top[0].min() + 1
        assert 2 * 20 <= extent <= 2 * 32 + 1 or 0 in (
            top[0].min(),
            127 - top[0].max(),
        )  # s in 20 … 32, clipped or whole
    assert set(counts) == {1, 2, 3, 4}


def test_later_boxes_win():
    assert suppress([(0, 0, 10, 10), (0, 0, 10, 9), (20, 20, 30, 30)]) == [1, 2]
    assert suppress([(0, 0, 10, 10), (5, 0, 15, 10)]) == [1]  # IoU 1/3
    assert suppress([(0, 0, 10, 10), (6, 0, 16, 10)]) == [0, 1]  # IoU 1/4


def test_triangles_are_equilateral_and_squares_square():
    data = Shapes(200, seed=1)
    shares = {name: [] for name in SHAPES}
    for index in range(200):
        sample = data[index]
        things = [s for s in sample.truth.segments if data.labels[s.category].is_thing]
        y, x = (sample.truth.ids == things[-1].id).nonzero(as_tuple=True)
        if min(y.min(), x.min()) > 0 and max(y.max(), x.max()) < 127:
            box = (y.max() - y.min() + 1) * (x.max() - x.min() + 1)
            shares[data.labels[things[-1].category].name].append((len(y) / box.item(), (x.max() - x.min() + 1).item()))
    assert all(share == 1 for share, _ in shares["square"])
    assert all(0.74 < share < 0.83 for share, _ in shares["circle"])  # π / 4
    assert all(0.48 < share < 0.54 for share, _ in shares["triangle"])  # 1 / 2
    assert all(shares.values())


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_the_share_of_images_with_a_triangle(share):
    data = open_dataset("shapes", count=300, triangles=share)
    triangle = SHAPES.index("triangle")
    found = sum(any(s.category == triangle for s in data[index].truth.segments) for index in range(300))
    assert found == {0.0: 0, 1.0: 300}.get(share) or 15 <= found <= 45
    assert torch.equal(data[7].truth.ids, Shapes(8, triangles=share)[7].truth.ids)


@pytest.mark.parametrize(
    "options",
    [
        {"height": 8},
        {"count": 0},
        {"seed": -1},
        {"background": "grass"},
        {"split": "dev"},
        {"size": 3},
        {"triangles": 1.5},
        {"triangles": "many"},
        {"triangles": True},
        {"triangles": float("nan")},
    ],
)
def test_bad_options_are_one_line(options):
    with pytest.raises(PansightError):
        open_dataset("shapes", **options)


def test_indices_end():
    with pytest.raises(IndexError):
        Shapes(3)[3]
