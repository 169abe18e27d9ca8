"""One change at a time: what each setting of a run is worth."""

from pathlib import Path

from clipdec.comparison import systems
from clipdec.comparison.field import BUDGETS
from clipdec.comparison.statistics import difference
from clipdec.comparison.systems import PAPER, WORDS
from clipdec.data import load_data
from clipdec.towers import windows_of
from clipdec.training.author import followed
from clipdec.training.config import AS_AUTHOR, Config
from clipdec.training.run_folder import read_history
from clipdec.training.scores import held_labels

PLAIN = PAPER | {"augment": False, "as_author": ""}
AUGMENTED = PLAIN | {"augment": True}  # as the author's code trains
SENTENCE = "one more sentence about {} here"
# 56 is the batch that makes 1/56 of the author's alpha 1
BALANCES = {"1": 1.0, "0": 0.0, "1/56": 1 / 56, "1/5": 0.2, "5": 5.0, "56": 56.0}
POINTS = [point for point in AS_AUTHOR if point != "cutout_first"]  # which needs augmented images
PASSES = {1 + len(windows_of(look["windows"])): look for look in reversed(BUDGETS.values())}  # of the tower an image
LOOKS = {"": {}, ", alpha 0": {"alpha": 0.0}, ", paper's head": PAPER}
ABLATIONS = {  # group: {setting: what it sets}
    "tower passes": {f"{n}{name}": look | changes for name, changes in LOOKS.items() for n, look in PASSES.items()},
    "head": {head: {"head": head} for head in ("residual", "matching", "linear")} | {"ml_decoder": PAPER},
    "prompt": {prompt: {"prompt": prompt} for prompt in ("a photo of {}", "{}", SENTENCE)},
    "label vectors": {"CLIP": {"label_embeddings": None}, "word vectors": WORDS},
    "alpha / beta": {name: {"alpha": alpha, "beta": 1.0} for name, alpha in BALANCES.items()},
    "seen labels in training": {f"{100 - out} %": {"hold_out": out / 100} for out in (5, 35, 68, 89)},
    "decoder width": {f"{width}": {"embed_dim": width} for width in (96, 48, 192)},
    "image tower": {
        "frozen": {"train_image_tower": False}, "trained, lr 5e-4": {"train_image_tower": True, "lr": 5e-4},
    },
    "author's points": {"none": PLAIN} | {point: PLAIN | {"as_author": point} for point in POINTS},
    "author's points, augmented": {"none": AUGMENTED}
    | {points: AUGMENTED | {"as_author": points} for points in ("cutout_first", "all")},
}  # fmt: skip


def ablate(base, word_vectors, seeds, folder, jobs=1, resume=False, groups=None):
    """Run `groups` of ABLATIONS, by default all, equal settings once; other arguments as of `compare`.

    Returns: {"base", "rows", "differences" to the first of a group, and what `machine` says}. A row's "val" is what its
    epoch was chosen by: mAP on val of the labels in training and of those held out.
    """
    chosen = {(group, name): changes for group in groups or ABLATIONS for name, changes in ABLATIONS[group].items()}
    listed, data = {}, load_data(Config(**base).data)
    for key, changes in chosen.items():
        changes = systems.with_words(changes, word_vectors)
        if _can_train(key, Config(**base | changes), data):
            listed[key] = changes
    configs = {key: [_config(base, changes, seed, folder) for seed in range(seeds)] for key, changes in listed.items()}
    systems.encode_all(base, [config.windows for each in configs.values() for config in each])
    once = {config.out_dir: ("best", config) for each in configs.values() for config in each}
    done = dict(zip(once, systems.run_all(once.values(), jobs, resume)))
    results = {key: [done[config.out_dir] for config in each] for key, each in configs.items()}
    rows, differences = [], []
    for (group, name), changes in listed.items():
        about, each = {"group": group, "setting": name}, results[group, name]
        for config, (row, _) in zip(configs[group, name], each):
            again = {"seed": config.seed, "command": systems.notebook_command(base | changes, config.seed)}
            found = {k: row[k] for k in ("zsl", "gzsl", "seconds", "as_author") if k in row}
            rows.append(about | again | {"epochs": config.epochs, "val": _val(config, row)} | found)
        first = next(iter(ABLATIONS[group]))
        if name != first and (group, first) in results:
            differences.append(about | difference(each, results[group, first]))
    return {"base": base, "rows": rows, "differences": differences} | systems.machine(base, jobs)


def _can_train(key, config, data):
    """Whether the data allow a setting; says so if not."""
    try:
        held_labels(data.labels, config)
        followed(config, data)
    except ValueError as error:
        print(f"{': '.join(key)} is left out: {error}", flush=True)
        return False
    return True


def _config(base, changes, seed, folder):
    """The Config of a setting; its folder is named after what differs from the run's, so that equal ones share it."""
    own, its = Config(**base), Config(**base | changes)
    changed = {key: value for key, value in changes.items() if getattr(its, key) != getattr(own, key)}
    short = {key: Path(value).stem if key in WORDS and value else value for key, value in changed.items()}
    here = folder / "-".join([*(f"{key}={value}" for key, value in short.items()), str(seed)])
    return Config(**base | changes | {"seed": seed, "out_dir": str(here)})


def _val(config, row):
    """{"seen", "held"}: mAP in percent on val in a run's best epoch; without held-out labels that of the others."""
    epoch = read_history(config.path("out_dir"))[row["best_epoch"] - 1]
    return {part: epoch[f"val_{part}_map"] for part in ("seen", "held") if f"val_{part}_map" in epoch}
