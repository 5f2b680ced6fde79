# %% [markdown]
# # 13. Kernels
#
# *About one minute on one CPU core, 1 GB; no GPU is needed. Paper: Tillet, Kung and Cox, "Triton: an intermediate language and compiler
# for tiled neural network computations", MAPL 2019. The operations are those of chapters 5 (DDPP), 6 (ESP), 9 (SKD) and 12 (PoDD), and
# of every ConvNet here.*
#
# ## Why
# A step of distillation is a long chain of small operations. An inner step of PoDD trains a little network on some patches; DDPP compares
# two vectors of 320,010 parameters; SKD compares 64 rows of ten logits. On a GPU none of that is much arithmetic. What should take the time
# is **everything around it**: each operation of PyTorch is a program of its own that has to be launched, reads its inputs from memory and
# writes its result there, where the next one reads it again.
#
# A function that runs on the GPU is called a *kernel*, and starting one a *launch*. If a whole formula is one kernel, its inputs are read
# once, all that lies between stays in registers (the few numbers that a processor holds at hand), and the result is written once. This
# chapter writes one, tests it **without a GPU**, and looks at the six that `ddlib` has. On a CPU they are not used unless asked for: plain
# torch is the definition everywhere, and all other chapters show it.

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
launch_us: float = 4.0            # what launching an operation costs, microseconds: our guess, a few is what one reads
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
# An operation that moves $D$ bytes and does $A$ arithmetic operations, in $n$ launches, takes about
#
# $$
# T\;\approx\;n\,\ell+\max\Big(\frac DW,\;\frac AF\Big),
# $$
#
# with the memory's bandwidth $W$ (bytes per second), the processor's arithmetic $F$ (operations per second) and the cost $\ell$ of a
# launch. It is a simple estimate: launches that wait for each other, no cache, a device that is filled. **All times of a GPU on this page
# are this estimate; no kernel has been timed.** Which of the two terms in the
# maximum is larger depends on the **intensity** $A/D$ alone: below $F/W$ an operation waits for memory, above it for arithmetic (this
# picture of a machine is called the *roofline*). For the GPU in the parameters above $F/W$ is 20 operations for each
# byte, or 80 for each number in single precision.
#
# The least $D$ that a formula allows is its **floor**. Take DDPP's loss (chapter 5), with student $s$, target $t$ and start $b$, all of
# $P$ parameters, and a mask: $m_p=1$ where neither of the ratios $s_p/t_p$ and $t_p/s_p$ is below $\epsilon=0.1$, or $s_p=t_p=0$. (A
# flip of the sign is a negative ratio; that is the "signed" reading.) The mask counts as a constant in the gradient:
#
# $$
# \begin{gathered}
# \mathcal L=\frac{\sum_pm_p\,(s_p-t_p)^2}{\sum_pm_p\,(b_p-t_p)^2},\\[6pt]
# \frac{\partial\mathcal L}{\partial s_p}=\frac{2\,m_p\,(s_p-t_p)}{\sum_qm_q\,(b_q-t_q)^2}.
# \end{gathered}
# $$
#
# Three vectors are read: $12P$ bytes. The denominator is known only then, so the gradient reads $s$ and $t$ once more and is written:
# another $12P$. The floor is $24P$. (This is where "no cache" matters: three vectors of 320,010 numbers stay in the cache of a large GPU,
# and the second reading is cheaper than the first.) How far is plain torch from it? `traffic.Traffic` counts the operations that torch
# calls and the bytes of their inputs and outputs. Nothing here is timed, and another version of torch may call other operations; on a GPU
# one of them can be several launches. The last two columns are the estimate above for the GPU of the parameters.

# %%
rng = runs.stream(seed, "kernels")
normal = lambda *shape: torch.randn(*shape, generator=rng)


def with_gradient(function, leaf):
    """A call that computes the value and its gradient."""
    leaf = leaf.requires_grad_()
    direction = torch.ones_like(function(leaf).detach())
    return lambda: torch.autograd.grad(function(leaf), leaf, direction)


