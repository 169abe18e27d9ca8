"""The panel: what its controls change. Its HTML is tested in test_render.py, the whole in a browser in test_browser.py."""

import io
import re
from datetime import datetime, timezone

import numpy as np
import pytest
import torch
from PIL import Image

from clipdec.calibration import Calibration
from clipdec.labels import LabelSpace
from clipdec.metrics import zsl_report
from clipdec.notebook.panel import TOP, Panel, parse_labels

LABELS = LabelSpace([f"seen {i}" for i in range(20)], ["dog face", "<b>x</b>"])
ODDS = {name: 2 - 0.2 * i for i, name in enumerate(LABELS.names)}


class FakePredictor:
    """Calibrated logits that depend on the name alone, a map that looks at one corner, and a record of what was asked."""

    calibration = Calibration(2.0, 1.0, 0.6, 0.1)
    threshold = 0.6

    def __init__(self):
        self.asked = []

    def log_odds(self, images, labels):
        if "broken" in labels:
            raise ValueError("no vector for <broken>")
        self.asked.append((images[0].size, tuple(labels)))
        return torch.tensor([[ODDS.get(name, 0.0) for name in labels]])

    def explain(self, image, label):
        attention = torch.zeros(image.height, image.width)
        attention[0, 0] = 1
        return attention


class FakeSplit:
    """Six images of one colour; image i carries the labels "seen i" and, but for the last two, "dog face"."""

    name = "fake"
    targets = torch.zeros(6, len(LABELS.names), dtype=torch.bool)
    targets[torch.arange(6), torch.arange(6)] = True
    targets[:4, LABELS.names.index("dog face")] = True

    def __len__(self):
        return len(self.targets)

    def image(self, i):
        return Image.new("RGB", (128, 96), (200, 40 * i, 0))


