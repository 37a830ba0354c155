"""Site settings: what belongs to a cluster or a machine, never to a plan (architecture.md section 3).

Read from a TOML file named by STAGECOACH_SITE (a ConfigMap from Helm), overridden by environment variables `STAGECOACH_SITE_<NAME>`
(nested with `__`: STAGECOACH_SITE_IMAGES__TRAINING). Secrets appear only as references to a cluster secret.
"""

import os
import re
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from stagecoach.contract.launch import SecretRef
from stagecoach.contract.records import did_you_mean
from stagecoach.errors import ConfigError

MAX_FILE_BYTES = 1_000_000
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_SECRET_NAME = re.compile(r"(SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|PRIVATE_KEY|ACCESS_KEY)", re.IGNORECASE)


class Images(BaseModel):
    """Container images by role."""

    model_config = ConfigDict(extra="forbid", strict=True)

    control: str | None = None
    training: str | None = None


class Site(BaseSettings):
    """One cluster's or one machine's settings. Every field has a default that serves the embedded, local use."""

    model_config = SettingsConfigDict(env_prefix="STAGECOACH_SITE_", env_nested_delimiter="__", extra="forbid", frozen=True)

    mode: Literal["development", "production"] = "development"
    root: str | None = None  # where runs are kept; None: `file://` under the user's state folder
    namespace: str = "default"
    queue: str | None = None
    priority_classes: dict[str, str] = Field(default_factory=dict)  # pipeline stage or "default" -> WorkloadPriorityClass
    images: Images = Images()
    service_account: str | None = None
    environment: dict[str, str] = Field(default_factory=dict)
    secrets: tuple[SecretRef, ...] = ()
    grace_s: int = Field(default=30, gt=0)  # between SIGTERM and SIGKILL
    prefect_api_url: str | None = None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment wins over the file, which comes in as the initial values."""
        return (env_settings, init_settings)


def load_site(path: str | None = None) -> Site:
    """The site of `path`, or of STAGECOACH_SITE, or the defaults. Raises ConfigError that names the file and the setting."""
    path = path or os.environ.get("STAGECOACH_SITE")
    where = path or "the environment (STAGECOACH_SITE_*)"
    values = read_site_file(Path(path)) if path else {}
    try:
        site = Site(**values)
    except ValidationError as invalid:
        raise ConfigError(f"site settings of {where}: " + "; ".join(_say(item) for item in invalid.errors(include_url=False))) from None
    check_site(site, where)
    return site


def read_site_file(path: Path) -> dict[str, Any]:
    """The file's values with `${NAME}` filled from the environment. Raises ConfigError with line and column where it is not TOML."""
    try:
        body = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"site file {path} (STAGECOACH_SITE): {error.strerror}; name a readable TOML file") from None
    if len(body) > MAX_FILE_BYTES:
        raise ConfigError(f"site file {path} has {len(body)} bytes; at most {MAX_FILE_BYTES}: this is not a settings file")
    try:
        text = body.decode("utf-8")
        return tomllib.loads(_fill(text, path))
    except UnicodeDecodeError as error:
        raise ConfigError(f"site file {path} is not UTF-8 at byte {error.start}; save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"site file {path} is not TOML: {error}") from None


def check_site(site: Site, where: str) -> None:
    """Rules across settings. Raises ConfigError."""
    for name, value in site.environment.items():
        if _SECRET_NAME.search(name) and value:
            raise ConfigError(
                f"site settings of {where}: `environment.{name}` holds a secret in the clear; "
                f"put it into a cluster secret and refer to it: [[secrets]] variable = {name!r}, secret = ..., key = ..."
            )
    if site.mode == "production":
        for role, image in (("control", site.images.control), ("training", site.images.training)):
            if image is not None and not re.search(r"@sha256:[0-9a-f]{64}$", image):
                raise ConfigError(
                    f"site settings of {where}: `images.{role}` = {image!r} may change under a run; "
                    "in production name it by digest (name@sha256:...), or set mode = 'development'"
                )


def _fill(text: str, path: Path) -> str:
    def value_of(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in os.environ:
            raise ConfigError(f"site file {path} uses ${{{name}}}, which is not set in the environment; export {name} or write the value")
        return os.environ[name]

    return _VARIABLE.sub(value_of, text)


def _say(item: Any) -> str:
    path = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return f"unknown key `{path}`{did_you_mean(str(item['loc'][-1]), sorted(Site.model_fields))}"
    return f"`{path}` = {item['input']!r}: {item['msg']}"


def state_folder() -> Path:
    """This user's folder for what must outlive a command on this machine: STAGECOACH_STATE_DIR, else XDG's state folder.

    An absolute path without '..'. Raises ConfigError for a user without a home (a container that runs as any number).
    """
    home = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    try:
        folder = Path(os.environ.get("STAGECOACH_STATE_DIR") or f"{home}/stagecoach").expanduser()
    except RuntimeError:
        raise ConfigError(
            f"user {os.getuid()} has no home folder to keep runs in; set STAGECOACH_STATE_DIR to a folder that may be written"
        ) from None
    return Path(os.path.abspath(folder))


def root_uri(given: str | None) -> str:
    """Where runs are kept: `--root`, else the site's, else `file://` under the user's state folder. Raises ConfigError."""
    if given is not None:
        return check_root(given, "--root")
    if root := load_site().root:
        return check_root(root, "root of the site")
    return f"file://{state_folder()}/root"


def check_root(uri: str, where: str) -> str:
    """Raises ConfigError where nobody but this process could read what is written."""
    if not uri.strip():
        raise ConfigError(f"{where} is empty; write file:///folder or s3://bucket/prefix, or leave it away")
    if uri.lower().startswith("memory:"):
        raise ConfigError(f"{where} {uri!r}: lives in one process's memory, which no job can see; use file:///folder or s3://bucket/prefix")
    return uri
