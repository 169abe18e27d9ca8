"""Notebooks with other parameters than their defaults, which run under --nbval: photos with labels of one's own."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import papermill
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[1]
COLOURS = {
    "red": (200, 30, 30), "green": (30, 160, 40), "blue": (30, 50, 200), "white": (240, 240, 240),
    "black": (10, 10, 10), "red roof": (180, 60, 50),
}  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A prepared data set of 60 small photos, each of one or two colours; "red" is unseen."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    rows = ["image,labels"]
    for i in range(60):
        names = sorted(rng.choice(list(COLOURS), rng.integers(1, 3), replace=False))
        stripes = np.concatenate([np.full((40, 60 // len(names), 3), COLOURS[n]) for n in names], axis=1)
        picture = (stripes + rng.normal(0, 8, (40, 60, 3))).clip(0, 255).astype(np.uint8)
        Image.fromarray(picture).save(folder / f"{i}.jpg")
        rows.append(f"{i}.jpg,{';'.join(names)}")
    (folder / "labels.csv").write_text("\n".join(rows))
    (folder / "unseen.txt").write_text("red\nwhite\n")
    given = ["--images", folder, "--labels", folder / "labels.csv", "--unseen", folder / "unseen.txt", "--size", "32"]
    command = [sys.executable, "-m", "data_prep.folder", *given, "--out", folder / "data"]
    subprocess.run(command, check=True, cwd=ROOT)
    return folder / "data"


def run(name, out, **parameters):
    path = next((ROOT / "notebooks").glob(f"{name}_*.ipynb"))
    given = {k: str(v) if isinstance(v, Path) else v for k, v in parameters.items()}
    return papermill.execute_notebook(str(path), str(out), given, cwd=str(ROOT), progress_bar=False)


def printed(notebook):
    return "".join(o.text for cell in notebook.cells for o in cell.get("outputs", []) if o.output_type == "stream")


def test_the_splits_of_any_data(photos, tmp_path):
    text = printed(run("01", tmp_path / "01.ipynb", data=photos))
    assert "photos of photos" in text and "2 unseen" in text and "red roof (word)" in text


def test_training_and_evaluation_on_any_data(photos, tmp_path):
    """With a timm tower whose weights are a local file, and label vectors of a file."""
    torch.manual_seed(0)
    tower = timm.create_model("test_efficientnet", pretrained=False)
    save_file({k: v.contiguous() for k, v in tower.state_dict().items()}, tmp_path / "tower.safetensors")
    vectors = np.random.default_rng(0).standard_normal((len(COLOURS), 12))
    np.savez(tmp_path / "vectors.npz", names=np.array(list(COLOURS)), vectors=vectors)
    run(
        "04", tmp_path / "04.ipynb", data=photos, out_dir=tmp_path / "run", image_tower="timm:test_efficientnet",
        image_weights=tmp_path / "tower.safetensors", label_embeddings=tmp_path / "vectors.npz", embed_dim=16, epochs=2,
    )  # fmt: skip
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["protocol"]["test_images"] > 20 and metrics["protocol"]["unseen_with_twin"] == 1
    text = printed(run("05", tmp_path / "05.ipynb", run_folder=tmp_path / "run"))
    assert "the recomputed figures are those of metrics.json" in text and "the panel answers" in text
    text = printed(run("05", tmp_path / "05b.ipynb", run_folder=tmp_path / "run", data=f"{photos}/"))
    assert "the recomputed figures" not in text and "the panel answers" in text
