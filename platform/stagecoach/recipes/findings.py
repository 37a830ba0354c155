"""What a check of one stage finds."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Finding:
    """`path` is below the stage."""

    severity: Literal["error", "warning"]
    path: str
    says: str
    do: str
