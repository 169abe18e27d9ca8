"""Prepared data sets: images, label indices and a label space, opened from one folder."""

import io
import json
import math
import random
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from clipdec.labels import LabelSpace
from clipdec.training.processes import add_up, is_main, rank_and_count, share, wait
from clipdec.training.progress import progress
from clipdec.training.tokens import Store, digest, files_key

REPOSITORY = Path(__file__).resolve().parents[1]
DATA = (REPOSITORY if (REPOSITORY / "pyproject.toml").is_file() else Path.cwd()) / "data"
PREPARE = {"emoji": "python -m data_prep.emoji_scenes"}  # how a data set known by name is prepared


@dataclass(frozen=True)
class Split:
    """Images of one split: `split[i]` is (RGB PIL image, multi-hot labels [L]); `targets` are those of all, [M, L] bool.

    `rows` is the stored table, memory-mapped, and `index` [M] says which of its rows are the split's, in order.
    Raises ValueError that names the image if a file cannot be decoded.
    """

    name: str
    rows: datasets.Dataset
    targets: torch.Tensor
    index: torch.Tensor

    def __len__(self):
        return len(self.index)

    def __getitem__(self, i):
        return self.image(i), self.targets[i]

    def image(self, i):
        cell = self.rows[int(self.index[i])]["image"]
        if cell["bytes"] is None:  # a path stored in a data set is not followed
            raise ValueError(f"image {i} of {self.name} ({cell['path']}) is not stored in the data set: prepare the data again")
        try:
            return Image.open(io.BytesIO(cell["bytes"])).convert("RGB")
        except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise ValueError(f"image {i} of {self.name} ({cell['path']}) cannot be read ({error}): prepare the data again without it") from None

    def select(self, indices):
        """The images at `indices`, in that order."""
        indices = torch.as_tensor(indices, dtype=torch.long)
        return replace(self, index=self.index[indices], targets=self.targets[indices])


@dataclass(frozen=True)
class Data:
    """A prepared data set: the splits `train`, `val`, `test`, its LabelSpace `labels`, and `info` (source, licence)."""

    folder: Path
    train: Split
    val: Split
    test: Split
    labels: LabelSpace
    info: dict


