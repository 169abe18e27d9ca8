"""A system without POSIX, as Windows is: a preparation, a short `fit`, a run that is broken off and resumed, the
Predictor, the export, each in a process of its own. On Linux `simulated/sitecustomize.py` makes it so.
"""

import csv
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import ROOT, at_step, results
from PIL import Image
from safetensors.torch import load_file

from clipdec import Predictor
from clipdec.data import load_data
from clipdec.training import memory
from clipdec.training.__main__ import main
from data_prep import emoji_scenes

FEW = {"train": 6, "val": 3, "test": 3}
AUGMENTED = {"augment": True, "batch_size": 60}
NAMES = ("red", "green", "blue", "café")


def there(*command, fails=False):
    """What `python *command` prints on such a system; it must `fail` or not."""
    paths = [str(ROOT / "tests"), str(ROOT)]
    if sys.platform == "linux":
        paths.insert(0, str(ROOT / "tests" / "simulated"))
    env = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUTF8": "0"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, env=env, start_new_session=True, **pipes)
    printed = done.stdout.decode("cp1252")
    assert bool(done.returncode) == fails, printed
    return printed


def call(function, *arguments, **options):
    """The same of a function of this file, whose arguments are texts."""
    texts = ", ".join(repr(str(argument)) for argument in arguments)
    return there("-c", f"import test_platform; test_platform.{function.__name__}({texts})", **options)


def draw_anew(out):
    """Other scenes in the place of those that are in use."""
    data = load_data(out)
    emoji_scenes.prepare(out, seed=1, sizes=FEW, workers=2)
    print(data.info["seed"])


def break_off(config):
    at_step(pytest.MonkeyPatch(), 2, lambda: 1 / 0)
    main(["--config", config])


