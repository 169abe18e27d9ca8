"""clipdec: zero-shot multi-label image classification with CLIP queries and an ML-Decoder head."""

import importlib
import importlib.metadata

from clipdec import metrics
from clipdec.data import hold_out, load_data
from clipdec.decoder import MLDecoder
from clipdec.labels import LabelSpace
from clipdec.losses import CombinedLoss, alignment_loss, asymmetric_loss
from clipdec.model import CLIPDecoder
from clipdec.towers import encode_labels

__version__ = importlib.metadata.version("clipdec")

ROOMS = {  # imported when they are used: the paper's files need none of them
    "Config": "training.config", "fit": "training.run", "load_run": "training.build",
    "Predictor": "predictor.predictor", "export_onnx": "export.onnx",
}  # fmt: skip


def __getattr__(name):
    if name in ROOMS:
        return getattr(importlib.import_module(f"clipdec.{ROOMS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return [*globals(), *ROOMS]
