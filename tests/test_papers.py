"""Published numbers, their conflicts, and measured rows beside them."""

from __future__ import annotations

import csv
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
