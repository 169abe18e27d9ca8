"""OpenImages: a small copy of its official files, with labels that are there, verified absent, or not known."""

import json

import pytest
import samples
from samples import names, red, reds, refused

from clipdec import load_data
from data_prep import open_images
from data_prep.writer import ABSENT

SEEN = {"/m/0c2": "Car", "/m/0b1": "Lamborghini", "/m/0a_9": "Uirō, a sweet", "/m/0d7": "car", "/t/dd4": "Sitting"}
LISTED = {"/m/0u0": "Fauna", "/m/0u1": "Lamborghini", "/m/0u2": "Saarloos wolfdog", "/m/0u3": "Nectar"}
PLACES = [3, 1]  # of the unseen labels in LISTED, not in its order
LABELS = ["Car", "Lamborghini", "Uirō, a sweet", "car (/m/0d7)", "Sitting", "Nectar", "Lamborghini (/m/0u1)"]
CAR, LAMBO, SWEET, CAR2, SIT, NECTAR, LAMBO2 = range(7)
OTHER, NOWHERE = "/m/0zz", "/m/nowhere"  # another class, and an id that no class file has

# (ImageID's end, machine id, Confidence): rows of an image do not stand together
TRAIN = [
    ("a", "/m/0c2", 1), ("b", "/m/0b1", 1), ("a", "/m/0b1", 0), ("b", OTHER, 1), ("c", "/m/0c2", 0),
    ("d", "/m/0a_9", 1), ("b", "/m/0u1", 1), ("a", "/m/0c2", 1), ("d", "/t/dd4", 1), ("d", "/t/dd4", 0),
    ("a", "/m/0u3", 0), ("b", NOWHERE, 0), ("e", "/m/0d7", 1),
]  # fmt: skip
TEST = [
    ("0", "/m/0c2", 1), ("1", "/m/0u1", 0), ("0", "/m/0u3", 1), ("1", "/m/0b1", 1), ("2", OTHER, 1), ("0", "/m/0u2", 1),
    ("1", "/m/0u3", 0), ("0", "/t/dd4", 0),
]  # fmt: skip
identifier = lambda end: f"00000000000000{'7' if end.isdigit() else 'f'}{end}"
CLASSES, SEEN_LIST, UNSEEN_LIST = "class-descriptions.csv", "classes-trainable.txt", "unseen_labels.txt"
TOP = "top_400_unseen.csv"
annotations = lambda split: f"{split}/{split}-annotations-human-imagelabels.csv"


def table(rows):
    lines = [f"{identifier(i)},{'crowdsource-' * (n % 2)}verification,{mid},{c}" for n, (i, mid, c) in enumerate(rows)]
    return "\n".join(["ImageID,Source,LabelName,Confidence", *lines]) + "\n"


@pytest.fixture
def root(tmp_path):
    """The folder, with a byte order mark, quoted names and CRLF as in the official files."""
    root, quoted = tmp_path / "openimages", lambda name: f'"{name}"' if "," in name else name
    about = {OTHER: "Tree", **LISTED, **SEEN}
    lists = {"test": TEST, "train": TRAIN}
    files = {CLASSES: "".join(f"{mid},{quoted(name)}\n" for mid, name in about.items())}
    files |= {SEEN_LIST: "\n".join(SEEN), UNSEEN_LIST: "\r\n".join(LISTED)}
    files |= {TOP: "\ufeff" + "".join(f"{place}\n" for place in PLACES)}
    files |= {annotations(split): table(rows) for split, rows in lists.items()}
    for name, text in files.items():
        path = root / "2018_04" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    for split, rows in lists.items():
        (root / split).mkdir()
        for n, image in enumerate(sorted({image for image, *_ in rows})):
            (root / split / f"{identifier(image)}.jpg").write_bytes(red(40 * n + (20 if split == "test" else 40)))
    return root


@pytest.fixture
def prepare(root, tmp_path):
    """prepare(options) runs the script and opens what it wrote."""
    return lambda *options: samples.prepare(open_images, tmp_path / "out", "--root", root, "--val", 0, *options)


def verified(split):
    """{end of an image's name: (labels that are there, labels verified absent)}."""
    marks = zip(names(split), split.targets, split.known & ~split.targets)
    indices = lambda row: row.nonzero().flatten().tolist()
    return {name.removesuffix(".jpg")[-1]: (indices(there), indices(absent)) for name, there, absent in marks}


def test_labels_are_in_the_order_of_the_lists_and_no_two_have_one_name(prepare, tmp_path):
    data = prepare()
    assert data.labels.names == LABELS and len(data.labels.unseen) == 2
    info = json.loads((tmp_path / "out" / "labels.json").read_text(encoding="utf8"))
    assert info["machine_ids"] == [*SEEN, "/m/0u3", "/m/0u1"] and "7,186/400" in info["source"]


def test_there_absent_and_not_known_are_told_apart(prepare, capsys):
    """c has no seen label that is there; d is told to sit and not to sit; unseen labels of train are not told."""
    data = prepare()
    assert verified(data.train) == {"a": ([CAR], [LAMBO]), "b": ([LAMBO], []), "d": ([SWEET], []), "e": ([CAR2], [])}
    expected = {"0": ([CAR, NECTAR], [SIT]), "1": ([LAMBO], [NECTAR, LAMBO2]), "2": ([], [])}
    assert verified(data.test) == expected
    assert names(data.test) == [f"test/{identifier(end)}.jpg" for end in "012"]
    assert reds(data.test) == pytest.approx([20, 60, 100], abs=3)
    printed = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "train: 2 rows of other classes are not used" in printed
    assert "test: 2 rows of other classes are not used" in printed
    assert "train: 1 labels are there by one row and absent by another, so nothing is known of them" in printed
    assert "test: 0 labels are there by one row and absent by another, so nothing is known of them" in printed
    assert "train images 5 5,501,586" in printed and "unseen labels a test image 0.333 1.28" in printed


