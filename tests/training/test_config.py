"""The settings of a run: every wrong one is refused with a message that says what is right."""

import json
import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from clipdec import Config
from clipdec.data import HOME
from clipdec.training.config import AS_AUTHOR, PRESETS, SWITCHES

NAMES = {setting.name for setting in fields(Config)}
WRONG = {
    "a text": [("data", 3), ("out_dir", 4), ("image_weights", 1.5), ("label_embeddings", True)],
    "True or False": [("train_image_tower", "false"), ("train_image_tower", 1), ("amp", "True"), ("resume", 0)],
    "a whole number": [("epochs", "10"), ("epochs", 2.0), ("epochs", True), ("seed", "0"), ("batch_size", False)],
    "a number": [("lr", "1e-4"), ("lr", True), ("alpha", False), ("ema_decay", [0.9])],
    "a list of names": [("as_author", 3), ("as_author", True)],
    "a whole number or a text": [("windows", 4.0), ("windows", True)],
}


@pytest.mark.parametrize("name, value, wanted", [(*pair, wanted) for wanted, pairs in WRONG.items() for pair in pairs])
def test_wrong_types(name, value, wanted):
    with pytest.raises(ValueError, match="^" + re.escape(f"{name} must be {wanted}, got {value!r}")):
        Config(**{name: value})


