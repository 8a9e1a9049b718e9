"""The commands about data: convert, check, split. What a command needs is loaded when it runs."""

from __future__ import annotations

from cyclopts import App


def register(app: App) -> None:
    """Add the commands to the command line."""
