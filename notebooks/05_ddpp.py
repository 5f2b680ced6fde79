# %% [markdown]
# # 5. Parameter pruning
#
# *About two and a half minutes and 1.5 GB on one CPU core. Paper: Li, Togo, Ogawa and Haseyama, "Dataset Distillation Using
# Parameter Pruning", IEICE Transactions 2024 (DDPP). It builds on chapter 4: Cazenavette et al., "Dataset Distillation by
# Matching Training Trajectories", CVPR 2022 (MTT).*
#
# ## Why
# In MTT, a network trained on a few synthetic images (the *student*) should arrive where a network trained on all real images
# (the *expert*) is. "Where" means the distance over **every** parameter. But a handful of images may be unable to move some
# parameters where the expert has them, whatever the images show, and the images are bent in the attempt. DDPP has a simple
# answer: find the parameters in which student and expert disagree by more than a factor $1/\epsilon=10$, and leave them out of the
# distance.
#
# The idea is one line of code. What that line really removes is another question, and most of this chapter looks at it: with the
# numbers of a real student and a real expert, and with a slider.

# %%
import contextlib
import io
import math
import re
import statistics
from dataclasses import asdict, replace

import torch
from IPython.display import display

from ddlib import chapter, data, distilled, evaluate, experts, methods, models, papers, plots, runs, select, train, unroll, widgets
from ddlib.methods import ddpp, mtt

# %% tags=["parameters"]
preset: str = "cpu"               # "tiny" | "cpu" | "gpu" | "cifar10-ipc10" | ... (all of ddpp.PRESETS)
ipc: int = 0                      # images per class; 0: the preset's
epsilon: float = 0.1              # pruning threshold; the paper uses 0.1 everywhere
sign_rule: str = "signed"         # how a negative ratio is read: "signed" | "absolute" | "off"
steps: int = 0                    # updates of the images in the main run; 0: the preset's
protocol: str = "strict-cpu"      # how results are evaluated: a name in evaluate.PROTOCOLS
repeats: int = 3                  # networks trained on each set of the main run
ablation_steps: int = 30          # updates of the images in each run of the ablation
ablation_seeds: int = 2           # distillations of each setting of the ablation
ablation_repeats: int = 2         # networks trained on each of them
seed: int = 0
out: str = ""                     # folder for the results; empty: one below runs/05_ddpp
results: str = ""                 # CSV file that gets the rows of this run; empty: none

# %%
config = replace(methods.preset(ddpp, preset), epsilon=epsilon, sign_rule=sign_rule, seed=seed)
config = replace(config, ipc=ipc or config.ipc, steps=steps or config.steps, unroll="plain" if preset == "cpu" else config.unroll)
recipe = evaluate.with_options(protocol, network=config.network, width=config.width, repeats=repeats)
name = f"{preset}-ipc{config.ipc}-{config.sign_rule}-{config.epsilon:g}-{config.steps}-{seed}"
folder = runs.Path(out) if out else runs.folder("05_ddpp", name)
real = runs.load_data(config).to(runs.pick_device())
explained = ("dataset", "width", "ipc", "steps", "syn_steps", "expert_epochs", "max_start", "pixel_lr", "alpha", "alpha_lr", "epsilon",
             "sign_rule", "min_kept")
papers.Table(("setting", "value"), tuple((name, str(asdict(config)[name])) for name in explained),
             caption=f"Preset {preset}: the last three settings are DDPP's, the others stand in chapter 4's table of letters")

# %% [markdown]
# ## The equation
# An expert has left its parameters after every epoch of its training. Let $\theta_i\in\mathbb R^P$ be those after epoch $i$, with
# $P$ the number of parameters. The student starts from $\theta_i$ and takes $J$ steps of gradient descent on the synthetic
# images; call the result $s\in\mathbb R^P$. It should be at $t=\theta_{i+K}$, the expert $K$ epochs later. (In chapter 4 these three
# were $\theta^*_i$, $\theta_J$ and $\theta^*_{i+K}$.) MTT's loss is the squared distance that is left, as a share of the squared way:
#
# $$
# \mathcal L_{\mathrm{MTT}}=\frac{\lVert s-t\rVert_2^2}{\lVert\theta_i-t\rVert_2^2}.
# $$
#
# DDPP tests every coordinate $p=1,\dots,P$ of the two vectors with a threshold $\epsilon$. A coordinate is *difficult*, and pruned, if
# one of its two ratios is small:
#
# $$
# \frac{s_p}{t_p}<\epsilon\quad\text{or}\quad\frac{t_p}{s_p}<\epsilon .
# $$
#
# The remaining coordinates form shorter vectors $s'$, $t'$ and $\theta_i'$, and the loss is the same on those:
#
# $$
# \mathcal L_{\mathrm{DDPP}}=\frac{\lVert s'-t'\rVert_2^2}{\lVert\theta_i'-t'\rVert_2^2}.
# $$
#
# A pruned coordinate is missing in the numerator *and* in the denominator. The test is made anew in every update of the images,
# with that update's student.
#
# ## By hand
# First with a pencil. Five coordinates, their smaller ratio, and the squares that MTT adds up:
#
# | coordinate | 1 | 2 | 3 | 4 | 5 | sum |
# |---|---|---|---|---|---|---|
# | $\theta_i$ | 0.1 | 0.1 | 0 | 0.000001 | 0 | |
# | $s$ | 0.3 | 0.02 | 0.2 | 0.000001 | 0 | |
# | $t$ | 0.28 | 0.3 | 1 | −0.000001 | 0 | |
# | smaller ratio | 0.93 | 0.07 | 0.2 | −1 | 0/0 | |
# | $(s-t)^2$ | 0.0004 | 0.0784 | 0.64 | 0 | 0 | 0.7188 |
# | $(\theta_i-t)^2$ | 0.0324 | 0.04 | 1 | 0 | 0 | 1.0724 |
#
# So $\mathcal L_{\mathrm{MTT}}=0.7188/1.0724=0.670$. At $\epsilon=0.1$ coordinate 2 goes, and $\mathcal L_{\mathrm{DDPP}}=
# 0.6404/1.0324=0.620$, whether 4 goes or not. Does it? The paper leaves this open: a *negative* ratio, that is a **sign flip**
# ($s_p$ and $t_p$ have opposite signs), is below every $\epsilon\ge0$ if it is read literally. Three readings are possible:
#
# * **signed**: the inequality as printed. Every sign flip is pruned, whatever $\epsilon$. This is our default.
# * **absolute**: signs are ignored, and $|s_p/t_p|$ and $|t_p/s_p|$ are compared with $\epsilon$.
# * **off**: nothing is pruned, which is MTT.

