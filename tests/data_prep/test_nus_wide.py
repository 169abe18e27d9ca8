"""NUS-WIDE: a small copy of its official files, prepared with 925 seen and 81 unseen labels."""

import io
import sys

import pytest
from PIL import Image

from clipdec import load_data
from data_prep import nus_wide
from data_prep.names import SPLITS, read_names

SEEN, UNSEEN = (read_names(SPLITS / f"nus_wide_{part}.txt")[0] for part in ("seen925", "unseen81"))
NO_TAG = {"computer", "fire", "map", "swimmers", "tattoo", "whales"}  # the concepts that are not among the 1,000 tags
SHARED = [name for name in UNSEEN if name not in NO_TAG]
TAGS = SHARED[:40] + SEEN[:500] + SHARED[40:] + SEEN[500:]  # concepts and other tags are mixed

# image: (tags, concepts of the human annotation)
TRAIN = {
    "actor/0001_11.jpg": (["nature", "blue"], []),
    "actor/0002_12.jpg": (["red", "sky"], ["sky"]),  # sky is a concept and a tag
    "book/0001_13.jpg": (["sky"], ["sky", "water"]),
    "book/0002_14.jpg": ([], ["whales"]),
    "book/0003_15.jpg": ([SEEN[-1]], []),
}
TEST = {
    "actor/0003_21.jpg": (["nature", "sky"], ["water", "whales"]),  # the tag sky is not in the annotation
    "book/0004_22.jpg": (["red"], []),
    "book/0005_23.jpg": ([], ["sky"]),
    "tree/0001_24.jpg": ([], []),
}


def picture(value):
    data = io.BytesIO()
    Image.new("RGB", (16, 12), (value, 0, 0)).save(data, "JPEG")
    return data.getvalue()


