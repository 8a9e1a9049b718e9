"""From queries to maps: drawn cases of each official rule, and transformers' processors beside `fuse_hf`."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pansight.ops.fusion import queries as module
from pansight.ops.fusion.queries import (
    Canvas,
    Kept,
    fuse_detr,
    fuse_hf,
    fuse_masks,
    keep_queries,
    query_instances,
    semantic_map,
)
from pansight.types import LabelSpace

pytestmark = pytest.mark.usefixtures("both_ways")

LABELS = LabelSpace.from_names(["car", "cat"], ["sky", "road"])
CAR, CAT, SKY, ROAD = range(4)


def kept(*categories, scores=None):
    count = len(categories)
    values = torch.full((count,), 0.9) if scores is None else torch.tensor(scores)
    return Kept(torch.arange(count), values, torch.tensor(categories, dtype=torch.int64))


def drawn(*pictures):
    """Logits from pictures: the digits are the logits, '.' is −9. Rows are divided by spaces."""
    rows = [[[-9.0 if c == "." else float(c) for c in row] for row in picture.split()] for picture in pictures]
    return torch.tensor(rows)


def same(height, width):
    return Canvas((height, width), (height, width), (height, width))


def rows_of(found):
    return [(s.id, s.category, round(s.score, 4)) for s in found.segments]


def test_keep_queries():
    logits = torch.tensor([[0.0, 3, 0], [0, 0, 9], [1, 0, 0], [9, 0, 0]])  # the last column is "no object"
    found = keep_queries(logits, 0.6)
    assert found.queries.tolist() == [0, 3]
    assert found.categories.tolist() == [1, 0]
    assert torch.equal(found.scores, logits.softmax(-1)[[0, 3], [1, 0]])
    assert keep_queries(logits, 0.4).queries.tolist() == [0, 2, 3]
    exact = float(logits.softmax(-1)[0, 1])
    assert keep_queries(logits, exact).queries.tolist() == [3]  # more than the threshold, not as much


def test_detr_gives_every_pixel_to_the_highest_logit():
    masks = drawn("5554 5554 5554 1111", "1113 1113 1117 5557")
    found = fuse_detr(masks, kept(CAR, SKY), same(4, 4), LABELS)
    assert found.ids.tolist() == [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 2], [2, 2, 2, 2]]
    assert rows_of(found) == [(1, CAR, 0.9), (2, SKY, 0.9)]


def test_detr_keeps_the_first_query_of_a_stuff_class():
    """The second sky is taken out, and its pixels go to the best of the others: not all to the first sky."""
    masks = drawn(
        "777... 777... 777... 777... 777... ......",
        "...333 ...333 ...333 ...111 ...111 ......",  # the first sky
        "...888 ...888 ...888 ...888 ...888 ......",  # the second
        "...222 ...222 ...222 ...222 ...222 666666",
    )
    found = fuse_detr(masks, kept(CAR, SKY, SKY, ROAD), same(6, 6), LABELS)
    assert found.ids.tolist() == 3 * [[1, 1, 1, 2, 2, 2]] + 2 * [[1, 1, 1, 3, 3, 3]] + [[3] * 6]
    assert [s.category for s in found.segments] == [CAR, SKY, ROAD]


def test_detr_counts_a_merged_class_before_it_takes_out_what_is_small():
    """The first sky wins 2 pixels, with the second 20: it is not small, and stays when the second is out."""
    masks = drawn(
        "7777.. 7777.. 7777.. 7777.. ...... ......",
        "....99 .....3 .....3 .....3 333333 333333",
        "...... ....88 ....88 ....88 888888 888888",
    )
    found = fuse_detr(masks, kept(CAR, SKY, SKY), same(6, 6), LABELS)
    assert [s.category for s in found.segments] == [CAR, SKY]
    assert found.ids[0].tolist() == [1, 1, 1, 1, 2, 2]
    assert int((found.ids == 2).sum()) == 2 + 3 + 12  # where both are at −9 the car comes first


def test_detr_takes_out_segments_of_four_pixels_until_none_is_left():
    masks = drawn(
        "9999.. 9999.. 9999.. 9999.. 5555.. 5555..",
        "....88 ....88 ....33 ....33 ...... ......",  # 4 pixels: out, its pixels go to the third
        "....11 ....11 ....66 ....66 ....66 ....66",
    )
    found = fuse_detr(masks, kept(CAR, CAT, CAT, scores=[0.9, 0.95, 0.88]), same(6, 6), LABELS)
    assert found.ids.tolist() == 6 * [[1, 1, 1, 1, 2, 2]]
    assert rows_of(found) == [(1, CAR, 0.9), (2, CAT, 0.88)]
    alone = fuse_detr(masks[:, :2, :2], kept(CAR, CAT, CAT), same(2, 2), LABELS)  # 4 pixels in all
    assert alone.segments == ()
    assert alone.ids.tolist() == [[0, 0], [0, 0]]


def official_detr(masks, categories, canvas):
    """The loop of the official repository in words of our own, on 0-based ids, −1 for nothing."""
    from PIL import Image

    masks = F.interpolate(masks[None], canvas.padded, mode="bilinear")[0, :, : canvas.extent[0], : canvas.extent[1]]
    left = list(range(len(categories)))
    merge = True
    while left:
        ids = masks[left].argmax(0).numpy().astype(np.int32)
        if merge:
            for category in {c for c in categories if not LABELS[c].is_thing}:
                equal = [n for n, k in enumerate(left) if categories[k] == category]
                ids[np.isin(ids, equal)] = equal[0]
        merge = False
        picture = Image.fromarray(ids).resize((canvas.size[1], canvas.size[0]), Image.Resampling.NEAREST)
        ids = np.asarray(picture)
        small = [n for n in range(len(left)) if (ids == n).sum() <= 4]
        if not small:
            return ids, [categories[k] for k in left]
        left = [k for n, k in enumerate(left) if n not in small]
    return np.full(canvas.size, -1), []


def test_detr_equals_the_official_loop():
    for seed in range(25):
        draw = torch.Generator().manual_seed(seed)
        masks = F.interpolate(torch.randn((1, 7, 4, 5), generator=draw), (12, 17), mode="bicubic")[0]
        categories = torch.randint(4, (7,), generator=draw).tolist()
        canvas = Canvas((48, 68), (45, 61), (33, 90) if seed % 2 else (45, 61))
        found = fuse_detr(masks, kept(*categories), canvas, LABELS)
        ids, names = official_detr(masks, categories, canvas)
        assert np.array_equal(found.ids.numpy() - 1, ids)
        assert [s.category for s in found.segments] == names


def test_masks_compete_by_score_times_probability():
    masks = drawn("9999 9999 8..2 ....", "1111 1111 2999 9999")
    found = fuse_masks(masks, kept(CAR, CAT, scores=[0.9, 0.85]), same(4, 4), LABELS, overlap=0.3)
    assert found.ids.tolist() == [[1, 1, 1, 1], [1, 1, 1, 1], [1, 2, 2, 2], [2, 2, 2, 2]]
    assert rows_of(found) == [(1, CAR, 0.9), (2, CAT, 0.85)]


def test_a_sure_score_outweighs_a_sure_mask():
    found = fuse_masks(drawn("99", "33"), kept(CAR, CAT, scores=[0.85, 0.95]), same(1, 2), LABELS)
    assert rows_of(found) == [(1, CAT, 0.95)]  # 0.85 · 0.9999 against 0.95 · 0.953


def test_a_mask_that_loses_too_much_of_itself_is_skipped():
    masks = drawn("9999 9999 .... ....", ".... 8888 8888 8888")  # the cat keeps 8 of 12 pixels
    scores = [0.95, 0.85]
    found = fuse_masks(masks, kept(CAR, CAT, scores=scores), same(4, 4), LABELS, overlap=0.67)
    assert found.ids.tolist() == [[1] * 4, [1] * 4, [0] * 4, [0] * 4]
    found = fuse_masks(masks, kept(CAR, CAT, scores=scores), same(4, 4), LABELS, overlap=0.66)
    assert found.ids.tolist() == [[1] * 4, [1] * 4, [2] * 4, [2] * 4]
    exactly = fuse_masks(drawn("....9", "88888"), kept(CAR, CAT, scores=scores), same(1, 5), LABELS, overlap=0.8)
    assert exactly.ids.tolist() == [[2, 2, 2, 2, 1]]  # 4 of 5 is not less than 0.8


def test_stuff_is_one_segment_and_things_are_not():
    masks = drawn("99.... 99.... ......", "..99.. ..99.. ......", "....99 ....99 ......", "...... ...... 999999")
    found = fuse_masks(masks, kept(SKY, CAR, SKY, CAR, scores=[0.9, 0.8, 0.7, 0.6]), same(3, 6), LABELS)
    assert found.ids.tolist() == [[1, 1, 2, 2, 1, 1], [1, 1, 2, 2, 1, 1], [3] * 6]
    assert rows_of(found) == [(1, SKY, 0.9), (2, CAR, 0.8), (3, CAR, 0.6)]


@pytest.mark.parametrize("cut", [True, False])
def test_cut_writes_only_the_mask_itself(cut):
    """Mask2Former leaves void where the winner's mask is below one half; MaskFormer gives it the pixel."""
    masks = drawn("9999 9999 .... ....", ".... .... ..99 ..99")
    masks[0, 2:] = -1
    masks[1, 2:, :2] = -0.5
    found = fuse_masks(masks, kept(CAR, CAT, scores=[0.9, 0.9]), same(4, 4), LABELS, cut=cut)
    other = 0 if cut else 2
    assert found.ids.tolist() == [[1] * 4, [1] * 4, [other, other, 2, 2], [other, other, 2, 2]]


