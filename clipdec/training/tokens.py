"""What is computed of images and texts once: arrays on disk, filled row by row and read through memory maps."""

import math
import os
import shutil
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import psutil
import torch
import torch.nn.functional as F
from filelock import FileLock
from torch.utils.data import DataLoader

from clipdec.towers import encode_labels, encode_texts
from clipdec.training.build import label_queries, sentence_tower
from clipdec.training.inputs import digest, text_key, tower_key
from clipdec.training.pixels import Pixels
from clipdec.training.processes import add_up, is_main, progress, rank_and_count, share, wait
from clipdec.training.sentences import sentence_texts


class Store:
    """Arrays of `count` rows under one folder, and which rows are there.

    Rows are marked as there only after their bytes are on disk, so filling can be broken off at any moment and go on.

    Args:
        folder: where the arrays are, its name the key of what they were computed from; None keeps them in memory.
        count: rows.
        arrays: {name: (shape of a row, dtype)}.
    """

    def __init__(self, folder, count, arrays):
        wanted = arrays | {"done": ((), np.uint8)}
        self.folder = folder if count else None
        if self.folder is None:
            self.arrays = {name: np.zeros((count, *shape), dtype) for name, (shape, dtype) in wanted.items()}
            return
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock"):
            for name, (shape, dtype) in wanted.items():
                path, aside = folder / f"{name}.npy", folder / f"{name}.partial"
                if not path.is_file():
                    aside.unlink(missing_ok=True)  # as in `whole`
                    # filled later, and most disks give it room only then
                    np.lib.format.open_memmap(aside, "w+", dtype, (count, *shape))
                    os.replace(aside, path)

    def array(self, name):
        """The array as it is now, memory-mapped; what is written to it in memory does not come to the disk."""
        return self.arrays[name] if self.folder is None else np.load(self.folder / f"{name}.npy", mmap_mode="c")

    def missing(self, rows):
        """Those of `rows` (an index tensor) that are not there yet."""
        return rows[torch.from_numpy(self.array("done")[rows.numpy()] == 0)]

    def write(self, rows, values):
        """Fill in `rows` with {name: array} of as many rows. A full disk is an OSError here, not a crash of a map."""
        for name, value in (values | {"done": np.ones(len(rows), np.uint8)}).items():
            array = self.array(name)
            value = np.ascontiguousarray(value, array.dtype)
            if self.folder is None:
                array[rows.numpy()] = value  # numpy takes a tensor of one number for that number
                continue
            with open(self.folder / f"{name}.npy", "r+b") as file:
                for row, content in zip(rows.tolist(), value):
                    file.seek(array.offset + row * content.nbytes)
                    file.write(content.tobytes())
                file.flush()
                os.fsync(file.fileno())

    def rows(self, name, index):
        """The rows of an array at `index`, read when they are asked for."""
        return Rows(self.array(name), index)


class Rows:
    """Rows of an array that may be on disk: `rows[i]` reads some of them as a tensor, i a number, slice or index
    tensor.
    """

    def __init__(self, array, index):
        self.array, self.index = array, index

    def __len__(self):
        return len(self.index)

    def __getitem__(self, i):
        return torch.from_numpy(np.array(self.array[self.index[i].numpy()]))

    @property
    def shape(self):
        return torch.Size((len(self), *self.array.shape[1:]))

    def split(self, size):
        """Consecutive parts of `size` rows."""
        return (self[i : i + size] for i in range(0, len(self), size))


def files_key(paths):
    """A text that changes when any of the files is written anew: their names, sizes and times of change."""
    stats = [(Path(path), Path(path).stat()) for path in sorted(paths)]
    return "\n".join(f"{path.name} {stat.st_size} {stat.st_mtime_ns}" for path, stat in stats)


def token_folder(data):
    """Where tokens and sentences of a data set are kept; None, in memory, if nothing can be written there."""
    folder = data.folder / "tokens"
    return folder if _can_write(folder) else None


@lru_cache(maxsize=None)  # so that it is said once
def _can_write(folder):
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            return True
    except OSError as error:
        if is_main():
            print(f"{folder} cannot be written ({error.strerror}): tokens stay in memory", flush=True)
        return False


def encode_split(tower, split, data, config):
    """`encode_images` of a data set's split, kept in its token folder."""
    return encode_images(tower, split, token_folder(data), num_workers=config.num_workers, device=config.device)


def kept_tokens(tower, split, data, config):
    """`encode_split` where tokens are needed. Raises ValueError if there is no room for them."""
    tokens, vectors = encode_split(tower, split, data, config)
    if tokens is None:
        raise ValueError(f"there is no room for the tokens of {split.name}: make room on the disk, or in memory")
    return tokens, vectors


def encoded(model, split, data, config):
    """(tokens [M, N, C], global vectors [M, D]) of a split that are kept for a frozen tower, None for a trained one,
    whose tokens change, or if the disk is too small for them."""
    if model.train_tower:
        return None
    tokens, vectors = encode_split(model.tower, split, data, config)
    return None if tokens is None else (tokens, vectors)


