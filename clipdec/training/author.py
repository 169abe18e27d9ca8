"""Which points of the author's code a run follows."""

from dataclasses import replace

from clipdec.training.build import sentence_tower
from clipdec.training.config import AS_AUTHOR
from clipdec.training.processes import is_main
from clipdec.training.sentences import unseen_shown

# What a point needs, and whether a run has it.
ENCODED = (
    "a CLIP that encodes the sentences, and alpha above 0",
    lambda config, data: config.alpha and sentence_tower(config),
)
LISTED = (
    "data that list the unseen labels of train images (data_prep's --keep-unseen), and alpha above 0",
    lambda config, data: config.alpha and unseen_shown(data.train, data).any(),
)
AUGMENTED = "augment True", lambda config, data: config.augment
NEEDS = {
    "trained_sentence_tower": ENCODED, "sentence_of_77_characters": ENCODED, "unseen_in_sentences": LISTED,
    "cutout_first": AUGMENTED,
}  # fmt: skip


def followed(config, data):
    """The Config with the points that are on. Of "all", those that its settings and the data allow; it says which are
    left out and why. Raises ValueError for a point that is named and cannot be followed.
    """
    points = list(AS_AUTHOR) if config.as_author == ["all"] else config.as_author
    lacking = {point: NEEDS[point][0] for point in points if point in NEEDS and not NEEDS[point][1](config, data)}
    if points == config.as_author:
        for point, need in lacking.items():
            raise ValueError(f"{point} of as_author needs {need}: give that, or take {point} out")
        return config
    for point, need in lacking.items() if is_main() else ():
        print(f"as_author all: without {point}, which needs {need}", flush=True)
    return replace(config, as_author=[point for point in points if point not in lacking])
