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
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from stagecoach.contract.launch import SecretRef
from stagecoach.contract.records import did_you_mean, rule_of
from stagecoach.errors import ConfigError
from stagecoach.redaction import HIDDEN

PREFIX = "STAGECOACH_SITE_"
MAX_FILE_BYTES = 1_000_000
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_LOGIN = re.compile(r"://[^/]*:[^/]*@")  # an address with a password in it
_SECRET_NAME = re.compile(r"(SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|PRIVATE_KEY|ACCESS_KEY)", re.IGNORECASE)


class Images(BaseModel):
    """Container images by role."""

    model_config = ConfigDict(extra="forbid", strict=True)

    control: str | None = None
    training: str | None = None


class Pods(BaseModel):
    """What this cluster's pods need, in the words of the `jobset` scheduler's options (`torchx runopts jobset`)."""

    model_config = ConfigDict(extra="forbid", strict=True)

    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    topology: str | None = None  # "required:LEVEL", "preferred:LEVEL" or "unconstrained"
    retries: int | None = Field(default=None, ge=0)
    run_as_user: int = Field(default=1000, gt=0)
    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: list[str] = Field(default_factory=list)  # "key:Effect" or "key:value:Effect"
    volumes: list[str] = Field(default_factory=list)  # "claim:/path" or "claim:/path:ro"
    devices: dict[str, str] = Field(default_factory=dict)  # per node, like {"rdma/hca_shared_devices_a" = "1"}


class Site(BaseSettings):
    """One cluster's or one machine's settings. Every field has a default that serves the embedded, local use."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True)

    mode: Literal["development", "production"] = "development"
    root: str | None = None  # where runs are kept; None: `file://` under the user's state folder
    launcher: str = "local"  # where jobs run unless a command or a flow says otherwise
    namespace: str = "default"
    queue: str | None = None
    priority_classes: dict[str, str] = Field(default_factory=dict)  # pipeline stage or "default" -> WorkloadPriorityClass
    images: Images = Images()
    service_account: str | None = None
    pods: Pods = Pods()
    environment: dict[str, str] = Field(default_factory=dict)
    secrets: tuple[SecretRef, ...] = ()
    pods_apart: bool = False  # a network policy with every job, beside the namespace's own (the chart's networkPolicies.jobsApart)
    grace_s: int = Field(default=30, gt=0, le=86_400)  # between SIGTERM and SIGKILL
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

    def pod_settings(self) -> dict[str, Any]:
        """What a cluster launcher's scheduler is told of this site, as its options."""
        account = {"service_account": self.service_account} if self.service_account else {}
        return {"namespace": self.namespace, **account, **self.pods.model_dump(exclude_none=True)}


def load_site(path: str | None = None) -> Site:
    """The site of `path`, or of STAGECOACH_SITE, or the defaults. Raises ConfigError that names the file and the setting."""
    path = path or os.environ.get("STAGECOACH_SITE")
    where = path or "the environment (STAGECOACH_SITE_*)"
    values = read_site_file(Path(path)) if path else {}
    check_environment()
    try:
        site = Site(**values)
    except ValidationError as invalid:
        raise ConfigError(f"site settings of {where}: " + "; ".join(_say(item) for item in invalid.errors(include_url=False))) from None
    except SettingsError as error:  # a variable that should hold a list or a table
        raise ConfigError(f"site settings of the environment ({PREFIX}*): {error}; write JSON, or one variable per value") from None
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
        loaded: dict[str, Any] = _fill(tomllib.loads(body.decode("utf-8")), path)
        return loaded
    except UnicodeDecodeError as error:
        raise ConfigError(f"site file {path} is not UTF-8 at byte {error.start}; save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"site file {path} is not TOML: {error}") from None
    except RecursionError:
        raise ConfigError(f"site file {path} is nested too deeply; no setting is like that") from None


def check_environment() -> None:
    """Raises ConfigError for a variable that looks like a setting and is none: a typing error would otherwise change nothing."""
    for variable in os.environ:
        name = variable.removeprefix(PREFIX).partition("__")[0].lower()
        if variable.startswith(PREFIX) and name not in Site.model_fields:
            raise ConfigError(f"{variable}: unknown key `{name}` of the site{did_you_mean(name, sorted(Site.model_fields))}")


def check_site(site: Site, where: str) -> None:
    """Rules across settings. Raises ConfigError."""
    for name, value in site.environment.items():
        if (_SECRET_NAME.search(name) and value) or _LOGIN.search(value):
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


def _fill(value: Any, path: Path) -> Any:
    """Every text with `${NAME}` replaced; done after parsing, so that a variable can hold anything and is never read as TOML."""
    if isinstance(value, dict):
        return {key: _fill(inner, path) for key, inner in value.items()}
    if isinstance(value, list):
        return [_fill(inner, path) for inner in value]

    def value_of(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in os.environ:
            raise ConfigError(f"site file {path} uses ${{{name}}}, which is not set in the environment; export {name} or write the value")
        return os.environ[name]

    return _VARIABLE.sub(value_of, value) if isinstance(value, str) else value


def _say(item: Any) -> str:
    """One wrong setting. What stands under a secret's name, or among references to secrets, may be the secret itself: never shown."""
    parts = [str(part) for part in item["loc"]]
    path = ".".join(parts)
    if item["type"] == "extra_forbidden":
        nested: dict[str, type[BaseModel]] = {"images": Images, "pods": Pods}
        known = nested.get(parts[0] if len(parts) > 1 else "", Site).model_fields
        return f"unknown key `{path}`{did_you_mean(parts[-1], sorted(known))}"
    is_secret = parts[0] == "secrets" or any(_SECRET_NAME.search(part) for part in parts)
    return f"`{path}` = {HIDDEN if is_secret else repr(item['input'])}: {rule_of(item)}"


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
    """Where runs are kept: `--root` (a path typed at a keyboard is a folder), else the site's, else a folder of the user's state.
    Raises ConfigError."""
    from stagecoach.storage.uris import as_uri

    if given is not None:
        check_root(given, "--root")
        return given if ":" in given else as_uri(given)
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
