"""A conditional GAN: the stated networks, the two objectives, and a game that is repeatable and stops when it is lost."""

import copy
import dataclasses
import math
from itertools import islice

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from ddlib import data, distilled, gan, models, runs, train
from ddlib.methods import Diverged, cgan

TINY = cgan.PRESETS["tiny"]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=rng(seed))


def num_params(net):
    return sum(weight.numel() for weight in net.parameters())


@pytest.fixture(scope="module")
def toy():
    return data.load("toy")


@pytest.fixture(scope="module")
def critic():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return gan.Discriminator((1, 8, 8), 3, width=4).double()


# ------------------------------------------------------------------------------------------------------------ networks

@pytest.mark.parametrize(("shape", "generator", "discriminator"),
                         [((3, 32, 32), 3_559_363, 3_137_971), ((1, 28, 28), 3_286_921, 2_969_803)])
def test_networks_have_the_stated_parameters(shape, generator, discriminator):                          # T-NET-1
    with torch.device("meta"):
        assert num_params(gan.Generator(shape, 10)) == generator
        assert num_params(gan.Discriminator(shape, 10)) == discriminator


@pytest.mark.parametrize("shape", [(1, 16, 16), (1, 28, 28), (3, 32, 32), (3, 64, 64), (2, 13, 30)])
def test_a_generator_makes_images_of_any_size_and_a_discriminator_reads_them(shape):
    generator, discriminator = gan.Generator(shape, 4, width=4), gan.Discriminator(shape, 4, width=4)
    images = generator(gan.condition(torch.arange(4), 4, generator.noise_size, rng()))
    assert images.shape == (4, *shape) and images.abs().max() <= 1 and images.min() < 0 < images.max()
    source, logits = discriminator(images)
    assert source.shape == (4,) and logits.shape == (4, 4)


def test_sides_are_halved_and_rounded_up():
    assert [gan.sides(n) for n in (16, 28, 32, 13)] == [[2, 4, 8, 16], [4, 7, 14, 28], [4, 8, 16, 32], [2, 4, 7, 13]]


def test_the_input_is_noise_with_the_one_hot_label_in_front():                                          # T-SKD-10
    labels = torch.arange(5000) % 10
    z = gan.condition(labels, 10, 100, rng())
    assert torch.equal(z[:, :10], F.one_hot(labels, 10).float())
    assert z[:, 10:].mean().abs() < 0.01 and (z[:, 10:].std() - 1).abs() < 0.01
    assert not torch.equal(z[0, 10:], z[10, 10:])


def test_many_classes_leave_ninety_entries_for_noise():
    assert [gan.noise_size(count) for count in (2, 10, 11, 100)] == [100, 100, 101, 190]
    assert gan.Generator((1, 16, 16), 100, width=2).noise_size == 190
    with pytest.raises(ValueError, match="leaves none for noise"):
        gan.Generator((1, 16, 16), 10, width=2, noise=10)


def test_a_score_does_not_depend_on_the_other_images_of_the_batch(critic):
    """Else the gradient at an image would not be the slope of its own score, which the penalty is about."""
    images = randn(5, 1, 8, 8)
    assert_close(critic(images)[0], torch.cat([critic(image[None])[0] for image in images]))
    assert not any(isinstance(part, nn.BatchNorm2d) for part in critic.modules())


# ------------------------------------------------------------------------------------------------------------- penalty

@pytest.mark.parametrize("length", [1.0, 3.0, 0.0])
def test_the_penalty_of_a_linear_score_is_known(length):                                                # T-GP-1
    weight = F.normalize(randn(12), dim=0) * length
    real, fake, u = randn(5, 3, 2, 2, seed=1), randn(5, 3, 2, 2, seed=2), torch.rand(5, 1, 1, 1, generator=rng())
    assert_close(gan.gradient_penalty(lambda x: x.flatten(1) @ weight, real, fake, u), torch.tensor((length - 1) ** 2).double())


