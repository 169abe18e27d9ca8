"""Prepared data sets: images, label indices and a label space, opened from one folder."""

import hashlib
import json
import os
import random
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from clipdec.images import open_image
from clipdec.labels import LabelSpace

REPOSITORY = Path(__file__).resolve().parents[1]
ROOT = REPOSITORY if (REPOSITORY / "pyproject.toml").is_file() else Path.cwd()  # where relative paths start
HOME = Path(os.environ.get("CLIPDEC_HOME") or ROOT).expanduser().resolve()  # where data/ and runs/ are
DATA = HOME / "data"
at_home = lambda path: HOME / Path(path).expanduser()
PREPARE = {"emoji": "python -m data_prep.emoji_scenes"}  # how a data set known by name is prepared


@dataclass(frozen=True)
class Split:
    """Images of one split: `split[i]` is (RGB PIL image, multi-hot labels [L]); `targets` [M, L] are those of all.

    `rows` is the stored table, a memory-mapped datasets.Dataset, `stored` a text that stands for its contents, and
    `index` [M] says which of its rows are the split's, in order. `known` [M, L] says which labels were verified, as
    there or as absent; nobody asked about the others. None: all are known.
    Raises ValueError that names the image if a file cannot be decoded.
    """

    name: str
    rows: object
    targets: torch.Tensor
    index: torch.Tensor
    stored: str
    known: torch.Tensor | None = None

    def __len__(self):
        return len(self.index)

    def __getitem__(self, i):
        return self.image(i), self.targets[i]

    def image(self, i):
        cell = self.rows[int(self.index[i])]["image"]
        name = f"image {i} of {self.name} ({cell['path']})"
        if cell["bytes"] is None:  # a path stored in a data set is not followed
            raise ValueError(f"{name} is not stored in the data set: prepare the data again")
        try:
            return open_image(cell["bytes"], name)
        except ValueError as error:
            raise ValueError(f"{error}: prepare the data again without it") from None

    def select(self, indices=None, labels=slice(None)):
        """The images at `indices` (None: all), in that order, with the targets of `labels`, indices as well."""
        rows = slice(None) if indices is None else torch.as_tensor(indices, dtype=torch.long)
        at = lambda marks: None if marks is None else marks[rows][:, labels]
        return replace(self, index=self.index[rows], targets=at(self.targets), known=at(self.known))


@dataclass(frozen=True)
class Data:
    """A prepared data set: the splits `train`, `val`, `test`, its LabelSpace `labels`, and `info` (source, licence)."""

    folder: Path
    train: Split
    val: Split
    test: Split
    labels: LabelSpace
    info: dict

    @cached_property
    def fingerprint(self):
        """A text that is another one if any image, any label of one or any name is another."""
        found = hashlib.sha256(json.dumps([self.labels.seen, self.labels.unseen]).encode())
        for split in (self.train, self.val, self.test):
            known = [] if split.known is None else [split.known.numpy()]
            for part in (split.stored.encode(), split.index.numpy(), split.targets.numpy(), *known):
                found.update(part)
        return found.hexdigest()[:16]


def find_data(name_or_folder):
    """The folder of a data set: `emoji`, or a path, of which a relative one starts here, or else in HOME."""
    folder = DATA / name_or_folder if str(name_or_folder) in PREPARE else Path(name_or_folder).expanduser()
    return folder if folder.is_dir() else HOME / folder


def load_data(name_or_folder="emoji"):
    """The Data of a prepared data set, in the folder that `find_data` gives and a script of data_prep wrote.

    Raises: FileNotFoundError if the folder is missing or not prepared, ValueError if its labels contradict each other.
    """
    folder, known = find_data(name_or_folder), PREPARE.get(str(name_or_folder))
    remedy = f"run `{known} --out {folder}`" if known else "prepare it with data_prep, or give another folder"
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no data folder {folder}: {remedy}")
    if not (folder / "labels.json").is_file() or not (folder / "dataset_dict.json").is_file():
        missing = "labels.json and the splits of `datasets` are missing"
        raise FileNotFoundError(f"{folder} is not a prepared data set ({missing}): {remedy}")
    try:
        info = json.loads((folder / "labels.json").read_text(encoding="utf8"))
        names = info.pop("seen"), info.pop("unseen")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        wanted = "does not hold lists of seen and unseen names"
        raise ValueError(f"{folder / 'labels.json'} {wanted} ({error}): {remedy}") from None
    labels = LabelSpace(*names)
    import datasets  # here: names, towers and predictions need no data set

    tables = datasets.load_from_disk(folder)
    if missing := {"train", "val", "test"} - set(tables):
        raise FileNotFoundError(f"{folder} lacks the split {', '.join(sorted(missing))}: {remedy}")
    splits = (_split(tables[name], name, len(labels.names)) for name in ("train", "val", "test"))
    return Data(folder, *splits, labels, info)


def _split(table, name, count):
    targets = _marks(table, "labels", name, count)
    known = _marks(table, "absent", name, count).logical_or_(targets) if "absent" in table.column_names else None
    images = table.cast_column("image", type(table.features["image"])(decode=False))
    return Split(name, images, targets, torch.arange(len(table)), table._fingerprint, known)


def _marks(table, column, name, count):
    """Where the lists of label indices of a column are, bool [M, count]."""
    marks = torch.zeros(len(table), count, dtype=torch.bool)
    for row, indices in zip(marks, table[column]):
        if indices and not 0 <= min(indices) <= max(indices) < count:
            found = f"label indices {min(indices)} to {max(indices)}, but labels.json names {count} labels"
            raise ValueError(f"{name} holds {found}: prepare the data again")
        row[indices] = True
    return marks


def split_seen(labels, count, seed=0):
    """Draw `count` of the seen labels to be held out of a training: (indices of the others, indices of those)."""
    held = torch.tensor(sorted(random.Random(seed).sample(range(len(labels.seen)), count)), dtype=torch.long)
    return labels.seen_index[~torch.isin(labels.seen_index, held)], held


def hold_out(data, count=81, seed=0):
    """Seen labels playing the unseen, to choose settings without a look at test: a Data whose `unseen` are `count` of
    the seen labels, whose train images carry none of them, and whose test split is val (as its val still is).
    """
    if not 0 < count < len(data.labels.seen):
        raise ValueError(f"count must be from 1 to {len(data.labels.seen) - 1}, got {count}")
    order = torch.cat(split_seen(data.labels, count, seed))
    names, trained = [data.labels.seen[i] for i in order], len(order) - count
    train, val = (split.select(labels=order) for split in (data.train, data.val))
    clean = (~train.targets[:, trained:].any(1)).nonzero().flatten()
    labels = LabelSpace(names[:trained], names[trained:])
    return replace(data, train=train.select(clean), val=val, test=val, labels=labels)
