"""What the figures of the notebooks hold: points, bars, intervals, lines and outlines where the figures say."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from PIL import Image

from clipdec.labels import LabelSpace
from clipdec.notebook import plots
from clipdec.towers import UNIT, windows_of

POINTS = {
    "raw": {"passes": 1, "block": "training-free", "zsl": 20.0, "gzsl": 10.0},
    "sparc": {"passes": 5, "block": "transductive", "zsl": 50.0, "gzsl": 30.0},
    "ours": {"passes": 1, "block": "trained on seen labels", "zsl": 40.0, "gzsl": 25.0},
    "theirs": {"passes": 1, "block": "trained on seen labels", "zsl": 39.0, "gzsl": 5.0},
}
DIFFERENCES = {
    "near": {"zsl": {"mean": 1.0, "interval": [-1.0, 3.0]}, "gzsl": {"mean": 2.0, "interval": [1.0, 3.0]}},
    "once": {"zsl": {"mean": 4.0, "interval": [None, None]}, "gzsl": {"mean": -4.0, "interval": [-5.0, -3.0]}},
}


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_every_system_is_a_point_and_named_ones_have_their_map_beside_them():
    named = {"zsl": {"ours": "our head", "theirs": "their head"}, "gzsl": {"ours": "our head", "raw": "CLIP"}}
    for axis, task in zip(plots.map_by_passes(POINTS, named).axes, ("zsl", "gzsl")):
        found = {line.get_label(): line.get_ydata() for line in axis.lines}
        for block in ("training-free", "transductive", "trained on seen labels"):
            assert list(found[block]) == [point[task] for point in POINTS.values() if point["block"] == block]
        texts = {text.get_text(): text.get_position()[1] for text in axis.texts}
        assert texts.keys() == {f"{text} {POINTS[name][task]:.1f}" for name, text in named[task].items()}
        heights = sorted(texts.values())
        assert np.diff(heights).min() >= 4 and axis.get_xscale() == "log"
        assert all(0 <= height - float(text.split()[-1]) < 4 for text, height in texts.items())


def test_a_method_has_one_colour_in_every_figure():
    """That of its name, whatever stands before it; no method has the colour of seen or of unseen labels."""
    paper, ours, raw = "CLIP-Decoder, the paper's head", "CLIP-Decoder", "raw CLIP"
    looks = plots.method_looks([ours, paper, raw, "chance", "SPARC", "MKT"])
    colours = [colour for colour, *_ in [*plots.METHODS.values(), *plots.OTHERS]]
    assert len(set(colours)) == len(colours) - 2 and not {plots.SEEN, plots.UNSEEN} & set(colours)  # two have two names
    assert looks[ours] != looks[paper] and looks["SPARC"] != looks["MKT"]
    assert plots.method_looks(["MKT", paper, "this repository's head"]) == {
        "MKT": looks["SPARC"], paper: looks[paper], "this repository's head": looks[ours],
    }  # fmt: skip

    report = {"zsl": {"map": 4.0}, "gzsl": {"map": 2.0}}
    for names in ([ours, raw], [raw, paper, ours]):
        (axis,) = plots.metric_bars(dict.fromkeys(names, report)).axes
        assert [to_hex(bars[0].get_facecolor(), False).upper() for bars in axis.containers] == [
            looks[n][0] for n in names
        ]
    curves = {"best": [1.0, 5.0], "clip_decoder": [2.0, 3.0]}
    for texts in ({"best": ours, "clip_decoder": paper}, {"clip_decoder": paper, "best": ours}):
        (axis,) = plots.learning_curves({"1 pass": curves}, texts).axes
        assert {line.get_color() for line in axis.lines[:1]} == {looks[list(texts.values())[0]][0]}
    (point,) = (line for line in plots.map_by_passes(POINTS, {"zsl": {"ours": ours}, "gzsl": {}}).axes[0].lines[3:])
    assert (point.get_color(), point.get_marker()) == looks[ours][:2]


def test_bars_stand_at_the_mean_of_their_seeds():
    seeds = [{"zsl": {"map": value}, "gzsl": {"map": value / 2}} for value in (10.0, 20.0, 60.0)]
    (axis,) = plots.metric_bars({"one seed": seeds[0], "three": seeds, "nothing": {"zsl": {"map": None}}}).axes
    heights = [[bar.get_height() for bar in bars] for bars in axis.containers]
    assert heights[:2] == [[10, 5], [30, 15]] and np.isnan(heights[2]).all()
    (dots,) = axis.lines
    middles = [bar.get_x() + bar.get_width() / 2 for bar in axis.containers[1]]
    np.testing.assert_allclose(dots.get_xydata(), [(x, y / n) for y in (10, 20, 60) for x, n in zip(middles, (1, 2))])


def test_a_method_that_returns_is_hatched():
    report = {"zsl": {"map": 4.0}, "gzsl": {"map": 2.0}}
    names = ["CLIP-Decoder, this run", "this repository's head, 5 seeds", "raw CLIP"]
    (axis,) = plots.metric_bars(dict.fromkeys(names, report)).axes
    assert [bars[0].get_hatch() or "" for bars in axis.containers] == ["", "//", ""]


def test_a_bar_has_its_number_beside_it_and_an_unseen_label_an_asterisk():
    (axis,) = plots.score_bars(["house", "bus"], [0.004, 1.0], unseen={"house"}).axes
    assert [text.get_text() for text in axis.texts] == ["0.004", "1.000"]
    assert [tick.get_text() for tick in axis.get_yticklabels()] == ["house*", "bus"]


def test_a_forest_is_filled_where_it_is_sure():
    figure = plots.forest(DIFFERENCES, lambda found: found["mean"] == 2)
    for axis, task in zip(figure.axes, ("zsl", "gzsl")):
        lines, dots = axis.lines[0:4:2], axis.lines[1:4:2]
        for row, (found, line, dot) in enumerate(zip((d[task] for d in DIFFERENCES.values()), lines, dots)):
            assert (dot.get_xdata()[0], dot.get_ydata()[0]) == (found["mean"], row)
            np.testing.assert_array_equal(line.get_xdata(), np.array(found["interval"], dtype=float))
            assert dot.get_markerfacecolor() == ("black" if found["mean"] == 2 else "white")
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["near", "once"]


def test_a_step_starts_where_the_one_before_ends():
    steps = {"raw CLIP": {"zsl": 20.0, "gzsl": 10.0}, "+ windows": {"zsl": 60.0, "gzsl": 40.0}}
    steps |= {"the paper's head": {"zsl": 55.0, "gzsl": 45.0}}  # one may cost
    few = {name: steps[name] for name in ("raw CLIP", "the paper's head")}
    zsl, gzsl = plots.steps({"1 pass": few, "5 passes": steps}).axes
    assert [(bar.get_x(), bar.get_width()) for bar in zsl.patches] == [(0, 20), (20, 35), (0, 20), (20, 40), (60, -5)]
    assert [text.get_text() for text in gzsl.texts] == ["10.0", "+35.0 → 45.0", "10.0", "+30.0 → 40.0", "+5.0 → 45.0"]
    colours = [bar.get_facecolor() for bar in zsl.patches]
    assert colours[:2] == [colours[2], colours[4]] and len(set(colours)) == 3


def test_learning_curves_are_grey_but_for_named_ones():
    curves = {"ours": [1.0, 5.0], "other": [2.0, 3.0, 2.5]}
    (axis,) = plots.learning_curves({"1 pass": curves}, {"ours": "our head", "elsewhere": "not here"}).axes
    other, ours = axis.lines
    assert list(other.get_ydata()) == curves["other"] and list(other.get_xdata()) == [1, 2, 3]
    assert list(ours.get_ydata()) == curves["ours"] and other.get_color() == "#999999" != ours.get_color()
    assert [(text.get_text(), text.get_position()[1]) for text in axis.texts] == [("our head", 5.0)]


def test_texts_beside_curves_are_apart_and_in_view():
    curves = {"best": [10.0, 60.0], "biam": [40.0, 59.8], "mlp_patch": [50.0, 59.9], "other": [1.0, 2.0]}
    named = {"best": "this repository's head", "biam": "BiAM", "mlp_patch": "MLP on tokens"}
    (axis,) = plots.learning_curves({"26 passes": curves}, named).axes
    heights = sorted(text.get_position()[1] for text in axis.texts)
    assert np.diff(heights).min() >= 5.9 and heights[-1] < axis.get_ylim()[1]  # of the tenth of 60 that a line takes
    assert len({text.get_color() for text in axis.texts}) == 3
    assert all(text.get_fontsize() >= 8 for text in axis.texts)


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


class Few:
    """A split in memory: images of one colour with targets [M, L]."""

    name = "few"

    def __init__(self, targets):
        self.targets = torch.as_tensor(targets, dtype=torch.bool)

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, i):
        return Image.new("RGB", (40, 40), (200, 100, 50)), self.targets[i]


def test_names_stand_below_their_image_and_unseen_ones_are_marked():
    labels = LabelSpace(["cat", "a house with a very long name", *(f"thing {i}" for i in range(8))], ["$5", "tiger"])
    split = Few([[1] + 9 * [0] + [1, 0], [0, 1] + 8 * [0] + [0, 1], 12 * [1]])
    figure = plots.scene_grid(split, labels, [0, 1, 2], columns=2)
    first, second, third, empty = ([(t.get_text(), t.get_color()) for t in axis.texts] for axis in figure.axes)
    assert first == [("cat", plots.SEEN), (r"\$5*", "black")] and empty == []
    assert [text for text, _ in second] == ["a house with a very", "long name", "tiger*"]
    assert len(third) == 8 and third[-1] == ("and 6 more", "black")  # its 12 names need 13 lines
    boxes = {text.get_text(): text.get_bbox_patch() for axis in figure.axes for text in axis.texts}
    assert to_hex(boxes["tiger*"].get_facecolor()) == plots.UNSEEN.lower() and boxes["cat"] is None
    figure.canvas.draw()
    for text in (text for axis in figure.axes for text in axis.texts):
        extent = text.get_window_extent()
        assert extent.y0 > 0 and extent.x1 < figure.bbox.x1 and text.get_fontsize() >= 8


def test_a_label_without_images_stands_at_the_tick_of_zero():
    labels, targets = LabelSpace(["a", "b", "c"], ["d"]), np.zeros((30, 4))
    targets[:, 0], targets[:3, 1], targets[:12, 3] = 1, 1, 1
    (axis,) = plots.label_frequencies([Few(targets)], labels).axes
    seen, unseen, edge = axis.lines
    ticks = dict(zip((tick.get_text() for tick in axis.get_yticklabels()), axis.get_yticks()))
    assert list(seen.get_ydata()) == [30, 3, ticks["0"]] and list(unseen.get_ydata()) == [12]
    assert (seen.get_color(), unseen.get_color()) == (plots.SEEN, plots.UNSEEN)
    assert ticks["0"] < edge.get_ydata()[0] < ticks["1"] == 1 and ticks["10"] == 10 and "100" not in ticks
