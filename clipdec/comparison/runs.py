"""Runs that are there, side by side: figures from what their folders keep. Nothing is trained or scored.

Runs that differ by nothing but their seed stand together; all are held against the first.
"""

from pathlib import Path
from typing import NamedTuple

import torch

from clipdec.comparison.statistics import difference, resampled_maps
from clipdec.data import load_data
from clipdec.training.config import Config, read_settings
from clipdec.training.run_folder import read_scores
from clipdec.training.shared import find_run

TASKS = "zsl", "gzsl", "seen"


class KeptRun(NamedTuple):
    """What a run folder keeps: `metrics` of metrics.json, `scores` [M, L] of test and what they were `made_of`."""

    folder: Path
    config: Config
    metrics: dict
    scores: torch.Tensor
    made_of: dict

    @property
    def seed(self):
        return self.config.seed


def read_run(folder):
    """The KeptRun of a folder. Raises FileNotFoundError if it is no run, or one that keeps no figures or scores."""
    folder = find_run(folder)
    config, kept, path = Config.load(folder), read_scores(folder, "test"), folder / "metrics.json"
    metrics = read_settings(path) if path.is_file() else {}
    if kept is None or not {*TASKS, "protocol"} <= metrics.keys():
        missing = "scores of test in a scores.npz" if kept is None else "figures of test in a metrics.json"
        why = "it is not finished, was downloaded, or is of another version"
        raise FileNotFoundError(f"{folder} has no {missing}, {why}: go on with it, resume True, or train it again")
    return KeptRun(folder, config, metrics, *kept)


def check_alike(runs):
    """Raises ValueError if a run is there twice, or was judged on other data or by another protocol than the first."""
    first, places = runs[0], [run.folder.resolve() for run in runs]
    if twice := [run.folder for run, place in zip(runs, places) if places.count(place) > 1]:
        raise ValueError(f"{twice[0]} is named twice: name each run once")
    ours = judged_on(first)
    for run in runs[1:]:
        theirs = judged_on(run)
        if other := [
            f"{key} {ours.get(key)!r} and {theirs.get(key)!r}" for key in ours if ours[key] != theirs.get(key)
        ]:
            found = f"{first.folder} and {run.folder} were not judged on the same: {', '.join(other)}"
            raise ValueError(f"{found}; compare runs of one data set and protocol")


def judged_on(run):
    """What must be the same for figures to compare."""
    protocol = {key: run.metrics["protocol"].get(key) for key in ("keep", "test_images", "labels_without_positives")}
    return protocol | {key: run.made_of.get(key) for key in ("labels", "data")}


def data_of(runs, folder=None):
    """The Data that the runs were judged on, from `folder` or where the first run had them.

    Raises FileNotFoundError if none are there, ValueError if they are others.
    """
    data = load_data(folder or runs[0].config.data)
    if data.fingerprint != runs[0].made_of["data"]:
        raise ValueError(f"the data in {data.folder} are not those of {runs[0].folder}: name their folder, --data")
    return data


def by_settings(runs):
    """[[runs that differ by their seed alone]], in the order in which they were named."""
    groups = []
    for run in runs:
        for group in groups:
            if without_seed(group[0]) == without_seed(run) and run.seed not in [other.seed for other in group]:
                group.append(run)
                break
        else:
            groups.append([run])
    return groups


def without_seed(run):
    return {key: value for key, value in run.made_of.items() if key != "seed"}


def paired(ours, others):
    """[(run, run)] of the seeds that both have; where there are none, in the order of their seeds."""
    by_seed = [{run.seed: run for run in group} for group in (ours, others)]
    if common := sorted(by_seed[0].keys() & by_seed[1].keys()):
        return [(by_seed[0][seed], by_seed[1][seed]) for seed in common]
    return list(zip(*([by[seed] for seed in sorted(by)] for by in by_seed)))


def differences(groups, data):
    """Of each group but the first, minus the first: `difference` of TASKS, and "pairs", how many runs it is from.

    One pair alone has no interval over seeds: its is that of its weights, images alone drawn again.
    """
    pairs = [paired(group, groups[0]) for group in groups[1:]]
    asked = {run.folder: run for each in pairs for pair in each for run in pair}
    judged = {path: (run.metrics, resampled_maps(run.scores, data.test, data.labels)) for path, run in asked.items()}
    found = []
    for each in pairs:
        ours, others = ([judged[run.folder] for run in runs] for runs in zip(*each))
        found.append({"pairs": len(each)} | difference(ours, others, TASKS, of_these_weights=len(each) == 1))
    return found
