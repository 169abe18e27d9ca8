"""What the panel shows: the answer of a model, and the labels that it is worst at."""

from dataclasses import dataclass
from html import escape

import ipywidgets as w
import torch
from PIL import Image

from clipdec.notebook import render
from clipdec.notebook.answers import set_figures
from clipdec.notebook.controls import COLUMN, NAMED, ROW
from clipdec.training.report import dashed

TOP, TOP_OF_TWO, MOST = 12, 8, 15  # labels shown, of one model and of two; predicted labels that are named
SIDE, THUMB = 200, 92  # px: width of pictures, and of small ones


@dataclass
class Asked:
    """What models are asked: an image, and labels `names`, some of which are `true`; None where nobody knows.

    kinds: "seen", "unseen" or "new" for each of the names.
    """

    image: Image.Image
    about: str
    names: list
    kinds: dict
    true: list | None


class Answer(w.VBox):
    """What one model answers: its labels with bars, where the one that is chosen looked, what is predicted, figures."""

    def __init__(self):
        self.model, self.looked, self.rows = None, (None, None), []
        self.heading = w.HTML()
        self.look = w.ToggleButtons(layout={"width": "186px"}, style={"button_width": "180px"})
        self.bars = w.HTML(layout={"flex": "1 1 200px", "min_width": "200px"})
        scores = [self.heading, w.HBox([self.look, self.bars])]
        self.picture, self.overlay, self.sets, self.figures = (w.HTML() for _ in range(4))
        view = [w.HBox([self.picture, self.overlay]), self.sets, self.figures]
        boxes = w.HBox([w.VBox(scores, layout=COLUMN), w.VBox(view, layout=COLUMN)], layout=ROW)
        super().__init__([boxes], layout=COLUMN)

    def show_model(self, model, heading="labels: click one to see where it looked", top=TOP):
        """Show a model, or none, under a heading, with `top` of its labels."""
        self.model, self.looked, self.top = model, (None, None), top
        if model:
            self.heading.value = f"<b>{escape(heading)}</b>"

    def show_scores(self, asked, decision, ranking, keep, also):
        """All that depends on the probabilities; labels `also` are shown wherever they rank."""
        seen = torch.tensor([asked.kinds[name] == "seen" for name in asked.names])
        logits = self.model.ask(asked.image, asked.names)
        names, probabilities = decision.ranked(asked.names, logits, seen, ranking)
        predicted = [name for name, there in zip(names, probabilities >= decision.threshold) if there]
        self._show_bars(asked, names, probabilities, decision.threshold, also)
        self.sets.value = render.sets(predicted[:MOST], asked.true, len(predicted[MOST:]))
        self._show_figures(asked, decision, self.model.part(ranking, keep), names, predicted)

    def _show_bars(self, asked, names, probabilities, threshold, also):
        """A button and a bar for each of the best labels. The one that is chosen stays while it is shown."""
        shown, true = [i for i, name in enumerate(names) if i < self.top or name in also], asked.true or []
        labels = [names[i] for i in shown]
        kinds = [asked.kinds[name] for name in labels]
        self.bars.value = render.bars([i + 1 for i in shown], kinds, probabilities[shown], threshold)
        told = ["" if asked.true is None else "yes" if name in true else "no" for name in labels]
        reached = ["yes" if p >= threshold else "no" for p in probabilities[shown]]
        numbers = [f"{p:.6f}" for p in probabilities[shown].tolist()]
        self.rows = list(zip((i + 1 for i in shown), labels, kinds, numbers, reached, told))
        options = tuple((f"✓ {name}" if name in true else name, name) for name in labels)
        if options != self.look.options:
            chosen, self.look.options = self.look.value, options
            self.look.value = chosen if chosen in labels else labels[0]

    def _show_figures(self, asked, decision, part, names, predicted):
        """Precision, recall and F1 of the image and of the whole split."""
        if asked.true is None:
            self.figures.value = "<div>no figures: nobody has said what a photo of yours shows</div>"
            return
        judged = [name for name in names if asked.kinds[name] != "new"]  # the data set annotates no new ones
        marks = [[name in some for name in judged] for some in (set(predicted), asked.true)]
        rows = [("this image", set_figures(*torch.tensor(marks, dtype=torch.bool)))]
        rows += [(f"{len(part.rows)} test images", decision.figures(part))]
        f1, precision = dashed(self.model.best_three(part, decision.shifts)), dashed(part.precisions.nanmean())
        best = f"F1@3 {f1} %; mAP {precision} %"
        self.figures.value = render.figures(rows, f"best three of each test image: {best}, which no slider moves")

    def show_look(self, asked):
        """The image, and where the chosen label looked."""
        image, label = asked.image, self.look.value
        if image is self.looked[0] and label == self.looked[1]:
            return
        self.picture.value = render.picture(image, asked.about, SIDE)
        looked = render.darkened(image, self.model.predictor.explain(image, label))
        self.overlay.value = render.picture(looked, f"{asked.about}, bright where {label} looked", SIDE)
        self.looked = image, label


class WorstLabels(w.VBox):
    """The labels that the model is worst at, and images of the one that is chosen."""

    def __init__(self, split):
        self.split = split
        self.worst = w.Select(rows=6, description="worst labels", layout={"width": "520px"}, **NAMED)
        self.thumbnails = w.HTML()
        self.example = w.ToggleButtons(layout={"width": "840px"}, style={"button_width": f"{THUMB + 4}px"})
        self.heading = w.HTML()
        super().__init__([self.heading, self.worst, self.thumbnails, self.example])

    def show(self, part, model):
        self.heading.value = f"<b>where {escape(model)} fails: choose a label, then open one of its images</b>"
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
