"""A sweep on one machine: grids are checked before anything starts, and every result is there exactly once whatever happens.

Most tests replace the child's command by a script that takes a tenth of a second: what is tested is the engine around it.
"""

from __future__ import annotations

import csv
import fcntl
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from conftest import CHAPTERS, ROOT, processes_in, without_costs

from ddlib import evaluate, runs
from ddlib.methods import dm
from ddlib.sweep import __main__, driver, grid, pools, report, work
from ddlib.sweep.store import SCRATCH, Store
from ddlib.sweep.work import Task

FAST = {"method": "dm", "settings": {"seed": [0, 1, 2, 3]}, "evaluate": "strict-cpu"}
# What a method's command does as far as a sweep sees it: works in its folder, goes on from a checkpoint, leaves rows and a set.
FAKE = f"""
import csv, hashlib, os, pathlib, shlex, signal, subprocess, sys, time
words = sys.argv[1:]
name = os.path.basename(os.getcwd()).rpartition("-")[0]
home = pathlib.Path(os.environ["DDLIB_RUNS"], "experts")
if words[0] == "ddlib.experts":
    if pathlib.Path(os.environ["FAULTS"], "experts").exists():
        sys.exit("error: no room for experts")
    home.mkdir(parents=True, exist_ok=True)
    home.joinpath(words[-1]).write_text("theta")
    sys.exit()
print("experts", sorted(os.listdir(home)) if home.exists() else [])
fault = pathlib.Path(os.environ["FAULTS"], name)
if os.path.exists("stale.txt") or (fault.exists() and fault.read_text() == "stale"):
    open("stale.txt", "w"), fault.unlink(missing_ok=True)
    sys.exit("error: metrics.csv does not have the first 3 steps of its run: restore it, or delete its folder and run again")
print("resumed" if os.path.exists("part.txt") else "begun")
open("part.txt", "w").write("half")
if fault.exists():
    kind = fault.read_text()
    if kind != "full":
        fault.unlink()                                           # faults happen once
    if kind == "raise":
        sys.exit("error: the loss became nan at step 3: lower the learning rate")
    if kind == "hang":
        subprocess.Popen(["sleep", "100"], start_new_session=True)           # like a notebook's kernel
        time.sleep(100)
    if kind == "sleep":
        time.sleep(100)
    if kind == "latin":
        sys.stdout.buffer.write(b"error: caf\\xe9 is closed\\n")
        sys.exit(1)
    if kind == "rows":
        open("rows.csv", "wb").write(b"\\xff\\n")
        sys.exit()
    if kind == "leave":
        subprocess.Popen(["sleep", "100"])                       # works on when it has ended
    if kind == "damaged":
        sys.exit("error: x was altered; calling `ddlib.experts.train` makes it again (it is expert-00000.damaged now)")
    if kind == "data":
        open("config.json", "w").write('{{"data": "another"}}')
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "full":
        try:
            open("distilled.bin", "wb").write(b"0" * 300_000)
        except OSError:
            os.unlink("distilled.bin")                           # whole or absent, as ddlib.files writes
            raise
time.sleep(0.1)
number = int(hashlib.sha256(shlex.join(words).encode()).hexdigest()[:4], 16)
row = dict.fromkeys({evaluate.COLUMNS!r}, "") | {{
    "method": name, "accuracy_mean": number / 1000, "protocol": "strict-cpu", "minutes": time.time(), "n": 5, "accuracy_std": 1,
    "command": shlex.join(["python", "-m", *words[:words.index("--results") + 2]])}}
if not os.path.exists("rows.csv"):                               # once for the same command
    with open("rows.part", "w", newline="") as file:
        writer = csv.DictWriter(file, {evaluate.COLUMNS!r})
        writer.writeheader()
        writer.writerow(row)
    os.replace("rows.part", "rows.csv")
open("distilled.bin", "wb").write(str(number).encode())
os.unlink("part.txt")
"""


@pytest.fixture
def faults(tmp_path, monkeypatch):
    """Children run FAKE. Returns a function that has one of them `raise`, `hang`, `kill` itself, or fill the disk, once."""
    script, folder = tmp_path / "fake.py", tmp_path / "faults"
    script.write_text(FAKE)
    folder.mkdir()
    real = Task.command
    monkeypatch.setenv("FAULTS", str(folder))
    monkeypatch.setattr(Task, "command", lambda self, where: [sys.executable, str(script), *real(self, where)[2:]])
    return lambda run, kind: (folder / run).write_text(kind)


def read(tmp_path: Path, *entries: dict, **keys) -> grid.Grid:
    return grid.read({"name": "test", "out": str(tmp_path / "out"), "runs": list(entries) or [FAST], **keys})


def start(tmp_path: Path, *entries: dict, **keys) -> driver.Report:
    return driver.run({"name": "test", "out": str(tmp_path / "out"), "workers": 2, "runs": list(entries) or [FAST], **keys})


def results(tmp_path: Path) -> list[tuple[str, ...]]:
    """The rows there are, without what they cost."""
    return without_costs(evaluate.read_rows(tmp_path / "out" / "measured.csv"))


def log(tmp_path: Path, run: str) -> str:
    (path,) = (tmp_path / "out").glob(f"{run}-????????/log.txt")
    return path.read_text()


# ------------------------------------------------------------------------------------------------------------ the grid

