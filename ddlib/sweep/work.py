"""One task of a sweep: a child process in a folder of its own, watched, and a record of it that is whole or absent.

`execute` is the same on one machine and inside a Ray task. Whoever loses a worker calls it again, anywhere: a finished task is
recognised by its record, an unfinished one goes on from its checkpoint, and one whose files are damaged begins anew.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ddlib import files
from ddlib.sweep.store import State, Store, first_line, state

PACKAGE = Path(__file__).resolve().parent.parent
GRACE_SECONDS = 3.0                                              # between asking a child to end and ending it
SHOWING = ("plots.py", "widgets.py", "papers.py", "chapter.py")  # what no method imports
LOCK_SECONDS = 150.0                                             # how long a lost worker's child may linger in the folder
# A child must not outlive its worker, which may be killed without a chance to say so: Linux tells it, others let it finish.
LEASH = """import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)                   # PR_SET_PDEATHSIG
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the worker is gone")
os.execv(sys.argv[2], sys.argv[2:])"""

stopping = threading.Event()                                     # set when the sweep is interrupted on this machine


class Failed(RuntimeError):
    """Why an attempt failed, in one line."""


class Stopped(RuntimeError):
    """The sweep was interrupted."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A run of a method or a chapter, or what several runs begin with: one expert of a buffer, a GAN."""

    name: str                                                    # unique, stable and readable
    kind: str                                                    # "method", "chapter", "expert" or "gan"
    words: tuple[str, ...]                                       # the command after `python -m`, as its rows give it
    identity: str                                                # of all that decides the result
    code: str                                                    # `code_version` where the sweep was started
    chapter: str = ""
    rows: int = 0                                                # rows that a method's run ends with; 1 for a chapter that writes any
    cpus: int = 1
    gpus: float = 0.0
    memory_gb: float = 0.0
    timeout_minutes: float = 0.0                                 # 0: none
    retries: int = 1
    needs: tuple[str, ...] = ()                                  # folders of the tasks that come before
    place: str = ""                                              # where a GAN lies in $DDLIB_RUNS
    data: str = ""                                               # fingerprint of a method's dataset
    data_folder: str = ""                                        # $DDLIB_DATA where the sweep was started
    kernels: str = ""                                            # and $DDLIB_KERNELS
    kept: str = ""                                               # its folder, if it was begun under another name

    @property
    def folder(self) -> str:
        return self.kept or f"{self.name}-{self.identity[:8]}"

    @property
    def shown(self) -> str:
        """The command as a reader can type it."""
        return shlex.join(["python", "-m", *self.words])

    def command(self, folder: Path) -> list[str]:
        """The child's command; it runs in `folder`. Paths are relative, because a method's rows repeat its command."""
        places: list[str] = []
        if self.kind == "chapter":
            places = [*(["-p", "results", str(folder / "rows.csv")] if self.rows else []), "--out", str(folder)]
        elif self.kind == "method":                              # a GAN lies where the methods that start from it look for it
            places = [*([] if self.place else ["--out", "."]), "--results", "rows.csv"]
        return [sys.executable, "-m", *self.words, *places]


def hashed(path: Path) -> str:
    """SHA-256 of a file, read once as long as it does not change."""
    return _hashed(path, state(path))


@cache
def _hashed(path: Path, state: State) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def code_version(chapter: str = "", all_of_it: bool = False) -> str:
    """What the code of this ddlib is: 16 hex digits of a hash of torch's version and of the files that a result can depend on.

    For a method these are all but those that show, for a chapter (by name) also they and its notebook; never the sweep itself,
    unless all of it is asked, because it only starts what could be typed. Data that come with the package count as code.
    """
    from importlib.metadata import version

    sha = hashlib.sha256(version("torch").split("+")[0].encode())
    aside = () if all_of_it else ("sweep",) if chapter else ("sweep", *SHOWING)
    notebook = [PACKAGE.parent / "notebooks" / f"{chapter}.ipynb"] if chapter else []
    for path in [*sorted(PACKAGE.rglob("*.py")), *sorted((PACKAGE / "assets").iterdir()), *notebook]:
        if path.is_relative_to(PACKAGE) and path.relative_to(PACKAGE).parts[0] in aside:
            continue
        sha.update(f"{path.relative_to(PACKAGE.parent)} {hashed(path)}\n".encode())
    return sha.hexdigest()[:16]


