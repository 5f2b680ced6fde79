"""Runs: where files go, where a number comes from, progress on the screen, and work that resumes with the same bits."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import torch

from ddlib import data, distilled, files
from ddlib.methods import Diverged, Method, Step, Unfit

T = TypeVar("T")
ROOT = Path(__file__).resolve().parent.parent                    # the repository, when ddlib runs from one


def stream(seed: int, *names: str | int) -> torch.Generator:
    """A random stream of its own for every purpose: `stream(seed, "augment", 3)`. The same names give the same stream."""
    key = hashlib.sha256(repr((seed, *names)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(key[:8], "little") >> 1)


def pick_device() -> torch.device:
    """The GPU if there is one, else the CPU. Called once, in the notebook or the command line."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name(device: torch.device | str) -> str:
    """How a device is called in tables: the GPU's name, or the number of CPU threads in use."""
    device, threads = torch.device(device), torch.get_num_threads()
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({threads} thread{'s' * (threads > 1)})"


def folder(*parts: str) -> Path:
    """A folder for output, made if missing: $DDLIB_RUNS, or `runs` in the repository (elsewhere: in this folder)."""
    home = os.environ.get("DDLIB_RUNS") or ((ROOT if (ROOT / "pyproject.toml").is_file() else Path.cwd()) / "runs")
    path = Path(home).joinpath(*parts)
    path.mkdir(parents=True, exist_ok=True)
    return path


