"""The panel: any image, any labels, a threshold, where each label looked, which labels the model is worst at, and a
second model beside the first.
"""

from functools import cache, partial
from threading import RLock

from clipdec.images import ImageError, open_image
from clipdec.labels import same_name
from clipdec.notebook import render
from clipdec.notebook.answers import Decision, parse_labels
from clipdec.notebook.controls import show
from clipdec.notebook.layout import Controls
from clipdec.notebook.models import Shown, untouched_clip
from clipdec.notebook.views import TOP, TOP_OF_TWO, Asked

PHOTO = 768  # px: short side of a large photo, scaled


class Panel(Controls):
    """Controls over a Predictor, any photo, and a Split with its LabelSpace `labels` and the model's `logits` [M, L].

    Code can set a control's value as a hand does. Sliders change the probability sigmoid(x / temperature), x being the
    Predictor's logit at a base rate of the seen labels and one of all others, and the threshold that it must reach.
    They start at what val decided on.

    Args:
        name: what the model is called where another one stands beside it.
        beside: {name: function} of the models that can be chosen to do so; by default untouched CLIP, the one of the
            run's text tower. A function is called when its model is chosen first: with one that shows a line of text,
            for work that takes long; it returns a Predictor and its logits [M, L], see `clipdec.notebook.models`.
    """

    def __init__(self, predictor, split, labels, logits, name="the run", beside=None):
        if not len(split):
            raise ValueError(f"the split {split.name} holds no image: give another one")
        if beside is None:
            beside = {"untouched CLIP": partial(untouched_clip, predictor, split, labels)}
        super().__init__(split, predictor, labels.names, beside)
        self.predictor, self.split, self.space = predictor, split, labels
        self.first.show_model(Shown(name, predictor, logits, labels, split))
        self.opened = cache(lambda other: self._opened(other, beside[other]))
        self.photos, self.current = {}, (None, None)  # by name; which image is shown, and the image
        self.rated, self.rate_note = 0, ""  # number of labels asked about a photo that the base rates are set for
        self.one_at_a_time, self.stepping = RLock(), False
        self.pinned = None  # number of a test image, and a label that is shown for it wherever it ranks
        self._on([self.source, self.scene, self.photo, self.asked], self._refresh)
        self._on([self.keep], self._show_worst, self._show_scores)
        self._on(self.sliders, self._show_scores)
        for answer in (self.first, self.second):
            self._on([answer.look], partial(self._choose, answer))
        self._on([self.upload], self._take_photos)
        self._on([self.worst], self.browser.show_examples)
        self._on([self.example], self._open_example)
        self._on([self.beside], self._stand_beside)
        self.next.on_click(self._on([self.carrying], self._find))
        self.start = {control: control.value for control in (
            self.source, self.scene, self.carrying, self.asked, self.beside, self.ranking, self.keep, *self.sliders,
        )}  # fmt: skip
        self.reset.on_click(self._on([], self._reset))
        self._on([self.ranking], self._refresh, self._show_worst)(None)  # now as well: this shows all there is

    def _on(self, controls, *steps):
        """Run steps when a control changes, and show an error as text: a callback has no other place for it.

        One control after the other: a kernel may take the messages of some controls in another thread than the others'.
        Controls that a step sets start no others: a step shows all that follows from it.
        """

        def run(change):
            with self.one_at_a_time:
                if self.stepping:
                    return
                self.stepping = True
                try:
                    for step in steps:
                        step()
                except Exception as error:
                    self.message.value = render.message(str(error), wrong=True)
                finally:
                    self.stepping = False

        for control in controls:
            control.observe(run, "value")
        return run

    @property
    def number(self):
        """The number of the test image, None for a photo."""
        return self.scene.value if self.source.value == "test" else None

    @property
    def answers(self):
        """Those that are shown."""
        return [self.first, self.second] if self.second.model else [self.first]

    def _image(self):
        """The image that is shown, opened once."""
        if self.number is None and self.photo.value is None:
            raise ValueError("there is no photo yet: choose one with the button")
        which = self.photo.value if self.number is None else self.number
        if which != self.current[0]:
            self.current = which, self.photos[which] if self.number is None else self.split.image(which)
        return self.current[1]

    def _take_photos(self):
        wrong, before = [], dict(self.photos)
        for file in self.upload.value:
            try:
                if not len(file["content"]):
                    raise ValueError(f"{file['name']} is empty (0 bytes): choose another file")
                self.photos[file["name"]] = open_image(bytes(file["content"]), file["name"], PHOTO)
            except (ImageError, ValueError) as error:
                wrong.append(str(error))
        taken = [name for name, photo in self.photos.items() if photo is not before.get(name)]
        if taken:
            self.current = None, None  # a photo of the same name may be another one
            self.photo.options, self.photo.value = list(self.photos), taken[0]
            self.source.value = "photo"
            self._refresh()
        if wrong:
            raise ValueError("; ".join(wrong))

    def _refresh(self, label=None):
        """All that depends on the image and on the labels asked about."""
        with self.results.layout.hold_sync():  # a page is told only how this ends
            show(self.results, False)  # if it fails: of another image, or of other labels
            self.export.value = ""
            self.question.show_source()
            self._note()
            self._show_scores(label)
            show(self.results, True)

    def _note(self):
        """Say what is shown, and set the base rate for labels of one's own."""
        names, empty = parse_labels(self.asked.value)
        photo = self.photos.get(self.photo.value) if self.number is None else None
        notes = [f"{self.photo.value}, {photo.width} × {photo.height} px"] if photo else []
        notes += [f"{empty} empty label{'s' * (empty > 1)} left out"] if empty else []
        notes += [f"{len(names)} labels asked about"] if len(names) > TOP else []
        count = len(names) if photo else 0
        if count != self.rated:
            self._rate(count)
        notes += [self.rate_note] if count else []
        self.message.value = render.message("; ".join(notes))

    def _rate(self, count):
        """Set the base rates as if a photo carried as many of `count` labels as a test image does of all on average.

        Who asks about a few labels has reasons to. With a count of 0 they are val's, as of test images, whose labels
        are as rare as there.
        """
        self.rated, self.rate_note = count, ""
        carried = max(1.0, self.split.targets.sum(1).double().mean().item())
        rate = self.choice.set_rate(carried / count if count else self.choice.base_rate)
        if count:
            labels = f"{carried:.1f} of the labels asked about ({count}), as test images do on average"
            ends = "; the sliders end there" if rate < 0.98 * carried / count else ""
            self.rate_note = f"base rates set to {rate:.1%}, as if a photo carried {labels}{ends}"

    def _question(self):
        names = parse_labels(self.asked.value, self.space.names)[0] or self.space.names
        true, about = None, "your photo"
        if self.number is not None:
            carried = self.split.targets[self.number].nonzero().flatten()
            true, about = [self.space.names[i] for i in carried], f"test image {self.number}"
            true = [name for name in true if name in names]
        return Asked(self._image(), about, names, {name: self.space.kind(name) for name in names}, true)

    def _show_scores(self, label=None):
        """All that depends on the probabilities. Where two models are shown one label is chosen in both."""
        asked, pinned = self._question(), self.pinned and self.pinned[0] == self.number
        also = {self.pinned[1]} if pinned else set()
        for answer, threshold in zip(self.answers, [self.threshold, self.second_threshold]):
            sliders = (slider.value for slider in (threshold, self.temperature, self.seen_rate, self.other_rate))
            decision = Decision(*sliders, self.choice.base_rate)
            chosen = {label or self.look.value} if self.second.model else set()
            answer.show_scores(asked, decision, self.ranking.value, self.keep.value, also | chosen)
            if label in [name for _, name in answer.look.options]:
                answer.look.value = label
            label = self.look.value
            answer.show_look(asked)
        tables = [(answer.model.name, answer.rows) for answer in self.answers]
        what = self.photo.value if self.number is None else asked.about
        self.export.value = render.table_link(what, tables)

    def _choose(self, answer):
        self._show_scores(answer.look.value)

    def _show_worst(self):
        model = self.first.model
        name = model.name if self.second.model else "the model"
        self.browser.show(model.part(self.ranking.value, self.keep.value), name)

    def _open(self, number, label):
        """Show a test image, and where a label of it looked."""
        self.pinned = (number, label)
        self.source.value, self.scene.value = "test", number
        self._refresh(label)

    def _open_example(self):
        if self.example.value is not None:
            self.asked.value = ""
            self._open(self.example.value, self.worst.value)

    def _find(self):
        """The next test image that carries a label."""
        typed = same_name(self.carrying.value)
        if not typed:
            return
        names = [name for name in self.space.names if same_name(name) == typed]
        if not names:
            raise ValueError(f"{self.carrying.value} is no label of the data set: choose one of its list")
        numbers = self.split.targets[:, self.space.names.index(names[0])].nonzero().flatten().tolist()
        if not numbers:
            raise ValueError(f"no test image carries {names[0]}: choose another label")
        now = -1 if self.number is None else self.number
        number = next((n for n in numbers if n > now), numbers[0])
        self._open(number, names[0])
        place = f"image {numbers.index(number) + 1} of {len(numbers)}"
        self.message.value = render.message(f"{place} that carry {names[0]}")

    def _opened(self, name, model):
        """A model that can stand beside the first, at the base rate of the first."""
        predictor, logits = model(lambda text: setattr(self.message, "value", render.message(text)))
        first = self.predictor.calibration
        if not predictor.calibration.note and not first.note:
            predictor.calibration = predictor.calibration.at(first.base_rate)
        return Shown(name, predictor, logits, self.space, self.split)

    def _stand_beside(self):
        """Show a second model, or no other one."""
        name = self.beside.value
        self.second.show_model(None)
        try:
            if name:
                model = self.opened(name)
                self.second.show_model(model, f"2 · {model.title}", TOP_OF_TWO)
                self.second_threshold.value = round(model.predictor.threshold, 2)
        except Exception:
            self.beside.value = ""
            raise
        finally:
            for widget in (self.second, self.second_threshold):
                show(widget, self.second.model)
            first = self.first.model
            self.first.show_model(first, *([f"1 · {first.title}", TOP_OF_TWO] if self.second.model else []))
        self._refresh()
        self._show_worst()

    def _reset(self):
        """All controls as they were at first; photos stay in their list."""
        for control, value in self.start.items():
            control.value = value
        self.pinned, self.rated = None, 0
        self.look.options = ()  # the chosen label, too
        self._stand_beside()
