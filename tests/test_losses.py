"""The asymmetric loss and the alignment loss, against timm, closed forms and plain loops."""

import math

import pytest
import torch
import torch.nn.functional as F
from timm.loss import AsymmetricLossMultiLabel

from clipdec import CombinedLoss, alignment_loss, asymmetric_loss

GAMMAS = [(4, 0, 0.05), (4, 1, 0.05), (2, 1, 0.2), (0, 0, 0.05), (4, 1, 0), (1, 2, 0), (0, 0, 0)]
LABEL_SETS = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 1]])


def case(images=6, labels=9, spread=2.0):
    return spread * torch.randn(images, labels), torch.rand(images, labels) < 0.3


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("gammas", GAMMAS, ids=str)
def test_asymmetric_loss_and_its_gradient_equal_timm(gammas, detach):
    logits, targets = case()
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    timm_loss = AsymmetricLossMultiLabel(*gammas, disable_torch_grad_focal_loss=detach)
    loss = asymmetric_loss(ours, targets, *gammas, detach_focus=detach)
    # one image at a time: sum over labels in every version of timm, whatever it does with a batch
    reference = sum(timm_loss(theirs[i : i + 1], targets[i : i + 1].float()) for i in range(len(logits))) / len(logits)
    loss.backward()
    reference.backward()
    torch.testing.assert_close(loss, reference, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("gamma_neg, gamma_pos, clip", GAMMAS)
def test_asymmetric_loss_equals_its_definition(gamma_neg, gamma_pos, clip):
    logits, targets = case()
    total = 0.0
    for x, positive in zip(logits.flatten().tolist(), targets.flatten()):
        p = 1 / (1 + math.exp(-x))
        p_m = max(p - clip, 0.0)
        total -= (1 - p) ** gamma_pos * math.log(p) if positive else p_m**gamma_neg * math.log(1 - p_m)
    loss = asymmetric_loss(logits, targets, gamma_neg, gamma_pos, clip).item()
    assert loss == pytest.approx(total / len(logits), rel=1e-4)


def test_without_focusing_and_clipping_it_is_binary_cross_entropy():
    logits, targets = case(spread=20.0)
    bce = F.binary_cross_entropy_with_logits(logits, targets.float(), reduction="sum") / len(logits)
    torch.testing.assert_close(asymmetric_loss(logits, targets, 0, 0, 0), bce)


def test_the_defaults_are_the_papers():
    logits, targets = case()
    assert asymmetric_loss(logits, targets) == asymmetric_loss(logits, targets, gamma_neg=4, gamma_pos=0, clip=0.05)


def test_easy_negatives_cost_nothing():
    case = torch.full((2, 3), math.log(0.04 / 0.96)), torch.zeros(2, 3)  # probability 0.04, below the clip of 0.05
    assert asymmetric_loss(*case).item() == 0.0 < asymmetric_loss(*case, clip=0.03).item()


@pytest.mark.parametrize("gammas", GAMMAS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_logits_stay_finite(gammas, dtype):
    logits = torch.tensor([[100.0, -100.0, 100.0, -100.0, 0.0, 0.0]], dtype=dtype, requires_grad=True)
    loss = asymmetric_loss(logits, torch.tensor([[1, 1, 0, 0, 1, 0]]), *gammas)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and logits.grad.isfinite().all()


def test_a_sure_mistake_costs_its_logit():
    sure, no = torch.tensor([[100.0]]), torch.zeros(1, 1)
    assert asymmetric_loss(-sure, torch.ones(1, 1)).item() == pytest.approx(100)
    assert asymmetric_loss(sure, no, clip=0).item() == pytest.approx(100)
    assert asymmetric_loss(sure, no).item() == pytest.approx(-(0.95**4) * math.log(0.05), rel=1e-5)  # p_m <= 0.95


def slow_alignment(image, text, scale, targets=None):
    """Symmetric InfoNCE, one pair at a time."""
    n = len(image)
    s = [[scale * F.cosine_similarity(image[i], text[j], dim=0).item() for j in range(n)] for i in range(n)]
    total = 0.0
    for i in range(n):
        others = [j for j in range(n) if j == i or targets is None or targets[j].tolist() != targets[i].tolist()]
        total += math.log(sum(math.exp(s[i][j]) for j in others)) - s[i][i]  # image to texts
        total += math.log(sum(math.exp(s[j][i]) for j in others)) - s[i][i]  # text to images
    return total / (2 * n)


@pytest.mark.parametrize("scale", [1.0, 14.3])
@pytest.mark.parametrize("targets", [None, LABEL_SETS, LABEL_SETS.bool()])
def test_alignment_loss_equals_a_loop(scale, targets):
    case = 3 * torch.randn(6, 5), torch.randn(6, 5), scale, targets
    assert alignment_loss(*case).item() == pytest.approx(slow_alignment(*case), rel=1e-5)


def test_alignment_loss_is_log_b_when_nothing_is_aligned_and_0_when_all_is():
    assert alignment_loss(torch.ones(7, 4), torch.ones(7, 4), 20.0).item() == pytest.approx(math.log(7))
    assert alignment_loss(torch.eye(7), torch.eye(7), 100.0).item() == pytest.approx(0, abs=1e-6)


def test_alignment_loss_is_symmetric_and_ignores_lengths():
    image, text = torch.randn(6, 5), torch.randn(6, 5)
    loss = alignment_loss(image, text, 10.0, LABEL_SETS)
    torch.testing.assert_close(alignment_loss(text, image, 10.0, LABEL_SETS), loss)
    torch.testing.assert_close(alignment_loss(image * torch.rand(6, 1).add(0.1), 7 * text, 10.0, LABEL_SETS), loss)


def test_images_with_one_label_set_are_no_negatives():
    image, text, twins = torch.randn(3, 5), torch.randn(3, 5), torch.tensor([[1, 0], [1, 0], [0, 1]])
    assert alignment_loss(image[:2], text[:2], 5.0, twins[:2]).item() == 0.0
    s = 5 * F.normalize(image, dim=1) @ F.normalize(text, dim=1).T
    s[0, 1] = s[1, 0] = float("-inf")
    by_hand = -(s.log_softmax(1).diag() + s.log_softmax(0).diag()).mean() / 2
    torch.testing.assert_close(alignment_loss(image, text, 5.0, twins), by_hand)


def test_gradients_are_finite_where_every_negative_is_masked():
    vectors, scale = torch.randn(2, 4, 5, requires_grad=True), torch.tensor(14.0, requires_grad=True)
    loss = alignment_loss(*vectors, scale, torch.ones(4, 3))
    loss.backward()
    assert loss.item() == 0.0 and vectors.grad.isfinite().all() and scale.grad.isfinite()


def test_the_scale_is_trained():
    image, scale = torch.randn(4, 5), torch.tensor(5.0, requires_grad=True)
    alignment_loss(image, image, scale).backward()
    assert scale.grad.item() < 0  # aligned pairs ask for a larger scale


def test_combined_loss_adds_its_weighted_terms():
    (logits, targets), vectors = case(), torch.randn(2, 6, 5)
    loss, l_c, l_clip = CombinedLoss(0.3, 2.0)(logits, targets, *vectors, 9.0, LABEL_SETS)
    torch.testing.assert_close(l_c, asymmetric_loss(logits, targets))
    torch.testing.assert_close(l_clip, alignment_loss(*vectors, 9.0, LABEL_SETS))
    torch.testing.assert_close(loss, 0.3 * l_clip + 2.0 * l_c)


def test_label_sets_are_the_targets_by_default():
    vectors = torch.randn(2, 6, 5)
    l_clip = CombinedLoss()(torch.randn(6, 3), LABEL_SETS, *vectors, 9.0)[2]
    torch.testing.assert_close(l_clip, alignment_loss(*vectors, 9.0, LABEL_SETS))


def test_a_term_of_weight_0_is_not_computed():
    logits, targets = case()
    loss, l_c, l_clip = CombinedLoss(0.0, 1.5)(logits, targets, None, None, None)
    assert l_clip == 0 and loss == 1.5 * l_c == 1.5 * asymmetric_loss(logits, targets)
    broken = torch.full((6, 3), float("nan"))
    loss, l_c, l_clip = CombinedLoss(2.0, 0.0)(broken, LABEL_SETS, *torch.randn(2, 6, 5), 9.0)
    assert l_c == 0 and loss == 2 * l_clip and loss.isfinite()


def test_weights_multiply_the_cost_of_each_label():
    logits, targets, weights = torch.randn(3, 5), torch.rand(3, 5) < 0.4, torch.tensor([1.0, 0.0, 2.5, 1.0, 3.0])
    each = [asymmetric_loss(logits[:, i : i + 1], targets[:, i : i + 1]) for i in range(5)]
    weighted = asymmetric_loss(logits, targets, weights=weights)
    torch.testing.assert_close(weighted, sum(w * c for w, c in zip(weights, each)))
    combined = CombinedLoss(alpha=0.0)(logits, targets, *torch.randn(2, 3, 8), torch.tensor(10.0), weights=weights)
    torch.testing.assert_close(combined[1], weighted)


def test_pairs_of_weight_0_cost_nothing():
    logits, targets, known = torch.randn(4, 6, requires_grad=True), torch.rand(4, 6) < 0.4, torch.rand(4, 6) < 0.5
    loss = asymmetric_loss(logits, targets, weights=known * torch.full((6,), 3.0))
    cost = [asymmetric_loss(logits[i, None, j, None], targets[i, None, j, None]) for i, j in known.nonzero().tolist()]
    torch.testing.assert_close(loss, 3 * sum(cost) / 4)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert (gradient[~known] == 0).all() and (gradient[known] != 0).any()
