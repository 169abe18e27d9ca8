"""`export_onnx`: a trained run as one ONNX file that answers without torch.

    python -m clipdec.export runs/emoji model.onnx        # needs `pip install clipdec[onnx]`
"""

import argparse
import json
import sys

import torch
from torch import nn

from clipdec.predictor.predictor import Predictor
from clipdec.training.run_folder import whole

OPSET = 20


class _Answer(nn.Module):
    """Pixels and label vectors to probabilities and their logits, in operations that ONNX has."""

    def __init__(self, predictor):
        super().__init__()
        self.model, self.tower, self.calibration = predictor.model, predictor.model.tower, predictor.calibration
        self.clip_weight = predictor.model.clip_weight.item()  # a plain number: the graph has no branch

    def forward(self, pixels, queries):
        tokens, vectors = self.tower(pixels)
        logits = self.model(tokens, queries)
        if self.clip_weight:
            logits = logits + self.clip_weight * self.model.clip_evidence(vectors, queries)
        logits = self.calibration.log_odds(logits)
        return logits.sigmoid(), logits


def export_onnx(run_folder, path):
    """Write image tower, head and calibration of a run to an ONNX file, and check it against torch.

    Inputs: `pixels` [images, 3, H, W] as the metadata's preprocessing makes them, and `queries` [labels, D], unit label vectors
    (`Predictor.vectors`); without `queries` the run's own labels are asked about (of which onnxruntime notes, when it loads the
    file, that they can be replaced). Outputs: `probabilities` [images, labels], calibrated, and their `logits`. Numbers of images
    and labels are free. Metadata, each a JSON text: `names` of the run's labels, `preprocessing`, `threshold`, `prompt`, `text_tower`.

    Raises: ImportError without the extra `onnx`, ValueError if onnxruntime gives other probabilities than torch (1e-4), or if the
    tower's preprocessing is not resize and normalise.
    """
    try:
        import onnx
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401  torch's exporter needs it
    except ImportError as error:
        raise ImportError(f"{error.name} is missing: pip install 'clipdec[onnx]'") from None
    predictor = Predictor.load(run_folder)
    predictor.model.cpu().tower.cpu()
    predictor.config.device = "cpu"
    answer, queries = _Answer(predictor).eval(), predictor.vectors(predictor.labels.names)
    preprocessing = describe(predictor.model.tower.preprocess)
    images, labels = torch.export.Dim("images"), torch.export.Dim("labels")
    pixels = torch.randn(2, 3, *preprocessing["size"])
    program = torch.onnx.export(
        answer, (pixels, queries[:3]), dynamo=True, opset_version=OPSET, verbose=False, external_data=False,
        input_names=["pixels", "queries"], output_names=["probabilities", "logits"], dynamic_shapes=({0: images}, {0: labels}),
    )  # fmt: skip
    model = program.model_proto
    model.graph.initializer.append(onnx.numpy_helper.from_array(queries.numpy(), "queries"))  # what an input is by default
    config = predictor.config
    facts = {"names": predictor.labels.names, "preprocessing": preprocessing, "threshold": predictor.threshold, "prompt": config.prompt, "text_tower": config.text_tower}
    onnx.helper.set_model_props(model, {name: json.dumps(value, ensure_ascii=False) for name, value in facts.items()})
    with whole(path) as aside:
        onnx.save(model, str(aside))
        check(aside, answer, queries, preprocessing["size"])


def describe(preprocess):
    """What a tower does to an image: {"size": [H, W], "interpolation", "mean", "std"}, for an RGB image in 0..1."""
    steps = {type(step).__name__: step for step in preprocess.transforms}
    if extra := steps.keys() - {"Resize", "CenterCrop", "ToTensor", "MaybeToTensor", "MaybeConvertMode", "Normalize"}:
        raise ValueError(f"the preprocessing has steps that the file cannot carry: {', '.join(sorted(extra))}")
    size, normalise = steps["Resize"].size, steps["Normalize"]
    size = [size, size] if isinstance(size, int) else list(size)
    return {"size": size, "interpolation": steps["Resize"].interpolation.value, "mean": [float(x) for x in normalise.mean], "std": [float(x) for x in normalise.std]}


@torch.no_grad()
def check(path, answer, queries, size):
    """Compare the file with torch, for several numbers of images and labels. Raises ValueError."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for images, asked in ((1, 1), (3, 5), (2, len(queries))):
        pixels = torch.randn(images, 3, *size)
        found = session.run(None, {"pixels": pixels.numpy(), "queries": queries[:asked].numpy()})
        gap = max((torch.from_numpy(a) - b).abs().max().item() for a, b in zip(found, answer(pixels, queries[:asked])))
        if not gap < 1e-4:
            raise ValueError(f"onnxruntime differs from torch by {gap:.2g} with {images} images and {asked} labels: the file was not kept")


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m clipdec.export", description=__doc__.split("\n")[0])
    parser.add_argument("run_folder", help="a folder that notebooks/04_train.ipynb wrote")
    parser.add_argument("path", help="the .onnx file to write")
    args = parser.parse_args(arguments)
    try:
        export_onnx(args.run_folder, args.path)
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"{args.path}: its logits are those of torch to 1e-4")


if __name__ == "__main__":
    main()
