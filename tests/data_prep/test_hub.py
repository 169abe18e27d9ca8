"""Data sets of the hub, here as local folders: labels in their forms, streamed images, and what is refused."""

import json
import os
from functools import partial
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import samples
from datasets import ClassLabel, Features, Image, Sequence, Value
from samples import files, red, refused

from data_prep import hub, photos, writer

NAMES = ["bird", "cat", "dog", "eel"]
TRAIN = [["cat"], ["dog", "cat"], [], ["eel"], ["dog"], ["cat"], ["cat", "bird"], ["dog"], ["cat"], ["dog"]]
TEST = [["bird", "cat"], [], ["eel"], ["dog"], ["bird"]]
SPLITS = {"train": TRAIN, "test": TEST}


# Forms of labels: the features of their columns, and the cells of an image with some names.
indices = lambda names: [NAMES.index(name) for name in names]
as_objects = lambda names: {"objects": {"bbox": [[0.0, 1.0]] * (2 * len(names)), "category": 2 * indices(names)}}
as_list_of_objects = lambda names: {"objects": [{"bbox": [0.0, 1.0], "category": i} for i in indices(names)]}
NAME, BOX = ClassLabel(names=NAMES), Sequence(Value("float32"))
CLASSES = {"labels": Sequence(NAME)}, lambda names: {"labels": [*indices(names), -1]}  # not annotated
WORDS = {"labels": Sequence(Value("string"))}, lambda names: {"labels": names}
OBJECTS = {"objects": {"bbox": Sequence(BOX), "category": Sequence(NAME)}}, as_objects
OLD_OBJECTS = {"objects": Sequence({"bbox": BOX, "category": NAME})}, as_objects
LIST_OF_OBJECTS = {"objects": [{"bbox": BOX, "category": NAME}]}, as_list_of_objects


def shade(split, i):
    """The red channel of the image i of a split."""
    return 10 * i + (0 if split == "train" else 5)


def table(split, form, change=lambda split, i, row: row):
    """A split in memory. change(split, i, row) gives the row that is used."""
    features = Features({"image": Image(), **form[0]})
    images = [{"bytes": red(shade(split, i), "PNG"), "path": None} for i in range(len(SPLITS[split]))]
    rows = [{"image": image} | form[1](names) for image, names in zip(images, SPLITS[split])]
    return pa.Table.from_pylist([change(split, i, row) for i, row in enumerate(rows)], schema=features.arrow_schema)


def parquet(folder, form=WORDS, **change):
    """A folder "set" of parquet files, as the hub has them."""
    (folder / "set").mkdir()
    for split in SPLITS:
        pq.write_table(table(split, form, **change), folder / "set" / f"{split}-00000-of-00001.parquet")
    return folder / "set"


def saved(folder, form=WORDS):
    """A folder "set" that save_to_disk wrote."""
    datasets.DatasetDict({split: datasets.Dataset(table(split, form)) for split in SPLITS}).save_to_disk(folder / "set")
    return folder / "set"


@pytest.fixture
def script(tmp_path):
    """script(dataset, options) runs the script with bird and eel as unseen, and opens what it wrote."""
    unseen = tmp_path / "unseen.txt"
    unseen.write_text("bird\neel\n")

    def script(dataset, *options, out="out"):
        return samples.prepare(hub, tmp_path / out, "--dataset", dataset, "--unseen", unseen, "--val", 0.25, *options)

    return script


@pytest.fixture
def read(monkeypatch):
    """The indices of the images that are read."""
    read, get = [], hub.Images.__getitem__
    monkeypatch.setattr(hub.Images, "__getitem__", lambda self, i: read.append(i) or get(self, i))
    return read


def contents(data, split=None):
    """[(name of the image, its red channel rounded to 5, names of its labels)], of test by default."""
    split = split or data.test
    reds = [5 * round(value / 5) for value in samples.reds(split)]
    return [(name, value, labels) for value, (name, labels) in zip(reds, samples.contents(data, split).items())]


