"""A reader's two ways into a chapter, in a real browser: the built page without a network, and JupyterLab.

Every request to another host than the one under test is blocked.
"""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from conftest import CHAPTERS, CHROMIUM, ROOT

playwright = pytest.importorskip("playwright.sync_api", reason="NO CHROMIUM: playwright is missing")

pytestmark = pytest.mark.browser

PATIENCE = 60_000  # ms for anything that a page does by itself; other tests may hold both cores
KNOWN_ERRORS = ("Identifier 'THEBE_JS_URL' has already been declared",)  # the theme adds one script twice


def stored(name: str) -> nbformat.NotebookNode:
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)


def has_figure(name: str) -> bool:
    return any("ddlib-widget" in str(cell.get("outputs", "")) for cell in stored(name).cells)


def has_live_widget(name: str) -> bool:
    return any("live" in cell.metadata.get("tags", []) for cell in stored(name).cells)


WITH_FIGURE = [name for name in CHAPTERS if has_figure(name)]
WITH_LIVE = [name for name in CHAPTERS if has_live_widget(name)]


@pytest.fixture(scope="module")
def served_book(built_book: Path) -> Iterator[str]:
    """The built book on a local address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(built_book)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


@pytest.fixture
def browser(tmp_path: Path):
    """A fresh Chromium profile. It notes foreign requests and page errors, and lets no foreign request through."""
    with playwright.sync_playwright() as program:
        context = program.chromium.launch_persistent_context(
            str(tmp_path / "profile"),
            executable_path=CHROMIUM,
            headless=True,
            viewport={"width": 1280, "height": 900},
            args=[
                "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--no-first-run",
                "--disable-background-networking", "--disable-component-update", "--disable-sync",
            ],
        )  # fmt: skip
        context.set_default_timeout(PATIENCE)
        context.foreign, context.errors = [], []

        def route(route) -> None:
            if route.request.url.startswith(("http://127.0.0.1:", "data:", "blob:")):
                route.continue_()
            else:
                context.foreign.append(route.request.url)
                route.abort()

        context.route("**/*", route)
        yield context
        context.close()


def open_page(browser, address: str):
    page = browser.pages[0] if browser.pages else browser.new_page()
    page.on("pageerror", lambda error: browser.errors.append(str(error)))
    page.goto(address, wait_until="load")
    return page


def assert_formulas_are_set(page) -> None:
    """Every formula of the page is set by MathJax; a page without formulas does not load it."""
    if not page.locator(".math").count():
        return
    page.wait_for_function("window.MathJax && MathJax.startup && MathJax.startup.promise", timeout=PATIENCE)
    page.evaluate("MathJax.startup.promise.then(() => true)")
    assert page.locator("mjx-container").count() >= page.locator(".math").count()
    assert page.locator("mjx-merror").count() == 0, "a formula is not valid TeX"
    assert "\\(" not in page.locator("article").inner_text(), "a formula was left as text"


def unknown_errors(browser) -> list[str]:
    return [error for error in browser.errors if not any(known in error for known in KNOWN_ERRORS)]


def assert_fits(page, width: int) -> None:
    """The page does not scroll sideways; what is too wide for it scrolls in a box of its own."""
    wide = page.evaluate("document.documentElement.scrollWidth")
    culprits = page.evaluate(
        """width => {
            const boxed = element => element && (getComputedStyle(element).overflowX !== "visible" || boxed(element.parentElement));
            return Array.from(document.querySelectorAll("article *"))
                .filter(element => element.getBoundingClientRect().right > width + 1 && !boxed(element.parentElement))
                .slice(0, 5).map(element => element.outerHTML.slice(0, 120));
        }""",
        width,
    )
    assert wide <= width + 1, f"the page is {wide} pixels wide on a screen of {width}: {culprits}"


def picture(widget) -> str:
    """Everything of a page figure that can change to the eye, apart from its slider and the value beside it."""
    return widget.evaluate(
        """element => {
            const copy = element.cloneNode(true);
            copy.querySelectorAll("input, output, script").forEach(part => part.remove());
            return copy.innerHTML + Array.from(element.querySelectorAll("canvas"), canvas => canvas.toDataURL()).join("|");
        }"""
    )


@pytest.mark.parametrize("name", WITH_FIGURE)
def test_a_slider_of_the_built_page_moves_its_figure_without_a_network(browser, served_book, name):
    page = open_page(browser, f"{served_book}/notebooks/{name}.html")
    widgets = page.locator(".ddlib-widget")
    for position in range(widgets.count()):
        widget = widgets.nth(position)
        slider, output = widget.locator("input[type=range]").first, widget.locator("output").first
        slider.scroll_into_view_if_needed()
        assert slider.evaluate("element => element.labels.length > 0 || !!element.getAttribute('aria-label')"), "the slider has no label"
        low, high, value = (float(slider.evaluate(f"element => element.{what}")) for what in ("min", "max", "value"))
        assert low < high

        text, drawing = output.inner_text(), picture(widget)
        slider.fill(slider.evaluate("element => element.max") if value < high else slider.evaluate("element => element.min"))
        assert output.inner_text() != text, "the value shown did not change"
        assert picture(widget) != drawing, "the figure did not change"

        slider.fill(slider.evaluate("element => element.min"))
        text, drawing = output.inner_text(), picture(widget)
        slider.focus()
        page.keyboard.press("ArrowRight")
        assert float(slider.evaluate("element => element.value")) > low, "the arrow key did not move the slider"
        assert output.inner_text() != text
        assert picture(widget) != drawing or position, "the arrow key did not change the first figure"
    assert unknown_errors(browser) == []
    assert browser.foreign == []


PAGES = [*(f"notebooks/{name}" for name in CHAPTERS), "book/index", "book/notation", "book/status", "book/references"]


@pytest.mark.parametrize("path", PAGES)
def test_a_built_page_fits_a_phone_and_a_desktop_and_sets_its_formulas(browser, served_book, tmp_path, path):
    page = open_page(browser, f"{served_book}/{path}.html")
    assert_formulas_are_set(page)
    for width, height in ((1280, 900), (390, 844)):
        page.set_viewport_size({"width": width, "height": height})
        page.wait_for_timeout(300)
        page.screenshot(path=str(tmp_path / f"{Path(path).name}-{width}.png"), full_page=True)
        assert_fits(page, width)
    assert unknown_errors(browser) == []
    assert browser.foreign == []


# -------------------------------------------------------------------------------------------------------------- JupyterLab


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, Path, int]]:
    """What `make lab` starts, over a copy of the notebooks: address, token, folder of the notebooks, process number.

    Configuration and results are its own; nothing is installed, and nothing is opened in a browser.
    """
    home = tmp_path_factory.mktemp("lab")
    folder, port = home / "notebooks", free_port()
    shutil.copytree(ROOT / "notebooks", folder, ignore=shutil.ignore_patterns(".*", "__pycache__", "*.py"))
    places = {name: str(home / name.lower()) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")}
    variables = {**os.environ, **places, "DDLIB_RUNS": str(home / "runs"), "PYDEVD_DISABLE_FILE_VALIDATION": "1", "BROWSER": "true"}
    settings = Path(places["JUPYTER_CONFIG_DIR"]) / "lab" / "user-settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false", "checkForUpdates": false}')
    log = (home / "lab.log").open("w")
    command = ["make", "-f", str(ROOT / "Makefile"), "-o", ".venv/.book", "lab", f"PORT={port}", f"PY={sys.executable}"]
    process = subprocess.Popen(command, env=variables, stdout=log, stderr=subprocess.STDOUT, cwd=home, start_new_session=True)
    server, deadline = 0, time.monotonic() + 120
    try:
        while True:
            try:
                (facts,) = (json.loads(path.read_text()) for path in Path(places["JUPYTER_RUNTIME_DIR"]).glob("jpserver-*.json"))
                server, address = facts["pid"], facts["url"].rstrip("/")
                urllib.request.urlopen(f"{address}/api/status?token={facts['token']}", timeout=5).close()
                break
            except (OSError, ValueError):                        # not there yet, or not written to its end
                assert process.poll() is None and time.monotonic() < deadline, (home / "lab.log").read_text()[-3000:]
                time.sleep(0.5)
        yield address, facts["token"], folder, server
    finally:
        for signal_number, patience in ((signal.SIGTERM, 30), (signal.SIGKILL, 5)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal_number)
            end = time.monotonic() + patience
            while (process.poll() is None or (server and Path(f"/proc/{server}").exists())) and time.monotonic() < end:
                time.sleep(0.1)
        log.close()


def listening(pid: int) -> set[str]:
    """Addresses, in the hexadecimal of /proc/net, at which a process waits for connections."""
    sockets = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            sockets.add(os.readlink(entry))
    lines = [line.split() for name in ("tcp", "tcp6") if Path(f"/proc/{pid}/net/{name}").exists()
             for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]]
    return {line[1].partition(":")[0] for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in sockets}


def status_of(address: str, **headers: str) -> int:
    """The HTTP status without following where it leads."""
    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *arguments) -> None:
            return None

    try:
        with urllib.request.build_opener(Stay).open(urllib.request.Request(address, headers=headers), timeout=30) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        with error:
            assert error.code != 302 or "/login?" in error.headers["Location"], error.headers["Location"]
            return error.code


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="only Linux tells who listens where in /proc")
def test_make_lab_listens_on_this_machine_only_and_asks_for_its_token(lab):
    address, token, _, server = lab
    assert listening(server) == {"0100007F"}, "127.0.0.1, and no other"
    assert re.fullmatch("[0-9a-f]{32,}", token), "drawn anew at every start"
    for place in ("/api/contents", "/api/kernels", "/api/terminals", "/files/notebooks/00_quickstart.ipynb"):
        assert status_of(address + place) in (302, 403), place
        assert status_of(f"{address}{place}?token={'0' * len(token)}") in (302, 403), place
    assert status_of(f"{address}/lab") == 302
    assert status_of(f"{address}/api/contents", Authorization=f"token {token}") == 200
    assert status_of(f"{address}/lab?token={token}") in (200, 302)
    # a page of another site whose name leads to this machine
    assert status_of(f"{address}/api/contents", Authorization=f"token {token}", Host="elsewhere.example") == 403


def run_all_cells(page, minutes: float) -> None:
    """Run > Run All Cells, then wait until the kernel has been busy and is idle again with no cell waiting."""
    # the indicator of the notebook says idle before there is a kernel; the status bar does not
    page.locator("#jp-main-statusbar", has_text=re.compile(r"\|\s*Idle")).wait_for(timeout=2 * PATIENCE)
    page.wait_for_timeout(2000)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.locator(".lm-Menu-item", has_text="Run All Cells").first.click()
    page.wait_for_timeout(1000)
    if page.locator(".jp-Dialog").count():  # "Select Kernel": the session was not quite there
        page.locator(".jp-Dialog .jp-mod-accept").click()
    page.wait_for_function(
        """() => {
            const indicator = document.querySelector(".jp-Notebook-ExecutionIndicator");
            const waiting = Array.from(document.querySelectorAll(".jp-CodeCell .jp-InputPrompt"), prompt => prompt.textContent);
            const started = window.ddlibStarted = window.ddlibStarted || waiting.some(text => text.includes("*"));
            return started && indicator.dataset.status === "idle" && !waiting.some(text => text.includes("*"));
        }""",
        timeout=minutes * 60_000,
        polling=500,
    )


def move_live_sliders(page) -> tuple[int, int]:
    """Move the slider of every live widget one step by keyboard: how many there are, and how many changed their output."""
    moved = changed = 0
    sliders = page.locator(".jp-OutputArea .widget-slider .noUi-handle, .jp-OutputArea .widget-hslider .noUi-handle")
    for position in range(sliders.count()):
        handle = sliders.nth(position)
        handle.scroll_into_view_if_needed()
        area = handle.locator("xpath=ancestor::*[contains(concat(' ', @class, ' '), ' jp-OutputArea ')][last()]")
        look = "area => Array.from(area.querySelectorAll('img, pre, svg, table, canvas'), part => part.src || part.innerHTML).join('|')"
        before, value = area.evaluate(look), handle.get_attribute("aria-valuenow")
        handle.focus()
        page.keyboard.press("ArrowRight")
        if handle.get_attribute("aria-valuenow") == value:  # it stood at its end
            page.keyboard.press("ArrowLeft")
        assert handle.get_attribute("aria-valuenow") != value, "the slider does not move"
        moved += 1
        for _ in range(PATIENCE // 500):
            if area.evaluate(look) != before:
                changed += 1
                break
            page.wait_for_timeout(500)
    return moved, changed


@pytest.mark.slow
@pytest.mark.skipif(not WITH_LIVE, reason="no stored chapter has a live widget")
def test_a_chapter_runs_in_jupyterlab_and_its_live_widget_moves(browser, lab, tmp_path):
    name = "01_dataset_distillation" if "01_dataset_distillation" in WITH_LIVE else WITH_LIVE[0]
    address, token, folder, _ = lab
    page = open_page(browser, f"{address}/lab/tree/{name}.ipynb?token={token}")
    page.locator(".jp-NotebookPanel .jp-Cell").first.wait_for(timeout=2 * PATIENCE)
    run_all_cells(page, minutes=10)
    page.screenshot(path=str(tmp_path / "lab.png"))

    live = page.locator(".jp-Notebook")
    moved = changed = 0
    for _ in range(60):  # cells outside the view are not in the page: go down step by step
        moved, changed = move_live_sliders(page)
        if moved:
            break
        live.hover()
        page.mouse.wheel(0, 600)
        page.wait_for_timeout(300)
    page.screenshot(path=str(tmp_path / "lab-widget.png"))
    assert moved, "no live slider appeared"
    assert changed == moved, "moving a live slider did not change its output"

    page.keyboard.press("Escape")
    page.keyboard.press("Control+s")
    executed = folder / f"{name}.ipynb"
    for _ in range(60):
        notebook = nbformat.read(executed, as_version=4)
        cells = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
        if all(cell.execution_count for cell in cells):
            break
        page.wait_for_timeout(500)
    failed = [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    assert failed == []
    assert browser.foreign == []
