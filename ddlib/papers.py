"""The published numbers of five papers, where they contradict each other, and our rows beside them.

`assets/paper_tables.csv` holds one row per printed cell of every results table of SKD, DDPP, GLD, PoDD and ESP
(688 cells). `published()` finds cells, `conflicts()` computes where two tables claim different numbers for the same
thing, and `NOTES` lists what must be known and cannot be computed. `gains()` has the printed gains of a method, `beside()` puts
measured rows next to the papers, and `side_by_side()` compares methods, with a column for each protocol.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

TABLES = Path(__file__).parent / "assets" / "paper_tables.csv"
PAPERS = {
    "SKD": "Generative Dataset Distillation Based on Self-Knowledge Distillation (Li et al.)",
    "DDPP": "Dataset Distillation Using Parameter Pruning (Li et al.)",
    "GLD": "Generative Dataset Distillation: Balancing Global Structure and Local Details (Li et al.)",
    "PoDD": "Distilling Datasets Into Less Than One Image (Shul et al.)",
    "ESP": "Dataset Condensation via Expert Subspace Projection (Ma et al.)",
}
NOT_RUN = "not run"

# A complete method printed under a longer name; `published(variant="")` and `conflicts()` treat both names as one.
SAME_AS_COMPLETE = {("KIP", "KIP to NN"), ("CAFE", "CAFE + DSA"), ("ESP", "L_Proj + L_DM")}

# (classes, scalars per image), for the budget of a row that nobody has run yet
IMAGES = {
    "mnist": (10, 784), "fashion_mnist": (10, 784), "fashion_mini": (10, 784), "toy": (4, 256),
    "cifar10": (10, 3072), "svhn": (10, 3072), "cifar100": (100, 3072), "tiny_imagenet": (200, 12288),
}
STAND_INS = {"fashion_mini": "fashion_mnist"}    # whose published numbers stand beside a dataset that is in no paper
GO_ON_FROM_A_GAN = {"DiM", "GLD", "SKD"}         # the minutes of their rows are those of their own updates
STORES_PLAIN_IMAGES = {"Random", "Herding", "K-Center", "Forgetting", "DC", "DSA", "DM", "CAFE", "MTT", "DDPP"}
KINDS = {                                        # what is stored, by method
    "selection": ("Random", "Herding", "K-Center", "Forgetting", "Full dataset"), "pixels": ("DM", "DC", "DSA", "MTT", "DDPP", "RaT-BPTT"),
    "poster": ("PoDD",), "codes + decoder": ("KFS", "ESP"), "generator": ("CGAN", "DiM", "GLD", "SKD"),
}
OWN_PROTOCOLS = {                                # how each paper trains its test networks, in the names of `evaluate.PROTOCOLS`
    "SKD": ("dim", "skd-1", "skd-10", "skd-50"), "GLD": ("dim",), "DDPP": ("mtt",), "ESP": ("dsa",),
    "PoDD": ("podd", "podd-cifar100", "podd-cub200", "podd-tiny-imagenet"),
}
SETTINGS_KEPT = {                                # options of a command that leave a preset's settings as they are
    "preset", "out", "minutes", "snapshots", "data", "evaluate", "networks", "results", "ipc", "ipcs", "seed", "unroll",
}
DIVERGED: dict[tuple[Any, ...], str] = {         # (dataset, protocol, method, ipc, network) of what was tried and has no row
    ("fashion_mini", "strict-cpu", "DM", 1, "alexnet"): "DM on alexnet: of five networks one diverged and one stayed at chance",
}
# Two-sided 95 % quantiles of Student's t by degrees of freedom; between two of them the one of the fewer degrees counts.
T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228, 12: 2.179, 15: 2.131,
       20: 2.086, 30: 2.042, 60: 2.000, 120: 1.980}
STATES = ("as published", "stand-in", "other data", NOT_RUN)
AGAIN = "counts in place of an earlier row like it; exercise 1 of the last chapter has both"
NEEDED = ("dataset", "method", "ipc", "eval_arch", "variant", "accuracy_mean", "accuracy_std", "n", "protocol", "preset", "budget_scalars",
          "commit", "device", "minutes")


@dataclass(frozen=True)
class Cell:
    """One printed cell. Accuracies in percent; `ipc` is a number or "full"; `accuracy_std` is None if not printed."""

    paper: str
    table: str
    dataset: str
    method: str
    ipc: int | float | str
    train_arch: str  # network(s) the data was distilled with, "" where the paper does not say
    eval_arch: str  # network trained on the data and tested
    variant: str  # "" for the complete method
    accuracy_mean: float
    accuracy_std: float | None
    source: str
    note: str

    @property
    def claim(self) -> tuple[str, str, int | float | str, str, str]:
        """What the number is about: (dataset, method, ipc, eval_arch, variant)."""
        complete = (self.method, self.variant) in SAME_AS_COMPLETE
        return self.dataset, self.method, self.ipc, self.eval_arch, "" if complete else self.variant

    @property
    def value(self) -> str:
        return _value(self.accuracy_mean, self.accuracy_std)

    @property
    def place(self) -> str:
        return f"{self.paper} {self.table}" if self.table.startswith("Fig") else f"{self.paper} table {self.table}"


@dataclass(frozen=True)
class Note:
    """Something about printed numbers that comparing cells cannot find. Empty fields mean "any"."""

    text: str
    papers: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    ipc: int | None = None
    eval_arch: str = ""


NOTES = (
    Note(
        "SKD table 1 and GLD table 1 print the same three Fashion-MNIST cells for KIP and for DSA, deviations "
        "included; one of them is probably a copying slip.",
        ("SKD", "GLD"), ("fashion_mnist",), ("KIP", "DSA"), eval_arch="convnet3",
    ),
    Note(
        "KIP at IPC 10: DDPP table II says 62.7 is of width 1024 and 57.6 of width 128, while SKD table 2, GLD table 2 "
        "and DDPP table III print 47.6±0.9 (DDPP: also width 128).",
        ("SKD", "GLD", "DDPP", "ESP"), ("cifar10",), ("KIP",), ipc=10, eval_arch="convnet3",
    ),
    Note(
        "DDPP table II has KIP on CIFAR-100 lower at width 1024 (15.7, 28.3) than at width 128 (18.2, 32.8).",
        ("DDPP",), ("cifar100",), ("KIP",), eval_arch="convnet3",
    ),
    Note(
        "The same CAFE numbers are called CAFE by DDPP, SKD and GLD, and CAFE + DSA by ESP.",
        ("SKD", "DDPP", "GLD", "ESP"), ("cifar10", "cifar100"), ("CAFE",), eval_arch="convnet3",
    ),
    Note(
        "On DenseNet-121, ESP table 2 has the full SVHN set (89.1±0.8) below several condensed sets (up to 91.0).",
        ("ESP",), ("svhn",), ("Full dataset",), eval_arch="densenet121",
    ),
    Note(
        "PoDD table 2 prints an average of 10.8 for DM; its four values give 10.725.",
        ("PoDD",), ("average",), ("DM",), ipc=1,
    ),
    Note(
        "The caption of PoDD figure 1 gives the standard method at 1 IPC 35.5 on CIFAR-100; in table 2 that is RCIG, "
        "while RaT-BPTT has 35.3.",
        ("PoDD",), ("cifar100",), ("RCIG", "RaT-BPTT"), ipc=1, eval_arch="convnet3",
    ),
    Note(
        "Every standard deviation of PoDD and its cells below 1 IPC (except CIFAR-100 at 0.4) are missing.",
        ("PoDD",), (), ("PoDD",),
    ),
    Note("SKD table 1 and GLD table 1 do not name their test network; ConvNet-3 is inferred from their tables 2.",
         ("SKD", "GLD")),
    Note(
        "All 140 cells that SKD and GLD share are identical. SKD cites GLD but does not list it; GLD is higher in some "
        "cells (CIFAR-10 IPC 1: 52.3 against 51.6; ResNet-18: 71.6 against 69.9).",
        ("SKD", "GLD"), (), ("SKD", "GLD"),
    ),
    Note(
        "DDPP section III-C claims 5.2 over MTT on ResNet-18; table III gives 51.8 - 46.4 = 5.4.",
        ("DDPP",), ("cifar10",), ("DDPP", "MTT"), ipc=10, eval_arch="resnet18",
    ),
    Note(
        "ESP section 4.3 claims gains of 2.3, 5.4, 2.3 and 9.7 % at IPC 1. Against KFS these are relative and match "
        "for SVHN, CIFAR-10 and Tiny ImageNet; CIFAR-100 (41.1 against 40.0) is 2.75 %.",
        ("ESP",), (), ("ESP", "KFS"),
    ),
    Note(
        "ESP claims the state of the art on all four datasets; KFS is higher in its own tables for CIFAR-100 IPC 10 "
        "(50.6 against 48.0), Tiny ImageNet IPC 10 (27.8 against 26.6) and CIFAR-10 IPC 50 on DenseNet-121.",
        ("ESP",), (), ("ESP", "KFS"),
    ),
)


# ---------------------------------------------------------------------------------------------------- published cells


@cache
def cells() -> tuple[Cell, ...]:
    """All 688 printed cells, in the order of the papers' tables."""
    rows: list[dict[str, Any]] = []
    try:
        if not TABLES.is_file():
            raise TypeError("there is no such file")
        with TABLES.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file, strict=True):
                numbers = {"accuracy_mean": float(row["accuracy_mean"]), "accuracy_std": _number(row["accuracy_std"])}
                if None in row or None in row.values() or row["paper"] not in PAPERS:
                    raise TypeError(f"line {len(rows) + 2} has too many columns or too few, or is of no paper")
                if not all(0 <= number <= 100 for number in numbers.values() if number is not None):
                    raise TypeError(f"line {len(rows) + 2} has an accuracy that is no percentage")
                rows.append({**row, **numbers, "ipc": parse_ipc(row["ipc"])})
        return tuple(Cell(**row) for row in rows)
    except (csv.Error, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{TABLES} is missing or damaged ({error}): install ddlib again") from None


def dataset_names() -> tuple[str, ...]:
    """The datasets the papers report, without the derived "average" column of PoDD."""
    return tuple(sorted({cell.dataset for cell in cells()} - {"average"}))


def method_names() -> tuple[str, ...]:
    return tuple(sorted({cell.method for cell in cells()}, key=str.lower))


def parse_ipc(ipc: int | float | str) -> int | float | str:
    """1, 1.0 and "1" are one budget; "full" stays; anything else is an error."""
    if ipc == "full":
        return "full"
    try:
        number = float(ipc)
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f'ipc must be a positive number of images per class or "full", got {ipc!r}')
    return int(number) if number.is_integer() else number