def expected(split, indices, known=frozenset(NAMES), name=None):
    return [(f"{name or split} {i}", shade(split, i), set(SPLITS[split][i]) & set(known)) for i in indices]


CATEGORY = ("--labels-column", "objects.category")
SETS = {
    "saved classes": (saved, CLASSES, ()), "parquet classes": (parquet, CLASSES, ()),
    "saved names": (saved, WORDS, ()), "parquet names": (parquet, WORDS, ()),
    "saved objects": (saved, OBJECTS, CATEGORY), "objects": (parquet, OBJECTS, CATEGORY),
    "sequence of objects": (parquet, OLD_OBJECTS, CATEGORY),
    "list of objects": (parquet, LIST_OF_OBJECTS, CATEGORY),
}


@pytest.mark.parametrize("name", SETS)
def test_labels_are_read_in_every_form(script, tmp_path, name):
    write, form, options = SETS[name]
    data = script(write(tmp_path, form), *options)
    assert (data.labels.seen, data.labels.unseen) == (["cat", "dog"], ["bird", "eel"])
    assert contents(data, data.train) == expected("train", [0, 1, 4, 5, 6, 7], ["cat", "dog"])  # 2, 3: no seen label
    assert contents(data, data.val) == expected("train", [8, 9], ["cat", "dog"], "val")
    assert contents(data) == expected("test", range(5))


def test_a_row_without_labels_has_none(script, tmp_path):
    data = script(parquet(tmp_path, change=lambda split, i, row: row | {"labels": row["labels"] or None}))
    assert contents(data)[1] == ("test 1", shade("test", 1), set())


def test_a_row_without_objects_has_none(script, tmp_path):
    change = lambda split, i, row: row | {"objects": None if (split, i) == ("test", 0) else row["objects"]}
    data = script(parquet(tmp_path, OBJECTS, change=change), *CATEGORY)
    assert contents(data)[0] == ("test 0", shade("test", 0), set())


def test_an_unknown_class_is_named(script, tmp_path):
    source = parquet(tmp_path, CLASSES, change=lambda split, i, row: row | {"labels": [i, *row["labels"]]})
    message = "row 4 of the column 'labels' has the class 4, but its 4 classes are 0 to 3"
    refused(message, tmp_path / "out", script, source)


def test_labels_are_cleaned_and_joined(script, tmp_path, capsys):
    odd = {"cat": "Cat", "eel": "eel ", "bird": "-"}
    spelled = lambda split, names: [odd.get(name, name) for name in names] + [""] if split == "test" else names
    data = script(parquet(tmp_path, change=lambda split, i, row: row | {"labels": spelled(split, row["labels"])}))
    assert [labels for _, _, labels in contents(data)] == [{"cat"}, set(), {"eel"}, {"dog"}, set()]
    assert data.labels.names == ["cat", "dog", "bird", "eel"]
    printed = capsys.readouterr().out
    assert "7 times '' or '-' was taken as no label" in printed and "'Cat' is 'cat'" in printed  # in 2 and 5 images


def test_a_label_beside_its_parts_is_refused(script, tmp_path):
    joined = parquet(tmp_path, change=lambda split, i, row: row | {"labels": [",".join(row["labels"])]})
    refused("set, train 1: 'dog,cat' would be a label beside 'dog'", tmp_path / "out", script, joined)


def test_limit_takes_the_first_of_each(script, tmp_path):
    data = script(parquet(tmp_path), "--limit", 5)
    names = [samples.names(split) for split in (data.train, data.val)]
    assert names == [["train 0", "train 1"], ["val 4"]] and len(data.test) == 5


def test_limit_reads_no_image_behind_it(script, tmp_path, read):
    (tmp_path / "unseen.txt").write_text("bird\n")  # the first two images of each show no eel
    script(parquet(tmp_path), "--limit", 2, "--val", 0.5)
    assert read == [0, 1, 0, 1]  # train, val, test


