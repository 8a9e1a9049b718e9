"""What the page asks, as it asks it: looks, decisions, files, the truth; the page itself: test_serve_browser.py."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from conftest import LABELS, Serve, photo, png_of, tiny
from pansight.apps.serving.answers import regions_of
from pansight.apps.serving.work.looks import KeptLook, Looks
from pansight.data.images import decode_image
from pansight.engine.predict import Predictor
from pansight.models import MODELS
from pansight.ops.idmap import ids_to_rgb, rgb_to_ids

OPTIONS = {"score_threshold": 0.1, "overlap": 0.1}


class Counted:
    """A predictor that counts the passes of its network."""

    def __init__(self, predictor: Predictor):
        self._inner, self.passes = predictor, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def look_at(self, photos: list) -> Any:
        self.passes += 1
        return self._inner.look_at(photos)


def unpacked(body: bytes) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """(rows from 1, uint16 (h, w); segments), as the page reads them."""
    line, _, _ = body.partition(b"\n")
    head, start = json.loads(line), len(line) + 1
    assert start % 4 == 0
    lengths = np.frombuffer(body, "<u4", head["runs"], start)
    rows = np.frombuffer(body, "<u2", head["runs"], start + 4 * head["runs"])
    assert len(body) == start + 6 * head["runs"]
    return rows.repeat(lengths).reshape(head["size"]), head["segments"]


def look_of(client: TestClient, pixels: np.ndarray, **fields: str) -> str:
    answer = client.post("/v1/looks", files={"image": png_of(pixels)}, data=fields)
    assert answer.status_code == 200, answer.text
    assert answer.json()["size"] == list(pixels.shape[:2])
    return answer.json()["look"]


def test_sliders_decide_as_the_predictor_does_without_its_network(serve: Serve, predictor: Predictor) -> None:
    counted = Counted(predictor)
    client = serve({"queries": counted})  # type: ignore[dict-item]
    look = look_of(client, photo())
    assert counted.passes == 1
    for options in (OPTIONS, {"score_threshold": 0.3}, {}, {**OPTIONS, "score_threshold": 0.9}):
        answer = client.post(f"/v1/looks/{look}/segments", json={"options": options})
        rows, segments = unpacked(answer.content)
        truth = predictor.predict(photo(), **options).panoptic
        assert truth is not None
        numbers = np.array([0, *(segment.id for segment in truth.segments)])
        assert (numbers[rows] == truth.ids.numpy()).all()
        for row, (segment, given) in enumerate(zip(truth.segments, segments, strict=True), 1):
            assert (given["name"], given["thing"]) == LABELS[segment.category][1:3]
            assert given["score"] == round(segment.score, 4)
            assert given["area"] == int((rows == row).sum())
    assert counted.passes == 1


def test_a_dragged_slider_decides_at_a_small_size(serve: Serve) -> None:
    """Areas and boxes stay in pixels of the photo, and a threshold in pixels shrinks with the map."""
    predictor = tiny("panoptic_deeplab")
    client = serve({"centres": predictor})
    look = look_of(client, photo(1))
    whole, all_segments = unpacked(client.post(f"/v1/looks/{look}/segments", json={}).content)
    small, segments = unpacked(client.post(f"/v1/looks/{look}/segments", json={"side": 32}).content)
    assert (whole.shape, small.shape) == ((48, 64), (24, 32))
    assert segments
    assert sum(each["area"] for each in segments) == pytest.approx(4 * (small > 0).sum(), abs=len(segments))
    assert all(each["box"][0] + each["box"][2] <= 64 and each["box"][1] + each["box"][3] <= 48 for each in segments)
    largest = max(each["area"] for each in all_segments)
    few = {"options": {"min_stuff_area": largest + 1}, "side": 32}
    _, fewer = unpacked(client.post(f"/v1/looks/{look}/segments", json=few).content)
    assert not [each for each in fewer if not each["thing"]]


@pytest.mark.slow
def test_every_system_can_be_looked_at(serve: Serve) -> None:
    names = [name for name, entry in MODELS.items() if not entry.variant_of]
    predictors = {name: tiny(name) for name in names}
    client = serve(predictors)
    for name, predictor in predictors.items():
        look = look_of(client, photo(2), model=name)
        rows, segments = unpacked(client.post(f"/v1/looks/{look}/segments", json={"score": 0.1}).content)
        truth = regions_of(predictor.predict(photo(2)), (48, 64), 0.1)
        assert len(segments) == len(truth.segments), name
        assert (np.array([0, *(s.id for s in truth.segments)])[rows] == truth.ids.numpy()).all(), name
        small = client.post(f"/v1/looks/{look}/segments", json={"score": 0.1, "side": 32})
        assert unpacked(small.content)[0].shape == (24, 32), name


def test_files_are_those_of_the_decision(serve: Serve, predictor: Predictor) -> None:
    client = serve({"queries": predictor})
    look = look_of(client, photo())
    truth = predictor.predict(photo(), **OPTIONS)
    assert truth.panoptic is not None
    png, text, shapes = (
        client.post(f"/v1/looks/{look}/files", json={"kind": kind, "options": OPTIONS})
        for kind in ("png", "json", "geojson")
    )
    for data in (png.content, base64.b64decode(text.json()["png"])):
        assert (rgb_to_ids(decode_image(data, "png")) == truth.panoptic.ids.numpy()).all()
    assert len(text.json()["annotations"][0]["segments_info"]) == len(truth.panoptic.segments)
    assert shapes.json() == json.loads(json.dumps(truth.to_geojson()))


def test_looks_are_let_go_by_their_bytes_and_told(serve: Serve, predictor: Predictor) -> None:
    kept = Looks(most=2 * KeptLook("a", photo(), predictor.look_at([predictor.prepared(photo())]), LABELS).bytes)
    looks = [KeptLook("a", photo(n), predictor.look_at([predictor.prepared(photo(n))]), LABELS) for n in range(3)]
    names = [kept.keep(each)[0] for each in looks[:2]]
    assert kept.find(names[0]) is looks[0]  # which makes the other one the oldest
    name, held = kept.keep(looks[2])
    assert held == looks[0].bytes + looks[2].bytes
    assert kept.find(name) is looks[2]
    client = serve({"queries": predictor}, kept=0.0)
    first, second = look_of(client, photo(0)), look_of(client, photo(1))
    gone = client.post(f"/v1/looks/{first}/segments", json={})
    assert (gone.status_code, gone.json()["hint"]) == (404, "send the photo again")
    assert client.post(f"/v1/looks/{second}/segments", json={}).status_code == 200
    bad = client.post(f"/v1/looks/{second}/segments", json={"options": {"score_threshold": 3}})
    assert bad.json()["error"] == "score_threshold of mask2former: expected a number, 0 … 1, found 3"
    assert client.post(f"/v1/looks/{second}/files", json={"kind": "exe"}).status_code == 422


def test_the_truth_with_and_without_its_json(serve: Serve, predictor: Predictor) -> None:
    client = serve({"queries": predictor}, pixels=0.01)
    ids = np.zeros((48, 64), np.int32)
    ids[:, :20], ids[10:, 30:] = 7, 70_000
    picture = png_of(ids_to_rgb(ids))
    rows, segments = unpacked(client.post("/v1/truth", files={"truth": picture}).content)
    assert (np.array([0, 7, 70_000])[rows] == ids).all()
    assert [each["name"] for each in segments] == ["segment 7", "segment 70000"]
    infos = [{"id": 7, "category_id": 3}, {"id": 70_000, "category_id": 1}]
    table = {
        "categories": LABELS.to_json(),
        "annotations": [
            {"file_name": "a.png", "segments_info": infos}, {"file_name": "b.png", "segments_info": []}
        ],
    }  # fmt: skip

    def ask(content: object, name: str = "a.png", image: bytes = picture) -> Any:
        files = {"truth": image, "annotations": content if isinstance(content, bytes) else json.dumps(content).encode()}
        return client.post("/v1/truth", files=files, data={"name": name})

    _, segments = unpacked(ask(table).content)
    assert [(each["name"], each["area"]) for each in segments] == [("sky", 960), ("cat", 38 * 34)]
    for answer, line in (
        (ask(table, "c.png"), "annotations: expected one annotation of c.png, found 0"),
        (ask(table, "b.png"), "truth: expected segments of the JSON, found 7, which the JSON does not list"),
        (ask(b"[" * 100_000), "annotations: expected COCO panoptic"),
        (ask({"categories": [], "annotations": [{"segments_info": infos}]}), "annotations: expected COCO panoptic"),
        (ask(table, image=b"x"), "truth: expected"),
        (ask(table, image=png_of(np.zeros((101, 100, 3), np.uint8))), "truth: expected at most 10000 pixels"),
    ):
        assert answer.status_code in (413, 422)
        assert answer.json()["error"].startswith(line)


def test_the_page_runs_its_own_script_alone(serve: Serve, predictor: Predictor) -> None:
    client = serve({"queries": predictor}, token="secret-token")
    answer = client.get("/")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert not re.findall(r'(?:src|href)="', answer.text)  # nothing is loaded from anywhere
    assert not re.findall(r' (?:style|on\w+)="', answer.text)  # which the policy would not let run
