"""clipdec: zero-shot multi-label image classification with CLIP queries and an ML-Decoder head."""

import importlib
import importlib.metadata

__version__ = importlib.metadata.version("clipdec")

HOMES = {  # imported when they are used: names and pictures need no torch, the paper's files none of the rooms
    "load_data": "data", "hold_out": "data", "LabelSpace": "labels", "encode_labels": "towers", "MLDecoder": "decoder",
    "asymmetric_loss": "losses", "alignment_loss": "losses", "CombinedLoss": "losses", "CLIPDecoder": "model",
    "Config": "training.config", "fit": "training.run", "load_run": "training.build",
    "Predictor": "predictor.predictor", "export_onnx": "export.onnx",
}  # fmt: skip


def __getattr__(name):
    if name == "metrics":
        return importlib.import_module("clipdec.metrics")
    if name in HOMES:
        return getattr(importlib.import_module(f"clipdec.{HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return [*globals(), "metrics", *HOMES]
