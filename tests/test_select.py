"""Selections are subsets, balanced and without repeats; each follows its own rule (T-SEL)."""

import itertools
import math
import sys

import pytest
import torch

from ddlib import data, evaluate, models, select
from ddlib.distilled import PixelSet
from ddlib.runs import stream


@pytest.fixture(scope="module")
def toy():
    return data.load("toy")


@pytest.fixture(scope="module")
def net(toy):
    return select.feature_net(toy, epochs=1, width=4)


def features(n=40, dim=6, seed=0):
    return torch.randn(n, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_herding_the_whole_class_has_the_class_mean():                                  # T-SEL-1
    x = features()
    order = select.herding_order(x, len(x))
    assert sorted(order.tolist()) == list(range(len(x)))
    assert torch.allclose(x[order].mean(0), x.mean(0))


def test_herding_starts_with_the_image_nearest_to_the_mean_and_then_follows_its_rule():
    x = features()
    order = select.herding_order(x, 5).tolist()
    mean, chosen = x.mean(0), []
    for k in range(1, 6):
        cost = [float("inf") if i in chosen else float((k * mean - sum(x[j] for j in chosen) - x[i]).norm()) for i in range(len(x))]
        chosen.append(min(range(len(x)), key=cost.__getitem__))
    assert order == chosen
    assert order[0] == int((x - mean).norm(dim=1).argmin())


def test_herding_keeps_closer_to_the_mean_than_chance_does():
    x = features(200)
    herd = (x[select.herding_order(x, 10)].mean(0) - x.mean(0)).norm()
    rng = torch.Generator().manual_seed(1)
    chance = [(x[torch.randperm(200, generator=rng)[:10]].mean(0) - x.mean(0)).norm() for _ in range(20)]
    assert herd < min(chance)


def test_k_center_radius_never_grows():                                                 # T-SEL-2
    x = features()
    order = select.k_center_order(x, len(x))
    assert sorted(order.tolist()) == list(range(len(x)))
    radius = [float(torch.cdist(x, x[order[:k]]).min(1).values.max()) for k in range(1, len(x) + 1)]
    assert all(later <= earlier for earlier, later in itertools.pairwise(radius)) and radius[-1] < 1e-6


def test_k_center_takes_the_farthest_image_each_time():
    x = features()
    order = select.k_center_order(x, 6)
    for k in range(1, 6):
        nearest = torch.cdist(x, x[order[:k]]).min(1).values
        assert int(order[k]) == int(nearest.argmax())


def test_k_center_does_not_repeat_duplicates():
    x = torch.ones(5, 3)
    assert len(set(select.k_center_order(x, 5).tolist())) == 5


def test_selections_are_balanced_subsets_without_repeats(toy, net):                     # T-SEL-3
    rng = torch.Generator().manual_seed(0)
    counts = select.forgetting_counts(toy, epochs=2, width=4)
    for ipc in (1, 5, 30):
        for chosen in (select.random(toy, ipc, rng), select.herding(toy, ipc, net), select.k_center(toy, ipc, net),
                       select.forgetting(toy, ipc, counts, rng)):
            indices = chosen.meta["indices"]
            assert len(set(indices)) == len(indices) == ipc * toy.num_classes
            assert chosen.labels.tolist() == [label for label in range(toy.num_classes) for _ in range(ipc)]
            assert torch.equal(chosen.images, toy.preprocess(toy.train.images[indices]))


def test_forgetting_takes_the_highest_counts_and_breaks_ties_by_the_stream(toy):
    counts = torch.zeros(len(toy.train))
    hard = [int(toy.train.of_class(label)[3]) for label in range(toy.num_classes)]
    counts[hard] = torch.inf
    picks = [select.forgetting(toy, 2, counts, torch.Generator().manual_seed(seed)).meta["indices"] for seed in range(5)]
    assert all(pick[::2] == hard for pick in picks)
    assert len({tuple(pick) for pick in picks}) > 1


def test_forgetting_counts_right_to_wrong_between_visits(toy, monkeypatch):
    script = {0: [1, 0, 1, 0], 1: [1, 1, 1, 1], 2: [0, 0, 0, 0], 3: [0, 1, 0, 0]}       # right at visit 0..3, by image
    labels = toy.train.labels

    def scripted(net, batches, *, steps, observe, **_):
        for visit in range(4):
            batches.indices = torch.arange(len(labels))
            right = torch.tensor([script.get(i, [1] * 4)[visit] for i in range(len(labels))], dtype=torch.bool)
            observe(visit, torch.nn.functional.one_hot(torch.where(right, labels, (labels + 1) % toy.num_classes), toy.num_classes).float())

    monkeypatch.setattr(select.train, "fit", scripted)
    counts = select.forgetting_counts(toy, epochs=4, width=4)
    assert counts[:4].tolist() == [2, 0, float("inf"), 1]


def test_the_same_seed_gives_the_same_selection(toy):
    nets = [select.feature_net(toy, epochs=1, width=4, seed=5) for _ in range(2)]
    assert select.herding(toy, 5, nets[0]).meta["indices"] == select.herding(toy, 5, nets[1]).meta["indices"]
    assert torch.equal(select.forgetting_counts(toy, 1, width=4), select.forgetting_counts(toy, 1, width=4))


def test_embeddings_do_not_change_the_network(toy, net):
    before = models.flatten(net).clone()
    select.herding(toy, 1, net)
    assert torch.equal(before, models.flatten(net))


@pytest.mark.parametrize("ipc", [0, 1.5, 10**6])
def test_a_senseless_ipc_is_refused(toy, net, ipc):
    with pytest.raises(ValueError, match="ipc|images"):
        select.herding(toy, ipc, net)


def test_the_command_evaluates_with_every_network_once_and_keeps_the_rows(tmp_path, monkeypatch, capsys):
    results = tmp_path / "rows.csv"
    monkeypatch.setattr(sys, "argv", ["select", "--dataset", "toy", "--methods", "Random", "--ipcs", "1", "--networks", "convnet3:2",
                                      "convnet3:3", "--results", str(results)])
    assert select.main() == 0
    rows = evaluate.read_rows(results)
    assert [(row["eval_arch"], row["variant"], row["n"]) for row in rows] == [("convnet3", "width 2", "5"), ("convnet3", "width 3", "5")]
    assert all(row["command"].endswith("--networks convnet3:2 convnet3:3") for row in rows)
    results.write_text("".join(results.read_text().splitlines(keepends=True)[:2]))              # as if it had been killed between the two
    assert select.main() == 0
    again = evaluate.read_rows(results)
    assert [row["accuracy_mean"] for row in again] == [row["accuracy_mean"] for row in rows]
    assert select.main() == 0 and len(evaluate.read_rows(results)) == 2
    assert "is there already" in capsys.readouterr().out


def test_shrunken_photographs_hold_no_more_than_their_budget(toy):
    photographs = select.random(toy, 1, stream(0, "shrink"))
    small = select.shrunk(photographs, 0.5)
    h, w = select.stored_side(toy.shape, 0.5)
    assert h * w <= 0.5 * math.prod(toy.shape[1:]) < (h + 1) * (w + 1)
    assert small.images.shape == photographs.images.shape and torch.equal(small.labels, photographs.labels)
    size = math.prod(toy.shape)
    units = torch.eye(size).view(size, *toy.shape)
    basis = PixelSet(units, torch.arange(size) % toy.num_classes, classes=toy.classes, preprocess=toy.preprocess)
    shown = select.shrunk(basis, size / toy.num_classes / 2).images.flatten(1)                  # what pictures can be shown at all
    assert torch.linalg.matrix_rank(shown) == toy.shape[0] * h * w
    assert torch.equal(select.shrunk(photographs, 1).images, photographs.images)
    for ipc in (0, 1.5):
        with pytest.raises(ValueError, match="at most 1, what the set has"):
            select.shrunk(photographs, ipc)


def test_below_one_image_per_class_the_command_shrinks_photographs(tmp_path, monkeypatch, capsys):
    results = tmp_path / "rows.csv"
    arguments = ["select", "--dataset", "toy", "--ipcs", "0.5", "--width", "2", "--results", str(results)]
    monkeypatch.setattr(sys, "argv", [*arguments, "--methods", "Random"])
    assert select.main() == 0 and select.main() == 0
    (row,) = evaluate.read_rows(results)
    shape, num_classes = data.load("toy").shape, data.load("toy").num_classes
    h, w = select.stored_side(shape, 0.5)
    assert (row["ipc"], row["variant"]) == ("0.5", f"shrunk to {w}x{h}, width 2")
    assert int(row["budget_scalars"]) == num_classes * shape[0] * h * w
    monkeypatch.setattr(sys, "argv", [*arguments, "--methods", "Random", "Herding"])
    assert select.main() == 1 and "only Random" in capsys.readouterr().err


@pytest.mark.parametrize("ipc", ["-0.5", "0", "nan", "inf"])
def test_the_command_refuses_a_budget_that_is_none(ipc, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["select", "--dataset", "toy", "--methods", "Random", f"--ipcs={ipc}"])
    with pytest.raises(SystemExit):
        select.main()
    assert f"must be above 0 and finite, got {ipc}" in capsys.readouterr().err
