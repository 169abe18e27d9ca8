"""What is computed of images and texts once and kept on disk: filled in parts, read by rows, anew after any change."""

import errno
import os
import shutil
from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch
from helpers import files, history, needs_dev_full, results, spy
from torchvision.transforms import v2

from clipdec import load_data
from clipdec.towers import ImageTower, load_clip
from clipdec.training import tokens as tokens_module
from clipdec.training.inputs import digest, text_key
from clipdec.training.tokens import Store, encode_images, encode_sentences
from data_prep import emoji_scenes

ARRAYS = {"a": ((3, 2), np.float16), "b": ((), np.float32)}
FEW = {"train": 4, "val": 3, "test": 2}


def filled(store, rows):
    rows = torch.tensor(rows)
    values = {"a": rows.numpy()[:, None, None] + np.arange(6).reshape(3, 2) / 8, "b": rows.numpy() / 3}
    store.write(rows, values)
    return values


@pytest.mark.parametrize("on_disk", [True, False])
def test_rows_come_back_as_they_were_written(tmp_path, on_disk):
    store = Store(tmp_path / "x" if on_disk else None, 10, ARRAYS)
    missing = lambda rows: store.missing(rows).tolist()
    assert missing(torch.arange(10)) == list(range(10))
    values = filled(store, [7, 2, 5])
    assert missing(torch.arange(10)) == [0, 1, 3, 4, 6, 8, 9] and missing(torch.tensor([5, 2])) == []
    if on_disk:
        store = Store(tmp_path / "x", 10, ARRAYS)  # opened again
    rows = store.rows("a", torch.tensor([5, 7, 2]))
    expected = torch.from_numpy(values["a"][[2, 0, 1]]).half()
    assert rows.shape == (3, 3, 2) and len(rows) == 3 and rows[:].dtype == torch.float16
    for some in (slice(None), 1, torch.tensor([2, 0])):
        assert torch.equal(rows[some], expected[some])
    assert torch.equal(torch.cat(list(rows.split(2))), expected)
    torch.testing.assert_close(store.rows("b", torch.tensor([7]))[:], torch.tensor([7 / 3]))


def test_rows_that_are_changed_in_memory_stay_on_disk(tmp_path):
    store = Store(tmp_path / "x", 4, ARRAYS)
    filled(store, [0, 1, 2, 3])
    rows = store.rows("b", torch.arange(4))
    rows[:].zero_()
    assert rows[3] == 1.0


def test_a_store_takes_no_room_before_it_is_filled(tmp_path):
    store = Store(tmp_path / "x", 100_000, {"a": ((1000,), np.float16)})
    store.write(torch.tensor([0, 99_999]), {"a": np.ones((2, 1000))})
    file = (tmp_path / "x" / "a.npy").stat()
    assert file.st_size > 2e8 and file.st_blocks * 512 < 1e6


def test_a_store_of_nothing(tmp_path):
    store = Store(tmp_path / "x", 0, ARRAYS)
    assert store.missing(torch.arange(0)).tolist() == [] and store.rows("a", torch.arange(0))[:].shape == (0, 3, 2)


@needs_dev_full
def test_a_full_disk_is_an_error_and_marks_nothing_as_there(tmp_path):
    store = Store(tmp_path / "x", 4, ARRAYS)
    filled(store, [0])
    values = store.array("a")
    (tmp_path / "x" / "a.npy").rename(tmp_path / "a.npy")
    (tmp_path / "x" / "a.npy").symlink_to("/dev/full")
    store.array = lambda name: values if name == "a" else Store.array(store, name)
    with pytest.raises(OSError) as error:
        filled(store, [1, 2])
    assert error.value.errno == errno.ENOSPC
    (tmp_path / "a.npy").replace(tmp_path / "x" / "a.npy")
    assert Store(tmp_path / "x", 4, ARRAYS).missing(torch.arange(4)).tolist() == [1, 2, 3]


def test_a_digest_changes_with_everything_in_it():
    w, n = torch.arange(4.0), torch.tensor(3)
    tensors = {"w": w, "n": n}
    changes = {"n": torch.tensor(4)}, {"w": w.flip(0)}, {"w": w.half()}, {"w": w.view(2, 2)}
    others = [*(tensors | change for change in changes), {"v": w, "n": n}]
    found = [digest("a", "b", tensors), digest("ab", tensors), digest("a", "b")]
    found += [digest("a", "b", other) for other in others]
    assert len(set(found)) == len(found) == 8 and digest("a", "b", {"w": w.clone(), "n": n.clone()}) == found[0]


@pytest.fixture
def counted(monkeypatch):
    """How many images the towers have encoded."""
    calls = spy(monkeypatch, ImageTower, "forward")
    return lambda: sum(len(pixels) for _, pixels in calls)


