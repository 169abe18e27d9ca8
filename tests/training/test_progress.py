"""Progress bars: few messages, and none for what is quick."""

import io
import time

from clipdec.training.processes import progress


def test_a_bar_is_drawn_once_a_second_at_most():
    drawn = io.StringIO()
    assert [time.sleep(0.02) or i for i in progress(range(150), "steps", file=drawn)] == list(range(150))
    assert 1 <= drawn.getvalue().count("steps:") <= 4  # in three seconds; without a limit it would be thirty


def test_what_is_quick_has_no_bar():
    drawn = io.StringIO()
    list(progress(range(1000), "steps", file=drawn))
    assert "steps" not in drawn.getvalue()
