"""The heads against a composition of PyTorch's own modules, and by hand."""

import shutil

import pytest
import torch
from timm.layers.ml_decoder import TransformerDecoderLayerOptimal
from torch import nn

from clipdec import MLDecoder
from clipdec.decoder import MatchingDecoder, from_reference

B, N, L, C, D = 3, 10, 7, 12, 6
SIZES = {"embed_dim": 16, "num_heads": 4, "ff_dim": 24}
close = lambda found, expected, atol=1e-5: torch.testing.assert_close(found, expected, rtol=0, atol=atol)
needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs a C++ compiler")


@pytest.fixture
def head():
    head = MLDecoder(C, D, **SIZES, dropout=0.2).eval()
    for norm in (head.norm1, head.norm2, head.norm3):  # fresh norms are the identity and would hide a mistake
        nn.init.normal_(norm.weight, 1, 0.3)
        nn.init.normal_(norm.bias, 0, 0.3)
    return head


@pytest.fixture
def inputs():
    return torch.randn(B, N, C), torch.randn(L, D)


@torch.no_grad()
def torch_attention(head):
    """nn.MultiheadAttention with the weights of the head."""
    attention = nn.MultiheadAttention(16, 4, batch_first=True).eval()
    projections = (head.attention_q, head.attention_k, head.attention_v)
    attention.in_proj_weight.copy_(torch.cat([p.weight for p in projections]))
    attention.in_proj_bias.copy_(torch.cat([p.bias for p in projections]))
    attention.out_proj.load_state_dict(head.attention_out.state_dict())
    return attention


def reference(head, tokens, queries):
    """(logits, averaged attention weights): the layer of the ML-Decoder paper."""
    t = head.token_proj(tokens).relu()
    q = head.query_proj(queries).relu().repeat(len(tokens), 1, 1)
    x = head.norm1(q + q)
    attended, weights = torch_attention(head)(x, t, t, need_weights=True, average_attn_weights=True)
    x = head.norm2(x + attended)
    x = head.norm3(x + head.linear2(head.linear1(x).relu()))
    return head.output(x)[..., 0], weights


def test_logits_and_maps_equal_the_reference(head, inputs):
    logits, maps = head(*inputs, need_attention=True)
    expected, weights = reference(head, *inputs)
    assert logits.shape == (B, L) and maps.shape == (B, L, N)
    close(logits, expected)
    close(head(*inputs), logits)
    close(maps, weights, 1e-6)
    torch.testing.assert_close(maps.sum(-1), torch.ones(B, L))


def test_embed_then_decode_is_forward(head, inputs):
    embedded = head.embed(inputs[0])
    assert embedded.shape == (B, N, 16) and embedded.min() >= 0
    close(head.decode(embedded, inputs[1]), head(*inputs), 0)


def test_each_label_and_each_image_is_independent_of_the_others(head, inputs):
    tokens, queries = inputs
    together = head(tokens, queries)
    close(together, torch.cat([head(tokens, queries[i : i + 1]) for i in range(L)], dim=1))
    order = torch.randperm(L)
    close(head(tokens, queries[order]), together[:, order])
    close(together, torch.cat([head(tokens[i : i + 1], queries) for i in range(B)]))


def test_the_order_of_tokens_does_not_matter(head, inputs):
    (tokens, queries), order = inputs, torch.randperm(N)
    logits, maps = head(tokens, queries, need_attention=True)
    permuted, permuted_maps = head(tokens[:, order], queries, need_attention=True)
    close(permuted, logits)
    close(permuted_maps, maps[:, :, order])


def test_another_number_of_labels_and_tokens(head):
    assert head(torch.randn(1, 1, C), torch.randn(1, D)).shape == (1, 1)
    assert head(torch.randn(2, 49, C), torch.randn(300, D)).shape == (2, 300)
    assert head(torch.randn(0, 49, C), torch.randn(5, D)).shape == (0, 5)


@pytest.mark.parametrize("need_attention", [False, True])
def test_dropout_acts_in_training_only(head, inputs, need_attention):
    logits = lambda: head(*inputs, need_attention=True)[0] if need_attention else head(*inputs)
    assert torch.equal(logits(), logits())
    head.train()
    assert not torch.allclose(logits(), logits())


