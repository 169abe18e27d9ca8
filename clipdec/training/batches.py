"""The images that are trained on, in batches that depend on the seed and the epoch alone."""

import time
from itertools import islice, pairwise

import torch
from torch.utils.data import DataLoader

from clipdec.training.pixels import Pixels, augmented
from clipdec.training.processes import rank_and_count, share
from clipdec.training.sentences import token_ids, told
from clipdec.training.tokens import encode_sentences, encoded, token_folder


class TrainingImages:
    """The images of a run's training, with their targets [M, L], which of these are `known` (None: all), and
    sentences; `steps` batches are an epoch.

    `sentences` are vectors [M, S], or where their text tower is trained, token ids [M, T].

    Args: data, a Data; asked, indices of the labels asked in training; model, the run's; config, its Config.
    """

    def __init__(self, data, asked, model, config):
        labelled = data.train.targets[:, asked].any(1)
        rows = torch.arange(len(data.train)) if "keep_unlabelled" in config.as_author else labelled.nonzero().flatten()
        self.split, self.config = data.train.select(rows), config
        if not len(rows):
            raise ValueError("no training image carries a seen label: check labels.json and the train split")
        self.steps = -(-len(rows) // config.batch_size)
        smallest, least = len(rows) // self.steps, config.accumulate * rank_and_count()[1]
        if smallest < least:
            parts = f"each of {least} parts (accumulate times processes)"
            raise ValueError(f"batch_size must give {parts} an image: a batch here holds {smallest}")
        trained = self.split.select(labels=asked)
        self.targets, self.known = trained.targets, trained.known
        self.sentences = torch.zeros(len(rows), model.text_proj.in_features)
        shown, named = told(self.split, data, asked, config)
        if "trained_sentence_tower" in config.as_author:
            self.sentences = token_ids(shown, data.labels, config, named)
        elif config.alpha:
            self.sentences = encode_sentences(shown, data.labels, config, named, token_folder(data))
        kept = None if config.augment else encoded(model, self.split, data, config)
        self.tokens = kept and kept[0]
        self.transform = model.tower.preprocess
        if config.augment:
            self.transform = augmented(self.transform, "cutout_first" in config.as_author)

    def epoch(self, epoch, first=0):
        """(numbers [B] of a batch's images, iterator of this process's parts of them) from step `first` on.

        Batches differ by an image at most, so that none is too small to share out or to take the statistics of.
        """
        seed = hash((self.config.seed, epoch))
        order = torch.randperm(len(self.split), generator=torch.Generator().manual_seed(seed))
        batches = order.tensor_split(self.steps)[first:]
        mine = [part for index in batches for part in parts(index, self.config.accumulate)]
        inputs = self._inputs(mine, seed)
        for index in batches:
            yield index, islice(inputs, self.config.accumulate)

    def _inputs(self, parts, seed):
        """Tokens or pixels of each part, one after the other."""
        if self.tokens is not None:
            return (self.tokens[part] for part in parts)
        options = {"num_workers": self.config.num_workers, "pin_memory": self.config.device.startswith("cuda")}
        pixels, batches = Pixels(self.split, self.transform, seed), [part.tolist() for part in parts]
        return (images for images, *_ in DataLoader(pixels, batch_sampler=batches, **options))

    def batch(self, index, inputs, queries):
        """The arguments of a Trainer's step."""
        known = None if self.known is None else self.known[index]
        return inputs, queries, self.sentences[index], self.targets[index], known

    def time_step(self, trainer, queries):
        """Seconds of a step with its loading: the shorter of two, after one that is slower for being the first."""
        times = [time.perf_counter()]
        for index, inputs in islice(self.epoch(0), 3):
            trainer.rehearse(*self.batch(index, inputs, queries))
            times.append(time.perf_counter())
        return min(b - a for a, b in pairwise(times))


def parts(index, accumulate):
    """This process's images of a batch `index` [B], in the parts that a step takes one after the other."""
    return [share(part) for part in index.tensor_split(accumulate)]