def load_data(name_or_folder="emoji"):
    """Open a prepared data set: `emoji`, or any folder that a script of data_prep wrote (a relative path is looked for in the
    working directory, then in the repository).

    Returns: Data.
    Raises: FileNotFoundError if the folder is missing or not prepared, ValueError if its labels contradict each other.
    """
    known = PREPARE.get(str(name_or_folder))
    folder = DATA / name_or_folder if known else Path(name_or_folder).expanduser()
    if not folder.is_dir():
        folder = DATA.parent / folder
    remedy = f"run `{known} --out {folder}`" if known else "prepare it with a script of data_prep, or give another folder"
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no data folder {folder}: {remedy}")
    if not (folder / "labels.json").is_file() or not (folder / "dataset_dict.json").is_file():
        raise FileNotFoundError(f"{folder} is not a prepared data set (labels.json and the splits of `datasets` are missing): {remedy}")
    try:
        info = json.loads((folder / "labels.json").read_text(encoding="utf8"))
        names = info.pop("seen"), info.pop("unseen")
    except (ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{folder / 'labels.json'} does not hold lists of seen and unseen names ({error}): {remedy}") from None
    labels = LabelSpace(*names)
    tables = datasets.load_from_disk(folder)
    if missing := {"train", "val", "test"} - set(tables):
        raise FileNotFoundError(f"{folder} lacks the split {', '.join(sorted(missing))}: {remedy}")
    return Data(folder, *(_split(tables[s], s, len(labels.names)) for s in ("train", "val", "test")), labels, info)


def _split(table, name, count):
    targets = torch.zeros(len(table), count, dtype=torch.bool)
    for row, indices in zip(targets, table["labels"]):
        if indices and not 0 <= min(indices) <= max(indices) < count:
            raise ValueError(f"{name} holds label indices {min(indices)} to {max(indices)}, but labels.json names {count} labels: prepare the data again")
        row[indices] = True
    return Split(name, table.cast_column("image", datasets.Image(decode=False)), targets, torch.arange(len(table)))


def held_out(labels, count, seed=0):
    """`count` of the seen labels drawn to play unseen ones: (indices of the others, indices of those), both sorted."""
    seen = len(labels.seen)
    if not 0 < count < seen:
        raise ValueError(f"count must be from 1 to {seen - 1}, got {count}")
    held = torch.tensor(sorted(random.Random(seed).sample(range(seen), count)))
    others = torch.ones(seen, dtype=torch.bool)
    others[held] = False
    return others.nonzero().flatten(), held


def held_labels(labels, config):
    """(indices of the seen labels asked in training, of those that a run's Config holds out of it to choose by)."""
    count = round(config.hold_out * len(labels.seen))
    return held_out(labels, count, config.seed) if count else (labels.seen_index, torch.arange(0))


def hold_out(data, count=81, seed=0):
    """Seen labels playing the unseen, to choose settings without a look at test: a Data whose `unseen` are `count` of the
    seen labels, whose train images carry none of them, and whose test split is val (as its val still is).
    """
    others, held = held_out(data.labels, count, seed)
    order = torch.cat([others, held])
    names = data.labels.seen
    labels = LabelSpace([names[i] for i in order[:-count]], [names[i] for i in held])
    train, val = (replace(s, targets=s.targets[:, order]) for s in (data.train, data.val))
    clean = (~train.targets[:, -count:].any(1)).nonzero().flatten().tolist()
    return replace(data, train=train.select(clean), val=val, test=val, labels=labels)


class Pixels(torch.utils.data.Dataset):
    """A split as (pixels [3, H, W], multi-hot float labels [L], index), for a DataLoader.

    With a `seed` the random numbers of an image's transform depend on it and on the image alone: not on the order, on the
    number of workers or processes, or on where a run was resumed.
    """

    def __init__(self, split, transform, seed=None):
        self.split, self.transform, self.seed = split, transform, seed

    def __len__(self):
        return len(self.split)

    def __getitem__(self, i):
        image, targets = self.split[i]
        if self.seed is None:
            return self.transform(image), targets.float(), i
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(hash((self.seed, int(i))))
            return self.transform(image), targets.float(), i


def augmented(preprocess):
    """A tower's transform with RandAugment before and Cutout (a square of half the side, in the mean colour) after it."""
    return v2.Compose([v2.RandAugment(), preprocess, v2.RandomErasing(p=1.0, scale=(0.25, 0.25), ratio=(1.0, 1.0))])


@torch.no_grad()
def encode_images(tower, split, folder=None, batch_size=64, num_workers=0, device="cpu"):
    """Tokens and global vectors of a split, computed once: (Rows of float16 [M, N, C], Rows of float32 [M, D]).

    What was computed is read through a memory map, and of a split that was encoded in part only the rest is computed.
    Several processes share the work. Tokens for which the disk has no room are None, and to be computed when they are needed.

    Args:
        tower: an ImageTower.
        split: a Split.
        folder: where results are kept, in a folder of their own for every tower, weights, preprocessing and stored data;
            `fit` uses `tokens/` in the data folder. None keeps them in memory.
    """
    files = [file["filename"] for file in split.rows.cache_files]
    kept = Path(folder) / f"{split.name}-{digest(tower.key, files_key(files))}" if folder and files else None
    arrays = {"tokens": ((math.prod(tower.grid), tower.num_features), np.float16), "vectors": ((tower.embed_dim,), np.float32)}
    store = Store(kept, len(split.rows), arrays)
    if kept and not _room(kept, len(store.missing(split.index)), arrays):
        del arrays["tokens"]
        store = Store(kept.with_name(f"{kept.name}-vectors"), len(split.rows), arrays)
    todo = share(store.missing(split.index))
    if len(todo):
        tower.to(device).eval()
        rest = replace(split, index=todo, targets=split.targets[:1].expand(len(todo), -1))
        loader = DataLoader(Pixels(rest, tower.preprocess), batch_size, num_workers=num_workers)
        for rows, (pixels, *_) in zip(todo.split(batch_size), progress(loader, desc=f"tokens of {split.name}")):
            tokens, vectors = tower(pixels.to(device))
            if not (tokens := tokens.half()).isfinite().all():
                raise ValueError(f"{tower.name} gives tokens beyond half precision: train with train_image_tower, which keeps none")
            values = {"tokens": tokens.cpu().numpy(), "vectors": vectors.float().cpu().numpy()}
            store.write(rows, {name: values[name] for name in arrays})
    wait()
    return store.rows("tokens", split.index) if "tokens" in arrays else None, store.rows("vectors", split.index)


def _room(folder, count, arrays):
    """Whether the disk of every process has room for `count` more rows; says so if not."""
    needed = count * sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in arrays.values())
    fits = needed < 0.95 * shutil.disk_usage(folder).free
    fits = add_up(torch.tensor(float(fits))) == rank_and_count()[1]
    if not fits and is_main():
        print(f"{folder.parent} has no room for {needed / 1e9:.1f} GB of tokens: images are encoded anew each time, which is slower", flush=True)
    return fits
