"""A data set of the Hugging Face hub with an image column and a list of labels, prepared for zero-shot training.

    python -m data_prep.hub --dataset detection-datasets/coco --labels-column objects.category --hold-out 0.2

Its images are streamed: only those that are used are read, so a laptop can take a part (--limit 5000). --dataset may
also be a local folder: of image or parquet files, or one that `save_to_disk` wrote.
"""

import re
import zipfile
import zlib
from functools import reduce
from pathlib import Path

import datasets
import fsspec
from huggingface_hub.errors import EntryNotFoundError
from tqdm.auto import tqdm

from data_prep import photos
from data_prep.folder import add_unseen_options, split_labels
from data_prep.writer import LeftOut


def open_split(dataset, config, revision, split):
    """One split as an IterableDataset."""
    if not (Path(dataset) / "dataset_dict.json").is_file():
        return datasets.load_dataset(dataset, config, revision=revision, split=split, streaming=True)
    splits = datasets.load_from_disk(dataset)
    if split not in splits:
        raise ValueError(f"{dataset} has no split {split!r}: choose among {', '.join(splits)}")
    return splits[split].to_iterable_dataset()


def label_feature(features, column):
    """The feature of one label in `column`, a list of labels; dots lead into a column of columns, or a list of them."""
    feature, listed = features, False
    try:
        for key in column.split("."):
            if not isinstance(feature, dict):
                feature, listed = _item(feature), True
            feature = feature[key]
        feature = feature if listed else _item(feature)
    except (KeyError, TypeError, AttributeError):
        remedy = f"choose --labels-column among {', '.join(features)}"
        raise ValueError(f"there is no list of labels {column!r}: {remedy}") from None
    if not isinstance(feature, datasets.ClassLabel) and getattr(feature, "dtype", "") not in ("string", "large_string"):
        kind = f"{feature}, neither names nor classes with names"
        raise ValueError(f"the labels of {column!r} are {kind}: choose another --labels-column")
    return feature


def _item(feature):
    """The feature of the items of a list."""
    return feature[0] if isinstance(feature, list) else feature.feature


def read_labels(rows, column, limit):
    """[(index, label names)] of the first rows; their images are not read."""
    feature, found = label_feature(rows.features, column), []
    name = feature.int2str if isinstance(feature, datasets.ClassLabel) else str
    rows = rows.select_columns(column.split(".")[0])
    for index, row in enumerate(tqdm(rows.take(limit) if limit else rows, desc="labels", unit=" rows")):
        values = {v for v in reduce(_enter, column.split("."), row) or [] if v not in (None, -1)}  # -1: not annotated
        found.append((index, sorted(map(name, values))))
    return found


def _enter(value, key):
    return [v[key] for v in value] if isinstance(value, list) else value[key]


class Images:
    """The image files of a streamed split by index; an index must be higher than the one before."""

    def __init__(self, rows, column, dataset):
        if not isinstance(rows.features.get(column), datasets.Image):
            remedy = f"choose --image-column among {', '.join(rows.features)}"
            raise ValueError(f"{column!r} is not a column of images: {remedy}")
        self.rows = rows.select_columns(column).cast_column(column, datasets.Image(decode=False))
        self.column, self.dataset, self.stream = column, dataset, None

    def __getitem__(self, index):
        """The bytes of an image file, the path of one in a local folder, or LeftOut if the hub lacks it."""
        if self.stream is None:
            self.stream = enumerate(self.rows.skip(index), index)
        row = next((row for i, row in self.stream if i == index), None)
        if row is None:
            remedy = "it has changed meanwhile: the same command reads it anew, and --revision keeps it as it is"
            raise ValueError(f"{self.dataset} ends before its image {index}, whose labels were read: {remedy}")
        cell = row[self.column] or {"bytes": b""}
        return cell["bytes"] if cell["bytes"] is not None else self._file(cell["path"])

    def _file(self, path):
        """A file that the data set names, if it is on the hub or inside the data set's own folder."""
        if path is None:
            return b""
        if re.fullmatch(r"(zip://[^:]*::)?hf://[^:]+", path):
            return _download(path)
        if "::" in path or "://" in path or Path(self.dataset).resolve() not in Path(path).resolve().parents:
            raise ValueError(f"the data set names an image outside its folder: {path}")
        return path


def _download(path):
    """The bytes of a file on the hub; LeftOut if there is none. A failing connection ends the work."""
    try:
        with fsspec.open(path, "rb") as file:
            return file.read()
    except (FileNotFoundError, EntryNotFoundError):
        return LeftOut("missing", path)
    except (KeyError, zipfile.BadZipFile, zlib.error) as error:
        return LeftOut("unreadable", f"{path}: {error}")


def main():
    options = photos.parser(__doc__, "data/hub")
    options.add_argument("--dataset", required=True, help="name on the hub, or a local folder")
    options.add_argument("--config", help="configuration of the data set, where it has several")
    options.add_argument("--revision", help="commit or tag, so that another day gives the same data")
    options.add_argument("--train-split", default="train", help="split that train and val are made of")
    options.add_argument("--test-split", default="test", help="split that test is made of")
    options.add_argument("--image-column", default="image")
    leads = "a list of names or classes; objects.category leads into a column"
    options.add_argument("--labels-column", default="labels", help=leads)
    options.add_argument("--limit", type=int, help="only the first images of train and of test, this many of each")
    add_unseen_options(options)

    with photos.run(options) as args:
        names = {"train": args.train_split, "test": args.test_split}
        streams = {split: open_split(args.dataset, args.config, args.revision, name) for split, name in names.items()}
        splits = {split: read_labels(rows, args.labels_column, args.limit) for split, rows in streams.items()}
        labels = sorted({name for rows in splits.values() for _, row in rows for name in row})
        seen, unseen = split_labels(labels, args.unseen, args.hold_out, args.seed)
        images = {split: Images(rows, args.image_column, args.dataset) for split, rows in streams.items()}
        images["val"] = images["train"]  # its end
        load = lambda split, items: [(f"{split} {i}", images[split][i], row) for i, row in items]
        source = f"{args.dataset} {args.revision or ''}".strip()
        licence = getattr(streams["train"].info, "license", "") or "see the data set's page"
        photos.prepare(args, splits, seen, unseen, load=load, source=source, licence=licence)



if __name__ == "__main__":
    main()
