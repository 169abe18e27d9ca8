"""The models that the panel shows: a Predictor with its logits on a split, and what can stand beside a run."""

from functools import cache, partial

import torch

from clipdec.calibration import fit_calibration
from clipdec.data import HOME, load_data
from clipdec.notebook.answers import Part, best_three
from clipdec.predictor.predictor import Predictor
from clipdec.predictor.raw_clip import RawClip
from clipdec.training.scores import known_pairs, run_scores, split_scores
from clipdec.training.shared import find_run


class Shown:
    """A model as the panel asks it: what was answered last is kept, so that sliders ask it nothing.

    Args: its name; a Predictor; its logits [M, L] of all labels of a LabelSpace on a Split.
    """

    def __init__(self, name, predictor, logits, labels, split):
        self.name, self.predictor = name, predictor
        logits = predictor.calibration.log_odds(torch.as_tensor(logits))
        self.part, self.best_three = cache(partial(Part, labels, logits, split)), cache(best_three)
        self.question, self.answer = (None, None), None

    @property
    def title(self):
        """Its name, and what one should know where it is shown."""
        clip = getattr(self.predictor, "model", None)
        whole = ["which looks at the whole image"] if isinstance(clip, RawClip) and not clip.tower.boxes else []
        return ", ".join([self.name, *whole, *filter(None, [self.predictor.calibration.note])])

    def ask(self, image, names):
        """Calibrated logits [L] of labels for an image, which is told from others as an object, not by its pixels."""
        if image is not self.question[0] or names != self.question[1]:
            self.question, self.answer = (image, names), self.predictor.log_odds([image], names)[0]
        return self.answer


def untouched_clip(run, split, labels, say):
    """(Predictor, logits [M, L] on a split) of the CLIP that a run's text tower belongs to, without any training.

    It looks at as many windows as the run's tower, and its probabilities are calibrated as the run's are, on the seen
    labels of val. What it saw is kept beside the data, as for a training.

    Args: run, a Predictor; split, labels, of its data; say, called with a line of text before the work begins.
    Raises: ValueError if the run is untouched CLIP itself, or its data have other labels.
    """
    if isinstance(run.model, RawClip):
        raise ValueError("the model is untouched CLIP already: choose another one beside it")
    data = load_data(run.config.data)
    _check(run.config.data, data.labels, labels)
    say(f"untouched CLIP looks at {len(data.val) + len(split)} images …")
    clip = Predictor.from_clip(run.config.text_tower, labels, run.config.windows, run.config.device)
    val, logits = (split_scores(clip.model, part, data, clip.config) for part in (data.val, split))
    clip.calibration = fit_calibration(*known_pairs(val, data.val, labels.seen_index))
    return clip, logits


def other_run(run_folder, split, labels, say):
    """(Predictor, logits [M, L] on test) of another run on the same data, from its kept scores if it has them.

    Args: run_folder, of the run, from the repository's root, or user/name of the hub; split, labels, say, see
        `untouched_clip`; the split is test.
    Raises: ValueError for a run on other labels or images, and what `Predictor.load` raises.
    """
    folder = find_run(run_folder, start=HOME)
    run = Predictor.load(folder)
    _check(run_folder, run.labels, labels)
    data = load_data(run.config.data)
    if not torch.equal(data.test.targets, split.targets):
        raise ValueError(f"{run_folder} was tested on other images: choose a run on these data")
    say(f"{run_folder} looks at {len(split)} images, if its scores are not kept …")
    return run, run_scores(folder, run.model, data, run.config)


def _check(name, found, wanted):
    if found != wanted:
        raise ValueError(f"{name} has other seen or unseen labels: choose a run on these data")
