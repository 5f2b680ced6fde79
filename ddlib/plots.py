"""Figures of the book: two widths, one colour per method, published numbers dashed grey, ours solid with a band.

Every function returns a `matplotlib.figure.Figure` that a notebook shows when it is the value of a cell. The figures do
not belong to pyplot, so nothing is shown twice, and no global setting is changed. Needs matplotlib.
"""

from __future__ import annotations

import io
import itertools
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import ArrayLike
from PIL import Image
from torch import Tensor

HALF = (3.5, 2.6)  # inches: half and full width of a page
FULL = (7.0, 3.2)
DPI = 110
PUBLISHED_GREY = "#767676"
CHOSEN_MARKERS = "oDs^vPX*"

# Chosen so that methods of one chapter stay apart on white for normal, red-blind and green-blind eyes;
# over all eighteen that is impossible, so every method has a marker too.
METHOD_COLORS = {
    "Random": "#56B4E9", "Herding": "#5D3A9B", "K-Center": "#CC6677", "Forgetting": "#2F4F4F",
    "DM": "#E69F00", "DC": "#0077BB", "DSA": "#009988", "MTT": "#1B4F72", "DDPP": "#CC3311",
    "KFS": "#9A7D0A", "ESP": "#4477AA", "RaT-BPTT": "#8B1A1A", "PoDD": "#D55E00",
    "CGAN": "#882255", "DiM": "#A0522D", "GLD": "#EE6677", "SKD": "#AA4499",
    "Full dataset": "#000000",
}
METHOD_MARKERS = {
    "Random": "o", "Herding": "s", "K-Center": "^", "Forgetting": "v", "DM": "D", "DC": "P", "DSA": "X", "MTT": "h",
    "DDPP": "*", "KFS": "<", "ESP": ">", "RaT-BPTT": "p", "PoDD": "H", "CGAN": "d", "DiM": "8", "GLD": "s", "SKD": "o",
    "Full dataset": ".",
}
OTHER_COLORS = ("#0077BB", "#D55E00", "#009988", "#AA4499", "#9A7D0A", "#2F4F4F")  # for names that are no method

STYLE: dict[str, Any] = {
    "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "xtick.labelsize": 8, "ytick.labelsize": 8,
    "legend.fontsize": 8, "legend.frameon": False, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": False, "lines.linewidth": 1.6, "lines.markersize": 4.5, "figure.facecolor": "white",
    "axes.facecolor": "white", "text.color": "#222222", "axes.labelcolor": "#222222", "axes.edgecolor": "#5f5f5f",
    "xtick.color": "#5f5f5f", "ytick.color": "#5f5f5f", "font.family": "DejaVu Sans", "image.interpolation": "nearest",
}
LETTERS = ("font.size", "axes.titlesize", "axes.labelsize", "xtick.labelsize", "ytick.labelsize", "legend.fontsize")
LARGER = 1.3  # letters of a full-width figure: a telephone shrinks it to less than half


class BookFigure(Figure):
    """A figure that any notebook can show, with or without `%matplotlib inline`."""

    letters: Any = None  # the sizes that were set when the figure was made
    tolerance: int = 8   # how far, of 255, a stored pixel may be from a drawn one, if that makes a palette of the figure

    def draw(self, renderer: Any) -> None:
        with style(), matplotlib.rc_context(self.letters):  # matplotlib makes ticks when it draws: they need the style too
            super().draw(renderer)

    def _repr_png_(self) -> bytes:
        return png(self)


def style(size: tuple[float, float] = HALF):
    """The book's style as a context: `with plots.style(): ...`; outside it nothing changes.

    size: of the figure to be made; one of more than about five inches gets larger letters.
    """
    defaults: Any = matplotlib.rcParamsDefault
    settings: Any = {name: value for name, value in defaults.items() if not name.startswith("backend")}
    return matplotlib.rc_context(settings | STYLE | {name: STYLE[name] * (LARGER if _wide(size[0]) else 1) for name in LETTERS})


def figure(size: tuple[float, float] = HALF) -> BookFigure:
    fig = BookFigure(figsize=size, dpi=DPI, layout="constrained")
    FigureCanvasAgg(fig)
    settings: Any = matplotlib.rcParams
    fig.letters = {name: settings[name] for name in LETTERS}
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None:  # whatever imports pyplot in a notebook (ipywidgets does) takes over figures, unless their class is known
        shell.display_formatter.formatters["image/png"].for_type(BookFigure, png)
    return fig


