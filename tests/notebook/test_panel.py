"""The panel: what its controls change. Its HTML is tested in test_render.py, the whole in test_browser.py."""

import base64
import csv
import io
import re
from dataclasses import dataclass
from datetime import datetime, timezone
from threading import Event, Thread, current_thread

import numpy as np
import pytest
import torch
from helpers import wait_until
from PIL import Image

from clipdec.calibration import Calibration
from clipdec.labels import LabelSpace
from clipdec.metrics import zsl_report
from clipdec.notebook.answers import parse_labels
from clipdec.notebook.panel import Panel
from clipdec.notebook.views import TOP

LABELS = LabelSpace([f"seen {i}" for i in range(20)], ["dog face", "<b>x</b>"])
ODDS = {name: 2 - 0.2 * i for i, name in enumerate(LABELS.names)}
RAW = torch.randn(6, len(LABELS.names), generator=torch.Generator().manual_seed(0))
TARGETS = torch.eye(6, len(LABELS.names), dtype=torch.bool)
TARGETS[:4, 20] = True
shown = lambda panel: [name for _, name in panel.look.options]


class FakePredictor:
    """Calibrated logits that depend on the name alone, a map that looks at one corner, a record of what was asked."""

    calibration, threshold = Calibration(2.0, 1.0, 0.6, 0.1), 0.6

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


@dataclass
class FakeSplit:
    """Six images of one colour; image i carries the labels "seen i" and, but for the last two, "dog face"."""

    targets: torch.Tensor = TARGETS
    name: str = "fake"
    known: torch.Tensor | None = None

    def __len__(self):
        return len(self.targets)

    def image(self, i):
        return Image.new("RGB", (128, 96), (200, 40 * i, 0))


@pytest.fixture
def panel():
    return Panel(FakePredictor(), FakeSplit(), LABELS, RAW)


def put(panel, **values):
    for name, value in values.items():
        getattr(panel, name).value = value


def row(panel, name):
    """The numbers of a row of the table, nan for a dash."""
    cells = re.search(rf">{name}</th>(.*?)</tr>", panel.figures.value)[1]
    return [float(x.removesuffix(" %").replace("–", "nan")) for x in re.findall(r">([^<>]+)</td>", cells)]


def upload(name, content):
    file = {"name": name, "type": "image/png", "size": len(content), "content": memoryview(content)}
    return file | {"last_modified": datetime.now(timezone.utc)}


def take(panel, content):
    panel.upload.value = [upload("photo.png", content)]


def png(width=40, height=30, colour="red"):
    file = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(file, "PNG")
    return file.getvalue()


def test_parse_labels_drops_what_is_empty_or_repeated():
    assert parse_labels(" dog, ,cat,,dog ") == (["dog", "cat"], 2)
    assert parse_labels("") == parse_labels("  ") == ([], 0) and parse_labels(" , ,") == ([], 3)
    assert parse_labels("DOG\u00a0 FACE, dog face, New  one", ["dog face"]) == (["dog face", "New one"], 0)


def test_it_starts_with_the_best_labels_of_the_data_set(panel):
    assert shown(panel) == LABELS.names[:TOP] and panel.look.value == "seen 0" and panel.message.value == ""
    assert [text for text, _ in panel.look.options[:2]] == ["✓ seen 0", "seen 1"]
    assert "<img" in panel.picture.value != panel.overlay.value and 'alt="test image 0"' in panel.picture.value
    assert panel.threshold.value == 0.6 and panel.seen_rate.value == panel.other_rate.value == pytest.approx(0.1)


def test_typed_labels_are_escaped_and_may_be_new(panel):
    put(panel, threshold=0.0, asked="<b>x</b>, , <script>, Dog Face")
    assert set(shown(panel)) == {"<b>x</b>", "<script>", "dog face"} and "1 empty label left out" in panel.message.value
    html = "".join(w.value for w in (panel.bars, panel.sets, panel.figures, panel.overlay, panel.message))
    assert "&lt;script&gt;" in html and "<script" not in html and "<b>x" not in html and ">new<" in panel.bars.value
    put(panel, asked=" ,, ")
    assert shown(panel) == LABELS.names[:TOP] and "3 empty labels" in panel.message.value


def test_thousands_of_labels_are_counted_not_listed(panel):
    put(panel, threshold=0.0, asked=", ".join(f"thing {i}" for i in range(5000)))
    assert "5000 labels asked about" in panel.message.value and len(shown(panel)) == TOP
    assert "and 4985 more" in panel.sets.value and len(panel.sets.value) < 1000


