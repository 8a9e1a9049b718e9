"""A machine learning backend of Label Studio: /predict, /setup, /health and /webhook.

A task names its photo by a path or an address, neither of which is opened: the photo is in the task itself (data:…), or
it is looked up among the files of the one folder that the server was given (`--images`).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from xml.parsers import expat

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from pansight.apps.serving.http import bodies
from pansight.apps.serving.http.problems import OF_PHOTOS, refusal, refusals
from pansight.apps.serving.work.service import Service
from pansight.data.paths import find_tail
from pansight.errors import PansightError
from pansight.interop.photo import PhotoPrediction

LONGEST_NAME = 4096
MOST_TASKS = 1000
ACTIONS = ("ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATION_DELETED", "START_TRAINING")


class Task(BaseModel):
    """A photo to be labelled. data: by the keys of the labelling configuration."""

    id: int | str | None = None
    data: dict[str, Any]


class PredictRequest(BaseModel):
    """What Label Studio asks."""

    tasks: list[Task] = Field(max_length=MOST_TASKS)
    label_config: str | None = None
    project: str | int | None = None


class LabelStudioPrediction(BaseModel):
    """The regions of a task."""

    result: list[dict[str, Any]]
    score: float = Field(description="The mean of the regions' scores.")
    model_version: str


class PredictAnswer(BaseModel):
    """One prediction for each task, in their order."""

    results: list[LabelStudioPrediction]


class SetupRequest(BaseModel):
    """What Label Studio sends when a project is connected. label_config, also called schema."""

    project: str | int | None = None
    schema_: str | None = Field(None, alias="schema")


class SetupAnswer(BaseModel):
    """What was set up."""

    model_version: str


class Up(BaseModel):
    """Whether the backend is alive."""

    status: Literal["UP"]
    model_class: str


class Event(BaseModel):
    """What happened in a project."""

    action: str


class EventAnswer(BaseModel):
    """That it was heard."""

    action: str


@dataclass
class Labelling:
    """What a labelling configuration says of masks. key: of the photo in a task's data. names: of its labels."""

    kind: Literal["brushlabels", "polygonlabels"] = "brushlabels"
    from_name: str = "tag"
    to_name: str = "image"
    key: str = "image"
    names: set[str] = field(default_factory=set[str])


def read_labelling(text: str) -> Labelling:
    """Raises PansightError for what is no XML without a DTD, and where it has no tag for masks or polygons."""
    tags: list[tuple[str, dict[str, str]]] = []
    labels: dict[str, set[str]] = {}  # by the name of the tag that they are in
    inside: list[str] = []

    def start(tag: str, attributes: dict[str, str]) -> None:
        if tag in ("BrushLabels", "PolygonLabels", "Image"):
            tags.append((tag, attributes))
        if tag == "Label" and inside:
            labels.setdefault(inside[-1], set()).add(attributes.get("value", ""))
        if tag.endswith("Labels"):
            inside.append(attributes.get("name", ""))

    def end(tag: str) -> None:
        if tag.endswith("Labels"):
            inside.pop()

    def refuse(name: str, *_: object) -> None:
        raise PansightError(where="label_config", expected="XML without a DTD", found=f"<!DOCTYPE {name:.40}>")

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler, parser.StartDoctypeDeclHandler = start, end, refuse
    try:
        parser.Parse(text, True)
    except (expat.ExpatError, ValueError) as error:
        raise PansightError(where="label_config", expected="XML", reason=error) from error
    ours = [(tag, attributes) for tag, attributes in tags if tag != "Image"]
    if not ours:
        raise PansightError(where="label_config", expected="a tag BrushLabels or PolygonLabels", found="none")
    tag, attributes = ours[0]
    name, to_name = attributes.get("name", "tag"), attributes.get("toName", "image")
    image = next((each for kind, each in tags if kind == "Image" and each.get("name") == to_name), {})
    key = image.get("value", "$image").removeprefix("$")
    kind = "brushlabels" if tag == "BrushLabels" else "polygonlabels"
    return Labelling(kind, name, to_name, key, labels.get(name, set()))


