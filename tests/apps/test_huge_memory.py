"""The memory of a prediction in tiles does not depend on the height of the image."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell a process's peak memory")
def test_memory_does_not_grow_with_the_image(tmp_path: Path) -> None:
    """The larger image has 16 million pixels more: 64 MiB of ids, 42 MiB of colours. Allocators keep some for later."""
    script = Path(__file__).parent / "huge_memory.py"
    said = subprocess.run([sys.executable, script, tmp_path], check=True, capture_output=True, text=True).stdout
    low, high = (float(line) for line in said.split())
    assert high - low < 40
