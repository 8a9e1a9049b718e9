"""Reading checkpoints: what official files hold comes through, what could run code or is damaged is one clear line."""

from __future__ import annotations

import pickle
import pickletools
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pansight.errors import PansightError
from pansight.weights.unpickle import read_pickle, read_tensors


class Boom:
    """Creates a file when unpickled: the witness of executed code."""

    def __init__(self, witness: Path):
        self.witness = witness

    def __reduce__(self):
        return Path.touch, (self.witness,)


class Raw:
    """Pickles as a call of any function with any arguments and an optional state."""

    def __init__(self, *reduced: object):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "float32": rng.standard_normal((3, 4)).astype(np.float32),
        "fortran": np.asfortranarray(rng.standard_normal((3, 4))),
        "big_endian": rng.standard_normal((2, 2)).astype(">f4"),
        "empty": np.zeros((0, 4), np.float32),
        "zero_d": np.array(2.5, np.float32),
        "int64": np.arange(5),
        "bool": np.array([True, False]),
        "strided": rng.standard_normal((4, 6)).astype(np.float16)[::2, ::3],
    }


def one_line(error: pytest.ExceptionInfo[PansightError], path: Path) -> str:
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
def test_numpy_pickles_of_every_protocol(tmp_path: Path, protocol: int, core: str) -> None:
    """Files written by numpy 1 (numpy.core) and numpy 2 (numpy._core) hold the same arrays."""
    raw = pickle.dumps({"model": arrays(), "__author__": "x", "scalar": np.float32(3)}, protocol=protocol)
    if core == "numpy.core":
        raw = _with_names_of_numpy_1(raw)
    path = tmp_path / "a.pkl"
    path.write_bytes(raw)
    assert read_pickle(path)["scalar"] == 3
    loaded = read_tensors(path)
    assert set(loaded) == set(arrays())
    for name, array in arrays().items():
        assert np.array_equal(loaded[name].numpy(), array), name
        assert loaded[name].shape == array.shape


def _with_names_of_numpy_1(raw: bytes) -> bytes:
    """Rename modules; protocol 4 and later count the length of a name, and of frames, which are dropped (optional)."""
    frames = [position for opcode, _, position in pickletools.genops(raw) if opcode.name == "FRAME"]
    for position in reversed(frames):
        raw = raw[:position] + raw[position + 9 :]  # one byte of instruction, eight of length
    for module in (b"multiarray", b"numeric"):
        new, old = b"numpy._core." + module, b"numpy.core." + module
        raw = raw.replace(b"\x8c" + bytes([len(new)]) + new, b"\x8c" + bytes([len(old)]) + old).replace(new, old)
    assert b"numpy._core" not in raw
    return raw


def test_python_2_pickle(tmp_path: Path) -> None:
    """Caffe2's files were written by Python 2: strings that are bytes, protocol 2, no model key."""
    data = np.arange(6, dtype=np.float32).reshape(2, 3)
    body = (
        b"\x80\x02}U\x07conv1_wcnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02K\x03\x86cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U" + bytes([data.nbytes]) + data.tobytes() + b"tbs."
    )
    path = tmp_path / "R-50.pkl"
    path.write_bytes(body)
    assert torch.equal(read_tensors(path)["conv1_w"], torch.from_numpy(data))


def test_ordered_dict_and_module_prefix(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"state_dict": OrderedDict({"module.a": np.ones(2), "module.b": np.zeros(1)})}))
    assert list(read_tensors(path)) == ["a", "b"]


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_code_in_a_pickle_is_named_and_never_run(tmp_path: Path, protocol: int) -> None:
    witness, path = tmp_path / "witness", tmp_path / "bad.pkl"
    path.write_bytes(pickle.dumps({"model": {"a": Boom(witness)}}, protocol=protocol))
    with pytest.raises(PansightError) as error:
        read_tensors(path)
    assert "touch" in one_line(error, path) or "getattr" in str(error.value)
    assert not witness.exists()


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "torch._utils._rebuild_tensor_v2", "numpy.load"])
def test_every_other_name_is_refused(tmp_path: Path, name: str) -> None:
    module, attribute = name.rsplit(".", 1)
    path = tmp_path / "bad.pkl"
    path.write_bytes(f"c{module}\n{attribute}\n(S'x'\ntR.".encode())
    with pytest.raises(PansightError) as error:
        read_tensors(path)
    message = one_line(error, path)
    assert name in message or name.replace("builtins", "__builtin__") in message