@pytest.mark.parametrize(("entry", "problem"), [
    ({"method": "dmm"}, r"entry 1 of runs: unknown method 'dmm'; choose from cgan, ddpp"),
    ({"method": "dm", "preset": "tny"}, r"DM has no preset 'tny'; choose from .*tiny"),
    ({"method": "dm", "settings": {"stps": 3}}, r"DM has no setting 'stps'; it has dataset, ipc"),
    ({"method": "dm", "settings": {"steps": "many"}}, r"DM's steps must be of type int, got 'many'"),
    ({"method": "dm", "settings": {"steps": 2.5}}, r"DM's steps must be of type int, got 2.5"),
    ({"method": "dm", "settings": {"steps": True}}, r"DM's steps must be of type int, got True"),
    ({"method": "dm", "settings": {"steps": 0}}, r"steps, real_batch and width must be at least 1"),
    ({"method": "dm", "settings": {"seed": []}}, r"seed is an empty list"),
    ({"method": "dm", "settings": {"seed": [0, 0]}}, r"two runs are called 'dm.tiny.seed=0': leave one out"),
    ({"method": "dm", "settings": {"ipc": [dm.PRESETS["tiny"].ipc], "seed": 0}, "name": ".."}, r"a name needs letters or digits, got '..'"),
    ({"method": "dm", "evaluate": "strickt"}, r"unknown protocol 'strickt'; choose from"),
    ({"method": "dm", "evaluate": "strict-cpu-alpha"}, r"DM learns no step size"),
    ({"method": "dm", "evaluate": "strict", "networks": "resnet7"}, r"unknown network 'resnet7'"),
    ({"method": "dm", "ipcs": 3}, r"ipcs are for generators"),
    ({"method": "mtt", "settings": {"ipc": 10_000}}, r"ipc 10000 is more than"),
    ({"method": "dm", "setting": {}}, r"has no key 'setting'; it has name"),
    ({"method": "dm", "evaluate": "strict", "networks": [8]}, r"networks must be text or a list of texts, got 8 in it"),
    ({"method": "dm", "preset": [["a"]]}, r"preset must be text or a list of texts, got \['a'\] in it"),
    ({"method": "dm", "evaluate": [{"a": 1}]}, r"evaluate must be text or a list of texts, got {'a': 1} in it"),
    ({"method": "dm", "resources": {"gpus": float("inf")}}, r"gpus must be a number, got inf"),
    ({"chapter": "03", "preset": "tiny", "parameters": {"preset": "cpu"}}, r"parameters has a 'preset', too: write it once"),
    ({"method": "dm", "resources": {"cpus": 0}}, r"cpus must be at least 1, got 0"),
    ({"method": "dm", "resources": {"cpus": "two"}}, r"cpus must be a whole number, got 'two'"),
    ({"method": "dm", "resources": {"ram": 2}}, r"resources has no key 'ram'; it has cpus"),
    ({"method": "dm", "chapter": "03"}, r"either `method` or `chapter`"),
    ({"settings": {}}, r"either `method` or `chapter`"),
    ({"chapter": "99_nothing"}, r"unknown chapter '99_nothing'; choose from 00_quickstart"),
    ({"chapter": "03", "parameters": {"ipcs": 1}}, r"03_distribution_matching has no parameter 'ipcs'; it has"),
    ({"chapter": "03", "parameters": {"ipc": "one"}}, r"parameter ipc must be of type int, got 'one'"),
    ({"chapter": "03", "preset": "huge"}, r"DM has no preset 'huge'; choose from"),
    ({"chapter": "10", "preset": "huge"}, r"10_cross_architecture has no preset 'huge'; choose from tiny, cpu, full"),
    ({"chapter": "03", "parameters": {"out": "x"}}, r"'out' is no parameter to give here"),
    ({"chapter": "00", "parameters": {"dataset": "fasion"}}, r"unknown dataset 'fasion'; choose from"),
])
def test_a_bad_entry_is_answered_in_one_sentence_before_anything_starts(tmp_path, entry, problem):
    with pytest.raises(ValueError, match=problem):
        start(tmp_path, entry)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("keys", "problem"), [
    ({"runs": []}, "the grid has no runs"),
    ({"workrs": 2}, "the grid has no key 'workrs'; it has name"),
    ({"workers": "2"}, "workers must be a whole number, got '2'"),
    ({"workers": -1}, "workers must be at least 0, got -1"),
    ({"limits": {"hours": 1}}, "limits has no key 'hours'; it has minutes"),
    ({"out": "nothing://x"}, "Protocol not known: nothing"),
    ({"out": "memory://x", "shared": "y"}, "shared is for sweeps in a folder; at memory://x experts and GANs lie with their tasks"),
])
def test_a_bad_grid_is_answered_in_one_sentence(tmp_path, keys, problem):
    with pytest.raises(ValueError, match=problem):
        read(tmp_path, **keys)


def test_a_run_is_recognised_under_another_name(tmp_path, faults):
    """By what decides its result, and a grid that grows may name what it left to the preset."""
    start(tmp_path, {"method": "dm", "evaluate": "strict-cpu"})
    before = results(tmp_path)
    grown = start(tmp_path, {"method": "dm", "settings": {"seed": [0, 1]}, "evaluate": "strict-cpu"})
    assert grown.text.count("finished before") == 1 and len(list((tmp_path / "out").glob("dm*"))) == 2
    assert set(before) < set(results(tmp_path)) and len(results(tmp_path)) == 2


def test_what_a_method_asks_to_be_deleted_is_set_aside(tmp_path, faults):
    faults("dm.tiny.seed=1", "stale")
    found = start(tmp_path)
    assert found.status == 0 and "dm.tiny.seed=1: began anew: metrics.csv does not have the first 3 steps" in "\n".join(found.happened)
    assert len(results(tmp_path)) == 4 and list((tmp_path / "out").glob("dm.tiny.seed=1-*/aside/*/stale.txt"))


def test_a_store_that_cannot_be_read_is_one_sentence(tmp_path, faults, monkeypatch):
    monkeypatch.setattr(Store, "read", lambda self, *parts: {}["credentials"])               # no OSError, as of many a cloud
    with pytest.raises(OSError, match=r"out/dm.tiny.* cannot be read \('credentials'\): mend that, or choose another --out"):
        start(tmp_path)


def test_an_address_that_is_not_there_is_one_sentence(tmp_path, faults, monkeypatch):
    out = f"memory://{tmp_path.name}-gone"
    fs = type(Store(out).fs)
    monkeypatch.setattr(fs, "ls", lambda *_, **__: {}["credentials"])
    with pytest.raises(OSError, match=rf"{out} cannot be reached \('credentials'\): mend that, or choose another --out"):
        start(tmp_path, out=out)


def test_a_copy_of_the_results_that_fails_costs_no_report(tmp_path, faults, monkeypatch):
    monkeypatch.setattr(Store, "put", lambda self, *parts: {}["credentials"])
    found = start(tmp_path, out=f"memory://{tmp_path.name}-copy", results=str(tmp_path / "rows.csv"))
    assert found.status == 0 and "rows.csv could not be copied to memory://" in found.text and len(found.records) == 4


def test_a_notebook_may_be_saved_after_its_run(tmp_path):
    for name in ("03.ipynb", "distilled.safetensors", "table.txt", "log.txt"):
        (tmp_path / name).touch()
    assert sorted(work.digests(tmp_path)) == ["distilled.safetensors", "table.txt"]


def test_one_run_under_two_names_is_refused(tmp_path):
    """A preset's own value may be written out: the result is the same, and would be there twice."""
    with pytest.raises(ValueError, match="'dm.tiny.seed=0' and 'dm.tiny' are the same run"):
        read(tmp_path, {"method": "dm"}, {"method": "dm", "settings": {"seed": 0}})
    assert len(read(tmp_path, {"method": "dm"}, {"method": "dm", "settings": {"seed": 1}}).runs) == 2
    with pytest.raises(ValueError, match="are the same run"):
        read(tmp_path, {"chapter": "03", "preset": "tiny"}, {"chapter": "03", "preset": "tiny", "parameters": {"seed": 0}})


def a_row(**changes) -> dict[str, str]:
    return dict.fromkeys(evaluate.COLUMNS, "1") | {"command": "python -m ddlib.methods.dm --evaluate strict-cpu", **changes}


def test_a_result_that_is_made_again_at_another_commit_is_published_once(tmp_path):
    path = tmp_path / "rows.csv"
    assert driver.publish(path, [a_row(commit="one"), a_row(commit="two", minutes="2")]) == 1
    assert driver.publish(path, [a_row(accuracy_mean="2")]) == 1 and len(evaluate.read_rows(path)) == 2


def test_a_row_torn_in_its_last_cell_is_replaced_and_a_foreign_one_kept(tmp_path):
    path = tmp_path / "rows.csv"
    driver.publish(path, [a_row(method="a"), a_row(method="b")])
    path.write_bytes(path.read_bytes()[:-5])                     # a killed writer: its command ends early
    assert driver.publish(path, [a_row(method="a"), a_row(method="b")]) == 1
    assert [each["command"] for each in evaluate.read_rows(path)] == [a_row()["command"]] * 2
    path.write_bytes(path.read_bytes()[:-1])                     # an editor that leaves out the last line's end
    assert driver.publish(path, [a_row(method="c", command="python -m another")]) == 1 and len(evaluate.read_rows(path)) == 3


