"""One stage of a run, asked for by name: it is told with the others in view."""

from typing import Any

from click.testing import CliRunner

from stagecoach.cli.read import explain_command, status_command
from stagecoach.cli.watch_state import explain_now
from stagecoach.contract.control import RunRequest
from stagecoach.contract.ledger import Runs
from stagecoach.explain.facts import gather
from stagecoach.explain.records import Cause, Next
from stagecoach.explain.resolve import find
from stagecoach.explain.verdict import explain, explain_stage
from stagecoach.stages.control import Control
from stagecoach.testing.ledger import write_run


def test_a_later_stage_waits_for_the_one_before_it_whatever_became_of_that(tmp_path: Any) -> None:
    pretrain, _sft = write_run(tmp_path.as_uri(), "r1", "pretrain", "sft")
    Control(Runs.open(tmp_path.as_uri()), "r1").ask(RunRequest(recipe="mm1_tiny", launcher="local", at="Monday"))
    told = CliRunner().invoke(explain_command, ["r1", "--stage", "sft", "--root", tmp_path.as_uri()])
    sentence = "r1, stage sft: was never submitted to a launcher; its turn comes once stage pretrain is finished."
    assert told.stdout == f"{sentence}\n"
    told = CliRunner().invoke(status_command, ["r1", "--stage", "sft", "--root", tmp_path.as_uri()])
    assert sentence in " ".join(told.output.split())
    assert "pretrain " not in told.stdout
    assert explain_now(find("r1", root=tmp_path.as_uri()), "sft").sentence == sentence
    pretrain.submit(1)
    pretrain.start(1)
    pretrain.end(1, "diverged", 43, step=13)
    facts = gather(find("r1", root=tmp_path.as_uri()))
    said = explain_stage(facts, "sft")
    assert (said.cause, said.next, said.waits_for) == (Cause.NEVER_SUBMITTED, Next.WAIT, "pretrain")
    assert explain_stage(facts, "pretrain") == explain(facts)
    pretrain.finish(step=20, run_id="r1", stage="pretrain")
    said = explain_stage(gather(find("r1", root=tmp_path.as_uri())), "sft")
    assert said.sentence == "r1, stage sft: was never submitted to a launcher; `stagecoach resume r1` starts it."
