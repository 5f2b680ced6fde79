"""GLD: its two distances, their reductions, and the layer they look at (T-GLD-1..6)."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from ddlib import models, papers
from ddlib.methods import dim, gld

B, C = 6, 10
MAP = (4, 3, 5)                                                                         # k, h', w'


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pair() -> tuple[dim.Seen, dim.Seen]:
    real, syn = (dim.Seen(randn(B, C, seed=seed), randn(B, *MAP, seed=seed)) for seed in (0, 1))
    return real, dim.Seen(*(part.requires_grad_() for part in syn))


# ------------------------------------------------------------------------------------------------------- the equations

def test_the_distances_equal_loops_over_floats():
    real, syn = pair()
    by_hand = sum((s - r) ** 2 for one, other in zip(real.logits.tolist(), syn.logits.tolist(), strict=True)
                  for r, s in zip(one, other, strict=True))
    assert_close(gld.global_loss(real.logits, syn.logits, "sum").item(), by_hand)
    by_hand = sum((s - r) ** 2 for r, s in zip(real.features.flatten().tolist(), syn.features.flatten().tolist(), strict=True))
    assert_close(gld.local_loss(real.features, syn.features, "sum").item(), by_hand)


def test_without_the_local_term_and_with_log_probabilities_gld_is_dim():                # T-GLD-1
    real, syn = pair()
    config = replace(gld.PRESETS["tiny"], local_weight=0.0, log_softmax=True, global_reduction="mean")
    ours, theirs = gld.loss_terms(real, syn, config), dim.loss_terms(real, syn, dim.PRESETS["tiny"])
    assert_close(ours["match"], theirs["match"])
    gradients = [torch.autograd.grad(terms["match"], syn.logits)[0] for terms in (ours, theirs)]
    assert_close(*gradients)
    assert not torch.isclose(ours["match"], gld.loss_terms(real, syn, replace(config, log_softmax=False))["match"])


def test_reductions_differ_by_the_number_of_terms():                                    # T-GLD-3
    real, syn = pair()
    total, per_image, mean = (gld.global_loss(real.logits, syn.logits, reduction) for reduction in ("sum", "batchmean", "mean"))
    assert_close(total, B * C * mean)
    assert_close(total, B * per_image)
    total, per_image, mean = (gld.local_loss(real.features, syn.features, reduction) for reduction in ("sum", "batchmean", "mean"))
    assert_close(total, B * math.prod(MAP) * mean)
    assert_close(total, B * per_image)


def test_the_weighted_terms_use_the_reductions_that_are_asked_for():
    real, syn = pair()
    config = replace(gld.PRESETS["tiny"], weight=2.0, local_weight=3.0, global_reduction="sum", local_reduction="batchmean")
    terms = gld.loss_terms(real, syn, config)
    assert list(terms) == ["match", "global", "local"]
    assert_close(terms["global"], gld.global_loss(real.logits, syn.logits, "sum"))
    assert_close(terms["local"], gld.local_loss(real.features, syn.features, "batchmean"))
    assert_close(terms["match"], 2 * terms["global"] + 3 * terms["local"])


@pytest.mark.parametrize("name", dim.FIT_FOR_POOL)
def test_the_same_images_on_both_sides_cost_nothing_and_others_do(name):                # T-GLD-4
    net = models.build(name, shape=(3, 32, 32), num_classes=4, width=2, seed=0).double()
    images, config = randn(4, 3, 32, 32), gld.PRESETS["tiny"]
    seen = dim.look(net, images, images.clone(), "color_crop_cutout", torch.Generator().manual_seed(0))     # augmented alike
    assert gld.loss_terms(*seen, config)["match"] == 0 and dim.loss_terms(*seen, config)["match"] == 0
    seen = dim.look(net, images, images.flip(0), "color_crop_cutout", torch.Generator().manual_seed(0))
    assert all(term > 1e-8 for term in gld.loss_terms(*seen, config).values())


@pytest.mark.parametrize("name", ["convnet3", "resnet10_dim"])
def test_no_gradient_reaches_real_images_or_the_network(name):                          # T-GLD-5
    net = models.build(name, shape=(1, 16, 16), num_classes=4, width=4, seed=0).double()
    real, syn = (randn(4, 1, 16, 16, seed=seed).requires_grad_() for seed in (0, 1))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    seen = dim.look(net, real, syn, "color_crop_cutout", torch.Generator().manual_seed(0))
    gld.loss_terms(*seen, gld.PRESETS["tiny"])["match"].backward()
    assert syn.grad.norm() > 0 and real.grad is None
    assert all(weight.grad is None and weight.requires_grad for weight in net.parameters())
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())    # running statistics, too


@pytest.mark.parametrize(("name", "cifar", "grey"), [                                   # T-GLD-6
    ("convnet3", (128, 8, 8), (128, 8, 8)), ("resnet10_dim", (64, 16, 16), (128, 4, 4)), ("resnet18_dim", (64, 16, 16), (128, 4, 4)),
    ("resnet18", (128, 16, 16), (128, 14, 14))])
def test_the_middle_layer_has_the_documented_shape_and_the_logits_are_those_of_the_network(name, cifar, grey):
    for shape, size in (((3, 32, 32), cifar), ((1, 28, 28), grey)):
        net = models.build(name, shape=shape, num_classes=10, seed=0)
        images = randn(2, *shape).float()
        logits, features = net.mid(images)
        assert features.shape == (2, *size)
        assert torch.equal(logits, net(images))
        if name == "convnet3":
            assert torch.equal(features, net.features(images)[1])


def test_networks_without_a_middle_layer_say_so():
    with pytest.raises(ValueError, match="AlexNet has no middle layer.*ConvNet or a ResNet"):
        models.build("alexnet", shape=(3, 32, 32), num_classes=10, width=4).mid(randn(1, 3, 32, 32))


# ---------------------------------------------------------------------------------------------------------- the presets

def test_every_published_cell_has_a_preset_with_the_papers_settings():
    cells = papers.published(method="GLD", eval_arch=None, variant=None)
    assert len(cells) > 10
    for cell in cells:
        config = gld.PRESETS[f"{cell.dataset.replace('_', '-')}-ipc{cell.ipc}" + ("-cross" if cell.table == "2" else "")]
        assert (config.dataset, config.ipc, config.weight, config.local_weight) == (cell.dataset, cell.ipc, 0.01, 0.001)
        assert "+".join(name.removesuffix("_dim") for name, _ in config.networks()) == cell.train_arch
        assert config.gan() == dim.PRESETS[f"{cell.dataset.replace('_', '-')}-ipc{cell.ipc}"].gan()


@pytest.mark.parametrize(("wrong", "message"), [
    ({"global_reduction": "max"}, "global_reduction must be one of mean, batchmean, sum"),
    ({"local_reduction": "none"}, "local_reduction must be one of mean, batchmean, sum"), ({"local_weight": -1.0}, "local_weight must be"),
    ({"local_weight": math.nan}, "local_weight must be")])
def test_settings_that_cannot_be_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        replace(gld.PRESETS["tiny"], **wrong)
