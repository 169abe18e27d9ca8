"""Your own photos: both forms of the CSV, unseen labels, and the split into train and test."""

from types import SimpleNamespace

import pytest
import samples
from samples import names, red, reds, refused

from data_prep import folder
from data_prep.folder import read_table, split_labels, split_rows

ROWS = [("a.jpg", ["cat", "dog"]), ("sub/b.jpg", ["dog"]), ("c, d.jpg", []), ("e.jpg", ["black cat"])]
LIST = 'image,labels\na.jpg,cat;dog\nsub/b.jpg,dog\n"c, d.jpg",\ne.jpg,black cat\n'
COLUMNS = 'image,cat,dog,black cat\na.jpg,1,1,0\nsub/b.jpg,0,1,0\n"c, d.jpg",0,0,0\ne.jpg,0,0,1\n'
TEXT = "image,labels\n" + "".join(f"{i}.jpg,{'bird' if i < 3 else 'cat;dog' if i < 6 else 'cat'}\n" for i in range(10))
UNNAMED = "the first line must name the columns"
NAMES = [f"label {i:02}" for i in range(20)]
MANY = [(f"{i}.jpg", [NAMES[i % 10]] + [NAMES[19]] * (i % 7 == 0)) for i in range(100)]  # 15 images carry label 19

EXCEL = LIST.replace('"c, d.jpg",', "c, d.jpg;").replace("cat;dog", "cat|dog").replace("jpg,", "jpg;")
FORMS = {
    "semicolons": EXCEL.replace("image,", "image;").replace("cat|dog", '"cat;dog"'),
    "tabs": COLUMNS.replace('"c, d.jpg"', "c, d.jpg").replace(",", "\t").replace("c\t", "c,"),
    "quoted headings": COLUMNS.replace("image,cat", '"image","cat"'), "Mac's line ends": LIST.replace("\n", "\r"),
    "Image": LIST.replace("image,labels", " IMAGE ,Labels"), "a detour": LIST.replace("a.jpg", "./a.jpg"),
    "TRUE and FALSE": COLUMNS.replace(",1", ",TRUE").replace(",0", ",FALSE"),
    "yes and no": COLUMNS.replace(",1", ",yes").replace(",0", ",No"), "floats": COLUMNS.replace(",1", ",1.0"),
    "a bar between labels": LIST.replace("cat;dog", "cat|dog"), "a comma": LIST.replace("cat;dog", '"cat, dog"'),
    "spellings": LIST.replace("jpg,dog", "jpg,DOG").replace("black cat", "black\u00a0cat"),
    "no label": LIST.replace('"c, d.jpg",', '"c, d.jpg",nan').replace("b.jpg,dog", "b.jpg,dog;-"),
    "a list": LIST, "a byte-order mark": "\ufeff" + LIST,
    "columns": COLUMNS, "columns after a byte-order mark": "\ufeff" + COLUMNS,
    "CRLF": LIST.replace("\n", "\r\n"), "Windows separators": LIST.replace("sub/b", "sub\\b"),
    "blank lines": LIST.replace("\n", "\n\n") + "\n,\n  ,\n", "no end of the last line": LIST[:-1],
    "spaces": 'image , labels\n a.jpg , cat ; dog\nsub/b.jpg, dog;\n"c, d.jpg", ; \ne.jpg,black cat\n',
    "labels before the image": 'labels,image\ncat;dog,a.jpg\ndog,sub/b.jpg\n,"c, d.jpg"\nblack cat,e.jpg\n',
    "a label twice": LIST.replace("cat;dog", "cat;dog;cat"),
}


def table(folder, text):
    """The text read as a CSV."""
    (folder / "labels.csv").write_text(text, encoding="utf8", newline="")
    return read_table(folder / "labels.csv")


@pytest.mark.parametrize("encoding", ["utf-16", "cp1252"])
def test_a_table_is_read_in_every_encoding(tmp_path, encoding):
    (tmp_path / "labels.csv").write_bytes("image,labels\r\nfü.jpg,naïve;été\r\n".encode(encoding))
    assert read_table(tmp_path / "labels.csv") == [("fü.jpg", ["naïve", "été"])]