def test_images_have_dropout_masks_of_their_own(head, inputs):
    logits = head.train()(inputs[0][:1].expand(B, -1, -1), inputs[1])
    assert not torch.allclose(logits[0], logits[1])


def test_without_dropout_training_equals_evaluation(inputs):
    head = MLDecoder(C, D, **SIZES, dropout=0.0)
    close(head.train()(*inputs), head.eval()(*inputs), 1e-6)


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
    layers = (C, 16), (D, 16), *[(16, 16)] * 4, (16, 24), (24, 16), (16, 1)  # and three norms
    expected = sum((i + 1) * o for i, o in layers) + 3 * 2 * 16
    assert L not in sizes and sum(p.numel() for p in head.parameters()) == expected


def test_defaults_are_the_papers():
    head = MLDecoder(4, 5)
    assert head.token_proj.out_features == head.query_proj.out_features == 768
    assert (head.num_heads, head.linear1.out_features, head.dropout.p) == (8, 2048, 0.1)


def test_embed_dim_must_be_a_multiple_of_heads():
    with pytest.raises(ValueError, match="multiple of the 8 heads, got 20"):
        MLDecoder(C, D, embed_dim=20)


class ReferenceDecoder(nn.Module):
    """The head of the reference code in its zero-shot form, with its names; its layer is timm's copy."""

    def __init__(self):
        super().__init__()
        self.wordvec_proj = nn.Linear(D, 16)
        self.decoder = nn.Module()
        self.decoder.layers = nn.ModuleList([TransformerDecoderLayerOptimal(16, nhead=4, dim_feedforward=24)])
        self.decoder.embed_standart = nn.Linear(C, 16)
        self.decoder.duplicate_pooling = nn.Parameter(torch.randn(16, 1))
        self.decoder.duplicate_pooling_bias = nn.Parameter(torch.randn(1))

    def forward(self, tokens, queries):
        memory = self.decoder.embed_standart(tokens).relu().transpose(0, 1)
        target = self.wordvec_proj(queries).relu()[:, None].expand(-1, len(tokens), -1)
        decoded = self.decoder.layers[0](target, memory).transpose(0, 1)
        return (decoded @ self.decoder.duplicate_pooling).flatten(1) + self.decoder.duplicate_pooling_bias


@pytest.fixture
def original():
    original = ReferenceDecoder().eval()
    for p in original.parameters():
        nn.init.normal_(p, 0.1, 0.4)
    return original


@pytest.mark.parametrize("prefix", ["", "head.", "module.head.", "module."])
def test_reference_weights_give_the_reference_logits(original, inputs, prefix):
    head = MLDecoder(C, D, **SIZES).eval()
    state = {prefix + name: value for name, value in original.state_dict().items()}
    state |= {"body.layer1.0.conv1.weight": torch.ones(3)} if prefix.endswith("head.") else {}
    head.load_reference_state_dict(state)
    close(head(*inputs), original(*inputs))


def test_gradients_equal_those_of_the_reference(original, inputs):
    head = MLDecoder(C, D, **SIZES).eval()
    head.load_reference_state_dict(original.state_dict())
    weights = torch.randn(B, L)
    for module in (head, original):
        (module(*inputs).tanh() * weights).sum().backward()
    theirs = from_reference({name: p.grad for name, p in original.named_parameters()})
    found = {name: p.grad for name, p in head.named_parameters()}
    assert theirs.keys() == found.keys()
    for name in found.keys() - {"attention_k.bias"}:  # which is 0 but for rounding
        expected = theirs[name].reshape(found[name].shape)
        assert (found[name] - expected).norm() <= 1e-4 * expected.norm(), name


def test_reference_weights_without_a_query_projection(original, inputs):
    state = {name: value for name, value in original.state_dict().items() if not name.startswith("wordvec_proj")}
    head = MLDecoder(C, 16, **SIZES).eval()
    head.load_reference_state_dict(state)
    original.wordvec_proj, queries = nn.Identity(), torch.randn(L, 16)
    close(head(inputs[0], queries), original(inputs[0], queries))