def finished(task: Task, store: Store) -> tuple[dict[str, Any] | None, str]:
    """(the record of a task that was finished before, or None; what is wrong with one that there is)."""
    text = store.read(task.folder, "record.json")
    if text is None or task.kind == "gan":                       # which is looked at where it lies: that takes seconds
        return None, ""
    if task.place and not store.remote and not (store.shared / task.place / "distilled.safetensors").is_file():
        return None, f"{store.shared / task.place} is not what it was"
    try:
        record = json.loads(text)
        if record["identity"] != task.identity:
            return None, "its record is of another run"
        changed = [name for name, digest in record["files"].items() if store.digest(task.folder, name) != digest]
    except (ValueError, KeyError, TypeError, AttributeError):
        return None, "its record is damaged"
    return (None, f"{', '.join(changed)} changed after it was finished") if changed else (record, "")


def execute(task: Task, store: Store, session: str, gpus: str | None = None) -> dict[str, Any]:
    """Do a task, or as much of it as is missing; never raises what a run can do wrong, except Stopped.

    session: names this start of the sweep. gpus: CUDA_VISIBLE_DEVICES of the child; None: as it is here.

    Returns its record: {"state": "finished" or "failed", "error": one line, "rows", "files": {name: SHA-256}, "minutes",
    "bytes", "attempts": those of all sessions, each with "session", "node", "outcome" and "notes"}.
    """
    attempt: dict[str, Any] = {"session": session, "node": node(), "outcome": "lost", "notes": []}
    attempts: list[dict[str, Any]] = []
    record: dict[str, Any] = {"name": task.name, "identity": task.identity, "state": "failed", "error": "", "rows": [], "files": {},
                              "minutes": 0.0, "bytes": 0, "attempts": attempts}
    try:
        if code_version(task.chapter) != task.code:
            raise Failed("ddlib is not the version that the sweep was started with: start the sweep again")
        with store.open(task.folder, task.needs) as (folder, home), held(folder) as lock:
            attempts += load_json(folder / "attempts.json", [])
            before, problem = finished(task, store)
            if before:
                return before | {"attempts": attempts}
            last = attempts[-1]["outcome"] if attempts else ""
            asked = last if re.search(r"delete (it|its folder)\b", last) else ""    # the method has found what `damage` does not look at
            if problem := problem or ("" if task.place else asked) or damage(folder):
                set_aside(folder)
                attempt["notes"].append(f"began anew: {problem}")
            if task.place and (problem := damage_of_shared(home / task.place, asked)):
                attempt["notes"].append(f"began anew: {problem}")
            attempts.append(attempt)
            save_attempts(folder, attempts)
            try:
                started = time.monotonic()
                attempt["notes"] += mending(lambda: child(task, folder, home, lock, gpus))
                if task.data and (found := load_json(folder / "config.json", {}).get("data", task.data)) != task.data:
                    raise Failed(f"its dataset is another one on {node()} ({found}) than where the sweep was started ({task.data})")
                rows = read_rows(task, folder)
                attempt["outcome"] = "finished"
                record |= {"state": "finished", "rows": rows, "files": digests(folder), "minutes": (time.monotonic() - started) / 60,
                           "bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())}
                save_attempts(folder, attempts)
                files.write_text(folder / "record.json", json.dumps(record, indent=1))
            except Exception as error:
                attempt["outcome"] = "interrupted" if isinstance(error, Stopped) else plain(error, folder)
                with suppress(OSError):
                    save_attempts(folder, attempts)
                raise
    except Stopped:
        raise
    except Exception as error:                                   # storage has errors of its own: one run fails, not the sweep
        problem = attempt["outcome"] = attempt["outcome"] if attempt["outcome"] not in ("lost", "finished") else plain(error)
        if attempt not in attempts:
            attempts.append(attempt)
        record |= {"state": "failed", "error": problem, "rows": [], "files": {}}
    return record


def node() -> str:
    """What this machine is called: the node's number in a Ray cluster, else the host's name."""
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        with suppress(Exception):                                # outside of a task there is no number
            return sys.modules["ray"].get_runtime_context().get_node_id()[:8]
    return socket.gethostname()


def plain(error: BaseException, folder: Path | None = None) -> str:
    """What went wrong in one line. A full disk leaves no room for a log that says so, and is named here."""
    text = str(error)
    full = folder is not None and shutil.disk_usage(folder).free < 2**16
    if full or "No space left" in text or "StorageFull" in text or "Disk quota" in text:
        return f"the disk of {folder or 'the sweep'} is full: make room and start the sweep again"
    return first_line(error)


def load_json(path: Path, default: Any) -> Any:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return default


def save_attempts(folder: Path, attempts: list[dict[str, Any]]) -> None:
    """Write attempts.json whole; over itself if the disk is too full for two of it, because that is what it is to say."""
    text = json.dumps(attempts, indent=1)
    try:
        files.write_text(folder / "attempts.json", text)
    except OSError:
        (folder / "attempts.json").write_text(text)


@contextmanager
def held(folder: Path) -> Iterator[int]:
    """Hold the folder, also against the child of a worker that was lost, which inherits the lock and dies soon."""
    deadline, lock = time.monotonic() + LOCK_SECONDS, None
    while lock is None:
        try:
            lock = files.lock(folder / ".sweep", 0.5)
        except BlockingIOError:
            if stopping.is_set():
                raise Stopped("the sweep was interrupted") from None
            if time.monotonic() > deadline:
                raise Failed(f"another process is working in {folder}: is the same sweep running twice?") from None
    with lock:
        yield lock.fileno()


def damage(folder: Path) -> str:
    """The first file of an unfinished run that is not what it was written as; "" where there is none."""
    kinds = {"checkpoint": "checkpoint", "final": "checkpoint", "distilled": "distilled", "network": "network", "step": "distilled"}
    for path in sorted(folder.rglob("*.safetensors")):
        own = path.relative_to(folder).parts[0] not in ("home", "aside")
        if own and (kind := kinds.get(path.stem.split("-")[0])) is not None:
            try:
                files.verify(path, kind)
            except FileNotFoundError:                            # a checkpoint that has just given way to the finished set
                continue
            except ValueError as error:
                return str(error).removeprefix(f"{folder}/")
    for name in ("config.json", "time.json"):
        if load_json(folder / name, {}) == {} and (folder / name).is_file():
            return f"{name} is damaged"
    return ""


def mending(work: Callable[[], None]) -> list[str]:
    """Do `work` until nothing that runs share, and that it sets aside, is found to be damaged in it; returns what was."""
    found: list[str] = []
    while True:
        try:
            work()
            return found
        except Failed as error:                                  # one file is made again once
            line = f"went on, with what was damaged made again: {error}"
            if line in found or not re.search(r"is [\w-]+\.damaged now\b", line):
                raise
            found.append(line)


def damage_of_shared(folder: Path, known: str = "") -> str:
    """`damage` of a folder that other runs may be working in, known or found, which is set aside if there is any."""
    from ddlib import runs

    if not folder.is_dir():
        return ""
    with suppress(ValueError), runs.alone(folder):               # whoever works in it has looked
        if problem := known or damage(folder):
            set_aside(folder)
        return problem
    return ""


def set_aside(folder: Path) -> None:
    """Move what is in the folder, but for its log and lock, to a new folder in `aside`."""
    (folder / "aside").mkdir(exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=time.strftime("%Y%m%d-%H%M%S-"), dir=folder / "aside"))
    for path in list(folder.iterdir()):
        if path.name not in ("aside", "home", ".sweep", ".lock", "log.txt", "attempts.json"):
            path.rename(aside / path.name)


