"""A sweep on a simulated cluster of two nodes, with every fault there is: it finishes with the results of an undisturbed one."""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import processes_in, without_costs

from ddlib import evaluate, experts, runs
from ddlib.methods import dm, main
from ddlib.sweep import __main__, driver, grid, pools, work
from ddlib.sweep.store import Store

ray = pytest.importorskip("ray", reason="NO RAY: sweeps on a cluster were not tried; install the extra scale")

SEEDS = {"hang": 0, "disk": 1, "raise": 2, "worker": 3, "checkpoint": 3}        # which seed of DM meets which fault; any may lose its node
RUNS = [
    {"method": "dm", "settings": {"seed": 0}, "evaluate": "strict-cpu", "timeout_minutes": 0.5, "retries": 8},
    {"method": "dm", "settings": {"seed": 1}, "evaluate": "strict-cpu", "retries": 40},
    {"method": "dm", "settings": {"seed": [2, 3]}, "evaluate": "strict-cpu"},
    {"method": "mtt", "evaluate": "strict-cpu"},
]
# Every Python starts with this: the first child of one run fails.
RAISES = """
import os
flag = os.path.join(os.environ["FAULTS"], os.path.basename(os.getcwd()).rpartition("-")[0])
if os.path.exists(flag) and os.path.exists("log.txt"):
    os.unlink(flag)
    os.write(1, b"error: the loss became nan at step 3: lower the learning rate\\n")
    os._exit(1)
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Any]:
    """A head node of two CPUs and a second node of one."""
    from ray.cluster_utils import Cluster

    shim = tmp_path_factory.mktemp("shim")
    (shim / "sitecustomize.py").write_text(RAISES)
    changes = {"FAULTS": str(shim), "PYTHONPATH": os.pathsep.join(filter(None, [str(shim), os.environ.get("PYTHONPATH")])),
               "RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0", "RAY_DISABLE_IMPORT_WARNING": "1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in changes.items():
            patch.setenv(name, value)
        # logs and "auto" of its own, and a short name: sockets lie in it
        with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as scratch:
            made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False, "temp_dir": scratch,
                                                                 "object_store_memory": 100 * 2**20})
            made.faults = shim
            try:
                yield made
            finally:
                made.shutdown()


def dm_run(made: grid.Grid, kind: str) -> grid.Run:
    return next(run for run in made.runs if run.task.name == f"dm.tiny.seed={SEEDS[kind]}")


def undisturbed(run: grid.Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """The rows that the run's command gives in this process; its files are in `folder`."""
    folder.mkdir(parents=True)
    words = run.task.command(folder)[2:]
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", words)
    assert main(importlib.import_module(words[0])) == 0
    return work.read_rows(run.task, folder)


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


class Saboteur(threading.Thread):
    """Does each harm once, as soon as it can be done."""

    def __init__(self, **harms: Callable[[], bool]):
        super().__init__(daemon=True)
        self.harms, self.done, self.ended = harms, [], threading.Event()

    def run(self) -> None:
        while self.harms and not self.ended.wait(0.1):
            for name, harm in list(self.harms.items()):
                with suppress(OSError):                          # a process that it was about to meet has just ended
                    if harm():
                        self.done.append(name)
                        del self.harms[name]


