"""The application of ASGI: the routes over a `Service`, behind the guard."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI

from pansight.apps.serving.http.guard import Guard
from pansight.apps.serving.http.problems import add_handlers
from pansight.apps.serving.routes import huggingface, label_studio, operations, page, panoptic
from pansight.apps.serving.settings import ServeSettings
from pansight.apps.serving.work.measures import Measures
from pansight.apps.serving.work.service import Service
from pansight.engine.predict import Predictor


def create_app(predictors: Mapping[str, Predictor], settings: ServeSettings, token: str = "") -> FastAPI:
    """An application whose threads end with its lifespan. predictors: by name, the first one the default.

    token: that requests must bring; "": none.
    """
    settings = settings.checked()
    measures = Measures()
    service = Service(predictors, settings, measures)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(
        title="pansight",
        version=version("pansight"),
        description="Panoptic segmentation of photos.",
        lifespan=lifespan,
        docs_url=None,  # these pages load scripts of other sites
        redoc_url=None,
        redirect_slashes=False,
    )
    add_handlers(app)
    for part in (operations, page, panoptic, huggingface, label_studio):
        app.include_router(part.router(service))
    app.add_middleware(Guard, settings=settings, token=token, measures=measures)
    return app
