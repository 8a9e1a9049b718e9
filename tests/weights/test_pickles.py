"""Pickles made to hang, to fill the memory or to run something are refused; harmless values are passed over."""

from __future__ import annotations

import argparse
import collections
import datetime
import pathlib
import pickle
import struct
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pansight.errors import PansightError
from pansight.weights import pickles
from pansight.weights.unpickle import read_tensors


def nested(leaf: Any, depth: int = 12) -> Any:
    """Ten times the same branch, again and again: 10 ** depth leaves of a few hundred bytes."""
    for _ in range(depth):
        leaf = [leaf] * 10 if isinstance(leaf, list) else (leaf,) * 10
    return leaf


def pickled(content: Any) -> bytes:
    return pickle.dumps(content, protocol=2)


def key_of_shared_branches() -> bytes:
    """A dict whose key is a tuple of tuples, written by hand: Python itself could not hash it while it is pickled."""
    body = b"\x80\x02}" + b")q\x000" + b"".join(b"(" + b"h\x00" * 10 + b"tq\x000" for _ in range(40))
    return body + b"h\x00Ns."


LIMIT = 20_000
"""Instructions that a pickle may have in this test; the million of real ones would only take longer."""

HOSTILE: dict[str, Callable[[], bytes]] = {
    "lists of shared branches": lambda: pickled({"model": nested([0] * 10)}),
    "weights of shared branches": lambda: pickled(dict.fromkeys(map(str, range(99)), nested([0] * 10))),
    "a key of shared branches": key_of_shared_branches,
    "a place in the memo of 4 GiB": lambda: b"\x80\x04Nr" + struct.pack("<I", 2**28) + b".",
    "a text of 8 EiB": lambda: b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"abc.",
    "bytes of 2 GiB": lambda: b"\x80\x04B" + struct.pack("<I", 2**31 - 1) + b"abc.",
    "a number of 2 GiB": lambda: b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"abc.",
    "a number of 100,000 digits": lambda: b"L" + b"9" * 100_000 + b"L\n.",
    "too many instructions": lambda: b"\x80\x02" + b"N0" * LIMIT + b"N.",
    "lists in each other": lambda: b"\x80\x02" + b"]" * (LIMIT // 3) + b"a" * (LIMIT // 3 - 1) + b".",
    "marks without end": lambda: b"\x80\x02" + b"(" * 1000 + b".",
    "an empty stack": lambda: b"\x80\x02.",
    "an unknown instruction": lambda: b"\x80\x02\xff.",
    "a buffer outside": lambda: b"\x80\x05\x97.",
    "an extension": lambda: b"\x80\x02\x82\x01.",
    "a name of numbers": lambda: b"\x80\x04K\x01K\x02\x93.",
    "a call of a number": lambda: b"\x80\x02K\x01)R.",
    "a list as a class": lambda: b"\x80\x02])\x81.",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_refused_in_one_line_and_in_little_memory(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "MAX_INSTRUCTIONS", LIMIT)
    path = tmp_path / "x.pkl"
    path.write_bytes(HOSTILE[kind]())
    tracemalloc.start()
    try:
        with pytest.raises(PansightError) as error:
            read_tensors(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(str(path))
    assert peak < 200 * 2**20


def test_the_same_dict_a_thousand_times_is_looked_through_once(tmp_path: Path) -> None:
    """Otherwise a file of a megabyte would ask for a hundred billion looks."""
    shared = dict.fromkeys(range(2000))
    path = tmp_path / "x.pkl"
    path.write_bytes(pickled({f"a{i}": shared for i in range(2000)}))
    with pytest.raises(PansightError, match="found no tensor among its keys"):
        read_tensors(path)


@pytest.mark.parametrize("compressed", [False, True])
def test_archives_that_unpack_to_gigabytes(compressed: bool, tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "t.pth")
    bomb = tmp_path / "bomb.pth"
    with zipfile.ZipFile(tmp_path / "t.pth") as old, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            more = bytes(100 << 20) if compressed and entry.filename.endswith("data/0") else b""
            new.writestr(entry.filename, old.read(entry) + more)
    if not compressed:  # someone zipped it again: harmless
        assert torch.equal(read_tensors(bomb)["a"], torch.zeros(2))
        return
    with pytest.raises(PansightError, match=r"expected a torch checkpoint, which is not compressed, found 100 MiB out"):
        read_tensors(bomb)


def expanded(path: Path) -> None:
    """A tensor of a trillion numbers that shares one of them."""
    torch.save({"a": torch.zeros(1).expand(10**12)}, path)


def beyond(path: Path) -> None:
    """A tensor that goes on behind its block."""
    torch.save({"a": torch.zeros(8)}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data[:16] if name.endswith("data/0") else data)


@pytest.mark.parametrize("make", [expanded, beyond])
def test_tensors_larger_than_their_numbers(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "x.pth")
    with pytest.raises(PansightError, match=r"x\.pth: expected a torch checkpoint, found a damaged file"):
        read_tensors(tmp_path / "x.pth")


# --- what is beside the weights --------------------------------------------------------------------------------------


def quantised() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch would rather have another way
        return torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)


BESIDE: dict[str, Any] = {
    "arguments": argparse.Namespace(lr=1e-4, out=pathlib.Path("x")),
    "numpy's scalar": np.float64(0.3),
    "numpy's integer": np.int64(3),
    "an array": np.arange(3),
    "an array of texts": np.array(["a", "b"]),
    "a dtype": np.dtype("f4"),
    "a path": pathlib.Path("x"),
    "a path of Windows": pathlib.PureWindowsPath("x"),
    "a defaultdict": collections.defaultdict(list, {"a": [1]}),
    "an ordered dict": collections.OrderedDict(a=1),
    "a counter": collections.Counter("aab"),
    "a deque": collections.deque([1, 2]),
    "a time": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
    "a length of time": datetime.timedelta(seconds=1),
    "a set": {1, 2},
    "a frozen set": frozenset({1}),
    "a complex number": 1j,
    "a range": range(3),
    "torch's dtype": torch.float16,
    "torch's size": torch.Size([1, 2]),
    "torch's device": torch.device("cpu"),
    "a random state": np.random.RandomState(0).get_state(),
    "tensors": [torch.zeros(2), {"exp_avg": torch.ones(1)}],
    "a quantised tensor": quantised(),
    "a parameter": torch.nn.Parameter(torch.ones(1)),
    "nothing": None,
    "text": "ä",
    "bytes": b"\x00\xff",
    "a large number": 2**70,
}


@pytest.mark.parametrize("archive", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("kind", BESIDE)
def test_harmless_values_are_passed_over(kind: str, archive: bool, tmp_path: Path) -> None:
    state = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2, dtype=torch.float16)}
    content = {"epoch": 3, kind: BESIDE[kind], "model": state}
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=archive)
    loaded = read_tensors(tmp_path / "x.pth")
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_harmless_values_of_every_protocol(protocol: int, tmp_path: Path) -> None:
    values = {key: value for key, value in BESIDE.items() if "tensor" not in key and "torch" not in key}
    values.pop("a parameter")
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps({"model": {"a": np.ones(2)}, **values}, protocol=protocol))
    assert list(read_tensors(path)) == ["a"]


