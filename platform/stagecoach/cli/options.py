"""Types of options that several commands have."""

import math
from typing import Any

import click


def site_launcher() -> str:
    """Default of `--launcher`. Raises ConfigError for a site file that cannot be read."""
    from stagecoach.site import load_site

    return load_site().launcher


class Seconds(click.FloatRange):
    """A finite number. click's own range lets nan through, and nothing is ever later than nan."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        seconds: float = super().convert(value, param, ctx)
        if not math.isfinite(seconds):
            self.fail(f"{value} is not a finite number of seconds.", param, ctx)
        return seconds


class Address(click.ParamType[str]):
    """A URI. A path typed at a keyboard is a file."""

    name = "URI"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from stagecoach.errors import StagecoachError
        from stagecoach.storage import as_uri

        try:
            return as_uri(value)
        except StagecoachError as error:
            self.fail(str(error), param, ctx)
