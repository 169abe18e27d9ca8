"""Draw docs/overview.png: a test scene, attention maps and the scores of the unseen labels, from runs/emoji."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.text import Text

import clipdec
from clipdec.data import HOME
from clipdec.notebook import plots

SCENE, WIDTH = 3, 9.5  # of the pictures, in inches
data = clipdec.load_data("emoji")
predictor = clipdec.Predictor.load(HOME / "runs" / "emoji", base_rate=0.02)  # about that of unseen labels
image, targets = data.test[SCENE]
true = [data.labels.names[i] for i in targets.nonzero().flatten()]
top = predictor(image, data.labels.unseen, top_k=9)
maps = predictor.explain(image, true)


def pixels(figure):
    """The figure as an RGB array, as wide as the page, its texts so that they can be read there."""
    figure.set_size_inches(WIDTH, figure.get_figheight())
    for text in figure.findobj(Text):
        text.set_fontsize(10)
    figure.set_dpi(150)
    figure.canvas.draw()
    array = np.asarray(figure.canvas.buffer_rgba())[..., :3]
    plt.close(figure)
    return array


looks = plots.attention_overlay(image, maps, true)
bars = plots.score_bars([n for n, _ in top], [p for _, p in top], set(data.labels.unseen), set(true))
plt.imsave(Path(__file__).with_suffix(".png"), np.vstack([pixels(looks), pixels(bars)]))
