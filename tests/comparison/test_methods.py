"""Untouched CLIP in its forms, and CONSE, against computations of their own."""

from dataclasses import replace
from types import SimpleNamespace

import open_clip
import pytest
import torch
import torch.nn.functional as F

from clipdec import encode_labels
from clipdec.comparison.methods import raw_clip
from clipdec.comparison.methods.conse import conse_scores
from clipdec.metrics import average_precision, zsl_report
from clipdec.towers import MINI
from clipdec.training.scores import raw_clip_scores

COLUMNS, IMAGES = [0, 500, 1005], [0, 59]
close = lambda scores, expected, atol=1e-4: torch.testing.assert_close(scores, expected, rtol=0, atol=atol)


@pytest.fixture(scope="module")
def clip(tiny):
    """CLIP as open_clip has it: the model, pixels and vectors of two images, and `text`, vectors of some labels."""
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{MINI}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{MINI}")
    pixels = torch.stack([preprocess(tiny.test.image(i)) for i in IMAGES])
    def text(prompt="a photo of {}", columns=COLUMNS):
        return model.encode_text(tokenizer([prompt.format(tiny.labels.names[i]) for i in columns]), normalize=True)
    images = model.requires_grad_(False).encode_image(pixels, normalize=True)
    return SimpleNamespace(model=model, pixels=pixels, images=images, text=text)


def test_raw_clip_is_the_cosine(tiny, settings, tmp_path, clip):
    scores = raw_clip_scores(tiny, settings(tmp_path, prompt="a picture of {}"))
    assert scores.shape == (60, 1006)
    close(scores[IMAGES][:, COLUMNS], clip.images @ clip.text("a picture of {}").T)


def test_an_ensemble_asks_with_the_mean_of_its_prompts(tiny, settings, tmp_path, clip):
    scores = raw_clip.ensemble_scores(tiny, settings(tmp_path))
    text = torch.stack([clip.text(prompt) for prompt in raw_clip.PROMPTS]).mean(0)
    close(scores[IMAGES][:, COLUMNS], clip.images @ F.normalize(text, dim=-1).T)
    assert not torch.allclose(scores, raw_clip_scores(tiny, settings(tmp_path)), atol=1e-3)


def test_softmax_keeps_the_order_within_an_image_and_compares_images(tiny, settings, tmp_path, clip):
    plain, scores = (f(tiny, settings(tmp_path)) for f in (raw_clip_scores, raw_clip.softmax_scores))
    logits = clip.model.logit_scale.exp() * clip.images @ clip.text(columns=range(1006)).T
    close(scores[IMAGES].exp(), logits.softmax(-1))
    a, b = (zsl_report(s, tiny.test.targets, tiny.labels)["gzsl"] for s in (plain, scores))
    assert a["f1@3"] == pytest.approx(b["f1@3"]) and a["map"] != pytest.approx(b["map"], abs=0.1)


def test_the_best_patch_is_in_the_space_of_the_text(tiny, settings, tmp_path, clip):
    visual = clip.model.visual
    found = visual.forward_intermediates(clip.pixels, indices=1, normalize_intermediates=True)["image_intermediates"]
    patches = F.normalize(found[-1].flatten(2).mT @ visual.proj, dim=-1)  # [2, 64, 128]
    scores = raw_clip.patch_scores(tiny, settings(tmp_path))[IMAGES][:, COLUMNS]
    close(scores, (patches @ clip.text().T).amax(1), 2e-3)  # tokens are kept in float16


def test_a_tower_without_a_projection_has_no_patches(tiny, settings, tmp_path, monkeypatch):
    without = SimpleNamespace(model=SimpleNamespace(visual=None))
    monkeypatch.setattr(raw_clip, "load_clip", lambda name: without)
    with pytest.raises(ValueError, match="no projection"):
        raw_clip.patch_scores(tiny, settings(tmp_path))


def test_conse_with_one_label_is_that_label(tiny, settings, tmp_path):
    vectors, scores = encode_labels(tiny.labels.names), conse_scores(tiny, settings(tmp_path), top=1)
    gram = vectors[: len(tiny.labels.seen)] @ vectors.T  # each row: what an image of one seen label scores
    assert torch.cdist(scores, gram).min(1).values.max() < 1e-2


def test_conse_learns_and_takes_its_seed(tiny, settings, tmp_path):
    seen, targets, config = tiny.labels.seen_index, tiny.train.targets, settings(tmp_path)
    scores = conse_scores(replace(tiny, test=tiny.train), config)[:, seen]
    ap, chance = (average_precision(s, targets[:, seen]).nanmean() for s in (scores, torch.rand(scores.shape)))
    scores, again, other = (conse_scores(tiny, c) for c in (config, config, settings(tmp_path, seed=1)))
    assert ap > 5 * chance and scores.abs().max() <= 1 + 1e-5
    assert torch.equal(scores, again) and not torch.equal(scores, other)
