"""Bad samples, counted over all ranks: under the budget they are padding and a line in a log, over it every rank stops at the same step.

The trainer adds the number of `LoadedStep.bad` and `num_samples` to its per-step all-reduce and gives the sums to `QuarantineBudget.add` on
every rank, so that all of them decide alike. Each rank tells of its own bad samples as they come; over budget the ranks bring their
lists together first, so that all end with the same one.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict

from stagecoach.errors import DataError
from stagecoach_workloads.data.work.collate import BadSample

BUDGET = 0.001  # of the samples seen
SHOWN = 20  # bad samples in the message; each is a `quarantined` event of its rank as well
ALWAYS_ALLOWED = 3  # a single bad sample at the start is not a tenth of a per cent of anything


class QuarantineBudget:
    """Counts of the whole job since its start (or since the counts of a checkpoint)."""

    def __init__(self, *, share: float = BUDGET, bad: int = 0, seen: int = 0) -> None:
        self.share, self.bad, self.seen = share, bad, seen

    def add(self, *, bad: int, seen: int, step: int, lines: Iterable[BadSample] = ()) -> None:
        """Adds one step's sums over all ranks. Raises DataError (exit code 41) over budget, with these lines."""
        over = self.is_over(bad=bad, seen=seen)
        self.bad += bad
        self.seen += seen
        if over:
            listed = [f"{line.sample}: {line.reason}" for line in lines]
            more = [f"and {len(listed) - SHOWN:,} more"] if len(listed) > SHOWN else []
            known = "; ".join([*listed[:SHOWN], *more]) or "the `quarantined` events of all ranks name them"
            raise DataError(
                f"step {step}: {self.bad:,} of {self.seen:,} samples are bad, more than the budget of {self.share:.2%}: {known}; "
                "run `stagecoach data verify` and restore the shards it names. Samples that it does not name were bad before they were "
                "written: mend or remove them in the source, convert that to a new URI and start a new run with it"
            )

    def is_over(self, *, bad: int, seen: int) -> bool:
        """Would `add` raise? Lets ranks bring their lists together first."""
        return self.bad + bad > max(ALWAYS_ALLOWED, self.share * (self.seen + seen))

    def state(self) -> dict[str, int]:
        return {"bad": self.bad, "seen": self.seen}


def quarantine_lines(bad: Iterable[BadSample]) -> bytes:
    """JSON lines for the log, in the order of steps and samples."""
    ordered = sorted(bad, key=lambda line: (line.step, line.sample))
    return b"".join(json.dumps(asdict(line), sort_keys=True).encode() + b"\n" for line in ordered)
