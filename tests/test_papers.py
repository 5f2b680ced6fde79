"""Published numbers, their conflicts, and measured rows beside them."""

from __future__ import annotations

import csv
import math
import re
from collections import Counter
from html.parser import HTMLParser

import pytest

from ddlib import papers


def row(**changes):
    base = {
        "dataset": "fashion_mnist", "method": "DM", "ipc": "10", "train_arch": "convnet3", "eval_arch": "convnet3",
        "variant": "width 32", "accuracy_mean": "80.12", "accuracy_std": "0.46", "n": "5", "protocol": "strict",
        "preset": "fashion_mnist-ipc10", "budget_scalars": "78400", "device": "cpu", "minutes": "12.34",
    }
    return base | changes


def line(table, method, ipc):
    (found,) = [dict(zip(table.columns, r, strict=True)) for r in table.rows if r[:2] == (method, str(ipc))]
    return found


def test_all_688_printed_cells_are_there_once():
    cells = papers.cells()
    assert len(cells) == 688
    assert Counter(cell.paper for cell in cells) == {"SKD": 166, "DDPP": 86, "GLD": 162, "PoDD": 56, "ESP": 218}
    keys = {(c.paper, c.table, c.dataset, c.method, c.ipc, c.train_arch, c.eval_arch, c.variant) for c in cells}
    assert len(keys) == 688


def test_cells_print_the_digits_of_the_paper():
    with papers.TABLES.open(newline="", encoding="utf-8") as file:
        for text, cell in zip(csv.DictReader(file), papers.cells(), strict=True):
            printed = text["accuracy_mean"] + (f"±{text['accuracy_std']}" if text["accuracy_std"] else "")
            assert cell.value == printed


def test_a_cell_without_a_deviation_says_none():
    (cell,) = papers.published("cifar10", "DM", 1, paper="PoDD")
    assert (cell.accuracy_mean, cell.accuracy_std, cell.table) == (26.0, None, "2")


@pytest.mark.parametrize("ipc", [10, 10.0, "10"])
def test_a_budget_may_be_a_number_or_its_text(ipc):
    assert {c.value for c in papers.published("cifar10", "MTT", ipc, paper="ESP")} == {"65.3±0.7"}


def test_the_complete_method_is_found_under_its_longer_name_and_versions_are_not():
    assert {c.variant for c in papers.published("cifar10", "KIP", 1)} == {"", "KIP to NN"}
    assert {c.variant for c in papers.published("cifar10", "SKD", 1)} == {""}
    (version,) = papers.published("cifar10", "SKD", 1, variant="no standardization")
    assert version.value == "51.4±0.4"


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"dataset": "imagenet"}, "cifar10"),
        ({"method": "dm"}, "DM"),
        ({"paper": "XYZ"}, "PoDD"),
        ({"eval_arch": "vit"}, "convnet3"),
        ({"variant": "mine"}, "no standardization"),
        ({"ipc": 0}, "positive"),
        ({"ipc": "many"}, "full"),
    ],
)
def test_unknown_names_are_answered_with_the_valid_ones(arguments, names):
    with pytest.raises(ValueError, match=names) as error:
        papers.published(**arguments)
    assert "\n" not in str(error.value)


def test_conflicts_are_the_claims_with_two_numbers():
    found = {(c.dataset, c.method, c.ipc): set(c.values) for c in papers.conflicts(eval_arch="convnet3", variant="")}
    assert found == {
        ("cifar10", "DM", 1): {"26.5±0.4", "26.0±0.8"},
        ("cifar10", "FRePo", 1): {"46.8±0.7", "45.6"},
        ("cifar10", "Herding", 1): {"21.5±1.3", "21.5±1.2"},
        ("cifar10", "Full dataset", "full"): {"84.8±0.1", "83.5"},
        ("cifar100", "Full dataset", "full"): {"56.2±0.3", "55.3"},
        ("cifar10", "MTT", 10): {"65.3±0.7", "64.3±0.7"},
        ("cifar10", "KIP", 10): {"62.7±0.3", "47.6±0.9"},
        ("cifar10", "FRePo", 10): {"65.5±0.6", "65.5±0.4"},
        ("cifar10", "DSA", 10): {"52.1±0.5", "52.1±0.4"},
        ("cifar10", "DDPP", 10): {"65.5±0.3", "65.4±0.4"},
        ("cifar10", "ESP", 1): {"63.0±0.4", "62.6±0.1"},
        ("cifar10", "ESP", 10): {"73.8±0.2", "73.0±0.3"},
        ("cifar10", "ESP", 50): {"76.1±0.3", "75.9±0.3", "75.9±0.2"},
        ("svhn", "ESP", 10): {"91.6±0.1", "91.6±0.2"},
    }


def test_a_missing_deviation_is_no_conflict():
    assert not papers.conflicts("cifar100", "DM", 1)  # 11.4±0.3 in two papers, 11.4 in PoDD
    (conflict,) = papers.conflicts("cifar10", "DM", 1)
    assert "26.0±0.8 in DDPP table I, ESP table 1, ESP table 2, PoDD table 2" in str(conflict)


