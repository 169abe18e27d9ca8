"""Average precision, P/R/F1@K and the ZSL/GZSL report, against hand counts, slow loops and scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torchmetrics.functional.classification import multilabel_average_precision

from clipdec import LabelSpace
from clipdec.comparison import statistics
from clipdec.comparison.statistics import bootstrap_weights, resampled_ap
from clipdec.metrics import average_precision, precision_recall_f1, zsl_report

LABELS = LabelSpace([f"s{i}" for i in range(7)], [f"u{i}" for i in range(6)])


def random_case(images, labels, levels, seed, prevalence=0.3):
    """Scores with only `levels` different values, and targets, as numpy arrays."""
    rng = np.random.default_rng(seed)
    return rng.integers(levels, size=(images, labels)).astype(np.float32) / 8, rng.random((images, labels)) < prevalence


def sklearn_ap(scores, targets):
    """Average precision of each label that occurs, from scikit-learn."""
    return [average_precision_score(targets[:, i], scores[:, i]) for i in np.flatnonzero(targets.any(0))]


def slow_prf(scores, targets, k):
    """Precision, recall and F1 of the k best labels of each image, counted one by one."""
    best = [sorted(range(len(row)), key=row.__getitem__, reverse=True)[:k] for row in scores.tolist()]
    hits = sum(truth[i] for indices, truth in zip(best, targets.tolist()) for i in indices)
    p, r = hits / sum(map(len, best)), hits / targets.sum()
    return p, r, 2 * p * r / (p + r)


def expected_figures(scores, targets):
    """The figures of one part of the report, in percent."""
    ranked = {k: zip(("p", "r", "f1"), slow_prf(scores, targets, k)) for k in (3, 5)}
    figures = {f"{name}@{k}": 100 * value for k, values in ranked.items() for name, value in values}
    return {"map": 100 * np.mean(sklearn_ap(scores, targets))} | figures


@pytest.mark.parametrize("scores, targets, ap", [
    ([4, 3, 2, 1], [1, 0, 1, 0], (1 / 1 + 2 / 3) / 2), ([2, 1, 1, 0], [1, 1, 0, 0], (1 / 1 + 2 / 3) / 2),
    ([1, 1, 1, 1], [1, 0, 0, 0], 1 / 4),  # one group of ties: precision is the prevalence
    ([1, 2, 3, 4], [1, 0, 0, 0], 1 / 4), ([1, 2, 3], [1, 1, 1], 1.0), ([0], [1], 1.0),
])
def test_average_precision_by_hand(scores, targets, ap):
    result = average_precision(torch.tensor(scores)[:, None], torch.tensor(targets)[:, None])
    assert result.shape == (1,) and result.item() == pytest.approx(ap, abs=1e-12)


@pytest.mark.parametrize("levels", [1, 2, 5, 10_000])
def test_average_precision_equals_sklearn(levels):
    scores, targets = random_case(97, 13, levels, seed=levels)
    np.testing.assert_allclose(average_precision(scores, targets).numpy(), sklearn_ap(scores, targets), atol=1e-9)


def test_average_precision_keeps_double_scores_apart():
    rng = np.random.default_rng(0)
    scores = 1 + 1e-10 * rng.permutation(64)[:, None].astype(np.float64)  # all equal in single precision
    targets = rng.random((64, 1)) < 0.3
    assert average_precision(scores, targets).tolist() == pytest.approx(sklearn_ap(scores, targets), abs=1e-12)


def test_labels_without_and_with_only_positives():
    scores, targets = random_case(20, 3, 7, seed=0)
    targets[:, 0], targets[:, 1] = False, True
    ap = average_precision(scores, targets)
    assert ap[0].isnan() and ap[1].item() == 1.0 and not ap[2].isnan()


@pytest.mark.parametrize("levels", [3, 10_000])
def test_average_precision_ignores_the_order_of_images(levels):
    scores, targets = random_case(60, 9, levels, seed=1)
    order = np.random.default_rng(2).permutation(60)
    a, b = average_precision(scores, targets), average_precision(scores[order], targets[order])
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("k", [1, 3, 5, 11])
def test_precision_recall_f1_equals_a_loop(k):
    scores, targets = np.random.default_rng(k).random((40, 11)), random_case(40, 11, 2, seed=k)[1]
    assert precision_recall_f1(scores, targets, k) == pytest.approx(slow_prf(scores, targets, k), abs=1e-9)


def test_k_at_its_edges():
    scores, targets = np.random.default_rng(0).random((10, 4)), random_case(10, 4, 2, seed=3)[1]
    precision, recall, _ = precision_recall_f1(scores, targets, 4)  # everything is predicted
    assert recall == 1.0 and precision == pytest.approx(targets.mean())
    for k in (0, 5, -1):
        with pytest.raises(ValueError, match="k must be from 1 to the number of labels, 4"):
            precision_recall_f1(scores, targets, k)


def test_predictions_that_are_all_wrong():
    assert precision_recall_f1([[2.0, 1.0]], [[0, 1]], 1) == (0.0, 0.0, 0.0)


def test_figures_that_do_not_exist():
    """Where nothing is true there is nothing to find, and without an image nothing is predicted either."""
    nan = float("nan")
    assert precision_recall_f1([[2.0, 1.0]], [[0, 0]], 1) == pytest.approx((0, nan, nan), nan_ok=True)
    assert precision_recall_f1(np.empty((0, 2)), np.empty((0, 2)), 1) == pytest.approx((nan,) * 3, nan_ok=True)


@pytest.fixture
def case():
    """Scores without ties in an image, and targets over LABELS; some images carry no label, some none of one part."""
    scores = np.random.default_rng(5).random((50, 13)).astype(np.float32)
    targets = random_case(50, 13, 2, seed=5, prevalence=0.12)[1]
    targets[:5] = False
    targets[5:15, 7:] = False
    targets[:, [2, 9, 10]] = False  # labels without a positive
    return scores, targets


@pytest.mark.parametrize("keep", ["all", "relevant"])
def test_report_ranks_what_each_part_ranks(case, keep):
    scores, targets = case
    report, kept = zsl_report(scores, targets, LABELS, keep), {}
    for part, index in {"zsl": slice(7, 13), "gzsl": slice(0, 13), "seen": slice(0, 7)}.items():
        rows = targets[:, index].any(1) if keep == "relevant" else np.ones(50, bool)
        kept[part] = int(rows.sum())
        figures = expected_figures(scores[rows, index], targets[rows, index])
        assert report[part] == pytest.approx(figures, abs=1e-5), part
    assert report["protocol"] == {"keep": keep, "test_images": 50, "images_kept": kept, "labels_without_positives": 3}
    assert keep == "all" or kept["zsl"] < kept["gzsl"] < 50


def test_zsl_ignores_seen_scores_and_gzsl_does_not(case):
    scores, targets = case
    seen = np.float32(np.arange(13) < 7)
    before, loud, quiet = (zsl_report(s, targets, LABELS) for s in (scores, scores + seen, scores - seen))
    assert before["zsl"] == loud["zsl"] == quiet["zsl"]
    for k in (3, 5):  # one part fills the first places of the common list
        assert loud["gzsl"][f"p@{k}"] == before["seen"][f"p@{k}"] != before["zsl"][f"p@{k}"] == quiet["gzsl"][f"p@{k}"]


def test_perfect_scores_are_100_percent():
    targets = np.eye(13, dtype=bool)
    report = zsl_report(targets.astype(float), targets, LABELS, "relevant")
    for part in ("zsl", "gzsl", "seen"):
        assert [report[part][name] for name in ("map", "r@3", "p@3")] == pytest.approx([100, 100, 100 / 3])


def test_fewer_labels_than_k():
    scores, targets = [[0.1, 0.5, 0.2], [0.3, 0.1, 0.4]], [[1, 0, 1], [1, 0, 0]]
    report = zsl_report(scores, targets, LabelSpace(["a", "b"], ["c"]))
    assert (report["zsl"]["p@3"], report["zsl"]["r@5"]) == pytest.approx((50, 100))  # the one label there is


def test_errors():
    good = torch.zeros(4, 13)
    metrics = average_precision, lambda s, t: precision_recall_f1(s, t, 3), lambda s, t: zsl_report(s, t, LABELS)
    for scores, targets in ((good, good[:3]), (good[0], good[0]), (good, good[:, :12])):
        with pytest.raises(ValueError, match="one shape"):
            average_precision(scores, targets)
    for bad in (float("nan"), float("inf")):
        scores = good.clone()
        scores[2, 3] = bad
        for metric in metrics:
            with pytest.raises(ValueError, match="finite"):
                metric(scores, good)
    for metric in metrics:  # -1 is how some data say that a label is absent
        with pytest.raises(ValueError, match="targets must be 0 or 1"):
            metric(good, good - 1)
    with pytest.raises(ValueError, match="keep must be"):
        zsl_report(good, good, LABELS, keep="some")
    with pytest.raises(ValueError, match="13 columns, the label space 2"):
        zsl_report(good, good, LabelSpace(["a"], ["b"]))


def test_average_precision_of_many_labels_equals_torchmetrics():
    """More labels than are sorted at a time, scores with ties, and labels without a positive."""
    scores, targets = torch.randint(0, 40, (300, 77)).float(), torch.rand(300, 77) < torch.rand(77) * 0.2
    targets[:, [5, 76]] = False
    expected = multilabel_average_precision(scores / 40, targets.int(), 77, average=None)
    mine, kept = average_precision(scores, targets), targets.any(0)
    assert mine.dtype == torch.float64 and mine[[5, 76]].isnan().all()
    torch.testing.assert_close(mine[kept].float(), expected[kept], rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(0, 3), (0, 4), (4, 0), (0, 0)])
def test_average_precision_of_nothing(shape):
    ap = average_precision(torch.zeros(shape), torch.zeros(shape))
    assert ap.shape == shape[1:] and ap.isnan().all()


@pytest.mark.parametrize("levels", [1000, 4])  # with 4, many scores are equal
def test_resampled_ap_is_that_of_the_repeated_images(levels):
    scores, targets = torch.randint(levels, (30, 8)).float(), torch.rand(30, 8) < 0.2
    targets[:, 7] = False  # a label without a positive
    drawn = torch.randint(30, (6, 30))
    weights = torch.stack([torch.bincount(row, minlength=30) for row in drawn]).double()
    expected = torch.stack([average_precision(scores[row], targets[row]) for row in drawn], 1)  # [L, R]
    assert expected.isnan().any() and not expected.isnan().all()
    torch.testing.assert_close(resampled_ap(scores, targets, weights), expected, rtol=0, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize("levels", [10**6, 30])
def test_resampled_ap_is_that_of_the_plain_formula(levels, monkeypatch):
    """All images compared with each positive, in samples that are looked at a few at a time."""
    monkeypatch.setattr(statistics, "DRAWS", 7)
    scores, targets = torch.randint(levels, (200, 11)).double(), torch.rand(200, 11) < torch.rand(11)
    weights = bootstrap_weights(200, draws=30)
    found = resampled_ap(scores, targets, weights)
    for label, positive in enumerate(targets.T):
        above = (scores[:, label] >= scores[positive, label][:, None]).double()  # [P, M]
        own, every = weights[:, positive].double(), weights.double()
        precision = own @ above[:, positive].T / (every @ above.T).clamp(min=1)
        expected = (own * precision).sum(1) / own.sum(1)
        torch.testing.assert_close(found[label], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("prevalence", [0.01, 0.3, 0.9])
def test_average_precision_at_a_prevalence_is_that_of_weighed_images(prevalence):
    """scikit-learn with sample weights; at a label's own prevalence it is plain AP."""
    scores, targets = random_case(80, 6, 25, seed=6)
    targets[:, 4], targets[:, 5] = False, True
    found = average_precision(scores, targets, prevalence)
    assert found[4].isnan() and found[5] == 1
    for i in range(4):
        negatives = (1 - prevalence) / prevalence * targets[:, i].sum() / (~targets[:, i]).sum()
        weights = np.where(targets[:, i], 1, negatives)
        assert np.average(targets[:, i], weights=weights) == pytest.approx(prevalence)
        expected = average_precision_score(targets[:, i], scores[:, i], sample_weight=weights)
        assert found[i].item() == pytest.approx(expected)
        own = average_precision(scores, targets, targets[:, i].mean())[i]
        assert own.item() == pytest.approx(average_precision(scores, targets)[i].item())


