"""The panel's widgets, laid out: two columns where there is room, one below the other where there is not."""

import ipywidgets as w

from clipdec.notebook.controls import ROW, Choice, Question, show
from clipdec.notebook.views import Answer, WorstLabels


class Controls(w.VBox):
    """What one sets, what answers, and the browser of the worst labels, laid out. Each widget is an attribute."""

    def __init__(self, split, predictor, names, beside):
        question, choice, browser = Question(len(split), names, beside), Choice(predictor), WorstLabels(split)
        self.question, self.choice, self.browser = question, choice, browser
        self.source, self.scene, self.carrying, self.next = (
            question.source, question.scene, question.carrying, question.next,
        )  # fmt: skip
        self.photo, self.upload, self.asked, self.beside = (
            question.photo, question.upload, question.asked, question.beside,
        )  # fmt: skip
        self.ranking, self.keep, self.threshold = choice.ranking, choice.keep, choice.threshold
        self.second_threshold, self.temperature = choice.second_threshold, choice.temperature
        self.seen_rate, self.other_rate, self.sliders = choice.seen_rate, choice.other_rate, choice.sliders
        self.worst, self.thumbnails, self.example = browser.worst, browser.thumbnails, browser.example
        self.first, self.second = Answer(), Answer()
        self.look, self.bars, self.picture = self.first.look, self.first.bars, self.first.picture
        self.overlay, self.sets, self.figures = self.first.overlay, self.first.sets, self.first.figures
        show(self.second, False)
        self.controls = w.HBox([question, choice], layout=ROW)
        self.message, self.export = w.HTML(layout={"flex": "1 1 300px"}), w.HTML()
        self.reset = w.Button(description="reset the controls", layout={"width": "160px"})
        line = w.HBox([self.message, self.export, self.reset], layout={"align_items": "center"})
        self.results = w.HBox([self.first, self.second], layout=ROW)
        super().__init__([self.controls, line, self.results, browser])
