"""The closed-set head against timm's copy of the reference code."""

import pytest
import torch
from timm.layers import ml_decoder as timm_decoder
from torch import nn

from clipdec.reference import GroupMLDecoder

B, N, C = 3, 10, 12


@pytest.mark.parametrize("classes, queries", [(23, 5), (20, 5), (7, 100), (1, 1)])
def test_groups_equal_timms_decoder(classes, queries):
    theirs = timm_decoder.MLDecoder(classes, num_of_groups=queries, decoder_embedding=64, initial_num_features=C).eval()
    nn.init.normal_(theirs.duplicate_pooling_bias)
    ours = GroupMLDecoder(C, classes, queries, embed_dim=64).eval()
    ours.load_reference_state_dict(theirs.state_dict())
    tokens = torch.randn(B, N, C)
    # timm's forward, but for nn.TransformerDecoder, which no longer accepts the layer
    memory = theirs.embed_standart(tokens).relu().transpose(0, 1)
    decoded = theirs.decoder.layers[0](theirs.query_embed.weight[:, None].expand(-1, B, -1), memory)  # [Q, B, 64]
    groups = (decoded @ theirs.duplicate_pooling).transpose(0, 1).flatten(1)[:, :classes]
    logits, maps = ours(tokens, need_attention=True)
    assert logits.shape == (B, classes) and maps.shape == (B, min(queries, classes), N)
    torch.testing.assert_close(logits, groups + theirs.duplicate_pooling_bias, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours(tokens), logits, rtol=0, atol=1e-5)


def test_groups_are_trained():
    head = GroupMLDecoder(C, 23, 5, embed_dim=16, num_heads=4, ff_dim=24).train()
    head(torch.randn(B, N, C)).square().sum().backward()
    assert all(p.grad.abs().max() > 0 for name, p in head.named_parameters() if name != "attention_k.bias")
    assert "query_embed" not in dict(head.named_parameters())  # fixed, as in the reference code
