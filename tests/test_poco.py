"""The order of classes on a poster: greedy placement, its score, and the distances that it looks at."""

from __future__ import annotations

import itertools
import json
import math
import sys
import types

import pytest
import torch
from torchvision import datasets as tv

from ddlib import data, poco

# Four classes on a 2x2 grid. Class 0 comes first; 1, nearest to it, below it (the anti-diagonal rises); then 2, and 3 is left.
BY_HAND = torch.tensor([
    [0.0, 1.0, 2.0, 5.0],
    [1.0, 0.0, 4.0, 3.0],
    [2.0, 4.0, 0.0, 6.0],
    [5.0, 3.0, 6.0, 0.0],
])
CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def random_distances(size, seed=0):
    """Distances of random vectors: symmetric, no two alike."""
    return poco.cosine_distances(torch.randn(size, 8, generator=torch.Generator().manual_seed(seed)))


def planted(blocks, size, seed):
    """Distances near 0.1 within each of `blocks` blocks of `size` classes, near 1 between them; the classes are shuffled."""
    rng = torch.Generator().manual_seed(seed)
    block = torch.arange(blocks * size)[torch.randperm(blocks * size, generator=rng)] // size
    delta = torch.where(block[:, None] == block, 0.1, 1.0) + 0.05 * torch.rand(len(block), len(block), generator=rng)
    return ((delta + delta.T) / 2).fill_diagonal_(0), block


def greedy(delta, grid_x, grid_y, alternate):
    """The rule in plain Python: a list of rows."""
    delta = delta.tolist()
    free, placed = list(range(len(delta))), {}
    for number in range(grid_x + grid_y - 1):
        diagonal = [(y, number - y) for y in range(grid_y) if 0 <= number - y < grid_x]         # from the top right downwards
        for y, x in diagonal if alternate and number % 2 else diagonal[::-1]:
            near = [placed[cell] for cell in ((y - 1, x), (y, x - 1), (y + 1, x), (y, x + 1)) if cell in placed]
            chosen = min(free, key=lambda k: (sum(delta[k][other] for other in near), k)) if near else 0
            placed[y, x] = chosen
            free.remove(chosen)
    return [[placed[y, x] for x in range(grid_x)] for y in range(grid_y)]


def test_four_classes_are_placed_as_by_hand_and_scored():
    placed = poco.order(BY_HAND, 2, 2)
    assert placed.tolist() == [[0, 2], [1, 3]]
    assert poco.score(placed, BY_HAND) == pytest.approx(1 / (2 + 1 + 6 + 3))
    assert poco.order(BY_HAND, 2, 2, alternate=True).tolist() == [[0, 1], [2, 3]]              # 1 is placed at the top right first
    assert poco.order(BY_HAND, 4, 1).tolist() == [[0, 1, 3, 2]] and poco.order(BY_HAND, 1, 4).flatten().tolist() == [0, 1, 3, 2]


def test_the_two_traversals_walk_the_same_anti_diagonals():
    assert list(poco.cells(3, 2)) == [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2)]
    assert list(poco.cells(3, 2, alternate=True)) == [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (1, 2)]
    assert list(poco.cells(2, 3, alternate=True)) == [(0, 0), (0, 1), (1, 0), (2, 0), (1, 1), (2, 1)]
    for grid in ((1, 1), (5, 2), (2, 5), (10, 10)):
        rising, turning = list(poco.cells(*grid)), list(poco.cells(*grid, alternate=True))
        assert sorted(rising) == sorted(turning) == sorted(itertools.product(range(grid[1]), range(grid[0])))
        assert [y + x for y, x in rising] == [y + x for y, x in turning] == sorted(y + x for y, x in rising)


@pytest.mark.parametrize("alternate", [False, True])
@pytest.mark.parametrize("grid", [(5, 2), (2, 5), (4, 4), (7, 1)])
def test_an_order_is_what_the_greedy_rule_in_plain_python_gives(grid, alternate):
    for seed in range(3):
        delta = random_distances(grid[0] * grid[1], seed)
        assert poco.order(delta, *grid, alternate).tolist() == greedy(delta, *grid, alternate)


