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
FAILURES = {"never": math.inf, "30 days": 30.0, "3 days": 3.0}      # of a node, mean time between two; assumed
USUAL, OFTEN = "30 days", "3 days"
RAY_TASKS = (443.7, 602.5)               # tasks a second, 10,000 tasks on 2,500 CPUs, in Ray's release logs of 2.8.0 and 2.9.2


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


# ------------------------------------------------------------------------------------------------------------- results

STARTUP_COLUMNS = ("seconds", "command", "device", "torch", "commit")
CELL_COLUMNS = ("paper", "table", "dataset", "ipc", "eval_arch", "variant", "printed", "job", "cells_of_this_job", "preset",
                "protocol", "networks", "outer_steps", "distilling_pflop", "evaluating_pflop", "core_minutes_low", "core_minutes",
                "core_minutes_high", "gpu_minutes_low", "gpu_minutes_high", "gpu_minutes_measured", "experts_or_gan", "read_gb", "set_mb",
                "checkpoint_mb", "memory_gb")
JOB_COLUMNS = ("job", "kind", "copies", "cells", "needs", "pflop", "core_hours_low", "core_hours", "core_hours_high", "gpu_minutes_low",
               "gpu_minutes_high", "gpu_minutes_measured", "source", "stored_gb", "read_gb", "checkpoint_mb", "memory_gb")
PAPER_COLUMNS = ("what", "cells", "gpu_hours_low", "gpu_hours_high", "disk_gb", "longest_low", "longest_high", "hours_8_low",
                 "hours_8_high")
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
    """A CSV file of this page: "cells", "jobs", "papers", "simulation", "limits", "startup"."""
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
            "source": job.source, "stored_gb": number(job.copies * job.stored_bytes / 1e9), "read_gb": number(job.read_bytes / 1e9),
            "checkpoint_mb": number(job.checkpoint_bytes / 1e6), "memory_gb": number(job.memory_bytes / 1e9)})
    return found


ESP_BATCH = 1024                         # the largest of the paper's ablation of its synthetic batch (section 4.6)
# one expert, of no more epochs than segments need; then ten minutes less what it took go into segments of 10 updates
CALIBRATE = "python -m ddlib.methods.esp --preset cifar10-ipc10 --num-experts 1 --buffer-epochs 29 --out runs/calibrate --minutes 10"


def smaller_batches(config: object) -> object:
    return replace(config, syn_batch=ESP_BATCH) if isinstance(config, costs.esp.ESPConfig) else config   # type: ignore[type-var]


SIZES, TABLE = (1, 2, 4, 8, 16, 32, 64, 128), (1, 8, 64)
REST, HEAVY = "ESP but tiny", "ESP tiny"     # but tiny-imagenet; tiny-imagenet: two cells, and most of the hours
WHOLE, SORTED, WITHOUT, SMALLER = "as listed", "longest first, split", f"without {HEAVY}", f"ESP: {ESP_BATCH:,} images"
PAPERS, ALL_BUT = ("PoDD", "GLD", "SKD", "DDPP", REST, HEAVY), f"all but {HEAVY}"


def line_of(job: costs.Job) -> str:
    """The line of the table by paper that a run belongs to."""
    return job.method if job.method != "ESP" else HEAVY if job.config.dataset == "tiny_imagenet" else REST


def only(jobs: dict[str, costs.Job], wanted: Callable[[costs.Job], bool]) -> dict[str, costs.Job]:
    """The runs that are wanted, and the buffers and GANs that they need."""
    names = {job.name for job in jobs.values() if job.kind == "run" and wanted(job)}
    names |= {jobs[name].needs for name in names}
    return {name: job for name, job in jobs.items() if name in names}


def gpu_hours(jobs: dict[str, costs.Job], bound: str) -> float:
    return sum(job.copies * getattr(job.minutes, bound) for job in jobs.values()) / 60


