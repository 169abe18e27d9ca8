"""The Predictor and the panel on the default run (`make demo`): loading, one image against all labels, one move of a slider."""

import time

import torch

from benchmarks.timing import side_by_side
from clipdec import Predictor, load_data
from clipdec.data import DATA
from clipdec.training.scores import split_scores
from clipdec.notebook.panel import Panel

RUN = DATA.parent / "runs" / "emoji"


def figures(device):
    began = time.time()
    predictor = Predictor.load(RUN)
    loaded = time.time()
    data = load_data(predictor.config.data)
    image, names = data.test.image(0), data.labels.names
    first = time.time()
    predictor(image, names)
    answered = time.time()
    pixels, queries = predictor.model.tower.preprocess(image)[None].to(predictor.config.device), predictor.vectors(names)

    def bare():
        with torch.no_grad():
            predictor.model.score(*predictor.model.tower(pixels), queries).cpu()

    t = side_by_side({"predictor": lambda: predictor(image, names), "bare": bare, "one": lambda: predictor(image, names[:1])})
    yield "Predictor: loading and the first answer, seconds", loaded - began + answered - first, f"{loaded - began:.2f} s loading, without the imports"
    yield f"Predictor, one image and {len(names):,} labels: Predictor / bare tower and head", t["predictor"] / t["bare"], f"{1000 * t['predictor']:.0f} ms"
    yield f"Predictor, one image: {len(names):,} labels / one label", t["predictor"] / t["one"], f"{1000 * t['one']:.0f} ms for one"

    panel = Panel(predictor, data.test, data.labels, split_scores(predictor.model, data.test, data, predictor.config))

    def move(slider):
        def run():
            slider.value = slider.max / 2 if slider.value != slider.max / 2 else slider.max / 3

        return run

    t = side_by_side({"threshold": move(panel.threshold), "temperature": move(panel.temperature), "answer": lambda: predictor(image, names)})
    yield "panel, a move of the threshold / an answer of the Predictor", t["threshold"] / t["answer"], f"{1000 * t['threshold']:.0f} ms in the kernel"
    yield "panel, a move of the temperature / an answer of the Predictor", t["temperature"] / t["answer"], f"{1000 * t['temperature']:.0f} ms in the kernel"