def photo_bytes(text: object, folder: Path | None, where: str) -> bytes:
    """The file that a task means: in the task itself, or the one of that name in the folder.

    Raises PansightError or `Refusal` where there is none; what is asked for is never opened by its name.
    """
    if not isinstance(text, str) or (len(text) > LONGEST_NAME and not text.startswith("data:")):
        raise PansightError(where=where, expected="the photo's name", found=type(text).__name__)
    if text.startswith("data:"):
        return bodies.from_base64(text, where)
    if folder is None:
        hint = "start the server with --images FOLDER, or send photos as data:image/…;base64,…"
        raise PansightError(where=where, expected="a photo in the task", found=text, hint=hint)
    path = find_tail([folder], text)
    if path is None or not path.is_file() or not path.resolve().is_relative_to(folder.resolve()):
        raise PansightError(where=where, expected="a file of the folder of --images", found=text, code="missing_file")
    return path.read_bytes()


async def regions(service: Service, task: Task, labelling: Labelling, where: str) -> dict[str, Any]:
    """What the first model finds in the photo of a task. Raises PansightError or `Refusal`, beginning with `where`."""
    served = service.model(None)
    name, most = task.data.get(labelling.key), service.settings.max_bytes
    data = await service.helped(photo_bytes, name, service.settings.images, where)
    if len(data) > most:
        raise refusal(413, where, f"a file of at most {most} bytes", len(data))
    photo, found = await service.predict(served, data, {}, where)

    def encoded() -> dict[str, Any]:
        labels = served.predictor.labels
        whole = PhotoPrediction(found.panoptic, found.semantic, found.instances, photo=photo, labels=labels)
        polygons = labelling.kind == "polygonlabels"
        result = whole.to_label_studio(labelling.from_name, labelling.to_name, as_polygons=polygons)
        known = labelling.names
        result = [each for each in result if not known or each["value"][labelling.kind][0] in known]
        scores = [each["score"] for each in result]
        score = sum(scores) / len(scores) if scores else 0.0
        return {"result": result, "score": score, "model_version": served.name}

    return await service.helped(encoded)


def router(service: Service) -> APIRouter:
    routes = APIRouter(tags=["Label Studio"])

    @routes.post(
        "/predict",
        response_model=PredictAnswer,
        responses=refusals(*OF_PHOTOS),
        openapi_extra=bodies.body_schema(("application/json", PredictRequest)),
    )
    async def predict(request: Request) -> dict[str, Any]:
        """Regions for each task: masks or polygons, as the labelling configuration asks for, of labels that it has."""
        asked = await bodies.read_json(request, PredictRequest)
        labelling = read_labelling(asked.label_config) if asked.label_config else Labelling()
        try:
            async with asyncio.TaskGroup() as group:
                found = [
                    group.create_task(regions(service, task, labelling, f"tasks.{n}.data.{labelling.key}"))
                    for n, task in enumerate(asked.tasks)
                ]
        except ExceptionGroup as failed:  # the others were stopped
            raise failed.exceptions[0] from None
        return {"results": [each.result() for each in found]}

    @routes.post(
        "/setup",
        response_model=SetupAnswer,
        responses=refusals(*OF_PHOTOS),
        openapi_extra=bodies.body_schema(("application/json", SetupRequest)),
    )
    async def setup(request: Request) -> dict[str, Any]:
        """Whether the labelling configuration of a project can be used."""
        asked = await bodies.read_json(request, SetupRequest)
        if asked.schema_:
            read_labelling(asked.schema_)
        return {"model_version": service.model(None).name}

    @routes.get("/health", response_model=Up, responses=refusals())
    async def health() -> dict[str, Any]:
        """Whether the backend is alive."""
        return {"status": "UP", "model_class": service.model(None).predictor.name}

    @routes.post(
        "/webhook",
        status_code=201,
        response_model=EventAnswer,
        responses=refusals(*OF_PHOTOS),
        openapi_extra=bodies.body_schema(("application/json", Event)),
    )
    async def webhook(request: Request) -> dict[str, Any]:
        """Hear of an event; /metrics counts them, and a program that trains can watch that."""
        asked = await bodies.read_json(request, Event)
        action = asked.action if asked.action in ACTIONS else "other"
        service.measures.events.labels(action).inc()
        return {"action": action}

    return routes
