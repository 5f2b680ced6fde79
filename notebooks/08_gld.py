# %% [markdown]
# # 8. Global structure and local details
#
# *About two minutes and 1.5 GB on one CPU core, and one minute more if chapter 7 has not left its generator on this machine.
# Paper: Li, Togo, Ogawa and Haseyama, "Generative Dataset Distillation: Balancing Global Structure and Local Details", CVPR workshops
# 2024 (GLD). It builds on chapter 7: Wang et al., "DiM: Distilling Dataset into Generative Model", 2023.*
#
# ## Why
# In chapter 7 a generator went on training while a network looked at a real and at a generated image of the same class, and was to give
# the same answer to both. The answer, ten numbers at the end of the network, says what the image shows *as a whole*. It says little of
# how a sleeve or a seam looks. GLD asks for a second likeness: half-way through the network, where there still is a **map** with a height
# and a width, the two images should look alike **place by place**. The first it calls *global structure*, the second *local details*, and
# the title promises to balance them.
#
# A balance has weights. The paper names two, writes sums where its predecessor has means, and does not say which of them was run. It
# sounds like a detail. It is a factor of a million. So this chapter measures: how large are the two terms beside the GAN's own, in each
# reading? What do they ask of the generator? And what happens if the weight of the local term moves over six powers of ten?

# %%
import contextlib
import io
import math
import statistics
from dataclasses import replace

import torch
from IPython.display import display

from ddlib import chapter, data, evaluate, gan, methods, models, papers, plots, runs, select, train, widgets
from ddlib.methods import cgan, dim, gld

# %% tags=["parameters"]
preset: str = "cpu"               # "tiny" | "cpu" | "cpu-full" | "gpu" | "cifar10-ipc10-cross" | ... (all of gld.PRESETS)
ipc: int = 0                      # images per class that the generator is asked for; 0: the preset's
weight: float = 0.01              # omega_g, of the global term
local_weight: float = 0.001       # omega_l, of the local term
omegas: str = "0.001,0.1,1,10,100,1000"     # omega_l of the sweep
steps: int = 0                    # updates of the generator in every run; 0: 40 with "cpu", else the preset's
redraw: int = 0                   # updates until another network is drawn; 0: 14 with "cpu", else the preset's
lr: float = 0.0                   # rate of these updates; 0: 0.0005 with "cpu", else the preset's
repeats: int = 2                  # runs of every setting, from the same GAN
protocol: str = "strict-cpu"      # how test networks are trained: "strict-cpu" | "strict"; each frozen and resampled
train_steps: int = 100            # steps of a test network; 0: the protocol's
width: int = 16                   # of the test networks; the papers have 128
networks: int = 2                 # test networks for each generator
seed: int = 0
out: str = ""                     # folder for the results; empty: one below runs/08_gld
results: str = ""                 # CSV file that gets the rows of this run; empty: none

# %%
config = replace(methods.preset(gld, preset), weight=weight, local_weight=local_weight, seed=seed, gan_seed=seed)
hurry = {"steps": 40, "redraw": 14, "lr": 0.0005} if preset == "cpu" else {}                     # six settings, in a chapter's time
asked = {name: value for name, value in (("ipc", ipc), ("steps", steps), ("redraw", redraw), ("lr", lr)) if value}
config = replace(config, **{**hurry, **asked})
options = {"width": width, "repeats": networks} | ({"steps": train_steps} if train_steps else {})
recipes = {how: evaluate.with_options(name, **options) for how, name in (("frozen", protocol), ("resampled", f"{protocol}-resampled"))}
folder = runs.Path(out) if out else runs.folder("08_gld", f"{preset}-ipc{config.ipc}-{config.steps}-{config.redraw}-{config.lr:g}-{seed}")
real = runs.load_data(config).to(runs.pick_device())
device, num_classes = real.train.images.device, real.num_classes
chapter.setting_table(config, ("dataset", "gan_width", "gan_steps", "steps", "batch_size", "lr", "weight", "local_weight",
                               "global_reduction", "local_reduction", "pool", "pool_widths", "net_steps", "redraw", "augment"),
                      f"Preset {preset}; weight is ω_g and local_weight ω_l of the equations below")