def published(
    dataset: str | None = None,
    method: str | None = None,
    ipc: int | float | str | None = None,
    *,
    eval_arch: str | None = "convnet3",
    variant: str | None = "",
    paper: str | None = None,
) -> list[Cell]:
    """The printed cells that match every argument given; None matches all.

    `variant=""` is the complete method, also where a paper prints it under a longer name ("KIP to NN").
    ValueError lists the valid values when a dataset, method, network or paper occurs in no table.
    """
    _choose("dataset", dataset, {cell.dataset for cell in cells()})
    _choose("method", method, method_names())
    _choose("eval_arch", eval_arch, {cell.eval_arch for cell in cells()} - {""})
    _choose("variant", variant, {cell.variant for cell in cells()})
    _choose("paper", paper, PAPERS)
    ipc = None if ipc is None else parse_ipc(ipc)
    return [
        cell for cell in cells()
        if dataset in (None, cell.dataset) and method in (None, cell.method) and ipc in (None, cell.ipc)
        and eval_arch in (None, cell.eval_arch) and variant in (None, cell.variant, cell.claim[-1])
        and paper in (None, cell.paper)
    ]


@dataclass(frozen=True)
class Conflict:
    """Cells that claim the same thing with different numbers."""

    dataset: str
    method: str
    ipc: int | float | str
    eval_arch: str
    variant: str
    cells: tuple[Cell, ...]

    @property
    def values(self) -> dict[str, list[Cell]]:
        """Each printed value with the cells that print it."""
        return _by_value(self.cells)

    def __str__(self) -> str:
        what = ", ".join(filter(None, (self.method, self.variant, self.dataset, f"IPC {self.ipc}", self.eval_arch)))
        return f"{what}: {_where(self.values)}"


def conflicts(
    dataset: str | None = None,
    method: str | None = None,
    ipc: int | float | str | None = None,
    *,
    eval_arch: str | None = None,
    variant: str | None = None,
) -> list[Conflict]:
    """Groups of cells about one (dataset, method, ipc, eval_arch, variant) whose numbers differ.

    A cell without a deviation agrees with every cell of the same mean. Computed from the tables; see also `NOTES`.
    """
    groups: dict[tuple[str, str, int | float | str, str, str], list[Cell]] = {}
    for cell in published(dataset, method, ipc, eval_arch=eval_arch, variant=variant):
        groups.setdefault(cell.claim, []).append(cell)
    return [Conflict(*claim, cells=tuple(group)) for claim, group in groups.items() if len(_by_value(group)) > 1]


def notes(
    dataset: str | None = None, method: str | None = None, *, paper: str | None = None, eval_arch: str | None = None
) -> list[Note]:
    """The `NOTES` that may concern these cells."""
    _choose("dataset", dataset, {cell.dataset for cell in cells()})
    _choose("method", method, method_names())
    _choose("paper", paper, PAPERS)
    return [
        note for note in NOTES
        if (dataset is None or not note.datasets or dataset in note.datasets)
        and (method is None or not note.methods or method in note.methods)
        and (paper is None or not note.papers or paper in note.papers)
        and (eval_arch is None or note.eval_arch in ("", eval_arch))
    ]


# ---------------------------------------------------------------------------------------------- ours beside the papers