def png(fig: Figure, dpi: float | None = None) -> bytes:
    """The figure as PNG; the same figure gives the same bytes (no date, no version inside).

    A figure without colours, such as a grid of grey images, is stored as grey: the same picture in a third of the bytes.
    One with few colours, such as a chart, is stored with a palette if no pixel changes by more than 8 of 255 (`BookFigure.tolerance`).
    """
    drawn, stored = io.BytesIO(), io.BytesIO()
    fig.savefig(drawn, format="png", dpi=dpi or fig.dpi, pil_kwargs={"compress_level": 0})
    picture = Image.open(drawn).convert("RGB")
    red, green, blue = np.moveaxis(np.asarray(picture), -1, 0)
    if np.array_equal(red, green) and np.array_equal(green, blue):
        picture = picture.convert("L")
    else:
        indexed = picture.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        if np.abs(np.asarray(indexed.convert("RGB"), int) - np.asarray(picture, int)).max() <= getattr(fig, "tolerance", 8):
            picture = indexed
    picture.save(stored, "png", optimize=True)
    return stored.getvalue()


def color(name: str, index: int = 0) -> str:
    """The colour of a method; the `index`-th neutral colour for another name."""
    return METHOD_COLORS.get(name, OTHER_COLORS[index % len(OTHER_COLORS)])


def colors(names: Iterable[str]) -> dict[str, str]:
    """Colours of names that share a picture: of several versions of a method ("PoDD, fixed labels") the first has the method's own."""
    names = list(names)
    first = {name.partition(",")[0]: name for name in reversed(names)} | {name: name for name in names}
    own = {name: METHOD_COLORS[method] for method, name in first.items() if method in METHOD_COLORS}
    others = itertools.cycle(paint for paint in OTHER_COLORS if paint not in own.values())
    return {name: own.get(name) or next(others) for name in names}


# --------------------------------------------------------------------------------------------------------------- images


def image_grid(
    images: Tensor | ArrayLike,
    labels: Tensor | ArrayLike | None = None,
    classes: Sequence[str] | None = None,
    per_class: int | None = None,
    title: str | None = None,
    caption: str | None = None,
) -> Figure:
    """One row per class, class names at the left, in pixel space; with one image per class, tiles with their names below.

    images: (N, c, h, w), float in [0, 1] (what lies outside is clipped) or uint8, c = 1 or 3. labels: (N,) integers or
    (N, C) soft labels, of which the largest counts; without labels the images fill rows of ten.
    per_class: show only the first of each class. caption: by default the budget of all images in stored scalars.
    """
    pixels = _pixels(images)
    count, height, width, channels = pixels.shape
    if labels is None:
        columns = min(count, 10)
        rows = [pixels[i : i + columns] for i in range(0, count, columns)]
        names = [""] * len(rows)
        what = f"{count} images"
    else:
        target = _labels(labels, count)
        rows = [pixels[target == label] for label in np.unique(target)]
        names = [_class_name(classes, label) for label in np.unique(target)]
        most, least = max(map(len, rows)), min(map(len, rows))
        what = f"{len(rows)} classes × {most} image{'s' * (most > 1)}" if most == least else f"{count} images of {len(rows)} classes"
        if per_class is not None and per_class < most:
            what = f"{per_class} of {most} images per class shown; all: {what}"
            rows = [row[:per_class] for row in rows]
    if caption is None:
        caption = f"{what} × {channels}×{height}×{width} = {count * channels * height * width:,} scalars"
    if labels is not None and most == 1:
        return _tiles_figure([row[0] for row in rows], names, title, caption)
    return _rows_figure([(None, rows)], names, title, caption)


