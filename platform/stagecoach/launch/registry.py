"""Launchers by name (`--launcher`)."""

from stagecoach.contract.launch import Launcher
from stagecoach.contract.records import did_you_mean
from stagecoach.errors import ConfigError

LAUNCHERS = ("local", "jobset", "kubernetes")
NOT_BUILT = ("ray",)  # named in interfaces.md section 1; refused by name until they exist


def check_launcher(name: str) -> None:
    """Raises ConfigError, with what exists, for the name of no launcher."""
    exists = f"here there is: {', '.join(LAUNCHERS)}"
    if name in NOT_BUILT:
        raise ConfigError(f"--launcher {name}: not built yet; {exists}")
    if name not in LAUNCHERS:
        raise ConfigError(f"--launcher {name!r}: no such launcher; {exists}{did_you_mean(name, [*LAUNCHERS, *NOT_BUILT])}")


def get_launcher(name: str, *, ranks: int = 0, patience_s: float | None = None) -> Launcher:
    """The launcher of that name. Raises ConfigError with what exists; and, with `ranks`, where it could take no job of so many: that is
    better known before a submission is claimed. `patience_s`: how long one call may wait for a cluster that does not answer; a person who
    waits has less than a flow."""
    check_launcher(name)
    if name == "local":
        from stagecoach.launch.local import LocalLauncher

        local = LocalLauncher()
        if ranks:
            local.check_room(ranks)
        return local
    if name == "jobset":
        from stagecoach.launch.jobset.launcher import JobsetLauncher

        return JobsetLauncher(patience_s=patience_s)
    from stagecoach.launch.volcano.launcher import VolcanoLauncher

    return VolcanoLauncher(patience_s=patience_s)
