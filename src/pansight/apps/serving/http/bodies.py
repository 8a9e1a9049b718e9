"""The body of a request: a form with files, or JSON that may hold a photo in base64. Nothing of it touches a disk."""

from __future__ import annotations

import base64
import binascii
import logging
from collections.abc import AsyncGenerator
from typing import Any, TypeVar

import numpy as np
from fastapi import Request
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from pansight.apps.serving.http.problems import Refusal, refusal, validation_error
from pansight.data.images import decode_image, read_header
from pansight.errors import PansightError

Model = TypeVar("Model", bound=BaseModel)

FIELDS, FIELD_BYTES, FILES = 16, 2**16, 2
"""Of a form, at most; files are bounded by the size of the whole request."""


logging.getLogger("python_multipart").addHandler(logging.NullHandler())  # a damaged form is answered, not logged


class _InMemory(MultiPartParser):
    """Files stay in memory, which the limit of the whole request bounds, instead of a temporary folder."""

    spool_max_size = 0  # never rolled over


def kind_of(request: Request) -> str:
    """The type of the body without its parameters: "application/json"."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_form(request: Request) -> dict[str, bytes | str]:
    """Field → text, or the bytes of a file. Raises `Refusal` for a damaged form, and for a field that comes twice."""
    if kind_of(request) != "multipart/form-data":
        raise refusal(415, "Content-Type", "multipart/form-data", kind_of(request) or "none")
    parser = _InMemory(request.headers, _stream(request), max_files=FILES, max_fields=FIELDS, max_part_size=FIELD_BYTES)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise refusal(422, "body", "a whole form", error.message) from error
    found: dict[str, bytes | str] = {}
    try:
        for name, value in form.multi_items():
            if name in found:
                raise refusal(422, name[:80], "one value", "several")
            found[name] = await value.read() if isinstance(value, UploadFile) else value
    finally:
        await form.close()
    return found


async def _stream(request: Request) -> AsyncGenerator[bytes, None]:
    async for chunk in request.stream():
        yield chunk


async def read_json(request: Request, model: type[Model]) -> Model:
    """The body as the model has it; also without a type, as many programs send it. Raises `Refusal` otherwise."""
    if kind_of(request) not in ("", "application/json", "text/plain"):
        raise refusal(415, "Content-Type", "application/json", kind_of(request))
    return parsed(await request.body(), model)


def parsed(text: bytes, model: type[Model]) -> Model:
    """Raises `Refusal` for what is no JSON or not as the model has it."""
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        raise Refusal(422, validation_error(error)) from error


def from_base64(text: str, where: str) -> bytes:
    """The bytes of a file in base64, which may stand behind "data:image/…;base64,". Raises `Refusal`."""
    if text.startswith("data:"):
        head, _, text = text.partition(",")
        if not head.endswith(";base64"):
            raise refusal(422, where, "data:…;base64,…", head[:80])
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise refusal(422, where, "base64", error) from error


def decoded_photo(data: bytes, most: int, where: str = "image") -> NDArray[np.uint8]:
    """uint8 RGB (H, W, 3), upright. most: pixels that it may have, which its header tells before it is decoded.

    Raises `Refusal` for a larger one and PansightError for what is no whole image.
    """
    if not data:
        raise PansightError(where=where, expected="an image", found="nothing")
    header = read_header(data, where)
    if header.height * header.width > most:
        raise refusal(413, where, f"at most {most} pixels", f"{header.height}×{header.width}")
    return decode_image(data, where)


def file_of(form: dict[str, bytes | str], name: str) -> bytes:
    """A file of a form. Raises `Refusal` where it is missing."""
    value = form.get(name)
    if not isinstance(value, bytes):
        raise refusal(422, name, "a file", "a text" if isinstance(value, str) else "none")
    return value


def text_of(form: dict[str, bytes | str], name: str) -> str | None:
    """A text of a form, also where it came as a file; None where it is missing or empty."""
    value = form.get(name)
    if isinstance(value, bytes):
        try:
            value = value[: FIELD_BYTES + 1].decode()
        except UnicodeDecodeError as error:
            raise refusal(422, name, "a text", "bytes of another kind") from error
    return value or None


def check_known(form: dict[str, bytes | str], *known: str) -> None:
    """Raises `Refusal` for a field that nobody asked for, which may be a misspelled one."""
    for name in form:
        if name not in known:
            raise refusal(422, name[:80] or "form", f"one of {', '.join(known)}", "another field")


def body_schema(*kinds: tuple[str, type[BaseModel] | dict[str, Any]]) -> dict[str, Any]:
    """The part of an OpenAPI document for a body of these (content type, model or schema)."""
    content = {
        kind: {"schema": model if isinstance(model, dict) else inline(model.model_json_schema())}
        for kind, model in kinds
    }
    return {"requestBody": {"required": True, "content": content}}


def inline(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with the definitions that it refers to put in their places; none of ours refers to itself."""
    definitions = schema.get("$defs", {})

    def settled(value: Any) -> Any:
        if isinstance(value, list):
            return [settled(each) for each in value]
        if not isinstance(value, dict):
            return value
        if "$ref" in value:
            return settled(definitions[value["$ref"].rpartition("/")[2]])
        return {key: settled(each) for key, each in value.items() if key != "$defs"}

    return settled(schema)