P, r = 320_010, 16                                                       # ConvNet-3 of width 128; a span of 16 snapshots
s, t, b, E = normal(P), normal(P), normal(P), torch.linalg.qr(normal(P, r))[0]
maps, w, bias = normal(50, 128, 32, 32), normal(128), normal(128)
layout, picture, images = poster.Layout(153, 60, 32, 32, 16, 6), normal(3, 60, 153), normal(256, 3, 32, 32)
index, moved = layout.index(3), augment.draw("rotate", 256, (3, 32, 32), rng).values[0]
seen, made = normal(64, 10), normal(64, 10)
cut = len(layout) * 3 * 32 * 32
# operation: what it is here, plain torch with its gradient, floor in bytes, arithmetic (roughly), launches of the kernels (both by their
# files in ddlib/kernels)
SIX = {
    "block": ("50 images, 128 maps of 32x32", with_gradient(lambda x: block.reference(x, w, bias, 1e-5), maps), 14 * maps.numel(),
              30 * maps.numel(), 4),
    "poster": ("96 patches of 32x32x3", with_gradient(lambda x: patches.reference(x, index, (32, 32)), picture),
               8 * cut + 8 * picture.numel(), cut, 2),
    "augment": ("rotate 256 images", with_gradient(lambda x: change.rotate(x, moved), images), 16 * images.numel(),
                110 * images.numel(), 2),
    "trajectory": (f"P = {P:,}", with_gradient(lambda x: trajectory.reference(x, t, b, 0.1, "signed").loss, s), 24 * P, 59 * P, 3),
    "subspace": (f"P = {P:,}, r = {r}", with_gradient(lambda x: subspace.reference(x, E).loss, s.clone()),
                 12 * P * r + 24 * P, 8 * P * r, 6),
    "skd": ("64 rows of 10", with_gradient(lambda x: skd.reference(seen, x, 2.0), made), 12 * 64 * 10, 80 * 64 * 10, 2),
}


def about_us(launches, size, arithmetic=0.0):
    """The estimate above, in microseconds."""
    return launches * launch_us + 1e6 * max(size / (1e9 * memory_gb), arithmetic / (1e12 * peak_tflops))


counted, lines = {}, []
for name, (_, plain, floor, arithmetic, few) in SIX.items():
    with traffic.Traffic() as found:
        plain()
    counted[name] = found
    lines.append((name, f"{found.launches}", f"{few}", f"{found.bytes / 1e3:,.0f}", f"{floor / 1e3:,.0f}",
                  f"{about_us(found.launches, found.bytes, arithmetic):,.0f}", f"{about_us(few, floor, arithmetic):,.0f}"))
columns = ("", "n", "n'", "kB", "floor", "µs", "µs'")
floors = "block 14 a number, poster 8 a number of patch and poster, augment 16, trajectory 24, subspace 12 r + 24, skd 12"
papers.Table(columns, tuple(lines), ("; ".join(f"{name}: {what}" for name, (what, *_) in SIX.items()),
                                     "all with the gradient; n, kB, µs: operations, bytes and estimate of plain torch; n', floor, µs': of "
                                     "kernels", f"floors in bytes: {floors}; how they come about is in each file of ddlib/kernels"),
             numeric=frozenset(columns[1:]), caption="Counted in plain torch, and the floor")

