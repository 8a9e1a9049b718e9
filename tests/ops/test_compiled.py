"""Compiled loops where their machine code cannot be stored or read: they compile again and give the same result."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numba.core.caching import FunctionCache

from pansight.ops.fast.kernels.compiled import compiled

FUNCTION = "def total(values):\n    result = 0.0\n    for x in values:\n        result += x\n    return result\n"
PROGRAM = """
import resource, signal, sys
import numpy as np
from pansight.ops.fast.kernels.compiled import compiled
sys.path.insert(0, sys.argv[1])
from loops import total
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
kernel = compiled(total)
print(kernel(np.arange(4.0)), sum(kernel.stats.cache_hits.values()))
"""


@pytest.fixture
def module(tmp_path) -> Path:
    (tmp_path / "loops.py").write_text(FUNCTION)
    return tmp_path


def result(folder: Path, limit: int = 10**9) -> str:
    """The sum and how often stored machine code was found, in a process whose files have at most `limit` bytes."""
    words = [sys.executable, "-B", "-c", PROGRAM, str(folder), str(limit)]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def test_without_a_place_for_machine_code(monkeypatch):
    """As numba says it where neither the package nor the home can be written: compiled anew in each process."""

    def refuse(self, function):
        raise RuntimeError("cannot cache function: no locator available")

    def last(values):
        return values[-1]

    monkeypatch.setattr(FunctionCache, "__init__", refuse)
    assert compiled(last)(np.arange(4)) == 3


@pytest.mark.slow
def test_machine_code_is_stored_and_found(module):
    assert [result(module), result(module)] == ["6.0 0", "6.0 1"]


@pytest.mark.slow
@pytest.mark.parametrize("limit", [0, 1000])
def test_a_full_disk_costs_a_compilation_and_no_more(module, limit):
    assert result(module, limit) == "6.0 0"
    assert not list(module.rglob("*.nbc"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nbi", "nbc"])
@pytest.mark.parametrize("content", [b"", b"no machine code"])
def test_damaged_machine_code_is_compiled_again(module, kind, content):
    result(module)
    for path in module.rglob(f"*.{kind}"):
        path.write_bytes(content)
    assert result(module) == "6.0 0"
