"""DiM, and the loop that SKD and GLD share with it: the GAN it starts from, the pool it looks through, and how it resumes."""

from __future__ import annotations

import math
import sys
import threading
import time
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from ddlib import data, evaluate, methods, models, papers, runs
from ddlib.distilled import GeneratorSet
from ddlib.methods import cgan, dim, gld, skd

METHODS = [dim, gld, skd]
SMALLER = {"gan_width": 4, "gan_steps": 2, "steps": 2, "batch_size": 8, "net_steps": 1}
TINIEST = {method.NAME: replace(method.PRESETS["tiny"], **SMALLER) for method in METHODS}
TINY = TINIEST["DiM"]


@pytest.fixture(scope="module")
def toy():
    return data.load("toy")


@pytest.fixture(scope="module", autouse=True)
def one_gan(tmp_path_factory):
    """The tests share the runs folder, and with it the GAN that all of them start from."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DDLIB_RUNS", str(tmp_path_factory.mktemp("runs")))
        yield


def weights(game) -> dict[str, torch.Tensor]:
    return {f"{name}.{key}": value.clone() for name in ("generator", "discriminator")
            for key, value in getattr(game, name).state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


@pytest.fixture
def games(monkeypatch):
    """Collects the games that are begun."""
    made, begin = [], cgan.Game.__init__
    monkeypatch.setattr(cgan.Game, "__init__", lambda self, *rest: (begin(self, *rest), made.append(self))[0])
    return made


# ------------------------------------------------------------------------------------------------------------ the loss

def test_the_loss_is_a_mean_of_squared_differences_of_log_probabilities():
    real, syn = [[1.0, -2.0, 0.5], [0.0, 0.0, 3.0]], [[0.0, 1.0, 0.0], [2.0, -1.0, 1.0]]
    log_softmax = lambda row: [value - math.log(sum(map(math.exp, row))) for value in row]
    squares = [(p - q) ** 2 for one, other in zip(real, syn, strict=True)
               for p, q in zip(log_softmax(one), log_softmax(other), strict=True)]
    assert_close(dim.dim_loss(torch.tensor(real).double(), torch.tensor(syn).double()).item(), sum(squares) / 6)


def test_what_is_minimised_comes_first_and_carries_the_weight():
    seen = [dim.Seen(torch.randn(4, 3, generator=torch.Generator().manual_seed(seed)), torch.zeros(4, 1, 1, 1)) for seed in (0, 1)]
    terms = dim.loss_terms(*seen, replace(TINY, weight=0.3))
    assert next(iter(terms)) == "match"
    assert_close(terms["match"], 0.3 * terms["dim"])


# --------------------------------------------------------------------------------------------------------- with the GAN

@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.NAME)
def test_weight_0_is_cgan_bit_for_bit(toy, games, method):                              # T-SKD-8, T-GLD-2
    config = replace(TINIEST[method.NAME], weight=0.0, **({"local_weight": 0.0} if method is gld else {}))
    logged = [step.losses for step in method.distill(toy, config)]
    plain, rng = cgan.Game(toy, config.game()), runs.stream(config.seed, "match noise")
    plain.load(dim.trained_gan(toy, config), config.lr)
    batches = cgan.real_batches(toy, config.batch_size, config.seed)
    for index, losses in enumerate(logged, start=1):
        for name, value in plain.play(index, *next(batches), rng).items():
            assert losses[name] == value
    assert same(weights(games[0]), weights(plain))
    *_, _ = method.distill(toy, replace(config, weight=1.0))
    assert not same(weights(games[-1]), weights(plain))


def test_the_network_is_as_it_was_after_the_generators_step(toy, monkeypatch):          # T-SKD-9
    monkeypatch.setattr(dim.Pool, "advance", lambda self, index: self.draw(index % 3))  # it would train otherwise
    config, names = replace(TINIEST["SKD"], weight=1.0, steps=4), set()
    for step in skd.distill(toy, config):
        pool = step.state.parts["pool"]
        fresh = dim.Pool(toy, config)
        fresh.draw(step.index % 3)
        assert same(pool.net.state_dict(), fresh.net.state_dict())
        assert all(weight.grad is None for weight in pool.net.parameters())
        names.add(pool.name)
    assert len(names) > 1


def test_networks_see_both_batches_as_in_evaluation_and_with_the_same_labels(toy, monkeypatch):
    asked, made, shown = [], [], []
    generate, look = cgan.Game.generate, dim.Pool.look

    def spy_on_generate(self, labels, rng):
        asked.append(labels)
        made.append(generate(self, labels, rng))
        return made[-1]

    monkeypatch.setattr(cgan.Game, "generate", spy_on_generate)
    monkeypatch.setattr(dim.Pool, "look", lambda self, index, *both: shown.append(both) or look(self, index, *both))
    next(dim.distill(toy, TINY))
    images, labels = next(cgan.real_batches(toy, TINY.batch_size, TINY.seed))
    (real_images, syn_images), fake = shown[0], made[0].detach()
    assert torch.equal(asked[0], labels)
    assert torch.equal(real_images, toy.preprocess(images))
    assert_close(syn_images.detach(), toy.preprocess((fake + 1) / 2))
    assert -1 <= fake.min() < -0.2 and fake.max() <= 1                                  # else the mapping shows nothing


def test_the_generator_goes_down_the_sum_of_the_gans_loss_and_the_match(toy, games):
    """Its gradient is that of CGAN's step plus that of the term, taken by itself."""
    found = {}
    for weight in (0.0, 5.0):
        next(dim.distill(toy, replace(TINY, weight=weight, net_steps=0)))
        found[weight] = torch.cat([parameter.grad.flatten() for parameter in games[-1].generator.parameters()])
    game, config = cgan.Game(toy, TINY.game()), replace(TINY, weight=5.0)
    game.load(dim.trained_gan(toy, TINY), TINY.lr)
    images, labels = next(cgan.real_batches(toy, TINY.batch_size, TINY.seed))
    fake = game.generate(labels, runs.stream(TINY.seed, "match noise"))
    seen = dim.Pool(toy, config).look(1, toy.preprocess(images), toy.preprocess((fake + 1) / 2))
    alone = torch.autograd.grad(dim.loss_terms(*seen, config)["match"], list(game.generator.parameters()))
    alone = torch.cat([gradient.flatten() for gradient in alone])
    assert_close(found[5.0] - found[0.0], alone, rtol=1e-3, atol=1e-4 * float(alone.norm()))
    assert alone.norm() > 0.01 * found[0.0].norm()


