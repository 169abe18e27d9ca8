"""Predictor: any image, any labels."""

import json
import math
import warnings
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F

from clipdec.calibration import Calibration, fit_calibration
from clipdec.images import ImageError, open_image
from clipdec.labels import LabelSpace, same_name
from clipdec.predictor.raw_clip import REMEDY, UNCALIBRATED, RawClip, is_clip, vocabulary
from clipdec.towers import UNIT, encode_labels
from clipdec.training.build import label_queries, load_run, read_labels
from clipdec.training.config import Config, read_settings
from clipdec.training.inputs import digest
from clipdec.training.run_folder import whole
from clipdec.training.shared import find_run

BATCH = 32  # images, or windows of them, that the model looks at at a time


class Predictor:
    """A trained CLIP-Decoder, or untouched CLIP, that answers for any image.

        predictor = Predictor.load("runs/emoji")        # or Predictor.from_clip("open_clip:ViT-B-32/laion2b_s34b_b79k")
        predictor("photo.jpg", ["dog face", "pizza"])   # [("pizza", 0.93), ("dog face", 0.02)]

    A run's probabilities are calibrated on its val split: of the val labels with a probability near 0.3, three in ten
    are there. Where the labels asked about are more common than there they would be too low, and elsewhere too high;
    `base_rate` says how common they are.

    Attributes:
        labels: the LabelSpace of the run, asked about when no labels are given.
        threshold: the probability from which on predicted labels had the best F1 where it was calibrated, on val.
    """

    def __init__(self, model, config, labels, calibration):
        self.model, self.config, self.labels, self.calibration = model, config, labels, calibration
        self._vectors = {}

    @classmethod
    def load(cls, run_folder, base_rate=None, device="auto", revision=None, calibration=None):
        """Open a run folder that `fit` wrote: its checkpoint.safetensors, config.json, labels.json and metrics.json.
        The name of a CLIP in its place is opened by `from_clip`, another text such as "user/name" is a run that was
        shared on the Hugging Face hub.

        Args:
            base_rate: the share of your images that carry a label which you ask about, such as 0.05; by default that of
                the seen labels on val (`calibration.base_rate`).
            device: auto (a GPU of CUDA if there is one, else the processor), cpu, cuda, or mps on a Mac.
            revision: branch, tag or commit of a shared run; "user/name@revision" says it too.
            calibration: a file of `save_calibration`, in place of the run's own.
        Raises: FileNotFoundError or ValueError if one of the files is missing or does not fit; ValueError for a base
            rate where probabilities are not calibrated.
        """
        if is_clip(run_folder):
            if base_rate is not None and not calibration:
                remedy = "leave it out, or give a calibration"
                raise ValueError(f"base_rate is for calibrated probabilities, and {UNCALIBRATED}: {remedy}")
            if revision is not None:
                raise ValueError(f"revision is for a run on the hub, and {run_folder} is a CLIP: leave it out")
            predictor = cls.from_clip(run_folder, device=device)
        else:
            predictor = cls._of_run(find_run(run_folder, revision), run_folder, device)
        if calibration:
            predictor.load_calibration(calibration)
        if base_rate is not None:
            if note := predictor.calibration.note:
                raise ValueError(f"base_rate is for calibrated probabilities, but {note}: leave it out")
            predictor.calibration = predictor.calibration.at(base_rate)
        return predictor

    @classmethod
    def _of_run(cls, folder, name, device):
        config, model = load_run(folder)
        config = replace(config, device=device)
        try:
            metrics = json.loads((folder / "metrics.json").read_text(encoding="utf8"))
            labels, calibration = read_labels(folder), read_calibration(metrics["calibration"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            remedy = f"is not finished, or of another version ({error}): go on with it, resume True"
            raise FileNotFoundError(f"the run in {name} {remedy}") from None
        return cls(model.to(config.device), config, labels, calibration)

    @classmethod
    def from_clip(cls, name="mini", labels=None, windows=25, device="auto"):
        """Untouched CLIP, without any training: the softmax of its cosines, the highest of the whole image's and each
        window's (`RawClip`).

        Its numbers are no probabilities and it predicts none before `calibrate`; only their order counts.

        Args:
            name: a CLIP as towers are named, such as "open_clip:ViT-B-32/laion2b_s34b_b79k".
            labels: the names between which the softmax decides, asked about when no labels are given, or a LabelSpace,
                of which it is the seen ones; by default the names of COCO and NUS-WIDE. What else is asked about is
                held against these, so let them be many.
            windows: 0, 4, 25 or sizes and strides, see `clipdec.towers.windows_of`; 25 costs 26 passes an image.
            device: as for `load`.
        """
        labels = [labels] if isinstance(labels, str) else labels
        space = labels if isinstance(labels, LabelSpace) else LabelSpace([], list(labels or vocabulary()))
        config = Config(image_tower=name, text_tower=name, windows=windows, device=device)
        references = encode_labels(space.seen or space.unseen, name, config.prompt)
        model = RawClip(name, references, config.windows).to(config.device).eval()
        return cls(model, config, space, Calibration(threshold=1.0, note=f"{UNCALIBRATED}; {REMEDY}"))

    def calibrate(self, images, labels, names=None):
        """Fit `calibration` to some images of yours, so that probabilities and threshold are those of your photos.

        Args:
            images: a list, as for a prediction; some dozens with some dozens of labels are enough for two numbers.
            labels: the names that each of them carries, a list a photo.
            names: the names that were looked for in all of them; by default those that one of them carries.
        Raises: ValueError if an image cannot be read, the lists differ in length, or these images cannot tell what a
            score means.
        """
        if len(images) != len(labels):
            raise ValueError(
                f"there are {len(images)} images and labels of {len(labels)}: give a list of names an image"
            )
        lists = [[each] if isinstance(each, str) else list(each) for each in labels]
        names = [names] if isinstance(names, str) else names
        names = list(names or {same_name(name): name for each in lists for name in each}.values())
        carried = [set(map(same_name, each)) for each in lists]
        if odd := set().union(*carried) - set(map(same_name, names)):
            raise ValueError(f"{min(odd)!r} is carried but not among names: add it there, or leave it out")
        targets = torch.tensor([[same_name(name) in each for name in names] for each in carried])
        pixels = (self.model.tower.preprocess(open_image(image))[None] for image in images)
        scores = torch.cat([self._scores(each, names) for each in pixels] or [torch.empty(0, 0)])
        calibration = fit_calibration(scores, targets)
        if calibration.note:
            note = calibration.note.replace("val", "what was given")
            raise ValueError(f"{note}: give more images, with and without the labels")
        self.calibration = calibration

    def save_calibration(self, path):
        """Write `calibration` to a JSON file, for `load` with the same model and `--calibration` of the command.

        Raises ValueError if there is none.
        """
        if self.calibration.note:
            raise ValueError(f"there is no calibration to keep: {self.calibration.note}")
        path = Path(path).expanduser()
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as aside:
            kept = {"model": self.identity()} | asdict(self.calibration)
            aside.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf8")

    def load_calibration(self, path):
        """Take the calibration of a file. Raises FileNotFoundError, or ValueError if it is none, or another model's."""
        kept = read_settings(path)
        try:
            calibration = read_calibration(kept)
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"{path} holds no calibration: write one with save_calibration") from None
        if kept.get("model") != self.identity():
            remedy = "open the model as it was then, or calibrate it anew"
            raise ValueError(f"{path} is the calibration of another model, or of other settings or labels: {remedy}")
        self.calibration = calibration

    def identity(self):
        """A short text, another one for other weights, settings or labels, and the same on every machine."""
        about = self.config.decisive(), self.labels.seen, self.labels.unseen
        own = {name: value for name, value in self.model.state_dict().items() if name != "references"}  # computed here
        return digest(json.dumps(about), own)

    @property
    def threshold(self):
        return self.calibration.threshold

    def vectors(self, labels):
        """Label vectors [L, D]. A name is encoded once; those that a label_embeddings file lacks raise ValueError."""
        missing = [name for name in dict.fromkeys(labels) if name not in self._vectors]
        if missing or not labels:
            self._vectors |= zip(missing, label_queries(self.config, missing).to(self.config.device))
        return torch.stack([self._vectors[name] for name in labels])

    def log_odds(self, images, labels):
        """Logits [B, L] of the probabilities of labels for some RGB images, on the CPU."""
        return self._log_odds(torch.stack([self.model.tower.preprocess(image) for image in images]), labels)

    def _log_odds(self, pixels, labels):
        return self.calibration.log_odds(self._scores(pixels, labels))

    @torch.no_grad()
    def _scores(self, pixels, labels):
        """Scores [B, L] before any calibration, on the CPU."""
        tokens, vectors = self.model.tower(pixels.to(self.config.device))
        return self.model.score(tokens, vectors, self.vectors(labels)).float().cpu()

    def __call__(self, image, labels=None, top_k=None):
        """The labels of an image, or of each image of a list, with their probabilities, the most probable first.

        Args:
            image: what `clipdec.images.open_image` takes: path of an image file, PIL image, array or tensor; or a list
                of these.
            labels: names to ask about, known to training or not; by default those of the run.
            top_k: how many to return, by default all.

        Returns: list of (label, probability), or a list of such lists; in it None, and a warning that names it, for an
            image that cannot be read.
        Raises: ValueError if a single image cannot be read, or a label is empty.
        """
        if not isinstance(image, (list, tuple)):
            labels = self._names(labels)
            return self._answers(self.log_odds([open_image(image)], labels), labels, top_k)[0]
        answers = [answer for _, answer in self.stream(image, labels, top_k)]
        for answer in answers:  # only now: while images are opened, warnings are set aside, for all threads
            if isinstance(answer, ImageError):
                warnings.warn(f"left out: {answer}", stacklevel=2)
        return [None if isinstance(answer, ImageError) else answer for answer in answers]

    def stream(self, images, labels=None, top_k=None):
        """Yield (image, its answer) for any number of images, one after the other, in memory that does not grow with
        it: the next ones are opened while the model looks at some.

        Args: as for a prediction; images, any iterable. The answer of one that cannot be read is the ImageError.
        """
        labels, images = self._names(labels), iter(images)
        self.vectors(labels)  # before any work is done: a wrong label costs no answer
        with ThreadPoolExecutor(1) as pool:  # one, as what sets Pillow's warnings aside does so for all threads
            size, waiting = -(-BATCH // self.model.tower.passes), deque()
            while part := list(islice(images, size)):
                waiting.append([(image, pool.submit(self._pixels, image)) for image in part])
                if len(waiting) > 1:
                    yield from self._answered(waiting.popleft(), labels, top_k)
            if waiting:
                yield from self._answered(waiting.popleft(), labels, top_k)

    def _names(self, labels):
        return [labels] if isinstance(labels, str) else list(self.labels.names if labels is None else labels)

    def _pixels(self, image):
        """Pixels [3, H, W] of an image, or why it has none."""
        try:
            return self.model.tower.preprocess(open_image(image))
        except ImageError as error:
            return error

    def _answered(self, part, labels, top_k):
        part = [(image, future.result()) for image, future in part]
        pixels = [each for _, each in part if not isinstance(each, ImageError)]
        found = iter(self._answers(self._log_odds(torch.stack(pixels), labels), labels, top_k) if pixels else [])
        yield from ((image, each if isinstance(each, ImageError) else next(found)) for image, each in part)

    def _answers(self, log_odds, labels, top_k):
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}")
        answers = []
        for odds in log_odds.double():  # single ones round to 1 from 17 on
            order = odds.argsort(descending=True, stable=True)[:top_k].tolist()
            answers.append([(labels[i], odds[i].sigmoid().item()) for i in order])
        return answers

    @torch.no_grad()
    def explain(self, image, label):
        """Where a label looked: its attention, averaged over the heads, for every pixel of the image as it stands
        upright.

        The tower's tokens are coarse; between their centres the map is interpolated. Of a tower with windows each has
        its attention all over it, and they overlap. It is not a segmentation.

        Args: image, as for a prediction; label, a name, or a list of L names.
        Returns: map [H, W] that sums to 1, or [L, H, W].
        """
        image, labels = open_image(image), [label] if isinstance(label, str) else list(label)
        tokens, vectors = self.model.tower(self.model.tower.preprocess(image)[None].to(self.config.device))
        _, maps = self.model.score(tokens, vectors, self.vectors(labels), need_attention=True)
        maps = spread(maps[0].float().cpu(), self.model.tower)[None]  # [1, L, rows, columns], whole image
        maps = F.interpolate(maps, (image.height, image.width), mode="bilinear")[0]
        maps = maps / maps.sum((1, 2), keepdim=True)
        return maps[0] if isinstance(label, str) else maps


def read_calibration(kept):
    """The Calibration of {name: value}. Raises KeyError, TypeError or ValueError if that is none."""
    four = [float(kept[name]) for name in ("scale", "shift", "threshold", "base_rate")]
    if not all(map(math.isfinite, four)):
        raise ValueError(f"the calibration {four} is not finite")
    return Calibration(*four, kept.get("note", ""))


def spread(maps, tower):
    """Attention to a tower's tokens, [L, N], laid over the image: [L, rows, columns]. A window's lies all over it."""
    if not tower.boxes:
        return maps.unflatten(-1, tower.grid)
    shares = torch.zeros(tower.num_tokens, UNIT, UNIT)
    for share, (top, left, size) in zip(shares, [(0, 0, UNIT), *tower.boxes], strict=True):
        share[top : top + size, left : left + size] = 1 / size**2
    return torch.einsum("ln,nyx->lyx", maps, shares)
