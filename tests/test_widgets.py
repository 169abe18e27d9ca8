"""The interactive panel: what it renders, and what its controls change."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from clipdec.labels import LabelSpace
from clipdec.plots import SEEN, UNSEEN
from clipdec.widgets import TOP, panel, parse_labels, render_attention, render_bars, render_image, render_summary, set_figures

LABELS = LabelSpace([f"seen {i}" for i in range(20)], ["dog face", "<b>x</b>"])


class FakePredictor:
    """Scores that depend on the name alone, a map that looks at one corner, and a record of what was asked."""

    names = LABELS.names

    def __init__(self):
        self.asked = []

    def explain(self, image, labels):
        if "broken" in labels:
            raise ValueError("no vector for <broken>")
        self.asked.append(tuple(labels))
        scores = {name: 0.9 - 0.04 * i for i, name in enumerate(LABELS.names)}
        maps = torch.zeros(len(labels), 8, 8)
        maps[:, 0, 0] = 1
        return torch.tensor([scores.get(name, 0.5) for name in labels]), maps


class FakeSplit:
    """Three scenes of one colour; scene i carries the labels "seen i" and "dog face"."""

    name = "fake"
    targets = torch.zeros(3, len(LABELS.names), dtype=torch.bool)
    targets[torch.arange(3), torch.arange(3)] = True
    targets[:, LABELS.names.index("dog face")] = True

    def __len__(self):
        return len(self.targets)

    def image(self, i):
        return Image.new("RGB", (128, 96), (200, 60 * i, 0))


@pytest.fixture
def parts():
    predictor = FakePredictor()
    scene, asked, threshold, ranking, look, view = panel(predictor, FakeSplit(), LABELS).children
    bars, picture, overlay = view.children
    return SimpleNamespace(**{k: v for k, v in locals().items() if k != "view"})


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def test_parse_labels_drops_what_is_empty_or_repeated():
    assert parse_labels(" dog, ,cat,,dog ") == ["dog", "cat"]
    assert parse_labels(" , ,") == parse_labels("") == []
    assert parse_labels("DOG FACE, Turkey, turkey, new", ["dog face", "turkey", "Turkey"]) == ["dog face", "Turkey", "turkey", "new"]


def test_set_figures_by_hand():
    assert set_figures({"a", "b", "c"}, {"a", "b", "d", "e"}) == pytest.approx((2 / 3, 1 / 2, 4 / 7))
    assert set_figures({"a"}, {"b"}) == (0, 0, 0)
    assert np.isnan(set_figures(set(), {"a"})[0]) and set_figures(set(), {"a"})[1:] == (0, 0)
    assert np.isnan(set_figures(set(), set())).all()


def test_bars_escape_names_and_mark_them():
    bars = render_bars(["cat", "<b>x</b>"], [0.25, 0.5], ["seen", "unseen"], {"<b>x</b>"}, 0.4)
    assert "<b>x</b>" not in bars and "<b>&#10003; &lt;b&gt;x&lt;/b&gt;</b>" in bars and "&#10003; cat" not in bars
    assert bars.index(SEEN) < bars.index(UNSEEN) and ">seen<" in bars and ">unseen<" in bars
    assert "width:25.0%" in bars and bars.count("left:40.0%") == 2


def test_summary_counts_only_annotated_labels():
    summary = render_summary({"a", "a red fruit"}, {"a", "<i>"}, {"a", "<i>"})
    assert "precision 1.00, recall 0.50, F1 0.67" in summary and "predicted at this threshold: 2, of which 1" in summary
    assert "&lt;i&gt;" in summary and "<i>" not in summary
    assert "precision undefined" in render_summary(set(), {"a"}, {"a"})


def test_attention_darkens_what_was_not_looked_at():
    attention = np.zeros((8, 8))
    attention[0, 0] = 0.7
    image = Image.new("RGB", (128, 96), (200, 100, 50))
    plain, dark = pixels(render_image(image)), pixels(render_attention(image, attention))
    assert plain.shape == dark.shape == (192, 256, 3)
    assert (dark[0, 0] >= plain[0, 0] - 2).all() and dark[-1, -1].sum() < 0.2 * plain[-1, -1].sum()
    assert (pixels(render_attention(image, np.zeros((8, 8)))) == plain).all()


def test_panel_starts_with_the_best_labels_of_the_data_set(parts):
    assert list(parts.look.options) == LABELS.names[:TOP] and parts.look.value == "seen 0"
    assert parts.picture.value[:4] == parts.overlay.value[:4] == b"\x89PNG" and parts.picture.value != parts.overlay.value
    assert all(control.description for control in (parts.scene, parts.asked, parts.threshold, parts.ranking, parts.look))


def test_scores_are_computed_once_for_a_scene_and_its_labels(parts):
    before = parts.bars.value
    parts.threshold.value = 0.8
    parts.ranking.value = "zsl"
    parts.ranking.value = "gzsl"
    assert parts.bars.value != before and len(parts.predictor.asked) == 1
    parts.scene.value = 2
    assert len(parts.predictor.asked) == 2 and "true: dog face, seen 2" in parts.bars.value


def test_threshold_changes_the_predicted_set(parts):
    parts.asked.value = "seen 0, seen 1, dog face"
    parts.threshold.value = 0.88  # above it: seen 0, which is true; dog face is missed
    assert "precision 1.00, recall 0.50, F1 0.67" in parts.bars.value
    parts.threshold.value = 0.0
    assert "precision 0.67, recall 1.00, F1 0.80" in parts.bars.value


def test_unseen_only_leaves_seen_labels_out(parts):
    parts.ranking.value = "zsl"
    assert parts.look.options == ("dog face", "<b>x</b>") and "true: dog face<br>" in parts.bars.value
    parts.asked.value = "seen 1"
    assert "every label asked about is seen" in parts.bars.value
    parts.ranking.value = "gzsl"
    assert parts.look.options == ("seen 1",) and parts.picture.layout.display != "none"


def test_typed_labels_are_escaped_and_may_be_new(parts):
    parts.asked.value = "<b>x</b>, , <script>, Dog Face"
    assert set(parts.look.options) == {"<b>x</b>", "<script>", "dog face"}
    assert "&lt;b&gt;x&lt;/b&gt;" in parts.bars.value and "<b>x" not in parts.bars.value and "<script" not in parts.bars.value
    assert ">new<" in parts.bars.value
    parts.asked.value = " ,, "
    assert list(parts.look.options) == LABELS.names[:TOP]


def test_the_chosen_label_stays_while_it_is_shown(parts):
    parts.look.value = "seen 3"
    parts.scene.value = 1
    assert parts.look.value == "seen 3"
    parts.asked.value = "seen 4, dog face"
    assert parts.look.value == "seen 4"


def test_an_error_becomes_text_and_the_panel_goes_on(parts):
    parts.asked.value = "broken"
    assert "no vector for &lt;broken&gt;" in parts.bars.value and parts.overlay.layout.display == "none"
    parts.asked.value = "dog face"
    assert "dog face" in parts.bars.value and parts.overlay.layout.display != "none"


def test_an_empty_split_is_refused():
    empty = FakeSplit()
    empty.targets = empty.targets[:0]
    with pytest.raises(ValueError, match="holds no scene"):
        panel(FakePredictor(), empty, LABELS)