@pytest.mark.parametrize(
    "content",
    [
        Raw(np.ndarray, ((2,),)),  # ndarray called
        Raw(np.dtype, ("O",)),  # arrays of objects
        Raw(np.zeros(1).__reduce__()[0], (np.ndarray, (0,), b"b"), (1, (9, 9), np.dtype("f4"), False, b"1234")),
        {"a": Raw(__import__("_codecs").encode, ("x", "rot13"))},
        "text",
        [1, 2],
        {},
        {"a": 1},
    ],
)
def test_pickles_that_are_no_state_dict(tmp_path: Path, content: object) -> None:
    path = tmp_path / "bad.pkl"
    path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(PansightError) as error:
        read_tensors(path)
    one_line(error, path)


def test_deeply_nested_pickle(tmp_path: Path) -> None:
    path = tmp_path / "deep.pkl"
    path.write_bytes(
        b"\x80\x02" + b"]" * (sys.getrecursionlimit() * 2) + b"a" * (sys.getrecursionlimit() * 2 - 1) + b"."
    )
    with pytest.raises(PansightError):
        read_tensors(path)


def test_torch_and_safetensors(tmp_path: Path) -> None:
    state = {"a": torch.arange(4.0), "b": torch.ones(2, 2, dtype=torch.float16)}
    torch.save({"model": state, "epoch": 3}, tmp_path / "a.pth")
    torch.save(state, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "a.safetensors")
    (tmp_path / "misnamed.pkl").write_bytes((tmp_path / "a.pth").read_bytes())
    for name in ("a.pth", "legacy.pt", "a.safetensors", "misnamed.pkl"):
        loaded = read_tensors(tmp_path / name)
        assert set(loaded) == {"a", "b"}
        assert all(torch.equal(loaded[key], state[key]) for key in state), name


def test_code_in_a_torch_file_is_named_and_never_run(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    for name, new in (("zip.pth", True), ("legacy.pth", False)):
        path = tmp_path / name
        torch.save({"model": {"a": Boom(witness)}}, path, _use_new_zipfile_serialization=new)
        with pytest.raises(PansightError) as error:
            read_tensors(path)
        assert "run code" in one_line(error, path)
        assert not witness.exists()


def test_whole_module_in_a_torch_file(tmp_path: Path) -> None:
    path = tmp_path / "module.pth"
    torch.save(torch.nn.Linear(1, 1), path)
    with pytest.raises(PansightError) as error:
        read_tensors(path)
    assert "torch.nn.modules.linear.Linear" in one_line(error, path)


@pytest.mark.parametrize("kind", ["pkl", "pth", "legacy", "safetensors"])
def test_truncated_at_many_lengths(tmp_path: Path, kind: str) -> None:
    whole, path = tmp_path / "whole", tmp_path / f"cut.{kind}"
    state = {"a": torch.arange(64.0), "b": torch.ones(3)}
    if kind == "pkl":
        whole.write_bytes(pickle.dumps({"model": {k: v.numpy() for k, v in state.items()}}))
    elif kind == "safetensors":
        save_file(state, whole)
    else:
        torch.save(state, whole, _use_new_zipfile_serialization=kind == "pth")
    raw = whole.read_bytes()
    assert len(read_tensors(whole)) == 2
    for length in [0, 1, 2, 5, 9, 17, 40, len(raw) // 2, len(raw) - 20, len(raw) - 1]:
        path.write_bytes(raw[:length])
        with pytest.raises(PansightError) as error:
            read_tensors(path)
        one_line(error, path)


@pytest.mark.parametrize("raw", [b"hello world", b"\x89PNG\r\n\x1a\n", b"{}", b"\xff" * 64, b"(", b"}", b"<html>"])
def test_foreign_files(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(raw)
    with pytest.raises(PansightError) as error:
        read_tensors(path)
    one_line(error, path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(PansightError, match="no such file"):
        read_tensors(tmp_path / "none.pth")
    with pytest.raises(PansightError, match="cannot be read"):
        read_tensors(tmp_path)
