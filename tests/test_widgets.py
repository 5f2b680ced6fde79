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
from ddlib import plots, widgets
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


@pytest.mark.browser
@pytest.mark.parametrize("build", [explorer, swept])
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
