"""Scores of splits, the figures of a run, and what val decides."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import history, spy
from safetensors.torch import load_file
from sklearn.metrics import average_precision_score

from clipdec import LabelSpace, encode_labels, load_run
from clipdec.calibration import Calibration
from clipdec.metrics import zsl_report
from clipdec.towers import load_clip
from clipdec.training import run_folder, scores
from clipdec.training.accelerated import AcceleratedTrainer
from clipdec.training.build import build_model, uses_clip
from clipdec.training.leakage import leakage
from clipdec.training.reliability import reliability_report
from clipdec.training.report import result_table
from clipdec.training.run_folder import without_nan
from clipdec.training.scores import choose_clip_weight, evaluate, held_labels, predict, raw_clip_scores
from clipdec.training.tokens import encoded


@pytest.fixture
def loaded(tiny_run):
    return load_run(tiny_run[0])


def test_predict_is_the_model_on_each_image(tiny, loaded):
    (config, model), chosen = loaded, [9, 3, 50]
    queries, some = encode_labels(tiny.labels.names[:30]), tiny.test.select(chosen)
    found = predict(model, some, queries, batch_size=2)
    assert found.shape == (3, 30)
    with torch.no_grad():
        for row, i in zip(found, chosen):
            encoding = model.tower(model.tower.preprocess(tiny.test.image(i))[None])
            torch.testing.assert_close(row, model.score(*encoding, queries)[0], rtol=0, atol=1e-4)
    cached = predict(model, tiny.test, queries, encoded(model, tiny.test, tiny, config), batch_size=7)
    torch.testing.assert_close(cached[chosen], found, rtol=1e-2, atol=1e-2)  # cached tokens are float16
    assert predict(model, some.select([]), queries).shape == (0, 30)


def test_predict_is_without_dropout(tiny, loaded):
    model, queries, some = loaded[1], encode_labels(["pizza", "key"]), tiny.test.select([0, 1])
    assert torch.equal(predict(model.train(), some, queries), predict(model.train(), some, queries))


@pytest.mark.parametrize("keep", ["all", "relevant"])
def test_evaluate_reports_model_and_raw_clip_on_the_same_images(tiny, loaded, keep):
    config, model = loaded
    report = evaluate(model, tiny, config, keep)
    logits = predict(model, tiny.test, encode_labels(tiny.labels.names), encoded(model, tiny.test, tiny, config))
    mine, raw = (zsl_report(s, tiny.test.targets, tiny.labels, keep) for s in (logits, raw_clip_scores(tiny, config)))
    for part in ("zsl", "gzsl", "seen"):
        assert report[part] == pytest.approx(mine[part], abs=1e-4)
    assert report["protocol"] == mine["protocol"] | {"unseen_with_twin": 27}
    assert report["raw_clip"].keys() == {"zsl", "zsl_without_twins", "gzsl"}
    for part in ("zsl", "gzsl"):
        assert report["raw_clip"][part] == pytest.approx(raw[part], abs=1e-4)


@pytest.mark.parametrize("name, parts, lost, dash", [
    ("raw_clip_scores", ["raw_clip"], {"raw_clip"}, 9),
    ("fit_calibration", ["calibration", "reliability"], {"calibration", "reliability"}, 0),
    ("reliability_report", ["reliability"], {"reliability"}, 0),
    ("seen_offset", ["gzsl_calibrated"], {"seen_offset", "gzsl_calibrated"}, 0),
])  # fmt: skip
def test_what_cannot_be_computed_does_not_cost_the_run(train, tiny_run, tmp_path, monkeypatch, name, parts, lost, dash):
    def fail(*_):
        raise RuntimeError("no such thing")

    monkeypatch.setattr(scores, name, fail)
    metrics = train(tmp_path)
    assert metrics["left_out"] == dict.fromkeys(parts, "RuntimeError: no such thing")
    assert metrics.keys() == tiny_run[1].keys() - lost | {"left_out"}
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    table = result_table(metrics)
    assert table.endswith("".join(f"\nleft out: {part} (RuntimeError: no such thing)" for part in parts))
    assert table.count(" –") == dash


def test_a_full_disk_costs_the_scores_alone(train, tiny_run, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_folder, "write_scores", full)
    metrics = train(tmp_path)
    assert metrics["left_out"] == {"scores": "OSError: [Errno 28] No space left on device"}
    assert metrics.keys() == tiny_run[1].keys() | {"left_out"} and not (tmp_path / "scores.npz").exists()


def test_reliability_is_that_of_the_calibrated_probabilities(tiny, tiny_run):
    folder, metrics = tiny_run
    with np.load(folder / "scores.npz", allow_pickle=False) as file:
        logits = torch.from_numpy(file["test"])
    probabilities = Calibration(**metrics["calibration"]).log_odds(logits).sigmoid()
    for kind, index in (("seen", tiny.labels.seen_index), ("unseen", tiny.labels.unseen_index)):
        expected = without_nan(reliability_report(probabilities[:, index], tiny.test.targets[:, index]))
        found = metrics["reliability"][kind]
        assert found.keys() == expected.keys() and found["bins"]["pairs"] == expected["bins"]["pairs"]
        for name in ("base_rate", "log_loss_skill", "gap", "pairs_from_0.1"):
            assert found[name] == pytest.approx(expected[name], rel=1e-3)


@pytest.mark.parametrize("share, held", [(0.0, 0), (0.1, 0), (0.5, 2), (0.9, None)])
def test_some_seen_labels_must_be_left_to_train_on(settings, share, held):
    labels, config = LabelSpace(["a", "b", "c", "d"], []), settings("unused", hold_out=share)
    if held is None:
        with pytest.raises(ValueError, match="hold_out 0.9 keeps all seen labels \\(4\\) out of the training"):
            held_labels(labels, config)
    else:
        asked, out = held_labels(labels, config)
        assert len(out) == held and sorted([*asked.tolist(), *out.tolist()]) == [0, 1, 2, 3]


def test_names_without_a_letter_do_not_cost_the_run(tiny, train, tmp_path):
    labels = LabelSpace(["**", *tiny.labels.seen[1:]], ["_", *tiny.labels.unseen[1:]])
    metrics = train(tmp_path, replace(tiny, labels=labels))
    assert metrics["protocol"]["unseen_with_twin"] == len(leakage(labels)) > 20 and "left_out" not in metrics
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics


@pytest.mark.parametrize("changes", [
    {}, {"head": "matching"}, {"head": "ml_decoder"}, {"train_image_tower": True}, {"label_embeddings": "x.npz"},
    {"image_tower": "timm:resnet18"},
])  # fmt: skip
def test_clip_answers_only_in_its_own_space(settings, changes):
    assert uses_clip(settings("unused", **changes)) == (not changes)


@pytest.mark.parametrize("evidence, least, most", [(1.0, 0.01, 5.0), (-1.0, 0.0, 0.0)])
def test_its_weight_is_chosen_on_val(tiny, settings, monkeypatch, evidence, least, most):
    config = settings("unused", hold_out=0.3)
    model, head = build_model(config, torch.randn(4, 128)), torch.randn(tiny.val.targets.shape)

    def found(model, split, data, config):
        assert split.name == "val"
        return head + model.clip_weight * evidence * split.targets

    monkeypatch.setattr(scores, "split_scores", found)
    assert least <= choose_clip_weight(model, tiny, config) <= most
    assert choose_clip_weight(model, tiny, replace(config, hold_out=0.0)) == 0  # nothing to choose by


def test_a_run_keeps_weight_and_references(tiny, train, tmp_path, monkeypatch):
    monkeypatch.setattr(scores, "CLIP_WEIGHTS", (0.5,))
    metrics = train(tmp_path, hold_out=0.1)
    config, model = load_run(tmp_path)
    assert metrics["clip_weight"] == 0.5 and model.clip_weight == 0.5
    count, references = len(tiny.labels.seen), load_file(tmp_path / "checkpoint.safetensors")["references"]
    assert len(references) == count - round(0.1 * count)
    assert model.clip_scale == pytest.approx(load_clip("mini").model.logit_scale.exp().item(), rel=1e-4)
    kept, queries = encoded(model, tiny.test, tiny, config), encode_labels(tiny.labels.names)
    with_clip = predict(model, tiny.test, queries, kept)
    model.clip_weight.zero_()
    expected = predict(model, tiny.test, queries, kept) + 0.5 * model.clip_evidence(kept[1][:], queries)
    torch.testing.assert_close(with_clip, expected, rtol=0, atol=1e-4)


def known_ap(scores, split, labels):
    """AP in percent of those of the labels that occur, over the known images, by scikit-learn."""
    cells = zip(*(x.T[labels].numpy() for x in (scores, split.targets, split.known)))
    return [100 * average_precision_score(t[k], s[k]) for s, t, k in cells if t.any()]


def test_a_run_uses_what_is_known(tiny, train, settings, tmp_path, monkeypatch):
    """Where only some pairs are known, its loss, mAP, calibration and reliability are of these."""
    torch.manual_seed(0)
    mask = lambda split: replace(split, known=split.targets | (torch.rand(split.targets.shape) < 0.3))
    data = replace(tiny, train=mask(tiny.train), val=mask(tiny.val), test=mask(tiny.test))
    assert data.fingerprint != tiny.fingerprint
    steps = spy(monkeypatch, AcceleratedTrainer, "step")
    metrics = train(tmp_path, data)
    assert "left_out" not in metrics and metrics["protocol"]["known_pairs"] == pytest.approx(30, abs=1)
    kept, ap = np.load(tmp_path / "scores.npz")["test"], []
    for scores_, there, known in zip(kept.T[925:], data.test.targets.T[925:].numpy(), data.test.known.T[925:].numpy()):
        if there.any():
            ap.append(average_precision_score(there[known], scores_[known]))
    assert metrics["zsl"]["map"] == pytest.approx(100 * np.mean(ap)) and "f1@20" in metrics["gzsl"]
    rate = data.val.targets[:, :925].sum() / data.val.known[:, :925].sum()
    assert metrics["calibration"]["base_rate"] == pytest.approx(rate.item())
    unseen = data.test.targets[:, 925:].sum() / data.test.known[:, 925:].sum()
    assert metrics["reliability"]["unseen"]["base_rate"] == pytest.approx(100 * unseen.item())
    unseen, (asked, held) = tiny.labels.unseen_index, held_labels(tiny.labels, settings(tmp_path))
    rows = data.train.targets[:, asked].any(1)
    assert sum(step[-1].sum() for step in steps) == data.train.known[rows][:, asked].sum()  # in the loss
    raw = known_ap(raw_clip_scores(tiny, settings(tmp_path)), data.test, unseen)
    assert metrics["raw_clip"]["zsl"]["map"] == pytest.approx(np.mean(raw), abs=1e-3)
    assert metrics["gzsl_calibrated"]["map"] == pytest.approx(metrics["gzsl"]["map"], abs=0.05)
    with open(tmp_path / "label_ap.csv", newline="", encoding="utf8") as file:
        found = [float(row["ap"]) for row in csv.DictReader(file) if row["kind"] == "unseen"]
    assert [x for x in found if not np.isnan(x)] == pytest.approx(100 * np.array(ap))
    config, model = load_run(tmp_path)
    model.clip_weight.zero_()  # the epochs are of the head alone
    val = predict(model, data.val, encode_labels(tiny.labels.names), encoded(model, data.val, data, config))
    for part, labels in (("seen", asked), ("held", held)):
        mean = np.mean(known_ap(val, data.val, labels))
        assert history(tmp_path)[0][f"val_{part}_map"] == pytest.approx(mean, abs=1e-3)


@pytest.mark.parametrize("gain, helps", [(1.0, True), (0.1, False)])
def test_the_weight_is_good_for_held_labels_and_all_together(tiny, settings, monkeypatch, gain, helps):
    """CLIP knows held-out labels by `gain` and spoils the others: by the held alone both help, by all alone neither."""
    config = settings("unused", hold_out=0.3)
    _, held = held_labels(tiny.labels, config)
    is_held = torch.isin(torch.arange(len(tiny.labels.names)), held)
    knows, evidence = torch.where(is_held, 0.0, 3.0), torch.where(is_held, gain, -2.0)
    model, noise = build_model(config, torch.randn(4, 128)), torch.randn(tiny.val.targets.shape)
    logits = lambda model, split, *_: noise + split.targets * (knows + model.clip_weight * evidence)
    monkeypatch.setattr(scores, "split_scores", logits)
    assert (choose_clip_weight(model, tiny, config) >= 1) == helps


def test_the_weight_is_chosen_by_what_is_known(tiny, settings, monkeypatch):
    """CLIP is right on known pairs and says yes to all others."""
    config, known = settings("unused", hold_out=0.3), tiny.val.targets | (torch.rand(tiny.val.targets.shape) < 0.3)
    model, head = build_model(config, torch.randn(4, 128)), torch.randn(known.shape)
    said = tiny.val.targets + 3.0 * ~known
    monkeypatch.setattr(scores, "split_scores", lambda model, *_: head + model.clip_weight * said)
    masked = replace(tiny, val=replace(tiny.val, known=known))
    assert choose_clip_weight(model, tiny, config) == 0 < choose_clip_weight(model, masked, config)
