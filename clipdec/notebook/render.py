"""What the panel shows, as HTML and pictures: pure functions. Names come from outside and are escaped here."""

import base64
import csv
import io
from html import escape

import numpy as np
from PIL import Image

from clipdec.notebook.plots import SEEN, UNSEEN

ROW = "var(--jp-widgets-inline-height, 28px)"  # height of a button, beside which a bar stands
HATCH = f"repeating-linear-gradient(45deg,{UNSEEN} 0 5px,#7a5200 5px 7px)"  # unseen without its colour, too


def bars(ranks, marks, probabilities, threshold):
    """Beside the button of each label its rank, mark ("seen", "unseen", "new"), bar with the threshold, probability."""
    rows = "".join(_bar(rank, mark, float(p), threshold) for rank, mark, p in zip(ranks, marks, probabilities))
    columns = f"grid-template-columns:2.5em 4em 1fr 3.3em;grid-auto-rows:{ROW}"
    return f'<div style="display:grid;{columns};column-gap:6px;align-items:center;line-height:1.2">{rows}</div>'


def _bar(rank, mark, probability, threshold):
    fill = f"width:{100 * probability:.1f}%;height:100%;background:{SEEN if mark == 'seen' else HATCH}"
    line = f"position:absolute;top:-4px;bottom:-4px;left:{100 * threshold:.1f}%;border-left:2px dotted currentColor"
    bar = f'<div style="{fill}"></div><div style="{line}"></div>'
    strength = "bold" if probability >= threshold else "normal"
    return (
        f'<span style="text-align:right">{rank}.</span><span>{mark}</span>'
        f'<div style="position:relative;background:#8883;height:1.1em">{bar}</div>'
        f'<span style="font-weight:{strength}">{probability:.3f}</span>'
    )


def sets(predicted, true, hidden=0):
    """The names that are predicted, and `hidden` more, and those that are true, or None where nobody knows."""
    more = f" and {hidden} more" if hidden else ""
    lines = [f"<b>predicted</b>: {escape(', '.join(predicted)) + more or 'nothing at this threshold'}"]
    if true is not None:
        lines.append(f"<b>true</b>: {escape(', '.join(true)) or 'none of the labels asked about'}")
    return f'<div style="line-height:1.4;overflow-wrap:anywhere">{"<br>".join(lines)}</div>'


def figures(rows, foot=""):
    """Precision, recall and F1 as a table. rows: [(name, (precision, recall, F1))], in 0..1, nan shown as a dash."""
    style = 'style="padding:0 8px;text-align:right"'
    head, body = "".join(f'<th scope="col" {style}>{name}</th>' for name in ("precision", "recall", "F1")), ""
    for name, values in rows:
        cells = "".join(f"<td {style}>{'–' if x != x else f'{100 * x:.1f} %'}</td>" for x in values)
        body += f'<tr><th scope="row" style="text-align:left;font-weight:normal">{escape(name)}</th>{cells}</tr>'
    table = f'<table style="line-height:1.5"><tr><td></td>{head}</tr>{body}</table>'
    return f'{table}<div style="line-height:1.4">{escape(foot)}</div>'


def message(text, wrong=False):
    """A line about what happened: `wrong` ones are announced to screen readers at once."""
    style = "border-left:4px solid #D55E00;padding-left:8px;font-weight:bold" if wrong else "opacity:0.85"
    role = "alert" if wrong else "status"
    return text and f'<div role="{role}" style="{style};line-height:1.4;overflow-wrap:anywhere">{escape(text)}</div>'


def picture(image, alt, width):
    """A PIL image as an HTML image with a text for those who cannot see it, `width` px wide."""
    height = max(1, round(width * min(4, image.height / image.width)))  # a strip is squeezed
    file = io.BytesIO()
    image.resize((width, height), Image.BILINEAR).save(file, "PNG", compress_level=1)
    source = f'src="data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}" alt="{escape(alt)}"'
    return f'<img {source} width="{width}" height="{height}" style="max-width:none;display:block">'


def table_link(image, tables):
    """A link whose target is a table as CSV, so that no file is written before it is asked for.

    Args: image, what it is called; tables, [(model, [(rank, label, kind, probability, predicted, true)])].
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "model", "rank", "label", "kind", "probability", "predicted", "true"])
    writer.writerows([image, model, *row] for model, rows in tables for row in rows)
    target = f"data:text/csv;charset=utf-8;base64,{base64.b64encode(text.getvalue().encode()).decode()}"
    name = "".join(letter if letter.isalnum() or letter in "-." else "_" for letter in image)
    return f'<a href="{target}" download="{escape(name)}.csv" style="text-decoration:underline">table as CSV</a>'


def captioned(pictures, width):
    """Pictures in a row, each above its caption. pictures: [(picture's HTML, caption)]."""
    texts = [(image, f'<figcaption style="line-height:1.3">{escape(text)}</figcaption>') for image, text in pictures]
    cells = "".join(f'<figure style="margin:0;width:{width}px">{image}{text}</figure>' for image, text in texts)
    return f'<div style="display:flex;gap:8px">{cells}</div>'


def darkened(image, attention):
    """An image that is dark where a label did not look. attention: [H, W] or coarser, over the whole image."""
    attention = np.asarray(attention, dtype=np.float32)
    peak = attention.max()
    light = 0.15 + 0.85 * attention / peak if peak > 0 else np.ones_like(attention)
    mask = Image.fromarray(np.uint8(255 * light)).resize(image.size, Image.BILINEAR)
    return Image.composite(image.convert("RGB"), Image.new("RGB", image.size), mask)
