"""The five papers' tables on 1, 8 and 64 GPUs: `python tests/bench/scaling.py`, a simulation of about ten seconds.

Experts and GANs first, then the runs that need them, on GPUs in nodes of eight that fail now and then. How long each takes comes
from `scaling_costs`: estimates, between two bounds, until measured.csv has rows of a GPU. Writes book/results/scaling_*.csv, the
figure book/_static/scaling.png, and the tables of book/scaling.md between its markers. `python tests/bench/scaling.py startup` measures
first how long a run takes to start on this machine.
"""

from __future__ import annotations

import csv
import heapq
import math
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent))

import scaling_costs as costs
from run import write

from ddlib import evaluate, files, papers, plots, runs

RESULTS, PAGE = runs.ROOT / "book" / "results", runs.ROOT / "book" / "scaling.md"
FIGURE = runs.ROOT / "book" / "_static" / "scaling.png"
SEEDS = 15
PER_NODE = 8
CHECKPOINT = 20.0                        # seconds between two savings: runs.run and experts.SAVE_SECONDS
REPAIR = 300.0                           # assumed: seconds until a node that failed is back, or another in its place
# Public: 419 unplanned interruptions in 54 days on 16,384 GPUs (Llama 3), so days for a node of eight. The rest is assumed.
PUBLIC_DAYS = 54 * 16_384 / PER_NODE / 419
FAILURES = {"never": math.inf, f"{PUBLIC_DAYS:.0f} days": PUBLIC_DAYS, "30 days": 30.0, "3 days": 3.0}
USUAL = "30 days"
RAY_TASKS = (443.7, 602.5)               # tasks a second, 10,000 tasks on 2,500 CPUs, in Ray's release logs of 2.8.0 and 2.9.2
OBJECT_STORE = 0.3                       # share of a node's memory that Ray's object store has by default


# ---------------------------------------------------------------------------------------------------------- simulation

class Task(NamedTuple):
    """Something that one GPU does without a break: seconds, the group that it belongs to and the group that it waits for."""

    seconds: float
    group: str
    needs: str = ""
    read_bytes: float = 0.0              # at every attempt
    written_bytes: float = 0.0           # at its end
    checkpoint_bytes: float = 0.0        # at every saving


@dataclass(frozen=True)
class Outcome:
    """Seconds, but for counts and bytes. busy = useful + starting + lost, summed over GPUs."""

    makespan: float
    useful: float
    starting: float
    lost: float
    attempts: int
    failures: int
    read_bytes: float
    written_bytes: float
    busiest_minute: int                  # attempts that begin in the busiest minute

    @property
    def busy(self) -> float:
        return self.useful + self.starting + self.lost


def chains(tasks: Sequence[Task], startup: float = 0.0) -> list[float]:
    """For every task the seconds from its start to the end of the longest chain of tasks that wait for one another from it on."""
    longest: dict[str, float] = {}
    waiting: dict[str, list[Task]] = {}
    for task in tasks:
        if task.needs:
            waiting.setdefault(task.needs, []).append(task)

    def after(group: str) -> float:
        if group not in longest:
            longest[group] = max((task.seconds + startup + after(task.group) for task in waiting.get(group, ())), default=0.0)
        return longest[group]

    return [task.seconds + startup + after(task.group) for task in tasks]


