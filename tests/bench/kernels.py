"""The six kernels: time and achieved bandwidth, `python tests/bench/kernels.py [CSV]`; part of `make bench`, five minutes at most.

Each operation in three forms, interleaved in one process, medians of five: plain torch, the same compiled by torch.compile, and the
Triton kernel. Columns: the bytes that must be moved and the arithmetic that must be done (the floors in ddlib/kernels), the achieved
bandwidth (floor bytes over time, so a form that moves more has less), and its share of what this device reaches when it copies a large
tensor. Then whole steps: DDPP's outer step and the training of experts, one at a time and side by side. Where there is no CUDA device,
sizes are small and kernels are *not run*: their interpreter proves numbers, not times.
"""

from __future__ import annotations

import itertools
import json
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from run import REPEATS, interleaved, timed, write  # tests/bench/run.py, beside this file
from torch import Tensor

from ddlib import augment, data, distilled, evaluate, files, kernels, models, poster, runs, train, unroll
from ddlib.kernels import augment as change
from ddlib.kernels import block, skd, subspace, trajectory
from ddlib.kernels import poster as patches
from ddlib.methods import ddpp, mtt

COLUMNS = ("operation", "case", "form", "floor_bytes", "floor_operations", "seconds", "seconds_low", "seconds_high", "gb_per_s",
           "share_of_copy", "copy_gb_per_s", "device", "driver", "torch", "triton", "python", "commit")
BUDGET = 300.0           # seconds, after which no further case is begun
Work = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """An operation at one size: how to run it (kernels or not is decided outside), and its floor."""

    operation: str
    name: str
    work: Work
    bytes: float
    operations: float
    compiles: bool = True


def with_gradient(function: Callable[..., Tensor], *inputs: Tensor) -> Work:
    """Value and gradient for the first input, against a fixed direction."""
    leaf = inputs[0].detach().requires_grad_()
    direction = torch.ones_like(function(leaf, *inputs[1:]).detach())
    return lambda: torch.autograd.grad(function(leaf, *inputs[1:]), leaf, direction)


