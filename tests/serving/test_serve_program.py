"""The whole program, started as people start it: asked by huggingface_hub, stopped by SIGTERM."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest

from conftest import photo, png_of, tiny

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # a busy machine takes minutes to import torch
SECONDS = 240
"""After which a server that does not start, or a wait, fails the test."""


class Running(NamedTuple):
    address: str
    process: subprocess.Popen[str]

    def stop(self) -> tuple[int, str]:
        """(exit code, what it printed after its address); killed where it does not end by itself."""
        self.process.send_signal(signal.SIGTERM)
        try:
            told = self.process.communicate(timeout=SECONDS)[0]
        finally:
            self.process.kill()
        return self.process.returncode, told


def started(folder: Path, *flags: str) -> Running:
    command = [sys.executable, "-m", "pansight.apps.cli", "serve", f"shapes={folder}", "--port", "0", *flags]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    with ThreadPoolExecutor(1) as pool:
        try:
            line = pool.submit(process.stdout.readline).result(SECONDS)
        except TimeoutError:
            process.kill()
            raise
    if " at http" not in line:
        process.kill()
    assert line.startswith("serving    shapes at http://127.0.0.1:"), line
    return Running(line.split(" at ")[1].strip(), process)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "centres"
    tiny("panoptic_deeplab").save(folder)
    return folder


@pytest.fixture(scope="module")
def server(saved: Path) -> Iterator[Running]:
    running = started(saved, "--upload", "4", "--pixels", "2")
    yield running
    if running.process.poll() is None:
        running.stop()


def test_hugging_face_hub_calls_it(server: Running) -> None:
    from huggingface_hub import InferenceClient
    from huggingface_hub.errors import HfHubHTTPError

    expected = tiny("panoptic_deeplab").predict(photo()).to_pipeline()
    assert expected
    for address in (server.address, f"{server.address}/models/shapes"):
        found = InferenceClient(base_url=address, timeout=SECONDS).image_segmentation(png_of(photo()))
        assert [(each.label, each.mask.size) for each in found] == [(each["label"], (64, 48)) for each in expected]
        for each, truth in zip(found, expected, strict=True):
            assert (np.asarray(each.mask) == np.asarray(truth["mask"])).all()
    client = InferenceClient(base_url=server.address, timeout=SECONDS)
    assert client.image_segmentation(png_of(photo()), subtask="instance", threshold=0.0) is not None
    with pytest.raises(HfHubHTTPError, match="mask_threshold: expected a model with the option"):
        client.image_segmentation(png_of(photo()), mask_threshold=0.5)


def test_what_was_taken_is_answered_when_it_stops(saved: Path) -> None:
    """SIGTERM comes while eight requests are at work; all are answered, and the exit is an ordinary one."""
    running = started(saved, "--batch", "1")
    large = png_of(np.random.default_rng(0).integers(0, 256, (700, 900, 3), np.uint8))

    def ask(_: int) -> Any:
        return httpx.post(f"{running.address}/v1/panoptic", files={"image": large}, timeout=SECONDS)

    with ThreadPoolExecutor(8) as pool, httpx.Client(base_url=running.address, timeout=SECONDS) as client:
        answers = [pool.submit(ask, n) for n in range(8)]
        deadline = time.monotonic() + SECONDS
        while "pansight_requests_busy 8.0" not in client.get("/metrics").text:
            assert time.monotonic() < deadline
            assert not all(answer.done() for answer in answers), "too quick to be caught at work"
        client.close()
        code, told = running.stop()
        assert [answer.result(SECONDS).status_code for answer in answers] == [200] * 8
    assert (code, told) == (0, "stopped    every request that was taken is answered\n")
