"""mAP of samples of the test images: against the plain formula, and time and memory on the size of NUS-WIDE's test."""

import time

import torch

from benchmarks.metrics import data
from benchmarks.timing import peak_memory, side_by_side
from clipdec.comparison.statistics import bootstrap_weights, resampled_ap


def plain(scores, targets, weights):
    """The same by comparing each positive with all images, in memory of draws x images double numbers: [L, R]."""
    found, weights = [], weights.double()
    for column, positive in zip(scores.T, targets.T):
        above = (column >= column[positive][:, None]).double()  # [P, M]
        own = weights[:, positive]  # [R, P]
        precision = own @ above[:, positive].T / (weights @ above.T).clamp(min=1)
        found.append((own * precision).sum(1) / own.sum(1))
    return torch.stack(found)


def resample(images):
    resampled_ap(*data(images), bootstrap_weights(images))


def figures(device="cpu"):
    asked, found = (*data(2000), bootstrap_weights(2000)), {}
    ways = {"ours": resampled_ap, "plain": plain}
    t = side_by_side({name: lambda name=name: found.update({name: ways[name](*asked)}) for name in ways}, 1)
    note = f"{t['ours']:.2f} s; largest difference {(found['ours'] - found['plain']).abs().nan_to_num().max():.1e}"
    yield "500 samples of 2,000 images x 1,006 labels: plain formula / ours", t["plain"] / t["ours"], note
    began = time.perf_counter()
    peak = peak_memory(resample, 107_859)
    note = f"in {time.perf_counter() - began:.0f} s, imports and the making of the scores included"
    yield "500 samples of 107,859 images x 1,006 labels: peak memory (MB)", peak, note
