"""Memory that runs out in any library is known as such; a full disk is told in one line that names the place."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest
import torch

from pansight import models
from pansight.apps.cli import main
from pansight.data import Shapes
from pansight.data.formats.coco_panoptic import export_coco_panoptic
from pansight.engine import checkpoint
from pansight.engine.distributed import is_out_of_memory, unless_out_of_memory

sys.path.insert(0, str(Path(__file__).parent))
import toy

OUT = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    MemoryError(),
    RuntimeError("could not create a primitive"),
    RuntimeError("could not create a memory object"),
    RuntimeError("std::bad_alloc"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: 4 bytes"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"),
    RuntimeError("mmap failed: Cannot allocate memory"),
]
OTHERS = [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    RuntimeError("could not create a primitive descriptor for a convolution of this type"[:9]),
    ValueError("out of memory"),
    KeyError("bad_alloc"),
]


@pytest.mark.parametrize("error", OUT, ids=[str(error)[:30] for error in OUT])
def test_memory_that_runs_out_is_known(error: Exception) -> None:
    def fail() -> None:
        raise error

    assert is_out_of_memory(error)
    assert unless_out_of_memory(fail) is None


@pytest.mark.parametrize("error", OTHERS, ids=[str(error)[:30] for error in OTHERS])
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    assert not is_out_of_memory(error)


@pytest.fixture
def words(monkeypatch, tmp_path) -> list[str]:
    monkeypatch.setitem(models.MODELS, "toy", toy.ENTRIES["toy"])
    export_coco_panoptic(Shapes(4, 32, 40), tmp_path / "data", "train")
    settings = {"steps": 30, "batch-size": 2, "lr": 0.01, "log-every": 1, "evaluate-every": 0}
    given = [word for name, value in settings.items() for word in (f"--train.{name}", str(value))]
    return ["train", "--model", "toy", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "run"), *given]


def full(*arguments, **more):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def said(words: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    """Run a command that must fail; what stands on stderr: one line of ours, beside the progress."""
    assert main(words) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("train: ")]
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize("after", [3, 10**6])
def test_a_tracker_that_cannot_write_is_one_line(after, words, tmp_path, monkeypatch, capfd) -> None:
    record_writer = pytest.importorskip("tensorboard.summary.writer.record_writer")
    plain, calls = record_writer.RecordWriter.write, []

    def write(self, data):
        calls.append(data)
        return full() if len(calls) > after else plain(self, data)

    monkeypatch.setattr(record_writer.RecordWriter, "write", write)
    if after == 10**6:
        assert main(words) == 0
        return
    assert said(words, capfd) == f"pansight: {tmp_path / 'run'}: the trackers cannot write: No space left on device"


def test_a_log_that_cannot_be_written_names_its_file(words, tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.setattr(checkpoint, "LOG", "metrics.jsonl")
    plain = Path.open

    def opened(self, mode="r", *arguments, **more):
        return full() if self.name == "metrics.jsonl" and "a" in mode else plain(self, mode, *arguments, **more)

    monkeypatch.setattr(Path, "open", opened)
    line = said([*words, "--train.trackers", ""], capfd)
    assert line == f"pansight: {tmp_path / 'run' / 'metrics.jsonl'}: cannot be written: No space left on device"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_names_the_log(words, tmp_path, monkeypatch, capfd) -> None:
    """The log itself is the device that is always full."""
    start = checkpoint.start_folder

    def started(folder, *arguments):
        start(folder, *arguments)
        (folder / "metrics.jsonl").symlink_to("/dev/full")

    monkeypatch.setattr("pansight.apps.commands.running.start_folder", started)
    line = said([*words, "--train.trackers", ""], capfd)
    assert line == f"pansight: {tmp_path / 'run' / 'metrics.jsonl'}: cannot be written: No space left on device"


@pytest.mark.parametrize("name", ["model.safetensors", "training.pt"])
def test_a_checkpoint_that_cannot_be_written_names_its_folder(name, words, tmp_path, monkeypatch, capfd) -> None:
    if name == "training.pt":
        monkeypatch.setattr(torch, "save", full)
    else:
        monkeypatch.setattr("pansight.weights.native.save_file", full)
    line = said([*words, "--train.trackers", ""], capfd)
    assert "checkpoints/last: cannot be written: No space left on device" in line
