"""The trained methods: their scores and losses against plain loops, that they learn, and that they take their seed."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from clipdec import Config, encode_labels
from clipdec.comparison.field import METHODS, budget
from clipdec.comparison.methods.attention_per_label import AttentionPerLabel
from clipdec.comparison.methods.biam import BiAM
from clipdec.comparison.methods.conse import CONSE
from clipdec.comparison.methods.dualcoop import DualCoOp
from clipdec.comparison.methods.label_em import LabelEM
from clipdec.comparison.methods.lesa import LESA
from clipdec.comparison.methods.mkt import MKT
from clipdec.comparison.methods.per_patch import PerPatch
from clipdec.comparison.methods.ranking import ranking_loss, ranknet_loss
from clipdec.comparison.methods.recover_and_match import RecoverAndMatch, mmc_loss, sinkhorn
from clipdec.comparison.methods.sdl import SDL
from clipdec.comparison.protocol import Images, Sizes, learn, scores_of, trained_scores
from clipdec.metrics import average_precision
from clipdec.towers import ImageTower

NAMES = ["dog face", "pizza", "key", "castle", "guitar", "tiger", "rainbow", "bus", "banana", "violin", "cat", "clock"]
ONE_PASS = {name: method for name, method in METHODS.items() if not budget(name)}
close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5)


@pytest.fixture
def batch():
    """(tokens [4, 5, 128], global vectors, vectors of 12 labels, targets), every image with a label or two."""
    targets = torch.zeros(4, 12, dtype=torch.bool)
    targets[torch.arange(4), torch.randperm(12)[:4]] = True
    targets[:2, 5:7] = True
    return torch.randn(4, 5, 128), F.normalize(torch.randn(4, 128), dim=-1), encode_labels(NAMES), targets


def sizes(labels, **changes):
    return Sizes(128, 128, 128, labels, Config(windows=4, device="cpu", **changes))


def build(method, labels):
    return method(sizes(labels)).eval()


def pairs(scores, targets):
    """[(image's positive scores, its negative ones)]"""
    return [(s[t].tolist(), s[~t].tolist()) for s, t in zip(scores, targets)]


def test_ranking_losses_are_sums_over_pairs():
    scores, targets = torch.randn(6, 9), torch.rand(6, 9) < 0.3
    targets[:, 0], targets[5] = True, False
    found = []
    for positive, negative in pairs(scores, targets):
        costs = [max(0, 1 + n - p) for p in positive for n in negative]
        found.append(sum(costs) / (sum(c > 0 for c in costs) + 1e-8))
    close(ranking_loss(scores, targets), torch.tensor(found).mean())
    costs = [[math.log1p(math.exp(n - p)) for p in ps for n in ns] for ps, ns in pairs(scores, targets)]
    close(ranknet_loss(scores, targets), torch.tensor([sum(c) / max(1, len(c)) for c in costs]).mean())


def test_sdl_is_its_formula(batch):
    tokens, vectors, labels, targets = batch
    model = build(SDL, labels)
    weight, costs = model.directions.weight.view(7, 128, 128), []
    scores = model(tokens, vectors, labels)
    for image, row, target in zip(tokens, scores, targets):
        a = torch.stack([w @ image.mean(0) for w in weight])
        close(row, torch.stack([torch.stack([a_k @ w for a_k in a]).max() for w in labels]))
        own = labels[target]
        spread = own.var(0).sum() if len(own) > 1 else 0
        pair = sum(F.softplus(n - p) for p in row[target] for n in row[~target]) / len(own)
        costs.append(2 * (0.7 * (1 + spread) * pair + 0.3 * a.var(0).sum()))
    close(model.loss(tokens, vectors, labels, targets), torch.stack(costs).mean())


def test_attention_per_label_is_its_formula(batch):
    tokens, vectors, labels, _ = batch
    model = build(AttentionPerLabel, labels)
    for image, row in zip(tokens, model(tokens, vectors, labels)):
        for w, score in zip(labels, row):
            a = torch.stack([h @ model.u.weight.T @ w for h in image]).softmax(0)
            close(score, sum(a_r * h for a_r, h in zip(a, image)) @ model.v.weight.T @ w)


def test_lesa_is_its_formulas(batch):
    tokens, vectors, labels, targets = batch
    model = build(LESA, labels)
    h = model.norm(model.first(tokens).transpose(1, 2)).transpose(1, 2)
    e = torch.stack([torch.stack([model.attention(model.hidden(r).tanh()) for r in image]) for image in h])  # [B, N, M]
    w = labels @ model.classifier.weight.T
    each = torch.einsum("bnm,bnc,lc->bml", e.softmax(1), h, w)
    scores, mean = each.amax(1), h.mean(1) @ w.T
    close(model(tokens, vectors, labels), scores)
    spread = sum(sum(each[b].softmax(0)[m][targets[b]].sum() ** 2 for m in range(10)) for b in range(4)) / 40
    better = sum(max(0, (mean - scores)[b, c] * (1 if targets[b, c] else -1)) for b in range(4) for c in range(12))
    cosines = F.cosine_similarity(e[..., None], e[..., None, :], dim=1)  # [B, M, M]
    apart = sum(cosines[b, m, n] ** 2 for b in range(4) for m in range(10) for n in range(10) if m != n) ** 0.5
    expected = ranking_loss(scores, targets) + 0.1 * spread + 0.001 * better + 0.01 * apart
    close(model.loss(tokens, vectors, labels, targets), expected)


def test_mkt_divides_by_the_norm_over_labels(batch):
    tokens, vectors, labels, targets = batch
    model = build(MKT, labels)
    local, whole = (tokens @ labels.T).amax(1), vectors @ labels.T  # the highest of 5, as 16 of 196 is 0.4 of them
    each = [s / s.norm(dim=1, keepdim=True) for s in (local, whole)]
    scores = model(tokens, vectors, labels)
    close(scores, (each[0] + each[1]) / 2)
    close(model.loss(tokens, vectors, labels, targets), ranking_loss(scores, targets))  # d is CLIP's own at the start


def test_softmax_pooling_is_its_formula(batch):
    tokens, vectors, labels, _ = batch
    model = build(partial(PerPatch, hidden=8), labels)
    for image, row in zip(tokens, model(tokens, vectors, labels)):
        cosine = F.cosine_similarity(model.map(image)[:, None], labels, dim=-1)  # [N, L]
        close(row, 10 * ((10 * cosine).softmax(0) * cosine).sum(0) - 5)


def test_biam_takes_its_best_tokens(batch):
    tokens, vectors, labels, _ = batch
    model = build(BiAM, labels)
    each = torch.einsum("bnc,lc->bnl", model.embed(tokens.repeat(1, 13, 1), vectors), model.classifier(labels))  # 65
    close(model(tokens.repeat(1, 13, 1), vectors, labels), each.sort(1, descending=True).values[:, :2].mean(1))


def test_dualcoop_asks_with_and_without(batch):
    """Its first context starts as the prompt's words, so t+ is CLIP's own; its score is a pooled difference."""
    tokens, vectors, labels, _ = batch
    ids = DualCoOp.encode(Config(device="cpu"), NAMES)
    model = build(DualCoOp, labels)
    positive, negative = model.texts(ids)
    close(positive, encode_labels([f"{name}." for name in NAMES]))
    where = torch.cat([F.normalize(tokens, dim=-1), vectors[:, None]], 1)
    a = (20 * where @ positive.T).softmax(1)
    close(model(tokens, vectors, ids), 5 * ((20 * where @ positive.T - 20 * where @ negative.T) * a).sum(1))


def test_transport_moves_all_mass_as_cheaply_as_it_can():
    cost, mass = torch.rand(2, 4, 6), torch.rand(2, 4).softmax(-1)
    plan = sinkhorn(cost, mass, 0.1, rounds=1000, tolerance=0)
    close(plan.sum(2), mass)
    close(plan.sum(1), torch.full((2, 6), 1 / 6))
    potentials = (0.1 * plan.log() + cost).double()  # f_r + g_c, where the plan is the best one
    mixed = potentials - potentials[:, :1] - potentials[:, :, :1] + potentials[:, :1, :1]
    close(mixed, torch.zeros_like(mixed), atol=1e-4, rtol=0)


def test_recover_and_match_is_its_formula(batch):
    tokens, vectors, labels, targets = batch
    model = build(RecoverAndMatch, labels)
    q = F.cosine_similarity(tokens[:, :, None], labels, dim=-1)
    plan = sinkhorn(1 - (100 * q).softmax(-1), (q.amax(-1) / 0.1).softmax(-1), 0.1)
    matched, whole = 12 * (plan * q).sum(1) / 0.2, 100 * vectors @ labels.T
    close(model(tokens, vectors, labels), (matched.softmax(1) + whole.softmax(1)) / 2)
    every = whole.exp().sum()
    close(mmc_loss(whole, targets), -torch.stack([(x.exp() / every).log() for x in whole[targets]]).mean(), rtol=1e-3)


def test_conse_with_one_label_is_that_label(batch):
    tokens, vectors, labels, _ = batch
    model = CONSE(sizes(labels[:8]), top=1)
    best = (model.classifier.weight @ (10 * vectors).T).T.add(model.classifier.bias).argmax(1)
    close(model(tokens, vectors, labels), labels[best] @ labels.T)


class Scenes:
    """Images whose tokens are vectors of their labels, turned, with noise; the global vector is the mean."""

    def __init__(self, labels, turn, count=96):
        self.targets = torch.rand(count, len(labels)) < 0.15
        self.targets[torch.arange(count), torch.randint(len(labels), (count,))] = True
        shown = [t.nonzero().flatten().repeat(5)[:5] for t in self.targets]
        tokens = torch.stack([labels[each] for each in shown]) @ turn
        self.tokens = F.normalize(tokens + 0.02 * torch.randn(tokens.shape), dim=-1)

    def __len__(self):
        return len(self.targets)

    def batch(self, rows):
        tokens = self.tokens[rows]
        return tokens * 128**0.5, F.normalize(tokens.mean(1), dim=-1)


@pytest.mark.parametrize("name", ONE_PASS)
def test_a_method_learns_and_takes_its_seed(name):
    """Tokens are turned away from the label vectors, so that nothing is known at the start; but for DualCoOp, which
    cannot turn them back: there they stay, and it finds out what is present.
    """
    labels = encode_labels(NAMES)
    turn = torch.linalg.qr(torch.randn(128, 128)).Q if name != "dualcoop" else torch.eye(128)
    scenes = Scenes(labels, turn)
    asked = labels if name != "dualcoop" else DualCoOp.encode(Config(device="cpu"), NAMES)
    config = Config(epochs=8, lr=5e-3, batch_size=32, label_samples=0, ema_decay=0.5, device="cpu")
    quality = lambda model: 100 * average_precision(scores_of(model, scenes, asked), scenes.targets).mean().item()
    judge = lambda model: {"val_map": quality(model), "val_error": 0.0}
    def run(seed):
        torch.manual_seed(seed)
        model = METHODS[name](sizes(labels))
        before = scores_of(model, scenes, asked)
        found = learn(model, scenes, torch.arange(len(scenes)), scenes.targets, asked, judge, config)
        return before, scores_of(model, scenes, asked), found
    (before, scores, found), (_, again, _), (_, other, _) = run(0), run(0), run(1)
    ap = lambda scores: average_precision(scores, scenes.targets).mean().item()
    assert torch.equal(scores, again) and not torch.equal(scores, other)
    assert ap(scores) > ap(before) + 0.3 * (1 - ap(before))
    assert 100 * ap(scores) == pytest.approx(max(found["val_maps"]))


def test_what_is_judged_is_the_average_of_the_heads():
    """Its decay rises, so that a run of a few steps is not judged by what it started from."""
    labels, after, judged = encode_labels(NAMES), [], []
    model, scenes = LabelEM(sizes(labels)), Scenes(labels, torch.eye(128), 8)

    def judge(average):
        after.append(next(model.parameters()).detach().clone())
        judged.append(next(average.parameters()).detach().clone())
        return {"val_map": len(judged), "val_error": 0.0}

    config = Config(epochs=4, batch_size=8, lr=0.1, label_samples=0, ema_decay=0.9, device="cpu")  # a step an epoch
    learn(model, scenes, torch.arange(8), scenes.targets, labels, judge, config)
    expected = after[0]
    for decay, weights, found in zip((2 / 11, 3 / 12, 4 / 13), after[1:], judged[1:]):
        expected = decay * expected + (1 - decay) * weights
        close(found, expected)


def test_the_protocol_chooses_by_val_and_takes_its_seed(tiny, settings, tmp_path):
    config = settings(tmp_path, epochs=6, patience=2, lr=3e-3, label_samples=0, hold_out=0.1)
    (scores, found), (again, _) = (trained_scores(METHODS["sdl"], tiny, config) for _ in range(2))
    assert torch.equal(scores, again) and scores.shape == (60, 1006) and found["weights"] == 7 * 128 * 192
    values = found["val_maps"]
    assert found["val_map"] == values[found["best_epoch"] - 1]
    assert len(values) == min(6, values.index(max(values)) + 1 + 2)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    mixed = replace(tiny, test=replace(tiny.test, targets=tiny.test.targets[order]))
    assert torch.equal(trained_scores(METHODS["sdl"], mixed, config)[0], scores)  # test labels choose nothing


def test_methods_of_one_clip_say_what_they_need():
    with pytest.raises(ValueError, match="give image_tower and text_tower one CLIP"):
        MKT(Sizes(192, 128, 300, None, Config(device="cpu")))


def test_methods_get_tokens_and_vectors_of_one_length(tiny, settings, tmp_path):
    tower = ImageTower("mini")
    tokens, vectors = Images(tower, tiny.val, tiny, settings(tmp_path)).batch(torch.tensor([3, 29]))
    for i, image in enumerate((3, 29)):
        with torch.no_grad():
            token, vector = tower(tower.preprocess(tiny.val.image(image))[None])
        close(tokens[i], token[0] / token[0].norm(dim=-1, keepdim=True) * 192**0.5, rtol=0, atol=2e-2)
        close(vectors[i], vector[0] / vector[0].norm(), rtol=0, atol=1e-4)
