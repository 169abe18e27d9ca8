"""The methods of the field by name: what computes their scores, with which settings, and what was published of them.

One tower pass an image has no ending; `_5` are 5 passes, the whole image and its corners, `_windows` 26.
"""

from functools import partial

from clipdec.comparison.methods.attention_per_label import AttentionPerLabel
from clipdec.comparison.methods.biam import BiAM
from clipdec.comparison.methods.conse import CONSE
from clipdec.comparison.methods.dualcoop import DualCoOp
from clipdec.comparison.methods.fast0tag import Fast0Tag
from clipdec.comparison.methods.label_em import LabelEM
from clipdec.comparison.methods.lesa import LESA
from clipdec.comparison.methods.mkt import MKT
from clipdec.comparison.methods.per_patch import PerPatch
from clipdec.comparison.methods.piaa import piaa_scores
from clipdec.comparison.methods.raw_clip import ensemble_scores, patch_scores, softmax_scores, window_scores
from clipdec.comparison.methods.recover_and_match import RecoverAndMatch
from clipdec.comparison.methods.sdl import SDL
from clipdec.comparison.methods.sparc import sparc_scores
from clipdec.comparison.methods.value_path import mask_clip_scores, tag_clip_scores
from clipdec.training.scores import raw_clip_scores

BUDGETS = {"": {"windows": 0}, "_5": {"windows": 4}, "_windows": {"windows": 25}}


def at_each_budget(systems):
    """{name and ending: what the name stands for}."""
    return {f"{name}{end}": what for name, what in systems.items() for end in BUDGETS}


def budget(name):
    """The ending of a system's name."""
    return next((end for end in BUDGETS if end and name.endswith(end)), "")


TRAINING_FREE = {  # {name: function of Data and Config to scores [M, L] of test}
    "raw_clip": raw_clip_scores, "raw_clip_5": window_scores, "raw_clip_windows": window_scores,
    "raw_clip_ensemble": ensemble_scores, "raw_clip_patch": patch_scores, "mask_clip": mask_clip_scores,
    "tag_clip": tag_clip_scores,
} | at_each_budget({"raw_clip_softmax": softmax_scores, "piaa": piaa_scores})  # fmt: skip
TRANSDUCTIVE = at_each_budget({"sparc": sparc_scores})
FREE = TRAINING_FREE | TRANSDUCTIVE

METHODS = {"conse": CONSE, "label_em": LabelEM, "fast0tag": Fast0Tag} | at_each_budget({
    "linear_patch": PerPatch, "mlp_patch": partial(PerPatch, hidden=256), "attention_per_label": AttentionPerLabel,
    "sdl": SDL, "lesa": LESA, "biam": BiAM, "mkt": MKT, "dualcoop": DualCoOp, "recover_and_match": RecoverAndMatch,
})  # {name: method of the protocol}  # fmt: skip
RATES = {  # a method's own learning rate, which the protocol's FACTORS are around
    "conse": 1e-2, "label_em": 1e-2, "fast0tag": 1e-3, "linear_patch": 3e-3, "mlp_patch": 3e-3,
    "attention_per_label": 3e-3, "sdl": 1e-3, "lesa": 1e-3, "biam": 1e-3, "mkt": 3e-3, "dualcoop": 1e-4,
    "recover_and_match": 1e-4,
}  # fmt: skip
ALL_LABELS = {"conse", "label_em", "fast0tag", "sdl", "dualcoop"}  # asked in a step; the others cost more by the label
OF_PATCHES = {"raw_clip_patch", "mask_clip", "tag_clip", "piaa"}  # need a CLIP that is a plain ViT
OF_ONE_CLIP = at_each_budget(dict.fromkeys(("mkt", "dualcoop", "recover_and_match"))).keys()  # for images and labels

# mAP on NUS-WIDE 925/81 in percent, ZSL and GZSL, where its source could be read
PUBLISHED = {
    "conse": (9.4, 2.1), "attention_per_label": (10.4, 3.7), "fast0tag": (15.1, 3.7), "lesa": (18.6, 5.2),
    "biam": (26.4, 9.6), "ml_decoder": (31.1, 19.9), "mkt": (37.6, 18.3),
}  # fmt: skip
OWN_TOWER = {  # of the code or paper that a method is from
    "tag_clip": "CLIP ViT-B/16", "piaa": "SC-CLIP ViT-B/16", "sdl": "TResNet-M", "lesa": "VGG19", "biam": "VGG19",
    "mkt": "CLIP ViT-B/16", "dualcoop": "CLIP RN50", "recover_and_match": "CLIP ViT-B/16, adapters",
    "ml_decoder": "TResNet", "clip_decoder_author": "TResNet-M", "clip_decoder": "TResNet-M",
}  # fmt: skip


def stem(name):
    return name.removesuffix(budget(name))


def settings(name):
    """What a method of METHODS, or of FREE, sets otherwise than the run's Config."""
    if name in FREE:
        return BUDGETS[budget(name)]
    samples = 0 if stem(name) in ALL_LABELS else 256
    return BUDGETS[budget(name)] | {"lr": RATES[stem(name)], "label_samples": samples}
