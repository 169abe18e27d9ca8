"""What the panel shows: escaped text, bars, tables, pictures."""

import base64
import io
import re

import numpy as np
from PIL import Image

from clipdec.notebook import render
from clipdec.notebook.plots import SEEN, UNSEEN

NASTY = '<img src=x onerror="alert(1)">'


def pixels(image_html):
    data = re.search(r'src="data:image/png;base64,([^"]+)"', image_html)[1]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).astype(int)


def test_bars_say_in_words_and_by_pattern_what_is_seen():
    bars = render.bars([1, 20], ["seen", "new"], [0.25, 0.5], 0.4)
    first, second = bars.split("20.")
    assert all(x in first for x in ("1.", ">seen<", SEEN, "width:25.0%", "font-weight:normal"))
    assert all(x in second for x in (">new<", UNSEEN, "repeating-linear-gradient", "width:50.0%", "font-weight:bold"))
    assert UNSEEN not in first and bars.count("left:40.0%") == 2


def test_sets_are_escaped():
    text, empty = render.sets([NASTY, "dog"], ["cat"], hidden=7), render.sets([], [])
    assert "&lt;img src=x onerror=&quot;alert(1)&quot;&gt;, dog and 7 more" in text and "cat" in text
    assert "nothing at this threshold" in empty and "none of the labels asked about" in empty
    assert "<img" not in text and "true" not in render.sets(["dog"], None)


def test_figures_show_percent_and_dashes():
    table = render.figures([("this image", (float("nan"), 0.0, 2 / 3)), (NASTY, (1, 1, 1))], NASTY)
    assert re.findall(r">([^<>]+)</td>", table) == ["–", "0.0 %", "66.7 %", *3 * ["100.0 %"]] and "<img" not in table


def test_messages():
    assert render.message("") == "" and 'role="status"' in render.message("done")
    assert 'role="alert"' in render.message(NASTY, wrong=True) and "<img" not in render.message(NASTY, wrong=True)


def test_a_picture_has_its_size_and_a_text():
    shown = render.picture(Image.new("RGB", (100, 50), (200, 100, 50)), f'"{NASTY}', 40)
    assert pixels(shown).shape == (20, 40, 3) and 'width="40" height="20"' in shown
    assert shown.count("<img") == 1 and 'alt="&quot;&lt;img' in shown
    assert pixels(render.picture(Image.new("RGB", (900, 1)), "", 40)).shape == (1, 40, 3)
    assert "<img" not in render.captioned([("", NASTY)], 40)


def test_a_strip_is_no_metre_long():
    text = render.picture(Image.new("RGB", (2, 30_000)), "a strip", 200)
    assert 'width="200" height="800"' in text and len(text) < 100_000


def test_what_was_not_looked_at_is_dark():
    attention = np.zeros((8, 8))
    attention[0, 0] = 0.7
    image = Image.new("RGB", (128, 96), (200, 100, 50))
    dark = np.asarray(render.darkened(image, attention)).astype(int)
    assert dark.shape == (96, 128, 3) and (dark[0, 0] >= [198, 98, 48]).all() and dark[-1, -1].sum() < 0.2 * 350
    assert (np.asarray(render.darkened(image, np.zeros((8, 8)))) == [200, 100, 50]).all()
