"""What the panel and the notebooks answer, computed from logits, targets and what sliders say, without a widget."""

import torch

from clipdec.calibration import log_odds
from clipdec.labels import clean_name, same_name
from clipdec.metrics import average_precision, precision_recall_f1

WORST, FEW = 50, 5  # labels in the list of the worst; images below which AP is mostly chance


def parse_labels(text, known=()):
    """(names between commas, each once; how many were empty). A name of `known` gets the spelling that it has there."""
    parts = [clean_name(part) for part in text.split(",")] if text.strip() else []
    spelling = {same_name(name): name for name in known}
    names = [spelling.get(same_name(name), name) for name in parts if name]
    return list(dict.fromkeys(names)), len(parts) - len(names)


class Decision:
    """What the sliders say: a label is predicted if sigmoid((x + shift) / temperature) reaches the threshold.

    x is its calibrated logit where labels are in a share `base_rate` of the images; the shift is that to its own rate.
    """

    def __init__(self, threshold, temperature, seen_rate, other_rate, base_rate):
        self.threshold, self.temperature = threshold, temperature
        self.shifts = tuple(log_odds(rate) - log_odds(base_rate) for rate in (seen_rate, other_rate))  # seen, other

    def ranked(self, names, logits, seen, ranking):
        """(names, probabilities) of the labels that are ranked, the most probable first. logits, seen: [L]."""
        logits = (logits + torch.where(seen, *self.shifts)) / self.temperature
        order = logits.argsort(descending=True, stable=True).tolist()
        # a label's score does not depend on the other labels, so leaving the seen ones out afterwards is exact
        order = [i for i in order if ranking == "gzsl" or not seen[i]]
        if not order:
            raise ValueError("every label asked about is seen: choose seen + unseen, or ask about others")
        return [names[i] for i in order], logits[order].sigmoid()

    def figures(self, part):
        """Precision, recall and F1 of what is predicted in a Part of a split, in 0..1."""
        limit = self.temperature * torch.tensor(self.threshold, dtype=torch.float64).logit()
        limits = limit - torch.where(part.seen, *self.shifts).double()  # [L]; cheaper than the probabilities [M, L]
        return set_figures(part.logits >= limits, part.targets)


class Part:
    """What is evaluated of a split: of a ranking, "gzsl" or "zsl", the labels, and "all" or the "relevant" images."""

    def __init__(self, labels, logits, split, ranking, keep):
        start = len(labels.seen) if ranking == "zsl" else 0
        if start == len(labels.names):
            raise ValueError("the data set has no unseen labels: rank seen and unseen ones")
        self.names, self.seen = labels.names[start:], torch.arange(start, len(labels.names)) < len(labels.seen)  # [L]
        self.rows, self.logits, self.targets = torch.arange(len(split)), logits[:, start:], split.targets[:, start:]
        known = None if split.known is None else split.known[:, start:]
        if keep == "relevant":
            self.rows = self.targets.any(1).nonzero().flatten()  # [M], numbers of the images
            self.logits, self.targets = self.logits[self.rows], self.targets[self.rows]  # [M, L]
            known = known if known is None else known[self.rows]
        self.precisions = 100 * average_precision(self.logits, self.targets, known=known)  # [L]

    def worst(self):
        """[(what is said about it, name)] of the labels with the lowest AP, the lowest first, that are in an image."""
        names, ap, counts = self.names, self.precisions, self.targets.sum(0).tolist()
        least = max(1, min(FEW, max(counts)))
        order = [i for i in ap.argsort().tolist() if counts[i] >= least][:WORST]
        return [(f"{names[i]}: AP {ap[i]:.1f} %, {counts[i]} image{'s' * (counts[i] != 1)}", names[i]) for i in order]

    def examples(self, name):
        """[(number, caption)] of the images with the highest scores for a label, and of the lowest that have it."""
        label = self.names.index(name)
        has = self.targets[:, label].tolist()
        ranked = list(enumerate(self.logits[:, label].argsort(descending=True, stable=True).tolist(), 1))
        chosen = ranked[:4] + [(rank, i) for rank, i in ranked[4:] if has[i]][-4:]
        return [(self.rows[i].item(), f"{'✓ has it' if has[i] else 'has it not'}, rank {rank}") for rank, i in chosen]


def best_three(part, shifts):
    """F1@3 of a Part in percent, with the shifts of a Decision; nan where nothing is true."""
    moved = part.logits + torch.where(part.seen, *shifts)
    return 100 * precision_recall_f1(moved, part.targets, min(3, len(part.names)))[2]


def set_figures(predicted, targets):
    """(P, R, F1) in 0..1 of labels that are predicted by a threshold, counted over all images and labels (micro).

    Args: predicted, targets, bool [M, L]. nan: P where nothing is predicted, R where nothing is true, F1 where both."""
    hits, guesses, positives = (x.sum().item() for x in (predicted & targets, predicted, targets))
    f1 = 2 * hits / (guesses + positives) if guesses + positives else torch.nan
    return hits / guesses if guesses else torch.nan, hits / positives if positives else torch.nan, f1