def test_every_note_names_things_that_exist():
    cells = papers.cells()
    for note in papers.NOTES:
        assert set(note.papers) <= set(papers.PAPERS)
        assert set(note.datasets) <= {c.dataset for c in cells}
        assert set(note.methods) <= {c.method for c in cells}
        assert note.eval_arch in {c.eval_arch for c in cells}


def test_notes_are_found_by_what_they_are_about():
    texts = [note.text for note in papers.notes("fashion_mnist", "DSA", paper="SKD")]
    assert any("copying slip" in text for text in texts)
    assert not any("copying slip" in note.text for note in papers.notes("cifar10"))


def test_measured_rows_stand_beside_the_published_ones():
    table = papers.beside([row()], dataset="fashion_mnist", ipcs=[10], methods=["DM"])
    assert line(table, "DM", 10) == {
        "method": "DM", "ipc": "10", "budget": "78,400", "paper": "83.6±0.2", "ours: mean±std (n)": "80.1±0.5 (5)",
        "protocol/preset": "strict/fashion_mnist-ipc10", "width": "32", "device": "cpu", "minutes": "12.3",
    }


def test_every_line_tells_its_own_number_of_networks():
    table = papers.beside([row(n="3"), row(method="Random", n="20")], dataset="fashion_mnist", ipcs=[10], methods=["DM", "Random"])
    assert line(table, "DM", 10)["ours: mean±std (n)"].endswith("(3)")
    assert line(table, "Random", 10)["ours: mean±std (n)"].endswith("(20)")


def test_what_nobody_ran_says_not_run_with_its_budget():
    table = papers.beside([], dataset="cifar10", ipcs=[1, 10], methods=["Random", "SKD", "Full dataset"])
    assert {r[3] for r in table.rows} == {"not run"}
    assert line(table, "Random", 10)["budget"] == "307,200"
    assert line(table, "SKD", 10)["budget"] == "-"  # a generator's budget is not known before it is built
    assert [r[:2] for r in table.rows].count(("Full dataset", "full")) == 1


def test_disagreeing_papers_are_both_shown_and_named():
    table = papers.beside([], dataset="cifar10", ipcs=1, methods=["DM"])
    assert line(table, "DM", 1)["paper"] == "26.5±0.4 / 26.0±0.8 [1]"
    assert "SKD table 1" in table.footnotes[0] and "DDPP table I" in table.footnotes[0]


def test_the_latest_row_wins_and_a_tiny_row_never_hides_a_full_one():
    rows = [row(accuracy_mean=70), row(accuracy_mean=75), row(accuracy_mean=20, preset="tiny")]
    table = papers.beside(rows, dataset="fashion_mnist", ipcs=[10], methods=["DM"])
    assert line(table, "DM", 10)["ours: mean±std (n)"].startswith("75.0")
    alone = papers.beside(rows[2:], dataset="fashion_mnist", ipcs=[10], methods=["DM"])
    assert line(alone, "DM", 10)["ours: mean±std (n)"] == "20.0±0.5 (5) [1]"
    assert "tiny run" in alone.footnotes[0]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, "60.0"),
        ({"protocol": "published"}, "70.0"),
        ({"width": 64}, "50.0"),
        ({"preset": "other"}, "60.0"),
        ({"variant": "no standardization"}, "40.0"),
        ({"eval_arch": "resnet18"}, "30.0"),
        ({"width": 7}, "not run"),
    ],
)
def test_filters_choose_among_rows(filters, expected):
    rows = [
        row(accuracy_mean=40, variant="no standardization, width 32"),
        row(accuracy_mean=30, eval_arch="resnet18"),
        row(accuracy_mean=50, variant="width 64"),
        row(accuracy_mean=70, protocol="published"),
        row(accuracy_mean=60, preset="other"),
        row(accuracy_mean=10, ipc=1),
        row(accuracy_mean=11, dataset="mnist"),
        row(accuracy_mean=12, method="DSA"),
    ]
    table = papers.beside(rows, dataset="fashion_mnist", ipcs=[10], methods=["DM"], **filters)
    assert line(table, "DM", 10)["ours: mean±std (n)"].startswith(expected)


def test_rows_of_different_protocols_are_called_incomparable():
    rows = [row(), row(ipc=1, protocol="published")]
    table = papers.beside(rows, dataset="fashion_mnist", ipcs=[1, 10], methods=["DM"])
    assert any("do not compare" in note for note in table.footnotes)


def test_fashion_mini_borrows_published_numbers_only_on_request():
    rows = [row(dataset="fashion_mini")]
    plain = papers.beside(rows, dataset="fashion_mini", ipcs=[10], methods=["DM"])
    assert line(plain, "DM", 10)["paper"] == "-" and not plain.footnotes
    borrowed = papers.beside(rows, dataset="fashion_mini", ipcs=[10], methods=["DM"], published_as="fashion_mnist")
    assert line(borrowed, "DM", 10)["paper"] == "83.6±0.2 [1]"
    assert "tenth" in borrowed.footnotes[0]


