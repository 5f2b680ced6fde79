"""Widgets: the HTML of the page form, the live form, and real movement in a browser without a network."""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib")
from ddlib import papers, plots, poster, widgets
from ddlib.methods import ddpp, skd

NASTY = 'a<b>"&\'</script><script>alert(1)</script>'
CURVES = {"Random": [(10, 66.0, 1.0), (1, 40.0, 3.2)], "DM": [(1, 52.0, None), (10, 72.0, float("nan"))]}
PUBLISHED = {"DM": [(1, 71.5, 0.5), (10, 83.6, 0.2)]}


def draw(tau):
    return plots.bars({"a": tau, "b": 10 - tau}, size=(2, 1.5))


def pictures(per_class=12, classes=3, channels=1, size=8):
    rng = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (classes, per_class, channels, size, size), generator=rng, dtype=torch.uint8)


def explorer(**changes):
    arguments = {
        "images_by_class": pictures(), "classes": ["coat", "bag", "dress"], "curves": CURVES, "published": PUBLISHED,
        "max_ipc": 12, "start": 10, "full_size": 150, "uid": "ipc",
    }
    return widgets.ipc_explorer(**(arguments | changes))


LAYERS = {"block 1, weights": 400, "block 1, bias": 5, "linear, weights": 95}


def three_vectors(total=500):
    """Student, target and start with every hard case: flips, zeros, tiny numbers, and ratios that are an epsilon exactly."""
    rng = torch.Generator().manual_seed(0)
    start = torch.randn(total, generator=rng) * 10 ** (-6 * torch.rand(total, generator=rng))
    student, target = (start * (1 + torch.randn(total, generator=rng)) for _ in range(2))
    student[:8] = torch.tensor([0.0, 0.0, 1e-30, 0.01, 0.1, 0.5, 0.9, -0.1])
    target[:8] = torch.tensor([0.0, 1.0, -1e-30, 1.0, 1.0, 1.0, 1.0, 1.0])
    return student, target, start


def pruning(**changes):
    student, target, start = three_vectors()
    arguments = {"student": student, "target": target, "start": start, "layers": LAYERS, "uid": "eps"}
    return widgets.epsilon_explorer(**(arguments | changes))


