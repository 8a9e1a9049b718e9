"""`pansight serve` under load: 2,000 requests of 32 clients, 1 in 20 of them bad, with a restart halfway.

Every answer is compared with the prediction of the predictor itself. A client whose connection is refused or cut off,
or who is told to come again, asks again; what was taken must be answered, so that a cut off answer counts as lost.
"""

from __future__ import annotations

import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import imagecodecs
import numpy as np
import torch

from common import save
from pansight.data.images import decode_image
from pansight.engine.predict import Predictor
from pansight.models import MODELS, build
from pansight.ops.idmap import ids_to_rgb
from pansight.types import LabelSpace

REQUESTS, CLIENTS, BAD, PHOTOS = 2000, 32, 20, 40
SIZE = (96, 128)
MODEL = "panoptic_deeplab"
SAME = 0.999
"""Share of pixels that must be as the predictor has them; batches differ from single photos by rounding."""


def small_predictor() -> Predictor:
    torch.manual_seed(0)
    labels = LabelSpace.from_names(["cat", "dog"], ["sky", "grass"])
    options = dict(MODELS[MODEL].tiny)
    return Predictor(build(MODEL, labels, **options), MODEL, options, "cpu")


def photos() -> list[np.ndarray]:
    draw = np.random.default_rng(0)
    coarse = draw.integers(0, 256, (PHOTOS, SIZE[0] // 8, SIZE[1] // 8, 3), np.uint8)
    return [np.ascontiguousarray(each.repeat(8, 0).repeat(8, 1)) for each in coarse]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(folder: Path, port: int) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "pansight.apps.cli",
        "serve",
        f"small={folder}",
        "--port",
        str(port),
        "--batch",
        "8",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("serving"), "the server did not start"
    return process


def resident(process: subprocess.Popen[str]) -> float:
    """MiB of the server now."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


class Load:
    """The clients. counts: what became of the requests; seconds: of each good one, from its last try on."""

    def __init__(self, address: str, files: list[bytes], expected: list[np.ndarray]):
        self.address, self.files, self.expected = address, files, expected
        self.counts: dict[str, int] = dict.fromkeys(("right", "wrong", "refused", "retried", "lost"), 0)
        self.seconds: list[float] = []
        self.lock = threading.Lock()

    def count(self, what: str) -> None:
        with self.lock:
            self.counts[what] += 1

    def ask(self, number: int) -> None:
        index = number % len(self.files)
        bad = number % BAD == 0
        data = self.files[index][: len(self.files[index]) // 2] if bad else self.files[index]
        while True:
            began = time.perf_counter()
            try:
                answer = httpx.post(f"{self.address}/v1/panoptic?as=png", files={"image": data}, timeout=120)
            except httpx.ConnectError:  # nobody listens: it was not taken
                self.count("retried")
                time.sleep(0.2)
                continue
            except httpx.TransportError:  # cut off after it was sent
                self.count("lost")
                continue
            if answer.status_code != 503:
                break
            self.count("retried")
            time.sleep(0.2)
        if bad:
            self.count("refused" if answer.status_code == 422 else "wrong")
            return
        found = decode_image(answer.content, "answer") if answer.status_code == 200 else None
        right = found is not None and (found == self.expected[index]).all(-1).mean() >= SAME
        self.count("right" if right else "wrong")
        with self.lock:
            self.seconds.append(time.perf_counter() - began)


def own_rate(predictor: Predictor, files: list[bytes]) -> float:
    """Photos a second of the predictor alone, from the same files to the same PNGs."""
    began = time.perf_counter()
    for found in predictor.predict_many((decode_image(data, "photo") for data in files), batch_size=8):
        assert found.panoptic is not None
        imagecodecs.png_encode(ids_to_rgb(found.panoptic.ids.numpy()), level=1)
    return len(files) / (time.perf_counter() - began)


def main() -> None:
    predictor, pictures = small_predictor(), photos()
    files = [bytes(imagecodecs.png_encode(picture)) for picture in pictures]
    found = [predictor.predict(picture).panoptic for picture in pictures]
    expected = [ids_to_rgb(each.ids.numpy()) for each in found if each is not None]
    own = statistics.median(own_rate(predictor, files * 5) for _ in range(3))
    with tempfile.TemporaryDirectory() as place:
        predictor.save(Path(place) / "model")
        record = measured(Path(place) / "model", files, expected)
    record |= {"own_per_second": own, "ratio": record["per_second"] / own}
    save("serve_load", {"model": MODEL, "size": SIZE, "clients": CLIENTS, **record})


def measured(folder: Path, files: list[bytes], expected: list[np.ndarray]) -> dict[str, Any]:
    port = free_port()
    server = start(folder, port)
    load, memory, codes = Load(f"http://127.0.0.1:{port}", files, expected), [], []
    try:
        with ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(load.ask, range(CLIENTS * 8)))  # every thread has met the server
            load.counts, load.seconds = dict.fromkeys(load.counts, 0), []
            began = time.perf_counter()
            for quarter in range(2):
                list(pool.map(load.ask, range(quarter * REQUESTS // 4, (quarter + 1) * REQUESTS // 4)))
                memory.append(resident(server))
            seconds = time.perf_counter() - began
            rest = [pool.submit(load.ask, number) for number in range(REQUESTS // 2, REQUESTS)]
            while sum(each.done() for each in rest) < len(rest) // 4:
                time.sleep(0.05)
            server.send_signal(signal.SIGTERM)
            codes.append(server.wait(180))
            server = start(folder, port)
            for each in rest:
                each.result(300)
            memory.append(resident(server))
    finally:
        server.kill()
    milliseconds = sorted(1000 * each for each in load.seconds)
    return {
        **load.counts,
        "requests": REQUESTS,
        "exit_codes": codes,
        "per_second": REQUESTS / 2 / seconds,
        "p50_ms": milliseconds[len(milliseconds) // 2],
        "p99_ms": milliseconds[int(0.99 * len(milliseconds))],
        "memory_mib": memory,
        "load_before": os.getloadavg()[0],
    }


if __name__ == "__main__":
    main()
