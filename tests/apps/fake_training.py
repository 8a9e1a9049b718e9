"""Stands in for ``pansight train`` in tests of sweeps: a process of milliseconds that needs nothing but Python.

FAKE_RUN, in the environment: a run folder that a training "ends" with a copy of. A learning rate of 13 fails with a
line on stderr; one of 17 leaves out a part of the data; one of 99 waits for SIGTERM and then saves, as a training does.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path


def main(words: list[str]) -> int:
    out = Path(words[words.index("--out") + 1])
    rate = next((float(word.partition("=")[2]) for word in words if word.startswith("--train.lr=")), 0.0)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "words.txt").open("a") as file:
        file.write(json.dumps(words) + "\n")
    if "--resume" in words:
        shutil.rmtree(out / "checkpoints")
    elif rate == 13:
        print("step 1\npansight: the rate is unlucky", file=sys.stderr)
        return 2
    elif rate == 99:
        return wait(out)
    shutil.copytree(os.environ["FAKE_RUN"], out, dirs_exist_ok=True)
    if os.environ.get("FAKE_FIGURE"):
        (out / "evaluation.json").write_text(json.dumps({"All": {"pq": 1 - abs(rate - 0.3)}}))
    return 1 if rate == 17 else 0


def wait(out: Path) -> int:
    heard: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    (out / "ready").touch()
    while not heard:
        time.sleep(0.01)
    time.sleep(0.3)  # long enough for a second signal to come, if one did
    last = out / "checkpoints" / "last"
    last.mkdir(parents=True)
    (last / "training.pt").touch()
    (out / "heard").write_text(str(len(heard)))
    return 143


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