def test_unseen_only_leaves_seen_labels_out(panel):
    put(panel, ranking="zsl")
    assert shown(panel) == ["dog face", "<b>x</b>"] and "dog face</div>" in panel.sets.value


def test_the_chosen_label_stays_while_it_is_shown(panel):
    put(panel, look="seen 3", scene=1)
    assert panel.look.value == "seen 3" and "bright where seen 3 looked" in panel.overlay.value
    put(panel, asked="seen 4, dog face")
    assert panel.look.value == "seen 4"


@pytest.mark.parametrize("wrong, text, right, labels", [
    ({"asked": "broken"}, "no vector for &lt;broken&gt;", {"asked": "dog face"}, ["dog face"]),
    ({"ranking": "zsl", "asked": "seen 1"}, "every label asked about is seen", {"ranking": "gzsl"}, ["seen 1"]),
    ({"source": "photo"}, "there is no photo yet", {"source": "test"}, LABELS.names[:TOP]),
])  # fmt: skip
def test_an_error_becomes_text_and_the_panel_goes_on(panel, wrong, text, right, labels):
    put(panel, **wrong)
    assert text in panel.message.value and 'role="alert"' in panel.message.value
    assert panel.results.layout.display == "none"
    put(panel, **right)
    assert shown(panel) == labels and panel.results.layout.display == panel.message.value == ""


def test_sliders_ask_the_model_nothing(panel):
    put(panel, threshold=0.8, temperature=2.0, seen_rate=0.01, ranking="zsl", keep="relevant")
    assert len(panel.predictor.asked) == 1
    put(panel, scene=2)
    assert len(panel.predictor.asked) == 2
    put(panel, look=panel.look.options[1][1], carrying="seen 2", beside="")
    assert len(panel.predictor.asked) == 2


def by_hand(threshold, temperature=1.0, seen_rate=0.1, other_rate=0.1, task="gzsl", keep="all"):
    """Precision, recall and F1 in percent over the split, one image and label at a time."""
    hits = predicted = positives = 0
    shifts = [np.log(rate / (1 - rate)) - np.log(0.1 / 0.9) for rate in (seen_rate, other_rate)]
    for logits, targets in zip((2 * RAW.double() + 1).numpy(), TARGETS):
        labels = range(20 if task == "zsl" else 0, 22)
        if keep == "relevant" and not targets[labels].any():
            continue
        for i in labels:
            there = 1 / (1 + np.exp(-(logits[i] + shifts[i >= 20]) / temperature)) >= threshold
            hits, predicted, positives = hits + (there and targets[i]), predicted + there, positives + targets[i]
    values = (hits / predicted if predicted else np.nan, hits / positives, 2 * hits / (predicted + positives))
    return [round(100 * float(x), 1) for x in values]


@pytest.mark.parametrize("task", ["zsl", "gzsl"])
@pytest.mark.parametrize("keep", ["all", "relevant"])
def test_figures_of_the_split_follow_every_slider(panel, task, keep):
    images = 4 if (task, keep) == ("zsl", "relevant") else 6
    put(panel, ranking=task, keep=keep)
    state, moves = {}, [{"threshold": 0.85}, {"temperature": 2.0}, {"seen_rate": 0.02}, {"other_rate": 0.3}]
    for move in [*moves, {"threshold": 0.0}, {"threshold": 1.0}]:
        state |= move
        put(panel, **move)
        expected = pytest.approx(by_hand(**state, task=task, keep=keep), abs=0.11, nan_ok=True)
        assert row(panel, f"{images} test images") == expected, state


def test_figures_of_the_best_three_are_those_of_the_report(panel):
    for task, keep in [("zsl", "all"), ("zsl", "relevant"), ("gzsl", "relevant"), ("gzsl", "all")]:
        put(panel, ranking=task, keep=keep)
        report = zsl_report(RAW, TARGETS, LABELS, keep)[task]
        assert f"F1@3 {report['f1@3']:.1f} %; mAP {report['map']:.1f} %" in panel.figures.value
    put(panel, seen_rate=0.01)
    moved = 2 * RAW + (np.log(0.01 / 0.99) - np.log(0.1 / 0.9)) * (torch.arange(22) < 20)
    assert f"F1@3 {zsl_report(moved, TARGETS, LABELS)['gzsl']['f1@3']:.1f} %" in panel.figures.value


