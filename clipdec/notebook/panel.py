"""The panel: any image, any labels, a threshold, where each label looked, and which labels the model is worst at."""

import math
from functools import cache, partial
from threading import RLock

import ipywidgets as w
import torch

from clipdec.images import open_image
from clipdec.notebook import render
from clipdec.notebook.answers import Decision, Part, best_three, parse_labels, set_figures
from clipdec.training.report import dashed

TOP, MOST = 12, 15  # labels shown; predicted labels that are named
HIGHEST = -0.01  # logarithm of the highest base rate of the sliders: that of 1 has no odds
SIDE, THUMB, PHOTO = 186, 92, 768  # px: width of pictures, and of small ones; short side of a large photo, scaled
NAMED = {"style": {"description_width": "9em"}}
WIDE = NAMED | {"layout": {"width": "420px"}}


class Controls(w.VBox):
    """What one sets, what answers, and the browser of the worst labels, laid out. Each widget is an attribute."""

    def __init__(self, split, predictor):
        controls = [self._question(len(split)), self._decision(predictor)]
        self.controls, self.message = w.HBox(controls, layout={"flex_flow": "row wrap"}), w.HTML()
        self.results, self.browser = self._results(), WorstLabels(split)
        self.worst, self.thumbnails, self.example = self.browser.worst, self.browser.thumbnails, self.browser.example
        super().__init__([self.controls, self.message, self.results, self.browser])

    def _question(self, images):
        sources = {"of the test split": "test", "a photo of yours": "photo"}
        self.source = w.Dropdown(options=sources, description="image", **WIDE)
        self.scene = w.BoundedIntText(max=images - 1, description="number", **WIDE)
        place, hint = {"width": "297px", "margin": "2px 2px 2px 123px"}, "names between commas; empty: all"
        self.upload = w.FileUpload(accept="image/*", description="choose a photo", layout=place)
        self.asked = w.Text(description="labels", placeholder=hint, continuous_update=False, **WIDE)
        return w.VBox([self.source, self.scene, self.upload, self.asked])

    def _decision(self, predictor):
        ranked = {"seen and unseen labels (GZSL)": "gzsl", "unseen labels only (ZSL)": "zsl"}
        self.ranking = w.Dropdown(options=ranked, description="ranked", **WIDE)
        kept = {"all are counted": "all", "relevant ones, with a ranked label": "relevant"}
        self.keep = w.Dropdown(options=kept, description="images", **WIDE)
        self.threshold = w.FloatSlider(round(predictor.threshold, 2), max=1, step=0.01, description="threshold", **WIDE)
        self.temperature = w.FloatSlider(1, min=0.2, max=5, step=0.1, description="temperature", **WIDE)
        base_rate, notes = predictor.calibration.base_rate, [predictor.calibration.note]
        start = min(round(math.log10(base_rate), 2), HIGHEST)  # on a step: a browser would move it there
        if math.log10(base_rate) > HIGHEST:
            notes.append(f"on val labels are in {base_rate:.1%} of the images: base rates end at {10**start:.1%}")
        ends = {"min": min(-4, start), "max": max(-0.5, start)}
        rate = {"value": 10**start, "step": 0.01, "readout_format": ".2%"} | ends | WIDE
        self.seen_rate = w.FloatLogSlider(description="base rate, seen", **rate)
        self.other_rate = w.FloatLogSlider(description="base rate, other", **rate)
        self.base_rate = self.seen_rate.value  # as long as no slider is moved, probabilities are the Predictor's
        self.sliders = [self.threshold, self.temperature, self.seen_rate, self.other_rate]
        notes = [w.HTML(render.message(note), layout={"width": "420px"}) for note in notes if note]
        return w.VBox([self.ranking, self.keep, *self.sliders, *notes])

    def _results(self):
        self.look = w.ToggleButtons(layout={"width": "186px"}, style={"button_width": "180px"})
        self.bars = w.HTML(layout={"width": "250px"})
        scores = [w.HTML("<b>labels: click one to see where it looked</b>"), w.HBox([self.look, self.bars])]
        self.picture, self.overlay, self.sets, self.figures = (w.HTML() for _ in range(4))
        view = [w.HBox([self.picture, self.overlay]), self.sets, self.figures]
        boxes = [w.VBox(scores), w.VBox(view, layout={"width": "390px", "margin": "0 0 0 14px"})]
        return w.HBox(boxes, layout={"flex_flow": "row wrap"})


