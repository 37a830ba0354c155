"""Two supervisors, as two pods would have, on this machine."""

import asyncio
import signal
import time

from stagecoach.constants import PEER_HOLD_S
from stagecoach.contract.job import AttemptStart
from stagecoach.supervisor.http import HttpServer, Request, Response
from stagecoach.testing.builders import TIME
from stagecoach.testing.supervised import expected_state

from .conftest import StartJob


def test_two_nodes_meet_and_finish(make_job: StartJob) -> None:
    job = make_job({"steps": 10}, nodes=2)
    job.start_all()
    assert (job.wait(0), job.wait(1)) == (0, 0)
    (end,) = job.ends()
    assert (end.kind, end.step) == ("done", 10)
    assert [node.machine for node in job.job.nodes(1)] == ["machine-0", "machine-1"]
    assert job.result()["state"] == expected_state(10, 4)


def test_a_rank_killed_on_one_node_ends_both_and_the_cause_is_named(make_job: StartJob) -> None:
    job = make_job({"steps": 500}, nodes=2)
    job.start_all()
    job.wait_step(10)
    killed = time.monotonic()
    job.rank_process(2).kill()
    assert job.wait(1) == 75
    cause_ended = time.monotonic()
    assert job.wait(0) == 75
    assert cause_ended - killed < PEER_HOLD_S  # only consequences are held back
    (end,) = job.ends()
    assert (end.kind, end.first_failed_rank, end.first_failed_node) == ("crashed", 2, "machine-1")
    assert end.message == "rank 2 was killed by SIGKILL"


def test_the_peer_of_a_failed_leader_holds_its_exit(make_job: StartJob) -> None:
    job = make_job({"steps": 500}, nodes=2)
    job.start_all()
    job.wait_step(10)
    killed = time.monotonic()
    job.rank_process(1).kill()
    assert job.wait(0) == 75
    assert job.wait(1) == 75
    assert time.monotonic() - killed >= PEER_HOLD_S
    (end,) = job.ends()
    assert (end.first_failed_rank, end.first_failed_node) == (1, "machine-0")


def test_a_fatal_error_on_a_peer_is_the_attempts(make_job: StartJob) -> None:
    job = make_job({"steps": 50, "faults": [{"kind": "bad_data", "rank": 3, "step": 4}]}, nodes=2)
    job.start_all()
    assert (job.wait(1), job.wait(0)) == (41, 41)  # a pod that ended with 75 first would have the gang tried again
    (end,) = job.ends()
    assert (end.kind, end.exit_code, end.first_failed_rank, end.first_failed_node) == ("bad_data", 41, 3, "machine-1")


def test_a_leader_that_was_killed_is_missed_in_bounded_time_and_both_start_again(make_job: StartJob) -> None:
    job = make_job({"steps": 100, "step_s": 0.05}, nodes=2)
    job.start_all()
    job.wait_step(8)
    job.supervisors[0].kill()
    assert job.wait(1) == 75  # within wait's own deadline
    job.start_all()
    assert (job.wait(0), job.wait(1)) == (0, 0)
    assert [end.kind for end in job.ends()] == ["found_dead", "done"]
    assert job.result()["state"] == expected_state(100, 4)


def test_sigterm_to_one_node_stops_all_at_the_same_step(make_job: StartJob) -> None:
    job = make_job({"steps": 500, "commit_every": 1000}, nodes=2)
    job.start_all()
    job.wait_step(5)
    job.supervisors[1].send_signal(signal.SIGTERM)
    assert (job.wait(0), job.wait(1)) == (143, 143)
    (end,) = job.ends()
    assert (end.kind, end.steps_lost) == ("stopped", 0)


def test_a_leader_of_another_attempt_is_refused_and_looked_up_again(make_job: StartJob) -> None:
    """The newest start names an address where somebody answers with another nonce: what a name does right after a restart."""
    job = make_job({"steps": 3}, nodes=2)

    async def meanwhile() -> None:
        async def stale(request: Request) -> Response:
            return Response.json(200, {"attempt": 1, "nonce": "of-the-last-attempt"})

        server = HttpServer(stale)
        port = await server.start("127.0.0.1", 0)
        start = AttemptStart(
            attempt=1, submission=1, leader_host="127.0.0.1", leader_port=port, nonce="of-this-attempt", nodes=2, ranks_per_node=2,
            world_size=4, layout="x", identity="x", why="first", started_at=TIME,
        )  # fmt: skip
        job.job.claim_attempt(start)
        job.start(1)
        await asyncio.to_thread(job.wait_line, "answered for attempt 1; it is looked up again")
        job.start(0)  # finds attempt 1 dead, and leads the second
        assert await asyncio.to_thread(job.wait, 0) == 0
        assert await asyncio.to_thread(job.wait, 1) == 0
        await server.close()

    asyncio.run(meanwhile())
    assert [end.kind for end in job.ends()] == ["found_dead", "done"]


def test_nodes_that_never_come_end_the_attempt(make_job: StartJob) -> None:
    job = make_job({"steps": 3}, nodes=2)
    job.start(0, environment={"STAGECOACH_RENDEZVOUS_S": "2"})
    assert job.wait(0) == 75
    (end,) = job.ends()
    assert (end.kind, end.message) == ("rendezvous_failed", "node 1 of 2 did not join attempt 1 within 2 s")
