"""The notebooks as a book: its pages as `make book` writes them, then in a real browser. The last line says where the
screenshots are.
"""

import base64
import functools
import hashlib
import re
import shlex
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import nbformat
import pytest
from bs4 import BeautifulSoup
from helpers import ROOT, needs_chromium

from benchmarks.browser import browsing

NOTEBOOKS = sorted((ROOT / "notebooks").rglob("[0-9]*.ipynb"))
GITHUB = "https://github.com/clipdec/clipdec"
COLAB = "https://colab.research.google.com/github/clipdec/clipdec/blob/main/"
WIDGET = "application/vnd.jupyter.widget-view+json"
CONSOLE = ("error", "warning")
NARROW = {"width": 390, "height": 844}
# SHA-384 of es5/tex-mml-chtml.js as MathJax 3.2.2 was published: the package that brings it is not MathJax's own.
MATHJAX = "Wuix6BuhrWbjDBs24bXrjf4ZQ5aFeFWBuKkFekO2t8xFU0iNaLQfp2K6/1Nxveei"


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """The folder of the book, built by the Makefile's command without a warning."""
    folder, makefile = tmp_path_factory.mktemp("book"), (ROOT / "Makefile").read_text(encoding="utf8")
    (command,) = re.findall(r"^\t\$\(BIN\)/python (-m sphinx .*)", makefile, re.MULTILINE)
    options = [re.sub("^book", lambda _: str(folder), option) for option in shlex.split(command)]
    done = subprocess.run([sys.executable, *options], cwd=ROOT, capture_output=True, text=True, encoding="utf8")
    assert done.returncode == 0 and not done.stderr, done.stderr
    return folder / "html"


@pytest.fixture(scope="module")
def pages(book):
    """{address in the book: page}, parsed."""
    return {p.relative_to(book).as_posix(): BeautifulSoup(p.read_bytes(), "html.parser") for p in book.rglob("*.html")}


def page_of(path, pages):
    """The page of a notebook, or of another file of the repository."""
    return pages[path.relative_to(ROOT).with_suffix(".html").as_posix()]


def outputs(path):
    """The displayed outputs of a notebook."""
    cells = nbformat.read(path, nbformat.NO_CONVERT).cells
    return [output for cell in cells for output in cell.get("outputs", ()) if "data" in output]


def test_the_contents_name_every_page(pages):
    found = [link["href"] for link in pages["index.html"].select(".sidebar-tree a.reference")]
    files = [*NOTEBOOKS, *(ROOT / "docs").glob("*.md")]
    assert sorted(found) == sorted(path.relative_to(ROOT).with_suffix(".html").as_posix() for path in files)
    course = [path.stem for path in NOTEBOOKS if path.parent.name == "notebooks"]
    assert [link.removeprefix("notebooks/").removesuffix(".html") for link in found[: len(course)]] == course
    titles = [page.h1.get_text() for name, page in pages.items() if name not in ("index.html", "search.html")]
    assert len(set(titles)) == len(titles)  # the search shows no more of a page


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_outputs_are_on_the_page_as_committed(pages, path):
    page = page_of(path, pages)
    shown = [output for output in outputs(path) if "image/png" in output.data]
    words = [" ".join(output.metadata["image/png"]["alt"].split()) for output in shown]
    assert [image["alt"] for image in page.select(".cell_output img")] == words and all(words)
    widgets = [output for output in outputs(path) if WIDGET in output.data]
    assert len(page.select(".cell_output .widget")) == len(widgets)
    tables = [output.data["text/markdown"] for output in outputs(path) if "text/markdown" in output.data]
    assert len(page.select(".cell_output table")) == sum(bool(re.search(r"^\|[-:| ]+\|$", t, re.M)) for t in tables)
    folded = [c for c in nbformat.read(path, nbformat.NO_CONVERT).cells if "hide-input" in c.metadata.get("tags", ())]
    assert len(page.select("details.hide")) == len(folded)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_link_opens_the_notebook_in_colab(pages, path):
    first = nbformat.read(path, nbformat.NO_CONVERT).cells[0].source
    links = [link for link in page_of(path, pages).select("a.reference") if link["href"].startswith(COLAB)]
    if path.stem == "07_app":  # it needs a trained run, and no code is to be read there
        assert "colab" not in first and not links
    else:
        name = path.relative_to(ROOT).as_posix().replace("/solutions/", "/exercises/")  # where they are solved
        assert (links[0].get_text(), links[0]["href"]) == ("Open in Colab", COLAB + name)


def test_what_a_page_loads_and_links_is_there(book, pages):
    """All that it loads lies in the book; a link leads to a place of the book, or to a file of the repository."""
    ends = {name: {tag["id"] for tag in page.select("[id]")} for name, page in pages.items()}
    for name, page in pages.items():
        for tag in page.select("a[href], img[src], script[src], link[href]"):
            address, anchor = urldefrag(urljoin(f"http://book/{name}", tag.get("href") or tag.get("src")))
            path = unquote(urlsplit(address).path).lstrip("/")
            inside = address.startswith("http://book/")
            assert (book / path).is_file() if inside else tag.name == "a", (name, address)
            assert not inside or anchor in {"", *ends.get(path, ())}, (name, address, anchor)
            kind, _, file = address.removeprefix(f"{GITHUB}/").partition("/main/")
            assert kind != "blob" or Path(ROOT, file).is_file(), (name, address)
            assert kind != "tree" or Path(ROOT, file).is_dir(), (name, address)


