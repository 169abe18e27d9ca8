"""Notebook 05 and the panel in a real browser, as a hand uses them. Screenshots are kept in runs/screenshots.

Needs Chromium (on Debian `apt install chromium`); without it these tests are left out. They come last, when notebook 04 has trained
the default run; if there is none, notebook 05 trains it first.
"""

import io
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect, sync_playwright

from data_prep.emoji_scenes import draw

ROOT = Path(__file__).resolve().parents[2]
SHOTS = ROOT / "runs" / "screenshots"
CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
UPLOADS = '{"websocket_max_message_size": 104857600}'  # as in the Makefile
SCENE = 725  # the test image of the screenshot
NASTY = '<img src=x onerror="document.title=1234">'
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="left out, for want of Chromium: nothing was tested in a browser; on Debian `apt install chromium`")


@contextmanager
def serving(folder, *command, path):
    """A Jupyter server of its own port, token and settings: the address of `path` on it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    fresh = {name: str(folder / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR", "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR")}
    command = [sys.executable, "-m", *command]
    command = [part.format(port=port, token=token) for part in command]
    address = f"http://127.0.0.1:{port}/{path}?token={token}"
    with open(folder / "server.log", "w") as log:
        server = subprocess.Popen(command, cwd=ROOT, env=os.environ | fresh, stdout=log, stderr=subprocess.STDOUT)
        try:
            for _ in range(240):
                assert server.poll() is None, (folder / "server.log").read_text()
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                except OSError:
                    time.sleep(0.25)
            yield address
        finally:
            server.terminate()
            server.wait(30)


@contextmanager
def browsing(playwright, folder, address):
    """A page of 1280 x 800 px in a browser with an empty profile; its errors and dialogs are kept in `page.wrong`."""
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
    context = playwright.chromium.launch_persistent_context(str(folder / "profile"), executable_path=CHROMIUM, args=flags, viewport={"width": 1280, "height": 800})
    page = context.pages[0]
    page.wrong = []
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.on("dialog", lambda dialog: (page.wrong.append(dialog.message), dialog.dismiss()))
    page.goto(address, wait_until="commit", timeout=60_000)
    yield page
    context.close()


@pytest.fixture(scope="module")
def playwright():
    with sync_playwright() as started:
        yield started


@pytest.fixture(scope="module")
def lab(playwright, tmp_path_factory):
    """Notebook 05, opened in JupyterLab and run from top to bottom."""
    folder = tmp_path_factory.mktemp("lab")
    notebook = nbformat.read(ROOT / "notebooks" / "05_evaluate.ipynb", nbformat.NO_CONVERT)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    (folder / "root").mkdir()
    nbformat.write(notebook, folder / "root" / "05_evaluate.ipynb")
    options = ["--no-browser", "--allow-root", "--ServerApp.port={port}", "--ServerApp.port_retries=0", "--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder / 'root'}"]
    settings = UPLOADS.replace("{", "{{").replace("}", "}}")
    with serving(folder, "jupyterlab", *options, f"--ServerApp.tornado_settings={settings}", path="lab/tree/05_evaluate.ipynb") as address, browsing(playwright, folder, address) as page:
        page.get_by_role("button", name="No", exact=True).click(timeout=60_000)  # to news of Jupyter
        page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=60_000)
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_text("Run All Cells", exact=True).click()
        page.locator(".widget-slider").first.wait_for(state="attached", timeout=900_000)  # a run may have to be trained first
        page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").wait_for(timeout=120_000)
        page.folder = folder
        yield page


class Hand:
    """What a hand does with the panel, and what an eye sees of it."""

    def __init__(self, page):
        self.page, self.panel = page, page.locator(".widget-vbox").filter(has=page.locator(".widget-upload")).first
        self.panel.evaluate("panel => panel.scrollIntoView()")
        expect(self.panel).to_be_visible()

    def labelled(self, name):
        return self.panel.get_by_label(name, exact=True)

    def handle(self, name):
        return self.panel.locator(".widget-slider", has_text=name).get_by_role("slider")

    def names(self):
        return self.panel.locator(".widget-toggle-buttons").first.get_by_role("button").all_inner_texts()

    def shows(self, count):
        expect(self.panel.locator(".widget-toggle-buttons").first.get_by_role("button")).to_have_count(count)

    def open(self, number):
        self.labelled("number").fill(str(number))
        self.labelled("number").press("Enter")
        expect(self.panel.get_by_role("img").first).to_have_attribute("alt", f"test image {number}")
        self.shows(12)

    def type_labels(self, text):
        self.labelled("labels").fill(text)
        self.labelled("labels").press("Enter")

    def upload(self, name, content, kind="image/png"):
        with self.page.expect_file_chooser() as chooser:
            self.panel.get_by_role("button", name="choose a photo").click()
        chooser.value.set_files({"name": name, "mimeType": kind, "buffer": content})

    def says(self, text, role="status"):
        expect(self.panel.get_by_role(role)).to_contain_text(text, timeout=20_000)

    def figure(self, row, column):
        return self.panel.get_by_role("row", name=row).get_by_role("cell").nth(column).inner_text()

    def keep(self, name):
        """A screenshot with the panel's top at the top of the page."""
        SHOTS.mkdir(parents=True, exist_ok=True)
        self.panel.evaluate("e => e.scrollIntoView()")
        self.page.mouse.move(1270, 790)
        self.page.wait_for_timeout(300)
        self.page.screenshot(path=SHOTS / f"{name}.png")

    def reset(self):
        self.type_labels("")
        self.labelled("image").select_option("of the test split")
        self.labelled("ranked").select_option("seen and unseen labels (GZSL)")
        self.open(0)