def test_a_winner_that_is_nowhere_itself_has_no_segment():
    masks = torch.full((2, 3, 3), -1.0)
    masks[1] = -2
    for cut in (True, False):
        found = fuse_masks(masks, kept(CAR, CAT), same(3, 3), LABELS, cut=cut)
        assert found.segments == ()
        assert found.ids.unique().tolist() == [0]


@pytest.mark.parametrize("rule", [fuse_detr, fuse_masks])
def test_nothing_kept_is_all_void(rule):
    found = rule(torch.zeros(0, 3, 4), kept(), Canvas((12, 16), (10, 16), (20, 32)), LABELS)
    assert found.ids.shape == (20, 32)
    assert found.ids.unique().tolist() == [0]
    assert found.segments == ()
    assert fuse_hf(torch.zeros(0, 3, 4), kept(), (20, 32), LABELS).ids.shape == (20, 32)
    assert fuse_hf(torch.zeros(0, 3, 4), kept(), None, LABELS, eomt=True).ids.shape == (3, 4)


def raw_outputs(seed):
    draw = torch.Generator().manual_seed(seed)
    masks = F.interpolate(torch.randn((1, 9, 5, 6), generator=draw) * 4, size=(24, 32), mode="bicubic")
    classes = torch.randn((1, 9, 5), generator=draw) * 3
    raw = SimpleNamespace(logits=classes, pred_masks=masks, class_queries_logits=classes, masks_queries_logits=masks)
    chosen = keep_queries(classes[0], 0.3)
    return raw, chosen, masks[0][chosen.queries]


