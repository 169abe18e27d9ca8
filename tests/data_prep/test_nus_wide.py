"""NUS-WIDE: a small copy of its official files, prepared with 925 seen and 81 unseen labels."""

import pytest
import samples
from samples import red, reds, refused

from clipdec.labels import read_names
from data_prep import nus_wide
from data_prep.names import SPLITS

SEEN, UNSEEN = (read_names(SPLITS / f"nus_wide_{part}.txt")[0] for part in ("seen925", "unseen81"))
NO_TAG = {"computer", "fire", "map", "swimmers", "tattoo", "whales"}  # the concepts that are not among the 1,000 tags
SHARED = [name for name in UNSEEN if name not in NO_TAG]
TAGS = SHARED[:40] + SEEN[:500] + SHARED[40:] + SEEN[500:]  # concepts and other tags are mixed

# image: (tags, concepts of the human annotation)
TRAIN = {
    "actor/0001_11.jpg": (["nature", "blue"], []),
    "actor/0002_12.jpg": (["red", "sky"], ["sky"]),  # sky is a concept and a tag
    "book/0001_13.jpg": (["sky"], ["sky", "water"]),
    "book/0002_14.jpg": ([], ["whales"]), "book/0003_15.jpg": ([SEEN[-1]], []),
}
TEST = {
    "actor/0003_21.jpg": (["nature", "sky"], ["water", "whales"]),  # the tag sky is not in the annotation
    "book/0004_22.jpg": (["red"], []), "book/0005_23.jpg": ([], ["sky"]), "tree/0001_24.jpg": ([], []),
}
TAG_LIST, CONCEPTS = "NUS_WID_Tags/TagList1k.txt", "ConceptsList/Concepts81.txt"


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def lines(values, end="\r\n"):
    return "".join(f"{value}{end}" for value in values).encode()


@pytest.fixture
def root(tmp_path):
    """NUS-WIDE's folder with lines as in the official files: back-slashes, CRLF, tags with a tab after each."""
    root = tmp_path / "nus"
    write(root / CONCEPTS, lines(UNSEEN))
    write(root / TAG_LIST, lines(TAGS))
    for split, images in (("Train", TRAIN), ("Test", TEST)):
        write(root / f"ImageList/{split}Imagelist.txt", lines(name.replace("/", "\\") for name in images))
        rows = ("".join(f"{int(tag in tags)}\t" for tag in TAGS) for tags, _ in images.values())
        write(root / f"NUS_WID_Tags/{split}_Tags1k.dat", lines(rows))
        for concept in UNSEEN:
            flags = lines((int(concept in own) for _, own in images.values()), "\n")
            write(root / f"Groundtruth/TrainTestLabels/Labels_{concept}_{split}.txt", flags)
        for i, name in enumerate(images):
            write(root / "Flickr" / name, red(20 * i + (30 if split == "Train" else 20)))
    return root


@pytest.fixture
def prepare(root, tmp_path):
    """prepare(options) runs the script and opens what it wrote."""
    return lambda *options: samples.prepare(nus_wide, tmp_path / "out", "--root", root, "--val", 0.34, *options)


def contents(data, *splits):
    """{image: names of its labels}."""
    return {name.removeprefix("Flickr/"): labels for name, labels in samples.contents(data, *splits).items()}


def test_seen_are_the_tags_without_the_concepts(root):
    assert len(TAGS) == len(set(TAGS)) == 1000 and (len(SEEN), len(UNSEEN)) == (925, 81)
    assert tuple(nus_wide.derive(root)) == (SEEN, UNSEEN, TAGS)


def test_train_has_tags_only(prepare):
    data = prepare()
    expected = {"actor/0001_11.jpg": {"nature", "blue"}, "actor/0002_12.jpg": {"red"}, "book/0003_15.jpg": {SEEN[-1]}}
    assert contents(data, data.train, data.val) == expected and (len(data.train), len(data.val)) == (2, 1)


def test_test_has_tags_for_seen_and_annotations_for_unseen_labels(prepare):
    assert contents(prepare()) == dict(zip(TEST, [{"nature", "water", "whales"}, {"red"}, {"sky"}, set()]))


def test_each_image_goes_with_its_labels(prepare):
    data = prepare()
    assert list(contents(data)) == list(TEST) and reds(data.test) == pytest.approx([20, 40, 60, 80], abs=3)


def test_a_table_compares_with_the_complete_data_set(prepare, capsys):
    prepare()
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    expected = ["train images 5 161,789", "test images 4 107,859", "positives in test 5 734,000"]
    expected += ["unseen positives in test 3 202,400", "unseen labels a test image 0.75 1.88"]  # 3 / 4
    expected += ["chance mAP, unseen (%) 0.926 2.3"]  # 100 * 3 / 4 / 81
    expected += ["chance mAP, all (%) 0.124 0.7"]  # 100 * 5 / 4 / 1006
    assert [line for line in expected if line not in lines] == []


@pytest.fixture
def spoilt(root):
    """One image of test is missing, one is truncated."""
    (root / "Flickr/book/0004_22.jpg").unlink()
    (root / "Flickr/tree/0001_24.jpg").write_bytes(red(80)[:-20])