def test_other_names_of_splits_and_columns(script, tmp_path):
    renamed = datasets.load_from_disk(saved(tmp_path)).rename_columns({"image": "photo", "labels": "tags"})
    datasets.DatasetDict({"a": renamed["train"], "b": renamed["test"]}).save_to_disk(tmp_path / "renamed")
    columns = ("--image-column", "photo", "--labels-column", "tags")
    data = script(tmp_path / "renamed", "--train-split", "a", "--test-split", "b", *columns)
    assert contents(data) == expected("test", range(5))


def test_unseen_labels_of_train_are_listed_by_the_names_of_its_images(script, tmp_path):
    data = script(parquet(tmp_path), "--keep-unseen")
    assert data.info["unseen_in_train"] == {"train 6": ["bird"]} and "train 6" in samples.contents(data, data.train)


def test_hold_out_draws_by_seed(tmp_path):
    options = ("--dataset", parquet(tmp_path), "--hold-out", 0.25, "--seed")
    runs = [samples.prepare(hub, tmp_path / f"out{i}", *options, seed) for i, seed in enumerate("0012345")]
    drawn = [data.labels.unseen for data in runs]
    assert drawn[0] == drawn[1] and len(set(map(tuple, drawn))) > 1 and {len(names) for names in drawn} == {1}


@pytest.mark.parametrize("gone", [None, 0, 3])
def test_a_folder_of_images_and_metadata_is_read(script, tmp_path, gone):
    """The images are files inside the data set, so they may be read. One that lacks costs no other."""
    for split, images in SPLITS.items():
        (tmp_path / "set" / split).mkdir(parents=True)
        for i in range(len(images)):
            (tmp_path / "set" / split / f"{i}.png").write_bytes(red(shade(split, i), "PNG"))
        lines = [json.dumps({"file_name": f"{i}.png", "labels": names}) for i, names in enumerate(images)]
        (tmp_path / "set" / split / "metadata.jsonl").write_text("\n".join(lines))
    lacking = tmp_path / "set" / "test" / f"{gone}.png"
    lacking.unlink(missing_ok=True)
    data = script(tmp_path / "set")
    assert contents(data) == expected("test", [i for i in range(5) if i != gone]) and len(data.train) == 6
    if gone is not None:
        listed = (tmp_path / "out" / "left_out.csv").read_text().splitlines()[1:]
        assert listed == [f"test,test {gone},missing,{lacking}"]


def test_an_image_of_train_that_is_in_test_too_is_in_test_only(script, tmp_path):
    """Streamed images have no names of their own: their pixels tell."""
    same = {"bytes": red(shade("train", 5), "BMP"), "path": None}
    data = script(parquet(tmp_path, change=replacing(3, same)))
    assert [name for name, _, _ in contents(data, data.train)] == [f"train {i}" for i in (0, 1, 4, 6, 7)]
    assert contents(data)[3] == ("test 3", shade("train", 5), {"dog", "cat"})  # with train's label cat
    assert data.info["left_out"] == {"duplicate": 1}


def test_a_file_that_the_hub_lacks_is_left_out(script, tmp_path, monkeypatch):
    cell = {"bytes": None, "path": "hf://datasets/a/b/gone.png"}

    def fail(error, path, mode):
        assert path == cell["path"]
        raise error

    source = parquet(tmp_path, change=replacing(3, cell))
    monkeypatch.setattr(hub.fsspec, "open", partial(fail, ConnectionError("no route to the hub")))
    refused("no route to the hub", tmp_path / "out", script, source)  # not the image's fault
    monkeypatch.setattr(hub.fsspec, "open", partial(fail, FileNotFoundError(cell["path"])))
    data = script(source)
    assert contents(data) == expected("test", [0, 1, 2, 4]) and data.info["left_out"] == {"missing": 1}
    assert "test,test 3,missing,hf://datasets/a/b/gone.png" in (tmp_path / "out" / "left_out.csv").read_text()


def test_a_data_set_that_became_shorter_is_a_message(tmp_path):
    rows = hub.open_splits(str(parquet(tmp_path)), None, None, "train", "test")["test"]
    with pytest.raises(ValueError, match="ends before its image 5, whose labels were read"):
        hub.Images(rows, "image", "set")[5]