@pytest.mark.parametrize("form", FORMS)
def test_a_table_is_read_in_every_form(tmp_path, form):
    assert table(tmp_path, FORMS[form]) == ROWS


def test_names_with_a_comma_in_quotes_and_in_other_scripts_are_kept(tmp_path):
    assert table(tmp_path, 'image,labels\na.jpg,"cat, black;dog"\n') == [("a.jpg", ["cat, black", "dog"])]
    assert table(tmp_path, 'image,labels\na.jpg,"cat, black"\nb.jpg,dog\n')[0] == ("a.jpg", ["cat, black"])
    assert table(tmp_path, 'image,labels\na.jpg,"a 5"" nail"\n') == [("a.jpg", ['a 5" nail'])]
    assert table(tmp_path, 'image,"cat, black"\na.jpg,1\n') == [("a.jpg", ["cat, black"])]
    assert table(tmp_path, "image,labels\nfü.jpg,猫;naïve\n") == [("fü.jpg", ["naïve", "猫"])]


@pytest.mark.parametrize("text, message", [
    ("image,cat\na.jpg,1\nb.jpg,2\n", "labels.csv, line 3: column 'cat' holds '2', not 0 or 1"),
    ("image,cat\na.jpg,\n", "line 2: column 'cat' holds '', not 0 or 1"),
    ("image,cat\na.jpg,0.7\n", "line 2: column 'cat' holds '0.7', not 0 or 1: write 1 where"),
    ('image,labels\na.jpg,"cat\nb.jpg,dog\nc.jpg,"cat"\n', "line 2: a quote is opened and not closed"),
    ('image,labels\na.jpg,cat"\nb.jpg,dog\n', "line 2: a quote is opened and not closed"),
    ('image,labels\na.jpg,cat\nb.jpg,cat;"dog"\n', "line 3: a quote .* stands inside a cell"),
    ('image,labels\na.jpg,"cat"dog\n', "line 2: a quote .* stands inside a cell"),
    ("image,labels\na.jpg,cat;dog\nb.jpg,cat|dog\n", r"line 3: 'cat\|dog' would be a label beside 'cat'"),
    ('image,labels\na.jpg,"a,b"\nb.jpg,"a,c"\nd.jpg,x|y\ne.jpg,x|z\n', "some labels are separated by a comma and"),
    ('image,"cat,dog",cat\na.jpg,1,0\nb.jpg,0,1\n', "line 2: 'cat,dog' would be a label beside 'cat'"),
    ("image,labels\na.jpg,7\nb.jpg,3;7\n", "line 2: the labels are numbers, such as '7'"),
    ("""image,labels\na.jpg,"['cat', 'dog']"\n""", "line 2: .* is a list of a program"),
    ("image,labels\n,cat\n", "line 2: it names no image"), ("image;image,labels\na,b\n", "repeated columns|first line"),
    ("image;labels\na.jpg;cat;dog\n", "line 2: 3 cells .*; quote a cell that holds a semicolon"),
    ("image,labels,cat\na.jpg,dog,1\n", "line 2: column 'labels' holds 'dog'"),
    ("", UNNAMED), ("a.jpg,cat\n", UNNAMED), ("image\na.jpg\n", UNNAMED), ("image.labels\na.jpg;cat\n", UNNAMED),
    ("image,cat,cat\na.jpg,1,0\n", "repeated columns: 'cat'"),
    ("image,cat,\na.jpg,1,0\n", "empty or repeated columns: ''"),
    ("image,labels\na.jpg,cat\n\nb, c.jpg,cat\n", "line 4: 3 cells where the first line has 2; quote a cell"),
    ("image,labels\na.jpg\n", "line 2: 1 cells"),
    ("image,labels\na.jpg,cat\nb.jpg,cat\na.jpg,dog\n", "a.jpg stands in lines 2 and 4"),
    ("image,labels\nx/a.jpg,cat\nx\\a.jpg,dog\n", "x/a.jpg stands in lines 2 and 3"),
    ("image,labels\na.jpg,cat\n./a.jpg,dog\n", "a.jpg stands in lines 2 and 3"),
])
def test_a_wrong_line_is_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        table(tmp_path, text)