@pytest.mark.parametrize(("method", "names"), [(dim, {"dim"}), (gld, {"global", "local"}), (skd, {"skd", "flat"})],
                         ids=lambda value: getattr(value, "NAME", ""))
def test_the_magnitudes_of_all_terms_are_logged(toy, method, names):
    step = next(method.distill(toy, TINIEST[method.NAME]))
    assert names | {"match", "ratio", "real_variance", "syn_variance", "g_source", "g_class", "d_source"} < step.losses.keys()
    assert 0 < step.losses["ratio"] < 1 and step.losses["real_variance"] > 0 and step.losses["syn_variance"] > 0
    doubled = {"weight": 2 * TINIEST[method.NAME].weight} | ({"local_weight": 0.002} if method is gld else {})
    twice = next(method.distill(toy, replace(TINIEST[method.NAME], **doubled)))
    assert_close(twice.losses["ratio"], 2 * step.losses["ratio"], rtol=1e-4, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.NAME)
def test_a_gpu_matches_the_same_images(toy, method):
    here, there = ([step.losses["match"] for step in method.distill(real, TINIEST[method.NAME])] for real in (toy, toy.to("cuda")))
    assert there == pytest.approx(here, rel=0.05)


# ----------------------------------------------------------------------------------------------- the GAN it starts from