@pytest.mark.parametrize("alternate", [False, True])
def test_an_order_is_a_permutation_deterministic_and_blind_to_the_scale(alternate):
    tables = [random_distances(20), poco.by_table(list(map(str, range(10)))), BY_HAND,
              (5 * random_distances(20, seed=1)).round()]                                      # with many ties
    for delta in tables:
        grid = {20: (5, 4), 10: (5, 2), 4: (2, 2)}[len(delta)]
        placed = poco.order(delta, *grid, alternate)
        assert placed.shape == (grid[1], grid[0]) and sorted(placed.flatten().tolist()) == list(range(len(delta)))
        assert torch.equal(placed, poco.order(delta.clone(), *grid, alternate))
        for scale in (1e-6, 0.1, 1 / 3, 3, 7e5):
            assert torch.equal(placed, poco.order(scale * delta, *grid, alternate)), scale
        shifted = delta + 0.5                                                                  # every sum has as many terms
        assert torch.equal(placed, poco.order(shifted, *grid, alternate))


def test_ties_go_to_the_lowest_class_also_where_rounding_hides_them():
    assert poco.order(torch.ones(6, 6), 3, 2).tolist() == [[0, 2, 4], [1, 3, 5]]
    delta = torch.zeros(4, 4, dtype=torch.float64)
    for (a, b), value in {(0, 1): 0.0, (0, 2): 0.0, (0, 3): 0.9, (1, 2): 0.3, (1, 3): 0.3, (2, 3): 0.3}.items():
        delta[a, b] = delta[b, a] = value
    assert poco.order(delta, 2, 2).tolist() == [[0, 2], [1, 3]]
    five = torch.full((5, 5), 9.0, dtype=torch.float64)
    for (a, b), value in {(0, 1): 0.01, (0, 2): 0.02, (1, 3): 0.1 + 0.2, (2, 3): 0.3, (1, 4): 0.3, (2, 4): 0.3}.items():
        five[a, b] = five[b, a] = value                                                        # 0.1 + 0.2 is a little above 0.3
    six = torch.nn.functional.pad(five, (0, 1, 0, 1), value=9.0)
    assert poco.order(six, 3, 2)[1, 1] == 3


@pytest.mark.parametrize(("blocks", "size", "grid"), [(2, 5, (5, 2)), (4, 4, (4, 4)), (5, 20, (10, 10))])
def test_a_planted_structure_is_found_better_than_by_random_orders(blocks, size, grid):
    for seed in range(3):
        delta, block = planted(blocks, size, seed)
        rng = torch.Generator().manual_seed(seed)
        chance = [poco.score(other, delta) for other in poco.random_orders(len(delta), *grid, 200, rng)]
        for alternate in (False, True):
            placed = poco.order(delta, *grid, alternate)
            assert poco.score(placed, delta) >= sum(chance) / len(chance)
            if blocks == 2 and not alternate:                                                  # cells 0 to 4 on the way
                first = [block[placed[cell]].item() for cell in poco.cells(*grid)][:5]
                assert len(set(first)) == 1


def test_a_score_counts_every_pair_of_neighbours_once():
    delta, rng = random_distances(12), torch.Generator().manual_seed(0)
    for placed in poco.random_orders(12, 4, 3, 5, rng):
        rows = placed.tolist()
        pairs = [(rows[y][x], rows[y][x + 1]) for y in range(3) for x in range(3)] + [(rows[y][x], rows[y + 1][x])
                                                                                    for y in range(2) for x in range(4)]
        assert len(pairs) == 17
        assert poco.score(placed, delta) == pytest.approx(1 / sum(delta[a, b].item() for a, b in pairs))
        assert poco.score(placed, 2 * delta) == pytest.approx(poco.score(placed, delta) / 2)
    assert poco.score(torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1)) == math.inf


