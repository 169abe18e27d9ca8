"""The points of the author's code, each against a computation of its own, and which of them a run can follow."""

import json
import re
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from helpers import assert_equal, at_step, history, load_state, spy
from PIL import Image, ImageChops
from safetensors.torch import load_file
from timm.loss import AsymmetricLossMultiLabel
from torchvision.transforms import v2

from clipdec import CLIPDecoder, alignment_loss, fit, hold_out, load_run
from clipdec.metrics import zsl_report
from clipdec.towers import ImageTower, load_clip
from clipdec.training import pixels, run, tokens
from clipdec.training.accelerated import AcceleratedTrainer
from clipdec.training.author import followed
from clipdec.training.batches import TrainingImages
from clipdec.training.build import build_model
from clipdec.training.config import AS_AUTHOR
from clipdec.training.scores import held_labels, split_scores
from clipdec.training.sentences import short_sentence, unseen_shown

B, L, D = 6, 9, 8
TOWER = {"as_author": "trained_sentence_tower", "dropout": 0.0}
TEXTS = [f"a photo of {name}" for name in ("sky", "sky and car", "road", "tree", "sea, sky and sun", "cat")]


@pytest.fixture
def listing(tiny):
    """`tiny` as prepared with --keep-unseen, and the unseen labels that it lists, {number of a train image: names}."""
    paths, unseen = [cell["path"] for cell in tiny.train.rows["image"]], tiny.labels.unseen
    listed = {paths[2]: [unseen[7]], paths[4]: [unseen[0], unseen[80]]}
    return replace(tiny, info=tiny.info | {"unseen_in_train": listed}), {2: [unseen[7]], 4: [unseen[0], unseen[80]]}


def images_of(data, config):
    asked, _ = held_labels(data.labels, config)
    return TrainingImages(data, asked, build_model(config, torch.zeros(1, 128)), config)


def one_step(config, ids, targets):
    """(AcceleratedTrainer after the gradients of a step, the tokens [B, 5, 192] and queries [L, D] of the step)."""
    tower = ImageTower("mini")  # before the seed: loading it draws random numbers, the first time
    torch.manual_seed(0)
    model = CLIPDecoder(tower, torch.zeros(1, D), load_clip("mini").model.text_projection.shape[1], 16, dropout=0.0)
    trainer, images, queries = AcceleratedTrainer(model, config, 10), torch.randn(B, 5, 192), torch.randn(L, D)
    trainer.gradients([images], queries, ids, targets)
    return trainer, images, queries


def test_every_point_says_what_where_and_what_is_done_here():
    form = r".+ \((train_zsl_nus|losses|helper_functions)\.py: \w[\w.]+[^()]*\); here .+[^.]"
    assert all(re.fullmatch(form, text) for text in AS_AUTHOR.values()) and len(AS_AUTHOR) == 12


def test_the_focusing_weights_have_no_gradient(settings):
    targets, vectors = torch.rand(B, L) < 0.3, torch.randn(B, 128)
    config = settings("unused", as_author="detached_focus", alpha=0.0, dropout=0.0, label_samples=0)
    trainer, images, queries = one_step(config, vectors, targets)
    model = deepcopy(trainer.model)
    model.zero_grad()
    logits = model(images, queries)
    loss = AsymmetricLossMultiLabel(4, 0, 0.05, disable_torch_grad_focal_loss=True)
    (sum(loss(logits[i : i + 1], targets[i : i + 1].float()) for i in range(B)) / B).backward()
    for name in ("decoder.query_proj.weight", "decoder.output.weight"):
        expected = model.get_parameter(name).grad
        torch.testing.assert_close(trainer.model.get_parameter(name).grad, expected, rtol=1e-3, atol=1e-5)


def test_the_gradient_of_the_sentence_tower_is_that_of_the_alignment_loss(settings):
    clip, targets = load_clip("mini"), torch.eye(B, L).bool()
    ids, shared = clip.tokenizer(TEXTS), deepcopy(clip.model.state_dict())
    trainer, images, _ = one_step(settings("unused", **TOWER), ids, targets)
    own, model = deepcopy(clip.model), deepcopy(trainer.model)
    with torch.no_grad():
        image = model.image_proj(model.decoder.embed(images).mean(1))
    alignment_loss(image, model.text_proj(own.encode_text(ids)), model.logit_scale.detach(), targets).backward()
    expected = {name: p.grad for name, p in own.named_parameters() if p.grad is not None}
    found = {name: p.grad for name, p in trainer.sentence_tower.clip.named_parameters() if p.grad is not None}
    assert {"token_embedding.weight", "text_projection", "ln_final.bias"} <= found.keys()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)
    trainer.optimiser.step()
    assert not torch.equal(trainer.sentence_tower.clip.text_projection, shared["text_projection"])
    assert_equal(dict(clip.model.state_dict()), dict(shared))  # a copy is trained