def assert_same_table(found, table, shift=0):
    last = {row["id"] + shift: (row["label_id"], row["score"]) for row in table}  # what a dictionary by id keeps
    assert {s.id: (s.category, round(s.score, 6)) for s in found.segments} == last


@pytest.mark.parametrize("name", ["Detr", "MaskFormer", "Mask2Former"])
def test_maps_equal_those_of_transformers(name):
    import transformers

    processor = getattr(transformers, f"{name}ImageProcessor")()
    fused = 0
    for seed in range(12):
        raw, chosen, masks = raw_outputs(seed)
        size = None if seed % 4 == 3 else (61, 77)
        theirs = processor.post_process_panoptic_segmentation(
            raw,
            threshold=0.3,
            overlap_mask_area_threshold=0.3,
            label_ids_to_fuse={SKY, ROAD},
            target_sizes=None if size is None else [size],
        )[0]
        logits_size = (384, 384) if name == "Mask2Former" else None
        found = fuse_hf(masks, chosen, size, LABELS, overlap=0.3, logits_size=logits_size)
        assert torch.equal(found.ids, theirs["segmentation"].clamp(min=0).int())
        assert_same_table(found, theirs["segments_info"])
        fused += len(theirs["segments_info"]) > len(found.segments)
    assert fused


@pytest.mark.parametrize("name", ["Detr", "Mask2Former"])
def test_collisions_of_transformers_ids_are_ours_too(name):
    """After the second sky theirs counts on from the id of the sky: the cat gets the id of the car."""
    import transformers

    masks = drawn("99.... 99....", "..9... ..9...", "...9.. ...9..", "....99 ....99").repeat_interleave(8, 1)
    masks = masks.repeat_interleave(8, 2)
    classes = torch.full((4, 5), -9.0)
    classes[range(4), [SKY, CAR, SKY, CAT]] = torch.tensor([9.0, 8, 7, 6])
    raw = SimpleNamespace(logits=classes[None], pred_masks=masks[None])
    raw.class_queries_logits, raw.masks_queries_logits = raw.logits, raw.pred_masks
    theirs = getattr(transformers, f"{name}ImageProcessor")().post_process_panoptic_segmentation(
        raw, label_ids_to_fuse={SKY, ROAD}, target_sizes=[(16, 48)]
    )[0]
    logits_size = (384, 384) if name == "Mask2Former" else None
    found = fuse_hf(masks, keep_queries(classes, 0.5), (16, 48), LABELS, logits_size=logits_size)
    assert torch.equal(found.ids, theirs["segmentation"])
    assert found.ids[4, ::8].tolist() == [1, 1, 2, 1, 2, 2]
    assert [row["id"] for row in theirs["segments_info"]] == [1, 2, 1, 2]
    assert [(s.id, s.category) for s in found.segments] == [(1, SKY), (2, CAT)]
    assert_same_table(found, theirs["segments_info"])


