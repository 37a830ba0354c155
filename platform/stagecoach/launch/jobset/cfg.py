"""`-cfg` of `torchx run -s jobset`: what is wrong in it is told by name.

TorchX itself ends in a traceback where a value has the wrong type, and passes over an option that it does not know: a job with
`queu=research` would start at once, unqueued.
"""

from collections.abc import Mapping
from typing import Any, Dict, List  # noqa: UP035

from torchx.specs import InvalidRunConfigException, runopts
from torchx.specs.api import to_dict

from stagecoach.contract.records import did_you_mean
from stagecoach.errors import ConfigError
from stagecoach.launch.kube.options import OPTIONS, parse_options

KINDS = {"str": str, "int": int, "float": float, "list": List[str], "dict": Dict[str, str]}  # noqa: UP006  # TorchX compares by ==


class InvalidOption(ConfigError, InvalidRunConfigException):  # type: ignore[misc]  # torchx has no types mypy can see
    """What `torchx run` tells without a traceback. It prints `cfg_key` and nothing else, so the whole sentence is there."""

    def __init__(self, error: ConfigError) -> None:
        Exception.__init__(self, str(error))
        self.cfg_key = str(error)


class _AsWritten(str):
    """A value of the command line that could not be read, or whose name is no option."""

    __slots__ = ()


class Options(runopts):  # type: ignore[misc]
    """All options. Errors are raised where TorchX handles them: when `-cfg` is resolved, not when it is read."""

    def __init__(self) -> None:
        super().__init__()
        for name, (kind, default, told) in OPTIONS.items():
            self.add(name, type_=KINDS[kind], default=default, help=told)

    def cfg_from_str(self, cfg_str: str) -> dict[str, Any]:
        """`name=value,name=value`, with what is wrong kept as it was written."""
        try:
            written = to_dict(cfg_str)
        except ValueError:
            return {"": _AsWritten(cfg_str)}
        found: dict[str, Any] = {}
        for name, value in written.items():
            try:
                found |= super().cfg_from_str(f"{name}={value}") if name in OPTIONS else {name: _AsWritten(value)}
            except (ValueError, IndexError):
                found[name] = _AsWritten(value)
        return found

    def resolve(self, cfg: Mapping[str, Any]) -> dict[str, Any]:
        """With defaults. Raises InvalidOption."""
        try:
            for name, value in cfg.items():
                if isinstance(value, _AsWritten):
                    check_written(name, value)
            parse_options(cfg)
        except ConfigError as error:
            raise InvalidOption(error) from error
        resolved: dict[str, Any] = super().resolve(cfg)
        return resolved


def check_written(name: str, value: str) -> None:
    """Raises ConfigError for what `parse_options` would not see, or not understand."""
    if not name:
        raise ConfigError("-cfg: write name=value,name=value; `torchx runopts jobset` lists the names")
    if name not in OPTIONS:
        raise ConfigError(f"-cfg {name}: no such option of jobset{did_you_mean(name, list(OPTIONS))}")
    if OPTIONS[name][0] == "dict":
        raise ConfigError(f"{name}={value!r}: write key:value, several separated by ;")
