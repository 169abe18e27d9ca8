"""How an epoch is judged on val, and which epoch of a run counts."""

import math


def val_figures(precisions):
    """{name of a group: mAP, nan where none of its labels occurs on val}, as `val_map` the mean of those that there
    are, and as `val_error` its standard error over labels; infinite where no group has two.

    The groups share one variance, as a few held-out labels, of which val may show a single one, tell little of theirs.
    Args: precisions, {name: AP [n] of the group's labels in percent}.
    """
    found = {name: ap[ap.isfinite()] for name, ap in precisions.items()}
    there = [ap for ap in found.values() if len(ap)]
    maps = {name: ap.mean().item() for name, ap in found.items()}
    mean = sum(ap.mean().item() for ap in there) / len(there) if there else math.nan
    squares = sum((ap - ap.mean()).square().sum().item() for ap in there)
    free, shares = sum(map(len, there)) - len(there), sum(1 / len(ap) for ap in there)
    error = math.sqrt(squares / free * shares) / len(there) if free else math.inf
    return maps | {"val_map": mean, "val_error": error}


def highest(history, name="val_map"):
    """The row of the highest figure, the first of equals; the last row where val measures nothing."""
    return history[-1] if math.isnan(history[-1][name]) else max(history, key=lambda row: row[name])


def epoch_that_counts(history, name="val_map"):
    """The last epoch, from 1, that is not below the highest by more than its standard error.

    So small a difference is the chance of val's few labels, and OneCycle's last steps are its smallest. It is the rule
    of one standard error (Breiman et al., Classification and Regression Trees, 1984), with the last in the place of the
    simplest. The test mAP that the author's code chooses by has no error: there the highest counts.
    """
    best = highest(history, name)
    least = best[name] - (best["val_error"] if name == "val_map" else 0)
    return max(row["epoch"] for row in history if row is best or row[name] >= least)