@pytest.fixture
def hand(lab):
    hand = Hand(lab)
    yield hand
    hand.reset()
    assert lab.wrong == [] and lab.title() != "1234"


def png(width, height):
    file = io.BytesIO()
    Image.new("RGB", (width, height), (200, 80, 40)).save(file, "PNG")
    return file.getvalue()


def test_the_notebook_runs_in_jupyterlab(lab):
    lab.keyboard.press("Escape")
    lab.keyboard.press("Control+s")
    path = lab.folder / "root" / "05_evaluate.ipynb"
    for _ in range(60):
        code = [cell for cell in nbformat.read(path, nbformat.NO_CONVERT).cells if cell.cell_type == "code"]
        if code[-1].execution_count:
            break
        time.sleep(0.5)
    assert all(cell.execution_count for cell in code) and not [o for cell in code for o in cell.outputs if o.output_type == "error"]


def test_the_threshold_moves_what_is_predicted(hand):
    hand.open(SCENE)
    hand.keep("panel")
    before = [hand.figure("test images", column) for column in range(3)]
    handle = hand.handle("threshold")
    handle.focus()
    for _ in range(10):
        handle.press("ArrowRight")
    expect(handle).to_have_attribute("aria-valuetext", "0.25")
    expect(hand.panel.get_by_role("row", name="test images").get_by_role("cell").nth(0)).not_to_have_text(before[0])
    precision, recall = (float(hand.figure("test images", column).rstrip(" %")) for column in (0, 1))
    assert precision > float(before[0].rstrip(" %")) and recall < float(before[1].rstrip(" %"))
    for _ in range(10):
        handle.press("ArrowLeft")
    expect(hand.panel.get_by_role("row", name="test images").get_by_role("cell").nth(0)).to_have_text(before[0])


def test_every_slider_moves_the_figures(hand):
    for name in ("temperature", "base rate, seen", "base rate, other"):
        cell, handle = hand.panel.get_by_role("row", name="test images").get_by_role("cell").nth(2), hand.handle(name)
        before = cell.inner_text()
        handle.focus()
        for _ in range(10):
            handle.press("ArrowRight")
        expect(cell).not_to_have_text(before)
        for _ in range(10):
            handle.press("ArrowLeft")
        expect(cell).to_have_text(before)


def test_new_labels_and_where_they_looked(hand):
    hand.type_labels("house, a red roof, DOG FACE")
    hand.shows(3)
    assert {name.removeprefix("✓ ") for name in hand.names()} == {"house", "a red roof", "dog face"}
    expect(hand.panel.get_by_text("new", exact=True)).to_be_visible()
    looked = hand.panel.get_by_role("img").nth(1)
    for name in ("a red roof", "dog face"):
        before = looked.get_attribute("src")
        hand.panel.get_by_role("button", name=name).click()
        expect(looked).to_have_attribute("alt", f"test image 0, bright where {name} looked")
        assert looked.get_attribute("src") != before


