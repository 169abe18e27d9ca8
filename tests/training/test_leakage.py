"""What leaks between names: the twins of every kind."""

import pytest

from clipdec import LabelSpace
from clipdec.labels import read_names
from clipdec.training.leakage import leakage
from data_prep.names import SPLITS

TWINS = {  # kind: unseen and seen names
    "plural": "cat:cats, flowers:flower, bus:buses, berry:berries, leaf:leaves, knife:knives, horses:horse, Cat:CATS, "
    "traffic light:traffic lights, hot-dog:hot dogs, boss:bosses, bas:bass, news:new, cat !:cats",
    "lemma": "running:run, person:people, man:men, fish:fishing, T-shirt:t shirt",
    "word": "tiger:tiger face, police officer:officer, mountain:sunrise over mountains",
    "": "plane:airplane, train:rain, person running:person swimming, hot dog:hot tub, zebra:horse, "
    "**:cat, cat:**, **:_ -, !?:?!",
}


@pytest.mark.parametrize("pair, kind", [(pair, kind) for kind, pairs in TWINS.items() for pair in pairs.split(", ")])
def test_leakage_names_the_twins(pair, kind):
    unseen, seen = pair.split(":")
    assert leakage(LabelSpace([seen, "violin"], [unseen])) == ({unseen: [(seen, kind)]} if kind else {})


def test_nus_wide_has_31_plural_twins():
    labels = LabelSpace(*(read_names(SPLITS / f"nus_wide_{part}.txt")[0] for part in ("seen925", "unseen81")))
    plural = {name: seen for name, found in leakage(labels).items() for seen, kind in found if kind == "plural"}
    some = {"cat": "cats", "bear": "bears", "flowers": "flower", "leaf": "leaves", "valley": "valleys"}
    assert len(plural) == 31 and some.items() <= plural.items()