def selection_grid(
    methods: Mapping[str, Tensor | ArrayLike],
    labels: Tensor | ArrayLike | Mapping[str, Tensor | ArrayLike] | None = None,
    classes: Sequence[str] | None = None,
    title: str | None = None,
    caption: str | None = None,
) -> Figure:
    """What several methods choose: one block of columns per method, one row per class.

    methods: name to (N, c, h, w) pixels as in `image_grid`. labels: (N,) for all methods, or one per method; without
    labels each method has a single row.
    """
    if not methods:
        raise ValueError("selection_grid needs at least one method, as {name: images}")
    blocks: list[tuple[str | None, dict[int, np.ndarray]]] = []
    for name, images in methods.items():
        pixels = _pixels(images)
        given = labels[name] if isinstance(labels, Mapping) else labels
        target = np.zeros(len(pixels), int) if given is None else _labels(given, len(pixels))
        blocks.append((name, {int(label): pixels[target == label] for label in np.unique(target)}))
    every = sorted(set().union(*(block for _, block in blocks)))
    empty = next(iter(blocks[0][1].values()))[:0]
    rows = [(name, [block.get(label, empty) for label in every]) for name, block in blocks]
    if labels is None:
        return _stacked_figure(rows, title, caption)
    return _rows_figure(rows, [_class_name(classes, label) for label in every], title, caption)