def test_a_whole_last_row_without_a_line_end_is_no_torn_one(tmp_path):
    """Whose command begins another's."""
    path = tmp_path / "rows.csv"
    one, ten = (a_row(command=f"x --seed {seed}", accuracy_mean=mean) for seed, mean in ((1, "50"), (10, "77")))
    driver.publish(path, [one])
    path.write_bytes(path.read_bytes()[:-1])
    assert driver.publish(path, [ten]) == 1 and [row["accuracy_mean"] for row in evaluate.read_rows(path)] == ["50", "77"]


@pytest.mark.parametrize("header", ["dataset,method\n", "\n", "dataset,method\ntoy,DM\n"])
def test_half_a_header_with_a_line_end_is_no_header(tmp_path, header):
    (tmp_path / "rows.csv").write_text(header)
    with pytest.raises(ValueError, match="has other columns than"):
        read(tmp_path, results=str(tmp_path / "rows.csv"))


def test_more_workers_than_gpus_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    (task,) = (run.task for run in read(tmp_path, {"method": "dm", "resources": {"gpus": 1}}).runs)
    assert pools.Here(Store(str(tmp_path)), "now", [task], 2).workers == 2
    with pytest.raises(ValueError, match="4 workers want 1 GPUs each and this machine has 2: use at most 2 workers"):
        pools.Here(Store(str(tmp_path)), "now", [task], 4)


def test_a_task_fits_a_node_that_has_all_it_asks_for(tmp_path):
    (task,) = (run.task for run in read(tmp_path, {"method": "dm", "resources": {"cpus": 2, "gpus": 1}}).runs)
    cluster = object.__new__(pools.OnRay)
    for resources, fits in (([{"CPU": 8.0}, {"GPU": 1.0}], False), ([{"CPU": 1.0, "GPU": 1.0}], False), ([{"CPU": 2.0, "GPU": 1.0}], True)):
        cluster.nodes = {str(number): {"Resources": each} for number, each in enumerate(resources)}
        assert cluster.fits(task) == fits


def test_a_results_file_with_other_columns_is_refused_before_anything_starts(tmp_path):
    (tmp_path / "other.csv").write_text("name,age\n")
    for results_ in (tmp_path / "other.csv", tmp_path):
        with pytest.raises(ValueError, match="name another"):
            start(tmp_path, results=str(results_))
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_no_grid_is_answered_in_one_sentence(tmp_path, capsys):
    for text, problem in (("runs: [", "is no YAML"), ("- 1", "must hold a mapping"), ("", "must hold a mapping")):
        (tmp_path / "bad.yaml").write_text(text)
        assert __main__.main([str(tmp_path / "bad.yaml")]) == 2
        error = capsys.readouterr().err
        assert problem in error and error.count("\n") == 1
    assert __main__.main([str(tmp_path / "missing.yaml")]) == 2


def test_names_tell_what_was_chosen_and_stay_what_they_are_when_a_grid_grows(tmp_path):
    small = read(tmp_path, {"method": "dm", "settings": {"ipc": 1, "seed": [0, 1]}})
    large = read(tmp_path, {"method": ["podd", "dm"], "preset": ["cpu", "tiny"], "settings": {"seed": [2, 1, 0], "ipc": 1}})
    assert [run.task.name for run in small.runs] == ["dm.tiny.ipc=1,seed=0", "dm.tiny.ipc=1,seed=1"]
    assert len({run.task.name for run in large.runs}) == len(large.runs) == 12
    assert {run.task.folder for run in small.runs} < {run.task.folder for run in large.runs}


def test_what_decides_a_result_decides_its_identity_and_nothing_else_does(tmp_path, monkeypatch):
    entry = {"method": "dm", "settings": {"seed": 0}, "evaluate": "strict-cpu"}
    identity = lambda *changes: read(tmp_path, entry | dict(changes)).runs[0].task.identity
    first = identity()
    assert identity(("resources", {"memory_gb": 1}), ("retries", 5), ("name", "other")) == first
    different = [identity(("settings", {"seed": 1})), identity(("evaluate", "strict")), identity(("networks", "convnet3:8")),
                 identity(("settings", {"seed": 0, "dataset": "fashion_mini"})),
                 identity(("resources", {"cpus": 2})), identity(("resources", {"gpus": 1}))]             # sums in another order
    monkeypatch.setenv("DDLIB_KERNELS", "off")
    different.append(identity())
    monkeypatch.delenv("DDLIB_KERNELS")
    monkeypatch.setattr(grid, "code_version", lambda chapter="": "another")
    assert len({first, *different, identity()}) == 9


def test_test_images_decide_a_result(tmp_path, monkeypatch):
    toy = grid.dataset("toy")
    other = replace(toy, test=replace(toy.test, images=toy.test.images + 0.1))
    assert other.fingerprint == toy.fingerprint
    before = read(tmp_path).runs[0].task
    grid.checksum.cache_clear()
    try:
        monkeypatch.setattr(grid, "dataset", lambda name: other)
        after = read(tmp_path).runs[0].task
    finally:
        grid.checksum.cache_clear()
    assert before.identity != after.identity and before.data == after.data


def test_the_code_version_changes_with_what_a_result_depends_on(tmp_path, monkeypatch):
    package = tmp_path / "ddlib"
    shutil.copytree(work.PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__", "*.npz"))
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "03_x.ipynb").write_text("{}")
    monkeypatch.setattr(work, "PACKAGE", package)
    versions = lambda: (work.code_version(), work.code_version("03_x"), work.code_version(all_of_it=True))

    def changed(file: Path) -> tuple[bool, ...]:
        before = versions()
        file.write_text(file.read_text() + " ")
        return tuple(one != other for one, other in zip(before, versions(), strict=True))

    assert changed(tmp_path / "notebooks" / "03_x.ipynb") == (False, True, False)
    assert changed(package / "methods" / "dm.py") == changed(package / "assets" / "class_distances.json") == (True, True, True)
    assert changed(package / "plots.py") == (False, True, True)
    assert changed(package / "sweep" / "report.py") == (False, False, True)


def test_no_method_imports_what_only_shows():
    """Which is why an edit of these files leaves a method's finished runs finished."""
    script = ("import sys, importlib\n" + "".join(f"importlib.import_module('ddlib.methods.{name}')\n" for name in grid.METHODS)
              + f"print([name for name in {list(work.SHOWING)!r} if 'ddlib.' + name[:-3] in sys.modules])")
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip() == "[]"


def test_results_that_a_chapter_shows_decide_it_but_for_those_that_the_sweep_adds(tmp_path, monkeypatch):
    package = tmp_path / "ddlib"
    package.mkdir()
    rows = tmp_path / "book" / "results" / "measured.csv"
    rows.parent.mkdir(parents=True)
    monkeypatch.setattr(grid, "PACKAGE", package)
    identity = lambda **keys: read(tmp_path, {"chapter": "03", "preset": "tiny"}, **keys).runs[0].task.identity
    first, own = identity(), identity(results=str(rows))
    evaluate.append_row(rows, a_row())
    assert identity() != first and identity(results=str(rows)) == own


@pytest.mark.parametrize("order", [1, -1])
def test_what_runs_share_gets_the_most_that_any_of_them_asks(tmp_path, order):
    entries = [{"method": "mtt", "resources": {"cpus": 2}, "timeout_minutes": 5}, {"method": "ddpp", "retries": 4}][::order]
    tasks = [run.task for run in read(tmp_path, *entries).first.values()]
    assert {(task.cpus, task.retries, task.timeout_minutes) for task in tasks} == {(2, 4, 0)}