def test_equations_are_set_by_mathjax_as_published(book):
    script = (book / "_static" / "mathjax" / "tex-mml-chtml.js").read_bytes()
    assert base64.b64encode(hashlib.sha384(script).digest()).decode() == MATHJAX


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        """Nothing."""


@contextmanager
def serving(folder):
    """The address of a web server of that folder."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def opened(book, playwright, tmp_path_factory):
    """A page at the book's start. `page.wrong` also keeps errors of the console and requests of another machine."""
    folder = tmp_path_factory.mktemp("browser")
    with serving(book) as address, browsing(playwright, folder, "about:blank") as page:
        page.start = address
        page.on("console", lambda message: page.wrong.append(message.text) if message.type in CONSOLE else None)
        here = address, book.as_uri(), "data:"
        page.on("request", lambda request: None if request.url.startswith(here) else page.wrong.append(request.url))
        page.emulate_media(reduced_motion="reduce")
        yield page


@pytest.fixture
def page(opened):
    opened.set_viewport_size({"width": 1280, "height": 800})
    opened.emulate_media(color_scheme="light")
    opened.goto(f"{opened.start}/index.html")
    yield opened
    assert opened.wrong == []


@pytest.fixture(scope="module")
def keep(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("book_screenshots")
    yield lambda page, name: page.screenshot(path=folder / f"{name}.png", animations="disabled")
    with request.config.pluginmanager.get_plugin("capturemanager").global_and_fixture_disabled():
        print(f"\nscreenshots: {folder}")


@needs_chromium
@pytest.mark.parametrize("by_file", [False, True], ids=["from a server", "from a file"])
def test_an_equation_and_a_figure(page, book, keep, by_file):
    if by_file:
        page.goto((book / "index.html").as_uri())
    page.get_by_role("link", name="02 · ").first.click()
    page.locator("mjx-container").first.wait_for()
    raw = page.locator(".math").filter(has_not=page.locator("mjx-container"))
    page.wait_for_function("[...document.querySelectorAll('.math')].every(e => e.querySelector('mjx-container'))")
    assert raw.count() == 0 and page.locator(".math mjx-math").first.bounding_box()["width"] > 0
    figure = page.locator(".cell_output img").first
    figure.scroll_into_view_if_needed()
    page.wait_for_function("document.querySelector('.cell_output img').naturalWidth > 0")
    assert len(figure.get_attribute("alt")) > 20 and figure.bounding_box()["width"] > 100
    keep(page, "from_file" if by_file else "figure")


@needs_chromium
def test_the_search_finds_what_a_notebook_says(page, keep):
    for word, found in [("cross-attention", "02 · "), ("qwertyuiop", None)]:
        page.get_by_placeholder("Search").fill(word)
        page.get_by_placeholder("Search").press("Enter")
        page.locator(".search-summary", has_text="Search finished" if found else "did not match").wait_for()
        links = page.locator("#search-results li a").all_inner_texts()
        assert any(link.startswith(found) for link in links) if found else not links
        keep(page, f"search_{word}")


@needs_chromium
def test_a_narrow_screen_is_scrolled_in_one_direction(page):
    page.set_viewport_size(NARROW)
    for path in [ROOT / "README.md", *NOTEBOOKS]:
        page.goto(f"{page.start}/{path.relative_to(ROOT).with_suffix('.html').as_posix()}")
        page.evaluate("window.MathJax && MathJax.startup && MathJax.startup.promise")
        scrolls = "['html', '.content'].map(e => document.querySelector(e)).map(e => e.scrollWidth - e.clientWidth)"
        assert page.evaluate(scrolls) == [0, 0], path.name


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_contents_are_reached_on_a_narrow_screen(page, keep, scheme):
    page.set_viewport_size(NARROW)
    page.emulate_media(color_scheme=scheme)
    contents = page.locator(".sidebar-tree")
    assert contents.bounding_box()["x"] < 0
    page.locator("header label[for=__navigation]").click()
    keep(page, f"contents_{scheme}")
    contents.get_by_role("link", name="01 · ").first.click()
    page.get_by_role("heading", level=1, name="01 · ").wait_for()
    keep(page, f"narrow_{scheme}")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background))) > 3 * 128) == (scheme == "light")


@needs_chromium
def test_set_up_cells_are_folded(page):
    page.goto(f"{page.start}/notebooks/02_ml_decoder_head.html")
    bootstrap = page.get_by_text("google.colab").first
    assert not bootstrap.is_visible()
    page.get_by_text("Show the code").first.click()
    assert bootstrap.is_visible()