@dataclass(frozen=True)
class Table:
    """A printed table: `text()` in a terminal, HTML in a notebook. Every cell is a string."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    footnotes: tuple[str, ...] = ()
    caption: str = ""
    numeric: frozenset[str] = field(default_factory=frozenset)  # columns aligned to the right

    def text(self) -> str:
        """Aligned monospace columns, caption above, numbered footnotes below."""
        widths = [max(map(len, column)) for column in zip(self.columns, *self.rows, strict=True)]
        right = [name in self.numeric for name in self.columns]

        def line(row: Sequence[str]) -> str:
            parts = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True))
            return "  ".join(parts).rstrip()

        head = [self.caption, ""] if self.caption else []
        foot = ["", *(f"[{i}] {note}" for i, note in enumerate(self.footnotes, 1))] if self.footnotes else []
        return "\n".join([*head, line(self.columns), "  ".join("-" * w for w in widths), *map(line, self.rows), *foot])

    def html(self) -> str:
        """A table with caption, column and row headers; on a narrow screen it scrolls and keeps its first column."""
        align = ["num" if name in self.numeric else "txt" for name in self.columns]
        columns = zip(self.columns, align, strict=True)
        head = "".join(f'<th scope="col" class="{side}">{escape(name)}</th>' for name, side in columns)
        body = []
        for row in self.rows:
            first, *rest = (_marks(escape(cell)) for cell in row)
            data = "".join(f'<td class="{a}">{c}</td>' for c, a in zip(rest, align[1:], strict=True))
            body.append(f'<tr><th scope="row" class="txt">{first}</th>{data}</tr>')
        rows = "\n".join(body)
        caption = f"<caption><span>{escape(self.caption)}</span></caption>" if self.caption else ""
        foot = "".join(f"<li>{escape(note)}</li>" for note in self.footnotes)
        foot = f"<ol>{foot}</ol>" if foot else ""
        label = escape(self.caption or "results", quote=True)
        return (
            f'<div class="ddlib-table"><style>{_TABLE_CSS}</style>'
            f'<div class="scroll" role="region" tabindex="0" aria-label="{label}">'
            f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody></table></div>{foot}</div>"
        )

    def _repr_html_(self) -> str:
        return self.html()

    def __str__(self) -> str:
        return self.text()

    __repr__ = __str__


# Colours are set, not inherited: the page's dark theme puts a light box behind HTML outputs.
_TABLE_CSS = (
    ".ddlib-table{color:#1f2328;background:#fff;font-size:.9em;padding:.5em}"
    ".ddlib-table .scroll{overflow-x:auto;max-width:100%}"
    ".ddlib-table table{border-collapse:collapse;margin:0;width:auto}"
    ".ddlib-table caption{caption-side:top;text-align:left;color:#1f2328;font-weight:600;padding:.2em .6em .5em}"
    ".ddlib-table caption span{display:inline-block;position:sticky;left:.6em;max-width:calc(100vw - 5em)}"
    ".ddlib-table th,.ddlib-table td{padding:.3em .6em;border:0;border-bottom:1px solid #d0d7de;background:#fff;"
    "color:#1f2328;white-space:nowrap;font-variant-numeric:tabular-nums}"
    ".ddlib-table thead th{border-bottom:2px solid #57606a;vertical-align:bottom}"
    ".ddlib-table th:first-child{position:sticky;left:0;font-weight:600}"
    ".ddlib-table .txt{text-align:left}.ddlib-table .num{text-align:right}"
    ".ddlib-table ol{margin:.6em 0 0;padding-left:1.8em;font-size:.9em}"
    "@media(max-width:500px){.ddlib-table th,.ddlib-table td{padding:.3em .15em}.ddlib-table thead th{white-space:normal}}"
)

COLUMNS = ("method", "ipc", "paper", "ours: mean±std (n)", "budget", "protocol/preset", "width", "device", "minutes")
_NUMERIC = frozenset({"ipc", "budget", "width", "minutes"})


def beside(
    rows: Iterable[Mapping[str, Any]],
    *,
    dataset: str,
    ipcs: Sequence[int | float | str] | int | float | str,
    methods: Sequence[str],
    protocol: str | None = None,
    preset: str | None = None,
    eval_arch: str = "convnet3",
    variant: str = "",
    width: int | None = None,
    published_as: str | None = None,
    caption: str | None = None,
) -> Table:
    """Measured rows next to the papers: one line per method and ipc, "Full dataset" once, missing runs as "not run".

    rows: dictionaries with the columns of measured.csv, values as text or numbers, in file order. Where several rows
    match, the latest in file order wins, but a row of preset "tiny" never replaces another. `protocol`, `preset` and
    `width` restrict the rows; `variant` is the version of the method without its width ("" is the complete method).
    published_as: whose published numbers to show, for a dataset that is in no paper ("fashion_mini").
    """
    measured: list[Mapping[str, Any]] = [dict(row) for row in rows]
    for row in measured:
        missing = [name for name in ("dataset", "method", "ipc", "eval_arch", "accuracy_mean") if name not in row]
        if missing:
            raise ValueError(f"a measured row lacks {', '.join(missing)}; read rows with ddlib.evaluate.read_rows")
    known_methods = {*method_names(), *(row["method"] for row in measured)}
    _choose("dataset", dataset, {*dataset_names(), *IMAGES, *(row["dataset"] for row in measured)})
    _choose("dataset for published_as", published_as, dataset_names())
    methods = [methods] if isinstance(methods, str) else list(methods)
    ipcs = [parse_ipc(ipc) for ipc in ([ipcs] if isinstance(ipcs, int | float | str) else ipcs)]
    for method in methods:
        _choose("method", method, known_methods)
    if not methods or not ipcs:
        raise ValueError("beside() needs at least one method and one ipc")

    source = published_as or dataset
    footnotes: list[str] = []
    if published_as and published_as != dataset:
        footnotes.append(_stand_in(dataset, published_as))
    wanted = [(m, i) for i in ipcs if i != "full" for m in methods if m != "Full dataset"]
    if "Full dataset" in methods:
        wanted.append(("Full dataset", "full"))

    lines, protocols = [], []
    for method, ipc in wanted:
        found = [cell for cell in cells() if cell.claim == (source, method, ipc, eval_arch, variant)]
        values = _by_value(found)
        paper = " / ".join(values) or "-"
        marks = [1] if found and published_as and published_as != dataset else []
        if len(values) > 1:
            marks.append(_footnote(footnotes, f"the papers disagree: {_where(values)}"))
        for note in NOTES:
            about = method in note.methods and source in note.datasets and note.eval_arch == eval_arch
            if found and about and note.ipc in (None, ipc):
                marks.append(_footnote(footnotes, note.text))
        paper += "".join(f" [{mark}]" for mark in marks)

        measurement = _latest(
            measured, dataset=dataset, method=method, ipc=ipc, protocol=protocol, preset=preset, eval_arch=eval_arch,
            variant=variant, width=width,
        )
        if measurement is None:
            lines.append((method, str(ipc), paper, NOT_RUN, _budget(dataset, method, ipc), "-", "-", "-", "-"))
            continue
        protocols.append(str(measurement.get("protocol") or ""))
        ours = _value(float(measurement["accuracy_mean"]), _number(measurement.get("accuracy_std")))
        if measurement.get("n"):
            ours += f" ({int(float(measurement['n']))})"
        if measurement.get("preset") == "tiny":
            mark = _footnote(footnotes, "a tiny run: it shows that the code works, not what the method can do")
            ours += f" [{mark}]"
        scalars, minutes = _number(measurement.get("budget_scalars")), _number(measurement.get("minutes"))
        how = "/".join(str(measurement[name]) for name in ("protocol", "preset") if measurement.get(name)) or "-"
        budget = _budget(dataset, method, ipc) if scalars is None else f"{scalars:,.0f}"
        trained, device = str(_split_variant(measurement)[1] or "-"), str(measurement.get("device") or "-")
        took = "-" if minutes is None else f"{minutes:.1f}"
        lines.append((method, str(ipc), paper, ours, budget, how, trained, device, took))
    if any(line[0] in GO_ON_FROM_A_GAN and line[-1] != "-" for line in lines):
        footnotes.append("minutes are of a run's own updates and its test networks; those of the GAN are in the row of CGAN")
    if len(set(protocols)) > 1:
        footnotes.append(f"rows of different protocols ({', '.join(sorted(set(protocols)))}) do not compare")
    if caption is None:
        caption = f"{dataset}, test accuracy in percent, evaluated on {eval_arch}"
    return Table(COLUMNS, tuple(lines), tuple(footnotes), caption, _NUMERIC)


def side_by_side(
    rows: Iterable[Mapping[str, Any]],
    *,
    dataset: str,
    ipcs: Sequence[int | float],
    methods: Sequence[str],
    protocols: Mapping[str, str],
    preset: str | None = None,
    paper: str | None = None,
    names: Mapping[tuple[str, str], str] | None = None,
    alike: Collection[str] = (),
    caption: str = "",
) -> Table:
    """Generators of one GAN beside Random, on ConvNet-3, with a column for each protocol, {title: name}; what nobody ran has no line.

    A line is an IPC, a method, a version of it and a width of the test network; of equal rows the latest counts. preset: rows of
    this preset, or of it with the version's name behind ("cpu-full-no-standardization"), and Random where those are.
    paper: whose printed numbers to show; none by default. names: {(method, variant): name of its lines}. alike: methods that
    trained equally long; a note says how far apart they are at each IPC, beside the largest deviation of one.
    """
    found: dict[tuple[Any, ...], dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        key = (parse_ipc(row["ipc"]), row["method"], *_split_variant(row))
        here = (row["dataset"], row["eval_arch"]) == (dataset, "convnet3") and key[0] in ipcs and key[1] in methods
        if here and row["protocol"] in protocols.values() and (key[1] in STORES_PLAIN_IMAGES or preset in (None, family(row))):
            found.setdefault(key, {})[row["protocol"]] = row
    places = {(key[0], key[3]) for key in found if key[1] not in STORES_PLAIN_IMAGES}      # Random alone compares nothing
    widths = {width for _, width in places}
    lines, stored, networks = [], {}, set()
    apart: dict[tuple[Any, str], dict[str, tuple[float, float]]] = {}
    for key in sorted((key for key in found if (key[0], key[3]) in places), key=lambda key: (key[0], methods.index(key[1]))):
        ipc, method, variant, width = key
        name = (names or {}).get((method, variant)) or ", ".join(filter(None, [method, variant]))
        line = [", ".join([name, str(ipc)] + [f"width {width or 'usual'}"] * (len(widths) > 1))]
        if paper:
            claim = (STAND_INS.get(dataset, dataset), method, ipc, "convnet3", variant)
            line.append(next((cell.value for cell in cells() if cell.claim == claim and cell.paper == paper), "-"))
        for title, protocol in protocols.items():
            if protocol in found[key]:
                row = found[key][protocol]
                mean, std = float(row["accuracy_mean"]), _number(row["accuracy_std"])
                line.append(_value(mean, std))
                networks.add(str(row["n"]))
                stored[f"{method}, {ipc}" if method in STORES_PLAIN_IMAGES else "a generator"] = f"{int(row['budget_scalars']):,}"
                if method in alike:
                    apart.setdefault((ipc, title), {})[name] = mean, std or 0.0
            else:                                                # stored images cannot be drawn anew
                line.append("-" if method in STORES_PLAIN_IMAGES and "resampled" in protocol else NOT_RUN)
        lines.append(tuple(line))
    notes = [f"paper: {_stand_in(dataset, STAND_INS[dataset])}"] if paper and dataset in STAND_INS else []
    for (ipc, title), group in apart.items():
        if len(group) > 1:
            means, stds = zip(*group.values(), strict=True)
            notes.append(f"IPC {ipc}, {title}: {', '.join(group)} within {max(means) - min(means):.2f} points, "
                         f"largest deviation {max(stds):.1f}")
    notes.append("numbers stored: " + "; ".join(f"{name}: {size}" for name, size in stored.items()))
    size = f" of width {next(iter(widths)) or 'as usual'}" if len(widths) == 1 else ""
    who = f"{' or '.join(sorted(networks))} networks{size}; {', '.join(protocols.values())}"
    columns = ("method, IPC", *(["paper"] if paper else []), *protocols)
    return Table(columns, tuple(lines), tuple(notes), f"{caption or dataset}, test accuracy in % ({who})", frozenset(columns[1:]))


def larger_runs(of: str, rows: Sequence[Mapping[str, Any]], columns: Sequence[Mapping[str, str]], about: Mapping[str, str],
                **options: Any) -> list[Table]:
    """`side_by_side` at IPC 1, 10 and 50 wherever method `of` was run, by dataset and preset; a table for each of `columns` (protocols).

    about: {preset: what to say of it above the table}, for the presets that may be shown.
    """
    shown = {(row["dataset"], family(row)) for row in rows if row["method"] == of and family(row) in about}
    tables = [side_by_side(rows, dataset=dataset, preset=preset, ipcs=(1, 10, 50), protocols=protocols,
                           caption=f"{dataset}, preset {preset}: {about[preset]}", **options)
              for dataset, preset in sorted(shown, key=lambda each: ([*IMAGES].index(each[0]), each[1])) for protocols in columns]
    return [table for table in tables if table.rows]


def family(row: Mapping[str, Any]) -> str:
    """The preset of a row without the name of its version: "cpu-full" of "cpu-full-no-standardization"."""
    return str(row.get("preset") or "").removesuffix("-" + _split_variant(row)[0].replace(" ", "-"))


# -------------------------------------------------------------------------------------------------------- printed gains


def gain(one: Cell, other: Cell, n: int = 5) -> str:
    """"+1.0 (5.0)": the difference in points, and in standard errors of a difference of two means over n networks each."""
    error = math.hypot(one.accuracy_std or math.nan, other.accuracy_std or math.nan) / math.sqrt(n)
    difference = one.accuracy_mean - other.accuracy_mean
    return f"{difference:+.1f} ({difference / error:.1f})"


def gains(paper: str, pairs: Mapping[str, tuple[tuple[str, str], tuple[str, str]]]) -> Table:
    """Printed gains as columns {title: (what, over what)}, each a method and its variant; first the accuracy of the first `what`.

    From tables 1 and 2 of SKD or GLD: the ConvNet on three datasets, then other test networks on CIFAR-10 at IPC 10.
    """
    places: dict[tuple[Any, ...], dict[tuple[str, str], Cell]] = {}
    for cell in cells():
        if cell.paper == paper and (cell.table == "1" or cell.eval_arch != "convnet3"):
            places.setdefault((cell.table, cell.dataset, cell.ipc, cell.eval_arch), {})[cell.method, cell.variant] = cell
    first = next(iter(pairs.values()))[0]
    lines = []
    for (table, dataset, ipc, eval_arch), at in places.items():
        if first in at:
            title = f"{dataset}, {ipc}".replace("fashion_mnist", "fashion") if table == "1" else eval_arch
            lines.append((title, at[first].value, *(gain(at[one], at[other]) if {one, other} <= at.keys() else "-"
                                                    for one, other in pairs.values())))
    columns = ("table 1, IPC", first[0], *pairs)
    return Table(columns, tuple(lines), ("last three lines: table 2, other test networks, cifar10 at IPC 10",),
                 f"As {paper} prints it; gains in points (in standard errors)", frozenset(columns[1:]))


# ------------------------------------------------------------------------------------- every own cell, and what stands beside it


@dataclass(frozen=True)
class Match:
    """A printed cell and one measured row about the same thing, or None where nobody has run it."""

    cell: Cell
    row: Mapping[str, Any] | None
    again: bool = False                       # the row counts in place of an earlier one like it

    @property
    def state(self) -> str:
        """One of `STATES`: how near the row's settings are to those of the cell."""
        if self.row is None:
            return NOT_RUN
        if self.row["dataset"] != self.cell.dataset:
            return "other data"
        return "as published" if self._as_published(self.row) else "stand-in"

    @property
    def protocol(self) -> str:
        """How the row's networks were trained: "strict", "resampled", "published" (the paper's own protocol), or its name."""
        name = str((self.row or {}).get("protocol") or "")
        if name in OWN_PROTOCOLS[self.cell.paper]:
            return "published"
        return "resampled" if name.startswith("strict") and name.endswith("-resampled") else (
            "strict" if name in ("strict", "strict-cpu") else name or NOT_RUN)

    def _as_published(self, row: Mapping[str, Any]) -> bool:
        """The paper's protocol on networks of the usual width, from a published preset of which nothing was changed."""
        preset, changed = str(row.get("preset") or ""), set(re.findall(r"--([a-z][a-z-]*)", str(row.get("command") or "")))
        return (self.protocol == "published" and _split_variant(row)[1] is None and not changed - SETTINGS_KEPT
                and preset != "" and preset.split("-")[0] not in ("cpu", "gpu", "tiny"))

    @property
    def changes(self) -> str:
        """What a row's command changed of a preset that is not one for a CPU: "--steps 250", or ""."""
        row = self.row or {}
        if str(row.get("preset") or "cpu").split("-")[0] in ("cpu", "tiny"):
            return ""
        options = re.findall(r"--([a-z][a-z-]*) ([^-\s]\S*)", str(row.get("command") or ""))
        return " ".join(f"--{name} {value}" for name, value in options if name not in SETTINGS_KEPT)


