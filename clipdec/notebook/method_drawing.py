"""The method in one drawing: both branches, from an image and its labels to the two losses."""

import matplotlib.pyplot as plt

COLOURS = {"data": "#EEEEEE", "given": "#CFE6F5", "trained": "#FBE3B4", "loss": "#C9EBDD"}
KINDS = {"data": "data, vectors", "given": "pretrained", "trained": "new, trained", "loss": "loss"}
PARTS = {  # name: (column, row, text, kind)
    "labels": (0, 3.3, "names of\nthe labels", "data"), "label_tower": (1, 3.3, "text\ntower", "given"),
    "queries": (2, 3.3, "queries $q$\n[L, D]", "data"), "query_proj": (3, 3.3, "linear, ReLU\n$a$ [L, d]", "trained"),
    "targets": (5, 3.3, "targets $y$\n[B, L]", "data"),
    "image": (0, 2.3, "image\n[B, 3, H, W]", "data"), "image_tower": (1, 2.3, "image\ntower", "given"),
    "tokens": (2, 2.3, "tokens $x$\n[B, N, C]", "data"),
    "token_proj": (3, 2.3, "linear, ReLU\n$t$ [B, N, d]", "trained"),
    "decoder": (4, 2.3, "decoder:\neach label looks\nat the tokens\n$f$ [B, L, d]", "trained"),
    "logits": (5, 2.3, "logits $z$\n[B, L]", "data"), "l_c": (6, 2.3, "$L_c$\nasymmetric", "loss"),
    "mean": (3, 1, "mean over\nthe tokens", "data"), "image_proj": (4, 1, "projection $W_v$", "trained"),
    "image_vector": (5, 1, "$v$ [B, P]", "data"), "loss": (6, 1.65, r"$\alpha\,L_{clip} + \beta\,L_c$", "loss"),
    "sentence": (0, 0, "sentence of\nits labels", "data"), "sentence_tower": (1, 0, "text\ntower", "given"),
    "sentence_vector": (2, 0, "$s$ [B, S]", "data"), "text_proj": (4, 0, "projection $W_c$", "trained"),
    "text_vector": (5, 0, "$c$ [B, P]", "data"), "l_clip": (6, 1, "$L_{clip}$\nInfoNCE", "loss"),
}  # fmt: skip
PATHS = (
    "labels label_tower queries query_proj decoder", "targets l_c loss",
    "image image_tower tokens token_proj decoder logits l_c", "token_proj mean image_proj image_vector l_clip loss",
    "sentence sentence_tower sentence_vector text_proj text_vector l_clip",
)  # fmt: skip
ARROWS = [pair for path in PATHS for pair in zip(path.split(), path.split()[1:])]


def method_drawing(lit=None):
    """The drawing as a figure. `lit`: names of PARTS to be seen clearly, the others are pale; None: all.

    Raises ValueError for a name that is no part.
    """
    lit = set(PARTS if lit is None else lit)
    if lit - PARTS.keys():
        raise ValueError(f"no part of the drawing: {', '.join(sorted(lit - PARTS.keys()))}; see PARTS")
    figure, axis = plt.subplots(figsize=(8.8, 4.4), layout="constrained")
    boxes = {name: _box(axis, *part, 1.0 if name in lit else 0.2) for name, part in PARTS.items()}
    for start, end in ARROWS:
        _arrow(axis, boxes[start], boxes[end], 1.0 if {start, end} <= lit else 0.15)
    for column, (kind, text) in enumerate(KINDS.items()):
        _box(axis, 1.6 + 1.3 * column, -0.75, text, kind, 1.0)
    axis.text(-0.45, 3.9, "classification: is label $\\ell$ in the image?", fontsize=9, style="italic", ha="left")
    axis.text(-0.45, 0.5, "alignment: which sentence is about the image?", fontsize=9, style="italic", ha="left")
    axis.set(xlim=(-0.55, 6.6), ylim=(-1.0, 4.1))
    axis.axis("off")
    return figure


def _box(axis, column, row, text, kind, alpha):
    look = {"boxstyle": "round,pad=0.4", "facecolor": COLOURS[kind], "edgecolor": "#444444", "alpha": alpha}
    return axis.text(column, row, text, ha="center", va="center", fontsize=8, bbox=look, alpha=alpha)


def _arrow(axis, start, end, alpha):
    """From the box of one text to that of another, along the grid: sideways first, then up or down."""
    (x, y), (to_x, to_y) = start.get_position(), end.get_position()
    bent = "angle,angleA=0,angleB=90" if x != to_x and y != to_y else "arc3"
    look = {"arrowstyle": "-|>", "color": "#444444", "alpha": alpha, "connectionstyle": bent}
    ends = {"patchA": start.get_bbox_patch(), "patchB": end.get_bbox_patch(), "shrinkA": 0, "shrinkB": 0}
    axis.annotate("", (to_x, to_y), (x, y), arrowprops=look | ends)
