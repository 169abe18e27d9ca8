"""One change at a time: what each setting of a run is worth."""

from pathlib import Path

from clipdec.comparison.statistics import difference
from clipdec.comparison.systems import DEFECTS, WORDS, encode_all, notebook_command, run_all, with_words
from clipdec.data import load_data
from clipdec.training.config import Config
from clipdec.training.scores import held_labels

PAPER, SENTENCE = {"head": "ml_decoder"}, "one more sentence about {} here"
ABLATIONS = {  # group: {setting: what it sets otherwise than the run's Config}
    "head": {"residual": {}, "matching": {"head": "matching"}, "linear": {"head": "linear"}, "ml_decoder": PAPER},
    "prompt": {"a photo of {}": {}, "{}": {"prompt": "{}"}, SENTENCE: {"prompt": SENTENCE}},
    "label vectors": {"CLIP": {}, "word vectors": WORDS},
    "alpha, beta": {"1, 1": {}, "0, 1": {"alpha": 0.0}, "0.2, 1": {"alpha": 0.2}, "5, 1": {"alpha": 5.0}},
    "seen labels in training": {"95 %": {}} | {f"{100 - out} %": {"hold_out": out / 100} for out in (35, 68, 89)},
    "decoder width": {"96": {}, "48": {"embed_dim": 48}, "192": {"embed_dim": 192}},
    "image tower": {"frozen": {}, "trained, lr 5e-4": {"train_image_tower": True, "lr": 5e-4}},
    "defects of the author's code, with the paper's head": {"none": PAPER}
    | {name: PAPER | {"as_author": name} for name in DEFECTS},
}


def ablate(base, word_vectors, seeds, folder, jobs=1, resume=False):
    """Run ABLATIONS, equal ones once: {"rows", "differences" to the first of a group}; arguments as of `compare`."""
    encode_all(Config(**base))
    listed = {(group, name): with_words(each[name], word_vectors) for group, each in ABLATIONS.items() for name in each}
    labels = load_data(Config(**base).data).labels
    listed = {key: changes for key, changes in listed.items() if _can_train(key, Config(**base | changes), labels)}
    configs = {key: [_config(base, changes, seed, folder) for seed in range(seeds)] for key, changes in listed.items()}
    once = {config.out_dir: ("best", config) for each in configs.values() for config in each}
    done = dict(zip(once, run_all(once.values(), jobs, resume)))
    results = {key: [done[config.out_dir] for config in each] for key, each in configs.items()}
    rows, differences = [], []
    for (group, name), changes in listed.items():
        about, each = {"group": group, "setting": name}, results[group, name]
        for config, (row, _) in zip(configs[group, name], each):
            again = {"seed": config.seed, "command": notebook_command(base | changes, config.seed)}
            rows.append(about | again | {"epochs": config.epochs} | {k: row[k] for k in ("zsl", "gzsl", "seconds")})
        first = next(iter(ABLATIONS[group]))
        if name != first:
            differences.append(about | difference(each, results[group, first]))
    return {"rows": rows, "differences": differences}


def _can_train(key, config, labels):
    """Whether a setting leaves labels to train on; says so if not."""
    try:
        held_labels(labels, config)
    except ValueError as error:
        print(f"{': '.join(key)} is left out: {error}", flush=True)
        return False
    return True


def _config(base, changes, seed, folder):
    """The Config of a setting; its folder is named after what it sets, so that equal ones share it."""
    short = {key: Path(value).stem if key in WORDS else value for key, value in changes.items()}
    here = folder / "-".join([*(f"{key}={value}" for key, value in short.items()), str(seed)])
    return Config(**base | changes | {"seed": seed, "out_dir": str(here)})