def test_zsl_ranks_unseen_labels_only_and_relevant_drops_images(hand):
    before = hand.panel.get_by_role("row", name="test images").inner_text()
    hand.labelled("ranked").select_option("unseen labels only (ZSL)")
    expect(hand.panel.get_by_text("seen", exact=True)).to_have_count(0)
    hand.labelled("images").select_option("relevant ones, with a ranked label")
    expect(hand.panel.get_by_role("row", name="2000 test images")).to_have_count(0)
    assert hand.panel.get_by_role("row", name="test images").inner_text() != before
    hand.labelled("images").select_option("all are counted")
    expect(hand.panel.get_by_role("row", name="2000 test images")).to_have_count(1)


def test_a_label_that_is_html_is_text(hand):
    handle = hand.handle("threshold")
    handle.focus()
    handle.press("Home")  # all labels are predicted, and so written out
    hand.type_labels(f"{NASTY}, <script>document.title=1234</script>, <b>x</b>")
    expect(hand.panel.get_by_role("button", name="<b>x</b>")).to_be_visible()
    expect(hand.panel.get_by_text("predicted:")).to_contain_text(NASTY)
    hand.panel.get_by_role("button", name="<img").click()
    expect(hand.panel.get_by_role("img").nth(1)).to_have_attribute("alt", f"test image 0, bright where {NASTY} looked")
    assert hand.panel.get_by_role("img", name="test image").count() >= 2 and hand.panel.locator("img[src=x], script").count() == 0
    handle.focus()
    for _ in range(15):
        handle.press("ArrowRight")


def test_a_photo(hand):
    file = io.BytesIO()
    draw(np.random.default_rng(0), ["cactus", "guitar", "sushi"], "meadow").resize((480, 480)).save(file, "JPEG", quality=95)
    hand.upload("holiday.jpg", file.getvalue(), "image/jpeg")
    hand.says("holiday.jpg, 480 × 480 px")
    expect(hand.panel.get_by_role("row", name="this image")).to_have_count(0)
    hand.type_labels("cactus, guitar, sushi, pizza, a plant with spines")
    hand.shows(5)
    expect(hand.panel.get_by_role("img").first).to_have_attribute("alt", "your photo")
    hand.keep("photo")


def test_bad_input_is_said_and_the_kernel_lives(hand):
    hand.upload("notes.jpg", b"this is no image", "image/jpeg")
    hand.says("notes.jpg cannot be read as an image", "alert")
    hand.upload("empty.png", b"")
    hand.says("empty.png is empty (0 bytes)", "alert")
    hand.keep("bad_upload")
    hand.upload("large.png", png(8660, 5774))  # 50 megapixels
    hand.says("large.png, 1024 × 683 px")
    noise = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (2400, 2400, 3), np.uint8)).save(noise, "PNG")
    assert len(noise.getvalue()) > 15_000_000
    hand.upload("noise.png", noise.getvalue())  # more than a server takes by default
    hand.says("noise.png, 1024 × 1024 px")
    hand.labelled("image").select_option("of the test split")
    hand.type_labels("house,, pizza, ")
    hand.says("2 empty labels left out")
    hand.type_labels(",".join(f"thing {i}" for i in range(5000)))
    hand.says("5000 labels asked about")
    hand.shows(12)
    hand.type_labels("house")
    hand.shows(1)


def test_the_worst_labels(hand):
    worst = hand.labelled("worst labels")
    worst.scroll_into_view_if_needed()
    option = worst.get_by_role("option").nth(2).inner_text().replace("\xa0", " ")
    assert ": AP " in option
    images = hand.panel.get_by_role("figure")
    before = images.first.get_by_role("img").get_attribute("src")
    worst.select_option(index=2)
    expect(images.first.get_by_role("img")).not_to_have_attribute("src", before)
    expect(images.first).to_contain_text("rank 1")
    images.first.evaluate("image => image.scrollIntoView({block: 'center'})")
    hand.page.wait_for_timeout(500)
    hand.page.screenshot(path=SHOTS / "worst.png")
    button = hand.panel.get_by_role("button", name="open ").nth(1)
    number = button.inner_text().removeprefix("open ")
    button.click()
    expect(hand.labelled("number")).to_have_value(number)
    expect(hand.panel.get_by_role("img").nth(1)).to_have_attribute("alt", f"test image {number}, bright where {option.partition(': AP')[0]} looked")


