"""Properties of differentiable training. float64 and tiny networks, so that 'equal' means rounding."""

from __future__ import annotations

import copy
import gc
import warnings
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ddlib import augment, models, train, unroll

SHAPE, CLASSES = (1, 16, 16), 4
RULES = {"sgd": (unroll.SGD(), 0.05), "momentum": (unroll.SGD(momentum=0.9), 0.05), "adam": (unroll.Adam(), 1e-3)}


class Problem:
    """Six images, soft labels, a rate and a starting point, with batches that are the same whenever they are asked for."""

    def __init__(self, net: models.Classifier | None = None, steps: int = 9):
        rng = torch.Generator().manual_seed(0)
        self.net = (net or models.build("convnet3", shape=SHAPE, num_classes=CLASSES, width=4, seed=0)).double()
        self.start = models.flatten(self.net)
        self.seen = torch.ones_like(self.start)
        self.target = self.start + 0.05 * torch.randn(self.start.shape, generator=rng, dtype=torch.float64)
        self.images = torch.randn(6, *SHAPE, generator=rng, dtype=torch.float64)
        self.labels = torch.randn(6, CLASSES, generator=rng, dtype=torch.float64).softmax(dim=1)
        self.plan = [(torch.randperm(6, generator=rng)[:4], augment.draw(augment.DSA, 4, SHAPE, rng)) for _ in range(steps)]

    def without_dead_biases(self) -> Problem:
        """A loss that ignores the biases before a norm. Their gradients are pure rounding, which Adam turns into steps of full
        size; the output does not notice, but a distance in parameter space would."""
        dead = {name: torch.full_like(value, "0.bias" not in name) for name, value in self.net.named_parameters()}
        self.seen = torch.cat([value.detach().flatten() for value in dead.values()])
        return self

    def batch(self, j: int, images: Tensor, labels: Tensor) -> train.Batch:
        indices, params = self.plan[j]
        return augment.apply(params, images[indices]), labels[indices]

    def loss(self, student: Tensor) -> Tensor:
        return (self.seen * (student - self.target)).square().sum() / (self.start - self.target).square().sum()

    def gradients(self, how: Callable[..., Tensor]) -> tuple[float, dict[str, Tensor]]:
        """The loss at the end of `how(theta, sources, rate)`, and its gradients."""
        inputs = {"pixels": self.images, "labels": self.labels, "alpha": torch.tensor(0.05, dtype=torch.float64), "start": self.start}
        inputs = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}
        loss = self.loss(how(inputs["start"], (inputs["pixels"], inputs["labels"]), inputs["alpha"]))
        return loss.item(), dict(zip(inputs, torch.autograd.grad(loss, list(inputs.values())), strict=True))

    def unrolled(self, form: unroll.Form, steps: int, rule: str = "sgd") -> tuple[float, dict[str, Tensor]]:
        optimizer, rate = RULES[rule]
        scale = rate / 0.05
        return self.gradients(lambda theta, sources, alpha: unroll.unroll(
            self.net, theta, sources, self.batch, steps=steps, rate=alpha * scale, rule=optimizer, form=form))


def distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    return {name: ((found[name] - expected[name]).norm() / expected[name].norm()).item() for name in expected}


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("rule", ["sgd", "momentum"])
def test_rematerialised_gradients_equal_those_of_the_plain_graph(rule, steps):
    problem = Problem()
    (plain, expected), (remat, found) = problem.unrolled("plain", steps, rule), problem.unrolled("remat", steps, rule)
    assert remat == pytest.approx(plain, rel=1e-14)
    assert max(distance(found, expected).values()) < 1e-13


def test_adam_gradients_equal_those_of_the_plain_graph():
    problem = Problem().without_dead_biases()
    (plain, expected), (again, found) = problem.unrolled("plain", 5, "adam"), problem.unrolled("remat", 5, "adam")
    assert again == pytest.approx(plain, rel=1e-12)
    assert max(distance(found, expected).values()) < 1e-9


@pytest.mark.parametrize("rule", ["sgd", "momentum"])
def test_the_written_out_tangent_gives_the_gradients_of_the_plain_graph(rule):
    problem, (optimizer, _) = Problem(), RULES[rule]
    job = unroll.Task(unroll.Tangent(problem.net), problem.batch, 5, optimizer, optimizer.start(problem.start))
    _, found = problem.gradients(lambda theta, sources, alpha: unroll._Rematerialised.apply(job, alpha, theta, *sources))
    assert max(distance(found, problem.unrolled("plain", 5, rule)[1]).values()) < 1e-13


