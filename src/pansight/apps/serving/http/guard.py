"""What stands before every route: who may ask, how much, how many at once, and for how long."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import time
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pansight.apps.serving.http.problems import Refusal, answer, refusal
from pansight.apps.serving.settings import LOOPBACK, ServeSettings
from pansight.apps.serving.work.measures import Measures

OPEN = ("/", "/healthz", "/health")
"""Read without a token: the page, which holds no data, and whether the server is alive."""

LINGER_SECONDS, LINGER_FACTOR = 3.0, 4
"""A refused body is read on and dropped for so long, and up to so many times its limit: who is still sending would not
see the answer otherwise."""

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """Wraps an application of ASGI.

    busy: requests with a body that are worked on. A request that was let in is answered, also when the server stops.
    """

    def __init__(self, app: ASGIApp, settings: ServeSettings, token: str, measures: Measures):
        self.app, self.settings, self.measures = app, settings, measures
        self._token = token.encode()
        self.busy = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status, started = time.perf_counter(), 500, False

        async def watched(message: Message) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                status, started = message["status"], True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            self._check(scope)
            await self._let_in(scope, receive, watched)
        except Refusal as refused:
            await _linger(receive, self.settings.max_bytes)
            await answer(refused)(scope, receive, watched)
        except TimeoutError:
            if not started:
                late = refusal(504, "request", f"an end within {self.settings.timeout:g} s", "none")
                await answer(late)(scope, receive, watched)
        finally:
            self.measures.request(scope, status, time.perf_counter() - began)

    def _check(self, scope: Scope) -> None:
        """Raises `Refusal` for a request that is not let in; its body is not read yet."""
        headers = Headers(scope=scope)
        self._check_origin(headers)
        self._check_token(scope["path"], scope["method"], headers)
        if _has_body(scope):
            self._check_length(headers)
            if self.busy >= self.settings.queue:
                expected = f"fewer than {self.settings.queue} requests"
                raise refusal(503, "queue", expected, f"{self.busy} at work", Retry_After="1")

    async def _let_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises TimeoutError where it takes too long."""
        if not _has_body(scope):
            await self.app(scope, receive, send)
            return
        self.busy += 1
        self.measures.busy.set(self.busy)
        try:
            async with asyncio.timeout(self.settings.timeout):
                await self.app(scope, _counted(receive, self.settings.max_bytes), send)
        finally:
            self.busy -= 1
            self.measures.busy.set(self.busy)

    def _check_origin(self, headers: Headers) -> None:
        """A page of another site, open in a browser of this machine, must not use a server that listens here alone."""
        host = headers.get("host", "")
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        if self.settings.is_private and name.strip("[]") not in LOOPBACK:
            raise refusal(403, "Host", "a name of this machine", host or "none")
        origin = headers.get("origin")
        if origin is not None and origin.split("://", 1)[-1] != host:
            raise refusal(403, "Origin", "the page of this server", origin)

    def _check_token(self, path: str, method: str, headers: Headers) -> None:
        """The token as a bearer's, or as the password of any user, which is what Label Studio sends."""
        if not self._token or (path in OPEN and method in ("GET", "HEAD")):
            return
        kind, _, value = headers.get("authorization", "").partition(" ")
        given = value.strip().encode("utf-8", "replace")
        if kind.lower() == "basic":
            try:
                given = base64.b64decode(given, validate=True).partition(b":")[2]
            except binascii.Error:
                given = b""
        if not hmac.compare_digest(given, self._token):
            found = "another one" if given else "none"
            raise refusal(401, "Authorization", "the token of this server", found, WWW_Authenticate="Bearer")

    def _check_length(self, headers: Headers) -> None:
        length = headers.get("content-length", "0")
        if length.isascii() and length.isdigit() and int(length[:20]) > self.settings.max_bytes:
            raise too_large(self.settings.max_bytes)


def _has_body(scope: Scope) -> bool:
    return scope["method"] not in ("GET", "HEAD", "OPTIONS")


async def _linger(receive: Receive, most: int) -> None:
    left = LINGER_FACTOR * most
    try:
        async with asyncio.timeout(LINGER_SECONDS):
            while left > 0:
                message = await receive()
                if message["type"] != "http.request" or not message.get("more_body"):
                    return
                left -= len(message.get("body", b""))
    except TimeoutError:
        return


def _counted(receive: Receive, most: int) -> Receive:
    """The body, which is refused where it is longer than `most` bytes, whatever its header said."""
    seen = 0

    async def counted() -> Any:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > most:
            if message.get("more_body"):
                await _linger(receive, most)
            raise too_large(most)
        return message

    return counted


def too_large(most: int) -> Refusal:
    return refusal(413, "body", f"at most {most} bytes", "more")