def simulation_rows(jobs: dict[str, costs.Job], changed: dict[str, costs.Job], spread: float, startup: float,
                    seeds: int = SEEDS) -> list[dict[str, object]]:
    """Everything as it is listed, and with what helps, on 1 to 128 GPUs; on 1, 8 and 64 with every failure rate."""
    found = []
    lighter = only(jobs, lambda job: line_of(job) != HEAVY)
    for bound in ("low", "high"):
        for what, some, split in ((WHOLE, jobs, False), (SORTED, jobs, True), (WITHOUT, lighter, True), (SMALLER, changed, True)):
            tasks = tasks_of(some, bound, split=split)
            for gpus in SIZES if what in (WHOLE, SMALLER) else TABLE:
                found += [row(what, tasks, gpus, bound, failing, startup, spread, seeds, longest_first=split)
                          for failing in (FAILURES if gpus == 8 and what in (WHOLE, WITHOUT) else [USUAL])]
        noisy.cache_clear()
    return found


def paper_rows(jobs: dict[str, costs.Job], spread: float, startup: float) -> list[dict[str, object]]:
    """What each paper needs by itself, the fewest hours first; and all of them, with what they share counted once."""
    found = []
    names = [costs.job_name(cell) for cell in costs.own_cells()]
    for what in (*PAPERS, ALL_BUT, "all"):
        lines = {ALL_BUT: set(PAPERS) - {HEAVY}, "all": set(PAPERS)}.get(what, {what})
        own = only(jobs, lambda job, lines=lines: line_of(job) in lines)                                   # type: ignore[misc]
        alone = [job for job in own.values() if job.kind == "run"]
        line: dict[str, object] = {"what": what, "cells": sum(name in own for name in names), "disk_gb": number(sum(
            job.copies * job.stored_bytes + (job.kind != "experts") * job.checkpoint_bytes for job in own.values()) / 1e9)}
        for bound in ("low", "high"):
            simulated = row(what, tasks_of(own, bound), 8, bound, USUAL, startup, spread, longest_first=True)
            line |= {f"gpu_hours_{bound}": number(gpu_hours(own, bound)), f"hours_8_{bound}": simulated["hours_median"],
                     f"longest_{bound}": number(max(getattr(job.minutes, bound) for job in alone) / 60)}
        found.append(line)
    return [*sorted(found[:-2], key=lambda line: float(str(line["gpu_hours_low"]))), *found[-2:]]


def free_seeds(jobs: dict[str, costs.Job], bound: str, startup: float, gpus: int = 8) -> int:
    """How many more seeds of every run but the longest two fit beside them, before anybody waits a hundredth longer."""
    tasks, count = list(tasks_of(jobs, bound)), 0
    again = [task for task in tasks if jobs[task.group].kind == "run" and line_of(jobs[task.group]) != HEAVY]
    limit = 1.01 * simulate(tasks, gpus, startup=startup, longest_first=True).makespan
    while simulate(tasks + again * (count + 1), gpus, startup=startup, longest_first=True).makespan <= limit:
        count += 1
    return count