def _tiles_figure(images: Sequence[np.ndarray], names: Sequence[str], title: str | None, caption: str | None) -> Figure:
    """Images (h, w, c) in rows of at most ten, each with its name below: one image per class would make a tall, empty column."""
    columns = 5 if len(images) <= 10 else 10
    lines = -(-len(images) // columns)
    below = _wrap(caption, FULL[0]) if caption else []
    tile = FULL[0] / columns * (0.72 if columns == 5 else 1)                            # inches
    with style():
        fig = figure((tile * columns, (tile + 0.06) * lines + 0.17 * len(below) + (0.3 if title else 0.06)))
        for ax, image, name in zip(fig.subplots(lines, columns, squeeze=False).flat, images, names, strict=False):
            ax.imshow(image[..., 0] if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            ax.set_xlabel(name, fontsize=9 if columns == 5 else 7, labelpad=2)
        for ax in fig.axes:
            ax.set_xticks([])
            ax.set_yticks([])
            ax.spines[:].set_visible(False)
        if title:
            fig.suptitle(title, x=0.01, ha="left", fontsize=9, weight="bold")
        if below:
            fig.supxlabel("\n".join(below), x=0.01, ha="left", fontsize=8, color="#5f5f5f", linespacing=1.3)
    return fig


def _stacked_figure(blocks, title, caption) -> Figure:
    """One row per method: for methods whose images have no classes."""
    return _rows_figure([(None, [rows[0] for _, rows in blocks])], [name for name, _ in blocks], title, caption)


def _rows_figure(
    blocks: Sequence[tuple[str | None, Sequence[np.ndarray]]],
    names: Sequence[str],
    title: str | None,
    caption: str | None,
) -> Figure:
    """Blocks of columns side by side, each a list of rows (n, h, w, c); drawn as one picture per block."""
    first = blocks[0][1][0]
    height, width, channels = first.shape[1:]
    gap = max(1, round(0.06 * height))
    counts = [max(1, *(len(row) for row in rows)) for _, rows in blocks]
    canvases = []
    for (_, rows), columns in zip(blocks, counts, strict=True):
        canvas = np.ones((len(rows) * (height + gap) - gap, columns * (width + gap) - gap, channels))
        for r, row in enumerate(rows):
            for k, image in enumerate(row):
                top, left = r * (height + gap), k * (width + gap)
                canvas[top : top + height, left : left + width] = image
        canvases.append(canvas)

    larger = LARGER if len(blocks) == 1 and max(counts) > 7 else 1  # a grid that fills the width
    left = 0.12 + 0.075 * larger * max((len(name) for name in names), default=0)  # inches for names at 9 points
    gutter = 0.14
    room = FULL[0] - left - gutter * (len(blocks) - 1) - 0.06
    cell = min(room / sum(canvas.shape[1] for canvas in canvases) * (height + gap), 0.62 if max(counts) > 3 else 0.45)  # inches per image
    scale = cell / (height + gap)
    wide = [max(canvas.shape[1] * scale, 0.085 * len(name or "")) for canvas, (name, _) in zip(canvases, blocks, strict=True)]
    top = 0.06 + (0.22 * larger if title else 0) + (0.2 if any(name for name, _ in blocks) else 0)
    caption_lines = _wrap(caption, FULL[0] / larger) if caption else []
    bottom = 0.06 + 0.17 * larger * len(caption_lines)
    picture = canvases[0].shape[0] * scale
    total_width = left + sum(wide) + gutter * (len(blocks) - 1) + 0.06
    total_width = max(total_width, HALF[0], *(0.2 + 0.068 * larger * len(line) for line in caption_lines or [""]))
    total_width = max(total_width, 0.2 + 0.075 * larger * len(title or ""))
    total_height = top + picture + bottom

    with style():
        fig = figure((total_width, total_height))
        fig.set_layout_engine("none")
        x = left
        for index, ((name, rows), canvas) in enumerate(zip(blocks, canvases, strict=True)):
            ax = fig.add_axes((x / total_width, bottom / total_height, canvas.shape[1] * scale / total_width, picture / total_height))
            shown = canvas[..., 0] if channels == 1 else canvas
            ax.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
            ax.set_xticks([])
            ax.set_yticks([])
            for spine in ax.spines.values():
                spine.set_visible(False)
            if index == 0:
                centres = [r * (height + gap) + (height - 1) / 2 for r in range(len(rows))]
                ax.set_yticks(centres, names, fontsize=9 * larger)
                ax.tick_params(length=0, pad=3, labelcolor="#222222")
            if name:
                ax.set_title(name, fontsize=9 * larger, weight="bold", pad=3)
            x += wide[index] + gutter
        if title:
            fig.text(0.06 / total_width, 1 - 0.05 / total_height, title, va="top", ha="left", fontsize=9 * larger, weight="bold")
        if caption_lines:
            fig.text(
                0.06 / total_width, 0.05 / total_height, "\n".join(caption_lines),
                va="bottom", ha="left", fontsize=8 * larger, color="#5f5f5f", linespacing=1.3,
            )
        return fig


# --------------------------------------------------------------------------------------------------------------- curves


def accuracy_curve(
    series: Mapping[str, tuple[ArrayLike, ArrayLike, ArrayLike | None]],
    xlabel: str,
    published: Mapping[str, tuple[Any, ...]] | None = None,
    *,
    ylabel: str = "test accuracy, %",
    title: str | None = None,
    log: bool | None = None,
    size: tuple[float, float] = FULL,
) -> Figure:
    """Accuracy against a budget: one solid line per method, mean with a band of one standard deviation.

    series: name to (x, mean, std), each (n,), accuracy in percent, std None or NaN where there is none.
    published: name to (x, mean[, std]), dashed grey with the method's marker. log: logarithmic x axis; by default when
    all x are positive and span more than a factor of 5.
    """
    if not series and not published:
        raise ValueError("accuracy_curve needs at least one series, as {method: (x, mean, std)}")
    with style(size):
        fig = figure(size)
        ax = fig.subplots()
        every: list[float] = []
        for name, line in (published or {}).items():
            x, mean = _sorted(name, line[0], line[1])
            every += list(x)
            ax.plot(x, mean, ls="--", lw=1.2, color=PUBLISHED_GREY, marker=METHOD_MARKERS.get(name, "o"), mfc="white",
                    label=f"{name}, published", zorder=2)
        paints = colors(series)
        for name, (xs, means, stds) in series.items():
            x, mean, std = _sorted(name, xs, means, np.zeros(np.size(means)) if stds is None else stds)
            every += list(x)
            paint, std = paints[name], np.nan_to_num(std)
            ax.fill_between(x, mean - std, mean + std, color=paint, alpha=0.22, lw=0, zorder=3)
            ax.plot(x, mean, color=paint, marker=METHOD_MARKERS.get(name, "o"), label=name, zorder=4)
            if len(x) == 1 and std[0] > 0:  # a band of zero width is invisible
                ax.errorbar(x, mean, std, color=paint, capsize=3, lw=1.2, zorder=4)
        if log is None:
            log = min(every) > 0 and max(every) / min(every) > 5
        if log:
            ax.set_xscale("log")
            ticks = sorted(set(every))
            ax.xaxis.set_major_locator(FixedLocator(_apart(ticks)))
            ax.xaxis.set_minor_locator(NullLocator())
            ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        _finish(ax, xlabel, ylabel, title)
        _legend(fig, ax)
        return fig


def accuracy_against(
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float, float]]]],
    level: tuple[float, str] | None = None,
    *,
    ylabel: str = "test accuracy, %",
    size: tuple[float, float] | None = None,
) -> Figure:
    """Accuracy against several costs, one panel below another, all on logarithmic axes: {axis label: {method: its points}}.

    A point is (cost, mean, standard deviation). Points of a method are joined in their order, with a band where the costs rise.
    level: an accuracy to compare with and its name, a dashed grey line.
    """
    names = list(dict.fromkeys(name for panel in panels.values() for name in panel))
    if not names:
        raise ValueError("accuracy_against needs at least one method, as {axis label: {method: [(cost, mean, std)]}}")
    size = size or (HALF[0], 2.3 * len(panels) + 0.17 * math.ceil(len(names) / 3) + 0.3)
    paints = colors(names)
    with style(size):
        fig = figure(size)
        fig.tolerance = 64                                   # bands over bands have thousands of colours, and edges that nobody sees
        for ax, (xlabel, panel) in zip(fig.subplots(len(panels), 1, squeeze=False).flat, panels.items(), strict=True):
            if level:
                ax.axhline(level[0], ls="--", lw=1.2, color=PUBLISHED_GREY, label=level[1])
            for name, found in panel.items():
                x, mean, std = (np.array(column, float) for column in zip(*found, strict=True))
                if len(x) > 1 and (np.diff(x) > 0).all():
                    ax.fill_between(x, mean - std, mean + std, color=paints[name], alpha=0.15, lw=0)
                ax.plot(x, mean, color=paints[name], lw=0.8, alpha=0.6)
                ax.errorbar(x, mean, std, color=paints[name], fmt=METHOD_MARKERS.get(name.partition(",")[0], "o"), elinewidth=0.8, ms=4,
                            label=name)
            ax.set_xscale("log")
            ax.xaxis.set_minor_locator(NullLocator())
            ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
            _finish(ax, xlabel, ylabel, None)
        fig.legend(*fig.axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=3, columnspacing=0.8, handlelength=1.2,
                   handletextpad=0.5)
        return fig


