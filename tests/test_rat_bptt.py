"""Properties of random truncated backpropagation, and of PoDD, which is the same with a poster."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch

from ddlib import data, distilled, models, poco, poster, runs, unroll
from ddlib.methods import Diverged, ddpp, dm, mtt, podd, rat_bptt
from ddlib.runs import stream

REAL = data.load("toy")
TINY = rat_bptt.PRESETS["tiny"]


def double_net(num_classes: int = 4, width: int = 3) -> models.Classifier:
    return models.build("convnet3", shape=REAL.shape, num_classes=num_classes, width=width, seed=0).double()


def real_batch(size: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    return REAL.preprocess(REAL.train.images[:size]).double(), REAL.train.labels[:size]


def of_step(images: torch.Tensor, labels: torch.Tensor):
    """A different half of the images at every step."""
    return lambda j, x=images: (x[j % 2::2], labels[j % 2::2])


@pytest.fixture
def start():
    rng = stream(0, "test")
    images, labels = 0.5 * torch.randn(8, *REAL.shape, generator=rng, dtype=torch.float64), torch.arange(8) % 4
    net = double_net()
    return net, models.flatten(net), images.requires_grad_(), labels


# -------------------------------------------------------------------------------------------------------------- RaT-BPTT

@pytest.mark.parametrize("rule", [unroll.Adam(), unroll.SGD(0.9)], ids=["adam", "sgd"])
def test_without_truncation_it_is_backpropagation_through_all_of_training(start, rule):
    """T-RAT-1, against autograd through plain steps."""
    net, theta, images, labels = start
    batch = of_step(images, labels)
    now, state = theta.detach().requires_grad_(), rule.start(theta)
    for j in range(5):
        (gradient,) = torch.autograd.grad(unroll.mean_loss(net, now, *batch(j, images)), now, create_graph=True)
        now, state = rule.step(now, gradient, state, torch.tensor(0.01, dtype=torch.float64))
    loss = unroll.mean_loss(net, now, *real_batch())
    (wanted,) = torch.autograd.grad(loss, images)
    found, (gradient,) = rat_bptt.meta_gradient(net, theta, (images,), batch, [real_batch()], burn=0, window=5, rule=rule, rate=0.01)
    torch.testing.assert_close(found, loss.detach())
    torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-14)


def test_a_window_as_long_as_training_leaves_nothing_out():
    """T-RAT-1 of the method: no burn-in at any step, and the images of the plain graph."""
    config = replace(TINY, window=4, max_inner=4, steps=3)
    sets = []
    for form in ("remat", "plain"):
        steps = list(rat_bptt.distill(REAL, replace(config, unroll=form)))
        assert all(step.losses["burn"] == 0 for step in steps)
        sets.append(steps[-1].syn.images)
    torch.testing.assert_close(*sets, rtol=1e-4, atol=1e-6)


def test_steps_before_the_window_count_only_by_where_they_end(start):
    """T-RAT-2: the gradient is that of training from their end state on, which differences through the burn-in do not give."""
    net, theta, images, labels = start
    rule, batch, rate = unroll.Adam(), of_step(images, labels), torch.tensor(0.01, dtype=torch.float64)
    found = rat_bptt.meta_gradient(net, theta, (images,), batch, [real_batch()], burn=3, window=3, rule=rule, rate=0.01)[1][0]
    now, state = theta.detach(), rule.start(theta)
    for j in range(6):                                           # one training, with Adam's memory, of which the last half has a graph
        now = now.requires_grad_() if j <= 3 else now
        shown = images if j >= 3 else images.detach()
        (gradient,) = torch.autograd.grad(unroll.mean_loss(net, now, *batch(j, shown)), now, create_graph=j >= 3)
        now, state = rule.step(now if j >= 3 else now.detach(), gradient, state, rate)
    (wanted,) = torch.autograd.grad(unroll.mean_loss(net, now, *real_batch()), images)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-14)

    def numerically(through_burn_in: bool, step: float = 1e-6) -> float:
        """Central difference of the real loss along one pixel."""
        losses = []
        for sign in (1, -1):
            moved = images.detach().clone()
            moved[3, 0, 5, 5] += sign * step
            first = moved if through_burn_in else images.detach()
            theta_r, state_r = rat_bptt.burn_in(net, theta, lambda j, first=first: batch(j, first), 3, rule, 0.01)
            end = unroll.unroll(net, theta_r, (moved,), lambda j, x: batch(3 + j, x), steps=3, rate=0.01, rule=rule, state=state_r)
            losses.append(unroll.mean_loss(net, end, *real_batch()).item())
        return (losses[0] - losses[1]) / (2 * step)

    assert found[3, 0, 5, 5].item() == pytest.approx(numerically(False), rel=1e-4)
    assert found[3, 0, 5, 5].item() != pytest.approx(numerically(True), rel=1e-2)


@pytest.mark.parametrize("inner", ["adam", "sgd"])
def test_the_way_before_the_window_is_that_of_torchs_optimizer(start, inner):
    """T-RAT-3."""
    net, theta, images, labels = start
    config = replace(TINY, inner=inner)
    batch = of_step(images.detach(), labels)
    found, _ = rat_bptt.burn_in(net, theta, batch, 7, config.inner_rule(), 0.01)
    usual = copy.deepcopy(net)
    kind = torch.optim.Adam if inner == "adam" else partial(torch.optim.SGD, momentum=0.9)
    optimizer = kind(usual.parameters(), lr=0.01)
    for j in range(7):
        inputs, targets = batch(j)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(usual(inputs), targets).backward()
        optimizer.step()
    trained, now = models.unflatten(net, found), dict(usual.named_parameters())
    for name in trained:                                         # biases before a norm have round-off for a gradient, which Adam magnifies
        if not name.endswith(".0.bias"):
            torch.testing.assert_close(trained[name], now[name].detach(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("redraw", ["step", "epoch"])
def test_burn_in_lengths_cover_both_ends_and_change_as_often_as_asked(redraw):
    """T-RAT-4."""
    config = replace(TINY, width=1, redraw=redraw, window=1, max_inner=4, min_burn=1, real_batch=len(REAL.train) // 7, steps=42)
    burns = [int(step.losses["burn"]) for step in rat_bptt.distill(REAL, config)]
    assert set(burns) == {1, 2, 3}
    changes = sum(one != other for one, other in pairwise(burns))
    if redraw == "epoch":
        assert all(len(set(burns[at:at + 7])) == 1 for at in range(0, 42, 7))
    else:
        assert changes > 42 / 3


def test_the_gradient_of_the_real_loss_does_not_depend_on_how_it_is_cut(start):
    net, theta, *_ = start
    images, labels = real_batch(12)
    whole = rat_bptt.real_loss(net, theta, [(images, labels)])
    parts = rat_bptt.real_loss(net, theta, [(images[:5], labels[:5]), (images[5:], labels[5:])])
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other)


def test_a_gradient_is_cut_at_twice_its_running_norm():
    clip = rat_bptt.Clip(2.0)
    first = torch.ones(4)                                        # norm 2
    assert torch.equal(clip(first), first)
    cut = clip(50 * first)                                       # s = 0.9 * 2 + 0.1 * 100 = 11.8
    assert clip.running == pytest.approx(11.8) and cut.norm().item() == pytest.approx(23.6)
    again = rat_bptt.Clip(2.0)
    again.load_state_dict(clip.state_dict())
    assert again.running == clip.running
    never = rat_bptt.Clip(0.0)
    never(first)
    assert torch.equal(never(50 * first), 50 * first)


def test_learned_labels_stay_probabilities_and_count_as_budget():
    config = replace(TINY, learn_labels=True, label_lr=0.5, steps=3)
    for step in rat_bptt.distill(REAL, config):
        _, labels = step.syn.all(torch.Generator())
        assert (labels >= 0).all()
        torch.testing.assert_close(labels.sum(dim=1), torch.ones(4))
    assert not torch.equal(labels, torch.eye(4))
    assert step.syn.budget == step.syn.images.numel() + 16


def test_noise_begins_with_images_of_unit_length_or_the_asked_deviation():
    unit, wide = (replace(TINY, ipc=3, init_std=std).start(REAL, stream(0, "test")) for std in (0.0, 0.5))
    torch.testing.assert_close(unit.images.flatten(1).norm(dim=1), torch.ones(12))
    assert wide.images.std().item() == pytest.approx(0.5, rel=0.05)
    assert unit.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_inner_batches_hold_the_asked_classes_and_images():
    config = replace(TINY, ipc=5, inner_per_class=2, inner_classes=3)
    syn = config.start(REAL, stream(0, "test"))
    indices = config.choose(syn, stream(1, "test"))
    classes = syn.labels[indices]
    assert len(indices.unique()) == 6 and len(classes.unique()) == 3 and (classes.bincount() <= 2).all()
    assert len(replace(TINY, ipc=5).choose(syn, stream(1, "test"))) == 20


# ------------------------------------------------------------------------------------------------------------------ PoDD

def test_patches_that_tile_the_poster_are_rat_bptt_at_one_image_per_class():
    """T-PODD-1: the same images, labels and gradients."""
    rng = stream(0, "test")
    order = torch.tensor([[2, 0], [3, 1]])
    layout = poster.Layout(32, 32, 16, 16, 2, 2)
    tiles = distilled.PosterSet.start(REAL, order, layout, rng, std=0.5)
    images, labels = tiles.all()
    plain = distilled.PixelSet(images.clone(), labels.argmax(dim=1), classes=REAL.classes, preprocess=REAL.preprocess)
    assert torch.equal(labels, torch.nn.functional.one_hot(order.T.flatten(), 4).float())
    net = double_net().float()
    found = {}
    for name, syn in (("poster", tiles), ("pixels", plain)):
        batch = rat_bptt.plan(syn, lambda syn, rng: torch.randperm(len(syn), generator=rng), 5, "flip_rotate", stream(1, "test"))
        (source,) = (part.requires_grad_() for part in syn.sources)
        real = [(images.float(), labels) for images, labels in [real_batch()]]
        loss, (gradient,) = rat_bptt.meta_gradient(net, models.flatten(net), (source,), batch, real, burn=2, window=3,
                                                   rule=unroll.Adam(), rate=0.01)
        found[name] = loss, gradient
    torch.testing.assert_close(found["poster"][0], found["pixels"][0])
    on_tiles = layout.extract(found["poster"][1], layout.index(len(found["poster"][1])))
    torch.testing.assert_close(on_tiles, found["pixels"][1], rtol=1e-4, atol=1e-8)


def test_distilling_a_poster_of_tiles_is_distilling_its_tiles(monkeypatch):
    """T-PODD-1 of both methods: from the same images, in the same order, they end with the same images."""
    tiny = podd.PRESETS["tiny"]
    config = replace(tiny, ipc=1.0, patches_x=2, patches_y=2, order="0,2,1,3", init_std=0.5, steps=3)       # patches run down the columns
    rat = replace(TINY, **{name: getattr(config, name) for name in ("window", "max_inner", "real_batch", "steps", "init_std")})
    start = config.start(REAL, stream(0, "rat-bptt"))
    tiles = start.all()[0].detach().clone()
    assert start.all()[1].argmax(dim=1).tolist() == [0, 1, 2, 3]

    def pixels(self, real, rng):
        config.start(real, rng)                                  # the same random numbers afterwards
        return distilled.PixelSet(tiles.clone(), torch.arange(4), classes=REAL.classes, preprocess=REAL.preprocess)

    monkeypatch.setattr(rat_bptt.RaTConfig, "start", pixels)
    monkeypatch.setattr(rat_bptt.RaTConfig, "choose", lambda self, syn, rng: torch.randperm(len(syn), generator=rng))
    *_, on_poster = podd.distill(REAL, config)
    *_, plain = rat_bptt.distill(REAL, rat)
    torch.testing.assert_close(on_poster.syn.all()[0], plain.syn.images, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(plain.syn.images, tiles, rtol=1e-4, atol=1e-5)


def test_poster_and_label_gradients_are_those_of_finite_differences():
    order, rng = torch.tensor([[2, 0], [3, 1]]), stream(0, "test")
    syn = distilled.PosterSet.start(REAL, order, poster.Layout(25, 22, 16, 16, 3, 2), rng, std=0.5, learn_labels=True)
    syn.seen = syn.seen.double()
    net = double_net()
    sources = [(part.double() + (0.1 if part is syn.cells else 0)).requires_grad_() for part in syn.sources]
    batch = podd.shifted_plan(syn, lambda syn, rng: torch.randperm(len(syn), generator=rng)[:4], 4, "", 2, stream(1, "test"))

    def loss(*given: torch.Tensor) -> torch.Tensor:
        return rat_bptt.meta_gradient(net, models.flatten(net), [part.requires_grad_() for part in given], batch, [real_batch()], burn=0,
                                      window=4, rule=unroll.SGD(0.9), rate=0.05)[0]

    gradients = rat_bptt.meta_gradient(net, models.flatten(net), sources, batch, [real_batch()], burn=0, window=4, rule=unroll.SGD(0.9),
                                       rate=0.05)[1]
    for which, place in ((0, (0, 9, 12)), (0, (0, 3, 3)), (1, (2, 0, 0)), (1, (1, 1, 1))):
        ends = []
        for sign in (1, -1):
            given = [part.detach().clone() for part in sources]
            given[which][place] += sign * 1e-6
            ends.append(loss(*given).item())
        assert gradients[which][place].item() == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-4, abs=1e-10)


def test_a_learned_poster_changes_and_its_labels_stay_probabilities():
    config = replace(podd.PRESETS["tiny"], learn_labels=True, label_lr=0.5, steps=3)
    first = config.start(REAL, stream(config.seed, "rat-bptt"))
    *_, last = podd.distill(REAL, config)
    assert isinstance(last.syn, distilled.PosterSet) and last.syn.meta["method"] == "PoDD"
    assert not torch.equal(first.picture, last.syn.picture) and not torch.equal(first.cells, last.syn.cells)
    assert (last.syn.cells >= 0).all()
    _, labels = last.syn.all()
    torch.testing.assert_close(labels.sum(dim=1), torch.ones(len(labels)))


@pytest.mark.parametrize("changes", [{"cyclic": True}, {"shift": 2}, {"label_rule": "code"}, {"init": "real", "ipc": 1.0},
                                     {"redraw": "epoch"}, {"inner": "sgd"}], ids=str)
def test_options_of_podd_are_used_and_named_in_its_rows(changes):
    plain = replace(podd.PRESETS["tiny"], learn_labels=True, steps=2, ipc=changes.get("ipc", 0.5))
    config = replace(plain, **changes)
    posters = [[step.syn.picture.clone() for step in podd.distill(REAL, each)][-1] for each in (plain, config)]
    assert not torch.equal(*posters)
    if "ipc" not in changes:
        assert config.variant != plain.variant


def test_shifted_patches_have_the_labels_of_where_they_were_cut():
    config = replace(podd.PRESETS["tiny"], learn_labels=True, shift=3, inner_patches=4, augment="")
    syn = config.start(REAL, stream(0, "test"))
    height, width = syn.layout.height, syn.layout.width
    places = torch.arange(height)[:, None] * 100.0 + torch.arange(width)                 # every pixel tells where it is
    cells, batch = torch.rand_like(syn.cells), config.plan(syn, 3, "", stream(1, "test"))
    for j in range(3):
        images, labels = batch(j, places[None], cells)
        assert len(images) == 4
        corners = torch.stack([images[:, 0, 0, 0] // 100, images[:, 0, 0, 0] % 100], dim=1).long()
        windows = poster.label_windows(syn.layout, cells.shape[2], cells.shape[1], corners=corners)
        torch.testing.assert_close(labels, poster.learned_labels(cells, windows))
    assert not set(map(tuple, corners.tolist())) <= set(map(tuple, syn.layout.corners.tolist()))


def test_classes_lie_as_the_distances_say_or_as_numbered():
    tiny = podd.PRESETS["tiny"]
    assert replace(tiny, distances="none").start(REAL, stream(0, "test")).order.tolist() == [[0, 1], [2, 3]]
    ordered = replace(tiny, distances="colour").start(REAL, stream(0, "test")).order
    assert torch.equal(ordered, poco.order(poco.distances(REAL, "colour"), 2, 2))
    assert "classes as numbered" in replace(tiny, distances="none").variant


def test_published_presets_have_the_published_posters():
    sizes = {"cifar10": (153, 60), "cifar100": (303, 303), "cub200": (610, 302), "tiny-imagenet": (1211, 608)}
    for name, size in sizes.items():
        assert (podd.PRESETS[f"{name}-ipc0.9"].poster_width, podd.PRESETS[f"{name}-ipc0.9"].poster_height) == size
        assert {f"{name}-ipc{ipc}" for ipc in (0.3, 0.5, 0.7, 1)} <= podd.PRESETS.keys()
    for name, config in podd.PRESETS.items():                    # T-PODD-5: none exceeds its budget, each has the size that it asks for
        if config.dataset in ("cifar10", "cifar100"):
            fake = data.ImageSet.from_arrays(*(np.zeros((count, 32, 32, 3), np.uint8) if images else np.arange(count) % num
                                               for num in [10 if config.dataset == "cifar10" else 100]
                                               for count, images in ((1000, True), (1000, False), (100, True), (100, False))))
            layout, grid_x, grid_y = config.layout(fake)
            assert 0.97 * config.ipc <= layout.width * layout.height / (grid_x * grid_y * 32 * 32) <= config.ipc, name
    for ipc in (0.3, 0.5, 1.0):
        assert replace(podd.PRESETS["gpu"], ipc=ipc).poster_width == 0
    assert podd.PRESETS["cifar10-ipc0.5"].learn_labels and not podd.PRESETS["cifar10-ipc0.9"].learn_labels
    assert {"tiny", "cpu", "gpu"} <= podd.PRESETS.keys() & rat_bptt.PRESETS.keys()


@pytest.mark.parametrize("method, changes, words", [
    (podd, {"ipc": 0.1}, "choose ipc 0.25 or more"),
    (podd, {"poster_width": 32, "poster_height": 32}, "takes 1.000 images per class and ipc is 0.5: set poster_width"),
    (podd, {"poster_width": 18, "poster_height": 18}, "takes 0.316 images per class and ipc is 0.5"),
    (podd, {"ipc": 0.0}, "give poster_width and poster_height"),
    (podd, {"grid_x": 4}, "give grid_x and grid_y"),
    (podd, {"order": "0,1,2,2"}, "each class from 0 to 3 once"),
    (podd, {"distances": "foo"}, "choose from auto, text"),
    (podd, {"unroll": "detached"}, "not backpropagation through time"),
    (podd, {"grid_x": 3, "grid_y": 1}, "choose from 4x1, 2x2, 1x4"),
    (podd, {"inner_patches": 7}, "at most 6"),
    (podd, {"label_rule": "code", "shift": 1}, "label_rule 'paper'"),
    (podd, {"poster_width": 30}, "or neither"),
    (podd, {"poster_width": 10, "poster_height": 30, "ipc": 0.0}, "smaller|choose at least 16x30"),
    (rat_bptt, {"max_inner": 2}, "min_burn"),
    (rat_bptt, {"ipc": 0}, "PoDD's"),
    (rat_bptt, {"inner_classes": 5}, "at most 4"),
    (rat_bptt, {"network": "resnet18_dim"}, "batch norm"),
    (rat_bptt, {"inner": "lion"}, "choose from adam, sgd"),
])
def test_bad_settings_are_refused_in_a_sentence(method, changes, words):
    with pytest.raises(ValueError, match=words):
        next(method.distill(REAL, replace(method.PRESETS["tiny"], **changes)))


@pytest.mark.parametrize("method, changes", [
    (rat_bptt, {"learn_labels": True, "redraw": "epoch"}), (rat_bptt, {}), (podd, {}), (podd, {"learn_labels": True, "shift": 2}),
    (podd, {"inner_patches": 4, "cyclic": True})], ids=str)
def test_a_run_that_was_cut_ends_with_the_same_bits(tmp_path, monkeypatch, method, changes):
    config = replace(method.PRESETS["tiny"], clip=0.5, steps=6, **changes)                # a clip that bites
    whole = runs.run(method, config, tmp_path / "whole", real=REAL)
    clock = iter(range(0, 10**6, 100))                           # every look at the clock is 100 s later: stop after each step
    for _ in range(8):
        with monkeypatch.context() as patch:
            patch.setattr(runs.time, "monotonic", lambda: float(next(clock)))
            parts = runs.run(method, config, tmp_path / "parts", real=REAL, minutes=4)
        if parts.syn is not None:
            break
    assert (tmp_path / "parts" / "metrics.csv").read_text() == (tmp_path / "whole" / "metrics.csv").read_text()
    for one, other in zip(whole.syn.sources, parts.syn.sources, strict=True):
        assert torch.equal(one, other)


def test_the_state_of_a_run_includes_the_clip():
    config = replace(TINY, clip=0.1, steps=3)
    steps = rat_bptt.distill(REAL, config)
    kept = copy.deepcopy(next(steps).state() | {"index": 1})
    *_, last = steps
    *_, again = rat_bptt.distill(REAL, config, resume=kept)
    *_, forgot = rat_bptt.distill(REAL, config, resume=kept | {"clip": {"running": 0.0}})
    assert torch.equal(last.syn.images, again.syn.images) and not torch.equal(last.syn.images, forgot.syn.images)


@pytest.mark.gpu
@pytest.mark.parametrize("changes", [{}, {"learn_labels": True, "shift": 2}, {"cyclic": True}], ids=str)
def test_a_poster_is_distilled_on_a_gpu(tmp_path, changes):
    config = replace(podd.PRESETS["tiny"], **changes)
    on = runs.run(podd, config, tmp_path / "gpu", real=REAL.to("cuda")).syn
    off = runs.run(podd, config, tmp_path / "cpu", real=REAL).syn
    for one, other in zip(on.sources, off.sources, strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-2, atol=1e-3)


def test_a_set_that_explodes_stops_the_run():
    with pytest.raises(Diverged, match="lower the learning rate"):
        list(rat_bptt.distill(REAL, replace(TINY, inner="sgd", inner_lr=1e20, steps=3)))


# --------------------------------------------------------------------------------------- posters in place of images elsewhere

@pytest.mark.parametrize("method", [mtt, ddpp, dm], ids=["mtt", "ddpp", "dm"])
def test_other_methods_optimise_a_poster_of_the_asked_size(tmp_path, monkeypatch, method):
    monkeypatch.setenv("DDLIB_RUNS", str(tmp_path))
    config = replace(method.PRESETS["tiny"], poster="26x24/4x3", steps=2)
    *_, last = method.distill(REAL, config)
    syn = last.syn
    assert isinstance(syn, distilled.PosterSet) and syn.layout == poster.Layout(26, 24, 16, 16, 4, 3) and len(syn) == 12
    first = distilled.PosterSet.from_text(REAL, config.poster, stream(0, method.NAME.lower() if method is dm else "mtt"))
    assert config.variant == "poster 26x24/4x3"
    assert torch.equal(first.order, syn.order) and not torch.equal(first.picture, syn.picture)
    assert syn.layout.coverage().min() >= 1 and (syn.picture != first.picture).all()                  # every pixel was reached


def test_dm_weights_an_image_by_how_much_it_belongs_to_a_class():
    features = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    labels = torch.tensor([[1.0, 0.0], [0.25, 0.75]])
    means = dm.class_means(torch.stack([features[0], features[1], features[2]]), labels, [torch.tensor([0, 1]), torch.tensor([1])])
    torch.testing.assert_close(means, torch.tensor([[0.8 * 1 + 0.2 * 3, 0.0], [0.0, 4.0]]))
    with pytest.raises(ValueError, match="no image is labelled as class 1"):
        dm.class_means(features[:2], labels[:, :1].expand(2, 2), [torch.tensor([0, 1]), torch.tensor([], dtype=torch.int64)])


def test_a_poster_that_is_described_wrongly_is_refused():
    with pytest.raises(ValueError, match="such as 98x39/8x4, not '98x39'"):
        next(dm.distill(REAL, replace(dm.PRESETS["tiny"], poster="98x39")))
