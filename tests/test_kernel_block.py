from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from kernel_checks import DEVICE, run, same_as_reference
from torch import Tensor, nn

from ddlib import kernels, models, unroll
from ddlib.kernels import block
from ddlib.methods import esp

EPS = 1e-5


def fast(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return block.norm_relu_pool(x, weight, bias, EPS)


def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return block.reference(x, weight, bias, EPS)


def inputs(*shape: int, seed: int = 0, mean: float = 0.7, scale: float = 1.5) -> list[Tensor]:
    """Maps, and weights of either sign."""
    rng = torch.Generator().manual_seed(seed + sum(shape))
    x, weight, bias = (torch.randn(size, generator=rng) for size in (shape, shape[1], shape[1]))
    return [mean + scale * x, weight, 0.5 * bias]


@pytest.fixture
def launches(monkeypatch):
    """The names of the kernels that ran."""
    names: list[str] = []
    launch = block._launch
    monkeypatch.setattr(block, "_launch", lambda kernel, *given: names.append(kernel.__name__) or launch(kernel, *given))
    return names


# ------------------------------------------------------------------------------------------------------- the operation


@pytest.mark.parametrize("shape", [(3, 5, 2, 2), (2, 3, 3, 2), (70, 2, 4, 4), (2, 3, 5, 7), (3, 7, 8, 8), (1, 2, 16, 17), (1, 2, 33, 18),
                                   (1, 2, 56, 56), (1, 1, 112, 112), (1, 2, 2, 111), (1, 1, 111, 112), (1, 1, 128, 128)])
def test_value_gradients_and_double_gradients_are_those_of_the_layers(shape, launches):
    same_as_reference(fast, plain, inputs(*shape), double=True)
    assert launches == ["_forward_kernel", "_backward_kernel", "_double_kernel"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weights_too", [True, False])
def test_half_precision_is_summed_in_single(dtype, weights_too):
    x, *weights = inputs(3, 2, 9, 8)
    weights = [each.to(dtype) if weights_too else each for each in weights]
    same_as_reference(fast, plain, [x.to(dtype), *weights], double=True, tolerance=4e-3 if dtype == torch.float16 else 2e-2)
    with kernels.using("on"):
        given = [each.to(DEVICE).requires_grad_() for each in (x.to(dtype), *weights)]
        p = fast(*given)
        assert p.dtype == dtype
        first = torch.autograd.grad(p.sum(), given, create_graph=True)
        second = torch.autograd.grad(sum(each.square().sum() for each in first), given[:2])
    assert [each.dtype for each in (*first, *second)] == [each.dtype for each in (*given, *given[:2])]


def test_gradients_of_single_weights_are_not_rounded_to_half():
    """Signs as directions, which half precision holds exactly: what is left are sums."""
    x, weight, bias = inputs(40, 2, 6, 6)
    x, sign = x.half(), torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).sign()

    def gradients(function, dtype):
        given = [each.to(DEVICE, dtype).requires_grad_() for each in (weight, bias)]
        maps = x.to(DEVICE, torch.float64 if dtype == torch.float64 else torch.float16).requires_grad_()
        dx, *first = torch.autograd.grad(function(maps, *given).sum(), [maps, *given], create_graph=True)
        return [*first, *torch.autograd.grad((dx * sign.to(dx)).sum(), given[0])]

    with kernels.using("on"):
        found = gradients(fast, torch.float32)
    for ours, theirs in zip(found, gradients(plain, torch.float64), strict=True):
        assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, True, True), (True, False, True)])
def test_gradients_go_only_where_they_are_wanted(wanted):
    """Then some of the directions that the double backward pass is given do not exist."""
    same_as_reference(fast, plain, inputs(2, 3, 6, 5), wanted, double=True)
    same_as_reference(fast, plain, inputs(2, 3, 6, 5), (False, False, False))


def test_maps_that_are_not_contiguous():
    x, weight, bias = inputs(4, 6, 8, 10)
    for view in (x.transpose(2, 3), x[:, ::2, 1:, ::3], x.contiguous(memory_format=torch.channels_last), x[:1].expand(3, -1, -1, -1)):
        C = view.shape[1]
        assert not view.is_contiguous()
        same_as_reference(fast, plain, [view, weight.repeat(2)[::2][:C], bias.expand(2, -1).T[:C, 1]], double=True)


