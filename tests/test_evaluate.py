"""Evaluation: the configured steps, fresh networks, test images once and last; rows that nobody loses."""

import csv
import fcntl
import math
import multiprocessing
import threading
import time
import types
from dataclasses import replace

import pytest
import torch

from ddlib import data, evaluate, files, gan, select, train
from ddlib.distilled import GeneratorSet, PixelSet
from ddlib.evaluate import COLUMNS, PROTOCOLS, Protocol

QUICK = Protocol(name="quick", source="test", steps=5, repeats=3, width=4)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def toy():
    return data.load("toy")


@pytest.fixture(scope="module")
def syn(toy):
    return select.random(toy, 3, rng())


@pytest.fixture(scope="module")
def made(toy):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = gan.Generator(toy.shape, toy.num_classes, width=4)
    for _ in range(30):                                                                 # running statistics of its own
        net(gan.condition(torch.arange(16) % 4, 4, net.noise_size, rng()))
    return GeneratorSet(net, images_per_class=3, classes=toy.classes, preprocess=toy.preprocess)


def test_the_same_seed_gives_the_same_accuracies_and_networks_differ(toy, syn):
    first, second = (evaluate.evaluate(syn, toy, QUICK, quiet=True) for _ in range(2))
    assert torch.equal(first.accuracies, second.accuracies)
    assert len(first.accuracies) == 3
    nets = [evaluate.train_network(syn, toy, QUICK, 0, repeat).net for repeat in range(2)]
    assert not torch.equal(*(next(net.parameters()) for net in nets))


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_every_protocol_takes_the_steps_it_says(toy, syn, name, monkeypatch):           # T-EVAL-2
    full = PROTOCOLS[name]
    short = replace(full, steps=full.steps and 8, epochs=full.epochs and 4, width=4, repeats=1, lr=0.01, batch_size=5,
                    checkpoints=(2, 3) if full.checkpoints else ())
    taken = []
    fit = train.fit
    monkeypatch.setattr(train, "fit", lambda *args, **options: taken.append(len(losses := fit(*args, **options))) or losses)
    evaluate.train_network(syn, toy, short, 0, 0)
    per_epoch = math.ceil(len(syn.images) / 5)
    expected = 8 if full.steps else (4 + (full.schedule == "drop")) * per_epoch
    assert taken == [expected] == [short.num_steps(len(syn.images))]


class SpySplit:
    """A split that notes when it is read."""

    def __init__(self, split, log):
        self.split, self.log = split, log

    def __getattr__(self, name):
        self.log.append("test")
        return getattr(self.split, name)

    def __len__(self):
        return len(self.split)


@pytest.mark.parametrize(("name", "together"), [("strict-cpu", 1), ("podd", 1), ("dim", 1), ("strict-cpu-resampled", 1),
                                                ("strict-cpu", 2), ("strict-cpu-resampled", 2)])
@pytest.mark.parametrize("kind", ["syn", "made"])
def test_test_images_are_read_once_and_after_all_training(toy, kind, name, together, request, monkeypatch):  # T-EVAL-3
    syn = request.getfixturevalue(kind)
    log = []
    real = data.load("toy")
    object.__setattr__(real, "test", SpySplit(toy.test, log))
    fit = train.fit
    monkeypatch.setattr(train, "fit", lambda *args, **options: log.append("fit") or fit(*args, **options))
    protocol = PROTOCOLS[name]
    short = replace(protocol, steps=protocol.steps and 6, epochs=protocol.epochs and 6, width=4, repeats=2,
                    checkpoints=(2, 3) if protocol.checkpoints else ())
    evaluate.evaluate(syn, real, short, quiet=True, together=together)
    fits = 2 // together
    assert log[:fits] == ["fit"] * fits and set(log[fits:]) == {"test"}
    assert log.count("test") == 2 * 2                                                   # images and labels, per network


def shown(syn, toy, protocol, epochs, monkeypatch, repeat=0):
    """The batches of images of each epoch, as networks would be given them."""
    seen = []

    def fit(net, batches, *, steps, **_):
        assert steps == protocol.num_steps(3 * toy.num_classes)
        unit = steps // epochs
        seen.extend([next(batches)[0] for _ in range(unit)] for _ in range(epochs))

    with monkeypatch.context() as patch:
        patch.setattr(train, "fit", fit)
        evaluate.train_network(syn, toy, protocol, 0, repeat)
    return seen


