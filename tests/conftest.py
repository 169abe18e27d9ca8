"""What the tests share: a small prepared data set and a short run on it. Nothing in the tests needs a network."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub and datasets are imported, so before all else
os.environ["HF_DATASETS_OFFLINE"] = "1"

import pytest
import torch

import clipdec
from data_prep import emoji_scenes

TINY = {"train": 120, "val": 30, "test": 60}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A small emoji data set, opened."""
    folder = tmp_path_factory.mktemp("data") / "tiny"
    return clipdec.load_data(emoji_scenes.prepare(folder, seed=0, sizes=TINY, workers=1))


@pytest.fixture(scope="session")
def settings(tiny):
    """settings(out_dir, **changes): the Config of a short run on `tiny`."""

    def make(out_dir, **changes):
        short = {"embed_dim": 16, "epochs": 1, "batch_size": 32, "label_samples": 16, "device": "cpu"}
        return clipdec.Config(out_dir=str(out_dir), **{"data": str(tiny.folder)} | short | changes)

    return make


@pytest.fixture(scope="session")
def tiny_run(tiny, settings, tmp_path_factory):
    """(run folder, contents of metrics.json) of a run of two epochs."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    return folder, clipdec.fit(tiny, settings(folder, epochs=2))


def pytest_collection_modifyitems(items):
    """The browser comes last: by then the notebooks have trained the run that it looks at."""
    items.sort(key=lambda item: item.path.name == "test_browser.py")