def test_directions_that_are_not_contiguous():
    def gradient_of(function):
        def turned(x, weight, bias):
            p = function(x, weight, bias)
            (dx,) = torch.autograd.grad(p.transpose(0, 1).sum(), x, create_graph=True)       # of the value: one number, expanded
            return dx.transpose(2, 3) + p.sum()
        return turned

    same_as_reference(gradient_of(fast), gradient_of(plain), inputs(2, 3, 6, 4))


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (0, 1, 5, 2)])
def test_no_images(shape):
    same_as_reference(fast, plain, inputs(*shape), double=True)


@pytest.mark.parametrize("mean, scale, tolerance", [(1e4, 1.0, 2e-5), (-3e5, 1e3, 2e-5), (0.0, 1e-4, 2e-5), (0.0, 1e6, 2e-5)])
def test_extreme_maps(mean, scale, tolerance):
    same_as_reference(fast, plain, inputs(2, 2, 10, 11, mean=mean, scale=scale), double=True, tolerance=tolerance)


def test_flat_maps_become_the_bias():
    _, weight, bias = inputs(2, 3, 6, 7)
    x = torch.tensor([0.1, -2.5, 1e9])[:, None, None].expand(2, 3, 6, 7)
    same_as_reference(fast, plain, [x, weight, bias], double=True, tolerance=1e-4)
    with kernels.using("on"):
        assert torch.equal(fast(1e20 * x.to(DEVICE), weight.to(DEVICE), bias.to(DEVICE))[0, :, 0, 0].cpu(), bias.relu())


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_what_is_not_finite_stays_in_its_map():
    x, weight, bias = (each.to(DEVICE) for each in inputs(2, 3, 4, 4))
    x[0, 1, 2, 3], x[1, 2, 0, 0] = float("nan"), float("inf")
    with kernels.using("on"):
        found = run(fast, [x, weight, bias], (True, True, True), False)
    expected = run(plain, [x, weight, bias], (True, True, True), False)
    assert expected[0].isnan().sum() == 8
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True, rtol=1e-4, atol=1e-5)


