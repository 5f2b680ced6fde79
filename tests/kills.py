"""Kill every method over and over and see that its results do not notice: `python tests/kills.py --kills 100`.

A chain begins in an empty folder with a method's `tiny` preset, evaluation included, which is killed (SIGKILL, its whole process
group), started again, killed again, up to five times, and then left alone. Whatever it leaves is compared with what an undisturbed
run left: every file bit by bit, but for the times it took, and not one file more or less.

Half a second of work would hide behind seconds of loading torch, so a server loads torch once, does nothing with it, and forks a
process for each life, which then imports ddlib and runs the method's command. Moments are drawn evenly from the time that an
undisturbed life takes, or (`--events`) from its file operations: the kill then comes right before a file is opened for writing,
renamed or removed, or a folder is made. Lives save after every step, or hardly ever, by chance. The first chain of a method ends with
the command as a user would type it. The code is copied first: nobody's edit is taken for a fault.
"""

from __future__ import annotations

import argparse
import compileall
import csv
import json
import os
import random
import re
import runpy
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
METHODS = sorted(path.stem for path in (ROOT / "ddlib" / "methods").glob("[a-z]*.py"))
CHAIN = 5                                                        # kills of a chain at most
LIMIT = 120.0                                                    # seconds after which a life counts as hung
COMMAND = ["--preset", "tiny", "--out", "run", "--snapshots", "2", "--evaluate", "strict-cpu", "--networks", "convnet3:4",
           "--results", "rows.csv"]
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "DDLIB_RUNS": "."}


# ------------------------------------------------------------------------------------------------------------ the server

