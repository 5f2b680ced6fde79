"""Timings of this machine: `make bench`. Medians of five, variants interleaved in one process, so that a drift hits all alike.

Prints a table and writes runs/bench.json. These are measurements, not tests: nothing here passes or fails.
"""

from __future__ import annotations

import csv
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ddlib import augment, data, evaluate, files, models, runs, train
from ddlib.chapter import KERNEL_ENVIRONMENT
from ddlib.methods import dm

REPEATS = 5


def timed(work: Callable[[], object], device: torch.device) -> float:
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def interleaved(variants: dict[str, Callable[[], object]], device: torch.device) -> dict[str, list[float]]:
    """Seconds of every variant, once each in turn, after one round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for work in variants.values():
        timed(work, device)
    for _ in range(REPEATS):
        for name, work in variants.items():
            seconds[name].append(timed(work, device))
    return seconds


def training(real: data.ImageSet, width: int, precision: train.Precision) -> Callable[[], object]:
    """Ten training steps at batch 256 with augmentation."""
    net = models.build("convnet3", shape=real.shape, num_classes=real.num_classes, width=width, seed=0).to(real.train.images.device)

    def work() -> object:
        batches = train.Batches(real.train.images, real.train.labels, 256, runs.stream(0, "bench"), real.preprocess)
        return train.fit(net, batches, steps=10, augment=augment.DSA, rng=runs.stream(0, "augment"), precision=precision)

    return work


def augmentation(images: torch.Tensor, strategy: str, siamese: bool) -> Callable[[], object]:
    rng = runs.stream(0, "bench")
    return lambda: [augment.augment(images, strategy, rng, siamese=siamese) for _ in range(20)]


def malloc_ratio() -> dict[str, float]:
    """Ten training steps of width 64 in processes of their own, with and without the allocator settings of the Makefile."""
    code = ("import sys; sys.path.insert(0, 'tests/bench'); import run, statistics; from ddlib import data;"
            "import torch; w = run.training(data.load('fashion_mini'), 64, 'float32'); w();"
            "print(statistics.median(run.timed(w, torch.device('cpu')) for _ in range(3)))")
    bare = {name: value for name, value in os.environ.items() if name not in KERNEL_ENVIRONMENT}
    seconds: dict[str, list[float]] = {"default": [], "kept": []}
    for _ in range(REPEATS):
        for name, environment in (("default", bare), ("kept", bare | KERNEL_ENVIRONMENT)):
            done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=runs.ROOT, capture_output=True, text=True, check=True)
            seconds[name].append(float(done.stdout))
    return {name: statistics.median(values) for name, values in seconds.items()}


def memory(device: torch.device) -> float:
    """The most MB so far, of the device or of this process."""
    return torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else evaluate.peak_rss_mb()


def write(path: Path, columns: Sequence[str], rows: Sequence[dict[str, object]]) -> None:
    """The rows as a CSV file, whole or not at all."""
    with files.whole(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    device = runs.pick_device()
    real = data.load("fashion_mini").to(device)
    images = real.preprocess(real.train.images[:256])
    groups: dict[str, dict[str, Callable[[], object]]] = {
        f"training, width {width}, ten steps of 256": {p: training(real, width, p) for p in ("float32", "bfloat16")} for width in (16, 64)
    }
    groups["augmentation of 256 images, twenty times"] = {
        f"{op}{' siamese' if siamese else ''}": augmentation(images, op, siamese) for op in augment.OPS for siamese in (False, True)
    }

    def dm_steps(ipc: int) -> Callable[[], object]:
        steps = dm.distill(real, replace(dm.PRESETS["cpu"], ipc=ipc, steps=10**6))
        return lambda: [next(steps) for _ in range(5)]

    groups["DM, five steps, width 16"] = {f"IPC {ipc}": dm_steps(ipc) for ipc in (1, 10)}

    print(f"{runs.device_name(device)}, torch {torch.__version__}; medians of {REPEATS}, in milliseconds (range)")
    found: dict[str, dict[str, list[float]]] = {}
    for group, variants in groups.items():
        print(f"\n{group}")
        found[group] = interleaved(variants, device)
        for name, values in found[group].items():
            low, middle, high = 1e3 * min(values), 1e3 * statistics.median(values), 1e3 * max(values)
            print(f"  {name:<18} {middle:9.1f}  ({low:.1f} to {high:.1f})", flush=True)
    if device.type == "cpu":
        kept = malloc_ratio()
        print(f"\nkeeping freed memory (Makefile): {1e3 * kept['kept']:.0f} ms against {1e3 * kept['default']:.0f} ms, "
              f"{kept['default'] / kept['kept']:.2f} times as fast")
        found["allocator"] = {name: [value] for name, value in kept.items()}
    path = runs.folder() / "bench.json"
    path.write_text(json.dumps({"device": runs.device_name(device), "torch": torch.__version__, "seconds": found}, indent=1))
    print(f"\nwrote {path}")


if __name__ == "__main__":
    main()