def test_figures_of_the_image(panel):
    put(panel, asked="seen 0, seen 1, dog face, new", threshold=0.87)  # at 0.88, 0.86, 0.12 (true, as seen 0), 0.5
    assert row(panel, "this image") == [100.0, 50.0, 66.7] and "predicted</b>: seen 0<" in panel.sets.value
    put(panel, threshold=0.0)  # what the data set does not annotate is not judged
    assert row(panel, "this image") == pytest.approx([66.7, 100.0, 80.0])
    put(panel, threshold=1.0)
    assert row(panel, "this image") == pytest.approx([np.nan, 0.0, 0.0], nan_ok=True)


def test_base_rates_move_labels_past_each_other(panel):
    put(panel, asked="seen 0, dog face", other_rate=0.3, seen_rate=0.001)
    assert shown(panel) == ["dog face", "seen 0"]
    moved = ODDS["dog face"] + np.log(0.3 / 0.7) - np.log(0.1 / 0.9)
    assert f"{1 / (1 + np.exp(-moved)):.3f}" in panel.bars.value


def test_a_photo_of_one_s_own(panel):
    take(panel, png())
    assert "photo.png, 40 × 30 px" in panel.message.value and panel.predictor.asked[-1][0] == (40, 30)
    assert panel.source.value == "photo" and 'alt="your photo"' in panel.picture.value
    assert "true" not in panel.sets.value and "this image" not in panel.figures.value
    for file, width, height in ((png(60, 60, "blue"), 60, 60), (png(8660, 5774), 1152, 768)):  # of the same name
        take(panel, file)
        assert f"photo.png, {width} × {height} px" in panel.message.value
        assert panel.predictor.asked[-1][0] == (width, height)
    put(panel, source="test")
    assert "this image" in panel.figures.value and panel.message.value == ""


def test_an_image_that_is_chosen_while_a_photo_is_asked_about_stays(panel):
    """As where a kernel takes the messages of an upload in one thread and those of a menu in another."""
    take(panel, png())
    read, chosen, order, answer, look = Event(), Event(), [], panel.predictor.log_odds, panel.predictor.explain

    def slow_answer(images, labels):
        order.append(current_thread())
        read.set()
        wait_until(chosen.is_set)
        return answer(images, labels)

    def noted_look(image, label):
        order.append(current_thread())
        return look(image, label)

    panel.predictor.log_odds, panel.predictor.explain = slow_answer, noted_look
    upload = Thread(target=take, args=(panel, png(60, 60)))
    menu = Thread(target=put, args=(panel,), kwargs={"source": "test"})
    upload.start()
    wait_until(read.is_set)
    menu.start()
    wait_until(lambda: panel.source.value == "test")
    chosen.set()
    upload.join()
    menu.join()
    assert order == [upload, upload, menu, menu]
    assert panel.source.value == "test" and 'alt="test image 0"' in panel.picture.value and panel.message.value == ""


@pytest.mark.parametrize("content", [b"", b"no image", png()[:60]], ids=["empty", "text", "truncated"])
def test_a_photo_that_cannot_be_read(panel, content):
    reason = "cannot be read as an image" if content else "is empty (0 bytes)"
    before = panel.bars.value  # of the image before
    take(panel, content)
    assert f"photo.png {reason}" in panel.message.value and 'role="alert"' in panel.message.value
    assert panel.source.value == "test" and panel.bars.value == before
    take(panel, png())
    assert panel.source.value == "photo" and "alert" not in panel.message.value


def test_the_worst_labels_come_first(panel, monkeypatch):
    [(text, _)] = panel.worst.options  # the data has at most four images of a label: all labels that have four
    assert text.startswith("dog face: AP ") and text.endswith("4 images")
    monkeypatch.setattr("clipdec.notebook.answers.FEW", 1)
    put(panel, keep="relevant")
    precisions = [float(re.search(r"AP ([\d.]+) %", text)[1]) for text, _ in panel.worst.options]
    assert len(precisions) == 7 and precisions == sorted(precisions) and "1 image" in panel.worst.options[0][0]


def test_another_worst_label_opens_no_image_by_itself(panel, monkeypatch):
    monkeypatch.setattr("clipdec.notebook.answers.FEW", 1)
    put(panel, keep="relevant")
    put(panel, example=panel.example.options[0][1])
    put(panel, asked="seen 1", worst=panel.worst.options[1][1])
    assert panel.example.value is None and panel.asked.value == "seen 1"