@cache
def provenance() -> dict[str, str]:
    """What made a result: commit (with + where files had been changed) and the versions of the libraries."""
    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        if not (ROOT / "pyproject.toml").is_file():              # installed somewhere: a repository around it is not ours
            raise OSError
        commit = git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "--", "ddlib") else "")
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    versions = {}
    for package in ("ddlib", "torch", "torchvision", "numpy", "safetensors"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "unknown"
    return {"commit": commit, "python": platform.python_version(), **versions}


def progress(items: Iterable[T], total: int, every: int = 50, title: str = "") -> Iterator[T]:
    """Pass `items` on, with a bar on a terminal and a plain line every `every` items anywhere else.

    A `Step` shows its losses.
    """
    bar = None
    if sys.stderr.isatty():
        try:
            from tqdm import tqdm
            bar = tqdm(total=total, desc=title, leave=False)
        except ImportError:
            pass                                                 # tqdm is an extra: plain lines do as well
    try:
        for count, item in enumerate(items, start=1):
            losses = ""
            if isinstance(item, Step):                           # a resumed run starts at a later step
                count, losses = item.index, "  ".join(f"{name} {value:.4g}" for name, value in item.losses.items())
            if bar is not None:
                bar.n = count
                bar.set_postfix_str(losses, refresh=False)
                bar.update(0)
            elif count % every == 0 or count == total:
                print(f"{title + ' ' if title else ''}{count}/{total}  {losses}".rstrip(), flush=True)
            yield item
    finally:
        if bar is not None:
            bar.close()


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run left: the distilled set (None while unfinished), steps done of total, minutes so far, and the folder."""

    syn: distilled.DistilledSet | None
    steps: int
    total: int
    minutes: float
    folder: Path

    @property
    def finished(self) -> bool:
        return self.syn is not None

    def snapshots(self) -> dict[int, distilled.DistilledSet]:
        """The sets that were kept on the way, by step."""
        return {int(path.stem.split("-")[1]): distilled.load(path) for path in sorted((self.folder / "snapshots").glob("step-*"))}

    def metrics(self) -> dict[str, list[float]]:
        """The columns of metrics.csv: step and every loss term."""
        with open(self.folder / "metrics.csv", newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return {name: [float(row[name]) for row in rows] for name in (rows[0] if rows else {})}


def run(method: Method, config: Any, out: Path | str, *, real: data.ImageSet | None = None, minutes: float = math.inf,
        every: int = 50, snapshots: int = 0, checkpoint_seconds: float = 20.0, device: torch.device | str | None = None,
        keep_checkpoint: bool = False, wait: bool = False) -> Result:
    """Distil with `method` (a module of ddlib.methods) into the folder `out`, resuming what is there.

    every: a line of progress every so many steps, where there is no terminal. snapshots: how many sets to keep on the way,
    evenly spaced, besides the one after the first step. keep_checkpoint: leave the state after the last step, too, for another
    method to go on from (`read_checkpoint`). wait: until a process that works in the folder is done, not ValueError at once.

    Writes config.json, metrics.csv, checkpoint.safetensors (about every `checkpoint_seconds`) and, at the end,
    distilled.safetensors. On a CPU, a run that is killed and started again with the same thread count ends with the same
    bytes of metrics and set as one that was not (a GPU adds up gradients in no fixed order). Stops cleanly after `minutes`.
    A folder that holds a finished run of the same config on the same data is read, not run again; one of another raises
    ValueError. Raises Diverged, with the last good set in last_good.safetensors, when a loss stops being finite.
    """
    out, started = Path(out), time.monotonic()
    if not minutes > 0:
        raise ValueError(f"minutes must be above 0, got {minutes}: leave it out to run to the end")
    real = real or load_data(config).to(device or pick_device())
    with alone(out, 60 * minutes if wait else 0.0):
        return run_alone(method, config, out, real, started, minutes, every, snapshots, checkpoint_seconds, keep_checkpoint)


def read_checkpoint(folder: Path | str) -> dict[str, Any]:
    """What `Step.state()` gave after the last step of a run with keep_checkpoint, and its number as "index"; on the CPU."""
    path = Path(folder) / "final.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: finish the run with keep_checkpoint=True, from the beginning if it ended without")
    return files.read_tree(path, "checkpoint")[1]


def load_data(config: Any, root: Path | str | None = None) -> data.ImageSet:
    """The dataset of a config, with the preprocessing that it asks for."""
    return data.load(config.dataset, root, preprocess=getattr(config, "preprocess", None))


def run_alone(method: Method, config: Any, out: Path, real: data.ImageSet, started: float, minutes: float, every: int,
              snapshots: int, checkpoint_seconds: float, keep_checkpoint: bool) -> Result:
    """`run`, once nobody else is in the folder."""
    claim = json.loads(json.dumps({"method": method.NAME, **dataclasses.asdict(config), "data": real.fingerprint,
                                   "preprocess": real.preprocess.kind}))
    check_claim(out, claim)
    spent = minutes_so_far(out / "time.json")
    if (out / "distilled.safetensors").is_file():
        if keep_checkpoint and not (out / "final.safetensors").is_file():
            raise ValueError(f"the finished run in {out} did not keep its last state: delete that folder to run it again")
        print(f"{method.NAME}: this run was finished before and is read from {out}; delete that folder to run it again")
        syn = distilled.load(out / "distilled.safetensors")
        tidy(out)                                                # it may have been killed before it came to that
        return Result(syn, config.steps, config.steps, spent, out)

    resume = None
    if (out / "checkpoint.safetensors").is_file():
        header, resume = files.read_tree(out / "checkpoint.safetensors", "checkpoint")
        if not (isinstance(resume, dict) and type(resume.get("index")) is int and 0 < resume["index"] < config.steps):
            raise ValueError(f"{out / 'checkpoint.safetensors'} is of no step from 1 to {config.steps - 1}: delete it to begin anew")
        if header.get("made_by") != made_by(real):
            print(f"{method.NAME}: {out} was begun by another version or device; the result will mix both")
    if prepare := getattr(method, "prepare", None):
        try:
            prepare(real, config, minutes)                       # experts, for the methods that have them
        except TimeoutError as error:
            print(f"{method.NAME}: {error}")
            return Result(None, resume["index"] if resume else 0, config.steps, spent, out)
    deadline, started = started + 60 * minutes, time.monotonic()  # experts are shared: their minutes are no run's
    metrics = Metrics(out / "metrics.csv", keep=resume["index"] if resume else 0)
    keep = {1, *(round(config.steps * part / snapshots) for part in range(1, snapshots + 1))} if snapshots else set()
    step: Step | None = None
    good: tuple[int, dict[str, torch.Tensor]] | None = None

    def save(name: str) -> None:
        assert step is not None
        metrics.flush()
        files.write_text(out / "time.json", json.dumps({"minutes": spent + (time.monotonic() - started) / 60}))
        if name in ("checkpoint", "final"):
            tensors: dict[str, torch.Tensor] = {}
            tree = files.flatten_tree({"index": step.index, **step.state()}, tensors)
            files.write_tensors(out / f"{name}.safetensors", "checkpoint", {"tree": tree, "made_by": made_by(real)}, tensors)
        else:
            step.syn.save(out / f"{name}.safetensors")

    saved = time.monotonic()
    try:
        for step in progress(method.distill(real, config, resume), config.steps, every, method.NAME):
            step.syn.meta |= {"method": method.NAME, "config": dataclasses.asdict(config), "seed": config.seed}
            metrics.add(step)
            tensors = {name: tensor.clone() for name, tensor in step.syn.state_dict().items()}
            if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
                raise Diverged(f"the set itself stopped being finite at step {step.index}: lower the learning rate and start again")
            if good is None and resume is None:                  # the settings work: from now on the folder is this run's
                files.write_text(out / "environment.txt", "".join(f"{name} {value}\n" for name, value in made_by(real).items()))
                files.write_text(out / "config.json", json.dumps(claim, indent=1))
            good, now = (step.index, tensors), time.monotonic()
            if step.index in keep:
                step.syn.save(out / "snapshots" / f"step-{step.index:06d}.safetensors")
            if step.index == config.steps:
                break
            if now - saved > checkpoint_seconds or now > deadline:
                save("checkpoint")
                saved = now
            if now > deadline:
                return Result(None, step.index, config.steps, spent + (now - started) / 60, out)
    except KeyboardInterrupt:
        if step is not None:
            print(f"interrupted after step {step.index} of {config.steps}: run the same again to go on from about there")
        raise
    except Unfit as error:
        raise ValueError(f"{out / 'checkpoint.safetensors'} does not fit ({error}), as one of another version may: delete it to begin "
                         "anew") from None
    except Diverged as error:
        if step is not None and good is not None:
            step.syn.load_state_dict(good[1])
            save("last_good")
            error.add_note(f"the set after step {good[0]} is in {out / 'last_good.safetensors'}")
        elif resume is not None:
            error.add_note(f"the state after step {resume['index']} is in {out / 'checkpoint.safetensors'}")
        raise
    if keep_checkpoint:
        save("final")                                            # before the set, whose presence says that all is done
    save("distilled")
    tidy(out)
    return Result(distilled.load(out / "distilled.safetensors"), config.steps, config.steps,
                  spent + (time.monotonic() - started) / 60, out)


@contextmanager
def alone(out: Path, seconds: float = 0.0) -> Iterator[None]:
    """Hold the folder `out`; ValueError if another process still works in it after so long. The lock ends with the process."""
    out.mkdir(parents=True, exist_ok=True)
    try:
        held = files.lock(out / ".lock", seconds, f"waiting for another process to finish in {out}")
    except BlockingIOError:
        raise ValueError(f"another process is working in {out}: wait for it or choose another folder") from None
    with held:
        yield


def tidy(out: Path) -> None:
    """Remove what only an unfinished run needs, and what a killed one left half-written; an evaluation may be at its networks."""
    for left in (out / "checkpoint.safetensors", *out.glob(".*.part"), *out.glob("snapshots/.*.part")):
        if not left.name.startswith(".network-"):
            left.unlink(missing_ok=True)


def minutes_so_far(path: Path) -> float:
    """What time.json says; 0 without one."""
    if not path.is_file():
        return 0.0
    try:
        minutes = float(json.loads(path.read_text(encoding="utf-8"))["minutes"])
        if not 0 <= minutes < math.inf:
            raise ValueError(f"{minutes} minutes")
    except (KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it, and the minutes count from 0") from None
    return minutes


def made_by(real: data.ImageSet) -> dict[str, str]:
    """What decides the bits of a run besides its config."""
    return {**provenance(), "device": device_name(real.train.images.device)}


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete its folder and run again") from None


def check_claim(out: Path, claim: dict[str, Any]) -> None:
    """Say which settings differ if `out` holds another run than `claim`."""
    if not (out / "config.json").is_file():
        return
    found = read_json(out / "config.json")
    if not isinstance(found, dict):
        raise ValueError(f"{out / 'config.json'} is damaged (it holds no settings): delete its folder and run again")
    differ = sorted(name for name in claim.keys() | found.keys() if claim.get(name) != found.get(name))
    if differ:
        pairs = ", ".join(f"{name} = {found.get(name)!r} there, {claim.get(name)!r} now" for name in differ)
        raise ValueError(f"{out} holds another run ({pairs}): choose another folder or delete that one")


class Metrics:
    """metrics.csv: one line a step, of which the first `keep` steps of an earlier try are kept."""

    def __init__(self, path: Path, keep: int):
        self.path, self.keep = path, keep
        self.lines: list[str] = []
        self.header = ""
        if keep:
            self.header, *rows = self.first()
            files.write_text(path, "\n".join([self.header, *rows]) + "\n")
        else:
            path.unlink(missing_ok=True)

    def first(self) -> list[str]:
        """The header and the lines of the steps that are kept; ValueError where they are not there."""
        try:
            header, *rows = self.path.read_text(encoding="utf-8").splitlines()[:self.keep + 1] if self.path.is_file() else [""]
            steps = [int(row.partition(",")[0]) for row in rows if [float(value) for value in row.split(",")]]
            if steps != [*range(1, self.keep + 1)] or {row.count(",") for row in (header, *rows)} != {header.count(",")}:
                raise ValueError("a line is missing")
            return [header, *rows]
        except ValueError as error:
            raise self.damaged(error) from None

    def damaged(self, reason: object) -> ValueError:
        return ValueError(f"{self.path} does not have the first {self.keep} steps of its run ({reason}): restore it, or delete its folder "
                          "and run again")

    def add(self, step: Step) -> None:
        header = ",".join(["step", *step.losses])
        if not self.header:
            self.header = header
            self.lines.append(header)
        if self.header != header:
            raise self.damaged(f"its columns are {self.header!r}")
        self.lines.append(",".join([str(step.index), *(repr(value) for value in step.losses.values())]))

    def flush(self) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write("".join(line + "\n" for line in self.lines))
            file.flush()
            os.fsync(file.fileno())
        self.lines = []
