# %% [markdown]
# # 13. Kernels
#
# *About one minute on one CPU core, 1 GB; no GPU is needed. Paper: Tillet, Kung and Cox, "Triton: an intermediate language and compiler
# for tiled neural network computations", MAPL 2019. The operations are those of chapters 5 (DDPP), 6 (ESP), 9 (SKD) and 12 (PoDD), and
# of every ConvNet here.*
#
# ## Why
# A step of distillation is a long chain of small operations. An inner step of PoDD trains a little network on 24 patches; DDPP compares
# two vectors of 320,010 parameters; SKD compares 64 rows of ten logits. On a GPU none of that is much arithmetic. What takes the time is
# **everything around it**: each operation of PyTorch is a program of its own that has to be launched, reads its inputs from memory and
# writes its result there, where the next one reads it again.
#
# A *kernel* is such a program. If a whole formula is one kernel, its inputs are read once, all that lies between stays in registers, and
# the result is written once. This chapter writes one, proves it **without a GPU**, and looks at the six that `ddlib` has. On a CPU
# they are never used: plain torch is the definition everywhere, and all other chapters show it.

# %%
import os

os.environ.setdefault("TRITON_INTERPRET", "0" if __import__("torch").cuda.is_available() else "1")   # before Triton is imported

import contextlib
import csv
import io
from dataclasses import replace

import torch
from IPython.display import display

from ddlib import augment, chapter, data, kernels, methods, papers, plots, poster, runs, widgets
from ddlib.kernels import augment as change
from ddlib.kernels import block, skd, subspace, traffic, trajectory
from ddlib.kernels import poster as patches
from ddlib.methods import ddpp, dm, podd, rat_bptt

# %% tags=["parameters"]
num_params: int = 5000            # P of the kernel that is written by hand; no power of two, on purpose
memory_gb: float = 3350.0         # what the GPU of the predictions moves in a second, GB (H100 SXM, data sheet)
peak_tflops: float = 67.0         # and computes, in float32, 10^12 operations (the same)
launch_us: float = 4.0            # what an operation costs before it begins, microseconds (usual for PyTorch)
seed: int = 0
out: str = ""                     # folder for the results; empty: runs/13_kernels/SEED

# %%
folder = runs.Path(out) if out else runs.folder("13_kernels", f"{seed}")
device = runs.pick_device()
if not kernels.AVAILABLE:
    print("Triton is not installed here: cells that run a kernel say so and go on. `pip install triton` (Linux) brings it.")
print("kernels run on a GPU" if device.type == "cuda" else "kernels are interpreted on the CPU: right numbers, no times")

# %% [markdown]
# ## The equation
# An operation that must move $D$ bytes and do $A$ arithmetic operations, in $n$ launches, takes at least
#
# $$
# t\;\ge\;n\,\ell+\max\Big(\frac DW,\;\frac AF\Big),
# $$
#
# with the memory's bandwidth $W$ (bytes per second), the processor's arithmetic $F$ (operations per second) and the cost $\ell$ of a
# launch. Which of the two terms is larger depends on the **intensity** $A/D$ alone: below $F/W$ an operation waits for memory, above it
# for arithmetic. This picture of a machine is called the *roofline*. For the GPU in the parameters above $F/W$ is 20 operations for each
# byte, or 80 for each number in single precision.
#
# The least $D$ that a formula allows is its **floor**: inputs read once, outputs written once. Take DDPP's loss (chapter 5), with student
# $s$, target $t$ and start $b$, all of $P$ parameters, and the mask $m_p=1$ where neither ratio of $s_p$ and $t_p$ is below $\epsilon$:
#
# $$
# \mathcal L=\frac{\sum_pm_p\,(s_p-t_p)^2}{\sum_pm_p\,(b_p-t_p)^2},\qquad
# \frac{\partial\mathcal L}{\partial s_p}=\frac{2\,m_p\,(s_p-t_p)}{\sum_qm_q\,(b_q-t_q)^2}.
# $$
#
# Three vectors are read, one is written: $16P$ bytes. The denominator is known only at the end, so the gradient needs $s$ and $t$ once
# more, $24P$ in all. How far is plain torch from that? `traffic.Traffic` counts the operations that torch launches and the bytes of
# their inputs and outputs. Nothing here is timed: counts are the same on every machine. *Predicted* is the formula above for the GPU of the
# parameters, with $n$ and $D$ of each column and enough programs to fill the device; measured times come further down.

