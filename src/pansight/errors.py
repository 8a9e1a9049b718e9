"""The one error a user is meant to see, a line for people and its parts for programs; and the interruption of a job."""

from __future__ import annotations

import difflib
import signal
import unicodedata
from functools import partial
from typing import Any, Literal, Self

Code = Literal[
    "unexpected",  # a file, setting or value that is not as expected; the default
    "missing_file",  # a file or folder that is named and does not exist
    "wrong_format",  # a whole file, but of another kind than the one that is read
    "unknown_choice",  # a name that is none of the known ones
    "unlisted_category",  # a segment whose category the file or the label space does not list
    "cannot_read",  # the system refuses to read: no permission, a broken disk
    "cannot_write",  # the system refuses to write: no permission, a full disk
    "offline_weights",  # pretrained weights that would have to be downloaded and cannot be
    "out_of_memory",  # a single image does not fit
]
"""The kind of an error, in a word that stays while the sentences are improved."""

LONGEST, LONGEST_HINT = 500, 1500
"""Letters of a part of an error that are shown; a hint may list all names that exist."""


def shown(text: object, longest: int = LONGEST) -> str:
    """`text` as it may stand in a line on a terminal, whoever wrote it; names in files can hold anything.

    Line breaks, colours and other control characters, and marks that turn the direction of writing are escaped as in
    Python ("\\n", "\\x1b", "\\u202e"). Of a text of more than `longest` letters the middle is left out.
    """
    line = _cut(f"{text}", longest)
    if line.isprintable():
        return line
    return _cut("".join(letter if _is_plain(letter) else _escaped(letter) for letter in line), longest)


def _cut(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    head, tail = 2 * longest // 3, longest // 3
    return f"{text[:head]} … {len(text) - head - tail} letters … {text[-tail:]}"


def _is_plain(letter: str) -> bool:
    return letter.isprintable() or unicodedata.category(letter) == "Zs"  # blanks of other scripts


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")


class PansightError(Exception):
    """Bad input, said in one line: what, where, expected, found.

        PansightError(where=path, expected="JSON", found="TOML")  # a.json: expected JSON, found TOML
        PansightError("cannot be read", where=path, reason="no permission")  # a.json: cannot be read: no permission

    where: a file, an option, or a place in one. expected, found: what should be there, and what is. message: says it
    instead of these two where the matter has another shape. reason: what the system or another library says; it may
    stand for `found`. hint: a way on, or what was done. code: the kind of error, for whoever has to decide by it.

    `str` gives the line, in letters that any terminal shows and no longer than one can read (`shown`). Every part is
    kept as a text of its name ("" where it is not given), also in an error that was pickled on its way from another
    process. Whoever handles an error reads the parts and never searches the line.
    The command line prints the line without a traceback and exits with code 2; Python callers catch this type.
    """

    def __init__(
        self,
        message: str = "",
        *,
        where: object = "",
        expected: object = "",
        found: object = "",
        reason: object = "",
        hint: object = "",
        code: Code = "unexpected",
    ):
        self.message, self.where, self.expected, self.found = message, f"{where}", f"{expected}", f"{found}"
        self.reason, self.hint, self.code = f"{reason}", f"{hint}", code
        super().__init__(f"{shown(self.where)}: {self.what}" if self.where else self.what)

    @property
    def what(self) -> str:
        """The line without its place."""
        found = "found" if self.reason and not self.found else f"found {shown(self.found)}"
        text = shown(self.message) if self.message else f"expected {shown(self.expected)}, {found}"
        reason = f": {shown(self.reason)}" if self.reason else ""
        return text + reason + (f"; {shown(self.hint, LONGEST_HINT)}" if self.hint else "")

    def at(self, where: object) -> Self:
        """The same error, told by a wider place: ``"image 7"`` before ``"segment 3"`` is ``"image 7: segment 3"``."""
        return self._with(where=f"{where}: {self.where}" if self.where else where)

    def renamed(self, old: object, new: object) -> Self:
        """The same error with another name for a file or folder, in every part."""
        texts = ("message", "where", "expected", "found", "reason", "hint")
        return self._with(**{name: getattr(self, name).replace(f"{old}", f"{new}") for name in texts})

    def _with(self, **parts: Any) -> Self:
        return type(self)(**self._parts() | parts)

    def _parts(self) -> dict[str, Any]:
        names = ("message", "where", "expected", "found", "reason", "hint", "code")
        return {name: getattr(self, name) for name in names}

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), **self._parts()), ()


def choice_error(kind: str, name: str, known: object) -> PansightError:
    """An unknown name, answered with the nearest and all that exist: ``choice_error("model", "yolo", MODELS)``."""
    names = sorted(str(k) for k in known)  # type: ignore[attr-defined]
    close = [word for word in names if word.startswith(name)] if len(name) > 2 else []
    close = difflib.get_close_matches(name[:100], names, 1, 0.7) or close
    hint = f"known: {', '.join(names)}" + (f"; did you mean {close[0]!r}?" if close else "")
    return PansightError(f"unknown {kind} {name!r}", hint=hint, code="unknown_choice")


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM has stopped a job; the text says what is kept and how to go on.

    number: of the signal; the command line exits with 128 + number, as shells expect: 130 and 143. at_once: whether it
    was the second one, after which nothing more is saved.
    """

    def __init__(self, message: str = "interrupted", number: int = signal.SIGINT, at_once: bool = False):
        super().__init__(message)
        self.number, self.at_once = int(number), at_once


def interrupted(error: KeyboardInterrupt, message: str) -> Interrupted:
    """The interruption `error`, Python's own or ours, with another text."""
    if isinstance(error, Interrupted):
        return Interrupted(message, error.number, error.at_once)
    return Interrupted(message)