def test_random_orders_are_different_permutations_of_a_seed():
    orders = poco.random_orders(10, 5, 2, 20, torch.Generator().manual_seed(3))
    assert orders.shape == (20, 2, 5) and (orders.flatten(1).sort().values == torch.arange(10)).all()
    assert len(orders.flatten(1).unique(dim=0)) == 20
    assert torch.equal(orders, poco.random_orders(10, 5, 2, 20, torch.Generator().manual_seed(3)))


# ----------------------------------------------------------------------------------------------------------- distances


def test_the_tables_are_distances_between_different_classes_of_the_sets_that_they_are_for():
    sizes = {"mnist": 10, "fashion_mnist": 10, "cifar10": 10, "cifar100": 100}
    stored = json.loads(poco.TABLES.read_text(encoding="utf-8"))
    assert stored["model"] == "sentence-transformers/all-MiniLM-L6-v2" and stored["tables"].keys() == sizes.keys()
    assert set(poco.TABLE_OF.values()) == sizes.keys() and poco.TABLE_OF.keys() <= data.DATASETS.keys()
    for name, table in stored["tables"].items():
        assert len(table["classes"]) == len(set(table["classes"])) == len(table["texts"]) == sizes[name]
        assert [len(row) for row in table["distances"]] == list(range(sizes[name]))
        assert all(0 < value < 1.2 and value == round(value, 4) for row in table["distances"] for value in row)
        delta = poco.distances(table["classes"], "text")
        assert torch.equal(delta, delta.T) and (delta.diagonal() == 0).all() and delta.dtype == torch.float64
        assert delta[7, 2].item() == table["distances"][7][2]


def test_class_names_of_the_tables_are_those_of_the_data_sets():
    tables = poco._tables()
    assert tables["fashion_mnist"]["classes"] == list(data.load("fashion_mini").classes) == tv.FashionMNIST.classes
    assert tables["mnist"]["classes"] == list(map(str, range(10))) and tables["mnist"]["texts"] == tv.MNIST.classes
    assert tables["cifar10"]["classes"] == CIFAR10
    names = tables["cifar100"]["classes"]
    assert names == sorted(names) and (names[0], names[42], names[99]) == ("apple", "leopard", "worm")
    for table in tables.values():
        assert "_" not in "".join(table["texts"])
        if table is not tables["mnist"]:
            assert [text.replace(" ", "_") for text in table["texts"]] == [name.replace(" ", "_") for name in table["classes"]]


@pytest.mark.data
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "cifar100"])
def test_class_names_of_the_tables_are_those_that_the_files_have(name):
    if not all((data.data_folder() / file).is_file() for file in data.torchvision_files(name)):
        pytest.skip(f"{name} is not in DDLIB_DATA")
    assert poco._tables()[poco.TABLE_OF[name]]["classes"] == list(data.load(name).classes)


def test_likenesses_that_anybody_sees_are_in_the_tables():
    delta = dict(zip(CIFAR10, poco.by_table(CIFAR10), strict=True))
    for near, far, to in (("truck", "frog", "automobile"), ("dog", "ship", "cat"), ("horse", "airplane", "deer")):
        assert delta[to][CIFAR10.index(near)] < delta[to][CIFAR10.index(far)]
    maple, oak, shark = poco.by_table(["maple_tree", "oak_tree", "shark"])[0].tolist()
    assert maple == 0 < oak < shark


def test_names_may_be_some_of_a_table_in_any_order():
    part = ["dog", "airplane", "truck"]
    whole = poco.distances(CIFAR10)
    places = [CIFAR10.index(name) for name in part]
    assert torch.equal(poco.distances(part), whole[places][:, places])


