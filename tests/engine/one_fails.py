"""The command line with the model "toy", of which the second of two processes fails in its third step.

``torchrun … tests/engine/one_fails.py train --model toy …``
"""

from __future__ import annotations

import os
import sys

import toy

from pansight.apps.cli import main
from pansight.errors import PansightError


class Failing(toy.Toy):
    """Raises what a damaged image raises, in the third call of its loss."""

    def loss(self, batch, totals=None):
        if self.calls == 2:
            raise PansightError(where="b.png", expected="a whole PNG", found="no end chunk (truncated)")
        return super().loss(batch, totals)


if __name__ == "__main__":
    toy.register()
    if os.environ.get("RANK") == "1":
        toy.Toy = Failing
    sys.exit(main(sys.argv[1:]))