# %% tags=["nbval-check-output"]
start_five = [0.10, 0.10, 0.00, 1e-6, 0.0]
s_five = [0.30, 0.02, 0.20, 1e-6, 0.0]
t_five = [0.28, 0.30, 1.00, -1e-6, 0.0]


def divide(a, b):
    return math.nan if a == b == 0 else math.copysign(math.inf, a) if b == 0 else a / b


def pruned(a, b, threshold, sign=True):
    ratios = [ratio if sign else abs(ratio) for ratio in (divide(a, b), divide(b, a))]
    return any(ratio < threshold for ratio in ratios)             # nan < x is false: 0/0 stays


def loss_of(numbers):
    """The loss on some of the five coordinates alone."""
    s_start_t = [(s_five[p - 1], start_five[p - 1], t_five[p - 1]) for p in numbers]
    return sum((a - c) ** 2 for a, _, c in s_start_t) / sum((b - c) ** 2 for _, b, c in s_start_t)


for number, (a, b) in enumerate(zip(s_five, t_five), start=1):
    print(f"{number}: s/t {divide(a, b):5.2f}, t/s {divide(b, a):5.2f}")
assert abs(loss_of([1, 2, 3, 4, 5]) - 0.670) < 5e-4 and abs(loss_of([1, 3, 5]) - 0.620) < 5e-4
print(f"loss: MTT {loss_of([1, 2, 3, 4, 5]):.3f}, DDPP {loss_of([1, 3, 5]):.3f}, on 2 and 4 alone {loss_of([2, 4]):.2f}")
for threshold in (0.0, 0.1, 0.5):
    for rule, sign in (("signed", True), ("absolute", False)):
        by_loop = [not pruned(a, b, threshold, sign) for a, b in zip(s_five, t_five)]
        assert by_loop == ddpp.keep_mask(torch.tensor(s_five), torch.tensor(t_five), threshold, rule).tolist()
        print(f"epsilon {threshold}, {rule:>8}: prunes {[number for number, keep in enumerate(by_loop, start=1) if not keep]}")

# %% [markdown]
# Coordinate 3 is far from its target and makes up nine tenths of the sum of squares; its ratio is 0.2, so at $\epsilon=0.1$ it
# stays. Coordinate 4 differs by two millionths, which nobody would miss; its ratio is $-1$, so it is pruned if signs count. **A
# ratio knows no scale**: the test asks whether two numbers differ by a large *factor*, never whether they differ by much. And the
# lines with $\epsilon=0$ tell when DDPP becomes MTT at $\epsilon=0$: only in the absolute reading.
#
# Now a real pair. A few experts are trained (half a minute; chapters 4 and 6 use the same ones), and a student takes its $J$
# steps on one real image per class, from where an expert was at its start:

# %%
with contextlib.redirect_stdout(io.StringIO()):                   # not the folder and the minutes
    buffer = experts.train(real, config.experts())
net = models.build(config.network, shape=real.shape, num_classes=real.num_classes, width=config.width, seed=0)
net = net.to(runs.pick_device())


def follow(first, num_steps=config.syn_steps, syn=None, rate=config.alpha):
    """start, student, target (P,) of expert 0 from epoch `first`; on `syn`, or a photograph per class."""
    rng = runs.stream(seed, "look")
    few = distilled.PixelSet.from_real(real, 1, rng) if syn is None else syn
    batch = mtt.draw_batches(few, replace(config, syn_steps=num_steps, syn_batch=0), config.augment, rng)
    start, target = buffer.snapshots(0, first, first + config.expert_epochs)[[0, -1]]
    student = unroll.unroll(net, start, (few.images.detach(),), batch, steps=num_steps, rate=rate, form="plain")
    return start, student.detach(), target


start, student, target = follow(first=0)
ratio = torch.minimum(student / target, target / student)         # (P,) the smaller one; nan for 0/0
by_hand = ~(ratio < 0.1)                                          # (P,) what stays
print(f"{len(student):,} parameters; the student has covered {1 - mtt.matching_loss(student, target, start):.0%} of the squared way")

# %% [markdown]
# ## The library
# `ddpp.keep_mask` gives the same answer without ever dividing by zero: with $m=\max(|s_p|,|t_p|)$ the smaller ratio is
# $(s_p/m)(t_p/m)$, which is finite whenever $m>0$. If $m=0$, then $s_p=t_p=0$: the two agree, and the coordinate is kept.
# `ddpp.loss_terms` makes the mask and both losses, and refuses to go on when too little is left:

# %% tags=["nbval-check-output"]
keep = ddpp.keep_mask(student, target, 0.1)
whole = mtt.matching_loss(student, target, start)
assert torch.equal(keep, by_hand)
assert torch.allclose(ddpp.pruned_loss(student, target, start, keep), mtt.matching_loss(student[keep], target[keep], start[keep]))
print("by hand and library keep the same parameters:", torch.equal(keep, by_hand))
for rule in ("signed", "absolute"):
    same = torch.equal(ddpp.pruned_loss(student, target, start, ddpp.keep_mask(student, target, 0.0, rule)), whole)
    print(f"epsilon = 0, {rule}: the loss is MTT's: {same}")
try:
    ddpp.loss_terms(student, target, start, replace(config, epsilon=1.0))
except methods.Diverged:
    print("epsilon = 1: stopped, less than the share min_kept of the parameters is left")

# %% [markdown]
# Which parameters are these? By kind: how many are pruned at $\epsilon=0.1$ (signed), and what part of MTT's whole numerator and
# whole denominator goes with them. Every column adds up to its last line. Below, the same parameters by size.

# %%
words = {"0.weight": "weights", "0.bias": "biases", "1.weight": "scales", "1.bias": "shifts"}     # of a block


