"""Which epoch counts: standard errors against numpy's, the rule by hand."""

import math

import numpy as np
import pytest
import torch

from clipdec.training.epochs import epoch_that_counts, highest, val_figures

NAN = float("nan")


def test_the_mean_of_the_groups_and_its_error():
    rng = np.random.default_rng(0)
    seen, held = 100 * rng.random(40), 100 * rng.random(7)
    found = val_figures({"seen": torch.tensor([*seen, NAN]), "held": torch.tensor([NAN, *held])})
    variance = (39 * np.var(seen, ddof=1) + 6 * np.var(held, ddof=1)) / 45
    expected = {"seen": seen.mean(), "held": held.mean(), "val_map": (seen.mean() + held.mean()) / 2}
    assert found == pytest.approx(expected | {"val_error": np.sqrt(variance / 40 + variance / 7) / 2})


@pytest.mark.parametrize("seen, held, expected", [
    ([10.0, 30.0], [], (20.0, 10.0)),  # one group: sqrt(200 / 2)
    ([10.0, 30.0], [NAN], (20.0, 10.0)),
    ([10.0, 30.0], [40.0], (30.0, math.sqrt(200 / 2 + 200 / 1) / 2)),  # the spread is that of the first
    ([10.0], [40.0], (25.0, math.inf)),  # of one label nobody knows how far it would be off
    ([], [], (NAN, math.inf)),
])  # fmt: skip
def test_groups_that_are_small_or_missing(seen, held, expected):
    found = val_figures({"seen": torch.tensor(seen), "held": torch.tensor(held)})
    assert (found["val_map"], found["val_error"]) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("maps, errors, best, peak", [
    ([1, 2, 3], [1, 1, 1], 3, 3), ([1, 5, 4.5, 4], [9, 1, 9, 9], 4, 2), ([1, 5, 4.5, 3.9], [9, 1, 9, 9], 3, 2),
    ([5, 1, 1], [0, 9, 9], 1, 1), ([5, 5, 4], [0, 0, 0], 2, 1), ([NAN, NAN], [0, 0], 2, 2), ([7], [0], 1, 1),
    ([9, 1, 2], [math.inf, 9, 9], 3, 1),
])  # fmt: skip
def test_the_last_within_an_error_of_the_highest(maps, errors, best, peak):
    history = [{"epoch": i, "val_map": m, "val_error": e} for i, (m, e) in enumerate(zip(maps, errors), 1)]
    assert epoch_that_counts(history) == best and highest(history)["epoch"] == peak
    kept = [len(part) for part in (history[: i + 1] for i in range(len(maps))) if epoch_that_counts(part) == len(part)]
    assert kept[-1] == best  # as it is found while training, when the later epochs are not known


def test_the_mAP_of_the_author_has_no_error():
    history = [{"epoch": i, "test_map": m, "val_error": 9.0} for i, m in enumerate([3.0, 5.0, 4.9], 1)]
    assert epoch_that_counts(history, "test_map") == 2
