"""Untouched CLIP as a Predictor: scores, which window, calibration by a few images, and the command."""

import json
import math

import pytest
import torch

from clipdec import LabelSpace, Predictor, encode_labels
from clipdec.labels import read_names, same_name
from clipdec.predictor.__main__ import main
from clipdec.predictor.raw_clip import VOCABULARY, vocabulary
from clipdec.towers import ImageTower, load_clip
from data_prep.names import SPLITS

NAMES = ["dog face", "pizza", "key", "rainbow", "bus", "airplane"]


@pytest.fixture(scope="module")
def predictor():
    return Predictor.from_clip("mini", NAMES, windows=4, device="cpu")


def evidence(image, name, windows):
    """Log-softmax of CLIP's cosines over NAMES, of `name`, for each look at an image, [looks]."""
    tower = ImageTower("mini", windows=windows)
    with torch.no_grad():
        tokens, vectors = tower(tower.preprocess(image)[None])
    looks = tokens[0] if windows else vectors
    scale = load_clip("mini").model.logit_scale.exp().item()
    logits = torch.stack([scale * torch.cosine_similarity(looks, vector[None]) for vector in encode_labels(NAMES)], 1)
    return logits.log_softmax(1)[:, NAMES.index(name)]


@pytest.mark.parametrize("windows", [0, 4])
def test_a_score_is_the_best_look_at_the_softmax(tiny, windows):
    predictor, image = Predictor.from_clip("mini", NAMES, windows, device="cpu"), tiny.test.image(3)
    answer = dict(predictor(image))
    assert answer.keys() == set(NAMES) and not any(p >= predictor.threshold for p in answer.values())
    for name in NAMES:
        expected = evidence(image, name, windows).max().sigmoid().item()
        assert answer[name] == pytest.approx(expected, rel=1e-3, abs=0)
        assert dict(predictor(image, [name]))[name] == pytest.approx(answer[name], rel=1e-3, abs=0)
    assert predictor.calibration.note.startswith("untouched CLIP knows no probabilities")