def layer_name(parameter):
    if parameter.startswith("head."):
        return "last layer, weights" if parameter.endswith("weight") else "last layer, bias"
    block = re.fullmatch(r"body\.(\d+)\.(.*)", parameter)
    return f"block {int(block[1]) + 1}, {words.get(block[2], block[2])}"


layers = {layer_name(parameter): weight.numel() for parameter, weight in net.named_parameters()}
split = lambda vectors: dict(zip(layers, vectors.split(list(layers.values()), dim=-1)))
gone, flips = ~keep, student.sign() * target.sign() < 0
numerator, denominator = (student - target).square(), (start - target).square()
counted = torch.stack([torch.ones_like(gone), gone, gone * numerator / numerator.sum(), gone * denominator / denominator.sum()])
sums = {}
for title, part in split(counted.double()).items():
    group, _, kind = title.partition(", ")
    kind = kind if group.startswith("block") else group
    sums[kind] = sums.get(kind, 0) + part.sum(dim=1)
sums["all"] = counted.double().sum(dim=1)
columns = ("parameters", "pruned", "numer\u00adator, %", "denom\u00adinator, %")
lines = tuple((kind, f"{num_gone:.0f} of {count:,.0f}", f"{100 * above:.1f}", f"{100 * below:.1f}")
              for kind, (count, num_gone, above, below) in sums.items())
display(papers.Table(columns, lines, numeric=frozenset(columns[1:]), caption="What goes at epsilon 0.1 (signed)"))
order = target.abs().argsort()
tenths = [[100 * float(chosen[part].float().mean()) for part in order.tensor_split(10)] for chosen in (gone, gone & flips)]
with plots.style():
    fig = plots.figure(plots.HALF)
    ax = fig.subplots()
    ax.bar(range(10), tenths[0], 0.75, color="#e8590c", label="signs agree")
    ax.bar(range(10), tenths[1], 0.75, color="#8b1a0e", label="signs differ")
    ax.set_xticks(range(10), range(1, 11))
    ax.set_xlabel("tenth of the parameters, by size in the expert")
    ax.set_ylabel("pruned, %")
    ax.legend()
fig

# %% [markdown]
# What stands out:
#
# *Pruning is a matter of size.* Nearly all of it happens among the smallest parameters, at the left of the figure.
#
# *Sign flips rule.* Four of five pruned parameters have opposite signs in student and expert. At $\epsilon=0.1$ the sign alone
# accounts for two thirds of the mask: the absolute reading prunes 2 % instead of 6 %, as the table below says. (Not four fifths,
# because some flips have a ratio between $-0.1$ and 0, and go either way.)
#
# *The shifts of the norm layers* are pruned more often than anything else. They start at exactly 0, so they are small, and a
# small number changes by a large factor easily. *The biases of the convolutions* are never pruned, and it does not matter: the
# norm behind them subtracts them again, they never move, their ratio is 1, and they add nothing to either sum.
#
# *Numerator and denominator lose similar shares*, so the loss cannot change much. Why? Let $b$ be the part of the denominator that
# is pruned, and $\mathcal L_{\mathrm{out}}$ MTT's loss on the pruned coordinates alone. Sums of squares add up, coordinate by
# coordinate:
#
# $$
# \mathcal L_{\mathrm{MTT}}=(1-b)\,\mathcal L_{\mathrm{DDPP}}+b\,\mathcal L_{\mathrm{out}},\qquad\text{so}\qquad
# \mathcal L_{\mathrm{MTT}}-\mathcal L_{\mathrm{DDPP}}=b\,(\mathcal L_{\mathrm{out}}-\mathcal L_{\mathrm{DDPP}}).
# $$
#
# A student that has not moved, $s=\theta_i$, has $(s_p-t_p)^2=(\theta_{i,p}-t_p)^2$ for every $p$: numerator and denominator
# lose exactly the same, and all three losses are 1. Ours has covered a third of the squared way: the losses have not moved far
# apart, and $b$ is small besides. Check the identity on the five coordinates: $b=0.04/1.0724=0.037$ and $\mathcal
# L_{\mathrm{out}}=0.0784/0.04=1.96$, so $0.963\cdot0.620+0.037\cdot1.96=0.670$. There the pruned coordinates moved *away*:
# parameters that are out of reach have $\mathcal L_{\mathrm{out}}\ge1$. What does the real pair have?

# %%
def loss_on(part):
    """MTT's loss on the coordinates `part` (P,) alone."""
    return float(ddpp.pruned_loss(student, target, start, part))


lines = [("off", "0", "0", "-", f"{whole:.2f}")]
for rule, e in (("absolute", 0.1), ("signed", 0.1), ("signed", 0.5), ("signed", 0.9), ("absolute", 0.9)):
    stays = ddpp.keep_mask(student, target, e, rule)
    b = float(denominator[~stays].sum() / denominator.sum())
    assert abs((1 - b) * loss_on(stays) + b * loss_on(~stays) - whole) < 1e-3
    lines.append((f"{rule} {e:g}", f"{100 * (~stays).float().mean():.0f}", f"{b:.2f}", f"{loss_on(~stays):.2f}", f"{loss_on(stays):.2f}"))
columns = ("rule", "pruned, %", "b", "loss on pruned", "loss on kept")
display(papers.Table(columns, tuple(lines), numeric=frozenset(columns[1:]),
                     caption="b: the pruned part of the denominator; then L_out and L_DDPP"))
unmoved = ~ddpp.keep_mask(start, target, 0.1)                     # a student that has not moved
small = target.abs() < target.abs().median()                      # the smaller half of the expert's
of_flips, of_small, shared = (float(part[gone].float().mean()) for part in (flips, small, unmoved))
if preset == "cpu":         # with seeds 0 to 2: up to 0.90, up to 0.03, and from 79, 99 and 75 %
    assert loss_on(gone) < 0.97 and whole - loss_on(keep) < 0.06 and min(of_flips, of_small, shared) > 0.65
print(f"Of the parameters pruned at epsilon 0.1, {of_flips:.0%} have opposite signs,\n{of_small:.0%} belong to the smaller half, "
      f"and {shared:.0%} would be pruned for a student\nwithout a single step.")

