"""Label vectors from files."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import timm_file

from clipdec import Config
from clipdec.towers import ImageTower
from clipdec.training.build import image_tower, label_queries
from clipdec.training.embeddings import load_label_embeddings
from clipdec.training.inputs import tower_key


def test_embeddings_come_in_the_order_asked_for(tmp_path):
    rows = 3 * np.random.default_rng(0).standard_normal((3, 5))
    np.savez(tmp_path / "e.npz", names=np.array(["a", "b", "c"]), vectors=rows)
    config = Config(label_embeddings=str(tmp_path / "e.npz"))
    vectors = label_queries(config, ["c", "a"])
    assert torch.equal(label_queries(config, [" C", "a"]), vectors)  # another spelling of the name
    expected = rows[[2, 0]] / np.linalg.norm(rows[[2, 0]], axis=1, keepdims=True)
    assert vectors.dtype == torch.float32 and vectors.numpy() == pytest.approx(expected, rel=1e-7, abs=1e-6)


def test_embeddings_that_lack_a_name(tmp_path):
    np.savez(tmp_path / "e.npz", names=np.array(["a", "b"]), vectors=np.ones((2, 5)))
    with pytest.raises(ValueError, match="no vector for 2 labels: x, y"):
        load_label_embeddings(tmp_path / "e.npz", ["x", "a", "y"])


def test_files_that_are_no_embeddings(tmp_path):
    class Trap:  # writes a file when it is unpickled
        def __reduce__(self):
            return open, (str(tmp_path / "sprung"), "w")
    np.savez(tmp_path / "no_vectors.npz", names=np.array(["a"]))
    np.savez(tmp_path / "shape.npz", names=np.array(["a", "b"]), vectors=np.ones((3, 5)))
    np.savez(tmp_path / "flat.npz", names=np.array(["a", "b"]), vectors=np.ones(2))
    np.savez(tmp_path / "pickled.npz", names=np.array(["a", Trap()], dtype=object), vectors=np.ones((2, 5)))
    np.save(tmp_path / "array.npy", np.ones((2, 5)))
    (tmp_path / "text.npz").write_text("a 0.1 0.2")
    (tmp_path / "empty.npz").touch()
    whole = (tmp_path / "shape.npz").read_bytes()
    (tmp_path / "truncated.npz").write_bytes(whole[: len(whole) // 2])
    for path in [*tmp_path.iterdir(), tmp_path / "missing.npz"]:
        with pytest.raises(ValueError, match=f"label_embeddings .*{path.name}"):
            load_label_embeddings(path, ["a"])
    assert not (tmp_path / "sprung").exists()


def test_weights_with_other_names_are_matched_by_order_where_it_is_set(tmp_path):
    model, path = timm_file("test_resnet", tmp_path)
    torch.save({f"layer{i:03}": v for i, v in enumerate(model.state_dict().values())}, tmp_path / "renamed.pth")
    config = Config(image_tower="timm:test_resnet", image_weights=str(tmp_path / "renamed.pth"))
    with pytest.raises(ValueError, match="set image_weights_by_order"):
        image_tower(config)
    found = image_tower(replace(config, image_weights_by_order=True))
    assert tower_key(found) == tower_key(ImageTower("timm:test_resnet", path))
