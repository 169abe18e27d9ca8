"""Write a prepared data set in shards, by several processes, and under a name of its own until it is whole."""

import csv
import hashlib
import io
import json
import os
import shutil
import signal
import sys
import threading
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, ProcessPoolExecutor, as_completed, wait
from contextlib import suppress
from multiprocessing import parent_process
from pathlib import Path

import datasets
import pyarrow as pa
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from data_prep import duplicates
from data_prep.files import write_whole

FEATURES = datasets.Features({"image": datasets.Image(), "labels": datasets.Sequence(datasets.Value("int32"))})
ABSENT = datasets.Features(FEATURES | {"absent": FEATURES["labels"]})  # with the labels that were verified absent
SHARD = 128  # images in a file: a few MB, about a second of work
LAYOUT = 2  # of the shards and their records: those of another version of this file are not gone on with


class LeftOut(Exception):
    """Why an image is not used: LeftOut(reason, detail)."""


def write(
    out, info, splits, make, workers=2, *, load=None, left_out=(), max_missing=100.0, replace=None, features=FEATURES
):  # fmt: skip
    """Write the folder `out`: the `save_to_disk` layout of `datasets`, labels.json, and left_out.csv if there is any.

    The work is done in the folder `<out>.partial`, shard by shard, so that a stop costs little: the next call goes on
    from the shards that are there. `<out>.partial` is renamed to `out` when nothing is missing. If `out` already holds
    the same data set, nothing is done. No image stands in it twice: of equal ones, those of the last split stay.

    Args:
        info: contents of labels.json; equal info must mean an equal data set.
        splits: {split: [item]}, test last; an item is a tuple that starts with the image's name. Only val may be empty.
        make: function of an item that returns its row {"image": {"bytes", "path"}, "labels"}, or raises LeftOut.
            With the `features` ABSENT a row also has its "absent" labels.
        load: load(split, items) gives the items that are sent to `make`, where they must be read in this process first.
        left_out: (split, name, reason, detail) of images already left out.
        max_missing: percent of all images that may be left out, duplicates aside.
        replace: a data set in `out` whose `source` holds this text may be replaced.

    Returns: {split: number of images}.
    Raises: FileExistsError if `out` is something else, ValueError if too much is left out or a split loses all of its
        images, BlockingIOError if another process is writing `out`, PermissionError if `out` is in use.
    """
    out = Path(out).expanduser().resolve()  # so that a link to a folder stays one
    asked = Counter({split: len(items) for split, items in splits.items()}) + Counter(split for split, *_ in left_out)
    if empty := [split for split in splits if split != "val" and not asked[split]]:
        raise ValueError(f"there is no image for {' and '.join(empty)}: both train and test need some")
    if ready := _ready(out, info, replace):
        return ready
    partial, old, lock = (out.with_name(out.name + end) for end in (".partial", ".replaced", ".lock"))
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock, timeout=10):
            if old.exists() and not out.exists():  # a stop between the two renamings
                old.rename(out)
            ready = _ready(out, info, replace)  # made by the process that was waited for
            if not ready:
                _resume(partial, info)
                if not (partial / "labels.json").is_file():
                    _fill(partial, info, splits, make, workers, load, left_out, max_missing, features)
                _clean(partial)
                _rename(partial, out, old)
    except Timeout:
        raise BlockingIOError(f"another process is writing {out}: wait for it, or stop it") from None
    with suppress(OSError):  # Windows: another process waits for it
        lock.unlink()
    return ready or _summarise(out)


def _fill(partial, info, splits, make, workers, load, left_out, max_missing, features):
    """Write everything that belongs to the data set; labels.json comes last: where it is, the data set is whole."""
    _check(partial, {split: len(items) for split, items in splits.items()}, left_out, max_missing)
    _write_shards(partial, splits, make, workers, load, features)
    kept, left = _collect(partial, splits, features)
    left = [*left_out, *left]
    try:
        _check(partial, kept, left, max_missing)
    except ValueError:
        _forget(partial, splits)
        raise
    facts = info | {"images": kept, "left_out": _reasons(left)}
    write_whole(partial / "labels.json", json.dumps(facts, ensure_ascii=False, indent=1))


def _reasons(left):
    """{reason: number of images}, the most frequent first."""
    return dict(Counter(reason for _, _, reason, _ in left).most_common())


def _summarise(out):
    """Print what the new data set holds and what it does not. Returns {split: number of images}."""
    info = _read_info(out)
    kept, left = info["images"], info["left_out"]
    print(f"{out.name}: {summary(kept, left)}")
    if copies := left.get("duplicate"):
        which = "one of each stays, in test before val before train, with the labels of all"
        print(f"{copies} of the images equal another one: {which} (left_out.csv)")
    for split in (split for split, n in kept.items() if not n):
        print(f"{split} holds no image, as was asked for")
    return kept


