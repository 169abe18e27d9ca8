"""The default head: its logits by hand, its outputs by label, and CLIP's own answer beside it."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from clipdec import MLDecoder, decoder, encode_labels, fit, load_run
from clipdec.training import run as training
from clipdec.training.tokens import encode_images
from clipdec.training.scores import predict
from clipdec.training.tokens import encoded
from clipdec.decoder import MatchingDecoder
from clipdec.model import CLIPDecoder
from clipdec.training.build import build_model, uses_clip
from clipdec.towers import ImageTower, load_clip

B, N, C, D, L, WIDTH = 3, 5, 6, 7, 11, 16


def head(**changes):
    made = MatchingDecoder(C, D, embed_dim=WIDTH, num_heads=4, ff_dim=24, **changes).eval()
    torch.manual_seed(3)
    for p in made.parameters():
        torch.nn.init.normal_(p, std=0.4)
    made.centre_on(torch.randn(20, D))
    return made


def by_hand(made, tokens, queries):
    """The formulas of the docstring, with torch's own attention, one label of one image at a time."""
    attention = torch.nn.MultiheadAttention(WIDTH, 4, batch_first=True)
    parts = [made.attention_q, made.attention_k, made.attention_v]
    attention.in_proj_weight.data, attention.in_proj_bias.data = (torch.cat([getattr(p, n) for p in parts]).data for n in ("weight", "bias"))
    attention.out_proj.weight.data, attention.out_proj.bias.data = made.attention_out.weight.data, made.attention_out.bias.data
    logits = torch.empty(len(tokens), len(queries))
    for i, image in enumerate(tokens):
        t = image @ made.token_proj.weight.T + made.token_proj.bias
        for j, query in enumerate(queries):
            u = query - made.query_mean
            u = u / u.norm()
            x = made.norm1(2 * (u @ made.query_proj.weight.T + made.query_proj.bias))
            x = made.norm2(x + attention(x[None, None], t[None], t[None])[0][0, 0])
            x = made.norm3(x + made.linear2(made.linear1(x).clamp(min=0)))
            output = made.output.weight[0] + (made.label_output.weight @ u if made.label_output is not None else 0)
            logits[i, j] = (x * output).sum() + made.output.bias
    return logits


@pytest.mark.parametrize("match", [True, False])
@torch.no_grad()
def test_logits_are_those_of_the_formulas(match, monkeypatch):
    made, tokens, queries = head(match=match), torch.randn(B, N, C), torch.randn(L, D)
    expected = by_hand(made, tokens, queries)
    torch.testing.assert_close(made(tokens, queries), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(made(tokens, made.prepare(queries)), expected, rtol=0, atol=1e-5)
    monkeypatch.setattr(decoder, "CHUNK", 2 * B)  # two labels at a time
    for asked in (queries, made.prepare(queries)):
        torch.testing.assert_close(made(tokens, asked), expected, rtol=0, atol=1e-5)
    with torch.enable_grad():
        torch.testing.assert_close(made(tokens, queries).detach(), expected, rtol=0, atol=1e-5)


def test_it_starts_with_one_output_for_all_labels_and_learns_others():
    made = MatchingDecoder(C, D, embed_dim=WIDTH, num_heads=4, ff_dim=24, dropout=0.0)
    tokens, queries = torch.randn(B, N, C), torch.randn(L, D)
    prepared = made.prepare(queries)
    assert torch.equal(prepared.output, made.output.weight.expand(L, -1))
    made(tokens, queries).square().sum().backward()
    assert made.label_output.weight.grad.abs().sum() > 0
    assert "query_mean" in made.state_dict() and "query_mean" not in dict(made.named_parameters())


@torch.no_grad()
def test_what_all_labels_share_does_not_count():
    made, tokens, queries = head(), torch.randn(B, N, C), torch.randn(L, D)
    before = made(tokens, queries)
    shift = torch.randn(D)
    made.query_mean += shift
    torch.testing.assert_close(made(tokens, queries + shift), before, rtol=0, atol=1e-5)
    plain = MLDecoder(C, D, embed_dim=WIDTH, num_heads=4, ff_dim=24).eval()
    assert not torch.allclose(plain(tokens, queries + shift), plain(tokens, queries), atol=1e-3)


# ---- CLIP's own answer ------------------------------------------------------------------------------------------


def mini_model(head="residual"):
    references = encode_labels(["dog face", "pizza", "key", "castle"])
    return CLIPDecoder(ImageTower("mini"), references, 8, 16, head=head).eval()


@torch.no_grad()
def test_clip_evidence_is_the_softmax_over_the_labels_in_training(tiny):
    model, queries = mini_model(), encode_labels(["tiger", "pizza"])
    clip = load_clip("mini")
    model.clip_scale.copy_(clip.model.logit_scale.exp())
    image = clip.preprocess(tiny.test.image(0))[None]
    cosines = lambda names: F.cosine_similarity(clip.model.encode_image(image), encode_labels(names))
    scale = clip.model.logit_scale.exp()
    sums = (scale * cosines(["dog face", "pizza", "key", "castle"])).exp().sum()
    expected = ((scale * cosines(["tiger", "pizza"])).exp() / sums).log()
    torch.testing.assert_close(model.clip_evidence(model.tower(image)[1], queries)[0], expected, rtol=0, atol=1e-4)
    alone = model.clip_evidence(model.tower(image)[1], queries[:1])
    torch.testing.assert_close(alone[0, 0], expected[0], rtol=0, atol=1e-4)  # whatever else is asked


@torch.no_grad()
def test_scores_are_logits_and_the_weighted_evidence(tiny):
    model, queries = mini_model(), encode_labels(["tiger", "pizza"])
    kept = encode_images(model.tower, tiny.test)
    tokens, vectors = kept[0][:], kept[1][:]
    assert torch.equal(model.score(tokens, vectors, queries), model(tokens, queries))
    model.clip_weight.fill_(0.3)
    expected = model(tokens, queries) + 0.3 * model.clip_evidence(vectors, queries)
    torch.testing.assert_close(model.score(tokens, vectors, queries), expected)
    scores, maps = model.score(tokens[:2], vectors[:2], queries, need_attention=True)
    torch.testing.assert_close(scores, expected[:2], rtol=0, atol=1e-5)
    torch.testing.assert_close(maps.sum(-1), torch.ones(2, 2))
    for given in (kept, None):  # cached, and encoded anew
        torch.testing.assert_close(predict(model, tiny.test, queries, given), expected, rtol=0, atol=2e-2)


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

    def scores(model, split, data, config):
        asked.append(split.name)
        return torch_scores + model.clip_weight * evidence * split.targets

    monkeypatch.setattr(training, "split_scores", scores)
    assert least <= training.choose_clip_weight(model, tiny, config) <= most
    assert set(asked) == {"val"}
    assert training.choose_clip_weight(model, tiny, dataclasses.replace(config, hold_out=0.0)) == 0  # nothing to choose by


def test_a_run_keeps_weight_and_references(tiny, settings, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CLIP_WEIGHTS", (0.5,))
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
