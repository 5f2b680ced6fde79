from __future__ import annotations

import pytest
import torch
from kernel_checks import DEVICE, run, same_as_reference

from ddlib import kernels
from ddlib.kernels import skd


def logits(B: int, C: int, dtype: torch.dtype = torch.float32, scale: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(B * 1000 + C)
    return tuple((scale * torch.randn(B, C, generator=rng)).to(dtype) for _ in range(2))


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("shape", [(1, 2), (7, 10), (64, 10), (5, 100), (3, 1000), (300, 3), (2, 2049)])
def test_the_kernel_is_the_equation(shape, standardize):
    same_as_reference(lambda a, b: skd.skd_loss(a, b, 1.5, standardize), lambda a, b: skd.reference(a, b, 1.5, standardize), logits(*shape))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_single(dtype):
    given = logits(33, 10, dtype)
    same_as_reference(lambda a, b: skd.skd_loss(a, b, 2.0), lambda a, b: skd.reference(a, b, 2.0), given)
    found = {}
    for kind in (dtype, torch.float32):
        a, b = (each.to(DEVICE, kind).requires_grad_() for each in given)
        with kernels.using("on"):
            loss = skd.skd_loss(a, b, 2.0)
        found[kind] = loss, *torch.autograd.grad(loss, (a, b))
    for ours, exact in zip(found[dtype], found[torch.float32], strict=True):
        torch.testing.assert_close(ours.float(), exact, rtol=torch.finfo(dtype).eps, atol=1e-7)      # only results are rounded


@pytest.mark.parametrize("wanted", [(True, False), (False, True), (False, False)])
def test_gradients_go_only_where_they_are_wanted(wanted):
    same_as_reference(lambda a, b: skd.skd_loss(a, b, 2.0), lambda a, b: skd.reference(a, b, 2.0), logits(9, 10), wanted)


def test_rows_that_are_not_contiguous():
    a, b = logits(10, 24)
    views = a[:, ::2], b.t()[:10].t()[:, :10]
    for first, second in ((views[0][:, :10], views[1]), (a.t()[:10, :10], b[:10, :10])):
        same_as_reference(lambda a, b: skd.skd_loss(a, b, 2.0), lambda a, b: skd.reference(a, b, 2.0), (first, second))


@pytest.mark.parametrize("scale", [1e-3, 1e4])
def test_extreme_logits(scale):
    quiet, loud = logits(8, 10, scale=scale)
    same_as_reference(lambda a, b: skd.skd_loss(a, b, 0.5), lambda a, b: skd.reference(a, b, 0.5), (quiet, loud), tolerance=1e-4)
    with kernels.using("on"):
        found = run(lambda a, b: skd.skd_loss(a, b, 1.0, False), [quiet.to(DEVICE), loud.to(DEVICE)], (True, True), False)
    assert all(each.isfinite().all() for each in found)


def test_equal_logits_have_no_divergence_and_flat_ones_are_finite():
    same = logits(8, 10)[0].to(DEVICE)
    flat = torch.full((4, 10), 2.5, device=DEVICE)
    with kernels.using("on"):
        value, *gradients = run(lambda a, b: skd.skd_loss(a, b, 2.0), [same, same.clone()], (True, True), False)
        assert value.abs() < 1e-6 and all(each.abs().max() < 1e-6 for each in gradients)
        assert all(each.isfinite().all() for each in run(lambda a, b: skd.skd_loss(a, b, 2.0), [flat, flat.clone()], (True, True), False))


def test_shapes_that_the_kernel_is_not_for_are_left_to_torch_and_said_once():
    kernels.say_once.cache_clear()
    with kernels.using("on"):
        with pytest.warns(UserWarning, match="kernel skd: not for 3 rows of 9000 classes, plain torch runs instead"):
            found = skd.skd_loss(*(each.to(DEVICE) for each in logits(3, 9000)), 2.0)
        torch.testing.assert_close(found.cpu(), skd.reference(*logits(3, 9000), 2.0), rtol=1e-4, atol=1e-6)