def limit_rows(jobs: dict[str, costs.Job], changed: dict[str, costs.Job], speeds: list[costs.Speed], simulated: list[dict[str, object]],
               by_paper: list[dict[str, object]], rows: list[dict[str, str]], startup: float, spread: float) -> list[dict[str, object]]:
    """Single numbers that the page names."""
    found: list[dict[str, object]] = []

    def add(key: str, low: float, high: float | None = None, unit: str = "", of: str = "") -> None:
        found.append({"key": key, "low": number(low), "high": number(low if high is None else high), "unit": unit, "of": of})

    def span(key: str, value: Callable[[str], float], unit: str = "", of: str = "") -> None:
        add(key, *sorted(value(bound) for bound in ("low", "high")), unit, of)

    def simulated_row(what: str, gpus: int, bound: str, failing: str = USUAL) -> dict[str, object]:
        return next(each for each in simulated if (each["what"], each["gpus"], each["bound"], each["days_between_failures"])
                    == (what, gpus, bound, failing))

    everyone = list(jobs.values())
    core = {job.name: costs.core_minutes(job.all_work, job.method, speeds)[1] / 60 for job in everyone}
    esp_ = {name: job for name, job in jobs.items() if job.method == "ESP"}
    add("cells", len(costs.own_cells()))
    add("distillations", sum(job.kind == "run" for job in everyone))
    add("tasks", sum(job.copies for job in everyone))
    span("gpu hours", lambda bound: gpu_hours(jobs, bound), "h")
    span("share of ESP", lambda bound: 100 * gpu_hours(esp_, bound) / gpu_hours(jobs, bound))
    span("share of the heavy", lambda bound: 100 * gpu_hours(only(jobs, lambda job: line_of(job) == HEAVY), bound) / gpu_hours(jobs, bound))
    heavy = sum(line_of(jobs[costs.job_name(cell)]) == HEAVY for cell in costs.own_cells())
    add("heavy cells", heavy)
    add("other cells", len(costs.own_cells()) - heavy)
    for key, line in (("hours without", by_paper[-2]), ("hours with", by_paper[-1])):
        span(key, lambda bound, line=line: float(str(line[f"hours_8_{bound}"])), "h")                      # type: ignore[misc]
    span("gpu hours smaller", lambda bound: gpu_hours(changed, bound), "h")
    add("core decades", sum(core.values()) / 87660)
    span("ratio", lambda bound: sum(core.values()) / gpu_hours(jobs, bound))
    add("spread", 100 * (math.exp(spread) - 1))
    add("rows of a core", len(speeds))
    decide = {method: costs.speed_of(method, speeds)[3] for method in sorted({job.method for job in everyone} - {"experts"})}
    add("rows that decide", sum(decide.values()))
    add("other rows", len(speeds) - sum(decide.values()))
    for method, count in decide.items():
        slow, _, fast, _ = costs.speed_of(method, speeds)
        width = max(each.width for each in speeds if each.method == method)
        add(f"speed {method}", slow, fast, of=f"{count} row{'s' * (count > 1)} of width {width}")
    add("core share ESP and DDPP", 100 * sum(core[job.name] for job in everyone if job.method in ("ESP", "DDPP", "experts")) / sum(
        core.values()), of=f"{decide['ESP'] + decide['DDPP']} rows")
    add("rows of a GPU", sum(not row["device"].startswith("cpu") for row in rows))
    add("start-up", startup, unit="s")
    config, _ = costs.parsed(CALIBRATE) or (None, None)
    work = costs.distilling(replace(config, steps=1))                                                      # type: ignore[type-var]
    span("a segment", lambda bound: 60 * work.minutes(costs.DEVICES[bound]), "s", CALIBRATE)
    expert = min((job for job in everyone if job.kind == "experts"), key=lambda job: job.minutes.low)
    add("short task", 60 * expert.minutes.low, 60 * expert.minutes.high, "s", expert.name)
    span("tasks a second", lambda bound: float(str(simulated_row(WHOLE, 64, bound)["busiest_minute"])) / 60, "", "64 GPUs, busiest minute")
    add("Ray", *RAY_TASKS)
    for what in (WHOLE, WITHOUT):
        each = {bound: 60 * float(str(simulated_row(what, 8, bound, OFTEN)["lost_hours"])) for bound in ("low", "high")}
        span(f"lost {what}", each.__getitem__, "min")
    span("seeds", lambda bound: free_seeds(jobs, bound, startup), "", "8 GPUs, every run but those of " + HEAVY)
    buffers = [job for job in everyone if job.kind == "experts"]
    largest = max(buffers, key=lambda job: job.copies * job.stored_bytes)
    add("buffers", sum(job.copies * job.stored_bytes for job in buffers) / 1e9, unit="GB", of=f"{len(buffers)} buffers")
    add("largest buffer", largest.copies * largest.stored_bytes / 1e9, unit="GB", of=largest.name)
    add("an expert", min(job.stored_bytes for job in buffers) / 1e6, max(job.stored_bytes for job in buffers) / 1e6, "MB")
    reading = [job for job in everyone if job.kind == "run" and job.needs and jobs[job.needs].kind == "experts"]
    hungriest = max(reading, key=lambda job: job.read_bytes / job.minutes.low)
    span("hungriest run", lambda bound: hungriest.read_bytes / 60 / getattr(hungriest.minutes, bound) / 1e6, "MB/s", hungriest.name)
    add("read by a run", min(job.read_bytes for job in reading) / 1e9, max(job.read_bytes for job in reading) / 1e9, "GB")
    heaviest = max(everyone, key=lambda job: job.checkpoint_bytes)
    add("largest checkpoint", heaviest.checkpoint_bytes / 1e6, unit="MB", of=heaviest.name)
    add("it writes", heaviest.checkpoint_bytes / CHECKPOINT / 1e6, unit="MB/s", of=heaviest.name)
    longest = max(everyone, key=lambda job: job.minutes.low)
    add("longest run", longest.minutes.low / 60, longest.minutes.high / 60, "h", longest.name)
    add("its images", costs.set_size(longest.config), of=longest.name)
    needs = sorted(everyone, key=lambda job: -job.memory_bytes)
    light = next(job for job in needs if job.memory_bytes < 10e9)
    add("most memory", needs[0].memory_bytes / 1e9, unit="GB", of=needs[0].name)
    add("memory of the rest", light.memory_bytes / 1e9, unit="GB", of=light.name)
    for job in needs[:needs.index(light)]:
        add(f"memory of {job.name}", job.memory_bytes / 1e9, unit="GB", of=job.name)
    size = (RESULTS / "measured.csv").stat().st_size / len(rows)
    add("a row", round(size, -1), unit="bytes")
    return found