@pytest.mark.parametrize("missing", ["embed_standart.weight", "multihead_attn.in_proj_bias", "norm3.bias"])
def test_reference_weights_that_lack_a_tensor(original, missing):
    state = {name: value for name, value in original.state_dict().items() if not name.endswith(missing)}
    with pytest.raises(ValueError, match="(?s)do not fit this MLDecoder.*Missing key"):
        MLDecoder(C, D, **SIZES).load_reference_state_dict(state)


def test_reference_weights_of_another_size(original):
    with pytest.raises(ValueError, match="(?s)do not fit this MLDecoder.*size mismatch"):
        MLDecoder(C, D, **SIZES | {"embed_dim": 32}).load_reference_state_dict(original.state_dict())
    with pytest.raises(ValueError, match="not weights of the ML-Decoder reference"):
        MLDecoder(C, D).load_reference_state_dict({"fc.weight": torch.ones(2)})


def matching(**changes):
    made = MatchingDecoder(C, D, **SIZES, **changes).eval()
    torch.manual_seed(3)
    for p in made.parameters():
        nn.init.normal_(p, std=0.4)
    made.centre_on(torch.randn(20, D))
    return made


def by_hand(made, tokens, queries):
    """The formulas of the docstring, with torch's own attention, one label of one image at a time."""
    attention, logits = torch_attention(made), torch.empty(len(tokens), len(queries))
    for i, image in enumerate(tokens):
        t = image @ made.token_proj.weight.T + made.token_proj.bias
        for j, query in enumerate(queries):
            u = nn.functional.normalize(query - made.query_mean, dim=0)
            x = made.norm1(2 * (u @ made.query_proj.weight.T + made.query_proj.bias))
            x = made.norm2(x + attention(x[None, None], t[None], t[None])[0][0, 0])
            x = made.norm3(x + made.linear2(made.linear1(x).clamp(min=0)))
            output = made.output.weight[0] + (made.label_output.weight @ u if made.label_output is not None else 0)
            logits[i, j] = (x * output).sum() + made.output.bias
    return logits


@pytest.mark.parametrize("match", [True, False])
@torch.no_grad()
def test_matching_logits_are_those_of_the_formulas(match, inputs):
    made = matching(match=match)
    close(made(*inputs), by_hand(made, *inputs))


def test_it_starts_with_one_output_for_all_labels_and_learns_others(inputs):
    plain, made = (MatchingDecoder(C, D, **SIZES, dropout=0.0) for _ in range(2))
    logits = plain(*inputs)
    plain.label_output = None
    close(plain(*inputs), logits)
    made(*inputs).square().sum().backward()
    assert made.label_output.weight.grad.abs().sum() > 0
    assert "query_mean" in made.state_dict() and "query_mean" not in dict(made.named_parameters())


@torch.no_grad()
def test_what_all_labels_share_does_not_count(inputs):
    made, (tokens, queries) = matching(), inputs
    before, shift = made(tokens, queries), torch.randn(D)
    made.query_mean += shift
    close(made(tokens, queries + shift), before)
    plain = MLDecoder(C, D, **SIZES).eval()
    assert not torch.allclose(plain(tokens, queries + shift), plain(tokens, queries), atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("train", [False, True])
def test_mixed_precision(head, inputs, dtype, train):
    head.dropout.p = 0.0
    expected = head.train(train)(*inputs)
    with torch.autocast("cpu", dtype):
        logits = head(*inputs)
    assert (logits - expected).abs().max() < 0.05 * expected.abs().max()
    logits.float().square().sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.dtype == torch.float32 for p in head.parameters())
    with torch.autocast("cpu", dtype):  # with dropout
        head.dropout.p = 0.2
        assert head(*inputs).isfinite().all()


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=needs_compiler)])
def test_compiled_head(head, inputs, backend):
    compiled = torch.compile(head, backend=backend, fullgraph=True)
    close(compiled(*inputs), head(*inputs))
    with torch.no_grad():
        close(compiled(*inputs), head(*inputs))
    head.train()
    assert compiled(*inputs).isfinite().all()
    compiled(*inputs).sum().backward()
    assert head.query_proj.weight.grad.abs().max() > 0
    torch.compiler.reset()
