"""The folder of a run: files that are there whole or not at all, the last complete state, and the record of the
training.
"""

import csv
import errno
import json
import math
import os
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_model
from torch.utils.tensorboard import SummaryWriter

from clipdec.training.config import read_settings

RECORD = "labels.json checkpoint.safetensors plain.safetensors history.csv state.pt metrics.json".split()
RECORD += ["scores.npz", "label_ap.csv"]
BEFORE = {"lock", "log.txt", "scores.npz", "scores.npy"}  # may be there before a run; the last of older versions


@contextmanager
def whole(path):
    """A path to write to; what was written there is flushed to the disk and renamed to `path`, or removed after an
    error.
    """
    aside = Path(f"{path}.partial")
    aside.unlink(missing_ok=True)  # a link there would lead the writing elsewhere
    try:
        yield aside
        with open(aside, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
        with suppress(OSError):  # Windows opens no folder
            folder = os.open(Path(path).parent, os.O_RDONLY)
            try:
                os.fsync(folder)  # the new name, too
            finally:
                os.close(folder)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


@contextmanager
def full_disk_explained(folder):
    """Turn what the libraries raise when the disk is full into one OSError that says what to do."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        cause = error
        while cause:  # torch.save raises a RuntimeError over the OSError
            if getattr(cause, "errno", None) == errno.ENOSPC or "os error 28" in str(cause):
                remedy = f"make room, then go on with resume True; the last state in {folder} is whole"
                raise OSError(errno.ENOSPC, f"the disk is full ({cause}): {remedy}") from error
            cause = cause.__context__
        raise


def read_history(path):
    """The rows of history.csv of a run folder, as numbers."""
    with open(Path(path).expanduser() / "history.csv", newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def write_scores(path, made_of, **scores):
    """Logits [M, L] of splits, {split: logits}, and {what: value} that they were made of, as an .npz."""
    with whole(path) as aside, open(aside, "wb") as file:
        np.savez(file, made_of=json.dumps(made_of), **{split: logits.numpy() for split, logits in scores.items()})


def read_scores(folder, split):
    """(logits [M, L] of a split, what they were made of) in scores.npz of a run folder; None if it does not hold them.

    Raises ValueError for a file that was broken off.
    """
    path = Path(folder).expanduser() / "scores.npz"
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            return (torch.from_numpy(file[split]), json.loads(str(file["made_of"]))) if split in file else None
    except (EOFError, BadZipFile) as error:
        raise ValueError(f"{path} cannot be read ({error}): remove it, and it is computed again") from None


def without_nan(content):
    """Dicts and lists with None, JSON's null, in place of numbers that are not finite, which JSON does not have."""
    if isinstance(content, dict):
        return {name: without_nan(value) for name, value in content.items()}
    if isinstance(content, list):
        return [without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


class InUse(RuntimeError):
    """Another run writes to the folder."""


def visible(folder):
    """Names of what a folder holds, but for hidden files, such as those that macOS leaves; none where there is none."""
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")} if folder.is_dir() else set()


def check_out_dir(path):
    """Raises FileExistsError if a folder holds anything and is not that of a run: what is in it is not ours to change.
    """
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"out_dir {path} is a file: give another out_dir")
    names = visible(path)
    with suppress(OSError, ValueError):
        if "dataset_dict.json" not in names and {"preset", "out_dir"} <= read_settings(path / "config.json").keys():
            return
    if names - BEFORE:
        what = "the folder of a data set" if "dataset_dict.json" in names else "not empty, and no run folder"
        raise FileExistsError(f"out_dir {path} is {what}: give another out_dir; nothing in it was changed")


class RunFolder:
    """What a run keeps, written by the main process alone (`main`); the others only read.

    Raises: FileExistsError if the folder holds something else, InUse if another run writes to it at the same time.
    """

    def __init__(self, path, main=True):
        check_out_dir(path)
        self.path, self.main, self.writer = path, main, None
        path.mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(path / "lock", timeout=0)
        if main:
            try:
                self.lock.acquire()
            except Timeout:
                remedy = "wait for it, or choose another out_dir"
                raise InUse(f"another run is writing to {path}: {remedy}") from None

    def close(self):
        with suppress(OSError):  # of a full disk, which the run itself has met
            if self.writer:
                self.writer.close()
        self.lock.release()

    def clear(self):
        """Remove the files of the run that was there, and no others."""
        if self.main:
            for name in RECORD:
                (self.path / name).unlink(missing_ok=True)
            shutil.rmtree(self.path / "tensorboard", ignore_errors=True)

    def write_json(self, name, content):
        """Write `content`, and return it as it is read again: `without_nan`."""
        content = without_nan(content)
        if self.main:
            with whole(self.path / name) as aside:
                text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
                aside.write_text(text + "\n", encoding="utf8")
        return content

    def save_model(self, model, about, name="checkpoint.safetensors"):
        """The weights that an evaluation loads; {name: dict} `about` is the file's metadata, as JSON."""
        if self.main:
            with whole(self.path / name) as aside:
                save_model(model, str(aside), {name: json.dumps(content) for name, content in about.items()})

    def save_state(self, state):
        """state.pt, from which a run goes on."""
        if self.main:
            with whole(self.path / "state.pt") as aside, open(aside, "wb") as file:
                torch.save(state, file)

    def load_state(self):
        """The last complete state, on the CPU, or None. Raises ValueError if it, or its weights, are damaged."""
        path = self.path / "state.pt"
        if not path.is_file():
            return None
        damaged = "is lost or cut ({}): bring back the whole file, or set resume False"
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch, zip and pickle raise errors of many kinds
            raise ValueError(f"{path} {damaged.format(str(error).splitlines()[0])}") from None
        plain = ["plain.safetensors"] if "best_on_test" in state["config"].get("as_author", []) else []
        for name in ["checkpoint.safetensors", *plain] if state["position"]["history"] else []:
            try:
                with safe_open(self.path / name, "pt"):
                    pass
            except (OSError, SafetensorError) as error:
                raise ValueError(f"{self.path / name}, the best epoch so far, {damaged.format(error)}") from None
        return state

    def write_table(self, name, rows):
        """A .csv of dicts with the same keys."""
        if self.main and rows:
            with whole(self.path / name) as aside, open(aside, "w", newline="", encoding="utf8") as file:
                writer = csv.DictWriter(file, rows[0])
                writer.writeheader()
                writer.writerows(rows)

    def save_scores(self, made_of, **scores):
        """scores.npz, as `write_scores`."""
        if self.main:
            write_scores(self.path / "scores.npz", made_of, **scores)

    def log(self, step, scalars):
        """TensorBoard scalars of a step, `tensorboard --logdir runs`; those of later steps, from before a resume, are
        dropped.
        """
        if self.main:
            self.writer = self.writer or SummaryWriter(self.path / "tensorboard", purge_step=step)
            for name, value in scalars.items():
                self.writer.add_scalar(name, value, step)
