"""Which points of the author's code a run follows."""

from dataclasses import replace

from clipdec.training.build import sentence_tower
from clipdec.training.config import AS_AUTHOR
from clipdec.training.processes import is_main
from clipdec.training.sentences import unseen_shown

NEEDS = {  # what a point needs, and whether a run has it
    "trained_sentence_tower": (
        "a CLIP that encodes the sentences, and alpha above 0",
        lambda config, data: config.alpha and sentence_tower(config),
    ),
    "unseen_in_sentences": (
        "data that list the unseen labels of train images (data_prep's --keep-unseen), and alpha above 0",
        lambda config, data: config.alpha and unseen_shown(data.train, data).any(),
    ),
    "sentence_of_77_characters": (
        "a CLIP that encodes the sentences, and alpha above 0",
        lambda config, data: config.alpha and sentence_tower(config),
    ),
    "cutout_first": ("augment True", lambda config, data: config.augment),
}


def followed(config, data):
    """The Config with the points that are on. Of "all", those that its settings and the data allow; it says which are
    left out and why. Raises ValueError for a point that is named and cannot be followed.
    """
    lacking = {point: need for point, (need, holds) in NEEDS.items() if not holds(config, data)}
    if config.as_author == ["all"]:
        for point, need in lacking.items() if is_main() else ():
            print(f"as_author all: without {point}, which needs {need}", flush=True)
        return replace(config, as_author=[point for point in AS_AUTHOR if point not in lacking])
    for point in config.as_author:
        if point in lacking:
            raise ValueError(f"{point} of as_author needs {lacking[point]}: give that, or take {point} out")
    return config
