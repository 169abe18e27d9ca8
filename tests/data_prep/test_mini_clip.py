"""The training of a mini CLIP: what its batches hold, and that a short training can be opened."""

import json

import numpy as np
import open_clip
import pytest
import torch
from samples import run

from clipdec.towers import encode_labels
from data_prep import emoji_scenes, mini_clip

SEEN, UNSEEN, *_ = emoji_scenes.concepts()


@pytest.mark.parametrize("without", [False, True])
def test_pictures_and_captions_hold_no_concept_that_is_left_out(monkeypatch, without):
    drawn, told = [], []
    blank = np.zeros((128, 128, 3), np.uint8)
    monkeypatch.setattr(emoji_scenes, "draw", lambda rng, names, setting: drawn.extend(names) or blank)
    monkeypatch.setattr(mini_clip, "caption", lambda rng, names: told.extend(names) or "a caption")
    batches = mini_clip.Batches(mini_clip.known(without), open_clip.SimpleTokenizer(context_length=32), 200, 3, seed=0)
    for i in range(len(batches)):
        batches[i]
    assert drawn == told and set(drawn) <= {*SEEN, *UNSEEN} and len(set(drawn)) > 500
    assert bool(set(drawn) & set(UNSEEN)) is not without


def test_a_short_training_can_be_opened(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(mini_clip, "known", lambda without: (SEEN if without else SEEN + UNSEEN)[:6])
    options = "--steps 20 --batch-size 2 --workers 0 --without-unseen --out".split()
    run(mini_clip, *options, str(tmp_path / "clip"))
    note = json.loads((tmp_path / "clip/training.json").read_text())
    assert note["without_unseen"] and note["steps"] == 20 and note["device"] in ("cpu", "cuda") and "out" not in note
    assert f"of {len(SEEN[:6])} names" in capsys.readouterr().out and not (tmp_path / "clip.partial").exists()
    model, _ = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path / 'clip'}")
    assert torch.isfinite(model.encode_image(torch.zeros(1, 3, 128, 128))).all()
    encode_labels(SEEN[:2], f"local-dir:{tmp_path / 'clip'}")  # and by a run, as a tower