def test_the_penalty_is_taken_between_the_images_with_one_number_each():
    real, fake, seen = randn(3, 2, 4, 4), randn(3, 2, 4, 4, seed=1), []
    u = torch.tensor([1.0, 0.0, 0.25]).double().view(3, 1, 1, 1)
    gan.gradient_penalty(lambda x: seen.append(x) or x.square().sum(dim=(1, 2, 3)), real, fake, u)
    assert_close(seen[0][0], real[0])
    assert_close(seen[0][1], fake[1])
    assert_close(seen[0][2], 0.25 * real[2] + 0.75 * fake[2])


def test_the_penalty_equals_finite_differences_of_the_score(critic):
    real, fake, u = randn(2, 1, 8, 8), randn(2, 1, 8, 8, seed=1), torch.rand(2, 1, 1, 1, generator=rng()).double()
    between = u * real + (1 - u) * fake
    penalty, h = 0.0, 1e-6
    with torch.no_grad():
        for image in between:
            steps = h * torch.eye(64, dtype=torch.float64).view(64, 1, 8, 8)
            slopes = (critic(image + steps)[0] - critic(image - steps)[0]) / (2 * h)                    # (64,)
            penalty += (math.sqrt(sum(slope**2 for slope in slopes.tolist())) - 1) ** 2 / 2
    assert_close(gan.gradient_penalty(lambda x: critic(x)[0], real, fake, u).item(), penalty, rtol=1e-6, atol=1e-9)


def test_the_gradient_of_the_penalty_agrees_with_central_differences(critic):
    """The second derivative through layer norm, leaky ReLU and the pooled maximum."""
    net = copy.deepcopy(critic)
    real, fake, u = randn(3, 1, 8, 8), randn(3, 1, 8, 8, seed=1), torch.rand(3, 1, 1, 1, generator=rng()).double()
    theta = models.flatten(net)

    def penalty(theta):
        scores = lambda x: torch.func.functional_call(net, models.unflatten(net, theta), (x,))[0]
        return gan.gradient_penalty(scores, real, fake, u)

    start = theta.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(penalty(start), start)
    assert gradient.norm() > 1e-3
    for seed in range(4):
        way = randn(len(theta), seed=10 + seed)
        numeric = (penalty(theta + 1e-6 * way) - penalty(theta - 1e-6 * way)) / 2e-6
        assert_close((gradient * way).sum(), numeric, rtol=1e-5, atol=1e-8)


# -------------------------------------------------------------------------------------------------------------- losses

class Judge(nn.Module):
    """Says of an image what is written in its pixels: score, then logits."""

    def forward(self, x):
        return x[:, 0, 0, 0], x[:, 0, 0, 1:]


def judged(*rows):
    return torch.tensor(rows, dtype=torch.float64).view(len(rows), 1, 1, -1)


REAL, FAKE = judged([1.0, 2.0, 0.0], [-0.5, 0.0, 1.0]), judged([0.2, 0.0, 0.0], [0.6, 1.0, -1.0])
LABELS, FAKE_LABELS = torch.tensor([0, 0]), torch.tensor([1, 0])


def softplus(value):
    return math.log(1 + math.exp(value))


CLASS_REAL = (softplus(-2.0) + softplus(1.0)) / 2                          # two classes: -log p = log(1 + e^(other - own))
CLASS_FAKE = (math.log(2) + softplus(-2.0)) / 2


def test_the_wasserstein_losses_equal_hand_computed_ones():
    terms = gan.discriminator_loss(Judge(), REAL, LABELS, FAKE, FAKE_LABELS, "wasserstein", torch.zeros(2, 1, 1, 1), penalty=7.0)
    expected = {"source": (0.2 + 0.6) / 2 - (1.0 - 0.5) / 2, "class_real": CLASS_REAL, "class_fake": CLASS_FAKE, "penalty": 0.0}
    assert {name: term.item() for name, term in terms.items()} == pytest.approx({"total": sum(expected.values()), **expected}, abs=1e-7)
    terms = gan.generator_loss(Judge(), FAKE, FAKE_LABELS, "wasserstein")
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(
        {"total": -0.4 + CLASS_FAKE, "source": -0.4, "class": CLASS_FAKE}, abs=1e-7)


