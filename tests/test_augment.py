"""Augmentation draws within its published ranges, does what slow loops over single images do, and lets gradients pass."""

from __future__ import annotations

from math import cos, floor, pi, sin
from types import SimpleNamespace

import pytest
import torch

from ddlib import augment
from ddlib.augment import DSA, OPS, Params

SHAPES = [(1, 28, 28), (3, 16, 16), (2, 9, 12), (1, 7, 7)]
LISTED = list(OPS)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_images(shape, n=3, seed=7) -> torch.Tensor:
    return torch.randn(n, *shape, dtype=torch.float64, generator=generator(seed))


def fixed(op: str, value, size) -> Params:
    """One siamese operation with a value chosen by hand."""
    return Params((op,), (torch.tensor([value]),), size)


# Slow definitions, one image and one pixel at a time, in Python numbers


def looked_up(image: torch.Tensor, channel: int, y: int, x: int) -> float:
    _, h, w = image.shape
    return image[channel, y, x].item() if 0 <= y < h and 0 <= x < w else 0.0


def slow_color(image, value):
    brightness, saturation, contrast = value
    c, h, w = image.shape
    out = [[[image[k, y, x].item() + brightness for x in range(w)] for y in range(h)] for k in range(c)]
    for y in range(h):
        for x in range(w):
            mean = sum(out[k][y][x] for k in range(c)) / c
            for k in range(c):
                out[k][y][x] = (out[k][y][x] - mean) * saturation + mean
    mean = sum(v for plane in out for row in plane for v in row) / (c * h * w)
    return [[[(v - mean) * contrast + mean for v in row] for row in plane] for plane in out]


def slow_crop(image, value):
    down, right = value
    c, h, w = image.shape
    return [[[looked_up(image, k, y - down, x - right) for x in range(w)] for y in range(h)] for k in range(c)]