@pytest.mark.parametrize("shape, depth", [((1, 28, 28), 3), ((3, 20, 17), 2), ((1, 16, 16), 4)])
def test_the_tangent_is_the_derivative_of_the_loss_along_a_direction(shape, depth):
    rng = torch.Generator().manual_seed(1)
    net = models.ConvNet(shape, CLASSES, 4, depth).double()
    theta = models.flatten(net) + 0.1 * torch.randn(models.num_params(net), generator=rng, dtype=torch.float64)
    direction = torch.randn(theta.shape, generator=rng, dtype=torch.float64)
    images, labels = torch.randn(3, *shape, generator=rng, dtype=torch.float64), torch.tensor([0, 3, 1])
    theta.requires_grad_()
    gradient = unroll.loss_gradient(net, theta, images, labels)
    assert unroll.tangent_loss(net, theta, direction, images, labels).item() == pytest.approx((gradient @ direction).item(), rel=1e-10)
    soft = F.one_hot(labels, CLASSES) * 0.7                              # labels that do not sum to one
    gradient = unroll.loss_gradient(net, theta, images, soft)
    assert unroll.tangent_loss(net, theta, direction, images, soft).item() == pytest.approx((gradient @ direction).item(), rel=1e-10)


def test_the_compiled_form_gives_the_gradients_of_the_plain_graph():
    if not train.can_compile("cpu"):
        pytest.skip("NO C++ COMPILER: the compiled unroll was not tried")
    problem = Problem()
    assert max(distance(problem.unrolled("compiled", 2)[1], problem.unrolled("plain", 2)[1]).values()) < 1e-10


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("which", ["pixels", "labels", "alpha", "start"])
def test_gradients_agree_with_central_differences(rule, which):
    """T-MTT-5: three steps; a difference of 1e-6, because a wider one already steps over kinks of ReLU."""
    problem, (optimizer, rate) = Problem().without_dead_biases(), RULES[rule]
    _, found = problem.unrolled("remat", 3, rule)
    inputs = {"pixels": problem.images, "labels": problem.labels, "alpha": torch.tensor(0.05, dtype=torch.float64), "start": problem.start}
    rng = torch.Generator().manual_seed(5)
    direction = torch.randn(inputs[which].shape, generator=rng, dtype=torch.float64)
    direction = direction / direction.norm()

    def loss(size: float) -> float:
        moved = {**inputs, which: inputs[which] + size * direction}
        return problem.loss(unroll.unroll(problem.net, moved["start"], (moved["pixels"], moved["labels"]), problem.batch, steps=3,
                                          rate=moved["alpha"] * (rate / 0.05), rule=optimizer)).item()

    expected = (loss(1e-6) - loss(-1e-6)) / 2e-6
    assert (found[which] * direction).sum().item() == pytest.approx(expected, rel=1e-5, abs=1e-8)


def test_one_detached_step_is_exact_and_more_are_not():
    """T-MTT-7."""
    problem = Problem()
    one, exact_one = problem.unrolled("detached", 1)[1], problem.unrolled("plain", 1)[1]
    del one["start"], exact_one["start"]     # the way that is forgotten: how g depends on where the step begins
    assert max(distance(one, exact_one).values()) < 1e-13
    several, exact = problem.unrolled("detached", 5)[1], problem.unrolled("plain", 5)[1]
    assert distance(several, exact)["pixels"] > 0.01


@pytest.mark.parametrize("rule, reference", [
    ("sgd", lambda net: torch.optim.SGD(net.parameters(), lr=0.05)),
    ("momentum", lambda net: torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)),
    ("adam", lambda net: torch.optim.Adam(net.parameters(), lr=1e-3)),
])
@pytest.mark.parametrize("form", ["plain", "remat"])
def test_unrolled_training_follows_the_optimizer_object(rule, reference, form):
    """T-RAT-3."""
    problem, (optimizer, rate) = Problem(), RULES[rule]
    net = copy.deepcopy(problem.net)
    updater = reference(net)
    for j in range(5):
        updater.zero_grad()
        images, labels = problem.batch(j, problem.images, problem.labels)
        F.cross_entropy(net(images), labels).backward()
        updater.step()
    student = unroll.unroll(problem.net, problem.start, (problem.images, problem.labels), problem.batch, steps=5, rate=rate,
                            rule=optimizer, form=form)
    assert (student - models.flatten(net)).norm() < 1e-10


def test_adam_gives_finite_gradients_where_a_parameter_has_never_moved():
    theta, zero = torch.ones(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64, requires_grad=True)
    rule = unroll.Adam()
    moved, _ = rule.step(theta, zero, rule.start(theta), torch.tensor(0.1, dtype=torch.float64))
    (found,) = torch.autograd.grad(moved.sum(), zero)
    assert torch.isfinite(found).all()


class Kept:
    """A tensor that a graph has saved; gone when the graph is."""

    def __init__(self, tensor: Tensor):
        self.tensor = tensor


def saved_bytes(work: Callable[[], Tensor]) -> int:
    """Bytes of distinct tensors that the graph of a result keeps for its backward pass."""
    alive: weakref.WeakSet[Kept] = weakref.WeakSet()

    def pack(tensor: Tensor) -> Kept:
        kept = Kept(tensor)
        alive.add(kept)
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        result = work()
    assert result.requires_grad
    gc.collect()
    return sum({kept.tensor.untyped_storage().data_ptr(): kept.tensor.untyped_storage().nbytes() for kept in alive}.values())


