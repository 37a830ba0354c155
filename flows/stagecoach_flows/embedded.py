"""Prefect inside of `stagecoach run`: a temporary server of its own unless PREFECT_API_URL names one. Called before Prefect is imported."""

import logging
import os
from pathlib import Path

from stagecoach.site import Site, state_folder

START_S = 180  # a first start makes a database, and the machine may be busy; what is too slow is done without Prefect
QUIET = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_LOGGING_LEVEL": "CRITICAL",  # our own lines tell; Prefect would print a traceback for every error that has a sentence
    "PREFECT_LOGGING_TO_API_ENABLED": "false",
    "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",
    "PREFECT_CLI_PROMPT": "false",
}
EMBEDDED = {
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": str(START_S),
    "PREFECT_CLIENT_MAX_RETRIES": "2",  # the server is our child: when it is gone, it does not come back
    "PREFECT_CLIENT_ENABLE_METRICS": "false",
}


def prepare_prefect(site: Site, *, state: Path | None = None) -> bool:
    """Sets the environment that Prefect reads when it is imported. True when the server is embedded. What the user has set stands."""
    if site.prefect_api_url is not None:
        os.environ.setdefault("PREFECT_API_URL", site.prefect_api_url)
    is_embedded = not os.environ.get("PREFECT_API_URL")
    for name, value in (QUIET | EMBEDDED if is_embedded else QUIET).items():
        os.environ.setdefault(name, value)
    if is_embedded:
        home = (state or state_folder()) / "prefect"
        home.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("PREFECT_HOME", str(home))
    for noisy in ("httpx", "websockets", "prefect"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    return is_embedded
