"""One process that runs the toy pipeline on the real local launcher: `python one_caller.py ROOT CORPUS STATE DIE_AT [prefect]`.

SIGKILLs itself before its DIE_AT-th call to launcher or bucket (0: never). Prints the number of calls, and what came of it as JSON.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stagecoach.contract.launch import JobState, LaunchSpec, RunHandle
from stagecoach.launch.local import LocalLauncher
from stagecoach.testing.flow_world import TOY_SETTINGS, Counter, counted_store
from stagecoach_flows.in_place import run_in_place
from stagecoach_flows.parameters import Mm1Parameters
from stagecoach_flows.surroundings import Surroundings, surrounded

TRAINER = "stagecoach.testing.stand_in_trainer"


class Killing(Counter):
    """The real thing: nothing survives it."""

    def call(self, name: str, action: Callable[[], Any]) -> Any:
        self.count += 1
        self.names.append(name)
        if self.count == self.die_before:
            os.kill(os.getpid(), signal.SIGKILL)
        return action()


class Counted(LocalLauncher):
    """The local launcher, its calls counted."""

    def __init__(self, state: Path, counter: Counter) -> None:
        super().__init__(state, module=TRAINER)
        self.counter = counter

    def submit(self, spec: LaunchSpec) -> RunHandle:
        handle: RunHandle = self.counter.call("launcher.submit", lambda: LocalLauncher.submit(self, spec))
        return handle

    def describe(self, handle: RunHandle) -> JobState:
        state: JobState = self.counter.call("launcher.describe", lambda: LocalLauncher.describe(self, handle))
        return state


def main(root: str, corpus: str, state: str, die_at: str, how: str = "plain") -> None:
    counter = Killing(die_before=int(die_at))
    launcher = Counted(Path(state), counter)
    around = Surroundings(launcher=lambda *_: launcher, evaluation=lambda *_: None, poll_s=0.05, retry_delays_s=())
    asked = Mm1Parameters(recipe="mm1_tiny", root=root, run_id="toy", data=corpus, settings=TOY_SETTINGS)
    with counted_store(counter):
        if how == "prefect":
            results = [result.manifest.weights_digest for result in run_in_place(asked.request(), around)]
        else:
            from stagecoach_flows.pipeline import plain_stage, run_pipeline

            with surrounded(around):
                results = [one["weights_digest"] for one in run_pipeline(asked, run_one=plain_stage)]
    print(json.dumps({"calls": counter.names, "weights": results}))


if __name__ == "__main__":
    main(*sys.argv[1:])
