"""The Predictor: any image, any labels, probabilities, attention maps, and the command."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clipdec import Predictor, load_run
from clipdec.calibration import Calibration, fit_calibration
from clipdec.predictor.__main__ import main
from clipdec.training.build import label_queries
from clipdec.training.scores import split_scores

ROOT = Path(__file__).resolve().parents[2]
LABELS = ["pizza", "a dog that reads", "key", "no label of the data set"]
TURNED = Image.Exif()
TURNED[0x0112] = 6  # the top of the file is the right side of the photo


@pytest.fixture(scope="module")
def predictor(tiny_run):
    return Predictor.load(tiny_run[0])


def probabilities(run, image, labels):
    """{label: probability}, computed from the model itself and the numbers in metrics.json."""
    folder, metrics = run
    config, model = load_run(folder)
    tokens, vectors = model.tower(model.tower.preprocess(image)[None])
    with torch.no_grad():
        queries = label_queries(config, labels)
        evidence = [model.clip_evidence(x, queries) for x in (tokens[0] if config.windows else vectors)]
        logits = model(tokens, queries)[0] + model.clip_weight * torch.stack(evidence).max(0).values
    scale, shift = (metrics["calibration"][name] for name in ("scale", "shift"))
    return {label: 1 / (1 + np.exp(-scale * x - shift)) for label, x in zip(labels, logits.double().tolist())}


def test_any_labels_the_most_probable_first(predictor, tiny, tiny_run):
    image, answer = tiny.test.image(3), predictor(tiny.test.image(3), LABELS)
    assert dict(answer) == pytest.approx(probabilities(tiny_run, image, LABELS), abs=1e-5)
    assert [p for _, p in answer] == sorted((p for _, p in answer), reverse=True)
    assert predictor(image, LABELS, top_k=2) == answer[:2] and predictor(image, iter(LABELS), top_k=9) == answer
    assert predictor(image, "dog face") == predictor(image, ["dog face"])


def test_the_labels_of_the_run_by_default_without_its_data(predictor, tiny, monkeypatch):
    monkeypatch.setattr("clipdec.data.load_data", None)
    answer = predictor(tiny.test.image(0))
    assert sorted(label for label, _ in answer) == sorted(tiny.labels.names) and predictor.labels == tiny.labels
    assert predictor(tiny.test.image(0), top_k=5) == answer[:5]


def test_many_images_at_once(predictor, tiny, tmp_path):
    images = [tiny.test.image(i) for i in range(35)]  # more than are in memory at a time
    images[34].save(tmp_path / "x.png")
    together = predictor([*images[:34], tmp_path / "x.png"], LABELS, top_k=3)
    for image, answer in zip(images, together, strict=True):
        alone = predictor(image, LABELS, top_k=3)
        assert [n for n, _ in alone] == [n for n, _ in answer] and dict(alone) == pytest.approx(dict(answer), abs=1e-5)
    assert predictor([], LABELS) == []


def test_one_bad_image_does_not_cost_the_others(predictor, tiny, tmp_path):
    (tmp_path / "bad.jpg").write_text("no image")
    images = [tiny.test.image(i) for i in range(33)]
    images[1], images[32] = tmp_path / "bad.jpg", tmp_path / "gone.jpg"  # of two batches
    with pytest.warns(UserWarning) as told:
        answers = predictor(images, LABELS)
    assert [str(w.message).split("cannot")[0] for w in told] == [f"left out: {images[i]} " for i in (1, 32)]
    assert [i for i, answer in enumerate(answers) if answer is None] == [1, 32]
    assert dict(answers[31]) == pytest.approx(dict(predictor(images[31], LABELS)), abs=1e-5)
    with pytest.raises(ValueError, match="no empty"):
        predictor(images, [""])


def test_image_files_arrays_and_modes(predictor, tiny, tmp_path):
    image = tiny.test.image(0)
    expected, array, rgba = predictor(image, LABELS), np.asarray(image), image.convert("RGBA")
    image.save(tmp_path / "x.png")
    rgba.save(tmp_path / "y.png")
    tensor, paths = torch.from_numpy(array.copy()).permute(2, 0, 1), (tmp_path / "x.png", str(tmp_path / "y.png"))
    for same in (*paths, rgba, array, tensor, tensor / 255, array / 255):
        assert predictor(same, LABELS) == expected
    assert predictor(array[..., 0], LABELS) == predictor(Image.fromarray(array[..., 0]), LABELS)
    assert len(predictor(Image.new("L", (31, 200)), ["pizza"])) == 1


def test_a_name_is_encoded_once(predictor, tiny, monkeypatch):
    before = dict(predictor(tiny.test.image(0), LABELS))
    encode = lambda config, names: label_queries(config, names) if names == ["one more"] else 1 / 0
    monkeypatch.setattr("clipdec.predictor.predictor.label_queries", encode)
    after = predictor(tiny.test.image(0), [*reversed(LABELS), "one more", "one more"])
    assert {name: p for name, p in after if name in before} == pytest.approx(before, abs=1e-6) and len(after) == 6


def test_images_that_cannot_be_read(predictor, tmp_path):
    (tmp_path / "x.jpg").write_text("no image")
    (tmp_path / "z.jpg").write_bytes(b"")
    Image.effect_noise((64, 64), 50).save(tmp_path / "y.png")
    (tmp_path / "y.png").write_bytes((tmp_path / "y.png").read_bytes()[:900])
    files = [tmp_path / name for name in ("x.jpg", "y.png", "z.jpg", "missing.png")]
    arrays = np.zeros((4, 4, 3), int), np.zeros((2, 2, 2, 2), np.uint8), np.zeros((0, 3, 3), np.uint8)
    for wrong in (*files, *arrays, None, 7, "https://example.org/x.jpg"):
        with pytest.raises(ValueError, match=f"{getattr(wrong, 'name', '')} cannot be read as an image"):
            predictor(wrong, ["pizza"])


def test_labels_that_are_none(predictor, tiny):
    for labels in ([], [""], ["pizza", " "]):
        with pytest.raises(ValueError, match="at least one name and no empty"):
            predictor(tiny.test.image(0), labels)


def test_five_thousand_labels(predictor, tiny):
    answer = dict(predictor(tiny.test.image(0), [*(f"thing {i}" for i in range(4999)), "pizza"]))
    [(_, alone)] = predictor(tiny.test.image(0), "pizza")
    assert len(answer) == 5000 and answer["pizza"] == pytest.approx(alone, abs=1e-5)


def weights(pixels, tokens):
    """How much each token counts at each pixel of a side, [pixels, tokens]: linear between the centres of tokens."""
    centres = (np.arange(pixels) + 0.5) * tokens / pixels - 0.5
    return np.stack([np.interp(centres, np.arange(tokens), row) for row in np.eye(tokens)], axis=1)


def test_attention_on_the_grid_of_the_image_and_of_a_photo_on_its_side(predictor, tiny, tmp_path):
    image = tiny.test.image(1).resize((160, 80))
    model, full = predictor.model, predictor.explain(image, "pizza")
    assert full.shape == (80, 160) and full.sum().item() == pytest.approx(1, abs=1e-4) and full.min() >= 0
    tokens, vectors = model.tower(model.tower.preprocess(image)[None])
    with torch.no_grad():
        _, maps = model.score(tokens, vectors, label_queries(predictor.config, ["pizza"]), need_attention=True)
    down, across = map(weights, (80, 160), model.tower.grid)  # [H, rows], [W, columns]
    expected = down @ maps[0, 0].unflatten(0, model.tower.grid).numpy() @ across.T
    assert full.numpy() == pytest.approx(expected / expected.sum(), rel=1e-4)
    both = predictor.explain(image, ["pizza", "key"])
    assert both.shape == (2, 80, 160) and torch.allclose(both[0], full, atol=1e-7)
    Image.new("RGB", (90, 40)).save(tmp_path / "x.jpg", exif=TURNED)
    assert predictor.explain(tmp_path / "x.jpg", "pizza").shape == (90, 40)


def test_attention_to_windows_lies_all_over_them(train, tiny, tmp_path):
    metrics = train(tmp_path, windows=4)
    predictor, image = Predictor.load(tmp_path), tiny.test.image(1)
    found, model = predictor.explain(image, "pizza"), predictor.model
    with torch.no_grad():
        encoded = model.tower(model.tower.preprocess(image)[None])
        _, maps = model.score(*encoded, label_queries(predictor.config, ["pizza"]), need_attention=True)
    expected = np.full((128, 128), maps[0, 0, 0].item() / 128**2)
    for weight, (top, left) in zip(maps[0, 0, 1:].tolist(), [(0, 0), (0, 56), (56, 0), (56, 56)], strict=True):
        expected[top : top + 72, left : left + 72] += weight / 72**2
    assert found.shape == expected.shape and found.numpy() == pytest.approx(expected, rel=1e-3)
    assert dict(predictor(image, LABELS)) == pytest.approx(probabilities((tmp_path, metrics), image, LABELS), abs=1e-5)


def test_the_calibration_is_that_of_val(predictor, tiny, tiny_run):
    (config, model), seen = load_run(tiny_run[0]), tiny.labels.seen_index
    fitted = fit_calibration(split_scores(model, tiny.val, tiny, config)[:, seen], tiny.val.targets[:, seen])
    assert vars(fitted) == pytest.approx(vars(predictor.calibration), abs=1e-3)
    assert predictor.calibration == Calibration(**tiny_run[1]["calibration"])
    assert predictor.threshold == predictor.calibration.threshold


def test_a_base_rate_of_one_s_own(predictor, tiny, tiny_run):
    odds = lambda p: p / (1 - p)
    ratio = odds(0.2) / odds(predictor.calibration.base_rate)
    own = dict(Predictor.load(tiny_run[0], base_rate=0.2)(tiny.test.image(0), LABELS))
    for name, p in predictor(tiny.test.image(0), LABELS):
        assert odds(own[name]) == pytest.approx(ratio * odds(p), rel=1e-3)
    with pytest.raises(ValueError, match="between 0 and 1"):
        Predictor.load(tiny_run[0], base_rate=0)


@pytest.mark.parametrize("name", ["labels.json", "metrics.json"])
def test_a_run_that_is_not_finished(tiny_run, tmp_path, name):
    for file in ("config.json", "checkpoint.safetensors", "labels.json", "metrics.json"):
        (tmp_path / file).write_bytes((tiny_run[0] / file).read_bytes())
    assert Predictor.load(tmp_path).labels.seen
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match="not finished"):
        Predictor.load(tmp_path)


@pytest.mark.parametrize("top_k", [0, -1])
def test_no_label_at_all_cannot_be_asked_for(predictor, tiny, top_k):
    with pytest.raises(ValueError, match=f"top_k must be at least 1, got {top_k}"):
        predictor(tiny.test.image(0), top_k=top_k)


def test_the_command_prints_a_table(predictor, tiny, tiny_run, tmp_path):
    photo, kinds = tmp_path / "photo.jpg", {"dog face": "seen", "pizza": "unseen", "<b>new</b>": "new"}
    tiny.test.image(0).save(photo)
    command = [sys.executable, "-m", "clipdec.predictor", tiny_run[0], photo, "--labels", *kinds]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    head, *rows, foot = done.stdout.splitlines()
    assert head == str(photo) and f"{predictor.threshold:.3g}" in foot and "Warning" not in done.stderr
    for row, (name, p) in zip(rows, predictor(photo, list(kinds)), strict=True):
        assert row.split("✓")[-1].split() == [*name.split(), f"{p:.3g}", kinds[name]]
        assert ("✓" in row) == (p >= predictor.threshold)


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main([str(a) for a in arguments])
    return ended.value.code, capsys.readouterr()


def test_the_command_prints_json(predictor, tiny, tiny_run, tmp_path, capsys):
    paths = [tmp_path / f"{name}.png" for name in (0, 1, "no")]
    for i, path in enumerate(paths[:2]):
        tiny.test.image(i).save(path)
    (tmp_path / "names.txt").write_text("\ufeff# things\npizza\n\nkey \n", encoding="utf8")
    labels = f"@{tmp_path}/names.txt"
    code, printed = run(capsys, tiny_run[0], paths[0], paths[2], paths[1], "--json", "--labels", labels)
    rows = json.loads(printed.out)
    assert code == 1 and "no.png cannot be read" in printed.err and [r["image"] for r in rows] == [*map(str, paths[:2])]
    for i, row in enumerate(rows):
        answer = predictor(tiny.test.image(i), ["pizza", "key"])
        expected = [(n, p >= predictor.threshold, predictor.labels.kind(n)) for n, p in answer]
        assert [(r["label"], r["predicted"], r["kind"]) for r in row["labels"]] == expected
        assert [r["probability"] for r in row["labels"]] == pytest.approx([p for _, p in answer], abs=1e-6)


def test_the_command_asks_about_the_labels_of_the_run(tiny, tiny_run, tmp_path, capsys):
    tiny.test.image(0).save(tmp_path / "x.png")
    assert run(capsys, tiny_run[0], tmp_path / "x.png")[1].out.count("\n") == 12
    assert run(capsys, tiny_run[0], tmp_path / "x.png", "--top-k", 3)[1].out.count("\n") == 5


def test_the_command_finds_photos_as_a_shell_would(tiny, tiny_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    shutil.copytree(tiny_run[0], tmp_path / "runs")
    (tmp_path / "names.txt").write_text("pizza")
    for name in ("b.png", "a.png", "[c].png"):
        tiny.test.image(0).save(tmp_path / name)
    photos = "~/*.png", str(tmp_path / "a.png"), "~/[c].png"
    code, printed = run(capsys, "~/runs", *photos, "--json", "--labels", "@~/names.txt")
    assert code == 0 and [Path(row["image"]).name for row in json.loads(printed.out)] == ["[c].png", "a.png", "b.png"]


def test_the_command_prints_on_a_narrow_console(tiny, tiny_run, tmp_path):
    tiny.test.image(0).save(tmp_path / "x.png")
    command = [sys.executable, "-m", "clipdec.predictor", tiny_run[0], tmp_path / "x.png", "--labels", "pizza", "日本"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "cp1252"})
    assert done.returncode == 0 and b"pizza" in done.stdout and b"??" in done.stdout


def test_the_command_says_what_is_wrong(tiny_run, tmp_path, capsys):
    assert "is not a run folder" in run(capsys, tmp_path, "x.png")[0]
    assert "no empty" in run(capsys, tiny_run[0], "x.png", "--labels", " ")[0]
    assert "No such file" in run(capsys, tiny_run[0], "x.png", "--labels", "@gone.txt")[0]
    assert "device must be auto, cpu, or" in run(capsys, tiny_run[0], "x.png", "--device", "tpu")[0]
    code, printed = run(capsys, tiny_run[0], "x.png", "--top-k", "-1")
    assert code == 2 and "--top-k must be at least 1, got -1" in printed.err


def test_probabilities_next_to_1_keep_their_order(predictor):
    [answer] = predictor._answers(torch.tensor([[18.0, 25.0, 20.0]]), ["a", "b", "c"], None)
    assert [name for name, _ in answer] == ["b", "c", "a"] and 1 > answer[0][1] > answer[1][1] > answer[2][1]


@pytest.mark.parametrize("wrong", [{"scale": float("nan")}, {"scale": "x"}, {"threshold": None}])
def test_a_calibration_that_is_none_is_an_error(tiny_run, tmp_path, wrong):
    run = shutil.copytree(tiny_run[0], tmp_path / "run")
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["calibration"] |= wrong
    (run / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(FileNotFoundError, match="is not finished, or of another version"):
        Predictor.load(run)


@pytest.mark.parametrize("content", ['{"seen": [], "unseen": [], "note": 1}', "[]", "{"])
def test_labels_of_another_version_are_named(tiny_run, tmp_path, content):
    run = shutil.copytree(tiny_run[0], tmp_path / "run")
    (run / "labels.json").write_text(content)
    with pytest.raises(ValueError, match="labels.json"):
        Predictor.load(run)


def test_a_run_of_a_larger_machine_takes_the_workers_that_are_here(tiny_run, tmp_path):
    run = shutil.copytree(tiny_run[0], tmp_path / "run")
    settings = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(settings | {"num_workers": 100_000}))
    assert Predictor.load(run).config.num_workers == os.cpu_count()
