"""Progress bars: few messages, and none for what is quick."""

import io

import tqdm.std

from clipdec.training.processes import progress


def drawn(monkeypatch, count, seconds):
    """What the bar of `count` steps draws; each takes so many seconds of a clock that only they move."""
    now, steps, text = [0.0], [], io.StringIO()
    monkeypatch.setattr(tqdm.std, "time", lambda: now[0])
    for step in progress(range(count), "steps", file=text):
        steps.append(step)
        now[0] += seconds
    assert steps == list(range(count))
    return text.getvalue()


def test_a_bar_is_drawn_once_a_second_at_most(monkeypatch):
    assert 1 <= drawn(monkeypatch, 150, 0.02).count("steps:") <= 4  # without a limit it would be thirty


def test_what_is_quick_has_no_bar(monkeypatch):
    assert "steps" not in drawn(monkeypatch, 1000, 0.0009)
