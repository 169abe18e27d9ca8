"""CLIPDecoder: CLIP's own answer beside the head's, and a frozen tower that is no part of what is saved."""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_equal
from safetensors.torch import load_file, load_model, save_model

from clipdec import CLIPDecoder, encode_labels
from clipdec.towers import ImageTower, load_clip
from clipdec.training.scores import predict
from clipdec.training.tokens import encode_images

TRAINED = ["dog face", "pizza", "key", "castle"]


@pytest.fixture
def model():
    return CLIPDecoder(ImageTower("mini"), encode_labels(TRAINED), 8, 16, head="residual").eval()


@pytest.fixture
def queries():
    return encode_labels(["tiger", "pizza"])


@torch.no_grad()
def test_clip_evidence_is_the_softmax_over_the_labels_in_training(tiny, model, queries):
    clip = load_clip("mini")
    scale, image = clip.model.logit_scale.exp(), clip.preprocess(tiny.test.image(0))[None]
    model.clip_scale.copy_(scale)
    vector = clip.model.encode_image(image)
    asked, trained = ((scale * F.cosine_similarity(vector, x)).exp() for x in (queries, encode_labels(TRAINED)))
    expected = (asked / trained.sum()).log()
    torch.testing.assert_close(model.clip_evidence(model.tower(image)[1], queries)[0], expected, rtol=0, atol=1e-4)
    alone = model.clip_evidence(model.tower(image)[1], queries[:1])
    torch.testing.assert_close(alone[0, 0], expected[0], rtol=0, atol=1e-4)  # whatever else is asked


@torch.no_grad()
def test_scores_are_logits_and_the_weighted_evidence(tiny, model, queries):
    kept = encode_images(model.tower, tiny.val)
    tokens, vectors = kept[0][:], kept[1][:]
    assert torch.equal(model.score(tokens, vectors, queries), model(tokens, queries))
    model.clip_weight.fill_(0.3)
    expected = model(tokens, queries) + 0.3 * model.clip_evidence(vectors, queries)
    torch.testing.assert_close(model.score(tokens, vectors, queries), expected)
    scores, maps = model.score(tokens[:2], vectors[:2], queries, need_attention=True)
    torch.testing.assert_close(scores, expected[:2], rtol=0, atol=1e-5)
    torch.testing.assert_close(maps.sum(-1), torch.ones(2, 2))
    for given in (kept, None):  # cached, and encoded anew
        torch.testing.assert_close(predict(model, tiny.val, queries, given), expected, rtol=0, atol=2e-2)


@torch.no_grad()
def test_windows_come_at_equal_length_and_with_a_place(tiny, queries):
    model = CLIPDecoder(ImageTower("mini", windows=4), encode_labels(TRAINED), 8, 16, head="residual").eval()
    tokens, _ = model.tower(model.tower.preprocess(tiny.test.image(0))[None])
    assert model.places.shape == (5, 16) and not model.places.any()
    model.places.copy_(torch.randn(5, 16))
    longer = tokens * torch.tensor([1.0, 2, 3, 4, 5])[:, None]
    expected = 128**0.5 * tokens / tokens.square().sum(-1, keepdim=True).sqrt()  # of length sqrt(D)
    logits = model.decoder.decode(model.decoder.embed(expected) + model.places, queries)
    torch.testing.assert_close(model(longer, queries), logits)
    assert not torch.allclose(model(tokens.flip(1), queries), logits, atol=1e-3)


@torch.no_grad()
def test_of_windows_the_one_with_the_most_evidence_counts(tiny, queries):
    model = CLIPDecoder(ImageTower("mini", windows=4), encode_labels(TRAINED), 8, 16, head="residual").eval()
    model.clip_weight.fill_(0.3)
    tokens, vectors = model.tower(torch.stack([model.tower.preprocess(tiny.test.image(i)) for i in range(3)]))
    evidence = [model.clip_evidence(tokens[:, i], queries) for i in range(5)]  # each [3, 2]
    highest = [[max(each[row, column] for each in evidence) for column in range(2)] for row in range(3)]
    expected = model(tokens, queries) + 0.3 * torch.tensor(highest)
    torch.testing.assert_close(model.score(tokens, vectors, queries), expected)


def test_copies_share_a_frozen_tower_only():
    frozen = CLIPDecoder(ImageTower("mini"), torch.zeros(1, 4), 4, embed_dim=16, train_tower=False)
    assert deepcopy(frozen).tower is frozen.tower
    assert not any(name.startswith("tower") for name in frozen.state_dict())
    trained = CLIPDecoder(ImageTower("mini"), torch.zeros(1, 4), 4, embed_dim=16, train_tower=True)
    pairs = list(zip(trained.tower.parameters(), deepcopy(trained).tower.parameters(), strict=True))
    assert all(p.requires_grad and p is not q and torch.equal(p, q) for p, q in pairs)
    p, q = pairs[0]
    with torch.no_grad():
        q.add_(1)
    assert not torch.equal(p, q)


def test_a_frozen_tower_is_left_out_when_saving_and_stays_in_evaluation_mode(tmp_path):
    model = CLIPDecoder(ImageTower("mini"), torch.zeros(1, 4), 4, embed_dim=16).train()
    assert model.decoder.training and not model.tower.training
    save_model(model, str(tmp_path / "x.safetensors"))
    assert not any("tower" in name for name in load_file(tmp_path / "x.safetensors"))
    other = CLIPDecoder(ImageTower("mini"), torch.ones(1, 4), 4, embed_dim=16)
    load_model(other, str(tmp_path / "x.safetensors"))
    assert_equal(other.state_dict(), model.state_dict())


def test_sizes_and_scale_are_the_papers():
    references = encode_labels(TRAINED)
    paper = CLIPDecoder(ImageTower("mini"), references, 8)
    assert paper.decoder.linear1.out_features == 2048 and paper.decoder.output.in_features == 768
    assert paper.image_proj.out_features == paper.text_proj.out_features == 512
    assert paper.logit_scale.item() == pytest.approx(1 / 0.07)
    paper.log_scale.data.fill_(9.0)
    assert paper.logit_scale == 100  # as CLIP's
    for head in ("linear", "matching", "residual"):  # relative to what the labels in training share
        made = CLIPDecoder(ImageTower("mini"), references, 8, 16, head=head)
        torch.testing.assert_close(made.decoder.query_mean, references.mean(0))
