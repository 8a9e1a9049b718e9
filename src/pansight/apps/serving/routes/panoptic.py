"""POST /v1/panoptic: a photo in, COCO panoptic out."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import TypeAdapter, ValidationError

from pansight.apps.serving.answers import as_panoptic, coco_answer, geojson, png
from pansight.apps.serving.http import bodies
from pansight.apps.serving.http.problems import OF_PHOTOS, Refusal, refusals, validation_error
from pansight.apps.serving.http.schemas import PHOTO_FORM, Base64Request, Options, PanopticAnswer
from pansight.apps.serving.work.service import Service

As = Literal["coco", "png", "geojson"]
KINDS: dict[As, str] = {"coco": "application/json", "png": "image/png", "geojson": "application/geo+json"}
BODY = bodies.body_schema(("multipart/form-data", PHOTO_FORM), ("application/json", Base64Request))
ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "As `as` asks for it.",
        "content": {
            "image/png": {"schema": {"type": "string", "format": "binary"}},
            "application/geo+json": {"schema": {"type": "object"}},
        },
    }
}

_OPTIONS = TypeAdapter(Options)


async def photo_request(request: Request) -> tuple[bytes, Base64Request]:
    """The bytes of the photo, and what is said besides, of a form or of JSON."""
    if bodies.kind_of(request) != "multipart/form-data":
        asked = await bodies.read_json(request, Base64Request)
        return bodies.from_base64(asked.image, "image"), asked
    form = await bodies.read_form(request)
    bodies.check_known(form, *PHOTO_FORM["properties"])
    data = bodies.file_of(form, "image")
    given: dict[str, Any] = {name: bodies.text_of(form, name) for name in ("model", "options", "score")}
    try:
        if given["options"] is not None:
            given["options"] = _OPTIONS.validate_json(given["options"])
    except ValidationError as error:
        raise Refusal(422, validation_error(error, "options")) from error
    given = {name: value for name, value in given.items() if value is not None}
    return data, Base64Request.model_validate({"image": "", **given})


def router(service: Service) -> APIRouter:
    routes = APIRouter(tags=["panoptic"])

    @routes.post(
        "/v1/panoptic", response_model=PanopticAnswer, responses={**ANSWERS, **refusals(*OF_PHOTOS)}, openapi_extra=BODY
    )
    async def panoptic(request: Request, as_: Annotated[As, Query(alias="as")] = "coco") -> Response:
        """Predict a photo, sent as a form or in base64.

        as: coco, the JSON with the PNG in base64; png, the PNG alone; geojson, polygons in pixels. A model without
        panoptic maps is answered with its objects, the smaller ones on top, or with a region for each class.
        """
        data, asked = await photo_request(request)
        served = service.model(asked.model)
        photo, found = await service.predict(served, data, asked.options)

        def encoded() -> bytes:
            whole = as_panoptic(found, photo, served.predictor.labels, asked.score)
            if as_ == "geojson":
                return geojson(whole)
            if as_ == "png":
                return png(whole.to_coco_panoptic()[1])
            return coco_answer(whole, served.name).model_dump_json(exclude_none=True).encode()

        return Response(await service.helped(encoded), media_type=KINDS[as_])

    return routes