def child(task: Task, folder: Path, home: Path, lock: int, gpus: str | None) -> None:
    """Run the task's command to its end; Failed with what it said if that is not a good one."""
    if task.kind == "chapter":                                   # begins at the top, and would append its rows again
        (folder / "rows.csv").unlink(missing_ok=True)
    limit = time.monotonic() + 60 * task.timeout_minutes if task.timeout_minutes else float("inf")
    threads = str(task.cpus)
    environment = os.environ | {
        "DDLIB_RUNS": str(home), "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")])), "PYTHONUNBUFFERED": "1"}
    environment |= {"DDLIB_DATA": task.data_folder} if task.data_folder else {}
    environment |= {"DDLIB_KERNELS": task.kernels} if task.kernels else {}
    if not task.kernels:
        environment.pop("DDLIB_KERNELS", None)
    environment |= {} if gpus is None else {"CUDA_VISIBLE_DEVICES": gpus}
    with open(folder / "log.txt", "a+", encoding="utf-8", errors="replace") as log:
        log.write(f"--- {task.shown} on {node()}, {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        log.flush()
        begun = log.tell()
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", LEASH, str(os.getpid()), *task.command(folder)], cwd=folder, env=environment,
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, pass_fds=[lock])
        try:
            while process.poll() is None:
                if stopping.is_set():
                    raise Stopped("the sweep was interrupted")
                if time.monotonic() > limit:
                    raise Failed(f"ran past its limit of {task.timeout_minutes:g} minutes and was stopped")
                with suppress(subprocess.TimeoutExpired):
                    process.wait(0.2)
        finally:
            end(process)
        if process.returncode:
            log.seek(begun)
            raise Failed(first_error(log.read(), process.returncode))


