"""PansightError, the one exception that is meant for users."""


class PansightError(Exception):
    """Bad input, said in one line: what, where, expected, found.

    The command line prints the message without a traceback and exits with code 2; Python callers catch this type.
    """


def choice_error(kind: str, name: str, known: object) -> PansightError:
    """An unknown name, answered with the names that exist: ``choice_error("model", "yolo", MODELS)``."""
    names = ", ".join(sorted(str(k) for k in known))  # type: ignore[attr-defined]
    return PansightError(f"unknown {kind} {name!r}; known: {names}")