# %% [markdown]
# Two kinds of waste. *Launches*: SKD's loss on 64 rows has a floor of 8 kB, and plain torch takes about fifty operations for it; by the
# estimate nearly all of its time is launching. *Traffic*: `trajectory` is DDPP's loss together with MTT's and a check for infinities, all
# that an update asks for. Plain torch moves thirteen times the floor, because every intermediate vector (the larger of the two, the scale,
# two quotients, the mask, products, squares) goes to memory and back. Where plain torch is near its floor there is less to win: the
# projection of ESP reads $E$ four times where three would do.
#
# ## By hand
# Triton is Python that describes what **one program** does with one *block* of the data. A launch starts many copies of it, and each
# knows its number. What one has to know to read it:
#
# * `@triton.jit` marks a kernel, `kernel[(n,)](...)` launches `n` programs, and `tl.program_id(0)` is the number of this one.
# * A tensor arrives as the address of its first element. `student + p` are the addresses of the elements `p`; `tl.load` fetches them and
#   `tl.store` writes.
# * Blocks have a size that is a power of two and known in advance (`tl.constexpr`). So a *mask* says which elements exist, and `other`
#   stands for the rest.
# * Programs do not see each other's sums: each writes its own, and torch adds them. (They could add to one number *atomically*, in
#   whatever order they finish; then two runs would differ in the last digit, and a distillation that is resumed would not repeat. No
#   kernel here does that.)
#
# Here is the loss above: mask, both sums and the number of kept parameters, in one pass. For the mask, with $u=\max(|s|,|t|)$, the ratio
# that is smaller in size is $(s/u)(t/u)$, as one of the quotients is 1 or −1 (chapter 5); and if it is negative, so is the other.

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
# **Tested without a GPU.** With `TRITON_INTERPRET=1` Triton executes the same kernel on the CPU, one program after another, each block a
# NumPy array. That shows *which numbers* a kernel computes: the indexing, the masks, the formula. A test has to be able to fail, so it
# looks where kernels go wrong: sizes that do not fit the blocks, a last block of one element, large and small values (beyond $10^{\pm19}$
# squares leave single precision, in plain torch as well), memory that nobody wrote (filled with NaN above). It compares with a loop over
# Python's floats, in double precision. Beside it a second kernel with a typical mistake: it forgets that elements beyond the end do
# not exist, and counts them as kept because two zeros are equal.

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
    """Whether the kernel has the loop's (loss, share kept), on vectors with zeros and sign flips among them."""
    draw = runs.stream(seed, "proof", size)
    student, target, start = (scale * torch.randn(size, generator=draw) for _ in range(3))
    student[::7], target[::7], target[1::5] = 0.0, 0.0, -student[1::5]
    ours = by_hand(*(each.to(device) for each in (student, target, start)), 0.1, kernel=kernel)
    return [abs(a - b) <= 1e-5 * abs(b) for a, b in zip(ours, by_loop(student, target, start, 0.1), strict=True)]


if kernels.AVAILABLE:
    @triton.jit
    def without_inside(student, target, start, sums, P, epsilon, K: tl.constexpr):
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
    for title, kernel in (("the kernel", sums_of_a_block), ("with the mistake", without_inside)):
        right = [agrees(kernel, *trial) for trial in trials]
        print(f"{title}, right in {len(trials)} trials:\n  loss {sum(loss for loss, _ in right)}, share kept "
              f"{sum(kept for _, kept in right)}")
        assert all(map(all, right)) == (kernel is sums_of_a_block)

# %% [markdown]
# The mistake is invisible where the size is a multiple of the block, which is how one would usually try a kernel. And it is invisible in
# the *loss* at every size, since what is read beyond the end is zero and adds nothing. A test of the loss alone would pass.
#
# What interpretation does **not** prove: that the compiler accepts the program, that it is fast, and that programs which run at the same
# time do not disturb each other (here they cannot: no two write to one place). The first of these can be had without a device as well:
# Triton compiles for a GPU that is not there, down to machine code. `python tests/compile_kernels.py 90` does that with all kernels of the
# library, for compute capability 9.0 (the generation of an H100), and is part of the tests.
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
print("by hand, plain torch and kernel agree;\nso does the gradient, in its largest entry\nwith differences of the loss")

# %% [markdown]
# **The six.** What each replaces, and what is particular about it:
#
# | operation | in one kernel | particular |
# |---|---|---|
# | `block` (all) | instance norm, ReLU, 2x2 mean | two derivatives: unrolled training differentiates gradients |
# | `poster` (PoDD) | cutting patches; adding up their gradients | sums without atomics, in the order of patches |
# | `augment` (all) | one of six augmentations | the transpose of a rotation is a gather as well |
# | `trajectory` (MTT, DDPP) | mask, two norms, count, gradient | mask equal bit by bit: quotients rounded as torch does |
# | `subspace` (ESP) | projection, rest, its norm, gradient | three readings of the basis instead of four |
# | `skd` (SKD) | standardise, softmax, KL, gradient | a row never leaves its registers |
#
# `block` moves the most bytes: it stands behind every convolution of every ConvNet here. `torch.compile` can fuse it, too; but it cannot
# differentiate a gradient ("does not currently support double backward", torch 2.15), and the derivative of a gradient is what RaT-BPTT,
# PoDD, MTT, DDPP and ESP are made of. So its second derivative is written out (docstring of `ddlib/kernels/block.py`) and checked against
# double precision.
#
# Where the six stand on the roofline of the GPU above: operations for each byte, at the floor (filled) and with the bytes that plain
# torch moves (open). Right of the line the machine would be limited by arithmetic.

