"""What a request is refused with: a status and one line, with the parts that a program decides by."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from pansight.errors import PansightError, shown

log = logging.getLogger("pansight")


class Problem(BaseModel):
    """Why a request was not answered."""

    model_config = ConfigDict(json_schema_extra={"additionalProperties": False})

    error: str = Field(description="The whole in one line.")
    code: str = Field(description="The kind of problem, in a word that stays.")
    where: str = Field(description='The field, option or file that it is about; "" for none.')
    expected: str
    found: str
    hint: str


class Refusal(Exception):
    """A request that is refused. error: why. status: of HTTP. headers: that go with the answer."""

    def __init__(self, status: int, error: PansightError, headers: Mapping[str, str] | None = None):
        self.status, self.error, self.headers = status, error, dict(headers or {})
        super().__init__(error.what)


def refusal(status: int, where: object, expected: object, found: object, hint: object = "", **headers: str) -> Refusal:
    """headers: with "_" for "-"."""
    error = PansightError(where=where, expected=expected, found=found, hint=hint)
    return Refusal(status, error, {name.replace("_", "-"): value for name, value in headers.items()})


def body_of(error: PansightError) -> dict[str, Any]:
    """The JSON of a `Problem`."""
    line = f"{shown(error.where)}: {error.what}" if error.where else error.what
    parts = {name: shown(getattr(error, name)) for name in ("where", "expected", "found", "hint")}
    return Problem(error=line, code=error.code, **parts).model_dump()


def answer(refused: Refusal) -> JSONResponse:
    return JSONResponse(body_of(refused.error), refused.status, refused.headers)


STATUS_OF_CODE = {"unknown_choice": 422, "out_of_memory": 413}
"""Other kinds of errors that a request can cause are 422: it is understood, and what it holds cannot be used."""


def add_handlers(app: FastAPI) -> None:
    """Every error becomes one line; what is a fault of ours is logged and said to be one, without its inside."""

    def refused(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, Refusal)
        return answer(error)

    def unusable(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, PansightError)
        return answer(Refusal(STATUS_OF_CODE.get(error.code, 422), error))

    def invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError | ValidationError)
        return answer(Refusal(422, validation_error(error)))

    def plain(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        found = PansightError(f"{error.detail}", code="unexpected")
        return answer(Refusal(error.status_code, found, error.headers))

    def gone(_: Request, error: Exception) -> JSONResponse:
        return answer(refusal(400, "body", "the whole request", "the end of the connection"))

    def fault(_: Request, error: Exception) -> JSONResponse:
        return answer(Refusal(500, PansightError("the server failed; its log says how")))

    app.add_exception_handler(Refusal, refused)
    app.add_exception_handler(PansightError, unusable)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(ValidationError, invalid)
    app.add_exception_handler(HTTPException, plain)
    app.add_exception_handler(ClientDisconnect, gone)
    app.add_exception_handler(Exception, fault)


def validation_error(error: RequestValidationError | ValidationError, field: str = "body") -> PansightError:
    """The first of what pydantic complains about. field: what was looked at."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or field
    match first["type"]:
        case "json_invalid":
            return PansightError(where=where, expected="JSON", reason=first["msg"].removeprefix("Invalid JSON: "))
        case "missing":
            return PansightError(where=where, expected="a value", found="none")
        case "extra_forbidden":
            return PansightError(where=where, expected="a field that is known", found="another one")
        case _:
            expected = first["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
            return PansightError(where=where, expected=expected, found=f"{first.get('input')!r:.80}")


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The part of an OpenAPI document that says which refusals a route has; every route may be refused by the guard."""
    told = {
        400: "The request was cut off, or comes from another site.",
        401: "The token is missing or wrong.",
        403: "The request comes from another site.",
        404: "No such model, or nothing kept under this name.",
        405: "No such method.",
        413: "The request or the photo is too large.",
        415: "A body of another kind.",
        422: "Something in the request cannot be used.",
        500: "A fault of the server.",
        503: "Too many requests: come again after the seconds in Retry-After.",
        504: "It took too long.",
    }
    every = {400, 401, 403, 500, *statuses}
    return {status: {"model": Problem, "description": told[status]} for status in sorted(every)}


OF_PHOTOS = (404, 413, 415, 422, 503, 504)
"""Refusals of routes that take a photo."""
