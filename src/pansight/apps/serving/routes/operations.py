"""For whoever runs the server: whether it is alive, its figures for Prometheus, and the models that it serves."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response

from pansight.apps.serving.http.problems import refusals
from pansight.apps.serving.http.schemas import Health, Models
from pansight.apps.serving.work.service import Service, model_info

FIGURES = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "In Prometheus' format."}}


def router(service: Service) -> APIRouter:
    routes = APIRouter(tags=["operations"])

    @routes.get("/healthz", response_model=Health, responses=refusals())
    async def healthz() -> dict[str, Any]:
        """Whether the server answers, and the names of its models."""
        return {"status": "ok", "models": list(service.models)}

    @routes.get("/metrics", response_class=Response, responses={**FIGURES, **refusals()})
    async def metrics() -> Response:
        """The figures of this server."""
        return Response(service.measures.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @routes.get("/v1/models", response_model=Models, responses=refusals())
    async def models() -> dict[str, Any]:
        """The models, their classes, and the options that a request may give."""
        return {"models": [model_info(served) for served in service.models.values()]}

    return routes
