"""What a sweep says: what it will take, by the rows of earlier runs; how far it is; what became of it."""

from __future__ import annotations

import re
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ddlib.papers import Table
from ddlib.sweep.grid import Run
from ddlib.sweep.work import Task


@dataclass(frozen=True)
class Estimate:
    """Minutes, peak memory in GB and disk in GB of a run, as rows of the same preset tell; None where none does."""

    minutes: float | None
    memory_gb: float | None
    disk_gb: float


def estimate(run: Run, rows: Sequence[Mapping[str, str]]) -> Estimate:
    """From the rows of the same method, preset and dataset, of the same ipc if there are any; minutes go by outer steps."""
    found = [row for row in rows if run.method and (row["method"], row["preset"], row["dataset"])
             == (run.method, run.preset, run.config.dataset) and row["minutes"] and row["peak_mb"] and row["budget_scalars"]]
    found = [row for row in found if row["ipc"] == f"{run.config.ipc:g}"] or found
    if not found:
        return Estimate(None, None, run.bytes / 1e9)
    whole = sys.modules[type(run.config).__module__].PRESETS[run.preset].steps
    steps = [int(match[1]) if (match := re.search(r"--steps[ =](\d+)", row["command"])) else whole for row in found]
    minutes = statistics.median(float(row["minutes"]) * run.config.steps / each for row, each in zip(found, steps, strict=True))
    # a set, its checkpoint with the optimizer's state, and the networks that evaluate it: small beside buffers
    scalars = statistics.median(int(row["budget_scalars"]) for row in found)
    return Estimate(minutes, max(float(row["peak_mb"]) for row in found) * 2**20 / 1e9, (run.bytes + 16 * scalars) / 1e9)


@dataclass(frozen=True)
class Plan:
    """What is to be done, in all."""

    runs: int
    finished: int
    first: int                                                   # experts and GANs, to be trained before
    unknown: int                                                 # runs that no row tells of
    minutes: float
    memory_gb: float
    disk_gb: float

    def __str__(self) -> str:
        begin = f", after {self.first} experts and GANs that they begin with" if self.first else ""
        known = self.runs - self.finished - self.unknown
        told = f"about {self.minutes:.0f} minutes, {self.memory_gb:.1f} GB of memory and {self.disk_gb:.2f} GB of disk" if known else ""
        none = f"no row to estimate {self.unknown} of them from" if self.unknown else ""
        ahead = "; ".join(filter(None, [told, none])) if known or self.unknown else "nothing is left to do"
        return f"{self.runs} runs, {self.finished} of them finished before{begin}: {ahead}"

    def beyond(self, limits: Mapping[str, float]) -> list[str]:
        """What exceeds the limits."""
        return [f"{getattr(self, name):.1f} {name} (limit {limit:g})" for name, limit in limits.items() if getattr(self, name) > limit]


def plan(runs: Sequence[Run], first: Sequence[Run], finished: Iterable[str], rows: Sequence[Mapping[str, str]], workers: int) -> Plan:
    """finished: names of the runs to leave out. first: what is to be trained before."""
    done = set(finished)
    ahead = [estimate(run, rows) for run in runs if run.task.name not in done]
    minutes = [each.minutes for each in ahead if each.minutes is not None]
    memory = sorted((each.memory_gb or 0.0 for each in ahead), reverse=True)[:workers]
    before = [estimate(run, rows) for run in first]
    minutes += [each.minutes for each in before if each.minutes is not None]
    return Plan(len(runs), len(runs) - len(ahead), len(first), sum(each.minutes is None for each in ahead),
                max(sum(minutes) / workers, max(minutes, default=0.0)), sum(memory), sum(each.disk_gb for each in [*ahead, *before]))


class Progress:
    """One view of a sweep that runs: a bar on a terminal, a line for every run that ends anywhere else."""

    def __init__(self, total: int, workers: int, expected: Mapping[str, float]):
        self.total, self.workers, self.expected = total, workers, dict(expected)    # minutes of a task, by name
        self.done, self.failed, self.spent = 0, 0, list[float]()
        self.bar: Any = None
        if sys.stderr.isatty():
            try:
                from tqdm import tqdm
                self.bar = tqdm(total=total, bar_format="{percentage:3.0f}% |{bar:24}| {desc}")
            except ImportError:
                pass                                             # tqdm is an extra: plain lines do as well

    def ended(self, task: Task, record: Mapping[str, Any]) -> None:
        good = record["state"] == "finished"
        self.done, self.failed = self.done + good, self.failed + (not good)
        self.expected.pop(task.name, None)
        self.spent.append(record["minutes"])
        what = f"{record['minutes']:.1f} min{accuracies(record)}" if good else f"FAILED: {record['error']}"
        line = f"{task.name}: {what}"
        if self.bar is not None:
            self.bar.write(line, file=sys.stderr)
            self.bar.update()
        else:
            print(f"{self.state()}  {line}", flush=True)

    def tick(self) -> None:
        """Keep a terminal's bar up to date."""
        if self.bar is not None:
            self.bar.set_description_str(self.state())

    def state(self) -> str:
        """Done, running, failed, time left: what rows tell of the tasks ahead, and for others the mean of those that ended."""
        ahead = self.total - self.done - self.failed
        mean = statistics.fmean(self.spent) if self.spent else 0.0
        minutes = (sum(self.expected.values()) + mean * max(0, ahead - len(self.expected))) / self.workers
        left = f"about {minutes:.1f} min left" if self.spent or self.expected or not ahead else "time left not known yet"
        return f"[{self.done} of {self.total} done, {min(ahead, self.workers)} running, {self.failed} failed, {left}]"

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def accuracies(record: Mapping[str, Any]) -> str:
    return "".join(f", {row['accuracy_mean']} % ({row['protocol']})" for row in record["rows"])


def table(runs: Sequence[Run], records: Mapping[str, Mapping[str, Any]], session: str) -> str:
    """A line for every run: state, accuracy, minutes, and how often it was tried again since this start."""
    lines = []
    for run in runs:
        record = records.get(run.task.name, {"state": "not run", "rows": [], "minutes": 0.0, "attempts": []})
        tries = sum(each["session"] == session for each in record["attempts"])
        before = record["state"] == "finished" and not tries
        accuracy = ", ".join(f"{row['accuracy_mean']}±{row['accuracy_std']} ({row['n']})" for row in record["rows"])
        lines.append((run.task.name, "finished before" if before else record["state"], accuracy or "-",
                      f"{record['minutes']:.1f}" if record["minutes"] else "-", str(max(0, tries - 1))))
    columns = ("run", "state", "accuracy: mean±std (n)", "minutes", "retries")
    return Table(columns, tuple(lines), numeric=frozenset({"minutes", "retries"})).text()


def happened(tasks: Iterable[Task], records: Mapping[str, Mapping[str, Any]], session: str) -> list[str]:
    """What did not go straight since this start of the sweep: a line for each lost worker, failed attempt and damaged file."""
    lines = []
    for task in tasks:
        mine = [each for each in records.get(task.name, {"attempts": []})["attempts"] if each["session"] == session]
        for number, each in enumerate(mine):
            lines += [f"{task.name}: {note}" for note in each["notes"]]
            again = "it was tried again" if number + 1 < len(mine) else "it was not tried again"
            if each["outcome"] == "lost":
                lines.append(f"{task.name}: its worker on {each['node']} was lost; {again.replace('tried again', 'taken up again')}")
            elif each["outcome"] != "finished":
                lines.append(f"{task.name}: failed on {each['node']} ({each['outcome']}); {again}")
    return lines
