"""The training loop is plain SGD or Adam, visits every image, and stops when the loss does."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ddlib import data, models, train


@pytest.fixture(scope="module")
def toy():
    return data.load("toy")


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def linear(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).double()


def test_every_pass_visits_each_image_once():
    batches = train.Batches(torch.arange(10.0).reshape(10, 1, 1, 1), torch.arange(10), 4, rng())
    stream = iter(batches)
    for _ in range(3):
        visited = torch.cat([next(stream)[1] for _ in range(3)])
        assert sorted(visited.tolist()) == list(range(10))


def test_indices_tell_which_images_a_batch_holds():
    batches = train.Batches(torch.arange(10.0).reshape(10, 1, 1, 1), torch.arange(10), 4, rng())
    for (_, labels), _ in zip(batches, range(7), strict=False):
        assert torch.equal(batches.indices, labels)


def test_no_images_is_an_error():
    with pytest.raises(ValueError, match="no images"):
        train.Batches(torch.empty(0, 1, 2, 2), torch.empty(0), 4, rng())


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_fit_equals_a_loop_written_out(optimizer):
    images, labels = torch.randn(8, 1, 2, 2, dtype=torch.float64, generator=rng()), torch.arange(8) % 3
    ours, theirs = linear(), linear()
    train.fit(ours, iter([(images, labels)] * 5), steps=5, lr=lambda step: 0.1 / (1 + step), optimizer=optimizer, weight_decay=0.01)
    weights = [p.detach().clone().requires_grad_() for p in theirs.parameters()]
    first = [torch.zeros_like(w) for w in weights]
    second = [torch.zeros_like(w) for w in weights]
    for step in range(5):
        loss = F.cross_entropy(F.linear(images.flatten(1), *weights), labels)
        for k, (w, g) in enumerate(zip(weights, torch.autograd.grad(loss, weights), strict=True)):
            g = g + 0.01 * w.detach()
            if optimizer == "sgd":
                first[k] = 0.9 * first[k] + g
                change = first[k]
            else:
                first[k], second[k] = 0.9 * first[k] + 0.1 * g, 0.999 * second[k] + 0.001 * g**2
                change = (first[k] / (1 - 0.9 ** (step + 1))) / ((second[k] / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
            w.data -= 0.1 / (1 + step) * change
    for w, p in zip(weights, ours.parameters(), strict=True):
        assert torch.allclose(w, p, atol=1e-12)


def test_a_restart_forgets_the_momentum():
    images, labels = torch.randn(8, 1, 2, 2, dtype=torch.float64, generator=rng()), torch.arange(8) % 3
    whole, first, second = linear(), linear(), linear()
    train.fit(whole, iter([(images, labels)] * 6), steps=6, restart_at=3)
    train.fit(first, iter([(images, labels)] * 3), steps=3)
    second.load_state_dict(first.state_dict())
    train.fit(second, iter([(images, labels)] * 3), steps=3)
    assert torch.equal(whole[1].weight, second[1].weight)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_an_optimizer_that_is_given_goes_on_from_an_earlier_call(kind):
    images, labels = torch.randn(8, 1, 2, 2, dtype=torch.float64, generator=rng()), torch.arange(8) % 3
    settings = {"momentum": 0.9, "weight_decay": 0.01} if kind is torch.optim.SGD else {"weight_decay": 0.01}
    whole, parts = linear(), linear()
    train.fit(whole, iter([(images, labels)] * 6), steps=6, lr=0.1, optimizer=kind.__name__.lower(), weight_decay=0.01)
    optimizer = kind(parts.parameters(), lr=123.0, **settings)
    for steps in (2, 4):
        train.fit(parts, iter([(images, labels)] * steps), steps=steps, lr=0.1, optimizer=optimizer)
    assert torch.equal(whole[1].weight, parts[1].weight)


def test_a_diverging_loss_is_an_error_that_names_the_step():
    images, labels = 1e3 * torch.randn(8, 1, 2, 2, dtype=torch.float64, generator=rng()), torch.arange(8) % 3
    with pytest.raises(FloatingPointError, match="at step 50 of 60"):
        train.fit(linear(), iter([(images, labels)] * 60), steps=60, lr=1e300)


def test_augmentation_needs_a_stream():
    with pytest.raises(ValueError, match="rng"):
        train.fit(linear(), iter([]), steps=1, augment="flip")


def test_training_leaves_the_global_stream_alone_and_repeats_itself(toy):
    def once():
        net = models.build("convnet3", shape=toy.shape, num_classes=toy.num_classes, width=4, seed=1)
        batches = train.Batches(toy.train.images, toy.train.labels, 32, rng(1), toy.preprocess)
        return train.fit(net, batches, steps=5, augment="color_crop_cutout_flip_scale_rotate", rng=rng(2))

    before = torch.get_rng_state()
    first = once()
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first, once())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_small_network_learns_the_toy_set(toy, precision):
    net = models.build("convnet3", shape=toy.shape, num_classes=toy.num_classes, width=8, seed=0)
    batches = train.Batches(toy.train.images, toy.train.labels, 32, rng(1), toy.preprocess)
    losses = train.fit(net, batches, steps=60, lr=0.05, precision=precision)
    assert losses.shape == (60,) and losses[-10:].mean() < losses[:10].mean()
    assert next(net.parameters()).dtype == torch.float32
    assert train.accuracy(net, toy.validation, toy.preprocess) > 0.6


def test_accuracy_counts_right_answers(toy):
    class Oracle(nn.Module):
        def forward(self, x):
            return F.one_hot(answers[: len(x)], toy.num_classes).float()

    answers = toy.test.labels.clone()
    answers[:4] = (answers[:4] + 1) % toy.num_classes
    assert train.accuracy(Oracle(), toy.test, toy.preprocess) == pytest.approx(1 - 4 / len(toy.test))


# ----------------------------------------------------------------------------------------------------------------- compiled

def trained(toy, **options):
    """Weights after seven steps, the fourth of them with a smaller batch."""
    net = models.build("convnet3", shape=toy.shape, num_classes=toy.num_classes, width=4, seed=1)
    batches = train.Batches(toy.train.images[:100], toy.train.labels[:100], 32, rng(1), toy.preprocess)
    train.fit(net, batches, steps=7, lr=0.05, augment="flip_cutout", rng=rng(2), **options)
    assert all(weight.is_contiguous() for weight in net.parameters()) and "forward" not in vars(net.body[0][0])
    return models.flatten(net)


def test_the_compiled_network_trains_as_the_plain_one(toy, monkeypatch):
    made = []
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *given, **options: made.append(given[0]) or compile(*given, **options))
    start = models.flatten(models.build("convnet3", shape=toy.shape, num_classes=toy.num_classes, width=4, seed=1))
    plain, quick = trained(toy), trained(toy, compiled=True)
    assert made and not torch.equal(plain, start)
    assert torch.allclose(plain, quick, atol=1e-5), (plain - quick).abs().max()
    off = [(trained(toy, compiled=compiled, precision="bfloat16") - plain).norm() for compiled in (True, False)]
    assert 0 < off[0] < 1.5 * off[1], "with bfloat16 it is no less precise than without compiling"


def test_where_nothing_compiles_training_is_plain_and_says_so_once(toy, monkeypatch, capsys):
    def broken(*given, **options):
        raise RuntimeError("No working C++ compiler found\nin a long story")

    monkeypatch.setattr(torch, "compile", broken)
    train.can_compile.cache_clear()
    try:
        assert torch.equal(trained(toy, compiled=True), trained(toy)) and torch.equal(trained(toy, compiled=True), trained(toy))
    finally:
        train.can_compile.cache_clear()
    assert capsys.readouterr().out == ("training without torch.compile, which does not work here (No working C++ compiler found): "
                                       "install a C++ compiler to make it faster\n")


def test_the_first_convolution_stays_in_float32_and_hands_on_bfloat16():
    torch.manual_seed(0)
    conv, images = nn.Conv2d(3, 4, 3), torch.randn(2, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        maps, rough = train._float32_inside(conv, images), conv(images)
    assert maps.dtype == torch.bfloat16 and torch.equal(maps, conv(images).bfloat16()) and not torch.equal(maps, rough)
    assert torch.equal(train._float32_inside(conv, images), conv(images))


FAULTS = """
import resource, torch
from ddlib import train
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(2**25)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults())
train.keep_freed_memory()
faults()
print(faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="an allocator of glibc")
def test_kept_memory_is_not_faulted_in_again():
    """Five blocks of 128 MiB in turn: 160,000 pages of 4 KiB (320 of 2 MiB), or those that were there before."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run([sys.executable, "-c", FAULTS], env=environment, capture_output=True, text=True, check=True)
    default, kept = map(int, done.stdout.split())
    assert kept < default / 10, (default, kept)


def test_live_bytes_counts_each_storage_once_while_it_is_alive():
    with train.LiveBytes() as live:
        one = torch.zeros(250)                                   # 1,000 bytes
        view = one.view(5, 50)
        two = torch.zeros(500)
        assert (live.now, live.peak) == (3000, 3000)
        del two
        assert live.now == 1000
        del one
        assert live.now == 1000                                  # the view holds it
        three = view + 1
        assert (live.now, live.peak, three.numel()) == (2000, 3000, 250)


# ------------------------------------------------------------------------------------------------------------- side by side

STACKABLE = ["convnet3", "convnet4", "convnet5", "resnet10", "resnet18", "resnet18_ap", "alexnet", "vgg11"]


def three(name, size=16):
    return [models.build(name, shape=(2, size, size), num_classes=4, width=2, seed=seed).double() for seed in range(3)]


@pytest.mark.parametrize("name", STACKABLE)
def test_a_stack_computes_what_its_networks_do(name):
    nets = three(name, 32)
    stack, images = train.Stack(nets), torch.randn(3, 5, 2, 32, 32, dtype=torch.float64, generator=rng())
    logits = stack(images)
    assert torch.allclose(logits, torch.stack([net(x) for net, x in zip(nets, images, strict=True)]), atol=1e-12)
    logits.square().sum().backward()
    for net, x in zip(nets, images, strict=True):
        net(x).square().sum().backward()
    for weight, *parts in zip(stack.parameters(), *(net.parameters() for net in nets), strict=True):
        assert torch.allclose(weight.grad, torch.stack([part.grad for part in parts]), atol=1e-10)


def test_all_networks_but_those_with_batch_norm_or_dropout_can_be_stacked():
    build = lambda name: models.build(name, shape=(3, 32, 32), num_classes=4, width=models.NETWORKS[name].width and 2)
    assert [name for name in models.NETWORKS if train.can_stack(build(name))] == STACKABLE
    assert not train.can_stack(nn.Sequential(linear(), nn.Dropout()))


@pytest.mark.parametrize(("optimizer", "loss", "soft"), [("sgd", F.cross_entropy, False), ("sgd", F.cross_entropy, True),
                                                         ("adam", F.mse_loss, True)])
def test_a_stack_trains_each_network_as_alone(optimizer, loss, soft):
    """With momentum, weight decay, a falling rate, a restart and a short last batch, in float64."""
    images = torch.randn(3, 7, 2, 16, 16, dtype=torch.float64, generator=rng())
    labels = torch.rand(3, 7, 4, dtype=torch.float64, generator=rng(1)).softmax(dim=2)
    labels = labels if soft else labels.argmax(dim=2)
    streams = lambda: [iter(train.Batches(*of, 3, rng(k))) for k, of in enumerate(zip(images, labels, strict=True))]
    settings = {"steps": 8, "lr": lambda step: 0.1 / (1 + step), "restart_at": 5, "weight_decay": 0.01, "optimizer": optimizer}
    alone, together, starts = three("convnet3"), three("convnet3"), three("convnet3")
    losses = [train.fit(net, batches, loss=loss, **settings) for net, batches in zip(alone, streams(), strict=True)]
    stack = train.Stack(together)
    summed = train.fit(stack, train.stacked(streams()), loss=train.summed(loss), **settings)
    assert torch.allclose(summed, sum(losses), rtol=1e-5)
    assert all(torch.equal(models.flatten(net), models.flatten(start)) for net, start in zip(together, starts, strict=True))
    stack.hand_back(together)
    for net, other, start in zip(alone, together, starts, strict=True):
        assert torch.allclose(models.flatten(net), models.flatten(other), rtol=1e-9, atol=1e-9)
        assert not torch.allclose(models.flatten(net), models.flatten(start), atol=1e-3)


def test_with_bfloat16_a_stack_is_no_less_precise_than_its_networks_alone():
    images, labels = torch.randn(7, 2, 16, 16, generator=rng()), torch.arange(7) % 4
    batches = lambda: iter([(images, labels)] * 5)
    exact, rough, together = ([net.float() for net in three("convnet3")] for _ in range(3))
    for nets, precision in ((exact, "float32"), (rough, "bfloat16")):
        for net in nets:
            train.fit(net, batches(), steps=5, lr=0.05, precision=precision)
    stack = train.Stack(together)
    train.fit(stack, train.stacked([batches() for _ in together]), steps=5, lr=0.05, precision="bfloat16",
              loss=train.summed(F.cross_entropy))
    stack.hand_back(together)
    theta = [torch.stack([models.flatten(net) for net in nets]) for nets in (exact, rough, together)]        # (3, P) each
    assert 0 < (theta[2] - theta[0]).norm() < 1.5 * (theta[1] - theta[0]).norm()
