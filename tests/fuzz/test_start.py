"""What reads and writes annotations starts without torch: every format that is read, and every one that is written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from seeds import Seed, all_seeds, readers_of

from pansight.data.convert import READERS

HEAVY = ["torch", "torchvision", "timm", "accelerate", "transformers", "gradio", "onnxruntime"]
RUN_ALL = f"""
import contextlib, io, json, os, shutil, sys
from pansight.apps.cli import main
ended = {{}}
for name, place, commands in json.load(open("seeds.json")):
    os.chdir(place)
    for command in commands:
        shutil.rmtree("out" if command[0] != "split" else "parts", ignore_errors=True)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as told:
            code = main(command)
        found = [m for m in {HEAVY!r} if m in sys.modules]
        if found or (code and command[0] != "split"):
            sys.exit(f"{{name}}: {{' '.join(command)}} ended with {{code}} and loaded {{found}}: {{told.getvalue()}}")
        ended.setdefault(command[0], []).append(code)
print(json.dumps(ended))
"""


def written(seeds: list[Seed], root: Path) -> list[tuple[str, str, list[list[str]]]]:
    """(name, folder, commands) of each, its files in place."""
    rows = []
    for number, seed in enumerate(seeds):
        place = root / str(number)
        for name, content in seed.files.items():
            (place / "in" / name).parent.mkdir(parents=True, exist_ok=True)
            (place / "in" / name).write_bytes(content)
        commands = [list(command) for command in seed.commands if "--report" not in command]  # a page draws photos
        rows.append((seed.name, str(place), commands))
        if seed.name.startswith("convert"):  # some have a single image, or parts already, and are refused
            rows.append((f"split of {seed.name}", str(place), [["split", "out", "--val", "0.5", "--out", "parts"]]))
    return rows


@pytest.mark.slow
def test_annotations_are_read_without_torch(tmp_path: Path) -> None:
    seeds = all_seeds()
    assert readers_of(seeds) == set(READERS)
    (tmp_path / "seeds.json").write_text(json.dumps(written(seeds, tmp_path)))
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    ended = json.loads(done.stdout)
    assert set(ended) == {"evaluate", "check", "convert", "split"}
    assert 0 in ended["split"]
