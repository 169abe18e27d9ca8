"""What can stand beside a run in the panel: untouched CLIP, and another run."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import normalize

from clipdec import LabelSpace, Predictor, encode_labels
from clipdec.calibration import fit_calibration
from clipdec.notebook.models import Shown, other_run, untouched_clip
from clipdec.notebook.panel import Panel
from clipdec.towers import ImageTower, load_clip
from clipdec.training.scores import run_scores


@pytest.fixture(scope="module")
def run(tiny_run):
    return Predictor.load(tiny_run[0])


def by_hand(split, labels):
    """Log-softmax over the seen labels of scaled cosines of whole images, for all labels, [M, L]."""
    tower, names = ImageTower("mini"), labels.names
    with torch.no_grad():
        vectors = torch.cat([tower(tower.preprocess(split.image(i))[None])[1] for i in range(len(split))])
    scale = load_clip("mini").model.logit_scale.exp().item()
    logits = scale * normalize(vectors, dim=-1) @ normalize(encode_labels(names), dim=-1).T
    return logits - logits[:, : len(labels.seen)].logsumexp(1, keepdim=True)


def test_untouched_clip_is_calibrated_on_val_as_the_run_is(run, tiny):
    said, seen = [], len(tiny.labels.seen)
    clip, logits = untouched_clip(run, tiny.test, tiny.labels, said.append)
    assert said == [f"untouched CLIP looks at {len(tiny.val) + len(tiny.test)} images …"]
    assert torch.allclose(logits, by_hand(tiny.test, tiny.labels), atol=0.02)
    expected = fit_calibration(by_hand(tiny.val, tiny.labels)[:, :seen], tiny.val.targets[:, :seen])
    assert clip.calibration.note == expected.note
    assert (clip.calibration.scale, clip.threshold) == pytest.approx((expected.scale, expected.threshold), rel=0.05)
    one = clip.log_odds([tiny.test.image(2)], tiny.labels.names)[0]  # as the panel asks, as of kept scores
    assert torch.allclose(one, clip.calibration.log_odds(logits[2]), atol=0.05)
    title = Shown("untouched CLIP", clip, logits, tiny.labels, tiny.test).title
    assert title.startswith("untouched CLIP, which looks at the whole image")


def test_untouched_clip_stands_beside_itself_no_more(tiny):
    clip = Predictor.from_clip("mini", tiny.labels, 0)
    with pytest.raises(ValueError, match="is untouched CLIP already"):
        untouched_clip(clip, tiny.test, tiny.labels, print)


def test_another_run_brings_its_kept_scores(tiny_run, run, tiny):
    other, logits = other_run(str(tiny_run[0]), tiny.test, tiny.labels, lambda text: None)
    assert torch.equal(logits, run_scores(tiny_run[0], run.model, tiny, run.config))
    panel = Panel(run, tiny.test, tiny.labels, logits, beside={"twin": lambda say: (other, logits)})
    panel.beside.value = "twin"
    assert panel.second.bars.value == panel.bars.value and panel.second.figures.value == panel.figures.value


def test_a_run_on_other_labels_or_images_is_refused(tiny_run, tiny):
    labels = LabelSpace(tiny.labels.seen[:-1], tiny.labels.unseen)
    with pytest.raises(ValueError, match="has other seen or unseen labels"):
        other_run(str(tiny_run[0]), tiny.test, labels, print)
    with pytest.raises(ValueError, match="tested on other images"):
        other_run(str(tiny_run[0]), replace(tiny.test, targets=~tiny.test.targets), tiny.labels, print)