NEITHER, NO_LIST, NO_IMAGES = "neither names nor classes", "there is no list of labels", "is not a column of images"
CELL = {"photo": {"bytes": red(0, "PNG"), "path": None}}  # without the feature Image
RAW = {"photo": {"bytes": Value("binary"), "path": Value("string")}} | WORDS[0], lambda names: CELL | {"labels": names}


@pytest.mark.parametrize("form, option, message", [
    (({"labels": Sequence(Value("int64"))}, CLASSES[1]), "", f"the labels of 'labels' are .*, {NEITHER}"),
    (({"labels": Sequence(Value("float32"))}, lambda names: {"labels": [0.5]}), "", NEITHER),
    (({"labels": Value("string")}, lambda names: {"labels": "cat"}), "", f"{NO_LIST} 'labels'"),
    (({"labels": NAME}, lambda names: {"labels": 1}), "", f"{NO_LIST} 'labels'"),
    (WORDS, "--labels-column tags", f"{NO_LIST} 'tags': choose --labels-column among image, labels"),
    (WORDS, "--labels-column labels.category", f"{NO_LIST} 'labels.category'"),
    (WORDS, "--labels-column image", f"{NO_LIST} 'image'"),
    (OBJECTS, "--labels-column objects", f"{NO_LIST} 'objects'"),
    (WORDS, "--image-column labels", f"'labels' {NO_IMAGES}: choose --image-column among image, labels"),
    (WORDS, "--image-column photo", f"'photo' {NO_IMAGES}"), (RAW, "--image-column photo", f"'photo' {NO_IMAGES}"),
    (WORDS, "--test-split validation", "validation"),
])
def test_a_wrong_column_or_split_is_a_message(script, tmp_path, form, option, message):
    refused(message, tmp_path / "out", script, parquet(tmp_path, form), *option.split())


def test_a_data_set_that_is_a_program_is_a_message(script, tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "set.py").write_text("import datasets\n")
    refused("set cannot be read .*: take a copy as parquet", tmp_path / "out", script, tmp_path / "set")


@pytest.mark.parametrize("form", [saved, parquet])
def test_a_split_that_a_data_set_lacks_is_a_message(script, tmp_path, form):
    message = "no split 'validation': choose --train-split and --test-split among train, test"
    refused(message, tmp_path / "out", script, form(tmp_path), "--test-split", "validation")


@pytest.mark.parametrize("saved_as", ["a split", "splits", "parquet"])
def test_one_split_is_divided_and_not_used_twice(script, tmp_path, saved_as):
    rows = datasets.Dataset(table("train", WORDS))
    (tmp_path / "set").mkdir()
    if saved_as == "parquet":
        pq.write_table(table("train", WORDS), tmp_path / "set" / "train.parquet")
    else:
        (rows if saved_as == "a split" else datasets.DatasetDict(train=rows)).save_to_disk(tmp_path / "set")
    message = "no split 'test': its only split is 'train'; divide it by train_test_split"
    refused(message, tmp_path / "out", script, tmp_path / "set")
    refused("are both 'train': test would be", tmp_path / "out", script, tmp_path / "set", "--test-split", "train")


def replacing(place, cell):
    """A change that gives the image `place` of test another cell."""
    return lambda split, i, row: row | {"image": cell} if (split, i) == ("test", place) else row


OUTSIDE = {
    "a path": "{secret}", "a path upwards": "{set}/../secret.png", "a link that leads outside": "{set}/link.png",
    "a relative path": "../secret.png", "a URL": "file://{secret}", "a web page": "http://127.0.0.1:9/secret.png",
    "a file that claims to be of the hub": "{secret}::hf://datasets/a/b",
    "a URL that claims to be of the hub": "file://{secret}::hf://datasets/a/b",
}