# ---------------------------------------------------------------------------------------------------------------- the page

def two(value: float | str) -> str:
    """Two digits that count: an estimate has no more."""
    return f"{float(f'{float(value):.2g}'):,.10g}"


def pair(low: str, high: str) -> str:
    return low if low == high else f"{low} – {high}"


def between(row: dict[str, str], name: str) -> str:
    return pair(two(row[f"{name}_low"]), two(row[f"{name}_high"]))


def label(row: dict[str, str]) -> str:
    """What the table calls a job: "1000 experts svhn", "SKD cifar10, no std."."""
    name = row["job"].replace("-no-standardization", ", no std.").replace("tiny_imagenet", "tiny-imagenet")
    name = re.sub(r" convnet\d| standardize", "", name).replace(" zca_a", ", whitened")
    return f"{row['copies']} {name}" if row["kind"] == "experts" else name


def papers_table(rows: list[dict[str, str]]) -> papers.Table:
    columns = ("in this order", "cells", "GPU hours", "with 8 GPUs", "longest run", "disk, GB")
    return papers.Table(columns, tuple(
        (row["what"], row["cells"], *(between(row, name) for name in ("gpu_hours", "hours_8", "longest")), two(row["disk_gb"]))
        for row in rows), (
            "hours, estimated; with experts, GANs and evaluations; with 8 GPUs: simulated, longest first; measured on a GPU: not run",
            "GLD and SKD share the three GANs, which each line counts and \"all\" counts once; tiny: tiny-imagenet",
            "disk: experts, sets, GANs, and a checkpoint of everything; not the data sets"), "Where the hours are", frozenset(columns[1:]))


