"""Average precision against scikit-learn and torchmetrics, and its memory on the size of NUS-WIDE's test set."""

import numpy as np
import torch
from sklearn.metrics import average_precision_score
from torchmetrics.functional.classification import multilabel_average_precision

from benchmarks.timing import peak_memory, side_by_side
from clipdec.metrics import average_precision


def data(images, labels=1006):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(images, labels, generator=generator), torch.rand(images, labels, generator=generator) < 0.007


def score(images):
    average_precision(*data(images))


def make(images):
    data(images)


def figures(device="cpu"):
    scores, targets = data(20_000)
    results = {}

    def ours():
        results["ours"] = average_precision(scores, targets).numpy()

    def sklearn():
        columns = zip(scores.numpy().T, targets.numpy().T)
        results["scikit-learn"] = np.array([average_precision_score(t, s) for s, t in columns])

    def torchmetrics():
        theirs = multilabel_average_precision(scores, targets.int(), scores.shape[1], average=None)
        results["torchmetrics"] = theirs.numpy()

    t = side_by_side({"ours": ours, "scikit-learn": sklearn, "torchmetrics": torchmetrics}, 1)
    for other in ("scikit-learn", "torchmetrics"):
        difference = np.abs(results["ours"] - results[other]).max()
        note = f"{t['ours']:.2f} s; largest difference {difference:.1e}"
        yield f"AP of 20,000 images x 1,006 labels: {other} / ours", t[other] / t["ours"], note
    note = f"imports included; {peak_memory(make, 107_859):.0f} to make the scores"
    yield "AP of 107,859 images x 1,006 labels: peak memory (MB)", peak_memory(score, 107_859), note
