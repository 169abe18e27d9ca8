"""`fit` and what comes of it: the run folder, repetition, interruption, and loading."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import history, results
from safetensors.torch import load_file
from sklearn.metrics import average_precision_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from clipdec import Predictor, encode_labels, fit, hold_out, load_run
from clipdec.calibration import Calibration
from clipdec.training.scores import evaluate, held_labels, predict
from clipdec.training.tokens import encode_sentences
from clipdec.training.build import build_model, label_queries
from clipdec.training.machine import duration
from clipdec.towers import load_clip
from clipdec.training import batches, run, tokens
from clipdec.training.__main__ import main
from clipdec.training.accelerated import AcceleratedTrainer

FIGURES = {"map", "p@3", "r@3", "f1@3", "p@5", "r@5", "f1@5"}


# ---- the run folder ---------------------------------------------------------------------------------------------


def test_metrics_json(tiny, tiny_run):
    folder, metrics = tiny_run
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    reports = {"zsl", "zsl_without_twins", "gzsl", "seen"}
    about = {"protocol", "data", "config", "seed", "epochs", "best_epoch", "chosen_by", "seconds", "peak_memory_mb", "processes", "versions"}
    chosen = {"clip_weight", "calibration", "seen_offset", "gzsl_calibrated"}
    assert metrics.keys() == reports | {"raw_clip"} | about | chosen
    assert metrics["gzsl_calibrated"]["map"] == pytest.approx(metrics["gzsl"]["map"], abs=1e-3)  # an offset between labels moves no image
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
    assert metrics["versions"].keys() >= {"clipdec", "torch", "open_clip", "timm", "accelerate", "python"} and metrics["versions"]["torch"] == torch.__version__


def test_the_folder_is_whole(tiny_run):
    folder, _ = tiny_run
    files = {"checkpoint.safetensors", "config.json", "history.csv", "labels.json", "metrics.json", "state.pt", "tensorboard", "lock"}
    assert {f.name for f in folder.iterdir()} == files
    rows = history(folder)
    assert [row["epoch"] for row in rows] == [1, 2]
    for row in rows:
        assert row["loss"] == pytest.approx(row["l_c"] + row["l_clip"], rel=1e-5) and 0 <= row["val_seen_map"] <= 100
        assert 0 < row["lr"] <= 4e-3 and 1 < row["logit_scale"] <= 100 and 0 <= row["val_held_map"] <= 100
        assert row["grad_norm"] > 0 and row["images_per_s"] > 0 and row["memory_mb"] > 100 and row["seconds"] > 0


def test_the_loss_falls(tiny, settings, tmp_path):
    fit(tiny, settings(tmp_path, epochs=6, batch_size=16, lr=1e-2))
    rows = history(tmp_path)
    assert rows[-1]["loss"] < 0.6 * rows[0]["loss"]
    assert rows[-1]["l_clip"] < 0.9 * rows[0]["l_clip"] and rows[-1]["l_c"] < 0.7 * rows[0]["l_c"]


def test_one_seed_gives_one_result(tiny, settings, tiny_run, tmp_path):
    folder, metrics = tiny_run
    load_clip.cache_clear()  # loading a CLIP draws random numbers, which must not move those of the run
    cold, warm = (fit(tiny, settings(tmp_path / name, epochs=2)) for name in ("cold", "again"))
    assert results(cold) == results(warm) == results(metrics)
    a, b = load_file(folder / "checkpoint.safetensors"), load_file(tmp_path / "again" / "checkpoint.safetensors")
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    other = fit(tiny, settings(tmp_path / "other", epochs=2, seed=1))
    assert other["zsl"]["map"] != metrics["zsl"]["map"] and other["raw_clip"] == metrics["raw_clip"]


def test_training_does_not_look_at_test(tiny, settings, tiny_run, tmp_path):
    other = replace(tiny.test, targets=tiny.test.targets.flip(0, 1))
    fit(replace(tiny, test=other), settings(tmp_path, epochs=2))
    a, b = load_file(tiny_run[0] / "checkpoint.safetensors"), load_file(tmp_path / "checkpoint.safetensors")
    assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("alpha, beta, idle", [(0.0, 1.0, "text_proj.weight"), (1.0, 0.0, "decoder.output.weight")])
def test_a_loss_of_weight_0_trains_nothing(tiny, settings, tmp_path, alpha, beta, idle):
    config = settings(tmp_path, alpha=alpha, beta=beta)
    torch.manual_seed(config.seed)
    fresh = build_model(config, torch.zeros(1, 128)).state_dict()[idle]
    fit(tiny, config)
    assert history(tmp_path)[0]["l_clip" if alpha == 0 else "l_c"] == 0
    assert torch.equal(load_file(tmp_path / "checkpoint.safetensors")[idle], fresh)


def test_images_without_a_seen_label_are_left_out(tiny, settings, tmp_path, monkeypatch):
    targets = tiny.train.targets.clone()
    targets[:20] = False
    targets[:10, tiny.labels.unseen_index[0]] = True
    data = replace(tiny, train=replace(tiny.train, targets=targets))
    trained = spy_images(monkeypatch)
    fit(data, settings(tmp_path))
    fit(data, settings(tmp_path, hold_out=0.0))
    fit(data, settings(tmp_path, hold_out=0.0, as_author="keep_unlabelled"))
    asked, _ = held_labels(tiny.labels, settings(tmp_path))
    assert torch.equal(trained[0].split.index, targets[:, asked].any(1).nonzero().flatten()) and torch.equal(trained[0].targets, targets[trained[0].split.index][:, asked])
    assert torch.equal(trained[1].split.index, torch.arange(20, 120)) and torch.equal(trained[2].split.index, torch.arange(120))
    targets[:] = False
    with pytest.raises(ValueError, match="no training image carries a seen label"):
        fit(data, settings(tmp_path))


def test_held_out_data_can_be_trained_on(tiny, settings, tmp_path):
    metrics = fit(hold_out(tiny, 60, seed=1), settings(tmp_path))
    assert metrics["protocol"]["test_images"] == 30 and 0 <= metrics["zsl"]["map"] <= 100


def test_val_may_be_empty(tiny, settings, tmp_path):
    metrics = fit(replace(tiny, val=tiny.val.select([])), settings(tmp_path, epochs=2))
    assert 0 <= metrics["zsl"]["map"] <= 100 and np.isnan(history(tmp_path)[0]["val_seen_map"])
    assert metrics["best_epoch"] == 2  # nothing to choose by: the last


def test_the_image_tower_can_be_trained(tiny, settings, tmp_path, monkeypatch):
    ended = spy_evaluate(monkeypatch)
    metrics = fit(tiny, settings(tmp_path, train_image_tower=True, batch_size=24))  # five steps
    weights = load_file(tmp_path / "checkpoint.safetensors")
    start = load_clip("mini").model.visual.state_dict()
    moved = [k for k, v in start.items() if not torch.equal(weights[f"tower.trunk.{k}"], v)]
    assert set(moved) >= {"conv1.weight", "ln_post.weight"}
    _, model = load_run(tmp_path)
    assert_same_logits(model, ended[0], tiny)
    assert metrics["raw_clip"]["zsl"].keys() == FIGURES


# ---- the best epoch ---------------------------------------------------------------------------------------------


def spy_images(monkeypatch):
    """The TrainingImages of each run."""
    made, init = [], batches.TrainingImages.__init__
    monkeypatch.setattr(batches.TrainingImages, "__init__", lambda self, *rest: made.append(self) or init(self, *rest))
    return made


def give_maps(monkeypatch, key, values):
    """Let validation, or the test, find these mAPs, epoch after epoch."""
    left, real, prefix = iter(values), run.Run._maps, key.removesuffix("map")

    def maps(self, *rest):
        found = real(self, *rest)
        return dict.fromkeys(found, next(left)) if next(iter(found)).startswith(prefix) else found

    monkeypatch.setattr(run.Run, "_maps", maps)


def trained_for(tiny, settings, folder, monkeypatch, epochs):
    """The checkpoint that a run of three epochs had after some of them."""
    saved, save = [], run.RunFolder.save_model
    monkeypatch.setattr(run.RunFolder, "save_model", lambda self, model: saved.append({k: v.clone() for k, v in model.state_dict().items()}) or save(self, model))
    fit(tiny, settings(folder, epochs=3, as_author="last_weights"))
    monkeypatch.setattr(run.RunFolder, "save_model", save)
    assert len(saved) == 4  # once more when the weight of CLIP's answer is chosen
    return saved[epochs - 1]


@pytest.mark.parametrize(
    "changes, key, values, best",
    [
        ({}, "val_map", [3.0, 9.0, 5.0], 2), ({}, "val_map", [9.0, 9.0, 5.0], 1), ({}, "val_map", [1.0, 2.0, float("nan")], 3),
        ({"hold_out": 0.0}, "val_map", [3.0, 9.0, 5.0], 2), ({"as_author": "best_on_test"}, "test_map", [3.0, 9.0, 5.0], 2),
        ({"as_author": "last_weights"}, "val_map", [3.0, 9.0, 5.0], 3),
    ],
)  # fmt: skip
def test_the_best_epoch_is_evaluated(tiny, settings, tmp_path, monkeypatch, changes, key, values, best):
    give_maps(monkeypatch, key, values)
    metrics = fit(tiny, settings(tmp_path / "run", epochs=3, **changes))
    assert (metrics["best_epoch"], metrics["chosen_by"], metrics["epochs"]) == (best, key, 3)
    monkeypatch.undo()
    if "hold_out" not in changes:  # which trains another model
        expected, found = trained_for(tiny, settings, tmp_path / "all", monkeypatch, best), load_file(tmp_path / "run" / "checkpoint.safetensors")
        assert all(torch.equal(expected[k], found[k]) for k in found if k != "clip_weight")  # which is chosen later


def test_a_run_ends_when_patience_does(tiny, settings, tmp_path, monkeypatch):
    give_maps(monkeypatch, "val_map", [3.0, 9.0, 5.0, 6.0, 7.0, 8.0])
    metrics = fit(tiny, settings(tmp_path, epochs=6, patience=2))
    assert (metrics["epochs"], metrics["best_epoch"], len(history(tmp_path))) == (4, 2, 4)
    assert results(fit(tiny, settings(tmp_path, epochs=6, patience=2, resume=True))) == pytest.approx(results(metrics), abs=1e-6)


def test_labels_held_out_are_neither_asked_nor_named(tiny, settings, tmp_path, monkeypatch):
    trained = spy_images(monkeypatch)
    config = settings(tmp_path, hold_out=0.3)
    asked, held = held_labels(tiny.labels, config)
    assert len(held) == round(0.3 * 925) and sorted([*asked.tolist(), *held.tolist()]) == list(range(925))
    assert held.tolist() != held_labels(tiny.labels, settings(tmp_path, hold_out=0.3, seed=1))[1].tolist()
    sentences, encode = [], tokens.encode_texts
    monkeypatch.setattr(tokens, "encode_texts", lambda texts, *rest: sentences.extend(texts) or encode(texts, *rest))
    data = replace(tiny, folder=tmp_path / "other")  # with no sentences kept from other tests
    fit(data, config)
    (images,) = trained
    assert images.targets.shape[1] == len(asked) and images.targets.any(1).all()
    forbidden = {tiny.labels.names[i] for i in held}
    assert len(sentences) > 50 and not any(set(s.removeprefix("a photo of ").replace(" and ", ", ").split(", ")) & forbidden for s in sentences)
    row = history(tmp_path)[0]
    queries = label_queries(config, tiny.labels.names)
    model = load_run(tmp_path)[1]
    model.clip_weight.zero_()  # the epochs are of the head alone
    scores = predict(model, tiny.val, queries[held])
    present = tiny.val.targets[:, held].any(0)
    expected = average_precision_score(tiny.val.targets[:, held[present]].numpy(), scores[:, present].numpy(), average="macro")
    assert row["val_held_map"] == pytest.approx(100 * expected, abs=0.05)
    assert row["val_map"] == pytest.approx((row["val_held_map"] + row["val_seen_map"]) / 2)


# ---- batches ----------------------------------------------------------------------------------------------------


def images_of(tiny, settings, folder, **changes):
    config = settings(folder, **changes)
    asked, _ = held_labels(tiny.labels, config)
    return batches.TrainingImages(tiny, asked, build_model(config, torch.zeros(1, 128)), config)


def test_an_epoch_has_every_image_once_in_batches_of_nearly_one_size(tiny, settings, tmp_path):
    images = images_of(tiny, settings, tmp_path, batch_size=25, accumulate=2)
    epochs = [[(index, list(inputs)) for index, inputs in images.epoch(epoch)] for epoch in (0, 0, 1)]
    orders = [torch.cat([index for index, _ in epoch]).tolist() for epoch in epochs]
    assert orders[0] == orders[1] != orders[2] and sorted(orders[0]) == sorted(orders[2]) == list(range(len(images.split)))
    sizes = [len(index) for index, _ in epochs[0]]
    assert len(sizes) == images.steps == -(-len(images.split) // 25) and max(sizes) - min(sizes) <= 1
    for index, inputs in epochs[0]:
        assert [len(part) for part in inputs] == [-(-len(index) // 2), len(index) // 2]
        assert torch.equal(torch.cat(inputs), images.tokens[index])
    later = list(images.epoch(0, 3))
    assert [index.tolist() for index, _ in later] == [index.tolist() for index, _ in epochs[0][3:]]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_augmented_images_depend_on_seed_epoch_and_image_alone(tiny, settings, tmp_path, num_workers):
    images = images_of(tiny, settings, tmp_path, augment=True, batch_size=40, num_workers=num_workers)
    assert images.tokens is None

    def pixels(epoch, first=0):
        batches = [(index, torch.cat(list(inputs))) for index, inputs in images.epoch(epoch, first)]
        return dict(zip(torch.cat([i for i, _ in batches]).tolist(), torch.cat([x for _, x in batches])))

    torch.manual_seed(1)
    one, rest, other = pixels(0), pixels(0, 2), pixels(1)
    assert all(torch.equal(one[i], x) for i, x in rest.items()) and 0 < len(rest) < len(one)
    assert sum(torch.equal(one[i], other[i]) for i in one) < 3
    i = next(iter(one))
    plain = build_model(settings(tmp_path), torch.zeros(1, 128)).tower.preprocess(images.split.image(i))
    zeros = (one[i] == 0).all(0)
    assert zeros.sum() >= 64 * 64 and one[i].shape == plain.shape  # a square of half the side is cut out
    rows, columns = zeros.any(1).nonzero().flatten(), zeros.any(0).nonzero().flatten()
    assert len(rows) >= 64 and len(columns) >= 64


def test_scalars_of_every_step_are_in_tensorboard(tiny, settings, tmp_path):
    fit(tiny, settings(tmp_path, epochs=2, batch_size=30))
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    tags = {"loss", "l_c", "l_clip", "grad_norm", "logit_scale", "lr"}
    rows = history(tmp_path)
    assert set(events.Tags()["scalars"]) == tags | {f"epoch/{name}" for name in rows[0] if name != "epoch"}
    steps = [e.step for e in events.Scalars("loss")]
    assert steps == list(range(1, len(steps) + 1)) and len(steps) % 2 == 0
    half = len(steps) // 2
    assert np.mean([e.value for e in events.Scalars("loss")][half:]) == pytest.approx(rows[1]["loss"], rel=0.02)
    assert [e.value for e in events.Scalars("epoch/val_held_map")] == pytest.approx([row["val_held_map"] for row in rows], rel=1e-5)


def test_the_time_and_memory_that_a_run_takes_are_said_first(tiny, settings, tmp_path, capsys):
    fit(tiny, settings(tmp_path, epochs=3, batch_size=30))
    first = capsys.readouterr().out.splitlines()[0]
    said = re.fullmatch(r"3 epochs of 4 steps, (\d+) ms each, and 150 images to evaluate: about (\d+) s; memory about ([\d.]+) GB", first)
    assert said, first
    assert int(said[1]) > 0 and 0.3 < float(said[3]) < 8


@pytest.mark.parametrize("seconds, text", [(0.2, "1 s"), (59.2, "1 min 0 s"), (61, "1 min 1 s"), (3600 * 30 + 300, "30 h 5 min")])
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_the_command_line(tiny, settings, tmp_path, capsys):
    (tmp_path / "run.json").write_text(json.dumps({"preset": "mini", "data": str(tiny.folder), "out_dir": str(tmp_path / "run"), "embed_dim": 16, "epochs": 1}))
    main(["--config", str(tmp_path / "run.json")])
    assert "CLIP-Decoder" in capsys.readouterr().out and load_run(tmp_path / "run")[0].embed_dim == 16
    main(["--config", str(tmp_path / "run.json"), "--resume"])
    assert "epoch 1" not in capsys.readouterr().out
    (tmp_path / "run.json").write_text(json.dumps({"epoch": 3}))
    with pytest.raises(ValueError, match="unknown parameter 'epoch': did you mean 'epochs'"):
        main(["--config", str(tmp_path / "run.json")])


# ---- going on ---------------------------------------------------------------------------------------------------


def never(*_):
    raise AssertionError("nothing was left to train")


def test_resuming_what_is_finished_trains_no_more(tiny, settings, tmp_path, monkeypatch):
    metrics = fit(tiny, settings(tmp_path))
    monkeypatch.setattr(AcceleratedTrainer, "gradients", never)
    assert results(fit(tiny, settings(tmp_path, resume=True))) == pytest.approx(results(metrics), abs=1e-6)


def test_resuming_nothing_starts_anew(tiny, settings, tmp_path):
    assert results(fit(tiny, settings(tmp_path / "a", resume=True))) == results(fit(tiny, settings(tmp_path / "b")))


@pytest.mark.parametrize("changes", [{"lr": 1e-3}, {"epochs": 3}, {"seed": 5}, {"prompt": "{}"}, {"as_author": "sum_loss"}])
def test_resuming_with_other_settings(tiny, settings, tiny_run, changes):
    folder, _ = tiny_run
    before = (folder / "config.json").read_bytes()
    with pytest.raises(ValueError, match=f"made with another {next(iter(changes))}"):
        fit(tiny, settings(folder, **{"epochs": 2, "resume": True} | changes))
    assert (folder / "config.json").read_bytes() == before and (folder / "metrics.json").is_file()


def test_no_old_weights_beside_new_settings(tiny, settings, tmp_path, monkeypatch):
    fit(tiny, settings(tmp_path))
    monkeypatch.setattr(AcceleratedTrainer, "step", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fit(tiny, settings(tmp_path, prompt="{}"))
    assert {f.name for f in tmp_path.iterdir()} == {"config.json", "lock"}
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        load_run(tmp_path)


# ---- sentences --------------------------------------------------------------------------------------------------


def test_sentences_join_the_seen_labels(tiny, settings, tmp_path):
    config = settings(tmp_path, prompt="a picture of {}")
    sentences = encode_sentences(tiny.test, tiny.labels, config)[:]  # its images have unseen labels too
    assert sentences.shape == (60, 128)
    texts = []
    for row in tiny.test.targets:
        names = [tiny.labels.seen[i] for i in range(925) if row[i]]
        texts.append(names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1] if names else None)
    with_seen = [i for i, text in enumerate(texts) if text]
    assert len(with_seen) > 40
    torch.testing.assert_close(sentences[with_seen], encode_labels([texts[i] for i in with_seen], "mini", "a picture of {}"), rtol=0, atol=1e-5)


def test_sentences_of_label_embeddings_are_means_of_their_labels(tiny, settings, tmp_path):
    vectors = np.random.default_rng(0).standard_normal((1006, 6)).astype(np.float32)
    np.savez(tmp_path / "e.npz", names=np.array(tiny.labels.names), vectors=vectors)
    sentences = encode_sentences(tiny.test, tiny.labels, settings(tmp_path, label_embeddings=str(tmp_path / "e.npz")))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for row, targets in list(zip(sentences, tiny.test.targets))[:10]:
        mean = unit[:925][targets[:925].numpy()].sum(0)
        if targets[:925].any():
            np.testing.assert_allclose(row.numpy(), mean / np.linalg.norm(mean), rtol=0, atol=1e-5)


# ---- loading a run ----------------------------------------------------------------------------------------------


def spy_evaluate(monkeypatch):
    """The models that `fit` evaluates, as they are then."""
    models = []

    def spy(model, *args):
        models.append(model)
        return evaluate(model, *args)

    monkeypatch.setattr(run, "evaluate", spy)
    return models


def assert_same_logits(a, b, data):
    queries, some = encode_labels(data.labels.names[:40]), data.test.select(range(8))
    torch.testing.assert_close(predict(a, some, queries), predict(b, some, queries), rtol=0, atol=1e-5)


def test_load_run_gives_back_the_model(tiny, settings, tmp_path, monkeypatch):
    ended = spy_evaluate(monkeypatch)
    metrics = fit(tiny, settings(tmp_path))
    config, model = load_run(tmp_path)
    assert config == settings(tmp_path) and not model.training
    assert_same_logits(model, ended[0], tiny)
    assert results(evaluate(model, tiny, config)) == pytest.approx(results(metrics), abs=1e-4)


def test_missing_runs(tmp_path, settings):
    with pytest.raises(FileNotFoundError, match="is not a run folder"):
        load_run(tmp_path / "nothing")
    (tmp_path / "config.json").write_text(json.dumps(settings(tmp_path).as_dict()))
    with pytest.raises(FileNotFoundError, match="there is no checkpoint .*04_train"):
        load_run(tmp_path)


@pytest.mark.parametrize("spoil", ["width", "truncated", "text"])
def test_a_checkpoint_that_does_not_fit(tiny_run, tmp_path, spoil):
    folder, _ = tiny_run
    config, weights = json.loads((folder / "config.json").read_text()), (folder / "checkpoint.safetensors").read_bytes()
    config |= {"embed_dim": 24} if spoil == "width" else {}
    weights = {"width": weights, "truncated": weights[: len(weights) // 2], "text": b"no tensors"}[spoil]
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "checkpoint.safetensors").write_bytes(weights)
    with pytest.raises(ValueError, match="does not fit its config.json"):
        load_run(tmp_path)


# ---- label_embeddings -------------------------------------------------------------------------------------------


def test_vectors_of_a_file_replace_those_of_the_text_tower(tiny, settings, tmp_path):
    names, rng = tiny.labels.names, np.random.default_rng(0)
    vectors, order = rng.standard_normal((len(names), 20)).astype(np.float32), rng.permutation(len(names))
    np.savez(tmp_path / "a.npz", names=np.array(names), vectors=vectors)
    np.savez(tmp_path / "b.npz", names=np.array(names)[order], vectors=5 * vectors[order])  # other order, other lengths
    a, b = (fit(tiny, settings(tmp_path / f"run_{x}", label_embeddings=str(tmp_path / f"{x}.npz"))) for x in "ab")
    assert results(a) == pytest.approx(results(b), abs=1e-4)
    assert load_file(tmp_path / "run_a" / "checkpoint.safetensors")["decoder.query_proj.weight"].shape == (16, 20)
    config, model = load_run(tmp_path / "run_a")
    unit = torch.from_numpy(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    answer = dict(Predictor.load(tmp_path / "run_a")(tiny.test.image(2), names[:7]))
    logits = predict(model, tiny.test.select([2]), unit[:7])[0]
    logits = a["calibration"]["scale"] * logits + a["calibration"]["shift"]
    assert answer == pytest.approx(dict(zip(names[:7], logits.sigmoid().tolist())), abs=1e-5)
    with pytest.raises(ValueError, match="no vector for 1 labels: no such label"):
        Predictor(model, config, tiny.labels, Calibration())(tiny.test.image(2), ["no such label"])


def test_a_file_that_lacks_a_label_stops_the_run(tiny, settings, tmp_path):
    np.savez(tmp_path / "e.npz", names=np.array(tiny.labels.names[1:]), vectors=np.ones((1005, 4)))
    with pytest.raises(ValueError, match="no vector for 1 labels"):
        fit(tiny, settings(tmp_path / "run", label_embeddings=str(tmp_path / "e.npz")))
