"""Scores of splits, the figures of a run, and what val decides."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file

from clipdec import Config, LabelSpace, encode_labels, fit, load_run
from clipdec.metrics import zsl_report
from clipdec.towers import load_clip
from clipdec.training import scores
from clipdec.training.build import build_model, uses_clip
from clipdec.training.scores import choose_clip_weight, evaluate, predict, raw_clip_scores
from clipdec.training.tokens import encoded


def test_predict_is_the_model_on_each_image(tiny, tiny_run):
    config, model = load_run(tiny_run[0])
    queries, some = encode_labels(tiny.labels.names[:30]), tiny.test.select([9, 3, 50])
    scores = predict(model, some, queries, batch_size=2)
    assert scores.shape == (3, 30)
    with torch.no_grad():
        for row, i in zip(scores, (9, 3, 50)):
            encoding = model.tower(model.tower.preprocess(tiny.test.image(i))[None])
            torch.testing.assert_close(row, model.score(*encoding, queries)[0], rtol=0, atol=1e-4)
    cached = predict(model, tiny.test, queries, encoded(model, tiny.test, tiny, config), batch_size=7)
    torch.testing.assert_close(cached[[9, 3, 50]], scores, rtol=0, atol=2e-2)  # cached tokens are float16
    assert predict(model, some.select([]), queries).shape == (0, 30)


def test_predict_is_without_dropout(tiny, tiny_run):
    _, model = load_run(tiny_run[0])
    queries, some = encode_labels(["pizza", "key"]), tiny.test.select([0, 1])
    assert torch.equal(predict(model.train(), some, queries), predict(model.train(), some, queries))


@pytest.mark.parametrize("keep", ["all", "relevant"])
def test_evaluate_reports_model_and_raw_clip_on_the_same_images(tiny, tiny_run, keep):
    config, model = load_run(tiny_run[0])
    report = evaluate(model, tiny, config, keep)
    scores = predict(model, tiny.test, encode_labels(tiny.labels.names), encoded(model, tiny.test, tiny, config))
    mine, raw = (zsl_report(s, tiny.test.targets, tiny.labels, keep) for s in (scores, raw_clip_scores(tiny, config)))
    for part in ("zsl", "gzsl", "seen"):
        assert report[part] == pytest.approx(mine[part], abs=1e-4)
    assert report["raw_clip"].keys() == {"zsl", "zsl_without_twins", "gzsl"}
    assert report["protocol"] == mine["protocol"] | {"unseen_with_twin": 27}
    for part in ("zsl", "gzsl"):
        assert report["raw_clip"][part] == pytest.approx(raw[part], abs=1e-4)


# ---- CLIP's own answer ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, used",
    [
        ({}, True), ({"head": "matching"}, False), ({"head": "ml_decoder"}, False), ({"train_image_tower": True}, False),
        ({"label_embeddings": "x.npz"}, False), ({"image_tower": "timm:resnet18"}, False),
    ],
)  # fmt: skip
def test_clip_answers_only_in_its_own_space(settings, tmp_path, changes, used):
    assert uses_clip(settings(tmp_path, **changes)) == used


@pytest.mark.parametrize("evidence, least, most", [(1.0, 0.01, 5.0), (-1.0, 0.0, 0.0)])
def test_its_weight_is_chosen_on_val(tiny, settings, tmp_path, monkeypatch, evidence, least, most):
    config = settings(tmp_path, hold_out=0.3)
    model, torch_scores = build_model(config, torch.randn(4, 128)), torch.randn(len(tiny.val), len(tiny.labels.names))
    asked = []

    def found(model, split, data, config):
        asked.append(split.name)
        return torch_scores + model.clip_weight * evidence * split.targets

    monkeypatch.setattr(scores, "split_scores", found)
    assert least <= choose_clip_weight(model, tiny, config) <= most
    assert set(asked) == {"val"}
    assert choose_clip_weight(model, tiny, dataclasses.replace(config, hold_out=0.0)) == 0  # nothing to choose by


def test_a_run_keeps_weight_and_references(tiny, settings, tmp_path, monkeypatch):
    monkeypatch.setattr(scores, "CLIP_WEIGHTS", (0.5,))
    metrics = fit(tiny, settings(tmp_path / "run", hold_out=0.1))
    config, model = load_run(tmp_path / "run")
    assert metrics["clip_weight"] == 0.5 and model.clip_weight == 0.5
    state = load_file(tmp_path / "run" / "checkpoint.safetensors")
    assert len(state["references"]) == len(tiny.labels.seen) - round(0.1 * len(tiny.labels.seen))
    assert model.clip_scale == pytest.approx(load_clip("mini").model.logit_scale.exp().item(), rel=1e-4)
    kept, queries = encoded(model, tiny.test, tiny, config), encode_labels(tiny.labels.names)
    with_clip = predict(model, tiny.test, queries, kept)
    model.clip_weight.zero_()
    expected = predict(model, tiny.test, queries, kept) + 0.5 * model.clip_evidence(kept[1][:], queries)
    torch.testing.assert_close(with_clip, expected, rtol=0, atol=1e-4)
