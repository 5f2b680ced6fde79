"""KFS: DM on decoded images, within the scalars of the budget, with every code and every decoder learning."""

import dataclasses
import math
from functools import partial

import pytest
import torch
from torch.testing import assert_close

from ddlib import data, evaluate, models, runs
from ddlib.distilled import FactoredSet, PixelSet, decoder_size, fit_budget
from ddlib.methods import dm, kfs

TINY = kfs.PRESETS["tiny"]
SHAPES = {"toy": (4, (1, 16, 16)), "fashion_mini": (10, (1, 28, 28)), "svhn": (10, (3, 32, 32)), "cifar10": (10, (3, 32, 32)),
          "cifar100": (100, (3, 32, 32)), "tiny_imagenet": (200, (3, 64, 64))}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=rng(seed))


@pytest.fixture(scope="module")
def toy():
    return data.load("toy")


@pytest.fixture(scope="module")
def net(toy):
    return models.build("convnet3", shape=toy.shape, num_classes=4, width=4, seed=0).double().requires_grad_(False)


@pytest.mark.parametrize("name", kfs.PRESETS)
def test_every_preset_keeps_within_its_budget_and_uses_nine_tenths_of_it(name):         # T-KFS-1
    config = kfs.PRESETS[name]
    num_classes, shape = SHAPES[config.dataset]
    num_codes = config.num_codes or fit_budget(config.ipc, shape, num_classes, config.num_decoders)
    grey = shape[0] == 1
    code, decoder = math.prod(shape) // (8 if grey else 16), decoder_size((2, 6, 1) if grey else (12, 8, 4, 3))
    used = (num_codes * code + config.num_decoders * decoder / num_classes) / (config.ipc * math.prod(shape))
    assert 0.9 < used <= 1
    assert config.dataset in data.DATASETS and config.network in models.NETWORKS


def test_gradients_reach_every_code_and_every_decoder(toy):                             # T-KFS-2
    steps = kfs.distill(toy, TINY)
    syn = next(steps).syn
    for name, tensor in [("codes", syn.codes), *syn.decoders.items()]:
        reached = tensor.grad.abs().flatten(2 if name == "codes" else 1).sum(-1) > 0    # (C, n_z) or (n_d,)
        assert reached.all(), name


def test_without_decoders_a_step_is_that_of_dm_on_pixels(toy):                          # T-KFS-3
    pixel = PixelSet.from_real(toy, 3, rng())
    same = FactoredSet(pixel.images.clone().unflatten(0, (4, 3)), {}, ipc=3, shape=toy.shape, classes=toy.classes,
                       preprocess=toy.preprocess)
    net = models.build("convnet3", shape=toy.shape, num_classes=4, width=4, seed=0).requires_grad_(False)
    pixel.images.requires_grad_(), same.codes.requires_grad_()
    real_images, syn_images = dm.draw_pairs(toy, pixel.images, 8, "crop_scale", rng(5))
    loss = dm.matching_loss(dm.embed_real(net, real_images, 4), net.embed(syn_images).unflatten(0, (4, -1)))
    (by_dm,) = torch.autograd.grad(loss, pixel.images)

    real_images, syn_images = dm.draw_pairs(toy, same.decode(torch.arange(12)), 8, "crop_scale", rng(5))
    value, pixels = kfs.match(net, syn_images, 4, partial(dm.matching_loss, dm.embed_real(net, real_images, 4)))
    (by_kfs,) = torch.autograd.grad(syn_images, same.codes, pixels)
    assert by_dm.abs().sum() > 0 and torch.equal(value, loss.detach()) and torch.equal(by_kfs.flatten(0, 1), by_dm)


@pytest.mark.parametrize("chunk", [1, 5, 12, 100])
def test_chunks_change_neither_the_loss_nor_its_gradient(net, chunk):
    images = randn(12, 1, 16, 16, seed=1).requires_grad_()
    real_features = dm.embed_real(net, randn(24, 1, 16, 16, seed=2), 4)
    loss = dm.matching_loss(real_features, net.embed(images).unflatten(0, (4, -1)))
    (exact,) = torch.autograd.grad(loss, images)
    value, pixels = kfs.match(net, images, 4, partial(dm.matching_loss, real_features), chunk)
    assert_close(value, loss.detach())
    assert_close(pixels, exact)


