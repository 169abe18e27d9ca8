"""Data sets of the hub, here as local folders: labels in their forms, streamed images, and what is refused."""

import io
import os
import sys
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Features, Image, Sequence, Value
from PIL import Image as Pillow

from clipdec import load_data
from data_prep import hub, photos, writer

NAMES = ["bird", "cat", "dog", "eel"]
TRAIN = [["cat"], ["dog", "cat"], [], ["eel"], ["dog"], ["cat"], ["cat", "bird"], ["dog"], ["cat"], ["dog"]]
TEST = [["bird", "cat"], [], ["eel"], ["dog"], ["bird"]]


def picture(value):
    data = io.BytesIO()
    Pillow.new("RGB", (16, 12), (value, 0, 0)).save(data, "PNG")
    return data.getvalue()


def shade(split, i):
    """The grey of the image i of a split."""
    return 10 * i + (0 if split == "train" else 5)


def rows(split, labels):
    """Rows of a data set: its images as files in memory, its labels as `labels` makes them of names."""
    return [{"image": {"bytes": picture(shade(split, i)), "path": None}} | labels(names) for i, names in enumerate({"train": TRAIN, "test": TEST}[split])]


def as_classes(names):
    return {"labels": [NAMES.index(n) for n in names] + [-1]}  # -1: not annotated


def as_names(names):
    return {"labels": names}


def as_objects(names):
    return {"objects": {"bbox": [[0.0, 1.0]] * (2 * len(names)), "category": [NAMES.index(n) for n in names] * 2}}  # each twice


CLASSES = {"labels": Sequence(ClassLabel(names=NAMES))}
WORDS = {"labels": Sequence(Value("string"))}
OBJECTS = {"objects": {"bbox": Sequence(Sequence(Value("float32"))), "category": Sequence(ClassLabel(names=NAMES))}}
OLD_OBJECTS = {"objects": Sequence({"bbox": Sequence(Value("float32")), "category": ClassLabel(names=NAMES)})}
LIST_OF_OBJECTS = {"objects": [{"bbox": Sequence(Value("float32")), "category": ClassLabel(names=NAMES)}]}


def as_list_of_objects(names):
    return {"objects": [{"bbox": [0.0, 1.0], "category": NAMES.index(n)} for n in names]}


def parquet(root, features, labels, change=lambda split, rows: rows):
    """A folder of parquet files, as the hub has them."""
    features = Features({"image": Image(), **features})
    root.mkdir()
    for split in ("train", "test"):
        pq.write_table(pa.Table.from_pylist(change(split, rows(split, labels)), schema=features.arrow_schema), root / f"{split}-00000-of-00001.parquet")
    return root


def saved(root, features, labels):
    """A folder that save_to_disk wrote."""
    features = Features({"image": Image(), **features})
    datasets.DatasetDict({s: datasets.Dataset.from_list(rows(s, labels), features=features) for s in ("train", "test")}).save_to_disk(root)
    return root


@pytest.fixture
def script(tmp_path, monkeypatch):
    """script(dataset, options) runs the script with bird and eel as unseen, and opens what it wrote."""
    (tmp_path / "unseen.txt").write_text("bird\neel\n")

    def script(dataset, *options, out="out"):
        arguments = ["--dataset", str(dataset), "--out", str(tmp_path / out), "--unseen", str(tmp_path / "unseen.txt"), "--workers", "1", "--val", "0.25"]
        monkeypatch.setattr(sys, "argv", ["hub", *arguments, *options])
        hub.main()
        return load_data(tmp_path / out)

    return script


def contents(data, split):
    """[(name of the image, its grey rounded to 5, names of its labels)]."""
    paths = [cell["path"] for cell in split.rows["image"]]
    greys = [5 * round(split.image(i).getpixel((5, 5))[0] / 5) for i in range(len(split))]
    return [(p, g, {data.labels.names[i] for i in row.nonzero().flatten()}) for p, g, row in zip(paths, greys, split.targets)]