def test_average_precision_at_a_prevalence_is_that_of_fewer_negatives():
    """Of subsets with all positives and so many negatives, drawn again and again, it is the mean."""
    rng, targets = np.random.default_rng(0), np.arange(400) < 40
    scores = (rng.normal(size=400) + 1.5 * targets)[:, None].astype(np.float32)
    subsets = [np.r_[:40, rng.choice(np.arange(40, 400), 60, replace=False)] for _ in range(200)]  # 40 %
    drawn = [average_precision(scores[rows], targets[rows, None]).item() for rows in subsets]
    assert average_precision(scores, targets[:, None], 0.4).item() == pytest.approx(np.mean(drawn), abs=0.01)
    assert average_precision(scores, targets[:, None]).item() < np.mean(drawn) - 0.1


def known_case(levels, seed=0):
    """A random case, what is known of it, and of each label the scores and targets of the images that count."""
    scores, targets = random_case(90, 13, levels, seed)
    known = targets | (np.random.default_rng(seed).random((90, 13)) < 0.4)
    known[:, 4], targets[:, 5] = targets[:, 4], False  # only positives are known; a label without any
    return scores, targets, known, [(scores[rows, i], targets[rows, i]) for i, rows in enumerate(known.T)]


@pytest.mark.parametrize("levels", [3, 10_000])
def test_average_precision_of_what_is_known_is_that_of_those_images(levels):
    scores, targets, known, columns = known_case(levels)
    plain, weighed = average_precision(scores, targets, known=known), average_precision(scores, targets, 0.2, known)
    assert plain[5].isnan() and weighed[5].isnan() and plain[4] == weighed[4] == 1
    for i, (s, t) in enumerate(columns):
        if i not in (4, 5):
            assert plain[i].item() == pytest.approx(average_precision_score(t, s))
            weights = np.where(t, 1, 4 * t.sum() / (~t).sum())
            assert weighed[i].item() == pytest.approx(average_precision_score(t, s, sample_weight=weights))
    assert not torch.equal(plain[:4], average_precision(scores, targets)[:4])
    assert torch.equal(average_precision(scores, targets | ~known, known=known)[:4], plain[:4])  # a target not known
    everything = np.ones_like(known)
    assert torch.equal(average_precision(scores, targets, known=everything)[:4], average_precision(scores, targets)[:4])
    with pytest.raises(ValueError, match="one shape"):
        average_precision(scores, targets, known=known[:, :1])


