"""Emoji scenes and prepared data sets: pixels, labels, what is refused, and cached tokens."""

import io
import json

import datasets
import pytest
import torch
from PIL import Image, ImageDraw

from clipdec import hold_out, load_data
from data_prep import emoji_scenes, writer
from data_prep.emoji_scenes import GLYPH, concepts, glyph, prepare, scene

SIZES = {"train": 3, "val": 1, "test": 2}


def files(folder):
    """{path in the folder: (contents, time of the last change)}."""
    return {p.relative_to(folder): (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


def pixels(split, indices):
    return [split.image(i).tobytes() for i in indices]


def test_label_lists():
    seen, unseen, themes, glyphs = concepts()
    assert (len(seen), len(unseen), len({*seen, *unseen})) == (925, 81, 1006)
    at_home = {theme for setting in emoji_scenes.SETTINGS.values() for theme in setting[0]}
    assert set(themes) == set(glyphs) == set(seen + unseen) and set(themes.values()) <= at_home


def test_every_concept_has_a_picture_of_its_own():
    seen, unseen, *_ = concepts()
    canvas, how = Image.new("RGBA", (2 * GLYPH, 2 * GLYPH)), {"embedded_color": True, "anchor": "mm"}
    ImageDraw.Draw(canvas).text((GLYPH, GLYPH), "\U0010fffd", font=emoji_scenes._font(), **how)
    missing = canvas.crop(canvas.getbbox())  # what the font draws for a character that it lacks
    names = {(missing.size, missing.tobytes()): ["(missing)"]}
    for name in seen + unseen:
        names.setdefault((glyph(name).size, glyph(name).tobytes()), []).append(name)
    assert [same for same in names.values() if len(same) > 1] == []


def test_concepts_are_single_characters():
    """A joined sequence would be drawn as its parts, side by side, where Pillow lacks libraqm."""
    assert [n for n, text in concepts()[3].items() if len(text.replace("\ufe0f", "")) != 1] == []


def test_one_seed_draws_one_scene():
    a, b = scene(3, "test", 5), scene(3, "test", 5)
    assert a["labels"] == b["labels"] and a["image"].tobytes() == b["image"].tobytes()
    for other in ((4, "test", 5), (3, "train", 5), (3, "test", 6)):
        assert scene(*other)["image"].tobytes() != a["image"].tobytes()


def test_scenes_have_1_to_6_different_sorted_labels():
    rows = [scene(0, "test", index) for index in range(60)]
    assert {(row["image"].size, row["image"].mode) for row in rows} == {((128, 128), "RGB")}
    assert all(row["labels"] == sorted(set(row["labels"])) for row in rows)
    assert {1, 6} <= {len(row["labels"]) for row in rows} <= set(range(1, 7))


def test_unseen_labels_are_in_test_only(tiny):
    unseen = tiny.labels.unseen_index
    assert not tiny.train.targets[:, unseen].any() and not tiny.val.targets[:, unseen].any()
    assert 0.35 < tiny.test.targets[:, unseen].sum() / tiny.test.targets.sum() < 0.65


def test_the_scene_is_of_its_labels(monkeypatch):
    monkeypatch.setattr(emoji_scenes, "draw", lambda rng, names, setting: names)
    labels = concepts()[0] + concepts()[1]
    for row in (scene(0, "test", index) for index in range(20)):
        assert sorted(row["image"]) == sorted(labels[i] for i in row["labels"])


def test_the_folder_holds_the_scenes(tiny):
    for split in (tiny.train, tiny.val, tiny.test):
        for i in (0, len(split) - 1):
            (image, targets), expected = split[i], scene(0, split.name, i)
            assert image.tobytes() == expected["image"].tobytes()
            assert targets.nonzero().flatten().tolist() == expected["labels"]


def test_labels_json_names_source_and_licence(tiny):
    info = json.loads((tiny.folder / "labels.json").read_text(encoding="utf8"))
    assert (info["seen"], info["unseen"]) == concepts()[:2]
    assert "OpenMoji" in info["attribution"] and info["licence"] == "CC BY-SA 4.0" and "emoji scenes" in info["source"]
    assert tiny.info == {k: v for k, v in info.items() if k not in ("seen", "unseen")}


def test_preparing_twice_does_nothing(tmp_path, capsys):
    out = prepare(tmp_path / "x", 1, SIZES, workers=1)
    before = files(out)
    capsys.readouterr()
    assert prepare(out, 1, SIZES, workers=1) == out
    assert "is ready" in capsys.readouterr().out and files(out) == before


def test_another_seed_replaces_the_scenes(tmp_path):
    out = prepare(tmp_path / "x", 1, SIZES, workers=1)
    first = pixels(load_data(out).train, range(3))
    prepare(out, 2, SIZES, workers=1)
    assert all(a != b for a, b in zip(first, pixels(load_data(out).train, range(3))))
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_workers_draw_the_same(tmp_path):
    sizes = {"train": 4, "val": 1, "test": 1}
    one, two = (load_data(prepare(tmp_path / str(n), 5, sizes, workers=n)).train for n in (1, 2))
    assert torch.equal(one.targets, two.targets) and pixels(one, range(4)) == pixels(two, range(4))


def test_an_interrupted_preparation_leaves_no_data_set(tmp_path, monkeypatch):
    def interrupted(seed, split, index, *rest):
        if (split, index) == ("val", 0):
            raise RuntimeError("interrupted")
        return scene(seed, split, index, *rest)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="interrupted"):
        patch.setattr(emoji_scenes, "scene", interrupted)
        prepare(tmp_path / "x", 1, SIZES, workers=1)
    assert not (tmp_path / "x").exists()
    assert len(load_data(prepare(tmp_path / "x", 1, SIZES, workers=1)).train) == 3


def test_an_interrupted_replacement_leaves_the_old_scenes(tmp_path, monkeypatch):
    out = prepare(tmp_path / "x", 1, SIZES, workers=1)
    before = files(out)
    monkeypatch.setattr(emoji_scenes, "draw", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prepare(out, 2, SIZES, workers=1)
    assert files(out) == before


def test_foreign_folders_are_not_overwritten(tmp_path):
    write(tmp_path / "own")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("years of work")
    for name, message in (("notes", "is not empty and not a prepared data set"), ("own", "holds another data set")):
        before = files(tmp_path / name)
        with pytest.raises(FileExistsError, match=message):
            prepare(tmp_path / name, 0, SIZES, workers=1)
        assert files(tmp_path / name) == before


def png(colour, mode="RGB"):
    file = io.BytesIO()
    Image.new(mode, (6, 5), colour).save(file, "PNG")
    return file.getvalue()


RED = png("red")
ROWS = [(RED, [0]), (png("blue"), [2, 1]), (png("lime"), [])]


def write(
    folder, rows=ROWS, seen=("a", "b"), unseen=("c",), splits=("train", "val", "test"), names=True, absent=None
):  # fmt: skip
    """A prepared data set of any images: `rows` are (bytes, label indices) of every split; absent, indices of each."""
    table = [{"image": {"bytes": data, "path": f"{i}.png"}, "labels": labels} for i, (data, labels) in enumerate(rows)]
    if absent:
        table = [row | {"absent": each} for row, each in zip(table, absent)]
    split = datasets.Dataset.from_list(table, writer.ABSENT if absent else writer.FEATURES)
    datasets.DatasetDict(dict.fromkeys(splits, split)).save_to_disk(folder)
    if names:
        info = {"seen": seen, "unseen": unseen, "source": "a test", "licence": "none"}
        (folder / "labels.json").write_text(json.dumps(info))
    return folder


def test_load_data(tmp_path):
    data = load_data(write(tmp_path / "x"))
    assert (data.labels.seen, data.labels.unseen, data.info["licence"]) == (["a", "b"], ["c"], "none")
    for split in (data.train, data.val, data.test):
        assert len(split) == 3 and split.targets.dtype == torch.bool
        assert split.targets.tolist() == [[True, False, False], [False, True, True], [False, False, False]]
        colours = [split[i][0].getpixel((0, 0)) for i in range(3)]
        assert colours == [(255, 0, 0), (0, 0, 255), (0, 255, 0)] and split[0][0].size == (6, 5)


def test_targets_are_the_stored_indices(tiny):
    for split in (tiny.train, tiny.val, tiny.test):
        assert split.targets.shape == (len(split), 1006)
        for row, indices in zip(split.targets, split.rows["labels"]):
            assert row.nonzero().flatten().tolist() == sorted(indices)


def test_select_keeps_images_and_targets_together(tiny):
    some = tiny.test.select([7, 2, 7])
    assert torch.equal(some.targets, tiny.test.targets[[7, 2, 7]])
    assert pixels(some, range(3)) == pixels(tiny.test, (7, 2, 7))
    assert len(tiny.test.select([])) == 0 and tiny.test.select([]).targets.shape == (0, 1006)


def test_images_become_rgb(tmp_path):
    image = load_data(write(tmp_path / "x", [(png((90, 10), "LA"), [0])])).train.image(0)
    assert image.mode == "RGB" and image.getpixel((0, 0)) == (249, 249, 249)  # 10/255 of 90 over white


def test_a_relative_folder_is_looked_for_in_the_working_directory(tmp_path, monkeypatch):
    write(tmp_path / "x")
    monkeypatch.chdir(tmp_path)
    assert len(load_data("x").train) == 3


def test_missing_and_unprepared_folders(tmp_path):
    (tmp_path / "empty").mkdir()
    write(tmp_path / "no_names", names=False)
    write(tmp_path / "no_test", splits=("train",))
    messages = {"nothing": "there is no data folder .*prepare it", "no_test": "lacks the split test, val"}
    for name in ("nothing", "empty", "no_names", "no_test"):
        with pytest.raises(FileNotFoundError, match=messages.get(name, "is not a prepared data set")):
            load_data(tmp_path / name)


@pytest.mark.parametrize("wrong, message", [
    ({"rows": [(RED, [0]), (RED, [0, 3])]}, "indices 0 to 3, but labels.json names 3"),
    ({"rows": [(RED, [0]), (RED, [-1, 1])]}, "indices -1 to 1"), ({"unseen": ("b",)}, "both seen and unseen: b"),
])
def test_label_indices_out_of_range_and_a_label_both_seen_and_unseen(tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        load_data(write(tmp_path / "x", **wrong))


def test_what_is_known_is_what_is_there_or_absent(tmp_path):
    plain, data = load_data(write(tmp_path / "x")), load_data(write(tmp_path / "y", absent=[[1], [], [2, 0]]))
    assert plain.test.known is None and torch.equal(data.test.targets, plain.test.targets)
    assert data.test.known.tolist() == [[True, True, False], [False, True, True], [True, False, True]]
    some = data.test.select([2, 0], labels=[1, 2])
    assert some.known.tolist() == [[False, True], [True, False]]
    assert some.targets.tolist() == [[False, False], [False, False]] and len(some) == 2
    other = load_data(write(tmp_path / "z", absent=[[1], [], [2]]))
    assert len({data.fingerprint for data in (plain, data, other)}) == 3
    held = hold_out(data, 1)
    order = [data.labels.names.index(name) for name in held.labels.names]
    assert torch.equal(held.test.known, data.val.known[:, order])
    with pytest.raises(ValueError, match="indices 0 to 3, but labels.json names 3"):
        load_data(write(tmp_path / "wrong", absent=[[0, 3], [], []]))


@pytest.mark.parametrize("spoilt", [b"no image", b"", RED[: len(RED) // 2], RED[:40] + bytes(20) + RED[60:]])
def test_an_image_that_cannot_be_read_is_named(tmp_path, spoilt):
    data = load_data(write(tmp_path / "x", [(RED, [0]), (spoilt, [1])]))
    assert data.val.image(0).size == (6, 5)
    with pytest.raises(ValueError, match=r"image 1 of val \(1.png\) cannot be read"):
        data.val[1]


def names_of(data, split):
    return [sorted(data.labels.names[i] for i in row.nonzero().flatten()) for row in split.targets]


def test_held_out_labels_are_in_no_training_image(tiny):
    held = hold_out(tiny, 60, seed=1)
    assert (len(held.labels.unseen), len(held.labels.seen)) == (60, 865)
    assert set(held.labels.names) == set(tiny.labels.seen)
    assert not held.train.targets[:, held.labels.unseen_index].any()
    kept = [i for i, names in enumerate(names_of(tiny, tiny.train)) if not set(names) & set(held.labels.unseen)]
    assert 0 < len(kept) < len(tiny.train) and pixels(held.train, range(3)) == pixels(tiny.train, kept[:3])
    assert names_of(held, held.train) == [names_of(tiny, tiny.train)[i] for i in kept]


def test_held_out_labels_are_evaluated_on_val(tiny):
    held = hold_out(tiny, 60, seed=1)
    assert names_of(held, held.test) == names_of(tiny, tiny.val)
    assert held.test.targets[:, held.labels.unseen_index].any() and pixels(held.test, [0]) == pixels(tiny.val, [0])
    assert names_of(held, held.val) == names_of(tiny, tiny.val)  # fit looks at its seen labels only


def test_the_seed_chooses_what_is_held_out(tiny):
    a, b, c = (hold_out(tiny, 60, seed).labels.unseen for seed in (1, 1, 2))
    assert a == b != c


@pytest.mark.parametrize("count", [0, 925, -1])
def test_hold_out_errors(tiny, count):
    with pytest.raises(ValueError, match="count must be from 1 to 924"):
        hold_out(tiny, count)