def summary(kept, left):
    """"8 train, 2 test images kept; left out: 3 (2 missing, 1 truncated)". left: {reason: number}."""
    images = ", ".join(f"{n} {split}" for split, n in kept.items())
    reasons = ", ".join(f"{n} {reason}" for reason, n in left.items())
    return f"{images} images kept; left out: {sum(left.values())}" + (f" ({reasons})" if left else "")


def _read_info(folder):
    """Contents of the labels.json of a prepared data set, or None."""
    try:
        info = json.loads((folder / "labels.json").read_text(encoding="utf8"))
    except (OSError, ValueError):
        return None
    return info if isinstance(info, dict) else None


def _changed(found, info):
    """The keys of `info` that are not so in a labels.json."""
    return [key for key, value in json.loads(json.dumps(info)).items() if found.get(key) != value]


def _ready(out, info, replace):
    """{split: number of images} if `out` already holds the data set, None if it has to be written."""
    if not out.exists() or (out.is_dir() and {path.name for path in out.iterdir()} <= {".DS_Store"}):
        return None
    found = _read_info(out)
    if found is None:
        raise FileExistsError(f"{out} is not empty and not a prepared data set: choose another --out, or remove it")
    if changed := _changed(found, info):
        if replace and replace in found.get("source", ""):
            return None
        other = f"another data set (other {', '.join(changed)})"
        raise FileExistsError(f"{out} holds {other}: choose another --out, or remove it")
    if lacking := next((path for path in _files(out) if not path.is_file()), None):
        raise FileExistsError(f"{out} lacks {lacking.relative_to(out)}: remove the folder, and it is written anew")
    print(f"{out.name} is ready")
    return found.get("images", True)


def _files(folder):
    """The files of a prepared data set; each is named before it is read."""
    yield from (folder / "labels.json", folder / "dataset_dict.json")
    for split in json.loads((folder / "dataset_dict.json").read_text(encoding="utf8"))["splits"]:
        yield from (folder / split / "dataset_info.json", folder / split / "state.json")
        state = json.loads((folder / split / "state.json").read_text(encoding="utf8"))
        yield from (folder / split / file["filename"] for file in state["_data_files"])


def _resume(partial, info):
    """Keep the shards of the same data set that are there, or all of it where only its name lacks; remove another's."""
    partial.mkdir(exist_ok=True)
    whole, plan, path = _read_info(partial), json.dumps({"layout": LAYOUT} | info), partial / "plan.json"
    if (whole and not _changed(whole, info)) or (path.is_file() and path.read_text(encoding="utf8") == plan):
        return
    if not whole and not path.is_file() and not all(p.name.startswith("plan.json") for p in partial.iterdir()):
        raise FileExistsError(f"{partial} is not the work of a preparation: move it, or choose another --out")
    known = path, partial / "labels.json"  # by one of them it is known after a stop
    for old in partial.iterdir():
        if old.is_dir():
            shutil.rmtree(old)
        elif old not in known:
            old.unlink()
    known[1].unlink(missing_ok=True)
    write_whole(path, plan)


