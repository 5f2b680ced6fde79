"""What several test files share: the built book, a browser, and the reasons for which tests are skipped."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

# Before torch is imported anywhere: several test processes share the cores, and spinning threads would starve each other.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch
from filelock import FileLock

if not torch.cuda.is_available():      # kernels are tested by interpretation, which is asked for before Triton is imported
    os.environ.setdefault("TRITON_INTERPRET", "1")

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = sorted(path.stem for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"))
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
        if item.get_closest_marker("data") and not os.environ.get("DDLIB_DATA"):
            item.add_marker(pytest.mark.skip(reason="DDLIB_DATA names no folder of full datasets"))
        if item.get_closest_marker("browser") and CHROMIUM is None:
            item.add_marker(pytest.mark.skip(reason="NO CHROMIUM: the book and JupyterLab were not tried in a browser"))


def pytest_terminal_summary(terminalreporter) -> None:
    if any("NO CHROMIUM" in str(report.longrepr) for report in terminalreporter.stats.get("skipped", [])):
        terminalreporter.section("BROWSER TESTS WERE SKIPPED: install chromium (apt-get install chromium)", sep="*", red=True)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """This process computes with one thread, like a sweep's child: another number of them gives other bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def processes_in(folder: Path) -> list[int]:
    """The processes that work in a folder or below it."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            inside = Path(os.readlink(entry / "cwd")).is_relative_to(folder)
            if inside and (entry / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found.append(int(entry.name))
        except OSError:                                          # it has just ended
            pass
    return found


def without_costs(rows: list[dict[str, str]]) -> list[tuple[str, ...]]:
    """Rows, in order, without what they cost."""
    from ddlib import evaluate
    from ddlib.sweep import driver

    return sorted(tuple(row[name] for name in evaluate.COLUMNS if name not in driver.COSTS) for row in rows)


def copy_sources(target: Path) -> Path:
    """The files that the book is made of, without anything that an earlier build or run left beside them."""
    for name in ("book", "notebooks"):
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns(".*", "__pycache__", "_build", "runs"))
    shutil.copy(ROOT / "_config.yml", target)
    return target


@pytest.fixture(scope="session")
def built_book(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The folder of the built book's pages. All workers of one test run share one build, which fails on any warning."""
    base = tmp_path_factory.getbasetemp()
    base = base if worker_id == "master" else base.parent
    source, log = base / "book-source", base / "book-build.log"
    with FileLock(str(base / "book.lock")):
        if not log.exists():
            source.mkdir()
            copy_sources(source)
            program = str(Path(sys.executable).with_name("jupyter-book"))
            command = [program, "build", ".", "--toc", "book/_toc.yml", "-W", "-n", "--keep-going"]
            done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=600)
            log.write_text(f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}")
    text = log.read_text()
    assert text.startswith("exit status 0\n"), f"the book does not build:\n{text[-6000:]}"
    return source / "_build" / "html"
