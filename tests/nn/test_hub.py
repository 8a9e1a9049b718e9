"""Without a network the hub is given up in bounded time, whatever the network does with what is sent."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
from huggingface_hub import constants

from pansight.errors import PansightError
from pansight.nn.backbones import hub
from pansight.nn.backbones.pyramid import timm_backbone
from pansight.nn.backbones.vit import vit_backbone
from pansight.weights import load_model

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
SHORT = 0.3


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.fixture
def silent() -> Iterator[int]:
    """A port that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def answering() -> Iterator[http.server.ThreadingHTTPServer]:
    """A server that answers with the status that its path names."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(int(self.path.strip("/")))
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("status", "answers"), [(200, True), (404, True), (403, True), (502, False), (503, False)])
def test_an_answer(
    status: int, answers: bool, answering: http.server.ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{answering.server_port}/{status}")
    assert hub.hub_answers() is answers


def test_a_host_that_is_silent(silent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent}")
    assert not hub.hub_answers(SHORT)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_is_silent(scheme: str, silent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{scheme}_proxy", f"http://127.0.0.1:{silent}")
    monkeypatch.setattr(constants, "ENDPOINT", f"{scheme}://hub.invalid")
    assert not hub.hub_answers(SHORT)


def test_a_port_that_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    assert not hub.hub_answers()


def test_names_that_are_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert not hub.hub_answers()


def test_names_that_are_looked_up_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    found = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found.wait(20) and [])
    assert not hub.hub_answers(SHORT)
    found.set()


@pytest.mark.parametrize("endpoint", ["nonsense", "http://", "http://[::", "file:///etc/hostname"])
def test_an_endpoint_that_is_none(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    assert not hub.hub_answers()


def test_offline_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "_asked", lambda seconds: pytest.fail("asked"))
    assert not hub.hub_answers()


def test_settings_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "hub_answers", lambda: False)
    with hub.bounded_downloads():
        assert constants.HF_HUB_OFFLINE
        assert socket.getdefaulttimeout() == hub.SECONDS
    assert not constants.HF_HUB_OFFLINE
    assert socket.getdefaulttimeout() is None
    monkeypatch.setattr(hub, "hub_answers", lambda: True)
    with hub.bounded_downloads():
        assert not constants.HF_HUB_OFFLINE


# --- who asks the hub ------------------------------------------------------------------------------------------------


@pytest.fixture
def black_hole(silent: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that swallows everything, and empty caches."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(hub, "SECONDS", SHORT)


patient = pytest.mark.timeout(30)
"""The client of the hub alone would ask again for minutes."""


@patient
@pytest.mark.parametrize("name", ["someone/some-model", "hf:someone/some-model", "hf://someone/some-model"])
def test_a_hub_id(name: str, black_hole: None) -> None:
    with pytest.raises(PansightError, match="someone/some-model: no such file or folder here, and the hub") as error:
        load_model(name)
    assert error.value.code == "missing_file"
    assert "hf download someone/some-model" in error.value.hint
    assert "\n" not in str(error.value)


@patient
@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224", "vit_tiny_patch16_224"])
def test_a_backbone_of_timm(name: str, black_hole: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert timm.is_model(name)
    with pytest.raises(PansightError, match=f"backbone {name}: timm's weights cannot be") as error:
        vit_backbone(name, "timm", 32) if name.startswith("vit") else timm_backbone(name, "timm")
    assert error.value.code == "offline_weights"
    assert "pretrained='none'" in str(error.value)
