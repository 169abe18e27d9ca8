"""Figures of the notebooks, by matplotlib; `show` displays one with a text for those who cannot see it."""

import base64
import io
import textwrap
from functools import partial
from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import display
from matplotlib.ticker import MaxNLocator

from clipdec.towers import UNIT
from clipdec.training.report import CURVES

SEEN, UNSEEN = "#0072B2", "#E69F00"  # blue and orange: told apart by colour-blind readers too
COLOURS = [SEEN, UNSEEN, "#009E73", "#CC79A7", "#56B4E9"]
TASKS = "zsl", "gzsl"
METHODS = {  # colour, marker and line of a method in every figure: by the first of these that is part of its name
    "this repository's head": ("#AA3377", "*", "-"), "the paper's head": ("#009E73", "D", "--"),
    "the author's points": ("#8C510A", "X", "--"), "CLIP-Decoder": ("#AA3377", "*", "-"), "BiAM": ("black", "v", "-."),
    "MLP on tokens": ("#757524", "P", ":"), "raw CLIP": ("#888888", "o", ":"),
    "untouched CLIP": ("#888888", "o", ":"), "windows": ("#BBBBBB", "s", ":"), "chance": ("#DDDDDD", ".", ":"),
}  # fmt: skip
OTHERS = ("#CC3311", "h", "-."), ("#555555", "<", "-"), ("#994F00", ">", ":"), ("#666633", "p", "--")  # in turn
BLOCKS = {"training-free": "o", "transductive": "^", "trained on seen labels": "s"}  # markers of the others
LINE = 0.165  # inches, of text below a picture
ZERO = 0.4  # where zero is drawn on a logarithmic axis
BARE = {"frame_on": False, "xticks": (), "yticks": ()}  # axes that hold a picture
_subplots = partial(plt.subplots, layout="constrained")


def show(figure, alt, dpi=None, display=display):
    """Display a figure, or a PIL image, as PNG with `alt`, what it shows in words, as alternative text, and close it.

    display: IPython's, or the `update` of a display handle, whose picture it replaces.
    """
    file = io.BytesIO()
    if hasattr(figure, "savefig"):
        figure.savefig(file, format="png", dpi=dpi or "figure")
        plt.close(figure)
    else:
        figure.save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    display({"image/png": data, "text/plain": alt}, raw=True, metadata={"image/png": {"alt": alt}})


def method_looks(names):
    """{name: its colour, marker and line}: those of METHODS, and for any other name the next of OTHERS."""
    others = cycle(OTHERS)
    known = {name: [look for part, look in METHODS.items() if part in name] for name in names}
    return {name: looks[0] if looks else next(others) for name, looks in known.items()}