def test_a_sweep_survives_every_fault_with_the_results_of_an_undisturbed_one(cluster, tmp_path, monkeypatch, one_thread):
    out, whole = tmp_path / "out", tmp_path / "whole"
    source = {"name": "faults", "out": str(out), "runs": RUNS, "retries": 1}
    made = grid.read(source)
    monkeypatch.setenv("DDLIB_RUNS", str(whole / "shared"))
    expected = {run.task.name: undisturbed(run, whole / run.task.name, monkeypatch) for run in made.runs}
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DDLIB_RUNS")
    folders = {kind: out / dm_run(made, kind).task.folder for kind in SEEDS}

    (cluster.faults / f"dm.tiny.seed={SEEDS['raise']}").touch()
    # a checkpoint from an earlier day, altered since
    begun = dm_run(made, "checkpoint")
    runs.run(dm, begun.config, folders["checkpoint"], real=grid.dataset("toy"), device="cpu", minutes=1e-9)
    checkpoint = bytearray((folders["checkpoint"] / "checkpoint.safetensors").read_bytes())
    checkpoint[-20] ^= 1
    (folders["checkpoint"] / "checkpoint.safetensors").write_bytes(checkpoint)
    # the disk of one run is full from the start
    folders["disk"].mkdir(parents=True)
    small = ["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(folders["disk"])]
    mounted = subprocess.run(small, capture_output=True).returncode == 0
    second = cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)

    def node_of(folder: Path) -> str:
        attempts = work.load_json(folder / "attempts.json", [])
        return attempts[-1]["node"] if attempts and attempts[-1]["outcome"] == "lost" else ""       # "lost" until it ends

    def kill_worker() -> bool:
        children = processes_in(folders["worker"]) if (folders["worker"] / "config.json").is_file() else []
        for pid in children[:1]:
            os.kill(parent(pid), signal.SIGKILL)
        return bool(children)

    def hang() -> bool:
        stays = not second.node_id.startswith(node_of(folders["hang"]) or second.node_id)           # on the node that is not killed
        children = processes_in(folders["hang"]) if stays and (folders["hang"] / "config.json").is_file() else []
        for pid in children:
            os.kill(pid, signal.SIGSTOP)
        return bool(children)

    def kill_node() -> bool:
        busy = any(node and second.node_id.startswith(node) and (folder / "config.json").is_file()
                   for folder in out.glob("*-????????") for node in [node_of(folder)])
        if busy:
            cluster.remove_node(second, allow_graceful=False)
        return busy

    def make_room() -> bool:
        attempts = work.load_json(folders["disk"] / "attempts.json", [])
        if full := any("is full" in attempt["outcome"] for attempt in attempts):
            subprocess.run(["mount", "-o", "remount,size=10m", str(folders["disk"])], check=True)
        return full

    saboteur = Saboteur(worker=kill_worker, hang=hang, node=kill_node, **({"disk": make_room} if mounted else {}))
    saboteur.start()
    try:
        found = driver.run(source, ray=cluster.address)
        print(found.text)
        assert found.status == 0, found.text
        assert sorted(saboteur.done) == sorted(["worker", "hang", "node", *(["disk"] if mounted else [])])
        rows = evaluate.read_rows(out / "measured.csv")
        assert without_costs(rows) == without_costs([row for each in expected.values() for row in each])
        for run in made.runs:
            for name in ("distilled.safetensors", "metrics.csv"):
                assert (out / run.task.folder / name).read_bytes() == (whole / run.task.name / name).read_bytes(), (run.task.name, name)
        told = "\n".join(found.happened)
        assert f"node {second.node_id[:8]} (" in told and "was lost; its runs went on elsewhere" in told
        assert f"seed={SEEDS['worker']}: its worker on" in told
        assert f"its worker on {second.node_id[:8]} was lost; it was taken up again" in told
        assert "(the loss became nan at step 3: lower the learning rate); it was tried again" in told
        assert "ran past its limit of 0.5 minutes" in told
        assert f"seed={SEEDS['checkpoint']}: began anew: checkpoint.safetensors was altered" in told
        assert not mounted or "is full: make room" in told
        assert [run.task.kind for run in made.first.values()] == ["expert", "expert"]          # one task an expert
        assert all(found.records[name]["state"] == "finished" for name in made.first)
        assert experts.open_buffer(next((out / "shared" / "experts").iterdir())).num_experts == 2
        again = driver.run(source)                               # and the same without Ray: nothing is left
        assert again.text.count("finished before") == len(made.runs)
        assert not [pid for folder in out.iterdir() for pid in processes_in(folder)]
    finally:
        saboteur.ended.set()
        saboteur.join()
        if mounted:
            subprocess.run(["umount", "--lazy", str(folders["disk"])], check=True)
    if not mounted:
        pytest.skip("NO TMPFS: mounting one is not allowed here; all faults but a full disk were survived")


@pytest.mark.parametrize("kind", ["another", "none"])
def test_a_node_with_another_ddlib_or_none_is_named_before_anything_starts(cluster, tmp_path, monkeypatch, kind):
    package = tmp_path / "node" / "ddlib"
    shutil.copytree(work.PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    with open(package / "__init__.py", "a") as file:
        file.write("\n" if kind == "another" else "raise ImportError('no module named ddlib')\n")
    monkeypatch.chdir(tmp_path)                                  # a worker looks where its driver was started, too
    node = cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20, env_vars={"PYTHONPATH": str(package.parent)})
    try:
        with pytest.raises(ValueError, match=rf"node {node.node_id[:8]} \(.*\) " + (
                r"has ddlib \w+ and this machine \w+: bring both" if kind == "another" else "cannot import ddlib .*: install it there")):
            driver.run({"name": "x", "out": str(tmp_path / "out"), "runs": [{"method": "dm"}]}, ray=cluster.address)
        assert not list((tmp_path / "out").glob("dm*"))
    finally:
        cluster.remove_node(node)


