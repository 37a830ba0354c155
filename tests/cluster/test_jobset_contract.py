"""The `jobset` launcher keeps every launcher's promises, on a real API server with real Kueue and JobSet. Pods run on fake nodes."""

import pytest

from stagecoach.constants import Phase
from stagecoach.testing.cluster_world import ClusterWorld
from stagecoach.testing.launcher_contract import LauncherContract


class TestJobsetLauncher(LauncherContract):
    @pytest.mark.parametrize(("code", "phase"), [(0, Phase.SUCCEEDED), (40, Phase.FAILED), (44, Phase.FAILED), (75, Phase.FAILED)])
    def test_an_ended_job_tells_its_code(self, world: ClusterWorld, code: int, phase: Phase) -> None:  # type: ignore[override]
        """143 ends no job here: the platform that stopped it starts it again (the next test)."""
        super().test_an_ended_job_tells_its_code(world, code, phase)

    def test_a_stop_by_the_platform_is_restarted_and_not_counted(self, world: ClusterWorld) -> None:
        handle = world.launcher().submit(world.spec())  # retries=0: what is counted would end the job
        for restart in (1, 2):
            world.end_pods(handle, 143)
            world.wait_restarts(handle, restart)
        world.wait_running(handle)
        state = world.state(handle)
        assert not state.phase.is_terminal
        assert world.jobset(handle)["status"].get("restartsCountTowardsMax", 0) == 0