def cases(device: torch.device, large: bool) -> list[Case]:
    """Sizes that fill a GPU, or that a CPU does in a moment."""
    rng = runs.stream(0, "bench")

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng).to(device)

    found = []
    B, C, H = (512, 128, 32) if large else (32, 16, 32)
    x, w, b = normal(B, C, H, H), normal(C), normal(C)
    N = x.numel()
    found.append(Case("block", f"{B}x{C}x{H}x{H} forward", lambda: block.norm_relu_pool(x, w, b, 1e-5), 5 * N, 10 * N))
    found.append(Case("block", "with gradient", with_gradient(lambda t: block.norm_relu_pool(t, w, b, 1e-5), x), 14 * N, 30 * N))
    leaf, seed = x.detach().requires_grad_(), normal(B, C, H // 2, H // 2).requires_grad_()

    def second() -> object:
        (first,) = torch.autograd.grad(block.norm_relu_pool(leaf, w, b, 1e-5), leaf, seed, create_graph=True)
        return torch.autograd.grad(first, (leaf, seed), x)

    found.append(Case("block", "with its gradient's gradient", second, 28 * N, 70 * N, compiles=False))

    layout = poster.Layout(1211, 608, 64, 64, 40, 20) if large else poster.Layout(153, 60, 32, 32, 16, 6)
    picture, index, size = normal(3, layout.height, layout.width), layout.index(3).to(device), (layout.patch_height, layout.patch_width)
    cut = len(layout) * 3 * size[0] * size[1]
    found.append(Case("poster", f"{len(layout)} patches forward", lambda: patches.extract(picture, index, size),
                      4 * cut + 4 * picture.numel(), 0))
    found.append(Case("poster", "with gradient", with_gradient(lambda t: patches.extract(t, index, size), picture),
                      8 * cut + 8 * picture.numel(), cut))

    images = normal(4096 if large else 256, 3, 32, 32)
    for op in augment.OPS:
        (values,) = augment.draw(op, len(images), (3, 32, 32), rng).values
        n = images.numel()                               # values stay where the library has them, on the host
        found.append(Case("augment", f"{op}, {len(images)} images, with gradient",
                          with_gradient(lambda t, op=op, values=values: change.change(op, t, values), images), 16 * n,
                          {"color": 16, "scale": 110, "rotate": 110}.get(op, 2) * n))

    for P in (320_010, 11_173_962) if large else (320_010,):
        student, target, start = normal(P), normal(P), normal(P)
        found.append(Case("trajectory", f"P = {P:,}, with gradient",
                          with_gradient(lambda s, t=target, b=start: trajectory.match(s, t, b, 0.1, "signed").loss, student),
                          24 * P, 59 * P))
        span = torch.linalg.qr(normal(P, 16))[0]
        found.append(Case("subspace", f"P = {P:,}, r = 16, with gradient",
                          with_gradient(lambda g, e=span: subspace.split(g, e).loss, student), 12 * P * 16 + 24 * P, 8 * P * 16))
    for B, C in ((1 << 18, 10), (1 << 14, 1000)) if large else ((64, 10), (4096, 10)):
        seen, made = normal(B, C), normal(B, C)
        found.append(Case("skd", f"{B:,} rows of {C}, with gradient",
                          with_gradient(lambda s, r=seen: skd.skd_loss(r, s, 2.0), made), 12 * B * C, 80 * B * C))
    return found


def copied(device: torch.device) -> float:
    """GB/s of copying a large tensor: bytes read and written."""
    source = torch.ones((1 << 28 if device.type == "cuda" else 1 << 25), device=device)               # floats: 1 GiB, 128 MiB
    target = torch.empty_like(source)
    seconds = interleaved({"copy": lambda: target.copy_(source)}, device)["copy"]
    return 2 * source.numel() * 4 / statistics.median(seconds) / 1e9


def forms(case: Case, device: torch.device) -> dict[str, Work]:
    def plain() -> object:
        with kernels.using("off"):
            return case.work()

    found: dict[str, Work] = {"eager": plain}
    if case.compiles:
        compiled = torch.compile(case.work, dynamic=False)

        def optimised() -> object:
            with kernels.using("off"):
                return compiled()

        try:
            optimised()
            found["compiled"] = optimised
        except Exception as error:                       # a compiler has many ways to refuse; the table says which were met
            print(f"  {case.operation}, {case.name}: torch.compile fails ({type(error).__name__})", flush=True)
    if device.type == "cuda" and kernels.AVAILABLE:
        def with_kernel() -> object:
            with kernels.using("on"), warnings.catch_warnings():
                warnings.simplefilter("error")           # a kernel that leaves the work to torch is no kernel
                return case.work()

        found["kernel"] = with_kernel
    return found


def measured(case: Case, device: torch.device) -> dict[str, list[float]]:
    """Seconds of every form; short ones are repeated within a timing, so that starting a clock costs nothing."""
    variants = forms(case, device)
    timed(variants["eager"], device)
    calls = max(1, min(200, int(0.02 / max(timed(variants["eager"], device), 1e-6))))

    def often(work: Work) -> Work:
        return lambda: [work() for _ in range(calls)]

    return {form: [value / calls for value in values] for form, values in interleaved({k: often(v) for k, v in variants.items()},
                                                                                      device).items()}


def about(device: torch.device) -> dict[str, object]:
    driver = ""
    if device.type == "cuda":
        asked = subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True)
        driver = asked.stdout.strip().splitlines()[0] if asked.returncode == 0 and asked.stdout.strip() else "unknown"
    return {"device": runs.device_name(device), "driver": driver, "torch": torch.__version__,
            "triton": kernels.triton.__version__ if kernels.AVAILABLE else "", "python": platform.python_version(),
            "commit": runs.provenance()["commit"]}


def row(case: Case, form: str, seconds: list[float], copy: float, where: dict[str, object]) -> dict[str, object]:
    middle = statistics.median(seconds)
    speed = case.bytes / middle / 1e9 if case.bytes else 0.0
    return {"operation": case.operation, "case": case.name, "form": form, "floor_bytes": int(case.bytes),
            "floor_operations": int(case.operations), "seconds": f"{middle:.3g}", "seconds_low": f"{min(seconds):.3g}",
            "seconds_high": f"{max(seconds):.3g}", "gb_per_s": f"{speed:.3g}" if speed else "",
            "share_of_copy": f"{speed / copy:.3g}" if speed else "", "copy_gb_per_s": f"{copy:.3g}", **where}


