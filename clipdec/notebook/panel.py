"""The panel: any image, any labels, a threshold, where each label looked, and which labels the model is worst at."""

import io
from functools import lru_cache

import ipywidgets as widgets
import numpy as np
import torch

from clipdec.notebook import render
from clipdec.calibration import log_odds
from clipdec.metrics import average_precision, precision_recall_f1, set_figures
from clipdec.predictor.predictor import open_image

TOP = 12  # labels shown
LISTED = 15  # predicted labels that are named
WORST, FEW = 50, 5  # labels in the list of the worst; images below which AP is mostly chance
SIDE, THUMB = 186, 92  # widths of pictures in px
PHOTO = 1024  # px to which a large photo is scaled down

LABELLED = {"style": {"description_width": "9em"}, "layout": widgets.Layout(width="420px")}


def parse_labels(text, known=()):
    """(names between commas, each once; how many were empty). A name of `known` gets the spelling that it has there."""
    parts = [part.strip() for part in text.split(",")] if text.strip() else []
    spelling = {name.casefold(): name for name in known} | {name: name for name in known}
    names = [spelling.get(name, spelling.get(name.casefold(), name)) for name in parts if name]
    return list(dict.fromkeys(names)), len(parts) - len(names)


class Panel(widgets.VBox):
    """Controls over a Predictor, an evaluated split and any photo. Each control is an attribute; code can set its value as a hand does.

    Sliders change the probability sigmoid(x / temperature), x being the Predictor's logit at a base rate of the seen labels and one of all
    others, and the threshold that it must reach. They start at what val decided on.

    Args:
        predictor: a Predictor, or anything with its `log_odds`, `explain`, `calibration` and `threshold`.
        split: a Split.
        labels: the LabelSpace of its targets.
        logits: the model's logits [M, L] for all images of the split.
    """

    def __init__(self, predictor, split, labels, logits):
        if not len(split):
            raise ValueError(f"the split {split.name} holds no image: give another one")
        self.predictor, self.split, self.space = predictor, split, labels
        self.log_odds = predictor.calibration.log_odds(torch.as_tensor(logits))
        self.photo, self.photo_name = None, ""
        self.pinned = (-1, None)  # number of a test image, and a label that is shown for it wherever it ranks
        self._answer, self._part, self._best_three = (lru_cache(maxsize=32)(f) for f in (self._answer, self._part, self._best_three))
        self._build()
        super().__init__([self.controls, self.message, self.results, self.browser])
        self._wire()
        self._answers(self._refresh, self._show_worst)()

    # ---- what there is ----

    def _build(self):
        self.source = widgets.Dropdown(options=[("of the test split", "test"), ("a photo of yours", "photo")], description="image", **LABELLED)
        self.scene = widgets.BoundedIntText(0, min=0, max=len(self.split) - 1, description="number", **LABELLED)
        self.upload = widgets.FileUpload(accept="image/*", description="choose a photo", layout=widgets.Layout(width="297px", margin="2px 2px 2px 123px"))
        self.asked = widgets.Text(placeholder="names between commas; empty: all", description="labels", continuous_update=False, **LABELLED)
        self.ranking = widgets.Dropdown(options=[("seen and unseen labels (GZSL)", "gzsl"), ("unseen labels only (ZSL)", "zsl")], description="ranked", **LABELLED)
        self.keep = widgets.Dropdown(options=[("all are counted", "all"), ("relevant ones, with a ranked label", "relevant")], description="images", **LABELLED)
        self.threshold = widgets.FloatSlider(round(self.predictor.threshold, 2), min=0, max=1, step=0.01, description="threshold", **LABELLED)
        self.temperature = widgets.FloatSlider(1, min=0.2, max=5, step=0.1, description="temperature", **LABELLED)
        start = 10 ** round(np.log10(self.predictor.calibration.base_rate), 2)  # on a step of the slider: a browser would move it there
        rates = {"value": start, "base": 10, "min": -4, "max": -0.5, "step": 0.01, "readout_format": ".2%"}
        self.seen_rate = widgets.FloatLogSlider(description="base rate, seen", **rates, **LABELLED)
        self.other_rate = widgets.FloatLogSlider(description="base rate, other", **rates, **LABELLED)
        image = widgets.VBox([self.source, self.scene, self.upload, self.asked])
        decision = widgets.VBox([self.ranking, self.keep, self.threshold, self.temperature, self.seen_rate, self.other_rate])
        self.controls = widgets.HBox([image, decision], layout=widgets.Layout(flex_flow="row wrap"))
        self.message = widgets.HTML()

        self.look = widgets.ToggleButtons(layout=widgets.Layout(width="186px"), style={"button_width": "180px"})
        self.bars = widgets.HTML(layout=widgets.Layout(width="250px"))
        self.picture, self.overlay, self.sets, self.figures = (widgets.HTML() for _ in range(4))
        scores = widgets.VBox([_heading("labels: click one to see where it looked"), widgets.HBox([self.look, self.bars])])
        self.view = widgets.VBox([widgets.HBox([self.picture, self.overlay]), self.sets, self.figures], layout=widgets.Layout(width="390px", margin="0 0 0 14px"))
        self.results = widgets.HBox([scores, self.view], layout=widgets.Layout(flex_flow="row wrap"))

        self.worst = widgets.Select(rows=6, description="worst labels", style={"description_width": "9em"}, layout=widgets.Layout(width="520px"))
        self.thumbnails = widgets.HTML()
        self.example = widgets.ToggleButtons(description="", style={"button_width": f"{THUMB + 4}px"}, layout=widgets.Layout(width="840px"))
        self.browser = widgets.VBox([_heading("where the model fails: choose a label, then open one of its images"), self.worst, self.thumbnails, self.example])

    def _wire(self):
        for control in (self.source, self.scene, self.asked):
            control.observe(self._answers(self._refresh), "value")
        self.ranking.observe(self._answers(self._refresh, self._show_worst), "value")
        self.keep.observe(self._answers(self._show_figures, self._show_worst), "value")
        for slider in (self.threshold, self.temperature, self.seen_rate, self.other_rate):
            slider.observe(self._answers(self._show_scores), "value")
        self.look.observe(self._answers(self._show_attention), "value")
        self.upload.observe(self._answers(self._take_photo), "value")
        self.worst.observe(self._answers(self._show_examples), "value")
        self.example.observe(self._answers(self._open_example), "value")

    def _answers(self, *steps):
        """An observer that runs steps and shows an error as text: a callback has no other place for it."""

        def run(change=None):
            try:
                for step in steps:
                    step()
            except Exception as error:
                self.message.value = render.message(str(error), wrong=True)

        return run

    # ---- what is asked ----

    def _image(self):
        if self.source.value == "test":
            return self.split.image(self.scene.value)
        if self.photo is None:
            raise ValueError("there is no photo yet: choose one with the button")
        return self.photo

    def _answer(self, image_name, names):
        """Calibrated logits [L] of names for the image that is chosen; kept, so that sliders ask the model nothing."""
        return self.predictor.log_odds([self._image()], list(names))[0].numpy()

    def _names(self):
        return tuple(parse_labels(self.asked.value, self.space.names)[0] or self.space.names)

    def _ranked(self):
        """Names and probabilities of the labels that are ranked, the most probable first."""
        names = self._names()
        image_name = self.scene.value if self.source.value == "test" else self.photo_name
        seen = np.array([self.space.kind(name) == "seen" for name in names])
        logits = (self._answer(image_name, names) + self._shift(seen)) / self.temperature.value
        # a label's score does not depend on the other labels, so leaving the seen ones out afterwards is exact
        order = [i for i in np.argsort(-logits, kind="stable") if self.ranking.value == "gzsl" or not seen[i]]
        if not order:
            raise ValueError("every label asked about is seen: choose seen + unseen, or ask about others")
        return [names[i] for i in order], 1 / (1 + np.exp(-logits[order]))

    def _shift(self, seen):
        """What the base rates that are set add to logits; seen: bool [L]."""
        here = log_odds(self.predictor.calibration.base_rate)
        return np.where(seen, log_odds(self.seen_rate.value) - here, log_odds(self.other_rate.value) - here).astype(np.float32)

    def _part(self, ranking, keep):
        """The split as it is evaluated: (numbers of its images, logits, targets, average precision of each label)."""
        index = slice(len(self.space.seen) if ranking == "zsl" else 0, None)
        logits, targets = self.log_odds[:, index], self.split.targets[:, index]
        if not logits.shape[1]:
            raise ValueError("the data set has no unseen labels: rank seen and unseen ones")
        rows = targets.any(1) if keep == "relevant" else torch.ones(len(targets), dtype=torch.bool)
        if keep == "relevant":
            logits, targets = logits[rows], targets[rows]
        return rows.nonzero().flatten(), logits, targets, 100 * average_precision(logits, targets)

    def _best_three(self, ranking, keep, shifts):
        """F1@3 of the split, in 0..1, with what is added to the logits of seen labels and of others."""
        _, logits, targets, _ = self._part(ranking, keep)
        count = len(self.space.seen) if ranking == "gzsl" else 0
        moved = torch.cat([logits[:, :count] + shifts[0], logits[:, count:] + shifts[1]], dim=1)
        return precision_recall_f1(moved, targets, min(3, moved.shape[1]))[2]

    # ---- what is shown ----

    def _refresh(self):
        """All that depends on the image and on the labels asked about."""
        try:
            self.results.layout.display = ""
            self._note()
            self._show_scores()
            self._show_attention()
        except Exception:
            self.results.layout.display = "none"  # of another image, or of other labels
            raise

    def _note(self):
        names, empty = parse_labels(self.asked.value)
        notes = [f"{self.photo_name}, {self.photo.width} × {self.photo.height} px"] if self.source.value == "photo" and self.photo else []
        notes += [f"{empty} empty label{'s' * (empty > 1)} left out"] if empty else []
        notes += [f"{len(names)} labels asked about"] if len(names) > TOP else []
        self.message.value = render.message("; ".join(notes))

    def _show_scores(self):
        names, probabilities = self._ranked()
        place = {name: i for i, name in enumerate(names)}
        number, label = self.pinned
        shown = names[:TOP] + ([label] if number == self._where() and place.get(label, 0) >= TOP else [])
        true = None if self.source.value == "photo" else [n for n in self._true() if n in place]
        predicted = [n for n, p in zip(names, probabilities) if p >= self.threshold.value]
        ranks = [place[n] for n in shown]
        self.bars.value = render.bars([r + 1 for r in ranks], [self.space.kind(n) for n in shown], probabilities[ranks], self.threshold.value)
        self.sets.value = render.sets(predicted[:LISTED], true, max(0, len(predicted) - LISTED))
        self._offer([(f"✓ {n}" if true and n in true else n, n) for n in shown])
        self._show_figures()

    def _where(self):
        return self.scene.value if self.source.value == "test" else None

    def _true(self):
        return [self.space.names[i] for i in self.split.targets[self.scene.value].nonzero().flatten()]

    def _offer(self, options):
        """Put the labels shown on the buttons; the chosen one stays while it is shown."""
        if self.look.options != tuple(options):
            chosen, names = self.look.value, [value for _, value in options]
            self.look.options = options
            self.look.value = chosen if chosen in names else names[0]

    def _show_figures(self):
        """Precision, recall and F1 of the image and of the whole split, for the sliders as they stand."""
        rows, logits, targets, precisions = self._part(self.ranking.value, self.keep.value)
        seen = np.arange(len(self.space.names))[-logits.shape[1] :] < len(self.space.seen)
        with np.errstate(divide="ignore"):  # a threshold of 0 or 1
            limit = self.temperature.value * (np.log(self.threshold.value) - np.log1p(-self.threshold.value))
        split = set_figures(logits >= torch.from_numpy(limit - self._shift(seen)), targets)
        f1 = self._best_three(self.ranking.value, self.keep.value, tuple(self._shift(np.array([True, False]))))
        best = f"best three of each test image: F1@3 {100 * f1:.1f} %; mAP {precisions.nanmean():.1f} %, which no slider moves"
        table = [("this image", self._image_figures())] if self.source.value == "test" else []
        self.figures.value = render.figures([*table, (f"{len(rows)} test images", split)], best)

    def _image_figures(self):
        """Precision, recall and F1 of the test image, over those of the labels asked about that the data set annotates."""
        names, probabilities = self._ranked()
        judged = [(n, p) for n, p in zip(names, probabilities) if self.space.kind(n) != "new"]
        true = set(self._true())
        return set_figures(torch.tensor([p >= self.threshold.value for _, p in judged], dtype=torch.bool), torch.tensor([n in true for n, _ in judged], dtype=torch.bool))

    def _show_attention(self):
        image, label = self._image(), self.look.value
        about = f"test image {self.scene.value}" if self.source.value == "test" else "your photo"
        self.picture.value = render.picture(image, about, SIDE)
        self.overlay.value = render.picture(render.darkened(image, self.predictor.explain(image, label)), f"{about}, bright where {label} looked", SIDE)

    # ---- a photo ----

    def _take_photo(self):
        if not self.upload.value:
            return
        file = self.upload.value[0]
        if not len(file["content"]):
            raise ValueError(f"{file['name']} is empty (0 bytes): choose another file")
        self.photo, self.photo_name = open_image(io.BytesIO(file["content"]), file["name"], PHOTO), file["name"]
        self._answer.cache_clear()  # another file may have the same name
        if self.source.value == "photo":
            self._refresh()
        self.source.value = "photo"

    # ---- the worst labels ----

    def _show_worst(self):
        rows, _, targets, precisions = self._part(self.ranking.value, self.keep.value)
        names, counts = self.space.names[-len(precisions) :], targets.sum(0).tolist()
        least = max(1, min(FEW, max(counts)))
        order = [i for i in precisions.argsort().tolist() if counts[i] >= least][:WORST]
        if not order:
            raise ValueError("no label of this ranking occurs in the test images")
        self.worst.options = [(f"{names[i]}: AP {precisions[i]:.1f} %, {counts[i]} image{'s' * (counts[i] != 1)}", names[i]) for i in order]
        self.worst.index = 0
        self._show_examples()

    def _show_examples(self):
        """The images with the highest scores for a label, and those that carry it with the lowest."""
        label = self.worst.value
        if label is None:  # for a moment, while the list changes
            return
        rows, logits, targets, _ = self._part(self.ranking.value, self.keep.value)
        column = self.space.names[-logits.shape[1] :].index(label)
        order, carries = logits[:, column].argsort(descending=True, stable=True).tolist(), targets[:, column].tolist()
        chosen = [(rank, i) for rank, i in enumerate(order, 1) if rank <= 4]
        chosen += [(rank, i) for rank, i in enumerate(order, 1) if rank > 4 and carries[i]][-4:]
        captions = [f"{'✓ has it' if carries[i] else 'has it not'}, rank {rank}" for rank, i in chosen]
        numbers = [rows[i].item() for _, i in chosen]
        images = [(render.picture(self.split.image(n), f"test image {n}: {text}", THUMB), text) for n, text in zip(numbers, captions)]
        self.thumbnails.value = render.captioned(images, THUMB)
        self.example.options, self.example.value = [(f"open {n}", n) for n in numbers], None

    def _open_example(self):
        if self.example.value is None:
            return
        self.pinned, self.source.value, self.asked.value = (self.example.value, self.worst.value), "test", ""
        self.scene.value = self.example.value
        self._refresh()
        self.look.value = self.worst.value


def _heading(text):
    return widgets.HTML(f"<b>{text}</b>")