# %% [markdown]
# ## The equation
# Take $B$ real images and $B$ generated ones, the $b$-th of the one with the class of the $b$-th of the other; nothing else connects
# the two images of a **pair**. A network answers with $C$ logits for each: $l^{\mathcal T}_{k,b}$ for the real image ($\mathcal T$ is
# the paper's name of the real set) and $l^{\mathcal S}_{k,b}$ for the generated one ($\mathcal S$), with $k=1,\dots,C$. Half-way,
# here after the second block of a ConvNet (with its pooling) and after the second stage of a ResNet, it has a map of $F$ numbers
# (channels times height times width), $\mathbf f^{\mathcal T}_b$ and $\mathbf f^{\mathcal S}_b\in\mathbb R^F$. The two losses are the
# paper's equations 6 and 7,
#
# $$
# \begin{aligned}
# L_{\mathrm{global}}&=\sum_{b=1}^{B}\sum_{k=1}^{C}\big(l^{\mathcal S}_{k,b}-l^{\mathcal T}_{k,b}\big)^2,\\
# L_{\mathrm{local}}&=\sum_{b=1}^{B}\big\lVert\mathbf f^{\mathcal S}_b-\mathbf f^{\mathcal T}_b\big\rVert_2^2 ,
# \end{aligned}
# $$
#
# and they are added to the loss of the conditional GAN (chapter 7) with a weight each (equation 8):
#
# $$
# \begin{gathered}
# L_{\mathrm{total}}=L_{\mathrm{CGAN}}+\omega_g\,L_{\mathrm{global}}+\omega_l\,L_{\mathrm{local}},\\
# \omega_g=0.01,\quad\omega_l=0.001 .
# \end{gathered}
# $$
#
# Everything else is DiM's: a network is drawn anew every so many updates from a pool of three, trains on real images in between, is
# fixed while it looks, and the discriminator takes its step as before. DiM's own term compares log-probabilities instead of logits,
# and has no second one.
#
# **Sum or mean.** $\omega_g=0.01$ is DiM's weight, and the paper says so. But DiM divides its sum by $BC$. So there are three readings of
# each loss, and `reduction` chooses: **sum**, as printed; **mean**, divided by the number of all entries, $BC$ or $BF$; **batchmean**,
# between them, divided by $B$. In the paper's setting, $B=64$, $C=10$ and in a ResNet a map of 64 channels with 16 by 16 places, a mean
# divides by $640$ and by $64\cdot16{,}384=1{,}048{,}576$. Our defaults are batchmean for the logits and mean for the maps.
#
# ## By hand
# With a pencil first. Two pairs, three classes, and maps of one channel with two by two places:

# %% tags=["nbval-check-output"]
l_real, l_syn = [[2, 0, 0], [0, 1, 0]], [[1, 1, 0], [0, 2, 1]]                       # (B, C)
f_real, f_syn = [[[1, 0], [0, 2]], [[0, 1], [1, 0]]], [[[1, 1], [0, 0]], [[0, 0], [2, 0]]]   # (B, h', w')


def entries(nested):
    """The numbers of nested lists, one after the other."""
    return [number for part in nested for number in (entries(part) if isinstance(part, list) else [part])]


def by_hand(real_seen, syn_seen):
    """The squared distance as sum, as mean over entries and as mean over pairs."""
    squares = [(s - t) ** 2 for t, s in zip(entries(real_seen), entries(syn_seen), strict=True)]
    return {"sum": sum(squares), "mean": sum(squares) / len(squares), "batchmean": sum(squares) / len(real_seen)}


global_by_hand, local_by_hand = by_hand(l_real, l_syn), by_hand(f_real, f_syn)
for reduction in ("sum", "mean", "batchmean"):
    print(f"{reduction:>9}: {global_by_hand[reduction]:.3f} and {local_by_hand[reduction]:.3f}, "
          f"added {0.01 * global_by_hand[reduction] + 0.001 * local_by_hand[reduction]:.4f}")

# %% [markdown]
# Logits: four differences of 1, so 4 as a sum, $4/6$ for an entry, 2 for a pair. Maps: $1+4$ and $1+1$, so 7, $7/8$ and $3.5$. In so small
# an example sum and mean differ by factors of 6 and 8. So the balance shifts, too: with its weight, the global term is $5.7$ times the
# local one as sums and $7.6$ times as means.
#
# Now real answers. Everything starts from **one conditional GAN**. A ConvNet-3 is drawn, trains on a few batches of photographs, and
# looks at 32 real images and at 32 generated ones of the same classes. The picture shows six pairs, real above generated; what stands
# below each other has to agree place by place.

# %%
game, origin, gan_minutes = chapter.one_gan(real, config)
images, labels = next(cgan.real_batches(real, min(32, config.batch_size), seed))
fake = origin.sample(labels, runs.stream(seed, "pairs")).requires_grad_()             # (B, c, h, w) in [-1, 1]


def looks(network, net_width, updates):
    """What a network of the pool makes of both batches, after the real batches of so many updates."""
    pool = dim.Pool(real, replace(config, pool=network, pool_widths=str(net_width or ""), redraw=updates + 1))
    for index in range(1, updates + 1):
        pool.advance(index)
    return pool.look(1, real.preprocess(images), real.preprocess((fake + 1) / 2))


names = {"convnet3": "ConvNet-3", "resnet10_dim": "ResNet-10", "resnet18_dim": "ResNet-18"}
seen = {names.get(network, network): (looks(network, net_width, 0), looks(network, net_width, 20))
        for network, net_width in config.networks()}