def test_all_methods_share_one_gan_and_other_settings_another(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("DDLIB_RUNS", str(tmp_path))
    with pytest.raises(TimeoutError, match="GAN is at step 1 of 2"):
        dim.prepare(toy, TINY, minutes=1e-9)
    dim.prepare(toy, TINY)
    monkeypatch.setattr(cgan, "distill", lambda *_: pytest.fail("it was trained again"))
    for method in METHODS:
        config = replace(TINIEST[method.NAME], ipc=10, steps=9, lr=1.0, seed=5, weight=3.0)
        method.prepare(toy, config)
    assert len(list((tmp_path / "gan").iterdir())) == 1
    assert len(list(cgan.folder(toy, TINY.gan()).glob("snapshots/step-*"))) == TINY.gan_steps == 2      # of so few, all are kept
    for changed in ({"gan_width": 5}, {"gan_steps": 7}, {"gan_seed": 1}, {"objective": "log"}, {"gan_average": 0.9}, {"gan_lr": 1e-3}):
        with pytest.raises(pytest.fail.Exception):
            dim.prepare(toy, replace(TINY, **changed))


def test_matching_begins_with_the_gans_weights_and_optimizers_at_its_own_rate(toy, games):
    next(dim.distill(toy, replace(TINY, lr=0.0, seed=3)))
    before = dim.trained_gan(toy, TINY)
    found = games[0].parts()
    assert torch.equal(found["generator"].layers[0].weight.cpu(), before["generator"]["layers.0.weight"])
    for name in ("generator_optimizer", "discriminator_optimizer"):
        states = found[name].state_dict(), before[name]
        assert all(float(state["step"]) == TINY.gan_steps + 1 for state in states[0]["state"].values())
        assert states[0]["param_groups"][0]["lr"] == 0.0 != states[1]["param_groups"][0]["lr"]


def test_what_comes_out_is_a_generator_that_can_be_asked_for_any_number(toy):
    *_, step = dim.distill(toy, replace(TINY, ipc=3))
    assert isinstance(step.syn, GeneratorSet) and step.syn.ipc == 3 and len(step.syn.all()[0]) == 12 and step.syn.at(5).ipc == 5
    *_, averaged = dim.distill(toy, replace(TINY, gan_average=0.5))
    assert averaged.syn.net is averaged.state.parts["average"]


# ------------------------------------------------------------------------------------------------------------ the pool

def test_networks_are_drawn_anew_and_trained_in_between(toy):
    config = replace(TINY, redraw=2)
    pool, names, nets = dim.Pool(toy, config), [], []
    for index in range(1, 15):
        before = models.flatten(pool.net)
        old = pool.net
        pool.advance(index)
        names.append(pool.name)
        nets.append(pool.net)
        assert (pool.net is not old) == (index % 2 == 1 and index > 1)
        assert pool.net is not old or not torch.equal(models.flatten(pool.net), before)
    assert len(set(map(id, nets))) == 7 and set(names) == {"convnet3", "resnet10_dim", "resnet18_dim"}


def test_a_network_learns_what_real_images_are(toy):
    pool = dim.Pool(toy, replace(TINY, pool="convnet3", pool_widths="4", redraw=1000, net_steps=8, batch_size=32))
    images, labels = toy.preprocess(toy.train.images), toy.train.labels
    right = lambda: (pool.net(images).argmax(dim=1) == labels).float().mean()
    at_first = right()
    for index in range(1, 7):
        pool.advance(index)
    assert right() > at_first + 0.3


def test_without_training_steps_a_network_stays_as_drawn(toy):
    pool = dim.Pool(toy, replace(TINY, net_steps=0))
    before = models.flatten(pool.net)
    pool.advance(1)
    assert torch.equal(models.flatten(pool.net), before)


def test_widths_go_to_their_networks(toy):
    config = replace(TINY, pool="resnet10_dim,convnet3", pool_widths="3,5")
    assert config.networks() == [("resnet10_dim", 3), ("convnet3", 5)]
    assert replace(config, pool_widths="").networks() == [("resnet10_dim", None), ("convnet3", None)]
    pool = dim.Pool(toy, config)
    for number in range(8):
        pool.draw(number)
        assert next(pool.net.parameters()).shape[0] == {"resnet10_dim": 3, "convnet3": 5}[pool.name]


@pytest.mark.parametrize("name", ["resnet10_dim", "convnet3"])
def test_the_two_batches_are_looked_at_one_by_one_and_as_in_training(name):
    net = models.build(name, shape=(1, 16, 16), num_classes=4, width=4, seed=0).double()
    rng = torch.Generator().manual_seed(0)
    real, one, other = torch.randn(3, 6, 1, 16, 16, generator=rng, dtype=torch.float64)
    (seen, _), (again, syn) = (dim.look(net, real, syn, "none", rng) for syn in (one, other))
    assert torch.equal(seen.logits, again.logits) and torch.equal(seen.features, again.features)
    alone = dim.look(net, real, other[:3], "none", rng)[1]
    assert torch.allclose(alone.logits, syn.logits[:3]) is (name == "convnet3")         # batch norm looks at the whole batch
    assert not seen.logits.requires_grad and net.training


def test_digits_are_not_mirrored(toy):
    digits = replace(toy, has_orientation=True)
    assert "flip" in dim.Pool(toy, replace(TINY, augment="flip_crop")).strategy
    assert "flip" not in dim.Pool(digits, replace(TINY, augment="flip_crop")).strategy


# ---------------------------------------------------------------------------------------------------------------- runs

@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.NAME)
def test_a_run_that_was_stopped_ends_with_the_same_bits(toy, tmp_path, method):
    """Also where another network is drawn in between."""
    config = replace(TINIEST[method.NAME], steps=4, gan_average=0.5)
    method.prepare(toy, config)
    whole = runs.run(method, config, tmp_path / "whole", real=toy)
    for _ in range(4):
        result = runs.run(method, config, tmp_path / "parts", real=toy, minutes=1e-9)
    assert result.finished and same(result.syn.state_dict(), whole.syn.state_dict())
    assert result.metrics() == whole.metrics() and result.metrics()["step"] == [1, 2, 3, 4]
    assert result.syn.meta["method"] == method.NAME and result.syn.meta["config"]["pool"] == config.pool
    protocol = evaluate.with_options("strict-cpu", width=4, repeats=1, steps=2)
    row = evaluate.evaluate(result.syn, toy, protocol, quiet=True).row(method=method.NAME)
    assert row["ipc"] == "1" and row["budget_scalars"] == result.syn.budget


