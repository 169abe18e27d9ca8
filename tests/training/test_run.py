"""`fit` and what comes of it: the run folder, repetition, interruption, and loading."""

import csv
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import SIZES, assert_equal, at_step, files, history, load_state, results, save_vectors, spy, timm_file
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sklearn.metrics import average_precision_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from clipdec import LabelSpace, Predictor, encode_labels, fit, hold_out, load_data, load_run
from clipdec.calibration import Calibration
from clipdec.towers import load_clip
from clipdec.training import batches, run, scores, tokens
from clipdec.training import inputs as inputs_module
from clipdec.training.__main__ import main
from clipdec.training.accelerated import AcceleratedTrainer
from clipdec.training.build import build_model, label_queries
from clipdec.training.machine import duration, peak_memory_mb
from clipdec.training.scores import evaluate, held_labels, predict, run_scores, split_scores
from clipdec.training.tokens import encode_sentences, encoded
from data_prep import emoji_scenes

FIGURES = {"map", "p@3", "r@3", "f1@3", "p@5", "r@5", "f1@5"}


def weights(folder):
    return load_file(folder / "checkpoint.safetensors")


def test_metrics_json(tiny, tiny_run):
    folder, metrics = tiny_run
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    reports = {"zsl", "zsl_without_twins", "gzsl", "seen"}
    about = {"protocol", "data", "inputs", "config", "seed", "epochs", "seconds", "versions"}
    about |= {"held_out", "best_epoch", "chosen_by"}
    chosen = {"clip_weight", "calibration", "seen_offset", "gzsl_calibrated", "processes", "peak_memory_mb", "raw_clip"}
    assert metrics.keys() == reports | about | chosen | {"equal_prevalence", "reliability"}
    plain = metrics["gzsl"]["map"]  # an offset between labels moves no image, but for rounding
    assert metrics["gzsl_calibrated"]["map"] == pytest.approx(plain, abs=0.05)
    assert metrics["raw_clip"].keys() == reports - {"seen"}
    for figures in (*(metrics[r] for r in reports), *metrics["raw_clip"].values()):
        assert figures.keys() == FIGURES and all(0 <= v <= 100 for v in figures.values())
    protocol = metrics["protocol"]
    assert (protocol["keep"], protocol["test_images"]) == ("all", 60)
    assert protocol["labels_without_positives"] == int((tiny.test.targets.sum(0) == 0).sum())
    assert (metrics["data"], metrics["seed"], metrics["epochs"]) == (str(tiny.folder), 0, 2)
    assert metrics["config"] == json.loads((folder / "config.json").read_text())
    assert metrics["seconds"] > 0 and metrics["peak_memory_mb"] > 100
    assert metrics["chosen_by"] == "val_map" and metrics["best_epoch"] in (1, 2) and metrics["processes"] == 1
    versions = metrics["versions"]
    assert versions.keys() >= {"clipdec", "torch", "open_clip", "timm", "accelerate", "python"}
    assert versions["torch"] == torch.__version__


def test_the_folder_is_whole(tiny_run):
    folder, _ = tiny_run
    files = "checkpoint.safetensors config.json history.csv label_ap.csv labels.json lock metrics.json"
    assert sorted(f.name for f in folder.iterdir()) == [*files.split(), "scores.npz", "state.pt", "tensorboard"]
    rows = history(folder)
    assert [row["epoch"] for row in rows] == [1, 2]
    for row in rows:
        assert row["loss"] == pytest.approx(row["l_c"] + row["l_clip"], rel=1e-5) and 0 <= row["val_seen_map"] <= 100
        assert 0 < row["lr"] <= 4e-3 and 1 < row["logit_scale"] <= 100 and 0 <= row["val_held_map"] <= 100
        assert row["grad_norm"] > 0 and row["images_per_s"] > 0 and row["memory_mb"] > 100 and row["seconds"] > 0


