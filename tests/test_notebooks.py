"""Notebooks with other parameters than their defaults (which run under --nbval): photos with labels of one's own."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import nbformat
import numpy as np
import papermill
import pytest
from helpers import ROOT, save_vectors, timm_file
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from PIL import Image

from data_prep.writer import ABSENT

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
        stripes = [np.full((40, 60 // len(names), 3), COLOURS[name]) for name in names]
        picture = np.concatenate(stripes, axis=1) + rng.normal(0, 8, (40, 60, 3))
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.jpg")
        rows.append(f"{i}.jpg,{';'.join(names)}")
    (folder / "labels.csv").write_text("\n".join(rows))
    (folder / "unseen.txt").write_text("red\nwhite\n")
    files = ["--images", folder, "--labels", folder / "labels.csv", "--unseen", folder / "unseen.txt"]
    command = [sys.executable, "-m", "data_prep.folder", *files, "--out", folder / "data", "--size", "32"]
    subprocess.run(command, check=True, cwd=ROOT)
    return str(folder / "data")


def verified(photos, folder):
    """A copy of which every third label that an image lacks is verified to be absent, and the others are not known."""
    found = datasets.load_from_disk(photos)
    absent = lambda row, i: {"absent": [j for j in range(len(COLOURS)) if j not in row["labels"] and (i + j) % 3 == 0]}
    found.map(absent, with_indices=True, features=ABSENT).save_to_disk(folder)
    shutil.copy(Path(photos) / "labels.json", folder)
    return str(folder)


def printed(*notebooks):
    """What each of (number, parameters) prints, run one after the other in one kernel, which forgets in between."""
    joined = nbformat.v4.new_notebook()
    for number, parameters in notebooks:
        node = load_notebook_node(str(next((ROOT / "notebooks").glob(f"{number}_*.ipynb"))))
        cells = parameterize_notebook(node, parameters).cells
        sources = [cell.source for cell in cells if cell.cell_type == "code"]
        joined.cells += [nbformat.v4.new_code_cell(source) for source in (*sources, "%reset -f")]
        joined.metadata = node.metadata
    texts, options = [""], {"cwd": str(ROOT), "progress_bar": False, "start_timeout": 600}
    for cell in papermill.execute_notebook(joined, None, **options).cells:
        texts[-1] += "".join(o.text for o in cell.get("outputs", []) if o.output_type == "stream")
        if cell.source == "%reset -f":
            texts.append("")
    return texts[:-1]


def test_notebooks_on_any_data(photos, tmp_path):
    """With a timm tower whose weights are a local file, and label vectors of a file; data on which a part of the pairs
    was verified, as of OpenImages, and data on which all are known.
    """
    vectors = np.random.default_rng(0).standard_normal((len(COLOURS), 12))
    settings = {
        "data": verified(photos, tmp_path / "verified"), "out_dir": str(tmp_path / "run"), "embed_dim": 16,
        "image_tower": "timm:test_efficientnet",
        "image_weights": str(timm_file("test_efficientnet", tmp_path)[1]), "epochs": 2,
        "label_embeddings": save_vectors(tmp_path / "vectors.npz", list(COLOURS), vectors),
    }  # fmt: skip
    run = {"run_folder": settings["out_dir"]}
    other = shutil.copytree(photos, tmp_path / "other", ignore=lambda *_: ["tokens"])
    names = json.loads((other / "labels.json").read_text())
    names |= {"seen": names["seen"][:-1], "unseen": [names["seen"][-1], *names["unseen"]]}  # what was trained is unseen
    (other / "labels.json").write_text(json.dumps(names))
    notebooks = ("01", {"data": photos}), ("04", settings), ("05", run), ("05", run | {"data": str(other)})
    splits, _, own, moved = printed(*notebooks)
    assert "photos of photos" in splits and "2 unseen" in splits and "red roof (word)" in splits
    protocol = json.loads((tmp_path / "run" / "metrics.json").read_text())["protocol"]
    assert protocol["test_images"] > 20 and protocol["unseen_with_twin"] == 1 and 30 < protocol["known_pairs"] < 70
    assert "the recomputed figures are those of metrics.json" in own and "the panel answers" in own
    assert "the recomputed figures" not in moved and "the panel answers" in moved
    assert "other data than the run was trained on" in moved and "1 labels that are unseen here were seen" in moved
