"""MS-COCO: a small copy of its layout, prepared with its zero-shot splits."""

import io
import json
import sys

import pytest
from PIL import Image

from clipdec import load_data
from data_prep import coco
from data_prep.names import SPLITS, read_names

CLASSES = [name for part in ("coco_seen65", "coco_unseen15") for name in read_names(SPLITS / f"{part}.txt")[0]]
CODE = {name: 2 * i + 1 for i, name in enumerate(CLASSES)}  # COCO's ids have gaps

# number of the image: its classes. With 48/17 cat, dog and bus are unseen and hot dog is in neither list.
TRAIN = {1: ["person", "car"], 2: [], 3: ["cat"], 4: ["person", "dog"], 5: ["hot dog"], 6: ["bicycle"], 7: ["car", "hot dog"]}
VAL = {11: ["person", "cat"], 12: [], 13: ["bus"], 14: ["hot dog"], 15: ["car"]}


def picture(number):
    data = io.BytesIO()
    Image.new("RGB", (16, 12), (number * 10, 0, 0)).save(data, "JPEG")
    return data.getvalue()


def instances(images, name, classes=CLASSES, crowd=0):
    """Contents of an instances_*.json. name: function of an image's number."""
    return {
        "info": {"year": 0}, "licenses": [{"id": 1, "name": "none"}],
        "images": [{"id": 900 - i, "file_name": name(i), "width": 16, "height": 12, "license": 1} for i in images],
        "annotations": [
            {"id": 100 * i + k, "image_id": 900 - i, "category_id": CODE[c], "iscrowd": crowd, "bbox": [0, 0, 1, 1], "segmentation": [[0, 0, 1, 1]]}
            for i, names in images.items() for k, c in enumerate(names + names[:1])  # one class twice
        ],
        "categories": [{"id": CODE[c], "name": c, "supercategory": "thing"} for c in classes],
    }


def build(root, year, **options):
    """A COCO folder."""
    (root / "annotations").mkdir(parents=True)
    for split, images in (("train", TRAIN), ("val", VAL)):
        start = f"COCO_{split}2014_" if year == "2014" else ""
        name = lambda i, start=start: f"{start}{i:012}.jpg"
        (root / f"{split}{year}").mkdir()
        for i in images:
            (root / f"{split}{year}" / name(i)).write_bytes(picture(i))
        (root / "annotations" / f"instances_{split}{year}.json").write_text(json.dumps(instances(images, name, **options)))
    return root


@pytest.fixture
def root(tmp_path):
    return build(tmp_path / "coco", "2017")


@pytest.fixture
def prepare(tmp_path, monkeypatch):
    """prepare(root, options) runs the script and opens what it wrote."""

    def prepare(root, *options):
        out = tmp_path / "out"
        monkeypatch.setattr(sys, "argv", ["coco", "--root", str(root), "--out", str(out), "--workers", "1", "--val", "0.34", *options])
        coco.main()
        return load_data(out)

    return prepare


def contents(data, *splits):
    """{number of the image: names of its labels}."""
    found = {}
    for split in splits:
        for cell, row in zip(split.rows["image"], split.targets):
            found[int(cell["path"][-16:-4])] = {data.labels.names[i] for i in row.nonzero().flatten()}
    return found


# ---- label lists ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split, sizes", [("48/17", (48, 17)), ("65/15", (65, 15))])
def test_the_lists_have_their_sizes_and_no_name_twice(split, sizes):
    seen, unseen = (read_names(SPLITS / f"{name}.txt")[0] for name in coco.LISTS[split])
    assert (len(seen), len(unseen)) == sizes and len({*seen, *unseen}) == sum(sizes)


def test_the_80_classes_are_those_of_65_15_and_hold_those_of_48_17():
    names = [name for part in coco.LISTS["48/17"] for name in read_names(SPLITS / f"{part}.txt")[0]]
    assert len(set(CLASSES)) == 80 and set(names) < set(CLASSES)


@pytest.mark.parametrize(
    "name, places",
    [
        ("person", ("coco_seen48", "coco_seen65")), ("cat", ("coco_unseen17", "coco_unseen15")), ("airplane", ("coco_unseen17", "coco_unseen15")),
        ("umbrella", ("coco_unseen17", "coco_seen65")), ("frisbee", ("coco_seen48", "coco_unseen15")), ("hair drier", ("coco_unseen15",)), ("banana", ("coco_seen48", "coco_seen65")),
    ],
)
def test_a_class_is_where_the_papers_put_it(name, places):
    lists = [*coco.LISTS["48/17"], *coco.LISTS["65/15"]]
    assert {part for part in lists if name in read_names(SPLITS / f"{part}.txt")[0]} == set(places)


