"""clipdec: zero-shot multi-label image classification with CLIP queries and an ML-Decoder head."""

import importlib

from clipdec import metrics
from clipdec.config import Config
from clipdec.data import hold_out, load_data
from clipdec.decoder import MLDecoder
from clipdec.labels import LabelSpace, encode_labels
from clipdec.losses import CombinedLoss, alignment_loss, asymmetric_loss
from clipdec.model import CLIPDecoder, load_run
from clipdec.version import __version__

COMMANDS = {"fit": "training", "Predictor": "predictor", "export_onnx": "export"}


def __getattr__(name):
    """What lives in a module that is also a command, imported when it is used: `python -m clipdec.training` must not find it imported."""
    if name in COMMANDS:
        return getattr(importlib.import_module(f"clipdec.{COMMANDS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
