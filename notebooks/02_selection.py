# %% [markdown]
# # 2. Selection
#
# *About two minutes and 1.2 GB on two CPU cores. Papers: Welling, "Herding dynamical weights to learn", ICML 2009; Sener and
# Savarese, "Active learning for convolutional neural networks: a core-set approach", ICLR 2018; Toneva et al., "An empirical
# study of example forgetting during deep neural network learning", ICLR 2019.*
#
# ## Why
# Before one invents images one should know how far *choosing* them gets. A selection of IPC images per class has the same budget as
# a distilled set of that IPC and costs one training run at most, so every table in this field begins with selections. Four
# are customary, and they disagree about what a good image is: any image (Random), a typical one (Herding), one that is unlike the
# others (K-Center), a difficult one (Forgetting). The last two sound clever and are made for large selections. At ten images per
# class they lose to drawing lots, and this chapter finds out why.

# %%
from dataclasses import replace

import torch
from IPython.display import display
from torch.nn import functional as F

from ddlib import chapter, data, distilled, evaluate, models, papers, plots, runs, select, train, widgets

# %% tags=["parameters"]
dataset: str = "fashion_mini"     # any name that ddlib.data.load knows
ipc: int = 10                     # images per class
width: int = 16                   # channels of every ConvNet-3 here: it gives features, forgets, is evaluated
protocol: str = "strict-cpu"      # how the choices are evaluated: a name in evaluate.PROTOCOLS
repeats: int = 3                  # networks trained on each choice
seed: int = 0
out: str = ""                     # folder for the results; empty: runs/02_selection/DATASET-ipcIPC-SEED
results: str = ""                 # CSV file that gets the rows of this run; empty: none

# %%
feature_epochs, forgetting_epochs = 5, 10
recipe = evaluate.with_options(protocol, width=width, repeats=repeats)
folder = runs.Path(out) if out else runs.folder("02_selection", f"{dataset}-ipc{ipc}-{seed}")
real = data.load(dataset).to(runs.pick_device())
smallest = min(len(real.train.of_class(c)) for c in range(real.num_classes))
most = min(max(20, ipc), smallest)     # how many images per class are put in order below
print(f"{len(real.train):,} training images, {real.num_classes} classes; the first {most} choices of each class")

# %% [markdown]
# ## The equation
# All four rules choose class by class. $\mathcal T_c$ are the training images of class $c$, $\phi(x)$ the features of image $x$
# (what a network that was trained on *all* images computes before its last layer), $\mu_c$ their mean over the class, and
# $x_1,\dots,x_{k-1}$ what has been chosen already. The $k$-th choice is
#
# $$
# \begin{aligned}
# \textbf{Random}\quad & x_k\sim\mathrm{Uniform}(\mathcal T_c\setminus\{x_1,\dots,x_{k-1}\}),\\[2pt]
# \textbf{Herding}\quad & x_k=\arg\min_{x}\Big\|\,k\,\mu_c-\sum_{j<k}\phi(x_j)-\phi(x)\Big\|_2 ,\\
# \textbf{K-Center}\quad & x_1=\arg\min_{x}\|\mu_c-\phi(x)\|_2 ,\\
# & x_k=\arg\max_{x}\,\min_{j<k}\|\phi(x)-\phi(x_j)\|_2 ,\\
# \textbf{Forgetting}\quad & x_k=\arg\max_{x}\,\sum_{v}\mathbb 1[x\text{ right at visit }v\text{, wrong at }v+1],\\
# & \text{which counts as }\infty\text{ if }x\text{ was never right.}
# \end{aligned}
# $$
#
# Every $\arg\min$ and $\arg\max$ runs over the images of the class that have not been chosen; $\mathbb 1[\cdot]$ is 1 if true, else 0.
#
# Herding keeps the *mean* of the chosen on the mean of the class: each choice repairs what the earlier ones got wrong (for images,
# Rebuffi et al., "iCaRL", CVPR 2017). K-Center wants a small *radius*, so that no image of the class is far from a chosen one; always
# taking the farthest gives a radius at most twice the smallest possible one. Forgetting needs no features. It watches one training run, and
# images that the network keeps losing are taken to be the informative ones.
#
# ## By hand
# The two geometric rules are a few lines each. Forgetting needs the story of a training run: was image $x$ classified correctly at
# visit $v$? Its count is two lines, tried here on four invented images with the answers `1` right and `0` wrong over six visits.