@pytest.mark.parametrize("wrong", [{"dataset": "nope"}, {"methods": ["nope"]}, {"published_as": "fashion_mini"}])
def test_beside_refuses_names_it_does_not_know(wrong):
    with pytest.raises(ValueError, match="choose from"):
        papers.beside([], **({"dataset": "mnist", "ipcs": [1], "methods": ["DM"]} | wrong))


def test_a_row_without_its_columns_is_refused():
    with pytest.raises(ValueError, match="accuracy_mean"):
        papers.beside([{"dataset": "mnist", "method": "DM", "ipc": 1, "eval_arch": "convnet3"}],
                      dataset="mnist", ipcs=[1], methods=["DM"])


# ------------------------------------------------------------------------------------------------- generators, by protocol

FROZEN = {"frozen": "strict-cpu", "resampled": "strict-cpu-resampled"}


def generator(**changes):
    return row(**({"method": "SKD", "ipc": "1", "protocol": "strict-cpu", "preset": "cpu-full", "accuracy_mean": "56.4",
                   "accuracy_std": "2.2", "budget_scalars": "134017"} | changes))


def beside_random(rows, **options):
    """{line: its cells} of the table of SKD and Random at IPC 1."""
    table = papers.side_by_side(rows, **({"dataset": "fashion_mnist", "ipcs": [1], "methods": ("Random", "CGAN", "DiM", "SKD"),
                                          "protocols": FROZEN} | options))
    return table, {name: cells for name, *cells in table.rows}


def test_each_protocol_has_its_own_column_and_no_row_of_another_comes_in():
    rows = [generator(), generator(protocol="strict", accuracy_mean="70"), generator(protocol="strict-resampled", accuracy_mean="80"),
            generator(protocol="strict-cpu-resampled", accuracy_mean="76.4"), row(method="Random", ipc="1", protocol="strict-cpu")]
    table, lines = beside_random(rows)
    assert lines == {"Random, 1": ["80.1±0.5", "-"], "SKD, 1": ["56.4±2.2", "76.4±2.2"]}
    assert "strict-cpu, strict-cpu-resampled" in table.caption and "5 networks of width 32" in table.caption
    shorter = [each | {"protocol": each["protocol"] + " steps=100"} for each in rows]
    assert beside_random(shorter, protocols={how: f"{name} steps=100" for how, name in FROZEN.items()})[1] == lines
    _, longer = beside_random(rows, protocols={"frozen": "strict"})
    assert longer == {"SKD, 1": ["70.0±2.2"]}


def test_widths_of_test_networks_are_kept_apart():
    rows = [generator(), generator(variant="width 16", accuracy_mean="50"), generator(variant="", accuracy_mean="60"),
            row(method="Random", ipc="1", protocol="strict-cpu", variant="width 64"), row(method="Random", protocol="strict-cpu")]
    table, lines = beside_random(rows, ipcs=[1, 10], protocols={"frozen": "strict-cpu"})
    assert lines == {"SKD, 1, width 32": ["56.4±2.2"], "SKD, 1, width 16": ["50.0±2.2"], "SKD, 1, width usual": ["60.0±2.2"]}
    assert "of width" not in table.caption


def test_a_preset_is_shown_alone_with_its_versions_and_random():
    raw = generator(variant="no standardization, width 32", preset="cpu-full-no-standardization", accuracy_mean="56.3")
    rows = [generator(), raw, generator(preset="cpu-hour", accuracy_mean="60"), row(method="Random", ipc="1", protocol="strict-cpu")]
    _, lines = beside_random(rows, preset="cpu-full", names={("SKD", "no standardization"): "raw"}, protocols={"frozen": "strict-cpu"})
    assert lines == {"Random, 1": ["80.1±0.5"], "SKD, 1": ["56.4±2.2"], "raw, 1": ["56.3±2.2"]}
    assert not beside_random(rows, preset="gpu")[1], "Random alone compares nothing"
    about = {"cpu-full": "a GAN", "cpu-hour": "longer"}
    both = papers.larger_runs("SKD", rows, [FROZEN, {"recipe": "dim"}], about, methods=("Random", "SKD"))
    assert [table.caption.split(",")[1] for table in both] == [" preset cpu-full: a GAN", " preset cpu-hour: longer"]
    assert not papers.larger_runs("SKD", rows, [FROZEN], {}, methods=("Random", "SKD"))
    assert not papers.larger_runs("DiM", rows, [FROZEN], about, methods=("Random", "SKD"))


def test_what_nobody_ran_has_no_line_and_the_latest_row_counts():
    rows = [generator(accuracy_mean="1"), generator(), generator(ipc="10"), generator(method="GLD"), generator(dataset="mnist"),
            generator(eval_arch="resnet18")]
    _, lines = beside_random(rows, ipcs=[1, 50])
    assert lines == {"SKD, 1": ["56.4±2.2", "not run"]}


