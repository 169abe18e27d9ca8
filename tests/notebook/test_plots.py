"""The figures of the notebooks, measured on their axes."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from clipdec.notebook import plots
from clipdec.towers import UNIT, windows_of


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_windows_are_outlined_where_they_are_cut():
    looks = {"corners": windows_of(4), "thirds": windows_of("42/43")}
    figure = plots.windows_on(Image.new("RGB", (60, 30)), looks)
    assert [axis.get_title() for axis in figure.axes] == list(looks)
    for axis, windows in zip(figure.axes, looks.values()):
        assert axis.get_xlim() == (0, UNIT) and axis.get_ylim() == (UNIT, 0) and len(axis.patches) == len(windows)
        for outline, (top, left, size) in zip(axis.patches, windows):
            gaps = outline.get_bbox().extents - (left, top, left + size, top + size)  # left, top, right, bottom
            inset = gaps[0]
            assert 0 < inset < 6 and gaps == pytest.approx(inset * np.array([1, 1, -1, -1]))