def test_the_log_losses_equal_hand_computed_ones():
    sigmoid = lambda s: 1 / (1 + math.exp(-s))
    terms = gan.discriminator_loss(Judge(), REAL, LABELS, FAKE, FAKE_LABELS, "log", torch.zeros(2, 1, 1, 1))
    source = -(math.log(sigmoid(1.0)) + math.log(sigmoid(-0.5))) / 2 - (math.log(1 - sigmoid(0.2)) + math.log(1 - sigmoid(0.6))) / 2
    expected = {"source": source, "class_real": CLASS_REAL, "class_fake": CLASS_FAKE, "penalty": 0.0}
    assert {name: term.item() for name, term in terms.items()} == pytest.approx({"total": sum(expected.values()), **expected}, abs=1e-7)
    terms = gan.generator_loss(Judge(), FAKE, FAKE_LABELS, "log")
    source = -(math.log(sigmoid(0.2)) + math.log(sigmoid(0.6))) / 2
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(
        {"total": source + CLASS_FAKE, "source": source, "class": CLASS_FAKE}, abs=1e-7)


def test_the_penalty_counts_with_its_weight(critic):
    real, fake, u = randn(3, 1, 8, 8), randn(3, 1, 8, 8, seed=1), torch.rand(3, 1, 1, 1, generator=rng()).double()
    terms = gan.discriminator_loss(critic, real, torch.arange(3), fake, torch.arange(3), "wasserstein", u, penalty=4.0)
    assert_close(terms["penalty"], 4 * gan.gradient_penalty(lambda x: critic(x)[0], real, fake, u))
    assert_close(terms["total"], sum(terms.values()) - terms["total"])


# ------------------------------------------------------------------------------------------------------------ the game

def weights(net):
    return torch.cat([tensor.detach().flatten().double() for tensor in net.state_dict().values()])


def play(game, real, steps, noise, first=0):
    batches = cgan.real_batches(real, game.config.batch_size, game.config.seed, first=first)
    return [game.play(first + number, *next(batches), noise) for number in range(1, steps + 1)]


def test_batches_are_the_same_wherever_one_starts_and_show_an_image_once_a_pass(toy):
    every = list(islice(cgan.real_batches(toy, 50, seed=3), 12))
    for first in (1, 4, 9):
        for (images, labels), (wanted, wanted_labels) in zip(cgan.real_batches(toy, 50, seed=3, first=first), every[first:], strict=False):
            assert torch.equal(images, wanted) and torch.equal(labels, wanted_labels)
    per_pass = len(toy.train) // 50
    one_pass = torch.cat([images for images, _ in every[:per_pass]])
    assert len(one_pass.unique(dim=0)) == per_pass * 50 > len(toy.train) - 50
    assert not torch.equal(every[0][0], every[per_pass][0])
    assert len(next(cgan.real_batches(toy, 10**6, seed=0))[0]) == len(toy.train)


def test_images_of_a_gan_go_from_minus_one_to_one():
    assert torch.equal(cgan.to_gan(torch.tensor([0, 255], dtype=torch.uint8)), torch.tensor([-1.0, 1.0]))


def test_each_step_changes_its_own_network_only(toy):
    game, noise = cgan.Game(toy, TINY), rng()
    images, labels = next(cgan.real_batches(toy, 16, 0))
    before = weights(game.generator), weights(game.discriminator)
    game.generator_step(1, labels, noise)
    assert not torch.equal(weights(game.generator), before[0]) and torch.equal(weights(game.discriminator), before[1])
    assert all(weight.grad is None and weight.requires_grad for weight in game.discriminator.parameters())
    params = models.flatten(game.generator)
    game.discriminator_step(1, images, labels, noise)
    assert torch.equal(models.flatten(game.generator), params) and not torch.equal(weights(game.discriminator), before[1])


def test_the_generator_is_asked_for_real_labels_and_the_discriminator_for_random_ones(toy, monkeypatch):
    asked = []
    condition = gan.condition
    monkeypatch.setattr(gan, "condition", lambda labels, *rest: asked.append(labels) or condition(labels, *rest))
    game, noise = cgan.Game(toy, TINY), rng()
    images, labels = toy.train.images[:16], torch.full((16,), 2)
    for step in range(20):
        game.play(step, images, labels, noise)
    assert all(torch.equal(given, labels) for given in asked[::2])
    counts = torch.cat(asked[1::2]).bincount(minlength=4)
    assert counts.sum() == 320 and counts.min() > 50


