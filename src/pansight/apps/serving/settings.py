"""How a server of models is reached, and what it takes from whoever reaches it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pansight.errors import PansightError

LOOPBACK = ("127.0.0.1", "::1", "localhost")
"""Addresses that only programs of the same machine reach."""


@dataclass(frozen=True)
class ServeSettings:
    """A server of models."""

    host: str = "127.0.0.1"
    """The address that is listened at; 0.0.0.0 is every address of the machine."""
    port: int = 8000
    """0: a free one, which is printed."""
    token_file: Path | None = None
    """A file with the bearer token that requests must bring. [default: the variable PANSIGHT_TOKEN, else no token]"""
    batch: int = 4
    """Photos of equal size that the network sees at once, at most."""
    wait: float = 2.0
    """Milliseconds that a photo waits for company where the network has nothing else to do."""
    queue: int = 64
    """Requests that are worked on or wait, at most; others are told to come again (503)."""
    timeout: float = 60.0
    """Seconds that a request may take, its upload included."""
    upload: float = 32.0
    """MiB of a request, at most."""
    pixels: float = 32.0
    """Millions of pixels of a photo, at most."""
    kept: float = 512.0
    """MiB of network outputs kept for the sliders of the page; the oldest are let go."""
    images: Path | None = None
    """A folder of photos that tasks of Label Studio may name; no other file is read for a request."""

    def checked(self) -> ServeSettings:
        """The settings themselves. Raises PansightError for one out of range, or a folder that is none."""
        limits = {
            "port": (0, 65535),
            "batch": (1, 256),
            "wait": (0, 1000),
            "queue": (1, 10_000),
            "timeout": (0.1, 3600),
        }
        limits |= {"upload": (0.001, 1024), "pixels": (0.001, 100), "kept": (0, 2**20)}
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise PansightError(where=f"--{name}", expected=f"{low} … {high}", found=getattr(self, name))
        if self.images is not None and not self.images.is_dir():
            raise PansightError(where="--images", expected="a folder of photos", found=self.images)
        return self

    @property
    def max_bytes(self) -> int:
        """Of a request's body."""
        return round(self.upload * 2**20)

    @property
    def max_pixels(self) -> int:
        return round(self.pixels * 10**6)

    @property
    def is_private(self) -> bool:
        """Whether only programs of this machine reach the server."""
        return self.host in LOOPBACK


def read_token(file: Path | None, environment: str | None) -> str:
    """The token that requests must bring, "" for none. environment: the value of PANSIGHT_TOKEN, None where unset.

    Raises PansightError for a file that cannot be read, and for a token that is empty or no plain text.
    """
    if file is None and environment is None:
        return ""
    try:
        token = (environment or "" if file is None else file.read_text(encoding="utf-8")).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise PansightError(where=file, expected="a file with a token", reason=error) from error
    where = "PANSIGHT_TOKEN" if file is None else file
    if not token.isascii() or not token.isprintable() or " " in token or not 8 <= len(token) <= 512:
        raise PansightError(where=where, expected="a token of 8 … 512 letters, digits and signs", found="another text")
    return token
