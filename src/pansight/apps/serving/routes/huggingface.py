"""The task image-segmentation of Hugging Face: what ``huggingface_hub.InferenceClient(address)`` calls.

The first model answers at the address itself, every model at /models/NAME.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request

from pansight.apps.serving.answers import hugging_face_options, hugging_face_part, labelled_masks
from pansight.apps.serving.http import bodies
from pansight.apps.serving.http.problems import OF_PHOTOS, refusals
from pansight.apps.serving.http.schemas import LabelledMask, SegmentationParameters, SegmentationRequest
from pansight.apps.serving.work.service import Service
from pansight.interop.photo import PhotoPrediction

BODY = bodies.body_schema(
    ("application/json", SegmentationRequest),
    ("image/*", {"type": "string", "format": "binary"}),
    ("application/octet-stream", {"type": "string", "format": "binary"}),
)


async def segmentation_request(request: Request) -> tuple[bytes, SegmentationParameters]:
    """The bytes of the photo and the parameters: of JSON, or of a body that is the file itself."""
    kind = bodies.kind_of(request)
    if kind.startswith("image/") or kind == "application/octet-stream":
        return await request.body(), SegmentationParameters()
    body = await request.body()
    if not kind and not body.lstrip().startswith(b"{"):  # raw bytes without a type
        return body, SegmentationParameters()
    asked = await bodies.read_json(request, SegmentationRequest)
    return bodies.from_base64(asked.inputs, "inputs"), asked.parameters or SegmentationParameters()


def router(service: Service) -> APIRouter:
    routes = APIRouter(tags=["Hugging Face"])

    async def answered(request: Request, name: str | None) -> list[dict[str, Any]]:
        served = service.model(name)
        data, parameters = await segmentation_request(request)
        options = hugging_face_options(served.predictor.name, parameters)
        photo, found = await service.predict(served, data, options)
        labels = served.predictor.labels

        def encoded() -> list[dict[str, Any]]:
            part = hugging_face_part(found, parameters.subtask)
            whole = PhotoPrediction(part.panoptic, part.semantic, part.instances, photo=photo, labels=labels)
            return labelled_masks(whole, parameters.threshold)

        return await service.helped(encoded)

    told: dict[str, Any] = {
        "response_model": list[LabelledMask],
        "responses": refusals(*OF_PHOTOS),
        "openapi_extra": BODY,
    }

    @routes.post("/", **told)
    async def segment(request: Request) -> list[dict[str, Any]]:
        """Segments of a photo, by the first model, as the task image-segmentation has them."""
        return await answered(request, None)

    @routes.post("/models/{name}", **told)
    async def segment_by(name: Annotated[str, Path(max_length=64)], request: Request) -> list[dict[str, Any]]:
        """Segments of a photo, by the model of this name, as the task image-segmentation has them."""
        return await answered(request, name)

    return routes
