"""The training-free methods against computations of their own; the trained ones: test_methods_trained.py."""

from dataclasses import replace
from types import SimpleNamespace

import open_clip
import pytest
import torch
import torch.nn.functional as F

from clipdec.comparison.methods import piaa, raw_clip, value_path
from clipdec.comparison.methods.sparc import sparc_scores
from clipdec.metrics import zsl_report
from clipdec.towers import MINI
from clipdec.training import tokens
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


@pytest.mark.parametrize("scores", [raw_clip.window_scores, raw_clip.softmax_scores, sparc_scores])
def test_no_image_is_no_score_and_no_room_is_said(tiny, settings, tmp_path, monkeypatch, scores):
    config = settings(tmp_path, windows=4)
    assert scores(replace(tiny, test=tiny.test.select([])), config).shape == (0, 1006)
    monkeypatch.setattr(tokens, "_has_room", lambda *_: False)
    alone = replace(tiny, folder=tmp_path)  # where nothing is kept yet
    with pytest.raises(ValueError, match="no room for the tokens of test: make room"):
        scores(alone, config)


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


@pytest.mark.parametrize("windows, boxes", [(0, []), (4, [(y, x) for y in (0, 56) for x in (0, 56)])])
def test_windows_are_looked_at_one_by_one(tiny, settings, tmp_path, clip, windows, boxes):
    """Highest share of a label over the looks, of the seen labels' sum (an unseen one is not in it) and of all's."""
    config = settings(tmp_path, windows=windows)
    asked = (f(tiny, config)[IMAGES] for f in (raw_clip.window_scores, raw_clip.softmax_scores))
    text, scale, seen = clip.text(columns=range(1006)), clip.model.logit_scale.exp(), len(tiny.labels.seen)
    for of_seen, of_all, pixels in zip(*asked, clip.pixels):
        crops = [pixels[None, :, y : y + 72, x : x + 72] for y, x in boxes]
        looks = [pixels[None], *(F.interpolate(c, 128, mode="bicubic", antialias=True) for c in crops)]
        odds = [(scale * clip.model.encode_image(look, normalize=True)[0] @ text.T).exp() for look in looks]
        close(of_seen, torch.stack([x / x[:seen].sum() for x in odds]).amax(0).log(), 0.02)  # kept in float16
        close(of_all, torch.stack([x / x.sum() for x in odds]).amax(0).log(), 0.02)


def test_the_value_path_is_attention_to_oneself(tiny, settings, tmp_path, clip):
    """The last block with all places but one's own masked gives the patches of MaskCLIP and TagCLIP."""
    visual, config = clip.model.visual, settings(tmp_path)
    x = visual._embeds(clip.pixels)
    for block in visual.transformer.resblocks[:-1]:
        x = block(x)
    alone = torch.full((x.shape[1],) * 2, float("-inf")).fill_diagonal_(0)
    x = visual.ln_post(visual.transformer.resblocks[-1](x, attn_mask=alone))[:, 1:]  # without the class token
    patches = F.normalize(x @ visual.proj, dim=-1)  # [2, 64, 128]
    text = clip.text(columns=range(1006))
    close(value_path.mask_clip_scores(tiny, config)[IMAGES], (patches @ text.T).amax(1))
    named = (clip.model.logit_scale.exp() * patches @ text.T).softmax(-1).amax(1)
    close(value_path.tag_clip_scores(tiny, config)[IMAGES].exp(), named)


def test_sparc_standardises_images_then_labels(tiny, settings, tmp_path):
    cosines, scores = (f(tiny, settings(tmp_path)) for f in (raw_clip.ensemble_scores, sparc_scores))
    first = torch.stack([(row - row.mean()) / row.std() for row in cosines])
    second = torch.stack([(column - column.mean()) / column.std() for column in first.T]).T
    close(scores, second, 2e-3)


def test_piaa_keeps_the_purest_and_fits_them():
    label, value, x, text = torch.randint(5, (40,)), torch.rand(40), torch.randn(40, 6), torch.randn(6, 6)
    of = [(label == c).nonzero().flatten().tolist() for c in range(5)]  # and no patch of a sixth label
    kept = {i for each in of for i in sorted(each, key=lambda i: value[i])[:3]}
    assert set(piaa.lowest(value, label, 3).tolist()) == kept
    mean = torch.stack([*(sum(value[i] * x[i] for i in each) / value[each].sum() for each in of), text[5]])
    covariance = sum(torch.outer(v, v) for v in x - mean[label]) / 39
    precision = 6 * torch.linalg.inv(39 * covariance + covariance.trace() * torch.eye(6))
    weight, bias = piaa.gaussian(x, label, value, text)
    close(weight, mean @ precision)
    close(bias, torch.stack([-m @ precision @ m / 2 for m in mean]))
    above = torch.stack([value[each].mean() + value[each].std(correction=0) for each in of])
    close(piaa.sure(value, label, 6)[:5], above)