@pytest.fixture
def tower():
    return ImageTower("mini")


def test_cached_tokens_equal_fresh_ones(tiny, tower, tmp_path, counted):
    fresh = encode_images(tower, tiny.val, batch_size=7)
    first = encode_images(tower, tiny.val, tmp_path, batch_size=30)
    assert counted() == 60
    again = encode_images(tower, tiny.val, tmp_path)
    assert counted() == 60  # nothing was computed again
    for a, b, c in zip(first, again, fresh):
        assert a[:].dtype == b[:].dtype and torch.equal(a[:], b[:])
        torch.testing.assert_close(a[:].float(), c[:].float(), rtol=2e-3, atol=2e-3)


def test_tokens_are_those_of_each_image(tiny, tower):
    tokens, vectors = encode_images(tower, tiny.val, batch_size=8)
    assert tokens.shape == (30, 64, tower.num_features)
    assert tokens[:].dtype == torch.float16 and vectors[:].dtype == torch.float32
    with torch.no_grad():
        for i in (0, 8, 29):
            token, vector = tower(tower.preprocess(tiny.val.image(i))[None])
            torch.testing.assert_close(tokens[i].float(), token[0], rtol=2e-3, atol=2e-3)
            torch.testing.assert_close(vectors[i], vector[0], rtol=0, atol=1e-4)


def test_windows_are_kept_apart_as_half_precision_vectors(tiny, tower, tmp_path):
    some, looking = tiny.val.select([3, 1]), ImageTower("mini", windows=4)
    encode_images(tower, some, tmp_path)
    (tokens, vectors), (again, _) = (encode_images(looking, some, tmp_path) for _ in range(2))
    assert tokens.shape == (2, 5, tower.embed_dim) and torch.equal(tokens[:], again[:])
    assert len(list(tmp_path.iterdir())) == 2 and tokens[:].dtype == torch.float16
    torch.testing.assert_close(tokens[:][:, 0].float(), vectors[:], rtol=2e-3, atol=2e-3)


def test_parts_of_a_split_share_what_is_there(tiny, tower, tmp_path, counted):
    some = encode_images(tower, tiny.val.select([4, 2, 9]), tmp_path)[1]
    assert counted() == 3
    reordered = encode_images(tower, tiny.val.select([9, 5, 2]), tmp_path)[1]
    assert counted() == 4 and torch.equal(reordered[torch.tensor([0, 2])], some[torch.tensor([2, 1])])
    encode_images(tower, tiny.val, tmp_path)
    assert counted() == 30


def test_encoding_goes_on_where_it_was_broken_off(tiny, tower, tmp_path, monkeypatch, counted):
    def stop(n):
        if n == 3:
            raise KeyboardInterrupt

    spy(monkeypatch, Store, "write", stop)
    with pytest.raises(KeyboardInterrupt):
        encode_images(tower, tiny.val, tmp_path, batch_size=8)
    before = counted()
    vectors = encode_images(tower, tiny.val, tmp_path, batch_size=8)[1]
    assert (before, counted() - before) == (24, 14)
    torch.testing.assert_close(vectors[:], encode_images(tower, tiny.val)[1][:], rtol=0, atol=1e-4)