def images_of(epoch):
    return {tuple(image.flatten().tolist()) for batch in epoch for image in batch}


def test_a_frozen_generator_repeats_its_images_and_a_resampled_one_never(toy, made, monkeypatch):       # T-EVAL-1
    frozen = replace(QUICK, steps=9, batch_size=5)                                      # 12 images: batches of 5, 5 and 2, three epochs
    epochs = [images_of(epoch) for epoch in shown(made, toy, frozen, 3, monkeypatch)]
    assert len(epochs[0]) == 12 and epochs[0] == epochs[1] == epochs[2]
    other = [images_of(epoch) for epoch in shown(made, toy, frozen, 3, monkeypatch, repeat=1)]
    assert not epochs[0] & other[0]                                                     # every network has a frozen set of its own
    fresh = shown(made, toy, replace(frozen, resample=True), 3, monkeypatch)
    assert len(images_of(batch for epoch in fresh for batch in epoch)) == 36
    assert sorted(len(batch) for batch in fresh[0]) == [2, 5, 5]                        # freshness is the only difference


@pytest.mark.parametrize(("ipc", "sizes"), [(1, (10,)), (10, (100,)), (50, (256, 244)), (128, (256,) * 5)])
def test_fresh_batches_are_as_large_as_those_of_the_frozen_set(ipc, sizes):
    for name in ("strict-resampled", "strict-cpu-resampled"):
        assert PROTOCOLS[name].sizes(10 * ipc) == sizes
    assert PROTOCOLS["dim"].sizes(10 * ipc) == (64,)                                    # also where the whole set has 10 images


def test_skds_protocols_are_dims_with_another_batch():
    found = [replace(PROTOCOLS[f"skd-{ipc}"], name="dim", source=PROTOCOLS["dim"].source) for ipc in (1, 10, 50)]
    assert found == [replace(PROTOCOLS["dim"], batch_size=batch) for batch in (32, 64, 128)]


def test_resampled_protocols_differ_from_strict_in_freshness_only():
    for name in ("strict", "strict-cpu"):
        fresh = PROTOCOLS[f"{name}-resampled"]
        assert fresh.resample and replace(PROTOCOLS[name], name=fresh.name, source=fresh.source, resample=True) == fresh


@pytest.mark.parametrize("name", ["strict-cpu", "strict-cpu-resampled", "dim"])
def test_a_generator_is_trained_on_for_the_steps_that_are_reported(toy, made, name):                    # T-EVAL-2
    full = PROTOCOLS[name]
    short = replace(full, steps=full.steps and 8, epochs=full.epochs and 4, width=4, repeats=2, checkpoints=(2, 4) if full.epochs else ())
    found = evaluate.evaluate(made, toy, short, quiet=True)
    per_epoch = math.ceil(12 / 64)
    assert set(found.steps) <= ({2 * per_epoch, 4 * per_epoch} if full.epochs else {8})
    row = found.row(method="CGAN")
    assert row["ipc"] == "3" and row["budget_scalars"] == made.budget
    assert torch.equal(found.accuracies, evaluate.evaluate(made, toy, short, quiet=True).accuracies)


def test_the_drop_is_where_the_base_codes_put_it():
    """for epoch in range(E + 1): train; if epoch == E // 2 + 1: lr *= 0.1, new optimizer."""
    protocol, n = replace(PROTOCOLS["dsa"], epochs=10, batch_size=4), 10
    rates, restarts, lr = [], [], 0.01
    for epoch in range(10 + 1):
        rates += [lr] * 3
        if epoch == 10 // 2 + 1:
            lr *= 0.1
            restarts.append(len(rates))
    assert [protocol.rate(step, n, 0.01) for step in range(protocol.num_steps(n))] == pytest.approx(rates)
    assert restarts == [protocol.drop_at(n)]


