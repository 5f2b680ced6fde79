from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from kernel_checks import DEVICE, poisoned_memory, same_as_reference
from torch import Tensor

from ddlib import data, experts, kernels, models, runs
from ddlib.kernels import subspace
from ddlib.methods import esp

NORMS = ["l1", "l2"]
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")      # of the interpreter's numpy, about infinities


def given(P: int, r: int, dtype: torch.dtype = torch.float32, orthonormal: bool = True) -> tuple[Tensor, Tensor]:
    """A gradient (P,), a third of it inside the span, and a basis (P, r)."""
    rng = torch.Generator().manual_seed(1000 * r + P)
    span = torch.randn(P, r, generator=rng) / P**0.5
    span = torch.linalg.qr(span)[0].contiguous() if orthonormal and r <= P else span
    return (torch.randn(P, generator=rng) + span @ torch.randn(r, generator=rng) * (P / r) ** 0.5 / 3).to(dtype), span.to(dtype)


def same(inputs: tuple[Tensor, Tensor], norm: str, tolerance: float = 0.0) -> None:
    """Norm with its derivative, and the part inside."""
    for place in (0, 1):
        fast, slow = ((lambda *both, function=function, place=place: function(*both, norm)[place])
                      for function in (subspace.split, subspace.reference))
        same_as_reference(fast, slow, inputs, (place == 0, False), tolerance=tolerance)


def everything(function, gradient: Tensor, span: Tensor, norm: str) -> list[Tensor]:
    """Norm, part inside, derivative of the norm."""
    gradient = gradient.to(DEVICE).detach().requires_grad_()
    loss, inside = function(gradient, span.to(DEVICE), norm)
    assert not inside.requires_grad
    return [loss.detach(), inside, *torch.autograd.grad(loss, gradient)]


def by_kernel(gradient: Tensor, span: Tensor, norm: str) -> list[Tensor]:
    with kernels.using("on"), poisoned_memory():
        return everything(subspace.split, gradient, span, norm)


