"""Types of options that several commands have."""

import math
import re
from pathlib import Path
from typing import Any

import click


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

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not str(value).strip() or "\0" in value:
            self.fail(f"{value!r} is no address; give a folder, or a URI like s3://bucket/folder (. is the current folder).", param, ctx)
        return str(value).rstrip("/") if _SCHEME.match(value) else Path(value).resolve().as_uri()


_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")  # two letters at least; ./a:b is a file of that name