# %%
def herding_by_hand(x, num):  # x: (n, F)
    chosen = []
    for k in range(1, num + 1):
        missing = k * x.mean(dim=0) - x[chosen].sum(dim=0)  # (F,)
        distance = (missing - x).norm(dim=1)  # (n,)
        distance[chosen] = torch.inf  # no image twice
        chosen.append(int(distance.argmin()))
    return chosen


def k_center_by_hand(x, num):
    chosen = [int((x.mean(dim=0) - x).norm(dim=1).argmin())]
    while len(chosen) < num:
        nearest = torch.stack([(x - x[c]).norm(dim=1) for c in chosen]).min(dim=0).values  # (n,)
        chosen.append(int(nearest.argmax()))
    return chosen


def forgotten(right):  # (visits, N) bool
    lost = (right[:-1] & ~right[1:]).sum(dim=0).float()  # (N,) right, then wrong
    return lost.where(right.any(dim=0), torch.inf)


stories = ["011111", "010101", "110111", "000000"]
answers = torch.tensor([[answer == "1" for answer in story] for story in stories]).T
for story, count in zip(stories, forgotten(answers).tolist(), strict=True):
    print(f"{story} forgotten {count:g} times")

# %% [markdown]
# For the geometric rules, thirty points in a plane stand for one class, three of them far away:

# %%
def panels(points, picks, title):
    """One panel per method: the points (n, 2) in grey, the chosen ones numbered in the order of choice."""
    with plots.style(plots.FULL):
        fig = plots.figure(plots.FULL)
        axes = fig.subplots(1, len(picks), sharex=True, sharey=True)
        for ax, (name, order) in zip(axes, picks.items(), strict=True):
            ax.scatter(*points.T, s=5, color="#9aa4b2", lw=0)
            ax.scatter(*points[order].T, s=85, color="white", edgecolor=plots.color(name), lw=1.6)
            for number, (x, y) in enumerate(points[order].tolist(), start=1):
                ax.text(x, y, number, ha="center", va="center_baseline", fontsize=7)
            ax.set_title(name, weight="bold")
            ax.set_xlabel("first direction")
        axes[0].set_ylabel("second direction")
        fig.suptitle(title, fontsize=9)
        return fig


rng = runs.stream(0, "points")
points = torch.randn(27, 2, generator=rng) * torch.tensor([1.5, 1.0])
points = torch.cat([points, torch.tensor([[5.5, 2.0], [-5.0, 2.5], [1.0, -4.0]])])
panels(points, {"Herding": herding_by_hand(points, 6), "K-Center": k_center_by_hand(points, 6)}, "The first six choices of 30 points")

# %% [markdown]
# Both begin with the point nearest to the mean. Then Herding stays in the crowd, one choice balancing the other, while K-Center
# has spent three of its six on the three points far away.
#
# Now real features. The network that looks at the images is a small ConvNet-3, trained for a few epochs on all of them; nothing is
# augmented when the features are taken. The rules are the same lines.

# %%
net = select.feature_net(real, epochs=feature_epochs, width=width, seed=seed)
members = [real.train.of_class(c) for c in range(real.num_classes)]                       # places in real.train, class by class
features = [select.embeddings(net, real, places) for places in members]                   # (n, F) each
by_hand = {
    "Herding": [places[herding_by_hand(x, most)].tolist() for places, x in zip(members, features, strict=True)],
    "K-Center": [places[k_center_by_hand(x, most)].tolist() for places, x in zip(members, features, strict=True)],
}
accuracy = 100 * train.accuracy(net, real.validation, real.preprocess)
print(f"{features[0].shape[1]} features; the network is right on {accuracy:.0f} % of the validation images")

