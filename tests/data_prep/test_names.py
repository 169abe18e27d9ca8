"""Names at the door: one spelling of a label, what is no label, and the paths of images."""

import pytest

from data_prep.names import image_path, one_spelling, relabel


def spelled(*names, listed=()):
    """one_spelling of names, each in a place of its own."""
    return one_spelling(((f"line {i}", name) for i, name in enumerate(names, 1)), listed)


@pytest.mark.parametrize("name", [
    "Black cat", "BLACK CAT", "black  cat", " black cat ", "black\u00a0cat", "black\tcat", "\ufeffblack cat",
])
def test_spellings_are_one_label(name):
    assert spelled("black cat", name, "black cat", "dog") == {"black cat": "black cat", name: "black cat", "dog": "dog"}


def test_unicode_forms_are_one_label(capsys):
    assert spelled("cafe\u0301", "café") == {"cafe\u0301": "café", "café": "café"}
    assert r"1 label was written in several ways: 'cafe\u0301' is 'café'" in capsys.readouterr().out


def test_the_most_frequent_spelling_stays_and_then_the_first(capsys):
    labels = spelled("Cat", "cat", "Dog", "dog", "cat", "Eel")
    assert labels == {"Cat": "cat", "cat": "cat", "Dog": "Dog", "dog": "Dog", "Eel": "Eel"}
    assert capsys.readouterr().out == "2 labels were written in several ways: 'Cat' is 'cat', 'dog' is 'Dog'\n"


def test_a_listed_label_keeps_its_spelling():
    assert spelled("CAT", "CAT", "Owl", listed=["cat", "eel"]) == {"CAT": "cat", "Owl": "Owl"}


def test_names_that_mean_no_label_are_counted(capsys):
    rows = [("a", ["-", "cat"]), ("b", ["NaN"]), ("c", ["-", ""]), ("d", ["N/A", "none", "null", " "])]
    labels = one_spelling((image, name) for image, names in rows for name in names)
    assert relabel(rows, labels) == [("a", ["cat"]), ("b", []), ("c", []), ("d", [])]
    assert capsys.readouterr().out.startswith("8 times '-' or 'NaN' or '' or ")


@pytest.mark.parametrize("name, part", [
    ("cat,dog", "cat"), ("owl|Dog", "Dog"), ("owl ; CAT", "CAT"), ("cat,", "cat"), ("a,b|cat", "cat"),
])
def test_a_name_that_joins_labels_is_refused(name, part):
    with pytest.raises(ValueError) as error:
        spelled("dog", name, "cat")
    assert str(error.value).startswith(f"line 2: {name!r} would be a label beside {part!r}: separate the labels")


def test_a_name_with_a_comma_is_a_label_where_no_part_is_one():
    assert spelled("cat, black", "dog") == {"cat, black": "cat, black", "dog": "dog"}


@pytest.mark.parametrize("names", [["7", "12"], ["1.0", "-1"]])
def test_numbers_are_no_names(names):
    with pytest.raises(ValueError, match=f"line 1: the labels are numbers, such as '{names[0]}': give their names"):
        spelled(*names)
    assert spelled("7", "cat") == {"7": "7", "cat": "cat"}


@pytest.mark.parametrize("name, path", [
    ("./p.jpg", "p.jpg"), ("a\\b.jpg", "a/b.jpg"), ("a//b.jpg", "a/b.jpg"), ("a/../b.jpg", "b.jpg"),
    (" p.jpg ", "p.jpg"), ("..\\p.jpg", "../p.jpg"), ("train/p.jpg", "p.jpg"), (".\\train\\p.jpg", "p.jpg"),
    ("trained/p.jpg", "trained/p.jpg"),
])
def test_an_image_has_one_path(name, path):
    assert image_path(name, "train") == path
