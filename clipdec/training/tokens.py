"""Arrays on disk that are filled row by row and read through memory maps: what is computed of images and texts once."""

import hashlib
import os
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock


class Store:
    """Arrays of `count` rows under one folder, and which rows are there.

    Rows are marked as there only after their bytes are on disk, so filling can be broken off at any moment and go on later.

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
                    np.lib.format.open_memmap(aside, "w+", dtype, (count, *shape))  # takes no room until it is written to
                    os.replace(aside, path)

    def array(self, name):
        """The array as it is now, memory-mapped; what is written to it in memory does not come to the disk."""
        return self.arrays[name] if self.folder is None else np.load(self.folder / f"{name}.npy", mmap_mode="c")

    def missing(self, rows):
        """Those of `rows` (an index tensor) that are not there yet."""
        return rows[torch.from_numpy(self.array("done")[rows.numpy()] == 0)]

    def write(self, rows, values):
        """Fill in `rows` with {name: array} of as many rows. A full disk is an OSError here, where a memory map would crash."""
        for name, value in (values | {"done": np.ones(len(rows), np.uint8)}).items():
            array = self.array(name)
            value = np.ascontiguousarray(value, array.dtype)
            if self.folder is None:
                array[rows] = value
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
    """Rows of an array that may be on disk: `rows[i]` reads those asked for as a tensor, i a number, slice or index tensor."""

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


def digest(*parts):
    """A short name for all of `parts` (texts, or dicts of tensors), another one if anything in them is another."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            found.update(part.encode() + b"\0")
            continue
        for key, value in part.items():
            found.update(f"{key} {tuple(value.shape)} {value.dtype}\0".encode())
            found.update(value.detach().cpu().flatten().contiguous().view(torch.uint8).numpy().data)
    return found.hexdigest()[:16]


def files_key(paths):
    """A text that changes when any of the files is written anew: their names, sizes and times of change."""
    stats = [(Path(path), Path(path).stat()) for path in sorted(paths)]
    return "\n".join(f"{path.name} {stat.st_size} {stat.st_mtime_ns}" for path, stat in stats)
