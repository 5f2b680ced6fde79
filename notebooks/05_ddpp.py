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
# answer: find the parameters in which student and expert disagree by more than a factor, and leave them out of the distance.
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
preset: str = "cpu"               # "tiny" | "cpu" | "gpu" | "cifar10-ipc10" | "covid-cxr-ipc1" | ... (all of ddpp.PRESETS)
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
out: str = ""                     # folder for the results; empty: runs/05_ddpp/PRESET-SEED and so on
results: str = ""                 # CSV file that gets the rows of this run; empty: none

# %%
config = replace(methods.preset(ddpp, preset), epsilon=epsilon, sign_rule=sign_rule, seed=seed)
config = replace(config, ipc=ipc or config.ipc, steps=steps or config.steps, unroll="plain" if preset == "cpu" else config.unroll)
recipe = evaluate.with_options(protocol, network=config.network, width=config.width, repeats=repeats)
name = f"{preset}-ipc{config.ipc}-{config.sign_rule}-{config.epsilon:g}-{config.steps}-{seed}"
folder = runs.Path(out) if out else runs.folder("05_ddpp", name)
real = runs.load_data(config).to(runs.pick_device())
papers.Table(("setting", "value"), tuple((name, str(value)) for name, value in asdict(config).items()), caption=f"preset {preset}")

# %% [markdown]
# ## The equation
# An expert has left its parameters after every epoch of its training. Let $\theta_i\in\mathbb R^P$ be those after epoch $i$, with
# $P$ the number of parameters. The student starts from $\theta_i$ and takes $J$ steps of gradient descent on the synthetic
# images; call the result $s\in\mathbb R^P$. It should be at $t=\theta_{i+K}$, the expert $K$ epochs later. MTT's loss is the
# squared distance that is left, as a share of the way:
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
# What does the test do, and what does it not do? The paper leaves one thing open, which five coordinates show at once: a
# *negative* ratio, that is a **sign flip**, is below every $\epsilon\ge0$ if it is read literally. Three readings are possible:
#
# * **signed**: the inequality as printed. Every sign flip is pruned, whatever $\epsilon$. This is our default.
# * **absolute**: signs are ignored, and $|s_p/t_p|$ and $|t_p/s_p|$ are compared with $\epsilon$.
# * **off**: nothing is pruned, which is MTT.

# %% tags=["nbval-check-output"]
s_five = [0.30, 0.02, 0.20, 1e-6, 0.0]
t_five = [0.28, 0.30, 1.00, -1e-6, 0.0]


def divide(a, b):
    return math.nan if a == b == 0 else math.copysign(math.inf, a) if b == 0 else a / b


def pruned(a, b, threshold, sign=True):
    ratios = [ratio if sign else abs(ratio) for ratio in (divide(a, b), divide(b, a))]
    return any(ratio < threshold for ratio in ratios)             # a comparison with nan is false: 0/0 stays


total = sum((a - b) ** 2 for a, b in zip(s_five, t_five))
for number, (a, b) in enumerate(zip(s_five, t_five), start=1):
    print(f"{number}: s {a:.6f}, t {b:9.6f}, s/t {divide(a, b):5.2f}, t/s {divide(b, a):5.2f}, of the sum {(a - b) ** 2 / total:4.0%}")
for threshold in (0.0, 0.1, 0.5):
    for rule, sign in (("signed", True), ("absolute", False)):
        by_loop = [not pruned(a, b, threshold, sign) for a, b in zip(s_five, t_five)]
        assert by_loop == ddpp.keep_mask(torch.tensor(s_five), torch.tensor(t_five), threshold, rule).tolist()
        print(f"epsilon {threshold}, {rule:>8}: prunes {[number for number, keep in enumerate(by_loop, start=1) if not keep]}")

# %% [markdown]
# Read the third and the fourth line again. The third coordinate is far from its target and makes up nine tenths of the sum of
# squares; its ratio is 0.2, so at $\epsilon=0.1$ it stays. The fourth differs by two millionths, which nobody would miss; its ratio
# is $-1$, so it is pruned if signs count. **A ratio knows no scale**: the test asks whether two numbers differ by a large *factor*,
# never whether they differ by much. And the lines with $\epsilon=0$ tell when DDPP becomes MTT at $\epsilon=0$: only in the
# absolute reading.
#
# Now a real pair. A few experts are trained (half a minute; chapters 4 and 6 use the same ones), and a student takes its $J$
# steps on one real image per class, from where an expert was at its start:

# %%
with contextlib.redirect_stdout(io.StringIO()):                   # a folder and minutes: not for the page
    buffer = experts.train(real, config.experts())
net = models.build(config.network, shape=real.shape, num_classes=real.num_classes, width=config.width, seed=0)
net = net.to(runs.pick_device())


def follow(first, num_steps=config.syn_steps, syn=None, rate=config.alpha):
    """start, student and target (P,) of expert 0 from epoch `first` on; the student sees `syn`, or one real image per class."""
    rng = runs.stream(seed, "look")
    few = distilled.PixelSet.from_real(real, 1, rng) if syn is None else syn
    batch = mtt.draw_batches(few, replace(config, syn_steps=num_steps, syn_batch=0), config.augment, rng)
    start, target = buffer.snapshots(0, first, first + config.expert_epochs)[[0, -1]]
    student = unroll.unroll(net, start, (few.images.detach(),), batch, steps=num_steps, rate=rate, form="plain")
    return start, student.detach(), target


start, student, target = follow(first=0)
ratio = torch.minimum(student / target, target / student)         # (P,) the smaller of the two; nan for 0/0
by_hand = ~(ratio < 0.1)                                          # (P,) what stays
print(f"{len(student):,} parameters; the student has covered {1 - mtt.matching_loss(student, target, start):.0%} of the squared way")

# %% [markdown]
# ## The library
# `ddpp.keep_mask` gives the same answer without a division by a parameter: with $m=\max(|s_p|,|t_p|)$ the smaller ratio is
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
words = {"0.weight": "weights", "0.bias": "biases", "1.weight": "scales", "1.bias": "shifts"}     # of a block: convolution, norm


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
columns = ("parameters", "pruned", "num., %", "den., %")
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
# *Sign flips rule.* Four of five pruned parameters have changed sign, and two of three would stay if signs were ignored. So at the
# paper's $\epsilon=0.1$ it matters more how a negative ratio is read than what $\epsilon$ is.
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
# lose exactly the same, and all three losses are 1. Ours has covered a third of the squared way. It is still close to $\theta_i$,
# the losses are close to each other, and $b$ is small besides. And if the pruned parameters were out of reach,
# $\mathcal L_{\mathrm{out}}$ would be 1 or more. Is it?

# %%
def loss_on(part):
    """MTT's loss on the coordinates `part` (P,) alone."""
    return float(ddpp.pruned_loss(student, target, start, part))


lines = [("off", "0", "0", "-", f"{whole:.2f}")]
for rule, e in (("signed", 0.1), ("signed", 0.5), ("signed", 0.9), ("absolute", 0.9)):
    stays = ddpp.keep_mask(student, target, e, rule)
    b = float(denominator[~stays].sum() / denominator.sum())
    assert abs((1 - b) * loss_on(stays) + b * loss_on(~stays) - whole) < 1e-3
    lines.append((f"{rule} {e:g}", f"{100 * (~stays).float().mean():.0f}", f"{b:.2f}", f"{loss_on(~stays):.2f}", f"{loss_on(stays):.2f}"))
columns = ("rule", "%", "b", "L_out", "L_DDPP")
display(papers.Table(columns, tuple(lines), numeric=frozenset(columns[1:]),
                     caption="Pruned, % of the parameters; their part b of the way; the loss on them; the loss that remains"))
unmoved = ~ddpp.keep_mask(start, target, 0.1)                     # the same test on a student that has not moved at all
small = target.abs() < target.abs().median()                      # the smaller half of the expert's parameters
of_flips, of_small, shared = (float(part[gone].float().mean()) for part in (flips, small, unmoved))
if preset == "cpu":                                               # with seeds 0 to 2: up to 0.90, up to 0.03, and from 79, 99 and 75 %
    assert loss_on(gone) < 0.97 and whole - loss_on(keep) < 0.06 and min(of_flips, of_small, shared) > 0.65
print(f"Of the parameters pruned at epsilon 0.1, {of_flips:.0%} have changed sign,\n{of_small:.0%} belong to the smaller half, "
      f"and {shared:.0%} would be pruned for a student\nwithout a single step.")