def serve() -> None:
    """Live as each line of stdin says, one after the other, and answer with how it ended."""
    import torch  # noqa: F401 - loaded, and left alone: a process that has computed must not fork
    import torchvision.datasets  # noqa: F401

    for line in sys.stdin:
        order = json.loads(line)
        started, pid = time.monotonic(), os.fork()
        if not pid:
            live(order)
        wait, ended = select.poll(), os.pidfd_open(pid)
        wait.register(ended, select.POLLIN)
        if not wait.poll(1000 * min(LIMIT, order["kill_after"] or LIMIT)):
            for kill, number in ((os.killpg, pid), (os.kill, pid)):      # the group, unless it is not there yet
                with suppress(ProcessLookupError):
                    kill(number, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os.close(ended)
        print(json.dumps({"status": status, "seconds": time.monotonic() - started}), flush=True)


def live(order: dict[str, Any]) -> None:
    """The child's whole life."""
    status = 1
    try:
        os.setsid()
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for number, file in ((0, os.open(os.devnull, os.O_RDONLY)), (1, log), (2, log)):
            os.dup2(file, number)
        os.chdir(order["folder"])
        if order["typed"]:
            os.environ["PYTHONPATH"] = order["code"]
            os.execv(sys.executable, [sys.executable, "-m", f"ddlib.methods.{order['method']}", *order["words"]])
        sys.path.insert(0, order["code"])
        events = count_events(order["kill_at"])
        from ddlib import experts, runs
        assert Path(runs.__file__).is_relative_to(order["code"])
        assert runs.run.__kwdefaults__ is not None
        runs.run.__kwdefaults__["checkpoint_seconds"] = experts.SAVE_SECONDS = order["save_every"]
        sys.argv = ["", *order["words"]]
        try:
            runpy.run_module(f"ddlib.methods.{order['method']}", run_name="__main__", alter_sys=True)
        except SystemExit as end:
            status = int(end.code or 0)
        Path(order["log"]).with_suffix(".events").write_text(str(events[0]))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def count_events(kill_at: int | None) -> list[int]:
    """A counter of the file operations in this folder from now on; the process is killed before number `kill_at`, from 0."""
    events, here = [0], os.getcwd() + os.sep
    changing = os.O_WRONLY | os.O_RDWR

    def hook(name: str, values: tuple[Any, ...]) -> None:
        changes = name in ("os.rename", "os.remove", "os.mkdir") or (name == "open" and bool((values[2] or 0) & changing))
        if changes and isinstance(values[0], str | os.PathLike) and os.path.abspath(values[0]).startswith(here):
            if events[0] == kill_at:
                os.killpg(0, signal.SIGKILL)
            events[0] += 1

    sys.addaudithook(hook)
    return events


# ------------------------------------------------------------------------------------------------------------- the chains

class Lives:
    """A server and the folder in which its children live."""

    def __init__(self, home: Path):
        self.home, self.code = home, home / "code"
        shutil.copytree(ROOT / "ddlib", self.code / "ddlib", ignore=shutil.ignore_patterns("__pycache__"))
        compileall.compile_dir(self.code, quiet=1)
        self.server = subprocess.Popen([sys.executable, __file__, "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                       env={**os.environ, **ENVIRONMENT})

    def live(self, method: str, folder: Path, *, save_every: float = 0.0, kill_after: float | None = None, kill_at: int | None = None,
             typed: bool = False) -> tuple[bool, float]:
        """(whether it was killed, seconds) of one life of the method's command in `folder`; RuntimeError if it fails or hangs."""
        folder.mkdir(parents=True, exist_ok=True)
        order = {"method": method, "folder": str(folder), "log": f"{folder}.log", "code": str(self.code), "save_every": save_every,
                 "kill_after": kill_after, "kill_at": kill_at, "typed": typed, "words": COMMAND}
        assert self.server.stdin is not None and self.server.stdout is not None
        print(json.dumps(order), file=self.server.stdin, flush=True)
        answer = json.loads(self.server.stdout.readline())
        killed = answer["status"] == -signal.SIGKILL
        if answer["status"] != 0 and not killed:
            raise RuntimeError(f"{method} failed in {folder}:\n{Path(f'{folder}.log').read_text()[-3000:]}")
        if killed and kill_after is None and kill_at is None:
            raise RuntimeError(f"{method} was not ready after {LIMIT:.0f} s in {folder}:\n{Path(f'{folder}.log').read_text()[-3000:]}")
        return killed, answer["seconds"]


@contextmanager
def lives(home: Path) -> Iterator[Lives]:
    server = Lives(home)
    try:
        yield server
    finally:
        server.server.kill()
        server.server.communicate()


def content(path: Path) -> Any:
    """What has to be equal of a file: everything but how long things took."""
    if path.name == "time.json":
        return sorted(json.loads(path.read_text()))
    if path.name == "rows.csv":
        with open(path, newline="") as file:
            return [{name: value for name, value in row.items() if name not in ("minutes", "peak_mb")} for row in csv.DictReader(file)]
    if path.name.startswith("network-"):
        from ddlib import files
        header, tensors = files.read_tensors(path, "network")
        return {name: value for name, value in header.items() if name != "seconds"}, files.digest({}, tensors)
    return path.read_bytes()


def differences(folder: Path, reference: Path) -> list[str]:
    """How what lies in two folders differs, a line a file; nothing where it does not."""
    found, wanted = ({str(path.relative_to(each)) for path in each.rglob("*") if path.is_file()} for each in (folder, reference))
    return [*(f"{name} is missing" for name in sorted(wanted - found)), *(f"{name} is left over" for name in sorted(found - wanted)),
            *(f"{name} differs" for name in sorted(found & wanted) if content(folder / name) != content(reference / name))]


def doing(folder: Path, since: float) -> str:
    """What a life was at when it was killed, as the file tells that it changed last."""
    changed = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock" and path.stat().st_mtime >= since]
    if not changed:
        return "starting"
    last = max(changed, key=lambda path: path.stat().st_mtime_ns)
    if last.name.endswith(".part"):
        return "saving"
    if last.relative_to(folder).parts[0] in ("gan", "experts"):
        return "preparing"
    return "evaluating" if re.match(r"network-|rows|distilled", last.name) else "distilling"


def run(server: Lives, kills: int, events: int, seed: int, methods: Sequence[str], typed: bool = True) -> tuple[int, list[str]]:
    """Chains over the methods in turn until there were so many kills: how many there were, and what differed or was left over.

    typed: whether the last life of a method's first chain is the command as a user would type it.
    """
    home, draw = server.home, random.Random(seed)
    kinds = ["moment"] * kills + ["event"] * events
    draw.shuffle(kinds)
    total, where, resumed, faults = 0, Counter[str](), 0, []
    lifetimes: dict[str, tuple[float, int]] = {}
    for number in range(10 * len(kinds)):
        if not kinds:
            break
        method = methods[number % len(methods)]
        reference = home / "undisturbed" / method
        if first := method not in lifetimes:
            _, seconds = server.live(method, reference)
            lifetimes[method] = seconds, int(reference.parent.joinpath(f"{method}.events").read_text())
        folder, story, ready = home / f"chain-{number}", [], False
        for _ in range(min(CHAIN, len(kinds))):
            began, seconds = any(folder.rglob("*.safetensors")), draw.uniform(0, lifetimes[method][0])
            at = {"moment": {"kill_after": seconds}, "event": {"kill_at": draw.randrange(lifetimes[method][1])}}[kinds[-1]]
            since = time.time()
            killed, seconds = server.live(method, folder, save_every=draw.choice([0.0, 0.0, 20.0]), **at)
            if not killed:
                ready = True
                break
            kinds.pop()
            total, resumed, story = total + 1, resumed + began, [*story, doing(folder, since)]
            where[story[-1]] += 1
        if (first and typed) or not ready:
            server.live(method, folder, save_every=20.0, typed=first and typed)
        found = differences(folder, reference)
        faults += [f"{method}, killed when {', '.join(story)} (seed {seed}, chain {number}): {each}" for each in found]
        print(f"{method}: {len(story)} kills ({', '.join(story) or 'too late for any'}): {'; '.join(found) or 'the same'}", flush=True)
        if not found:
            shutil.rmtree(folder)
    print(f"{total} kills, {resumed} of them of lives that went on from something saved; they came when lives were "
          + ", ".join(f"{phase} ({count})" for phase, count in where.most_common()))
    return total, faults


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="kills at random moments (default %(default)s)")
    parser.add_argument("--events", type=int, default=30, help="kills right before random file operations (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, metavar="NAME", help=f"some of {', '.join(METHODS)}")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve()
        return 0
    home, started = Path(tempfile.mkdtemp(prefix="kills-")), time.monotonic()
    with lives(home) as server:
        _, faults = run(server, given.kills, given.events, given.seed, given.methods)
    print(f"{(time.monotonic() - started) / 60:.1f} minutes; "
          + ("\n".join([f"DIFFERENCES, folders kept in {home}:", *faults]) if faults else "no difference, nothing left over"))
    if not faults:
        shutil.rmtree(home)
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