RAW = torch.randn(6, len(LABELS.names), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def panel():
    return Panel(FakePredictor(), FakeSplit(), LABELS, RAW)


def shown(panel):
    return [name for _, name in panel.look.options]


def row(panel, name):
    """The numbers of a row of the table, nan for a dash."""
    cells = re.search(rf">{name}</th>(.*?)</tr>", panel.figures.value)[1]
    return [float("nan") if x == "–" else float(x.removesuffix(" %")) for x in re.findall(r">([^<>]+)</td>", cells)]


def take(panel, content, name="photo.png"):
    panel.upload.value = ({"name": name, "type": "image/png", "size": len(content), "content": memoryview(content), "last_modified": datetime.now(timezone.utc)},)


def png(width=40, height=30, colour="red"):
    file = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(file, "PNG")
    return file.getvalue()


# ---- labels -----------------------------------------------------------------------------------------------------


def test_parse_labels_drops_what_is_empty_or_repeated():
    assert parse_labels(" dog, ,cat,,dog ") == (["dog", "cat"], 2)
    assert parse_labels("") == parse_labels("  ") == ([], 0) and parse_labels(" , ,") == ([], 3)
    assert parse_labels("DOG FACE, Turkey, turkey, new", ["dog face", "turkey", "Turkey"]) == (["dog face", "Turkey", "turkey", "new"], 0)


def test_it_starts_with_the_best_labels_of_the_data_set(panel):
    assert shown(panel) == LABELS.names[:TOP] and panel.look.value == "seen 0" and panel.message.value == ""
    assert panel.look.options[0][0] == "✓ seen 0" and panel.look.options[1][0] == "seen 1"
    assert "<img" in panel.picture.value and panel.picture.value != panel.overlay.value and 'alt="test image 0"' in panel.picture.value
    assert panel.threshold.value == 0.6 and panel.seen_rate.value == panel.other_rate.value == pytest.approx(0.1)


def test_typed_labels_are_escaped_and_may_be_new(panel):
    panel.threshold.value = 0.0
    panel.asked.value = "<b>x</b>, , <script>, Dog Face"
    assert set(shown(panel)) == {"<b>x</b>", "<script>", "dog face"} and "1 empty label left out" in panel.message.value
    everything = "".join(w.value for w in (panel.bars, panel.sets, panel.figures, panel.overlay, panel.message))
    assert "&lt;script&gt;" in everything and "<script" not in everything and "<b>x" not in everything and ">new<" in panel.bars.value
    panel.asked.value = " ,, "
    assert shown(panel) == LABELS.names[:TOP] and "3 empty labels" in panel.message.value


def test_thousands_of_labels_are_counted_not_listed(panel):
    panel.threshold.value = 0.0
    panel.asked.value = ", ".join(f"thing {i}" for i in range(5000))
    assert "5000 labels asked about" in panel.message.value and len(shown(panel)) == TOP and "and 4985 more" in panel.sets.value
    assert len(panel.sets.value) < 1000


def test_unseen_only_leaves_seen_labels_out(panel):
    panel.ranking.value = "zsl"
    assert shown(panel) == ["dog face", "<b>x</b>"] and "dog face</div>" in panel.sets.value
    panel.asked.value = "seen 1"
    assert "every label asked about is seen" in panel.message.value and panel.results.layout.display == "none"
    panel.ranking.value = "gzsl"
    assert shown(panel) == ["seen 1"] and panel.results.layout.display == "" and panel.message.value == ""


def test_the_chosen_label_stays_while_it_is_shown(panel):
    panel.look.value = "seen 3"
    panel.scene.value = 1
    assert panel.look.value == "seen 3" and "bright where seen 3 looked" in panel.overlay.value
    panel.asked.value = "seen 4, dog face"
    assert panel.look.value == "seen 4"


def test_an_error_becomes_text_and_the_panel_goes_on(panel):
    panel.asked.value = "broken"
    assert "no vector for &lt;broken&gt;" in panel.message.value and 'role="alert"' in panel.message.value and panel.results.layout.display == "none"
    panel.asked.value = "dog face"
    assert shown(panel) == ["dog face"] and panel.results.layout.display == "" and panel.message.value == ""


def test_sliders_ask_the_model_nothing(panel):
    for control, value in ((panel.threshold, 0.8), (panel.temperature, 2.0), (panel.seen_rate, 0.01), (panel.ranking, "zsl"), (panel.keep, "relevant")):
        control.value = value
    assert len(panel.predictor.asked) == 1
    panel.scene.value = 2
    assert len(panel.predictor.asked) == 2


# ---- sliders ----------------------------------------------------------------------------------------------------


def by_hand(panel, threshold, temperature=1.0, seen_rate=0.1, other_rate=0.1, task="gzsl", keep="all"):
    """Precision, recall and F1 in percent over the split, one image and label at a time."""
    hits = predicted = positives = 0
    shifts = [np.log(rate / (1 - rate)) - np.log(0.1 / 0.9) for rate in (seen_rate, other_rate)]
    for logits, targets in zip((2 * RAW.double() + 1).numpy(), FakeSplit.targets):
        labels = [i for i in range(len(LABELS.names)) if task == "gzsl" or i >= 20]
        if keep == "relevant" and not targets[labels].any():
            continue
        for i in labels:
            p = 1 / (1 + np.exp(-(logits[i] + shifts[i >= 20]) / temperature))
            hits, predicted, positives = hits + (p >= threshold and targets[i]), predicted + (p >= threshold), positives + targets[i]
    values = (hits / predicted if predicted else np.nan, hits / positives, 2 * hits / (predicted + positives))
    return [round(100 * float(x), 1) for x in values]


@pytest.mark.parametrize("keep", ["all", "relevant"])
@pytest.mark.parametrize("task", ["zsl", "gzsl"])
def test_figures_of_the_split_follow_every_slider(panel, task, keep):
    panel.ranking.value, panel.keep.value, kept = task, keep, 4 if (task, keep) == ("zsl", "relevant") else 6
    state = {"threshold": 0.6}
    for name, value in (("threshold", 0.85), ("temperature", 2.0), ("seen_rate", 0.02), ("other_rate", 0.3), ("threshold", 0.0), ("threshold", 1.0)):
        state[name] = value
        getattr(panel, name).value = value
        assert row(panel, f"{kept} test images") == pytest.approx(by_hand(panel, **state, task=task, keep=keep), abs=0.11, nan_ok=True), state


def test_figures_of_the_best_three_are_those_of_the_report(panel):
    for task in ("zsl", "gzsl"):
        for keep in ("all", "relevant"):
            panel.ranking.value, panel.keep.value = task, keep
            report = zsl_report(RAW, FakeSplit.targets, LABELS, keep)[task]
            assert f"F1@3 {report['f1@3']:.1f} %; mAP {report['map']:.1f} %" in panel.figures.value
    panel.ranking.value, panel.keep.value, panel.seen_rate.value = "gzsl", "all", 0.01
    moved = 2 * RAW + (np.log(0.01 / 0.99) - np.log(0.1 / 0.9)) * (torch.arange(22) < 20)
    assert f"F1@3 {zsl_report(moved, FakeSplit.targets, LABELS)['gzsl']['f1@3']:.1f} %" in panel.figures.value


def test_figures_of_the_image(panel):
    panel.asked.value = "seen 0, seen 1, dog face, something new"  # probabilities 0.88, 0.86, 0.12 (true, as seen 0), 0.5
    panel.threshold.value = 0.87
    assert row(panel, "this image") == [100.0, 50.0, 66.7] and "predicted</b>: seen 0<" in panel.sets.value
    panel.threshold.value = 0.0
    assert row(panel, "this image") == pytest.approx([66.7, 100.0, 80.0])  # what the data set does not annotate is not judged
    panel.threshold.value = 1.0
    assert row(panel, "this image") == pytest.approx([np.nan, 0.0, 0.0], nan_ok=True)


def test_base_rates_move_labels_past_each_other(panel):
    panel.asked.value = "seen 0, dog face"
    panel.other_rate.value = 0.3
    panel.seen_rate.value = 0.001
    assert shown(panel) == ["dog face", "seen 0"]
    moved = ODDS["dog face"] + np.log(0.3 / 0.7) - np.log(0.1 / 0.9)
    assert f"{1 / (1 + np.exp(-moved)):.3f}" in panel.bars.value


# ---- photos -----------------------------------------------------------------------------------------------------


def test_a_photo_of_one_s_own(panel):
    take(panel, png())
    assert panel.source.value == "photo" and "photo.png, 40 × 30 px" in panel.message.value and panel.predictor.asked[-1][0] == (40, 30)
    assert "true" not in panel.sets.value and "this image" not in panel.figures.value and 'alt="your photo"' in panel.picture.value
    take(panel, png(60, 60, "blue"))  # another one of the same name
    assert "60 × 60 px" in panel.message.value and panel.predictor.asked[-1][0] == (60, 60)
    panel.source.value = "test"
    assert "this image" in panel.figures.value and panel.message.value == ""


def test_a_large_photo_is_scaled_down(panel):
    take(panel, png(8660, 5774))
    assert "photo.png, 1024 × 683 px" in panel.message.value and panel.predictor.asked[-1][0] == (1024, 683)


@pytest.mark.parametrize("content, reason", [(b"", "photo.png is empty (0 bytes)"), (b"no image", "photo.png cannot be read as an image"), (png()[:60], "photo.png cannot be read")], ids=["empty", "text", "truncated"])
def test_a_photo_that_cannot_be_read(panel, content, reason):
    before = panel.bars.value
    take(panel, content)
    assert reason in panel.message.value and 'role="alert"' in panel.message.value
    assert panel.source.value == "test" and panel.bars.value == before  # of the image before
    take(panel, png())
    assert panel.source.value == "photo" and "alert" not in panel.message.value


def test_a_photo_that_is_not_there_yet(panel):
    panel.source.value = "photo"
    assert "there is no photo yet" in panel.message.value and panel.results.layout.display == "none"
    panel.source.value = "test"
    assert panel.results.layout.display == "" and panel.message.value == ""


# ---- the worst labels -------------------------------------------------------------------------------------------


def test_the_worst_labels_come_first(panel, monkeypatch):
    options = [text for text, _ in panel.worst.options]  # the data has at most four images of a label: all labels that have four
    assert len(options) == 1 and options[0].startswith("dog face: AP ") and options[0].endswith("4 images")
    monkeypatch.setattr("clipdec.widgets.FEW", 1)
    panel.keep.value = "relevant"
    precisions = [float(re.search(r"AP ([\d.]+) %", text)[1]) for text, _ in panel.worst.options]
    assert len(precisions) == 7 and precisions == sorted(precisions)
    assert "1 image" in panel.worst.options[0][0]


def test_an_image_of_a_worst_label_is_opened(panel):
    column = LABELS.names.index("dog face")
    order = RAW[:, column].argsort(descending=True).tolist()
    numbers = [value for _, value in panel.example.options]
    assert numbers[:4] == order[:4] and set(numbers[4:]) == {i for i in order[4:] if i < 4}
    assert panel.thumbnails.value.count("<img") == len(numbers) and "has it not, rank" in panel.thumbnails.value
    panel.asked.value = "seen 1"
    panel.example.value = numbers[2]
    assert panel.scene.value == numbers[2] and panel.asked.value == "" and panel.look.value == "dog face"
    assert shown(panel) == [*LABELS.names[:TOP], "dog face"] and "21." in panel.bars.value
    panel.scene.value = (numbers[2] + 1) % 6
    assert shown(panel) == LABELS.names[:TOP]


def test_labels_that_never_occur():
    split = FakeSplit()
    split.targets = torch.zeros_like(FakeSplit.targets)
    assert "no label of this ranking occurs" in Panel(FakePredictor(), split, LABELS, RAW).message.value


def test_a_data_set_without_unseen_labels():
    panel = Panel(FakePredictor(), FakeSplit(), LabelSpace(LABELS.names, []), RAW)
    panel.asked.value = "new"
    panel.ranking.value = "zsl"
    assert "no unseen labels" in panel.message.value
    panel.ranking.value = "gzsl"
    assert panel.message.value == "" and shown(panel) == ["new"]


def test_an_empty_split_is_refused():
    empty = FakeSplit()
    empty.targets = empty.targets[:0]
    with pytest.raises(ValueError, match="holds no image"):
        Panel(FakePredictor(), empty, LABELS, RAW[:0])
