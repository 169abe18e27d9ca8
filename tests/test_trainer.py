"""The plain step: gradients, optimiser, schedule, average, and the labels that a step decodes."""

import copy
import math

import pytest
import torch

from clipdec import CLIPDecoder, CombinedLoss, alignment_loss, asymmetric_loss
from clipdec.towers import ImageTower
from clipdec.trainer import Trainer, sample_labels

B, L, D, S = 12, 30, 8, 6
TARGETS = torch.zeros(4, 50, dtype=torch.bool)
TARGETS[[0, 1, 2, 2], [7, 3, 7, 49]] = True
gradients = lambda model: {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture
def batch():
    """The arguments of a step: tokens, queries, sentences, targets."""
    return torch.randn(B, 5, 192), torch.randn(L, D), torch.randn(B, S), torch.rand(B, L) < 0.1


def make(steps=10, alpha=1.0, beta=1.0, **changes):
    tower = ImageTower("mini")  # before the seed: loading it draws random numbers, the first time
    torch.manual_seed(0)
    model = CLIPDecoder(tower, torch.zeros(1, D), S, 16, dropout=0.0)
    return Trainer(model, steps, CombinedLoss(alpha, beta), **changes)


def test_the_gradient_is_that_of_the_loss(batch):
    trainer = make(alpha=0.5, beta=2.0)
    targets, model = batch[3], copy.deepcopy(trainer.model)
    figures, found = trainer.gradients(*batch), gradients(trainer.model)
    logits, image, text = model(*batch[:3])
    l_c, l_clip = asymmetric_loss(logits, targets), alignment_loss(image, text, model.logit_scale, targets)
    loss = 0.5 * l_clip + 2.0 * l_c
    loss.backward()
    expected = gradients(model)
    assert not any(name.startswith("tower") for name in found)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    norm = torch.cat([g.flatten() for g in expected.values()]).norm()
    values = {"loss": loss, "l_c": l_c, "l_clip": l_clip, "grad_norm": norm}
    assert figures == pytest.approx({name: value.item() for name, value in values.items()}, rel=1e-4)


def test_clipped_gradients_keep_their_direction(batch):
    free, clipped = make(), make(clip_grad=0.25)
    norms = [trainer.gradients(*batch)["grad_norm"] for trainer in (free, clipped)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5) and norms[0] > 1
    expected = {name: gradient * 0.25 / norms[0] for name, gradient in gradients(free.model).items()}
    torch.testing.assert_close(gradients(clipped.model), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name, kind", [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_a_step_is_adams(batch, name, kind):
    trainer = make(optimiser=name, weight_decay=0.5)
    own, lr = dict(copy.deepcopy(trainer.model).named_parameters()), trainer.schedule.get_last_lr()[0]
    trainer.gradients(*batch)
    for key, gradient in gradients(trainer.model).items():
        own[key].grad = gradient
    parts = ([p for p in own.values() if (p.ndim > 1) == decayed] for decayed in (True, False))
    groups = [{"params": part, "weight_decay": decay} for part, decay in zip(parts, (0.5, 0.0))]
    kind(groups, lr=lr, betas=(0.95, 0.999)).step()  # OneCycle starts at the highest momentum
    figures = trainer.step(*batch)
    assert figures["lr"] == lr and figures["logit_scale"] == pytest.approx(trainer.model.logit_scale.item())
    torch.testing.assert_close(dict(trainer.model.named_parameters()), own, rtol=1e-4, atol=1e-6)


def test_only_sampled_labels_are_decoded(batch, monkeypatch):
    trainer, asked = make(label_samples=4), []
    decoder, layer = trainer.model.decoder, trainer.model.decoder.layer
    monkeypatch.setattr(decoder, "layer", lambda queries, *rest: asked.append(queries) or layer(queries, *rest))
    torch.manual_seed(1)
    trainer.step(*batch)
    torch.manual_seed(1)
    labels, _ = sample_labels(batch[3], 4)
    assert torch.equal(asked[0], batch[1][labels]) and len(labels) == batch[3].any(0).sum() + 4


def test_a_figure_that_is_not_finite_changes_no_weight(batch):
    trainer = make()
    before = copy.deepcopy(trainer.model.state_dict())
    batch[0][0] = math.inf
    with pytest.raises(FloatingPointError, match="loss nan, l_c nan"):
        trainer.step(*batch)
    torch.testing.assert_close(trainer.model.state_dict(), before, rtol=0, atol=0)
    assert trainer.average.n_averaged == 0


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 6, 10])
def test_the_learning_rate_rises_and_falls_at_any_length(steps):
    trainer, rates = make(steps, lr=4e-3), []
    for _ in range(steps):
        rates.append(trainer.optimiser.param_groups[0]["lr"])
        trainer.optimiser.step()
        if len(rates) < steps:
            trainer.schedule.step()
    assert all(0 < r <= 4e-3 * (1 + 1e-6) for r in rates)
    if steps == 10:
        assert rates[0] < rates[1] == pytest.approx(4e-3) and rates[1:] == sorted(rates[1:], reverse=True)