def test_photos_are_prepared(tmp_path):
    (tmp_path / "photos").mkdir()
    rows = [("image", "labels")]
    for i in range(12):
        pixels = np.random.default_rng(i).integers(0, 256, (40, 48, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"Foto {i} ü.jpg")
        rows.append((f"Foto {i} ü.jpg", NAMES[i % 4]))
    with open(tmp_path / "labels.csv", "w", newline="", encoding="utf8") as file:
        csv.writer(file).writerows(rows)
    (tmp_path / "unseen.txt").write_text("café\n", encoding="utf8")
    files = ["--images", tmp_path / "photos", "--labels", tmp_path / "labels.csv", "--unseen", tmp_path / "unseen.txt"]
    command = ["-m", "data_prep.folder", *files, "--size", 32, "--out", tmp_path / "data"]
    there(*command)
    data = load_data(tmp_path / "data")
    assert (data.labels.unseen, sorted(data.labels.seen)) == (["café"], ["blue", "green", "red"])
    assert len(data.train) + len(data.val) + len(data.test) == 12 and len(data.val) == 1
    assert "is ready" in there(*command)
    assert {path.name for path in tmp_path.iterdir()} <= {"photos", "labels.csv", "unseen.txt", "data", "data.lock"}


def test_a_data_set_in_use_is_not_lost(tmp_path):
    out = emoji_scenes.prepare(tmp_path / "scenes", seed=0, sizes=FEW, workers=1)
    assert "scenes" in call(draw_anew, out, fails=True)
    data = load_data(out)
    assert data.info["seed"] == 0 and [data.test.image(i).size for i in range(3)] == [(128, 128)] * 3
    del data
    there("-m", "data_prep.emoji_scenes", "--out", out, "--seed", 1, *(f"--{k}={n}" for k, n in FEW.items()))
    assert load_data(out).info["seed"] == 1


@pytest.fixture(scope="module")
def written(settings, tiny, tmp_path_factory):
    """written(out_dir, **changes): a file of settings; the data are a copy, for locks of this system and of that do not
    heed each other.
    """
    anew = shutil.ignore_patterns("tokens")  # whose lock files this system would take for locks that are held
    data = shutil.copytree(tiny.folder, tmp_path_factory.mktemp("there") / "tiny", ignore=anew)

    def write(out_dir, **changes):
        config = settings(out_dir, **AUGMENTED | changes).as_dict() | {"data": str(data)}
        path = out_dir.with_name(f"{out_dir.name}.json")
        path.write_text(json.dumps(config), encoding="utf8")
        return path

    return write


@pytest.fixture(scope="module")
def trained(written, tmp_path_factory):
    """Folder of a run that was trained there."""
    folder = tmp_path_factory.mktemp("trained")
    there("-m", "clipdec.training", "--config", written(folder))
    return folder


def test_a_run_is_that_of_any_system(trained, train, tmp_path):
    metrics = json.loads((trained / "metrics.json").read_text(encoding="utf8"))
    assert results(metrics) == pytest.approx(results(train(tmp_path, **AUGMENTED)), abs=1e-3)
    assert metrics["peak_memory_mb"] > 100


def test_a_run_that_is_broken_off_goes_on(trained, written, tmp_path):
    """With processes that load its images, too."""
    assert "ZeroDivisionError" in call(break_off, written(tmp_path, save_minutes=0.0), fails=True)
    there("-m", "clipdec.training", "--config", written(tmp_path, num_workers=2), "--resume")
    mine, its = (load_file(folder / "checkpoint.safetensors") for folder in (tmp_path, trained))
    torch.testing.assert_close(mine, its)


def test_names_in_letters_that_a_pipe_has_not(tiny, written, tmp_path):
    folder = shutil.copytree(tiny.folder, tmp_path / "data", ignore=lambda *_: ["tokens"])
    names = {"seen": [f"гора {i}" for i in range(925)], "unseen": [f"река {i}" for i in range(81)]}
    (folder / "labels.json").write_text(json.dumps(tiny.info | names), "utf8")
    path = written(tmp_path / "run")
    path.write_text(json.dumps(json.loads(path.read_text("utf8")) | {"data": str(folder)}), "utf8")
    printed = there("-m", "clipdec.training", "--config", path)
    assert "held out of the training, to choose by (46): ????" in printed and "CLIP-Decoder" in printed


def test_the_predictor_prints_what_it_finds(trained, tiny, tmp_path):
    """On a pipe of cp1252, which has no tick."""
    tiny.test.image(0).save(tmp_path / "Foto ü.png")
    names = ["pizza", "dog face", "Café"]
    printed = there("-m", "clipdec.predictor", trained, tmp_path / "Foto ü.png", "--labels", *names)
    for name, p in Predictor.load(trained)(tmp_path / "Foto ü.png", names):
        (line,) = (line for line in printed.splitlines() if name in line and f"{p:.3g}" in line)
    assert "Foto ü.png" in printed


def test_a_run_is_exported(trained, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    there("-m", "clipdec.export", trained, tmp_path / "model.onnx")
    inputs = onnxruntime.InferenceSession(str(tmp_path / "model.onnx")).get_inputs()
    assert "pixels" in {each.name for each in inputs}


@pytest.mark.skipif(sys.platform != "linux", reason="what is simulated on Linux is real here")
def test_the_simulation_is_as_poor_as_it_says(tmp_path):
    call(try_what_windows_refuses, tmp_path)


def try_what_windows_refuses(folder):
    folder = Path(folder)
    with pytest.raises(ImportError):
        import resource  # noqa: F401
    with pytest.raises(UnicodeEncodeError):
        print("✓")
    with pytest.raises(UnicodeEncodeError):
        (folder / "text").write_text("✓")
    with pytest.raises(PermissionError):
        os.open(folder, os.O_RDONLY)
    with pytest.raises(ValueError):
        multiprocessing.get_context("fork")
    with open(folder / "text") as file:
        for refused in (file.name, folder):
            with pytest.raises(PermissionError):
                os.replace(refused, folder.with_name("other"))
        with pytest.raises(PermissionError):
            shutil.rmtree(folder)
    mapped = np.memmap(folder / "mapped", mode="w+", shape=4)
    with pytest.raises(PermissionError):
        (folder / "mapped").unlink()
    del mapped
    (folder / "mapped").unlink()


@pytest.mark.parametrize("system, unit", [("linux", 1024), ("darwin", 1)])
def test_peak_memory_in_the_unit_of_the_system(monkeypatch, system, unit):
    usage = {0: SimpleNamespace(ru_maxrss=3_000_000), 1: SimpleNamespace(ru_maxrss=5_000_000)}
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(memory, "resource", SimpleNamespace(RUSAGE_SELF=0, RUSAGE_CHILDREN=1, getrusage=usage.get))
    assert (memory.peak_resident_mb(), memory.peak_resident_mb(children=True)) == (3 * unit, 5 * unit)