def test_the_paper_asked_for_is_printed_and_a_stand_in_is_named():
    rows = [generator(), generator(method="DiM", variant="weight 0.0, width 32"), generator(variant="weight 1.0, width 32")]
    table, lines = beside_random(rows, paper="SKD", protocols={"frozen": "strict-cpu"})
    assert lines == {"DiM, weight 0.0, 1": ["-", "56.4±2.2"], "SKD, 1": ["85.5±0.4", "56.4±2.2"], "SKD, weight 1.0, 1": ["-", "56.4±2.2"]}
    assert table.columns == ("method, IPC", "paper", "frozen") and len(table.footnotes) == 1
    assert beside_random(rows, paper="GLD", protocols={"frozen": "strict-cpu"})[1]["SKD, 1"][0] == "-"
    table, lines = beside_random([generator(dataset="fashion_mini")], dataset="fashion_mini", paper="SKD")
    assert lines["SKD, 1"][0] == "85.5±0.4" and "tenth" in table.footnotes[0]


def test_runs_that_trained_equally_long_are_said_to_be_so_far_apart():
    rows = [generator(), generator(method="DiM", accuracy_mean="56.0", accuracy_std="3.1"), generator(method="CGAN", accuracy_mean="90")]
    table, _ = beside_random(rows, alike=("DiM", "SKD"))
    assert table.footnotes[0] == "IPC 1, frozen: DiM, SKD within 0.40 points, largest deviation 3.1"
    assert table.footnotes[1:] == ("numbers stored: a generator: 134,017",)


def test_the_minutes_of_a_gan_are_said_to_be_in_one_row_only():
    options = {"dataset": "fashion_mnist", "ipcs": [1], "methods": ["CGAN", "SKD"]}
    assert any("in the row of CGAN" in note for note in papers.beside([generator()], **options).footnotes)
    without = [papers.beside(rows, **options).footnotes for rows in ([generator(minutes="")], [generator(method="CGAN")])]
    assert not any("row of CGAN" in note for footnotes in without for note in footnotes)


def test_a_printed_gain_is_told_in_points_and_standard_errors():
    table = papers.gains("SKD", {"over raw": (("SKD", ""), ("SKD", "no standardization")), "of CGAN": (("CGAN", ""), ("Random", ""))})
    lines = {name: cells for name, *cells in table.rows}
    assert lines["cifar10, 1"][:2] == ["51.6±0.5", "+0.2 (0.7)"]           # 51.4±0.4 without: 0.2 / sqrt((0.25 + 0.16) / 5) = 0.70
    assert lines["vgg11"] == ["69.2±0.1", "+1.0 (7.1)", "-"] and len(lines) == 12
    assert table.columns == ("table 1, IPC", "SKD", "over raw", "of CGAN")


def test_text_columns_line_up():
    table = papers.beside([row()], dataset="fashion_mnist", ipcs=[1, 10], methods=["Random", "DM"])
    lines = table.text().splitlines()
    start = lines[2].index("paper")
    assert all(re.match(r"\S", text[start:]) and text[start - 1] == " " for text in lines[4:8])
    assert str(table) == repr(table) == table.text()


def test_html_is_well_formed_escaped_and_has_headers():
    class Balance(HTMLParser):
        def __init__(self):
            super().__init__()
            self.open, self.rows, self.row_headers = [], 0, 0

        def handle_starttag(self, tag, attrs):
            self.open.append(tag)
            self.row_headers += ("scope", "row") in attrs
            self.rows += tag == "tr"

        def handle_endtag(self, tag):
            assert self.open.pop() == tag

    table = papers.beside([row(device="<b>&")], dataset="fashion_mnist", ipcs=[10], methods=["DM", "KIP"], caption="a<")
    html = table._repr_html_()
    parser = Balance()
    parser.feed(html)
    assert not parser.open and parser.rows == 3 and parser.row_headers == 2
    assert "&lt;b&gt;&amp;" in html and "<b>" not in html and "<caption><span>a&lt;</span></caption>" in html
    assert "<sup>[1]</sup>" in html and "<li>SKD table 1 and GLD" in html


# ------------------------------------------------------------------------------------------- every own cell beside our rows


def ours(**changes):
    """A row of SKD on Fashion-MNIST, complete as `papers.check_rows` wants it."""
    return row(**({"method": "SKD", "protocol": "strict-cpu", "preset": "cpu-full", "commit": "abc1234def", "seed": "0", "command": ""}
                  | changes))


def states(rows, **wanted):
    return [(match.state, match.protocol) for match in papers.matches(rows)
            if all(getattr(match.cell, name) == value for name, value in wanted.items())]


FASHION = {"paper": "SKD", "dataset": "fashion_mnist", "ipc": 10, "variant": ""}


