"""A panel over a trained CLIP-Decoder: any labels, a threshold, and where each label looked.

The functions that render are pure; `panel` only wires controls to them.
"""

import html
import io
from functools import lru_cache

import ipywidgets as widgets
import numpy as np
from PIL import Image

from clipdec.plots import SEEN, UNSEEN

TOP = 12  # labels shown
SIDE = 256  # px at which a scene is shown


def parse_labels(text, known=()):
    """The names between commas, each once, empty ones left out; a name of `known` gets the spelling that it has there."""
    spelling = {name.casefold(): name for name in known} | {name: name for name in known}
    names = (name.strip() for name in text.split(","))
    return list(dict.fromkeys(spelling.get(name, spelling.get(name.casefold(), name)) for name in names if name))


def set_figures(predicted, true):
    """(precision, recall, F1) in 0..1 of a set of predicted labels; nan where nothing is predicted, or nothing is true."""
    hits = len(predicted & true)
    precision = hits / len(predicted) if predicted else float("nan")
    recall = hits / len(true) if true else float("nan")
    return precision, recall, 2 * hits / (len(predicted) + len(true)) if predicted or true else float("nan")


def render_bars(names, probabilities, marks, true, threshold):
    """Score bars as HTML: seen blue, others orange, each with its mark in words; true labels bold with a tick.

    Args: names, probabilities in 0..1, marks ("seen", "unseen" or "new"), one of each for a bar; true, a set of names;
        threshold in 0..1, drawn as a dotted line.
    """
    rows = "".join(_bar(n, float(p), m, n in true, threshold) for n, p, m in zip(names, probabilities, marks))
    return f'<div style="display:grid;grid-template-columns:minmax(6em,14em) 4em 12em 3em;gap:3px 8px;line-height:1.2">{rows}</div>'


def _bar(name, probability, mark, is_true, threshold):
    text = f"<b>&#10003; {html.escape(name)}</b>" if is_true else html.escape(name)
    fill = f"width:{100 * probability:.1f}%;height:100%;background:{SEEN if mark == 'seen' else UNSEEN}"
    line = f"position:absolute;top:-2px;bottom:-2px;left:{100 * threshold:.1f}%;border-left:2px dotted currentColor"
    return (
        f'<span style="overflow-wrap:anywhere">{text}</span><span>{mark}</span>'
        f'<div style="position:relative;background:#8883;height:1.1em"><div style="{fill}"></div><div style="{line}"></div></div>'
        f"<span>{probability:.2f}</span>"
    )


def render_summary(predicted, true, judged):
    """What a threshold predicts for the scene, as HTML: its true labels, and precision, recall and F1 over them.

    Args: predicted, true, judged: sets of names; judged are those that the data set annotates, others are not counted.
    """
    figures = ("undefined" if x != x else f"{x:.2f}" for x in set_figures(predicted & judged, true))
    scores = ", ".join(f"{name} {x}" for name, x in zip(("precision", "recall", "F1"), figures))
    new = len(predicted - judged)
    aside = f", of which {new} that the data set does not annotate" if new else ""
    return (
        f"<div>true: {html.escape(', '.join(sorted(true))) or 'none of the labels asked about'}<br>"
        f"predicted at this threshold: {len(predicted)}{aside}; {scores}</div>"
    )


def render_image(image):
    """A PIL image as PNG bytes, SIDE px wide."""
    file = io.BytesIO()
    image.resize((SIDE, max(1, round(SIDE * image.height / image.width))), Image.BILINEAR).save(file, "PNG", compress_level=1)
    return file.getvalue()


def render_attention(image, attention):
    """An image darkened where a label did not look, as PNG bytes. attention: [rows, columns], over the whole image
    (a tower whose preprocessing crops sees less than that of an image that is not square)."""
    attention = np.asarray(attention, dtype=np.float32)
    peak = attention.max()
    light = 0.15 + 0.85 * attention / peak if peak > 0 else np.ones_like(attention)
    mask = Image.fromarray(np.uint8(255 * light)).resize(image.size, Image.BILINEAR)
    return render_image(Image.composite(image.convert("RGB"), Image.new("RGB", image.size), mask))


