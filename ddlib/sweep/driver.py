"""A whole sweep: what is finished is recognised, the rest is done, every row is published once, and a report is made."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddlib import evaluate, runs
from ddlib.sweep import grid as grids
from ddlib.sweep import report
from ddlib.sweep.grid import Grid, Run
from ddlib.sweep.pools import Here, OnRay
from ddlib.sweep.work import Task, finished

# two rows are of one result if they differ in nothing else: work that is done again costs other minutes, at another commit
COSTS = ("commit", "device", "minutes", "peak_mb")


@dataclass(frozen=True)
class Report:
    """What became of a sweep. records: by name of the run. happened: a line for everything that did not go straight.

    unpublished: why rows are missing in the results file; "" where none are.
    """

    grid: Grid
    records: Mapping[str, Mapping[str, Any]]
    happened: Sequence[str]
    text: str
    unpublished: str = ""

    @property
    def failed(self) -> list[str]:
        return [run.task.name for run in self.grid.runs if self.records.get(run.task.name, {}).get("state") != "finished"]

    @property
    def status(self) -> int:
        """Exit status: 0 if all runs succeeded and their rows are published, else 1."""
        return int(bool(self.failed or self.unpublished))


def publish(path: Path, rows: Sequence[Mapping[str, str]]) -> int:
    """Append the rows that the results file lacks; returns how many. What makes a row another one is all but its costs."""
    key = lambda row: tuple(str(row[column]) for column in evaluate.COLUMNS if column not in COSTS)
    return evaluate.append_rows(path, rows, key) if rows else 0


def run(source: Mapping[str, Any] | Path | str, *, ray: str = "", yes: bool = False, dry_run: bool = False,
        ask: Callable[[str], bool] | None = None, **changes: Any) -> Report:
    """Run what is missing of a grid (a YAML file or a mapping, see `ddlib.sweep.grid`), and report.

    ray: "local" or the address of a cluster; "": this machine, without Ray. ask: answers the question whether to go on where
    an estimate exceeds a limit of the grid; yes: is that answer. dry_run: tell, and start nothing. changes: keys of the grid
    to replace, such as workers=4 (of this machine, or of the Ray that "local" starts). ValueError or OSError, one sentence,
    where the sweep cannot begin; KeyboardInterrupt, with nothing lost that was finished, when it is interrupted.
    """
    grid = grids.read(source, **changes)
    session = uuid.uuid4().hex[:12]
    tasks = [each.task for each in [*grid.first.values(), *grid.runs]]
    with contextlib.ExitStack() as after:
        if not dry_run:                                          # which only looks
            after.enter_context(grid.store.alone() if grid.store.remote else runs.alone(Path(grid.store.address)))
            grids.check_results(grid.results, write=True)
        records, told = recognised(tasks, grid)
        for line in told:
            print(line, flush=True)
        finished_before = [] if dry_run else [run for run in grid.runs if run.task.name in records]
        new = sum(publish(grid.results, records[run.task.name]["rows"]) for run in finished_before)
        if new:
            print(f"{new} rows of finished runs were missing in {grid.results} and are there now")
        todo = [run for run in grid.runs if run.task.name not in records]
        needed = {need for run in todo for need in run.needs}
        first = [run for name, run in grid.first.items() if name in needed and name not in records]
        order = [run.task for run in [*first, *todo]]
        pool: Here | OnRay | None = None
        unpublished = ""
        if todo and not (dry_run and ray):                       # to tell of a cluster would be to connect to it
            pool = OnRay(grid.store, session, order, ray, grid.workers) if ray else Here(grid.store, session, order, grid.workers)
            after.callback(lambda: pool.close())
        rows = [*evaluate.read_rows(), *evaluate.read_rows(grid.results)]
        workers = pool.workers if pool else grid.workers or 1
        plan = report.plan(grid.runs, first, [run.task.name for run in grid.runs if run.task.name in records], rows, workers)
        print(f"{grid.name}: {plan}\n{workers} at a time, in {grid.store.address}; rows go to {grid.results}", flush=True)
        if (too_much := plan.beyond(grid.limits)) and todo and not yes and not dry_run and not (ask and ask(", ".join(too_much))):
            raise ValueError(f"the sweep would take {', '.join(too_much)}: raise the limit, or say --yes")
        if pool and not dry_run:
            expected = {each.task.name: found.minutes for each in [*first, *todo] if (found := report.estimate(each, rows)).minutes}
            records |= work_off(pool, order, grid, report.Progress(len(order), workers, expected))
            try:
                for each in order:
                    publish(grid.results, records[each.name]["rows"])
            except (OSError, ValueError) as error:
                unpublished = f"rows are missing in {grid.results} ({error}): mend that and start the sweep again, which adds them"
                pool.notes.append(unpublished)
        notes = pool.notes if pool else []
        if grid.store.remote and grid.results.is_file() and not dry_run:
            try:
                grid.store.put(grid.results, grid.results.name)
            except Exception as error:                           # hours of work are reported whatever happens to a copy
                notes.append(f"{grid.results} could not be copied to {grid.store.address} ({error})")
        return dataclasses.replace(summary(grid, records, session, notes), unpublished=unpublished)


def recognised(tasks: Sequence[Task], grid: Grid) -> tuple[dict[str, Mapping[str, Any]], list[str]]:
    """(the records of the tasks that are finished, what is to be said of others)."""
    def look(task: Task) -> tuple[Mapping[str, Any] | None, str]:
        try:
            return finished(task, grid.store)
        except Exception as error:                               # storage has errors of its own
            raise OSError(f"{grid.store.path(task.folder)} cannot be read ({error}): mend that, or choose another --out") from None

    records: dict[str, Mapping[str, Any]] = {}
    told = []
    with futures.ThreadPoolExecutor(8) as pool:                  # a store may be far away
        for task, (record, problem) in zip(tasks, pool.map(look, tasks), strict=True):
            if record:
                records[task.name] = record
            if problem:
                told.append(f"{task.name} is run again: {problem}")
    return records, told


def work_off(pool: Here | OnRay, order: Sequence[Task], grid: Grid, progress: report.Progress) -> dict[str, Mapping[str, Any]]:
    """Do the tasks in order and publish their rows as they end; a terminal's Ctrl-C and SIGTERM end them."""
    records: dict[str, Mapping[str, Any]] = {}
    with terminated_as_interrupted():
        try:
            for task in order:
                pool.start(task)
            while len(records) < len(order):
                progress.tick()
                for task, record in pool.ended():
                    records[task.name] = record
                    with contextlib.suppress(OSError, ValueError):           # it may be mended by the end, when it is tried again
                        publish(grid.results, record["rows"])
                    progress.ended(task, record)
        except BaseException:
            pool.close(interrupted=True)
            raise
        finally:
            progress.close()
    return records


@contextlib.contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt, where a handler can be set: in the main thread."""
    try:
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def summary(grid: Grid, records: Mapping[str, Mapping[str, Any]], session: str, notes: Sequence[str]) -> Report:
    """The table, what happened, and where the failed runs can be looked at."""
    tasks = [each.task for each in [*grid.first.values(), *grid.runs]]
    happened = [*notes, *report.happened(tasks, records, session)]
    lines = [report.table(grid.runs, records, session)]
    if happened:
        lines += ["", "what happened:", *(f"  {line}" for line in happened)]
    bad: list[tuple[Run, Mapping[str, Any]]] = [(each, records[each.task.name]) for each in [*grid.first.values(), *grid.runs]
                                                if records.get(each.task.name, {}).get("state") == "failed"]
    if bad:
        lines += ["", "failed:"]
        for each, record in bad:
            name = f"{each.task.chapter}.ipynb" if each.task.chapter else "log.txt"
            lines += [f"  {each.task.name}: {record['error']}", f"    {grid.store.path(each.task.folder, name)}"]
    return Report(grid, records, happened, "\n".join(lines))
