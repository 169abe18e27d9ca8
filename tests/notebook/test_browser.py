"""Notebook 05 and the panel in a real browser, as a hand uses them. The last line says where the screenshots are.

Needs Chromium (on Debian `apt install chromium`); without it these tests are left out. They come last, when notebook 04
has trained the default run; if there is none, it is trained first (conftest.py).
"""

import csv
import io
import json
import re
import shutil
from itertools import combinations

import nbformat
import numpy as np
import pytest
from helpers import ROOT, needs_chromium, wait_until
from nbformat.reader import NotJSONError
from PIL import Image
from playwright.sync_api import expect

from benchmarks.browser import GUARD, browsing, serving
from clipdec.data import HOME
from data_prep.emoji_scenes import draw

UPLOADS = '{"websocket_max_message_size": 104857600}'  # as in the Makefile
SCENE = 725  # the test image of the screenshot
RATES = ["base rate, seen", "base rate, other"]
NASTY = '<img src=x onerror="document.title=1234">'
pytestmark = needs_chromium
expect.set_options(timeout=GUARD / 4)


@pytest.fixture(scope="module")
def lab(playwright, tmp_path_factory):
    """Notebook 05, opened in JupyterLab and run from top to bottom."""
    folder, root = tmp_path_factory.mktemp("lab"), tmp_path_factory.mktemp("root")
    notebook = nbformat.read(ROOT / "notebooks" / "05_evaluate.ipynb", nbformat.NO_CONVERT)
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, root / "05_evaluate.ipynb")
    options = ["--no-browser", "--allow-root", "--port=PORT", "--port-retries=0", "--IdentityProvider.token=TOKEN"]
    options += [f"--ServerApp.root_dir={root}", f"--ServerApp.tornado_settings={UPLOADS}"]
    server = serving(folder, "jupyterlab", *options, path="lab/tree/05_evaluate.ipynb")
    with server as address, browsing(playwright, folder, address) as page:
        page.get_by_role("button", name="No", exact=True).click()  # to news of Jupyter
        page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.locator("#jp-mainmenu-run").get_by_text("Run All Cells", exact=True).click()
        last = page.locator(".jp-CodeCell .jp-InputPrompt").last  # its number comes when it has run
        expect(last).to_have_text(re.compile(r"\[\d+\]"), timeout=GUARD)
        page.notebook = root / "05_evaluate.ipynb"
        yield page


class Hand:
    """What a hand does with the panel, and what an eye sees of it."""

    def __init__(self, page):
        self.page, self.panel = page, page.locator(".widget-vbox").filter(has=page.locator(".widget-upload")).first
        self.panel.evaluate("panel => panel.scrollIntoView()")
        expect(self.panel).to_be_visible()
        self.buttons = self.panel.locator(".widget-toggle-buttons").first.get_by_role("button")
        self.second = self.panel.locator(".widget-toggle-buttons").nth(1).get_by_role("button")  # of a second model
        self.images = self.panel.get_by_role("img")
        self.row = self.panel.get_by_role("row", name="test images")

    def labelled(self, name):
        return self.panel.get_by_label(name, exact=True)

    def enter(self, name, text):
        self.labelled(name).fill(text)
        self.labelled(name).press("Enter")

    def ask(self, labels, buttons):
        self.enter("labels", labels)
        expect(self.buttons).to_have_count(buttons)

    def handle(self, name):
        named = self.page.get_by_text(name, exact=True)
        return self.panel.locator(".widget-slider").filter(has=named).get_by_role("slider")

    def slide(self, name, key, times=10):
        self.handle(name).focus()
        for _ in range(times):
            self.handle(name).press(key)

    def open(self, number):
        self.enter("number", str(number))
        self.looks(0, f"test image {number}")
        expect(self.buttons).to_have_count(12)

    def looks(self, place, text):
        expect(self.images.nth(place)).to_have_attribute("alt", text)

    def upload(self, name, content, says, role="status", kind="image/png"):
        with self.page.expect_file_chooser() as chooser:
            self.panel.get_by_role("button", name="choose photos").click()
        chooser.value.set_files({"name": name, "mimeType": kind, "buffer": content})
        self.says(f"{name}{says}", role)

    def says(self, text, role="status"):
        expect(self.panel.get_by_role(role)).to_contain_text(text)

    def figure(self, column):
        return self.row.get_by_role("cell").nth(column)

    def number(self, column):
        return float(self.figure(column).inner_text().rstrip(" %"))



