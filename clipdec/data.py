"""Prepared data sets: images, label indices and a label space, opened from one folder."""

import io
import json
import math
import random
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import torch
from PIL import Image, UnidentifiedImageError
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from clipdec.labels import LabelSpace

REPOSITORY = Path(__file__).resolve().parents[1]
DATA = (REPOSITORY if (REPOSITORY / "pyproject.toml").is_file() else Path.cwd()) / "data"
PREPARE = {"emoji": "python -m data_prep.emoji_scenes"}  # how a data set known by name is prepared


@dataclass(frozen=True)
class Split:
    """Images of one split: `split[i]` is (RGB PIL image, multi-hot labels [L]); `targets` are those of all, [M, L] bool.

    Raises ValueError that names the image if a file cannot be decoded.
    """

    name: str
    rows: datasets.Dataset
    targets: torch.Tensor

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.image(i), self.targets[i]

    def image(self, i):
        cell = self.rows[int(i)]["image"]
        if cell["bytes"] is None:  # a path stored in a data set is not followed
            raise ValueError(f"image {i} of {self.name} ({cell['path']}) is not stored in the data set: prepare the data again")
        try:
            return Image.open(io.BytesIO(cell["bytes"])).convert("RGB")
        except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise ValueError(f"image {i} of {self.name} ({cell['path']}) cannot be read ({error}): prepare the data again without it") from None

    def select(self, indices):
        """The images at `indices`, in that order."""
        return replace(self, rows=self.rows.select(indices), targets=self.targets[torch.as_tensor(indices, dtype=torch.long)])


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
    return Split(name, table.cast_column("image", datasets.Image(decode=False)), targets)


def hold_out(data, count=81, seed=0):
    """Seen labels playing the unseen, to choose settings without a look at test: a Data whose `unseen` are `count` of the
    seen labels, whose train images carry none of them, and whose test split is val (as its val still is).
    """
    seen = len(data.labels.seen)
    if not 0 < count < seen:
        raise ValueError(f"count must be from 1 to {seen - 1}, got {count}")
    held = sorted(random.Random(seed).sample(range(seen), count))
    order = torch.tensor(sorted(set(range(seen)) - set(held)) + held)
    names = data.labels.seen
    labels = LabelSpace([names[i] for i in order[:-count]], [names[i] for i in held])
    train, val = (replace(s, targets=s.targets[:, order]) for s in (data.train, data.val))
    clean = (~train.targets[:, -count:].any(1)).nonzero().flatten().tolist()
    return replace(data, train=train.select(clean), val=val, test=val, labels=labels)


class Pixels(torch.utils.data.Dataset):
    """A split as (pixels [3, H, W], multi-hot float labels [L], index), for a DataLoader."""

    def __init__(self, split, transform):
        self.split, self.transform = split, transform

    def __len__(self):
        return len(self.split)

    def __getitem__(self, i):
        image, targets = self.split[i]
        return self.transform(image), targets.float(), i


@torch.no_grad()
def encode_images(tower, split, folder=None, batch_size=64, num_workers=0, device="cpu"):
    """Tokens and global vectors of a whole split, computed once: (float16 [M, N, C], float32 [M, D]).

    Args:
        tower: an ImageTower.
        split: a Split.
        folder: where results are kept for the next call, `tokens/` in the data folder by default of `fit`;
            keyed by tower, weights, preprocessing and images. None keeps nothing.
    """
    path = None if folder is None else Path(folder) / f"{split.name}-{tower.key}-{split.rows._fingerprint}.safetensors"
    if path and path.is_file():
        kept = load_file(path)
        return kept["tokens"], kept["vectors"]
    loader = DataLoader(Pixels(split, tower.preprocess), batch_size, num_workers=num_workers)
    tower.to(device).eval()
    parts = [[x.cpu() for x in tower(pixels.to(device))] for pixels, *_ in tqdm(loader, desc=f"tokens of {split.name}", leave=False)]
    parts = parts or [(torch.empty(0, math.prod(tower.grid), tower.num_features), torch.empty(0, tower.embed_dim))]
    tokens, vectors = torch.cat([t.half() for t, _ in parts]), torch.cat([v.float() for _, v in parts])
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".partial")
        save_file({"tokens": tokens, "vectors": vectors}, aside)
        aside.rename(path)
    return tokens, vectors