# %% [markdown]
# The loss on the pruned parameters is below 1: the student moves these as well, if less than the others. At $\epsilon=0.1$
# pruning them changes the loss by a few hundredths. **Only there**: at 0.9 nine tenths of the way are pruned and the
# loss is halved. But now what stays are mostly parameters that *have* come within a tenth of their target. Their loss is low
# because they were selected for it, and they have little left to teach. Exercise 2 has a control: the same number pruned by the
# plain difference $|s_p-t_p|$. It takes half of both sums, so the similar shares are no property of the ratio.
#
# The printed line says what the mask holds instead. Since $s$ is close to $\theta_i$, the test on $s$ and $t$ is close to a test on
# $\theta_i$ and $t$: pruned are, for the most part, the small parameters whose sign **the expert** changed, whether or not a student
# could follow. The paper reads the mask as the parameters that are difficult to match. On this pair it holds rather those that the
# expert has moved by more than their own size. A student that comes close to its expert could change that; exercise 1 asks the
# distilled images of this chapter.
#
# ## Try it
# The same three vectors are stored in this page, and the browser tests all their coordinates while you move the slider. Each
# picture shows the parameters of one layer; those in the shaded range are pruned. Things to try: slide to 0 and switch between
# the two readings; look for the slope of the clouds, which says that low ratios belong to small parameters; slide to 0.9, where
# the paper warns of too much pruning, and read how little of the numerator is left.

