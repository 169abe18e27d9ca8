"""The Predictor and the panel on the default run (`make demo`): loading, one image, one move of a slider."""

import time

import torch

from benchmarks.timing import side_by_side
from clipdec import Predictor, load_data
from clipdec.data import HOME
from clipdec.notebook.panel import Panel
from clipdec.training.scores import split_scores

RUN = HOME / "runs" / "emoji"


def figures(device):
    began = time.perf_counter()
    predictor = Predictor.load(RUN)
    loaded = time.perf_counter()
    data = load_data(predictor.config.data)
    image, names = data.test.image(0), data.labels.names
    first = time.perf_counter()
    predictor(image, names)
    answered = time.perf_counter()
    pixels = predictor.model.tower.preprocess(image)[None].to(predictor.config.device)
    queries = predictor.vectors(names)

    def bare():
        with torch.no_grad():
            predictor.model.score(*predictor.model.tower(pixels), queries).cpu()

    all_labels, one = lambda: predictor(image, names), lambda: predictor(image, names[:1])
    t = side_by_side({"predictor": all_labels, "bare": bare, "one": one})
    start, many = loaded - began + answered - first, f"{len(names):,} labels"
    yield "Predictor: loading and the first answer, seconds", start, f"{loaded - began:.2f} s loading, no imports"
    ratio, time_of_all = t["predictor"] / t["bare"], f"{1000 * t['predictor']:.0f} ms"
    yield f"Predictor, one image and {many}: Predictor / bare tower and head", ratio, time_of_all
    ratio, time_of_one = t["predictor"] / t["one"], f"{1000 * t['one']:.0f} ms for one"
    yield f"Predictor, one image: {many} / one label", ratio, time_of_one

    logits = split_scores(predictor.model, data.test, data, predictor.config)
    panel = Panel(predictor, data.test, data.labels, logits)

    def move(slider):
        def run():
            slider.value = slider.max / 2 if slider.value != slider.max / 2 else slider.max / 3

        return run

    moves = {"threshold": move(panel.threshold), "temperature": move(panel.temperature)}
    t = side_by_side(moves | {"answer": all_labels})
    for name in moves:
        note = f"{1000 * t[name]:.0f} ms in the kernel"
        yield f"panel, a move of the {name} / an answer of the Predictor", t[name] / t["answer"], note
