"""The swapped-in head is the plain one: logits, maps, gradients; and what it does otherwise."""

import copy
from itertools import product

import pytest
import torch

from clipdec import MLDecoder
from clipdec.decoder import MatchingDecoder
from clipdec.training import fast
from clipdec.training.fast import FasterDropout, make_fast

B, L, C, D, HEADS = 3, 7, 12, 6, 4
FEW, MANY = 4, 10  # tokens: the values are projected first where h N < N + d


@pytest.fixture(params=[MLDecoder, MatchingDecoder], ids=["ml_decoder", "matching"])
def heads(request):
    """(plain, fast): the same weights."""
    plain = request.param(C, D, embed_dim=16, num_heads=HEADS, ff_dim=24, dropout=0.2).eval()
    for p in plain.parameters():
        torch.nn.init.normal_(p, 0.1, 0.4)
    return plain, make_fast(copy.deepcopy(plain))


@pytest.fixture(params=[FEW, MANY], ids=["few", "many"])
def inputs(request):
    return torch.randn(B, request.param, C), torch.randn(L, D)


@pytest.mark.parametrize("pairs", [1, B, 2 * B, 3 * B + 1, 4096])
@pytest.mark.parametrize("grad", [False, True])
def test_logits_and_maps_are_those_of_the_plain_head(heads, inputs, monkeypatch, pairs, grad):
    monkeypatch.setattr(fast, "PAIRS", pairs)
    with torch.set_grad_enabled(grad):
        expected, found = (head(*inputs, need_attention=True) for head in heads)
        torch.testing.assert_close((*found, heads[1](*inputs)), (*expected, expected[0]), rtol=0, atol=1e-5)


def test_gradients_are_those_of_the_plain_head(heads, inputs):
    for head in heads:
        head.train().dropout.p = 0.0
        head(*inputs).square().sum().backward()
    expected, found = ({name: p.grad for name, p in head.named_parameters()} for head in heads)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_a_swapped_head_is_of_its_kind_and_can_be_copied(heads):
    plain, swapped = heads
    again = copy.deepcopy(swapped)
    assert isinstance(swapped, type(plain)) and type(swapped).__name__ == type(plain).__name__
    assert type(again) is type(swapped) and isinstance(again.dropout, FasterDropout) and again.dropout.p == 0.2
    assert again.state_dict().keys() == plain.state_dict().keys()


def test_dropout_acts_on_the_weights_in_training_only(heads, inputs):
    _, head = heads
    assert torch.equal(head(*inputs), head(*inputs))
    x, k, v = torch.randn(1, L, 16), *torch.randn(2, B, HEADS, inputs[0].shape[1], 4)
    assert not torch.allclose(head.train().attend(x, k, v)[0], head.attend(x, k, v)[0])
    assert torch.equal(head.attend(x, k, v)[1], head.attend(x, k, v)[1])  # maps are without


def test_no_labels_no_images(heads):
    for head, (images, labels) in product(heads, ((0, 3), (2, 0))):
        with torch.no_grad():
            assert head(torch.randn(images, MANY, C), torch.randn(labels, D)).shape == (images, labels)


# ---- dropout ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_is_distributed_as_torchs(p):
    x = torch.ones(400, 1003)
    out = FasterDropout(p).train()(x)
    values, counts = out.unique(return_counts=True)
    torch.testing.assert_close(values, torch.tensor([0.0, 1 / (1 - p)]))
    n = x.numel()
    assert abs(counts[0].item() / n - p) < 5 * (p * (1 - p) / n) ** 0.5 + 1e-4
    kept = (out > 0).float()
    quarters = kept[:, ::4][:, :250], kept[:, 3::4][:, :250]
    for a, b in ((kept[:, :-1], kept[:, 1:]), (kept[:-1], kept[1:]), quarters):  # neighbours are independent
        assert abs(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]) < 5 / a.numel() ** 0.5


def test_dropout_passes_gradients_where_it_keeps():
    x = torch.randn(50, 7, requires_grad=True)
    out = FasterDropout(0.3).train()(x)
    out.sum().backward()
    torch.testing.assert_close(x.grad, torch.where(out != 0, 1 / 0.7, 0.0))


def test_dropout_is_seeded_and_off_in_evaluation():
    x, layer = torch.ones(1000), FasterDropout(0.4).train()
    torch.manual_seed(3)
    first = layer(x)
    torch.manual_seed(3)
    assert torch.equal(layer(x), first) and not torch.equal(layer(x), first)
    assert torch.equal(layer.eval()(x), x) and torch.equal(FasterDropout(0.0).train()(x), x)