def asked(unseen=None, hold_out=None, seed=0, seen=None):
    return SimpleNamespace(unseen=unseen, hold_out=hold_out, seed=seed, seen=seen)


def test_a_list_names_the_unseen_labels(tmp_path):
    (tmp_path / "unseen.txt").write_text("# held back\nLabel  07\n\nlabel 03\n")
    seen, unseen = split_labels(NAMES, asked(tmp_path / "unseen.txt"))
    assert unseen == ["label 03", "label 07"] and seen == [name for name in NAMES if name not in unseen]


@pytest.mark.parametrize("name, hint", [("label 7", ": did you mean 'label 17'?"), ("xyz", "")])
def test_an_unknown_unseen_name_is_an_error(tmp_path, name, hint):
    (tmp_path / "unseen.txt").write_text(f"label 03\n{name}\n")
    with pytest.raises(ValueError) as error:
        split_labels(NAMES, asked(tmp_path / "unseen.txt"))
    assert str(error.value).endswith(f"lists {name!r}, which no image carries{hint}")


@pytest.mark.parametrize("share, count", [(0.2, 4), (0.01, 1), (0.5, 10), (0.95, 19)])
def test_a_share_of_the_labels_is_held_out(share, count):
    seen, unseen = split_labels(NAMES, asked(hold_out=share))
    assert len(unseen) == count and sorted(seen + unseen) == NAMES and unseen == sorted(unseen)


def test_the_seed_draws_the_labels():
    drawn = [split_labels(NAMES, asked(hold_out=0.2, seed=seed)) for seed in (0, 0, 1, 2)]
    assert drawn[0] == drawn[1] and len({tuple(unseen) for _, unseen in drawn}) == 3


def test_a_list_names_the_seen_labels_too_and_classes_may_be_of_no_image(tmp_path):
    (tmp_path / "unseen.txt").write_text("label 03\n")
    (tmp_path / "seen.txt").write_text("label 09\nrare\nLabel 01\n")
    lists = asked(tmp_path / "unseen.txt", seen=tmp_path / "seen.txt")
    found = split_labels(NAMES, lists, classes=["rare", "LABEL 01"])
    assert found == (["label 01", "label 09", "rare"], ["label 03"])
    with pytest.raises(ValueError, match="lists 'rare', which no image carries"):
        split_labels(NAMES, lists)
    with pytest.raises(ValueError, match="give both lists, --seen and --unseen"):
        split_labels(NAMES, asked(hold_out=0.2, seen=tmp_path / "seen.txt"))
    with pytest.raises(ValueError, match="both list 'label 03'"):
        split_labels(NAMES, asked(tmp_path / "unseen.txt", seen=tmp_path / "unseen.txt"))


def test_some_labels_must_be_seen(tmp_path):
    (tmp_path / "all.txt").write_text("\n".join(NAMES))
    with pytest.raises(ValueError, match="every label is unseen"):
        split_labels(NAMES, asked(tmp_path / "all.txt"))


@pytest.mark.parametrize("share, count", [(0, 0), (0.2, 17), (0.5, 42)])
def test_every_image_with_an_unseen_label_is_in_test(share, count):
    rows = split_rows(MANY, [NAMES[19]], share, 0)
    hidden = [row for row in MANY if NAMES[19] in row[1]]
    assert len(hidden) == 15 and all(row in rows["test"] for row in hidden)
    assert len(rows["test"]) == 15 + count and sorted(rows["train"] + rows["test"]) == sorted(MANY)


