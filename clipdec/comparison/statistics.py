"""How sure a difference is: paired by seed and by image, both drawn again."""

import math

import torch
import torch.nn.functional as F

from clipdec.metrics import check

DRAWS = 250  # samples of the images that are looked at together: what they take of memory stays the same


def resampled_maps(scores, test, labels):
    """{task: mAP in percent of every sample of the images of a Split, [R]}: "zsl", "gzsl" and "seen"."""
    precisions = 100 * resampled_ap(scores, test.targets, bootstrap_weights(len(test)), test.known)  # [L, R]
    parts = {"zsl": precisions[labels.unseen_index], "gzsl": precisions, "seen": precisions[labels.seen_index]}
    return {task: each.nanmean(0) for task, each in parts.items()}


def difference(ours, others, tasks=("zsl", "gzsl"), of_these_weights=False):
    """`ours` minus `others` in mAP, of each task: its mean, its least and most of a seed, and its `interval`, or with
    `of_these_weights` its `image_interval`.

    Args: both are (row, maps) of `run_system` for every seed. nan where no test image carries a label of the task.
    """
    found, between = {}, image_interval if of_these_weights else interval
    for task in tasks:
        each = [_map(a, task) - _map(b, task) for (a, _), (b, _) in zip(ours, others)]
        draws = torch.stack([a[task] - b[task] for (_, a), (_, b) in zip(ours, others)])  # [S, R]
        about = {"mean": sum(each) / len(each), "min": min(each), "max": max(each)}
        found[task] = about | {"interval": between(torch.tensor(each, dtype=torch.float64), draws)}
    return found


def _map(row, task):
    """A row's mAP, nan in place of the None that stands for it in JSON."""
    value = row[task].get("map")
    return torch.nan if value is None else value


def interval(each, draws):
    """95 % interval of the mean of differences if seeds and test images were drawn again, [lowest, highest].

    The mean moves by the images' share, its move in a sample of the images, plus the seeds' share, that of Student's t;
    both vary at once (as rows and columns do in Owen, The pigeonhole bootstrap, Annals of Applied Statistics 2007).
    Few seeds are not resampled, as that makes the interval too narrow, for want of the factor S / (S - 1) and of the
    tails of t (Hesterberg, What teachers should know about the bootstrap, The American Statistician 2015).

    Args: each [S], the difference with each seed; draws [S, R], the same in samples of the images. Samples without a
    positive, nan, say nothing. They are taken around their own mean: an image that is drawn twice raises AP a little.
    Returns: nan with one seed, which does not say how far another would be.
    """
    seeds, images = len(each), _moves(draws)
    if seeds < 2 or not len(images):
        return [torch.nan, torch.nan]
    normal = torch.randn(seeds, len(images), 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    student = normal[0] / normal[1:].square().mean(0).sqrt()  # [R, 200], S - 1 degrees of freedom
    return _middle(each.mean() + images[:, None] + each.std() / math.sqrt(seeds) * student)


def image_interval(each, draws):
    """95 % interval of the mean of differences if test images alone were drawn again: it speaks of these trained
    weights, not of those of another seed. Arguments as of `interval`; nan where no sample has a positive.
    """
    images = _moves(draws)
    return _middle(each.mean() + images) if len(images) else [torch.nan, torch.nan]


def _moves(draws):
    """How the mean over seeds moves with the images: draws [S, R] around their mean, those without nan."""
    images = draws.mean(0)
    images = images[images.isfinite()]
    return images - images.mean()


def _middle(values):
    """Between which two values the middle 95 % are."""
    return values.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()


def is_difference(found):
    """Whether a difference may be called one: its interval is there and excludes 0."""
    low, high = found["interval"]
    return low is not None and (low > 0 or high < 0)


def bootstrap_weights(images, draws=500, seed=0):
    """How often each image is in each of `draws` samples of as many, drawn with replacement: uint8 [R, M]."""
    generator = torch.Generator().manual_seed(seed)
    drawn = (torch.randint(max(1, images), (images,), generator=generator) for _ in range(draws))
    return torch.stack([row.bincount(minlength=images).to(torch.uint8) for row in drawn])


def resampled_ap(scores, targets, weights, known=None):
    """AP of samples of the images: what `average_precision` gives where image m is there weights[r, m] times.

    The images are sorted once for each label. Of a sample only the sums of weights at the positives are asked for, so a
    label costs R x M additions, and memory of R x M single numbers and 250 x P double ones for P positives.

    Args: scores, targets [M, L]; weights [R, M], whole numbers of 0 or more; known as of `average_precision`.
    Returns: float64 [L, R] in 0..1, nan where a label has no positive in the sample.
    """
    scores, targets = check(scores, targets if known is None else targets & known)
    blocks = [block.T.float().contiguous() for block in weights.split(DRAWS)]  # [M, 250], exact below 2 ** 24
    ap = torch.full((scores.shape[1], len(weights)), torch.nan, dtype=torch.float64)
    for label in targets.any(0).nonzero().flatten().tolist():
        column, positive = scores[:, label].contiguous(), targets[:, label].nonzero().flatten()
        values, above = column[positive].unique().flip(0), column.argsort(descending=True)
        above = above if known is None else above[known[above, label]]
        hits = positive[column[positive].argsort(descending=True)]
        ap[label] = torch.cat([_ap(values, column, above, hits, block) for block in blocks])
    return ap


def _ap(values, column, above, hits, weights):
    """AP [R] of one label. Images with an equal score enter together.

    Args: values, its positives' scores, each once, falling; above, hits, the images that count and the positives, by
    their scores in `column` [M], falling; weights [M, R].
    """
    total, true = (_sums(values, column, order, weights) for order in (above, hits))  # [K, R]
    own = true.diff(dim=0, prepend=torch.zeros_like(true[:1]))
    return own.mul_(true).div_(total.clamp_(min=1)).sum(0) / true[-1]  # 0 / 0, nan, without a positive


def _sums(values, column, order, weights):
    """Weights [K, R] of those images of `order` that have at least the score values[k]."""
    ends = torch.searchsorted(-column[order], -values, right=True)
    starts = F.pad(ends[:-1], (1, 0))
    return F.embedding_bag(order[: ends[-1]], weights, starts, mode="sum").double().cumsum_(0)