def loss_curve(
    losses: Mapping[str, ArrayLike] | ArrayLike,
    xlabel: str = "step",
    ylabel: str = "loss",
    *,
    every: int = 1,
    smooth: int = 1,
    log: bool = False,
    title: str | None = None,
    size: tuple[float, float] = HALF,
) -> Figure:
    """Loss against the step. losses: (n,) or {name: (n,)}, one value per `every` steps.

    smooth: length of a running mean, drawn over the faint raw values. log: logarithmic y axis.
    """
    lines = dict(losses) if isinstance(losses, Mapping) else {"": losses}
    with style(size):
        fig = figure(size)
        ax = fig.subplots()
        for index, (name, values) in enumerate(lines.items()):
            raw = _vector(values)
            if not len(raw):
                raise ValueError(f"loss_curve got no values{f' for {name!r}' if name else ''}; run at least one step")
            steps, paint = np.arange(len(raw)) * every, color(name, index)
            mean = raw
            if smooth > 1:
                ax.plot(steps, raw, color=paint, lw=0.7, alpha=0.3)
                window = np.ones(min(smooth, len(raw)))
                mean = np.convolve(raw, window, "valid") / len(window)
                steps = steps[len(window) // 2 :][: len(mean)]  # centred: a trailing mean would lag behind
            ax.plot(steps, mean, color=paint, label=name or None, marker="o" if len(mean) == 1 else None)
        if log:
            ax.set_yscale("log")
        _finish(ax, xlabel, ylabel, title)
        if any(lines):
            ax.legend()
        return fig


def bars(
    values: Mapping[str, tuple[float, float | None] | float],
    ylabel: str = "test accuracy, %",
    published: Mapping[str, tuple[float, float | None] | float] | None = None,
    *,
    title: str | None = None,
    size: tuple[float, float] = FULL,
) -> Figure:
    """One bar per method with its spread and its value; published numbers as a dashed grey line across the bar.

    values: name to mean or (mean, std); std may be None. Methods only in `published` show an empty place: not run.
    """
    published = dict(published or {})
    names = list(dict.fromkeys([*values, *published]))
    if not names:
        raise ValueError("bars needs at least one value, as {method: (mean, std)}")
    with style(size):
        fig = figure(size)
        ax = fig.subplots()
        tops = []
        for index, name in enumerate(names):
            if name in values:
                mean, std = _pair(values[name])
                ax.bar(index, mean, 0.62, color=color(name, index), zorder=2)
                if std:
                    ax.errorbar(index, mean, std, color="#222222", capsize=3, lw=1.1, zorder=4)
                top = mean + (std or 0)
                text = f"{mean:.1f}" + (f"±{std:.1f}" if std is not None else "")
            else:
                top, text = 0.0, "not run"
            if name in published:
                paper, _ = _pair(published[name])
                label = "published" if name == next(iter(published)) else None
                ax.plot([index - 0.42, index + 0.42], [paper, paper], ls="--", lw=1.4, color=PUBLISHED_GREY, zorder=3,
                        label=label)
                if abs(paper - top) < 0.1 * max(top, paper) or name not in values:
                    top = max(top, paper) if name in values else top  # keep the number off the dashed line
            tops.append(top)
            ax.annotate(text, (index, top), (0, 3), textcoords="offset points", ha="center", va="bottom",
                        fontsize=matplotlib.rcParams["xtick.labelsize"], zorder=5)
        papers = [_pair(value)[0] for value in published.values()]
        ax.set_ylim(min(0, *tops, 0), 1.12 * max([*tops, *papers, 1e-12]))
        ax.set_xlim(-0.6, len(names) - 0.4)
        rotate = sum(len(name) for name in names) * 0.085 * (LARGER if _wide(size[0]) else 1) > size[0] - 0.7
        ax.set_xticks(range(len(names)), names, rotation=30 if rotate else 0, ha="right" if rotate else "center")
        ax.tick_params(axis="x", length=0, labelcolor="#222222")
        _finish(ax, "", ylabel, title)
        if published:
            _legend(fig, ax)
        return fig


def dots(
    values: Mapping[str, Mapping[str, Sequence[float]]],
    xlabel: str,
    ylabel: str = "test accuracy, %",
    *,
    band: str | None = None,
    colors: Mapping[str, str] | None = None,
    title: str | None = None,
    size: tuple[float, float] = (3.5, 3.0),
) -> Figure:
    """Single measurements as dots and their means as dashes: {place on the x axis: {series: values}}.

    band: a series of which the mean, plus and minus one standard deviation, is shaded over the whole width.
    """
    series = list(dict.fromkeys(name for place in values.values() for name in place))
    if not series:
        raise ValueError("dots needs at least one value, as {place: {series: [values]}}")
    paint = {name: (colors or {}).get(name) or color(name, index) for index, name in enumerate(series)}
    with style():
        fig = figure(size)
        ax = fig.subplots()
        shaded = [value for place in values.values() for value in place.get(band or "", ())]
        if len(shaded) > 1:
            middle, half = np.mean(shaded), np.std(shaded, ddof=1)
            ax.axhspan(float(middle - half), float(middle + half), color=paint[band or ""], alpha=0.15, lw=0)
        for index, place in enumerate(values.values()):
            for turn, (name, given) in enumerate(place.items()):
                at = index + (turn - (len(place) - 1) / 2) * 0.34
                label = name if name in series else None
                series = [other for other in series if other != name]                  # a series is named once in the legend
                ax.plot([at] * len(given), given, "o", color=paint[name], alpha=0.6, label=label)
                ax.plot([at - 0.14, at + 0.14], [np.mean(given)] * 2, color=paint[name], lw=2)
        ax.set_xticks(range(len(values)), list(values))
        _finish(ax, xlabel, ylabel, title)
        fig.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=3)
        return fig


