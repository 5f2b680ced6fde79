"""Who does the tasks: threads that wait for child processes on this machine, or Ray.

Both offer the same: `start` a task after those that it needs, `ended` ones as they come, `close`. Ray schedules, places by CPUs,
GPUs and memory, and retries, also what was on a worker or a node that is gone.
"""

from __future__ import annotations

import os
import queue
import socket
from collections.abc import Iterator, Sequence
from concurrent import futures
from typing import Any

from ddlib.sweep import work
from ddlib.sweep.store import Store, first_line
from ddlib.sweep.work import Task, code_version, execute

LOST = 3                                                         # lost workers that a task survives, besides its own retries
POLL_SECONDS = 1.0


def failures(record: dict[str, Any], session: str) -> int:
    """How often a task has failed since this start of the sweep."""
    good = ("finished", "lost", "interrupted")
    return sum(attempt["session"] == session and attempt["outcome"] not in good for attempt in record["attempts"])


class Here:
    """This machine: `workers` child processes at a time, by default as many as its cores, memory and GPUs allow."""

    def __init__(self, store: Store, session: str, tasks: Sequence[Task], workers: int = 0):
        self.store, self.session = store, session
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        bounds = [cores // max((task.cpus for task in tasks), default=1)]
        if most := max((task.memory_gb for task in tasks), default=0.0):
            bounds.append(int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9 / most))
        if most := max((task.gpus for task in tasks), default=0.0):
            bounds.append(int(len(visible_gpus()) / most))
            if not bounds[-1]:
                raise ValueError(f"a run wants {most:g} GPUs and this machine has {len(visible_gpus())}: ask for fewer in its resources")
        self.gpus = most
        if most and workers > bounds[-1]:
            raise ValueError(f"{workers} workers want {most:g} GPUs each and this machine has {len(visible_gpus())}: "
                             f"use at most {bounds[-1]} workers")
        self.workers = workers or max(1, min(bounds))
        self.notes: list[str] = []
        self.pool = futures.ThreadPoolExecutor(self.workers)
        self.slots: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(self.workers):
            self.slots.put(slot)
        self.tasks: dict[futures.Future[dict[str, Any]], Task] = {}
        self.waiting: list[Task] = []                            # for what they need: no worker waits with them
        self.records: dict[str, dict[str, Any] | None] = {}      # by folder, None until it has ended

    def start(self, task: Task) -> None:
        self.records[task.folder] = None
        self.waiting.append(task)

    def begin(self) -> Iterator[tuple[Task, dict[str, Any]]]:
        """Hand on what waits for nothing any more, in order; yields what cannot be done because what it needs has failed."""
        waiting, self.waiting = self.waiting, []
        for task in waiting:
            before = [self.records[need] for need in task.needs if need in self.records]
            if bad := next((record for record in before if record and record["state"] != "finished"), None):
                yield task, unfinished(task, without(bad["name"], bad["error"]))
            elif None in before:
                self.waiting.append(task)
            else:
                self.tasks[self.pool.submit(self.work, task)] = task

    def work(self, task: Task) -> dict[str, Any]:
        slot = self.slots.get()
        try:
            for _ in range(1 + task.retries):
                record = execute(task, self.store, self.session, share(slot, task.gpus, self.gpus))
                if record["state"] == "finished":
                    break
            return record
        finally:
            self.slots.put(slot)

    def ended(self) -> Iterator[tuple[Task, dict[str, Any]]]:
        """The tasks that have ended since the last call, after a second at most."""
        for task, record in self.begin():
            self.records[task.folder] = record
            yield task, record
        done, _ = futures.wait(self.tasks, POLL_SECONDS, futures.FIRST_COMPLETED)
        for future in done:
            task = self.tasks.pop(future)
            self.records[task.folder] = future.result()
            yield task, future.result()

    def close(self, interrupted: bool = False) -> None:
        """Interrupted: end what runs."""
        if interrupted:
            work.stopping.set()
        try:
            self.pool.shutdown(cancel_futures=interrupted)
        finally:
            work.stopping.clear()


