"""MS-COCO: a small copy of its layout, prepared with its zero-shot splits."""

import json
from functools import partial

import pytest
import samples
from samples import red, reds, refused

from clipdec.labels import read_names
from data_prep import coco
from data_prep.names import SPLITS


def listed(*parts):
    """The names of label lists."""
    return [name for part in parts for name in read_names(SPLITS / f"{part}.txt")[0]]


CLASSES = listed("coco_seen65", "coco_unseen15")
CODE = {name: 2 * i + 1 for i, name in enumerate(CLASSES)}  # COCO's ids have gaps

# number of the image: its classes. With 48/17 cat, dog and bus are unseen and hot dog is in neither list.
TRAIN = {1: ["person", "car"], 2: [], 3: ["cat"], 4: ["person", "dog"], 5: ["hot dog"], 6: ["bicycle"]}
TRAIN[7] = ["car", "hot dog"]
VAL = {11: ["person", "cat"], 12: [], 13: ["bus"], 14: ["hot dog"], 15: ["car"]}
# class: its lists
PLACES = {"umbrella": ["unseen17", "seen65"], "frisbee": ["seen48", "unseen15"], "hair drier": ["unseen15"]}
PLACES |= {"person": ["seen48", "seen65"], "banana": ["seen48", "seen65"]}
PLACES |= {"cat": ["unseen17", "unseen15"], "airplane": ["unseen17", "unseen15"]}


def instances(images, name, crowd):
    """Contents of an instances_*.json. name: function of an image's number."""
    outline = {"bbox": [0, 0, 1, 1], "segmentation": [[0, 0, 1, 1]], "iscrowd": crowd}
    return {
        "info": {"year": 0}, "licenses": [{"id": 1, "name": "none"}],
        "images": [{"id": 900 - i, "file_name": name(i), "width": 16, "height": 12, "license": 1} for i in images],
        "annotations": [
            {"id": 100 * i + k, "image_id": 900 - i, "category_id": CODE[c]} | outline
            for i, names in images.items() for k, c in enumerate(names + names[:1])  # one class twice
        ],
        "categories": [{"id": CODE[c], "name": c, "supercategory": "thing"} for c in CLASSES],
    }


def build(folder, year="2017", crowd=0):
    """COCO's folder."""
    root = folder / "coco"
    (root / "annotations").mkdir(parents=True)
    for split, images in ((f"train{year}", TRAIN), (f"val{year}", VAL)):
        name = (f"COCO_{split}_" if year == "2014" else "") + "{:012}.jpg"
        (root / split).mkdir()
        for i in images:
            (root / split / name.format(i)).write_bytes(red(10 * i))
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(instances(images, name.format, crowd)))
    return root


def prepare(root, *options):
    """Run the script on COCO's folder and open what it wrote beside it."""
    return samples.prepare(coco, root.parent / "out", "--root", root, "--val", 0.34, *options)


def contents(data, *splits):
    """{number of the image: names of its labels}."""
    return {int(name[-16:-4]): labels for name, labels in samples.contents(data, *splits).items()}


@pytest.mark.parametrize("split, sizes", [("48/17", (48, 17)), ("65/15", (65, 15))])
def test_the_lists_have_their_sizes_and_no_name_twice(split, sizes):
    seen, unseen = map(listed, coco.LISTS[split])
    assert (len(seen), len(unseen)) == sizes and len({*seen, *unseen}) == sum(sizes)


def test_the_80_classes_are_those_of_65_15_and_hold_those_of_48_17():
    assert len(set(CLASSES)) == 80 and set(listed(*coco.LISTS["48/17"])) < set(CLASSES)


@pytest.mark.parametrize("name", PLACES)
def test_a_class_is_where_the_papers_put_it(name):
    lists = [*coco.LISTS["48/17"], *coco.LISTS["65/15"]]
    assert [part for part in lists if name in listed(part)] == [f"coco_{place}" for place in PLACES[name]]


@pytest.mark.parametrize("options, sizes, dogs", [
    ("--year 2014", (48, 17), []), ("--year 2017", (48, 17), []), ("--split 65/15", (65, 15), ["dog", "hot dog"]),
])
def test_both_years_and_splits_are_read(tmp_path, options, sizes, dogs):
    year, start = ("2014", "COCO_val2014_") if "2014" in options else ("2017", "")
    data = prepare(build(tmp_path, year), *options.split())
    train = {1: {"person", "car"}, 4: {"person", *dogs[:1]}, 6: {"bicycle"}, 7: {"car"}}
    assert contents(data, data.train, data.val) == train and (len(data.train), len(data.val)) == (3, 1)
    assert contents(data) == {11: {"person", "cat"}, 12: set(), 13: {"bus"}, 14: {*dogs[1:]}, 15: {"car"}}
    assert (len(data.labels.seen), len(data.labels.unseen)) == sizes and year in data.info["source"]
    assert samples.names(data.test)[0] == f"val{year}/{start}000000000011.jpg"


def test_each_image_goes_with_its_labels(tmp_path):
    data = prepare(build(tmp_path))
    assert reds(data.test) == pytest.approx([10 * number for number in contents(data)], abs=3)