# %% [markdown]
# Now a real story for Forgetting: plain stochastic gradient descent, with one line that takes notes. Once per epoch every image comes by,
# in some batch, and is judged by the logits that the training step computes anyway. Random needs no more than a shuffled list.

# %%
batches = train.Batches(real.train.images, real.train.labels, 128, runs.stream(seed, "forgetting"), real.preprocess)
per_epoch = -(-len(real.train) // 128)
learner = models.build("convnet3", shape=real.shape, num_classes=real.num_classes, width=width, seed=seed).to(runs.pick_device())
optimizer = torch.optim.SGD(learner.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
right = torch.zeros(forgetting_epochs, len(real.train), dtype=torch.bool)
for step, (images, labels) in zip(range(forgetting_epochs * per_epoch), batches, strict=False):
    logits = learner(images)
    right[step // per_epoch, batches.indices.cpu()] = (logits.argmax(dim=1) == labels).cpu()     # the notes
    optimizer.zero_grad()
    F.cross_entropy(logits, labels).backward()
    optimizer.step()

counts = forgotten(right)                                                 # (N,)
tie = torch.randperm(len(counts), generator=runs.stream(seed, "ties")).tolist()
by_hand["Forgetting"] = [sorted(places.tolist(), key=lambda i: (-counts[i], tie[i]))[:most] for places in members]
rng = runs.stream(seed, "Random")
by_hand["Random"] = [places[torch.randperm(len(places), generator=rng)[:most]].tolist() for places in members]

# %% [markdown]
# ## The library
# `ddlib.select` holds the same four rules. Each returns a `PixelSet`, the same kind of object as a distilled set, that remembers
# the places of its images (`meta["indices"]`). Image by image, the choices are equal:

# %% tags=["nbval-check-output"]
chosen = {
    "Random": select.random(real, most, runs.stream(seed, "Random")),
    "Herding": select.herding(real, most, net),
    "K-Center": select.k_center(real, most, net),
    "Forgetting": select.forgetting(real, most, select.forgetting_counts(real, forgetting_epochs, width=width, seed=seed),
                                    runs.stream(seed, "ties")),
}
order = {name: torch.tensor(syn.meta["indices"]).reshape(real.num_classes, most) for name, syn in chosen.items()}
for name, places in order.items():
    same = places.tolist() == by_hand[name]
    assert same or real.train.images.is_cuda, name                         # two trainings on a GPU are not equal to the last bit
    print(f"{name} by hand equals ddlib.select, {real.num_classes} classes:", same)

# %% [markdown]
# Every rule takes one image after the other, so the choice at IPC 1 is the beginning of the choice at IPC 10, and one ordered list
# per class is all that the rest of the chapter needs.
#
# ## Try it
# The first ten choices of each rule for two classes:

# %%
shown = [0, 7] if real.num_classes > 7 else [0, 1]                         # two classes
first = min(10, most)
blocks = {real.classes[c]: real.train.images[torch.cat([places[c, :first] for places in order.values()])] for c in shown}
plots.selection_grid(blocks, torch.arange(len(order)).repeat_interleave(first), list(order),
                     caption=f"the first {first} choices of {len(real.train) // real.num_classes} images, from left to right")

# %% [markdown]
# Herding's rows look like a shop window. K-Center's begin with the same image and go on with whatever is odd in cut, pattern or
# contrast; Forgetting's could be taken for another class, its sneakers for boots.
#
# Where do these images lie? Below are the two main directions of one class's features.

# %%
def plane_of(c):
    centred = features[c] - features[c].mean(dim=0)
    return (centred @ torch.linalg.svd(centred, full_matrices=False).Vh[:2].T).cpu()             # (n, 2)


def in_plane(ipc, c=shown[0]):
    where = {int(place): row for row, place in enumerate(members[c])}
    picks = {name: [where[int(place)] for place in places[c, :ipc]] for name, places in order.items()}
    return panels(plane_of(c), picks, f"{real.classes[c]}, {ipc} image{'s' * (ipc > 1)}")


def shown_share(c=shown[0]):
    strength = torch.linalg.svdvals(features[c] - features[c].mean(dim=0)).square()
    return 100 * (strength[:2].sum() / strength.sum()).item()


print(f"the plane holds {shown_share():.0f} % of the variance of the features")
in_plane(first)

# %% [markdown]
# A plane shows tendencies only. Random follows the crowd, Herding's choices balance each other around the centre. K-Center's first choice
# is the one nearest to the mean in all directions, even where these two do not show it; the others lie at the rim. Forgetting's are
# mostly far from the crowd. The slider asks the same question for any IPC, in pictures of the second class:

# %%
rows = torch.stack([real.train.images[places[shown[1], : min(20, most)]] for places in order.values()])
widgets.ipc_explorer(rows, list(order), {}, max_ipc=min(20, most), start=3, full_size=len(real.train), num_classes=real.num_classes,
                     shape=real.shape, caption=f"What each rule chooses for class {real.classes[shown[1]]}")

# %% tags=["live"]
# Live (needs a kernel): the same knob in the plane of features; add c=... to in_plane for another class.
widgets.live(in_plane, label="images per class", ipc=(1, most, 1), start=3)

# %% [markdown]
# What does forgetting look like over the whole set? How often images were forgotten, and both ends of the ranking:

# %%
finite = counts[counts.isfinite()].long()
share = {str(k): 100 * (finite == k).sum().item() / len(counts) for k in range(int(finite.max()) + 1)}
share["never right"] = 100 * counts.isinf().sum().item() / len(counts)
with plots.style():
    histogram = plots.figure(plots.HALF)
    ax = histogram.subplots()
    ax.bar_label(ax.bar(list(share), list(share.values()), color=plots.color("Forgetting")), fmt="%.1f")
    ax.set(xlabel=f"times forgotten in {forgetting_epochs} epochs", ylabel="images, %")
display(histogram)

spread, eight = [c for c in (1, 5, 6, 7) if c < real.num_classes], min(8, most)
never = [int(counts[places.cpu()].isinf().sum()) for places in members]
print("never right, by class:")
for start in range(0, real.num_classes, 5):
    print("  " + ", ".join(f"{name} {n}" for name, n in zip(real.classes[start:start + 5], never[start:start + 5], strict=True)))
ends = {"never right, or forgotten most": [order["Forgetting"][c, :eight] for c in spread],
        "never forgotten": [torch.tensor(sorted(members[c].tolist(), key=lambda i: (counts[i], tie[i]))[:eight]) for c in spread]}
plots.selection_grid({name: real.train.images[torch.cat(places)] for name, places in ends.items()},
                     torch.tensor(spread).repeat_interleave(eight), real.classes, caption=f"{eight} images of each class from either end")

# %% [markdown]
# Most images are learned once and never lost. A few percent are never right; they count as infinitely forgotten, come first, and most
# classes have at least ten of them, so at low IPC the ranking is a raffle among images that the network *never* got right. At the
# right of the picture every row is one kind of garment; at the left you would relabel some of the images yourself.
#
# ## A small run
# Why do two rules lose? First the **mean**. A network that has seen only the chosen images believes that the class looks like
# them, so the distance from their mean to the mean of the class is a first measure of how wrong it will be. It is given in units of
# the distance at which a typical image of the class lies. Then what K-Center promises, the **radius** in the same units: how far the
# image lies that is farthest from all chosen ones. And last the **labels**: how many of the chosen images the feature network, which was
# trained on them, itself puts into their class.

# %%
def to_mean(x, places):  # (n, F) features of a class, rows of the chosen
    mean = x.mean(dim=0)
    return ((x[places].mean(dim=0) - mean).norm() / (x - mean).norm(dim=1).mean()).item()


def radius(x, places):  # how far away the worst covered image is
    mean = x.mean(dim=0)
    return (torch.cdist(x, x[places]).min(dim=1).values.max() / (x - mean).norm(dim=1).mean()).item()


def over_classes(measure, places, k):  # places: (C, at least k) in real.train
    rows = [torch.searchsorted(members[c], places[c, :k].to(members[c].device)) for c in range(real.num_classes)]
    return sum(measure(x, row) for x, row in zip(features, rows, strict=True)) / real.num_classes


rng = runs.stream(seed, "draws")
draws = [torch.stack([places.cpu()[torch.randperm(len(places), generator=rng)[:most]] for places in members]) for _ in range(10)]
budgets = [k for k in (1, 2, 3, 5, 10, 20, 50) if k <= most]
lucky = torch.tensor([[over_classes(to_mean, draw, k) for k in budgets] for draw in draws])          # (draws, budgets)
distances = {"Random": (budgets, lucky.mean(dim=0), lucky.std(dim=0))}
for name in ("Herding", "K-Center", "Forgetting"):
    distances[name] = (budgets, [over_classes(to_mean, order[name], k) for k in budgets], None)
display(plots.accuracy_curve(distances, "images per class", ylabel="distance to the class mean, typical image = 1"))

judged = (train.predict(net, real.train.images, real.preprocess).argmax(dim=1) == real.train.labels).cpu()         # (N,)
lines = []
for name, choices in {"Random": draws, **{name: [order[name]] for name in ("Herding", "K-Center", "Forgetting")}}.items():
    numbers = [sum(over_classes(measure, places, first) for places in choices) / len(choices) for measure in (to_mean, radius)]
    agreed = 100 * torch.stack([judged[places[:, :first]].float().mean() for places in choices]).mean().item()
    lines.append((name, f"{numbers[0]:.2f}", f"{numbers[1]:.2f}", f"{agreed:.0f}"))
columns = ("method", "distance to the mean", "radius", "right, %")
papers.Table(columns, tuple(lines), caption=f"the first {first} choices, average over classes", numeric=frozenset(columns[1:]))

# %% [markdown]
# Random (band: one standard deviation over ten draws) approaches the mean like $1/\sqrt{\mathrm{IPC}}$ without looking, Herding
# faster. K-Center *leaves* the mean with its second
# choice, and with twenty images it is still farther from it than Random with three; so is Forgetting.
#
# In the table K-Center has the smallest radius, so it keeps its promise. The promise is the wrong one: always taking the farthest
# image collects the corners of the class, and ten corners say little about what lies between them. Nor whose corners they are: more
# than half of K-Center's images and nearly all of Forgetting's have labels that even a network trained on them disputes. A new
# network that sees nothing else is misled.
#
# Now the verdict. Fresh networks are trained on each choice with one protocol and see the test images once. Random draws anew for
# every network, so its spread includes the luck of the draw. The same cell holds the claims of this chapter, with margins that held over
# several seeds.

# %% tags=["nbval-check-output"]
measured = {}
for size in sorted({1, ipc}):
    for name, places in order.items():
        choice = distilled.PixelSet.from_indices(real, places[:, :size].flatten(), method=name)
        if name == "Random":
            choice = [select.random(real, size, runs.stream(seed, "random", size, k)) for k in range(repeats)]
        measured[name, size] = evaluate.evaluate(choice, real, recipe, seed=seed, folder=folder / f"{name}-{size}", quiet=True)
curves = {}
for name in order:
    found = [(size, 100 * e.mean, 100 * e.std) for (method, size), e in measured.items() if method == name]
    curves[name] = tuple(zip(*found, strict=True))
picture = plots.accuracy_curve(curves, "images per class", title=f"{dataset}, {repeats} networks each")


def gap(better, worse, size):                                             # in points of accuracy
    return 100 * (measured[better, size].mean - measured[worse, size].mean)


claims = {
    "at IPC 1 Herding and K-Center choose the same images": torch.equal(order["Herding"][:, 0], order["K-Center"][:, 0]),
    "at IPC 1 Random beats Forgetting by 10 points": gap("Random", "Forgetting", 1) > 10,
    f"at IPC {ipc} Random beats K-Center by 5 points": gap("Random", "K-Center", ipc) > 5,
    f"at IPC {ipc} Random beats Forgetting by 20 points": gap("Random", "Forgetting", ipc) > 20,
}
for claim, holds in claims.items():
    assert holds or (dataset, ipc, protocol) != ("fashion_mini", 10, "strict-cpu"), claim
    print(f"{claim}: {holds}")
picture

# %% [markdown]
# Herding and K-Center start from the same image. Nine more images per class lift Herding and *lower* K-Center: the odd images undo
# what the typical one had taught. Forgetting is far below Random at both ends.
#
# ## The paper and us
# Left the numbers that the papers print, right ours from `book/results/measured.csv`, each with its protocol and the network's width.
# Where nobody has run a cell it says *not run*. The last table is the run of this chapter, which is narrower and trains fewer networks.

# %%
ours = evaluate.read_rows()
for name in ("fashion_mnist", "mnist", "fashion_mini"):
    stand_in = "fashion_mnist" if name == "fashion_mini" else None
    display(papers.beside(ours, dataset=name, ipcs=[1, 10], methods=list(order), published_as=stand_in))

command = (f"make run CHAPTER=02 ARGS='-p dataset {dataset} -p ipc {ipc} -p width {width} -p protocol {protocol} "
           f"-p repeats {repeats} -p seed {seed}'")
rows = [e.row(method=name, command=command) for (name, _), e in measured.items()]
chapter.record(folder, rows, results, pictures={"accuracy": picture}, dataset=dataset, ipcs=sorted({1, ipc}), methods=list(order),
               caption=f"this run: {dataset}, width {width}")

# %% [markdown]
# Random and K-Center agree with the papers within the spreads or a few points, and Herding at one image per class nearly so. Herding
# at IPC 10 is higher than printed on Fashion-MNIST. Forgetting is far lower everywhere, and on the full Fashion-MNIST it even falls
# from IPC 1 to 10: a larger set has more images that are never right, and they come first.
#
# **What differs from the papers, and what we expect of it**
#
# 1. *The source of the numbers.* SKD and GLD print all four rules, DDPP and ESP some of them, with one set of numbers that was first
#    printed in Zhao et al., "Dataset condensation with gradient matching", ICLR 2021 (DC). How the selections were made is not said
#    beside them: which network gave the features, how long it was trained, how many epochs of forgetting were counted.
# 2. *Features.* Ours: a ConvNet-3 of the width in the table, five epochs on all images, nothing augmented at extraction. Expected effect
#    of longer training: tighter classes, and rules that differ less.
# 3. *The first centre.* K-Center needs a start. We take the image nearest to the mean. The published numbers fit: at IPC 1 Herding and
#    K-Center are never more than a tenth of a point apart in SKD and GLD, so they probably chose the same images. (On CIFAR-10 SKD and
#    GLD give Herding even the deviation of K-Center, DDPP and ESP another; one of the two is a copying slip.)
# 4. *Forgetting.* Toneva et al. count images that were never right as infinitely forgotten, and so do we; ties are broken by lot, and
#    there are ten epochs. Our accuracies are far below the published ones. The second exercise leaves the images that were never
#    right to the last and comes close to the published numbers, so DC may have done that; we have no better evidence.
# 5. *Evaluation.* Fewer optimizer steps and narrower networks than in DC, and another augmentation. Random's spread includes the draw.
#    A tenth of the training images is held out and cannot be chosen.
# 6. *The order of the rules.* The published Herding is *below* Random on Fashion-MNIST and MNIST from IPC 10 on, and gains next to
#    nothing from IPC 10 to 50; ours is not below at IPC 10, and we do not know why. The published K-Center falls below Random at
#    IPC 10 and below its own IPC 1 on all of MNIST, Fashion-MNIST and CIFAR-10: the effect of this chapter, seen with other
#    networks.
#
# What a run of this size can show: that at few images per class choosing odd or difficult images is worse than drawing lots. What it
# cannot show: whether Herding is better than Random by one point or by four.
#
# ## Exercises
# Solutions are folded at the end, in this order.
#
# **1. Change a number.** How good must the network be whose features Herding uses? Herd with the features of an untrained network
# (`epochs=0`) and count how many images it has in common with the trained one's choice. Which of the two would you want at IPC 1?
#
# **2. Change an equation.** Change what Forgetting does with images that were never right: 0 instead of $\infty$, so that they come
# last. Then turn the whole rule around, $\arg\min$ instead of $\arg\max$. Compare both with Forgetting and Random at the IPC of this
# run, and the first also with the published Forgetting.
#
# **3. Bring your data,** and break it. Make an `ImageSet` with `data.ImageSet.from_arrays` (200 images per class are enough), give five
# percent of the training images, drawn by lot, a wrong label, and count how many of the first ten choices of each rule have one.

# %% tags=["hide-cell"]
# Solution 1
untrained = select.herding(real, most, select.feature_net(real, epochs=0, width=width, seed=seed))
blind = torch.tensor(untrained.meta["indices"]).reshape(real.num_classes, most)
shared = sum(len(set(a) & set(b)) for a, b in zip(blind[:, :first].tolist(), order["Herding"][:, :first].tolist(), strict=True))
print(f"{shared} of {first * real.num_classes} images are the same")
accuracy = evaluate.evaluate(distilled.PixelSet.from_indices(real, blind[:, 0]), real, recipe, seed=seed, quiet=True)
for name, result in {"untrained": accuracy, "trained": measured["Herding", 1], "Random": measured["Random", 1]}.items():
    print(f"{name:<9} {100 * result.mean:.1f} ± {100 * result.std:.1f} % at IPC 1")
# Other images, and no difference that three networks could show (another seed may turn the order round), so either will do: an
# untrained network sees enough to tell what is typical. Chapter 3 lives on this.

# %% tags=["hide-cell"]
# Solution 2
changed = {"never right last": counts.where(counts.isfinite(), 0), "least forgotten": -counts}
for name, scores in changed.items():
    choice = select.forgetting(real, ipc, scores, runs.stream(seed, "ties"))
    measured[name, ipc] = evaluate.evaluate(choice, real, recipe, seed=seed, quiet=True)
for name in (*changed, "Forgetting", "Random"):
    print(f"{name:<16} {100 * measured[name, ipc].mean:.1f} ± {100 * measured[name, ipc].std:.1f} % at IPC {ipc}")
for cell in papers.published(dataset="fashion_mnist", method="Forgetting", ipc=ipc, paper="SKD"):
    print(f"published        {cell.value} % on the whole of fashion_mnist")
# The images that were never right did most of the damage. The least forgotten are about as good as Random: three quarters of all
# images were never forgotten, so drawing among them is Random without the oddest.

# %% tags=["hide-cell"]
# Solution 3
some = torch.cat([places[:200] for places in members]).cpu()
mine = data.ImageSet.from_arrays(real.train.images.cpu()[some], real.train.labels.cpu()[some],
                                 real.test.images.cpu(), real.test.labels.cpu(), classes=real.classes, name="mine")
labels = mine.train.labels.clone()
wrong = torch.rand(len(labels), generator=runs.stream(seed, "wrong")) < 0.05
labels[wrong] = (labels[wrong] + 1) % mine.num_classes
mine = replace(mine, train=data.Split(mine.train.images, labels)).to(runs.pick_device())

eyes = select.feature_net(mine, epochs=10, width=width, batch_size=32, seed=seed)
losses = select.forgetting_counts(mine, forgetting_epochs, width=width, batch_size=32, seed=seed)
rng = runs.stream(seed, "mine")
few = min(10, min(len(mine.train.of_class(c)) for c in range(mine.num_classes)))
for syn in (select.random(mine, few, rng), select.herding(mine, few, eyes), select.k_center(mine, few, eyes),
            select.forgetting(mine, few, losses, rng)):
    print(f"{syn.meta['method']:<11} {int(wrong[syn.meta['indices']].sum()):>3} of {few * mine.num_classes} labels are wrong")
# By chance it would be 5 of 100. Forgetting and K-Center collect them: to a network, a wrong label and a difficult image look the same.