@pytest.fixture(scope="module")
def keep(request, tmp_path_factory):
    """keep(place, name): a screenshot from that place on; what moves, such as a tip that fades, is at its end."""
    folder = tmp_path_factory.mktemp("screenshots")

    def shoot(place, name):
        place.evaluate("e => e.scrollIntoView()")
        place.page.mouse.move(1270, 790)
        place.page.screenshot(path=folder / f"{name}.png", animations="disabled")

    yield shoot
    with request.config.pluginmanager.get_plugin("capturemanager").global_and_fixture_disabled():
        print(f"\nscreenshots: {folder}")


@pytest.fixture
def hand(lab):
    hand = Hand(lab)
    yield hand
    hand.enter("labels", "")
    hand.labelled("image").select_option("of the test split")
    hand.labelled("ranked").select_option("seen and unseen labels (GZSL)")
    hand.open(0)
    assert lab.wrong == [] and lab.title() != "1234"


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def start():
    """Where the slider of the threshold stands at first: at what val decided on."""
    metrics = json.loads((HOME / "runs" / "emoji" / "metrics.json").read_text(encoding="utf8"))
    return round(metrics["calibration"]["threshold"], 2)


def code_cells(path):
    """Of a notebook that is being written none."""
    try:
        notebook = nbformat.read(path, nbformat.NO_CONVERT)
    except NotJSONError:
        return []
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_the_notebook_runs_in_jupyterlab(lab):
    lab.keyboard.press("Escape")
    lab.keyboard.press("Control+s")
    wait_until(lambda: any(cell.execution_count for cell in code_cells(lab.notebook)[-1:]))
    code = code_cells(lab.notebook)
    assert all(cell.execution_count for cell in code)
    assert "error" not in {output.output_type for cell in code for output in cell.outputs}


def test_the_threshold_moves_what_is_predicted(hand, keep):
    hand.open(SCENE)
    keep(hand.panel, "panel")
    handle = hand.handle("threshold")
    expect(handle).to_have_attribute("aria-valuetext", f"{start():.2f}")
    precision, recall = hand.number(0), hand.number(1)
    hand.slide("threshold", "ArrowRight")
    expect(handle).to_have_attribute("aria-valuetext", f"{start() + 0.1:.2f}")
    expect(hand.figure(0)).not_to_have_text(f"{precision:.1f} %")
    assert hand.number(1) <= recall  # of any run: fewer labels are predicted
    hand.slide("threshold", "ArrowLeft")
    expect(hand.figure(0)).to_have_text(f"{precision:.1f} %")


def test_every_slider_moves_the_figures(hand):
    for name in ("temperature", *RATES):
        before = hand.figure(2).inner_text()
        hand.slide(name, "ArrowRight")
        expect(hand.figure(2)).not_to_have_text(before)
        hand.slide(name, "ArrowLeft")
        expect(hand.figure(2)).to_have_text(before)


def test_new_labels_and_where_they_looked(hand):
    hand.ask("house, a red roof, DOG FACE", 3)
    assert {name.removeprefix("✓ ") for name in hand.buttons.all_inner_texts()} == {"house", "a red roof", "dog face"}
    expect(hand.panel.get_by_text("new", exact=True)).to_be_visible()
    for name in ("a red roof", "dog face"):
        before = hand.images.nth(1).get_attribute("src")
        hand.panel.get_by_role("button", name=name).click()
        hand.looks(1, f"test image 0, bright where {name} looked")
        assert hand.images.nth(1).get_attribute("src") != before


def test_zsl_ranks_unseen_labels_only_and_relevant_drops_images(hand):
    before, whole = hand.row.inner_text(), hand.panel.get_by_role("row", name="2000 test images")
    hand.labelled("ranked").select_option("unseen labels only (ZSL)")
    expect(hand.panel.get_by_text("seen", exact=True)).to_have_count(0)
    hand.labelled("images").select_option("relevant ones, with a ranked label")
    expect(whole).to_have_count(0)
    assert hand.row.inner_text() != before
    hand.labelled("images").select_option("all are counted")
    expect(whole).to_have_count(1)