def scene_grid(split, labels, indices, columns=6):
    """Images of a split, each above its labels: seen ones in blue, unseen ones on orange and with an asterisk."""
    cells, rows = [split[i] for i in indices], max(1, -(-len(indices) // columns))
    names, width = [_below(targets, labels) for _, targets in cells], min(1.7, 8.5 / columns)
    height = width + LINE * (max(map(len, names), default=0) + 0.7)
    figure, axes = _subplots(rows, columns, figsize=(width * columns, height * rows), squeeze=False, subplot_kw=BARE)
    for axis, (image, _), lines in zip(axes.flat, cells, names):
        axis.imshow(image)
        axis.set_anchor("N")
        for i, (text, look) in enumerate(lines):
            place = {"xycoords": "axes fraction", "textcoords": "offset points", "ha": "center", "va": "top"}
            axis.annotate(text, (0.5, 0), (0, -72 * LINE * (i + 0.25)), fontsize=8.5, **place, **look)
    return figure


def _below(targets, labels, width=21, most=8):
    """[(line, look)] of an image's label names, the last one the number of those that are left out."""
    unseen = {"color": "black", "bbox": {"facecolor": UNSEEN, "edgecolor": "none", "pad": 0.8}}
    lines, there = [], targets.nonzero().flatten().tolist()
    for left, j in zip(range(len(there), 0, -1), there):
        name, look = (labels.names[j], {"color": SEEN}) if j < len(labels.seen) else (labels.names[j] + "*", unseen)
        parts = textwrap.wrap(name.replace("$", r"\$"), width)
        if len(lines) + len(parts) + (left > 1) > most:
            return [*lines, (f"and {left} more", {"color": "black"})]
        lines += [(part, look) for part in parts]
    return lines


def label_frequencies(splits, labels):
    """How many images carry each label, most frequent first, on logarithmic axes. Zero has a place below 1."""
    figure, axes = _subplots(1, len(splits), figsize=(8.6, 2.8), sharey=True, squeeze=False)
    kinds = ("seen", labels.seen_index.numpy(), "-", SEEN), ("unseen", labels.unseen_index.numpy(), "--", UNSEEN)
    for axis, split in zip(axes.flat, splits):
        counts = split.targets.sum(0).numpy()
        for kind, index, style, colour in kinds:
            values, ranks = np.maximum(np.sort(counts[index])[::-1], ZERO), np.arange(1, len(index) + 1)
            if counts[index].any():
                axis.loglog(ranks, values, style, color=colour, label=f"{kind} ({len(index)})")
        axis.axhline(ZERO**0.5, color="grey", linewidth=0.8, linestyle=":")  # half-way from 0 to 1 on this axis
        axis.set_title(f"{split.name}, {len(split)} images", fontsize=10)
        axis.set(xlabel="rank of the label", ylim=(0.75 * ZERO, None))
        if counts.any():
            axis.legend(frameon=False, fontsize=9)
    top = max((split.targets.sum(0).max().item() for split in splits if split.targets.numel()), default=1)
    ticks = [10**i for i in range(len(str(top)))]
    axes[0, 0].set_yticks([ZERO, *ticks], ["0", *map(str, ticks)])
    axes[0, 0].minorticks_off()
    axes[0, 0].set_ylabel("images")
    return figure


def matrix(values, rows, columns, title="", cmap="viridis"):
    """A small matrix with its numbers written in, such as cosines between names."""
    figure, axis = _subplots(figsize=(1.2 + 0.62 * len(columns), 1 + 0.36 * len(rows)))
    values = np.asarray(values)
    axis.imshow(values, cmap=cmap, aspect="auto")
    middle = (values.max() + values.min()) / 2
    for (i, j), value in np.ndenumerate(values):
        colour = "white" if value < middle else "black"
        axis.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8, color=colour)
    axis.set_xticks(range(len(columns)), columns, rotation=45, ha="right", fontsize=8)
    axis.set_yticks(range(len(rows)), rows, fontsize=8)
    axis.set_title(title, fontsize=9)
    return figure


def score_bars(names, probabilities, unseen=(), true=(), threshold=None):
    """Labels of one image with their probabilities: seen blue, unseen orange, hatched and with an asterisk, true bold.
    """
    figure, axis = _subplots(figsize=(4.6, 0.5 + 0.24 * len(names)))
    looks = {"color": [UNSEEN if n in unseen else SEEN for n in names], "hatch": ["//" * (n in unseen) for n in names]}
    bars = axis.barh(range(len(names)), probabilities, **looks)
    white = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # over the threshold's line
    axis.bar_label(bars, fmt="%.3f", fontsize=7, padding=3, bbox=white)  # a bar near 0 cannot be seen
    axis.set_yticks(range(len(names)), [n.replace("$", r"\$") + "*" * (n in unseen) for n in names], fontsize=8)
    for tick, name in zip(axis.get_yticklabels(), names):
        tick.set_fontweight("bold" if name in true else "normal")
    axis.invert_yaxis()
    axis.set(xlim=(0, 1.1), xticks=np.linspace(0, 1, 6), xlabel="probability")  # room for the number beside a full bar
    if threshold is not None:
        axis.axvline(threshold, color="black", linestyle=":", linewidth=1)
    return figure


def attention_overlay(image, maps, names):
    """The image, then once for each label, darkened where the label did not look. maps: [L, rows, columns]."""
    figure, axes = _subplots(1, 1 + len(names), figsize=(1.9 * (1 + len(names)), 2.2), squeeze=False, subplot_kw=BARE)
    for axis, title in zip(axes.flat, ["image", *names]):
        axis.imshow(image)
        axis.set_title(title.replace("$", r"\$"), fontsize=8)
    dark = {"cmap": "gray", "extent": (0, image.width, image.height, 0), "interpolation": "bilinear"}
    for axis, values in zip(axes[0, 1:], np.asarray(maps)):
        axis.imshow(np.zeros_like(values), alpha=0.85 * (1 - values / values.max()), **dark)
    return figure


def windows_on(image, looks):
    """The image once for each title of `looks`, {title: windows as `windows_of` gives them}, with these outlined."""
    figure, axes = _subplots(1, len(looks), figsize=(2.4 * len(looks), 2.6), squeeze=False, subplot_kw=BARE)
    for axis, (title, windows) in zip(axes.flat, looks.items()):
        axis.imshow(image, extent=(0, UNIT, UNIT, 0))
        axis.set_title(title, fontsize=8)
        for i, (top, left, size) in enumerate(windows):
            inset = 0.5 + i % 5  # or the edges of some would lie on those of others
            look = {"fill": False, "edgecolor": COLOURS[i % len(COLOURS)], "linewidth": 1.2}
            axis.add_patch(plt.Rectangle((left + inset, top + inset), size - 2 * inset, size - 2 * inset, **look))
    return figure


def curves(history):
    """Losses and validation mAP by epoch. history: rows of history.csv, numbers."""
    figure, axes = _subplots(1, 3, figsize=(9, 2.5))
    for axis, title in zip(axes, ("L_c, asymmetric loss", "L_clip, alignment loss", "mAP on val, %")):
        axis.set(title=title, xlabel="epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    lines = [(0, "l_c", "", "-", "#444444"), (1, "l_clip", "", "-", "#444444")]
    lines += [(2, *named, *look) for named, look in zip(CURVES.items(), (("-", SEEN), ("--", UNSEEN)))]
    for place, key, name, style, colour in lines:
        if key in history[0]:
            points = [row["epoch"] for row in history], [row[key] for row in history]
            axes[place].plot(*points, style, marker="o", markersize=3, color=colour, label=name)
    axes[2].legend(frameon=False, fontsize=8)
    return figure


def metric_bars(results, key="map"):
    """ZSL and GZSL figures of several models side by side, each in the colour of its method, one that returns hatched.

    results: {model name: {"zsl": {...}, "gzsl": {...}}, or a list of these, one a seed: a bar at their mean, a dot for
    each}. No bar for a figure that does not exist (missing, None or nan).
    """
    figure, axis = _subplots(figsize=(7, 2.8))
    looks = method_looks(results)
    for i, (name, figures) in enumerate(results.items()):
        seeds = figures if isinstance(figures, list) else [figures]
        figures_of = ([each.get(task, {}).get(key) for task in TASKS] for each in seeds)
        values = np.array(list(figures_of), dtype=float)  # [seeds, 2]
        x = np.arange(2) + 0.8 * (i - (len(results) - 1) / 2) / len(results)
        again = looks[name][0] in [looks[other][0] for other in list(results)[:i]]  # one method twice: hatched
        look = {"color": looks[name][0], "hatch": "//" * again, "edgecolor": "white", "linewidth": 0}
        bars = axis.bar(x, values.mean(0), 0.75 / len(results), label=name, **look)
        axis.bar_label(bars, fmt="%.1f", fontsize=8, padding=2 + 3 * (len(seeds) > 1))
        if len(seeds) > 1:
            axis.plot(np.tile(x, len(seeds)), values.flatten(), "o", color="black", mfc="none", ms=3)
    axis.set(xticks=range(2), xticklabels=["ZSL", "GZSL"], ylabel="mAP, %" if key == "map" else f"{key.upper()}, %")
    axis.margins(y=0.1)
    axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def seed_points(results):
    """mAP of settings: a dot for a seed, a line at their mean. results: {name: {"zsl": [...], "gzsl": [...]}}."""
    figure, axes = _subplots(1, 2, figsize=(8.4, 0.9 + 0.3 * len(results)), sharey=True)
    for axis, task, colour in zip(axes, TASKS, (UNSEEN, "#666666")):  # of unseen labels; of all labels
        for row, values in enumerate(np.array(result[task], dtype=float) for result in results.values()):
            axis.plot(values, [row] * len(values), "o", color=colour, alpha=0.7, ms=5, mec="black", mew=0.4)
            axis.plot([np.mean(values)] * 2, [row - 0.3, row + 0.3], color="black")
        axis.set(xlabel=f"{task.upper()} mAP, %")
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(results)), list(results), fontsize=8)
    axes[0].invert_yaxis()
    return figure