def simulation_table(rows: list[dict[str, str]]) -> papers.Table:
    by = {(row["what"], row["gpus"], row["bound"]): row for row in rows if row["days_between_failures"] == USUAL}
    lines = []
    for what in (WHOLE, SORTED, WITHOUT, SMALLER):
        cells = [pair(*(two(by[what, gpus, bound][name]) for bound in ("low", "high")))
                 for gpus, name in (("1", "hours_median"), ("8", "hours_median"), ("64", "hours_median"), ("8", "floor_hours"))]
        sides = [by[what, "8", bound] for bound in ("low", "high")]
        used = sorted(100 * float(side["ideal_hours"]) / float(side["hours_median"]) for side in sides)
        lines.append((what, *cells, pair(*map(two, used))))
    columns = ("hours on", "1 GPU", "8 GPUs", "64 GPUs", "longest chain", "8 used, %")
    return papers.Table(columns, tuple(lines), (
        f"medians of {SEEDS} seeds, at the low and at the high estimate; a failure of each node every {USUAL} (assumed); not run",
        "the last two lines are longest first and split, too; the last is another experiment than the papers'",
        "8 used: the share of 8 GPUs' time that work and not waiting takes"), "Everything, simulated", frozenset(columns[1:]))


def jobs_table(rows: list[dict[str, str]]) -> papers.Table:
    some = any(row["gpu_minutes_measured"] != papers.NOT_RUN for row in rows)        # a column of nothing but "not run" says nothing

    def line(row: dict[str, str]) -> tuple[str, ...]:
        name = label(row) + "".join(f" [{number}]" for number, jobs in enumerate(ODD, 4) if row["job"] in jobs)
        return (name, row["cells"] if row["kind"] == "run" else "", between(row, "gpu_minutes"),
                *((row["gpu_minutes_measured"],) if some else ()), two(row["memory_gb"]),
                *(two(row[name]) if float(row[name]) >= 0.05 else "" for name in ("read_gb", "stored_gb")), two(row["core_hours"]))

    columns = ("what", "cells", "GPU min", *(("measured",) if some else ()), "memory", "reads", "leaves", "core h")
    return papers.Table(columns, tuple(map(line, rows)), (
        f"GPU min: estimated, low and high{'' if some else '; measured: not run'}; core h: at the measured speed of one core",
        "memory, reads, leaves (on disk): GB, empty below 0.05; experts: all of a buffer; runs: with all evaluations of their cells",
        "no std.: without standardization; whitened: ZCA; proj-only, dm-only: one of ESP's losses; cross: distilled with two networks",
        "takes 125 of its 5,000 images in each of 80 steps (setting syn_batch, as in MTT); IPC 10 takes all 1,000 in each of 20",
        "50 patches an update, CIFAR-10 all its 96, and 2,000 real images for 5,000: less arithmetic, but longer unrolls, so more launches",
        "decoded images pass 1,024 at a time, so memory stops growing",
        "also without its projection loss the student walks along experts: it reads as much"),
        "What each run costs", frozenset(columns[1:]))


# what a line of the table needs a word about: by footnote, from the fourth
ODD = (("DDPP cifar100-ipc50",), ("PoDD cifar100-ipc1", "PoDD cifar100-ipc0.4"), ("ESP cifar10-ipc50", "ESP svhn-ipc50"),
       tuple(f"ESP cifar10-ipc{ipc}-dm-only" for ipc in (1, 10, 50)))