def signs(
    measured: Mapping[str, Sequence[tuple[float, float]]],
    printed: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    *,
    xlabel: str = "gain, points\n(even up to ±1, logarithmic beyond)",
    size: tuple[float, float] | None = None,
) -> Figure:
    """Gains of claims, one line for each: dots with bars, dark where the bar leaves out zero; printed ones grey.

    measured, printed: claim to its gains, each (points, half the length of its bar), such as a 95 % range; an infinite one has no
    bar and is not dark. Distances are linear up to one point and logarithmic beyond, because gains of a tenth and of ten points
    share the picture.
    """
    names = list(dict.fromkeys([*measured, *(printed or {})]))
    if not names:
        raise ValueError("signs needs at least one claim, as {claim: [(gain, half of its range)]}")
    size = size or (HALF[0], 0.42 * len(names) + 1.1)
    with style(size):
        fig = figure(size)
        fig.tolerance = 64                                                      # pale bars over one another, as above
        ax = fig.subplots()
        ax.axvline(0, color="#222222", lw=0.8, zorder=1)
        for line, name in enumerate(names):
            rows = [("print", list((printed or {}).get(name, ()))), ("ours", list(measured.get(name, ())))]
            for (whose, found), middle in zip(rows, (-0.27, 0.13), strict=True):
                for turn, (gained, reach) in enumerate(sorted(found)):
                    at = line + middle + (0 if len(found) == 1 or whose == "print" else 0.42 * (turn / (len(found) - 1) - 0.5))
                    sure = abs(gained) > reach
                    paint = PUBLISHED_GREY if whose == "print" else "#D55E00" if sure and gained < 0 else "#0077BB" if sure else "#9aa4b2"
                    if math.isfinite(reach):
                        ax.plot([gained - reach, gained + reach], [at, at], color=paint, lw=0.8, alpha=0.6, zorder=2)
                    ax.plot(gained, at, "o", color=paint, mfc="white" if whose == "print" else paint, ms=3.2, zorder=3)
            if line:
                ax.axhline(line - 0.5, color="#d8dee4", lw=0.6)
        ax.set_xscale("symlog", linthresh=1, linscale=0.7)
        ax.xaxis.set_major_locator(FixedLocator([-20, -5, -1, 0, 1, 5, 20]))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}".replace("-", "−")))
        ax.set_yticks(range(len(names)), [name.replace(" over ", "\nover ", 1) for name in names])
        ax.set_ylim(len(names) - 0.5, -0.5)
        ax.tick_params(axis="y", length=0)
        _finish(ax, xlabel, "", None)
        ax.grid(axis="x", color="#d8dee4", lw=0.6)
        ax.grid(visible=False, axis="y")
        for whose, paint, face in (("printed", PUBLISHED_GREY, "white"), ("ours, range with 0 in it", "#9aa4b2", None),
                                   ("ours, ahead", "#0077BB", None), ("ours, behind", "#D55E00", None)):
            ax.plot([], [], "o", color=paint, mfc=face or paint, ms=3.2, label=whose)
        fig.legend(*ax.get_legend_handles_labels(), loc="outside upper left", ncols=2, columnspacing=1.0, handlelength=1.2)
        return fig