def test_cosine_ends_near_zero_and_thirds_fall_twice():
    strict = PROTOCOLS["strict"]
    assert strict.rate(0, 1, 0.01) == 0.01 and strict.rate(999, 1, 0.01) < 1e-7 and strict.rate(500, 1, 0.01) == pytest.approx(0.005)
    idc = replace(PROTOCOLS["idc"], epochs=12, batch_size=10)
    assert [round(idc.rate(step, 10, 1.0), 3) for step in (0, 7, 8, 9, 10, 11)] == [1, 1, 0.2, 0.2, 0.04, 0.04]


def test_one_set_a_network_and_not_another_number(toy):
    sets = [select.random(toy, 1, rng(seed)) for seed in range(3)]
    assert len(evaluate.evaluate(sets, toy, QUICK, quiet=True).accuracies) == 3
    with pytest.raises(ValueError, match="trains 3 networks and 2 sets"):
        evaluate.evaluate(sets[:2], toy, QUICK, quiet=True)


def test_a_set_of_other_data_is_refused(syn):
    with pytest.raises(ValueError, match="evaluate it on the data it was distilled from"):
        evaluate.evaluate(syn, data.load("fashion_mini"), QUICK, quiet=True)


def test_the_learned_rate_is_needed_where_the_protocol_wants_it(toy, syn):
    with pytest.raises(ValueError, match="learned step size"):
        evaluate.evaluate(syn, toy, replace(PROTOCOLS["mtt"], epochs=1, width=4), quiet=True)


def test_finished_networks_are_not_trained_again(toy, syn, tmp_path, monkeypatch):
    first = evaluate.evaluate(syn, toy, QUICK, folder=tmp_path, quiet=True)
    (tmp_path / "network-quick-convnet3-2.safetensors").unlink()                                 # as if killed during the third
    trained = []
    fit = train.fit
    monkeypatch.setattr(train, "fit", lambda *args, **options: trained.append(1) or fit(*args, **options))
    again = evaluate.evaluate(syn, toy, QUICK, folder=tmp_path, quiet=True)
    assert torch.equal(first.accuracies, again.accuracies) and len(trained) == 1
    other = evaluate.evaluate(select.random(toy, 3, rng(9)), toy, QUICK, folder=tmp_path, quiet=True)
    assert len(trained) == 4 and len(other.accuracies) == 3


def test_checkpoints_keep_the_best_weights_by_validation(toy, syn):
    protocol = Protocol(name="choose", source="test", steps=6, repeats=1, width=4, checkpoints=(2, 4, 6))
    best = evaluate.train_network(syn, toy, protocol, 0, 0)
    accuracies = {k: train.accuracy(evaluate.train_network(syn, toy, replace(protocol, checkpoints=(k,)), 0, 0).net,
                                    toy.validation, toy.preprocess) for k in (2, 4, 6)}
    assert train.accuracy(best.net, toy.validation, toy.preprocess) == max(accuracies.values()) == accuracies[best.steps]


def test_checkpoints_are_judged_through_the_preprocessing_of_the_set(toy, monkeypatch):
    whitened = data.load("toy", preprocess="zca_a")
    syn = select.random(whitened, 3, rng())
    protocol = Protocol(name="choose", source="test", steps=2, repeats=1, width=4, checkpoints=(2,))
    seen = []
    monkeypatch.setattr(train, "accuracy", lambda net, split, preprocess: seen.append(preprocess.kind) or 0.5)
    evaluate.evaluate(syn, toy, protocol, quiet=True)
    assert seen == ["zca_a", "zca_a"]


@pytest.mark.parametrize("resample", [False, True])
def test_a_set_from_disk_is_trained_where_the_data_are(toy, syn, resample, monkeypatch):
    """The data are on the meta device, which stands in for a GPU; the set is on the CPU, as one that was just loaded."""
    devices = []
    monkeypatch.setattr(train, "fit", lambda net, batches, **_: devices.extend(tensor.device.type for tensor in next(batches)))
    monkeypatch.setattr(evaluate.files, "digest", lambda *_: "")
    elsewhere = toy.to("meta")
    elsewhere.__dict__["fingerprint"] = ""
    net = evaluate.train_network(syn, elsewhere, replace(QUICK, resample=resample), 0, 0).net
    assert {*devices, next(net.parameters()).device.type} == {"meta"}


