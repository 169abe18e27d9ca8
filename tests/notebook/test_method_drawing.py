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


def boxes(figure):
    """{text: extent of its box in pixels}, and the extent of the picture."""
    figure.canvas.draw()
    texts = [child for child in figure.axes[0].get_children() if isinstance(child, Text) and child.get_bbox_patch()]
    return {text.get_text(): text.get_bbox_patch().get_window_extent() for text in texts}, figure.bbox


def test_every_part_is_joined_and_no_box_lies_on_another_or_over_the_edge(drawn):
    assert {name for pair in ARROWS for name in pair} == PARTS.keys()
    found, picture = boxes(drawn())
    assert not any(a.overlaps(b) for a, b in combinations(found.values(), 2) if a is not b) and len(found) > 15
    assert all(picture.x0 <= b.x0 and b.x1 <= picture.x1 and picture.y0 <= b.y0 for b in found.values())


def test_the_parts_that_are_not_lit_are_pale(drawn):
    lit = {"sentence", "sentence_tower", "sentence_vector"}
    children = drawn(lit).axes[0].get_children()
    alpha = {c.get_text(): c.get_alpha() for c in children if isinstance(c, Text) and c.get_bbox_patch()}
    assert alpha["sentence of\nits labels"] == alpha["$s$ [B, S]"] == 1 and alpha["$L_c$\nasymmetric"] < 0.5
    arrows = [c.arrow_patch.get_alpha() for c in children if isinstance(c, Annotation)]
    assert arrows.count(1) == 2 and len(arrows) == len(ARROWS)
    with pytest.raises(ValueError, match="no part of the drawing: lossc"):
        drawn({"lossc"})
