"""Draw docs/overview.png: a test scene, attention maps and the scores of the unseen labels, from runs/emoji."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import clipdec
from clipdec.data import HOME
from clipdec.notebook import plots

SCENE = 3
data = clipdec.load_data("emoji")
predictor = clipdec.Predictor.load(HOME / "runs" / "emoji", base_rate=0.02)  # about that of unseen labels
image, targets = data.test[SCENE]
true = [data.labels.names[i] for i in targets.nonzero().flatten()]
top = predictor(image, data.labels.unseen, top_k=9)
maps = predictor.explain(image, true)


def pixels(figure):
    """The figure as an RGB array."""
    figure.set_dpi(150)
    figure.canvas.draw()
    array = np.asarray(figure.canvas.buffer_rgba())[..., :3]
    plt.close(figure)
    return array


left = pixels(plots.attention_overlay(image, maps, true))
right = pixels(plots.score_bars([n for n, _ in top], [p for _, p in top], set(data.labels.unseen), set(true)))
height = max(left.shape[0], right.shape[0])
rest = [height - len(part) for part in (left, right)]
margins = [((free // 2, free - free // 2), (0, 0), (0, 0)) for free in rest]
both = np.hstack([np.pad(part, m, constant_values=255) for part, m in zip((left, right), margins)])
plt.imsave(Path(__file__).with_suffix(".png"), both)