# %%
intensity = {name: arithmetic / floor for name, (_, _, floor, arithmetic, _) in SIX.items()}
now = {name: SIX[name][3] / counted[name].bytes for name in SIX}
names = sorted(SIX, key=intensity.get)
with plots.style():
    roof = plots.figure((3.5, 2.4))
    ax = roof.subplots()
    for place, name in enumerate(names):
        ax.plot([now[name], intensity[name]], [place, place], lw=1, color="#767676")
        ax.plot(now[name], place, "o", mfc="white", color="#0072B2", label="plain torch" if not place else None)
        ax.plot(intensity[name], place, "o", color="#0072B2", label="floor" if not place else None)
    ax.axvline(1e3 * peak_tflops / memory_gb, ls="--", lw=1, color="#767676")
    ax.set(xscale="log", xlabel="operations for each byte (dashed: F / W)", yticks=range(len(names)), yticklabels=names)
    roof.legend(loc="outside upper left", ncols=2)
print("at the floor:\n  " + "\n  ".join(f"{name} {intensity[name]:.1f}" for name in names))
roof

# %% [markdown]
# By this count all six would wait for memory once launches are paid, the nearest to the line by a factor of three (arithmetic is counted
# roughly, and not all of it is multiply-adds). So bytes are what counts. That is why `make bench` gives the
# share of copying: a kernel that reaches the bandwidth of a plain copy, with no bytes beyond its floor, is finished. At the sizes of
# the first table, though, launches are most of the estimate for all but `block`.
#
# **A step of each method.** The same count for one outer step of whole methods, preset `tiny` at two widths of the network. (`plain` and
# `remat` are two ways to the same gradient, chapter 4.) Bytes grow with the width; the number of launches does not change at all.

# %%
toy = data.load("toy")
lines = []
for module, changes in ((dm, {}), (dm, {"width": 16}), (rat_bptt, {"unroll": "plain"}), (rat_bptt, {"unroll": "remat"}),
                        (rat_bptt, {"unroll": "remat", "width": 16}), (podd, {"unroll": "remat", "distances": "none"})):
    config = replace(methods.preset(module, "tiny"), steps=2, **changes)
    steps = module.distill(toy, config)
    next(steps)                                                          # the first step builds things
    with traffic.Traffic() as found:
        next(steps)
    lines.append((", ".join(filter(None, [module.NAME, changes.get("unroll"), f"{config.width}"])), f"{found.launches:,}",
                  f"{found.bytes / 1e6:,.1f}", f"{1e-3 * launch_us * found.launches:.1f}", f"{found.bytes / memory_gb / 1e6:.3f}"))
columns = ("method, width", "n", "MB", "ms, n", "ms, MB")
papers.Table(columns, tuple(lines), ("n: operations; ms: estimated for the GPU of the parameters, of launching and of moving",),
             numeric=frozenset(columns[1:]), caption="One outer step, preset tiny")

# %% [markdown]
# ## Try it
# What does a kernel save, and where? Below, `trajectory` with its gradient by the estimate of this chapter: plain torch and the three
# launches of the kernel, for every number of parameters. Move the slider: it sets what a launch costs.

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
        ax.set(xscale="log", yscale="log", ylim=(1, 2e5), xlabel="parameters (dashed: ConvNet-3, width 128)", ylabel="estimate, µs")
        fig.legend(loc="outside upper left", ncols=2)
    return fig


widgets.frames(when_it_pays, launch=[0.5, 1.0, 2.0, 4.0, 8.0, 16.0], label="cost of a launch, µs", start=4.0, uid="launch")