SOME = 3 * torch.randn(2, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
SOME = (10 * SOME).round() / 10                              # what a slider can be set to
PEAKS = 10 * torch.eye(6, dtype=torch.float64)
EXAMPLES = {"any": (SOME[0], SOME[1]), "surer": (SOME[0], 3 * SOME[0] - 2), "peaks": (PEAKS[1], PEAKS[4]),
            "flat": (SOME[0], torch.full((6,), 4.0))}


def softening(**changes):
    return widgets.tau_explorer(**({"examples": EXAMPLES, "classes": list("abcdef"), "uid": "tau"} | changes))


SWEPT = {"loss": {"ours": [(3.0, 0.5), (2.0, None), 1.0], "none": 2.5}, "size": {"a": [1e-5, 0.0, 100.0], "b": [1.0, None, 2.0]}}


def swept(**changes):
    """Three images at each of the values 0, 0.001 and 10, and two charts."""
    arguments = {"pictures": dict(zip((0, 0.001, 10), pictures(), strict=True)), "names": list("abcdefghijkl"), "panels": SWEPT,
                 "log": ["size"], "label": "omega", "uid": "swept"}
    return widgets.sweep_explorer(**(arguments | changes))


ORDER = torch.tensor([[2, 0, 5], [1, 4, 3]])                 # six classes, patches of 8 x 6 (high x wide)


def posters(**changes):
    rng = torch.Generator().manual_seed(0)
    arguments = {"order": ORDER, "classes": list("abcdef"), "patch": (8, 6), "patches": (5, 3), "at": 1.0, "uid": "size",
                 "examples": pictures(1, 6)[:, 0],
                 "pictures": {"grey": torch.rand(12, 13, generator=rng), "colours": torch.rand(16, 18, 3, generator=rng)}}
    return widgets.poster_explorer(**(arguments | changes))


def point(series="DM", ipc=1, scalars=100, minutes=1.0, mean=50.0, *, kind="pixels", place=("toy", "convnet3"), protocol="strict"):
    return papers.Point(place, protocol, series, kind, ipc, scalars, minutes, mean, 2.0, 5)


POINTS = [point(), point(ipc=10, scalars=1000, minutes=5.0, mean=70.0), point("Random", minutes=0.1, mean=40.0, kind="selection"),
          point("SKD", scalars=5000, minutes=60.0, mean=60.0, kind="generator"), point("SKD", protocol="dim", kind="generator"),
          point(place=("mnist", "convnet3"))]


def costs(**changes):
    return widgets.cost_explorer(**({"points": POINTS, "full": {"toy": (90.0, "all images, printed")}, "uid": "cost"} | changes))


CELLS = (("SKD mnist", "97.9", "94.2"), ("SKD cifar10", "51.6", "not run"), ("ESP svhn", "84.8", "not run"), ("GLD mnist", "97.3", "94.1"))
FOUND = papers.Table(("cell", "printed", "ours"), CELLS, caption="cells", numeric=frozenset({"printed"}))
BY = {"paper": ["SKD", "SKD", "ESP", "GLD"], "IPC": ["10", "1", "1", "full"]}


def finding(**changes):
    return widgets.finder(**({"table": FOUND, "by": BY, "uid": "find"} | changes))


class Structure(HTMLParser):
    """Elements with their attributes; unbalanced tags are an error."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.open = [], []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("img", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def one(self, tag):
        (found,) = [attrs for name, attrs in self.elements if name == tag]
        return found


WIDGETS = {
    "frames": lambda **o: widgets.frames(draw, tau=[1, 2, 4], label="tau", **o),
    "page": lambda **o: widgets.page(label="x", values=[1, 2], script="return v => { body.textContent = v; };",
                                     **({"uid": None} | o)),
    "ipc_explorer": lambda **o: explorer(**o),
    "epsilon_explorer": lambda **o: pruning(**o),
    "tau_explorer": lambda **o: softening(**o),
    "sweep_explorer": lambda **o: swept(**o),
    "poster_explorer": lambda **o: posters(**o),
    "cost_explorer": lambda **o: costs(**o),
}


@pytest.mark.parametrize("name", WIDGETS)
def test_a_page_widget_has_a_labelled_slider_and_an_output(name):
    widget = WIDGETS[name](uid="my-widget")
    page = Structure(widget._repr_html_())
    assert page.elements[0] == ("div", {"class": "ddlib-widget", "id": "my-widget"})
    slider = page.one("input")
    assert slider["type"] == "range" and slider["aria-valuetext"]
    label = next(attributes for tag, attributes in page.elements if tag == "label")       # another knob's label is in its body
    assert label["for"] == page.one("output")["for"] == slider["id"]
    assert "my-widget" in repr(widget)


@pytest.mark.parametrize("name", WIDGETS)
def test_a_page_widget_fetches_nothing_and_leaves_no_global_names(name):
    html = WIDGETS[name]().html
    addresses = re.findall(r'(?:src|href)="([^"]*)"', html) + re.findall(r"https?://[^\"'\s)]+", html)
    assert all(address.startswith(("data:", "http://www.w3.org/2000/svg")) for address in addresses)
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    assert script.strip().startswith("(function () {") and script.strip().endswith("})();")


@pytest.mark.parametrize("name", WIDGETS)
def test_the_same_widget_has_the_same_bytes_and_id(name):
    build = WIDGETS[name]
    assert build(uid=None) == build(uid=None)
    assert build(uid=None).uid.startswith("ddlib-")


def test_another_content_has_another_id():
    one = widgets.frames(draw, tau=[1, 2])
    assert widgets.frames(draw, tau=[1, 3]).uid != one.uid != widgets.frames(draw, tau=[1, 2], start=2).uid


def test_labels_and_class_names_are_escaped():
    for html in (
        widgets.frames(draw, tau=[1, 2], label=NASTY, alt=lambda v: NASTY, text=lambda v: f"{NASTY}{v}").html,
        explorer(classes=[NASTY, "b", "c"], caption=NASTY, curves={NASTY: [(1, 50, 1)]}, label=NASTY).html,
        softening(classes=[NASTY, *"bcdef"], examples={NASTY: EXAMPLES["any"]}, label=NASTY).html,
        posters(classes=[NASTY, *"bcdef"], pictures={NASTY: torch.rand(9, 9)}, label=NASTY, caption=NASTY).html,
    ):
        assert html.count("<script>") == html.count("</script>") == 1
        assert "alert(1)</script>" not in html and "<b>" not in html
        Structure(html)


def test_data_survive_the_way_into_the_script():
    data = {"text": NASTY + "\u2028", "numbers": np.arange(3), "none": None}
    text = widgets._json(data)
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"text": NASTY + "\u2028", "numbers": [0, 1, 2], "none": None}
    with pytest.raises(ValueError):
        widgets._json(float("nan"))


def test_frames_hold_one_picture_per_value_and_start_where_told():
    html = widgets.frames(draw, tau=[1, 2, 4], start=2, label="tau, temperature").html
    assert len(set(re.findall(r"data:image/png;base64,[A-Za-z0-9+/=]+", html))) == 3
    assert html.count("data:image/png") == 3   # the first one shown is not stored twice
    page = Structure(html)
    assert page.one("img")["alt"] == "tau, temperature: 2" and page.one("input")["aria-valuetext"] == "2"
    slider = page.one("input")
    assert (slider["min"], slider["max"], slider["step"], slider["value"]) == ("0", "2", "1", "1")


def test_evenly_spaced_numbers_are_the_sliders_own():
    slider = Structure(widgets.frames(draw, tau=np.array([0.1, 0.2, 0.3]), start=0.2).html).one("input")
    assert (slider["min"], slider["max"], slider["step"], slider["value"]) == ("0.1", "0.3", "0.1", "0.2")


def test_a_pyplot_figure_is_not_left_to_be_shown_twice():
    import matplotlib.pyplot as plt

    widgets.frames(lambda tau: plt.figure(figsize=(1, 1)), tau=[1, 2])
    assert plt.get_fignums() == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: widgets.frames(draw, tau=[]), "no values"),
        (lambda: widgets.frames(draw, tau=[1]), "at least two"),
        (lambda: widgets.frames(draw, tau=3), "list of values"),
        (lambda: widgets.frames(draw), "got none"),
        (lambda: widgets.frames(draw, tau=[1, 2], beta=[1, 2]), "tau, beta"),
        (lambda: widgets.frames(draw, tau=[1, 2], start=3), "1, 2"),
        (lambda: widgets.frames(draw, tau=[1, 2], uid="1 2"), "uid"),
        (lambda: widgets.page("a", label="x", values=[1, 2], script="</script>"), "end it early"),
        (lambda: widgets.page("a", label="x", values=[1, 2], script="", texts=["1"]), "one entry per value"),
        (lambda: explorer(max_ipc=13), "12 images per class"),
        (lambda: explorer(classes=["a"]), "name every row"),
        (lambda: explorer(images_by_class=pictures().float()), "uint8"),
        (lambda: explorer(curves={"DM": [(0, 1, 1)]}), "positive"),
        (lambda: pruning(layers={"all": 499}), "vectors of the 499 parameters"),
        (lambda: pruning(start=torch.zeros(3)), r"\(3,\), \(500,\)"),
        (lambda: pruning(target=torch.full((500,), torch.nan)), "finite"),
        (lambda: pruning(at=0.005), "not among the values"),
        (lambda: softening(examples={}), "at least one pair"),
        (lambda: softening(classes=["a"]), r"1 logits, one per class, at least two; 'any' has \(6,\) and \(6,\)"),
        (lambda: softening(examples={"one": SOME[:1]}), r"'one' has \(6,\)"),
        (lambda: softening(examples={"none": (SOME[0], SOME[0] / 0)}), "finite, those of 'none'"),
        (lambda: softening(at=2.05), "not among the values"),
    ],
)
def test_wrong_arguments_are_answered_in_one_sentence(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_a_drawing_function_must_return_a_figure():
    with pytest.raises(TypeError, match="must return a matplotlib Figure, got int at tau=1"):
        widgets.frames(lambda tau: 1, tau=[1, 2])


@pytest.mark.parametrize("channels", [1, 3])
def test_the_embedded_pictures_are_small_and_in_place(channels, monkeypatch):
    import base64
    import io

    from PIL import Image

    noise = pictures(10, 3, channels, 16).numpy()
    uri, height, width = widgets._sprite(noise)
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))
    assert (height, width) == (16, 16)
    expected = noise[2, 7, 0] if channels == 1 else noise[2, 7].transpose(1, 2, 0)
    assert np.array_equal(sheet[32:48, 112:128], expected)   # row of class 2, eighth image
    monkeypatch.setattr(widgets, "SPRITE_LIMIT", 5_000)
    smaller, height, _ = widgets._sprite(noise)
    assert len(smaller) <= 5_000 and height <= 16
    monkeypatch.setattr(widgets, "SPRITE_LIMIT", 50)
    with pytest.raises(ValueError, match="show fewer"):
        widgets._sprite(noise)


def test_the_live_slider_calls_the_same_function():
    pytest.importorskip("ipywidgets")
    seen = []

    def remember(tau):
        seen.append(tau)
        return draw(tau)

    knob = widgets.knob(remember, tau=[1, 2, 4], span=(0.5, 4.0, 0.1), label="tau, temperature")
    live = knob.live()
    slider = live.children[0]
    assert slider.description == "tau, temperature" and slider.continuous_update is False
    assert (slider.min, slider.max, slider.step) == (0.5, 4.0, 0.1)
    slider.value = 2.0
    live.update()
    assert seen[-1] == 2.0
    page = knob.page("both")
    assert seen[-3:] == [1, 2, 4] and page.uid == "both"
    assert widgets.live(draw, tau=(1, 5, 1), start=3).children[0].value == 3
    assert widgets.live(draw, tau=[1, 2, 4], start=4).children[0].value == 4
    with pytest.raises(ValueError, match="low < high"):
        widgets.live(draw, tau=(5, 1, 1))


# ----------------------------------------------------------------------------------------------------------- a browser


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    api = pytest.importorskip("playwright.sync_api")
    if executable is None:
        pytest.skip("no chromium on this machine")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync"]
    with api.sync_playwright() as program:
        context = program.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"), executable_path=executable, headless=True, args=flags
        )
        yield context
        context.close()


@pytest.fixture
def show(chromium, tmp_path):
    """show(widgets...) opens them in one page; at the end nothing was fetched and no script failed."""
    failures, page = [], chromium.new_page()
    page.on("pageerror", lambda error: failures.append(str(error)))

    def route(request):
        local = request.request.url.startswith(("file:", "data:"))
        failures.extend([] if local else [request.request.url])
        return request.continue_() if local else request.abort()

    page.route("**/*", route)

    def opened(*shown, width=1000):
        file = tmp_path / "page.html"
        html = "".join(widget.html for widget in shown)
        file.write_text(f'<!doctype html><html lang="en"><meta charset="utf-8"><body>{html}', encoding="utf-8")
        page.set_viewport_size({"width": width, "height": 800})
        page.goto(file.as_uri())
        return page

    yield opened
    page.close()
    assert failures == []


@pytest.mark.browser
def test_frames_move_with_mouse_and_keyboard_and_two_widgets_do_not_collide(show):
    page = show(widgets.frames(draw, tau=[1, 2, 4], uid="one"), widgets.frames(draw, tau=[5, 6], uid="two"))
    slider, image = page.locator("#one input"), page.locator("#one img")
    first, other = image.get_attribute("src"), page.locator("#two img").get_attribute("src")
    slider.fill("2")
    assert page.locator("#one output").inner_text() == "4" == slider.get_attribute("aria-valuetext")
    assert image.get_attribute("src") != first and image.get_attribute("alt") == "tau: 4"
    page.wait_for_function("document.querySelector('#one img').naturalWidth > 0")
    slider.press("Home")
    assert image.get_attribute("src") == first
    slider.press("ArrowRight")
    assert page.locator("#one output").inner_text() == "2"
    assert page.locator("#two output").inner_text() == "5"
    assert page.locator("#two img").get_attribute("src") == other


@pytest.mark.browser
def test_the_explorer_shows_what_an_ipc_buys(show):
    page = show(explorer())
    slider, canvas = page.locator("#ipc input"), page.locator("#ipc canvas").nth(1)
    page.wait_for_function(
        "c => { const p = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; return p.some(v => v); }",
        arg=canvas.element_handle(),
    )
    assert page.locator("#ipc .budget").inner_text().startswith("10 × 3 classes × 1×8×8 = 1,920 stored scalars, 20 %")
    cells = [row.split("\t") for row in page.locator("#ipc tbody").inner_text().split("\n") if row.strip()]
    assert cells == [["Random", "66.0 ± 1.0", "–"], ["DM", "72.0", "83.6 ± 0.2"]]
    drawn, marker = canvas.evaluate("c => c.toDataURL()"), page.locator("#ipc .marker").get_attribute("x1")
    slider.fill("3")
    assert page.locator("#ipc output").inner_text() == "3"
    assert "= 576 stored scalars, 6 %" in page.locator("#ipc .budget").inner_text()
    assert page.locator("#ipc tbody td").all_inner_texts() == ["not measured", "–", "not measured", "not published"]
    assert float(page.locator("#ipc .marker").get_attribute("x1")) < float(marker)
    assert canvas.evaluate("c => c.toDataURL()") != drawn
    assert canvas.get_attribute("aria-label") == "3 images of bag"


@pytest.mark.browser
def test_with_notes_the_explorer_stops_at_their_ipc_and_says_them_instead_of_a_budget(show):
    page = show(explorer(notes={12: "all twelve", 1: NASTY, 5: "five of each"}, start=5))
    slider, budget = page.locator("#ipc input"), page.locator("#ipc .budget")
    for ipc, key, said in ((5, None, "five of each"), (12, "End", "all twelve"), (1, "Home", NASTY)):
        if key:
            slider.press(key)
        assert page.locator("#ipc output").inner_text() == str(ipc) and budget.inner_text() == said
        assert page.locator("#ipc canvas").first.get_attribute("aria-label").startswith(f"{ipc} image")


@pytest.mark.browser
def test_the_explorer_draws_the_pictures_it_was_given(show):
    pixels = pictures()
    pixels[1, 2] = 255
    pixels[1, 1] = 0
    page = show(explorer(images_by_class=pixels, start=3))
    canvas = page.locator("#ipc canvas").nth(1)
    read = """c => [0, 1, 2].map(k => c.getContext("2d").getImageData((k + .5) * c.width / 3, c.height / 2, 1, 1).data[0])"""
    page.wait_for_function("c => c.getContext('2d').getImageData(1, 1, 1, 1).data[3] > 0", arg=canvas.element_handle())
    assert canvas.evaluate(read)[1:] == [0, 255]


@pytest.mark.browser
@pytest.mark.parametrize("rule", ["signed", "absolute"])
def test_the_epsilon_explorer_computes_what_the_library_does(show, rule):
    student, target, start = three_vectors()
    page = show(pruning())
    page.locator("#eps select").select_option(rule)
    number = lambda text: float(text.replace("\u00a0%", ""))
    for epsilon in (0, 0.01, 0.1, 0.5, 0.9, 1):
        page.locator("#eps input").fill(str(epsilon))
        away = ~ddpp.keep_mask(student, target, epsilon, rule)
        tiles = page.locator("#eps .tiles div").all_inner_texts()
        assert f"pruned: {int(away.sum())} of 500 parameters" in tiles[0]
        for tile, end in ((tiles[1], student), (tiles[2], start)):
            squares = (end.double() - target.double()).square()
            assert number(tile.split("\n")[0]) == pytest.approx(100 * (squares[away].sum() / squares.sum()).item(), abs=0.051)
        assert tiles[3].startswith(f"{int((away & (student * target.sign() < 0)).sum())} of ")
        shares = [number(share) for share in page.locator("#eps tbody em").all_inner_texts()]
        assert shares == pytest.approx([100 * part.double().mean().item() for part in away.split(list(LAYERS.values()))], abs=0.051)


@pytest.mark.browser
def test_the_epsilon_explorer_redraws_for_the_slider_and_for_the_rule(show):
    page = show(pruning(), width=390)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator("#eps output").inner_text() == "0.10"
    look = lambda: page.locator("#eps canvas").evaluate_all("all => all.map(c => c.toDataURL() + c.getAttribute('aria-label'))")
    assert page.locator("#eps .panels strong").all_inner_texts() == ["block 1", "linear"] and len(look()) == 2
    before = look()
    page.locator("#eps input").press("ArrowRight")
    assert page.locator("#eps output").inner_text() == "0.11" and look() != before
    before = look()
    page.locator("#eps select").focus()
    page.keyboard.press("ArrowDown")
    assert page.locator("#eps select").input_value() == "absolute" and look() != before
    page.locator("#eps input").fill("0")
    assert page.locator("#eps .tiles b").first.inner_text() == "0.0\u00a0%"   # without signs nothing is below 0


def by_torch(real, syn, tau, reading):
    """Softened logits, probabilities, divergence and its gradient, of the library in float64."""
    syn = syn.clone().requires_grad_()
    views = torch.stack([real, syn])
    if reading == "population":                              # a deviation over C is smaller by this factor
        tau = tau * math.sqrt(1 - 1 / len(real))
    soft = views / tau if reading == "none" else skd.standardize_logits(views, tau)
    divergence = skd.skd_loss(views[:1], views[1:], tau, standardize=reading != "none")
    (slope,) = torch.autograd.grad(divergence, syn)
    return soft.detach(), soft.softmax(dim=1).detach(), divergence.item(), slope


def plain(text):
    return float(text.replace("−", "-"))


@pytest.mark.browser
@pytest.mark.parametrize("reading", ["sample", "population", "none"])
def test_the_tau_explorer_computes_what_the_library_does(show, reading):
    page = show(softening())
    page.locator("#tau select").nth(1).select_option(reading)
    page.locator("#tau summary").click()
    for name, (real, syn) in EXAMPLES.items():
        page.locator("#tau select").first.select_option(label=name)
        for tau in (0.5, 2, 8):
            page.locator("#tau-knob").fill(str(tau))
            soft, shares, divergence, slope = by_torch(real, syn.double(), tau, reading)
            cells = [row.split("\t")[1:] for row in page.locator("#tau tbody tr").all_inner_texts()]
            left_out = name == "flat" and reading != "none"  # no deviation: the library takes no such step
            assert all((row[6] == "–") == left_out for row in cells)
            table = torch.tensor([[plain(text.replace("–", "nan")) for text in row] for row in cells]).double()      # (C, 7)
            assert torch.equal((10 * table[:, :2]).round(), (10 * torch.stack([real, syn.double()], dim=1)).round())
            torch.testing.assert_close(table[:, 2:4], soft.T, rtol=0, atol=5.1e-4)
            torch.testing.assert_close(table[:, 4:6], shares.T, rtol=0, atol=5.1e-5)
            *tiles, length = page.locator("#tau .tiles b").all_inner_texts()
            tiles = [plain(text) for text in tiles]
            assert tiles[0] == pytest.approx(divergence, abs=5.1e-5)
            assert tiles[1] == pytest.approx(tau**2 * divergence, abs=5.1e-4)
            assert tiles[3] == pytest.approx(shares[0].max().item(), abs=5.1e-4) and tiles[3] <= tiles[2]
            assert (length == "flat: left out") == left_out
            if not left_out:
                torch.testing.assert_close(table[:, 6], slope, rtol=1e-6, atol=5.1e-6)
                assert plain(length) == pytest.approx(slope.norm().item(), rel=0.051, abs=1e-8)
            if name == "peaks" and reading != "none":
                assert tiles[3] == tiles[2]                  # one peak among equals reaches the cap


@pytest.mark.browser
def test_the_tau_explorer_shows_the_cap_of_ten_classes(show):
    peak = 5 * torch.eye(10)[0]
    page = show(softening(examples={"peak": (peak, peak)}, classes=list("abcdefghij")))
    assert "cap is 0.351 with a deviation over C − 1 classes and 0.370" in page.locator("#tau .cap").inner_text()
    assert page.locator("#tau .tiles b").nth(2).inner_text() == "0.351"
    limit = lambda: float(page.locator("#tau .limit").get_attribute("x1"))
    before = limit()
    page.locator("#tau select").nth(1).select_option("population")
    assert page.locator("#tau .tiles b").nth(2).inner_text() == "0.370" and limit() > before
    page.locator("#tau-knob").fill("1")
    assert "cap is 0.724 with a deviation over C − 1 classes and 0.757" in page.locator("#tau .cap").inner_text()
    page.locator("#tau select").nth(1).select_option("none")
    assert page.locator("#tau .limit").count() == 0 and page.locator("#tau .tiles b").nth(2).inner_text() == "1.000"


@pytest.mark.browser
def test_the_logits_of_the_tau_explorer_move_and_come_back(show):
    page = show(softening(), width=390)
    page.locator("#tau summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    slider, start = page.get_by_label("logit of b, generated"), page.locator("#tau select").first
    look = lambda: page.locator("#tau .tiles b, #tau tbody, #tau svg").evaluate_all("all => all.map(part => part.innerHTML)")
    before = look()
    slider.press("ArrowRight")
    moved = SOME[1].clone()
    moved[1] += 0.1
    assert plain(slider.input_value()) == pytest.approx(moved[1].item()) and start.input_value() == "own"
    assert plain(page.locator("#tau .tiles b").first.inner_text()) == pytest.approx(by_torch(SOME[0], moved, 2, "sample")[2], abs=5.1e-5)
    assert all(now != then for now, then in zip(look()[-3:], before[-3:], strict=True))                  # every picture
    start.select_option(label="any")
    assert look() == before


@pytest.mark.browser
def test_the_numbers_of_the_tau_explorer_fit_a_phone(show):
    names = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
    logits = 3 * torch.randn(2, 10, generator=torch.Generator().manual_seed(0))
    page = show(softening(examples={"any": (logits[0], logits[1]), "no opinion": (logits[0], torch.zeros(10))}, classes=names), width=390)
    page.locator("#tau summary").click()
    for name in ("any", "no opinion"):
        page.locator("#tau select").first.select_option(label=name)
        assert page.locator("#tau .values").evaluate("box => box.scrollWidth <= box.clientWidth")
        for chart in range(3):                               # no two labels of an axis touch
            boxes = [text.bounding_box() for text in page.locator("#tau .chart").nth(chart).locator("text[font-size='11']").all()]
            assert len(boxes) >= 5 and all(one["x"] + one["width"] < two["x"] for one, two in itertools.pairwise(boxes))
    bars = page.locator("#tau .chart").nth(2).locator("rect").all()                         # equal logits: the step is left out
    assert bars and all(float(bar.get_attribute("width")) < 1 for bar in bars) and "left out" in page.locator("#tau").inner_text()


@pytest.mark.parametrize(("changes", "message"), [
    ({"names": ["a"]}, "names n, got .* and 1 names"), ({"pictures": {}}, "got none"), ({"log": ["weight"]}, "weight, which is no panel"),
    ({"panels": {"loss": {"ours": [1.0]}}, "log": []}, "'ours' in 'loss' needs one entry for each of the 3 values, got 1"),
    ({"panels": {"size": {"none": 0.0}}}, "'none' in 'size' has nothing above 0"), ({"start": 5}, "start='5' is not among"),
])
def test_wrong_arguments_of_a_sweep_are_answered_in_one_sentence(changes, message):
    with pytest.raises(ValueError, match=message):
        swept(**changes)


@pytest.mark.browser
def test_the_sweep_explorer_shows_the_images_and_numbers_of_its_stop(show):
    page = show(swept(start=0.001))
    numbers = lambda: page.locator("#swept dd").all_inner_texts()
    marker = lambda: float(page.locator("#swept .marker").first.get_attribute("x1"))
    row = lambda: page.locator("#swept .film i").nth(2).evaluate("tile => tile.style.backgroundPosition")
    assert page.locator("#swept output").inner_text() == "0.001"
    assert numbers() == ["2", "2.5", "0", "–"] and row() == "18.1818% 50%"
    middle = marker()
    page.locator("#swept input").press("Home")
    assert numbers() == ["3.0 ± 0.5", "2.5", "1e−05", "1"] and row() == "18.1818% 0%" and marker() < middle
    page.locator("#swept input").press("End")
    assert numbers() == ["1", "2.5", "100", "2"] and row() == "18.1818% 100%" and marker() > middle


@pytest.mark.browser
def test_the_sweep_explorer_draws_its_heights_in_order_and_to_scale(show):
    page = show(swept())
    circles = page.locator("#swept svg").nth(0).locator("circle")
    heights = [float(circle.get_attribute("cy")) for circle in circles.all()]
    assert heights[0] < heights[1] < heights[2] and math.isclose(heights[1] - heights[0], heights[2] - heights[1], abs_tol=0.01)
    first = page.locator("#swept svg").nth(1).locator("polyline").nth(0).get_attribute("points").split()
    assert len(first) == 2                                       # on a logarithmic scale 0 has no place
    ticks = page.locator("#swept svg").nth(1).locator("text").evaluate_all("texts => texts.map(text => text.textContent)")
    assert {"0.00001", "100"} <= set(ticks)                      # round, and they hold the lowest and the highest


@pytest.mark.parametrize(("changes", "message"), [
    ({"order": torch.arange(6)}, r"each of the 6 classes once, got shape \(6,\)"),
    ({"order": ORDER % 5}, r"each of the 6 classes once, got shape \(2, 3\)"),
    ({"patch": 0}, "at least 1 pixel a side, got 0x0"),
    ({"examples": pictures(1, 5)[:, 0]}, r"one image for each of the 6 classes, .* got \(5, 1, 8, 8\)"),
    ({"examples": torch.rand(6, 8, 8)}, r"c = 1 or 3, got \(6, 8, 8\)"),
    ({"pictures": {"odd": torch.rand(3, 12, 13)}}, r"'odd' is \(3, 12, 13\)"),
    ({"pictures": {"low": torch.rand(7, 60)}}, "'low' of 60x7 is smaller than a patch of 6x8"),
    ({"pictures": {"noise": torch.rand(600, 600)}}, "'noise' of 600x600 does not fit into"),
    ({"patches": (5, 0)}, r"1 to 64 each, got \(5, 0\)"), ({"patches": (65, 5)}, r"1 to 64 each, got \(65, 5\)"),
    ({"at": 0.33}, "start=0.33 is not among"),
])
def test_wrong_arguments_of_a_poster_are_answered_in_one_sentence(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        posters(**changes)
    assert "\n" not in str(error.value)


def set_sizes(page, **sizes):
    """Type into the fields width, height, across and down."""
    for name, value in sizes.items():
        page.locator(f"#size-{name}").fill(str(value))
        page.locator(f"#size-{name}").press("Enter")


WALK = """root => {                                            // the label of every patch, column by column, by the arrow keys
    const canvas = root.querySelector("canvas"), found = [];
    const press = (key, times = 1) => { for (; times; times--) canvas.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true})); };
    const numbers = id => +root.ownerDocument.getElementById("size-" + id).value;
    press("ArrowLeft", 99);
    for (let column = 0; column < numbers("across"); column++, press("ArrowRight")) {
        press("ArrowUp", 99);
        for (let row = 0; row < numbers("down"); row++, press("ArrowDown"))
            found.push([root.querySelector(".which").textContent, root.querySelector(".fixed").textContent,
                Array.from(root.querySelectorAll("tbody tr"), line => Array.from(line.children, cell => cell.textContent))]);
    }
    return found;
}"""


# width, height, patches across and down of 6 x 8 pixels: by the slider, exactly one image per class, ties, halves, one patch, gaps
@pytest.mark.browser
@pytest.mark.parametrize("sizes", [(18, 16, 3, 2), (18, 16, 5, 3), (13, 11, 4, 4), (19, 9, 7, 2), (6, 8, 1, 1), (15, 17, 1, 3),
                                   (36, 32, 3, 2)])
def test_the_poster_explorer_computes_what_the_library_does(show, sizes):
    width, height, across, down = sizes
    layout = poster.Layout(width, height, 6, 8, across, down)
    page = show(posters())
    set_sizes(page, width=width, height=height, across=across, down=down)
    page.locator("#size summary").click()
    assert [page.locator(f"#size .{side}").inner_text() for side in ("lefts", "tops")] == [
        ", ".join(map(str, starts)) for starts in (layout.lefts, layout.tops)]
    pixels, ipc, patches, stride, cover = page.locator("#size .tiles div").all_inner_texts()
    assert pixels.split("\n")[0] == f"{width * height:,}" and f"{width} × {height}" in pixels
    assert float(ipc.split("\n")[0]) == pytest.approx(width * height / (6 * 48), abs=5.1e-4)
    assert patches.split("\n")[0] == str(len(layout))
    strides = [(length - size) / (num - 1) if num > 1 else None for length, size, num in ((width, 6, across), (height, 8, down))]
    assert stride.split("\n")[0] == " / ".join("–" if way is None else f"{way:.2f}" for way in strides)
    counts = layout.coverage()
    assert float(cover.split("\n")[0]) == pytest.approx(counts.float().mean().item(), abs=0.051)
    assert f"{counts.min()} to {counts.max()}" in cover
    bare = int((counts == 0).sum())
    assert (f"{bare} of {width * height:,}: they are stored in vain" in page.locator("#size .bare").inner_text()) == (bare > 0)

    fixed = poster.fixed_labels(layout, ORDER)                                                   # (N, C)
    fewest, most = (f"{float(each):.3g}" for each in (fixed.sum(dim=0).min(), fixed.sum(dim=0).max()))
    assert patches.endswith("of a class " + (fewest if fewest == most else f"{fewest} to {most}"))
    cells = poster.label_cells(layout, ORDER)
    learned = poster.learned_labels(cells, poster.label_windows(layout, 3, 2))                   # (N, C)
    walked = page.locator("#size").evaluate(WALK)
    assert len(walked) == len(layout)
    for index, ((top, left), (place, name, rows)) in enumerate(zip(layout.corners.tolist(), walked, strict=True)):
        assert place.startswith(f"Patch number {index + 1}: column {index // down + 1} of {across}, row {index % down + 1} of {down}; ")
        assert f"pixels {left} to {left + 5} across, {top} to {top + 7} down" in place
        table = torch.zeros(6, 2)
        for letter, count, *shares in rows:
            table["abcdef".index(letter)] = torch.tensor([plain(share.replace("\u00a0%", "")) / 100 for share in shares])
            assert int(count) == round(48 * learned[index, "abcdef".index(letter)].item()) > 0
        torch.testing.assert_close(table[:, 0], fixed[index], rtol=0, atol=5.1e-4)
        torch.testing.assert_close(table[:, 1], learned[index], rtol=0, atol=5.1e-4)
        winners = ["abcdef"[k] for k in fixed[index].nonzero().flatten()]
        assert name == (winners[0] if len(winners) == 1 else "a tie of " + " and ".join(winners))


@pytest.mark.browser
def test_the_poster_explorer_points_at_the_nearest_patch_and_counts_the_patches_over_a_pixel(show):
    layout = poster.Layout(18, 16, 6, 8, 5, 3)
    page, counts = show(posters()), layout.coverage()
    for canvas in (page.locator("#size canvas").nth(0), page.locator("#size canvas").nth(1)):
        canvas.scroll_into_view_if_needed()
        frame = canvas.bounding_box()
        for x, y in ((0, 0), (9, 7), (17, 15), (4, 12)):
            page.mouse.move(frame["x"] + (x + 0.5) / 18 * frame["width"], frame["y"] + (y + 0.5) / 16 * frame["height"])
            word = "patch" if counts[y, x] == 1 else "patches"
            assert f"The pixel {x}, {y} under the pointer is in {counts[y, x]} {word}." in page.locator("#size .patch").inner_text()
            column = min(range(5), key=lambda k: abs(layout.lefts[k] + 3 - x - 0.5))
            row = min(range(3), key=lambda k: abs(layout.tops[k] + 4 - y - 0.5))
            assert f"column {column + 1} of 5, row {row + 1} of 3" in page.locator("#size .which").inner_text()
        canvas.evaluate("c => c.dispatchEvent(new PointerEvent('pointerdown', {clientX: c.getBoundingClientRect().left + 1, "
                        "clientY: c.getBoundingClientRect().top + 1, pointerType: 'touch'}))")                  # a finger
        assert "column 1 of 5, row 1 of 3" in page.locator("#size .which").inner_text()
    page.locator("#size canvas").first.focus()
    page.keyboard.press("ArrowRight")
    assert "column 2 of 5, row 1 of 3" in page.locator("#size .which").inner_text()
    assert "under the pointer" not in page.locator("#size .patch").inner_text()
    assert "column 2 of 5, row 1 of 3" in page.locator("#size canvas").first.get_attribute("aria-label")


@pytest.mark.browser
def test_the_coverage_map_has_the_colours_of_its_counts(show):
    page = show(posters(patches=(5, 3)))
    look = """c => { const pen = c.getContext("2d"); return Array.from({length: 16}, (_, y) => Array.from({length: 18}, (_, x) =>
        Array.from(pen.getImageData((x + .5) * c.width / 18, (y + .5) * c.height / 16, 1, 1).data.slice(0, 3)))); }"""
    for across, down in ((5, 3), (2, 2)):                                      # two columns leave a gap of 6 pixels
        set_sizes(page, across=across, down=down)
        counts = poster.Layout(18, 16, 6, 8, across, down).coverage()
        page.locator("#size").evaluate(WALK)                                   # the chosen patch is now at the bottom right
        seen = torch.tensor(page.locator("#size canvas").nth(1).evaluate(look))                          # (16, 18, 3)
        free = torch.ones_like(counts, dtype=torch.bool)
        free[7:, 11:] = False                                                  # its frame
        low, high = torch.tensor([222.0, 235, 247]), torch.tensor([8.0, 48, 107])
        share = (counts - 1).clamp_min(0)[:, :, None] / max(int(counts.max()) - 1, 1)
        wanted = torch.where(counts[:, :, None] > 0, low + (high - low) * share, torch.tensor([139.0, 26, 14]))
        assert (seen - wanted)[free].abs().max() <= 1
    assert "stored in vain" in page.locator("#size .bare").inner_text()
    set_sizes(page, across=64, down=64)
    assert "only 13 × 9 are different" in page.locator("#size .bare").inner_text()


@pytest.mark.browser
def test_images_per_class_size_the_poster_as_the_library_does(show):
    page = show(posters(order=torch.arange(10).view(2, 5), classes=list("abcdefghij"), patch=28, examples=None, pictures=None, at=0.5))
    steps = page.locator("#size").evaluate("""root => [...Array(29).keys()].map(step => {
        const knob = root.querySelector("input");
        knob.value = +knob.min + step * knob.step;
        knob.dispatchEvent(new Event("input"));
        return [...["width", "height"].map(name => +document.getElementById("size-" + name).value),
            root.querySelector(".note").textContent, root.querySelector("output").textContent];
    })""")
    for step, (width, height, note, text) in enumerate(steps):
        ipc = (step + 2) / 20
        assert text == f"{ipc:.2f}"
        if ipc >= 0.25:
            assert (width, height) == poster.size_for(ipc, 5, 2, 28, 28) and note == ""
        else:
            with pytest.raises(ValueError, match=r"choose ipc 0.25 or more"):
                poster.size_for(ipc, 5, 2, 28, 28)
            assert height == 28 and width == math.floor(140 * math.sqrt(ipc) + 1e-9)
            assert "smaller than a patch: its height is set to 28. From 0.25 on it fits." in note


@pytest.mark.browser
def test_sizes_that_do_not_work_are_set_to_the_nearest_that_do_and_said(show):
    page = show(posters(pictures=None))
    note, field = page.locator("#size .note"), lambda name: page.locator(f"#size-{name}").input_value()
    assert page.locator("#size > .knob output").inner_text() == "1.00" and note.inner_text() == ""
    for name, typed, taken, said in (
        ("width", 3, "6", "Poster width is set to 6: a poster cannot be narrower than a patch."),
        ("height", -1, "8", "Poster height is set to 8: a poster cannot be lower than a patch."),
        ("width", 1000, "36", "Poster width is set to 36: more does not fit in here."),
        ("across", 0, "1", "Patches across is set to 1: there is at least one."),
        ("down", 65, "64", "Patches down is set to 64: more does not fit in here."),
        ("down", "", "64", "Patches down is set to 64: that is no number."),
        ("height", 15, "15", ""),
    ):
        set_sizes(page, **{name: typed})
        assert field(name) == taken and note.inner_text() == said
    assert page.locator("#size .tiles b").first.inner_text() == "540"                            # 36 x 15
    assert page.locator("#size > .knob output").inner_text() == "≈ 1.88"
    assert page.locator("#size-knob").input_value() == "1.5"
    page.get_by_label("poster width").first.press("Home")                                        # the slider of the width
    assert field("width") == "6" and page.locator("#size > .knob output").inner_text() == "≈ 0.31"
    page.locator("#size-knob").press("ArrowRight")
    assert (field("width"), field("height")) == tuple(map(str, poster.size_for(0.35, 3, 2, 6, 8)))
    assert page.locator("#size > .knob output").inner_text() == "0.35"


@pytest.mark.browser
def test_a_poster_is_shown_where_the_size_is_its_own_and_the_classes_elsewhere(show):
    examples = torch.arange(6)[:, None, None, None].expand(-1, 1, 4, 4).to(torch.uint8) * 40
    grey = torch.full((12, 13), 17, dtype=torch.uint8)
    page = show(posters(examples=examples, pictures={"grey": grey}))
    page.wait_for_function("document.querySelector('#size canvas').getContext('2d').getImageData(3, 3, 1, 1).data[3] > 0")
    choice, overlay = page.locator("#size select").nth(0), page.locator("#size select").nth(1)
    overlay.select_option("nothing")
    page.locator("#size").evaluate(WALK)                                                         # the frame goes to the bottom right
    dot = """(c, at) => c.getContext("2d").getImageData(at[0] * c.width, at[1] * c.height, 1, 1).data[0]"""
    shown = lambda x, y: page.locator("#size canvas").first.evaluate(dot, [x, y])
    assert choice.input_value() == "-1"                                                          # it has another size
    note = page.locator("#size .note")
    assert note.inner_text() == "“grey” has 13 × 12 pixels; at another size cells show their classes."
    assert [shown(x, 0.25) for x in (0.17, 0.5, 0.83)] == [40 * int(k) for k in ORDER[0]] and shown(0.17, 0.75) == 40 * ORDER[1, 0]
    choice.select_option(label="grey")
    assert [page.locator(f"#size-{name}").input_value() for name in ("width", "height")] == ["13", "12"]
    assert note.inner_text() == "The size is set to that of the picture, 13 × 12."
    assert shown(0.17, 0.25) == shown(0.4, 0.2) == 17
    assert page.locator("#size > .knob output").inner_text() == "≈ 0.54"
    set_sizes(page, width=14)
    assert choice.input_value() == "-1" and shown(0.17, 0.25) == 80
    set_sizes(page, width=13)
    assert choice.input_value() == "0" and shown(0.17, 0.25) == 17
    choice.select_option("-1")
    assert shown(0.17, 0.25) == 80
    set_sizes(page, width=14)
    set_sizes(page, width=13)
    assert choice.input_value() == "-1"                                                          # the classes were asked for
    before = page.locator("#size canvas").first.evaluate("c => c.toDataURL()")
    for what in ("both", "patches", "classes"):
        overlay.select_option(what)
        assert page.locator("#size canvas").first.evaluate("c => c.toDataURL()") != before
    assert len(page.locator("#size canvas").nth(2).evaluate("c => c.toDataURL()")) > 100


@pytest.mark.browser
@pytest.mark.parametrize("build", [explorer, swept, posters, costs])
def test_no_widget_is_wider_than_a_phone(show, build):
    page = show(build(), width=390)
    page.add_style_tag(content="div.body {min-width: 360px; max-width: 800px}")  # the book's theme means its own
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.browser
def test_widgets_fit_a_phone_and_nothing_below_the_slider_jumps(show):
    page = show(explorer(), widgets.frames(lambda tau: plots.bars({"a": tau}), tau=[1, 2], uid="wide"), width=390)
    page.add_style_tag(content="div.body {min-width: 360px; max-width: 800px}")  # the book's theme means its own
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for widget in page.locator(".ddlib-widget").all():
        assert widget.evaluate("widget => widget.scrollWidth <= widget.clientWidth")
    tall = set()
    for ipc in range(1, 13):
        page.locator("#ipc input").fill(str(ipc))
        tall.add(page.locator("#wide").bounding_box()["y"])
    assert len(tall) == 1


@pytest.mark.browser
def test_others_names_do_not_run_in_the_page(show):
    page = show(explorer(classes=[NASTY, "b", "c"], curves={NASTY: [(1, 50, 1)]}, caption=NASTY, label=NASTY))
    assert page.locator("#ipc .classes span").first.inner_text() == NASTY
    assert page.locator("#ipc tbody th").first.inner_text() == NASTY


# ------------------------------------------------------------------------------------------------------ finding and costs


def test_a_finder_holds_every_line_as_a_plain_table_and_its_filters_are_hidden_without_a_script():
    html = finding().html
    page = html.split("<script>")[0]
    assert all(text in page for cells in FOUND.rows for text in cells)
    assert page.count("<tr>") == 1 + len(FOUND.rows) and "<form hidden>" in page and "4 lines" in page
    assert re.findall(r"<option[^>]*>([^<]*)", page) == ["all", "SKD", "ESP", "GLD", "all", "1", "10", "full"]
    assert finding(uid=None) == finding(uid=None) and finding(uid=None).uid != finding(uid=None, by={"paper": BY["paper"]}).uid


def test_others_texts_in_a_finder_are_escaped():
    html = finding(table=papers.Table((NASTY, "b"), ((NASTY, NASTY),), (NASTY,), NASTY), by={NASTY: [NASTY]}).html
    assert html.count("<script>") == html.count("</script>") == 1 and "<b>" not in html


@pytest.mark.parametrize(("call", "message"), [
    (lambda: finding(table=papers.Table(("a",), ())), "at least one line"), (lambda: finding(by={}), "at least one thing to choose by"),
    (lambda: finding(by={"paper": ["SKD"]}), "'paper' has 1 values for the table's 4 lines"),
    (lambda: costs(points=[]), "no point to draw"),
])
def test_wrong_arguments_of_finders_and_costs_are_answered_in_one_sentence(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.browser
def test_a_finder_shows_the_lines_that_have_everything_asked_for(show):
    page = show(finding())
    shown = lambda: [line.inner_text() for line in page.locator("#find tbody th").all() if line.is_visible()]
    names = [cells[0] for cells in FOUND.rows]
    assert shown() == names and page.locator("#find .found").inner_text() == "4 of 4 lines"
    assert [cell.inner_text() for cell in page.locator("#find tbody tr").nth(1).locator("th,td").all()] == list(FOUND.rows[1])
    paper, ipc = page.locator("#find select").all()
    paper.select_option(label="SKD")
    assert shown() == names[:2]
    ipc.select_option(label="1")
    assert shown() == names[1:2]
    paper.select_option(label="all")
    assert shown() == names[1:3]
    page.locator("#find input").fill("svhn NOT")
    assert shown() == names[2:3]
    page.locator("#find input").fill("svhn 94")
    assert shown() == [] and "set a filter back" in page.locator("#find .found").inner_text()
    page.locator("#find button").press("Enter")
    page.wait_for_timeout(50)
    assert shown() == names


@pytest.mark.browser
def test_a_finder_is_worked_by_keyboard_and_fits_a_phone(show):
    table = papers.Table(("cell", "b"), tuple((f"line {k}", "x" * 90) for k in range(60)))
    page = show(finding(table=table, by={"k": [str(k) for k in range(60)]}), width=390)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator("#find .scroll").bounding_box()["height"] < 600
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")
    assert page.locator("#find .found").inner_text() == "1 of 60 lines"
    page.keyboard.press("Tab")
    page.keyboard.type("line 7")
    assert page.locator("#find .found").inner_text().startswith("0 of 60 lines")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    page.wait_for_timeout(50)
    assert page.locator("#find .found").inner_text() == "60 of 60 lines"


def test_without_a_script_the_cost_explorer_is_a_list_and_numbers_are_printed_as_tables_print_them():
    html = costs(points=[*POINTS[:4], point("Half", mean=92.25, scalars=7)], protocol="strict").html
    page = html.split("<script>")[0]
    assert re.findall(r'<th scope="row">([^<]*)', page) == ["Half, 1", "DM, 10", "SKD, 1", "DM, 1", "Random, 1"]
    assert "92.2 ± 2.0 (5)" in page and "92.2" in html.split("<script>")[1] and "92.25" not in html    # of which a browser makes 92.3
    assert ".knob,.ddlib-widget .costs .choose{display:none!important}" in page.split("<noscript>")[1].split("</noscript>")[0]
    assert "<b>" not in costs(points=[point(NASTY)]).html.split("<script>")[0]


@pytest.mark.browser
def test_the_cost_explorer_lists_what_is_within_the_limit(show):
    page = show(costs(protocol="strict"))
    listed = lambda: [line.inner_text() for line in page.locator("#cost tbody th").all()]
    where, how, across = page.locator("#cost select").all()
    assert listed() == ["DM, 10", "SKD, 1", "DM, 1", "Random, 1"]                            # highest accuracy first
    assert "all images, printed: 90" in page.locator("#cost svg").text_content()
    slider, limits = page.locator("#cost input"), {}
    for step in range(4):
        slider.fill(str(step + 1))
        limit = int(page.locator("#cost output").inner_text().removesuffix(" numbers").replace(",", ""))
        limits[limit] = set(listed())
    for limit, found in limits.items():
        within = {f"{each.series}, {each.ipc}" for each in POINTS[:4] if each.scalars <= limit}
        assert found == within, limit
    assert set(limits) == {100, 1000, 5000} and all(limits.values())                         # every cost is a stop, and none is empty
    across.select_option("1")
    assert page.locator("#cost output").inner_text() == "60 min"
    assert page.locator("#cost tbody tr").nth(0).inner_text().split("\t")[2] == "5.0"
    how.select_option("dim")
    assert listed() == ["SKD, 1"]
    where.select_option(label="mnist, convnet3")
    assert listed() == ["DM, 1"] and how.input_value() == "strict" and "printed" not in page.locator("#cost svg").text_content()


@pytest.mark.browser
def test_points_of_the_cost_explorer_stand_at_their_costs_and_those_too_dear_fade(show):
    page = show(costs(protocol="strict"))
    page.locator("#cost input").fill("2")
    assert "test accuracy, %" in page.locator("#cost svg").text_content()
    limit = float(page.locator("#cost .limit").get_attribute("x1"))
    drawn = page.locator("#cost svg g").all()
    groups = [(float(group.locator("line").get_attribute("x1")), float(group.get_attribute("opacity"))) for group in drawn]
    assert len(groups) == 4 and all((x <= limit + 0.01) == (opacity == 1) for x, opacity in groups)
    xs = sorted(x for x, _ in groups)
    assert xs[0] == xs[1] and math.isclose((xs[2] - xs[0]) / (xs[3] - xs[0]), math.log(10) / math.log(50), rel_tol=1e-3)
