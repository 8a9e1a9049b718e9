"""Videos: frames are read one by one, and the frames that are drawn are written as a video again.

OpenCV reads and writes them (FFmpeg inside). What it writes is MPEG-4 in an MP4 file, which every player knows.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from pansight.data.images import MAX_PIXELS
from pansight.errors import PansightError

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".mts", ".m2ts")
COUNTED = (".mp4", ".m4v", ".mov", ".avi")
"""Containers that say how many frames they have; of others the number is estimated from the duration."""
MAX_MISSES = 50
"""After so many failures in a row, what is left of a video is given up."""
MAX_RATE = 1000
OURS = ".mp4"

Frame = NDArray[np.uint8]
"""RGB (H, W, 3)."""


def is_video(path: Path) -> bool:
    """Whether a file is called like a video."""
    return path.suffix.lower() in VIDEO_SUFFIXES


class Video:
    """A video file that is read from its beginning. rate: frames a second. size: (H, W), as it is shown (turned by its
    own note). count: of frames that the file promises, 0 where it says nothing.

    Raises PansightError where it cannot be opened, has no frame, or is too large.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        with quiet():
            self._capture = cv2.VideoCapture(str(self.path), cv2.CAP_FFMPEG)
        if not self._capture.isOpened():
            self.close()
            found = (
                "an empty file" if not self.path.stat().st_size else "one that cannot be opened (damaged, or no video)"
            )
            raise PansightError(where=self.path, expected="a video", found=found)
        ask = self._capture.get
        height, width = round(ask(cv2.CAP_PROP_FRAME_HEIGHT)), round(ask(cv2.CAP_PROP_FRAME_WIDTH))
        if not 0 < height * width <= MAX_PIXELS:
            self.close()
            found = f"{height}×{width}" if height * width else "no picture"
            raise PansightError(
                where=self.path, expected=f"frames of 1 … {MAX_PIXELS // 10**6} million pixels", found=found
            )
        self.size = height, width
        rate = ask(cv2.CAP_PROP_FPS)
        self.rate = rate if 0 < rate <= MAX_RATE else 25.0
        self.count = max(0, round(ask(cv2.CAP_PROP_FRAME_COUNT)))

    def frames(self, every: int = 1) -> Iterator[tuple[int, Frame]]:
        """(number from 1, frame) of the first frame and each `every`-th after it. Frames that cannot be decoded are
        passed over; `complaint` tells of them afterwards.
        """
        self.found = number = misses = 0
        while misses < MAX_MISSES:
            with quiet():
                whole = self._capture.grab()
            number += 1
            if not whole:
                if number > self.count:
                    return
                misses += 1
                continue
            misses = 0
            if (number - 1) % every:
                self.found += 1
                continue
            with quiet():
                whole, picture = self._capture.retrieve()
            if whole and picture is not None:
                self.found += 1
                yield number, cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)  # type: ignore[misc]

    def complaint(self) -> PansightError | None:
        """After `frames`: a line where fewer were decoded than there should be."""
        slack = 0 if self.path.suffix.lower() in COUNTED else max(2, self.count // 50)
        missing = self.count - self.found
        if self.found and missing <= slack:
            return None
        found = f"{self.found}: the others cannot be decoded" if self.found else "none that can be decoded"
        return PansightError(where=self.path, expected=f"{self.count or 'some'} frames", found=found)

    def close(self) -> None:
        """Let go of the file."""
        self._capture.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class VideoWriter:
    """Writes frames of `size` (H, W) to an MP4 file, `rate` a second.

    Its codec needs even sides: a last row or column is repeated where they are odd. Raises PansightError where the file
    cannot be written.
    """

    def __init__(self, path: Path, rate: float, size: tuple[int, int]):
        self.path, self.size = path, size
        self._extra = (size[0] % 2, size[1] % 2)
        height, width = size[0] + self._extra[0], size[1] + self._extra[1]
        code = cv2.VideoWriter.fourcc(*"mp4v")
        with quiet():
            self._writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, code, rate, (width, height))
        if not self._writer.isOpened():
            raise PansightError(
                "cannot be written", where=path, reason=f"no video of {height}×{width}", code="cannot_write"
            )

    @property
    def written_size(self) -> tuple[int, int]:
        """(H, W) of the file."""
        return self.size[0] + self._extra[0], self.size[1] + self._extra[1]

    def add(self, frame: Frame) -> None:
        """A frame of this size."""
        if any(self._extra):
            frame = np.pad(frame, ((0, self._extra[0]), (0, self._extra[1]), (0, 0)), mode="edge")
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        """Finish the file. Raises PansightError where nothing of it stands on the disk."""
        self._writer.release()
        if not self.path.is_file() or not self.path.stat().st_size:
            raise PansightError("cannot be written", where=self.path, reason="nothing was", code="cannot_write")


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, OpenCV and FFmpeg keep their own lines about damaged files off the terminal, and open files alone: a
    playlist that is called like a video cannot name others, or addresses in the network.

    FFmpeg asks once, when it is first used, what it may say.
    """
    asked = {"OPENCV_FFMPEG_LOGLEVEL": "-8", "OPENCV_FFMPEG_CAPTURE_OPTIONS": "protocol_whitelist;file"}
    before = {name: os.environ.get(name) for name in asked}
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    os.environ |= asked
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def in_natural_order(name: str) -> list[Any]:
    """A key that sorts frame_2 before frame_10."""
    return [int(part) if part.isdecimal() else part.lower() for part in re.split(r"(\d+)", name)]
