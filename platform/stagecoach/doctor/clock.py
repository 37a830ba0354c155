"""This machine's clock against the API server's. Order never comes from clocks here, but signatures and certificates do expire by them."""

from collections.abc import Iterator
from datetime import UTC, datetime

from stagecoach.doctor.facts import Fact, Place
from stagecoach.launch.kube.client import Kube

WORTH_SAYING_S, TOO_FAR_S = 2.0, 300.0  # S3 refuses what was signed 15 minutes ago


def check_clock(place: Place, kube: Kube) -> Iterator[Fact]:
    """The header `Date` has whole seconds. Nodes are compared with each other by `stagecoach preflight`."""
    del place
    before = datetime.now(UTC)
    theirs = kube.date()
    after = datetime.now(UTC)
    skew = 0.0 if before <= theirs <= after else min(abs((theirs - before).total_seconds()), abs((theirs - after).total_seconds()))
    yield judge_skew(max(0.0, skew - 1.0))  # the second that the header leaves open


def judge_skew(skew_s: float) -> Fact:
    """`skew_s`: at least so far apart."""
    fact = f"this machine's clock and the API server's differ by {'less than 1 s' if skew_s == 0 else f'{skew_s:.0f} s'}"
    do = "set it by NTP (chrony, systemd-timesyncd) on this machine and on the control plane"
    if skew_s > TOO_FAR_S:
        return Fact(check="clock", verdict="bad", fact=fact, do=f"{do}: requests to the bucket are about to be refused")
    if skew_s > WORTH_SAYING_S:
        return Fact(check="clock", verdict="warning", fact=fact, do=do)
    return Fact(check="clock", verdict="ok", fact=fact)
