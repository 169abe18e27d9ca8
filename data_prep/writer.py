"""Write a prepared data set: in shards and by several processes, so that a stop costs little, under a name of its own until it is whole."""

import csv
import hashlib
import json
import os
import shutil
import signal
import threading
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from multiprocessing import parent_process
from pathlib import Path

import datasets
import pyarrow as pa
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

FEATURES = datasets.Features({"image": datasets.Image(), "labels": datasets.Sequence(datasets.Value("int32"))})
SHARD = 128  # images in a file: a few MB, about a second of work


class LeftOut(Exception):
    """Why an image is not used: LeftOut(reason, detail)."""


def write(out, info, splits, make, workers=2, *, load=None, left_out=(), max_missing=100.0, replace=None):
    """Write the folder `out`: the `save_to_disk` layout of `datasets`, labels.json, and left_out.csv if anything was left out.

    The work is done in the folder `<out>.partial`, shard by shard. A call that was stopped goes on from the shards that
    are there; `<out>.partial` is renamed to `out` when nothing is missing. If `out` already holds the same data set,
    nothing is done.

    Args:
        info: contents of labels.json; equal info must mean an equal data set.
        splits: {split: [item]}; an item is a tuple that starts with the image's name.
        make: function of an item that returns its row {"image": {"bytes", "path"}, "labels"}, or raises LeftOut.
        load: load(split, items) gives the items that are sent to `make`, where they must be read in this process first.
        left_out: (split, name, reason, detail) of images already left out.
        max_missing: percent of all images that may be left out.
        replace: a data set in `out` whose `source` holds this text may be replaced.

    Returns: {split: number of images}.
    Raises: FileExistsError if `out` is something else, ValueError if too much is left out, BlockingIOError if another
        process is writing `out`.
    """
    out = Path(out)
    partial = out.with_name(out.name + ".partial")
    if ready := _ready(out, info, replace):
        return ready
    partial.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(partial / ".lock", timeout=10):
            if ready := _ready(out, info, replace):  # made by the process that was waited for
                shutil.rmtree(partial)
                return ready
            _resume(partial, info)
            total = sum(map(len, splits.values())) + len(left_out)
            _report(partial, left_out, total, max_missing)
            _write_shards(partial, splits, make, workers, load)
            kept, left = _collect(partial, splits)
            try:
                _report(partial, [*left_out, *left], total, max_missing)
            except ValueError:
                _forget(partial, splits)
                raise
            reasons = dict(Counter(reason for _, _, reason, _ in [*left_out, *left]).most_common())
            _write_whole(partial / "labels.json", json.dumps(info | {"images": kept, "left_out": reasons}, ensure_ascii=False, indent=1))
            shutil.rmtree(out, ignore_errors=True)
            partial.rename(out)
            _clean(out)
    except Timeout:
        raise BlockingIOError(f"another process is writing {out}: wait for it, or stop it") from None
    print(f"{out.name}: {summary(kept, reasons)}")
    return kept


def summary(kept, left):
    """"8 train, 2 test images kept; left out: 3 (2 missing, 1 truncated)". left: {reason: number}."""
    reasons = ", ".join(f"{n} {reason}" for reason, n in left.items())
    return ", ".join(f"{n} {split}" for split, n in kept.items()) + f" images kept; left out: {sum(left.values())}" + (f" ({reasons})" if reasons else "")


def _ready(out, info, replace):
    """{split: number of images} if `out` already holds the data set, None if it has to be written."""
    if (out / "labels.json").is_file():
        found = json.loads((out / "labels.json").read_text(encoding="utf8"))
        if all(found.get(key) == value for key, value in json.loads(json.dumps(info)).items()):
            print(f"{out.name} is ready")
            return found.get("images", True)
        if not replace or replace not in found.get("source", ""):
            changed = ", ".join(key for key, value in info.items() if found.get(key) != value)
            raise FileExistsError(f"{out} holds another data set (other {changed}): choose another --out, or remove it")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} is not empty and not a prepared data set: choose another --out, or remove it")
    return None


def _resume(partial, info):
    """Keep the shards of the same data set that are there, remove those of another."""
    plan = json.dumps(info, ensure_ascii=False)
    if not (partial / "plan.json").is_file() or (partial / "plan.json").read_text(encoding="utf8") != plan:
        for old in partial.iterdir():
            if old.is_dir():
                shutil.rmtree(old)
            elif old.name != ".lock":
                old.unlink()
        _write_whole(partial / "plan.json", plan)


