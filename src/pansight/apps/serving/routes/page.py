"""The web page, and what it asks: a look at a photo, decisions by its sliders, files, and the truth."""

from __future__ import annotations

import base64
import hashlib
import re
import time
from functools import cache
from importlib.resources import files
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Request, Response
from pydantic import BaseModel, Field

from pansight.apps.serving.answers import coco_answer, geojson, png
from pansight.apps.serving.http import bodies
from pansight.apps.serving.http.problems import OF_PHOTOS, refusals
from pansight.apps.serving.http.schemas import Options, Share, Strict
from pansight.apps.serving.truth import read_truth
from pansight.apps.serving.work.looks import KeptLook, Looks, segment_map
from pansight.apps.serving.work.service import Service

SEGMENTS = {200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}}
FILES = {200: {"content": {kind: {"schema": {}} for kind in ("image/png", "application/geo+json", "application/json")}}}
LOOK_FORM: dict[str, Any] = {
    "type": "object",
    "required": ["image"],
    "additionalProperties": False,
    "properties": {"image": {"type": "string", "format": "binary"}, "model": {"type": "string"}},
}
TRUTH_FORM: dict[str, Any] = {
    "type": "object",
    "required": ["truth"],
    "additionalProperties": False,
    "properties": {
        "truth": {"type": "string", "format": "binary", "description": "A PNG whose colours are ids."},
        "annotations": {"type": "string", "format": "binary", "description": "COCO panoptic JSON."},
        "name": {"type": "string", "description": "The file name of the PNG, by which the JSON knows it."},
    },
}


class LookAnswer(BaseModel):
    """A look that is kept."""

    look: str
    model: str
    size: list[int] = Field(description="height, width")


class DecisionRequest(Strict):
    """What the sliders say. side: the longer side of the map, at most; null: that of the photo."""

    options: Options = Field(default_factory=dict)
    score: Share = 0.5
    side: Annotated[int, Field(ge=16, le=65536)] | None = None


class FileRequest(Strict):
    """What the sliders say, and what is saved."""

    kind: Literal["png", "json", "geojson"]
    options: Options = Field(default_factory=dict)
    score: Share = 0.5


@cache
def page() -> tuple[bytes, str]:
    """(the page, its content security policy: it runs its own script alone and talks to this server alone)."""
    text = (files("pansight.apps.serving") / "page.html").read_text(encoding="utf-8")

    def digest(tag: str) -> str:
        (inner,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        return base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()

    policy = f"default-src 'none'; script-src 'sha256-{digest('script')}'; style-src 'sha256-{digest('style')}'; "
    policy += "connect-src 'self'; img-src blob: data:; media-src blob:; base-uri 'none'; form-action 'none'; "
    return text.encode(), policy + "frame-ancestors 'none'"


def router(service: Service) -> APIRouter:
    routes = APIRouter(tags=["page"])
    looks = Looks(round(service.settings.kept * 2**20))

    @routes.get("/", include_in_schema=False)
    async def web_page() -> Response:
        text, policy = page()
        return Response(text, media_type="text/html; charset=utf-8", headers={"Content-Security-Policy": policy})

    @routes.post(
        "/v1/looks",
        response_model=LookAnswer,
        responses=refusals(*OF_PHOTOS),
        openapi_extra=bodies.body_schema(("multipart/form-data", LOOK_FORM)),
    )
    async def look_at(request: Request) -> dict[str, Any]:
        """Run the network on a photo and keep what it says, for a while."""
        form = await bodies.read_form(request)
        bodies.check_known(form, *LOOK_FORM["properties"])
        served = service.model(bodies.text_of(form, "model"))
        photo, look = await service.look(served, bodies.file_of(form, "image"))
        name, kept = looks.keep(KeptLook(served.name, photo, look, served.predictor.labels))
        service.measures.kept.set(kept)
        return {"look": name, "model": served.name, "size": list(photo.shape[:2])}

    @routes.post(
        "/v1/looks/{look}/segments",
        response_class=Response,
        responses={**SEGMENTS, **refusals(*OF_PHOTOS)},
        openapi_extra=bodies.body_schema(("application/json", DecisionRequest)),
    )
    async def decide(look: Annotated[str, Path(max_length=64)], request: Request) -> Response:
        """The segments of a look by these thresholds: a line of JSON, then the map as runs (`work.looks`)."""
        start = time.perf_counter()
        asked, kept = await bodies.read_json(request, DecisionRequest), looks.find(look)
        service.check(service.model(kept.model), asked.options)

        def decided() -> tuple[bytes, float]:
            began = time.perf_counter()
            found, pixels = kept.decide(asked.options, asked.score, asked.side)
            between = time.perf_counter()
            return segment_map(found, kept.labels, pixels), between - began

        body, seconds = await service.decided(decided)
        service.measures.stage.labels(kept.model, "slider").observe(time.perf_counter() - start)
        whole = time.perf_counter() - start
        timing = f"decide;dur={1000 * seconds:.1f}, all;dur={1000 * whole:.1f}"
        return Response(body, media_type="application/octet-stream", headers={"Server-Timing": timing})

    _files_and_truth(routes, service, looks)
    return routes


def _files_and_truth(routes: APIRouter, service: Service, looks: Looks) -> None:
    @routes.post(
        "/v1/looks/{look}/files",
        response_class=Response,
        responses={**FILES, **refusals(*OF_PHOTOS)},
        openapi_extra=bodies.body_schema(("application/json", FileRequest)),
    )
    async def save(look: Annotated[str, Path(max_length=64)], request: Request) -> Response:
        """The segments of a look as a file: the PNG of COCO panoptic, its JSON with that PNG inside, or GeoJSON."""
        asked, kept = await bodies.read_json(request, FileRequest), looks.find(look)
        service.check(service.model(kept.model), asked.options)

        def encoded() -> tuple[bytes, str]:
            found = kept.prediction(asked.options, asked.score)
            if asked.kind == "png":
                return png(found.to_coco_panoptic()[1]), "image/png"
            if asked.kind == "geojson":
                return geojson(found), "application/geo+json"
            return coco_answer(found, kept.model).model_dump_json(exclude_none=True).encode(), "application/json"

        body, kind = await service.decided(encoded)
        return Response(body, media_type=kind)

    @routes.post(
        "/v1/truth",
        response_class=Response,
        responses={**SEGMENTS, **refusals(*OF_PHOTOS)},
        openapi_extra=bodies.body_schema(("multipart/form-data", TRUTH_FORM)),
    )
    async def truth(request: Request) -> Response:
        """The segments of a COCO panoptic PNG, as those of a look are answered."""
        form = await bodies.read_form(request)
        bodies.check_known(form, *TRUTH_FORM["properties"])
        given = form.get("annotations")
        text = given.encode() if isinstance(given, str) else given
        data, name = bodies.file_of(form, "truth"), bodies.text_of(form, "name") or ""

        def read() -> bytes:
            return segment_map(*read_truth(data, text or None, name, service.settings.max_pixels), 1.0)

        return Response(await service.helped(read), media_type="application/octet-stream")