def test_the_explanation_is_the_window_that_the_score_comes_from(predictor, tiny):
    image = tiny.test.image(5)
    best = evidence(image, "rainbow", 4).argmax().item()
    seen = predictor.explain(image, "rainbow") > 0
    height, width = seen.shape
    if best == 0:  # the whole image
        assert seen.all()
    top, left, size = [(0, 0, 128), *predictor.model.tower.boxes][best]
    inside = torch.zeros(128, 128, dtype=torch.bool)
    inside[top : top + size, left : left + size] = True
    assert (
        seen == inside[torch.arange(height) * 128 // height][:, torch.arange(width) * 128 // width]
    ).float().mean() > 0.95
    whole = Predictor.from_clip("mini", NAMES, windows=0, device="cpu").explain(image, "rainbow")
    assert torch.allclose(whole, torch.full_like(whole, 1 / whole.numel()))


def test_a_few_images_calibrate_it(tiny):
    predictor = Predictor.from_clip("mini", tiny.labels, windows=0, device="cpu")
    images = [tiny.test.image(i) for i in range(len(tiny.test))]
    carried = [[tiny.labels.names[j] for j in row.nonzero().flatten()] for row in tiny.test.targets]
    names = tiny.labels.names
    before = [name for name, _ in predictor(images[0])]
    predictor.calibrate(images, [[name.upper() for name in each] for each in carried], names)
    assert predictor.calibration.base_rate == pytest.approx(tiny.test.targets.float().mean().item())
    assert 0 < predictor.threshold < 1 and [name for name, _ in predictor(images[0])] == before
    expected = sum(p for answer in predictor(images) for _, p in answer) / len(images) / len(names)
    assert expected == pytest.approx(predictor.calibration.base_rate, rel=0.2)  # probabilities sum to what is there


def test_what_cannot_calibrate_is_an_error_that_changes_nothing(predictor, tiny):
    before, image = predictor.calibration, tiny.test.image(0)
    with pytest.raises(ValueError, match="2 images and labels of 1"):
        predictor.calibrate([image, image], [["key"]])
    with pytest.raises(ValueError, match="what was given cannot tell, as each of its images carries all labels: give"):
        predictor.calibrate([image], [["key"]])
    with pytest.raises(ValueError, match="holds no image"):
        predictor.calibrate([], [])
    with pytest.raises(ValueError, match="'pizza' is carried but not among names"):
        predictor.calibrate([image, image], [["key"], ["Pizza"]], names="key")
    with pytest.raises(ValueError, match="gone.jpg cannot be read"):
        predictor.calibrate([image, "gone.jpg"], ["key", []])
    assert predictor.calibration == before


def test_a_label_alone_is_a_list_of_one(tiny):
    assert Predictor.from_clip("mini", "dog", windows=0, device="cpu").labels.names == ["dog"]
    images = [tiny.test.image(i) for i in range(30)]
    names = [tiny.labels.names[row.nonzero()[0, 0]] for row in tiny.test.targets[:30]]
    one, lists = (Predictor.from_clip("mini", tiny.labels, windows=0, device="cpu") for _ in range(2))
    one.calibrate(images, names)
    lists.calibrate(images, [[name] for name in names])
    assert one.calibration == lists.calibration and not one.calibration.note


def test_the_vocabulary_is_the_names_of_coco_and_nus_wide():
    files = "coco_seen65", "coco_unseen15", "nus_wide_seen925", "nus_wide_unseen81"
    assert {same_name(n) for f in files for n in read_names(SPLITS / f"{f}.txt")[0]} == {
        same_name(n) for n in vocabulary()
    }
    assert len(vocabulary()) == len({same_name(name) for name in vocabulary()})
    assert set(read_names(VOCABULARY)[1].values()) == {"COCO", "NUS-WIDE"}


def test_a_clip_in_the_place_of_a_run_folder(tiny, tmp_path, capsys):
    tiny.test.image(0).save(tmp_path / "x.png")
    with pytest.raises(SystemExit) as ended:
        main(["mini", str(tmp_path / "x.png"), "--top-k", "2", "--device", "cpu"])
    printed = capsys.readouterr().out
    assert not ended.value.code and "only the order of labels counts" in printed and "✓" not in printed
    with pytest.raises(ValueError, match="base_rate .* leave it out"):
        Predictor.load("open_clip:ViT-B-32/nothing.pt", base_rate=0.1)  # before anything is loaded
    loaded = Predictor.load("mini", device="cpu")
    assert loaded.labels == LabelSpace([], vocabulary()) and loaded.model.tower.passes == 26
    assert math.isclose(
        dict(loaded(tiny.test.image(0)))["zebra"], dict(loaded(tiny.test.image(0), ["zebra"]))["zebra"], rel_tol=1e-4
    )


def test_a_calibration_is_kept_for_the_same_model(tiny, tmp_path, capsys):
    """And the command then predicts; another number of looks, an empty file and what was not calibrated are refused."""
    predictor, path, photo = Predictor.from_clip("mini", device="cpu"), tmp_path / "own.json", str(tmp_path / "x.png")
    with pytest.raises(ValueError, match="no calibration to keep: untouched CLIP knows no probabilities"):
        predictor.save_calibration(path)
    images = [tiny.test.image(i) for i in range(20)]
    predictor.calibrate(images, [[tiny.labels.names[j] for j in row.nonzero()] for row in tiny.test.targets[:20]])
    predictor.save_calibration(path)
    assert Predictor.load("mini", device="cpu", calibration=path).calibration == predictor.calibration
    rarer = Predictor.load("mini", 0.01, "cpu", calibration=path).calibration
    assert rarer == predictor.calibration.at(0.01)
    with pytest.raises(ValueError, match="is the calibration of another model, or of other settings or labels"):
        Predictor.from_clip("mini", windows=4, device="cpu").load_calibration(path)
    whole = json.loads(path.read_text())
    for wrong in ({}, {"scale": 1.0}, whole | {"threshold": None}):
        (tmp_path / "wrong.json").write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match="holds no calibration: write one"):
            predictor.load_calibration(tmp_path / "wrong.json")
    identity = predictor.identity()
    predictor.model.references += 1e-7  # as another processor computes them
    assert predictor.identity() == identity
    images[0].save(photo)
    expected = [name for name, p in predictor(photo) if p >= predictor.threshold]
    with pytest.raises(SystemExit) as ended:
        main(["mini", photo, "--calibration", str(path), "--csv", str(tmp_path / "t.csv"), "--device", "cpu"])
    assert not ended.value.code and (tmp_path / "t.csv").read_text().splitlines()[1].split(",")[1] == ";".join(expected)
    assert expected
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["mini", photo, "--calibration", str(path), "--device", "cpu", "--top-k", "1"])
    assert f"at least {predictor.threshold:.3g}, the best F1 on {path};" in capsys.readouterr().out


def test_labels_of_a_clip_are_neither_seen_nor_unseen(tiny, tmp_path, capsys):
    tiny.test.image(0).save(tmp_path / "x.png")
    for option in ([], ["--json"]):
        with pytest.raises(SystemExit):
            main(["mini", str(tmp_path / "x.png"), "--labels", "cat", "zeppelin", "--device", "cpu", *option])
    table, _, records = capsys.readouterr().out.partition("[")
    assert not {"seen", "unseen", "new"} & set(table.split()) and "kind" not in records
    scores = [float(line.split()[-1]) for line in table.splitlines()[1:3]]
    assert scores == sorted(scores, reverse=True) and min(scores) > 0  # small ones do not all look alike
