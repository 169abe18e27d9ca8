"""The toy of the metrics: what it reads from its table, and what it draws."""

import re

import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score

from clipdec.labels import LabelSpace
from clipdec.metrics import zsl_report
from clipdec.notebook import toy

NASTY = '<img src=x onerror="alert(1)"> $5'
LABELS = LabelSpace(["dog", "grass"], ["zebra", "pizza", NASTY])


@pytest.fixture
def example():
    """(logits, targets), [6, 5]."""
    torch.manual_seed(3)
    z, y = torch.randn(6, 5), torch.rand(6, 5) < 0.4
    y[0] = False  # an image without a label
    return z, y


@pytest.mark.parametrize("offset", [0.0, 0.8])
def test_figures_are_those_of_another_library(example, offset):
    z, y = example
    found = toy.readings(z, y, LABELS, 2, offset)
    moved = z.clone()
    moved[:, :2] -= offset
    torch.testing.assert_close(found["z"], moved)
    ap = [average_precision_score(y[:, j], z[:, j]) for j in range(5)]
    assert found["ap"].tolist() == pytest.approx(ap)
    for task, start in (("gzsl", 0), ("zsl", 2)):
        best = moved[:, start:].argsort(1, descending=True)[:, :2]
        predicted = torch.zeros(6, 5 - start, dtype=torch.bool).scatter(1, best, True)
        assert torch.equal(found["picked"][task][:, start:], predicted) and not found["picked"][task][:, :start].any()
        assert found["map"][task] == pytest.approx(sum(ap[start:]) / (5 - start))
        assert found["map"][task] == pytest.approx(zsl_report(moved, y, LABELS)[task]["map"] / 100)
        assert found["f1"][task] == pytest.approx(f1_score(y[:, start:].flatten(), predicted.flatten()))
        rows = [f1_score(y[m, start:], predicted[m]) if y[m, start:].any() else None for m in range(6)]
        for value, row in zip(found["row_f1"][task], rows):
            assert value != value if row is None else value == pytest.approx(row)


def test_the_offset_moves_rows_and_no_column(example):
    z, y = example
    one, other = toy.readings(z, y, LABELS), toy.readings(z, y, LABELS, offset=5.0)
    assert torch.equal(one["ap"], other["ap"]) and one["map"] == other["map"]
    assert torch.equal(one["picked"]["zsl"], other["picked"]["zsl"])
    assert torch.equal(other["picked"]["gzsl"], other["picked"]["zsl"])  # so much off that no seen label is left


def test_cells_are_framed_where_true_and_marked_where_picked(example):
    z, y = example
    found = toy.readings(z, y, LABELS)
    figure = toy.table(found, y, LABELS, [Image.new("RGB", (9, 9))] * 6)
    boxes, axis = figure.axes[0].patches, figure.axes[0]
    count = lambda test: sum(map(test, boxes))
    assert count(lambda box: box.get_edgecolor() == (0, 0, 0, 1)) == y.sum()
    for task, colour in toy.PICKED.items():
        marked = [box for box in boxes if box.get_facecolor()[:3] == pytest.approx(rgb(colour)) and box.get_fill()]
        assert len(marked) == found["picked"][task].sum() == 12
    texts = [text.get_text() for text in axis.texts]
    assert {f"{value:.3f}" for value in found["ap"].tolist()} <= set(texts) and len(axis.images) == 6
    figure.canvas.draw()
    for text in axis.texts:
        extent = text.get_window_extent()
        assert (extent.x0 > 0 and extent.x1 < figure.bbox.x1) or "onerror" in text.get_text()


def rgb(colour):
    return tuple(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))


def test_a_lit_column_or_row_is_strong_and_the_others_are_pale(example):
    z, y = example
    found = toy.readings(z, y, LABELS)
    for lit, cells in (({"column": 2}, z[:, 2]), ({"row": 3}, z[3])):
        figure = toy.table(found, y, LABELS, **lit, figures=False)
        numbers = [text for text in figure.axes[0].texts if re.fullmatch(r"-?\d\.\d", text.get_text())]
        strong = [text.get_text() for text in numbers if text.get_alpha() == 1]
        assert len(numbers) == 30 and strong == [f"{value:.1f}" for value in cells]


def test_the_html_is_escaped_and_says_the_figures(example):
    z, y = example
    shown, found = toy.html(z, y, LABELS, 2, 1.0), toy.readings(z, y, LABELS, 2, 1.0)
    assert shown.count("<img") == 1 and "&lt;img src=x onerror=&quot;alert(1)&quot;&gt; $5" in shown
    for task in ("gzsl", "zsl"):
        assert f"{task.upper()}: mAP {found['map'][task]:.3f}, F1 {found['f1'][task]:.3f}" in shown
    assert f"zebra {found['ap'][2]:.3f}" in shown and ", by image –, " in shown  # no label in the first image
    assert shown != toy.html(z, y, LABELS, 2, 0.0)