@pytest.mark.parametrize("levels", [3, 10_000])
def test_resampled_ap_of_what_is_known_is_that_of_the_repeated_images(levels):
    scores, targets, known, _ = known_case(levels, seed=1)
    weights = bootstrap_weights(90, draws=5)
    rows = [np.repeat(np.arange(90), times) for times in weights.numpy()]
    expected = torch.stack([average_precision(scores[r], targets[r], known=known[r]) for r in rows], 1)
    found = resampled_ap(scores, torch.as_tensor(targets), weights, torch.as_tensor(known))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize("keep", ["all", "relevant"])
def test_the_report_of_what_is_known_ranks_10_and_20(keep):
    """AP is over the known images; what is not known is wrong to P, R and F1."""
    labels = LabelSpace([f"s{i}" for i in range(30)], [f"u{i}" for i in range(25)])
    rng = np.random.default_rng(0)
    scores, targets = rng.random((40, 55)), rng.random((40, 55)) < 0.04
    known = targets | (rng.random((40, 55)) < 0.3)
    report = zsl_report(scores, targets, labels, keep, known)
    for part, index in {"zsl": slice(30, 55), "gzsl": slice(55), "seen": slice(30)}.items():
        rows = targets[:, index].any(1) if keep == "relevant" else np.ones(40, bool)
        s, t, k = (x[rows, index] for x in (scores, targets, known))
        ap = [average_precision_score(t[k[:, i], i], s[k[:, i], i]) for i in np.flatnonzero(t.any(0))]
        figures = {"map": 100 * np.mean(ap)}
        for n in (10, 20):
            figures |= {f"{name}@{n}": 100 * value for name, value in zip(("p", "r", "f1"), slow_prf(s, t, n))}
        assert report[part] == pytest.approx(figures), part