def expected(split, indices, known=frozenset(NAMES), name=None):
    source = {"train": TRAIN, "test": TEST}[split]
    return [(f"{name or split} {i}", shade(split, i), set(source[i]) & set(known)) for i in indices]


# ---- forms of labels --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "write, features, labels, options",
    [
        (saved, CLASSES, as_classes, ()),
        (saved, WORDS, as_names, ()),
        (parquet, CLASSES, as_classes, ()),
        (parquet, WORDS, as_names, ()),
        (parquet, OBJECTS, as_objects, ("--labels-column", "objects.category")),
        (saved, OBJECTS, as_objects, ("--labels-column", "objects.category")),
        (parquet, OLD_OBJECTS, as_objects, ("--labels-column", "objects.category")),
        (parquet, LIST_OF_OBJECTS, as_list_of_objects, ("--labels-column", "objects.category")),
    ],
    ids=["saved classes", "saved names", "parquet classes", "parquet names", "objects", "saved objects", "sequence of objects", "list of objects"],
)
def test_labels_are_read_in_every_form(script, tmp_path, write, features, labels, options):
    data = script(write(tmp_path / "set", features, labels), *options)
    assert (data.labels.seen, data.labels.unseen) == (["cat", "dog"], ["bird", "eel"])
    assert contents(data, data.train) == expected("train", [0, 1, 4, 5, 6, 7], ["cat", "dog"])  # 2 and 3 have no seen label
    assert contents(data, data.val) == expected("train", [8, 9], ["cat", "dog"], "val")
    assert contents(data, data.test) == expected("test", range(5))


def test_a_row_without_labels_has_none(script, tmp_path):
    data = script(parquet(tmp_path / "set", WORDS, as_names, lambda split, rows: [r | {"labels": r["labels"] or None} for r in rows]))
    assert contents(data, data.test)[1] == ("test 1", shade("test", 1), set())


def test_limit_takes_the_first_of_each(script, tmp_path):
    data = script(parquet(tmp_path / "set", WORDS, as_names), "--limit", "5")
    assert [name for name, *_ in contents(data, data.train) + contents(data, data.val)] == ["train 0", "train 1", "val 4"]
    assert len(data.test) == 5