@pytest.mark.parametrize("archive", [True, False], ids=["zip", "legacy"])
def test_every_kind_of_tensor(archive: bool, tmp_path: Path) -> None:
    whole = torch.arange(24.0)
    state = {
        "row": whole[6:12],  # a part of a block, at an offset
        "transposed": whole.view(4, 6).T,
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 4),
        "shared": whole,
        "parameter": torch.nn.Parameter(torch.ones(3)),
        **{f"{dtype}": torch.ones(2, dtype=dtype) for dtype in (torch.float64, torch.float16, torch.bfloat16)},
        **{f"{dtype}": torch.ones(2, dtype=dtype) for dtype in (torch.int64, torch.int32, torch.int16, torch.bool)},
    }
    torch.save(state, tmp_path / "x.pth", _use_new_zipfile_serialization=archive)
    loaded = read_tensors(tmp_path / "x.pth")
    assert loaded.keys() == state.keys()
    for key, tensor in state.items():
        assert loaded[key].dtype == tensor.dtype, key
        assert loaded[key].shape == tensor.shape, key
        assert torch.equal(loaded[key], tensor), key
        assert not loaded[key].requires_grad
    loaded["row"] += 1  # memory of its own, that may be written to


NAN, INFINITE = float("nan"), float("inf")
ODD = {
    "int8": torch.ones(2, dtype=torch.int8),
    "uint8": torch.ones(2, dtype=torch.uint8),
    "complex64": torch.ones(2, dtype=torch.complex64),
    "quantised": quantised(),
    "sparse": torch.ones(2, 2).to_sparse(),
    "NaN": torch.tensor([1.0, NAN]),
    "infinity": torch.tensor([INFINITE, 1.0], dtype=torch.float16),
}


@pytest.mark.parametrize("kind", ODD)
def test_weights_that_cannot_be_meant_are_named(kind: str, tmp_path: Path) -> None:
    torch.save({"model": {"a.weight": torch.ones(1), "b.weight": ODD[kind]}}, tmp_path / "x.pth")
    with pytest.raises(PansightError, match=r"x\.pth: expected .*weights.*, found .*b\.weight") as error:
        read_tensors(tmp_path / "x.pth")
    assert kind in error.value.found
    assert "a.weight" not in error.value.found
