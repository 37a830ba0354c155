"""Types of options that several commands have."""

import math
from typing import Any

import click


class Seconds(click.FloatRange):
    """A finite number. click's own range lets nan through, and nothing is ever later than nan."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        seconds: float = super().convert(value, param, ctx)
        if not math.isfinite(seconds):
            self.fail(f"{value} is not a finite number of seconds.", param, ctx)
        return seconds
