"""Whether the hub that pretrained weights come from answers, found out in seconds.

Its client and timm's ask again and again where a network drops what is sent, for minutes in all.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants

SECONDS = 3.5
"""How long the hub has for its answer."""


def hub_answers(seconds: float | None = None) -> bool:
    """Whether the hub (``HF_ENDPOINT``) can be reached, by the proxy that the environment names, if any.

    False at once where ``HF_HUB_OFFLINE`` is set, and after `seconds` (None: SECONDS) at the latest.
    """
    if constants.HF_HUB_OFFLINE or not constants.ENDPOINT.startswith(("http:", "https:")):
        return False
    limit = SECONDS if seconds is None else seconds
    answers: list[bool] = []
    # A thread, since looking up an address cannot be told to give up.
    thread = threading.Thread(target=lambda: answers.append(_asked(limit)), daemon=True)
    thread.start()
    thread.join(limit)
    return answers == [True]


def _asked(seconds: float) -> bool:
    try:
        request = urllib.request.Request(constants.ENDPOINT, method="HEAD", headers={"User-Agent": "pansight"})
        with urllib.request.urlopen(request, timeout=seconds) as response:
            return response.status < 500
    except urllib.error.HTTPError as error:
        error.close()
        return (
            error.code < 500
        )  # a proxy that finds no way answers 502 … 504, after which the client would go on asking
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # the client may know other certificates than Python
    except (OSError, ValueError, http.client.HTTPException):
        return False


@contextmanager
def bounded_downloads() -> Iterator[bool]:
    """Inside, clients of the hub look into their caches alone where it does not answer. Yields whether it does."""
    if hub_answers():
        yield True
        return
    before = constants.HF_HUB_OFFLINE, socket.getdefaulttimeout()
    constants.HF_HUB_OFFLINE = True
    socket.setdefaulttimeout(SECONDS)  # timm's older weights come from other places than the hub
    try:
        yield False
    finally:
        constants.HF_HUB_OFFLINE = before[0]
        socket.setdefaulttimeout(before[1])
