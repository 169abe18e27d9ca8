"""The report with and without twins, its table, and the nearest seen labels."""

import pytest
import torch

from clipdec import LabelSpace
from clipdec.metrics import average_precision, zsl_report
from clipdec.training.leakage import nearest_seen
from clipdec.training.report import equal_prevalence, full_report, label_table, result_table


def test_result_table_prints_the_figures():
    figures = lambda start: {"map": start, "f1@3": start + 1, "f1@5": start + 2}
    metrics = {"zsl": figures(10.04), "zsl_without_twins": {}, "gzsl": figures(20)}
    metrics["raw_clip"] = {"zsl": figures(30), "zsl_without_twins": figures(5), "gzsl": figures(40.06)}
    metrics["raw_clip"]["gzsl"] |= {"map": None, "f1@3": float("nan")}
    metrics["calibration"] = {"note": "not calibrated"}
    metrics["protocol"] = {"keep": "relevant", "test_images": 77, "labels_without_positives": 5, "unseen_with_twin": 3}
    head, columns, model, raw, foot, note = result_table(metrics).splitlines()
    assert head.split() == "ZSL ZSL without twins GZSL".split() and columns.split() == 3 * ["mAP", "F1@3", "F1@5"]
    assert model.split() == ["CLIP-Decoder", "10.0", "11.0", "12.0", "–", "–", "–", "20.0", "21.0", "22.0"]
    assert raw.split() == ["raw", "CLIP", "30.0", "31.0", "32.0", "5.0", "6.0", "7.0", "–", "–", "42.1"]
    assert len(head) == len(columns) == len(model) == len(raw) and note == "not calibrated"
    said = ["77 test images", "keep=relevant", "5 labels", "3 unseen labels have a seen twin"]
    assert [text for text in said if text not in foot] == []


def test_figures_without_twins_are_those_of_the_other_labels():
    labels, others = (LabelSpace(["cats", "car"], [*cat, "zebra", "violin"]) for cat in (["cat"], []))
    scores, targets, rest = torch.rand(40, 5), torch.rand(40, 5) < 0.3, [0, 1, 3, 4]
    for keep in ("all", "relevant"):
        report, whole = full_report(scores, targets, labels, keep), zsl_report(scores, targets, labels, keep)
        alone = zsl_report(scores[:, rest], targets[:, rest], others, keep)["zsl"]
        assert report["zsl_without_twins"] == pytest.approx(alone) and report["protocol"]["unseen_with_twin"] == 1
        assert all(report[part] == whole[part] for part in ("zsl", "gzsl", "seen"))


def test_without_a_label_that_has_no_twin_there_are_no_figures():
    assert full_report(torch.rand(4, 2), torch.ones(4, 2), LabelSpace(["cats"], ["cat"]))["zsl_without_twins"] == {}


def test_equal_prevalence_brings_all_labels_to_the_share_of_the_unseen_ones():
    labels, scores, targets = LabelSpace(["a", "b", "c"], ["d", "e"]), torch.rand(40, 5), torch.rand(40, 5) < 0.3
    targets[:, 2] = False  # a label without a positive
    share = targets[:, 3:].double().mean().item()
    ap = 100 * average_precision(scores, targets, share)
    expected = {"prevalence": 100 * share, "zsl": ap[3:].mean().item(), "seen": ap[:2].mean().item()}
    expected["gzsl"] = (ap[:2].sum() + ap[3:].sum()).item() / 4
    assert equal_prevalence(scores, targets, labels) == pytest.approx(expected)
    assert full_report(scores, targets, labels)["equal_prevalence"] == pytest.approx(expected)
    rarer = targets.clone()
    rarer[:20, :3] = False  # scores of the seen labels as they were, but half of the positives
    assert equal_prevalence(scores, rarer, labels)["zsl"] == pytest.approx(expected["zsl"])
    targets[:, 3:] = False
    assert equal_prevalence(scores, targets, labels) == {}


def test_nearest_seen():
    labels = LabelSpace(["Cat", "car", "blue bird"], ["cats", "big birds", "zebra"])
    vectors = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0.8, 0.6, 0], [0, 0.28, 0.96], [0, 0.6, 0.8]])
    names, near, cosines = zip(*nearest_seen(labels, vectors))
    assert (names, near) == (("big birds", "cats", "zebra"), ("blue bird", "Cat", "blue bird"))
    assert cosines == pytest.approx((0.96, 0.8, 0.8))


def test_what_is_known_goes_into_every_figure():
    labels, scores, targets = LabelSpace(["cats", "b", "c"], ["cat", "e"]), torch.rand(40, 5), torch.rand(40, 5) < 0.3
    known = targets | (torch.rand(40, 5) < 0.5)
    report, ap = full_report(scores, targets, labels, known=known), average_precision(scores, targets, known=known)
    assert report["gzsl"]["map"] == pytest.approx(100 * ap.mean().item())
    assert report["zsl_without_twins"]["map"] == pytest.approx(100 * ap[4].item())
    assert report["protocol"]["known_pairs"] == pytest.approx(100 * known.double().mean().item())
    share = (targets[:, 3:].sum() / known[:, 3:].sum()).item()
    expected = 100 * average_precision(scores, targets, share, known)
    assert report["equal_prevalence"]["prevalence"] == pytest.approx(100 * share)
    assert report["equal_prevalence"]["zsl"] == pytest.approx(expected[3:].mean().item())
    rows = label_table(scores, targets, labels, known)
    assert [row["ap"] for row in rows] == pytest.approx((100 * ap).tolist())
    head, columns, *_, foot, last = result_table(report).splitlines()
    assert columns.split() == 3 * ["mAP", "F1@10", "F1@20"] and len(columns) == len(head) and "40 test images" in foot
    pairs = f"{report['protocol']['known_pairs']:.2g} % of all pairs of image and label"
    assert last == f"AP over {pairs}, the others are not known"