def panel(predictor, split, labels):
    """Controls for one scene of a split and the labels to ask about, with score bars, the scene, and an attention map.

    Args:
        predictor: a Predictor, or anything with its `explain`.
        split: a Split over the LabelSpace `labels`.

    Returns: a VBox whose children are scene, labels, threshold, ranking, attention, and an HBox of (bars, scene, overlay).
    """
    if not len(split):
        raise ValueError(f"the split {split.name} holds no scene: give another one")
    kinds = dict.fromkeys(labels.seen, "seen") | dict.fromkeys(labels.unseen, "unseen")
    style = {"style": {"description_width": "6em"}}
    scene = widgets.BoundedIntText(0, min=0, max=len(split) - 1, description="scene", **style)
    asked = widgets.Text(placeholder="comma separated; empty: all of the data set", description="labels", continuous_update=False, **style)
    threshold = widgets.FloatSlider(0.5, min=0, max=1, step=0.01, description="threshold", **style)
    tasks = [("seen + unseen (GZSL)", "gzsl"), ("unseen only (ZSL)", "zsl")]
    ranking = widgets.ToggleButtons(options=tasks, description="ranking", **style)
    look = widgets.Dropdown(description="attention of", **style)
    bars, picture, overlay = widgets.HTML(), widgets.Image(width=SIDE), widgets.Image(width=SIDE)
    view = widgets.HBox([bars, picture, overlay])

    @lru_cache(maxsize=32)  # moving the threshold or the ranking asks the model nothing
    def explained(index, names):
        return [np.asarray(x) for x in predictor.explain(split.image(index), list(names))]

    def ranked():
        """Names, probabilities and maps of the labels that are ranked, the most probable first."""
        names = tuple(parse_labels(asked.value, labels.names) or labels.names)
        probabilities, maps = explained(scene.value, names)
        # a label's score does not depend on the other labels, so leaving the seen ones out afterwards is exact
        order = [i for i in np.argsort(-probabilities, kind="stable") if ranking.value == "gzsl" or kinds.get(names[i]) != "seen"]
        if not order:
            raise ValueError("every label asked about is seen: choose seen + unseen, or ask about others")
        return [names[i] for i in order], probabilities[order], maps[order]

    def show_scores():
        names, probabilities, _ = ranked()
        true = {labels.names[i] for i in split.targets[scene.value].nonzero().flatten()} & set(names)
        predicted = {n for n, p in zip(names, probabilities) if p >= threshold.value}
        top, chosen = names[:TOP], look.value
        marks = [kinds.get(n, "new") for n in top]
        bars.value = render_summary(predicted, true, set(kinds)) + render_bars(top, probabilities, marks, true, threshold.value)
        if look.options != tuple(top):
            look.options = top
            look.value = chosen if chosen in top else top[0]

    def show_attention():
        names, _, maps = ranked()
        image = split.image(scene.value)
        picture.value = render_image(image)
        overlay.value = render_attention(image, maps[names.index(look.value)])

    def answers(*steps):
        """An observer that runs steps and shows an error as text: a callback has no other place for it."""

        def run(change=None):
            try:
                for step in steps:
                    step()
                picture.layout.display = overlay.layout.display = ""
            except Exception as error:
                bars.value = f"<b>{html.escape(str(error))}</b>"
                picture.layout.display = overlay.layout.display = "none"

        return run

    for control in (scene, asked, ranking):
        control.observe(answers(show_scores, show_attention), "value")
    threshold.observe(answers(show_scores), "value")
    look.observe(answers(show_attention), "value")
    answers(show_scores, show_attention)()
    return widgets.VBox([scene, asked, threshold, ranking, look, view])
