"""The report in a real browser: nothing wrong in its console, nothing fetched, nothing cut off on a phone, readable in light and dark.

Chromium is driven over its DevTools protocol, so that no driver of the same version is needed beside it.
"""

import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import websocket

from stagecoach.contract.ledger import JobFolder
from stagecoach.explain.resolve import find
from stagecoach.report.page import build_page
from stagecoach.report.story import read_story
from stagecoach.testing.ledger import AT, write_run
from stagecoach.testing.runs import plan_of, step_value, write_events, write_finished_run, write_suite

HOSTILE = "\"><script>alert(1)</script><img src=x onerror='alert(2)'><svg onload=alert(3)></style></title>"
READY_S = 60.0  # other work may hold the machine

WIDER_THAN_THE_WINDOW = """
[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll') || e.matches('.scroll'))
  .filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => `${e.tagName} ${e.className} ${e.textContent.slice(0, 40)}`)
"""
CUT_OFF_CELLS = (
    "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.textContent.slice(0, 60))"
)
CUT_OFF_TEXTS = """
[...document.querySelectorAll('svg text')].filter(e => e.getClientRects().length)
  .map(e => [e.textContent, e.getBoundingClientRect(), e.ownerSVGElement.getBoundingClientRect()])
  .filter(([, text, drawing]) => text.right > drawing.right + 1 || text.left < drawing.left - 1).map(([text]) => text)
"""
FAINT_TEXTS = """
(() => {
  const part = v => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4 };
  const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).map(Number); return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b) };
  const behind = e => {
    for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor; if (!/, 0\\)$/.test(c)) return c }
  };
  return [...document.querySelectorAll('body *')]
    .filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()) && e.getClientRects().length)
    .map(e => { const s = getComputedStyle(e), a = light(e.namespaceURI.endsWith('svg') ? s.fill : s.color), b = light(behind(e));
      return [e.textContent.trim().slice(0, 40), (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)] })
    .filter(([, contrast]) => contrast < 4.5)
})()
"""
SMALL_TEXTS = """
[...document.querySelectorAll('svg text, p, td, th, li, dd, dt')].filter(e => e.getClientRects().length && e.textContent.trim())
  .map(e => [e.textContent.trim().slice(0, 30), parseFloat(getComputedStyle(e).fontSize) * (e.ownerSVGElement ? e.getScreenCTM().a : 1)])
  .filter(([, px]) => px < 9)
"""


class Tab:
    """One page of a headless browser. `problems` are what its console, its network and its dialogs said."""

    def __init__(self, connection: websocket.WebSocket) -> None:
        self._connection, self._numbers = connection, itertools.count(1)
        self._session: str | None = None
        self.problems: list[str] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **parameters: Any) -> Any:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters} | ({"sessionId": self._session} if self._session else {})
        self._connection.send(json.dumps(message))
        while True:
            told = json.loads(self._connection.recv())
            if told.get("id") == number:
                assert "error" not in told, told
                return told["result"]
            self._note(told)

    def show(self, path: Path, *, width: int, scheme: str) -> None:
        """Loads the file and opens whatever can be opened."""
        self.problems.clear()
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 500)
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.ask("Page.navigate", url=path.as_uri())
        until = time.monotonic() + READY_S
        while self.value("document.readyState === 'complete' && document.location.protocol") != "file:":
            assert time.monotonic() < until, "the page was not loaded"
            time.sleep(0.05)
        self.value("document.querySelectorAll('details').forEach(e => e.open = true)")

    def value(self, expression: str) -> Any:
        told = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def _note(self, told: dict[str, Any]) -> None:
        method, parameters = told.get("method"), told.get("params", {})
        if method == "Log.entryAdded":
            self.problems.append(parameters["entry"]["text"])
        elif method in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Page.javascriptDialogOpening"):
            self.problems.append(json.dumps(parameters)[:500])
        elif method == "Network.requestWillBeSent" and not parameters["request"]["url"].startswith(("data:", "file:")):
            self.problems.append(f"fetched {parameters['request']['url']}")
        elif (
            method == "Network.requestWillBeSent"
            and parameters.get("type") not in ("Document", None)
            and "file:" in parameters["request"]["url"]
        ):
            self.problems.append(f"read {parameters['request']['url']}")


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    home = tmp_path_factory.mktemp("chromium")
    program = shutil.which("chromium")
    assert program is not None  # the folder is skipped without it
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--remote-debugging-port=0")
    with (home / "log").open("wb") as log:
        browser = subprocess.Popen([program, *flags, f"--user-data-dir={home}", "about:blank"], stdout=log, stderr=log)
    try:
        connection = websocket.create_connection(_address(home, browser), suppress_origin=True, timeout=READY_S)
        yield Tab(connection)
        connection.close()
    finally:
        browser.terminate()
        browser.wait(READY_S)


def _address(home: Path, browser: "subprocess.Popen[bytes]") -> str:
    until = time.monotonic() + READY_S
    while time.monotonic() < until and browser.poll() is None:
        try:
            port, path = (home / "DevToolsActivePort").read_text().split("\n")[:2]
            return f"ws://127.0.0.1:{port}{path}"
        except (OSError, ValueError):
            time.sleep(0.05)
    raise AssertionError((home / "log").read_text(errors="replace")[-2000:])