def test_a_network_is_not_reused_when_anything_that_made_it_differs(toy, syn, tmp_path):
    protocol = replace(PROTOCOLS["mtt"], epochs=2, width=4)

    def weight(**changes):
        made = replace(toy, **changes.pop("real", {}))
        syn.alpha = changes.pop("alpha", torch.tensor(0.01))
        return evaluate.train_network(syn, made, replace(protocol, **changes), 0, 0, tmp_path).net.head.weight.detach().clone()

    first = weight()
    assert torch.equal(first, weight())
    assert not torch.equal(first, weight(alpha=torch.tensor(0.5)))
    assert not torch.equal(first, weight(momentum=0.5))
    flips = [f"{weight(real={'has_orientation': digits}, augment='flip').sum():.8f}" for digits in (False, True)]
    assert flips[0] != flips[1]


def test_dropout_does_not_make_an_evaluation_unrepeatable(toy, syn):
    protocol = replace(QUICK, network="efficientnet_v2_s", width=None, steps=2)
    weights = []
    with torch.random.fork_rng():
        for state in range(2):
            torch.manual_seed(state)
            before = torch.get_rng_state()
            weights.append(evaluate.train_network(syn, toy, protocol, 0, 0).net.head.weight.detach())
            assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(*weights)


def test_an_evaluation_out_of_time_goes_on_with_the_next_network(toy, syn, tmp_path):
    for _ in range(2):
        with pytest.raises(TimeoutError, match="of 3 networks"):
            evaluate.evaluate(syn, toy, QUICK, folder=tmp_path, quiet=True, minutes=-1)
    assert len(list(tmp_path.iterdir())) == 1
    whole = evaluate.evaluate(syn, toy, QUICK, folder=tmp_path, quiet=True)
    assert torch.equal(whole.accuracies, evaluate.evaluate(syn, toy, QUICK, quiet=True).accuracies)


@pytest.mark.parametrize(("changes", "message"), [
    ({"optimizer": "SGD"}, "optimizer must be one of sgd, adam"), ({"schedule": "cosin"}, "schedule must be"),
    ({"choose_on": "test"}, "choose_on must be one of train, validation"), ({"precision": "bf16"}, "precision must be"),
    ({"steps": 0}, "at least 1"), ({"repeats": 0}, "at least 1"), ({"checkpoints": (6,)}, "between 1 and 5"),
    ({"augment": "blur"}, "blur"),
])
def test_a_protocol_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(QUICK, **changes)


# Section by section what the codes do: networks, steps or epochs, batch, optimizer, rate, decay, schedule, augmentation, mode
PUBLISHED = {
    "dc": (20, "epochs", 300, 256, "sgd", 0.01, 5e-4, "drop", "", "single"),
    "dc-mnist": (20, "epochs", 1000, 256, "sgd", 0.01, 5e-4, "drop", "crop_scale_rotate", "single"),
    "dsa": (20, "epochs", 1000, 256, "sgd", 0.01, 5e-4, "drop", "color_crop_cutout_flip_scale_rotate", "single"),
    "mtt": (5, "epochs", 1000, 256, "sgd", "alpha", 5e-4, "drop", "color_crop_cutout_flip_scale_rotate", "single"),
    "dim": (5, "epochs", 1000, 64, "sgd", 0.01, 5e-4, "constant", "color_crop", "all"),
    "podd": (8, "steps", 2000, 256, "adam", 1e-3, 0.0, "constant", "flip_rotate", "single"),
    "rat-bptt": (8, "steps", 3000, 256, "adam", 1e-3, 0.0, "constant", "flip_rotate", "single"),
    "frepo": (5, "steps", 1000, 500, "adam", 3e-4, 0.0, "constant", "color_crop_cutout_flip_scale_rotate", "single"),
    "idc": (3, "epochs", 1000, 64, "sgd", 0.01, 5e-4, "thirds", "color_crop_flip_scale_rotate", "all"),
}


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_published_protocols_are_what_the_codes_do(name):
    p = PROTOCOLS[name]
    unit = "steps" if p.steps else "epochs"
    assert PUBLISHED[name] == (p.repeats, unit, p.steps or p.epochs, p.batch_size, p.optimizer, p.lr, p.weight_decay, p.schedule,
                               p.augment, p.augment_mode)