def test_a_step_of_the_game_is_one_of_adam_down_the_two_losses(toy):
    """The generator first, on the batch's labels; then the discriminator, on images of the new generator."""
    game, noise, twin = cgan.Game(toy, TINY), rng(), rng()
    images, labels = next(cgan.real_batches(toy, 16, 0))
    generator, discriminator = copy.deepcopy(game.generator), copy.deepcopy(game.discriminator)
    adams = [torch.optim.Adam(net.parameters(), lr=TINY.lr, betas=(0.0, 0.9)) for net in (generator, discriminator)]
    gan.generator_loss(discriminator, generator(gan.condition(labels, 4, 100, twin)), labels, "wasserstein")["total"].backward()
    adams[0].step()
    adams[1].zero_grad()
    others = torch.randint(4, (16,), generator=twin)
    fake = generator(gan.condition(others, 4, 100, twin)).detach()
    u = torch.rand(16, 1, 1, 1, generator=twin)
    gan.discriminator_loss(discriminator, cgan.to_gan(images), labels, fake, others, "wasserstein", u, 10.0)["total"].backward()
    adams[1].step()
    game.play(1, images, labels, noise)
    assert_close(weights(game.generator), weights(generator))
    assert_close(weights(game.discriminator), weights(discriminator))
    game = cgan.Game(toy, dataclasses.replace(TINY, penalty=0.0))                       # the weight of the penalty is the config's
    game.play(1, images, labels, rng())
    assert not torch.allclose(weights(game.discriminator), weights(discriminator))


def test_the_discriminator_sees_real_images_in_the_gans_range(toy, monkeypatch):
    seen = []
    loss = gan.discriminator_loss
    monkeypatch.setattr(gan, "discriminator_loss", lambda net, real, *rest: seen.append(real) or loss(net, real, *rest))
    images, labels = next(cgan.real_batches(toy, 16, 0))
    cgan.Game(toy, TINY).discriminator_step(1, images, labels, rng())
    assert torch.allclose((seen[0] + 1) * 127.5, images.float(), atol=1e-3)


def test_extra_terms_move_the_generator_and_nothing_else(toy):
    def after(extra):
        game, noise = cgan.Game(toy, TINY), rng()
        losses = game.generator_step(1, torch.arange(16) % 4, noise, extra)
        return game, losses, noise.get_state()

    plain, losses, state = after(None)
    zero, with_zero, state_zero = after(lambda fake: {"match": 0 * fake.sum(), "seen": fake.mean()})
    assert torch.equal(weights(plain.generator), weights(zero.generator)) and torch.equal(state, state_zero)
    assert with_zero.keys() - losses.keys() == {"match", "seen", "ratio"} and with_zero["g_gradient"] == losses["g_gradient"]
    moved, with_match, _ = after(lambda fake: {"match": fake.square().sum()})
    assert not torch.equal(weights(plain.generator), weights(moved.generator))
    assert torch.equal(weights(plain.discriminator), weights(moved.discriminator)) and with_match["g_source"] == losses["g_source"]