def _shards(partial, splits):
    """(split, path, items) of every shard, in order."""
    for split, items in splits.items():
        count = max(1, -(-len(items) // SHARD))  # `datasets` opens no split without a file
        for i in range(count):
            yield split, partial / split / f"data-{i:05}-of-{count:05}.arrow", items[i * SHARD : (i + 1) * SHARD]


def _write_shards(partial, splits, make, workers, load, features):
    """Write the shards that lack. Few of them wait for a process at a time: their items may be whole images."""
    todo = [shard for shard in _shards(partial, splits) if not shard[1].is_file()]
    total = sum(map(len, splits.values()))
    if there := total - sum(len(items) for _, _, items in todo):
        print(f"{there} images are there already")
    workers = max(1, min(workers, len(todo), 61 if sys.platform == "win32" else workers))  # Windows waits for 61
    pool, pending = ProcessPoolExecutor(workers, initializer=_follow_parent), set()
    with pool, tqdm(desc=partial.stem, total=total, initial=there, unit=" images", mininterval=1) as bar:
        try:
            for split, path, items in todo:
                items = load(split, items) if load else items
                pending.add(pool.submit(_write_shard, path, make, items, features))
                if len(pending) > workers:
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    bar.update(sum(future.result() for future in done))
            for future in as_completed(pending):
                bar.update(future.result())
        except BrokenExecutor:
            remedy = "give it fewer --workers; the same command goes on from here"
            raise ChildProcessError(f"a process was ended from outside, maybe for lack of memory: {remedy}") from None
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


def _write_shard(path, make, items, features):
    """Write the rows of items and, beside them, what was left out. Returns how many items that were."""
    rows, left = [], []
    for item in items:
        try:
            rows.append(make(item))
        except LeftOut as reason:
            left.append([item[0], *reason.args])
    path.parent.mkdir(exist_ok=True)
    images = [hashlib.blake2b(row["image"]["bytes"], digest_size=16).hexdigest() for row in rows]
    data = _encode(pa.Table.from_pylist(rows, schema=features.arrow_schema))
    record = {"images": images, "sha256": hashlib.sha256(data).hexdigest(), "left_out": left}
    write_whole(path.with_suffix(".json"), json.dumps(record))
    write_whole(path, data)  # last: where it is, the shard is whole
    return len(items)


def _encode(table):
    """The bytes of a shard."""
    file = io.BytesIO()
    with pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table, max_chunksize=64)
    return file.getvalue()


def _record(path):
    """What is known of a shard."""
    return json.loads(path.with_suffix(".json").read_text(encoding="utf8"))


def _collect(partial, splits, features):
    """Make splits that `datasets` opens of the shards. Returns ({split: images}, [(split, name, reason, detail)]).

    A shard that loses duplicates is written beside the old one, which stays until the data set is whole: a stop does no
    harm.
    """
    shards, files, left = {split: [] for split in splits}, {}, []
    for split, path, _ in _shards(partial, splits):
        record = _record(path)
        shards[split].append((path, record["images"]))
        files[path] = path.name, record["sha256"], len(record["images"])
        left += [(split, *entry) for entry in record["left_out"]]
    copies = duplicates.find(shards)
    described = duplicates.describe(copies)
    for path, table in duplicates.without(copies, described):
        unique, data = path.with_name(f"{path.stem}-unique.arrow"), _encode(table)
        write_whole(unique, data)
        files[path] = unique.name, hashlib.sha256(data).hexdigest(), len(table)
    kept = {split: sum(files[path][2] for path, _ in parts) for split, parts in shards.items()}
    for split, parts in shards.items():
        _write_state(partial / split, [files[path][:2] for path, _ in parts], features)
    write_whole(partial / "dataset_dict.json", json.dumps({"splits": list(splits)}))
    return kept, left + duplicates.left_out(copies, described)


def _write_state(folder, files, features):
    """Make a split of the shards [(file name, sha256)] in a folder, as Dataset.save_to_disk does."""
    datasets.DatasetInfo(features=features).write_to_directory(str(folder))
    fingerprint = hashlib.sha256(repr((folder.name, files)).encode()).hexdigest()[:16]  # stands for the contents
    state = {"_data_files": [{"filename": name} for name, _ in files], "_fingerprint": fingerprint}
    rest = {"_format_columns": None, "_format_kwargs": {}, "_format_type": None, "_output_all_columns": False}
    write_whole(folder / "state.json", json.dumps(state | {"_split": folder.name} | rest))


def _check(partial, kept, left, max_missing):
    """List what is left out in left_out.csv. Raises ValueError if that is more than `max_missing` percent, duplicates
    aside, or all that a split had.
    """
    path, total = partial / "left_out.csv", sum(kept.values()) + len(left)
    if not left:
        path.unlink(missing_ok=True)  # of a call before
        return
    with open(path, "w", newline="", encoding="utf8") as file:
        csv.writer(file).writerows([("split", "image", "reason", "detail"), *left])
    unusable = [entry for entry in left if entry[2] != "duplicate"]
    share = 100 * len(unusable) / total
    if share > max_missing:
        found = f"{len(unusable)} of {total} images ({share:.3g} %) are missing or cannot be read"
        fault, gone = f"{found}, more than --max-missing {max_missing:g}", unusable
    else:
        lost = [split for split in kept if not kept[split]]
        gone = [entry for entry in left if entry[0] in lost]
        reasons = ", ".join(f"{n} {reason}" for reason, n in _reasons(gone).items())
        fault = f"no image is left for {' and '.join(lost)} ({reasons})"
    if gone:
        split, name, reason, detail = gone[0]
        first = f"the first is {name} of {split} ({reason}{', ' + detail if detail else ''})"
        raise ValueError(f"{fault}: {first}, {path} lists all; mend them, or change what is asked for")


def _forget(partial, splits):
    """Remove the shards with images that could not be read: they may be repaired before the next call."""
    for _, path, _ in _shards(partial, splits):
        if _record(path)["left_out"]:
            path.unlink()


def _clean(folder):
    """Remove what only the work needed, also what a process that was killed had half written."""
    keep = {folder / "left_out.csv", *_files(folder)}
    for path in folder.rglob("*"):
        if path.is_file() and path not in keep:
            path.unlink()


def _rename(partial, out, old):
    """Give the finished folder its name. What is there goes aside first, and comes back where that fails."""
    if old.exists():
        shutil.rmtree(old)  # a stop while it was removed
    try:
        if out.exists():
            out.rename(old)
        partial.rename(out)
    except OSError as error:
        if old.exists():
            old.rename(out)
        remedy = "close the notebooks and programs that have it open; the same command then finishes"
        raise PermissionError(f"{out} is in use ({error.strerror}): {remedy}") from None
    shutil.rmtree(old, ignore_errors=True)