def test_crowds_count(tmp_path):
    assert contents(prepare(build(tmp_path, crowd=1)))[11] == {"person", "cat"}


def test_limit_takes_the_first_of_each(tmp_path):
    data = prepare(build(tmp_path), "--limit", 4)
    assert set(contents(data, data.train, data.val)) == {1, 4} and set(contents(data)) == {11, 12, 13, 14}


def test_missing_images_are_left_out(tmp_path, capsys):
    root = build(tmp_path)
    (root / "val2017" / f"{11:012}.jpg").unlink()
    (root / "val2017" / f"{13:012}.jpg").write_bytes(red(130)[:-30])
    assert set(contents(prepare(root, "--max-missing", 30))) == {12, 14, 15}
    assert "left out: 2 (1 missing, 1 truncated)" in capsys.readouterr().out


def test_only_ids_are_kept_of_annotations_and_names_of_images(tmp_path):
    rows, names = coco.read_instances(build(tmp_path) / "annotations" / "instances_val2017.json")
    assert rows == [(f"{i:012}.jpg", sorted(labels)) for i, labels in VAL.items()] and names == set(CLASSES)


def edit(change, path):
    """Change the contents of a JSON file."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_an_image_that_is_listed_twice_counts_once(tmp_path, capsys):
    """With the same id, and with another, whose annotations count as well; with and without its folder."""
    root = build(tmp_path)
    file = root / "annotations" / "instances_val2017.json"
    same = lambda c: c["images"].append(c["images"][1] | {"file_name": "./" + c["images"][1]["file_name"]})
    more = lambda c: c["images"].append({"id": 7, "file_name": "val2017/" + c["images"][0]["file_name"]})
    for change in (same, more, lambda c: c["annotations"].append({"image_id": 7, "category_id": CODE["bus"]})):
        edit(change, file)
    data = prepare(root)
    assert contents(data)[11] == {"person", "cat", "bus"} and len(data.test) == len(VAL)
    assert "instances_val2017.json: 1 images are there under another id too" in capsys.readouterr().out


def test_classes_in_other_spellings_are_those_of_the_lists(tmp_path):
    root = build(tmp_path)
    edit(lambda c: [each.update(name=each["name"].title()) for each in c["categories"]],
         root / "annotations" / "instances_val2017.json")  # fmt: skip
    assert contents(prepare(root))[11] == {"person", "cat"}


def other(part, number=0, **fields):
    """A change of one entry of a list in a JSON file."""
    return partial(edit, lambda content: content[part][number].update(fields))


def added(part, **entry):
    """An entry more at the end of a list in a JSON file."""
    return partial(edit, lambda content: content[part].append(entry))


INVALID = "instances_val2017.json is not a COCO instances file"
LACKING = "lacks the classes .*: it is not COCO's"
NO_FOLDER = "there is no image folder .*unpack val2017.zip"
TWO_FILES = "the id 889 is that of 0*11.jpg and of other.jpg"
FAULTS = {
    "no annotation file": (lambda f: f.unlink(), "there is no .*instances_val2017.json: --root is"),
    "damaged JSON": (lambda f: f.write_text(f.read_text()[:-100]), INVALID),
    "empty file": (lambda f: f.write_text(""), INVALID), "a list": (lambda f: f.write_text("[1, 2]"), INVALID),
    "another folder": (lambda f: (f.parents[1] / "val2017").rename(f.parents[1] / "val"), NO_FOLDER),
    "no annotations": (partial(edit, lambda c: c.pop("annotations")), INVALID + ": it has no list 'annotations'"),
    "captions": (other("annotations", category_id=None), INVALID + ": entry 1 of 'annotations' has no category_id"),
    "an unknown class": (other("annotations", category_id=5000), "id 5000, which none of 'categories' has"),
    "an unknown image": (other("annotations", image_id=5000), "id 5000, which none of 'images' has"),
    "a text id": (other("annotations", image_id="889"), "id '889', which none of 'images' has; it is 889 there"),
    "text ids": (other("categories", id="1"), "id 1, which none of 'categories' has; it is '1' there: write both"),
    "a class without name": (other("categories", 4, name=None), INVALID + ": entry 5 of 'categories' has no name"),
    "an image without name": (other("images", 1, file_name=None), INVALID + ": entry 2 of 'images' has no file_name"),
    "a name that is a number": (other("categories", name=7), INVALID + ": entry 1 of 'categories' has the name 7"),
    "an id of two classes": (added("categories", id=3, name="tree"), "the id 3 is that of bicycle and of tree"),
    "an id of two images": (added("images", id=889, file_name="other.jpg"), TWO_FILES),
    "a class beside its parts": (added("categories", id=999, name="cat,dog"), "'cat,dog' would be a label"),
    "lacking classes": (partial(edit, lambda c: c.update(categories=c["categories"][:60], annotations=[])), LACKING),
    "a path upwards": (other("images", file_name="../../secret.jpg"), "outside its folder"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named(tmp_path, fault):
    root, (change, message) = build(tmp_path), FAULTS[fault]
    (tmp_path / "secret.jpg").write_bytes(red(10))
    change(root / "annotations" / "instances_val2017.json")
    refused(message, tmp_path / "out", prepare, root)