def test_experts_and_gans_are_tasks_that_runs_share(tmp_path):
    made = read(tmp_path, {"method": ["mtt", "ddpp"], "settings": {"seed": [0, 1]}}, {"method": ["skd", "gld"]}, {"method": "dm"})
    kinds = [run.task.kind for run in made.first.values()]
    assert sorted(kinds) == ["expert", "expert", "gan"]          # two experts in the tiny buffer
    assert [len(run.task.needs) for run in made.runs] == [2, 2, 2, 2, 1, 1, 0]
    more = read(tmp_path, {"method": "mtt", "settings": {"num_experts": 3}})
    assert made.first.keys() & more.first.keys() == set(list(more.first)[:2])


def test_the_example_grid_has_thirty_runs_of_five_methods():
    example = grid.read(ROOT / "book" / "sweeps" / "five-methods.yaml")
    assert len(example.runs) == 30
    assert {run.method for run in example.runs} == {"SKD", "GLD", "DDPP", "ESP", "PoDD"}


def test_a_chapter_is_executed_by_its_own_command_with_its_rows_in_the_folder(tmp_path):
    (run,) = read(tmp_path, {"chapter": "03", "preset": "tiny", "parameters": {"ipc": 1}}).runs
    assert run.task.shown == "python -m ddlib.chapter 03_distribution_matching -p preset tiny -p ipc 1"
    assert run.task.command(Path("/x"))[-5:] == ["-p", "results", "/x/rows.csv", "--out", "/x"]
    assert run.task.name == "03_distribution_matching.ipc=1,preset=tiny"


@pytest.mark.parametrize("name", CHAPTERS)
def test_what_a_chapter_calls_results_gets_its_rows(name):
    """A sweep names a file there, which is not there yet."""
    found = grid.inspect(ROOT / "notebooks" / f"{name}.ipynb")
    assert "results" not in found or "gets the rows of this run" in found["results"]["help"]


# --------------------------------------------------------------------------------------- finished, resumed, tried again

def test_no_worker_waits_with_a_run_for_what_it_needs(tmp_path, faults, monkeypatch):
    """Two workers, an expert, the run that begins with it, and one that needs nothing, which is done in the meantime."""
    free, real = threading.Event(), pools.execute

    def execute(task: Task, *rest: object) -> dict:
        if task.kind == "expert":
            assert free.wait(30), "the other worker was kept waiting"
        elif task.name == "dm.tiny":
            free.set()
        return real(task, *rest)

    monkeypatch.setattr(pools, "execute", execute)
    found = start(tmp_path, {"method": "mtt", "settings": {"num_experts": 1}, "evaluate": "strict-cpu"},
                  {"method": "dm", "evaluate": "strict-cpu"})
    assert found.status == 0 and free.is_set()


def test_runs_whose_expert_fails_are_not_tried_and_say_why(tmp_path, faults):
    faults("experts", "always")
    found = start(tmp_path, {"method": "mtt", "evaluate": "strict-cpu"}, FAST, retries=0)
    assert found.failed == ["mtt.tiny"] and len(results(tmp_path)) == 4
    told = re.fullmatch(r"not tried, as (expert-00\d\.\S+), which it begins with, failed: no room for experts",
                        found.records["mtt.tiny"]["error"])
    (task,) = (run.task for run in found.grid.runs if run.task.name == "mtt.tiny")
    assert pools.attempt(task, found.grid.store, "now", found.records[told[1]]) == found.records["mtt.tiny"]              # on Ray, too
    shutil.rmtree(tmp_path / "faults")
    (tmp_path / "faults").mkdir()
    assert start(tmp_path, {"method": "mtt", "evaluate": "strict-cpu"}, FAST).status == 0 and len(results(tmp_path)) == 5


def test_what_is_shared_and_damaged_is_made_again_at_the_cost_of_no_retry(tmp_path, faults):
    faults("dm.tiny.seed=1", "damaged")
    found = start(tmp_path, retries=0)
    assert found.status == 0 and "seed=1: went on, with what was damaged made again: x was altered" in "\n".join(found.happened)


def test_one_damaged_file_is_made_again_once():
    said = [work.Failed(f"x (it is expert-0000{number}.damaged now)") for number in (0, 1, 1, 2)]

    def run() -> None:
        if said:
            raise said.pop(0)

    with pytest.raises(work.Failed, match="expert-00001"):       # the second time: what makes it again damages it
        work.mending(run)
    assert len(said) == 1 and work.mending(run) == ["went on, with what was damaged made again: x (it is expert-00002.damaged now)"]
    with pytest.raises(work.Failed, match="another reason"):
        work.mending(lambda: (_ for _ in ()).throw(work.Failed("another reason")))


def test_nothing_that_a_run_has_started_outlives_it(tmp_path, faults):
    faults("dm.tiny.seed=1", "leave")
    assert start(tmp_path).status == 0
    until(lambda: not processes_in(tmp_path), 5)


def test_children_get_what_the_sweep_was_started_with(tmp_path, faults, monkeypatch):
    """Wherever they run: another folder, another machine's environment."""
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    for kernels in ("off", ""):
        monkeypatch.setenv("DDLIB_KERNELS", kernels)
        monkeypatch.setenv("DDLIB_DATA", "data")
        (run,) = read(tmp_path, {"method": "dm"}).runs
        assert (run.task.data_folder, run.task.kernels) == (str(tmp_path / "data"), kernels)
        monkeypatch.setenv("DDLIB_KERNELS", "other")
        monkeypatch.setenv("DDLIB_DATA", "elsewhere")
        monkeypatch.setattr(Task, "command", lambda *_: [
            sys.executable, "-c", "import os; print('seen', os.environ['DDLIB_DATA'], os.environ.get('DDLIB_KERNELS'))"])
        work.execute(run.task, Store(str(tmp_path / f"out{kernels}")), "now")
        text = next((tmp_path / f"out{kernels}").glob("*/log.txt")).read_text()
        assert f"seen {tmp_path / 'data'} {kernels or None}" in text


def test_an_error_in_another_encoding_is_the_one_that_is_told(tmp_path, faults):
    faults("dm.tiny.seed=1", "latin")
    found = start(tmp_path, retries=0)
    assert found.records["dm.tiny.seed=1"]["error"] == "caf\ufffd is closed"
    assert found.records["dm.tiny.seed=1"]["attempts"][0]["outcome"] == "caf\ufffd is closed"


def test_rows_that_are_no_text_fail_a_run_that_is_tried_again(tmp_path, faults):
    faults("dm.tiny.seed=1", "rows")
    found = start(tmp_path, retries=0)
    (path,) = (tmp_path / "out").glob("dm.tiny.seed=1-????????/attempts.json")               # where the next start looks
    (attempt,) = json.loads(path.read_text())
    assert found.failed == ["dm.tiny.seed=1"] and "codec can't decode" in attempt["outcome"]


@pytest.mark.parametrize("how", ["damaged", "asked"])
def test_a_gan_that_is_damaged_begins_anew_where_it_lies(tmp_path, faults, how):
    (run,) = read(tmp_path, {"method": "cgan", "evaluate": "strict-cpu"}).runs
    place = tmp_path / "out" / "shared" / run.task.place
    place.mkdir(parents=True)
    (place / "metrics.csv").write_text("cut")
    if how == "damaged":
        (place / "config.json").write_text("{")
    else:
        folder = tmp_path / "out" / run.task.folder
        folder.mkdir()
        said = "metrics.csv does not have the first 3 steps of its run: restore it, or delete its folder and run again"
        work.save_attempts(folder, [{"session": "before", "node": "n", "outcome": said, "notes": []}])
    found = start(tmp_path, {"method": "cgan", "evaluate": "strict-cpu"})
    (line,) = found.happened
    assert line.startswith(f"cgan.tiny: began anew: {'config.json is damaged' if how == 'damaged' else 'metrics.csv does not have'}")
    assert not (place / "metrics.csv").exists() and list(place.glob("aside/*/metrics.csv"))