# %%
rng = runs.stream(seed, "kernels")
normal = lambda *shape: torch.randn(*shape, generator=rng)


def with_gradient(function, leaf):
    """A call that computes the value and its gradient."""
    leaf = leaf.requires_grad_()
    return lambda: torch.autograd.grad(function(leaf).sum(), leaf)


P, r = 320_010, 16                                                       # ConvNet-3 of width 128; a span of 16 snapshots
s, t, b, E = normal(P), normal(P), normal(P), torch.linalg.qr(normal(P, r))[0]
maps, w, bias = normal(50, 128, 32, 32), normal(128), normal(128)
layout, picture, images = poster.Layout(153, 60, 32, 32, 16, 6), normal(3, 60, 153), normal(256, 3, 32, 32)
index, moved = layout.index(), augment.draw("rotate", 256, (3, 32, 32), rng).values[0]
seen, made = normal(64, 10), normal(64, 10)
cut = len(layout) * 3 * 32 * 32
# operation: what it is here, plain torch with its gradient, floor in bytes, arithmetic, launches of the kernels
SIX = {
    "block": ("50 images, 128 maps of 32x32", with_gradient(lambda x: block.reference(x, w, bias, 1e-5), maps), 14 * maps.numel(),
              30 * maps.numel(), 4),
    "poster": ("96 patches of 32x32x3", with_gradient(lambda x: patches.reference(x, index, (32, 32)), picture), 8 * cut, cut, 2),
    "augment": ("rotate 256 images", with_gradient(lambda x: change.rotate(x, moved), images), 16 * images.numel(),
                110 * images.numel(), 2),
    "trajectory": (f"P = {P:,}", with_gradient(lambda x: trajectory.reference(x, t, b, 0.1, "signed").loss, s), 24 * P, 90 * P, 3),
    "subspace": (f"P = {P:,}, r = {r}", with_gradient(lambda x: subspace.reference(x, E).loss, s.clone()),
                 12 * P * r + 28 * P, 8 * P * r, 6),
    "skd": ("64 rows of 10", with_gradient(lambda x: skd.reference(seen, x, 2.0), made), 12 * 64 * 10, 80 * 64 * 10, 2),
}


def least_us(launches, size, arithmetic=0.0):
    """The bound above, in microseconds."""
    return launches * launch_us + 1e6 * max(size / (1e9 * memory_gb), arithmetic / (1e12 * peak_tflops))


counted, lines = {}, []
for name, (what, plain, floor, arithmetic, few) in SIX.items():
    with traffic.Traffic() as found:
        plain()
    counted[name] = found
    lines.append((name, what, f"{found.launches}", f"{few}", f"{found.bytes / 1e6:,.2f}", f"{floor / 1e6:,.2f}",
                  f"{least_us(found.launches, found.bytes):,.0f}", f"{least_us(few, floor, arithmetic):,.0f}"))
columns = ("operation", "with its gradient", "launches", "kernels", "MB", "floor, MB", "predicted, µs", "of kernels, µs")
papers.Table(columns, tuple(lines), ("launches, MB: plain torch", "predicted: a bound, not a measurement"), numeric=frozenset(columns[2:]),
             caption="Plain torch and the floor")

# %% [markdown]
# Two kinds of waste. *Launches*: SKD's loss on 64 rows moves 8 kB and needs about fifty operations for it; nearly all of its time is
# launching. *Traffic*: DDPP's loss moves thirteen times its floor, because every intermediate vector (the larger of the two, the scale, two
# quotients, the mask, three products) goes to memory and back. Where plain torch is already near its floor there is little to win:
# the projection of ESP reads $E$ six times where three would do.
#
# ## By hand
# Triton is Python that describes what **one program** does with one *block* of the data; many programs run at once, each knows its number.
# Three rules cover this chapter. Blocks have a size that is a power of two, so a *mask* says which elements exist. What is loaded stays
# in registers until it is stored. And programs cannot see each other's sums: each writes its own, and torch adds them. (They could
# add to one number *atomically*, in whatever order they finish; then two runs would differ in the last digit, and a distillation that is
# resumed would not repeat. No kernel here does that.)
#
# Here is the loss above: mask, both sums and the number of kept parameters, in one pass. Compare it with the formula line by line.