def features_scatter(
    points: Tensor | ArrayLike,
    chosen: Mapping[str, Tensor | ArrayLike] | Tensor | ArrayLike | None = None,
    labels: Tensor | ArrayLike | None = None,
    classes: Sequence[str] | None = None,
    *,
    title: str | None = None,
    xlabel: str = "first direction",
    ylabel: str = "second direction",
    size: tuple[float, float] = FULL,
) -> Figure:
    """Images as points of a plane, the chosen ones marked.

    points: (N, 2). chosen: indices (n,), or {method: indices}, drawn in the method's colour with a dark edge; a name that
    is no method takes the colour of each point's class. labels: (N,) integers; without them all points are grey, with them
    each class has a faint colour.
    """
    plane = _array(points).astype(float)
    if plane.ndim != 2 or plane.shape[1] != 2:
        raise ValueError(f"features_scatter needs points of shape (N, 2), got {plane.shape}; project features first")
    picks = dict(chosen) if isinstance(chosen, Mapping) else {} if chosen is None else {"chosen": chosen}
    with style(size):
        fig = figure(size)
        ax = fig.subplots()
        dot: dict[str, Any] = {"s": 9, "lw": 0, "alpha": 0.55 if len(plane) < 2000 else 0.3}
        paints = np.full((len(plane), 4), to_rgba("#222222"))  # of a chosen point that belongs to no method
        if labels is None:
            ax.scatter(plane[:, 0], plane[:, 1], color="#9aa4b2", label="all images", **dot)
        else:
            target = _labels(labels, len(plane))
            for index, label in enumerate(np.unique(target)):
                rows = target == label
                paints[rows] = matplotlib.colormaps["tab10"](index % 10)
                ax.scatter(plane[rows, 0], plane[rows, 1], color=paints[rows][0], label=_class_name(classes, label), **dot)
        for index, (name, which) in enumerate(picks.items()):
            rows = _array(which).astype(int)
            marker = METHOD_MARKERS.get(name, CHOSEN_MARKERS[index % len(CHOSEN_MARKERS)])
            mark: dict[str, Any] = {"s": 58, "marker": marker, "edgecolor": "#222222", "lw": 0.8, "zorder": 5}
            paint = METHOD_COLORS.get(name)
            ax.scatter(plane[rows, 0], plane[rows, 1], color=paint or paints[rows], **mark)
            ax.scatter([], [], color=paint or ("#222222" if labels is None else "white"), label=name, **mark)
        _finish(ax, xlabel, ylabel, title)
        _legend(fig, ax)
        return fig