def end(process: subprocess.Popen[bytes]) -> None:
    """End a child, if it has not ended, with all that it has started, a chapter's kernel in a session of its own included."""
    if process.poll() is not None:                               # what it has left behind in its group would work on in the folder
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        return
    family: list[Any] = []
    with suppress(Exception):                                    # comes with Jupyter, and only chapters need it
        import psutil
        family = psutil.Process(process.pid).children(recursive=True)
    for number in (signal.SIGINT, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)
    for member in family:
        with suppress(Exception):                                # gone by now, most of them
            member.kill()


def first_error(log: str, status: int) -> str:
    """The line of a log that says why a command failed."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    for pattern in (r"error: ", r"[\w.]+ failed: ", r"[\w.]+(Error|Exception|Diverged)\b.*: "):
        if found := next((line for line in lines if re.match(pattern, line)), ""):
            return found.removeprefix("error: ")
    if status < 0:
        killed = signal.Signals(-status).name
        return f"was ended by {killed}" + (", most often for want of memory" if killed == "SIGKILL" else "")
    return f"ended with status {status}" + (f": {lines[-1]}" if lines else "")


def read_rows(task: Task, folder: Path) -> list[dict[str, str]]:
    """The rows that a run has left, with the command that a reader can type; Failed if a method's are not all there."""
    rows = []
    if (folder / "rows.csv").is_file():
        with open(folder / "rows.csv", newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if None not in row and None not in row.values()]
    if task.kind == "method":                                    # a line that was torn when the disk was full has another command
        given = shlex.join(["python", "-m", *task.command(folder)[2:]])
        rows = [row | {"command": task.shown} for row in rows if row["command"] == given]
        if len(rows) != task.rows:
            raise Failed(f"ended with {len(rows)} rows in place of {task.rows}: see its log.txt")
    return rows


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of what must not change: not a notebook, which is saved by looking at it, nor networks of evaluations, which are there
    to resume with, nor buffers, which check themselves."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        skip = name.name.startswith((".", "network-")) or name.name in ("log.txt", "attempts.json", "record.json")
        skip = skip or name.suffix == ".ipynb"
        if path.is_file() and not skip and name.parts[0] not in ("aside", "home"):
            with open(path, "rb") as file:
                found[name.as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
