"""Seconds and memory of an outer step of trajectory matching: `python tests/bench/unroll.py [CSV]`, a quarter of an hour on two cores.

CIFAR-10's shape, IPC 10, ConvNet-3 of width 128, student batches of 50 without augmentation, J = 5, 10, 20, 30. For each J the
four forms of `ddlib.unroll` take turns, each in a process of its own (memory that one has used would hide the other's), with the
settings of the Makefile; medians of five after one step that is not counted. Memory is the peak's growth above the process before
its first step. Writes one row per form and J, of which the book shows a table.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from run import memory, write  # tests/bench/run.py, beside this file

from ddlib import models, runs, train, unroll
from ddlib.chapter import KERNEL_ENVIRONMENT

FORMS, STEPS, REPEATS = ("plain", "remat", "compiled", "detached"), (5, 10, 20, 30), 5
COLUMNS = ("form", "syn_steps", "seconds", "seconds_low", "seconds_high", "peak_growth_mb", "device", "torch", "commit")


def child(form: unroll.Form, steps: int) -> None:
    """Take an outer step whenever a line arrives, and answer with the seconds and the growth of the peak."""
    device = runs.pick_device()
    net = models.build("convnet3", shape=(3, 32, 32), num_classes=10, width=128, seed=0).to(device)
    start, rng = models.flatten(net), runs.stream(0, "bench")
    images, labels = torch.randn(100, 3, 32, 32, generator=rng).to(device).requires_grad_(), (torch.arange(100) % 10).to(device)
    plan = [torch.randperm(100, generator=rng)[:50].to(device) for _ in range(steps)]
    alpha, target = torch.tensor(0.01, device=device, requires_grad=True), start + 0.01
    before = memory(device)
    print("ready", flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        student = unroll.unroll(net, start, (images,), lambda j, x: (x.index_select(0, plan[j]), labels[plan[j]]), steps=steps, rate=alpha,
                                form=form)
        loss = (student - target).square().sum() / (start - target).square().sum()
        torch.autograd.grad(loss, (images, alpha))[1].item()
        print(time.perf_counter() - started, memory(device) - before, flush=True)


def measure(steps: int) -> list[dict[str, object]]:
    environment = os.environ | KERNEL_ENVIRONMENT
    forms = [form for form in FORMS if form != "compiled" or train.can_compile(runs.pick_device().type)]
    processes = {form: subprocess.Popen([sys.executable, __file__, form, str(steps)], env=environment, text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE) for form in forms}
    seconds: dict[str, list[float]] = {form: [] for form in forms}
    peak: dict[str, float] = {}
    for process in processes.values():
        if process.stdout.readline() != "ready\n":
            raise SystemExit("a measured process ended early")
    for repeat in range(REPEATS + 1):
        for form, process in processes.items():
            process.stdin.write("go\n")
            process.stdin.flush()
            took, growth = process.stdout.readline().split()
            peak[form] = float(growth)
            if repeat:
                seconds[form].append(float(took))
    for process in processes.values():
        process.stdin.close()
        process.wait()
    return [{"form": form, "syn_steps": steps, "seconds": f"{statistics.median(values):.2f}", "seconds_low": f"{min(values):.2f}",
             "seconds_high": f"{max(values):.2f}", "peak_growth_mb": round(peak[form]), "device": runs.device_name(runs.pick_device()),
             "torch": torch.__version__, "commit": runs.provenance()["commit"]} for form, values in seconds.items()]


def main() -> None:
    if len(sys.argv) == 3:
        child(sys.argv[1], int(sys.argv[2]))
        return
    rows = []
    for steps in STEPS:
        for row in measure(steps):
            rows.append(row)
            print("  ".join(f"{row[name]!s:>9}" for name in COLUMNS[:6]), flush=True)
    if len(sys.argv) == 2:
        write(Path(sys.argv[1]), COLUMNS, rows)


if __name__ == "__main__":
    main()