def own_cells(paper: str | None = None) -> list[Cell]:
    """The printed cells of each paper's own method, or of one paper: what there is to reproduce."""
    _choose("paper", paper, PAPERS)
    return [cell for cell in cells() if cell.method == cell.paper and paper in (None, cell.paper)]


def _seed(row: Mapping[str, Any]) -> str:
    """", seed 1" of a row that is not of seed 0."""
    return f", seed {row['seed']}" if str(row.get("seed") or "0") != "0" else ""


def check_rows(rows: Iterable[Mapping[str, Any]], where: str = "these rows") -> list[Mapping[str, Any]]:
    """The rows, if every one can be compared; ValueError names the first that cannot, what it says and what would do."""
    checked = list(rows)
    for number, row in enumerate(checked, 1):
        if missing := [name for name in NEEDED if name not in row]:
            raise ValueError(f"{where} lack the column{'s' * (len(missing) > 1)} {', '.join(missing)}: rows of ddlib.evaluate have all")
        for name, low, high in (("accuracy_mean", 0, 100), ("accuracy_std", 0, 100), ("n", 1, math.inf), ("minutes", 0, math.inf),
                                ("budget_scalars", 1, math.inf)):
            if name != "accuracy_mean" and str(row[name] or "") in ("", "nan"):                        # one network has no spread
                continue
            try:
                value = float(row[name])
            except (TypeError, ValueError):
                value = math.nan
            if not low <= value <= high or math.isinf(value):
                raise ValueError(f"row {number} of {where} has {name} = {row[name]!r}: write a number from {low} "
                                 + (f"to {high} (percent)" if high == 100 else "up, or nothing"))
        try:
            parse_ipc(row["ipc"])
        except ValueError as error:
            raise ValueError(f"row {number} of {where}: {error}") from None
    return checked