def test_limit_reads_no_image_behind_it(script, tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(hub.Images, "__getitem__", lambda self, i, get=hub.Images.__getitem__: read.append(i) or get(self, i))
    (tmp_path / "unseen.txt").write_text("bird\n")  # the first two images of each show no eel
    script(parquet(tmp_path / "set", WORDS, as_names), "--limit", "2", "--val", "0.5")
    assert read == [0, 1, 0, 1]  # train, val, test


def test_other_names_of_splits_and_columns(script, tmp_path):
    features = Features({"photo": Image(), "tags": Sequence(Value("string"))})
    tables = {
        ours: datasets.Dataset.from_list([{"photo": r["image"], "tags": r["labels"]} for r in rows(split, as_names)], features=features)
        for ours, split in (("a", "train"), ("b", "test"))
    }
    datasets.DatasetDict(tables).save_to_disk(tmp_path / "set")
    data = script(tmp_path / "set", "--train-split", "a", "--test-split", "b", "--image-column", "photo", "--labels-column", "tags")
    assert contents(data, data.test) == expected("test", range(5))


def test_hold_out_draws_by_seed(tmp_path, monkeypatch):
    source, drawn = parquet(tmp_path / "set", WORDS, as_names), []
    for i, seed in enumerate("0012345"):
        arguments = ["--dataset", str(source), "--out", str(tmp_path / f"out{i}"), "--hold-out", "0.25", "--seed", seed, "--workers", "1"]
        monkeypatch.setattr(sys, "argv", ["hub", *arguments])
        hub.main()
        drawn.append(load_data(tmp_path / f"out{i}").labels.unseen)
    assert drawn[0] == drawn[1] and len(set(map(tuple, drawn))) > 1 and {len(names) for names in drawn} == {1}


def test_a_folder_of_images_and_metadata_is_read(script, tmp_path):
    """The images are files inside the data set, so they may be read."""
    for split, all_names in (("train", TRAIN), ("test", TEST)):
        (tmp_path / "set" / split).mkdir(parents=True)
        for i in range(len(all_names)):
            (tmp_path / "set" / split / f"{i}.png").write_bytes(picture(shade(split, i)))
        lines = [f'{{"file_name": "{i}.png", "labels": {str(names).replace(chr(39), chr(34))}}}' for i, names in enumerate(all_names)]
        (tmp_path / "set" / split / "metadata.jsonl").write_text("\n".join(lines))
    data = script(tmp_path / "set")
    assert contents(data, data.test) == expected("test", range(5))


# ---- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "features, labels, options, message",
    [
        ({"labels": Sequence(Value("int64"))}, as_classes, (), "the labels of 'labels' are .*, neither names nor classes"),
        ({"labels": Sequence(Value("float32"))}, lambda names: {"labels": [0.5]}, (), "neither names nor classes"),
        ({"labels": Value("string")}, lambda names: {"labels": "cat"}, (), "there is no list of labels 'labels'"),
        ({"labels": ClassLabel(names=NAMES)}, lambda names: {"labels": 1}, (), "there is no list of labels 'labels'"),
        (WORDS, as_names, ("--labels-column", "tags"), "there is no list of labels 'tags': choose --labels-column among image, labels"),
        (WORDS, as_names, ("--labels-column", "labels.category"), "there is no list of labels 'labels.category'"),
        (WORDS, as_names, ("--labels-column", "image"), "there is no list of labels 'image'"),
        (OBJECTS, as_objects, ("--labels-column", "objects"), "there is no list of labels 'objects'"),
        (WORDS, as_names, ("--image-column", "labels"), "'labels' is not a column of images: choose --image-column among image, labels"),
        (WORDS, as_names, ("--image-column", "photo"), "'photo' is not a column of images"),
        (WORDS, as_names, ("--test-split", "validation"), "validation"),
    ],
)
def test_a_wrong_column_or_split_is_a_message(script, tmp_path, features, labels, options, message):
    source = parquet(tmp_path / "set", features, labels)
    with pytest.raises(SystemExit, match=message):
        script(source, *options)
    assert not (tmp_path / "out").exists()


def test_a_split_that_a_saved_data_set_lacks_is_a_message(script, tmp_path):
    with pytest.raises(SystemExit, match="validation"):
        script(saved(tmp_path / "set", WORDS, as_names), "--test-split", "validation")


def test_bytes_that_are_no_column_of_images_are_refused(script, tmp_path):
    """A column of {"bytes", "path"} without the feature Image."""
    features = {"photo": {"bytes": Value("binary"), "path": Value("string")}, **WORDS}
    source = parquet(tmp_path / "set", features, as_names, lambda split, rows: [r | {"photo": r["image"]} for r in rows])
    with pytest.raises(SystemExit, match="'photo' is not a column of images"):
        script(source, "--image-column", "photo")


def pointing(path):
    """Gives the third image of test a path in place of its bytes."""
    return lambda split, rows: [r | {"image": {"bytes": None, "path": path}} if (split, i) == ("test", 2) else r for i, r in enumerate(rows)]


OUTSIDE = {
    "a path": "{secret}",
    "a path upwards": "{set}/../secret.png",
    "a URL of a file": "file://{secret}",
    "a relative path": "../secret.png",
    "a web page": "http://127.0.0.1:9/secret.png",
    "a file that claims to be of the hub": "{secret}::hf://datasets/a/b",
    "a URL that claims to be of the hub": "file://{secret}::hf://datasets/a/b",
}


@pytest.mark.parametrize("place", OUTSIDE)
@pytest.mark.parametrize("inside", [False, True], ids=["run elsewhere", "run in the data set"])
def test_an_image_outside_the_data_set_is_never_read(script, tmp_path, monkeypatch, place, inside):
    (tmp_path / "secret.png").write_bytes(picture(200))
    path = OUTSIDE[place].format(secret=tmp_path / "secret.png", set=tmp_path / "set")
    source = parquet(tmp_path / "set", WORDS, as_names, pointing(path))
    opened = []
    monkeypatch.setattr(hub.fsspec, "open", lambda name, *rest: opened.append(name) or open(tmp_path / "secret.png", "rb"))
    monkeypatch.chdir(source if inside else tmp_path)
    with pytest.raises(SystemExit, match="the data set names an image outside its folder"):
        script(source)
    assert opened == [] and not (tmp_path / "out").exists()


