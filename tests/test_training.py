"""`fit` and what comes of it: the run folder, repetition, interruption, loading, and the Predictor."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from clipdec import Predictor, asymmetric_loss, encode_labels, fit, hold_out, load_run, training
from clipdec.evaluation import evaluate, predict
from clipdec.model import CLIPDecoder, build_model, label_vectors
from clipdec.towers import ImageTower, load_clip
from clipdec.training import Trainer, encode_sentences, sample_labels

FIGURES = {"map", "p@3", "r@3", "f1@3", "p@5", "r@5", "f1@5"}


def results(metrics):
    """The figures of metrics.json in one flat dict."""
    parts = {k: metrics[k] for k in ("zsl", "gzsl", "seen")} | {f"raw {k}": v for k, v in metrics["raw_clip"].items()}
    return {f"{part} {name}": value for part, figures in parts.items() for name, value in figures.items()}


def history(folder):
    with open(folder / "history.csv", newline="") as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


# ---- the run folder ---------------------------------------------------------------------------------------------


def test_metrics_json(tiny, tiny_run):
    folder, metrics = tiny_run
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    reports = {"zsl", "zsl_without_twins", "gzsl", "seen"}
    assert metrics.keys() == reports | {"raw_clip", "protocol", "data", "config", "seed", "epochs", "seconds", "peak_memory_mb", "versions"}
    assert metrics["raw_clip"].keys() == reports - {"seen"}
    for figures in (*(metrics[r] for r in reports), *metrics["raw_clip"].values()):
        assert figures.keys() == FIGURES and all(0 <= v <= 100 for v in figures.values())
    protocol = metrics["protocol"]
    assert (protocol["keep"], protocol["test_images"]) == ("all", 60)
    assert protocol["labels_without_positives"] == int((tiny.test.targets.sum(0) == 0).sum())
    assert (metrics["data"], metrics["seed"], metrics["epochs"]) == (str(tiny.folder), 0, 2)
    assert metrics["config"] == json.loads((folder / "config.json").read_text())
    assert metrics["seconds"] > 0 and metrics["peak_memory_mb"] > 100
    assert metrics["versions"].keys() >= {"clipdec", "torch", "open_clip", "python"} and metrics["versions"]["torch"] == torch.__version__


def test_the_folder_is_whole(tiny_run):
    folder, _ = tiny_run
    assert {f.name for f in folder.iterdir()} == {"checkpoint.safetensors", "config.json", "history.csv", "metrics.json", "state.pt"}
    rows = history(folder)
    assert [row["epoch"] for row in rows] == [1, 2]
    for row in rows:
        assert row["loss"] == pytest.approx(row["l_c"] + row["l_clip"], rel=1e-5) and 0 <= row["val_seen_map"] <= 100
        assert 0 < row["lr"] <= 2e-3 and 1 < row["logit_scale"] <= 100


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
    fresh = build_model(config, 128).state_dict()[idle]
    fit(tiny, config)
    assert history(tmp_path)[0]["l_clip" if alpha == 0 else "l_c"] == 0
    assert torch.equal(load_file(tmp_path / "checkpoint.safetensors")[idle], fresh)


def test_images_without_a_seen_label_are_left_out(tiny, settings, tmp_path, monkeypatch):
    targets = tiny.train.targets.clone()
    targets[:20] = False
    targets[:10, tiny.labels.unseen_index[0]] = True
    data = replace(tiny, train=replace(tiny.train, targets=targets))
    trained = []
    epoch = Trainer.epoch
    monkeypatch.setattr(Trainer, "epoch", lambda self, batches, train, *rest: trained.append(train) or epoch(self, batches, train, *rest))
    fit(data, settings(tmp_path))
    assert len(trained[0]) == 100 and torch.equal(trained[0].targets, targets[20:])
    targets[:] = False
    with pytest.raises(ValueError, match="no training image carries a seen label"):
        fit(data, settings(tmp_path))


def test_held_out_data_can_be_trained_on(tiny, settings, tmp_path):
    metrics = fit(hold_out(tiny, 60, seed=1), settings(tmp_path))
    assert metrics["protocol"]["test_images"] == 30 and 0 <= metrics["zsl"]["map"] <= 100


def test_val_may_be_empty(tiny, settings, tmp_path):
    metrics = fit(replace(tiny, val=tiny.val.select([])), settings(tmp_path))
    assert 0 <= metrics["zsl"]["map"] <= 100 and np.isnan(history(tmp_path)[0]["val_seen_map"])


def test_a_loss_that_is_not_finite_stops_the_run(tiny, settings, tmp_path):
    with pytest.raises(FloatingPointError, match="use a lower lr than 1e"):
        fit(tiny, settings(tmp_path, lr=1e30, epochs=3))
    assert not (tmp_path / "checkpoint.safetensors").exists() and not (tmp_path / "metrics.json").exists()


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


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 6, 10])
def test_the_learning_rate_rises_and_falls_at_any_length(settings, tmp_path, steps):
    config = settings(tmp_path)
    trainer = Trainer(CLIPDecoder(ImageTower("mini"), 4, 4, 16), config, steps)
    rates = []
    for _ in range(steps):
        rates.append(trainer.optimiser.param_groups[0]["lr"])
        trainer.optimiser.step()
        if len(rates) < steps:
            trainer.schedule.step()
    assert all(0 < r <= config.lr * (1 + 1e-6) for r in rates)
    if steps == 10:
        assert rates[0] < rates[1] == pytest.approx(config.lr) and rates[1:] == sorted(rates[1:], reverse=True)


def test_the_average_follows_the_weights(settings, tmp_path):
    model = CLIPDecoder(ImageTower("mini"), 4, 4, 16)
    trainer = Trainer(model, settings(tmp_path, ema_decay=0.3), 3)
    expected = None
    for value, decay in ((1.0, None), (2.0, 2 / 11), (5.0, 3 / 12), (-4.0, 0.3), (3.0, 0.3)):  # (1 + n) / (10 + n) up to 0.3
        with torch.no_grad():
            model.decoder.output.bias.fill_(value)
        trainer.average.update_parameters(model)
        expected = value if expected is None else decay * expected + (1 - decay) * value
    assert trainer.average.module.decoder.output.bias.item() == pytest.approx(expected)


def test_biases_norms_and_the_scale_are_not_decayed(settings, tmp_path):
    model = CLIPDecoder(ImageTower("mini"), 4, 4, 16)
    decayed, plain = Trainer(model, settings(tmp_path, weight_decay=0.3), 3).optimiser.param_groups
    names = {p: n for n, p in model.named_parameters()}
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.3, 0.0)
    assert all(names[p].endswith(".weight") and "norm" not in names[p] for p in decayed["params"])
    assert all(names[p].endswith(".bias") or "norm" in names[p] or names[p] == "log_scale" for p in plain["params"])
    assert len(decayed["params"]) + len(plain["params"]) == len(names)


# ---- interruption -----------------------------------------------------------------------------------------------


def interrupt(monkeypatch, epoch):
    """Make `fit` stop in this epoch, after it has trained and before it has saved."""
    real, calls = Trainer.epoch, []

    def stopped(self, *args):
        row = real(self, *args)
        calls.append(row)
        if len(calls) == epoch:
            raise KeyboardInterrupt
        return row

    monkeypatch.setattr(Trainer, "epoch", stopped)
    return calls


def test_a_resumed_run_equals_an_uninterrupted_one(tiny, settings, tiny_run, tmp_path, monkeypatch):
    calls = interrupt(monkeypatch, epoch=2)
    with pytest.raises(KeyboardInterrupt):
        fit(tiny, settings(tmp_path, epochs=2))
    assert not (tmp_path / "metrics.json").exists() and len(history(tmp_path)) == 1
    resumed = fit(tiny, settings(tmp_path, epochs=2, resume=True))
    assert len(calls) == 3  # one whole epoch, the interrupted one, and that one again
    assert results(resumed) == pytest.approx(results(tiny_run[1]), abs=1e-6)
    for a, b in zip(history(tmp_path), history(tiny_run[0])):
        assert a | {"seconds": 0} == pytest.approx(b | {"seconds": 0}, rel=1e-6)


def test_resuming_what_is_finished_trains_no_more(tiny, settings, tmp_path, monkeypatch):
    metrics = fit(tiny, settings(tmp_path))
    monkeypatch.setattr(Trainer, "epoch", lambda *args: 1 / 0)
    assert results(fit(tiny, settings(tmp_path, resume=True))) == pytest.approx(results(metrics), abs=1e-6)


def test_resuming_nothing_starts_anew(tiny, settings, tmp_path):
    assert results(fit(tiny, settings(tmp_path / "a", resume=True))) == results(fit(tiny, settings(tmp_path / "b")))


@pytest.mark.parametrize("changes", [{"lr": 1e-3}, {"epochs": 3}, {"seed": 5}, {"prompt": "{}"}])
def test_resuming_with_other_settings(tiny, settings, tiny_run, changes):
    folder, _ = tiny_run
    before = (folder / "config.json").read_bytes()
    with pytest.raises(ValueError, match=f"made with another {next(iter(changes))}"):
        fit(tiny, settings(folder, **{"epochs": 2, "resume": True} | changes))
    assert (folder / "config.json").read_bytes() == before and (folder / "metrics.json").is_file()


def test_no_old_weights_beside_new_settings(tiny, settings, tmp_path, monkeypatch):
    fit(tiny, settings(tmp_path))
    interrupt(monkeypatch, epoch=1)
    with pytest.raises(KeyboardInterrupt):
        fit(tiny, settings(tmp_path, prompt="{}"))
    assert not (tmp_path / "metrics.json").exists()
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        load_run(tmp_path)


# ---- labels and sentences of a batch ----------------------------------------------------------------------------


def test_sampled_labels_hold_all_that_are_present():
    targets = torch.zeros(4, 50, dtype=torch.bool)
    targets[[0, 1, 2, 2], [7, 3, 7, 49]] = True
    for count in (1, 5, 46):
        labels, weights = sample_labels(targets, count)
        assert torch.equal(weights, torch.ones(3 + count))
        assert len(labels) == len(set(labels.tolist())) == 3 + count
        assert set(labels.tolist()) >= {3, 7, 49}


@pytest.mark.parametrize("count", [0, 47, 1000])
def test_all_labels(count):
    targets = torch.zeros(4, 50, dtype=torch.bool)
    targets[[0, 1, 2], [7, 3, 49]] = True
    assert sorted(sample_labels(targets, count)[0].tolist()) == list(range(50))


def test_batches_with_every_label_or_none():
    for targets, count in ((torch.ones(2, 5), 5), (torch.zeros(2, 5), 3)):
        assert len(sample_labels(targets.bool(), 3, weighted=True)[0]) == count


def test_weights_give_the_full_loss_in_expectation():
    torch.manual_seed(0)
    logits, targets = torch.randn(4, 30), torch.zeros(4, 30, dtype=torch.bool)
    targets[[0, 1, 2], [7, 3, 29]] = True
    losses = []
    for _ in range(4000):
        labels, weights = sample_labels(targets, 6, weighted=True)
        losses.append(asymmetric_loss(logits[:, labels], targets[:, labels], weights=weights))
    losses, full = torch.stack(losses), asymmetric_loss(logits, targets)
    assert (losses.mean() - full).abs() < 5 * losses.std() / 4000**0.5 and losses.std() > 0.01 * full


def test_absent_labels_are_sampled_alike():
    targets = torch.zeros(2, 12, dtype=torch.bool)
    targets[0, 4] = True
    counts = torch.bincount(torch.cat([sample_labels(targets, 4)[0] for _ in range(4000)]), minlength=12)
    assert counts[4] == 4000
    absent = torch.arange(12) != 4
    assert (counts[absent] / 4000 - 4 / 11).abs().max() < 0.04  # five standard deviations


def test_sentences_join_the_seen_labels(tiny, settings, tmp_path):
    config = settings(tmp_path, prompt="a picture of {}")
    sentences = encode_sentences(tiny.test, tiny.labels, config)  # its images have unseen labels too
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

    monkeypatch.setattr(training, "evaluate", spy)
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


# ---- Predictor --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def predictor(tiny_run):
    return Predictor.load(tiny_run[0])


def probabilities(run_folder, image, labels):
    """{label: probability}, computed from the model itself."""
    config, model = load_run(run_folder)
    tokens = model.tower(model.tower.preprocess(image)[None])[0]
    with torch.no_grad():
        logits = model(tokens, label_vectors(config, labels))[0]
    return {label: 1 / (1 + np.exp(-x)) for label, x in zip(labels, logits.double().tolist())}


def test_any_labels_the_most_probable_first(predictor, tiny, tiny_run):
    labels = ["pizza", "a dog that reads", "key", "no label of the data set"]
    answer = predictor(tiny.test.image(3), labels)
    assert dict(answer) == pytest.approx(probabilities(tiny_run[0], tiny.test.image(3), labels), abs=1e-5)
    assert [p for _, p in answer] == sorted((p for _, p in answer), reverse=True)
    assert predictor(tiny.test.image(3), labels, top_k=2) == answer[:2]
    assert predictor(tiny.test.image(3), iter(labels), top_k=9) == answer


def test_the_labels_of_the_data_set_by_default(predictor, tiny):
    answer = predictor(tiny.test.image(0))
    assert sorted(label for label, _ in answer) == sorted(tiny.labels.names)
    assert [p for _, p in answer] == sorted((p for _, p in answer), reverse=True)
    assert predictor(tiny.test.image(0), top_k=5) == answer[:5]


def test_image_files_and_modes(predictor, tiny, tmp_path):
    image = tiny.test.image(0)
    image.save(tmp_path / "x.png")
    image.convert("RGBA").save(tmp_path / "y.png")
    expected = predictor(image, ["pizza", "key"])
    for same in (tmp_path / "x.png", str(tmp_path / "y.png"), image.convert("RGBA")):
        assert predictor(same, ["pizza", "key"]) == expected
    assert len(predictor(Image.new("L", (31, 200)), ["pizza"])) == 1


def test_one_label_as_a_text(predictor, tiny):
    assert predictor(tiny.test.image(0), "dog face") == predictor(tiny.test.image(0), ["dog face"])


def test_attention_maps(predictor, tiny):
    p, maps = predictor.explain(tiny.test.image(1), ["pizza", "key", "dog face"])
    assert p.shape == (3,) and maps.shape == (3, 8, 8)
    torch.testing.assert_close(maps.sum((1, 2)), torch.ones(3))
    assert dict(predictor(tiny.test.image(1), ["pizza", "key", "dog face"])) == pytest.approx(dict(zip(["pizza", "key", "dog face"], p.tolist())))


def test_images_that_cannot_be_read(predictor, tmp_path):
    (tmp_path / "x.jpg").write_text("no image")
    Image.effect_noise((64, 64), 50).save(tmp_path / "y.png")
    (tmp_path / "y.png").write_bytes((tmp_path / "y.png").read_bytes()[:900])
    for name in ("x.jpg", "y.png", "missing.png"):
        with pytest.raises(ValueError, match=f"{name} cannot be read as an image"):
            predictor(tmp_path / name, ["pizza"])


def test_labels_that_are_none(predictor, tiny):
    for labels in ([], [""], ["pizza", " "]):
        with pytest.raises(ValueError, match="at least one name and no empty"):
            predictor(tiny.test.image(0), labels)


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
    assert answer == pytest.approx(dict(zip(names[:7], logits.sigmoid().tolist())), abs=1e-5)
    with pytest.raises(ValueError, match="no vector for 1 labels: no such label"):
        Predictor(model, config)(tiny.test.image(2), ["no such label"])


def test_a_file_that_lacks_a_label_stops_the_run(tiny, settings, tmp_path):
    np.savez(tmp_path / "e.npz", names=np.array(tiny.labels.names[1:]), vectors=np.ones((1005, 4)))
    with pytest.raises(ValueError, match="no vector for 1 labels"):
        fit(tiny, settings(tmp_path / "run", label_embeddings=str(tmp_path / "e.npz")))