def test_auto_takes_the_table_where_there_is_one_and_features_otherwise():
    mini, toy = data.load("fashion_mini"), data.load("toy")
    assert torch.equal(poco.distances(mini), poco.by_table(mini.classes))
    assert torch.equal(poco.distances(toy), poco.by_features(toy))
    digits = data.ImageSet.from_arrays(toy.train.images, toy.train.labels, toy.test.images, toy.test.labels)
    assert digits.classes == ("0", "1", "2", "3")                                              # numbers that are no digits
    assert not torch.equal(poco.distances(digits), poco.by_table(digits.classes))


@pytest.mark.parametrize("source", ["features", "colour"])
def test_images_give_distances_that_are_the_same_for_one_seed(source):
    toy = data.load("toy")
    delta = poco.distances(toy, source)
    assert delta.shape == (4, 4) and torch.equal(delta, delta.T) and (delta.diagonal() == 0).all() and delta.dtype == torch.float64
    assert delta[~torch.eye(4, dtype=torch.bool)].min() > 0 and delta.max() <= 2
    assert torch.equal(delta, poco.distances(toy, source))
    assert sorted(poco.order(delta, 2, 2).flatten().tolist()) == [0, 1, 2, 3]


def test_colours_put_classes_of_like_colour_next_to_each_other():
    paint = torch.tensor([[250, 0, 0], [0, 0, 250], [230, 20, 10], [10, 20, 240]], dtype=torch.uint8)
    labels = torch.arange(4).repeat(10)
    images = paint[labels][:, :, None, None].expand(-1, 3, 8, 8).contiguous()
    painted = data.ImageSet.from_arrays(images, labels, images, labels, preprocess="none")
    delta = poco.distances(painted, "colour")
    assert delta[0, 2] < 0.1 < delta[0, 1] and delta[1, 3] < 0.1 < delta[1, 2]
    unlike = poco.cosine_distances(paint)
    torch.testing.assert_close(delta, unlike, rtol=0, atol=1e-6)


def test_cosine_distances_are_those_of_a_loop():
    vectors = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    delta = poco.cosine_distances(vectors)
    for a, b in itertools.combinations(range(4), 2):
        dot, one, two = (sum(x * y for x, y in zip(*pair, strict=True)) for pair in
                         ((vectors[a].tolist(), vectors[b].tolist()), (vectors[a].tolist(),) * 2, (vectors[b].tolist(),) * 2))
        assert delta[a, b].item() == pytest.approx(1 - dot / math.sqrt(one * two), abs=1e-6)
    assert (poco.cosine_distances(torch.zeros(2, 3)) == torch.tensor([[0.0, 1.0], [1.0, 0.0]])).all()


def test_distances_of_ones_own_are_taken_as_they_are_or_asked_for():
    toy = data.load("toy")
    assert torch.equal(poco.distances(toy, BY_HAND), BY_HAND.double())
    seen = []

    def mine(real):
        seen.append(real)
        return BY_HAND + 1e-7 * torch.eye(4)                                                   # the diagonal is not looked at

    assert torch.equal(poco.distances(toy, mine), BY_HAND.double()) and seen == [toy]


class FakeClip(types.ModuleType):
    """open_clip with two-dimensional embeddings, or without weights."""

    def __init__(self, weights):
        super().__init__("open_clip")
        self.weights, self.texts = weights, []

    def create_model(self, name, pretrained):
        if not self.weights:
            raise RuntimeError("cannot reach the hub. Last error: something long\nand a trace")
        assert (name, pretrained) == ("ViT-B-32-quickgelu", "openai")
        net = torch.nn.Module()
        net.encode_text = lambda tokens: torch.stack([tokens.cos(), tokens.sin()], dim=1)
        return net

    def get_tokenizer(self, name):
        return lambda texts: self.texts.extend(texts) or torch.arange(len(texts)) * 0.1


