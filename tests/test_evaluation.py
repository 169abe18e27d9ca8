"""Scores of splits, the raw-CLIP baseline, the result table and the nearest seen labels."""

import pytest
import torch

from clipdec import LabelSpace, encode_labels, load_run
from clipdec.training.scores import raw_clip_scores
from clipdec.evaluation import full_report, nearest_seen, result_table
from clipdec.labels import leakage
from clipdec.training.scores import evaluate, predict, raw_clip_scores
from clipdec.training.tokens import encoded
from clipdec.metrics import zsl_report
from data_prep.names import SPLITS, read_names


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


def test_result_table_prints_the_figures():
    def figures(start):
        return {"map": start, "f1@3": start + 1, "f1@5": start + 2}

    metrics = {"zsl": figures(10.04), "zsl_without_twins": {}, "gzsl": figures(20)}
    metrics["raw_clip"] = {"zsl": figures(30), "zsl_without_twins": figures(5), "gzsl": figures(40.06)}
    metrics["protocol"] = {"keep": "relevant", "test_images": 77, "labels_without_positives": 5, "unseen_with_twin": 3}
    head, columns, model, raw, foot = result_table(metrics).splitlines()
    assert head.split() == "ZSL ZSL without twins GZSL".split() and columns.split() == 3 * ["mAP", "F1@3", "F1@5"]
    assert model.split() == ["CLIP-Decoder", "10.0", "11.0", "12.0", "nan", "nan", "nan", "20.0", "21.0", "22.0"]
    assert raw.split() == ["raw", "CLIP", "30.0", "31.0", "32.0", "5.0", "6.0", "7.0", "40.1", "41.1", "42.1"]
    assert "77 test images" in foot and "keep=relevant" in foot and "5 labels" in foot and "3 unseen labels have a seen twin" in foot


# ---- leakage ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "unseen, seen, kind",
    [
        ("cat", "cats", "plural"), ("flowers", "flower", "plural"), ("bus", "buses", "plural"), ("berry", "berries", "plural"),
        ("leaf", "leaves", "plural"), ("knife", "knives", "plural"), ("horses", "horse", "plural"), ("traffic light", "traffic lights", "plural"),
        ("Cat", "CATS", "plural"), ("hot-dog", "hot dogs", "plural"),
        ("running", "run", "lemma"), ("person", "people", "lemma"), ("man", "men", "lemma"), ("fish", "fishing", "lemma"), ("T-shirt", "t shirt", "lemma"),
        ("tiger", "tiger face", "word"), ("police officer", "officer", "word"), ("mountain", "sunrise over mountains", "word"),
        ("plane", "airplane", None), ("train", "rain", None), ("person running", "person swimming", None), ("hot dog", "hot tub", None),
        ("boss", "bosses", "plural"), ("bas", "bass", "plural"), ("news", "new", "plural"), ("zebra", "horse", None),
    ],
)  # fmt: skip
def test_leakage_names_the_twins(unseen, seen, kind):
    expected = {unseen: [(seen, kind)]} if kind else {}
    assert leakage(LabelSpace([seen, "violin"], [unseen])) == expected


def test_nus_wide_has_31_plural_twins():
    labels = LabelSpace(read_names(SPLITS / "nus_wide_seen925.txt")[0], read_names(SPLITS / "nus_wide_unseen81.txt")[0])
    twins = leakage(labels)
    plural = {name: seen for name, found in twins.items() for seen, kind in found if kind == "plural"}
    assert len(plural) == 31
    assert {("cat", "cats"), ("bear", "bears"), ("flowers", "flower"), ("leaf", "leaves"), ("valley", "valleys")} <= set(plural.items())


def test_figures_without_twins_are_those_of_the_other_labels():
    labels = LabelSpace(["cats", "car"], ["cat", "zebra", "violin"])
    scores, targets = torch.rand(40, 5), torch.rand(40, 5) < 0.3
    for keep in ("all", "relevant"):
        report = full_report(scores, targets, labels, keep)
        alone = zsl_report(scores[:, [0, 1, 3, 4]], targets[:, [0, 1, 3, 4]], LabelSpace(["cats", "car"], ["zebra", "violin"]), keep)
        assert report["zsl_without_twins"] == pytest.approx(alone["zsl"]) and report["protocol"]["unseen_with_twin"] == 1
        assert {k: report[k] for k in ("zsl", "gzsl", "seen")} == {k: zsl_report(scores, targets, labels, keep)[k] for k in ("zsl", "gzsl", "seen")}


def test_without_a_label_that_has_no_twin_there_are_no_figures():
    assert full_report(torch.rand(4, 2), torch.ones(4, 2), LabelSpace(["cats"], ["cat"]))["zsl_without_twins"] == {}


def test_nearest_seen():
    labels = LabelSpace(["Cat", "car", "blue bird"], ["cats", "big birds", "zebra"])
    vectors = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0.8, 0.6, 0], [0, 0.28, 0.96], [0, 0.6, 0.8]])
    rows = nearest_seen(labels, vectors)
    assert [(name, near) for name, near, _ in rows] == [("big birds", "blue bird"), ("cats", "Cat"), ("zebra", "blue bird")]
    assert [cosine for _, _, cosine in rows] == pytest.approx([0.96, 0.8, 0.8])
