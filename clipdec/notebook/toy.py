"""A toy of the metrics: a small table of logits, AP under its columns, F1@K beside its rows. Pure functions."""

import base64
import io
from html import escape

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from clipdec.metrics import average_precision, precision_recall_f1
from clipdec.notebook.plots import SEEN, UNSEEN

PICKED = {"gzsl": "#D9D9D9", "zsl": "#CC79A7"}  # grounds of an image's best K of all labels; bars of its best K unseen
CELL = 0.9, 0.5  # width and height of a cell, inches
KEY = "framed: the label is there.  grey: best {k} of all (GZSL).  bar below: best {k} of the unseen (ZSL)."


def readings(z, y, labels, k=2, offset=0.0):
    """What the protocol reads from a table, once `offset` is taken off its seen columns. Figures in 0..1, nan: none.

    Args: logits z and targets y [M, L] over the labels of the LabelSpace `labels`; k, at most its unseen labels.
    Returns: {"z": [M, L], "ap": [L], "picked": {task: bool [M, L], each image's best k}, "row_f1": {task: [F1@k of each
        image]}, "f1" and "map": {task: number}}, tasks "gzsl" and "zsl".
    """
    first = len(labels.seen)
    z = z - offset * (torch.arange(len(labels.names)) < first)
    found = {"z": z, "ap": average_precision(z, y), "picked": {}, "row_f1": {}, "f1": {}, "map": {}}
    for task, start in (("gzsl", 0), ("zsl", first)):
        part, true = z[:, start:], y[:, start:]
        best = start + part.topk(k, dim=1).indices  # [M, k]
        found["picked"][task] = torch.zeros(z.shape, dtype=torch.bool).scatter(1, best, True)
        found["row_f1"][task] = [precision_recall_f1(part[[m]], true[[m]], k)[2] for m in range(len(z))]
        found["f1"][task] = precision_recall_f1(part, true, k)[2]
        found["map"][task] = found["ap"][start:].nanmean().item()
    return found


def table(found, y, labels, pictures=(), column=None, row=None, figures=True):
    """The table as a figure: true cells framed, each image's picks marked, AP, F1@K and mAP around it.

    Args: found, what `readings` returns; y [M, L]; pictures: an image a row, if any; column, row: numbers of the ones
        to be lit, the other cells are pale; figures: False leaves AP, F1@K, mAP and the picks out.
    """
    (images, count), first = y.shape, len(labels.seen)
    left, right, foot = 1.75, count + (2.65 if figures else 0.2), 3.1 if figures else 0.1  # around the cells, in cells
    width, height = CELL[0] * (left + right), CELL[1] * (images + 1.0 + foot)
    figure = Figure(figsize=(width, height))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(-left, right), ylim=(images + foot, -1.0))
    axis.axis("off")
    for j, name in enumerate(labels.names):
        ground, ink = (SEEN, "white") if j < first else (UNSEEN, "black")
        _box(axis, _left(j, first), -0.85, ground, alpha=_pale(column, j))
        ink = ink if _pale(column, j) == 1 else "#555555"
        _write(axis, _left(j, first) + 0.5, -0.45, name.replace("$", r"\$"), color=ink, weight="bold")
    for m in range(images):
        _write(axis, -0.75, m + 0.45, f"image {m + 1}", ha="right", alpha=_pale(row, m))
        if len(pictures):
            side = 0.8 * CELL[1] / CELL[0]  # square on paper
            extent = (-0.14 - side, -0.14, m + 0.85, m + 0.05)
            axis.imshow(pictures[m], extent=extent, aspect="auto", alpha=_pale(row, m))
        for j in range(count):
            alpha = min(_pale(row, m), _pale(column, j))
            _cell(axis, _left(j, first), (m, j), found, bool(y[m, j]), figures, alpha)
    if figures:
        _margins(axis, found, first, int(found["picked"]["gzsl"][0].sum()))
    return figure


def _left(j, first):
    """Where column j begins: there is a gap between seen and unseen ones."""
    return j + 0.15 * (j >= first)


def _pale(lit, place):
    return 1.0 if lit is None or lit == place else 0.22


def _box(axis, x, y, ground="none", edge="none", height=0.8, **look):
    look |= {"facecolor": ground, "edgecolor": edge, "linewidth": 1.8}
    axis.add_patch(Rectangle((x + 0.04, y), 0.92, height, **look))


def _write(axis, x, y, text, ha="center", **look):
    axis.text(x, y, text, ha=ha, va="center", fontsize=9, **look)


def _cell(axis, x, place, found, true, figures, alpha):
    y, picked = place[0], {task: figures and bool(found["picked"][task][place]) for task in PICKED}
    _box(axis, x, y + 0.05, PICKED["gzsl"] if picked["gzsl"] else "none", alpha=alpha)
    if picked["zsl"]:
        _box(axis, x, y + 0.74, PICKED["zsl"], height=0.11, alpha=alpha)
    if true:
        _box(axis, x, y + 0.05, edge="black", alpha=alpha)
    _write(axis, x + 0.5, y + 0.4, f"{found['z'][place]:.1f}", weight="bold" if true else "normal", alpha=alpha)


def _margins(axis, found, first, k):
    images, count = found["z"].shape
    _write(axis, -0.14, images + 0.35, "AP of the column", ha="right")
    for j, value in enumerate(found["ap"].tolist()):
        _write(axis, _left(j, first) + 0.5, images + 0.35, _number(value))
    for x, task in ((count + 0.9, "gzsl"), (count + 2.0, "zsl")):
        _write(axis, x, -0.45, f"{task.upper()}\nF1@{k}", weight="bold")
        for m, value in enumerate(found["row_f1"][task]):
            _write(axis, x, m + 0.45, _number(value))
        _write(axis, x, images + 1.05, _number(found["f1"][task]), weight="bold")
        _write(axis, x, images + 1.75, _number(found["map"][task]), weight="bold")
    for y, text in ((images + 1.05, f"F1@{k}, all rows pooled"), (images + 1.75, "mAP, mean of the APs")):
        _write(axis, _left(count, first), y, text, ha="right", weight="bold")
    _write(axis, -1.7, images + 2.6, KEY.format(k=k), ha="left")


def _number(value):
    return "–" if value != value else f"{value:.3f}"


def words(found, labels):
    """What the table shows, in words."""
    ap = ", ".join(f"{name} {_number(value)}" for name, value in zip(labels.names, found["ap"].tolist()))
    text = f"Table of logits, images by labels, with AP below: {ap}"
    for task in PICKED:
        rows = ", ".join(map(_number, found["row_f1"][task]))
        text += f". {task.upper()}: mAP {_number(found['map'][task])}, F1 {_number(found['f1'][task])}, by image {rows}"
    return text


def html(z, y, labels, k=2, offset=0.0, pictures=()):
    """The table and its words as HTML, for a widget. Arguments as of `readings` and `table`."""
    found, file = readings(z, y, labels, k, offset), io.BytesIO()
    table(found, y, labels, pictures).savefig(file, format="png", dpi=100)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{escape(words(found, labels))}" style="max-width:100%">'