@pytest.mark.parametrize("options", [(), ("--max-missing", "20")])
def test_too_many_missing_images_are_an_error(prepare, spoilt, tmp_path, options):
    refused("images .* are missing or cannot be read, more than --max-missing", tmp_path / "out", prepare, *options)
    assert "test,Flickr/book/0004_22.jpg,missing," in (tmp_path / "out.partial" / "left_out.csv").read_text()


def test_max_missing_leaves_them_out(prepare, spoilt, tmp_path, capsys):
    data = prepare("--max-missing", "30")  # 2 of 7
    assert set(contents(data)) == {"actor/0003_21.jpg", "book/0005_23.jpg"}
    assert "left out: 2 (1 missing, 1 truncated)" in capsys.readouterr().out
    _, missing, truncated = (tmp_path / "out" / "left_out.csv").read_text().splitlines()
    assert missing.startswith("test,Flickr/book/0004_22.jpg,missing,")
    assert truncated.startswith("test,Flickr/tree/0001_24.jpg,truncated,")


@pytest.mark.parametrize("fault", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-20])])
def test_found_and_repaired_images_are_used_by_the_next_call(prepare, root, fault):
    path = root / "Flickr/book/0004_22.jpg"
    data = path.read_bytes()
    fault(path)
    with pytest.raises(SystemExit):
        prepare()
    path.write_bytes(data)
    assert len(prepare().test) == 4


DAT, SKY = "NUS_WID_Tags/Test_Tags1k.dat", "Groundtruth/TrainTestLabels/Labels_sky_Test.txt"
IMAGES, TWICE = "ImageList/TestImagelist.txt", "1 images are listed more than once, such as Flickr/actor"
FAULTS = {  # (file, change of its lines, message)
    "a 2 among the tags": (DAT, lambda x: [x[0], "2" + x[1][1:], *x[2:]], f"{DAT}, line 2: expected 1000 flags 0 or 1"),
    "a letter among the tags": (DAT, lambda x: [*x[:2], "a" + x[2][1:], x[3]], f"{DAT}, line 3: expected 1000 flags"),
    "a tag too few": (DAT, lambda x: [*x[:3], x[3][2:]], f"{DAT}, line 4: expected 1000 flags"),
    "a tag too many": (DAT, lambda x: [x[0] + "1\t", *x[1:]], f"{DAT}, line 1: expected 1000 flags"),
    "-1 for no": (SKY, lambda x: [x[0], "-1", *x[2:]], f"{SKY}, line 2: expected 1 flags"),
    "a row of tags too few": (DAT, lambda x: x[:-1], rf"{DAT} and {IMAGES} differ in length \(4 images\)"),
    "a row of tags too many": (DAT, lambda x: [*x, x[0]], f"{DAT} and {IMAGES} differ in length"),
    "an annotation too few": (SKY, lambda x: x[:-1], f"{SKY} and {IMAGES} differ in length"),
    "an image too few": (IMAGES, lambda x: x[:-1], rf"{IMAGES} differ in length \(3 images\)"),
    "an image elsewhere": (IMAGES, lambda x: ["..\\..\\secret.jpg", *x[1:]], "outside its folder"),
    "an image in both lists": (IMAGES, lambda x: [*x[:3], "actor\\0001_11.jpg"], f"{TWICE}/0001_11.jpg .*train and"),
    "an image twice": (IMAGES, lambda x: [x[0], *x[:3]], f"{TWICE}/0003_21.jpg in the list of test:"),
    "a foreign tag": (TAG_LIST, lambda x: [*x[:-1], "zeppelin"], "2 differ from .*seen925.txt, such as .*zeppelin"),
    "a foreign concept": (CONCEPTS, lambda x: [*x[:-1], "zeppelin"], "differ from data_prep/splits/nus_wide_"),
    "an empty list": (CONCEPTS, lambda x: [""], f"{CONCEPTS} holds no name"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_with_its_file(prepare, root, tmp_path, fault):
    name, change, message = FAULTS[fault]
    write(tmp_path / "secret.jpg", red(1))
    write(root / name, lines(change((root / name).read_text().splitlines())))
    refused(message, tmp_path / "out", prepare)


@pytest.mark.parametrize("name", [DAT, SKY, "ImageList/TrainImagelist.txt", TAG_LIST, CONCEPTS])
def test_a_file_that_lacks_is_named(prepare, root, tmp_path, name):
    (root / name).unlink()
    refused(f"there is no .*{name}: --root is", tmp_path / "out", prepare)


def test_names_in_other_spellings_and_encodings_are_the_known(prepare, root):
    for name, encoding in ((TAG_LIST, "utf-16"), (CONCEPTS, "utf-8-sig"), (IMAGES, "utf-16")):
        text = (root / name).read_text()
        (root / name).write_bytes((text.title() if name != IMAGES else text).encode(encoding))
    data = prepare()
    assert (data.labels.seen, data.labels.unseen) == (SEEN, UNSEEN)
    assert contents(data)["actor/0003_21.jpg"] == {"nature", "water", "whales"}


def test_an_empty_line_at_the_end_is_no_fault(prepare, root):
    for name in (DAT, SKY, IMAGES):
        write(root / name, (root / name).read_bytes() + b"\r\n")
    assert len(prepare().test) == 4
