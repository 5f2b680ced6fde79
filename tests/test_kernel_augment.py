"""Augmentation by kernels: the numbers of plain torch in double precision, a gradient that is its transpose, the same twice."""

from __future__ import annotations

import warnings
from math import pi

import pytest
import torch
from kernel_checks import DEVICE, run, same_as_reference

from ddlib import augment, kernels
from ddlib.augment import DSA, OPS
from ddlib.kernels import augment as kernel

SIZES = [(1, 28, 28), (3, 32, 32), (3, 27, 31), (1, 5, 4)]


def some(shape: tuple[int, ...], n: int = 2, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(n)).to(dtype)


def drawn(op: str, n: int, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return augment.draw(op, n, shape, torch.Generator().manual_seed(seed)).values[0]


def check(op: str, images: torch.Tensor, values: torch.Tensor, **options) -> None:
    same_as_reference(lambda x: kernel.change(op, x, values), lambda x: kernel.REFERENCE[op](x, values.to(x.device)), [images], **options)


@pytest.mark.parametrize("siamese", [True, False])
@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("op", OPS)
def test_each_kernel_is_its_operation(op, shape, siamese):
    check(op, some(shape), drawn(op, 1 if siamese else 2, shape, seed=sum(shape)), double=not siamese and shape[1] < 28)


@pytest.mark.parametrize("op, corners", [
    ("color", [(0.5, 2.0, 1.5), (-0.5, 0.0, 0.5)]), ("crop", [(4, -4), (-40, 3), (0, 0)]), ("cutout", [(0, 16), (16, 0), (3, 3)]),
    ("flip", [(True,), (False,)]), ("scale", [(1.2, 1 / 1.2), (1 / 1.2, 1 / 1.2), (1.2, 1.2), (0.67, 5.0), (-1.0, 1.0), (1.0, 1.0)]),
    ("rotate", [(pi / 12,), (-pi / 12,), (pi / 4,), (-pi / 2,), (3.0,), (0.0,)]),
])
def test_the_ends_of_the_ranges_and_beyond(op, corners):
    values = torch.tensor(corners)
    check(op, some((2, 13, 16), len(values)), values)


@pytest.mark.parametrize("op", ["scale", "rotate"])
def test_no_output_is_missed_by_the_gather_of_the_gradient(op):
    for seed in range(10, 14):
        check(op, some((1, 9, 14), 3), drawn(op, 3, (1, 9, 14), seed))


@pytest.mark.parametrize("siamese", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_chains_of_operations(seed, siamese):
    params = augment.draw(DSA, 2, (3, 15, 18), torch.Generator().manual_seed(seed), siamese=siamese, mode="all")
    assert len(params.ops) == 4
    same_as_reference(lambda x: augment.apply(params, x), lambda x: augment.apply(params, x), [some((3, 15, 18))], double=not siamese)


@pytest.mark.parametrize("op", OPS)
def test_operation_and_gradient_are_adjoint_and_repeat_to_the_last_bit(op):
    shape = (3, 13, 11)
    values, images, zero = drawn(op, 2, shape, 4), some(shape).to(DEVICE), torch.zeros(2, *shape, device=DEVICE)
    with kernels.using("on"):
        value, gradient = run(lambda x: kernel.change(op, x, values), [images], [True], False)
        again = run(lambda x: kernel.change(op, x, values), [images], [True], False)
        constant = kernel.change(op, zero, values)
    assert torch.equal(value, again[0]) and torch.equal(gradient, again[1])
    direction = torch.randn(value.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)       # as in `run`
    ahead, back = ((value - constant).cpu() * direction).sum(), (images.double() * gradient).sum().cpu()
    assert ahead.item() == pytest.approx(back.item(), rel=1e-4, abs=1e-3)


@pytest.mark.parametrize("op", OPS)
def test_gradients_agree_with_differences(op):
    shape = (2, 6, 7)
    values, images = drawn(op, 2, shape, 1), some(shape).to(DEVICE)
    with kernels.using("on"):
        _, gradient = run(lambda x: kernel.change(op, x, values).square(), [images], [True], False)
        weight = torch.randn(images.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(images)
        for place in ((0, 0, 0, 0), (1, 1, 3, 4), (1, 0, 5, 6)):
            step = torch.zeros_like(images)
            step[place] = 0.5                                # a square has no third derivative: no step is too large
            ends = [(kernel.change(op, images + sign * step, values).square() * weight).sum().item() for sign in (1, -1)]
            assert gradient[place].item() == pytest.approx(ends[0] - ends[1], rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("op", OPS)
def test_half_precision_is_summed_in_single(op, dtype):
    check(op, some((3, 16, 18), 2, dtype), drawn(op, 2, (3, 16, 18), 3))


@pytest.mark.parametrize("op", OPS)
def test_images_and_values_that_are_not_contiguous(op):
    values = drawn(op, 4, (3, 12, 9), 2)[::2]
    values = values.t().contiguous().t()
    check(op, some((3, 12, 9)).to(memory_format=torch.channels_last), values)
    check(op, some((3, 9, 12), 4)[::2].transpose(2, 3), values)
    check(op, some((3, 12, 9), 1).expand(2, -1, -1, -1), values)


@pytest.mark.parametrize("op", OPS)
def test_no_images_and_large_images(op):
    check(op, some((3, 8, 8))[:0], drawn(op, 1, (3, 8, 8)), double=True)
    check(op, some((3, 40, 41), 1), drawn(op, 1, (3, 40, 41), 5))        # more than one block, and two rounds of color


@pytest.mark.parametrize("scale", [1e-20, 1e20])
@pytest.mark.parametrize("op", OPS)
def test_extreme_pixels(op, scale):
    values, images = drawn(op, 2, (3, 8, 9), 6), some((3, 8, 9))
    exact = kernel.REFERENCE[op](scale * images.double(), values)
    with kernels.using("on"):
        found = kernel.change(op, scale * images.to(DEVICE), values).cpu().double()
    assert (found - exact).abs().max() <= 1e-5 * exact.abs().max()


def test_what_the_kernels_are_not_for_is_left_to_torch_and_said_once():
    kernels.say_once.cache_clear()
    images, many = some((1, 6, 6)).to(DEVICE), some((17, 6, 6)).to(DEVICE)
    for op, given, values, words in (("scale", images, torch.tensor([[0.5, 1.0]]), "not for scales below 0.67"),
                                     ("crop", many, torch.tensor([[1, 2]]), "not for 17 channels"),
                                     ("flip", images.double(), torch.tensor([[True]]), "not for float64")):
        with kernels.using("on"):
            with pytest.warns(UserWarning, match=f"kernel augment: {words}, plain torch runs instead"):
                found = kernel.change(op, given, values)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                kernel.change(op, given, values)
        assert torch.equal(found, kernel.REFERENCE[op](given, values.to(DEVICE)))


def test_switched_off_no_kernel_runs(monkeypatch):
    monkeypatch.setattr(kernel, "_Change", None)
    with kernels.using("off"):
        for op in OPS:
            kernel.change(op, some((1, 6, 6)).to(DEVICE), drawn(op, 1, (1, 6, 6)))