@pytest.mark.parametrize("changes", [{}, {"average": 0.9}, {"objective": "log"}])
def test_a_run_that_was_stopped_ends_with_the_same_bits(toy, tmp_path, changes):
    config = dataclasses.replace(TINY, steps=4, **changes)
    runs.run(cgan, config, tmp_path / "whole", real=toy, keep_checkpoint=True)
    for _ in range(config.steps):
        part = runs.run(cgan, config, tmp_path / "slices", real=toy, minutes=1e-9, keep_checkpoint=True)
    assert part.finished
    for name in ("distilled.safetensors", "final.safetensors", "metrics.csv"):
        assert (tmp_path / "slices" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_the_same_seed_gives_the_same_generator_and_another_seed_another(toy):
    def last(seed):
        *_, step = cgan.distill(toy, dataclasses.replace(TINY, steps=3, seed=seed))
        return weights(step.syn.net)

    first = last(0)
    torch.rand(1)                                                                       # what others draw makes no difference
    state = torch.get_rng_state()
    assert torch.equal(first, last(0)) and not torch.equal(first, last(1))
    assert torch.equal(torch.get_rng_state(), state)
    starts = [weights(cgan.Game(toy, dataclasses.replace(TINY, seed=seed)).generator) for seed in (0, 1)]
    assert not torch.equal(*starts)


def test_a_game_goes_on_from_its_checkpoint(toy, tmp_path):
    """Three steps, then three from what was left on disk, are six steps: weights and both optimizers are there."""
    config = dataclasses.replace(TINY, steps=3)
    runs.run(cgan, config, tmp_path, real=toy, keep_checkpoint=True)
    found = runs.read_checkpoint(tmp_path)
    game, noise = cgan.Game(toy, dataclasses.replace(config, seed=9)), rng()
    game.load(found, config.lr)
    noise.set_state(found["rng"])
    game.config = config
    play(game, toy, 3, noise, first=found["index"])
    *_, six = cgan.distill(toy, dataclasses.replace(config, steps=6))
    assert torch.equal(weights(game.generator), weights(six.syn.net))
    game.load(found, lr=5e-6)
    assert {group["lr"] for optimizer in game.optimizers for group in optimizer.param_groups} == {5e-6}


def test_an_average_follows_weights_and_statistics(toy):
    config = dataclasses.replace(TINY, average=0.7)
    game, plain = cgan.Game(toy, config), cgan.Game(toy, TINY)
    noise, plain_noise = rng(), rng()
    expected = {name: tensor.clone() for name, tensor in plain.generator.state_dict().items()}
    for images, labels in islice(cgan.real_batches(toy, 16, 0), 3):
        game.play(1, images, labels, noise)
        plain.generator_step(1, labels, plain_noise)
        for name, now in plain.generator.state_dict().items():
            expected[name] = 0.7 * expected[name] + 0.3 * now if now.is_floating_point() else now.clone()
        plain.discriminator_step(1, images, labels, plain_noise)
    assert torch.equal(weights(game.generator), weights(plain.generator))
    kept = game.distilled(toy).net.state_dict()
    for name, tensor in expected.items():
        assert_close(kept[name], tensor, msg=name)
    assert not torch.allclose(weights(game.average), weights(game.generator))


# ---------------------------------------------------------------------------------------------------------- divergence

def test_a_lost_game_stops_with_the_last_good_generator(toy, tmp_path, monkeypatch):
    loss, calls = gan.discriminator_loss, []

    def spoiled(*given):
        calls.append(1)
        terms = loss(*given)
        return terms | {"penalty": terms["penalty"] * math.nan} if len(calls) == 4 else terms

    monkeypatch.setattr(gan, "discriminator_loss", spoiled)
    with pytest.raises(Diverged, match="the term 'd_penalty' became nan at step 4") as caught:
        runs.run(cgan, TINY, tmp_path, real=toy)
    assert "the set after step 3 is in" in caught.value.__notes__[0]
    monkeypatch.setattr(gan, "discriminator_loss", loss)
    *_, third = cgan.distill(toy, dataclasses.replace(TINY, steps=3))
    kept = distilled.load(tmp_path / "last_good.safetensors")
    assert isinstance(kept, distilled.GeneratorSet) and torch.equal(weights(kept.net), weights(third.syn.net))


@pytest.mark.parametrize(("scaled", "name"), [("generator_loss", "g_gradient"), ("discriminator_loss", "d_gradient")])
def test_an_exploding_gradient_stops_before_it_is_used(toy, monkeypatch, scaled, name):
    loss = getattr(gan, scaled)
    game, noise = cgan.Game(toy, TINY), rng()
    images, labels = next(cgan.real_batches(toy, 16, 0))
    game.play(1, images, labels, noise)
    monkeypatch.setattr(gan, scaled, lambda *given: {key: term * 1e6 for key, term in loss(*given).items()})
    net = game.generator if name[0] == "g" else game.discriminator
    before = models.flatten(net)
    with pytest.raises(Diverged, match=rf"'{name}', the norm of the gradient, became .* at step 2, above max_gradient 10000"):
        game.play(2, images, labels, noise)
    assert torch.equal(models.flatten(net), before)


# ---------------------------------------------------------------------------------------------------- presets, learning

@pytest.mark.slow
def test_the_generator_learns_classes(toy):
    """A classifier of real images recognises what it makes."""
    net = models.build("convnet3", shape=toy.shape, num_classes=4, width=8, seed=0)
    images = toy.preprocess(toy.train.images)
    train.fit(net, train.Batches(images, toy.train.labels, 64, rng()), steps=100)
    config = dataclasses.replace(TINY, steps=240, gan_width=16, batch_size=32, lr=1e-3)
    *_, step = cgan.distill(toy, config)
    images, labels = step.syn.at(50).all(rng())
    accuracy = (train.predict(net, images).argmax(dim=1) == labels.argmax(dim=1)).double().mean().item()
    assert accuracy > 0.45, accuracy                                                    # chance is 0.25; 0.64 when written


@pytest.mark.parametrize("precision", ["auto", "bfloat16"])
def test_low_precision_plays_the_same_game_roughly(toy, precision):
    losses = play(cgan.Game(toy, dataclasses.replace(TINY, precision=precision)), toy, 2, rng())
    wanted = play(cgan.Game(toy, TINY), toy, 2, rng())
    if precision == "auto" and not train.has_bfloat16(toy.train.images.device):
        assert losses == wanted                                                         # auto is float32 here
    assert losses[-1] == pytest.approx(wanted[-1], rel=0.2, abs=0.1)


@pytest.mark.gpu
def test_a_gpu_plays_the_same_game(toy):
    there = play(cgan.Game(toy.to("cuda"), TINY), toy.to("cuda"), 2, rng())
    assert there[-1] == pytest.approx(play(cgan.Game(toy, TINY), toy, 2, rng())[-1], rel=1e-2, abs=1e-2)


@pytest.mark.parametrize("name", sorted(cgan.PRESETS))
def test_every_preset_is_complete(name):
    config = cgan.PRESETS[name]
    shape = {"toy": (1, 16, 16), "svhn": (3, 32, 32), "cifar10": (3, 32, 32)}.get(config.dataset, (1, 28, 28))
    with torch.device("meta"):
        made = gan.Generator(shape, 10, config.gan_width)(torch.zeros(2, gan.noise_size(10)))
        assert made.shape == (2, *shape) and gan.Discriminator(shape, 10, config.gan_width)(made)[1].shape == (2, 10)
    assert config.dataset in data.DATASETS


@pytest.mark.parametrize("dataset", ["mnist", "fashion_mnist", "svhn", "cifar10"])
def test_published_presets_are_the_base_codes(dataset):
    config = cgan.PRESETS[dataset.replace("_", "-")]
    images = {"mnist": 54_000, "fashion_mnist": 54_000, "svhn": 65_931, "cifar10": 45_000}[dataset]     # nine tenths
    assert config.steps == 150 * (images // 128)
    assert dataclasses.replace(config, dataset="cifar10", steps=52_650) == cgan.CGANConfig()
    assert (config.gan_width, config.batch_size, config.lr, config.beta1, config.beta2, config.penalty) == (196, 128, 1e-4, 0, 0.9, 10)


@pytest.mark.parametrize(("wrong", "message"), [
    ({"objective": "hinge"}, "objective must be one of wasserstein, log"), ({"precision": "fp8"}, "precision must be"),
    ({"steps": 0}, "steps must be at least 1"), ({"batch_size": 1}, "batch_size must be at least 2"), ({"ipc": 0}, "ipc must be"),
    ({"beta2": 1.0}, "beta2 must be"), ({"average": -0.1}, "average must be"), ({"penalty": -1.0}, "penalty must be"),
    ({"lr": math.inf}, "finite"), ({"max_gradient": 0.0}, "max_gradient above 0"),
])
def test_settings_that_cannot_be_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **wrong)


def test_scores_are_not_rounded_to_low_precision():
    net = gan.Discriminator((1, 16, 16), 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        source, classes = net(torch.zeros(2, 1, 16, 16))
    assert source.dtype == classes.dtype == torch.float32