def test_an_image_of_a_worst_label_is_opened(panel):
    order = RAW[:, LABELS.names.index("dog face")].argsort(descending=True).tolist()
    numbers = [value for _, value in panel.example.options]
    assert numbers[:4] == order[:4] and set(numbers[4:]) == {i for i in order[4:] if i < 4}
    assert panel.thumbnails.value.count("<img") == len(numbers) and "has it not, rank" in panel.thumbnails.value
    put(panel, asked="seen 1", example=numbers[2])
    assert (panel.scene.value, panel.asked.value, panel.look.value) == (numbers[2], "", "dog face")
    assert shown(panel) == [*LABELS.names[:TOP], "dog face"] and "21." in panel.bars.value
    put(panel, scene=(numbers[2] + 1) % 6)
    assert shown(panel) == LABELS.names[:TOP]


def test_a_data_set_without_positives_or_without_unseen_labels():
    panel = Panel(FakePredictor(), FakeSplit(torch.zeros_like(TARGETS)), LABELS, RAW)
    assert panel.message.value == "" and shown(panel) == LABELS.names[:TOP]
    assert "no label of this ranking is in a test image" in panel.thumbnails.value and panel.example.options == ()
    assert "F1@3 – %; mAP – %" in panel.figures.value and row(panel, "6 test images")[0] == 0
    put(panel, keep="relevant")
    assert row(panel, "0 test images") == pytest.approx([np.nan] * 3, nan_ok=True) and panel.message.value == ""
    panel = Panel(FakePredictor(), FakeSplit(), LabelSpace(LABELS.names, []), RAW)
    put(panel, asked="new", ranking="zsl")
    assert "no unseen labels" in panel.message.value
    put(panel, ranking="gzsl")
    assert panel.message.value == "" and shown(panel) == ["new"]


@pytest.mark.parametrize("base_rate, shown_rate, words", [
    (0.5, 0.501, ""), (0.1, 0.1, ""), (2e-5, 1.995e-5, ""), (0.99, 0.977, "99.0% of the images: base rates end at"),
])  # fmt: skip
def test_sliders_reach_the_base_rate_of_val(monkeypatch, base_rate, shown_rate, words):
    monkeypatch.setattr(FakePredictor, "calibration", Calibration(2.0, 1.0, 0.6, base_rate, "not calibrated"))
    panel = Panel(FakePredictor(), FakeSplit(), LABELS, RAW)
    assert panel.seen_rate.value == panel.other_rate.value == pytest.approx(shown_rate, rel=1e-3)
    html = "".join(str(widget.value) for widget in panel.controls.children[1].children)
    assert "not calibrated" in html and words in html and ("base rates end" in html) == bool(words)
    assert f">{1 / (1 + np.exp(-2)):.3f}<" in panel.bars.value  # as the Predictor says of its first label


def test_an_empty_split_is_refused():
    with pytest.raises(ValueError, match="holds no image"):
        Panel(FakePredictor(), FakeSplit(TARGETS[:0]), LABELS, RAW[:0])

@dataclass
class OtherPredictor(FakePredictor):
    """A second model: the labels in the opposite order, a corner of its own, another threshold."""

    threshold: float = 0.4

    def __post_init__(self):
        self.asked, self.calibration = [], Calibration(1.0, 0.5, 0.4, 0.1)

    def log_odds(self, images, labels):
        return -super().log_odds(images, labels)

    def explain(self, image, label):
        return super().explain(image, label).flip(0, 1)


@pytest.fixture
def two():
    """A panel with two models; what was said while the second one was opened."""
    said = []

    def other(say):
        say("the other looks at 6 images")
        said.append(panel.message.value)
        return OtherPredictor(), -RAW

    panel = Panel(FakePredictor(), FakeSplit(), LABELS, RAW, beside={"other <b>": other})
    assert not said and panel.second.layout.display == panel.second_threshold.layout.display == "none"
    put(panel, beside="other <b>")
    panel.said = said
    return panel


def figures_of(answer):
    """The rows of an answer's table, [[precision, recall, F1]]."""
    rows = re.findall(r"<tr><th scope=.row.*?</tr>", answer.figures.value)
    return [[float(x.removesuffix(" %")) for x in re.findall(r">([^<>]+)</td>", cells)] for cells in rows]


