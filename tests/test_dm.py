"""Distribution matching: the loss is a distance of class means, and pixels follow its exact gradient."""

import dataclasses

import torch
from torch.testing import assert_close

from ddlib import augment, data, models
from ddlib.distilled import PixelSet
from ddlib.methods import dm

TINY = dm.PRESETS["tiny"]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=rng(seed))


def test_the_loss_is_zero_when_the_synthetic_class_is_the_real_batch():                 # T-DM-1
    features = randn(3, 5, 7)
    assert dm.matching_loss(features, features) == 0


def test_the_loss_ignores_the_order_inside_a_class():                                   # T-DM-2
    real, syn = randn(3, 8, 7), randn(3, 5, 7, seed=1)
    assert_close(dm.matching_loss(real, syn), dm.matching_loss(real.flip(1), syn[:, torch.randperm(5, generator=rng())]))


def test_the_loss_equals_loops_over_floats():
    real, syn = randn(2, 3, 4).tolist(), randn(2, 2, 4, seed=1).tolist()
    total = 0.0
    for c in range(2):
        for f in range(4):
            total += (sum(x[f] for x in real[c]) / 3 - sum(x[f] for x in syn[c]) / 2) ** 2
    assert_close(dm.matching_loss(torch.tensor(real), torch.tensor(syn)), torch.tensor(total))


def test_pixel_gradients_agree_with_central_differences():
    net = models.build("convnet3", shape=(1, 16, 16), num_classes=2, width=4, seed=0).double().requires_grad_(False)
    real, syn = randn(6, 1, 16, 16), randn(4, 1, 16, 16, seed=1)
    drawn = augment.draw("scale", 1, (1, 16, 16), rng(3), siamese=True)

    def loss(pixels):
        features = net.embed(augment.apply(drawn, pixels)).unflatten(0, (2, -1))
        return dm.matching_loss(dm.embed_real(net, augment.apply(drawn, real), 2), features)

    pixels = syn.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(pixels), pixels)
    for seed in range(3):
        direction = randn(*syn.shape, seed=10 + seed)
        numeric = (loss(syn + 1e-6 * direction) - loss(syn - 1e-6 * direction)) / 2e-6
        assert_close((gradient * direction).sum(), numeric, rtol=1e-5, atol=1e-8)


def test_a_class_meets_real_and_synthetic_images_under_one_draw(monkeypatch):
    """With the same pictures on both sides, the same comes out on both sides, whatever the operation (T-DM-1 with augmentation)."""
    toy = data.load("toy")
    net = models.build("convnet3", shape=toy.shape, num_classes=toy.num_classes, width=4, seed=0)
    for seed in range(24):                                                              # every operation gets its turn
        syn = PixelSet.from_real(toy, 3, rng(seed))
        shown = [toy.train.images[syn.meta["indices"]][syn.labels == label] for label in range(toy.num_classes)]
        monkeypatch.setattr(data.ImageSet, "draw", lambda self, label, n, rng, shown=shown: shown[label])
        real_images, syn_images = dm.draw_pairs(toy, syn.images, 256, augment.strategy_for(toy), rng(seed))
        assert torch.equal(real_images, syn_images)
        features = net.embed(syn_images).unflatten(0, (toy.num_classes, -1))
        assert dm.matching_loss(dm.embed_real(net, real_images, toy.num_classes), features) < 1e-10


def test_classes_get_draws_of_their_own():
    toy = data.load("toy")
    _, images = dm.draw_pairs(toy, torch.ones(4, *toy.shape), 8, "crop", rng(1))
    assert len({tuple(image.flatten().tolist()) for image in images}) > 1                # other borders, so another shift


def test_unequal_classes_are_not_mixed():
    toy = data.load("toy")
    kept = torch.cat([toy.train.of_class(label)[:9 * (label + 1)] for label in range(4)])
    uneven = dataclasses.replace(toy, train=data.Split(toy.train.images[kept], toy.train.labels[kept]))
    syn = PixelSet.from_real(uneven, 1, rng())
    real_images, _ = dm.draw_pairs(uneven, syn.images, 256, "none", rng())
    per_class = real_images.unflatten(0, (4, -1))                                       # (C, B, c, h, w)
    assert per_class.shape[1] == 9
    for label in range(4):
        own = uneven.preprocess(uneven.train.images[uneven.train.of_class(label)])
        assert all((image == own).flatten(1).all(1).any() for image in per_class[label])


def test_chunks_do_not_change_the_embedding():
    net = models.build("convnet3", shape=(1, 16, 16), num_classes=2, width=4, seed=0).double()
    images = randn(10, 1, 16, 16)
    assert_close(dm.embed_real(net, images, 2, chunk=3), dm.embed_real(net, images, 2, chunk=100))


def test_the_same_seed_gives_the_same_distilled_set_and_another_seed_another():
    toy = data.load("toy")

    def last(seed):
        *_, step = dm.distill(toy, dm.DMConfig(dataset="toy", ipc=2, width=4, steps=4, real_batch=8, seed=seed))
        return step.syn.images.detach()

    assert torch.equal(last(0), last(0))
    assert not torch.equal(last(0), last(1))


def test_distilling_brings_class_means_nearer_under_networks_it_never_saw():
    toy = data.load("toy")
    config = dm.DMConfig(dataset="toy", ipc=1, width=8, steps=200, real_batch=30)

    def distance(syn):
        total = 0.0
        for seed in range(900, 905):
            net = models.build("convnet3", shape=toy.shape, num_classes=toy.num_classes, width=8, seed=seed)
            every = torch.stack([toy.preprocess(toy.train.images[toy.train.of_class(c)]) for c in range(toy.num_classes)])
            real = dm.embed_real(net, every.flatten(0, 1), toy.num_classes)
            total += float(dm.matching_loss(real, dm.embed_real(net, syn.images.detach(), toy.num_classes)))
        return total

    steps = dm.distill(toy, config)
    before = distance(next(steps).syn)
    *_, step = steps
    assert distance(step.syn) < 0.75 * before


def test_every_preset_is_complete_and_known_to_the_registries():
    for name, config in dm.PRESETS.items():
        assert config.dataset in data.DATASETS and config.network in models.NETWORKS, name