def test_another_tower_other_weights_another_transform_are_cached_apart(tiny, tmp_path, counted):
    two, kinds = tiny.val.select([0, 1]), [ImageTower("mini") for _ in range(3)]
    with torch.no_grad():
        kinds[1].trunk.proj.mul_(2)
    kinds[2].preprocess = v2.Compose([v2.RandomHorizontalFlip(p=1.0), kinds[2].preprocess])
    plain, doubled, flipped = (encode_images(tower, two, tmp_path)[1][:] for tower in kinds)
    assert counted() == 6 and len(list(tmp_path.iterdir())) == 3
    torch.testing.assert_close(doubled, 2 * plain, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(flipped, plain, atol=1e-2)


def test_data_that_was_written_anew_is_encoded_anew(tower, tmp_path, counted):
    old = load_data(emoji_scenes.prepare(tmp_path / "old", seed=0, sizes=FEW, workers=1))
    emoji_scenes.prepare(tmp_path / "new", seed=1, sizes=FEW, workers=1)
    before = encode_images(tower, old.val, tmp_path / "tokens")[1][:]
    (tmp_path / "old").rename(tmp_path / "away")
    (tmp_path / "new").rename(tmp_path / "old")  # another data set under the old name
    after = encode_images(tower, load_data(tmp_path / "old").val, tmp_path / "tokens")[1][:]
    assert counted() == 6 and not torch.allclose(before, after, atol=1e-2)


def test_one_changed_file_is_enough(tower, tmp_path, counted):
    data = load_data(emoji_scenes.prepare(tmp_path / "d", seed=0, sizes=FEW, workers=1))
    encode_images(tower, data.val, tmp_path)
    file = data.val.rows.cache_files[0]["filename"]
    os.utime(file, ns=(0, os.stat(file).st_mtime_ns + 1))
    encode_images(tower, data.val, tmp_path)
    assert counted() == 6


def test_no_images_have_no_tokens(tiny, tower, tmp_path):
    for folder in (None, tmp_path):
        tokens, vectors = encode_images(tower, tiny.val.select([]), folder)
        assert tokens.shape == (0, 64, tower.num_features) and vectors[:].shape == (0, tower.embed_dim)


def test_tokens_beyond_half_precision(tiny, monkeypatch):
    forward = ImageTower.forward
    monkeypatch.setattr(ImageTower, "forward", lambda self, pixels: tuple(1e6 * x for x in forward(self, pixels)))
    with pytest.raises(ValueError, match="mini gives tokens beyond half precision"):
        encode_images(ImageTower("mini"), tiny.val.select([0]))


def test_a_data_folder_that_cannot_be_written(tiny, train, tmp_path, capsys):
    """Of a read-only disk, or another's: here a file stands where the folder of tokens would be."""
    other = shutil.copytree(tiny.folder, tmp_path / "data", ignore=lambda *_: ["tokens"])
    (other / "tokens").touch()
    before = files(other)
    found, expected = train(tmp_path / "run", load_data(other)), train(tmp_path / "expected")
    assert results(found) == pytest.approx(results(expected), abs=1e-9) and files(other) == before
    assert "tokens cannot be written (File exists): tokens stay in memory" in capsys.readouterr().out


def test_tokens_that_memory_has_no_room_for(tiny, monkeypatch, capsys):
    memory = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory._replace(available=200_000))
    tokens, vectors = encode_images(ImageTower("mini"), tiny.val)
    assert tokens is None and len(vectors[:]) == 30 and "memory has no room for 0.0 GB" in capsys.readouterr().out


def test_tokens_that_the_disk_has_no_room_for(tiny, train, tmp_path, monkeypatch, counted, capsys):
    """A run then encodes its images anew in every epoch, and ends the same but for the half precision of stored."""
    runs = {"epochs": 2, "batch_size": 8, "dropout": 0.0, "lr": 1e-4}
    some = replace(tiny, train=tiny.train.select(range(24)), val=tiny.val.select(range(20)), folder=tmp_path / "other")
    stored = train(tmp_path / "stored", replace(some, folder=tiny.folder), **runs)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=200_000))
    before = counted()
    anew = train(tmp_path / "anew", some, **runs)
    assert counted() - before > 2 * 22 + 2 * 20 + 60
    assert "has no room for 0.0 GB of tokens: images are encoded anew each time" in capsys.readouterr().out
    losses, expected = ([row["loss"] for row in history(tmp_path / name)] for name in ("anew", "stored"))
    assert losses == pytest.approx(expected, rel=1e-3)
    assert anew["raw_clip"]["zsl"]["map"] == pytest.approx(stored["raw_clip"]["zsl"]["map"], abs=0.05)
    kept = [path for path in (some.folder / "tokens").rglob("tokens.npy") if path.stat().st_blocks * 512 > 10_000]
    assert kept == [] and list((some.folder / "tokens").glob("test-*-vectors/vectors.npy"))


def test_sentences_are_kept_and_encoded_anew_with_other_texts(tiny, settings, tmp_path, monkeypatch):
    calls, some = spy(monkeypatch, tokens_module, "encode_texts"), tiny.train.select(range(9))

    def texts(split, **changes):
        """(vectors of a split's sentences, those that are encoded for them)."""
        calls.clear()
        vectors = encode_sentences(split, tiny.labels, settings(tmp_path, **changes), folder=tmp_path)[:]
        return vectors, [text for texts, *_ in calls for text in texts]

    first, encoded = texts(some)
    assert 1 <= len(set(encoded)) == len(encoded) <= 9
    again, none = texts(some)
    assert torch.equal(again, first) and none == []
    assert len(texts(some, prompt="{}")[1]) == len(encoded) and texts(replace(some, targets=some.targets.flip(1)))[1]


def test_the_text_tower_has_a_key_of_its_weights(monkeypatch):
    key = text_key("mini")
    clip = load_clip("mini")
    monkeypatch.setattr(clip.model, "state_dict", lambda: {"visual.x": torch.ones(1), "text.x": torch.ones(1)})
    other = text_key("mini")
    monkeypatch.setattr(clip.model, "state_dict", lambda: {"visual.x": torch.zeros(1), "text.x": torch.ones(1)})
    assert text_key("mini") == other != key
