"""The flags of ``pansight predict`` that say how fast; they change predictions by rounding at most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class PaceSettings:
    """Speed of `pansight predict`."""

    speed: Literal["exact", "fast"] = "exact"
    """exact: as the model was measured; fast: precision, memory format and compilation by a trial on this machine."""
    batch_size: int = 1
    """Photos of equal size that are predicted at once."""

    def given(self) -> dict[str, bool]:
        """Whether each flag says anything."""
        return {"--speed": self.speed != "exact", "--batch-size": self.batch_size != 1}
