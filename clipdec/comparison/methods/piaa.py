"""PIAA (Wang et al., ICML 2026): a Gaussian classifier of patches, from unlabelled training images, in closed form."""

import torch

from clipdec.comparison.methods.raw_clip import joined, looks
from clipdec.comparison.methods.value_path import value_patches
from clipdec.training.scores import clip_text, clip_vectors

KEPT = 512  # patches of a label
SHARP, GAUSSIAN, LAST, WHOLE = 60, 500, 400, 10  # what goes into the four softmaxes is multiplied with


def piaa_scores(data, config):
    """Scores [M, L] of test, from patches x of train of which no label is read.

    A softmax of 60 cosines names each patch. Of a label the 512 of lowest entropy give its mean m_c, weighted by their
    probability, and all together one covariance S;  s_c = x' P m_c - m_c' P m_c / 2,  P = D pinv((n - 1) S + tr(S) 1).
    Once again from the patches whose probability there is a label's mean plus a standard deviation or more. Score:
    0.9 softmax(400 max over patches of softmax(500 s)) + 0.1 softmax(10 cosine of the whole image).

    Constants as for NUS-WIDE in github.com/akang-wang/PIAA, learn.py and test.py, set by hand there for each data set.
    Patches there are those of SC-CLIP or its like, here of the value path; with windows, the windows.
    """
    text = clip_text(data.labels, config, (config.prompt,))
    patches = lambda split: looks(split, data, config) if config.windows else value_patches(split, config)
    train = torch.cat([part.flatten(0, 1) for part in patches(data.train)])  # [n, D]
    label, probability, entropy = name_all(train, lambda x: (SHARP * x @ text.T).softmax(-1))
    kept = lowest(entropy, label, KEPT)
    for _ in range(2):
        weight, bias = gaussian(train[kept], label[kept], probability[kept], text)
        classify = lambda x, weight=weight, bias=bias: (GAUSSIAN * (x @ weight.T + bias)).softmax(-1)
        label, probability, _ = name_all(train, classify)
        kept = (probability >= sure(probability, label, len(text))[label]).nonzero().flatten()
    best = joined((classify(part).amax(1) for part in patches(data.test)), data)  # [M, L]
    whole = (WHOLE * clip_vectors(data, config, data.test) @ text.T).softmax(-1)
    return 0.9 * (LAST * best.double()).softmax(-1) + 0.1 * whole


def name_all(patches, classify):
    """(label, its probability, the entropy of all) of each patch, [n] each; `classify` gives probabilities [n, L]."""
    found = []
    for part in patches.split(4096):
        probabilities = classify(part)
        probability, label = probabilities.max(-1)
        found.append((label, probability, torch.special.entr(probabilities).sum(-1)))
    return tuple(map(torch.cat, zip(*found)))


def lowest(values, label, count):
    """Indices of those patches that are among the `count` of lowest value of their label."""
    order = values.argsort(stable=True)
    order = order[label[order].argsort(stable=True)]  # by label, then by value
    first = torch.searchsorted(label[order], label[order])  # where its label begins
    return order[torch.arange(len(order)) - first < count]


def sure(probability, label, labels):
    """Mean plus standard deviation of the probabilities of each label's patches, [labels]; 0 of a label without."""
    count = label.bincount(minlength=labels).clamp(min=1)
    mean, square = (torch.zeros(labels).index_add(0, label, x) / count for x in (probability, probability.square()))
    return mean + (square - mean.square()).clamp(min=0).sqrt()


def gaussian(patches, label, probability, text):
    """(weights [L, D], biases [L]) of the classifier; a label without a patch has its vector of `text` as its mean."""
    total = torch.zeros(len(text)).index_add(0, label, probability)[:, None]
    mean = torch.zeros_like(text).index_add(0, label, probability[:, None] * patches) / total.clamp(min=1e-12)
    mean = torch.where(total > 0, mean, text)
    centred = patches - mean[label]
    scatter = centred.T @ centred  # (n - 1) S
    trace = scatter.trace() / (len(patches) - 1)
    width = text.shape[1]
    precision = width * torch.linalg.pinv(scatter + trace * torch.eye(width), hermitian=True)
    weight = mean @ precision
    return weight, -(weight * mean).sum(1) / 2  # and -log L, which is the same for all
