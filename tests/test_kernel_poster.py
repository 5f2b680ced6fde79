"""Cutting patches and adding them up, by kernels: the numbers of plain torch, each the derivative of the other, the same twice."""

from __future__ import annotations

import warnings

import pytest
import torch
from kernel_checks import DEVICE, run, same_as_reference

from ddlib import augment, data, distilled, kernels
from ddlib.kernels import poster as kernel
from ddlib.methods import podd
from ddlib.poster import Layout
from ddlib.runs import stream

# width, height, patch width, patch height, patches across and down, cyclic
PLAIN, ROUND, ODD, WHOLE = (40, 31, 28, 28, 3, 2), (40, 14, 20, 9, 4, 5, True), (37, 11, 5, 7, 6, 3), (9, 13, 9, 13, 2, 2)
APART, ROUND_WHOLE, DOTS = (50, 9, 8, 8, 3, 1), (12, 9, 12, 9, 3, 3, True), (35, 3, 1, 1, 7, 2)


def given(facts: tuple, channels: int = 3, dtype: torch.dtype = torch.float32) -> tuple[Layout, torch.Tensor, torch.Tensor]:
    """A layout, a poster and patches."""
    layout = Layout(*facts)
    rng = torch.Generator().manual_seed(channels)
    return (layout, torch.randn(channels, layout.height, layout.width, generator=rng).to(dtype),
            torch.randn(len(layout), channels, layout.patch_height, layout.patch_width, generator=rng).to(dtype))


def check(layout: Layout, poster: torch.Tensor, patches: torch.Tensor, index: torch.Tensor, **options) -> None:
    for fast, plain, tensor, size in ((kernel.extract, kernel.reference, poster, (layout.patch_height, layout.patch_width)),
                                      (kernel.add_up, kernel.added_reference, patches, (layout.height, layout.width))):
        same_as_reference(lambda x, i, f=fast, s=size: f(x, i, s), lambda x, i, f=plain, s=size: f(x, i, s), (tensor, index), **options)


@pytest.mark.parametrize("facts, channels", [(PLAIN, 1), (ROUND, 3), (ODD, 3), (WHOLE, 3), (APART, 1), (ROUND_WHOLE, 1), (DOTS, 6)])
def test_the_kernels_are_the_gather_and_its_transpose(facts, channels):
    layout, poster, patches = given(facts, channels)
    check(layout, poster, patches, layout.index(len(poster)), double=facts in (ROUND_WHOLE, DOTS))


def test_a_long_list_of_patches_is_read_in_parts(monkeypatch):
    monkeypatch.setattr(kernel, "CHUNK", 16)
    monkeypatch.setattr(kernel, "GROUP", 2)
    for facts in ((40, 15, 12, 9, 6, 4), (30, 12, 12, 9, 5, 5, True)):
        layout, poster, patches = given(facts, 1)
        check(layout, poster, patches, layout.index(len(poster)))


@pytest.mark.parametrize("cyclic", [False, True])
def test_patches_may_be_shifted_left_out_and_repeated(cyclic):
    layout, poster, patches = given((40, 15, 20, 9, 4, 3, cyclic), 1)
    rng = torch.Generator().manual_seed(0)
    check(layout, poster, patches, layout.index(1, layout.shifted(4, rng)))
    some = torch.randperm(len(layout), generator=rng)[:5]
    check(layout, poster, patches[:5], layout.index(len(poster)).index_select(0, some))
    twice = torch.tensor([3, 3, 0, 3, 11, 0])
    check(layout, poster, patches[:6], layout.index(len(poster))[twice])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_single(dtype):
    layout, poster, patches = given(ROUND, 1, dtype)
    check(layout, poster, patches, layout.index(len(poster)))
    many = torch.ones(400, 1, 2, 3)
    many[0] = 2.0**14                                                    # a one that is added to it in half precision is lost
    places = torch.tensor([0, 1, 2, 5, 6, 7]).expand(400, -1).to(DEVICE)
    with kernels.using("on"):
        assert kernel.add_up(many.to(DEVICE, dtype), places, (3, 5))[0, :2, :3].eq(torch.tensor(2.0**14 + 399).to(dtype)).all()


def test_a_poster_patches_and_places_that_are_not_contiguous():
    layout, poster, patches = given(ODD, 2)
    index = layout.index(len(poster))
    turned = poster.transpose(1, 2).contiguous().transpose(1, 2)
    strided = patches.transpose(0, 1).contiguous().transpose(0, 1)
    spread = torch.stack([index, index + 1], dim=2).flatten(1)[:, ::2]
    assert not turned.is_contiguous() and not strided.is_contiguous() and not spread.is_contiguous()
    check(layout, turned, strided, spread)
    check(layout, poster, patches[:4], index[2:3].expand(4, -1))
    check(layout, poster, patches[:6], index[::3])
    check(layout, poster, patches[:1].expand(len(layout), -1, -1, -1), index)


