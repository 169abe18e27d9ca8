"""What leaks between names: twins by spelling, stem and words."""

import pytest

from clipdec import LabelSpace
from clipdec.labels import leakage
from data_prep.names import SPLITS, read_names


@pytest.mark.parametrize("unseen, seen, kind", [
    ("cat", "cats", "plural"), ("flowers", "flower", "plural"), ("bus", "buses", "plural"), ("berry", "berries", "plural"),
    ("leaf", "leaves", "plural"), ("knife", "knives", "plural"), ("horses", "horse", "plural"), ("traffic light", "traffic lights", "plural"),
    ("Cat", "CATS", "plural"), ("hot-dog", "hot dogs", "plural"),
    ("running", "run", "lemma"), ("person", "people", "lemma"), ("man", "men", "lemma"), ("fish", "fishing", "lemma"), ("T-shirt", "t shirt", "lemma"),
    ("tiger", "tiger face", "word"), ("police officer", "officer", "word"), ("mountain", "sunrise over mountains", "word"),
    ("plane", "airplane", None), ("train", "rain", None), ("person running", "person swimming", None), ("hot dog", "hot tub", None),
    ("boss", "bosses", "plural"), ("bas", "bass", "plural"), ("news", "new", "plural"), ("zebra", "horse", None),
    ("-", "cat", None), ("cat", "-", None), ("-", "_ -", None), ("!?", "?!", None), ("cat !", "cats", "plural"),
])  # fmt: skip
def test_leakage_names_the_twins(unseen, seen, kind):
    expected = {unseen: [(seen, kind)]} if kind else {}
    assert leakage(LabelSpace([seen, "violin"], [unseen])) == expected


def test_nus_wide_has_31_plural_twins():
    labels = LabelSpace(read_names(SPLITS / "nus_wide_seen925.txt")[0], read_names(SPLITS / "nus_wide_unseen81.txt")[0])
    twins = leakage(labels)
    plural = {name: seen for name, found in twins.items() for seen, kind in found if kind == "plural"}
    assert len(plural) == 31
    assert {("cat", "cats"), ("bear", "bears"), ("flowers", "flower"), ("leaf", "leaves"), ("valley", "valleys")} <= set(plural.items())