@torch.no_grad()
def encode_images(tower, split, folder=None, batch_size=64, num_workers=0, device="cpu"):
    """Tokens and global vectors of a split, computed once: (Rows of float16 [M, N, C], Rows of float32 [M, D]).

    What was computed is read through a memory map, and of a split that was encoded in part only the rest is computed.
    Several processes share the work. Tokens that the disk has no room for are None, to be computed when needed.

    Args:
        tower: an ImageTower.
        split: a Split.
        folder: where results are kept, in a folder of their own for every tower, weights, preprocessing and stored
            data. None keeps them in memory.
    """
    store, names = _store_of(tower, split, folder)
    todo = store.missing(split.index)
    todo = share(todo) if store.folder else todo  # memory is not shared
    if len(todo):
        tower.to(device).eval()
        rest = replace(split, index=todo, targets=split.targets[:1].expand(len(todo), -1))
        batch_size = -(-batch_size // tower.passes)
        loader = DataLoader(Pixels(rest, tower.preprocess), batch_size, num_workers=num_workers)
        for rows, (pixels, *_) in zip(todo.split(batch_size), progress(loader, desc=f"tokens of {split.name}")):
            values = _encode(tower, pixels.to(device))
            store.write(rows, {name: values[name] for name in names})
    wait()
    tokens = store.rows("tokens", split.index) if "tokens" in names else None
    return tokens, store.rows("vectors", split.index)


def _encode(tower, pixels):
    tokens, vectors = tower(pixels)
    if not (tokens := tokens.half()).isfinite().all():
        remedy = "train with train_image_tower, which keeps none"
        raise ValueError(f"{tower.name} gives tokens beyond half precision: {remedy}")
    return {"tokens": tokens.cpu().numpy(), "vectors": vectors.float().cpu().numpy()}


def _store_of(tower, split, folder):
    """(Store of a split's encodings, names of its arrays): without tokens where the disk has no room for them."""
    files, count = [file["filename"] for file in split.rows.cache_files], len(split.rows)
    vectors = {"vectors": ((tower.embed_dim,), np.float32)}
    arrays = {"tokens": ((tower.num_tokens, tower.num_features), np.float16)} | vectors
    if not (folder and files and count):
        fits = _has_room(None, len(split.index), arrays)
        return Store(None, count, arrays if fits else vectors), arrays if fits else vectors
    kept = Path(folder) / f"{split.name}-{digest(tower_key(tower), split.stored, files_key(files))}"
    store = Store(kept, count, arrays)
    if _has_room(kept, len(store.missing(split.index)), arrays):
        return store, arrays
    return Store(kept.with_name(f"{kept.name}-vectors"), count, vectors), vectors


def _has_room(folder, count, arrays):
    """Whether the disk, or without a folder the memory, of every process has room for `count` more rows; says so if
    not.
    """
    needed = count * sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in arrays.values())
    fits = needed < (0.95 * shutil.disk_usage(folder).free if folder else 0.5 * psutil.virtual_memory().available)
    fits = add_up(torch.tensor(float(fits))) == rank_and_count()[1]
    if not fits and is_main():
        place, slower = folder.parent if folder else "memory", "images are encoded anew each time, which is slower"
        print(f"{place} has no room for {needed / 1e9:.1f} GB of tokens: {slower}", flush=True)
    return fits


def encode_sentences(split, labels, config, asked=None, folder=None):
    """The text vector [M, S] of each image: its seen labels joined in one sentence, "a photo of sky, car and road".

    Args:
        split, labels: a Split and the LabelSpace of its targets.
        asked: indices of the labels that sentences may name, by default all seen ones.
        folder: where vectors are kept for the next call, keyed by text tower and sentences. None keeps them in memory.
    """
    asked = labels.seen_index if asked is None else asked
    targets, names, encoder = split.targets[:, asked], [labels.names[i] for i in asked], sentence_tower(config)
    if encoder is None:
        vectors = label_queries(config, names)
        return torch.cat([F.normalize(part.float() @ vectors, dim=-1) for part in targets.split(4096)])
    joined = sentence_texts(targets, names, config)
    row_of = {sentence: i for i, sentence in enumerate(dict.fromkeys(joined))}  # equal label sets are encoded once
    texts, width = list(row_of), encode_labels(["a"], encoder).shape[1]
    kept = folder / f"sentences-{digest(text_key(encoder), *texts)}" if folder else None
    store = Store(kept, len(texts), {"vectors": ((width,), np.float32)})
    todo = store.missing(torch.arange(len(texts)))
    todo = share(todo) if store.folder else todo
    for rows in progress(todo.split(1024) if len(todo) else [], desc="sentences"):
        store.write(rows, {"vectors": encode_texts([texts[i] for i in rows], encoder, config.device)})
    wait()
    return store.rows("vectors", torch.tensor([row_of[sentence] for sentence in joined], dtype=torch.long))