def test_own_cells_are_those_of_each_papers_own_method():
    own = papers.own_cells()
    assert Counter(cell.paper for cell in own) == {"SKD": 26, "DDPP": 20, "GLD": 13, "PoDD": 10, "ESP": 40}
    assert all(cell.method == cell.paper for cell in own) and papers.own_cells("GLD") == [cell for cell in own if cell.paper == "GLD"]
    with pytest.raises(ValueError, match="choose from DDPP, ESP"):
        papers.own_cells("DM")


def test_without_rows_every_cell_is_there_once_and_not_run():
    found = papers.matches([])
    assert [match.cell for match in found] == papers.own_cells() and {match.state for match in found} == {"not run"}


@pytest.mark.parametrize(("changes", "expected"), [
    ({}, ("stand-in", "strict")),
    ({"protocol": "strict-cpu-resampled"}, ("stand-in", "resampled")),
    ({"protocol": "dim"}, ("stand-in", "published")),
    ({"dataset": "fashion_mini"}, ("other data", "strict")),
    ({"protocol": "dim", "variant": "", "preset": "fashion-mnist-ipc10"}, ("as published", "published")),
    ({"protocol": "dim", "variant": "", "preset": "fashion-mnist-ipc10", "command": "python -m x --preset fashion-mnist-ipc10 --seed 1"},
     ("as published", "published")),
    ({"protocol": "dim", "variant": "", "preset": "fashion-mnist-ipc10", "command": "python -m x --preset fashion-mnist-ipc10 --steps 9"},
     ("stand-in", "published")),
    ({"protocol": "dim", "variant": "", "preset": "gpu"}, ("stand-in", "published")),
    ({"protocol": "dsa", "variant": "", "preset": "fashion-mnist-ipc10"}, ("stand-in", "dsa")),
    ({"protocol": "dim", "preset": "fashion-mnist-ipc10"}, ("stand-in", "published")),
])
def test_only_the_published_settings_count_as_published(changes, expected):
    assert states([ours(**changes)], **FASHION) == [expected]


@pytest.mark.parametrize("changes", [
    {"ipc": "11"}, {"eval_arch": "vgg11"}, {"dataset": "mnist"}, {"method": "GLD"}, {"variant": "no standardization, width 32"},
    {"preset": "tiny"},
])
def test_a_row_about_something_else_does_not_stand_beside_a_cell(changes):
    assert states([ours(**changes)], **FASHION) == [("not run", "not run")]


def test_versions_stand_beside_their_own_cells():
    plain = ours(variant="no standardization, width 32", preset="cpu-full-no-standardization")
    assert states([plain], **FASHION | {"variant": "no standardization"}) == [("stand-in", "strict")]
    labels = ours(method="PoDD", dataset="cifar10", ipc="1", variant="learned labels, 8x4 patches, width 32")
    assert states([labels], paper="PoDD", dataset="cifar10", table="1") == [("stand-in", "strict")]
    wide = ours(method="DDPP", dataset="cifar10", ipc="1", variant="")
    assert states([wide], paper="DDPP", dataset="cifar10", ipc=1) == [("stand-in", "strict")] * 2          # tables I and II


def test_the_latest_of_equal_rows_counts_whatever_its_accuracy_and_seeds_stay_apart():
    first, second, other = (ours(accuracy_mean=mean, seed=seed) for mean, seed in (("90", "0"), ("80", "0"), ("70", "1")))
    assert [row["accuracy_mean"] for row in papers.latest([first, other, second])] == ["70", "80"]
    assert [row["accuracy_mean"] for row in papers.latest([second, first])] == ["90"]
    table, _ = papers.standings(papers.matches([other]))
    (line,) = [cells for cells in table.rows if cells[4] != "not run"]
    assert dict(zip(table.columns, line, strict=True))["preset"] == "cpu-full, seed 1"


def test_a_table_of_cells_shows_every_one_and_filters_fit_its_lines():
    rows = [ours(), ours(dataset="fashion_mini"), ours(protocol="dim")]
    found = papers.matches(rows)
    table, by = papers.standings(found)
    assert len(table.rows) == len(found) == 109 + 2 and {len(values) for values in by.values()} == {len(found)}
    (mini,) = [cells for cells, state in zip(table.rows, by["state"], strict=True) if state == "other data"]
    mark = re.search(r"\[(\d+)\]", mini[4])
    assert mark and "about a tenth" in table.footnotes[int(mark[1]) - 1]
    assert not [cells for cells, state in zip(table.rows, by["state"], strict=True) if state == "not run" and cells[4] != "not run"]
    assert table.rows[by["state"].index("stand-in")][5] == "-8.9 ± 0.3"


