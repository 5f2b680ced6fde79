"""Knobs in two forms: in the published page (plain HTML, no kernel, no network) and live in a notebook (ipywidgets).

`knob()` has one drawing function and gives both: `.page()` computes every picture ahead and lets an HTML slider choose,
`.live()` calls the function. `page()` is for what the browser can compute itself from data, and `ipc_explorer()`,
`epsilon_explorer()`, `tau_explorer()`, `sweep_explorer()`, `poster_explorer()` and `cost_explorer()` are built on it. Every page
widget is `<div class="ddlib-widget" id=UID>` with a labelled range input and an output; `finder()`, a table with filters, is
`<div class="ddlib-finder" id=UID>`; ids are given or derived from the content, so an unchanged notebook stays byte-identical.
Needs matplotlib or ipywidgets only where a function uses them.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ddlib.papers import Point, Table

SPRITE_LIMIT = 120_000  # characters of the embedded pictures of `ipc_explorer`

# A light card of its own: the dark theme of the page puts light boxes behind outputs, and figures are white anyway.
_CSS = """
.ddlib-widget{color-scheme:light;color:#1f2328;background:#fff;border:1px solid #d0d7de;border-radius:6px;
padding:.7em .9em;margin:.3em 0;max-width:100%;box-sizing:border-box;font-size:.92rem;line-height:1.45}
.ddlib-widget .knob{display:flex;flex-wrap:wrap;align-items:center;gap:.3em .8em;margin-bottom:.5em}
.ddlib-widget .knob label{font-weight:600}
.ddlib-widget .knob input{flex:1 1 12em;min-width:0;max-width:28em;height:1.8em;margin:0;accent-color:#0969da}
.ddlib-widget .knob output{min-width:3.5em;font-variant-numeric:tabular-nums;font-weight:600}
.ddlib-widget input:focus-visible{outline:2px solid #0969da;outline-offset:3px}
.ddlib-widget .body{min-width:0;max-width:none}
.ddlib-widget .body img{display:block;max-width:100%;height:auto;padding:0;margin:0;background:#fff}
.ddlib-widget .body svg{display:block;max-width:100%}
@media (max-width:480px){.ddlib-widget .knob input{order:3;flex-basis:100%;max-width:none}}
"""

_SCRIPT = """
(function () {
  const here = document.currentScript;
  const root = (here && here.closest(".ddlib-widget")) || document.getElementById(%(uid)s);
  if (!root) return;
  const knob = root.querySelector("input"), shown = root.querySelector("output"), body = root.querySelector(".body");
  const values = %(values)s, texts = %(texts)s, data = %(data)s;
  const whenResized = redraw => {
    let seen = 0;
    if (window.ResizeObserver) new ResizeObserver(() => {
      if (body.clientWidth !== seen) { seen = body.clientWidth; redraw(); }
    }).observe(body);
  };
  const draw = (function () {
%(script)s
  })();
  function update() {
    const index = Math.max(0, Math.min(values.length - 1, Math.round((knob.value - knob.min) / knob.step)));
    shown.textContent = texts[index];
    knob.setAttribute("aria-valuetext", texts[index]);
    draw(values[index], index);
  }
  knob.addEventListener("input", update);
  update();
})();
"""


@dataclass(frozen=True)
class Widget:
    """A figure with a slider, as HTML that needs nothing else. A notebook shows it as the value of a cell."""

    uid: str
    html: str
    description: str

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return f"<page widget {self.uid}: {self.description}>"


# ------------------------------------------------------------------------------------------------- one knob, two forms


@dataclass(frozen=True)
class Knob:
    """One drawing function and one argument of it; see `knob`."""

    draw: Callable[..., Any]
    name: str
    values: tuple
    label: str
    span: tuple[float, float, float] | None = None

    def page(self, uid: str | None = None, **options: Any) -> Widget:
        """The form for the published page: `frames` over all values."""
        choice: dict[str, Any] = {self.name: self.values}
        return frames(self.draw, label=self.label, uid=uid, **options, **choice)

    def live(self, start: Any = None) -> Any:
        """The form for a notebook with a kernel: an ipywidgets slider that calls the drawing function."""
        return live(self.draw, label=self.label, start=start, **{self.name: self.span or list(self.values)})


def knob(
    draw: Callable[..., Any], *, label: str | None = None, span: tuple[float, float, float] | None = None, **choice: Any
) -> Knob:
    """Both forms of one knob: `knob(draw, tau=[0.5, 1, 2], span=(0.5, 8, 0.1))`, then `.page()` and `.live()`.

    draw: called as draw(tau=value), returns a matplotlib Figure. The one further keyword names its argument and lists
    the values of the page. span: (low, high, step) of the live slider, by default the same values.
    """
    name, values = _one_choice("knob", choice)
    return Knob(draw, name, _values(name, values), label or name, span)


def frames(
    draw: Callable[..., Any],
    *,
    label: str | None = None,
    uid: str | None = None,
    start: Any = None,
    text: Callable[[Any], str] | None = None,
    alt: Callable[[Any], str] | None = None,
    dpi: float = 80,
    **choice: Any,
) -> Widget:
    """Pictures computed ahead, one per value, and an HTML slider that chooses: `frames(draw, tau=[0.5, 1, 2, 4])`.

    draw: called as draw(tau=value) for every value, returns a matplotlib Figure. label: what the slider sets ("tau,
    temperature"). start: the value shown first (the first one). text, alt: how a value is printed beside the slider,
    and the description of its picture for readers who do not see it (label and value). uid: id of the HTML element,
    by default from the content. Pictures are stored in the page: keep them few, and of size plots.HALF, which a phone
    shows without shrinking its letters.
    """
    from ddlib.plots import png

    name, given = _one_choice("frames", choice)
    values = _values(name, given)
    label = label or name
    texts = [(text or _text)(value) for value in values]
    first = _index(name, values, start)
    sources = []
    for value in values:
        figure = _figure(draw, name, value)
        sources.append("data:image/png;base64," + base64.b64encode(png(figure, dpi)).decode("ascii"))
    alts = [alt(value) if alt else f"{label}: {printed}" for value, printed in zip(values, texts, strict=True)]
    body = f'<img src="{sources[first]}" alt="{escape(alts[first], quote=True)}">'
    stored: list[str | None] = [*sources]
    stored[first] = None  # it is in the page already
    script = """
    const image = body.querySelector("img");
    const sources = data.sources.map(source => source === null ? image.src : source);
    return function (value, index) { image.src = sources[index]; image.alt = data.alts[index]; };"""
    return page(
        uid, label=label, values=values, texts=texts, start=values[first], body=body, script=script,
        data={"sources": stored, "alts": alts},
    )


def live(draw: Callable[..., Any], *, label: str | None = None, start: Any = None, **choice: Any) -> Any:
    """An ipywidgets slider that calls draw(name=value) when it is released: `live(draw, tau=(0.5, 8.0, 0.1))`.

    The argument is (low, high, step), or a list of values. Needs a kernel: tag the cell `live` and store no output.
    """
    import ipywidgets

    name, given = _one_choice("live", choice)
    label = label or name
    common: dict[str, Any] = {
        "description": label, "continuous_update": False,
        "style": {"description_width": "initial"}, "layout": {"width": "min(32em, 95%)"},
    }
    if isinstance(given, tuple) and len(given) == 3 and all(isinstance(v, int | float) for v in given):
        low, high, step = given
        if not (low < high and step > 0):
            raise ValueError(f"{name} must be (low, high, step) with low < high and step > 0, got {given}")
        whole = all(isinstance(v, int) for v in given)
        kind = ipywidgets.IntSlider if whole else ipywidgets.FloatSlider
        slider = kind(value=low if start is None else start, min=low, max=high, step=step, **common)
    else:
        values = _values(name, given)
        options = [(_text(value), value) for value in values]
        slider = ipywidgets.SelectionSlider(options=options, index=_index(name, values, start), **common)
    show = {"auto_display": True}                              # without it the figure is made and never shown
    return ipywidgets.interactive(lambda **now: _figure(draw, name, now[name]), show, **{name: slider})


# ------------------------------------------------------------------------------------------------ computed by the browser


def page(
    uid: str | None,
    *,
    label: str,
    values: Sequence[Any],
    script: str,
    data: Any = None,
    body: str = "",
    start: Any = None,
    texts: Sequence[str] | None = None,
    css: str = "",
) -> Widget:
    """A widget that the browser computes: a slider over `values` and a JavaScript function that draws.

    script: the body of a function that sees `body` (the element below the slider), `data` (JSON of `data`), `values`
    and `texts`, may ask for `whenResized(redraw)`, and returns the drawing function (value, index) => ..., which is
    called at the start and whenever the slider moves. body: HTML below the slider, shown before the script runs; what it
    contains of others' text must be escaped.
    texts: how the values are printed. css: rules for this widget; start their selectors with `.ddlib-widget`.
    Evenly spaced numbers become the slider's own values; others are numbered 0, 1, 2, ...
    """
    numbers = _values("values", values)
    printed = [str(text) for text in texts] if texts is not None else [_text(value) for value in numbers]
    if len(printed) != len(numbers):
        raise ValueError(f"texts must have one entry per value, got {len(printed)} for {len(numbers)} values")
    first = _index("values", numbers, start)
    even = _even(numbers)
    low, step = (numbers[0], even) if even else (0, 1)
    high, now = (numbers[-1], numbers[first]) if even else (len(numbers) - 1, first)
    content = _json([label, numbers, printed, script, data, body, css, first])
    uid = _uid(uid, content)
    run = _SCRIPT % {
        "uid": _json(uid), "values": _json(numbers), "texts": _json(printed), "data": _json(data), "script": script,
    }
    if "</script" in script.lower():
        raise ValueError('script contains "</script", which would end it early; write "<\\/script"')
    html = (
        f'<div class="ddlib-widget" id="{uid}">\n<style>{_CSS}{css}</style>\n'
        f'<div class="knob"><label for="{uid}-knob">{escape(label)}</label>'
        f'<input type="range" id="{uid}-knob" min="{_text(low)}" max="{_text(high)}" step="{_text(step)}" '
        f'value="{_text(now)}" aria-valuetext="{escape(printed[first], quote=True)}" autocomplete="off">'
        f'<output for="{uid}-knob" aria-live="off">{escape(printed[first])}</output></div>\n'
        f'<div class="body">{body}</div>\n<script>{run}</script>\n</div>'
    )
    return Widget(uid, html, f"{label}, {len(numbers)} values")


_IPC_CSS = """
.ddlib-widget .budget{margin:.2em 0 .6em;font-variant-numeric:tabular-nums}
.ddlib-widget .values{overflow-x:auto}
.ddlib-widget table{border-collapse:collapse;margin:.2em 0 .7em;width:auto;font-size:.95em}
.ddlib-widget th,.ddlib-widget td{padding:.12em .8em .12em 0;border:0;background:#fff;color:#1f2328;text-align:left;
font-variant-numeric:tabular-nums;vertical-align:top;white-space:nowrap}
.ddlib-widget thead th{font-weight:600;border-bottom:1px solid #d0d7de}
.ddlib-widget tbody th{font-weight:400}
.ddlib-widget .swatch{display:inline-block;width:1.3em;height:.28em;margin-right:.45em;vertical-align:middle}
.ddlib-widget .missing{color:#57606a}
.ddlib-widget .classes{display:grid;grid-template-columns:fit-content(7.5em) minmax(0,1fr);gap:3px .7em;
align-items:center;align-content:start}
.ddlib-widget .classes span{text-align:right;line-height:1.1;font-size:.9em;overflow-wrap:anywhere}
.ddlib-widget .classes canvas{display:block;max-width:100%}
.ddlib-widget td{min-width:6.5em}
.ddlib-widget .said{color:#57606a;margin:.2em 0 .4em;font-size:.92em}
@media (max-width:480px){.ddlib-widget .budget{min-height:4.4em}}
"""

_IPC_SCRIPT = r"""
    const ns = "http://www.w3.org/2000/svg", count = n => n.toLocaleString("en-US");
    const fixed = p => p[1].toFixed(1) + (p[2] === null ? "" : " ± " + p[2].toFixed(1));
    const at = (points, ipc) => points.find(p => p[0] === ipc);
    const make = (tag, attributes, text) => {
      const element = document.createElementNS(ns, tag);
      for (const name in attributes) element.setAttribute(name, attributes[name]);
      if (text !== undefined) element.textContent = text;
      return element;
    };
    const chart = body.querySelector(".chart"), rows = body.querySelector("tbody");
    const canvases = Array.from(body.querySelectorAll("canvas"));
    const sprite = new Image();
    let ipc = values[0];

    function pictures() {
      const room = Math.max(60, canvases[0].parentElement.clientWidth - canvases[0].offsetLeft
        + canvases[0].parentElement.offsetLeft);
      const plan = n => {
        const columns = Math.min(n, 25), cell = Math.floor(Math.min(n > columns ? 20 : 40, room / columns));
        return {columns, cell, lines: Math.ceil(n / columns)};
      };
      const now = plan(ipc), sharp = window.devicePixelRatio || 1, gap = now.cell > 14 ? 2 : 1;
      const tallest = Math.max(...values.map(n => plan(n).lines * plan(n).cell + 3));
      body.querySelector(".classes").style.minHeight = tallest * canvases.length + "px";   // so that the page stays put
      canvases.forEach((canvas, row) => {
        const wide = now.columns * now.cell, high = now.lines * now.cell;
        canvas.style.width = wide + "px";
        canvas.style.height = high + "px";
        canvas.width = Math.round(wide * sharp);
        canvas.height = Math.round(high * sharp);
        const context = canvas.getContext("2d");
        context.scale(sharp, sharp);
        context.imageSmoothingEnabled = now.cell * sharp < data.width;
        context.imageSmoothingQuality = "high";
        if (sprite.complete && sprite.naturalWidth) for (let k = 0; k < ipc; k++)
          context.drawImage(sprite, k * data.width, row * data.height, data.width, data.height,
            k % now.columns * now.cell, Math.floor(k / now.columns) * now.cell, now.cell - gap, now.cell - gap);
        canvas.setAttribute("aria-label", ipc + (ipc === 1 ? " image" : " images") + " of " + data.classes[row]);
      });
    }

    function curve() {
      if (!chart) return;
      const width = Math.max(240, Math.min(760, body.clientWidth)), height = width < 480 ? 220 : 260;
      const left = 42, right = 14, top = 10, bottom = 40;
      const points = data.curves.concat(data.published).flatMap(line => line.points);
      const low = Math.min(values[0], ...points.map(p => p[0])), high = Math.max(data.max, ...points.map(p => p[0]));
      const floor = Math.max(0, Math.floor(Math.min(...points.map(p => p[1] - (p[2] || 0))) / 10) * 10);
      const roof = Math.min(100, Math.ceil(Math.max(...points.map(p => p[1] + (p[2] || 0))) / 10) * 10);
      const span = Math.log(high / low) || 1;
      const x = n => left + 6 + (width - left - right - 12) * Math.log(n / low) / span;
      const y = v => height - bottom - (height - top - bottom) * (v - floor) / ((roof - floor) || 1);
      const path = line => line.map(p => x(p[0]).toFixed(1) + "," + y(p[1]).toFixed(1)).join(" ");
      const svg = make("svg", {width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "font-size": 12,
        "aria-label": "test accuracy against images per class, marker at " + ipc + "; values in the table below"});
      const step = roof - floor > 50 ? 20 : 10;
      for (let v = Math.ceil(floor / step) * step; v <= roof; v += step) {
        svg.append(make("line", {x1: left, x2: width - right, y1: y(v), y2: y(v), stroke: "#d8dee4"}));
        svg.append(make("text", {x: left - 6, y: y(v) + 4, "text-anchor": "end", fill: "#57606a"}, v));
      }
      for (const n of [1, 2, 5, 10, 20, 50, 100, 200, 500].filter(n => n >= low && n <= high)) {
        svg.append(make("line", {x1: x(n), x2: x(n), y1: height - bottom, y2: height - bottom + 4, stroke: "#57606a"}));
        svg.append(make("text", {x: x(n), y: height - bottom + 17, "text-anchor": "middle", fill: "#57606a"}, n));
      }
      svg.append(make("line", {x1: left, x2: width - right, y1: height - bottom, y2: height - bottom, stroke: "#57606a"}));
      svg.append(make("text", {x: (left + width) / 2, y: height - 5, "text-anchor": "middle", fill: "#1f2328"},
        "images per class"));
      svg.append(make("text", {x: 11, y: (top + height - bottom) / 2, "text-anchor": "middle", fill: "#1f2328",
        transform: `rotate(-90 11 ${(top + height - bottom) / 2})`}, "test accuracy, %"));
      svg.append(make("line", {x1: x(ipc), x2: x(ipc), y1: top, y2: height - bottom, stroke: "#0969da",
        "stroke-width": 1.5, class: "marker"}));
      for (const line of data.published) {
        svg.append(make("polyline", {points: path(line.points), fill: "none", stroke: "#767676", "stroke-width": 1.3,
          "stroke-dasharray": "5 4"}));
        for (const p of line.points) svg.append(make("circle", {cx: x(p[0]), cy: y(p[1]), r: 3, fill: "#fff",
          stroke: line.color, "stroke-width": 1.6}));
      }
      for (const line of data.curves) {
        const upper = line.points.map(p => [p[0], p[1] + (p[2] || 0)]);
        const lower = line.points.map(p => [p[0], p[1] - (p[2] || 0)]).reverse();
        svg.append(make("polygon", {points: path(upper.concat(lower)), fill: line.color, opacity: .2}));
        svg.append(make("polyline", {points: path(line.points), fill: "none", stroke: line.color, "stroke-width": 2}));
        for (const p of line.points) svg.append(make("circle", {cx: x(p[0]), cy: y(p[1]), r: p[0] === ipc ? 5 : 3,
          fill: line.color}));
      }
      chart.replaceChildren(svg);
    }

    function table() {
      if (!rows) return;
      const cell = (points, missing) => {
        const element = document.createElement("td"), exact = points.length ? at(points, ipc) : null;
        if (exact) { element.textContent = fixed(exact); return element; }
        element.className = "missing";
        element.textContent = points.length ? missing : "–";
        return element;
      };
      rows.replaceChildren(...data.methods.map(method => {
        const row = document.createElement("tr"), head = document.createElement("th");
        const swatch = document.createElement("span");
        swatch.className = "swatch";
        swatch.style.background = method.color;
        head.scope = "row";
        head.append(swatch, method.name);
        const points = lines => (lines.find(line => line.name === method.name) || {points: []}).points;
        row.append(head, cell(points(data.curves), "not measured"));
        if (data.published.length) row.append(cell(points(data.published), "not published"));
        return row;
      }));
    }

    function budget() {
      if (data.notes) { body.querySelector(".budget").textContent = data.notes[ipc]; return; }
      const images = ipc * data.num_classes, share = data.full_size ? 100 * images / data.full_size : null;
      body.querySelector(".budget").textContent = ipc + " × " + data.num_classes + " classes × " + data.shape.join("×")
        + " = " + count(images * data.shape[0] * data.shape[1] * data.shape[2]) + " stored scalars"
        + (share === null ? "" : ", " + Number(share.toPrecision(2)) + " % of the " + count(data.full_size)
        + " training images");
    }

    sprite.onload = pictures;
    sprite.src = data.sprite;
    whenResized(() => { pictures(); curve(); });
    return function (value) { ipc = value; budget(); table(); curve(); pictures(); };"""

_FILM_CSS = """
.ddlib-widget .film{display:grid;grid-template-columns:repeat(auto-fill,minmax(88px,1fr));gap:8px 4px;max-width:560px}
.ddlib-widget .film figure{margin:0;text-align:center;line-height:1.1;font-size:.85em;overflow-wrap:anywhere}
.ddlib-widget .film i{display:block;width:84px;height:84px;margin:0 auto 2px;image-rendering:pixelated}
"""

_FILM_SCRIPT = """
    const tiles = Array.from(body.querySelectorAll("i"));
    for (const tile of tiles) {
      tile.style.backgroundImage = "url(" + data.sprite + ")";
      tile.style.backgroundSize = 84 * data.columns + "px " + 84 * values.length + "px";
    }
    return (value, row) => tiles.forEach((tile, column) => {
      tile.style.backgroundPosition = -84 * column + "px " + -84 * row + "px";
    });"""


def film(
    pictures: Mapping[Any, Tensor], names: Sequence[str], *, label: str = "step", start: Any = None, uid: str | None = None
) -> Widget:
    """Slide through a run: the same n images at several moments, all in one sprite of their own size.

    pictures: moment to (n, c, h, w), float in [0, 1] or uint8; names: what stands under each image (n,).
    """
    rows = [_uint8(images) for images in pictures.values()]
    if not rows or any(row.shape != rows[0].shape for row in rows) or len(rows[0]) != len(names):
        shapes = ", ".join(str(row.shape) for row in rows) or "none"
        raise ValueError(f"film needs the same (n, c, h, w) at every moment and a name for each image, got {shapes} and {len(names)} names")
    sprite, _, _ = _sprite(np.stack(rows))
    body = "".join(f'<figure><i role="img" aria-label="{escape(name, quote=True)}"></i>{escape(name)}</figure>' for name in names)
    return page(uid, label=label, values=list(pictures), start=start, script=_FILM_SCRIPT, css=_FILM_CSS,
                data={"sprite": sprite, "columns": len(names)}, body=f'<div class="film">{body}</div>')


def _uint8(images: Tensor) -> np.ndarray:
    images = images.detach().cpu()
    return (images if images.dtype == torch.uint8 else (images.clamp(0, 1) * 255).round().to(torch.uint8)).numpy()


Points = Sequence[tuple[float, float, float | None]]


def ipc_explorer(
    images_by_class: Tensor | np.ndarray,
    classes: Sequence[str],
    curves: Mapping[str, Points],
    published: Mapping[str, Points] | None = None,
    *,
    max_ipc: int = 50,
    start: int = 10,
    full_size: int | None = None,
    num_classes: int | None = None,
    shape: tuple[int, int, int] | None = None,
    caption: str = "",
    notes: Mapping[int, str] | None = None,
    uid: str | None = None,
    label: str = "images per class",
) -> Widget:
    """Slide the images per class: which pictures they buy, how many scalars are stored, which accuracy was measured.

    images_by_class: (C, n, c, h, w) uint8 with n >= max_ipc, embedded once (at most 120 kB; compressed with loss where
    it must be). curves, published: method to [(ipc, mean, std or None), ...] in percent; between measured points the
    page says "not measured" and the line only guides the eye. full_size: number of training images, for the fraction.
    num_classes, shape: of the dataset, where only some classes or smaller pictures are shown. caption: what the
    pictures are. notes: ipc to what is said of it, for sets whose budget is not their images (generators); the slider
    then stops at these ipc only, and `max_ipc` is the largest of them.
    """
    stops = sorted(notes) if notes else range(1, max_ipc + 1)
    max_ipc = max(stops, default=max_ipc)
    from ddlib.plots import color

    pixels = images_by_class.cpu().numpy() if isinstance(images_by_class, Tensor) else np.asarray(images_by_class)
    if pixels.ndim != 5 or pixels.shape[2] not in (1, 3) or pixels.dtype != np.uint8:
        raise ValueError(
            f"images_by_class must be uint8 of shape (C, n, c, h, w) with c = 1 or 3, got {pixels.dtype} {pixels.shape}"
        )
    if len(classes) != len(pixels):
        raise ValueError(f"classes must name every row of images, got {len(classes)} names for {len(pixels)} classes")
    if not 1 <= max_ipc <= pixels.shape[1]:
        raise ValueError(f"max_ipc must be between 1 and the {pixels.shape[1]} images per class given, got {max_ipc}")
    sprite, height, width = _sprite(pixels[:, :max_ipc])
    ours, theirs = _lines(curves), _lines(published or {})
    names = list(dict.fromkeys(line["name"] for line in [*ours, *theirs]))
    for line in [*ours, *theirs]:
        line["color"] = color(line["name"], names.index(line["name"]))
    head = "<th scope=\"col\">method</th><th scope=\"col\">measured, %</th>"
    head += '<th scope="col">published, % <span aria-hidden="true">╌╌</span></th>' if theirs else ""
    plot = f'<div class="chart"></div><div class="values"><table><thead><tr>{head}</tr></thead><tbody></tbody></table></div>'
    rows = "".join(f'<span>{escape(name)}</span><canvas role="img"></canvas>' for name in classes)
    body = (
        '<p class="budget" aria-live="polite"></p>'
        + (plot if names else "")
        + (f'<p class="said">{escape(caption)}</p>' if caption else "")
        + f'<div class="classes">{rows}</div><noscript>The pictures and the curve need JavaScript.</noscript>'
    )
    data = {
        "sprite": sprite, "width": width, "height": height, "classes": list(map(str, classes)), "curves": ours,
        "published": theirs, "max": max_ipc, "full_size": full_size, "num_classes": num_classes or len(classes),
        "shape": list(shape or pixels.shape[2:]), **({"notes": {str(ipc): text for ipc, text in notes.items()}} if notes else {}),
        "methods": [{"name": name, "color": color(name, index)} for index, name in enumerate(names)],
    }
    return page(
        uid, label=label, values=stops, start=min(start, max_ipc), script=_IPC_SCRIPT, data=data,
        body=body, css=_IPC_CSS,
    )


def _lines(curves: Mapping[str, Points]) -> list[dict[str, Any]]:
    """[{"name", "points"}] sorted by ipc, NaN and missing deviations as None."""
    lines: list[dict[str, Any]] = []
    for name, points in curves.items():
        clean: list[tuple[float, float, float | None]] = []
        for ipc, mean, std in points:
            if not (ipc > 0 and math.isfinite(mean)):
                raise ValueError(f"{name} has the point ({ipc}, {mean}); ipc must be positive and the mean finite")
            clean.append((float(ipc), float(mean), None if std is None or math.isnan(std) else float(std)))
        if clean:
            lines.append({"name": str(name), "points": sorted(clean, key=lambda point: point[0])})
    return lines


def _sprite(pixels: np.ndarray) -> tuple[str, int, int]:
    """(C, n, c, h, w) uint8 -> data URI of one picture with C rows of n images, and the size of an image in it.

    As PNG if that is small enough, else as WebP of falling quality, else smaller.
    """
    from PIL import Image

    rows, columns, channels, height, width = pixels.shape
    sheet = pixels.transpose(0, 3, 1, 4, 2).reshape(rows * height, columns * width, channels)
    picture = Image.fromarray(sheet[..., 0] if channels == 1 else np.ascontiguousarray(sheet))
    while True:
        attempts: list[tuple[str, dict[str, Any]]] = [("png", {"optimize": True})]
        attempts += [("webp", {"quality": quality, "method": 6}) for quality in (85, 70, 55, 40)]
        for kind, options in attempts:
            buffer = io.BytesIO()
            picture.save(buffer, kind, **options)
            uri = f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
            if len(uri) <= SPRITE_LIMIT:
                return uri, height, width
        if min(height, width) <= 8:
            raise ValueError(f"{rows} x {columns} images do not fit into {SPRITE_LIMIT:,} characters; show fewer")
        height, width = max(8, height * 3 // 4), max(8, width * 3 // 4)
        picture = picture.resize((columns * width, rows * height), Image.Resampling.BOX)


_EPSILON_CSS = """
.ddlib-widget .epsilon .rule{margin:.1em 0 .6em}
.ddlib-widget .epsilon .rule select{font:inherit;color:inherit;background:#fff;border:1px solid #8c959f;border-radius:4px;
padding:.15em .3em;max-width:100%}
.ddlib-widget .epsilon select:focus-visible{outline:2px solid #0969da;outline-offset:2px}
.ddlib-widget .epsilon .tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(8.6em,1fr));gap:.4em .8em;margin-bottom:.5em}
.ddlib-widget .epsilon .tiles div{font-variant-numeric:tabular-nums;line-height:1.25;color:#57606a;font-size:.9em}
.ddlib-widget .epsilon .tiles b{display:block;color:#1f2328;font-size:1.35rem;font-weight:600}
.ddlib-widget .epsilon .panels{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:.3em .6em}
.ddlib-widget .epsilon .panels div{min-width:0}
.ddlib-widget .epsilon .panels strong{font-weight:600;font-size:.9em}
.ddlib-widget .epsilon .panels canvas{display:block;width:100%;height:150px}
.ddlib-widget .epsilon .said{color:#57606a;margin:.2em 0 .6em;font-size:.92em}
.ddlib-widget .epsilon .key{display:inline-block;width:.8em;height:.8em;margin:0 .25em 0 .1em;vertical-align:-.05em}
.ddlib-widget .epsilon .values{overflow-x:auto}
.ddlib-widget .epsilon .values table{display:table;border-collapse:collapse;margin:0;width:100%;font-size:.88em}
.ddlib-widget .epsilon th,.ddlib-widget .epsilon td{padding:.1em .5em .1em 0;border:0;background:#fff;color:#1f2328;text-align:left;
font-variant-numeric:tabular-nums;vertical-align:middle;line-height:1.25}
.ddlib-widget .epsilon thead th{font-weight:600;border-bottom:1px solid #d0d7de;vertical-align:bottom}
.ddlib-widget .epsilon tbody th{font-weight:400;white-space:nowrap}
.ddlib-widget .epsilon td.number,.ddlib-widget .epsilon th.number{text-align:right;padding-right:0;padding-left:.5em;width:4.6em}
.ddlib-widget .epsilon .bar{display:flex;align-items:center;gap:.35em}
.ddlib-widget .epsilon .bar span{flex:1 1 auto;display:flex;min-width:1.6em;max-width:20em;height:.75em;background:#eaeef2}
.ddlib-widget .epsilon .bar em{font-style:normal;flex:0 0 4.1em;text-align:right;white-space:nowrap}
.ddlib-widget .epsilon .bar i{display:block;height:100%}
"""

_EPSILON_SCRIPT = r"""
    const round = Math.fround, count = n => n.toLocaleString("en-US");
    const percent = share => (share !== share ? "–" : (100 * share).toFixed(1) + "\u00a0%");
    const vector = (text, kind) => {
      const raw = atob(text), bytes = new Uint8Array(raw.length);
      for (let k = 0; k < raw.length; k++) bytes[k] = raw.charCodeAt(k);
      return new kind(bytes.buffer);
    };
    const student = vector(data.student, Float32Array), target = vector(data.target, Float32Array), size = student.length;
    const moved = vector(data.moved, Int16Array);
    // the same arithmetic as the library: every quotient and product rounded to 32 bits
    const ratio = new Float32Array(size), high = new Float32Array(size), gap = new Float64Array(size), way = new Float64Array(size);
    let gaps = 0, ways = 0, flips = 0, lowest = 0, highest = -9;
    for (let k = 0; k < size; k++) {
      const largest = Math.max(Math.abs(student[k]), Math.abs(target[k])), scale = largest > 0 ? largest : 1;
      ratio[k] = largest > 0 ? round(round(student[k] / scale) * round(target[k] / scale)) : 1;    // two zeros are equal
      high[k] = Math.max(-6, Math.log10(largest));
      lowest = Math.min(lowest, high[k]); highest = Math.max(highest, high[k]);
      gap[k] = (student[k] - target[k]) ** 2; gaps += gap[k];
      way[k] = (moved[k] * data.unit) ** 2; ways += way[k];
      if (ratio[k] < 0) flips++;
    }
    const layers = []; let first = 0;
    for (const [name, length] of data.layers) { layers.push({name, first, last: first + length, length}); first += length; }
    const groups = [];
    for (const layer of layers) {
      const name = layer.name.split(", ")[0];
      if (!groups.length || groups[groups.length - 1].name !== name) groups.push({name, first: layer.first});
      groups[groups.length - 1].last = layer.last;
    }
    const select = body.querySelector("select"), tiles = Array.from(body.querySelectorAll(".tiles div"));
    const canvases = Array.from(body.querySelectorAll("canvas")), rows = body.querySelector("tbody");
    const kept = "#5b8fc7", flipped = "#8b1a0e", near = "#e8590c";
    let epsilon = values[0];
    lowest -= 0.15; highest += 0.15;

    const pruned = k => (select.value === "signed" ? ratio[k] : Math.abs(ratio[k])) < round(epsilon);
    function sums(layer) {
      const found = {pruned: 0, flips: 0, gap: 0, way: 0};
      for (let k = layer.first; k < layer.last; k++) if (pruned(k)) {
        found.pruned++; found.gap += gap[k]; found.way += way[k];
        if (ratio[k] < 0) found.flips++;
      }
      return found;
    }

    function tile(index, big, small) {
      const strong = document.createElement("b");
      strong.textContent = big;
      tiles[index].replaceChildren(strong, small);
    }

    function numbers() {
      const all = sums({first: 0, last: size}), each = layers.map(sums);
      tile(0, percent(all.pruned / size), "pruned: " + count(all.pruned) + " of " + count(size) + " parameters");
      tile(1, percent(all.gap / gaps), "of the numerator goes");
      tile(2, percent(all.way / ways), "of the denominator goes");
      tile(3, count(all.flips) + " of " + count(flips), "sign flips pruned");
      const left = ways - all.way > 1e-12 ? ((gaps - all.gap) / (ways - all.way)).toFixed(3) : "0 / 0, nothing is left";
      body.querySelector(".loss").textContent = "Loss on the parameters that stay: " + left + "; on all of them (MTT): "
        + (gaps / ways).toFixed(3) + ".";
      rows.replaceChildren(...layers.map((layer, index) => {
        const row = document.createElement("tr"), head = document.createElement("th"), sum = each[index];
        head.scope = "row"; head.textContent = layer.name;
        const cell = document.createElement("td"), bar = document.createElement("div"), track = document.createElement("span");
        const share = document.createElement("em");
        for (const [color, part] of [[flipped, sum.flips], [near, sum.pruned - sum.flips]]) {
          const piece = document.createElement("i");
          piece.style.background = color; piece.style.width = 100 * part / layer.length + "%";
          track.append(piece);
        }
        bar.className = "bar"; share.textContent = percent(sum.pruned / layer.length); bar.append(track, share); cell.append(bar);
        row.append(head, cell);
        for (const part of [sum.gap / gaps, sum.way / ways]) {
          const number = document.createElement("td");
          number.className = "number"; number.textContent = percent(part); row.append(number);
        }
        return row;
      }));
    }

    function panels() {
      canvases.forEach((canvas, index) => {
        const group = groups[index], wide = canvas.clientWidth || 150, tall = 150, sharp = window.devicePixelRatio || 1;
        canvas.width = Math.round(wide * sharp); canvas.height = Math.round(tall * sharp);
        const pen = canvas.getContext("2d"), left = 42, right = 8, top = 6, bottom = 18;
        pen.scale(sharp, sharp);
        const x = r => left + (wide - left - right) * (r + 1) / 2;
        const y = h => tall - bottom - (tall - top - bottom) * (h - lowest) / ((highest - lowest) || 1);
        const edges = select.value === "signed" ? [-1.03, epsilon] : [-epsilon, epsilon];
        pen.fillStyle = "#fdf0e6"; pen.fillRect(x(edges[0]), top, x(edges[1]) - x(edges[0]), tall - top - bottom);
        pen.strokeStyle = "#afb8c1"; pen.lineWidth = 1; pen.beginPath();
        pen.moveTo(left - 3, top); pen.lineTo(left - 3, tall - bottom); pen.lineTo(wide - right + 3, tall - bottom);
        pen.moveTo(x(0), top); pen.lineTo(x(0), tall - bottom); pen.stroke();
        pen.fillStyle = "#57606a"; pen.font = "11px sans-serif"; pen.textAlign = "center";
        for (const r of [-1, 0, 1]) pen.fillText(r < 0 ? "−1" : r, x(r), tall - 4);
        pen.textAlign = "right";
        for (let h = Math.ceil(lowest); h <= highest; h += 2) pen.fillText(10 ** h >= 1 ? "1" : (10 ** h).toFixed(-h), left - 6, y(h) + 4);
        const draw = (color, alpha, wanted) => {
          pen.fillStyle = color; pen.globalAlpha = alpha;
          for (let k = group.first; k < group.last; k++) if (wanted(k)) pen.fillRect(x(ratio[k]) - 1, y(high[k]) - 1, 2, 2);
        };
        draw(kept, 0.5, k => !pruned(k));
        draw(near, 0.9, k => pruned(k) && ratio[k] >= 0);
        draw(flipped, 0.9, k => pruned(k) && ratio[k] < 0);
        pen.globalAlpha = 1; pen.strokeStyle = "#1f2328"; pen.beginPath();
        for (const edge of edges.filter(edge => edge >= -1)) { pen.moveTo(x(edge), top); pen.lineTo(x(edge), tall - bottom); }
        pen.stroke();
        const sum = sums(group);
        canvas.setAttribute("aria-label", group.name + ": " + count(sum.pruned) + " of " + count(group.last - group.first)
          + " parameters pruned, " + count(sum.flips) + " of them sign flips");
      });
    }

    const update = () => { numbers(); panels(); };
    select.addEventListener("change", update);
    whenResized(panels);
    return function (value) { epsilon = value; update(); };"""


def epsilon_explorer(
    student: Tensor, target: Tensor, start: Tensor, layers: Mapping[str, int], *, at: float = 0.1, uid: str | None = None,
    label: str = "epsilon, pruning threshold",
) -> Widget:
    """Slide DDPP's epsilon from 0 to 1: which parameters of each layer go, with how much of numerator and denominator.

    student, target, start: (P,), where the student arrived, where it should have, and where it set out (DDPP, eqs. 5 to 8);
    stored in the page, the first two as float32, the way from start to target in 16 bits of its largest coordinate. The
    browser computes from them what `ddpp.keep_mask` does, under both readings of a negative ratio. layers: name to number
    of parameters, in the order of the vectors; what stands before ", " in a name says which of the small pictures shows
    it. at: the first epsilon, in hundredths.
    """
    vectors = {name: vector.detach().cpu().float().contiguous() for name, vector in
               (("student", student), ("target", target), ("start", start))}
    sizes = {tuple(vector.shape) for vector in vectors.values()}
    total = sum(layers.values())
    if sizes != {(total,)}:
        found = ", ".join(map(str, sorted(sizes)))
        raise ValueError(f"student, target and start must be vectors of the {total} parameters that layers names, got {found}")
    if not all(torch.isfinite(vector).all() for vector in vectors.values()):
        raise ValueError("student, target and start must be finite")
    groups = dict.fromkeys(name.split(", ")[0] for name in layers)
    figures = "".join(f'<div><strong>{escape(name)}</strong><canvas role="img"></canvas></div>' for name in groups)
    key = '<span class="key" style="background:{}"></span>{}'
    keys = [key.format(color, text) for color, text in
            (("#5b8fc7", "stays, "), ("#8b1a0e", "pruned, signs differ, "), ("#e8590c", "pruned, signs agree. "))]
    body = (
        '<div class="epsilon"><div class="rule"><label>A negative ratio counts <select autocomplete="off">'
        '<option value="signed">with its sign: every sign flip is pruned</option>'
        '<option value="absolute">by its size: signs are ignored</option></select></label></div>'
        '<div class="tiles" aria-live="polite"><div></div><div></div><div></div><div></div></div><p class="said loss"></p>'
        f'<div class="panels">{figures}</div><p class="said">Each dot is a parameter: {"".join(keys)}'
        "Across: the ratio of the smaller to the larger of student and expert. Up: the size of the larger, each tick a factor of 100."
        '</p><div class="values"><table><thead><tr><th scope="col">layer</th><th scope="col">share pruned</th>'
        '<th scope="col" class="number">of the numer&shy;ator</th><th scope="col" class="number">of the denom&shy;inator</th>'
        "</tr></thead><tbody></tbody></table></div><noscript>The pictures and numbers need JavaScript.</noscript></div>"
    )
    moved = (vectors["target"] - vectors["start"]).double()
    unit = moved.abs().max().item() / 32767
    arrays = {"student": vectors["student"].numpy().astype("<f4"), "target": vectors["target"].numpy().astype("<f4"),
              "moved": (moved / (unit or 1)).round().numpy().astype("<i2")}
    stored = {name: base64.b64encode(array.tobytes()).decode("ascii") for name, array in arrays.items()}
    epsilons = [k / 100 for k in range(101)]
    return page(
        uid, label=label, values=epsilons, texts=[f"{value:.2f}" for value in epsilons], start=at, script=_EPSILON_SCRIPT,
        data={**stored, "unit": unit, "layers": list(layers.items())}, body=body, css=_EPSILON_CSS,
    )


_TAU_CSS = """
.ddlib-widget .tau .choose{display:flex;flex-wrap:wrap;gap:.3em 1.2em;margin:.1em 0 .6em}
.ddlib-widget .tau select{font:inherit;color:inherit;background:#fff;border:1px solid #8c959f;border-radius:4px;
padding:.15em .3em;max-width:100%}
.ddlib-widget .tau select:focus-visible,.ddlib-widget .tau summary:focus-visible{outline:2px solid #0969da;outline-offset:2px}
.ddlib-widget .tau .tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(9em,1fr));gap:.4em .8em;margin-bottom:.5em}
.ddlib-widget .tau .tiles div{font-variant-numeric:tabular-nums;line-height:1.25;color:#57606a;font-size:.9em}
.ddlib-widget .tau .tiles b{display:block;color:#1f2328;font-size:1.35rem;font-weight:600}
.ddlib-widget .tau .panels{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(19em,100%),1fr));gap:.6em 1.2em}
.ddlib-widget .tau .panels>div{min-width:0}
.ddlib-widget .tau strong{font-weight:600;font-size:.9em}
.ddlib-widget .tau .logits{display:grid;grid-template-columns:fit-content(6em) minmax(0,1fr) 2.7em minmax(0,1fr) 2.7em;
gap:0 .35em;align-items:center;font-size:.85em;font-variant-numeric:tabular-nums;line-height:1.2}
.ddlib-widget .tau .logits input{width:100%;min-width:0;height:24px;margin:0}
.ddlib-widget .tau .logits b{font-weight:600;grid-column:span 2}
.ddlib-widget .tau .logits span.number{text-align:right}
.ddlib-widget .tau .said{color:#57606a;margin:.2em 0 .6em;font-size:.92em}
.ddlib-widget .tau .key{display:inline-block;width:.8em;height:.8em;margin:0 .25em 0 .1em;vertical-align:-.05em}
.ddlib-widget .tau .values{overflow-x:auto}
.ddlib-widget .tau .values table{display:table;border-collapse:collapse;margin:0;width:auto;font-size:.85em}
.ddlib-widget .tau th,.ddlib-widget .tau td{padding:.1em .5em .1em 0;border:0;background:#fff;color:#1f2328;text-align:right;
font-variant-numeric:tabular-nums;white-space:nowrap;line-height:1.25}
.ddlib-widget .tau th:first-child{text-align:left;font-weight:400}
.ddlib-widget .tau thead th{font-weight:600;border-bottom:1px solid #d0d7de;white-space:normal;vertical-align:bottom}
@media (max-width:480px){.ddlib-widget .tau .values table{font-size:.72em}
.ddlib-widget .tau th,.ddlib-widget .tau td{padding-right:.3em}
.ddlib-widget .tau tbody th{white-space:normal;line-height:1.1}}
"""

_TAU_SCRIPT = r"""
    const ns = "http://www.w3.org/2000/svg", classes = data.classes, size = classes.length, colors = ["#1b4f72", "#aa4499"];
    const sum = list => list.reduce((total, value) => total + value, 0);
    const fixed = (value, digits) => (Math.abs(value) < 0.5 * 10 ** -digits ? 0 : value).toFixed(digits).replace("-", "−");
    const [choice, reading] = body.querySelectorAll("select"), tiles = Array.from(body.querySelectorAll(".tiles div"));
    const grid = body.querySelector(".logits"), charts = Array.from(body.querySelectorAll(".chart"));
    const rows = body.querySelector("tbody"), capped = body.querySelector(".cap");
    let tau = values[0], logits = [[], []];

    // eq. 3, for one view: softened logits, and what its gradient needs (count is C - 1 or C, or 0 without standardization)
    function soften(view) {
      const count = size - {sample: 1, population: 0, none: size}[reading.value], mean = sum(view) / size;
      if (!count) return {count, z: view.map(l => l / tau)};
      const centred = view.map(l => l - mean), deviation = Math.sqrt(sum(centred.map(c => c * c)) / count + 1e-14);
      return {count, centred, deviation, z: centred.map(c => c / (tau * deviation))};
    }
    function logSoftmax(z) {
      const top = Math.max(...z), all = top + Math.log(sum(z.map(value => Math.exp(value - top))));
      return z.map(value => value - all);
    }
    // eqs. 3 to 6 and the slope of eq. 6 in the logits of the second view
    function compute() {
      const soft = logits.map(soften), logs = soft.map(part => logSoftmax(part.z)), shares = logs.map(log => log.map(Math.exp));
      const divergence = sum(shares[0].map((p, k) => p * (logs[0][k] - logs[1][k])));
      const outer = shares[1].map((q, k) => q - shares[0][k]), {count, centred, deviation} = soft[1];
      const along = count && sum(centred.map((c, k) => c * outer[k])) / (count * deviation ** 2);
      const slope = outer.map((g, k) => count ? (g - centred[k] * along) / (tau * deviation) : g / tau);
      const flat = soft.some(part => part.deviation < 1e-4);                // a step that the library leaves out
      return {z: soft.map(part => part.z), shares, divergence, slope: flat ? slope.map(() => 0) : slope, flat};
    }
    // the largest probability, of one class above equal others: e^a / (e^a + C - 1)
    const cap = count => 1 / (1 + (size - 1) * Math.exp(-size / Math.sqrt(size * (size - 1) / count) / tau));

    const make = (tag, attributes, text) => {
      const element = document.createElementNS(ns, tag);
      for (const name in attributes) element.setAttribute(name, attributes[name]);
      if (text !== undefined) element.textContent = text;
      return element;
    };
    const nice = value => {
      const power = 10 ** Math.floor(Math.log10(value || 1));
      return power * [1, 2, 5, 10].find(step => step * power >= value * 0.9999);
    };
    function chart(place, lists, paint, low, high, said, line) {
      const wide = Math.max(220, Math.min(520, place.clientWidth)), row = 21, top = 2, left = 76, right = 22;
      const tall = top + row * size + 20, x = value => left + (wide - left - right) * (value - low) / (high - low);
      const svg = make("svg", {width: wide, height: tall, viewBox: `0 0 ${wide} ${tall}`, role: "img", "font-size": 12,
        "aria-label": said});
      const bottom = top + row * size, digits = Math.max(0, 1 - Math.floor(Math.log10(high)));
      for (const tick of low < 0 ? [low, low / 2, 0, high / 2, high] : [0, 0.2, 0.4, 0.6, 0.8, 1]) {
        svg.append(make("line", {x1: x(tick), x2: x(tick), y1: top, y2: bottom, stroke: tick ? "#e3e7eb" : "#8c959f"}));
        svg.append(make("text", {x: x(tick), y: bottom + 15, "text-anchor": "middle", fill: "#57606a", "font-size": 11},
          high < 0.01 && tick ? tick.toExponential(0).replace("-", "−") : tick ? fixed(tick, Math.min(digits, 3)) : "0"));
      }
      const thick = lists.length > 1 ? 7 : 12;
      classes.forEach((name, k) => {
        const short = name.length > 11 ? name.slice(0, 10) + "…" : name, middle = top + row * (k + 0.5);
        svg.append(make("text", {x: left - 6, y: middle + 4, "text-anchor": "end", fill: "#1f2328"}, short));
        lists.forEach((list, turn) => {
          const ends = [x(Math.max(low, Math.min(0, list[k]))), x(Math.min(high, Math.max(0, list[k])))];
          svg.append(make("rect", {x: ends[0], width: Math.max(ends[1] - ends[0], 0.6), height: thick, fill: paint[turn],
            y: middle - thick * lists.length / 2 + turn * (thick + 1) - (lists.length > 1 ? 0.5 : 0)}));
        });
      });
      if (line !== undefined) svg.append(make("line", {x1: x(line), x2: x(line), y1: top, y2: bottom, stroke: "#bc4c00",
        "stroke-width": 2, "stroke-dasharray": "5 3", class: "limit"}));
      place.replaceChildren(svg);
    }
    function tile(index, big, small) {
      const strong = document.createElement("b");
      strong.textContent = big;
      tiles[index].replaceChildren(strong, small);
    }

    const inputs = [[], []];
    for (const [view, name] of [[0, "real"], [1, "generated"]]) {
      const title = document.createElement("b");
      title.textContent = name; title.style.color = colors[view]; title.style.gridColumn = 2 + 2 * view + " / span 2";
      grid.append(title);
    }
    classes.forEach((name, k) => {
      const title = document.createElement("span");
      title.textContent = name; grid.append(title);
      for (const view of [0, 1]) {
        const slider = document.createElement("input"), number = document.createElement("span");
        Object.assign(slider, {type: "range", min: data.low, max: data.high, step: 0.1, autocomplete: "off"});
        slider.style.accentColor = colors[view]; number.className = "number";
        slider.setAttribute("aria-label", "logit of " + name + ", " + ["real", "generated"][view]);
        slider.addEventListener("input", () => { logits[view][k] = +slider.value; choice.value = "own"; update(); });
        inputs[view].push({slider, number}); grid.append(slider, number);
      }
    });

    function update() {
      const standard = reading.value !== "none", found = compute(), most = found.shares.map(list => Math.max(...list));
      const limit = standard ? cap(size - (reading.value === "sample")) : 1, length = Math.hypot(...found.slope);
      inputs.forEach((list, view) => list.forEach(({slider, number}, k) => {
        slider.value = logits[view][k]; number.textContent = fixed(logits[view][k], 1);
      }));
      tile(0, fixed(found.divergence, 4), "KL, eq. 6");
      tile(1, fixed(tau * tau * found.divergence, 3), "τ² KL, as in eq. 7 before λ");
      tile(2, fixed(limit, 3), standard ? "largest probability that is possible" : "no cap without standardization");
      tile(3, fixed(most[0], 3), "largest probability now, real; generated: " + fixed(most[1], 3));
      if (found.flat) tile(4, "flat: left out", "an image with equal logits has no deviation, and the gradient no limit");
      else tile(4, length < 1e-9 ? "0" : length.toPrecision(2), "length of the gradient; its sum " + fixed(sum(found.slope), 3)
        + ", times the logits " + fixed(sum(found.slope.map((g, k) => g * logits[1][k])), 3));
      capped.textContent = "At τ = " + tau.toFixed(1) + " and " + size + " classes the cap is " + fixed(cap(size - 1), 3)
        + " with a deviation over C − 1 classes and " + fixed(cap(size), 3) + " with one over C.";
      const reach = nice(Math.max(0.5, ...found.z.flat().map(Math.abs))), steep = nice(Math.max(1e-4, ...found.slope.map(Math.abs)));
      const both = (lists, k) => lists.map(list => fixed(list[k], 3)).join(" and ");
      const said = (what, lists) => what + ", " + classes.map((name, k) => name + ": " + both(lists, k)).join(", ");
      body.querySelector(".soft").textContent = standard ? "Z, standardized logits divided by τ" : "logits divided by τ";
      chart(charts[0], found.z, colors, -reach, reach, said("softened logits, real and generated", found.z));
      chart(charts[1], found.shares, colors, 0, 1, said("probabilities, real and generated", found.shares), standard ? limit : undefined);
      chart(charts[2], [found.slope], ["#9a7d0a"], -steep, steep,
        found.flat ? "gradient: flat, left out" : said("gradient", [found.slope]));
      rows.replaceChildren(...classes.map((name, k) => {
        const row = document.createElement("tr"), head = document.createElement("th");
        head.scope = "row"; head.textContent = name; row.append(head);
        for (const [lists, digits] of [[logits, 1], [found.z, 3], [found.shares, 4], [[found.slope], 5]])
          for (const list of lists) {
            const cell = document.createElement("td");
            cell.textContent = found.flat && list === found.slope ? "–" : fixed(list[k], digits); row.append(cell);
          }
        return row;
      }));
    }

    const start = () => { logits = data.examples[choice.selectedIndex].map(list => list.slice()); update(); };
    choice.addEventListener("change", start);
    reading.addEventListener("change", update);
    logits = data.examples[0].map(list => list.slice());
    whenResized(update);
    return function (value) { tau = value; update(); };"""


def tau_explorer(
    examples: Mapping[str, tuple[Tensor, Tensor]], classes: Sequence[str], *, at: float = 2.0, uid: str | None = None,
    label: str = "tau, temperature",
) -> Widget:
    """Slide SKD's tau from 0.5 to 8 and move the logits of a real and of a generated image: what eqs. 3 to 6 make of them.

    examples: name to the logits (C,) of a network that sees a real image, and of the same network that sees a generated one,
    to begin with; the page holds them rounded to tenths. The browser computes standardized logits, probabilities, the
    divergence and its gradient, as `skd.skd_loss` does (deviation over C - 1), with a deviation over C, and without
    standardization. Where all logits of one image are equal it leaves the gradient out, as the library does.
    at: the first tau, in tenths.
    """
    names = [str(name) for name in classes]
    if not examples:
        raise ValueError("examples needs at least one pair of logits, as {name: (real, generated)}")
    stored = {}
    for name, views in examples.items():
        pair = [view.detach().cpu().double() for view in views]
        if [tuple(view.shape) for view in pair] != [(len(names),)] * 2 or len(names) < 2:
            found = " and ".join(str(tuple(view.shape)) for view in pair)
            raise ValueError(f"every example must be two vectors of {len(names)} logits, one per class, at least two; {name!r} has {found}")
        if not all(torch.isfinite(view).all() for view in pair):
            raise ValueError(f"logits must be finite, those of {name!r} are not")
        stored[name] = [[round(value, 1) + 0.0 for value in view.tolist()] for view in pair]
    every = [value for pair in stored.values() for view in pair for value in view]
    key = '<span class="key" style="background:{}"></span>{}'
    keys = key.format("#1b4f72", "real, ") + key.format("#aa4499", "generated; ") + key.format("#bc4c00", "the cap.")
    options = "".join(f'<option value="{place}">{escape(name)}</option>' for place, name in enumerate(stored))
    options += '<option value="own" hidden disabled>own logits</option>'          # shown once a slider has moved
    columns = "".join(f'<th scope="col">{name}</th>' for name in
                      ("class", "logit, real", "gene&shy;rated", "Z, real", "gene&shy;rated", "p, real", "gene&shy;rated", "gradient"))
    body = (
        f'<div class="tau"><div class="choose"><label>Start from <select autocomplete="off">{options}</select></label>'
        '<label>Logits are <select autocomplete="off"><option value="sample">standardized, deviation over C − 1</option>'
        '<option value="population">standardized, deviation over C</option><option value="none">only divided by tau</option>'
        '</select></label></div><div class="tiles" aria-live="polite"><div></div><div></div><div></div><div></div><div></div></div>'
        f'<p class="said"><span class="cap"></span> Colours: {keys}</p><div class="panels">'
        '<div><strong>Logits: move them</strong><div class="logits"></div></div>'
        '<div><strong class="soft"></strong><div class="chart"></div></div>'
        '<div><strong>Probabilities: softmax of these</strong><div class="chart"></div></div>'
        '<div><strong>Gradient of the KL in the generated logits</strong><div class="chart"></div></div></div>'
        f'<details><summary>The numbers</summary><div class="values"><table><thead><tr>{columns}</tr></thead><tbody></tbody></table>'
        "</div></details><noscript>The pictures and numbers need JavaScript.</noscript></div>"
    )
    taus = [k / 10 for k in range(5, 81)]
    return page(
        uid, label=label, values=taus, texts=[f"{value:.1f}" for value in taus], start=at, script=_TAU_SCRIPT,
        data={"classes": names, "examples": list(stored.values()), "low": math.floor(min(every)) - 3, "high": math.ceil(max(every)) + 3},
        body=body, css=_TAU_CSS,
    )


_SWEEP_CSS = _FILM_CSS + """
.ddlib-widget .sweep .film{max-width:none}
.ddlib-widget .sweep .panels{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(19em,100%),1fr));gap:.7em 1.2em;margin-top:.8em}
.ddlib-widget .sweep .panels>div{min-width:0}
.ddlib-widget .sweep strong{font-weight:600;font-size:.9em}
.ddlib-widget .sweep dl{display:grid;grid-template-columns:1fr max-content;gap:0 .8em;margin:.1em 0 .2em;font-size:.9em;line-height:1.35}
.ddlib-widget .sweep dt{font-weight:400;margin:0}
.ddlib-widget .sweep dd{margin:0;text-align:right;font-weight:600;font-variant-numeric:tabular-nums}
.ddlib-widget .sweep .swatch{display:inline-block;width:1.3em;height:.28em;margin-right:.45em;vertical-align:middle}
.ddlib-widget .sweep .said{color:#57606a;margin:.6em 0 0;font-size:.92em}
@media (max-width:480px){.ddlib-widget .sweep .film{grid-template-columns:repeat(5,minmax(0,1fr));font-size:.85em}
.ddlib-widget .sweep .film i{width:100%;height:auto;aspect-ratio:1}}
"""

_SWEEP_SCRIPT = r"""
    const tiles = Array.from(body.querySelectorAll("i")), share = (k, count) => 100 * k / Math.max(count - 1, 1) + "%";
    for (const tile of tiles) {
      tile.style.backgroundImage = "url(" + data.sprite + ")";
      tile.style.backgroundSize = 100 * data.columns + "% " + 100 * values.length + "%";
    }
    const ns = "http://www.w3.org/2000/svg", last = values.length - 1;
    const places = Array.from(body.querySelectorAll(".chart")), lists = Array.from(body.querySelectorAll("dl"));
    let at = 0;
    const make = (tag, attributes, text) => {
      const element = document.createElementNS(ns, tag);
      for (const name in attributes) element.setAttribute(name, attributes[name]);
      if (text !== undefined) element.textContent = text;
      return element;
    };
    const short = v => v === 0 ? "0" : String(Number(v.toPrecision(3))).replace("e+", "e").replace("-", "−");
    function linear(low, high) {                                 // three to six round numbers that hold low and high
      const rough = (high - low || Math.abs(high) || 1) / 4, power = 10 ** Math.floor(Math.log10(rough));
      const step = power * [1, 2, 5, 10].find(times => times * power >= rough), ticks = [];
      for (let k = Math.floor(low / step + 1e-9); k * step < high + step * (1 - 1e-9); k++) ticks.push(k * step);
      return ticks;
    }
    function decades(low, high) {
      const first = Math.floor(Math.log10(low)), end = Math.max(Math.ceil(Math.log10(high)), first + 1), ticks = [];
      for (let k = first; k <= end; k += Math.ceil((end - first) / 4)) ticks.push(10 ** k);
      return ticks.at(-1) < high ? ticks.concat(10 ** end) : ticks;
    }
    function chart(place, panel) {
      const width = Math.max(200, Math.min(420, place.clientWidth)), height = 150, left = 44, right = 10, top = 8, bottom = 22;
      const known = panel.lines.flatMap(line => line.points).filter(p => p !== null && !(panel.log && p[0] <= 0));
      const reach = known.flatMap(p => panel.log ? [p[0]] : [p[0] - (p[1] || 0), p[0] + (p[1] || 0)]);
      const ticks = (panel.log ? decades : linear)(Math.min(...reach), Math.max(...reach));
      const scale = panel.log ? Math.log10 : v => v, low = scale(ticks[0]), high = scale(ticks.at(-1));
      const x = k => left + 8 + (width - left - right - 16) * k / last;
      const y = v => height - bottom - (height - top - bottom) * (scale(v) - low) / (high - low);
      const svg = make("svg", {width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "font-size": 11,
        "aria-label": panel.title + ", marker at " + texts[at] + "; the numbers stand above"});
      for (const v of ticks) {
        svg.append(make("line", {x1: left, x2: width - right, y1: y(v), y2: y(v), stroke: "#e3e7eb"}));
        svg.append(make("text", {x: left - 5, y: y(v) + 4, "text-anchor": "end", fill: "#57606a"}, short(v)));
      }
      const every = Math.ceil(values.length * 34 / (width - left - right));
      texts.forEach((text, k) => {
        if ((last - k) % every === 0) svg.append(make("text", {x: x(k), y: height - 6, "text-anchor": "middle", fill: "#57606a"}, text));
      });
      svg.append(make("line", {x1: x(at), x2: x(at), y1: top, y2: height - bottom, stroke: "#0969da", "stroke-width": 1.5,
        class: "marker"}));
      for (const line of panel.lines) {
        const points = line.points.map((p, k) => p && [k, p[0], p[1]]).filter(p => p && !(panel.log && p[1] <= 0));
        const path = list => list.map(p => x(p[0]).toFixed(1) + "," + y(p[1]).toFixed(1)).join(" ");
        if (!panel.log && points.some(p => p[2])) svg.append(make("polygon", {fill: line.color, opacity: .18,
          points: path(points.map(p => [p[0], p[1] + (p[2] || 0)]).concat(points.map(p => [p[0], p[1] - (p[2] || 0)]).reverse()))}));
        svg.append(make("polyline", {points: path(points), fill: "none", stroke: line.color, "stroke-width": 2,
          ...(line.constant ? {"stroke-dasharray": "5 4"} : {})}));
        if (!line.constant) for (const p of points) svg.append(make("circle", {cx: x(p[0]), cy: y(p[1]), r: p[0] === at ? 4.5 : 2.5,
          fill: line.color}));
      }
      place.replaceChildren(svg);
    }
    const charts = () => data.panels.forEach((panel, k) => chart(places[k], panel));
    whenResized(charts);
    return function (value, index) {
      at = index;
      tiles.forEach((tile, column) => {
        tile.style.backgroundPosition = share(column, data.columns) + " " + share(index, values.length);
      });
      data.panels.forEach((panel, k) => lists[k].querySelectorAll("dd").forEach((shown, turn) => {
        const point = panel.lines[turn].points[at];
        shown.textContent = point === null ? "–" : point[2];
      }));
      charts();
    };"""


def sweep_explorer(
    pictures: Mapping[Any, Tensor], names: Sequence[str], panels: Mapping[str, Mapping[str, Sequence[Any]]], *, label: str,
    log: Sequence[str] = (), start: Any = None, texts: Sequence[str] | None = None, caption: str = "", uid: str | None = None,
) -> Widget:
    """Slide through a sweep of one setting: the same n images at each of its values, and what was measured there.

    pictures: value of the setting to (n, c, h, w), float in [0, 1] or uint8; names: what stands under each image (n,).
    panels: title of a chart to {series: one entry per value}, an entry being a number, (mean, deviation or None), or None where
    nothing was measured; a series that is one number for all values is a level to compare with. log: titles of charts with
    logarithmic heights, where what is not above 0 is left out. Values stand at equal distances, in the order given, and
    texts are how they are printed.
    """
    from ddlib.plots import color

    values = list(pictures)
    rows = [_uint8(images) for images in pictures.values()]
    if not rows or any(row.shape != rows[0].shape for row in rows) or len(rows[0]) != len(names):
        shapes = ", ".join(str(row.shape) for row in rows) or "none"
        raise ValueError(f"pictures must be the same (n, c, h, w) at every value and names n, got {shapes} and {len(names)} names")
    if missing := set(log) - set(panels):
        raise ValueError(f"log names {', '.join(sorted(missing))}, which is no panel; there are {', '.join(panels)}")
    drawn, shown = [], []
    for title, series in panels.items():
        lines: list[dict[str, Any]] = []
        for index, (name, given) in enumerate(series.items()):
            constant = isinstance(given, int | float)
            entries: list[Any] = [given] * len(values) if constant else list(given)
            if len(entries) != len(values):
                raise ValueError(f"{name!r} in {title!r} needs one entry for each of the {len(values)} values, got {len(entries)}")
            points = [_point(entry) for entry in entries]
            if title in log and not any(point and point[0] > 0 for point in points):
                raise ValueError(f"{name!r} in {title!r} has nothing above 0, so it cannot be drawn on a logarithmic scale")
            lines.append({"name": name, "points": points, "constant": constant, "color": "#57606a" if constant else color(name, index)})
        drawn.append({"title": title, "log": title in log, "lines": lines})
        terms = "".join(f'<dt><span class="swatch" style="background:{line["color"]}"></span>{escape(line["name"])}</dt><dd></dd>'
                        for line in lines)
        shown.append(f'<div><strong>{escape(title)}</strong><dl aria-live="polite">{terms}</dl><div class="chart"></div></div>')
    sprite, _, _ = _sprite(np.stack(rows))
    film = "".join(f'<figure><i role="img" aria-label="{escape(name, quote=True)}"></i>{escape(name)}</figure>' for name in names)
    body = (f'<div class="sweep"><div class="film">{film}</div><div class="panels">{"".join(shown)}</div>'
            + (f'<p class="said">{escape(caption)}</p>' if caption else "")
            + "<noscript>The pictures and charts need JavaScript.</noscript></div>")
    return page(uid, label=label, values=[str(value) for value in values], texts=texts or [_text(value) for value in values],
                start=None if start is None else str(start), script=_SWEEP_SCRIPT, css=_SWEEP_CSS, body=body,
                data={"sprite": sprite, "columns": len(names), "panels": drawn})


def _point(entry: Any) -> list[Any] | None:
    """[mean, deviation or None, both as text] with three digits."""
    mean, deviation = (*entry, None)[:2] if isinstance(entry, tuple | list) else (entry, None)
    if mean is None or not math.isfinite(mean):
        return None
    if deviation is not None and not math.isfinite(deviation):
        deviation = None
    digits = (lambda value: f"{value:.1f}") if deviation is not None else (lambda value: f"{value:.3g}")
    text = digits(mean) + ("" if deviation is None else f" ± {digits(deviation)}")
    return [float(f"{mean:.5g}"), None if deviation is None else float(f"{deviation:.3g}"), text.replace("-", "−")]


_POSTER_CSS = """
.ddlib-widget .poster .sizes{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(23em,100%),1fr));gap:0 1.4em}
.ddlib-widget .poster .sizes div{display:grid;grid-template-columns:8.2em minmax(0,1fr) 4.6em;gap:.5em;align-items:center}
.ddlib-widget .poster .sizes input{min-width:0;width:100%;box-sizing:border-box;height:1.9em;margin:.1em 0;accent-color:#0969da}
.ddlib-widget .poster .sizes input[type=number],.ddlib-widget .poster select{font:inherit;color:inherit;background:#fff;
border:1px solid #8c959f;border-radius:4px;padding:.1em .3em}
.ddlib-widget .poster select{max-width:100%}
.ddlib-widget .poster .choose{display:flex;flex-wrap:wrap;gap:.3em 1.2em;margin:.4em 0}
.ddlib-widget .poster .choose label{display:flex;flex-wrap:wrap;gap:.1em .5em;align-items:center;min-width:0}
.ddlib-widget .poster select:focus-visible,.ddlib-widget .poster canvas:focus-visible,
.ddlib-widget .poster summary:focus-visible{outline:2px solid #0969da;outline-offset:2px}
.ddlib-widget .poster .note{margin:.2em 0;min-height:1.45em;color:#8b1a0e}
.ddlib-widget .poster .tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5em,1fr));gap:.4em .9em;margin:.3em 0 .6em}
.ddlib-widget .poster .tiles div{font-variant-numeric:tabular-nums;line-height:1.25;color:#57606a;font-size:.9em}
.ddlib-widget .poster .tiles b{display:block;color:#1f2328;font-size:1.25rem;font-weight:600;white-space:nowrap}
.ddlib-widget .poster .views{display:flex;flex-wrap:wrap;gap:.6em 1.4em}
.ddlib-widget .poster .maps{flex:1 1 24em;min-width:min(100%,18em)}
.ddlib-widget .poster .patch{flex:1 1 17em;min-width:min(100%,15em);min-height:17em}
.ddlib-widget .poster canvas{display:block;max-width:100%;margin:.1em 0 .5em}
.ddlib-widget .poster .maps canvas{cursor:crosshair;touch-action:pan-y}
.ddlib-widget .poster strong{font-weight:600;font-size:.9em}
.ddlib-widget .poster .scale{display:inline-block;width:4.5em;height:.75em;margin:0 .35em;vertical-align:-.05em}
.ddlib-widget .poster table{display:table;border-collapse:collapse;margin:.2em 0;width:100%;font-size:.88em}
.ddlib-widget .poster th,.ddlib-widget .poster td{padding:.1em .5em .1em 0;border:0;background:#fff;color:#1f2328;text-align:right;
font-variant-numeric:tabular-nums;vertical-align:bottom;line-height:1.25}
.ddlib-widget .poster th:first-child{text-align:left}
.ddlib-widget .poster tbody th{font-weight:400;overflow-wrap:anywhere;min-width:6.4em}
.ddlib-widget .poster tr.first th,.ddlib-widget .poster tr.first td{font-weight:600}
.ddlib-widget .poster thead th{font-weight:600;border-bottom:1px solid #d0d7de}
.ddlib-widget .poster .said{color:#57606a;margin:.2em 0 .5em;font-size:.92em;overflow-wrap:anywhere}
"""

_POSTER_SCRIPT = r"""
    const {classes, order, channels, pictures, most} = data, [high, wide] = data.patch;
    const cellsX = order[0].length, cellsY = order.length, total = classes.length, root = body.closest(".ddlib-widget");
    const knob = root.querySelector("input"), shown = root.querySelector("output"), note = body.querySelector(".note");
    const [choice, overlay] = body.querySelectorAll("select"), tiles = Array.from(body.querySelectorAll(".tiles div"));
    const [sheet, map, zoom] = body.querySelectorAll("canvas"), maps = body.querySelector(".maps"), rows = body.querySelector("tbody");
    const art = document.createElement("canvas"), heat = document.createElement("canvas"), sprite = new Image();
    const now = {width: wide, height: high, across: data.patches[0], down: data.patches[1]}, least = {width: wide, height: high};
    const at = {column: now.across >> 1, row: now.down >> 1};
    let lefts = [0], tops = [0], preferred = pictures.length ? 0 : -1, pixel = null;
    const count = n => n.toLocaleString("en-US"), percent = share => (100 * share).toFixed(1) + "\u00a0%";
    const plural = (n, one) => count(n) + " " + one + (n === 1 ? "" : "s");

    // o_k = round(k (length - size) / (num - 1)), halves to even, in whole numbers so that a half is a half
    function offsets(length, size, num) {
      const steps = Math.max(num - 1, 1), found = [];
      for (let k = 0; k < num; k++) {
        const way = k * (length - size), whole = Math.floor(way / steps), twice = 2 * (way - whole * steps);
        found.push(whole + (twice > steps || (twice === steps && whole % 2 === 1) ? 1 : 0));
      }
      return found;
    }
    const covered = (length, starts, size) => {
      const found = new Array(length).fill(0);
      for (const start of starts) for (let k = start; k < start + size; k++) found[k]++;
      return found;
    };
    // the pixels of a window in each cell of a line that is stretched over the poster
    const seen = (start, size, length, cells) => {
      const found = new Array(cells).fill(0);
      for (let k = start; k < start + size; k++) found[Math.floor(k * cells / length)]++;
      return found;
    };
    function label(column, row) {
      const across = seen(lefts[column], wide, now.width, cellsX), down = seen(tops[row], high, now.height, cellsY), found = [];
      order.forEach((line, y) => line.forEach((name, x) => {
        if (across[x] * down[y]) found.push({name, pixels: across[x] * down[y]});
      }));
      found.sort((one, two) => two.pixels - one.pixels || one.name - two.name);
      const ties = found.filter(part => part.pixels === found[0].pixels).length;
      for (const [place, part] of found.entries()) {
        part.fixed = place < ties ? 1 / ties : 0;
        part.learned = part.pixels / (wide * high);
      }
      return found;
    }
    function shares() {                                                        // patches of each class, shared ones in parts
      const across = lefts.map(left => seen(left, wide, now.width, cellsX)), down = tops.map(top => seen(top, high, now.height, cellsY));
      const found = new Array(total).fill(0);
      for (const one of across) for (const two of down) {
        let names = [], best = 0;
        order.forEach((line, y) => line.forEach((name, x) => {
          const n = one[x] * two[y];
          if (n > best) { best = n; names = []; }
          if (n && n === best) names.push(name);
        }));
        for (const name of names) found[name] += 1 / names.length;
      }
      return found;
    }
    const edge = (k, cells, length) => Math.ceil(k * length / cells);          // the first pixel of a cell

    // ------------------------------------------------------------------------------------------------------ the knobs
    const inputs = {};
    for (const [name, text, low] of [["width", "poster width", wide], ["height", "poster height", high],
      ["across", "patches across", 1], ["down", "patches down", 1]]) {
      const row = document.createElement("div"), title = document.createElement("label");
      const slider = document.createElement("input"), number = document.createElement("input");
      title.textContent = text; title.htmlFor = number.id = root.id + "-" + name;
      Object.assign(slider, {type: "range", min: low, max: most[name], step: 1, autocomplete: "off"});
      Object.assign(number, {type: "number", min: low, max: most[name], step: 1, autocomplete: "off"});
      slider.setAttribute("aria-label", text);
      slider.addEventListener("input", () => set(name, +slider.value));
      number.addEventListener("change", () => set(name, number.valueAsNumber));
      row.append(title, slider, number); body.querySelector(".sizes").append(row);
      inputs[name] = {slider, number, low, text};
    }
    function set(name, asked) {
      const {low, text} = inputs[name];
      const value = asked === asked ? Math.max(low, Math.min(most[name], Math.round(asked))) : now[name];
      const why = asked !== asked ? "that is no number" : asked < low
        ? (name === "width" ? "a poster cannot be narrower than a patch" : name === "height" ? "a poster cannot be lower than a patch"
          : "there is at least one") : "more does not fit in here";
      note.textContent = value === asked ? "" : text[0].toUpperCase() + text.slice(1) + " is set to " + value + ": " + why + ".";
      now[name] = value;
      if (name in least) free();
      update();
    }
    const effective = () => now.width * now.height / (total * wide * high);
    function free() {                                                          // the slider follows a size that it did not ask for
      const size = effective(), near = values.map(value => Math.abs(value - size));
      const index = near.indexOf(Math.min(...near));
      knob.value = +knob.min + index * knob.step;
      shown.textContent = "≈ " + size.toFixed(2);
      knob.setAttribute("aria-valuetext", "about " + size.toFixed(2));
    }
    function ask(ipc) {
      const size = {width: Math.floor(cellsX * wide * Math.sqrt(ipc) + 1e-9), height: Math.floor(cellsY * high * Math.sqrt(ipc) + 1e-9)};
      const small = Object.keys(size).filter(name => size[name] < least[name]);
      const fits = Math.ceil(1000 * Math.max(1 / cellsX ** 2, 1 / cellsY ** 2)) / 1000;
      note.textContent = small.length ? ipc + " images per class would be a poster of " + size.width + " × " + size.height
        + ", smaller than a patch: its " + small.join(" and ") + " is set to " + small.map(name => least[name]).join(" and ")
        + ". From " + fits + " on it fits." : "";
      for (const name in size) now[name] = Math.max(size[name], least[name]);
    }

    // ----------------------------------------------------------------------------------------------------- the pictures
    const fits = picture => picture.width === now.width && picture.height === now.height;
    function picture() {                                                       // the chosen one, or another of this size, or none
      if (preferred < 0) return -1;
      return fits(pictures[preferred]) ? preferred : pictures.findIndex(fits);
    }
    function paint() {
      art.width = now.width; art.height = now.height;
      const pen = art.getContext("2d"), index = picture();
      choice.value = index;
      if (index >= 0) { if (images[index].naturalWidth) pen.drawImage(images[index], 0, 0); return; }
      order.forEach((line, y) => line.forEach((name, x) => {
        const left = edge(x, cellsX, now.width), top = edge(y, cellsY, now.height);
        const across = edge(x + 1, cellsX, now.width) - left, down = edge(y + 1, cellsY, now.height) - top;
        if (!across || !down) return;
        if (!data.sprite) { pen.fillStyle = `hsl(${name * 360 / total} 45% 62%)`; pen.fillRect(left, top, across, down); return; }
        if (sprite.naturalWidth) pen.drawImage(sprite, 0, name * data.height, data.width, data.height, left, top, across, down);
      }));
    }
    const ramp = share => [[222, 235, 247], [8, 48, 107]].reduce((low, up) => low.map((v, k) => Math.round(v + (up[k] - v) * share)));
    function measure() {
      lefts = offsets(now.width, wide, now.across); tops = offsets(now.height, high, now.down);
      at.column = Math.min(at.column, now.across - 1); at.row = Math.min(at.row, now.down - 1);
      const across = covered(now.width, lefts, wide), down = covered(now.height, tops, high);
      const top = Math.max(...across) * Math.max(...down), low = Math.min(...across) * Math.min(...down);
      heat.width = now.width; heat.height = now.height;
      const pen = heat.getContext("2d"), field = pen.createImageData(now.width, now.height);
      let bare = 0;
      down.forEach((one, y) => across.forEach((two, x) => {
        const n = one * two, colour = n ? ramp(top > 1 ? (n - 1) / (top - 1) : 0) : [139, 26, 14];
        if (!n) bare++;
        field.data.set([...colour, 255], 4 * (y * now.width + x));
      }));
      pen.putImageData(field, 0, 0);
      return {across, down, top, low, bare};
    }
    function tile(index, big, small) {
      const strong = document.createElement("b");
      strong.textContent = big;
      tiles[index].replaceChildren(strong, small);
    }
    const strides = [["across", "width", wide], ["down", "height", high]];
    function numbers({low, top, bare}) {
      const stored = now.width * now.height, amount = now.across * now.down;
      const stride = strides.map(([num, side, size]) => now[num] > 1 ? (now[side] - size) / (now[num] - 1) : null);
      const shared = stride.map((way, k) => way === null ? "–" : Math.round(100 * Math.max(0, 1 - way / strides[k][2])) + "\u00a0%");
      tile(0, count(stored), "stored pixels, " + now.width + " × " + now.height
        + (channels > 1 ? ", of " + channels + " channels: " + count(channels * stored) + " scalars" : ""));
      tile(1, effective().toFixed(3), "images per class: these pixels over those of " + total + " images");
      const [few, many] = [Math.min, Math.max].map(pick => +pick(...shares()).toPrecision(3));
      tile(2, count(amount), "patches, " + now.across + " × " + now.down + ": the training images; of a class "
        + (few === many ? few : few + " to " + many));
      tile(3, stride.map(way => way === null ? "–" : way.toFixed(2)).join(" / "), "stride across / down; neighbours share "
        + shared.join(" / "));
      tile(4, (amount * wide * high / stored).toFixed(1), "patches cover a pixel, on average; " + low + " to " + top);
      const gaps = list => Array.from(new Set(list.slice(1).map((value, k) => value - list[k]))).sort((a, b) => a - b).join(" and ");
      body.querySelector(".lefts").textContent = lefts.join(", ");
      body.querySelector(".tops").textContent = tops.join(", ");
      body.querySelector(".gaps").textContent = [lefts, tops].map(gaps).map(text => text || "none").join(" across, ") + " down";
      const same = now.across - new Set(lefts).size, over = now.down - new Set(tops).size, remarks = [];
      if (bare) remarks.push("No patch covers the red pixels, " + count(bare) + " of " + count(stored) + ": they are stored in vain.");
      if (same || over) remarks.push("Some patches lie on one another: only "
        + (now.across - same) + " × " + (now.down - over) + " are different.");
      body.querySelector(".bare").textContent = remarks.join(" ");
      body.querySelector(".key").textContent = top;
    }
    const ratio = () => Math.min(maps.clientWidth / now.width, 320 / now.height, 6);
    function canvas(target, width, height) {
      const sharp = window.devicePixelRatio || 1;
      target.style.width = width + "px"; target.style.height = height + "px";
      target.width = Math.round(width * sharp); target.height = Math.round(height * sharp);
      const pen = target.getContext("2d");
      pen.scale(target.width / width, target.height / height);
      return pen;
    }
    function box(pen, left, top, across, down, colours, thick) {
      for (const [colour, width] of [[colours[0], thick + 1.6], [colours[1], thick]]) {
        pen.strokeStyle = colour; pen.lineWidth = width; pen.strokeRect(left, top, across, down);
      }
    }
    function show() {
      const scale = ratio(), width = Math.max(1, Math.round(now.width * scale)), height = Math.max(1, Math.round(now.height * scale));
      const marked = overlay.value, amount = now.across * now.down;
      for (const [target, source] of [[sheet, art], [map, heat]]) {
        const pen = canvas(target, width, height);
        pen.imageSmoothingEnabled = scale < 1;
        pen.drawImage(source, 0, 0, width, height);
        if (target === sheet) {
          if (marked !== "patches" && marked !== "nothing") {
            pen.font = "600 10px sans-serif"; pen.textAlign = "center"; pen.textBaseline = "middle"; pen.lineJoin = "round";
            const room = width / cellsX - 2, named = classes.filter(name => pen.measureText(name).width < room).length > total / 2;
            order.forEach((line, y) => line.forEach((name, x) => {
              const left = edge(x, cellsX, now.width) * scale, right = edge(x + 1, cellsX, now.width) * scale;
              const top = edge(y, cellsY, now.height) * scale, bottom = edge(y + 1, cellsY, now.height) * scale;
              pen.strokeStyle = "#ffd33d"; pen.lineWidth = 1.2; pen.strokeRect(left, top, right - left, bottom - top);
              if (!named || pen.measureText(classes[name]).width > right - left - 2 || bottom - top < 12) return;
              pen.strokeStyle = "#1f2328"; pen.lineWidth = 3; pen.fillStyle = "#fff";
              pen.strokeText(classes[name], (left + right) / 2, (top + bottom) / 2);
              pen.fillText(classes[name], (left + right) / 2, (top + bottom) / 2);
            }));
          }
          if (marked !== "classes" && marked !== "nothing") {
            pen.globalAlpha = Math.max(0.12, Math.min(0.9, 24 / amount));
            for (const left of lefts) for (const top of tops) {
              pen.strokeStyle = "#58a6ff"; pen.lineWidth = 1; pen.strokeRect(left * scale, top * scale, wide * scale, high * scale);
            }
            pen.globalAlpha = 1;
          }
        }
        box(pen, lefts[at.column] * scale + 1, tops[at.row] * scale + 1, wide * scale - 2, high * scale - 2, ["#fff", "#d1242f"], 2);
      }
      const grow = Math.min(112 / wide, 112 / high), pen = canvas(zoom, Math.round(wide * grow), Math.round(high * grow));
      pen.imageSmoothingEnabled = false;
      pen.drawImage(art, lefts[at.column], tops[at.row], wide, high, 0, 0, wide * grow, high * grow);
      describe();
    }
    function describe() {
      const left = lefts[at.column], top = tops[at.row], found = label(at.column, at.row);
      const named = found.filter(part => part.fixed).map(part => classes[part.name]);
      const place = "column " + (at.column + 1) + " of " + now.across + ", row " + (at.row + 1) + " of " + now.down;
      body.querySelector(".which").textContent = "Patch number " + (at.column * now.down + at.row + 1) + ": " + place + "; pixels " + left
        + " to " + (left + wide - 1) + " across, " + top + " to " + (top + high - 1) + " down";
      const over = pixel && field.across[pixel.x] * field.down[pixel.y];
      body.querySelector(".over").textContent = pixel && over >= 0 ? "The pixel " + pixel.x + ", " + pixel.y + " under the pointer is in "
        + plural(over, "patch").replace("patchs", "patches") + ". " : "";
      body.querySelector(".fixed").textContent = named.length > 1 ? "a tie of " + named.join(" and ") : named[0];
      sheet.setAttribute("aria-label", "Poster of " + now.width + " × " + now.height + " pixels; arrow keys choose a patch. Chosen: "
        + place + ", fixed label " + named.join(" and "));
      map.setAttribute("aria-label", "How many patches cover each pixel: " + field.low + " to " + field.top);
      zoom.setAttribute("aria-label", "The chosen patch, " + wide + " × " + high + " pixels");
      rows.replaceChildren(...found.map(part => {
        const row = document.createElement("tr"), head = document.createElement("th");
        head.scope = "row"; head.textContent = classes[part.name]; row.append(head);
        if (part.fixed) row.className = "first";
        for (const text of [part.pixels, percent(part.fixed), percent(part.learned)]) {
          const cell = document.createElement("td");
          cell.textContent = text; row.append(cell);
        }
        return row;
      }));
    }

    let field = measure();
    function update() {
      for (const name in inputs) for (const input of [inputs[name].slider, inputs[name].number]) input.value = now[name];
      pixel = null; field = measure();
      paint(); numbers(field); show();
      if (preferred >= 0 && picture() < 0 && !note.textContent)
        note.textContent = "“" + choice.options[preferred + 1].text + "” has " + pictures[preferred].width + " × "
          + pictures[preferred].height + " pixels; at another size cells show their classes.";
    }
    // the patch whose middle is nearest
    const nearest = (starts, size, place) => starts.reduce((best, start, k) =>
      Math.abs(start + size / 2 - place) < Math.abs(starts[best] + size / 2 - place) ? k : best, 0);
    function point(event) {
      const frame = event.currentTarget.getBoundingClientRect();
      const x = (event.clientX - frame.left) / frame.width * now.width, y = (event.clientY - frame.top) / frame.height * now.height;
      if (x < 0 || y < 0 || x >= now.width || y >= now.height) return;
      pixel = {x: Math.floor(x), y: Math.floor(y)};
      at.column = nearest(lefts, wide, x); at.row = nearest(tops, high, y);
      show();
    }
    for (const target of [sheet, map]) for (const name of ["pointerdown", "pointermove"]) target.addEventListener(name, point);
    sheet.addEventListener("keydown", event => {
      const [right, down] = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key] || [0, 0];
      if (!right && !down) return;
      event.preventDefault();
      pixel = null;
      at.column = Math.max(0, Math.min(now.across - 1, at.column + right)); at.row = Math.max(0, Math.min(now.down - 1, at.row + down));
      show();
    });
    choice.addEventListener("change", () => {
      preferred = +choice.value; note.textContent = "";
      if (preferred >= 0 && !fits(pictures[preferred]))
        note.textContent = "The size is set to that of the picture, " + pictures[preferred].width + " × "
          + pictures[preferred].height + ".";
      if (preferred >= 0) { now.width = pictures[preferred].width; now.height = pictures[preferred].height; free(); }
      update();
    });
    overlay.addEventListener("change", show);
    const images = pictures.map(given => {
      const image = new Image();
      image.onload = () => { paint(); show(); };
      image.src = given.source;
      return image;
    });
    if (data.sprite) { sprite.onload = () => { paint(); show(); }; sprite.src = data.sprite; }
    whenResized(show);
    return function (value) { ask(value); update(); };"""


def poster_explorer(
    order: Tensor, classes: Sequence[str], patch: int | tuple[int, int], *, examples: Tensor | None = None,
    pictures: Mapping[str, Tensor | np.ndarray] | None = None, at: float = 0.5, patches: tuple[int, int] = (8, 4), caption: str = "",
    uid: str | None = None, label: str = "images per class",
) -> Widget:
    """Size a poster and lay patches over it: what is stored, what overlaps, and the label of the patch under the pointer.

    order: (g_y, g_x), the class of each cell; patch: its height and width, that of an image. The slider asks for images per
    class, from 0.1 to 1.5, which set width and height (`poster.size_for`); both can be set freely, too, and the patches across
    and down. The browser computes offsets, coverage, and the two labels of a patch as `poster.Layout`, `poster.fixed_labels`
    and `poster.learned_labels` do: fixed, and learned before the first step. What is smaller than a patch is set to its size.
    pictures: name to a poster (h, w) or (h, w, c), uint8 or float in [0, 1]; each is shown where the size is its own. Elsewhere
    every cell shows its class of examples (C, c, h, w), uint8 or float, or a colour. at, patches: the first settings.
    """
    high, wide = (patch, patch) if isinstance(patch, int) else patch
    names = [str(name) for name in classes]
    grid = order.tolist() if order.ndim == 2 else []
    if not grid or sorted(name for row in grid for name in row) != list(range(len(names))):
        raise ValueError(f"order must be a grid (g_y, g_x) with each of the {len(names)} classes once, got shape {tuple(order.shape)}")
    if min(high, wide) < 1:
        raise ValueError(f"a patch needs at least 1 pixel a side, got {wide}x{high}")
    if examples is not None and (examples.ndim != 4 or len(examples) != len(names) or examples.shape[1] not in (1, 3)):
        raise ValueError(f"examples must be one image for each of the {len(names)} classes, (C, c, h, w) with c = 1 or 3, "
                         f"got {tuple(examples.shape)}")
    stored, channels = [], 1 if examples is None else examples.shape[1]
    most = {"width": 2 * len(grid[0]) * wide, "height": 2 * len(grid) * high, "across": 64, "down": 64}
    for name, given in (pictures or {}).items():
        pixels = torch.as_tensor(given)
        if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3)):
            raise ValueError(f"a poster must be (h, w) or (h, w, c) with c = 1 or 3, {name!r} is {tuple(pixels.shape)}")
        pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
        height, width, channels = pixels.shape
        if height < high or width < wide:
            raise ValueError(f"the poster {name!r} of {width}x{height} is smaller than a patch of {wide}x{high}")
        source, *size = _sprite(_uint8(pixels.movedim(2, 0))[None, None])
        if size != [height, width]:
            raise ValueError(f"the poster {name!r} of {width}x{height} does not fit into {SPRITE_LIMIT:,} characters: show a smaller one")
        stored.append({"source": source, "width": width, "height": height})
        most["width"], most["height"] = max(most["width"], width), max(most["height"], height)
    if len(patches) != 2 or min(patches) < 1 or max(patches) > most["across"]:
        raise ValueError(f"patches must be how many lie across and down, 1 to {most['across']} each, got {patches}")
    sprite, tile_height, tile_width = ("", 0, 0) if examples is None else _sprite(_uint8(examples)[:, None])
    options = f'<option value="-1">{"an image of each class" if sprite else "classes in colour"}</option>'
    options += "".join(f'<option value="{place}">{escape(str(name))}</option>' for place, name in enumerate(pictures or {}))
    columns = "".join(f'<th scope="col">{name}</th>' for name in ("class", "pixels", "fixed label", "learned, at first"))
    body = (
        '<div class="poster"><div class="sizes"></div><p class="note" role="status"></p><div class="choose">'
        f'<label>Picture <select autocomplete="off">{options}</select></label><label>Drawn over it <select autocomplete="off">'
        '<option value="both">patches and classes</option><option value="patches">patches</option>'
        '<option value="classes">classes</option><option value="nothing">only the chosen patch</option></select></label></div>'
        f'<div class="tiles" aria-live="polite">{"<div></div>" * 5}</div><div class="views"><div class="maps">'
        '<strong>The poster: point at a patch, or use the arrow keys</strong><canvas tabindex="0" role="application"></canvas>'
        '<strong>Patches over each pixel: 1<span class="scale" style="background:linear-gradient(to right,#deebf7,#08306b)"></span>'
        '<span class="key"></span></strong><canvas role="img"></canvas><p class="said bare"></p></div>'
        '<div class="patch" aria-live="polite"><strong>The chosen patch</strong><canvas role="img"></canvas>'
        '<p class="said"><span class="over"></span><span class="which"></span>.</p>'
        f'<div>Fixed label: <b class="fixed"></b></div><table><thead><tr>{columns}</tr></thead><tbody></tbody></table></div></div>'
        '<details><summary>Where the patches begin</summary><div class="said"><div>Left edges: <span class="lefts"></span></div>'
        '<div>Top edges: <span class="tops"></span></div><div>Gaps between neighbours: <span class="gaps"></span></div></div></details>'
        + (f'<p class="said">{escape(caption)}</p>' if caption else "")
        + "<noscript>The pictures and numbers need JavaScript.</noscript></div>"
    )
    budgets = [k / 20 for k in range(2, 31)]
    return page(
        uid, label=label, values=budgets, texts=[f"{value:.2f}" for value in budgets], start=at, script=_POSTER_SCRIPT, css=_POSTER_CSS,
        body=body, data={"classes": names, "order": grid, "patch": [high, wide], "patches": list(patches), "channels": channels,
                         "most": most, "pictures": stored, "sprite": sprite, "width": tile_width, "height": tile_height},
    )


_FINDER_CSS = """
.ddlib-finder{color-scheme:light;color:#1f2328;background:#fff;border:1px solid #d0d7de;border-radius:6px;padding:.5em .3em;
margin:.3em 0;max-width:100%;box-sizing:border-box;font-size:.92rem;line-height:1.45}
.ddlib-finder form{display:flex;flex-wrap:wrap;gap:.4em .9em;align-items:end;padding:.1em .5em .3em;margin:0}
.ddlib-finder form[hidden]{display:none}
.ddlib-finder label{display:flex;flex-direction:column;font-weight:600;font-size:.92em;min-width:0}
.ddlib-finder select,.ddlib-finder input,.ddlib-finder button{font:inherit;font-weight:400;color:#1f2328;background:#fff;height:2em;
border:1px solid #8c959f;border-radius:4px;padding:0 .4em;margin:0;max-width:min(15em,80vw);box-sizing:border-box}
.ddlib-finder :focus-visible{outline:2px solid #0969da;outline-offset:2px}
.ddlib-finder .found{margin:.1em .5em;font-weight:600;font-variant-numeric:tabular-nums}
.ddlib-finder .ddlib-table .scroll{overflow:auto;max-height:30em}
.ddlib-finder .ddlib-table thead th{position:sticky;top:0;z-index:2}
.ddlib-finder .ddlib-table thead th:first-child{z-index:3}
.ddlib-finder tr[hidden]{display:none}
.ddlib-finder td,.ddlib-finder tbody th{text-align:left}
@media print{.ddlib-finder .ddlib-table .scroll{max-height:none}}
@media(max-width:480px){.ddlib-finder label{flex:1 1 8em}.ddlib-finder select,.ddlib-finder input{width:100%}
.ddlib-finder .ddlib-table .scroll{max-height:24em}.ddlib-finder .ddlib-table th:first-child{white-space:normal;min-width:7.5em}}
"""

_FINDER_SCRIPT = """
(function () {
  const here = document.currentScript;
  const root = (here && here.closest(".ddlib-finder")) || document.getElementById(%(uid)s);
  if (!root) return;
  const of = %(of)s, form = root.querySelector("form"), found = root.querySelector(".found");
  const choices = Array.from(form.querySelectorAll("select")), text = form.querySelector("input");
  const lines = Array.from(root.querySelectorAll("tbody tr")), texts = lines.map(line => line.textContent.toLowerCase());
  function update() {
    const words = text.value.toLowerCase().split(/\\s+/).filter(word => word);
    let count = 0;
    lines.forEach((line, k) => {
      const shown = choices.every((choice, c) => choice.value === "" || of[c][k] === +choice.value)
        && words.every(word => texts[k].includes(word));
      line.hidden = !shown;
      count += shown;
    });
    found.textContent = count + " of " + lines.length + " lines"
      + (count ? "" : ": nothing has all of this, set a filter back to all");
  }
  form.addEventListener("input", update);
  form.addEventListener("change", update);
  form.addEventListener("submit", event => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(update));
  form.hidden = false;
  update();
})();
"""


def finder(table: Table, by: Mapping[str, Sequence[str]], *, uid: str | None = None) -> Widget:
    """A long table with filters above it: one choice for each entry of `by`, and a search in all that is printed.

    by: what is chosen to its value for each of the table's lines; it need not be printed. A line is shown if it has all that is
    chosen and every word that is typed. Without JavaScript the page has the whole table and no filters.
    """
    count = len(table.rows)
    if not count or not by:
        raise ValueError("finder needs a table with at least one line and at least one thing to choose by")
    if wrong := [name for name, values in by.items() if len(values) != count]:
        raise ValueError(f"{wrong[0]!r} has {len(by[wrong[0]])} values for the table's {count} lines: give one for each line")
    kinds = [list(dict.fromkeys(values)) for values in by.values()]
    for place, values in enumerate(kinds):                   # numbers in their order, names as they come
        if all(re.fullmatch(r"[0-9.]+", value) for value in values if value != "full"):
            kinds[place] = sorted(values, key=lambda value: math.inf if value == "full" else float(value))
    of = [[values.index(value) for value in line] for values, line in zip(kinds, by.values(), strict=True)]
    uid = _uid(uid, _json([table.html(), kinds, of]))
    fields = []
    for name, values in zip(by, kinds, strict=True):
        options = "".join(f'<option value="{place}">{escape(value)}</option>' for place, value in enumerate(values))
        fields.append(f'<label>{escape(name)}<select autocomplete="off"><option value="">all</option>{options}</select></label>')
    right = ",".join(f"#{uid} td:nth-child({place})" for place, name in enumerate(table.columns, 1) if name in table.numeric)
    head, body = table.html().split("<tbody>")
    for tag in (' class="txt"', ' class="num"', "</td>", "</th>", "</tr>"):      # a style for each column and HTML's rules say the same
        body = body.replace(tag, "")
    run = _FINDER_SCRIPT % {"uid": _json(uid), "of": _json(of)}
    html = (
        f'<div class="ddlib-finder" id="{uid}">\n<style>{_FINDER_CSS}{right}{{text-align:right}}</style>\n<form hidden>{"".join(fields)}'
        '<label>text<input type="search" autocomplete="off" placeholder="any words"></label><button type="reset">show all</button></form>\n'
        f'<p class="found" role="status">{count} lines</p>\n{head}<tbody>{body}\n<script>{run}</script>\n</div>'
    )
    return Widget(uid, html, f"a table of {count} lines, filtered by {', '.join(by)}")


_COST_CSS = """
.ddlib-widget .costs .choose{display:flex;flex-wrap:wrap;gap:.4em 1em;margin:.1em 0 .5em}
.ddlib-widget .costs .choose label{display:flex;flex-direction:column;font-weight:600;min-width:0}
.ddlib-widget .costs select{font:inherit;font-weight:400;color:#1f2328;background:#fff;height:2em;border:1px solid #8c959f;
border-radius:4px;max-width:min(22em,82vw)}
.ddlib-widget .costs select:focus-visible,.ddlib-widget .costs .lines:focus-visible{outline:2px solid #0969da;outline-offset:2px}
.ddlib-widget .costs .lines{overflow:auto;max-height:22em;margin-top:.4em}
.ddlib-widget .costs table{border-collapse:collapse;margin:0;width:auto;font-size:.95em}
.ddlib-widget .costs th,.ddlib-widget .costs td{padding:.1em .8em .1em 0;border:0;background:#fff;color:#1f2328;text-align:right;
font-variant-numeric:tabular-nums;white-space:nowrap}
.ddlib-widget .costs th:first-child,.ddlib-widget .costs td:last-child{text-align:left}
.ddlib-widget .costs thead th{font-weight:600;border-bottom:1px solid #d0d7de;position:sticky;top:0}
.ddlib-widget .costs tbody th{font-weight:400}
.ddlib-widget .costs .swatch{display:inline-block;width:.75em;height:.75em;border-radius:50%;margin-right:.45em}
.ddlib-widget .costs .said{color:#57606a;margin:.3em 0;font-size:.92em}
@media (max-width:480px){.ddlib-widget .costs tbody th{white-space:normal;min-width:6.5em}
.ddlib-widget .costs th,.ddlib-widget .costs td{padding-right:.4em}.ddlib-widget .costs thead th{white-space:normal}}
"""

_COST_SCRIPT = r"""
    const ns = "http://www.w3.org/2000/svg", plot = body.querySelector(".chart"), table = body.querySelector("tbody");
    const [where, how, axis] = body.querySelectorAll("select"), head = body.querySelector(".axis"), note = body.querySelector(".said");
    const make = (tag, attributes, text) => {
      const element = document.createElementNS(ns, tag);
      for (const name in attributes) element.setAttribute(name, attributes[name]);
      if (text !== undefined) element.textContent = text;
      return element;
    };
    const axes = [{of: p => p[1], plain: n => Math.round(n).toLocaleString("en-US"), unit: " numbers", title: "numbers stored"},
      {of: p => p[2], plain: n => n < 10 ? n.toFixed(1) : Math.round(n), unit: " min", title: "minutes"}];
    let step = values.length, now, limit;

    function offer() {
      const kept = how.selectedIndex < 0 ? "" : how.options[how.selectedIndex].text;
      const names = Object.keys(data.places[where.value].protocols);
      how.replaceChildren(...names.map(name => Object.assign(document.createElement("option"), {textContent: name})));
      how.selectedIndex = Math.max(0, names.indexOf(kept || data.start));
    }
    function choose() {
      const whole = !now || step >= now.stops.length;                          // at its end the limit stays there
      now = data.places[where.value];
      now = {full: now.full, series: now.protocols[how.options[how.selectedIndex].text].map(k => data.lines[k]), axis: axes[+axis.value]};
      now.points = now.series.flatMap(line => line.points.map(point => ({line, point, x: now.axis.of(point)})));
      const all = now.points.map(p => p.x);
      now.low = Math.min(...all) / 1.3; now.high = Math.max(...all) * 1.3;
      now.stops = Array.from(new Set(all)).sort((a, b) => a - b);            // the limit goes from cost to cost
      step = whole ? now.stops.length : Math.min(step, now.stops.length);
      knob.max = +knob.min + (now.stops.length - 1) * knob.step;
      knob.value = +knob.min + (step - 1) * knob.step;
    }
    function chart() {
      const width = Math.max(240, Math.min(760, body.clientWidth)), height = width < 480 ? 280 : 330;
      const left = 46, right = 12, top = 10, bottom = 40;
      const reach = now.points.flatMap(p => [p.point[3] - p.point[4], p.point[3] + p.point[4]]).concat(now.full ? [now.full[0]] : []);
      const floor = Math.max(0, Math.floor(Math.min(...reach) / 10) * 10), ceiling = Math.min(100, Math.ceil(Math.max(...reach) / 10) * 10);
      const x = v => left + (width - left - right) * Math.log(v / now.low) / Math.log(now.high / now.low);
      const y = v => height - bottom - (height - top - bottom) * (v - floor) / (ceiling - floor);
      const svg = make("svg", {width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "font-size": 11, "aria-label":
        "Test accuracy against " + now.axis.title + ", " + now.points.filter(p => p.x <= limit).length + " points within the limit; "
        + "the numbers stand in the table below"});
      for (let v = floor; v <= ceiling; v += ceiling - floor > 50 ? 20 : 10) {
        svg.append(make("line", {x1: left, x2: width - right, y1: y(v), y2: y(v), stroke: "#e3e7eb"}));
        svg.append(make("text", {x: left - 5, y: y(v) + 4, "text-anchor": "end", fill: "#57606a"}, v));
      }
      for (let k = Math.floor(Math.log10(now.low)); k <= Math.log10(now.high); k++) for (const m of [1, 3]) {
        const v = m * 10 ** k;
        if (v < now.low || v > now.high) continue;
        svg.append(make("line", {x1: x(v), x2: x(v), y1: height - bottom, y2: height - bottom + 4, stroke: "#57606a"}));
        svg.append(make("text", {x: x(v), y: height - bottom + 16, "text-anchor": "middle", fill: "#57606a"},
          v >= 1000 ? v / 1000 + "k" : +v.toPrecision(1)));
      }
      svg.append(make("text", {x: (left + width - right) / 2, y: height - 5, "text-anchor": "middle", fill: "#57606a"}, now.axis.title));
      svg.append(make("text", {x: 11, y: (top + height - bottom) / 2, "text-anchor": "middle", fill: "#57606a",
        transform: `rotate(-90 11 ${(top + height - bottom) / 2})`}, "test accuracy, %"));
      if (now.full) {
        svg.append(make("line", {x1: left, x2: width - right, y1: y(now.full[0]), y2: y(now.full[0]), stroke: "#767676",
          "stroke-width": 1.5, "stroke-dasharray": "5 4"}));
        svg.append(make("text", {x: width - right, y: y(now.full[0]) + 13, "text-anchor": "end", fill: "#57606a"},
          now.full[1] + ": " + now.full[0]));
      }
      for (const line of now.series) {
        const sorted = line.points.map(p => [now.axis.of(p), p[3], p[4]]).sort((a, b) => a[0] - b[0]);
        const path = list => list.map(p => x(p[0]).toFixed(1) + "," + y(p[1]).toFixed(1)).join(" ");
        if (sorted.length > 1) {
          svg.append(make("polygon", {fill: line.color, opacity: .1,
            points: path(sorted.map(p => [p[0], p[1] + p[2]]).concat(sorted.map(p => [p[0], p[1] - p[2]]).reverse()))}));
          svg.append(make("polyline", {points: path(sorted), fill: "none", stroke: line.color, "stroke-width": 1, opacity: .5}));
        }
      }
      for (const {line, point, x: at} of now.points) {
        const inside = at <= limit, group = make("g", {opacity: inside ? 1 : .18});
        group.append(make("line", {x1: x(at), x2: x(at), y1: y(point[3] - point[4]), y2: y(point[3] + point[4]), stroke: line.color}));
        const r = 4.5, [cx, cy] = [x(at), y(point[3])], shape = {"selection": "circle", "pixels": "rect", "poster": "diamond",
          "codes + decoder": "triangle", "generator": "cross"}[line.kind] || "circle";
        const style = {fill: line.color, stroke: "#fff", "stroke-width": .8};
        group.append(shape === "circle" ? make("circle", {cx, cy, r, ...style})
          : shape === "rect" ? make("rect", {x: cx - r + .5, y: cy - r + .5, width: 2 * r - 1, height: 2 * r - 1, ...style})
          : make("polygon", {...style, points: {diamond: [[0, -6], [6, 0], [0, 6], [-6, 0]], triangle: [[0, -6], [5.5, 4], [-5.5, 4]],
            cross: [[-2, -5.5], [2, -5.5], [2, -2], [5.5, -2], [5.5, 2], [2, 2], [2, 5.5], [-2, 5.5], [-2, 2], [-5.5, 2], [-5.5, -2],
              [-2, -2]]}
            [shape].map(([dx, dy]) => (cx + dx).toFixed(1) + "," + (cy + dy).toFixed(1)).join(" ")}));
        group.append(make("title", {}, line.name + ", IPC " + point[0] + ": " + point[3].toFixed(1) + " ± " + point[4].toFixed(1) + " %, "
          + now.axis.plain(at) + now.axis.unit));
        svg.append(group);
      }
      svg.append(make("line", {x1: x(limit), x2: x(limit), y1: top, y2: height - bottom, stroke: "#0969da", "stroke-width": 1.5,
        class: "limit"}));
      plot.replaceChildren(svg);
    }
    function list() {
      const within = now.points.filter(p => p.x <= limit).sort((a, b) => b.point[3] - a.point[3]);
      head.textContent = now.axis.title;
      table.replaceChildren(...within.map(({line, point, x: at}) => {
        const row = document.createElement("tr"), first = document.createElement("th"), mark = document.createElement("span");
        first.scope = "row"; mark.className = "swatch"; mark.style.background = line.color;
        first.append(mark, line.name + ", " + point[0]); row.append(first);
        for (const text of [point[3].toFixed(1) + " ± " + point[4].toFixed(1) + " (" + point[5] + ")", now.axis.plain(at), line.kind]) {
          const cell = document.createElement("td");
          cell.textContent = text; row.append(cell);
        }
        return row;
      }));
      note.textContent = within.length + " of " + now.points.length + " points are within the limit. ● selection, ■ pixels, ◆ poster, "
        + "▲ codes + decoder, ✚ generator; a bar or band is one standard deviation over networks.";
    }
    function show() {
      step = Math.min(step, now.stops.length);
      limit = now.stops[step - 1];
      shown.textContent = now.axis.plain(limit) + now.axis.unit;
      knob.setAttribute("aria-valuetext", shown.textContent);
      chart(); list();
    }
    offer(); choose();
    where.addEventListener("change", () => { offer(); choose(); show(); });
    for (const menu of [how, axis]) menu.addEventListener("change", () => { choose(); show(); });
    whenResized(() => limit && chart());
    return function (value) { step = value; show(); };"""


def cost_explorer(points: Sequence[Point], full: Mapping[str, tuple[float, str]] | None = None, *, protocol: str = "",
                  uid: str | None = None, label: str = "at most") -> Widget:
    """Accuracy against stored numbers or minutes, for one dataset, test network and protocol at a time, and what is within a limit.

    points: `papers.points`. full: dataset to an accuracy for a dashed line, that of the full training set, and what it is called.
    protocol: shown first.
    The slider moves the limit from cost to cost; what lies within is drawn strongly and listed, highest accuracy first. Without
    JavaScript the page has the list that it would start with.
    """
    from ddlib.plots import colors

    if not points:
        raise ValueError("cost_explorer has no point to draw: give rows that have budget_scalars and minutes")
    paints = colors(sorted({point.series for point in points}))
    drawn: dict[tuple[Any, ...], list[list[Any]]] = {}
    for point in points:
        drawn.setdefault((point.place, point.protocol, point.series, point.kind), []).append(
            [point.ipc, round(point.scalars), float(f"{point.minutes:.3g}"), float(f"{point.mean:.1f}"), float(f"{point.std:.1f}"),
             point.n])                                       # as tables print them: a browser would round some halves otherwise
    lines: list[dict[str, Any]] = []
    places: dict[tuple[str, str], dict[str, list[int]]] = {}
    for (place, name, series, kind), values in drawn.items():
        line = {"name": series, "kind": kind, "color": paints[series], "points": values}
        if line not in lines:                                # what is stored as images stands in two protocols
            lines.append(line)
        places.setdefault(place, {}).setdefault(name, []).append(lines.index(line))
    data = [{"full": (full or {}).get(place[0]), "protocols": protocols} for place, protocols in places.items()]
    options = "".join(f'<option value="{k}">{escape(dataset)}, {escape(network)}</option>' for k, (dataset, network) in enumerate(places))
    first = next(iter(places))
    begin = protocol if protocol in places[first] else next(iter(places[first]))
    listed = sorted(((line, value) for line in (lines[k] for k in places[first][begin]) for value in line["points"]),
                    key=lambda each: -each[1][3])
    rows = "".join(f'<tr><th scope="row">{escape(line["name"])}, {value[0]}</th><td>{value[3]} ± {value[4]} ({value[5]})</td>'
                   f'<td>{value[1]:,}</td><td>{escape(line["kind"])}</td></tr>' for line, value in listed)
    body = (
        "<noscript><style>.ddlib-widget:has(.costs) .knob,.ddlib-widget .costs .choose{display:none!important}</style><p>All points of "
        f"{escape(', '.join(first))}, protocol {escape(begin)}; the chart and the other points need JavaScript.</p></noscript>"
        f'<div class="costs"><div class="choose"><label>dataset and test network<select autocomplete="off">{options}</select></label>'
        '<label>protocol<select autocomplete="off"></select></label><label>across<select autocomplete="off">'
        '<option value="0">numbers stored</option><option value="1">minutes</option></select></label></div><div class="chart"></div>'
        '<p class="said" role="status"></p><div class="lines" tabindex="0" role="region" aria-label="points within the limit"><table>'
        '<thead><tr><th scope="col">method, IPC</th><th scope="col">accuracy, % (n)</th><th scope="col" class="axis">numbers stored</th>'
        f'<th scope="col">stored as</th></tr></thead><tbody>{rows}</tbody></table></div></div>'
    )
    costs = [(place, name, cost) for place in places for name in places[place] for cost in (1, 2)]
    count = max(2, *(len({value[cost] for k in places[place][name] for value in lines[k]["points"]}) for place, name, cost in costs))
    steps = list(range(1, count + 1))
    return page(uid, label=label, values=steps, texts=[f"{step} of {count}" for step in steps], start=count, script=_COST_SCRIPT,
                css=_COST_CSS, body=body, data={"places": data, "lines": lines, "start": protocol})


# ---------------------------------------------------------------------------------------------------------- small parts


def _one_choice(function: str, choice: dict[str, Any]) -> tuple[str, Any]:
    if len(choice) != 1:
        got = ", ".join(choice) or "none"
        raise ValueError(f"{function}() moves one argument of the drawing function, as {function}(draw, tau=...); got {got}")
    return next(iter(choice.items()))


def _values(name: str, given: Any) -> tuple:
    try:
        values = tuple(value.item() if hasattr(value, "item") else value for value in given)
    except TypeError:
        raise ValueError(f"{name} must be a list of values, got {given!r}") from None
    if not values:
        raise ValueError(f"{name} has no values; give at least two, such as {name}=[1, 10]")
    if len(values) < 2:
        raise ValueError(f"{name} has the single value {values[0]!r}; a slider needs at least two")
    return values


def _index(name: str, values: tuple, start: Any) -> int:
    if start is None:
        return 0
    if start not in values:
        raise ValueError(f"start={start!r} is not among the values of {name}: {', '.join(map(_text, values))}")
    return values.index(start)


def _even(values: tuple) -> float | int | None:
    """The step of evenly spaced rising numbers, else None."""
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in values):
        return None
    step = values[1] - values[0]
    line = (values[0] + k * step for k in range(len(values)))
    even = step > 0 and all(math.isclose(v, w, rel_tol=1e-9, abs_tol=1e-9 * step) for v, w in zip(values, line, strict=True))
    return step if even else None


def _figure(draw: Callable[..., Any], name: str, value: Any) -> Figure:
    """draw(name=value), taken from pyplot if it was made there: a notebook would show it a second time."""
    from matplotlib.figure import Figure

    figure = draw(**{name: value})
    if not isinstance(figure, Figure):
        raise TypeError(f"the drawing function must return a matplotlib Figure, got {type(figure).__name__} at {name}={value}")
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close(figure)
    return figure


def _text(value: Any) -> str:
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def _json(data: Any) -> str:
    """JSON that is safe inside a script element: no "<", and no NaN, which is not JSON."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain)
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"data must be plain numbers, texts, lists and dictionaries, got {type(value).__name__}")


def _uid(uid: str | None, content: str) -> str:
    if uid is None:
        return "ddlib-" + hashlib.sha256(content.encode()).hexdigest()[:10]
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", uid):
        raise ValueError(f"uid must start with a letter and hold letters, digits, - and _ only, got {uid!r}")
    return uid