# ---- images and labels ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("year", ["2014", "2017"])
def test_both_years_are_read(tmp_path, prepare, year):
    data = prepare(build(tmp_path / "coco", year), "--year", year)
    assert contents(data, data.train, data.val) == {1: {"person", "car"}, 4: {"person"}, 6: {"bicycle"}, 7: {"car"}}
    assert contents(data, data.test) == {11: {"person", "cat"}, 12: set(), 13: {"bus"}, 14: set(), 15: {"car"}}
    assert (len(data.train), len(data.val)) == (3, 1) and year in data.info["source"]
    name = data.test.rows[0]["image"]["path"]
    assert name == ("val2014/COCO_val2014_000000000011.jpg" if year == "2014" else "val2017/000000000011.jpg")


def test_65_15_has_other_unseen_classes(root, prepare):
    data = prepare(root, "--split", "65/15")
    assert (len(data.labels.seen), len(data.labels.unseen)) == (65, 15)
    assert contents(data, data.train, data.val) == {1: {"person", "car"}, 4: {"person", "dog"}, 6: {"bicycle"}, 7: {"car"}}
    assert contents(data, data.test) == {11: {"person", "cat"}, 12: set(), 13: {"bus"}, 14: {"hot dog"}, 15: {"car"}}


def test_each_image_goes_with_its_labels(root, prepare):
    data = prepare(root)
    for i, number in enumerate(contents(data, data.test)):
        assert abs(data.test.image(i).getpixel((5, 5))[0] - 10 * number) < 4


def test_crowds_count(tmp_path, prepare):
    data = prepare(build(tmp_path / "coco", "2017", crowd=1))
    assert contents(data, data.test)[11] == {"person", "cat"}


def test_limit_takes_the_first_of_each(root, prepare):
    data = prepare(root, "--limit", "4")
    assert set(contents(data, data.train, data.val)) == {1, 4} and set(contents(data, data.test)) == {11, 12, 13, 14}


def test_missing_images_are_left_out(root, prepare, capsys):
    (root / "val2017" / f"{11:012}.jpg").unlink()
    (root / "val2017" / f"{13:012}.jpg").write_bytes(picture(13)[:-30])
    data = prepare(root)
    assert set(contents(data, data.test)) == {12, 14, 15} and "left out: 2 (1 missing, 1 truncated)" in capsys.readouterr().out


def test_only_ids_are_kept_of_annotations_and_names_of_images(root):
    rows, names = coco.read_instances(root / "annotations" / "instances_val2017.json")
    assert rows == [(f"{i:012}.jpg", sorted(labels)) for i, labels in VAL.items()] and names == set(CLASSES)


# ---- what is refused --------------------------------------------------------------------------------------------


def broken(path, change):
    """The JSON file with its contents changed in place."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


FAULTS = {
    "no annotation file": (lambda f: f.unlink(), "there is no .*instances_val2017.json: --root is"),
    "damaged JSON": (lambda f: f.write_text(f.read_text()[:-100]), "instances_val2017.json is not a COCO instances file"),
    "empty file": (lambda f: f.write_text(""), "instances_val2017.json is not a COCO instances file"),
    "a list": (lambda f: f.write_text("[1, 2]"), "instances_val2017.json is not a COCO instances file"),
    "no annotations": (lambda f: broken(f, lambda c: c.pop("annotations")), "not a COCO instances file .*annotations"),
    "captions": (lambda f: broken(f, lambda c: c.update(annotations=[{"image_id": 889, "caption": "a cat"}])), "not a COCO instances file"),
    "an unknown class": (lambda f: broken(f, lambda c: c["annotations"][0].update(category_id=5000)), "not a COCO instances file .*5000"),
    "an unknown image": (lambda f: broken(f, lambda c: c["annotations"][0].update(image_id=5000)), "not a COCO instances file .*5000"),
    "lacking classes": (lambda f: broken(f, lambda c: c.update(categories=c["categories"][:60], annotations=[])), "lacks the classes .*: it is not COCO's"),
    "a path upwards": (lambda f: broken(f, lambda c: c["images"][0].update(file_name="../../secret.jpg")), "outside its folder"),
    "another folder": (lambda f: f.parents[1].joinpath("val2017").rename(f.parents[1] / "val"), "there is no image folder .*unpack val2017.zip"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named(root, prepare, tmp_path, fault):
    change, message = FAULTS[fault]
    (tmp_path / "secret.jpg").write_bytes(picture(1))
    change(root / "annotations" / "instances_val2017.json")
    with pytest.raises(SystemExit, match=message):
        prepare(root)
    assert not (tmp_path / "out").exists()