def test_lines_of_one_cell_are_told_apart_by_their_second_and_third_column_and_one_device_is_a_note():
    table, _ = papers.standings(papers.matches([ours(), ours(protocol="dim"), ours(preset="cpu-hour")]))
    assert len({cells[:3] for cells in table.rows if cells[4] != "not run"}) == 3 and "device" not in table.columns
    assert f"device of every row: {ours()['device']}" in table.footnotes
    table, _ = papers.standings(papers.matches([ours(), ours(protocol="dim", device="another")]))
    (line,) = [cells for cells in table.rows if cells[1] == "dim"]
    assert dict(zip(table.columns, line, strict=True))["device"] == "another"


def test_a_row_in_place_of_an_earlier_one_is_marked_and_one_of_another_preset_is_not():
    first, later, other = ours(), ours(accuracy_mean="80"), ours(preset="cpu-hour")
    assert [match.again for match in papers.matches([first, other, later]) if match.row] == [False, True]
    table, _ = papers.standings(papers.matches([first, other, later]))
    (mark,) = {text for cells in table.rows for text in re.findall(r"\[(\d+)\]", cells[4])}
    assert "earlier row" in table.footnotes[int(mark) - 1]
    pairs = [*pair(3), *pair(4)[:1]]
    (found,) = [each for each in papers.findings(pairs, [DDPP]) if each.measured]
    assert found.again and found.measured.points == 4 and "in place of" in papers.findings_table([found])[0].footnotes[1]


def test_a_published_preset_with_changed_options_says_which():
    changed = ours(preset="mnist-ipc1", command="python -m x --preset mnist-ipc1 --steps 9 --alpha-lr 1e-5 --seed 0 --results mine.csv")
    table, _ = papers.standings(papers.matches([changed]))
    assert "the preset mnist-ipc1 changed by --steps 9 --alpha-lr 1e-5" in table.footnotes
    assert not papers.Match(papers.own_cells("SKD")[0], changed | {"preset": "cpu-full"}).changes

def test_the_tally_counts_each_cell_once_by_its_nearest_row():
    rows = [ours(), ours(protocol="dim"), ours(dataset="fashion_mini", ipc="50"), ours(ipc="50"), ours(ipc="1", dataset="fashion_mini")]
    lines = {cells[0]: cells[1:] for cells in papers.tally(papers.matches(rows)).rows}
    assert lines["SKD"] == ("26", "24", "0", "2", "1", "23") and lines["all"][0] == "109" and lines["all"][2:] == ("0", "2", "1", "106")
    assert all(int(cells[0]) == sum(map(int, cells[2:])) for cells in lines.values())
    assert lines["ESP"][1] == "31"                                    # of 40: tables 1, 2 and 4 share nine


def test_a_difference_has_the_errors_of_both_means():
    (cell,) = [cell for cell in papers.own_cells("SKD") if (cell.dataset, cell.ipc, cell.variant) == ("fashion_mnist", 10, "")]
    points, error, reach = papers.difference(ours(accuracy_mean="80", accuracy_std="3", n="9"), cell)
    assert points == 80 - cell.accuracy_mean and abs(error - (9 / 9 + cell.accuracy_std**2 / 5) ** 0.5) < 1e-12
    assert 2 * error < reach < 3 * error
    alone = papers.difference(ours(accuracy_mean="80", accuracy_std="nan", n="1"), cell)
    assert abs(alone.error - cell.accuracy_std / 5**0.5) < 1e-12 and alone.reach == pytest.approx(2.776 * alone.error)   # t of 4


@pytest.mark.parametrize("stds", [(1, 1), (1, 4), (0.3, 0.2), (5, 0)])
@pytest.mark.parametrize("numbers", [(5, 5), (2, 2), (5, 20), (40, 70)])
def test_the_reach_of_a_difference_is_welchs(stds, numbers):
    stats = pytest.importorskip("scipy.stats")
    found = papers._apart((1.0, stds[0], numbers[0]), (0.0, stds[1], numbers[1]))
    parts = [std**2 / n for std, n in zip(stds, numbers, strict=True)]
    degrees = sum(parts) ** 2 / sum(part**2 / (n - 1) for part, n in zip(parts, numbers, strict=True))
    exact = stats.t.ppf(0.975, degrees) * found.error
    fewer = stats.t.ppf(0.975, max(1, degrees / 2)) * found.error       # a table rounds down, but never to less than half
    assert exact - 2e-3 <= found.reach <= fewer + 2e-3
    for known, quantile in papers.T95.items():
        assert abs(stats.t.ppf(0.975, known) - quantile) < 6e-4


def test_without_any_spread_no_difference_counts():
    found = papers._apart((90.0, None, 1), (10.0, math.nan, 5))
    assert (found.points, found.error, found.reach, found.sign) == (80, 0, math.inf, 0)
    assert [papers.Difference(points, 1, 2.5).sign for points in (2.4, 2.6, -2.4, -2.6)] == [0, 1, 0, -1]


