"""Properties of posters: where patches lie, what they share, how they are labelled."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch

from ddlib import data, distilled, poster
from ddlib.runs import stream

REAL = data.load("toy")
# the official commands: poster, grid, patches, and what follows from them (methods' 0.9 images per class)
PUBLISHED = {
    "cifar10": ((153, 60), (5, 2), (16, 6), 32, (8.07, 5.60), 9_180, 0.896),
    "cifar100": ((303, 303), (10, 10), (20, 20), 32, (14.26, 14.26), 91_809, 0.897),
    "cub200": ((610, 302), (20, 10), (60, 30), 32, (9.80, 9.31), 184_220, 0.900),
    "tiny_imagenet": ((1211, 608), (20, 10), (40, 20), 64, (29.41, 28.63), 736_288, 0.899),
}


def layout_of(name: str) -> tuple[poster.Layout, tuple[int, int]]:
    (width, height), grid, patches, size, *_ = PUBLISHED[name]
    return poster.Layout(width, height, size, size, *patches), grid


def in_order(grid_x: int, grid_y: int) -> torch.Tensor:
    return torch.arange(grid_x * grid_y).view(grid_y, grid_x)


# -------------------------------------------------------------------------------------------------------------- geometry

@pytest.mark.parametrize("name", PUBLISHED)
def test_published_layouts_have_the_published_strides_and_sizes(name):
    (width, height), grid, patches, size, strides, pixels, ipc = PUBLISHED[name]
    layout, _ = layout_of(name)
    assert len(layout) == patches[0] * patches[1]
    for starts, stride, length in zip((layout.lefts, layout.tops), strides, (width, height), strict=True):
        assert round((length - size) / (len(starts) - 1), 2) == stride
        assert starts == np.linspace(0, length - size, len(starts)).round().astype(int).tolist()
    assert width * height == pixels
    assert round(pixels / (grid[0] * grid[1] * size**2), 3) == ipc


@pytest.mark.parametrize("length", [28, 29, 45, 100])
@pytest.mark.parametrize("num", [1, 2, 3, 7, 16])
def test_windows_begin_at_the_border_end_at_the_border_and_are_evenly_spread(length, num):
    """T-PODD-2."""
    starts = poster.offsets(length, 28, num)
    gaps = [after - before for before, after in pairwise(starts)]
    assert starts[0] == 0 and len(starts) == num
    assert num == 1 or starts[-1] == length - 28
    assert not gaps or (min(gaps) >= 0 and max(gaps) - min(gaps) <= 1)


def test_halves_are_rounded_to_even():
    assert poster.offsets(12, 1, 23) == [round(Fraction(k, 2)) for k in range(23)]
    assert poster.offsets(12, 1, 23)[:6] == [0, 0, 1, 2, 2, 2]


@pytest.mark.parametrize("width, height, patches_x, patches_y", [(40, 31, 3, 2), (64, 28, 4, 1), (98, 39, 8, 4)])
def test_every_pixel_is_covered_when_strides_are_at_most_a_patch(width, height, patches_x, patches_y):
    """T-PODD-3, and T-PODD-4: the gradient of the sum of all patches is how often a pixel is covered."""
    layout = poster.Layout(width, height, 28, 28, patches_x, patches_y)
    picture = torch.randn(2, height, width, dtype=torch.float64, requires_grad=True)
    layout.extract(picture, layout.index(len(picture))).sum().backward()
    count = torch.zeros(height, width, dtype=torch.int64)
    for left in layout.lefts:
        for top in layout.tops:
            count[top:top + 28, left:left + 28] += 1
    assert count.min() >= 1
    assert torch.equal(layout.coverage(), count)
    assert torch.equal(picture.grad, count.double().expand(2, -1, -1))


def test_a_gap_between_patches_is_seen_in_the_coverage():
    assert poster.Layout(100, 28, 28, 28, 2, 1).coverage().min() == 0


def test_corner_pixels_of_the_cifar10_poster_are_covered_once_and_inner_ones_24_times():
    cover = layout_of("cifar10")[0].coverage()
    assert cover[0, 0] == 1 and cover[-1, -1] == 1 and cover.max() == 24


def test_patches_are_slices_of_the_poster_column_by_column():
    layout = poster.Layout(41, 37, 10, 8, 4, 3)
    picture = torch.randn(3, 37, 41)
    patches = layout.extract(picture, layout.index(len(picture)))
    slices = [picture[:, top:top + 8, left:left + 10] for left in layout.lefts for top in layout.tops]
    assert torch.equal(patches, torch.stack(slices))


def test_merging_the_patches_of_a_poster_gives_the_poster():
    layout = poster.Layout(41, 37, 10, 9, 6, 5)
    picture = torch.randn(3, 37, 41, dtype=torch.float64)
    merged, count = layout.merge(layout.extract(picture, layout.index(len(picture))))
    torch.testing.assert_close(merged, picture)
    assert torch.equal(count, layout.coverage())


def test_a_cyclic_poster_covers_all_its_pixels_alike():
    layout = poster.Layout(40, 30, 20, 10, 4, 6, cyclic=True)
    assert layout.lefts == [0, 10, 20, 30] and layout.tops == [0, 5, 10, 15, 20, 25]
    assert layout.coverage().unique().tolist() == [4]
    picture = torch.randn(1, 30, 40)
    last = layout.extract(picture, layout.index(len(picture)))[-1]
    assert torch.equal(last, picture.roll((-25, -30), dims=(1, 2))[:, :10, :20])


@pytest.mark.parametrize("cyclic", [False, True])
def test_shifted_patches_stay_on_the_poster_and_near_their_place(cyclic):
    layout = poster.Layout(60, 40, 28, 28, 5, 3, cyclic=cyclic)
    corners = layout.shifted(4, torch.Generator().manual_seed(0))
    move = (corners - layout.corners).abs()
    assert move.max() > 0
    if cyclic:
        sides = torch.tensor([40, 60])
        assert torch.minimum(move, sides - move).max() <= 4 and (corners >= 0).all() and (corners < sides).all()
    else:
        assert move.max() <= 4 and (corners >= 0).all() and (corners <= torch.tensor([12, 32])).all()
    assert torch.equal(layout.shifted(0, torch.Generator()), layout.corners)


@pytest.mark.parametrize("ipc", [0.3, 0.5, 0.7, 0.9, 1.0])
@pytest.mark.parametrize("grid, size", [((5, 2), 28), ((5, 2), 32), ((10, 10), 32), ((20, 10), 64)])
def test_a_poster_never_exceeds_its_budget(ipc, grid, size):
    """T-PODD-5; at 1 image per class the budget is met exactly."""
    width, height = poster.size_for(ipc, *grid, size, size)
    allowed = ipc * grid[0] * grid[1] * size**2
    assert width * height <= allowed + 1e-6 and (width + 1) * (height + 1) > allowed
    assert ipc < 1 or (width, height) == (grid[0] * size, grid[1] * size)


def test_the_usual_grids_are_the_published_ones():
    assert [poster.usual_grid(count) for count in (10, 100, 200, 7, 1)] == [(5, 2), (10, 10), (20, 10), (7, 1), (1, 1)]


def test_what_cannot_be_is_refused_with_what_would_work():
    with pytest.raises(ValueError, match=r"smaller than a patch of 28x28: choose ipc 0\.25 or more, or give the size 56x28"):
        poster.size_for(0.2, 5, 2, 28, 28)
    with pytest.raises(ValueError, match=r"choose ipc 1 or more, or give the size 98x28"):
        poster.size_for(0.5, 7, 1, 28, 28)
    with pytest.raises(ValueError, match=r"choose ipc 0\.25 or more$"):
        poster.size_for(0.05, 5, 2, 28, 28)
    assert min(poster.size_for(0.25, 5, 2, 28, 28)) == 28
    with pytest.raises(ValueError, match="27x30 is smaller than its patches of 28x28: choose at least 28x30"):
        poster.Layout(27, 30, 28, 28, 2, 2)
    for bad in (lambda: poster.Layout(30, 30, 28, 28, 0, 2), lambda: poster.size_for(-1, 5, 2, 28, 28), lambda: poster.offsets(3, 5, 2)):
        with pytest.raises(ValueError):
            bad()


# ---------------------------------------------------------------------------------------------------------------- labels

def windows_by_hand(layout: poster.Layout, order: torch.Tensor) -> torch.Tensor:
    """(N, C) pixels of each class in each patch, pixel by pixel."""
    grid_y, grid_x = order.shape
    counts = torch.zeros(len(layout), order.numel(), dtype=torch.int64)
    for number, (top, left) in enumerate(layout.corners.tolist()):
        for y in range(top, top + layout.patch_height):
            for x in range(left, left + layout.patch_width):
                row, column = y % layout.height * grid_y // layout.height, x % layout.width * grid_x // layout.width
                counts[number, order[row, column]] += 1
    return counts


@pytest.mark.parametrize("layout", [poster.Layout(23, 17, 6, 5, 5, 4), poster.Layout(20, 12, 8, 8, 3, 3, cyclic=True)])
def test_a_fixed_label_is_the_class_with_the_most_pixels(layout):
    order = torch.tensor([[3, 0, 5], [1, 4, 2]])
    counts = windows_by_hand(layout, order)
    labels = poster.fixed_labels(layout, order)
    for row, label in zip(counts.tolist(), labels.tolist(), strict=True):
        winners = [pixels == max(row) for pixels in row]
        assert label == pytest.approx([won / sum(winners) for won in winners])
    moved = layout.shifted(2, torch.Generator().manual_seed(1))
    assert torch.equal(layout.areas(3, 2, moved).sum(dim=1), torch.full((len(layout),), layout.patch_width * layout.patch_height))


def test_an_even_split_is_shared_evenly():
    """T-PODD-7, first half."""
    layout = poster.Layout(8, 4, 4, 4, 3, 1)                     # the second of three patches lies half on either class
    assert poster.fixed_labels(layout, torch.tensor([[1, 0]])).tolist() == [[0, 1], [0.5, 0.5], [1, 0]]


@pytest.mark.parametrize("patches", [(5, 2), (7, 3), (16, 6)])
def test_every_class_is_the_majority_somewhere_at_one_image_per_class(patches):
    """T-PODD-7, second half."""
    labels = poster.fixed_labels(poster.Layout(140, 56, 28, 28, *patches), in_order(5, 2))
    assert (labels == labels.amax(dim=1, keepdim=True)).any(dim=0).all()


def test_patches_that_are_the_cells_have_one_hot_labels():
    layout, order = poster.Layout(140, 56, 28, 28, 5, 2), torch.randperm(10).view(2, 5)
    wanted = torch.nn.functional.one_hot(order.T.flatten(), 10).float()
    for rule in ("paper", "code"):
        assert torch.equal(poster.fixed_labels(layout, order, rule), wanted)
    cells = poster.label_cells(layout, order)
    assert torch.equal(poster.learned_labels(cells, poster.label_windows(layout, 5, 2)), wanted)


def test_learned_labels_are_the_mean_of_the_upsampled_cells():
    layout, order = poster.Layout(23, 17, 6, 5, 5, 4), torch.randperm(6).view(2, 3)
    cells = torch.rand(6, 2, 3, dtype=torch.float64)
    big = cells[:, torch.arange(17) * 2 // 17][:, :, torch.arange(23) * 3 // 23]                      # (C, h, w), nearest
    means = torch.stack([big[:, top:top + 5, left:left + 6].mean(dim=(1, 2)) for top, left in layout.corners.tolist()])
    found = poster.learned_labels(cells, poster.label_windows(layout, 3, 2).double())
    torch.testing.assert_close(found, means / means.sum(dim=1, keepdim=True))
    assert poster.label_cells(layout, order).sum(dim=0).unique().tolist() == [1]


@pytest.mark.parametrize("name, largest, smallest", [("cifar10", 0.57, 0.32), ("cifar100", 0.56, 0.25)])
def test_learned_labels_begin_as_mixtures_in_which_every_class_leads_somewhere(name, largest, smallest):
    layout, grid = layout_of(name)
    cells = poster.label_cells(layout, in_order(*grid))
    assert cells.numel() == (grid[0] * grid[1]) ** 2             # T-PODD-10
    labels = poster.learned_labels(cells, poster.label_windows(layout, *grid))
    best = labels.amax(dim=1)
    assert best.mean() == pytest.approx(largest, abs=0.006) and best.min() == pytest.approx(smallest, abs=0.006)
    assert labels.argmax(dim=1).unique().numel() == grid[0] * grid[1]


def test_learned_labels_are_probabilities_even_where_all_was_clipped():
    """T-PODD-6."""
    layout = poster.Layout(23, 17, 6, 5, 5, 4)
    windows = poster.label_windows(layout, 3, 2)
    cells = torch.rand(6, 2, 3)
    cells[:, 0, 0] = 0                                           # the first patch lies in the empty cell
    for given, uniform in ((cells, [0]), (torch.zeros(6, 2, 3), list(range(len(layout))))):
        given = given.clone().requires_grad_()
        labels = poster.learned_labels(given, windows)
        assert (labels >= 0).all()
        torch.testing.assert_close(labels.sum(dim=1), torch.ones(len(layout)))
        assert torch.equal(labels[uniform], torch.full((len(uniform), 6), 1 / 6))
        (gradient,) = torch.autograd.grad(labels.square().sum(), given)
        assert gradient.isfinite().all() and (gradient.abs().sum() > 0) == (len(uniform) < len(layout))


@pytest.mark.parametrize("name, shape, missing", [("cifar100", (10, 9), 10), ("cub200", (9, 21), 20), ("tiny_imagenet", (10, 19), 10)])
def test_the_official_label_grid_leaves_classes_out(name, shape, missing):
    layout, grid = layout_of(name)
    cells = poster.label_cells(layout, in_order(*grid), "code")
    assert cells.shape[1:] == shape
    assert (cells.sum(dim=(1, 2)) == 0).sum() == missing
    windows = poster.label_windows(layout, shape[1], shape[0], "code")
    assert torch.equal(windows.sum(dim=1), torch.ones(len(layout)))                                   # one cell: nothing is mixed


def test_the_official_label_grid_is_right_at_exactly_one_image_per_class():
    cells = poster.label_cells(poster.Layout(320, 320, 32, 32, 20, 20), in_order(10, 10), "code")
    assert torch.equal(cells, poster.label_cells(poster.Layout(320, 320, 32, 32, 20, 20), in_order(10, 10)))


@pytest.mark.parametrize("name, tied", [("cifar10", 0), ("cifar100", 0), ("cub200", 60), ("tiny_imagenet", 0)])
def test_the_official_softmax_of_counts_is_one_hot_but_for_ties(name, tied):
    layout, grid = layout_of(name)
    labels = poster.fixed_labels(layout, in_order(*grid), "code")
    assert ((labels - labels.round()).abs().amax(dim=1) > 0.01).sum() == tied
    torch.testing.assert_close(labels.sum(dim=1), torch.ones(len(layout)))


# --------------------------------------------------------------------------------------------------------------- the set

def small(**changes) -> distilled.PosterSet:
    layout = poster.Layout(28, 24, 16, 16, 4, 3, cyclic=changes.pop("cyclic", False))
    return distilled.PosterSet.start(REAL, torch.tensor([[2, 0], [3, 1]]), layout, stream(0, "test"), **changes)


@pytest.mark.parametrize("learn_labels", [False, True])
@pytest.mark.parametrize("rule, cyclic", [("paper", False), ("paper", True), ("code", False)])
def test_a_saved_poster_comes_back_whole(tmp_path, learn_labels, rule, cyclic):
    syn = small(learn_labels=learn_labels, rule=rule, cyclic=cyclic, method="PoDD")
    syn.alpha = torch.tensor(0.5)
    again = distilled.load(syn.save(tmp_path / "poster.safetensors"))
    assert isinstance(again, distilled.PosterSet) and again.layout == syn.layout and again.rule == rule
    assert again.alpha == 0.5 and torch.equal(again.order, syn.order)
    for one, other in zip((*syn.all(), *syn.sources), (*again.all(), *again.sources), strict=True):
        assert torch.equal(one, other)


def test_the_budget_of_a_poster_counts_its_pixels_and_learned_labels():
    channels = REAL.shape[0]
    assert small().budget == channels * 28 * 24
    assert small(learn_labels=True).budget == channels * 28 * 24 + REAL.num_classes**2
    assert small(learn_labels=True).label_scalars == REAL.num_classes**2 and small().label_scalars == 0
    assert small(learn_labels=True).ipc == small().ipc == 28 * 24 / (REAL.num_classes * 16 * 16)


def test_draw_takes_patches_without_repeats_while_they_last():
    syn = small()
    images, labels = syn.draw(len(syn), torch.Generator().manual_seed(0))
    assert images.shape == (12, *REAL.shape) and labels.shape == (12, REAL.num_classes)
    assert len({tuple(image.flatten().tolist()) for image in images}) == 12


def test_noise_has_images_of_about_unit_length_and_real_starts_show_training_images():
    norms = small().all()[0].flatten(1).norm(dim=1)
    assert norms.min() > 0.8 and norms.max() < 1.2
    assert small(std=0.05).picture.std().item() == pytest.approx(0.05, rel=0.15)
    layout = poster.Layout(32, 32, 16, 16, 2, 2)
    tiled = distilled.PosterSet.start(REAL, torch.tensor([[2, 0], [3, 1]]), layout, stream(0, "test"), init="real")
    for image, label in zip(*tiled.all(), strict=True):
        of_class = REAL.preprocess(REAL.train.images[REAL.train.of_class(int(label.argmax()))])
        assert (of_class - image).flatten(1).norm(dim=1).min() < 1e-5


@pytest.mark.parametrize("kind", ["standardize", "zca_a", "zca_b"])
def test_the_picture_of_a_poster_is_the_mean_of_its_patches_brought_back_to_pixels(kind):
    real = data.load("toy", preprocess=kind)
    layout = poster.Layout(29, 26, 16, 16, 3, 3)
    syn = distilled.PosterSet.start(real, torch.tensor([[2, 0], [3, 1]]), layout, stream(0, "test"), init="real")
    total, count = torch.zeros(1, 26, 29), torch.zeros(26, 29)
    for left in layout.lefts:
        for top in layout.tops:
            total[:, top:top + 16, left:left + 16] += real.preprocess.inverse(syn.picture[None, :, top:top + 16, left:left + 16])[0]
            count[top:top + 16, left:left + 16] += 1
    torch.testing.assert_close(syn.poster_pixels(), (total / count).clamp(0, 1), rtol=1e-3, atol=1e-4)
    gap = distilled.PosterSet.start(real, torch.tensor([[2, 0], [3, 1]]), poster.Layout(40, 16, 16, 16, 2, 1), stream(0, "test"))
    assert (gap.poster_pixels()[:, :, 18:22] == 0.5).all()       # no patch looks there


def test_restoring_a_poster_restores_the_labels_that_its_order_gives():
    one = small()
    other = distilled.PosterSet.start(REAL, torch.tensor([[0, 1], [2, 3]]), one.layout, stream(1, "test"))
    other.load_state_dict(one.state_dict())
    for mine, its in zip(one.all(), other.all(), strict=True):
        assert torch.equal(mine, its)


def test_bad_posters_are_refused():
    for change, words in (({"init": "photo"}, "choose from noise, real"), ({"rule": "code", "cyclic": True}, "no cyclic posters"),
                          ({"rule": "mine"}, "choose from paper, code")):
        with pytest.raises(ValueError, match=words):
            small(**change)
    with pytest.raises(ValueError, match="patches are the training images, 16x16"):
        distilled.PosterSet.start(REAL, in_order(2, 2), poster.Layout(24, 24, 8, 8, 2, 2), stream(0, "test"))
    with pytest.raises(ValueError, match="does not cover a poster of 40x40"):
        distilled.PosterSet.start(REAL, in_order(2, 2), poster.Layout(40, 40, 16, 16, 2, 2), stream(0, "test"), init="real")
    good = small()
    twice = torch.zeros(2, 2, dtype=torch.int64)
    for picture, order, words in ((torch.zeros(1, 3, 3), good.order, "must be"), (good.picture, twice, "once")):
        with pytest.raises(ValueError, match=words):
            distilled.PosterSet(picture, order, good.layout, classes=REAL.classes, preprocess=REAL.preprocess)
    with pytest.raises(ValueError, match="at their places only"):
        poster.fixed_labels(good.layout, good.order, "code", good.layout.corners)