RELEASE_LOG = "https://github.com/ray-project/ray/blob/ray-2.23.0/release/release_logs/2.9.2/benchmarks/many_tasks.json"
TEXTS = {
    "short": """\
The five papers print {cells} cells of their own. Behind them are {distillations} distillations, {of buffers} of experts and three
GANs: **{gpu hours} on a GPU by estimate**, and about {core decades} decades of one CPU core. Measured on a GPU: {gpu rows}. {heavy
cells} of the {cells} cells take {share of the heavy} % of it. The other {other cells} take {hours without} on 8 GPUs, all of them
{hours with}.""",
    "deciding": """\
Two assumptions about ESP, which takes {share of ESP} % of the hours even without its experts, decide the total. How many updates it
makes is *our choice*: 3,000 segments of 10, where the paper says "until converged"; half as many cost half as much. And every update
sees *all* decoded images, {its images} of the largest set: so the paper's equation 4 has it, but its ablation of that batch (section 4.6)
ends at 1,024 images, and we know of no word on single cells. With 1,024 everything would take {gpu hours smaller}.""",
    "calibrate": """\
```bash
{command}
```

trains one expert and says at last "stopped after *m* minutes at step *n*". A step is a segment of 10 updates, and we guess {a
segment} for it. So your hours are about **low hours × 60 *m* / ({a low segment} *n*)**, for ESP above all. (The expert is in *m*: ten
minutes make it small.)""",
    "measures": """\
- **Measured**, on one CPU core: minutes of {rows of a core} rows of `book/results/measured.csv`. {rows that decide} of them, of the
  widest networks of each method, give its speed; the other {other rows} (narrower, or of the bases DiM and MTT) only how much equal
  work varies, {spread} % up or down beside other programs. {core share ESP and DDPP} % of the core hours rest on *{of core share ESP
  and DDPP}*: ESP's, of CIFAR-10 at IPC 1, and DDPP's, which stands for experts as well. So read "decades". Speeds, in GFLOP a second,
  by width of what distils: DDPP {speed DDPP} ({of speed DDPP}), ESP {speed ESP} ({of speed ESP}), CGAN {speed CGAN} ({of speed
  CGAN}), SKD {speed SKD} ({of speed SKD}), GLD {speed GLD} ({of speed GLD}), PoDD {speed PoDD} ({of speed PoDD}). Narrow networks are
  slow, so PoDD's core hours are too many. A run takes {start-up} before it does anything (`book/results/scaling_startup.csv`).""",
    "chains": """\
With 8 GPUs the chain is already what one waits for: {longest run} for {of longest run}, after its experts. The other seven GPUs could
meanwhile make {seeds} more seeds of every other run, free of charge. Failures hardly matter: with one every 3 days (rented machines
are taken away often) 8 GPUs lose {lost as listed} of work in all, since most of them wait; in the third line, where most are busy
for fewer hours, {lost without ESP tiny}.
Times vary from seed to seed by {spread} %, as rows of a busy CPU did; on a GPU it may be less.""",
    "limits": """\
- **Start-up.** The shortest expert takes {short task}, and starting its process {start-up}. *Change:* `python -m ddlib.experts`
  trains eight side by side in one process on a GPU; the sweep starts one process for each.
- **Buffers** are {buffers}, the largest {largest buffer}, an expert {an expert}. A run reads {read by a run}: every expert that it
  draws once from end to end, for its checksum, and two snapshots (weights after an epoch) for an update of DDPP or eleven for a
  segment of ESP. The hungriest wants {hungriest run} ({of hungriest run}), and a network of 10 Gbit/s carries 1,250 MB/s. *Change:*
  copy a buffer to each machine's disk once, and keep its runs there. Pass its folder's name, never its content, through Ray's memory.
- **Checkpoints** are written every 20 seconds whatever their size; the largest is {largest checkpoint}, so {it writes}. *Change:*
  `checkpoint_seconds` of `runs.run`: 20 minutes lose next to nothing.
- **Results** are small, {a row} a row, but each is appended under a lock of the file system, which not every network file system
  keeps between machines. *Change:* one writer, as `ddlib.sweep` is.
- **The scheduler** is no limit: 64 GPUs ask for {tasks a second} tasks a second, and Ray, the library that spreads a sweep over
  machines, places [{Ray}]({log}) in its own release test.
- **Memory**, counted, to which libraries add a GB or two: {heavy memory}; nothing else needs more than {memory of the rest}. So 12 GB
  serve for all but these, 16 GB are tight for the experts, 24 GB for ESP.""",
}


def shown(row: dict[str, str]) -> str:
    """A row of scaling_limits.csv as text: "26 to 280 GB". What has a unit has two digits, a count has all."""
    exact = not row["unit"] and float(row["low"]).is_integer() and row["key"] not in ROUND
    low, high = (f"{float(row[side]):,.0f}" if exact else two(row[side]) for side in ("low", "high"))
    return " ".join(filter(None, [low if low == high else f"{low} to {high}", row["unit"]]))