def test_the_scores_are_kept(tiny, tiny_run, monkeypatch):
    """Those of val and of test, and AP of each label, for numpy and any reader of tables; `run_scores` takes them."""
    folder, _ = tiny_run
    config, model = load_run(folder)
    with np.load(folder / "scores.npz", allow_pickle=False) as file:
        for split in (tiny.val, tiny.test):
            logits = split_scores(model, split, tiny, config)
            np.testing.assert_allclose(file[split.name], logits, rtol=0, atol=1e-4)
        kept = file["test"]
    with open(folder / "label_ap.csv", newline="", encoding="utf8") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == tiny.labels.names
    for i, row in enumerate(rows):
        truth = tiny.test.targets[:, i].numpy()
        assert row["kind"] == ("seen" if i < len(tiny.labels.seen) else "unseen")
        assert int(row["positives"]) == truth.sum() and (row["ap"] == "nan") == (not truth.any())
        if truth.any():
            assert float(row["ap"]) == pytest.approx(100 * average_precision_score(truth, kept[:, i]), abs=1e-6)
    computed = spy(monkeypatch, scores, "split_scores")
    assert torch.equal(run_scores(folder, model, tiny, config), torch.from_numpy(kept)) and not computed
    few = replace(tiny, test=tiny.test.select([5, 2]))  # other data, and an older run: computed
    np.testing.assert_allclose(run_scores(folder, model, few, config), kept[[5, 2]], rtol=0, atol=1e-4)
    assert run_scores(folder / "nothing", model, few, config).shape == (2, 1006) and len(computed) == 2


def test_the_losses_fall(train, tmp_path):
    train(tmp_path, epochs=6, batch_size=16, lr=1e-2)
    first, *_, last = history(tmp_path)
    assert all(last[name] < first[name] for name in ("loss", "l_c", "l_clip"))


def test_one_seed_gives_one_result(train, tiny_run, tmp_path):
    folder, metrics = tiny_run
    load_clip.cache_clear()  # loading a CLIP draws random numbers, which must not move those of the run
    cold, warm = (train(tmp_path / name, epochs=2) for name in ("cold", "again"))
    assert results(cold) == results(warm) == results(metrics)
    assert_equal(weights(tmp_path / "again"), weights(folder))
    other = train(tmp_path / "other", epochs=2, seed=1)
    assert other["zsl"]["map"] != metrics["zsl"]["map"] and other["raw_clip"] == metrics["raw_clip"]


def test_training_does_not_look_at_test(tiny, train, tiny_run, tmp_path):
    other = replace(tiny.test, targets=tiny.test.targets.flip(0, 1))
    train(tmp_path, replace(tiny, test=other), epochs=2)
    assert_equal(weights(tmp_path), weights(tiny_run[0]))


@pytest.mark.parametrize("changes, figure, idle", [
    ({"alpha": 0.0}, "l_clip", "text_proj.weight"), ({"beta": 0.0}, "l_c", "decoder.output.weight"),
])  # fmt: skip
def test_a_loss_of_weight_0_trains_nothing(train, settings, tmp_path, changes, figure, idle):
    fresh = build_model(settings(tmp_path, **changes), torch.zeros(1, 128)).state_dict()[idle]
    train(tmp_path, **changes)
    assert history(tmp_path)[0][figure] == 0 and torch.equal(weights(tmp_path)[idle], fresh)


def test_images_without_a_seen_label_are_left_out(tiny, train, settings, tmp_path):
    targets = tiny.train.targets.clone()
    targets[:20] = False
    targets[:10, tiny.labels.unseen_index[0]] = True
    data = replace(tiny, train=replace(tiny.train, targets=targets))
    points = {"hold_out": 0.0}, {"hold_out": 0.0, "as_author": "keep_unlabelled"}
    some, labelled, every = (images_of(data, settings(tmp_path, **changes)) for changes in ({}, *points))
    asked, _ = held_labels(tiny.labels, settings(tmp_path))
    assert torch.equal(some.split.index, targets[:, asked].any(1).nonzero().flatten())
    assert torch.equal(some.targets, targets[some.split.index][:, asked])
    assert labelled.split.index.tolist() == list(range(20, 120)) and every.split.index.tolist() == list(range(120))
    targets[:] = False
    with pytest.raises(ValueError, match="no training image carries a seen label"):
        train(tmp_path, data)


def test_held_out_data_can_be_trained_on(tiny, train, tmp_path):
    metrics = train(tmp_path, hold_out(tiny, 60, seed=1))
    assert metrics["protocol"]["test_images"] == 30 and 0 <= metrics["zsl"]["map"] <= 100


def test_val_may_be_empty(tiny, train, tmp_path):
    metrics = train(tmp_path, replace(tiny, val=tiny.val.select([])), epochs=2)
    assert 0 <= metrics["zsl"]["map"] <= 100 and np.isnan(history(tmp_path)[0]["val_seen_map"])
    assert metrics["best_epoch"] == 2  # nothing to choose by: the last


