"""The ML-Decoder head against a composition of PyTorch's own modules."""

import pytest
import torch
from torch import nn

from clipdec import MLDecoder

B, N, L, C, D = 3, 10, 7, 12, 6


@pytest.fixture
def head():
    head = MLDecoder(C, D, embed_dim=16, num_heads=4, ff_dim=24, dropout=0.2).eval()
    for norm in (head.norm1, head.norm2, head.norm3):  # fresh norms are the identity and would hide a mistake
        nn.init.normal_(norm.weight, 1, 0.3)
        nn.init.normal_(norm.bias, 0, 0.3)
    return head


@pytest.fixture
def inputs():
    return torch.randn(B, N, C), torch.randn(L, D)


def reference(head, tokens, queries):
    """(logits, averaged attention weights): the layer of the ML-Decoder paper, from nn.MultiheadAttention."""
    attention = nn.MultiheadAttention(16, 4, batch_first=True).eval()
    with torch.no_grad():
        projections = (head.attention_q, head.attention_k, head.attention_v)
        attention.in_proj_weight.copy_(torch.cat([p.weight for p in projections]))
        attention.in_proj_bias.copy_(torch.cat([p.bias for p in projections]))
        attention.out_proj.load_state_dict(head.attention_out.state_dict())
    t = head.token_proj(tokens).relu()
    q = head.query_proj(queries).relu().repeat(len(tokens), 1, 1)
    x = head.norm1(q + q)
    attended, weights = attention(x, t, t, need_weights=True, average_attn_weights=True)
    x = head.norm2(x + attended)
    x = head.norm3(x + head.linear2(head.linear1(x).relu()))
    return head.output(x)[..., 0], weights


def test_logits_and_maps_equal_the_reference(head, inputs):
    logits, maps = head(*inputs, need_attention=True)
    expected, weights = reference(head, *inputs)
    assert logits.shape == (B, L) and maps.shape == (B, L, N)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(maps, weights, rtol=0, atol=1e-6)
    torch.testing.assert_close(maps.sum(-1), torch.ones(B, L))


def test_asking_for_attention_changes_no_logit(head, inputs):
    torch.testing.assert_close(head(*inputs), head(*inputs, need_attention=True)[0], rtol=0, atol=1e-5)


def test_embed_then_decode_is_forward(head, inputs):
    tokens, queries = inputs
    embedded = head.embed(tokens)
    assert embedded.shape == (B, N, 16) and embedded.min() >= 0
    torch.testing.assert_close(head.decode(embedded, queries), head(tokens, queries), rtol=0, atol=0)


def test_each_label_is_independent_of_the_others(head, inputs):
    tokens, queries = inputs
    together = head(tokens, queries)
    alone = torch.cat([head(tokens, queries[i : i + 1]) for i in range(L)], dim=1)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    order = torch.randperm(L)
    torch.testing.assert_close(head(tokens, queries[order]), together[:, order], rtol=0, atol=1e-5)


def test_each_image_is_independent_of_the_others(head, inputs):
    tokens, queries = inputs
    alone = torch.cat([head(tokens[i : i + 1], queries) for i in range(B)])
    torch.testing.assert_close(head(tokens, queries), alone, rtol=0, atol=1e-5)


def test_the_order_of_tokens_does_not_matter(head, inputs):
    tokens, queries = inputs
    order = torch.randperm(N)
    logits, maps = head(tokens, queries, need_attention=True)
    permuted, permuted_maps = head(tokens[:, order], queries, need_attention=True)
    torch.testing.assert_close(permuted, logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(permuted_maps, maps[:, :, order], rtol=0, atol=1e-5)


def test_another_number_of_labels_and_tokens(head):
    assert head(torch.randn(1, 1, C), torch.randn(1, D)).shape == (1, 1)
    assert head(torch.randn(2, 49, C), torch.randn(300, D)).shape == (2, 300)
    assert head(torch.randn(0, 49, C), torch.randn(5, D)).shape == (0, 5)


@pytest.mark.parametrize("need_attention", [False, True])
def test_dropout_acts_in_training_only(head, inputs, need_attention):
    def logits():
        out = head(*inputs, need_attention=need_attention)
        return out[0] if need_attention else out

    assert torch.equal(logits(), logits())
    head.train()
    assert not torch.allclose(logits(), logits())


def test_images_have_dropout_masks_of_their_own(head, inputs):
    tokens, queries = inputs
    head.train()
    logits = head(tokens[:1].expand(B, -1, -1), queries)
    assert not torch.allclose(logits[0], logits[1])


def test_without_dropout_training_equals_evaluation(inputs):
    head = MLDecoder(C, D, embed_dim=16, num_heads=4, ff_dim=24, dropout=0.0)
    torch.testing.assert_close(head.train()(*inputs), head.eval()(*inputs), rtol=0, atol=1e-6)


def test_gradients_reach_all_parameters(head, inputs):
    tokens, queries = (x.requires_grad_() for x in inputs)
    head.train()(tokens, queries).square().sum().backward()
    for name, p in head.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), name
        if name != "attention_k.bias":  # it shifts all scores of a query alike, so softmax takes it out
            assert p.grad.abs().max() > 1e-6, name
    assert tokens.grad.abs().max() > 0 and queries.grad.abs().max() > 0


def test_labels_are_no_weights(head):
    sizes = {p.shape[0] for p in head.parameters()}
    assert L not in sizes and sum(p.numel() for p in head.parameters()) == sum(
        (i + 1) * o for i, o in ((C, 16), (D, 16), *[(16, 16)] * 4, (16, 24), (24, 16), (16, 1))
    ) + 3 * 2 * 16


def test_defaults_are_the_papers():
    head = MLDecoder(4, 5)
    assert head.token_proj.out_features == head.query_proj.out_features == 768
    assert (head.num_heads, head.linear1.out_features, head.dropout.p) == (8, 2048, 0.1)


def test_embed_dim_must_be_a_multiple_of_heads():
    with pytest.raises(ValueError, match="multiple of the 8 heads, got 20"):
        MLDecoder(C, D, embed_dim=20)