def test_a_label_that_is_html_is_text(hand):
    hand.slide("threshold", "Home", 1)  # all labels are predicted, and so written out
    hand.enter("labels", f"{NASTY}, <script>document.title=1234</script>, <b>x</b>")
    expect(hand.panel.get_by_role("button", name="<b>x</b>")).to_be_visible()
    expect(hand.panel.get_by_text("predicted:")).to_contain_text(NASTY)
    hand.panel.get_by_role("button", name="<img").click()
    hand.looks(1, f"test image 0, bright where {NASTY} looked")
    assert hand.panel.get_by_role("img", name="test image").count() >= 2
    assert hand.panel.locator("img[src=x], script").count() == 0
    hand.slide("threshold", "ArrowRight", round(100 * start()))


def test_a_photo(hand, keep):
    scene = draw(np.random.default_rng(0), ["cactus", "guitar", "sushi"], "meadow").resize((480, 480))
    hand.upload("holiday.jpg", encoded(scene, "JPEG", quality=95), ", 480 × 480 px", kind="image/jpeg")
    expect(hand.panel.get_by_role("row", name="this image")).to_have_count(0)
    hand.ask("cactus, guitar, sushi, pizza, a plant with spines", 5)
    hand.looks(0, "your photo")
    hand.says("base rates set to")
    keep(hand.panel, "photo")


def test_bad_input_is_said_and_the_kernel_lives(hand, keep):
    hand.upload("notes.jpg", b"this is no image", " cannot be read as an image", "alert", "image/jpeg")
    hand.upload("empty.png", b"", " is empty (0 bytes)", "alert")
    keep(hand.panel, "bad_upload")
    hand.upload("large.png", encoded(Image.new("RGB", (8660, 5774), (200, 80, 40))), ", 1152 × 768 px")  # 50 megapixels
    noise = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (2400, 2400, 3), np.uint8)))
    assert len(noise) > 15_000_000
    hand.upload("noise.png", noise, ", 768 × 768 px")  # more than a server takes by default
    hand.labelled("image").select_option("of the test split")
    hand.enter("labels", "house,, pizza, ")
    hand.says("2 empty labels left out")
    hand.enter("labels", ",".join(f"thing {i}" for i in range(5000)))
    hand.says("5000 labels asked about")
    expect(hand.buttons).to_have_count(12)
    hand.ask("house", 1)


def test_the_worst_labels(hand, keep):
    worst, figure = hand.labelled("worst labels"), hand.panel.get_by_role("figure").first
    worst.scroll_into_view_if_needed()
    label, _ = worst.get_by_role("option").nth(2).inner_text().replace("\xa0", " ").split(": AP ")
    before = figure.get_by_role("img").get_attribute("src")
    worst.select_option(index=2)
    expect(figure.get_by_role("img")).not_to_have_attribute("src", before)
    expect(figure).to_contain_text("rank 1")
    keep(figure, "worst")
    button = hand.panel.get_by_role("button", name="open ").nth(1)
    number = button.inner_text().removeprefix("open ")
    button.click()
    expect(hand.labelled("number")).to_have_value(number)
    hand.looks(1, f"test image {number}, bright where {label} looked")


def test_every_control_has_a_name_and_is_reached_by_keyboard(hand):
    hand.labelled("image").focus()
    names = []
    for _ in range(60):
        names.append(hand.page.evaluate("""() => {
            const e = document.activeElement, w = e.closest('.jupyter-widgets, .widget-toggle-buttons');
            const label = e.labels && e.labels[0] || w && w.querySelector('label');
            const named = e.getAttribute('role') === 'slider' || e.matches('input, select');
            return named ? label.textContent : e.textContent.trim()}"""))
        if names[-1].startswith("open "):
            break
        hand.page.keyboard.press("Tab")
    controls = ["image", "number", "that carries", "labels", "beside it", "ranked", "images", "threshold"]
    controls += ["temperature", *RATES]
    assert controls == [name for name in dict.fromkeys(names) if name in controls], names
    assert any(name.startswith("choose photos") for name in names) and all(names), "a control without a name"
    others = {"next one", "table as CSV", "reset the controls", "worst labels"}
    assert others | {*hand.buttons.all_inner_texts()} <= set(names)
    hand.page.keyboard.press("Enter")
    expect(hand.labelled("number")).to_have_value(names[-1].removeprefix("open "))