ROUND = {"spread", "ratio", "share of ESP", "share of the heavy", "core share ESP and DDPP", "Ray"}


def facts(limits: list[dict[str, str]]) -> dict[str, str]:
    """The generated sentences of the page, by the name of their marker."""
    values = {row["key"]: shown(row) for row in limits} | {f"of {row['key']}": row["of"] for row in limits}
    values |= {"log": RELEASE_LOG, "command": CALIBRATE.replace(" --", " \\\n  --")}
    values["a low segment"] = next(two(row["low"]) for row in limits if row["key"] == "a segment")
    values["heavy memory"] = ", ".join(f"{label({'job': row['of'], 'kind': 'run'})} {shown(row)}" for row in limits
                                       if row["key"].startswith("memory of ") and row["key"] != "memory of the rest")
    values["gpu rows"] = "*not run*" if values["rows of a GPU"] == "0" else f"{values['rows of a GPU']} rows"
    return {name: re.sub(r"\{([^}]+)\}", lambda key: values[" ".join(key[1].split())], text) for name, text in TEXTS.items()}


def figure(rows: list[dict[str, str]]) -> bytes:
    """Hours against GPUs, as listed and with the changes, each between its two estimates, above total / GPUs."""
    size = (3.6, 3.6)                    # inches: small, so that letters stay legible on a telephone
    with plots.style(size):
        fig = plots.figure(size)
        ax = fig.subplots()
        for what, shade, pattern in ((WHOLE, plots.color("MTT"), "--"), (SMALLER, plots.color("DM"), ":")):
            low, high = ([row for row in rows if (row["what"], row["bound"], row["days_between_failures"]) == (what, bound, USUAL)]
                         for bound in ("low", "high"))
            sizes = [int(row["gpus"]) for row in low]
            hours, ideal = ([[float(row[name]) for row in side] for side in (low, high)] for name in ("hours_median", "ideal_hours"))
            ax.fill_between(sizes, *hours, color=shade, alpha=0.25, label=what if what == WHOLE else f"{what} (not the papers')")
            for number, (side, least) in enumerate(zip(hours, ideal, strict=True)):
                ax.plot(sizes, side, "o-", color=shade, ms=3)
                ax.plot(sizes, least, pattern, color="#4d4d4d", lw=1, label="" if number else f"total / GPUs, {what}")
        ticks = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]
        ax.set(xscale="log", yscale="log", xlabel="GPUs", ylabel="hours, estimated", xticks=sizes, yticks=ticks, ylim=(0.9, 1500),
               xticklabels=map(str, sizes), yticklabels=[f"{tick:,}" for tick in ticks])
        ax.minorticks_off()
        ax.grid(True, color="#d0d7de", lw=0.6)
        fig.legend(loc="outside upper left")
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
    tables = {"papers": papers_table(read("papers")), "simulation": simulation_table(read("simulation")), "jobs": jobs_table(read("jobs"))}
    return facts(read("limits")) | {name: table.html() for name, table in tables.items()}


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
    by_paper = paper_rows(jobs, spread, startup)
    write(RESULTS / "scaling_papers.csv", PAPER_COLUMNS, by_paper)
    write(RESULTS / "scaling_simulation.csv", SIMULATION_COLUMNS, simulated)
    write(RESULTS / "scaling_limits.csv", LIMIT_COLUMNS, limit_rows(jobs, changed, speeds, simulated, by_paper, rows, startup, spread))
    FIGURE.write_bytes(figure(read("simulation")))
    files.write_text(PAGE, fill(PAGE.read_text(encoding="utf-8"), blocks()))
    print(f"wrote {PAGE}, {FIGURE} and {RESULTS}/scaling_*.csv in {time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    main()