def test_a_step_looks_at_as_many_images_of_every_class_as_asked():
    for wanted, n in ((0, 6), (4, 4), (6, 6), (9, 6)):
        indices = kfs.choose(3, 6, wanted, rng())
        assert (indices // 6).tolist() == [label for label in range(3) for _ in range(n)]
        assert len(set(indices.tolist())) == 3 * n
    assert kfs.choose(3, 6, 4, rng(1)).tolist() != kfs.choose(3, 6, 4, rng(2)).tolist()


def test_a_set_larger_than_what_a_step_looks_at_learns_everywhere(toy):
    config = dataclasses.replace(TINY, ipc=2, decoded_per_class=1, steps=40, code_lr=0.1)
    steps = kfs.distill(toy, config)
    first = next(steps).syn.codes.detach().clone()
    *_, last = steps
    assert ((last.syn.codes - first).abs().flatten(2).sum(-1) > 0).all()


def test_rates_fall_linearly_to_zero():
    leaves = [torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)]
    optimizer = torch.optim.Adam([{"params": [leaves[0]], "lr": 0.1}, {"params": [leaves[1]], "lr": 0.01}])
    rates = []
    for done in range(4):
        kfs.set_rates(optimizer, done, 4)
        rates.append([group["lr"] for group in optimizer.param_groups])
    assert_close(torch.tensor(rates), torch.tensor([[0.1, 0.01], [0.075, 0.0075], [0.05, 0.005], [0.025, 0.0025]]))


def test_a_run_starts_with_the_full_rates_and_as_many_codes_as_fit_or_are_asked_for(toy):
    for num_codes, held in ((0, 3), (2, 2)):
        steps = kfs.distill(toy, dataclasses.replace(TINY, num_codes=num_codes))
        first = next(steps)
        assert [group["lr"] for group in first.state.parts["optimizer"].param_groups] == [TINY.code_lr, TINY.decoder_lr]
        assert first.syn.codes.shape[1] == held
        *_, last = steps
        assert_close(last.state.parts["optimizer"].param_groups[0]["lr"], TINY.code_lr / TINY.steps)


def test_the_same_seed_gives_the_same_distilled_set_and_another_seed_another(toy):
    def last(seed):
        *_, step = kfs.distill(toy, dataclasses.replace(TINY, seed=seed))
        return step.syn.all()[0].detach()

    assert torch.equal(last(0), last(0))
    assert not torch.equal(last(0), last(1))


def test_a_run_that_was_stopped_ends_with_the_same_set(toy):
    config = dataclasses.replace(TINY, decoded_per_class=2)
    *_, whole = kfs.distill(toy, config)
    for step in kfs.distill(toy, config):
        if step.index == 3:
            saved = {name: ({key: value.clone() for key, value in part.items()} if name == "syn" else
                            part if name == "optimizer" else part.clone()) for name, part in step.state().items()}
            break
    *_, resumed = kfs.distill(toy, config, {"index": 3, **saved})
    assert resumed.index == config.steps and torch.equal(resumed.syn.all()[0], whole.syn.all()[0])


def test_distilling_brings_class_means_nearer_under_networks_it_never_saw(toy):
    config = dataclasses.replace(TINY, width=8, steps=120, real_batch=30)

    def distance(syn):
        total = 0.0
        for seed in range(900, 905):
            net = models.build("convnet3", shape=toy.shape, num_classes=4, width=8, seed=seed).requires_grad_(False)
            every = torch.stack([toy.preprocess(toy.train.images[toy.train.of_class(c)]) for c in range(4)])
            real = dm.embed_real(net, every.flatten(0, 1), 4)
            total += float(dm.matching_loss(real, dm.embed_real(net, syn.all()[0].detach(), 4)))
        return total

    steps = kfs.distill(toy, config)
    before = distance(next(steps).syn)
    *_, step = steps
    assert distance(step.syn) < 0.5 * before


def test_a_run_is_saved_with_its_nominal_ipc_and_can_be_evaluated(toy, tmp_path):
    result = runs.run(kfs, TINY, tmp_path / "run", real=toy)
    assert isinstance(result.syn, FactoredSet) and result.syn.ipc == 1 and result.syn.meta["method"] == "KFS"
    protocol = evaluate.with_options("strict-cpu", width=4, repeats=1, steps=2)
    row = evaluate.evaluate(result.syn, toy, protocol, quiet=True).row(method="KFS")
    assert row["ipc"] == "1" and row["budget_scalars"] == result.syn.budget < 4 * 256


def test_settings_that_cannot_be_are_named():
    for wrong, message in (({"num_decoders": 0}, "num_decoders"), ({"num_codes": -1}, "num_codes"), ({"code_lr": -0.1}, "code_lr"),
                           ({"decoder_lr": math.nan}, "decoder_lr"), ({"decoded_per_class": -1}, "decoded_per_class"),
                           ({"network": "densenet121"}, "does not go with DM"), ({"steps": 0}, "steps")):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(TINY, **wrong)
