"""Images per second of expert training, ours against a plain loop: `python tests/bench/experts.py`, about five minutes on two cores.

Plain: float32, eager, the allocator as it comes. Ours: ExpertConfig(precision="auto") with the settings of the Makefile. Each
runs in a process of its own, because an allocator is set before a process starts; they take turns, and medians of five count.
`python tests/bench/experts.py accuracy` compares what the experts learn: float32 and "auto", three seeds, on fashion_mini.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from ddlib import augment, data, experts, models, runs, train
from ddlib.chapter import KERNEL_ENVIRONMENT

REPEATS, STEPS, BATCH, WIDTH = 5, 8, 256, 128


def noise() -> data.ImageSet:
    """2,560 random images of CIFAR-10's shape: speed does not depend on what they show."""
    rng = runs.stream(0, "noise")
    images = torch.randint(256, (2560, 3, 32, 32), dtype=torch.uint8, generator=rng)
    return data.ImageSet.from_arrays(images, torch.arange(2560) % 10, images[:10], torch.arange(10), layout="NCHW")


def child(kind: str) -> None:
    """Train eight steps whenever a line arrives, and answer with the seconds."""
    real = noise()
    if kind == "ours":
        config = experts.ExpertConfig(width=WIDTH, batch_size=BATCH, epochs=1, precision="auto")
        job = experts.Job(real, config, Path(tempfile.gettempdir()), minutes=60, together=1)
        team = experts.Team(job, [job.resumed(0)])
        work = lambda: team.fit(STEPS)
    else:
        net = models.build("convnet3", shape=real.shape, num_classes=real.num_classes, width=WIDTH, seed=0)
        work = lambda: train.fit(net, train.Batches(real.train.images, real.train.labels, BATCH, runs.stream(0, "order"), real.preprocess),
                                 steps=STEPS, lr=0.01, momentum=0.0, weight_decay=0.0, augment=augment.DSA, rng=runs.stream(0, "augment"))
    work()
    print("ready", flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        work()
        print(time.perf_counter() - started, flush=True)


def speed() -> dict[str, list[float]]:
    """Images per second of both, by turns."""
    bare = {name: value for name, value in os.environ.items() if name not in KERNEL_ENVIRONMENT}
    environments = {"plain": bare, "ours": bare | KERNEL_ENVIRONMENT}
    processes = {kind: subprocess.Popen([sys.executable, __file__, kind], env=environment, text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE) for kind, environment in environments.items()}
    rates: dict[str, list[float]] = {kind: [] for kind in processes}
    for process in processes.values():
        while process.stdout.readline() != "ready\n":
            if process.poll() is not None:
                raise SystemExit("a measured process ended early")
    for _ in range(REPEATS):
        for kind, process in processes.items():
            process.stdin.write("go\n")
            process.stdin.flush()
            rates[kind].append(STEPS * BATCH / float(process.stdout.readline()))
    for process in processes.values():
        process.stdin.close()
        process.wait()
    return rates


def accuracy(width: int = 16, epochs: int = 15, lr: float = 0.05) -> dict[str, list[float]]:
    """Validation accuracy of the last snapshot, by precision and seed."""
    real, found = data.load("fashion_mini"), {}
    net = models.build("convnet3", shape=real.shape, num_classes=real.num_classes, width=width)
    for precision in ("float32", "auto"):
        config = experts.ExpertConfig(dataset="fashion_mini", width=width, num_experts=3, epochs=epochs, lr=lr, precision=precision)
        with tempfile.TemporaryDirectory() as folder:
            buffer = experts.train(real, config, folder)
            found[precision] = []
            for expert in range(buffer.num_experts):
                net.load_state_dict(models.unflatten(net, buffer.snapshots(expert, epochs, epochs)[0]))
                found[precision].append(train.accuracy(net, real.validation, real.preprocess))
    return found


def main() -> None:
    if sys.argv[1:] == ["accuracy"]:
        for precision, values in accuracy().items():
            print(f"{precision:<8} {100 * statistics.mean(values):.1f} +- {100 * statistics.stdev(values):.1f} % ({len(values)} seeds)")
    elif sys.argv[1:]:
        child(sys.argv[1])
    else:
        rates = speed()
        print(f"{runs.device_name('cpu')}, torch {torch.__version__}; ConvNet3 of width {WIDTH}, batches of {BATCH}, 3 x 32 x 32; "
              f"images per second, medians of {REPEATS} (range)")
        for kind, values in rates.items():
            print(f"  {kind:<6} {statistics.median(values):7.0f}  ({min(values):.0f} to {max(values):.0f})")
        print(f"  {statistics.median(rates['ours']) / statistics.median(rates['plain']):.2f} times as many")


if __name__ == "__main__":
    main()
