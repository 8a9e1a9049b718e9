"""Servers of tiny models, each closed at the end of its module."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import imagecodecs
import numpy as np
import pytest
import torch
import uvicorn
from fastapi.testclient import TestClient

from pansight.apps.serving.application import create_app
from pansight.apps.serving.running import listening
from pansight.apps.serving.settings import ServeSettings
from pansight.engine.predict import Predictor
from pansight.models import MODELS, build
from pansight.types import LabelSpace

LABELS = LabelSpace.from_names(["cat", "dog"], ["sky", "grass"])


def tiny(name: str, seed: int = 0, **options: Any) -> Predictor:
    """An untrained model of a moment."""
    torch.manual_seed(seed)
    given = {**MODELS[name].tiny, **options}
    return Predictor(build(name, LABELS, **given), name, given, "cpu")


def photo(seed: int = 0, height: int = 48, width: int = 64) -> np.ndarray:
    """uint8 (H, W, 3): a coarse pattern, so that segments are larger than a pixel."""
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return np.ascontiguousarray(coarse.repeat(8, 0).repeat(8, 1))


def png_of(pixels: np.ndarray) -> bytes:
    return bytes(imagecodecs.png_encode(pixels))


@contextmanager
def listened(predictors: dict[str, Predictor], **given: Any) -> Generator[str]:
    """The address of a server in a thread of this process, which ends within a bounded time."""
    settings = ServeSettings(port=0, **given)
    with listening(settings) as opened:
        app = create_app(predictors, settings)
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=3))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{opened.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


Serve = Callable[..., TestClient]


@pytest.fixture(scope="module")
def serve() -> Iterator[Serve]:
    """serve({name: predictor}, token="", **settings) → a client of its application."""
    with ExitStack() as stack:

        def start(predictors: dict[str, Predictor], token: str = "", **settings: Any) -> TestClient:
            app = create_app(predictors, ServeSettings(**settings), token)
            client = TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)
            return stack.enter_context(client)

        yield start


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return tiny("mask2former")
