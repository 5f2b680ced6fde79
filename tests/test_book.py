"""The book builds without a warning from the stored notebooks, has every page, and needs no other host."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml
from conftest import CHAPTERS, ROOT

# Tags whose address a browser fetches by itself. An <a> is only followed by a reader.
FETCHED = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src", "video": "src", "object": "data"}


class Page(HTMLParser):
    """The fetched addresses, the links, the ids and the page figures of one page."""

    def __init__(self, path: Path):
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.widgets: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        address = values.get(FETCHED.get(tag, ""))
        if address and not (tag == "link" and values.get("rel") == "canonical"):
            self.fetched.append(address)
        if tag == "a" and values.get("href"):
            self.links.append(str(values["href"]))
        if values.get("id"):
            self.ids.append(str(values["id"]))
        if "ddlib-widget" in (values.get("class") or "").split():
            self.widgets.append(values.get("id") or "")


def toc_files() -> list[str]:
    toc = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text())
    return [toc["root"], *(entry["file"] for part in toc["parts"] for entry in part["chapters"])]


def pages(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.html") if "_static" not in path.parts)


def test_every_stored_chapter_is_in_the_table_of_contents():
    listed = [Path(name).name for name in toc_files() if name.startswith("notebooks/")]
    assert listed == CHAPTERS, "book/_toc.yml and notebooks/*.ipynb list the same chapters in one order"


def test_every_entry_of_the_table_of_contents_has_a_page(built_book):
    for name in toc_files():
        assert (built_book / f"{name}.html").is_file(), f"{name} has no page"


def test_every_stored_chapter_is_named_on_the_first_page(built_book):
    links = Page(built_book / "book" / "index.html").links
    for chapter in CHAPTERS:
        assert any(link.endswith(f"{chapter}.html") for link in links), f"book/index.md does not link {chapter}"


def test_no_page_fetches_anything_from_another_host(built_book):
    for path in pages(built_book):
        for address in Page(path).fetched:
            if address.startswith("data:"):
                continue
            assert not urlsplit(address).netloc, f"{path.name} fetches {address}"


def test_style_sheets_fetch_nothing_from_another_host(built_book):
    for path in built_book.rglob("*.css"):
        for address in re.findall(r"(?:url\(|@import\s+)[\"']?([^\"')\s]+)", path.read_text(encoding="utf-8", errors="replace")):
            assert not address.startswith(("http:", "https:", "//")), f"{path.name} fetches {address}"


def test_everything_a_page_fetches_or_links_locally_exists(built_book):
    for path in pages(built_book):
        page = Page(path)
        for address in page.fetched + page.links:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc or not parts.path:
                continue
            assert (path.parent / parts.path).resolve().exists(), f"{path.relative_to(built_book)} needs {address}"


def test_formulas_are_set_by_a_shipped_mathjax_with_its_fonts(built_book):
    with_formulas = [path for path in pages(built_book) if 'class="math' in path.read_text(encoding="utf-8")]
    assert with_formulas
    for path in with_formulas:
        scripts = [address for address in Page(path).fetched if "mathjax" in address]
        assert len(scripts) == 1
        script = (path.parent / urlsplit(scripts[0]).path).resolve()
        assert script.stat().st_size > 1_000_000
        assert len(list(script.parent.glob("output/chtml/fonts/woff-v2/*.woff"))) > 20
        assert (script.parent / "LICENSE").is_file()


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_page_figure_has_an_id_of_its_own(built_book, chapter):
    page = Page(built_book / "notebooks" / f"{chapter}.html")
    for name in page.widgets:
        assert name and page.ids.count(name) == 1, f"the id {name!r} of a figure in {chapter} is not its own"


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_page_figure_has_a_labelled_slider_and_an_output(built_book, chapter):
    html = (built_book / "notebooks" / f"{chapter}.html").read_text(encoding="utf-8")
    for piece in html.split('<div class="ddlib-widget"')[1:]:  # in the page, not in the code that is shown: there "<" is "&lt;"
        piece = piece.split("</script>")[0]
        assert re.search(r"<input[^>]*type=[\"']?range", piece)
        assert "<label" in piece or "aria-label" in piece
        assert "<output" in piece