def test_averaged_weights_follow_their_recursion(toy, syn):
    protocol = replace(QUICK, steps=3, average=0.7, loss="mse")
    now = [evaluate.train_network(syn, toy, replace(protocol, steps=k, schedule="constant", average=0.0), 0, 0).net.head.bias.detach()
           for k in (1, 2, 3)]
    averaged = evaluate.train_network(syn, toy, replace(protocol, schedule="constant"), 0, 0).net.head.bias.detach()
    net_seed = int(torch.randint(2**31, (), generator=evaluate.stream(0, "network", 0)))
    start = evaluate.models.build("convnet3", shape=toy.shape, num_classes=toy.num_classes, width=4, seed=net_seed).head.bias.detach()
    expected = start
    for weights in now:
        expected = 0.7 * expected + 0.3 * weights
    assert torch.allclose(averaged, expected, atol=1e-6) and not torch.allclose(averaged, now[-1], atol=1e-6)


def test_hard_labels_are_the_most_probable_class(toy, syn, monkeypatch):
    soft = PixelSet(syn.images, 0.5 * syn.all()[1] + 0.125, classes=syn.classes, preprocess=syn.preprocess)
    kinds = []
    monkeypatch.setattr(train, "fit", lambda net, batches, **_: kinds.append(sorted(set(next(batches)[1].flatten().tolist()))))
    for labels in ("stored", "hard"):
        evaluate.train_network(soft, toy, replace(QUICK, labels=labels), 0, 0)
    assert kinds == [[0.125, 0.625], [0.0, 1.0]]


def test_cutmix_mixes_labels_by_area():
    images = torch.stack([torch.zeros(1, 8, 8), torch.ones(1, 8, 8)])
    labels = torch.eye(2)
    seen = 0
    for mixed_images, mixed_labels in (next(evaluate.mixed(iter([(images, labels)]), 1.0, rng(seed))) for seed in range(20)):
        for image, label in zip(mixed_images, mixed_labels, strict=True):
            assert image.mean().item() == pytest.approx(label[1].item(), abs=1e-6)
            seen += 0 < label[1] < 1
    assert seen > 5


# ------------------------------------------------------------------------------------------------------------- side by side

SHORT = replace(QUICK, steps=8, batch_size=5, lr=0.05)                                  # 12 images: batches of 5, 5 and 2
KINDS = {
    "cosine": SHORT,
    "drop, learned rate": replace(SHORT, steps=None, epochs=3, schedule="drop", lr="alpha"),
    "cutmix, thirds, all": replace(SHORT, augment=PROTOCOLS["idc"].augment, augment_mode="all", cutmix=0.5, schedule="thirds"),
    "hard labels": replace(SHORT, labels="hard", augment=""),
    "adam, squares": replace(SHORT, optimizer="adam", loss="mse", schedule="constant"),
    "other network": replace(SHORT, network="resnet10", width=2, steps=3),
}


def networks(folder):
    """The weights that an evaluation has kept, by file."""
    return {path.name: files.read_tensors(path, "network")[1] for path in folder.iterdir()}


def assert_equal_networks(one, other, **tolerance):
    assert one.keys() == other.keys()
    for name, weights in one.items():
        for part, weight in weights.items():
            assert torch.allclose(weight, other[name][part], **tolerance), (name, part, (weight - other[name][part]).abs().max())


def soft(syn, number=0):
    """The set in float64, with soft labels and a learned rate; another draw of the same size for every number."""
    noise = 0.1 * torch.randn(syn.images.shape, dtype=torch.float64, generator=rng(number))
    labels = (3 * torch.eye(4, dtype=torch.float64)[syn.labels] + torch.rand(12, 4, dtype=torch.float64, generator=rng(number))).softmax(1)
    return PixelSet(syn.images + noise, labels, classes=syn.classes, preprocess=syn.preprocess, alpha=torch.tensor(0.04))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("together", [2, 3])
