# %% [markdown]
# # 9. Self-knowledge distillation
#
# *About two and a half minutes on one CPU core, one of them for a GAN that chapters 7 to 9 share; 1.5 GB. Paper: Li, Li, Togo, Maeda,
# Ogawa and Haseyama, "Generative Dataset Distillation Based on Self-Knowledge Distillation", ICASSP 2025 (SKD). It builds on chapter 7:
# Wang et al., "DiM: Distilling Dataset into Generative Model", 2023.*
#
# ## Why
# In chapter 7 a generator went on training while a network looked at real and at generated images of the same class, and was to
# give the same answer to both. What is "the same answer"? The network returns ten numbers, the *logits*, one per class. DiM
# compares the log-probabilities made of them. But these contain two things: a **pattern**, which classes this image resembles more
# and which less, and a **confidence**, how far apart the numbers are. A network is often surer of one kind of image than of
# another for reasons that do not matter here, and a loss that compares everything spends itself on confidence.
#
# SKD removes the confidence first: it *standardizes* the logits of every image, so that only their pattern is left, and softens
# them with a temperature $\tau$. The name: in *knowledge distillation* a small network, the student, learns to answer as a large
# one, the teacher. Here teacher and student are **one network**: it sees a real image as the teacher and a generated one as the
# student. What learns is the generator.
#
# The chapter asks what standardization does to an answer, what it does to the gradient, and how large the new term is beside the
# rest of the generator's loss.

# %%
import contextlib
import io
import math
import statistics
from dataclasses import replace

import torch
from IPython.display import display

from ddlib import chapter, data, evaluate, methods, papers, plots, runs, select, widgets
from ddlib.methods import cgan, dim, skd

# %% tags=["parameters"]
preset: str = "cpu"               # "tiny" | "cpu" | "cpu-full" | "gpu" | "fashion-mnist-ipc1" | ... (all of skd.PRESETS)
ipc: int = 0                      # images per class that the generator is asked for; 0: the preset's
tau: float = 2.0                  # temperature
weight: float = -1.0              # lambda of eq. 7; -1: the preset's (as in the paper, 0.01, and 0.001 for MNIST)
strong: float = 100.0             # the second ablation: so many times this weight
steps: int = 0                    # updates of the generator with SKD; 0: 75 with "cpu", else the preset's
protocol: str = "strict-cpu"      # how test networks are trained: "strict-cpu" | "strict"; each frozen and resampled
train_steps: int = 100            # steps of a test network; 0: the protocol's
width: int = 16                   # of the test networks; the papers have 128
repeats: int = 3                  # test networks for each number
seed: int = 0
out: str = ""                     # folder for the results; empty: runs/09_skd/PRESET-SEED and so on
results: str = ""                 # CSV file that gets the rows of this run; empty: none

# %%
config = methods.preset(skd, preset)
weight = config.weight if weight < 0 else weight
config = replace(config, tau=tau, weight=weight, standardize=True, seed=seed, gan_seed=seed, ipc=ipc or config.ipc,
                 steps=steps or (75 if preset == "cpu" else config.steps))                       # a chapter is in a hurry
options = {"width": width, "repeats": repeats} | ({"steps": train_steps} if train_steps else {})
recipes = {how: evaluate.with_options(name, **options) for how, name in (("frozen", protocol), ("resampled", f"{protocol}-resampled"))}
name = f"{preset}-ipc{config.ipc}-{config.tau:g}-{config.weight:g}-{strong:g}-{config.steps}-{seed}"
folder = runs.Path(out) if out else runs.folder("09_skd", name)
real = runs.load_data(config).to(runs.pick_device())
chapter.setting_table(config, ("dataset", "gan_width", "gan_steps", "steps", "batch_size", "lr", "weight", "tau", "standardize", "pool",
                               "pool_widths", "net_steps", "redraw", "augment"), f"Preset {preset}")

# %% [markdown]
# ## The equation
# A network $\mathcal M$ sees a real image and a generated image of the same class. Let $\mathbf l_O\in\mathbb R^C$ be its logits for the
# real one (the paper calls the real set $O$) and $\mathbf l_S$ for the generated one ($S$), with $C$ the number of classes. Let
# $\bar l$ be the mean of the $C$ logits of one image and $\sigma(\mathbf l)$ their standard deviation. With the temperature $\tau>0$,
# logits are **standardized** (the paper's equation 3) and turned into **probabilities** (4 and 5):
#
# $$
# \begin{aligned}
# Z(\mathbf l;\tau)_k&=\frac{l_k-\bar l}{\tau\,\sigma(\mathbf l)},\\
# d_O&=\mathrm{softmax}\,Z(\mathbf l_O;\tau),\\
# d_S&=\mathrm{softmax}\,Z(\mathbf l_S;\tau).
# \end{aligned}
# $$
#
# Their **divergence** (6), named after Kullback and Leibler (KL), is zero if the two distributions are equal and positive otherwise. It is
# added to the loss of the conditional GAN, $L_{\mathrm{CGAN}}$ (equations 1 and 2, chapter 7), with a **weight**
# $\lambda_{\mathrm{SKD}}$ (7):
#
# $$
# \begin{aligned}
# L_{\mathrm{SKD}}&=\sum_{k=1}^{C}d_O^{(k)}\log\frac{d_O^{(k)}}{d_S^{(k)}},\\
# L_{\mathrm{total}}&=L_{\mathrm{CGAN}}+\lambda_{\mathrm{SKD}}\,\tau^2L_{\mathrm{SKD}} .
# \end{aligned}
# $$
#
# Real is the target and stands first. Why $\tau^2$? Dividing by $\tau$ makes all differences smaller, and the gradient of the divergence
# shrinks about as $1/\tau^2$; the factor brings it back, so $\tau$ can be changed without changing the weight (exercise 2). Nothing
# but the generator follows the gradient: the network is fixed in that moment, and the real image is data.
#
# ## By hand
# Four classes, two answers. The third answer is the second one, three times as sure and shifted. All numbers are plain Python:

# %% tags=["nbval-check-output"]
def standardize(logits, tau):
    mean = sum(logits) / len(logits)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in logits) / (len(logits) - 1))
    return [(value - mean) / (tau * deviation) for value in logits]


def softmax(z):
    exps = [math.exp(value) for value in z]
    return [value / sum(exps) for value in exps]


def divergence(l_real, l_syn, tau, soften=standardize):
    d_real, d_syn = softmax(soften(l_real, tau)), softmax(soften(l_syn, tau))
    return sum(p * math.log(p / q) for p, q in zip(d_real, d_syn))


def divide(logits, tau):
    return [value / tau for value in logits]                      # the ablation: no standardization


l_real, l_syn = [4.0, 1.0, 0.0, -1.0], [1.0, 2.0, -1.0, 0.0]
l_surer = [3 * value - 2 for value in l_syn]
listed = lambda values: " ".join(f"{value:5.2f}" for value in values)
for title, answer in (("real", l_real), ("generated", l_syn), ("surer", l_surer)):
    print(f"{title:>9}: Z {listed(standardize(answer, 2.0))}")
    print(f"{'':>9}  d {listed(softmax(standardize(answer, 2.0)))}")
for title, answer in (("generated", l_syn), ("surer", l_surer)):
    found = divergence(l_real, answer, 2.0)
    print(f"real against {title}:\n  KL {found:.3f}, term of eq. 7 {0.01 * 4 * found:.4f}")
    print(f"  raw, not standardized: KL {divergence(l_real, answer, 2.0, divide):.3f}")

# %% [markdown]
# To the standardized loss the second and the third answer are the same, because $Z$ is unchanged by a shift and by a positive factor.
# Without standardization the third one costs more than twice as much. (One choice is ours: the paper does not say whether its
# deviation divides by $C$ or by $C-1$. We take $C-1$; the part *A cap* below shows what it changes.)
#
# Now real logits. Everything starts from **one conditional GAN**, trained here in about a minute if chapter 7 has not left it on
# this machine. Then a network is drawn from SKD's pool and trained for about 60 batches of real images, and it looks at 32 real images
# and at 32 generated ones of the same classes. For comparison it looks at *twins*, too: other real images of the same classes. The
# picture shows six of these, real above generated above twin.

# %%
game, origin, gan_minutes = chapter.one_gan(real, config)
pool = dim.Pool(real, config)
for index in range(1, 31):
    pool.advance(min(index, config.redraw))                       # `net_steps` batches each, of one network
rng = runs.stream(seed, "pairs")


def twins(labels):
    """Another real image (B, c, h, w) for each of these classes (B,), drawn at random."""
    members = [(real.train.labels == label).nonzero().flatten() for label in labels.tolist()]
    return real.train.images[torch.stack([each[int(torch.randint(len(each), (), generator=rng))] for each in members])]


def three_looks(images, labels):
    """Logits (B, C) of real images, of generated ones and of twins, and the last two as images (B, c, h, w) from 0 to 1."""
    generated, others = (origin.sample(labels, rng) + 1) / 2, twins(labels).float() / 255
    seen, seen_syn = pool.look(1, real.preprocess(images), real.preprocess(generated))
    _, seen_twin = pool.look(1, real.preprocess(images), real.preprocess(others))
    return *(each.logits.double().cpu() for each in (seen, seen_syn, seen_twin)), generated, others


