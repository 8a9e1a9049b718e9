"""A server from its start to its end: names, the socket, the models, signals."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import socket
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pansight.apps.serving.settings import ServeSettings, read_token
from pansight.engine.predict import load
from pansight.errors import PansightError

if TYPE_CHECKING:
    from fastapi import FastAPI

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
STOP_SECONDS = 5.0
"""Beyond the time that a request may take: after so long a stopping server gives up what is not answered."""


def serve(models: Sequence[str], settings: ServeSettings | None = None) -> None:
    """Serve models until SIGTERM or Ctrl-C; requests that were taken are answered before the end.

    models: WEIGHTS or NAME=WEIGHTS each; the first one answers where a request names none.
    Raises PansightError where one cannot be loaded, the address is taken, or the extra `serve` is missing.
    """
    settings = (settings or ServeSettings()).checked()
    token = read_token(settings.token_file, os.environ.get("PANSIGHT_TOKEN"))
    names = named(models)
    application = _application()
    with listening(settings) as opened:  # before the models are loaded, which takes longer
        predictors = {name: load(weights) for name, weights in names.items()}
        for predictor in predictors.values():  # code is loaded and compiled now, not while somebody waits
            predictor.predict(np.full((256, 320, 3), 128, np.uint8))
        app = application.create_app(predictors, settings, token)
        host, port = opened.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        print(f"serving    {', '.join(predictors)} at http://{shown}:{port}", flush=True)
        if not settings.is_private and not token:
            print("warning    whoever reaches this address can use it: set --token-file", flush=True)
        run_until_stopped(app, settings, opened)
    print("stopped    every request that was taken is answered", flush=True)


def named(models: Sequence[str]) -> dict[str, str]:
    """Name → weights. A model without a name has that of its folder or file.

    Raises PansightError for none, for a name that cannot stand in an address, and for one that comes twice.
    """
    if not models:
        raise PansightError(where="serve", expected="weights: a run, a saved model, a hub id, a file", found="none")
    found: dict[str, str] = {}
    for text in models:
        name, equals, weights = text.partition("=")
        if not equals or "/" in name or os.sep in name:
            name, weights = re.sub(r"[^A-Za-z0-9._-]", "-", Path(text).stem) or "model", text
        if not NAME.fullmatch(name):
            raise PansightError(where=text, expected="NAME=WEIGHTS, a name of letters, digits, . _ -", found=name)
        if name in found:
            hint = f"give one of them another: other={weights}"
            raise PansightError(where=text, expected="each name once", found=f"{name} twice", hint=hint)
        found[name] = weights
    return found


def _application() -> Any:
    """The module that makes the application, which needs the packages of the extra."""
    try:
        import python_multipart  # noqa: F401  # which the forms need, and FastAPI looks for only then
        import uvicorn  # noqa: F401

        from pansight.apps.serving import application
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("pansight"):
            raise
        hint = "install the extra pansight[serve]"
        raise PansightError(where="serve", expected=f"the package {error.name}", found="none", hint=hint) from error
    return application


@contextmanager
def listening(settings: ServeSettings) -> Generator[socket.socket]:
    """A socket at the address of the settings. Raises PansightError where it cannot be had."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a restart follows at once
        try:
            opened.bind((settings.host, settings.port))
            opened.listen(1024)
        except OSError as error:
            where = f"{settings.host}:{settings.port}"
            hint = "another --port, or 0 for any free one"
            raise PansightError(
                where=where, expected="a free address", reason=error.strerror or error, hint=hint
            ) from error
        yield opened


def run_until_stopped(app: FastAPI, settings: ServeSettings, opened: socket.socket) -> None:
    """Answer requests at the socket until SIGTERM or Ctrl-C; a second one ends at once."""
    import uvicorn

    class Server(uvicorn.Server):
        @contextmanager
        def capture_signals(self) -> Generator[None]:
            """As uvicorn does, but that the end is an ordinary one: it does not raise the signal once more."""
            numbers = (signal.SIGINT, signal.SIGTERM)
            before: Mapping[int, Any] = {number: signal.signal(number, self.handle_exit) for number in numbers}
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

    config = uvicorn.Config(
        app,
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=round(settings.timeout + STOP_SECONDS),
        h11_max_incomplete_event_size=2**16,
    )
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    server = Server(config)
    with suppress(KeyboardInterrupt):
        asyncio.run(server.serve([opened]))
