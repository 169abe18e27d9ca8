"""Figures of the notebooks. Each function returns a matplotlib figure; `show` displays it with a text for those who cannot see it."""

import base64
import io
import textwrap

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import display
from matplotlib.ticker import MaxNLocator

SEEN, UNSEEN = "#0072B2", "#E69F00"  # blue and orange: told apart by colour-blind readers too


def show(figure, alt, dpi=None, display=display):
    """Display a figure, or a PIL image, as PNG, and close it.

    Args: alt, what it shows in words, which stands in the notebook as the picture's alternative text; display, IPython's, or the
        `update` of a display handle, whose picture it replaces.
    """
    file = io.BytesIO()
    if hasattr(figure, "savefig"):
        figure.savefig(file, format="png", dpi=dpi or "figure")
        plt.close(figure)
    else:
        figure.save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    display({"image/png": data, "text/plain": alt}, raw=True, metadata={"image/png": {"alt": alt}})


def scene_grid(split, labels, indices, columns=6):
    """Images of a split with their labels below, unseen ones marked with an asterisk."""
    rows = -(-len(indices) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(1.7 * columns, 2.3 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for axis, i in zip(axes.flat, indices):
        image, targets = split[i]
        axis.imshow(image)
        names = [labels.names[j] + ("*" if j >= len(labels.seen) else "") for j in targets.nonzero().flatten()]
        axis.set_title("\n".join(textwrap.wrap(", ".join(names), 24)[:4]), fontsize=7, y=0, va="top", pad=-2)
    return figure


def label_frequencies(splits, labels):
    """How many images carry each label, most frequent first, on logarithmic axes (none: drawn at 0.5); seen and unseen apart."""
    figure, axes = plt.subplots(1, len(splits), figsize=(3.6 * len(splits), 2.8), sharey=True, squeeze=False, layout="constrained")
    for axis, split in zip(axes.flat, splits):
        counts = split.targets.sum(0).numpy()
        for name, index, colour, style in (("seen", labels.seen_index, SEEN, "-"), ("unseen", labels.unseen_index, UNSEEN, "--")):
            values = np.sort(counts[index])[::-1]
            if values.any():
                axis.loglog(np.arange(1, len(values) + 1), np.maximum(values, 0.5), style, color=colour, label=f"{name} ({len(values)})")
        axis.set(title=f"{split.name}, {len(split)} images", xlabel="rank of the label")
        axis.legend(frameon=False)
    axes[0, 0].set_ylabel("images")
    return figure


def matrix(values, rows, columns, title="", cmap="viridis"):
    """A small matrix with its numbers written in, such as cosines between names."""
    figure, axis = plt.subplots(figsize=(1.2 + 0.62 * len(columns), 1 + 0.36 * len(rows)), layout="constrained")
    values = np.asarray(values)
    axis.imshow(values, cmap=cmap, aspect="auto")
    middle = (values.max() + values.min()) / 2
    for (i, j), value in np.ndenumerate(values):
        axis.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7, color="white" if value < middle else "black")
    axis.set_xticks(range(len(columns)), columns, rotation=45, ha="right", fontsize=8)
    axis.set_yticks(range(len(rows)), rows, fontsize=8)
    axis.set_title(title, fontsize=9)
    return figure


def score_bars(names, probabilities, unseen=(), true=(), threshold=None):
    """Labels of one image with their probabilities: seen blue, unseen orange and hatched, true ones in bold."""
    figure, axis = plt.subplots(figsize=(4.6, 0.5 + 0.24 * len(names)), layout="constrained")
    marks = [name in unseen for name in names]
    bars = axis.barh(range(len(names)), probabilities, color=[UNSEEN if m else SEEN for m in marks])
    for bar, mark in zip(bars, marks):
        bar.set_hatch("//" if mark else "")
    axis.set_yticks(range(len(names)), [n.replace("$", r"\$") for n in names], fontsize=8)
    for tick, name in zip(axis.get_yticklabels(), names):
        tick.set_fontweight("bold" if name in true else "normal")
    axis.invert_yaxis()
    axis.set(xlim=(0, 1), xlabel="probability")
    if threshold is not None:
        axis.axvline(threshold, color="black", linestyle=":", linewidth=1)
    return figure


def attention_overlay(image, maps, names):
    """Where each label looked: the image, then the image darkened where the label did not look. maps: [L, rows, columns]."""
    figure, axes = plt.subplots(1, len(names) + 1, figsize=(1.9 * (len(names) + 1), 2.2), squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    axes[0, 0].imshow(image)
    axes[0, 0].set_title("image", fontsize=8)
    extent = (0, image.width, image.height, 0)
    for axis, values, name in zip(axes[0, 1:], np.asarray(maps), names):
        axis.imshow(image)
        shade = 1 - values / values.max()
        axis.imshow(np.zeros_like(shade), cmap="gray", alpha=0.85 * shade, extent=extent, interpolation="bilinear")
        axis.set_title(name.replace("$", r"\$"), fontsize=8)
    return figure


def curves(history):
    """Losses and validation mAP by epoch. history: rows of history.csv, numbers."""
    figure, axes = plt.subplots(1, 3, figsize=(9, 2.5), layout="constrained")
    epochs = [row["epoch"] for row in history]
    for axis, title, lines in (
        (axes[0], "L_c, asymmetric loss", {"l_c": ("", "-", "#444444")}),
        (axes[1], "L_clip, alignment loss", {"l_clip": ("", "-", "#444444")}),
        (axes[2], "mAP on val, %", {"val_seen_map": ("seen labels", "-", SEEN), "val_held_map": ("held out of training", "--", UNSEEN)}),
    ):
        for key, (name, style, colour) in lines.items():
            if key in history[0]:
                axis.plot(epochs, [row[key] for row in history], style, marker="o", markersize=3, color=colour, label=name)
        axis.set(title=title, xlabel="epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[2].legend(frameon=False, fontsize=8)
    return figure


def metric_bars(results, key="map"):
    """ZSL and GZSL figures of several models side by side. results: {model name: {"zsl": {...}, "gzsl": {...}}}."""
    figure, axis = plt.subplots(figsize=(6, 2.8), layout="constrained")
    colours = [SEEN, UNSEEN, "#009E73", "#CC79A7", "#56B4E9"]
    for i, (name, result) in enumerate(results.items()):
        x = np.arange(2) + 0.8 * (i - (len(results) - 1) / 2) / len(results)
        bars = axis.bar(x, [result["zsl"][key], result["gzsl"][key]], 0.75 / len(results), label=name, color=colours[i % 5])
        axis.bar_label(bars, fmt="%.1f", fontsize=8)
    axis.set_xticks(range(2), ["ZSL", "GZSL"])
    axis.set_ylabel({"map": "mAP, %"}.get(key, f"{key.upper()}, %"))
    axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def seed_points(results):
    """mAP of several settings, ZSL and GZSL side by side: a dot a seed, a line at their mean. results: {name: {"zsl": [...], "gzsl": [...]}}."""
    figure, axes = plt.subplots(1, 2, figsize=(8.4, 0.9 + 0.3 * len(results)), sharey=True, layout="constrained")
    for axis, task, colour in zip(axes, ("zsl", "gzsl"), (UNSEEN, SEEN)):
        for row, values in enumerate(r[task] for r in results.values()):
            axis.plot(values, [row] * len(values), "o", color=colour, alpha=0.7, markersize=5, markeredgecolor="black", markeredgewidth=0.4)
            axis.plot([np.mean(values)] * 2, [row - 0.3, row + 0.3], color="black")
        axis.set(xlabel=f"{task.upper()} mAP, %")
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(results)), list(results), fontsize=8)
    axes[0].invert_yaxis()
    return figure


def score_histogram(scores, targets, seen):
    """Scores of true seen labels, true unseen labels and absent ones. scores, targets [M, L]; seen: how many labels, the first, are seen."""
    figure, axis = plt.subplots(figsize=(6, 2.6), layout="constrained")
    edges = np.linspace(scores.min().item(), scores.max().item(), 60)
    for name, part, colour, hatch in (("seen", slice(0, seen), SEEN, None), ("unseen", slice(seen, None), UNSEEN, "//")):
        values = scores[:, part][targets[:, part]]
        axis.hist(values.numpy(), edges, density=True, alpha=0.6, color=colour, hatch=hatch, label=f"true {name}, median {values.median():.2f}")
    axis.hist(scores[~targets].numpy(), edges, density=True, histtype="step", color="black", linestyle=":", label="absent labels")
    axis.set(xlabel="logit", ylabel="density")
    axis.legend(frameon=False, fontsize=8)
    return figure


def reliability_curves(groups):
    """How often labels of a probability are there, groups of labels side by side.

    groups: {title: {name of a curve: (mean probability, share that is true, number), each [bins]}}.
    """
    figure, axes = plt.subplots(1, len(groups), figsize=(3.6 * len(groups), 3.2), squeeze=False, sharey=True, layout="constrained")
    for axis, (title, curves) in zip(axes.flat, groups.items()):
        axis.plot([0, 1], [0, 1], color="grey", linewidth=1, label="as it should be")
        for (name, (mean, share, _)), colour, style in zip(curves.items(), (UNSEEN, SEEN, "#009E73"), ("--s", "-o", ":^")):
            axis.plot(mean, share, style, color=colour, markersize=4, label=name)
        axis.set(title=title, xlabel="probability", xlim=(0, 1), ylim=(0, 1))
    axes[0, 0].set_ylabel("share of labels that are there")
    axes[0, 0].legend(frameon=False, fontsize=8)
    return figure