def test_without_numbers_all_that_are_listed_are_unseen(prepare, root):
    (root / "2018_04" / TOP).unlink()
    data = prepare()
    assert data.labels.unseen == ["Fauna", "Lamborghini (/m/0u1)", "Saarloos wolfdog", "Nectar"]
    assert verified(data.test)["0"] == ([CAR, 7, 8], [SIT])


def test_limit_takes_the_first_images_of_each_with_all_of_their_rows(prepare):
    data = prepare("--limit", 2)
    assert verified(data.train) == {"a": ([CAR], [LAMBO]), "b": ([LAMBO], [])}
    assert verified(data.test) == {"0": ([CAR, NECTAR], [SIT]), "1": ([LAMBO], [NECTAR, LAMBO2])}


def test_a_part_of_train_is_val(prepare):
    data = prepare("--val", 0.5)
    assert (len(data.train), len(data.val)) == (2, 2) and not data.val.targets[:, NECTAR:].any()
    both = verified(data.train) | verified(data.val)
    assert both == {"a": ([CAR], [LAMBO]), "b": ([LAMBO], []), "d": ([SWEET], []), "e": ([CAR2], [])}


def test_an_image_in_two_splits_has_what_is_known_of_both(prepare, root):
    """What is there by one copy is not absent by the other."""
    photo = (root / "train" / f"{identifier('a')}.jpg").read_bytes()
    (root / "test" / f"{identifier('1')}.jpg").write_bytes(photo)
    data = prepare()
    assert verified(data.test)["1"] == ([CAR, LAMBO], [NECTAR, LAMBO2]) and "a" not in verified(data.train)


def test_all_shards_have_the_column(prepare, root, monkeypatch):
    monkeypatch.setattr("data_prep.writer.SHARD", 1)
    (root / "test" / f"{identifier('2')}.jpg").write_bytes(b"no image")  # a shard without a row
    data = prepare("--max-missing", 20)
    assert data.test.rows.features.keys() == ABSENT.keys() and len(data.test) == 2
    assert load_data(data.folder).fingerprint == data.fingerprint


@pytest.mark.parametrize("options", [(), ("--max-missing", "50")])
def test_missing_images_are_an_error_or_left_out(prepare, root, tmp_path, options):
    (root / "test" / f"{identifier('0')}.jpg").unlink()
    if options:
        assert verified(prepare(*options).test).keys() == {"1", "2"}
        assert f"test,test/{identifier('0')}.jpg,missing," in (tmp_path / "out" / "left_out.csv").read_text()
    else:
        refused("missing or cannot be read, more than --max-missing", tmp_path / "out", prepare)


TRAIN_CSV, TEST_CSV = annotations("train"), annotations("test")
FAULTS = {  # (file, text in it, text in its place, message)
    "another header": (TRAIN_CSV, "ImageID,", "Image,", "the first line must be ImageID,Source,LabelName,Confidence"),
    "no Confidence": (TEST_CSV, "/m/0u1,0", "/m/0u1", "test-annotations.*, line 3: expected ImageID,.* of 0 or 1"),
    "another Confidence": (TRAIN_CSV, "/m/0u1,1", "/m/0u1,0.7", "train-annotations.*, line 8: expected"),
    "an image elsewhere": (TEST_CSV, identifier("2"), "../../secret", "outside its folder"),
    "an image in both": (TEST_CSV, identifier("2"), identifier("a"), "1 images are in train and in test, such as 0+fa"),
    "a label without a class": (SEEN_LIST, "/t/dd4", "/m/nowhere", "lacks 1 of the labels, such as /m/nowhere"),
    "an unseen label without a class": (UNSEEN_LIST, "/m/0u3", "/m/none", "lacks 1 of the labels, such as /m/none"),
    "a label on both sides": (SEEN_LIST, "/t/dd4", "/m/0u1", "/m/0u1 is in classes-trainable.txt and an unseen"),
    "a label twice": (SEEN_LIST, "/t/dd4", "/m/0c2", "classes-trainable.txt, line 5: .*/m/0c2.* is there already"),
    "a class without a name": (CLASSES, "Sitting", "", "class-descriptions.csv, line 10: expected a machine id"),
    "a place that is none": (TOP, "3\n", "4\n", "top_400_unseen.csv, line 1: expected a number from 0 to 3"),
    "a name for a place": (TOP, "1\n", "Fauna\n", "top_400_unseen.csv, line 2: expected a number from 0 to 3"),
    "a place twice": (TOP, "3\n", "1\n", "top_400_unseen.csv, line 2: '1' is there already"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_with_its_file(prepare, root, tmp_path, fault):
    name, text, other, message = FAULTS[fault]
    path = root / "2018_04" / name
    content = path.read_bytes().decode()
    assert text in content
    path.write_bytes(content.replace(text, other, 1 if text != identifier("2") else -1).encode())
    refused(message, tmp_path / "out", prepare)


@pytest.mark.parametrize("name", [CLASSES, SEEN_LIST, UNSEEN_LIST, TRAIN_CSV, TEST_CSV])
def test_a_file_that_lacks_is_named(prepare, root, tmp_path, name):
    (root / "2018_04" / name).unlink()
    refused(f"there is no .*{name}: --root is", tmp_path / "out", prepare)
