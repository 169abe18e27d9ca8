"""The panel as a page in Chromium, on the default run (`make demo`), beside a page of one slider and a line of text:
how long it takes to open, and what a hand waits for at a slider.
"""

import statistics
import tempfile
import time
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path

import nbformat
from playwright.sync_api import sync_playwright

from benchmarks.browser import CHROMIUM, ROOT, browsing, serving

MOVES, QUIET = 20, 400  # of a slider; ms without a change after which a move has ended
BARE = """import ipywidgets as w
threshold, text = w.FloatSlider(description="threshold", max=1, step=0.01), w.HTML("0")
threshold.observe(lambda change: setattr(text, "value", str(change.new)), "value")
w.VBox([threshold, text])"""
# Milliseconds from the next key to the last change on the page, but for the slider itself, which needs no kernel.
WATCH = """quiet => { window.move = new Promise(done => {
    let began, timer;
    addEventListener('keydown', () => { began = performance.now(); }, {capture: true, once: true});
    const element = node => node.closest ? node : node.parentElement;
    const watch = new MutationObserver(changes => {
        if (changes.every(change => element(change.target).closest('.widget-slider'))) return;
        const last = performance.now();
        clearTimeout(timer);
        timer = setTimeout(() => { watch.disconnect(); done(last - began); }, quiet);
    });
    watch.observe(document.body, {subtree: true, childList: true, characterData: true, attributes: true});
}); }"""


@contextmanager
def opened(playwright, notebook):
    """(A notebook as a page, seconds until a slider is on it.)"""
    with tempfile.TemporaryDirectory() as aside, redirect_stdout(StringIO()):
        folder = Path(aside)
        nbformat.write(notebook, folder / "page.ipynb")
        options = [str(folder / "page.ipynb"), "--no-browser", "--port=PORT", "--token=TOKEN"]
        with serving(folder, "voila", *options, path="") as address:
            began = time.perf_counter()
            with browsing(playwright, folder, address) as page:
                page.locator(".widget-slider").first.wait_for()
                yield page, time.perf_counter() - began


def moved(page, name):
    """Seconds from a key on a slider to the last change that it makes on the page, the median of several."""
    handle = page.locator(".widget-slider").filter(has=page.get_by_text(name, exact=True)).get_by_role("slider")
    handle.focus()
    seconds = []
    for _ in range(MOVES):
        page.evaluate(WATCH, QUIET)
        handle.press("ArrowRight")
        seconds.append(page.evaluate("() => window.move") / 1000)
    return statistics.median(seconds)


def figures(device):
    if CHROMIUM is None:
        print("panel: left out, for want of Chromium")
        return
    bare = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(BARE)])
    panel = nbformat.read(ROOT / "notebooks" / "07_app.ipynb", nbformat.NO_CONVERT)
    with sync_playwright() as playwright:
        with opened(playwright, bare) as (page, start):
            least = moved(page, "threshold")
        with opened(playwright, panel) as (page, seconds):
            times = {name: moved(page, name) for name in ("threshold", "temperature")}
    note = f"{seconds:.1f} s, with the start of a kernel and all imports"
    yield "panel as a page, opening: panel / one slider", seconds / start, note
    for name, each in times.items():
        yield f"panel as a page, a move of the {name}: panel / one slider", each / least, f"{1000 * each:.0f} ms"
