"""One command beside its data, and everything that must hold whatever the data are."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import resource
import shutil
import signal
import stat
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, TextIO

import pyarrow
import pyarrow.parquet

from pansight.apps.cli import main

SECONDS = 10.0
"""A case that takes longer is a hang."""

GROWTH = 1 << 30
"""Bytes of address space that a case may add; the largest image that is allowed takes 0.7 of it when decoded."""

WRITES = (
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.chmod",
    "shutil.rmtree",
    "os.truncate",
)


class Hang(BaseException):
    """No subclass of Exception, so that nothing takes it for an error of its own."""


class Outcome(NamedTuple):
    code: int
    stdout: str
    stderr: str


class Watch:
    """Notes every path outside `allowed` that is written to, moved or removed while it is `on`."""

    def __init__(self) -> None:
        self.on, self.allowed = False, ""
        self.seen: list[str] = []
        sys.addaudithook(self._hook)  # cannot be taken off again

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open":
            path, _, flags = arguments
            if not isinstance(flags, int) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
                return
            paths = [path]
        elif event in WRITES:
            paths = [path for path in arguments[:2] if isinstance(path, str | bytes | os.PathLike)]
            paths = paths[1:] if event in ("os.symlink", "os.link") else paths  # the target is not touched
        elif event in ("subprocess.Popen", "os.system", "os.exec", "pickle.find_class"):
            self.seen.append(f"{event} {arguments!r:.100}")
            return
        else:
            return
        for path in paths:
            if isinstance(path, int):
                continue
            full = os.path.abspath(os.fsdecode(path))
            if not full.startswith(self.allowed) and "__pycache__" not in full and full != "/dev/null":
                self.seen.append(f"{event} {full}")


class Sandbox:
    """A folder with in/ (data), out/ (results), temporary/ (TMPDIR) and elsewhere/, and the process in it."""

    def __init__(self, place: Path, watch: Watch):
        gc.collect()  # what earlier tests left, processes that a loader waits for among it, is not this one's time
        self.place, self.watch = place.resolve(), watch
        (self.place / "elsewhere").mkdir(parents=True)
        (self.place / "temporary").mkdir()
        (self.place / "elsewhere" / "secret.json").write_text('{"images": [], "annotations": [], "secret": 1}')
        watch.allowed = str(self.place)

    def clear(self) -> None:
        for name in os.listdir(self.place):
            if name not in ("elsewhere", "temporary"):
                path = self.place / name
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def run(self, *arguments: str) -> Outcome:
        """Run a command. Raises AssertionError in one of the words below, with the traceback where there is one."""
        before = self._listing()
        out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)  # as Python makes them
        err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace", write_through=True)
        self.watch.seen.clear()
        code: int | None = None
        with _compiled_words(err), self._limits(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = main(arguments)
            except Hang:
                trouble = f"hang: more than {SECONDS} s\n{traceback.format_exc(limit=-6)}"
            except BaseException:  # also SystemExit, and MemoryError, where the limit is met
                trouble = f"traceback\n{traceback.format_exc()}"
            else:
                trouble = ""
        outcome = Outcome(code if code is not None else -1, _text(out), _text(err))
        assert not trouble, trouble
        self._check_words(arguments[0], outcome)
        after = self._listing()
        changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        outside = [name for name in changed if name != "out" and not name.startswith("out/")]
        assert not outside, f"written outside out: {outside[:5]}"
        assert not self.watch.seen, f"reached outside: {self.watch.seen[:5]}"
        left = [name for name in after if name.endswith((".tmp", ".old"))]
        assert not left, f"left behind: {left[:5]}"
        if outcome.code == 2:
            assert not [n for n in changed if after.get(n, ("",))[0] == "file"], f"failed, yet written: {changed[:5]}"
        return outcome

    @staticmethod
    def _check_words(command: str, outcome: Outcome) -> None:
        allowed = (0, 1, 2) if command in ("check", "convert") else (0, 2)
        assert outcome.code in allowed, f"exit code {outcome.code}"
        lines = outcome.stderr.splitlines()
        if outcome.code == 2:
            assert len(lines) == 1, f"expected one line, found {lines[:5]}"
            assert lines[0].startswith("pansight: "), lines[0]
            assert len(lines[0]) < 1500, f"a line of {len(lines[0])} letters: {lines[0][:300]}"
        else:
            assert not [line for line in lines if not line.startswith("warning: ")], lines[:5]
        assert "Traceback" not in outcome.stdout

    @contextlib.contextmanager
    def _limits(self) -> Iterator[None]:
        """Time, memory, the place where one stands and where temporary files go."""
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        old, temporary = os.getcwd(), tempfile.tempdir
        handler = signal.signal(signal.SIGALRM, _alarm)
        os.chdir(self.place)
        tempfile.tempdir = str(self.place / "temporary")
        # Arrow's pool reserves a gigabyte of addresses at its first use, whatever it is asked for: outside the limit
        pyarrow.parquet.write_table(pyarrow.table({"a": [1]}), pyarrow.BufferOutputStream())
        limit = _address_space() + GROWTH
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        self.watch.on = True
        try:
            yield
        finally:
            self.watch.on = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, handler)
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
            os.chdir(old)
            tempfile.tempdir = temporary

    def _listing(self) -> dict[str, tuple[Any, ...]]:
        """What there is: kind, bytes, rights and time of change of everything in the sandbox, links not followed."""
        found: dict[str, tuple[Any, ...]] = {}
        stack = [""]
        while stack:
            folder = stack.pop()
            for entry in os.scandir(os.path.join(self.place, folder)):
                name = f"{folder}/{entry.name}" if folder else entry.name
                row = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(row.st_mode):
                    found[name] = "folder", row.st_mode
                    stack.append(name)
                elif stat.S_ISREG(row.st_mode):
                    found[name] = "file", row.st_mode, row.st_size, row.st_mtime_ns, row.st_ino
                else:
                    found[name] = "special", row.st_mode, row.st_ino
        return found


@contextlib.contextmanager
def _compiled_words(target: TextIO) -> Iterator[None]:
    """What compiled libraries print to stderr themselves."""
    with tempfile.TemporaryFile() as file:
        old = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(old, 2)
            os.close(old)
            file.seek(0)
            target.write(file.read().decode("utf-8", "replace"))


def _text(stream: io.TextIOWrapper) -> str:
    stream.seek(0)
    return stream.read()


def _alarm(number: int, frame: FrameType | None) -> None:
    raise Hang


def _address_space() -> int:
    """Bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
