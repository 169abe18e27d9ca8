"""`make photos` from the first line to the last, on local files of the form that the hub and open_clip have."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import ClassLabel, Features, Image, Sequence, Value
from helpers import ROOT
from safetensors.torch import save_file

from clipdec.comparison import beside_clip
from clipdec.comparison.methods.raw_clip import window_scores
from clipdec.data import load_data
from clipdec.labels import read_names
from clipdec.metrics import zsl_report
from clipdec.training.build import load_run
from data_prep.names import SPLITS

sys.path.append(str(ROOT / "tests" / "data_prep"))
from samples import encode  # noqa: E402

SEEN, UNSEEN = (read_names(SPLITS / f"coco_{name}.txt")[0] for name in ("seen48", "unseen17"))
OTHERS = [f"other class {i}" for i in range(15)]
CLASSES = sorted(SEEN + UNSEEN + OTHERS)
MODEL = "ViT-S-32-alt"


def parquet(folder):
    """A data set as detection-datasets/coco lays it out: a folder of parquet files with images and their objects."""
    objects = {"bbox_id": Sequence(Value("int64")), "category": Sequence(ClassLabel(names=CLASSES))}
    features = Features({"image_id": Value("int64"), "image": Image(), "objects": objects})
    folder.mkdir()
    for split, count in (("train", 40), ("val", 30)):
        table = pa.Table.from_pylist([row(split, i) for i in range(count)], schema=features.arrow_schema)
        pq.write_table(table, folder / f"{split}-00000-of-00001.parquet")


def row(split, i):
    pixels = np.random.default_rng([i, split == "val"]).integers(0, 256, (24, 32, 3), np.uint8)
    photo = {"bytes": encode(PIL.Image.fromarray(pixels), "JPEG"), "path": None}
    names = [SEEN[i % 48], SEEN[(7 * i) % 48], UNSEEN[i % 17], OTHERS[i % 15]]
    objects = {"bbox_id": list(range(4)), "category": [CLASSES.index(name) for name in names]}
    return {"image_id": i, "image": photo, "objects": objects}


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make")
def test_the_whole_command(tmp_path):
    parquet(tmp_path / "coco")
    torch.manual_seed(0)
    save_file(open_clip.create_model(MODEL).state_dict(), tmp_path / "weights.safetensors")
    clip, home = f"open_clip:{MODEL}/{tmp_path / 'weights.safetensors'}", tmp_path / "home"
    venv = Path(sys.prefix)
    values = {"VENV": venv, "PHOTOS": tmp_path / "coco", "CLIP": clip, "LIMIT": 32, "EPOCHS": 1}
    command = [
        "make",
        "--no-print-directory",
        "-o",
        str(venv / ".installed"),
        "photos",
        *(f"{name}={value}" for name, value in values.items()),
    ]
    environment = os.environ | {"CLIPDEC_HOME": str(home), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("32 train and 32 test photos of COCO (about 0.16 MB each) and a CLIP")
    data = load_data(home / "data" / "photos")
    assert (data.labels.seen, data.labels.unseen) == (sorted(SEEN), sorted(UNSEEN))
    assert len(data.train) + len(data.val) == 32 and len(data.test) == 30
    config, model = load_run(home / "runs" / "photos")
    assert config.preset == "clip" and config.image_tower == clip and model.tower.num_tokens == 49
    table = done.stdout[done.stdout.index("passes") :]
    rows = re.findall(
        r"^(raw CLIP, cosine|raw CLIP, softmax|CLIP-Decoder) +(\d+)((?: +\d+\.\d){4})$", table, re.MULTILINE
    )
    assert [(name, int(passes)) for name, passes, _ in rows] == [
        ("raw CLIP, cosine", 1), ("raw CLIP, softmax", 1), ("raw CLIP, softmax", 5), ("CLIP-Decoder", 1),
    ]  # fmt: skip


def test_a_run_beside_clip(tiny, tiny_run):
    """The cosine row and the run's are those of metrics.json; the order within an image is that of the cosine."""
    folder, metrics = tiny_run
    rows = beside_clip.beside_clip(folder, [0])
    assert [(name, passes) for name, passes, _ in rows] == [
        ("raw CLIP, cosine", 1),
        ("raw CLIP, softmax", 1),
        ("CLIP-Decoder", 1),
    ]
    cosine, softmax, run = (report for _, _, report in rows)
    assert cosine == metrics["raw_clip"] and run["zsl"] == metrics["zsl"]
    assert softmax["gzsl"]["f1@3"] == pytest.approx(cosine["gzsl"]["f1@3"], abs=0.5)
    line = beside_clip.table(rows).splitlines()[-1]
    figures = [metrics[task][name] for task, name in beside_clip.COLUMNS.values()]
    assert line.split() == ["CLIP-Decoder", "1", *(f"{x:.1f}" for x in figures)]


def test_a_part_that_a_run_has_no_figures_of_is_a_dash(tiny_run, tmp_path):
    folder = shutil.copytree(tiny_run[0], tmp_path / "run")
    metrics = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps({k: v for k, v in metrics.items() if k not in ("raw_clip", "zsl")}))
    cosine, _, run = beside_clip.table(beside_clip.beside_clip(folder, [0])).splitlines()[1:]
    assert cosine.split()[-4:] == ["–"] * 4 and run.split()[2:4] == ["–", "–"] and run.split()[4] != "–"


def test_data_that_are_others_by_now_are_an_error(tiny_run, tmp_path):
    folder = shutil.copytree(tiny_run[0], tmp_path / "run")
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["inputs"]["data"] = "another"
    (folder / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(SystemExit, match="error: the data in .* are not those of .*: name their folder, --data"):
        beside_clip.main([str(folder)])


def test_no_run_is_an_error(tmp_path):
    with pytest.raises(SystemExit, match="error: .* is not a run folder"):
        beside_clip.main([str(tmp_path)])


def test_a_run_that_is_not_finished_and_data_that_lie_elsewhere(tiny, tiny_run, tmp_path, capsys):
    folder = shutil.copytree(tiny_run[0], tmp_path / "run")
    settings = json.loads((folder / "config.json").read_text()) | {"data": "data/gone"}
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(SystemExit, match="there is no data folder .*gone"):
        beside_clip.main([str(folder), "--windows", "0"])
    beside_clip.main([str(folder), "--windows", "0", "--data", str(tiny.folder)])
    assert capsys.readouterr().out == beside_clip.table(beside_clip.beside_clip(tiny_run[0], [0])) + "\n"
    (folder / "metrics.json").unlink()
    with pytest.raises(SystemExit, match="error: .* has no metrics.json, it is not finished"):
        beside_clip.main([str(folder)])


def test_clip_beside_a_run_looks_at_the_windows_and_at_what_is_known(tiny, tiny_run, monkeypatch):
    (folder, _), known = tiny_run, tiny.test.targets | (torch.rand(tiny.test.targets.shape) < 0.3)
    config = load_run(folder)[0]
    for data in (tiny, replace(tiny, test=replace(tiny.test, known=known))):
        vars(data)["fingerprint"] = tiny.fingerprint
        monkeypatch.setattr(beside_clip, "load_data", lambda _, data=data: data)
        _, whole, windows, _ = beside_clip.beside_clip(folder, [0, 4])
        for (_, passes, report), looks in ((whole, 0), (windows, 4)):
            scores = window_scores(data, replace(config, windows=looks))
            assert report == zsl_report(scores, data.test.targets, data.labels, known=data.test.known), passes
        assert whole[2]["zsl"] != windows[2]["zsl"]
