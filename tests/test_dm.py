"""Distribution matching: the loss is a distance of class means, and pixels follow its exact gradient."""

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


def test_a_class_meets_real_and_synthetic_images_under_one_draw():
    toy = data.load("toy")
    config = TINY
    for seed in range(12):                                                              # every operation gets its turn
        syn = PixelSet.from_real(toy, 1, rng(seed))
        real_images, syn_images = dm.draw_pairs(toy, syn, config, augment.strategy_for(toy), rng(seed))
        again, state = rng(seed), []
        for label in range(toy.num_classes):
            batch = toy.preprocess(toy.draw(label, config.real_batch, again))
            drawn = augment.draw(augment.strategy_for(toy), 1, toy.shape, again, siamese=True)
            state.append((augment.apply(drawn, batch), augment.apply(drawn, syn.images[label:label + 1])))
        assert torch.equal(real_images, torch.cat([real for real, _ in state]))
        assert torch.equal(syn_images, torch.cat([one for _, one in state]))


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