def equal(gradient: Tensor, span: Tensor, norm: str) -> None:
    for found, expected in zip(by_kernel(gradient, span, norm), everything(subspace.reference, gradient, span, norm), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", [(2, 1), (7, 3), (700, 1), (300, 11), (2049, 4), (500, 60), (33, 256), (8, 5)])
def test_the_kernel_is_the_equation(shape, norm):
    same(given(*shape), norm)


@pytest.mark.parametrize("norm", NORMS)
def test_the_derivative_does_not_count_on_an_orthonormal_basis(norm):
    same(given(400, 11, orthonormal=False), norm)


@pytest.mark.parametrize("norm", NORMS)
def test_a_program_goes_on_to_its_next_tile(norm, monkeypatch):
    monkeypatch.setattr(subspace, "PROGRAMS", 2)                        # 5 tiles: three for the first, two for the second
    same(given(4 * 512 + 1, 4), norm)
    monkeypatch.setattr(subspace, "PROGRAMS", 4)                        # two, two, one
    same(given(4 * 512 + 1, 4), norm)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_single(dtype, norm):
    same(given(600, 11, dtype), norm)


@pytest.mark.parametrize("norm", NORMS)
def test_bases_and_gradients_that_are_not_contiguous(norm):
    gradient, span = given(600, 11)
    wide, long = torch.randn(600, 22), torch.randn(1200)
    wide[:, ::2], long[1::2] = span, gradient
    for view in (span.t().contiguous().t(), wide[:, ::2]):
        assert not view.is_contiguous()
        same((long[1::2], view), norm)


def test_without_a_derivative_the_same_numbers_and_nothing_else(monkeypatch):
    gradient, span = (each.to(DEVICE) for each in given(700, 5))
    for norm in NORMS:
        loss, inside, _ = by_kernel(gradient, span, norm)
        with kernels.using("on"), poisoned_memory():
            found = subspace.split(gradient, span, norm)
            assert torch.equal(found.loss, loss) and torch.equal(found.inside, inside) and not found.loss.requires_grad
            assert torch.equal(subspace.proj_loss(gradient, span, norm), loss)


@pytest.mark.parametrize("norm", NORMS)
def test_what_is_exactly_inside_has_no_slope(norm):
    """Coordinate axes as a basis, so that the rest is exactly zero in some places, or everywhere."""
    axes = torch.eye(300)[:, :7].contiguous()
    gradient = torch.randn(300, generator=torch.Generator().manual_seed(2))
    gradient[7:20] = 0.0
    for vector in (gradient, torch.zeros(300), torch.cat([gradient[:7], torch.zeros(293)])):
        equal(vector, axes, norm)
    loss, inside, slope = by_kernel(torch.cat([gradient[:7], torch.zeros(293)]), axes, norm)
    assert loss == 0 and not slope.any() and torch.equal(inside[:7].cpu(), gradient[:7])


@pytest.mark.parametrize("norm", NORMS)
def test_extreme_gradients(norm):
    gradient, span = given(700, 5)
    for scale in (1e-15, 1e15):
        for found, expected in zip(by_kernel(scale * gradient, span, norm), everything(subspace.reference, gradient, span, norm),
                                   strict=True):
            factor = scale if found.ndim == 0 or found.abs().max() > 10 or found.abs().max() < 1e-6 else 1.0
            torch.testing.assert_close(found, factor * expected, rtol=1e-5, atol=1e-5 * factor)


@pytest.mark.parametrize("norm", NORMS)
def test_infinities_and_nan_are_as_in_the_reference(norm):
    gradient, span = given(600, 3)
    for strange, place in itertools.product((math.inf, -math.inf, math.nan), (0, 511, 599)):
        broken = gradient.clone()
        broken[place] = strange
        equal(broken, span, norm)
    equal(torch.full((600,), 3e38), span.abs() + 0.1, norm)             # only E^T G overflows: an infinite loss, not NaN


@pytest.mark.parametrize("norm", NORMS)
def test_the_derivative_agrees_with_central_differences_of_the_kernel(norm):
    gradient, span = (each.to(DEVICE) for each in given(900, 6))
    gradient += gradient.sign()                                         # away from the kinks of the absolute value
    slope = by_kernel(gradient, span, norm)[-1]
    direction = torch.randn(900, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    ahead, behind = (by_kernel(gradient + side * 1e-3 * direction, span, norm)[0] for side in (1, -1))
    assert ((ahead - behind) / 2e-3).item() == pytest.approx((slope @ direction).item(), rel=1e-2)


def test_the_derivative_leaves_the_span():
    gradient, span = (each.to(DEVICE) for each in given(900, 6))
    for norm in NORMS:
        loss, inside, slope = by_kernel(gradient, span, norm)
        assert (span.t() @ slope).abs().max() < 1e-5 * slope.abs().sum() and (span.t() @ (gradient - inside)).abs().max() < 1e-5 * loss


def test_a_run_repeats():
    first, again = (by_kernel(*given(3000, 11), "l1") for _ in range(2))
    assert all(map(torch.equal, first, again))


def test_off_means_off(monkeypatch):
    monkeypatch.setattr(subspace, "_Split", None)
    both = [each.to(DEVICE) for each in given(30, 3)]
    with kernels.using("off"):
        subspace.split(*both)
    with kernels.using("on"), pytest.raises(AttributeError):
        subspace.split(*both)


def test_what_the_kernel_is_not_for_is_left_to_torch_and_said_once():
    gradient, span = (each.to(DEVICE) for each in given(300, 5))
    cases = [((gradient, span.clone().requires_grad_()), "not for gradients of the basis"),
             ((gradient, span[:, :0]), r"not for \(300,\) of torch.float32 and \(300, 0\) of torch.float32"),
             ((gradient[:0], span[:0]), r"not for \(0,\) of torch.float32 and \(0, 5\) of torch.float32"),
             ((gradient, torch.eye(300, device=DEVICE)), r"and \(300, 300\) of torch.float32"),
             ((gradient.double(), span.double()), "not for float64")]
    for both, complaint in cases:
        kernels.say_once.cache_clear()
        with kernels.using("on"), pytest.warns(UserWarning, match=f"kernel subspace: .*{complaint}.*, plain torch runs instead"):
            found = subspace.split(*both)
        for ours, theirs in zip(found, subspace.reference(*both), strict=True):
            torch.testing.assert_close(ours, theirs)
        assert found.loss.requires_grad == both[1].requires_grad
    kernels.say_once.cache_clear()
    with kernels.using("on"), pytest.warns(UserWarning, match="torch.bfloat16"), pytest.raises(RuntimeError):
        subspace.split(gradient, span.bfloat16())                       # torch has no product of two types


@pytest.fixture
def this_kernel_alone(monkeypatch):
    """Within a run all other operations stay as they are."""
    calls: list[str] = []
    monkeypatch.setattr(subspace, "run_fast", lambda name, *_, unless="": calls.append(unless) or not unless)
    return calls


@pytest.fixture
def real(tmp_path, monkeypatch):
    monkeypatch.setenv("DDLIB_RUNS", str(tmp_path))
    return data.load("toy").to(DEVICE)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("second", [True, False])
def test_projecting_a_gradient_gives_the_same_numbers_with_and_without_the_kernel(norm, second, real, this_kernel_alone, monkeypatch):
    tiny, rng = esp.PRESETS["tiny"], runs.stream(0, "test")
    points = experts.train(real, tiny.experts()).draw_segment(3, 1, rng).theta
    net = models.build("convnet3", shape=real.shape, num_classes=4, width=4, seed=0).to(DEVICE).requires_grad_(False)
    images, labels = torch.randn(8, *real.shape, generator=rng).to(DEVICE), torch.arange(4, device=DEVICE).repeat(2)
    span = esp.basis(points)
    assert span.stride() == (span.shape[1], 1)                          # row by row
    for chunk in (8, 3):
        fast = esp.project_gradient(net, points[0], images, labels, span, norm=norm, second=second, chunk=chunk)
        assert this_kernel_alone.pop() == ""
        with monkeypatch.context() as patch:
            patch.setattr(subspace, "run_fast", lambda *_, **__: False)
            plain = esp.project_gradient(net, points[0], images, labels, span, norm=norm, second=second, chunk=chunk)
        assert (fast.pixels is not None) == second and not any(each.requires_grad for each in fast[:4])
        for ours, theirs in zip(fast[:4 + second], plain[:4 + second], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * theirs.abs().max().item())


@pytest.mark.parametrize("changes", [{}, {"proj_norm": "l2", "artifact": "pixels"}])
def test_the_distilled_set_is_the_same_with_and_without_the_kernel(changes, real, this_kernel_alone, monkeypatch):
    config = replace(esp.PRESETS["tiny"], **changes)
    *_, fast = esp.distill(real, config)
    assert this_kernel_alone == [""] * config.steps * config.syn_steps
    monkeypatch.setattr(subspace, "run_fast", lambda *_, **__: False)
    *_, plain = esp.distill(real, config)
    torch.testing.assert_close(fast.syn.all()[0], plain.syn.all()[0], rtol=1e-4, atol=1e-4)
    assert fast.losses == pytest.approx(plain.losses, rel=1e-3)