def test_a_finished_generator_is_recognised_as_long_as_it_is_there(tmp_path, faults):
    found = start(tmp_path, {"method": "cgan", "evaluate": "strict-cpu"})
    place = tmp_path / "out" / "shared" / found.grid.runs[0].task.place
    place.mkdir(parents=True, exist_ok=True)
    (place / "distilled.safetensors").touch()                    # which the script leaves out
    again = lambda: start(tmp_path, {"method": "cgan", "evaluate": "strict-cpu"}).text
    assert "finished before" in again()
    (place / "distilled.safetensors").unlink()
    assert "finished before" not in again()


def test_a_copy_of_a_run_is_not_taken_for_it(tmp_path, faults):
    start(tmp_path)
    (folder,) = (tmp_path / "out").glob("dm.tiny.seed=1-????????")
    for name in ("a", "zz"):
        shutil.copytree(folder, folder.with_name(f"{name}-{folder.name}"))
    assert folder.name in {run.task.folder for run in read(tmp_path).runs}


def test_rows_that_cannot_be_written_are_said_before_or_cost_no_run(tmp_path, faults, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"file/rows.csv cannot be written \(.*\): name another for the results"):
        start(tmp_path, results=str(tmp_path / "file" / "rows.csv"))
    path, real = tmp_path / "rows.csv", pools.execute

    def execute(task: Task, *rest: object) -> dict:              # somebody saves the file in a form of their own
        (tmp_path / task.name).write_text("dataset;method\n")
        (tmp_path / task.name).replace(path)
        return real(task, *rest)

    monkeypatch.setattr(pools, "execute", execute)
    found = start(tmp_path, results=str(path))
    assert found.status == 1 and not found.failed and f"rows are missing in {path} (" in found.text
    path.unlink()
    assert start(tmp_path, results=str(path)).status == 0 and len(evaluate.read_rows(path)) == 4


def test_a_dry_run_leaves_nothing(tmp_path, faults, monkeypatch):
    start(tmp_path, FAST | {"settings": {"seed": 0}})
    (tmp_path / "out" / "measured.csv").unlink()
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setenv("DDLIB_RUNS", str(tmp_path / "runs"))
    look = lambda name: driver.run({"out": str(tmp_path / name), "runs": [FAST]}, dry_run=True)
    assert "finished before" in look("out").text and "not run" in look("new").text
    assert sorted(tmp_path.rglob("*")) == before
    with runs.alone(tmp_path / "out"):                           # nor does it mind a sweep that runs
        look("out")


def test_the_table_counts_the_retries_of_this_start(tmp_path, faults):
    retries = lambda found: next(line.split()[-1] for line in found.text.splitlines() if line.startswith("dm.tiny.seed=1"))
    faults("dm.tiny.seed=1", "raise")
    assert retries(start(tmp_path, retries=1)) == "1"
    (folder,) = (tmp_path / "out").glob("dm.tiny.seed=1-????????")
    (folder / "distilled.bin").write_text("other")
    assert retries(start(tmp_path, retries=1)) == "0"


