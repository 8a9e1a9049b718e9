"""Scoring files: threads, shards and order do not change the scores, and they equal those of `evaluate`."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from panoptic_tree import Drawn, drawn, random_images, write_side

from pansight.errors import PansightError
from pansight.metrics import PanopticQuality, SemanticIoU
from pansight.metrics.files import score as score_module
from pansight.metrics.files.pairs import PanopticPairs
from pansight.metrics.files.panoptic_json import PanopticFile
from pansight.metrics.files.score import CHUNK, Figures, Scores, score, shard_of
from pansight.parallel import in_forks
from pansight.types import PanopticSegmentation, Prediction, Sample, Segment

EVERYTHING = Figures(errors=True, boundary=True, instances=True)


def pairs_of(folder, truth: list[Drawn], prediction: list[Drawn]) -> PanopticPairs:
    gt, pred = write_side(folder / "gt.json", truth), write_side(folder / "pred.json", prediction)
    file = PanopticFile(gt)
    return PanopticPairs(file, gt.with_suffix(""), PanopticFile(pred, file.labels), pred.with_suffix(""))


@pytest.fixture(scope="module")
def sides():
    result = random_images(np.random.default_rng(0), 5 * CHUNK + 3, scores=True)
    for image in result[0]:
        if image.segments:
            image.segments[0]["area"] += 1  # stale
    return result


@pytest.fixture(scope="module")
def pairs(sides, tmp_path_factory):
    return pairs_of(tmp_path_factory.mktemp("pairs"), *sides)


@pytest.fixture(scope="module")
def record(pairs):
    result = score(pairs, EVERYTHING).record()
    assert 0.2 < result["All"]["pq"] < 0.9
    assert 0 < result["instances"]["mask"]["ap"] < 1
    assert result["stale_areas"] > 3 * CHUNK
    return result


@pytest.mark.parametrize("threads", [2, 3, 7, 100])
def test_threads_change_nothing(pairs, record, threads):
    assert score(pairs, EVERYTHING, threads=threads).record() == record


@pytest.mark.parametrize("processes", [2, 3, 7])
def test_processes_change_nothing(pairs, record, monkeypatch, processes):
    shared, told = [], []

    def shown(work, count, copies, each):
        shared.append((count, copies))
        return in_forks(work, count, copies, each)

    monkeypatch.setattr(score_module, "FORKED", 1)
    monkeypatch.setattr(score_module, "in_forks", shown)
    found = score(pairs, EVERYTHING, threads=processes, progress=told.append)
    chunks = -(-len(pairs) // CHUNK)
    assert shared == [(chunks - 1, min(processes, chunks))], "the first chunk is done by this process"
    assert found.record() == record
    assert told == sorted(told)
    assert told[-1] == len(pairs)
    shown_too = score(pairs, EVERYTHING, threads=processes, each=lambda scored: None)
    assert (len(shared), shown_too.record()) == (1, record), "who looks at each image gets them in this process"


@pytest.mark.parametrize("forked", [1, 1000])
def test_the_error_of_the_first_bad_image_is_told_however_many_work(sides, tmp_path, monkeypatch, forked):
    monkeypatch.setattr(score_module, "FORKED", forked)
    pairs = pairs_of(tmp_path, *sides)
    for index in (2 * CHUNK + 1, 4 * CHUNK):
        (tmp_path / "pred" / pairs.prediction.file_names[index]).write_bytes(b"no PNG")
    told = []
    for threads in (1, 2, 3):
        with pytest.raises(PansightError, match="expected an 8-bit RGB PNG") as caught:
            score(pairs, EVERYTHING, threads=threads)
        told.append(str(caught.value))
    assert pairs.prediction.file_names[2 * CHUNK + 1] in told[0]
    assert told == told[:1] * 3


def test_few_small_images_are_read_without_compiled_code(tmp_path, sides):
    pairs_of(tmp_path, *sides)
    program = (
        "import sys\n"
        "from pansight.apps.cli import main\n"
        "code = main(sys.argv[1:])\n"
        "sys.exit(code or 3 * ('numba' in sys.modules or 'torch' in sys.modules))"
    )
    words = ["evaluate", "--gt", str(tmp_path / "gt.json"), "--pred", str(tmp_path / "pred.json")]
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_order_of_images_and_segments_changes_nothing(sides, record, tmp_path):
    """But for AP among equal scores of one image, which COCO takes in the order of the file."""
    rng = np.random.default_rng(1)
    images = [[side[k] for k in rng.permutation(len(side))] for side in sides]
    assert score(pairs_of(tmp_path, *images), EVERYTHING).record() == record
    shuffled = [
        [i._replace(segments=[i.segments[k] for k in rng.permutation(len(i.segments))]) for i in side] for side in sides
    ]
    found = score(pairs_of(tmp_path, *shuffled), EVERYTHING).record()
    of_scores = {"instances": None, "without_overlaps": None}
    assert {**found, **of_scores} == {**record, **of_scores}


def test_ids_mean_nothing(sides, record, tmp_path):
    rng = np.random.default_rng(2)
    assert score(pairs_of(tmp_path, *([relabelled(i, rng) for i in s] for s in sides)), EVERYTHING).record() == record


def relabelled(image: Drawn, rng: np.random.Generator) -> Drawn:
    old = np.unique(np.append(image.ids, 0))
    new = np.concatenate([[0], rng.choice(2**24 - 1, len(old) - 1, replace=False) + 1])
    to = dict(zip(old.tolist(), new.tolist()))
    rows = [row | {"id": to[row["id"]]} for row in image.segments]
    return Drawn(new[np.searchsorted(old, image.ids)].astype(np.int32), rows, image.image_id)


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 12), st.randoms(use_true_random=False))
def test_shards_in_any_order_make_the_whole(pairs, record, parts, random):
    """Each through JSON, as files of --partial go."""
    shards = list(range(1, parts + 1))
    random.shuffle(shards)
    whole = Scores(pairs.truth.labels, EVERYTHING)
    for part in shards:
        scores = score(pairs, EVERYTHING, shard_of(len(pairs), part, parts), threads=1 + part % 2)
        read = Scores(pairs.truth.labels, EVERYTHING)
        read.load_state_dict(json.loads(json.dumps(scores.state_dict())))
        whole.merge(read)
    assert whole.record() == record


def test_shards_cover_every_image_once():
    for count in (0, 1, 7, 100):
        for parts in (1, 2, 3, 7, 100):
            images = [i for part in range(1, parts + 1) for i in shard_of(count, part, parts)]
            assert images == list(range(count))
            sizes = [len(shard_of(count, part, parts)) for part in range(1, parts + 1)]
            assert max(sizes) - min(sizes) <= 1
    for part, parts in ((0, 3), (4, 3), (-1, 3), (1, 0)):
        with pytest.raises(PansightError, match="shard: expected a part between 1 and"):
            shard_of(10, part, parts)


def test_a_merge_of_other_figures_or_classes(pairs):
    scores = score(pairs, Figures(), range(2))
    with pytest.raises(PansightError, match="expected the same figures on both sides"):
        scores.merge(score(pairs, Figures(errors=False), range(2)))


def test_nothing_to_score(pairs):
    with pytest.raises(PansightError, match="expected at least one image, found none"):
        score(pairs, Figures(), []).record()


def test_a_perfect_prediction_scores_exactly_one(sides, tmp_path):
    pairs = pairs_of(tmp_path, sides[0], sides[0])
    record = score(pairs, EVERYTHING).record()
    for name in ("All", "Things", "Stuff"):
        assert [record[name][k] for k in ("pq", "sq", "rq")] == [1.0] * 3
        assert [record["boundary"][name][k] for k in ("pq", "sq", "rq")] == [1.0] * 3
        assert record["pq_dagger"][name]["pq_dagger"] == 1.0
    assert (record["semantic"]["miou"], record["semantic"]["fwiou"]) == (1.0, 1.0)
    assert record["instances"]["mask"]["ap"] == pytest.approx(1.0)
    assert all(row["pq_gain"] == 0 for row in record["errors"].values())


def as_tensors(image: Drawn, labels) -> PanopticSegmentation:
    index = {c.source_id: c.id for c in labels}
    rows = (Segment(r["id"], index[r["category_id"]], r.get("score", 1.0), bool(r["iscrowd"])) for r in image.segments)
    return PanopticSegmentation(torch.from_numpy(image.ids), tuple(rows))


def test_figures_of_training_are_the_same(sides, pairs, record):
    labels = pairs.truth.labels
    panoptic, semantic = PanopticQuality(labels), SemanticIoU(labels)
    for truth, found in zip(*sides):
        segmentation = as_tensors(truth, labels)
        sample = Sample(
            torch.zeros(3, *truth.ids.shape, dtype=torch.uint8), segmentation, truth.image_id, segmentation.size
        )
        for metric in (panoptic, semantic):
            metric.update(Prediction(panoptic=as_tensors(found, labels)), sample)
    figures = panoptic.compute()
    assert figures == {name: record[name] for name in figures}
    assert set(figures) >= {"All", "Things", "Stuff", "per_class", "images", "counts"}
    assert semantic.compute() == record["semantic"]


def test_precision_where_a_score_is_given(sides, pairs, tmp_path):
    assert "instances" in score(pairs, Figures(), range(3)).record()
    without = [[Drawn(i.ids, [{k: v for k, v in r.items() if k != "score"} for r in i.segments], i.image_id) for i in s]
        for s in sides]  # fmt: skip
    plain = pairs_of(tmp_path, *without)
    assert "instances" not in score(plain, Figures(), range(3)).record()
    assert "instances" in score(plain, Figures(instances=True), range(3)).record()
    assert not {"errors", "boundary", "confusion"} & score(plain, Figures(errors=False)).record().keys()


def test_each_image_in_order_with_its_maps_on_demand(pairs):
    for threads in (1, 3):
        seen, done = [], []
        score(pairs, Figures(instances=False), None, threads, False, seen.append, done.append)
        assert [s.pair.image_id for s in seen] == pairs.truth.image_ids
        assert all(s.pair.truth_ids is None for s in seen)
        assert done[-1] == len(pairs)
        assert done == sorted(done)
        seen.clear()
        score(pairs, Figures(), range(4), threads, True, seen.append)
        assert all(s.pair.truth_ids.shape == s.pair.size for s in seen)
        assert all(len(s.errors.truth) == len(s.pair.match.truth.ids) for s in seen)


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_in_any_thread_ends_it(sides, tmp_path, threads):
    pairs = pairs_of(tmp_path, *sides)
    (tmp_path / "pred" / f"{sides[1][20].image_id}.png").write_bytes(b"")
    with pytest.raises(PansightError, match=rf"{sides[1][20].image_id}\.png: .*found an empty file"):
        score(pairs, Figures(), threads=threads)


def test_images_without_segments(tmp_path):
    nothing = drawn([[0, 0, 0]], {}, 1)
    phantom = drawn([[5, 5, 0]], {5: 17}, 1)
    record = score(pairs_of(tmp_path, [nothing], [nothing]), EVERYTHING).record()
    assert record["All"] == {"pq": 0.0, "sq": 0.0, "rq": 0.0, "n": 0}
    assert (record["images"], record["image_ids"]) == ([], [1])
    record = score(pairs_of(tmp_path, [nothing], [phantom]), EVERYTHING).record()  # all void: it costs nothing
    assert record["All"]["n"] == 0
    record = score(pairs_of(tmp_path, [phantom], [nothing]), EVERYTHING).record()
    assert record["per_class"]["17"] == {
        "name": "cat", "isthing": True, "pq": 0.0, "sq": 0.0, "rq": 0.0, "tp": 0, "fp": 0, "fn": 1, "iou": 0.0
    }  # fmt: skip


def test_records_are_json_without_nan(record):
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_the_sample_of_panopticapi_against_itself(data_root):
    root = data_root / "coco_panoptic_sample"
    truth = PanopticFile(root / "panoptic_examples.json")
    folder = root / "panoptic_examples"
    record = score(PanopticPairs(truth, folder, truth, folder), Figures()).record()
    assert [record["All"][k] for k in ("pq", "sq", "rq")] == [1.0] * 3
    assert record["All"]["n"] == len({r for k in range(len(truth)) for r in truth.table(k).categories.tolist()})


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_memory_does_not_grow_with_the_number_of_images(tmp_path, threads):
    """Beyond the figures themselves: some hundred bytes for each image that stay, whatever its size."""
    images = random_images(np.random.default_rng(3), 8)
    many = [[image._replace(image_id=i) for i, image in enumerate(side * 50)] for side in images]
    pairs = pairs_of(tmp_path, *many)
    score(pairs, Figures(), range(20), threads)

    def peak(count: int) -> int:
        gc.collect()
        tracemalloc.start()
        try:
            score(pairs, Figures(), range(count), threads, True, lambda scored: None)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    few, all_of_them = peak(40), peak(400)
    assert all_of_them - few < 360 * 1500
