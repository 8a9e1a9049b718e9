"""Every route of the server, called by a program: the answers are those of the predictor itself."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest
from fastapi.testclient import TestClient

from conftest import LABELS, Serve, photo, png_of, tiny
from pansight.apps.serving.answers import regions_of
from pansight.data.images import decode_image
from pansight.engine.predict import Predictor
from pansight.models import MODELS
from pansight.ops.idmap import rgb_to_ids

OPTIONS = {"score_threshold": 0.1, "overlap": 0.1}


@pytest.fixture(scope="module")
def client(serve: Serve, predictor: Predictor) -> TestClient:
    return serve({"queries": predictor, "merge": tiny("panoptic_fpn")})


def ids_of(data: bytes) -> np.ndarray:
    return rgb_to_ids(decode_image(data, "answer"))


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def check_coco(answer: dict, expected: np.ndarray) -> None:
    """The answer is COCO panoptic of the id map `expected`: table and PNG agree, pixel by pixel."""
    ids = ids_of(base64.b64decode(answer["png"]))
    assert (ids == expected).all()
    assert answer["images"] == [{"id": 1, "file_name": "image.png", "width": ids.shape[1], "height": ids.shape[0]}]
    assert answer["categories"] == LABELS.to_json()
    (annotation,) = answer["annotations"]
    rows = annotation["segments_info"]
    assert {row["id"] for row in rows} == set(np.unique(ids).tolist()) - {0}
    for row in rows:
        ys, xs = np.nonzero(ids == row["id"])
        x, y = int(xs.min()), int(ys.min())
        assert row["bbox"] == [x, y, int(xs.max()) + 1 - x, int(ys.max()) + 1 - y]
        assert row["area"] == len(xs)
        assert row["category_id"] in {category.source_id for category in LABELS}


def test_panoptic_as_form_and_as_base64(client: TestClient, predictor: Predictor) -> None:
    pixels = photo()
    truth = predictor.predict(pixels, **OPTIONS).panoptic
    assert truth is not None
    assert truth.segments  # else nothing is tested
    form = client.post(
        "/v1/panoptic", files={"image": ("a.png", png_of(pixels))}, data={"options": json.dumps(OPTIONS)}
    )
    text = client.post("/v1/panoptic", json={"image": b64(png_of(pixels)), "options": OPTIONS})
    address = client.post(
        "/v1/panoptic", json={"image": "data:image/png;base64," + b64(png_of(pixels)), "options": OPTIONS}
    )
    for response in (form, text, address):
        assert response.status_code == 200, response.text
        check_coco(response.json(), truth.ids.numpy())
        assert response.json() == form.json()
    scores = [row["score"] for row in form.json()["annotations"][0]["segments_info"]]
    assert scores == pytest.approx([segment.score for segment in truth.segments])


def test_panoptic_as_png_and_geojson(client: TestClient, predictor: Predictor) -> None:
    truth = predictor.predict(photo(), **OPTIONS)
    fields = {"files": {"image": png_of(photo())}, "data": {"options": json.dumps(OPTIONS)}}
    png, shapes = (client.post(f"/v1/panoptic?as={kind}", **fields) for kind in ("png", "geojson"))
    assert (png.headers["content-type"], shapes.headers["content-type"]) == ("image/png", "application/geo+json")
    assert truth.panoptic is not None
    assert (ids_of(png.content) == truth.panoptic.ids.numpy()).all()
    assert shapes.json() == json.loads(json.dumps(truth.to_geojson()))


def test_a_model_is_chosen_by_its_name(client: TestClient) -> None:
    answers = [
        client.post("/v1/panoptic", files={"image": png_of(photo())}, data=data) for data in ({}, {"model": "merge"})
    ]
    assert [answer.json()["model"] for answer in answers] == ["queries", "merge"]
    missing = client.post("/v1/panoptic", files={"image": png_of(photo())}, data={"model": "x"})
    assert missing.status_code == 404
    assert missing.json()["error"] == "model: expected one of queries, merge, found x"


@pytest.mark.slow
def test_every_system_is_answered_as_its_predictor_does(serve: Serve) -> None:
    """Those of objects or of classes alone, too: as regions of one map."""
    names = [name for name, entry in MODELS.items() if not entry.variant_of]
    predictors = {name: tiny(name) for name in names}
    client = serve(predictors)
    for name, predictor in predictors.items():
        response = client.post("/v1/panoptic", files={"image": png_of(photo(3))}, data={"model": name, "score": "0.1"})
        assert response.status_code == 200, (name, response.text)
        truth = regions_of(predictor.predict(photo(3)), (48, 64), 0.1)
        check_coco(response.json(), truth.ids.numpy())
        task = client.post(f"/models/{name}", content=png_of(photo(3)), headers={"content-type": "image/png"})
        assert task.status_code in ((200, 422) if name in ("fast_rcnn", "faster_rcnn", "detr") else (200,)), name
    assert len(names) == 24
    listed = client.get("/v1/models").json()["models"]
    assert [(row["name"], row["produces"]) for row in listed] == [(n, list(MODELS[n].produces)) for n in names]


def test_models_are_listed_with_their_options(client: TestClient) -> None:
    rows = client.get("/v1/models").json()["models"]
    assert [row["name"] for row in rows] == ["queries", "merge"]
    assert [option["name"] for option in rows[1]["options"]] == ["score_threshold", "max_overlap", "min_stuff_area"]
    first = rows[0]["options"][0]
    assert (first["name"], first["kind"], first["low"], first["high"]) == ("score_threshold", "number", 0, 1)
    assert rows[0]["classes"] == LABELS.to_json()


def test_hugging_face_by_raw_bytes_and_json(client: TestClient, predictor: Predictor) -> None:
    expected = predictor.predict(photo(), task="instance").to_pipeline(0.01)
    assert expected
    parameters = {"subtask": "instance", "threshold": 0.01}
    body = {"inputs": b64(png_of(photo())), "parameters": parameters}
    rows = client.post("/", json=body).json()
    assert [row["label"] for row in rows] == [piece["label"] for piece in expected]
    assert [row["score"] for row in rows] == pytest.approx([piece["score"] for piece in expected])
    for row, piece in zip(rows, expected, strict=True):
        mask = decode_image(base64.b64decode(row["mask"]), "mask")[..., 0]
        assert (mask == np.asarray(piece["mask"])).all()
    raw = [client.post("/", content=png_of(photo()), headers=kind) for kind in ({"content-type": "image/png"}, {})]
    assert [answer.json() for answer in raw] == [client.post("/", json={"inputs": body["inputs"]}).json()] * 2


def test_hugging_face_parameters_that_a_model_lacks_are_told(client: TestClient) -> None:
    inputs = b64(png_of(photo()))
    for parameters, told in (
        ({"subtask": "semantic"}, "subtask: expected one that this model can do (panoptic, instances), found semantic"),
        ({"mask_threshold": 0.5}, "mask_threshold: expected a model with the option mask_threshold"),
        ({"threshold": 2}, "parameters.threshold: expected less than or equal to 1, found 2"),
    ):
        response = client.post("/models/merge", json={"inputs": inputs, "parameters": parameters})
        assert response.status_code == 422
        assert response.json()["error"].startswith(told)


CONFIG = """
<View><Image name="i" value="$photo"/>
<{0} name="t" toName="i"><Label value="sky"/><Label value="cat"/></{0}></View>
"""


@pytest.mark.parametrize(
    "tag",
    ["PolygonLabels", pytest.param("BrushLabels", marks=pytest.mark.slow)],  # whose package takes its time to load
)
def test_label_studio(serve: Serve, tag: str) -> None:
    predictor = tiny("panoptic_deeplab")  # which finds something at its own thresholds
    client = serve({"centres": predictor})
    photos = [png_of(photo(seed)) for seed in (0, 1)]
    tasks = [{"id": n, "data": {"photo": f"data:image/png;base64,{b64(data)}"}} for n, data in enumerate(photos)]
    answer = client.post("/predict", json={"tasks": tasks, "label_config": CONFIG.format(tag), "project": "1.2"})
    assert answer.status_code == 200, answer.text
    results = answer.json()["results"]
    assert len(results) == 2
    kind = tag.lower()
    for seed, found in enumerate(results):
        truth = predictor.predict(photo(seed)).to_label_studio("t", "i", as_polygons=kind == "polygonlabels")
        known = [region for region in truth if region["value"][kind][0] in ("sky", "cat")]
        assert found["result"] == json.loads(json.dumps(known))
        assert known
        assert found["model_version"] == "centres"


def test_label_studio_around_predictions(client: TestClient) -> None:
    assert client.get("/health").json() == {"status": "UP", "model_class": "mask2former"}
    schema = {"project": "1", "schema": CONFIG.format("BrushLabels"), "extra_params": {}}
    assert client.post("/setup", json=schema).json() == {"model_version": "queries"}
    event = client.post("/webhook", json={"action": "ANNOTATION_CREATED", "project": {"id": 1}})
    assert (event.status_code, event.json()) == (201, {"action": "ANNOTATION_CREATED"})
    assert 'pansight_label_studio_events_total{action="ANNOTATION_CREATED"} 1.0' in client.get("/metrics").text


def test_health_and_figures(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "ok", "models": ["queries", "merge"]}
    client.post("/v1/panoptic", files={"image": png_of(photo())})
    client.get("/no/such/place")
    text = client.get("/metrics").text
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(lines['pansight_requests_total{method="POST",route="/v1/panoptic",status="200"}']) >= 1
    assert float(lines['pansight_batch_photos_count{model="queries"}']) >= 1
    assert "/no/such/place" not in text
    assert lines["pansight_requests_busy"] == "0.0"