def _shards(partial, splits):
    """(split, path, items) of every shard, in order."""
    for split, items in splits.items():
        count = max(1, -(-len(items) // SHARD))  # `datasets` opens no split without a file
        for i in range(count):
            yield split, partial / split / f"data-{i:05}-of-{count:05}.arrow", items[i * SHARD : (i + 1) * SHARD]


def _write_shards(partial, splits, make, workers, load):
    todo, done = [], 0
    for shard in _shards(partial, splits):
        if shard[1].is_file():
            done += len(shard[2])
        else:
            todo.append(shard)
    if done:
        print(f"{done} images are there already")
    jobs = ((path, make, load(split, items) if load else items) for split, path, items in todo)
    with tqdm(desc=partial.stem, total=sum(map(len, splits.values())), initial=done, unit=" images", mininterval=1) as bar:
        for number in _run(_write_shard, jobs, workers):
            bar.update(number)


def _run(function, jobs, workers):
    """Results of function(*job) by `workers` processes, as they come. Few jobs wait at a time: they may carry images."""
    with ProcessPoolExecutor(workers, initializer=_follow_parent) as pool:
        pending = set()
        try:
            for job in jobs:
                pending.add(pool.submit(function, *job))
                if len(pending) > workers:
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        except BaseException:
            pool.shutdown(cancel_futures=True)  # the shards in work are finished and kept
            raise


def _follow_parent():
    """A worker leaves Ctrl-C to its parent, and ends when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch():
        parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _write_shard(path, make, items):
    """Write the rows of items and, beside them, what was left out. Returns how many items that were."""
    rows, left = [], []
    for item in items:
        try:
            rows.append(make(item))
        except LeftOut as reason:
            left.append([item[0], *reason.args])
    path.parent.mkdir(exist_ok=True)
    table = pa.Table.from_pylist(rows, schema=FEATURES.arrow_schema)
    aside = path.with_suffix(f".{os.getpid()}")
    with open(aside, "wb") as file:
        with pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table, max_chunksize=64)
        _flush(file)
    with open(aside, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    _write_whole(path.with_suffix(".json"), json.dumps({"rows": len(rows), "sha256": digest, "left_out": left}))
    os.replace(aside, path)  # last: where it is, the shard is whole
    return len(items)


def _collect(partial, splits):
    """Turn whole shards into splits that `datasets` opens. Returns ({split: images}, [(split, name, reason, detail)] left out)."""
    kept, left, shards = dict.fromkeys(splits, 0), [], {split: [] for split in splits}
    for split, path, _ in _shards(partial, splits):
        record = json.loads(path.with_suffix(".json").read_text(encoding="utf8"))
        kept[split] += record["rows"]
        left += [(split, *entry) for entry in record["left_out"]]
        shards[split].append((path.name, record["sha256"]))
    for split, files in shards.items():
        folder = partial / split
        folder.mkdir(exist_ok=True)
        datasets.DatasetInfo(features=FEATURES).write_to_directory(str(folder))
        fingerprint = hashlib.sha256(repr((split, files)).encode()).hexdigest()[:16]  # stands for the contents
        state = {"_data_files": [{"filename": name} for name, _ in files], "_fingerprint": fingerprint, "_split": split}
        rest = {"_format_columns": None, "_format_kwargs": {}, "_format_type": None, "_output_all_columns": False}
        _write_whole(folder / "state.json", json.dumps(state | rest))  # as Dataset.save_to_disk writes it
    _write_whole(partial / "dataset_dict.json", json.dumps({"splits": list(splits)}))
    return kept, left


def _report(partial, left, total, max_missing):
    """List what is left out in left_out.csv. Raises ValueError if that is more than `max_missing` percent."""
    if left:
        with open(partial / "left_out.csv", "w", newline="", encoding="utf8") as file:
            csv.writer(file).writerows([("split", "image", "reason", "detail"), *left])
    share = 100 * len(left) / max(total, 1)
    if share > max_missing:
        raise ValueError(
            f"{len(left)} of {total} images ({share:.3g} %) are missing or cannot be read, more than --max-missing {max_missing:g}: "
            f"{partial / 'left_out.csv'} lists them; find them, or allow more"
        )


def _forget(partial, splits):
    """Remove the shards with images that could not be read: they may be repaired before the next call."""
    for _, path, _ in _shards(partial, splits):
        if json.loads(path.with_suffix(".json").read_text(encoding="utf8"))["left_out"]:
            path.unlink()


def _clean(folder):
    """Remove what only the work needed, also the half-written files of a worker that was killed."""
    for path in [folder / "plan.json", folder / ".lock", *folder.glob("*/data-*")]:
        if path.suffix != ".arrow":
            path.unlink(missing_ok=True)


def _write_whole(path, text):
    """Write a text file so that it is there as a whole or not at all."""
    aside = path.with_name(f"{path.name}.{os.getpid()}")
    with open(aside, "w", encoding="utf8") as file:
        file.write(text)
        _flush(file)
    os.replace(aside, path)


def _flush(file):
    file.flush()
    os.fsync(file.fileno())