def test_a_plain_graph_grows_with_every_step_and_a_rematerialised_one_does_not():
    """T-MTT-6. What the rematerialised form keeps besides, one parameter vector a step, is small beside activations."""
    problem = Problem()

    def size(form: unroll.Form, steps: int) -> int:
        images = problem.images.clone().requires_grad_()
        return saved_bytes(lambda: unroll.unroll(problem.net, problem.start, (images, problem.labels), problem.batch, steps=steps,
                                                 rate=0.05, form=form))

    plain = [size("plain", steps) for steps in (2, 4, 8)]
    assert plain[2] - plain[1] == pytest.approx(2 * (plain[1] - plain[0]), rel=0.2)
    assert size("remat", 8) == size("remat", 2) < plain[0] / 2


def test_the_backward_pass_of_the_rematerialised_form_keeps_one_graph_at_a_time():
    problem = Problem()

    def most_alive(form: unroll.Form, steps: int) -> int:
        alive: weakref.WeakSet[Kept] = weakref.WeakSet()
        most = 0

        def pack(tensor: Tensor) -> Kept:
            nonlocal most
            kept = Kept(tensor)
            alive.add(kept)
            most = max(most, len(alive))
            return kept

        images = problem.images.clone().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
            problem.loss(unroll.unroll(problem.net, problem.start, (images, problem.labels), problem.batch, steps=steps, rate=0.05,
                                       form=form)).backward()
        return most

    assert most_alive("plain", 8) > 3 * most_alive("plain", 2)
    assert most_alive("remat", 8) <= 1.05 * most_alive("remat", 2)


def test_the_graph_of_both_exact_forms_can_be_walked_twice():
    problem = Problem()
    for form in ("plain", "remat"):
        images = problem.images.clone().requires_grad_()
        loss = problem.loss(unroll.unroll(problem.net, problem.start, (images, problem.labels), problem.batch, steps=2, rate=0.05,
                                          form=form))
        first = torch.autograd.grad(loss, images, retain_graph=True)[0]
        assert torch.equal(torch.autograd.grad(loss, images)[0], first)


@pytest.mark.parametrize("form", ["plain", "remat"])
def test_no_step_returns_the_start(form):
    problem = Problem()
    theta = problem.start.clone().requires_grad_()
    student = unroll.unroll(problem.net, theta, (problem.images, problem.labels), problem.batch, steps=0, rate=0.1, form=form)
    assert torch.equal(student, theta)
    assert torch.equal(torch.autograd.grad(student.sum(), theta)[0], torch.ones_like(theta))


def test_a_training_that_goes_on_carries_the_optimizers_state():
    problem, rule = Problem(), unroll.SGD(momentum=0.9)
    sources, rate = (problem.images, problem.labels), torch.tensor(0.05, dtype=torch.float64)
    whole = unroll.unroll(problem.net, problem.start, sources, problem.batch, steps=5, rate=rate, rule=rule)
    theta, state = problem.start, rule.start(problem.start)
    for j in range(2):
        at = theta.clone().requires_grad_()
        theta, state = rule.step(theta, unroll.loss_gradient(problem.net, at, *problem.batch(j, *sources)), state, rate)
    rest = unroll.unroll(problem.net, theta.detach(), sources, lambda j, *s: problem.batch(j + 2, *s), steps=3, rate=rate, rule=rule,
                         state=state)
    assert (rest - whole).norm() < 1e-12


def test_what_cannot_be_unrolled_is_refused_in_one_sentence():
    problem = Problem()
    with pytest.raises(ValueError, match="unknown form 'fast'; choose from plain, remat, compiled, detached"):
        unroll.unroll(problem.net, problem.start, (), problem.batch, steps=1, rate=0.1, form="fast")
    with pytest.raises(ValueError, match="steps must be at least 0"):
        unroll.unroll(problem.net, problem.start, (), problem.batch, steps=-1, rate=0.1)
    net = models.build("resnet10_dim", shape=(3, 32, 32), num_classes=2, width=4)
    with pytest.raises(ValueError, match="batch norm"):
        unroll.unroll(net, models.flatten(net), (), problem.batch, steps=1, rate=0.1)


def test_the_compiled_form_of_another_network_falls_back_and_says_so_once():
    problem = Problem(models.build("resnet10", shape=SHAPE, num_classes=CLASSES, width=2, seed=0), steps=2)
    unroll.say_once.cache_clear()
    with pytest.warns(UserWarning, match="ConvNets only"):
        found = problem.unrolled("compiled", 2)[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        problem.unrolled("compiled", 1)
    assert max(distance(found, problem.unrolled("plain", 2)[1]).values()) < 1e-12


def test_changing_the_images_before_the_backward_pass_is_noticed():
    problem = Problem()
    images = problem.images.clone().requires_grad_()
    student = unroll.unroll(problem.net, problem.start, (images, problem.labels), problem.batch, steps=2, rate=0.05)
    with torch.no_grad():
        images.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        student.sum().backward()


def test_random_streams_are_untouched_by_the_backward_pass():
    problem, before = Problem(), torch.get_rng_state()
    problem.unrolled("remat", 2)
    assert torch.equal(torch.get_rng_state(), before)