def test_a_link_that_leads_outside_is_not_followed(script, tmp_path):
    (tmp_path / "secret.png").write_bytes(picture(200))
    source = parquet(tmp_path / "set", WORDS, as_names, pointing(str(tmp_path / "set" / "link.png")))
    (source / "link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(SystemExit, match="outside its folder"):
        script(source)


# ---- images that cannot be used ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cell, reason",
    [
        ({"bytes": picture(0)[:-40], "path": None}, "unreadable|truncated"),
        ({"bytes": b"a cat", "path": None}, "unreadable"),
        ({"bytes": b"", "path": None}, "empty"),
        (None, "empty"),
    ],
    ids=["cut", "text", "empty", "none"],
)
def test_a_corrupt_image_is_counted(script, tmp_path, cell, reason):
    change = lambda split, rows: [r | {"image": cell} if (split, i) == ("test", 3) else r for i, r in enumerate(rows)]
    data = script(parquet(tmp_path / "set", WORDS, as_names, change))
    assert contents(data, data.test) == expected("test", [0, 1, 2, 4])
    ((found, count),) = data.info["left_out"].items()
    assert found in reason.split("|") and count == 1
    assert (tmp_path / "out" / "left_out.csv").read_text().splitlines()[1].startswith(f"test,test 3,{found},")


def test_an_image_with_neither_bytes_nor_path_is_counted(script, tmp_path):
    change = lambda split, rows: [r | {"image": {"bytes": None, "path": None}} if (split, i) == ("test", 3) else r for i, r in enumerate(rows)]
    data = script(parquet(tmp_path / "set", WORDS, as_names, change))
    assert len(data.test) == 4 and data.info["left_out"] == {"empty": 1}


# ---- a stop -----------------------------------------------------------------------------------------------------


def stumble(item, size, make=photos.make_row):
    """photos.make_row that raises once, at one image."""
    flag = Path(os.environ["STUMBLE"])
    if item[0] == flag.stem and not flag.exists():
        flag.write_text("")
        raise RuntimeError("stumbled")
    return make(item, size)


@pytest.mark.parametrize("name", ["train 0", "train 6", "val 9", "test 3"])
def test_a_stopped_run_goes_on(script, tmp_path, monkeypatch, name):
    source = parquet(tmp_path / "set", WORDS, as_names)
    monkeypatch.setattr(writer, "SHARD", 2)
    script(source, out="undisturbed")
    monkeypatch.setattr(photos, "make_row", stumble)
    monkeypatch.setenv("STUMBLE", str(tmp_path / f"{name}.flag"))
    with pytest.raises(RuntimeError, match="stumbled"):
        script(source)
    assert not (tmp_path / "out").exists()
    script(source)
    one, two = ({p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()} for out in (tmp_path / "out", tmp_path / "undisturbed"))
    assert len(one) > 10 and one == two


def test_a_later_shard_skips_what_is_there(script, tmp_path, monkeypatch):
    """A run that goes on asks for the images that lack, not for those that are there."""
    source, read = parquet(tmp_path / "set", WORDS, as_names), []
    monkeypatch.setattr(writer, "SHARD", 2)
    monkeypatch.setattr(photos, "make_row", stumble)
    monkeypatch.setenv("STUMBLE", str(tmp_path / "test 4.flag"))
    with pytest.raises(RuntimeError):
        script(source)
    monkeypatch.setattr(hub.Images, "__getitem__", lambda self, i, get=hub.Images.__getitem__: read.append(i) or get(self, i))
    data = script(source)
    assert read == [4] and contents(data, data.test) == expected("test", range(5))
