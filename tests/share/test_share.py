"""Sharing a run: its card says what metrics.json says, it opens on another machine, and nothing else goes."""

import hashlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants
import numpy as np
import pytest
import yaml
from helpers import files, hub_cache, save_vectors, timm_file
from huggingface_hub.utils import filter_repo_objects
from safetensors import safe_open

from clipdec import Config, LabelSpace, Predictor, load_run
from clipdec.share import share as sharing
from clipdec.share.__main__ import main
from clipdec.share.card import base_models, model_card, towers
from clipdec.share.share import about_data, check_towers, share, shared_metrics, write_shared
from clipdec.training.shared import SHARED, VECTORS

NAME, LABELS = "user/tiny-head", ["pizza", "dog face", "key"]


@pytest.fixture(scope="module")
def shared(tiny_run, tmp_path_factory):
    """(folder, contents of its README.md) of what is shared of `tiny_run`."""
    folder = tmp_path_factory.mktemp("shared") / "tiny"
    write_shared(tiny_run[0], folder, NAME, "cc-by-sa-4.0")
    return folder, (folder / "README.md").read_text(encoding="utf8")


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """elsewhere(folder): its files in the cache of another machine, where NAME is asked for."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("clipdec.data.HOME", tmp_path / "home")
    return lambda folder: hub_cache(tmp_path / "hub", NAME, files(folder))


class Calls(list):
    """What a FakeApi was asked; `api` is its class."""


@pytest.fixture
def hub(monkeypatch):
    """Calls of a hub that keeps nothing: what is asked of it, and the files that would go."""
    calls = Calls()

    class FakeApi:
        public = False  # whether the repository was there before

        def repo_info(self, name):
            return SimpleNamespace(private=not self.public)

        def create_repo(self, name, **options):
            calls.append(("create", name, options))
            return f"https://huggingface.co/{name}"

        def upload_folder(self, *, repo_id, folder_path, allow_patterns, commit_message):
            names = [str(path.relative_to(folder_path)) for path in Path(folder_path).rglob("*")]
            going = sorted(filter_repo_objects(names, allow_patterns=allow_patterns))
            calls.append(("upload", repo_id, {name: Path(folder_path, name).read_bytes() for name in going}))

    monkeypatch.setattr(sharing, "HfApi", FakeApi)
    calls.api = FakeApi
    return calls


def front(card):
    return yaml.safe_load(card.split("---\n")[1])


def test_the_card_says_to_the_hub_what_metrics_json_says(shared, tiny_run):
    about, metrics = front(shared[1]), tiny_run[1]
    assert about["library_name"] == "clipdec" and about["license"] == "cc-by-sa-4.0" and "base_model" not in about
    assert about["pipeline_tag"] == "zero-shot-image-classification" and "multi-label" in about["tags"]
    (index,) = about["model-index"]
    assert index["name"] == "tiny-head" and index["results"][0]["dataset"] == {
        "name": "tiny",
        "type": "tiny",
        "split": "test",
    }
    found = {figure["name"]: figure["value"] for figure in index["results"][0]["metrics"]}
    expected = {
        f"{t.upper()} {n}, percent": metrics[t][f]
        for t in ("zsl", "gzsl")
        for n, f in (("mAP", "map"), ("F1@3", "f1@3"))
    }
    assert found == pytest.approx(expected)


def test_its_text_has_the_figures_with_raw_clip_beside_them(shared, tiny, tiny_run):
    text, metrics = shared[1], tiny_run[1]
    columns = [("zsl", "map"), ("zsl", "f1@3"), ("gzsl", "map"), ("gzsl", "f1@3"), ("seen", "map")]
    for title, report in (("this run", metrics), ("raw CLIP", metrics["raw_clip"])):
        (line,) = re.findall(rf"^\| {title} \| (.*) \|$", text, re.M)
        figures = [report.get(task, {}).get(figure) for task, figure in columns]
        assert line.split(" | ") == ["–" if figure is None else f"{figure:.1f}" for figure in figures]
    assert f"{metrics['calibration']['threshold']:.3f}" in text and "base_rate=0.05" in text
    assert f'Predictor.load("{NAME}")' in text and "60 test images (keep=all)" in text and "chosen on val" in text
    assert tiny.info["source"] in text and "Data: `CC BY-SA 4.0`. All emojis designed by OpenMoji" in text
    assert "925 seen labels, such as" in text and "is frozen and not part of the checkpoint" in text
    assert f"120 train, 30 val, {len(tiny.test)} test images" in text


def test_it_opens_on_another_machine(shared, tiny, tiny_run, elsewhere):
    elsewhere(shared[0])
    image, own, found = tiny.test.image(1), Predictor.load(tiny_run[0]), Predictor.load(NAME)
    assert found(image, LABELS) == own(image, LABELS)
    settings, here = load_run(NAME)[0].decisive(), load_run(tiny_run[0])[0].decisive()
    assert settings == here and found.labels == own.labels and found.calibration == own.calibration


def test_nothing_of_this_machine_goes_along(shared, tiny, tiny_run):
    folder, _ = shared
    assert {f.name for f in folder.iterdir()} == set(
        "README.md checkpoint.safetensors config.json labels.json metrics.json".split()
    )
    config, metrics = (json.loads((folder / name).read_text()) for name in ("config.json", "metrics.json"))
    assert metrics["config"] == config and config["data"] == metrics["data"] == "tiny"
    assert not {"out_dir", "device", "resume", "processes", "num_workers", "save_minutes"} & config.keys()
    assert {k: v for k, v in metrics.items() if k not in ("config", "data")} == {
        k: v for k, v in json.loads((tiny_run[0] / "metrics.json").read_text()).items() if k not in ("config", "data")
    }
    with safe_open(folder / "checkpoint.safetensors", "pt") as file:
        texts = [
            *file.metadata().values(),
            *((folder / n).read_text("utf8") for n in files(folder) if n[-5:] != "nsors"),
        ]
    assert not any(
        str(place) in text for text in texts for place in (tiny.folder.parent, tiny_run[0].parent, Path.home())
    )


def test_label_vectors_of_a_file_go_along(train, tiny, tmp_path, elsewhere):
    run, folder, file = tmp_path / "run", tmp_path / "shared", tmp_path / "mine.npz"
    vectors = np.random.default_rng(0).normal(size=(len(tiny.labels.names), 12)).astype(np.float32)
    train(run, label_embeddings=save_vectors(file, tiny.labels.names, vectors))
    image, own = tiny.test.image(1), Predictor.load(run)(tiny.test.image(1), LABELS)
    write_shared(run, folder, NAME)
    assert json.loads((folder / "config.json").read_text())["label_embeddings"] == VECTORS
    assert "asked about the names in that file" in (folder / "README.md").read_text()
    file.unlink()
    with pytest.raises(ValueError, match="mine.npz"):
        Predictor.load(run)
    elsewhere(folder)
    assert Predictor.load(NAME)(image, LABELS) == own
    save_vectors(folder / VECTORS, tiny.labels.names, vectors[::-1])
    with pytest.raises(ValueError, match="was trained with another label_embeddings"):
        load_run(folder)


def test_weights_of_a_tower_that_are_a_file_are_named(train, tiny, tmp_path, elsewhere):
    run, folder, path = tmp_path / "run", tmp_path / "shared", timm_file("test_resnet.r160_in1k", tmp_path)[1]
    train(run, image_tower="timm:test_resnet.r160_in1k", image_weights=str(path))
    own, sha = Predictor.load(run)(tiny.test.image(1), LABELS), hashlib.sha256(path.read_bytes()).hexdigest()
    assert set(write_shared(run, folder, NAME)) < {"README.md", *SHARED}
    card = (folder / "README.md").read_text()
    assert f"needs a file that is not here, the weights of its image tower: `{path.name}`, SHA-256 `{sha}`" in card
    assert "base_model" not in front(card) and str(tmp_path) not in card
    elsewhere(folder)
    with pytest.raises(FileNotFoundError, match=f"there is no file .*home.{path.name}, which image_weights names"):
        Predictor.load(NAME)
    (tmp_path / "home").mkdir()
    shutil.copy(path, tmp_path / "home")
    assert Predictor.load(NAME)(tiny.test.image(1), LABELS) == own


@pytest.mark.parametrize("tower", ["local-dir:/home/me/clip", "open_clip:ViT-B-32//home/me/weights.pt"])
@pytest.mark.parametrize("setting", ["image_tower", "text_tower", "sentence_tower"])
def test_a_tower_that_is_a_file_of_this_machine_is_refused(setting, tower):
    with pytest.raises(ValueError, match=f"the tower {tower} is a file or folder of this machine.*published"):
        check_towers(Config(**{setting: tower}))


def test_base_models_are_repositories_of_the_hub():
    clip, paper = Config(preset="clip"), Config(preset="paper")
    check_towers(clip)
    check_towers(paper)
    assert base_models(clip) == ["laion/CLIP-ViT-B-32-laion2B-s34B-b79K"] and base_models(Config()) == []
    assert base_models(paper)[0] == "timm/tresnet_m.miil_in21k" and len(base_models(paper)) == 3
    assert "was trained; its weights are in `checkpoint.safetensors`" in towers(paper)
    assert "https://huggingface.co/laion/CLIP-ViT-B-32" in towers(clip) and "is frozen" in towers(clip)


def test_the_card_of_a_run_that_lacks_figures(tiny_run):
    labels, config = LabelSpace(["a"], []), Config(data="/home/me/mine")
    lacking = {
        "zsl": {},
        "gzsl": {"map": None, "f1@10": 2.0},
        "seen": {"map": 5.0},
        "calibration": tiny_run[1]["calibration"],
    }
    lacking |= {"left_out": {"raw_clip": "OSError"}, "chosen_by": "test_map", "protocol": {"known_pairs": 1.5}}
    card = model_card(NAME, config, lacking, labels, {"source": "photos in /home/me/photos"}, "other")
    figures = front(card)["model-index"][0]["results"][0]["metrics"]
    assert [(f["name"], f["value"]) for f in figures] == [("GZSL F1@10, percent", 2.0)]
    assert "| this run | – | – | – | 2.0 | 5.0 |" in card and "Not computed: raw_clip." in card and "/home" not in card
    assert "chosen on test, so these figures flatter" in card and "1.5 % of pairs" in card and "not known" in card


def test_other_data_under_the_same_name_are_not_described(tiny_run, tiny):
    config, metrics = load_run(tiny_run[0])[0], tiny_run[1]
    assert about_data(config, metrics)["images"]["test"] == len(tiny.test)
    assert about_data(config, metrics | {"inputs": {"data": "another"}}) == {}
    assert about_data(replace(config, data="/nowhere"), metrics) == {}


def test_nothing_private_goes_to_a_public_repository(tiny_run, hub):
    hub.api.public = True
    with pytest.raises(SystemExit, match="error: user/tiny-head is there, and public"):
        main([str(tiny_run[0]), NAME, "--private"])
    assert [call[0] for call in hub] == ["create"]
    main([str(tiny_run[0]), NAME])
    assert [call[0] for call in hub] == ["create", "create", "upload"]


def test_texts_of_a_data_set_mean_nothing_in_the_card(tiny_run):
    config, metrics = Predictor.load(tiny_run[0]).config, tiny_run[1]
    labels = LabelSpace(["<img src=x onerror=alert(1)>", "a_b*c*"], ["`![i](http://t/p.png)`"])
    info = {"source": "/home/me/coco <b>", "attribution": "by <b>me</b> ![i](http://t/p.png), [page](https://a.b)"}
    card = model_card(NAME, config, metrics, labels, info | {"licence": "![i](http://t/p.png)"}, "mit")
    plain = re.sub("`[^`\n]*`", "", card.split("---\n", 2)[2])
    assert "<" not in plain and "![" not in plain and "*c*" not in plain and "/home/me" not in card
    assert "[page](https://a.b)" in plain


def test_what_is_sent_is_what_a_dry_run_writes(tiny_run, tmp_path, hub, capsys):
    main([str(tiny_run[0]), NAME, "--dry-run", "--out", str(tmp_path / "dry")])
    assert "nothing was sent" in capsys.readouterr().out and not hub
    main([str(tiny_run[0]), NAME, "--private"])
    assert hub == [("create", NAME, {"exist_ok": True, "private": True}), ("upload", NAME, files(tmp_path / "dry"))]
    assert capsys.readouterr().out == f"https://huggingface.co/{NAME}\n"
    share(tiny_run[0], NAME)
    assert hub[2][2] == {"exist_ok": True}


def test_folders_that_are_not_written_to(tiny_run, shared, tmp_path):
    copy, before = shutil.copytree(shared[0], tmp_path / "copy"), files(shared[0])
    (copy / ".DS_Store").write_text("")  # macOS leaves it where a folder was looked at
    assert write_shared(tiny_run[0], copy, NAME, "cc-by-sa-4.0") == sorted(before)  # over itself
    (copy / ".DS_Store").unlink()
    assert files(copy) == before
    (copy / "notes.txt").write_text("mine")
    for folder in (copy, tiny_run[0], copy / "notes.txt"):
        with pytest.raises(FileExistsError):
            write_shared(tiny_run[0], folder, NAME)
    with pytest.raises(FileExistsError):
        write_shared(shared[0], shared[0], NAME)
    assert files(copy) == before | {"notes.txt": b"mine"}


@pytest.mark.parametrize("name", ["head", "user/head/more", "user/--head", "user/hea d"])
def test_names_that_the_hub_cannot_have(tiny_run, hub, name, capsys):
    with pytest.raises(SystemExit, match="error"):
        main([str(tiny_run[0]), name])
    assert not hub


def test_runs_that_cannot_be_shared(tiny_run, hub, tmp_path):
    half = shutil.copytree(tiny_run[0], tmp_path / "half")
    (half / "metrics.json").unlink()
    for run, why in ((half, "not finished"), (tmp_path / "none", "not a run folder"), ("mini", "not a run folder")):
        with pytest.raises(SystemExit, match=why):
            main([str(run), NAME])
    with pytest.raises(SystemExit):
        main([str(tiny_run[0]), NAME, "--out", str(tmp_path / "x")])
    assert not hub and not (tmp_path / "x").exists()


def test_of_an_error_its_kind_goes_and_not_its_text():
    metrics = {"data": "/home/me/mine", "left_out": {"raw_clip": "OSError: [Errno 28] /home/me/full"}}
    found = shared_metrics(metrics, {"data": "mine"})
    assert found == {"data": "mine", "config": {"data": "mine"}, "left_out": {"raw_clip": "OSError"}}


def test_the_card_says_of_probabilities_and_limits_what_metrics_json_says(tiny_run):
    config, metrics = load_run(tiny_run[0])[0], tiny_run[1]
    gaps = {"seen": {"gap": 1.0, "gap_from_0.1": 23.0}, "unseen": {"gap": 2.0, "gap_from_0.1": 45.0}}
    calibration = metrics["calibration"] | {"base_rate": 0.034, "threshold": 0.217}
    about = metrics | {"reliability": gaps, "calibration": calibration, "best_epoch": 7, "epochs": 9, "seed": 3}
    about |= {"zsl_without_twins": {"map": 12.34}}
    card = model_card(NAME, config, about, LabelSpace(["a"], ["b"]), {}, "mit")
    said = ["in 3.4 % of its images", "threshold`, 0.217, is", "23 points for seen labels, 45 points for unseen labels"]
    said += ["The epoch (7 of 9, seed 3)", "27 unseen labels have a seen one", "without them ZSL mAP is 12.3"]
    said += ["5 % of the seen labels were kept out of the training"]
    assert [text for text in said if text not in card] == []


def test_a_run_of_windows_is_shared_without_its_folders(tiny_run, tmp_path):
    run = shutil.copytree(tiny_run[0], tmp_path / "run")
    path = "C:\\Users\\Anna Privat\\data\\mine"
    for name in ("config.json", "metrics.json"):
        content = json.loads((run / name).read_text())
        (run / name).write_text(json.dumps(content | {"data": path}))
    write_shared(run, tmp_path / "shared", NAME)
    assert not any(b"Anna" in content for content in files(tmp_path / "shared").values())
    assert json.loads((tmp_path / "shared" / "config.json").read_text())["data"] == "mine"