def slow_cutout(image, value):
    """The square reaches side // 2 up and left of its centre, and the rest of its side down and right."""
    c, h, w = image.shape
    (top, tall), (left, wide) = ((centre - floor(n * 0.5 + 0.5) // 2, floor(n * 0.5 + 0.5))
                                 for centre, n in zip(value, (h, w), strict=True))

    def kept(k, y, x):
        return 0.0 if top <= y < top + tall and left <= x < left + wide else image[k, y, x].item()

    return [[[kept(k, y, x) for x in range(w)] for y in range(h)] for k in range(c)]


def slow_flip(image, value):
    c, h, w = image.shape
    return [[[image[k, y, w - 1 - x if value[0] else x].item() for x in range(w)] for y in range(h)] for k in range(c)]


def slow_sample(image, source):
    """Bilinear values at source(u, v) -> (u, v), both measured in pixels from the centre of the image."""
    c, h, w = image.shape
    out = torch.zeros(c, h, w, dtype=torch.float64)
    for y in range(h):
        for x in range(w):
            u, v = source(x + 0.5 - w / 2, y + 0.5 - h / 2)
            px, py = u + w / 2 - 0.5, v + h / 2 - 0.5                       # fractional column and row
            left, top = floor(px), floor(py)
            for row, part_y in [(top, top + 1 - py), (top + 1, py - top)]:
                for col, part_x in [(left, left + 1 - px), (left + 1, px - left)]:
                    for k in range(c):
                        out[k, y, x] += part_y * part_x * looked_up(image, k, row, col)
    return out.tolist()


def slow_scale(image, value):
    return slow_sample(image, lambda u, v: (value[0] * u, value[1] * v))


def slow_rotate(image, value):
    angle = value[0]
    return slow_sample(image, lambda u, v: (cos(angle) * u - sin(angle) * v, sin(angle) * u + cos(angle) * v))


SLOW = {"color": slow_color, "crop": slow_crop, "cutout": slow_cutout, "flip": slow_flip, "scale": slow_scale,
        "rotate": slow_rotate}


@pytest.mark.parametrize("siamese", [True, False])
@pytest.mark.parametrize("shape", SHAPES[1:])
@pytest.mark.parametrize("op", LISTED)
def test_each_operation_equals_a_loop_over_single_images(op, shape, siamese):
    images = some_images(shape)
    params = augment.draw(op, len(images), shape, generator(3), siamese=siamese)
    (values,) = params.values
    expected = [SLOW[op](image, value) for image, value in zip(images, values.expand(3, -1).tolist(), strict=True)]
    torch.testing.assert_close(augment.apply(params, images), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("shift", [(0, 3), (-2, 0), (3, -1), (9, 0), (-40, 40)])
def test_crop_moves_the_image_down_and_right_and_brings_in_zeros(shift):
    image = some_images((2, 9, 12), 1)
    moved = augment.apply(fixed("crop", shift, (9, 12)), image)
    assert moved[0].tolist() == slow_crop(image[0], shift)


@pytest.mark.parametrize("centre, area", [((8, 8), 64), ((0, 0), 16), ((16, 16), 16), ((0, 8), 32), ((4, 12), 64)])
def test_cutout_clips_its_square_at_the_border(centre, area):
    cut = augment.apply(fixed("cutout", centre, (16, 16)), torch.ones(1, 1, 16, 16))
    assert (cut == 0).sum() == area and (cut == 1).sum() == 256 - area


# T-AUG-1


@pytest.mark.parametrize("op", LISTED)
def test_siamese_use_treats_all_images_alike(op):
    """T-AUG-1: equal halves stay equal halves, and a batch of another size gets the same change."""
    images = some_images((3, 16, 16), 5)
    for seed in range(4):
        params = augment.draw(op, 10, (3, 16, 16), generator(seed), siamese=True)
        twice = augment.apply(params, torch.cat([images, images]))
        assert torch.equal(twice[:5], twice[5:])
        torch.testing.assert_close(twice[:5], augment.apply(params, images), rtol=0, atol=1e-15)


@pytest.mark.parametrize("op", LISTED)
def test_otherwise_every_image_gets_its_own_value(op):
    images = some_images((3, 16, 16), 1).expand(12, -1, -1, -1)
    out = augment.augment(images, op, generator())
    assert len({tuple(image.flatten().tolist()) for image in out}) >= (2 if op == "flip" else 8)


# T-AUG-2 and gradients


@pytest.mark.parametrize("siamese", [True, False])
@pytest.mark.parametrize("op", LISTED)
def test_gradients_reach_the_pixels(op, siamese):
    """T-AUG-2, for float32 and the sum of the outputs."""
    images = some_images((3, 16, 16), 4).float().requires_grad_()
    (gradient,) = torch.autograd.grad(augment.augment(images, op, generator(), siamese).sum(), images)
    assert gradient.isfinite().all() and gradient.abs().max() > 0.1


@pytest.mark.parametrize("siamese", [True, False])
@pytest.mark.parametrize("op", LISTED)
def test_first_and_second_derivatives_agree_with_differences(op, siamese):
    shape = (2, 5, 6)
    params = augment.draw(op, 2, shape, generator(1), siamese=siamese)
    images = some_images(shape, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: augment.apply(params, x), images)
    assert torch.autograd.gradgradcheck(lambda x: augment.apply(params, x).pow(3), images)


@pytest.mark.parametrize("op", LISTED)
def test_every_operation_is_linear_in_the_pixels_up_to_a_constant(op):
    shape = (3, 9, 12)
    params = augment.draw(op, 3, shape, generator(2))
    a, b = some_images(shape, seed=1), some_images(shape, seed=2)
    middle = augment.apply(params, 0.25 * a + 0.75 * b)
    torch.testing.assert_close(middle, 0.25 * augment.apply(params, a) + 0.75 * augment.apply(params, b))


# T-AUG-3 and T-AUG-4


@pytest.mark.parametrize("strategy", ["", "none"])
@pytest.mark.parametrize("mode", ["single", "all"])
def test_no_strategy_is_the_identity(strategy, mode):
    """T-AUG-3"""
    images = some_images((1, 8, 8))
    rng = generator()
    assert augment.augment(images, strategy, rng, mode=mode) is images
    assert torch.equal(rng.get_state(), generator().get_state())


@pytest.mark.parametrize(
    "op, value, tolerance",
    [
        ("color", (0.0, 1.0, 1.0), 1e-12),
        ("crop", (0, 0), 0),
        ("flip", (False,), 0),
        ("scale", (1.0, 1.0), 1e-6),
        ("rotate", (0.0,), 1e-6),
    ],
)
@pytest.mark.parametrize("shape", SHAPES)
def test_neutral_values_are_the_identity(op, value, tolerance, shape):
    """T-AUG-4"""
    images = some_images(shape)
    torch.testing.assert_close(augment.apply(fixed(op, value, shape[1:]), images), images, rtol=0, atol=tolerance)


def test_flipping_twice_is_the_identity():
    """T-AUG-4"""
    images, params = some_images((3, 8, 9)), fixed("flip", (True,), (8, 9))
    flipped = augment.apply(params, images)
    assert not torch.equal(flipped, images)
    assert torch.equal(augment.apply(params, flipped), images)


def test_a_quarter_turn_moves_whole_pixels():
    images = some_images((2, 8, 8))
    turned = augment.apply(fixed("rotate", (pi / 2,), (8, 8)), images)
    torch.testing.assert_close(turned, images.rot90(1, (2, 3)), rtol=0, atol=1e-5)


def test_saturation_leaves_one_channel_as_it_is_and_can_remove_all_color():
    grey, color = some_images((1, 6, 6)), some_images((3, 6, 6))
    torch.testing.assert_close(augment.apply(fixed("color", (0.0, 0.0, 1.0), (6, 6)), grey), grey)
    plain = augment.apply(fixed("color", (0.0, 0.0, 1.0), (6, 6)), color)
    torch.testing.assert_close(plain, color.mean(dim=1, keepdim=True).expand_as(color))


# Ranges


@pytest.mark.parametrize(
    "op, size, ranges",
    [
        ("color", (28, 28), [(-0.5, 0.5), (0, 2), (0.5, 1.5)]),
        ("scale", (28, 28), [(1 / 1.2, 1.2), (1 / 1.2, 1.2)]),
        ("rotate", (28, 28), [(-15 * pi / 180, 15 * pi / 180)]),
    ],
)
def test_continuous_values_cover_their_range_and_never_leave_it(op, size, ranges):
    (values,) = augment.draw(op, 4000, (3, *size), generator()).values
    assert values.shape == (4000, len(ranges))
    for column, (low, high) in zip(values.T, ranges, strict=True):
        margin = 0.01 * (high - low)
        assert low - 1e-6 <= column.min() < low + margin and high - margin < column.max() <= high + 1e-6
        spread = (high - low) / 12**0.5
        assert abs(column.mean() - (low + high) / 2) < 4 * spread / 4000**0.5         # uniform: mean and
        assert abs(column.std() - spread) < 0.05 * spread                              # spread are known
    if len(ranges) > 1:
        assert torch.corrcoef(values.T).fill_diagonal_(0).abs().max() < 0.07           # drawn independently


@pytest.mark.parametrize(
    "op, size, ranges",
    [
        ("crop", (32, 32), [(-4, 4), (-4, 4)]),
        ("crop", (28, 28), [(-4, 4), (-4, 4)]),
        ("crop", (16, 27), [(-2, 2), (-3, 3)]),
        ("cutout", (32, 32), [(0, 32), (0, 32)]),         # an even side: the centre lies between pixels
        ("cutout", (13, 16), [(0, 12), (0, 16)]),         # an odd side, 7: the centre is a pixel
        ("flip", (8, 8), [(0, 1)]),
    ],
)
def test_whole_values_take_every_place_of_their_range_equally_often(op, size, ranges):
    (values,) = augment.draw(op, 6000, (1, *size), generator()).values
    assert not values.is_floating_point() and values.shape == (6000, len(ranges))
    for column, (low, high) in zip(values.T, ranges, strict=True):
        places, counts = column.long().unique(return_counts=True)
        assert places.tolist() == list(range(low, high + 1))
        expected = 6000 / len(places)
        assert (counts - expected).square().sum() / expected < len(places) + 5 * (2 * len(places)) ** 0.5    # chi squared


def test_single_mode_draws_each_listed_operation_equally_often():
    rng = generator()
    drawn = [augment.draw(DSA, 1, (1, 8, 8), rng).ops for _ in range(1200)]
    assert all(len(ops) == 1 for ops in drawn)
    counts = {op: drawn.count((op,)) for op in LISTED}
    assert sum(counts.values()) == 1200 and all(150 < count < 250 for count in counts.values())
    drawn = [augment.draw("flip_rotate", 1, (1, 8, 8), rng).ops for _ in range(200)]
    assert {*drawn} == {("flip",), ("rotate",)} and 70 < drawn.count(("flip",)) < 130


def test_all_mode_always_flips_colors_and_cuts_out_and_draws_one_of_the_rest():
    rng = generator()
    drawn = {augment.draw(DSA, 1, (1, 8, 8), rng, mode="all").ops for _ in range(60)}
    assert drawn == {("flip", "color", one, "cutout") for one in ("crop", "scale", "rotate")}
    assert augment.draw("color_crop_cutout", 1, (1, 8, 8), rng, mode="all").ops == ("color", "crop", "cutout")
    assert augment.draw("flip", 1, (1, 8, 8), rng, mode="all").ops == ("flip",)


def test_operations_are_applied_in_the_order_of_the_parameters():
    images, size = some_images((1, 8, 8)), (8, 8)
    steps = [fixed("crop", (2, 1), size), fixed("flip", (True,), size)]
    both = Params(("crop", "flip"), tuple(step.values[0] for step in steps), size)
    expected = augment.apply(steps[1], augment.apply(steps[0], images))
    assert torch.equal(augment.apply(both, images), expected)
    assert not torch.equal(augment.apply(steps[0], augment.apply(steps[1], images)), expected)


# Randomness


@pytest.mark.parametrize("mode", ["single", "all"])
def test_the_generator_decides_everything_and_the_global_one_is_left_alone(mode):
    images = some_images((3, 12, 12), 6)
    state = torch.get_rng_state()

    def several(seed):
        rng = generator(seed)
        return torch.stack([augment.augment(images, DSA, rng, mode=mode) for _ in range(12)])

    first = several(0)
    torch.manual_seed(99)
    assert torch.equal(several(0), first) and not torch.equal(several(1), first)
    torch.set_rng_state(state)
    several(2)
    assert torch.equal(torch.get_rng_state(), state)


def test_parameters_are_drawn_once_and_change_nothing_when_applied():
    params = augment.draw(DSA, 4, (3, 12, 12), generator(), mode="all")
    images = some_images((3, 12, 12), 4)
    before = images.clone()
    first = augment.apply(params, images)
    assert torch.equal(augment.apply(params, images), first) and torch.equal(images, before)
    with pytest.raises(AttributeError):
        params.ops = ()


@pytest.mark.parametrize("op", LISTED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shape_and_precision_are_kept(op, dtype):
    for shape in SHAPES:
        out = augment.augment(some_images(shape).to(dtype), op, generator())
        assert out.shape == (3, *shape) and out.dtype == dtype


@pytest.mark.parametrize("op", LISTED)
def test_images_need_not_be_contiguous(op):
    images = some_images((3, 8, 8))
    params = augment.draw(op, 3, (3, 8, 8), generator())
    strided = images.to(memory_format=torch.channels_last)
    torch.testing.assert_close(augment.apply(params, strided), augment.apply(params, images))


# Strategies and refusals


def test_digits_lose_the_flip_and_other_images_keep_it():
    digits, clothes = SimpleNamespace(has_orientation=True), SimpleNamespace(has_orientation=False)
    assert augment.strategy_for(digits) == "color_crop_cutout_scale_rotate"
    assert augment.strategy_for(clothes) == DSA
    assert augment.strategy_for(digits, "flip_rotate") == "rotate"
    assert augment.strategy_for(digits, "flip") == augment.strategy_for(digits, "none") == ""


def test_the_default_strategy_lists_every_operation():
    assert augment.parse(DSA) == tuple(OPS)


@pytest.mark.parametrize("strategy", ["color_shear", "shear", "color__flip", "Flip", "_"])
def test_an_unknown_operation_is_refused_with_the_list_of_the_known(strategy):
    with pytest.raises(ValueError, match="unknown operation '.*' in .*; join some of color, crop, cutout, flip, scale, rotate"):
        augment.draw(strategy, 1, (1, 8, 8), generator())
    with pytest.raises(ValueError, match="unknown operation"):
        augment.strategy_for(SimpleNamespace(has_orientation=False), strategy)


def test_what_does_not_fit_the_parameters_is_refused():
    params = augment.draw("crop", 3, (1, 8, 8), generator())
    with pytest.raises(ValueError, match="the parameters are for 3 images, got 2; draw them with siamese=True"):
        augment.apply(params, torch.zeros(2, 1, 8, 8))
    with pytest.raises(ValueError, match="expected float images of 8x8 pixels"):
        augment.apply(params, torch.zeros(3, 1, 9, 8))
    with pytest.raises(ValueError, match="expected float images .* got torch.uint8"):
        augment.apply(params, torch.zeros(3, 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match="unknown mode 'both'; choose 'single' or 'all'"):
        augment.draw("crop", 3, (1, 8, 8), generator(), mode="both")
