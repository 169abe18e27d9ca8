"""Write a prepared data set in shards, by several processes, and under a name of its own until it is whole."""

import csv
import hashlib
import io
import json
import os
import shutil
import signal
import threading
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, as_completed, wait
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
    """Write the folder `out`: the `save_to_disk` layout of `datasets`, labels.json, and left_out.csv if there is any.

    The work is done in the folder `<out>.partial`, shard by shard, so that a stop costs little: the next call goes on
    from the shards that are there. `<out>.partial` is renamed to `out` when nothing is missing. If `out` already holds
    the same data set, nothing is done.

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
            left = [*left_out, *left]
            try:
                _report(partial, left, total, max_missing)
            except ValueError:
                _forget(partial, splits)
                raise
            reasons = dict(Counter(reason for _, _, reason, _ in left).most_common())
            facts = info | {"images": kept, "left_out": reasons}
            _write_whole(partial / "labels.json", json.dumps(facts, ensure_ascii=False, indent=1))
            shutil.rmtree(out, ignore_errors=True)
            partial.rename(out)
            _clean(out)
    except Timeout:
        raise BlockingIOError(f"another process is writing {out}: wait for it, or stop it") from None
    print(f"{out.name}: {summary(kept, reasons)}")
    return kept


def summary(kept, left):
    """"8 train, 2 test images kept; left out: 3 (2 missing, 1 truncated)". left: {reason: number}."""
    images = ", ".join(f"{n} {split}" for split, n in kept.items())
    reasons = ", ".join(f"{n} {reason}" for reason, n in left.items())
    return f"{images} images kept; left out: {sum(left.values())}" + (f" ({reasons})" if left else "")


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
    """Write the shards that lack. Few of them wait for a process at a time: their items may be whole images."""
    todo = [shard for shard in _shards(partial, splits) if not shard[1].is_file()]
    total = sum(map(len, splits.values()))
    if there := total - sum(len(items) for _, _, items in todo):
        print(f"{there} images are there already")
    pool, pending = ProcessPoolExecutor(workers, initializer=_follow_parent), set()
    with pool, tqdm(desc=partial.stem, total=total, initial=there, unit=" images", mininterval=1) as bar:
        try:
            for split, path, items in todo:
                pending.add(pool.submit(_write_shard, path, make, load(split, items) if load else items))
                if len(pending) > workers:
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    bar.update(sum(future.result() for future in done))
            for future in as_completed(pending):
                bar.update(future.result())
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
    table, file = pa.Table.from_pylist(rows, schema=FEATURES.arrow_schema), io.BytesIO()
    with pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table, max_chunksize=64)
    digest = hashlib.sha256(file.getbuffer()).hexdigest()
    _write_whole(path.with_suffix(".json"), json.dumps({"rows": len(rows), "sha256": digest, "left_out": left}))
    _write_whole(path, file.getvalue())  # last: where it is, the shard is whole
    return len(items)


def _collect(partial, splits):
    """Make splits that `datasets` opens of the shards. Returns ({split: images}, [(split, name, reason, detail)])."""
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
    path, share = partial / "left_out.csv", 100 * len(left) / max(total, 1)
    if left:
        with open(path, "w", newline="", encoding="utf8") as file:
            csv.writer(file).writerows([("split", "image", "reason", "detail"), *left])
    if share > max_missing:
        found = f"{len(left)} of {total} images ({share:.3g} %) are missing or cannot be read"
        limit = f"more than --max-missing {max_missing:g}"
        raise ValueError(f"{found}, {limit}: {path} lists them; find them, or allow more")


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


def _write_whole(path, content):
    """Write a file of text or bytes so that it is there as a whole or not at all."""
    aside = path.with_name(f"{path.name}.{os.getpid()}")
    with open(aside, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        _flush(file)
    os.replace(aside, path)


def _flush(file):
    file.flush()
    os.fsync(file.fileno())