def test_every_control_has_a_name_and_is_reached_by_keyboard(hand):
    hand.labelled("image").focus()
    seen = []
    for _ in range(60):
        seen.append(hand.page.evaluate("""() => {
            const e = document.activeElement, w = e.closest('.jupyter-widgets, .widget-toggle-buttons');
            const label = e.labels && e.labels[0] || w && w.querySelector('label');
            return (e.getAttribute('role') === 'slider' || e.matches('input, select')) ? label.textContent : e.textContent.trim()}"""))
        if seen[-1].startswith("open "):
            break
        hand.page.keyboard.press("Tab")
    names = list(dict.fromkeys(seen))
    controls = ["image", "number", "choose a photo (0)", "labels", "ranked", "images", "threshold", "temperature", "base rate, seen", "base rate, other"]
    found = [name for name in names if not name.startswith("choose a photo")]
    assert [name for name in controls if not name.startswith("choose")] == [name for name in found if name in controls], names
    assert any(name.startswith("choose a photo") for name in names) and "worst labels" in names and set(hand.names()) <= set(names)
    assert all(names), "a control without a name"
    hand.page.keyboard.press("Enter")
    expect(hand.labelled("number")).to_have_value(seen[-1].removeprefix("open "))


def test_nothing_is_cut_off_or_overlaps(hand):
    hand.page.evaluate("window.scrollTo(0, 0)")
    boxes = hand.panel.evaluate("""panel => {
        const leaves = [...panel.querySelectorAll('input, select, button, .widget-label, .widget-readout, .slider-container, img, table, .widget-html-content')];
        return leaves.filter(e => e.offsetParent && e.getBoundingClientRect().width && e.getBoundingClientRect().height).map(e => {
            const r = e.getBoundingClientRect();
            return {what: e.tagName + ' ' + (e.textContent || e.alt || '').slice(0, 30), x: r.x, y: r.y, right: r.right, bottom: r.bottom,
                    cut: e.scrollWidth > e.clientWidth && e.tagName !== 'INPUT' && getComputedStyle(e).overflow !== 'visible'}})}""")
    frame = hand.page.locator(".jp-NotebookPanel-notebook").bounding_box()
    assert len(boxes) > 40
    for box in boxes:
        assert frame["x"] <= box["x"] and box["right"] <= frame["x"] + frame["width"] and not box["cut"], box
    overlaps = [
        (a["what"], b["what"]) for i, a in enumerate(boxes) for b in boxes[i + 1 :]
        if min(a["right"], b["right"]) - max(a["x"], b["x"]) > 1 and min(a["bottom"], b["bottom"]) - max(a["y"], b["y"]) > 1 and not _inside(a, b)
    ]  # fmt: skip
    assert overlaps == []


def _inside(a, b):
    """Whether one box holds the other, as a table holds its text."""
    def holds(outer, inner):
        return outer["x"] <= inner["x"] + 1 and outer["y"] <= inner["y"] + 1 and outer["right"] >= inner["right"] - 1 and outer["bottom"] >= inner["bottom"] - 1

    return holds(a, b) or holds(b, a)


def test_the_panel_is_a_page_without_code(playwright, tmp_path):
    if not (ROOT / "runs" / "emoji" / "metrics.json").is_file():
        pytest.fail("there is no default run: make demo")
    shutil.copy(ROOT / "notebooks" / "07_app.ipynb", tmp_path / "app.ipynb")
    options = [str(tmp_path / "app.ipynb"), "--no-browser", "--port={port}", "--token={token}"]
    with serving(tmp_path, "voila", *options, path="") as address, browsing(playwright, tmp_path, address) as page:
        page.locator(".widget-slider").first.wait_for(timeout=120_000)
        hand = Hand(page)
        hand.type_labels("house, a red roof")
        hand.shows(2)
        hand.type_labels("")
        hand.shows(12)
        assert page.get_by_text("import clipdec").count() == 0 and page.wrong == []
        page.get_by_role("heading", name="The panel as a page").scroll_into_view_if_needed()
        assert page.get_by_role("progressbar").count() == 0
        page.wait_for_timeout(300)
        page.screenshot(path=SHOTS / "app.png")