def micro(predicted, targets):
    """Precision, recall and F1 in percent, of sets of labels [(image, label)]."""
    hits = len(predicted & targets)
    return [100 * hits / len(predicted), 100 * hits / len(targets), 200 * hits / (len(predicted) + len(targets))]


def test_two_models_stand_side_by_side(two):
    assert len(two.said) == 1 and "the other looks at 6 images" in two.said[0] and two.message.value == ""
    assert two.second.layout.display == two.second_threshold.layout.display == ""
    assert [name for _, name in two.look.options] == LABELS.names[:8]
    assert [name for _, name in two.second.look.options] == [*LABELS.names[:-9:-1], "seen 0"]  # the chosen one, 22nd
    assert "22." in two.second.bars.value and two.second.look.value == two.look.value == "seen 0"
    assert "1 · the run" in two.first.heading.value and "2 · other &lt;b&gt;" in two.second.heading.value
    put(two, beside="")
    assert two.second.layout.display == "none" and shown(two) == LABELS.names[:TOP]
    put(two, beside="other <b>")
    assert len(two.said) == 1  # it is opened once


def test_a_label_that_is_chosen_in_one_model_is_chosen_in_both(two):
    two.second.look.value = "dog face"
    assert two.look.value == "dog face" and shown(two) == [*LABELS.names[:8], "dog face"]
    pixels = []
    for answer in (two.first, two.second):
        assert "bright where dog face looked" in answer.overlay.value
        data = re.search(r"base64,([^\"]+)", answer.overlay.value)[1]
        pixels.append(np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("L"), dtype=int))
    assert pixels[0][0, 0] > pixels[0][-1, -1] and pixels[1][0, 0] < pixels[1][-1, -1]
    put(two, look="seen 3")
    assert two.second.look.value == "seen 3" and shown(two) == LABELS.names[:8]
    assert [name for _, name in two.second.look.options] == [*LABELS.names[:-9:-1], "seen 3"]


def test_each_model_has_its_own_threshold_and_figures(two):
    true = {(i, name) for i, row in enumerate(TARGETS.tolist()) for name, there in zip(LABELS.names, row) if there}
    ours, theirs = 2 * RAW + 1, -RAW + 0.5  # as the two are calibrated
    for first, second in [(0.6, 0.4), (0.8, 0.5), (0.6, 0.7)]:
        put(two, threshold=first, second_threshold=second)
        for answer, logits, sign, limit in ((two.first, ours, 1, first), (two.second, theirs, -1, second)):
            probabilities = 1 / (1 + np.exp(-logits.double().numpy()))
            predicted = {(i, LABELS.names[j]) for i, j in zip(*np.nonzero(probabilities >= limit))}
            image = {(0, name) for name, x in ODDS.items() if 1 / (1 + np.exp(-sign * x)) >= limit}
            expected = micro(image, {pair for pair in true if pair[0] == 0}), micro(predicted, true)
            assert figures_of(answer) == [pytest.approx(row, abs=0.051) for row in expected]


def test_a_model_that_cannot_be_opened_is_said_and_the_first_stays(panel):
    def broken(say):
        raise ValueError("no such <run>")

    panel = Panel(FakePredictor(), FakeSplit(), LABELS, RAW, beside={"broken": broken})
    put(panel, beside="broken")
    assert "no such &lt;run&gt;" in panel.message.value and panel.beside.value == ""
    assert panel.second.layout.display == "none" and shown(panel) == LABELS.names[:TOP]
    put(panel, threshold=0.9)
    assert "1 · " not in panel.first.heading.value and panel.results.layout.display == ""


def test_the_next_image_that_carries_a_label(panel):
    found = []
    put(panel, carrying="Dog  Face")
    for _ in range(4):
        found.append((panel.scene.value, panel.look.value, panel.message.value))
        panel.next.click()
    assert [number for number, *_ in found] == [1, 2, 3, 0] and {label for _, label, _ in found} == {"dog face"}
    assert "image 2 of 4 that carry dog face" in found[0][2]
    put(panel, source="photo", carrying="seen 4")
    assert panel.source.value == "test" and panel.scene.value == 4
    for name, words in (("nothing", "nothing is no label"), ("seen 9", "no test image carries seen 9")):
        put(panel, carrying=name)
        assert words in panel.message.value and panel.scene.value == 4