class WorstLabels(w.VBox):
    """The labels that the model is worst at, and images of the one that is chosen."""

    def __init__(self, split):
        self.split = split
        self.worst = w.Select(rows=6, description="worst labels", layout={"width": "520px"}, **NAMED)
        self.thumbnails = w.HTML()
        self.example = w.ToggleButtons(layout={"width": "840px"}, style={"button_width": f"{THUMB + 4}px"})
        heading = w.HTML("<b>where the model fails: choose a label, then open one of its images</b>")
        super().__init__([heading, self.worst, self.thumbnails, self.example])

    def show(self, part):
        self.part, worst = part, part.worst()
        self.worst.options, self.worst.index = worst, 0 if worst else None
        self.show_examples()
        if not worst:
            self.thumbnails.value = render.message("no label of this ranking is in a test image")
            self.example.options = ()

    def show_examples(self):
        if self.worst.value is not None:  # as it is for a moment, while the list changes
            examples = self.part.examples(self.worst.value)
            images = [(render.picture(self.split.image(n), f"test image {n}: {t}", THUMB), t) for n, t in examples]
            self.thumbnails.value = render.captioned(images, THUMB)
            self.example.value = None  # or the first of the new options would be chosen, and open its image
            self.example.options, self.example.value = [(f"open {n}", n) for n, _ in examples], None