def map_by_passes(points, named):
    """mAP against the tower's passes an image, in three columns each; what a system learned from says its marker.

    points: {system: {"passes", "block", "zsl", "gzsl"}}; named: {task: {system: text beside it}}, with the looks that
    this text has in METHODS.
    """
    figure, axes = _subplots(2, 1, figsize=(8.4, 7), sharex=True)
    shift = dict(zip(BLOCKS, (0.86, 1, 1.16)))
    budgets = sorted({point["passes"] for point in points.values()})
    looks = method_looks(text for task in TASKS for text in named[task].values())
    for axis, task in zip(axes, TASKS):
        for block, marker in BLOCKS.items():
            those = [point for point in points.values() if point["block"] == block]
            x, y = [point["passes"] * shift[block] for point in those], [point[task] for point in those]
            axis.plot(x, y, marker, mfc="none", mec="#666666", ms=5, label=block)
        for passes in budgets:
            here = [name for name in named[task] if points[name]["passes"] == passes]
            heights = _apart([points[name][task] for name in here], 4)
            for name, height in zip(here, heights):
                colour, marker, _ = looks[named[task][name]]
                x, y = passes * shift[points[name]["block"]], points[name][task]
                axis.plot(x, y, marker, color=colour, mec="black", mew=0.5, ms=8)
                axis.text(passes * 1.27, height, f"{named[task][name]} {y:.1f}", fontsize=8, va="center", color=colour)
        axis.set(xscale="log", ylabel=f"{task.upper()} mAP, %")
        axis.margins(y=0.1)
        axis.grid(axis="y", alpha=0.3)
    axes[1].set(xticks=budgets, xticklabels=budgets, xlabel="tower passes an image", xlim=(0.8, 5 * max(budgets)))
    axes[1].minorticks_off()
    axes[0].legend(frameon=False, fontsize=8, loc="upper left")
    return figure


