"""`export_onnx`: a trained run as one ONNX file that answers without torch."""

import json
from pathlib import Path

import torch
from torch import nn

from clipdec.predictor.predictor import Predictor
from clipdec.training.run_folder import whole

OPSET = 20
CARRIED = {"Resize", "CenterCrop", "ToTensor", "MaybeToTensor", "MaybeConvertMode", "Normalize"}  # by the metadata


class _Answer(nn.Module):
    """Pixels and label vectors to probabilities and their logits, in operations that ONNX has."""

    def __init__(self, predictor):
        super().__init__()
        self.model, self.calibration = predictor.model, predictor.calibration
        if hasattr(self.model, "clip_weight"):  # untouched CLIP has none
            weight = self.model.clip_weight.item()
            del self.model.clip_weight
            self.model.clip_weight = weight  # a plain number in place of the buffer: the graph has no branch

    def forward(self, pixels, queries):
        logits = self.calibration.log_odds(self.model.score(*self.model.tower(pixels), queries))
        return logits.sigmoid(), logits


def export_onnx(run_folder, path, calibration=None):
    """Write image tower, head and calibration of a run, or untouched CLIP by its name, to an ONNX file, and check it
    against torch.

    Inputs: `pixels` [images, 3, H, W] as the metadata's preprocessing makes them, and `queries` [labels, D], unit label
    vectors (`Predictor.vectors`); without `queries` the run's own labels are asked about (of which onnxruntime notes,
    when it loads the file, that they can be replaced). Outputs: `probabilities` [images, labels], calibrated, and their
    `logits`. Numbers of images and labels are free. Metadata, each a JSON text: `names` of the run's labels,
    `preprocessing`, `threshold`, `prompt`, `text_tower`.

    calibration: a file of `Predictor.save_calibration`, in place of the run's own.
    Raises: ImportError without the extra `onnx`, ValueError if onnxruntime gives other probabilities than torch (1e-4),
    or if the tower's preprocessing is not resize and normalise.
    """
    try:
        import onnx
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401  torch's exporter needs it
    except ImportError as error:
        raise ImportError(f"{error.name} is missing: pip install 'clipdec[onnx]'") from None
    path = Path(path).expanduser()
    if not path.parent.is_dir() or path.is_dir():
        raise FileNotFoundError(f"{path} is no file in a folder that is there: make the folder, or give another path")
    predictor = Predictor.load(run_folder, calibration=calibration)
    predictor.model.cpu()
    predictor.config.device = "cpu"
    answer, queries = _Answer(predictor).eval(), predictor.vectors(predictor.labels.names)
    preprocessing = describe(predictor.model.tower.preprocess)
    images, labels = torch.export.Dim("images"), torch.export.Dim("labels")
    pixels = torch.randn(2, 3, *preprocessing["size"])
    program = torch.onnx.export(
        answer, (pixels, queries[:3]), dynamo=True, opset_version=OPSET, verbose=False, external_data=False,
        input_names=["pixels", "queries"], output_names=["probabilities", "logits"],
        dynamic_shapes=({0: images}, {0: labels}),
    )  # fmt: skip
    model = program.model_proto
    model.graph.initializer.append(onnx.numpy_helper.from_array(queries.numpy(), "queries"))  # an input's default
    facts = {"names": predictor.labels.names, "preprocessing": preprocessing, "threshold": predictor.threshold}
    facts |= {"prompt": predictor.config.prompt, "text_tower": predictor.config.text_tower}
    texts = {name: json.dumps(value, ensure_ascii=False) for name, value in facts.items()}
    onnx.helper.set_model_props(model, texts)
    with whole(path) as aside:
        onnx.save(model, str(aside))
        check(aside, answer, queries, preprocessing["size"])


def describe(preprocess):
    """What a tower does to an image: {"size": [H, W], "interpolation", "mean", "std"}, for an RGB image in 0..1."""
    steps = {type(step).__name__: step for step in preprocess.transforms}
    if extra := steps.keys() - CARRIED:
        raise ValueError(f"the preprocessing has steps that the file cannot carry: {', '.join(sorted(extra))}")
    size, normalise = steps["Resize"].size, steps["Normalize"]
    mean, std = ([float(x) for x in values] for values in (normalise.mean, normalise.std))
    size = [size, size] if isinstance(size, int) else list(size)
    return {"size": size, "interpolation": steps["Resize"].interpolation.value, "mean": mean, "std": std}


@torch.no_grad()
def check(path, answer, queries, size):
    """Compare the file with torch, for several numbers of images and labels. Raises ValueError."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for images, asked in ((1, 1), (3, 5), (2, len(queries))):
        pixels = torch.randn(images, 3, *size)
        found = session.run(None, {"pixels": pixels.numpy(), "queries": queries[:asked].numpy()})
        expected = answer(pixels, queries[:asked])
        gap = max((torch.from_numpy(a) - b).abs().max().item() for a, b in zip(found, expected))
        if not gap < 1e-4:
            where = f"with {images} images and {asked} labels"
            raise ValueError(f"onnxruntime differs from torch by {gap:.2g} {where}: the file was not kept")
