"""What the tests share: a small prepared data set and short runs on it."""

import pytest
import torch
from helpers import SIZES

import clipdec
from data_prep import emoji_scenes

SHORT = {"embed_dim": 16, "epochs": 1, "batch_size": 32, "label_samples": 16, "device": "cpu"}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A small emoji data set, opened."""
    folder = tmp_path_factory.mktemp("data") / "tiny"
    return clipdec.load_data(emoji_scenes.prepare(folder, seed=0, sizes=SIZES, workers=1))


@pytest.fixture(scope="session")
def settings(tiny):
    """settings(out_dir, **changes): the Config of a short run on `tiny`."""
    short = SHORT | {"data": str(tiny.folder)}
    return lambda out_dir, **changes: clipdec.Config(out_dir=str(out_dir), **short | changes)


@pytest.fixture(scope="session")
def train(tiny, settings):
    """train(out_dir, data=tiny, **changes): the metrics of such a run."""
    return lambda out_dir, data=tiny, **changes: clipdec.fit(data, settings(out_dir, **changes))


@pytest.fixture(scope="session")
def tiny_run(train, tmp_path_factory):
    """(run folder, contents of metrics.json) of a run of two epochs."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    return folder, train(folder, epochs=2)