# %%
if kernels.AVAILABLE:
    import triton
    import triton.language as tl

    @triton.jit
    def sums_of_a_block(student, target, start, sums, P, epsilon, K: tl.constexpr):
        p = tl.program_id(0) * K + tl.arange(0, K)                       # which parameters are mine
        inside = p < P                                                   # the last program has fewer
        s = tl.load(student + p, mask=inside, other=0.0)
        t = tl.load(target + p, mask=inside, other=0.0)
        b = tl.load(start + p, mask=inside, other=0.0)
        largest = tl.maximum(tl.abs(s), tl.abs(t))
        scale = tl.where(largest > 0, largest, 1.0)
        keep = inside & (((s / scale) * (t / scale) >= epsilon) | (largest == 0))
        near = tl.sum(tl.where(keep, (s - t) * (s - t), 0.0), axis=0)
        far = tl.sum(tl.where(keep, (b - t) * (b - t), 0.0), axis=0)
        kept = tl.sum(keep.to(tl.float32), axis=0)
        tl.store(sums + 3 * tl.program_id(0), near)
        tl.store(sums + 3 * tl.program_id(0) + 1, far)
        tl.store(sums + 3 * tl.program_id(0) + 2, kept)

    def by_hand(student, target, start, epsilon, K=1024, kernel=sums_of_a_block):
        """DDPP's loss and the share that is kept."""
        programs = -(-len(student) // K)
        sums = torch.full((programs, 3), torch.nan, device=student.device)                              # poisoned: who writes what?
        kernel[(programs,)](student, target, start, sums, len(student), epsilon, K=K)
        near, far, kept = sums.sum(dim=0).tolist()
        return near / far, kept / len(student)

    vectors = [normal(num_params).to(device) for _ in range(3)]
    loss, kept = by_hand(*vectors, 0.1)
    print(f"{-(-num_params // 1024)} programs of 1,024 for {num_params:,} parameters")
    print(f"loss {loss:.6f}, kept {kept:.2%}")

# %% [markdown]
# **Proof without a GPU.** With `TRITON_INTERPRET=1` Triton executes the same program on the CPU, element by element in NumPy. This
# proves *which numbers* a kernel computes: the indexing, the masks, the formula. A proof has to be able to fail, so it looks where
# kernels go wrong: sizes that do not fit the blocks, one element, extreme values, memory that nobody wrote (filled with NaN above), and
# it compares with a loop over Python's floats, in double precision. Below, a second kernel with a typical mistake: it forgets that
# elements beyond the end do not exist, and counts them as kept because two zeros are equal.

# %%
def by_loop(student, target, start, epsilon):
    """The formula in Python floats."""
    near = far = kept = 0.0
    for s, t, b in zip(student.tolist(), target.tolist(), start.tolist(), strict=True):
        m = max(abs(s), abs(t))
        if m == 0 or (s / m) * (t / m) >= epsilon:
            near, far, kept = near + (s - t) ** 2, far + (b - t) ** 2, kept + 1
    return near / far, kept / len(student)


def agrees(kernel, size, scale=1.0):
    """Whether the kernel has the loop's numbers, on vectors with zeros and sign flips among them."""
    draw = runs.stream(seed, "proof", size)
    student, target, start = (scale * torch.randn(size, generator=draw) for _ in range(3))
    student[::7], target[::7], target[1::5] = 0.0, 0.0, -student[1::5]
    ours = by_hand(*(each.to(device) for each in (student, target, start)), 0.1, kernel=kernel)
    return all(abs(a - b) <= 1e-5 * abs(b) for a, b in zip(ours, by_loop(student, target, start, 0.1), strict=True))


if kernels.AVAILABLE:
    @triton.jit
    def without_a_mask(student, target, start, sums, P, epsilon, K: tl.constexpr):
        p = tl.program_id(0) * K + tl.arange(0, K)
        s = tl.load(student + p, mask=p < P, other=0.0)
        t = tl.load(target + p, mask=p < P, other=0.0)
        b = tl.load(start + p, mask=p < P, other=0.0)
        largest = tl.maximum(tl.abs(s), tl.abs(t))
        scale = tl.where(largest > 0, largest, 1.0)
        keep = ((s / scale) * (t / scale) >= epsilon) | (largest == 0)                                  # the mistake
        tl.store(sums + 3 * tl.program_id(0), tl.sum(tl.where(keep, (s - t) * (s - t), 0.0), axis=0))
        tl.store(sums + 3 * tl.program_id(0) + 1, tl.sum(tl.where(keep, (b - t) * (b - t), 0.0), axis=0))
        tl.store(sums + 3 * tl.program_id(0) + 2, tl.sum(keep.to(tl.float32), axis=0))

    trials = [(size, scale) for size in (9, 1023, 1024, 1025, num_params) for scale in (1.0, 1e-15, 1e15)]
    for title, kernel in (("with the mask", sums_of_a_block), ("without it", without_a_mask)):
        right = [agrees(kernel, size, scale) for size, scale in trials]
        print(f"{title}: {sum(right)} of {len(trials)} trials agree")
    assert all(agrees(sums_of_a_block, *trial) for trial in trials) and not all(agrees(without_a_mask, *trial) for trial in trials)

# %% [markdown]
# The mistake is invisible where the size is a multiple of the block, which is how one would usually try a kernel.
#
# What interpretation does **not** prove: that the compiler accepts the program, that it is fast, and that programs which run at the same
# time do not disturb each other (here they cannot: no two write to one place). The first of these can be had without a device as well:
# Triton compiles for a GPU that is not there, down to machine code. `python tests/compile_kernels.py 90` does that with all kernels of the
# library, for compute capability 9.0, and is part of the tests.
#
# ## The library
# `ddlib.kernels` holds one operation per file: the floor, the plain form, the kernel, its derivatives, and who runs. `trajectory.match`
# is the kernel above with its gradient, both readings of a sign flip, MTT's loss and a check for infinities. The plain form runs on a CPU
# and wherever a kernel does not fit (double precision, a shape that it is not made for: it says so once). `kernels.using("on")` asks for
# kernels on a CPU, under interpretation; `"off"`, or `DDLIB_KERNELS=off` for a whole process, goes without.

# %% tags=["nbval-check-output"]
student, target, start = (normal(num_params).to(device) for _ in range(3))


def loss_and_gradient(mode):
    with kernels.using(mode):
        leaf = student.clone().requires_grad_()
        matched = trajectory.match(leaf, target, start, 0.1, "signed")
        return matched, torch.autograd.grad(matched.loss, leaf)[0]


(plain, plain_gradient), (fast, fast_gradient) = (loss_and_gradient(mode) for mode in ("off", "on" if kernels.AVAILABLE else "off"))
assert torch.allclose(plain.loss, fast.loss) and plain.kept == fast.kept and torch.allclose(plain_gradient, fast_gradient)
if kernels.AVAILABLE:
    loss, kept = by_hand(student, target, start, 0.1)
    assert abs(loss - float(plain.loss.detach())) < 1e-5 * loss and abs(kept - float(plain.kept)) < 1e-6
leaf = student.double().requires_grad_()
largest = int(fast_gradient.abs().argmax())
nudge = torch.zeros_like(leaf)
nudge[largest] = 1e-4
value = lambda x: trajectory.reference(x, target.double(), start.double(), 0.1, "signed").loss.item()
slope = (value(leaf.detach() + nudge) - value(leaf.detach() - nudge)) / 2e-4
assert abs(slope / float(fast_gradient[largest]) - 1) < 1e-3
print("by hand, plain torch and kernel agree;\nso does the gradient, with differences of the loss")

# %% [markdown]
# **The six.** What each replaces, and what is particular about it:
#
# | operation | methods | in one kernel | particular |
# |---|---|---|---|
# | `block` | all | instance norm, ReLU, 2x2 mean | two derivatives: unrolled training differentiates gradients |
# | `poster` | PoDD | cutting patches; adding up their gradients | sums without atomics, in the order of patches |
# | `augment` | all | one of six augmentations | the transpose of a rotation is a gather as well |
# | `trajectory` | MTT, DDPP | mask, two norms, count, gradient | mask equal bit by bit: quotients rounded as torch does |
# | `subspace` | ESP | projection, rest, its norm, gradient | three readings of the basis instead of six |
# | `skd` | SKD | standardise, softmax, KL, gradient | a row never leaves its registers |
#
# `block` is the one that matters most: it stands behind every convolution of every network here. `torch.compile` fuses it as well, and
# well; but it cannot differentiate a gradient ("does not currently support double backward", torch 2.15), and the derivative of a
# gradient is what RaT-BPTT, PoDD, MTT, DDPP and ESP are made of. So its second derivative is written out (docstring of
# `ddlib/kernels/block.py`) and checked against double precision.
#
# The roofline of the GPU above, and where the six stand by their floors. The line is the most that the machine can do at an intensity:
# rising, while memory limits, then flat. Circles are what plain torch can reach at most with the bytes that it moves, launches left out.

# %%
intensity = {name: arithmetic / floor for name, (_, _, floor, arithmetic, _) in SIX.items()}
now = {name: SIX[name][3] / counted[name].bytes for name in SIX}
with plots.style():
    roof = plots.figure(plots.HALF)
    ax = roof.subplots()
    grid = torch.logspace(-2.3, 2, 50).tolist()
    ax.plot(grid, [min(1e-3 * memory_gb * x, peak_tflops) for x in grid], color="#767676", lw=1.5)
    for place, name in enumerate(sorted(SIX, key=intensity.get)):
        height = 1e-3 * memory_gb * intensity[name]
        ax.plot([now[name], intensity[name]], [1e-3 * memory_gb * now[name], height], lw=1, color=plots.color("", place))
        ax.plot(now[name], 1e-3 * memory_gb * now[name], "o", mfc="none", color=plots.color("", place))
        ax.plot(intensity[name], height, "o", color=plots.color("", place), label=name)
    ax.set(xscale="log", yscale="log", xlabel="operations for each byte", ylabel="10¹² operations a second")
    roof.legend(loc="outside upper left", ncols=3)
print("intensity at the floor: " + ", ".join(f"{name} {value:.1f}" for name, value in intensity.items()))
roof

# %% [markdown]
# All six stand on the rising part: they wait for memory, and bytes are what counts. That is why the table of times below has
# a column "share of copying": a kernel that reaches the bandwidth of a plain copy, with no bytes beyond its floor, is finished.
#
# **A step of each method.** The same count for one outer step of whole methods, preset `tiny`. Bytes grow with the width of the network
# and the number of images; launches hardly do. A hundred images of width 128 need as many launches as four of width 4.

# %%
toy = data.load("toy")
lines = []
for module, changes in ((dm, {}), (rat_bptt, {"unroll": "plain"}), (rat_bptt, {"unroll": "remat"}),
                        (podd, {"unroll": "remat", "distances": "none"})):
    config = replace(methods.preset(module, "tiny"), steps=2, **changes)
    steps = module.distill(toy, config)
    next(steps)                                                          # the first step builds things
    with traffic.Traffic() as found:
        next(steps)
    how = ", ".join(value for value in changes.values() if value != "none")
    lines.append((module.NAME + (f", {how}" if how else ""), f"{found.launches:,}", f"{found.bytes / 1e6:,.1f}",
                  f"{found.bytes / found.launches / 1e3:,.1f}", f"{1e-3 * launch_us * found.launches:.1f}",
                  f"{found.bytes / memory_gb / 1e6:.3f}"))
columns = ("one step", "launches", "MB", "kB each", "launching, ms", "moving, ms")
papers.Table(columns, tuple(lines), ("ms: predicted, for the GPU of the parameters",), numeric=frozenset(columns[1:]),
             caption="Preset tiny")

# %% [markdown]
# ## Try it
# When does a kernel pay? Below, DDPP's loss with its gradient, by the bound of this chapter: plain torch and the three launches of the
# kernel, for every number of parameters. Move the slider: it sets what a launch costs.

# %%
def when_it_pays(launch):
    sizes = torch.logspace(3, 8, 60)
    count, per = counted["trajectory"].launches, counted["trajectory"].bytes / P
    with plots.style():
        fig = plots.figure(plots.HALF)
        ax = fig.subplots()
        for title, n, size, shade in (("plain torch", count, per, "#767676"), ("kernel", 3, 24.0, plots.color("DDPP"))):
            ax.plot(sizes, [n * launch + 1e6 * size * p / (1e9 * memory_gb) for p in sizes.tolist()], color=shade, label=title)
        ax.axvline(320_010, ls="--", lw=1, color="#767676")
        ax.set(xscale="log", yscale="log", ylim=(1, 2e5), xlabel="parameters (dashed: ConvNet-3, width 128)", ylabel="at least, µs")
        fig.legend(loc="outside upper left", ncols=2)
    return fig


widgets.frames(when_it_pays, launch=[0.5, 1.0, 2.0, 4.0, 8.0, 16.0], label="cost of a launch, µs", start=4.0, uid="launch")

# %% [markdown]
# On the left the lines are flat: time is launches, and the kernel wins by their ratio whatever it computes. On the right time is bytes, and
# it wins by the ratio of bytes. A network of these chapters stands on the flat part. There the best kernel is the one that replaces most
# launches, and capturing a whole step as one graph helps more than a better kernel would.
#
# ## A small run
# Two updates of DDPP's tiny preset, with kernels and without: experts once, then student, loss, second derivatives, all through `block`,
# `augment` and `trajectory`. The distilled images must be the same to rounding.

# %%
config = replace(ddpp.PRESETS["tiny"], steps=2, seed=seed)
with contextlib.redirect_stdout(io.StringIO()):
    ddpp.prepare(toy, config)                                            # experts, without kernels


def distilled_with(mode):
    with kernels.using(mode):
        *_, last = ddpp.distill(toy.to(device), config)
    return last.syn


plain_set, fast_set = distilled_with("off"), distilled_with("on" if kernels.AVAILABLE else "off")
apart = (plain_set.images - fast_set.images).abs().max().item()
print(f"largest difference of a pixel: {apart:.0e}, of numbers up to {plain_set.images.abs().max():.1f}")
assert apart < 1e-3
plots.image_grid(toy.preprocess.inverse(torch.cat([plain_set.images, fast_set.images])).clamp(0, 1).detach().cpu(),
                 torch.cat([plain_set.labels, fast_set.labels]).cpu(), toy.classes, caption="left: plain torch, right: kernels")

# %% [markdown]
# ## The paper and us
# None of the five papers reports kernels; their codes are plain PyTorch. So *ours* stands alone here: rows of `book/results/bench.csv`,
# made by `make bench` on whatever device it finds. Each operation with its gradient in three forms, interleaved in one process, medians of
# five. *Of copying* is the bandwidth that the floor's bytes correspond to, over that of copying a large tensor on the same device, so a
# form that moves more than the floor has less. Sizes on a GPU are larger than on a CPU, and fill it.

# %%
path = runs.ROOT / "book" / "results" / "bench.csv"
rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines())) if path.is_file() else []
for where in sorted({(row["device"], row["driver"], row["torch"]) for row in rows}):
    at = [row for row in rows if (row["device"], row["driver"], row["torch"]) == where]
    timed = {(row["operation"], row["case"], row["form"]): row for row in at}
    lines = []
    for operation, case in dict.fromkeys((row["operation"], row["case"]) for row in at if row["operation"] != "step"):
        found = [timed.get((operation, case, form)) for form in ("eager", "compiled", "kernel")]
        lines.append((operation, case, *(f"{1e3 * float(row['seconds']):.3f}" if row else papers.NOT_RUN for row in found),
                      *(f"{float(row['share_of_copy']):.0%}" if row and row["share_of_copy"] else "-" for row in found)))
    columns = ("operation", "case", "eager, ms", "compiled, ms", "kernel, ms", "of copying", "compiled ", "kernel ")
    copying = f"copying moves {float(at[0]['copy_gb_per_s']):.0f} GB/s"
    display(papers.Table(columns, tuple(lines), (copying,), numeric=frozenset(columns[2:]), caption=f"{where[0]}, torch {where[2]}"))
    steps = tuple((row["case"], row["form"], f"{float(row['seconds']):.3f}") for row in at if row["operation"] == "step")
    display(papers.Table(("step", "form", "seconds"), steps, numeric=frozenset({"seconds"}), caption=f"Whole steps, {where[0]}"))