def test_maps_equal_those_of_transformers_eomt():
    from transformers import EomtImageProcessor
    from transformers.models.eomt.image_processing_eomt import get_size_with_aspect_ratio

    edges = {"shortest_edge": 48, "longest_edge": 64}
    processor = EomtImageProcessor(size=edges)
    accepted = 0
    for seed in range(12):
        raw, chosen, masks = raw_outputs(seed)
        size = (61, 77) if seed % 2 else (30, 70)
        theirs = processor.post_process_panoptic_segmentation(
            raw, threshold=0.3, overlap_mask_area_threshold=0.3, stuff_classes=[SKY, ROAD], target_sizes=[size]
        )[0]
        canvas = Canvas((48, 64), get_size_with_aspect_ratio(size, 48, 64), size)
        found = fuse_hf(masks, chosen, canvas, LABELS, overlap=0.3, eomt=True)
        assert torch.equal(found.ids, theirs["segmentation"].int() + 1)
        assert_same_table(found, theirs["segments_info"], shift=1)
        accepted += len(found.segments)
    assert accepted > 12


def test_hf_ratio_is_a_float32():
    """4 / 5 is more than 0.8 there."""
    found = fuse_hf(drawn("....9", "88888"), kept(CAR, CAT, scores=[0.95, 0.85]), None, LABELS, overlap=0.8)
    assert found.ids.tolist() == [[2, 2, 2, 2, 1]]


@pytest.mark.parametrize("budget", [1 << 23, 1000])
def test_semantic_map(monkeypatch, budget):
    monkeypatch.setattr(module, "FLOATS_AT_ONCE", budget)  # one band, or many
    draw = torch.Generator().manual_seed(0)
    classes, masks = torch.randn((9, 5), generator=draw), torch.randn((9, 6, 8), generator=draw) * 9
    canvas = Canvas((24, 32), (20, 32), (41, 60))
    full = F.interpolate(masks[None], canvas.padded, mode="bilinear")[:, :, :20]
    full = F.interpolate(full, canvas.size, mode="bilinear")[0].sigmoid()
    expected = torch.einsum("qc,qhw->chw", classes.softmax(-1)[:, :-1], full)
    found = semantic_map(classes, masks, canvas)
    assert found.dtype == torch.int64
    best = expected.sort(0, descending=True).values
    sure = best[0] - best[1] > 1e-5
    assert sure.float().mean() > 0.99
    assert torch.equal(found[sure], expected.argmax(0)[sure])
    assert len(found.unique()) > 1
    before = masks.clone()
    semantic_map(classes, masks, same(6, 8))  # no resize: nothing is copied on the way
    assert torch.equal(masks, before)


def test_query_instances():
    masks = drawn("22.. 22.. .... ....", ".... .... ...3 ....", ".... .... .... ....", "9999 9999 9999 9999")
    classes = torch.full((4, 5), -9.0)
    classes[0, CAR], classes[0, CAT] = 2, 1
    classes[1, CAT] = 5
    classes[2, CAR] = 5  # an empty mask
    classes[3, SKY] = 9  # stuff
    found = query_instances(classes, masks, same(4, 4), LABELS, top=6)
    assert found.labels.tolist() == [CAT, CAR, CAT]
    assert found.masks.flatten(1).sum(1).tolist() == [1, 4, 4]
    assert found.boxes_xyxy.tolist() == [[3, 2, 4, 3], [0, 0, 2, 2], [0, 0, 2, 2]]
    share = classes.softmax(-1)
    inside = torch.tensor([3.0, 2, 2]).sigmoid()
    torch.testing.assert_close(found.scores, torch.stack((share[1, CAT], share[0, CAR], share[0, CAT])) * inside)
    assert len(query_instances(classes, masks, same(4, 4), LABELS, top=2)) == 1  # the sky and the cat come first
    assert len(query_instances(classes[2:], masks[2:], same(4, 4), LABELS, top=2)) == 0
    assert masks.unique().tolist() == [-9, 2, 3, 9]  # as they were


def test_query_instances_at_the_size_of_the_file():
    draw = torch.Generator().manual_seed(0)
    classes, masks = torch.randn((6, 5), generator=draw), torch.randn((6, 6, 8), generator=draw) * 3
    canvas = Canvas((24, 32), (20, 30), (41, 60))
    full = F.interpolate(masks[None], canvas.padded, mode="bilinear")[:, :, :20, :30]
    full = F.interpolate(full, canvas.size, mode="bilinear")[0]
    found = query_instances(classes, masks, canvas, LABELS)
    assert len(found) == 12
    assert found.masks.shape == (12, 41, 60)
    for mask in found.masks:
        assert min(int((mask != other).sum()) for other in full > 0) == 0
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
