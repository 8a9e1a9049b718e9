"""The command serve. What it needs is loaded when it runs."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

from pansight.apps.serving.settings import ServeSettings


def register(app: App) -> None:
    """Add the command to the command line."""
    app.command(
        serve,
        help_epilogue="Examples: pansight serve runs/demo; pansight serve scenes=runs/scenes cells=runs/cells "
        "--port 9000; PANSIGHT_TOKEN=… pansight serve runs/demo --host 0.0.0.0",
    )


def serve(*models: str, settings: Annotated[ServeSettings | None, Parameter(name="*")] = None) -> None:
    """Serve models over HTTP: a web page, REST with batches and limits, Hugging Face's and Label Studio's interfaces.

    SIGTERM or Ctrl-C stops it; requests that were taken are answered before the end.

    Parameters
    ----------
    models
        WEIGHTS or NAME=WEIGHTS of each: a run folder, a saved model, a hub id or a checkpoint file.
    """
    from pansight.apps.serving import running

    running.serve(models, settings)
