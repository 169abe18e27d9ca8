"""Predictor: any image, any labels."""

from functools import cached_property

import torch
from PIL import Image, ImageOps

from clipdec.data import load_data
from clipdec.model import label_vectors, load_run


class Predictor:
    """A trained CLIP-Decoder that answers for one image at a time.

        predictor = Predictor.load("runs/emoji")
        predictor("photo.jpg", ["dog face", "pizza"])   # [("pizza", 0.93), ("dog face", 0.02)]
    """

    def __init__(self, model, config):
        self.model, self.config = model, config

    @classmethod
    def load(cls, run_folder):
        """Open a run folder that `fit` wrote."""
        config, model = load_run(run_folder)
        model.to(config.device).tower.to(config.device)
        return cls(model, config)

    @cached_property
    def names(self):
        """The labels of the run's data set, asked about when none are given."""
        return load_data(self.config.data).labels.names

    def vectors(self, labels):
        """Label vectors [L, D]; labels that a label_embeddings file lacks raise ValueError."""
        return label_vectors(self.config, labels)

    @torch.no_grad()
    def explain(self, image, labels):
        """(probabilities [L], attention maps [L, rows, columns]) of labels for an image; each map sums to 1."""
        pixels, queries = self.model.tower.preprocess(_open(image))[None].to(self.config.device), self.vectors(labels).to(self.config.device)
        logits, maps = self.model.score(*self.model.tower(pixels), queries, need_attention=True)
        return logits[0].sigmoid().cpu(), maps[0].unflatten(-1, self.model.tower.grid).cpu()

    def __call__(self, image, labels=None, top_k=None):
        """The labels of an image with their probabilities, the most probable first.

        Args:
            image: PIL image, or path of an image file.
            labels: names to ask about, known to training or not; by default those of the data set.
            top_k: how many to return, by default all.

        Returns: list of (label, probability).
        Raises: ValueError if the image cannot be read or a label is empty.
        """
        labels = [labels] if isinstance(labels, str) else list(self.names if labels is None else labels)
        probabilities, _ = self.explain(image, labels)
        order = probabilities.argsort(descending=True)[:top_k].tolist()
        return [(labels[i], probabilities[i].item()) for i in order]


def _open(image):
    try:
        opened = image if isinstance(image, Image.Image) else Image.open(image)
        return ImageOps.exif_transpose(opened).convert("RGB")  # photos say in EXIF which side is up
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{image} cannot be read as an image: {error}") from None
