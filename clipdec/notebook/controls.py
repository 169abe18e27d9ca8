"""What one sets in the panel: the image and the labels, and the decision about them."""

import math

import ipywidgets as w

from clipdec.notebook import render

HIGHEST = -0.01  # logarithm of the highest base rate of the sliders: that of 1 has no odds
NAMED = {"style": {"description_width": "9em"}}
WIDE = NAMED | {"layout": {"width": "auto"}}
COLUMN = {"flex": "1 1 400px", "min_width": "400px"}  # two of them stand side by side where there is room
ROW = {"flex_flow": "row wrap", "grid_gap": "4px 14px"}


def show(widget, there):
    """Let a widget be there if `there` is true or is something, or take no room."""
    widget.layout.display = "" if there else "none"


class Question(w.VBox):
    """Which image, which labels, and which model beside the first. Each widget is an attribute."""

    def __init__(self, images, names, beside):
        sources = {"of the test split": "test", "a photo of yours": "photo"}
        self.source = w.Dropdown(options=sources, description="image", **WIDE)
        self.scene = w.BoundedIntText(max=images - 1, description="number", **WIDE)
        settings = {"options": names, "continuous_update": False, "style": NAMED["style"]}
        hint = {"placeholder": "a label", "layout": {"flex": "1 1 auto", "width": "auto"}}
        self.carrying = w.Combobox(description="that carries", **settings, **hint)
        self.next = w.Button(description="next one", layout={"width": "80px"})
        self.find = w.HBox([self.carrying, self.next])
        self.photo = w.Dropdown(description="photo", **WIDE)
        place = {"width": "auto", "margin": "2px 2px 2px calc(9em + 6px)"}
        self.upload = w.FileUpload(accept="image/*", multiple=True, description="choose photos", layout=place)
        hint = "names between commas; empty: all"
        self.asked = w.Text(description="labels", placeholder=hint, continuous_update=False, **WIDE)
        options = {"no other model": ""} | {name: name for name in beside}
        self.beside = w.Dropdown(options=options, description="beside it", **WIDE)
        parts = [self.source, self.scene, self.find, self.photo, self.upload, self.asked, self.beside]
        super().__init__(parts, layout=COLUMN)

    def show_source(self):
        """Only the controls of the images that are chosen from."""
        for control in (self.scene, self.find, self.photo):
            show(control, (control is self.photo) == (self.source.value == "photo"))


class Choice(w.VBox):
    """What is ranked and counted, and the sliders. They start at what val decided on for a Predictor."""

    def __init__(self, predictor):
        ranked = {"seen and unseen labels (GZSL)": "gzsl", "unseen labels only (ZSL)": "zsl"}
        self.ranking = w.Dropdown(options=ranked, description="ranked", **WIDE)
        kept = {"all are counted": "all", "relevant ones, with a ranked label": "relevant"}
        self.keep = w.Dropdown(options=kept, description="images", **WIDE)
        start = round(predictor.threshold, 2)
        self.threshold = w.FloatSlider(start, max=1, step=0.01, description="threshold", **WIDE)
        self.second_threshold = w.FloatSlider(start, max=1, step=0.01, description="threshold of 2", **WIDE)
        show(self.second_threshold, False)
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
        self.sliders = [self.threshold, self.second_threshold, self.temperature, self.seen_rate, self.other_rate]
        notes = [w.HTML(render.message(note)) for note in notes if note]
        super().__init__([self.ranking, self.keep, *self.sliders, *notes], layout=COLUMN)

    def set_rate(self, rate):
        """Set both base rates, as near as a step of their sliders, not beyond their ends: what they are now."""
        exponent = min(max(round(math.log10(rate), 2), self.seen_rate.min), self.seen_rate.max)
        self.seen_rate.value = self.other_rate.value = 10**exponent
        return 10**exponent