def test_the_seed_decides_the_run_and_leaves_the_gan_alone(toy, games):
    ends = []
    for seed in (0, 0, 1):
        *_, _ = dim.distill(toy, replace(TINY, seed=seed))
        ends.append(weights(games[-1]))
    assert same(ends[0], ends[1]) and not same(ends[0], ends[2])


# ------------------------------------------------------------------------------------------------------------ settings

@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.NAME)
def test_every_preset_is_complete(method):
    assert {"tiny", "cpu", "cpu-full", "cpu-full-mnist", "gpu"} < method.PRESETS.keys()
    shapes = {"toy": (1, 16, 16), "cifar10": (3, 32, 32)}
    for config in method.PRESETS.values():
        assert config.dataset in data.DATASETS
        assert config.lr <= config.gan_lr and config.steps % config.redraw == 0
        for name, width in config.networks():
            with torch.device("meta"):
                models.build(name, shape=shapes.get(config.dataset, (1, 28, 28)), num_classes=4, width=width)
    cpu = method.PRESETS["cpu"]
    assert (cpu.dataset, cpu.gan_width, cpu.gan_steps, cpu.steps, cpu.pool_widths, cpu.net_steps, cpu.lr) == (
        "fashion_mini", 16, 1000, 150, "16,8,8", 2, 1e-4)