def page_of(root: str, name: str, path: Path) -> Path:
    path.write_bytes(build_page(read_story(find(name, root=root), made_at=AT)))
    return path


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run, one that goes on, one whose every text is an attack."""
    folder, root = tmp_path_factory.mktemp("pages"), "memory://report-in-chromium"
    write_finished_run(root, "finished-run")
    going, _ = write_run(root, "going", "pretrain", "sft")
    going.folder.write_plan(plan_of("pretrain", 100))
    going.submit()
    going.start(1)
    write_events(going.folder, 1, range(1, 41), 100)
    going.progress(1, step=40, steps=100, tokens=55_000, seconds={"compute": 30.0, "init": 10.0})
    (hostile,) = write_run(root, "hostile", "pretrain")
    hostile.start(1)
    value = {"loss": 1.0, "losses": {f"kind/{HOSTILE}": 1.0}, "rates": {HOSTILE * 3: 1e-3}}
    line = json.dumps({"t": 0.0, "step": 1, "name": "step", "value": value})
    hostile.folder.write_segment("events", 1, "rank-0", 0, line.encode() + b"\n")
    hostile.end(1, "crashed", 75, message=f"{HOSTILE} {'word' * 100}", first_failed_node="n" * 200, seconds={HOSTILE: 1.0})
    hostile.finish(step=20, run_id=HOSTILE, stage=HOSTILE)
    manifest = hostile.folder.stage()
    assert manifest is not None
    write_suite(hostile.folder, "made", manifest.checkpoint, text=HOSTILE)
    return {name: page_of(root, name, folder / f"{name}.html") for name in ("finished-run", "going", "hostile")}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 721, 760, 800, 1181, 1280])
@pytest.mark.parametrize("name", ["finished-run", "going", "hostile"])
def test_nothing_is_cut_off_faint_or_wrong(tab: Tab, pages: dict[str, Path], name: str, width: int, scheme: str) -> None:
    tab.show(pages[name], width=width, scheme=scheme)
    assert tab.value("innerWidth") == width
    assert tab.value("document.documentElement.scrollWidth") <= width
    assert tab.value(WIDER_THAN_THE_WINDOW) == []
    assert name == "hostile" or tab.value(CUT_OFF_CELLS) == []
    assert name == "hostile" or tab.value(CUT_OFF_TEXTS) == []
    assert tab.value(FAINT_TEXTS) == []
    assert tab.value(SMALL_TEXTS) == []
    assert tab.value("document.scripts.length") == 0
    assert tab.value("[...document.images].filter(e => !e.naturalWidth).length") == 0
    assert tab.problems == []


def test_the_theme_follows_the_system(tab: Tab, pages: dict[str, Path]) -> None:
    behind = []
    for scheme in ("light", "dark"):
        tab.show(pages["finished-run"], width=1280, scheme=scheme)
        behind.append(sum(int(part) for part in tab.value("getComputedStyle(document.body).backgroundColor.match(/\\d+/g)")))
    assert behind[0] > 3 * 200
    assert behind[1] < 3 * 50


def test_the_checks_find_what_they_look_for(tab: Tab, tmp_path: Path) -> None:
    """A page with every fault at once."""
    page = tmp_path / "bad.html"
    page.write_text(
        "<body style='background:#fff'><div style='width:2000px'>wide</div>"
        "<p style='color:#ccc'>faint</p><p style='font-size:6px'>small</p>"
        "<script>console.error('x')</script><img src='https://127.0.0.1:9/x.png'>"
    )
    tab.show(page, width=360, scheme="light")
    assert tab.value("document.documentElement.scrollWidth") > 360
    assert len(tab.value(WIDER_THAN_THE_WINDOW)) >= 1
    assert [text for text, _ in tab.value(FAINT_TEXTS)] == ["faint"]
    assert [text for text, _ in tab.value(SMALL_TEXTS)] == ["small"]
    assert any("fetched https" in problem for problem in tab.problems)
    assert len(tab.problems) >= 2


def write_many(folder: JobFolder, attempt: int, made: range) -> None:
    """Steps as trainers tell them, by the quickest way: a segment of 5,000 with six phases each."""
    value = json.dumps({**step_value(1, 10, 0.0), "loss": "LOSS"}).replace('"LOSS"', "%d.25")
    phases = '{"t": 1.0, "step": 7, "name": "phase", "value": "forward"}\n' * 6
    for first in range(made.start, made.stop, 5000):
        steps = range(first, min(first + 5000, made.stop))
        lines = (f'{phases}{{"t": 1.0, "step": {step}, "name": "step", "value": {value % (step % 7)}}}\n' for step in steps)
        folder.write_segment("events", attempt, "rank-0", first // 5000, "".join(lines).encode())


def test_two_hundred_thousand_steps_are_shown_within_ten_seconds(tab: Tab, tmp_path: Path) -> None:
    steps = 200_000
    (book,) = write_run(tmp_path.as_uri(), "long", "pretrain")
    book.folder.write_plan(plan_of("pretrain", steps))
    book.start(1)
    write_many(book.folder, 1, range(1, steps // 4 + 1))
    book.end(1, "crashed", 75, step=steps // 4, committed_step=steps // 8, steps_lost=steps // 8)
    book.start(2, resumed_from_step=steps // 8)
    write_many(book.folder, 2, range(steps // 8 + 1, steps + 1))
    book.end(2, "done", 0, step=steps, committed_step=steps)
    before = time.process_time()  # other work on the machine is not the report's
    path = page_of(tmp_path.as_uri(), "long", tmp_path / "long.html")
    assert time.process_time() - before < 10.0
    assert path.stat().st_size < 2_000_000
    tab.show(path, width=360, scheme="dark")
    assert tab.value("document.documentElement.scrollWidth") <= 360
    assert tab.value("document.querySelectorAll('.charts svg polyline').length") >= 8
    assert tab.problems == []
