"""One folder per thing a test needs. Where it is missing the folder's tests skip with a sentence; pytest lists them at the end (-ra)."""

import importlib.util
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from pathlib import Path

import pytest
from hypothesis import settings

TESTS = Path(__file__).parent


# A change is judged on the same examples each time; elsewhere hypothesis looks further on every run. No deadline: machines are shared.
settings.register_profile("repeatable", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("searching", deadline=None, print_blob=True)
settings.load_profile("repeatable" if os.environ.get("CI") else "searching")


def missing_cluster() -> str | None:
    """A Kubernetes API server and an S3 server."""
    absent = [name for name in ("KUBECONFIG", "AWS_ENDPOINT_URL_S3") if not os.environ.get(name)]
    if not absent:
        return None
    return f"needs a cluster: {' and '.join(absent)} not set; `make test-cluster` starts one where ../shared/cluster is"


def missing_gpu() -> str | None:
    """A CUDA device that torch sees."""
    if importlib.util.find_spec("torch") is None:
        return "needs a GPU: torch is not installed"
    import torch

    return None if torch.cuda.is_available() else f"needs a GPU: torch {torch.__version__} sees no CUDA device on this machine"


def missing_browser() -> str | None:
    """Headless Chromium."""
    return None if shutil.which("chromium") else "needs a browser: Debian's package chromium is not installed"


NEEDS: dict[str, Callable[[], str | None]] = {"cluster": missing_cluster, "gpu": missing_gpu, "browser": missing_browser}
WITH_A_CLUSTER = ("cluster", "unit/chart")  # what `make test-objects` runs: helm and kubectl come with the cluster, promtool by .ci/run


def pytest_configure(config: pytest.Config) -> None:
    """Files are dealt to test processes as ordered below; xdist's own order would end with those of few tests that take minutes each.
    What a shell starts in its background is deaf to Ctrl-C, and hands that on to what tests press it for."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def longest_first(items: list[pytest.Item]) -> None:
    """Files whose tests are allowed the most time come first, then those with many tests, so that no process ends long after the others."""
    allowed, count = Counter[Path](), Counter[Path]()
    for item in items:
        mark = item.get_closest_marker("timeout")
        allowed[item.path] += int(mark.args[0]) if mark is not None else 0
        count[item.path] += 1
    items.sort(key=lambda item: (-allowed[item.path], -count[item.path]))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips the tests of a folder whose need is not met; fails them instead where the cluster was promised."""
    longest_first(items)
    reasons: dict[str, str | None] = {}
    for item in items:
        folder = item.path.relative_to(TESTS).parts[0] if item.path.is_relative_to(TESTS) else ""
        if folder in NEEDS:
            if folder not in reasons:
                reasons[folder] = NEEDS[folder]()
            if reason := reasons[folder]:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where a cluster was started for the tests, a skip is a failure; the chart's tests have there what they need as well."""
    report = yield
    required = os.environ.get("STAGECOACH_TEST_CLUSTER") == "required"
    if report.skipped and required and any(item.path.is_relative_to(TESTS / folder) for folder in WITH_A_CLUSTER):
        report.outcome = "failed"
        report.longrepr = f"skipped although a cluster was started: {report.longrepr}"
    return report


def left_out(reports: Iterable[pytest.TestReport]) -> list[str]:
    """What tests recorded as `left out`: commands of a page that cannot run here."""
    return [str(value) for report in reports for name, value in report.user_properties if name == "left out"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Lists them at the end: what a test prints is not shown where it runs in a process of its own."""
    for line in left_out(terminalreporter.getreports("passed")):
        terminalreporter.write_line(f"left out: {line}")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A folder that has no tests yet is no failure."""
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and not session.config.getoption("keyword"):
        session.exitstatus = pytest.ExitCode.OK