@pytest.mark.parametrize("changes", [{}, {"windows": 4, "augment": True}])
def test_the_image_tower_can_be_trained(tiny, train, tmp_path, monkeypatch, changes):
    evaluated = spy(monkeypatch, run, "evaluate")
    few = replace(tiny, train=tiny.train.select(range(50)), test=tiny.test.select(range(20)))
    metrics = train(tmp_path, few, train_image_tower=True, batch_size=20, **changes)  # three steps
    found, start = weights(tmp_path), load_clip("mini").model.visual.state_dict()
    moved = {k for k, v in start.items() if not torch.equal(found[f"tower.trunk.{k}"], v)}
    assert moved >= {"conv1.weight", "ln_post.weight"}
    assert_same_logits(load_run(tmp_path)[1], evaluated[0][0], tiny)
    assert metrics["raw_clip"]["zsl"].keys() == FIGURES


def give_maps(monkeypatch, key, values):
    """Let validation, or the test, find these AP of two labels of each group, epoch after epoch: 1 below and 1 above
    each of `values`, so that the standard error of a group's mAP is 1, that of two groups' mean 1 / sqrt(2).
    """
    left, real, prefix = iter(values), run.Run._precisions, key.removesuffix("map")

    def precisions(self, *rest):
        found = real(self, *rest)
        if not next(iter(found)).startswith(prefix):
            return found
        return dict.fromkeys(found, next(left) + torch.tensor([-1.0, 1.0]))

    monkeypatch.setattr(run.Run, "_precisions", precisions)


@pytest.fixture(scope="module")
def by_epoch(tiny, settings, tmp_path_factory):
    """The weights of a run after each of three epochs."""
    saved, folder = [], tmp_path_factory.mktemp("by_epoch")
    fit(tiny, settings(folder, epochs=3, as_author="last_weights"), lambda rows: saved.append(weights(folder)))
    return saved


@pytest.mark.parametrize("changes, key, values, best", [
    ({}, "val_map", [3.0, 9.0, 5.0], 2), ({}, "val_map", [9.0, 8.4, 5.0], 2), ({}, "val_map", [9.0, 8.2, 8.0], 1),
    ({}, "val_map", [float("nan")] * 3, 3), ({"hold_out": 0.0}, "val_map", [3.0, 9.0, 8.2], 3),
    ({"as_author": "last_weights"}, "val_map", [3.0, 9.0, 5.0], 3),
])  # fmt: skip
def test_the_best_epoch_is_evaluated(train, by_epoch, tmp_path, monkeypatch, changes, key, values, best):
    give_maps(monkeypatch, key, values)
    metrics = train(tmp_path, epochs=3, **changes)
    chosen_by = "being the last" if np.isnan(values).any() else key
    assert (metrics["best_epoch"], metrics["chosen_by"], metrics["epochs"]) == (best, chosen_by, 3)
    if "hold_out" not in changes:  # which trains another model
        chosen_later = {"clip_weight": weights(tmp_path)["clip_weight"]}
        assert_equal(weights(tmp_path), by_epoch[best - 1] | chosen_later)


def test_a_run_ends_when_patience_does(train, tmp_path, monkeypatch):
    give_maps(monkeypatch, "val_map", [3.0, 9.0, 5.0, 6.0, 7.0, 8.0])
    metrics, again = (train(tmp_path, epochs=6, patience=2, resume=resume) for resume in (False, True))
    assert (metrics["epochs"], metrics["best_epoch"], len(history(tmp_path))) == (4, 2, 4)
    assert results(again) == pytest.approx(results(metrics), abs=1e-6)


def test_labels_held_out_are_neither_asked_nor_named(tiny, settings, tmp_path, monkeypatch):
    config = settings(tmp_path, hold_out=0.3)
    asked, held = held_labels(tiny.labels, config)
    assert len(held) == round(0.3 * 925) and sorted([*asked.tolist(), *held.tolist()]) == list(range(925))
    assert held.tolist() != held_labels(tiny.labels, replace(config, seed=1))[1].tolist()
    trained, calls = spy(monkeypatch, batches.TrainingImages, "__init__"), spy(monkeypatch, tokens, "encode_texts")
    data = replace(tiny, folder=tmp_path / "other")  # with no sentences kept from other tests
    fit(data, config)
    ((images, *_),) = trained
    assert images.targets.shape[1] == len(asked) and images.targets.any(1).all()
    sentences = [text.removeprefix("a photo of ") for texts, *_ in calls for text in texts]
    named = {name for text in sentences for name in text.replace(" and ", ", ").split(", ")}
    assert len(sentences) > 50 and not named & {tiny.labels.names[i] for i in held}
    row, model = history(tmp_path)[0], load_run(tmp_path)[1]
    model.clip_weight.zero_()  # the epochs are of the head alone
    held = held[tiny.val.targets[:, held].any(0)]
    queries, kept = label_queries(config, tiny.labels.names)[held], encoded(model, data.val, data, config)
    scores = predict(model, data.val, queries, kept)
    expected = average_precision_score(tiny.val.targets[:, held].numpy(), scores.numpy(), average="macro")
    assert row["val_held_map"] == pytest.approx(100 * expected)
    assert row["val_map"] == pytest.approx((row["val_held_map"] + row["val_seen_map"]) / 2)