def simulate(tasks: Sequence[Task], gpus: int, *, days: float = math.inf, startup: float = 0.0, per_node: int = PER_NODE,
             checkpoint: float = CHECKPOINT, repair: float = REPAIR, seed: int = 0, longest_first: bool = False) -> Outcome:
    """Give every free GPU the next task that need not wait any more, until all are done.

    days: mean time between two failures of a node (exponential, from a seed); then all that runs there goes on elsewhere from its
    last saving, and the node is away for `repair` seconds. longest_first: not in the order of the list, but those with the longest
    chain after them first. ValueError if a task waits for a group that has no task.
    """
    groups = {task.group for task in tasks}
    if strange := {task.needs for task in tasks if task.needs} - groups:
        raise ValueError(f"tasks wait for {', '.join(sorted(strange))}, which no task belongs to: add its tasks or take `needs` away")
    if gpus < 1 or not days > 0 or not checkpoint > 0:
        raise ValueError(f"gpus must be at least 1, days and checkpoint above 0, got {gpus}, {days} and {checkpoint}")
    rng = random.Random(seed)
    order = [-chain for chain in chains(tasks)] if longest_first else list(range(len(tasks)))
    left, undone, blocked = [task.seconds for task in tasks], dict.fromkeys(groups, 0), dict[str, list[int]]()
    ready: list[tuple[float, int]] = []
    for number, task in enumerate(tasks):
        undone[task.group] += 1
        if task.needs:
            blocked.setdefault(task.needs, []).append(number)
        else:
            ready.append((order[number], number))
    heapq.heapify(ready)
    slots = [min(per_node, gpus - first) for first in range(0, gpus, per_node)]
    nodes = range(len(slots))
    free = [node for node in reversed(nodes) for _ in range(slots[node])]     # a node for every idle GPU, the first node's last
    running: list[dict[int, tuple[float, int]]] = [{} for _ in nodes]    # task -> when it was started, number of its end; by node
    events: list[tuple[float, int, str, int, int]] = []                  # when, a number, what, node, task
    count = attempts = failures = 0
    now = useful = starting = lost = read = written = 0.0
    begun: dict[int, int] = {}                                           # attempts by minute

    def happens(when: float, what: str, node: int, task: int = -1) -> None:
        nonlocal count
        count += 1
        heapq.heappush(events, (when, count, what, node, task))

    def fails(node: int) -> None:
        if days < math.inf:
            happens(now + rng.expovariate(1 / (86_400 * days)), "fail", node)

    for node in nodes:
        fails(node)
    remaining = len(tasks)
    while remaining:
        while ready and free:
            node, number = free.pop(), heapq.heappop(ready)[1]
            attempts += 1
            begun[int(now // 60)] = begun.get(int(now // 60), 0) + 1
            read += tasks[number].read_bytes
            happens(now + startup + left[number], "end", node, number)
            running[node][number] = now, count
        now, event, what, node, number = heapq.heappop(events)
        if what == "end":
            if running[node].get(number, (0.0, 0))[1] != event:
                continue                                                 # of an attempt that a failure has ended
            del running[node][number]
            free.append(node)
            task = tasks[number]
            useful, starting, remaining = useful + left[number], starting + startup, remaining - 1
            written += task.written_bytes + task.checkpoint_bytes * math.floor(left[number] / checkpoint)
            left[number] = 0.0
            undone[task.group] -= 1
            if not undone[task.group]:
                for other in blocked.pop(task.group, ()):
                    heapq.heappush(ready, (order[other], other))
        elif what == "fail":
            failures += 1
            for number, (began, _) in running[node].items():
                spent = min(startup, now - began)
                worked = now - began - spent
                kept = math.floor(worked / checkpoint) * checkpoint
                useful, starting, lost = useful + kept, starting + spent, lost + worked - kept
                written += tasks[number].checkpoint_bytes * math.floor(worked / checkpoint)
                left[number] -= kept
                heapq.heappush(ready, (order[number], number))
            running[node] = {}
            free = [each for each in free if each != node]
            happens(now + repair, "up", node)
        else:
            free += [node] * slots[node]
            fails(node)
    return Outcome(now, useful, starting, lost, attempts, failures, read, written, max(begun.values(), default=0))


def tasks_of(jobs: dict[str, costs.Job], bound: str, split: bool = False) -> tuple[Task, ...]:
    """The tasks of a sweep: an expert each, a GAN each, a run with its evaluations each. bound: "low" or "high" estimates.

    split: every network of an evaluation is a task of its own, which waits for the run.
    """
    found = []
    for job in jobs.values():
        needs = "" if not job.needs else job.needs
        minutes = getattr(job.distilling if split and job.kind == "run" else job.minutes, bound)
        common = job.read_bytes, job.stored_bytes, job.checkpoint_bytes
        found += [Task(60 * minutes, job.name, needs, *common)] * job.copies
        for key, (protocol, _) in job.evaluations.items() if split else ():
            alone = costs.evaluating(job.config, protocol, key[1]) * (1 / protocol.repeats)
            each = getattr(job.parts[key], bound) / protocol.repeats if job.parts[key].measured else getattr(costs.on_a_gpu(alone), bound)
            at = "" if key[1] is None else f" at IPC {key[1]}"
            found += [Task(60 * each, f"its evaluation on {key[0]}{at} ({job.name})", job.name)] * protocol.repeats
    return tuple(found)


@cache
def noisy(tasks: tuple[Task, ...], spread: float, seed: int, startup: float) -> tuple[list[Task], float]:
    """The tasks with times that vary, times exp(spread * z) with z normal, and the longest chain of them.

    A group has its own z, whatever stands beside it.
    """
    rngs: dict[str, random.Random] = {}
    found = []
    for task in tasks:
        rng = rngs.get(task.group) or rngs.setdefault(task.group, random.Random(f"noise {seed} {task.group}"))
        found.append(task._replace(seconds=task.seconds * math.exp(spread * rng.gauss(0, 1))))
    return found, max(chains(found, startup))


SIMULATION_COLUMNS = ("what", "gpus", "bound", "days_between_failures", "seeds", "hours_median", "hours_90", "ideal_hours", "floor_hours",
                      "gpu_hours", "utilisation", "starting_hours", "lost_hours", "failures", "read_tb", "written_tb", "busiest_minute")


def row(what: str, tasks: tuple[Task, ...], gpus: int, bound: str, failing: str, startup: float, spread: float, seeds: int = SEEDS,
        longest_first: bool = False) -> dict[str, object]:
    """Simulate with so many seeds: medians, and the makespan that nine of ten seeds stay below."""
    found, floors, ideals = [], [], []
    for seed in range(seeds):
        drawn, longest = noisy(tasks, spread, seed, startup)
        found.append(simulate(drawn, gpus, days=FAILURES[failing], startup=startup, seed=seed, longest_first=longest_first))
        floors.append(longest)
        ideals.append(sum(task.seconds for task in drawn) / gpus)

    def middle(value: Callable[[Outcome], float]) -> float:
        return statistics.median(map(value, found))

    spans = sorted(each.makespan for each in found)
    return {"what": what, "gpus": gpus, "bound": bound, "days_between_failures": failing, "seeds": seeds,
            "hours_median": f"{middle(lambda o: o.makespan) / 3600:.2f}",
            "hours_90": f"{spans[math.ceil(0.9 * len(spans)) - 1] / 3600:.2f}", "ideal_hours": f"{statistics.median(ideals) / 3600:.2f}",
            "floor_hours": f"{statistics.median(floors) / 3600:.2f}", "gpu_hours": f"{middle(lambda o: o.makespan) * gpus / 3600:.1f}",
            "utilisation": f"{middle(lambda o: o.useful / o.makespan) / gpus:.3f}",
            "starting_hours": f"{middle(lambda o: o.starting) / 3600:.2f}", "lost_hours": f"{middle(lambda o: o.lost) / 3600:.3f}",
            "failures": f"{middle(lambda o: o.failures):g}", "read_tb": f"{middle(lambda o: o.read_bytes) / 1e12:.2f}",
            "written_tb": f"{middle(lambda o: o.written_bytes) / 1e12:.2f}", "busiest_minute": f"{middle(lambda o: o.busiest_minute):g}"}


def floor_of(tasks: Sequence[Task], startup: float) -> str:
    """The groups on the longest chain, by name."""
    chain = dict(zip(range(len(tasks)), chains(tasks, startup), strict=True))
    number = max(chain, key=lambda each: chain[each])
    names = [tasks[number].group]
    while later := [each for each in chain if tasks[each].needs == names[-1]]:
        names.append(tasks[max(later, key=lambda each: chain[each])].group)
    return ", then ".join(names)


# ------------------------------------------------------------------------------------------------------------- results

STARTUP_COLUMNS = ("seconds", "command", "device", "torch", "commit")
CELL_COLUMNS = ("paper", "table", "dataset", "ipc", "eval_arch", "variant", "printed", "job", "cells_of_this_job", "preset",
                "protocol", "networks", "outer_steps", "distilling_pflop", "evaluating_pflop", "core_minutes_low", "core_minutes",
                "core_minutes_high", "gpu_minutes_low", "gpu_minutes_high", "gpu_minutes_measured", "experts_or_gan", "read_gb", "set_mb",
                "checkpoint_mb", "memory_gb")
JOB_COLUMNS = ("job", "kind", "copies", "cells", "needs", "pflop", "core_hours_low", "core_hours", "core_hours_high", "gpu_minutes_low",
               "gpu_minutes_high", "gpu_minutes_measured", "stored_gb", "read_gb", "checkpoint_mb", "memory_gb")
LIMIT_COLUMNS = ("key", "low", "high", "unit", "of")


def measure_startup(times: int = 5) -> None:
    """Seconds of a run that has next to nothing to do: what every task pays before it works."""
    words = ["-m", "ddlib.methods.ddpp", "--preset", "tiny"]
    rows = []
    for _ in range(times):
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            subprocess.run([sys.executable, *words, "--out", str(Path(folder) / "run")], env=os.environ | {"DDLIB_RUNS": folder},
                           cwd=runs.ROOT, check=True, capture_output=True)
            seconds = time.perf_counter() - began
        rows.append({"seconds": f"{seconds:.2f}", "command": f"python {' '.join(words)}", "device": runs.device_name("cpu"),
                     "torch": runs.provenance()["torch"], "commit": runs.provenance()["commit"]})
    write(RESULTS / "scaling_startup.csv", STARTUP_COLUMNS, rows)


def startup_seconds() -> float:
    return statistics.median(float(row["seconds"]) for row in read("startup"))


def read(name: str) -> list[dict[str, str]]:
    """A CSV file of this page: "cells", "jobs", "simulation", "limits", "startup"."""
    with open(RESULTS / f"scaling_{name}.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def number(value: float) -> str:
    """Three digits that count."""
    return f"{value:.3g}" if 0.001 <= abs(value) < 1000 or not value else f"{value:.0f}" if abs(value) >= 1000 else f"{value:.1e}"


def measured(job: costs.Job, minutes: costs.Range) -> str:
    return number(minutes.low) if minutes.measured else papers.NOT_RUN


def cell_rows(jobs: dict[str, costs.Job], speeds: list[costs.Speed]) -> list[dict[str, object]]:
    """One row for every own cell that the papers print; what it would cost alone, but for experts and GANs."""
    found: list[dict[str, object]] = []
    names = [costs.job_name(cell) for cell in costs.own_cells()]
    for cell in costs.own_cells():
        job = jobs[costs.job_name(cell)]
        protocol = costs.protocol_of(cell)
        key = protocol.network, int(cell.ipc) if cell.paper in ("SKD", "GLD") else None
        evaluating = job.evaluations[key][1]
        minutes = job.distilling + job.parts[key]
        low, middle, high = costs.core_minutes(job.work + evaluating, job.method, speeds)
        found.append({
            "paper": cell.paper, "table": cell.table, "dataset": cell.dataset, "ipc": cell.ipc, "eval_arch": cell.eval_arch,
            "variant": cell.variant, "printed": cell.value, "job": job.name, "cells_of_this_job": names.count(job.name),
            "preset": costs.preset_of(cell), "protocol": protocol.name, "networks": protocol.repeats, "outer_steps": job.config.steps,
            "distilling_pflop": number(job.work.operations / 1e15), "evaluating_pflop": number(evaluating.operations / 1e15),
            "core_minutes_low": number(low), "core_minutes": number(middle), "core_minutes_high": number(high),
            "gpu_minutes_low": number(minutes.low), "gpu_minutes_high": number(minutes.high),
            "gpu_minutes_measured": measured(job, minutes), "experts_or_gan": job.needs, "read_gb": number(job.read_bytes / 1e9),
            "set_mb": number(job.stored_bytes / 1e6), "checkpoint_mb": number(job.checkpoint_bytes / 1e6),
            "memory_gb": number(job.memory_bytes / 1e9)})
    return found


def job_rows(jobs: dict[str, costs.Job], speeds: list[costs.Speed]) -> list[dict[str, object]]:
    """One row for everything that has to be made once: buffers, GANs, distillations with all their evaluations."""
    names = [costs.job_name(cell) for cell in costs.own_cells()]
    found: list[dict[str, object]] = []
    for job in jobs.values():
        low, middle, high = costs.core_minutes(job.all_work, job.method, speeds)
        found.append({
            "job": job.name, "kind": job.kind, "copies": job.copies, "cells": names.count(job.name), "needs": job.needs,
            "pflop": number(job.all_work.operations / 1e15), "core_hours_low": number(low / 60), "core_hours": number(middle / 60),
            "core_hours_high": number(high / 60), "gpu_minutes_low": number(job.copies * job.minutes.low),
            "gpu_minutes_high": number(job.copies * job.minutes.high), "gpu_minutes_measured": measured(job, job.minutes),
            "stored_gb": number(job.copies * job.stored_bytes / 1e9), "read_gb": number(job.read_bytes / 1e9),
            "checkpoint_mb": number(job.checkpoint_bytes / 1e6), "memory_gb": number(job.memory_bytes / 1e9)})
    return found


ESP_BATCH = 1024                         # the largest of the paper's ablation of its synthetic batch (section 4.6)


def smaller_batches(config: object) -> object:
    return replace(config, syn_batch=ESP_BATCH) if isinstance(config, costs.esp.ESPConfig) else config   # type: ignore[type-var]


SIZES, TABLE = (1, 2, 4, 8, 16, 32, 64, 128), (1, 8, 64)
CHANGES = ("longest first", "+ networks apart", f"+ ESP: {ESP_BATCH:,} images")


def simulation_rows(jobs: dict[str, costs.Job], changed: dict[str, costs.Job], spread: float, startup: float,
                    seeds: int = SEEDS) -> list[dict[str, object]]:
    """Everything on 1, 8 and 64 GPUs with every failure rate, on more sizes with one; and what helps."""
    found = []
    for bound in ("low", "high"):
        whole, best = tasks_of(jobs, bound), tasks_of(changed, bound, split=True)
        for gpus in SIZES:
            found += [row("whole", whole, gpus, bound, failing, startup, spread, seeds)
                      for failing in (FAILURES if gpus in TABLE else [USUAL])]
            found.append(row(CHANGES[2], best, gpus, bound, USUAL, startup, spread, seeds, longest_first=True))
        found += [row(CHANGES[0], whole, 64, bound, USUAL, startup, spread, seeds, longest_first=True),
                  row(CHANGES[1], tasks_of(jobs, bound, split=True), 64, bound, USUAL, startup, spread, seeds, longest_first=True)]
        noisy.cache_clear()
    return found


def limit_rows(jobs: dict[str, costs.Job], speeds: list[costs.Speed], simulated: list[dict[str, object]], rows: list[dict[str, str]],
               startup: float, spread: float) -> list[dict[str, object]]:
    """Single numbers that the page names."""
    found: list[dict[str, object]] = []

    def add(key: str, low: float, high: float | None = None, unit: str = "", of: str = "") -> None:
        found.append({"key": key, "low": number(low), "high": number(low if high is None else high), "unit": unit, "of": of})

    everyone = list(jobs.values())
    whole = [sum(job.copies * getattr(job.minutes, bound) for job in everyone) / 60 for bound in ("low", "high")]
    core = sum(costs.core_minutes(job.all_work, job.method, speeds)[1] for job in everyone) / 60
    add("cells", len(costs.own_cells()))
    add("distillations", sum(job.kind == "run" for job in everyone))
    add("tasks", sum(job.copies for job in everyone))
    add("gpu hours", *whole, "h")
    for kind, title in (("experts", "experts"), ("gan", "GANs"), ("run", "distillations and evaluations")):
        add(f"{title} hours", *(sum(job.copies * getattr(job.minutes, bound) for job in everyone if job.kind == kind) / 60
                                for bound in ("low", "high")), "h")
    add("evaluation hours", *(sum(getattr(part, bound) for job in everyone for part in job.parts.values()) / 60
                              for bound in ("low", "high")), "h")
    add("starting hours", startup * sum(job.copies for job in everyone) / 3600, unit="h")
    add("core years", core / 8766)
    add("ratio", core / whole[1], core / whole[0])
    add("spread", 100 * (math.exp(spread) - 1))
    add("rows of a core", len(speeds))
    for method in sorted({job.method for job in everyone} - {"experts"}):
        slow, _, fast, count = costs.speed_of(method, speeds)
        width = max(each.width for each in speeds if each.method == method)
        add(f"speed {method}", slow, fast, of=f"{count} row{'s' * (count > 1)} of width {width}")
    add("rows of a GPU", sum(not row["device"].startswith("cpu") for row in rows))
    add("start-up", startup, unit="s")
    expert = min((job for job in everyone if job.kind == "experts"), key=lambda job: job.minutes.low)
    add("short task", 60 * expert.minutes.low, 60 * expert.minutes.high, "s", expert.name)
    busiest = [float(str(next(each for each in simulated if (each["what"], each["gpus"], each["bound"], each["days_between_failures"])
                              == ("whole", 64, bound, USUAL))["busiest_minute"])) / 60 for bound in ("high", "low")]
    add("tasks a second", *busiest, "", "64 GPUs, busiest minute")
    add("Ray", *RAY_TASKS)
    add("GPUs for Ray's rate", RAY_TASKS[0] * (60 * expert.minutes.low + startup), RAY_TASKS[0] * (60 * expert.minutes.high + startup))
    add("public days", PUBLIC_DAYS, unit="days")
    buffers = [job for job in everyone if job.kind == "experts"]
    largest = max(buffers, key=lambda job: job.copies * job.stored_bytes)
    add("buffers", sum(job.copies * job.stored_bytes for job in buffers) / 1e9, unit="GB", of=f"{len(buffers)} buffers")
    add("largest buffer", largest.copies * largest.stored_bytes / 1e9, unit="GB", of=largest.name)
    add("memory of a node for it", largest.copies * largest.stored_bytes / 1e9 / OBJECT_STORE, unit="GB")
    add("an expert", min(job.stored_bytes for job in buffers) / 1e6, max(job.stored_bytes for job in buffers) / 1e6, "MB")
    reading = [job for job in everyone if job.kind == "run" and job.needs and jobs[job.needs].kind == "experts"]
    hungriest = max(reading, key=lambda job: job.read_bytes / job.distilling.low)
    add("hungriest run", *(hungriest.read_bytes / 60 / getattr(hungriest.distilling, bound) / 1e6 for bound in ("high", "low")), "MB/s",
        hungriest.name)
    add("read by a run", min(job.read_bytes for job in reading) / 1e9, max(job.read_bytes for job in reading) / 1e9, "GB")
    heaviest = max(everyone, key=lambda job: job.checkpoint_bytes)
    add("largest checkpoint", heaviest.checkpoint_bytes / 1e6, unit="MB", of=heaviest.name)
    add("it writes", heaviest.checkpoint_bytes / CHECKPOINT / 1e6, unit="MB/s", of=heaviest.name)
    longest = max(everyone, key=lambda job: job.minutes.low)
    add("longest run", longest.minutes.low / 60, longest.minutes.high / 60, "h", longest.name)
    add("its images", costs.set_size(longest.config), of=longest.name)
    needs = max(everyone, key=lambda job: job.memory_bytes)
    add("most memory", needs.memory_bytes / 1e9, unit="GB", of=needs.name)
    size = (RESULTS / "measured.csv").stat().st_size / len(rows)
    add("a row", round(size, -1), unit="bytes")
    add("results", round(size, -1) * len(costs.own_cells()) / 1e3, unit="kB")
    return found


# ---------------------------------------------------------------------------------------------------------------- the page

def pair(low: str, high: str) -> str:
    return low if low == high else f"{low} – {high}"


def label(row: dict[str, str]) -> str:
    """What the table calls a job: "1000 experts svhn", "SKD cifar10, no std."."""
    name = row["job"].replace("-no-standardization", ", no std.").replace("tiny_imagenet", "tiny-imagenet")
    name = re.sub(r" convnet\d| standardize", "", name)
    return f"{row['copies']} {name}" if row["kind"] == "experts" else name


def jobs_table(rows: list[dict[str, str]]) -> papers.Table:
    def short(text: str) -> str:
        return f"{float(text):,.0f}" if float(text) >= 1000 else text

    lines = tuple((label(row), row["cells"] if row["kind"] == "run" else "",
                   pair(short(row["gpu_minutes_low"]), short(row["gpu_minutes_high"])), row["gpu_minutes_measured"],
                   short(row["core_hours"]), row["memory_gb"], row["read_gb"] if row["read_gb"] != "0" else "", row["stored_gb"],
                   short(row["pflop"])) for row in rows)
    columns = ("what", "cells", "GPU min, est.", "GPU min", "core hours", "memory, GB", "reads, GB", "leaves, GB", "PFLOP")
    return papers.Table(columns, lines, (
        "GPU min, est.: estimated, low and high; GPU min: measured",
        "core hours: counted operations (PFLOP) at the measured speed of the method on one core, the middle of its rows",
        "experts: all of a buffer; runs: with all evaluations of their cells, without experts or GAN; no std.: without standardization"),
        "Everything behind the cells, each once", frozenset(columns[1:]))


def simulation_table(rows: list[dict[str, str]]) -> papers.Table:
    lines = []
    for gpus in ("1", "8", "64"):
        for failing in FAILURES:
            low, high = (next(row for row in rows if (row["what"], row["gpus"], row["bound"], row["days_between_failures"])
                              == ("whole", gpus, bound, failing)) for bound in ("low", "high"))

            def span(name: str, low: dict[str, str] = low, high: dict[str, str] = high, times: float = 1.0, digits: int = 0) -> str:
                first, second = sorted((times * float(low[name]), times * float(high[name])))
                return pair(f"{first:,.{digits}f}", f"{second:,.{digits}f}")

            lines.append((f"{gpus} GPU{'s' * (gpus != '1')}, {failing}", span("hours_median"), span("hours_90"), span("ideal_hours"),
                          span("utilisation", times=100), span("gpu_hours"), span("starting_hours"), span("failures"),
                          span("lost_hours", times=60), span("read_tb", digits=1), span("written_tb", digits=1)))
    columns = ("GPUs, failure every", "hours", "9 of 10", "total / GPUs", "used, %", "GPU hours", "starting", "failures", "lost, min",
               "read, TB", "written, TB")
    return papers.Table(columns, tuple(lines), (
        f"medians of {SEEDS} seeds at the low and at the high estimate; 9 of 10: hours that nine of ten seeds stay below; nothing was run",
        "used: share of the time of all GPUs that goes into results; GPU hours: of all GPUs, idle or not; starting: of them, in GPU hours",
        "GPUs, failure every: mean time between two failures of a node; lost: GPU minutes of work that is done again"),
                        "All tables, simulated", frozenset(columns[1:]))


def changes_table(rows: list[dict[str, str]]) -> papers.Table:
    lines = []
    for what in ("whole", *CHANGES):
        low, high = (next(row for row in rows if (row["what"], row["gpus"], row["bound"], row["days_between_failures"])
                          == (what, "64", bound, USUAL)) for bound in ("low", "high"))
        hours = (pair(f"{float(low[name]):,.0f}", f"{float(high[name]):,.0f}") for name in ("hours_median", "floor_hours", "ideal_hours"))
        used = sorted(100 * float(side["utilisation"]) for side in (low, high))
        lines.append(("as listed" if what == "whole" else what, *hours, pair(*(f"{share:.0f}" for share in used))))
    columns = ("64 GPUs", "hours", "longest chain", "total / GPUs", "used, %")
    return papers.Table(columns, tuple(lines), ("each line with the changes of those above it",), "What helps", frozenset(columns[1:]))


RELEASE_LOGS = "https://github.com/ray-project/ray/blob/ray-{}/release/release_logs/{}/benchmarks/many_tasks.json"
TEXTS = {
    "short": """\
The five papers print {cells} cells of their own. Behind them are {distillations} distillations, {of buffers} of experts with {buffers},
and three GANs: {tasks} tasks. Together they are about {core years} years of one CPU core at the speeds that were measured, or
**{gpu hours} on a GPU by estimate**: an hour of a GPU for {ratio} hours of a core. Measured on a GPU: {gpu rows}.""",
    "measures": """\
- **Measured**: the minutes of {rows of a core} rows of `book/results/measured.csv` that one CPU core made, their spread for equal
  work ({spread} % up or down), and the {start-up} that a run takes before it does anything (`book/results/scaling_startup.csv`; on a
  CPU, beside other work). Counted work over minutes is the speed of a core, in GFLOP a second: DDPP {speed DDPP} ({of speed DDPP}),
  ESP {speed ESP} ({of speed ESP}), CGAN {speed CGAN} ({of speed CGAN}), SKD {speed SKD} ({of speed SKD}), GLD {speed GLD}
  ({of speed GLD}), PoDD {speed PoDD} ({of speed PoDD}). Narrow networks are slow, so PoDD's core hours are too many.""",
    "failures": """\
Nobody has measured failures here. One public number: 419 unplanned interruptions in 54 days on 16,384 GPUs, in the training of Llama 3
([collected here](https://glennklockwood.com/garden/component-reliability)). For a node of eight GPUs that is one in {public days}.
Borrowed or cheap machines are taken away much more often, so the table also has 30 days and 3 days, which are assumed.""",
    "floor": """\
Of the {gpu hours}, experts take {experts hours}, GANs {GANs hours}, and distillations with their evaluations
{distillations and evaluations hours} (evaluations: {evaluation hours}). Starting processes adds {starting hours}. The longest run
alone takes {longest run} ({of longest run}): every update takes second derivatives of all its {its images} decoded images.""",
    "last": """\
The longest chain is then: {chain + ESP: 1,024 images}.""",
    "scheduler": """\
- **The scheduler** is not the limit. At the busiest, 64 GPUs ask for {tasks a second} tasks a second. Ray's own release logs have {Ray}
  ([2.8.0]({log 2.8.0}), [2.9.2]({log 2.9.2}): 10,000 tasks on 2,500 CPUs). Even with nothing but the shortest tasks that would serve
  {GPUs for Ray's rate} GPUs. We have not measured Ray at such sizes.
- **Start-up** counts. The shortest expert takes {short task}, and starting its process {start-up}. *Change:* several experts in one
  task. The library trains eight side by side on a GPU; a task for every eight experts pays one start for all of them.""",
    "storage": """\
- **Buffers** are {buffers} in all; an expert is {an expert}, the largest buffer {largest buffer}. A run reads {read by a run}: every
  expert that it draws once from end to end, for its checksum, and two snapshots ($8P$ bytes) for an update of DDPP or eleven ($44P$)
  for a segment of ESP. The hungriest run wants {hungriest run} ({of hungriest run}). 64 like it would want 64 times that, and a
  network of 10 Gbit/s carries 1,250 MB/s. *Change:* copy a buffer to each node's disk once, let the node's eight GPUs read it there, and
  keep the runs of one buffer on the same nodes.
- **The object store** of Ray is the wrong place for a buffer. It takes 30 % of a node's memory by default
  ([documentation](https://docs.ray.io/en/latest/ray-core/scheduling/memory-management.html)), so a node would need
  {memory of a node for it} for the largest. *Change:* let tasks pass a folder's name, not its content.
- **Checkpoints** are written about every 20 seconds whatever their size. The largest is {largest checkpoint} ({of largest checkpoint}),
  {it writes} for as long as the run goes on: most of the column "written". *Change:* longer pauses for large states
  (`checkpoint_seconds` of `runs.run`). At one failure in 30 days even 20 minutes would lose next to nothing.
- **Results** are small: a row is about {a row}, all cells {results}. But every row is appended under a lock of the file system
  (`flock`), and not every network file system keeps such locks between machines. *Change:* one writer for all
  (the driver of `ddlib.sweep` is one), or a file for every run.
- **Memory** is no limit on a GPU of 80 GB: the most is {most memory} ({of most memory}), counted, without what libraries take for
  themselves.""",
}


def shown(row: dict[str, str]) -> str:
    """A row of scaling_limits.csv as text: "25.9 to 279 GB"."""
    low, high = (f"{float(row[side]):,.0f}" if float(row[side]) >= 1000 else row[side] for side in ("low", "high"))
    return " ".join(filter(None, [low if low == high else f"{low} to {high}", row["unit"]]))


def facts(limits: list[dict[str, str]], chains: list[dict[str, str]]) -> dict[str, str]:
    """The generated sentences of the page, by the name of their marker."""
    values = {row["key"]: shown(row) for row in limits} | {f"of {row['key']}": row["of"] for row in limits}
    values |= {f"log {of}": RELEASE_LOGS.format(at, of) for of, at in (("2.8.0", "2.21.0"), ("2.9.2", "2.23.0"))}
    values |= {f"chain {row['what']}": row["of"] for row in chains}
    values["gpu rows"] = "*not run*" if values["rows of a GPU"] == "0" else f"{values['rows of a GPU']} rows"
    return {name: re.sub(r"\{([^}]+)\}", lambda key: values[key[1]], text) for name, text in TEXTS.items()}


def figure(rows: list[dict[str, str]]) -> bytes:
    """Hours against GPUs, as published and with the changes, each between its two estimates."""
    with plots.style(plots.FULL):
        fig = plots.figure(plots.FULL)
        ax = fig.subplots()
        for what, title, shade in (("whole", "as published", plots.color("MTT")),
                                   (CHANGES[2], "with all three changes", plots.color("DM"))):
            low, high = ([row for row in rows if (row["what"], row["bound"], row["days_between_failures"]) == (what, bound, USUAL)]
                         for bound in ("low", "high"))
            sizes = [int(row["gpus"]) for row in low]
            ends = [[float(row["hours_median"]) for row in side] for side in (low, high)]
            ax.fill_between(sizes, *ends, color=shade, alpha=0.25, label=title)
            for side in ends:
                ax.plot(sizes, side, "o-", color=shade, ms=3)
        ideal = [[float(row["ideal_hours"]) for row in rows if (row["what"], row["bound"], row["days_between_failures"])
                  == ("whole", bound, USUAL)] for bound in ("low", "high")]
        floors = [[float(row["floor_hours"]) for row in rows if (row["what"], row["bound"], row["days_between_failures"])
                   == ("whole", bound, USUAL)] for bound in ("low", "high")]
        for lines, style, title in ((ideal, "--", "total / GPUs"), (floors, ":", "longest chain")):
            for number, side in enumerate(lines):
                ax.plot(sizes, side, style, color="#4d4d4d", lw=1, label="" if number else f"{title}, as published")
        ax.set(xscale="log", yscale="log", xlabel="GPUs", ylabel="hours, estimated", xticks=sizes,
               xticklabels=[str(size) for size in sizes])
        ax.minorticks_off()
        fig.legend(loc="outside upper left", ncols=2)
        return plots.png(fig)


def fill(text: str, blocks: dict[str, str]) -> str:
    """The page with every block between `<!-- NAME -->` and `<!-- end -->` replaced. ValueError for a block that it has no place for."""
    for name, content in blocks.items():
        def put(found: re.Match[str], content: str = content) -> str:
            return f"{found[1]}\n{content}\n\n{found[2]}"

        text, places = re.subn(rf"(<!-- {name} -->\n).*?(<!-- end -->)", put, text, flags=re.DOTALL)
        if places != 1:
            raise ValueError(f"{PAGE.name} needs one pair of lines <!-- {name} --> and <!-- end -->, it has {places}")
    return text


def blocks() -> dict[str, str]:
    """All generated parts of the page, from the CSV files alone."""
    simulated = read("simulation")
    tables = {"jobs": jobs_table(read("jobs")), "simulation": simulation_table(simulated), "changes": changes_table(simulated)}
    return facts(read("limits"), read("chains")) | {name: table.html() for name, table in tables.items()}


def main() -> None:
    began = time.monotonic()
    if sys.argv[1:] == ["startup"]:
        measure_startup()
    rows = evaluate.read_rows()
    jobs, changed, speeds = costs.jobs(rows), costs.jobs(rows, smaller_batches), costs.core_speeds(rows)
    spread, startup = costs.spread(speeds), startup_seconds()
    simulated = simulation_rows(jobs, changed, spread, startup)
    write(RESULTS / "scaling_cells.csv", CELL_COLUMNS, cell_rows(jobs, speeds))
    write(RESULTS / "scaling_jobs.csv", JOB_COLUMNS, job_rows(jobs, speeds))
    write(RESULTS / "scaling_simulation.csv", SIMULATION_COLUMNS, simulated)
    write(RESULTS / "scaling_limits.csv", LIMIT_COLUMNS, limit_rows(jobs, speeds, simulated, rows, startup, spread))
    chains_of = {"whole": tasks_of(jobs, "low"), CHANGES[0]: tasks_of(jobs, "low"), CHANGES[1]: tasks_of(jobs, "low", split=True),
                 CHANGES[2]: tasks_of(changed, "low", split=True)}
    write(RESULTS / "scaling_chains.csv", ("what", "of"),
          [{"what": what, "of": floor_of(tasks, startup)} for what, tasks in chains_of.items()])
    FIGURE.write_bytes(figure(read("simulation")))
    files.write_text(PAGE, fill(PAGE.read_text(encoding="utf-8"), blocks()))
    print(f"wrote {PAGE}, {FIGURE} and {RESULTS}/scaling_*.csv in {time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    main()