def test_the_sentence_tower_has_the_runs_rate_and_no_decay(settings):
    ids, targets = load_clip("mini").tokenizer(TEXTS), torch.eye(B, L).bool()
    trainer, *_ = one_step(settings("unused", weight_decay=0.3, **TOWER), ids, targets)
    of = {id(p): group for group in trainer.optimiser.param_groups for p in group["params"]}
    tower = [*trainer.sentence_tower.parameters()]
    assert {of[id(p)]["weight_decay"] for p in tower} == {0.0} and 0.3 in {g["weight_decay"] for g in of.values()}
    assert len({group["lr"] for group in of.values()}) == 1
    assert not {id(p) for p in tower} & {id(p) for p in trainer.model.parameters()}  # nor of the average of it


def test_a_run_that_trains_its_sentence_tower_resumes_exactly(train, tmp_path, monkeypatch):
    changes = {"epochs": 2, "batch_size": 60, "as_author": "trained_sentence_tower"}  # two steps an epoch
    train(tmp_path / "whole", **changes)
    with monkeypatch.context() as patch:
        at_step(patch, 4, lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(tmp_path / "parts", save_minutes=0.0, **changes)
    train(tmp_path / "parts", resume=True, **changes)
    whole, parts = (load_state(tmp_path / name)["sentence_tower"] for name in ("whole", "parts"))
    assert_equal(dict(parts), dict(whole))
    start = load_clip("mini").model.text_projection
    assert not torch.equal(whole["clip.text_projection"], start)
    first, second = (history(tmp_path / name)[1]["l_clip"] for name in ("whole", "parts"))
    assert first == second
    names = load_file(tmp_path / "whole" / "checkpoint.safetensors").keys()
    assert not any("sentence" in name for name in names) and load_run(tmp_path / "whole")  # evaluation needs none


@pytest.mark.parametrize("names, expected", [
    ([], "a photo of "), (["sky"], "a photo of sky"), (["sky", "car"], "a photo of sky and car"),
    (["sky", "car", "road"], "a photo of sky, car and road"),
    (["sky", "x" * 60, "car"], f"a photo of sky, {'x' * 60} and "),  # 76 characters, and no room for the last
    (["sky", "x" * 61, "car"], "a photo of sky, car"),  # 77 are too many; what is short still comes
    (["x" * 66, "sky"], "a photo of sky"), (["sky", "x" * 66], "a photo of sky and "),
])  # fmt: skip
def test_a_sentence_of_77_characters(names, expected):
    assert short_sentence(names, "a photo of {}") == expected


def texts_of(monkeypatch, data, config):
    """The texts that are encoded for the sentences of a training."""
    with monkeypatch.context() as patch:
        calls = spy(patch, tokens, "encode_texts")
        images = images_of(data, config)
    return images, [text for texts, *_ in calls for text in texts]


def test_long_sentences_are_cut_in_a_run(tiny, settings, tmp_path, monkeypatch):
    data = replace(tiny, folder=tmp_path)  # with no sentences kept from other tests
    config = settings("unused", as_author="sentence_of_77_characters", prompt=f"{'so ' * 20}{{}}")
    images, short = texts_of(monkeypatch, data, config)
    names = [[tiny.labels.seen[i] for i in row.nonzero().flatten()] for row in images.split.targets[:, :925]]
    asked = {tiny.labels.names[i] for i in held_labels(tiny.labels, config)[0]}
    expected = {short_sentence([name for name in each if name in asked], config.prompt) for each in names}
    assert set(short) == expected and max(map(len, expected)) <= 76 + len(" and ")
    assert max(map(len, texts_of(monkeypatch, data, replace(config, as_author=[]))[1])) > 90


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_sentences_name_unseen_labels_and_nothing_else_sees_them(listing, settings, tmp_path, monkeypatch, share):
    data, listed = listing
    data = replace(data, folder=tmp_path)
    config = settings("unused", as_author="unseen_in_sentences", hold_out=share)
    images, texts = texts_of(monkeypatch, data, config)
    plain, others = texts_of(monkeypatch, data, replace(config, as_author=[]))
    expected = set()
    for i, row in zip(images.split.index.tolist(), images.split.targets):
        names = [data.labels.names[j] for j in row.nonzero().flatten()] + listed.get(i, [])  # held-out ones too
        expected.add("a photo of " + " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names))
    assert set(texts) == expected and not set(listed[4]) & set(", ".join(others).split(", "))
    assert torch.equal(images.targets, plain.targets) and torch.equal(images.split.targets, plain.split.targets)
    assert not data.train.targets[:, data.labels.unseen_index].any()
    assert not unseen_shown(data.train, hold_out(data, 60)).any()  # where others play the unseen


def test_other_listed_labels_are_other_data(listing, train, tmp_path):
    data, _ = listing
    changes = {"as_author": "unseen_in_sentences", "epochs": 1}
    train(tmp_path, data, **changes)
    image = next(iter(data.info["unseen_in_train"]))
    other = replace(data, info=data.info | {"unseen_in_train": {image: [data.labels.unseen[1]]}})
    with pytest.raises(ValueError, match="made with another unseen_in_train"):
        train(tmp_path, other, resume=True, **changes)


def boxes(count=400, size=(40, 24)):
    """(colour, left, top, right, bottom) of what `cut_out` changes in a grey picture."""
    grey, found = Image.new("RGB", size, (127, 127, 127)), []
    for _ in range(count):
        cut = pixels.cut_out(grey)
        left, top, right, bottom = ImageChops.difference(cut, grey).getbbox()
        inside = cut.crop((left, top, right, bottom)).getcolors()
        assert len(inside) == 1 and grey.getcolors() == [(size[0] * size[1], (127, 127, 127))]
        found.append((inside[0][1], left, top, right, bottom))
    return found


def test_cutout_is_a_box_of_half_the_sides_at_any_place_in_any_colour():
    found = boxes()
    assert len({colour for colour, *_ in found}) > 390
    for _, left, top, right, bottom in found:
        assert right - left == 20 or left == 0 and 10 <= right < 20 or right == 40 and 11 <= 40 - left < 20
        assert bottom - top == 12 or top == 0 and 6 <= bottom < 12 or bottom == 24 and 7 <= 24 - top < 12
    whole = sum(right - left == 20 and bottom - top == 12 for _, left, top, right, bottom in found) / len(found)
    assert 0.17 < whole < 0.39  # (21 / 40) * (13 / 24) = 0.28 of the places
    assert {left for _, left, *_ in found} == set(range(30)) and {top for _, _, top, *_ in found} == set(range(18))


def test_cutout_comes_before_randaugment(tiny, settings, monkeypatch):
    seen = []
    monkeypatch.setattr(v2.RandAugment, "forward", lambda self, image: seen.append(image) or image)
    monkeypatch.setattr(pixels, "cut_out", lambda image: Image.new("RGB", image.size, (1, 2, 3)))
    config = settings("unused", augment=True, as_author="cutout_first", batch_size=60)
    images = images_of(tiny, config)
    index, inputs = next(images.epoch(0))
    batch = next(inputs)
    assert {image.getpixel((0, 0)) for image in seen} == {(1, 2, 3)} and len(seen) == len(index)
    expected = build_model(config, torch.zeros(1, 128)).tower.preprocess(seen[0])
    assert_equal(batch[0], expected)  # and no second box after it


@pytest.mark.parametrize("last, values, best", [
    (False, [3.0, 4.0, 5.0, 9.0, 6.0, 2.0], 2), (False, [3.0, 4.0, 9.0, 5.0, 6.0, 2.0], 2),
    (True, [3.0, 4.0, 9.0, 5.0, 2.0, 6.0], 3),
])  # fmt: skip
def test_the_larger_map_on_test_of_two_weights_counts(tiny, settings, tmp_path, monkeypatch, last, values, best):
    """Those of the last step and the averaged ones. P, R and F1 are those of the last step."""
    left, real, states = iter(values), run.Run._precisions, []

    def precisions(self, model, split, groups, kept):
        found = real(self, model, split, groups, kept)
        return {"test_map": torch.tensor([next(left)])} if "test_map" in groups else found

    monkeypatch.setattr(run.Run, "_precisions", precisions)
    points, far = ["best_on_test"] + last * ["last_weights"], {"lr": 1e-2, "batch_size": 8}  # the two lie apart
    config = settings(tmp_path, epochs=3, as_author=points, hold_out=0.0, **far)
    metrics = fit(tiny, config, lambda rows: states.append(load_state(tmp_path)))
    if best < 3:
        (tmp_path / "plain.safetensors").rename(tmp_path / "aside")
        with pytest.raises(ValueError, match="plain.safetensors, the best epoch so far, is lost or cut"):
            fit(tiny, replace(config, resume=True))
        (tmp_path / "aside").rename(tmp_path / "plain.safetensors")
    pairs = list(zip(values[::2], values[1::2]))
    assert [(row["test_map_plain"], row["test_map"]) for row in history(tmp_path)] == [(a, max(a, b)) for a, b in pairs]
    assert (metrics["best_epoch"], metrics["chosen_by"]) == (best, "test_map")
    state, (plain, mean) = states[best - 1], pairs[best - 1]
    average = {k.removeprefix("module."): v for k, v in state["average"].items() if k.startswith("module.")}
    saved = load_file(tmp_path / "checkpoint.safetensors")
    assert_equal(saved, dict(state["model"]) if plain > mean else average)
    _, model = load_run(tmp_path)
    report = lambda: zsl_report(split_scores(model, tiny.test, tiny, config), tiny.test.targets, tiny.labels)
    counted = report()
    model.load_state_dict(state["model"])
    others, same = report(), []
    for task in ("zsl", "gzsl", "seen"):
        assert metrics[task] == pytest.approx(others[task] | {"map": counted[task]["map"]}, abs=1e-4)
        same += [others[task][name] == value for name, value in counted[task].items() if name != "map"]
    assert all(same) == (plain > mean)


LEFT_OUT = {
    "trained_sentence_tower": {"alpha": 0.0}, "unseen_in_sentences": {}, "sentence_of_77_characters": {"alpha": 0.0},
    "cutout_first": {"augment": False},
}  # fmt: skip


def test_all_is_what_can_be_followed_and_the_rest_is_told(tiny, listing, train, settings, tmp_path, capsys):
    metrics = train(tmp_path, as_author="all")
    lacking = ["unseen_in_sentences", "cutout_first"]
    assert metrics["config"]["as_author"] == [name for name in AS_AUTHOR if name not in lacking]
    assert json.loads((tmp_path / "config.json").read_text()) == metrics["config"]
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("as_author all: ")]
    assert len(said) == 2 and "without unseen_in_sentences, which needs data that list the unseen labels" in said[0]
    assert "without cutout_first, which needs augment True" in said[1]
    assert load_run(tmp_path)[0].as_author == metrics["config"]["as_author"]
    assert train(tmp_path, as_author="all", resume=True)["epochs"] == 1  # the same run
    whole = followed(settings("unused", as_author="all", augment=True), listing[0])
    assert whole.as_author == list(AS_AUTHOR)


@pytest.mark.parametrize("point", LEFT_OUT)
def test_a_named_point_that_cannot_be_followed_is_refused(tiny, train, settings, tmp_path, point):
    with pytest.raises(ValueError, match=f"^{point} of as_author needs .*: give that, or take {point} out"):
        train(tmp_path, as_author=point, **LEFT_OUT[point])
    every = followed(settings("unused", as_author="all", **LEFT_OUT[point]), tiny).as_author
    assert point not in every and "sum_loss" in every


def test_words_without_a_text_tower_are_no_sentences(tiny, settings):
    vectors = settings("unused", as_author="all", label_embeddings="e.npz")
    assert not {"trained_sentence_tower", "sentence_of_77_characters"} & set(followed(vectors, tiny).as_author)
    named = followed(replace(vectors, sentence_tower="mini"), tiny).as_author
    assert {"trained_sentence_tower", "sentence_of_77_characters"} <= set(named)


def test_otherwise_randaugment_comes_first_and_cutout_last(monkeypatch):
    monkeypatch.setattr(v2.RandAugment, "forward", lambda self, image: Image.new("RGB", image.size, (1, 2, 3)))
    preprocess = ImageTower("mini").preprocess
    found = pixels.augmented(preprocess)(Image.new("RGB", (50, 40), "white"))
    expected, cut = preprocess(Image.new("RGB", (50, 40), (1, 2, 3))), (found == 0).all(0)
    assert cut.sum() == 64 * 64 and torch.equal(found[:, ~cut], expected[:, ~cut])
