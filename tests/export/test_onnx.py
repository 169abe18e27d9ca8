"""The ONNX file of a run: the same answers as torch, for any number of images and labels."""

import json
import sys

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision.transforms import v2

from clipdec import Predictor, export_onnx, fit
from clipdec.export import onnx as export
from clipdec.export.__main__ import main

RESAMPLING = {"bicubic": Image.BICUBIC, "bilinear": Image.BILINEAR}


def answers(session, images, queries=None):
    """(names, probabilities) from the file alone: pixels made as its metadata says."""
    facts = {k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items()}
    how = facts["preprocessing"]
    scaling = how["size"][::-1], RESAMPLING[how["interpolation"]]
    pixels = np.stack([image.convert("RGB").resize(*scaling) for image in images]).astype(np.float32) / 255
    pixels = ((pixels - how["mean"]) / how["std"]).transpose(0, 3, 1, 2).astype(np.float32)
    inputs = {"pixels": pixels} | ({} if queries is None else {"queries": queries.numpy()})
    return facts, session.run(["probabilities"], inputs)[0]


def compare(run_folder, path, images, **options):
    """Export a run to `path`: the file answers as the Predictor does. Returns both."""
    export_onnx(run_folder, path, **options)
    predictor, session = Predictor.load(run_folder, **options), onnxruntime.InferenceSession(str(path))
    facts, found = answers(session, images)
    assert facts["names"] == predictor.labels.names and facts["threshold"] == predictor.threshold
    assert (facts["prompt"], facts["text_tower"]) == (predictor.config.prompt, predictor.config.text_tower)
    for row, expected in zip(found, predictor(images), strict=True):
        assert dict(zip(facts["names"], row.tolist())) == pytest.approx(dict(expected), abs=1e-4)
    return predictor, session


def test_the_file_answers_as_torch_does(tiny, tiny_run, tmp_path):
    images = [tiny.test.image(i).resize((150, 90)) for i in range(3)]
    predictor, session = compare(tiny_run[0], tmp_path / "model.onnx", images)
    names, image = ["a red fruit", "pizza"], tiny.test.image(0)
    _, [found] = answers(session, [image], predictor.vectors(names))
    assert dict(zip(names, found.tolist())) == pytest.approx(dict(predictor(image, names)), abs=1e-4)
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]  # weights are inside


def test_windows_are_cut_in_the_file(tiny, train, tmp_path):
    train(tmp_path / "run", windows=4)
    compare(tmp_path / "run", tmp_path / "model.onnx", [tiny.test.image(i) for i in range(2)])


def test_untouched_clip_by_its_name(tiny, tmp_path):
    images = [tiny.test.image(i) for i in range(20)]
    predictor, _ = compare("mini", tmp_path / "model.onnx", images[:2])
    predictor.calibrate(images, [[tiny.labels.names[j] for j in row.nonzero()] for row in tiny.test.targets[:20]])
    predictor.save_calibration(tmp_path / "own.json")
    again, _ = compare("mini", tmp_path / "model.onnx", images[:2], calibration=tmp_path / "own.json")
    assert again.threshold == predictor.threshold < 1


def test_another_tower_the_paper_s_head_and_vectors_of_a_file(tiny, settings, tmp_path):
    tower = timm.create_model("test_efficientnet", pretrained=False)
    save_file({k: v.contiguous() for k, v in tower.state_dict().items()}, tmp_path / "tower.safetensors")
    vectors = np.random.default_rng(0).standard_normal((1006, 20))
    np.savez(tmp_path / "vectors.npz", names=tiny.labels.names, vectors=vectors)
    files = {"image_weights": f"{tmp_path}/tower.safetensors", "label_embeddings": f"{tmp_path}/vectors.npz"}
    fit(tiny, settings(tmp_path / "run", image_tower="timm:test_efficientnet", head="ml_decoder", **files))
    compare(tmp_path / "run", tmp_path / "model.onnx", [tiny.test.image(0)])


def test_clip_s_own_answer_is_in_the_file(tiny, tiny_run, tmp_path):
    for name in ("config.json", "labels.json", "metrics.json"):
        (tmp_path / name).write_bytes((tiny_run[0] / name).read_bytes())
    weights = load_file(tiny_run[0] / "checkpoint.safetensors")
    save_file(weights | {"clip_weight": torch.tensor(0.7)}, tmp_path / "checkpoint.safetensors")
    image = tiny.test.image(0)
    assert Predictor.load(tmp_path)(image, "pizza") != Predictor.load(tiny_run[0])(image, "pizza")
    compare(tmp_path, tmp_path / "model.onnx", [image])


def test_a_file_that_differs_is_not_kept(tiny_run, tmp_path, monkeypatch):
    forward = export._Answer.forward
    shifted = lambda x: x + 2e-4 * (not torch.compiler.is_exporting())
    other = lambda self, pixels, queries: tuple(map(shifted, forward(self, pixels, queries)))
    monkeypatch.setattr(export._Answer, "forward", other)
    with pytest.raises(ValueError, match="differs from torch by 0.0002"):
        export_onnx(tiny_run[0], tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "Predictor", None)  # it is said before any work
    for path in (tmp_path / "no" / "model.onnx", tmp_path):
        with pytest.raises(SystemExit, match="error: .* is no file in a folder that is there"):
            main([str(tiny_run[0]), str(path)])


def test_without_the_extra(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"pip install 'clipdec\[onnx\]'"):
        export_onnx(tiny_run[0], tmp_path / "model.onnx")
    with pytest.raises(SystemExit, match="error: .*onnx"):
        main([str(tiny_run[0]), str(tmp_path / "model.onnx")])


def test_preprocessing_that_a_file_cannot_carry():
    with pytest.raises(ValueError, match="RandomGrayscale"):
        export.describe(v2.Compose([v2.Resize(8), v2.RandomGrayscale()]))
