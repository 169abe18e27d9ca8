"""Predictor: any image, any labels.

    python -m clipdec.predictor runs/emoji photo.jpg --labels "dog face" pizza
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torchvision.transforms.v2.functional import to_pil_image

from clipdec.calibration import Calibration
from clipdec.labels import LabelSpace
from clipdec.model import label_vectors, load_run
from clipdec.training.progress import progress

BATCH = 32  # images that are in memory at a time


class Predictor:
    """A trained CLIP-Decoder that answers for any image.

        predictor = Predictor.load("runs/emoji")
        predictor("photo.jpg", ["dog face", "pizza"])   # [("pizza", 0.93), ("dog face", 0.02)]

    Its probabilities are calibrated on the run's val split: of the val labels with a probability near 0.3, three in ten are there.
    Where the labels asked about are more common than there they would be too low, and elsewhere too high; `base_rate` says how
    common they are.

    Attributes:
        labels: the LabelSpace of the run, asked about when no labels are given.
        threshold: the probability from which on predicted labels had the best F1 on val.
    """

    def __init__(self, model, config, labels, calibration):
        self.model, self.config, self.labels, self.calibration = model, config, labels, calibration
        self._vectors = {}

    @classmethod
    def load(cls, run_folder, base_rate=None):
        """Open a run folder that `fit` wrote: its checkpoint.safetensors, config.json, labels.json and metrics.json.

        Args: base_rate, the share of your images that carry a label which you ask about, such as 0.05; by default that of the
            seen labels on val (`calibration.base_rate`).
        Raises: FileNotFoundError or ValueError if one of the files is missing or does not fit.
        """
        config, model = load_run(run_folder)
        try:
            names, metrics = (json.loads((Path(run_folder) / name).read_text(encoding="utf8")) for name in ("labels.json", "metrics.json"))
            labels, calibration = LabelSpace(**names), Calibration(**metrics["calibration"])
        except (OSError, KeyError) as error:
            raise FileNotFoundError(f"the run in {run_folder} is not finished, or of an older version ({error}): go on with it, resume True") from None
        model.to(config.device).tower.to(config.device)
        return cls(model, config, labels, calibration if base_rate is None else calibration.at(base_rate))

    @property
    def threshold(self):
        return self.calibration.threshold

    def vectors(self, labels):
        """Label vectors [L, D]. A name is encoded once; those that a label_embeddings file lacks raise ValueError."""
        missing = [name for name in dict.fromkeys(labels) if name not in self._vectors]
        if missing or not labels:
            self._vectors |= zip(missing, label_vectors(self.config, missing).to(self.config.device))
        return torch.stack([self._vectors[name] for name in labels])

    @torch.no_grad()
    def log_odds(self, images, labels):
        """Logits [B, L] of the probabilities of labels for some images, on the CPU."""
        pixels = torch.stack([self.model.tower.preprocess(open_image(image)) for image in images]).to(self.config.device)
        return self.calibration.log_odds(self.model.score(*self.model.tower(pixels), self.vectors(labels)).float().cpu())

    def __call__(self, image, labels=None, top_k=None):
        """The labels of an image, or of each image of a list, with their probabilities, the most probable first.

        Args:
            image: path of an image file, PIL image, array [H, W] or [H, W, 3], or tensor [3, H, W], of uint8 or
                of floats in 0..1; or a list of these.
            labels: names to ask about, known to training or not; by default those of the run.
            top_k: how many to return, by default all.

        Returns: list of (label, probability), or a list of such lists.
        Raises: ValueError if an image cannot be read or a label is empty.
        """
        images = image if isinstance(image, (list, tuple)) else [image]
        labels = [labels] if isinstance(labels, str) else list(self.labels.names if labels is None else labels)
        answers = []
        for part in (images[i : i + BATCH] for i in range(0, len(images), BATCH)):
            for probabilities in self.log_odds(part, labels).sigmoid():
                order = probabilities.argsort(descending=True, stable=True)[:top_k].tolist()
                answers.append([(labels[i], probabilities[i].item()) for i in order])
        return answers if isinstance(image, (list, tuple)) else answers[0]

    @torch.no_grad()
    def explain(self, image, label):
        """Where a label looked: its attention, averaged over the heads, for every pixel of the image as it stands upright.

        The tower's tokens are coarse; between their centres the map is interpolated. It is not a segmentation.

        Args: image, as for a prediction; label, a name, or a list of L names.
        Returns: map [H, W] that sums to 1, or [L, H, W].
        """
        image, labels = open_image(image), [label] if isinstance(label, str) else list(label)
        pixels = self.model.tower.preprocess(image)[None].to(self.config.device)
        _, maps = self.model.score(*self.model.tower(pixels), self.vectors(labels), need_attention=True)
        maps = maps[0].unflatten(-1, self.model.tower.grid)[None].float().cpu()  # [1, L, rows, columns], of the whole image
        maps = F.interpolate(maps, (image.height, image.width), mode="bilinear")[0]
        maps = maps / maps.sum((1, 2), keepdim=True)
        return maps[0] if isinstance(label, str) else maps


def open_image(image, name=None, largest=None):
    """An upright RGB image from a path, a file object, a PIL image, an array or a tensor.

    Args:
        image: see Predictor; name: what an error calls it, by default its path.
        largest: height and width in px that it is scaled down to, if it is larger. Of a large JPEG only that much is decoded.

    Raises: ValueError if it cannot be read.
    """
    try:
        if isinstance(image, (np.ndarray, torch.Tensor)):
            name = name or f"the array of {image.dtype} {list(image.shape)}"
            image = to_pil_image(image)
        opened = image if isinstance(image, Image.Image) else Image.open(image)
        if largest:
            opened.draft("RGB", (largest, largest))
        opened = ImageOps.exif_transpose(opened)  # photos say in EXIF which side is up
        if largest:
            opened.thumbnail((largest, largest))
        if not opened.width * opened.height:
            raise ValueError("it has no pixels")
        return opened.convert("RGB")
    except (OSError, ValueError, TypeError, AttributeError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name or image} cannot be read as an image: {error}") from None


# ---- the command ------------------------------------------------------------------------------------------------


def table(predictor, answer):
    """Labels with their probabilities as text; a tick marks those that are predicted."""
    width = max(len(name) for name, _ in answer)
    return "\n".join(f"  {'✓' if p >= predictor.threshold else ' '} {name:{width}}  {p:.3f}  {predictor.labels.kind(name)}" for name, p in answer)


def record(predictor, photo, answer):
    """The same for JSON."""
    rows = [{"label": n, "probability": round(p, 6), "predicted": p >= predictor.threshold, "kind": predictor.labels.kind(n)} for n, p in answer]
    return {"image": photo, "labels": rows}


def main(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python -m clipdec.predictor", fromfile_prefix_chars="@", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Print the labels of photos, the most probable first, and a tick at those that are predicted.",
        epilog='examples:\n  python -m clipdec.predictor runs/emoji photo.jpg --labels "dog face" pizza\n'
        "  python -m clipdec.predictor runs/emoji photos/*.jpg --json --labels @names.txt     # names.txt: a label a line",
    )  # fmt: skip
    parser.add_argument("run_folder", help="a folder that notebooks/04_train.ipynb wrote")
    parser.add_argument("photos", nargs="+", help="image files")
    parser.add_argument("--labels", nargs="+", help="what to ask about; by default the labels of the run")
    parser.add_argument("--top-k", type=int, help="how many labels to print for each photo; by default 10, of those given by --labels all")
    parser.add_argument("--base-rate", type=float, help="share of your photos that carry a label which you ask about, such as 0.05; by default that of val")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    args = parser.parse_args(arguments)
    try:
        predictor = Predictor.load(args.run_folder, args.base_rate)
        predictor.vectors(args.labels or predictor.labels.names)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    answers = {}
    for photo in progress(args.photos, "photos"):
        try:
            answers[photo] = predictor(photo, args.labels, args.top_k or (None if args.labels else 10))
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
    if args.json:
        print(json.dumps([record(predictor, photo, answer) for photo, answer in answers.items()], indent=1, ensure_ascii=False))
    elif answers:
        print(*(f"{photo}\n{table(predictor, answer)}\n" for photo, answer in answers.items()), sep="\n", end="")
        calibration = predictor.calibration
        print(f"✓ predicted: at least {calibration.threshold:.3f}, the best F1 on val; for labels in {100 * calibration.base_rate:.2g} % of the photos (--base-rate)")
    sys.exit(int(len(answers) < len(set(args.photos))))


if __name__ == "__main__":
    main()
