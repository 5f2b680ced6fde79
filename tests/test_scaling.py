"""The costs and the simulation behind book/scaling.md: bounds that must hold, rows that replace estimates, a page that equals its files."""

from __future__ import annotations

import random
import statistics
import sys
from dataclasses import asdict, replace

import pytest
import yaml
from conftest import ROOT

sys.path.insert(0, str(ROOT / "tests" / "bench"))

import scaling
import scaling_costs as costs

from ddlib import papers
from ddlib.methods import ddpp, esp
from ddlib.sweep import grid as sweep_grid


def some_tasks(seed: int, longest: float = 5000.0) -> list[scaling.Task]:
    """Three groups of a few tasks; the runs wait for two of them, their evaluations for the runs."""
    rng = random.Random(seed)
    tasks = []
    for group, needs in (("experts", ""), ("gan", ""), ("alone", ""), ("run 1", "experts"), ("run 2", "gan"), ("evaluation", "run 1")):
        tasks += [scaling.Task(rng.uniform(1, longest), group, needs, 10.0, 3.0, 1.0) for _ in range(rng.randint(1, 9))]
    return tasks


def test_one_machine_without_failures_takes_the_sum_of_all_times():
    for seed in range(20):
        tasks = some_tasks(seed)
        found = scaling.simulate(tasks, 1, startup=7.0)
        assert found.makespan == pytest.approx(sum(task.seconds + 7 for task in tasks))
        assert (found.failures, found.lost, found.attempts) == (0, 0, len(tasks))
        assert found.read_bytes == 10 * len(tasks)
        assert found.written_bytes == sum(3 + task.seconds // 20 for task in tasks)


@pytest.mark.parametrize("longest_first", [False, True])
def test_the_makespan_lies_between_the_two_bounds_of_list_scheduling(longest_first):
    for seed in range(60):
        tasks, gpus = some_tasks(seed), random.Random(seed).choice((2, 3, 8, 9, 30))
        found = scaling.simulate(tasks, gpus, startup=7.0, longest_first=longest_first)
        total, chain = sum(task.seconds + 7 for task in tasks), max(scaling.chains(tasks, 7.0))
        assert max(chain, total / gpus) <= found.makespan * (1 + 1e-9)
        assert found.makespan <= (total / gpus + (1 - 1 / gpus) * chain) * (1 + 1e-9), "Graham's bound: nobody idles while a task is ready"


def test_a_task_begins_after_all_that_it_waits_for():
    tasks = [scaling.Task(10, "a"), scaling.Task(50, "a"), scaling.Task(5, "b", "a"), scaling.Task(1, "c", "b")]
    assert scaling.simulate(tasks, 64).makespan == 56
    assert scaling.chains(tasks) == [16, 56, 6, 1]


def test_no_work_is_lost_or_done_twice_when_nodes_fail():
    again = 0
    for seed in range(20):
        tasks = some_tasks(seed)
        found = scaling.simulate(tasks, 9, days=0.05, startup=7.0, seed=seed)
        again += found.attempts - len(tasks)
        assert found.useful == pytest.approx(sum(task.seconds for task in tasks))
        assert found.lost <= found.failures * scaling.PER_NODE * scaling.CHECKPOINT, "no more than since the last saving"
        assert found.busy <= 9 * found.makespan + 1e-6
        assert found.starting <= 7 * found.attempts + 1e-6
        assert found.written_bytes == pytest.approx(sum(3 + task.seconds // 20 for task in tasks), rel=0.2)
        assert found == scaling.simulate(tasks, 9, days=0.05, startup=7.0, seed=seed), "a seed decides everything"
    assert again > 20, "failures hit something"


@pytest.mark.parametrize("gpus", [1, 9])
def test_more_failures_never_lower_the_median(gpus):
    tasks = some_tasks(1)
    medians = [statistics.median(scaling.simulate(tasks, gpus, days=days, startup=7.0, seed=seed).makespan for seed in range(31))
               for days in (float("inf"), 1.0, 0.2, 0.05, 0.02)]
    assert medians == sorted(medians) and medians[-1] > 1.05 * medians[0], medians


def test_shorter_pauses_between_savings_lose_less():
    tasks = some_tasks(2)
    lost = [sum(scaling.simulate(tasks, 8, days=0.05, checkpoint=pause, seed=seed).lost for seed in range(10)) for pause in (20, 200, 1000)]
    assert lost == sorted(lost) and lost[0] < lost[-1] / 3


def test_a_plan_that_cannot_be_is_refused_in_one_sentence():
    with pytest.raises(ValueError, match="wait for x, which no task belongs to"):
        scaling.simulate([scaling.Task(1, "a", "x")], 1)
    with pytest.raises(ValueError, match="gpus must be at least 1"):
        scaling.simulate(some_tasks(0), 0)
    with pytest.raises(ValueError, match="needs one pair of lines <!-- a -->"):
        scaling.fill("text", {"a": "b"})


# ------------------------------------------------------------------------------------------------------------ the costs

def test_every_own_cell_of_the_five_papers_appears_once():
    own = [cell for cell in papers.cells() if cell.method == cell.paper and cell.dataset != "average"]
    listed = [(row["paper"], row["table"], row["dataset"], row["ipc"], row["eval_arch"], row["variant"]) for row in scaling.read("cells")]
    assert listed == [(c.paper, c.table, c.dataset, str(c.ipc), c.eval_arch, c.variant) for c in own]
    assert len(set(listed)) == len(listed) and {row["paper"] for row in scaling.read("cells")} == set(papers.PAPERS)
    jobs = costs.jobs()
    for cell, row in zip(own, scaling.read("cells"), strict=True):
        job = jobs[row["job"]]
        assert (job.config.dataset, row["networks"]) == (cell.dataset, "8" if cell.paper == "PoDD" else "5")
        assert getattr(job.config, "gan_width", 0) or job.config.ipc == cell.ipc
        assert getattr(job.config, "standardize", True) == (cell.variant != "no standardization")
        assert (getattr(job.config, "dm_weight", 1) == 0) == (cell.variant == "L_Proj only")
        assert (getattr(job.config, "proj_weight", 1) == 0) == (cell.variant == "L_DM only")


def test_what_is_shared_is_counted_once():
    jobs = costs.jobs()
    buffers = [job for job in jobs.values() if job.kind == "experts"]
    wanted = {replace(job.config.experts(), num_experts=1) for job in jobs.values() if hasattr(job.config, "experts")}
    assert len(buffers) == len(wanted) == 7 and {job.copies for job in buffers} == {100, 200, 1000}
    assert sum(job.kind == "gan" for job in jobs.values()) == 3
    assert all(job.needs in jobs for job in jobs.values() if job.kind == "run" and job.method != "PoDD")
    assert buffers[0].stored_bytes == 4 * 320_010 * 51, "4 P (I + 1) bytes an expert"
    assert len(jobs["DDPP cifar10-ipc10"].evaluations) == 4 and len(jobs["SKD cifar10"].evaluations) == 6


def test_work_is_counted_as_the_formulas_say():
    forward = costs.piece("forward", "convnet3", 128, "cifar10")
    unroll = costs.piece("unroll", "convnet3", 128, "cifar10")
    train = costs.piece("train", "convnet3", 128, "cifar10")
    assert forward.operations_an_image == pytest.approx(101.5e6, rel=1e-3)
    assert train.operations_an_image == pytest.approx(3 * forward.operations_an_image, rel=0.05)
    assert unroll.operations_an_image == pytest.approx(12 * forward.operations_an_image, rel=0.05), "rematerialised: four training steps"
    found = costs.distilling(ddpp.PRESETS["cifar10-ipc10"])
    assert found.operations == pytest.approx(5000 * 30 * 100 * unroll.operations_an_image)
    assert costs.distilling(replace(ddpp.PRESETS["cifar10-ipc10"], steps=10)).launches == pytest.approx(found.launches / 500)
    expert = costs.training_expert(ddpp.PRESETS["cifar10-ipc10"].experts())
    assert expert.operations == pytest.approx(50 * 176 * 256 * train.operations_an_image)


@pytest.mark.parametrize("kind, name, width, dataset", [
    ("train", "convnet3", 128, "cifar10"), ("unroll adam", "convnet3", 16, "fashion_mini"), ("look", "resnet10_dim", 8, "fashion_mini"),
    ("generate", "", 16, "fashion_mini")])
def test_stored_counts_are_those_of_today(kind, name, width, dataset):
    shape, classes, *_ = costs.DATASETS[dataset]
    today, stored = (asdict(each) for each in (costs.counted((kind, name, width, shape, classes)), costs.piece(kind, name, width, dataset)))
    again = "run `rm book/results/scaling_counts.csv; python tests/bench/scaling_costs.py; python tests/bench/scaling.py`"
    for what in ("operations_an_image", "parameters"):
        assert today[what] == pytest.approx(stored[what], abs=0.5), f"{what}: {again}"
    assert today == pytest.approx(stored, rel=0.1, abs=0.5), again      # launches and bytes are torch's own affair


def test_everything_that_is_needed_has_been_counted():
    costs.FRESH.clear()
    costs.jobs()
    assert not costs.FRESH, f"run `python tests/bench/scaling_costs.py` for {list(costs.FRESH)}"


def core_row(method: str, protocol: str, minutes: str, command: str) -> dict[str, str]:
    return {"method": method, "dataset": "fashion_mini", "ipc": "1", "eval_arch": "convnet3", "variant": "width 32", "n": "5",
            "protocol": protocol, "seed": "0", "device": "cpu (1 thread)", "minutes": minutes,
            "command": f"python -m ddlib.methods.{command}"}


# fixed rows, so that what measured.csv gets changes no test
CORE_ROWS = [core_row(name, "strict-cpu", minutes, f"{name.lower()} --preset cpu --width {width}")
             for name in ("DDPP", "ESP", "PoDD") for width, minutes in ((16, "9"), (32, "2"), (32, "3"))]
CORE_ROWS += [core_row(name, "strict-cpu-resampled", "4", f"{name.lower()} --preset cpu") for name in ("CGAN", "SKD", "GLD")]
ROW = {"method": "DDPP", "dataset": "cifar10", "ipc": "10", "eval_arch": "convnet3", "variant": "", "n": "5", "protocol": "mtt",
       "seed": "3", "device": "NVIDIA H100", "minutes": "7.00",
       "command": "python -m ddlib.methods.ddpp --preset cifar10-ipc10 --seed 3 --out runs/a --evaluate mtt --results r.csv"}


def test_a_measured_row_of_a_gpu_replaces_the_estimate():
    name, key = "DDPP cifar10-ipc10", ("convnet3", None)
    before, after = costs.jobs()[name], costs.jobs([ROW, {**ROW, "minutes": "9.00"}, {**ROW, "minutes": "8.00"}])[name]
    assert before.source == "estimated" and after.source == "measured in part"
    both = after.distilling + after.parts[key]
    assert both.low == both.high == pytest.approx(8.0), "the median of the rows is distillation and evaluation"
    assert after.parts["vgg11", None] == before.parts["vgg11", None], "what nobody measured stays an estimate"
    every = costs.jobs([{**ROW, "eval_arch": network, "minutes": str(minutes)} for network, minutes in
                        (("convnet3", 7), ("alexnet", 8), ("vgg11", 9), ("resnet18", 20))])
    assert every[name].source == "measured" and every[name].minutes.low == every[name].minutes.high
    for network, minutes in (("convnet3", 7), ("alexnet", 8), ("vgg11", 9), ("resnet18", 20)):
        assert (every[name].distilling + every[name].parts[network, None]).low == pytest.approx(minutes)
    speeds = costs.core_speeds(CORE_ROWS)
    shown = {(row["job"], row["eval_arch"]): row["gpu_minutes_measured"] for row in scaling.cell_rows(every, speeds)}
    assert shown[name, "alexnet"] == "8" and shown["DDPP cifar10-ipc1", "convnet3"] == papers.NOT_RUN
    simulated = [task.seconds for task in scaling.tasks_of(every, "high") if task.group == name]
    assert simulated == [pytest.approx(60 * every[name].minutes.low)]


@pytest.mark.parametrize("change", [
    {"device": "cpu (1 thread)"}, {"protocol": "strict"}, {"n": "4"}, {"variant": "width 32"}, {"eval_arch": "densenet121"},
    {"command": ROW["command"] + " --steps 100"}, {"command": ROW["command"].replace("ipc10", "ipc1")}, {"method": "MTT"}])
def test_a_row_of_something_else_replaces_nothing(change):
    name = "DDPP cifar10-ipc10"
    assert costs.jobs([{**ROW, **change}])[name] == costs.jobs()[name]


def test_a_generator_serves_every_ipc_and_its_rows_replace_only_their_own():
    row = {**ROW, "method": "SKD", "ipc": "10", "protocol": "skd-10", "minutes": "30",
           "command": "python -m ddlib.methods.skd --preset cifar10-ipc1 --ipcs 10 --evaluate skd-10"}
    job = costs.jobs([row])["SKD cifar10"]
    assert (job.distilling + job.parts["convnet3", 10]).low == pytest.approx(30)
    assert not job.parts["convnet3", 50].measured


def test_the_speed_of_a_core_is_work_over_minutes():
    speeds = costs.core_speeds(CORE_ROWS)
    slower = costs.core_speeds([{**row, "minutes": str(2 * float(row["minutes"]))} for row in CORE_ROWS])
    assert [each.method for each in speeds] == [row["method"] for row in CORE_ROWS]
    assert [each.gflops for each in slower] == pytest.approx([each.gflops / 2 for each in speeds])
    assert costs.spread(slower) == pytest.approx(costs.spread(speeds)), "a spread is relative"
    low, middle, high, count = costs.speed_of("DDPP", speeds)
    assert (count, high / low) == (2, pytest.approx(1.5)) and low < middle < high, "the widest networks alone"
    for change in ({"device": "NVIDIA H100"}, {"minutes": "0.9"}, {"eval_arch": "vgg11"}, {"protocol": "own"}, {"command": "python -m x"}):
        assert not costs.core_speeds([{**CORE_ROWS[0], **change}]), change


def test_papers_add_up_to_all_with_what_they_share_counted_once():
    jobs = costs.jobs()
    *lines, light, everything = scaling.read("papers")
    assert {line["what"] for line in lines} == set(scaling.PAPERS)
    assert sum(int(line["cells"]) for line in lines) == int(everything["cells"]) == int(light["cells"]) + int(lines[-1]["cells"]) == 108
    for bound in ("low", "high"):
        alone = {what: scaling.gpu_hours(scaling.only(jobs, lambda job, what=what: scaling.line_of(job) == what), bound)
                 for what in scaling.PAPERS}
        shared = scaling.gpu_hours({name: job for name, job in jobs.items() if job.kind == "gan"}, bound)      # by SKD and GLD
        assert sum(alone.values()) == pytest.approx(scaling.gpu_hours(jobs, bound) + shared)
        if {row["source"] for row in scaling.read("jobs")} == {"estimated"}:
            assert {line["what"]: float(line[f"gpu_hours_{bound}"]) for line in lines} == pytest.approx(alone, rel=0.01)
    hours = [float(line["gpu_hours_low"]) for line in lines]
    assert hours == sorted(hours), "in the order of what they cost"


def test_free_seeds_fit_beside_the_longest_chain_and_one_more_does_not():
    jobs = scaling.only(costs.jobs(), lambda job: job.method == "PoDD" or job.name == "ESP tiny-imagenet-ipc1")
    count = scaling.free_seeds(jobs, "low", 11.0, gpus=2)
    tasks = list(scaling.tasks_of(jobs, "low"))
    again = [task for task in tasks if jobs[task.group].method == "PoDD"]
    alone, fits, not_any_more = (scaling.simulate(tasks + again * times, 2, startup=11.0, longest_first=True).makespan
                                 for times in (0, count, count + 1))
    assert count > 3 and fits <= 1.01 * alone < not_any_more


# ------------------------------------------------------------------------------------------------------------- the page

def test_the_page_has_the_numbers_of_its_files():
    text = scaling.PAGE.read_text(encoding="utf-8")
    assert scaling.fill(text, scaling.blocks()) == text, "run `python tests/bench/scaling.py`"


def test_the_files_have_the_estimates_of_today():
    stored = {"jobs": scaling.read("jobs"), "cells": scaling.read("cells")}
    guessed = {row["job"] for row in stored["jobs"] if row["source"] == "estimated"}
    jobs, speeds = costs.jobs(), costs.core_speeds(CORE_ROWS)
    for name, today in (("cells", scaling.cell_rows(jobs, speeds)), ("jobs", scaling.job_rows(jobs, speeds))):
        mine, theirs = ([{key: str(value) for key, value in row.items() if not key.startswith("core_")} for row in rows
                         if row["job"] in guessed] for rows in (today, stored[name]))
        assert mine == theirs, f"scaling_{name}.csv is of another day: run `python tests/bench/scaling.py`"


def test_the_simulation_gives_the_rows_that_are_stored():
    tasks = [scaling.Task(60 * float(row["gpu_minutes_low"]) / int(row["copies"]), row["job"], row["needs"])
             for row in scaling.read("jobs") for _ in range(int(row["copies"]))]
    by = {(row["what"], row["gpus"], row["bound"], row["days_between_failures"]): row for row in scaling.read("simulation")}
    for gpus in (1, 8, 64):
        stored = by[scaling.WHOLE, str(gpus), "low", scaling.USUAL]
        even = scaling.simulate(tasks, gpus, startup=scaling.startup_seconds()).makespan / 3600
        assert float(stored["hours_median"]) == pytest.approx(even, rel=0.35), "times vary, but about these"
    for row in by.values():
        assert float(row["hours_median"]) >= max(float(row["floor_hours"]), float(row["ideal_hours"])) * 0.98
    for gpus in ("8", "64"):
        for bound in ("low", "high"):
            hours = [float(by[what, gpus, bound, scaling.USUAL]["hours_median"]) for what in
                     (scaling.WHOLE, scaling.SORTED, scaling.WITHOUT)]
            assert hours == sorted(hours, reverse=True), "each change helps"


def test_the_command_that_calibrates_runs_segments_of_the_published_cell():
    config, options = costs.parsed(scaling.CALIBRATE)
    assert replace(config, num_experts=1000, buffer_epochs=50) == esp.PRESETS["cifar10-ipc10"] and options["minutes"] == ["10"]
    row = next(row for row in scaling.read("limits") if row["key"] == "a segment")
    for bound in ("low", "high"):
        assert float(row[bound]) == pytest.approx(60 * getattr(costs.jobs()["ESP cifar10-ipc10"].distilling, bound) / 3000, rel=0.01)
    assert scaling.CALIBRATE in " ".join(scaling.PAGE.read_text(encoding="utf-8").replace("\\\n", "").split())


def test_the_grid_of_the_page_is_all_of_ddpp_on_cifar():
    text = scaling.PAGE.read_text(encoding="utf-8")
    grid = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    found = {}
    for entry in grid["runs"]:
        assert set(entry) <= set(sweep_grid.METHOD) and entry["method"] == "ddpp" and entry["evaluate"] == "mtt"
        for preset in [entry["preset"]] if isinstance(entry["preset"], str) else entry["preset"]:
            found[f"DDPP {preset}"] = set(entry.get("networks", ["convnet3"]))
    wanted = {name: {network for network, _ in job.evaluations} for name, job in costs.jobs().items() if name.startswith("DDPP cifar")}
    assert found == wanted and set(grid) <= set(sweep_grid.KEYS)