def test_two_sweeps_publish_one_result_in_one_file_once(tmp_path):
    """Whoever adds rows looks at those that are there when nobody else can add any more."""
    path, rows = tmp_path / "rows.csv", [a_row(seed=str(seed)) for seed in range(3)]
    driver.publish(path, rows[:1])
    content = path.read_bytes()
    with open(path, "ab", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        other = threading.Thread(target=driver.publish, args=(path, rows))
        other.start()
        time.sleep(0.5)
        file.write(content.splitlines(keepends=True)[1].replace(b",0,1,1", b",1,1,1", 1))
    other.join()
    assert [row["seed"] for row in evaluate.read_rows(path)] == ["0", "1", "2"]


def test_what_is_set_aside_twice_in_a_second_is_kept_twice(tmp_path):
    for text in ("one", "two"):
        (tmp_path / "part.txt").write_text(text)
        work.set_aside(tmp_path)
    assert sorted(path.read_text() for path in tmp_path.glob("aside/*/part.txt")) == ["one", "two"]


def test_a_gan_that_others_work_in_is_not_set_aside(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with runs.alone(tmp_path):
        assert work.damage_of_shared(tmp_path) == "" and (tmp_path / "config.json").exists()
    assert work.damage_of_shared(tmp_path) == "config.json is damaged" and not (tmp_path / "config.json").exists()


def test_every_row_arrives_once_with_a_command_that_a_reader_can_type(tmp_path, faults):
    found = start(tmp_path)
    assert found.status == 0 and not found.happened
    rows = evaluate.read_rows(tmp_path / "out" / "measured.csv")
    assert [row["command"] for row in sorted(rows, key=lambda row: row["command"])] == [
        f"python -m ddlib.methods.dm --preset tiny --seed {seed} --evaluate strict-cpu" for seed in range(4)]


def test_a_finished_run_is_recognised_and_not_run_again(tmp_path, faults):
    start(tmp_path)
    before = results(tmp_path)
    found = start(tmp_path, FAST | {"settings": {"seed": [3, 2, 1, 0, 4]}})
    assert found.text.count("finished before") == 4
    assert log(tmp_path, "dm.tiny.seed=0").count("begun") == 1
    assert len(results(tmp_path)) == 5 and set(before) < set(results(tmp_path))


def test_rows_that_the_results_file_lost_are_rebuilt_and_foreign_ones_kept(tmp_path, faults):
    start(tmp_path)
    before, path = results(tmp_path), tmp_path / "out" / "measured.csv"
    lines = path.read_text().splitlines(keepends=True)
    foreign = dict.fromkeys(evaluate.COLUMNS, "x")
    path.write_text("".join(lines[:2]) + lines[3][:20])          # torn in mid-line
    evaluate.append_row(path, foreign)
    start(tmp_path)
    assert results(tmp_path) == sorted([*before, ("x",) * (len(evaluate.COLUMNS) - len(driver.COSTS))])


@pytest.mark.parametrize("harm", ["artifact", "record"])
def test_a_finished_run_whose_files_changed_is_said_and_run_again(tmp_path, faults, capsys, harm):
    start(tmp_path)
    before = results(tmp_path)
    (folder,) = (tmp_path / "out").glob("dm.tiny.seed=0-????????")
    if harm == "artifact":
        (folder / "distilled.bin").write_text("other")
    else:
        (folder / "record.json").write_text((folder / "record.json").read_text()[:50])
    found = start(tmp_path)
    reason = "distilled.bin changed after it was finished" if harm == "artifact" else "its record is damaged"
    assert f"dm.tiny.seed=0 is run again: {reason}" in capsys.readouterr().out
    assert found.status == 0 and results(tmp_path) == before
    assert log(tmp_path, "dm.tiny.seed=0").count("begun") == 2 and log(tmp_path, "dm.tiny.seed=1").count("begun") == 1


def test_a_run_that_fails_is_named_with_its_reason_and_log_while_the_others_go_on(tmp_path, faults):
    faults("dm.tiny.seed=1", "raise")
    found = start(tmp_path, retries=0)
    assert found.status == 1 and found.failed == ["dm.tiny.seed=1"] and len(results(tmp_path)) == 3
    assert "dm.tiny.seed=1: the loss became nan at step 3: lower the learning rate" in found.text
    (path,) = [line.strip() for line in found.text.splitlines() if line.endswith("log.txt")]
    assert "lower the learning rate" in Path(path).read_text()
    assert start(tmp_path).status == 0 and len(results(tmp_path)) == 4
    assert "resumed" in log(tmp_path, "dm.tiny.seed=1")


def test_a_chapter_that_fails_is_named_with_the_path_of_its_notebook(tmp_path, faults):
    faults("03_distribution_matching.preset=tiny", "raise")
    found = start(tmp_path, {"chapter": "03", "preset": "tiny"}, retries=0)
    assert found.status == 1 and "lower the learning rate" in found.text
    assert found.text.splitlines()[-1].endswith("/03_distribution_matching.ipynb")


def test_failed_runs_are_retried_as_asked(tmp_path, faults):
    undisturbed = start(tmp_path) and results(tmp_path)
    shutil.rmtree(tmp_path / "out")
    faults("dm.tiny.seed=1", "raise")
    faults("dm.tiny.seed=2", "kill")
    found = start(tmp_path, retries=1)
    assert found.status == 0 and results(tmp_path) == undisturbed
    assert any("seed=1: failed on" in line and "it was tried again" in line for line in found.happened)
    assert any("seed=2: failed on" in line and "SIGKILL, most often for want of memory" in line for line in found.happened)


def test_a_run_past_its_time_limit_is_stopped_with_all_that_it_started(tmp_path, faults, monkeypatch):
    monkeypatch.setattr(work, "GRACE_SECONDS", 0.5)
    faults("dm.tiny.seed=1", "hang")
    limited = FAST | {"settings": {"seed": 1}, "timeout_minutes": 3 / 60, "retries": 2}
    found = start(tmp_path, limited, FAST | {"settings": {"seed": [0, 2, 3]}})
    assert found.status == 0 and len(results(tmp_path)) == 4
    assert any("ran past its limit of 0.05 minutes" in line for line in found.happened)
    assert not processes_in(tmp_path)


def until(done: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def ending(pid: int) -> int:
    """The exit status of a child that ends in time."""
    found: list[int] = []
    until(lambda: (status := os.waitpid(pid, os.WNOHANG)) != (0, 0) and found.append(status[1]) is None)
    return os.waitstatus_to_exitcode(found[0])


def forked(work_: object) -> int:
    """The number of a copy of this process that does `work_` and ends with its status."""
    if pid := os.fork():
        return pid
    try:
        torch.set_num_threads(1)                                 # threads do not survive a fork
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)                 # a shell's background jobs ignore it
        os._exit(work_())
    finally:
        os._exit(99)


def test_a_driver_killed_at_random_moments_loses_nothing_and_doubles_nothing(tmp_path, faults, capfd):
    entry = FAST | {"settings": {"seed": list(range(8))}}
    began = time.monotonic()
    assert ending(forked(lambda: start(tmp_path, entry).status)) == 0
    whole, undisturbed = time.monotonic() - began, results(tmp_path)
    shutil.rmtree(tmp_path / "out")
    rng, finished = random.Random(0), []
    for _ in range(6):
        pid = forked(lambda: start(tmp_path, entry).status)
        time.sleep(rng.uniform(0.1, 0.7) * whole)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        finished.append(len(list((tmp_path / "out").glob("*/record.json"))))
    assert start(tmp_path, entry).status == 0
    assert results(tmp_path) == undisturbed and finished[-1] > 0
    assert any("resumed" in path.read_text() for path in (tmp_path / "out").glob("*/log.txt"))
    assert not processes_in(tmp_path)
    assert not list((tmp_path / "out").rglob("*.part"))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a child whose worker was killed goes on to its end")
def test_a_killed_driver_takes_its_children_with_it(tmp_path, faults):
    for seed in range(4):
        faults(f"dm.tiny.seed={seed}", "sleep")
    pid = forked(lambda: start(tmp_path).status)
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "out").glob("*/part.txt"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    deadline = time.monotonic() + 5
    while processes_in(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not processes_in(tmp_path)


def test_an_interrupted_sweep_ends_its_children_and_says_how_to_go_on(tmp_path, faults, capfd):
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump({"runs": [FAST], "out": str(tmp_path / "out")}))
    command = [str(tmp_path / "grid.yaml"), "--workers", "4"]
    for number in (signal.SIGINT, signal.SIGTERM):
        for seed in range(4):
            faults(f"dm.tiny.seed={seed}", "hang")
        pid = forked(lambda: __main__.main(command))
        until(lambda: len(processes_in(tmp_path / "out")) >= 8)    # four children and what each has started
        os.kill(pid, number)
        assert ending(pid) == 130
        assert "the same command goes on from here" in capfd.readouterr().err
        assert not processes_in(tmp_path)
    shutil.rmtree(tmp_path / "faults")
    (tmp_path / "faults").mkdir()
    assert __main__.main(command) == 0 and len(results(tmp_path)) == 4


def test_exit_statuses_tell_what_became_of_a_sweep(tmp_path, faults, capsys):
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump({"runs": [FAST], "out": str(tmp_path / "out"), "retries": 0}))
    assert __main__.main([str(path), "--dry-run"]) == 0 and not results(tmp_path)
    faults("dm.tiny.seed=1", "raise")
    assert __main__.main([str(path)]) == 1
    assert __main__.main([str(path)]) == 0
    path.write_text("runs: [{method: nothing}]")
    assert __main__.main([str(path)]) == 2
    assert "error: entry 1 of runs: unknown method 'nothing'" in capsys.readouterr().err


def test_code_that_changes_while_a_sweep_runs_is_noticed(tmp_path, faults, monkeypatch):
    monkeypatch.setattr(work, "code_version", lambda chapter="": "edited since")
    found = start(tmp_path)
    assert len(found.failed) == 4 and "ddlib is not the version that the sweep was started with" in found.text
    assert not list((tmp_path / "out").rglob("log.txt"))


def test_two_sweeps_do_not_work_in_one_folder(tmp_path, faults):
    with runs.alone(tmp_path / "out"), pytest.raises(ValueError, match="another process is working in"):
        start(tmp_path)


def test_a_full_disk_fails_one_run_clearly_and_a_start_with_room_finishes_it(tmp_path, faults):
    disk = tmp_path / "out"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("NO TMPFS: mounting one is not allowed here; a full disk was not tried")
    try:
        faults("dm.tiny.seed=1", "full")
        (disk / "ballast").write_bytes(b"0" * 120_000)
        found = start(tmp_path, retries=0, workers=1)
        assert found.failed == ["dm.tiny.seed=1"] and "is full: make room and start the sweep again" in found.text
        assert len(results(tmp_path)) == 3
        (disk / "ballast").unlink()
        assert start(tmp_path, retries=0).status == 0 and len(results(tmp_path)) == 4
        for record in disk.glob("*/record.json"):
            assert json.loads(record.read_text())["state"] == "finished"
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_row_that_a_full_disk_cuts_short_is_taken_back(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("NO TMPFS: mounting one is not allowed here; a full disk was not tried")
    try:
        written = []
        with pytest.raises(OSError, match="No space left"):
            for number in range(200):
                evaluate.append_row(disk / "rows.csv", row(seed=number))
                written.append(str(number))
        assert [each["seed"] for each in evaluate.read_rows(disk / "rows.csv")] == written
        assert (disk / "rows.csv").read_bytes().endswith(b"\n")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_run_on_other_data_than_the_sweep_was_started_with_fails(tmp_path, faults):
    faults("dm.tiny.seed=1", "data")
    found = start(tmp_path, retries=0)
    assert found.failed == ["dm.tiny.seed=1"] and "its dataset is another one on" in found.text


# ------------------------------------------------------------------------------------- methods and chapters as they are

def test_chapters_run_and_methods_resume_and_begin_anew_after_damage_with_the_same_bits(tmp_path, one_thread):
    entry = {"method": "dm", "settings": {"seed": [0, 1]}}
    made = read(tmp_path, entry)
    chapter_ = {"chapter": "03", "preset": "tiny", "parameters": {"repeats": 2}}
    toy = grid.dataset("toy")
    for run in made.runs:
        runs.run(dm, run.config, tmp_path / "whole" / str(run.config.seed), real=toy, device="cpu")
        runs.run(dm, run.config, tmp_path / "out" / run.task.folder, real=toy, device="cpu", minutes=1e-9)
    checkpoints = [tmp_path / "out" / run.task.folder / "checkpoint.safetensors" for run in made.runs]
    damaged = bytearray(checkpoints[1].read_bytes())
    damaged[-20] ^= 1
    checkpoints[1].write_bytes(damaged)
    found = start(tmp_path, chapter_, entry)
    assert found.status == 0
    (line,) = found.happened
    assert line.startswith("dm.tiny.seed=1: began anew: checkpoint.safetensors was altered")
    for run in made.runs:
        ours, whole = tmp_path / "out" / run.task.folder, tmp_path / "whole" / str(run.config.seed)
        assert all((ours / name).read_bytes() == (whole / name).read_bytes() for name in ("distilled.safetensors", "metrics.csv"))
    assert [each["method"] for each in evaluate.read_rows(tmp_path / "out" / "measured.csv")] == ["Random", "DM"]     # the chapter's
    record = found.records["03_distribution_matching.preset=tiny,repeats=2"]
    assert {"table.txt", "distilled.safetensors"} <= record["files"].keys()
    (notebook,) = (tmp_path / "out").glob("03_*/03_distribution_matching.ipynb")
    notebook.write_text(notebook.read_text() + "\n")             # as an editor that looks at it may save it
    assert start(tmp_path, chapter_, entry).text.count("finished before") == 3


# ------------------------------------------------------------------------------------------------------------- storage

@pytest.mark.parametrize("kind", ["memory", "file"])
def test_a_sweep_at_an_address_gives_what_one_in_a_folder_gives(tmp_path, faults, kind, monkeypatch):
    monkeypatch.setenv("DDLIB_RUNS", str(tmp_path / "runs"))
    undisturbed = start(tmp_path) and results(tmp_path)
    address = f"memory://{tmp_path.name}" if kind == "memory" else f"file://{tmp_path / 'far'}"
    faults("dm.tiny.seed=1", "kill")
    found = start(tmp_path, out=address, results=str(tmp_path / "far.csv"))
    assert found.status == 0
    (tmp_path / "far.csv").replace(tmp_path / "out" / "measured.csv")
    assert results(tmp_path) == undisturbed
    folder = next(run.task.folder for run in found.grid.runs if run.task.name == "dm.tiny.seed=1")
    assert b"resumed" in found.grid.store.read(folder, "log.txt")           # elsewhere, from what was sent
    assert found.grid.store.read(folder, "part.txt") is None
    assert start(tmp_path, out=address, results=str(tmp_path / "far.csv")).text.count("finished before") == 4


@pytest.mark.parametrize("kind", ["folder", "memory"])
def test_runs_find_the_experts_that_tasks_of_their_own_have_trained(tmp_path, faults, kind):
    out = f"memory://{tmp_path.name}-experts" if kind == "memory" else str(tmp_path / "out")
    found = start(tmp_path, {"method": "mtt", "evaluate": "strict-cpu"}, FAST, out=out, results=str(tmp_path / "rows.csv"))
    assert found.status == 0
    logs = {run.task.name: found.grid.store.read(run.task.folder, "log.txt").decode() for run in found.grid.runs}
    assert "experts ['0', '1']" in logs["mtt.tiny"]


def test_a_store_sends_a_checkpoint_after_its_metrics_and_the_record_last(tmp_path, monkeypatch):
    store, sent = Store(f"file://{tmp_path / 'far'}"), []
    put = type(store.fs).put_file
    monkeypatch.setattr(type(store.fs), "put_file", lambda self, path, target: (sent.append(Path(target).stem), put(self, path, target)))
    with store.open("run") as (folder, _):
        for name in ("record.json", "checkpoint.safetensors", "metrics.csv"):
            (folder / name).write_text(name)
    assert sent == ["metrics.csv", "checkpoint.safetensors", "record.json"]                 # and each with .part


def test_a_file_far_away_is_whole_or_as_it_was(tmp_path, monkeypatch):
    store = Store(f"file://{tmp_path / 'far'}")
    (tmp_path / "new").write_text("new")
    (tmp_path / "old").write_text("old")
    store.put(tmp_path / "old", "record.json")

    def torn(self: object, path: str, target: str) -> None:
        Path(target.removeprefix("file://")).write_text("ne")
        raise OSError("the wire was cut")

    monkeypatch.setattr(type(store.fs), "put_file", torn)
    with pytest.raises(OSError, match="the wire was cut"):
        store.put(tmp_path / "new", "record.json")
    assert store.read("record.json") == b"old"


def test_one_sweep_at_a_time_at_an_address(tmp_path, faults, monkeypatch, capsys):
    monkeypatch.setattr("ddlib.sweep.store.SEND_SECONDS", 1.0)
    monkeypatch.setattr("ddlib.sweep.store.READ_BACK_SECONDS", 0.0)
    far = Store(f"file://{tmp_path / 'far'}")
    with far.alone():
        note = json.loads(far.read("driver.json"))
        assert note["pid"] == os.getpid()
        until(lambda: json.loads(far.read("driver.json"))["count"] > 1)
        with pytest.raises(ValueError, match=rf"another process, {os.getpid()} on .*, is working in {far.address}: wait for it or"):
            start(tmp_path, out=far.address, results=str(tmp_path / "far.csv"))
    assert far.read("driver.json") is None
    capsys.readouterr()
    for left in (note | {"host": "elsewhere"}, note | {"pid": 2**70}, ["torn"]):             # of a killed driver: nobody renews it
        far.fs.pipe_file(far.path("driver.json"), json.dumps(left).encode())
        with far.alone():
            assert ("looking whether it is still running" in capsys.readouterr().out) == (left == note | {"host": "elsewhere"})


def test_of_two_sweeps_that_come_to_an_address_at_once_one_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("ddlib.sweep.store.READ_BACK_SECONDS", 0.5)
    monkeypatch.setattr("ddlib.sweep.store.SEND_SECONDS", 0.2)
    far, came, real, held, most = Store(f"memory://{tmp_path.name}-two"), threading.Barrier(2), Store.read, [], []
    first: list[str] = []

    def read_(self: Store, *parts: str) -> bytes | None:
        found = real(self, *parts)
        if len(first) < 2:                                       # both see that nobody is there
            first.append("look")
            came.wait(30)
        return found

    monkeypatch.setattr(Store, "read", read_)

    def come() -> None:
        with suppress(ValueError), far.alone():
            held.append(1)
            most.append(len(held))
            time.sleep(1)
            held.pop()

    both = [threading.Thread(target=come) for _ in range(2)]
    for each in both:
        each.start()
    for each in both:
        each.join()
    assert most and max(most) == 1 and far.read("driver.json") is None


def test_what_a_run_writes_is_sent_while_it_runs(tmp_path, monkeypatch):
    """Also after a sending that failed, with no error of an operating system."""
    monkeypatch.setattr("ddlib.sweep.store.SEND_SECONDS", 0.05)
    store, real = Store(f"memory://{tmp_path.name}-sent"), Store.send
    throttled = ["slow down"]

    def send(self: Store, *rest: object) -> None:
        if throttled:
            raise KeyError(throttled.pop())
        real(self, *rest)

    monkeypatch.setattr(Store, "send", send)
    with store.open("run") as (folder, _):
        (folder / "metrics.csv").write_text("1")
        until(lambda: store.read("run", "metrics.csv") == b"1")
        (folder / "metrics.csv").write_text("12")
        until(lambda: store.read("run", "metrics.csv") == b"12")


def test_a_scratch_folder_that_is_cleared_deletes_nothing_far_away(tmp_path):
    store = Store(f"memory://{tmp_path.name}-cleared")
    with store.open("run") as (folder, _):
        (folder / "checkpoint.safetensors").write_text("1")
    with pytest.raises(OSError, match="has gone while a run worked in it"), store.open("run") as (folder, _):
        shutil.rmtree(folder)
    assert store.read("run", "checkpoint.safetensors") == b"1"


def test_what_killed_workers_left_in_the_temporary_folder_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = f"{SCRATCH}{ended.pid}-a"
    others = [f"{SCRATCH}{os.getpid()}-b", f"{SCRATCH}x-c", f"ddlib-sweep-{ended.pid}-{ended.pid}-d", "other"]     # of another machine, too
    for name in (left, *others):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    with Store(f"memory://{tmp_path.name}").open("run"):
        assert not (tmp_path / left).exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)


def test_a_damaged_expert_is_made_again_and_changes_no_bit(tmp_path):
    """Methods as they are. At an address a run makes the expert for itself."""
    again = lambda: start(tmp_path, {"method": "mtt", "settings": {"steps": 6}}, out=f"file://{tmp_path / 'far'}",
                          results=str(tmp_path / "rows.csv"), retries=0)
    digest = lambda found: found.records["mtt.tiny.steps=6"]["files"]["distilled.safetensors"]
    undisturbed = digest(again())
    path = next((tmp_path / "far").rglob("expert-00000.safetensors"))
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)
    (folder,) = (tmp_path / "far").glob("mtt*")
    shutil.rmtree(folder)
    found = again()
    assert found.status == 0 and digest(found) == undisturbed, found.text
    assert any("went on, with what was damaged made again" in line for line in found.happened)