@pytest.mark.parametrize("place", OUTSIDE)
@pytest.mark.parametrize("inside", [False, True], ids=["run elsewhere", "run in the data set"])
def test_an_image_outside_the_data_set_is_never_read(script, tmp_path, monkeypatch, place, inside):
    secret, opened = tmp_path / "secret.png", []
    secret.write_bytes(red(200, "PNG"))
    path = OUTSIDE[place].format(secret=secret, set=tmp_path / "set")
    source = parquet(tmp_path, change=replacing(2, {"bytes": None, "path": path}))
    (source / "link.png").symlink_to(secret)
    monkeypatch.setattr(hub.fsspec, "open", lambda name, *rest: opened.append(name) or open(secret, "rb"))
    monkeypatch.chdir(source if inside else tmp_path)
    refused("the data set names an image outside its folder", tmp_path / "out", script, source)
    assert opened == []


UNUSABLE = {
    "cut": ({"bytes": red(0, "PNG")[:-40], "path": None}, ["unreadable", "truncated"]),
    "text": ({"bytes": b"a cat", "path": None}, ["unreadable"]), "empty": ({"bytes": b"", "path": None}, ["empty"]),
    "neither bytes nor path": ({"bytes": None, "path": None}, ["empty"]), "none": (None, ["empty"]),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_corrupt_image_is_counted(script, tmp_path, name):
    cell, reasons = UNUSABLE[name]
    data = script(parquet(tmp_path, change=replacing(3, cell)))
    ((found, count),) = data.info["left_out"].items()
    assert contents(data) == expected("test", [0, 1, 2, 4]) and found in reasons and count == 1
    assert (tmp_path / "out" / "left_out.csv").read_text().splitlines()[1].startswith(f"test,test 3,{found},")


def stumble(item, size, make=photos.make_row):
    """photos.make_row that raises once, at one image."""
    flag = Path(os.environ["STUMBLE"])
    if item[0] == flag.stem and not flag.exists():
        flag.write_text("")
        raise RuntimeError("stumbled")
    return make(item, size)


@pytest.fixture
def stumbles(script, tmp_path, monkeypatch):
    """stumbles(name) runs the script, two images in a shard, until it stops at an image."""

    def stumbles(name):
        monkeypatch.setattr(photos, "make_row", stumble)
        monkeypatch.setenv("STUMBLE", str(tmp_path / f"{name}.flag"))
        with pytest.raises(RuntimeError, match="stumbled"):
            script(tmp_path / "set")
        assert not (tmp_path / "out").exists()

    monkeypatch.setattr(writer, "SHARD", 2)
    parquet(tmp_path)
    return stumbles


@pytest.mark.parametrize("name", ["train 0", "train 6", "val 9", "test 3"])
def test_a_stopped_run_goes_on(script, tmp_path, stumbles, name):
    script(tmp_path / "set", out="undisturbed")
    stumbles(name)
    script(tmp_path / "set")
    assert len(files(tmp_path / "out")) > 10 and files(tmp_path / "out") == files(tmp_path / "undisturbed")


def test_a_later_shard_skips_what_is_there(script, tmp_path, stumbles, read):
    """A run that goes on asks for the images that lack, not for those that are there."""
    stumbles("test 4")
    read.clear()
    assert contents(script(tmp_path / "set")) == expected("test", range(5)) and read == [4]


def test_two_names_of_one_split_are_refused(script, tmp_path):
    folder = parquet(tmp_path)
    (folder / "test-00000-of-00001.parquet").rename(folder / "val-00000-of-00001.parquet")
    message = "are both 'validation': test would be what was trained on"
    refused(message, tmp_path / "out", script, folder, "--train-split", "val", "--test-split", "validation")
    assert len(script(folder, "--test-split", "val").test) == 5


def test_configuration_and_revision_are_those_asked_for(script, tmp_path, monkeypatch):
    folder, asked, load = str(parquet(tmp_path)), {}, datasets.load_dataset

    def found(name, config, **options):
        asked.update(options, name=name, config=config)
        return load(folder, streaming=True)

    monkeypatch.setattr(hub.datasets, "load_dataset", found)
    data = script("user/set", "--config", "2017", "--revision", "v1")
    assert asked == {"name": "user/set", "config": "2017", "revision": "v1", "streaming": True}
    assert data.info["source"] == "user/set v1"