def test_more_than_any_node_has_is_refused_where_ray_would_wait_for_ever(cluster, tmp_path):
    with pytest.raises(ValueError, match="wants 64 CPUs and no node has all of it: ask for less"):
        driver.run({"name": "x", "out": str(tmp_path / "out"), "runs": [{"method": "dm", "resources": {"cpus": 64}}]}, ray=cluster.address)


def test_what_ray_says_of_a_lost_task_is_not_said_of_those_that_need_it(tmp_path):
    """Ray gives one error for both."""
    made = grid.read({"name": "x", "out": str(tmp_path), "runs": [{"method": "mtt", "settings": {"num_experts": 1}}]})
    tasks = [run.task for run in [*made.first.values(), *made.runs]]

    class Gone(Exception):
        pass

    def get(ref: str) -> None:
        raise Gone("the worker died")

    pool = object.__new__(pools.OnRay)
    pool.nodes, pool.lost, pool.tasks = {}, {}, dict(zip("ab", tasks, strict=True))
    pool.ray = SimpleNamespace(wait=lambda refs, **_: (refs[:1], refs[1:]), nodes=list, get=get, exceptions=SimpleNamespace(RayError=Gone))
    errors = [record["error"] for _ in tasks for _, record in pool.ended()]
    lost = "its worker was lost for good: the worker died"
    assert errors == [lost, f"not tried, as {tasks[0].name}, which it begins with, failed: {lost}"]


def test_what_needs_a_task_that_no_node_fits_any_more_says_so(tmp_path):
    made = grid.read({"name": "x", "out": str(tmp_path), "runs": [{"method": "mtt", "settings": {"num_experts": 1}}]})
    expert, run = [run.task for run in [*made.first.values(), *made.runs]]

    class Cancelled(Exception):
        pass

    def get(ref: str) -> None:
        raise Cancelled

    pool = object.__new__(pools.OnRay)
    pool.nodes, pool.notes, pool.lost, pool.tasks = {"n": {"NodeManagerAddress": "there"}}, [], {}, {"a": expert, "b": run}
    pool.ray = SimpleNamespace(wait=lambda refs, **_: ([ref for ref in refs if ref == "b"], refs), nodes=list, get=get,
                               cancel=lambda ref, force: None, exceptions=SimpleNamespace(RayError=Cancelled))
    errors = {task.name: record["error"] for task, record in pool.ended()}
    gone = "it wants 1 CPUs, and no node that is left has all of it"
    assert errors == {expert.name: gone, run.name: f"not tried, as {expert.name}, which it begins with, failed: {gone}"}


def test_a_folder_that_a_node_does_not_see_is_refused(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(Store, "path", lambda self, *parts: "/".join([self.address, "elsewhere", *parts]))
    with pytest.raises(ValueError, match=r"node \w+ \(.*\) does not see .*/out: name a folder with --out that all nodes see"):
        driver.run({"name": "x", "out": str(tmp_path / "out"), "runs": [{"method": "dm"}]}, ray=cluster.address)


def test_an_unreachable_cluster_is_one_sentence_at_once(tmp_path, capsys):
    path = tmp_path / "grid.yaml"
    path.write_text(f"out: {tmp_path / 'out'}\nruns: [{{method: dm}}]\n")
    began = time.monotonic()
    assert __main__.main([str(path), "--ray", "127.0.0.1:1"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: nobody answers at 127.0.0.1:1") and "--ray local" in error and error.count("\n") == 1
    assert time.monotonic() - began < 20


def test_without_ray_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r'pip install "ddlib\[scale\]"'):
        driver.run({"name": "x", "out": str(tmp_path / "out"), "runs": [{"method": "dm"}]}, ray="local")


def test_an_address_that_workers_cannot_see_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="workers do not see memory://x"):
        pools.OnRay(work.Store("memory://x"), "", [], "local")
