"""Decompression bombs and the like are refused in one line, in seconds, before memory grows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import bombs
import pytest
from bombs import BOMBS

pytestmark = pytest.mark.slow

LIMIT, SECONDS = 200 * 2**20, 10.0
"""Bytes that the peak of the process may lie above what it was, and what a command may take."""


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> dict[str, dict[str, Any]]:
    """Name → code, line, seconds, growth of the peak in bytes. One process for all; each after a sound run."""
    place = tmp_path_factory.mktemp("bombs")
    process = subprocess.run(
        [sys.executable, bombs.__file__, str(place)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return {row["name"]: row for row in map(json.loads, process.stdout.splitlines())}


@pytest.mark.parametrize("name", BOMBS)
def test_refused_before_memory_grows(name, measured):
    row = measured[name]
    assert row["growth"] < LIMIT, row
    assert row["seconds"] < SECONDS, row
    assert "Traceback" not in row["line"]
    if BOMBS[name].said:
        assert row["code"] == 2, row
        assert BOMBS[name].said in row["line"]
    else:
        assert row["code"] in (0, 1, 2), row