(real_seen, syn_seen) = seen[next(iter(seen))][1]
print("logits", tuple(real_seen.logits.shape), "map", tuple(real_seen.features.shape))
shown = torch.cat([images[:6].float() / 255, (fake[:6].detach() + 1) / 2]).cpu()
plots.image_grid(shown, torch.arange(2).repeat_interleave(len(shown) // 2), ("real", "generated"),
                 caption=", ".join(real.classes[label] for label in labels[:6]))

# %% [markdown]
# The pairs have a class in common and nothing else: a shirt with a print faces a plain one. Keep that in mind.
#
# ## The library
# `gld.global_loss` and `gld.local_loss` are equations 6 and 7 with a `reduction`, `gld.loss_terms` is what equation 8 adds. Same numbers as
# by hand, on the pencil's example and on the real answers; then three special cases.

# %% tags=["nbval-check-output"]
as_tensors = [torch.tensor(values, dtype=torch.float64) for values in (l_real, l_syn, f_real, f_syn)]
loops = [by_hand(a.tolist(), b.tolist()) for a, b in zip(real_seen, syn_seen, strict=True)]                # logits, map
wide = [part.detach().double() for part in (real_seen.logits, syn_seen.logits, real_seen.features, syn_seen.features)]
for expected, parts in (((global_by_hand, local_by_hand), as_tensors), (loops, wide)):
    for reduction in ("sum", "mean", "batchmean"):
        found = gld.global_loss(*parts[:2], reduction).item(), gld.local_loss(*parts[2:], reduction).item()
        assert all(math.isclose(one, other[reduction], rel_tol=1e-5) for one, other in zip(found, expected, strict=True))
print("by hand and library agree")
added = gld.loss_terms(real_seen, syn_seen, config)["match"].item()
assert math.isclose(added, config.weight * loops[0][config.global_reduction] + config.local_weight * loops[1][config.local_reduction],
                    rel_tol=1e-4)
as_dim = replace(config, local_weight=0.0, log_softmax=True, global_reduction="mean")
assert torch.allclose(gld.loss_terms(real_seen, syn_seen, as_dim)["match"], dim.loss_terms(real_seen, syn_seen, config)["match"])
print("no local term, log-probabilities, mean: DiM")
print("the same images on both sides:", gld.loss_terms(real_seen, real_seen, config)["match"].item())
entries_of = {"global": real_seen.logits.numel(), "local": real_seen.features.numel()}
assert all(math.isclose(loop["sum"], loop["mean"] * size, rel_tol=1e-9) for loop, size in zip(loops, entries_of.values(), strict=True))
print("the sum is the mean, times", *entries_of.values())

# %% [markdown]
# ### Sum or mean: the sizes
# What are these terms beside the GAN's? The next cell takes the same pairs through each network of the pool, after 40 batches of real
# images, and prints both losses under each reduction, without weights. In the last lines stand the two terms of the generator's own
# loss, both means. The source term has bars, since it is a score without a zero: add a number to all scores of the discriminator (the
# *critic* of a Wasserstein GAN), and its loss stays the same. How large it is says nothing.
#
# Other values can mislead as well, because a generator follows *gradients*. So the second and third table have what counts: the length of
# the gradient that a term, **with the paper's weight**, sends into the generated images, divided by the length of the gradient that the
# GAN's loss sends there. We call it the **pull**: at 1 the term pulls as strongly as the GAN, at 0.01 it hardly exists, at 100 there is
# no GAN left.
# The table *as drawn* has the networks before their first batch, which is what the paper says literally ("random initial model"). In
# the runs of this chapter a network gets two batches per update and is replaced after 14 updates, so that it never sees more than 28:
# expect a pull between those of the two tables.

# %%
def gradient(term):
    """Length of its gradient on the generated images."""
    return float(torch.autograd.grad(term, fake, retain_graph=True)[0].norm())


reductions = ("sum", "mean", "batchmean")
own = gan.generator_loss(game.discriminator, fake, labels, config.objective)
unit = gradient(own["total"])
losses = {"global": lambda pair, reduction: gld.global_loss(pair[0].logits, pair[1].logits, reduction),
          "local": lambda pair, reduction: gld.local_loss(pair[0].features, pair[1].features, reduction)}
paper_weight = {"global": 0.01, "local": 0.001}
pull, lines = {}, []
nice = lambda value: f"{value:,.0f}" if value >= 100 else f"{value:.2g}" if value >= 0.001 else f"{value:.5f}"
for title, moments in seen.items():
    for term, loss in losses.items():
        lines.append((f"{title}, {term}", *(nice(loss(moments[1], reduction).item()) for reduction in reductions)))
        for moment, pair in zip(("as drawn", "trained"), moments, strict=True):
            for reduction in reductions:
                pull[title, term, moment, reduction] = paper_weight[term] * gradient(loss(pair, reduction)) / unit
lines += [(f"GAN, {title}", "-", nice(abs(own[key].item())), "-") for title, key in (("|source|", "source"), ("class", "class"))]
columns = ("network, term", *reductions)
display(papers.Table(columns, tuple(lines), numeric=frozenset(reductions), caption="Values, without weights"))
for moment in ("trained", "as drawn"):
    pulls = [(f"{title}, {term}", *(nice(pull[title, term, moment, reduction]) for reduction in reductions))
             for term in losses for title in seen]
    display(papers.Table(columns, tuple(pulls), numeric=frozenset(reductions),
                         caption=f"Pull with ω_g = 0.01 and ω_l = 0.001, networks {moment}; the GAN's is 1"))

# %% [markdown]
# *Read the lines "local".* With a mean, the local term of the paper's weight pulls with less than a thousandth of the GAN's strength: it
# may as well not be there. With a sum it pulls about as strongly as the GAN in the ConvNet, and several times as strongly in the ResNets.
# Same equation, same weight: in one reading the local term leads, in the other it is switched off. And in the paper's size the two are a
# factor of a million apart, not of 32,768 and 16,384 as in these narrow networks.
#
# *Read the lines "global".* In the trained networks the sum pulls harder than the GAN; the mean, which is DiM's reading, with hundredths
# or less; batchmean, our default, ten times as hard as the mean. Training moves this, and not in one direction: the ConvNet
# pulls ten times as hard after 40 batches as when it was drawn (as a sum 0.09 and 1.1), because its logits grow; ResNet-18, whose batch
# norm makes large logits from the beginning, pulls less than half as hard (14 and 5.5). So the weight is also a matter of *how long the
# network has trained*, and the paper gives no number for that either.
#
# *Read across networks.* At equal weights ResNets pull several times as hard as the ConvNet. The **pool** belongs to the balance as well:
# whenever the next network is drawn, all weights mean something else. (SKD, chapter 9, removes this for the logits.)
#
# ### What pairs ask for
# Suppose both terms were strong. What would they do? Take one class. Real maps scatter around their mean $\mathbf m^{\mathcal T}$ with
# variance $v^{\mathcal T}=\mathbb E\lVert\mathbf f^{\mathcal T}-\mathbf m^{\mathcal T}\rVert^2$, generated ones around
# $\mathbf m^{\mathcal S}$ with $v^{\mathcal S}$. The two images of a pair are drawn independently, so the mixed terms vanish on
# average:
#
# $$
# \mathbb E\,\big\lVert\mathbf f^{\mathcal S}-\mathbf f^{\mathcal T}\big\rVert^2=v^{\mathcal T}+v^{\mathcal S}+\big\lVert
# \mathbf m^{\mathcal S}-\mathbf m^{\mathcal T}\big\rVert^2 .
# $$
#
# The generator can do nothing about $v^{\mathcal T}$. It can move its mean to the real mean: that is distribution matching (chapter 3),
# and welcome. And it can lower $v^{\mathcal S}$, **its own variety**, down to zero. The best it can do for this loss is to give *one*
# answer for every image of a class. The same holds for the logits. To see it in numbers, let a network that has nothing to do with the
# matching (the **lens**, a ConvNet-3 trained on 100 batches) look at 40 photographs of each class, and pair them with four candidates: as
# many *other* photographs; generated images; the mean photograph of the class; and the mean *map* of the class, which is no image's.

# %%
lens = models.build("convnet3", shape=real.shape, num_classes=num_classes, width=16, seed=seed).to(device)
train.fit(lens, train.Batches(real.train.images, real.train.labels, 64, runs.stream(seed, "lens"), real.preprocess), steps=100, lr=0.01)
lens.eval()
few = min(40, min(len(real.train.of_class(label)) for label in range(num_classes)) // 2)
of_class = [real.train.of_class(label) for label in range(num_classes)]
here, there = (torch.cat([indices[part] for indices in of_class]) for part in (slice(0, few), slice(few, 2 * few)))


@torch.no_grad()
def maps(batch):
    """Maps (C, n, F) of images (C n, c, h, w), class after class, in the space that networks see."""
    return lens.mid(batch)[1].flatten(1).double().unflatten(0, (num_classes, -1))


def variance(seen):
    """Within a class, mean over features and classes."""
    return seen.var(dim=1, correction=0).mean().item()


def generated_maps(syn, per_class=few):
    wanted = torch.arange(num_classes).repeat_interleave(per_class)
    return maps(real.preprocess((syn.sample(wanted, runs.stream(seed, "variety")) + 1) / 2))


pictures = real.train.images[there].float().div(255).unflatten(0, (num_classes, -1))
photographs, others = maps(real.preprocess(real.train.images[here])), maps(real.preprocess(real.train.images[there]))
candidates = {"other photographs": others, "generated": generated_maps(origin),
              "mean photograph": maps(real.preprocess(pictures.mean(dim=1))), "mean map": others.mean(dim=1, keepdim=True)}
asked, lines = {}, []
for title, candidate in candidates.items():
    far = (candidate.mean(dim=1) - photographs.mean(dim=1)).square().mean().item()
    every_pair = (torch.cdist(photographs, candidate).square().mean() / photographs.shape[2]).item()
    asked[title] = variance(photographs) + variance(candidate) + far
    assert math.isclose(every_pair, asked[title], rel_tol=1e-6)
    lines.append((title, *(f"{value:.3f}" for value in (variance(candidate), far, every_pair))))
columns = ("pairs with", "own v", "means", "L_local")
papers.Table(columns, tuple(lines), (f"v of the photographs: {variance(photographs):.3f}, in every line's L_local",),
             "Local loss (mean) over all pairs of a class: the candidate's own v, and the squared distance of the means",
             frozenset(columns[1:]))

# %% [markdown]
# *Photographs are not the best answer to photographs.* Their loss is twice their variance. The mean map has no variance and gets half of
# that. It is an average of *maps* that pays. The mean *photograph*, one blurred image of each class, has no variance either, but its map
# is not the mean map: it gets less loss than photographs, and no less than our generated images. These, too, have a lower loss than
# photographs, though their means are farther away: this small generator's images vary less. So the loss asks for images whose maps are
# alike and average, and the GAN, whose discriminator knows that photographs differ, is all that holds against it. *A lower match loss
# does not mean better images.* To watch for it, our runs log the variance of the maps, of real and of generated batches, in every update.
#
# ## Try it
# Now the weight moves. From the one GAN, every setting goes on for the same few updates with the same real batches, the same noise and the
# same networks of the pool: a **control** with both weights 0, which is the GAN training on; then $\omega_g=0.01$ with $\omega_l$ from
# the paper's 0.001 up to 1000. All of it **twice**, with other batches, noise and networks, so that one can see what chance does.
# (Reading the loss as a sum is another weight in our units: 0.001 as a sum is 33 with this ConvNet's maps, and 16 with the ResNets'.)
#
# Move $\omega_l$. The ten images come from the same noise at every stop. The charts have the pull of both terms together (mean over the
# updates), the two terms with their weights beside the GAN's class term, the variance of the maps within a class (of the lens, in percent
# of the photographs'), and the accuracy on **validation** images of networks that were trained on **resampled** images: every batch is
# drawn anew from the generator, so that a network never sees an image twice. (The other way, **frozen**, comes below: IPC
# images of each class are drawn once and used throughout, as with any distilled set.)

# %%
levels = sorted({float(text) for text in omegas.split(",")} | {local_weight})
settings = {"weight 0": (0.0, 0.0)} | {f"{level:g}": (weight, level) for level in levels}
swept = {}
for title, (omega_g, omega_l) in settings.items():
    for again in range(repeats):
        # a gradient grows with the weight of its term: the limit that finds a GAN which explodes has to as well
        each = replace(config, weight=omega_g, local_weight=omega_l, seed=seed + again, max_gradient=config.max_gradient * max(1, omega_l))
        with contextlib.redirect_stdout(io.StringIO()):
            swept[title, again] = runs.run(gld, each, folder / f"{omega_g:g}-{omega_l:g}-{each.seed}", real=real)


def both(values):
    """Mean and standard deviation of a list."""
    values = list(values)
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else math.nan


def logged(title, name):
    """A metric's mean over all updates of all runs of a setting."""
    return statistics.mean(value for again in range(repeats) for value in swept[title, again].metrics()[name])


measured, variety = {}, {}
for (title, again), result in swept.items():
    variety[title, again] = 100 * variance(generated_maps(result.syn)) / variance(others)
    key = replace(recipes["resampled"], repeats=1)
    measured[title, again] = [
        100 * train.accuracy(evaluate.train_network(result.syn, real, key, seed, number, folder / "validation" / f"{title}-{again}").net,
                             real.validation, real.preprocess) for number in range(networks)]
accuracies = {title: [value for again in range(repeats) for value in measured[title, again]] for title in settings}
varieties = {title: [variety[title, again] for again in range(repeats)] for title in settings}
print(f"validation images, control: {both(accuracies['weight 0'])[0]:.1f} %, deviation {both(accuracies['weight 0'])[1]:.1f}")
gap = {title: -logged(title, "d_source") for title in settings}      # of a Wasserstein critic: score of real minus of generated
for title in ("weight 0", *(f"{level:g}" for level in levels)):
    print(f"critic's gap at {title:>8}: {gap[title]:.2f}")

stops = [title for title in settings if title != "weight 0"]
at_noise = {title: (swept[title, 0].syn.sample(torch.arange(num_classes), runs.stream(seed, "same noise")).cpu() + 1) / 2
            for title in stops}
over = lambda title: settings[title][1]
panels = {
    "Pull on the images, the GAN's is 1": {"both terms": [logged(title, "ratio") for title in stops], "the GAN": 1.0},
    "Terms with their weights": {"ω_g L_global": [weight * logged(title, "global") for title in stops],
                                 "ω_l L_local": [over(title) * logged(title, "local") for title in stops],
                                 "the GAN's class term": [logged(title, "g_class") for title in stops]},
    "Variance within a class, % of real": {"generated": [both(varieties[title]) for title in stops],
                                           "control": both(varieties["weight 0"])[0]},
    "Validation accuracy, %": {f"{repeats * networks} networks": [both(accuracies[title]) for title in stops],
                               "control": both(accuracies["weight 0"])[0]},
}
note = (f"{config.dataset}, {config.steps} updates from one GAN, {repeats} runs of each setting; dashed: a level to compare with; "
        "bands: one standard deviation")
widgets.sweep_explorer(at_noise, real.classes, panels, log=list(panels)[:2], label="ω_l, weight of the local term", uid="omega",
                       start=f"{local_weight:g}", caption=note)

# %% [markdown]
# *From left to right.* Up to 0.1 nothing moves but the weight itself: both terms together pull with an eighth of the GAN's strength, and
# that is the global one. The paper's 0.001, read as a weight of a mean, **is no local term**. Between 1 and 10 the pull passes the GAN's,
# and from then on the variance within a class falls, from half of what photographs have to about two fifths, while the critic tells
# generated images from photographs more and more easily: the gap of its scores, printed above, grows to a multiple of the control's. That
# is the pull towards the mean, and where an image is unusual one can see it: the dark shirt gets lighter, as most shirts are.
#
# Between 100 and 1000 little is added although the pull grows tenfold. Adam divides a gradient by its own size, so a weight can only decide
# *whose direction* is taken, and at 100 there is nobody else left.
#
# *Where would the other reading be?* The paper's 0.001 for a **sum** lies between the stops 10 and 100: the same sentence of the paper
# describes the left end of this slider and its right half.
#
# ## A small run
# The paper's figure 3 varies $\omega_l$ on CIFAR-10 at one image per class and finds 0.001 best. Ours, on validation images, resampled:
# every dot is a network, the dash is their mean. The band is the control, mean plus and minus one standard deviation.

# %%
plots.dots({"none": {"control": accuracies["weight 0"]}} | {title: {"GLD": accuracies[title]} for title in stops},
           "ω_l, weight of the local term", "validation accuracy, %", band="control",
           colors={"control": "#767676", "GLD": plots.METHOD_COLORS["GLD"]})

# %% [markdown]
# Six powers of ten, and the means stay within a point and a half; the dots of one setting are as far apart. At the paper's weight GLD and
# the control cannot be told apart. The best mean is above the control by less than a point, which is about three validation images (one
# of 500 is
# 0.2 points), and somebody has to be best of six. At 1000, with a sixth of its variety gone, the generator may have lost a point, or not. A
# curve through means *without* dots would have had a clear maximum, and would have meant nothing.
#
# Now fresh networks and the test images, once, with frozen sets and resampled; the papers of this family report the second.
# The rows: random photographs, the GAN as it was, the control, and GLD with the paper's weights. DiM has no row here: chapter 7 runs it
# from the same GAN.

# %%
random_sets = [select.random(real, config.ipc, runs.stream(seed, "random", k)) for k in range(networks)]
command = (f"make run CHAPTER=08 ARGS='-p preset {preset} -p ipc {config.ipc} -p weight {weight:g} -p local_weight {local_weight:g} "
           f"-p steps {config.steps} -p redraw {config.redraw} -p lr {config.lr:g} -p protocol {protocol} -p train_steps {train_steps} "
           f"-p width {width} -p networks {networks} -p seed {seed}'")
more = f"{config.steps} steps more"
control, ours = swept["weight 0", 0], swept[f"{local_weight:g}", 0]
sets = {("Random", ""): (random_sets, 0.0), ("CGAN", ""): (origin, gan_minutes), ("CGAN", more): (control.syn, control.minutes),
        ("GLD", config.variant): (ours.syn, ours.minutes)}
rows = []
for (method, variant), (syn, minutes) in sets.items():
    for how, recipe in recipes.items():
        if method != "Random" or how == "frozen":                 # stored images cannot be drawn anew
            place = folder / "networks" / f"{method} {variant}".strip().replace(" ", "-")          # a run that is cut off goes on
            tested = evaluate.evaluate(syn, real, recipe, seed=seed, quiet=True, folder=place)
            rows.append(tested.row(method=method, variant=variant, preset=preset, command=command, distilling=minutes))

called = {("CGAN", more): "control", ("DiM", "weight 0.0"): "control"}
display(papers.side_by_side(rows, dataset=config.dataset, ipcs=[config.ipc], methods=("Random", "CGAN", "GLD"), paper="GLD", names=called,
                            protocols={how: recipe.name for how, recipe in recipes.items()}, caption=f"this run, {config.dataset}"))
scalars = math.prod(real.shape) * num_classes
print(f"a generator: {origin.budget:,} numbers,\n  {origin.budget / scalars:.1f} images per class")

is_default = (preset, ipc, weight, local_weight, omegas, steps, redraw, lr, repeats, protocol, train_steps, width, networks) == (
    "cpu", 0, 0.01, 0.001, "0.001,0.1,1,10,100,1000", 0, 0, 0.0, 2, "strict-cpu", 100, 16, 2)
weakest, strongest = ([pull[title, "local", "trained", reduction] for title in seen] for reduction in ("mean", "sum"))
prefers = asked["mean map"] / asked["other photographs"]
left = both(varieties[stops[-1]])[0] / both(varieties["weight 0"])[0]
apart = both(accuracies[f"{local_weight:g}"])[0] - both(accuracies["weight 0"])[0]
# with seeds 0, 1 and 2: 0.00024, 0.00018, 0.00023; 0.77, 0.71, 0.98; 0.53, 0.52, 0.52; 0.83, 0.88, 0.83; -0.2, +0.1, +0.7
assert not is_default or (max(weakest) < 0.002 and min(strongest) > 0.2 and prefers < 0.7 and left < 0.95 and abs(apart) < 3)
print(f"local pull, mean: {max(weakest):.5f} at most (claim: < 0.002)")
print(f"  sum: {min(strongest):.2f} at least (claim: > 0.2)")
print(f"mean map: {prefers:.2f} of photographs' loss (< 0.7)")
print(f"variance at {stops[-1]}: {left:.2f} of control's (< 0.95)")
print(f"GLD and control: {apart:+.1f} points (claim: within 3)")

# %% [markdown]
# *Read down.* The three generators cannot be ranked: their differences are a fraction of their deviations. *Read across.* Resampled is ten
# points above frozen, for all of them: at one image per class, freshness does more than any term of this chapter. *Read the budget.*
# The generator is stored in as many numbers as six images per class, so its fair neighbour is Random at IPC 6, not at 1. The printed
# lines have the claims of this chapter.
#
# ## The paper and us
# What does the second term gain in the paper? Its tables 1 and 2 print DiM and GLD as mean and standard deviation $\sigma$ over five test
# networks. The standard error of a difference of two such means is $\sqrt{(\sigma_1^2+\sigma_2^2)/5}$. A difference of 2.3 errors is
# where a two-sided t-test at 5 % with $5+5-2=8$ degrees of freedom draws the line: chance alone goes beyond it in one of twenty
# comparisons.

# %%
papers.gains("GLD", {"over DiM": (("GLD", ""), ("DiM", "")), "DiM over CGAN": (("DiM", ""), ("CGAN", ""))})

# %% [markdown]
# * *GLD over DiM* is half a point to one point in five of nine cells. On Fashion-MNIST it is beyond 2.3 errors at every IPC, on MNIST at
#   one image, on CIFAR-10 at fifty. On CIFAR-10 at one and ten images it is not, and on MNIST at fifty it is below zero.
# * *DiM over CGAN*, one step earlier, is 3.5 to 5 points on CIFAR-10 and 3 to 4 on Fashion-MNIST. No control trains the GAN on without a
#   term, so the tables do not say how much of that is a term's, and how much is 100 more epochs.
# * *Other networks.* ResNet-18 gains most, 2.4 points. It is in the pool that looked at the images; AlexNet and VGG11 are not, and gain
#   0.7 and 0.6 with errors of 0.4. Table 2 prints the ConvNet's 66.7±0.3 once more, although the text gives it a pool of two networks
#   and table 1 one of three.
# * *The error counts test networks only.* As far as the text says, each method has one generator, and nothing in the tables says what a
#   second one would add. Nor do our two runs of a setting: both go on from the same GAN, and differ in the last 40 updates only.
#
# Beside ours, from `book/results/measured.csv`, a table for each GAN. *Frozen* and *resampled* are the protocols `strict-cpu` and
# `strict-cpu-resampled`; *recipe* is `dim`, the one of DiM's code, with which the printed numbers belong. The **control** ran as DiM with
# weight 0: the GAN trains on for as long, without a term. DiM, GLD and the control have trained equally long: under each table stands how
# far apart they are, beside the largest deviation of one of them. As long as the first number is no larger than the second, no term has
# shown a gain. (Minutes in the rows are those of a run's own updates and of its test networks; the GAN's are in the row of CGAN only. For
# bfloat16, see chapter 7.)

# %%
stored = {"frozen": "strict-cpu", "resampled": "strict-cpu-resampled"}
about = {name: f"GAN of width {each.gan_width}, {each.gan_steps:,} steps" for name, each in gld.PRESETS.items()}
for table in papers.larger_runs("GLD", evaluate.read_rows(), [stored, {"recipe": "dim"}], about, methods=("Random", "CGAN", "DiM", "GLD"),
                                paper="GLD", names=called, alike=("DiM", "GLD")):
    display(table)
chapter.record(folder, [row for row in rows if not row["variant"].endswith("more")], pictures={"generated": ours.syn.at(10).show()},
               dataset=config.dataset, ipcs=[config.ipc], methods=["Random", "CGAN", "GLD"], protocol=recipes["frozen"].name)
for row in rows if results else []:
    evaluate.append_row(results, row)

# %% [markdown]
# **What differs from the paper, and what we expect of it**
#
# 1. *Sum or mean.* The paper prints sums and DiM's weight for a mean. We take a mean over the batch for the logits and over all entries for
#    the maps, and `reduction` gives the others. Expected effect: all of the local term's, as the first tables say.
# 2. *What is summed in equation 7.* The paper writes the index $k$ of classes under a sum of features. We read: all entries of the map.
# 3. *Which layer.* The paper says the second layer of a ResNet and nothing for a ConvNet. We take stage 2 and block 2 after its pooling.
# 4. *The network.* "Random initial model" can mean one that is never trained. Its logits know no classes, so we train it as
#    DiM does (`net_steps`, 0 is the literal reading). Expected effect: large, for the global term.
# 5. *The GAN.* The paper prints the log loss and builds on DiM's code, which trains a Wasserstein GAN with gradient penalty; so do we. All
#    rates and the augmentation are DiM's, since the paper is silent. Algorithm 1 shows no step of the discriminator; ours takes one.
# 6. *Pixels.* The paper resizes MNIST and Fashion-MNIST to 32 by 32, we leave 28 by 28. Networks see all images normalised as in
#    evaluation; DiM's code feeds values from $-1$ to 1 to a normaliser made for 0 to 1. Expected effect: a little better for us.
# 7. *Evaluation.* The paper's tables follow DiM's code, which prints the best of
#    five test accuracies of resampled training. We choose on validation images, read the test images once, and show frozen sets, too.
# 8. *Size.* The paper's generator has 196 channels and its matching takes 100 epochs. The default run here has 16 channels and 40
#    updates, at five times the rate of the preset, so that these updates go somewhere. Full presets have a table only if they were run.
#
# What a run of this size can show: how large the terms are, what they pull towards, and that a sum and a mean are two different methods.
# What it cannot show: which $\omega_l$ is best.
#
# ## Exercises
# Solutions are folded below each question.
#
# **1. Change a number.** The weights that the paper prints, with the sums that it prints: set both reductions to `"sum"` and take ten
# updates with two networks. Before you run it, read off the tables *Pull* what to expect: column *sum*, the two lines of a network
# (together they pull at most as hard as the two numbers added), between *as drawn* and *trained*, since a network gets ten batches at
# most. Then find weights for the sums that do what our defaults do.

# %% tags=["hide-cell"]
short = replace(config, steps=10, redraw=5, max_gradient=1e7)
equal = replace(short, global_reduction="sum", local_reduction="sum", weight=config.weight / config.batch_size,
                local_weight=config.local_weight / (config.batch_size * math.prod(syn_seen.features.shape[1:])))
for title, each in (("as set above", short), ("sums", replace(short, global_reduction="sum", local_reduction="sum")),
                    ("sums, small weights", equal)):
    taken = [step.losses for step in gld.distill(real, each)]
    print(f"{title:>19}: pull {statistics.mean(step['ratio'] for step in taken):6.3f}, "
          f"variance of maps {statistics.mean(step['syn_variance'] for step in taken):.3f}")
chapter.answer("Where the pull is above 1, the terms lead and the GAN follows. For the logits, divide the weight by the batch size: then a "
               "sum is batchmean. For the maps divide it by all entries: but their number depends on the network, so one weight for a sum "
               "fits one network of the pool only (here the ConvNet). Compare the first line with the last.")

# %% [markdown]
# **2. Change an equation.** Equation 7 pairs single images. Average the maps over the images of a class *first*, and compare the averages:
# the loss of chapter 3, in the middle of the network. Which of the four candidates above does it prefer? Does it still ask for
# less variety?

# %% tags=["hide-cell"]
for title, candidate in candidates.items():
    print(f"{title}:\n  pairs {asked[title]:.3f}, means {(candidate.mean(dim=1) - photographs.mean(dim=1)).square().mean():.3f}")
wanted = torch.arange(num_classes).repeat_interleave(8)
some = origin.sample(wanted, runs.stream(seed, "exercise")).requires_grad_()
of_some = lens.mid(real.preprocess((some + 1) / 2))[1].flatten(1).unflatten(0, (num_classes, -1))              # (C, n, F)
target = photographs.float()
pairs = of_some.var(dim=1, correction=0).mean() + (of_some.mean(dim=1) - target.mean(dim=1)).square().mean()   # but for a constant
means = (of_some.mean(dim=1) - target.mean(dim=1)).square().mean()
change = {}
for title, loss in (("pairs", pairs), ("means", means)):
    step = torch.autograd.grad(loss, some, retain_graph=True)[0]
    with torch.no_grad():
        moved = lens.mid(real.preprocess((some - 20 * step / step.norm() + 1) / 2))[1].flatten(1).unflatten(0, (num_classes, -1))
    change[title] = variance(moved) / variance(of_some.detach()) - 1
    print(f"a step down the loss of {title}:\n  variance of the maps {change[title]:+.0%}")
chapter.answer("The loss of means cannot tell photographs from their mean map: both have the same mean, and nothing does better than other "
               "photographs. It has no term for variety and asks all maps of a class for the same shift. What becomes of their variance on "
               f"the way ({change['means']:+.0%} here) is a side effect of moving this generator's means. The loss of pairs asks for less "
               f"variety, and {'gets it' if change['pairs'] < min(0, change['means']) else 'does not get it here'}.")

# %% [markdown]
# **3. Bring your data.** Find the reading that your data need, if you keep the paper's weights: print the pull of both terms under each
# reduction for a ConvNet-3. Any arrays will do; here, half of the classes at half the resolution, with a GAN of their own. By how much
# do sum and mean differ, for each term? Which of these factors changes with the resolution?

# %% tags=["hide-cell"]
*arrays, kinds = chapter.half(real)                              # training images and labels, test images and labels; names of classes
mine = data.ImageSet.from_arrays(*arrays, classes=kinds, name="mine").to(device)
small = replace(config, dataset="mine", gan_width=8, gan_steps=20, steps=5, pool="convnet3", pool_widths="16", redraw=5)
fit = []
for reduction in reductions:
    each = replace(small, global_reduction=reduction, local_reduction=reduction, max_gradient=1e7)
    with contextlib.redirect_stdout(io.StringIO()):
        ratios = [statistics.mean(step.losses["ratio"] for step in gld.distill(mine, one)) for one in (
            replace(each, local_weight=0.0), replace(each, weight=0.0))]
    fit += [f"{reduction} for the {what}" for what, ratio in zip(("logits", "maps"), ratios) if 0.01 <= ratio <= 1]
    print(f"{reduction:>9}: pull of the global term\n  {ratios[0]:.5f}, of the local one {ratios[1]:.5f}")
size = lambda shape: tuple(models.build("convnet3", shape=shape, num_classes=2, width=16, seed=0).mid(torch.zeros(2, *shape))[1].shape[1:])
for title, shape, classes in (("all above", real.shape, num_classes), ("these data", mine.shape, len(kinds))):
    count = config.batch_size * math.prod(size(shape))
    print(f"{title}: maps {size(shape)}; a sum is\n  {config.batch_size * classes} (logits), {count:,} (maps) means")
chapter.answer(f"Which reading? One that pulls and leaves the GAN in charge, from 0.01 to 1, say. Here: {', '.join(fit) or 'none'}. The "
               "resolution changes the factor of the maps, the number of classes that of the logits: with so many fewer entries, a weight "
               "for a sum of maps counts less than it did beside one for a mean. The pulls themselves cannot be compared with the tables "
               "above: another GAN, hardly trained, is their unit. So measure with your own GAN first.")