@pytest.mark.parametrize("name, value", [
    ("epochs", 0), ("epochs", -1), ("batch_size", 0), ("embed_dim", 0), ("embed_dim", 20), ("embed_dim", -8),
    ("alpha", -0.1), ("beta", -1), ("weight_decay", -1e-3), ("label_samples", -1), ("num_workers", -1), ("seed", -1),
    ("lr", 0), ("lr", -1e-3), ("lr", float("nan")), ("alpha", float("nan")),
    ("ema_decay", 1), ("ema_decay", 1.5), ("ema_decay", -0.1), ("dropout", 1), ("hold_out", 1), ("hold_out", -0.1),
    ("accumulate", 0), ("processes", 0), ("clip_grad", -1), ("patience", -1), ("save_minutes", -0.1),
    ("optimiser", "sgd"), ("checkpoint_tower", True), ("prompt", "a photo"), ("prompt", "{} and {}"),
    ("device", "cuda:99"), ("device", "gpu"), ("device", "cuda:x"),
    ("as_author", "sum_los"), ("as_author", ["fixed_scale", "x"]), ("windows", 3), ("windows", "72"),
])  # fmt: skip
def test_values_out_of_range(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be "):
        Config(**{name: value})


@pytest.mark.parametrize("values, message", [
    ({"alpha": 0, "beta": 0}, "^alpha must be more than 0 where beta is 0"),
    ({"lr": "1e-4"}, "papermill: -p reads numbers"),
    ({"preset": "large"}, "preset must be mini, clip or paper, got 'large'"),
    ({"as_author": "no_such"}, "^as_author must be names of random_projections, .*, got .'no_such'"),
])  # fmt: skip
def test_the_message_says_what_is_right(values, message):
    with pytest.raises(ValueError, match=message):
        Config(**values)



def test_values_at_the_edge_are_kept():
    values = {
        "epochs": 1, "batch_size": 1, "embed_dim": 8, "seed": 0, "label_samples": 0, "num_workers": 0, "prompt": "{}",
        "ema_decay": 0.0, "weight_decay": 0.0, "lr": 1e-12, "image_weights": None, "label_embeddings": "e.npz",
        "train_image_tower": True, "amp": True, "resume": True, "device": "cpu", "alpha": 0.0,
    }  # fmt: skip
    assert Config(**values).as_dict() == Config().as_dict() | values
    assert Config(beta=0).beta == 0


def test_defaults_are_valid_and_the_device_is_found():
    config = Config()
    assert config.device in ("cpu", "cuda")
    assert set(PRESETS["mini"]) | {"preset", "image_weights", "sentence_tower", "label_embeddings"} == NAMES
    mini = {name: PRESETS["mini"].get(name) for name in NAMES}
    assert config.as_dict() == mini | {"preset": "mini", "device": config.device}


def test_what_a_preset_sets_and_what_goes_before_it():
    config = Config(preset="paper", epochs=3, device="cpu")
    assert (config.image_tower, config.batch_size, config.optimiser) == ("timm:tresnet_m.miil_in21k", 56, "adam")
    assert (config.epochs, config.seed) == (3, 0)
    assert config.as_dict() | {"epochs": 40} == Config(preset="paper", device="cpu").as_dict()
    assert Config(preset="paper", epochs=4).epochs == 4  # also where it is the default of another preset
    assert all(preset.keys() <= NAMES for preset in PRESETS.values())


def test_the_paper_preset_is_the_setting_of_the_authors_code():
    config = Config(preset="paper", device="cpu")
    expected = {
        "image_tower": "timm:tresnet_m.miil_in21k", "text_tower": "open_clip:ViT-B-32/openai", "embed_dim": 768,
        "sentence_tower": "open_clip:RN50/openai", "prompt": "a photo of {}", "train_image_tower": True, "lr": 1e-4,
        "alpha": 1.0, "beta": 1.0, "optimiser": "adam", "weight_decay": 1e-2, "dropout": 0.1, "label_samples": 0,
        "epochs": 40, "batch_size": 56, "amp": True, "ema_decay": 0.9997, "augment": True, "head": "ml_decoder",
    }  # fmt: skip
    assert config.as_dict() | expected == config.as_dict()
    assert all(Config(preset=preset).as_author == [] for preset in PRESETS)



def test_a_whole_number_for_a_float_becomes_one():
    config = Config(lr=1, alpha=0, ema_decay=0)
    assert [type(v) for v in (config.lr, config.alpha, config.ema_decay)] == [float] * 3 and config.lr == 1.0


def test_from_parameters_takes_the_known_names():
    others = {"__name__": "__main__", "_i1": "x", "In": ["a"], "Out": {}, "json": json, "helper": Config.load}
    assert Config.from_parameters({"epochs": 3, "lr": 1e-3} | others) == Config(epochs=3, lr=1e-3)


@pytest.mark.parametrize("parameters, message", [
    ({"epoch": 3, "lr": 1e-3}, "unknown parameter 'epoch': did you mean 'epochs'"),
    ({"batchsize": 3, "lr": 1e-3}, "unknown parameter 'batchsize': did you mean 'batch_size'"),
    ({"image_tover": 3, "lr": 1e-3}, "unknown parameter 'image_tover': did you mean 'image_tower'"),
    ({"zzzz": None}, "unknown parameter 'zzzz': known are accumulate, .*weight_samples"),
    ({"epochs": 0}, "^epochs must be at least 1, got 0"),
    ({"out_dir": Path("runs/mine")}, r"out_dir must be a text, got (Posix|Windows)Path\('runs/mine'\)"),
    ({"lr": np.float64(1e-3), "epochs": np.int64(3)}, "must be a (whole )?number, got"),
])  # fmt: skip
def test_wrong_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        Config.from_parameters(parameters)


def test_load_gives_back_what_was_saved(tmp_path):
    some = {"label_embeddings": "e.npz", "train_image_tower": True, "prompt": "{}", "as_author": "sum_loss"}
    config = Config(data="x", out_dir="y", lr=3e-4, epochs=7, **some)
    (tmp_path / "config.json").write_text(json.dumps(config.as_dict()))
    assert Config.load(tmp_path) == config and Config.load(str(tmp_path)) == config


def test_a_run_of_another_machine_finds_a_device_here(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(Config().as_dict() | {"device": "cuda:7"}))
    assert Config.load(tmp_path).device == Config().device


def test_load_without_config(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a run folder .*04_train"):
        Config.load(tmp_path)


def test_paths_start_at_home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = Config(out_dir="runs/x", label_embeddings=str(tmp_path / "e.npz"))
    assert config.path("out_dir") == HOME / "runs" / "x"
    assert config.path("label_embeddings") == tmp_path / "e.npz"
    assert config.path("image_weights") is None
    assert Config(out_dir="~/x").path("out_dir") == Path.home() / "x"


@pytest.mark.parametrize("given", ["sum_loss, fixed_scale", "fixed_scale,sum_loss,", ["sum_loss", "fixed_scale"]])
def test_points_are_named_between_commas_or_in_a_list(given):
    assert Config(as_author=given).as_author == ["fixed_scale", "sum_loss"]
    assert Config.from_parameters({"as_author": given}) == Config(as_author=given)



def test_a_config_of_before_as_author_opens(tmp_path):
    """Its first six points were switches, False as in the author's code."""
    old = {k: v for k, v in Config().as_dict().items() if k != "as_author"} | dict.fromkeys(SWITCHES, True)
    for points in ([], ["random_projections"], list(SWITCHES.values())):
        settings = old | {switch: point not in points for switch, point in SWITCHES.items()}
        (tmp_path / "config.json").write_text(json.dumps(settings))
        assert Config.load(tmp_path) == Config.from_parameters(settings) == Config(as_author=points)
    assert set(SWITCHES.values()) <= AS_AUTHOR.keys()
    with pytest.raises(ValueError, match="unknown parameter 'learn_scale'"):
        Config.from_parameters({"learn_scale": "False"})