def test_the_seed_draws_test():
    drawn = [split_rows(MANY, [NAMES[19]], 0.2, seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] and drawn[0] != drawn[2]


@pytest.fixture
def script(tmp_path):
    """script(table, options) prepares the photos 0.jpg to 9.jpg and opens the result."""
    photos, table = tmp_path / "photos", tmp_path / "labels.csv"
    photos.mkdir()
    for i in range(10):
        (photos / f"{i}.jpg").write_bytes(red(20 * i))

    def script(text, *options):
        table.write_text(text)
        return samples.prepare(folder, tmp_path / "out", "--images", photos, "--labels", table, *options)

    return script


def test_the_script_prepares_a_folder(script, tmp_path):
    (tmp_path / "unseen.txt").write_text("bird\n")
    data = script(TEXT, "--unseen", tmp_path / "unseen.txt", "--val", 0.4, "--test", 0.29)
    assert (data.labels.seen, data.labels.unseen) == (["cat", "dog"], ["bird"])
    assert (len(data.train), len(data.val), len(data.test)) == (3, 2, 5)  # 0.29 * 7 is nearly 2, 0.4 * 5 is 2
    assert {"0.jpg", "1.jpg", "2.jpg"} < set(names(data.test))
    assert sorted(names(data.train) + names(data.val) + names(data.test)) == [f"{i}.jpg" for i in range(10)]
    for split in (data.train, data.val, data.test):
        numbers = [int(name[0]) for name in names(split)]
        assert split.targets.tolist() == [[n >= 3, 3 <= n < 6, n < 3] for n in numbers]
        assert reds(split) == pytest.approx([20 * n for n in numbers], abs=3)


def test_no_training_photo_shows_an_unseen_label(script):
    data = script(TEXT, "--hold-out", 0.34, "--seed", 3, "--val", 0.4)
    assert data.info["train_showing_unseen"] == 0 and data.test.targets[:, data.labels.unseen_index].any()


def test_a_few_photos_are_enough(script):
    data = script(TEXT, "--hold-out", 0.1, "--test", 0.5, "--val", 0)
    assert (len(data.train), len(data.val), len(data.test)) == (1, 0, 9)


def test_a_missing_photo_is_left_out(script, tmp_path, capsys):
    script(TEXT + "none.jpg,cat\n", "--hold-out", 0.34, "--val", 0.4)
    assert "left out: 1 (1 missing)" in capsys.readouterr().out
    assert "none.jpg,missing" in (tmp_path / "out" / "left_out.csv").read_text()


HELD = ("--hold-out", 0.34)
ERRORS = {
    "upwards": (TEXT + "../secret.jpg,cat\n", HELD, "outside its folder"),
    "upwards on Windows": (TEXT + "..\\secret.jpg,cat\n", HELD, "outside its folder"),
    "absolute": (TEXT + "/secret.jpg,cat\n", HELD, "outside its folder"),
    "cells": (TEXT + "x.jpg\n", HELD, "line 12: 1 cells"), "only numbers": ("image,labels\n0.jpg,1\n", HELD, "numbers"),
    "no list": (TEXT, ("--unseen", "none.txt"), "none.txt"),
    "no label": ("image,labels\n0.jpg,\n1.jpg,-\n", HELD, "no image carries a label"),
    "no line": ("image,labels\n", HELD, "no image carries a label"),
    "no folder": (TEXT, (*HELD, "--images", "nowhere"), "there is no folder nowhere: --images is"),
}


@pytest.mark.parametrize("error", ERRORS)
def test_an_error_is_a_message(script, tmp_path, error):
    text, options, message = ERRORS[error]
    (tmp_path / "secret.jpg").write_bytes(red(0))
    refused(message, tmp_path / "out", script, text, *options)


def test_probabilities_beside_labels_are_left_out_and_a_label_of_that_name_is_not(tmp_path):
    text = "image,labels,probabilities\na.jpg,cat;dog,0.9;0.8\n"
    assert table(tmp_path, text) == [("a.jpg", ["cat", "dog"])]
    assert table(tmp_path, "image,probabilities,cat\na.jpg,1,0\n") == [("a.jpg", ["probabilities"])]
