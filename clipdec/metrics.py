"""Average precision, precision/recall/F1 at K, and the zero-shot report. Figures of reports are in percent."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

BLOCK = 32  # labels whose scores are sorted at a time


def average_precision(scores, targets, prevalence=None, known=None):
    """AP of each label: images sorted by its score, mean of the precision at each positive, no interpolation.

    Images with equal scores enter together, so the result does not depend on their order (as scikit-learn's).

    Args: scores, targets [M, L] over M images, targets 0 or 1; prevalence above 0, if given: a label's negatives weigh
        so much that it is in this share of the images. Its positives stay as few: AP of one or two is too high;
        known [M, L], if given: an image does not count for a label that is not known of it.
    Returns: float64 [L] in 0..1, nan where a label has no positive.
    Raises: ValueError if the shapes differ or a score is not finite.
    """
    scores, targets = check(scores, targets)
    known = torch.ones(1, 1, dtype=torch.bool).expand_as(scores) if known is None else check(scores, known)[1]
    cells = [x.cpu().numpy() for x in (scores, targets, known)]
    part = lambda i: _average_precision(*(x[:, i : i + BLOCK] for x in cells), prevalence)
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # numpy sorts outside the interpreter's lock
        return torch.from_numpy(np.concatenate([np.empty(0), *pool.map(part, range(0, scores.shape[1], BLOCK))]))


def _average_precision(scores, targets, known, prevalence):
    """AP of a few labels. Only positives are ranked: one has as many images at or above it as sorting counts."""
    ap = np.full(scores.shape[1], np.nan)
    for label, (column, positive, asked) in enumerate(zip(scores.T, targets.T, known.T)):
        column, hits = np.sort(column[asked]), np.sort(column[positive & asked])  # rising
        if len(hits):
            rank = len(column) - np.searchsorted(column, hits)  # images with this score or a higher one
            true, others = len(hits) - np.searchsorted(hits, hits), max(1, len(column) - len(hits))
            weight = 1 if prevalence is None else (1 / prevalence - 1) * len(hits) / others  # of a negative
            ap[label] = np.mean(true / (true + weight * (rank - true)))
    return ap


def precision_recall_f1(scores, targets, k):
    """(P, R, F1) in 0..1 when each image's k best-scored labels are its predictions, pooled over all images (micro).

    Args: scores, targets [M, L]; k, at most L. Equal scores stand in any order. nan: P if M is 0, R, F1 if no target.
    """
    scores, targets = check(scores, targets)
    if not 1 <= k <= scores.shape[1]:
        raise ValueError(f"k must be from 1 to the number of labels, {scores.shape[1]}, got {k}")
    hits, positives = targets.gather(1, scores.topk(k, dim=1).indices).sum().item(), targets.sum().item()
    precision = hits / (k * len(scores)) if len(scores) else torch.nan
    recall = hits / positives if positives else torch.nan
    return precision, recall, 2 * hits / (k * len(scores) + positives) if positives else torch.nan


def zsl_report(scores, targets, labels, keep="all", known=None):
    """Zero-shot evaluation: ZSL ranks the unseen labels, GZSL seen and unseen in one list, `seen` the seen labels only.

    Args:
        scores, targets: [M, L] over the labels of the LabelSpace `labels`, seen first.
        keep: "all" test images (as LESA, BiAM and MKT), or only the "relevant" ones, which carry a ranked label
            (as ML-Decoder; raises P@K).
        known: as of `average_precision`; to P/R/F1@K what is not known is wrong (as LESA and BiAM have it).

    Returns: {"zsl", "gzsl", "seen": {"map", "p@3", "r@3", "f1@3", "p@5", ...}, "protocol": {...}}, figures in percent.
        mAP is the plain mean over labels; labels without a positive are left out, and counted in the protocol. With
        `known`, as of OpenImages, K is 10 and 20 in place of 3 and 5.
    """
    if keep not in ("all", "relevant"):
        raise ValueError(f'keep must be "all" or "relevant", got {keep!r}')
    scores, targets = check(scores, targets)
    if scores.shape[1] != len(labels.names):
        raise ValueError(f"scores have {scores.shape[1]} columns, the label space {len(labels.names)} labels")
    seen, report, kept = len(labels.seen), {}, {}
    for part, index in (("zsl", slice(seen, None)), ("gzsl", slice(None)), ("seen", slice(seen))):
        rows = targets[:, index].any(1) if keep == "relevant" else slice(None)
        cells = [None if x is None else x[rows, index] for x in (scores, targets, known)]
        kept[part] = len(cells[0])
        report[part] = _figures(*cells) if cells[0].numel() else {}
    protocol = {"keep": keep, "test_images": len(targets), "images_kept": kept}
    return report | {"protocol": protocol | {"labels_without_positives": int((~targets.any(0)).sum())}}


def _figures(scores, targets, known):
    figures = {"map": 100 * average_precision(scores, targets, known=known).nanmean().item()}
    for k in (3, 5) if known is None else (10, 20):
        p, r, f1 = precision_recall_f1(scores, targets, min(k, scores.shape[1]))
        figures |= {f"p@{k}": 100 * p, f"r@{k}": 100 * r, f"f1@{k}": 100 * f1}
    return figures


def check(scores, targets):
    """Scores [M, L] as floating-point numbers and targets as bool. Raises ValueError if they do not fit each other."""
    scores, given = torch.as_tensor(scores), torch.as_tensor(targets)
    targets = given.bool()
    scores = scores if scores.dtype == torch.float64 else scores.float()  # double ones may differ where single do not
    if scores.shape != targets.shape or scores.ndim != 2:
        raise ValueError(f"scores {[*scores.shape]}, targets {[*targets.shape]}: give one shape [images, labels]")
    if given is not targets and not given.eq(targets).all():
        raise ValueError("targets must be 0 or 1: what is not known of an image goes into `known`")
    if not scores.isfinite().all():
        raise ValueError("scores must be finite: the model has diverged or an input is broken")
    return scores, targets