def test_clip_reads_raw_names_and_compares_pooled_embeddings(monkeypatch):
    fake = FakeClip(weights=True)
    monkeypatch.setitem(sys.modules, "open_clip", fake)
    delta = poco.distances(["maple_tree", "oak", "ray"], "clip")
    assert fake.texts == ["maple tree", "oak", "ray"]
    assert delta[0].tolist() == pytest.approx([0, 1 - math.cos(0.1), 1 - math.cos(0.2)], abs=1e-6)


def broken(a, b, value):
    delta = BY_HAND.clone()
    delta[a, b] = value
    return delta


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda: poco.order(torch.ones(3, 4), 3, 1), ValueError, r"square tensor \(C, C\) with a row for each class, got \(3, 4\)"),
    (lambda: poco.order(torch.ones(4), 2, 2), ValueError, r"square tensor .* got \(4,\)"),
    (lambda: poco.order(torch.ones(0, 0), 0, 0), ValueError, r"square tensor .* got \(0, 0\)"),
    (lambda: poco.order([[0, 1], [1, 0]], 2, 1), ValueError, "square tensor .* got list"),
    (lambda: poco.order(BY_HAND, 3, 2), ValueError, "a grid of 3x2 does not hold 4 classes"),
    (lambda: poco.order(BY_HAND, -2, -2), ValueError, "a grid of -2x-2 does not hold 4 classes"),
    (lambda: poco.order(broken(0, 1, math.nan), 2, 2), ValueError, "must be finite, and 1 of 16 are not"),
    (lambda: poco.order(broken(0, 1, math.inf), 2, 2), ValueError, "must be finite, and 1 of 16 are not"),
    (lambda: poco.order(broken(0, 1, -0.5), 2, 2), ValueError, "must not be negative, and the smallest is -0.5"),
    (lambda: poco.order(broken(1, 2, 7.0), 2, 2), ValueError, "same both ways, and from class 1 to 2 it is 7, back 4"),
    (lambda: poco.score(torch.tensor([[0, 1], [2, 2]]), BY_HAND), ValueError, r"each of the 4 classes once, got shape \(2, 2\) with 3 "),
    (lambda: poco.score(torch.arange(4), BY_HAND), ValueError, r"each of the 4 classes once, got shape \(4,\)"),
    (lambda: poco.score(torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 2)), ValueError, "square tensor"),
    (lambda: poco.distances(CIFAR10, "words"), ValueError, "unknown source of distances 'words'; choose from auto, text, clip, "),
    (lambda: poco.distances(["dog", "quark", "a", "b", "c", "d"]), ValueError, "has the classes 'dog', 'quark', 'a', 'b' and 2 more: give"),
    (lambda: poco.distances([]), ValueError, r"has the classes \(none\)"),
    (lambda: poco.distances(["dog", "apple"], "text"), ValueError, "'dog', 'apple'; there are tables for mnist, fashion_mnist, cifar10"),
    (lambda: poco.distances(CIFAR10, "features"), ValueError, "'features' looks at images"),
    (lambda: poco.distances(CIFAR10, "colour"), ValueError, "'colour' looks at images"),
    (lambda: poco.distances(CIFAR10, BY_HAND), ValueError, "given for 4 classes and there are 10"),
    (lambda: poco.distances(CIFAR10, lambda names: None), ValueError, "square tensor .* got NoneType"),
    (lambda: poco.distances(list("abcd"), broken(2, 3, -1)), ValueError, "must not be negative"),
])
def test_wrong_arguments_are_answered_in_one_sentence(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("module", "error", "message"), [
    (None, ImportError, r"open_clip, which is not installed: pip install 'ddlib\[clip\]'"),
    (FakeClip(weights=False), FileNotFoundError, r"ViT-B-32-quickgelu with the weights 'openai' \(cannot reach the hub\): let it"),
])
def test_clip_says_what_is_missing_in_one_sentence(monkeypatch, module, error, message):
    monkeypatch.setitem(sys.modules, "open_clip", module)                                      # None: as if not installed
    with pytest.raises(error, match=message) as caught:
        poco.distances(CIFAR10, "clip")
    assert "\n" not in str(caught.value)