def test_no_patches_and_no_channels():
    layout, poster, patches = given(PLAIN)
    check(layout, poster, patches[:0], layout.index(len(poster))[:0], double=True)
    check(layout, poster[:0], patches[:, :0], layout.index(0))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_extreme_pixels(scale):
    layout, poster, patches = given(ODD)
    size, whole, index = (layout.patch_height, layout.patch_width), (layout.height, layout.width), layout.index(len(poster))
    with kernels.using("on"):
        cut = kernel.extract(scale * poster.to(DEVICE), index.to(DEVICE), size).cpu()
        added = kernel.add_up(scale * patches.to(DEVICE), index.to(DEVICE), whole).cpu()
    assert torch.equal(cut, kernel.reference(scale * poster, index, size))
    torch.testing.assert_close(added / scale, kernel.added_reference(patches, index, whole), rtol=1e-5, atol=1e-5)


def test_cutting_and_adding_up_are_adjoint_and_repeat_to_the_last_bit():
    layout, poster, patches = given(ROUND)
    poster, patches, index = poster.to(DEVICE), patches.to(DEVICE), layout.index(len(poster)).to(DEVICE)
    with kernels.using("on"):
        cut, added = layout.extract(poster, index), kernel.add_up(patches, index, (layout.height, layout.width))
        torch.testing.assert_close((cut * patches).sum(), (poster * added).sum(), rtol=1e-4, atol=1e-3)
        assert torch.equal(added, kernel.add_up(patches, index, (layout.height, layout.width)))
    assert torch.equal(cut, layout.extract(poster, index).to(cut))       # a copy has no error


def test_the_gradient_agrees_with_differences():
    layout, poster, patches = given((12, 9, 6, 5, 3, 2), 1)
    poster, patches, index = poster.to(DEVICE), patches.to(DEVICE), layout.index(len(poster)).to(DEVICE)
    with kernels.using("on"):
        _, gradient = run(lambda x: layout.extract(x, index).square() * patches, [poster], [True], False, seed=7)
        weight = patches * torch.randn(patches.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(patches)
        for y, x in ((0, 0), (4, 5), (8, 11)):
            step = torch.zeros_like(poster)
            step[0, y, x] = 0.5                                          # the square has no third derivative: no step is too large
            ends = [(layout.extract(poster + sign * step, index).square() * weight).sum().item() for sign in (1, -1)]
            assert gradient[0, y, x].item() == pytest.approx(ends[0] - ends[1], rel=1e-4, abs=1e-4)


def test_patches_that_are_larger_than_the_poster_are_left_to_torch_and_said_once():
    kernels.say_once.cache_clear()
    poster, index = torch.arange(6.0, device=DEVICE).view(1, 2, 3), torch.tensor([[0, 1, 2, 0, 3, 4, 5, 3]], device=DEVICE)
    with kernels.using("on"):
        with pytest.warns(UserWarning, match=r"kernel poster: not for patches of \(2, 4\) on a poster of \(2, 3\), plain torch"):
            cut = kernel.extract(poster, index, (2, 4))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            kernel.add_up(cut, index, (2, 3))
        with pytest.raises((RuntimeError, IndexError)):                  # torch refuses; a kernel would read beyond the patches
            kernel.add_up(torch.ones(1, 1, 2, 2, device=DEVICE), torch.zeros(2, 4, dtype=torch.int64, device=DEVICE), (2, 3))
    assert cut.flatten().tolist() == index.flatten().tolist()


def test_switched_off_no_kernel_runs(monkeypatch):
    monkeypatch.setattr(kernel, "_cut", None)
    monkeypatch.setattr(kernel, "_add", None)
    layout, poster, patches = given(PLAIN, 1)
    with kernels.using("off"):
        layout.extract(poster.to(DEVICE), layout.index(len(poster)).to(DEVICE))
        layout.merge(patches.to(DEVICE))


@pytest.mark.parametrize("facts", [(28, 24, 16, 16, 4, 3), (28, 24, 16, 16, 4, 3, True)])
def test_a_poster_set_draws_merges_and_learns_the_same_with_kernels_and_without(facts):
    real = data.load("toy")
    syn = distilled.PosterSet.start(real, torch.tensor([[2, 0], [3, 1]]), Layout(*facts), stream(0, "test"), learn_labels=True)
    syn.picture = syn.picture.to(DEVICE)
    syn.cells, syn.places, syn.seen = syn.cells.to(DEVICE), syn.places.to(DEVICE), syn.seen.to(DEVICE)
    found = []
    for mode in ("off", "on"):
        with kernels.using(mode):
            batch = podd.shifted_plan(syn, lambda syn, rng: torch.randperm(12, generator=rng)[:7], 4, augment.DSA, 3, stream(1, "test"))
            picture = syn.picture.detach().requires_grad_()
            parts = [syn.draw(5, stream(2, "test"))[0], *syn.layout.merge(syn.all()[0])]
            for j in range(4):
                images, labels = batch(j, picture, syn.cells)
                (gradient,) = torch.autograd.grad(images.square().sum(), picture)
                parts += [images, labels, gradient]
        found.append(parts)
    for plain, fast in zip(*found, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-5)
