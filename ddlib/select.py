"""Selection: a distilled set made of real images. Four recipes, from drawing blindly to choosing what is hard.

Random asks nothing; Herding and K-Center look at the features of a network trained on all data; Forgetting looks at how
such a training went. All return a PixelSet with `ipc` images of every class, class by class, and the places of the
chosen images in `real.train` as meta["indices"].
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ddlib import data, models, train
from ddlib.data import ImageSet, check_ipc
from ddlib.distilled import PixelSet
from ddlib.methods import answered, parse_network
from ddlib.runs import pick_device, stream


def random(real: ImageSet, ipc: int, rng: torch.Generator) -> PixelSet:
    """Uniform, without replacement, per class."""
    return PixelSet.from_real(real, ipc, rng, method="Random")


def shrunk(syn: PixelSet, ipc: float) -> PixelSet:
    """The images of `syn` with so few pixels that all of them together have those of `ipc` images per class, enlarged again.

    What a poster below one image per class has to be compared with. `stored_side` says how many pixels are kept of each.
    """
    per_class = len(syn) / syn.num_classes
    if not 0 < ipc <= per_class:
        raise ValueError(f"ipc must be above 0 and at most {per_class:g}, what the set has, got {ipc}")
    side = stored_side(syn.shape, ipc / per_class)
    less = F.interpolate(syn.images, size=side, mode="area")
    images = F.interpolate(less, size=syn.shape[1:], mode="bilinear", align_corners=False)
    return PixelSet(images, syn.labels, classes=syn.classes, preprocess=syn.preprocess, meta={**syn.meta, "nominal_ipc": ipc})


def stored_side(shape: tuple[int, int, int], share: float) -> tuple[int, int]:
    """Height and width of an image of `shape` (c, h, w) that keeps `share` of its pixels, rounded down."""
    h, w = (max(math.floor(length * math.sqrt(share) + 1e-9), 1) for length in shape[1:])
    return h, w


def herding(real: ImageSet, ipc: int, net: models.Classifier) -> PixelSet:
    """The images whose running mean of features follows the class mean (Welling, ICML 2009; Rebuffi et al., CVPR 2017)."""
    return by_features(real, ipc, net, herding_order, "Herding")


def k_center(real: ImageSet, ipc: int, net: models.Classifier) -> PixelSet:
    """The images that cover the class: the greedy 2-approximation of K-Center (Sener and Savarese, ICLR 2018)."""
    return by_features(real, ipc, net, k_center_order, "K-Center")


def forgetting(real: ImageSet, ipc: int, counts: Tensor, rng: torch.Generator) -> PixelSet:
    """The images that training forgot most often (Toneva et al., ICLR 2019).

    counts: (N,) from `forgetting_counts`, infinite for images that were never learned. Ties are broken by `rng`.
    """
    check_ipc(real, ipc)
    ties = torch.randperm(len(counts), generator=rng)
    chosen = []
    for label in range(real.num_classes):
        members = real.train.of_class(label).cpu()
        shuffled = members[ties[members].argsort()]
        chosen.append(shuffled[counts[shuffled].argsort(descending=True, stable=True)[:ipc]])
    return PixelSet.from_indices(real, torch.cat(chosen), method="Forgetting", seed=rng.initial_seed())


def herding_order(features: Tensor, num: int) -> Tensor:
    """Indices (num,) in the order of choice from features (n, F): x_k = argmin_x |k mu - sum of the chosen - x|.

    Without repetition. The first choice is the image nearest to the mean; all n together have the mean exactly.
    """
    mean = features.mean(dim=0)                                                         # (F,)
    missing, free, order = torch.zeros_like(mean), torch.ones(len(features), dtype=torch.bool, device=features.device), []
    for _ in range(num):
        missing = missing + mean                                                        # k mu - sum of the chosen
        distance = (features - missing).square().sum(dim=1).where(free, torch.inf)      # (n,)
        order.append(distance.argmin())
        free[order[-1]] = False
        missing = missing - features[order[-1]]
    return torch.stack(order)


def k_center_order(features: Tensor, num: int) -> Tensor:
    """Indices (num,) from features (n, F): first the image nearest to the mean, then always the one farthest from all chosen.

    The radius (largest distance to the nearest chosen image) never grows with num.
    """
    first = (features - features.mean(dim=0)).square().sum(dim=1).argmin()
    order, nearest = [first], (features - features[first]).square().sum(dim=1)          # (n,) squared distance
    free = torch.ones(len(features), dtype=torch.bool, device=features.device)
    while len(order) < num:
        free[order[-1]] = False                                                         # matters for duplicates only
        order.append(nearest.where(free, -1).argmax())
        nearest = torch.minimum(nearest, (features - features[order[-1]]).square().sum(dim=1))
    return torch.stack(order)


def feature_net(real: ImageSet, epochs: int = 5, *, network: str = "convnet3", width: int | None = None, seed: int = 0,
                batch_size: int = 128, lr: float = 0.01) -> models.Classifier:
    """A network trained on all of real.train, whose last-block output (`embed`) Herding and K-Center measure with."""
    net = models.build(network, shape=real.shape, num_classes=real.num_classes, width=width, seed=seed)
    net = net.to(real.train.images.device)
    batches = train.Batches(real.train.images, real.train.labels, batch_size, stream(seed, "feature net"), real.preprocess)
    train.fit(net, batches, steps=epochs * -(-len(real.train) // batch_size), lr=lr)
    return net


@torch.inference_mode()
def embeddings(net: models.Classifier, real: ImageSet, indices: Tensor, batch_size: int = 500) -> Tensor:
    """Features (n, F) of the training images at `indices` (n,), in evaluation mode and without augmentation."""
    net.eval()
    return torch.cat([net.embed(real.preprocess(real.train.images.index_select(0, part))) for part in indices.split(batch_size)])


def forgetting_counts(real: ImageSet, epochs: int = 10, *, network: str = "convnet3", width: int | None = None,
                      seed: int = 0, batch_size: int = 128, lr: float = 0.01) -> Tensor:
    """How often each training image went from right to wrong between two visits, (N,) float; infinite if never right.

    One network is trained on all of real.train; an image is judged by the logits of the batch that it is visited in.
    """
    net = models.build(network, shape=real.shape, num_classes=real.num_classes, width=width, seed=seed)
    net = net.to(real.train.images.device)
    batches = train.Batches(real.train.images, real.train.labels, batch_size, stream(seed, "forgetting"), real.preprocess)
    count = torch.zeros(len(real.train), device=real.train.images.device)
    was_right = torch.zeros_like(count, dtype=torch.bool)
    ever_right = torch.zeros_like(was_right)

    def observe(step: int, logits: Tensor) -> None:
        right = logits.argmax(dim=1) == real.train.labels[batches.indices]              # (B,)
        count[batches.indices] += was_right[batches.indices] & ~right
        was_right[batches.indices] = right
        ever_right[batches.indices] |= right

    train.fit(net, batches, steps=epochs * -(-len(real.train) // batch_size), lr=lr, observe=observe)
    return count.where(ever_right, torch.inf).cpu()


def by_features(real: ImageSet, ipc: int, net: models.Classifier, choose: Callable[[Tensor, int], Tensor], method: str) -> PixelSet:
    """`ipc` images of every class, in the order of choose(features (n, F), ipc) -> (ipc,)."""
    check_ipc(real, ipc)
    chosen = []
    for label in range(real.num_classes):
        members = real.train.of_class(label)
        chosen.append(members[choose(embeddings(net, real, members), ipc)].cpu())
    return PixelSet.from_indices(real, torch.cat(chosen), method=method)


METHODS = ("Random", "Herding", "K-Center", "Forgetting")


def main() -> int:
    """`python -m ddlib.select`: choose with some recipes at some IPCs, evaluate each choice, append the rows."""
    from ddlib import evaluate

    parser = argparse.ArgumentParser(prog="python -m ddlib.select", description=main.__doc__)
    parser.add_argument("--dataset", default="fashion_mini", help=f"one of {', '.join(sorted(data.DATASETS))}")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS, metavar="METHOD", help=f"of {', '.join(METHODS)}")
    parser.add_argument("--ipcs", nargs="+", type=budget, default=[1, 10], metavar="IPC",
                        help="images per class; for Random also below 1: photographs that are stored smaller")
    parser.add_argument("--width", type=int, default=32, help="width of ConvNet-3, for choosing and for evaluating")
    parser.add_argument("--feature-epochs", type=int, default=5, help="training of the network that Herding and K-Center look through")
    parser.add_argument("--forgetting-epochs", type=int, default=10)
    parser.add_argument("--evaluate", default="strict-cpu", choices=sorted(evaluate.PROTOCOLS), metavar="PROTOCOL")
    parser.add_argument("--networks", metavar="NAME[:WIDTH]", nargs="+", default=[],
                        help="networks to evaluate with, for example resnet18:16 (default: ConvNet-3 of --width)")
    parser.add_argument("--preprocess", choices=data.KINDS, help="how pixels are normalised (default: as usual for the dataset)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", help="folder with the datasets (default $DDLIB_DATA)")
    parser.add_argument("--results", help="CSV file that the rows are appended to; rows already there are not made again")
    arguments = parser.parse_args()
    return answered(lambda: select_and_evaluate(arguments))


def budget(text: str) -> float:
    """Images per class: a whole number, or a share of one."""
    ipc = float(text)
    if not 0 < ipc < math.inf:
        raise argparse.ArgumentTypeError(f"must be above 0 and finite, got {text}")
    return int(ipc) if ipc.is_integer() else ipc


def select_and_evaluate(arguments: argparse.Namespace) -> None:
    from ddlib import evaluate

    if any(ipc < 1 for ipc in arguments.ipcs) and arguments.methods != ["Random"]:
        raise ValueError(f"below one image per class only Random has an answer (shrunken photographs), got --ipcs "
                         f"{' '.join(map(str, arguments.ipcs))} for {', '.join(arguments.methods)}: add --methods Random")
    train.keep_freed_memory()
    real = data.load(arguments.dataset, arguments.data, preprocess=arguments.preprocess).to(pick_device())
    protocols = [evaluate.with_options(arguments.evaluate, network=network, width=width)
                 for network, width in [parse_network(text) for text in arguments.networks] or [("convnet3", arguments.width)]]
    options = "".join(f" --{name} {value}" for name, value in (("networks", " ".join(arguments.networks)),
                                                               ("preprocess", arguments.preprocess)) if value)
    net, counts, training = None, None, {"Random": 0.0}    # minutes of training before anything can be chosen
    for method in arguments.methods:
        for ipc in arguments.ipcs:
            command = (f"python -m ddlib.select --dataset {real.name} --methods {method} --ipcs {ipc} --width {arguments.width} "
                       f"--feature-epochs {arguments.feature_epochs} --forgetting-epochs {arguments.forgetting_epochs} "
                       f"--evaluate {arguments.evaluate} --seed {arguments.seed}{options}")
            rows = evaluate.read_rows(Path(arguments.results), evaluate.COLUMNS) if arguments.results else []
            h, w = stored_side(real.shape, min(ipc, 1))
            version = f"shrunk to {w}x{h}" if ipc < 1 else ""
            done = {(row["eval_arch"], row["variant"]) for row in rows if row["command"] == command}
            missing = [protocol for protocol in protocols if (protocol.network, evaluate.labelled(version, protocol)) not in done]
            if not missing:
                print(f"{method} at ipc {ipc} is there already")
                continue
            rng, started, num = stream(arguments.seed, method, ipc), time.monotonic(), missing[0].repeats
            if method == "Random":                                                      # a new draw for every network
                syn = [random(real, max(ipc, 1), rng) for _ in range(num)]
                syn = [shrunk(each, ipc) for each in syn] if ipc < 1 else syn
            elif method == "Forgetting":
                if counts is None:
                    counts = forgetting_counts(real, arguments.forgetting_epochs, width=arguments.width, seed=arguments.seed)
                    training[method] = (time.monotonic() - started) / 60
                syn = [forgetting(real, ipc, counts, rng)] * num
            else:
                if net is None:
                    net = feature_net(real, arguments.feature_epochs, width=arguments.width, seed=arguments.seed)
                    training["Herding"] = training["K-Center"] = (time.monotonic() - started) / 60
                syn = [(herding if method == "Herding" else k_center)(real, ipc, net)] * num
            for protocol in missing:
                row = evaluate.evaluate(syn, real, protocol, seed=arguments.seed, quiet=True).row(
                    method=method, variant=version, command=command, distilling=training[method])
                row |= {"budget_scalars": len(syn[0]) * real.shape[0] * h * w} if version else {}
                print(f"{method} at ipc {ipc}, {protocol.network}: {row['accuracy_mean']} +- {row['accuracy_std']} % "
                      f"(n = {row['n']})", flush=True)
                if arguments.results:
                    evaluate.append_row(arguments.results, row)


if __name__ == "__main__":
    raise SystemExit(main())