# %% [markdown]
# On the left the lines are flat: time is launches, and the kernel would win by their ratio, 15, whatever it computes. On the right time
# is bytes, and it would win by the ratio of bytes, 13. What moves with the slider is the place where one turns into the other. At 4 µs a
# network of these chapters (dashed) is still on the flat part. If so, the best kernel there is the one that replaces most launches, and
# recording a whole step once and starting it as one (a *CUDA graph*) should help more than a better kernel would; nobody has tried it here.
#
# ## A small run
# Two updates of DDPP's tiny preset, with kernels and without: experts once, then student, loss, second derivatives, all through `block`,
# `augment` and `trajectory`. The distilled images must be the same up to rounding.

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
first = next(ddpp.distill(toy.to(device), replace(config, pixel_lr=0.0))).syn                     # nothing has moved
moved_by = (plain_set.images - first.images).abs().max().item()
print(f"two updates move a pixel up to {moved_by:.2f};\nwith kernels it ends up to {apart:.0e} off")
assert apart < 1e-3 * moved_by
plots.image_grid(toy.preprocess.inverse(torch.cat([plain_set.images, fast_set.images])).clamp(0, 1).detach().cpu(),
                 torch.cat([plain_set.labels, fast_set.labels]).cpu(), toy.classes, caption="left: plain torch, right: kernels")

# %% [markdown]
# ## The paper and us
# None of the five papers behind this book (DDPP, ESP, GLD, SKD, PoDD) reports kernels, and nothing of what the paper on Triton measures is
# repeated here. So *ours* stands alone: rows of `book/results/bench.csv`, made by `make bench` on whatever device it finds. Each operation
# with its gradient in three forms, interleaved in one process, medians of five: milliseconds, and in brackets the bandwidth that the
# floor's bytes correspond to, over that of copying a large tensor on the same device. So a form that moves more than the floor has less.
# Sizes on a GPU are larger than on a CPU, and fill it; neither are those of the first table. *Compiled* is `torch.compile`. *Side by side*
# are experts whose weights are stacked, so that one operation trains all of them (the library does so on a GPU).

# %%
path = runs.ROOT / "book" / "results" / "bench.csv"
rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines())) if path.is_file() else []
def told(row):
    """Milliseconds and the share of copying."""
    share = float(row["share_of_copy"] or 0)
    return f"{1e3 * float(row['seconds']):.2f} ({share:.0%})" if share >= 0.01 else f"{1e3 * float(row['seconds']):.2f} (<1%)"


for where in sorted({(row["device"], row["driver"], row["torch"]) for row in rows}):
    at = [row for row in rows if (row["device"], row["driver"], row["torch"]) == where]
    timed = {(row["operation"], row["case"], row["form"]): row for row in at}
    forms = [form for form in ("eager", "compiled", "kernel") if any(row["form"] == form for row in at)]
    lines, cases = [], []
    for operation, case in dict.fromkeys((row["operation"], row["case"]) for row in at if row["operation"] != "step"):
        found = [timed.get((operation, case, form)) for form in forms]
        lines.append((f"{operation} [{len(lines) + 1}]", *(told(row) if row else "not possible" if form == "compiled" else papers.NOT_RUN
                                                           for form, row in zip(forms, found, strict=True))))
        cases.append(f"[{len(lines)}] {case}")
    copying = f"ms (of copying, which moves {float(at[0]['copy_gb_per_s']):.0f} GB/s)" + (
        "" if "kernel" in forms else f"; kernels: {papers.NOT_RUN}")
    display(papers.Table(("operation", *forms), tuple(lines), (copying, "; ".join(cases)), numeric=frozenset(forms),
                         caption=f"{where[0]}, torch {where[2]}"))
    cases = list(dict.fromkeys(row["case"] for row in at if row["operation"] == "step"))
    steps = tuple((f"{row['form']} [{cases.index(row['case']) + 1}]", f"{float(row['seconds']):.3f}")
                  for row in at if row["operation"] == "step")
    display(papers.Table(("form", "seconds"), steps, ("; ".join(f"[{k}] {case}" for k, case in enumerate(cases, start=1)),),
                         numeric=frozenset({"seconds"}), caption=f"Whole steps, {where[0]}"))
