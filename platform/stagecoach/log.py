"""The one loguru sink: readable on a terminal, JSON lines in jobs, secrets redacted. It writes to stderr; stdout is for results."""

import json
import os
import sys
import traceback
from typing import TYPE_CHECKING, Any

from loguru import logger

from stagecoach.errors import ConfigError
from stagecoach.redaction import hide_environment, redact

if TYPE_CHECKING:
    from loguru import Message, Record

__all__ = ["configure", "logger"]

LEVELS = ("TRACE", "DEBUG", "INFO", "SUCCESS", "WARNING", "ERROR", "CRITICAL")
_READABLE = "<dim>{time:HH:mm:ss}</dim> <level>{level: <7}</level> {message}"


def configure(*, as_json: bool | None = None, level: str | None = None) -> None:
    """Makes stderr the only sink. Defaults: `as_json` from STAGECOACH_LOG=json (set in jobs), `level` from STAGECOACH_LOG_LEVEL.

    Raises ConfigError for a level that does not exist.
    """
    if as_json is None:
        as_json = os.environ.get("STAGECOACH_LOG") == "json"
    level = (level or os.environ.get("STAGECOACH_LOG_LEVEL") or "INFO").upper()
    if level not in LEVELS:
        raise ConfigError(f"STAGECOACH_LOG_LEVEL={level!r} is no level; use one of {', '.join(LEVELS)}")
    hide_environment()
    logger.remove()
    # diagnose=False: loguru would print the values of variables in tracebacks, secrets among them.
    if as_json:
        logger.add(_write_json, level=level, format="{message}", diagnose=False, backtrace=False)
    else:
        logger.add(_write_readable, level=level, format=_READABLE, diagnose=False, backtrace=False, colorize=sys.stderr.isatty())


def _write_readable(message: "Message") -> None:
    _write(redact(str(message)))


def _write_json(message: "Message") -> None:
    _write(redact(json.dumps(as_line(message.record), ensure_ascii=False, default=str)) + "\n")


def _write(text: str) -> None:
    """A closed or full stderr must not stop a job."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (OSError, ValueError):
        pass


def as_line(record: "Record") -> dict[str, Any]:
    """One log record as the JSON object of a job's log line."""
    line: dict[str, Any] = {
        "t": record["time"].timestamp(),
        "level": record["level"].name,
        "message": record["message"],
        "where": f"{record['name']}:{record['line']}",
        **record["extra"],
    }
    if record["exception"] is not None:
        line["exception"] = "".join(traceback.format_exception(record["exception"].value))
    return line
