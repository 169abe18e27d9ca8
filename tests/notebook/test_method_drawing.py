"""The drawing of the method, measured on its canvas."""

from itertools import combinations

import matplotlib.pyplot as plt
import pytest
from matplotlib.text import Annotation, Text

from clipdec.notebook.method_drawing import ARROWS, PARTS, method_drawing


@pytest.fixture
def drawn():
    yield method_drawing
    plt.close("all")


def boxed(figure):
    """The texts that stand in boxes."""
    return [child for child in figure.axes[0].get_children() if isinstance(child, Text) and child.get_bbox_patch()]


def test_every_part_is_joined_and_no_box_lies_on_another_or_over_the_edge(drawn):
    assert {name for pair in ARROWS for name in pair} == PARTS.keys()
    figure = drawn()
    figure.canvas.draw()
    boxes, picture = [text.get_bbox_patch().get_window_extent() for text in boxed(figure)], figure.bbox
    assert len(boxes) > len(PARTS) and not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    assert all(picture.x0 <= b.x0 and b.x1 <= picture.x1 and picture.y0 <= b.y0 for b in boxes)


def test_the_parts_that_are_not_lit_are_pale(drawn):
    lit = {"sentence", "sentence_tower", "sentence_vector"}
    figure = drawn(lit)
    alpha = {text.get_text(): text.get_alpha() for text in boxed(figure)}
    assert alpha["sentence of\nits labels"] == alpha["$s$ [B, S]"] == 1 and alpha["$L_c$\nasymmetric"] < 0.5
    arrows = [c.arrow_patch.get_alpha() for c in figure.axes[0].texts if isinstance(c, Annotation)]
    assert arrows.count(1) == 2 and len(arrows) == len(ARROWS)
    with pytest.raises(ValueError, match="no part of the drawing: lossc"):
        drawn({"lossc"})