def check_layout(hand, frame):
    """Nothing of the panel is cut off, overlaps, or leaves a frame; where it is, [{what, x, y, right, bottom}]."""
    boxes = hand.panel.evaluate("""panel => {
        const kinds = 'input, select, button, a, .widget-label, .widget-readout, .slider-container, img, table';
        return [...panel.querySelectorAll(kinds + ', .widget-html-content')].map(e => {
            const box = e.getBoundingClientRect().toJSON(), spills = getComputedStyle(e).overflow !== 'visible';
            const cut = e.scrollWidth > e.clientWidth && !e.matches('input') && spills, there = !!e.offsetParent;
            return {what: e.tagName + ' ' + (e.textContent || e.alt || '').slice(0, 30), cut, there, ...box}
        }).filter(e => e.there && e.width && e.height)}""")
    assert len(boxes) > 40
    for box in boxes:
        assert frame["x"] <= box["x"] and box["right"] <= frame["x"] + frame["width"] and not box["cut"], box
    sides = [("x", "right"), ("y", "bottom")]
    for a, b in combinations(boxes, 2):
        apart = any(min(a[end], b[end]) - max(a[start], b[start]) <= 1 for start, end in sides)
        insets = [[b[start] - a[start], a[end] - b[end]] for start, end in sides]  # of b in a
        nested = np.min(insets) >= -1 or np.max(insets) <= 1  # as text is in a table
        assert apart or nested, (a["what"], b["what"])
    return boxes


def test_nothing_is_cut_off_or_overlaps(hand, keep):
    hand.page.evaluate("window.scrollTo(0, 0)")
    frame = hand.page.locator(".jp-NotebookPanel-notebook").bounding_box()
    check_layout(hand, frame)
    hand.labelled("beside it").select_option("untouched CLIP")
    expect(hand.panel.get_by_role("table")).to_have_count(2)
    check_layout(hand, frame)
    keep(hand.panel, "two")
    hand.labelled("beside it").select_option("no other model")
    expect(hand.panel.get_by_role("table")).to_have_count(1)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_panel_is_a_page_without_code(playwright, keep, tmp_path, theme):
    """And shows two models side by side, the table of which is what a browser saves."""
    shutil.copy(ROOT / "notebooks" / "07_app.ipynb", tmp_path / "app.ipynb")
    options = [str(tmp_path / "app.ipynb"), "--no-browser", "--port=PORT", "--token=TOKEN", f"--theme={theme}"]
    with serving(tmp_path, "voila", *options, path="") as address, browsing(playwright, tmp_path, address) as page:
        page.locator(".widget-slider").first.wait_for()
        hand = Hand(page)
        hand.ask("house, a red roof", 2)
        hand.ask("", 12)
        assert page.get_by_text("import clipdec").count() == 0 and page.get_by_role("progressbar").count() == 0
        keep(page.get_by_role("heading", name="The panel as a page"), f"app_{theme}")
        hand.enter("number", str(SCENE))
        hand.looks(0, f"test image {SCENE}")
        hand.labelled("beside it").select_option("untouched CLIP")
        hand.looks(2, f"test image {SCENE}")
        tables, (_, label, *_) = hand.panel.get_by_role("table"), hand.second.all_inner_texts()
        expect(tables).to_have_count(2)
        hand.second.nth(1).click()
        for place in (1, 3):
            hand.looks(place, f"test image {SCENE}, bright where {label.removeprefix('✓ ')} looked")
        boxes = {box["what"]: box for box in check_layout(hand, {"x": 0, "width": 1280})}
        assert max(box["right"] for box in boxes.values()) > 1200  # the width there is
        left, right = (tables.nth(i).bounding_box() for i in (0, 1))
        assert left["x"] + left["width"] < right["x"] and abs(left["y"] - right["y"]) < 100
        keep(hand.panel, f"two_{theme}")
        with page.expect_download() as saved:
            page.get_by_role("link", name="table as CSV").click()
        rows = list(csv.DictReader(saved.value.path().read_text(encoding="utf8").splitlines()))
        names = [*hand.buttons.all_inner_texts(), *hand.second.all_inner_texts()]
        names = [name.removeprefix("✓ ") for name in names]
        assert [row["label"] for row in rows] == names and saved.value.suggested_filename == f"test_image_{SCENE}.csv"
        hand.enter("that carries", names[0])
        hand.says(f"carry {names[0]}")
        page.get_by_role("button", name="reset the controls").click()
        hand.looks(0, "test image 0")
        expect(tables).to_have_count(1)
        assert page.wrong == []