@pytest.mark.parametrize(("changes", "message"), [
    ({"accuracy_mean": "0,52"}, r"row 2 of mine.csv has accuracy_mean = '0,52': write a number from 0 to 100"),
    ({"accuracy_mean": ""}, "accuracy_mean = ''"), ({"accuracy_mean": "nan"}, "accuracy_mean"), ({"accuracy_mean": "101"}, "from 0 to 100"),
    ({"n": "0"}, "from 1 up"), ({"minutes": "-1"}, "from 0 up"), ({"budget_scalars": "inf"}, "from 1 up"), ({"ipc": "ten"}, "'ten'"),
])
def test_a_row_that_cannot_be_compared_is_named(changes, message):
    assert len(papers.check_rows([ours(), ours(accuracy_std="", n="", minutes="", budget_scalars="")])) == 2
    with pytest.raises(ValueError, match=message) as error:
        papers.check_rows([ours(), ours(**changes)], "mine.csv")
    assert "\n" not in str(error.value)


def test_missing_columns_are_named():
    with pytest.raises(ValueError, match="mine.csv lack the columns commit, minutes"):
        papers.check_rows([{name: value for name, value in ours().items() if name not in ("commit", "minutes")}], "mine.csv")


# ------------------------------------------------------------------------------------------------------------------ claims


def pair(gain, *, std="1", n="4", **changes):
    common = {"accuracy_std": std, "n": n} | changes
    return [ours(method="DDPP", accuracy_mean=str(60 + gain), **common), ours(method="MTT", accuracy_mean="60", **common)]


DDPP = papers.CLAIMS[0]


@pytest.mark.parametrize(("gain", "verdict"), [(1.75, "holds"), (1.7, "open"), (0, "open"), (-1.7, "open"), (-1.75, "does not hold")])
def test_a_sign_counts_beyond_students_quantile(gain, verdict):      # an error of 1 / sqrt(2), times 2.447 for 6 degrees: 1.73
    (found,) = [each for each in papers.findings(pair(gain), [DDPP]) if each.measured]
    assert found.verdict == verdict and abs(found.measured[0] - gain) < 1e-9 and abs(found.measured[1] - 0.5**0.5) < 1e-9


@pytest.mark.parametrize("changes", [
    {"dataset": "mnist"}, {"ipc": "1"}, {"eval_arch": "vgg11"}, {"protocol": "dim"}, {"preset": "cpu-hour"}, {"seed": "1"},
    {"variant": "width 64"}, {"variant": "epsilon 0.5, width 32"},
])
def test_rows_of_different_conditions_are_not_compared(changes):
    one, other = pair(5)
    assert [each.verdict for each in papers.findings([one, other], [DDPP]) if each.measured] == ["holds"]
    assert not [each for each in papers.findings([one, other | changes], [DDPP]) if each.measured]


def test_printed_gains_without_rows_are_not_run_and_those_with_rows_stand_beside_them():
    printed = papers.printed_gains(DDPP)
    assert printed["cifar10", 10, "resnet18"][0] == pytest.approx(5.4) and printed["cifar100", 10, "convnet3"][0] == pytest.approx(3.0)
    found = papers.findings(pair(5, dataset="cifar10", ipc="10", eval_arch="resnet18", variant="width 8"), [DDPP])
    assert len(found) == len(printed) and sum(each.verdict == "not run" for each in found) == len(printed) - 1
    (measured,) = [each for each in found if each.measured]
    assert measured.printed == printed["cifar10", 10, "resnet18"]


def test_less_than_one_image_is_compared_with_one():
    claim = next(claim for claim in papers.CLAIMS if claim.below_one and claim.other[0] == "Random")
    poster = ours(method="PoDD", ipc="0.5", variant="fixed labels, 8x4 patches, width 32", preset="cpu", accuracy_mean="70")
    randoms = [ours(method="Random", ipc=ipc, preset="", accuracy_mean="50") for ipc in ("1", "0.5", "10")]
    found = [each for each in papers.findings([poster, poster | {"ipc": "1"}, *randoms], [claim]) if each.measured]
    assert [(each.ipc, each.measured[0]) for each in found] == [(0.5, 20.0)]


def test_versions_of_one_gan_are_one_family():
    claim = next(claim for claim in papers.CLAIMS if claim.other[1])
    plain = ours(accuracy_mean="79", variant="no standardization, width 32", preset="cpu-full-no-standardization")
    rows = [ours(accuracy_mean="80"), plain]
    assert [each.measured[0] for each in papers.findings(rows, [claim]) if each.measured] == [1.0]


def test_a_printed_gain_of_other_data_is_marked():
    claim = next(claim for claim in papers.CLAIMS if claim.other[0] == "DiM")
    rows = [ours(method=method, dataset=dataset) for method in ("GLD", "DiM") for dataset in ("fashion_mini", "fashion_mnist")]
    table, _ = papers.findings_table([each for each in papers.findings(rows, [claim]) if each.measured])
    assert {cells[1] for cells in table.rows} == {"fashion_mini [2]", "fashion_mnist"} and "a tenth" in table.footnotes[1]