batches = cgan.real_batches(real, min(32, config.batch_size), seed)
images, labels = next(batches)
loud, quiet, twin, generated, others = three_looks(images, labels)
loop = statistics.mean(divergence(a, b, config.tau) for a, b in zip(loud.tolist(), quiet.tolist()))
raw = statistics.mean(divergence(a, b, config.tau, divide) for a, b in zip(loud.tolist(), quiet.tolist()))
wide, alike = loud.std(dim=1).mean(), config.tau / loud.std(dim=1).mean()      # Z with tau `alike` deviates as much as l / tau
print(f"{pool.name.removesuffix('_dim')}, mean over {len(labels)} pairs")
print(f"  KL of real and generated:\n    standardized {loop:.3f}, raw {raw:.3f}")
print(f"    standardized with tau {alike:.2f}: {skd.skd_loss(loud, quiet, alike):.3f}")
print(f"  deviation of an image's logits:\n    real {wide:.2f}, generated {quiet.std(dim=1).mean():.2f}")
looks = [(loud, quiet, twin), *(three_looks(*next(batches))[:3] for _ in range(7))]
to_fake, to_twin = (statistics.mean(skd.skd_loss(look[0], look[other], config.tau).item() for look in looks) for other in (1, 2))
print(f"{len(looks)} times as many pairs, standardized:\n  KL of real and generated: {to_fake:.3f}\n  KL of real and twin: {to_twin:.3f}")
shown = torch.cat([images[:6].float() / 255, generated[:6], others[:6]]).cpu()
plots.image_grid(shown, torch.arange(3).repeat_interleave(len(shown) // 3), ("real", "generated", "twin"),
                 caption=", ".join(real.classes[label] for label in labels[:6]))

# %% [markdown]
# **The motive is not to be seen here.** The deviations, 2.15 and 2.16, say that this network is as sure of generated images as of real
# ones, so there is no difference of confidence to take away. Yet the raw divergence is four times as large, and the reason is another
# one: $\mathbf l/2$ has a deviation of about 1.1 and $Z$ one of $1/\tau=0.5$, which amounts to **another temperature**. Standardized
# with the $\tau$ that gives $Z$ the deviation of $\mathbf l/2$, below 1, the divergence is about as large as raw's.
#
# The generated images are coarse, and recognizable. Compare the two last numbers: to this network a generated image is about as
# close to a real one as **another real image** is. (Slightly closer, by these numbers; but 32 pairs gave 0.060 and eight times as many
# 0.046, so such a difference may be noise. With seed 2, whose GAN has learned its classes less well, generated images are farther, 0.09
# against 0.06.) Remember that when the small run asks what is left for the term to do. It pairs
# images at random within a class, and two shirts differ. So the divergence of real and generated cannot reach zero, and it is least
# if every generated shirt gets the *average* answer of all shirts, and their variety is lost.
#
# ## The library
# `skd.standardize_logits` is equation 3, `skd.skd_loss` equations 4 to 6 with a mean over the batch (the paper names no reduction), and
# `skd.loss_terms` adds the factor of equation 7. The same numbers in two ways, then the gradient:

# %% tags=["nbval-check-output"]
assert math.isclose(loop, skd.skd_loss(loud, quiet, config.tau).item(), abs_tol=1e-9)
assert math.isclose(raw, skd.skd_loss(loud, quiet, config.tau, standardize=False).item(), abs_tol=1e-9)
terms = skd.loss_terms(dim.Seen(loud, loud), dim.Seen(quiet, quiet), config)
assert math.isclose(terms["match"], config.weight * config.tau**2 * loop, abs_tol=1e-9)
print("by hand and library agree")


def slope_of(syn, standardize=True):
    """Gradient of the divergence in the generated logits (B, C), image by image."""
    syn = syn.clone().requires_grad_()
    return len(syn) * torch.autograd.grad(skd.skd_loss(loud, syn, config.tau, standardize), syn)[0]


slope, slope_raw = slope_of(quiet), slope_of(quiet, standardize=False)
unit = (quiet - quiet.mean(dim=1, keepdim=True)) / quiet.std(dim=1, keepdim=True)                      # (B, C) eq. 3 with tau = 1
g = (unit / config.tau).softmax(dim=1) - (loud - loud.mean(dim=1, keepdim=True)).div(
    loud.std(dim=1, keepdim=True) * config.tau).softmax(dim=1)                                          # d_S - d_O
on_paper = (g - unit * (unit * g).sum(dim=1, keepdim=True) / (real.num_classes - 1)) / (config.tau * quiet.std(dim=1, keepdim=True))
assert torch.allclose(slope, on_paper, atol=1e-9)
zero = lambda values: bool(values.abs().max() < 1e-9)
for title, each in (("standardized", slope), ("raw", slope_raw)):
    print(f"gradient, {title}:\n  adds up to 0 in every image: {zero(each.sum(dim=1))}")
    print(f"  at right angles to the logits: {zero((each * quiet).sum(dim=1))}")
doubled = slope_of(2 * quiet - 1)
print(f"twice as sure: {float(doubled.norm() / slope.norm()):.2f} times as long")

# %% [markdown]
# What the cell has compared is worth doing on paper. Write $\hat{\mathbf l}=(\mathbf l_S-\bar l_S)/\sigma(\mathbf l_S)$ and
# $\mathbf g=d_S-d_O$. Then
#
# $$
# \frac{\partial L_{\mathrm{SKD}}}{\partial\mathbf l_S}=\frac{1}{\tau\,\sigma(\mathbf l_S)}\Big(\mathbf g-\hat{\mathbf l}\;
# \frac{\hat{\mathbf l}\cdot\mathbf g}{C-1}\Big).
# $$
#
# *No message about confidence.* The bracket is $\mathbf g$ without its part along $\hat{\mathbf l}$, so the gradient is at right angles to
# the logits: no step along it makes the network surer or less sure of a generated image. That is the idea of SKD, in one line.
#
# *A price.* $\sigma(\mathbf l_S)$ stands in the denominator. An image about which the network has no opinion (all logits nearly
# equal) gets the **longest** gradient, and one without any opinion an infinite one. The library adds $10^{-14}$ to the variance, and leaves
# out a step in which some deviation is below $10^{-4}$; the metrics count such steps as `flat`.
#
# *A blind spot.* If the network sees exactly one class in the generated image and the rest alike, $\hat{\mathbf l}$ is a single peak, and
# what is taken out is the whole component of that class. The loss can then raise the right class, but not lower the wrong one.
#
# ### A cap
# Since $\mathbf l$ is divided by its own deviation, no class can stand out by more than a fixed amount. The extreme case is one peak among
# equals; there the peak is $\sqrt C/\tau$ above the others in $Z$ (and $C/(\tau\sqrt{C-1})$ with a deviation over $C$), so with $h$ for
# that height no probability exceeds $e^h/(e^h+C-1)$:

# %% tags=["nbval-check-output"]
def largest(num_classes, tau, ddof=1):
    height = num_classes / math.sqrt(num_classes * (num_classes - 1) / (num_classes - ddof)) / tau
    return 1 / (1 + (num_classes - 1) * math.exp(-height))


for num_classes in (10, 100):
    for t in (1.0, 2.0):
        peak = 5 * torch.eye(num_classes, dtype=torch.float64)[:1]
        assert math.isclose(skd.standardize_logits(peak, t).softmax(dim=1).max(), largest(num_classes, t), abs_tol=1e-6)
        print(f"C {num_classes:3d}, tau {t:.0f}: {largest(num_classes, t):.3f} (over C: {largest(num_classes, t, 0):.3f})")
peaks = 5 * torch.eye(10, dtype=torch.float64)
two_peaks = skd.skd_loss(peaks[:1], peaks[1:2], 2.0).item()
print(f"ten classes, tau 2, two different peaks:\nKL {two_peaks:.2f}, the term of eq. 7 {0.01 * 4 * two_peaks:.3f}")

# %%
taus = [k / 20 for k in range(10, 161)]
with plots.style():
    fig = plots.figure(plots.HALF)
    ax = fig.subplots()
    for count, ddof, dashes, line_color in ((10, 1, "-", plots.METHOD_COLORS["SKD"]), (10, 0, ":", plots.METHOD_COLORS["SKD"]),
                                            (100, 1, "-", "#1b4f72")):
        ax.plot(taus, [largest(count, t, ddof) for t in taus], dashes, color=line_color, label=f"C = {count}, over C{' − 1' * ddof}")
    ax.plot([2], [largest(10, 2.0)], "o", color="#222222", ls="", label="the paper's setting")
    ax.set_xlabel("tau, temperature")
    ax.set_ylabel("largest probability")
    ax.legend()
fig

# %% [markdown]
# With ten classes and $\tau=2$, the paper's setting, no image of any kind gets more than 0.351 for its class; with a deviation over $C$
# it would be 0.370, so the choice changes little (it is the same as another $\tau$, by a factor of 1.05). The figure shows the cap for
# other temperatures and numbers of classes (with 100 classes, a deviation over $C$ would be the same line). Two consequences. The
# target is always **soft**: two thirds of the probability go to other classes, even for the clearest photograph. And the loss is
# **small**: two clear answers of which one is plainly wrong differ by 0.44, and by 0.018 after the weight of equation 7. The pairs
# above had 0.060, which makes 0.0024. The GAN's own class term, `g_class` in the table of the small run, is about 0.2, and its gradient
# is what the new one competes with.
#
# ## Try it
# Two answers of one network are in this page, and everything is computed by your browser. Things to try: move tau and watch the
# dashed cap; choose *three times as sure*, then logits *only divided by tau*. Choose *one peak each*: the gradient of the wrong peak is
# zero. Raise a third generated logit to 5, half of the peak: now the wrong peak has a gradient that would lower it, a small one beside
# that of the right class; at 10 it is zero again. Choose *no opinion*: the step is left out. Then move one generated logit by a tenth,
# the least there is, and look at the length of the gradient.

# %%
tenths = lambda logits: (10 * logits).round() / 10
examples = {f"a real and a generated image: {real.classes[label]}": (loud[place], quiet[place])
            for place, label in list(enumerate(labels.tolist()))[:3]}
one_hot = 10 * torch.eye(real.num_classes, dtype=torch.float64)
examples |= {"the same answer, three times as sure": (tenths(loud[0]), 3 * tenths(loud[0]) - 2), "one peak each": (one_hot[0], one_hot[-1]),
             "no opinion": (loud[0], torch.zeros_like(loud[0]))}
widgets.tau_explorer(examples, real.classes, at=2.0, uid="tau")

# %% tags=["live"]
# Live (needs a kernel): probabilities of the real images, largest first, mean over the batch, for a continuous tau.
def sorted_shares(t):
    shares = {"standardized": skd.standardize_logits(loud, t), "only divided": loud / t}
    values = {title: soft.softmax(dim=1).sort(dim=1, descending=True).values.mean(dim=0) for title, soft in shares.items()}
    with plots.style():
        fig = plots.figure(plots.HALF)
        ax = fig.subplots()
        for title, value in values.items():
            ax.plot(range(1, len(value) + 1), value, ".-", label=title)
        ax.axhline(largest(real.num_classes, t), ls="--", color="#bc4c00", label="cap")
        ax.set_ylim(0, 1)
        ax.set_xlabel("class, by its probability")
        ax.set_ylabel("probability")
        ax.legend()
    return fig


widgets.live(sorted_shares, label="tau", t=(0.5, 8.0, 0.1))

# %% [markdown]
# ## A small run
# Three runs go on from the same GAN, with the same batches, the same noise and the same networks of the pool: **SKD**; SKD
# **without standardization**, the paper's ablation, called **raw** here (logits are only divided by $\tau$); and a control that the paper
# does not have, the same game with **weight 0**: a GAN that trains for as many updates more. Whatever it gains is not SKD's. Text and
# tables call the runs by these names throughout, and the GAN that all of them start from **CGAN**.
#
# First, sizes. The metrics have the terms of the generator's loss, `g_source` (looks real) and `g_class` (looks like its class), then
# `match`, the whole term of equation 7 with its weight, and `ratio`: the length of the gradient that `match` sends into the
# generated images, over the length of the gradient that the GAN's two terms send there. A term acts by its gradient, so the ratio
# counts.

# %%
def go_on(title, each):
    """The run `each` from the common GAN; read from its folder if it was made before."""
    with contextlib.redirect_stdout(io.StringIO()):
        return runs.run(skd, each, folder / title.replace(" ", "-"), real=real)


variants = {"SKD": config, "raw": replace(config, standardize=False), "weight 0": replace(config, weight=0.0)}
finished = {title: go_on(title, each) for title, each in variants.items()}
metrics = {title: result.metrics() for title, result in finished.items()}
size = lambda values: statistics.mean(abs(value) for value in values)
columns = ("mean", *variants)
lines = [(title, *(f"{size(metrics[each][key]):{form}}" for each in variants)) for title, key, form in (
    ("|g_source|", "g_source", ".2f"), ("g_class", "g_class", ".2f"), ("L_SKD", "skd", ".3f"), ("match", "match", ".4f"),
    ("ratio", "ratio", ".4f"))]
lines.append(("flat steps", *(f"{sum(metrics[each]['flat']):.0f}" for each in variants)))
display(papers.Table(columns, tuple(lines), ("L_SKD of raw is the divergence without standardization, another quantity",),
                     numeric=frozenset(columns[1:]), caption=f"{config.steps} updates from one GAN"))
ratios = {title: statistics.mean(metrics[title]["ratio"]) for title in ("SKD", "raw")}
share = size(metrics["SKD"]["match"]) / size(metrics["SKD"]["g_class"])
with plots.style():
    fig = plots.figure(plots.HALF)
    ax = fig.subplots()
    for index, title in enumerate(ratios):
        each, paint = metrics[title]["ratio"], plots.color(title, index)
        ax.plot(range(1, len(each) + 1), each, color=paint, lw=0.7, alpha=0.3)
        for first in range(0, len(each), config.redraw):             # the mean does not mix two networks of the pool
            part = each[first:first + config.redraw]
            ax.plot(range(first + 1, first + len(part) + 1), [statistics.mean(part[max(k - 4, 0):k + 5]) for k in range(len(part))],
                    color=paint, label=None if first else title)
    for new in range(config.redraw, config.steps, config.redraw):
        ax.axvline(new + 0.5, color="#57606a", ls=":", lw=1.2, label="another network" if new == config.redraw else None)
    ax.set_yscale("log")
    ax.set_xlabel("update of the generator")
    ax.set_ylabel("ratio of gradients")
    ax.legend(loc="lower left")
fig

# %% [markdown]
# *Table.* SKD's whole term of equation 7 is about a hundredth of `g_class`, and its gradient half a hundredth of the GAN's, or less; raw's
# gradient has about one hundredth. (The factor $\tau^2=4$ is in it already; `g_source` is a score without a zero, so only its gradient
# means anything.) With weight 0 the term is computed and not used, and $L_{\mathrm{SKD}}$ is the same as SKD's to the last digit shown:
# these updates with the term have not lowered it.
#
# *Figure* (faint: every update; strong: a running mean over nine). With standardization the ratio is largest when the network is new
# and sure of nothing: the price above. At the dotted line, after update 50, the next network is drawn, often of another kind. There
# SKD's ratio jumps to five or eight times what it was, raw's hardly moves, and for a moment SKD's is the larger, as in the first five
# updates. (With seeds 1 and 2 SKD's is the larger one right after the line, too, but with seed 1 because raw's falls.)
#
# On average the gradient without standardization is two to three times as long. That is the other temperature again: raw compares
# logits that are about twice as far apart as $Z$. So the ablation changes two things at once: what is compared, and **how much it
# weighs**; and in the 32 pairs above, where real and generated answers are equally sure, the second is nearly all of it.
#
# Two more runs take the second one away: **strong**, which is SKD with a hundred times the weight, and **strong raw**, which is raw
# with just so much weight that its gradient is as long as that one's. Then all generators are asked for the same images, same class and
# same noise, and we measure how far the images are apart: the root of the mean squared difference of pixels, from 0 to 255.

# %%
even = float(f"{strong * weight * ratios['SKD'] / ratios['raw']:.2g}") if ratios["raw"] else strong * weight
heavy = {"strong": replace(config, weight=strong * weight), "strong raw": replace(config, weight=even, standardize=False)}
for title, each in heavy.items():
    finished[title] = go_on(f"{title} {each.weight:g}", each)
    ratios[title] = statistics.mean(finished[title].metrics()["ratio"])
    kept = size(finished[title].metrics()["skd"]) / size(metrics["SKD" if each.standardize else "raw"]["skd"])
    print(f"{title}: weight {each.weight:g}, ratio {ratios[title]:.2f},\n  L_SKD: {kept:.2f} of the small weight's")
generators = {"CGAN": origin} | {title: result.syn for title, result in finished.items()}
wanted = torch.arange(real.num_classes).repeat_interleave(20)
same_noise = {title: (syn.sample(wanted, runs.stream(seed, "same noise")).cpu() + 1) * 127.5 for title, syn in generators.items()}
moved = lambda one, other: float((same_noise[one] - same_noise[other]).square().mean().sqrt())
pairs = (("CGAN", "weight 0"), ("weight 0", "SKD"), ("weight 0", "raw"), ("weight 0", "strong"), ("weight 0", "strong raw"),
         ("strong", "strong raw"))
lines = tuple((f"{one} and {other}", f"{moved(one, other):.1f}") for one, other in pairs)
display(papers.Table(("generators", "apart"), lines, numeric=frozenset({"apart"}),
                     caption="Same class and noise: difference of the images, in grey levels of 255"))
few, rows_shown = range(20, len(wanted), 40), ("CGAN", "weight 0", "SKD", "strong", "strong raw")
plots.image_grid(torch.cat([same_noise[title][few] / 255 for title in rows_shown]).clamp(0, 1),
                 torch.arange(len(rows_shown)).repeat_interleave(len(few)), rows_shown,
                 caption=", ".join(real.classes[wanted[place]] for place in few) + "; same noise in each column")

# %% [markdown]
# The updates change the images much (first line), and the term hardly: SKD and weight 0 differ by half a grey level or less, and no eye
# finds the difference in the picture. (Raw, with a ratio 2.4 times SKD's, moves them even less.) With a hundred times the weight its
# gradient is a third to a half as long as the GAN's own, and the images are still within a few grey levels. Part of even that means
# nothing: a GAN's course is unstable, and any small push ends in somewhat other images. (Nor is the first line all progress. The GAN
# was trained at a rate twenty times as high, which moves its images back and forth; what chapter 7 keeps is an *average* of its last
# fifty updates or so, and now, at the small rate, the average settles on where the game stands.)
#
# Why does a strong term do so little? Its divergence stays where it was (printed above the table). One reason is the twins: the images
# may be as close to real ones as real ones are to each other before SKD begins. With seed 2 they are not, and the divergence still
# stays. The other reason is the optimizer: Adam moves every weight by about the learning rate at most, whatever the gradient's
# length. A large weight turns the direction of an update and does not make it longer, and these are few updates at a small rate.
#
# Now fresh networks are trained on what each generator makes. *Frozen*: IPC images of each class are drawn once and used throughout, as
# with any distilled set. *Resampled*: every batch is drawn anew, as many images at a time, so a network never sees an image twice; the
# papers of this family report that. Random images stand beside them, and the **budget** in stored numbers, with the images per class
# that it would buy. All networks are final before the test images are read, once.

# %%
def tested(title, sets, how, **about):
    """Test accuracies in percent of networks trained on `sets` by one of the recipes; their row goes to `rows`."""
    place = folder / "networks" / title.replace(" ", "-")                  # a run that is cut off goes on
    measured = evaluate.evaluate(sets, real, recipes[how], seed=seed, quiet=True, folder=place)
    rows.append(measured.row(preset=preset, command=command, **about))
    return 100 * measured.accuracies


command = (f"make run CHAPTER=09 ARGS='-p preset {preset} -p ipc {config.ipc} -p tau {config.tau:g} -p weight {config.weight:g} -p strong "
           f"{strong:g} -p steps {config.steps} -p protocol {protocol} -p train_steps {train_steps} -p width {width} -p repeats {repeats} "
           f"-p seed {seed}'")
weights, scalars = origin.budget, math.prod(real.shape) * real.num_classes
as_many = max(1, round(weights / scalars))                         # images per class that the generator's weights would buy
rows, accuracies = [], {}
for count in sorted({config.ipc, as_many}):
    random_sets = [select.random(real, count, runs.stream(seed, "random", k)) for k in range(repeats)]
    accuracies["Random", count] = tested(f"Random {count}", random_sets, "frozen", method="Random")      # nothing to draw anew
for title, syn in generators.items():
    each = (variants | heavy).get(title)
    method, variant = ("CGAN", "") if each is None else ("DiM", "weight 0.0") if title == "weight 0" else ("SKD", each.variant)
    about = {"method": method, "variant": variant, "distilling": finished[title].minutes if each else gan_minutes}
    for how in recipes:
        accuracies[title, how] = tested(f"{title} {each.weight:g}" if each else title, syn, how, **about)


called = {("DiM", "weight 0.0"): "weight 0", ("SKD", "no standardization"): "raw"} | {
    ("SKD", each.variant): title for title, each in heavy.items()}
display(papers.side_by_side(rows, dataset=config.dataset, ipcs=[config.ipc], methods=("Random", "CGAN", "DiM", "SKD"), paper="SKD",
                            protocols={how: recipe.name for how, recipe in recipes.items()}, names=called, alike=("DiM", "SKD"),
                            caption=f"this run, {config.dataset}"))
pm = lambda values: f"{values.mean():.1f}" + (f"±{values.std():.1f}" if len(values) > 1 else "")
print(f"a generator: {weights:,} numbers,\n  {weights / scalars:.1f} images per class")
print(f"Random at IPC {as_many}: {pm(accuracies['Random', as_many])}")
gains = {title: accuracies[title, "resampled"] - accuracies["weight 0", "resampled"] for title in ("SKD", "raw", *heavy)}
print("resampled, over weight 0 (each network):")                    # same first weights, same random numbers
for title, gain in gains.items():
    print(f"  {title}: {gain.mean():+.1f} ({', '.join(f'{each:+.1f}' for each in gain.tolist())})")

is_default = (preset, ipc, tau, weight, strong, steps, protocol, train_steps, width, repeats) == (
    "cpu", 0, 2.0, 0.01, 100.0, 0, "strict-cpu", 100, 16, 3)
part = moved("weight 0", "SKD") / moved("CGAN", "weight 0")
print("claims:\n  gradient beside the GAN's:")
print(f"    SKD {ratios['SKD']:.2%} (< 2 %), raw {ratios['raw']:.2%} (< 5 %)")
print(f"  SKD's term: {share:.1%} of g_class (< 5 %)")
print(f"  images, SKD from weight 0: {part:.0%}\n    of what the updates change (< 5 %)")
print(f"  accuracy, from weight 0 at most\n    {max(abs(gain.mean()) for gain in gains.values()):.1f} points (< 3)")
assert not is_default or (ratios["SKD"] < 0.02 and 1.2 * ratios["SKD"] < ratios["raw"] < 0.05 and share < 0.05 and part < 0.05)
assert not is_default or max(abs(gain.mean()) for gain in gains.values()) < 3

# %% [markdown]
# *Read down.* Among the last five lines nothing can be ranked: in each column their means lie within a point, their spreads are one or
# two points, and another GAN moves all of them together by more. (We ran seeds 0, 1 and 2: frozen, SKD has 55, 60 and 38, the last
# from the GAN that has learned its classes less well; one random image per class has 50, 52 and 53. Resampled, 65, 68 and 65.) The
# comparison can be made sharper, since network number $k$ has the same first weights and the same random numbers in every line. Its
# differences from weight 0, printed below the table, go up and down, with a hundred times the weight, too; no mean exceeds half a
# point with any of the three seeds, and three points are what the printed claim allows. So in this run **nothing separates SKD from a
# GAN that trains on, with or without standardization**.
#
# What weight 0 is good for shows in the resampled column. The CGAN that SKD started from has 66.0, and SKD 65.1: without a control one
# would have said that SKD costs a point. Weight 0 has 65.2. With seed 2 it is the other way round: SKD gains 2.8 points on its CGAN,
# and would have been praised for it. Weight 0 gains 2.7.
#
# *Read across.* Frozen and resampled are two questions, and the difference, ten points here, is larger than any between two of these
# generators. Only the frozen column compares with Random and with earlier chapters.
#
# *Read the budget.* This narrow generator is stored in as many numbers as six images per class. Random at IPC 6, the fair neighbour,
# is far above the frozen generator at IPC 1 and about level with the resampled one. At this size a generator saves no storage; it
# pays when one wants ever more images from the same weights (chapter 7).
#
# ## The paper and us
# What does standardization gain in the paper? Its tables 1 and 2 print SKD with and without it, and DiM, as mean and standard deviation
# $\sigma$ over five trials. The standard error of a difference of two such means is $\sqrt{(\sigma_1^2+\sigma_2^2)/5}$. Below 2.3
# errors, a difference is what chance does in more than one of twenty comparisons (Student's $t$ at 5 %, two-sided, with the 8 degrees
# of freedom that two times five trials leave).

# %%
place = lambda cell: (cell.table, cell.dataset, cell.ipc, cell.eval_arch)
theirs = {place(cell): cell.accuracy_mean for cell in papers.published(method="GLD", eval_arch=None, paper="GLD")}
apart = [cell.accuracy_mean - theirs[place(cell)] for cell in papers.published(method="SKD", eval_arch=None, paper="SKD")
         if cell.table == "1" or cell.eval_arch != "convnet3"]                              # table 2 prints the ConvNet's once more
print(f"SKD beside GLD, each from its own paper:\n  higher in {sum(d > 0 for d in apart)}, lower in {sum(d < 0 for d in apart)}, "
      f"equal in {sum(d == 0 for d in apart)} of {len(apart)} cells,\n  from {min(apart):+.1f} to {max(apart):+.1f} points")
papers.gains("SKD", {"over raw": (("SKD", ""), ("SKD", "no standardization")), "over DiM": (("SKD", ""), ("DiM", ""))})

# %% [markdown]
# * *Standardization* is never worse. On Fashion-MNIST and MNIST at one image per class and on CIFAR-10 at 10 and 50 the gains are
#   beyond 2.3 errors, up to a point; in the other five cells of table 1 they are not. On other networks the gain is 0.3 to 1.0.
# * *Over DiM* the gains are 1 to 2 points on CIFAR-10 at 10 and 50 and on MNIST and Fashion-MNIST at one, and nothing at 50 images on the
#   two grey sets. **Without standardization** SKD is above DiM in most cells, too: part of the gain is the divergence's, or its weight's.
# * *What is not in the tables.* SKD evaluates with batches of 32, 64 and 128 images at IPC 1, 10 and 50, DiM's code with 64; with
#   resampling, batch size and IPC decide how many images a network sees. All trials share one generator each, as far as the text
#   says, so the errors leave out the spread over generators. And a control that trains the GAN on without any term is missing,
#   so we do not know how much of the step from CGAN to DiM and SKD is 100 more epochs. GLD, by the same group (chapter 8), is cited
#   but not listed. In the twelve cells that both papers print, SKD is higher in six, lower in four and equal in two.
#
# Beside ours, from `book/results/measured.csv`, a table for each GAN; *frozen* and *resampled* are the protocols `strict-cpu` and
# `strict-cpu-resampled`, and *recipe* is `dim`, that of DiM's code: resampled, with the one of five checkpoints that is best on validation
# images. The control, weight 0, ran as DiM with that weight. The $\pm$ is the spread of networks on one generator each: two methods that
# differ by less than about twice the larger one are not told apart. A note says how far apart the runs are that went on from the GAN,
# weight 0 among them. Where that is less than the spread, nothing separates the losses from each other or from no loss at all; what is left
# to read is the step from the CGAN to all of them, which the further updates make. (Without weight 0 in a table one cannot tell whose
# step it is.) Minutes in the rows are those of a run's own updates and of its test networks; the GAN's are in the row of CGAN only. For
# bfloat16, see chapter 7.

# %%
chapter.record(folder, rows, results, pictures={"generated": finished["SKD"].syn.at(10).show()}, dataset=config.dataset,
               ipcs=[config.ipc], methods=["Random", "CGAN", "SKD"], protocol=recipes["frozen"].name)
stored = {"frozen": "strict-cpu", "resampled": "strict-cpu-resampled"}
sizes = {name: f"GAN of width {each.gan_width}, {each.gan_steps:,} steps" for name, each in skd.PRESETS.items()}
for table in papers.larger_runs("SKD", evaluate.read_rows(), [stored, {"recipe": "dim"}], sizes,
                                methods=("Random", "CGAN", "DiM", "GLD", "SKD"), paper="SKD", names=called, alike=("DiM", "GLD", "SKD")):
    display(table)

# %% [markdown]
# **What differs from the paper, and what we expect of it**
#
# 1. *Deviation.* The paper does not say whether it divides by $C$ or $C-1$; we take $C-1$. It is another $\tau$, by a factor of 1.05.
#    Expected effect: none that one could measure.
# 2. *Reduction.* The paper names none over the batch; we take the mean. A sum would be a weight 64 times as large.
# 3. *The ablation.* The paper does not say whether logits are still divided by $\tau$ without standardization; ours are, and
#    $\tau^2$ stays.
# 4. *The GAN.* The paper prints the log loss and builds on DiM's code, which trains a Wasserstein GAN with gradient penalty; so do
#    we. All rates, the noise, the augmentation and how the pool's networks train are DiM's, since the paper is silent. Expected effect:
#    points, in either direction.
# 5. *Pixels.* Networks see all images normalised as in evaluation; DiM's code feeds values from $-1$ to 1 to a normaliser made for
#    0 to 1. Expected effect: a little better for us.
# 6. *Flat answers.* A step with a deviation below $10^{-4}$ is left out. It never happened here.
# 7. *Evaluation.* The paper reports the best of five test accuracies, on resampled images only. Ours choose nothing on test images and
#    come frozen, too. Expected effect: tenths to points lower.
# 8. *Size.* The paper's generator has 196 channels and 3.3 million weights and trains for tens of thousands of updates; the default
#    run has 16 channels, 1,000 updates of the GAN at a rate twenty times the paper's, with averaged weights, and then 75. Full
#    presets have a table only where somebody has run them.
#
# What a run of this size can show: what standardization does to answers and gradients, how small the term is beside the
# GAN's, and that the control is needed. What it cannot show: that the paper's half a point is not there. Its networks train for
# thousands of batches and not for a hundred, so their logits say more; its GAN is another; and half a point is less than our spread.
# To see it, one would have to train many generators, and each for much longer.
#
# ## Exercises
# Solutions are folded below each question.
#
# **1. Change a number.** At which weight would the term's gradient be as long as the GAN's? Take ten updates with several weights, read
# `ratio`, and compare the images with those of weight 0. Does the divergence fall at last when the term is by far the strongest?

# %% tags=["hide-cell"]
ends, means = {}, {}
for factor in (0.0, 0.01, 1.0, 100.0):
    taken = [(step.losses, step.syn) for step in skd.distill(real, replace(config, weight=factor, steps=10))]
    ends[factor] = (taken[-1][1].sample(wanted, runs.stream(seed, "same noise")).cpu() + 1) * 127.5
    means[factor] = statistics.mean(losses["skd"] for losses, _ in taken[5:])
    apart = float((ends[factor] - ends[0.0]).square().mean().sqrt())
    ratio = statistics.mean(losses["ratio"] for losses, _ in taken)
    print(f"weight {factor:g}: ratio {ratio:.2f},\n  from weight 0: {apart:.2f} grey levels,\n"
          f"  L_SKD {means[factor] / means[0.0] - 1:+.1%}")
equal = config.weight / max(ratios["SKD"], 1e-9)                     # the ratio is proportional to the weight
fallen = min(means.values()) / means[0.0] - 1
chapter.answer(f"The gradient of the term is proportional to its weight, so both are equally long at a weight of about {equal:.1g}, by the "
               f"ratio of the small run. The divergence falls by {abs(fallen):.1%} at most, however far beyond that the weight is. Adam "
               "divides every step by the size of the gradient: a large weight only turns the direction of a step, and ten steps at this "
               "rate do not go far.")

# %% [markdown]
# **2. Change an equation.** Leave out $\tau^2$: how does the gradient's length depend on $\tau$ with and without it? Then exchange real and
# generated in equation 6. Is the gradient still at right angles to the logits? Why?

# %% tags=["hide-cell"]
lengths = {}
for t in (0.5, 1.0, 2.0, 4.0, 8.0):
    syn = quiet.clone().requires_grad_()
    length = float(torch.autograd.grad(skd.skd_loss(loud, syn, t), syn)[0].norm())
    lengths[t] = length
    print(f"tau {t:3.1f}: {length:.4f}, with tau^2 {t**2 * length:.4f}")
syn = quiet.clone().requires_grad_()
reverse = torch.autograd.grad(skd.skd_loss(syn, loud, 2.0), syn)[0]
print("exchanged, at right angles to the logits:", zero((reverse * quiet).sum(dim=1)), sep="\n  ")
chapter.answer(f"From tau 1 to 8 the length changes by a factor of {lengths[1.0] / lengths[8.0]:.0f}, and with tau^2 by one of "
               f"{lengths[1.0] / (64 * lengths[8.0]):.2f}. And the angle does not come from the divergence: whatever is computed from Z is "
               "unchanged when the logits are scaled, so its derivative along them is zero.")

# %% [markdown]
# **3. Bring your data.** The cap depends on the number of classes. Which $\tau$ gives your data the cap of 0.3507 that ten classes have at
# $\tau=2$? Solve $e^{\sqrt C/\tau}/(e^{\sqrt C/\tau}+C-1)=0.3507$ for $\tau$ (when is there no solution?) and take a few updates of
# SKD with it. Any arrays will do; here, half of the classes at half the resolution, with a GAN of their own.

# %% tags=["hide-cell"]
def same_cap(num_classes):
    cap = largest(10, 2.0)
    odds = cap * (num_classes - 1) / (1 - cap)
    return math.sqrt(num_classes) / math.log(odds) if odds > 1 else math.nan      # no cap is below 1 / C


*arrays, kinds = chapter.half(real, least=3)                        # training images and labels, test images and labels; names of classes
print("tau with the same cap:", *(f"{count} classes {same_cap(count):.2f}" for count in (3, len(kinds), 10, 100)),
      "2 classes: none" if math.isnan(same_cap(2)) else "", sep="\n  ")
mine = data.ImageSet.from_arrays(*arrays, classes=kinds, name="mine")
small = replace(config, dataset="mine", gan_width=8, gan_steps=5, steps=5, tau=same_cap(len(kinds)))
with contextlib.redirect_stdout(io.StringIO()):
    losses = [step.losses for step in skd.distill(mine.to(runs.pick_device()), small)]
print(f"{len(losses)} updates with tau {small.tau:.2f}, the last:\n  L_SKD {losses[-1]['skd']:.3f}, ratio {losses[-1]['ratio']:.4f}")
chapter.answer("Two classes have no solution: of two probabilities one is at least a half. And with two classes Z is the same for every "
               "image, up to its sign: do not standardize so few.")