def images_of(data, config):
    asked, _ = held_labels(data.labels, config)
    return batches.TrainingImages(data, asked, build_model(config, torch.zeros(1, 128)), config)


def test_an_epoch_has_every_image_once_in_batches_of_nearly_one_size(tiny, settings):
    images = images_of(tiny, settings("unused", batch_size=25, accumulate=2))
    epochs = [[(index, list(inputs)) for index, inputs in images.epoch(epoch)] for epoch in (0, 0, 1)]
    first, again, second = (torch.cat([index for index, _ in epoch]).tolist() for epoch in epochs)
    count, sizes = len(images.split), [len(index) for index, _ in epochs[0]]
    assert first == again != second and sorted(first) == sorted(second) == list(range(count))
    assert len(sizes) == images.steps == -(-count // 25) and max(sizes) - min(sizes) <= 1
    for index, inputs in epochs[0]:
        assert [len(part) for part in inputs] == [-(-len(index) // 2), len(index) // 2]
        assert torch.equal(torch.cat(inputs), images.tokens[index])
    later = list(images.epoch(0, 3))
    assert [index.tolist() for index, _ in later] == [index.tolist() for index, _ in epochs[0][3:]]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_augmented_images_depend_on_seed_epoch_and_image_alone(tiny, settings, num_workers):
    images = images_of(tiny, settings("unused", augment=True, batch_size=40, num_workers=num_workers))
    assert images.tokens is None

    def pixels(epoch, first=0):
        """{number of an image: its pixels} of an epoch's batches."""
        parts = [(index, torch.cat(list(inputs))) for index, inputs in images.epoch(epoch, first)]
        return {i: x for index, inputs in parts for i, x in zip(index.tolist(), inputs)}

    torch.manual_seed(1)
    one, rest, other = pixels(0), pixels(0, 2), pixels(1)
    assert all(torch.equal(one[i], x) for i, x in rest.items()) and 0 < len(rest) < len(one)
    assert sum(torch.equal(one[i], other[i]) for i in one) < 3
    i = next(iter(one))
    plain = build_model(settings("unused"), torch.zeros(1, 128)).tower.preprocess(images.split.image(i))
    zeros = (one[i] == 0).all(0)
    assert zeros.sum() >= 64 * 64 and one[i].shape == plain.shape  # a square of half the side is cut out
    assert zeros.any(1).sum() >= 64 and zeros.any(0).sum() >= 64


def test_scalars_of_every_step_are_in_tensorboard(tiny, train, settings, tmp_path):
    train(tmp_path, epochs=2, batch_size=30)
    events, rows = EventAccumulator(str(tmp_path / "tensorboard")).Reload(), history(tmp_path)
    tags = {"loss", "l_c", "l_clip", "grad_norm", "logit_scale", "lr"}
    assert set(events.Tags()["scalars"]) == tags | {f"epoch/{name}" for name in rows[0] if name != "epoch"}
    sizes = [len(index) for index, _ in images_of(tiny, settings("unused", batch_size=30)).epoch(1)]
    steps, losses = zip(*((event.step, event.value) for event in events.Scalars("loss")))
    assert list(steps) == list(range(1, 2 * len(sizes) + 1))
    assert np.average(losses[len(sizes) :], weights=sizes) == pytest.approx(rows[1]["loss"], rel=1e-5)
    maps = [event.value for event in events.Scalars("epoch/val_held_map")]
    assert maps == pytest.approx([row["val_held_map"] for row in rows], rel=1e-5)


def test_the_time_and_memory_that_a_run_takes_are_said_first(train, tmp_path, capsys):
    train(tmp_path, epochs=3, batch_size=30)
    first = capsys.readouterr().out.splitlines()[0]
    form = r"3 epochs of 4 steps, (\d+) ms each, and 150 images to evaluate: about .*\d s; memory about ([\d.]+) GB"
    said = re.fullmatch(form, first)
    assert said, first
    assert int(said[1]) > 0 and 0.1 < float(said[2]) < peak_memory_mb() / 1000 + 0.1


def test_durations():
    seconds = 0.2, 59.2, 61, 3600 * 30 + 300
    assert [duration(time) for time in seconds] == ["1 s", "1 min 0 s", "1 min 1 s", "30 h 5 min"]


def test_peak_memory_is_that_of_the_gpu_of_the_run(monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", {"cuda:0": 1e6, "cuda:1": 7e6}.get)
    assert peak_memory_mb("cuda:1") == 7


def test_the_command_line(tiny, tmp_path, capsys):
    path, folder = tmp_path / "run.json", tmp_path / "run"
    settings = {"preset": "mini", "data": str(tiny.folder), "out_dir": str(folder), "embed_dim": 16, "epochs": 1}
    path.write_text(json.dumps(settings))
    main(["--config", str(path)])
    assert "CLIP-Decoder" in capsys.readouterr().out and load_run(folder)[0].embed_dim == 16
    main(["--config", str(path), "--resume"])
    assert "epoch 1" not in capsys.readouterr().out
    path.write_text(json.dumps({"epoch": 3}))
    with pytest.raises(SystemExit, match="error: unknown parameter 'epoch': did you mean 'epochs'"):
        main(["--config", str(path)])


@pytest.fixture
def finished(tiny_run, tmp_path):
    """A copy of the folder of a finished run."""
    return shutil.copytree(tiny_run[0], tmp_path / "run")


def test_resuming_what_is_finished_trains_no_more(train, finished, tiny_run, monkeypatch):
    computed = spy(monkeypatch, AcceleratedTrainer, "gradients")
    metrics = train(finished, epochs=2, resume=True)
    assert computed == [] and results(metrics) == pytest.approx(results(tiny_run[1]), abs=1e-6)


def test_resuming_nothing_starts_anew(train, tiny_run, tmp_path):
    assert results(train(tmp_path, epochs=2, resume=True)) == results(tiny_run[1])


@pytest.mark.parametrize("name, value", [
    ("lr", 1e-3), ("epochs", 3), ("seed", 5), ("prompt", "{}"), ("as_author", "sum_loss"),
])  # fmt: skip
def test_resuming_with_other_settings(train, finished, name, value):
    before = files(finished)
    with pytest.raises(ValueError, match=rf"made with another {name} .* \(now \[?'?{value}"):
        train(finished, **{"epochs": 2, "resume": True, name: value})
    assert files(finished) == before


def test_resuming_a_run_of_an_earlier_version(train, finished):
    """Which kept the highest epoch: of its history nobody knows the errors of val."""
    state = load_state(finished)
    for row in state["position"]["history"]:
        del row["val_error"]
    torch.save(state, finished / "state.pt")
    before = files(finished)
    with pytest.raises(ValueError, match="state.pt is of an earlier version: set resume False"):
        train(finished, epochs=2, resume=True)
    assert files(finished) == before


def test_resuming_with_other_data(tiny, train, finished, tmp_path):
    """Other photos, other labels of one, a label that was trained and is now unseen, under the same name."""
    before, labels = files(finished), tiny.labels
    drawn = load_data(emoji_scenes.prepare(tmp_path / "tiny", 1, SIZES, workers=1))
    targets = tiny.train.targets.clone()
    targets[0, 0] ^= True
    moved = LabelSpace(labels.seen[:-1], [labels.seen[-1], *labels.unseen])
    for other in (drawn, replace(tiny, train=replace(tiny.train, targets=targets)), replace(tiny, labels=moved)):
        with pytest.raises(ValueError, match=f"made with another data '{tiny.fingerprint}' .now '{other.fingerprint}'"):
            train(finished, other, epochs=2, resume=True)
    assert files(finished) == before
    same = load_data(shutil.copytree(tiny.folder, tmp_path / "moved", ignore=lambda *_: ["tokens"]))
    assert train(finished, same, epochs=2, resume=True)["epochs"] == 2  # the same data at another place


FAILING = {
    "label_embeddings": "/no/such.npz", "preset": "clip", "hold_out": 0.9999, "accumulate": 100, "seed": 2**64,
    "image_tower": "timm:no", "text_tower": "open_clip:ViT-B-32/nowhere.pt", "sentence_tower": "maxi",
    "image_weights": "no.safetensors",
}  # fmt: skip


@pytest.mark.parametrize("name", FAILING)
def test_a_start_that_fails_leaves_the_run_that_was_there(train, finished, name):
    before = files(finished)
    more = {"image_tower": "timm:test_vit"} if name == "image_weights" else {}
    with pytest.raises((ValueError, OSError)):
        train(finished, **{name: FAILING[name]} | more)
    assert files(finished) == before


def test_nor_does_one_that_runs_out_of_memory(train, finished, monkeypatch):
    before = files(finished)
    spy(monkeypatch, AcceleratedTrainer, "gradients", lambda n: torch.empty(2**60))
    with pytest.raises(RuntimeError, match="memory"):
        train(finished, lr=1e-3)
    assert files(finished) == before


def test_what_is_no_run_folder_is_not_touched(tiny, train, tmp_path):
    for name, content in (("notes.txt", "mine"), ("labels.json", "{}"), ("config.json", '{"model_type": "clip"}')):
        (tmp_path / name[:3]).mkdir()
        (tmp_path / name[:3] / name).write_text(content)
        with pytest.raises(FileExistsError, match="not empty, and no run folder: give another out_dir"):
            train(tmp_path / name[:3])
        assert files(tmp_path / name[:3]) == {name: content.encode()}
    with pytest.raises(FileExistsError, match="is a file"):
        train(tmp_path / "not" / "notes.txt")
    other = shutil.copytree(tiny.folder, tmp_path / "data")
    (other / "config.json").write_text(json.dumps({"preset": "mini", "out_dir": "x"}))  # of an older version's run
    before = files(other)
    with pytest.raises(FileExistsError, match="the folder of a data set"):
        train(other)
    assert files(other) == before


@pytest.mark.parametrize("name, cut", [("state.pt", 1), ("checkpoint.safetensors", 1), ("checkpoint.safetensors", 0)])
def test_resuming_with_a_file_that_is_cut_or_lost(train, finished, name, cut):
    whole = (finished / name).read_bytes()
    (finished / name).unlink() if not cut else (finished / name).write_bytes(whole[: len(whole) // 2])
    before = files(finished)
    with pytest.raises(ValueError, match=f"{name}.* is lost or cut .*: bring back the whole file, or set resume False"):
        train(finished, epochs=2, resume=True)
    assert files(finished) == before


def test_settings_that_are_not_those_of_the_run(finished):
    path = finished / "config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"prompt": "a {}"}))
    with pytest.raises(ValueError, match="trained with another prompt 'a photo of {}' .now 'a {}'.: bring that back"):
        load_run(finished)
    path.write_text(json.dumps(settings | {"warp": 9}))
    with pytest.raises(ValueError, match="settings that are not known here, warp: it is of another version"):
        load_run(finished)


def test_a_run_of_before_windows_opens_and_goes_on(train, finished, tiny_run):
    """The setting is taken out of config.json, the checkpoint and the state."""
    config, state = json.loads((finished / "config.json").read_text()), load_state(finished)
    assert config.pop("windows") == state["config"].pop("windows") == 0
    (finished / "config.json").write_text(json.dumps(config))
    torch.save(state, finished / "state.pt")
    with safe_open(finished / "checkpoint.safetensors", "pt") as file:
        about = {"inputs": file.metadata()["inputs"], "settings": json.loads(file.metadata()["settings"])}
    del about["settings"]["windows"]
    about["settings"] = json.dumps(about["settings"])
    save_file(weights(finished), finished / "checkpoint.safetensors", about)
    assert load_run(finished)[0].windows == 0
    assert results(train(finished, epochs=2, resume=True)) == pytest.approx(results(tiny_run[1]), abs=1e-6)


def test_answers_rest_on_the_weights_that_a_run_was_trained_with(tiny, train, tmp_path):
    """Replaced weights of a frozen tower and replaced label vectors are refused; what is appended to them is not."""
    model, weights = timm_file("test_efficientnet", tmp_path)
    rows = torch.randn(len(tiny.labels.names), 8).numpy()
    vectors = save_vectors(tmp_path / "vectors.npz", tiny.labels.names, rows)
    changes = {"image_tower": "timm:test_efficientnet", "image_weights": str(weights), "label_embeddings": vectors}
    some = replace(tiny, folder=tmp_path)
    train(tmp_path / "run", some, **changes)
    save_vectors(vectors, [*tiny.labels.names, "more"], np.concatenate([rows, rows[:1]]))
    assert load_run(tmp_path / "run")
    save_vectors(vectors, tiny.labels.names, rows[::-1])
    with pytest.raises(ValueError, match="trained with another label_embeddings '.*' .now '.*'.: bring that back"):
        load_run(tmp_path / "run")
    save_vectors(vectors, tiny.labels.names, rows)
    save_file({k: v.flip(0).contiguous() for k, v in model.state_dict().items()}, weights)
    with pytest.raises(ValueError, match="trained with another image_tower '.*' .now '.*'.: bring that back"):
        load_run(tmp_path / "run")
    with pytest.raises(ValueError, match="made with another image_tower '.*' .now '.*'"):
        train(tmp_path / "run", some, **changes, resume=True)


def test_no_old_weights_beside_new_settings(train, finished, monkeypatch):
    at_step(monkeypatch, 1, lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(finished, prompt="{}")
    assert {f.name for f in finished.iterdir()} == {"config.json", "labels.json", "lock"}
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        load_run(finished)


def test_sentences_join_the_seen_labels(tiny, settings):
    prompt = "a picture of {}"
    sentences = encode_sentences(tiny.test, tiny.labels, settings("unused", prompt=prompt))[:]
    assert sentences.shape == (60, 128)
    texts = {}
    for i, row in enumerate(tiny.test.targets):  # which have unseen labels too
        names = [tiny.labels.seen[j] for j in range(925) if row[j]]
        if names:
            texts[i] = ", ".join(names[:-1]) + " and " + names[-1] if names[1:] else names[0]
    assert len(texts) > 40
    expected = encode_labels(list(texts.values()), "mini", prompt)
    torch.testing.assert_close(sentences[list(texts)], expected, rtol=0, atol=1e-5)


def test_sentences_of_label_embeddings_are_means_of_their_labels(tiny, settings, tmp_path):
    vectors = np.random.default_rng(0).standard_normal((1006, 6)).astype(np.float32)
    file = save_vectors(tmp_path / "e.npz", tiny.labels.names, vectors)
    sentences = encode_sentences(tiny.test, tiny.labels, settings("unused", label_embeddings=file))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for row, targets in list(zip(sentences, tiny.test.targets[:, :925]))[:10]:
        mean = unit[:925][targets.numpy()].sum(0)
        if targets.any():
            np.testing.assert_allclose(row.numpy(), mean / np.linalg.norm(mean), rtol=0, atol=1e-5)


def assert_same_logits(a, b, data):
    queries, some = encode_labels(data.labels.names[:40]), data.test.select(range(8))
    torch.testing.assert_close(predict(a, some, queries), predict(b, some, queries), rtol=0, atol=1e-5)


@pytest.mark.parametrize("changes", [{}, {"windows": "64/64"}])
def test_load_run_gives_back_the_model(tiny, train, settings, tmp_path, monkeypatch, changes):
    evaluated = spy(monkeypatch, run, "evaluate")
    metrics = train(tmp_path, **changes)
    config, model = load_run(tmp_path)
    assert config == settings(tmp_path, **changes) and not model.training
    assert_same_logits(model, evaluated[0][0], tiny)
    assert results(evaluate(model, tiny, config)) == pytest.approx(results(metrics), abs=1e-4)


def test_missing_runs(tmp_path, settings):
    with pytest.raises(FileNotFoundError, match="is not a run folder"):
        load_run(tmp_path / "nothing")
    (tmp_path / "config.json").write_text(json.dumps(settings(tmp_path).as_dict()))
    with pytest.raises(FileNotFoundError, match="there is no checkpoint .*04_train"):
        load_run(tmp_path)


@pytest.mark.parametrize("spoil", [
    lambda config, checkpoint: config.write_text(config.read_text().replace('"embed_dim": 16', '"embed_dim": 24')),
    lambda config, checkpoint: checkpoint.write_bytes(checkpoint.read_bytes()[:10_000]),
    lambda config, checkpoint: checkpoint.write_bytes(b"no tensors"),
])  # fmt: skip
def test_a_checkpoint_that_does_not_fit(finished, spoil):
    spoil(finished / "config.json", finished / "checkpoint.safetensors")
    with pytest.raises(ValueError, match="does not fit its config.json"):
        load_run(finished)


def test_vectors_of_a_file_replace_those_of_the_text_tower(tiny, train, tmp_path):
    names, rng = tiny.labels.names, np.random.default_rng(0)
    vectors, order = rng.standard_normal((len(names), 20)).astype(np.float32), rng.permutation(len(names))
    file = save_vectors(tmp_path / "a.npz", names, vectors)
    other = save_vectors(tmp_path / "b.npz", np.array(names)[order], 4 * vectors[order])  # other order, other lengths
    folder = tmp_path / "run"
    metrics = train(folder, label_embeddings=file)
    assert results(train(tmp_path / "b", label_embeddings=other)) == pytest.approx(results(metrics), abs=1e-4)
    assert weights(folder)["decoder.query_proj.weight"].shape == (16, 20)
    config, model = load_run(folder)
    unit = torch.from_numpy(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    logits = predict(model, tiny.test.select([2]), unit[:7])[0]
    expected = Calibration(**metrics["calibration"]).log_odds(logits).sigmoid().tolist()
    answer = dict(Predictor.load(folder)(tiny.test.image(2), names[:7]))
    assert answer == pytest.approx(dict(zip(names, expected)), abs=1e-5)
    with pytest.raises(ValueError, match="no vector for 1 labels: no such label"):
        Predictor(model, config, tiny.labels, Calibration())(tiny.test.image(2), ["no such label"])


def test_a_file_that_lacks_a_label_stops_the_run(tiny, train, tmp_path):
    file = save_vectors(tmp_path / "e.npz", tiny.labels.names[1:], np.ones((1005, 4)))
    with pytest.raises(ValueError, match="no vector for 1 labels"):
        train(tmp_path / "run", label_embeddings=file)


@pytest.mark.parametrize("name", ["text_tower", "sentence_tower"])
def test_another_text_tower_of_the_same_name_is_refused(train, tmp_path, monkeypatch, name):
    changes = {"sentence_tower": "mini"}
    train(tmp_path, **changes)
    real, others = inputs_module.text_weights, iter(["others", ""] if name == "text_tower" else ["", "others"])
    monkeypatch.setattr(inputs_module, "text_weights", lambda tower: next(others) or real(tower))
    with pytest.raises(ValueError, match=f"state.pt was made with another {name} '.*' .now 'others'.: resume"):
        train(tmp_path, resume=True, **changes)
    if name == "text_tower":
        monkeypatch.setattr(inputs_module, "text_weights", lambda tower: "others")
        with pytest.raises(ValueError, match="trained with another text_tower '.*' .now 'others'.: bring that back"):
            load_run(tmp_path)


def test_the_seed_draws_batches_and_steps(tiny, train, settings, tmp_path, monkeypatch):
    """Each step has random numbers of its own, and another seed has others."""
    all_asked = {"hold_out": 0.0, "batch_size": 60}  # the labels held out are drawn by the seed, too
    orders = [images_of(tiny, settings("unused", seed=seed, **all_asked)).epoch(0) for seed in (0, 0, 1)]
    first, again, other = (torch.cat([index for index, _ in order]).tolist() for order in orders)
    assert first == again != other and sorted(first) == sorted(other)
    drawn = []
    spy(monkeypatch, AcceleratedTrainer, "step", lambda n: drawn.append(torch.initial_seed()))
    for seed in (0, 1):
        train(tmp_path, seed=seed, epochs=2, **all_asked)
    assert len(drawn) == len({*drawn}) == 8


def test_the_seconds_of_a_run_are_those_of_all_its_parts(train, finished):
    state = load_state(finished)
    state["position"]["seconds"] = 1000.0
    torch.save(state, finished / "state.pt")
    assert 1000 < train(finished, epochs=2, resume=True)["seconds"] < 1600


def test_a_run_names_the_data_that_it_was_given(tiny, settings, tmp_path, monkeypatch):
    """Also where the settings name others, as the default ones do."""
    monkeypatch.chdir(tiny.folder.parent)
    metrics = fit(load_data(tiny.folder.name), replace(settings(tmp_path), data="emoji"))
    assert metrics["data"] == metrics["config"]["data"] == load_run(tmp_path)[0].data == str(tiny.folder)


def test_labels_that_are_held_out_are_named(tiny, tiny_run, train, tmp_path, capsys):
    _, held = held_labels(tiny.labels, load_run(tiny_run[0])[0])
    assert tiny_run[1]["held_out"] == [tiny.labels.names[i] for i in held] and len(held) == 46
    metrics = train(tmp_path, hold_out=3 / 925)
    names = metrics["held_out"]
    images = tiny.val.targets[:, [tiny.labels.names.index(name) for name in names]].any(1).sum()
    assert f"to choose by (3): {', '.join(names)}; in {images} images of val" in capsys.readouterr().out
    train(tmp_path, hold_out=0.0)
    assert "held out of the training" not in capsys.readouterr().out
