"""The local launcher with real processes keeps the promises of every launcher."""

from stagecoach.testing.launcher_contract import LauncherContract


class TestLocalLauncher(LauncherContract):
    pass