# %%
thin = -(-len(student) // 20_000)                                 # a large network is shown by every n-th parameter
shown = [torch.cat([part[::thin] for part in split(vector).values()]) for vector in (student, target, start)]
widgets.epsilon_explorer(*shown, {title: -(-count // thin) for title, count in layers.items()}, at=0.1, uid="epsilon")

# %% tags=["live"]
# Live (needs a kernel): the pruned share of every layer, for a student that starts at another epoch of the expert.
def shares(first):
    _, student, target = follow(first)
    lost = ~ddpp.keep_mask(student, target, epsilon, sign_rule)
    return plots.bars({title: 100 * float(part.float().mean()) for title, part in split(lost).items()}, ylabel="pruned, %",
                      title=f"epsilon {epsilon:g}, from epoch {first} to {first + config.expert_epochs}")


widgets.live(shares, label="epoch of the start", first=list(range(buffer.num_epochs - config.expert_epochs + 1)))

# %% [markdown]
# ## A small run
# DDPP with the parameters above, and MTT with the same experts, the same first images and the same random numbers: the same run
# without pruning. The logs have the loss that is minimised (*match*), MTT's on all parameters (*mtt*), the share that is *kept*, the
# length of the pixels' gradient, the gradient of the student's learned step size $\alpha$, and $\alpha$.
#
# Then fresh networks are trained on each set, as many as on random images, and see the test set once.

# %%
print(f"DDPP, {sign_rule}, epsilon {epsilon:g}")
result = runs.run(ddpp, config, folder / "ddpp", real=real)
print("\nMTT: the same code without pruning, so its log is called DDPP too")
unpruned = runs.run(ddpp, replace(config, sign_rule="off"), folder / "mtt", real=real)
pruned_share = [100 * (1 - kept) for kept in result.metrics()["kept"]]
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
display(result.syn.show(), fig)
plots.bars(accuracy, title=f"{config.dataset} at IPC {config.ipc}, {repeats} networks each", size=plots.HALF)

# %% [markdown]
# *Images*: they have moved away from the photographs that they started as. *Dots*: the share of the parameters that is pruned
# jumps, because every update draws another expert and another epoch. The uppermost band belongs to starts at epoch 0; from later
# starts, less is pruned. *Bars*: distilled images beat drawn ones. DDPP against MTT is another matter: their difference is far below
# the spread, and one pair of runs cannot tell them apart.
#
# The spread has two sources. *Networks*: the same images train better or worse from other initial weights. *Distillations*:
# another seed draws other first images, other experts, other starts, and ends in other images. An **ablation**, the same
# experiment with parts changed, has to repeat both. The next cell does so for a few settings, with short runs and on
# **validation images**: it serves to look, and no test image should be spent on it.
#
# *Figure*: every dot is one distillation, its height the mean over its networks; the band is MTT's (off) mean, plus and minus the
# deviation over its distillations. *Table*: the two spreads as standard deviations, over the sets and over the networks of one set.
# One seed means the same first images, experts and networks in every setting, so the last column compares with MTT seed by seed:
# mean and deviation of the differences. Two pairs give no deviation to rely on. A larger ablation (test images, rows of
# `book/results/ddpp_ablation.csv`) follows in the same form, if somebody has run it.

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
    display(plots.dots(places, "epsilon, pruning threshold", ylabel, band="off", title=caption.split(",")[0],
                       colors={"signed": "#8b1a0e", "absolute": "#e8590c", "off": plots.METHOD_COLORS["MTT"]}))
    names = ("rule", "mean, %", "± sets", "± nets", "minus off")
    display(papers.Table(names, tuple(lines), caption=caption, numeric=frozenset(names[1:])))


def validate(syn, of_seed):
    """Mean and deviation, in percent of the validation images, of `ablation_repeats` networks trained on the set."""
    nets = [evaluate.train_network(syn, real, recipe, of_seed, repeat).net for repeat in range(ablation_repeats)]
    return spread(100 * train.accuracy(net, real.validation, real.preprocess) for net in nets)


ablation, left = {}, {}                                           # accuracies, and the loss over the last ten updates
for rule, e in (("off", 0.0), ("signed", 0.1), ("signed", 0.9)):
    for other in range(seed, seed + ablation_seeds):
        shorter = replace(config, sign_rule=rule, epsilon=e, seed=other, steps=ablation_steps, min_kept=0.0)
        updates = [(step.losses["mtt"], step.syn) for step in ddpp.distill(real, shorter)]
        ablation.setdefault((rule, e), {})[other] = validate(updates[-1][1], other)
        left.setdefault((rule, e), []).append(statistics.mean(loss for loss, _ in updates[-10:]))
report(ablation, f"{config.dataset} at IPC {config.ipc}, {ablation_steps} updates, {ablation_seeds} sets each", "validation accuracy, %")
loss = unpruned.metrics()["mtt"]                                  # the first updates of this run are the ablation's
print(f"MTT, seed {seed}: after {ablation_steps} updates loss {statistics.mean(loss[:ablation_steps][-10:]):.2f} and "
      f"{ablation['off', 0.0][seed][0]:.1f} % on validation images,\n"
      f"after all {config.steps} updates loss {statistics.mean(loss[-10:]):.2f} and {validate(unpruned.syn, seed)[0]:.1f} %")

gain = accuracy["DDPP"][0] - accuracy["Random"][0]                # in points, claims about the default run, not about every run
cost = -minus_off(ablation["signed", 0.9], ablation["off", 0.0])[0]
higher = statistics.mean(left["signed", 0.9]) - statistics.mean(left["off", 0.0])
is_default = (preset, ipc, steps, epsilon, sign_rule, protocol, ablation_steps, ablation_seeds, ablation_repeats) == (
    "cpu", 0, 0, 0.1, "signed", "strict-cpu", 30, 2, 2)
# with seeds 0, 1 and 2: cost 2.8, 7.7, 6.9 points and higher 0.09, 0.13, 0.13
assert (gain > 5 and cost > 1 and higher > 0.04) or not is_default
print(f"DDPP beats Random by {gain:.1f} points (claim: more than 5). epsilon = 0.9 costs\n{cost:.1f} points (claim: more than 1), "
      f"and its loss on all parameters ends\n{higher:.2f} higher than MTT's (claim: more than 0.04).")

larger = {}
for row in evaluate.read_rows(runs.ROOT / "book" / "results" / "ddpp_ablation.csv"):
    rule, e = re.match(r"(\w+)(?:, epsilon ([\d.]+))?", row["variant"]).groups()
    larger.setdefault((rule, float(e or 0)), {})[row["seed"]] = float(row["accuracy_mean"]), float(row["accuracy_std"])
if larger:
    count = max(map(len, larger.values()))
    report(larger, f"{row['dataset']} at IPC {row['ipc']}, larger ablation, {count} sets, {row['n']} networks each")
else:
    print("the larger ablation:", papers.NOT_RUN)

# %% [markdown]
# Pruning at $\epsilon=0.1$ changes less than what two distillations differ by. At $\epsilon=0.9$ accuracy is lost with both seeds,
# and the loss on all parameters, which MTT lowers, stays higher: half of the parameters are asked for nothing. (The guard against
# that, `min_kept`, is off in the ablation. The absolute reading prunes nearly the same parameters there, as the table of losses
# above shows.) The short runs are the first updates of longer ones, at the same rates, which were chosen on validation images; the
# printed lines say how far they are from all updates: the loss goes on falling, and so far accuracy goes on rising.
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
    """DDPP with ConvNet-5 on `count` training images per class: one narrow expert of two epochs and three updates."""
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
# difference below 2.3 errors is within what chance does in one of twenty comparisons.

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
# * *Table I.* The gains of 0.1 and 0.2 points on CIFAR-10 are within one error: no evidence of any difference. The 0.3 at 50 images
#   per class and the 0.3 on CIFAR-100 at one are at the edge. The one large gain, 3 points on CIFAR-100 at 10, is many errors
#   wide, but **confounded**: MTT's own setting for this row, like that for CIFAR-10 at 50, has no ZCA whitening, while DDPP whitens
#   throughout. The gain may be the whitening's; the preset `cifar100-ipc10-as-ddpp` of `ddlib.methods.mtt` is the baseline that
#   would tell. What remains is 0.7 points on CIFAR-100 at 50, where both whiten.
# * *Table III.* On other networks than the one that distilled, the gains are larger: many errors with ResNet-18 and VGG11,
#   but only 1.2 with AlexNet. In this table MTT's ConvNet row is a point lower than in table I (slip b below), so the two methods
#   may not have been measured alike.
# * *Table IV.* On chest X-rays at 5, 10 and 20 images per class the gains of 1.3 to 2.3 points are 4 to 10 errors: the strongest
#   numbers of the paper. At one image per class it is 1.7 points and less than one error.
# * All of these errors are over networks trained on **one** distilled set. They do not hold the spread over distillations, the
#   other source in the ablation above. The true error of every gain is larger, by an amount that the paper does not give.
#
# Beside ours, from `book/results/measured.csv` (the paper prints no DDPP on Fashion-MNIST; chapter 4 has the rows at the learned
# rate), then networks that took no part in the distillation, and this run. The budget is the same for all methods: the numbers of
# IPC plain images.

# %%
def narrow(table):
    """What fits a page: the columns that are alike in all rows go into the caption."""
    alike = (sorted({row[column] for row in table.rows} - {"-"}) for column in (5, 6))
    lines = tuple((f"{method}, {budget}", paper, ours) for method, budget, paper, ours, *_ in table.rows)
    return replace(table, columns=("method, IPC", "paper", "ours (n)"), rows=lines, numeric=frozenset(),
                   caption=f"{table.caption}; ours: {', '.join(next(alike))}, width {', '.join(next(alike))}")


measured = [row for row in evaluate.read_rows() if row["protocol"] != "strict-cpu-alpha"]
for dataset in ("fashion_mini", "fashion_mnist", "cifar10"):
    if any((row["dataset"], row["method"]) == (dataset, "DDPP") for row in measured):
        display(narrow(papers.beside(measured, dataset=dataset, ipcs=[1, 10], methods=["Random", "DM", "MTT", "DDPP"],
                                     published_as="fashion_mnist" if dataset == "fashion_mini" else None)))
    else:
        print(f"DDPP on {dataset}: {papers.NOT_RUN}")

others = ("alexnet", "vgg11", "resnet18")
found = {(row["method"], row["ipc"], row["eval_arch"]): row for row in measured                  # the latest wins
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
# **What differs from the paper, and what we expect of it**
#
# 1. *Negative ratios.* The paper does not say how they count; we read the inequality as printed (signed) and offer the absolute
#    reading. At $\epsilon=0.1$ this decides about most of the pruned parameters; on accuracy we expect less than the spread.
# 2. *Whitening.* The paper whitens both CIFAR sets (ZCA, "default parameters"); we take $\epsilon_{\mathrm{ZCA}}=0.1$, as MTT
#    does. The CPU run has grey images and standardises them.
# 3. *Everything the paper is silent about*, the student's steps $J$, the expert's epochs $K$, the range of starts and all rates,
#    is MTT's. MTT's own list is partly a picture in its repository; others who ran it again report other rates. $J$ and the rates of
#    the CPU run were chosen for MTT, on validation images (chapter 4), and not again for DDPP. Expected effect: points.
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
# **Slips in the paper.** (a) Equation 4 writes $\theta_{i,K}$ where $\theta_{i+K}$ is meant. (b) CIFAR-10 at 10 images per class with
# the ConvNet stands twice: 65.5±0.3 for DDPP and 65.3±0.7 for MTT in table I, 65.4±0.4 and 64.3±0.7 in table III. (c) The text
# claims a gain of 5.2 points with ResNet-18; the table has 51.8 and 46.4, which is 5.4. (d) "$J\ll K$" compares the student's
# steps with *updates* of the expert: two or three epochs are several hundred mini-batches.
#
# What a run of this size can show: what the mask removes, that distilled images beat drawn ones by a wide margin, and that
# pruning half of the parameters hurts. What it cannot show: a difference of tenths of a point between DDPP and MTT.
#
# ## Exercises
# Solutions are folded below each question.
#
# **1. Change a number.** How does the pruned share depend on the epoch from which the student starts, and on its number of steps
# $J$? And how much of the mask is the student's doing? Use `follow` with $\epsilon=0.1$, for photographs and for this chapter's distilled
# images with their learned step size.

# %% tags=["hide-cell"]
for who, syn, rate in (("photographs", None, config.alpha), ("distilled images", result.syn, float(result.syn.alpha.detach()))):
    print(f"{who}, rate {rate:.3f}")
    for first in range(0, min(config.max_start, buffer.num_epochs - config.expert_epochs + 1)):
        for num_steps in (1, config.syn_steps):
            begin, end, goal = follow(first, num_steps, syn, rate)
            lost, without = ~ddpp.keep_mask(end, goal, 0.1), ~ddpp.keep_mask(begin, goal, 0.1)
            loss, common = mtt.matching_loss(end, goal, begin), (lost & without).sum() / lost.sum()
            print(f"  epoch {first}, {num_steps:2d} steps: loss {loss:.2f}, pruned {lost.float().mean():.1%}, "
                  f"of these {common:.0%} without a step")
print("Distilled images bring the student much closer, and less is pruned. But most\nof what still is would be pruned without a step: "
      "the expert changed these signs,\nand even this student does not follow.")

# %% [markdown]
# **2. Change an equation.** Prune where $|s_p-t_p|>\kappa\max(|s_p|,|t_p|)$ instead. Show that $\kappa=1-\epsilon$ is the signed
# rule again. Then prune by the plain difference $|s_p-t_p|$, as many parameters as before: what happens to the loss, and why is
# this a bad idea?

# %% tags=["hide-cell"]
distance, largest = (student - target).abs(), torch.maximum(student.abs(), target.abs())
for e in (0.1, 0.5, 0.9):
    by_difference = distance <= (1 - e) * largest
    print(f"epsilon {e}: kappa = {1 - e:.1f} decides otherwise about "
          f"{(by_difference != ddpp.keep_mask(student, target, e)).sum()} of {len(student)} parameters")
print("With m the larger size and r the smaller ratio, |s - t| = (1 - r) m: one rule.")
farthest = torch.ones_like(keep)
farthest[distance.topk(int(gone.sum())).indices] = False
for title, mask in (("all", torch.ones_like(keep)), ("ratio", keep), ("plain difference", farthest)):
    above, below = (float(part[~mask].sum() / part.sum()) for part in (numerator, denominator))
    print(f"{title:>16}: loss {loss_on(mask):.3f}, removed {above:.0%} of numerator, {below:.0%} of denominator")
print("What is farthest from the target is what the expert moved most: the plain\ndifference throws nearly half of the signal away, from "
      "numerator and\ndenominator alike, because the student is still near its start.")

# %% [markdown]
# **3. Bring your data.** Is it the sign that decides on your data too? Find the share of the pruned parameters that the absolute reading
# would keep, at the first update. Any arrays will do; here, half of the classes at half the resolution, with two short experts of
# their own. Does the answer change with $\epsilon$?

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
