"""The offset between seen and unseen labels, against every other one, counted image by image."""

import pytest
import torch

from clipdec.training.offset import OFFSETS, seen_offset


def harmonic(logits, targets, unseen, offset, k):
    """Harmonic mean of R@k of seen and of unseen labels, counted one image at a time."""
    hits = {True: 0, False: 0}
    for row, truth in zip(logits.clone(), targets):
        row[~unseen] -= offset
        for label in row.argsort(descending=True)[:k].tolist():
            hits[bool(unseen[label])] += int(truth[label])
    seen, new = hits[False] / targets[:, ~unseen].sum().item(), hits[True] / targets[:, unseen].sum().item()
    return 2 * seen * new / (seen + new) if seen + new else 0


def test_the_offset_is_the_best_of_all():
    torch.manual_seed(1)
    unseen, targets = torch.arange(12) >= 8, torch.rand(60, 12) < 0.2
    logits = 2.0 * targets + torch.randn(60, 12) + 1.5 * ~unseen  # seen labels are ahead
    found = seen_offset(logits, targets, unseen)
    quality = {o: harmonic(logits, targets, unseen, o, 3) for o in OFFSETS.tolist()}
    assert harmonic(logits, targets, unseen, found, 3) == pytest.approx(max(quality.values())) and found > 0.5


def test_of_equal_offsets_the_smallest():
    targets = torch.tensor([[1, 0, 1, 0], [0, 1, 0, 1]]).bool()
    assert seen_offset(20.0 * targets, targets, torch.arange(4) >= 2, k=2) == 0


def test_without_one_kind_there_is_no_offset():
    unseen = torch.tensor([False, True])
    for targets in (torch.tensor([[1, 0]]), torch.tensor([[0, 1]]), torch.zeros(1, 2)):
        assert seen_offset(torch.tensor([[3.0, 1.0]]), targets.bool(), unseen, k=1) == 0