def visible_gpus() -> list[str]:
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [name for name in named.split(",") if name] if named is not None else [str(i) for i in range(torch.cuda.device_count())]


def share(slot: int, gpus: float, most: float) -> str:
    """CUDA_VISIBLE_DEVICES of a child: none if it asks for none, so that the same grid gives the same everywhere.

    most: what any run asks for, and each slot has for itself.
    """
    first = int(slot * most)
    return ",".join(visible_gpus()[first:first + max(1, int(gpus))]) if gpus else ""


class Again(RuntimeError):
    """A task has failed and may be tried again."""


def without(name: str, error: str) -> str:
    """Why a task is not tried at all, in the words of the other one's failure."""
    return f"not tried, as {name}, which it begins with, failed: {error}"


def attempt(task: Task, store: Store, session: str, *needs: dict[str, Any]) -> dict[str, Any]:
    """The body of a Ray task; `needs` are the results of others, awaited by Ray."""
    if bad := next((record for record in needs if record["state"] != "finished"), None):
        return unfinished(task, without(bad["name"], bad["error"]))
    record = execute(task, store, session, None if task.gpus else "")
    if record["state"] == "failed" and failures(record, session) <= task.retries:
        raise Again(record["error"])
    return record


class OnRay:
    """A Ray cluster: address "local" starts one on this machine with `workers` CPUs, else one that runs."""

    def __init__(self, store: Store, session: str, tasks: Sequence[Task], address: str, workers: int = 0):
        try:
            import ray
        except ImportError:
            raise ImportError('--ray needs Ray: pip install "ddlib[scale]"') from None
        self.ray, self.store, self.session, self.own = ray, store, session, not ray.is_initialized()
        if "://" in store.address and store.address.startswith("memory"):
            raise ValueError(f"workers do not see {store.address}: name a folder or an address that all of them see")
        if self.own:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            os.environ.setdefault("RAY_worker_niceness", "0")    # of a Ray started here: its default gives way to everything else
            os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
            quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
            if address == "local":
                ray.init(num_cpus=workers or None, include_dashboard=False, object_store_memory=100 * 2**20, **quiet)
            else:
                reach(address)
                try:
                    ray.init(address=address, **quiet)
                except (ConnectionError, RuntimeError, ValueError) as error:
                    raise ConnectionError(f"no Ray cluster answers at {address!r} ({first_line(error)}): "
                                          "start one with `ray start --head`, or use --ray local") from None
        self.nodes = self.alive()
        self.notes: list[str] = []
        self.tasks: dict[Any, Task] = {}
        self.by_folder: dict[str, Any] = {}
        self.lost: dict[str, tuple[str, str]] = {}               # tasks without a result, by folder: name, error
        try:
            self.check(tasks)
        except BaseException:
            self.close()
            raise
        cpus = sum(node["Resources"].get("CPU", 0) for node in self.nodes.values())
        self.workers = max(1, int(cpus // max((task.cpus for task in tasks), default=1)))
        self.remote = ray.remote(attempt)

    def alive(self) -> dict[str, dict[str, Any]]:
        return {node["NodeID"]: node for node in self.ray.nodes() if node["Alive"]}

    def check(self, tasks: Sequence[Task]) -> None:
        """ValueError if a node has no ddlib or another one, or if no node has what a task asks for."""
        if task := next((task for task in tasks if not self.fits(task)), None):
            raise ValueError(f"{task.name} wants {wants(task)} and no node has all of it: ask for less in its resources")

        def probe(seen: str) -> str:                             # a nested function travels by value: it needs no ddlib to arrive
            import os
            try:
                from ddlib.sweep.work import code_version
                return code_version(all_of_it=True) if not seen or os.path.exists(seen) else "blind"
            except Exception as error:
                return f"error: {error}"

        affinity = self.ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        remote = self.ray.remote(probe)
        seen = "" if self.store.remote else self.store.path(".lock")             # the driver holds it
        found = {key: remote.options(num_cpus=0, scheduling_strategy=affinity(key, soft=False)).remote(seen) for key in self.nodes}
        for key, ref in found.items():
            where = f"node {key[:8]} ({self.nodes[key]['NodeManagerAddress']})"
            try:
                version = self.ray.get(ref, timeout=120)
            except self.ray.exceptions.RayError as error:
                raise ValueError(f"{where} does not answer ({first_line(error)}): start it again, or go on without it") from None
            if version.startswith("error: "):
                raise ValueError(f"{where} cannot import ddlib ({version.removeprefix('error: ')}): install it there, as here")
            if version == "blind":
                raise ValueError(f"{where} does not see {self.store.address}: name a folder with --out that all nodes see, or an address")
            if version != (here := code_version(all_of_it=True)):
                raise ValueError(f"{where} has ddlib {version} and this machine {here}: bring both to the same version")

    def fits(self, task: Task) -> bool:
        """Whether a node has all that a task asks for: Ray would wait for one."""
        asked = {"CPU": task.cpus, "GPU": task.gpus, "memory": task.memory_gb * 1e9}
        return any(all(node["Resources"].get(name, 0) >= least for name, least in asked.items()) for node in self.nodes.values())

    def start(self, task: Task) -> None:
        needs = [self.by_folder[need] for need in task.needs if need in self.by_folder]
        memory = {"memory": int(task.memory_gb * 1e9)} if task.memory_gb else {}
        options = self.remote.options(name=task.name, num_cpus=task.cpus, num_gpus=task.gpus, max_retries=LOST + task.retries,
                                      retry_exceptions=[Again], **memory)
        self.by_folder[task.folder] = ref = options.remote(task, self.store, self.session, *needs)
        self.tasks[ref] = task

    def ended(self) -> Iterator[tuple[Task, dict[str, Any]]]:
        done, _ = self.ray.wait(list(self.tasks), num_returns=1, timeout=POLL_SECONDS)
        alive = self.alive()
        for key in self.nodes.keys() - alive.keys():
            self.notes.append(f"node {key[:8]} ({self.nodes[key]['NodeManagerAddress']}) was lost; its runs went on elsewhere")
        if self.nodes.keys() != alive.keys():
            self.nodes = alive
            for ref, task in list(self.tasks.items()):
                if ref not in done and not self.fits(task):
                    self.ray.cancel(ref, force=True)
                    del self.tasks[ref]
                    self.lost[task.folder] = task.name, f"it wants {wants(task)}, and no node that is left has all of it"
                    yield task, unfinished(task, self.lost[task.folder][1])
        for ref in done:
            task = self.tasks.pop(ref)
            try:
                yield task, self.ray.get(ref)
            except self.ray.exceptions.RayError as error:
                cause = getattr(error, "cause", None) or error
                first = ("" if isinstance(cause, Again) else "its worker was lost for good: ") + first_line(cause)
                # what Ray says of a task whose need has failed is what it says of that need
                bad = next((need for need in task.needs if need in self.lost), "")
                if not bad:
                    self.lost[task.folder] = task.name, first
                yield task, unfinished(task, without(*self.lost[bad]) if bad else first)

    def close(self, interrupted: bool = False) -> None:
        if interrupted:
            for ref in self.tasks:
                self.ray.cancel(ref, force=True)
        if self.own:
            self.ray.shutdown()


def wants(task: Task) -> str:
    """What a task asks for, in words."""
    return f"{task.cpus} CPUs" + (f", {task.gpus:g} GPUs" if task.gpus else "") + (f", {task.memory_gb:g} GB" if task.memory_gb else "")


def unfinished(task: Task, error: str) -> dict[str, Any]:
    """The record of a task that has left none."""
    return {"name": task.name, "identity": task.identity, "state": "failed", "error": error, "rows": [], "files": {}, "minutes": 0.0,
            "bytes": 0, "attempts": []}


def reach(address: str) -> None:
    """ConnectionError at once, where Ray would try for a minute, if nobody listens at "HOST:PORT"."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except OSError as error:
            raise ConnectionError(f"nobody answers at {address} ({error}): start a cluster there with `ray start --head`, "
                                  "or use --ray local") from None