def version(row: Mapping[str, Any]) -> str:
    """The version of the method in a row or cell, "" for the complete one.

    Without the width of the test network, and for PoDD without how labels are read and how many patches there are: the paper
    has both kinds of labels and leaves the patches open.
    """
    text = _split_variant(row)[0]
    if row["method"] == "PoDD":
        text = ", ".join(part for part in text.split(", ") if not re.fullmatch(r"(fixed|learned) labels|\d+x\d+ patches", part))
    return text


def alike(rows: Iterable[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Groups of rows that differ in nothing but when they were made, each in file order; no "tiny" ones.

    Another seed is another distillation, another preset another set of settings: both are groups of their own. Settings that have
    no column (see "command") may differ within a group.
    """
    found: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row.get("preset") != "tiny":
            key = (*(row[name] for name in ("dataset", "method", "eval_arch", "variant", "protocol", "preset")), parse_ipc(row["ipc"]),
                   _seed(row))
            found[key] = [*found.pop(key, []), row]
    return list(found.values())


def latest(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Of rows that are `alike` the last in file order, whatever their accuracies."""
    return [group[-1] for group in alike(rows)]


def matches(rows: Iterable[Mapping[str, Any]], printed: Iterable[Cell] | None = None) -> list[Match]:
    """Each printed cell (by default all own ones) with every row about it: dataset or its stand-in, method, version, IPC, network.

    Of equal rows the latest counts. A cell has a line for each row, nearest data first, or a single one without a row.
    """
    found: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    groups = alike(rows)
    again = {id(group[-1]) for group in groups if len(group) > 1}
    for *_, row in groups:
        for dataset in filter(None, (row["dataset"], STAND_INS.get(row["dataset"]))):
            found.setdefault((dataset, row["method"], parse_ipc(row["ipc"]), row["eval_arch"], version(row)), []).append(row)
    lines = []
    for cell in own_cells() if printed is None else printed:
        wanted = version({"method": cell.method, "variant": cell.claim[-1]})
        about = found.get((cell.dataset, cell.method, cell.ipc, cell.eval_arch, wanted), [])
        nearest = [row for row in about if row["dataset"] == cell.dataset]
        about = nearest + [row for row in about if row not in nearest]
        lines += [Match(cell, row, id(row) in again) for row in about] or [Match(cell, None)]
    return lines


def tally(found: Iterable[Match]) -> Table:
    """How many own cells each paper prints, and how many of them stand beside a row of which kind (the nearest counts)."""
    best: dict[int, tuple[Cell, str]] = {}
    for match in found:
        known = best.get(id(match.cell), (match.cell, NOT_RUN))[1]
        best[id(match.cell)] = match.cell, min(known, match.state, key=STATES.index)
    lines = []
    for paper in (*PAPERS, "all"):
        states = [state for cell, state in best.values() if paper in (cell.paper, "all")]
        claims = {(cell.paper, cell.claim) for cell, _ in best.values() if paper in (cell.paper, "all")}
        lines.append((paper, str(len(states)), str(len(claims)), *(str(states.count(state)) for state in STATES)))
    columns = ("paper", "own cells", "distinct", *("only other data" if state == "other data" else state for state in STATES))
    return Table(columns, tuple(lines), ("distinct: what is printed in several tables counts once; the other columns count all",
                                         "as published: the paper's protocol, networks as wide as there, a published preset left as it is",
                                         "stand-in: the same data, method, IPC and kind of network; smaller networks and shorter runs",
                                         "only other data: nothing but fashion_mini, about a tenth of Fashion-MNIST"),
                 numeric=frozenset(columns[1:]), caption="What the papers print of their own methods, and what stands beside it")


def standings(found: Sequence[Match], caption: str = "") -> tuple[Table, dict[str, list[str]]]:
    """All lines of `matches` as a table, and what each is filtered by, {"paper": one entry per line, ...}, for `widgets.finder`."""
    columns = ["cell, IPC", "protocol", "preset", "printed", "ours: mean±std (n)", "off by ± error", "scalars", "network, version", "width",
               "minutes", "device", "commit", "where"]
    devices = {str(match.row["device"] or "-") for match in found if match.row}
    lines: list[list[str]] = []
    notes: list[str] = []
    for match in found:
        cell, row = match.cell, match.row
        who, name = ", ".join(filter(None, [cell.eval_arch or "-", cell.variant])), f"{cell.paper} {cell.dataset}, {cell.ipc}"
        if row is None:
            lines.append([name, "-", "-", cell.value, NOT_RUN, "-", "-", who, *["-"] * 4, cell.place])
            continue
        ours = _value(float(row["accuracy_mean"]), _number(row["accuracy_std"])) + (f" ({row['n']})" if row["n"] else "")
        if match.state == "other data":
            ours += f" [{_footnote(notes, 'ours: ' + _stand_in(row['dataset'], cell.dataset))}]"
        if match.again:
            ours += f" [{_footnote(notes, AGAIN)}]"
        text = _split_variant(row)[0]
        who += f"; ours {text}" if text and text != cell.claim[-1] else ""
        off, error, _ = difference(row, cell)
        scalars, minutes, preset = _number(row["budget_scalars"]), _number(row["minutes"]), (row["preset"] or "-") + _seed(row)
        if match.changes:
            preset += f" [{_footnote(notes, f'the preset {preset} changed by {match.changes}')}]"
        lines.append([name, row["protocol"], preset, cell.value, ours, f"{off:+.1f} ± {error:.1f}",
                      "-" if scalars is None else f"{scalars:,.0f}", who, str(_split_variant(row)[1] or "usual"),
                      "-" if minutes is None else f"{minutes:.1f}", row["device"] or "-", (row["commit"] or "-")[:7], cell.place])
    notes.append("± is one standard error of the difference of two means, over our n networks and five (assumed) of the paper's; "
                 "where nothing is printed, of ours alone")
    notes.append("scalars: ours; of the papers' own methods only those of plain images (DDPP) follow from the IPC")
    if any(match.row and match.cell.method in GO_ON_FROM_A_GAN for match in found):
        notes.append("minutes of DiM, GLD and SKD are those of their own updates and test networks; the GAN's are in the row of CGAN")
    if len(devices) == 1:                                    # a column that says one thing is a note
        notes.append(f"device of every row: {next(iter(devices))}")
        at = columns.index("device")
        for line in (columns, *lines):
            del line[at]
    by = {"paper": [match.cell.paper for match in found], "dataset": [match.cell.dataset for match in found],
          "IPC": [str(match.cell.ipc) for match in found], "network": [match.cell.eval_arch or "-" for match in found],
          "protocol": [match.protocol for match in found], "state": [match.state for match in found]}
    numeric = frozenset({"printed", "ours: mean±std (n)", "off by ± error", "scalars", "width", "minutes"})
    return Table(tuple(columns), tuple(map(tuple, lines)), tuple(notes), caption, numeric), by


class Difference(NamedTuple):
    """One mean minus another, in points."""

    points: float
    error: float                              # its standard error
    reach: float                              # how far it must be from 0 to count: Student's 95 % quantile times the error, or inf

    @property
    def sign(self) -> int:
        """+1 or -1 where the difference counts, else 0."""
        return (self.points > self.reach) - (self.points < -self.reach)


def difference(row: Mapping[str, Any], cell: Cell, n: int = 5) -> Difference:
    """Ours minus print in points, the standard error of that (each mean's spread over networks, divided by their number), its reach.

    n: networks behind the printed number. Where no deviation is printed, or a row has one network, that part counts as 0. Where
    neither side has a spread the reach is infinite: nothing says how far off the means may be.
    """
    return _apart(_measured(row), (cell.accuracy_mean, cell.accuracy_std, n))


def _measured(row: Mapping[str, Any]) -> tuple[float, float | None, float | None]:
    """(mean, deviation, number of networks) of a row."""
    return float(row["accuracy_mean"]), _number(row["accuracy_std"]), _number(row["n"])


def _apart(one: tuple[float, float | None, float | None], other: tuple[float, float | None, float | None]) -> Difference:
    """One mean minus another, from (mean, deviation, number) of each, after Welch: neither spread is taken for the other's."""
    parts = [(std**2 / (n or 1), (n or 1) - 1) for _, std, n in (one, other) if std is not None and not math.isnan(std)]
    variance = sum(part for part, _ in parts)
    below = sum(part**2 / freedom if freedom else math.inf for part, freedom in parts if part)
    degrees = variance**2 / below + 1e-9 if below else 0.0              # rounding must not take 8 degrees for 7
    quantile = max((known for known in T95 if known <= degrees), default=None)
    error = math.sqrt(variance)
    return Difference(one[0] - other[0], error, T95[quantile] * error if quantile else math.inf)


# ----------------------------------------------------------------------------------------------------- claims and their signs


@dataclass(frozen=True)
class Claim:
    """What a paper says of its method: `method` is ahead of `other`, each (name, version), at the same IPC.

    below_one: the method at less than one image per class ("0.x") against the other at one.
    """

    paper: str
    method: tuple[str, str]
    other: tuple[str, str]
    below_one: bool = False

    @property
    def text(self) -> str:
        (one, _), (other, variant) = self.method, self.other
        return f"{one}{' 0.x' if self.below_one else ''} over {variant if other == one else other}"

    def compares(self, ipc: int | float | str, other: int | float | str) -> bool:
        return (not isinstance(ipc, str) and ipc < 1 and other == 1) if self.below_one else ipc == other


CLAIMS = (
    Claim("DDPP", ("DDPP", ""), ("MTT", "")),
    Claim("ESP", ("ESP", ""), ("KFS", "")),
    Claim("ESP", ("ESP", ""), ("MTT", "")),
    Claim("GLD", ("GLD", ""), ("DiM", "")),
    Claim("SKD", ("SKD", ""), ("DiM", "")),
    Claim("SKD", ("SKD", ""), ("SKD", "no standardization")),
    Claim("PoDD", ("PoDD", ""), ("RaT-BPTT", "")),
    Claim("PoDD", ("PoDD", ""), ("RaT-BPTT", ""), below_one=True),
    Claim("PoDD", ("PoDD", ""), ("Random", ""), below_one=True),
)
VERDICTS = ("holds", "open", "does not hold", NOT_RUN)


@dataclass(frozen=True)
class Finding:
    """One place where a claim is printed or was measured, with the gains, or None where there is none."""

    claim: Claim
    dataset: str
    ipc: int | float | str
    eval_arch: str
    protocol: str                             # of the rows, "" where there are none
    preset: str
    width: int | None
    printed: Difference | None
    measured: Difference | None
    again: bool = False                       # one of the two rows counts in place of an earlier one like it

    @property
    def verdict(self) -> str:
        """One of `VERDICTS`. The sign counts where zero is out of reach of it, at 95 %; otherwise it is open."""
        return NOT_RUN if self.measured is None else ("open", "holds", "does not hold")[self.measured.sign]

    @property
    def at_a_printed_place(self) -> bool:
        """Whether the paper prints this gain for the same data, IPC and network."""
        return self.printed is not None and self.dataset not in STAND_INS


def findings(rows: Iterable[Mapping[str, Any]], claims: Iterable[Claim] = CLAIMS) -> list[Finding]:
    """Every place where a claim was measured, and every place where it is printed and nobody has measured it.

    Two rows compare if dataset, network and its width, protocol, seed and preset are the same (selections have no preset), and
    IPC as the claim says. Printed gains come from the claim's paper; where that does not print the other method, from any paper.
    """
    sides: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    groups = alike(rows)
    again = {id(group[-1]) for group in groups if len(group) > 1}
    for *_, row in groups:
        sides.setdefault((row["method"], version(row)), []).append(row)
    found = []
    for claim in claims:
        printed = dict(printed_gains(claim))
        measured = set()
        for one in sides.get(claim.method, []):
            for other in sides.get(claim.other, []):
                same = all(one[name] == other[name] for name in ("dataset", "eval_arch", "protocol"))
                width, ipc = _split_variant(one)[1], parse_ipc(one["ipc"])
                same = same and width == _split_variant(other)[1] and family(other) in ("", family(one)) and _seed(one) == _seed(other)
                if same and claim.compares(ipc, parse_ipc(other["ipc"])):
                    gained = _apart(_measured(one), _measured(other))
                    place = STAND_INS.get(one["dataset"], one["dataset"]), ipc, one["eval_arch"]
                    found.append(Finding(claim, one["dataset"], ipc, one["eval_arch"], one["protocol"], family(one) + _seed(one), width,
                                         printed.get(place), gained, bool({id(one), id(other)} & again)))
                    measured.add((one["dataset"], ipc, one["eval_arch"]))
        found += [Finding(claim, *place, "", "", None, gained, None) for place, gained in printed.items() if place not in measured]
    return found


def printed_gains(claim: Claim) -> dict[tuple[str, int | float | str, str], Difference]:
    """{(dataset, ipc, network): gain} of a claim; deviations that are not printed count as 0."""
    own = [cell for cell in own_cells(claim.paper) if cell.dataset != "average"
           and (cell.method, version({"method": cell.method, "variant": cell.claim[-1]})) == claim.method]
    others = [cell for cell in cells() if (cell.method, cell.claim[-1]) == claim.other]
    gained: dict[tuple[str, int | float | str, str], Difference] = {}
    for cell in own:
        rivals = [each for each in others if (each.dataset, each.eval_arch) == (cell.dataset, cell.eval_arch)
                  and claim.compares(cell.ipc, each.ipc)]
        rivals = [each for each in rivals if each.paper == claim.paper] or rivals
        if rivals:
            each = rivals[0]
            gained.setdefault((cell.dataset, cell.ipc, cell.eval_arch),
                              _apart((cell.accuracy_mean, cell.accuracy_std, 5), (each.accuracy_mean, each.accuracy_std, 5)))
    return gained


def verdicts(found: Sequence[Finding]) -> Table:
    """One line per claim: in how many places it is printed and how large the gains are, and what our rows say of the sign."""
    lines, notes = [], []
    for claim in dict.fromkeys(finding.claim for finding in found):
        about = [finding for finding in found if finding.claim == claim]
        gains = printed_gains(claim).values()
        printed = [each.points for each in gains]
        clear = str(sum(each.sign > 0 for each in gains)) if all(each.error for each in gains) else "?"
        ours = [finding.measured.points for finding in about if finding.measured]
        there = sum(finding.measured is not None and finding.at_a_printed_place for finding in about)
        span = lambda values: " to ".join(dict.fromkeys(f"{each:+.1f}" for each in (min(values), max(values)))) if values else "-"
        states = [finding.verdict for finding in about]
        lines.append((claim.text, *(str(states.count(verdict)) for verdict in VERDICTS[:-1]), str(there), str(states.count(NOT_RUN)),
                      span(ours), span(printed), f"{clear} of {len(printed)}"))
    notes.append("holds, open, does not hold: comparisons of two of our rows, by dataset, IPC, network and protocol; "
                 "open means that the 95 % range of the difference has zero in it")
    notes.append("at print: how many of these comparisons are on data, IPC and network for which the paper prints the gain; "
                 "not run: printed places of which we have no pair of rows")
    notes.append("clear in print: gains whose 95 % range leaves out zero, ? where deviations are not printed")
    if any(finding.claim.below_one for finding in found):
        notes.append("0.x: less than one image per class, against one")
    columns = ("claim", *VERDICTS[:-1], "at print", NOT_RUN, "our gains", "printed gains", "clear in print")
    return Table(columns, tuple(lines), tuple(notes), "The signs of the papers' claims", frozenset(columns[1:]))


def findings_table(found: Sequence[Finding], caption: str = "") -> tuple[Table, dict[str, list[str]]]:
    """All findings as a table, and what each is filtered by, for `widgets.finder`."""
    told = lambda gained: f"{gained[0]:+.1f}" + (f" ± {gained[1]:.1f}" if gained[1] else "") if gained else "-"
    notes = ["gains in points ± one standard error, where deviations are printed"]
    if any(each.dataset in STAND_INS and each.printed for each in found):
        notes.append("fashion_mini stands beside printed gains of fashion_mnist, of which it is a tenth")
    lines = []
    for each in found:
        preset = each.preset + (f", width {each.width}" if each.width else "")
        borrowed = each.dataset in STAND_INS and each.printed is not None
        lines.append((each.claim.text, each.dataset + " [2]" * borrowed, str(each.ipc), each.eval_arch, told(each.printed),
                      told(each.measured) + (f" [{_footnote(notes, 'one of the two rows ' + AGAIN)}]" if each.again else ""), each.verdict,
                      each.protocol or "-", preset or "-"))
    columns = ("claim", "dataset", "IPC", "network", "printed gain", "our gain", "verdict", "protocol", "preset")
    by = {"claim": [each.claim.text for each in found], "dataset": [each.dataset for each in found],
          "IPC": [str(each.ipc) for each in found], "protocol": [each.protocol or "-" for each in found],
          "verdict": [each.verdict for each in found]}
    return Table(columns, tuple(lines), tuple(notes), caption, frozenset({"IPC", "printed gain", "our gain"})), by


# ----------------------------------------------------------------------------------------------------------- other networks


def across(rows: Iterable[Mapping[str, Any]], *, dataset: str, ipc: int | float, protocol: str) -> Table | None:
    """Complete methods on every test network that has rows, with the share of their advantage over Random that each other keeps.

    Of each network the width with the most methods. Random, whose images are stored, stands in tables of both protocols. None
    if only one network was tested.
    """
    stored = protocol.removesuffix("-resampled")
    found: dict[str, dict[int | None, dict[str, Mapping[str, Any]]]] = {}
    for row in latest(rows):
        wanted = stored if row["method"] == "Random" else protocol
        if (row["dataset"], parse_ipc(row["ipc"]), row["protocol"], version(row)) == (dataset, parse_ipc(ipc), wanted, ""):
            found.setdefault(row["eval_arch"], {}).setdefault(_split_variant(row)[1], {})[row["method"]] = row
    chosen = {arch: max(widths.items(), key=lambda each: len(each[1])) for arch, widths in found.items()}
    at = {arch: methods for arch, (_, methods) in chosen.items() if set(methods) - {"Random"}}
    others = [arch for arch in at if arch != "convnet3"]
    if "convnet3" not in at or not others:
        return None
    tested = {name for arch in others for name in at[arch]}
    names = [name for name in (name for kind in KINDS.values() for name in kind) if name in tested]
    names += sorted(tested - set(names))
    value = {(name, arch): _measured(row) for arch, methods in at.items() for name, row in methods.items()}
    over = {(name, arch): _apart(value[name, arch], value["Random", arch]) for name, arch in value if ("Random", arch) in value}
    lines: list[tuple[str, ...]] = []
    notes: list[str] = []
    for name in names:
        kept, values = [], []
        for arch in others:
            if name == "Random" or not {(name, arch), (name, "convnet3")} <= over.keys():
                kept.append("-")
                continue
            here, there = over[name, arch], over[name, "convnet3"]
            share = here.points / there.points if there.points else math.nan
            error = math.hypot(here.error, share * there.error) / abs(there.points) if there.points else math.nan
            kept.append(f"{share:.2f}±{error:.2f}")
        for arch in ("convnet3", *others):
            failed = DIVERGED.get((dataset, protocol, name, parse_ipc(ipc), arch))
            mark = f"diverged [{_footnote(notes, failed)}]" if failed else NOT_RUN
            values.append(_value(*value[name, arch][:2]) if (name, arch) in value else mark)
        lines.append((name, *kept, *values))
    sizes = [f"{arch} of width {chosen[arch][0]}" if chosen[arch][0] else arch for arch in ("convnet3", *others)]
    notes.append("kept: share of the advantage over Random on convnet3 that is left on this network, ± one standard error of that "
                 "(rough: the methods share Random's, and its networks share their seeds)")
    columns = ("method", *(f"kept on {arch}" for arch in others), "convnet3", *others)
    return Table(columns, tuple(lines), tuple(notes), f"{dataset} at IPC {ipc}, {protocol}, test accuracy in % ({', '.join(sizes)})",
                 frozenset(columns[1:]))


def generators_beside_photographs(rows: Iterable[Mapping[str, Any]], eval_arch: str = "convnet3") -> Table | None:
    """Complete generators minus Random of the same IPC under the strict protocols: the range over methods, and how many of them count.

    Random's images are stored, so its row is the same beside generators that are asked once and beside those that are asked anew.
    None without such rows.
    """
    known = [row for row in latest(rows) if row["eval_arch"] == eval_arch]
    places: dict[tuple[Any, ...], dict[bool, list[Difference]]] = {}
    stored: dict[tuple[Any, ...], str] = {}
    for row in known:
        if row["method"] not in KINDS["generator"] or version(row) or not row["protocol"].startswith("strict"):
            continue
        base, width = row["protocol"].removesuffix("-resampled"), _split_variant(row)[1]
        for other in known:
            same = all(other[name] == row[name] for name in ("dataset", "ipc")) and _split_variant(other)[1] == width
            if same and (other["method"], other["protocol"], version(other)) == ("Random", base, "") and _seed(other) == _seed(row):
                key = row["dataset"], parse_ipc(row["ipc"]), base, width
                places.setdefault(key, {}).setdefault(base != row["protocol"], []).append(_apart(_measured(row), _measured(other)))
                stored[key] = f"{int(row['budget_scalars']):,} / {int(other['budget_scalars']):,}"
    lines = []
    for key in sorted(places, key=lambda key: (list(IMAGES).index(key[0]) if key[0] in IMAGES else len(IMAGES), key[1])):
        texts = []
        for anew in (False, True):
            apart = places[key].get(anew, [])
            gained, signs = [each.points for each in apart], [sum(each.sign == sign for each in apart) for sign in (1, 0, -1)]
            texts += [f"{min(gained):+.1f} to {max(gained):+.1f}", " / ".join(map(str, signs))] if apart else [NOT_RUN, "-"]
        lines.append((f"{key[0]}, {key[1]}", *texts, stored[key]))
    columns = ("dataset, IPC", "asked once", "+ / 0 / -", "asked anew", "+ / 0 / - ", "numbers: GAN / Random")
    notes = ("ranges over the rows of CGAN, DiM, GLD and SKD and their presets; most share one GAN for each dataset",
             "+ / 0 / -: how many rows are ahead of Random, not apart from it, behind it")
    return Table(columns, tuple(lines), notes, f"Generators minus Random of the same IPC, {eval_arch}, strict protocols, points",
                 frozenset(columns[1:])) if lines else None


# ----------------------------------------------------------------------------------------------- what accuracy costs to have


@dataclass(frozen=True)
class Point:
    """A measured accuracy and what it costs: numbers to store, and minutes to make the set, its GAN included, and to test it."""

    place: tuple[str, str]                    # dataset and test network
    protocol: str
    series: str                               # method and version
    kind: str                                 # one of `KINDS`
    ipc: int | float | str
    scalars: float
    minutes: float
    mean: float
    std: float
    n: int


def kind_of(row: Mapping[str, Any]) -> str:
    """What is stored: one of `KINDS`; a poster is one whoever made it."""
    if "poster" in str(row.get("variant") or ""):
        return "poster"
    return next((kind for kind, names in KINDS.items() if row["method"] in names), "other")


def points(rows: Iterable[Mapping[str, Any]], eval_arch: str = "convnet3") -> list[Point]:
    """All rows of one test network as points of accuracy against cost, in file order; rows without their cost are left out.

    Rows of one GAN begin with its minutes: those of the cheapest CGAN row of the same dataset and preset, which has little but
    its training. Experts are shared by many runs and are in nobody's minutes. Stored images are the same whether a generator
    is asked once or anew, so they stand in both protocols.
    """
    known = [row for row in latest(rows) if row["eval_arch"] == eval_arch and row["budget_scalars"] and row["minutes"]]
    gans: dict[tuple[str, str], float] = {}
    for row in known:
        if row["method"] == "CGAN":
            key, minutes = (row["dataset"], family(row)), float(row["minutes"])
            gans[key] = min(minutes, gans.get(key, minutes))
    presets: dict[tuple[Any, ...], set[str]] = {}
    for row in known:
        presets.setdefault((row["dataset"], row["method"], version(row), row["protocol"]), set()).add(family(row))
    found = []
    for row in known:
        width, protocols = _split_variant(row)[1], [row["protocol"]]
        if row["protocol"].startswith("strict") and kind_of(row) != "generator":
            resampled = f"{row['protocol']}-resampled"
            alike = lambda other, row=row, width=width: (other["dataset"], _split_variant(other)[1]) == (row["dataset"], width)
            protocols += [resampled] if any(other["protocol"] == resampled and alike(other) for other in known) else []
        extra = gans.get((row["dataset"], family(row)), 0.0) if row["method"] in GO_ON_FROM_A_GAN else 0.0
        name = ", ".join(filter(None, [row["method"], version(row).removeprefix("poster ") if kind_of(row) != "poster" else
                                       "poster" if row["method"] != "PoDD" else version(row)]))
        several = len(presets[row["dataset"], row["method"], version(row), row["protocol"]]) > 1
        name += f" ({family(row)})" if several else ""
        network = eval_arch + (f" of width {width}" if width else ", usual width")
        for protocol in protocols:
            mean, std, n = _measured(row)
            std = 0.0 if std is None or math.isnan(std) else std
            found.append(Point((row["dataset"], network), protocol, name, kind_of(row), parse_ipc(row["ipc"]), float(row["budget_scalars"]),
                               extra + float(row["minutes"]), mean, std, int(n or 1)))
    return found


# ---------------------------------------------------------------------------------------------------------- small parts


def _choose(what: str, given: str | None, valid: Iterable[str]) -> None:
    valid = set(valid)
    if given is not None and given not in valid:
        names = ", ".join(sorted(valid - {""}, key=str.lower))
        raise ValueError(f"unknown {what} {given!r}; choose from {names}")


def _value(mean: float, std: float | None) -> str:
    return f"{mean:.1f}" if std is None or math.isnan(std) else f"{mean:.1f}±{std:.1f}"


def _number(text: Any) -> float | None:
    """A measured value that may be missing: "" and None are None."""
    return None if text in ("", None) else float(text)


def _by_value(group: Iterable[Cell]) -> dict[str, list[Cell]]:
    """{"26.5±0.4": cells, ...} in order of appearance; a bare mean joins a value with the same mean if there is one."""
    values: dict[str, list[Cell]] = {}
    for cell in sorted(group, key=lambda cell: cell.accuracy_std is None):
        key = cell.value
        if cell.accuracy_std is None:
            key = next((known for known in values if known.startswith(f"{key}±")), key)
        values.setdefault(key, []).append(cell)
    return values


def _where(values: Mapping[str, Sequence[Cell]]) -> str:
    places = {value: ", ".join(dict.fromkeys(cell.place for cell in group)) for value, group in values.items()}
    return "; ".join(f"{value} in {where}" for value, where in places.items())


def _footnote(footnotes: list[str], text: str) -> int:
    """The number of this footnote, added if it is new."""
    if text not in footnotes:
        footnotes.append(text)
    return footnotes.index(text) + 1


def _stand_in(dataset: str, published_as: str) -> str:
    text = f"published numbers are for {published_as}, not for {dataset}"
    if (dataset, published_as) == ("fashion_mini", "fashion_mnist"):
        text += ", which is about a tenth of it (500 training and 100 test images per class)"
    return text


def _marks(text: str) -> str:
    return re.sub(r" \[(\d+)\]", r"<sup>[\1]</sup>", text)


def _budget(dataset: str, method: str, ipc: int | float | str) -> str:
    """Stored scalars of a plain image set, "-" where it depends on the run."""
    if method in STORES_PLAIN_IMAGES and dataset in IMAGES and not isinstance(ipc, str):
        num_classes, scalars = IMAGES[dataset]
        return f"{ipc * num_classes * scalars:,.0f}"
    return "-"


def _split_variant(row: Mapping[str, Any]) -> tuple[str, int | None]:
    """("no standardization", 32) of the variant "no standardization, width 32"."""
    parts = [part.strip() for part in re.split(r"[,;]", str(row.get("variant") or "")) if part.strip()]
    widths = [int(part.split()[1]) for part in parts if re.fullmatch(r"width \d+", part)]
    return ", ".join(p for p in parts if not re.fullmatch(r"width \d+", p)), widths[-1] if widths else None


def _latest(
    rows: Sequence[Mapping[str, Any]],
    *,
    ipc: int | float | str,
    protocol: str | None,
    preset: str | None,
    variant: str,
    width: int | None,
    **equal: str,
) -> Mapping[str, Any] | None:
    """The last matching row in file order, the last complete one if there is any."""
    matching = [
        row for row in rows
        if all(row[name] == value for name, value in equal.items()) and parse_ipc(row["ipc"]) == ipc
        and protocol in (None, row.get("protocol")) and preset in (None, row.get("preset"))
        and _split_variant(row)[0] == variant and width in (None, _split_variant(row)[1])
    ]
    full = [row for row in matching if row.get("preset") != "tiny"]
    return (full or matching)[-1] if matching else None