if not any(row["form"] == "kernel" for row in rows):
    print("kernels on a GPU: not run")

# %% [markdown]
# **What this chapter shows and what it does not**
#
# 1. *Correct*: on every path that a CPU can take. All six give the numbers and derivatives of their plain forms, in odd shapes, half
#    precision and at extreme values, and compile for GPUs of compute capability 9.0.
# 2. *Fast*: not shown wherever the table says *not run*. Nobody has run these kernels on a GPU for this page. The predictions above are
#    bounds, and a kernel may be far from its bound for reasons that no count sees: too few programs, registers that spill, loads that
#    are not adjacent.
# 3. *On a CPU* they change nothing: plain torch runs, and its numbers are the same to the last bit as before they existed.
# 4. *Not written*: a convolution. The libraries that torch calls are near their bound for it, and it is most of the arithmetic of a step.
#
# ## Exercises
# Solutions are folded below each question.
#
# **1. Change a number.** The kernel by hand has blocks of 1,024. Try blocks of 64 and of 8,192 for the same vectors. What changes in the
# result, what in the number of programs, and what would change on a GPU?

# %% tags=["hide-cell"]
if kernels.AVAILABLE:
    for K in (64, 1024, 8192):
        loss, kept = by_hand(*vectors, 0.1, K=K)
        print(f"blocks of {K:>5,}: {-(-num_params // K):>3} programs, loss {loss:.7f}, kept {kept:.2%}")