def test_the_average_follows_the_weights():
    trainer, expected = make(3, ema_decay=0.3), None
    for value, decay in ((1.0, None), (2.0, 2 / 11), (5.0, 3 / 12), (-4.0, 0.3), (3.0, 0.3)):  # (1 + n) / (10 + n)
        trainer.model.decoder.output.bias.data.fill_(value)
        trainer.average.update_parameters(trainer.model)
        expected = value if expected is None else decay * expected + (1 - decay) * value
    assert trainer.average.module.decoder.output.bias.item() == pytest.approx(expected)


def test_a_frozen_tower_is_shared_with_the_average_and_stays(batch):
    trainer, before = make(), copy.deepcopy(ImageTower("mini").trunk.state_dict())
    for _ in range(3):
        trainer.step(*batch)
    assert trainer.average.module.tower is trainer.model.tower and not trainer.model.tower.training
    torch.testing.assert_close(trainer.model.tower.trunk.state_dict(), before, rtol=0, atol=0)


def test_biases_norms_and_the_scale_are_not_decayed():
    trainer = make(weight_decay=0.3)
    decayed, plain = trainer.optimiser.param_groups
    names = {p: n for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.3, 0.0)
    assert all(names[p].endswith(".weight") and "norm" not in names[p] for p in decayed["params"])
    assert all(names[p].endswith(".bias") or "norm" in names[p] or names[p] == "log_scale" for p in plain["params"])
    assert len(decayed["params"]) + len(plain["params"]) == len(names)


def test_sampled_labels_hold_all_that_are_present():
    for count in (1, 5, 46):
        labels, weights = sample_labels(TARGETS, count)
        assert torch.equal(weights, torch.ones(3 + count)) and set(labels.tolist()) >= {3, 7, 49}
        assert len(labels) == len(set(labels.tolist())) == 3 + count
    for targets, count in ((torch.ones(2, 5), 5), (torch.zeros(2, 5), 3)):
        assert len(sample_labels(targets.bool(), 3, weighted=True)[0]) == count


@pytest.mark.parametrize("count", [0, 47, 1000])
def test_all_labels(count):
    assert sorted(sample_labels(TARGETS, count)[0].tolist()) == list(range(50))


def test_weights_give_the_full_loss_in_expectation():
    torch.manual_seed(0)
    logits, samples = torch.randn(TARGETS.shape), [sample_labels(TARGETS, 6, weighted=True) for _ in range(4000)]
    losses = torch.stack([asymmetric_loss(logits[:, i], TARGETS[:, i], weights=weights) for i, weights in samples])
    full = asymmetric_loss(logits, TARGETS)
    assert (losses.mean() - full).abs() < 5 * losses.std() / 4000**0.5 and losses.std() > 0.01 * full


def test_absent_labels_are_sampled_alike():
    targets = torch.zeros(2, 12, dtype=torch.bool)
    targets[0, 4] = True
    counts = torch.bincount(torch.cat([sample_labels(targets, 4)[0] for _ in range(4000)]), minlength=12)
    assert counts[4] == 4000 and ((counts / 4000 - 4 / 11).abs() < 0.04).sum() == 11  # five standard deviations


def test_labels_that_are_known_of_no_image_are_not_decoded():
    """And the others of the sample stand for those that are, so that the loss is the full one in expectation."""
    known = TARGETS.clone()
    known[0, :20] = known[3, 10:30] = True
    for count in (0, 5):
        labels, _ = sample_labels(TARGETS, count, known=known)
        others = set(labels.tolist()) - {3, 7, 49}
        assert others <= {*range(30)} - {3, 7} and len(labels) == 3 + (count or 28)
    labels, weights = sample_labels(TARGETS, 5, True, known)
    assert weights.tolist() == pytest.approx(3 * [1.0] + 5 * [28 / 5])


def test_a_step_leaves_out_what_is_not_known(batch):
    trainer = make(alpha=0.0)
    targets, known = batch[3], batch[3] | (torch.rand(B, L) < 0.3)
    known[:, 4] = targets[:, 4] = False
    figures = trainer.gradients(*batch, known)
    with torch.no_grad():
        logits = trainer.model(*batch[:3])[0]
    cost = [asymmetric_loss(logits[i, None, j, None], targets[i, None, j, None]) for i, j in known.nonzero().tolist()]
    assert figures["l_c"] == pytest.approx((sum(cost) / B).item(), rel=1e-4)
    everything = trainer.gradients(*batch, torch.ones_like(known))
    assert everything == trainer.gradients(*batch) != figures