@pytest.fixture
def root(tmp_path):
    """NUS-WIDE's folder with lines as in the official files: back-slashes, CRLF, tags with a tab after each."""
    root = tmp_path / "nus"

    def write(name, lines, end="\r\n"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("".join(line + end for line in lines), newline="")

    write("ConceptsList/Concepts81.txt", UNSEEN)
    write("NUS_WID_Tags/TagList1k.txt", TAGS)
    for split, images in (("Train", TRAIN), ("Test", TEST)):
        write(f"ImageList/{split}Imagelist.txt", [name.replace("/", "\\") for name in images])
        write(f"NUS_WID_Tags/{split}_Tags1k.dat", ["".join(f"{int(tag in tags)}\t" for tag in TAGS) for tags, _ in images.values()])
        for concept in UNSEEN:
            write(f"Groundtruth/TrainTestLabels/Labels_{concept}_{split}.txt", [str(int(concept in own)) for _, own in images.values()], "\n")
        for i, name in enumerate(images):
            (root / "Flickr" / name).parent.mkdir(parents=True, exist_ok=True)
            (root / "Flickr" / name).write_bytes(picture(20 * i + 20))
    return root


@pytest.fixture
def prepare(root, tmp_path, monkeypatch):
    """prepare(options) runs the script and opens what it wrote."""

    def prepare(*options):
        arguments = ["--root", str(root), "--out", str(tmp_path / "out"), "--workers", "1", "--val", "0.34", *options]
        monkeypatch.setattr(sys, "argv", ["nus_wide", *arguments])
        nus_wide.main()
        return load_data(tmp_path / "out")

    return prepare


def contents(data, *splits):
    """{image: names of its labels}."""
    found = {}
    for split in splits:
        for cell, row in zip(split.rows["image"], split.targets):
            found[cell["path"].removeprefix("Flickr/")] = {data.labels.names[i] for i in row.nonzero().flatten()}
    return found


# ---- labels -----------------------------------------------------------------------------------------------------


def test_seen_are_the_tags_without_the_concepts(root):
    assert len(TAGS) == len(set(TAGS)) == 1000
    seen, unseen, tags = nus_wide.derive(root)
    assert (seen, unseen, tags) == (SEEN, UNSEEN, TAGS) and (len(seen), len(unseen)) == (925, 81)


def test_train_has_tags_only(prepare):
    data = prepare()
    assert contents(data, data.train, data.val) == {
        "actor/0001_11.jpg": {"nature", "blue"}, "actor/0002_12.jpg": {"red"}, "book/0003_15.jpg": {SEEN[-1]},
    }
    assert (len(data.train), len(data.val)) == (2, 1)


def test_test_has_tags_for_seen_and_annotations_for_unseen_labels(prepare):
    data = prepare()
    assert contents(data, data.test) == {
        "actor/0003_21.jpg": {"nature", "water", "whales"}, "book/0004_22.jpg": {"red"}, "book/0005_23.jpg": {"sky"}, "tree/0001_24.jpg": set(),
    }


def test_each_image_goes_with_its_labels(prepare):
    data = prepare()
    assert list(contents(data, data.test)) == list(TEST)
    assert all(abs(data.test.image(i).getpixel((5, 5))[0] - (20 * i + 20)) < 4 for i in range(4))


def test_a_table_compares_with_the_complete_data_set(prepare, capsys):
    prepare()
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["train", "images", "5", "161,789"] in lines and ["test", "images", "4", "107,859"] in lines
    assert ["unseen", "positives", "in", "test", "3", "202,400"] in lines
    assert ["unseen", "labels", "a", "test", "image", "0.75", "1.88"] in lines  # 3 / 4
    assert ["positives", "in", "test", "5", "734,000"] in lines
    assert ["chance", "mAP,", "unseen", "(%)", "0.925926", "2.3"] in lines  # 100 * 3 / 4 / 81
    assert ["chance", "mAP,", "all", "(%)", "0.124254", "0.7"] in lines  # 100 * 5 / 4 / 1006


# ---- missing images ---------------------------------------------------------------------------------------------


def spoil(root):
    """One image of test is missing, one is truncated."""
    (root / "Flickr" / "book/0004_22.jpg").unlink()
    (root / "Flickr" / "tree/0001_24.jpg").write_bytes(picture(80)[:-20])


@pytest.mark.parametrize("options", [(), ("--max-missing", "20")])
def test_too_many_missing_images_are_an_error(prepare, root, tmp_path, options):
    spoil(root)
    with pytest.raises(SystemExit, match=r"images .* are missing or cannot be read, more than --max-missing"):
        prepare(*options)
    assert not (tmp_path / "out").exists()
    assert "test,Flickr/book/0004_22.jpg,missing," in (tmp_path / "out.partial" / "left_out.csv").read_text()


def test_max_missing_leaves_them_out(prepare, root, tmp_path, capsys):
    spoil(root)
    data = prepare("--max-missing", "30")  # 2 of 7
    assert set(contents(data, data.test)) == {"actor/0003_21.jpg", "book/0005_23.jpg"}
    assert "left out: 2 (1 missing, 1 truncated)" in capsys.readouterr().out
    assert [line.split(",")[:3] for line in (tmp_path / "out" / "left_out.csv").read_text().splitlines()[1:]] == [
        ["test", "Flickr/book/0004_22.jpg", "missing"], ["test", "Flickr/tree/0001_24.jpg", "truncated"],
    ]


def test_found_images_are_used_by_the_next_call(prepare, root):
    path = root / "Flickr" / "book/0004_22.jpg"
    data = path.read_bytes()
    path.unlink()
    with pytest.raises(SystemExit):
        prepare()
    path.write_bytes(data)
    assert len(prepare().test) == 4


def test_repaired_images_are_used_by_the_next_call(prepare, root):
    path = root / "Flickr" / "book/0004_22.jpg"
    data = path.read_bytes()
    path.write_bytes(data[:-20])
    with pytest.raises(SystemExit):
        prepare()
    path.write_bytes(data)
    assert len(prepare().test) == 4


# ---- what is refused --------------------------------------------------------------------------------------------


def lines_of(change):
    """A function that changes the list of lines of a file."""

    def apply(path):
        lines = path.read_bytes().split(b"\r\n" if b"\r\n" in path.read_bytes() else b"\n")[:-1]
        path.write_bytes(b"".join(line + b"\r\n" for line in change(lines)))

    return apply


DAT, SKY = "NUS_WID_Tags/Test_Tags1k.dat", "Groundtruth/TrainTestLabels/Labels_sky_Test.txt"
FAULTS = {
    "a 2 among the tags": (DAT, lines_of(lambda x: [x[0], b"2" + x[1][1:], *x[2:]]), "Test_Tags1k.dat, line 2: expected 1000 flags 0 or 1"),
    "a letter among the tags": (DAT, lines_of(lambda x: [*x[:2], b"a" + x[2][1:], x[3]]), "Test_Tags1k.dat, line 3: expected 1000 flags"),
    "a tag too few": (DAT, lines_of(lambda x: [*x[:3], x[3][2:]]), "Test_Tags1k.dat, line 4: expected 1000 flags"),
    "a tag too many": (DAT, lines_of(lambda x: [x[0] + b"1\t", *x[1:]]), "Test_Tags1k.dat, line 1: expected 1000 flags"),
    "-1 for no": (SKY, lines_of(lambda x: [x[0], b"-1", *x[2:]]), "Labels_sky_Test.txt, line 2: expected 1 flags"),
    "a row of tags too few": (DAT, lines_of(lambda x: x[:-1]), r"Test_Tags1k.dat and ImageList/TestImagelist.txt differ in length \(4 images\)"),
    "a row of tags too many": (DAT, lines_of(lambda x: [*x, x[0]]), "Test_Tags1k.dat and ImageList/TestImagelist.txt differ in length"),
    "an annotation too few": (SKY, lines_of(lambda x: x[:-1]), "Labels_sky_Test.txt and ImageList/TestImagelist.txt differ in length"),
    "an image too few": ("ImageList/TestImagelist.txt", lines_of(lambda x: x[:-1]), r"TestImagelist.txt differ in length \(3 images\)"),
    "an image elsewhere": ("ImageList/TestImagelist.txt", lines_of(lambda x: [b"..\\..\\secret.jpg", *x[1:]]), "outside its folder"),
    "a foreign tag": ("NUS_WID_Tags/TagList1k.txt", lines_of(lambda x: [*x[:-1], b"zeppelin"]), "2 differ from .*seen925.txt, such as .*zeppelin"),
    "a foreign concept": ("ConceptsList/Concepts81.txt", lines_of(lambda x: [*x[:-1], b"zeppelin"]), "differ from data_prep/splits/nus_wide_"),
    "an empty list": ("ConceptsList/Concepts81.txt", lambda path: path.write_text("\n"), "Concepts81.txt holds no name"),
    **{
        f"no {name}": (name, lambda path: path.unlink(), f"there is no .*{name}: --root is")
        for name in (DAT, SKY, "ImageList/TrainImagelist.txt", "NUS_WID_Tags/TagList1k.txt", "ConceptsList/Concepts81.txt")
    },
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_with_its_file(prepare, root, tmp_path, fault):
    name, change, message = FAULTS[fault]
    (tmp_path / "secret.jpg").write_bytes(picture(1))
    change(root / name)
    with pytest.raises(SystemExit, match=message):
        prepare()
    assert not (tmp_path / "out").exists()


def test_an_empty_line_at_the_end_is_no_fault(prepare, root):
    for name in (DAT, SKY, "ImageList/TestImagelist.txt"):
        with open(root / name, "ab") as file:
            file.write(b"\r\n")
    assert len(prepare().test) == 4