def test_every_published_cell_of_dim_has_a_preset_with_its_codes_settings():
    cells = papers.published(method="DiM", eval_arch=None, variant=None)
    assert len(cells) > 20
    for cell in cells:
        config = dim.PRESETS[f"{cell.dataset.replace('_', '-')}-ipc{cell.ipc}"]
        assert (config.dataset, config.ipc, config.weight, config.lr, config.batch_size) == (cell.dataset, cell.ipc, 0.01, 5e-6, 64)
        assert config.gan() == replace(cgan.PRESETS[cell.dataset.replace("_", "-")], ipc=1) and config.steps == 100 * config.redraw


@pytest.mark.parametrize(("wrong", "message"), [
    ({"redraw": 0}, "redraw must be"), ({"net_steps": -1}, "net_steps"), ({"steps": 0}, "steps must be"),
    ({"gan_steps": 0}, "the GAN to start from: steps must be"), ({"weight": math.inf}, "weight must be"),
    ({"weight": math.nan}, "weight must be"), ({"net_lr": 0.0}, "net_lr"),
    ({"pool": "alexnet", "pool_widths": ""}, "'alexnet' cannot be in the pool"), ({"pool": "", "pool_widths": ""}, "cannot be in the pool"),
    ({"pool_widths": "4,4"}, "one width for each"),
    ({"pool_widths": "4,0,4"}, "one width for each"), ({"augment": "mirror"}, "unknown operation"), ({"objective": "hinge"}, "objective"),
    ({"precision": "half"}, "precision")])
def test_settings_that_cannot_be_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **wrong)


def test_a_network_of_the_pool_that_cannot_see_the_images_is_found_before_the_gan_is_trained(toy, monkeypatch):
    monkeypatch.setattr(dim, "trained_gan", lambda *_: pytest.fail("the GAN came first"))
    with pytest.raises(ValueError, match="convnet5"):
        dim.prepare(toy, replace(TINY, pool="convnet3,convnet5", pool_widths="4,4"))


def test_a_gan_that_a_matching_run_cannot_name_is_refused():
    with pytest.raises(ValueError, match="beta1"):
        dim.from_gan(replace(cgan.PRESETS["tiny"], beta1=0.5))


def test_the_command_of_a_gan_makes_the_one_that_others_start_from(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DDLIB_RUNS", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["cgan", "--preset", "tiny", "--steps", "2"])
    assert methods.main(cgan) == 0
    monkeypatch.setattr(cgan, "distill", lambda *_: pytest.fail("it was trained again"))
    dim.prepare(data.load("toy"), dim.from_gan(replace(cgan.PRESETS["tiny"], steps=2), pool_widths="4,4,4"))
    assert [path.name for path in tmp_path.iterdir()] == ["gan"]


def test_a_gan_in_the_making_is_waited_for(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("DDLIB_RUNS", str(tmp_path))
    entered, left = threading.Event(), threading.Event()

    def work():
        with runs.alone(cgan.folder(toy, TINY.gan())):
            entered.set()
            time.sleep(0.5)
            left.set()

    worker = threading.Thread(target=work)
    worker.start()
    entered.wait()
    dim.prepare(toy, TINY)
    assert left.is_set()
    worker.join()


def test_the_limit_of_the_gradient_and_what_is_not_the_complete_method_are_passed_on():
    changed = replace(TINY, max_gradient=5.0, net_steps=0)
    assert changed.game().max_gradient == 5.0 and changed.variant == "net_steps 0"
    assert dim.from_gan(cgan.PRESETS["tiny"], gan_width=4, objective="log").variant == "objective log"