# %% [markdown]
# The loss on the pruned parameters is below 1: the student brings these nearer as well, if less than the others. At $\epsilon=0.1$
# pruning them changes the loss by a few hundredths. **Only there**: at 0.9 nine tenths of the squared way are pruned and the
# loss is halved. But now what stays are mostly parameters that *have* come within a tenth of their target. Their loss is low
# because they were selected for it, and they have little left to teach. Exercise 2 has a control: the same number pruned by the
# plain difference $|s_p-t_p|$. It takes half of both sums, so the similar shares are no property of the ratio.
#
# The printed line says what the mask holds. Most small parameters keep their sign during the student's 20 steps, so 78 % of the mask
# is there without a step: pruned are, for the most part, the small parameters whose sign **the expert** changed, and that the student
# has not turned as well; 22 % are the student's own doing. The paper reads the mask as the parameters that are *difficult* to match. If
# they are, a better student leaves them behind, too. Exercise 1 asks the distilled images of this chapter: they clear half to two thirds
# of what is pruned without a step. What then remains is mostly (59 to 68 %) what the expert changed and they did not. So the mask is
# partly "difficult", and it holds more of what has not been learned yet.
#
# ## Try it
# The same three vectors are stored in this page, and the browser tests all their coordinates while you move the slider. Each
# picture shows the parameters of one layer; those in the shaded range are pruned. Things to try: slide to 0 and switch between
# the two readings; look for the slope of the clouds in blocks 2 and 3, which says that low ratios belong to small parameters (the few
# dots at the top right are the norm layers' scales: they start at 1 and stay near it); slide to 0.9, where the paper warns of too much
# pruning, and read how little of the numerator is left. The cell below the explorer needs a kernel and shows nothing on this page.