def _apart(values, gap):
    """`values`, the higher ones moved up until there is `gap` between each two."""
    moved, last = list(values), -np.inf
    for i in np.argsort(values):
        moved[i] = last = max(values[i], last + gap)
    return moved


def forest(differences, sure):
    """Differences of mAP with their intervals, filled where they are `sure`: {name: {"zsl", "gzsl": difference}}."""
    figure, axes = _subplots(1, 2, figsize=(8.4, 0.9 + 0.22 * len(differences)), sharey=True)
    for axis, task in zip(axes, TASKS):
        for row, found in enumerate(each[task] for each in differences.values()):
            mean, low, high = np.array([found["mean"], *found["interval"]], dtype=float)  # no interval with one seed
            axis.plot([low, high], [row, row], color="black", linewidth=1)
            axis.plot(mean, row, "o", mec="black", mfc="black" if sure(found) else "white", ms=5)
        axis.axvline(0, color="black", linestyle=":", linewidth=1)
        axis.set(xlabel=f"{task.upper()} mAP, points")
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(differences)), list(differences), fontsize=8)
    axes[0].invert_yaxis()
    return figure


def steps(ladders):
    """What each step adds to mAP. ladders: {title: {step: {"zsl", "gzsl"}}}, of which the longest has all kinds of
    steps; a bar goes from the value before, 0 at first, to its own.
    """
    names = [f"{title}: {step}" for title, values in ladders.items() for step in values]
    kinds = list(max(ladders.values(), key=len))
    figure, axes = _subplots(1, 2, figsize=(8.4, 0.9 + 0.28 * len(names)), sharey=True)
    looks, hatches = method_looks(kinds), dict(zip(kinds, cycle(("", "//", "..", ""))))  # told apart without colour too
    for axis, task in zip(axes, TASKS):
        row = 0
        for values in ladders.values():
            before = 0
            for step, value in ((step, found[task]) for step, found in values.items()):
                look = {"color": looks[step][0], "hatch": hatches[step], "edgecolor": "white"}
                axis.barh(row, value - before, left=before, **look)
                text = f"{value - before:+.1f} → {value:.1f}" if before else f"{value:.1f}"
                axis.text(max(before, value) + 1, row, text, va="center", fontsize=8)
                before, row = value, row + 1
        axis.set(xlim=(0, 115), xlabel=f"{task.upper()} mAP, %")
    axes[0].set_yticks(range(len(names)), names, fontsize=8)
    axes[0].invert_yaxis()
    return figure


