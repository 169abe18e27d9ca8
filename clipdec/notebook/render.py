"""What the panel shows, as HTML and pictures: pure functions. Names come from outside and are escaped here."""

import base64
import html
import io

import numpy as np
from PIL import Image

from clipdec.notebook.plots import SEEN, UNSEEN

ROW = "var(--jp-widgets-inline-height, 28px)"  # height of a button, beside which a bar stands
HATCH = f"repeating-linear-gradient(45deg,{UNSEEN} 0 5px,#7a5200 5px 7px)"  # unseen without its colour, too


def bars(ranks, marks, probabilities, threshold):
    """A bar for each label beside its button: rank, mark in words, bar (seen plain blue, others hatched orange), probability.

    Args: ranks, from 1; marks, "seen", "unseen" or "new"; probabilities in 0..1; threshold in 0..1, drawn as a dotted line.
    """
    rows = "".join(_bar(rank, mark, float(p), threshold) for rank, mark, p in zip(ranks, marks, probabilities))
    columns = f"grid-template-columns:2.5em 4em 1fr 3em;grid-auto-rows:{ROW}"
    return f'<div style="display:grid;{columns};column-gap:6px;align-items:center;line-height:1.2">{rows}</div>'


def _bar(rank, mark, probability, threshold):
    fill = f"width:{100 * probability:.1f}%;height:100%;background:{SEEN if mark == 'seen' else HATCH}"
    line = f"position:absolute;top:-4px;bottom:-4px;left:{100 * threshold:.1f}%;border-left:2px dotted currentColor"
    strength = "bold" if probability >= threshold else "normal"
    return (
        f'<span style="text-align:right">{rank}.</span><span>{mark}</span>'
        f'<div style="position:relative;background:#8883;height:1.1em"><div style="{fill}"></div><div style="{line}"></div></div>'
        f'<span style="font-weight:{strength}">{probability:.3f}</span>'
    )


def sets(predicted, true, hidden=0):
    """The labels that are predicted and those that are there, as HTML. Of many, `hidden` are not listed.

    Args: predicted, true: lists of names; true is None where nobody knows, as for a photo of one's own.
    """
    more = f" and {hidden} more" if hidden else ""
    lines = [f"<b>predicted</b>: {html.escape(', '.join(predicted)) + more or 'nothing at this threshold'}"]
    if true is not None:
        lines.append(f"<b>true</b>: {html.escape(', '.join(true)) or 'none of the labels asked about'}")
    return f'<div style="line-height:1.4;overflow-wrap:anywhere">{"<br>".join(lines)}</div>'


def figures(rows, foot=""):
    """Precision, recall and F1 as a table. rows: [(name, (precision, recall, F1))], in 0..1, nan shown as a dash."""
    cell = '<td style="padding:0 8px;text-align:right">'
    head = "".join(f'<th scope="col" style="padding:0 8px;text-align:right">{name}</th>' for name in ("precision", "recall", "F1"))
    body = "".join(
        f'<tr><th scope="row" style="text-align:left;font-weight:normal">{html.escape(name)}</th>'
        + "".join(f"{cell}{'–' if x != x else f'{100 * x:.1f} %'}</td>" for x in values) + "</tr>"
        for name, values in rows
    )  # fmt: skip
    return f'<table style="line-height:1.5"><tr><td></td>{head}</tr>{body}</table><div style="line-height:1.4">{html.escape(foot)}</div>'


def message(text, wrong=False):
    """A line about what happened: `wrong` ones are announced to screen readers at once."""
    if not text:
        return ""
    colour = "border-left:4px solid #D55E00;padding-left:8px;font-weight:bold" if wrong else "opacity:0.85"
    return f'<div role="{"alert" if wrong else "status"}" style="{colour};line-height:1.4;overflow-wrap:anywhere">{html.escape(text)}</div>'


def picture(image, alt, width):
    """A PIL image as an HTML image with a text for those who cannot see it, `width` px wide."""
    file, height = io.BytesIO(), max(1, round(width * image.height / image.width))
    image.resize((width, height), Image.BILINEAR).save(file, "PNG", compress_level=1)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{html.escape(alt)}" width="{width}" height="{height}" style="max-width:none;display:block">'


def captioned(pictures, width):
    """Pictures in a row, each above its caption. pictures: [(picture's HTML, caption)]."""
    cells = "".join(f'<figure style="margin:0;width:{width}px">{image}<figcaption style="line-height:1.3">{html.escape(text)}</figcaption></figure>' for image, text in pictures)
    return f'<div style="display:flex;gap:8px">{cells}</div>'


def darkened(image, attention):
    """An image that is dark where a label did not look. attention: [H, W] or coarser, over the whole image."""
    attention = np.asarray(attention, dtype=np.float32)
    peak = attention.max()
    light = 0.15 + 0.85 * attention / peak if peak > 0 else np.ones_like(attention)
    mask = Image.fromarray(np.uint8(255 * light)).resize(image.size, Image.BILINEAR)
    return Image.composite(image.convert("RGB"), Image.new("RGB", image.size), mask)
