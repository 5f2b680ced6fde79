"""Posters: cutting patches, and the memory of an outer step: `python tests/bench/poster.py [CSV]`, ten minutes on two cores.

First `Layout.extract` against a loop of slices, forwards and with the gradient, at the layouts of PoDD's four published commands:
medians of five, interleaved in one process after a round that is not counted; goal: at least four times as fast. Then an outer step
on a CIFAR-10 poster, 96 patches in every inner step and 500 real images, with windows of 10, 40 and 100, recorded and
rematerialised: medians of three after one that is not counted, each in a process of its own with the settings of the Makefile. Memory is
the peak's growth above the process before its first step; goal: rematerialised, at most 1.3 times as much at 100 as at 10.
Writes one row per measurement; the book shows those of the step.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from run import interleaved, memory, write  # tests/bench/run.py, beside this file
from torch import Tensor

from ddlib import models, poster, runs, unroll
from ddlib.chapter import KERNEL_ENVIRONMENT
from ddlib.methods import rat_bptt

LAYOUTS = {
    "CIFAR-10": poster.Layout(153, 60, 32, 32, 16, 6), "CIFAR-100": poster.Layout(303, 303, 32, 32, 20, 20),
    "CUB-200": poster.Layout(610, 302, 32, 32, 60, 30), "Tiny-ImageNet": poster.Layout(1211, 608, 64, 64, 40, 20),
}
WIDTH, REAL, WINDOWS, FORMS, REPEATS = 16, 500, (10, 40, 100), ("plain", "remat"), 3
COLUMNS = ("what", "case", "window", "form", "seconds", "seconds_low", "seconds_high", "peak_growth_mb", "device", "torch", "commit")


def row(what: str, case: str, form: str, seconds: list[float], window: int | str = "", peak: int | str = "") -> dict[str, object]:
    return {"what": what, "case": case, "window": window, "form": form, "seconds": f"{statistics.median(seconds):.3g}",
            "seconds_low": f"{min(seconds):.3g}", "seconds_high": f"{max(seconds):.3g}", "peak_growth_mb": peak,
            "device": runs.device_name(runs.pick_device()), "torch": torch.__version__, "commit": runs.provenance()["commit"]}


def cutting(name: str, layout: poster.Layout) -> list[dict[str, object]]:
    """Rows of both ways to cut all patches, which are checked to agree first."""
    device, rng = runs.pick_device(), runs.stream(0, "bench")
    picture = torch.randn(3, layout.height, layout.width, generator=rng).to(device).requires_grad_()
    weight = torch.randn(len(layout), 3, layout.patch_height, layout.patch_width, generator=rng).to(device)
    index, corners = layout.index(3).to(device), layout.corners.tolist()

    def gather() -> Tensor:
        return layout.extract(picture, index).contiguous()       # as a convolution reads it

    def loop() -> Tensor:
        return torch.stack([picture[:, top:top + layout.patch_height, left:left + layout.patch_width] for top, left in corners])

    def with_gradient(cut: Callable[[], Tensor]) -> Callable[[], Tensor]:
        return lambda: torch.autograd.grad(cut(), picture, weight)[0]

    def often(work: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: [work() for _ in range(calls)]

    calls = max(2000 // len(layout), 1)                          # small ones are over in a moment: several calls in each timing
    assert torch.equal(gather(), loop())
    torch.testing.assert_close(with_gradient(gather)(), with_gradient(loop)(), rtol=1e-4, atol=1e-4)
    rows = []
    with torch.no_grad():
        forwards = interleaved({"gather": often(gather), "loop": often(loop)}, device)
    both = interleaved({"gather": often(with_gradient(gather)), "loop": often(with_gradient(loop))}, device)
    for what, timed in (("patches", forwards), ("patches and gradient", both)):
        seconds = {form: [value / calls for value in values] for form, values in timed.items()}
        rows += [row(what, name, form, values) for form, values in seconds.items()]
        ratio = statistics.median(seconds["loop"]) / statistics.median(seconds["gather"])
        times = "  ".join(f"{form} {1e3 * statistics.median(values):8.2f} ms" for form, values in seconds.items())
        print(f"{name:>13}  {what:<20}  {times}  {ratio:5.1f} times as fast", flush=True)
    return rows


def child(form: unroll.Form, window: int) -> None:
    """Take an outer step whenever a line arrives, and answer with the seconds and the growth of the peak."""
    device, layout, rng = runs.pick_device(), LAYOUTS["CIFAR-10"], runs.stream(0, "bench")
    net = models.build("convnet3", shape=(3, 32, 32), num_classes=10, width=WIDTH, seed=0).to(device)
    picture = (0.05 * torch.randn(3, layout.height, layout.width, generator=rng)).to(device).requires_grad_()
    index, labels = layout.index(3).to(device), poster.fixed_labels(layout, torch.arange(10).view(2, 5)).to(device)
    real = torch.randn(REAL, 3, 32, 32, generator=rng).to(device), (torch.arange(REAL) % 10).to(device)
    before = memory(device)
    print("ready", flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        loss, _ = rat_bptt.meta_gradient(net, models.flatten(net), (picture,), lambda j, x: (layout.extract(x, index), labels), [real],
                                         burn=0, window=window, rule=unroll.Adam(), rate=1e-3, form=form)
        loss.item()
        print(time.perf_counter() - started, memory(device) - before, flush=True)


def step(window: int) -> list[dict[str, object]]:
    environment = os.environ | KERNEL_ENVIRONMENT
    rows = []
    for form in FORMS:
        process = subprocess.Popen([sys.executable, __file__, form, str(window)], env=environment, text=True, stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE)
        if process.stdout.readline() != "ready\n":
            raise SystemExit("a measured process ended early")
        seconds, peak = [], 0.0
        for repeat in range(REPEATS + 1):
            process.stdin.write("go\n")
            process.stdin.flush()
            took, growth = map(float, process.stdout.readline().split())
            peak = growth
            if repeat:
                seconds.append(took)
        process.stdin.close()
        process.wait()
        rows.append(row("step", f"96 patches, width {WIDTH}, {REAL} real images", form, seconds, window, round(peak)))
        print(f"window {window:>3}  {form:<6} {rows[-1]['seconds']:>6} s  {rows[-1]['peak_growth_mb']:>6} MB", flush=True)
    return rows


def main() -> None:
    if len(sys.argv) == 3:
        child(sys.argv[1], int(sys.argv[2]))
        return
    rows = [line for name, layout in LAYOUTS.items() for line in cutting(name, layout)]
    rows += [line for window in WINDOWS for line in step(window)]
    first, *_, last = (float(line["peak_growth_mb"]) for line in rows if line["what"] == "step" and line["form"] == "remat")
    print(f"rematerialised, memory at {WINDOWS[-1]} / at {WINDOWS[0]}: {last / first:.2f}")
    if len(sys.argv) == 2:
        write(Path(sys.argv[1]), COLUMNS, rows)


if __name__ == "__main__":
    main()
