"""`stagecoach preflight` asked wrongly, and how its report looks. What it finds on real processes: tests/distributed/preflight."""

import io
from dataclasses import replace
from pathlib import Path

import click
import pytest

from stagecoach.cli import cli, run
from stagecoach.cli.preflight_table import MAX_ROWS, Narrator, by_phase, print_report
from stagecoach.constants import Phase
from stagecoach.contract.launch import JobState, LaunchSpec, RunHandle
from stagecoach.contract.preflight import ClockReport, MatmulReport, PreflightReport, Problem, RankReport, verdict_of
from stagecoach.contract.records import decode, encode
from stagecoach.testing.fake_launcher import FakeLauncher


def a_rank(number: int) -> RankReport:
    matmul = MatmulReport(gflops=1234.5, relative=0.3 if number == 2 else 1.0, windows=((1.0,),), cpu_share=1.0, size=512, dtype="float32")
    clock = ClockReport(skew_s=-0.012)
    return RankReport(rank=number, node=0, local_rank=number, machine="gpu-7", matmul=matmul, clock=clock)


def a_report(world_size: int, *problems: Problem) -> PreflightReport:
    return PreflightReport(
        name="preflight-1", fit=not problems, verdict=verdict_of(problems, world_size=world_size), attempt=1, nodes=1,
        ranks_per_node=world_size, world_size=world_size, ranks=tuple(map(a_rank, range(world_size))), problems=problems, at="t",
    )  # fmt: skip


SLOW = Problem(severity="slow", check="matmul", rank=2, node=0, machine="gpu-7", says="30 % of the median of its peers", do="look at it")
GONE = Problem(severity="broken", check="present", rank=4, node=0, machine="gpu-7", says="it did not come", do="look at its log")


def test_the_table_marks_the_bad_cell_and_names_the_rank(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(a_report(4, SLOW, GONE))
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["0", "gpu-7", "-", "1,234.5", "100%", "-", "-12", "-", "-", "-", "-", "ok"]
    assert lines[3].split() == ["2", "gpu-7", "-", "1,234.5", "!", "30%", "!", "-", "-12", "-", "-", "-", "-", "slow"]
    assert lines[5].split()[:3] == ["4", "gpu-7", "!"]
    assert lines[5].split()[-1] == "missing"
    assert lines[6] == (
        "not fit: rank 2 on gpu-7 is slow (matmul): 30 % of the median of its peers; rank 4 on gpu-7 is broken (present): it did not come"
    )
    assert lines[7:] == ["  look at it", "  look at its log"]


def test_of_many_ranks_only_those_with_a_problem_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(a_report(MAX_ROWS + 1, SLOW))
    captured = capsys.readouterr()
    assert [line.split()[0] for line in captured.out.splitlines()[1:2]] == ["2"]
    assert len(captured.out.splitlines()) == 4
    assert f"{MAX_ROWS} ranks without a problem" in captured.err


def test_the_report_reads_back() -> None:
    report = replace(a_report(3, SLOW), seconds=1.5)
    assert decode(PreflightReport, encode(report), uri="report.json") == report


def test_the_verdict_stays_a_line_when_every_rank_has_a_problem() -> None:
    verdict = verdict_of([replace(SLOW, rank=rank) for rank in range(20)], world_size=20)
    assert verdict.startswith("not fit: rank 0 on gpu-7 is slow")
    assert verdict.endswith("; and 12 problems more")


def test_progress_groups_ranks_by_phase() -> None:
    assert by_phase({"0": "matmul", "2": "matmul", "1": "matmul", "10": "bucket"}) == "matmul: ranks 0-2; bucket: rank 10"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--set", "max_clock_skew=1"), "did you mean `max_clock_skew_s`?"),
        (("--set", "windows=0"), "`windows` = 0"),
        (("--set", "windows"), "write it as NAME=VALUE"),
        (("--launcher", "slurm"), "no such launcher"),
        (("--hardware", "h10"), "did you mean `h100`?"),
        (("--nodes", "0"), "x>=1"),
        (("--nodes", "100000", "--ranks-per-node", "8"), "800000 ranks (nodes x ranks per node) on one machine"),
        (("--root", "pipe:cat"), "pipe"),
    ],
)
def test_asked_wrongly_exits_2_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], says: str
) -> None:
    status = run(["preflight", "--root", f"file://{tmp_path}/root", *arguments])
    captured = capsys.readouterr()
    assert (status, captured.out) == (2, "")
    assert says in captured.err
    assert not (tmp_path / "root").exists()


class Interrupted(FakeLauncher):
    """Takes the job; then Ctrl-C comes before the caller learns of it."""

    def submit(self, spec: LaunchSpec) -> RunHandle:
        super().submit(spec)
        raise KeyboardInterrupt


class Deaf(FakeLauncher):
    """Somebody sends SIGTERM while the job is watched."""

    def describe(self, handle: RunHandle) -> JobState:
        if not self.cluster.jobs[handle.name].state.phase.is_terminal:
            raise SystemExit(143)
        return super().describe(handle)


@pytest.mark.parametrize("kind", [Interrupted, Deaf])
def test_an_interrupted_command_leaves_no_job_behind(kind: type[FakeLauncher], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = kind()
    monkeypatch.setattr("stagecoach.launch.registry.get_launcher", lambda *_, **__: launcher)
    with pytest.raises((SystemExit, KeyboardInterrupt, click.Abort)):
        cli.main(["preflight", "--root", f"file://{tmp_path}"], standalone_mode=False)
    assert [job.state.phase for job in launcher.cluster.jobs.values()] == [Phase.CANCELLED]


def test_progress_that_nobody_reads_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr("sys.stderr", Gone())
    with Narrator("file:///x") as narrator:
        narrator.say("starting")
    assert narrator.last == "starting"


def test_a_report_that_nobody_could_write_is_not_pointed_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Done(FakeLauncher):
        def submit(self, spec: LaunchSpec) -> RunHandle:
            handle = super().submit(spec)
            self.cluster.finish(spec.name, 75)
            return handle

    monkeypatch.setattr("stagecoach.launch.registry.get_launcher", lambda *_, **__: Done())
    assert run(["preflight", "--root", f"file://{tmp_path}"]) == 1
    said = capsys.readouterr()
    assert "the job ended before it began" in said.out
    assert "report.json" not in said.out + said.err


def test_a_state_folder_that_cannot_be_made_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("STAGECOACH_STATE_DIR", str(tmp_path / "file" / "state"))
    assert run(["preflight", "--root", f"file://{tmp_path}/root"]) == 2
    assert f"local jobs cannot be kept there ({tmp_path}/file is no folder); set STAGECOACH_STATE_DIR" in capsys.readouterr().err
    assert not (tmp_path / "root").exists()