# ----------------------------------------------------------------------------------------------------- what it will take

def row(**values: object) -> dict[str, str]:
    base = {"dataset": "toy", "method": "DM", "preset": "tiny", "ipc": "1", "minutes": "2", "peak_mb": "1000", "budget_scalars": "1024",
            "command": "python -m ddlib.methods.dm --preset tiny"}
    return dict.fromkeys(evaluate.COLUMNS, "") | base | {name: str(value) for name, value in values.items()}


def test_minutes_are_estimated_from_rows_of_the_same_preset_by_steps_and_budget(tmp_path):
    one, other = read(tmp_path, {"method": "dm", "settings": {"steps": 60}}, {"method": "dm", "settings": {"ipc": 2}}).runs
    rows = [row(), row(minutes=4, command="dm --steps 12"), row(ipc=2, minutes=7), row(preset="cpu", minutes=99), row(method="MTT")]
    assert report.estimate(one, rows).minutes == pytest.approx(20)          # six steps in 2 minutes, 12 in 4: 60 in 20
    assert report.estimate(other, rows).minutes == pytest.approx(7)
    assert report.estimate(one, []).minutes is None


def test_where_no_row_tells_it_is_said_and_nothing_invented(tmp_path):
    made = read(tmp_path)
    assert str(report.plan(made.runs, [], [], [], 2)) == "4 runs, 0 of them finished before: no row to estimate 4 of them from"
    told = str(report.plan(made.runs, [], ["dm.tiny.seed=0"], [row()], 2))
    assert told.startswith("4 runs, 1 of them finished before: about 3 minutes, 2.1 GB of memory and 0.00 GB of disk")