# %%
thin = -(-len(student) // 20_000)                                 # a large network is shown by every n-th parameter
shown = [torch.cat([part[::thin] for part in split(vector).values()]) for vector in (student, target, start)]
widgets.epsilon_explorer(*shown, {title: -(-count // thin) for title, count in layers.items()}, at=0.1, uid="epsilon")

# %% tags=["live"]
# Live (needs a kernel): the pruned share of every layer, for a start at another epoch.
def shares(first):
    _, student, target = follow(first)
    lost = ~ddpp.keep_mask(student, target, epsilon, sign_rule)
    return plots.bars({title: 100 * float(part.float().mean()) for title, part in split(lost).items()}, ylabel="pruned, %",
                      title=f"epsilon {epsilon:g}, from epoch {first} to {first + config.expert_epochs}")


widgets.live(shares, label="epoch of the start", first=list(range(buffer.num_epochs - config.expert_epochs + 1)))

# %% [markdown]
# ## A small run
# DDPP with the parameters above, and MTT with the same experts, the same first images and the same random numbers: the same run
# without pruning. The table has, as means of 25 updates, the loss that DDPP minimises, both runs' loss on all parameters, and the share
# that DDPP prunes. (The runs' own logs are not stored on this page.)
#
# Then fresh networks are trained on each set, as many as on random images, and see the test set once.

# %%
with contextlib.redirect_stdout(io.StringIO()) if preset == "cpu" else contextlib.nullcontext():
    result = runs.run(ddpp, config, folder / "ddpp", real=real)
    unpruned = runs.run(ddpp, replace(config, sign_rule="off"), folder / "mtt", real=real)
pruned_share = [100 * (1 - kept) for kept in result.metrics()["kept"]]
logs = [result.metrics()["match"], result.metrics()["mtt"], unpruned.metrics()["mtt"], pruned_share]
lines = tuple((f"{at + 1} to {min(at + 25, config.steps)}", *(f"{statistics.mean(log[at:at + 25]):.2f}" for log in logs))
              for at in range(0, len(pruned_share), max(25, config.steps // 150 * 25)))
columns = ("updates", "DDPP, kept", "DDPP, all", "MTT, all", "pruned, %")
display(papers.Table(columns, lines, numeric=frozenset(columns[1:]), caption=f"Losses, and what {sign_rule} at epsilon {epsilon:g} prunes"))
with plots.style():
    fig = plots.figure(plots.HALF)
    ax = fig.subplots()
    ax.plot(result.metrics()["step"], pruned_share, ".", color=plots.METHOD_COLORS["DDPP"])
    ax.set_ylim(bottom=0)
    ax.set_xlabel("update of the images")
    ax.set_ylabel("parameters pruned, %")

random_sets = [select.random(real, config.ipc, runs.stream(seed, "random", k)) for k in range(repeats)]
command = (f"make run CHAPTER=05 ARGS='-p preset {preset} -p ipc {config.ipc} -p epsilon {epsilon:g} -p sign_rule {sign_rule} "
           f"-p steps {config.steps} -p protocol {protocol} -p repeats {repeats} -p seed {seed}'")
sets = {"Random": (random_sets, 0.0), "MTT": (unpruned.syn, unpruned.minutes), "DDPP": (result.syn, result.minutes)}
rows = [evaluate.evaluate(syn, real, recipe, seed=seed, quiet=True).row(method=method, preset=preset, command=command, distilling=minutes)
        for method, (syn, minutes) in sets.items()]
accuracy = {row["method"]: (float(row["accuracy_mean"]), float(row["accuracy_std"])) for row in rows}
photographs = distilled.PixelSet.from_real(real, config.ipc, runs.stream(seed, "mtt"))       # the run's first images
both = torch.cat([each.pixels()[0][::config.ipc][:10] for each in (photographs, result.syn)])
display(plots.image_grid(both, caption="above: photographs; below: distilled by DDPP"), fig)
plots.bars(accuracy, title=f"{config.dataset} at IPC {config.ipc}, {repeats} networks each", size=plots.HALF)

# %% [markdown]
# *Images*: above the photographs that the run started from, below what they have become. *Dots*: the share of the parameters that is
# pruned jumps, because every update draws another expert and another start (exercise 1: most is pruned from epoch 0). It drifts down,
# as the images learn to turn more of the signs. *Bars*: distilled images beat drawn ones. DDPP against MTT is another matter: their
# difference is far below the spread, and one pair of runs cannot tell them apart. Chapter 4 shows how little it takes: its run is the
# MTT of this page, with the same seed, experts and test networks. Only the gradient is computed in another way (`remat` there,
# `plain` here), so that sums are taken in another order. **Rounding alone** moves the accuracy from 71.2 to 70.8 %; DDPP differs from
# MTT by 0.2 points.
#
# The spread has two sources. *Networks*: the same images train better or worse from other initial weights. *Distillations*:
# another seed draws other first images, other experts, other starts, and ends in other images. An **ablation**, the same
# experiment with parts changed, has to repeat both. The next cell does so for a few settings, with short runs and on
# **validation images**: it serves to look, and no test image should be spent on it.
#
# *Figure*: every dot is one distillation, its height the mean over its networks; where there are more than two, a band is MTT's (off)
# mean, plus and minus the deviation over its distillations. *Table*: the two spreads as standard deviations, over the sets and over the
# networks of one set. One seed means the same first images, experts and networks in every setting, so the last column compares with MTT
# seed by seed: mean and deviation of the differences. Two pairs give no deviation to rely on. A larger ablation (150 updates, test
# images, rows of `book/results/ddpp_ablation.csv` with their commands) follows in the same form.

# %%
def spread(values):
    """The mean, and the deviation if there are several values; nan for what cannot be said."""
    values = list(values) or [math.nan]
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else math.nan


def minus_off(group, base):
    """Mean and deviation of the differences between distillations of one seed."""
    return spread(group[key][0] - base[key][0] for key in group.keys() & base.keys())


def report(found, caption, ylabel="test accuracy, %"):
    """Figure and table of {(rule, epsilon): {seed: (mean accuracy, deviation over networks)}}."""
    places, lines = {}, []
    for (rule, e), group in sorted(found.items(), key=lambda item: item[0][::-1]):
        threshold = "" if rule == "off" else f"{e:g}"
        places.setdefault(threshold or "off", {})[rule] = [mean for mean, _ in group.values()]
        mean, over_sets = spread(mean for mean, _ in group.values())
        over_networks = statistics.mean(deviation for _, deviation in group.values())
        difference = "-" if rule == "off" else "{:+.1f}±{:.1f}".format(*minus_off(group, found.get(("off", 0.0), {})))
        lines.append((f"{rule} {threshold}".strip(), f"{mean:.1f}", f"{over_sets:.1f}", f"{over_networks:.1f}", difference))
    display(plots.dots(places, "epsilon, pruning threshold", ylabel, title=",".join(caption.split(",")[:2]),
                       band="off" if max(map(len, found.values())) > 2 else None,
                       colors={"signed": "#8b1a0e", "absolute": "#e8590c", "off": plots.METHOD_COLORS["MTT"]}))
    names = ("rule", "mean, %", "± sets", "± nets", "minus off")
    display(papers.Table(names, tuple(lines), caption=caption, numeric=frozenset(names[1:])))


def validate(syn, of_seed):
    """Mean and deviation, in % of the validation images, of `ablation_repeats` networks."""
    nets = [evaluate.train_network(syn, real, recipe, of_seed, repeat).net for repeat in range(ablation_repeats)]
    return spread(100 * train.accuracy(net, real.validation, real.preprocess) for net in nets)


ablation, left, kept = {}, {}, {}                                 # accuracies, last losses, shares
for rule, e in (("off", 0.0), ("signed", 0.1), ("signed", 0.9)):
    for other in range(seed, seed + ablation_seeds):
        shorter = replace(config, sign_rule=rule, epsilon=e, seed=other, steps=ablation_steps, min_kept=0.0)
        updates = [(step.losses, step.syn) for step in ddpp.distill(real, shorter)]
        ablation.setdefault((rule, e), {})[other] = validate(updates[-1][1], other)
        left.setdefault((rule, e), []).append(statistics.mean(losses["mtt"] for losses, _ in updates[-10:]))
        kept.setdefault((rule, e), []).append(statistics.mean(losses["kept"] for losses, _ in updates))
report(ablation, f"{config.dataset} at IPC {config.ipc}, {ablation_steps} updates, {ablation_seeds} sets each", "validation accuracy, %")
loss = unpruned.metrics()["mtt"]                                  # begins as the ablation's run does
print(f"MTT, seed {seed}: after {ablation_steps} updates loss {statistics.mean(loss[:ablation_steps][-10:]):.2f} and "
      f"{ablation['off', 0.0][seed][0]:.1f} % on validation images,\n"
      f"after all {config.steps} updates loss {statistics.mean(loss[-10:]):.2f} and {validate(unpruned.syn, seed)[0]:.1f} %")

gain = accuracy["DDPP"][0] - accuracy["Random"][0]                # in points, as the next line
cost = -minus_off(ablation["signed", 0.9], ablation["off", 0.0])[0]
higher = statistics.mean(left["signed", 0.9]) - statistics.mean(left["off", 0.0])
is_default = (preset, ipc, steps, epsilon, sign_rule, protocol, ablation_steps, ablation_seeds, ablation_repeats) == (
    "cpu", 0, 0, 0.1, "signed", "strict-cpu", 30, 2, 2)
assert (gain > 5 and cost > 1 and higher > 0.04) or not is_default
print(f"DDPP beats Random by {gain:.1f} points (claim: more than 5). epsilon = 0.9 costs\n{cost:.1f} points (claim: more than 1), "
      f"and its loss on all parameters ends\n{higher:.2f} higher than MTT's (claim: more than 0.04).\n"
      f"It prunes {1 - statistics.mean(kept['signed', 0.9]):.0%} of the parameters, as a mean over its updates; "
      f"epsilon = 0.1 {1 - statistics.mean(kept['signed', 0.1]):.0%}.")

larger = {}
for row in evaluate.read_rows(runs.ROOT / "book" / "results" / "ddpp_ablation.csv"):
    named = re.match(r"(signed|absolute|off)(?:, epsilon ([\d.]+))?", row["variant"])
    rule, e = named.groups() if named else ("signed", 0.1)        # the complete method has no name
    larger.setdefault((rule, float(e or 0)), {})[row["seed"]] = float(row["accuracy_mean"]), float(row["accuracy_std"])
if larger:
    count = max(map(len, larger.values()))
    report(larger, f"{row['dataset']} at IPC {row['ipc']}, larger ablation, {count} sets, {row['n']} networks each")
else:
    print("the larger ablation:", papers.NOT_RUN)

# %% [markdown]
# From $\epsilon=0.01$ to $0.5$, in either reading, pruning changes less than what two distillations differ by: in the larger ablation all
# differences are within a standard error or two of zero, and none is above half a point. At $\epsilon=0.9$ accuracy is lost with every
# seed, 3 to 4 points there, and the loss on all parameters, which MTT lowers, stays higher: in a mean update, 43 % of the parameters are
# asked for nothing. This cell, run with `seed` 0, 1 and 2 (four distillations per setting, since neighbours share one), found a cost of
# 2.8, 7.7 and 6.9 points and a loss higher by 0.09, 0.13 and 0.13. (The guard `min_kept` is off in the ablation. The absolute reading
# prunes nearly the same parameters at 0.9, as the table of losses above shows.) The short runs are the first updates of longer ones, at
# the same rates, which were chosen on validation images; the printed lines say how far they are from all updates. Most of the loss falls
# early: in the table of the small run it hardly moves after update 75.
#
# ### Chest X-rays
# The paper also distils chest X-rays of four classes (COVID-19, lung opacity, normal, viral pneumonia) from the COVID-19
# Radiography Database (Chowdhury et al., IEEE Access 2020; Rahman et al., Computers in Biology and Medicine 2021; gathered from
# several archives, some of them for research only), with a ConvNet of five blocks at $112\times112$ pixels. The hope is
# practical: hospitals may not share patients' images, and might share a few synthetic ones. The code is the same, only the preset
# is another: `make run CHAPTER=05 ARGS="-p preset covid-cxr-ipc1"` is the full run.
#
# Two warnings belong to it. **The classes come from different hospitals**, from other devices and partly from patients of other
# ages. A network can tell the hospitals apart, by the borders, marks and contrast of their images, and need not look at a lung at
# all: an accuracy on these classes means nothing clinical, neither ours nor the paper's. And distilled images **start as
# photographs of patients**: an image that few updates have changed is still a patient's image, so none is shown here, and nothing
# in this book shows that distilled ones are safe to share.
#
# The cell takes a few updates on a part of the X-rays if they are on this machine, and anyway on clothes enlarged to 112 pixels,
# which shows that the path runs.

# %%
def a_few_updates(images, count=40):
    """DDPP with ConvNet-5, `count` images per class: a narrow expert of two epochs, three updates."""
    part = torch.cat([images.train.of_class(c)[:count] for c in range(images.num_classes)])
    images = replace(images, train=data.Split(images.train.images[part], images.train.labels[part]))
    small = replace(ddpp.PRESETS["covid-cxr-ipc1"], dataset=images.name, width=16, num_experts=1, buffer_epochs=2, buffer_batch=32,
                    syn_steps=3, expert_epochs=1, max_start=1, steps=3, seed=seed)
    with contextlib.redirect_stdout(io.StringIO()):
        *_, step = ddpp.distill(images.to(runs.pick_device()), small)
    print(f"{images.name}: {step.index} updates of a set of shape {tuple(step.syn.images.shape)}, all losses finite")


try:
    a_few_updates(data.load("covid_cxr"))
except FileNotFoundError:
    print("The chest X-rays are not on this machine: only the clothes are distilled.")
clothes = data.load("fashion_mini")
enlarged = [(split.images[split.labels < 4][:400].repeat_interleave(4, 2).repeat_interleave(4, 3), split.labels[split.labels < 4][:400])
            for split in (clothes.train, clothes.test)]
a_few_updates(data.ImageSet.from_arrays(*enlarged[0], *enlarged[1], classes=clothes.classes[:4], name="enlarged clothes"))

# %% [markdown]
# ## The paper and us
# First, what do the paper's gains over MTT mean against the spread that it prints? Each number is a mean over five networks with
# its standard deviation, so the standard error of a difference is $\sqrt{(\sigma_1^2+\sigma_2^2)/5}$. With five networks each, a
# difference of 2.3 errors or more comes by chance alone in one of twenty comparisons; among the fourteen below, expect 0.7 of these.
# (*ZCA whitening*, in the note: a linear map, fitted to the training images, after which their pixels are uncorrelated.)

# %%
def printed(table, dataset, method, ipc, arch):
    cells = papers.published(dataset, method, ipc, eval_arch=arch, paper="DDPP")
    return next(cell for cell in cells if cell.table == table)


cases = [("I", dataset, ipc, "convnet3") for dataset in ("cifar10", "cifar100") for ipc in (1, 10, 50)]
cases += [("III", "cifar10", 10, arch) for arch in ("convnet3", "alexnet", "vgg11", "resnet18")]
cases += [("IV", "covid_cxr", ipc, "convnet5") for ipc in (1, 5, 10, 20)]
lines = []
for table, dataset, ipcs, arch in cases:
    ours, base = (printed(table, dataset, method, ipcs, arch) for method in ("DDPP", "MTT"))
    difference, error = ours.accuracy_mean - base.accuracy_mean, math.hypot(ours.accuracy_std, base.accuracy_std) / math.sqrt(5)
    mark = " [1]" if dataset.startswith("cifar") and mtt.PUBLISHED[dataset, ipcs]["preprocess"] != "zca_a" else ""
    lines.append((f"{table}: {arch if table == 'III' else f'{dataset}, {ipcs}'}{mark}", f"{base.accuracy_mean:.1f}", f"{difference:+.1f}",
                  f"{difference / error:.1f}"))
names = ("table", "MTT", "gain", "errors")
papers.Table(names, tuple(lines), ("MTT's own setting has no ZCA whitening here, DDPP's has",), numeric=frozenset(names[1:]),
             caption="DDPP's gains over MTT as printed, in points and in standard errors; table III: test networks, cifar10 at IPC 10")

# %% [markdown]
# * *Table I.* The gains of 0.1 and 0.2 points on CIFAR-10 are within one error: no evidence of any difference. The 0.3 at 50 images per
#   class and the 0.3 on CIFAR-100 at one are at the edge. The one large gain, 3 points on CIFAR-100 at 10, is many errors wide, but
#   **confounded**, that is, pruning is not the only difference: MTT's own setting for this row, like that for CIFAR-10 at 50, has no ZCA
#   whitening, while DDPP whitens throughout. The gain may be the whitening's; the preset `cifar100-ipc10-as-ddpp` of `ddlib.methods.mtt`
#   is the baseline that would tell. What remains is 0.7 points on CIFAR-100 at 50, where both whiten.
# * *Table III.* On other networks than the one that distilled, the gains are larger: many errors with ResNet-18 and VGG11,
#   but only 1.2 with AlexNet. In this table MTT's ConvNet row is a point lower than in table I (slip b below), so the two methods
#   may not have been measured alike.
# * *Table IV.* On chest X-rays at 5, 10 and 20 images per class the gains of 1.3 to 2.3 points are 4 to 10 errors: the strongest where
#   nothing is confounded and the test network is the one that distilled. At one image per class it is 1.7 points and less than one error.
# * All of these errors are over networks trained on **one** distilled set. They do not hold the spread over distillations, the
#   other source in the ablation above. The true error of every gain is larger, by an amount that the paper does not give.
#
# Beside ours, from `book/results/measured.csv`, then networks that took no part in the distillation, and this run. A dash means that
# no paper prints the number, *not run* that we have not measured it (so, too, where a method has no line). Where a DDPP line has no
# MTT line beside it, it says nothing about pruning. The budget is the same for all methods: the numbers of IPC plain images.

# %%
def narrow(table):
    """What fits a page: the columns that are alike in all rows go into the caption."""
    alike = (sorted({row[column].split("/")[0] for row in table.rows} - {"-"}) for column in (5, 6))
    lines = tuple((f"{method}, {budget}", paper, ours) for method, budget, paper, ours, *_ in table.rows)
    return replace(table, columns=("method, IPC", "paper", "ours (n)"), rows=lines, numeric=frozenset(),
                   caption=f"{table.caption}; ours: {', '.join(next(alike))}, width {', '.join(next(alike)) or 'as in the paper'}")


measured = [row for row in evaluate.read_rows() if row["protocol"] != "strict-cpu-alpha"]
for dataset in ("fashion_mini", "fashion_mnist", "cifar10"):
    if any((row["dataset"], row["method"]) == (dataset, "DDPP") for row in measured):
        display(narrow(papers.beside(measured, dataset=dataset, ipcs=[1, 10], methods=["Random", "DM", "MTT", "DDPP"],
                                     published_as="fashion_mnist" if dataset == "fashion_mini" else None)))
    else:
        print(f"DDPP on {dataset}: {papers.NOT_RUN}")

others = ("alexnet", "vgg11", "resnet18")
found = {(row["method"], row["ipc"], row["eval_arch"]): row for row in measured         # the latest wins
         if row["dataset"] == "fashion_mini" and row["eval_arch"] in others and re.fullmatch(r"(width \d+)?", row["variant"])}
for budget in ("1", "10"):
    cells = {method: [found.get((method, budget, arch)) for arch in others] for method in ("Random", "DM", "MTT", "DDPP")}
    lines = tuple((method, *(f"{float(row['accuracy_mean']):.1f}±{float(row['accuracy_std']):.1f}" if row else papers.NOT_RUN
                             for row in each)) for method, each in cells.items() if any(each))
    if lines:
        networks = sorted({f"{row['eval_arch']}: {row['variant']}, {row['n']} networks" for each in cells.values() for row in each if row})
        display(papers.Table(("method", *others), lines, tuple(networks), numeric=frozenset(others),
                             caption=f"fashion_mini at IPC {budget}, distilled with convnet3, test accuracy of other networks in percent"))
    else:
        print(f"other networks at IPC {budget}: {papers.NOT_RUN}")

changed = "" if (sign_rule, epsilon) == ("signed", 0.1) else sign_rule if sign_rule == "off" else f"{sign_rule}, epsilon {epsilon:g}"
for row in rows if results else []:
    variant = ", ".join(filter(None, [changed if row["method"] == "DDPP" else "", row["variant"]]))
    evaluate.append_row(results, row | {"variant": variant})
narrow(chapter.record(folder, rows, pictures={"distilled": result.syn.show()}, dataset=config.dataset, ipcs=[config.ipc],
                      methods=["Random", "MTT", "DDPP"], eval_arch=config.network, caption=f"this run on {config.dataset}"))

# %% [markdown]
# On other networks, at IPC 1 and at our size, pruning gains nothing that can be seen: DDPP is 1.9 and 2.9 points below MTT on AlexNet
# and VGG11 and 0.7 above it on ResNet-18, with deviations of 1.5 to 3.3 over five networks and one distilled set for each method.
# (AlexNet has no norm layers. On DM's set its training diverged at the protocol's rate, so that cell stays empty.)
#
# **What differs from the paper, and what we expect of it**
#
# 1. *Negative ratios.* The paper does not say how they count; we read the inequality as printed (signed) and offer the absolute
#    reading. At $\epsilon=0.1$ this decides about most of the pruned parameters; on accuracy we expect less than the spread.
# 2. *Whitening.* The paper whitens both CIFAR sets (ZCA, "default parameters"); we take $\epsilon_{\mathrm{ZCA}}=0.1$, as MTT
#    does. The CPU run has grey images and standardises them.
# 3. *Everything the paper is silent about*, the student's steps $J$, the expert's epochs $K$, the range of starts and all rates,
#    is MTT's. MTT's own list is partly a picture in its repository; others who ran it again report other rates. $J$ and the rates of
#    the CPU run were chosen for MTT, on validation images (chapter 4), and not again for DDPP. Expected effect: a few points, either
#    way.
# 4. *Size.* The paper has 200 experts of 50 epochs, a ConvNet-3 of width 128 and 5,000 updates; the default run here 4 experts of
#    8 epochs, width 16 and 150 updates. The full presets are *not run* where the tables say so.
# 5. *Evaluation.* The paper does not say at which update it evaluates; MTT's code reports the best test accuracy over many. Our
#    networks see the test images once, at the end, and train at a fixed rate, not at the learned one (chapter 4 compares the
#    two). Expected effect: some tenths to a point lower for us.
# 6. *A guard.* A run that prunes more than half of its parameters stops with an error, and a denominator is never below
#    $10^{-12}$. At $\epsilon=0.1$ neither ever acts.
# 7. *Chest X-rays.* The database has no official test set and the paper does not give its division; with us the reader divides
#    it. We tried the code on 800 X-rays of four classes, one of them from another archive (NIH ChestX-ray8, Wang et al., CVPR
#    2017): it ran unchanged. We report no accuracy, for the reason above.
#
# **Slips in the paper.** (a) Equation 4 writes $\theta_{i,K}$ where $\theta_{i+K}$ is meant. (b) CIFAR-10 at 10 images per class with the
# ConvNet stands twice: 65.5±0.3 for DDPP and 65.3±0.7 for MTT in table I, 65.4±0.4 and 64.3±0.7 in table III. (c) The text claims a gain
# of 5.2 points with ResNet-18; the table has 51.8 and 46.4, which is 5.4. (d) "$J\ll K$" is true only if $K$ counts the expert's
# *updates*, several hundred; counted in epochs, as in the paper's settings, $K$ is 2 or 3 and less than $J$.
#
# What a run of this size can show: what the mask removes, that distilled images beat drawn ones by a wide margin, and that
# pruning 43 % of the parameters hurts. What it cannot show: a difference of tenths of a point between DDPP and MTT.
#
# ## Exercises
# Solutions are folded below each question.
#
# **1. Change a number.** How does the pruned share depend on the epoch from which the student starts, and on its number of steps
# $J$? How much of the mask is the student's doing, and how much of the mask without a step does the student clear? Use `follow` with
# $\epsilon=0.1$, for photographs and for this chapter's distilled images with their learned step size.

# %% tags=["hide-cell"]
for who, syn, rate in (("photographs", None, config.alpha), ("distilled images", result.syn, float(result.syn.alpha.detach()))):
    lines = []
    for first in range(0, min(config.max_start, buffer.num_epochs - config.expert_epochs + 1)):
        for num_steps in (1, config.syn_steps):
            begin, end, goal = follow(first, num_steps, syn, rate)
            lost, without = ~ddpp.keep_mask(end, goal, 0.1), ~ddpp.keep_mask(begin, goal, 0.1)
            own, cleared = (lost & ~without).sum() / lost.sum(), (without & ~lost).sum() / without.sum()
            losses = mtt.matching_loss(end, goal, begin), ddpp.pruned_loss(end, goal, begin, lost)
            lines.append((f"{first}, {num_steps}", *(f"{loss:.2f}" for loss in losses), f"{100 * lost.float().mean():.1f}",
                          f"{100 * own:.0f}", f"{100 * cleared:.0f}"))
    columns = ("epoch, J", "loss", "on pruned", "pruned, %", "own, %", "cleared, %")
    display(papers.Table(columns, tuple(lines), numeric=frozenset(columns[1:]), caption=f"{who}, rate {rate:.3f}; own: the student's "
                         "doing, of what is pruned; cleared: of what is pruned without a step"))
print("Later starts: less is pruned, as the expert moves less. More steps: the student\nclears what the expert changed, but adds some of "
      "its own; on photographs the two\nnearly cancel from epoch 2 on. Distilled images clear half to two thirds, and\neven on what is "
      "still pruned they come nearer to the expert (loss below 1), while\nphotographs lead away from it there, from epoch 1 on (above 1). "
      "So the mask is\npartly \"difficult\", as the paper says, and the better the images, the less it is so.")

# %% [markdown]
# **2. Change an equation.** Prune where $|s_p-t_p|>\kappa\max(|s_p|,|t_p|)$ instead. Show that $\kappa=1-\epsilon$ is the signed rule
# again. (Write the smaller ratio, with its sign, as $r$.) Then prune by the plain difference $|s_p-t_p|$, as many parameters as before:
# what happens to the loss, and why is this a bad idea?

# %% tags=["hide-cell"]
distance, largest = (student - target).abs(), torch.maximum(student.abs(), target.abs())
for e in (0.1, 0.5, 0.9):
    by_difference = distance <= (1 - e) * largest
    print(f"epsilon {e}: kappa = {1 - e:.1f} decides otherwise about "
          f"{(by_difference != ddpp.keep_mask(student, target, e)).sum()} of {len(student)} parameters")
print("With m the larger size and r the smaller ratio, with its sign, |s - t| = (1 - r) m: one rule.")
farthest = torch.ones_like(keep)
farthest[distance.topk(int(gone.sum())).indices] = False
for title, mask in (("all", torch.ones_like(keep)), ("ratio", keep), ("plain difference", farthest)):
    above, below = (float(part[~mask].sum() / part.sum()) for part in (numerator, denominator))
    print(f"{title:>16}: loss {loss_on(mask):.3f}, removed {above:.0%} of numerator, {below:.0%} of denominator")
print("What is farthest from the target is what the expert moved most: the plain\ndifference throws nearly half of the signal away, from "
      "numerator and\ndenominator nearly alike.")

# %% [markdown]
# **3. Bring your data.** Is it the sign that decides on your data too? Find the share of the pruned parameters that the absolute reading
# would keep, at the first update. Any arrays will do; here, half of the classes at half the resolution, two images of each, and two short
# experts of their own. Does the answer change with $\epsilon$?

# %% tags=["hide-cell"]
half_of_them = real.num_classes // 2


def half(split):
    chosen = split.labels < half_of_them
    return torch.nn.functional.avg_pool2d(split.images[chosen].float(), 2).to(torch.uint8).cpu(), split.labels[chosen].cpu()


mine = data.ImageSet.from_arrays(*half(real.train), *half(real.test), classes=real.classes[:half_of_them], name="mine",
                                 preprocess=config.preprocess).to(runs.pick_device())


def first_pruned(rule, e):
    """Share of the parameters that the first update on these data prunes."""
    mine_config = replace(config, dataset="mine", ipc=2, epsilon=e, sign_rule=rule, min_kept=0.0, num_experts=2,
                          buffer_epochs=config.expert_epochs, max_start=1, steps=1)
    with contextlib.redirect_stdout(io.StringIO()):
        return 1 - next(ddpp.distill(mine, mine_config)).losses["kept"]


for e in (0.01, 0.1, 0.5, 0.9):
    signed, absolute = first_pruned("signed", e), first_pruned("absolute", e)
    print(f"epsilon {e:<4g}: pruned {signed:.1%}, absolute {absolute:.1%}: for the sign alone {1 - absolute / signed:.0%}")
print("Up to 0.1 the sign decides about most, as in this chapter. From 0.5 on it is\nthe factor, and the two readings are nearly one rule.")