def test_slopes_of_the_kernels_are_finite_differences_of_the_kernels():
    """Channels that ReLU passes wholly or not at all: beside a kink, differences are no slopes."""
    given = [each.to(DEVICE) for each in inputs(2, 2, 5, 4)]
    given[1:] = [torch.tensor([0.5, -0.4], device=DEVICE), torch.tensor([2.0, 1.9], device=DEVICE)]
    rng = torch.Generator().manual_seed(3)
    directions = [torch.randn(each.shape, generator=rng).to(DEVICE) for each in given]
    adjoints = [torch.randn(shape, generator=rng).to(DEVICE) for shape in ((2, 2, 2, 2), *(each.shape for each in given))]

    def inner(several: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
        return sum(((a * b).sum() for a, b in zip(several, others, strict=True)), torch.zeros((), device=DEVICE))

    def value(*at: Tensor) -> Tensor:
        return inner([fast(*at)], adjoints[:1])

    def along(*at: Tensor) -> Tensor:
        return inner(torch.autograd.grad(value(*at), at, create_graph=True), adjoints[1:])

    def moved(size: float) -> list[Tensor]:
        return [(each + size * direction).requires_grad_() for each, direction in zip(given, directions, strict=True)]

    with kernels.using("on"):
        for function in (value, along):
            at = moved(0.0)
            slope = inner(torch.autograd.grad(function(*at), at, materialize_grads=True), directions).item()
            assert slope == pytest.approx((function(*moved(0.01)) - function(*moved(-0.01))).item() / 0.02, rel=2e-3, abs=2e-3)


def test_a_third_derivative_is_refused():
    x, weight, bias = (each.to(DEVICE).requires_grad_() for each in inputs(2, 3, 4, 4))
    with kernels.using("on"):
        (first,) = torch.autograd.grad(fast(x, weight, bias).square().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x, create_graph=True)
        for leaf in (x, weight):
            with pytest.raises(NotImplementedError, match="can be differentiated twice"):
                torch.autograd.grad(second.square().sum(), leaf, retain_graph=True)


# ------------------------------------------------------------------------------------------------------- who calls it


def test_networks_side_by_side():
    """As in a stack of networks: maps (n, B, C, H, W) and weights (n, C), or one of them for all."""
    stacks = [inputs(2, 3, 6, 5, seed=seed) for seed in range(4)]
    x, weight, bias = (torch.stack(each) for each in zip(*stacks, strict=True))
    one = stacks[0][1]
    for dims, given in (((0, 0, 0), (x, weight, bias)), ((1, 0, 1), (x.transpose(0, 1), weight, bias.T)), ((0, None, 0), (x, one, bias)),
                        ((None, 0, 0), (x[0], weight, bias))):
        same_as_reference(torch.vmap(fast, dims), torch.vmap(plain, dims), given, double=True)


def test_derivatives_side_by_side():
    def derivatives(function):
        value = lambda *given: function(*given).square().sum()
        gradient = torch.func.grad(value, argnums=(0, 1, 2))
        double = torch.func.grad(lambda *given: sum(each.square().sum() for each in gradient(*given)), argnums=(0, 1, 2))
        return torch.vmap(lambda *given: (*gradient(*given), *double(*given)), (0, 0, None))

    x, weight, bias = (each.to(DEVICE) for each in inputs(4, 3, 6, 5))
    given = (x.unflatten(0, (2, 2)), torch.stack([weight, -weight]), bias)
    with kernels.using("on"):
        found = derivatives(fast)(*given)
    for ours, theirs in zip(found, derivatives(plain)(*given), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_shapes_that_the_kernel_is_not_for_are_left_to_torch_and_said_once(recwarn, launches):
    kernels.say_once.cache_clear()
    given = [each.to(DEVICE) for each in inputs(1, 1, 130, 128)]
    thin = [each.to(DEVICE) for each in inputs(1, 1, 1, 6)]
    with kernels.using("on"):
        assert torch.equal(fast(*given), plain(*given)) and torch.equal(fast(*given), plain(*given))
        with pytest.raises(RuntimeError, match="[Oo]utput size is too small"):
            fast(*thin)
        fast(*(each[..., :4, :4].double() if each.dim() == 4 else each.double() for each in given))
        with pytest.raises(RuntimeError, match="weight"):
            fast(given[0][..., :4, :4], torch.ones(2, device=DEVICE), given[2])
    assert [str(warning.message) for warning in recwarn] == [f"kernel block: {why}, plain torch runs instead" for why in (
        "not for 1 x 1 maps of 130 x 128", "not for 1 x 1 maps of 1 x 6", "not for float64", "not for 1 x 1 maps of 4 x 4")]
    assert not launches


def test_a_cpu_and_kernels_that_are_off_compute_the_layers_bit_for_bit(launches):
    layers = models.ConvBlock(2, 3, 1)
    torch.nn.init.normal_(layers[1].weight)
    images = torch.randn(2, 2, 7, 6, generator=torch.Generator().manual_seed(0))

    def one_by_one(images: Tensor) -> Tensor:
        return nn.Sequential(*layers)(images)

    for mode in ("auto", "off"):
        with kernels.using(mode):
            ours, theirs = (run(function, [images], [True], True) for function in (layers, one_by_one))
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert not launches


def test_a_compiler_is_given_the_layers_and_differentiates_them_once(launches):
    """If this torch can do what the file says that it cannot, the file is out of date."""
    layers = models.ConvBlock(2, 3, 1).to(DEVICE)
    images = torch.randn(2, 2, 6, 6, generator=torch.Generator().manual_seed(0)).to(DEVICE).requires_grad_()
    with kernels.using("on"):
        maps = torch.compile(layers, backend="aot_eager", fullgraph=True)(images)
        (gradient,) = torch.autograd.grad(maps.square().sum(), images, create_graph=True)
    assert not launches
    torch.testing.assert_close(maps, layers(images), rtol=1e-4, atol=1e-5)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        torch.autograd.grad(gradient.square().sum(), images)


def test_the_parameters_keep_their_names():
    net = models.build("convnet3", shape=(1, 28, 28), num_classes=10, width=2, seed=0)
    layers = [f"body.{index}.{layer}" for index in range(3) for layer in range(2)]
    assert list(net.state_dict()) == [f"{layer}.{name}" for layer in (*layers, "head") for name in ("weight", "bias")]
    assert [type(layer) for layer in net.body[0]] == [nn.Conv2d, nn.GroupNorm, nn.ReLU, nn.AvgPool2d]


# --------------------------------------------------------------------------------------------------------- ConvNets


class Problem:
    """A narrow ConvNet of three blocks on four images of 9 x 8 pixels."""

    def __init__(self):
        rng = torch.Generator().manual_seed(0)
        self.net = models.build("convnet3", shape=(2, 9, 8), num_classes=3, width=2, seed=1).to(DEVICE)
        self.theta = models.flatten(self.net) + 0.2 * torch.randn(models.num_params(self.net), generator=rng).to(DEVICE)
        self.images = torch.randn(4, 2, 9, 8, generator=rng).to(DEVICE)
        self.labels = torch.tensor([0, 1, 2, 1], device=DEVICE)
        self.target = self.theta + 0.1 * torch.randn(self.theta.shape, generator=rng).to(DEVICE)

    def distance(self, form: str, images: Tensor) -> Tensor:
        """(MTT, eq. 3) after two steps."""
        batch = lambda j, images: (images[2 * j:2 * j + 2], self.labels[2 * j:2 * j + 2])
        theta, rule, rate = self.theta.to(images), unroll.SGD(), 0.3
        if form == "tangent":
            job = unroll.Task(unroll.Tangent(self.net), batch, 2, rule, ())
            student = unroll._Rematerialised.apply(job, torch.tensor(rate).to(images), theta, images)
        else:
            student = unroll.unroll(self.net, theta, [images], batch, steps=2, rate=rate, rule=rule, form=form)
        return (student - self.target.to(images)).square().sum() / (self.theta - self.target).square().sum().to(images)


@pytest.mark.parametrize("form, double", [("plain", 6), ("remat", 2), ("detached", 2), ("tangent", 0)])
def test_every_form_of_unrolling_agrees_with_kernels_and_without(form, double, launches):
    problem = Problem()
    same_as_reference(lambda images: problem.distance(form, images), lambda images: problem.distance(form, images), [problem.images],
                      tolerance=2e-4)
    assert launches.count("_double_kernel") >= double and launches.count("_backward_kernel") >= 6, "else nothing was compared"


def test_double_gradients_of_a_whole_network(launches):
    problem = Problem()
    same_as_reference(lambda theta, images: models.functional(problem.net, theta, images).log_softmax(1),
                      lambda theta, images: models.functional(problem.net, theta, images).log_softmax(1),
                      [problem.theta, problem.images], double=True, tolerance=1e-4)
    assert launches.count("_double_kernel") == 3


@pytest.mark.parametrize("chunk", [2, 4])
def test_the_projection_of_a_gradient_moves_the_pixels_as_without_kernels(chunk):
    problem = Problem()
    span = torch.linalg.qr(torch.randn(len(problem.theta), 3, generator=torch.Generator().manual_seed(2)).to(DEVICE))[0]

    def projected(mode, dtype):
        theta, images, basis = (each.to(dtype) for each in (problem.theta, problem.images, span))
        with kernels.using(mode):
            return esp.project_gradient(problem.net, theta, images, problem.labels, basis, chunk=chunk)

    ours, theirs = projected("on", torch.float32), projected("off", torch.float64)
    for name in ("gradient", "inside", "inner", "outside", "pixels"):
        a, b = getattr(ours, name), getattr(theirs, name)
        assert (a - b).abs().max() <= 2e-4 * b.abs().max(), name


def test_under_autocast_maps_are_half_and_gradients_of_weights_are_not(launches):
    problem = Problem()
    with kernels.using("on"), torch.autocast(DEVICE.type, torch.bfloat16):
        loss = nn.functional.cross_entropy(problem.net(problem.images), problem.labels)
    loss.backward()
    found = torch.cat([parameter.grad.flatten() for parameter in problem.net.parameters()])
    exact = unroll.loss_gradient(problem.net, models.flatten(problem.net).requires_grad_(), problem.images, problem.labels)
    assert launches == ["_forward_kernel"] * 3 + ["_backward_kernel"] * 3 and found.dtype == torch.float32
    assert torch.cosine_similarity(found, exact, dim=0) > 0.99