def test_networks_side_by_side_become_what_they_become_alone(toy, syn, kind, together, tmp_path, monkeypatch):
    """In float64, where rounding is small enough for nothing else to hide behind it."""
    build = evaluate.models.build
    monkeypatch.setattr(evaluate.models, "build", lambda *given, **options: build(*given, **options).double())
    double = replace(toy, preprocess=types.SimpleNamespace(to=lambda _: lambda images: toy.preprocess(images).double()))
    sets = [soft(syn, number) for number in range(3)]
    for each in sets:
        each.preprocess = double.preprocess
    found = {count: evaluate.evaluate(sets, double, KINDS[kind], folder=tmp_path / str(count), quiet=True, together=count)
             for count in (1, together)}
    assert_equal_networks(networks(tmp_path / "1"), networks(tmp_path / str(together)), rtol=1e-9, atol=1e-9)
    assert len(networks(tmp_path / "1")) == 3
    assert torch.equal(found[1].accuracies, found[together].accuracies) and found[1].steps == found[together].steps


@pytest.mark.parametrize("resample", [False, True])
def test_single_precision_differs_by_rounding_only(toy, made, resample, tmp_path):
    protocol = replace(QUICK, resample=resample)
    for together in (1, 3):
        evaluate.evaluate(made, toy, protocol, folder=tmp_path / str(together), quiet=True, together=together)
    assert_equal_networks(networks(tmp_path / "1"), networks(tmp_path / "3"), atol=1e-5)


@pytest.mark.parametrize("kind", ["cosine", "cutmix, thirds, all", "resampled"])
def test_networks_side_by_side_are_given_the_same_batches_bit_for_bit(toy, syn, made, kind, monkeypatch):
    seen, fit = [], train.fit

    def noted(net, batches, *, loss, **options):
        images, labels = [], []
        net.register_forward_pre_hook(lambda _, given: images.append(given[0].clone()))
        taken = fit(net, batches, loss=lambda logits, given: labels.append(given.clone()) or loss(logits, given), **options)
        seen.append((images, labels))
        return taken

    monkeypatch.setattr(train, "fit", noted)
    source, protocol = (made, replace(SHORT, resample=True)) if kind == "resampled" else (syn, KINDS[kind])
    for together in (1, 3):
        evaluate.evaluate(source, toy, protocol, quiet=True, together=together)
    assert len(seen) == 4
    for alone, stacked in zip(zip(*seen[:3], strict=True), seen[3], strict=True):       # images, then labels
        for step in range(8):
            assert torch.equal(torch.stack([parts[step] for parts in alone]), stacked[step])
    assert not torch.equal(*seen[3][0][0][:2])


def gpu(monkeypatch):
    """The default of a GPU, on this machine."""
    monkeypatch.setattr(evaluate, "at_once", lambda device, repeats, together: together or repeats)


def sizes(monkeypatch):
    """How many networks each call of `train.fit` trained, from now on."""
    found, fit = [], train.fit
    monkeypatch.setattr(train, "fit", lambda net, *given, **options: found.append(
        len(net.weights[0]) if isinstance(net, train.Stack) else 1) or fit(net, *given, **options))
    return found


