"""Figures: what they show, what they refuse, and that they leave matplotlib as they found it."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib")
import matplotlib
from matplotlib.colors import to_rgb
from PIL import Image

from ddlib import papers, plots

CLASSES = ("coat", "bag", "dress")


def images(per_class=4, channels=1):
    rng = torch.Generator().manual_seed(0)
    return torch.rand(3 * per_class, channels, 8, 8, generator=rng), torch.arange(3).repeat_interleave(per_class)


def texts(fig):
    ax = fig.axes[0]
    found = [t.get_text() for t in (*fig.texts, *ax.texts, *ax.get_xticklabels(), *ax.get_yticklabels())]
    return [*found, ax.get_xlabel(), ax.get_ylabel(), ax.get_title(), ax.get_title(loc="left")]


def legend(fig):
    owner = fig.legends or [fig.axes[0].get_legend()]
    return [t.get_text() for t in owner[0].get_texts()]


def linear(color):
    c = np.array(to_rgb(color))
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def perceived(color, eye):
    """OKLab coordinates of a colour seen by an eye (Machado et al., 2009, severity 1)."""
    eyes = {
        "normal": np.eye(3),
        "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
        "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    }
    rgb = np.clip(np.array(eyes[eye]) @ linear(color), 0, 1)
    lms = [[0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.6300]] @ rgb
    return [[0.2105, 0.7936, -0.0041], [1.9780, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]] @ np.cbrt(lms)


def test_every_method_of_the_book_has_a_colour_and_a_marker():
    book = {"Random", "Herding", "K-Center", "Forgetting", "DC", "DSA", "DM", "MTT", "DDPP", "KFS", "ESP", "RaT-BPTT",
            "PoDD", "CGAN", "DiM", "GLD", "SKD", "Full dataset"}
    assert set(plots.METHOD_COLORS) == set(plots.METHOD_MARKERS) == book <= set(papers.method_names())
    assert len(set(plots.METHOD_COLORS.values())) == len(book)


@pytest.mark.parametrize("eye", ["normal", "deuteranopia", "protanopia"])
@pytest.mark.parametrize(
    "together",
    [
        ("Random", "Herding", "K-Center", "Forgetting", "DM", "Full dataset"),
        ("Random", "DM", "DC", "DSA", "MTT", "DDPP", "Full dataset"),
        ("Random", "DM", "MTT", "KFS", "ESP", "Full dataset"),
        ("Random", "DM", "MTT", "RaT-BPTT", "PoDD", "Full dataset"),
        ("Random", "DM", "CGAN", "DiM", "GLD", "SKD", "Full dataset"),
    ],
)
def test_methods_of_one_chapter_stay_apart_for_every_eye(together, eye):
    seen = {name: perceived(plots.METHOD_COLORS[name], eye) for name in together}
    for one, other in itertools.combinations(together, 2):
        assert np.linalg.norm(seen[one] - seen[other]) > 0.1, (one, other)


def test_nothing_global_changes_and_no_figure_is_left_with_pyplot():
    import matplotlib.pyplot as plt

    before, open_figures = dict(matplotlib.rcParams), plt.get_fignums()
    plots.png(plots.accuracy_curve({"DM": ([1, 10], [50, 60], [1, 1])}, "ipc"))
    plots.image_grid(*images())
    assert dict(matplotlib.rcParams) == before and plt.get_fignums() == open_figures


def test_the_callers_settings_do_not_leak_into_a_figure():
    plain = plots.png(plots.bars({"DM": (60, 1)}))
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red"}):
        assert plots.png(plots.bars({"DM": (60, 1)})) == plain


def test_the_same_figure_gives_the_same_bytes():
    first, second = (plots.png(plots.image_grid(*images(), CLASSES)) for _ in range(2))
    assert first == second and first.startswith(b"\x89PNG") and b"matplotlib" not in first.lower()
    assert plots.image_grid(*images())._repr_png_()[:4] == b"\x89PNG"


def test_a_notebook_shows_our_bytes_also_after_pyplot_took_over_all_figures():
    shells = pytest.importorskip("IPython.core.interactiveshell")
    from IPython.core.pylabtools import select_figure_formats

    shell = shells.InteractiveShell.instance()
    try:
        for _ in range(2):
            fig = plots.bars({"DM": (60, 1)})
            assert shell.display_formatter.format(fig)[0]["image/png"] == plots.png(fig)
            select_figure_formats(shell, {"png"}, bbox_inches="tight")  # what the inline backend does when pyplot is imported
            assert shell.display_formatter.format(fig)[0]["image/png"] == plots.png(fig)
    finally:
        shells.InteractiveShell.clear_instance()


def test_charts_are_stored_with_a_palette_and_coloured_pictures_are_not():
    def drawn(fig):
        fig.canvas.draw()
        return np.asarray(fig.canvas.buffer_rgba())[..., :3].astype(int)

    def stored(fig):
        return Image.open(io.BytesIO(plots.png(fig)))

    chart = plots.accuracy_curve({"DM": ([1, 10], [50, 60], [3, 1]), "Random": ([1, 10], [40, 50], [9, 1])}, "ipc")
    assert stored(chart).mode == "P"
    assert np.abs(np.asarray(stored(chart).convert("RGB")).astype(int) - drawn(chart)).max() <= 8
    grid = plots.image_grid(*images(channels=3), CLASSES)
    assert stored(grid).mode == "RGB"
    assert np.array_equal(np.asarray(stored(grid)), drawn(grid))


def test_a_grid_has_a_row_per_class_and_its_budget():
    fig = plots.image_grid(*images(), CLASSES, title="three classes")
    shown = fig.axes[0].images[0].get_array()
    assert shown.shape == (3 * 9 - 1, 4 * 9 - 1)
    assert {*CLASSES, "three classes"} <= set(texts(fig))
    assert any("768 scalars" in text for text in texts(fig))


def test_a_grid_puts_each_image_where_its_label_says():
    pixels, labels = images(2)
    order = torch.tensor([5, 0, 3, 1, 4, 2])
    shown = plots.image_grid(pixels[order], labels[order]).axes[0].images[0].get_array()
    assert np.allclose(shown[9:17, :8], pixels[3, 0])   # first image of class 1 in the given order


def test_a_shortened_grid_still_counts_everything():
    fig = plots.image_grid(*images(), CLASSES, per_class=2)
    assert any(text.startswith("2 of 4 images per class shown") and "768" in text for text in texts(fig))
    assert fig.axes[0].images[0].get_array().shape == (3 * 9 - 1, 2 * 9 - 1)


def test_pixels_are_clipped_bytes_are_scaled_and_soft_labels_take_their_largest():
    pixels, labels = images(1, channels=3)
    for wild in (pixels * 4 - 2, pixels[:, :1] * 4 - 2):
        shown = plots.image_grid(wild, labels).axes[0].images[0].get_array()
        assert shown.min() == 0 and shown.max() == 1
    as_bytes = plots.image_grid((pixels * 255).round().to(torch.uint8), torch.eye(3)).axes[0].images[0].get_array()
    assert np.abs(as_bytes[:8, :8] - pixels[0].permute(1, 2, 0).numpy()).max() < 0.003


def test_a_grid_fits_the_page_and_crops_no_text():
    fig = plots.image_grid(*images(12), ["a rather long class name", "b", "c"], title="t" * 40)
    assert fig.get_figwidth() <= plots.FULL[0] + 0.01
    renderer = fig.canvas.get_renderer()
    for text in (*fig.texts, *fig.axes[0].get_yticklabels()):
        box = text.get_window_extent(renderer)
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= fig.bbox.x1 and box.y1 <= fig.bbox.y1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.rand(3, 8, 8),), "shape"),
        ((torch.rand(2, 4, 8, 8),), "c = 1 or 3"),
        ((torch.rand(0, 1, 8, 8),), "N >= 1"),
        ((torch.full((2, 1, 8, 8), float("nan")),), "NaN"),
        ((torch.rand(2, 1, 8, 8), torch.zeros(3)), "one per image"),
    ],
)
def test_a_grid_refuses_what_it_cannot_show(arguments, message):
    with pytest.raises(ValueError, match=message):
        plots.image_grid(*arguments)


def test_selections_stand_side_by_side_with_their_names():
    pixels, labels = images(2)
    fig = plots.selection_grid({"Random": pixels, "Herding": pixels.flip(0)}, {"Random": labels, "Herding": labels.flip(0)},
                               CLASSES)
    assert [ax.get_title() for ax in fig.axes] == ["Random", "Herding"]
    assert np.allclose(fig.axes[1].images[0].get_array()[:8, :8], pixels[1, 0])
    with pytest.raises(ValueError, match="at least one method"):
        plots.selection_grid({})


def test_selections_may_lack_a_class():
    pixels, labels = images(2)
    fig = plots.selection_grid({"Random": pixels, "DM": pixels[:2]}, {"Random": labels, "DM": labels[:2]}, CLASSES)
    assert fig.axes[1].images[0].get_array().shape[0] == 3 * 9 - 1


def test_letters_can_be_read_where_a_figure_is_350_pixels_wide():
    pixels, labels = images(10)
    wide = plots.bars({"Random": (51, 3.2), "DM": 70.24}, title="two methods")
    half = plots.bars({"Random": (51, 3.2), "DM": 70.24}, title="two methods", size=plots.HALF)
    for fig in (wide, half, plots.image_grid(pixels, labels, CLASSES), plots.loss_curve([1.0, 2.0], size=plots.FULL)):
        plots.png(fig)                                           # ticks are made when a figure is drawn
        letters = [text for text in fig.findobj(matplotlib.text.Text) if text.get_text() and text.get_visible()]
        assert letters and min(text.get_fontsize() for text in letters) / 72 / max(3.5, fig.get_figwidth()) * 350 >= 7


def test_ours_are_solid_and_coloured_published_dashed_and_grey():
    fig = plots.accuracy_curve({"DM": ([10, 1], [60, 50], [1, 2])}, "images per class", {"DM": ([1, 10], [70, 80])})
    paper, ours = fig.axes[0].lines
    assert paper.get_linestyle() == "--" and paper.get_color() == plots.PUBLISHED_GREY
    assert ours.get_linestyle() == "-" and ours.get_color() == plots.METHOD_COLORS["DM"]
    assert list(ours.get_xdata()) == [1, 10] and list(ours.get_ydata()) == [50, 60]
    band = fig.axes[0].collections[0].get_paths()[0].vertices[:, 1]
    assert band.min() == 48 and band.max() == 61
    assert legend(fig) == ["DM, published", "DM"] and fig.axes[0].get_xscale() == "log"


def test_the_first_version_of_a_method_has_its_colour_and_all_versions_differ():
    own = plots.METHOD_COLORS
    several = plots.colors(["Random", "Random, shrunk", "PoDD, fixed labels", "PoDD, learned labels"])
    assert several["Random"] == own["Random"] and several["PoDD, fixed labels"] == own["PoDD"] and len(set(several.values())) == 4
    assert plots.colors(["DM, poster", "DM"])["DM"] == own["DM"] != plots.colors(["DM, poster", "DM"])["DM, poster"]
    assert plots.colors(["PoDD, learned labels"]) == {"PoDD, learned labels": own["PoDD"]}
    assert list(plots.colors(["0.5 images", "1.0 images"]).values()) == list(plots.OTHER_COLORS[:2])


def test_a_curve_without_spread_or_with_one_point_is_drawn():
    plots.png(plots.accuracy_curve({"DM": ([1], [50], [2]), "DSA": ([1, 2], [50, 51], None)}, "epsilon", size=plots.HALF))
    with pytest.raises(ValueError, match="one length"):
        plots.accuracy_curve({"DM": ([1, 2], [50], None)}, "ipc")
    with pytest.raises(ValueError, match="at least one series"):
        plots.accuracy_curve({}, "ipc")


def test_a_running_mean_of_a_straight_line_is_the_line():
    fig = plots.loss_curve({"a": np.arange(20.0)}, smooth=5, every=10)
    raw, mean = fig.axes[0].lines
    assert np.allclose(mean.get_xdata() / 10, mean.get_ydata()) and len(raw.get_xdata()) == 20
    with pytest.raises(ValueError, match="no values"):
        plots.loss_curve([])


def test_bars_show_values_spread_and_what_was_not_run():
    fig = plots.bars({"Random": (51, 3.2), "DM": 70.24}, published={"DM": 71.5, "DSA": (70.6, None)})
    assert {"51.0±3.2", "70.2", "not run"} <= set(texts(fig)) and legend(fig) == ["published"]
    assert [bar.get_height() for bar in fig.axes[0].patches] == [51, 70.24]
    with pytest.raises(ValueError, match="at least one value"):
        plots.bars({})


def test_chosen_points_are_marked_in_the_methods_colour():
    points = np.arange(20.0).reshape(10, 2)
    fig = plots.features_scatter(points, {"Herding": [3]}, [0, 1] * 5, ["coat", "bag"])
    chosen = fig.axes[0].collections[-2]                        # the last one is for the legend
    assert np.allclose(chosen.get_offsets(), points[[3]])
    assert np.allclose(chosen.get_facecolor()[0, :3], to_rgb(plots.METHOD_COLORS["Herding"]))
    assert legend(fig) == ["coat", "bag", "Herding"]
    means = plots.features_scatter(points, {"class mean": [2, 3]}, [0, 1] * 5, ["coat", "bag"]).axes[0].collections
    assert [np.allclose(means[2].get_facecolor()[k, :3], means[k].get_facecolor()[0, :3]) for k in (0, 1)] == [True, True]
    assert not np.allclose(means[0].get_facecolor()[0, :3], means[1].get_facecolor()[0, :3]), "means have their classes' colours"
    with pytest.raises(ValueError, match=r"\(N, 2\)"):
        plots.features_scatter(np.zeros((4, 3)))


def test_dots_show_every_value_with_its_mean_and_the_band_of_one_series():
    fig = plots.dots({"off": {"off": [60.0, 64.0]}, "0.1": {"signed": [61.0], "absolute": [63.0, 65.0]}, "0.9": {"signed": [50.0]}},
                     "epsilon", band="off", colors={"signed": "#8b1a0e"})
    (ax,) = fig.axes
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    assert sorted(y for line in dots for y in line.get_ydata()) == [50, 60, 61, 63, 64, 65]
    assert sorted(line.get_ydata()[0] for line in ax.lines if line.get_marker() != "o") == [50, 61, 62, 64]
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["off", "signed", "absolute"]
    (band,) = ax.patches
    assert (band.get_y(), band.get_height()) == pytest.approx((62 - 8**0.5, 2 * 8**0.5))
    assert [line.get_color() for line in dots].count("#8b1a0e") == 2
    assert [text.get_text() for text in ax.get_xticklabels()] == ["off", "0.1", "0.9"]
    with pytest.raises(ValueError, match="at least one value"):
        plots.dots({}, "epsilon")


def test_signs_are_dark_only_where_the_bar_leaves_out_zero_and_printed_gains_are_hollow():
    fig = plots.signs({"A over B": [(1.0, 1.2), (3.0, 2.0), (-3.0, 2.0)]}, {"A over B": [(2.0, 0.1)], "C over D": [(0.2, float("inf"))]})
    dots = {line.get_xdata()[0]: line for line in fig.axes[0].lines if line.get_marker() == "o" and len(line.get_xdata()) == 1}
    assert set(dots) == {1.0, 3.0, -3.0, 2.0, 0.2}
    paint = {x: line.get_color() for x, line in dots.items()}
    assert len({paint[1.0], paint[3.0], paint[-3.0]}) == 3 and paint[2.0] == paint[0.2] == plots.PUBLISHED_GREY
    assert dots[2.0].get_markerfacecolor() == "white" != dots[3.0].get_markerfacecolor()
    bars = [tuple(line.get_xdata()) for line in fig.axes[0].lines if len(line.get_xdata()) == 2 and line.get_marker() == "None"]
    assert (1.0 - 1.2, 1.0 + 1.2) in bars and all(abs(sum(bar)) < 9 for bar in bars)      # a gain of unknown error has no bar
    assert [label.get_text() for label in fig.axes[0].get_yticklabels()] == ["A\nover B", "C\nover D"]
    with pytest.raises(ValueError, match="at least one claim"):
        plots.signs({})


def test_accuracy_against_costs_has_a_panel_for_each_cost_and_a_band_only_where_costs_rise():
    panels = {"numbers": {"DM": [(10, 50, 1), (100, 60, 1)]}, "minutes": {"DM": [(5, 50, 1), (1, 60, 1)]}}
    fig = plots.accuracy_against(panels, (90, "full"))
    assert [ax.get_xlabel() for ax in fig.axes] == ["numbers", "minutes"] and all(ax.get_xscale() == "log" for ax in fig.axes)
    assert [sum("PolyCollection" in type(patch).__name__ for patch in ax.collections) for ax in fig.axes] == [1, 0]
    assert legend(fig) == ["full", "DM"]
    with pytest.raises(ValueError, match="at least one method"):
        plots.accuracy_against({"numbers": {}})
