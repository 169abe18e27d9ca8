"""Untouched CLIP in its forms, and CONSE, against computations of their own."""

import open_clip
import pytest
import torch
import torch.nn.functional as F

from clipdec import encode_labels
from clipdec.comparison.methods.raw_clip import PROMPTS, conse_scores, raw_clip_patch_scores, raw_clip_scores, raw_clip_softmax_scores
from clipdec.metrics import average_precision, zsl_report
from clipdec.towers import MINI

COLUMNS = [0, 500, 1005]


@pytest.fixture(scope="module")
def clip():
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{MINI}")
    return model, preprocess, open_clip.get_tokenizer(f"local-dir:{MINI}")


@torch.no_grad()
def image_vectors(clip, tiny, images=(0, 59)):
    return clip[0].encode_image(torch.stack([clip[1](tiny.test.image(i)) for i in images]), normalize=True)


@torch.no_grad()
def text_vectors(clip, names, prompt):
    return clip[0].encode_text(clip[2]([prompt.format(name) for name in names]), normalize=True)


def test_raw_clip_is_the_cosine(tiny, settings, tmp_path, clip):
    scores = raw_clip_scores(tiny, settings(tmp_path, prompt="a picture of {}"))
    assert scores.shape == (60, 1006)
    expected = image_vectors(clip, tiny) @ text_vectors(clip, [tiny.labels.names[i] for i in COLUMNS], "a picture of {}").T
    torch.testing.assert_close(scores[[0, 59]][:, COLUMNS], expected, rtol=0, atol=1e-4)


def test_an_ensemble_asks_with_the_mean_of_its_prompts(tiny, settings, tmp_path, clip):
    scores = raw_clip_scores(tiny, settings(tmp_path), prompts=PROMPTS)
    names = [tiny.labels.names[i] for i in COLUMNS]
    text = torch.stack([text_vectors(clip, names, prompt) for prompt in PROMPTS]).mean(0)
    torch.testing.assert_close(scores[[0, 59]][:, COLUMNS], image_vectors(clip, tiny) @ F.normalize(text, dim=-1).T, rtol=0, atol=1e-4)
    assert not torch.allclose(scores, raw_clip_scores(tiny, settings(tmp_path)), atol=1e-3)


def test_softmax_keeps_the_order_within_an_image_and_compares_images(tiny, settings, tmp_path, clip):
    plain, scores = raw_clip_scores(tiny, settings(tmp_path)), raw_clip_softmax_scores(tiny, settings(tmp_path))
    text = text_vectors(clip, tiny.labels.names, "a photo of {}")
    with torch.no_grad():
        expected = (clip[0].logit_scale.exp() * image_vectors(clip, tiny) @ text.T).softmax(-1)
    torch.testing.assert_close(scores[[0, 59]].exp(), expected, rtol=0, atol=1e-4)
    a, b = (zsl_report(s, tiny.test.targets, tiny.labels)["gzsl"] for s in (plain, scores))
    assert a["f1@3"] == pytest.approx(b["f1@3"]) and a["map"] != pytest.approx(b["map"], abs=0.1)


def test_the_best_patch_is_in_the_space_of_the_text(tiny, settings, tmp_path, clip):
    scores = raw_clip_patch_scores(tiny, settings(tmp_path))
    text = text_vectors(clip, [tiny.labels.names[i] for i in COLUMNS], "a photo of {}")
    for i in (0, 59):
        with torch.no_grad():
            pixels = clip[1](tiny.test.image(i))[None]
            patches = clip[0].visual.forward_intermediates(pixels, indices=1, normalize_intermediates=True)["image_intermediates"][-1]
            patches = F.normalize(patches[0].flatten(1).T @ clip[0].visual.proj, dim=-1)  # [64, 128]
        torch.testing.assert_close(scores[i, COLUMNS], (patches @ text.T).max(0).values, rtol=0, atol=2e-3)  # tokens are kept in float16


def test_a_tower_without_a_projection_has_no_patches(tiny, settings, tmp_path, monkeypatch):
    from clipdec.comparison.methods import raw_clip as baselines

    monkeypatch.setattr(baselines, "load_clip", lambda name: type("Clip", (), {"model": type("Model", (), {"visual": None})}))
    with pytest.raises(ValueError, match="no projection"):
        raw_clip_patch_scores(tiny, settings(tmp_path))


def test_conse_with_one_label_is_that_label(tiny, settings, tmp_path):
    vectors = encode_labels(tiny.labels.names)
    scores = conse_scores(tiny, settings(tmp_path), top=1)
    gram = vectors[: len(tiny.labels.seen)] @ vectors.T  # each row: what an image of one seen label scores
    assert torch.cdist(scores, gram).min(1).values.max() < 1e-2


def test_conse_learns_and_takes_its_seed(tiny, settings, tmp_path):
    config = settings(tmp_path)
    on_train = conse_scores(type(tiny)(tiny.folder, tiny.train, tiny.val, tiny.train, tiny.labels, tiny.info), config)
    seen = tiny.labels.seen_index
    ap = average_precision(on_train[:, seen], tiny.train.targets[:, seen]).nanmean()
    chance = average_precision(torch.rand(on_train[:, seen].shape), tiny.train.targets[:, seen]).nanmean()
    assert ap > 5 * chance
    assert torch.equal(conse_scores(tiny, config), conse_scores(tiny, config))
    assert not torch.equal(conse_scores(tiny, config), conse_scores(tiny, settings(tmp_path, seed=1)))
    assert conse_scores(tiny, config).abs().max() <= 1 + 1e-5