if not any(row["form"] == "kernel" for row in rows):
    print("kernels on a GPU: not run")

# %% [markdown]
# On a CPU `torch.compile` is no answer to everything. It wins where many small operations become one (`trajectory`, colours, cutout,
# flips, SKD's rows) and loses where plain torch calls one good routine that it replaces by loops of its own (sampling under rotation, the
# derivative of a norm, a matrix product). And `block` with its gradient's gradient it cannot do at all. Experts side by side are slower
# there than one at a time: one core is busy with one. On a GPU the small networks should leave most of the device idle, which is why the
# library stacks them there; that, too, is *not run*.
#
# **What this chapter shows and what it does not**
#
# 1. *Correct*, as far as a CPU can tell. This page compares `trajectory` in full and runs three kernels in a distillation. The library's
#    tests compare all six, with their derivatives, in odd shapes, half precision and at extreme values, run the `tiny` preset of every
#    method with kernels and without, and compile every kernel for GPUs of compute capability 9.0.
# 2. *Fast*: not shown. Nobody has run these kernels on a GPU for this page. The estimates above leave out too few programs, registers
#    that do not suffice and spill into memory, loads that are not from neighbouring addresses, and caches.
# 3. *On a CPU* nothing changes: plain torch runs.
# 4. *Not written*: a convolution. It is most of the arithmetic of a step, and the libraries that torch calls for it are hard to beat.
#
# ## Exercises
# Solutions are folded below each question.
#
# **1. Change a number.** The kernel by hand has blocks of 1,024. Try blocks of 64 and of 8,192 for the same vectors. What changes in the
# result, and what in the number of programs? What would that mean for the $P=320{,}010$ parameters of a network on a GPU with 132
# processors?

# %% tags=["hide-cell"]
if kernels.AVAILABLE:
    for K in (64, 1024, 8192):
        loss, kept = by_hand(*vectors, 0.1, K=K)
        print(f"blocks of {K:>5,}: {-(-num_params // K):>3} programs, loss {loss:.7f}, kept {kept:.2%}")
chapter.answer("The count is the same, the loss differs in the last digits at most: sums are taken in another order. 320,010 parameters "
               "are 40 programs of 8,192, so most of 132 processors would have nothing to do; 313 of 1,024 are two or three for each. "
               "5,001 of 64 keep all busy, but each has little to do for its start, and leaves three sums that somebody has to add.")

# %% [markdown]
# **2. Change an equation.** Write the gradient of the loss as a second kernel, for `student`, `target` and `start` of the cell under *The
# library*, whose `plain_gradient` is the answer: read $s$ and $t$, decide the mask again, write
# $2m_p(s_p-t_p)$ over the denominator (get it from plain torch: `trajectory.keep_mask(s, t, 0.1)` is the mask). Why decide the mask again
# instead of storing it in the first pass?

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
               "where memory is what one waits for. A stored mask is one more thing to write and to read, a byte a parameter each.")

# %% [markdown]
# **3. Bring your data.** Choose a formula of your own that plain torch computes in several operations, such as the cosine of matching rows
# of two matrices. Write down its floor, count what plain torch moves, and say what a kernel could win at 64 and at a million rows.

# %% tags=["hide-cell"]
for count in (64, 1_000_000):
    one, other = normal(count, 10), normal(count, 10)
    with traffic.Traffic() as found:
        (one * other).sum(dim=1) / (one.norm(dim=1) * other.norm(dim=1))
    floor = 2 * one.numel() * 4 + 4 * count
    print(f"{count:>7,} rows: {found.launches} launches, {found.bytes / floor:.1f} times the floor; "
          f"{about_us(found.launches, found.bytes):.0f} µs against {about_us(1, floor):.0f}")
chapter.answer("The floor (of the value, without a gradient) is reading both and writing one number a row. With 64 rows all is "
               "launching, and one launch instead of six is the whole gain. With many rows bytes begin to count, and the gain comes "
               "near the ratio of bytes. (A row of zeros would need an epsilon below.)")