def test_labels_asked_about_a_photo_set_the_base_rate(panel):
    """By 10/6 labels that a test image carries on average."""
    put(panel, asked="seen 0, seen 1")
    assert panel.seen_rate.value == pytest.approx(0.1) and panel.message.value == ""  # as on val
    take(panel, png())
    rate = lambda count: 10 ** round(np.log10(min(10**-0.5, 10 / 6 / count)), 2)
    for count in (2, 7, 100):
        put(panel, asked=", ".join(f"thing {i}" for i in range(count)))
        assert panel.seen_rate.value == panel.other_rate.value == pytest.approx(rate(count))
        words = f"base rates set to {rate(count):.1%}, as if a photo carried 1.7 of the labels asked about ({count})"
        assert words in panel.message.value and ("the sliders end there" in panel.message.value) == (count == 2)
    moved = np.log(rate(100) / (1 - rate(100))) - np.log(0.1 / 0.9)  # each has the logit 0 at 0.1
    assert f">{1 / (1 + np.exp(-moved)):.3f}<" in panel.bars.value
    put(panel, other_rate=0.2, scene=3)
    assert panel.other_rate.value == 0.2  # a hand's choice stays
    put(panel, asked="")
    assert panel.seen_rate.value == panel.other_rate.value == pytest.approx(0.1)
    assert "base rate" not in panel.message.value


def test_several_photos(panel):
    files = [("a.png", png(10, 20)), ("bad.png", b"no image"), ("b.png", png(30, 20, "blue"))]
    panel.upload.value = [upload(name, content) for name, content in files]
    assert "bad.png cannot be read" in panel.message.value and panel.photo.options == ("a.png", "b.png")
    assert panel.photo.value == "a.png" and panel.predictor.asked[-1][0] == (10, 20)
    put(panel, photo="b.png")
    assert panel.predictor.asked[-1][0] == (30, 20) and "b.png, 30 × 20 px" in panel.message.value
    take(panel, png())
    assert panel.photo.options == ("a.png", "b.png", "photo.png") and panel.photo.value == "photo.png"
    displays = {name: getattr(panel, name).layout.display for name in ("photo", "scene")}
    assert displays == {"photo": "", "scene": "none"}


def table(panel):
    """The exported table, as dicts."""
    link = re.search(r'href="data:text/csv;charset=utf-8;base64,([^"]+)" download="([^"]+)"', panel.export.value)
    return link[2], list(csv.DictReader(io.StringIO(base64.b64decode(link[1]).decode())))


def test_the_table_holds_what_is_shown(two):
    put(two, asked='seen 0, dog face, "a, b", =1+1', scene=2)
    name, rows = table(two)
    assert name == "test_image_2.csv" and len(rows) == 2 * 5
    assert [row["label"] for row in rows[:5]] == [name for _, name in two.look.options]
    by_label = {(row["model"], row["label"]): row for row in rows}
    for model, sign, limit in (("the run", 1, 0.6), ("other <b>", -1, 0.4)):
        for label, true in (("seen 0", "no"), ("dog face", "yes"), ("=1+1", "no")):
            row, p = by_label[model, label], 1 / (1 + np.exp(-sign * ODDS.get(label, 0.0)))
            assert float(row["probability"]) == pytest.approx(p, abs=1e-5) and row["true"] == true
            assert row["predicted"] == ("yes" if p >= limit else "no")
    put(two, threshold=1.0, asked="")
    assert {row["predicted"] for row in table(two)[1] if row["model"] == "the run"} == {"no"}
    take(two, png())
    assert {row["true"] for row in table(two)[1]} == {""} and table(two)[0] == "photo.png.csv"


def test_reset_brings_all_controls_back(two):
    first = Panel(FakePredictor(), FakeSplit(), LABELS, RAW)
    take(two, png())
    put(two, asked="seen 4, new", threshold=0.9, second_threshold=0.1, temperature=2.0, other_rate=0.2, keep="relevant")
    put(two, source="test", carrying="seen 3", ranking="zsl")
    two.reset.click()
    for name in "source scene carrying asked ranking keep threshold temperature seen_rate other_rate look".split():
        assert getattr(two, name).value == getattr(first, name).value, name
    assert two.beside.value == "" and two.second.layout.display == "none"
    for name in "bars sets figures picture overlay export message thumbnails".split():
        assert getattr(two, name).value == getattr(first, name).value, name