def test_beyond_a_limit_it_asks_and_nobody_to_ask_means_no(tmp_path, faults, monkeypatch):
    monkeypatch.setattr(evaluate, "read_rows", lambda path=None, columns=(): [row()] if path is None else [])
    limits = {"name": "test", "out": str(tmp_path / "out"), "runs": [FAST], "limits": {"minutes": 1}, "workers": 2}
    with pytest.raises(ValueError, match=r"would take 4.0 minutes \(limit 1\): raise the limit, or say --yes"):
        driver.run(limits)
    asked = []
    with pytest.raises(ValueError):
        driver.run(limits, ask=lambda question: asked.append(question))
    assert asked == ["4.0 minutes (limit 1)"] and not list((tmp_path / "out").glob("dm*"))
    assert driver.run(limits, yes=True).status == 0


def test_progress_counts_what_is_done_running_failed_and_left(capsys):
    assert "0 of 4 done, 2 running, 0 failed, time left not known yet" in report.Progress(4, 2, {}).state()
    progress = report.Progress(4, 2, {"b": 3.0})
    tasks = {name: Task(name=name, kind="method", words=(), identity="", code="") for name in "abcd"}
    progress.ended(tasks["a"], {"state": "finished", "minutes": 1.0, "rows": []})
    progress.ended(tasks["b"], {"state": "failed", "minutes": 1.0, "rows": [], "error": "no"})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("[1 of 4 done, 2 running, 0 failed, about 2.5 min left]")       # (3 + 2 of a mean of 1) / 2
    assert lines[1] == "[1 of 4 done, 2 running, 1 failed, about 1.0 min left]  b: FAILED: no"


def test_workers_are_as_many_as_cores_and_memory_allow(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    task = lambda **values: Task(name="a", kind="method", words=(), identity="", code="", **values)
    store = Store(str(tmp_path))
    assert pools.Here(store, "", [task(cpus=2), task()]).workers == 4
    assert pools.Here(store, "", [task(memory_gb=1e9)]).workers == 1
    assert pools.Here(store, "", [task()], workers=3).workers == 3
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    assert pools.Here(store, "", [task(gpus=1)]).workers == 3
    assert [pools.share(slot, 1, 1) for slot in range(3)] == ["4", "5", "6"] and pools.share(0, 0, 1) == ""
    assert [pools.share(slot, 0.5, 0.5) for slot in range(4)] == ["4", "4", "5", "5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert (pools.share(0, 2, 2), pools.share(1, 1, 2)) == ("4,5", "6")              # two runs at once, no GPU of both
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    with pytest.raises(ValueError, match="wants 4 GPUs and this machine has 3"):
        pools.Here(store, "", [task(gpus=4)])


def test_rows_are_appended_only_if_they_differ_in_more_than_their_costs(tmp_path):
    path = tmp_path / "rows.csv"
    assert driver.publish(path, [row(), row(minutes=9), row(accuracy_mean=1)]) == 2
    assert driver.publish(path, [row(peak_mb=3), row(accuracy_mean=2)]) == 1
    with open(path, newline="") as file:
        assert len(list(csv.DictReader(file))) == 3