# ---------------------------------------------------------------------------------------------------------- small parts


def _wide(inches: float) -> bool:
    """Nearer to the full width of a page than to half of it."""
    return inches > (HALF[0] + FULL[0]) / 2


def _finish(ax: Axes, xlabel: str, ylabel: str, title: str | None) -> None:
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.grid(axis="y", color="#d8dee4", lw=0.6)
    ax.set_axisbelow(True)
    if title:
        ax.set_title(title, loc="left", weight="bold")


def _legend(fig: Figure, ax: Axes) -> None:
    """Beside the axes on a full-width figure, above them on a half-width one, so that it never covers data."""
    handles, names = ax.get_legend_handles_labels()
    if not handles:
        return
    if _wide(fig.get_figwidth()):
        fig.legend(handles, names, loc="outside right upper")
    else:
        fig.legend(handles, names, loc="outside upper left", ncols=2, columnspacing=1.0, handlelength=1.6)


def _apart(ticks: Sequence[float], factor: float = 1.35) -> list[float]:
    """Ticks far enough from each other to be read on a logarithmic axis."""
    kept: list[float] = []
    for tick in ticks:
        if not kept or tick / kept[-1] > factor:
            kept.append(tick)
    return kept


def _sorted(name: str, *columns: ArrayLike) -> tuple[np.ndarray, ...]:
    arrays = [_vector(column) for column in columns]
    if len({len(array) for array in arrays}) != 1 or not len(arrays[0]):
        sizes = ", ".join(str(len(array)) for array in arrays)
        raise ValueError(f"{name} needs x, mean and std of one length of at least 1, got {sizes}")
    order = np.argsort(arrays[0], kind="stable")
    return tuple(array[order] for array in arrays)


def _pair(value: tuple[float, float | None] | float) -> tuple[float, float | None]:
    if isinstance(value, int | float):
        return float(value), None
    mean, std = value
    return float(mean), None if std is None or math.isnan(std) else float(std)


def _array(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _vector(values: ArrayLike) -> np.ndarray:
    if isinstance(values, Sequence):
        values = [math.nan if value is None else float(value) for value in values]
    return np.atleast_1d(_array(values)).astype(float)


def _pixels(images: Tensor | ArrayLike) -> np.ndarray:
    """(N, c, h, w) in [0, 1] or uint8 -> (N, h, w, c) float in [0, 1]."""
    array = _array(images.float() if isinstance(images, Tensor) and images.dtype == torch.bfloat16 else images)
    if array.ndim != 4 or array.shape[1] not in (1, 3) or not len(array):
        raise ValueError(f"images must have shape (N, c, h, w) with N >= 1 and c = 1 or 3, got {array.shape}")
    floats = array / 255 if array.dtype == np.uint8 else array.astype(float)
    if not np.isfinite(floats).all():
        raise ValueError("images contain NaN or infinite values; nothing can be shown")
    return floats.clip(0, 1).transpose(0, 2, 3, 1)


def _labels(labels: Tensor | ArrayLike, count: int) -> np.ndarray:
    array = _array(labels)
    array = array.argmax(axis=1) if array.ndim == 2 else array
    if array.shape != (count,):
        raise ValueError(f"labels must have shape ({count},) or ({count}, C), one per image, got {array.shape}")
    return array.astype(int)


def _class_name(classes: Sequence[str] | None, label: int) -> str:
    return str(label) if classes is None else str(classes[label])


def _wrap(text: str, inches: float) -> list[str]:
    import textwrap

    return textwrap.wrap(text, int(inches / 0.068))
