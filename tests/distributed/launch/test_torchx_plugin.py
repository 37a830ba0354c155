"""Plain `torchx run -s stagecoach_local` works, and TorchX's own schedulers stay reachable."""

from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torchx.schedulers
from torchx.runner import Runner
from torchx.schedulers import DEFAULT_SCHEDULER_MODULES, get_scheduler_factories
from torchx.specs import AppDef, AppState, Role

from stagecoach.launch.torchx_plugin import registered, stagecoach_local
from stagecoach.site import state_folder
from stagecoach.testing.local_world import wait_for

OURS = ("stagecoach_local", "jobset")


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runner:
    monkeypatch.setenv("STAGECOACH_STATE_DIR", str(tmp_path))
    assert state_folder() == tmp_path
    return Runner("test", {"stagecoach_local": stagecoach_local})


def shell(script: str, **kwargs: object) -> AppDef:
    return AppDef(name="My App", roles=[Role(name="worker", image="", entrypoint="sh", args=["-c", script], **kwargs)])


def end_of(runner: Runner, handle: str) -> AppState:
    status = None

    def is_terminal() -> bool:
        nonlocal status
        status = runner.status(handle)
        return status is not None and status.is_terminal()

    wait_for(is_terminal, "the app to end")
    assert status is not None
    return status.state


def test_every_built_in_scheduler_is_listed_beside_ours() -> None:
    ours = {point.name: point.value for point in entry_points(group="torchx.schedulers")}
    for name in OURS:
        assert ours.pop(name) == f"stagecoach.launch.torchx_plugin:{name}"
    assert ours == {name: f"{module}:create_scheduler" for name, module in DEFAULT_SCHEDULER_MODULES.items()}
    assert set(get_scheduler_factories()) >= {*OURS, "local_cwd", "kubernetes", "slurm"}
    assert torchx.schedulers.get_scheduler_factories()["local_cwd"]("x").backend == "local"


def test_an_app_that_knows_nothing_of_us_runs_and_its_end_is_seen_by_another_runner(runner: Runner) -> None:
    handle = runner.run(
        shell("echo node ${replica_id} of ${app_id}; test $WORD = bird", num_replicas=2, env={"WORD": "bird"}), "stagecoach_local"
    )
    other = Runner("other", {"stagecoach_local": stagecoach_local})
    assert end_of(other, handle) == AppState.SUCCEEDED
    name = handle.rpartition("/")[2]
    assert name.startswith("my-app-")
    lines = [list(other.log_lines(handle, "worker", k, should_tail=True)) for k in (0, 1)]
    assert lines == [[f"node 0 of {name}\n"], [f"node 1 of {name}\n"]]
    assert list(other.log_lines(handle, "worker", 2)) == []


@pytest.mark.parametrize("script", ["exit 3", "kill -9 $$"])
def test_a_failing_app_has_failed(runner: Runner, script: str) -> None:
    handle = runner.run(shell(script), "stagecoach_local")
    assert end_of(runner, handle) == AppState.FAILED


def test_a_command_that_does_not_exist_is_named(runner: Runner) -> None:
    app = AppDef(name="app", roles=[Role(name="worker", image="", entrypoint="no-such-program")])
    handle = runner.run(app, "stagecoach_local")
    assert end_of(runner, handle) == AppState.FAILED
    status = runner.status(handle)
    assert status is not None
    assert "cannot run no-such-program" in status.msg


def test_cancel_ends_the_apps_children_too(runner: Runner) -> None:
    handle = runner.run(shell("sleep 600 & sleep 600"), "stagecoach_local")
    runner.cancel(handle)
    assert end_of(runner, handle) == AppState.CANCELLED
    assert [app.app_handle for app in runner.list("stagecoach_local")] == [handle]


def test_torchx_0_7_knows_no_marks_so_the_factory_stays_as_it_is() -> None:
    assert registered(stagecoach_local) is stagecoach_local
    assert not hasattr(stagecoach_local, "_plugin_type")
