"""Who may ask, how much, how many at once: refused in one line, and what was let in is answered."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from conftest import Serve, photo, png_of, tiny
from pansight.apps.serving.running import listening, named
from pansight.apps.serving.running import serve as run
from pansight.apps.serving.settings import ServeSettings, read_token
from pansight.apps.serving.work.measures import Measures
from pansight.apps.serving.work.worker import Worker
from pansight.engine.predict import Look, Predictor, Prepared
from pansight.errors import PansightError

SECONDS = 20
"""After which a wait fails."""


class Gate:
    """A predictor whose network waits to be let go on. seen: the photos of each batch; entered: it is at work."""

    def __init__(self, predictor: Predictor):
        self._inner = predictor
        self.entered, self.open = threading.Event(), threading.Event()
        self.seen: list[int] = []
        self.fails_on = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def look_at(self, photos: list[Prepared]) -> Look:
        self.seen.append(len(photos))
        self.entered.set()
        assert self.open.wait(SECONDS)
        if len(photos) == self.fails_on:
            raise RuntimeError("out of memory")
        return self._inner.look_at(photos)


@pytest.fixture(scope="module")
def small() -> Predictor:
    return tiny("unet")


@pytest.fixture
def gate(small: Predictor) -> Iterator[Gate]:
    found = Gate(small)
    yield found
    found.open.set()


def test_photos_of_equal_size_are_seen_together(gate: Gate, small: Predictor) -> None:
    """The first is at work while four others come, of which three are of one size; all are answered as alone."""
    worker = Worker("unet", gate, batch=8, wait=0, measures=Measures())  # type: ignore[arg-type]
    photos = [photo(0), photo(1), photo(2), photo(3, 32, 32), photo(4)]
    try:
        futures = [worker.predict(small.prepared(photos[0]), {})]
        assert gate.entered.wait(SECONDS)
        futures += [worker.predict(small.prepared(each), {}) for each in photos[1:]]
        gate.open.set()
        found = [future.result(SECONDS).semantic for future in futures]
    finally:
        gate.open.set()
        worker.close(SECONDS)
    assert gate.seen == [1, 3, 1]
    for each, semantic in zip(photos, found, strict=True):
        assert semantic is not None
        assert semantic.equal(small.predict(each).semantic)


def test_a_batch_that_fails_is_seen_photo_by_photo(gate: Gate, small: Predictor) -> None:
    worker = Worker("unet", gate, batch=8, wait=0, measures=Measures())  # type: ignore[arg-type]
    gate.fails_on = 2
    try:
        first = worker.predict(small.prepared(photo()), {})
        assert gate.entered.wait(SECONDS)
        futures = [worker.predict(small.prepared(photo(n)), {}) for n in (1, 2)]
        gate.open.set()
        assert all(future.result(SECONDS) for future in (first, *futures))
        assert gate.seen == [1, 2, 1, 1]
        gate.fails_on = 1
        with pytest.raises(RuntimeError, match="out of memory"):
            worker.predict(small.prepared(photo()), {}).result(SECONDS)
    finally:
        gate.open.set()
        worker.close(SECONDS)


def test_what_is_cancelled_before_its_turn_is_never_seen_and_closing_answers_the_rest(gate: Gate, small: Predictor):
    worker = Worker("unet", gate, batch=1, wait=0, measures=Measures())  # type: ignore[arg-type]
    first, second, third = (worker.predict(small.prepared(photo(n)), {}) for n in range(3))
    assert gate.entered.wait(SECONDS)
    assert second.cancel()
    gate.open.set()
    worker.close(SECONDS)
    assert first.result(0).semantic is not None
    assert third.result(0).semantic is not None
    assert gate.seen == [1, 1]
    with pytest.raises(RuntimeError, match="stops"):
        worker.predict(small.prepared(photo()), {}).result(0)


def post(client: TestClient, data: bytes | None = None, **headers: str) -> Any:
    return client.post("/v1/panoptic", files={"image": png_of(photo()) if data is None else data}, headers=headers)


def test_a_full_queue_sends_away_and_answers_what_it_took(serve: Serve, gate: Gate) -> None:
    client = serve({"unet": gate}, queue=1)  # type: ignore[dict-item]
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(post, client)
        try:
            assert gate.entered.wait(SECONDS)
            second = post(client)
            assert client.get("/healthz").status_code == 200  # which is asked while all are at work
        finally:
            gate.open.set()
        assert first.result(SECONDS).status_code == 200
    assert (second.status_code, second.headers["retry-after"]) == (503, "1")
    assert second.json()["error"] == "queue: expected fewer than 1 requests, found 1 at work"
    assert post(client).status_code == 200


def test_a_request_has_an_end(serve: Serve, gate: Gate) -> None:
    client = serve({"unet": gate}, timeout=0.3)  # type: ignore[dict-item]
    late = post(client)
    assert late.status_code == 504
    assert late.json()["error"] == "request: expected an end within 0.3 s, found none"


@pytest.fixture(scope="module")
def narrow(serve: Serve, small: Predictor, tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    folder = tmp_path_factory.mktemp("photos")
    (folder / "images" / "sub").mkdir(parents=True)
    (folder / "secret.png").write_bytes(png_of(photo(7)))
    (folder / "images" / "sub" / "a.png").write_bytes(png_of(photo(5)))
    (folder / "images" / "link.png").symlink_to(folder / "secret.png")
    return serve({"unet": small}, upload=0.1, pixels=0.01, images=folder / "images")


def test_large_bodies_and_photos_are_refused_before_they_are_read(narrow: TestClient) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (90, 100, 3), np.uint8)
    assert post(narrow, png_of(noise)).status_code == 200
    stated = narrow.post("/v1/panoptic", content=b"x", headers={"content-length": "200000"})
    streamed = narrow.post("/", content=(bytes(1000) for _ in range(200)), headers={"content-type": "image/png"})
    for refused in (stated, streamed):
        assert (refused.status_code, refused.json()["error"]) == (
            413,
            "body: expected at most 104858 bytes, found more",
        )
    large = post(narrow, png_of(np.zeros((101, 100, 3), np.uint8)))
    assert (large.status_code, large.json()["error"]) == (413, "image: expected at most 10000 pixels, found 101×100")


@pytest.mark.parametrize(
    ("request_", "status", "line"),
    [
        ({"files": {"image": b""}}, 422, "image: expected an image, found nothing"),
        ({"files": {"image": b"hello"}}, 422, "image: expected an image, found 5 bytes of another kind"),
        (
            {"files": {"image": png_of(photo())[:60]}},
            422,
            "image: expected a whole PNG, found no end chunk (truncated)",
        ),
        (
            {"data": {"image": "text"}, "files": {"x": b""}},
            422,
            "x: expected one of image, model, options, score, found",
        ),
        ({"files": {"image": png_of(photo())}, "data": {"options": "{"}}, 422, "options: expected JSON, found: EOF"),
        (
            {"files": {"image": png_of(photo())}, "data": {"options": '{"a": 1}'}},
            422,
            "unknown decode option of unet 'a'",
        ),
        ({"files": {"image": png_of(photo())}, "data": {"score": "2"}}, 422, "score: expected less than or equal to 1"),
        ({"json": {"image": "%"}}, 422, "image: expected base64, found"),
        ({"json": {}}, 422, "image: expected a value, found none"),
        ({"json": {"image": "", "no": 1}}, 422, "no: expected a field that is known, found another one"),
        ({"content": b"[" * 90_000}, 422, "body: expected JSON, found: recursion limit exceeded"),
        (
            {"content": b"", "headers": {"content-type": "video/mp4"}},
            415,
            "Content-Type: expected application/json, found",
        ),
        (
            {"content": b"--x\r\n", "headers": {"content-type": "multipart/form-data; boundary=y"}},
            422,
            "body: expected a whole form",
        ),
        ({"content": b"", "headers": {"content-type": "multipart/form-data"}}, 422, "body: expected a whole form"),
    ],
)
def test_bad_requests_are_answered_in_one_line(narrow: TestClient, request_: dict, status: int, line: str) -> None:
    answer = narrow.post("/v1/panoptic", **request_)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"].startswith(line)
    assert set(answer.json()) == {"error", "code", "where", "expected", "found", "hint"}


def test_paths_and_addresses_of_tasks_reach_no_file_but_those_of_the_folder(
    narrow: TestClient, small: Predictor
) -> None:
    def ask(name: object, key: str = "image") -> Any:
        config = '<View><Image name="image" value="$image"/><PolygonLabels name="t" toName="image"/></View>'
        return narrow.post("/predict", json={"tasks": [{"id": 1, "data": {key: name}}], "label_config": config})

    expected = small.predict(photo(5)).to_label_studio("t", "image", as_polygons=True)
    for name in ("sub/a.png", "/data/local-files/?d=sub/a.png", "http://studio/data/upload/3/0a1b2c3d-a.png", "a.png"):
        found = ask(name)
        if name == "a.png" or "upload" in name:  # not below the folder by that path
            assert found.status_code == 422, name
        else:
            assert found.json()["results"][0]["result"] == expected, name
    secret = (
        "../secret.png",
        "/etc/passwd",
        "link.png",
        "file:///etc/hostname",
        "http://127.0.0.1:1/a",
        "sub",
        "",
        "x" * 9999,
    )
    for name in (*secret, 7, None, ["a"]):
        answer = ask(name)
        assert answer.status_code == 422, name
        assert answer.json()["where"] == "tasks.0.data.image"
    assert ask("a.png", "other").status_code == 422


@pytest.mark.parametrize("bad", ["<View", "<View/>", '<!DOCTYPE a [<!ENTITY b "c">]><View>&b;</View>', "\0"])
def test_labelling_configurations_that_cannot_be_used(narrow: TestClient, bad: str) -> None:
    answer = narrow.post("/setup", json={"schema": bad})
    assert answer.status_code == 422
    assert answer.json()["error"].startswith("label_config: expected ")


def test_a_token_is_asked_for_everywhere_but_for_the_signs_of_life(serve: Serve, small: Predictor) -> None:
    client = serve({"unet": small}, token="secret-token")
    basic = "Basic " + base64.b64encode(b"anyone:secret-token").decode()
    for given in (
        "",
        "Bearer other",
        "Bearer ",
        "secret-token",
        "Basic !!",
        "Basic " + base64.b64encode(b"x").decode(),
    ):
        refused = post(client, authorization=given)
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer"), given
    for given in ("Bearer secret-token", "bearer secret-token", basic):
        assert post(client, authorization=given).status_code == 200
    statuses = {path: client.get(path).status_code for path in ("/healthz", "/health", "/metrics", "/v1/models")}
    assert statuses == {"/healthz": 200, "/health": 200, "/metrics": 401, "/v1/models": 401}
    assert client.post("/", content=png_of(photo())).status_code == 401


def test_pages_of_other_sites_are_kept_out(serve: Serve, small: Predictor) -> None:
    client = serve({"unet": small})
    assert post(client, origin="http://127.0.0.1:8000").status_code == 200
    assert post(client, origin="http://evil.example").status_code == 403
    assert client.get("/healthz", headers={"host": "evil.example"}).status_code == 403
    assert client.get("/healthz", headers={"host": "localhost:8000"}).status_code == 200
    public = serve({"unet": small}, host="0.0.0.0")
    assert public.get("/healthz", headers={"host": "segment.example"}).status_code == 200


def test_names_of_models() -> None:
    assert named(["runs/demo", "b=runs/x=1", "runs/a=b"]) == {"demo": "runs/demo", "b": "runs/x=1", "a-b": "runs/a=b"}
    for models, line in (
        ([], "serve: expected weights"),
        (["a/x", "b/x"], "b/x: expected each name once, found x twice; give one of them another: other=b/x"),
        (["a b=c"], "a b=c: expected NAME=WEIGHTS"),
    ):
        with pytest.raises(PansightError) as error:
            named(models)
        assert f"{error.value}".startswith(line)


def test_settings_that_cannot_be(tmp_path: Path) -> None:
    for given in ({"port": 70000}, {"batch": 0}, {"queue": 0}, {"timeout": 0}, {"images": tmp_path / "none"}):
        with pytest.raises(PansightError, match=f"^--{next(iter(given))}: expected"):
            ServeSettings(**given).checked()
    with listening(ServeSettings(port=0)) as taken, pytest.raises(PansightError, match="expected a free address"):
        run(["weights"], ServeSettings(port=taken.getsockname()[1]))


def test_tokens(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("abcdefgh\n")
    assert read_token(None, None) == ""
    assert read_token(None, "12345678") == "12345678"
    assert read_token(file, "12345678") == "abcdefgh"
    for text in ("", "short", "two words", "ünlesbar"):
        with pytest.raises(PansightError, match="PANSIGHT_TOKEN: expected a token"):
            read_token(None, text)
    with pytest.raises(PansightError, match="none: expected a file with a token"):
        read_token(tmp_path / "none", None)
