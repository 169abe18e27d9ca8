"""Runs by name: a folder first, else a repository of the hub, here from a cache that was laid out by hand."""

import json
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest
from helpers import files, hub_cache

from clipdec import Config, Predictor, data, load_run
from clipdec.training import shared
from clipdec.training.shared import SHARED, beside, find_run

ROOT = Path(__file__).resolve().parents[2]
LABELS = ["pizza", "dog face", "no label of the data set"]


@pytest.fixture(scope="module")
def kept(tiny_run):
    """{file: bytes} of the run as a repository has it, label vectors left out, as it has none."""
    return {name: content for name, content in files(tiny_run[0]).items() if name in SHARED}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


def test_a_run_of_the_hub_answers_as_its_folder(tiny, tiny_run, kept, cache):
    commit = hub_cache(cache, "user/head", kept)
    assert find_run("user/head") == cache / "models--user--head" / "snapshots" / commit
    image, own = tiny.test.image(2), Predictor.load(tiny_run[0])
    found = Predictor.load("user/head")
    assert found(image, LABELS) == own(image, LABELS) and found.calibration == own.calibration
    config, model = load_run("user/head")
    assert config.head == own.config.head and model.clip_weight == own.model.clip_weight


def test_a_revision_can_be_named(kept, cache):
    other = json.loads(kept["metrics.json"])
    other["calibration"]["threshold"] = 0.875
    hub_cache(cache, "user/head", kept)
    commit = hub_cache(cache, "user/head", kept | {"metrics.json": json.dumps(other).encode()}, ["v1"])
    assert Predictor.load("user/head").threshold != 0.875
    for name, revision in (
        ("user/head", "v1"),
        ("user/head", commit),
        ("user/head@v1", None),
        (f"user/head@{commit}", ""),
    ):
        assert Predictor.load(name, revision=revision).threshold == 0.875
    with pytest.raises(FileNotFoundError, match="no run folder .*the Hugging Face hub gave no repository user/head"):
        Predictor.load("user/head", revision="v2")


def test_a_folder_that_is_there_goes_first(tiny_run, kept, cache):
    hub_cache(cache, "user/head", kept)
    Path("user").mkdir()
    Path("user/head").symlink_to(tiny_run[0])
    assert find_run("user/head") == Path("user/head")
    assert find_run("head", start="user") == Path("user/head")
    with pytest.raises(ValueError, match="user/head is no repository of the hub, .* leave 'main' out"):
        Predictor.load("user/head", revision="main")
    with pytest.raises(ValueError, match="revision is for a run on the hub, and mini is a CLIP"):
        Predictor.load("mini", revision="main")


def test_a_run_is_found_in_home_too(tiny_run, tmp_path, monkeypatch):
    """As data are: from notebooks/, and where CLIPDEC_HOME names another place."""
    home = tmp_path / "home"
    (home / "runs").mkdir(parents=True)
    (home / "runs/own").symlink_to(tiny_run[0])
    monkeypatch.setattr(data, "HOME", home)
    monkeypatch.chdir(tmp_path)
    assert find_run("runs/own") == home / "runs/own" and load_run("runs/own")
    (tmp_path / "runs/own").mkdir(parents=True)
    assert find_run("runs/own") == Path("runs/own")  # here goes first
    assert find_run("runs/own", start=home) == home / "runs/own"
    with pytest.raises(FileNotFoundError, match=f"^{tmp_path}/runs/typo is not a run folder"):
        load_run("runs/typo")


@pytest.mark.parametrize("wrong", [
    {"label_embeddings": "/home/me/private.npz"}, {"image_weights": "..\\x.pth"}, {"text_tower": "local-dir:~/clip"},
    {"image_tower": "open_clip:ViT-B-32/weights.pt"},
    {"sentence_tower": "open_clip:ViT-B-32"}, {"label_embeddings": r"\\host\share\x.npz"},
])  # fmt: skip
def test_a_run_of_the_hub_opens_no_file_of_the_reader(kept, cache, wrong):
    settings = json.loads(kept["config.json"]) | wrong
    hub_cache(cache, "user/head", kept | {"config.json": json.dumps(settings).encode()})
    with pytest.raises(ValueError, match="the run user/head names .*, a file of another machine"):
        Predictor.load("user/head")


def test_files_of_a_run_from_windows_are_found_beside_it(tmp_path):
    (tmp_path / "glove.npz").write_bytes(b"")
    assert beside("C:\\Users\\anna\\glove.npz", tmp_path) == str(tmp_path / "glove.npz")


def test_a_wrong_name_is_an_error_that_says_both_readings(cache):
    for load in (Predictor.load, load_run):
        with pytest.raises(FileNotFoundError) as found:
            load("user/typo")
        for part in ("no run folder user/typo", "hub gave no repository user/typo", "04_train.ipynb"):
            assert part in str(found.value)
        assert "\n" not in str(found.value)


def test_what_can_be_no_repository_is_not_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(shared, "snapshot_download", lambda *_, **__: 1 / 0)
    ours = "runs/typo", "runs/typo@main", "./runs/typo", "../runs/typo", "runs/typo/"
    for path in (Path("user/typo"), "emoji", "a/b/c", f"{tmp_path}/x", *ours):
        with pytest.raises(FileNotFoundError, match="is not a run folder"):
            load_run(path)


def test_only_the_files_of_a_run_are_asked_for(monkeypatch, tmp_path):
    asked = {}
    monkeypatch.setattr(
        shared, "snapshot_download", lambda name, **options: asked.update(options, name=name) or tmp_path
    )
    assert find_run("user/head", "v1") == tmp_path
    assert asked == {"name": "user/head", "revision": "v1", "allow_patterns": SHARED}
    with pytest.raises(ValueError, match="names a revision already: leave 'v2' out, or 'v1'"):
        find_run("user/head@v1", "v2")
    assert not {"state.pt", "scores.npz", "history.csv", "lock"} & {*SHARED}


def test_the_command_takes_the_name_where_nothing_can_be_downloaded(tiny, kept, tmp_path):
    hub_cache(tmp_path / "hub", "user/head", kept)
    tiny.test.image(0).save(tmp_path / "x.png")
    command = [sys.executable, "-m", "clipdec.predictor", "user/head", "x.png", "--labels", "pizza", "--json"]
    places = {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | places, capture_output=True, text=True)
    [row] = json.loads(done.stdout)
    assert done.returncode == 0 and row["labels"][0]["label"] == "pizza"


def test_files_of_settings_that_lie_in_the_folder_go_first(settings, tmp_path):
    """label_embeddings and image_weights, but not the data."""
    names = {"label_embeddings": "elsewhere/vectors.npz", "image_weights": "weights.pth", "data": "data/mine"}
    (tmp_path / "config.json").write_text(json.dumps(settings(tmp_path).as_dict() | names))
    assert {name: getattr(Config.load(tmp_path), name) for name in names} == names
    for file in ("vectors.npz", "weights.pth", "mine"):
        (tmp_path / file).write_text("")
    found = Config.load(tmp_path)
    assert found.path("label_embeddings") == tmp_path / "vectors.npz" and found.data == "data/mine"
    assert found.path("image_weights") == tmp_path / "weights.pth"