def learning_curves(groups, named):
    """mAP on val by epoch. groups: {title: {system: [mAP of each epoch]}}; named: {system: text at the height
    of its line's end}, with the looks that this text has in METHODS; the others are grey.
    """
    figure, axes = _subplots(len(groups), 1, figsize=(7, 0.4 + 2.2 * len(groups)), sharex=True, squeeze=False)
    looks = method_looks(named.values())
    for axis, (title, curves) in zip(axes.flat, groups.items()):
        here, longest = [name for name in named if name in curves], max(map(len, curves.values()), default=1)
        for name in [name for name in curves if name not in named]:
            axis.plot(range(1, 1 + len(curves[name])), curves[name], color="#999999", linewidth=0.8)
        gap = 0.1 * max(map(max, curves.values()), default=1)
        ends = _apart([curves[name][-1] for name in here], gap)
        for name, end in zip(here, ends):
            colour, marker, style = looks[named[name]]
            axis.plot(range(1, 1 + len(curves[name])), curves[name], style, marker=marker, ms=4, color=colour)
            axis.text(longest + 0.3, end, named[name], fontsize=8, va="center", color=colour)
        axis.set(ylabel="mAP on val, %", xlim=(0.5, 1.35 * longest), xticks=range(1, 1 + longest))
        axis.set_ylim(top=max([axis.get_ylim()[1], *(end + gap / 2 for end in ends)]))
        axis.set_title(title, fontsize=9)
    axes[-1, 0].set_xlabel("epoch")
    return figure


def score_histogram(scores, targets, seen):
    """Scores [M, L] of true seen labels, true unseen labels and absent ones; the first `seen` labels are seen."""
    figure, axis = _subplots(figsize=(6, 2.6))
    hist = partial(axis.hist, bins=np.histogram_bin_edges(scores.numpy(), 59), density=True)
    for name, part, colour, hatch in (("seen", slice(seen), SEEN, None), ("unseen", slice(seen, None), UNSEEN, "//")):
        values = scores[:, part][targets[:, part]]
        if len(values):
            label = f"true {name}, median {values.median():.2f}"
            hist(values.numpy(), alpha=0.6, color=colour, hatch=hatch, label=label)
    if not targets.all():
        hist(scores[~targets].numpy(), histtype="step", color="black", linestyle=":", label="absent labels")
    axis.set(xlabel="logit", ylabel="density")
    if len(scores):
        axis.legend(frameon=False, fontsize=8)
    return figure


def reliability_curves(groups):
    """How often labels of a probability are there. groups: {title: {curve: what `reliability` returns}}."""
    figure, axes = _subplots(1, len(groups), figsize=(3.6 * len(groups), 3.2), squeeze=False, sharey=True)
    looks = ("#888888", "--s"), (METHODS["CLIP-Decoder"][0], "-o"), ("black", ":^")
    for axis, (title, curves) in zip(axes.flat, groups.items()):
        axis.plot([0, 1], [0, 1], color="grey", linewidth=1, label="as it should be")
        for (name, (mean, share, _)), (colour, style) in zip(curves.items(), looks):
            axis.plot(mean, share, style, color=colour, markersize=4, label=name)
        axis.set(title=title, xlabel="probability", xlim=(0, 1), ylim=(0, 1))
    axes[0, 0].set_ylabel("share of labels that are there")
    axes[0, 0].legend(frameon=False, fontsize=8)
    return figure
