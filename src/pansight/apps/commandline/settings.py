"""The settings of a run as flags of a command, and which of them stand on the command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

import cyclopts
from cyclopts import App, Parameter

from pansight.config import Config, DataConfig, EvaluateConfig

INNER = ":"
"""Stands for the last dot of ``--model.options.TABLE.NAME`` while that is parsed: the parser knows no inner tables."""


@dataclass(frozen=True)
class EvaluationSettings:
    """The settings of an evaluation."""

    data: DataConfig = field(default_factory=DataConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)


Settings = Annotated[Config | None, Parameter(name="*", group="Settings")]
EvaluateSettings = Annotated[EvaluationSettings | None, Parameter(name="*", group="Settings")]

given_settings: dict[str, Any] = {}
"""The settings that stand on the command line, by dotted key: filled while it is parsed."""


def remember(app: App, commands: tuple[str, ...], arguments: Any) -> None:
    """Note what was given: afterwards a value that was given and a default look alike."""
    given_settings.clear()
    for argument in arguments:
        name = argument.name.removeprefix("--").replace("-", "_")
        if "." not in name:
            continue
        values: list[Any] = []
        for token in argument.tokens:
            value = token.value if token.implicit_value is cyclopts.UNSET else token.implicit_value
            if token.keys:
                keys = (key.replace("-", "_").replace(INNER, ".") for key in token.keys)
                given_settings[".".join([name, *keys])] = value
            else:
                values.append(value)
        if values:
            given_settings[name] = values if len(values) > 1 else values[0]