chapter.answer("The count is the same, the loss differs in the last digits at most: sums are taken in another order. A GPU has about a "
               "hundred processors, each of which wants several programs: blocks of 8,192 leave most of it idle, blocks of 64 make many "
               "partial sums and use half of the lanes that a program has.")

# %% [markdown]
# **2. Change an equation.** Write the gradient of the loss as a second kernel: read $s$ and $t$, decide the mask again, write
# $2m_p(s_p-t_p)$ over the denominator. Why decide the mask again instead of storing it in the first pass?

# %% tags=["hide-cell"]
if kernels.AVAILABLE:
    @triton.jit
    def gradient_of_a_block(student, target, gradient, P, epsilon, factor, K: tl.constexpr):
        p = tl.program_id(0) * K + tl.arange(0, K)
        s, t = tl.load(student + p, mask=p < P, other=0.0), tl.load(target + p, mask=p < P, other=0.0)
        largest = tl.maximum(tl.abs(s), tl.abs(t))
        scale = tl.where(largest > 0, largest, 1.0)
        keep = ((s / scale) * (t / scale) >= epsilon) | (largest == 0)
        tl.store(gradient + p, tl.where(keep, factor * (s - t), 0.0), mask=p < P)

    keep = trajectory.keep_mask(student, target, 0.1)
    denominator = float((start - target)[keep].square().sum())
    gradient = torch.full_like(student, torch.nan)
    gradient_of_a_block[(-(-num_params // 1024),)](student, target, gradient, num_params, 0.1, 2 / denominator, K=1024)
    print("equal to autograd's:", torch.allclose(gradient, plain_gradient, rtol=1e-4, atol=1e-9))
    assert torch.allclose(gradient, plain_gradient, rtol=1e-4, atol=1e-9)
chapter.answer("Both vectors have to be read for the difference anyway, and a dozen operations on numbers in registers cost nothing "
               "where memory is what one waits for. A stored mask is a fourth vector to write and to read.")

# %% [markdown]
# **3. Bring your data.** Choose a formula of your own that plain torch computes in several operations, such as the cosine of matching rows
# of two matrices. Write down its floor, count what plain torch moves, and say what a kernel could win at 64 and at a million rows.

# %% tags=["hide-cell"]
for count in (64, 100_000):
    one, other = normal(count, 10), normal(count, 10)
    with traffic.Traffic() as found:
        (one * other).sum(dim=1) / (one.norm(dim=1) * other.norm(dim=1))
    floor = 2 * one.numel() * 4 + 4 * count
    print(f"{count:>7,} rows: {found.launches} launches, {found.bytes / floor:.1f} times the floor; "
          f"{least_us(found.launches, found.bytes):.0f} µs against {least_us(1, floor):.0f}")
chapter.answer("The floor is reading both and writing one number a row. With 64 rows all is launching, and one launch instead of six "
               "is the whole gain. With many rows bytes begin to count, and the gain is the ratio of bytes.")
