"""Scenes that are drawn: what train shows and is not told of."""

import numpy as np
import pytest
from PIL import Image
from samples import run

from clipdec import load_data
from clipdec.training.sentences import unseen_shown
from data_prep import emoji_scenes

SIZES = {"train": 60, "val": 6, "test": 12}


def test_unseen_objects_are_drawn_in_train_and_not_told(tmp_path):
    plain = load_data(emoji_scenes.prepare(tmp_path / "plain", 3, SIZES, 1))
    data = load_data(emoji_scenes.prepare(tmp_path / "shown", 3, SIZES, 1, shown=0.4))
    assert not data.train.targets[:, data.labels.unseen_index].any() and "unseen_in_train" not in plain.info
    shown = unseen_shown(data.train, data).sum(1)
    assert shown.sum() / (shown.sum() + data.train.targets.sum()) == pytest.approx(0.4, abs=0.15)
    for i in (int(shown.argmax()), int(shown.argmin())):  # what stands there is what was drawn
        rng = emoji_scenes.rng_of(3, "train", i)
        names, setting = emoji_scenes.choose(rng, "train", shown=0.4)
        assert np.array_equal(data.train.image(i), emoji_scenes.draw(rng, names, setting))
        told = [data.labels.names[k] for k in data.train.targets[i].nonzero()]
        listed = data.info["unseen_in_train"].get(f"train-{i:05}.png", [])
        assert sorted(told + listed) == sorted(names) and len(listed) == shown[i]
    for split in ("val", "test"):
        one, other = getattr(plain, split), getattr(data, split)
        assert all(np.array_equal(one.image(i), other.image(i)) for i in range(len(one)))
        assert one.targets.equal(other.targets)


def test_places_are_those_of_the_objects_drawn(monkeypatch):
    for i in range(6):  # outside of them the scene is its background
        rng = emoji_scenes.rng_of(3, "test", i)
        names, setting = emoji_scenes.choose(rng, "test")
        image = np.asarray(emoji_scenes.scene(3, "test", i)["image"])
        changed = (image != emoji_scenes.background(rng, setting)).any(-1)
        union = np.any(list(emoji_scenes.places(3, "test", i).values()), axis=0)
        assert (changed & ~union).sum() < 0.3 * union.sum() < 0.35 * (changed & union).sum()  # soft edges, no more
    square = lambda rng, name, side: Image.new("RGBA", (round(side),) * 2, (*name.encode()[:2], len(name), 255))
    monkeypatch.setattr(emoji_scenes, "_object", square)
    hidden = 0
    for i in range(20):  # what stands in front hides what is behind, to the pixel
        found, image = emoji_scenes.places(3, "test", i), np.asarray(emoji_scenes.scene(3, "test", i)["image"])
        assert sorted(found) == sorted(emoji_scenes.choose(emoji_scenes.rng_of(3, "test", i), "test")[0])
        for name, mask in found.items():
            assert np.array_equal(mask, (image == (*name.encode()[:2], len(name))).all(-1))
        hidden += sum(mask.sum() for mask in found.values()) < 0.9 * len(found) * max(map(np.sum, found.values()))
    assert hidden


def test_the_command_draws_what_its_options_say(tmp_path):
    sizes = [part for split, n in {"train": 9, "val": 2, "test": 3}.items() for part in (f"--{split}", n)]
    run(emoji_scenes, "--out", tmp_path / "x", "--workers", 1, "--seed", 4, "--objects", 1, "--shown", 0.5, *sizes)
    data = load_data(tmp_path / "x")
    assert [len(split) for split in (data.train, data.val, data.test)] == [9, 2, 3]
    assert (data.info["seed"], data.info["most_objects"], data.info["shown"]) == (4, 1, 0.5)
    assert data.test.targets.sum(1).eq(1).all() and 0 < len(data.info["unseen_in_train"]) < 9
    assert np.array_equal(data.test.image(2), emoji_scenes.scene(4, "test", 2, most=1)["image"])
