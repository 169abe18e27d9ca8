"""CONSE (Norouzi et al., ICLR 2014): an image lies among the vectors of the seen labels that a classifier finds."""

import torch
import torch.nn.functional as F

from clipdec.training.build import label_queries
from clipdec.training.scores import clip_vectors


def conse_scores(data, config, top=10, epochs=20, lr=1e-2):
    """Cosine of each label's vector with the mean of those of an image's `top` seen labels, by probability, [M, L].

    Probabilities are those of a linear layer on CLIP's global vectors, a softmax over the seen labels trained with the
    cross-entropy to an image's labels, which share its probability. Label vectors are the run's.
    """
    seen, vectors = data.labels.seen_index, label_queries(config, data.labels.names)
    targets = data.train.targets[:, seen].float()
    rows = targets.any(1).nonzero().flatten()
    scale = 10  # unit vectors in, logits that can tell a thousand labels apart out
    images, targets = scale * clip_vectors(data, config, data.train)[rows], F.normalize(targets[rows], p=1)
    torch.manual_seed(config.seed)
    classifier = torch.nn.Linear(images.shape[1], len(seen))
    optimiser = torch.optim.AdamW(classifier.parameters(), lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=epochs * -(-len(rows) // 256))
    for _ in range(epochs):
        for part in torch.randperm(len(rows)).split(256):
            optimiser.zero_grad()
            F.cross_entropy(classifier(images[part]), targets[part]).backward()
            optimiser.step()
            schedule.step()
    with torch.no_grad():
        found = classifier(scale * clip_vectors(data, config, data.test)).softmax(-1)  # [M, seen]
    probabilities, best = found.topk(min(top, len(seen)))  # [M, top]
    embedded = torch.einsum("mt,mtd->md", probabilities, vectors[seen][best])  # [M, D]
    return F.normalize(embedded, dim=-1) @ vectors.T