def steps(device: torch.device, large: bool) -> dict[str, dict[str, Work]]:
    """Whole steps: DDPP's, in the plain loop of the official codes and as the library can take it; experts, one by one and at once."""
    rng, (J, width, ipc, count, batch) = runs.stream(0, "steps"), (30, 128, 10, 8, 256) if large else (3, 16, 1, 4, 32)
    kinds = torch.arange(10).repeat_interleave(20)
    pixels = torch.randint(256, (200, 3, 32, 32), dtype=torch.uint8, generator=rng)
    real = data.ImageSet.from_arrays(pixels, kinds, pixels, kinds, classes=[str(k) for k in range(10)], name="noise").to(device)
    config = replace(ddpp.PRESETS["cifar10-ipc10"], dataset="noise", preprocess="standardize", width=width, ipc=ipc, syn_steps=J,
                     syn_batch=min(50, 10 * ipc), min_kept=0.0)
    net = models.build("convnet3", shape=real.shape, num_classes=10, width=width, seed=0).to(device)
    start = models.flatten(net)
    target = start + 0.01 * torch.randn(len(start), generator=rng).to(device)
    syn = distilled.from_real(real, ipc, "", rng)
    syn.alpha = torch.tensor(0.01, device=device)
    batches = mtt.draw_batches(syn, config, config.augment, rng)

    def outer(form: unroll.Form, mode: kernels.Mode) -> Work:
        def work() -> object:
            with kernels.using(mode):
                leaf = syn.sources[0].detach().requires_grad_()
                student = unroll.unroll(net, start, (leaf,), batches, steps=J, rate=syn.alpha, form=form)
                return torch.autograd.grad(ddpp.loss_terms(student, target, start, config)["match"], leaf)
        return work

    images, labels = torch.randn(batch, 3, 32, 32, generator=rng).to(device), (torch.arange(batch) % 10).to(device)
    stack, entropy = train.Stack([net] * count), torch.nn.functional.cross_entropy

    def one_at_a_time() -> object:
        return [train.fit(net, itertools.repeat((images, labels)), steps=5, lr=1e-3) for _ in range(count)]

    def side_by_side() -> object:
        return train.fit(stack, train.stacked([itertools.repeat((images, labels))] * count), steps=5, lr=1e-3, loss=train.summed(entropy))

    forms = {"plain": outer("plain", "off"), "remat": outer("remat", "off")}
    if device.type == "cuda":
        forms |= {"plain, kernels": outer("plain", "auto"), "remat, kernels": outer("remat", "auto"), "compiled": outer("compiled", "auto")}
    return {f"DDPP's outer step, J = {J}, width {width}, IPC {ipc}": forms,
            f"{count} experts of width {width}, five steps of {batch}": {"one at a time": one_at_a_time, "side by side": side_by_side}}


def main() -> None:
    torch._dynamo.config.recompile_limit = 64
    warnings.filterwarnings("ignore")
    began, device = time.monotonic(), runs.pick_device()
    large = device.type == "cuda"
    copy, where, rows, skipped = copied(device), about(device), [], []
    print(f"{where['device']}, torch {where['torch']}; copying moves {copy:.1f} GB/s; medians of {REPEATS}: milliseconds, GB/s of the "
          "bytes that must be moved, share of copying")
    for case in cases(device, large):
        if time.monotonic() - began > BUDGET:
            skipped.append(f"{case.operation}, {case.name}")
            continue
        found = measured(case, device)
        rows += [row(case, form, seconds, copy, where) for form, seconds in found.items()]
        told = "   ".join(f"{line['form']} {1e3 * float(line['seconds']):8.3f} ms {float(line['gb_per_s'] or 0):7.1f} "
                          f"{float(line['share_of_copy'] or 0):4.0%}" for line in rows[-len(found):])
        print(f"{case.operation:<11}{case.name:<48} {told}" + ("" if "kernel" in found else "   kernel not run"), flush=True)
    for title, variants in steps(device, large).items():
        if time.monotonic() - began > BUDGET:
            skipped.append(title)
            continue
        for form, seconds in interleaved(variants, device).items():
            rows.append(row(Case("step", title, lambda: None, 0, 0), form, seconds, copy, where))
            print(f"{title:<60}{form:<16}{float(rows[-1]['seconds']):8.3f} s", flush=True)
    print(f"not begun after {BUDGET:.0f} s: {', '.join(skipped) or 'nothing'}")
    path = runs.folder() / "bench_kernels.json"
    files.write_text(path, json.dumps({"rows": rows}, indent=1))
    print(f"wrote {path}")
    if len(sys.argv) == 2:
        append(Path(sys.argv[1]), rows)


def append(path: Path, rows: list[dict[str, object]]) -> None:
    """Add rows to the CSV; those of an earlier run on the same device with the same versions are replaced."""
    same = ("operation", "case", "form", "device", "driver", "torch", "triton")
    new = {tuple(str(line[key]) for key in same) for line in rows}
    old = evaluate.read_rows(path) if path.is_file() else []
    write(path, COLUMNS, [*(line for line in old if tuple(line[key] for key in same) not in new), *rows])
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
