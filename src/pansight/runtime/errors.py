"""The one error of this part, a line for people: where, what was expected, what was found, and a way on."""

from __future__ import annotations


class RuntimeFault(Exception):
    """Bad input, said in one line, as `PansightError` says it, which this part, shipped alone, does not have.

    where: a file, or what was asked for. expected, found: what should be there, and what is. hint: a way on.
    """

    def __init__(self, where: object, expected: str, found: str, hint: str = ""):
        self.where, self.expected, self.found, self.hint = f"{where}", expected, found, hint
        line = f"{where}: expected {expected}, found {found}" + (f"; {hint}" if hint else "")
        super().__init__(" ".join(line.split()))

    def __reduce__(self) -> tuple[type[RuntimeFault], tuple[str, str, str, str]]:
        return type(self), (self.where, self.expected, self.found, self.hint)