class Panel(Controls):
    """Controls over a Predictor, any photo, and a Split with its LabelSpace `labels` and the model's `logits` [M, L].

    Code can set a control's value as a hand does. Sliders change the probability sigmoid(x / temperature), x being the
    Predictor's logit at a base rate of the seen labels and one of all others, and the threshold that it must reach.
    They start at what val decided on.
    """

    def __init__(self, predictor, split, labels, logits):
        if not len(split):
            raise ValueError(f"the split {split.name} holds no image: give another one")
        super().__init__(split, predictor)
        self.predictor, self.split, self.space = predictor, split, labels
        logits = predictor.calibration.log_odds(torch.as_tensor(logits))
        self.evaluated, self.best_three = cache(partial(Part, labels, logits, split.targets)), cache(best_three)
        self.photo, self.photo_note, self.question, self.answer = None, "", None, None
        self.one_at_a_time = RLock()  # steps set controls, and so start others
        self.pinned = None  # number of a test image, and a label that is shown for it wherever it ranks
        self._on([self.source, self.scene, self.asked], self._refresh)
        self._on([self.keep], self._show_worst, self._show_scores)
        self._on(self.sliders, self._show_scores)
        self._on([self.look], self._show_attention)
        self._on([self.upload], self._take_photo)
        self._on([self.worst], self.browser.show_examples)
        self._on([self.example], self._open_example)
        self._on([self.ranking], self._refresh, self._show_worst)(None)  # now as well: this shows all there is

    def _on(self, controls, *steps):
        """Run steps when a control changes, and show an error as text: a callback has no other place for it.

        One control after the other: a kernel may take the messages of some controls in another thread than the others'.
        """

        def run(change):
            try:
                with self.one_at_a_time:
                    for step in steps:
                        step()
            except Exception as error:
                self.message.value = render.message(str(error), wrong=True)

        for control in controls:
            control.observe(run, "value")
        return run

    @property
    def number(self):
        """The number of the test image, None for a photo."""
        return self.scene.value if self.source.value == "test" else None

    def _image(self):
        if self.number is None and self.photo is None:
            raise ValueError("there is no photo yet: choose one with the button")
        return self.photo if self.number is None else self.split.image(self.number)

    def _take_photo(self):
        for file in self.upload.value:  # one, or none
            if not len(file["content"]):
                raise ValueError(f"{file['name']} is empty (0 bytes): choose another file")
            self.photo = open_image(bytes(file["content"]), file["name"], PHOTO)
            self.photo_note = f"{file['name']}, {self.photo.width} × {self.photo.height} px"
            if self.source.value == "photo":
                self._refresh()  # another image may be chosen meanwhile
            else:
                self.source.value = "photo"

    def _refresh(self):
        """All that depends on the image and on the labels asked about."""
        with self.results.layout.hold_sync():  # a page is told only how this ends
            self.results.layout.display = "none"  # if it fails: of another image, or of other labels
            self._note()
            self._show_scores()
            self._show_attention()
            self.results.layout.display = ""

    def _note(self):
        names, empty = parse_labels(self.asked.value)
        notes = [self.photo_note] if self.number is None and self.photo else []
        notes += [f"{empty} empty label{'s' * (empty > 1)} left out"] if empty else []
        notes += [f"{len(names)} labels asked about"] if len(names) > TOP else []
        self.message.value = render.message("; ".join(notes))

    def _ranked(self, decision):
        """See Decision.ranked. The last answer of the model is kept, so that sliders ask it nothing."""
        names = parse_labels(self.asked.value, self.space.names)[0] or self.space.names
        question = (self.number, self.photo, names)
        if question != self.question:
            self.question, self.answer = question, self.predictor.log_odds([self._image()], names)[0]  # [L]
        seen = torch.tensor([self.space.kind(name) == "seen" for name in names])
        return decision.ranked(names, self.answer, seen, self.ranking.value)

    def _show_scores(self):
        """All that depends on the probabilities."""
        decision = Decision(*(slider.value for slider in self.sliders), self.base_rate)
        names, probabilities = self._ranked(decision)
        predicted = [name for name, there in zip(names, probabilities >= decision.threshold) if there]
        carried = [] if self.number is None else self.split.targets[self.number].nonzero().flatten()
        true = [self.space.names[i] for i in carried if self.space.names[i] in names]
        self._show_bars(names, probabilities, true)
        self.sets.value = render.sets(predicted[:MOST], None if self.number is None else true, len(predicted[MOST:]))
        self._show_figures(decision, names, predicted, true)

    def _show_bars(self, names, probabilities, true):
        """A button and a bar for each of the best labels. The one that is chosen stays while it is shown."""
        number = self.number
        shown = [i for i, name in enumerate(names) if i < TOP or self.pinned == (number, name)]
        labels = [names[i] for i in shown]
        kinds = [self.space.kind(name) for name in labels]
        self.bars.value = render.bars([i + 1 for i in shown], kinds, probabilities[shown], self.threshold.value)
        options = tuple((f"✓ {name}" if name in true else name, name) for name in labels)
        if options != self.look.options:
            chosen, self.look.options = self.look.value, options
            self.look.value = chosen if chosen in labels else labels[0]

    def _show_figures(self, decision, names, predicted, true):
        """Precision, recall and F1 of the image and of the whole split."""
        part, rows = self.evaluated(self.ranking.value, self.keep.value), []
        if self.number is not None:
            judged = [name for name in names if self.space.kind(name) != "new"]  # the data set annotates no new ones
            marks = [[name in some for name in judged] for some in (set(predicted), true)]
            rows = [("this image", set_figures(*torch.tensor(marks, dtype=torch.bool)))]
        rows += [(f"{len(part.rows)} test images", decision.figures(part))]
        f1, precision = dashed(self.best_three(part, decision.shifts)), dashed(part.precisions.nanmean())
        best = f"F1@3 {f1} %; mAP {precision} %"
        self.figures.value = render.figures(rows, f"best three of each test image: {best}, which no slider moves")

    def _show_attention(self):
        image, label = self._image(), self.look.value
        about = "your photo" if self.number is None else f"test image {self.number}"
        self.picture.value = render.picture(image, about, SIDE)
        looked = render.darkened(image, self.predictor.explain(image, label))
        self.overlay.value = render.picture(looked, f"{about}, bright where {label} looked", SIDE)

    def _show_worst(self):
        self.browser.show(self.evaluated(self.ranking.value, self.keep.value))

    def _open_example(self):
        if self.example.value is not None:
            self.pinned = (self.example.value, self.worst.value)
            self.source.value, self.asked.value, self.scene.value = "test", "", self.example.value
            self._refresh()
            self.look.value = self.worst.value