def test_verdicts_count_every_finding():
    found = papers.findings([*pair(5), *pair(0, ipc="1"), *pair(-5, dataset="mnist")], [DDPP])
    counted = papers.verdicts(found)
    line = dict(zip(counted.columns, counted.rows[0], strict=True))
    assert [line[name] for name in ("holds", "open", "does not hold", "at print", "not run")] == ["1", "1", "1", "0", "13"]
    assert (line["claim"], line["our gains"], line["clear in print"]) == ("DDPP over MTT", "-5.0 to +5.0", "8 of 13")
    there = papers.verdicts(papers.findings(pair(5, dataset="cifar10", ipc="10"), [DDPP]))
    assert dict(zip(there.columns, there.rows[0], strict=True))["at print"] == "1"
    assert papers.verdicts(papers.findings([], papers.CLAIMS[-2:-1])).rows[0][-1] == "? of 1"              # no deviation is printed
    table, by = papers.findings_table(found)
    assert {len(values) for values in by.values()} == {len(table.rows)} == {16}


# ------------------------------------------------------------------------------------------------- costs and other networks


def test_a_generator_costs_its_gan_too():
    gan = {"method": "CGAN", "budget_scalars": "100000"}
    rows = [ours(**gan, minutes="44", ipc="1"), ours(**gan, minutes="50", ipc="10"), ours(**gan, minutes="9", preset="cpu-hour"),
            ours(minutes="4"), ours(method="DM", minutes="2")]
    found = {(point.series, point.ipc): point for point in papers.points(rows)}
    assert found["SKD", 10].minutes == 48 and found["DM", 10].minutes == 2 and found["CGAN (cpu-full)", 1].minutes == 44
    assert [found["SKD", 10].kind, found["DM", 10].kind] == ["generator", "pixels"]


def test_stored_images_stand_in_the_resampled_protocol_where_a_generator_does():
    rows = [ours(protocol="strict-cpu-resampled"), ours(method="DM"), ours(method="DM", dataset="mnist"), ours(method="DM", minutes="")]
    found = [(point.place[0], point.protocol, point.series) for point in papers.points(rows[:3])]
    assert found.count(("fashion_mnist", "strict-cpu-resampled", "DM")) == 1
    assert ("mnist", "strict-cpu-resampled", "DM") not in found and ("mnist", "strict-cpu", "DM") in found
    assert len(papers.points(rows[3:])) == 0                                                     # what it cost is not known


@pytest.mark.parametrize(("changes", "kind"), [
    ({"method": "DM"}, "pixels"), ({"method": "DM", "variant": "poster 98x39/8x4, width 32"}, "poster"), ({"method": "PoDD"}, "poster"),
    ({"method": "ESP"}, "codes + decoder"), ({"method": "Herding"}, "selection"), ({"method": "Mine"}, "other"),
])
def test_what_is_stored_is_told_from_the_row(changes, kind):
    assert papers.kind_of(ours(**changes)) == kind


def test_the_share_kept_on_other_networks_is_of_the_advantage_over_random():
    accuracies = {("Random", "convnet3"): 50, ("DM", "convnet3"): 70, ("Random", "vgg11"): 40, ("DM", "vgg11"): 50, ("MTT", "convnet3"): 70}
    rows = [ours(method=method, eval_arch=arch, accuracy_mean=str(mean), accuracy_std="2", n="5")
            for (method, arch), mean in accuracies.items()]
    table = papers.across(rows, dataset="fashion_mnist", ipc=10, protocol="strict-cpu")
    assert table.columns == ("method", "kept on vgg11", "convnet3", "vgg11")
    error = (2**2 * 2 / 5 * (1 + 0.5**2)) ** 0.5 / 20                           # both advantages have the error of two means
    assert {cells[0]: cells[1] for cells in table.rows} == {"Random": "-", "DM": f"0.50±{error:.2f}"}     # MTT: one network only
    assert papers.across(rows[:2], dataset="fashion_mnist", ipc=10, protocol="strict-cpu") is None


def test_generators_stand_beside_random_of_their_ipc_asked_once_and_anew():
    common = {"n": "5", "accuracy_std": "0.5"}
    rows = [ours(method="Random", accuracy_mean="70", budget_scalars="78400", preset="", **common),
            ours(accuracy_mean="69", **common), ours(method="DiM", accuracy_mean="70.1", **common),
            ours(accuracy_mean="75", protocol="strict-cpu-resampled", **common), ours(accuracy_mean="99", protocol="dim", **common)]
    (line,) = papers.generators_beside_photographs(rows).rows
    assert line[:5] == ("fashion_mnist, 10", "-1.0 to +0.1", "0 / 1 / 1", "+5.0 to +5.0", "1 / 0 / 0") and line[5].endswith("/ 78,400")
    assert papers.generators_beside_photographs(rows[1:]) is None
    upside_down = [row | {"accuracy_mean": str(140 - float(row["accuracy_mean"]))} for row in rows]
    assert papers.generators_beside_photographs(upside_down).rows[0][2] == "1 / 1 / 0"