def test_a_gpu_trains_all_networks_at_once_and_a_cpu_one(toy, syn, monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert [evaluate.at_once(*given) for given in ((cpu, 5, None), (cuda, 5, None), (cpu, 5, 3), (cuda, 5, 1))] == [1, 5, 3, 1]
    with pytest.raises(ValueError, match="together must be at least 1, got 0"):
        evaluate.evaluate(syn, toy, QUICK, quiet=True, together=0)
    trained = sizes(monkeypatch)
    evaluate.evaluate(syn, toy, QUICK, quiet=True)
    gpu(monkeypatch)
    evaluate.evaluate(syn, toy, QUICK, quiet=True)
    assert trained == [1, 1, 1, 3]


@pytest.mark.parametrize(("changes", "message"), [
    ({"checkpoints": (2, 5)}, "protocol 'quick' looks at the weights on the way"), ({"average": 0.9}, "looks at the weights on the way"),
    ({"network": "resnet10_dim"}, "resnet10_dim has batch norm or dropout"), ({"batch_size": 5}, "differ in size or in learned rate"),
    ({"lr": "alpha"}, "differ in size or in learned rate")])
def test_what_cannot_be_trained_side_by_side_is_trained_alone_unless_asked_for(toy, syn, changes, message, monkeypatch):
    chosen = [select.random(toy, 3 + number * ("batch_size" in changes), rng(number)) for number in range(3)]
    for number, each in enumerate(chosen):
        each.alpha = torch.tensor(0.01 * (number + 1))
    protocol, trained = replace(QUICK, **changes), sizes(monkeypatch)
    with pytest.raises(ValueError, match=f"{message}: networks cannot be trained side by side, use together=1"):
        evaluate.evaluate(chosen, toy, protocol, quiet=True, together=2)
    assert trained == []
    alone = evaluate.evaluate(chosen, toy, protocol, quiet=True, together=1)
    gpu(monkeypatch)
    assert torch.equal(alone.accuracies, evaluate.evaluate(chosen, toy, protocol, quiet=True).accuracies)
    assert trained == [1] * 6


def test_networks_of_groups_of_any_size_are_kept_and_only_missing_ones_trained(toy, syn, tmp_path, monkeypatch):
    five, trained = replace(QUICK, repeats=5), sizes(monkeypatch)
    content = lambda: {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(TimeoutError, match="2 of 5 networks"):
        evaluate.evaluate(syn, toy, five, folder=tmp_path, quiet=True, minutes=-1, together=2)
    first = content()
    assert sorted(first) == [f"network-quick-convnet3-{repeat}.safetensors" for repeat in (0, 1)]
    (tmp_path / "network-quick-convnet3-0.safetensors").unlink()
    whole = evaluate.evaluate(syn, toy, five, folder=tmp_path, quiet=True, together=3)
    assert content()["network-quick-convnet3-1.safetensors"] == first["network-quick-convnet3-1.safetensors"]
    assert trained == [2, 3, 1] and len(content()) == 5
    assert torch.equal(whole.accuracies, evaluate.evaluate(syn, toy, five, folder=tmp_path, quiet=True, minutes=-1).accuracies)
    assert trained == [2, 3, 1]
    assert torch.equal(whole.accuracies, evaluate.evaluate(syn, toy, five, quiet=True).accuracies)


def test_as_many_are_trained_at_once_as_the_memory_holds(toy, syn, monkeypatch):
    fit, tried = train.fit, []

    def small(net, *given, **options):
        tried.append(len(net.weights[0]) if isinstance(net, train.Stack) else 1)
        losses = fit(net, *given, **options)
        if tried[-1] > 2:
            raise torch.OutOfMemoryError("too many")
        return losses

    five = replace(QUICK, repeats=5)
    alone = evaluate.evaluate(syn, toy, five, quiet=True)
    monkeypatch.setattr(train, "fit", small)
    with pytest.raises(torch.OutOfMemoryError):
        evaluate.evaluate(syn, toy, five, quiet=True, together=5)
    gpu(monkeypatch)
    assert torch.equal(alone.accuracies, evaluate.evaluate(syn, toy, five, quiet=True).accuracies)
    assert tried == [5, 5, 3, 2, 2, 1]


def test_the_minutes_of_networks_side_by_side_are_counted_once(toy, syn):
    started = time.monotonic()
    taken = evaluate.evaluate(syn, toy, replace(QUICK, steps=20), quiet=True, together=3).minutes
    assert 0.5 * (time.monotonic() - started) < 60 * taken <= time.monotonic() - started


def test_mean_and_std_are_over_networks(toy, syn):
    result = evaluate.evaluate(syn, toy, QUICK, quiet=True)
    values = result.accuracies.tolist()
    mean = sum(values) / 3
    assert result.mean == pytest.approx(mean)
    assert result.std == pytest.approx(math.sqrt(sum((v - mean) ** 2 for v in values) / 2))
    row = result.row(method="Random", preset="tiny", command="x")
    assert tuple(row) == COLUMNS and row["budget_scalars"] == syn.budget and row["n"] == 3 and row["ipc"] == "3"
    assert row["variant"] == "width 4"
    usual = result.__class__(**{**vars(result), "protocol": replace(QUICK, width=128)})
    assert usual.row(method="Random")["variant"] == ""            # as the papers print it, so that the two join


def make_row(number):
    return dict.fromkeys(COLUMNS, "x") | {"seed": number, "command": 'python "a, b"\nc'}


def write_many(path, start):
    for number in range(start, start + 50):
        evaluate.append_row(path, make_row(number))


def test_two_writers_lose_nothing(tmp_path):
    path = tmp_path / "rows.csv"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_many, args=(path, start)) for start in (0, 1000)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    rows = evaluate.read_rows(path)
    assert sorted(int(row["seed"]) for row in rows) == [*range(50), *range(1000, 1050)]
    assert all(row["command"] == 'python "a, b"\nc' for row in rows)


def test_a_writer_waits_for_its_turn(tmp_path):
    path = tmp_path / "rows.csv"
    evaluate.append_row(path, make_row(1))
    with open(path) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        writer = threading.Thread(target=evaluate.append_row, args=(path, make_row(2)))
        writer.start()
        writer.join(0.3)
        assert writer.is_alive() and len(evaluate.read_rows(path)) == 1
    writer.join(10)
    assert [row["seed"] for row in evaluate.read_rows(path)] == ["1", "2"]


def test_a_torn_last_line_does_not_spoil_the_next(tmp_path):
    path = tmp_path / "rows.csv"
    evaluate.append_row(path, make_row(1))
    with open(path, "a") as file:
        file.write("toy,DM,1,conv")
    evaluate.append_row(path, make_row(2))
    assert [row["seed"] for row in evaluate.read_rows(path)] == ["1", "2"]


def test_a_torn_header_is_written_again_and_a_foreign_file_is_refused(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(",".join(COLUMNS)[:40])
    evaluate.append_row(path, make_row(1))
    assert [row["seed"] for row in evaluate.read_rows(path)] == ["1"]
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="other columns"):
        evaluate.append_row(path, make_row(1))
    assert path.read_text() == "a,b\n1,2\n"


def test_a_row_with_other_columns_is_refused(tmp_path):
    with pytest.raises(ValueError, match="these differ: dataset, extra"):
        evaluate.append_row(tmp_path / "rows.csv", {**{k: 1 for k in COLUMNS if k != "dataset"}, "extra": 1})
    assert not (tmp_path / "rows.csv").exists()


def test_changed_protocols_cannot_be_mistaken_for_the_original():
    assert evaluate.with_options("strict", steps=10).name == "strict steps=10"
    assert evaluate.with_options("strict", width=16, repeats=2).name == "strict"
    assert evaluate.with_options("dsa", steps=10).epochs is None
    with pytest.raises(ValueError, match="unknown protocol 'strickt'; choose from"):
        evaluate.with_options("strickt")
    with pytest.raises(ValueError, match="a protocol has no epoch; it has"):
        evaluate.with_options("strict", epoch=3)




@pytest.mark.parametrize(("steps", "epochs"), [(None, None), (1, 1)])
def test_a_protocol_counts_steps_or_epochs(steps, epochs):
    with pytest.raises(ValueError, match="either steps or epochs"):
        Protocol(name="x", source="", steps=steps, epochs=epochs)


def test_measured_rows_on_disk_have_the_right_columns():
    path = evaluate.Path(evaluate.__file__).resolve().parent.parent / "book/results/measured.csv"
    with open(path, newline="") as file:
        assert tuple(next(csv.reader(file))) == COLUMNS


def test_hard_labels_are_hard_in_batches_drawn_anew_too(toy, monkeypatch):
    fresh = evaluate.fresh
    soft = types.SimpleNamespace(draw=lambda num, rng: (torch.zeros(num, 1), torch.tensor([[0.2, 0.8]]).repeat(num, 1)))
    batches = {hard: next(evaluate.fresh(soft, (3,), torch.Generator(), torch.device("cpu"), hard))[1] for hard in (False, True)}
    asked = []
    monkeypatch.setattr(evaluate, "fresh", lambda *given, hard: asked.append(hard) or fresh(*given, hard=hard))
    syn = PixelSet(torch.randn(4, *toy.shape), torch.full((4, 4), 0.25), classes=toy.classes, preprocess=toy.preprocess)
    for kind in ("stored", "hard"):
        evaluate.train_network(syn, toy, replace(PROTOCOLS["strict-cpu-resampled"], steps=1, width=2, labels=kind), 0, 0)
    assert asked == [False, True]
    assert batches[False].tolist() == torch.tensor([[0.2, 0.8]] * 3).tolist() and batches[True].tolist() == [[0.0, 1.0]] * 3
